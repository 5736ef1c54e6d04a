/* SPDX-License-Identifier: Apache-2.0 */
/* The rules for one 2-D weight, in the order in which they are asked. Names decide: a
 * header does not say of which class a module is. The general rules below were checked
 * against every class of transformers and diffusers that could be built; what they get
 * wrong is in the architecture table, which is asked first.
 *
 * The loader of transformers fuses the weights of single experts, and torch's
 * MultiheadAttention reads its out_proj without calling it: neither can be replaced.
 * Embeddings are no Linear; routers and heads are kept by the default load.
 *
 * A composite model (a vision encoder with a text decoder) has as many kinds inside as
 * its author liked; its own row knows those of its default config. So the rows of all
 * models that its config names count too, where they make us keep a weight. */
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/policy_internal.h"

const char *const qf_rules_heads[] = {"lm_head",           "predictions.decoder",
                                      "lm_head.decoder",   "lm_head.out_proj",
                                      "embed_out",         "generator_lm_head",
                                      "vocab_projector",   "pred_layer.proj",
                                      "lm_loss",           "mlm_score.decoder",
                                      "output_projection", "score",
                                      "text_projection",   NULL};

/* Linears that another class of a model type has: a pre-quantized load cannot make up
 * a weight that the checkpoint lacks, so they are named in the skip list if absent. */
const char *const qf_rules_optional[] = {"classifier",
                                         "pooler.dense",
                                         "qa_outputs",
                                         "seq_relationship",
                                         "predictions.transform.dense",
                                         "lm_head.dense",
                                         "classifier.dense",
                                         "classifier.out_proj",
                                         "score",
                                         "pre_classifier",
                                         "vocab_transform",
                                         NULL};

static const char *const embedding_exact[] = {"wte",
                                              "wpe",
                                              "shared",
                                              "embed",
                                              "embeds",
                                              "embd",
                                              "emb",
                                              "embedding",
                                              "embeddings",
                                              "relative_attention_bias",
                                              "tok_embeddings",
                                              "embed_in",
                                              NULL};
static const char *const embedding_suffix[] = {"_embedding",    "_embeddings", "_embed",
                                               "_embeds",       "_emb",        "_embd",
                                               "_embeds_layer", NULL};
static const char *const embedding_infix[] = {"embed_tokens", "_embeddings_",
                                              "embed_positions",
                                              "HashBucketCodepointEmbedder", NULL};

static const char *text_or_empty(const qf_json *value)
{
    const char *text = qf_json_string(value);
    return text != NULL ? text : "";
}

/* Adds the row of one model type, once. */
static int add_nested(struct qf_rules *rules, const char *type)
{
    const struct qf_arch *row = qf_arch_find(false, type);
    if (*type == '\0' || row == rules->arch || strcmp(row->name, type) != 0)
        return 0;
    for (size_t i = 0; i < rules->nested_count; i++)
        if (rules->nested[i] == row)
            return 0;
    if (rules->nested_count == QF_NESTED_MODELS_MAX)
        return -E2BIG;
    rules->nested[rules->nested_count++] = row;
    return 0;
}

/* Models inside models: every object below that has a model_type. The recursion is as
 * deep as the JSON, which has a limit. */
static int collect_nested(struct qf_rules *rules, const qf_json *config)
{
    int rc = 0;
    for (const qf_json *m = qf_json_first(config); rc == 0 && m != NULL;
         m = qf_json_after(m)) {
        if (!qf_json_is_object(m))
            continue;
        rc = add_nested(rules, text_or_empty(qf_json_get(m, "model_type")));
        if (rc == 0)
            rc = collect_nested(rules, m);
    }
    return rc;
}

bool qf_rules_is_vae(const qf_json *config)
{
    static const char *const words[] = {"Autoencoder", "VAE", "Vae", "VQModel"};
    const char *name = text_or_empty(qf_json_get(config, "_class_name"));
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strstr(name, words[i]) != NULL)
            return true;
    return false;
}

