/* SPDX-License-Identifier: Apache-2.0 */
/* Threads take segments in the order of the files. A segment is produced, written,
 * synced, dropped from the page cache and read again; a file whose segments are all
 * there gets its attributes and its name. So a name is never given to bytes that were
 * not seen on the disk, and all threads share the work of a single large file. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/limits.h"
#include "base/path.h"
#include "cli/crew.h"
#include "cli/export.h"

#define READ_SIZE ((size_t)QF_FUSE_READ_SIZE_MAX)

struct writer {
    struct qf_export *export;
    char *buffer;
    size_t open; /* the source that `file` is open for; SIZE_MAX: none */
    struct qf_source_file file;
};

struct crowd {
    struct qf_export *export;
    char *buffers;
};

static bool stopped(struct qf_export *export)
{
    pthread_mutex_lock(&export->lock);
    bool failed = export->rc != 0;
    pthread_mutex_unlock(&export->lock);
    return failed || atomic_load(export->stop) != 0;
}

static void fail(struct qf_export *export, const char *path, const char *what, int rc)
{
    pthread_mutex_lock(&export->lock);
    if (export->rc == 0) {
        const char *why = rc == -ESTALE ? "it has changed meanwhile; begin again, and "
                                          "what is still right stays"
                          : rc == -ENOSPC
                              ? "No space left on device; with more room the same "
                                "command goes on"
                              : strerror(-rc);
        export->rc = qf_err_set(&export->err, rc, "%s: %s%s", path, what, why);
    }
    pthread_mutex_unlock(&export->lock);
}

static bool take_segment(struct qf_export *export, struct qf_export_file **file,
                         size_t *segment)
{
    bool found = false;
    if (stopped(export))
        return false;
    pthread_mutex_lock(&export->lock);
    if (export->next_file < export->file_count) {
        found = true;
        *file = &export->files[export->next_file];
        *segment = export->next_segment++;
        if (export->next_segment == (*file)->segment_count) {
            export->next_file++;
            export->next_segment = 0;
        }
    }
    pthread_mutex_unlock(&export->lock);
    return found;
}

/* ---- bytes of a draft ---- */

