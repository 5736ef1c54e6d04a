/* SPDX-License-Identifier: Apache-2.0 */
/* The way back and the sums of errors, AVX-512: as in the AVX2 file, but the map is one
 * register and the eight lanes of a sum are another. */
#include <immintrin.h>

#include "quant/kernels_impl.h"

#define INLINE static inline __attribute__((always_inline))

/* ---- 4-bit ---- */

INLINE void put16(float *out, __m512 table, __m128i codes)
{
    _mm512_storeu_ps(out, _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(codes), table));
}

static void dequant_4bit(const uint8_t *packed, size_t n, size_t blocksize,
                         const float *map, const float *absmax, float *out)
{
    const __m512 values = _mm512_loadu_ps(map);
    const __m128i low = _mm_set1_epi8(15);
    size_t i = 0;
    for (; n - i >= blocksize; absmax++) {
        __m512 table = _mm512_mul_ps(values, _mm512_set1_ps(*absmax));
        for (size_t end = i + blocksize; i < end; i += 32) {
            __m128i b = _mm_loadu_si128((const __m128i_u *)(packed + i / 2));
            __m128i even = _mm_and_si128(_mm_srli_epi16(b, 4), low);
            __m128i odd = _mm_and_si128(b, low);
            put16(out + i, table, _mm_unpacklo_epi8(even, odd));
            put16(out + i + 16, table, _mm_unpackhi_epi8(even, odd));
        }
    }
    qf_dequant_4bit_scalar(packed + i / 2, n - i, blocksize, map, absmax, out + i);
}

/* ---- int8 ---- */

static void dequant_int8(const int8_t *codes, size_t n, float scb, float *out)
{
    const __m512 row = _mm512_set1_ps(scb);
    const __m512 reciprocal = _mm512_set1_ps(QF_INT8_RECIPROCAL);
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        __m128i bytes = _mm_loadu_si128((const __m128i_u *)(codes + i));
        __m512 q = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
        _mm512_storeu_ps(out + i, _mm512_mul_ps(_mm512_mul_ps(q, row), reciprocal));
    }
    qf_dequant_int8_scalar(codes + i, n - i, scb, out + i);
}

/* ---- errors ---- */

struct sums {
    __m512d error, xx, yy, xy, max_abs;
};

INLINE struct sums add(struct sums s, __m256 x, __m256 y)
{
    __m512d a = _mm512_cvtps_pd(x);
    __m512d b = _mm512_cvtps_pd(y);
    __m512d d = _mm512_sub_pd(a, b);
    s.error = _mm512_add_pd(s.error, _mm512_mul_pd(d, d));
    s.xx = _mm512_fmadd_pd(a, a, s.xx);
    s.yy = _mm512_fmadd_pd(b, b, s.yy);
    s.xy = _mm512_fmadd_pd(a, b, s.xy);
    s.max_abs = _mm512_max_pd(s.max_abs, _mm512_abs_pd(d));
    return s;
}

INLINE __mmask16 not_finite(__m512 x)
{
    const __m512i exponent = _mm512_set1_epi32(0x7f800000);
    __m512i bits = _mm512_and_si512(_mm512_castps_si512(x), exponent);
    return _mm512_cmpeq_epi32_mask(bits, exponent);
}

INLINE unsigned count(unsigned mask)
{
    return (unsigned)__builtin_popcount(mask & 0xffffu);
}

static void errors(const float *x, const float *y, size_t n,
                   struct qf_error_lanes *lanes)
{
    struct sums s = {_mm512_loadu_pd(lanes->error), _mm512_loadu_pd(lanes->xx),
                     _mm512_loadu_pd(lanes->yy), _mm512_loadu_pd(lanes->xy),
                     _mm512_loadu_pd(lanes->max_abs)};
    size_t i = 0;
    for (; n - i >= 16; i += 16) {
        __m512 a = _mm512_loadu_ps(x + i);
        __m512 b = _mm512_loadu_ps(y + i);
        __mmask16 bad_x = not_finite(a);
        __mmask16 bad_y = not_finite(b);
        unsigned bad = (unsigned)bad_x | bad_y;
        if (bad != 0) {
            lanes->x_not_finite += count(bad_x);
            lanes->y_not_finite += count(bad_y & ~(unsigned)bad_x);
            a = _mm512_maskz_mov_ps((__mmask16)~bad, a);
            b = _mm512_maskz_mov_ps((__mmask16)~bad, b);
        }
        s = add(s, _mm512_castps512_ps256(a), _mm512_castps512_ps256(b));
        s = add(s, _mm512_extractf32x8_ps(a, 1), _mm512_extractf32x8_ps(b, 1));
    }
    _mm512_storeu_pd(lanes->error, s.error);
    _mm512_storeu_pd(lanes->xx, s.xx);
    _mm512_storeu_pd(lanes->yy, s.yy);
    _mm512_storeu_pd(lanes->xy, s.xy);
    _mm512_storeu_pd(lanes->max_abs, s.max_abs);
    qf_errors_scalar(x + i, y + i, n - i, lanes);
}

void qf_kernels_init_avx512_dequant(struct qf_kernels *table)
{
    table->dequant_4bit = dequant_4bit;
    table->dequant_int8 = dequant_int8;
    table->errors = errors;
}
