/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdlib.h>
#include <string.h>

#include "view/synth.h"

static struct qf_view view_of(const char *name)
{
    struct qf_view view;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    return view;
}

static char *skip_entries[] = {(char[]){"lm_head"}, (char[]){".*\\.experts"}};

static struct qf_policy policy_of(enum qf_dtype dtype, bool diffusers)
{
    return (struct qf_policy){.dtype = dtype,
                              .diffusers = diffusers,
                              .skip_count = 2,
                              .skip = skip_entries};
}

#define REST                                                                           \
    "\"llm_int8_enable_fp32_cpu_offload\": false, "                                    \
    "\"llm_int8_has_fp16_weight\": false, "                                            \
    "\"llm_int8_skip_modules\": [\"lm_head\", \".*\\\\.experts\"], "
#define NF4                                                                            \
    "{\"_load_in_4bit\": true, \"_load_in_8bit\": false, "                             \
    "\"bnb_4bit_compute_dtype\": \"bfloat16\", \"bnb_4bit_quant_storage\": "           \
    "\"uint8\", "                                                                      \
    "\"bnb_4bit_quant_type\": \"nf4\", \"bnb_4bit_use_double_quant\": false, " REST    \
    "\"llm_int8_threshold\": 6.0, \"load_in_4bit\": true, \"load_in_8bit\": false, "   \
    "\"quant_method\": \"bitsandbytes\"}"
#define INT8                                                                           \
    "{\"_load_in_4bit\": false, \"_load_in_8bit\": true, "                             \
    "\"bnb_4bit_compute_dtype\": \"float32\", \"bnb_4bit_quant_storage\": \"uint8\", " \
    "\"bnb_4bit_quant_type\": \"fp4\", \"bnb_4bit_use_double_quant\": false, " REST    \
    "\"llm_int8_threshold\": 0.1, \"load_in_4bit\": false, \"load_in_8bit\": true, "   \
    "\"quant_method\": \"bitsandbytes\"}"

static char *quantization(const struct qf_view *view, const struct qf_policy *policy)
{
    struct qf_buf buf = {0};
    qf_synth_quantization_config(view, policy, &buf);
    char *text = qf_buf_take(&buf, NULL);
    assert_non_null(text);
    return text;
}

static void test_quantization_config(void **state)
{
    struct qf_policy policy = policy_of(QF_BF16, false);
    struct qf_view view = view_of("nf4");
    (void)state;
    char *text = quantization(&view, &policy);
    assert_string_equal(text, NF4);
    free(text);
    view = view_of("int8");
    view.storage = QF_BF16; /* of 4-bit codes only */
    view.compute = QF_F16;
    view.int8_threshold = 0.1;
    text = quantization(&view, &policy);
    assert_string_equal(text, INT8);
    free(text);
    view = view_of("dq");
    view.storage = QF_BF16;
    view.compute = QF_F16;
    policy.skip_count = 0;
    text = quantization(&view, &policy);
    assert_non_null(strstr(text, "\"bnb_4bit_compute_dtype\": \"float16\""));
    assert_non_null(strstr(text, "\"bnb_4bit_quant_storage\": \"bfloat16\""));
    assert_non_null(strstr(text, "\"bnb_4bit_use_double_quant\": true"));
    assert_non_null(strstr(text, "\"llm_int8_skip_modules\": []"));
    free(text);
}

static void test_thresholds(void **state)
{
    static const struct {
        double value;
        const char *text;
    } cases[] = {{0.0, ": 0.0,"},   {100.0, ": 100.0,"},
                 {6.25, ": 6.25,"}, {1e20, ": 100000000000000000000.0,"},
                 {1e-30, "e-30,"},  {1e300, "e+300,"}};
    struct qf_policy policy = policy_of(QF_BF16, false);
    struct qf_view view = view_of("int8");
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        view.int8_threshold = cases[i].value;
        char *text = quantization(&view, &policy);
        const char *at = strstr(text, "\"llm_int8_threshold\"");
        assert_non_null(at);
        assert_non_null(strstr(at, cases[i].text));
        assert_true(strtod(at + strlen("\"llm_int8_threshold\": "), NULL) ==
                    cases[i].value);
        free(text);
    }
}

static int config(const char *text, bool diffusers, struct qf_buf *out,
                  struct qf_err *err)
{
    struct qf_policy policy = policy_of(QF_BF16, diffusers);
    struct qf_view view = view_of("nf4");
    char *copy = strdup(text);
    struct qf_model model = {.config_text = copy, .config_size = strlen(text)};
    model.config = qf_json_parse(text, strlen(text), NULL);
    int rc = qf_synth_config(&model, &view, &policy, out, err);
    qf_json_free(model.config);
    free(copy);
    return rc;
}

