/* SPDX-License-Identifier: Apache-2.0 */
/* Directories, from their files to what a view makes of them. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "support/stfile.h"
#include "support/tmpdir.h"
#include "view/variant.h"

#define CONFIG                                                                         \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "          \
    "\"torch_dtype\": \"bfloat16\"}\n"
#define Q "model.layers.0.self_attn.q_proj.weight"
#define K "model.layers.0.self_attn.k_proj.weight"
#define N "model.norm.weight"

static const struct stfile_tensor tensors[] = {
    {Q, QF_BF16, 2, {64, 64, 0, 0}, NULL},
    {K, QF_BF16, 2, {32, 64, 0, 0}, NULL},
    {N, QF_BF16, 1, {64, 0, 0, 0}, NULL},
};

struct ctx {
    char *dir;
    qf_root *root;
    struct qf_model *model;
    struct qf_variant *variant;
};

static int setup(void **state)
{
    struct ctx *c = calloc(1, sizeof *c);
    assert_non_null(c);
    c->dir = tmpdir_make();
    *state = c;
    return 0;
}

static int teardown(void **state)
{
    struct ctx *c = *state;
    qf_variant_free(c->variant);
    qf_model_free(c->model);
    qf_root_close(c->root);
    tmpdir_remove(c->dir);
    free(c);
    return 0;
}

/* Loads the store's root directory and looks at it through a view. */
static const struct qf_variant *make(struct ctx *c, const char *name)
{
    struct qf_err err = {""};
    struct qf_view view;
    qf_variant_free(c->variant);
    qf_model_free(c->model);
    qf_root_close(c->root);
    c->variant = NULL;
    c->model = NULL;
    c->root = NULL;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    if (qf_root_open(c->dir, &c->root, &err) != 0 ||
        qf_model_load(c->root, "", &c->model, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(qf_variant_new(c->model, &view, &c->variant), 0);
    return c->variant;
}

static void assert_passes(struct ctx *c, const char *word)
{
    static const char *const views[] = {"nf4", "int8"};
    for (size_t i = 0; i < 2; i++) {
        const struct qf_variant *v = make(c, views[i]);
        assert_int_equal(v->file_count, 0);
        assert_null(qf_variant_find(v, "config.json"));
        assert_null(qf_variant_find(v, "model.safetensors"));
        if (strstr(v->reason, word) == NULL)
            fail_msg("'%s' does not say '%s'", v->reason, word);
    }
}

static void test_single_file(void **state)
{
    struct ctx *c = *state;
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    stfile_write(c->dir, "model.safetensors", tensors, 3);
    const struct qf_variant *v = make(c, "nf4");
    assert_string_equal(v->reason, "");
    assert_int_equal(v->file_count, 2);
    assert_int_equal(v->policy_count, 1);
    assert_int_equal(v->policies[0].quantized_count, 2);
    const struct qf_variant_file *config = qf_variant_find(v, "config.json");
    const struct qf_variant_file *shard = qf_variant_find(v, "model.safetensors");
    assert_non_null(config);
    assert_non_null(shard);
    assert_int_equal(config->kind, QF_VARIANT_CONFIG);
    assert_int_equal(config->size, strlen(config->text));
    assert_non_null(strstr(config->text, "\"bnb_4bit_quant_type\": \"nf4\""));
    assert_int_equal(shard->kind, QF_VARIANT_SHARD);
    assert_int_equal(shard->size, shard->layout->file_size);
    assert_ptr_equal(shard->source, &c->model->sets[0].shards[0]);
    assert_null(qf_variant_find(v, "a"));
    assert_null(qf_variant_find(v, "model.safetensorsx"));
    assert_null(qf_variant_find(v, "zzz"));
    assert_null(qf_variant_find(v, ""));
    /* same files, same settings: same digests; another view: others */
    struct qf_hash128 digest = shard->digest, text = config->digest;
    v = make(c, "nf4");
    assert_true(qf_hash128_eq(qf_variant_find(v, "model.safetensors")->digest, digest));
    assert_true(qf_hash128_eq(qf_variant_find(v, "config.json")->digest, text));
    v = make(c, "dq");
    assert_false(
        qf_hash128_eq(qf_variant_find(v, "model.safetensors")->digest, digest));
    assert_false(qf_hash128_eq(qf_variant_find(v, "config.json")->digest, text));
}

static void write_index(struct ctx *c, const char *name, const char *first,
                        const char *second)
{
    char text[1024];
    snprintf(text, sizeof text,
             "{\"metadata\": {\"total_size\": 1}, \"weight_map\": {\"" Q
             "\": \"%s\", \"" K "\": \"%s\", \"" N "\": \"%s\"}}",
             first, second, second);
    tmpdir_write_text(c->dir, name, text);
}

static void test_sharded(void **state)
{
    struct ctx *c = *state;
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    /* not in the order of their names */
    write_index(c, "model.safetensors.index.json", "z.safetensors", "a.safetensors");
    stfile_write(c->dir, "z.safetensors", tensors, 1);
    stfile_write(c->dir, "a.safetensors", tensors + 1, 2);
    const struct qf_variant *v = make(c, "int8");
    assert_string_equal(v->reason, "");
    assert_int_equal(v->file_count, 4);
    for (size_t i = 1; i < v->file_count; i++)
        assert_true(strcmp(v->files[i - 1].name, v->files[i].name) < 0);
    const struct qf_variant_file *index =
        qf_variant_find(v, "model.safetensors.index.json");
    assert_non_null(index);
    assert_int_equal(index->kind, QF_VARIANT_INDEX);
    assert_non_null(strstr(index->text, "self_attn.q_proj.SCB\": \"z.safetensors\""));
    assert_non_null(strstr(index->text, "self_attn.k_proj.SCB\": \"a.safetensors\""));
    /* each shard has its own layout: of its own tensors */
    const struct qf_variant_file *a = qf_variant_find(v, "a.safetensors");
    const struct qf_variant_file *z = qf_variant_find(v, "z.safetensors");
    assert_int_equal(a->layout->tensor_count, 2);
    assert_int_equal(z->layout->tensor_count, 1);
    assert_non_null(z->layout->tensors[0].plan);
    assert_int_equal(z->layout->tensors[0].plan->rows, 64);
}

/* An index may name the single file that loaders take without it: two sets, one file.
 */
static void test_index_of_a_single_file(void **state)
{
    struct ctx *c = *state;
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    write_index(c, "model.safetensors.index.json", "model.safetensors",
                "model.safetensors");
    stfile_write(c->dir, "model.safetensors", tensors, 3);
    const struct qf_variant *v = make(c, "nf4");
    assert_string_equal(v->reason, "");
    assert_int_equal(v->file_count, 3);
    const struct qf_variant_file *index =
        qf_variant_find(v, "model.safetensors.index.json");
    assert_non_null(index);
    assert_non_null(
        strstr(index->text, "q_proj.weight.absmax\": \"model.safetensors\""));
    assert_non_null(qf_variant_find(v, "model.safetensors")->layout);
}

/* Two sets of weights under one config: the same plan, or none. */
static void test_two_sets(void **state)
{
    struct ctx *c = *state;
    const struct stfile_tensor half[] = {
        {Q, QF_F16, 2, {64, 64, 0, 0}, NULL},
        {K, QF_F16, 2, {32, 64, 0, 0}, NULL},
        {N, QF_F16, 1, {64, 0, 0, 0}, NULL},
    };
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    stfile_write(c->dir, "model.safetensors", tensors, 3);
    stfile_write(c->dir, "model.fp16.safetensors", half, 3);
    const struct qf_variant *v = make(c, "nf4");
    assert_string_equal(v->reason, "");
    assert_int_equal(v->policy_count, 2);
    assert_int_equal(v->file_count, 3);
    assert_non_null(qf_variant_find(v, "model.fp16.safetensors"));
    /* one of them has less to quantize */
    stfile_write(c->dir, "model.fp16.safetensors", half + 1, 2);
    assert_passes(c, "different");
}

static void test_passes_through(void **state)
{
    struct ctx *c = *state;
    assert_passes(c, "not a model");
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    assert_passes(c, "no safetensors weights");
    stfile_write(c->dir, "model.safetensors", tensors + 2, 1);
    assert_passes(c, "no tensor");
    tmpdir_write_text(c->dir, "model.safetensors", "not a shard at all");
    assert_passes(c, "model.safetensors");
    stfile_write(c->dir, "model.safetensors", tensors, 3);
    tmpdir_write_text(c->dir, "config.json", "{\"model_type\": \"llama\",");
    assert_passes(c, "config.json");
    tmpdir_write_text(c->dir, "config.json", "{\"scheduler\": 1}");
    assert_passes(c, "not a model");
    tmpdir_write_text(c->dir, "config.json",
                      "{\"model_type\": \"llama\", \"quantization_config\": "
                      "{\"quant_method\": \"gptq\"}}");
    assert_passes(c, "gptq");
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    assert_string_equal(make(c, "nf4")->reason, "");
    tmpdir_write_text(c->dir, "adapter_config.json", "{}");
    assert_passes(c, "adapter");
    qf_variant_free(NULL);
}

/* Tensors that no loader could give a plan: the directory passes through or they are
 * kept; nothing falls over. */
static void test_odd_tensors(void **state)
{
    struct ctx *c = *state;
    const struct stfile_tensor odd[] = {
        {Q, QF_BF16, 2, {64, 64, 0, 0}, NULL},
        {K, QF_BF16, 2, {0, 64, 0, 0}, NULL},
        {"model.layers.0.self_attn.v_proj.weight", QF_BF16, 2, {64, 0, 0, 0}, NULL},
        {"model.layers.0.self_attn.o_proj.weight", QF_F64, 2, {4, 4, 0, 0}, NULL},
        {"model.layers.0.mlp.up_proj.weight", QF_BF16, 3, {4, 4, 4, 0}, NULL},
        {".weight", QF_BF16, 2, {4, 4, 0, 0}, NULL},
        {"weight", QF_BF16, 2, {4, 4, 0, 0}, NULL},
        {"", QF_BF16, 2, {4, 4, 0, 0}, NULL},
    };
    static const char *const views[] = {"nf4", "fp4", "dq", "int8"};
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    stfile_write(c->dir, "model.safetensors", odd, 8);
    for (size_t i = 0; i < 4; i++) {
        const struct qf_variant *v = make(c, views[i]);
        assert_true((v->reason[0] == '\0') == (v->file_count == 2));
        if (v->file_count == 2)
            assert_true(v->policies[0].decisions[0].reason == QF_REASON_QUANTIZED ||
                        v->policies[0].quantized_count > 0);
    }
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_single_file),
        TEST(test_sharded),
        TEST(test_index_of_a_single_file),
        TEST(test_two_sets),
        TEST(test_passes_through),
        TEST(test_odd_tensors),
    };
    return cmocka_run_group_tests_name("view_variant", tests, NULL, NULL);
}
