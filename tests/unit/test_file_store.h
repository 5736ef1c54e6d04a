/* SPDX-License-Identifier: Apache-2.0 */
/* A store with flat files, for tests: values in another store, files in a directory,
 * faults when told to. Values that a commit drops are hidden until they are put anew.
 */
#ifndef QF_TESTS_UNIT_TEST_FILE_STORE_H
#define QF_TESTS_UNIT_TEST_FILE_STORE_H

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cache/store.h"

struct file_store {
    qf_store base;
    qf_store *real; /* owned */
    char dir[4096];
    uint64_t bytes_limit;
    pthread_mutex_t lock;
    struct qf_hash128 *dropped;
    size_t dropped_count;
    atomic_uint files, begins, commits, aborts, dropped_last;
    _Atomic uint64_t file_bytes;
    atomic_int begin_rc, append_rc, commit_rc, open_rc; /* 0: as it should be */
    _Atomic(void (*)(void *arg)) on_append;             /* called before each */
    void *arg;
};

struct qf_store_draft {
    struct file_store *store;
    int fd;
    uint64_t left, size;
    char path[4200];
};

static inline struct file_store *file_store_of(qf_store *store)
{
    return (struct file_store *)store;
}

/* With the lock held. */
static inline size_t file_store_dropped(const struct file_store *s,
                                        struct qf_hash128 key)
{
    size_t i = 0;
    while (i < s->dropped_count && !qf_hash128_eq(s->dropped[i], key))
        i++;
    return i;
}

static inline void file_store_drop(struct file_store *s, struct qf_hash128 key)
{
    pthread_mutex_lock(&s->lock);
    if (file_store_dropped(s, key) == s->dropped_count) {
        s->dropped = realloc(s->dropped, (s->dropped_count + 1) * sizeof *s->dropped);
        if (s->dropped == NULL)
            abort();
        s->dropped[s->dropped_count++] = key;
    }
    pthread_mutex_unlock(&s->lock);
}

static inline bool file_store_get(qf_store *store, struct qf_hash128 key,
                                  struct qf_store_value *out)
{
    struct file_store *s = file_store_of(store);
    pthread_mutex_lock(&s->lock);
    bool dropped = file_store_dropped(s, key) != s->dropped_count;
    pthread_mutex_unlock(&s->lock);
    return !dropped && qf_store_get(s->real, key, out);
}

static inline void file_store_release(qf_store *store, struct qf_store_value *value)
{
    qf_store_release(file_store_of(store)->real, value);
}

static inline void file_store_put(qf_store *store, struct qf_hash128 key,
                                  uint64_t origin, const void *data, size_t size,
                                  qf_store_done *done, void *arg)
{
    struct file_store *s = file_store_of(store);
    pthread_mutex_lock(&s->lock);
    size_t i = file_store_dropped(s, key);
    if (i < s->dropped_count)
        s->dropped[i] = s->dropped[--s->dropped_count];
    pthread_mutex_unlock(&s->lock);
    qf_store_put(s->real, key, origin, data, size, done, arg);
}

static inline void file_store_flush(qf_store *store)
{
    qf_store_flush(file_store_of(store)->real);
}

static inline void file_store_path(const struct file_store *s, struct qf_hash128 key,
                                   char out[4200])
{
    snprintf(out, 4200, "%s/%016" PRIx64 "%016" PRIx64, s->dir, key.high, key.low);
}

static inline int file_store_file_open(qf_store *store, struct qf_hash128 key,
                                       uint64_t size, int *fd)
{
    struct file_store *s = file_store_of(store);
    char path[4200];
    struct stat st;
    if (atomic_load(&s->open_rc) != 0)
        return atomic_load(&s->open_rc);
    file_store_path(s, key, path);
    *fd = open(path, O_RDONLY | O_CLOEXEC);
    if (*fd < 0)
        return -errno;
    if (fstat(*fd, &st) != 0 || (uint64_t)st.st_size != size) {
        close(*fd);
        return -ENOENT;
    }
    return 0;
}

