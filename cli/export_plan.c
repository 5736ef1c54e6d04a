/* SPDX-License-Identifier: Apache-2.0 */
/* The identity of a new file is a hash of the keys of all files that it is made of and
 * of how; so an interrupted export finds out by itself which of its drafts are still
 * drafts of what is wanted now. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/path.h"
#include "cli/export.h"

#define DEPTH_MAX 64

void qf_export_init(struct qf_export *export)
{
    mode_t mask = umask(0); /* there is no other way to read it */
    umask(mask);
    *export = (struct qf_export){.dir_fd = -1, .journal_fd = -1, .umask = mask};
    pthread_mutex_init(&export->lock, NULL);
}

static int no_memory(struct qf_err *err)
{
    return qf_err_set(err, -ENOMEM, "out of memory");
}

static int append(void **items, size_t *count, size_t size)
{
    void *more = realloc(*items, (*count + 1) * size);
    if (more == NULL)
        return -ENOMEM;
    *items = more;
    memset((char *)more + *count * size, 0, size);
    (*count)++;
    return 0;
}

/* ---- what there is ---- */

/* Files that pass through have no key: which version of them it is, is told by their
 * attributes. */
static int key_of(const struct qf_views_source *source,
                  const struct qf_source_file *file, struct qf_hash128 *out)
{
    struct qf_buf text = {0};
    int rc = source->ops->key(source, file, &text);
    if (rc == -ENODATA || rc == -EOPNOTSUPP) {
        const struct stat *st = &file->st;
        qf_buf_appendf(&text, "%llu %lld.%09ld %lld.%09ld",
                       (unsigned long long)file->size, (long long)st->st_mtim.tv_sec,
                       st->st_mtim.tv_nsec, (long long)st->st_ctim.tv_sec,
                       st->st_ctim.tv_nsec);
        rc = 0;
    }
    if (rc == 0)
        rc = text.failed ? -ENOMEM : 0;
    if (rc == 0)
        *out = qf_hash128(text.data, text.size);
    qf_buf_fini(&text);
    return rc;
}

int qf_export_open_source(const struct qf_export *export, size_t index,
                          struct qf_source_file *out)
{
    const struct qf_export_source *file = &export->sources[index];
    struct qf_hash128 key;
    char *path = qf_path_join(export->top, file->path);
    if (path == NULL)
        return -ENOMEM;
    int rc = export->source->ops->open(export->source, path, out);
    free(path);
    if (rc != 0)
        return rc;
    rc = key_of(export->source, out, &key);
    if (rc == 0 && (!qf_hash128_eq(key, file->key) || out->size != file->size))
        rc = -ESTALE;
    if (rc != 0)
        export->source->ops->close(export->source, out);
    return rc;
}

struct walk {
    struct qf_export *export;
    const char *dir; /* relative */
    unsigned depth;
    struct qf_err *err;
};

static int walk_dir(struct walk *walk);

static int add_source(struct qf_export *export, char *path)
{
    struct qf_source_file file;
    char *whole = qf_path_join(export->top, path);
    int rc = whole != NULL ? append((void **)&export->sources, &export->source_count,
                                    sizeof *export->sources)
                           : -ENOMEM;
    if (rc != 0) {
        free(path);
        free(whole);
        return rc;
    }
    struct qf_export_source *out = &export->sources[export->source_count - 1];
    out->path = path;
    rc = export->source->ops->open(export->source, whole, &file);
    free(whole);
    if (rc != 0)
        return rc;
    out->size = file.size;
    out->st = file.st;
    out->shard = file.shard;
    rc = key_of(export->source, &file, &out->key);
    export->source->ops->close(export->source, &file);
    return rc;
}

static int walk_entry(void *arg, const char *name, bool is_dir)
{
    struct walk *walk = arg;
    struct qf_export *export = walk->export;
    if (atomic_load(export->stop) != 0)
        return -EINTR;
    if (strncmp(name, QF_EXPORT_JOURNAL, strlen(QF_EXPORT_JOURNAL)) == 0)
        return qf_err_set(walk->err, -EINVAL,
                          "%s holds an interrupted export itself (%s); finish it or "
                          "remove it first",
                          walk->dir[0] != '\0' ? walk->dir : export->top, name);
    char *path = qf_path_join(walk->dir, name);
    if (path == NULL)
        return -ENOMEM;
    if (!is_dir) {
        int rc = add_source(export, path);
        return rc == 0 ? 0
                       : qf_err_set(walk->err, rc, "%s/%s/%s: %s", walk->export->origin,
                                    walk->dir, name,
                                    rc == -EBADMSG ? "malformed" : strerror(-rc));
    }
    int rc = append((void **)&export->dirs, &export->dir_count, sizeof *export->dirs);
    if (rc != 0) {
        free(path);
        return rc;
    }
    export->dirs[export->dir_count - 1] = path;
    struct walk below = {export, path, walk->depth + 1, walk->err};
    return walk_dir(&below);
}

static int walk_dir(struct walk *walk)
{
    const struct qf_export *export = walk->export;
    char *whole = qf_path_join(export->top, walk->dir);
    if (whole == NULL)
        return -ENOMEM;
    int rc = walk->depth < DEPTH_MAX
                 ? export->source->ops->list(export->source, whole, walk_entry, walk)
                 : -ELOOP;
    free(whole);
    if (rc != 0 && walk->err->text[0] == '\0')
        qf_err_set(walk->err, rc, "%s: %s",
                   walk->dir[0] != '\0' ? walk->dir : export->origin, strerror(-rc));
    return rc;
}

