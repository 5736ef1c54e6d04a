/* SPDX-License-Identifier: Apache-2.0 */
/* LMDB gives pages back to itself, never to the filesystem. So a cache that values have
 * filled would have no room for flat files for ever, and one that was cleared would lie
 * there as large as it was. Whoever opens it alone may copy what is in use to a new
 * data.mdb and rename that over the old one; a crash before the rename leaves the old
 * one, with a copy that the next start removes, and the copy is checked like any other
 * file before it becomes the cache.
 *
 * Copy and original together have to stay within the limit. Therefore the pages that
 * the newest snapshot does not use, of which nobody else can be reading an older one,
 * are first taken out of the original (holes). */
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cache/lmdb_check.h"
#include "cache/lmdb_store.h"

#define DATA_NAME      "data.mdb"
#define COPY_NAME      "data.mdb.compact"
#define MARK_NAME      "data.mdb.shrink"
#define FREE_LIST      0u
#define FREE_BYTES_MIN (UINT64_C(8) << 20)  /* not worth it for less */
#define COPY_BYTES_MAX (UINT64_C(16) << 30) /* a mount should not start for minutes */
#define EVICT_AT_ONCE  64u

struct shrink {
    qf_lmdb_store *store;
    struct qf_lmdb_room room;
    uint64_t used;   /* pages */
    uint64_t target; /* used pages to be left at most */
    uint64_t evicted;
    uint64_t run_first; /* pages to be punched, not done yet */
    uint64_t run_count;
    int fd;
};

