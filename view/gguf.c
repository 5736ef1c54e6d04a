/* SPDX-License-Identifier: Apache-2.0 */
/* Everything follows from headers and texts: which tensors there are, of which type,
 * and so how long each is, is known before a weight is read. First the tensors are
 * listed in the order of the file and typed, then head and spans are written in one
 * pass. */
#include "view/gguf.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "ckpt/printable.h"
#include "quant/gguf.h"
#include "view/gguf_llm.h"
#include "view/overrides.h"

#define F32_TYPE 0u
#define F16_TYPE 1u

struct item {
    const struct qf_tensor *src;
    uint32_t source; /* shard */
    uint32_t heads;
    uint32_t type;                /* ggml's number */
    char name[QF_GGUF_NAME_SIZE]; /* "": the tensor's own */
    struct qf_decision decision;
    struct qf_plan *plan; /* owned until the layout has it */
    uint64_t size;        /* bytes in the file */
    uint64_t off;         /* from the first tensor's byte */
};

struct build {
    const struct qf_model *model;
    const struct qf_view *view;
    const struct qf_gguf_info *info;
    bool diffusers;
    struct qf_gguf_llm llm;
    struct qf_gguf_head head;
    size_t count;
    struct item *items;
    struct qf_err *err;
};

bool qf_gguf_is_view(const char *view)
{
    return strncmp(view, "gguf-", 5) == 0;
}

bool qf_gguf_file_name(const char *model, enum qf_codec codec,
                       char out[QF_GGUF_FILE_NAME_SIZE])
{
    int n = snprintf(out, QF_GGUF_FILE_NAME_SIZE, "%s-%s.gguf", model,
                     qf_gguf_info(codec)->name);
    return n > 0 && n < (int)QF_GGUF_FILE_NAME_SIZE;
}

/* ---- which tensors ---- */

static int list_items(struct build *b)
{
    const struct qf_weight_set *set = &b->model->sets[0];
    size_t count = 0;
    uint64_t left = QF_GGUF_SIZE_MAX;
    for (size_t i = 0; i < set->shard_count; i++) {
        const struct qf_shard *header = set->shards[i].header;
        if (header->file_size > left)
            return qf_err_set(b->err, -ENOTSUP, "too large for one file");
        left -= header->file_size;
        count += header->tensor_count;
    }
    b->items = calloc(count + 1, sizeof *b->items);
    if (b->items == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t t = 0; t < set->shards[i].header->tensor_count; t++)
            b->items[b->count++] =
                (struct item){.src = &set->shards[i].header->tensors[t],
                              .source = (uint32_t)i};
    return 0;
}

static int by_source_name(const void *a, const void *b)
{
    return strcmp(((const struct item *)a)->src->name,
                  ((const struct item *)b)->src->name);
}

/* Language models: in the order of their names, under new ones, some left out. */
static int name_items(struct build *b)
{
    size_t kept = 0;
    qsort(b->items, b->count, sizeof *b->items, by_source_name);
    for (size_t i = 0; i < b->count; i++) {
        struct item item = b->items[i];
        int rc = qf_gguf_llm_name(&b->llm, item.src, item.name, &item.heads, b->err);
        if (rc != 0)
            return rc;
        if (strcmp(item.name, "token_embd.weight") == 0 &&
            (item.src->rank != 2 || item.src->shape[0] != b->llm.vocab_size))
            return qf_err_set(b->err, -ENOTSUP,
                              "%s: its rows are not those of %u tokens (vocab_size)",
                              item.src->name, b->llm.vocab_size);
        if (item.name[0] != '\0')
            b->items[kept++] = item;
    }
    b->count = kept;
    return 0;
}

/* ---- of which type ---- */

/* ggml's type of what is copied as it is; UINT32_MAX: it has none. */
static uint32_t copied_type(enum qf_dtype dtype)
{
    switch (dtype) {
    case QF_I8:
        return 24;
    case QF_I16:
        return 25;
    case QF_I32:
        return 26;
    case QF_I64:
        return 27;
    case QF_F64:
        return 28;
    default:
        return UINT32_MAX;
    }
}

static void keep(struct item *item, enum qf_reason reason, enum qf_dtype dtype,
                 uint32_t type)
{
    item->decision = (struct qf_decision){.reason = reason, .dtype = dtype};
    item->type = type;
    item->size =
        item->src->size / qf_dtype_size(item->src->dtype) * qf_dtype_size(dtype);
}

