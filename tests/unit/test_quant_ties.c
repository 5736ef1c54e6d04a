/* SPDX-License-Identifier: Apache-2.0 */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "quant/half.h"
#include "quant/kernels.h"
#include "quant/tables.h"
#include "quant/ties.h"

/* The code that the definition gives to y, in a block whose absmax is 1. */
static unsigned code_of(bool fp4, float y)
{
    const struct qf_kernels *k = qf_kernels_for(QF_ISA_SCALAR);
    float block[64] = {y, 1.0f}, absmax;
    uint8_t packed[32];
    (fp4 ? k->fp4 : k->nf4)[QF_F32](block, 64, 64, packed, &absmax);
    return packed[0] >> 4;
}

static unsigned taken(bool fp4, float y)
{
    unsigned count = 0;
    for (unsigned code = 0; code < 16; code++)
        count += qf_tie_4bit(fp4, y, code);
    return count;
}

static float up(float x, int steps)
{
    for (; steps > 0; steps--)
        x = nextafterf(x, INFINITY);
    for (; steps < 0; steps++)
        x = nextafterf(x, -INFINITY);
    return x;
}

static void test_ulps(void **state)
{
    (void)state;
    assert_true(qf_within_ulps(1.0f, up(1.0f, 2), 2));
    assert_false(qf_within_ulps(1.0f, up(1.0f, 3), 2));
    assert_true(qf_within_ulps(up(0, 1), up(0, -1), 2)); /* across zero */
    assert_true(qf_within_ulps(0.0f, -0.0f, 0));
    assert_true(qf_within_ulps(NAN, NAN, 0));
    assert_false(qf_within_ulps(NAN, 1.0f, 2));
}

/* Its own code always; another one at a threshold only, and just the neighbour. */
static void test_thresholds(void **state)
{
    (void)state;
    for (int i = 0; i < 15; i++) {
        float t = qf_f32_of_bits(qf_nf4_thresholds[i]);
        for (int d = -1; d <= 2; d++) { /* a value on it lies below */
            assert_int_equal(taken(false, up(t, d)), 2);
            assert_true(qf_tie_4bit(false, up(t, d), (unsigned)i));
            assert_true(qf_tie_4bit(false, up(t, d), (unsigned)i + 1));
        }
        assert_int_equal(taken(false, up(t, -3)), 1);
        assert_int_equal(taken(false, up(t, 3)), 1);
        assert_true(qf_tie_4bit(false, up(t, 3), code_of(false, up(t, 3))));
    }
    for (int i = 0; i < 7; i++)
        for (int sign = -1; sign <= 1; sign += 2) {
            float t = (float)sign * qf_f32_of_bits(qf_fp4_thresholds[i]);
            assert_int_equal(taken(true, t), 2);
            assert_int_equal(taken(true, up(t, 3)), 1);
            assert_int_equal(taken(true, up(t, -3)), 1);
            assert_true(qf_tie_4bit(true, t, code_of(true, t)));
        }
    assert_int_equal(taken(true, 0.0f), 1);
    assert_int_equal(taken(false, NAN), 0);
}

static void test_int8(void **state)
{
    (void)state;
    assert_true(qf_tie_int8(0.5f, 0) && qf_tie_int8(0.5f, 1));
    assert_true(qf_tie_int8(-2.5f, -2) && qf_tie_int8(-2.5f, -3));
    assert_true(qf_tie_int8(up(0.5f, 2), 0) && !qf_tie_int8(up(0.5f, 3), 0));
    assert_true(qf_tie_int8(3.25f, 3) && !qf_tie_int8(3.25f, 4));
    assert_false(qf_tie_int8(NAN, 0));
}

/* The CPU's rule is the nearest value: the definition's, but at midpoints, and for
 * fp4's second zero. */
static void test_cpu_codes(void **state)
{
    (void)state;
    for (int fp4 = 0; fp4 < 2; fp4++)
        for (int i = -1000; i <= 1000; i++) {
            float y = (float)i / 1000;
            unsigned cpu = qf_cpu_code_4bit(fp4 != 0, y), own = code_of(fp4 != 0, y);
            if (fp4 != 0 && own % 8 == 0 && fabsf(y) < 0.0026f)
                assert_int_equal(cpu, y > 0 ? 8 : 0);
            else if (!qf_tie_4bit(fp4 != 0, y, cpu))
                fail_msg("%s %g: %u, not %u", fp4 ? "fp4" : "nf4", (double)y, cpu, own);
        }
    assert_int_equal(qf_cpu_code_4bit(false, NAN), 15);
    assert_int_equal(qf_cpu_code_4bit(true, NAN), 3);
}

/* Codes of one step of the table, and no others. */
static void test_cpu_nested(void **state)
{
    (void)state;
    for (int i = -972; i <= 972; i += 3) {
        float u = (float)i / 1000;
        unsigned count = 0, code = 0;
        for (unsigned c = 0; c < 256; c++)
            if (qf_tie_cpu_nested(u, 1.0f, c)) {
                count++;
                code = c;
            }
        assert_in_range(count, 1, 2);
        assert_in_range(code, 1, 254);
        float low = qf_f32_of_bits(qf_dynamic_values[code - 1]);
        float high = qf_f32_of_bits(qf_dynamic_values[code + 1]);
        assert_true(u > low - 1.0f / 32768 && u < high + 1.0f / 32768);
    }
    assert_true(qf_tie_cpu_nested(0.0f, 0.0f, 0));
    assert_false(qf_tie_cpu_nested(0.0f, 0.0f, 1));
    assert_false(qf_tie_cpu_nested(NAN, 1.0f, 0));
}

int main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ulps),       cmocka_unit_test(test_thresholds),
        cmocka_unit_test(test_int8),       cmocka_unit_test(test_cpu_codes),
        cmocka_unit_test(test_cpu_nested),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
