/* SPDX-License-Identifier: Apache-2.0 */
/* AVX2 (with FMA and F16C as the processor level; nothing here is fused).
 *
 * As in the AVX-512 file a batch of 8 blocks is walked twice, absolute values are
 * compared as integers and special blocks are left to the scalar kernel: see there.
 *
 * AVX2 permutes only 8 floats, so a code is found by a binary search: every comparison
 * gives a mask, which is 0 or -1; i' = 2i + mask is minus the code so far, and its low
 * three bits, which are all that vpermps looks at, find the next threshold in a table
 * laid out for that. nf4 takes four comparisons. fp4 takes three on |y|, which give the
 * rank, and one for the sign; rank ^ ((rank & 2) << 1) is its code.
 *
 * fp16 and bf16 are searched among 16-bit integers instead, 16 at a time: for each
 * block every threshold is turned into the largest number of that type that does not
 * pass it.
 *
 * Tails shorter than a vector go through a zero-filled buffer and the same code. */
#include <assert.h>
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "quant/half.h"
#include "quant/kernels_impl.h"
#include "quant/tables.h"

#define INLINE         static inline __attribute__((always_inline))

#define ROUND_HALF     (_MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)
#define PREFETCH_AHEAD 4096u
#define BATCH_BLOCKS   8u

/* ---- loads ---- */

INLINE __m256i load_bytes(const void *p)
{
    return _mm256_loadu_si256((const __m256i_u *)p);
}

INLINE void store_bytes(void *p, __m256i v)
{
    _mm256_storeu_si256((__m256i_u *)p, v);
}

INLINE size_t size_of(enum qf_dtype dtype)
{
    return dtype == QF_F32 ? 4 : 2;
}

INLINE __m256 widen8(enum qf_dtype dtype, __m128i half)
{
    if (dtype == QF_F16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/* To the nearest, ties to even. */
INLINE __m128i narrow8(enum qf_dtype dtype, __m256 x)
{
    if (dtype == QF_F16)
        return _mm256_cvtps_ph(x, ROUND_HALF);
    __m256i u = _mm256_castps_si256(x);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i up = _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(u, up), 16);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

/* 8 elements, widened. */
INLINE __m256 load8(enum qf_dtype dtype, const void *p)
{
    if (dtype == QF_F32)
        return _mm256_loadu_ps(p);
    return widen8(dtype, _mm_loadu_si128((const __m128i_u *)p));
}

INLINE __m256 bf16_even(__m256i pairs)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(pairs, 16));
}

INLINE __m256 bf16_odd(__m256i pairs)
{
    return _mm256_castsi256_ps(
        _mm256_and_si256(pairs, _mm256_set1_epi32((int)0xffff0000u)));
}

/* ---- absmax of 4-bit blocks, as integers ---- */

INLINE __m256i max_uint(enum qf_dtype dtype, __m256i a, __m256i b)
{
    return dtype == QF_F32 ? _mm256_max_epu32(a, b) : _mm256_max_epu16(a, b);
}

INLINE __m256i abs_mask(enum qf_dtype dtype)
{
    return dtype == QF_F32 ? _mm256_set1_epi32(0x7fffffff) : _mm256_set1_epi16(0x7fff);
}

/* Maximum of |x| over 64 elements, in each 16- or 32-bit lane of its own. */
INLINE __m256i absmax64(enum qf_dtype dtype, const char *p)
{
    const __m256i mask = abs_mask(dtype);
    __m256i m = _mm256_and_si256(load_bytes(p), mask);
    for (size_t i = 32; i < 64 * size_of(dtype); i += 32)
        m = max_uint(dtype, m, _mm256_and_si256(load_bytes(p + i), mask));
    return m;
}

/* Blocks b and b + 4, one in each 128-bit lane. */
INLINE __m256i absmax_lanes(enum qf_dtype dtype, const char *src, size_t b)
{
    size_t stride = 64 * size_of(dtype);
    __m256i v0 = absmax64(dtype, src + b * stride);
    __m256i v1 = absmax64(dtype, src + (b + 4) * stride);
    return max_uint(dtype, _mm256_permute2x128_si256(v0, v1, 0x20),
                    _mm256_permute2x128_si256(v0, v1, 0x31));
}