/* Why a float tensor is not of the view's type, if it is not. */
static enum qf_reason reason_of(const struct build *b, const struct item *item)
{
    static const char end[] = ".weight";
    size_t size = strlen(item->src->name), n = strlen(end);
    if (item->src->rank != 2 || item->src->size == 0 || size <= n ||
        strcmp(item->src->name + size - n, end) != 0)
        return QF_REASON_NOT_WEIGHT;
    const struct qf_view *view = b->view;
    bool skipped = qf_patterns_match(&view->skip, item->src->name, size - n);
    if (view->only.count != 0)
        skipped = skipped || !qf_patterns_match(&view->only, item->src->name, size - n);
    return skipped ? QF_REASON_SKIPPED : QF_REASON_QUANTIZED;
}

static int plan_item(struct build *b, struct item *item)
{
    struct qf_codec_spec spec = qf_view_spec(b->view, item->src->dtype);
    item->plan = malloc(sizeof *item->plan);
    if (item->plan == NULL)
        return -ENOMEM;
    int rc = qf_codec_plan(&spec, item->src->dtype, item->src->shape, false, item->plan,
                           b->err);
    if (rc != 0)
        return rc;
    item->type = b->info->type;
    item->size = item->plan->parts[0].size;
    item->decision = (struct qf_decision){QF_REASON_QUANTIZED, spec.dtype, false};
    return 0;
}

static int type_item(struct build *b, struct item *item)
{
    const struct qf_tensor *src = item->src;
    if (!qf_dtype_is_float(src->dtype)) {
        uint32_t type = copied_type(src->dtype);
        if (type == UINT32_MAX)
            return qf_err_set(b->err, -ENOTSUP, "%s: GGUF has no type for %s",
                              qf_printable(src->name).text, qf_dtype_name(src->dtype));
        keep(item, QF_REASON_NOT_WEIGHT, src->dtype, type);
        return 0;
    }
    enum qf_reason reason = reason_of(b, item);
    if (reason != QF_REASON_QUANTIZED)
        keep(item, reason, QF_F32, F32_TYPE);
    else if (b->info->dtype != QF_DTYPE_NONE)
        keep(item, reason, b->info->dtype, b->info->type);
    else if (src->shape[1] % QF_GGUF_BLOCK != 0)
        keep(item, QF_REASON_SHAPE, QF_F16, F16_TYPE);
    else
        return plan_item(b, item);
    return 0;
}

static int type_items(struct build *b, struct qf_policy *out)
{
    int rc = 0;
    out->decisions = calloc(b->count + 1, sizeof *out->decisions);
    if (out->decisions == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < b->count && rc == 0; i++) {
        struct item *item = &b->items[i];
        rc = type_item(b, item);
        if (rc == 0 && item->decision.reason == QF_REASON_QUANTIZED &&
            out->quantized_count++ == 0)
            out->dtype = item->src->dtype;
        out->decisions[out->count++] = item->decision;
    }
    if (rc == 0 && out->quantized_count == 0)
        rc = qf_err_set(b->err, -ENOTSUP, "no tensor of it can be quantized");
    return rc;
}

/* ---- the file ---- */

static int write_pairs(struct build *b)
{
    const struct qf_model *model = b->model;
    if (!b->diffusers) {
        int rc = qf_gguf_llm_pairs(model, &b->llm, b->view->codec, &b->head, b->err);
        return rc == 0 ? qf_gguf_vocab_pairs(model, &b->llm, &b->head, b->err) : rc;
    }
    qf_gguf_add_string(&b->head, "general.architecture", "diffusers");
    qf_gguf_add_string(&b->head, "general.type", "model");
    qf_gguf_add_string(&b->head, "general.name",
                       qf_json_string(qf_json_get(model->config, "_class_name")));
    qf_gguf_add_u32(&b->head, "general.quantization_version", 2);
    qf_gguf_add_u32(&b->head, "general.file_type", b->info->file_type);
    return 0;
}

static void place_items(struct build *b)
{
    for (size_t i = 0; i < b->count; i++) {
        struct item *item = &b->items[i];
        const struct qf_tensor *src = item->src;
        item->off =
            qf_gguf_add_tensor(&b->head, item->name[0] != '\0' ? item->name : src->name,
                               src->rank, src->shape, item->type, item->size);
    }
}

