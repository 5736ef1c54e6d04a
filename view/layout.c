/* SPDX-License-Identifier: Apache-2.0 */
/* One pass over the output tensors in the order of the file writes the header's text
 * and the spans together; the size of the header is known only then, so spans are
 * moved behind it at the end.
 *
 * The order is chosen for a reader from front to back: what comes of one source tensor
 * lies together (a group), in the order of the source, so the source is read once and
 * the first weight is ready early. Groups whose size is no multiple of 8 go to the end,
 * tensor by tensor and the widest first; so every tensor is aligned to its dtype, and
 * there are no gaps, which the format forbids. */
#include "view/layout.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/buf.h"
#include "base/bytes.h"
#include "view/header.h"

#define WHOLE UINT32_MAX /* a kept tensor, in place of the number of a part */
#define ALIGN QF_HEADER_ALIGN

/* The output tensors of one source tensor: first its main group in the order of the
 * file, then those that are a group each. */
struct outputs {
    uint32_t count;
    uint32_t main_count;
    uint64_t main_size;
    uint32_t parts[QF_PARTS_MAX];
};

struct builder {
    const struct qf_shard *shard;
    struct qf_layout *layout;
    struct qf_buf header;
    bool plain; /* nothing is quantized: a coded tensor goes straight to its dtype */
    char *name; /* room for the longest name of an output tensor */
    size_t name_size;
    uint64_t off; /* in the data */
};

size_t qf_part_name(const char *tensor, const struct qf_part *part, char *out,
                    size_t size)
{
    size_t stem = strlen(tensor);
    if (part != NULL) {
        assert(part->strip <= stem);
        stem -= part->strip;
    }
    size_t suffix = part != NULL ? strlen(part->suffix) : 0;
    if (size > stem + suffix) {
        memcpy(out, tensor, stem);
        memcpy(out + stem, part != NULL ? part->suffix : "", suffix + 1);
    } else if (size > 0) {
        *out = '\0';
    }
    return stem + suffix;
}

static int kept_size(const struct qf_layout_tensor *t, uint64_t *out)
{
    if (t->out_dtype == t->src->dtype) {
        *out = t->src->size;
        return 0;
    }
    assert(qf_dtype_is_float(t->out_dtype) && qf_dtype_is_float(t->src->dtype));
    uint64_t count = t->src->size / qf_dtype_size(t->src->dtype);
    return qf_mul_u64(count, qf_dtype_size(t->out_dtype), out) ? 0 : -EOVERFLOW;
}

static uint64_t output_size(const struct qf_layout_tensor *t, uint32_t part)
{
    uint64_t size;
    if (part != WHOLE)
        return t->plan->parts[part].size;
    int rc = kept_size(t, &size);
    assert(rc == 0); /* was checked when the tensors were planned */
    (void)rc;
    return size;
}

static enum qf_dtype output_dtype(const struct qf_layout_tensor *t, uint32_t part)
{
    return part == WHOLE ? t->out_dtype : t->plan->parts[part].dtype;
}

/* The parts of one kind, widest first, else in the order of the plan. */
static void append_parts(const struct qf_plan *plan, bool own_group,
                         struct outputs *out)
{
    for (unsigned width = QF_DTYPE_WIDTH_MAX; width > 0; width /= 2)
        for (uint32_t i = 0; i < plan->part_count; i++) {
            const struct qf_part *part = &plan->parts[i];
            if (!part->hidden && part->own_group == own_group &&
                qf_header_width(part->dtype) == width)
                out->parts[out->count++] = i;
        }
}

static int list_outputs(const struct qf_layout_tensor *t, struct outputs *out)
{
    *out = (struct outputs){0};
    if (t->plan == NULL) {
        out->parts[0] = WHOLE;
        out->count = out->main_count = 1;
        return kept_size(t, &out->main_size);
    }
    append_parts(t->plan, false, out);
    out->main_count = out->count;
    for (uint32_t i = 0; i < out->main_count; i++)
        if (!qf_add_u64(out->main_size, output_size(t, out->parts[i]), &out->main_size))
            return -EOVERFLOW;
    append_parts(t->plan, true, out);
    return 0;
}

/* Fills the quant_state with blanks, so that the group can keep its place. */
static int pad_group(const struct qf_layout_tensor *t)
{
    const struct qf_part *state = qf_plan_part(t->plan, QF_PART_QUANT_STATE);
    struct outputs outputs;
    int rc = list_outputs(t, &outputs);
    if (rc != 0 || state == NULL || outputs.main_size % ALIGN == 0)
        return rc;
    qf_plan_pad_quant_state(t->plan, state->size + ALIGN - outputs.main_size % ALIGN);
    return 0;
}

