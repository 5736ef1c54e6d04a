/* SPDX-License-Identifier: Apache-2.0 */
/* Checkpoints that bitsandbytes has quantized, as the plain ones that they stand for:
 * of a header with codes, absmax, maps and states a header with the weights. What is
 * small (maps, states) is read when a model is loaded; codes and absmax when a weight
 * is. */
#ifndef QF_CKPT_BNB_H
#define QF_CKPT_BNB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"
#include "ckpt/shard.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qf_coded_kind { QF_CODED_NF4, QF_CODED_FP4, QF_CODED_INT8 };

#define QF_CODED_RANK_MAX   4u
#define QF_CODED_MAP_SIZE   16u
#define QF_CODED_NESTED_MAP 256u

/* How the weight of a tensor is stored (docs/FORMATS.md, dequantized views). The codes
 * begin at the tensor's off; offsets count from the beginning of the file. */
struct qf_coded {
    enum qf_coded_kind kind;
    bool nested; /* 4-bit: the absmax are codes themselves ("double quantization") */
    uint64_t shape[QF_CODED_RANK_MAX]; /* 4-bit: the tensor's shape points here */
    uint64_t elem_count;
    uint64_t stored_size; /* bytes of all tensors that it is made of */
    uint64_t row_size;    /* int8: elements that share a scale */
    uint64_t scb_off;     /* int8: F32, one a row */
    uint32_t blocksize;   /* 4-bit: elements that share an absmax */
    uint64_t absmax_off;  /* 4-bit: one a block, F32 or, nested, U8 */
    float map[QF_CODED_MAP_SIZE];
    uint32_t nested_blocksize;
    uint64_t nested_absmax_off; /* F32, one a block of absmax */
    float nested_offset;
    const float *nested_map; /* QF_CODED_NESTED_MAP values */
};

/* Whether the contents of this tensor must be known to understand the header. They are
 * at most QF_BNB_STATE_SIZE_MAX bytes. */
bool qf_bnb_is_small(const struct qf_tensor *tensor);
/* The dtype that the weights of an int8 checkpoint are taken to have: that of its first
 * plain float tensor. QF_DTYPE_NONE: there is none in this shard. */
enum qf_dtype qf_bnb_plain_dtype(const struct qf_shard *stored);
/* The plain shard. texts: for each tensor of `stored` its contents, where
 * qf_bnb_is_small (else, or when it was too long, NULL). int8_dtype: of int8 weights.
 * Takes `stored` when it succeeds. A shard without coded tensors is returned as it is.
 * -EBADMSG with a sentence that names the tensor, -ENOMEM. */
int qf_bnb_plain(struct qf_shard *stored, char *const *texts, enum qf_dtype int8_dtype,
                 struct qf_shard **out, struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
