/* SPDX-License-Identifier: Apache-2.0 */
/* A directory may hold several weight sets (variants such as fp16) under one
 * config.json. Loaders take any of them with the same quantization_config, so all sets
 * must lead to the same decisions: if one does not, the whole directory passes through.
 * Whatever goes wrong on the way turns into the variant's reason, never into half a
 * view. */
#include "view/variant.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/bnb.h"
#include "view/gguf.h"
#include "view/overrides.h"
#include "view/synth.h"
#include "view/torchao.h"

static struct qf_variant_file *add_file(struct qf_variant *variant, const char *name,
                                        enum qf_variant_kind kind)
{
    struct qf_variant_file *file = &variant->files[variant->file_count++];
    *file = (struct qf_variant_file){.name = name, .kind = kind};
    return file;
}

static int add_text(struct qf_variant *variant, const char *name,
                    enum qf_variant_kind kind, struct qf_buf *text)
{
    size_t size;
    char *data = qf_buf_take(text, &size);
    if (data == NULL)
        return -ENOMEM;
    struct qf_variant_file *file = add_file(variant, name, kind);
    file->text = data;
    file->size = size;
    file->digest = qf_hash128(data, size);
    return 0;
}

/* A view that quantizes nothing. */
static bool is_plain(const struct qf_variant *variant)
{
    return qf_codec_plain_dtype(variant->view.codec) != QF_DTYPE_NONE;
}

/* ---- sources that are quantized ---- */

/* The codec whose format a tensor is stored in. QF_CODEC_COUNT: none of ours. */
static enum qf_codec codec_of(const struct qf_coded *coded)
{
    switch (coded->kind) {
    case QF_CODED_NF4:
        return coded->nested ? QF_CODEC_DQ : QF_CODEC_NF4;
    case QF_CODED_FP4:
        return coded->nested ? QF_CODEC_COUNT : QF_CODEC_FP4;
    case QF_CODED_INT8:
        return QF_CODEC_INT8;
    }
    return QF_CODEC_COUNT;
}

/* To dequantize what has the view's codec and quantize it again would lose a little and
 * gain nothing: such a checkpoint is what the view would have shown. */
static int refuse_same_codec(const struct qf_model *model, enum qf_codec codec,
                             struct qf_err *err)
{
    if (!model->is_bnb)
        return 0;
    for (size_t i = 0; i < model->set_count; i++)
        for (size_t k = 0; k < model->sets[i].shard_count; k++) {
            const struct qf_shard *shard = model->sets[i].shards[k].header;
            for (size_t t = 0; t < shard->tensor_count; t++)
                if (shard->tensors[t].coded != NULL &&
                    codec_of(shard->tensors[t].coded) != codec)
                    return 0;
        }
    return qf_err_set(
        err, -ENOTSUP,
        "already quantized: a checkpoint of bitsandbytes in %s, which the "
        "view of the same codec shows as it is",
        qf_codec_name(codec));
}

/* ---- policies ---- */

static int plan_set(struct qf_variant *variant, const struct qf_weight_set *set,
                    struct qf_policy *policy, struct qf_err *err)
{
    size_t count = 0;
    for (size_t i = 0; i < set->shard_count; i++)
        count += set->shards[i].header->tensor_count;
    const struct qf_tensor **tensors = malloc((count + 1) * sizeof *tensors);
    if (tensors == NULL)
        return -ENOMEM;
    size_t k = 0;
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t t = 0; t < set->shards[i].header->tensor_count; t++)
            tensors[k++] = &set->shards[i].header->tensors[t];
    int rc = qf_policy_plan(tensors, count, variant->model->config, &variant->view,
                            policy, err);
    free(tensors);
    return rc;
}

static bool same_skip(const struct qf_policy *a, const struct qf_policy *b)
{
    if (a->skip_count != b->skip_count)
        return false;
    for (size_t i = 0; i < a->skip_count; i++)
        if (strcmp(a->skip[i], b->skip[i]) != 0)
            return false;
    return true;
}

