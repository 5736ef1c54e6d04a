/* SPDX-License-Identifier: Apache-2.0 */
/* Records lie in slabs (slabs.h) as long as the limit has room for slabs. Everything
 * else is at most about a megabyte and most of it of one size, so free lists by
 * multiples of 16 KiB hold it with little waste; what is larger (a big tensor's seal)
 * goes to the system each time. Idle buffers are bounded. Both kinds count the same. */
#include "engine/memory.h"

#include <assert.h>
#include <stdlib.h>

#define CLASS_STEP ((size_t)16 << 10)
#define IDLE_MAX   ((uint64_t)32 << 20)

struct qf_memory_block {
    struct qf_memory_block *next;
};

static size_t class_of(size_t size)
{
    return size == 0 ? 0 : (size - 1) / CLASS_STEP;
}

static size_t rounded(size_t size)
{
    return (class_of(size) + 1) * CLASS_STEP;
}

void qf_memory_init(struct qf_memory *memory, uint64_t limit, qf_backend *backend)
{
    *memory = (struct qf_memory){.limit = limit};
    pthread_mutex_init(&memory->lock, NULL);
    qf_slabs_init(&memory->slabs, backend, limit);
}

void qf_memory_fini(struct qf_memory *memory)
{
    assert(memory->used == 0);
    for (size_t i = 0; i < QF_MEMORY_CLASSES; i++) {
        struct qf_memory_block *block = memory->free[i];
        while (block != NULL) {
            struct qf_memory_block *next = block->next;
            free(block);
            block = next;
        }
    }
    qf_slabs_fini(&memory->slabs);
    pthread_mutex_destroy(&memory->lock);
}

static void count_in(struct qf_memory *memory, size_t bytes)
{
    memory->used += bytes;
    if (memory->used > memory->peak)
        memory->peak = memory->used;
}

void *qf_memory_get(struct qf_memory *memory, size_t size)
{
    size_t class = class_of(size);
    size_t bytes = rounded(size);
    pthread_mutex_lock(&memory->lock);
    count_in(memory, bytes);
    struct qf_memory_block *block = NULL;
    if (class < QF_MEMORY_CLASSES && memory->free[class] != NULL) {
        block = memory->free[class];
        memory->free[class] = block->next;
        memory->idle -= bytes;
    }
    pthread_mutex_unlock(&memory->lock);
    if (block != NULL)
        return block;
    void *data = aligned_alloc(64, bytes);
    if (data == NULL) {
        pthread_mutex_lock(&memory->lock);
        memory->used -= bytes;
        pthread_mutex_unlock(&memory->lock);
    }
    return data;
}

void *qf_memory_get_record(struct qf_memory *memory, size_t size)
{
    void *data = qf_slabs_get(&memory->slabs, size);
    if (data == NULL)
        return qf_memory_get(memory, size);
    pthread_mutex_lock(&memory->lock);
    count_in(memory, rounded(size));
    pthread_mutex_unlock(&memory->lock);
    return data;
}

void qf_memory_put(struct qf_memory *memory, void *data, size_t size)
{
    if (data == NULL)
        return;
    size_t class = class_of(size);
    size_t bytes = rounded(size);
    bool in_slab = qf_slabs_put(&memory->slabs, data, size);
    pthread_mutex_lock(&memory->lock);
    assert(memory->used >= bytes);
    memory->used -= bytes;
    if (!in_slab && class < QF_MEMORY_CLASSES && memory->idle + bytes <= IDLE_MAX) {
        struct qf_memory_block *block = data;
        block->next = memory->free[class];
        memory->free[class] = block;
        memory->idle += bytes;
        data = NULL;
    }
    pthread_mutex_unlock(&memory->lock);
    if (!in_slab)
        free(data);
}

uint64_t qf_memory_cost(size_t size)
{
    return rounded(size);
}

uint64_t qf_memory_excess(struct qf_memory *memory, unsigned percent)
{
    pthread_mutex_lock(&memory->lock);
    uint64_t bound = memory->limit / 100 * percent;
    uint64_t excess = memory->used > bound ? memory->used - bound : 0;
    pthread_mutex_unlock(&memory->lock);
    return excess;
}

uint64_t qf_memory_room(struct qf_memory *memory, unsigned percent)
{
    pthread_mutex_lock(&memory->lock);
    uint64_t bound = memory->limit / 100 * percent;
    uint64_t room = memory->used < bound ? bound - memory->used : 0;
    pthread_mutex_unlock(&memory->lock);
    return room;
}
