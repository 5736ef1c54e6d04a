/* SPDX-License-Identifier: Apache-2.0 */
/* Through a mount it is enough to read: the daemon caches. What we have read leaves the
 * page cache again, for nobody has asked for it yet. From a stack the shards are read
 * as the daemon would read them, so the two share every line that decides a byte. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "cli/mounted.h"
#include "cli/source.h"
#include "fs/file.h"
#include "fs/xattr.h"

/* Others use a mount, too: at some point enough has been waited for. */
#define SETTLE_MS      60000
#define SETTLE_TICK_MS 20

static void doze(void)
{
    nanosleep(&(struct timespec){.tv_nsec = SETTLE_TICK_MS * 1000000L}, NULL);
}

/* ---- a mount ---- */

static int mount_list(const struct qf_views_source *source, const char *path,
                      int (*each)(void *arg, const char *name, bool is_dir), void *arg)
{
    (void)source;
    DIR *dir = opendir(path);
    if (dir == NULL)
        return -errno;
    int rc = 0;
    const struct dirent *d;
    errno = 0;
    while (rc == 0 && (d = readdir(dir)) != NULL) {
        if (strcmp(d->d_name, ".") != 0 && strcmp(d->d_name, "..") != 0)
            rc = each(arg, d->d_name, d->d_type == DT_DIR);
        errno = 0;
    }
    if (rc == 0 && errno != 0)
        rc = -errno;
    closedir(dir);
    return rc;
}

static int mount_open(const struct qf_views_source *source, const char *path,
                      struct qf_source_file *out)
{
    (void)source;
    *out = (struct qf_source_file){.fd = open(path, O_RDONLY | O_CLOEXEC)};
    int rc = out->fd < 0 || fstat(out->fd, &out->st) != 0 ? -errno : 0;
    if (rc == 0 && !S_ISREG(out->st.st_mode))
        rc = S_ISDIR(out->st.st_mode) ? -EISDIR : -EINVAL;
    if (rc != 0) {
        if (out->fd >= 0)
            close(out->fd);
        return rc;
    }
    out->size = (uint64_t)out->st.st_size;
    /* A file that the view does not change has none. A daemon that knows no attributes
     * says something else. */
    out->shard =
        fgetxattr(out->fd, "user.quantfs.codec", NULL, 0) >= 0 || errno != ENODATA;
    posix_fadvise(out->fd, 0, 0, POSIX_FADV_SEQUENTIAL);
    return 0;
}

static ssize_t mount_read(struct qf_source_file *file, void *buf, size_t size,
                          uint64_t off, bool drop)
{
    (void)drop;
    ssize_t n;
    do
        n = pread(file->fd, buf, size, (off_t)off);
    while (n < 0 && errno == EINTR);
    if (n < 0)
        return -errno;
    posix_fadvise(file->fd, (off_t)off, n, POSIX_FADV_DONTNEED);
    return n;
}

static int mount_key(const struct qf_views_source *source,
                     const struct qf_source_file *file, struct qf_buf *out)
{
    char text[128];
    (void)source;
    ssize_t n = fgetxattr(file->fd, "user.quantfs.key", text, sizeof text);
    if (n < 0)
        return -errno;
    qf_buf_append(out, text, (size_t)n);
    return 0;
}

static void mount_close(const struct qf_views_source *source,
                        struct qf_source_file *file)
{
    (void)source;
    close(file->fd);
}

static void mount_settle(const struct qf_views_source *source)
{
    static const char *const keys[] = {"chunks_queued", "chunks_encoding",
                                       "storing_bytes"};
    int64_t end = qf_clock_ms() + SETTLE_MS;
    bool busy = true;
    while (busy && qf_clock_ms() < end) {
        char *status = qf_mounted_status(source->top);
        busy = false;
        for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
            busy = busy || qf_mounted_number(status, keys[i]) != 0;
        free(status);
        if (busy)
            doze();
    }
}

static void mount_counts(const struct qf_views_source *source,
                         struct qf_source_counts *out)
{
    char *status = qf_mounted_status(source->top);
    *out = (struct qf_source_counts){
        .chunks_encoded = qf_mounted_number(status, "chunks_encoded"),
        .cache_hits = qf_mounted_number(status, "cache_hits"),
        .evictions = qf_mounted_number(status, "cache_evictions"),
        .dropped = qf_mounted_number(status, "cache_puts_dropped"),
    };
    free(status);
}

const struct qf_source_ops qf_source_mount_ops = {
    .list = mount_list,
    .open = mount_open,
    .read = mount_read,
    .key = mount_key,
    .close = mount_close,
    .settle = mount_settle,
    .counts = mount_counts,
};

/* ---- a stack of our own; paths begin with the view ---- */

