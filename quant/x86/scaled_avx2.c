/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: scaled codecs, as in scaled_avx512.c (see there), 8 elements at a time. A tail
 * goes through a zero-filled buffer and the same code. */
#include <immintrin.h>
#include <string.h>

#include "quant/float8.h"
#include "quant/kernels_impl.h"
#include "quant/scaled_table.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES  8u

INLINE size_t size_of(enum qf_dtype dtype)
{
    return dtype == QF_F32 ? 4 : 2;
}

INLINE __m256 load8(enum qf_dtype dtype, const char *p)
{
    if (dtype == QF_F32)
        return _mm256_loadu_ps((const float *)(const void *)p);
    __m128i half = _mm_loadu_si128((const __m128i_u *)p);
    if (dtype == QF_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* ---- absmax, as integers ---- */

INLINE __m256i max_uint(enum qf_dtype dtype, __m256i a, __m256i b)
{
    return dtype == QF_F32 ? _mm256_max_epu32(a, b) : _mm256_max_epu16(a, b);
}

/* |x| of a vector of dtype, 0 for NaN if those are to be dropped. */
INLINE __m256i abs_bits(enum qf_dtype dtype, const char *p, bool drop_nan)
{
    __m256i x = _mm256_loadu_si256((const __m256i_u *)p);
    if (dtype == QF_F32) {
        __m256i abs = _mm256_and_si256(x, _mm256_set1_epi32(0x7fffffff));
        __m256i nan = _mm256_cmpgt_epi32(abs, _mm256_set1_epi32(0x7f800000));
        return drop_nan ? _mm256_andnot_si256(nan, abs) : abs;
    }
    __m256i abs = _mm256_and_si256(x, _mm256_set1_epi16(0x7fff));
    __m256i inf = _mm256_set1_epi16(dtype == QF_F16 ? 0x7c00 : 0x7f80);
    return drop_nan ? _mm256_andnot_si256(_mm256_cmpgt_epi16(abs, inf), abs) : abs;
}

/* The largest |x| as bits of dtype. */
INLINE uint32_t max_bits(enum qf_dtype dtype, const char *p, size_t n, bool drop_nan)
{
    const size_t lanes = 32 / size_of(dtype);
    __m256i m = _mm256_setzero_si256();
    for (; n >= lanes; n -= lanes, p += 32)
        m = max_uint(dtype, m, abs_bits(dtype, p, drop_nan));
    if (n != 0) {
        char tail[32] = {0};
        memcpy(tail, p, n * size_of(dtype));
        m = max_uint(dtype, m, abs_bits(dtype, tail, drop_nan));
    }
    if (dtype != QF_F32)
        m = _mm256_and_si256(_mm256_max_epu16(m, _mm256_srli_epi32(m, 16)),
                             _mm256_set1_epi32(0xffff));
    __m128i h =
        _mm_max_epu32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epu32(h, _mm_shuffle_epi32(h, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(h);
}

INLINE float widened(enum qf_dtype dtype, uint32_t bits)
{
    if (dtype == QF_F16)
        bits = qf_f16_to_f32_bits((uint16_t)bits);
    return qf_f32_of_bits(dtype == QF_BF16 ? bits << 16 : bits);
}

/* NaN shows itself as a maximum above infinity; only then the group is read again. */
INLINE void group_absmax(enum qf_dtype dtype, const void *src, size_t n, size_t group,
                         float *absmax)
{
    const char *p = src;
    for (; n != 0; absmax++) {
        size_t count = n < group ? n : group;
        float max = widened(dtype, max_bits(dtype, p, count, false));
        if (max != max)
            max = widened(dtype, max_bits(dtype, p, count, true));
        *absmax = max > *absmax ? max : *absmax;
        n -= count;
        p += count * size_of(dtype);
    }
}

/* ---- codes ---- */

/* Into [-limit - 1, limit]. */
INLINE __m256i int_codes(__m256 y, float limit)
{
    __m256 number = _mm256_cmp_ps(y, y, _CMP_ORD_Q);
    y = _mm256_min_ps(_mm256_set1_ps(limit), y);
    y = _mm256_max_ps(_mm256_set1_ps(-limit - 1), y);
    return _mm256_cvtps_epi32(_mm256_and_ps(y, number));
}

/* |y| below the smallest normal number, and NaN. */
INLINE __m256i small_codes(struct qf_float8 format, __m256i code, __m256 a,
                           __m256 small)
{
    const __m256 denormal = _mm256_set1_ps(format.denormal);
    __m256i sum = _mm256_castps_si256(_mm256_add_ps(a, denormal));
    sum = _mm256_sub_epi32(sum, _mm256_castps_si256(denormal));
    code = _mm256_blendv_epi8(code, sum, _mm256_castps_si256(small));
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(code, _mm256_set1_epi32(QF_F8_NAN), nan);
}

INLINE __m256i float_codes(struct qf_float8 format, __m256 x, __m256 y)
{
    const int shift = 23 - (int)format.mantissa;
    const uint32_t half = 1u << (shift - 1);
    const uint32_t smallest = (128 - format.bias) << 23;
    const __m256i rebias =
        _mm256_set1_epi32((int)(half - 1 - ((127 - format.bias) << 23)));
    __m256 a = _mm256_andnot_ps(_mm256_set1_ps(-0.0f), y);
    a = _mm256_min_ps(_mm256_set1_ps(format.max), a);
    __m256i bits = _mm256_castps_si256(a);
    __m256i odd =
        _mm256_and_si256(_mm256_srli_epi32(bits, shift), _mm256_set1_epi32(1));
    __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, rebias), odd);
    __m256i code = _mm256_srli_epi32(sum, shift);
    __m256 small =
        _mm256_cmp_ps(a, _mm256_castsi256_ps(_mm256_set1_epi32((int)smallest)),
                      _CMP_NGE_UQ);
    if (_mm256_movemask_ps(small) != 0)
        code = small_codes(format, code, a, small);
    __m256i sign = _mm256_srli_epi32(_mm256_castps_si256(x), 24);
    return _mm256_or_si256(code, _mm256_and_si256(sign, _mm256_set1_epi32(0x80)));
}

/* The low bytes of 8 numbers of which none is above 255. */
INLINE __m128i low_bytes(__m256i v)
{
    __m128i words =
        _mm_packus_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    return _mm_packus_epi16(words, words);
}

/* Pairs of codes to bytes, the first one in the low nibble. */
INLINE __m128i packed_nibbles(__m128i codes)
{
    __m128i words = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x1001));
    return _mm_packus_epi16(words, words);
}