INLINE __m256i fold_qwords(enum qf_dtype dtype, __m256i a, __m256i b)
{
    return max_uint(dtype, _mm256_unpacklo_epi64(a, b), _mm256_unpackhi_epi64(a, b));
}

/* Folds the two 16-bit maxima of each 32-bit lane. */
INLINE __m256i fold_dword(enum qf_dtype dtype, __m256i v)
{
    if (dtype == QF_F32)
        return v;
    return _mm256_and_si256(_mm256_max_epu16(v, _mm256_srli_epi32(v, 16)),
                            _mm256_set1_epi32(0xffff));
}

/* Absmax of 8 blocks of 64, block i in lane i. */
INLINE __m256i absmax_tree(enum qf_dtype dtype, const char *src)
{
    __m256 a = _mm256_castsi256_ps(
        fold_qwords(dtype, absmax_lanes(dtype, src, 0), absmax_lanes(dtype, src, 1)));
    __m256 b = _mm256_castsi256_ps(
        fold_qwords(dtype, absmax_lanes(dtype, src, 2), absmax_lanes(dtype, src, 3)));
    __m256i even = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0x88));
    __m256i odd = _mm256_castps_si256(_mm256_shuffle_ps(a, b, 0xdd));
    return fold_dword(dtype, max_uint(dtype, even, odd));
}

/* The largest 32-bit lane. */
INLINE uint32_t reduce_max(__m256i v)
{
    __m128i m =
        _mm_max_epu32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

/* The same for any block size and number of blocks up to 8; other lanes are 0. */
INLINE __m256i absmax_loop(enum qf_dtype dtype, const char *src, size_t blocks,
                           size_t blocksize)
{
    uint32_t out[BATCH_BLOCKS] = {0};
    size_t stride = 64 * size_of(dtype);
    for (size_t b = 0; b < blocks; b++) {
        __m256i m = _mm256_setzero_si256();
        for (size_t i = 0; i < blocksize; i += 64, src += stride)
            m = max_uint(dtype, m, absmax64(dtype, src));
        out[b] = reduce_max(fold_dword(dtype, m));
    }
    return load_bytes(out);
}

/* Bits of |x| in dtype, widened to binary32. */
INLINE __m256i widen_absmax(enum qf_dtype dtype, __m256i bits)
{
    if (dtype == QF_BF16)
        return _mm256_slli_epi32(bits, 16);
    if (dtype == QF_F16) {
        __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(bits),
                                         _mm256_extracti128_si256(bits, 1));
        return _mm256_castps_si256(_mm256_cvtph_ps(words));
    }
    return bits;
}

/* ---- 4-bit codes ---- */

enum kind { NF4, FP4 };

/* The thresholds of the first (and one unused), the second and the third level; of nf4
 * also the 8 of the last one. */
struct half_search {
    __m256 last, first;
};

INLINE struct half_search make_half_search(enum kind kind)
{
    const uint32_t *t = kind == NF4 ? qf_nf4_thresholds : qf_fp4_thresholds;
    const unsigned k = kind == NF4 ? 2 : 1; /* every k-th, from the k-th on */
    const uint32_t first[8] = {t[4 * k - 1], t[4 * k - 1], t[2 * k - 1], t[6 * k - 1],
                               t[1 * k - 1], t[3 * k - 1], t[5 * k - 1], t[7 * k - 1]};
    uint32_t last[8] = {0};
    for (unsigned i = 0; i < 8 && kind == NF4; i++)
        last[i] = t[2 * i];
    return (struct half_search){_mm256_castsi256_ps(load_bytes(last)),
                                _mm256_castsi256_ps(load_bytes(first))};
}

/* Thresholds of the levels of the search, at the lane that the low three bits of minus
 * the code so far name. fp4 uses the first three levels. */
struct search {
    __m256 level[4];
    struct half_search half; /* for 16-bit types, instead */
};

INLINE struct search make_search(enum kind kind)
{
    struct search s;
    const uint32_t *t = kind == NF4 ? qf_nf4_thresholds : qf_fp4_thresholds;
    const unsigned levels = kind == NF4 ? 4 : 3;
    for (unsigned level = 0; level < levels; level++) {
        uint32_t lane[8] = {0};
        unsigned width = 1u << (levels - level); /* codes that are still possible */
        for (unsigned code = 0; code < 1u << level; code++)
            lane[(0 - code) & 7] = t[code * width + width / 2 - 1];
        s.level[level] = _mm256_castsi256_ps(load_bytes(lane));
    }
    s.level[0] = _mm256_permutevar8x32_ps(s.level[0], _mm256_setzero_si256());
    s.half = make_half_search(kind);
    return s;
}

