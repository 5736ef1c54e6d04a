/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, DQ, VL). A block is two vectors. Its scale and the scale's inverse
 * are scalars: divisions of blocks that follow each other overlap. Magnitudes are
 * compared as integers, so that NaN and infinity show themselves as a scale that is not
 * finite; such blocks, those whose scale is too small for its inverse, and those whose
 * minimum is a zero (of which sign?) are left to the definition.
 *
 * roundf, half away from zero, is truncation after the largest number below 0.5 has
 * been added in the number's direction (right for all that fits int8). */
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "quant/gguf.h"
#include "quant/gguf_impl.h"

#define INLINE         static inline __attribute__((always_inline))
#define ROUND_HALF     (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define BELOW_HALF     0x1.fffffep-2f
#define PREFETCH_AHEAD 2048u

struct pair {
    __m512 a, b; /* elements 0 … 15 and 16 … 31 */
};

INLINE struct pair load(enum qf_dtype dtype, const char *p)
{
    struct pair x;
    if (dtype == QF_F32) {
        x.a = _mm512_loadu_ps(p);
        x.b = _mm512_loadu_ps(p + 64);
        return x;
    }
    __m256i a = _mm256_loadu_si256((const __m256i_u *)p);
    __m256i b = _mm256_loadu_si256((const __m256i_u *)(p + 32));
    if (dtype == QF_F16) {
        x.a = _mm512_cvtph_ps(a);
        x.b = _mm512_cvtph_ps(b);
        return x;
    }
    x.a = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(a), 16));
    x.b = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(b), 16));
    return x;
}

INLINE __m512i magnitude(__m512 x)
{
    return _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(0x7fffffff));
}

INLINE uint8_t *put_half(uint8_t *out, float d)
{
    uint32_t half =
        (uint32_t)_mm_cvtsi128_si32(_mm_cvtps_ph(_mm_set_ss(d), ROUND_HALF));
    memcpy(out, &half, 2);
    return out + 2;
}

INLINE float inverse(float d)
{
    return 1.0f / d;
}

INLINE bool usable(float d)
{
    float size = __builtin_fabsf(d);
    return size >= QF_GGUF_SCALE_MIN && size <= __FLT_MAX__;
}

INLINE float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* As int32, half away from zero. */
INLINE __m512i rounded(__m512 t)
{
    const __m512 sign = _mm512_set1_ps(-0.0f);
    __m512 half = _mm512_or_ps(_mm512_and_ps(t, sign), _mm512_set1_ps(BELOW_HALF));
    return _mm512_cvttps_epi32(_mm512_add_ps(t, half));
}

/* The fifth bits, then the low four of 0 … 15 and of 16 … 31 in one byte. */
INLINE void put_codes(uint8_t *out, __m512i a, __m512i b, bool five)
{
    if (five) {
        const __m512i bit = _mm512_set1_epi32(16), low = _mm512_set1_epi32(15);
        uint32_t high = (uint32_t)_mm512_test_epi32_mask(a, bit) |
                        (uint32_t)_mm512_test_epi32_mask(b, bit) << 16;
        memcpy(out, &high, sizeof high);
        out += sizeof high;
        a = _mm512_and_si512(a, low);
        b = _mm512_and_si512(b, low);
    }
    __m512i both = _mm512_or_si512(a, _mm512_slli_epi32(b, 4));
    _mm_storeu_si128((__m128i_u *)out, _mm512_cvtepi32_epi8(both));
}

INLINE bool q8_0(struct pair x, uint8_t *out)
{
    __m512i most = _mm512_max_epu32(magnitude(x.a), magnitude(x.b));
    float d = float_of(_mm512_reduce_max_epu32(most)) / 127.0f;
    if (!usable(d))
        return false;
    __m512 id = _mm512_set1_ps(inverse(d));
    out = put_half(out, d);
    __m512i a = rounded(_mm512_mul_ps(x.a, id)), b = rounded(_mm512_mul_ps(x.b, id));
    _mm_storeu_si128((__m128i_u *)out, _mm512_cvtepi32_epi8(a));
    _mm_storeu_si128((__m128i_u *)(out + 16), _mm512_cvtepi32_epi8(b));
    return true;
}

INLINE __m512i symmetric_codes(__m512 x, __m512 id, int top)
{
    __m512 t = _mm512_add_ps(_mm512_mul_ps(x, id), _mm512_set1_ps((float)top + 0.5f));
    return _mm512_min_epi32(_mm512_cvttps_epi32(t), _mm512_set1_epi32(2 * top - 1));
}

