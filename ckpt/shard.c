/* SPDX-License-Identifier: Apache-2.0 */
/* The header's text becomes tables (shard_text.c); here these are put in the order of
 * the data, checked against dtypes, each other and the file's size, and laid into one
 * allocation. Names are sorted once: that finds duplicates, which the safetensors
 * library takes (it keeps the last) but nothing sane writes, and serves qf_shard_find.
 */
#include "ckpt/shard.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/limits.h"
#include "ckpt/shard_text.h"

struct arena {
    struct qf_shard shard;
    const struct qf_tensor **by_name;
    struct qf_tensor *derived; /* of qf_shard_derive, as is the next */
    void *owned;
};

/* By data, an empty tensor before the one that begins where it lies; where the library
 * leaves the order open (several empty ones), that of the text. */
static int compare_data(const void *a, const void *b)
{
    const struct qf_raw_tensor *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end)
        return x->end < y->end ? -1 : 1;
    return x->name < y->name ? -1 : x->name > y->name;
}

static int check_size(const struct qf_raw_tensor *t, const uint64_t *shape,
                      const char *name, struct qf_err *err)
{
    uint64_t bits = 1;
    bool fits = true;
    for (uint32_t i = 0; i < t->rank; i++)
        fits = fits && qf_mul_u64(bits, shape[i], &bits);
    if (!fits || !qf_mul_u64(bits, qf_dtype_bits((enum qf_dtype)t->dtype), &bits))
        return qf_shard_refuse(err, name, "the size overflows");
    if (bits % 8 != 0)
        return qf_shard_refuse(err, name, "the size is not a whole number of bytes");
    if (bits / 8 != t->end - t->begin)
        return qf_shard_refuse(err, name,
                               "dtype and shape give another size than data_offsets");
    return 0;
}

/* tensors are in the order of their data: one must begin where the last one ends. */
static int check_layout(const struct qf_shard_text *tables, uint64_t data_size,
                        struct qf_err *err)
{
    const struct qf_raw_tensor *tensors = (const void *)tables->tensors.data;
    const uint64_t *dims = (const void *)tables->dims.data;
    uint64_t at = 0;
    for (size_t i = 0; i < tables->tensors.size / sizeof tensors[0]; i++) {
        const struct qf_raw_tensor *t = &tensors[i];
        const char *name = tables->strings.data + t->name;
        if (t->end < t->begin)
            return qf_shard_refuse(err, name, "data_offsets end before they begin");
        if (t->begin < at)
            return qf_shard_refuse(err, name,
                                   "offsets overlap those of another tensor");
        if (t->begin > at)
            return qf_shard_refuse(err, name, "there is a gap before its data");
        int rc = check_size(t, t->rank > 0 ? dims + t->shape : NULL, name, err);
        if (rc != 0)
            return rc;
        if (t->end > data_size)
            return qf_shard_refuse(
                err, name, "data ends past the end of the file, which is truncated");
        at = t->end;
    }
    if (at != data_size)
        return qf_err_set(err, -EBADMSG,
                          "header: the file has %llu bytes that belong to no tensor",
                          (unsigned long long)(data_size - at));
    return 0;
}

