/* SPDX-License-Identifier: Apache-2.0 */
/* Room in a file of fixed size. LMDB reuses freed pages, but only those that were freed
 * two transactions ago and, for a value, only a run of neighbours. So eviction keeps a
 * slack of free pages ahead of the writes, which grows when LMDB says MDB_MAP_FULL all
 * the same (fragments) and shrinks slowly after successes.
 *
 * The least recently used are found by walking "uses" once and keeping the oldest
 * sixteenth in a heap; they are evicted one by one, each only if its use is still the
 * one that was seen. So a walk is paid for by many evictions, and no second index has
 * to be kept up to date with every hit. */
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/log.h"
#include "cache/lmdb_store.h"

#define PAGE_OVERFLOW     0x04u
#define PAGE_HEAD         16u
#define CANDIDATES_MIN    64u
#define CANDIDATES_MAX    4096u
#define SLACK_BYTES       (5u << 20)
#define CAP_TIME_MS       60000
#define RECONCILE_AT_ONCE 4096u

int qf_lmdb_room_init(struct qf_lmdb_room *room, const qf_lmdb_store *store)
{
    uint64_t pages = store->dir.bytes_limit / store->page_size;
    *room = (struct qf_lmdb_room){.pages_limit = pages, .pages_cap = pages};
    room->slack_min = SLACK_BYTES / store->page_size;
    if (room->slack_min > pages / 8)
        room->slack_min = pages / 8;
    room->slack = room->slack_min;
    room->candidates = calloc(CANDIDATES_MAX, sizeof room->candidates[0]);
    return room->candidates != NULL ? 0 : -ENOMEM;
}

void qf_lmdb_room_fini(struct qf_lmdb_room *room)
{
    free(room->candidates);
}

bool qf_lmdb_value_freeable(const qf_lmdb_store *store, const MDB_val *value)
{
    const char *page = (const char *)value->mv_data - PAGE_HEAD;
    uint64_t off = (uint64_t)((uintptr_t)page - (uintptr_t)store->map);
    uint16_t flags;
    /* Not in the map: written in this very transaction. */
    if (off >= store->dir.bytes_limit)
        return true;
    memcpy(&flags, page + 10, sizeof flags);
    return flags == PAGE_OVERFLOW && off % store->page_size == 0 &&
           off / store->page_size == qf_load_u64(page) &&
           qf_load_u32(page + 12) == qf_lmdb_pages(store, value->mv_size);
}

int qf_lmdb_remove(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key)
{
    MDB_val k = qf_lmdb_key(key);
    MDB_val value;
    int rc = mdb_get(txn, store->values, &k, &value);
    if (rc == 0 && !qf_lmdb_value_freeable(store, &value))
        return EUCLEAN;
    if (rc == 0)
        rc = mdb_del(txn, store->values, &k, NULL);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    int rc2 = mdb_del(txn, store->uses, &k, NULL);
    return rc2 != 0 && rc2 != MDB_NOTFOUND ? rc2 : rc;
}

/* ---- candidates ---- */

/* Restores the heap (the most recent use on top) below `i`. */
static void sift_down(struct qf_lmdb_candidate *heap, size_t count, size_t i)
{
    for (;;) {
        size_t top = i;
        for (size_t child = 2 * i + 1; child <= 2 * i + 2 && child < count; child++) {
            if (heap[child].last_use > heap[top].last_use)
                top = child;
        }
        if (top == i)
            return;
        struct qf_lmdb_candidate c = heap[i];
        heap[i] = heap[top];
        heap[top] = c;
        i = top;
    }
}

static int by_last_use(const void *a, const void *b)
{
    const struct qf_lmdb_candidate *x = a;
    const struct qf_lmdb_candidate *y = b;
    return (x->last_use > y->last_use) - (x->last_use < y->last_use);
}

