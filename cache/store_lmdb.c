/* SPDX-License-Identifier: Apache-2.0 */
/* The read side. A get takes one of a fixed set of read transactions, renews it and
 * points into the map; the transaction pins the pages until release. No lock is shared
 * by readers: a slot is claimed by one atomic exchange, each thread beginning at a
 * place of its own. What a value says of itself is compared with its key and its size
 * at every get, its checksum at the first one of this process. */
#include "cache/store.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "base/log.h"
#include "cache/lmdb_store.h"
#include "cache/record.h"

#define VALUE_SIZE_TYPICAL (UINT64_C(128) << 10)
#define DAMAGE_LINES_MAX   10u

static struct qf_lmdb_slot *claim_slot(qf_lmdb_store *store)
{
    static _Atomic unsigned next_start;
    static _Thread_local unsigned start = UINT32_MAX;
    if (start == UINT32_MAX)
        start = atomic_fetch_add(&next_start, 1) % QF_CACHE_HOLDS_MAX;
    for (unsigned i = 0; i < QF_CACHE_HOLDS_MAX; i++) {
        struct qf_lmdb_slot *slot = &store->slots[(start + i) % QF_CACHE_HOLDS_MAX];
        if (!atomic_load_explicit(&slot->busy, memory_order_relaxed) &&
            !atomic_exchange_explicit(&slot->busy, true, memory_order_acquire))
            return slot;
    }
    return NULL;
}

void qf_lmdb_read_end(struct qf_lmdb_slot *slot)
{
    if (slot->txn != NULL)
        mdb_txn_reset(slot->txn);
    atomic_store_explicit(&slot->busy, false, memory_order_release);
}

struct qf_lmdb_slot *qf_lmdb_read_begin(qf_lmdb_store *store)
{
    if (atomic_load_explicit(&store->down, memory_order_relaxed))
        return NULL;
    struct qf_lmdb_slot *slot = claim_slot(store);
    if (slot == NULL)
        return NULL;
    if (slot->txn != NULL) {
        if (mdb_txn_renew(slot->txn) == 0)
            return slot;
        mdb_txn_abort(slot->txn);
        slot->txn = NULL;
    }
    if (mdb_txn_begin(store->env, NULL, MDB_RDONLY, &slot->txn) == 0)
        return slot;
    slot->txn = NULL;
    qf_lmdb_read_end(slot);
    return NULL;
}

struct lookup {
    qf_lmdb_store *store;
    MDB_txn *txn;
    struct qf_hash128 key;
    MDB_val val;
};

static int look_up(void *arg)
{
    struct lookup *lookup = arg;
    MDB_val key = qf_lmdb_key(&lookup->key);
    return mdb_get(lookup->txn, lookup->store->values, &key, &lookup->val);
}

/* What is true of one write of one value at one place in the file. */
static uint64_t mark_of(const qf_lmdb_store *store, struct qf_hash128 key,
                        const struct qf_record *record)
{
    const struct {
        struct qf_hash128 key;
        uint64_t serial;
        uint64_t checksum;
        uint64_t off;
    } what = {key, record->serial, record->checksum,
              (uint64_t)((uintptr_t)record->data - (uintptr_t)store->map)};
    return qf_hash64(&what, sizeof what);
}

static bool parse_value(const qf_lmdb_store *store, struct qf_hash128 key,
                        const MDB_val *val, struct qf_record *record)
{
    /* Values have pages of their own; lengths beyond any value are not followed. */
    size_t size_min = qf_lmdb_size_min(store);
    uintptr_t off = (uintptr_t)val->mv_data - (uintptr_t)store->map;
    return off % store->page_size == store->page_size - size_min &&
           val->mv_size <= qf_record_stored_size(QF_STORED_SIZE_MAX, size_min) &&
           qf_record_parse(val->mv_data, val->mv_size, size_min, key, record);
}

bool qf_lmdb_value_whole(const qf_lmdb_store *store, const struct qf_hash128 *key,
                         const MDB_val *val)
{
    struct qf_record record;
    return parse_value(store, *key, val, &record) && qf_record_verify(&record);
}

static bool check_value(qf_lmdb_store *store, const struct lookup *found,
                        struct qf_record *record)
{
    if (!parse_value(store, found->key, &found->val, record))
        return false;
    uint64_t mark = mark_of(store, found->key, record);
    if (qf_verified_has(store->verified, mark))
        return true;
    if (!qf_record_verify(record))
        return false;
    qf_verified_add(store->verified, mark);
    return true;
}

static void report_damage(qf_lmdb_store *store, struct qf_hash128 key)
{
    uint64_t n = 1 + atomic_fetch_add(&store->damaged, 1);
    qf_lmdb_writer_remove(store, key);
    if (n <= DAMAGE_LINES_MAX)
        qf_log(QF_LOG_WARN, "cache %s: value %016llx%016llx is damaged; removed%s",
               store->dir.path, (unsigned long long)key.high,
               (unsigned long long)key.low,
               n == DAMAGE_LINES_MAX ? " (further ones are only counted)" : "");
}

