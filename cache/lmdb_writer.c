/* SPDX-License-Identifier: Apache-2.0 */
/* The one thread that writes. Values wait in a bounded queue, still in their owner's
 * memory; a few are written in each transaction, which is the fastest with LMDB (its
 * pages go through the heap, and large transactions leave the caches). Every
 * transaction first writes the uses noted since the last one, so that eviction knows
 * them, then removes what readers found damaged, makes room, and puts.
 *
 * Two failures are expected. MDB_MAP_FULL: no run of free pages is long enough. A full
 * disk: writing a page past the old end of the file failed. Both end the transaction;
 * then something is evicted in a transaction of its own, an empty one passes (pages
 * freed come back two later), and the values are tried again, a few times, evicting
 * ever more. But while a reader holds on to an old snapshot nothing freed comes back,
 * and evicting would only empty the cache: then the values are dropped, as they are
 * when all that takes too long, for a flush waits. All other errors take the store
 * down.
 *
 * Files need writing too (lmdb_files.c): their jobs stand in the queue like values, run
 * in a transaction each, and are waited for. */
#include <assert.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/clock.h"
#include "base/log.h"
#include "cache/lmdb_store.h"
#include "cache/record.h"

#define BATCH_COUNT 4u
#define BATCH_SIZE  (2u << 20)
/* What takes longer than this may wait for a lock that nobody has: qf_lmdb_kick. */
#define KICK_MS       1000
#define ATTEMPTS      7u
#define ATTEMPTS_MS   1000 /* no further one after that */
#define REMOVE_MAX    64u
#define ITEM_COST     128u /* of an item itself, against floods of tiny values */
#define USES_DELAY_MS 2000
#define REST_FULL_MS  5000 /* without new attempts after the disk was full … */
#define REST_MAP_MS   200  /* … and after no room was found in the map */

struct item {
    struct item *next;
    struct qf_hash128 key;
    uint64_t origin;
    const void *data; /* borrowed until done */
    size_t size;
    qf_store_done *done;
    void *arg;
    bool marker; /* no value: a flush or a job, after those before it */
    int (*job)(struct qf_lmdb_work *work, void *arg);
    void *job_arg;
    uint64_t job_need;
    int job_rc;
    bool kept;
};

struct qf_lmdb_writer {
    qf_lmdb_store *store;
    pthread_t thread;
    pthread_mutex_t lock;
    pthread_cond_t wake;
    struct item *head;
    struct item **tail;
    size_t queued_size; /* of the items queued and being written */
    int64_t
        progress_ms; /* when a batch was done, or the queue empty, or it was kicked */
    struct qf_hash128 remove[REMOVE_MAX];
    unsigned remove_count;
    bool stopping;

    /* Only the thread's own: */
    struct qf_lmdb_room room;
    size_t batch_size;
    struct qf_recent *recent; /* drained, not yet committed */
    size_t recent_count;
    struct qf_hash128 removing[REMOVE_MAX];
    unsigned removing_count;
    int64_t rest_until_ms;
    bool said_full;
};

/* One transaction. */
struct txn_context {
    struct qf_lmdb_writer *writer;
    MDB_txn *txn;
    struct item **items;
    unsigned count;
    uint64_t need;  /* pages for which to make room */
    uint64_t evict; /* values to evict at least */
    struct item *job;
    uint64_t clock;
    uint64_t now_s;
    uint64_t evicted;
};

/* ---- a transaction ---- */

/* Of what is there already; MDB_NOTFOUND when it is not. */
static int use_again(struct txn_context *ctx, const struct qf_hash128 *key,
                     uint64_t hits)
{
    qf_lmdb_store *store = ctx->writer->store;
    struct qf_lmdb_use use;
    int rc = qf_lmdb_use_get(store, ctx->txn, key, &use);
    if (rc != 0)
        return rc;
    use.last_use = ++ctx->clock;
    use.last_s = ctx->now_s;
    use.hits += hits;
    return qf_lmdb_use_put(store, ctx->txn, key, &use);
}

static int use_first(struct txn_context *ctx, const struct item *item)
{
    return qf_lmdb_use_begin(ctx->writer->store, ctx->txn, &item->key, ++ctx->clock,
                             item->size, item->origin);
}

