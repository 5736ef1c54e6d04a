/* SPDX-License-Identifier: Apache-2.0 */
#include "fs/file.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "fs/gguf.h"
#include "fs/tree_private.h"

enum file_kind { FILE_TEXT, FILE_CONTROL, FILE_SOURCE, FILE_SHARD };

/* What a view shard lives on; released by the engine when its last work has ended. */
struct shard_owner {
    qf_snapshot *snapshot;
    size_t count;
    qf_srcfile *files[];
};

struct qf_file {
    struct qf_handle handle; /* first */
    qf_tree *tree;
    atomic_uint refs; /* the handle and each read that is not done: a reply reaches the
                         reader, who may close, before the call that sent it returns */
    enum file_kind kind;
    uint64_t generation;
    qf_engine *engine;
    /* TEXT (borrowed from the snapshot), CONTROL (owned) */
    const char *text;
    size_t text_size;
    char *owned_text;
    qf_snapshot *snapshot; /* TEXT: a reference */
    qf_srcfile *src;       /* SOURCE: owned */
    qf_shard_file *shard;  /* SHARD: owned */
};

static void release_shard(void *arg)
{
    struct shard_owner *owner = arg;
    for (size_t i = 0; i < owner->count; i++)
        qf_srcfile_close(owner->files[i]);
    qf_snapshot_release(owner->snapshot);
    free(owner);
}

static int open_control(qf_tree *tree, const char *name, qf_file *file)
{
    struct qf_buf text = {0};
    if (qf_control_find(name) == QF_CONTROL_METRICS)
        qf_metrics_text(tree->metrics, &tree->options, tree->catalog, &text);
    else
        qf_tree_status(tree, &text);
    file->kind = FILE_CONTROL;
    file->owned_text = qf_buf_take(&text, &file->text_size);
    file->text = file->owned_text;
    return file->text != NULL ? 0 : -ENOMEM;
}

/* Opens the source and makes sure that it is the one `known` describes. */
static int open_source(qf_tree *tree, const char *path, const struct qf_ident *known,
                       qf_srcfile **out)
{
    qf_srcfile *src;
    int rc = qf_srcfile_open(tree->options.root, path, &src, NULL);
    if (rc != 0)
        return rc;
    if (!qf_ident_eq(qf_srcfile_ident(src), known)) {
        qf_srcfile_close(src);
        return -ESTALE;
    }
    *out = src;
    return 0;
}

/* Of the directory in which the shard lies, as the user has named it. */
static uint64_t origin_of(const qf_tree *tree, const struct qf_place *place)
{
    if (tree->options.store == NULL)
        return 0;
    size_t size = (size_t)(qf_path_name(place->path) - place->path);
    char *model = strndup(place->path, size > 0 ? size - 1 : 0);
    uint64_t origin = model == NULL
                          ? 0
                          : qf_store_origin(tree->options.store, place->view,
                                            qf_root_path(tree->options.root), model);
    free(model);
    return origin;
}

/* Opens source `index` of the file at the place. */
static int open_one(qf_tree *tree, const struct qf_place *place,
                    const struct qf_target *target, size_t index, qf_srcfile **src,
                    struct qf_hash128 *id)
{
    if (target->file->kind == QF_VARIANT_SHARD) {
        *id = qf_target_source_id(target);
        return open_source(tree, place->path, &target->file->source->ident, src);
    }
    char *path = qf_gguf_shard_path(place, target, index);
    int rc = path != NULL ? qf_gguf_shard_id(tree, place, target, index, id) : -ENOMEM;
    if (rc == 0)
        rc = open_source(tree, path, &qf_gguf_set(target)->shards[index].ident, src);
    free(path);
    return rc;
}

static int open_sources(qf_tree *tree, const struct qf_place *place,
                        const struct qf_target *target, struct shard_owner *owner,
                        size_t count, qf_file *file)
{
    struct qf_shard_source *sources = calloc(count, sizeof *sources);
    int rc = sources != NULL ? 0 : -ENOMEM;
    for (size_t i = 0; i < count && rc == 0; i++) {
        rc = open_one(tree, place, target, i, &owner->files[i], &sources[i].id);
        sources[i].src = owner->files[i];
        owner->count = i + 1;
    }
    if (rc == 0)
        rc = qf_shard_file_open(tree->options.engine, target->file->layout, sources,
                                count, origin_of(tree, place), release_shard, owner,
                                &file->shard);
    free(sources);
    return rc;
}

