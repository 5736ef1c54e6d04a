/* SPDX-License-Identifier: Apache-2.0 */
/* Sixteen small hash tables with a lock each, held for tens of nanoseconds. A key used
 * again only moves its tick, so hot values do not fill the table. */
#include "cache/recency.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define SHARD_COUNT 16u
#define SHARD_MAX   (QF_RECENCY_COUNT_MAX / SHARD_COUNT)
#define SLOT_COUNT  (2u * SHARD_MAX)

struct shard {
    pthread_mutex_t lock;
    size_t count;
    struct qf_recent slots[SLOT_COUNT]; /* tick 0: empty */
};

struct qf_recency {
    _Atomic uint64_t tick;
    atomic_bool pending;
    struct shard shards[SHARD_COUNT];
};

qf_recency *qf_recency_new(void)
{
    qf_recency *recency = calloc(1, sizeof *recency);
    if (recency == NULL)
        return NULL;
    for (unsigned i = 0; i < SHARD_COUNT; i++)
        pthread_mutex_init(&recency->shards[i].lock, NULL);
    return recency;
}

void qf_recency_free(qf_recency *recency)
{
    if (recency == NULL)
        return;
    for (unsigned i = 0; i < SHARD_COUNT; i++)
        pthread_mutex_destroy(&recency->shards[i].lock);
    free(recency);
}

static void note_in_shard(struct shard *shard, struct qf_hash128 key, uint64_t tick)
{
    size_t i = (key.low / SHARD_COUNT) % SLOT_COUNT;
    pthread_mutex_lock(&shard->lock);
    while (shard->slots[i].tick != 0 && !qf_hash128_eq(shard->slots[i].key, key))
        i = (i + 1) % SLOT_COUNT;
    if (shard->slots[i].tick == 0 && shard->count < SHARD_MAX) {
        shard->slots[i].key = key;
        shard->slots[i].tick = tick;
        shard->slots[i].uses = 1;
        shard->count++;
    } else if (shard->slots[i].tick != 0) {
        shard->slots[i].tick = tick;
        shard->slots[i].uses++;
    }
    pthread_mutex_unlock(&shard->lock);
}

bool qf_recency_note(qf_recency *recency, struct qf_hash128 key)
{
    uint64_t tick = 1 + atomic_fetch_add(&recency->tick, 1);
    note_in_shard(&recency->shards[key.low % SHARD_COUNT], key, tick);
    return !atomic_load_explicit(&recency->pending, memory_order_relaxed) &&
           !atomic_exchange(&recency->pending, true);
}

bool qf_recency_pending(const qf_recency *recency)
{
    return atomic_load(&recency->pending);
}

static int by_tick(const void *a, const void *b)
{
    const struct qf_recent *x = a;
    const struct qf_recent *y = b;
    return (x->tick > y->tick) - (x->tick < y->tick);
}

size_t qf_recency_drain(qf_recency *recency, struct qf_recent *out)
{
    if (!atomic_exchange(&recency->pending, false))
        return 0;
    size_t count = 0;
    for (unsigned i = 0; i < SHARD_COUNT; i++) {
        struct shard *shard = &recency->shards[i];
        pthread_mutex_lock(&shard->lock);
        for (size_t j = 0; j < SLOT_COUNT && shard->count > 0; j++) {
            if (shard->slots[j].tick == 0)
                continue;
            out[count++] = shard->slots[j];
            shard->slots[j].tick = 0;
            shard->count--;
        }
        pthread_mutex_unlock(&shard->lock);
    }
    qsort(out, count, sizeof out[0], by_tick);
    return count;
}
