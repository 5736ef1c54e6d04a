/* SPDX-License-Identifier: Apache-2.0 */
/* Single rules, and what the reference in Python has no answer to. That all of it
 * together is the reference's function is tested in tests/policy. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/arch_table.h"
#include "view/policy.h"

struct given {
    const char *name;
    enum qf_dtype dtype;
    uint32_t rank;
    uint64_t shape[3];
};

#define MOST 16

struct planned {
    struct qf_tensor tensors[MOST];
    const struct qf_tensor *pointers[MOST];
    struct qf_policy policy;
    struct qf_err err;
};

static struct qf_view view_of(const char *name)
{
    struct qf_view view;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    return view;
}

static void plan_view(struct planned *p, const struct qf_view *view, const char *config,
                      const struct given *given, size_t count)
{
    assert_true(count <= MOST);
    *p = (struct planned){0};
    for (size_t i = 0; i < count; i++) {
        p->tensors[i] = (struct qf_tensor){.name = given[i].name,
                                           .dtype = given[i].dtype,
                                           .rank = given[i].rank,
                                           .shape = given[i].shape};
        p->pointers[i] = &p->tensors[i];
    }
    qf_json *doc = qf_json_parse(config, strlen(config), NULL);
    assert_non_null(doc);
    assert_int_equal(qf_policy_plan(p->pointers, count, doc, view, &p->policy, &p->err),
                     0);
    qf_json_free(doc);
}

static void plan(struct planned *p, const char *view_name, const char *config,
                 const struct given *given, size_t count)
{
    struct qf_view view = view_of(view_name);
    plan_view(p, &view, config, given, count);
}

static bool has_skip(const struct planned *p, const char *entry)
{
    for (size_t i = 0; i < p->policy.skip_count; i++)
        if (strcmp(p->policy.skip[i], entry) == 0)
            return true;
    return false;
}

#define COUNT(array) (sizeof(array) / sizeof *(array))

static void test_reasons(void **state)
{
    static const struct given given[] = {
        {"model.layers.0.self_attn.q_proj.weight", QF_BF16, 2, {8, 8}},
        {"model.layers.0.self_attn.q_proj.bias", QF_BF16, 1, {8}},
        {"model.conv.weight", QF_BF16, 3, {8, 8, 3}},
        {"lm_head.weight", QF_BF16, 2, {8, 8}},
        {"model.embed_tokens.weight", QF_BF16, 2, {8, 8}},
        {"model.layers.0.mlp.gate.weight", QF_BF16, 2, {8, 8}},
        {"model.layers.0.mlp.experts.3.up_proj.weight", QF_BF16, 2, {8, 8}},
        {"model.shape_weight.weight", QF_BF16, 2, {8, 8}},
        {"model.attn.out_proj.weight", QF_BF16, 2, {8, 8}},
        {"model.attn.in_proj_weight", QF_BF16, 2, {24, 8}},
        {"model.attn2.out_proj.weight", QF_BF16, 2, {8, 8}},
    };
    static const enum qf_reason reasons[] = {
        QF_REASON_QUANTIZED, QF_REASON_NOT_WEIGHT, QF_REASON_NOT_WEIGHT, QF_REASON_HEAD,
        QF_REASON_EMBEDDING, QF_REASON_ROUTER,     QF_REASON_EXPERTS,    QF_REASON_NAME,
        QF_REASON_MHA,       QF_REASON_NOT_WEIGHT, QF_REASON_QUANTIZED,
    };
    struct planned p;
    (void)state;
    plan(&p, "nf4", "{\"model_type\":\"llama\"}", given, COUNT(given));
    assert_int_equal(p.policy.count, COUNT(given));
    for (size_t i = 0; i < COUNT(given); i++)
        if (p.policy.decisions[i].reason != reasons[i])
            fail_msg("%s: %s", given[i].name,
                     qf_reason_text(p.policy.decisions[i].reason));
    assert_int_equal(p.policy.quantized_count, 2);
    assert_true(has_skip(&p, ".experts") && has_skip(&p, ".*\\.experts"));
    assert_true(has_skip(&p, "model.embed_tokens"));
    assert_true(has_skip(&p, "qa_outputs"));
    assert_false(p.policy.diffusers);
    qf_policy_fini(&p.policy);
}

static void test_table_rows(void **state)
{
    static const struct given gpt2[] = {
        {"transformer.h.0.attn.c_attn.weight", QF_F16, 2, {8, 24}},
        {"transformer.wte.weight", QF_F16, 2, {8, 8}},
    };
    static const struct given wan[] = {
        {"blocks.0.attn1.to_q.weight", QF_F32, 2, {8, 8}},
        {"condition_embedder.time_embedder.linear_1.weight", QF_F32, 2, {8, 8}},
    };
    struct planned p;
    (void)state;
    plan(&p, "int8", "{\"model_type\":\"gpt2\"}", gpt2, 2);
    assert_int_equal(p.policy.quantized_count, 1);
    assert_true(p.policy.decisions[0].transposed);
    assert_false(p.policy.decisions[1].transposed);
    qf_policy_fini(&p.policy);
    static const char *const configs[] = {
        "{\"_class_name\":\"WanTransformer3DModel\"}",
        "{\"_class_name\":\"WanVACETransformer3DModel\"}"};
    for (size_t i = 0; i < 2; i++) {
        plan(&p, "nf4", configs[i], wan, 2);
        assert_true(p.policy.diffusers);
        assert_int_equal(p.policy.decisions[0].reason, QF_REASON_QUANTIZED);
        assert_int_equal(p.policy.decisions[1].reason, QF_REASON_FP32);
        assert_int_equal(p.policy.skip_count, 0);
        qf_policy_fini(&p.policy);
    }
}

/* Rows of the models inside a composite one count where they keep a weight. */
static void test_nested_models(void **state)
{
    static const struct given given[] = {
        {"decoder.h.0.attn.c_attn.weight", QF_F16, 2, {8, 24}},
        {"encoder.layer.0.wo.weight", QF_F16, 2, {8, 8}},
        {"encoder.layer.0.fc1.weight", QF_F16, 2, {8, 8}},
        {"encoder.word.weight", QF_BF16, 1, {8}},
    };
    static const char config[] =
        "{\"model_type\":\"vision-encoder-decoder\",\"decoder\":{\"model_type\":"
        "\"gpt2\"},"
        "\"encoder\":{\"x\":{\"model_type\":\"t5\"},\"model_type\":\"nobody\"},"
        "\"list\":[{\"model_type\":\"bert\"}],\"a\":{\"model_type\":\"\"},"
        "\"again\":{\"model_type\":\"t5\"},\"dtype\":\"float16\"}";
    struct planned p;
    (void)state;
    plan(&p, "int8", config, given, COUNT(given));
    assert_int_equal(p.policy.decisions[0].reason, QF_REASON_TABLE);
    assert_true(has_skip(&p, "decoder.h.0.attn.c_attn"));
    assert_int_equal(p.policy.decisions[1].reason, QF_REASON_FP32);
    assert_true(has_skip(&p, "wo"));
    assert_int_equal(p.policy.decisions[2].reason, QF_REASON_QUANTIZED);
    assert_int_equal(p.policy.decisions[3].dtype, QF_F32); /* "wo" is in its name */
    qf_policy_fini(&p.policy);
    /* the model's own row decides what it transposes */
    plan(&p, "int8", "{\"model_type\":\"gpt2\",\"a\":{\"model_type\":\"openai-gpt\"}}",
         given, 1);
    assert_int_equal(p.policy.decisions[0].reason, QF_REASON_QUANTIZED);
    assert_true(p.policy.decisions[0].transposed);
    qf_policy_fini(&p.policy);
}

