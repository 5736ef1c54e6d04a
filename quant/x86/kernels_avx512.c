/* SPDX-License-Identifier: Apache-2.0 */
/* AVX-512 (F, BW, DQ, VL).
 *
 * 4-bit. A batch of up to 16 blocks is walked twice while it is in L1: once for the
 * absmax of each block, once to encode. Absolute values are compared as integers (for
 * floats without sign the order is the same), so NaN shows itself as a maximum above
 * that of infinity, and a batch needs one test for all that is special: blocks with NaN
 * or infinity, blocks of zeros, blocks so small that 1/absmax overflows or absmax is a
 * denormal. Those are left to the scalar kernel. 16 correctly rounded reciprocals are
 * one division.
 *
 * The code of y = x * rcp: y * 15 (fp4: |y| * 14) rounded to an integer names a cell;
 * the cells are so small that no two thresholds lie in one and no threshold lies near
 * the edge of one, so it does not matter that the cell is computed with a fused
 * multiply-add. Two permutes look up the cell's threshold and the code below it,
 * one exact comparison of y decides. fp4's codes are not in the order of values; the
 * kernel computes ranks and rank ^ ((rank & 2) << 1) turns 64 packed bytes at a time
 * into codes.
 *
 * bf16 is widened by shift and mask into even and odd elements, which are those of the
 * high and the low nibble, so a packed byte is one OR. Other dtypes stay in order and
 * are packed by a multiply-add of byte pairs (16 * even + odd).
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
#define BATCH_BLOCKS   16u

/* ---- loads and stores ---- */

/* 16 elements, widened. */
INLINE __m512 load16(enum qf_dtype dtype, const void *p)
{
    if (dtype == QF_F32)
        return _mm512_loadu_ps(p);
    __m256i half = _mm256_loadu_si256((const __m256i_u *)p);
    if (dtype == QF_F16)
        return _mm512_cvtph_ps(half);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

INLINE size_t size_of(enum qf_dtype dtype)
{
    return dtype == QF_F32 ? 4 : 2;
}

INLINE __m512i bf16_even(__m512i pairs)
{
    return _mm512_slli_epi32(pairs, 16);
}

INLINE __m512i bf16_odd(__m512i pairs)
{
    return _mm512_and_si512(pairs, _mm512_set1_epi32((int)0xffff0000u));
}

/* ---- absmax of 4-bit blocks, as integers ---- */

INLINE __m512i max_uint(enum qf_dtype dtype, __m512i a, __m512i b)
{
    return dtype == QF_F32 ? _mm512_max_epu32(a, b) : _mm512_max_epu16(a, b);
}

/* Maximum of |x| over 64 elements, in each 16- or 32-bit lane of its own. */
INLINE __m512i absmax64(enum qf_dtype dtype, const char *p)
{
    __m512i mask =
        dtype == QF_F32 ? _mm512_set1_epi32(0x7fffffff) : _mm512_set1_epi16(0x7fff);
    __m512i a = _mm512_and_si512(_mm512_loadu_si512(p), mask);
    __m512i b = _mm512_and_si512(_mm512_loadu_si512(p + 64), mask);
    __m512i m = max_uint(dtype, a, b);
    if (dtype == QF_F32) {
        a = _mm512_and_si512(_mm512_loadu_si512(p + 128), mask);
        b = _mm512_and_si512(_mm512_loadu_si512(p + 192), mask);
        m = max_uint(dtype, m, max_uint(dtype, a, b));
    }
    return m;
}

/* Folds each 512-bit vector to 256 bits: lanes a a b b. */
INLINE __m512i fold256(enum qf_dtype dtype, __m512i a, __m512i b)
{
    return max_uint(dtype, _mm512_shuffle_i64x2(a, b, 0x44),
                    _mm512_shuffle_i64x2(a, b, 0xee));
}

/* Folds each 256-bit half to 128 bits. */
INLINE __m512i fold128(enum qf_dtype dtype, __m512i a, __m512i b)
{
    return max_uint(dtype, _mm512_shuffle_i64x2(a, b, 0x88),
                    _mm512_shuffle_i64x2(a, b, 0xdd));
}

/* Blocks b, b + 4, b + 8, b + 12, one in each 128-bit lane. */
INLINE __m512i absmax_lanes(enum qf_dtype dtype, const char *src, size_t b)
{
    size_t stride = 64 * size_of(dtype);
    const char *p = src + b * stride;
    __m512i low = fold256(dtype, absmax64(dtype, p), absmax64(dtype, p + 4 * stride));
    __m512i high = fold256(dtype, absmax64(dtype, p + 8 * stride),
                           absmax64(dtype, p + 12 * stride));
    return fold128(dtype, low, high);
}

/* Folds the two 16-bit maxima of each 32-bit lane. */
INLINE __m512i fold_dword(enum qf_dtype dtype, __m512i v)
{
    if (dtype == QF_F32)
        return v;
    return _mm512_and_si512(_mm512_max_epu16(v, _mm512_srli_epi32(v, 16)),
                            _mm512_set1_epi32(0xffff));
}

/* Absmax of 16 blocks of 64, block i in lane i. */
INLINE __m512i absmax_tree(enum qf_dtype dtype, const char *src)
{
    __m512i v0 = absmax_lanes(dtype, src, 0);
    __m512i v1 = absmax_lanes(dtype, src, 1);
    __m512i a =
        max_uint(dtype, _mm512_unpacklo_epi64(v0, v1), _mm512_unpackhi_epi64(v0, v1));
    __m512i v2 = absmax_lanes(dtype, src, 2);
    __m512i v3 = absmax_lanes(dtype, src, 3);
    __m512i b =
        max_uint(dtype, _mm512_unpacklo_epi64(v2, v3), _mm512_unpackhi_epi64(v2, v3));
    __m512 fa = _mm512_castsi512_ps(a);
    __m512 fb = _mm512_castsi512_ps(b);
    __m512i even = _mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0x88));
    __m512i odd = _mm512_castps_si512(_mm512_shuffle_ps(fa, fb, 0xdd));
    return fold_dword(dtype, max_uint(dtype, even, odd));
}

