/* SPDX-License-Identifier: Apache-2.0 */
/* Reads everything once. Values are compared where they lie, in read transactions of
 * some megabytes each, without the marks of store_lmdb.c: what was whole an hour ago is
 * read again. Files are read like those that somebody has touched. */
#include "cache/admin.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "cache/lmdb_store.h"

#define ENTRIES_AT_ONCE 4096u
#define BYTES_AT_ONCE   (UINT64_C(16) << 20)
#define DAMAGE_AT_ONCE  64u

struct verify {
    qf_lmdb_store *store;
    const struct qf_admin_watch *watch;
    struct qf_admin_verified seen;
    uint64_t step_bytes;
    struct qf_admin_damage damage[DAMAGE_AT_ONCE];
    unsigned damage_count;
};

static void note_damage(struct verify *v, MDB_txn *txn, const struct qf_hash128 *key,
                        uint64_t size, bool file)
{
    struct qf_lmdb_use use = {0};
    int rc = qf_lmdb_use_get(v->store, txn, key, &use);
    v->damage[v->damage_count++] = (struct qf_admin_damage){
        .key = *key, .is_file = file, .origin = rc == 0 ? use.origin : 0, .size = size};
}

static int verify_value(void *arg, MDB_txn *txn, const struct qf_hash128 *key,
                        const MDB_val *val)
{
    struct verify *v = arg;
    if (!qf_lmdb_value_whole(v->store, key, val))
        note_damage(v, txn, key, val->mv_size, false);
    v->seen.values++;
    v->seen.bytes += val->mv_size;
    v->step_bytes += val->mv_size;
    return v->step_bytes >= BYTES_AT_ONCE || v->damage_count == DAMAGE_AT_ONCE;
}

static int remove_damaged_job(struct qf_lmdb_work *work, void *arg)
{
    const struct verify *v = arg;
    int rc = 0;
    for (unsigned i = 0; i < v->damage_count && rc == 0; i++) {
        MDB_val key = qf_lmdb_key(&v->damage[i].key);
        MDB_val val;
        rc = mdb_get(work->txn, v->store->values, &key, &val);
        if (rc == 0 && !qf_lmdb_value_whole(v->store, &v->damage[i].key, &val))
            rc = qf_lmdb_remove(v->store, work->txn, &v->damage[i].key);
        if (rc == MDB_NOTFOUND || rc == EUCLEAN)
            rc = 0;
    }
    return rc;
}

static void tell(const struct verify *v)
{
    for (unsigned i = 0; i < v->damage_count && v->watch->damaged != NULL; i++)
        v->watch->damaged(v->watch->arg, &v->damage[i]);
    if (v->watch->progress != NULL)
        v->watch->progress(v->watch->arg, &v->seen);
}

static int verify_values(struct verify *v)
{
    struct qf_lmdb_walk walk = {.store = v->store,
                                .dbi = v->store->values,
                                .more = true,
                                .each = verify_value,
                                .arg = v,
                                .entries_max = ENTRIES_AT_ONCE};
    int rc = 0;
    while (rc == 0 && walk.more) {
        v->step_bytes = 0;
        v->damage_count = 0;
        rc = qf_lmdb_walk_on(&walk);
        if (rc == 0 && v->damage_count > 0)
            rc = qf_lmdb_writer_run(v->store, remove_damaged_job, v, 0);
        v->seen.damaged_values += v->damage_count;
        tell(v);
    }
    return rc;
}

struct file_ref {
    struct qf_hash128 key;
    uint64_t size;
    uint64_t origin;
};

struct file_refs {
    qf_lmdb_store *store;
    struct file_ref *refs; /* owned */
    size_t count;
    size_t capacity;
    bool no_memory;
};

static int collect_file(void *arg, MDB_txn *txn, const struct qf_hash128 *key,
                        const MDB_val *val)
{
    struct file_refs *files = arg;
    struct qf_lmdb_file file;
    struct qf_lmdb_use use = {0};
    (void)val;
    if (qf_lmdb_file_get(files->store, txn, key, &file) != 0 ||
        file.state != QF_LMDB_FILE_SEALED)
        return 0;
    if (files->count == files->capacity) {
        size_t capacity = 2 * files->capacity + 16;
        void *grown = realloc(files->refs, capacity * sizeof files->refs[0]);
        files->no_memory = grown == NULL;
        if (grown == NULL)
            return 1;
        files->refs = grown;
        files->capacity = capacity;
    }
    int rc = qf_lmdb_use_get(files->store, txn, key, &use);
    files->refs[files->count++] =
        (struct file_ref){*key, file.size, rc == 0 ? use.origin : 0};
    return 0;
}

static int collect_files(struct file_refs *files)
{
    struct qf_lmdb_walk walk = {.store = files->store,
                                .dbi = files->store->files,
                                .more = files->store->keeps_files,
                                .each = collect_file,
                                .arg = files,
                                .entries_max = ENTRIES_AT_ONCE};
    int rc = 0;
    while (rc == 0 && walk.more)
        rc = files->no_memory ? -ENOMEM : qf_lmdb_walk_on(&walk);
    return files->no_memory ? -ENOMEM : rc;
}

static int verify_file(struct verify *v, const struct file_ref *ref)
{
    bool damaged = false;
    int rc = qf_lmdb_file_verify(v->store, ref->key, ref->size, &damaged);
    if (rc != 0)
        return rc;
    v->damage_count = 0;
    v->seen.files++;
    v->seen.bytes += ref->size;
    if (damaged) {
        v->seen.damaged_files++;
        v->damage[v->damage_count++] =
            (struct qf_admin_damage){ref->key, true, ref->origin, ref->size};
    }
    tell(v);
    return 0;
}

int qf_admin_verify(qf_store *base, const struct qf_admin_watch *watch,
                    struct qf_admin_verified *out)
{
    assert(strcmp(base->ops->name, "lmdb") == 0);
    struct verify *v = calloc(1, sizeof *v);
    if (v == NULL)
        return -ENOMEM;
    v->store = (qf_lmdb_store *)base;
    v->watch = watch;
    struct file_refs files = {.store = v->store};
    struct qf_store_stats stats;
    qf_store_stats(base, &stats);
    v->seen.bytes_total = stats.bytes;
    int rc = collect_files(&files);
    if (rc == 0)
        rc = verify_values(v);
    for (size_t i = 0; i < files.count && rc == 0; i++)
        rc = verify_file(v, &files.refs[i]);
    *out = v->seen;
    free(files.refs);
    free(v);
    return rc;
}