static int plan_tensors(struct builder *b, const struct qf_decision *decisions,
                        const struct qf_codec_spec *spec, struct qf_err *err)
{
    struct qf_layout *layout = b->layout;
    uint64_t size;
    for (size_t i = 0; i < layout->tensor_count; i++) {
        const struct qf_tensor *src = &b->shard->tensors[i];
        struct qf_layout_tensor *t = &layout->tensors[i];
        *t = (struct qf_layout_tensor){.src = src, .out_dtype = decisions[i].dtype};
        int rc;
        if (decisions[i].reason != QF_REASON_QUANTIZED) {
            rc = kept_size(t, &size);
        } else {
            assert(src->rank == 2);
            t->plan = malloc(sizeof *t->plan);
            if (t->plan == NULL)
                return -ENOMEM;
            rc = qf_codec_plan(spec, src->dtype, src->shape, decisions[i].transposed,
                               t->plan, err);
            if (rc == 0)
                rc = pad_group(t);
        }
        if (rc != 0)
            return rc;
        size_t room = strlen(src->name) + QF_PART_SUFFIX_SIZE + 1;
        b->name_size = room > b->name_size ? room : b->name_size;
    }
    return 0;
}

static int alloc_spans(struct builder *b)
{
    size_t count = 1; /* the header */
    struct outputs outputs;
    for (size_t i = 0; i < b->layout->tensor_count; i++) {
        int rc = list_outputs(&b->layout->tensors[i], &outputs);
        if (rc != 0)
            return rc;
        count += outputs.count;
    }
    b->layout->spans = calloc(count, sizeof *b->layout->spans);
    b->name = malloc(b->name_size);
    return b->layout->spans != NULL && (b->name != NULL || b->name_size == 0) ? 0
                                                                              : -ENOMEM;
}

static enum qf_span_kind kept_kind(const struct builder *b,
                                   const struct qf_layout_tensor *t)
{
    if (t->src->coded != NULL && (b->plain || t->out_dtype == t->src->dtype))
        return QF_SPAN_DECODED;
    return t->out_dtype == t->src->dtype ? QF_SPAN_COPY : QF_SPAN_CAST;
}

static int emit(struct builder *b, uint32_t tensor, uint32_t part_index)
{
    struct qf_layout *layout = b->layout;
    const struct qf_layout_tensor *t = &layout->tensors[tensor];
    const struct qf_part *part =
        part_index != WHOLE ? &t->plan->parts[part_index] : NULL;
    uint32_t rank = part != NULL ? part->rank : t->src->rank;
    const uint64_t *shape = part != NULL ? part->shape : t->src->shape;
    uint64_t size = output_size(t, part_index);
    uint64_t end;
    if (!qf_add_u64(b->off, size, &end) || end > INT64_MAX)
        return -EOVERFLOW;
    qf_part_name(t->src->name, part, b->name, b->name_size);
    qf_header_add(b->name, output_dtype(t, part_index), rank, shape, b->off, end,
                  &b->header);
    if (size > 0) {
        enum qf_span_kind kind = part != NULL ? QF_SPAN_PART : kept_kind(b, t);
        layout->spans[layout->span_count++] =
            (struct qf_span){.off = b->off,
                             .size = size,
                             .kind = kind,
                             .tensor = tensor,
                             .part = part != NULL ? part_index : 0};
    }
    b->off = end;
    return 0;
}

/* Groups that keep everything behind them aligned to 8. */
static int emit_groups(struct builder *b, uint32_t tensor)
{
    struct outputs outputs;
    const struct qf_layout_tensor *t = &b->layout->tensors[tensor];
    int rc = list_outputs(t, &outputs);
    bool whole = outputs.main_size % ALIGN == 0;
    for (uint32_t i = 0; rc == 0 && i < outputs.count; i++) {
        uint32_t part = outputs.parts[i];
        if (i < outputs.main_count ? whole : output_size(t, part) % ALIGN == 0)
            rc = emit(b, tensor, part);
    }
    return rc;
}

/* What the groups left, of one width of dtype. */
static int emit_rest(struct builder *b, uint32_t tensor, unsigned width)
{
    struct outputs outputs;
    const struct qf_layout_tensor *t = &b->layout->tensors[tensor];
    int rc = list_outputs(t, &outputs);
    bool whole = outputs.main_size % ALIGN == 0;
    for (uint32_t i = 0; rc == 0 && i < outputs.count; i++) {
        uint32_t part = outputs.parts[i];
        bool done = i < outputs.main_count ? whole : output_size(t, part) % ALIGN == 0;
        if (!done && qf_header_width(output_dtype(t, part)) == width)
            rc = emit(b, tensor, part);
    }
    return rc;
}

static int emit_all(struct builder *b)
{
    int rc = 0;
    uint32_t count = (uint32_t)b->layout->tensor_count;
    b->layout->span_count = 1;
    for (uint32_t i = 0; rc == 0 && i < count; i++)
        rc = emit_groups(b, i);
    for (unsigned width = QF_DTYPE_WIDTH_MAX; width > 0; width /= 2)
        for (uint32_t i = 0; rc == 0 && i < count; i++)
            rc = emit_rest(b, i, width);
    return rc;
}