static int write_recent(struct txn_context *ctx)
{
    struct qf_lmdb_writer *w = ctx->writer;
    for (size_t i = 0; i < w->recent_count; i++) {
        int rc = use_again(ctx, &w->recent[i].key, w->recent[i].uses);
        if (rc != 0 && rc != MDB_NOTFOUND) /* evicted meanwhile */
            return rc;
    }
    return 0;
}

static bool read_record(const qf_lmdb_store *store, struct qf_hash128 key,
                        const MDB_val *val, struct qf_record *out)
{
    return val->mv_size <=
               qf_record_stored_size(QF_STORED_SIZE_MAX, 0) + qf_lmdb_size_min(store) &&
           qf_record_parse(val->mv_data, val->mv_size, qf_lmdb_size_min(store), key,
                           out);
}

/* Another process may have put a good value in its place: look again. */
static int remove_damaged(struct txn_context *ctx)
{
    struct qf_lmdb_writer *w = ctx->writer;
    for (unsigned i = 0; i < w->removing_count; i++) {
        MDB_val key = qf_lmdb_key(&w->removing[i]);
        MDB_val val;
        struct qf_record record;
        int rc = mdb_get(ctx->txn, w->store->values, &key, &val);
        if (rc == 0 && read_record(w->store, w->removing[i], &val, &record) &&
            qf_record_verify(&record))
            continue;
        if (rc == 0)
            rc = qf_lmdb_remove(w->store, ctx->txn, &w->removing[i]);
        if (rc != 0 && rc != MDB_NOTFOUND && rc != EUCLEAN)
            return rc;
    }
    return 0;
}

/* Values are immutable: one that is there already and whole is only used again. */
static int put_item(struct txn_context *ctx, struct item *item)
{
    qf_lmdb_store *store = ctx->writer->store;
    MDB_val key = qf_lmdb_key(&item->key);
    MDB_val val;
    int rc = mdb_get(ctx->txn, store->values, &key, &val);
    if (rc == 0) {
        struct qf_record old;
        if (read_record(store, item->key, &val, &old) && old.size == item->size &&
            old.checksum == qf_hash64(item->data, item->size) &&
            qf_record_verify(&old)) {
            item->kept = true;
            rc = use_again(ctx, &item->key, 0);
            return rc == MDB_NOTFOUND ? use_first(ctx, item) : rc;
        }
        rc = qf_lmdb_remove(store, ctx->txn, &item->key);
        if (rc == EUCLEAN)
            return 0;
    }
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    val.mv_size = qf_record_stored_size(item->size, qf_lmdb_size_min(store));
    rc = mdb_put(ctx->txn, store->values, &key, &val, MDB_RESERVE);
    if (rc == 0 && !qf_lmdb_room_covers(&ctx->writer->room, store, &val))
        rc = MDB_MAP_FULL;
    if (rc != 0)
        return rc;
    /* The clock makes a serial that no other write has. */
    qf_record_write(val.mv_data, val.mv_size, item->key, item->data, item->size,
                    ctx->clock + 1);
    item->kept = true;
    return use_first(ctx, item);
}

static int run_job(struct txn_context *ctx)
{
    struct qf_lmdb_work work = {.store = ctx->writer->store,
                                .room = &ctx->writer->room,
                                .txn = ctx->txn,
                                .clock = ctx->clock,
                                .evicted = ctx->evicted};
    int rc = ctx->job->job(&work, ctx->job->job_arg);
    ctx->clock = work.clock;
    ctx->evicted = work.evicted;
    return rc;
}

static int enter_txn(struct txn_context *ctx, uint64_t *file_bytes, uint64_t *use_pages)
{
    struct qf_lmdb_writer *w = ctx->writer;
    uint64_t used;
    ctx->now_s = qf_lmdb_now_s();
    int rc = qf_lmdb_clock_get(w->store, ctx->txn, &ctx->clock);
    if (rc == 0)
        rc = qf_lmdb_used_pages(w->store, ctx->txn, &used, use_pages);
    if (rc == 0)
        rc = qf_lmdb_room_enter(&w->room, w->store, ctx->txn);
    *file_bytes = w->room.file_bytes;
    if (rc == 0 && *file_bytes > 0)
        rc = qf_lmdb_room_trim(&w->room, w->store, ctx->txn, &ctx->evicted);
    return rc;
}