static const char *set_name(const struct qf_weight_set *set)
{
    return set->index_name != NULL ? set->index_name : set->shards[0].name;
}

/* Where it is the view that does not fit the model's weights. */
static const char *why_none(const struct qf_policy *policy)
{
    size_t conv1d = 0, shape = 0;
    for (size_t i = 0; i < policy->count; i++) {
        conv1d += policy->decisions[i].reason == QF_REASON_CONV1D;
        shape += policy->decisions[i].reason == QF_REASON_SHAPE;
    }
    return conv1d > shape
               ? ": they are Conv1D, and only Linear modules have this format"
           : shape != 0 ? ": their shapes do not fit the view's settings"
                        : "";
}

static int plan_sets(struct qf_variant *variant, struct qf_err *err)
{
    const struct qf_model *model = variant->model;
    for (size_t i = 0; i < model->set_count; i++) {
        struct qf_policy *policy = &variant->policies[i];
        int rc = plan_set(variant, &model->sets[i], policy, err);
        variant->policy_count = i + 1;
        if (rc != 0)
            return rc;
        if (policy->reason[0] != '\0')
            return qf_err_set(err, -ENOTSUP, "%s", policy->reason);
        const struct qf_policy *first = &variant->policies[0];
        /* config.json names one dtype for all; diffusers takes that of the file. */
        if (!same_skip(first, policy) ||
            first->quantized_count != policy->quantized_count ||
            (!policy->diffusers && first->dtype != policy->dtype))
            return qf_err_set(err, -ENOTSUP,
                              "%s and %s need different settings under one config.json",
                              set_name(&model->sets[0]), set_name(&model->sets[i]));
    }
    if (!is_plain(variant) && variant->policies[0].quantized_count == 0)
        return qf_err_set(err, -ENOTSUP, "no tensor of it can be quantized%s",
                          why_none(&variant->policies[0]));
    return 0;
}

/* ---- files ---- */

/* Of everything but the weights that decides the bytes: a header alone does not tell
 * float16 from float32 in a quant_state, or which weight is transposed. */
static int layout_digest(const struct qf_layout *layout, struct qf_hash128 *out)
{
    struct qf_buf text = {0};
    qf_buf_append(&text, layout->header, layout->header_size);
    for (size_t i = 0; i < layout->tensor_count; i++) {
        const struct qf_layout_tensor *tensor = &layout->tensors[i];
        const struct qf_plan *plan = tensor->plan;
        if (tensor->src->coded != NULL) /* rounded to it, perhaps first */
            qf_buf_appendf(&text, "c%d ", (int)tensor->src->dtype);
        if (plan == NULL)
            qf_buf_appendf(&text, "%d,", (int)tensor->out_dtype);
        else
            qf_buf_appendf(&text, "%d %u %u %d %d %d,", (int)plan->spec.codec,
                           plan->spec.blocksize, plan->spec.group,
                           (int)plan->spec.storage, (int)plan->spec.dtype,
                           (int)plan->transposed);
    }
    int rc = text.failed ? -ENOMEM : 0;
    if (rc == 0)
        *out = qf_hash128(text.data, text.size);
    qf_buf_fini(&text);
    return rc;
}

static const struct qf_variant_file *find_unsorted(const struct qf_variant *variant,
                                                   const char *name)
{
    for (size_t i = 0; i < variant->file_count; i++)
        if (strcmp(variant->files[i].name, name) == 0)
            return &variant->files[i];
    return NULL;
}

