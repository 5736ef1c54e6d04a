/* SPDX-License-Identifier: Apache-2.0 */
/* weight_map is sorted once by tensor and once by shard: a map of a hundred thousand
 * tensors must not be searched for each of its names. */
#include "ckpt/index.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/printable.h"

struct pair {
    const char *tensor;
    const char *shard;
    size_t position; /* in the text */
};

static int compare_tensors(const void *a, const void *b)
{
    const struct pair *x = a, *y = b;
    int order = strcmp(x->tensor, y->tensor);
    return order != 0 ? order : x->position < y->position ? -1 : 1;
}

static int compare_strings(const void *a, const void *b)
{
    const char *const *x = a, *const *y = b;
    return strcmp(*x, *y);
}

static bool is_file_name(const char *name)
{
    return *name != '\0' && strchr(name, '/') == NULL && strcmp(name, ".") != 0 &&
           strcmp(name, "..") != 0;
}

/* The members of weight_map by tensor name, without what later ones replace. */
static int collect(const qf_json *map, struct pair **out, size_t *count,
                   struct qf_err *err)
{
    size_t n = 0;
    for (const qf_json *m = qf_json_first(map); m != NULL; m = qf_json_after(m))
        n++;
    struct pair *pairs = calloc(n + 1, sizeof *pairs);
    if (pairs == NULL)
        return -ENOMEM;
    *out = pairs;
    n = 0;
    for (const qf_json *m = qf_json_first(map); m != NULL; m = qf_json_after(m), n++)
        pairs[n] = (struct pair){qf_json_name(m), qf_json_string(m), n};
    qsort(pairs, n, sizeof *pairs, compare_tensors);
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (i + 1 < n && strcmp(pairs[i].tensor, pairs[i + 1].tensor) == 0)
            continue;
        const char *shard = pairs[i].shard;
        if (shard == NULL)
            return qf_err_set(err, -EBADMSG,
                              "weight_map: the shard of '%s' is not a string",
                              qf_printable(pairs[i].tensor).text);
        if (!is_file_name(shard))
            return qf_err_set(err, -EBADMSG,
                              "weight_map: '%s' is not the name of a file in this "
                              "directory",
                              qf_printable(shard).text);
        pairs[kept++] = pairs[i];
    }
    *count = kept;
    return 0;
}

/* Fills shards and entries; pairs are in the order of tensors. */
static int build(struct qf_index *index, const struct pair *pairs, size_t count)
{
    const char **names = calloc(count + 1, sizeof *names);
    index->shards = calloc(count + 1, sizeof *index->shards);
    index->entries = calloc(count + 1, sizeof *index->entries);
    int rc = -ENOMEM;
    if (names == NULL || index->shards == NULL || index->entries == NULL)
        goto out;
    for (size_t i = 0; i < count; i++)
        names[i] = pairs[i].shard;
    qsort(names, count, sizeof *names, compare_strings);
    for (size_t i = 0; i < count; i++) {
        if (i > 0 && strcmp(names[i - 1], names[i]) == 0)
            continue;
        char *copy = strdup(names[i]);
        if (copy == NULL)
            goto out;
        index->shards[index->shard_count++] = copy;
    }
    for (size_t i = 0; i < count; i++) {
        char **shard = bsearch(&pairs[i].shard, index->shards, index->shard_count,
                               sizeof *index->shards, compare_strings);
        index->entries[i] =
            (struct qf_index_entry){pairs[i].tensor, (size_t)(shard - index->shards)};
    }
    index->entry_count = count;
    rc = 0;
out:
    free(names);
    return rc;
}

int qf_index_parse(const char *text, size_t size, struct qf_index *out,
                   struct qf_err *err)
{
    struct pair *pairs = NULL;
    size_t count = 0;
    int rc = 0;
    *out = (struct qf_index){0};
    out->doc = qf_json_parse(text, size, err);
    if (out->doc == NULL)
        return -errno;
    const qf_json *map = qf_json_get(out->doc, "weight_map");
    if (!qf_json_is_object(map)) {
        rc = qf_err_set(err, -EBADMSG, "no object \"weight_map\"");
        goto out;
    }
    rc = collect(map, &pairs, &count, err);
    if (rc == 0)
        rc = build(out, pairs, count);
    if (rc == -ENOMEM)
        qf_err_set(err, rc, "out of memory");
out:
    free(pairs);
    if (rc != 0)
        qf_index_fini(out);
    return rc;
}

void qf_index_fini(struct qf_index *index)
{
    for (size_t i = 0; i < index->shard_count; i++)
        free(index->shards[i]);
    free(index->shards);
    free(index->entries);
    qf_json_free(index->doc);
    *index = (struct qf_index){0};
}