static int leave_txn(struct txn_context *ctx, uint64_t file_bytes)
{
    struct qf_lmdb_writer *w = ctx->writer;
    int rc = qf_lmdb_clock_put(w->store, ctx->txn, ++ctx->clock);
    if (rc == 0 && w->room.file_bytes != file_bytes)
        rc = qf_lmdb_file_bytes_put(w->store, ctx->txn, w->room.file_bytes);
    return rc;
}

static int fill_txn(struct txn_context *ctx)
{
    struct qf_lmdb_writer *w = ctx->writer;
    uint64_t file_bytes, use_pages = 0;
    int rc = enter_txn(ctx, &file_bytes, &use_pages);
    if (rc == 0)
        rc = write_recent(ctx);
    if (rc == 0)
        rc = remove_damaged(ctx);
    if (rc != 0)
        return rc;
    /* Pages of the trees that are copied when they are written to. */
    uint64_t copies = w->recent_count < use_pages ? w->recent_count : use_pages;
    if (ctx->need > 0)
        rc = qf_lmdb_room_make(&w->room, w->store, ctx->txn, ctx->need + copies,
                               &ctx->clock, &ctx->evicted);
    if (rc == 0 && ctx->evicted < ctx->evict)
        rc = qf_lmdb_room_evict(&w->room, w->store, ctx->txn, ctx->evict - ctx->evicted,
                                &ctx->clock, &ctx->evicted);
    for (unsigned i = 0; i < ctx->count && rc == 0 && !w->room.full; i++)
        rc = put_item(ctx, ctx->items[i]);
    if (rc == 0 && ctx->job != NULL)
        rc = run_job(ctx);
    return rc == 0 ? leave_txn(ctx, file_bytes) : rc;
}

static int run_txn_guarded(void *arg)
{
    struct txn_context *ctx = arg;
    int rc = mdb_txn_begin(ctx->writer->store->env, NULL, 0, &ctx->txn);
    if (rc != 0)
        return rc;
    rc = fill_txn(ctx);
    if (rc != 0)
        return rc;
    MDB_txn *txn = ctx->txn;
    ctx->txn = NULL;
    return mdb_txn_commit(txn);
}

static int abort_txn(void *arg)
{
    mdb_txn_abort(arg);
    return 0;
}

static int run_txn(struct txn_context *ctx)
{
    struct qf_lmdb_writer *w = ctx->writer;
    for (unsigned i = 0; i < ctx->count; i++)
        ctx->items[i]->kept = false;
    ctx->evicted = 0;
    int rc = qf_lmdb_guard(run_txn_guarded, ctx);
    if (ctx->txn != NULL) {
        int ignored = qf_lmdb_guard(abort_txn, ctx->txn);
        (void)ignored;
        ctx->txn = NULL;
    }
    if (rc == 0) {
        atomic_fetch_add(&w->store->evictions, ctx->evicted);
        w->recent_count = 0;
        w->removing_count = 0;
    }
    return rc;
}

/* Without values: evicts. */
static int run_txn_apart(struct qf_lmdb_writer *w, uint64_t need, uint64_t evict)
{
    struct txn_context ctx = {.writer = w, .need = need, .evict = evict};
    return run_txn(&ctx);
}

/* ---- a batch ---- */

static bool is_disk_full(int rc)
{
    /* EIO is what LMDB makes of a short write. */
    return rc == ENOSPC || rc == EDQUOT || rc == EFBIG || rc == EIO;
}

static void say_full(struct qf_lmdb_writer *w, int rc)
{
    if (w->said_full)
        return;
    w->said_full = true;
    qf_log(QF_LOG_WARN,
           "cache %s: %s; it makes do with the room it has, below its limit of %llu "
           "bytes",
           w->store->dir.path, mdb_strerror(rc),
           (unsigned long long)w->store->dir.bytes_limit);
}

/* Evicts, more at each attempt, and lets a transaction pass. On a full disk that must
 * itself do with few new pages, so it begins with a single value. */
static int make_room_apart(struct qf_lmdb_writer *w, uint64_t need, bool disk_full,
                           unsigned attempt)
{
    int rc = run_txn_apart(w, disk_full ? 0 : need, UINT64_C(1) << (2 * attempt));
    if (rc == 0)
        rc = run_txn_apart(w, 0, 0);
    return rc;
}

