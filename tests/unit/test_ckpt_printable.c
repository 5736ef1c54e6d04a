/* SPDX-License-Identifier: Apache-2.0 */
/* Names from outside in sentences. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <string.h>

#include "ckpt/printable.h"

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
    } cases[] = {
        {"", ""},
        {"model.layers.0.weight", "model.layers.0.weight"},
        {"\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80",
         "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80"},
        {"a\x1b[31mb\nc\x7f", "a?[31mb?c?"},
        {"a\xc2\x9b"
         "31m",
         "a?31m"},
        {"\xc2\xa0", "\xc2\xa0"}, /* the first past C1 */
        {"\xff\xc3", "??"},
        {"\xed\xb3\xbf\xc0\xaf", "?????"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_string_equal(qf_printable(cases[i].name).text, cases[i].text);
}

/* Cut between characters, not within one. */
static void test_cut(void **state)
{
    (void)state;
    char name[400];
    const size_t most = sizeof(struct qf_printable) - 1;
    memset(name, 'x', sizeof name);
    name[most - 3] = '\0';
    assert_string_equal(qf_printable(name).text, name);
    name[most - 3] = 'x';
    name[most + 1] = '\0';
    struct qf_printable cut = qf_printable(name);
    assert_int_equal(strlen(cut.text), most);
    assert_string_equal(cut.text + most - 3, "...");
    memcpy(name + most - 4, "\xe2\x82\xac", 3);
    cut = qf_printable(name);
    assert_string_equal(cut.text + most - 5, "x...");
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_names),
                                       cmocka_unit_test(test_cut)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
