/* SPDX-License-Identifier: Apache-2.0 */
/* The definition of every kernel (docs/FORMATS.md section 2), written to be read beside
 * it. Portable C in binary32: the compiler flags forbid contraction, half.h forbids
 * excess precision. Speed is not its task.
 *
 * What the text of the formats leaves open is settled here: a block, row or nested
 * block without any number (all NaN) has the absmax 0, so all its 4-bit codes are those
 * of 0.0, its int8 codes 0. */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "quant/half.h"
#include "quant/kernels_impl.h"
#include "quant/tables.h"

static inline uint16_t load_u16(const void *src, size_t i)
{
    uint16_t v;
    memcpy(&v, (const char *)src + 2 * i, sizeof v);
    return v;
}

static inline void store_u16(void *dst, size_t i, uint16_t v)
{
    memcpy((char *)dst + 2 * i, &v, sizeof v);
}

/* Element i of src as binary32 bits. */
static inline uint32_t load_bits(enum qf_dtype dtype, const void *src, size_t i)
{
    uint32_t v;
    switch (dtype) {
    case QF_F16:
        return qf_f16_to_f32_bits(load_u16(src, i));
    case QF_BF16:
        return qf_bf16_to_f32_bits(load_u16(src, i));
    default:
        memcpy(&v, (const char *)src + 4 * i, sizeof v);
        return v;
    }
}

static inline float load(enum qf_dtype dtype, const void *src, size_t i)
{
    return qf_f32_of_bits(load_bits(dtype, src, i));
}

/* max(acc, |x|), NaN ignored. */
static inline float absmax_of(float acc, float x)
{
    float a = fabsf(x);
    return a > acc ? a : acc;
}

static unsigned nf4_code(float y)
{
    unsigned code = 0;
    for (int i = 0; i < 15; i++)
        code += y > qf_f32_of_bits(qf_nf4_thresholds[i]);
    return code;
}

static unsigned fp4_code(float y)
{
    unsigned rank = 0;
    float m = fabsf(y);
    for (int i = 0; i < 7; i++)
        rank += m > qf_f32_of_bits(qf_fp4_thresholds[i]);
    return (rank ^ (rank & 2) << 1) + (y < 0 ? 8 : 0);
}

static inline void quantize_4bit(enum qf_dtype dtype, unsigned code_of(float),
                                 unsigned zero, const void *src, size_t n,
                                 size_t blocksize, uint8_t *packed, float *absmax)
{
    assert(blocksize >= 2 && blocksize % 2 == 0);
    for (size_t first = 0; first < n; first += blocksize) {
        size_t end = n - first < blocksize ? n : first + blocksize;
        float amax = 0;
        for (size_t i = first; i < end; i++)
            amax = absmax_of(amax, load(dtype, src, i));
        float rcp = 1.0f / amax;
        for (size_t i = first; i < end; i += 2) {
            unsigned high = zero;
            unsigned low = zero;
            if (amax != 0) {
                high = code_of(load(dtype, src, i) * rcp);
                if (i + 1 < end)
                    low = code_of(load(dtype, src, i + 1) * rcp);
            }
            packed[i / 2] = (uint8_t)(high << 4 | low);
        }
        absmax[first / blocksize] = amax;
    }
}

static inline float f16_rounded(float x)
{
    return qf_f32_of_bits(qf_f16_to_f32_bits(qf_f32_bits_to_f16(qf_f32_bits(x))));
}

static inline void row_absmax(enum qf_dtype dtype, const void *src, size_t n,
                              float *absmax)
{
    for (size_t i = 0; i < n; i++)
        *absmax = absmax_of(*absmax, f16_rounded(load(dtype, src, i)));
}

static inline void int8_codes(enum qf_dtype dtype, const void *src, size_t n, float scb,
                              int8_t *codes)
{
    float scale = 1.0f / scb * 127.0f;
    for (size_t i = 0; i < n; i++) {
        float q = rintf(f16_rounded(load(dtype, src, i)) * scale);
        codes[i] = (int8_t)(fabsf(q) <= 127.0f ? q : 0); /* NaN: 0 */
    }
}

