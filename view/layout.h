/* SPDX-License-Identifier: Apache-2.0 */
/* The layout of a view shard: from the header of a source shard and the policy's
 * decisions to the header of the view and a list of spans that cover the file without
 * gap or overlap (docs/FORMATS.md section 4). */
#ifndef QF_VIEW_LAYOUT_H
#define QF_VIEW_LAYOUT_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "ckpt/shard.h"
#include "quant/codec.h"
#include "view/names.h"
#include "view/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_span_kind {
    QF_SPAN_HEADER,  /* bytes of layout.header */
    QF_SPAN_COPY,    /* a tensor as it is stored */
    QF_SPAN_CAST,    /* a kept tensor in another dtype (tensors[].out_dtype) */
    QF_SPAN_PART,    /* a part of a quantized tensor */
    QF_SPAN_DECODED, /* a coded tensor (ckpt/bnb.h), rounded once, to out_dtype */
    QF_SPAN_ZERO     /* padding; of no tensor */
};

struct qf_span {
    uint64_t off;  /* in the view file */
    uint64_t size; /* > 0 */
    enum qf_span_kind kind;
    uint32_t tensor; /* index in layout.tensors; HEADER, ZERO: 0 */
    uint32_t part;   /* PART: index in tensors[].plan->parts */
};

struct qf_layout_tensor {
    const struct qf_tensor *src; /* borrowed from the shard */
    uint32_t source;             /* which of the file's sources has it */
    uint32_t heads; /* not 0: rows are taken in GGUF's order of that many attention
                     * heads (view/gguf.h) */
    enum qf_dtype out_dtype; /* of a kept tensor */
    struct qf_plan *plan;    /* owned; NULL for a kept tensor */
};

/* Immutable; borrows the shard it was made from. */
struct qf_layout {
    uint64_t file_size;
    uint64_t tensor_bytes; /* sum of the sizes of all output tensors */
    char *header;          /* 8 + N bytes; owned */
    size_t header_size;
    size_t tensor_count;
    struct qf_layout_tensor *tensors; /* in the shard's order */
    size_t span_count;
    struct qf_span *spans; /* by rising off */
};

/* What the header depends on besides the shard: entries of __metadata__ that win over
 * the shard's own. */
struct qf_layout_metadata {
    size_t count;
    const struct qf_metadata_entry *entries;
};

/* decisions: one for each tensor of the shard, in its order. dtype: D. */
int qf_layout_build(const struct qf_shard *shard, const struct qf_decision *decisions,
                    const struct qf_view *view, enum qf_dtype dtype,
                    struct qf_layout **out, struct qf_err *err) QF_MUST_CHECK;
int qf_layout_build_with(const struct qf_shard *shard,
                         const struct qf_decision *decisions,
                         const struct qf_view *view, enum qf_dtype dtype,
                         const struct qf_layout_metadata *metadata,
                         struct qf_layout **out, struct qf_err *err) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_layout_free(struct qf_layout *layout);
/* Index of the span that holds byte `off` (< file_size). */
size_t qf_layout_find(const struct qf_layout *layout, uint64_t off);
/* The name of an output tensor: src's name with the part's suffix (NULL part: as it
 * is). out holds `size` bytes and becomes "" if that is too few (size 0: untouched);
 * returns the length without NUL. */
size_t qf_part_name(const char *tensor, const struct qf_part *part, char *out,
                    size_t size);

#ifdef __cplusplus
}
#endif
#endif