/* The codes of 8 elements, in order. */
INLINE __m128i encode8(enum qf_scaled scaled, __m256 x, __m256 factor)
{
    bool product = scaled == QF_SCALED_I8_MUL || scaled == QF_SCALED_F8_E4M3_BLOCK;
    __m256 y = product ? _mm256_mul_ps(x, factor) : _mm256_div_ps(x, factor);
    __m256i q;
    switch (scaled) {
    case QF_SCALED_I8_MUL:
    case QF_SCALED_I8_DIV:
        q = _mm256_and_si256(int_codes(y, 127), _mm256_set1_epi32(0xff));
        return low_bytes(q);
    case QF_SCALED_I8_PACKED:
        return low_bytes(_mm256_add_epi32(int_codes(y, 127), _mm256_set1_epi32(128)));
    case QF_SCALED_I4_PACKED:
        q = _mm256_add_epi32(int_codes(y, 7), _mm256_set1_epi32(8));
        return packed_nibbles(low_bytes(q));
    case QF_SCALED_F8_E5M2:
        return low_bytes(float_codes(qf_float8_e5m2(), x, y));
    default:
        return low_bytes(float_codes(qf_float8_e4m3(), x, y));
    }
}

INLINE void quantize(enum qf_scaled scaled, enum qf_dtype dtype, const void *src,
                     size_t n, size_t group, const float *factors, void *codes)
{
    const char *in = src;
    char *out = codes;
    const size_t share = scaled == QF_SCALED_I4_PACKED ? 2 : 1; /* codes of a byte */
    const size_t width = size_of(dtype);
    for (; n != 0; factors++) {
        size_t count = n < group ? n : group;
        const __m256 factor = _mm256_set1_ps(*factors);
        n -= count;
        for (; count >= LANES; count -= LANES) {
            __m128i q = encode8(scaled, load8(dtype, in), factor);
            if (share == 2)
                _mm_storeu_si32(out, q);
            else
                _mm_storel_epi64((__m128i_u *)out, q);
            in += LANES * width;
            out += LANES / share;
        }
        if (count != 0) {
            char tail[32] = {0};
            memcpy(tail, in, count * width);
            _mm_storeu_si128((__m128i_u *)tail,
                             encode8(scaled, load8(dtype, tail), factor));
            memcpy(out, tail, count / share);
            in += count * width;
            out += count / share;
        }
    }
}

QF_SCALED_ENTRIES_OF_ALL_DTYPES

void qf_kernels_init_avx2_scaled(struct qf_kernels *table)
{
    static qf_kernel_group_absmax *const absmax[QF_FLOAT_COUNT] =
        QF_SCALED_ROW(group_absmax);
    static qf_kernel_scaled *const scaled[QF_SCALED_COUNT][QF_FLOAT_COUNT] =
        QF_SCALED_ROWS;
    memcpy(table->group_absmax, absmax, sizeof absmax);
    memcpy(table->scaled, scaled, sizeof scaled);
}