static inline int file_store_begin(qf_store *store, struct qf_hash128 key,
                                   uint64_t origin, uint64_t size, qf_store_draft **out)
{
    (void)origin;
    struct file_store *s = file_store_of(store);
    atomic_fetch_add(&s->begins, 1);
    if (atomic_load(&s->begin_rc) != 0)
        return atomic_load(&s->begin_rc);
    qf_store_draft *draft = calloc(1, sizeof *draft);
    if (draft == NULL)
        return -ENOMEM;
    *draft = (struct qf_store_draft){.store = s, .left = size, .size = size};
    file_store_path(s, key, draft->path);
    if (access(draft->path, F_OK) == 0) {
        free(draft);
        return -EEXIST;
    }
    draft->fd = open(s->dir, O_TMPFILE | O_WRONLY | O_CLOEXEC, 0600);
    if (draft->fd < 0) {
        free(draft);
        return -errno;
    }
    *out = draft;
    return 0;
}

static inline int file_store_append(qf_store_draft *draft, const void *data,
                                    size_t size)
{
    struct file_store *s = draft->store;
    void (*hook)(void *arg) = atomic_load(&s->on_append);
    if (hook != NULL)
        hook(s->arg);
    if (atomic_load(&s->append_rc) != 0)
        return atomic_load(&s->append_rc);
    if (size > draft->left)
        return -EINVAL;
    draft->left -= size;
    return write(draft->fd, data, size) == (ssize_t)size ? 0 : -EIO;
}

static inline void file_store_free(qf_store_draft *draft)
{
    close(draft->fd);
    free(draft);
}

static inline void file_store_abort(qf_store_draft *draft)
{
    atomic_fetch_add(&draft->store->aborts, 1);
    file_store_free(draft);
}

static inline int file_store_commit(qf_store_draft *draft,
                                    const struct qf_hash128 *records,
                                    size_t record_count)
{
    struct file_store *s = draft->store;
    char from[64];
    int rc = atomic_load(&s->commit_rc);
    if (rc == 0 && draft->left != 0)
        rc = -EINVAL;
    snprintf(from, sizeof from, "/proc/self/fd/%d", draft->fd);
    if (rc == 0 &&
        linkat(AT_FDCWD, from, AT_FDCWD, draft->path, AT_SYMLINK_FOLLOW) != 0)
        rc = -errno;
    if (rc == 0) {
        for (size_t i = 0; i < record_count; i++)
            file_store_drop(s, records[i]);
        atomic_store(&s->dropped_last, (unsigned)record_count);
        atomic_fetch_add(&s->files, 1);
        atomic_fetch_add(&s->file_bytes, draft->size);
        atomic_fetch_add(&s->commits, 1);
    }
    file_store_free(draft);
    return rc;
}

static inline void file_store_stats(qf_store *store, struct qf_store_stats *out)
{
    struct file_store *s = file_store_of(store);
    qf_store_stats(s->real, out);
    out->files = atomic_load(&s->files);
    out->file_bytes = atomic_load(&s->file_bytes);
    out->bytes += out->file_bytes;
    out->bytes_limit = s->bytes_limit;
}

static inline void file_store_close(qf_store *store)
{
    struct file_store *s = file_store_of(store);
    qf_store_close(s->real);
    pthread_mutex_destroy(&s->lock);
    free(s->dropped);
    s->dropped = NULL;
}

/* Takes `real` over. Closed by qf_store_close, which does not free `s`. */
static inline void file_store_init(struct file_store *s, qf_store *real,
                                   const char *dir)
{
    static const struct qf_store_ops ops = {.name = "files",
                                            .get = file_store_get,
                                            .release = file_store_release,
                                            .put = file_store_put,
                                            .flush = file_store_flush,
                                            .file_open = file_store_file_open,
                                            .file_begin = file_store_begin,
                                            .file_append = file_store_append,
                                            .file_commit = file_store_commit,
                                            .file_abort = file_store_abort,
                                            .stats = file_store_stats,
                                            .close = file_store_close};
    memset(s, 0, sizeof *s);
    s->base.ops = &ops;
    s->real = real;
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    pthread_mutex_init(&s->lock, NULL);
}

#endif
