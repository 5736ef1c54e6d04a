/* SPDX-License-Identifier: Apache-2.0 */
/* A variant: one model directory under one view, whole: policies, layouts and the
 * synthesized JSON files. Made from what ckpt/ has loaded; reads nothing itself. */
#ifndef QF_VIEW_VARIANT_H
#define QF_VIEW_VARIANT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "base/hash.h"
#include "ckpt/model.h"
#include "view/layout.h"
#include "view/names.h"
#include "view/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_variant_kind {
    QF_VARIANT_CONFIG,
    QF_VARIANT_INDEX,
    QF_VARIANT_SHARD,
    QF_VARIANT_GGUF /* the store has no such file */
};

/* A file of the directory that the view changes; all others pass through. */
struct qf_variant_file {
    const char *name; /* in the directory; borrowed from the model or static */
    enum qf_variant_kind kind;
    uint64_t size;
    struct qf_hash128 digest; /* of the text; shards: of the header, and so of layout
                               * and settings, but not of the weights */
    char *text;               /* CONFIG, INDEX: `size` bytes; owned */
    const struct qf_model_shard *source; /* SHARD */
    struct qf_layout *layout;            /* SHARD, GGUF; owned. The sources of a GGUF
                                          * file are the shards of model->sets[0] */
};

/* Immutable; borrows the model. */
struct qf_variant {
    const struct qf_model *model;
    struct qf_view view;
    char reason[QF_ERR_TEXT_SIZE]; /* not "": the directory passes through whole */
    size_t policy_count;           /* one for each weight set; of a GGUF file one,
                                    * with decisions in the order of its layout */
    struct qf_policy *policies;
    char gguf_name[256]; /* of the GGUF file */
    size_t file_count;
    struct qf_variant_file *files; /* by name, in byte order */
};

/* -ENOMEM is the only error: what cannot be quantized has a reason instead. */
int qf_variant_new(const struct qf_model *model, const struct qf_view *view,
                   struct qf_variant **out) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_variant_free(struct qf_variant *variant);
/* The file of this name, or NULL: it passes through. */
const struct qf_variant_file *qf_variant_find(const struct qf_variant *variant,
                                              const char *name);

/* Whether the view shows no file of this name, though the store has it: weights that a
 * GGUF file takes the place of. */
bool qf_variant_hides(const struct qf_variant *variant, const char *name);

#ifdef __cplusplus
}
#endif
#endif