static bool read_candidate(const MDB_val *key, const MDB_val *val,
                           struct qf_lmdb_candidate *out)
{
    if (key->mv_size != sizeof out->key || val->mv_size != sizeof(struct qf_lmdb_use))
        return false;
    memcpy(&out->key, key->mv_data, sizeof out->key);
    out->last_use = qf_load_u64(val->mv_data);
    return true;
}

static void offer(struct qf_lmdb_room *room, size_t want,
                  const struct qf_lmdb_candidate *c)
{
    struct qf_lmdb_candidate *heap = room->candidates;
    if (room->candidate_count < want) {
        heap[room->candidate_count++] = *c;
        if (room->candidate_count == want) {
            for (size_t i = want; i-- > 0;)
                sift_down(heap, want, i);
        }
    } else if (c->last_use < heap[0].last_use) {
        heap[0] = *c;
        sift_down(heap, want, 0);
    }
}

static int find_candidates(struct qf_lmdb_room *room, qf_lmdb_store *store,
                           MDB_txn *txn)
{
    MDB_cursor *cursor;
    MDB_stat st;
    room->candidate_count = room->candidate_next = 0;
    int rc = mdb_stat(txn, store->uses, &st);
    if (rc != 0)
        return rc;
    size_t want = st.ms_entries / 16;
    want = want < CANDIDATES_MIN ? CANDIDATES_MIN : want;
    want = want > CANDIDATES_MAX ? CANDIDATES_MAX : want;
    rc = mdb_cursor_open(txn, store->uses, &cursor);
    if (rc != 0)
        return rc;
    MDB_val key, val;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    for (; rc == 0; rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT)) {
        struct qf_lmdb_candidate c;
        if (read_candidate(&key, &val, &c))
            offer(room, want, &c);
    }
    mdb_cursor_close(cursor);
    if (rc != MDB_NOTFOUND)
        return rc;
    qsort(room->candidates, room->candidate_count, sizeof room->candidates[0],
          by_last_use);
    return 0;
}

/* ---- eviction ---- */

/* A value whose pages cannot be freed stays, as if it had just been used. */
static int keep_stuck(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                      uint64_t *clock)
{
    struct qf_lmdb_use use = {.last_use = ++*clock};
    MDB_val k = qf_lmdb_key(key);
    MDB_val v = {.mv_size = sizeof use, .mv_data = &use};
    qf_log(QF_LOG_DEBUG, "cache %s: a value's page head is damaged; it stays",
           store->dir.path);
    return mdb_put(txn, store->uses, &k, &v, 0);
}

