/* SPDX-License-Identifier: Apache-2.0 */
/* Directories under views of TorchAO and others: metadata, headers, what an export's
 * shards hold together, and the attributes that tell views apart. */
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
#include "view/reshard.h"
#include "view/variant.h"

#define CONFIG                                                                         \
    "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", "          \
    "\"torch_dtype\": \"bfloat16\"}\n"
#define FLUX "{\"_class_name\": \"FluxTransformer2DModel\"}\n"
#define Q    "model.layers.0.self_attn.q_proj.weight"
#define U    "model.layers.0.mlp.up_proj.weight"
#define N    "model.norm.weight"

static const struct stfile_tensor tensors[] = {
    {Q, QF_BF16, 2, {128, 128, 0, 0}, NULL},
    {"scale", QF_BF16, 1, {8, 0, 0, 0}, NULL},
    {U, QF_BF16, 2, {256, 128, 0, 0}, NULL},
    {N, QF_BF16, 1, {128, 0, 0, 0}, NULL},
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

static void drop(struct ctx *c)
{
    qf_variant_free(c->variant);
    qf_model_free(c->model);
    qf_root_close(c->root);
    c->variant = NULL;
    c->model = NULL;
    c->root = NULL;
}

static int teardown(void **state)
{
    struct ctx *c = *state;
    drop(c);
    tmpdir_remove(c->dir);
    free(c);
    return 0;
}

static const struct qf_variant *make(struct ctx *c, const char *name)
{
    struct qf_err err = {""};
    struct qf_view view;
    drop(c);
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    if (qf_root_open(c->dir, &c->root, &err) != 0 ||
        qf_model_load(c->root, "", &c->model, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(qf_variant_new(c->model, &view, &c->variant), 0);
    return c->variant;
}

/* Two shards with an index. */
static void write_model(struct ctx *c, const char *config, const char *index)
{
    tmpdir_write_text(c->dir, "config.json", config);
    tmpdir_write_text(c->dir, index,
                      "{\"metadata\": {}, \"weight_map\": {\"" Q
                      "\": \"a.safetensors\","
                      " \"scale\": \"a.safetensors\", \"" U "\": \"b.safetensors\","
                      " \"" N "\": \"b.safetensors\"}}");
    stfile_write(c->dir, "a.safetensors", tensors, 2);
    stfile_write(c->dir, "b.safetensors", tensors + 2, 2);
}

static qf_json *header_of(const struct qf_variant *v, const char *name)
{
    const struct qf_variant_file *file = qf_variant_find(v, name);
    assert_non_null(file);
    assert_non_null(file->layout);
    assert_int_equal(file->size, file->layout->file_size);
    qf_json *doc =
        qf_json_parse(file->layout->header + 8, file->layout->header_size - 8, NULL);
    assert_non_null(doc);
    return doc;
}

static const char *entry(const qf_json *header, const char *key)
{
    return qf_json_string(qf_json_get(qf_json_get(header, "__metadata__"), key));
}

static const char record[] =
    "{\"_type\": \"Int8Tensor\", \"_data\": {\"act_quant_kwargs\": null, "
    "\"reduce_range\": false, \"block_size\": [1, 32], \"dtype\": {\"_type\": "
    "\"torch.dtype\", \"_data\": \"bfloat16\"}}, \"_tensor_data_names\": "
    "[\"zero_point\", \"qdata\", \"scale\"]}";

static void test_metadata(void **state)
{
    static const char *const shards[] = {"a.safetensors", "b.safetensors"};
    struct ctx *c = *state;
    write_model(c, CONFIG, "model.safetensors.index.json");
    const struct qf_variant *v = make(c, "ao-int8wo+group=32");
    assert_string_equal(v->reason, "");
    for (size_t i = 0; i < 2; i++) { /* the same in both */
        qf_json *header = header_of(v, shards[i]);
        assert_string_equal(entry(header, "format"), "pt");
        assert_string_equal(entry(header, Q), record);
        assert_string_equal(entry(header, U), record);
        assert_string_equal(entry(header, N), "{\"_type\": \"Tensor\"}");
        assert_null(entry(header, "scale")); /* no dot: transformers cannot parse it */
        assert_string_equal(entry(header, "tensor_names"),
                            "[\"" Q "\", \"" U "\", \"" N "\"]");
        qf_json_free(header);
    }
    qf_json *header = header_of(v, "a.safetensors");
    assert_non_null(
        qf_json_get(header, "model.layers.0.self_attn.q_proj._weight_qdata"));
    assert_non_null(
        qf_json_get(header, "model.layers.0.self_attn.q_proj._weight_zero_point"));
    assert_null(qf_json_get(header, Q));
    assert_null(qf_json_get(header, "model.layers.0.mlp.up_proj._weight_qdata"));
    qf_json_free(header);
    v = make(c, "ct-w4a16"); /* others have the shard's own metadata */
    header = header_of(v, "a.safetensors");
    assert_null(entry(header, "tensor_names"));
    qf_json_free(header);
}

static void test_diffusers(void **state)
{
    struct ctx *c = *state;
    write_model(c, FLUX, "diffusion_pytorch_model.safetensors.index.json");
    const struct qf_variant *v = make(c, "ao-float8wo");
    assert_string_equal(v->reason, "");
    qf_json *header = header_of(v, "b.safetensors");
    assert_non_null(entry(header, "scale"));
    assert_non_null(strstr(entry(header, Q), "\"Float8Tensor\""));
    assert_non_null(strstr(entry(header, Q), "\"block_size\": [1, 128]"));
    qf_json_free(header);
    const struct qf_variant_file *config = qf_variant_find(v, "config.json");
    assert_non_null(strstr(config->text, "\"Float8WeightOnlyConfig\""));
    assert_null(strstr(config->text, "include_input_output_embeddings"));
    v = make(c, "fp8");
    assert_int_equal(v->file_count, 0);
    assert_non_null(strstr(v->reason, "diffusers cannot load"));
}

/* Metadata of the source that would stand in the way. */
static void test_own_metadata(void **state)
{
    static const char header[] =
        "{\"__metadata__\":{\"tensor_names\":\"[]\",\"" Q
        "\":\"x\",\"author\":\"y\"},\"" Q
        "\":{\"dtype\":\"BF16\",\"shape\":[2,2],\"data_offsets\":[0,8]}}";
    struct ctx *c = *state;
    char file[8 + sizeof header - 1 + 8] = {0};
    file[0] = (char)(sizeof header - 1);
    memcpy(file + 8, header, sizeof header - 1);
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    tmpdir_write(c->dir, "model.safetensors", file, sizeof file);
    const struct qf_variant *v = make(c, "ao-int8dq");
    assert_string_equal(v->reason, "");
    qf_json *doc = header_of(v, "model.safetensors");
    assert_string_equal(entry(doc, "author"), "y");
    assert_string_equal(entry(doc, "tensor_names"), "[\"" Q "\"]");
    assert_non_null(strstr(entry(doc, Q), "QuantizeTensorToInt8Kwargs"));
    qf_json_free(doc);
}

/* Views that differ in a setting differ in what their attributes are made of. */
static void test_digests(void **state)
{
    static const char *const names[] = {"ao-int8wo", "ao-int8wo+group=64", "ao-int8dq",
                                        "ct-w4a16",  "ct-w4a16+group=64",  "ct-w8a16"};
    struct ctx *c = *state;
    struct qf_hash128 seen[6];
    write_model(c, CONFIG, "model.safetensors.index.json");
    for (size_t i = 0; i < 6; i++) {
        const struct qf_variant *v = make(c, names[i]);
        assert_string_equal(v->reason, "");
        seen[i] = qf_variant_find(v, "a.safetensors")->digest;
        for (size_t k = 0; k < i; k++)
            assert_false(qf_hash128_eq(seen[i], seen[k]));
    }
}

static void test_no_fit(void **state)
{
    struct ctx *c = *state;
    write_model(c, CONFIG, "model.safetensors.index.json");
    const struct qf_variant *v = make(c, "ao-int8wo+group=256");
    assert_string_equal(v->reason, "no tensor of it can be quantized: their shapes do "
                                   "not fit the view's settings");
}

/* What belongs to one weight stays together in new shards. */
static void test_reshard(void **state)
{
    static const char *const names[] = {"ao-int8wo", "ao-float8wo", "fp8", "ct-fp8",
                                        "ct-w4a16"};
    struct ctx *c = *state;
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    stfile_write(c->dir, "model.safetensors", tensors, 4);
    for (size_t i = 0; i < 5; i++) {
        const struct qf_variant *v = make(c, names[i]);
        const struct qf_layout *layout =
            qf_variant_find(v, "model.safetensors")->layout;
        struct qf_shard *shard;
        struct qf_reshard *plan;
        assert_int_equal(qf_shard_parse(layout->header, layout->header_size,
                                        layout->file_size, &shard, NULL),
                         0);
        const struct qf_shard *shards[] = {shard};
        assert_int_equal(qf_reshard_plan(shards, 1, 1, &plan, NULL), 0);
        assert_int_equal(plan->file_count, 4); /* a weight, or a kept tensor, each */
        qf_reshard_free(plan);
        qf_shard_free(shard);
    }
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(test_metadata), TEST(test_diffusers), TEST(test_own_metadata),
        TEST(test_digests),  TEST(test_no_fit),    TEST(test_reshard),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