/* One reference on *id is the caller's (the root has none). */
static int find_id(qf_tree *tree, const char *path, uint64_t *id)
{
    char *copy = strdup(path), *rest = copy;
    int rc = copy != NULL ? 0 : -ENOMEM;
    *id = QF_NODE_ROOT;
    while (rc == 0 && rest != NULL) {
        const char *name = strsep(&rest, "/");
        struct qf_entry entry;
        if (name[0] == '\0')
            continue;
        rc = qf_tree_lookup(tree, *id, name, &entry);
        if (*id != QF_NODE_ROOT)
            qf_tree_forget(tree, *id, 1);
        if (rc == 0)
            *id = entry.st.st_ino;
    }
    free(copy);
    return rc;
}

static int stack_list(const struct qf_views_source *source, const char *path,
                      int (*each)(void *arg, const char *name, bool is_dir), void *arg)
{
    qf_tree *tree = source->stack->tree;
    uint64_t id;
    int rc = find_id(tree, path, &id);
    if (rc != 0)
        return rc;
    qf_dir *dir = NULL;
    rc = qf_tree_opendir(tree, id, &dir);
    for (size_t i = 2; rc == 0 && i < qf_dir_count(dir); i++) { /* not the dots */
        uint64_t child;
        unsigned type;
        const char *name = qf_dir_entry(dir, i, &child, &type);
        rc = each(arg, name, type == DT_DIR);
    }
    qf_dir_close(dir);
    qf_tree_forget(tree, id, 1);
    return rc;
}

static int stack_open(const struct qf_views_source *source, const char *path,
                      struct qf_source_file *out)
{
    qf_tree *tree = source->stack->tree;
    struct qf_entry entry;
    int fd;
    *out = (struct qf_source_file){.fd = -1};
    int rc = find_id(tree, path, &out->id);
    if (rc != 0)
        return rc;
    rc = qf_tree_getattr(tree, out->id, &entry);
    if (rc == 0)
        rc = qf_file_open(tree, out->id, &out->file);
    if (rc == 0) {
        out->st = entry.st;
        out->size = (uint64_t)entry.st.st_size;
        out->shard = qf_file_sealed(out->file, &fd);
        out->sealed = out->shard && fd >= 0;
    } else {
        qf_file_close(out->file);
        qf_tree_forget(tree, out->id, 1);
    }
    return rc;
}

static ssize_t stack_read(struct qf_source_file *file, void *buf, size_t size,
                          uint64_t off, bool drop)
{
    struct qf_file_read read;
    int rc = qf_file_read(file->file, off, size, &read);
    if (rc != 0)
        return rc;
    char *to = buf;
    for (size_t i = 0; !drop && i < read.piece_count; i++) {
        memcpy(to, read.pieces[i].iov_base, read.pieces[i].iov_len);
        to += read.pieces[i].iov_len;
    }
    ssize_t n = (ssize_t)read.size;
    qf_file_read_done(&read);
    return n;
}

static int stack_key(const struct qf_views_source *source,
                     const struct qf_source_file *file, struct qf_buf *out)
{
    return qf_xattr_get(source->stack->tree, file->id, "user.quantfs.key", out);
}

static void stack_close(const struct qf_views_source *source,
                        struct qf_source_file *file)
{
    qf_file_close(file->file);
    qf_tree_forget(source->stack->tree, file->id, 1);
}

static void stack_settle(const struct qf_views_source *source)
{
    struct qf_engine_stats stats;
    qf_engine_stats(source->stack->engine, &stats);
    while (stats.chunks_queued != 0 || stats.chunks_encoding != 0) {
        doze();
        qf_engine_stats(source->stack->engine, &stats);
    }
    qf_store_flush(source->stack->store);
}

static void stack_counts(const struct qf_views_source *source,
                         struct qf_source_counts *out)
{
    struct qf_engine_stats engine;
    struct qf_store_stats store;
    qf_engine_stats(source->stack->engine, &engine);
    qf_store_stats(source->stack->store, &store);
    *out = (struct qf_source_counts){
        .chunks_encoded = engine.chunks_encoded,
        .cache_hits = engine.cache_hits,
        .evictions = store.evictions,
        .dropped = store.puts_dropped,
    };
}

const struct qf_source_ops qf_source_stack_ops = {
    .list = stack_list,
    .open = stack_open,
    .read = stack_read,
    .key = stack_key,
    .close = stack_close,
    .settle = stack_settle,
    .counts = stack_counts,
};

int qf_source_read_all(const struct qf_views_source *source,
                       struct qf_source_file *file, void *buf, size_t size,
                       uint64_t off)
{
    while (size > 0) {
        ssize_t n = source->ops->read(file, buf, size, off, false);
        if (n <= 0)
            return n < 0 ? (int)n : -ESTALE;
        buf = (char *)buf + n;
        off += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}