/* The same for any block size and number of blocks up to 16; other lanes are 0. */
INLINE __m512i absmax_loop(enum qf_dtype dtype, const char *src, size_t blocks,
                           size_t blocksize)
{
    uint32_t out[BATCH_BLOCKS] = {0};
    size_t stride = 64 * size_of(dtype);
    for (size_t b = 0; b < blocks; b++) {
        __m512i m = _mm512_setzero_si512();
        for (size_t i = 0; i < blocksize; i += 64, src += stride)
            m = max_uint(dtype, m, absmax64(dtype, src));
        out[b] = _mm512_reduce_max_epu32(fold_dword(dtype, m));
    }
    return _mm512_loadu_si512(out);
}

/* Bits of |x| in dtype, widened to binary32. */
INLINE __m512i widen_absmax(enum qf_dtype dtype, __m512i bits)
{
    if (dtype == QF_BF16)
        return _mm512_slli_epi32(bits, 16);
    if (dtype == QF_F16)
        return _mm512_castps_si512(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits)));
    return bits;
}

/* ---- 4-bit codes ---- */

enum kind { NF4, FP4 };

#define NF4_SCALE 15.0f
#define FP4_SCALE 14.0f
/* Adding it leaves rint(v) in the low bits of the sum. */
#define MAGIC 0x1.8p23f

struct cells {
    _Alignas(64) uint32_t threshold[32];
    _Alignas(64) uint32_t base[32];
};
/* [kind]; fp4 uses the first 16 cells. */
static struct cells cells[2];