static int add_shards(struct qf_variant *variant, size_t set_index,
                      const struct qf_layout_metadata *metadata,
                      const struct qf_layout **layouts, struct qf_err *err)
{
    const struct qf_weight_set *set = &variant->model->sets[set_index];
    const struct qf_policy *policy = &variant->policies[set_index];
    const struct qf_decision *decisions = policy->decisions;
    for (size_t i = 0; i < set->shard_count; i++) {
        const struct qf_model_shard *shard = &set->shards[i];
        struct qf_layout *layout;
        /* An index may name the single file that is a set by itself. */
        const struct qf_variant_file *same = find_unsorted(variant, shard->name);
        if (same != NULL) {
            layouts[i] = same->layout;
            continue;
        }
        int rc = qf_layout_build_with(shard->header, decisions, &variant->view,
                                      policy->dtype, metadata, &layout, err);
        if (rc != 0)
            return rc;
        struct qf_variant_file *file = add_file(variant, shard->name, QF_VARIANT_SHARD);
        file->source = shard;
        file->layout = layout;
        file->size = layout->file_size;
        rc = layout_digest(layout, &file->digest);
        if (rc != 0)
            return rc;
        layouts[i] = layout;
        decisions += shard->header->tensor_count;
    }
    return 0;
}

static int add_set(struct qf_variant *variant, size_t set_index, struct qf_err *err)
{
    const struct qf_weight_set *set = &variant->model->sets[set_index];
    const struct qf_layout **layouts = calloc(set->shard_count, sizeof *layouts);
    if (layouts == NULL)
        return -ENOMEM;
    struct qf_buf text = {0};
    struct qf_torchao torchao = {0};
    int rc = 0;
    if (qf_codec_info(variant->view.codec)->family == QF_FAMILY_TORCHAO)
        rc = qf_torchao_init(&torchao, set, &variant->view,
                             &variant->policies[set_index]);
    struct qf_layout_metadata metadata = {torchao.count, torchao.entries};
    if (rc == 0)
        rc = add_shards(variant, set_index, &metadata, layouts, err);
    qf_torchao_fini(&torchao);
    if (rc == 0 && set->index_name != NULL) {
        rc = qf_synth_index(set, layouts, &text, err);
        if (rc == 0)
            rc = add_text(variant, set->index_name, QF_VARIANT_INDEX, &text);
    }
    qf_buf_fini(&text);
    free(layouts);
    return rc;
}

static int add_config(struct qf_variant *variant, struct qf_err *err)
{
    struct qf_buf text = {0};
    int rc = qf_synth_config(variant->model, &variant->view, &variant->policies[0],
                             &text, err);
    if (rc == 0)
        rc = add_text(variant, "config.json", QF_VARIANT_CONFIG, &text);
    qf_buf_fini(&text);
    return rc;
}

static int add_gguf(struct qf_variant *variant, struct qf_err *err)
{
    const struct qf_model *model = variant->model;
    struct qf_layout *layout;
    if (!qf_gguf_file_name(model->name, variant->view.codec, variant->gguf_name))
        return qf_err_set(err, -ENOTSUP, "the directory's name is too long");
    variant->policy_count = 1;
    int rc = qf_gguf_build(model, &variant->view, &layout, &variant->policies[0], err);
    if (rc != 0)
        return rc;
    struct qf_variant_file *file =
        add_file(variant, variant->gguf_name, QF_VARIANT_GGUF);
    file->layout = layout;
    file->size = layout->file_size;
    return layout_digest(layout, &file->digest);
}

static bool shows_gguf(const struct qf_variant *variant)
{
    return qf_codec_info(variant->view.codec)->family == QF_FAMILY_GGUF;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct qf_variant_file *)a)->name,
                  ((const struct qf_variant_file *)b)->name);
}

/* Whether every tensor is copied and config.json is what it was. */
static bool changes_nothing(const struct qf_variant *variant)
{
    const struct qf_model *model = variant->model;
    for (size_t i = 0; i < variant->file_count; i++) {
        const struct qf_variant_file *file = &variant->files[i];
        if (file->kind == QF_VARIANT_CONFIG &&
            (file->size != model->config_size ||
             memcmp(file->text, model->config_text, model->config_size) != 0))
            return false;
        for (size_t s = 1; file->layout != NULL && s < file->layout->span_count; s++)
            if (file->layout->spans[s].kind != QF_SPAN_COPY)
                return false;
    }
    return true;
}