static inline void cast(enum qf_dtype from, enum qf_dtype to, const void *src, size_t n,
                        void *dst)
{
    if (from == to) {
        if (n != 0)
            memcpy(dst, src, n * qf_dtype_size(from));
        return;
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t bits = load_bits(from, src, i);
        if (to == QF_F16)
            store_u16(dst, i, qf_f32_bits_to_f16(bits));
        else if (to == QF_BF16)
            store_u16(dst, i, qf_f32_bits_to_bf16(bits));
        else
            memcpy((char *)dst + 4 * i, &bits, sizeof bits);
    }
}

#define DEFINE_FOR_DTYPE(suffix, dtype)                                                \
    static void nf4_##suffix(const void *src, size_t n, size_t blocksize,              \
                             uint8_t *packed, float *absmax)                           \
    {                                                                                  \
        quantize_4bit(dtype, nf4_code, QF_NF4_ZERO, src, n, blocksize, packed,         \
                      absmax);                                                         \
    }                                                                                  \
    static void fp4_##suffix(const void *src, size_t n, size_t blocksize,              \
                             uint8_t *packed, float *absmax)                           \
    {                                                                                  \
        quantize_4bit(dtype, fp4_code, QF_FP4_ZERO, src, n, blocksize, packed,         \
                      absmax);                                                         \
    }                                                                                  \
    static void row_absmax_##suffix(const void *src, size_t n, float *absmax)          \
    {                                                                                  \
        row_absmax(dtype, src, n, absmax);                                             \
    }                                                                                  \
    static void int8_##suffix(const void *src, size_t n, float scb, int8_t *codes)     \
    {                                                                                  \
        int8_codes(dtype, src, n, scb, codes);                                         \
    }                                                                                  \
    static void cast_##suffix##_f32(const void *src, size_t n, void *dst)              \
    {                                                                                  \
        cast(dtype, QF_F32, src, n, dst);                                              \
    }                                                                                  \
    static void cast_##suffix##_f16(const void *src, size_t n, void *dst)              \
    {                                                                                  \
        cast(dtype, QF_F16, src, n, dst);                                              \
    }                                                                                  \
    static void cast_##suffix##_bf16(const void *src, size_t n, void *dst)             \
    {                                                                                  \
        cast(dtype, QF_BF16, src, n, dst);                                             \
    }

DEFINE_FOR_DTYPE(f32, QF_F32)
DEFINE_FOR_DTYPE(f16, QF_F16)
DEFINE_FOR_DTYPE(bf16, QF_BF16)

static void nested(const float *absmax, size_t n, float offset, uint8_t *codes,
                   float *nested_absmax)
{
    for (size_t first = 0; first < n; first += 256) {
        size_t end = n - first < 256 ? n : first + 256;
        float amax = 0;
        for (size_t i = first; i < end; i++)
            amax = absmax_of(amax, absmax[i] - offset);
        float rcp = 1.0f / amax;
        for (size_t i = first; i < end; i++)
            codes[i] = qf_nested_code((absmax[i] - offset) * rcp);
        nested_absmax[first / 256] = amax;
    }
}

static float mean(const float *x, size_t n)
{
    double a[8] = {0};
    for (size_t i = 0; i < n; i++)
        a[i % 8] += (double)x[i];
    double sum = ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
    return (float)(sum / (double)n);
}

const struct qf_kernels qf_kernels_scalar = {
    .name = "scalar",
    .nf4 = {[QF_F32] = nf4_f32, [QF_F16] = nf4_f16, [QF_BF16] = nf4_bf16},
    .fp4 = {[QF_F32] = fp4_f32, [QF_F16] = fp4_f16, [QF_BF16] = fp4_bf16},
    .row_absmax = {[QF_F32] = row_absmax_f32,
                   [QF_F16] = row_absmax_f16,
                   [QF_BF16] = row_absmax_bf16},
    .int8 = {[QF_F32] = int8_f32, [QF_F16] = int8_f16, [QF_BF16] = int8_bf16},
    .cast = {[QF_F32] = {cast_f32_f32, cast_f32_f16, cast_f32_bf16},
             [QF_F16] = {cast_f16_f32, cast_f16_f16, cast_f16_bf16},
             [QF_BF16] = {cast_bf16_f32, cast_bf16_f16, cast_bf16_bf16}},
    .nested = nested,
    .mean = mean,
    .dequant_4bit = qf_dequant_4bit_scalar,
    .dequant_int8 = qf_dequant_int8_scalar,
    .errors = qf_errors_scalar,
};
