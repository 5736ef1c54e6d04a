/* SPDX-License-Identifier: Apache-2.0 */
/* The definition itself: cases that docs/FORMATS.md section 2 names, with results
 * worked out by hand, on the scalar table; and which table is chosen. That the other
 * tables equal the scalar one is for tests/kernels to show. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "quant/half.h"
#include "quant/kernels.h"
#include "quant/kernels_impl.h"
#include "quant/measure.h"
#include "quant/scales.h"
#include "quant/tables.h"

static const struct qf_kernels *k;

static void quantize(const float *x, size_t n, bool fp4, uint8_t *packed, float *absmax)
{
    (fp4 ? k->fp4 : k->nf4)[QF_F32](x, n, 64, packed, absmax);
}

/* Each value of the map, scaled, gets its own code back; a threshold itself the code
 * below, the next float the one above. */
static void test_nf4_codes(void **state)
{
    (void)state;
    uint8_t packed[8];
    float absmax;
    float x[16];
    for (int i = 0; i < 16; i++)
        x[i] = qf_f32_of_bits(qf_nf4_values[i]) * 0.25f;
    quantize(x, 16, false, packed, &absmax);
    assert_true(absmax == 0.25f);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(packed[i], (2 * i) << 4 | (2 * i + 1));
    for (unsigned i = 0; i < 15; i++) {
        float t = qf_f32_of_bits(qf_nf4_thresholds[i]);
        float edge[4] = {1.0f, t, nextafterf(t, 2), nextafterf(t, -2)};
        quantize(edge, 4, false, packed, &absmax);
        assert_int_equal(packed[0], 0xf0 | i);
        assert_int_equal(packed[1], (i + 1) << 4 | i);
    }
}

static void test_fp4_codes(void **state)
{
    (void)state;
    static const uint8_t code_of_rank[8] = {0, 1, 6, 7, 4, 5, 2, 3};
    uint8_t packed[8];
    float absmax;
    float x[16];
    for (int i = 0; i < 16; i++)
        x[i] = qf_f32_of_bits(qf_fp4_values[i]);
    x[8] = -0.001f; /* the code of minus zero is that of small negative numbers */
    quantize(x, 16, true, packed, &absmax);
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(packed[i], (2 * i) << 4 | (2 * i + 1));
    for (unsigned i = 0; i < 7; i++) {
        float t = qf_f32_of_bits(qf_fp4_thresholds[i]);
        float edge[6] = {1.0f, t, nextafterf(t, 2), -t, nextafterf(-t, -2), -0.0f};
        quantize(edge, 6, true, packed, &absmax);
        assert_int_equal(packed[0], 0x30 | code_of_rank[i]);
        assert_int_equal(packed[1], code_of_rank[i + 1] << 4 | (code_of_rank[i] | 8));
        assert_int_equal(packed[2], (code_of_rank[i + 1] | 8) << 4);
    }
}

static void test_4bit_special(void **state)
{
    (void)state;
    uint8_t packed[64];
    float absmax[2];
    const float odd[3] = {1, -1, 1};
    quantize(odd, 3, false, packed, absmax);
    assert_int_equal(packed[0], 0xf0);
    assert_int_equal(packed[1], 0xf7); /* filled up with the code of 0.0 */
    quantize(odd, 3, true, packed, absmax);
    assert_int_equal(packed[1], 0x30);
    const float zeros[4] = {0, -0.0f, 0, NAN};
    quantize(zeros, 4, false, packed, absmax);
    assert_true(absmax[0] == 0 && !signbit(absmax[0]));
    assert_int_equal(packed[0], 0x77);
    assert_int_equal(packed[1], 0x77);
    const float nans[2] = {NAN, -NAN};
    quantize(nans, 2, false, packed, absmax);
    assert_true(absmax[0] == 0);
    assert_int_equal(packed[0], 0x77);
    quantize(nans, 2, true, packed, absmax);
    assert_int_equal(packed[0], 0x00);
    const float nan[4] = {NAN, 1, -1, 0};
    quantize(nan, 4, false, packed, absmax);
    assert_true(absmax[0] == 1);
    assert_int_equal(packed[0], 0x0f);
    assert_int_equal(packed[1], 0x07);
    const float inf[4] = {INFINITY, -INFINITY, 1, -1}; /* inf * 0 is NaN; 1 * 0 = 0 */
    quantize(inf, 4, false, packed, absmax);
    assert_true(absmax[0] == INFINITY);
    assert_int_equal(packed[0], 0x00);
    assert_int_equal(packed[1], 0x77);
    const float small[4] = {0x1p-140f, -0x1p-140f, 0x1p-149f, 0}; /* 1/absmax = inf */
    quantize(small, 4, false, packed, absmax);
    assert_true(absmax[0] == 0x1p-140f);
    assert_int_equal(packed[0], 0xf0);
    assert_int_equal(packed[1], 0xf0);
}

