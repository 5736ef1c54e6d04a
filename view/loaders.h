/* SPDX-License-Identifier: Apache-2.0 */
/* Which loaders take a view of a model: what has been measured (docs/MATRIX.md, the
 * tests) or is known of a release, claim by claim with its source, and nothing else.
 * What nobody has tried is called untested. */
#ifndef QF_VIEW_LOADERS_H
#define QF_VIEW_LOADERS_H

#include <stddef.h>

#include "view/variant.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_loader {
    QF_LOADER_SAFETENSORS,
    QF_LOADER_TRANSFORMERS,
    QF_LOADER_DIFFUSERS,
    QF_LOADER_ACCELERATE,
    QF_LOADER_PEFT,
    QF_LOADER_VLLM,
    QF_LOADER_COUNT
};

/* From good to bad: of several claims the worst one decides. */
enum qf_loads {
    QF_LOADS_YES,
    QF_LOADS_IF, /* on the conditions that the claims name */
    QF_LOADS_UNTESTED,
    QF_LOADS_NO
};

struct qf_loader_claim {
    enum qf_loader loader;
    enum qf_loads loads;
    const char *text;
    const char *source;
};

#define QF_LOADER_CLAIMS_MAX 40

struct qf_loader_judgement {
    enum qf_loads loads[QF_LOADER_COUNT];
    size_t claim_count;
    const struct qf_loader_claim *claims[QF_LOADER_CLAIMS_MAX]; /* by loader; static */
};

/* How it would be loaded. */
struct qf_loader_use {
    unsigned tensor_parallel; /* ranks; 0 or 1: none */
};

/* variant: one that does not pass through (its reason is ""). */
void qf_loaders_judge(const struct qf_variant *variant, const struct qf_loader_use *use,
                      struct qf_loader_judgement *out);

/* "transformers", … */
const char *qf_loader_name(enum qf_loader loader);
/* QF_LOADER_COUNT: there is none of this name. */
enum qf_loader qf_loader_find(const char *name);
/* "yes", "if", "untested", "no" */
const char *qf_loads_name(enum qf_loads loads);

#ifdef __cplusplus
}
#endif
#endif
