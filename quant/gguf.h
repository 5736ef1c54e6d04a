/* SPDX-License-Identifier: Apache-2.0 */
/* ggml's types as codecs: a row is cut into blocks of 32 elements, and the bytes of the
 * blocks, one behind the other, are all that there is (docs/FORMATS.md section 9). */
#ifndef QF_QUANT_GGUF_H
#define QF_QUANT_GGUF_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "quant/codec.h"
#include "quant/kernels.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Elements of a block. */
#define QF_GGUF_BLOCK 32u

/* What a file says of a codec. */
struct qf_gguf_info {
    const char *name;    /* in names of files: "Q8_0" */
    uint32_t type;       /* ggml's number of it, */
    uint32_t file_type;  /* and of a file of it */
    enum qf_dtype dtype; /* F16, BF16: tensors are cast, and have no plan */
};

/* Of a codec of QF_FAMILY_GGUF. */
const struct qf_gguf_info *qf_gguf_info(enum qf_codec codec);
/* Of those that have blocks. */
enum qf_gguf_block qf_gguf_block_of(enum qf_codec codec);
/* Bytes of a block. */
size_t qf_gguf_block_size(enum qf_gguf_block block);

/* The family's part of qf_codec_plan: -ENOTSUP for rows that are no whole number of
 * blocks, for transposed weights, and for the codecs that only cast. */
int qf_gguf_plan(struct qf_plan *plan, struct qf_err *err) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
