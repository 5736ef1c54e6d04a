/* SPDX-License-Identifier: Apache-2.0 */
/* The plan of a model, in four steps: the model dtype; a reason for every tensor
 * (policy_rules.c, then what the view's settings and the model's other names forbid);
 * the skip list and its closure (policy_closure.c); the dtypes of what is kept.
 *
 * It is the same function as the Python reference in tests/reference, to the order of
 * the skip list, and tests/policy compares the two. It goes beyond it where the
 * reference has no answer: names that collide, weights without elements or of another
 * dtype, storage types that do not divide. Such weights are kept, and being kept they
 * are named in the skip list like any other. */
#include "view/policy.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "view/layout.h"
#include "view/overrides.h"
#include "view/policy_internal.h"

static const char *const unsupported[] = {"llama4", "llama4_text"};

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const struct qf_named *)a)->name,
                  ((const struct qf_named *)b)->name);
}

static int compare_plain(const void *a, const void *b)
{
    return qf_path_compare(((const struct qf_plain *)a)->path,
                           ((const struct qf_plain *)b)->path);
}

/* As Python's truth of a value. */
static bool is_truthy(const qf_json *value)
{
    const char *text = qf_json_string(value);
    if (text != NULL)
        return *text != '\0';
    if (qf_json_is_number(value))
        return qf_json_number(value) != 0;
    return qf_json_is_true(value) || qf_json_first(value) != NULL;
}

/* Writes out->reason when the whole model passes through. */
static bool passes_through(const struct qf_planner *p, const qf_json *config,
                           const struct qf_view *view, struct qf_policy *out)
{
    bool coded = false;
    for (size_t i = 0; i < p->count; i++)
        coded = coded || p->tensors[i]->coded != NULL;
    const char *type = qf_json_string(qf_json_get(config, "model_type"));
    for (size_t i = 0; type != NULL && i < sizeof unsupported / sizeof *unsupported;
         i++)
        if (strcmp(type, unsupported[i]) == 0)
            snprintf(out->reason, sizeof out->reason,
                     "loaders cannot take a quantized checkpoint of architecture '%s'",
                     type);
    if (!coded && is_truthy(qf_json_get(config, "quantization_config")))
        snprintf(out->reason, sizeof out->reason,
                 "already quantized: config.json has a quantization_config");
    enum qf_family family = qf_codec_info(view->codec)->family;
    if (qf_json_get(config, "_class_name") != NULL &&
        (family == QF_FAMILY_FP8 || family == QF_FAMILY_COMPRESSED_TENSORS))
        snprintf(out->reason, sizeof out->reason,
                 "diffusers cannot load '%s', which is for models of transformers",
                 qf_codec_name(view->codec));
    if (qf_rules_is_vae(config) && view->force.count == 0)
        snprintf(out->reason, sizeof out->reason,
                 "an autoencoder (VAE), left alone unless modules of it are forced");
    return out->reason[0] != '\0';
}

static int index_names(struct qf_planner *p)
{
    p->names.items = calloc(p->count + 1, sizeof *p->names.items);
    if (p->names.items == NULL)
        return -ENOMEM;
    p->names.count = p->count;
    for (size_t i = 0; i < p->count; i++)
        p->names.items[i] = (struct qf_named){p->tensors[i]->name, i};
    qsort(p->names.items, p->count, sizeof *p->names.items, compare_names);
    for (size_t i = 1; i < p->count; i++)
        if (compare_names(&p->names.items[i - 1], &p->names.items[i]) == 0) {
            snprintf(p->out->reason, sizeof p->out->reason,
                     "tensor '%.200s' is in more than one shard",
                     p->names.items[i].name);
            return -ENOTSUP;
        }
    return 0;
}

