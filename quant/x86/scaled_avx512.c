/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512: scaled codecs. 16 elements at a time, widened, multiplied or divided and
 * rounded; divisions are true ones, for memory is slower than they are. The elements
 * past a group's last multiple of 16 are masked off.
 *
 * An 8-bit float is rounded as an integer: to the bits of |y| just below half of the
 * format's last place is added, and one more where that place is odd; the exponent
 * takes the carry. Small ones, of which most vectors have none, are done otherwise. */
#include <immintrin.h>
#include <string.h>

#include "quant/float8.h"
#include "quant/kernels_impl.h"
#include "quant/scaled_table.h"

#define INLINE static inline __attribute__((always_inline))
#define LANES  16u

INLINE size_t size_of(enum qf_dtype dtype)
{
    return dtype == QF_F32 ? 4 : 2;
}

INLINE __mmask16 lanes_left(size_t n)
{
    return (__mmask16)(n >= LANES ? 0xffffu : (1u << n) - 1);
}

INLINE __m512 load16(enum qf_dtype dtype, const char *p, __mmask16 k)
{
    if (dtype == QF_F32)
        return _mm512_maskz_loadu_ps(k, p);
    __m256i half = _mm256_maskz_loadu_epi16(k, p);
    if (dtype == QF_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

/* ---- absmax, as integers ---- */

INLINE __m512i max_uint(enum qf_dtype dtype, __m512i a, __m512i b)
{
    return dtype == QF_F32 ? _mm512_max_epu32(a, b) : _mm512_max_epu16(a, b);
}

/* |x| of a vector of dtype, 0 for NaN if those are to be dropped. */
INLINE __m512i abs_bits(enum qf_dtype dtype, __m512i x, bool drop_nan)
{
    if (dtype == QF_F32) {
        __m512i abs = _mm512_and_si512(x, _mm512_set1_epi32(0x7fffffff));
        __m512i inf = _mm512_set1_epi32(0x7f800000);
        return drop_nan ? _mm512_maskz_mov_epi32(_mm512_cmple_epu32_mask(abs, inf), abs)
                        : abs;
    }
    __m512i abs = _mm512_and_si512(x, _mm512_set1_epi16(0x7fff));
    __m512i inf = _mm512_set1_epi16(dtype == QF_F16 ? 0x7c00 : 0x7f80);
    return drop_nan ? _mm512_maskz_mov_epi16(_mm512_cmple_epu16_mask(abs, inf), abs)
                    : abs;
}

INLINE __m512i load_tail(enum qf_dtype dtype, const char *p, size_t n)
{
    if (dtype == QF_F32)
        return _mm512_maskz_loadu_epi32((__mmask16)((1u << n) - 1), p);
    return _mm512_maskz_loadu_epi16((UINT32_C(1) << n) - 1, p);
}

/* The largest |x| as bits of dtype. */
INLINE uint32_t max_bits(enum qf_dtype dtype, const char *p, size_t n, bool drop_nan)
{
    const size_t lanes = 64 / size_of(dtype);
    __m512i m = _mm512_setzero_si512();
    for (; n >= lanes; n -= lanes, p += 64)
        m = max_uint(dtype, m, abs_bits(dtype, _mm512_loadu_si512(p), drop_nan));
    m = max_uint(dtype, m, abs_bits(dtype, load_tail(dtype, p, n), drop_nan));
    if (dtype != QF_F32)
        m = _mm512_and_si512(_mm512_max_epu16(m, _mm512_srli_epi32(m, 16)),
                             _mm512_set1_epi32(0xffff));
    return _mm512_reduce_max_epu32(m);
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

/* Into [-limit - 1, limit] from above; the lower end is left to who narrows. */
INLINE __m512i int_codes(__m512 y, float limit)
{
    y = _mm512_min_ps(_mm512_set1_ps(limit), y); /* NaN if y is */
    __mmask16 number = _mm512_cmp_ps_mask(y, y, _CMP_ORD_Q);
    return _mm512_maskz_cvtps_epi32(number, y);
}

/* |y| below the smallest normal number: the sum of it and `denormal` is rounded at the
 * last bit of the format. And NaN. */
INLINE __m512i small_codes(struct qf_float8 format, __m512i code, __m512 a,
                           __mmask16 small)
{
    const __m512 denormal = _mm512_set1_ps(format.denormal);
    __m512i sum = _mm512_castps_si512(_mm512_add_ps(a, denormal));
    __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    code = _mm512_mask_sub_epi32(code, small, sum, _mm512_castps_si512(denormal));
    return _mm512_mask_mov_epi32(code, nan, _mm512_set1_epi32(QF_F8_NAN));
}

INLINE __m512i float_codes(struct qf_float8 format, __m512 x, __m512 y)
{
    const unsigned shift = 23 - format.mantissa;
    const uint32_t half = 1u << (shift - 1);
    const uint32_t smallest = (128 - format.bias) << 23;
    /* From bits of binary32 to those of the format, and just below a half more. */
    const __m512i rebias =
        _mm512_set1_epi32((int)(half - 1 - ((127 - format.bias) << 23)));
    __m512 a = _mm512_min_ps(_mm512_set1_ps(format.max), _mm512_abs_ps(y));
    __m512i bits = _mm512_castps_si512(a);
    __mmask16 odd = _mm512_test_epi32_mask(bits, _mm512_set1_epi32(1 << shift));
    __m512i sum = _mm512_add_epi32(bits, rebias);
    sum = _mm512_mask_add_epi32(sum, odd, sum, _mm512_set1_epi32(1));
    __m512i code = _mm512_srli_epi32(sum, shift);
    __mmask16 small =
        _mm512_cmp_ps_mask(a, _mm512_castsi512_ps(_mm512_set1_epi32((int)smallest)),
                           _CMP_NGE_UQ);
    if (small != 0)
        code = small_codes(format, code, a, small);
    __m512i sign = _mm512_srli_epi32(_mm512_castps_si512(x), 24);
    /* code | (sign & 0x80) */
    return _mm512_ternarylogic_epi32(code, sign, _mm512_set1_epi32(0x80), 0xf8);
}

/* Pairs of codes to bytes, the first one in the low nibble. */
INLINE __m128i packed_nibbles(__m128i codes)
{
    __m128i words = _mm_maddubs_epi16(codes, _mm_set1_epi16(0x1001));
    return _mm_packus_epi16(words, words);
}

/* The codes of up to 16 elements, in order, and how many bytes they are. */
INLINE __m128i encode16(enum qf_scaled scaled, __m512 x, __m512 factor)
{
    bool product = scaled == QF_SCALED_I8_MUL || scaled == QF_SCALED_F8_E4M3_BLOCK;
    __m512 y = product ? _mm512_mul_ps(x, factor) : _mm512_div_ps(x, factor);
    switch (scaled) {
    case QF_SCALED_I8_MUL:
    case QF_SCALED_I8_DIV:
        return _mm512_cvtsepi32_epi8(int_codes(y, 127));
    case QF_SCALED_I8_PACKED:
        return _mm_xor_si128(_mm512_cvtsepi32_epi8(int_codes(y, 127)),
                             _mm_set1_epi8(-128));
    case QF_SCALED_I4_PACKED: {
        __m512i q = _mm512_max_epi32(int_codes(y, 7), _mm512_set1_epi32(-8));
        q = _mm512_add_epi32(q, _mm512_set1_epi32(8));
        return packed_nibbles(_mm512_cvtepi32_epi8(q));
    }
    case QF_SCALED_F8_E5M2:
        return _mm512_cvtepi32_epi8(float_codes(qf_float8_e5m2(), x, y));
    default:
        return _mm512_cvtepi32_epi8(float_codes(qf_float8_e4m3(), x, y));
    }
}

INLINE void quantize(enum qf_scaled scaled, enum qf_dtype dtype, const void *src,
                     size_t n, size_t group, const float *factors, void *codes)
{
    const char *in = src;
    char *out = codes;
    const size_t share = scaled == QF_SCALED_I4_PACKED ? 2 : 1; /* codes of a byte */
    const size_t step = LANES * size_of(dtype);
    for (; n != 0; factors++) {
        size_t count = n < group ? n : group;
        const __m512 factor = _mm512_set1_ps(*factors);
        n -= count;
        for (; count >= LANES; count -= LANES, in += step, out += LANES / share) {
            __m128i q = encode16(scaled, load16(dtype, in, 0xffff), factor);
            if (share == 2)
                _mm_storel_epi64((__m128i_u *)out, q);
            else
                _mm_storeu_si128((__m128i_u *)out, q);
        }
        if (count != 0) {
            __m128i q = encode16(scaled, load16(dtype, in, lanes_left(count)), factor);
            _mm_mask_storeu_epi8(out, lanes_left(count / share), q);
            in += count * size_of(dtype);
            out += count / share;
        }
    }
}

QF_SCALED_ENTRIES_OF_ALL_DTYPES

void qf_kernels_init_avx512_scaled(struct qf_kernels *table)
{
    static qf_kernel_group_absmax *const absmax[QF_FLOAT_COUNT] =
        QF_SCALED_ROW(group_absmax);
    static qf_kernel_scaled *const scaled[QF_SCALED_COUNT][QF_FLOAT_COUNT] =
        QF_SCALED_ROWS;
    memcpy(table->group_absmax, absmax, sizeof absmax);
    memcpy(table->scaled, scaled, sizeof scaled);
}
