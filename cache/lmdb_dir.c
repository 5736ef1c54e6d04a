/* SPDX-License-Identifier: Apache-2.0 */
/* LMDB's own lock file cannot tell whether one is alone, and renaming data.mdb under
 * other users of lock.mdb would destroy both files. So there is a second lock,
 * users.lock: exclusive while the first process examines and opens the cache, shared
 * from then on. It is an open-file-description lock, which goes with the descriptor
 * (kill -9 included), can be lowered in one step and does not mind other descriptors of
 * the same file. Its contents say which data.mdb the users have, so that a file
 * replaced under them is noticed, and which limit they agreed on (the first one's).
 * LMDB forbids to open a directory twice in a process, hence the register. */
#include "cache/lmdb_dir.h"

#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/limits.h"
#include "base/log.h"
#include "cache/lmdb_check.h"
#include "cache/netfs.h"

#define DATA_NAME     "data.mdb"
#define LOCK_NAME     "users.lock"
#define SUSPECT_NAME  "data.mdb.suspect"
#define ASIDE_PREFIX  "data.mdb.damaged-"
#define LOCK_WAIT_S   30
#define LOCK_PAUSE_MS 10
#define MAP_GRAIN     (UINT64_C(64) << 10)         /* the largest page size there is */
#define USERS_MAGIC   UINT64_C(0x3173726573756671) /* "qfusers1" */

struct users {
    uint64_t magic;
    uint64_t dev;
    uint64_t ino;
    uint64_t bytes_limit;
};

struct entry {
    dev_t dev;
    ino_t ino;
    struct entry *next;
};

static pthread_mutex_t register_lock = PTHREAD_MUTEX_INITIALIZER;
static struct entry *register_head;

static int register_add(dev_t dev, ino_t ino)
{
    struct entry *entry = malloc(sizeof *entry);
    if (entry == NULL)
        return -ENOMEM;
    int rc = 0;
    pthread_mutex_lock(&register_lock);
    for (struct entry *e = register_head; e != NULL && rc == 0; e = e->next)
        rc = e->dev == dev && e->ino == ino ? -EBUSY : 0;
    if (rc == 0) {
        *entry = (struct entry){dev, ino, register_head};
        register_head = entry;
        entry = NULL;
    }
    pthread_mutex_unlock(&register_lock);
    free(entry);
    return rc;
}

static void register_remove(dev_t dev, ino_t ino)
{
    pthread_mutex_lock(&register_lock);
    struct entry **link = &register_head;
    while (*link != NULL && ((*link)->dev != dev || (*link)->ino != ino))
        link = &(*link)->next;
    struct entry *entry = *link;
    assert(entry != NULL);
    *link = entry->next;
    pthread_mutex_unlock(&register_lock);
    free(entry);
}

static int make_dirs(const char *path, struct qf_err *err)
{
    char *copy = strdup(path);
    if (copy == NULL)
        return -ENOMEM;
    int rc = 0;
    for (char *p = copy; p != NULL && rc == 0;) {
        p = strchr(p + 1, '/');
        if (p != NULL)
            *p = '\0';
        struct stat st;
        if (mkdir(copy, 0700) != 0 && errno != EEXIST && stat(copy, &st) != 0)
            rc = qf_err_set(err, -errno, "cannot make the directory %s: %s", copy,
                            strerror(errno));
        if (p != NULL)
            *p = '/';
    }
    free(copy);
    return rc;
}

static int refuse_remote(const struct qf_lmdb_dir *dir, struct qf_err *err)
{
    struct statfs fs;
    if (fstatfs(dir->fd, &fs) != 0)
        return qf_err_set(err, -errno, "cannot be examined: %s", strerror(errno));
    const char *name = qf_netfs_name((uint32_t)fs.f_type);
    if (name == NULL)
        return 0;
    return qf_err_set(err, -ENOTSUP,
                      "lies on a %s filesystem, where LMDB's locks and maps do not "
                      "work; choose a directory on a local disk",
                      name);
}

static int choose_limit(struct qf_lmdb_dir *dir, uint64_t limit, struct qf_err *err)
{
    struct statvfs fs;
    if (limit == 0) {
        if (fstatvfs(dir->fd, &fs) != 0)
            return qf_err_set(err, -errno, "cannot be examined: %s", strerror(errno));
        limit = (uint64_t)fs.f_blocks / 10 * fs.f_frsize;
    }
    if (limit < QF_CACHE_SIZE_MIN)
        limit = QF_CACHE_SIZE_MIN;
    if (limit > QF_CACHE_SIZE_MAX)
        limit = QF_CACHE_SIZE_MAX;
    dir->bytes_limit = limit / MAP_GRAIN * MAP_GRAIN;
    return 0;
}

