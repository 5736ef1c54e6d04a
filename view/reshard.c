/* SPDX-License-Identifier: Apache-2.0 */
/* Who is whose companion is told by names alone, so that the shards of any checkpoint
 * can be split, one behind a mount included; the names are those that the codecs give
 * to their parts.
 *
 * In a new shard tensors keep their order as far as alignment allows: first those whose
 * size is a multiple of 8, which move nothing behind them off its place, then the
 * others, widest dtype first. The large ones are of the first kind: reading a new shard
 * from front to back reads the old ones from front to back. */
#include "view/reshard.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "base/bytes.h"
#include "quant/codec.h"
#include "view/header.h"
#include "view/layout.h"
#include "view/synth.h"

struct item {
    const struct qf_tensor *tensor;
    uint32_t shard;
    size_t owner; /* the item whose companion it is, or itself */
};

struct splitter {
    const struct qf_shard *const *shards;
    size_t count;
    struct item *items; /* in the order of the shards */
    size_t *by_name;    /* indices of items */
    struct qf_plan codecs[QF_CODEC_COUNT];
    struct qf_reshard *plan;
};

/* ---- whose companion ---- */

static int compare_names(const void *a, const void *b, void *arg)
{
    const struct item *items = arg;
    return strcmp(items[*(const size_t *)a].tensor->name,
                  items[*(const size_t *)b].tensor->name);
}

static int index_items(struct splitter *s, struct qf_err *err)
{
    size_t total = 0;
    for (size_t i = 0; i < s->count; i++)
        total += s->shards[i]->tensor_count;
    s->plan->tensor_count = total;
    s->items = calloc(total + 1, sizeof *s->items);
    s->by_name = calloc(total + 1, sizeof *s->by_name);
    s->plan->tensors = calloc(total + 1, sizeof *s->plan->tensors);
    if (s->items == NULL || s->by_name == NULL || s->plan->tensors == NULL)
        return -ENOMEM;
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        for (size_t t = 0; t < s->shards[i]->tensor_count; t++, n++) {
            s->items[n] = (struct item){&s->shards[i]->tensors[t], (uint32_t)i, n};
            s->by_name[n] = n;
        }
    qsort_r(s->by_name, total, sizeof *s->by_name, compare_names, s->items);
    for (size_t i = 1; i < total; i++)
        if (compare_names(&s->by_name[i - 1], &s->by_name[i], s->items) == 0)
            return qf_err_set(err, -EBADMSG, "tensor '%s' is in two shards",
                              s->items[s->by_name[i]].tensor->name);
    return 0;
}

