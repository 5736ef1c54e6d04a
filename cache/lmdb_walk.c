/* SPDX-License-Identifier: Apache-2.0 */
/* A walk that holds a snapshot for all its length would keep every page that others
 * free meanwhile from coming back; so it goes in steps, each from the key after the
 * last one, in a read transaction of its own. What comes and goes between two steps is
 * seen or not. */
#include <string.h>

#include "cache/lmdb_store.h"

/* The next key is the one that follows this one. */
static void step_past(struct qf_hash128 *key)
{
    unsigned char bytes[sizeof *key];
    memcpy(bytes, key, sizeof bytes);
    for (size_t i = sizeof bytes; i-- > 0 && ++bytes[i] == 0;)
        ;
    memcpy(key, bytes, sizeof bytes);
}

static int walk_guarded(void *arg)
{
    struct qf_lmdb_walk *walk = arg;
    MDB_cursor *cursor;
    MDB_val key = qf_lmdb_key(&walk->from), val;
    int rc = mdb_cursor_open(walk->txn, walk->dbi, &cursor);
    if (rc != 0)
        return rc;
    bool stop = false;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_SET_RANGE);
    for (unsigned n = 0; rc == 0 && !stop && n < walk->entries_max; n++) {
        struct qf_hash128 k;
        if (key.mv_size == sizeof k) {
            memcpy(&k, key.mv_data, sizeof k);
            stop = walk->each(walk->arg, walk->txn, &k, &val) != 0;
            walk->from = k;
            step_past(&walk->from);
        }
        rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    walk->more = rc == 0;
    return rc == MDB_NOTFOUND ? 0 : rc;
}

int qf_lmdb_walk_on(struct qf_lmdb_walk *walk)
{
    struct qf_lmdb_slot *slot = qf_lmdb_read_begin(walk->store);
    if (slot == NULL)
        return -EIO;
    walk->txn = slot->txn;
    int rc = qf_lmdb_guard(walk_guarded, walk);
    qf_lmdb_read_end(slot);
    if (rc != 0 && rc != ENOMEM)
        qf_lmdb_fail(walk->store, rc);
    return rc == 0 ? 0 : rc == ENOMEM ? -ENOMEM : -EIO;
}
