/* SPDX-License-Identifier: Apache-2.0 */
/* All walks go in steps: some entries in a read transaction of their own, then, when
 * something is to be changed, a job of the writer that looks at each of them again. A
 * daemon that shares the directory thus waits for no more than a step, and pages that
 * it frees come back. */
#include "cache/admin.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cache/lmdb_store.h"

#define USES_AT_ONCE   4096u
#define REMOVE_AT_ONCE 64u

static qf_lmdb_store *lmdb_of(qf_store *store)
{
    assert(strcmp(store->ops->name, "lmdb") == 0);
    return (qf_lmdb_store *)store;
}

static bool read_use(const MDB_val *val, struct qf_lmdb_use *out)
{
    if (val->mv_size != sizeof *out)
        return false;
    memcpy(out, val->mv_data, sizeof *out);
    return true;
}

static bool is_file(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key)
{
    struct qf_lmdb_file file;
    return store->keeps_files && qf_lmdb_file_get(store, txn, key, &file) == 0;
}

/* ---- list ---- */

struct listing {
    qf_lmdb_store *store;
    struct qf_admin_list *list;
    size_t capacity;
    MDB_txn *txn;
    bool no_memory;
};

static struct qf_admin_origin *add_origin(struct listing *l, uint64_t id,
                                          const char *view, const char *store,
                                          const char *model)
{
    struct qf_admin_list *list = l->list;
    if (list->count == l->capacity) {
        size_t capacity = 2 * l->capacity + 16;
        void *grown = realloc(list->origins, capacity * sizeof list->origins[0]);
        if (grown == NULL)
            return NULL;
        list->origins = grown;
        l->capacity = capacity;
    }
    struct qf_admin_origin *origin = &list->origins[list->count];
    *origin = (struct qf_admin_origin){.id = id,
                                       .view = strdup(view),
                                       .store = strdup(store),
                                       .model = strdup(model)};
    list->count++; /* qf_admin_list_fini frees it, whole or not */
    return origin->view != NULL && origin->store != NULL && origin->model != NULL
               ? origin
               : NULL;
}

static int take_origin(const struct qf_lmdb_origin *o, void *arg)
{
    struct listing *l = arg;
    struct qf_admin_origin *origin = add_origin(l, o->id, o->view, o->store, o->model);
    if (origin == NULL)
        return ENOMEM;
    origin->pinned = o->pinned;
    return 0;
}

static int take_origins(void *arg)
{
    struct listing *l = arg;
    return qf_lmdb_origins_each(l->store, l->txn, take_origin, l);
}

