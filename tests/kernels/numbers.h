/* SPDX-License-Identifier: Apache-2.0 */
/* Classes of numbers that kernels are compared on. */
#ifndef QF_TESTS_KERNELS_NUMBERS_H
#define QF_TESTS_KERNELS_NUMBERS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "quant/half.h"
#include "quant/kernels.h"

static uint64_t state = 0x9e3779b97f4a7c15u;

static inline uint32_t random_u32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

/* In (-1, 1). */
static inline float random_float(void)
{
    return (float)(int32_t)random_u32() * 0x1p-31f;
}

enum class {
    UNIFORM,
    NORMAL,
    HEAVY, /* any finite bits */
    BITS,  /* any bits: NaN, infinity */
    DENORMAL,
    ZEROS, /* mostly blocks of zeros of both signs */
    INFINITIES,
    NANS,
    ALL_NAN,
    TINY, /* absmax around the smallest normal numbers and 2^-128 */
    CLASS_COUNT
};

static inline uint32_t normal_bits(void)
{
    float x = 0;
    for (int i = 0; i < 6; i++)
        x += random_float();
    return qf_f32_bits(x * 0.02f);
}

static inline uint32_t number(enum class class, size_t i)
{
    uint32_t u = random_u32();
    uint32_t sign = u & 0x80000000u;
    switch (class) {
    case UNIFORM:
        return qf_f32_bits(random_float());
    case NORMAL:
        return normal_bits();
    case HEAVY:
        return (u & 0x7f800000u) == 0x7f800000u ? sign : u;
    case BITS:
        return u;
    case DENORMAL:
        return u & 0x807fffffu;
    case ZEROS:
        return i / 64 % 3 == 0 && u % 97 == 0 ? normal_bits() : sign;
    case INFINITIES:
        return u % 31 == 0 ? sign | 0x7f800000u : normal_bits();
    case NANS:
        return u % 13 == 0 ? u | 0x7f800000u : normal_bits();
    case ALL_NAN:
        return u | 0x7fc00000u;
    default: /* TINY */
        return sign | ((u >> 8 & 3u) << 23) | (u & 0x7fffffu);
    }
}

/* The number in dtype; classes about binary32's range are moved to that of dtype. */
static inline void put(enum qf_dtype dtype, void *out, size_t i, enum class class)
{
    uint32_t u = number(class, i);
    uint16_t h;
    if (dtype == QF_F32) {
        memcpy((char *)out + 4 * i, &u, sizeof u);
        return;
    }
    if (dtype == QF_BF16)
        h = (uint16_t)(u >> 16);
    else if (class == HEAVY || class == BITS)
        h = (uint16_t)(class == HEAVY && (u & 0x7c00u) == 0x7c00u ? 0 : u);
    else if (class == DENORMAL || class == TINY)
        h = (uint16_t)(u >> 16 & 0x87ffu);
    else
        h = qf_f32_bits_to_f16(u);
    memcpy((char *)out + 2 * i, &h, sizeof h);
}

#endif