INLINE __m256i search_step(__m256i index, __m256 y, __m256 thresholds)
{
    __m256 t = _mm256_permutevar8x32_ps(thresholds, index);
    __m256i above = _mm256_castps_si256(_mm256_cmp_ps(y, t, _CMP_GT_OQ));
    return _mm256_add_epi32(_mm256_add_epi32(index, index), above);
}

/* Minus the codes (fp4: the ranks and signs) of 8 elements. */
INLINE __m256i encode8(enum kind kind, const struct search *s, __m256 x, __m256 rcp)
{
    __m256 y = _mm256_mul_ps(x, rcp);
    __m256 m = y;
    if (kind == FP4)
        m = _mm256_and_ps(y, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    __m256i index = _mm256_castps_si256(_mm256_cmp_ps(m, s->level[0], _CMP_GT_OQ));
    index = search_step(index, m, s->level[1]);
    index = search_step(index, m, s->level[2]);
    if (kind == NF4)
        return search_step(index, m, s->level[3]);
    __m256i negative =
        _mm256_castps_si256(_mm256_cmp_ps(y, _mm256_setzero_ps(), _CMP_LT_OQ));
    return _mm256_sub_epi32(index, _mm256_and_si256(negative, _mm256_set1_epi32(8)));
}

/* 32 floats -> 16 words, one packed byte in each. */
INLINE __m256i encode32(enum kind kind, const struct search *s, const char *p,
                        __m256 rcp)
{
    __m256i v[4];
    for (size_t i = 0; i < 4; i++)
        v[i] = encode8(kind, s, load8(QF_F32, p + i * 32), rcp);
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]),
                                       _mm256_packs_epi32(v[2], v[3]));
    /* Lane l holds 4 codes of each vector: double word w goes to 2w + l. */
    bytes = _mm256_permutevar8x32_epi32(_mm256_abs_epi8(bytes),
                                        _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x0110));
}

/* 64 floats -> 32 bytes. */
INLINE __m256i encode64(enum kind kind, const struct search *s, const char *p,
                        __m256 rcp)
{
    __m256i a = encode32(kind, s, p, rcp);
    __m256i b = encode32(kind, s, p + 128, rcp);
    __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xd8);
    if (kind == NF4)
        return bytes;
    __m256i bit1 = _mm256_and_si256(bytes, _mm256_set1_epi8(0x22));
    return _mm256_xor_si256(bytes, _mm256_slli_epi16(bit1, 1));
}

/* ---- 4-bit codes of 16-bit types ---- */

/* Order-preserving integers for the numbers; both zeros are 0. */
INLINE __m256i half_keys(__m256i x)
{
    return _mm256_sign_epi16(_mm256_and_si256(x, _mm256_set1_epi16(0x7fff)), x);
}

/* Thresholds of one block as keys, laid out for half_codes. */
struct half_levels {
    __m256i first, middle, last;
};

/* The number nearest to t * amax is the last that does not pass t, or the first that
 * does, whatever the roundings, which are a thousand times smaller than half its ulp:
 * so it is tried, and the number below it taken if it passes. */
INLINE struct half_levels make_half_levels(enum qf_dtype dtype,
                                           const struct half_search *s, float amax,
                                           float rcp)
{
    const __m256 scale = _mm256_set1_ps(amax);
    const __m256 inverse = _mm256_set1_ps(rcp);
    __m128i a = narrow8(dtype, _mm256_mul_ps(s->last, scale));
    __m128i b = narrow8(dtype, _mm256_mul_ps(s->first, scale));
    __m256 passes_a =
        _mm256_cmp_ps(_mm256_mul_ps(widen8(dtype, a), inverse), s->last, _CMP_GT_OQ);
    __m256 passes_b =
        _mm256_cmp_ps(_mm256_mul_ps(widen8(dtype, b), inverse), s->first, _CMP_GT_OQ);
    __m256i passes = _mm256_packs_epi32(_mm256_castps_si256(passes_a),
                                        _mm256_castps_si256(passes_b));
    __m256i keys = _mm256_add_epi16(half_keys(_mm256_set_m128i(b, a)),
                                    _mm256_permute4x64_epi64(passes, 0xd8));
    /* Low bytes apart from high bytes: see half_codes. */
    keys =
        _mm256_shuffle_epi8(keys, _mm256_setr_epi8(0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5,
                                                   7, 9, 11, 13, 15, 0, 1, 0, 1, 4, 6,
                                                   5, 7, 8, 10, 12, 14, 9, 11, 13, 15));
    struct half_levels levels;
    levels.middle = _mm256_permute4x64_epi64(keys, 0xee);
    levels.last = _mm256_permute4x64_epi64(keys, 0x44);
    levels.first = _mm256_broadcastw_epi16(_mm256_castsi256_si128(levels.middle));
    return levels;
}