static void test_limit_of_nested_models(void **state)
{
    static const struct given given[] = {{"a.weight", QF_BF16, 2, {8, 8}}};
    (void)state;
    for (int past = 0; past < 2; past++) {
        char config[4096] = "{\"model_type\":\"x\"";
        for (size_t i = 0; i < QF_NESTED_MODELS_MAX + (size_t)past; i++) {
            size_t n = strlen(config);
            snprintf(config + n, sizeof config - n, ",\"%zu\":{\"model_type\":\"%s\"}",
                     i, qf_arch_at(false, i)->name);
        }
        strcat(config, "}");
        struct planned p;
        plan(&p, "nf4", config, given, 1);
        if (past != 0)
            assert_non_null(strstr(p.policy.reason, "more than 16 kinds"));
        else
            assert_int_equal(p.policy.quantized_count, 1);
        qf_policy_fini(&p.policy);
    }
}

static void test_model_dtype(void **state)
{
    static const struct given given[] = {
        {"z.weight", QF_BF16, 2, {8, 8}},
        {"b.norm.weight", QF_F16, 1, {8}},
        {"a.table", QF_I64, 1, {8}},
    };
    static const struct {
        const char *config;
        enum qf_dtype dtype;
    } cases[] = {
        {"{\"dtype\":\"float32\",\"torch_dtype\":\"bfloat16\"}", QF_F32},
        {"{\"torch_dtype\":\"torch.bfloat16\"}", QF_BF16},
        {"{\"dtype\":\"\",\"torch_dtype\":\"bfloat16\"}", QF_BF16},
        {"{\"dtype\":null,\"torch_dtype\":\"bfloat16\"}", QF_BF16},
        {"{\"dtype\":\"auto\",\"torch_dtype\":\"bfloat16\"}", QF_F16},
        {"{\"dtype\":\"float64\"}", QF_F16},
        {"{\"dtype\":{\"text\":\"bfloat16\"}}", QF_F16},
        {"{\"dtype\":7}", QF_F16},
        {"{}", QF_F16},
    };
    struct planned p;
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        plan(&p, "nf4", cases[i].config, given, COUNT(given));
        assert_int_equal(p.policy.dtype, cases[i].dtype);
        qf_policy_fini(&p.policy);
    }
    struct qf_view view = view_of("nf4");
    view.dtype = QF_BF16;
    plan_view(&p, &view, cases[0].config, given, COUNT(given));
    assert_int_equal(p.policy.dtype, QF_BF16);
    assert_int_equal(p.policy.decisions[1].dtype, QF_BF16); /* kept: cast */
    assert_int_equal(p.policy.decisions[2].dtype, QF_I64);
    qf_policy_fini(&p.policy);
    plan(&p, "nf4", "{}", given + 2, 1);
    assert_int_equal(p.policy.dtype, QF_F32);
    assert_int_equal(p.policy.quantized_count, 0);
    qf_policy_fini(&p.policy);
}

