/* SPDX-License-Identifier: Apache-2.0 */
/* Where values come from, and when they were used. An id is the hash of its texts, so
 * every process has the same one for the same place, a record proves itself, and one
 * that is damaged is skipped. A mount names its origins long before something is put
 * down for them: the names wait in memory and go into the transaction of a value when
 * the database does not know them (any more: another process may have cleared it). */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "cache/lmdb_store.h"

#define FLAG_PINNED UINT64_C(1)
#define HEAD_SIZE   sizeof(uint64_t) /* flags, before the texts */
/* Views with settings are named by whoever looks at a mount. What comes from more
 * places than this, in one process, is listed as from none. */
#define NAMES_MAX 16384u

struct name {
    struct name *next;
    uint64_t id;
    size_t size;
    char text[]; /* view, store, model, each with its NUL */
};

struct qf_lmdb_names {
    pthread_mutex_t lock;
    struct name *head;
    size_t count;
};

struct qf_lmdb_names *qf_lmdb_names_new(void)
{
    struct qf_lmdb_names *names = calloc(1, sizeof *names);
    if (names != NULL)
        pthread_mutex_init(&names->lock, NULL);
    return names;
}

void qf_lmdb_names_free(struct qf_lmdb_names *names)
{
    if (names == NULL)
        return;
    while (names->head != NULL) {
        struct name *name = names->head;
        names->head = name->next;
        free(name);
    }
    pthread_mutex_destroy(&names->lock);
    free(names);
}

/* With the lock held. */
static const struct name *find(const struct qf_lmdb_names *names, uint64_t id)
{
    const struct name *name = names->head;
    while (name != NULL && name->id != id)
        name = name->next;
    return name;
}

static uint64_t id_of(const char *text, size_t size)
{
    uint64_t id = qf_hash64(text, size);
    return id != 0 ? id : 1;
}

uint64_t qf_lmdb_origin(qf_store *base, const char *view, const char *store_path,
                        const char *model_path)
{
    struct qf_lmdb_names *names = ((qf_lmdb_store *)base)->names;
    const char *const texts[] = {view, store_path, model_path};
    size_t size = 0;
    for (unsigned i = 0; i < 3; i++)
        size += strlen(texts[i]) + 1;
    struct name *name =
        size <= QF_STORE_ORIGIN_SIZE_MAX ? malloc(sizeof *name + size) : NULL;
    if (name == NULL)
        return 0;
    name->size = 0;
    for (unsigned i = 0; i < 3; i++) {
        memcpy(name->text + name->size, texts[i], strlen(texts[i]) + 1);
        name->size += strlen(texts[i]) + 1;
    }
    uint64_t id = name->id = id_of(name->text, size);
    pthread_mutex_lock(&names->lock);
    if (find(names, id) == NULL && names->count < NAMES_MAX) {
        name->next = names->head;
        names->head = name;
        names->count++;
        name = NULL;
    } else if (find(names, id) == NULL) {
        id = 0;
    }
    pthread_mutex_unlock(&names->lock);
    free(name);
    return id;
}

int qf_lmdb_origin_write(qf_lmdb_store *store, MDB_txn *txn, uint64_t id)
{
    MDB_val key = {.mv_size = sizeof id, .mv_data = &id};
    MDB_val val;
    int rc = id != 0 ? mdb_get(txn, store->origins, &key, &val) : 0;
    if (rc != MDB_NOTFOUND)
        return rc;
    pthread_mutex_lock(&store->names->lock);
    const struct name *name = find(store->names, id);
    pthread_mutex_unlock(&store->names->lock); /* names stay until the end */
    if (name == NULL)
        return 0;
    val.mv_size = HEAD_SIZE + name->size;
    rc = mdb_put(txn, store->origins, &key, &val, MDB_RESERVE);
    if (rc != 0)
        return rc;
    memset(val.mv_data, 0, HEAD_SIZE);
    memcpy((char *)val.mv_data + HEAD_SIZE, name->text, name->size);
    return 0;
}

