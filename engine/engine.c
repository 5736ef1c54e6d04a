/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/engine.h"

#include <assert.h>
#include <stdlib.h>

#include "engine/chunk.h"

int qf_engine_new(const struct qf_engine_options *options, qf_engine **out)
{
    qf_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return -ENOMEM;
    engine->backend = options->backend;
    engine->store = options->store;
    uint64_t limit = options->memory_limit;
    if (limit == 0)
        limit = QF_ENGINE_MEMORY_DEFAULT;
    if (limit < QF_ENGINE_MEMORY_MIN)
        limit = QF_ENGINE_MEMORY_MIN;
    unsigned threads = options->thread_count;
    int rc = qf_pool_new(threads != 0 ? threads : qf_cpu_count(), &engine->pool);
    if (rc != 0) {
        free(engine);
        return rc;
    }
    qf_memory_init(&engine->memory, limit);
    qf_chunks_init(&engine->chunks);
    *out = engine;
    return 0;
}

void qf_engine_free(qf_engine *engine)
{
    if (engine == NULL)
        return;
    qf_pool_free(engine->pool);
    qf_store_flush(engine->store);
    qf_chunks_fini(engine);
    qf_memory_fini(&engine->memory);
    free(engine);
}

void qf_engine_stats(const qf_engine *engine, struct qf_engine_stats *out)
{
    qf_engine *e = (qf_engine *)engine; /* for the lock */
    pthread_mutex_lock(&e->memory.lock);
    uint64_t used = e->memory.used, peak = e->memory.peak;
    pthread_mutex_unlock(&e->memory.lock);
    *out = (struct qf_engine_stats){
        .chunks_encoded = atomic_load(&e->count.chunks_encoded),
        .chunks_prefetched = atomic_load(&e->count.chunks_prefetched),
        .seals = atomic_load(&e->count.seals),
        .source_bytes_read = atomic_load(&e->count.source_bytes_read),
        .cache_hits = atomic_load(&e->count.cache_hits),
        .cache_misses = atomic_load(&e->count.cache_misses),
        .bytes_served = atomic_load(&e->count.bytes_served),
        .read_errors = atomic_load(&e->count.read_errors),
        .memory_used = used,
        .memory_peak = peak,
    };
}

void *qf_engine_buffer_get(qf_engine *engine, size_t size)
{
    return qf_memory_get(&engine->memory, size);
}

void qf_engine_buffer_put(qf_engine *engine, void *buffer, size_t size)
{
    qf_memory_put(&engine->memory, buffer, size);
}

struct qf_hash128 qf_source_id(const struct qf_ident *ident,
                               struct qf_hash128 header_hash)
{
    struct {
        uint64_t dev, ino, size;
        int64_t mtime_ns, ctime_ns;
        struct qf_hash128 header;
    } id = {ident->dev,      ident->ino,      ident->size,
            ident->mtime_ns, ident->ctime_ns, header_hash};
    return qf_hash128(&id, sizeof id);
}

int qf_shard_file_open(qf_engine *engine, const struct qf_layout *layout,
                       const qf_srcfile *src, struct qf_hash128 source,
                       void (*released)(void *owner), void *owner, qf_shard_file **out)
{
    qf_shard_file *file = calloc(1, sizeof *file);
    if (file == NULL)
        return -ENOMEM;
    file->engine = engine;
    file->layout = layout;
    file->src = src;
    file->source = source;
    file->released = released;
    file->owner = owner;
    atomic_store(&file->refs, 1);
    qf_prefetch_init(&file->prefetch);
    *out = file;
    return 0;
}

void qf_shard_file_ref(qf_shard_file *file)
{
    atomic_fetch_add(&file->refs, 1);
}

void qf_shard_file_unref(qf_shard_file *file)
{
    uint32_t refs = atomic_fetch_sub(&file->refs, 1);
    assert(refs > 0);
    if (refs != 1)
        return;
    qf_prefetch_fini(&file->prefetch);
    file->released(file->owner);
    free(file);
}

void qf_shard_file_close(qf_shard_file *file)
{
    qf_shard_file_unref(file);
}
