/* SPDX-License-Identifier: Apache-2.0 */
/* Sums, what is told of them where nothing defines it, shares of codes, and the way
 * back from codes. That all instruction sets give the same is for tests/kernels. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "compare/errors.h"
#include "quant/dequant.h"
#include "quant/half.h"
#include "quant/qstate.h"
#include "quant/tables.h"

static struct qf_errors measure(const float *x, const float *y, size_t n)
{
    struct qf_error_lanes lanes = {0};
    qf_kernels_best()->errors(x, y, n, &lanes);
    return qf_errors_of_lanes(&lanes, n);
}

static void near(double got, double want)
{
    assert_true(fabs(got - want) <= 1e-12 * fabs(want));
}

static void test_sums(void **state)
{
    (void)state;
    float x[21], y[21];
    double error = 0, xx = 0, yy = 0, xy = 0, largest = 0;
    for (int i = 0; i < 21; i++) {
        x[i] = 0.25f * (float)(i - 7);
        y[i] = x[i] + (i % 3 == 0 ? 0.125f : -0.0625f);
        double d = (double)x[i] - (double)y[i];
        error += d * d;
        xx += (double)x[i] * (double)x[i];
        yy += (double)y[i] * (double)y[i];
        xy += (double)x[i] * (double)y[i];
        largest = fmax(largest, fabs(d));
    }
    struct qf_errors e = measure(x, y, 21);
    assert_int_equal(e.count, 21);
    near(qf_errors_mse(&e), error / 21);
    near(qf_errors_sqnr_db(&e), 10 * log10(xx / error));
    near(qf_errors_cosine(&e), xy / sqrt(xx * yy));
    assert_true(e.max_abs == largest);
    struct qf_errors twice = e;
    qf_errors_add(&twice, &e);
    assert_int_equal(twice.count, 42);
    near(qf_errors_mse(&twice), qf_errors_mse(&e));
}

/* What is not finite is counted and in no sum, wherever it stands. */
static void test_not_finite(void **state)
{
    (void)state;
    const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t n = 1; n < 40; n++) {
        for (size_t at = 0; at < n; at++) {
            float x[40], y[40];
            for (size_t i = 0; i < n; i++) {
                x[i] = 2;
                y[i] = 1;
            }
            x[at] = bad[at % 3];
            y[(at + 1) % n] = bad[n % 3];
            struct qf_errors e = measure(x, y, n);
            size_t lost = n == 1 ? 0 : 1; /* with one element both are the same pair */
            assert_int_equal(e.source_not_finite, 1);
            assert_int_equal(e.view_not_finite, lost);
            assert_int_equal(e.count, n - 1 - lost);
            assert_true(e.error == (double)e.count && e.xx == 4 * (double)e.count);
            assert_true(e.max_abs == (e.count != 0 ? 1 : 0));
        }
    }
}

static void test_undefined(void **state)
{
    (void)state;
    struct qf_errors none = {0};
    assert_true(isnan(qf_errors_mse(&none)));
    assert_true(isnan(qf_errors_sqnr_db(&none)));
    assert_true(isnan(qf_errors_cosine(&none)));
    const float zero[4] = {0}, one[4] = {1, 1, 1, 1};
    struct qf_errors e = measure(zero, zero, 4);
    assert_true(qf_errors_mse(&e) == 0 && isinf(qf_errors_sqnr_db(&e)));
    assert_true(isnan(qf_errors_cosine(&e)));
    e = measure(zero, one, 4); /* noise without a signal */
    assert_true(qf_errors_sqnr_db(&e) == -INFINITY);
    e = measure(one, one, 4);
    assert_true(qf_errors_sqnr_db(&e) == INFINITY && qf_errors_cosine(&e) == 1);
    /* The largest values of binary32 do not overflow. */
    const float huge[2] = {3.4e38f, -3.4e38f}, other[2] = {-3.4e38f, 3.4e38f};
    e = measure(huge, other, 2);
    assert_true(isfinite(qf_errors_mse(&e)) && qf_errors_cosine(&e) == -1);
}

static void test_codes_differing(void **state)
{
    (void)state;
    uint8_t a[64], b[64];
    for (size_t i = 0; i < sizeof a; i++)
        a[i] = (uint8_t)(i * 37);
    for (size_t n = 0; n <= 2 * sizeof a; n++) {
        memcpy(b, a, sizeof b);
        assert_int_equal(qf_codes_differing(a, b, n), 0);
        size_t want = 0;
        for (size_t i = 0; i < 2 * sizeof a; i++) {
            unsigned change =
                i % 5 == 0 ? 0 : 1 + (unsigned)i % 15; /* each bit, alone and not */
            b[i / 2] ^= (uint8_t)(i % 2 == 0 ? change << 4 : change);
            want += i < n && change != 0;
        }
        assert_int_equal(qf_codes_differing(a, b, n), want);
    }
}