int qf_rules_init(struct qf_rules *rules, const qf_json *config)
{
    const qf_json *class_name = qf_json_get(config, "_class_name");
    const qf_json *classes = qf_json_get(config, "architectures");
    *rules = (struct qf_rules){.diffusers = class_name != NULL};
    const char *name = text_or_empty(
        rules->diffusers ? class_name : qf_json_get(config, "model_type"));
    const char *arch = rules->diffusers ? name : "";
    if (!rules->diffusers && qf_json_is_array(classes))
        arch = text_or_empty(qf_json_first(classes));
    rules->arch = qf_arch_find(rules->diffusers, name);
    rules->heads = qf_arch_items(rules->arch->heads, arch);
    rules->fp32 = qf_arch_items(rules->arch->fp32, arch);
    rules->fp32_strict = qf_arch_items(rules->arch->fp32_strict, arch);
    rules->tied = qf_arch_items(rules->arch->tied, arch);
    if (rules->diffusers)
        return 0;
    rules->nested = calloc(QF_NESTED_MODELS_MAX, sizeof *rules->nested);
    return rules->nested != NULL ? collect_nested(rules, config) : -ENOMEM;
}

void qf_rules_fini(struct qf_rules *rules)
{
    free(rules->nested);
    *rules = (struct qf_rules){0};
}

static int compare_named(const void *key, const void *item)
{
    return strcmp(key, ((const struct qf_named *)item)->name);
}

const struct qf_named *qf_names_find(const struct qf_name_index *names,
                                     const char *name)
{
    return bsearch(name, names->items, names->count, sizeof *names->items,
                   compare_named);
}

bool qf_names_has(const struct qf_name_index *names, const char *name)
{
    return qf_names_find(names, name) != NULL;
}

static bool any_glob(struct qf_path path, const char *const *patterns)
{
    for (; patterns != NULL && *patterns != NULL; patterns++)
        if (qf_path_glob(path, *patterns))
            return true;
    return false;
}

static bool is_head(struct qf_path path)
{
    for (size_t i = 0; qf_rules_heads[i] != NULL; i++)
        if (qf_path_ends_module(path, qf_rules_heads[i]))
            return true;
    return false;
}

static bool fp32_hits(const struct qf_rules *rules, struct qf_path path,
                      const char *pattern)
{
    return qf_skip_v4(path, pattern) ||
           (!rules->diffusers && qf_skip_v5(path, pattern));
}

const char *qf_rules_fp32_hit(const struct qf_rules *rules, struct qf_path path)
{
    for (const char *const *f = rules->fp32; *f != NULL; f++)
        if (fp32_hits(rules, path, *f))
            return *f;
    for (size_t i = 0; i < rules->nested_count; i++)
        for (const struct qf_arch_list *l = rules->nested[i]->fp32;
             l != NULL && l->arch != NULL; l++)
            for (const char *const *f = l->items; *f != NULL; f++)
                if (fp32_hits(rules, path, *f))
                    return *f;
    return NULL;
}

static bool any_in_name(const char *const *patterns, const char *name)
{
    for (; *patterns != NULL; patterns++)
        if (strstr(name, *patterns) != NULL)
            return true;
    return false;
}

static bool any_list_in_name(const struct qf_arch_list *lists, const char *name)
{
    for (; lists != NULL && lists->arch != NULL; lists++)
        if (any_in_name(lists->items, name))
            return true;
    return false;
}

bool qf_rules_holds_fp32(const struct qf_rules *rules, const char *name,
                         enum qf_dtype dtype)
{
    bool holds = (dtype == QF_F16 && any_in_name(rules->fp32, name)) ||
                 (dtype != QF_F32 && any_in_name(rules->fp32_strict, name));
    for (size_t i = 0; i < rules->nested_count && !holds; i++)
        holds =
            (dtype == QF_F16 && any_list_in_name(rules->nested[i]->fp32, name)) ||
            (dtype != QF_F32 && any_list_in_name(rules->nested[i]->fp32_strict, name));
    return holds;
}

static bool is_number(struct qf_path text)
{
    for (size_t i = 0; i < text.size; i++)
        if (text.at[i] < '0' || text.at[i] > '9')
            return false;
    return text.size > 0;
}

/* transformers 5 then misreads "..._weight.weight.absmax". */
static bool has_weight_component(struct qf_path path)
{
    struct qf_path component;
    for (size_t pos = 0; qf_path_next(path, &pos, &component);)
        if (qf_path_ends(component, "weight"))
            return true;
    return false;
}