static void init_cells(void)
{
    for (int j = 0; j < 32; j++) {
        int cell = j < 16 ? j : j - 32;
        for (int kind = NF4; kind <= FP4; kind++) {
            const uint32_t *t = kind == NF4 ? qf_nf4_thresholds : qf_fp4_thresholds;
            float scale = kind == NF4 ? NF4_SCALE : FP4_SCALE;
            uint32_t base = 0;
            uint32_t threshold = 0x7f800000u; /* nothing is above it */
            for (int i = 0; i < (kind == NF4 ? 15 : 7); i++) {
                int at = (int)lrintf(qf_f32_of_bits(t[i]) * scale);
                base += at < cell;
                if (at == cell) {
                    assert(threshold == 0x7f800000u);
                    threshold = t[i];
                }
            }
            cells[kind].threshold[j] = threshold;
            cells[kind].base[j] = base;
        }
    }
}

struct coder {
    __m512 threshold[2];
    __m512i base[2][2]; /* [nibble]: low, high */
    __m512i one[2];
    __m512i eight[2];
};

INLINE struct coder make_coder(enum kind kind)
{
    struct coder c;
    const struct cells *t = &cells[kind];
    for (int i = 0; i < 2; i++) {
        c.threshold[i] = _mm512_load_ps(t->threshold + 16 * i);
        c.base[0][i] = _mm512_load_si512(t->base + 16 * i);
        c.base[1][i] = _mm512_slli_epi32(c.base[0][i], 4);
    }
    c.one[0] = _mm512_set1_epi32(1);
    c.one[1] = _mm512_set1_epi32(0x10);
    c.eight[0] = _mm512_set1_epi32(8);
    c.eight[1] = _mm512_set1_epi32(0x80);
    return c;
}

/* Codes (fp4: ranks and sign) of 16 elements, in the low or the high nibble. */
INLINE __m512i encode16(enum kind kind, const struct coder *c, int nibble, __m512 x,
                        __m512 rcp)
{
    const __m512 magic = _mm512_set1_ps(MAGIC);
    __m512 y = _mm512_mul_ps(x, rcp);
    if (kind == NF4) {
        __m512i cell =
            _mm512_castps_si512(_mm512_fmadd_ps(y, _mm512_set1_ps(NF4_SCALE), magic));
        __m512 t = _mm512_permutex2var_ps(c->threshold[0], cell, c->threshold[1]);
        __m512i code =
            _mm512_permutex2var_epi32(c->base[nibble][0], cell, c->base[nibble][1]);
        __mmask16 above = _mm512_cmp_ps_mask(y, t, _CMP_GT_OQ);
        return _mm512_mask_add_epi32(code, above, code, c->one[nibble]);
    }
    __m512 m = _mm512_abs_ps(y);
    __m512i cell =
        _mm512_castps_si512(_mm512_fmadd_ps(m, _mm512_set1_ps(FP4_SCALE), magic));
    __m512 t = _mm512_permutexvar_ps(cell, c->threshold[0]);
    __m512i code = _mm512_permutexvar_epi32(cell, c->base[nibble][0]);
    __mmask16 above = _mm512_cmp_ps_mask(m, t, _CMP_GT_OQ);
    code = _mm512_mask_add_epi32(code, above, code, c->one[nibble]);
    __mmask16 negative = _mm512_cmp_ps_mask(y, _mm512_setzero_ps(), _CMP_LT_OQ);
    return _mm512_mask_or_epi32(code, negative, code, c->eight[nibble]);
}

/* 32 bf16 -> 16 bytes, each in a 32-bit lane. */
INLINE __m512i encode_pairs(enum kind kind, const struct coder *c, const char *p,
                            __m512 rcp)
{
    __m512i pairs = _mm512_loadu_si512(p);
    __m512i high = encode16(kind, c, 1, _mm512_castsi512_ps(bf16_even(pairs)), rcp);
    __m512i low = encode16(kind, c, 0, _mm512_castsi512_ps(bf16_odd(pairs)), rcp);
    return _mm512_or_si512(high, low);
}

/* 64 elements in order -> 32 words in which 128-bit lane l holds the bytes of elements
 * 4l … 4l + 3 of each of the four vectors. */
