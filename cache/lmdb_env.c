/* SPDX-License-Identifier: Apache-2.0 */
/* The environment is opened with MDB_NOSYNC: what a power cut may lose is a cache, the
 * trees are checked before the next open and values have checksums. MDB_NOTLS lets a
 * read transaction move between threads. The map is as large as the limit, so LMDB
 * itself never lets the file grow past it. */
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "cache/lmdb_store.h"

#define IDENTITY_KEY    "quantfs"
#define IDENTITY_MAGIC  "quantfs cache 1" /* sixteen bytes with the NUL */
#define FORMAT_VERSION  3u
#define CLOCK_KEY       "clock"
#define FILE_BYTES_KEY  "file bytes"
#define FREE_LIST       0u /* LMDB's number for it */
#define READERS_MAX     1022u
#define LOCK_FILE_SIZE  ((READERS_MAX + 2) * 64)
#define LOCK_PAGE_SIZE  ((size_t)4096)
#define READERS_WAIT_MS 50
#define PAGE_HEAD       16u
#define LOOKED_AT_MAX   ((size_t)64 << 20)

static _Thread_local jmp_buf *escape;

/* LMDB calls abort() when this returns. */
static void on_assert(MDB_env *env, const char *text)
{
    (void)env;
    qf_log(QF_LOG_ERROR, "cache: LMDB: %s", text);
    if (escape != NULL)
        longjmp(*escape, 1);
}

int qf_lmdb_guard(int (*fn)(void *arg), void *arg)
{
    jmp_buf here;
    jmp_buf *volatile outer = escape;
    volatile int rc = MDB_CORRUPTED;
    escape = &here;
    if (setjmp(here) == 0)
        rc = fn(arg);
    escape = outer;
    return rc;
}

/* Pages that were looked at count as the process's until the kernel needs memory. They
 * are the page cache's: to have them again costs a fault, and no reading. */
void qf_lmdb_trim_map(qf_lmdb_store *store, size_t size)
{
    if (atomic_fetch_add(&store->looked_at, size) + size < LOOKED_AT_MAX)
        return;
    if (atomic_exchange(&store->looked_at, 0) >= LOOKED_AT_MAX)
        (void)madvise((void *)(uintptr_t)store->map, store->dir.bytes_limit,
                      MADV_DONTNEED);
}

void qf_lmdb_fail(qf_lmdb_store *store, int rc)
{
    if (atomic_exchange(&store->down, true))
        return;
    bool damage = rc == MDB_CORRUPTED || rc == MDB_PAGE_NOTFOUND || rc == MDB_PANIC ||
                  rc == MDB_INVALID;
    if (damage)
        qf_lmdb_dir_suspect(&store->dir);
    qf_log(QF_LOG_ERROR, "cache %s: LMDB: %s; not used until the next start%s",
           store->dir.path, mdb_strerror(rc), damage ? ", which begins it anew" : "");
}

static MDB_val text_key(const char *text)
{
    return (MDB_val){.mv_size = strlen(text), .mv_data = (void *)(uintptr_t)text};
}

