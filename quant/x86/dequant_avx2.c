/* SPDX-License-Identifier: Apache-2.0 */
/* The way back and the sums of errors, AVX2.
 *
 * A block's absmax is multiplied into the map once: the same 16 products that single
 * elements would give. AVX2 permutes 8 floats, so each half of the map is looked up and
 * bit 3 of the code chooses.
 *
 * A product of two binary32 is exact in binary64, so a fused multiply-add rounds like
 * the definition's two operations; the square of a difference is not, and is not fused.
 * What is not finite becomes a pair of zeros, which adds nothing to any sum. */
#include <immintrin.h>
#include <string.h>

#include "quant/kernels_impl.h"

#define INLINE static inline __attribute__((always_inline))

/* ---- 4-bit ---- */

/* 16 codes (8 bytes) in 16 bytes, in the order of the elements. */
INLINE __m128i unpack16(const uint8_t *packed)
{
    const __m128i low = _mm_set1_epi8(15);
    __m128i b = _mm_loadl_epi64((const __m128i_u *)packed);
    __m128i even = _mm_and_si128(_mm_srli_epi16(b, 4), low);
    return _mm_unpacklo_epi8(even, _mm_and_si128(b, low));
}

INLINE __m256 look_up(__m256 low, __m256 high, __m256i code)
{
    __m256 a = _mm256_permutevar8x32_ps(low, code);
    __m256 b = _mm256_permutevar8x32_ps(high, code);
    return _mm256_blendv_ps(a, b, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}

static void dequant_4bit(const uint8_t *packed, size_t n, size_t blocksize,
                         const float *map, const float *absmax, float *out)
{
    const __m256 map_low = _mm256_loadu_ps(map);
    const __m256 map_high = _mm256_loadu_ps(map + 8);
    size_t i = 0;
    for (; n - i >= blocksize; absmax++) {
        __m256 scale = _mm256_set1_ps(*absmax);
        __m256 low = _mm256_mul_ps(map_low, scale);
        __m256 high = _mm256_mul_ps(map_high, scale);
        for (size_t end = i + blocksize; i < end; i += 16) {
            __m128i codes = unpack16(packed + i / 2);
            __m256i first = _mm256_cvtepu8_epi32(codes);
            __m256i second = _mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8));
            _mm256_storeu_ps(out + i, look_up(low, high, first));
            _mm256_storeu_ps(out + i + 8, look_up(low, high, second));
        }
    }
    qf_dequant_4bit_scalar(packed + i / 2, n - i, blocksize, map, absmax, out + i);
}

/* ---- int8 ---- */

static void dequant_int8(const int8_t *codes, size_t n, float scb, float *out)
{
    const __m256 row = _mm256_set1_ps(scb);
    const __m256 reciprocal = _mm256_set1_ps(QF_INT8_RECIPROCAL);
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        __m128i bytes = _mm_loadl_epi64((const __m128i_u *)(codes + i));
        __m256 q = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(q, row), reciprocal));
    }
    qf_dequant_int8_scalar(codes + i, n - i, scb, out + i);
}

/* ---- errors ---- */

/* Four lanes of each sum. */
struct sums {
    __m256d error, xx, yy, xy, max_abs;
};

INLINE struct sums load(const struct qf_error_lanes *lanes, size_t first)
{
    return (struct sums){_mm256_loadu_pd(lanes->error + first),
                         _mm256_loadu_pd(lanes->xx + first),
                         _mm256_loadu_pd(lanes->yy + first),
                         _mm256_loadu_pd(lanes->xy + first),
                         _mm256_loadu_pd(lanes->max_abs + first)};
}

INLINE void store(struct qf_error_lanes *lanes, size_t first, struct sums sums)
{
    _mm256_storeu_pd(lanes->error + first, sums.error);
    _mm256_storeu_pd(lanes->xx + first, sums.xx);
    _mm256_storeu_pd(lanes->yy + first, sums.yy);
    _mm256_storeu_pd(lanes->xy + first, sums.xy);
    _mm256_storeu_pd(lanes->max_abs + first, sums.max_abs);
}

INLINE struct sums add(struct sums s, __m128 x, __m128 y)
{
    const __m256d sign = _mm256_set1_pd(-0.0);
    __m256d a = _mm256_cvtps_pd(x);
    __m256d b = _mm256_cvtps_pd(y);
    __m256d d = _mm256_sub_pd(a, b);
    s.error = _mm256_add_pd(s.error, _mm256_mul_pd(d, d));
    s.xx = _mm256_fmadd_pd(a, a, s.xx);
    s.yy = _mm256_fmadd_pd(b, b, s.yy);
    s.xy = _mm256_fmadd_pd(a, b, s.xy);
    s.max_abs = _mm256_max_pd(s.max_abs, _mm256_andnot_pd(sign, d));
    return s;
}

/* All ones where an element is not finite. */
INLINE __m256 not_finite(__m256 x)
{
    const __m256i exponent = _mm256_set1_epi32(0x7f800000);
    __m256i bits = _mm256_and_si256(_mm256_castps_si256(x), exponent);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(bits, exponent));
}

INLINE unsigned count(__m256 mask)
{
    return (unsigned)__builtin_popcount((unsigned)_mm256_movemask_ps(mask));
}

static void errors(const float *x, const float *y, size_t n,
                   struct qf_error_lanes *lanes)
{
    struct sums low = load(lanes, 0);
    struct sums high = load(lanes, 4);
    size_t i = 0;
    for (; n - i >= 8; i += 8) {
        __m256 a = _mm256_loadu_ps(x + i);
        __m256 b = _mm256_loadu_ps(y + i);
        __m256 bad_x = not_finite(a);
        __m256 bad = _mm256_or_ps(bad_x, not_finite(b));
        if (_mm256_movemask_ps(bad) != 0) {
            lanes->x_not_finite += count(bad_x);
            lanes->y_not_finite += count(_mm256_andnot_ps(bad_x, bad));
            a = _mm256_andnot_ps(bad, a);
            b = _mm256_andnot_ps(bad, b);
        }
        low = add(low, _mm256_castps256_ps128(a), _mm256_castps256_ps128(b));
        high = add(high, _mm256_extractf128_ps(a, 1), _mm256_extractf128_ps(b, 1));
    }
    store(lanes, 0, low);
    store(lanes, 4, high);
    qf_errors_scalar(x + i, y + i, n - i, lanes);
}

void qf_kernels_init_avx2_dequant(struct qf_kernels *table)
{
    table->dequant_4bit = dequant_4bit;
    table->dequant_int8 = dequant_int8;
    table->errors = errors;
}
