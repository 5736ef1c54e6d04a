/* SPDX-License-Identifier: Apache-2.0 */
/* Only weight sets that the view changes are split anew: what loads them takes shards.
 * Other safetensors files (adapters, a sentence-transformers head) may be read by code
 * that knows one name only; so is a set whose name stands in config.json. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/path.h"
#include "ckpt/index.h"
#include "cli/export.h"
#include "view/reshard.h"

#define SHARD_END  ".safetensors"
#define INDEX_WORD ".safetensors.index"
#define INDEX_END  ".json"

/* A weight set: the shards of an index, or a single file. */
struct set {
    struct qf_export *export;
    char *stem;   /* path of the new shards without what tells them apart; owned */
    size_t index; /* source; SIZE_MAX: a single file */
    char *text;   /* of the index; owned */
    size_t text_size;
    size_t count;
    size_t *members; /* sources; owned */
    struct qf_shard **shards;
    struct qf_err *err;
};

static void set_fini(struct set *set)
{
    for (size_t i = 0; set->shards != NULL && i < set->count; i++)
        qf_shard_free(set->shards[i]);
    free(set->shards);
    free(set->members);
    free(set->text);
    free(set->stem);
}

static int set_alloc(struct set *set, size_t count)
{
    set->members = calloc(count + 1, sizeof *set->members);
    set->shards = calloc(count + 1, sizeof(struct qf_shard *));
    return set->members != NULL && set->shards != NULL ? 0 : -ENOMEM;
}

/* Reads the first `size` bytes of a source. */
static int read_start(const struct qf_export *export, size_t index, size_t size,
                      char **out)
{
    struct qf_source_file file;
    *out = malloc(size + 1);
    int rc = *out != NULL ? qf_export_open_source(export, index, &file) : -ENOMEM;
    if (rc != 0)
        return rc;
    rc = qf_source_read_all(export->source, &file, *out, size, 0);
    (*out)[size] = '\0';
    export->source->ops->close(export->source, &file);
    return rc;
}

static int read_header(const struct set *set, size_t index, struct qf_shard **out)
{
    const struct qf_export_source *source = &set->export->sources[index];
    struct qf_err why = {""};
    char *data = NULL;
    uint64_t size = 0;
    int rc = source->size < 8 ? -EBADMSG : read_start(set->export, index, 8, &data);
    if (rc == 0)
        rc = qf_shard_header_size(data, source->size, &size, &why);
    free(data);
    data = NULL;
    if (rc == 0)
        rc = read_start(set->export, index, (size_t)size + 8, &data);
    if (rc == 0)
        rc = qf_shard_parse(data, (size_t)size + 8, source->size, out, &why);
    free(data);
    if (rc != 0)
        qf_err_set(set->err, rc, "%s: %s", source->path,
                   why.text[0] != '\0' ? why.text : strerror(-rc));
    return rc;
}

/* ---- sets ---- */

static int compare_source(const void *key, const void *item)
{
    return strcmp(key, ((const struct qf_export_source *)item)->path);
}

static int find_member(struct set *set, const char *dir, const char *name, size_t *out)
{
    const struct qf_export *export = set->export;
    char *path = qf_path_join(dir, name);
    if (path == NULL)
        return -ENOMEM;
    const struct qf_export_source *found =
        bsearch(path, export->sources, export->source_count, sizeof *export->sources,
                compare_source);
    free(path);
    if (found == NULL)
        return -ENOENT;
    *out = (size_t)(found - export->sources);
    return 0;
}

/* "a/model.safetensors.index.fp16.json": "a/model.fp16", as the libraries name them. */
static char *stem_of_index(const char *path)
{
    size_t size = strlen(path) + 1;
    char *stem = malloc(size);
    const char *word = strstr(qf_path_name(path), INDEX_WORD);
    if (stem == NULL)
        return NULL;
    const char *variant = word + strlen(INDEX_WORD);
    size_t n = (size_t)(word - path);
    size_t more = strlen(variant) - strlen(INDEX_END);
    memcpy(stem, path, n);
    memcpy(stem + n, variant, more);
    stem[n + more] = '\0';
    return stem;
}