INLINE __m256i half_step(__m256i index, __m256i keys, __m256i thresholds)
{
    __m256i t = _mm256_shuffle_epi8(thresholds, index);
    __m256i above = _mm256_cmpgt_epi16(keys, t);
    return _mm256_sub_epi8(_mm256_add_epi8(index, index), above);
}

/* 16 elements -> HALF_EXCESS + a packed byte in the low byte of each double word. The
 * bytes of `index` name the low and the high byte of the next threshold; code c so far,
 * they are 4 + c and 6 + c, then 8 + c and 12 + c, then, modulo 16, c and 8 + c. */
#define HALF_EXCESS(kind) ((kind) == NF4 ? 32 : 16)

INLINE __m256i half_codes(enum kind kind, const struct half_levels *levels,
                          const char *p)
{
    __m256i keys = half_keys(load_bytes(p));
    __m256i m = kind == NF4 ? keys : _mm256_abs_epi16(keys);
    __m256i above = _mm256_cmpgt_epi16(m, levels->first);
    __m256i index = _mm256_sub_epi8(_mm256_set1_epi16(0x0604), above);
    index = half_step(index, m, levels->middle);
    index = half_step(index, m, levels->middle);
    if (kind == NF4) {
        index = half_step(index, m, levels->last);
    } else {
        __m256i bit1 = _mm256_and_si256(index, _mm256_set1_epi16(2));
        __m256i negative = _mm256_cmpgt_epi16(_mm256_setzero_si256(), keys);
        index = _mm256_xor_si256(index, _mm256_add_epi16(bit1, bit1));
        index =
            _mm256_add_epi16(index, _mm256_and_si256(negative, _mm256_set1_epi16(8)));
    }
    /* 16 times an even one and an odd one: right in the low byte. */
    __m256i pairs = _mm256_madd_epi16(index, _mm256_set1_epi32(0x00010010));
    return _mm256_and_si256(pairs, _mm256_set1_epi32(0xff));
}

/* 64 elements -> 32 bytes. */
INLINE __m256i half_encode64(enum kind kind, const struct half_levels *levels,
                             const char *p)
{
    __m256i a = _mm256_packus_epi32(half_codes(kind, levels, p),
                                    half_codes(kind, levels, p + 32));
    __m256i b = _mm256_packus_epi32(half_codes(kind, levels, p + 64),
                                    half_codes(kind, levels, p + 96));
    __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b),
                                    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    return _mm256_sub_epi8(bytes, _mm256_set1_epi8(HALF_EXCESS(kind)));
}

/* ---- batches ---- */

/* While a batch is encoded nothing would be read from memory, and the hardware's own
 * look-ahead does not reach over it. Past the end of the source a prefetch is a no-op.
 */
INLINE void prefetch(const char *p, size_t size)
{
    for (size_t i = 0; i < size; i += 64)
        _mm_prefetch((const char *)((uintptr_t)p + PREFETCH_AHEAD + i), _MM_HINT_T0);
}

/* The blocks of a batch that the vector code does not treat. */
static __attribute__((noinline)) void special_blocks(unsigned mask, enum kind kind,
                                                     enum qf_dtype dtype,
                                                     const char *src, size_t blocksize,
                                                     uint8_t *packed, float *absmax)
{
    const struct qf_kernels *k = &qf_kernels_scalar;
    qf_kernel_4bit *scalar = kind == NF4 ? k->nf4[dtype] : k->fp4[dtype];
    for (; mask != 0; mask &= mask - 1) {
        size_t b = (size_t)__builtin_ctz(mask);
        uint8_t *out = packed + b * blocksize / 2;
        if (absmax[b] == 0)
            memset(out, kind == NF4 ? 0x77 : 0, blocksize / 2);
        else
            scalar(src + b * blocksize * size_of(dtype), blocksize, blocksize, out,
                   absmax + b);
    }
}