static bool lmdb_get(qf_store *base, struct qf_hash128 key, struct qf_store_value *out)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    struct qf_lmdb_slot *slot = qf_lmdb_read_begin(store);
    struct qf_record record;
    bool hit = false;
    if (slot != NULL) {
        struct lookup lookup = {.store = store, .txn = slot->txn, .key = key};
        int rc = qf_lmdb_guard(look_up, &lookup);
        hit = rc == 0 && check_value(store, &lookup, &record);
        if (rc == 0 && !hit)
            report_damage(store, key);
        if (rc == MDB_CORRUPTED)
            qf_lmdb_fail(store, rc);
    }
    if (!hit) {
        if (slot != NULL)
            qf_lmdb_read_end(slot);
        atomic_fetch_add_explicit(&store->misses, 1, memory_order_relaxed);
        return false;
    }
    if (qf_recency_note(store->recency, key))
        qf_lmdb_writer_nudge(store);
    atomic_fetch_add_explicit(&store->hits, 1, memory_order_relaxed);
    *out = (struct qf_store_value){record.data, record.size, slot};
    return true;
}

static void lmdb_release(qf_store *base, struct qf_store_value *value)
{
    assert(value->hold != NULL);
    qf_lmdb_read_end(value->hold);
    qf_lmdb_trim_map((qf_lmdb_store *)base, value->size);
    *value = (struct qf_store_value){0};
}

static void lmdb_put(qf_store *base, struct qf_hash128 key, uint64_t origin,
                     const void *data, size_t size, qf_store_done *done, void *arg)
{
    qf_lmdb_writer_put((qf_lmdb_store *)base, key, origin, data, size, done, arg);
}

static void lmdb_flush(qf_store *base)
{
    qf_lmdb_writer_flush((qf_lmdb_store *)base);
}

static int count_file(const struct qf_hash128 *key, const struct qf_lmdb_file *file,
                      void *arg)
{
    struct qf_store_stats *out = arg;
    (void)key;
    out->files += file->state == QF_LMDB_FILE_SEALED;
    out->file_bytes += file->size;
    return 0;
}

static void lmdb_stats(qf_store *base, struct qf_store_stats *out)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    *out = (struct qf_store_stats){
        .hits = atomic_load(&store->hits),
        .misses = atomic_load(&store->misses),
        .puts = atomic_load(&store->puts),
        .puts_dropped = atomic_load(&store->puts_dropped),
        .evictions = atomic_load(&store->evictions),
        .damaged = atomic_load(&store->damaged),
        .bytes_limit = store->bytes_limit,
    };
    struct qf_lmdb_slot *slot = qf_lmdb_read_begin(store);
    if (slot == NULL)
        return;
    MDB_stat st;
    uint64_t pages, ignored;
    if (mdb_stat(slot->txn, store->values, &st) == 0)
        out->entries = st.ms_entries;
    if (qf_lmdb_used_pages(store, slot->txn, &pages, &ignored) == 0)
        out->bytes = pages * store->page_size;
    if (store->keeps_files) {
        int rc = qf_lmdb_files_each(store, slot->txn, count_file, out);
        if (rc != 0)
            out->files = out->file_bytes = 0;
        out->bytes += out->file_bytes;
    }
    qf_lmdb_read_end(slot);
}

static int do_nothing(struct qf_lmdb_work *work, void *arg)
{
    (void)work;
    (void)arg;
    return 0;
}

/* The limit may be lower than it was: any transaction makes files fit it. */
static void fit_limit(qf_lmdb_store *store)
{
    struct qf_store_stats stats;
    lmdb_stats(&store->base, &stats);
    if (stats.file_bytes == 0)
        return;
    int rc = qf_lmdb_writer_run(store, do_nothing, NULL, 0);
    if (rc != 0)
        qf_log(QF_LOG_WARN, "cache %s: its files cannot be fitted to its limit: %s",
               store->dir.path, strerror(-rc));
}

static void lmdb_set_limits(qf_store *base, uint64_t bytes_limit, uint64_t min_free)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    uint64_t most = store->dir.bytes_limit;
    if (bytes_limit > most)
        qf_log(QF_LOG_WARN,
               "cache %s: a limit of %" PRIu64 " bytes is taken by the next mount; "
               "until then it is %" PRIu64,
               store->dir.path, bytes_limit, most);
    if (bytes_limit == 0 || bytes_limit > most)
        bytes_limit = most;
    else if (bytes_limit < QF_CACHE_SIZE_MIN)
        bytes_limit = QF_CACHE_SIZE_MIN;
    store->bytes_limit = bytes_limit;
    store->min_free = min_free;
    fit_limit(store);
}

static void free_store(qf_lmdb_store *store)
{
    qf_lmdb_files_close(store);
    qf_lmdb_dir_close(&store->dir);
    qf_verified_free(store->verified);
    qf_recency_free(store->recency);
    qf_lmdb_names_free(store->names);
    pthread_mutex_destroy(&store->verify_lock);
    free(store);
}

