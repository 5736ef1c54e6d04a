/* SPDX-License-Identifier: Apache-2.0 */
/* Flat files as their users see them. Bytes are written and hashed in the caller's
 * thread; what must be known to all processes (room taken, file there, file gone) is a
 * job of the writer's thread, which alone writes to data.mdb. A file is trusted while
 * its identity is the one that was recorded, for every change through the filesystem
 * changes ctime; a commit therefore waits out the clock's tick, or a change within it
 * could go unseen. Any other identity (a copy, a moved cache) costs one reading of the
 * whole file.
 *
 * The records that a file replaces go after its commit, in transactions of their own,
 * some at a time: the list of pages that one transaction frees must itself find a run
 * of free pages. Whoever dies in between leaves records that nobody needs, and eviction
 * finds those. */
#include <assert.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cache/lmdb_store.h"

#define CLAIM_ATTEMPTS   16u
#define READ_SIZE        (1u << 20)
#define RECORDS_AT_ONCE  64u
#define PAGES_OF_JOB     32u
#define TICK_WAITS_MAX   50u
#define DAMAGE_LINES_MAX 10u

struct qf_store_draft {
    qf_lmdb_store *store;
    struct qf_hash128 key;
    uint64_t origin;
    struct qf_lmdb_file_names names;
    struct qf_lmdb_file file;
    uint64_t off;
    int fd;
    int rc; /* the first failure of an append */
    qf_hash64_stream *hash;
};

static int no_room(int code)
{
    return code == -EDQUOT || code == -EFBIG ? -ENOSPC : code;
}

/* Until a later change must get another ctime: the clock of the filesystem moves in
 * ticks of some milliseconds. A ctime of the future is not waited for. */
static void wait_for_tick(const struct stat *st)
{
    const struct timespec pause = {.tv_nsec = 1000000};
    for (unsigned i = 0; i < TICK_WAITS_MAX; i++) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME_COARSE, &now);
        if (now.tv_sec > st->st_ctim.tv_sec ||
            (now.tv_sec == st->st_ctim.tv_sec && now.tv_nsec > st->st_ctim.tv_nsec))
            return;
        nanosleep(&pause, NULL);
    }
}

/* ---- open ---- */

struct found {
    struct qf_hash128 key;
    struct qf_lmdb_file_names names;
    struct qf_lmdb_file old;
    struct qf_lmdb_file file; /* as it should be */
    struct stat st;
    int fd; /* -1: there is no such file */
    bool damaged;
};

struct lookup {
    qf_lmdb_store *store;
    MDB_txn *txn;
    struct found *found;
};

static int look_up(void *arg)
{
    struct lookup *lookup = arg;
    return qf_lmdb_file_get(lookup->store, lookup->txn, &lookup->found->key,
                            &lookup->found->old);
}

static int find(qf_lmdb_store *store, struct found *found)
{
    struct qf_lmdb_slot *slot = qf_lmdb_read_begin(store);
    if (slot == NULL)
        return -ENOENT;
    struct lookup lookup = {.store = store, .txn = slot->txn, .found = found};
    int rc = qf_lmdb_guard(look_up, &lookup);
    qf_lmdb_read_end(slot);
    if (rc == MDB_CORRUPTED)
        qf_lmdb_fail(store, rc);
    found->file = found->old;
    return rc == 0 && found->old.state == QF_LMDB_FILE_SEALED ? 0 : -ENOENT;
}

