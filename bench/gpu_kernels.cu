/* SPDX-License-Identifier: Apache-2.0 */
/* The kernels alone, data on the device: GB/s of source, and the ratio to a device copy
 * of the same bytes in the same run. Medians of interleaved rounds, after a warm-up.
 * Prints one line a kernel: name, GB/s, ratio. */
#include <algorithm>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

#include "cuda/kernels.cuh"

#define ROUNDS 15
#define ROWS   16384
#define COLS   28672

static void must(cudaError_t error, const char *what)
{
    if (error == cudaSuccess)
        return;
    fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
    exit(1);
}

/* Random numbers about as a model's: the bits of small floats of both signs. */
static __global__ void fill(uint32_t *to, size_t words, bool half)
{
    for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < words;
         i += (size_t)gridDim.x * blockDim.x) {
        uint64_t x = (i + 1) * 0x9e3779b97f4a7c15u;
        x = (x ^ x >> 31) * 0xbf58476d1ce4e5b9u;
        uint32_t u = (uint32_t)(x >> 32);
        /* Exponents of about 2^-6, in each half where the type has 16 bits. */
        to[i] =
            half ? (u & 0x81ff81ffu) | 0x24002400u : (u & 0x81ffffffu) | 0x3c000000u;
    }
}

static double median(std::vector<float> &ms)
{
    std::sort(ms.begin(), ms.end());
    return ms[ms.size() / 2];
}

struct variant {
    const char *name;
    struct qf_cuda_launch launch;
    std::vector<float> ms;
};

int main()
{
    size_t elems = (size_t)ROWS * COLS;
    char *src;
    char *dst;
    cudaEvent_t begin, end;
    must(cudaSetDevice(0), "device");
    must(qf_cuda_kernels_init(), "tables");
    must(cudaMalloc((void **)&src, elems * 4), "memory");
    must(cudaMalloc((void **)&dst, elems * 4), "memory");
    must(cudaEventCreate(&begin), "event");
    must(cudaEventCreate(&end), "event");
    static const struct {
        enum qf_codec codec;
        uint32_t blocksize;
        const char *name;
    } kinds[] = {{QF_CODEC_NF4, 64, "nf4"},
                 {QF_CODEC_NF4, 4096, "nf4/4096"},
                 {QF_CODEC_FP4, 64, "fp4"},
                 {QF_CODEC_INT8, 64, "int8"}};
    static const char *const dtypes[] = {"f32", "f16", "bf16"};
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        size_t size = elems * (d == QF_F32 ? 4 : 2);
        std::vector<variant> variants;
        std::vector<float> copy;
        for (const auto &kind : kinds) {
            variant v = {kind.name, {}, {}};
            v.launch.codec = kind.codec;
            v.launch.src_dtype = v.launch.dtype = (enum qf_dtype)d;
            v.launch.blocksize = kind.blocksize;
            v.launch.cols = COLS;
            v.launch.count = 1;
            v.launch.items[0] = {src, (uint8_t *)dst, (float *)(dst + elems), elems};
            variants.push_back(v);
        }
        fill<<<1024, 256>>>((uint32_t *)src, size / 4, d != QF_F32);
        for (int round = -2; round < ROUNDS; round++) {
            float ms;
            must(cudaEventRecord(begin), "event");
            must(cudaMemcpyAsync(dst, src, size, cudaMemcpyDeviceToDevice), "copy");
            must(cudaEventRecord(end), "event");
            must(cudaEventSynchronize(end), "copy");
            must(cudaEventElapsedTime(&ms, begin, end), "event");
            if (round >= 0)
                copy.push_back(ms);
            for (variant &v : variants) {
                must(cudaEventRecord(begin), "event");
                must(qf_cuda_kernels_launch(0, &v.launch), v.name);
                must(cudaEventRecord(end), "event");
                must(cudaEventSynchronize(end), v.name);
                must(cudaEventElapsedTime(&ms, begin, end), "event");
                if (round >= 0)
                    v.ms.push_back(ms);
            }
        }
        double copy_ms = median(copy);
        printf("kernel copy %s %.0f GB/s 1.00\n", dtypes[d], size / copy_ms / 1e6);
        for (variant &v : variants) {
            double ms = median(v.ms);
            printf("kernel %s %s %.0f GB/s %.2f\n", v.name, dtypes[d], size / ms / 1e6,
                   copy_ms / ms);
        }
    }
    return 0;
}
