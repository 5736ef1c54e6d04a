/* SPDX-License-Identifier: Apache-2.0 */
/* Every allocation of layout and synth fails once: -ENOMEM each time, and nothing
 * leaks. The sources are compiled here again, with an allocator that can be told to
 * fail. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/failing_heap.h"

#include "base/buf.c"
#include "view/layout.c"
#include "view/synth.c"
#include "view/synth_index.c"
#undef malloc
#undef calloc
#undef realloc

static const uint64_t square[] = {8, 8};
static const struct qf_tensor tensors[] = {
    {"a.weight", QF_BF16, 2, square, 0, 128, NULL},
    {"b.weight", QF_BF16, 2, square, 128, 128, NULL},
    {"c.weight", QF_F32, 1, square, 256, 32, NULL}};
static const struct qf_shard shard_header = {.tensor_count = 3, .tensors = tensors};
static const struct qf_decision decisions[] = {{QF_REASON_QUANTIZED, QF_BF16, false},
                                               {QF_REASON_HEAD, QF_BF16, false},
                                               {QF_REASON_NOT_WEIGHT, QF_BF16, false}};

static struct qf_view dq(void)
{
    struct qf_view view;
    allocations_left = -1;
    assert_int_equal(qf_view_parse("dq", 2, &view, NULL), 0);
    return view;
}

static void test_layout(void **state)
{
    struct qf_view view = dq();
    struct qf_layout *layout = NULL;
    long n = 0;
    (void)state;
    for (;; n++) {
        struct qf_err err = {""};
        allocations_left = n;
        int rc =
            qf_layout_build(&shard_header, decisions, &view, QF_BF16, &layout, &err);
        if (rc == 0)
            break;
        assert_int_equal(rc, -ENOMEM);
        assert_string_equal(err.text, "out of memory");
        assert_null(layout);
    }
    assert_true(n > 6);
    assert_int_equal(layout->span_count, 9);
    qf_layout_free(layout);
}

static void test_index(void **state)
{
    static char names[][20] = {"m.safetensors", "m.index.json"};
    static char text[] = "{\"metadata\":{\"a\":1}}";
    struct qf_view view = dq();
    struct qf_shard header = shard_header;
    struct qf_model_shard shard = {.name = names[0], .header = &header};
    struct qf_weight_set set = {.index_name = names[1],
                                .index_text = text,
                                .index_size = strlen(text),
                                .shard_count = 1,
                                .shards = &shard};
    struct qf_layout *layout;
    long n = 0;
    (void)state;
    assert_int_equal(qf_layout_build(&header, decisions, &view, QF_BF16, &layout, NULL),
                     0);
    for (;; n++) {
        const struct qf_layout *layouts[] = {layout};
        struct qf_err err = {""};
        struct qf_buf out = {0};
        allocations_left = n;
        int rc = qf_synth_index(&set, layouts, &out, &err);
        size_t size = out.size;
        qf_buf_fini(&out);
        if (rc == 0) {
            assert_true(size > 100);
            break;
        }
        assert_int_equal(rc, -ENOMEM);
        assert_string_equal(err.text, "out of memory");
    }
    assert_true(n > 8);
    qf_layout_free(layout);
}

static void test_config(void **state)
{
    static char text[] = "{\"text_config\":{\"model_type\":\"a\"}}";
    struct qf_view view = dq();
    struct qf_policy policy = {.dtype = QF_BF16};
    struct qf_model model = {.config_text = text, .config_size = strlen(text)};
    long n = 0;
    (void)state;
    model.config = qf_json_parse(text, strlen(text), NULL);
    assert_non_null(model.config);
    for (;; n++) {
        struct qf_err err = {""};
        struct qf_buf out = {0};
        allocations_left = n;
        int rc = qf_synth_config(&model, &view, &policy, &out, &err);
        bool failed = out.failed;
        size_t size = out.size;
        qf_buf_fini(&out);
        if (rc == 0 && !failed) {
            assert_true(size > 500);
            break;
        }
        assert_true(rc == 0 || rc == -ENOMEM);
        assert_true(rc == 0 || err.text[0] != '\0');
    }
    assert_true(n > 3);
    qf_json_free(model.config);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