INLINE __m512i encode_ordered(enum kind kind, enum qf_dtype dtype,
                              const struct coder *c, const char *p, __m512 rcp)
{
    size_t step = 16 * size_of(dtype);
    __m512i v[4];
    for (size_t i = 0; i < 4; i++)
        v[i] = encode16(kind, c, 0, load16(dtype, p + i * step), rcp);
    __m512i bytes = _mm512_packus_epi16(_mm512_packs_epi32(v[0], v[1]),
                                        _mm512_packs_epi32(v[2], v[3]));
    return _mm512_maddubs_epi16(bytes, _mm512_set1_epi16(0x0110));
}

INLINE __m512i code_bytes(enum kind kind, __m512i ranks)
{
    if (kind == NF4)
        return ranks;
    __m512i bit1 = _mm512_and_si512(ranks, _mm512_set1_epi8(0x22));
    return _mm512_xor_si512(ranks, _mm512_slli_epi16(bit1, 1));
}

/* 128 elements -> 64 bytes; rcp0 belongs to the first 64. */
INLINE void encode128(enum kind kind, enum qf_dtype dtype, const struct coder *c,
                      const char *p, float rcp0, float rcp1, uint8_t *packed)
{
    __m512 r0 = _mm512_set1_ps(rcp0);
    __m512 r1 = _mm512_set1_ps(rcp1);
    __m512i bytes;
    if (dtype == QF_BF16) {
        __m512i a = encode_pairs(kind, c, p, r0);
        __m512i b = encode_pairs(kind, c, p + 64, r0);
        __m512i d = encode_pairs(kind, c, p + 128, r1);
        __m512i e = encode_pairs(kind, c, p + 192, r1);
        /* Each lane of the packs holds 4 bytes of a, b, d, e: transpose. */
        const __m512i order =
            _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        bytes =
            _mm512_packus_epi16(_mm512_packus_epi32(a, b), _mm512_packus_epi32(d, e));
        bytes = _mm512_permutexvar_epi32(order, bytes);
    } else {
        size_t half = 64 * size_of(dtype);
        __m512i a = encode_ordered(kind, dtype, c, p, r0);
        __m512i b = encode_ordered(kind, dtype, c, p + half, r1);
        /* Lane l holds 2 bytes of each of the 8 vectors: word w goes to 4w + l. */
        const __m512i order =
            _mm512_set_epi16(31, 23, 15, 7, 30, 22, 14, 6, 29, 21, 13, 5, 28, 20, 12, 4,
                             27, 19, 11, 3, 26, 18, 10, 2, 25, 17, 9, 1, 24, 16, 8, 0);
        bytes = _mm512_permutexvar_epi16(order, _mm512_packus_epi16(a, b));
    }
    _mm512_storeu_si512(packed, code_bytes(kind, bytes));
}

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

/* Up to 16 full blocks; blocks * blocksize is a multiple of 128. */
INLINE void encode_batch(enum kind kind, enum qf_dtype dtype, const struct coder *c,
                         const char *src, size_t blocks, unsigned log2_blocksize,
                         uint8_t *packed, float *absmax)
{
    float rcp[BATCH_BLOCKS];
    size_t blocksize = (size_t)1 << log2_blocksize;
    __m512i bits = blocks == BATCH_BLOCKS && blocksize == 64
                       ? absmax_tree(dtype, src)
                       : absmax_loop(dtype, src, blocks, blocksize);
    __mmask16 used = (__mmask16)((1u << blocks) - 1);
    bits = widen_absmax(dtype, bits);
    /* Not a normal number: zero, denormal, infinity or NaN. */
    __mmask16 special =
        _mm512_mask_cmpge_epu32_mask(used,
                                     _mm512_sub_epi32(bits,
                                                      _mm512_set1_epi32(0x00800000)),
                                     _mm512_set1_epi32(0x7f000000));
    __m512 amax = _mm512_castsi512_ps(bits);
    _mm512_mask_storeu_ps(absmax, used, amax);
    _mm512_storeu_ps(rcp, _mm512_div_ps(_mm512_set1_ps(1.0f), amax));
    for (size_t i = 0; i < blocks << log2_blocksize; i += 128) {
        const char *p = src + i * size_of(dtype);
        prefetch(p, 128 * size_of(dtype));
        encode128(kind, dtype, c, p, rcp[i >> log2_blocksize],
                  rcp[(i + 64) >> log2_blocksize], packed + i / 2);
    }
    if (special != 0)
        special_blocks(special, kind, dtype, src, blocksize, packed, absmax);
}