/* The view with what quantfs.json says about this model. */
static int override_view(struct qf_variant *variant, const struct qf_view *view,
                         struct qf_err *err)
{
    const struct qf_model *model = variant->model;
    int rc = qf_overrides_apply(view, model->overrides_text, model->overrides_size,
                                &variant->view, err);
    if (rc != 0)
        qf_err_prefix(err, QF_OVERRIDES_FILE);
    return rc;
}

static int build(struct qf_variant *variant, const struct qf_view *view,
                 struct qf_err *err)
{
    const struct qf_model *model = variant->model;
    if (model->kind == QF_MODEL_NONE || model->reason[0] != '\0')
        return qf_err_set(err, -ENOTSUP, "%s",
                          model->reason[0] != '\0' ? model->reason : "not a model");
    int rc = override_view(variant, view, err);
    if (rc == 0)
        rc = refuse_same_codec(model, view->codec, err);
    if (rc != 0)
        return rc;
    size_t file_count = 1;
    for (size_t i = 0; i < model->set_count; i++)
        file_count += model->sets[i].shard_count + 1;
    variant->files = calloc(file_count, sizeof *variant->files);
    variant->policies = calloc(model->set_count, sizeof *variant->policies);
    if (variant->files == NULL || variant->policies == NULL)
        return -ENOMEM;
    if (shows_gguf(variant))
        return add_gguf(variant, err);
    rc = plan_sets(variant, err);
    for (size_t i = 0; i < model->set_count && rc == 0; i++)
        rc = add_set(variant, i, err);
    if (rc == 0)
        rc = add_config(variant, err);
    if (rc == 0 && is_plain(variant) && changes_nothing(variant))
        rc = qf_err_set(err, -ENOTSUP, "not quantized, and %s already",
                        qf_dtype_torch_name(variant->policies[0].dtype));
    if (rc != 0)
        return rc;
    qsort(variant->files, variant->file_count, sizeof *variant->files, by_name);
    return 0;
}

static void clear_files(struct qf_variant *variant)
{
    for (size_t i = 0; i < variant->file_count; i++) {
        qf_layout_free(variant->files[i].layout);
        free(variant->files[i].text);
    }
    free(variant->files);
    variant->files = NULL;
    variant->file_count = 0;
}

int qf_variant_new(const struct qf_model *model, const struct qf_view *view,
                   struct qf_variant **out)
{
    struct qf_variant *variant = calloc(1, sizeof *variant);
    if (variant == NULL)
        return -ENOMEM;
    variant->model = model;
    variant->view = *view;
    variant->view.only = variant->view.skip = variant->view.force =
        (struct qf_patterns){0};
    struct qf_err err = {""};
    int rc = build(variant, view, &err);
    if (rc == -ENOMEM) {
        qf_variant_free(variant);
        return rc;
    }
    if (rc != 0) {
        clear_files(variant);
        snprintf(variant->reason, sizeof variant->reason, "%s",
                 err.text[0] != '\0' ? err.text : strerror(-rc));
    }
    *out = variant;
    return 0;
}

void qf_variant_free(struct qf_variant *variant)
{
    if (variant == NULL)
        return;
    clear_files(variant);
    for (size_t i = 0; i < variant->policy_count; i++)
        qf_policy_fini(&variant->policies[i]);
    free(variant->policies);
    qf_view_fini(&variant->view);
    free(variant);
}

const struct qf_variant_file *qf_variant_find(const struct qf_variant *variant,
                                              const char *name)
{
    size_t low = 0, high = variant->file_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, variant->files[middle].name);
        if (order == 0)
            return &variant->files[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

bool qf_variant_hides(const struct qf_variant *variant, const char *name)
{
    const struct qf_model *model = variant->model;
    if (!shows_gguf(variant) || variant->reason[0] != '\0')
        return false;
    for (size_t i = 0; i < model->set_count; i++) {
        const struct qf_weight_set *set = &model->sets[i];
        if (set->index_name != NULL && strcmp(set->index_name, name) == 0)
            return true;
        for (size_t k = 0; k < set->shard_count; k++)
            if (strcmp(set->shards[k].name, name) == 0)
                return true;
    }
    return false;
}