static void test_pass_through(void **state)
{
    static const struct given given[] = {{"a.weight", QF_BF16, 2, {8, 8}}};
    static const struct {
        const char *config;
        const char *says; /* NULL: is planned */
    } cases[] = {
        {"{\"model_type\":\"llama4\"}", "'llama4'"},
        {"{\"model_type\":\"llama4_text\"}", "'llama4_text'"},
        {"{\"quantization_config\":{\"a\":1}}", "already quantized"},
        {"{\"quantization_config\":[0]}", "already quantized"},
        {"{\"quantization_config\":\"x\"}", "already quantized"},
        {"{\"quantization_config\":true}", "already quantized"},
        {"{\"quantization_config\":2}", "already quantized"},
        {"{\"quantization_config\":{}}", NULL},
        {"{\"quantization_config\":[]}", NULL},
        {"{\"quantization_config\":\"\"}", NULL},
        {"{\"quantization_config\":null}", NULL},
        {"{\"quantization_config\":false}", NULL},
        {"{\"quantization_config\":0}", NULL},
        {"{\"model_type\":4,\"architectures\":\"A\"}", NULL},
        {"{\"model_type\":null,\"architectures\":[3]}", NULL},
        {"{\"_class_name\":null}", NULL},
    };
    struct planned p;
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        plan(&p, "nf4", cases[i].config, given, 1);
        if (cases[i].says == NULL) {
            assert_string_equal(p.policy.reason, "");
            assert_int_equal(p.policy.quantized_count, 1);
        } else {
            assert_non_null(strstr(p.policy.reason, cases[i].says));
            assert_null(p.policy.decisions);
            assert_int_equal(p.policy.count, 0);
            assert_int_equal(p.policy.skip_count, 0);
        }
        qf_policy_fini(&p.policy);
    }
}

static void test_collision(void **state)
{
    static const struct given given[] = {
        {"a.fc1.weight", QF_BF16, 2, {8, 8}},
        {"a.fc1.weight.absmax", QF_F32, 1, {1}},
        {"a.fc2.weight", QF_BF16, 2, {8, 8}},
        {"a.fc2.SCB", QF_F32, 1, {8}},
        {"a.fc3.weight", QF_BF16, 2, {8, 8}},
        {"a.fc3.weight_format", QF_U8, 0, {0}},
        {"a.fc4.weight", QF_BF16, 2, {8, 8}},
        {"a.fc4.weight.quant_state.bitsandbytes__fp4", QF_U8, 1, {3}},
        {"a.fc5.weight", QF_BF16, 2, {8, 8}},
        {"a.fc5.weight.nested_absmax", QF_U8, 1, {3}},
    };
    static const struct {
        const char *view;
        bool kept[5];
    } cases[] = {{"nf4", {true}},
                 {"fp4", {true, false, false, true}},
                 {"dq", {true, false, false, false, true}},
                 {"int8", {false, true, true}}};
    struct planned p;
    (void)state;
    for (size_t i = 0; i < COUNT(cases); i++) {
        plan(&p, cases[i].view, "{}", given, COUNT(given));
        for (size_t k = 0; k < 5; k++) {
            char module[8];
            snprintf(module, sizeof module, "a.fc%zu", k + 1);
            assert_int_equal(p.policy.decisions[2 * k].reason,
                             cases[i].kept[k] ? QF_REASON_COLLISION
                                              : QF_REASON_QUANTIZED);
            assert_int_equal(has_skip(&p, module), cases[i].kept[k]);
        }
        qf_policy_fini(&p.policy);
    }
}

