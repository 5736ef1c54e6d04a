/* SPDX-License-Identifier: Apache-2.0 */
/* The index is written anew, in the form that save_pretrained gives it (two blanks a
 * level, names sorted, a newline at the end). Members of "metadata" other than
 * total_size are copied as text: their values need not survive a parser. */
#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "view/synth.h"

#define MEMBER "\n    "

struct entries {
    struct qf_index_name *items; /* names are owned */
    size_t count;
};

static int compare_entries(const void *a, const void *b)
{
    return strcmp(((const struct qf_index_name *)a)->tensor,
                  ((const struct qf_index_name *)b)->tensor);
}

static int add_entry(struct entries *entries, const struct qf_tensor *tensor,
                     const struct qf_part *part, const char *shard)
{
    size_t size = qf_part_name(tensor->name, part, NULL, 0) + 1;
    char *name = malloc(size);
    if (name == NULL)
        return -ENOMEM;
    qf_part_name(tensor->name, part, name, size);
    entries->items[entries->count++] = (struct qf_index_name){name, shard};
    return 0;
}

static int collect(const struct qf_weight_set *set,
                   const struct qf_layout *const *layouts, struct entries *entries)
{
    size_t most = 1;
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t t = 0; t < layouts[i]->tensor_count; t++) {
            const struct qf_plan *plan = layouts[i]->tensors[t].plan;
            most += plan != NULL ? plan->part_count : 1;
        }
    entries->items = calloc(most, sizeof *entries->items);
    if (entries->items == NULL)
        return -ENOMEM;
    int rc = 0;
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t t = 0; t < layouts[i]->tensor_count; t++) {
            const struct qf_layout_tensor *tensor = &layouts[i]->tensors[t];
            uint32_t parts = tensor->plan != NULL ? tensor->plan->part_count : 1;
            for (uint32_t p = 0; rc == 0 && p < parts; p++) {
                const struct qf_part *part =
                    tensor->plan != NULL ? &tensor->plan->parts[p] : NULL;
                if (part == NULL || !part->hidden)
                    rc = add_entry(entries, tensor->src, part, set->shards[i].name);
            }
        }
    return rc;
}

/* Copies the members of the object that `open` begins, but for total_size, whose new
 * text takes its place. */
static int copy_metadata(struct qf_json_scan *scan, const char *total,
                         struct qf_buf *out)
{
    struct qf_json_token key;
    struct qf_json_token value;
    bool seen = false;
    bool first = true;
    int rc;
    while ((rc = qf_json_next(scan, &key)) == 0 && key.kind == QF_JSON_KEY) {
        size_t end;
        rc = qf_json_next(scan, &value);
        if (rc == 0)
            rc = qf_json_skip(scan, &value, &end);
        if (rc != 0)
            return rc;
        bool is_total = qf_json_token_is(scan, &key, "total_size");
        if (is_total && seen)
            continue;
        qf_buf_append_str(out, first ? MEMBER : "," MEMBER);
        qf_buf_append(out, scan->text + key.start, key.end - key.start);
        qf_buf_append_str(out, ": ");
        if (is_total)
            qf_buf_append_str(out, total);
        else
            qf_buf_append(out, scan->text + value.start, end - value.start);
        seen = seen || is_total;
        first = false;
    }
    if (rc == 0 && !seen) {
        qf_buf_append_str(out, first ? MEMBER : "," MEMBER);
        qf_buf_append_str(out, "\"total_size\": ");
        qf_buf_append_str(out, total);
    }
    return rc;
}

/* Finds "metadata" (of several the last); an index without it gets a new one. */
static int append_metadata(const char *text, size_t size, const char *total,
                           struct qf_buf *out)
{
    struct qf_json_scan scan;
    struct qf_json_scan found;
    struct qf_json_token token;
    bool have = false;
    if (text == NULL)
        text = "{}", size = 2;
    qf_json_scan_init(&scan, text, size, true);
    int rc = qf_json_next(&scan, &token);
    if (rc == 0 && token.kind != QF_JSON_OBJECT)
        return -EBADMSG;
    while (rc == 0 && (rc = qf_json_next(&scan, &token)) == 0 &&
           token.kind == QF_JSON_KEY) {
        size_t end;
        bool metadata = qf_json_token_is(&scan, &token, "metadata");
        rc = qf_json_next(&scan, &token);
        if (rc == 0 && metadata) {
            have = token.kind == QF_JSON_OBJECT;
            found = scan;
        }
        if (rc == 0)
            rc = qf_json_skip(&scan, &token, &end);
    }
    if (rc != 0)
        return rc;
    if (have)
        return copy_metadata(&found, total, out);
    qf_buf_append_str(out, MEMBER "\"total_size\": ");
    qf_buf_append_str(out, total);
    return 0;
}

int qf_synth_index_text(const char *text, size_t size, uint64_t bytes,
                        struct qf_index_name *names, size_t count, struct qf_buf *out)
{
    char total[24];
    snprintf(total, sizeof total, "%llu", (unsigned long long)bytes);
    if (count != 0)
        qsort(names, count, sizeof *names, compare_entries);
    qf_buf_append_str(out, "{\n  \"metadata\": {");
    int rc = append_metadata(text, size, total, out);
    if (rc != 0)
        return rc;
    qf_buf_append_str(out, "\n  },\n  \"weight_map\": {");
    for (size_t i = 0; i < count; i++) {
        qf_buf_append_str(out, i == 0 ? MEMBER : "," MEMBER);
        qf_buf_append_json(out, names[i].tensor, strlen(names[i].tensor));
        qf_buf_append_str(out, ": ");
        qf_buf_append_json(out, names[i].shard, strlen(names[i].shard));
    }
    qf_buf_append_str(out, count != 0 ? "\n  }\n}\n" : "}\n}\n");
    return out->failed ? -ENOMEM : 0;
}

int qf_synth_index(const struct qf_weight_set *set,
                   const struct qf_layout *const *layouts, struct qf_buf *out,
                   struct qf_err *err)
{
    struct entries entries = {0};
    uint64_t bytes = 0;
    int rc;
    assert(set->index_text != NULL);
    for (size_t i = 0; i < set->shard_count; i++)
        if (!qf_add_u64(bytes, layouts[i]->tensor_bytes, &bytes))
            return qf_err_set(err, -EOVERFLOW, "%s: the view's shards are too large",
                              set->index_name);
    rc = collect(set, layouts, &entries);
    if (rc == 0)
        rc = qf_synth_index_text(set->index_text, set->index_size, bytes, entries.items,
                                 entries.count, out);
    if (rc == -ENOMEM)
        qf_err_set(err, rc, "out of memory");
    else if (rc != 0)
        qf_err_set(err, rc, "%s: not a JSON object", set->index_name);
    for (size_t i = 0; i < entries.count; i++)
        free((char *)entries.items[i].tensor);
    free(entries.items);
    return rc;
}