static int by_path(const void *a, const void *b)
{
    return strcmp(((const struct qf_export_source *)a)->path,
                  ((const struct qf_export_source *)b)->path);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* ---- what is to be written ---- */

struct qf_export_file *qf_export_add_file(struct qf_export *export, char *path,
                                          const struct qf_export_source *like)
{
    if (path == NULL || append((void **)&export->files, &export->file_count,
                               sizeof *export->files) != 0) {
        free(path);
        return NULL;
    }
    struct qf_export_file *file = &export->files[export->file_count - 1];
    *file = (struct qf_export_file){.path = path,
                                    .mode = ((like->st.st_mode & 0555) | 0644) &
                                            ~export->umask,
                                    .mtime = like->st.st_mtim,
                                    .fd = -1};
    return file;
}

/* Neighbours of one source become one piece. */
int qf_export_add_piece(struct qf_export_file *file,
                        const struct qf_export_piece *piece)
{
    struct qf_export_piece *last =
        file->piece_count != 0 ? &file->pieces[file->piece_count - 1] : NULL;
    if (piece->size == 0)
        return 0;
    if (last != NULL && last->text == NULL && piece->text == NULL &&
        last->source == piece->source &&
        last->source_off + last->size == piece->source_off) {
        last->size += piece->size;
    } else {
        if (append((void **)&file->pieces, &file->piece_count, sizeof *file->pieces) !=
            0)
            return -ENOMEM;
        file->pieces[file->piece_count - 1] = *piece;
        file->pieces[file->piece_count - 1].off = file->size;
    }
    file->size += piece->size;
    return 0;
}

static int copy_sources(struct qf_export *export)
{
    int rc = 0;
    for (size_t i = 0; i < export->source_count && rc == 0; i++) {
        const struct qf_export_source *source = &export->sources[i];
        if (source->taken)
            continue;
        struct qf_export_file *file =
            qf_export_add_file(export, strdup(source->path), source);
        struct qf_export_piece all = {.source = i, .size = source->size};
        rc = file != NULL ? qf_export_add_piece(file, &all) : -ENOMEM;
    }
    return rc;
}

static int identify(const struct qf_export *export, struct qf_export_file *file)
{
    struct qf_buf text = {0};
    qf_buf_appendf(&text, "%llu ", (unsigned long long)file->size);
    for (size_t i = 0; i < file->piece_count; i++) {
        const struct qf_export_piece *piece = &file->pieces[i];
        struct qf_hash128 key = piece->text != NULL
                                    ? qf_hash128(piece->text, (size_t)piece->size)
                                    : export->sources[piece->source].key;
        uint64_t numbers[3] = {piece->off, piece->size, piece->source_off};
        qf_buf_append(&text, &key, sizeof key);
        qf_buf_append(&text, numbers, sizeof numbers);
    }
    qf_buf_append_str(&text, file->path); /* two files may have the same bytes */
    int rc = text.failed ? -ENOMEM : 0;
    if (rc == 0)
        file->identity = qf_hash128(text.data, text.size);
    qf_buf_fini(&text);
    file->segment_count = (size_t)(file->size / QF_EXPORT_SEGMENT_SIZE +
                                   (file->size % QF_EXPORT_SEGMENT_SIZE != 0));
    if (file->segment_count == 0)
        file->segment_count = 1;
    file->segments_left = file->segment_count;
    file->segments = calloc(file->segment_count, sizeof *file->segments);
    return rc == 0 && file->segments == NULL ? -ENOMEM : rc;
}

static int by_file(const void *a, const void *b)
{
    return strcmp(((const struct qf_export_file *)a)->path,
                  ((const struct qf_export_file *)b)->path);
}

int qf_export_plan(struct qf_export *export, struct qf_err *err)
{
    struct walk walk = {export, "", 0, err};
    int rc = walk_dir(&walk);
    if (rc != 0)
        return rc;
    if (export->source_count != 0)
        qsort(export->sources, export->source_count, sizeof *export->sources, by_path);
    if (export->dir_count != 0)
        qsort(export->dirs, export->dir_count, sizeof *export->dirs, by_text);
    if (export->shard_size != 0)
        rc = qf_export_reshard(export, err);
    if (rc == 0)
        rc = copy_sources(export);
    for (size_t i = 0; i < export->file_count && rc == 0; i++)
        rc = identify(export, &export->files[i]);
    if (rc != 0)
        return err->text[0] != '\0' ? rc : no_memory(err);
    if (export->file_count != 0)
        qsort(export->files, export->file_count, sizeof *export->files, by_file);
    for (size_t i = 1; i < export->file_count; i++)
        if (strcmp(export->files[i - 1].path, export->files[i].path) == 0)
            return qf_err_set(err, -EEXIST,
                              "%s: new shards would take the name of another file; "
                              "export it without --max-shard-size",
                              export->files[i].path);
    return 0;
}

void qf_export_fini(struct qf_export *export)
{
    for (size_t i = 0; i < export->source_count; i++)
        free(export->sources[i].path);
    for (size_t i = 0; i < export->dir_count; i++)
        free(export->dirs[i]);
    for (size_t i = 0; i < export->file_count; i++) {
        struct qf_export_file *file = &export->files[i];
        free(file->path);
        free(file->pieces);
        free(file->text);
        free(file->segments);
    }
    if (export->journal_fd >= 0)
        close(export->journal_fd);
    if (export->dir_fd >= 0)
        close(export->dir_fd);
    free(export->sources);
    free(export->dirs);
    free(export->files);
    pthread_mutex_destroy(&export->lock);
}
