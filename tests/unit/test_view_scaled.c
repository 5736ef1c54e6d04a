/* SPDX-License-Identifier: Apache-2.0 */
/* Views of TorchAO, fp8 and compressed-tensors: names, settings, what is kept and how
 * it is listed, and every reason to pass through. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/overrides.h"
#include "view/policy.h"
#include "view/policy_internal.h"

static const char *const views[] = {"ao-int8wo",       "ao-int8dq",
                                    "ao-float8wo",     "ao-float8wo-e5m2",
                                    "ao-float8dq-row", "fp8",
                                    "ct-fp8",          "ct-w8a8",
                                    "ct-w8a16",        "ct-w4a16"};
#define VIEWS (sizeof views / sizeof *views)

/* ---- names ---- */

static void test_names(void **state)
{
    static const uint32_t groups[VIEWS] = {0, 0, 0, 0, 0, 128, 0, 0, 128, 128};
    (void)state;
    for (size_t i = 0; i < VIEWS; i++) {
        struct qf_view view;
        assert_int_equal(qf_view_parse(views[i], strlen(views[i]), &view, NULL), 0);
        assert_string_equal(view.name, views[i]);
        assert_string_equal(qf_codec_name(view.codec), views[i]);
        assert_int_equal(view.group, groups[i]);
        assert_int_equal(qf_view_spec(&view, QF_F16).group, groups[i]);
        assert_false(qf_view_is_default(view.codec));
        assert_null(strstr(qf_view_default_list, views[i]));
    }
    assert_true(qf_view_is_default(QF_CODEC_NF4));
    assert_true(qf_view_is_default(QF_CODEC_INT8));
}

static void refuses(const char *name, const char *words)
{
    struct qf_view view;
    struct qf_err err = {""};
    assert_int_equal(qf_view_parse(name, strlen(name), &view, &err), -EINVAL);
    if (strstr(err.text, words) == NULL)
        fail_msg("%s: '%s' does not say '%s'", name, err.text, words);
}

static void test_settings(void **state)
{
    struct qf_view view;
    static const char spelled[] = "ao-int8wo+skip=q_proj+group=32+dtype=float16";
    (void)state;
    assert_int_equal(qf_view_parse(spelled, strlen(spelled), &view, NULL), 0);
    assert_string_equal(view.name, "ao-int8wo+dtype=float16+group=32+skip=q_proj");
    assert_int_equal(view.group, 32);
    assert_int_equal(view.dtype, QF_F16);
    for (uint32_t group = QF_GROUP_MIN; group <= QF_GROUP_MAX; group *= 2) {
        char name[64];
        snprintf(name, sizeof name, "ct-w4a16+group=%u", group);
        assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
        assert_int_equal(view.group, group);
    }
    refuses("ao-int8wo+group=8", "power of two from 16 to 4096");
    refuses("ao-int8wo+group=8192", "power of two from 16 to 4096");
    refuses("ao-int8wo+group=48", "power of two");
    refuses("ao-int8wo+group=0", "power of two");
    refuses("ao-int8wo+group=x", "power of two");
    refuses("ao-int8wo+group", "needs a value");
    refuses("ao-int8wo+group=32+group=32", "there twice");
    refuses("ao-int8dq+group=32", "ao-int8dq has no setting 'group' (it has dtype, ");
    refuses("ao-float8wo-e5m2+group=32", "no setting 'group'");
    refuses("ao-float8dq-row+group=32", "no setting 'group'");
    refuses("fp8+group=128", "fp8 has no setting 'group'");
    refuses("ct-fp8+group=128", "no setting 'group'");
    refuses("ct-w8a8+group=128", "no setting 'group'");
    refuses("nf4+group=128", "nf4 has no setting 'group'");
    refuses("int8+group=128", "no setting 'group'");
    refuses("ao-int8wo+blocksize=64", "no setting 'blocksize'");
    refuses("ct-w4a16+storage=bfloat16", "no setting 'storage'");
    refuses("fp8+compute=float16", "no setting 'compute'");
    refuses("fp8+threshold=6", "no setting 'threshold'");
}

