/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels. quant/kernels_scalar.c is the definition; this is the same arithmetic,
 * operation by operation, with the rounding written out (__frcp_rn, __fmul_rn) so that
 * no compiler flag can change it.
 *
 * Both kernels read the source once, 16 bytes a load and several loads in flight, keep
 * it in registers between the absolute maximum and the codes, and write each result
 * once. A thread has eight neighbouring elements (an octet): a 4-bit block of 64 is
 * eight lanes, an int8 row is one warp or one thread block.
 *
 * A 4-bit code is found without a walk through the thresholds: [-1, 1] is cut into 32
 * cells so narrow that no two thresholds share one, lane i of the warp holds the
 * threshold and the base code of cell i, and two shuffles fetch them. The one compare
 * that is left is exact, so it does not matter how y was rounded to its cell, only that
 * host and device agree on the cell of each threshold, and that the cell never falls
 * when y rises. */
#include "cuda/kernels.cuh"

#include <math.h>
#include <string.h>

#include "quant/tables.h"

#define CELLS       32
#define FULL_WARP   0xffffffffu
#define OCTET       8
#define MAGIC       12582912.0f /* 1.5 * 2^23: adding it rounds to an integer */
#define THREADS_MIN 256u        /* of a block of the 4-bit kernels */
#define THREADS_MAX 512u
/* Octets that a thread of the int8 kernel keeps in registers. */
#define ROW_CACHED 4

namespace {

/* What the source is rounded to on its way to binary32. */
enum rounding { ROUND_NONE, ROUND_F16, ROUND_BF16 };

struct cells {
    float threshold[CELLS];
    uint32_t codes[CELLS]; /* nf4: up to the threshold; fp4: | code above it << 4 */
};

__device__ struct cells device_cells[2]; /* nf4, fp4 */

struct batch {
    uint64_t count[QF_CUDA_LAUNCH_MAX]; /* 4-bit: elements; int8: rows */
    const void *src[QF_CUDA_LAUNCH_MAX];
    uint8_t *codes[QF_CUDA_LAUNCH_MAX];
    float *floats[QF_CUDA_LAUNCH_MAX];
};

/* ---- loads and conversions ---- */

template <int SRC> struct octet {
    uint32_t word[SRC == QF_F32 ? 8 : 4];
};

template <int SRC> __device__ __forceinline__ octet<SRC> zero_octet()
{
    octet<SRC> v;
#pragma unroll
    for (int i = 0; i < (SRC == QF_F32 ? 8 : 4); i++)
        v.word[i] = 0;
    return v;
}

template <int SRC>
__device__ __forceinline__ octet<SRC> load_octet(const void *src, uint64_t index)
{
    octet<SRC> v;
    const uint4 *from = (const uint4 *)src + index * (SRC == QF_F32 ? 2 : 1);
#pragma unroll
    for (int i = 0; i < (SRC == QF_F32 ? 2 : 1); i++) {
        uint4 q = __ldcs(from + i);
        v.word[4 * i] = q.x;
        v.word[4 * i + 1] = q.y;
        v.word[4 * i + 2] = q.z;
        v.word[4 * i + 3] = q.w;
    }
    return v;
}

/* Elements [first, n) of src, at most eight; what is beyond is zero. */
template <int SRC>
__device__ __forceinline__ octet<SRC> load_part(const void *src, uint64_t first,
                                                uint64_t n)
{
    octet<SRC> v = zero_octet<SRC>();
#pragma unroll
    for (int j = 0; j < OCTET; j++) {
        if (first + j >= n)
            continue;
        if (SRC == QF_F32)
            v.word[j] = ((const uint32_t *)src)[first + j];
        else
            v.word[SRC == QF_F32 ? 0 : j / 2] |=
                (uint32_t)((const uint16_t *)src)[first + j] << j % 2 * 16;
    }
    return v;
}

__device__ __forceinline__ float f16_low(uint32_t word)
{
    float x;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, l;}"
        : "=f"(x)
        : "r"(word));
    return x;
}

__device__ __forceinline__ float f16_high(uint32_t word)
{
    float x;
    asm("{.reg .b16 l, h; mov.b32 {l, h}, %1; cvt.f32.f16 %0, h;}"
        : "=f"(x)
        : "r"(word));
    return x;
}

