/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "view/overrides.h"
#include "view/policy.h"

static struct qf_view base_view(const char *name)
{
    struct qf_view view;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    return view;
}

static void accepts(const char *view_name, const char *text, struct qf_view *out)
{
    struct qf_view base = base_view(view_name);
    struct qf_err err = {""};
    int rc = qf_overrides_apply(&base, text, strlen(text), out, &err);
    assert_string_equal(err.text, "");
    assert_int_equal(rc, 0);
}

static void refuses(const char *text, const char *part)
{
    struct qf_view base = base_view("nf4"), out;
    struct qf_err err = {""};
    assert_int_equal(qf_overrides_apply(&base, text, strlen(text), &out, &err),
                     -EINVAL);
    if (strstr(err.text, part) == NULL)
        fail_msg("'%s' is not in '%s'", part, err.text);
    assert_int_equal(out.skip.count, 0);
    assert_int_equal(qf_overrides_check(text, strlen(text), NULL), -EINVAL);
}

static bool matches(const char *pattern, const char *module)
{
    char copy[64];
    strcpy(copy, pattern);
    char *items[] = {copy};
    struct qf_patterns patterns = {1, items};
    return qf_patterns_match(&patterns, module, strlen(module));
}

static void test_no_text_is_a_copy(void **state)
{
    (void)state;
    struct qf_view base = base_view("dq"), out;
    assert_int_equal(qf_overrides_apply(&base, NULL, 0, &out, NULL), 0);
    assert_string_equal(out.name, "dq");
    assert_int_equal(out.blocksize, 64);
    assert_int_equal(out.dtype, QF_DTYPE_NONE);
    qf_view_fini(&out);
}

static void test_every_key(void **state)
{
    (void)state;
    struct qf_view out;
    accepts("nf4",
            "{\"skip\":[\"lm_head\",\"layers.0\"],\"force\":[\"score\"],"
            "\"dtype\":\"bfloat16\",\"compute_dtype\":\"float16\","
            "\"quant_storage\":\"bfloat16\",\"blocksize\":4096,\"int8_threshold\":5.5}",
            &out);
    assert_int_equal(out.skip.count, 2);
    assert_string_equal(out.skip.items[1], "layers.0");
    assert_int_equal(out.force.count, 1);
    assert_int_equal(out.dtype, QF_BF16);
    assert_int_equal(out.compute, QF_F16);
    assert_int_equal(out.storage, QF_BF16);
    assert_int_equal(out.blocksize, 4096);
    assert_true(out.int8_threshold == 5.5);
    qf_view_fini(&out);
    accepts("nf4", "{\"quant_storage\":\"uint8\",\"blocksize\":64}", &out);
    assert_int_equal(out.storage, QF_U8);
    qf_view_fini(&out);
}

static void test_views_and_order(void **state)
{
    (void)state;
    static const char text[] =
        "{\"views\":{\"nf4\":{\"blocksize\":128,\"skip\":[\"b\"]},"
        "\"int8\":{\"int8_threshold\":0}},\"blocksize\":256,\"skip\":[\"a\"]}";
    struct qf_view out;
    accepts("nf4", text, &out);
    assert_int_equal(out.blocksize, 128);
    assert_int_equal(out.skip.count, 2);
    assert_string_equal(out.skip.items[0], "a");
    assert_true(out.int8_threshold == 6.0);
    qf_view_fini(&out);
    accepts("fp4", text, &out);
    assert_int_equal(out.blocksize, 256);
    assert_int_equal(out.skip.count, 1);
    qf_view_fini(&out);
    accepts("int8", text, &out);
    assert_true(out.int8_threshold == 0);
    qf_view_fini(&out);
}

static void test_patterns_add_up(void **state)
{
    (void)state;
    struct qf_view first, second;
    accepts("nf4", "{\"skip\":[\"a\"],\"blocksize\":128}", &first);
    assert_int_equal(qf_overrides_apply(&first, "{\"skip\":[\"b\"]}", 14, &second,
                                        NULL),
                     0);
    assert_int_equal(second.skip.count, 2);
    assert_string_equal(second.skip.items[0], "a");
    assert_string_equal(second.skip.items[1], "b");
    assert_int_equal(second.blocksize, 128);
    qf_view_fini(&second);
    qf_view_fini(&first);
}

