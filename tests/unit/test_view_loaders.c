/* SPDX-License-Identifier: Apache-2.0 */
/* What is said of loaders for each circumstance, and where every claim comes from. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "view/loaders.h"

static const uint64_t square[] = {64, 64}, cube[] = {4, 64, 64};
static struct qf_tensor tensors[] = {
    {"a.q_proj.weight", QF_BF16, 2, square, 0, 8192, NULL},
    {"b.experts.gate_up_proj", QF_BF16, 3, cube, 8192, 32768, NULL},
    {"c.experts.0.up.weight", QF_BF16, 2, square, 40960, 8192, NULL},
};

/* The judgement of a view of a model with the first `count` of the tensors. */
static void judge(const char *view, const char *config, size_t count, unsigned ranks,
                  struct qf_loader_judgement *out)
{
    static char name[] = "model.safetensors";
    struct qf_shard header = {.tensor_count = count, .tensors = tensors};
    struct qf_model_shard shard = {.name = name, .header = &header};
    struct qf_weight_set set = {.shard_count = 1, .shards = &shard};
    struct qf_decision decisions[] = {{QF_REASON_QUANTIZED, QF_BF16, false},
                                      {QF_REASON_NOT_WEIGHT, QF_BF16, false},
                                      {QF_REASON_EXPERTS, QF_BF16, false}};
    if (count == 2 && strstr(config, "\"swap\"") != NULL) {
        header.tensors = &tensors[1]; /* the 3-D one and the single expert */
        decisions[0] = decisions[1];
        decisions[1] = decisions[2];
    }
    struct qf_policy policy = {.count = count, .decisions = decisions};
    struct qf_model model = {.kind = strstr(config, "_class_name") != NULL
                                         ? QF_MODEL_DIFFUSERS
                                         : QF_MODEL_TRANSFORMERS,
                             .set_count = 1,
                             .sets = &set};
    model.config = qf_json_parse(config, strlen(config), NULL);
    assert_non_null(model.config);
    struct qf_variant variant = {.model = &model,
                                 .policy_count = 1,
                                 .policies = &policy};
    assert_int_equal(qf_view_parse(view, strlen(view), &variant.view, NULL), 0);
    const struct qf_loader_use use = {.tensor_parallel = ranks};
    qf_loaders_judge(&variant, &use, out);
    qf_json_free(model.config);
}

static void loads(const struct qf_loader_judgement *j, enum qf_loader loader,
                  enum qf_loads want)
{
    if (j->loads[loader] != want)
        fail_msg("%s: %s, not %s", qf_loader_name(loader),
                 qf_loads_name(j->loads[loader]), qf_loads_name(want));
}

/* How many claims about the loader have the words. */
static size_t says(const struct qf_loader_judgement *j, enum qf_loader loader,
                   const char *words)
{
    size_t n = 0;
    for (size_t i = 0; i < j->claim_count; i++)
        n +=
            j->claims[i]->loader == loader && strstr(j->claims[i]->text, words) != NULL;
    return n;
}

#define LLAMA "{\"model_type\": \"llama\", \"tie_word_embeddings\": false}"

static void test_transformers(void **state)
{
    struct qf_loader_judgement j;
    (void)state;
    judge("nf4", LLAMA, 1, 0, &j);
    loads(&j, QF_LOADER_SAFETENSORS, QF_LOADS_YES);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_YES);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_NO);
    loads(&j, QF_LOADER_ACCELERATE, QF_LOADS_IF);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_YES);
    loads(&j, QF_LOADER_VLLM, QF_LOADS_UNTESTED);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "head"), 0);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "experts"), 0);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "block size"), 0);
    assert_int_equal(says(&j, QF_LOADER_ACCELERATE, "load_and_quantize_model"), 1);
    judge("int8", LLAMA, 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_YES);
    assert_int_equal(says(&j, QF_LOADER_ACCELERATE, "load_and_quantize_model"), 0);
    judge("fp4", LLAMA, 1, 0, &j);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_IF);
}

static void test_circumstances(void **state)
{
    struct qf_loader_judgement j;
    (void)state;
    judge("nf4", "{\"tie_word_embeddings\": true}", 1, 0, &j);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "output head"), 1);
    judge("nf4+blocksize=128", LLAMA, 1, 0, &j);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "block size"), 1);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_YES);
    judge("nf4", LLAMA, 2, 0, &j); /* experts in one 3-D tensor */
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "experts"), 1);
    judge("nf4", "{\"swap\": 1}", 2, 0, &j);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "experts"), 1);
    judge("int8", "{\"model_type\": \"deepseek_v3\"}", 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_NO);
    judge("nf4", "{\"model_type\": \"deepseek_v3\"}", 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_YES);
    judge("dq", "{\"model_type\": \"mamba\"}", 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_NO);
}

