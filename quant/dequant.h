/* SPDX-License-Identifier: Apache-2.0 */
/* The way back: what the parts of a quantized tensor stand for, in binary32, as the
 * libraries' dequantize computes it before it rounds to the model dtype
 * (docs/FORMATS.md section 2, dequantization; section 2a for scaled codecs). The inner
 * loops are in quant/kernels.h.
 */
#ifndef QF_QUANT_DEQUANT_H
#define QF_QUANT_DEQUANT_H

#include <stddef.h>
#include <stdint.h>

#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The 16 values of a 4-bit codec, by code. Not for int8. */
void qf_dequant_map(enum qf_codec codec, float out[16]);
/* dq: the absmax of `count` blocks from their codes: nested_quant_map[code] *
 * nested_absmax + offset. The first block is the first of a nested block. */
void qf_dequant_nested(const uint8_t *codes, size_t count, const float *nested_absmax,
                       float offset, float *absmax);
/* The same for any map of 256 values and any nested block size: of blocks [first,
 * first + count); nested_absmax[0] is that of the nested block in which `first` lies.
 */
void qf_dequant_absmax(const uint8_t *codes, uint64_t first, size_t count,
                       const float *map, const float *nested_absmax,
                       uint32_t nested_blocksize, float offset, float *absmax);

/* Scaled codecs: the values of codes, by byte; of 4-bit codes, by nibble. */
void qf_dequant_values(enum qf_scaled scaled, float out[256]);
/* What codes [first, first + n) of an array stand for: value * scale. values are those
 * of qf_dequant_values. */
void qf_dequant_scaled(enum qf_scaled scaled, const float values[256],
                       const uint8_t *codes, size_t first, size_t n, float scale,
                       float *out);

#ifdef __cplusplus
}
#endif
#endif
