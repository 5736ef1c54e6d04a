/* SPDX-License-Identifier: Apache-2.0 */
/* Views that quantize nothing, and other views of what bitsandbytes has quantized. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/bnb.h"
#include "support/stfile.h"
#include "support/tmpdir.h"
#include "view/loaders.h"
#include "view/overrides.h"
#include "view/settings.h"
#include "view/variant.h"

#define BNB    "\"quantization_config\": {\"quant_method\": \"bitsandbytes\"}"
#define CONFIG "{\"model_type\": \"llama\", " BNB ", \"torch_dtype\": \"float16\"}\n"
#define Q      "model.layers.0.self_attn.q_proj"
#define STATE                                                                          \
    "{\"quant_type\": \"nf4\", \"blocksize\": 64, \"dtype\": \"bfloat16\", "           \
    "\"shape\": [64, 64]}"

static const float map[256];
static const unsigned char zero;

/* A weight of 64 x 64 in nf4, and norms of two dtypes. */
static const struct stfile_tensor nf4[] = {
    {Q ".weight", QF_U8, 2, {2048, 1, 0, 0}, NULL},
    {Q ".weight.absmax", QF_F32, 1, {64, 0, 0, 0}, NULL},
    {Q ".weight.quant_map", QF_F32, 1, {16, 0, 0, 0}, map},
    {Q ".weight.quant_state.bitsandbytes__nf4",
     QF_U8,
     1,
     {sizeof STATE - 1, 0, 0, 0},
     STATE},
    {"model.norm.weight", QF_F16, 1, {64, 0, 0, 0}, NULL},
    {"model.ids", QF_I64, 1, {2, 0, 0, 0}, NULL},
};
static const struct stfile_tensor int8[] = {
    {Q ".weight", QF_I8, 2, {64, 64, 0, 0}, NULL},
    {Q ".SCB", QF_F32, 1, {64, 0, 0, 0}, NULL},
    {Q ".weight_format", QF_U8, 0, {0, 0, 0, 0}, &zero},
    {"model.norm.weight", QF_F16, 1, {64, 0, 0, 0}, NULL},
};
static const struct stfile_tensor plain[] = {
    {Q ".weight", QF_F16, 2, {64, 64, 0, 0}, NULL},
    {"model.norm.weight", QF_F32, 1, {64, 0, 0, 0}, NULL},
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
    assert_int_equal(qf_root_open(c->dir, &c->root, NULL), 0);
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

static const struct qf_variant *make(struct ctx *c, const char *name)
{
    struct qf_view view;
    qf_variant_free(c->variant);
    qf_model_free(c->model);
    c->variant = NULL;
    c->model = NULL;
    assert_int_equal(qf_view_parse(name, strlen(name), &view, NULL), 0);
    assert_int_equal(qf_model_load(c->root, "", &c->model, NULL), 0);
    assert_int_equal(qf_variant_new(c->model, &view, &c->variant), 0);
    return c->variant;
}

static void put(struct ctx *c, const char *config, const struct stfile_tensor *tensors,
                size_t count)
{
    tmpdir_write_text(c->dir, "config.json", config);
    stfile_write(c->dir, "model.safetensors", tensors, count);
}

#define PUT(c, config, tensors)                                                        \
    put(c, config, tensors, sizeof tensors / sizeof *tensors)

static void assert_passes(struct ctx *c, const char *view, const char *says)
{
    const struct qf_variant *v = make(c, view);
    assert_int_equal(v->file_count, 0);
    if (strstr(v->reason, says) == NULL)
        fail_msg("%s: '%s' does not say '%s'", view, v->reason, says);
}

static const struct qf_variant_file *file_of(const struct qf_variant *v,
                                             const char *name)
{
    const struct qf_variant_file *file = qf_variant_find(v, name);
    if (file == NULL)
        fail_msg("no %s: %s", name, v->reason);
    return file;
}

static const struct qf_layout_tensor *tensor_of(const struct qf_variant *v,
                                                const char *name)
{
    const struct qf_layout *layout = file_of(v, "model.safetensors")->layout;
    for (size_t i = 0; i < layout->tensor_count; i++)
        if (strcmp(layout->tensors[i].src->name, name) == 0)
            return &layout->tensors[i];
    fail_msg("no %s", name);
    return NULL;
}

static enum qf_span_kind span_of(const struct qf_variant *v, const char *name)
{
    const struct qf_layout *layout = file_of(v, "model.safetensors")->layout;
    const struct qf_layout_tensor *t = tensor_of(v, name);
    for (size_t i = 1; i < layout->span_count; i++)
        if (&layout->tensors[layout->spans[i].tensor] == t)
            return layout->spans[i].kind;
    fail_msg("no span of %s", name);
    return QF_SPAN_HEADER;
}

static void assert_config(const struct qf_variant *v, const char *want)
{
    assert_string_equal(file_of(v, "config.json")->text, want);
}

/* ---- names ---- */

static void test_names(void **state)
{
    static const char *const names[] = {"bf16", "fp16", "fp32"};
    static const char *const settings[] = {"dtype=float16", "only=a", "skip=a",
                                           "force=a", "blocksize=64"};
    (void)state;
    for (size_t i = 0; i < 3; i++) {
        struct qf_view view;
        struct qf_err err = {""};
        assert_int_equal(qf_view_parse(names[i], 4, &view, NULL), 0);
        assert_string_equal(view.name, names[i]);
        for (size_t s = 0; s < sizeof settings / sizeof *settings; s++) {
            char name[64];
            int n = snprintf(name, sizeof name, "%s+%s", names[i], settings[s]);
            assert_int_equal(qf_view_parse(name, (size_t)n, &view, &err), -EINVAL);
            assert_non_null(strstr(err.text, "(it has none)"));
        }
    }
}

static void test_overrides(void **state)
{
    static const char none[] = "{\"views\": {\"bf16\": {\"skip\": [\"a\"]}}}";
    static const char fine[] = "{\"views\": {\"bf16\": {}}, \"dtype\": \"float16\"}";
    struct qf_err err = {""};
    assert_int_equal(qf_overrides_check(none, strlen(none), &err), -EINVAL);
    assert_non_null(strstr(err.text, "'bf16' has no settings"));
    assert_int_equal(qf_overrides_check(fine, strlen(fine), &err), 0);
    /* What all views of a model are told does not concern these. */
    struct ctx *c = *state;
    PUT(c, CONFIG, nf4);
    tmpdir_write_text(c->dir, "quantfs.json",
                      "{\"dtype\": \"float16\", \"skip\": [\"q_proj\"]}");
    const struct qf_variant *v = make(c, "bf16");
    assert_int_equal(v->policies[0].dtype, QF_BF16);
    assert_int_equal(tensor_of(v, Q ".weight")->out_dtype, QF_BF16);
}

/* ---- dequantized ---- */

static void test_nf4(void **state)
{
    struct ctx *c = *state;
    PUT(c, CONFIG, nf4);
    const struct qf_variant *v = make(c, "fp32");
    assert_string_equal(v->reason, "");
    assert_config(v, "{\"model_type\": \"llama\", \"torch_dtype\": \"float32\"}\n");
    assert_int_equal(file_of(v, "model.safetensors")->layout->tensor_count, 3);
    assert_int_equal(tensor_of(v, Q ".weight")->out_dtype, QF_F32);
    assert_int_equal(span_of(v, Q ".weight"), QF_SPAN_DECODED);
    assert_int_equal(span_of(v, "model.norm.weight"), QF_SPAN_CAST);
    assert_int_equal(span_of(v, "model.ids"), QF_SPAN_COPY);
    const struct qf_policy *policy = &v->policies[0];
    assert_int_equal(policy->quantized_count, 0);
    size_t dequantized = 0;
    for (size_t i = 0; i < policy->count; i++) {
        dequantized += policy->decisions[i].reason == QF_REASON_DEQUANTIZED;
        assert_true(policy->decisions[i].reason == QF_REASON_DEQUANTIZED ||
                    policy->decisions[i].reason == QF_REASON_PLAIN);
    }
    assert_int_equal(dequantized, 1);
    assert_int_equal(file_of(v, "model.safetensors")->layout->tensor_bytes,
                     64 * 64 * 4 + 64 * 4 + 16);
    v = make(c, "bf16"); /* its own dtype */
    assert_int_equal(span_of(v, Q ".weight"), QF_SPAN_DECODED);
}

static void test_configs(void **state)
{
    static const struct {
        const char *config, *want;
    } cases[] = {
        {"{" BNB ", \"model_type\": \"llama\"}",
         "{\"model_type\": \"llama\", \"dtype\": \"bfloat16\"}"},
        {"{\"model_type\": \"llama\", " BNB
         ", \"dtype\": null, \"torch_dtype\": \"x\"}",
         "{\"model_type\": \"llama\", \"dtype\": \"bfloat16\", "
         "\"torch_dtype\": \"bfloat16\"}"},
        {"{\"model_type\": \"clip\", \"dtype\": \"float16\", " BNB
         ", \"text_config\": {\"model_type\": \"t\", \"dtype\": \"float16\", " BNB
         "}, \"a\": {" BNB "}, \"b\": {\"dtype\": 1}}",
         "{\"model_type\": \"clip\", \"dtype\": \"bfloat16\", \"text_config\": "
         "{\"model_type\": \"t\", \"dtype\": \"bfloat16\"}, \"a\": {}, "
         "\"b\": {\"dtype\": 1}}"},
    };
    struct ctx *c = *state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        PUT(c, cases[i].config, nf4);
        assert_config(make(c, "bf16"), cases[i].want);
    }
    tmpdir_write_text(c->dir, "config.json", "{\"_class_name\": \"X\", " BNB "}");
    stfile_write(c->dir, "diffusion_pytorch_model.safetensors", nf4, 6);
    assert_config(make(c, "bf16"), "{\"_class_name\": \"X\"}");
}

