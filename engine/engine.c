/* SPDX-License-Identifier: Apache-2.0 */
#include "engine/engine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/path.h"
#include "engine/chunk.h"

int qf_engine_new(const struct qf_engine_options *options, qf_engine **out)
{
    qf_engine *engine = calloc(1, sizeof *engine);
    if (engine == NULL)
        return -ENOMEM;
    engine->backend = options->backend;
    engine->store = options->store;
    engine->storing_first = options->storing_first;
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
    qf_memory_init(&engine->memory, limit, engine->backend);
    qf_chunks_init(&engine->chunks);
    qf_sealer_init(&engine->sealer);
    *out = engine;
    return 0;
}

void qf_engine_free(qf_engine *engine)
{
    if (engine == NULL)
        return;
    /* First: it holds files, on which workers may be at work. */
    qf_sealer_stop(&engine->sealer);
    qf_pool_free(engine->pool);
    qf_store_flush(engine->store);
    qf_chunks_fini(engine);
    qf_sealer_fini(&engine->sealer);
    qf_memory_fini(&engine->memory);
    free(engine);
}

void qf_engine_stats(const qf_engine *engine, struct qf_engine_stats *out)
{
    qf_engine *e = (qf_engine *)engine; /* for the lock */
    pthread_mutex_lock(&e->memory.lock);
    uint64_t used = e->memory.used, peak = e->memory.peak;
    pthread_mutex_unlock(&e->memory.lock);
    pthread_mutex_lock(&e->chunks.lock);
    *out = (struct qf_engine_stats){
        .backend_name = qf_backend_name(e->backend),
        .chunks_queued = e->chunks.queue.count,
        .chunks_encoding = e->chunks.encoding_count,
        .readers_waiting = e->chunks.waiting_count,
        .storing_bytes = e->chunks.storing_size,
        .chunks_encoded = atomic_load(&e->count.chunks_encoded),
        .chunks_prefetched = atomic_load(&e->count.chunks_prefetched),
        .seals = atomic_load(&e->count.seals),
        .source_bytes_read = atomic_load(&e->count.source_bytes_read),
        .cache_hits = atomic_load(&e->count.cache_hits),
        .cache_misses = atomic_load(&e->count.cache_misses),
        .bytes_served = atomic_load(&e->count.bytes_served),
        .bytes_memory = atomic_load(&e->count.bytes_memory),
        .bytes_cache = atomic_load(&e->count.bytes_cache),
        .bytes_encoded = atomic_load(&e->count.bytes_encoded),
        .bytes_source = atomic_load(&e->count.bytes_source),
        .read_errors = atomic_load(&e->count.read_errors),
        .shards_sealed = atomic_load(&e->count.shards_sealed),
        .sealed_reads = atomic_load(&e->count.sealed_reads),
        .sealed_bytes = atomic_load(&e->count.sealed_bytes),
        .memory_used = used,
        .memory_peak = peak,
        .memory_limit = e->memory.limit,
    };
    pthread_mutex_unlock(&e->chunks.lock);
    qf_backend_stats(e->backend, &out->backend);
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

#define SHA256_DIGITS 64

bool qf_source_id_of_blob(const char *path, uint64_t size,
                          struct qf_hash128 header_hash, struct qf_hash128 *out)
{
    static const char blobs[] = "blobs/";
    const char *name = qf_path_name(path);
    size_t before = (size_t)(name - path);
    if (strlen(name) != SHA256_DIGITS ||
        strspn(name, "0123456789abcdef") != SHA256_DIGITS || before < strlen(blobs) ||
        memcmp(name - strlen(blobs), blobs, strlen(blobs)) != 0 ||
        (before > strlen(blobs) && name[-(ptrdiff_t)strlen(blobs) - 1] != '/'))
        return false;
    struct {
        char sha256[SHA256_DIGITS];
        uint64_t size;
        struct qf_hash128 header;
    } id = {.size = size, .header = header_hash};
    memcpy(id.sha256, name, SHA256_DIGITS);
    *out = qf_hash128(&id, sizeof id);
    return true;
}

int qf_shard_file_open(qf_engine *engine, const struct qf_layout *layout,
                       const struct qf_shard_source *sources, size_t source_count,
                       uint64_t origin, void (*released)(void *owner), void *owner,
                       qf_shard_file **out)
{
    assert(source_count > 0);
    qf_shard_file *file = calloc(1, sizeof *file + source_count * sizeof *sources);
    if (file == NULL)
        return -ENOMEM;
    file->engine = engine;
    file->layout = layout;
    file->source_count = source_count;
    memcpy(file->sources, sources, source_count * sizeof *sources);
    file->origin = origin;
    file->released = released;
    file->owner = owner;
    atomic_store(&file->refs, 1);
    qf_prefetch_init(&file->prefetch);
    int rc = qf_sealed_init(file);
    if (rc != 0) {
        qf_prefetch_fini(&file->prefetch);
        free(file);
        return rc;
    }
    *out = file;
    return 0;
}

const struct qf_shard_source *qf_shard_file_source(const qf_shard_file *file,
                                                   uint32_t tensor)
{
    uint32_t source = file->layout->tensors[tensor].source;
    assert(source < file->source_count);
    return &file->sources[source];
}

int qf_shard_file_check(const qf_shard_file *file)
{
    int rc = 0;
    for (size_t i = 0; i < file->source_count && rc == 0; i++)
        rc = qf_srcfile_check(file->sources[i].src);
    return rc;
}

void qf_shard_file_ref(qf_shard_file *file)
{
    atomic_fetch_add(&file->refs, 1);
}

void qf_shard_file_unref(qf_shard_file *file)
{
    uint32_t refs = atomic_fetch_sub(&file->refs, 1);
    assert(refs > 0);
    if (refs != 1 || qf_sealed_end(file))
        return;
    qf_prefetch_fini(&file->prefetch);
    file->released(file->owner);
    free(file);
}

void qf_shard_file_close(qf_shard_file *file)
{
    qf_shard_file_unref(file);
}
