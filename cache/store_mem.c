/* SPDX-License-Identifier: Apache-2.0 */
/* One lock around a chained hash table and a list in order of use; it is held for
 * lookups and links only. Bytes are copied in before it is taken and read out after it
 * is given back: a value found holds a reference, so eviction unlinks it at once and
 * its memory goes when the last reader lets go. */
#include "cache/store.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"

#define BUCKETS_MIN 256u

struct value {
    struct value *chain; /* next in its bucket */
    struct value *newer; /* the list in order of use */
    struct value *older;
    struct qf_hash128 key;
    size_t size;
    size_t refs; /* readers, and the table while it is linked */
    _Alignas(64) char data[];
};

typedef struct mem_store {
    qf_store base;
    pthread_mutex_t lock;
    struct value **buckets;
    size_t bucket_count; /* a power of two */
    struct value *newest;
    struct value *oldest;
    struct qf_store_stats stats;
    uint64_t bytes_limit_first; /* that it was opened with */
} mem_store;

static uint64_t cost(const struct value *value)
{
    return sizeof *value + value->size;
}

static struct value **find_link(mem_store *mem, struct qf_hash128 key)
{
    struct value **link = &mem->buckets[key.low & (mem->bucket_count - 1)];
    while (*link != NULL && !qf_hash128_eq((*link)->key, key))
        link = &(*link)->chain;
    return link;
}

static void list_remove(mem_store *mem, struct value *value)
{
    *(value->newer != NULL ? &value->newer->older : &mem->newest) = value->older;
    *(value->older != NULL ? &value->older->newer : &mem->oldest) = value->newer;
}

static void list_push(mem_store *mem, struct value *value)
{
    value->newer = NULL;
    value->older = mem->newest;
    *(mem->newest != NULL ? &mem->newest->newer : &mem->oldest) = value;
    mem->newest = value;
}

static void unref(struct value *value)
{
    assert(value->refs > 0);
    if (--value->refs == 0)
        free(value);
}

static void remove_at(mem_store *mem, struct value **link)
{
    struct value *value = *link;
    *link = value->chain;
    list_remove(mem, value);
    mem->stats.entries--;
    mem->stats.bytes -= cost(value);
    unref(value);
}

static void evict_oldest(mem_store *mem)
{
    remove_at(mem, find_link(mem, mem->oldest->key));
    mem->stats.evictions++;
}

/* Without memory for more buckets the chains just get longer. */
static void grow_buckets(mem_store *mem)
{
    size_t count = mem->bucket_count * 2;
    struct value **buckets = calloc(count, sizeof buckets[0]);
    if (buckets == NULL)
        return;
    for (struct value *v = mem->newest; v != NULL; v = v->older) {
        struct value **bucket = &buckets[v->key.low & (count - 1)];
        v->chain = *bucket;
        *bucket = v;
    }
    free(mem->buckets);
    mem->buckets = buckets;
    mem->bucket_count = count;
}

static void insert(mem_store *mem, struct value *value)
{
    struct value **link = find_link(mem, value->key);
    if (*link != NULL)
        remove_at(mem, link);
    while (mem->stats.bytes + cost(value) > mem->stats.bytes_limit)
        evict_oldest(mem);
    if (mem->stats.entries >= mem->bucket_count)
        grow_buckets(mem);
    link = find_link(mem, value->key);
    value->chain = NULL;
    *link = value;
    list_push(mem, value);
    mem->stats.entries++;
    mem->stats.bytes += cost(value);
}

static bool mem_get(qf_store *store, struct qf_hash128 key, struct qf_store_value *out)
{
    mem_store *mem = (mem_store *)store;
    pthread_mutex_lock(&mem->lock);
    struct value *value = *find_link(mem, key);
    if (value != NULL) {
        value->refs++;
        list_remove(mem, value);
        list_push(mem, value);
        mem->stats.hits++;
    } else {
        mem->stats.misses++;
    }
    pthread_mutex_unlock(&mem->lock);
    if (value == NULL)
        return false;
    *out = (struct qf_store_value){value->data, value->size, value};
    return true;
}

