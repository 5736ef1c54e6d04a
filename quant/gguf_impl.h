/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel files of GGUF's blocks share. */
#ifndef QF_QUANT_GGUF_IMPL_H
#define QF_QUANT_GGUF_IMPL_H

#include "quant/kernels.h"

/* Fills in the definition. */
void qf_gguf_init_scalar(struct qf_kernels *table);
/* One block of it: for what the wide kernels leave alone. */
void qf_gguf_block_scalar(enum qf_gguf_block block, enum qf_dtype dtype,
                          const void *src, uint8_t *out);

/* Scales of this size and finite: 1/scale is finite and rounds well, and no product
 * with it is anything but a number. */
#define QF_GGUF_SCALE_MIN 0x1p-120f

#if defined(__x86_64__)
void qf_gguf_init_avx2(struct qf_kernels *table);
void qf_gguf_init_avx512(struct qf_kernels *table);
#endif

#endif
