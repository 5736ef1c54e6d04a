/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF files as they are planned: the container byte by byte, which type each dtype
 * becomes, names, limits, and what is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/gguf.h"
#include "view/gguf_llm.h"
#include "view/gguf_write.h"

/* ---- the container ---- */

static void test_container(void **state)
{
    (void)state;
    static const char want[] =
        "GGUF\3\0\0\0" /* version */
        "\2\0\0\0\0\0\0\0\5\0\0\0\0\0\0\0"
        "\1\0\0\0\0\0\0\0a\4\0\0\0\7\0\0\0"            /* a = u32 7 */
        "\1\0\0\0\0\0\0\0b\6\0\0\0\0\0\200\77"         /* b = f32 1 */
        "\1\0\0\0\0\0\0\0c\7\0\0\0\1"                  /* c = true */
        "\1\0\0\0\0\0\0\0d\10\0\0\0\2\0\0\0\0\0\0\0xy" /* d = "xy" */
        "\1\0\0\0\0\0\0\0e\11\0\0\0\10\0\0\0\1\0\0\0\0\0\0\0\1\0\0\0\0\0\0\0z"
        "\1\0\0\0\0\0\0\0t\2\0\0\0\3\0\0\0\0\0\0\0\2\0\0\0\0\0\0\0\0\0\0\0"
        "\0\0\0\0\0\0\0\0"
        "\1\0\0\0\0\0\0\0u\1\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0"
        "\40\0\0\0\0\0\0\0";
    struct qf_gguf_head head = {0};
    size_t size = 0;
    qf_gguf_add_u32(&head, "a", 7);
    qf_gguf_add_f32(&head, "b", 1.0f);
    qf_gguf_add_bool(&head, "c", true);
    qf_gguf_add_string(&head, "d", "xy");
    qf_gguf_begin_array(&head, "e", QF_GGUF_STRING, 1);
    qf_gguf_put_string(&head, "z", 1);
    assert_int_equal(qf_gguf_add_tensor(&head, "t", 2, (const uint64_t[]){2, 3}, 0, 24),
                     0);
    assert_int_equal(qf_gguf_add_tensor(&head, "u", 0, NULL, 0, 4), 32);
    assert_int_equal(head.data_size, 64);
    char *all = qf_gguf_finish(&head, &size);
    assert_non_null(all);
    assert_int_equal(size % QF_GGUF_ALIGN, 0);
    assert_true(size >= sizeof want - 1 && size < sizeof want - 1 + QF_GGUF_ALIGN);
    assert_memory_equal(all, want, sizeof want - 1);
    for (size_t i = sizeof want - 1; i < size; i++)
        assert_int_equal(all[i], 0);
    free(all);
}

/* ---- models made by hand ---- */

struct made {
    struct qf_model model;
    struct qf_weight_set set;
    struct qf_model_shard shards[2];
    struct qf_shard headers[2];
    struct qf_policy policy;
    struct qf_layout *layout;
    struct qf_err err;
};

static int build(struct made *m, const char *config, const struct qf_tensor *tensors,
                 size_t count, const char *view_name)
{
    struct qf_view view;
    m->model = (struct qf_model){.kind = strstr(config, "_class_name") != NULL
                                             ? QF_MODEL_DIFFUSERS
                                             : QF_MODEL_TRANSFORMERS,
                                 .whole = true,
                                 .name = "tiny",
                                 .set_count = 1,
                                 .sets = &m->set};
    m->model.config = qf_json_parse(config, strlen(config), &m->err);
    assert_non_null(m->model.config);
    m->set.shards = m->shards;
    if (m->set.shard_count == 0)
        m->set.shard_count = 1;
    m->shards[0].header = &m->headers[0];
    m->shards[1].header = &m->headers[1];
    m->headers[0].tensors = tensors;
    m->headers[0].tensor_count = count;
    m->err.text[0] = '\0';
    assert_int_equal(qf_view_parse(view_name, strlen(view_name), &view, &m->err), 0);
    int rc = qf_gguf_build(&m->model, &view, &m->layout, &m->policy, &m->err);
    assert_true((rc == 0) == (m->layout != NULL));
    return rc;
}

static void end(struct made *m)
{
    qf_layout_free(m->layout);
    qf_policy_fini(&m->policy);
    qf_json_free(m->model.config);
    m->layout = NULL;
}

static const char flux[] = "{\"_class_name\": \"FluxTransformer2DModel\"}";
static const uint64_t square[] = {64, 64};
#define WEIGHT(dtype_, size_)                                                          \
    {                                                                                  \
        .name = "a.weight", .dtype = dtype_, .rank = 2, .shape = square, .size = size_ \
    }

