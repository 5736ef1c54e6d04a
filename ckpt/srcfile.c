/* SPDX-License-Identifier: Apache-2.0 */
/* A file is its identity: device, inode, size, mtime and ctime. It is taken when the
 * file is opened and compared when bytes have been read, so that bytes of two versions
 * are never mixed. ctime makes the check strict: any write, chmod, rename or new hard
 * link of an open file counts as a change. */
#include "ckpt/srcfile.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "ckpt/root.h"

/* The kernel's coarse clock ticks at 100 Hz or more. Times of whole seconds come from a
 * filesystem that keeps no finer ones (FAT: two seconds). */
#define TIMESTAMP_STEP_NS INT64_C(20000000)
#define COARSE_STEP_NS    INT64_C(2000000000)

struct qf_srcfile {
    int fd;
    struct qf_ident ident;
};

static int64_t nanoseconds(struct timespec t)
{
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct qf_ident qf_ident_of(const struct stat *st)
{
    return (struct qf_ident){.dev = st->st_dev,
                             .ino = st->st_ino,
                             .size = (uint64_t)st->st_size,
                             .mtime_ns = nanoseconds(st->st_mtim),
                             .ctime_ns = nanoseconds(st->st_ctim)};
}

bool qf_ident_eq(const struct qf_ident *a, const struct qf_ident *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->size == b->size &&
           a->mtime_ns == b->mtime_ns && a->ctime_ns == b->ctime_ns;
}

static int fstat_errno(int fd, struct stat *st)
{
    return fstat(fd, st) != 0 ? -errno : 0;
}

static int refuse_kind(const char *path, mode_t mode, struct qf_err *err)
{
    if (S_ISDIR(mode))
        return qf_err_set(err, -EISDIR, "%s: is a directory", path);
    return qf_err_set(err, -EOPNOTSUPP, "%s: is not a regular file", path);
}

/* Opening a device or a pipe may do things, so the kind is looked at before the open,
 * and again after it; a pipe put there in between is opened without waiting. */
static int open_regular(const qf_root *root, const char *path, struct stat *st)
{
    char *real = NULL;
    int rc = qf_root_resolve(root, path, &real, st);
    if (rc != 0)
        return rc;
    int fd = -EOPNOTSUPP;
    if (S_ISREG(st->st_mode)) {
        fd = qf_root_openat(root, real, O_RDONLY | O_NONBLOCK | O_NOCTTY, NULL);
        rc = fd >= 0 ? fstat_errno(fd, st) : 0;
        if (rc == 0 && fd >= 0 && !S_ISREG(st->st_mode))
            rc = -EOPNOTSUPP;
        if (rc != 0) {
            close(fd);
            fd = rc;
        }
    }
    free(real);
    return fd;
}

void qf_stat_settle(const struct stat *st)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    int64_t age = nanoseconds(now) - nanoseconds(st->st_ctim);
    int64_t step = st->st_ctim.tv_nsec == 0 ? COARSE_STEP_NS : TIMESTAMP_STEP_NS;
    if (age < 0 || age >= step)
        return;
    struct timespec rest = {.tv_sec = (time_t)((step - age) / 1000000000),
                            .tv_nsec = (long)((step - age) % 1000000000)};
    while (nanosleep(&rest, &rest) != 0)
        ;
}

int qf_srcfile_open(const qf_root *root, const char *path, qf_srcfile **out,
                    struct qf_err *err)
{
    struct stat st = {0};
    int fd = open_regular(root, path, &st);
    if (fd == -EOPNOTSUPP)
        return refuse_kind(path, st.st_mode, err);
    if (fd == -EXDEV)
        return qf_err_set(err, fd, "%s: a symbolic link leaves the store", path);
    if (fd < 0)
        return qf_err_set(err, fd, "%s: %s", path, strerror(-fd));
    qf_srcfile *file = malloc(sizeof *file);
    int rc = -ENOMEM;
    if (file != NULL) {
        qf_stat_settle(&st);
        rc = fstat_errno(fd, &st);
    }
    if (rc != 0) {
        close(fd);
        free(file);
        return qf_err_set(err, rc, "%s: %s", path, strerror(-rc));
    }
    *file = (struct qf_srcfile){.fd = fd, .ident = qf_ident_of(&st)};
    *out = file;
    return 0;
}

void qf_srcfile_close(qf_srcfile *file)
{
    if (file == NULL)
        return;
    close(file->fd);
    free(file);
}

const struct qf_ident *qf_srcfile_ident(const qf_srcfile *file)
{
    return &file->ident;
}

int qf_srcfile_fd(const qf_srcfile *file)
{
    return file->fd;
}

int qf_srcfile_read(const qf_srcfile *file, void *buf, size_t size, uint64_t off)
{
    char *to = buf;
    while (size > 0) {
        ssize_t n = pread(file->fd, to, size, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            return -ESTALE;
        to += n;
        size -= (size_t)n;
        off += (uint64_t)n;
    }
    return 0;
}

int qf_srcfile_check(const qf_srcfile *file)
{
    struct stat st;
    int rc = fstat_errno(file->fd, &st);
    if (rc != 0)
        return rc;
    struct qf_ident now = qf_ident_of(&st);
    return qf_ident_eq(&now, &file->ident) ? 0 : -ESTALE;
}

int qf_root_read_file(const qf_root *root, const char *path, size_t size_max,
                      char **data, size_t *size, struct qf_ident *ident,
                      struct qf_err *err)
{
    qf_srcfile *file = NULL;
    char *bytes = NULL;
    int rc = qf_srcfile_open(root, path, &file, err);
    if (rc != 0)
        return rc;
    uint64_t n = file->ident.size;
    if (n > size_max) {
        rc = qf_err_set(err, -EFBIG, "%s: larger than %zu bytes", path, size_max);
        goto out;
    }
    bytes = malloc((size_t)n + 1);
    rc = bytes == NULL ? -ENOMEM : qf_srcfile_read(file, bytes, (size_t)n, 0);
    if (rc == 0)
        rc = qf_srcfile_check(file);
    if (rc != 0) {
        qf_err_set(err, rc, "%s: %s", path,
                   rc == -ESTALE ? "changed while it was read" : strerror(-rc));
        goto out;
    }
    bytes[n] = '\0';
    *data = bytes;
    *size = (size_t)n;
    bytes = NULL;
    if (ident != NULL)
        *ident = file->ident;
out:
    free(bytes);
    qf_srcfile_close(file);
    return rc;
}