static bool read_origin(const MDB_val *key, const MDB_val *val,
                        struct qf_lmdb_origin *out)
{
    const char *texts[3];
    if (key->mv_size != sizeof out->id || val->mv_size <= HEAD_SIZE ||
        val->mv_size > HEAD_SIZE + QF_STORE_ORIGIN_SIZE_MAX)
        return false;
    const char *text = (const char *)val->mv_data + HEAD_SIZE;
    const char *end = (const char *)val->mv_data + val->mv_size;
    out->id = qf_load_u64(key->mv_data);
    if (out->id != id_of(text, (size_t)(end - text)))
        return false;
    for (unsigned i = 0; i < 3; i++) {
        const char *nul = memchr(text, '\0', (size_t)(end - text));
        if (nul == NULL)
            return false;
        texts[i] = text;
        text = nul + 1;
    }
    out->pinned = qf_load_u64(val->mv_data) == FLAG_PINNED;
    out->view = texts[0];
    out->store = texts[1];
    out->model = texts[2];
    return text == end;
}

int qf_lmdb_origins_each(qf_lmdb_store *store, MDB_txn *txn,
                         int (*fn)(const struct qf_lmdb_origin *origin, void *arg),
                         void *arg)
{
    MDB_cursor *cursor;
    MDB_val key, val;
    int rc = mdb_cursor_open(txn, store->origins, &cursor);
    if (rc != 0)
        return rc;
    rc = mdb_cursor_get(cursor, &key, &val, MDB_FIRST);
    while (rc == 0) {
        struct qf_lmdb_origin origin;
        if (read_origin(&key, &val, &origin))
            rc = fn(&origin, arg);
        if (rc == 0)
            rc = mdb_cursor_get(cursor, &key, &val, MDB_NEXT);
    }
    mdb_cursor_close(cursor);
    return rc == MDB_NOTFOUND ? 0 : rc;
}

bool qf_lmdb_origin_get(qf_lmdb_store *store, MDB_txn *txn, uint64_t id,
                        struct qf_lmdb_origin *out)
{
    MDB_val key = {.mv_size = sizeof id, .mv_data = &id};
    MDB_val val;
    return id != 0 && mdb_get(txn, store->origins, &key, &val) == 0 &&
           read_origin(&key, &val, out);
}

bool qf_lmdb_origin_pinned(qf_lmdb_store *store, MDB_txn *txn, uint64_t id)
{
    struct qf_lmdb_origin origin;
    return qf_lmdb_origin_get(store, txn, id, &origin) && origin.pinned;
}

int qf_lmdb_origin_pin(qf_lmdb_store *store, MDB_txn *txn, uint64_t id, bool pinned)
{
    char copy[HEAD_SIZE + QF_STORE_ORIGIN_SIZE_MAX];
    struct qf_lmdb_origin origin;
    MDB_val key = {.mv_size = sizeof id, .mv_data = &id};
    MDB_val val;
    int rc = mdb_get(txn, store->origins, &key, &val);
    if (rc != 0)
        return rc;
    if (!read_origin(&key, &val, &origin))
        return MDB_NOTFOUND;
    memcpy(copy, val.mv_data, val.mv_size);
    val.mv_data = copy;
    qf_store_u64(copy, pinned ? FLAG_PINNED : 0);
    return mdb_put(txn, store->origins, &key, &val, 0);
}

/* ---- uses ---- */

uint64_t qf_lmdb_now_s(void)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME_COARSE, &now);
    return now.tv_sec > 0 ? (uint64_t)now.tv_sec : 0;
}

int qf_lmdb_use_get(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                    struct qf_lmdb_use *out)
{
    MDB_val k = qf_lmdb_key(key);
    MDB_val v;
    int rc = mdb_get(txn, store->uses, &k, &v);
    if (rc != 0)
        return rc;
    if (v.mv_size != sizeof *out)
        return MDB_NOTFOUND;
    memcpy(out, v.mv_data, sizeof *out);
    return 0;
}

int qf_lmdb_use_put(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                    const struct qf_lmdb_use *use)
{
    MDB_val k = qf_lmdb_key(key);
    MDB_val v = {.mv_size = sizeof *use, .mv_data = (void *)(uintptr_t)use};
    return mdb_put(txn, store->uses, &k, &v, 0);
}

int qf_lmdb_use_begin(qf_lmdb_store *store, MDB_txn *txn, const struct qf_hash128 *key,
                      uint64_t clock, uint64_t size, uint64_t origin)
{
    const struct qf_lmdb_use use = {.last_use = clock,
                                    .size = size,
                                    .origin = origin,
                                    .last_s = qf_lmdb_now_s()};
    int rc = qf_lmdb_origin_write(store, txn, origin);
    return rc != 0 ? rc : qf_lmdb_use_put(store, txn, key, &use);
}