/* In a file for all views a group is for those that have the setting. */
static void test_overrides(void **state)
{
    static const char text[] = "{\"group\": 32}";
    static const uint32_t groups[VIEWS] = {32, 0, 32, 0, 0, 128, 0, 0, 32, 32};
    (void)state;
    for (size_t i = 0; i < VIEWS; i++) {
        struct qf_view base, view;
        struct qf_err err = {""};
        assert_int_equal(qf_view_parse(views[i], strlen(views[i]), &base, NULL), 0);
        assert_int_equal(qf_overrides_apply(&base, text, strlen(text), &view, NULL), 0);
        assert_int_equal(view.group, groups[i]);
        qf_view_fini(&view);
        assert_int_equal(qf_overrides_apply(&base, "{\"group\": 7}", 12, &view, &err),
                         -EINVAL);
        assert_non_null(strstr(err.text, "'group' must be a power of two"));
    }
}

/* ---- policies ---- */

#define MOST 12
#define LLAMA                                                                          \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "          \
    "\"dtype\": \"bfloat16\"}"

struct given {
    const char *name;
    uint64_t rows, cols; /* cols 0: a vector */
};

struct planned {
    struct qf_tensor tensors[MOST];
    uint64_t shapes[MOST][2];
    struct qf_policy policy;
};

static void plan(struct planned *p, const char *name, const char *config,
                 const struct given *given, size_t count)
{
    const struct qf_tensor *pointers[MOST];
    struct qf_err err = {""};
    struct qf_view base, view;
    *p = (struct planned){0};
    for (size_t i = 0; i < count; i++) {
        p->shapes[i][0] = given[i].rows;
        p->shapes[i][1] = given[i].cols;
        p->tensors[i] = (struct qf_tensor){.name = given[i].name,
                                           .dtype = QF_BF16,
                                           .rank = given[i].cols != 0 ? 2 : 1,
                                           .shape = p->shapes[i]};
        pointers[i] = &p->tensors[i];
    }
    qf_json *doc = qf_json_parse(config, strlen(config), NULL);
    assert_non_null(doc);
    assert_int_equal(qf_view_parse(name, strlen(name), &base, NULL), 0);
    assert_int_equal(qf_overrides_apply(&base, NULL, 0, &view, NULL), 0);
    if (qf_policy_plan(pointers, count, doc, &view, &p->policy, &err) != 0)
        fail_msg("%s", err.text);
    qf_view_fini(&view);
    qf_json_free(doc);
}

static void expect(struct planned *p, const enum qf_reason *reasons, size_t count)
{
    assert_string_equal(p->policy.reason, "");
    for (size_t i = 0; i < count; i++)
        if (p->policy.decisions[i].reason != reasons[i])
            fail_msg("%s: %s", p->tensors[i].name,
                     qf_reason_text(p->policy.decisions[i].reason));
}

static bool lists(const struct planned *p, const char *entry)
{
    for (size_t i = 0; i < p->policy.skip_count; i++)
        if (strcmp(p->policy.skip[i], entry) == 0)
            return true;
    return false;
}

#define P "model.layers.0."
static const struct given llama[] = {
    {"model.embed_tokens.weight", 512, 256}, {P "self_attn.q_proj.weight", 256, 256},
    {P "self_attn.k_proj.weight", 128, 256}, {P "self_attn.v_proj.weight", 128, 256},
    {P "self_attn.o_proj.weight", 256, 256}, {P "mlp.gate_proj.weight", 512, 256},
    {P "mlp.up_proj.weight", 512, 256},      {P "mlp.down_proj.weight", 256, 512},
    {P "input_layernorm.weight", 256, 0},    {"lm_head.weight", 512, 256}};
#define LLAMA_COUNT 10