/* The setting, else config.json, else the first float tensor by name. */
static enum qf_dtype model_dtype(const struct qf_planner *p, const qf_json *config,
                                 const struct qf_view *view)
{
    if (view->dtype != QF_DTYPE_NONE)
        return view->dtype;
    const qf_json *value = qf_json_get(config, "dtype");
    if (!is_truthy(value))
        value = qf_json_get(config, "torch_dtype");
    const char *name = qf_json_string(value);
    enum qf_dtype dtype = name != NULL ? qf_dtype_from_torch(name) : QF_DTYPE_NONE;
    for (size_t i = 0; i < p->count && dtype == QF_DTYPE_NONE; i++)
        if (qf_dtype_is_float(p->tensors[p->names.items[i].index]->dtype))
            dtype = p->tensors[p->names.items[i].index]->dtype;
    return dtype != QF_DTYPE_NONE ? dtype : QF_F32;
}

/* Whether a part of the tensor would have the name of another tensor. */
static int collides(const struct qf_planner *p, const struct qf_tensor *t,
                    const struct qf_plan *plan, bool *out)
{
    size_t size = strlen(t->name) + QF_PART_SUFFIX_SIZE + 1;
    char *name = malloc(size);
    if (name == NULL)
        return -ENOMEM;
    *out = false;
    for (uint32_t i = 0; i < plan->part_count && !*out; i++) {
        if (plan->parts[i].hidden)
            continue;
        qf_part_name(t->name, &plan->parts[i], name, size);
        *out = strcmp(name, t->name) != 0 && qf_names_has(&p->names, name);
    }
    free(name);
    return 0;
}

/* What speaks against a weight that the rules would quantize. */
static int judge_settings(const struct qf_planner *p, const struct qf_view *view,
                          const struct qf_tensor *t, struct qf_decision *decision,
                          struct qf_err *err)
{
    if (!qf_dtype_is_float(t->dtype) || t->shape[0] == 0 || t->shape[1] == 0) {
        decision->reason = QF_REASON_NOT_WEIGHT;
        return 0;
    }
    struct qf_codec_spec spec = qf_view_spec(view, p->out->dtype);
    struct qf_plan plan;
    int rc = qf_codec_plan(&spec, t->dtype, t->shape, decision->transposed, &plan, err);
    if (rc == -ENOTSUP) {
        decision->reason = QF_REASON_SHAPE;
        return 0;
    }
    bool collision = false;
    if (rc == 0)
        rc = collides(p, t, &plan, &collision);
    if (collision)
        decision->reason = QF_REASON_COLLISION;
    return rc;
}

/* What the user's patterns change. A head can be forced when it is its own tensor: one
 * that is tied to an embedding would be quantized with it, and only a config that says
 * so rules that out. What is forced can still be skipped: whoever says both gets what
 * every loader takes. */
static void override_rules(const struct qf_planner *p, const struct qf_view *view,
                           struct qf_path path, enum qf_reason *reason)
{
    if (*reason == QF_REASON_QUANTIZED && p->vae &&
        !qf_patterns_match(&view->force, path.at, path.size))
        *reason = QF_REASON_VAE;
    if (*reason == QF_REASON_HEAD && p->untied &&
        qf_patterns_match(&view->force, path.at, path.size))
        *reason = QF_REASON_QUANTIZED;
    if (*reason == QF_REASON_QUANTIZED && view->only.count != 0 &&
        !qf_patterns_match(&view->only, path.at, path.size))
        *reason = QF_REASON_SKIPPED;
    if (*reason == QF_REASON_QUANTIZED &&
        qf_patterns_match(&view->skip, path.at, path.size))
        *reason = QF_REASON_SKIPPED;
}