static void expect_refused(const char *config, const struct qf_tensor *tensors,
                           size_t count, const char *word)
{
    struct made m = {0};
    assert_int_equal(build(&m, config, tensors, count, "gguf-q8_0"), -ENOTSUP);
    if (strstr(m.err.text, word) == NULL)
        fail_msg("'%s' says nothing of '%s'", m.err.text, word);
    end(&m);
}

static void test_dtypes(void **state)
{
    (void)state;
    static const struct {
        enum qf_dtype dtype;
        size_t width;
    } taken[] = {{QF_I8, 1}, {QF_I16, 2}, {QF_I32, 4}, {QF_I64, 8}, {QF_F64, 8}};
    static const enum qf_dtype refused[] = {QF_BOOL, QF_U8, QF_U64, QF_F8_E4M3};
    for (size_t i = 0; i < 5; i++) {
        struct qf_tensor tensors[] = {WEIGHT(QF_BF16, 8192),
                                      {.name = "b",
                                       .dtype = taken[i].dtype,
                                       .rank = 2,
                                       .shape = square,
                                       .size = 4096 * taken[i].width}};
        struct made m = {0};
        assert_int_equal(build(&m, flux, tensors, 2, "gguf-q4_1"), 0);
        const struct qf_layout_tensor *t = m.layout->tensors;
        assert_non_null(t[0].plan);
        assert_null(t[1].plan);
        assert_int_equal(t[1].out_dtype, taken[i].dtype);
        assert_int_equal(m.layout->spans[1].kind, QF_SPAN_PART);
        assert_int_equal(m.layout->spans[1].size, 128 * 20);
        assert_int_equal(m.layout->spans[2].kind, QF_SPAN_COPY);
        assert_int_equal(m.policy.quantized_count, 1);
        end(&m);
    }
    for (size_t i = 0; i < 4; i++) {
        struct qf_tensor tensors[] = {WEIGHT(QF_BF16, 8192),
                                      {.name = "b",
                                       .dtype = refused[i],
                                       .rank = 2,
                                       .shape = square,
                                       .size = 4096}};
        expect_refused(flux, tensors, 2, qf_dtype_name(refused[i]));
    }
}

/* Spans cover the file, and every tensor begins at a multiple of 32. */
static void test_padding(void **state)
{
    (void)state;
    static const uint64_t odd[] = {3};
    struct qf_tensor tensors[] = {
        {.name = "n", .dtype = QF_F16, .rank = 1, .shape = odd, .size = 6},
        WEIGHT(QF_F32, 16384),
        {.name = "z", .dtype = QF_F32, .rank = 1, .shape = odd, .size = 12},
    };
    struct made m = {0};
    uint64_t off = 0;
    assert_int_equal(build(&m, flux, tensors, 3, "gguf-q8_0"), 0);
    for (size_t i = 0; i < m.layout->span_count; i++) {
        const struct qf_span *span = &m.layout->spans[i];
        assert_int_equal(span->off, off);
        assert_true(span->size > 0);
        if (span->kind != QF_SPAN_ZERO)
            assert_int_equal(span->off % QF_GGUF_ALIGN, 0);
        off += span->size;
    }
    assert_int_equal(off, m.layout->file_size);
    assert_int_equal(off % QF_GGUF_ALIGN, 0);
    assert_int_equal(m.layout->spans[1].kind, QF_SPAN_CAST);
    assert_int_equal(m.layout->spans[1].size, 12);
    end(&m);
}

/* Both shards give their tensors, each with the number of its source. */
static void test_two_shards(void **state)
{
    (void)state;
    struct qf_tensor first = WEIGHT(QF_BF16, 8192), second = WEIGHT(QF_F16, 8192);
    struct made m = {0};
    second.name = "b.weight";
    m.set.shard_count = 2;
    m.headers[1].tensors = &second;
    m.headers[1].tensor_count = 1;
    assert_int_equal(build(&m, flux, &first, 1, "gguf-q5_0"), 0);
    assert_int_equal(m.layout->tensor_count, 2);
    assert_int_equal(m.layout->tensors[0].source, 0);
    assert_int_equal(m.layout->tensors[1].source, 1);
    assert_int_equal(m.layout->tensors[1].plan->spec.dtype, QF_F16);
    end(&m);
    m = (struct made){.set.shard_count = 2};
    m.headers[0].file_size = QF_GGUF_SIZE_MAX - 8;
    m.headers[1].file_size = 8;
    assert_int_equal(build(&m, flux, &first, 1, "gguf-q5_0"), 0);
    end(&m);
    m.headers[1].file_size = 9;
    assert_int_equal(build(&m, flux, &first, 1, "gguf-q5_0"), -ENOTSUP);
    end(&m);
}