static void lmdb_close(qf_store *base)
{
    qf_lmdb_store *store = (qf_lmdb_store *)base;
    assert(atomic_load(&store->drafts) == 0);
    qf_lmdb_writer_stop(store);
    for (unsigned i = 0; i < QF_CACHE_HOLDS_MAX; i++)
        assert(!atomic_load(&store->slots[i].busy));
    if (!atomic_load(&store->down)) {
        int rc = mdb_env_sync(store->env, 1);
        if (rc != 0)
            qf_log(QF_LOG_WARN, "cache %s: cannot be synced: %s", store->dir.path,
                   mdb_strerror(rc));
    }
    qf_lmdb_env_close(store);
    free_store(store);
}

static const struct qf_store_ops lmdb_ops = {
    .name = "lmdb",
    .get = lmdb_get,
    .release = lmdb_release,
    .put = lmdb_put,
    .flush = lmdb_flush,
    .file_open = qf_lmdb_file_open,
    .file_digest = qf_lmdb_file_digest,
    .file_begin = qf_lmdb_file_begin,
    .file_append = qf_lmdb_file_append,
    .file_commit = qf_lmdb_file_commit,
    .file_abort = qf_lmdb_file_abort,
    .origin = qf_lmdb_origin,
    .set_limits = lmdb_set_limits,
    .stats = lmdb_stats,
    .close = lmdb_close,
};

/* A file that turns out to be unusable is set aside once, if nobody else uses it. */
static int open_env(qf_lmdb_store *store, struct qf_err *err)
{
    struct qf_err what;
    int rc = qf_lmdb_env_open(store, &what);
    if (rc == -EBADMSG && store->dir.alone && !store->dir.existing) {
        rc = qf_lmdb_dir_set_aside(&store->dir, what.text, err);
        if (rc != 0)
            return rc;
        rc = qf_lmdb_env_open(store, &what);
    }
    return rc == 0 ? 0 : qf_err_set(err, rc, "%s", what.text);
}

static int shrink(qf_lmdb_store *store, bool compact, struct qf_err *err)
{
    if (!store->dir.alone)
        return compact ? qf_err_set(err, -EBUSY, "in use by another process") : 0;
    return compact || !store->dir.existing ? qf_lmdb_shrink(store, compact, err) : 0;
}

static int start(qf_lmdb_store *store, bool compact, struct qf_err *err)
{
    int fd;
    int rc = open_env(store, err);
    if (rc != 0)
        return rc;
    rc = qf_lmdb_files_open(store);
    if (rc == 0)
        rc = qf_lmdb_reconcile(store);
    if (rc != 0)
        rc = qf_err_set(err, rc > 0 ? -rc : -EIO, "LMDB: %s", mdb_strerror(rc));
    if (rc == 0)
        rc = shrink(store, compact, err);
    if (rc == 0) {
        int got = mdb_env_get_fd(store->env, &fd);
        assert(got == 0);
        rc = qf_lmdb_dir_share(&store->dir, fd, err);
    }
    if (rc == 0) {
        rc = qf_lmdb_writer_start(store);
        if (rc != 0)
            rc = qf_err_set(err, rc, "its writer cannot start: %s", strerror(-rc));
    }
    if (rc == 0)
        fit_limit(store);
    if (rc != 0 && store->env != NULL)
        qf_lmdb_env_close(store);
    return rc;
}

int qf_store_lmdb_open(const struct qf_store_lmdb_options *options, qf_store **out,
                       struct qf_err *err)
{
    /* Slots begin at cache lines. */
    static_assert(sizeof(qf_lmdb_store) % 64 == 0, "for aligned_alloc");
    qf_lmdb_store *store = aligned_alloc(64, sizeof *store);
    if (store == NULL)
        return qf_err_set(err, -ENOMEM, "cache %s: no memory", options->dir);
    memset(store, 0, sizeof *store);
    store->base.ops = &lmdb_ops;
    store->sealed_fd = -1;
    store->min_free = options->min_free;
    pthread_mutex_init(&store->verify_lock, NULL);
    int rc = options->existing ? qf_lmdb_dir_join(&store->dir, options->dir, err)
                               : qf_lmdb_dir_open(&store->dir, options->dir,
                                                  options->bytes_limit, err);
    if (rc != 0) {
        pthread_mutex_destroy(&store->verify_lock);
        free(store);
        return rc;
    }
    store->bytes_limit = store->dir.bytes_limit;
    store->verified = qf_verified_new(store->dir.bytes_limit / VALUE_SIZE_TYPICAL);
    store->recency = qf_recency_new();
    store->names = qf_lmdb_names_new();
    if (store->verified == NULL || store->recency == NULL || store->names == NULL)
        rc = qf_err_set(err, -ENOMEM, "no memory");
    else
        rc = start(store, options->existing && options->compact, err);
    if (rc != 0) {
        qf_err_prefix(err, "cache %s", options->dir);
        free_store(store);
        return rc;
    }
    *out = &store->base;
    return 0;
}
