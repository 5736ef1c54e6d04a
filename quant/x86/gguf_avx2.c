/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 and F16C; nothing is fused. As gguf_avx512.c, with a block in
 * four vectors. */
#include <immintrin.h>
#include <stdbool.h>
#include <string.h>

#include "quant/gguf.h"
#include "quant/gguf_impl.h"

#define INLINE         static inline __attribute__((always_inline))
#define ROUND_HALF     (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define BELOW_HALF     0x1.fffffep-2f
#define PREFETCH_AHEAD 2048u
#define VECTORS        4

struct block {
    __m256 v[VECTORS]; /* 8 elements each */
};

INLINE struct block load(enum qf_dtype dtype, const char *p)
{
    struct block x;
    for (int i = 0; i < VECTORS; i++) {
        if (dtype == QF_F32) {
            x.v[i] = _mm256_loadu_ps((const float *)(const void *)(p + 32 * i));
            continue;
        }
        __m128i half = _mm_loadu_si128((const __m128i_u *)(p + 16 * i));
        if (dtype == QF_F16)
            x.v[i] = _mm256_cvtph_ps(half);
        else
            x.v[i] =
                _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    return x;
}

INLINE __m256i magnitude(__m256 x)
{
    return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

/* Of magnitudes, which are no negative integers. */
INLINE uint32_t max_magnitude(struct block x)
{
    __m256i m =
        _mm256_max_epi32(_mm256_max_epi32(magnitude(x.v[0]), magnitude(x.v[1])),
                         _mm256_max_epi32(magnitude(x.v[2]), magnitude(x.v[3])));
    __m128i h =
        _mm_max_epi32(_mm256_castsi256_si128(m), _mm256_extracti128_si256(m, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(h);
}

INLINE float reduce_min(__m256 m)
{
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_min_ps(h, _mm_shuffle_ps(h, h, 0x4e));
    return _mm_cvtss_f32(_mm_min_ps(h, _mm_shuffle_ps(h, h, 0xb1)));
}

INLINE float reduce_max(__m256 m)
{
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    h = _mm_max_ps(h, _mm_shuffle_ps(h, h, 0x4e));
    return _mm_cvtss_f32(_mm_max_ps(h, _mm_shuffle_ps(h, h, 0xb1)));
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
INLINE __m256i rounded(__m256 t)
{
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 half = _mm256_or_ps(_mm256_and_ps(t, sign), _mm256_set1_ps(BELOW_HALF));
    return _mm256_cvttps_epi32(_mm256_add_ps(t, half));
}

/* 32 integers that fit int8 as bytes in their order. */
INLINE __m256i to_bytes(const __m256i q[VECTORS])
{
    __m256i low = _mm256_packs_epi32(q[0], q[1]), high = _mm256_packs_epi32(q[2], q[3]);
    return _mm256_permutevar8x32_epi32(_mm256_packs_epi16(low, high),
                                       _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* The fifth bits, then the low four of 0 … 15 and of 16 … 31 in one byte. */
INLINE void put_codes(uint8_t *out, const __m256i q[VECTORS], bool five)
{
    __m256i bytes = to_bytes(q);
    if (five) {
        int high = _mm256_movemask_epi8(_mm256_slli_epi16(bytes, 3));
        memcpy(out, &high, sizeof high);
        out += sizeof high;
        bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    }
    __m128i low = _mm256_castsi256_si128(bytes);
    __m128i high = _mm_slli_epi16(_mm256_extracti128_si256(bytes, 1), 4);
    _mm_storeu_si128((__m128i_u *)out, _mm_or_si128(low, high));
}

INLINE bool q8_0(struct block x, uint8_t *out)
{
    __m256i q[VECTORS];
    float d = float_of(max_magnitude(x)) / 127.0f;
    if (!usable(d))
        return false;
    __m256 id = _mm256_set1_ps(inverse(d));
    out = put_half(out, d);
    for (int i = 0; i < VECTORS; i++)
        q[i] = rounded(_mm256_mul_ps(x.v[i], id));
    _mm256_storeu_si256((__m256i_u *)out, to_bytes(q));
    return true;
}

/* Whether the first of the elements of this magnitude is negative. */
INLINE bool first_is_negative(struct block x, uint32_t most)
{
    uint32_t where = 0, negative = 0;
    __m256i all = _mm256_set1_epi32((int)most);
    for (int i = 0; i < VECTORS; i++) {
        __m256i same = _mm256_cmpeq_epi32(magnitude(x.v[i]), all);
        where |= (uint32_t)_mm256_movemask_ps(_mm256_castsi256_ps(same)) << 8 * i;
        negative |= (uint32_t)_mm256_movemask_ps(x.v[i]) << 8 * i;
    }
    return (where & (0 - where) & negative) != 0;
}

INLINE bool symmetric(struct block x, int top, uint8_t *out)
{
    __m256i q[VECTORS];
    uint32_t most = max_magnitude(x);
    uint32_t sign = first_is_negative(x, most) ? 0x80000000u : 0;
    float d = float_of(most | sign) / (float)-top;
    if (!usable(d))
        return false;
    __m256 id = _mm256_set1_ps(inverse(d));
    out = put_half(out, d);
    for (int i = 0; i < VECTORS; i++) {
        __m256 t =
            _mm256_add_ps(_mm256_mul_ps(x.v[i], id), _mm256_set1_ps((float)top + 0.5f));
        q[i] = _mm256_min_epi32(_mm256_cvttps_epi32(t), _mm256_set1_epi32(2 * top - 1));
    }
    put_codes(out, q, top == 16);
    return true;
}

INLINE bool asymmetric(struct block x, int steps, uint8_t *out)
{
    __m256i q[VECTORS];
    __m256 odd = _mm256_or_ps(_mm256_cmp_ps(x.v[0], x.v[1], _CMP_UNORD_Q),
                              _mm256_cmp_ps(x.v[2], x.v[3], _CMP_UNORD_Q));
    float min = reduce_min(
        _mm256_min_ps(_mm256_min_ps(x.v[0], x.v[1]), _mm256_min_ps(x.v[2], x.v[3])));
    float max = reduce_max(
        _mm256_max_ps(_mm256_max_ps(x.v[0], x.v[1]), _mm256_max_ps(x.v[2], x.v[3])));
    float d = (max - min) / (float)steps;
    if (_mm256_movemask_ps(odd) != 0 || !usable(d) || min == 0)
        return false;
    __m256 id = _mm256_set1_ps(inverse(d)), low = _mm256_set1_ps(min);
    out = put_half(put_half(out, d), min);
    for (int i = 0; i < VECTORS; i++) {
        __m256 t = _mm256_mul_ps(_mm256_sub_ps(x.v[i], low), id);
        t = _mm256_add_ps(t, _mm256_set1_ps(0.5f));
        q[i] = _mm256_min_epi32(_mm256_cvttps_epi32(t), _mm256_set1_epi32(steps));
    }
    put_codes(out, q, steps == 31);
    return true;
}

INLINE bool encode(enum qf_gguf_block block, struct block x, uint8_t *out)
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

void qf_gguf_init_avx2(struct qf_kernels *table)
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