/* Up to 8 full blocks. */
INLINE void encode_batch(enum kind kind, enum qf_dtype dtype, const struct search *s,
                         const char *src, size_t blocks, unsigned log2_blocksize,
                         uint8_t *packed, float *absmax)
{
    float amax[BATCH_BLOCKS];
    float rcp[BATCH_BLOCKS];
    size_t blocksize = (size_t)1 << log2_blocksize;
    __m256i bits = blocks == BATCH_BLOCKS && blocksize == 64
                       ? absmax_tree(dtype, src)
                       : absmax_loop(dtype, src, blocks, blocksize);
    bits = widen_absmax(dtype, bits);
    __m256 wide = _mm256_castsi256_ps(bits);
    _mm256_storeu_ps(amax, wide);
    _mm256_storeu_ps(rcp, _mm256_div_ps(_mm256_set1_ps(1.0f), wide));
    memcpy(absmax, amax, blocks * sizeof *absmax);
    /* A normal number: between zero and denormals below, infinity and NaN above. From
     * 65536 on a negative bf16 number can be -0 when it is scaled, which in fp4 has
     * another code than what its bits say. */
    int limit = kind == FP4 && dtype == QF_BF16 ? 0x47800000 : 0x7f800000;
    __m256i above = _mm256_cmpgt_epi32(bits, _mm256_set1_epi32(0x007fffff));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32(limit), bits);
    unsigned normal = (unsigned)_mm256_movemask_ps(
        _mm256_castsi256_ps(_mm256_and_si256(above, below)));
    const bool halves = dtype != QF_F32;
    struct half_levels levels = {0};
    for (size_t i = 0; i < blocks << log2_blocksize; i += 64) {
        const char *p = src + i * size_of(dtype);
        size_t block = i >> log2_blocksize;
        prefetch(p, 64 * size_of(dtype));
        if (halves && i == block << log2_blocksize)
            levels = make_half_levels(dtype, &s->half, amax[block], rcp[block]);
        store_bytes(packed + i / 2,
                    halves ? half_encode64(kind, &levels, p)
                           : encode64(kind, s, p, _mm256_set1_ps(rcp[block])));
    }
    unsigned special = ~normal & ((1u << blocks) - 1);
    if (special != 0)
        special_blocks(special, kind, dtype, src, blocksize, packed, absmax);
}

INLINE void quantize_4bit(enum kind kind, enum qf_dtype dtype, const void *source,
                          size_t n, size_t blocksize, uint8_t *packed, float *absmax)
{
    const char *src = source;
    const struct search s = make_search(kind);
    const unsigned log2_blocksize = (unsigned)__builtin_ctzll(blocksize);
    const size_t batch = blocksize >= 1024 ? 8192u >> log2_blocksize : BATCH_BLOCKS;
    assert(blocksize >= 64 && blocksize <= 4096 && (blocksize & (blocksize - 1)) == 0);
    while (n >= blocksize) {
        size_t blocks = n >> log2_blocksize < batch ? n >> log2_blocksize : batch;
        encode_batch(kind, dtype, &s, src, blocks, log2_blocksize, packed, absmax);
        size_t elems = blocks << log2_blocksize;
        n -= elems;
        src += elems * size_of(dtype);
        packed += elems / 2;
        absmax += blocks;
    }
    const struct qf_kernels *k = &qf_kernels_scalar;
    (kind == NF4 ? k->nf4[dtype] : k->fp4[dtype])(src, n, blocksize, packed, absmax);
}

/* ---- int8 ---- */

/* The comparisons are signed: |x| as an integer is never negative. */
INLINE __m256i drop_nan(enum qf_dtype dtype, __m256i abs)
{
    if (dtype == QF_F32)
        return _mm256_andnot_si256(_mm256_cmpgt_epi32(abs,
                                                      _mm256_set1_epi32(0x7f800000)),
                                   abs);
    __m256i inf = _mm256_set1_epi16(dtype == QF_F16 ? 0x7c00 : 0x7f80);
    return _mm256_andnot_si256(_mm256_cmpgt_epi16(abs, inf), abs);
}