static void test_index(void **state)
{
    struct ctx *c = *state;
    tmpdir_write_text(c->dir, "config.json", CONFIG);
    stfile_write(c->dir, "a.safetensors", nf4, 6);
    tmpdir_write_text(c->dir, "model.safetensors.index.json",
                      "{\"metadata\": {\"total_size\": 1}, \"weight_map\": "
                      "{\"" Q ".weight\": \"a.safetensors\", \"" Q
                      ".weight.absmax\": \"a.safetensors\"}}");
    const struct qf_variant *v = make(c, "fp16");
    assert_string_equal(
        file_of(v, "model.safetensors.index.json")->text,
        "{\n  \"metadata\": {\n    \"total_size\": 8336\n  },\n  \"weight_map\": {\n"
        "    \"model.ids\": \"a.safetensors\",\n"
        "    \"" Q ".weight\": \"a.safetensors\",\n"
        "    \"model.norm.weight\": \"a.safetensors\"\n  }\n}\n");
}

static void test_plain_source(void **state)
{
    struct ctx *c = *state;
    static const char config[] = "{\"model_type\": \"llama\", \"dtype\": \"float16\"}";
    PUT(c, config, plain);
    const struct qf_variant *v = make(c, "fp16");
    assert_int_equal(span_of(v, Q ".weight"), QF_SPAN_COPY);
    assert_int_equal(span_of(v, "model.norm.weight"), QF_SPAN_CAST);
    assert_config(v, config);
    assert_config(make(c, "fp32"),
                  "{\"model_type\": \"llama\", \"dtype\": \"float32\"}");
    /* Nothing to do, unless the config says otherwise. */
    put(c, config, plain, 1);
    assert_passes(c, "fp16", "not quantized, and float16 already");
    put(c, "{\"model_type\": \"llama\", \"dtype\": \"float32\"}", plain, 1);
    assert_config(make(c, "fp16"), config);
    PUT(c,
        "{\"model_type\": \"llama\", \"quantization_config\": {\"quant_method\": "
        "\"awq\"}}",
        plain);
    assert_passes(c, "bf16", "already quantized (quant_method awq)");
}