static void test_lists(void **state)
{
    static const enum qf_reason reasons[] = {QF_REASON_EMBEDDING,  QF_REASON_QUANTIZED,
                                             QF_REASON_QUANTIZED,  QF_REASON_QUANTIZED,
                                             QF_REASON_QUANTIZED,  QF_REASON_QUANTIZED,
                                             QF_REASON_QUANTIZED,  QF_REASON_QUANTIZED,
                                             QF_REASON_NOT_WEIGHT, QF_REASON_HEAD};
    (void)state;
    for (size_t i = 0; i < VIEWS; i++) {
        struct planned p;
        plan(&p, views[i], LLAMA, llama, LLAMA_COUNT);
        expect(&p, reasons, LLAMA_COUNT);
        assert_int_equal(p.policy.quantized_count, 7);
        assert_string_equal(p.policy.skip[0], "lm_head");
        assert_string_equal(p.policy.skip[1], "model.embed_tokens");
        bool torchao = strncmp(views[i], "ao-", 3) == 0;
        assert_true(torchao ? p.policy.skip_count == 2 : p.policy.skip_count > 2);
        if (strncmp(views[i], "ct-", 3) == 0) {
            assert_int_equal(p.policy.skip_count, 3);
            assert_memory_equal(p.policy.skip[2], "re:(.*\\.)?(lm_head|", 19);
        }
        qf_policy_fini(&p.policy);
        /* without the head: it is tied, and named all the same */
        plan(&p, views[i], LLAMA, llama, LLAMA_COUNT - 1);
        assert_true(lists(&p, "lm_head"));
        qf_policy_fini(&p.policy);
        /* no causal language model: nobody knows of a head */
        plan(&p, views[i], "{\"architectures\": [\"LlamaModel\"]}", llama, 5);
        assert_true(!torchao || !lists(&p, "lm_head"));
        qf_policy_fini(&p.policy);
    }
}

/* One of a group is kept, and so are the others. */
static void test_all_or_none(void **state)
{
    static const enum qf_reason skipped[] = {QF_REASON_EMBEDDING, QF_REASON_FUSED,
                                             QF_REASON_SKIPPED,   QF_REASON_FUSED,
                                             QF_REASON_QUANTIZED, QF_REASON_FUSED,
                                             QF_REASON_SKIPPED,   QF_REASON_QUANTIZED};
    static const struct given narrow[] = {{P "self_attn.q_proj.weight", 256, 256},
                                          {P "self_attn.k_proj.weight", 64, 256},
                                          {P "self_attn.v_proj.weight", 128, 256},
                                          {P "self_attn.o_proj.weight", 256, 256},
                                          {P "mlp.down_proj.weight", 256, 200}};
    static const enum qf_reason shapes[] = {QF_REASON_FUSED, QF_REASON_SHAPE,
                                            QF_REASON_FUSED, QF_REASON_QUANTIZED,
                                            QF_REASON_SHAPE};
    struct planned p;
    (void)state;
    plan(&p, "ao-int8wo+skip=k_proj:up_proj", LLAMA, llama, LLAMA_COUNT);
    expect(&p, skipped, 8);
    assert_true(lists(&p, P "self_attn.q_proj"));
    assert_true(lists(&p, P "self_attn.v_proj"));
    assert_true(lists(&p, P "mlp.gate_proj"));
    assert_false(lists(&p, P "self_attn.o_proj"));
    qf_policy_fini(&p.policy);
    plan(&p, "nf4+skip=k_proj", LLAMA, llama, LLAMA_COUNT);
    assert_int_equal(p.policy.decisions[1].reason, QF_REASON_QUANTIZED);
    qf_policy_fini(&p.policy);
    plan(&p, "fp8", LLAMA, narrow, 5);
    expect(&p, shapes, 5);
    /* by the ends of their names, too: another class calls them otherwise */
    assert_true(lists(&p, P "mlp.down_proj"));
    assert_true(lists(&p, "layers.0.mlp.down_proj"));
    qf_policy_fini(&p.policy);
    plan(&p, "ct-w4a16", LLAMA, narrow, 5);
    assert_int_equal(p.policy.decisions[1].reason, QF_REASON_QUANTIZED);
    assert_int_equal(p.policy.decisions[4].reason, QF_REASON_SHAPE);
    assert_true(lists(&p, "re:(.*\\.)?layers.0.mlp.down_proj$"));
    qf_policy_fini(&p.policy);
}