static void test_4bit_blocks(void **state)
{
    (void)state;
    float x[300];
    uint8_t packed[150];
    float absmax[5];
    for (size_t i = 0; i < 300; i++)
        x[i] = (float)(i / 64 + 1) * (i % 64 == 0 ? -1.0f : 0.5f);
    k->nf4[QF_F32](x, 300, 64, packed, absmax);
    for (size_t b = 0; b < 5; b++) {
        assert_true(absmax[b] == (float)(b + 1));
        assert_int_equal(packed[b * 32], 0x0c); /* .5 lies between .44 and .56 */
    }
    k->nf4[QF_F32](x, 300, 128, packed, absmax);
    assert_true(absmax[0] == 2 && absmax[1] == 4 && absmax[2] == 5);
}

static void test_int8(void **state)
{
    (void)state;
    /* 65519 is the last that rounds to a finite fp16. */
    const float row[6] = {1.0f, -0.5f, 0.25f, 0, NAN, 1.0f / 254};
    int8_t codes[6];
    float scb = 0;
    k->row_absmax[QF_F32](row, 6, &scb);
    assert_true(scb == 1);
    k->int8[QF_F32](row, 6, scb, codes);
    /* -63.5 is a tie: to even. fp16(1/254) * 127 = .5000: 0 or 1 by the fp16 value. */
    float last = rintf(
        qf_f32_of_bits(qf_f16_to_f32_bits(qf_f32_bits_to_f16(qf_f32_bits(row[5])))) *
        127.0f);
    const int8_t want[6] = {127, -64, 32, 0, 0, (int8_t)last};
    assert_memory_equal(codes, want, 6);
    const float large[3] = {65519.0f, 65520.0f, -1e30f};
    scb = 0;
    k->row_absmax[QF_F32](large, 1, &scb);
    assert_true(scb == 65504.0f);
    k->row_absmax[QF_F32](large, 3, &scb);
    assert_true(scb == INFINITY);
    k->int8[QF_F32](large, 3, scb, codes);
    assert_true(codes[0] == 0 && codes[1] == 0 && codes[2] == 0);
    const float tiny[2] = {0x1p-26f, NAN};
    scb = 0;
    k->row_absmax[QF_F32](tiny, 2, &scb);
    assert_true(scb == 0);
    k->int8[QF_F32](tiny, 2, scb, codes);
    assert_true(codes[0] == 0 && codes[1] == 0);
}

static void test_half(void **state)
{
    (void)state;
    static const struct {
        uint32_t f32;
        uint16_t f16;
        uint16_t bf16;
    } cases[] = {
        {0x00000000, 0x0000, 0x0000}, {0x80000000, 0x8000, 0x8000},
        {0x3f800000, 0x3c00, 0x3f80}, {0x3f801000, 0x3c00, 0x3f80}, /* tie to even */
        {0x3f803000, 0x3c02, 0x3f80}, {0x3f808000, 0x3c04, 0x3f80},
        {0x3f818000, 0x3c0c, 0x3f82}, {0x477fefff, 0x7bff, 0x4780},
        {0x477ff000, 0x7c00, 0x4780}, {0xff800000, 0xfc00, 0xff80},
        {0x7f7fffff, 0x7c00, 0x7f80}, {0x33800000, 0x0001, 0x3380}, /* 2^-24 */
        {0x33000000, 0x0000, 0x3300}, {0x33000001, 0x0001, 0x3300},
        {0x33c00000, 0x0002, 0x33c0}, {0x387fffff, 0x0400, 0x3880},
        {0x7f800001, 0x7e00, 0x7fc0}, {0xffa02000, 0xff01, 0x7fc0}, /* NaN */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(qf_f32_bits_to_f16(cases[i].f32), cases[i].f16);
        assert_int_equal(qf_f32_bits_to_bf16(cases[i].f32), cases[i].bf16);
    }
    for (uint32_t u = 0; u < 65536; u++) {
        uint16_t h = (uint16_t)u;
        bool nan16 = (h & 0x7fff) > 0x7c00;
        uint16_t quiet = (uint16_t)(nan16 ? h | 0x200u : h);
        assert_int_equal(qf_f32_bits_to_f16(qf_f16_to_f32_bits(h)), quiet);
        bool nanb = (h & 0x7fff) > 0x7f80;
        assert_int_equal(qf_f32_bits_to_bf16(qf_bf16_to_f32_bits(h)),
                         nanb ? 0x7fc0 : h);
    }
}