static int decide(struct qf_planner *p, const struct qf_view *view, size_t index,
                  struct qf_err *err)
{
    const struct qf_tensor *t = p->tensors[index];
    struct qf_decision *decision = &p->out->decisions[index];
    struct qf_path path;
    *decision = (struct qf_decision){QF_REASON_NOT_WEIGHT, t->dtype, false};
    if (t->rank != 2 || !qf_path_of_weight(t->name, &path))
        return 0;
    int rc = qf_rules_judge(&p->rules, &p->names, path, &decision->reason);
    if (rc != 0)
        return rc;
    override_rules(p, view, path, &decision->reason);
    if (decision->reason == QF_REASON_QUANTIZED) {
        /* Codes are of the weight as a Linear has it. */
        bool conv1d = qf_rules_is_conv1d(&p->rules, path);
        decision->transposed = t->coded == NULL && conv1d;
        if (conv1d && !qf_view_is_default(view->codec))
            decision->reason = QF_REASON_CONV1D;
        else
            rc = judge_settings(p, view, t, decision, err);
    } else if (!qf_dtype_is_float(t->dtype)) {
        decision->reason = QF_REASON_NOT_WEIGHT;
        return 0;
    }
    if (rc == 0 && decision->reason != QF_REASON_QUANTIZED)
        p->plain[p->plain_count++] = (struct qf_plain){path, decision->reason};
    return rc;
}

static int decide_all(struct qf_planner *p, const struct qf_view *view,
                      struct qf_err *err)
{
    p->plain = calloc(p->count + 1, sizeof *p->plain);
    p->out->decisions = calloc(p->count + 1, sizeof *p->out->decisions);
    if (p->plain == NULL || p->out->decisions == NULL)
        return -ENOMEM;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < p->count; i++)
        rc = decide(p, view, i, err);
    qsort(p->plain, p->plain_count, sizeof *p->plain, compare_plain);
    return rc;
}

/* transformers casts what it keeps, but for "…weight" of a pre-quantized load: those
 * the view must hold as the loader would. diffusers casts everything. */
static enum qf_dtype kept_dtype(const struct qf_planner *p, const struct qf_tensor *t)
{
    struct qf_path name = {t->name, strlen(t->name)};
    enum qf_dtype want = p->out->dtype;
    if (p->rules.diffusers || !qf_dtype_is_float(t->dtype) ||
        !qf_path_ends(name, "weight"))
        return t->dtype;
    return qf_rules_holds_fp32(&p->rules, t->name, want) ? QF_F32 : want;
}

static int finish(struct qf_planner *p)
{
    struct qf_policy *out = p->out;
    int rc = 0;
    out->count = p->count;
    for (size_t i = 0; i < p->count && rc == 0; i++) {
        struct qf_decision *decision = &out->decisions[i];
        if (decision->reason == QF_REASON_QUANTIZED) {
            decision->dtype = out->dtype;
            out->quantized_count++;
        } else {
            decision->dtype = kept_dtype(p, p->tensors[i]);
            decision->transposed = false;
            rc = qf_policy_check_turned(p, p->tensors[i]);
        }
    }
    return rc;
}

static void clear_decisions(struct qf_policy *policy)
{
    for (size_t i = 0; i < policy->skip_count; i++)
        free(policy->skip[i]);
    free(policy->skip);
    free(policy->decisions);
    policy->skip = NULL;
    policy->skip_count = 0;
    policy->decisions = NULL;
    policy->count = 0;
    policy->quantized_count = 0;
}

static bool is_causal(const qf_json *config)
{
    const qf_json *classes = qf_json_get(config, "architectures");
    for (const qf_json *c = qf_json_is_array(classes) ? qf_json_first(classes) : NULL;
         c != NULL; c = qf_json_after(c))
        if (qf_json_string(c) != NULL && strstr(qf_json_string(c), "CausalLM") != NULL)
            return true;
    return false;
}

static const char *list_name(enum qf_codec codec)
{
    if (qf_view_is_default(codec))
        return "llm_int8_skip_modules";
    return qf_codec_info(codec)->family == QF_FAMILY_COMPRESSED_TENSORS
               ? "ignore"
               : "modules_to_not_convert";
}