/* An entry that would hit what is quantized. */
static void test_closure(void **state)
{
    static const struct given nested[] = {{"a.fc.weight", 40, 40},
                                          {"a.fc.inner.weight", 128, 128},
                                          {"b.fc.inner.weight", 128, 128}};
    static const enum qf_reason closed[] = {QF_REASON_SHAPE, QF_REASON_CLOSURE,
                                            QF_REASON_QUANTIZED};
    static const enum qf_reason exact[] = {QF_REASON_SHAPE, QF_REASON_QUANTIZED,
                                           QF_REASON_QUANTIZED};
    static const struct given same_end[] = {{"a.b.c.fc.weight", 40, 40},
                                            {"z.b.c.fc.weight", 128, 128}};
    struct planned p;
    (void)state;
    plan(&p, "fp8", "{}", nested, 3);
    expect(&p, closed, 3);
    qf_policy_fini(&p.policy);
    plan(&p, "ct-w8a16", "{}", nested, 3); /* names are whole ones */
    expect(&p, exact, 3);
    qf_policy_fini(&p.policy);
    plan(&p, "ct-w8a16", "{}", same_end, 2);
    assert_false(lists(&p, "re:(.*\\.)?b.c.fc$"));
    qf_policy_fini(&p.policy);
    /* a head that is forced takes the pattern for heads away */
    plan(&p, "fp8+force=lm_head",
         "{\"architectures\": [\"LlamaForCausalLM\"], \"tie_word_embeddings\": false}",
         llama, LLAMA_COUNT);
    assert_int_equal(p.policy.decisions[9].reason, QF_REASON_QUANTIZED);
    assert_false(lists(&p, "lm_head"));
    qf_policy_fini(&p.policy);
}

static void test_experts(void **state)
{
    static const struct given moe[] = {{P "self_attn.o_proj.weight", 256, 256},
                                       {P "mlp.experts.0.up_proj.weight", 256, 256},
                                       {P "mlp.experts.1.up_proj.weight", 256, 256},
                                       {P "mlp.gate.weight", 8, 256}};
    struct planned p;
    (void)state;
    plan(&p, "fp8", "{}", moe, 4);
    assert_int_equal(p.policy.decisions[1].reason, QF_REASON_EXPERTS);
    assert_true(lists(&p, P "mlp.experts"));
    assert_true(lists(&p, "layers.0.mlp.experts"));
    assert_true(lists(&p, P "mlp.gate"));
    assert_false(lists(&p, P "mlp.experts.0.up_proj"));
    qf_policy_fini(&p.policy);
    plan(&p, "ct-fp8", "{}", moe, 4);
    assert_non_null(strstr(p.policy.reason, "experts"));
    qf_policy_fini(&p.policy);
}

static void passes(const char *view, const char *config, const struct given *given,
                   size_t count, const char *words)
{
    struct planned p;
    plan(&p, view, config, given, count);
    if (strstr(p.policy.reason, words) == NULL)
        fail_msg("%s: '%s' does not say '%s'", view, p.policy.reason, words);
    assert_null(p.policy.decisions);
    assert_null(p.policy.skip);
    qf_policy_fini(&p.policy);
}

