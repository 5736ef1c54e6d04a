/* SPDX-License-Identifier: Apache-2.0 */
/* ggml's quantize_row_*_ref, block by block, in binary32 and without contraction. What
 * its C leaves undefined is settled here: an element that is NaN counts as 0, and so
 * does a product or a difference that is no finite number. */
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "quant/gguf.h"
#include "quant/gguf_impl.h"
#include "quant/half.h"

#define N QF_GGUF_BLOCK

static float load(enum qf_dtype dtype, const void *src, size_t i)
{
    uint16_t half;
    float x;
    if (dtype == QF_F32) {
        memcpy(&x, (const char *)src + 4 * i, sizeof x);
        return isnan(x) ? 0 : x;
    }
    memcpy(&half, (const char *)src + 2 * i, sizeof half);
    x = qf_f32_of_bits(dtype == QF_F16 ? qf_f16_to_f32_bits(half)
                                       : qf_bf16_to_f32_bits(half));
    return isnan(x) ? 0 : x;
}

static float inverse(float d)
{
    return d != 0 ? 1.0f / d : 0;
}

static float finite_or_zero(float x)
{
    return isfinite(x) ? x : 0;
}

static uint8_t *put_half(uint8_t *out, float d)
{
    uint16_t half = qf_f32_bits_to_f16(qf_f32_bits(d));
    memcpy(out, &half, sizeof half);
    return out + sizeof half;
}

/* The fifth bits of all elements, then the other four. */
static void put_codes(uint8_t *out, const uint8_t q[N], bool five)
{
    uint32_t high = 0;
    if (five) {
        for (unsigned i = 0; i < N; i++)
            high |= (uint32_t)(q[i] >> 4) << i;
        memcpy(out, &high, sizeof high);
        out += sizeof high;
    }
    for (unsigned i = 0; i < N / 2; i++)
        out[i] = (uint8_t)((q[i] & 15) | (q[i + N / 2] & 15) << 4);
}

static void q8_0(const float x[N], uint8_t *out)
{
    float amax = 0;
    for (unsigned i = 0; i < N; i++)
        amax = fabsf(x[i]) > amax ? fabsf(x[i]) : amax;
    float d = amax / 127.0f;
    float id = inverse(d);
    out = put_half(out, d);
    for (unsigned i = 0; i < N; i++)
        out[i] = (uint8_t)(int8_t)roundf(finite_or_zero(x[i] * id));
}

/* Q4_0 (top 8), Q5_0 (top 16): the first element of the largest magnitude gets the code
 * 0. A block of zeros has d = -0. */
static void symmetric(const float x[N], int top, uint8_t *out)
{
    float amax = 0, max = 0;
    uint8_t q[N];
    for (unsigned i = 0; i < N; i++) {
        if (fabsf(x[i]) > amax) {
            amax = fabsf(x[i]);
            max = x[i];
        }
    }
    float d = max / (float)-top;
    float id = inverse(d);
    out = put_half(out, d);
    for (unsigned i = 0; i < N; i++) {
        int code = (int)(finite_or_zero(x[i] * id) + ((float)top + 0.5f));
        q[i] = (uint8_t)(code < 2 * top - 1 ? code : 2 * top - 1);
    }
    put_codes(out, q, top == 16);
}

/* Q4_1 (15 steps), Q5_1 (31 steps). Of zeros of both signs the first one is the
 * minimum, as anywhere. */
static void asymmetric(const float x[N], int steps, uint8_t *out)
{
    float min = x[0], max = x[0];
    uint8_t q[N];
    for (unsigned i = 1; i < N; i++) {
        min = x[i] < min ? x[i] : min;
        max = x[i] > max ? x[i] : max;
    }
    float d = (max - min) / (float)steps;
    float id = inverse(d);
    out = put_half(put_half(out, d), min);
    for (unsigned i = 0; i < N; i++) {
        int code = (int)(finite_or_zero((x[i] - min) * id) + 0.5f);
        q[i] = (uint8_t)(code < steps ? code : steps);
    }
    put_codes(out, q, steps == 31);
}

void qf_gguf_block_scalar(enum qf_gguf_block block, enum qf_dtype dtype,
                          const void *src, uint8_t *out)
{
    float x[N];
    for (unsigned i = 0; i < N; i++)
        x[i] = load(dtype, src, i);
    switch (block) {
    case QF_GGUF_Q8_0:
        q8_0(x, out);
        break;
    case QF_GGUF_Q4_0:
        symmetric(x, 8, out);
        break;
    case QF_GGUF_Q5_0:
        symmetric(x, 16, out);
        break;
    case QF_GGUF_Q4_1:
        asymmetric(x, 15, out);
        break;
    default:
        asymmetric(x, 31, out);
        break;
    }
}

static void run(enum qf_gguf_block block, enum qf_dtype dtype, const void *src,
                size_t blocks, uint8_t *out)
{
    size_t stride = N * qf_dtype_size(dtype), size = qf_gguf_block_size(block);
    for (size_t i = 0; i < blocks; i++)
        qf_gguf_block_scalar(block, dtype, (const char *)src + i * stride,
                             out + i * size);
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

DEFINE_ALL(q8_0, QF_GGUF_Q8_0)
DEFINE_ALL(q4_0, QF_GGUF_Q4_0)
DEFINE_ALL(q4_1, QF_GGUF_Q4_1)
DEFINE_ALL(q5_0, QF_GGUF_Q5_0)
DEFINE_ALL(q5_1, QF_GGUF_Q5_1)

void qf_gguf_init_scalar(struct qf_kernels *table)
{
    static qf_kernel_gguf *const all[QF_GGUF_BLOCK_COUNT][QF_FLOAT_COUNT] = {
        {q8_0_f32, q8_0_f16, q8_0_bf16}, {q4_0_f32, q4_0_f16, q4_0_bf16},
        {q4_1_f32, q4_1_f16, q4_1_bf16}, {q5_0_f32, q5_0_f16, q5_0_bf16},
        {q5_1_f32, q5_1_f16, q5_1_bf16},
    };
    memcpy(table->gguf, all, sizeof all);
}