/* ---- language models ---- */

#define LLAMA                                                                          \
    "\"model_type\": \"llama\", \"num_attention_heads\": 4, \"hidden_size\": 64, "     \
    "\"num_hidden_layers\": 1, \"max_position_embeddings\": 8, "                       \
    "\"intermediate_size\": 64, \"rms_norm_eps\": 1e-5"

static int read_config(const char *text, struct qf_gguf_llm *out, struct qf_err *err)
{
    qf_json *config = qf_json_parse(text, strlen(text), err);
    assert_non_null(config);
    err->text[0] = '\0';
    int rc = qf_gguf_llm_read(config, out, err);
    qf_json_free(config);
    return rc;
}

static void test_configs(void **state)
{
    (void)state;
    struct qf_gguf_llm llm;
    struct qf_err err = {""};
    char text[512];
    for (unsigned past = 0; past < 2; past++) {
        snprintf(text, sizeof text, "{" LLAMA ", \"vocab_size\": %u}",
                 QF_GGUF_TOKENS_MAX + past);
        assert_int_equal(read_config(text, &llm, &err), past != 0 ? -ENOTSUP : 0);
    }
    assert_int_equal(read_config("{" LLAMA ", \"vocab_size\": 9, \"head_dim\": null}",
                                 &llm, &err),
                     0);
    assert_int_equal(llm.head_dim, 16);
    assert_int_equal(llm.kv_heads, 4);
    static const char *const bad[] = {
        "{" LLAMA "}",
        "{" LLAMA ", \"vocab_size\": -1}",
        "{" LLAMA ", \"vocab_size\": 1.5}",
        "{" LLAMA ", \"vocab_size\": \"9\"}",
        "{" LLAMA ", \"vocab_size\": 9, \"num_key_value_heads\": 0}",
        "{" LLAMA ", \"vocab_size\": 9, \"rope_scaling\": {\"type\": \"linear\"}}",
        "{" LLAMA ", \"vocab_size\": 9, \"rope_parameters\": {\"rope_type\": "
        "\"llama3\"}}",
        "{\"model_type\": \"gpt2\"}",
        "{\"architectures\": []}"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(read_config(bad[i], &llm, &err), -ENOTSUP);
        assert_true(err.text[0] != '\0');
    }
}

static void test_names(void **state)
{
    (void)state;
    static const struct {
        const char *name, *want;
        uint32_t heads;
    } cases[] = {
        {"model.embed_tokens.weight", "token_embd.weight", 0},
        {"lm_head.weight", "output.weight", 0},
        {"model.norm.weight", "output_norm.weight", 0},
        {"model.layers.0.self_attn.q_proj.weight", "blk.0.attn_q.weight", 4},
        {"model.layers.12.self_attn.k_proj.bias", "blk.12.attn_k.bias", 2},
        {"model.layers.3.self_attn.v_proj.weight", "blk.3.attn_v.weight", 0},
        {"model.layers.3.post_attention_layernorm.weight", "blk.3.ffn_norm.weight", 0},
        {"model.layers.3.self_attn.rotary_emb.inv_freq", "", 0},
    };
    static const char *const bad[] = {"score.weight",
                                      "model.layers.x.mlp.up_proj.weight",
                                      "model.layers.0.mlp.up_proj.weight_scale",
                                      "model.layers.0.mlp.gate.weight",
                                      "model.layers.1234567.mlp.up_proj.weight"};
    struct qf_gguf_llm llm = {.arch = "llama", .heads = 4, .kv_heads = 2};
    struct qf_err err = {""};
    char name[QF_GGUF_NAME_SIZE];
    uint32_t heads;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct qf_tensor t = WEIGHT(QF_BF16, 8192);
        t.name = cases[i].name;
        assert_int_equal(qf_gguf_llm_name(&llm, &t, name, &heads, &err), 0);
        assert_string_equal(name, cases[i].want);
        assert_int_equal(heads, cases[i].heads);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct qf_tensor t = WEIGHT(QF_BF16, 8192);
        t.name = bad[i];
        assert_int_equal(qf_gguf_llm_name(&llm, &t, name, &heads, &err), -ENOTSUP);
    }
    struct qf_tensor q = WEIGHT(QF_BF16, 8192);
    q.name = "model.layers.0.self_attn.q_proj.weight";
    llm.heads = 3;
    assert_int_equal(qf_gguf_llm_name(&llm, &q, name, &heads, &err), -ENOTSUP);
    llm.arch = "qwen2";
    assert_int_equal(qf_gguf_llm_name(&llm, &q, name, &heads, &err), 0);
    assert_int_equal(heads, 0);
    q.name = "lm_head.weight";
    llm.tied = true;
    assert_int_equal(qf_gguf_llm_name(&llm, &q, name, &heads, &err), 0);
    assert_string_equal(name, "");
}