static void add_span(struct qf_layout *layout, uint64_t size, enum qf_span_kind kind,
                     size_t tensor)
{
    if (size == 0)
        return;
    layout->spans[layout->span_count++] = (struct qf_span){.off = layout->file_size,
                                                           .size = size,
                                                           .kind = kind,
                                                           .tensor = (uint32_t)tensor};
    layout->file_size += size;
}

/* Gives the plan to the layout. */
static void lay_out_item(struct qf_layout *layout, struct item *item)
{
    size_t index = layout->tensor_count++;
    enum qf_dtype dtype = item->decision.dtype;
    enum qf_span_kind kind = item->plan != NULL          ? QF_SPAN_PART
                             : dtype == item->src->dtype ? QF_SPAN_COPY
                                                         : QF_SPAN_CAST;
    layout->tensors[index] = (struct qf_layout_tensor){.src = item->src,
                                                       .source = item->source,
                                                       .heads = item->heads,
                                                       .out_dtype = dtype,
                                                       .plan = item->plan};
    item->plan = NULL;
    layout->tensor_bytes += item->size;
    add_span(layout, item->size, kind, index);
}

static int lay_out(struct build *b, struct qf_layout *layout)
{
    place_items(b);
    layout->header = qf_gguf_finish(&b->head, &layout->header_size);
    layout->tensors = calloc(b->count + 1, sizeof *layout->tensors);
    layout->spans = calloc(2 * b->count + 1, sizeof *layout->spans);
    if (layout->header == NULL || layout->tensors == NULL || layout->spans == NULL)
        return -ENOMEM;
    add_span(layout, layout->header_size, QF_SPAN_HEADER, 0);
    for (size_t i = 0; i < b->count; i++) {
        uint64_t begin = layout->header_size + b->items[i].off;
        add_span(layout, begin - layout->file_size, QF_SPAN_ZERO, 0);
        lay_out_item(layout, &b->items[i]);
    }
    uint64_t last = layout->file_size % QF_GGUF_ALIGN;
    add_span(layout, last != 0 ? QF_GGUF_ALIGN - last : 0, QF_SPAN_ZERO, 0);
    return 0;
}

/* ---- */

static int begin(struct build *b)
{
    const char *class = qf_json_string(qf_json_get(b->model->config, "_class_name"));
    assert(b->model->set_count > 0);
    b->diffusers = b->model->kind == QF_MODEL_DIFFUSERS;
    if (!b->diffusers && !b->model->whole)
        return qf_err_set(b->err, -ENOTSUP, "its tokenizer was not looked at");
    if (!b->diffusers)
        return qf_gguf_llm_read(b->model->config, &b->llm, b->err);
    if (class == NULL || !qf_gguf_is_diffusers_class(class))
        return qf_err_set(b->err, -ENOTSUP,
                          "no GGUF file of a %s: diffusers' has no from_single_file",
                          qf_printable(class != NULL ? class : "component").text);
    return 0;
}

static int build(struct build *b, struct qf_layout *layout, struct qf_policy *out)
{
    int rc = begin(b);
    if (rc == 0)
        rc = list_items(b);
    if (rc == 0 && !b->diffusers)
        rc = name_items(b);
    out->diffusers = b->diffusers;
    if (rc == 0)
        rc = type_items(b, out);
    if (rc == 0)
        rc = write_pairs(b);
    return rc == 0 ? lay_out(b, layout) : rc;
}

int qf_gguf_build(const struct qf_model *model, const struct qf_view *view,
                  struct qf_layout **layout, struct qf_policy *out, struct qf_err *err)
{
    struct build b = {.model = model,
                      .view = view,
                      .info = qf_gguf_info(view->codec),
                      .err = err};
    *out = (struct qf_policy){.dtype = QF_F32};
    *layout = calloc(1, sizeof **layout);
    int rc = *layout != NULL ? build(&b, *layout, out) : -ENOMEM;
    for (size_t i = 0; i < b.count; i++)
        free(b.items[i].plan);
    free(b.items);
    qf_gguf_head_fini(&b.head);
    if (rc != 0) {
        qf_layout_free(*layout);
        *layout = NULL;
    }
    return rc;
}