INLINE void quantize_4bit(enum kind kind, enum qf_dtype dtype, const void *source,
                          size_t n, size_t blocksize, uint8_t *packed, float *absmax)
{
    const char *src = source;
    const struct coder c = make_coder(kind);
    const unsigned log2_blocksize = (unsigned)__builtin_ctzll(blocksize);
    const size_t batch = blocksize >= 1024 ? 8192u >> log2_blocksize : BATCH_BLOCKS;
    assert(blocksize >= 64 && blocksize <= 4096 && (blocksize & (blocksize - 1)) == 0);
    while (n >= blocksize) {
        size_t blocks = n >> log2_blocksize < batch ? n >> log2_blocksize : batch;
        if (blocksize == 64 && blocks % 2 != 0)
            blocks--;
        if (blocks == 0)
            break;
        encode_batch(kind, dtype, &c, src, blocks, log2_blocksize, packed, absmax);
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

INLINE __m512i drop_nan(enum qf_dtype dtype, __m512i abs)
{
    if (dtype == QF_F32)
        return _mm512_maskz_mov_epi32(
            _mm512_cmple_epu32_mask(abs, _mm512_set1_epi32(0x7f800000)), abs);
    __m512i inf = _mm512_set1_epi16(dtype == QF_F16 ? 0x7c00 : 0x7f80);
    return _mm512_maskz_mov_epi16(_mm512_cmple_epu16_mask(abs, inf), abs);
}

/* Rounding to fp16 does not change the order, so it is done once, on the maximum. */
INLINE void row_absmax(enum qf_dtype dtype, const void *src, size_t n, float *absmax)
{
    const size_t lanes = 64 / size_of(dtype);
    const __m512i mask =
        dtype == QF_F32 ? _mm512_set1_epi32(0x7fffffff) : _mm512_set1_epi16(0x7fff);
    const char *p = src;
    __m512i m = _mm512_setzero_si512();
    for (; n >= lanes; n -= lanes, p += 64) {
        __m512i abs = _mm512_and_si512(_mm512_loadu_si512(p), mask);
        m = max_uint(dtype, m, drop_nan(dtype, abs));
    }
    if (n != 0) {
        char tail[64] = {0};
        memcpy(tail, p, n * size_of(dtype));
        __m512i abs = _mm512_and_si512(_mm512_loadu_si512(tail), mask);
        m = max_uint(dtype, m, drop_nan(dtype, abs));
    }
    uint32_t bits = _mm512_reduce_max_epu32(fold_dword(dtype, m));
    if (dtype != QF_F16)
        bits = qf_f32_bits_to_f16(dtype == QF_BF16 ? bits << 16 : bits);
    float max = qf_f32_of_bits(qf_f16_to_f32_bits((uint16_t)bits));
    *absmax = max > *absmax ? max : *absmax;
}

INLINE __m512i int8_dwords(__m512 x, __m512 scale)
{
    return _mm512_cvtps_epi32(_mm512_mul_ps(x, scale));
}

/* bf16 has fewer bits than fp16: rounding to fp16 changes only what is below fp16's
 * normal range, and there the ulp of 0.75 does the rounding. (No element overflows:
 * scb is finite.) */
INLINE __m512 bf16_rounded(__m512i bits)
{
    const __m512 k = _mm512_set1_ps(0.75f);
    return _mm512_sub_ps(_mm512_add_ps(_mm512_castsi512_ps(bits), k), k);
}

/* 32 bf16 -> 32 words. The integer that stands for NaN has 16 low zeros. */
INLINE __m512i int8_words_bf16(const char *p, __m512 scale)
{
    __m512i pairs = _mm512_loadu_si512(p);
    __m512i even = int8_dwords(bf16_rounded(bf16_even(pairs)), scale);
    __m512i odd = int8_dwords(bf16_rounded(bf16_odd(pairs)), scale);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, even, _mm512_slli_epi32(odd, 16));
}

INLINE __m512i int8_dwords_at(enum qf_dtype dtype, const char *p, __m512 scale)
{
    __m512 x = load16(dtype, p);
    if (dtype == QF_F32)
        x = _mm512_cvtph_ps(_mm512_cvtps_ph(x, ROUND_HALF));
    return int8_dwords(x, scale);
}

/* 64 elements -> 64 codes. */
INLINE __m512i int8_64(enum qf_dtype dtype, const char *p, __m512 scale)
{
    if (dtype == QF_BF16) {
        __m512i words = _mm512_packs_epi16(int8_words_bf16(p, scale),
                                           int8_words_bf16(p + 64, scale));
        return _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7),
                                        words);
    }
    const size_t step = 16 * size_of(dtype);
    __m512i a = _mm512_packs_epi32(int8_dwords_at(dtype, p, scale),
                                   int8_dwords_at(dtype, p + step, scale));
    __m512i b = _mm512_packs_epi32(int8_dwords_at(dtype, p + 2 * step, scale),
                                   int8_dwords_at(dtype, p + 3 * step, scale));
    const __m512i order =
        _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    __m512i bytes = _mm512_permutexvar_epi32(order, _mm512_packs_epi16(a, b));
    /* The integer that stands for NaN was saturated to -128, which no number gives. */
    __mmask64 number = _mm512_cmpneq_epi8_mask(bytes, _mm512_set1_epi8(-128));
    return _mm512_maskz_mov_epi8(number, bytes);
}