/* Against the nearest value, away from ties. */
static void test_nested(void **state)
{
    (void)state;
    for (int i = 0; i < 256; i++)
        assert_int_equal(qf_nested_code(qf_f32_of_bits(qf_dynamic_values[i])), i);
    for (int i = 0; i < 255; i++) {
        float a = qf_f32_of_bits(qf_dynamic_values[i]);
        float b = qf_f32_of_bits(qf_dynamic_values[i + 1]);
        assert_int_equal(qf_nested_code(a + (b - a) * 0.49f), i);
        assert_int_equal(qf_nested_code(a + (b - a) * 0.51f), i + 1);
        float middle = (a + b) * 0.5f; /* the even one */
        assert_int_equal(qf_nested_code(middle), i + i % 2);
    }
    assert_int_equal(qf_nested_code(NAN), 0);
    assert_int_equal(qf_nested_code(INFINITY), 255);
    assert_int_equal(qf_nested_code(-INFINITY), 0);
}

static void test_mean(void **state)
{
    (void)state;
    float x[9] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    assert_true(k->mean(x, 9) == 5);
    assert_true(isnan(k->mean(x, 0)));
    /* binary64: 2^30 + 1 is exact, in binary32 the ones would be lost. */
    float big[4] = {0x1p30f, 1, 1, -0x1p30f};
    assert_true(k->mean(big, 4) == 0.5f);
}

static void test_choice(void **state)
{
    (void)state;
    enum qf_isa best = qf_isa_detect();
    unsetenv("QUANTFS_ISA");
    assert_ptr_equal(qf_kernels_best(), qf_kernels_for(best));
    for (int i = 0; i < QF_ISA_COUNT; i++) {
        setenv("QUANTFS_ISA", qf_isa_name((enum qf_isa)i), 1);
        enum qf_isa want = (enum qf_isa)i < best ? (enum qf_isa)i : best;
        assert_ptr_equal(qf_kernels_best(), qf_kernels_for(want));
        assert_string_equal(qf_kernels_best()->name, qf_isa_name(want));
    }
    setenv("QUANTFS_ISA", "nonsense", 1);
    assert_ptr_equal(qf_kernels_best(), qf_kernels_for(best));
    unsetenv("QUANTFS_ISA");
    for (int i = 0; i <= (int)best; i++) {
        const struct qf_kernels *t = qf_kernels_for((enum qf_isa)i);
        assert_true(t->nested != NULL && t->mean != NULL);
        for (int d = 0; d < QF_FLOAT_COUNT; d++) {
            assert_true(t->nf4[d] != NULL && t->fp4[d] != NULL && t->int8[d] != NULL);
            assert_non_null(t->row_absmax[d]);
            for (int to = 0; to < QF_FLOAT_COUNT; to++)
                assert_non_null(t->cast[d][to]);
        }
    }
}

static bool stop_after(void *arg)
{
    unsigned *left = arg;
    return (*left)-- == 0;
}

/* What a group of one codec becomes: its stored scale (widened) and up to 8 codes. */
static void scaled_group(enum qf_codec codec, enum qf_dtype dtype, const float *x,
                         size_t n, float *scale, uint8_t *codes)
{
    struct qf_codec_spec spec = qf_codec_default(codec, dtype);
    uint32_t src[8], stored = 0;
    float absmax = 0, factor;
    k->cast[QF_F32][dtype](x, n, src);
    k->group_absmax[dtype](src, n, n, &absmax);
    qf_scale_store(&spec, &absmax, 1, &stored);
    qf_scale_factors(&spec, &absmax, 1, &factor);
    bool narrow = qf_codec_info(codec)->family == QF_FAMILY_COMPRESSED_TENSORS;
    k->cast[narrow ? dtype : QF_F32][QF_F32](&stored, 1, scale);
    k->scaled[qf_codec_info(codec)->scaled][dtype](src, n, n, &factor, codes);
}