static void test_only_is_one_value(void **state)
{
    (void)state;
    struct qf_view first, second;
    accepts("nf4", "{\"only\":[\"a\",\"b\"],\"views\":{\"dq\":{\"only\":[\"d\"]}}}",
            &first);
    assert_int_equal(first.only.count, 2);
    assert_int_equal(qf_overrides_apply(&first, "{\"only\":[\"c\"]}", 14, &second,
                                        NULL),
                     0);
    assert_int_equal(second.only.count, 1);
    assert_string_equal(second.only.items[0], "c");
    qf_view_fini(&second);
    assert_int_equal(qf_overrides_apply(&first, "{\"only\":[]}", 11, &second, NULL), 0);
    assert_int_equal(second.only.count, 0);
    qf_view_fini(&second);
    qf_view_fini(&first);
    accepts("dq", "{\"views\":{\"dq\":{\"only\":[\"d\"]}},\"only\":[\"a\"]}", &first);
    assert_int_equal(first.only.count, 1);
    assert_string_equal(first.only.items[0], "d");
    qf_view_fini(&first);
}

/* The name says it last: its values win, its patterns are added, its "only" stays. */
static void test_the_name_wins(void **state)
{
    (void)state;
    struct qf_view first, second;
    static const char name[] =
        "nf4+dtype=float16+blocksize=64+only=mlp+skip=b:c+force=score";
    accepts(name,
            "{\"blocksize\":128,\"dtype\":\"bfloat16\",\"compute_dtype\":\"float32\","
            "\"skip\":[\"a\",\"b\"],\"only\":[\"attn\"]}",
            &first);
    assert_int_equal(first.dtype, QF_F16);
    assert_int_equal(first.blocksize, 64);
    assert_int_equal(first.compute, QF_F32);
    assert_int_equal(first.skip.count, 3);
    assert_string_equal(first.skip.items[0], "a");
    assert_string_equal(first.skip.items[2], "c");
    assert_int_equal(first.only.count, 1);
    assert_string_equal(first.only.items[0], "mlp");
    assert_string_equal(first.force.items[0], "score");
    /* And again after a second file. */
    assert_int_equal(qf_overrides_apply(&first, "{\"blocksize\":256,\"skip\":[\"d\"]}",
                                        30, &second, NULL),
                     0);
    assert_int_equal(second.blocksize, 64);
    assert_int_equal(second.compute, QF_F32);
    assert_int_equal(second.skip.count, 4);
    assert_int_equal(second.only.count, 1);
    qf_view_fini(&second);
    qf_view_fini(&first);
    struct qf_view base = base_view(name);
    assert_int_equal(qf_overrides_apply(&base, NULL, 0, &first, NULL), 0);
    assert_int_equal(first.skip.count, 2);
    qf_view_fini(&first);
}

static void test_objects_for_views_with_settings(void **state)
{
    (void)state;
    static const char text[] =
        "{\"views\":{\"nf4+skip=a+blocksize=64\":{\"compute_dtype\":\"float16\","
        "\"skip\":[\"x\"]},\"nf4\":{\"compute_dtype\":\"float32\",\"skip\":[\"n\"]}}}";
    struct qf_view out;
    accepts("nf4+blocksize=64+skip=a", text, &out);
    assert_int_equal(out.compute, QF_F16);
    assert_int_equal(out.skip.count, 3);
    assert_string_equal(out.skip.items[0], "n");
    assert_string_equal(out.skip.items[1], "x");
    qf_view_fini(&out);
    accepts("nf4+skip=a", text, &out);
    assert_int_equal(out.compute, QF_F32);
    assert_int_equal(out.skip.count, 2);
    qf_view_fini(&out);
    accepts("nf4", text, &out);
    assert_int_equal(out.compute, QF_F32);
    assert_int_equal(out.skip.count, 1);
    qf_view_fini(&out);
    refuses("{\"views\":{\"int8+blocksize=64\":{}}}", "no setting 'blocksize'");
    refuses("{\"views\":{\"dq+only=a\":{\"dtype\":1}}}",
            "'dq+only=a': 'dtype' must be");
}

