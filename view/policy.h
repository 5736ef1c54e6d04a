/* SPDX-License-Identifier: Apache-2.0 */
/* The policy: which tensors of a checkpoint are quantized, to what the others are cast,
 * and the skip list that makes every loader agree. From shard headers and config.json
 * alone (docs/FORMATS.md section 5). */
#ifndef QF_VIEW_POLICY_H
#define QF_VIEW_POLICY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"
#include "base/json.h"
#include "ckpt/shard.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_reason {
    QF_REASON_QUANTIZED,
    QF_REASON_NOT_WEIGHT, /* not named *.weight, not 2-D, or not F32/F16/BF16 */
    QF_REASON_TABLE,      /* the architecture table: not a Linear */
    QF_REASON_HEAD,       /* output head */
    QF_REASON_FP32,       /* _keep_in_fp32_modules */
    QF_REASON_NAME,       /* a component named …weight, which loaders misread */
    QF_REASON_EXPERTS,    /* per-expert weight that the loader fuses */
    QF_REASON_ROUTER,
    QF_REASON_EMBEDDING,
    QF_REASON_MHA,     /* out_proj of torch's MultiheadAttention */
    QF_REASON_VAE,     /* of a diffusers autoencoder, whose modules must be asked for */
    QF_REASON_SKIPPED, /* a skip pattern of the overrides, or none of "only" */
    QF_REASON_CLOSURE, /* a skip entry that another tensor needs would hit it */
    QF_REASON_COLLISION, /* a part's name exists in the source */
    QF_REASON_CONV1D,    /* a Conv1D, where the family replaces Linears alone */
    QF_REASON_FUSED,     /* loaders fuse it with one that is kept (q, k, v; gate, up) */
    QF_REASON_SHAPE, /* the view's settings do not fit (a storage dtype that does not
                        divide the codes, a group or block that does not divide it) */
    QF_REASON_DEQUANTIZED, /* a view that quantizes nothing: a coded tensor, */
    QF_REASON_PLAIN,       /* and all others */
    QF_REASON_COUNT
};

/* For one tensor. */
struct qf_decision {
    enum qf_reason reason;
    enum qf_dtype
        dtype;       /* kept tensors: the dtype served (another than stored: cast) */
    bool transposed; /* quantized: a Conv1D weight, stored [in, out] */
};

/* Policy of one weight set under one view. Owned by the caller. */
struct qf_policy {
    /* "" or why the model passes through whole (unsupported architecture, already
     * quantized, …): no decisions then. */
    char reason[QF_ERR_TEXT_SIZE];
    enum qf_dtype dtype; /* D */
    bool diffusers;
    size_t count;
    struct qf_decision *decisions; /* same order as the tensors given */
    size_t quantized_count;
    size_t skip_count;
    /* Modules left as they are, in order: llm_int8_skip_modules, or the list that the
     * family has in its place. */
    char **skip;
};

/* tensors: those of all shards of the set, in any order. Those that are coded explain
 * the quantization_config of config.json: they are weights like others. */
int qf_policy_plan(const struct qf_tensor *const *tensors, size_t count,
                   const qf_json *config, const struct qf_view *view,
                   struct qf_policy *out, struct qf_err *err) QF_MUST_CHECK;
void qf_policy_fini(struct qf_policy *policy);
/* Whether the entry of a llm_int8_skip_modules keeps transformers (5 or 4) or diffusers
 * from replacing this module. */
bool qf_skip_hits(const char *entry, const char *module) QF_MUST_CHECK;
/* A few words for `quantfs info`: "output head", "embedding", … */
const char *qf_reason_text(enum qf_reason reason);

#ifdef __cplusplus
}
#endif
#endif