/* A kept weight is named, and what its name hits is kept too. */
static void test_collision_closes(void **state)
{
    static const struct given given[] = {
        {"fc.weight", QF_BF16, 2, {8, 8}},       {"fc.weight.absmax", QF_F32, 1, {1}},
        {"fc.inner.weight", QF_BF16, 2, {8, 8}}, {"x.fc.weight", QF_BF16, 2, {8, 8}},
        {"x.fcc.weight", QF_BF16, 2, {8, 8}},
    };
    struct planned p;
    (void)state;
    plan(&p, "nf4", "{}", given, COUNT(given));
    assert_int_equal(p.policy.decisions[0].reason, QF_REASON_COLLISION);
    assert_int_equal(p.policy.decisions[2].reason, QF_REASON_CLOSURE);
    assert_int_equal(p.policy.decisions[3].reason, QF_REASON_CLOSURE);
    assert_int_equal(p.policy.decisions[4].reason, QF_REASON_QUANTIZED);
    assert_true(has_skip(&p, "fc"));
    qf_policy_fini(&p.policy);
}

static void test_odd_weights(void **state)
{
    static const struct given given[] = {
        {"a.empty.weight", QF_BF16, 2, {0, 8}},
        {"a.empty2.weight", QF_BF16, 2, {8, 0}},
        {"a.double.weight", QF_F64, 2, {8, 8}},
        {"a.odd.weight", QF_BF16, 2, {3, 1}},
        {"a.lm_head.weight", QF_I64, 2, {8, 8}},
        {"a.even.weight", QF_BF16, 2, {3, 4}},
    };
    struct planned p;
    (void)state;
    struct qf_view view = view_of("nf4");
    view.storage = QF_BF16;
    plan_view(&p, &view, "{}", given, COUNT(given));
    assert_int_equal(p.policy.decisions[0].reason, QF_REASON_NOT_WEIGHT);
    assert_int_equal(p.policy.decisions[1].reason, QF_REASON_NOT_WEIGHT);
    assert_int_equal(p.policy.decisions[2].reason, QF_REASON_NOT_WEIGHT);
    assert_int_equal(p.policy.decisions[3].reason, QF_REASON_QUANTIZED);
    assert_int_equal(p.policy.decisions[4].reason, QF_REASON_NOT_WEIGHT);
    assert_int_equal(p.policy.decisions[5].reason, QF_REASON_QUANTIZED);
    assert_true(has_skip(&p, "a.empty") && has_skip(&p, "a.empty2"));
    assert_true(has_skip(&p, "a.double"));
    assert_false(has_skip(&p, "a.lm_head"));
    qf_policy_fini(&p.policy);
    view.storage = QF_F32; /* 2 bytes of codes are no float32 */
    plan_view(&p, &view, "{}", given, COUNT(given));
    assert_int_equal(p.policy.decisions[3].reason, QF_REASON_SHAPE);
    assert_int_equal(p.policy.decisions[5].reason, QF_REASON_SHAPE);
    assert_true(has_skip(&p, "a.odd") && has_skip(&p, "a.even"));
    assert_int_equal(p.policy.quantized_count, 0);
    qf_policy_fini(&p.policy);
}

static void test_names_that_are_patterns(void **state)
{
    static const struct given quantized[] = {{"a+b.weight", QF_BF16, 2, {8, 8}}};
    static const struct given kept[] = {{"a+b.gate.weight", QF_BF16, 2, {8, 8}},
                                        {"fc.weight", QF_BF16, 2, {8, 8}}};
    struct planned p;
    (void)state;
    plan(&p, "nf4", "{}", quantized, 1);
    assert_string_equal(p.policy.reason, "");
    assert_int_equal(p.policy.quantized_count, 1);
    qf_policy_fini(&p.policy);
    plan(&p, "nf4", "{}", kept, 2);
    assert_non_null(strstr(p.policy.reason, "'a+b.gate'"));
    assert_null(p.policy.decisions);
    qf_policy_fini(&p.policy);
}