/* At the limit and past it, with a pattern of the name on top. */
static void test_number_of_patterns(void **state)
{
    (void)state;
    struct qf_buf text = {0};
    qf_buf_append_str(&text, "{\"skip\":[\"0\"");
    for (int i = 1; i < QF_OVERRIDES_PATTERNS_MAX; i++)
        qf_buf_appendf(&text, ",\"%d\"", i);
    qf_buf_append_str(&text, "]}");
    char *list = qf_buf_take(&text, NULL);
    struct qf_view out, base = base_view("nf4+skip=x");
    struct qf_err err = {""};
    accepts("nf4", list, &out);
    assert_int_equal(out.skip.count, QF_OVERRIDES_PATTERNS_MAX);
    qf_view_fini(&out);
    accepts("nf4+skip=7", list, &out);
    assert_int_equal(out.skip.count, QF_OVERRIDES_PATTERNS_MAX);
    qf_view_fini(&out);
    assert_int_equal(qf_overrides_apply(&base, list, strlen(list), &out, &err),
                     -EINVAL);
    assert_non_null(strstr(err.text, "more than 1024"));
    free(list);
}

static void test_errors_name_the_key(void **state)
{
    (void)state;
    refuses("{\"skp\":[]}", "unknown key 'skp'");
    refuses("{\"skip\":\"lm_head\"}", "'skip' must be a list");
    refuses("{\"skip\":[1]}", "'skip' must be a list");
    refuses("{\"only\":\"mlp\"}", "'only' must be a list");
    refuses("{\"force\":[\"\"]}", "'force' must be a list");
    refuses("{\"dtype\":\"float64\"}", "'dtype' must be");
    refuses("{\"dtype\":16}", "'dtype' must be");
    refuses("{\"compute_dtype\":\"fp16\"}", "'compute_dtype' must be");
    refuses("{\"quant_storage\":\"int8\"}", "'quant_storage' must be");
    refuses("{\"blocksize\":100}", "'blocksize' must be");
    refuses("{\"blocksize\":32}", "'blocksize' must be");
    refuses("{\"blocksize\":8192}", "'blocksize' must be");
    refuses("{\"blocksize\":\"64\"}", "'blocksize' must be");
    refuses("{\"int8_threshold\":-1}", "'int8_threshold' must be");
    refuses("{\"int8_threshold\":NaN}", "'int8_threshold' must be");
    refuses("{\"views\":[]}", "'views' must be");
    refuses("{\"views\":{\"nf5\":{}}}", "nf5");
    refuses("{\"views\":{\"nf4\":3}}", "'nf4' must be an object");
    refuses("{\"views\":{\"int8\":{\"oops\":1}}}", "unknown key 'oops'");
    refuses("{\"views\":{\"nf4\":{\"views\":{}}}}", "unknown key 'views'");
    refuses("[]", "not a JSON object");
    refuses("{", "");
}

static void test_matching(void **state)
{
    (void)state;
    assert_true(matches("q_proj", "model.layers.3.self_attn.q_proj"));
    assert_false(matches("q_proj", "model.layers.3.self_attn.xq_proj"));
    assert_true(matches("layers.0", "model.layers.0.mlp.up_proj"));
    assert_false(matches("layers.0", "model.layers.10.mlp.up_proj"));
    assert_true(matches("layers.*.mlp", "model.layers.10.mlp.up_proj"));
    assert_false(matches("layers.*.mlp", "model.layers.mlp"));
    assert_true(matches("lm_head", "lm_head"));
    assert_false(matches("lm_head.x", "lm_head"));
    assert_true(matches("*", "anything"));
    assert_false(matches("a.b", "ab"));
}