static void check_group(enum qf_codec codec, enum qf_dtype dtype, const float x[8],
                        float want, const uint8_t want_codes[8])
{
    float scale;
    uint8_t codes[8] = {0};
    scaled_group(codec, dtype, x, 8, &scale, codes);
    assert_true(scale == want);
    assert_memory_equal(codes, want_codes, sizeof codes); /* 4 bits: and zeros */
}

static void test_scaled(void **state)
{
    (void)state;
    const float x[8] = {-127.5f, 1.5f, 2.5f, -0.0f, 0, -0.5f, 0.75f, 127.5f};
    const uint8_t i8[8] = {0x80, 2, 2, 0, 0, 0, 1, 0x7f};
    const uint8_t packed[8] = {0, 0x82, 0x82, 0x80, 0x80, 0x80, 0x81, 0xff};
    check_group(QF_CODEC_AO_INT8WO, QF_F32, x, 1, i8);
    check_group(QF_CODEC_CT_W8A8, QF_BF16, x, 1, i8);
    check_group(QF_CODEC_CT_W8A16, QF_F16, x, 1, packed);
    const float y[8] = {-7.5f, 1.5f, 2.5f, 7.5f, 0, -0.5f, -1.5f, 0.75f};
    const uint8_t i4[8] = {0xa0, 0xfa, 0x88, 0x96};
    check_group(QF_CODEC_CT_W4A16, QF_F32, y, 1, i4);
    /* Halves of the last place of 1, of the smallest normal and of a denormal. */
    const float f[8] = {448,       1.0625f,   1.1875f,    -0x1p-9f,
                        -0x1p-10f, 0x1.8p-9f, 0x1.9p-10f, 0x1.fp-7f};
    const uint8_t e4m3[8] = {0x7e, 0x38, 0x3a, 0x81, 0x80, 0x02, 0x01, 0x08};
    check_group(QF_CODEC_AO_FLOAT8WO, QF_F32, f, 1, e4m3);
    check_group(QF_CODEC_CT_FP8, QF_BF16, f, 1, e4m3);
    check_group(QF_CODEC_FP8, QF_F32, f, 1, e4m3);
    const float g[8] = {-57344,   1.125f,     1.375f,     0x1p-17f,
                        0x1p-16f, 0x1.8p-16f, 0x1.9p-17f, -0x1.fp-15f};
    const uint8_t e5m2[8] = {0xfb, 0x3c, 0x3e, 0, 1, 2, 1, 0x84};
    check_group(QF_CODEC_AO_FLOAT8WO_E5M2, QF_F32, g, 1, e5m2);
}

