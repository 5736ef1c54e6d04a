/* SPDX-License-Identifier: Apache-2.0 */
/* Scaled codecs: every instruction set that this processor has against the scalar
 * table, byte by byte: all classes of numbers, factors that scales give and any others,
 * quotients at and around every step of the codes, every tail, buffers that end (or
 * begin) at a page that may not be touched. Prints what it compared; returns 1 at the
 * first difference. --every: every 16-bit number under every absmax. */
#include <math.h>

#include "kernels/areas.h"
#include "kernels/numbers.h"
#include "quant/float8.h"
#include "quant/scales.h"

#define GROUPS_MAX (AREA_SIZE / sizeof(float))

/* A codec of each kind of data. */
static const enum qf_codec codecs[QF_SCALED_COUNT] = {
    [QF_SCALED_I8_MUL] = QF_CODEC_AO_INT8WO,
    [QF_SCALED_I8_DIV] = QF_CODEC_CT_W8A8,
    [QF_SCALED_I8_PACKED] = QF_CODEC_CT_W8A16,
    [QF_SCALED_I4_PACKED] = QF_CODEC_CT_W4A16,
    [QF_SCALED_F8_E4M3] = QF_CODEC_AO_FLOAT8WO,
    [QF_SCALED_F8_E5M2] = QF_CODEC_AO_FLOAT8WO_E5M2,
    [QF_SCALED_F8_E4M3_BLOCK] = QF_CODEC_FP8,
};

static const char *name_of(int scaled)
{
    return qf_codec_name(codecs[scaled]);
}

/* in: n elements; factors: one a group. */
static void check_codes(int scaled, enum qf_dtype dtype, const char *in, size_t n,
                        size_t group, const float *factors, bool front)
{
    size_t share = scaled == QF_SCALED_I4_PACKED ? 2 : 1;
    if (share == 2 && (group % 2 != 0 || n % 2 != 0))
        return;
    size_t size = n / share;
    char *codes = front ? codes_area : at_end(codes_area, size, 0);
    memset(codes, 0xa5, size);
    ref->scaled[scaled][dtype](in, n, group, factors, want_codes);
    isa->scaled[scaled][dtype](in, n, group, factors, codes);
    same(name_of(scaled), dtype, n, want_codes, codes, size);
}

static const float *check_absmax(enum qf_dtype dtype, const char *in, size_t n,
                                 size_t group, bool front)
{
    size_t size = (n + group - 1) / group * sizeof(float);
    char *floats = front ? floats_area : at_end(floats_area, size, 0);
    /* What is there counts, too: a band's rows come one after the other. */
    for (size_t i = 0; i < size; i += sizeof(float)) {
        float before = i % 12 == 0 ? 0.01f : 0;
        memcpy(floats + i, &before, sizeof before);
    }
    memcpy(want_floats, floats, size);
    ref->group_absmax[dtype](in, n, group, (float *)(void *)want_floats);
    isa->group_absmax[dtype](in, n, group, (float *)(void *)floats);
    same("group_absmax", dtype, n, want_floats, floats, size);
    return (const float *)(const void *)want_floats;
}

static void check_all(enum qf_dtype dtype, const void *src, size_t n, size_t group,
                      size_t gap, bool front)
{
    static float factors[GROUPS_MAX];
    const char *in = place(src, n * width_of(dtype), gap, front);
    size_t groups = (n + group - 1) / group;
    const float *absmax = check_absmax(dtype, in, n, group, front);
    for (int s = QF_SCALED_NONE + 1; s < QF_SCALED_COUNT; s++) {
        struct qf_codec_spec spec = qf_codec_default(codecs[s], dtype);
        qf_scale_factors(&spec, absmax, groups, factors);
        check_codes(s, dtype, in, n, group, factors, front);
    }
}

static void check_classes(void)
{
    static unsigned char src[4 * 20000];
    static const size_t groups[] = {8, 32, 128, 4096, 19999};
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        for (int class = 0; class < CLASS_COUNT; class ++) {
            for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
                for (size_t i = 0; i < 20000; i++)
                    put((enum qf_dtype)d, src, i, (enum class) class);
                check_all((enum qf_dtype)d, src, 20000 - 2 * g, groups[g], g, false);
            }
        }
    }
}

/* Every length of a group and of what is left of the last one, at every alignment. */
static void check_tails(void)
{
    static unsigned char src[4 * 1024];
    for (int d = 0; d < QF_FLOAT_COUNT; d++) {
        for (size_t i = 0; i < 1024; i++)
            put((enum qf_dtype)d, src, i, i % 5 == 0 ? HEAVY : NORMAL);
        check_all((enum qf_dtype)d, src, 0, 8, 0, false);
        for (size_t n = 1; n <= 300; n++) {
            check_all((enum qf_dtype)d, src, n, n, n % 5, n % 2 != 0);
            check_all((enum qf_dtype)d, src, n, n, 0, false);
            check_all((enum qf_dtype)d, src, 2 * n + n / 2, n, n % 7, n % 2 == 0);
        }
    }
}