static int compare_names(const void *a, const void *b)
{
    const struct qf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* Orders `by_name` and refuses duplicates. */
static int sort_names(struct arena *arena, struct qf_err *err)
{
    size_t count = arena->shard.tensor_count;
    for (size_t i = 0; i < count; i++)
        arena->by_name[i] = &arena->shard.tensors[i];
    if (count > 1)
        qsort(arena->by_name, count, sizeof arena->by_name[0], compare_names);
    for (size_t i = 1; i < count; i++) {
        const char *name = arena->by_name[i]->name;
        if (strcmp(arena->by_name[i - 1]->name, name) == 0)
            return qf_shard_refuse(err, name, "the name is given twice");
    }
    return 0;
}

static int compare_pairs(const void *a, const void *b, void *strings)
{
    const struct qf_raw_pair *x = a, *y = b;
    int order = strcmp((const char *)strings + x->key, (const char *)strings + y->key);
    return order != 0 ? order : x->key < y->key ? -1 : 1;
}

static int compare_pair_positions(const void *a, const void *b)
{
    const struct qf_raw_pair *x = a, *y = b;
    return x->key < y->key ? -1 : 1;
}

/* Of equal keys the last one counts. Returns how many pairs are left. */
static size_t drop_duplicate_pairs(struct qf_shard_text *tables)
{
    struct qf_raw_pair *pairs = (struct qf_raw_pair *)(void *)tables->pairs.data;
    size_t count = tables->pairs.size / sizeof pairs[0];
    size_t kept = 0;
    if (count < 2)
        return count;
    char *strings = tables->strings.data;
    qsort_r(pairs, count, sizeof pairs[0], compare_pairs, strings);
    for (size_t i = 0; i < count; i++)
        if (i + 1 == count ||
            strcmp(strings + pairs[i].key, strings + pairs[i + 1].key) != 0)
            pairs[kept++] = pairs[i];
    qsort(pairs, kept, sizeof pairs[0], compare_pair_positions);
    return kept;
}

/* Copies the tables behind the arena's head and turns offsets into pointers. */
static struct arena *build(struct qf_shard_text *tables, uint64_t data_off)
{
    const struct qf_raw_tensor *raw = (const void *)tables->tensors.data;
    const struct qf_raw_pair *pairs = (const void *)tables->pairs.data;
    size_t count = tables->tensors.size / sizeof raw[0];
    size_t pair_count = drop_duplicate_pairs(tables);
    size_t tensors_size = count * sizeof(struct qf_tensor);
    size_t names_size = count * sizeof(const struct qf_tensor *);
    size_t metadata_size = pair_count * sizeof(struct qf_metadata_entry);
    struct arena *arena =
        malloc(sizeof *arena + tensors_size + names_size + metadata_size +
               tables->dims.size + tables->strings.size);
    if (arena == NULL)
        return NULL;
    struct qf_tensor *tensors = (struct qf_tensor *)(arena + 1);
    arena->by_name = (const struct qf_tensor **)(tensors + count);
    struct qf_metadata_entry *metadata =
        (struct qf_metadata_entry *)(arena->by_name + count);
    uint64_t *dims = (uint64_t *)(metadata + pair_count);
    char *strings = (char *)dims + tables->dims.size;
    if (tables->dims.size > 0)
        memcpy(dims, tables->dims.data, tables->dims.size);
    if (tables->strings.size > 0)
        memcpy(strings, tables->strings.data, tables->strings.size);
    for (size_t i = 0; i < count; i++)
        tensors[i] = (struct qf_tensor){.name = strings + raw[i].name,
                                        .dtype = (enum qf_dtype)raw[i].dtype,
                                        .rank = raw[i].rank,
                                        .shape = dims + raw[i].shape,
                                        .off = data_off + raw[i].begin,
                                        .size = raw[i].end - raw[i].begin};
    for (size_t i = 0; i < pair_count; i++)
        metadata[i] = (struct qf_metadata_entry){.key = strings + pairs[i].key,
                                                 .value = strings + pairs[i].value};
    arena->derived = NULL;
    arena->owned = NULL;
    arena->shard = (struct qf_shard){.tensor_count = count,
                                     .tensors = tensors,
                                     .metadata_count = pair_count,
                                     .metadata = metadata,
                                     .arena = arena};
    return arena;
}

int qf_shard_header_size(const void *first8, uint64_t file_size, uint64_t *header_size,
                         struct qf_err *err)
{
    if (file_size < 8)
        return qf_err_set(err, -EBADMSG,
                          "header: the file has %llu bytes, too few for a safetensors "
                          "file",
                          (unsigned long long)file_size);
    uint64_t n = qf_load_u64(first8);
    if (n > QF_SHARD_HEADER_SIZE_MAX)
        return qf_err_set(err, -EBADMSG,
                          "header: its size is given as %llu bytes, more than the %u "
                          "that safetensors allows",
                          (unsigned long long)n, QF_SHARD_HEADER_SIZE_MAX);
    if (n > file_size - 8)
        return qf_err_set(err, -EBADMSG,
                          "header: its size is given as %llu bytes, more than the file "
                          "has; the file is truncated",
                          (unsigned long long)n);
    *header_size = n;
    return 0;
}

int qf_shard_parse(const void *header, size_t size, uint64_t file_size,
                   struct qf_shard **out, struct qf_err *err)
{
    struct qf_shard_text tables = {0};
    struct arena *arena = NULL;
    uint64_t n = 0;
    int rc = qf_shard_header_size(header, file_size, &n, err);
    if (rc != 0)
        return rc;
    assert(size == 8 + n);
    rc = qf_shard_text_parse((const char *)header + 8, (size_t)n, &tables, err);
    if (rc != 0)
        goto out;
    size_t count = tables.tensors.size / sizeof(struct qf_raw_tensor);
    if (count > 1)
        qsort(tables.tensors.data, count, sizeof(struct qf_raw_tensor), compare_data);
    arena = build(&tables, size);
    rc = arena != NULL ? sort_names(arena, err)
                       : qf_err_set(err, -ENOMEM, "header: out of memory");
    if (rc == 0)
        rc = check_layout(&tables, file_size - size, err);
    if (rc != 0)
        goto out;
    arena->shard.file_size = file_size;
    arena->shard.data_off = size;
    arena->shard.header_hash = qf_hash128(header, size);
    *out = &arena->shard;
    arena = NULL;
out:
    free(arena);
    qf_shard_text_fini(&tables);
    return rc;
}

int qf_shard_derive(struct qf_shard *stored, struct qf_tensor *tensors, size_t count,
                    void *owned, struct qf_shard **out)
{
    struct arena *arena = malloc(sizeof *arena + count * sizeof(struct qf_tensor *));
    if (arena == NULL)
        return -ENOMEM;
    *arena = (struct arena){.shard = *stored, .derived = tensors, .owned = owned};
    arena->by_name = (const struct qf_tensor **)(arena + 1);
    arena->shard.tensor_count = count;
    arena->shard.tensors = tensors;
    arena->shard.stored = stored;
    arena->shard.arena = arena;
    for (size_t i = 0; i < count; i++)
        arena->by_name[i] = &tensors[i];
    if (count > 1)
        qsort(arena->by_name, count, sizeof arena->by_name[0], compare_names);
    *out = &arena->shard;
    return 0;
}

void qf_shard_free(struct qf_shard *shard)
{
    if (shard == NULL)
        return;
    struct arena *arena = shard->arena;
    qf_shard_free(shard->stored);
    free(arena->derived);
    free(arena->owned);
    free(arena);
}

const struct qf_tensor *qf_shard_find(const struct qf_shard *shard, const char *name)
{
    const struct arena *arena = shard->arena;
    size_t low = 0, high = shard->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, arena->by_name[middle]->name);
        if (order == 0)
            return arena->by_name[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}
