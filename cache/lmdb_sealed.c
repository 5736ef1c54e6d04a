/* SPDX-License-Identifier: Apache-2.0 */
/* Flat files lie in sealed/ under the hexadecimal digits of their key; one that is
 * being written has ".part" behind it. The truth is in "files": a file without a record
 * is garbage. A draft has a record too, so that what all processes write counts against
 * the limit, and its writer holds flock on it until the record says "sealed": a draft
 * whose lock can be had is a dead writer's.
 *
 * Names are taken away within write transactions, before the commit, which orders them
 * among all processes. Whoever dies in between leaves a record without a file, which
 * the next open of it finds, and never a file that nobody counts. */
#include <assert.h>
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "base/log.h"
#include "cache/lmdb_store.h"

#define SEALED_NAME  "sealed"
#define PART_SUFFIX  ".part"
#define FILE_MAGIC   UINT64_C(0x31656c6966736671) /* "qfsfile1" */
#define FILE_VERSION 1u
#define HEX_DIGITS   32u

static_assert(sizeof(struct qf_lmdb_file) == 72, "as it lies in data.mdb");

void qf_lmdb_file_names(const struct qf_hash128 *key, struct qf_lmdb_file_names *out)
{
    unsigned long long high = key->high, low = key->low;
    snprintf(out->sealed, sizeof out->sealed, "%016llx%016llx", high, low);
    snprintf(out->part, sizeof out->part, "%016llx%016llx" PART_SUFFIX, high, low);
}

static uint64_t time_ns(const struct timespec *ts)
{
    return (uint64_t)ts->tv_sec * 1000000000u + (uint64_t)ts->tv_nsec;
}

void qf_lmdb_file_identify(struct qf_lmdb_file *file, const struct stat *st)
{
    file->dev = st->st_dev;
    file->ino = st->st_ino;
    file->mtime_ns = time_ns(&st->st_mtim);
    file->ctime_ns = time_ns(&st->st_ctim);
}

bool qf_lmdb_file_is(const struct qf_lmdb_file *file, const struct stat *st)
{
    return file->dev == st->st_dev && file->ino == st->st_ino &&
           file->mtime_ns == time_ns(&st->st_mtim) &&
           file->ctime_ns == time_ns(&st->st_ctim);
}

bool qf_lmdb_file_named(const qf_lmdb_store *store, int fd, const char *name)
{
    struct stat own, named;
    return fstat(fd, &own) == 0 &&
           fstatat(store->sealed_fd, name, &named, AT_SYMLINK_NOFOLLOW) == 0 &&
           own.st_dev == named.st_dev && own.st_ino == named.st_ino;
}

