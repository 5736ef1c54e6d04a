/* SPDX-License-Identifier: Apache-2.0 */
#include "view/gguf_llm.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "ckpt/printable.h"
#include "quant/gguf.h"

/* ---- the config ---- */

static int refuse(struct qf_err *err, const char *what)
{
    return qf_err_set(err, -ENOTSUP, "config.json: %s", what);
}

/* A count. A member that is absent or null is `otherwise` (0: it must be there). */
static int read_u32(const qf_json *config, const char *name, uint32_t otherwise,
                    uint32_t *out, struct qf_err *err)
{
    const qf_json *value = qf_json_get(config, name);
    double number = qf_json_number(value);
    if (qf_json_is_null(value) && otherwise != 0) {
        *out = otherwise;
        return 0;
    }
    if (!qf_json_is_number(value) || number < 1 || number > (double)INT32_MAX ||
        number != floor(number))
        return qf_err_set(err, -ENOTSUP, "config.json: '%s' is no positive number",
                          name);
    *out = (uint32_t)number;
    return 0;
}

static int read_f32(const qf_json *value, const char *name, float *out,
                    struct qf_err *err)
{
    double number = qf_json_number(value);
    if (!qf_json_is_number(value) || !(fabs(number) <= (double)__FLT_MAX__))
        return qf_err_set(err, -ENOTSUP, "config.json: '%s' is no number", name);
    *out = (float)number;
    return 0;
}

static const char *arch_of(const qf_json *config)
{
    static const char *const known[][2] = {{"llama", "llama"},
                                           {"mistral", "llama"},
                                           {"qwen2", "qwen2"},
                                           {"qwen3", "qwen3"}};
    const char *type = qf_json_string(qf_json_get(config, "model_type"));
    for (size_t i = 0; type != NULL && i < sizeof known / sizeof *known; i++)
        if (strcmp(type, known[i][0]) == 0)
            return known[i][1];
    return NULL;
}

/* Scaled positions need more than the pairs that we write. */
static bool is_scaled(const qf_json *config)
{
    static const char *const places[] = {"rope_scaling", "rope_parameters"};
    for (size_t i = 0; i < 2; i++) {
        const qf_json *rope = qf_json_get(config, places[i]);
        const char *type = qf_json_string(qf_json_get(rope, "rope_type"));
        if (type == NULL)
            type = qf_json_string(qf_json_get(rope, "type"));
        if (type != NULL && strcmp(type, "default") != 0)
            return true;
    }
    return false;
}

int qf_gguf_llm_read(const qf_json *config, struct qf_gguf_llm *out, struct qf_err *err)
{
    *out = (struct qf_gguf_llm){.arch = arch_of(config)};
    if (out->arch == NULL) {
        const char *type = qf_json_string(qf_json_get(config, "model_type"));
        return qf_err_set(
            err, -ENOTSUP,
            "no GGUF file of a %s (llama, mistral, qwen2, qwen3 have one)",
            qf_printable(type != NULL ? type : "model").text);
    }
    if (is_scaled(config))
        return refuse(err, "scaled positions (rope_scaling) in GGUF are not supported");
    out->tied = qf_json_is_true(qf_json_get(config, "tie_word_embeddings"));
    int rc = read_u32(config, "num_attention_heads", 0, &out->heads, err);
    if (rc == 0)
        rc = read_u32(config, "num_key_value_heads", out->heads, &out->kv_heads, err);
    if (rc == 0)
        rc = read_u32(config, "hidden_size", 0, &out->hidden, err);
    if (rc == 0)
        rc =
            read_u32(config, "head_dim", out->hidden / out->heads, &out->head_dim, err);
    if (rc == 0)
        rc = read_u32(config, "vocab_size", 0, &out->vocab_size, err);
    if (rc == 0 && out->vocab_size > QF_GGUF_TOKENS_MAX)
        rc = refuse(err, "'vocab_size' is too large");
    return rc;
}

/* ---- names ---- */

static const char *const tops[][2] = {{"model.embed_tokens.weight",
                                       "token_embd.weight"},
                                      {"model.norm.weight", "output_norm.weight"},
                                      {"lm_head.weight", "output.weight"}};