static uint64_t pages_needed(const struct qf_lmdb_writer *w, struct item **items,
                             unsigned count)
{
    uint64_t need = 16 + 4 * (uint64_t)count;
    for (unsigned i = 0; i < count; i++) {
        size_t stored =
            qf_record_stored_size(items[i]->size, qf_lmdb_size_min(w->store));
        need += qf_lmdb_pages(w->store, stored);
    }
    return need;
}

/* 0, or why nothing of it was written. */
static int write_txn(struct txn_context *ctx)
{
    struct qf_lmdb_writer *w = ctx->writer;
    uint64_t need = ctx->need;
    int64_t end = qf_clock_ms() + ATTEMPTS_MS;
    int rc = 0;
    for (unsigned attempt = 0; attempt < ATTEMPTS; attempt++) {
        rc = run_txn(ctx);
        if (rc == 0)
            break;
        bool full = is_disk_full(rc);
        if (!full && rc != MDB_MAP_FULL && rc != MDB_TXN_FULL)
            break;
        if (full)
            say_full(w, rc);
        qf_lmdb_room_failed(&w->room, w->store, need, full, qf_clock_ms());
        if (qf_clock_ms() > end || !qf_lmdb_readers_pass(w->store))
            break;
        int rc2 = make_room_apart(w, need, full, attempt);
        if (rc2 != 0 && !is_disk_full(rc2) && rc2 != MDB_MAP_FULL)
            return rc2;
    }
    /* Pages of the trees can bring the file past its share. */
    for (unsigned i = 0; i < 3 && rc == 0 && qf_lmdb_room_over(&w->room, w->store); i++)
        rc = run_txn_apart(w, 0, 0);
    return rc;
}

static void write_batch(struct qf_lmdb_writer *w, struct item **items, unsigned count)
{
    qf_lmdb_store *store = w->store;
    w->recent_count = qf_recency_drain(store->recency, w->recent);
    if (atomic_load(&store->down) || (count > 0 && qf_clock_ms() < w->rest_until_ms))
        return;
    struct txn_context ctx = {.writer = w, .items = items, .count = count};
    ctx.need = pages_needed(w, items, count);
    int rc = write_txn(&ctx);
    w->recent_count = 0;
    w->removing_count = 0;
    if (rc == 0) {
        qf_lmdb_room_succeeded(&w->room, qf_clock_ms());
        return;
    }
    for (unsigned i = 0; i < count; i++)
        items[i]->kept = false;
    if (rc == MDB_MAP_FULL || rc == MDB_TXN_FULL || rc == ENOMEM)
        w->rest_until_ms = qf_clock_ms() + REST_MAP_MS;
    else if (is_disk_full(rc))
        w->rest_until_ms = qf_clock_ms() + REST_FULL_MS;
    else
        qf_lmdb_fail(store, rc);
}

static bool is_no_room(int rc)
{
    return rc == MDB_MAP_FULL || rc == MDB_TXN_FULL || rc == ENOMEM || is_disk_full(rc);
}

static void run_marker(struct qf_lmdb_writer *w, struct item *marker)
{
    marker->job_rc = -EIO;
    if (marker->job != NULL && !atomic_load(&w->store->down)) {
        struct txn_context ctx = {.writer = w, .need = marker->job_need, .job = marker};
        int rc = write_txn(&ctx);
        marker->job_rc = rc == 0 ? 0 : is_no_room(rc) ? -ENOSPC : -EIO;
        if (rc == 0)
            qf_lmdb_room_succeeded(&w->room, qf_clock_ms());
        else if (!is_no_room(rc))
            qf_lmdb_fail(w->store, rc);
    }
    marker->done(marker->arg, false);
}

/* lasting: room was found without evicting. */
static void finish_items(struct qf_lmdb_writer *w, struct item **items, unsigned count,
                         bool lasting)
{
    size_t size = 0;
    for (unsigned i = 0; i < count; i++) {
        struct item *item = items[i];
        atomic_fetch_add(item->kept ? &w->store->puts : &w->store->puts_dropped, 1);
        item->done(item->arg, item->kept && lasting);
        size += item->size + ITEM_COST;
        free(item);
    }
    pthread_mutex_lock(&w->lock);
    w->queued_size -= size;
    w->progress_ms = qf_clock_ms();
    pthread_mutex_unlock(&w->lock);
    qf_lmdb_trim_map(w->store, size);
}

/* ---- the thread ---- */

