/* SPDX-License-Identifier: Apache-2.0 */
/* Where bitsandbytes' own kernels differ from the definition, and from each other
 * (docs/FORMATS.md section 2): its CUDA kernels compute with an approximate reciprocal,
 * so that a value at a threshold may fall to its other side; its CPU kernels have
 * thresholds, and a table for nested codes, of their own. Everything else is a
 * difference. */
#ifndef QF_QUANT_TIES_H
#define QF_QUANT_TIES_H

#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Units in the last place by which bitsandbytes' reciprocals, sums and products are
 * off. */
#define QF_TIE_ULPS 2

/* Whether a and b are at most `ulps` representable numbers apart; NaN equals NaN. */
bool qf_within_ulps(float a, float b, int ulps);

/* Whether `code` is that of a value within QF_TIE_ULPS of y = x * rcp(absmax). */
bool qf_tie_4bit(bool fp4, float y, unsigned code);
/* Whether `code` is that of a product within QF_TIE_ULPS of x * (rcp(scb) * 127). */
bool qf_tie_int8(float product, int code);

/* The code that bitsandbytes' CPU kernel gives to y: the number of midpoints of the
 * sorted quant_map below y; fp4's two zeros have a midpoint between them. */
unsigned qf_cpu_code_4bit(bool fp4, float y);
/* The same for z / nested_absmax in the dynamic map: looked up in 65536 steps. */
bool qf_tie_cpu_nested(float z, float nested_absmax, unsigned code);

#ifdef __cplusplus
}
#endif
#endif
