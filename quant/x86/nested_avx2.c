/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2: absmax of absmax. A code is found in one step, in the table of cells
 * (kernels_impl.h), by a gather. The sum of a mean is 8 sums, as its definition says.
 */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "quant/half.h"
#include "quant/kernels_impl.h"

#define INLINE static inline __attribute__((always_inline))

/* The largest 32-bit lane. */
INLINE uint32_t reduce_max(__m256i v)
{
    __m128i m =
        _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

INLINE __m256i nested_codes(__m256 u)
{
    /* NaN becomes -1, whose code is that of NaN: 0. */
    u = _mm256_min_ps(_mm256_max_ps(u, _mm256_set1_ps(-1.0f)), _mm256_set1_ps(1.0f));
    __m256i bits = _mm256_castps_si256(u);
    __m256i sign = _mm256_srai_epi32(bits, 31);
    __m256i abs = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
    __m256i cell = _mm256_sub_epi32(_mm256_srli_epi32(abs, QF_LUT_SHIFT),
                                    _mm256_set1_epi32(QF_LUT_FIRST));
    cell = _mm256_max_epi32(cell, _mm256_setzero_si256());
    __m256i half = _mm256_and_si256(sign, _mm256_set1_epi32(QF_LUT_CELLS));
    __m256i entry = _mm256_i32gather_epi32((const int *)qf_nested_lut,
                                           _mm256_add_epi32(cell, half), 4);
    const __m256i low_mask = _mm256_set1_epi32(QF_LUT_LOW_MASK);
    __m256i above = _mm256_cmpgt_epi32(_mm256_and_si256(bits, low_mask),
                                       _mm256_and_si256(entry, low_mask));
    __m256i code = _mm256_srli_epi32(entry, QF_LUT_BASE_SHIFT);
    __m256i step = _mm256_or_si256(sign, _mm256_set1_epi32(1));
    return _mm256_add_epi32(code, _mm256_and_si256(above, step));
}

/* 8 values, zeros where there are fewer. */
INLINE __m256 load_left(const float *x, size_t n)
{
    if (n >= 8)
        return _mm256_loadu_ps(x);
    float tail[8] = {0};
    memcpy(tail, x, n * sizeof *x);
    return _mm256_loadu_ps(tail);
}

static void nested(const float *absmax, size_t n, float offset, uint8_t *codes,
                   float *nested_absmax)
{
    const __m256 off = _mm256_set1_ps(offset);
    const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (; n != 0; nested_absmax++) {
        size_t count = n < 256 ? n : 256;
        size_t full = count - count % 8;
        __m256 acc = _mm256_setzero_ps();
        for (size_t i = 0; i < full; i += 8) {
            __m256 z = _mm256_sub_ps(_mm256_loadu_ps(absmax + i), off);
            acc = _mm256_max_ps(_mm256_and_ps(z, mask), acc); /* acc where z is NaN */
        }
        float amax = qf_f32_of_bits(reduce_max(_mm256_castps_si256(acc)));
        for (size_t i = full; i < count; i++) {
            float z = fabsf(absmax[i] - offset);
            amax = z > amax ? z : amax;
        }
        const __m256 rcp = _mm256_set1_ps(1.0f / amax);
        for (size_t i = 0; i < count; i += 8) {
            __m256 z = _mm256_sub_ps(load_left(absmax + i, count - i), off);
            uint32_t lane[8];
            _mm256_storeu_si256((__m256i_u *)lane, nested_codes(_mm256_mul_ps(z, rcp)));
            for (size_t j = 0; j < 8 && i + j < count; j++)
                codes[i + j] = (uint8_t)lane[j];
        }
        *nested_absmax = amax;
        n -= count;
        absmax += count;
        codes += count;
    }
}

static float mean(const float *x, size_t n)
{
    __m256d low = _mm256_setzero_pd();
    __m256d high = _mm256_setzero_pd();
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm_loadu_ps(x + i)));
        high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm_loadu_ps(x + i + 4)));
    }
    double a[8];
    _mm256_storeu_pd(a, low);
    _mm256_storeu_pd(a + 4, high);
    for (; i < n; i++)
        a[i % 8] += (double)x[i];
    double sum = ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
    return (float)(sum / (double)n);
}

void qf_kernels_init_avx2_nested(struct qf_kernels *table)
{
    table->nested = nested;
    table->mean = mean;
}