/* What a policy makes of three weights of a class, by index: QUANTIZED or a reason. */
static enum qf_reason judge(const char *config_text, const char *overrides,
                            size_t index)
{
    static const uint64_t shape[] = {64, 64};
    const struct qf_tensor tensors[] = {
        {"mid_block.to_q.weight", QF_F32, 2, shape, 0, 16384, NULL},
        {"mid_block.to_k.weight", QF_F32, 2, shape, 16384, 16384, NULL},
        {"lm_head.weight", QF_F32, 2, shape, 32768, 16384, NULL},
    };
    const struct qf_tensor *list[] = {&tensors[0], &tensors[1], &tensors[2]};
    qf_json *config = qf_json_parse(config_text, strlen(config_text), NULL);
    struct qf_view view;
    accepts("nf4", overrides, &view);
    struct qf_policy policy;
    assert_int_equal(qf_policy_plan(list, 3, config, &view, &policy, NULL), 0);
    enum qf_reason reason =
        policy.reason[0] != '\0' ? QF_REASON_COUNT : policy.decisions[index].reason;
    qf_policy_fini(&policy);
    qf_view_fini(&view);
    qf_json_free(config);
    return reason;
}

static void test_vae(void **state)
{
    (void)state;
    static const char vae[] = "{\"_class_name\":\"AutoencoderKL\"}";
    assert_int_equal(judge(vae, "{}", 0), QF_REASON_COUNT); /* passes through whole */
    assert_int_equal(judge(vae, "{\"force\":[\"to_q\"]}", 0), QF_REASON_QUANTIZED);
    assert_int_equal(judge(vae, "{\"force\":[\"to_q\"]}", 1), QF_REASON_VAE);
    assert_int_equal(judge("{\"_class_name\":\"UNet2DConditionModel\"}", "{}", 0),
                     QF_REASON_QUANTIZED);
}

static void test_policy_patterns(void **state)
{
    (void)state;
    static const char untied[] =
        "{\"model_type\":\"llama\",\"tie_word_embeddings\":false}";
    static const char unknown[] = "{\"model_type\":\"llama\"}";
    assert_int_equal(judge(untied, "{\"skip\":[\"to_q\"]}", 0), QF_REASON_SKIPPED);
    assert_int_equal(judge(untied, "{\"skip\":[\"to_q\"]}", 1), QF_REASON_QUANTIZED);
    assert_int_equal(judge(untied, "{\"only\":[\"to_q\"]}", 0), QF_REASON_QUANTIZED);
    assert_int_equal(judge(untied, "{\"only\":[\"to_q\"]}", 1), QF_REASON_SKIPPED);
    assert_int_equal(judge(untied, "{\"only\":[\"to_q\"],\"skip\":[\"to_q\"]}", 0),
                     QF_REASON_SKIPPED);
    assert_int_equal(judge(untied, "{\"only\":[\"lm_head\"]}", 2), QF_REASON_HEAD);
    assert_int_equal(judge(untied, "{\"only\":[\"to_q\"],\"force\":[\"lm_head\"]}", 2),
                     QF_REASON_SKIPPED);
    assert_int_equal(judge(untied, "{}", 2), QF_REASON_HEAD);
    assert_int_equal(judge(untied, "{\"force\":[\"lm_head\"]}", 2),
                     QF_REASON_QUANTIZED);
    assert_int_equal(judge(untied, "{\"skip\":[\"lm_head\"],\"force\":[\"lm_head\"]}",
                           2),
                     QF_REASON_SKIPPED);
    assert_int_equal(judge(unknown, "{\"force\":[\"lm_head\"]}", 2), QF_REASON_HEAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_text_is_a_copy),
        cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_views_and_order),
        cmocka_unit_test(test_patterns_add_up),
        cmocka_unit_test(test_only_is_one_value),
        cmocka_unit_test(test_the_name_wins),
        cmocka_unit_test(test_objects_for_views_with_settings),
        cmocka_unit_test(test_number_of_patterns),
        cmocka_unit_test(test_errors_name_the_key),
        cmocka_unit_test(test_matching),
        cmocka_unit_test(test_vae),
        cmocka_unit_test(test_policy_patterns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