void qf_lmdb_shrink_mark(const qf_lmdb_store *store)
{
    int fd = openat(store->dir.fd, MARK_NAME, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (fd >= 0)
        close(fd);
}

static bool is_marked(const qf_lmdb_store *store)
{
    return faccessat(store->dir.fd, MARK_NAME, F_OK, 0) == 0;
}

/* ---- evict ---- */

static int measure(struct shrink *s, MDB_txn *txn)
{
    uint64_t ignored;
    int rc = qf_lmdb_room_enter(&s->room, s->store, txn);
    return rc == 0 ? qf_lmdb_used_pages(s->store, txn, &s->used, &ignored) : rc;
}

static int measure_guarded(void *arg)
{
    struct shrink *s = arg;
    MDB_txn *txn;
    int rc = mdb_txn_begin(s->store->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return rc;
    rc = measure(s, txn);
    mdb_txn_abort(txn);
    return rc;
}

static int evict_in(struct shrink *s, MDB_txn *txn, uint64_t *evicted)
{
    uint64_t clock, ignored, before = 0;
    int rc = measure(s, txn);
    uint64_t file_bytes = s->room.file_bytes;
    if (rc == 0)
        rc = qf_lmdb_clock_get(s->store, txn, &clock);
    for (unsigned i = 0; i < EVICT_AT_ONCE && rc == 0 && s->used > s->target; i++) {
        before = *evicted;
        rc = qf_lmdb_room_evict(&s->room, s->store, txn, 1, &clock, evicted);
        if (rc == 0)
            rc = qf_lmdb_used_pages(s->store, txn, &s->used, &ignored);
        if (*evicted == before && s->room.candidate_count == 0)
            break;
    }
    if (rc == 0)
        rc = qf_lmdb_clock_put(s->store, txn, clock + 1);
    if (rc == 0 && s->room.file_bytes != file_bytes)
        rc = qf_lmdb_file_bytes_put(s->store, txn, s->room.file_bytes);
    return rc;
}

static int evict_guarded(void *arg)
{
    struct shrink *s = arg;
    MDB_txn *txn;
    uint64_t evicted = 1;
    int rc = 0;
    while (rc == 0 && evicted > 0 && s->used > s->target) {
        evicted = 0;
        rc = mdb_txn_begin(s->store->env, NULL, 0, &txn);
        if (rc != 0)
            return rc;
        rc = evict_in(s, txn, &evicted);
        if (rc == 0)
            rc = mdb_txn_commit(txn);
        else
            mdb_txn_abort(txn);
        s->evicted += evicted;
    }
    return rc;
}

/* ---- holes ---- */

static int punch_run(struct shrink *s)
{
    uint64_t size = s->store->page_size;
    if (s->run_count > 0 &&
        fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(s->run_first * size), (off_t)(s->run_count * size)) != 0)
        return errno;
    s->run_count = 0;
    return 0;
}

/* A list of the free list: its length, then numbers of pages, falling. */
static int punch_list(struct shrink *s, const MDB_val *val)
{
    const char *list = val->mv_data;
    uint64_t count = qf_load_u64(list);
    int rc = 0;
    for (uint64_t i = 1; i <= count && i < val->mv_size / 8 && rc == 0; i++) {
        uint64_t page = qf_load_u64(list + 8 * i);
        if (s->run_count == 0 || page + 1 != s->run_first) {
            rc = punch_run(s);
            s->run_first = page + 1;
        }
        s->run_first--;
        s->run_count++;
    }
    return rc;
}

static int punch_guarded(void *arg)
{
    struct shrink *s = arg;
    MDB_txn *txn;
    MDB_cursor *cursor;
    MDB_val key, val;
    int rc = mdb_env_sync(s->store->env, 1); /* the snapshot has to last first */
    if (rc == 0)
        rc = mdb_env_get_fd(s->store->env, &s->fd);
    if (rc == 0)
        rc = mdb_txn_begin(s->store->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_open(txn, FREE_LIST, &cursor);
    if (rc == 0) {
        rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
        while (rc == 0) {
            rc = punch_list(s, &val);
            if (rc == 0)
                rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT);
        }
        mdb_cursor_close(cursor);
    }
    mdb_txn_abort(txn);
    return rc == MDB_NOTFOUND ? punch_run(s) : rc;
}

/* ---- copy ---- */

static int copy_guarded(void *arg)
{
    struct shrink *s = arg;
    return mdb_env_copyfd2(s->store->env, s->fd, MDB_CP_COMPACT);
}

static int check_copy(struct shrink *s)
{
    struct qf_err what = {""};
    if (fsync(s->fd) != 0)
        return errno;
    if (qf_lmdb_check(s->fd, NULL, &what) == 0)
        return 0;
    qf_log(QF_LOG_WARN, "cache %s: %s: %s; not used", s->store->dir.path, COPY_NAME,
           what.text);
    return EIO;
}

static int make_copy(struct shrink *s)
{
    int dir = s->store->dir.fd;
    s->fd = openat(dir, COPY_NAME, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (s->fd < 0)
        return errno;
    int rc = qf_lmdb_guard(copy_guarded, s);
    if (rc == 0)
        rc = check_copy(s);
    close(s->fd);
    return rc;
}

/* ---- all of it ---- */

static uint64_t target_of(const struct shrink *s, bool marked)
{
    uint64_t limit = s->store->dir.bytes_limit / s->store->page_size;
    uint64_t files = s->room.file_bytes / s->store->page_size;
    uint64_t target = files < limit ? (limit - files) / 2 : 0;
    if (marked) /* files shall have half */
        target = target > s->room.slack_min ? target - s->room.slack_min : 0;
    return target;
}

static bool wanted(struct shrink *s, bool compact, bool *marked)
{
    uint64_t size = s->store->page_size;
    uint64_t high = s->room.high_pages;
    uint64_t spare = s->used < high ? high - s->used : 0;
    *marked = is_marked(s->store);
    s->target = compact ? UINT64_MAX : target_of(s, *marked);
    bool large = spare > high / 2 && spare * size >= FREE_BYTES_MIN;
    if (!compact && !*marked && !large)
        return false;
    uint64_t copied = s->used < s->target ? s->used : s->target;
    if (compact || copied * size <= COPY_BYTES_MAX)
        return spare > 0 || s->used > s->target;
    qf_log(QF_LOG_INFO,
           "cache %s: %s could be made smaller, but that would take long; quantfs "
           "cache compact does it while no mount uses the cache",
           s->store->dir.path, DATA_NAME);
    return false;
}

static int run(struct shrink *s, bool compact, bool *done)
{
    bool marked;
    int rc = qf_lmdb_guard(measure_guarded, s);
    if (rc != 0 || !wanted(s, compact, &marked))
        return rc;
    uint64_t size = s->store->page_size;
    uint64_t before = s->room.high_pages * size;
    s->room.values_only = true;
    rc = qf_lmdb_guard(evict_guarded, s);
    if (rc != 0 || s->used > s->target) /* pins */
        return rc;
    if (before + s->used * size + s->room.file_bytes > s->store->dir.bytes_limit)
        rc = qf_lmdb_guard(punch_guarded, s);
    if (rc == 0 || compact)
        rc = make_copy(s);
    if (rc != 0)
        return rc;
    qf_lmdb_env_close(s->store);
    *done = true;
    if (renameat(s->store->dir.fd, COPY_NAME, s->store->dir.fd, DATA_NAME) != 0 ||
        fsync(s->store->dir.fd) != 0)
        return errno;
    qf_log(QF_LOG_INFO,
           "cache %s: %s made smaller: %llu bytes in use of %llu; %llu values evicted",
           s->store->dir.path, DATA_NAME, (unsigned long long)(s->used * size),
           (unsigned long long)before, (unsigned long long)s->evicted);
    if (!compact)
        unlinkat(s->store->dir.fd, MARK_NAME, 0);
    return 0;
}

int qf_lmdb_shrink(qf_lmdb_store *store, bool compact, struct qf_err *err)
{
    struct shrink s = {.store = store};
    bool done = false;
    unlinkat(store->dir.fd, COPY_NAME, 0);
    int rc = qf_lmdb_room_init(&s.room, store) == 0 ? run(&s, compact, &done) : ENOMEM;
    qf_lmdb_room_fini(&s.room);
    if (rc != 0) {
        unlinkat(store->dir.fd, COPY_NAME, 0);
        qf_log(QF_LOG_WARN, "cache %s: %s cannot be made smaller: %s", store->dir.path,
               DATA_NAME, mdb_strerror(rc));
    }
    return done ? qf_lmdb_env_open(store, err) : 0;
}