static void test_long_names(void **state)
{
    static char name[100000];
    (void)state;
    memset(name, '+', sizeof name - 1);
    memcpy(name + sizeof name - sizeof ".gate.weight", ".gate.weight",
           sizeof ".gate.weight");
    struct given given = {name, QF_BF16, 2, {8, 8}};
    struct planned p;
    plan(&p, "nf4", "{}", &given, 1);
    assert_non_null(strstr(p.policy.reason, "++++"));
    qf_policy_fini(&p.policy);
}

static void test_one_name_twice(void **state)
{
    static const struct given given[] = {{"a.weight", QF_BF16, 2, {8, 8}},
                                         {"b.weight", QF_BF16, 2, {8, 8}},
                                         {"a.weight", QF_BF16, 2, {8, 9}}};
    struct planned p;
    (void)state;
    plan(&p, "nf4", "{}", given, 3);
    assert_non_null(strstr(p.policy.reason, "'a.weight' is in more than one shard"));
    qf_policy_fini(&p.policy);
}

static void test_no_tensors(void **state)
{
    struct qf_view view = view_of("dq");
    struct qf_policy policy;
    (void)state;
    assert_int_equal(qf_policy_plan(NULL, 0, NULL, &view, &policy, NULL), 0);
    assert_int_equal(policy.count, 0);
    assert_string_equal(policy.reason, "");
    assert_int_equal(policy.dtype, QF_F32);
    qf_policy_fini(&policy);
}

/* `count` kept weights, each of which is named, and as many quantized ones. */
static void plan_many(size_t count, struct qf_policy *policy)
{
    struct qf_view view = view_of("nf4");
    static const uint64_t shape[] = {8, 8};
    struct qf_tensor *tensors = calloc(2 * count, sizeof *tensors);
    const struct qf_tensor **pointers = calloc(2 * count, sizeof *pointers);
    char(*names)[32] = calloc(2 * count, sizeof *names);
    assert_true(tensors != NULL && pointers != NULL && names != NULL);
    for (size_t i = 0; i < 2 * count; i++) {
        const char *last = i < count ? "gate" : "fc";
        snprintf(names[i], sizeof names[i], "l%zu.%s.weight", i, last);
        tensors[i] = (struct qf_tensor){.name = names[i],
                                        .dtype = QF_BF16,
                                        .rank = 2,
                                        .shape = shape};
        pointers[i] = &tensors[i];
    }
    assert_int_equal(qf_policy_plan(pointers, 2 * count, NULL, &view, policy, NULL), 0);
    free(names);
    free(pointers);
    free(tensors);
}

static void test_limit_of_work(void **state)
{
    /* k weights of each kind: k^2 comparisons to name them, 3 k^2 to close */
    static const uint64_t most = 4000;
    static const uint64_t past = 4200;
    struct qf_policy policy;
    (void)state;
    assert_true(4 * most * most < QF_POLICY_MATCHES_MAX);
    assert_true(4 * past * past > QF_POLICY_MATCHES_MAX);
    plan_many(most, &policy);
    assert_string_equal(policy.reason, "");
    assert_int_equal(policy.quantized_count, most);
    qf_policy_fini(&policy);
    plan_many(past, &policy);
    assert_non_null(strstr(policy.reason, "too many tensors"));
    assert_null(policy.skip);
    qf_policy_fini(&policy);
}

static void test_reason_texts(void **state)
{
    (void)state;
    for (int i = 0; i < QF_REASON_COUNT; i++)
        for (int k = 0; k < i; k++)
            assert_string_not_equal(qf_reason_text((enum qf_reason)i),
                                    qf_reason_text((enum qf_reason)k));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_table_rows),
        cmocka_unit_test(test_nested_models),
        cmocka_unit_test(test_limit_of_nested_models),
        cmocka_unit_test(test_model_dtype),
        cmocka_unit_test(test_pass_through),
        cmocka_unit_test(test_collision),
        cmocka_unit_test(test_collision_closes),
        cmocka_unit_test(test_odd_weights),
        cmocka_unit_test(test_names_that_are_patterns),
        cmocka_unit_test(test_long_names),
        cmocka_unit_test(test_one_name_twice),
        cmocka_unit_test(test_no_tensors),
        cmocka_unit_test(test_limit_of_work),
        cmocka_unit_test(test_reason_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