static struct item *find_item(const struct splitter *s, const char *name)
{
    size_t low = 0, high = s->plan->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        struct item *item = &s->items[s->by_name[middle]];
        int order = strcmp(name, item->tensor->name);
        if (order == 0)
            return item;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

/* The parts that each codec makes of any weight. */
static int plan_codecs(struct splitter *s)
{
    static const uint64_t shape[2] = {1024, 1024};
    int rc = 0;
    for (int i = 0; i < QF_CODEC_COUNT && rc == 0; i++) {
        struct qf_codec_spec spec = qf_codec_default((enum qf_codec)i, QF_F32);
        if (qf_codec_info(spec.codec)->family == QF_FAMILY_GGUF)
            continue; /* no tensors of safetensors files */
        rc = qf_codec_plan(&spec, QF_F32, shape, false, &s->codecs[i], NULL);
        if (rc == -ENOTSUP) { /* it makes no parts */
            s->codecs[i].part_count = 0;
            rc = 0;
        }
    }
    return rc;
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t n = strlen(name), k = strlen(suffix);
    return n >= k && strcmp(name + n - k, suffix) == 0;
}

/* Whether the item is the codes of a weight in this codec; then the weight's name. */
static bool weight_of(const char *name, const struct qf_plan *plan, char *weight)
{
    const struct qf_part *codes = qf_plan_part(plan, QF_PART_CODES);
    strcpy(weight, name);
    if (codes == NULL ||
        !ends_with(name, codes->strip != 0 ? codes->suffix : ".weight"))
        return false;
    if (codes->strip != 0)
        strcpy(weight + strlen(name) - strlen(codes->suffix), "weight");
    return ends_with(weight, ".weight");
}

/* The companions of codes go where these do. */
static int adopt(struct splitter *s, size_t owner)
{
    const char *name = s->items[owner].tensor->name;
    size_t size = strlen(name) + QF_PART_SUFFIX_SIZE + sizeof ".weight";
    char *part_name = malloc(2 * size);
    if (part_name == NULL)
        return -ENOMEM;
    char *weight = part_name + size;
    for (int c = 0; c < QF_CODEC_COUNT; c++) {
        if (s->codecs[c].part_count == 0 || !weight_of(name, &s->codecs[c], weight))
            continue;
        for (uint32_t p = 0; p < s->codecs[c].part_count; p++) {
            const struct qf_part *part = &s->codecs[c].parts[p];
            if (part->hidden)
                continue;
            qf_part_name(weight, part, part_name, size);
            struct item *item = find_item(s, part_name);
            if (item != NULL)
                item->owner = owner;
        }
    }
    free(part_name);
    return 0;
}

/* A unit stands where its weight does. */
static int compare_units(const void *a, const void *b)
{
    const struct item *x = a, *y = b;
    if (x->owner != y->owner)
        return x->owner < y->owner ? -1 : 1;
    if (x->shard != y->shard)
        return x->shard < y->shard ? -1 : 1;
    return x->tensor < y->tensor ? -1 : x->tensor > y->tensor;
}

/* ---- one new shard ---- */

static void place(struct qf_reshard *plan, struct qf_reshard_file *file,
                  const struct item *item, uint64_t *off, struct qf_buf *header)
{
    const struct qf_tensor *t = item->tensor;
    plan->tensors[plan->tensor_count++] =
        (struct qf_reshard_tensor){item->shard, t, *off};
    file->tensor_count++;
    qf_header_add(t->name, t->dtype, t->rank, t->shape, *off, *off + t->size, header);
    *off += t->size;
}

/* Metadata of an old shard goes along with its first tensor. */
static int fill_file(struct splitter *s, struct qf_reshard_file *file,
                     const struct item *items, size_t count, struct qf_err *err)
{
    struct qf_buf header = {0};
    const struct qf_shard *first = s->shards[items[0].shard];
    uint64_t off = 0;
    file->tensors = &s->plan->tensors[s->plan->tensor_count];
    qf_header_begin(first->metadata, first->metadata_count, &header);
    for (size_t i = 0; i < count; i++)
        if (items[i].tensor->size % QF_HEADER_ALIGN == 0)
            place(s->plan, file, &items[i], &off, &header);
    for (unsigned width = QF_DTYPE_WIDTH_MAX; width > 0; width /= 2)
        for (size_t i = 0; i < count; i++)
            if (items[i].tensor->size % QF_HEADER_ALIGN != 0 &&
                qf_header_width(items[i].tensor->dtype) == width)
                place(s->plan, file, &items[i], &off, &header);
    assert(file->tensor_count == count);
    int rc = qf_header_finish(&header, &file->header, &file->header_size, err);
    qf_buf_fini(&header);
    if (rc != 0)
        return rc;
    for (size_t i = 0; i < count; i++)
        s->plan->tensors[s->plan->tensor_count - count + i].off += file->header_size;
    file->size = file->header_size + off;
    s->plan->tensor_bytes += off;
    return 0;
}

/* ---- all of them ---- */

static size_t unit_size(const struct item *items, size_t first, size_t end,
                        uint64_t *bytes)
{
    size_t i = first;
    *bytes = 0;
    for (; i < end && items[i].owner == items[first].owner; i++)
        *bytes += items[i].tensor->size;
    return i - first;
}

static int add_file(struct splitter *s, const struct item *items, size_t count,
                    struct qf_err *err)
{
    return count == 0 ? 0
                      : fill_file(s, &s->plan->files[s->plan->file_count++], items,
                                  count, err);
}

/* What is larger than a shard is set aside by itself, as save_pretrained does; what was
 * begun before it goes on behind it. */
static int split(struct splitter *s, uint64_t size_max, struct qf_err *err)
{
    size_t end = s->plan->tensor_count;
    struct item *open = calloc(end + 1, sizeof *open);
    size_t open_count = 0;
    uint64_t open_size = 0, bytes;
    int rc = open != NULL ? 0 : -ENOMEM;
    s->plan->tensor_count = 0; /* from here on: those that have their place */
    for (size_t i = 0, n; i < end && rc == 0; i += n) {
        n = unit_size(s->items, i, end, &bytes);
        if (bytes > size_max) {
            rc = add_file(s, &s->items[i], n, err);
            continue;
        }
        if (open_size + bytes > size_max) {
            rc = add_file(s, open, open_count, err);
            open_count = 0;
            open_size = 0;
        }
        memcpy(&open[open_count], &s->items[i], n * sizeof *open);
        open_count += n;
        open_size += bytes;
    }
    if (rc == 0)
        rc = add_file(s, open, open_count, err);
    free(open);
    return rc;
}

int qf_reshard_plan(const struct qf_shard *const *shards, size_t count,
                    uint64_t size_max, struct qf_reshard **out, struct qf_err *err)
{
    struct splitter s = {.shards = shards, .count = count};
    s.plan = calloc(1, sizeof *s.plan);
    int rc = s.plan != NULL ? plan_codecs(&s) : -ENOMEM;
    if (rc == 0)
        rc = index_items(&s, err);
    for (size_t i = 0; rc == 0 && i < s.plan->tensor_count; i++)
        rc = adopt(&s, i);
    if (rc == 0 && s.plan->tensor_count == 0)
        rc = qf_err_set(err, -EBADMSG, "there is no tensor to put into a shard");
    if (rc == 0) {
        qsort(s.items, s.plan->tensor_count, sizeof *s.items, compare_units);
        s.plan->files = calloc(s.plan->tensor_count, sizeof *s.plan->files);
        rc = s.plan->files != NULL ? split(&s, size_max, err) : -ENOMEM;
    }
    free(s.items);
    free(s.by_name);
    if (rc == 0) {
        *out = s.plan;
        return 0;
    }
    qf_reshard_free(s.plan);
    return rc == -ENOMEM ? qf_err_set(err, rc, "out of memory") : rc;
}

void qf_reshard_free(struct qf_reshard *plan)
{
    if (plan == NULL)
        return;
    for (size_t i = 0; i < plan->file_count; i++)
        free(plan->files[i].header);
    free(plan->files);
    free(plan->tensors);
    free(plan);
}

/* ---- names ---- */

char *qf_reshard_name(const char *stem, size_t index, size_t count)
{
    size_t size = strlen(stem) + 64;
    char *name = malloc(size);
    if (name != NULL && count == 1)
        snprintf(name, size, "%s.safetensors", stem);
    else if (name != NULL)
        snprintf(name, size, "%s-%05zu-of-%05zu.safetensors", stem, index + 1, count);
    return name;
}

int qf_reshard_index(const struct qf_reshard *plan, const char *stem, const char *text,
                     size_t size, struct qf_buf *out)
{
    char **files = calloc(plan->file_count, sizeof *files);
    struct qf_index_name *names = calloc(plan->tensor_count, sizeof *names);
    int rc = files != NULL && names != NULL ? 0 : -ENOMEM;
    size_t n = 0;
    for (size_t i = 0; i < plan->file_count && rc == 0; i++) {
        files[i] = qf_reshard_name(stem, i, plan->file_count);
        if (files[i] == NULL)
            rc = -ENOMEM;
        for (size_t t = 0; t < plan->files[i].tensor_count && rc == 0; t++)
            names[n++] = (struct qf_index_name){plan->files[i].tensors[t].tensor->name,
                                                files[i]};
    }
    if (rc == 0)
        rc = qf_synth_index_text(text, size, plan->tensor_bytes, names, n, out);
    for (size_t i = 0; files != NULL && i < plan->file_count; i++)
        free(files[i]);
    free(files);
    free(names);
    return rc;
}

int qf_parse_shard_size(const char *text, uint64_t *out)
{
    static const struct {
        const char *name;
        double bytes;
    } units[] = {{"", 1},         {"B", 1},       {"KB", 1e3},     {"MB", 1e6},
                 {"GB", 1e9},     {"TB", 1e12},   {"KiB", 0x1p10}, {"MiB", 0x1p20},
                 {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char *end;
    text += strspn(text, " ");
    if (text[strspn(text, "0123456789.")] == 'x' || strspn(text, "0123456789.") == 0)
        return -EINVAL;
    double value = strtod(text, &end);
    end += strspn(end, " ");
    size_t length = strlen(end);
    while (length > 0 && end[length - 1] == ' ')
        length--;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strlen(units[i].name) != length ||
            strncasecmp(units[i].name, end, length) != 0)
            continue;
        value *= units[i].bytes;
        if (!(value >= 1) || value >= 0x1p63)
            return -ERANGE;
        *out = (uint64_t)value;
        return 0;
    }
    return -EINVAL;
}