/* Factors that no scale gives: any bits at all. */
static void check_factors(void)
{
    static unsigned char src[4 * 2048];
    float factors[256];
    for (int round = 0; round < 300; round++) {
        for (int d = 0; d < QF_FLOAT_COUNT; d++) {
            for (size_t i = 0; i < 2048; i++)
                put((enum qf_dtype)d, src, i, round % 2 == 0 ? BITS : NORMAL);
            for (size_t i = 0; i < 256; i++) {
                uint32_t u = random_u32();
                factors[i] = i % 16 == 0   ? 0
                             : i % 16 == 1 ? INFINITY
                                           : qf_f32_of_bits(u & 0x7fffffffu);
            }
            const char *in = place(src, 2048 * width_of((enum qf_dtype)d), 0, false);
            for (int s = QF_SCALED_NONE + 1; s < QF_SCALED_COUNT; s++)
                check_codes(s, (enum qf_dtype)d, in, 2048, 8, factors, false);
        }
    }
}

/* The middle between code i of an 8-bit float and the next one; past those, what lies
 * between integer codes. */
static float step_of(int i)
{
    struct qf_float8 format = i < 0x80 ? qf_float8_e4m3() : qf_float8_e5m2();
    if (i < 0x100) {
        uint8_t code = (uint8_t)(i & 0x7f);
        float low = qf_f8_to_f32(format, code);
        float high = qf_f8_to_f32(format, (uint8_t)(code + 1));
        return isfinite(high) && code < 0x7f ? (low + high) * 0.5f : low;
    }
    return (float)(i - 0x100) - 0.5f;
}

/* Elements whose quotient is a step of the codes, or as near to it as binary32 has
 * numbers, under any scale. */
static void check_steps(void)
{
    enum { STEPS = 0x100 + 130, NEAR = 9 };
    static float src[2 * STEPS * NEAR];
    static uint16_t half[2 * STEPS * NEAR];
    for (int round = 0; round < 120; round++) {
        uint32_t bits = round == 0   ? 0x3f800000u
                        : round < 30 ? random_u32() & 0x00ffffffu
                                     : (random_u32() & 0x3fffffffu) + 0x20000000u;
        for (int s = QF_SCALED_NONE + 1; s < QF_SCALED_COUNT; s++) {
            float factor = qf_f32_of_bits(bits);
            bool product = s == QF_SCALED_I8_MUL || s == QF_SCALED_F8_E4M3_BLOCK;
            size_t n = 0;
            for (int i = 0; i < STEPS; i++) {
                float x = product ? step_of(i) / factor : step_of(i) * factor;
                for (uint32_t k = 0; k < NEAR; k++) {
                    uint32_t near = qf_f32_bits(x) + k - NEAR / 2;
                    src[n++] = qf_f32_of_bits(near);
                    src[n++] = qf_f32_of_bits(near ^ 0x80000000u);
                }
            }
            check_codes(s, QF_F32, (const char *)src, n, n, &factor, false);
            for (int d = QF_F16; d <= QF_BF16; d++) {
                ref->cast[QF_F32][d](src, n, half);
                check_codes(s, (enum qf_dtype)d, (const char *)half, n, n, &factor,
                            false);
            }
        }
    }
}

/* Under an absmax, every value of a 16-bit type from it down to where all codes are
 * zeros (20 binades). */
static void check_every16(enum qf_dtype dtype, uint16_t step)
{
    static uint16_t src[2 * 33000];
    uint32_t inf = dtype == QF_BF16 ? 0x7f80 : 0x7c00;
    uint32_t range = dtype == QF_BF16 ? 20 << 7 : 20 << 10;
    for (uint32_t absmax = 0; absmax <= inf; absmax += step) {
        size_t n = 0;
        for (uint32_t u = absmax > range ? absmax - range : 0; u <= absmax; u++) {
            src[n++] = (uint16_t)u;
            src[n++] = (uint16_t)(u | 0x8000u);
        }
        check_all(dtype, src, n, n, 0, false);
    }
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
        check_factors();
        check_steps();
        check_every16(QF_BF16, every ? 1 : 601);
        check_every16(QF_F16, every ? 1 : 601);
        printf("%s: %llu bytes the same\n", isa->name, compared);
    }
    return 0;
}