static void test_nested(void **state)
{
    (void)state;
    uint8_t codes[600];
    float nested_absmax[3] = {0.5f, 2, 0}, absmax[600];
    for (size_t i = 0; i < 600; i++)
        codes[i] = (uint8_t)i;
    qf_dequant_nested(codes, 600, nested_absmax, 0.75f, absmax);
    for (size_t i = 0; i < 600; i++) {
        float value = qf_f32_of_bits(qf_dynamic_values[i % 256]);
        float scaled = value * nested_absmax[i / 256];
        assert_true(absmax[i] == scaled + 0.75f);
    }
}

static void test_nested_offset(void **state)
{
    (void)state;
    const float offsets[] = {0,     0.0519735366f,  1e-30f,  -0.25f,
                             1e38f, 0x1.fffffep-3f, INFINITY};
    struct qf_codec_spec spec = qf_codec_default(QF_CODEC_DQ, QF_BF16);
    char text[300];
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
        qf_qstate_write(&spec, 4096, 4096, offsets[i], text, sizeof text);
        assert_true(qf_qstate_nested_offset(text, sizeof text) == offsets[i]);
    }
    qf_qstate_write(&spec, 4096, 4096, NAN, text, sizeof text);
    assert_true(isnan(qf_qstate_nested_offset(text, sizeof text)));
    spec = qf_codec_default(QF_CODEC_NF4, QF_BF16);
    qf_qstate_write(&spec, 4, 4, 1, text, sizeof text);
    assert_true(isnan(qf_qstate_nested_offset(text, sizeof text)));
}

/* Every code of every scaled codec stands for a number that is quantized to it. */
static void test_values_of_scaled(void **state)
{
    (void)state;
    for (int i = QF_SCALED_NONE + 1; i < QF_SCALED_COUNT; i++) {
        enum qf_scaled scaled = (enum qf_scaled)i;
        bool nibbles = scaled == QF_SCALED_I4_PACKED;
        float values[256], x[2];
        const float one = 1;
        qf_dequant_values(scaled, values);
        for (unsigned code = 0; code < (nibbles ? 16 : 256); code++) {
            uint8_t codes[2] = {(uint8_t)(nibbles ? code | 9 << 4 : code), 0},
                    again = 0;
            qf_dequant_scaled(scaled, values, codes, 0, 1, 1, x);
            if (!isfinite(x[0])) /* E4M3: 0x7f; E5M2: from 0x7c on */
                continue;
            x[1] = 1;
            qf_kernels_best()->scaled[scaled][QF_F32](x, nibbles ? 2 : 1, 2, &one,
                                                      &again);
            assert_int_equal(again, codes[0]);
        }
    }
    float values[256], x[3];
    qf_dequant_values(QF_SCALED_F8_E4M3, values);
    assert_true(values[0x7e] == 448 && values[0x08] == 0x1p-6f && values[1] == 0x1p-9f);
    assert_true(isnan(values[0x7f]) && isnan(values[0xff]) && values[0x81] == -0x1p-9f);
    qf_dequant_values(QF_SCALED_F8_E5M2, values);
    assert_true(values[0x7b] == 57344 && values[1] == 0x1p-16f && isinf(values[0xfc]));
    qf_dequant_values(QF_SCALED_I4_PACKED, values);
    const uint8_t packed[2] = {0x0f, 0x80};
    qf_dequant_scaled(QF_SCALED_I4_PACKED, values, packed, 1, 3, 0.5f, x);
    assert_true(x[0] == -4 && x[1] == -4 && x[2] == 0);
}

static void test_bytes_differing(void **state)
{
    (void)state;
    const uint8_t a[5] = {1, 2, 3, 4, 5}, b[5] = {1, 3, 3, 0, 4};
    assert_int_equal(qf_bytes_differing(a, b, 5), 3);
    assert_int_equal(qf_bytes_differing(a, b, 3), 1);
    assert_int_equal(qf_bytes_differing(a, b, 0), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values_of_scaled),
        cmocka_unit_test(test_bytes_differing),
        cmocka_unit_test(test_sums),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_undefined),
        cmocka_unit_test(test_codes_differing),
        cmocka_unit_test(test_nested),
        cmocka_unit_test(test_nested_offset),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