int qf_policy_plan(const struct qf_tensor *const *tensors, size_t count,
                   const qf_json *config, const struct qf_view *view,
                   struct qf_policy *out, struct qf_err *err)
{
    *out = (struct qf_policy){.dtype = QF_DTYPE_NONE};
    struct qf_planner p = {.tensors = tensors, .count = count, .out = out};
    int rc = qf_rules_init(&p.rules, config);
    p.vae = qf_rules_is_vae(config);
    const char *type = qf_json_string(qf_json_get(config, "model_type"));
    p.renamed = type != NULL && qf_is_renamed(type);
    p.renamed_inside = qf_is_renamed_inside(config);
    p.causal = is_causal(config);
    p.list_name = list_name(view->codec);
    p.untied = qf_json_is_false(qf_json_get(config, "tie_word_embeddings"));
    out->diffusers = p.rules.diffusers;
    if (rc == -E2BIG) {
        snprintf(out->reason, sizeof out->reason,
                 "config.json names more than %d kinds of models",
                 QF_NESTED_MODELS_MAX);
        rc = -ENOTSUP;
    }
    enum qf_dtype plain = qf_codec_plain_dtype(view->codec);
    if (rc == 0 && plain != QF_DTYPE_NONE) {
        rc = qf_policy_plain(&p, plain);
        goto out;
    }
    if (rc != 0 || passes_through(&p, config, view, out))
        goto out;
    rc = index_names(&p);
    if (rc != 0)
        goto out;
    out->dtype = model_dtype(&p, config, view);
    rc = decide_all(&p, view, err);
    if (rc == 0)
        rc = qf_view_is_default(view->codec) ? qf_skip_build(&p)
                                             : qf_list_build(&p, view->codec);
    if (rc == 0)
        rc = finish(&p);

out:
    if (rc != 0)
        clear_decisions(out);
    if (rc == -ENOTSUP && out->reason[0] != '\0')
        rc = 0; /* the model passes through */
    else if (rc == -ENOMEM)
        qf_err_set(err, rc, "out of memory");
    qf_rules_fini(&p.rules);
    free(p.names.items);
    free(p.plain);
    free(p.optional);
    return rc;
}

void qf_policy_fini(struct qf_policy *policy)
{
    clear_decisions(policy);
    *policy = (struct qf_policy){.dtype = QF_DTYPE_NONE};
}

const char *qf_reason_text(enum qf_reason reason)
{
    static const char *const texts[QF_REASON_COUNT] = {
        [QF_REASON_QUANTIZED] = "quantized",
        [QF_REASON_NOT_WEIGHT] = "not a 2-D float weight",
        [QF_REASON_TABLE] = "not a Linear in this architecture",
        [QF_REASON_HEAD] = "output head",
        [QF_REASON_FP32] = "kept in float32 by the loader",
        [QF_REASON_NAME] = "a name that loaders misread",
        [QF_REASON_EXPERTS] = "weight of one expert, which the loader fuses",
        [QF_REASON_ROUTER] = "router",
        [QF_REASON_EMBEDDING] = "embedding",
        [QF_REASON_MHA] = "projection inside torch's MultiheadAttention",
        [QF_REASON_VAE] = "module of an autoencoder that is not forced",
        [QF_REASON_SKIPPED] = "kept by an override",
        [QF_REASON_CLOSURE] = "another module's skip entry hits it",
        [QF_REASON_COLLISION] = "the name of a part is taken",
        [QF_REASON_CONV1D] = "a Conv1D, and only Linear modules have this format",
        [QF_REASON_FUSED] = "loaders fuse it with a weight that is kept",
        [QF_REASON_SHAPE] = "its shape does not fit the view's settings",
        [QF_REASON_DEQUANTIZED] = "dequantized",
        [QF_REASON_PLAIN] = "not quantized",
    };
    assert(reason < QF_REASON_COUNT);
    return texts[reason];
}
