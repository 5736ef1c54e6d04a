/* SPDX-License-Identifier: Apache-2.0 */
/* What view/ makes of a model, as JSON, for the comparison with Python. Reads one JSON
 * object a line:
 *   {"view": "nf4", "config": {…}, "tensors": [[name, dtype, [shape]], …],
 *    optional: "storage", "dtype", "compute" (dtype names), "blocksize", "threshold",
 *    "metadata": {…}, "layout": true, "config_text": "…"}
 * and writes one a line. The tensors are one shard, in the order given. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/json.h"
#include "view/layout.h"
#include "view/names.h"
#include "view/policy.h"
#include "view/synth.h"

/* The words that the Python side compares. */
static const char *const words[QF_REASON_COUNT] = {
    [QF_REASON_QUANTIZED] = "quantized", [QF_REASON_NOT_WEIGHT] = "not weight",
    [QF_REASON_TABLE] = "table",         [QF_REASON_HEAD] = "head",
    [QF_REASON_FP32] = "fp32",           [QF_REASON_NAME] = "name",
    [QF_REASON_EXPERTS] = "experts",     [QF_REASON_ROUTER] = "router",
    [QF_REASON_EMBEDDING] = "embedding", [QF_REASON_MHA] = "mha",
    [QF_REASON_CLOSURE] = "closure",     [QF_REASON_COLLISION] = "collision",
    [QF_REASON_SHAPE] = "shape",         [QF_REASON_VAE] = "vae",
    [QF_REASON_SKIPPED] = "skipped",     [QF_REASON_CONV1D] = "conv1d",
    [QF_REASON_FUSED] = "fused",
};

struct model {
    struct qf_shard shard;
    struct qf_tensor *tensors;
    const struct qf_tensor **pointers;
    struct qf_metadata_entry *metadata;
};

static size_t length(const qf_json *container)
{
    size_t n = 0;
    for (const qf_json *v = qf_json_first(container); v != NULL; v = qf_json_after(v))
        n++;
    return n;
}

static void read_tensor(const qf_json *row, uint64_t off, struct qf_tensor *out)
{
    const qf_json *name = qf_json_first(row);
    const qf_json *dtype = qf_json_after(name);
    const qf_json *shape = qf_json_after(dtype);
    const char *text = qf_json_string(dtype);
    size_t rank = length(shape);
    uint64_t *dims = calloc(rank + 1, sizeof *dims);
    assert(text != NULL && dims != NULL);
    *out = (struct qf_tensor){.name = qf_json_string(name), .off = off};
    out->dtype = qf_dtype_from_name(text, strlen(text));
    out->rank = (uint32_t)rank;
    out->shape = dims;
    out->size = qf_dtype_bits(out->dtype);
    for (const qf_json *d = qf_json_first(shape); d != NULL; d = qf_json_after(d)) {
        *dims = (uint64_t)qf_json_number(d);
        out->size *= *dims++;
    }
    out->size /= 8;
}

static void read_model(const qf_json *request, struct model *m)
{
    const qf_json *rows = qf_json_get(request, "tensors");
    const qf_json *metadata = qf_json_get(request, "metadata");
    size_t count = length(rows);
    *m = (struct model){0};
    m->tensors = calloc(count + 1, sizeof *m->tensors);
    m->pointers = calloc(count + 1, sizeof *m->pointers);
    m->metadata = calloc(length(metadata) + 1, sizeof *m->metadata);
    assert(m->tensors != NULL && m->pointers != NULL && m->metadata != NULL);
    uint64_t off = 0;
    for (const qf_json *row = qf_json_first(rows); row != NULL;
         row = qf_json_after(row)) {
        struct qf_tensor *t = &m->tensors[m->shard.tensor_count];
        read_tensor(row, off, t);
        m->pointers[m->shard.tensor_count++] = t;
        off += t->size;
    }
    for (const qf_json *e = qf_json_first(metadata); e != NULL; e = qf_json_after(e))
        m->metadata[m->shard.metadata_count++] =
            (struct qf_metadata_entry){qf_json_name(e), qf_json_string(e)};
    m->shard.tensors = m->tensors;
    m->shard.metadata = m->metadata;
    m->shard.file_size = off;
}

static void free_model(struct model *m)
{
    for (size_t i = 0; i < m->shard.tensor_count; i++)
        free((void *)(uintptr_t)m->tensors[i].shape);
    free(m->tensors);
    free(m->pointers);
    free(m->metadata);
}

static enum qf_dtype read_dtype(const qf_json *value, enum qf_dtype otherwise)
{
    const char *text = qf_json_string(value);
    return text != NULL ? qf_dtype_from_name(text, strlen(text)) : otherwise;
}

static struct qf_view read_view(const qf_json *request)
{
    struct qf_view view;
    const char *name = qf_json_string(qf_json_get(request, "view"));
    assert(name != NULL);
    int rc = qf_view_parse(name, strlen(name), &view, NULL);
    assert(rc == 0);
    (void)rc;
    view.storage = read_dtype(qf_json_get(request, "storage"), view.storage);
    view.dtype = read_dtype(qf_json_get(request, "dtype"), view.dtype);
    view.compute = read_dtype(qf_json_get(request, "compute"), view.compute);
    if (qf_json_is_number(qf_json_get(request, "blocksize")))
        view.blocksize = (uint32_t)qf_json_number(qf_json_get(request, "blocksize"));
    if (qf_json_is_number(qf_json_get(request, "threshold")))
        view.int8_threshold = qf_json_number(qf_json_get(request, "threshold"));
    return view;
}