static int try_lock(int fd, short type)
{
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET};
    while (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
        if (errno != EINTR)
            return -errno;
    }
    return 0;
}

/* Somebody else holds it exclusively only while opening, which is short. */
static int take_lock(struct qf_lmdb_dir *dir, struct qf_err *err)
{
    const struct timespec pause = {.tv_nsec = LOCK_PAUSE_MS * 1000000L};
    dir->lock_fd = openat(dir->fd, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (dir->lock_fd < 0)
        return qf_err_set(err, -errno, "cannot be written to: %s", strerror(errno));
    for (int64_t end = qf_clock_ms() + LOCK_WAIT_S * INT64_C(1000);;) {
        int rc = try_lock(dir->lock_fd, F_WRLCK);
        dir->alone = rc == 0;
        if (rc == -EAGAIN || rc == -EACCES)
            rc = try_lock(dir->lock_fd, F_RDLCK);
        if (rc != -EAGAIN && rc != -EACCES)
            return rc == 0 ? 0
                           : qf_err_set(err, rc, "%s: %s", LOCK_NAME, strerror(-rc));
        if (qf_clock_ms() > end)
            return qf_err_set(err, -EBUSY,
                              "another process has been opening it for %d s",
                              LOCK_WAIT_S);
        nanosleep(&pause, NULL);
    }
}

/* The directory for this process, and the lock. */
static int claim(struct qf_lmdb_dir *dir, const struct stat *st, struct qf_err *err)
{
    int rc = register_add(st->st_dev, st->st_ino);
    if (rc != 0)
        return qf_err_set(err, rc, "%s",
                          rc == -EBUSY ? "open in this process already" : "no memory");
    dir->dev = st->st_dev;
    dir->ino = st->st_ino;
    return take_lock(dir, err);
}

static int read_users(const struct qf_lmdb_dir *dir, struct users *out,
                      struct qf_err *err)
{
    if (pread(dir->lock_fd, out, sizeof *out, 0) == (ssize_t)sizeof *out &&
        out->magic == USERS_MAGIC && out->bytes_limit >= QF_CACHE_SIZE_MIN &&
        out->bytes_limit <= QF_CACHE_SIZE_MAX)
        return 0;
    return qf_err_set(err, -EBUSY,
                      "in use by another process that did not say how (%s)", LOCK_NAME);
}

static int compare_data(const struct users *users, const struct stat *st,
                        struct qf_err *err)
{
    if (users->dev == st->st_dev && users->ino == st->st_ino)
        return 0;
    return qf_err_set(err, -EBUSY,
                      "%s was replaced while other processes use the cache; stop them "
                      "first",
                      DATA_NAME);
}

/* Before LMDB opens it: even that would touch the lock file of the others. */
static int join_users(struct qf_lmdb_dir *dir, struct qf_err *err)
{
    struct users users;
    struct stat st = {0};
    int rc = read_users(dir, &users, err);
    if (rc != 0)
        return rc;
    if (fstatat(dir->fd, DATA_NAME, &st, 0) != 0 && errno != ENOENT)
        return qf_err_set(err, -errno, "%s: %s", DATA_NAME, strerror(errno));
    if (users.bytes_limit != dir->bytes_limit)
        qf_log(QF_LOG_INFO,
               "cache %s: in use by another process; its limit of %llu bytes holds",
               dir->path, (unsigned long long)users.bytes_limit);
    dir->bytes_limit = users.bytes_limit;
    return compare_data(&users, &st, err);
}

/* The number after the prefix, 0 for other names. */
static unsigned long aside_number(const char *name)
{
    if (strncmp(name, ASIDE_PREFIX, strlen(ASIDE_PREFIX)) != 0)
        return 0;
    return strtoul(name + strlen(ASIDE_PREFIX), NULL, 10);
}

/* Calls remove or looks for the largest number, in one walk. */
static unsigned long walk_aside(const struct qf_lmdb_dir *dir,
                                unsigned long remove_below)
{
    unsigned long largest = 0;
    int fd = openat(dir->fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    if (list == NULL) {
        if (fd >= 0)
            close(fd);
        return 0;
    }
    for (struct dirent *e; (e = readdir(list)) != NULL;) {
        unsigned long n = aside_number(e->d_name);
        if (n > 0 && n < remove_below)
            unlinkat(dir->fd, e->d_name, 0);
        largest = n > largest ? n : largest;
    }
    closedir(list);
    return largest;
}

int qf_lmdb_dir_set_aside(struct qf_lmdb_dir *dir, const char *reason,
                          struct qf_err *err)
{
    assert(dir->alone);
    unsigned long n = walk_aside(dir, 0) + 1;
    char name[64];
    snprintf(name, sizeof name, ASIDE_PREFIX "%lu", n);
    if (renameat(dir->fd, DATA_NAME, dir->fd, name) != 0)
        return qf_err_set(err, -errno, "%s (%s) cannot be moved aside: %s", DATA_NAME,
                          reason, strerror(errno));
    walk_aside(dir, n);
    unlinkat(dir->fd, SUSPECT_NAME, 0);
    qf_log(QF_LOG_WARN, "cache %s: %s: %s; moved aside as %s, the cache begins anew",
           dir->path, DATA_NAME, reason, name);
    return 0;
}

/* LMDB cannot shrink a file, and moved aside it would still fill the disk. */
static int remove_large(const struct qf_lmdb_dir *dir, uint64_t size,
                        struct qf_err *err)
{
    qf_log(
        QF_LOG_WARN,
        "cache %s: %s has %llu bytes, more than the limit of %llu; it is removed and "
        "the cache begins anew",
        dir->path, DATA_NAME, (unsigned long long)size,
        (unsigned long long)dir->bytes_limit);
    if (unlinkat(dir->fd, DATA_NAME, 0) != 0)
        return qf_err_set(err, -errno, "%s: %s", DATA_NAME, strerror(errno));
    unlinkat(dir->fd, SUSPECT_NAME, 0);
    return 0;
}

static int check_file(struct qf_lmdb_dir *dir, int fd, struct qf_err *err)
{
    struct qf_err what = {.text = "it is damaged"};
    struct qf_lmdb_census census;
    struct stat st;
    if (fstat(fd, &st) != 0)
        return qf_err_set(err, -errno, "%s: %s", DATA_NAME, strerror(errno));
    if (!S_ISREG(st.st_mode))
        return qf_lmdb_dir_set_aside(dir, "not a regular file", err);
    if ((uint64_t)st.st_size > dir->bytes_limit)
        return remove_large(dir, (uint64_t)st.st_size, err);
    if (faccessat(dir->fd, SUSPECT_NAME, F_OK, 0) == 0)
        return qf_lmdb_dir_set_aside(dir, "found damaged while it was in use", err);
    int rc = qf_lmdb_check(fd, &census, &what);
    if (rc == -ENOMEM)
        return qf_err_set(err, rc, "%s: no memory to check it", DATA_NAME);
    if (rc != 0)
        return qf_lmdb_dir_set_aside(dir, what.text, err);
    return census.bytes <= dir->bytes_limit ? 0 : remove_large(dir, census.bytes, err);
}

static int check_data(struct qf_lmdb_dir *dir, struct qf_err *err)
{
    /* O_NONBLOCK: should it be a fifo. */
    int fd = openat(dir->fd, DATA_NAME, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 && errno == ENOENT) {
        unlinkat(dir->fd, SUSPECT_NAME, 0);
        return 0;
    }
    if (fd < 0 && (errno == EISDIR || errno == ENXIO || errno == ELOOP))
        return qf_lmdb_dir_set_aside(dir, "not a regular file", err);
    if (fd < 0)
        return qf_err_set(err, -errno, "%s: %s", DATA_NAME, strerror(errno));
    int rc = check_file(dir, fd, err);
    close(fd);
    return rc;
}

/* The limit that was agreed on last. Without one that can be read a limit that nothing
 * is past, for nothing shall be evicted. */
static uint64_t limit_of_existing(const struct qf_lmdb_dir *dir, uint64_t data_size)
{
    struct users users;
    struct statvfs fs;
    uint64_t limit = QF_CACHE_SIZE_MIN;
    if (read_users(dir, &users, NULL) == 0)
        limit = users.bytes_limit;
    else if (fstatvfs(dir->fd, &fs) == 0)
        limit = (uint64_t)(fs.f_blocks - fs.f_bfree) * fs.f_frsize;
    limit = limit < data_size ? data_size : limit;
    limit = limit < QF_CACHE_SIZE_MIN ? QF_CACHE_SIZE_MIN : limit;
    limit = limit > QF_CACHE_SIZE_MAX ? QF_CACHE_SIZE_MAX : limit;
    return (limit + MAP_GRAIN - 1) / MAP_GRAIN * MAP_GRAIN;
}

/* Alone with a cache that stays as it is. */
static int check_existing(struct qf_lmdb_dir *dir, struct qf_err *err)
{
    struct qf_err what = {.text = "it is damaged"};
    struct qf_lmdb_census census;
    struct stat st;
    int fd = openat(dir->fd, DATA_NAME, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return qf_err_set(err, -errno, "%s: %s", DATA_NAME, strerror(errno));
    int rc = faccessat(dir->fd, SUSPECT_NAME, F_OK, 0) == 0
                 ? qf_err_set(&what, -EBADMSG, "found damaged while it was in use")
                 : qf_lmdb_check(fd, &census, &what);
    if (rc == 0 && fstat(fd, &st) != 0)
        rc = qf_err_set(&what, -errno, "%s", strerror(errno));
    close(fd);
    if (rc != 0)
        return qf_err_set(err, rc, "%s: %s; the next mount begins the cache anew",
                          DATA_NAME, what.text);
    uint64_t size = (uint64_t)st.st_size;
    dir->bytes_limit =
        limit_of_existing(dir, census.bytes > size ? census.bytes : size);
    return 0;
}

static int join(struct qf_lmdb_dir *dir, const char *path, struct qf_err *err)
{
    struct stat st;
    struct users users;
    dir->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->fd < 0)
        return qf_err_set(err, -errno, "%s", strerror(errno));
    if (fstatat(dir->fd, DATA_NAME, &st, 0) != 0)
        return qf_err_set(err, -errno, "%s",
                          errno == ENOENT ? "there is no cache in this directory"
                                          : strerror(errno));
    int rc = refuse_remote(dir, err);
    if (rc == 0 && fstat(dir->fd, &st) != 0)
        rc = qf_err_set(err, -errno, "%s", strerror(errno));
    if (rc != 0)
        return rc;
    rc = claim(dir, &st, err);
    if (rc != 0 || dir->alone)
        return rc != 0 ? rc : check_existing(dir, err);
    rc = read_users(dir, &users, err);
    dir->bytes_limit = users.bytes_limit;
    return rc != 0 ? rc : join_users(dir, err);
}

int qf_lmdb_dir_join(struct qf_lmdb_dir *dir, const char *path, struct qf_err *err)
{
    *dir = (struct qf_lmdb_dir){.fd = -1,
                                .lock_fd = -1,
                                .path = strdup(path),
                                .existing = true};
    int rc = dir->path != NULL ? join(dir, path, err) : -ENOMEM;
    if (rc != 0) {
        qf_err_prefix(err, "cache %s", path);
        qf_lmdb_dir_close(dir);
    }
    return rc;
}

static int enter(struct qf_lmdb_dir *dir, const char *path, uint64_t bytes_limit,
                 struct qf_err *err)
{
    struct stat st;
    int rc = make_dirs(path, err);
    if (rc != 0)
        return rc;
    dir->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir->fd < 0 || fstat(dir->fd, &st) != 0)
        return qf_err_set(err, -errno, "%s", strerror(errno));
    rc = refuse_remote(dir, err);
    if (rc == 0)
        rc = choose_limit(dir, bytes_limit, err);
    if (rc != 0)
        return rc;
    rc = claim(dir, &st, err);
    if (rc != 0)
        return rc;
    return dir->alone ? check_data(dir, err) : join_users(dir, err);
}

int qf_lmdb_dir_open(struct qf_lmdb_dir *dir, const char *path, uint64_t bytes_limit,
                     struct qf_err *err)
{
    *dir = (struct qf_lmdb_dir){.fd = -1, .lock_fd = -1, .path = strdup(path)};
    int rc = -ENOMEM;
    if (dir->path != NULL)
        rc = enter(dir, path, bytes_limit, err);
    if (rc != 0) {
        qf_err_prefix(err, "cache %s", path);
        qf_lmdb_dir_close(dir);
    }
    return rc;
}

int qf_lmdb_dir_share(struct qf_lmdb_dir *dir, int data_fd, struct qf_err *err)
{
    struct stat st;
    struct users users;
    if (fstat(data_fd, &st) != 0)
        return qf_err_set(err, -errno, "%s: %s", DATA_NAME, strerror(errno));
    if (!dir->alone) {
        int rc = read_users(dir, &users, err);
        return rc != 0 ? rc : compare_data(&users, &st, err);
    }
    users = (struct users){USERS_MAGIC, st.st_dev, st.st_ino, dir->bytes_limit};
    ssize_t n = pwrite(dir->lock_fd, &users, sizeof users, 0);
    if (n != (ssize_t)sizeof users)
        return qf_err_set(err, n < 0 ? -errno : -ENOSPC, "%s cannot be written",
                          LOCK_NAME);
    int rc = try_lock(dir->lock_fd, F_RDLCK);
    if (rc != 0)
        return qf_err_set(err, rc, "%s: %s", LOCK_NAME, strerror(-rc));
    dir->alone = false;
    return 0;
}

void qf_lmdb_dir_suspect(const struct qf_lmdb_dir *dir)
{
    int fd = openat(dir->fd, SUSPECT_NAME, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
}

void qf_lmdb_dir_close(struct qf_lmdb_dir *dir)
{
    if (dir->lock_fd >= 0)
        close(dir->lock_fd);
    if (dir->fd >= 0)
        close(dir->fd);
    if (dir->ino != 0)
        register_remove(dir->dev, dir->ino);
    free(dir->path);
    *dir = (struct qf_lmdb_dir){.fd = -1, .lock_fd = -1};
}
