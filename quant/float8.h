/* SPDX-License-Identifier: Apache-2.0 */
/* binary32 to and from the two 8-bit floats of safetensors: F8_E4M3 ("fn": bias 7, no
 * infinity, largest 448) and F8_E5M2 (bias 15, largest finite 57344). */
#ifndef QF_QUANT_FLOAT8_H
#define QF_QUANT_FLOAT8_H

#include <stdbool.h>
#include <stdint.h>

#include "quant/half.h"

/* What a format is, as the conversions need it. */
struct qf_float8 {
    uint32_t mantissa; /* bits */
    uint32_t bias;
    float max; /* largest finite */
    /* 2^(24 - mantissa - bias): its ulp is the smallest denormal, so that adding it to
     * a number below 2^(1 - bias) rounds to one. */
    float denormal;
};

#define QF_F8_NAN 0x7fu

static inline struct qf_float8 qf_float8_e4m3(void)
{
    struct qf_float8 format = {3, 7, 448, 0x1p14f};
    return format;
}

static inline struct qf_float8 qf_float8_e5m2(void)
{
    struct qf_float8 format = {2, 15, 57344, 0x1p7f};
    return format;
}

/* Rounds to nearest even; what is larger than the largest becomes that, every NaN 0x7f.
 * The sign bit is the caller's. */
static inline uint8_t qf_f32_to_f8(struct qf_float8 format, float magnitude)
{
    if (magnitude != magnitude)
        return QF_F8_NAN;
    float x = magnitude < format.max ? magnitude : format.max;
    uint32_t bits = qf_f32_bits(x);
    if (bits < (128 - format.bias) << 23)
        return (uint8_t)(qf_f32_bits(x + format.denormal) -
                         qf_f32_bits(format.denormal));
    uint32_t shift = 23 - format.mantissa;
    uint32_t half = (1u << (shift - 1)) - 1;
    uint32_t rounded = (bits + half + (bits >> shift & 1u)) >> shift;
    return (uint8_t)(rounded - ((127 - format.bias) << format.mantissa));
}

/* Of any code, the sign included; exact. E5M2's 0x7c is infinity, E4M3's 0x7f NaN. */
static inline float qf_f8_to_f32(struct qf_float8 format, uint8_t code)
{
    uint32_t sign = (uint32_t)(code & 0x80u) << 24;
    uint32_t exponent = (code & 0x7fu) >> format.mantissa;
    uint32_t mantissa = code & ((1u << format.mantissa) - 1);
    uint32_t top = 0x7fu >> format.mantissa;
    uint32_t shift = 23 - format.mantissa;
    bool special = format.mantissa == 2 ? exponent == top : (code & 0x7fu) == 0x7fu;
    if (special) {
        bool infinite = format.mantissa == 2 && mantissa == 0;
        return qf_f32_of_bits(sign | 0x7f800000u | (infinite ? 0 : 0x400000u));
    }
    if (exponent != 0)
        return qf_f32_of_bits(sign | (exponent + 127 - format.bias) << 23 |
                              mantissa << shift);
    float ulp = qf_f32_of_bits((128 - format.bias - format.mantissa) << 23);
    return qf_f32_of_bits(sign | qf_f32_bits((float)mantissa * ulp));
}

#endif