static const char *const modules[][2] = {
    {"self_attn.q_proj.", "attn_q."},
    {"self_attn.k_proj.", "attn_k."},
    {"self_attn.v_proj.", "attn_v."},
    {"self_attn.o_proj.", "attn_output."},
    {"self_attn.q_norm.", "attn_q_norm."},
    {"self_attn.k_norm.", "attn_k_norm."},
    {"mlp.gate_proj.", "ffn_gate."},
    {"mlp.up_proj.", "ffn_up."},
    {"mlp.down_proj.", "ffn_down."},
    {"input_layernorm.", "attn_norm."},
    {"post_attention_layernorm.", "ffn_norm."},
};

/* "model.layers.N.MODULE.weight" or ".bias". */
static bool name_in_layer(const char *name, char out[QF_GGUF_NAME_SIZE])
{
    static const char start[] = "model.layers.";
    if (strncmp(name, start, strlen(start)) != 0)
        return false;
    const char *number = name + strlen(start);
    size_t digits = strspn(number, "0123456789");
    if (digits == 0 || digits > 6 || number[digits] != '.')
        return false;
    const char *rest = number + digits + 1;
    for (size_t i = 0; i < sizeof modules / sizeof *modules; i++) {
        size_t size = strlen(modules[i][0]);
        const char *end = rest + size;
        if (strncmp(rest, modules[i][0], size) != 0 ||
            (strcmp(end, "weight") != 0 && strcmp(end, "bias") != 0))
            continue;
        snprintf(out, QF_GGUF_NAME_SIZE, "blk.%.*s.%s%s", (int)digits, number,
                 modules[i][1], end);
        return true;
    }
    return false;
}

static bool name_of(const char *name, char out[QF_GGUF_NAME_SIZE])
{
    for (size_t i = 0; i < sizeof tops / sizeof *tops; i++) {
        if (strcmp(name, tops[i][0]) == 0) {
            snprintf(out, QF_GGUF_NAME_SIZE, "%s", tops[i][1]);
            return true;
        }
    }
    return name_in_layer(name, out);
}

/* Of old checkpoints; every program computes them anew. */
static bool is_derived(const char *name)
{
    static const char end[] = ".rotary_emb.inv_freq";
    size_t size = strlen(name), n = strlen(end);
    return size > n && strcmp(name + size - n, end) == 0;
}

/* llama.cpp turns pairs of neighbours where transformers turns halves: q and k of its
 * architecture "llama" have their rows in another order. */
static uint32_t heads_of(const struct qf_gguf_llm *llm, const char *name)
{
    if (strcmp(llm->arch, "llama") != 0)
        return 0;
    return strstr(name, ".attn_q.") != NULL   ? llm->heads
           : strstr(name, ".attn_k.") != NULL ? llm->kv_heads
                                              : 0;
}

int qf_gguf_llm_name(const struct qf_gguf_llm *llm, const struct qf_tensor *tensor,
                     char out[QF_GGUF_NAME_SIZE], uint32_t *heads, struct qf_err *err)
{
    *heads = 0;
    out[0] = '\0';
    if (is_derived(tensor->name))
        return 0;
    if (!name_of(tensor->name, out))
        return qf_err_set(err, -ENOTSUP, "%s: GGUF has no name for it",
                          qf_printable(tensor->name).text);
    if (llm->tied && strcmp(out, "output.weight") == 0) {
        out[0] = '\0';
        return 0;
    }
    *heads = heads_of(llm, out);
    if (*heads != 0 &&
        (tensor->rank == 0 || tensor->shape[0] % (2 * (uint64_t)*heads) != 0 ||
         tensor->size == 0))
        return qf_err_set(err, -ENOTSUP, "%s: its rows are not those of %u heads",
                          qf_printable(tensor->name).text, *heads);
    return 0;
}

/* ---- pairs ---- */