int qf_lmdb_file_unlink_dead(const qf_lmdb_store *store, const char *name)
{
    int fd =
        openat(store->sealed_fd, name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (fd < 0)
        return errno == ENOENT ? 0 : errno;
    /* Between the two another may have taken the name; after the lock none can. */
    int rc = 0;
    if (flock(fd, LOCK_EX | LOCK_NB) != 0 || !qf_lmdb_file_named(store, fd, name))
        rc = EBUSY;
    else if (unlinkat(store->sealed_fd, name, 0) != 0)
        rc = errno;
    close(fd);
    return rc;
}

/* ---- records ---- */

static uint64_t check_of(const struct qf_hash128 *key, const struct qf_lmdb_file *file)
{
    struct {
        struct qf_hash128 key;
        struct qf_lmdb_file file;
    } what = {*key, *file};
    what.file.check = 0;
    return qf_hash64(&what, sizeof what);
}

static bool read_record(const MDB_val *key, const MDB_val *val, struct qf_hash128 *k,
                        struct qf_lmdb_file *out)
{
    if (key->mv_size != sizeof *k || val->mv_size != sizeof *out)
        return false;
    memcpy(k, key->mv_data, sizeof *k);
    memcpy(out, val->mv_data, sizeof *out);
    return out->magic == FILE_MAGIC && out->version == FILE_VERSION &&
           (out->state == QF_LMDB_FILE_DRAFT || out->state == QF_LMDB_FILE_SEALED) &&
           out->check == check_of(k, out);
}

int qf_lmdb_file_get(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                     struct qf_lmdb_file *out)
{
    MDB_val k = qf_lmdb_key(key);
    MDB_val val;
    struct qf_hash128 ignored;
    int rc = mdb_get(txn, store->files, &k, &val);
    if (rc != 0)
        return rc;
    return read_record(&k, &val, &ignored, out) ? 0 : MDB_NOTFOUND;
}

int qf_lmdb_file_put(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                     struct qf_lmdb_file *file)
{
    file->magic = FILE_MAGIC;
    file->version = FILE_VERSION;
    file->check = check_of(key, file);
    MDB_val k = qf_lmdb_key(key);
    MDB_val val = {.mv_size = sizeof *file, .mv_data = file};
    return mdb_put(txn, store->files, &k, &val, 0);
}

static void subtract(struct qf_lmdb_room *room, uint64_t size)
{
    room->file_bytes -= size < room->file_bytes ? size : room->file_bytes;
}

int qf_lmdb_file_drop(qf_lmdb_store *store, struct qf_lmdb_room *room, MDB_txn *txn,
                      const struct qf_hash128 *key, const struct qf_lmdb_file *file)
{
    MDB_val k = qf_lmdb_key(key);
    int rc = mdb_del(txn, store->files, &k, NULL);
    if (rc != 0)
        return rc;
    subtract(room, file->size);
    rc = mdb_del(txn, store->uses, &k, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int qf_lmdb_file_evict(qf_lmdb_store *store, struct qf_lmdb_room *room, MDB_txn *txn,
                       const struct qf_hash128 *key, uint64_t *size)
{
    struct qf_lmdb_file file;
    struct qf_lmdb_file_names names;
    int rc = qf_lmdb_file_get(store, txn, key, &file);
    if (rc != 0 || file.state != QF_LMDB_FILE_SEALED)
        return rc != 0 ? rc : MDB_NOTFOUND;
    qf_lmdb_file_names(key, &names);
    if (unlinkat(store->sealed_fd, names.sealed, 0) != 0 && errno != ENOENT)
        return EUCLEAN;
    *size = file.size;
    return qf_lmdb_file_drop(store, room, txn, key, &file);
}

/* The sealed name is its writer's for the moment between rename and commit. */
static bool draft_is_dead(const qf_lmdb_store *store, const struct qf_hash128 *key)
{
    struct qf_lmdb_file_names names;
    qf_lmdb_file_names(key, &names);
    return qf_lmdb_file_unlink_dead(store, names.part) == 0 &&
           qf_lmdb_file_unlink_dead(store, names.sealed) == 0;
}

int qf_lmdb_files_reap(qf_lmdb_store *store, struct qf_lmdb_room *room, MDB_txn *txn)
{
    MDB_cursor *cursor;
    MDB_val key, val;
    int rc = mdb_cursor_open(txn, store->files, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    while (rc == 0) {
        struct qf_hash128 k;
        struct qf_lmdb_file file;
        if (read_record(&key, &val, &k, &file) && file.state == QF_LMDB_FILE_DRAFT &&
            draft_is_dead(store, &k)) {
            rc = mdb_cursor_del(cursor, 0);
            if (rc == 0)
                subtract(room, file.size);
        }
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int qf_lmdb_files_each(qf_lmdb_store *store, MDB_txn *txn,
                       int (*fn)(const struct qf_hash128 *key,
                                 const struct qf_lmdb_file *file, void *arg),
                       void *arg)
{
    MDB_cursor *cursor;
    MDB_val key, val;
    int rc = mdb_cursor_open(txn, store->files, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    while (rc == 0) {
        struct qf_hash128 k;
        struct qf_lmdb_file file;
        if (read_record(&key, &val, &k, &file))
            rc = fn(&k, &file, arg);
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

/* ---- at open ---- */

static bool hex_digit(char c, uint64_t *digit)
{
    if (c >= '0' && c <= '9')
        *digit = (uint64_t)(c - '0');
    else if (c >= 'a' && c <= 'f')
        *digit = (uint64_t)(c - 'a') + 10;
    else
        return false;
    return true;
}

/* Whether it is a name that we give. */
static bool parse_name(const char *name, struct qf_hash128 *key, bool *part)
{
    uint64_t halves[2] = {0, 0}, digit;
    for (size_t i = 0; i < HEX_DIGITS; i++) {
        if (!hex_digit(name[i], &digit))
            return false;
        halves[i / 16] = halves[i / 16] << 4 | digit;
    }
    *key = (struct qf_hash128){.low = halves[1], .high = halves[0]};
    *part = strcmp(name + HEX_DIGITS, PART_SUFFIX) == 0;
    return *part || name[HEX_DIGITS] == '\0';
}

static bool is_there(const qf_lmdb_store *store, const struct qf_hash128 *key,
                     uint64_t size)
{
    struct qf_lmdb_file_names names;
    struct stat st;
    qf_lmdb_file_names(key, &names);
    return fstatat(store->sealed_fd, names.sealed, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
           S_ISREG(st.st_mode) && (uint64_t)st.st_size == size;
}

struct settle {
    qf_lmdb_store *store;
    uint64_t total;
    bool changed;
};

static int settle_record(struct settle *s, MDB_txn *txn, MDB_cursor *cursor,
                         const MDB_val *key, const MDB_val *val)
{
    struct qf_hash128 k = {0};
    struct qf_lmdb_file file;
    MDB_val use_key = qf_lmdb_key(&k);
    bool good = read_record(key, val, &k, &file);
    int rc;
    if (good && file.state == QF_LMDB_FILE_SEALED &&
        is_there(s->store, &k, file.size)) {
        struct qf_lmdb_use use = {.size = file.size};
        MDB_val v = {.mv_size = sizeof use, .mv_data = &use};
        s->total += file.size;
        if (mdb_get(txn, s->store->uses, &use_key, &v) == 0)
            return 0;
        v = (MDB_val){.mv_size = sizeof use, .mv_data = &use};
        s->changed = true;
        return mdb_put(txn, s->store->uses, &use_key, &v, 0);
    }
    s->changed = true;
    rc = mdb_cursor_del(cursor, 0);
    if (rc == 0 && key->mv_size == sizeof k)
        rc = mdb_del(txn, s->store->uses, &use_key, NULL);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int settle_records(struct settle *s, MDB_txn *txn)
{
    MDB_cursor *cursor;
    MDB_val key, val;
    int rc = mdb_cursor_open(txn, s->store->files, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    while (rc == 0) {
        rc = settle_record(s, txn, cursor, &key, &val);
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

/* Unlinks what has no record. Names that we do not give are none of our business. */
static int settle_names(struct settle *s, MDB_txn *txn)
{
    int fd = openat(s->store->sealed_fd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *list = fd >= 0 ? fdopendir(fd) : NULL;
    int rc = list == NULL ? errno : 0;
    if (list == NULL) {
        if (fd >= 0)
            close(fd);
        return rc;
    }
    for (struct dirent *e; rc == 0 && (e = readdir(list)) != NULL;) {
        struct qf_hash128 key;
        struct qf_lmdb_file file;
        bool part;
        if (!parse_name(e->d_name, &key, &part))
            continue;
        rc = part ? MDB_NOTFOUND : qf_lmdb_file_get(s->store, txn, &key, &file);
        if (rc == MDB_NOTFOUND) {
            unlinkat(s->store->sealed_fd, e->d_name, 0);
            rc = 0;
        }
    }
    closedir(list);
    return rc;
}

static int settle(void *arg)
{
    struct settle *s = arg;
    uint64_t total;
    MDB_txn *txn;
    int rc = mdb_txn_begin(s->store->env, NULL, 0, &txn);
    if (rc != 0)
        return rc;
    rc = settle_records(s, txn);
    if (rc == 0)
        rc = settle_names(s, txn);
    if (rc == 0)
        rc = qf_lmdb_file_bytes_get(s->store, txn, &total);
    if (rc == 0 && total != s->total) {
        s->changed = true;
        rc = qf_lmdb_file_bytes_put(s->store, txn, s->total);
    }
    /* Nothing is written to a full disk without need. */
    if (rc == 0 && s->changed)
        return mdb_txn_commit(txn);
    mdb_txn_abort(txn);
    return rc;
}

int qf_lmdb_files_open(qf_lmdb_store *store)
{
    if (!store->keeps_files)
        return 0;
    mkdirat(store->dir.fd, SEALED_NAME, 0700);
    store->sealed_fd = openat(store->dir.fd, SEALED_NAME,
                              O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (store->sealed_fd < 0) {
        qf_log(QF_LOG_WARN, "cache %s: %s: %s; it keeps no flat files", store->dir.path,
               SEALED_NAME, strerror(errno));
        store->keeps_files = false;
        return 0;
    }
    struct settle s = {.store = store};
    return store->dir.alone ? qf_lmdb_guard(settle, &s) : 0;
}

void qf_lmdb_files_close(qf_lmdb_store *store)
{
    if (store->sealed_fd >= 0)
        close(store->sealed_fd);
    store->sealed_fd = -1;
}