static int get_number(qf_lmdb_store *store, MDB_txn *txn, const char *name,
                      uint64_t *number)
{
    MDB_val key = text_key(name);
    MDB_val val;
    *number = 0;
    int rc = mdb_get(txn, store->main, &key, &val);
    if (rc == 0 && val.mv_size == sizeof *number)
        *number = qf_load_u64(val.mv_data);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int put_number(qf_lmdb_store *store, MDB_txn *txn, const char *name,
                      uint64_t number)
{
    MDB_val key = text_key(name);
    MDB_val val = {.mv_size = sizeof number, .mv_data = &number};
    return mdb_put(txn, store->main, &key, &val, 0);
}

int qf_lmdb_clock_get(qf_lmdb_store *store, MDB_txn *txn, uint64_t *clock)
{
    return get_number(store, txn, CLOCK_KEY, clock);
}

int qf_lmdb_clock_put(qf_lmdb_store *store, MDB_txn *txn, uint64_t clock)
{
    return put_number(store, txn, CLOCK_KEY, clock);
}

int qf_lmdb_file_bytes_get(qf_lmdb_store *store, MDB_txn *txn, uint64_t *bytes)
{
    *bytes = 0;
    return store->keeps_files ? get_number(store, txn, FILE_BYTES_KEY, bytes) : 0;
}

int qf_lmdb_file_bytes_put(qf_lmdb_store *store, MDB_txn *txn, uint64_t bytes)
{
    return put_number(store, txn, FILE_BYTES_KEY, bytes);
}

int qf_lmdb_used_pages(qf_lmdb_store *store, MDB_txn *txn, uint64_t *pages,
                       uint64_t *use_pages)
{
    const MDB_dbi dbis[] = {FREE_LIST,   store->main,    store->values,
                            store->uses, store->origins, store->files};
    *pages = 2;
    for (unsigned i = 0; i < (store->keeps_files ? 6u : 5u); i++) {
        MDB_stat st;
        int rc = mdb_stat(txn, dbis[i], &st);
        if (rc != 0)
            return rc;
        uint64_t tree_pages = st.ms_branch_pages + st.ms_leaf_pages;
        if (dbis[i] == store->uses)
            *use_pages = tree_pages;
        *pages += tree_pages + st.ms_overflow_pages;
    }
    return 0;
}

static int note_oldest(const char *line, void *arg)
{
    uint64_t *oldest = arg;
    unsigned long long txn;
    /* "pid thread txn", or "-" in place of txn. */
    if (sscanf(line, "%*d %*x %llu", &txn) == 1 && txn < *oldest)
        *oldest = txn;
    return 0;
}

bool qf_lmdb_readers_pass(qf_lmdb_store *store)
{
    const struct timespec pause = {.tv_nsec = READERS_WAIT_MS * 1000000L / 20};
    MDB_envinfo info;
    int dead;
    if (mdb_reader_check(store->env, &dead) != 0 ||
        mdb_env_info(store->env, &info) != 0)
        return false;
    /* By the clock: on a busy machine every pause is far longer. */
    int64_t end = qf_clock_ms() + READERS_WAIT_MS;
    for (bool last = false;;) {
        uint64_t oldest = UINT64_MAX;
        if (mdb_reader_list(store->env, note_oldest, &oldest) < 0)
            return false;
        if (oldest >= info.me_last_txnid)
            return true;
        if (last)
            return false;
        nanosleep(&pause, NULL);
        last = qf_clock_ms() >= end;
    }
}

/* A page fault in a hole of the lock file would be a SIGBUS on a full disk. Mapped
 * here, before LMDB opens it: closing a descriptor later would drop LMDB's own locks on
 * it. */
static int reserve_lock_file(qf_lmdb_store *store, struct qf_err *err)
{
    int flags = O_RDWR | O_CLOEXEC | (store->dir.alone ? O_CREAT : 0);
    int fd = openat(store->dir.fd, "lock.mdb", flags, 0600);
    if (fd < 0)
        return store->dir.alone
                   ? qf_err_set(err, -errno, "lock.mdb: %s", strerror(errno))
                   : 0;
    int rc = store->dir.alone ? posix_fallocate(fd, 0, LOCK_FILE_SIZE) : 0;
    void *page =
        rc == 0 ? mmap(NULL, LOCK_PAGE_SIZE, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    store->lock_page = page != MAP_FAILED ? page : NULL;
    close(fd);
    return rc == 0 ? 0 : qf_err_set(err, -rc, "lock.mdb: %s", strerror(rc));
}

void qf_lmdb_kick(const qf_lmdb_store *store)
{
    for (size_t off = 0; store->lock_page != NULL && off < LOCK_PAGE_SIZE; off += 4)
        syscall(SYS_futex, (char *)store->lock_page + off, FUTEX_WAKE, INT_MAX, NULL,
                NULL, 0);
}

static int lmdb_error(int rc, const char *what, struct qf_err *err)
{
    int code = rc > 0 ? -rc : rc == MDB_MAP_FULL ? -ENOSPC : -EBADMSG;
    return qf_err_set(err, code, "%s: %s", what, mdb_strerror(rc));
}

static int check_identity(const MDB_val *val, struct qf_err *err)
{
    const char *p = val->mv_data;
    if (val->mv_size < 20 || memcmp(p, IDENTITY_MAGIC, 16) != 0)
        return qf_err_set(err, -EBADMSG, "not a cache of quantfs");
    uint32_t version = qf_load_u32(p + 16);
    if (version != FORMAT_VERSION)
        return qf_err_set(err, -EBADMSG,
                          "cache format version %u; this program knows version %u",
                          version, FORMAT_VERSION);
    return 0;
}

/* The record fills a page of its own, whose head says its number: that tells where the
 * map begins, which LMDB does not. */
static int read_identity(qf_lmdb_store *store, MDB_txn *txn, struct qf_err *err)
{
    MDB_val key = text_key(IDENTITY_KEY);
    MDB_val val;
    int rc = mdb_get(txn, store->main, &key, &val);
    if (rc != 0)
        return lmdb_error(rc, "its identity", err);
    rc = check_identity(&val, err);
    if (rc != 0)
        return rc;
    const char *page = (const char *)val.mv_data - PAGE_HEAD;
    if ((uintptr_t)page % store->page_size != 0)
        return qf_err_set(err, -EBADMSG, "not a cache of quantfs");
    store->map = page - qf_load_u64(page) * store->page_size;
    return 0;
}

static int write_identity(qf_lmdb_store *store, MDB_txn *txn)
{
    MDB_val key = text_key(IDENTITY_KEY);
    MDB_val val = {.mv_size = qf_lmdb_size_min(store)};
    int rc = mdb_put(txn, store->main, &key, &val, MDB_NOOVERWRITE | MDB_RESERVE);
    if (rc != 0)
        return rc;
    memset(val.mv_data, 0, val.mv_size);
    memcpy(val.mv_data, IDENTITY_MAGIC, 16);
    qf_store_u32((char *)val.mv_data + 16, FORMAT_VERSION);
    return 0;
}

static bool is_ours(qf_lmdb_store *store, MDB_txn *txn)
{
    MDB_val key = text_key(IDENTITY_KEY);
    MDB_val val;
    return mdb_get(txn, store->main, &key, &val) == 0 &&
           check_identity(&val, NULL) == 0;
}

static int open_databases(qf_lmdb_store *store, MDB_txn *txn)
{
    MDB_stat st;
    int rc = mdb_dbi_open(txn, NULL, 0, &store->main);
    if (rc == 0)
        rc = mdb_stat(txn, store->main, &st);
    if (rc == 0) {
        store->page_size = st.ms_psize;
        if (st.ms_entries == 0)
            rc = write_identity(store, txn);
        else if (!is_ours(store, txn))
            return 0; /* read_identity will say what it is */
    }
    if (rc == 0)
        rc = mdb_dbi_open(txn, "values", MDB_CREATE, &store->values);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "uses", MDB_CREATE, &store->uses);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "origins", MDB_CREATE, &store->origins);
    if (rc == 0)
        rc = mdb_dbi_open(txn, "files", MDB_CREATE, &store->files);
    store->keeps_files = rc == 0;
    return rc;
}