INLINE void int8_codes(enum qf_dtype dtype, const void *src, size_t n, float scb,
                       int8_t *codes)
{
    if (!(scb > 0 && scb < INFINITY)) { /* x * scale is 0 or NaN */
        if (n != 0)
            memset(codes, 0, n);
        return;
    }
    const __m512 scale = _mm512_set1_ps(1.0f / scb * 127.0f);
    const char *p = src;
    for (; n >= 64; n -= 64, p += 64 * size_of(dtype), codes += 64)
        _mm512_storeu_si512(codes, int8_64(dtype, p, scale));
    if (n != 0) {
        char tail[256] = {0};
        memcpy(tail, p, n * size_of(dtype));
        _mm512_mask_storeu_epi8(codes, ~UINT64_C(0) >> (64 - n),
                                int8_64(dtype, tail, scale));
    }
}

/* ---- casts ---- */

INLINE void store16(enum qf_dtype dtype, void *p, __m512 x)
{
    if (dtype == QF_F32) {
        _mm512_storeu_ps(p, x);
        return;
    }
    __m256i half;
    if (dtype == QF_F16) {
        half = _mm512_cvtps_ph(x, ROUND_HALF);
    } else {
        __m512i u = _mm512_castps_si512(x);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
        __m512i up = _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff));
        __m512i r = _mm512_srli_epi32(_mm512_add_epi32(u, up), 16);
        __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
        r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
        half = _mm512_cvtepi32_epi16(r);
    }
    _mm256_storeu_si256((__m256i_u *)p, half);
}

INLINE void cast(enum qf_dtype from, enum qf_dtype to, const void *src, size_t n,
                 void *dst)
{
    const char *in = src;
    char *out = dst;
    for (; n >= 16; n -= 16, in += 16 * size_of(from), out += 16 * size_of(to))
        store16(to, out, load16(from, in));
    if (n != 0) {
        char tail[64] = {0};
        memcpy(tail, in, n * size_of(from));
        store16(to, tail, load16(from, tail));
        memcpy(out, tail, n * size_of(to));
    }
}