/* Words begin with a capital and go on in small letters. */
static void add_title(struct qf_gguf_head *head, const char *name)
{
    struct qf_printable title = qf_printable(name);
    bool inside = false;
    for (char *at = title.text; *at != '\0'; at++) {
        bool upper = *at >= 'A' && *at <= 'Z', lower = *at >= 'a' && *at <= 'z';
        if (upper && inside)
            *at = (char)(*at + ('a' - 'A'));
        else if (lower && !inside)
            *at = (char)(*at - ('a' - 'A'));
        inside = upper || lower || (unsigned char)*at >= 0x80;
    }
    qf_gguf_add_string(head, "general.name", title.text);
}

struct pairs {
    const struct qf_gguf_llm *llm;
    const qf_json *config;
    struct qf_gguf_head *head;
    struct qf_err *err;
};

/* "ARCH.name" */
static const char *arch_key(const struct pairs *p, const char *name, char key[64])
{
    snprintf(key, 64, "%s.%s", p->llm->arch, name);
    return key;
}

static void add_arch(const struct pairs *p, const char *name, uint32_t value)
{
    char key[64];
    qf_gguf_add_u32(p->head, arch_key(p, name, key), value);
}

static int add_member(const struct pairs *p, const char *name, const char *member)
{
    uint32_t value = 0;
    int rc = read_u32(p->config, member, 0, &value, p->err);
    if (rc == 0)
        add_arch(p, name, value);
    return rc;
}

static int add_real(const struct pairs *p, const char *name, const char *member,
                    const qf_json *value)
{
    char key[64];
    float number = 0;
    int rc = read_f32(value, member, &number, p->err);
    if (rc == 0)
        qf_gguf_add_f32(p->head, arch_key(p, name, key), number);
    return rc;
}

static int add_rope(const struct pairs *p)
{
    char key[64];
    const qf_json *theta =
        qf_json_get(qf_json_get(p->config, "rope_parameters"), "rope_theta");
    if (theta == NULL)
        theta = qf_json_get(p->config, "rope_theta");
    if (theta != NULL)
        return add_real(p, "rope.freq_base", "rope_theta", theta);
    qf_gguf_add_f32(p->head, arch_key(p, "rope.freq_base", key), 10000.0f);
    return 0;
}

static int add_sizes(const struct pairs *p)
{
    int rc = add_member(p, "block_count", "num_hidden_layers");
    if (rc == 0)
        rc = add_member(p, "context_length", "max_position_embeddings");
    if (rc == 0)
        rc = add_member(p, "embedding_length", "hidden_size");
    if (rc == 0)
        rc = add_member(p, "feed_forward_length", "intermediate_size");
    if (rc != 0)
        return rc;
    add_arch(p, "attention.head_count", p->llm->heads);
    add_arch(p, "attention.head_count_kv", p->llm->kv_heads);
    return 0;
}

int qf_gguf_llm_pairs(const struct qf_model *model, const struct qf_gguf_llm *llm,
                      enum qf_codec codec, struct qf_gguf_head *head,
                      struct qf_err *err)
{
    const struct pairs p = {llm, model->config, head, err};
    qf_gguf_add_string(head, "general.architecture", llm->arch);
    qf_gguf_add_string(head, "general.type", "model");
    add_title(head, model->name);
    int rc = add_sizes(&p);
    if (rc == 0)
        rc = add_rope(&p);
    if (rc == 0)
        rc = add_real(&p, "attention.layer_norm_rms_epsilon", "rms_norm_eps",
                      qf_json_get(model->config, "rms_norm_eps"));
    if (rc != 0)
        return rc;
    if (!qf_json_is_null(qf_json_get(model->config, "head_dim"))) {
        add_arch(&p, "attention.key_length", llm->head_dim);
        add_arch(&p, "attention.value_length", llm->head_dim);
    }
    qf_gguf_add_u32(head, "general.file_type", qf_gguf_info(codec)->file_type);
    if (strcmp(llm->arch, "llama") == 0) {
        add_arch(&p, "vocab_size", llm->vocab_size);
        add_arch(&p, "rope.dimension_count", llm->head_dim);
    }
    qf_gguf_add_u32(head, "general.quantization_version", 2);
    return 0;
}