static int open_draft(struct qf_export *export, struct qf_export_file *file, int *fd)
{
    int rc = 0;
    pthread_mutex_lock(&export->lock);
    if (file->fd < 0) {
        struct qf_export_draft draft = qf_export_draft(file);
        file->fd = openat(export->dir_fd, draft.name,
                          O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
        if (file->fd < 0 || ftruncate(file->fd, (off_t)file->size) != 0)
            rc = -errno;
    }
    *fd = file->fd;
    pthread_mutex_unlock(&export->lock);
    return rc;
}

static int write_at(int fd, const char *data, size_t size, uint64_t off)
{
    while (size > 0) {
        ssize_t n = pwrite(fd, data, size, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        off += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

static int read_at(int fd, char *data, size_t size, uint64_t off)
{
    while (size > 0) {
        ssize_t n = pread(fd, data, size, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return n < 0 ? -errno : -EIO;
        data += n;
        off += (uint64_t)n;
        size -= (size_t)n;
    }
    return 0;
}

/* The checksum of what the draft has on the disk. */
static int hash_draft(struct writer *w, int fd, uint64_t off, uint64_t end,
                      uint64_t *hash)
{
    qf_hash64_stream *stream = qf_hash64_stream_new();
    int rc = stream != NULL ? 0 : -ENOMEM;
    posix_fadvise(fd, (off_t)off, (off_t)(end - off), POSIX_FADV_DONTNEED);
    while (rc == 0 && off < end) {
        size_t size = end - off < READ_SIZE ? (size_t)(end - off) : READ_SIZE;
        rc = read_at(fd, w->buffer, size, off);
        if (rc == 0)
            qf_hash64_stream_add(stream, w->buffer, size);
        off += size;
    }
    if (rc == 0)
        *hash = qf_hash64_stream_value(stream);
    qf_hash64_stream_free(stream);
    return rc;
}

/* ---- bytes of the source ---- */

static void close_source(struct writer *w)
{
    if (w->open != SIZE_MAX)
        w->export->source->ops->close(w->export->source, &w->file);
    w->open = SIZE_MAX;
}

static int read_source(struct writer *w, const struct qf_export_piece *piece,
                       uint64_t from, size_t size)
{
    const struct qf_views_source *source = w->export->source;
    if (w->open != piece->source) {
        close_source(w);
        int rc = qf_export_open_source(w->export, piece->source, &w->file);
        if (rc != 0)
            return rc;
        w->open = piece->source;
    }
    return qf_source_read_all(source, &w->file, w->buffer, size,
                              piece->source_off + from);
}

/* The piece that holds byte `off`. */
static const struct qf_export_piece *find_piece(const struct qf_export_file *file,
                                                uint64_t off)
{
    size_t low = 0, high = file->piece_count;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (file->pieces[middle].off <= off)
            low = middle;
        else
            high = middle;
    }
    return &file->pieces[low];
}

static int produce(struct writer *w, const struct qf_export_file *file, int fd,
                   uint64_t off, uint64_t end, qf_hash64_stream *stream)
{
    while (off < end) {
        if (stopped(w->export))
            return -EINTR;
        const struct qf_export_piece *piece = find_piece(file, off);
        uint64_t from = off - piece->off, left = piece->size - from;
        if (left > end - off)
            left = end - off;
        size_t size = left < READ_SIZE ? (size_t)left : READ_SIZE;
        const char *data = w->buffer;
        if (piece->text != NULL) {
            data = piece->text + from;
        } else {
            int rc = read_source(w, piece, from, size);
            if (rc != 0) {
                fail(w->export, w->export->sources[piece->source].path, "", rc);
                return rc;
            }
        }
        qf_hash64_stream_add(stream, data, size);
        int rc = write_at(fd, data, size, off);
        if (rc != 0)
            return rc;
        off += size;
        atomic_fetch_add(&w->export->bytes, size);
    }
    return 0;
}

/* ---- a segment ---- */

static int write_segment(struct writer *w, struct qf_export_file *file, size_t index,
                         int fd, uint64_t off, uint64_t end)
{
    struct qf_export_segment *segment = &file->segments[index];
    qf_hash64_stream *stream = qf_hash64_stream_new();
    uint64_t hash = 0;
    if (stream == NULL)
        return -ENOMEM;
    int rc = produce(w, file, fd, off, end, stream);
    if (rc == 0) {
        segment->hash = qf_hash64_stream_value(stream);
        rc = fdatasync(fd) != 0 ? -errno : hash_draft(w, fd, off, end, &hash);
    }
    qf_hash64_stream_free(stream);
    if (rc == 0 && hash != segment->hash) {
        fail(w->export, file->path, "read back otherwise than it was written: ", -EIO);
        return -EIO;
    }
    if (rc == 0)
        qf_export_state_segment(w->export, file, index);
    return rc;
}

static int sync_parent(const struct qf_export *export, const char *path)
{
    char *parent = qf_path_parent(path);
    if (parent == NULL)
        return -ENOMEM;
    int fd = openat(export->dir_fd, parent[0] != '\0' ? parent : ".",
                    O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    int rc = fd < 0 || fsync(fd) != 0 ? -errno : 0;
    if (fd >= 0)
        close(fd);
    free(parent);
    return rc;
}

static int finish_file(struct qf_export *export, struct qf_export_file *file)
{
    struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, file->mtime};
    struct qf_export_draft draft = qf_export_draft(file);
    int rc = 0;
    if (fchmod(file->fd, file->mode) != 0 || futimens(file->fd, times) != 0 ||
        fsync(file->fd) != 0)
        rc = -errno;
    /* Before the name: a name that no journal tells of would never be taken back. */
    if (rc == 0)
        rc = qf_export_state_file(export, file);
    if (rc == 0 &&
        renameat(export->dir_fd, draft.name, export->dir_fd, file->path) != 0)
        rc = -errno;
    if (close(file->fd) != 0 && rc == 0)
        rc = -errno;
    file->fd = -1;
    if (rc == 0)
        rc = sync_parent(export, file->path);
    return rc;
}

static int do_segment(struct writer *w, struct qf_export_file *file, size_t index)
{
    struct qf_export *export = w->export;
    uint64_t off = index * QF_EXPORT_SEGMENT_SIZE, end = off + QF_EXPORT_SEGMENT_SIZE;
    uint64_t hash;
    int fd;
    if (end > file->size)
        end = file->size;
    int rc = open_draft(export, file, &fd);
    if (rc != 0)
        return rc;
    bool known = file->segments[index].known;
    if (known && hash_draft(w, fd, off, end, &hash) == 0 &&
        hash == file->segments[index].hash) {
        atomic_fetch_add(&export->bytes, end - off);
        atomic_fetch_add(&export->bytes_kept, end - off);
    } else {
        rc = write_segment(w, file, index, fd, off, end);
    }
    if (rc != 0)
        return rc;
    pthread_mutex_lock(&export->lock);
    bool last = --file->segments_left == 0;
    pthread_mutex_unlock(&export->lock);
    return last ? finish_file(export, file) : 0;
}

static void run_writer(void *arg, unsigned index)
{
    struct crowd *crowd = arg;
    struct writer w = {.export = crowd->export,
                       .buffer = crowd->buffers + index * READ_SIZE,
                       .open = SIZE_MAX};
    struct qf_export_file *file;
    size_t segment;
    while (take_segment(w.export, &file, &segment)) {
        int rc = do_segment(&w, file, segment);
        if (rc != 0 && rc != -EINTR)
            fail(w.export, file->path, "", rc);
    }
    close_source(&w);
}

static void tick(void *arg)
{
    struct crowd *crowd = arg;
    qf_progress_update(&crowd->export->progress, atomic_load(&crowd->export->bytes));
}

int qf_export_write(struct qf_export *export, FILE *progress_to, struct qf_err *err)
{
    struct crowd crowd = {export, malloc(export->jobs * READ_SIZE)};
    uint64_t total = 0;
    int rc = crowd.buffers != NULL ? 0 : -ENOMEM;
    for (size_t i = 0; i < export->file_count; i++)
        total += export->files[i].size;
    qf_progress_start(&export->progress, progress_to, "exporting", total);
    if (rc == 0)
        rc = qf_crew_run(export->jobs, run_writer, tick, &crowd);
    if (rc != 0)
        qf_err_set(err, rc, "%s", strerror(-rc));
    qf_progress_end(&export->progress, atomic_load(&export->bytes));
    free(crowd.buffers);
    for (size_t i = 0; i < export->file_count; i++)
        if (export->files[i].fd >= 0)
            close(export->files[i].fd);
    if (rc == 0 && export->rc != 0) {
        rc = export->rc;
        *err = export->err;
    }
    return rc == 0 && atomic_load(export->stop) != 0 ? -EINTR : rc;
}