static void mem_release(qf_store *store, struct qf_store_value *found)
{
    mem_store *mem = (mem_store *)store;
    assert(found->hold != NULL);
    pthread_mutex_lock(&mem->lock);
    unref(found->hold);
    pthread_mutex_unlock(&mem->lock);
    *found = (struct qf_store_value){0};
}

static struct value *new_value(const mem_store *mem, struct qf_hash128 key,
                               const void *data, size_t size)
{
    if (size > QF_STORED_SIZE_MAX ||
        sizeof(struct value) + size > mem->stats.bytes_limit)
        return NULL;
    /* aligned_alloc wants a whole number of alignments. */
    size_t bytes = (sizeof(struct value) + size + 63) & ~(size_t)63;
    struct value *value = aligned_alloc(64, bytes);
    if (value == NULL)
        return NULL;
    value->key = key;
    value->size = size;
    value->refs = 1;
    if (size > 0)
        memcpy(value->data, data, size);
    return value;
}

static void mem_put(qf_store *store, struct qf_hash128 key, uint64_t origin,
                    const void *data, size_t size, qf_store_done *done, void *arg)
{
    (void)origin;
    mem_store *mem = (mem_store *)store;
    struct value *value = new_value(mem, key, data, size);
    pthread_mutex_lock(&mem->lock);
    uint64_t evictions = mem->stats.evictions;
    if (value != NULL) {
        insert(mem, value);
        mem->stats.puts++;
    } else {
        mem->stats.puts_dropped++;
    }
    bool lasting = value != NULL && mem->stats.evictions == evictions;
    pthread_mutex_unlock(&mem->lock);
    done(arg, lasting);
}

static void mem_flush(qf_store *store)
{
    (void)store;
}

static void mem_stats(qf_store *store, struct qf_store_stats *out)
{
    mem_store *mem = (mem_store *)store;
    pthread_mutex_lock(&mem->lock);
    *out = mem->stats;
    pthread_mutex_unlock(&mem->lock);
}

static void mem_set_limits(qf_store *store, uint64_t bytes_limit, uint64_t min_free)
{
    mem_store *mem = (mem_store *)store;
    (void)min_free; /* of a filesystem */
    pthread_mutex_lock(&mem->lock);
    mem->stats.bytes_limit = bytes_limit != 0 ? bytes_limit : mem->bytes_limit_first;
    while (mem->stats.bytes > mem->stats.bytes_limit)
        evict_oldest(mem);
    pthread_mutex_unlock(&mem->lock);
}

static void mem_close(qf_store *store)
{
    mem_store *mem = (mem_store *)store;
    for (struct value *v = mem->newest, *older; v != NULL; v = older) {
        older = v->older;
        assert(v->refs == 1);
        free(v);
    }
    pthread_mutex_destroy(&mem->lock);
    free(mem->buckets);
    free(mem);
}

static const struct qf_store_ops mem_ops = {
    .name = "memory",
    .get = mem_get,
    .release = mem_release,
    .put = mem_put,
    .flush = mem_flush,
    .set_limits = mem_set_limits,
    .stats = mem_stats,
    .close = mem_close,
};

int qf_store_mem_open(uint64_t bytes_limit, qf_store **out)
{
    mem_store *mem = calloc(1, sizeof *mem);
    if (mem == NULL)
        return -ENOMEM;
    mem->buckets = calloc(BUCKETS_MIN, sizeof mem->buckets[0]);
    if (mem->buckets == NULL) {
        free(mem);
        return -ENOMEM;
    }
    mem->base.ops = &mem_ops;
    mem->bucket_count = BUCKETS_MIN;
    mem->stats.bytes_limit = mem->bytes_limit_first = bytes_limit;
    pthread_mutex_init(&mem->lock, NULL);
    *out = &mem->base;
    return 0;
}
