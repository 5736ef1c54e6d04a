/* SPDX-License-Identifier: Apache-2.0 */
/* Every kernel of every instruction set that this processor has, against the scalar
 * table, byte by byte: all classes of numbers, ties at every threshold, every tail
 * length, every block size, sources at odd addresses, and buffers that end (or begin)
 * at a page that may not be touched. The scalar table runs, too, for the pages' sake.
 * Prints what it compared; returns 1 at the first difference. */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kernels/areas.h"
#include "kernels/numbers.h"
#include "quant/half.h"
#include "quant/kernels.h"
#include "quant/tables.h"

/* ---- one comparison of each kind ---- */

static void check_4bit(enum qf_dtype dtype, const void *src, size_t n, size_t blocksize,
                       size_t gap, bool front)
{
    char *in = place(src, n * width_of(dtype), gap, front);
    size_t packed = (n + 1) / 2;
    size_t absmax = (n + blocksize - 1) / blocksize * sizeof(float);
    for (int kind = 0; kind < 2; kind++) {
        qf_kernel_4bit *want = kind == 0 ? ref->nf4[dtype] : ref->fp4[dtype];
        qf_kernel_4bit *got = kind == 0 ? isa->nf4[dtype] : isa->fp4[dtype];
        char *codes = front ? codes_area : at_end(codes_area, packed, 0);
        char *floats = front ? floats_area : at_end(floats_area, absmax, 0);
        memset(codes, 0xa5, packed);
        want(in, n, blocksize, want_codes, (float *)(void *)want_floats);
        got(in, n, blocksize, (uint8_t *)codes, (float *)(void *)floats);
        same(kind == 0 ? "nf4" : "fp4", dtype, n, want_codes, codes, packed);
        same(kind == 0 ? "nf4 absmax" : "fp4 absmax", dtype, n, want_floats, floats,
             absmax);
    }
}

static void check_int8(enum qf_dtype dtype, const void *src, size_t n, size_t gap,
                       bool front)
{
    char *in = place(src, n * width_of(dtype), gap, front);
    char *codes = front ? codes_area : at_end(codes_area, n, 0);
    float want = 0;
    float got = 0;
    ref->row_absmax[dtype](in, n, &want);
    isa->row_absmax[dtype](in, n, &got);
    same("row_absmax", dtype, n, &want, &got, sizeof want);
    /* In two parts, as a long row comes. */
    float parts = 0;
    isa->row_absmax[dtype](in, n / 3, &parts);
    isa->row_absmax[dtype](in + n / 3 * width_of(dtype), n - n / 3, &parts);
    same("row_absmax in parts", dtype, n, &want, &parts, sizeof want);
    memset(codes, 0xa5, n);
    ref->int8[dtype](in, n, want, (int8_t *)want_codes);
    isa->int8[dtype](in, n, want, (int8_t *)codes);
    same("int8", dtype, n, want_codes, codes, n);
}

static void check_casts(enum qf_dtype dtype, const void *src, size_t n, size_t gap)
{
    char *in = place(src, n * width_of(dtype), gap, false);
    for (int to = 0; to < QF_FLOAT_COUNT; to++) {
        size_t size = n * width_of((enum qf_dtype)to);
        char *out = at_end(codes_area, size, 0);
        memset(out, 0xa5, size);
        ref->cast[dtype][to](in, n, want_codes);
        isa->cast[dtype][to](in, n, out);
        same("cast", dtype, n, want_codes, out, size);
    }
}

static void check_nested(const float *src, size_t n, float offset)
{
    char *in = place(src, n * sizeof *src, 0, false);
    const float *x = (const float *)(void *)in;
    size_t absmax = (n + 255) / 256 * sizeof(float);
    char *codes = at_end(codes_area, n, 0);
    char *floats = at_end(floats_area, absmax, 0);
    ref->nested(x, n, offset, want_codes, (float *)(void *)want_floats);
    isa->nested(x, n, offset, (uint8_t *)codes, (float *)(void *)floats);
    same("nested codes", QF_F32, n, want_codes, codes, n);
    same("nested absmax", QF_F32, n, want_floats, floats, absmax);
    if (n != 0) {
        float want = ref->mean(x, n);
        float got = isa->mean(x, n);
        if (!isnan(want) || !isnan(got)) /* which NaN does not matter */
            same("mean", QF_F32, n, &want, &got, sizeof want);
    }
}

static void check_all(enum qf_dtype dtype, const void *src, size_t n, size_t blocksize,
                      size_t gap)
{
    check_4bit(dtype, src, n, blocksize, gap, false);
    check_int8(dtype, src, n, gap, false);
    check_casts(dtype, src, n, gap);
}

/* ---- suites ---- */