static void test_config(void **state)
{
    static const struct {
        const char *from;
        const char *to;
        bool diffusers;
    } cases[] = {
        {"{\n  \"a\": 1.0,\n  \"torch_dtype\": \"float32\"\n}\n",
         "{\n  \"a\": 1.0,\n  \"dtype\": \"bfloat16\",\n  \"quantization_config\": " NF4
         "\n}\n",
         false},
        {"{\n  \"_class_name\": \"X\",\n  \"b\": NaN\n}",
         "{\n  \"_class_name\": \"X\",\n  \"b\": NaN,\n  \"quantization_config\": " NF4
         "\n}",
         true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_buf out = {0};
        struct qf_err err = {""};
        if (config(cases[i].from, cases[i].diffusers, &out, &err) != 0)
            fail_msg("%s", err.text);
        char *text = qf_buf_take(&out, NULL);
        assert_string_equal(text, cases[i].to);
        free(text);
    }
}

static void test_nested_configs(void **state)
{
    static const char from[] =
        "{\"twice\":{\"model_type\":\"lost\"},"
        "\"text_config\":{\"model_type\":\"a\",\"torch_dtype\":\"float16\","
        "\"deep\":{\"model_type\":\"b\"}},"
        "\"plain\":{\"x\":1},\"model_type\":\"c\",\"list\":[{\"model_type\":\"d\"}],"
        "\"quantization_config\":{},\"twice\":{\"model_type\":\"kept\"}}";
    struct qf_buf out = {0};
    (void)state;
    assert_int_equal(config(from, false, &out, NULL), 0);
    char *text = qf_buf_take(&out, NULL);
    qf_json *doc = qf_json_parse(text, strlen(text), NULL);
    static const char *const changed[] = {"text_config", "twice"};
    for (size_t i = 0; i < 2; i++) {
        const qf_json *sub = qf_json_get(doc, changed[i]);
        assert_string_equal(qf_json_string(qf_json_get(sub, "dtype")), "bfloat16");
        assert_null(qf_json_get(sub, "torch_dtype"));
        assert_true(qf_json_is_object(qf_json_get(sub, "quantization_config")));
    }
    const qf_json *deep = qf_json_get(qf_json_get(doc, "text_config"), "deep");
    assert_null(qf_json_get(deep, "dtype"));
    assert_null(qf_json_get(qf_json_get(doc, "plain"), "dtype"));
    assert_null(qf_json_get(qf_json_get(doc, "quantization_config"), "dtype"));
    assert_non_null(strstr(text, "[{\"model_type\":\"d\"}]"));
    qf_json_free(doc);
    free(text);
}

static void test_config_that_is_no_object(void **state)
{
    struct qf_buf out = {0};
    struct qf_err err = {""};
    (void)state;
    assert_int_equal(config("[1]", false, &out, &err), -EBADMSG);
    assert_string_not_equal(err.text, "");
    qf_buf_fini(&out);
}

/* ---- index ---- */

static const uint64_t square[] = {8, 8};
static const struct qf_tensor first_tensors[] = {{"b.weight", QF_BF16, 2, square, 0,
                                                  128, NULL},
                                                 {"a.\"q\".bias", QF_BF16, 1, square,
                                                  128, 16, NULL}};
static const struct qf_tensor second_tensors[] = {
    {"B.x", QF_BF16, 1, square, 0, 16, NULL}};

struct fixture {
    struct qf_shard headers[2];
    struct qf_model_shard shards[2];
    struct qf_layout *layouts[2];
    struct qf_weight_set set;
};

static void open_fixture(struct fixture *f, const char *view_name, const char *index)
{
    static const struct qf_decision decisions[] = {
        {QF_REASON_QUANTIZED, QF_BF16, false}, {QF_REASON_NOT_WEIGHT, QF_BF16, false}};
    static char names[][20] = {"m-1.safetensors", "m-2.safetensors", "m.index.json"};
    struct qf_view view = view_of(view_name);
    *f = (struct fixture){0};
    f->headers[0] = (struct qf_shard){.tensor_count = 2, .tensors = first_tensors};
    f->headers[1] = (struct qf_shard){.tensor_count = 1, .tensors = second_tensors};
    for (size_t i = 0; i < 2; i++) {
        f->shards[i].header = &f->headers[i];
        f->shards[i].name = names[i];
        assert_int_equal(qf_layout_build(&f->headers[i], decisions + i, &view, QF_BF16,
                                         &f->layouts[i], NULL),
                         0);
    }
    f->set = (struct qf_weight_set){.index_name = names[2],
                                    .index_text = strdup(index),
                                    .index_size = strlen(index),
                                    .shard_count = 2,
                                    .shards = f->shards};
}

static void close_fixture(struct fixture *f)
{
    for (size_t i = 0; i < 2; i++)
        qf_layout_free(f->layouts[i]);
    free(f->set.index_text);
}

static int synth(struct fixture *f, struct qf_buf *out, struct qf_err *err)
{
    const struct qf_layout *layouts[] = {f->layouts[0], f->layouts[1]};
    return qf_synth_index(&f->set, layouts, out, err);
}

#define MAP                                                                            \
    "  \"weight_map\": {\n"                                                            \
    "    \"B.x\": \"m-2.safetensors\",\n"                                              \
    "    \"a.\\\"q\\\".bias\": \"m-1.safetensors\",\n"                                 \
    "    \"b.SCB\": \"m-1.safetensors\",\n"                                            \
    "    \"b.weight\": \"m-1.safetensors\",\n"                                         \
    "    \"b.weight_format\": \"m-1.safetensors\"\n"                                   \
    "  }\n}\n"
#define HEAD "{\n  \"metadata\": {\n    "

static void test_index(void **state)
{
    /* 64 codes, 32 of SCB, a tag, two biases of 16 */
    static const struct {
        const char *index;
        const char *expected;
    } cases[] = {
        {"{\"weight_map\":{}}", HEAD "\"total_size\": 129\n  },\n" MAP},
        {"{\"metadata\":{\"total_size\":1e9},\"weight_map\":{}}",
         HEAD "\"total_size\": 129\n  },\n" MAP},
        {"{\"metadata\":{\"a\":1.0,\"total_size\":7, \"b\":[1,\n {\"c\": NaN}]}}",
         HEAD "\"a\": 1.0,\n    \"total_size\": 129,\n    \"b\": [1,\n {\"c\": NaN}]\n"
              "  },\n" MAP},
        {"{\"metadata\":{\"total_par\\u0061meters\":12345678901234567890}}",
         HEAD "\"total_par\\u0061meters\": 12345678901234567890,\n"
              "    \"total_size\": 129\n  },\n" MAP},
        {"{\"metadata\":{\"total_size\":1,\"total\\u005fsize\":2}}",
         HEAD "\"total_size\": 129\n  },\n" MAP},
        {"{\"metadata\":{\"x\":1},\"metadata\":{\"y\":2},\"z\":{}}",
         HEAD "\"y\": 2,\n    \"total_size\": 129\n  },\n" MAP},
        {"{\"metadata\":null}", HEAD "\"total_size\": 129\n  },\n" MAP},
        {"{\"metadata\":{\"x\":1},\"metadata\":[]}",
         HEAD "\"total_size\": 129\n  },\n" MAP},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        struct qf_buf out = {0};
        open_fixture(&f, "int8", cases[i].index);
        assert_int_equal(synth(&f, &out, NULL), 0);
        char *text = qf_buf_take(&out, NULL);
        assert_string_equal(text, cases[i].expected);
        free(text);
        close_fixture(&f);
    }
}

static void test_index_names_no_hidden_part(void **state)
{
    struct fixture f;
    struct qf_buf out = {0};
    (void)state;
    open_fixture(&f, "dq", "{}");
    assert_int_equal(synth(&f, &out, NULL), 0);
    char *text = qf_buf_take(&out, NULL);
    qf_json *doc = qf_json_parse(text, strlen(text), NULL);
    size_t count = 0;
    for (const qf_json *m = qf_json_first(qf_json_get(doc, "weight_map")); m != NULL;
         m = qf_json_after(m))
        count++;
    assert_int_equal(count, 2 + 6);
    qf_json_free(doc);
    free(text);
    close_fixture(&f);
}

static void test_bad_indexes(void **state)
{
    static const char *const cases[] = {
        "[]", "{\"metadata\":",          "{\"metadata\":{\"a\":}}", "{\"a\":1 2}",
        "",   "{\"metadata\":{\"a\" 1}}"};
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct fixture f;
        struct qf_buf out = {0};
        struct qf_err err = {""};
        open_fixture(&f, "nf4", cases[i]);
        assert_int_equal(synth(&f, &out, &err), -EBADMSG);
        assert_non_null(strstr(err.text, "m.index.json"));
        qf_buf_fini(&out);
        close_fixture(&f);
    }
}

static void test_index_size_overflows(void **state)
{
    struct fixture f;
    struct qf_buf out = {0};
    struct qf_err err = {""};
    (void)state;
    open_fixture(&f, "nf4", "{}");
    f.layouts[0]->tensor_bytes = UINT64_MAX - 1;
    assert_int_equal(synth(&f, &out, &err), -EOVERFLOW);
    assert_non_null(strstr(err.text, "m.index.json"));
    close_fixture(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_quantization_config),
        cmocka_unit_test(test_thresholds),
        cmocka_unit_test(test_config),
        cmocka_unit_test(test_nested_configs),
        cmocka_unit_test(test_config_that_is_no_object),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_index_names_no_hidden_part),
        cmocka_unit_test(test_bad_indexes),
        cmocka_unit_test(test_index_size_overflows),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