/* Rounding to fp16 does not change the order, so it is done once, on the maximum. */
INLINE void row_absmax(enum qf_dtype dtype, const void *src, size_t n, float *absmax)
{
    const size_t lanes = 32 / size_of(dtype);
    const __m256i mask = abs_mask(dtype);
    const char *p = src;
    __m256i m = _mm256_setzero_si256();
    for (; n >= lanes; n -= lanes, p += 32)
        m = max_uint(dtype, m, drop_nan(dtype, _mm256_and_si256(load_bytes(p), mask)));
    if (n != 0) {
        char tail[32] = {0};
        memcpy(tail, p, n * size_of(dtype));
        m = max_uint(dtype, m,
                     drop_nan(dtype, _mm256_and_si256(load_bytes(tail), mask)));
    }
    uint32_t bits = reduce_max(fold_dword(dtype, m));
    if (dtype != QF_F16)
        bits = qf_f32_bits_to_f16(dtype == QF_BF16 ? bits << 16 : bits);
    float max = qf_f32_of_bits(qf_f16_to_f32_bits((uint16_t)bits));
    *absmax = max > *absmax ? max : *absmax;
}

INLINE __m256i int8_dwords(__m256 x, __m256 scale)
{
    return _mm256_cvtps_epi32(_mm256_mul_ps(x, scale));
}

/* bf16 has fewer bits than fp16: rounding to fp16 changes only what is below fp16's
 * normal range, and there the ulp of 0.75 does the rounding. (No element overflows:
 * scb is finite.) */
INLINE __m256 bf16_rounded(__m256 x)
{
    const __m256 k = _mm256_set1_ps(0.75f);
    return _mm256_sub_ps(_mm256_add_ps(x, k), k);
}

/* 16 bf16 -> 16 words. The integer that stands for NaN has 16 low zeros. */
INLINE __m256i int8_words_bf16(const char *p, __m256 scale)
{
    __m256i pairs = load_bytes(p);
    __m256i even = int8_dwords(bf16_rounded(bf16_even(pairs)), scale);
    __m256i odd = int8_dwords(bf16_rounded(bf16_odd(pairs)), scale);
    return _mm256_blend_epi16(even, _mm256_slli_epi32(odd, 16), 0xaa);
}

INLINE __m256i int8_dwords_at(enum qf_dtype dtype, const char *p, __m256 scale)
{
    __m256 x = load8(dtype, p);
    if (dtype == QF_F32)
        x = _mm256_cvtph_ps(_mm256_cvtps_ph(x, ROUND_HALF));
    return int8_dwords(x, scale);
}

/* 32 elements -> 32 codes. */
INLINE __m256i int8_32(enum qf_dtype dtype, const char *p, __m256 scale)
{
    if (dtype == QF_BF16) {
        __m256i words = _mm256_packs_epi16(int8_words_bf16(p, scale),
                                           int8_words_bf16(p + 32, scale));
        return _mm256_permute4x64_epi64(words, 0xd8);
    }
    const size_t step = 8 * size_of(dtype);
    __m256i a = _mm256_packs_epi32(int8_dwords_at(dtype, p, scale),
                                   int8_dwords_at(dtype, p + step, scale));
    __m256i b = _mm256_packs_epi32(int8_dwords_at(dtype, p + 2 * step, scale),
                                   int8_dwords_at(dtype, p + 3 * step, scale));
    __m256i bytes =
        _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b),
                                    _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    /* The integer that stands for NaN was saturated to -128, which no number gives. */
    __m256i nan = _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-128));
    return _mm256_andnot_si256(nan, bytes);
}

INLINE void int8_codes(enum qf_dtype dtype, const void *src, size_t n, float scb,
                       int8_t *codes)
{
    if (!(scb > 0 && scb < INFINITY)) { /* x * scale is 0 or NaN */
        if (n != 0)
            memset(codes, 0, n);
        return;
    }
    const __m256 scale = _mm256_set1_ps(1.0f / scb * 127.0f);
    const char *p = src;
    for (; n >= 32; n -= 32, p += 32 * size_of(dtype), codes += 32)
        store_bytes(codes, int8_32(dtype, p, scale));
    if (n != 0) {
        char tail[128] = {0};
        memcpy(tail, p, n * size_of(dtype));
        store_bytes(tail, int8_32(dtype, tail, scale));
        memcpy(codes, tail, n);
    }
}