static int open_shard(qf_tree *tree, const struct qf_place *place,
                      struct qf_target *target, qf_file *file)
{
    bool gguf = target->file->kind == QF_VARIANT_GGUF;
    size_t count = gguf ? qf_gguf_set(target)->shard_count : 1;
    struct shard_owner *owner = calloc(1, sizeof *owner + count * sizeof *owner->files);
    if (owner == NULL)
        return -ENOMEM;
    int rc = open_sources(tree, place, target, owner, count, file);
    if (rc != 0) {
        release_shard(owner);
        return rc;
    }
    owner->snapshot = target->snapshot;
    target->snapshot = NULL;
    file->kind = FILE_SHARD;
    return 0;
}

static int open_target(qf_tree *tree, const struct qf_place *place,
                       struct qf_target *target, qf_file *file)
{
    if (S_ISDIR(target->entry.st.st_mode))
        return -EISDIR;
    if (qf_place_is_control(place))
        return open_control(tree, place->path, file);
    if (target->file == NULL) {
        file->kind = FILE_SOURCE;
        return open_source(tree, place->path, &target->source, &file->src);
    }
    if (target->file->layout != NULL)
        return open_shard(tree, place, target, file);
    file->kind = FILE_TEXT;
    file->text = target->file->text;
    file->text_size = target->file->size;
    file->snapshot = target->snapshot;
    target->snapshot = NULL;
    return 0;
}

static void close_handle(struct qf_handle *handle)
{
    qf_file_close((qf_file *)handle);
}

static qf_file *new_file(qf_tree *tree)
{
    qf_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return NULL;
    atomic_init(&file->refs, 1);
    file->tree = tree;
    file->engine = tree->options.engine;
    return file;
}

static void enter_file(qf_file *file)
{
    qf_tree_add_handle(file->tree, &file->handle, close_handle);
    qf_metrics_opened(file->tree->metrics, 1);
}

/* generation: NULL, or the only one that will do. */
static int open_file(qf_tree *tree, uint64_t id, const uint64_t *generation,
                     qf_file **out)
{
    struct qf_place place;
    uint64_t told;
    int rc = qf_tree_place(tree, id, &place, &told);
    if (rc != 0)
        return rc;
    struct qf_target target = {0};
    qf_file *file = new_file(tree);
    if (file == NULL) {
        rc = -ENOMEM;
        goto out;
    }
    rc = qf_tree_resolve(tree, &place, true, &target);
    if (rc != 0)
        goto out;
    /* The journal counts a node's references low: an id may be in the kernel, with
     * pages, of which nothing is known here. Looking the name up settles it. */
    if (generation == NULL && told == 0 && tree->resumed && id != QF_NODE_ROOT)
        rc = -ESTALE;
    else if (generation == NULL)
        rc = qf_tree_check_generation(tree, id, told, target.entry.generation);
    else if (target.entry.generation != *generation)
        rc = -ESTALE;
    if (rc == 0)
        rc = open_target(tree, &place, &target, file);
    file->generation = target.entry.generation;
out:
    qf_target_fini(&target);
    free(place.path);
    if (rc != 0) {
        free(file);
        return rc;
    }
    enter_file(file);
    *out = file;
    return 0;
}

int qf_file_open(qf_tree *tree, uint64_t id, qf_file **out)
{
    return open_file(tree, id, NULL, out);
}

int qf_file_reopen(qf_tree *tree, uint64_t id, uint64_t generation, qf_file **out)
{
    return open_file(tree, id, &generation, out);
}

void qf_file_hold(qf_file *file)
{
    atomic_fetch_add(&file->refs, 1);
}

uint64_t qf_file_generation(const qf_file *file)
{
    return file->generation;
}

void qf_file_close(qf_file *file)
{
    if (file == NULL || atomic_fetch_sub(&file->refs, 1) != 1)
        return;
    qf_tree_remove_handle(file->tree, &file->handle);
    qf_metrics_opened(file->tree->metrics, -1);
    if (file->shard != NULL)
        qf_shard_file_close(file->shard);
    qf_srcfile_close(file->src);
    qf_snapshot_release(file->snapshot);
    free(file->owned_text);
    free(file);
}

