/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>

#include "base/path.h"

static void assert_owned(char *got, const char *want)
{
    assert_non_null(got);
    assert_string_equal(got, want);
    free(got);
}

static void test_join(void **state)
{
    (void)state;
    assert_owned(qf_path_join("a", "b"), "a/b");
    assert_owned(qf_path_join("a/b", "c/d"), "a/b/c/d");
    assert_owned(qf_path_join("", "b"), "b");
    assert_owned(qf_path_join("a", ""), "a");
    assert_owned(qf_path_join("", ""), "");
}

static void test_parts(void **state)
{
    (void)state;
    assert_owned(qf_path_parent("a/b/c"), "a/b");
    assert_owned(qf_path_parent("a"), "");
    assert_owned(qf_path_parent(""), "");
    assert_string_equal(qf_path_name("a/b/c"), "c");
    assert_string_equal(qf_path_name("a"), "a");
    assert_string_equal(qf_path_name(""), "");
}

static void test_ends_with(void **state)
{
    (void)state;
    assert_true(qf_path_ends_with("model.safetensors", ".safetensors"));
    assert_true(qf_path_ends_with(".safetensors", ".safetensors"));
    assert_true(qf_path_ends_with("a", ""));
    assert_false(qf_path_ends_with("safetensors", ".safetensors"));
    assert_false(qf_path_ends_with("model.safetensors.tmp", ".safetensors"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_ends_with),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