/* Whether the record still is what was looked at. */
static int same_record(const struct qf_lmdb_work *work, const struct found *found,
                       bool *same)
{
    struct qf_lmdb_file now;
    int rc = qf_lmdb_file_get(work->store, work->txn, &found->key, &now);
    *same = rc == 0 && memcmp(&now, &found->old, sizeof now) == 0;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int remove_job(struct qf_lmdb_work *work, void *arg)
{
    const struct found *found = arg;
    struct stat st;
    bool same;
    int rc = same_record(work, found, &same);
    if (rc != 0 || !same)
        return rc;
    int dir = work->store->sealed_fd;
    bool missing = fstatat(dir, found->names.sealed, &st, AT_SYMLINK_NOFOLLOW) != 0;
    if (missing ? errno != ENOENT
                : found->fd < 0 || st.st_dev != found->st.st_dev ||
                      st.st_ino != found->st.st_ino)
        return 0; /* another one has come: the next open looks at it */
    if (!missing && unlinkat(dir, found->names.sealed, 0) != 0 && errno != ENOENT)
        return 0;
    return qf_lmdb_file_drop(work->store, work->room, work->txn, &found->key,
                             &found->old);
}

/* Of the jobs of an open none is needed for right bytes: failures are for the next. */
static void run_job(qf_lmdb_store *store,
                    int (*job)(struct qf_lmdb_work *work, void *arg),
                    struct found *found)
{
    int rc = qf_lmdb_writer_run(store, job, found, PAGES_OF_JOB);
    if (rc != 0)
        qf_log(QF_LOG_DEBUG, "cache %s: file %s: its record cannot be changed: %s",
               store->dir.path, found->names.sealed, strerror(-rc));
}

static int report_damage(qf_lmdb_store *store, struct found *found, const char *what)
{
    uint64_t n = 1 + atomic_fetch_add(&store->damaged, 1);
    found->damaged = true;
    if (n <= DAMAGE_LINES_MAX)
        qf_log(QF_LOG_WARN, "cache %s: file %s is damaged (%s); removed%s",
               store->dir.path, found->names.sealed, what,
               n == DAMAGE_LINES_MAX ? " (further ones are only counted)" : "");
    run_job(store, remove_job, found);
    return -ENOENT;
}

static int adopt_job(struct qf_lmdb_work *work, void *arg)
{
    struct found *found = arg;
    bool same;
    int rc = same_record(work, found, &same);
    if (rc != 0 || !same ||
        !qf_lmdb_file_named(work->store, found->fd, found->names.sealed))
        return rc;
    return qf_lmdb_file_put(work->store, work->txn, &found->key, &found->file);
}

static int hash_file(int fd, uint64_t size, uint64_t *digest)
{
    unsigned char *buf = malloc(READ_SIZE);
    qf_hash64_stream *hash = qf_hash64_stream_new();
    int rc = buf == NULL || hash == NULL ? -ENOMEM : 0;
    for (uint64_t off = 0; off < size && rc == 0;) {
        size_t want = size - off < READ_SIZE ? (size_t)(size - off) : READ_SIZE;
        ssize_t n = pread(fd, buf, want, (off_t)off);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            rc = n < 0 ? -errno : -EIO;
            break;
        }
        qf_hash64_stream_add(hash, buf, (size_t)n);
        off += (uint64_t)n;
    }
    if (rc == 0)
        *digest = qf_hash64_stream_value(hash);
    qf_hash64_stream_free(hash);
    free(buf);
    return rc;
}

/* Reads the whole file. One at a time: of several who open it one reads. */
static int verify(qf_lmdb_store *store, struct found *found)
{
    struct stat after;
    uint64_t digest;
    if (fstat(found->fd, &found->st) != 0)
        return -errno;
    wait_for_tick(&found->st);
    int rc = hash_file(found->fd, found->file.size, &digest);
    if (rc == -ENOMEM)
        return rc;
    if (rc != 0)
        return report_damage(store, found, "it cannot be read");
    if (digest != found->file.digest)
        return report_damage(store, found, "its checksum is another");
    qf_lmdb_file_identify(&found->file, &found->st);
    if (fstat(found->fd, &after) != 0 || !qf_lmdb_file_is(&found->file, &after))
        return -ENOENT; /* changed while it was read */
    run_job(store, adopt_job, found);
    return 0;
}

static int check_file(qf_lmdb_store *store, struct found *found, uint64_t size)
{
    if (fstat(found->fd, &found->st) != 0)
        return -errno;
    if (!S_ISREG(found->st.st_mode))
        return report_damage(store, found, "not a regular file");
    if (found->file.size != size || (uint64_t)found->st.st_size != size)
        return report_damage(store, found, "its size is another");
    if (qf_lmdb_file_is(&found->file, &found->st))
        return 0;
    pthread_mutex_lock(&store->verify_lock);
    int rc = find(store, found);
    if (rc == 0 && !qf_lmdb_file_is(&found->file, &found->st))
        rc = verify(store, found);
    pthread_mutex_unlock(&store->verify_lock);
    return rc;
}