/* Closes the header and moves the spans behind it. */
static int finish(struct builder *b, struct qf_err *err)
{
    struct qf_layout *layout = b->layout;
    int rc = qf_header_finish(&b->header, &layout->header, &layout->header_size, err);
    if (rc != 0)
        return rc;
    layout->tensor_bytes = b->off;
    if (b->off > INT64_MAX - layout->header_size)
        return -EOVERFLOW;
    layout->file_size = layout->header_size + b->off;
    layout->spans[0] = (struct qf_span){.size = layout->header_size};
    for (size_t i = 1; i < layout->span_count; i++)
        layout->spans[i].off += layout->header_size;
    return 0;
}

static int compare_keys(const void *a, const void *b)
{
    return strcmp((*(const struct qf_metadata_entry *const *)a)->key,
                  (*(const struct qf_metadata_entry *const *)b)->key);
}

/* The shard's own entries, but for those that the view has others for, and these. */
static int begin_header(struct builder *b, const struct qf_layout_metadata *more)
{
    size_t own = b->shard->metadata_count, added = more->count;
    struct qf_metadata_entry *all = calloc(own + added + 1, sizeof *all);
    const struct qf_metadata_entry **keys = calloc(added + 1, sizeof *keys);
    size_t count = 0;
    int rc = all != NULL && keys != NULL ? 0 : -ENOMEM;
    if (rc != 0)
        goto out;
    for (size_t i = 0; i < added; i++)
        keys[i] = &more->entries[i];
    qsort(keys, added, sizeof(*keys), compare_keys);
    for (size_t i = 0; i < own; i++) {
        const struct qf_metadata_entry *entry = &b->shard->metadata[i];
        if (bsearch(&entry, keys, added, sizeof(*keys), compare_keys) == NULL)
            all[count++] = *entry;
    }
    if (added != 0)
        memcpy(all + count, more->entries, added * sizeof *all);
    qf_header_begin(all, count + added, &b->header);
out:
    free(all);
    free(keys);
    return rc;
}

int qf_layout_build(const struct qf_shard *shard, const struct qf_decision *decisions,
                    const struct qf_view *view, enum qf_dtype dtype,
                    struct qf_layout **out, struct qf_err *err)
{
    static const struct qf_layout_metadata none;
    return qf_layout_build_with(shard, decisions, view, dtype, &none, out, err);
}

int qf_layout_build_with(const struct qf_shard *shard,
                         const struct qf_decision *decisions,
                         const struct qf_view *view, enum qf_dtype dtype,
                         const struct qf_layout_metadata *metadata,
                         struct qf_layout **out, struct qf_err *err)
{
    struct qf_codec_spec spec = qf_view_spec(view, dtype);
    struct builder b = {.shard = shard,
                        .plain = qf_codec_plain_dtype(view->codec) != QF_DTYPE_NONE};
    int rc = -ENOMEM;
    assert(shard->tensor_count < UINT32_MAX);
    b.layout = calloc(1, sizeof *b.layout);
    if (b.layout == NULL)
        goto out;
    b.layout->tensors = calloc(shard->tensor_count + 1, sizeof *b.layout->tensors);
    if (b.layout->tensors == NULL)
        goto out;
    b.layout->tensor_count = shard->tensor_count;
    rc = plan_tensors(&b, decisions, &spec, err);
    if (rc == 0)
        rc = alloc_spans(&b);
    if (rc != 0)
        goto out;
    rc = begin_header(&b, metadata);
    if (rc == 0)
        rc = emit_all(&b);
    if (rc == 0)
        rc = finish(&b, err);

out:
    qf_buf_fini(&b.header);
    free(b.name);
    if (rc == 0) {
        *out = b.layout;
        return 0;
    }
    if (rc == -ENOMEM)
        qf_err_set(err, rc, "out of memory");
    else if (rc == -EOVERFLOW)
        qf_err_set(err, rc, "the view would be larger than a file can be");
    qf_layout_free(b.layout);
    return rc;
}

void qf_layout_free(struct qf_layout *layout)
{
    if (layout == NULL)
        return;
    for (size_t i = 0; layout->tensors != NULL && i < layout->tensor_count; i++)
        free(layout->tensors[i].plan);
    free(layout->tensors);
    free(layout->spans);
    free(layout->header);
    free(layout);
}

size_t qf_layout_find(const struct qf_layout *layout, uint64_t off)
{
    assert(off < layout->file_size);
    size_t low = 0;
    size_t high = layout->span_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (layout->spans[middle].off <= off)
            low = middle;
        else
            high = middle;
    }
    return low;
}