__device__ __forceinline__ float rounded_f16(float x)
{
    float y;
    asm("{.reg .b16 h; cvt.rn.f16.f32 h, %1; cvt.f32.f16 %0, h;}" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float rounded_bf16(float x)
{
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return x; /* NaN: all are the same from here on */
    return __uint_as_float((u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u);
}

template <int SRC, int ROUND>
__device__ __forceinline__ float element(const octet<SRC> &v, int j)
{
    float x;
    if (SRC == QF_F32)
        x = __uint_as_float(v.word[SRC == QF_F32 ? j : 0]);
    else if (SRC == QF_F16)
        x = j % 2 != 0 ? f16_high(v.word[j / 2]) : f16_low(v.word[j / 2]);
    else
        x = __uint_as_float(j % 2 != 0 ? v.word[j / 2] & 0xffff0000u
                                       : v.word[j / 2] << 16);
    if (ROUND == ROUND_F16)
        x = rounded_f16(x);
    if (ROUND == ROUND_BF16)
        x = rounded_bf16(x);
    return x;
}

/* ---- 4-bit ---- */

/* fmaxf passes over a NaN, as the definition does. */
template <int SRC, int ROUND>
__device__ __forceinline__ float octet_absmax(const octet<SRC> &v)
{
    float a = 0;
#pragma unroll
    for (int j = 0; j < OCTET; j++)
        a = fmaxf(a, fabsf(element<SRC, ROUND>(v, j)));
    return a;
}

template <bool FP4>
__device__ __forceinline__ uint32_t code_of(float y, float threshold, uint32_t codes)
{
    float m = FP4 ? fabsf(y) : y;
    /* In [0, 1]; a NaN becomes 0, whose cell has the code 0. */
    float v = FP4 ? __saturatef(m) : __saturatef(__fmaf_rn(y, 0.5f, 0.5f));
    int cell = __float_as_int(__fmaf_rn(v, CELLS - 1.0f, MAGIC)) & (CELLS - 1);
    float t = __shfl_sync(FULL_WARP, threshold, cell);
    uint32_t c = __shfl_sync(FULL_WARP, codes, cell);
    if (!FP4)
        return c + (m > t ? 1u : 0u);
    return (m > t ? c >> 4 : c & 15u) + (y < 0 ? 8u : 0u);
}

/* Eight codes, the first in the upper half of the first byte. */
template <bool FP4, int SRC, int ROUND>
__device__ __forceinline__ uint32_t encode_octet(const octet<SRC> &v, float absmax,
                                                 float threshold, uint32_t codes)
{
    float rcp = __frcp_rn(absmax);
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < OCTET; j++) {
        float y = __fmul_rn(element<SRC, ROUND>(v, j), rcp);
        word |= code_of<FP4>(y, threshold, codes) << (j / 2 * 8 + (j % 2 != 0 ? 0 : 4));
    }
    return absmax != 0 ? word : (FP4 ? QF_FP4_ZERO : QF_NF4_ZERO) * 0x11111111u;
}

/* The last octet of a chunk, when it is short: an odd count is filled up with the code
 * of 0.0. */
template <bool FP4>
__device__ __forceinline__ void store_part(uint8_t *to, uint32_t word, uint32_t count)
{
    for (uint32_t i = 0; 2 * i < count; i++) {
        uint32_t byte = word >> 8 * i & 0xffu;
        if (2 * i + 1 == count)
            byte = (byte & 0xf0u) | (FP4 ? QF_FP4_ZERO : QF_NF4_ZERO);
        to[i] = (uint8_t)byte;
    }
}

/* The maximum over the lanes of a block of 2^shift octets. `partial` is shared memory,
 * for blocks of more than a warp. */
template <int UNROLL>
__device__ __forceinline__ void reduce_blocks(float (&absmax)[UNROLL], uint32_t shift,
                                              float *partial)
{
    for (uint32_t d = 1; d < (shift < 5 ? 1u << shift : 32u); d *= 2)
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            absmax[u] = fmaxf(absmax[u], __shfl_xor_sync(FULL_WARP, absmax[u], d));
    if (shift <= 5)
        return;
    uint32_t warp = threadIdx.x / 32;
    uint32_t warps = 1u << (shift - 5);
    if (threadIdx.x % 32 == 0)
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            partial[u * (THREADS_MAX / 32) + warp] = absmax[u];
    __syncthreads();
    for (uint32_t i = 0; i < warps; i++)
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            absmax[u] =
                fmaxf(absmax[u],
                      partial[u * (THREADS_MAX / 32) + (warp & ~(warps - 1)) + i]);
}

/* shift: log2 of a block's octets. A thread block has whole blocks. */
template <bool FP4, int SRC, int ROUND, int UNROLL>
__global__ void __launch_bounds__(THREADS_MAX)
    quantize_4bit(const __grid_constant__ batch jobs, uint32_t shift)
{
    __shared__ float partial[UNROLL * (THREADS_MAX / 32)];
    uint64_t n = jobs.count[blockIdx.y];
    uint64_t begin = (uint64_t)blockIdx.x * blockDim.x * UNROLL;
    if (begin * OCTET >= n)
        return;
    const void *src = jobs.src[blockIdx.y];
    float threshold = device_cells[FP4].threshold[threadIdx.x % 32];
    uint32_t codes = device_cells[FP4].codes[threadIdx.x % 32];
    octet<SRC> v[UNROLL];
    float absmax[UNROLL];
    if ((begin + (uint64_t)blockDim.x * UNROLL) * OCTET <= n) {
#pragma unroll
        for (int u = 0; u < UNROLL; u++)
            v[u] = load_octet<SRC>(src, begin + u * blockDim.x + threadIdx.x);
    } else {
#pragma unroll
        for (int u = 0; u < UNROLL; u++) {
            uint64_t first = (begin + u * blockDim.x + threadIdx.x) * OCTET;
            v[u] = first + OCTET <= n ? load_octet<SRC>(src, first / OCTET)
                                      : load_part<SRC>(src, first, n);
        }
    }
#pragma unroll
    for (int u = 0; u < UNROLL; u++)
        absmax[u] = octet_absmax<SRC, ROUND>(v[u]);
    reduce_blocks<UNROLL>(absmax, shift, partial);
#pragma unroll
    for (int u = 0; u < UNROLL; u++) {
        uint64_t index = begin + u * blockDim.x + threadIdx.x;
        uint64_t first = index * OCTET;
        uint32_t word =
            encode_octet<FP4, SRC, ROUND>(v[u], absmax[u], threshold, codes);
        uint8_t *to = jobs.codes[blockIdx.y] + index * (OCTET / 2);
        if (first + OCTET <= n)
            __stcs((uint32_t *)to, word);
        else if (first < n)
            store_part<FP4>(to, word, (uint32_t)(n - first));
        if ((index & ((1u << shift) - 1)) == 0 && first < n)
            jobs.floats[blockIdx.y][index >> shift] = absmax[u];
    }
}

/* ---- int8 ---- */

/* The element as int8 sees it: rounded to binary16. */
template <int SRC, int ROUND>
__device__ __forceinline__ float element_f16(const octet<SRC> &v, int j)
{
    float x = element<SRC, ROUND>(v, j);
    return SRC == QF_F16 && ROUND == ROUND_NONE ? x : rounded_f16(x);
}

template <int SRC, int ROUND>
__device__ __forceinline__ float row_absmax(float a, const octet<SRC> &v)
{
#pragma unroll
    for (int j = 0; j < OCTET; j++)
        a = fmaxf(a, fabsf(element_f16<SRC, ROUND>(v, j)));
    return a;
}

/* |x| <= SCB, so that |x * scale| stays under 127.5, and the conversion makes 0 of a
 * NaN: no other check is needed. */
template <int SRC, int ROUND>
__device__ __forceinline__ void store_row(int8_t *to, const octet<SRC> &v, float scale,
                                          uint64_t first, uint64_t n, bool aligned)
{
    uint32_t word[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < OCTET; j++) {
        int q = __float2int_rn(__fmul_rn(element_f16<SRC, ROUND>(v, j), scale));
        word[j / 4] |= ((uint32_t)q & 0xffu) << j % 4 * 8;
    }
    if (aligned) {
        __stcs((uint2 *)(to + first), make_uint2(word[0], word[1]));
        return;
    }
    for (int j = 0; j < OCTET && first + j < n; j++)
        to[first + j] = (int8_t)(word[j / 4] >> j % 4 * 8);
}

template <int SRC>
__device__ __forceinline__ octet<SRC> load_row(const void *row, uint64_t index,
                                               uint64_t n, bool aligned)
{
    return aligned ? load_octet<SRC>(row, index)
                   : load_part<SRC>(row, index * OCTET, n);
}

/* The maximum over the threads of a row: a warp, or the whole block. */
__device__ __forceinline__ float reduce_row(float absmax, float *partial)
{
    for (int d = 1; d < 32; d *= 2)
        absmax = fmaxf(absmax, __shfl_xor_sync(FULL_WARP, absmax, d));
    if (blockDim.x == 32)
        return absmax;
    if (threadIdx.x % 32 == 0)
        partial[threadIdx.x / 32] = absmax;
    __syncthreads();
    uint32_t lane = threadIdx.x % 32;
    absmax = lane < blockDim.x / 32 ? partial[lane] : 0;
    for (int d = 1; d < 32; d *= 2)
        absmax = fmaxf(absmax, __shfl_xor_sync(FULL_WARP, absmax, d));
    return absmax;
}

/* A row is blockDim.x threads. Octets beyond those kept are read twice. aligned: rows
 * are whole octets. */
template <int SRC, int ROUND>
__global__ void __launch_bounds__(1024)
    quantize_int8(const __grid_constant__ batch jobs, uint64_t cols, bool aligned)
{
    __shared__ float partial[32];
    uint64_t row = (uint64_t)blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= jobs.count[blockIdx.y]) /* whole warps, and whole blocks of one row */
        return;
    const char *src =
        (const char *)jobs.src[blockIdx.y] + row * cols * (SRC == QF_F32 ? 4 : 2);
    uint64_t octets = (cols + OCTET - 1) / OCTET;
    octet<SRC> v[ROW_CACHED];
#pragma unroll
    for (int i = 0; i < ROW_CACHED; i++) {
        uint64_t index = i * blockDim.x + threadIdx.x;
        v[i] = index < octets ? load_row<SRC>(src, index, cols, aligned)
                              : zero_octet<SRC>();
    }
    float absmax = 0;
#pragma unroll
    for (int i = 0; i < ROW_CACHED; i++)
        absmax = row_absmax<SRC, ROUND>(absmax, v[i]);
    for (uint64_t index = ROW_CACHED * blockDim.x + threadIdx.x; index < octets;
         index += blockDim.x)
        absmax =
            row_absmax<SRC, ROUND>(absmax, load_row<SRC>(src, index, cols, aligned));
    absmax = reduce_row(absmax, partial);
    float scale = __fmul_rn(__frcp_rn(absmax), 127.0f);
    int8_t *to = (int8_t *)jobs.codes[blockIdx.y] + row * cols;
#pragma unroll
    for (int i = 0; i < ROW_CACHED; i++) {
        uint64_t index = i * blockDim.x + threadIdx.x;
        if (index < octets)
            store_row<SRC, ROUND>(to, v[i], scale, index * OCTET, cols, aligned);
    }
    for (uint64_t index = ROW_CACHED * blockDim.x + threadIdx.x; index < octets;
         index += blockDim.x)
        store_row<SRC, ROUND>(to, load_row<SRC>(src, index, cols, aligned), scale,
                              index * OCTET, cols, aligned);
    if (threadIdx.x == 0)
        jobs.floats[blockIdx.y][row] = absmax;
}

/* ---- launches ---- */

/* Rounding of a source that D asks for; widening changes no value. */
enum rounding rounding_of(enum qf_dtype src, enum qf_dtype dtype)
{
    if (src == dtype || dtype == QF_F32)
        return ROUND_NONE;
    return dtype == QF_F16 ? ROUND_F16 : ROUND_BF16;
}

template <bool FP4, int SRC, int ROUND>
void start_4bit(cudaStream_t stream, const batch &jobs, dim3 grid, uint32_t threads,
                uint32_t shift)
{
    const int unroll = SRC == QF_F32 ? 2 : 4;
    grid.x = (grid.x + unroll - 1) / unroll;
    quantize_4bit<FP4, SRC, ROUND, unroll><<<grid, threads, 0, stream>>>(jobs, shift);
}

template <bool FP4>
void launch_4bit(cudaStream_t stream, const struct qf_cuda_launch *launch,
                 const batch &jobs, uint64_t most)
{
    uint32_t shift = 0;
    while ((uint32_t)OCTET << shift < launch->blocksize)
        shift++;
    uint32_t threads = (1u << shift) > THREADS_MIN ? 1u << shift : THREADS_MIN;
    uint64_t elems = (uint64_t)threads * OCTET;
    dim3 grid((unsigned)((most + elems - 1) / elems), launch->count);
    switch (launch->src_dtype * 4 + rounding_of(launch->src_dtype, launch->dtype)) {
    case QF_F32 * 4 + ROUND_NONE:
        return start_4bit<FP4, QF_F32, ROUND_NONE>(stream, jobs, grid, threads, shift);
    case QF_F32 * 4 + ROUND_F16:
        return start_4bit<FP4, QF_F32, ROUND_F16>(stream, jobs, grid, threads, shift);
    case QF_F32 * 4 + ROUND_BF16:
        return start_4bit<FP4, QF_F32, ROUND_BF16>(stream, jobs, grid, threads, shift);
    case QF_F16 * 4 + ROUND_NONE:
        return start_4bit<FP4, QF_F16, ROUND_NONE>(stream, jobs, grid, threads, shift);
    case QF_F16 * 4 + ROUND_BF16:
        return start_4bit<FP4, QF_F16, ROUND_BF16>(stream, jobs, grid, threads, shift);
    case QF_BF16 * 4 + ROUND_NONE:
        return start_4bit<FP4, QF_BF16, ROUND_NONE>(stream, jobs, grid, threads, shift);
    default:
        return start_4bit<FP4, QF_BF16, ROUND_F16>(stream, jobs, grid, threads, shift);
    }
}

void launch_int8(cudaStream_t stream, const struct qf_cuda_launch *launch,
                 const batch &jobs, uint64_t most)
{
    uint64_t cols = launch->cols;
    uint64_t octets = (cols + OCTET - 1) / OCTET;
    bool aligned = cols % OCTET == 0;
    dim3 block(32, 8);
    if (octets > 32 * ROW_CACHED) {
        uint64_t threads = (octets + ROW_CACHED - 1) / ROW_CACHED;
        block = dim3(threads < 1024 ? ((unsigned)threads + 31) / 32 * 32 : 1024, 1);
    }
    dim3 grid((unsigned)((most + block.y - 1) / block.y), launch->count);
    /* Rounding to F16 comes anyway. */
    bool bf16 = rounding_of(launch->src_dtype, launch->dtype) == ROUND_BF16;
    if (launch->src_dtype == QF_BF16)
        quantize_int8<QF_BF16, ROUND_NONE>
            <<<grid, block, 0, stream>>>(jobs, cols, aligned);
    else if (launch->src_dtype == QF_F16 && !bf16)
        quantize_int8<QF_F16, ROUND_NONE>
            <<<grid, block, 0, stream>>>(jobs, cols, aligned);
    else if (launch->src_dtype == QF_F16)
        quantize_int8<QF_F16, ROUND_BF16>
            <<<grid, block, 0, stream>>>(jobs, cols, aligned);
    else if (!bf16)
        quantize_int8<QF_F32, ROUND_NONE>
            <<<grid, block, 0, stream>>>(jobs, cols, aligned);
    else
        quantize_int8<QF_F32, ROUND_BF16>
            <<<grid, block, 0, stream>>>(jobs, cols, aligned);
}

/* ---- tables ---- */

float float_of(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* As code_of does it; the sum with MAGIC rounds to the nearest integer, ties to even.
 */
int cell_of(bool fp4, float y)
{
    float v = fp4 ? y : fmaf(y, 0.5f, 0.5f);
    return (int)nearbyint((double)v * (CELLS - 1));
}

/* The fp4 code of a positive number that `rank` thresholds are below. */
uint32_t fp4_code(uint32_t rank)
{
    return rank ^ (rank & 2) << 1;
}

/* False if two thresholds share a cell. */
bool fill_cells(bool fp4, struct cells *out)
{
    const uint32_t *thresholds = fp4 ? qf_fp4_thresholds : qf_nf4_thresholds;
    int count = fp4 ? 7 : 15;
    bool ok = true;
    for (int cell = 0; cell < CELLS; cell++) {
        uint32_t below = 0;
        int here = 0;
        out->threshold[cell] = INFINITY;
        for (int i = 0; i < count; i++) {
            float t = float_of(thresholds[i]);
            below += cell_of(fp4, t) < cell;
            if (cell_of(fp4, t) != cell)
                continue;
            out->threshold[cell] = t;
            ok = ok && ++here == 1;
        }
        out->codes[cell] = fp4 ? fp4_code(below) | fp4_code(below + 1) << 4 : below;
    }
    return ok;
}

} // namespace

cudaError_t qf_cuda_kernels_init()
{
    struct cells tables[2];
    if (!fill_cells(false, &tables[0]) || !fill_cells(true, &tables[1]))
        return cudaErrorInvalidValue;
    return cudaMemcpyToSymbol(device_cells, tables, sizeof tables);
}

cudaError_t qf_cuda_kernels_launch(cudaStream_t stream,
                                   const struct qf_cuda_launch *launch)
{
    batch jobs = {};
    uint64_t most = 0;
    bool int8 = launch->codec == QF_CODEC_INT8;
    for (uint32_t i = 0; i < launch->count; i++) {
        const struct qf_cuda_item *item = &launch->items[i];
        uint64_t n = int8 ? item->elem_count / launch->cols : item->elem_count;
        jobs.count[i] = n;
        jobs.src[i] = item->src;
        jobs.codes[i] = item->codes;
        jobs.floats[i] = item->floats;
        most = n > most ? n : most;
    }
    if (int8)
        launch_int8(stream, launch, jobs, most);
    else if (launch->codec == QF_CODEC_FP4)
        launch_4bit<true>(stream, launch, jobs, most);
    else
        launch_4bit<false>(stream, launch, jobs, most);
    return cudaGetLastError();
}
