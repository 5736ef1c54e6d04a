/* SPDX-License-Identifier: Apache-2.0 */
/* From a group's absmax to its scale, as a file has it and as the kernels of scaled
 * codecs take it (docs/FORMATS.md, scaled codecs).
 *
 * Where the libraries would give NaN or depend on the machine, this holds everywhere:
 *
 * - NaN is no part of an absmax. Its integer code is that of 0, its float code 0x7f
 *   with its own sign bit.
 * - A torchao float8 scale that is 0 (zeros, or an absmax too small for the model
 *   dtype's numbers) is 1; so is an fp8 block's factor that would be infinite.
 * - An infinite absmax gives an infinite scale: finite elements become zeros with
 *   their sign, infinite ones what NaN becomes. */
#ifndef QF_QUANT_SCALES_H
#define QF_QUANT_SCALES_H

#include <stddef.h>

#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What the kernel multiplies elements with or divides them by, of n groups. */
void qf_scale_factors(const struct qf_codec_spec *spec, const float *absmax, size_t n,
                      float *factors);
/* The scales of n groups as the file has them, in the dtype of the part. stored may be
 * absmax itself. */
void qf_scale_store(const struct qf_codec_spec *spec, const float *absmax, size_t n,
                    void *stored);

#ifdef __cplusplus
}
#endif
#endif
