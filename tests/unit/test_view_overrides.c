/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
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

static void test_errors_name_the_key(void **state)
{
    (void)state;
    refuses("{\"skp\":[]}", "unknown key 'skp'");
    refuses("{\"skip\":\"lm_head\"}", "'skip' must be a list");
    refuses("{\"skip\":[1]}", "'skip' must be a list");
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
        {"mid_block.to_q.weight", QF_F32, 2, shape, 0, 16384},
        {"mid_block.to_k.weight", QF_F32, 2, shape, 16384, 16384},
        {"lm_head.weight", QF_F32, 2, shape, 32768, 16384},
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
    assert_int_equal(judge(untied, "{}", 2), QF_REASON_HEAD);
    assert_int_equal(judge(untied, "{\"force\":[\"lm_head\"]}", 2),
                     QF_REASON_QUANTIZED);
    assert_int_equal(judge(unknown, "{\"force\":[\"lm_head\"]}", 2), QF_REASON_HEAD);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_no_text_is_a_copy),
        cmocka_unit_test(test_every_key),
        cmocka_unit_test(test_views_and_order),
        cmocka_unit_test(test_patterns_add_up),
        cmocka_unit_test(test_errors_name_the_key),
        cmocka_unit_test(test_matching),
        cmocka_unit_test(test_vae),
        cmocka_unit_test(test_policy_patterns),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
