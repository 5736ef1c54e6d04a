/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel files share among themselves. */
#ifndef QF_QUANT_KERNELS_IMPL_H
#define QF_QUANT_KERNELS_IMPL_H

#include "quant/kernels.h"

/* The definition. The other tables call it for short last blocks and for blocks that
 * hold NaN, infinity or nothing but denormals. */
extern const struct qf_kernels qf_kernels_scalar;

/* 1/127 in binary32: what an int8 code times its row's absmax is multiplied by. */
#define QF_INT8_RECIPROCAL 0x1.020408p-7f

/* The definition of the way back and of the sums of errors. */
void qf_dequant_4bit_scalar(const uint8_t *packed, size_t n, size_t blocksize,
                            const float *map, const float *absmax, float *out);
void qf_dequant_int8_scalar(const int8_t *codes, size_t n, float scb, float *out);
void qf_errors_scalar(const float *x, const float *y, size_t n,
                      struct qf_error_lanes *lanes);

/* The definition of scaled codecs. */
extern qf_kernel_group_absmax *const qf_group_absmax_scalar[QF_FLOAT_COUNT];
extern qf_kernel_scaled *const qf_scaled_scalar[QF_SCALED_COUNT][QF_FLOAT_COUNT];

/* The dynamic-map code of u: bitsandbytes' search (FORMATS section 2, dq). */
uint8_t qf_nested_code(float u);

/* qf_nested_code as a table, for u in [-1, 1]. A cell is all floats that share sign,
 * exponent and the upper 6 bits of the mantissa; at most one step of the search lies
 * in a cell. Cell 0 of each sign stands for everything nearer to zero, too. Code of u:
 * base, plus step when the low 17 bits of u are above the limit; step is +1 for
 * positive u, -1 for negative (where codes fall with the magnitude). */
#define QF_LUT_SHIFT      17
#define QF_LUT_LOW_MASK   0x1ffffu
#define QF_LUT_FIRST      (0x34000000u >> QF_LUT_SHIFT) /* 2^-23 */
#define QF_LUT_CELLS      ((0x3f800000u >> QF_LUT_SHIFT) - QF_LUT_FIRST + 1)
#define QF_LUT_BASE_SHIFT 24
/* [cell], then [QF_LUT_CELLS + cell] for negative u; entry: base << 24 | limit. */
extern uint32_t qf_nested_lut[2 * QF_LUT_CELLS];
/* Fills it. Called once, before a table that uses it is handed out. */
void qf_nested_lut_init(void);

#if defined(__x86_64__)
/* Overwrite the entries that the ISA does better. */
void qf_kernels_init_avx2(struct qf_kernels *table);
void qf_kernels_init_avx2_nested(struct qf_kernels *table);
void qf_kernels_init_avx2_dequant(struct qf_kernels *table);
void qf_kernels_init_avx512(struct qf_kernels *table);
void qf_kernels_init_avx512_dequant(struct qf_kernels *table);
#endif

#endif
