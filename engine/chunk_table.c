/* SPDX-License-Identifier: Apache-2.0 */
/* Idle records that the store has are in a list of their own: they go first, and soon.
 * The next ones are then encoded into memory that was used a moment ago, instead of
 * fresh pages, which cost as much as the encoding. */
#include "engine/chunk_table.h"

/* Above this share of the memory in use, idle records are let go. */
#define IDLE_PERCENT 50
/* Above this, idle ones that the store has. */
#define STORED_PERCENT 12

/* Where the entry of that key hangs, or NULL would be put. */
static struct qf_chunk **find_link(struct qf_chunk_table *table, struct qf_hash128 key)
{
    struct qf_chunk **link = &table->buckets[key.low % QF_CHUNK_BUCKETS];
    while (*link != NULL && !qf_hash128_eq((*link)->key, key))
        link = &(*link)->bucket_next;
    return link;
}

struct qf_chunk *qf_chunk_table_find(struct qf_chunk_table *table,
                                     struct qf_hash128 key)
{
    return *find_link(table, key);
}

void qf_chunk_table_insert(struct qf_chunk_table *table, struct qf_chunk *chunk)
{
    struct qf_chunk **bucket = &table->buckets[chunk->key.low % QF_CHUNK_BUCKETS];
    chunk->bucket_next = *bucket;
    *bucket = chunk;
    chunk->in_table = true;
}

void qf_chunk_table_remove(struct qf_chunk_table *table, struct qf_chunk *chunk)
{
    *find_link(table, chunk->key) = chunk->bucket_next;
    chunk->in_table = false;
}

void qf_chunk_list_append(struct qf_chunk_list *list, struct qf_chunk *chunk)
{
    chunk->prev = list->tail;
    chunk->next = NULL;
    if (list->tail != NULL)
        list->tail->next = chunk;
    else
        list->head = chunk;
    list->tail = chunk;
    list->cost += qf_memory_cost(chunk->size);
    list->count++;
}

void qf_chunk_list_remove(struct qf_chunk_list *list, struct qf_chunk *chunk)
{
    if (chunk->prev != NULL)
        chunk->prev->next = chunk->next;
    else
        list->head = chunk->next;
    if (chunk->next != NULL)
        chunk->next->prev = chunk->prev;
    else
        list->tail = chunk->prev;
    list->cost -= qf_memory_cost(chunk->size);
    list->count--;
}

static struct qf_chunk_list *idle_list(struct qf_chunk_table *table,
                                       const struct qf_chunk *chunk)
{
    return chunk->stored ? &table->idle_stored : &table->idle_only;
}

void qf_chunk_table_ref(struct qf_chunk_table *table, struct qf_chunk *chunk)
{
    if (chunk->idle)
        qf_chunk_list_remove(idle_list(table, chunk), chunk);
    chunk->idle = false;
    chunk->refs++;
}

void qf_chunk_table_idle(struct qf_chunk_table *table, struct qf_chunk *chunk)
{
    qf_chunk_list_append(idle_list(table, chunk), chunk);
    chunk->idle = true;
}

/* The next to go, if one has to: `excess` bytes are in use beyond what is allowed. */
static struct qf_chunk *next_victim(const qf_engine *engine, uint64_t excess)
{
    const struct qf_chunk_table *table = &engine->chunks;
    uint64_t stored_max = engine->memory.limit / 100 * STORED_PERCENT;
    if (table->idle_stored.cost > stored_max ||
        (excess > 0 && table->idle_stored.head != NULL))
        return table->idle_stored.head;
    return excess > 0 ? table->idle_only.head : NULL;
}

struct qf_chunk *qf_chunk_table_victims(qf_engine *engine, bool all)
{
    struct qf_chunk_table *table = &engine->chunks;
    struct qf_chunk *victims = NULL;
    uint64_t excess =
        all ? UINT64_MAX : qf_memory_excess(&engine->memory, IDLE_PERCENT);
    struct qf_chunk *chunk;
    while ((chunk = next_victim(engine, excess)) != NULL) {
        uint64_t cost = qf_memory_cost(chunk->size);
        qf_chunk_list_remove(idle_list(table, chunk), chunk);
        qf_chunk_table_remove(table, chunk);
        excess -= cost < excess ? cost : excess;
        chunk->bucket_next = victims;
        victims = chunk;
    }
    return victims;
}
