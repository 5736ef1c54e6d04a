/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "view/names.h"

static void test_default_settings(void **state)
{
    static const char *const names[] = {"nf4", "fp4", "dq", "int8"};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        struct qf_view view;
        assert_int_equal(qf_view_parse(names[i], strlen(names[i]), &view, NULL), 0);
        assert_string_equal(view.name, names[i]);
        assert_string_equal(qf_codec_name(view.codec), names[i]);
        assert_int_equal(view.blocksize, 64);
        assert_int_equal(view.storage, QF_U8);
        assert_int_equal(view.dtype, QF_DTYPE_NONE);
        assert_int_equal(view.compute, QF_DTYPE_NONE);
        assert_true(view.int8_threshold == 6.0);
        struct qf_codec_spec spec = qf_view_spec(&view, QF_BF16);
        assert_int_equal(spec.codec, view.codec);
        assert_int_equal(spec.blocksize, 64);
        assert_int_equal(spec.dtype, QF_BF16);
        assert_int_equal(spec.storage, QF_U8);
    }
}

static void test_name_need_not_be_ended(void **state)
{
    struct qf_view view;
    (void)state;
    assert_int_equal(qf_view_parse("nf4/models", 3, &view, NULL), 0);
    assert_string_equal(view.name, "nf4");
}

static void test_unknown_names(void **state)
{
    static const char *const names[] = {"", "nf", "nf44", "NF4", "int8 "};
    (void)state;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct qf_view view;
        struct qf_err err = {""};
        assert_int_equal(qf_view_parse(names[i], strlen(names[i]), &view, &err),
                         -ENOENT);
        char quoted[64];
        snprintf(quoted, sizeof quoted, "'%s'", names[i]);
        assert_non_null(strstr(err.text, quoted));
        assert_non_null(strstr(err.text, "nf4:int8:dq:fp4"));
    }
}

static void test_odd_names(void **state)
{
    struct qf_view view;
    char longest[QF_VIEW_NAME_SIZE + 100];
    (void)state;
    memset(longest, 'x', sizeof longest);
    assert_int_equal(qf_view_parse("nf4\0x", 5, &view, NULL), -ENOENT);
    assert_int_equal(qf_view_parse(longest, QF_VIEW_NAME_SIZE - 1, &view, NULL),
                     -ENOENT);
    assert_int_equal(qf_view_parse(longest, QF_VIEW_NAME_SIZE, &view, NULL), -ENOENT);
    assert_int_equal(qf_view_parse(longest, sizeof longest, &view, NULL), -ENOENT);
}

static void test_lists(void **state)
{
    struct qf_view views[QF_VIEWS_MAX];
    size_t count = 0;
    (void)state;
    assert_int_equal(qf_view_parse_list("nf4:dq", views, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(views[0].name, "nf4");
    assert_string_equal(views[1].name, "dq");
    assert_int_equal(qf_view_parse_list(qf_view_default_list, views, &count, NULL), 0);
    assert_int_equal(count, 4);
}

static void test_bad_lists(void **state)
{
    static const struct {
        const char *list;
        const char *says;
    } cases[] = {{"", "empty"},          {"nf4:", "empty"},       {":nf4", "empty"},
                 {"nf4::dq", "empty"},   {"nf4:nf4", "twice"},    {"nf4:q4", "'q4'"},
                 {"nf4,dq", "'nf4,dq'"}, {"dq:nf4:dq", "'dq' is"}};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_view views[QF_VIEWS_MAX];
        size_t count = 77;
        struct qf_err err = {""};
        assert_int_equal(qf_view_parse_list(cases[i].list, views, &count, &err),
                         -EINVAL);
        assert_non_null(strstr(err.text, cases[i].says));
        assert_int_equal(count, 77);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_default_settings),
        cmocka_unit_test(test_name_need_not_be_ended),
        cmocka_unit_test(test_unknown_names),
        cmocka_unit_test(test_odd_names),
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_bad_lists),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