/* A tokenizer and what is said of it. */
static void test_vocabularies(void **state)
{
    (void)state;
    static const struct {
        const char *text, *word;
    } cases[] = {
        {"{", "tokenizer.json"},
        {"{\"model\": {\"type\": \"BPE\"}}", "byte-level"},
        {"{\"model\": {\"type\": \"Unigram\"}, \"pre_tokenizer\": \"ByteLevel\"}",
         "byte-level"},
        {"{\"model\": {\"type\": \"BPE\"}, \"pre_tokenizer\": \"ByteLevel\"}",
         "vocabulary"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 64}}, \"pre_tokenizer\": "
         "\"ByteLevel\"}",
         "no token 64"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": -1}}, \"pre_tokenizer\": "
         "\"ByteLevel\"}",
         "no number"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 63}}, \"pre_tokenizer\": "
         "\"ByteLevel\"}",
         "no merges"},
        {"{\"model\": {\"type\": \"BPE\", \"vocab\": {\"a\": 63}, \"merges\": [[\"a\"]]"
         "}, \"pre_tokenizer\": \"ByteLevel\"}",
         "pair"},
    };
    struct qf_tensor embd = WEIGHT(QF_BF16, 8192);
    embd.name = "model.embed_tokens.weight";
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct made m = {0};
        struct qf_err err = {""};
        struct qf_gguf_head head = {0};
        struct qf_gguf_llm llm;
        assert_int_equal(read_config("{" LLAMA ", \"vocab_size\": 64}", &llm, &err), 0);
        m.model.texts[QF_MODEL_TOKENIZER] =
            (struct qf_model_text){.exists = true,
                                   .data = (char *)cases[i].text,
                                   .size = strlen(cases[i].text)};
        assert_int_equal(qf_gguf_vocab_pairs(&m.model, &llm, &head, &err), -ENOTSUP);
        if (strstr(err.text, cases[i].word) == NULL)
            fail_msg("'%s' says nothing of '%s'", err.text, cases[i].word);
        qf_gguf_head_fini(&head);
    }
    struct made m = {0};
    assert_int_equal(build(&m, "{" LLAMA ", \"vocab_size\": 64}", &embd, 1, "gguf-f16"),
                     0);
    end(&m);
    expect_refused("{" LLAMA ", \"vocab_size\": 65}", &embd, 1, "65 tokens");
}

static void test_refused(void **state)
{
    (void)state;
    struct qf_tensor bias = {
        .name = "a.bias", .dtype = QF_F32, .rank = 2, .shape = square, .size = 16384};
    struct qf_tensor weight = WEIGHT(QF_BF16, 8192);
    expect_refused(flux, &bias, 1, "no tensor");
    expect_refused("{\"_class_name\": \"PriorTransformer\"}", &weight, 1,
                   "PriorTransformer");
    assert_true(qf_gguf_is_diffusers_class("ZImageTransformer2DModel"));
    assert_true(qf_gguf_is_diffusers_class("AuraFlowTransformer2DModel"));
    assert_true(qf_gguf_is_diffusers_class("UNet2DConditionModel"));
    assert_false(qf_gguf_is_diffusers_class("AutoencoderKL"));
    char long_name[QF_MODEL_NAME_SIZE], out[QF_GGUF_FILE_NAME_SIZE];
    memset(long_name, 'x', sizeof long_name);
    long_name[QF_GGUF_FILE_NAME_SIZE - 1 - strlen("-Q4_0.gguf")] = '\0';
    assert_true(qf_gguf_file_name(long_name, QF_CODEC_GGUF_Q4_0, out));
    assert_false(qf_gguf_file_name(long_name, QF_CODEC_GGUF_BF16, out) &&
                 strlen(out) < QF_GGUF_FILE_NAME_SIZE - 1);
    long_name[strlen(long_name)] = 'x';
    long_name[QF_GGUF_FILE_NAME_SIZE - strlen("-Q4_0.gguf")] = '\0';
    assert_false(qf_gguf_file_name(long_name, QF_CODEC_GGUF_Q4_0, out));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_container),    cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_padding),      cmocka_unit_test(test_two_shards),
        cmocka_unit_test(test_configs),      cmocka_unit_test(test_names),
        cmocka_unit_test(test_vocabularies), cmocka_unit_test(test_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