static void test_reasons(void **state)
{
    static const char flux[] = "{\"_class_name\": \"FluxTransformer2DModel\"}";
    static const char vit[] = "{\"model_type\": \"vit\"}";
    static const struct given linear = {"x.fc.weight", 128, 128};
    static const struct given odd[] = {{"x.fc.weight", 128, 128},
                                       {"x.fd.weight", 128, 40}};
    static const struct given named[] = {{"Linear.weight", 128, 40},
                                         {"x.fc.weight", 128, 128}};
    static const struct given regex[] = {{"x.f+c.weight", 128, 40},
                                         {"x.fc.weight", 128, 128}};
    struct planned p;
    (void)state;
    passes("fp8", flux, &linear, 1, "diffusers cannot load 'fp8'");
    passes("ct-w8a8", flux, &linear, 1, "diffusers cannot load 'ct-w8a8'");
    passes("ao-int8wo", vit, &linear, 1, "renames its modules");
    passes("ct-w8a16", vit, odd, 2, "renames its modules");
    passes("ct-w8a16", "{\"vision_config\": {\"model_type\": \"vit\"}}", odd, 2,
           "renames its modules");
    passes("ct-w8a16", "{}", named, 2, "name of a class");
    passes("ct-w8a16", "{}", regex, 2, "in ignore: its name has characters");
    passes("fp8", "{}", regex, 2, "in modules_to_not_convert: its name has");
    plan(&p, "ct-w8a16", vit, &linear, 1); /* nothing is kept */
    assert_string_equal(p.policy.reason, "");
    qf_policy_fini(&p.policy);
    plan(&p, "ao-int8wo", flux, &linear, 1);
    assert_int_equal(p.policy.quantized_count, 1);
    assert_int_equal(p.policy.skip_count, 0);
    qf_policy_fini(&p.policy);
}

/* Only Linear modules have these formats. */
static void test_conv1d(void **state)
{
    static const struct given gpt2[] = {{"h.0.attn.c_attn.weight", 128, 384}};
    struct planned p;
    (void)state;
    for (size_t i = 0; i < VIEWS; i++) {
        plan(&p, views[i], "{\"model_type\": \"gpt2\"}", gpt2, 1);
        assert_int_equal(p.policy.decisions[0].reason, QF_REASON_CONV1D);
        assert_false(p.policy.decisions[0].transposed);
        qf_policy_fini(&p.policy);
    }
}

static void test_renamed(void **state)
{
    (void)state;
    assert_true(qf_is_renamed("vit"));
    assert_true(qf_is_renamed("llava"));
    assert_false(qf_is_renamed("llama"));
    assert_false(qf_is_renamed("bert"));
    assert_false(qf_is_renamed(""));
}

/* The limit, and one past it. */
static void test_many_tensors(void **state)
{
    static struct qf_tensor tensors[QF_TORCHAO_TENSORS_MAX + 1];
    static const struct qf_tensor *pointers[QF_TORCHAO_TENSORS_MAX + 1];
    static char names[QF_TORCHAO_TENSORS_MAX + 1][16];
    static const uint64_t vector[] = {4};
    qf_json *doc = qf_json_parse("{}", 2, NULL);
    struct qf_view view;
    (void)state;
    assert_int_equal(qf_view_parse("ao-int8wo", 9, &view, NULL), 0);
    for (size_t i = 0; i <= QF_TORCHAO_TENSORS_MAX; i++) {
        snprintf(names[i], sizeof names[i], "n%06zu.bias", i);
        tensors[i] = (struct qf_tensor){.name = names[i],
                                        .dtype = QF_BF16,
                                        .rank = 1,
                                        .shape = vector};
        pointers[i] = &tensors[i];
    }
    for (size_t more = 0; more < 2; more++) {
        struct qf_policy policy;
        struct qf_err err = {""};
        assert_int_equal(qf_policy_plan(pointers, QF_TORCHAO_TENSORS_MAX + more, doc,
                                        &view, &policy, &err),
                         0);
        assert_int_equal(strstr(policy.reason, "more tensors") != NULL, more);
        qf_policy_fini(&policy);
    }
    qf_json_free(doc);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),        cmocka_unit_test(test_settings),
        cmocka_unit_test(test_overrides),    cmocka_unit_test(test_lists),
        cmocka_unit_test(test_all_or_none),  cmocka_unit_test(test_closure),
        cmocka_unit_test(test_experts),      cmocka_unit_test(test_reasons),
        cmocka_unit_test(test_conv1d),       cmocka_unit_test(test_renamed),
        cmocka_unit_test(test_many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