static bool is_index(const char *path)
{
    const char *name = qf_path_name(path);
    const char *word = strstr(name, INDEX_WORD);
    return word != NULL && qf_path_ends_with(name, INDEX_END) &&
           strlen(word) >= strlen(INDEX_WORD INDEX_END);
}

/* -ENODATA: it is not the view's. */
static int open_index(struct set *set, size_t index)
{
    const struct qf_export_source *source = &set->export->sources[index];
    struct qf_index parsed = {0};
    if (source->size > QF_CONFIG_SIZE_MAX)
        return -ENODATA;
    int rc = read_start(set->export, index, (size_t)source->size, &set->text);
    set->text_size = (size_t)source->size;
    if (rc != 0)
        return rc;
    if (qf_index_parse(set->text, set->text_size, &parsed, NULL) != 0)
        return -ENODATA;
    char *dir = qf_path_parent(source->path);
    set->stem = stem_of_index(source->path);
    rc =
        dir != NULL && set->stem != NULL ? set_alloc(set, parsed.shard_count) : -ENOMEM;
    for (size_t i = 0; i < parsed.shard_count && rc == 0; i++) {
        rc = find_member(set, dir, parsed.shards[i], &set->members[set->count]);
        if (rc == -ENOENT ||
            (rc == 0 && (!set->export->sources[set->members[set->count]].shard)))
            rc = -ENODATA;
        if (rc == 0)
            set->count++;
    }
    free(dir);
    qf_index_fini(&parsed);
    return rc == 0 && set->count == 0 ? -ENODATA : rc;
}

static int open_single(struct set *set, size_t index)
{
    const char *path = set->export->sources[index].path;
    set->stem = strndup(path, strlen(path) - strlen(SHARD_END));
    int rc = set->stem != NULL ? set_alloc(set, 1) : -ENOMEM;
    if (rc == 0)
        set->members[set->count++] = index;
    return rc;
}

/* ---- new files ---- */

/* As new as the newest of those that they are made of. */
static const struct qf_export_source *newest(const struct set *set)
{
    const struct qf_export_source *found = &set->export->sources[set->members[0]];
    for (size_t i = 1; i < set->count; i++) {
        const struct qf_export_source *other = &set->export->sources[set->members[i]];
        const struct timespec *a = &found->st.st_mtim, *b = &other->st.st_mtim;
        if (b->tv_sec > a->tv_sec ||
            (b->tv_sec == a->tv_sec && b->tv_nsec > a->tv_nsec))
            found = other;
    }
    return found;
}

static int add_shard(struct set *set, const struct qf_reshard *plan, size_t index)
{
    struct qf_reshard_file *from = &plan->files[index];
    struct qf_export_file *file =
        qf_export_add_file(set->export,
                           qf_reshard_name(set->stem, index, plan->file_count),
                           newest(set));
    if (file == NULL)
        return -ENOMEM;
    file->text = from->header;
    from->header = NULL;
    struct qf_export_piece header = {.source = SIZE_MAX,
                                     .text = file->text,
                                     .size = from->header_size};
    int rc = qf_export_add_piece(file, &header);
    for (size_t i = 0; i < from->tensor_count && rc == 0; i++) {
        const struct qf_reshard_tensor *t = &from->tensors[i];
        struct qf_export_piece piece = {.source = set->members[t->shard],
                                        .source_off = t->tensor->off,
                                        .size = t->tensor->size};
        rc = qf_export_add_piece(file, &piece);
    }
    return rc;
}

/* The other way round: "a/model.fp16" is variant fp16 of "a/model". */
static char *index_of_stem(const char *stem)
{
    const char *variant = strrchr(qf_path_name(stem), '.');
    size_t base = variant != NULL ? (size_t)(variant - stem) : strlen(stem);
    size_t size = strlen(stem) + sizeof INDEX_WORD INDEX_END;
    char *path = malloc(size);
    if (path != NULL)
        snprintf(path, size, "%.*s%s%s%s", (int)base, stem, INDEX_WORD,
                 variant != NULL ? variant : "", INDEX_END);
    return path;
}