static void test_vllm(void **state)
{
    struct qf_loader_judgement j;
    (void)state;
    judge("nf4", LLAMA, 1, 1, &j);
    loads(&j, QF_LOADER_VLLM, QF_LOADS_UNTESTED);
    judge("nf4", LLAMA, 1, 2, &j);
    loads(&j, QF_LOADER_VLLM, QF_LOADS_NO);
    assert_int_equal(says(&j, QF_LOADER_VLLM, "tensor parallel > 1"), 1);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_YES);
}

static void test_diffusers(void **state)
{
    struct qf_loader_judgement j;
    (void)state;
    static const char flux[] = "{\"_class_name\": \"FluxTransformer2DModel\"}";
    judge("nf4", flux, 1, 2, &j);
    loads(&j, QF_LOADER_SAFETENSORS, QF_LOADS_YES);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_NO);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_IF);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_UNTESTED);
    loads(&j, QF_LOADER_VLLM, QF_LOADS_UNTESTED);
    assert_int_equal(says(&j, QF_LOADER_DIFFUSERS, "GPU"), 1);
    judge("nf4+blocksize=128", flux, 1, 0, &j);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_UNTESTED);
    judge("nf4+storage=bfloat16", flux, 1, 0, &j);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_UNTESTED);
    judge("int8+threshold=5.0", flux, 1, 0, &j);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_IF);
}

static void test_scaled(void **state)
{
    static const char flux[] = "{\"_class_name\": \"FluxTransformer2DModel\"}";
    static const char vision[] = "{\"vision_config\": {\"model_type\": \"x\"}}";
    struct qf_loader_judgement j;
    (void)state;
    judge("ao-int8wo", LLAMA, 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_IF);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_NO);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_YES);
    loads(&j, QF_LOADER_ACCELERATE, QF_LOADS_UNTESTED);
    loads(&j, QF_LOADER_VLLM, QF_LOADS_UNTESTED);
    assert_int_equal(says(&j, QF_LOADER_TRANSFORMERS, "torchao 0.16"), 1);
    judge("ao-int8dq", LLAMA, 1, 0, &j);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_UNTESTED);
    judge("ao-float8wo", flux, 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_NO);
    loads(&j, QF_LOADER_DIFFUSERS, QF_LOADS_IF);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_UNTESTED);
    assert_int_equal(says(&j, QF_LOADER_DIFFUSERS, "torch_dtype"), 1);
    judge("fp8", LLAMA, 1, 2, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_YES);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_YES);
    loads(&j, QF_LOADER_VLLM, QF_LOADS_UNTESTED);
    assert_int_equal(says(&j, QF_LOADER_VLLM, "tensor parallel included"), 1);
    judge("ct-w4a16", LLAMA, 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_IF);
    loads(&j, QF_LOADER_PEFT, QF_LOADS_UNTESTED);
    judge("ao-int8dq", "{\"model_type\": \"mamba\"}", 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_NO);
    judge("ao-float8wo", "{\"model_type\": \"mamba\"}", 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_IF);
    judge("ct-w4a16", vision, 1, 0, &j);
    loads(&j, QF_LOADER_TRANSFORMERS, QF_LOADS_UNTESTED);
}

/* Every claim has a source, and every loader is spoken of, whatever the model is. */
static void test_sources(void **state)
{
    static const char *const configs[] = {LLAMA, "{\"_class_name\": \"X\"}"};
    static const char *const views[] = {"nf4",       "fp4", "dq+blocksize=128", "int8",
                                        "ao-int8dq", "fp8", "ct-w8a8"};
    (void)state;
    for (size_t i = 0; i < 14; i++) {
        struct qf_loader_judgement j;
        bool spoken[QF_LOADER_COUNT] = {false};
        judge(views[i / 2], configs[i % 2], 1, 0, &j);
        for (size_t c = 0; c < j.claim_count; c++) {
            assert_true(strlen(j.claims[c]->source) > 5);
            assert_true(c == 0 || j.claims[c]->loader >= j.claims[c - 1]->loader);
            spoken[j.claims[c]->loader] = true;
        }
        for (int l = 0; l < QF_LOADER_COUNT; l++)
            assert_true(spoken[l]);
    }
}

static void test_names(void **state)
{
    (void)state;
    for (int l = 0; l < QF_LOADER_COUNT; l++)
        assert_int_equal(qf_loader_find(qf_loader_name((enum qf_loader)l)), l);
    assert_int_equal(qf_loader_find("sglang"), QF_LOADER_COUNT);
    assert_string_equal(qf_loads_name(QF_LOADS_UNTESTED), "untested");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_transformers), cmocka_unit_test(test_circumstances),
        cmocka_unit_test(test_vllm),         cmocka_unit_test(test_diffusers),
        cmocka_unit_test(test_scaled),       cmocka_unit_test(test_sources),
        cmocka_unit_test(test_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