/* Evicts at most one. *done: there was nothing to evict. */
static int evict_one(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                     uint64_t *clock, uint64_t *evicted, bool *done)
{
    *done = false;
    if (room->candidate_next == room->candidate_count) {
        int rc = find_candidates(room, store, txn);
        *done = room->candidate_count == 0;
        if (rc != 0 || *done)
            return rc;
    }
    const struct qf_lmdb_candidate *c = &room->candidates[room->candidate_next++];
    struct qf_lmdb_candidate now;
    MDB_val key = qf_lmdb_key(&c->key);
    MDB_val val;
    int rc = mdb_get(txn, store->uses, &key, &val);
    if (rc != 0)
        return rc == MDB_NOTFOUND ? 0 : rc;
    if (!read_candidate(&key, &val, &now) || now.last_use != c->last_use)
        return 0;
    rc = qf_lmdb_remove(store, txn, &c->key);
    if (rc == EUCLEAN)
        return keep_stuck(store, txn, &c->key, clock);
    *evicted += rc == 0;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int qf_lmdb_room_make(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t need, uint64_t *clock, uint64_t *evicted)
{
    MDB_stat st;
    int rc = mdb_stat(txn, store->uses, &st);
    /* Each use is looked at twice at most, stuck values included. */
    uint64_t steps = rc == 0 ? 2 * (uint64_t)st.ms_entries + 2 : 0;
    for (bool done = false; rc == 0 && !done && steps > 0; steps--) {
        uint64_t used, ignored;
        rc = qf_lmdb_used_pages(store, txn, &used, &ignored);
        if (rc != 0 || used + need + room->slack <= room->pages_cap)
            break;
        rc = evict_one(room, store, txn, clock, evicted, &done);
    }
    return rc;
}

int qf_lmdb_room_evict(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                       uint64_t count, uint64_t *clock, uint64_t *evicted)
{
    int rc = 0;
    bool done = false;
    for (uint64_t i = 0; i < count && rc == 0 && !done; i++)
        rc = evict_one(room, store, txn, clock, evicted, &done);
    return rc;
}

void qf_lmdb_room_failed(struct qf_lmdb_room *room, const qf_lmdb_store *store,
                         uint64_t need, bool disk_full, int64_t now_ms)
{
    uint64_t step = room->pages_limit / 64;
    uint64_t slack_max = room->pages_limit / 4;
    MDB_envinfo info;
    if (disk_full && mdb_env_info(store->env, &info) == 0) {
        room->pages_cap = info.me_last_pgno + 1;
        room->cap_until_ms = now_ms + CAP_TIME_MS;
        step = room->pages_cap / 64;
        slack_max = room->pages_cap / 4;
    }
    room->slack += step < need ? need : step;
    if (room->slack > slack_max)
        room->slack = slack_max;
    /* What was evicted is there again. */
    room->candidate_count = room->candidate_next = 0;
}

void qf_lmdb_room_succeeded(struct qf_lmdb_room *room, int64_t now_ms)
{
    if (room->slack > room->slack_min)
        room->slack -= (room->slack - room->slack_min + 255) / 256;
    if (room->pages_cap < room->pages_limit && now_ms > room->cap_until_ms)
        room->pages_cap = room->pages_limit;
    if (room->slack < room->slack_min && room->pages_cap == room->pages_limit)
        room->slack = room->slack_min;
}

/* ---- uses that got lost ---- */

/* Adds missing uses from *from on, a bounded number; *from is where to go on. */
static int add_missing(qf_lmdb_store *store, MDB_txn *txn, struct qf_hash128 *from,
                       bool *more)
{
    const struct qf_lmdb_use use = {0};
    MDB_cursor *cursor;
    MDB_val key = qf_lmdb_key(from), val;
    *more = false;
    int rc = mdb_cursor_open(txn, store->values, &cursor);
    if (rc != 0)
        return rc;
    unsigned added = 0;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_SET_RANGE);
    for (; rc == 0 && !*more; rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT)) {
        MDB_val v = {.mv_size = sizeof use, .mv_data = (void *)(uintptr_t)&use};
        if (key.mv_size != sizeof *from)
            continue;
        memcpy(from, key.mv_data, sizeof *from);
        MDB_val k = qf_lmdb_key(from);
        rc = mdb_put(txn, store->uses, &k, &v, MDB_NOOVERWRITE);
        added += rc == 0;
        if (rc != 0 && rc != MDB_KEYEXIST)
            break;
        *more = added == RECONCILE_AT_ONCE;
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int reconcile_step(qf_lmdb_store *store, struct qf_hash128 *from, bool *more)
{
    MDB_txn *txn;
    MDB_stat values, uses;
    *more = false;
    int rc = mdb_txn_begin(store->env, NULL, 0, &txn);
    if (rc != 0)
        return rc;
    rc = mdb_stat(txn, store->values, &values);
    if (rc == 0)
        rc = mdb_stat(txn, store->uses, &uses);
    if (rc == 0 && values.ms_entries > uses.ms_entries)
        rc = add_missing(store, txn, from, more);
    if (rc != 0) {
        mdb_txn_abort(txn);
        return rc;
    }
    return mdb_txn_commit(txn);
}

static int reconcile(void *arg)
{
    qf_lmdb_store *store = arg;
    struct qf_hash128 from = {0};
    bool more = true;
    int rc = 0;
    while (rc == 0 && more)
        rc = reconcile_step(store, &from, &more);
    return rc;
}

int qf_lmdb_reconcile(qf_lmdb_store *store)
{
    return qf_lmdb_guard(reconcile, store);
}