/* A view of the same settings and another source dtype must not be taken for it. */
static void test_digests(void **state)
{
    struct ctx *c = *state;
    struct stfile_tensor other[4];
    memcpy(other, int8, sizeof other);
    PUT(c, CONFIG, int8);
    struct qf_hash128 a = file_of(make(c, "nf4"), "model.safetensors")->digest;
    other[3].dtype = QF_BF16; /* that of the weights */
    PUT(c, CONFIG, other);
    struct qf_hash128 b = file_of(make(c, "nf4"), "model.safetensors")->digest;
    assert_false(qf_hash128_eq(a, b));
}

/* ---- other views ---- */

static void test_through(void **state)
{
    static const char *const views[] = {"dq", "fp4", "int8", "nf4"};
    struct ctx *c = *state;
    for (int i = 0; i < 2; i++) {
        if (i == 0)
            PUT(c, CONFIG, nf4);
        else
            PUT(c, CONFIG, int8);
        for (size_t k = 0; k < 4; k++) {
            const char *own = i == 0 ? "nf4" : "int8";
            char says[128];
            snprintf(says, sizeof says,
                     "a checkpoint of bitsandbytes in %s, which the view of the same "
                     "codec shows as it is",
                     own);
            if (strcmp(views[k], own) == 0) {
                assert_passes(c, views[k], says);
                continue;
            }
            const struct qf_variant *v = make(c, views[k]);
            assert_string_equal(v->reason, "");
            const struct qf_layout_tensor *t = tensor_of(v, Q ".weight");
            assert_non_null(t->plan);
            assert_int_equal(t->plan->src_dtype, i == 0 ? QF_BF16 : QF_F16);
            assert_int_equal(t->plan->spec.dtype, QF_F16);
            const char *text = file_of(v, "config.json")->text;
            assert_non_null(strstr(text, "\"dtype\": \"float16\""));
            const char *first = strstr(text, "quantization_config");
            assert_non_null(first);
            assert_null(strstr(first + 1, "quantization_config"));
        }
    }
    assert_passes(c, "int8+threshold=5.0", "already quantized");
    /* Kept: rounded to the dtype that it is recorded in, then cast. */
    PUT(c, CONFIG, nf4);
    struct stfile_tensor more[10];
    memcpy(more, nf4, sizeof nf4);
    memcpy(more + 6, int8, 3 * sizeof *int8);
    more[6].name = "model.layers.0.mlp.up_proj.weight";
    more[7].name = "model.layers.0.mlp.up_proj.SCB";
    more[8].name = "model.layers.0.mlp.up_proj.weight_format";
    put(c, CONFIG, more, 9);
    const struct qf_variant *v = make(c, "nf4+skip=q_proj");
    assert_string_equal(v->reason, ""); /* of two codecs: of none */
    assert_int_equal(span_of(v, Q ".weight"), QF_SPAN_CAST);
    v = make(c, "nf4+skip=up_proj");
    assert_int_equal(span_of(v, "model.layers.0.mlp.up_proj.weight"), QF_SPAN_DECODED);
}