INLINE bool symmetric(struct pair x, int top, uint8_t *out)
{
    __m512i a = magnitude(x.a), b = magnitude(x.b);
    uint32_t most = _mm512_reduce_max_epu32(_mm512_max_epu32(a, b));
    __m512i all = _mm512_set1_epi32((int)most);
    uint32_t where = (uint32_t)_mm512_cmpeq_epi32_mask(a, all) |
                     (uint32_t)_mm512_cmpeq_epi32_mask(b, all) << 16;
    uint32_t negative = (uint32_t)_mm512_movepi32_mask(_mm512_castps_si512(x.a)) |
                        (uint32_t)_mm512_movepi32_mask(_mm512_castps_si512(x.b)) << 16;
    /* The sign of the first of them. */
    uint32_t sign = (where & (0 - where) & negative) != 0 ? 0x80000000u : 0;
    float d = float_of(most | sign) / (float)-top;
    if (!usable(d))
        return false;
    __m512 id = _mm512_set1_ps(inverse(d));
    out = put_half(out, d);
    put_codes(out, symmetric_codes(x.a, id, top), symmetric_codes(x.b, id, top),
              top == 16);
    return true;
}

INLINE __m512i asymmetric_codes(__m512 x, __m512 min, __m512 id, int steps)
{
    __m512 t = _mm512_mul_ps(_mm512_sub_ps(x, min), id);
    t = _mm512_add_ps(t, _mm512_set1_ps(0.5f));
    return _mm512_min_epi32(_mm512_cvttps_epi32(t), _mm512_set1_epi32(steps));
}

INLINE bool asymmetric(struct pair x, int steps, uint8_t *out)
{
    if (_mm512_cmp_ps_mask(x.a, x.b, _CMP_UNORD_Q) != 0)
        return false;
    float min = _mm512_reduce_min_ps(_mm512_min_ps(x.a, x.b));
    float max = _mm512_reduce_max_ps(_mm512_max_ps(x.a, x.b));
    float d = (max - min) / (float)steps;
    if (!usable(d) || min == 0)
        return false;
    __m512 id = _mm512_set1_ps(inverse(d)), low = _mm512_set1_ps(min);
    out = put_half(put_half(out, d), min);
    put_codes(out, asymmetric_codes(x.a, low, id, steps),
              asymmetric_codes(x.b, low, id, steps), steps == 31);
    return true;
}

INLINE bool encode(enum qf_gguf_block block, struct pair x, uint8_t *out)
{
    switch (block) {
    case QF_GGUF_Q8_0:
        return q8_0(x, out);
    case QF_GGUF_Q4_0:
        return symmetric(x, 8, out);
    case QF_GGUF_Q5_0:
        return symmetric(x, 16, out);
    case QF_GGUF_Q4_1:
        return asymmetric(x, 15, out);
    default:
        return asymmetric(x, 31, out);
    }
}

INLINE void run(enum qf_gguf_block block, enum qf_dtype dtype, const void *src,
                size_t blocks, uint8_t *out)
{
    const char *p = src;
    size_t stride = QF_GGUF_BLOCK * (dtype == QF_F32 ? 4 : 2);
    size_t size = qf_gguf_block_size(block);
    for (size_t i = 0; i < blocks; i++, p += stride, out += size) {
        _mm_prefetch(p + PREFETCH_AHEAD, _MM_HINT_T0);
        if (!encode(block, load(dtype, p), out))
            qf_gguf_block_scalar(block, dtype, p, out);
    }
}

#define DEFINE(name, block, suffix, dtype)                                             \
    static void name##_##suffix(const void *src, size_t blocks, uint8_t *out)          \
    {                                                                                  \
        run(block, dtype, src, blocks, out);                                           \
    }
#define DEFINE_ALL(name, block)                                                        \
    DEFINE(name, block, f32, QF_F32)                                                   \
    DEFINE(name, block, f16, QF_F16)                                                   \
    DEFINE(name, block, bf16, QF_BF16)

DEFINE_ALL(run_q8_0, QF_GGUF_Q8_0)
DEFINE_ALL(run_q4_0, QF_GGUF_Q4_0)
DEFINE_ALL(run_q4_1, QF_GGUF_Q4_1)
DEFINE_ALL(run_q5_0, QF_GGUF_Q5_0)
DEFINE_ALL(run_q5_1, QF_GGUF_Q5_1)

void qf_gguf_init_avx512(struct qf_kernels *table)
{
    static qf_kernel_gguf *const all[QF_GGUF_BLOCK_COUNT][QF_FLOAT_COUNT] = {
        {run_q8_0_f32, run_q8_0_f16, run_q8_0_bf16},
        {run_q4_0_f32, run_q4_0_f16, run_q4_0_bf16},
        {run_q4_1_f32, run_q4_1_f16, run_q4_1_bf16},
        {run_q5_0_f32, run_q5_0_f16, run_q5_0_bf16},
        {run_q5_1_f32, run_q5_1_f16, run_q5_1_bf16},
    };
    memcpy(table->gguf, all, sizeof all);
}