struct open_context {
    qf_lmdb_store *store;
    struct qf_err *err;
    int code;
};

static int prepare(void *arg)
{
    struct open_context *ctx = arg;
    qf_lmdb_store *store = ctx->store;
    MDB_txn *txn = NULL;
    int dead;
    int rc = mdb_reader_check(store->env, &dead);
    if (rc == 0)
        rc = mdb_txn_begin(store->env, NULL, 0, &txn);
    if (rc == 0)
        rc = open_databases(store, txn);
    if (rc == 0)
        rc = mdb_txn_commit(txn);
    else if (txn != NULL)
        mdb_txn_abort(txn);
    if (rc == 0)
        rc = mdb_txn_begin(store->env, NULL, MDB_RDONLY, &txn);
    if (rc != 0) {
        ctx->code = lmdb_error(rc, "LMDB", ctx->err);
        return 0;
    }
    ctx->code = read_identity(store, txn, ctx->err);
    mdb_txn_abort(txn);
    return 0;
}

int qf_lmdb_env_open(qf_lmdb_store *store, struct qf_err *err)
{
    int rc = reserve_lock_file(store, err);
    if (rc != 0)
        return rc;
    rc = mdb_env_create(&store->env);
    if (rc != 0)
        return lmdb_error(rc, "LMDB", err);
    rc = mdb_env_set_assert(store->env, on_assert);
    if (rc == 0)
        rc = mdb_env_set_mapsize(store->env, store->dir.bytes_limit);
    if (rc == 0)
        rc = mdb_env_set_maxdbs(store->env, 5);
    if (rc == 0)
        rc = mdb_env_set_maxreaders(store->env, READERS_MAX);
    if (rc == 0)
        rc = mdb_env_open(store->env, store->dir.path, MDB_NOSYNC | MDB_NOTLS, 0600);
    if (rc != 0) {
        rc = lmdb_error(rc, "LMDB", err);
    } else {
        struct open_context ctx = {.store = store, .err = err};
        rc = qf_lmdb_guard(prepare, &ctx);
        rc = rc != 0 ? lmdb_error(rc, "LMDB", err) : ctx.code;
    }
    if (rc != 0)
        qf_lmdb_env_close(store);
    return rc;
}

void qf_lmdb_env_close(qf_lmdb_store *store)
{
    for (unsigned i = 0; i < QF_CACHE_HOLDS_MAX; i++) {
        if (store->slots[i].txn != NULL)
            mdb_txn_abort(store->slots[i].txn);
        store->slots[i].txn = NULL;
    }
    mdb_env_close(store->env);
    if (store->lock_page != NULL)
        munmap(store->lock_page, LOCK_PAGE_SIZE);
    store->lock_page = NULL;
    store->env = NULL;
}