static void append_key(struct qf_buf *out, const char *name)
{
    qf_buf_append_str(out, ", ");
    qf_buf_append_json(out, name, strlen(name));
    qf_buf_append_str(out, ": ");
}

static void append_string(struct qf_buf *out, const char *key, const char *text)
{
    append_key(out, key);
    qf_buf_append_json(out, text, strlen(text));
}

static void dump_policy(const struct model *m, const struct qf_policy *policy,
                        struct qf_buf *out)
{
    append_string(out, "dtype", qf_dtype_name(policy->dtype));
    append_key(out, "skip");
    for (size_t i = 0; i < policy->skip_count; i++) {
        qf_buf_append_str(out, i == 0 ? "[" : ", ");
        qf_buf_append_json(out, policy->skip[i], strlen(policy->skip[i]));
    }
    qf_buf_append_str(out, policy->skip_count == 0 ? "[]" : "]");
    qf_buf_appendf(out, ", \"quantized_count\": %zu", policy->quantized_count);
    append_key(out, "tensors");
    for (size_t i = 0; i < policy->count; i++) {
        const struct qf_decision *d = &policy->decisions[i];
        qf_buf_append_str(out, i == 0 ? "[[" : ", [");
        qf_buf_append_json(out, m->tensors[i].name, strlen(m->tensors[i].name));
        const char *word = words[d->reason];
        qf_buf_appendf(out, ", \"%s\", \"%s\", %d]", word != NULL ? word : "unknown",
                       qf_dtype_name(d->dtype), d->transposed ? 1 : 0);
    }
    qf_buf_append_str(out, policy->count == 0 ? "[]" : "]");
}

static void dump_layout(const struct qf_layout *layout, struct qf_buf *out)
{
    uint64_t n;
    memcpy(&n, layout->header, sizeof n);
    append_key(out, "header");
    qf_buf_append_json(out, layout->header + 8, layout->header_size - 8);
    qf_buf_appendf(out, ", \"header_length\": %llu, \"file_size\": %llu",
                   (unsigned long long)n, (unsigned long long)layout->file_size);
    qf_buf_appendf(out, ", \"tensor_bytes\": %llu, \"spans\": [",
                   (unsigned long long)layout->tensor_bytes);
    for (size_t i = 0; i < layout->span_count; i++) {
        const struct qf_span *s = &layout->spans[i];
        assert(qf_layout_find(layout, s->off) == i);
        assert(qf_layout_find(layout, s->off + s->size - 1) == i);
        qf_buf_appendf(out, "%s[%llu, %llu, %d, %u, %u]", i == 0 ? "" : ", ",
                       (unsigned long long)s->off, (unsigned long long)s->size,
                       (int)s->kind, s->tensor, s->part);
    }
    qf_buf_append_str(out, "]");
}

static int dump_config(const char *text, const struct qf_view *view,
                       const struct qf_policy *policy, struct qf_buf *out,
                       struct qf_err *err)
{
    struct qf_buf config = {0};
    struct qf_model model = {.config_text = (char *)(uintptr_t)text,
                             .config_size = strlen(text)};
    model.config = qf_json_parse(text, strlen(text), err);
    assert(model.config != NULL);
    int rc = qf_synth_config(&model, view, policy, &config, err);
    if (rc == 0) {
        append_key(out, "config_text");
        qf_buf_append_json(out, config.data, config.size);
    }
    qf_buf_fini(&config);
    qf_json_free(model.config);
    return rc;
}

static int answer(const qf_json *request, struct qf_buf *out)
{
    struct qf_err err = {""};
    struct qf_policy policy = {0};
    struct qf_layout *layout = NULL;
    struct model m;
    struct qf_view view = read_view(request);
    const char *text = qf_json_string(qf_json_get(request, "config_text"));
    read_model(request, &m);
    int rc = qf_policy_plan(m.pointers, m.shard.tensor_count,
                            qf_json_get(request, "config"), &view, &policy, &err);
    if (rc != 0 || policy.reason[0] != '\0')
        goto out;
    dump_policy(&m, &policy, out);
    append_key(out, "quantization_config");
    qf_synth_quantization_config(&view, &policy, out);
    if (text != NULL)
        rc = dump_config(text, &view, &policy, out, &err);
    if (rc == 0 && qf_json_is_true(qf_json_get(request, "layout"))) {
        rc = qf_layout_build(&m.shard, policy.decisions, &view, policy.dtype, &layout,
                             &err);
        if (rc == 0)
            dump_layout(layout, out);
    }

out:
    append_string(out, "reason", policy.reason);
    append_string(out, "error", err.text);
    qf_layout_free(layout);
    qf_policy_fini(&policy);
    free_model(&m);
    return rc;
}

int main(void)
{
    char *line = NULL;
    size_t capacity = 0;
    ssize_t n;
    while ((n = getline(&line, &capacity, stdin)) > 0) {
        struct qf_err err = {""};
        qf_json *request = qf_json_parse(line, (size_t)n, &err);
        if (request == NULL) {
            fprintf(stderr, "policy_dump: %s\n", err.text);
            return 2;
        }
        struct qf_buf body = {0};
        int rc = answer(request, &body);
        printf("{\"rc\": %d%.*s}\n", rc, (int)body.size, body.data);
        qf_buf_fini(&body);
        qf_json_free(request);
    }
    free(line);
    return 0;
}
