/* SPDX-License-Identifier: Apache-2.0 */
/* The way back and the sums of errors: every instruction set that this processor has
 * against the scalar table, bit by bit, over all classes of numbers, every tail length
 * and buffers that end at a page that may not be touched. Prints what it compared;
 * returns 1 at the first difference. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quant/dequant.h"
#include "quant/half.h"
#include "quant/kernels.h"

#define AREA_SIZE (1u << 18)
#define ELEMS     20000u

static const struct qf_kernels *ref;
static const struct qf_kernels *isa;
static unsigned long long compared;
static char *codes_area, *x_area, *y_area;

static char *guarded(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p =
        mmap(NULL, AREA_SIZE + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(p != MAP_FAILED);
    assert(mprotect(p, AREA_SIZE, PROT_READ | PROT_WRITE) == 0);
    return p;
}

/* `size` bytes that end at the forbidden page. */
static char *at_end(char *area, size_t size)
{
    assert(size <= AREA_SIZE);
    return area + AREA_SIZE - size;
}

static void same(const char *what, size_t n, const void *want, const void *got,
                 size_t size)
{
    if (memcmp(want, got, size) != 0) {
        printf("FAIL %s %s n=%zu\n", isa->name, what, n);
        exit(1);
    }
    compared += size;
}

/* ---- numbers ---- */

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint32_t random_u32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

enum class { NORMAL, HEAVY, BITS, DENORMAL, INFINITIES, NANS, ZEROS, CLASS_COUNT };

static float number(enum class class)
{
    uint32_t u = random_u32();
    uint32_t sign = u & 0x80000000u;
    float normal = (float)(int32_t)random_u32() * 0x1p-36f;
    switch (class) {
    case HEAVY: /* any finite bits */
        return qf_f32_of_bits((u & 0x7f800000u) == 0x7f800000u ? sign : u);
    case BITS:
        return qf_f32_of_bits(u);
    case DENORMAL:
        return qf_f32_of_bits(u & 0x807fffffu);
    case INFINITIES:
        return u % 31 == 0 ? qf_f32_of_bits(sign | 0x7f800000u) : normal;
    case NANS:
        return u % 13 == 0 ? qf_f32_of_bits(u | 0x7f800001u) : normal;
    case ZEROS:
        return u % 7 != 0 ? qf_f32_of_bits(sign) : normal;
    default:
        return normal;
    }
}

/* ---- comparisons ---- */

static float want_floats[ELEMS];

static void check_4bit(enum qf_codec codec, size_t n, size_t blocksize,
                       const float *absmax)
{
    float map[16];
    qf_dequant_map(codec, map);
    uint8_t *packed = (uint8_t *)at_end(codes_area, (n + 1) / 2);
    float *scales = (float *)(void *)at_end(x_area, (n + blocksize - 1) / blocksize *
                                                        sizeof(float));
    float *out = (float *)(void *)at_end(y_area, n * sizeof(float));
    for (size_t i = 0; i < (n + 1) / 2; i++)
        packed[i] = (uint8_t)random_u32();
    memcpy(scales, absmax, (n + blocksize - 1) / blocksize * sizeof(float));
    ref->dequant_4bit(packed, n, blocksize, map, scales, want_floats);
    isa->dequant_4bit(packed, n, blocksize, map, scales, out);
    same("dequant_4bit", n, want_floats, out, n * sizeof(float));
}

static void check_int8(size_t n, float scb)
{
    int8_t *codes = (int8_t *)at_end(codes_area, n);
    float *out = (float *)(void *)at_end(y_area, n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        codes[i] = (int8_t)random_u32();
    ref->dequant_int8(codes, n, scb, want_floats);
    isa->dequant_int8(codes, n, scb, out);
    same("dequant_int8", n, want_floats, out, n * sizeof(float));
}

/* In two calls, as tiles come. */
static void check_errors(size_t n, enum class of_x, enum class of_y)
{
    float *x = (float *)(void *)at_end(x_area, n * sizeof(float));
    float *y = (float *)(void *)at_end(y_area, n * sizeof(float));
    for (size_t i = 0; i < n; i++) {
        x[i] = number(of_x);
        y[i] = number(of_y);
    }
    size_t first = n / 2 / QF_ERROR_LANES * QF_ERROR_LANES;
    struct qf_error_lanes want, got;
    memset(&want, 0, sizeof want);
    memset(&got, 0, sizeof got);
    ref->errors(x, y, first, &want);
    ref->errors(x + first, y + first, n - first, &want);
    isa->errors(x, y, first, &got);
    isa->errors(x + first, y + first, n - first, &got);
    same("errors", n, &want, &got, sizeof want);
}

static void check_isa(void)
{
    static const size_t blocksizes[] = {64, 128, 512, 4096};
    static float absmax[ELEMS / 64 + 1];
    compared = 0;
    for (int class = 0; class < CLASS_COUNT; class ++) {
        for (size_t i = 0; i < sizeof absmax / sizeof *absmax; i++)
            absmax[i] = fabsf(number((enum class) class));
        for (size_t b = 0; b < 4; b++) {
            check_4bit(QF_CODEC_NF4, ELEMS - b, blocksizes[b], absmax);
            check_4bit(QF_CODEC_FP4, ELEMS - b, blocksizes[b], absmax);
        }
        for (int k = 0; k < 20; k++)
            check_int8(1000 + (size_t)k, fabsf(number((enum class) class)));
        for (int other = 0; other < CLASS_COUNT; other++)
            check_errors(ELEMS, (enum class) class, (enum class)other);
    }
    for (size_t i = 0; i < sizeof absmax / sizeof *absmax; i++)
        absmax[i] = fabsf(number(NORMAL));
    for (size_t n = 0; n <= 300; n++) {
        check_4bit(QF_CODEC_NF4, n, 64, absmax);
        check_int8(n, 0.25f);
        check_errors(n, NORMAL, NORMAL);
        check_errors(n, NANS, INFINITIES);
    }
    printf("%s: %llu bytes the same\n", isa->name, compared);
}

int main(void)
{
    ref = qf_kernels_for(QF_ISA_SCALAR);
    codes_area = guarded();
    x_area = guarded();
    y_area = guarded();
    for (int i = QF_ISA_SCALAR; i <= (int)qf_isa_detect(); i++) {
        isa = qf_kernels_for((enum qf_isa)i);
        check_isa();
    }
    return 0;
}
