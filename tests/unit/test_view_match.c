/* SPDX-License-Identifier: Apache-2.0 */
/* Names of modules, globs of the table, and the three rules for skip entries. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "view/policy_internal.h"

static struct qf_path path_of(const char *text)
{
    return (struct qf_path){text, strlen(text)};
}

static void test_components(void **state)
{
    struct qf_path part;
    size_t pos = 0;
    (void)state;
    struct qf_path path = path_of("a..b");
    assert_true(qf_path_next(path, &pos, &part) && qf_path_is(part, "a"));
    assert_true(qf_path_next(path, &pos, &part) && qf_path_is(part, ""));
    assert_true(qf_path_next(path, &pos, &part) && qf_path_is(part, "b"));
    assert_false(qf_path_next(path, &pos, &part));
    pos = 0;
    assert_true(qf_path_next(path_of(""), &pos, &part) && qf_path_is(part, ""));
    assert_false(qf_path_next(path_of(""), &pos, &part));
    assert_true(qf_path_is(qf_path_last(path_of("a.b.")), ""));
    assert_true(qf_path_is(qf_path_last(path_of("ab")), "ab"));
}

static void test_weight_names(void **state)
{
    struct qf_path path;
    (void)state;
    assert_true(qf_path_of_weight("a.b.weight", &path) && qf_path_is(path, "a.b"));
    assert_true(qf_path_of_weight(".weight", &path) && qf_path_is(path, ""));
    assert_false(qf_path_of_weight("weight", &path));
    assert_false(qf_path_of_weight("a_weight", &path));
    assert_false(qf_path_of_weight("a.weight.absmax", &path));
}

static void test_order_is_that_of_bytes(void **state)
{
    (void)state;
    assert_true(qf_path_compare(path_of("a"), path_of("a.b")) < 0);
    assert_true(qf_path_compare(path_of("b"), path_of("a.b")) > 0);
    assert_true(qf_path_compare(path_of("a"), path_of("\xc3\xa4")) < 0);
    assert_int_equal(qf_path_compare(path_of("x"), path_of("x")), 0);
    assert_true(qf_path_compare(path_of(""), path_of("x")) < 0);
}

static void test_globs(void **state)
{
    static const struct {
        const char *pattern;
        const char *path;
        bool hit;
    } cases[] = {
        {"**.head", "head", true},
        {"**.head", "a.b.head", true},
        {"**.head", "a.xhead", false},
        {"**.head", "head.a", false},
        {"**.a.*.b", "a.0.b", true},
        {"**.a.*.b", "x.a.0.b", true},
        {"**.a.*.b", "a.0.1.b", false},
        {"**.a.*.b", "0.b", false},
        {"**.lm_head.*", "lm_head", false},
        {"**.lm_head.*", "lm_head.3", true},
        {"**.lm_head.*", "lm_head.", true},
        {"a.b", "a.b", true},
        {"a.b", "x.a.b", false},
        {"a.b", "b", false},
        {"*.b", "a.b", true},
        {"*.b", "b", false},
        {"*", "", true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (qf_path_glob(path_of(cases[i].path), cases[i].pattern) != cases[i].hit)
            fail_msg("%s on %s", cases[i].pattern, cases[i].path);
}

enum { V5 = 1, V4 = 2, VLLM = 4 };

static void test_skip_rules(void **state)
{
    static const struct {
        const char *entry;
        const char *path;
        int hits;
    } cases[] = {
        {"lm_head", "lm_head", V5 | V4 | VLLM},
        {"lm_head", "lm_head.dense", V5 | V4 | VLLM},
        {"lm_head", "model.lm_head", V5 | V4 | VLLM},
        {"lm_head", "model.lm_head.dense", V4 | VLLM},
        {"lm_head", "my_lm_head", V5},
        {"lm_head", "my_lm_head.dense", V4},
        {"lm_head", "lm_heads", 0},
        {"a.b", "a.b", V5 | V4 | VLLM},
        {"a.b", "a.b.c", V5 | V4 | VLLM},
        {"a.b", "x.a.b", V5},
        {"a.b", "x.a.b.c", V4},
        {"a.b", "axb", V5},
        {"a.b",
         "a\xc3\xa4"
         "b",
         V5},
        {"a.b", "a\nb", 0},
        {"a.b", "axbc", 0},
        {"score", "scorer", 0},
        {"score", "score\n", V5},
        {"score", "score\nx", 0},
        {"a.", "a.b", V5},
        {"layers.*", "layers.0.fc", V5},
        {"layers.*", "layersX", V5},
        {"layers.*", "x.layers.0", 0},
        {"layers.*", "layers\nx", 0},
        {"layers.*", "layers.0\nx", V5},
        {".experts", "experts", 0},
        {".experts", "mlp.experts", V5},
        {".experts", "mlp.experts.gate", V4},
        {".experts", "xexperts.gate", V5},
        {".*\\.experts", "mlp.experts.0", V5},
        {".*\\.experts", "a.experts.b.experts.0", V5},
        {".*\\.experts", "mlpxexperts", 0},
        {".*\\.experts", "mlp.expertsx", 0},
        {"a.*b.*c", "axbxcxc", V5},
        {"a.*b.*c", "axbxcx", 0},
        {"", "", V5 | V4 | VLLM},
        {"", "a", V5},
        {"", "a.b", V5 | V4},
        {"", ".b", V5 | V4 | VLLM},
        {"bb", "abbb.c", V4},
        {"bb", "abbb", V5},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_path path = path_of(cases[i].path);
        int hits = (qf_skip_v5(path, cases[i].entry) ? V5 : 0) |
                   (qf_skip_v4(path, cases[i].entry) ? V4 : 0) |
                   (qf_skip_vllm(path, cases[i].entry) ? VLLM : 0);
        if (hits != cases[i].hits)
            fail_msg("'%s' on '%s': %d, not %d", cases[i].entry, cases[i].path, hits,
                     cases[i].hits);
    }
}

static void test_paths_may_be_unended(void **state)
{
    (void)state;
    struct qf_path path = {"a.lm_head.weight", 9};
    assert_true(qf_skip_v5(path, "lm_head"));
    assert_true(qf_skip_v4(path, "lm_head"));
    assert_true(qf_skip_vllm(path, "lm_head"));
    path.size = 8;
    assert_false(qf_skip_v5(path, "lm_head"));
    assert_false(qf_skip_v4(path, "lm_head"));
    assert_false(qf_skip_vllm(path, "lm_head"));
}

static void test_plain_text(void **state)
{
    (void)state;
    assert_true(qf_skip_is_plain(path_of("model.layers.0-x_y z\xc3\xa4")));
    for (const char *c = "\\*+?[](){}|^$"; *c != '\0'; c++) {
        char text[] = {'a', *c, '\0'};
        assert_false(qf_skip_is_plain(path_of(text)));
    }
}

static void test_table(void **state)
{
    (void)state;
    for (int diffusers = 0; diffusers < 2; diffusers++) {
        size_t i = 0;
        const struct qf_arch *row;
        for (; (row = qf_arch_at(diffusers != 0, i)) != NULL; i++) {
            assert_ptr_equal(qf_arch_find(diffusers != 0, row->name), row);
            const struct qf_arch *next = qf_arch_at(diffusers != 0, i + 1);
            assert_true(next == NULL || strcmp(row->name, next->name) < 0);
        }
        assert_true(i > 20);
    }
    const struct qf_arch *none = qf_arch_find(false, "no such model");
    assert_null(none->never);
    assert_null(*qf_arch_items(none->heads, "X"));
    static const char *const own[] = {"own", NULL};
    static const char *const any[] = {"any", NULL};
    const struct qf_arch_list lists[] = {{"*", any}, {"A", own}, {NULL, NULL}};
    assert_ptr_equal(qf_arch_items(lists, "A"), own);
    assert_ptr_equal(qf_arch_items(lists, "B"), any);
    assert_null(*qf_arch_items(lists + 1, "B"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_components),
        cmocka_unit_test(test_weight_names),
        cmocka_unit_test(test_order_is_that_of_bytes),
        cmocka_unit_test(test_globs),
        cmocka_unit_test(test_skip_rules),
        cmocka_unit_test(test_paths_may_be_unended),
        cmocka_unit_test(test_plain_text),
        cmocka_unit_test(test_table),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