static int add_index(struct set *set, const struct qf_reshard *plan)
{
    struct qf_buf text = {0};
    size_t size;
    int rc = qf_reshard_index(plan, qf_path_name(set->stem), set->text, set->text_size,
                              &text);
    char *data = rc == 0 ? qf_buf_take(&text, &size) : NULL;
    qf_buf_fini(&text);
    if (data == NULL)
        return rc != 0 ? rc : -ENOMEM;
    char *path = set->index != SIZE_MAX ? strdup(set->export->sources[set->index].path)
                                        : index_of_stem(set->stem);
    struct qf_export_file *file = qf_export_add_file(set->export, path, newest(set));
    if (file == NULL) {
        free(data);
        return -ENOMEM;
    }
    file->text = data;
    struct qf_export_piece all = {.source = SIZE_MAX, .text = data, .size = size};
    return qf_export_add_piece(file, &all);
}

/* Whether config.json beside it says the set's name (transformers_weights), which would
 * not be there any more. */
static int is_named(struct set *set, const char *path, bool *named)
{
    const char *name = qf_path_name(path);
    char *dir = strndup(path, name > path ? (size_t)(name - path) - 1 : 0);
    char *text = NULL;
    size_t config = 0;
    *named = false;
    int rc = dir != NULL ? find_member(set, dir, "config.json", &config) : -ENOMEM;
    uint64_t size = rc == 0 ? set->export->sources[config].size : 0;
    if (rc == 0 && size <= QF_CONFIG_SIZE_MAX)
        rc = read_start(set->export, config, (size_t)size, &text);
    qf_json *json = text != NULL && rc == 0 ? qf_json_parse(text, size, NULL) : NULL;
    const char *says = qf_json_string(qf_json_get(json, "transformers_weights"));
    *named = says != NULL && strcmp(says, name) == 0;
    qf_json_free(json);
    free(text);
    free(dir);
    return rc == -ENOENT ? 0 : rc;
}

static int split_set(struct set *set)
{
    struct qf_reshard *plan = NULL;
    struct qf_err why = {""};
    int rc = 0;
    for (size_t i = 0; i < set->count && rc == 0; i++)
        rc = read_header(set, set->members[i], &set->shards[i]);
    if (rc == 0) {
        rc = qf_reshard_plan((const struct qf_shard *const *)set->shards, set->count,
                             set->export->shard_size, &plan, &why);
        if (rc != 0)
            qf_err_set(set->err, rc, "%s: %s", set->stem, why.text);
    }
    for (size_t i = 0; plan != NULL && i < plan->file_count && rc == 0; i++)
        rc = add_shard(set, plan, i);
    if (rc == 0 && plan->file_count > 1)
        rc = add_index(set, plan);
    for (size_t i = 0; i < set->count; i++)
        set->export->sources[set->members[i]].taken = true;
    if (set->index != SIZE_MAX)
        set->export->sources[set->index].taken = true;
    qf_reshard_free(plan);
    return rc;
}

static int try_set(struct qf_export *export, size_t index, bool single,
                   struct qf_err *err)
{
    struct set set = {.export = export, .index = single ? SIZE_MAX : index, .err = err};
    bool named = false;
    int rc = single ? open_single(&set, index) : open_index(&set, index);
    if (rc == 0)
        rc = is_named(&set, export->sources[index].path, &named);
    for (size_t i = 0; named && i < set.count; i++)
        export->sources[set.members[i]].whole = true;
    if (rc == 0 && !named)
        rc = split_set(&set);
    else if (rc == -ENODATA)
        rc = 0;
    else
        qf_err_set(err, rc, "%s: %s", export->sources[index].path, strerror(-rc));
    set_fini(&set);
    return rc;
}

int qf_export_reshard(struct qf_export *export, struct qf_err *err)
{
    int rc = 0;
    for (size_t i = 0; i < export->source_count && rc == 0; i++)
        if (is_index(export->sources[i].path))
            rc = try_set(export, i, false, err);
    for (size_t i = 0; i < export->source_count && rc == 0; i++) {
        const struct qf_export_source *source = &export->sources[i];
        if (source->shard && !source->taken && !source->whole &&
            qf_path_ends_with(source->path, SHARD_END))
            rc = try_set(export, i, true, err);
    }
    return rc;
}