/* ---- casts ---- */

INLINE void store8(enum qf_dtype dtype, void *p, __m256 x)
{
    if (dtype == QF_F32) {
        _mm256_storeu_ps(p, x);
        return;
    }
    _mm_storeu_si128((__m128i_u *)p, narrow8(dtype, x));
}

INLINE void cast(enum qf_dtype from, enum qf_dtype to, const void *src, size_t n,
                 void *dst)
{
    const char *in = src;
    char *out = dst;
    for (; n >= 8; n -= 8, in += 8 * size_of(from), out += 8 * size_of(to))
        store8(to, out, load8(from, in));
    if (n != 0) {
        char tail[32] = {0};
        memcpy(tail, in, n * size_of(from));
        store8(to, tail, load8(from, tail));
        memcpy(out, tail, n * size_of(to));
    }
}

/* ---- the table ---- */

#define DEFINE_FOR_DTYPE(suffix, dtype)                                                \
    static void nf4_##suffix(const void *src, size_t n, size_t blocksize,              \
                             uint8_t *packed, float *absmax)                           \
    {                                                                                  \
        quantize_4bit(NF4, dtype, src, n, blocksize, packed, absmax);                  \
    }                                                                                  \
    static void fp4_##suffix(const void *src, size_t n, size_t blocksize,              \
                             uint8_t *packed, float *absmax)                           \
    {                                                                                  \
        quantize_4bit(FP4, dtype, src, n, blocksize, packed, absmax);                  \
    }                                                                                  \
    static void row_absmax_##suffix(const void *src, size_t n, float *absmax)          \
    {                                                                                  \
        row_absmax(dtype, src, n, absmax);                                             \
    }                                                                                  \
    static void int8_##suffix(const void *src, size_t n, float scb, int8_t *codes)     \
    {                                                                                  \
        int8_codes(dtype, src, n, scb, codes);                                         \
    }

DEFINE_FOR_DTYPE(f32, QF_F32)
DEFINE_FOR_DTYPE(f16, QF_F16)
DEFINE_FOR_DTYPE(bf16, QF_BF16)

#define DEFINE_CAST(name, from, to)                                                    \
    static void name(const void *src, size_t n, void *dst)                             \
    {                                                                                  \
        cast(from, to, src, n, dst);                                                   \
    }

DEFINE_CAST(cast_f32_f16, QF_F32, QF_F16)
DEFINE_CAST(cast_f32_bf16, QF_F32, QF_BF16)
DEFINE_CAST(cast_f16_f32, QF_F16, QF_F32)
DEFINE_CAST(cast_f16_bf16, QF_F16, QF_BF16)
DEFINE_CAST(cast_bf16_f32, QF_BF16, QF_F32)
DEFINE_CAST(cast_bf16_f16, QF_BF16, QF_F16)

void qf_kernels_init_avx2(struct qf_kernels *table)
{
    table->nf4[QF_F32] = nf4_f32;
    table->nf4[QF_F16] = nf4_f16;
    table->nf4[QF_BF16] = nf4_bf16;
    table->fp4[QF_F32] = fp4_f32;
    table->fp4[QF_F16] = fp4_f16;
    table->fp4[QF_BF16] = fp4_bf16;
    table->row_absmax[QF_F32] = row_absmax_f32;
    table->row_absmax[QF_F16] = row_absmax_f16;
    table->row_absmax[QF_BF16] = row_absmax_bf16;
    table->int8[QF_F32] = int8_f32;
    table->int8[QF_F16] = int8_f16;
    table->int8[QF_BF16] = int8_bf16;
    table->cast[QF_F32][QF_F16] = cast_f32_f16;
    table->cast[QF_F32][QF_BF16] = cast_f32_bf16;
    table->cast[QF_F16][QF_F32] = cast_f16_f32;
    table->cast[QF_F16][QF_BF16] = cast_f16_bf16;
    table->cast[QF_BF16][QF_F32] = cast_bf16_f32;
    table->cast[QF_BF16][QF_F16] = cast_bf16_f16;
}
