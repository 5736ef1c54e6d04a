/* SPDX-License-Identifier: Apache-2.0 */
/* Conversions between the three float types, bit for bit what the instructions
 * VCVTPH2PS and VCVTPS2PH (round to nearest even) and torch's bfloat16 do. */
#ifndef QF_QUANT_HALF_H
#define QF_QUANT_HALF_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "quantfs needs binary32 arithmetic without excess precision (SSE2, not x87)"
#endif

static inline float qf_f32_of_bits(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline uint32_t qf_f32_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline uint32_t qf_bf16_to_f32_bits(uint16_t h)
{
    return (uint32_t)h << 16;
}

/* Round to nearest even; every NaN becomes 0x7fc0. */
static inline uint16_t qf_f32_bits_to_bf16(uint32_t u)
{
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return 0x7fc0;
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

/* A NaN keeps its sign and payload and becomes quiet. */
static inline uint32_t qf_f16_to_f32_bits(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = h >> 10 & 31u;
    uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31)
        return sign | 0x7f800000u | mantissa << 13 | (mantissa != 0 ? 0x400000u : 0);
    if (exponent != 0)
        return sign | (exponent + 112) << 23 | mantissa << 13;
    /* Denormal: mantissa * 2^-24, exact in binary32. */
    return sign | qf_f32_bits((float)mantissa * 0x1p-24f);
}

/* Round to nearest even; a NaN keeps its sign and upper payload and becomes quiet. */
static inline uint16_t qf_f32_bits_to_f16(uint32_t u)
{
    uint32_t sign = u >> 16 & 0x8000u;
    uint32_t abs = u & 0x7fffffffu;
    if (abs > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u | (abs >> 13 & 0x3ffu));
    if (abs >= 0x477ff000u) /* 65520 and above round to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (abs >= 0x38800000u) /* 2^-14: normal in binary16 */
        return (uint16_t)(sign |
                          ((abs - 0x38000000u + 0xfffu + (abs >> 13 & 1u)) >> 13));
    /* Denormal: the ulp of 0.5 + |x| is 2^-24, so that the addition rounds. */
    return (uint16_t)(sign | (qf_f32_bits(0.5f + qf_f32_of_bits(abs)) & 0x7ffu));
}

#endif
