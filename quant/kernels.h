/* SPDX-License-Identifier: Apache-2.0 */
/* The inner loops, one table of functions per instruction set. The scalar table is
 * complete and is the definition; an ISA's init overwrites the entries it does better,
 * and every entry gives the same bytes to the bit (docs/FORMATS.md section 2).
 *
 * src is an array of the dtype that indexes the table, at any alignment of its element;
 * n counts elements. No entry reads or writes past n elements. */
#ifndef QF_QUANT_KERNELS_H
#define QF_QUANT_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* 4-bit: n elements in blocks of `blocksize` (a power of two >= 64), the last one short
 * if need be. Writes ceil(n/2) packed bytes and ceil(n/blocksize) absmax. */
typedef void qf_kernel_4bit(const void *src, size_t n, size_t blocksize,
                            uint8_t *packed, float *absmax);
/* max |fp16(x)| over n elements and *absmax, NaN ignored, into *absmax. */
typedef void qf_kernel_row_absmax(const void *src, size_t n, float *absmax);
/* int8 codes of n elements of a row whose absmax is scb. */
typedef void qf_kernel_int8(const void *src, size_t n, float scb, int8_t *codes);
/* dst[i] = src[i] rounded to the other dtype. */
typedef void qf_kernel_cast(const void *src, size_t n, void *dst);
/* Nested absmax: n fp32 in blocks of 256; z = absmax - offset. Writes n codes and
 * ceil(n/256) nested absmax. */
typedef void qf_kernel_nested(const float *absmax, size_t n, float offset,
                              uint8_t *codes, float *nested_absmax);
/* The mean of n fp32 in binary64, eight accumulators (FORMATS section 2, dq). */
typedef float qf_kernel_mean(const float *x, size_t n);

/* Scaled codecs: n elements in groups of `group`, the last one short if need be.
 * absmax[i] becomes the largest |x| of group i and what was in it, NaN ignored. */
typedef void qf_kernel_group_absmax(const void *src, size_t n, size_t group,
                                    float *absmax);
/* Their codes, with one factor a group as qf_scales makes it (quant/scales.h). n and
 * group are even where two codes share a byte. */
typedef void qf_kernel_scaled(const void *src, size_t n, size_t group,
                              const float *factors, void *codes);

/* The way back. What n 4-bit codes stand for, from the first of a block on:
 * map[code] * absmax. map: 16 values by code. */
typedef void qf_kernel_dequant_4bit(const uint8_t *packed, size_t n, size_t blocksize,
                                    const float *map, const float *absmax, float *out);
/* What n int8 codes of a row stand for: (code * scb) * (1/127). */
typedef void qf_kernel_dequant_int8(const int8_t *codes, size_t n, float scb,
                                    float *out);

#define QF_ERROR_LANES 8u

/* Sums over pairs (x, y), in binary64. A pair of which x or y is not finite is counted
 * and otherwise left out. Pair i of a call goes to lane i mod 8, so that vectors add in
 * the order of the definition; only the last call may have an n that is no multiple of
 * 8. */
struct qf_error_lanes {
    double error[QF_ERROR_LANES];   /* sum of (x - y)^2 */
    double xx[QF_ERROR_LANES];      /* of x * x */
    double yy[QF_ERROR_LANES];      /* of y * y */
    double xy[QF_ERROR_LANES];      /* of x * y */
    double max_abs[QF_ERROR_LANES]; /* largest |x - y| */
    uint64_t x_not_finite;
    uint64_t y_not_finite; /* though x is */
};

/* Adds n pairs. */
typedef void qf_kernel_errors(const float *x, const float *y, size_t n,
                              struct qf_error_lanes *lanes);

/* ggml's blocks of 32 elements (quant/gguf.h): reads blocks * 32 elements, writes the
 * blocks as they lie in a file. */
typedef void qf_kernel_gguf(const void *src, size_t blocks, uint8_t *out);

enum qf_gguf_block {
    QF_GGUF_Q8_0,
    QF_GGUF_Q4_0,
    QF_GGUF_Q4_1,
    QF_GGUF_Q5_0,
    QF_GGUF_Q5_1,
    QF_GGUF_BLOCK_COUNT
};

struct qf_kernels {
    const char *name;
    qf_kernel_4bit *nf4[QF_FLOAT_COUNT];
    qf_kernel_4bit *fp4[QF_FLOAT_COUNT];
    qf_kernel_row_absmax *row_absmax[QF_FLOAT_COUNT];
    qf_kernel_int8 *int8[QF_FLOAT_COUNT];
    qf_kernel_cast *cast[QF_FLOAT_COUNT][QF_FLOAT_COUNT]; /* [from][to] */
    qf_kernel_nested *nested;
    qf_kernel_mean *mean;
    qf_kernel_group_absmax *group_absmax[QF_FLOAT_COUNT];
    qf_kernel_scaled *scaled[QF_SCALED_COUNT][QF_FLOAT_COUNT];
    qf_kernel_dequant_4bit *dequant_4bit;
    qf_kernel_dequant_int8 *dequant_int8;
    qf_kernel_errors *errors;
    qf_kernel_gguf *gguf[QF_GGUF_BLOCK_COUNT][QF_FLOAT_COUNT];
};

/* Levels in rising order; each contains those before it. */
enum qf_isa { QF_ISA_SCALAR, QF_ISA_AVX2, QF_ISA_AVX512, QF_ISA_COUNT };

const char *qf_isa_name(enum qf_isa isa);
/* The best level that this processor (and its operating system) has. */
enum qf_isa qf_isa_detect(void);
/* The table for a level; programmer error when the processor lacks it. */
const struct qf_kernels *qf_kernels_for(enum qf_isa isa);
/* The best table, limited by the environment variable QUANTFS_ISA in tests. */
const struct qf_kernels *qf_kernels_best(void);

#ifdef __cplusplus
}
#endif
#endif