int qf_lmdb_file_open(qf_store *base, struct qf_hash128 key, uint64_t size, int *out)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    struct found found = {.key = key};
    if (!store->keeps_files || find(store, &found) != 0)
        return -ENOENT;
    qf_lmdb_file_names(&key, &found.names);
    /* O_NONBLOCK: should it be a fifo. */
    found.fd = openat(store->sealed_fd, found.names.sealed,
                      O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (found.fd < 0) {
        int rc = -errno;
        if (rc == -ENOENT)
            run_job(store, remove_job, &found);
        return rc;
    }
    int rc = check_file(store, &found, size);
    if (rc != 0) {
        close(found.fd);
        return rc;
    }
    if (qf_recency_note(store->recency, key))
        qf_lmdb_writer_nudge(store);
    *out = found.fd;
    return 0;
}

int qf_lmdb_file_digest(qf_store *base, struct qf_hash128 key, uint64_t *out)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    struct found found = {.key = key};
    if (!store->keeps_files || find(store, &found) != 0)
        return -ENOENT;
    *out = found.file.digest;
    return 0;
}

int qf_lmdb_file_verify(qf_lmdb_store *store, struct qf_hash128 key, uint64_t size,
                        bool *damaged)
{
    struct found found = {.key = key};
    *damaged = false;
    if (find(store, &found) != 0 || found.file.size != size)
        return 0; /* gone, or another, meanwhile */
    qf_lmdb_file_names(&key, &found.names);
    found.fd = openat(store->sealed_fd, found.names.sealed,
                      O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
    if (found.fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM))
        return -errno;
    int rc = 0;
    if (found.fd < 0)
        rc = report_damage(store, &found, strerror(errno));
    else if (fstat(found.fd, &found.st) != 0)
        rc = -errno;
    else if (!S_ISREG(found.st.st_mode) || (uint64_t)found.st.st_size != size)
        rc = report_damage(store, &found, "its size is another");
    else {
        pthread_mutex_lock(&store->verify_lock);
        rc = verify(store, &found);
        pthread_mutex_unlock(&store->verify_lock);
    }
    if (found.fd >= 0)
        close(found.fd);
    *damaged = found.damaged;
    return rc == -ENOENT ? 0 : rc;
}

/* ---- begin ---- */

