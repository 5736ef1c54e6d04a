/* SPDX-License-Identifier: Apache-2.0 */
/* The definition of the kernels of scaled codecs: each element is multiplied with its
 * group's factor or divided by it in binary32, and the result rounded to the code's
 * numbers, half to even. What NaN and infinity become, quant/scales.h says. */
#include <math.h>
#include <string.h>

#include "quant/float8.h"
#include "quant/kernels_impl.h"

static inline float load(enum qf_dtype dtype, const void *src, size_t i)
{
    uint16_t half;
    uint32_t bits;
    if (dtype == QF_F32) {
        memcpy(&bits, (const char *)src + 4 * i, sizeof bits);
        return qf_f32_of_bits(bits);
    }
    memcpy(&half, (const char *)src + 2 * i, sizeof half);
    return qf_f32_of_bits(dtype == QF_F16 ? qf_f16_to_f32_bits(half)
                                          : qf_bf16_to_f32_bits(half));
}

static inline void group_absmax(enum qf_dtype dtype, const void *src, size_t n,
                                size_t group, float *absmax)
{
    for (size_t i = 0; i < n; i++) {
        float a = fabsf(load(dtype, src, i));
        if (a > absmax[i / group])
            absmax[i / group] = a;
    }
}

/* round half to even, into [-limit - 1, limit]. */
static inline int int_code(float y, float limit)
{
    if (isnan(y))
        return 0;
    float low = y > -limit - 1 ? y : -limit - 1;
    return (int)rintf(low < limit ? low : limit);
}

static inline uint8_t float_code(struct qf_float8 format, float x, float y)
{
    uint8_t sign = (uint8_t)(qf_f32_bits(x) >> 24 & 0x80u);
    return sign | qf_f32_to_f8(format, fabsf(y));
}

static inline void store_code(enum qf_scaled scaled, float x, float factor, size_t i,
                              uint8_t *codes)
{
    switch (scaled) {
    case QF_SCALED_I8_MUL:
        codes[i] = (uint8_t)int_code(x * factor, 127);
        break;
    case QF_SCALED_I8_DIV:
        codes[i] = (uint8_t)int_code(x / factor, 127);
        break;
    case QF_SCALED_I8_PACKED:
        codes[i] = (uint8_t)(int_code(x / factor, 127) + 128);
        break;
    case QF_SCALED_I4_PACKED: {
        uint8_t code = (uint8_t)(int_code(x / factor, 7) + 8);
        codes[i / 2] = i % 2 == 0 ? code : (uint8_t)(codes[i / 2] | code << 4);
        break;
    }
    case QF_SCALED_F8_E4M3:
        codes[i] = float_code(qf_float8_e4m3(), x, x / factor);
        break;
    case QF_SCALED_F8_E5M2:
        codes[i] = float_code(qf_float8_e5m2(), x, x / factor);
        break;
    default:
        codes[i] = float_code(qf_float8_e4m3(), x, x * factor);
        break;
    }
}

static inline void quantize(enum qf_scaled scaled, enum qf_dtype dtype, const void *src,
                            size_t n, size_t group, const float *factors, void *codes)
{
    for (size_t first = 0; first < n; first += group) {
        size_t end = n - first < group ? n : first + group;
        float factor = factors[first / group];
        for (size_t i = first; i < end; i++)
            store_code(scaled, load(dtype, src, i), factor, i, codes);
    }
}

#define DEFINE(name, scaled, suffix, dtype)                                            \
    static void name##_##suffix(const void *src, size_t n, size_t group,               \
                                const float *factors, void *codes)                     \
    {                                                                                  \
        quantize(scaled, dtype, src, n, group, factors, codes);                        \
    }

#define DEFINE_FOR_DTYPE(suffix, dtype)                                                \
    static void group_absmax_##suffix(const void *src, size_t n, size_t group,         \
                                      float *absmax)                                   \
    {                                                                                  \
        group_absmax(dtype, src, n, group, absmax);                                    \
    }                                                                                  \
    DEFINE(i8_mul, QF_SCALED_I8_MUL, suffix, dtype)                                    \
    DEFINE(i8_div, QF_SCALED_I8_DIV, suffix, dtype)                                    \
    DEFINE(i8_packed, QF_SCALED_I8_PACKED, suffix, dtype)                              \
    DEFINE(i4_packed, QF_SCALED_I4_PACKED, suffix, dtype)                              \
    DEFINE(e4m3, QF_SCALED_F8_E4M3, suffix, dtype)                                     \
    DEFINE(e5m2, QF_SCALED_F8_E5M2, suffix, dtype)                                     \
    DEFINE(e4m3_block, QF_SCALED_F8_E4M3_BLOCK, suffix, dtype)

DEFINE_FOR_DTYPE(f32, QF_F32)
DEFINE_FOR_DTYPE(f16, QF_F16)
DEFINE_FOR_DTYPE(bf16, QF_BF16)

#define FOR_DTYPES(name)                                                               \
    {                                                                                  \
        [QF_F32] = name##_f32, [QF_F16] = name##_f16, [QF_BF16] = name##_bf16          \
    }

qf_kernel_group_absmax *const qf_group_absmax_scalar[QF_FLOAT_COUNT] =
    FOR_DTYPES(group_absmax);

qf_kernel_scaled *const qf_scaled_scalar[QF_SCALED_COUNT][QF_FLOAT_COUNT] = {
    [QF_SCALED_I8_MUL] = FOR_DTYPES(i8_mul),
    [QF_SCALED_I8_DIV] = FOR_DTYPES(i8_div),
    [QF_SCALED_I8_PACKED] = FOR_DTYPES(i8_packed),
    [QF_SCALED_I4_PACKED] = FOR_DTYPES(i4_packed),
    [QF_SCALED_F8_E4M3] = FOR_DTYPES(e4m3),
    [QF_SCALED_F8_E5M2] = FOR_DTYPES(e5m2),
    [QF_SCALED_F8_E4M3_BLOCK] = FOR_DTYPES(e4m3_block),
};