/* ---- nested absmax ---- */

INLINE __mmask16 lanes_left(size_t n)
{
    unsigned mask = n >= 16 ? 0xffffu : (1u << n) - 1;
    return (__mmask16)(mask & 0xffffu);
}

INLINE __m512i nested_codes(__m512 u)
{
    /* NaN becomes -1, whose code is that of NaN: 0. */
    u = _mm512_min_ps(_mm512_max_ps(u, _mm512_set1_ps(-1.0f)), _mm512_set1_ps(1.0f));
    __m512i bits = _mm512_castps_si512(u);
    __m512i sign = _mm512_srai_epi32(bits, 31);
    __m512i abs = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
    __m512i cell = _mm512_sub_epi32(_mm512_srli_epi32(abs, QF_LUT_SHIFT),
                                    _mm512_set1_epi32(QF_LUT_FIRST));
    cell = _mm512_max_epi32(cell, _mm512_setzero_si512());
    __m512i half = _mm512_and_si512(sign, _mm512_set1_epi32(QF_LUT_CELLS));
    __m512i entry =
        _mm512_i32gather_epi32(_mm512_add_epi32(cell, half), qf_nested_lut, 4);
    const __m512i low_mask = _mm512_set1_epi32(QF_LUT_LOW_MASK);
    __mmask16 above = _mm512_cmpgt_epu32_mask(_mm512_and_si512(bits, low_mask),
                                              _mm512_and_si512(entry, low_mask));
    __m512i code = _mm512_srli_epi32(entry, QF_LUT_BASE_SHIFT);
    __m512i step = _mm512_or_si512(sign, _mm512_set1_epi32(1));
    return _mm512_mask_add_epi32(code, above, code, step);
}

static void nested(const float *absmax, size_t n, float offset, uint8_t *codes,
                   float *nested_absmax)
{
    const __m512 off = _mm512_set1_ps(offset);
    for (; n != 0; nested_absmax++) {
        size_t count = n < 256 ? n : 256;
        __m512 acc = _mm512_setzero_ps();
        for (size_t i = 0; i < count; i += 16) {
            __mmask16 k = lanes_left(count - i);
            __m512 z =
                _mm512_maskz_sub_ps(k, _mm512_maskz_loadu_ps(k, absmax + i), off);
            acc = _mm512_max_ps(_mm512_abs_ps(z), acc); /* acc where z is NaN */
        }
        float amax = _mm512_reduce_max_ps(acc);
        const __m512 rcp = _mm512_set1_ps(1.0f / amax);
        for (size_t i = 0; i < count; i += 16) {
            __mmask16 k = lanes_left(count - i);
            __m512 z = _mm512_sub_ps(_mm512_maskz_loadu_ps(k, absmax + i), off);
            __m512i c = nested_codes(_mm512_mul_ps(z, rcp));
            _mm_mask_storeu_epi8(codes + i, k, _mm512_cvtepi32_epi8(c));
        }
        *nested_absmax = amax;
        n -= count;
        absmax += count;
        codes += count;
    }
}

static float mean(const float *x, size_t n)
{
    __m512d acc = _mm512_setzero_pd();
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        acc = _mm512_add_pd(acc, _mm512_cvtps_pd(_mm256_loadu_ps(x + i)));
    __mmask8 k = (__mmask8)((1u << (n - i)) - 1);
    acc = _mm512_mask_add_pd(acc, k, acc,
                             _mm512_cvtps_pd(_mm256_maskz_loadu_ps(k, x + i)));
    double a[8];
    _mm512_storeu_pd(a, acc);
    double sum = ((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]));
    return (float)(sum / (double)n);
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

void qf_kernels_init_avx512(struct qf_kernels *table)
{
    init_cells();
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
    table->nested = nested;
    table->mean = mean;
}