static int by_id(const void *a, const void *b)
{
    const struct qf_admin_origin *x = a;
    const struct qf_admin_origin *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

static int by_names(const void *a, const void *b)
{
    const struct qf_admin_origin *x = a;
    const struct qf_admin_origin *y = b;
    int order = strcmp(x->store, y->store);
    if (order == 0)
        order = strcmp(x->model, y->model);
    return order != 0 ? order : strcmp(x->view, y->view);
}

static void sort_by_id(struct listing *l)
{
    qsort(l->list->origins, l->list->count, sizeof l->list->origins[0], by_id);
}

static struct qf_admin_origin *find_origin(const struct listing *l, uint64_t id)
{
    const struct qf_admin_origin key = {.id = id};
    return bsearch(&key, l->list->origins, l->list->count, sizeof key, by_id);
}

/* The origin of a use, which may have been written since the listing began: it came in
 * the transaction of the use, so this one knows it. An id without a record is counted
 * as not known, in the entry of id 0. NULL: no memory. */
static struct qf_admin_origin *origin_of(struct listing *l, MDB_txn *txn, uint64_t id)
{
    struct qf_admin_origin *found = find_origin(l, id);
    struct qf_lmdb_origin late;
    if (found != NULL)
        return found;
    if (!qf_lmdb_origin_get(l->store, txn, id, &late))
        return find_origin(l, 0);
    if (take_origin(&late, l) != 0)
        return NULL;
    sort_by_id(l);
    return find_origin(l, id);
}

static int list_use(void *arg, MDB_txn *txn, const struct qf_hash128 *key,
                    const MDB_val *val)
{
    struct listing *l = arg;
    struct qf_lmdb_use use;
    if (!read_use(val, &use))
        return 0;
    struct qf_admin_origin *origin = origin_of(l, txn, use.origin);
    if (origin == NULL) {
        l->no_memory = true;
        return 1;
    }
    bool file = is_file(l->store, txn, key);
    *(file ? &origin->files : &origin->values) += 1;
    *(file ? &origin->file_bytes : &origin->bytes) += use.size;
    origin->hits += use.hits;
    if (use.last_s > origin->last_s)
        origin->last_s = use.last_s;
    return 0;
}

static void drop_empty(struct qf_admin_list *list)
{
    size_t kept = 0;
    for (size_t i = 0; i < list->count; i++) {
        struct qf_admin_origin *o = &list->origins[i];
        if (o->values != 0 || o->files != 0 || o->pinned) {
            list->origins[kept++] = *o;
            continue;
        }
        free(o->view);
        free(o->store);
        free(o->model);
    }
    list->count = kept;
}

int qf_admin_list(qf_store *base, struct qf_admin_list *out)
{
    qf_lmdb_store *store = lmdb_of(base);
    struct listing l = {.store = store, .list = out};
    *out = (struct qf_admin_list){0};
    int rc = add_origin(&l, 0, "", "", "") != NULL ? 0 : -ENOMEM;
    struct qf_lmdb_slot *slot = rc == 0 ? qf_lmdb_read_begin(store) : NULL;
    if (slot != NULL) {
        l.txn = slot->txn;
        rc = qf_lmdb_guard(take_origins, &l);
        rc = rc == 0 ? 0 : rc == ENOMEM ? -ENOMEM : -EIO;
        qf_lmdb_read_end(slot);
    } else if (rc == 0) {
        rc = -EIO;
    }
    if (rc == 0)
        sort_by_id(&l);
    struct qf_lmdb_walk walk = {.store = store,
                                .dbi = store->uses,
                                .more = true,
                                .each = list_use,
                                .arg = &l,
                                .entries_max = USES_AT_ONCE};
    while (rc == 0 && walk.more && !l.no_memory)
        rc = qf_lmdb_walk_on(&walk);
    if (l.no_memory)
        rc = -ENOMEM;
    if (rc != 0) {
        qf_admin_list_fini(out);
        return rc;
    }
    drop_empty(out);
    qsort(out->origins, out->count, sizeof out->origins[0], by_names);
    return 0;
}

void qf_admin_list_fini(struct qf_admin_list *list)
{
    for (size_t i = 0; i < list->count; i++) {
        free(list->origins[i].view);
        free(list->origins[i].store);
        free(list->origins[i].model);
    }
    free(list->origins);
    *list = (struct qf_admin_list){0};
}

/* ---- remove ---- */

struct removal {
    qf_lmdb_store *store;
    const struct qf_admin_which *which;
    bool dry_run;
    struct qf_hash128 keys[REMOVE_AT_ONCE];
    unsigned count;
    struct qf_admin_removed step; /* of a job, which may run several times */
    struct qf_admin_removed total;
};

static bool wanted(const struct qf_admin_which *which, const struct qf_lmdb_use *use)
{
    bool named = which->all;
    for (size_t i = 0; i < which->origin_count && !named; i++)
        named = which->origins[i] == use->origin;
    return named && (which->before_s == 0 || use->last_s < which->before_s);
}

static void count_removed(struct qf_admin_removed *out, bool file, uint64_t size)
{
    *(file ? &out->files : &out->values) += 1;
    *(file ? &out->file_bytes : &out->bytes) += size;
}

static int collect_use(void *arg, MDB_txn *txn, const struct qf_hash128 *key,
                       const MDB_val *val)
{
    struct removal *r = arg;
    struct qf_lmdb_use use;
    if (!read_use(val, &use) || !wanted(r->which, &use))
        return 0;
    if (r->dry_run) {
        count_removed(&r->total, is_file(r->store, txn, key), use.size);
        return 0;
    }
    r->keys[r->count++] = *key;
    return r->count == REMOVE_AT_ONCE;
}

static int remove_one(struct qf_lmdb_work *work, struct removal *r,
                      const struct qf_hash128 *key)
{
    struct qf_lmdb_use use;
    uint64_t size;
    int rc = qf_lmdb_use_get(r->store, work->txn, key, &use);
    if (rc != 0 || !wanted(r->which, &use))
        return rc;
    rc = r->store->keeps_files
             ? qf_lmdb_file_evict(r->store, work->room, work->txn, key, &size)
             : MDB_NOTFOUND;
    bool file = rc == 0;
    if (rc == MDB_NOTFOUND)
        rc = qf_lmdb_remove(r->store, work->txn, key);
    if (rc == 0)
        count_removed(&r->step, file, use.size);
    return rc;
}

static int remove_job(struct qf_lmdb_work *work, void *arg)
{
    struct removal *r = arg;
    int rc = 0;
    r->step = (struct qf_admin_removed){0};
    for (unsigned i = 0; i < r->count && rc == 0; i++) {
        rc = remove_one(work, r, &r->keys[i]);
        if (rc == MDB_NOTFOUND || rc == EUCLEAN)
            rc = 0;
    }
    return rc;
}

struct forget {
    const struct qf_admin_which *which;
    uint64_t *ids; /* owned; those of which nothing is kept become 0 … */
    size_t count;
    size_t capacity;
};

static int note_id(const struct qf_lmdb_origin *origin, void *arg)
{
    struct forget *f = arg;
    bool named = f->which->all;
    for (size_t i = 0; i < f->which->origin_count && !named; i++)
        named = f->which->origins[i] == origin->id;
    if (!named || (origin->pinned && !f->which->all))
        return 0;
    if (f->count == f->capacity) {
        size_t capacity = 2 * f->capacity + 16;
        uint64_t *grown = realloc(f->ids, capacity * sizeof *grown);
        if (grown == NULL)
            return ENOMEM;
        f->ids = grown;
        f->capacity = capacity;
    }
    f->ids[f->count++] = origin->id;
    return 0;
}

/* Takes out of the list what still is the origin of something. */
static int keep_used(qf_lmdb_store *store, MDB_txn *txn, struct forget *f)
{
    MDB_cursor *cursor;
    MDB_val key, val;
    int rc = mdb_cursor_open(txn, store->uses, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    for (; rc == 0 && f->count > 0; rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT)) {
        struct qf_lmdb_use use;
        for (size_t i = 0; i < f->count && read_use(&val, &use); i++)
            if (f->ids[i] == use.origin)
                f->ids[i] = f->ids[--f->count];
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

static int forget_job(struct qf_lmdb_work *work, void *arg)
{
    struct forget *f = arg;
    f->count = 0;
    int rc = qf_lmdb_origins_each(work->store, work->txn, note_id, f);
    if (rc == 0 && f->count > 0)
        rc = keep_used(work->store, work->txn, f);
    for (size_t i = 0; i < f->count && rc == 0; i++) {
        MDB_val key = {.mv_size = sizeof f->ids[i], .mv_data = &f->ids[i]};
        rc = mdb_del(work->txn, work->store->origins, &key, NULL);
    }
    return rc;
}

static int forget_origins(qf_lmdb_store *store, const struct qf_admin_which *which)
{
    struct forget f = {.which = which};
    int rc = qf_lmdb_writer_run(store, forget_job, &f, 0);
    free(f.ids);
    return rc;
}

int qf_admin_remove(qf_store *base, const struct qf_admin_which *which, bool dry_run,
                    struct qf_admin_removed *out)
{
    qf_lmdb_store *store = lmdb_of(base);
    struct removal r = {.store = store, .which = which, .dry_run = dry_run};
    struct qf_lmdb_walk walk = {.store = store,
                                .dbi = store->uses,
                                .more = true,
                                .each = collect_use,
                                .arg = &r,
                                .entries_max = USES_AT_ONCE};
    int rc = 0;
    while (rc == 0 && walk.more) {
        r.count = 0;
        rc = qf_lmdb_walk_on(&walk);
        if (rc != 0 || r.count == 0)
            continue;
        rc = qf_lmdb_writer_run(store, remove_job, &r, 0);
        if (rc != 0)
            break;
        r.total.values += r.step.values;
        r.total.bytes += r.step.bytes;
        r.total.files += r.step.files;
        r.total.file_bytes += r.step.file_bytes;
    }
    if (rc == 0 && !dry_run)
        rc = forget_origins(store, which);
    *out = r.total;
    return rc;
}

/* ---- pin ---- */

struct pin {
    uint64_t origin;
    bool pinned;
    bool found;
};

static int pin_job(struct qf_lmdb_work *work, void *arg)
{
    struct pin *pin = arg;
    int rc = qf_lmdb_origin_pin(work->store, work->txn, pin->origin, pin->pinned);
    pin->found = rc == 0;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int qf_admin_pin(qf_store *base, uint64_t origin, bool pinned)
{
    struct pin pin = {.origin = origin, .pinned = pinned};
    int rc = qf_lmdb_writer_run(lmdb_of(base), pin_job, &pin, 0);
    return rc != 0 ? rc : pin.found ? 0 : -ENOENT;
}
