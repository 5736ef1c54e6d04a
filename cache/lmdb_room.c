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
#include <sys/statvfs.h>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/log.h"
#include "cache/lmdb_store.h"

#define PAGE_OVERFLOW     0x04u
#define PAGE_HEAD         16u
#define CANDIDATES_MIN    64u
#define CANDIDATES_MAX    4096u
#define SLACK_BYTES       (5u << 20)
#define CAP_TIME_MS       60000
#define SHORT_PAUSE_MS    1000 /* room of an evicted file may come back late */
#define RECONCILE_AT_ONCE 4096u

int qf_lmdb_room_init(struct qf_lmdb_room *room, const qf_lmdb_store *store)
{
    uint64_t pages = store->dir.bytes_limit / store->page_size;
    *room = (struct qf_lmdb_room){.pages_limit = pages,
                                  .pages_cap = pages,
                                  .bytes_limit = store->dir.bytes_limit};
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
    free(room->pinned);
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

/* ---- pins ---- */

static int by_number(const void *a, const void *b)
{
    const uint64_t *x = a;
    const uint64_t *y = b;
    return (*x > *y) - (*x < *y);
}

static int note_pin(const struct qf_lmdb_origin *origin, void *arg)
{
    struct qf_lmdb_room *room = arg;
    if (!origin->pinned)
        return 0;
    if (room->pinned_count == room->pinned_capacity) {
        size_t capacity = 2 * room->pinned_capacity + 16;
        uint64_t *grown = realloc(room->pinned, capacity * sizeof *grown);
        if (grown == NULL)
            return ENOMEM;
        room->pinned = grown;
        room->pinned_capacity = capacity;
    }
    room->pinned[room->pinned_count++] = origin->id;
    return 0;
}

/* Any process may have changed them. */
static int load_pins(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn)
{
    room->pinned_count = 0;
    room->pinned_met = false;
    int rc = qf_lmdb_origins_each(store, txn, note_pin, room);
    if (rc == 0 && room->pinned_count > 1)
        qsort(room->pinned, room->pinned_count, sizeof room->pinned[0], by_number);
    return rc;
}

static bool is_pinned(struct qf_lmdb_room *room, uint64_t origin)
{
    bool pinned =
        room->pinned_count > 0 && bsearch(&origin, room->pinned, room->pinned_count,
                                          sizeof origin, by_number) != NULL;
    room->pinned_met = room->pinned_met || pinned;
    return pinned;
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
                           struct qf_lmdb_candidate *out, uint64_t *origin)
{
    struct qf_lmdb_use use;
    if (key->mv_size != sizeof out->key || val->mv_size != sizeof use)
        return false;
    memcpy(&out->key, key->mv_data, sizeof out->key);
    memcpy(&use, val->mv_data, sizeof use);
    out->last_use = use.last_use;
    *origin = use.origin;
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

static size_t candidates_wanted(size_t entries)
{
    size_t want = entries / 16;
    want = want < CANDIDATES_MIN ? CANDIDATES_MIN : want;
    return want > CANDIDATES_MAX ? CANDIDATES_MAX : want;
}

static void sort_candidates(struct qf_lmdb_room *room)
{
    qsort(room->candidates, room->candidate_count, sizeof room->candidates[0],
          by_last_use);
}

static int find_candidates(struct qf_lmdb_room *room, qf_lmdb_store *store,
                           MDB_txn *txn)
{
    MDB_cursor *cursor;
    MDB_stat st;
    room->candidate_count = room->candidate_next = 0;
    int rc = store->keeps_files ? qf_lmdb_files_reap(store, room, txn) : 0;
    if (rc == 0)
        rc = load_pins(room, store, txn);
    if (rc == 0)
        rc = mdb_stat(txn, store->uses, &st);
    if (rc != 0)
        return rc;
    size_t want = candidates_wanted(st.ms_entries);
    rc = mdb_cursor_open(txn, store->uses, &cursor);
    if (rc != 0)
        return rc;
    MDB_val key, val;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    for (; rc == 0; rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT)) {
        struct qf_lmdb_candidate c;
        uint64_t origin;
        if (!read_candidate(&key, &val, &c, &origin) || is_pinned(room, origin))
            continue;
        struct qf_lmdb_file file;
        if (!room->values_only || !store->keeps_files ||
            qf_lmdb_file_get(store, txn, &c.key, &file) != 0)
            offer(room, want, &c);
    }
    mdb_cursor_close(cursor);
    if (rc != MDB_NOTFOUND)
        return rc;
    sort_candidates(room);
    return 0;
}

/* ---- eviction ---- */

/* A value whose pages cannot be freed, or a file that cannot be unlinked, stays, as if
 * it had just been used. */
static int keep_stuck(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                      uint64_t *clock)
{
    struct qf_lmdb_use use;
    int rc = qf_lmdb_use_get(store, txn, key, &use);
    if (rc != 0)
        return rc;
    use.last_use = ++*clock;
    qf_log(QF_LOG_DEBUG, "cache %s: a value or file cannot be removed; it stays",
           store->dir.path);
    return qf_lmdb_use_put(store, txn, key, &use);
}

/* A file, or else a value. What a file leaves on a full disk is room as well. */
static int evict_entry(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                       const struct qf_hash128 *key)
{
    uint64_t size;
    int rc = store->keeps_files ? qf_lmdb_file_evict(store, room, txn, key, &size)
                                : MDB_NOTFOUND;
    if (rc == MDB_NOTFOUND)
        return qf_lmdb_remove(store, txn, key);
    if (rc == 0 && room->pages_cap < room->pages_limit) {
        room->pages_cap += size / store->page_size;
        if (room->pages_cap > room->pages_limit)
            room->pages_cap = room->pages_limit;
    }
    return rc;
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
    uint64_t origin;
    MDB_val key = qf_lmdb_key(&c->key);
    MDB_val val;
    int rc = mdb_get(txn, store->uses, &key, &val);
    if (rc != 0)
        return rc == MDB_NOTFOUND ? 0 : rc;
    if (!read_candidate(&key, &val, &now, &origin) || now.last_use != c->last_use ||
        qf_lmdb_origin_pinned(store, txn, origin))
        return 0;
    rc = evict_entry(room, store, txn, &c->key);
    if (rc == EUCLEAN)
        return keep_stuck(store, txn, &c->key, clock);
    *evicted += rc == 0;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

/* The share of data.mdb in the limit. Next to files it grows only while more is free
 * than a new file leaves free, or every new file would lose that much to it for ever.
 * What it has it keeps, for it cannot give it back. */
static uint64_t pages_for_values(const struct qf_lmdb_room *room,
                                 const qf_lmdb_store *store)
{
    uint64_t limit = room->bytes_limit;
    uint64_t left = limit > room->file_bytes ? limit - room->file_bytes : 0;
    uint64_t pages = left / store->page_size;
    if (room->file_bytes > 0 || limit < store->dir.bytes_limit) {
        pages -= room->slack_min < pages ? room->slack_min : pages;
        pages = pages < room->high_pages ? room->high_pages : pages;
    }
    return pages < room->pages_cap ? pages : room->pages_cap;
}

int qf_lmdb_room_make(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t need, uint64_t *clock, uint64_t *evicted)
{
    MDB_stat st;
    bool done = false;
    int rc = mdb_stat(txn, store->uses, &st);
    /* Each use is looked at twice at most, stuck values included. */
    uint64_t steps = rc == 0 ? 2 * (uint64_t)st.ms_entries + 2 : 0;
    for (; rc == 0 && !done && steps > 0; steps--) {
        uint64_t used, ignored;
        rc = qf_lmdb_used_pages(store, txn, &used, &ignored);
        uint64_t cap = pages_for_values(room, store);
        uint64_t slack = room->slack < cap / 4 ? room->slack : cap / 4;
        if (rc != 0 || used + need + slack <= cap)
            break;
        rc = evict_one(room, store, txn, clock, evicted, &done);
    }
    room->full = done && room->pinned_met;
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

/* ---- files ---- */

/* What the cache may take now, so that so much of the filesystem stays free. */
static uint64_t limit_now(const struct qf_lmdb_room *room, const qf_lmdb_store *store)
{
    struct statvfs fs;
    uint64_t limit = store->bytes_limit;
    uint64_t min_free = store->min_free;
    if (min_free == 0 || fstatvfs(store->dir.fd, &fs) != 0)
        return limit;
    uint64_t have = room->high_pages * store->page_size + room->file_bytes;
    uint64_t avail = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (avail >= min_free) {
        uint64_t more = avail - min_free;
        return have < limit && more < limit - have ? have + more : limit;
    }
    uint64_t missing = min_free - avail;
    uint64_t left = have > missing ? have - missing : 0;
    return left < limit ? left : limit;
}

int qf_lmdb_room_enter(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn)
{
    MDB_envinfo info;
    room->full = false;
    int rc = mdb_env_info(store->env, &info);
    room->high_pages = rc == 0 ? info.me_last_pgno + 1 : 0;
    if (rc == 0)
        rc = qf_lmdb_file_bytes_get(store, txn, &room->file_bytes);
    if (rc == 0)
        room->bytes_limit = limit_now(room, store);
    return rc;
}

static uint64_t bytes_beside(const qf_lmdb_store *store, uint64_t limit, uint64_t pages)
{
    uint64_t bytes = pages * store->page_size;
    return bytes < limit ? limit - bytes : 0;
}

bool qf_lmdb_room_over(const struct qf_lmdb_room *room, const qf_lmdb_store *store)
{
    MDB_envinfo info;
    return room->file_bytes > 0 && mdb_env_info(store->env, &info) == 0 &&
           room->file_bytes >
               bytes_beside(store, store->dir.bytes_limit, info.me_last_pgno + 1);
}

bool qf_lmdb_room_covers(const struct qf_lmdb_room *room, const qf_lmdb_store *store,
                         const MDB_val *value)
{
    if (room->file_bytes == 0 && room->bytes_limit == store->dir.bytes_limit)
        return true;
    const char *page = (const char *)value->mv_data - PAGE_HEAD;
    uint64_t end = qf_load_u64(page) + qf_lmdb_pages(store, value->mv_size);
    return end <= room->high_pages ||
           room->file_bytes <
               bytes_beside(store, room->bytes_limit, end + room->slack_min);
}

struct file_search {
    struct qf_lmdb_room *room;
    qf_lmdb_store *store;
    MDB_txn *txn;
    size_t want;
    uint64_t bytes;
    bool pinned_too;
};

static int offer_file(const struct qf_hash128 *key, const struct qf_lmdb_file *file,
                      void *arg)
{
    struct file_search *search = arg;
    struct qf_lmdb_use use = {0};
    if (file->state != QF_LMDB_FILE_SEALED)
        return 0;
    int rc = qf_lmdb_use_get(search->store, search->txn, key, &use);
    if (rc != 0 && rc != MDB_NOTFOUND)
        return rc;
    if (!search->pinned_too && is_pinned(search->room, use.origin))
        return 0;
    const struct qf_lmdb_candidate c = {*key, use.last_use};
    search->bytes += file->size;
    offer(search->room, search->want, &c);
    return 0;
}

/* Files alone become the candidates. *bytes: of all that could be evicted. */
static int find_files(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                      bool pinned_too, uint64_t *bytes)
{
    MDB_stat st;
    room->candidate_count = room->candidate_next = 0;
    int rc = qf_lmdb_files_reap(store, room, txn);
    if (rc == 0)
        rc = load_pins(room, store, txn);
    if (rc == 0)
        rc = mdb_stat(txn, store->files, &st);
    if (rc != 0)
        return rc;
    struct file_search search = {.room = room,
                                 .store = store,
                                 .txn = txn,
                                 .pinned_too = pinned_too};
    search.want = candidates_wanted(st.ms_entries);
    rc = qf_lmdb_files_each(store, txn, offer_file, &search);
    sort_candidates(room);
    *bytes = search.bytes;
    return rc;
}

/* Until no more than `keep` bytes are left, or nothing that can be evicted is. */
static int evict_files(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                       uint64_t keep, bool pinned_too, uint64_t *evicted)
{
    int rc = 0;
    for (bool any = true; any && rc == 0 && room->file_bytes > keep;) {
        uint64_t size;
        any = false;
        rc = find_files(room, store, txn, pinned_too, &size);
        for (size_t i = 0; i < room->candidate_count && rc == 0; i++) {
            if (room->file_bytes <= keep)
                break;
            rc = qf_lmdb_file_evict(store, room, txn, &room->candidates[i].key, &size);
            any = any || rc == 0;
            *evicted += rc == 0;
            rc = rc == EUCLEAN || rc == MDB_NOTFOUND ? 0 : rc;
        }
    }
    room->candidate_count = room->candidate_next = 0;
    return rc;
}

int qf_lmdb_room_trim(struct qf_lmdb_room *room, qf_lmdb_store *store, MDB_txn *txn,
                      uint64_t *evicted)
{
    uint64_t keep = bytes_beside(store, store->dir.bytes_limit, room->high_pages);
    uint64_t keep_now = bytes_beside(store, room->bytes_limit, room->high_pages);
    int rc = evict_files(room, store, txn, keep, false, evicted);
    if (rc == 0)
        rc = evict_files(room, store, txn, keep, true, evicted);
    if (rc != 0 || room->file_bytes <= keep_now || qf_clock_ms() < room->short_until_ms)
        return rc;
    room->short_until_ms = qf_clock_ms() + SHORT_PAUSE_MS;
    return evict_files(room, store, txn, keep_now, false, evicted);
}

int qf_lmdb_room_make_file(struct qf_lmdb_room *room, qf_lmdb_store *store,
                           MDB_txn *txn, uint64_t size, uint64_t *evicted, bool *fits)
{
    uint64_t total =
        bytes_beside(store, room->bytes_limit, room->high_pages + room->slack_min);
    uint64_t evictable;
    int rc = find_files(room, store, txn, false, &evictable);
    *fits = rc == 0 && size <= total && room->file_bytes <= (total - size) + evictable;
    if (*fits)
        rc = evict_files(room, store, txn, total - size, false, evicted);
    *fits = *fits && room->file_bytes <= total - size;
    room->candidate_count = room->candidate_next = 0;
    return rc;
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
    /* Files have uses too; drafts have none, and cause a walk in vain. */
    if (rc == 0 && store->keeps_files) {
        MDB_stat files;
        rc = mdb_stat(txn, store->files, &files);
        values.ms_entries += rc == 0 ? files.ms_entries : 0;
    }
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