/* Codes of a Conv1D are those of a Linear, turned over. */
static void test_conv1d(void **state)
{
    static const char config[] = "{\"model_type\": \"gpt2\", " BNB "}";
    static const char weight[] = "h.0.attn.c_attn.weight";
    struct ctx *c = *state;
    struct stfile_tensor tensors[4];
    memcpy(tensors, int8, sizeof tensors);
    tensors[0].name = weight;
    tensors[1].name = "h.0.attn.c_attn.SCB";
    tensors[2].name = "h.0.attn.c_attn.weight_format";
    PUT(c, config, tensors);
    assert_passes(c, "bf16", "is the weight of a Conv1D module");
    const struct qf_variant *v = make(c, "nf4");
    assert_string_equal(v->reason, "");
    assert_non_null(tensor_of(v, weight)->plan);
    assert_false(tensor_of(v, weight)->plan->transposed);
    tensors[0].dtype = QF_F16;
    put(c, "{\"model_type\": \"gpt2\"}", tensors, 1);
    assert_true(tensor_of(make(c, "nf4"), weight)->plan->transposed);
    assert_string_equal(make(c, "bf16")->reason, "");
}

static void test_loaders(void **state)
{
    struct ctx *c = *state;
    struct qf_loader_judgement judgement;
    const struct qf_loader_use use = {.tensor_parallel = 2};
    PUT(c, CONFIG, nf4);
    qf_loaders_judge(make(c, "bf16"), &use, &judgement);
    assert_int_equal(judgement.loads[QF_LOADER_TRANSFORMERS], QF_LOADS_YES);
    assert_int_equal(judgement.loads[QF_LOADER_PEFT], QF_LOADS_YES);
    assert_int_equal(judgement.loads[QF_LOADER_VLLM], QF_LOADS_UNTESTED);
    for (size_t i = 0; i < judgement.claim_count; i++)
        assert_null(strstr(judgement.claims[i]->text, "bitsandbytes"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_names, setup, teardown),
        cmocka_unit_test_setup_teardown(test_overrides, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nf4, setup, teardown),
        cmocka_unit_test_setup_teardown(test_configs, setup, teardown),
        cmocka_unit_test_setup_teardown(test_index, setup, teardown),
        cmocka_unit_test_setup_teardown(test_plain_source, setup, teardown),
        cmocka_unit_test_setup_teardown(test_digests, setup, teardown),
        cmocka_unit_test_setup_teardown(test_through, setup, teardown),
        cmocka_unit_test_setup_teardown(test_conv1d, setup, teardown),
        cmocka_unit_test_setup_teardown(test_loaders, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