static bool in_experts(struct qf_path path)
{
    bool after_experts = false;
    struct qf_path component;
    for (size_t pos = 0; qf_path_next(path, &pos, &component);) {
        if (after_experts && is_number(component))
            return true;
        after_experts = qf_path_is(component, "experts");
    }
    return false;
}

static bool is_router(struct qf_path path)
{
    struct qf_path last = qf_path_last(path);
    return qf_path_is(last, "gate") || qf_path_is(last, "router") ||
           qf_path_ends(path, ".router.layer");
}

static bool is_embedding(struct qf_path path)
{
    struct qf_path last = qf_path_last(path);
    if (is_number(last) && last.size < path.size) { /* a list: embed_tokens.0 */
        path.size -= last.size + 1;
        last = qf_path_last(path);
    }
    for (size_t i = 0; embedding_exact[i] != NULL; i++)
        if (qf_path_is(last, embedding_exact[i]))
            return true;
    for (size_t i = 0; embedding_suffix[i] != NULL; i++)
        if (qf_path_ends(last, embedding_suffix[i]))
            return true;
    for (size_t i = 0; embedding_infix[i] != NULL; i++)
        if (memmem(last.at, last.size, embedding_infix[i],
                   strlen(embedding_infix[i])) != NULL)
            return true;
    return qf_path_starts(last, "embed_");
}

/* Whether the module is the out_proj of a module that has in_proj_weight. */
static int is_mha(const struct qf_name_index *names, struct qf_path path, bool *out)
{
    static const char from[] = "out_proj";
    static const char to[] = "in_proj_weight";
    *out = false;
    if (!qf_path_ends(path, from))
        return 0;
    size_t stem = path.size - (sizeof from - 1);
    char *name = malloc(stem + sizeof to);
    if (name == NULL)
        return -ENOMEM;
    memcpy(name, path.at, stem);
    memcpy(name + stem, to, sizeof to);
    *out = qf_names_has(names, name);
    free(name);
    return 0;
}

static bool last_in(struct qf_path path, const char *const *names)
{
    for (; names != NULL && *names != NULL; names++)
        if (qf_path_is(qf_path_last(path), *names))
            return true;
    return false;
}

bool qf_rules_is_conv1d(const struct qf_rules *rules, struct qf_path path)
{
    return last_in(path, rules->arch->conv1d);
}

bool qf_rules_may_turn(const struct qf_rules *rules, struct qf_path path)
{
    bool turned = qf_rules_is_conv1d(rules, path);
    for (size_t i = 0; i < rules->nested_count && !turned; i++)
        turned = last_in(path, rules->nested[i]->conv1d);
    return turned;
}

/* What a row of a model inside says. Which modules are of that model is not known, so
 * what it would transpose is kept as it is. */
static bool nested_keeps(const struct qf_rules *rules, struct qf_path path)
{
    bool own = last_in(path, rules->arch->conv1d);
    for (size_t i = 0; i < rules->nested_count; i++)
        if (any_glob(path, rules->nested[i]->never) ||
            (!own && last_in(path, rules->nested[i]->conv1d)))
            return true;
    return false;
}

int qf_rules_judge(const struct qf_rules *rules, const struct qf_name_index *names,
                   struct qf_path path, enum qf_reason *out)
{
    bool transformers = !rules->diffusers;
    bool mha = false;
    int rc = transformers ? is_mha(names, path, &mha) : 0;
    if (any_glob(path, rules->arch->never) || nested_keeps(rules, path))
        *out = QF_REASON_TABLE;
    else if (any_glob(path, rules->heads) || (transformers && is_head(path)))
        *out = QF_REASON_HEAD;
    else if (qf_rules_fp32_hit(rules, path) != NULL)
        *out = QF_REASON_FP32;
    else if (has_weight_component(path))
        *out = QF_REASON_NAME;
    else if (in_experts(path))
        *out = QF_REASON_EXPERTS;
    else if (is_router(path))
        *out = QF_REASON_ROUTER;
    else if (transformers && is_embedding(path))
        *out = QF_REASON_EMBEDDING;
    else
        *out = mha ? QF_REASON_MHA : QF_REASON_QUANTIZED;
    return rc;
}
