/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF's blocks: every instruction set that this processor has against the definition,
 * byte by byte: numbers of all sizes, ties, zeros of both signs, NaN and infinity, two
 * elements of the same magnitude, and buffers that end where nothing may be touched. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "quant/gguf.h"
#include "quant/half.h"

#define BLOCKS 64u
#define ELEMS  (BLOCKS * QF_GGUF_BLOCK)
#define AREA   (1u << 16)

static const char *const names[QF_GGUF_BLOCK_COUNT] = {"q8_0", "q4_0", "q4_1", "q5_0",
                                                       "q5_1"};
static unsigned long long compared;

/* A buffer that ends at a page that may not be touched. */
static char *guarded(void)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p = mmap(NULL, AREA + page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert(p != MAP_FAILED);
    int rc = mprotect(p, AREA, PROT_READ | PROT_WRITE);
    assert(rc == 0);
    (void)rc;
    return p + AREA;
}

static uint64_t state = 0x9e3779b97f4a7c15u;

static uint32_t random_u32(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 32);
}

static float normal(void)
{
    float x = 0;
    for (int i = 0; i < 6; i++)
        x += (float)(int32_t)random_u32() * 0x1p-31f;
    return x * 0.02f;
}

enum class {
    NORMAL,
    FEW,     /* few values: the same magnitude twice, with both signs */
    HALVES,  /* products that end in .5 */
    SHIFTED, /* all of one sign */
    ZEROS,
    MINIMUM_ZERO,
    TINY,
    LARGE,
    FINITE, /* any finite bits */
    BITS,
    NANS,
    INFINITIES,
    CLASS_COUNT
};

static uint32_t number(enum class class, size_t i)
{
    uint32_t u = random_u32(), sign = u & 0x80000000u;
    switch (class) {
    case NORMAL:
        return qf_f32_bits(normal());
    case FEW:
        return qf_f32_bits((float)((int)(u % 9) - 4) * 0.25f);
    case HALVES:
        return qf_f32_bits(i % 32 == 0 ? -127.0f : (float)(u % 255) / 2.0f - 63.5f);
    case SHIFTED:
        return qf_f32_bits(normal() + (i / 32 % 2 == 0 ? 3.0f : -3.0f));
    case ZEROS:
        return i / 32 % 4 == 0 && u % 17 == 0 ? qf_f32_bits(normal()) : sign;
    case MINIMUM_ZERO:
        return u % 3 == 0 ? sign : qf_f32_bits(fabsf(normal()));
    case TINY:
        return sign | (u & 0x03ffffffu);
    case LARGE:
        return sign | 0x7f000000u | (u & 0x7fffffu);
    case FINITE:
        return (u & 0x7f800000u) == 0x7f800000u ? sign : u;
    case BITS:
        return u;
    case NANS:
        return u % 40 == 0 ? u | 0x7fc00000u : qf_f32_bits(normal());
    default:
        return u % 40 == 0 ? sign | 0x7f800000u : qf_f32_bits(normal());
    }
}

static void fill(enum qf_dtype dtype, enum class class, char *out)
{
    for (size_t i = 0; i < ELEMS; i++) {
        uint32_t u = number(class, i);
        uint16_t half = dtype == QF_BF16 ? (uint16_t)(u >> 16) : qf_f32_bits_to_f16(u);
        if (dtype == QF_F16 && (class == BITS || class == FINITE || class == TINY))
            half = (uint16_t)(class == TINY ? u & 0x83ffu : u);
        if (dtype == QF_F32)
            memcpy(out + 4 * i, &u, sizeof u);
        else
            memcpy(out + 2 * i, &half, sizeof half);
    }
}

static void check(enum qf_isa isa, enum qf_gguf_block block, enum qf_dtype dtype,
                  size_t blocks, const char *src, char *area, char *out_area)
{
    static uint8_t want[BLOCKS * 34];
    size_t in_size = blocks * QF_GGUF_BLOCK * qf_dtype_size(dtype);
    size_t size = blocks * qf_gguf_block_size(block);
    char *in = area - in_size;
    uint8_t *got = (uint8_t *)out_area - size;
    memcpy(in, src, in_size);
    memset(want, 0x5a, sizeof want);
    memset(got, 0xa5, size);
    qf_kernels_for(QF_ISA_SCALAR)->gguf[block][dtype](in, blocks, want);
    qf_kernels_for(isa)->gguf[block][dtype](in, blocks, got);
    for (size_t i = 0; i < size; i++) {
        if (got[i] == want[i])
            continue;
        fprintf(stderr, "%s %s %s: byte %zu is %02x, not %02x\n", qf_isa_name(isa),
                names[block], qf_dtype_name(dtype), i, got[i], want[i]);
        exit(1);
    }
    compared += size;
}

static void check_isa(enum qf_isa isa, char *area, char *out_area)
{
    static char src[ELEMS * 4];
    compared = 0;
    for (int round = 0; round < 20; round++)
        for (int class = 0; class < CLASS_COUNT; class ++)
            for (int d = 0; d < QF_FLOAT_COUNT; d++) {
                fill((enum qf_dtype)d, (enum class) class, src);
                for (int b = 0; b < QF_GGUF_BLOCK_COUNT; b++)
                    check(isa, (enum qf_gguf_block)b, (enum qf_dtype)d,
                          round == 0 ? random_u32() % 5 : BLOCKS, src, area, out_area);
            }
    printf("%s: %llu bytes the same\n", qf_isa_name(isa), compared);
}

/* Roundings of q8_0 by hand: half away from zero. */
static void check_halves(void)
{
    float x[QF_GGUF_BLOCK] = {127, 0.5f, -0.5f, 1.5f, -2.5f, 0.49999997f, 126.5f};
    static const int8_t want[] = {127, 1, -1, 2, -3, 0, 127, 0};
    for (int isa = QF_ISA_SCALAR; isa <= (int)qf_isa_detect(); isa++) {
        uint8_t out[34];
        qf_kernels_for((enum qf_isa)isa)->gguf[QF_GGUF_Q8_0][QF_F32](x, 1, out);
        if (out[0] != 0x00 || out[1] != 0x3c || memcmp(out + 2, want, sizeof want)) {
            fprintf(stderr, "%s: halves are rounded wrongly\n",
                    qf_isa_name((enum qf_isa)isa));
            exit(1);
        }
    }
}

int main(void)
{
    char *area = guarded(), *out_area = guarded();
    check_halves();
    for (int isa = QF_ISA_SCALAR; isa <= (int)qf_isa_detect(); isa++)
        check_isa((enum qf_isa)isa, area, out_area);
    return 0;
}