static void check_classes(void)
{
    static unsigned char src[4 * 20000];
    static const size_t blocksizes[] = {64, 128, 256, 1024, 4096};
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        for (int class = 0; class < CLASS_COUNT; class ++) {
            for (size_t b = 0; b < 5; b++) {
                for (size_t i = 0; i < 20000; i++)
                    put((enum qf_dtype)d, src, i, (enum class) class);
                check_all((enum qf_dtype)d, src, 20000 - b, blocksizes[b], b);
            }
        }
    }
}

static void check_tails(void)
{
    static unsigned char src[4 * 9600];
    static const size_t blocksizes[] = {64, 128, 4096};
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        for (size_t i = 0; i < 9600; i++)
            put((enum qf_dtype)d, src, i, i % 5 == 0 ? HEAVY : NORMAL);
        for (size_t b = 0; b < 3; b++) {
            /* Every tail, then every number of blocks in a batch. */
            size_t each = 2 * blocksizes[b] + 2;
            for (size_t n = 0; n <= each + 1300;
                 n += n < each && each < 4096 ? 1 : 61) {
                check_4bit((enum qf_dtype)d, src, n, blocksizes[b], n % 7, n % 2 != 0);
                check_4bit((enum qf_dtype)d, src, n, blocksizes[b], 0, false);
            }
        }
        for (size_t n = 0; n <= 400; n++) {
            check_int8((enum qf_dtype)d, src, n, n % 5, n % 2 != 0);
            check_int8((enum qf_dtype)d, src, n, 0, false);
            check_casts((enum qf_dtype)d, src, n, 0);
            check_casts((enum qf_dtype)d, src, n, n % 5);
        }
    }
}

/* Blocks whose absmax is `absmax` and whose other elements give y at each threshold and
 * a few ulp around it. */
static void check_ties(void)
{
    static uint32_t src[64 * 256];
    for (int round = 0; round < 200; round++) {
        uint32_t absmax = round == 0 ? 0x3f800000u
                          : round < 30
                              ? (uint32_t)round << 23 | (random_u32() & 0x7fffff)
                              : (random_u32() & 0x3fffffffu) + 0x20000000u;
        float a = qf_f32_of_bits(absmax);
        float rcp = 1.0f / a;
        size_t n = 0;
        for (int t = 0; t < 22; t++) {
            uint32_t bits = t < 15 ? qf_nf4_thresholds[t] : qf_fp4_thresholds[t - 15];
            float x = qf_f32_of_bits(bits) / rcp;
            for (int k = -3; k <= 3; k++) {
                for (uint32_t sign = 0; sign < 2; sign++) {
                    if (n % 64 == 0)
                        src[n++] = absmax;
                    uint32_t near = qf_f32_bits(x) + (uint32_t)k;
                    src[n++] = near ^ sign << 31;
                }
            }
        }
        for (; n % 64 != 0 || n < 64 * 20; n++)
            src[n] = n % 64 == 0 ? absmax : (random_u32() & 1u) << 31 | (n % 4 != 0);
        check_4bit(QF_F32, src, n, 64, 0, false);
    }
}

/* In blocks of an absmax, every value of a 16-bit type from it down to where all codes
 * are those of zero (11 binades; bf16, where most are alike: 36). */
static void check_every16(enum qf_dtype dtype, uint16_t step)
{
    static uint16_t src[2 * 66000];
    uint32_t inf = dtype == QF_BF16 ? 0x7f80 : 0x7c00;
    uint32_t range = dtype == QF_BF16 ? 0x1200 : 0x2c00;
    for (uint32_t absmax = 0; absmax <= inf; absmax += step) {
        size_t n = 0;
        for (uint32_t u = absmax > range ? absmax - range : 0; u <= absmax; u++) {
            if (n % 64 == 0)
                src[n++] = (uint16_t)absmax;
            src[n++] = (uint16_t)u;
            if (n % 64 == 0)
                src[n++] = (uint16_t)absmax;
            src[n++] = (uint16_t)(u | 0x8000u);
        }
        check_4bit(dtype, src, n, 64, 0, false);
        check_int8(dtype, src, n, 0, false);
    }
}

/* Every bf16 and fp16, under a few scales; NaN, infinity and overflow included. */
static void check_int8_values(void)
{
    static uint16_t src[65536];
    static const float scales[] = {0x1p-24f, 0x1.8p-20f, 0x1.004p-14f, 0.0371f,
                                   1.0f,     0x1.554p0f, 6.5f,         1234.5f,
                                   65504.0f, INFINITY,   0.0f};
    for (uint32_t i = 0; i < 65536; i++)
        src[i] = (uint16_t)i;
    for (int d = QF_F16; d <= QF_BF16; d++) {
        for (size_t s = 0; s < sizeof scales / sizeof *scales; s++) {
            /* A row's absmax is its maximum: larger elements do not come. */
            static uint16_t row[65536];
            float scb = qf_f32_of_bits(
                qf_f16_to_f32_bits(qf_f32_bits_to_f16(qf_f32_bits(scales[s]))));
            size_t n = 0;
            for (uint32_t i = 0; i < 65536; i++) {
                float x = qf_f32_of_bits(d == QF_BF16 ? qf_bf16_to_f32_bits(src[i])
                                                      : qf_f16_to_f32_bits(src[i]));
                uint16_t h = qf_f32_bits_to_f16(qf_f32_bits(x));
                float rounded = fabsf(qf_f32_of_bits(qf_f16_to_f32_bits(h)));
                if (isnan(rounded) || rounded <= scb)
                    row[n++] = src[i];
            }
            ref->int8[d](row, n, scb, (int8_t *)want_codes);
            isa->int8[d](row, n, scb, (int8_t *)codes_area);
            same("int8 values", (enum qf_dtype)d, n, want_codes, codes_area, n);
        }
    }
}

