/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ckpt/index.h"

static void test_ordinary(void **state)
{
    (void)state;
    static const char text[] =
        "{\"metadata\":{\"total_size\":12},\"weight_map\":{\"b\":\"m-2.safetensors\","
        "\"a\":\"m-1.safetensors\",\"c\":\"m-2.safetensors\"}}";
    struct qf_index index;
    assert_int_equal(qf_index_parse(text, strlen(text), &index, NULL), 0);
    assert_int_equal(index.shard_count, 2);
    assert_string_equal(index.shards[0], "m-1.safetensors");
    assert_string_equal(index.shards[1], "m-2.safetensors");
    assert_int_equal(index.entry_count, 3);
    static const char *const tensors[] = {"a", "b", "c"};
    static const size_t shards[] = {0, 1, 1};
    for (size_t i = 0; i < 3; i++) {
        assert_string_equal(index.entries[i].tensor, tensors[i]);
        assert_int_equal(index.entries[i].shard, shards[i]);
    }
    const qf_json *metadata = qf_json_get(index.doc, "metadata");
    assert_true(qf_json_number(qf_json_get(metadata, "total_size")) == 12);
    qf_index_fini(&index);
    qf_index_fini(&index);
}

/* Of equal names the last one counts: the first one's shard is not wanted. */
static void test_duplicates(void **state)
{
    (void)state;
    static const char text[] =
        "{\"weight_map\":{\"a\":\"/bad\",\"b\":\"y\",\"a\":\"x\"}}";
    struct qf_index index;
    assert_int_equal(qf_index_parse(text, strlen(text), &index, NULL), 0);
    assert_int_equal(index.shard_count, 2);
    assert_string_equal(index.shards[index.entries[0].shard], "x");
    assert_int_equal(index.entry_count, 2);
    qf_index_fini(&index);
}

static void test_empty(void **state)
{
    (void)state;
    static const char text[] = "{\"weight_map\":{}}";
    struct qf_index index;
    assert_int_equal(qf_index_parse(text, strlen(text), &index, NULL), 0);
    assert_int_equal(index.shard_count, 0);
    assert_int_equal(index.entry_count, 0);
    qf_index_fini(&index);
}

static void test_refuses(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        const char *says;
    } cases[] = {{"", "not JSON"},
                 {"{\"weight_map\":{}", "not JSON"},
                 {"[]", "no object \"weight_map\""},
                 {"{}", "no object \"weight_map\""},
                 {"{\"weight_map\":[]}", "no object \"weight_map\""},
                 {"{\"weight_map\":{\"a\":1}}", "the shard of 'a' is not a string"},
                 {"{\"weight_map\":{\"a\":null}}", "the shard of 'a' is not a string"},
                 {"{\"weight_map\":{\"a\":\"\"}}", "'' is not the name of a file"},
                 {"{\"weight_map\":{\"a\":\".\"}}", "'.' is not"},
                 {"{\"weight_map\":{\"a\":\"..\"}}", "'..' is not"},
                 {"{\"weight_map\":{\"a\":\"../x\"}}", "'../x' is not"},
                 {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "'/etc/passwd' is not"},
                 {"{\"weight_map\":{\"a\":\"x\\u002fy\"}}", "'x/y' is not"}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct qf_index index;
        struct qf_err err = {.text = ""};
        assert_int_equal(qf_index_parse(cases[i].text, strlen(cases[i].text), &index,
                                        &err),
                         -EBADMSG);
        if (strstr(err.text, cases[i].says) == NULL)
            fail_msg("%s: %s", cases[i].text, err.text);
        assert_null(index.doc);
        assert_int_equal(index.shard_count, 0);
    }
}

static void test_many(void **state)
{
    (void)state;
    enum { MANY = 100000 };
    struct qf_buf text = {0};
    struct qf_index index;
    qf_buf_append_str(&text, "{\"weight_map\":{\"t\":\"s\"");
    for (int i = 0; i < MANY; i++)
        qf_buf_appendf(&text, ",\"t%06d\":\"s%03d\"", i, i % 500);
    qf_buf_append_str(&text, "}}");
    assert_int_equal(qf_index_parse(text.data, text.size, &index, NULL), 0);
    assert_int_equal(index.shard_count, 501);
    assert_int_equal(index.entry_count, MANY + 1);
    char name[8];
    for (size_t i = 1; i <= MANY; i++) {
        snprintf(name, sizeof name, "s%03d", (int)((i - 1) % 500));
        assert_string_equal(index.shards[index.entries[i].shard], name);
    }
    qf_index_fini(&index);
    qf_buf_fini(&text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ordinary),
                                       cmocka_unit_test(test_duplicates),
                                       cmocka_unit_test(test_empty),
                                       cmocka_unit_test(test_refuses),
                                       cmocka_unit_test(test_many)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