/* Makes the draft's file and takes its lock, or those of one that was left over. */
static int claim_part(qf_store_draft *draft)
{
    const qf_lmdb_store *store = draft->store;
    for (unsigned i = 0; i < CLAIM_ATTEMPTS; i++) {
        draft->fd = openat(store->sealed_fd, draft->names.part,
                           O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
        if (draft->fd < 0)
            return -errno;
        int rc = flock(draft->fd, LOCK_EX | LOCK_NB) == 0 ? 0 : -errno;
        /* Its writer may have finished between the two. */
        bool ours = rc == 0 && qf_lmdb_file_named(store, draft->fd, draft->names.part);
        if (ours && ftruncate(draft->fd, 0) == 0)
            return 0;
        if (ours)
            rc = -errno;
        close(draft->fd);
        draft->fd = -1;
        if (rc != 0)
            return rc == -EWOULDBLOCK ? -EEXIST : rc;
    }
    return -EEXIST;
}

struct begin {
    qf_store_draft *draft;
    int code;
};

static int begin_job(struct qf_lmdb_work *work, void *arg)
{
    struct begin *begin = arg;
    qf_store_draft *draft = begin->draft;
    struct qf_lmdb_file old;
    bool fits;
    begin->code = -EEXIST;
    int rc = qf_lmdb_file_get(work->store, work->txn, &draft->key, &old);
    if (rc == 0 && old.state == QF_LMDB_FILE_SEALED)
        return 0;
    /* A draft whose lock is ours: its writer is dead, or just between the renaming and
     * the commit. */
    if (rc == 0) {
        if (qf_lmdb_file_unlink_dead(work->store, draft->names.sealed) != 0)
            return 0;
        rc = qf_lmdb_file_drop(work->store, work->room, work->txn, &draft->key, &old);
    }
    if (rc == 0 || rc == MDB_NOTFOUND)
        rc = qf_lmdb_room_make_file(work->room, work->store, work->txn,
                                    draft->file.size, &work->evicted, &fits);
    if (rc != 0)
        return rc;
    begin->code = fits ? 0 : -ENOSPC;
    if (!fits) {
        uint64_t data = work->room->high_pages * work->store->page_size;
        if (data > work->store->dir.bytes_limit / 2)
            qf_lmdb_shrink_mark(work->store);
        return 0;
    }
    rc = qf_lmdb_file_put(work->store, work->txn, &draft->key, &draft->file);
    work->room->file_bytes += draft->file.size;
    return rc;
}

static bool is_own_draft(const qf_store_draft *draft, const struct qf_lmdb_file *file)
{
    return file->state == QF_LMDB_FILE_DRAFT && file->dev == draft->file.dev &&
           file->ino == draft->file.ino;
}

/* While the lock is held nobody else takes these names away or puts others there. */
static void unlink_own(const qf_store_draft *draft)
{
    const char *const names[] = {draft->names.part, draft->names.sealed};
    for (unsigned i = 0; i < 2; i++) {
        if (qf_lmdb_file_named(draft->store, draft->fd, names[i]))
            unlinkat(draft->store->sealed_fd, names[i], 0);
    }
}

static int discard_job(struct qf_lmdb_work *work, void *arg)
{
    const qf_store_draft *draft = arg;
    struct qf_lmdb_file file;
    unlink_own(draft);
    int rc = qf_lmdb_file_get(work->store, work->txn, &draft->key, &file);
    if (rc == 0 && is_own_draft(draft, &file))
        rc = qf_lmdb_file_drop(work->store, work->room, work->txn, &draft->key, &file);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static void free_draft(qf_store_draft *draft)
{
    if (draft->fd >= 0)
        close(draft->fd);
    qf_hash64_stream_free(draft->hash);
    free(draft);
}

/* A record that cannot be removed now is found dead by the next who needs room. */
static void discard(qf_store_draft *draft)
{
    if (qf_lmdb_writer_run(draft->store, discard_job, draft, PAGES_OF_JOB) != 0)
        unlink_own(draft);
}

/* Takes the disk's room at once, where the filesystem can. */
static int reserve(const qf_store_draft *draft)
{
    if (draft->file.size == 0 ||
        fallocate(draft->fd, 0, 0, (off_t)draft->file.size) == 0)
        return 0;
    return errno == EOPNOTSUPP || errno == EINTR ? 0 : -errno;
}

static int begin_draft(qf_store_draft *draft)
{
    struct begin begin = {.draft = draft};
    struct stat st;
    int rc = claim_part(draft);
    if (rc != 0)
        return rc;
    if (fstat(draft->fd, &st) != 0) {
        rc = -errno;
    } else {
        qf_lmdb_file_identify(&draft->file, &st);
        rc = qf_lmdb_writer_run(draft->store, begin_job, &begin, PAGES_OF_JOB);
    }
    if (rc == 0)
        rc = begin.code;
    if (rc != 0) {
        unlink_own(draft);
        return rc;
    }
    rc = reserve(draft);
    if (rc != 0)
        discard(draft);
    return rc;
}

int qf_lmdb_file_begin(qf_store *base, struct qf_hash128 key, uint64_t origin,
                       uint64_t size, qf_store_draft **out)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    if (!store->keeps_files || atomic_load(&store->down))
        return -ENOTSUP;
    /* The records that it is made of lie in data.mdb, which never shrinks. */
    if (size > store->dir.bytes_limit / 2)
        return -ENOSPC;
    qf_store_draft *draft = calloc(1, sizeof *draft);
    if (draft == NULL)
        return -ENOMEM;
    draft->store = store;
    draft->key = key;
    draft->origin = origin;
    draft->fd = -1;
    draft->file.state = QF_LMDB_FILE_DRAFT;
    draft->file.size = size;
    qf_lmdb_file_names(&key, &draft->names);
    draft->hash = qf_hash64_stream_new();
    int rc = draft->hash != NULL ? begin_draft(draft) : -ENOMEM;
    if (rc != 0) {
        free_draft(draft);
        return no_room(rc);
    }
    atomic_fetch_add(&store->drafts, 1);
    *out = draft;
    return 0;
}

int qf_lmdb_file_append(qf_store_draft *draft, const void *data, size_t size)
{
    assert(size <= draft->file.size - draft->off);
    for (size_t done = 0; done < size && draft->rc == 0;) {
        ssize_t n = pwrite(draft->fd, (const char *)data + done, size - done,
                           (off_t)(draft->off + done));
        if (n > 0)
            done += (size_t)n;
        else if (n == 0 || errno != EINTR)
            draft->rc = n == 0 ? -ENOSPC : no_room(-errno);
    }
    if (draft->rc == 0)
        qf_hash64_stream_add(draft->hash, data, size);
    draft->off += size;
    return draft->rc;
}

/* ---- commit ---- */

static int commit_job(struct qf_lmdb_work *work, void *arg)
{
    qf_store_draft *draft = arg;
    struct qf_lmdb_file old;
    int rc = qf_lmdb_file_get(work->store, work->txn, &draft->key, &old);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    if (rc == MDB_NOTFOUND)
        work->room->file_bytes += draft->file.size; /* the record was damaged */
    rc = qf_lmdb_file_put(work->store, work->txn, &draft->key, &draft->file);
    if (rc != 0)
        return rc;
    return qf_lmdb_use_begin(work->store, work->txn, &draft->key, ++work->clock,
                             draft->file.size, draft->origin);
}

/* Makes the file last under its name and notes its identity. */
static int seal(qf_store_draft *draft)
{
    const qf_lmdb_store *store = draft->store;
    struct stat st;
    if (fchmod(draft->fd, 0400) != 0 || fsync(draft->fd) != 0 ||
        renameat(store->sealed_fd, draft->names.part, store->sealed_fd,
                 draft->names.sealed) != 0 ||
        fsync(store->sealed_fd) != 0 || fstat(draft->fd, &st) != 0)
        return no_room(-errno);
    if ((uint64_t)st.st_size != draft->file.size)
        return -EIO;
    wait_for_tick(&st);
    draft->file.state = QF_LMDB_FILE_SEALED;
    draft->file.digest = qf_hash64_stream_value(draft->hash);
    qf_lmdb_file_identify(&draft->file, &st);
    return 0;
}

struct records {
    const struct qf_hash128 *keys;
    size_t count;
};

static int drop_records_job(struct qf_lmdb_work *work, void *arg)
{
    const struct records *records = arg;
    int rc = 0;
    for (size_t i = 0; i < records->count && rc == 0; i++) {
        rc = qf_lmdb_remove(work->store, work->txn, &records->keys[i]);
        if (rc == MDB_NOTFOUND || rc == EUCLEAN)
            rc = 0;
    }
    return rc;
}

static void drop_records(qf_lmdb_store *store, const struct qf_hash128 *keys,
                         size_t count)
{
    for (size_t i = 0; i < count; i += RECORDS_AT_ONCE) {
        struct records records = {.keys = keys + i, .count = count - i};
        if (records.count > RECORDS_AT_ONCE)
            records.count = RECORDS_AT_ONCE;
        /* What stays is evicted some day. */
        if (qf_lmdb_writer_run(store, drop_records_job, &records,
                               PAGES_OF_JOB + 2 * RECORDS_AT_ONCE) != 0)
            return;
    }
}

int qf_lmdb_file_commit(qf_store_draft *draft, const struct qf_hash128 *records,
                        size_t record_count)
{
    qf_lmdb_store *store = draft->store;
    assert(draft->off == draft->file.size || draft->rc != 0);
    int rc = draft->rc != 0 ? draft->rc : seal(draft);
    if (rc == 0)
        rc = qf_lmdb_writer_run(store, commit_job, draft, PAGES_OF_JOB);
    if (rc != 0)
        discard(draft);
    free_draft(draft);
    if (rc == 0)
        drop_records(store, records, record_count);
    atomic_fetch_sub(&store->drafts, 1);
    return rc;
}

void qf_lmdb_file_abort(qf_store_draft *draft)
{
    qf_lmdb_store *store = draft->store;
    discard(draft);
    free_draft(draft);
    atomic_fetch_sub(&store->drafts, 1);
}
