/* SPDX-License-Identifier: Apache-2.0 */
/* The entries of the single-flight table and the lists they are in. Every call with the
 * table's lock held. Private to chunk.c and chunk_table.c. */
#ifndef QF_ENGINE_CHUNK_TABLE_H
#define QF_ENGINE_CHUNK_TABLE_H

#include "engine/chunk.h"

#ifdef __cplusplus
extern "C" {
#endif

enum chunk_state { CHUNK_QUEUED, CHUNK_ENCODING, CHUNK_READY, CHUNK_FAILED };

struct qf_chunk {
    struct qf_task task; /* while QUEUED */
    struct qf_hash128 key;
    struct qf_chunk *bucket_next;
    struct qf_chunk *prev, *next; /* in one of the table's lists */
    qf_engine *engine;
    qf_shard_file *file; /* a reference, until encoded */
    struct qf_record_id id;
    enum chunk_state state;
    bool idle;     /* in a list of idle ones */
    bool stored;   /* the store has it, and likely will for a while */
    bool in_table; /* in a bucket */
    bool loaded;   /* from the store, instead of encoded; final before READY */
    int rc;
    uint32_t refs; /* users; the table itself holds none */
    pthread_cond_t changed;
    void *data;
    size_t size;
};

/* NULL: there is none. */
struct qf_chunk *qf_chunk_table_find(struct qf_chunk_table *table,
                                     struct qf_hash128 key);
void qf_chunk_table_insert(struct qf_chunk_table *table, struct qf_chunk *chunk);
void qf_chunk_table_remove(struct qf_chunk_table *table, struct qf_chunk *chunk);
/* One more user, of an idle entry too. */
void qf_chunk_table_ref(struct qf_chunk_table *table, struct qf_chunk *chunk);
/* The entry, READY, has lost its last user. */
void qf_chunk_table_idle(struct qf_chunk_table *table, struct qf_chunk *chunk);
/* Takes out of the table the idle entries that have to make room, or all of them; they
 * are linked by bucket_next. */
struct qf_chunk *qf_chunk_table_victims(qf_engine *engine, bool all);

/* Of the table's lists an entry is in one at most. */
void qf_chunk_list_append(struct qf_chunk_list *list, struct qf_chunk *chunk);
void qf_chunk_list_remove(struct qf_chunk_list *list, struct qf_chunk *chunk);

#ifdef __cplusplus
}
#endif
#endif