/* What the libraries leave to chance: see quant/scales.h. */
static void test_scaled_specials(void **state)
{
    (void)state;
    static const uint8_t zeros[8], middle[8] = {128, 128, 128, 128, 128, 128, 128, 128};
    static const float zero[8];
    check_group(QF_CODEC_AO_INT8WO, QF_BF16, zero, 0x1p-23f, zeros);
    check_group(QF_CODEC_AO_FLOAT8WO, QF_BF16, zero, 1, zeros);
    check_group(QF_CODEC_FP8, QF_BF16, zero, 1, zeros);
    check_group(QF_CODEC_CT_FP8, QF_F16, zero, 0x1p-10f, zeros);
    check_group(QF_CODEC_CT_W8A8, QF_F32, zero, 0x1p-23f, zeros);
    check_group(QF_CODEC_CT_W8A16, QF_BF16, zero, 0x1p-7f, middle);
    const float odd[8] = {NAN, INFINITY, -INFINITY, 1, -1, 0, -0.0f, -NAN};
    const uint8_t floats[8] = {0x7f, 0x7f, 0xff, 0, 0x80, 0, 0x80, 0xff};
    check_group(QF_CODEC_AO_FLOAT8WO, QF_F32, odd, INFINITY, floats);
    check_group(QF_CODEC_CT_FP8, QF_F16, odd, INFINITY, floats);
    check_group(QF_CODEC_FP8, QF_F32, odd, INFINITY, floats);
    check_group(QF_CODEC_AO_INT8WO, QF_F32, odd, INFINITY, zeros);
    check_group(QF_CODEC_CT_W8A8, QF_F16, odd, INFINITY, zeros);
    /* NaN is no part of the absmax. */
    const float nan[8] = {NAN, 448, 1, NAN, -448, 0, 0, 0};
    const uint8_t rest[8] = {0x7f, 0x7e, 0x38, 0x7f, 0xfe, 0, 0, 0};
    check_group(QF_CODEC_AO_FLOAT8WO, QF_F32, nan, 1, rest);
    /* Scales that are no number of fp16, factors that are none of binary32. */
    const float tiny[8] = {0x1p-20f, -0x1p-24f};
    const uint8_t signs[8] = {0, 0x80};
    check_group(QF_CODEC_AO_FLOAT8WO, QF_F16, tiny, 1, signs);
    const float denormal[8] = {0x1p-140f, -0x1p-149f};
    check_group(QF_CODEC_FP8, QF_F32, denormal, 1, signs);
}

/* That everything is measured, not how fast it is. */
static void test_measure(void **state)
{
    (void)state;
    struct qf_measure_row rows[QF_MEASURE_ROWS_MAX];
    size_t count = 0, isas = (size_t)qf_isa_detect() + 1;
    struct qf_measure_options o = {.size = QF_MEASURE_SIZE_MIN, .passes = 1};
    for (int casts = 0; casts < 2; casts++) {
        o.casts = o.others = casts != 0;
        for (int d = 0; d < QF_FLOAT_COUNT; d++) {
            size_t others =
                casts == 0 ? 0 : (d == QF_F32 ? 2 : 1) + 3 + QF_SCALED_COUNT - 1;
            assert_int_equal(qf_measure_kernels(&o, (enum qf_dtype)d, rows, &count), 0);
            assert_int_equal(count, 1 + isas * (4 + others));
            assert_int_equal(rows[0].what, QF_MEASURE_MEMCPY);
            assert_null(rows[0].isa);
            assert_string_equal(rows[1].isa, qf_isa_name(qf_isa_detect()));
            for (size_t i = 0; i < count; i++)
                assert_true(rows[i].rate > 0 && rows[i].memcpy_ratio > 0);
        }
    }
    unsigned left = 3;
    o.stop = stop_after;
    o.arg = &left;
    assert_int_equal(qf_measure_kernels(&o, QF_BF16, rows, &count), -EINTR);
    o.stop = NULL;
    o.size = QF_MEASURE_SIZE_MIN - 1;
    assert_int_equal(qf_measure_kernels(&o, QF_BF16, rows, &count), -EINVAL);
    o.size = QF_MEASURE_SIZE_MIN;
    o.passes = 0;
    assert_int_equal(qf_measure_kernels(&o, QF_BF16, rows, &count), -EINVAL);
    o.passes = QF_MEASURE_PASSES_MAX + 1;
    assert_int_equal(qf_measure_kernels(&o, QF_BF16, rows, &count), -EINVAL);
    assert_string_equal(qf_measured_name(QF_MEASURE_CASTS + QF_BF16), "to BF16");
    assert_string_equal(qf_measured_name(QF_MEASURE_INT8), "int8");
    assert_string_equal(qf_measured_name(QF_MEASURE_SCALED), "ao-int8wo");
    assert_string_equal(qf_measured_name(QF_MEASURE_CASTS - 1), "fp8");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_scaled),       cmocka_unit_test(test_scaled_specials),
        cmocka_unit_test(test_nf4_codes),    cmocka_unit_test(test_fp4_codes),
        cmocka_unit_test(test_4bit_special), cmocka_unit_test(test_4bit_blocks),
        cmocka_unit_test(test_int8),         cmocka_unit_test(test_half),
        cmocka_unit_test(test_nested),       cmocka_unit_test(test_mean),
        cmocka_unit_test(test_choice),       cmocka_unit_test(test_measure),
    };
    k = qf_kernels_for(QF_ISA_SCALAR);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