bool qf_file_is_dynamic(const qf_file *file)
{
    return file->kind == FILE_CONTROL;
}

const char *qf_file_dynamic_text(const qf_file *file, size_t *size)
{
    assert(file->kind == FILE_CONTROL);
    *size = file->text_size;
    return file->text;
}

int qf_file_open_text(qf_tree *tree, const char *text, size_t size, qf_file **out)
{
    qf_file *file = new_file(tree);
    char *copy = malloc(size != 0 ? size : 1);
    if (file == NULL || copy == NULL) {
        free(file);
        free(copy);
        return -ENOMEM;
    }
    memcpy(copy, text, size);
    file->kind = FILE_CONTROL;
    file->text = file->owned_text = copy;
    file->text_size = size;
    file->generation = 1;
    enter_file(file);
    *out = file;
    return 0;
}

bool qf_file_sealed(const qf_file *file, int *fd)
{
    if (file->kind != FILE_SHARD)
        return false;
    *fd = qf_shard_file_sealed_fd(file->shard);
    return true;
}

int qf_file_digest(const qf_file *file, uint64_t *out)
{
    if (file->kind == FILE_SHARD)
        return qf_shard_file_digest(file->shard, out);
    if (file->kind != FILE_TEXT)
        return -ENODATA;
    *out = qf_hash64(file->text, file->text_size);
    return 0;
}

/* ---- reading ---- */

static void one_piece(struct qf_file_read *out, void *data, size_t size)
{
    out->piece = (struct iovec){data, size};
    out->pieces = &out->piece;
    out->piece_count = 1;
    out->size = size;
}

static int read_text(const qf_file *file, uint64_t off, size_t size,
                     struct qf_file_read *out)
{
    size_t start = off < file->text_size ? (size_t)off : file->text_size;
    size_t left = file->text_size - start;
    one_piece(out, (void *)(file->text + start), size < left ? size : left);
    qf_metrics_served_text(file->tree->metrics, out->size);
    return 0;
}

static int read_source(const qf_file *file, uint64_t off, size_t size,
                       struct qf_file_read *out)
{
    uint64_t file_size = qf_srcfile_ident(file->src)->size;
    uint64_t left = off < file_size ? file_size - off : 0;
    if (size > left)
        size = (size_t)left;
    if (size > QF_FUSE_READ_SIZE_MAX)
        size = QF_FUSE_READ_SIZE_MAX;
    out->engine = file->engine;
    out->buffer_size = size;
    out->buffer = qf_engine_buffer_get(file->engine, size);
    if (out->buffer == NULL)
        return -ENOMEM;
    int rc = qf_srcfile_read(file->src, out->buffer, size, off);
    if (rc == 0)
        rc = qf_srcfile_check(file->src);
    if (rc != 0) {
        qf_file_read_done(out);
        return rc;
    }
    one_piece(out, out->buffer, size);
    qf_metrics_served_source(file->tree->metrics, size);
    return 0;
}

int qf_file_read(qf_file *file, uint64_t off, size_t size, struct qf_file_read *out)
{
    *out = (struct qf_file_read){0};
    switch (file->kind) {
    case FILE_TEXT:
    case FILE_CONTROL:
        qf_file_hold(file);
        out->file = file;
        return read_text(file, off, size, out);
    case FILE_SOURCE:
        return read_source(file, off, size, out);
    case FILE_SHARD:
        break;
    }
    int rc = qf_engine_read(file->shard, off, size, &out->engine_read);
    if (rc != 0)
        return rc;
    out->pieces = qf_read_pieces(out->engine_read, &out->piece_count);
    out->size = qf_read_size(out->engine_read);
    return 0;
}

void qf_file_read_done(struct qf_file_read *read)
{
    if (read->engine_read != NULL)
        qf_read_release(read->engine_read);
    if (read->buffer != NULL)
        qf_engine_buffer_put(read->engine, read->buffer, read->buffer_size);
    qf_file_close(read->file);
    read->engine_read = NULL;
    read->buffer = NULL;
    read->file = NULL;
}