/* Waits; returns how many items were taken. *marker: a flush that comes next. */
static unsigned take_batch(struct qf_lmdb_writer *w, struct item **items,
                           struct item **marker, bool *stop)
{
    unsigned count = 0;
    size_t size = 0;
    *marker = NULL;
    pthread_mutex_lock(&w->lock);
    for (bool due = false;
         w->head == NULL && w->remove_count == 0 && !w->stopping && !due;) {
        if (!qf_recency_pending(w->store->recency)) {
            pthread_cond_wait(&w->wake, &w->lock);
            continue;
        }
        int64_t end = qf_clock_ms() + USES_DELAY_MS;
        struct timespec ts = {.tv_sec = (time_t)(end / 1000),
                              .tv_nsec = (long)(end % 1000) * 1000000};
        due = pthread_cond_timedwait(&w->wake, &w->lock, &ts) == ETIMEDOUT;
    }
    while (w->head != NULL && count < BATCH_COUNT && *marker == NULL) {
        struct item *item = w->head;
        if (count > 0 && size + item->size > w->batch_size)
            break;
        w->head = item->next;
        if (item->marker) {
            *marker = item;
        } else {
            items[count++] = item;
            size += item->size;
        }
    }
    if (w->head == NULL)
        w->tail = &w->head;
    memcpy(w->removing, w->remove, w->remove_count * sizeof w->remove[0]);
    w->removing_count = w->remove_count;
    w->remove_count = 0;
    *stop = w->stopping && w->head == NULL;
    pthread_mutex_unlock(&w->lock);
    return count;
}

static void *run(void *arg)
{
    struct qf_lmdb_writer *w = arg;
    for (bool stop = false; !stop;) {
        struct item *items[BATCH_COUNT];
        struct item *marker;
        unsigned count = take_batch(w, items, &marker, &stop);
        uint64_t evictions = atomic_load(&w->store->evictions);
        if (count > 0 || w->removing_count > 0 || qf_recency_pending(w->store->recency))
            write_batch(w, items, count);
        bool lasting = atomic_load(&w->store->evictions) == evictions;
        finish_items(w, items, count, lasting);
        if (marker != NULL)
            run_marker(w, marker);
    }
    return NULL;
}

int qf_lmdb_writer_start(qf_lmdb_store *store)
{
    struct qf_lmdb_writer *w = calloc(1, sizeof *w);
    if (w == NULL)
        return -ENOMEM;
    int rc = qf_lmdb_room_init(&w->room, store);
    w->recent = calloc(QF_RECENCY_COUNT_MAX, sizeof w->recent[0]);
    w->store = store;
    w->tail = &w->head;
    /* In a small cache a large batch would be a large part of the slack. */
    w->batch_size = BATCH_SIZE;
    if (w->batch_size > store->dir.bytes_limit / 32)
        w->batch_size = (size_t)(store->dir.bytes_limit / 32);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&w->wake, &attr);
    pthread_condattr_destroy(&attr);
    pthread_mutex_init(&w->lock, NULL);
    if (rc == 0 && w->recent == NULL)
        rc = -ENOMEM;
    if (rc == 0) {
        sigset_t all, old;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &old);
        rc = -pthread_create(&w->thread, NULL, run, w);
        pthread_sigmask(SIG_SETMASK, &old, NULL);
    }
    store->writer = w;
    if (rc != 0) {
        w->stopping = true; /* no thread to join */
        qf_lmdb_writer_stop(store);
    }
    return rc;
}

void qf_lmdb_writer_stop(qf_lmdb_store *store)
{
    struct qf_lmdb_writer *w = store->writer;
    pthread_mutex_lock(&w->lock);
    bool running = !w->stopping;
    w->stopping = true;
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
    for (int rc = running ? ETIMEDOUT : 0; rc == ETIMEDOUT;) {
        struct timespec at;
        clock_gettime(CLOCK_REALTIME, &at);
        at.tv_sec += KICK_MS / 1000;
        rc = pthread_timedjoin_np(w->thread, NULL, &at);
        if (rc == ETIMEDOUT)
            qf_lmdb_kick(store);
    }
    pthread_cond_destroy(&w->wake);
    pthread_mutex_destroy(&w->lock);
    qf_lmdb_room_fini(&w->room);
    free(w->recent);
    free(w);
    store->writer = NULL;
}

/* ---- what other threads call ---- */