/* All 16-bit values; all roundings of binary32 to 16 bits at, below and above a tie. */
static void check_cast_values(void)
{
    static uint32_t src[3 * 65536];
    static uint16_t half[65536];
    for (uint32_t i = 0; i < 65536; i++)
        half[i] = (uint16_t)i;
    check_casts(QF_F16, half, 65536, 0);
    check_casts(QF_BF16, half, 65536, 0);
    for (uint32_t i = 0; i < 65536; i++)
        for (uint32_t k = 0; k < 3; k++)
            src[3 * i + k] = (i << 16) + 0x7fff + k;
    check_casts(QF_F32, src, 3 * 65536, 0);
    for (uint32_t i = 0; i < 65536; i++)
        for (uint32_t k = 0; k < 3; k++)
            src[3 * i + k] = qf_f16_to_f32_bits((uint16_t)i) + 0xfff + k;
    check_casts(QF_F32, src, 3 * 65536, 0);
    for (uint32_t i = 0; i < 65536; i++)
        for (uint32_t k = 0; k < 3; k++) /* ties of fp16 denormals */
            src[3 * i + k] = qf_f32_bits(((float)(i % 2048) + 0.5f) * 0x1p-24f) + k - 1;
    check_casts(QF_F32, src, 3 * 65536, 0);
}

static void check_nested_values(void)
{
    static float x[4096];
    for (size_t n = 0; n <= 700; n++) {
        for (size_t i = 0; i < n; i++)
            x[i] = fabsf(random_float());
        check_nested(x, n, 0.5f);
    }
    /* u at every step of the search: offset 0, absmax 1. */
    for (int k = -4; k <= 4; k++) {
        size_t n = 0;
        for (int i = 0; i < 255; i++) {
            float low = qf_f32_of_bits(qf_dynamic_values[i]);
            float high = qf_f32_of_bits(qf_dynamic_values[i + 1]);
            uint32_t middle = qf_f32_bits((low + high) * 0.5f);
            float values[3] = {qf_f32_of_bits(middle + (uint32_t)k), low, high};
            for (int j = 0; j < 3; j++) {
                if (n % 256 == 0)
                    x[n++] = k % 2 == 0 ? 1.0f : -1.0f;
                x[n++] = values[j];
            }
        }
        check_nested(x, n, 0.0f);
    }
    for (int round = 0; round < 400; round++) {
        for (size_t i = 0; i < 4096; i++) {
            uint32_t u = random_u32();
            float r = random_float();
            x[i] = round % 4 == 0   ? qf_f32_of_bits(u & 0x7fffffffu) /* NaN too */
                   : round % 4 == 1 ? r
                   : round % 4 == 2 ? qf_f32_of_bits(u & 0x807fffffu)
                                    : r * r * r * r * r * r * r * r * r;
        }
        float offset = round % 8 < 4 ? 0.0f : ref->mean(x, 4096);
        check_nested(x, 4096, offset);
    }
    for (size_t i = 0; i < 4096; i++)
        x[i] = 0.25f; /* z = 0 */
    check_nested(x, 4096, 0.25f);
    x[700] = INFINITY;
    check_nested(x, 4096, INFINITY);
    check_nested(x, 4096, NAN);
}

int main(int argc, char **argv)
{
    bool every = argc > 1 && strcmp(argv[1], "--every") == 0;
    ref = qf_kernels_for(QF_ISA_SCALAR);
    src_area = guarded();
    codes_area = guarded();
    floats_area = guarded();
    for (int i = QF_ISA_SCALAR; i <= (int)qf_isa_detect(); i++) {
        isa = qf_kernels_for((enum qf_isa)i);
        compared = 0;
        check_classes();
        check_tails();
        check_ties();
        check_every16(QF_BF16, every ? 1 : 1201);
        check_every16(QF_F16, every ? 1 : 1201);
        check_int8_values();
        check_cast_values();
        check_nested_values();
        printf("%s: %llu bytes the same\n", isa->name, compared);
    }
    return 0;
}
