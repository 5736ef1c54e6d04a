/* SPDX-License-Identifier: Apache-2.0 */
/* What the sources of a comparison share among themselves. Private to compare/. */
#ifndef QF_COMPARE_COMPARE_INTERNAL_H
#define QF_COMPARE_COMPARE_INTERNAL_H

#include "base/limits.h"
#include "compare/compare.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Elements of a segment: what one thread takes at a time, in every view. A multiple of
 * all block sizes and of nested blocks. */
#define QF_SEGMENT_ELEMS QF_CHUNK_ELEMS

/* Codes that can be compared with each other: both or neither of them differ in what
 * they say of their group's scale. */
enum qf_code_kind {
    QF_CODES_NONE, /* bitsandbytes' int8 and what is not quantized */
    QF_CODES_BNB_4BIT,
    QF_CODES_I8,
    QF_CODES_I8_PACKED,
    QF_CODES_I4_PACKED,
    QF_CODES_E4M3,
    QF_CODES_E5M2
};

enum qf_code_kind qf_code_kind_of(enum qf_codec codec);
/* The same; NULL: none. */
enum qf_code_kind qf_code_kind_of_plan(const struct qf_plan *plan);

/* A result without tensors. */
int qf_compare_new(const struct qf_compare_input *input,
                   struct qf_compare **out) QF_MUST_CHECK;
/* Appends tensor `index` of a shard, with its sizes. layouts: the shard's, one a view.
 */
int qf_compare_add_tensor(struct qf_compare *compare,
                          const struct qf_layout *const *layouts,
                          size_t index) QF_MUST_CHECK;
/* Makes the totals, when all tensors have their errors. */
void qf_compare_sum_up(struct qf_compare *compare);

/* A shard that is open in every view. */
struct qf_compare_shard {
    const qf_srcfile *src;
    size_t view_count;
    const struct qf_layout *layouts[QF_VIEWS_MAX];
    qf_shard_file *files[QF_VIEWS_MAX];
    /* [tensor]: where its parts begin in the view's file. */
    uint64_t (*part_off[QF_VIEWS_MAX])[QF_PARTS_MAX];
    size_t pair_count;
    const struct qf_compare_pair *pairs;
};

struct qf_segment {
    uint32_t tensor; /* index in the layouts */
    uint64_t first;  /* element, in the order of the codes */
    size_t count;
};

/* What one thread works in. */
struct qf_segment_buffers {
    uint8_t *source;              /* the segment as it is stored */
    float *turned;                /* of a transposed weight, turned over */
    uint8_t *codes[QF_VIEWS_MAX]; /* of every view; NULL: not yet needed */
    float *scales[QF_VIEWS_MAX];  /* the same: absmax, SCB, scales of groups */
    float *x, *y;                 /* a tile of both */
};

/* -ENOMEM; qf_segment_buffers_fini is called in any case. */
int qf_segment_buffers_init(struct qf_segment_buffers *buffers) QF_MUST_CHECK;
void qf_segment_buffers_fini(struct qf_segment_buffers *buffers);

/* Measures one segment: errors has one entry a view, differing one a pair (0 where
 * there are not two codes). */
int qf_segment_measure(const struct qf_compare_shard *shard,
                       const struct qf_segment *segment,
                       struct qf_segment_buffers *buffers, struct qf_errors *errors,
                       uint64_t *differing) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