static bool enqueue(struct qf_lmdb_writer *w, struct item *item)
{
    size_t cost = item->marker ? 0 : item->size + ITEM_COST;
    int64_t now_ms = qf_clock_ms();
    pthread_mutex_lock(&w->lock);
    assert(!w->stopping);
    bool late = w->queued_size != 0 && now_ms - w->progress_ms > KICK_MS;
    if (late || w->queued_size == 0)
        w->progress_ms = now_ms;
    bool fits = w->queued_size + cost <= QF_CACHE_QUEUE_SIZE_MAX;
    if (fits) {
        w->queued_size += cost;
        *w->tail = item;
        w->tail = &item->next;
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&w->lock);
    if (late)
        qf_lmdb_kick(w->store);
    return fits;
}

void qf_lmdb_writer_put(qf_lmdb_store *store, struct qf_hash128 key, uint64_t origin,
                        const void *data, size_t size, qf_store_done *done, void *arg)
{
    struct item *item = NULL;
    if (size <= QF_STORED_SIZE_MAX && !atomic_load(&store->down))
        item = malloc(sizeof *item);
    if (item != NULL) {
        *item = (struct item){.key = key,
                              .origin = origin,
                              .data = data,
                              .size = size,
                              .done = done,
                              .arg = arg};
        if (enqueue(store->writer, item))
            return;
        free(item);
    }
    atomic_fetch_add(&store->puts_dropped, 1);
    done(arg, false);
}

struct flush {
    pthread_mutex_t lock;
    pthread_cond_t reached;
    bool is_reached;
};

static void flush_reached(void *arg, bool lasting)
{
    (void)lasting;
    struct flush *flush = arg;
    pthread_mutex_lock(&flush->lock);
    flush->is_reached = true;
    pthread_cond_signal(&flush->reached);
    pthread_mutex_unlock(&flush->lock);
}

static struct timespec kick_time(void)
{
    int64_t ms = qf_clock_ms() + KICK_MS;
    return (struct timespec){.tv_sec = (time_t)(ms / 1000),
                             .tv_nsec = (long)(ms % 1000) * 1000000};
}

static void wait_for_marker(qf_lmdb_store *store, struct item *marker)
{
    struct flush flush = {.is_reached = false};
    pthread_condattr_t attr;
    marker->marker = true;
    marker->done = flush_reached;
    marker->arg = &flush;
    pthread_mutex_init(&flush.lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&flush.reached, &attr);
    pthread_condattr_destroy(&attr);
    bool queued = enqueue(store->writer, marker);
    assert(queued);
    pthread_mutex_lock(&flush.lock);
    while (!flush.is_reached) {
        struct timespec at = kick_time();
        if (pthread_cond_timedwait(&flush.reached, &flush.lock, &at) == ETIMEDOUT)
            qf_lmdb_kick(store);
    }
    pthread_mutex_unlock(&flush.lock);
    pthread_cond_destroy(&flush.reached);
    pthread_mutex_destroy(&flush.lock);
}

void qf_lmdb_writer_flush(qf_lmdb_store *store)
{
    struct item marker = {.marker = true};
    wait_for_marker(store, &marker);
}

int qf_lmdb_writer_run(qf_lmdb_store *store,
                       int (*job)(struct qf_lmdb_work *work, void *arg), void *arg,
                       uint64_t need)
{
    struct item marker = {.job = job, .job_arg = arg, .job_need = need};
    wait_for_marker(store, &marker);
    return marker.job_rc;
}

void qf_lmdb_writer_remove(qf_lmdb_store *store, struct qf_hash128 key)
{
    struct qf_lmdb_writer *w = store->writer;
    pthread_mutex_lock(&w->lock);
    bool known = w->remove_count == REMOVE_MAX;
    for (unsigned i = 0; i < w->remove_count && !known; i++)
        known = qf_hash128_eq(w->remove[i], key);
    if (!known) {
        w->remove[w->remove_count++] = key;
        pthread_cond_signal(&w->wake);
    }
    pthread_mutex_unlock(&w->lock);
}

void qf_lmdb_writer_nudge(qf_lmdb_store *store)
{
    struct qf_lmdb_writer *w = store->writer;
    pthread_mutex_lock(&w->lock);
    pthread_cond_signal(&w->wake);
    pthread_mutex_unlock(&w->lock);
}
