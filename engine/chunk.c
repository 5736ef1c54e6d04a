/* SPDX-License-Identifier: Apache-2.0 */
/* One mutex guards the table: it is held for list surgery only, never across an encode,
 * a store access or a copy, and a chunk is a quarter of a millisecond of work. Each
 * entry has its own condition so that a finished chunk wakes its waiters alone.
 *
 * The store is asked before an entry is made, so hits leave no trace here, and once
 * more by the owner of an entry before it encodes: a chunk that the store has is never
 * encoded again. */
#include "engine/chunk_table.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/decode.h"
#include "engine/seal.h"
#include "engine/tensor.h"

/* Work that nobody waits for may take this share of the memory; readers the rest. */
#define PREFETCH_PERCENT 75
/* Bytes on their way to the store, below what it queues before it drops. */
#define STORING_MAX          (QF_CACHE_QUEUE_SIZE_MAX / 2)
#define STORE_WAIT_MS        100
#define STORE_WAIT_WORKER_MS 30000
/* Jobs that a backend gets at a time, at most. */
#define BATCH_MAX 32u

/* ---- entries ---- */

static void chunk_free(qf_engine *engine, struct qf_chunk *chunk)
{
    assert(chunk->file == NULL);
    qf_memory_put(&engine->memory, chunk->data, chunk->size);
    pthread_cond_destroy(&chunk->changed);
    free(chunk);
}

static void free_victims(qf_engine *engine, struct qf_chunk *victims)
{
    while (victims != NULL) {
        struct qf_chunk *next = victims->bucket_next;
        chunk_free(engine, victims);
        victims = next;
    }
}

static void chunk_unref(qf_engine *engine, struct qf_chunk *chunk)
{
    struct qf_chunk_table *table = &engine->chunks;
    pthread_mutex_lock(&table->lock);
    assert(chunk->refs > 0);
    struct qf_chunk *victims = NULL;
    if (--chunk->refs == 0) {
        if (chunk->in_table) {
            qf_chunk_table_idle(table, chunk);
            victims = qf_chunk_table_victims(engine, false);
        } else {
            chunk->bucket_next = NULL;
            victims = chunk;
        }
    }
    pthread_mutex_unlock(&table->lock);
    free_victims(engine, victims);
}

static void run_prefetched(struct qf_task *task);

static struct qf_chunk *chunk_new(qf_shard_file *file, struct qf_record_id id,
                                  struct qf_hash128 key, enum chunk_state state)
{
    struct qf_chunk *chunk = calloc(1, sizeof *chunk);
    if (chunk == NULL)
        return NULL;
    chunk->key = key;
    chunk->id = id;
    chunk->state = state;
    chunk->refs = 1;
    chunk->size = qf_record_size(file, id);
    chunk->task.run = run_prefetched;
    pthread_cond_init(&chunk->changed, NULL);
    chunk->engine = file->engine;
    if (id.number != QF_KEY_SEAL)
        atomic_fetch_add(&file->engine->count.cache_misses, 1);
    chunk->file = file;
    qf_shard_file_ref(file);
    return chunk;
}

/* ---- encoding ---- */

static int read_source(void *ctx, void *buf, size_t size, uint64_t off)
{
    struct qf_chunk *chunk = ctx;
    qf_shard_file *file = chunk->file;
    uint64_t bytes = 0;
    int rc = qf_tensor_read(file, chunk->id.tensor, buf, size, off, &bytes);
    atomic_fetch_add(&file->engine->count.source_bytes_read, bytes);
    return rc;
}

static void account_source(void *ctx, size_t size)
{
    struct qf_chunk *chunk = ctx;
    atomic_fetch_add(&chunk->engine->count.source_bytes_read, size);
}

static void put_finished(void *arg, bool lasting)
{
    struct qf_chunk *chunk = arg;
    qf_engine *engine = chunk->engine;
    pthread_mutex_lock(&engine->chunks.lock);
    chunk->stored = lasting; /* in use, so in no list */
    engine->chunks.storing_size -= chunk->size;
    pthread_cond_broadcast(&engine->chunks.stored);
    pthread_mutex_unlock(&engine->chunks.lock);
    chunk_unref(engine, chunk);
}

static struct timespec deadline_after_ms(long ms)
{
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    at.tv_sec += ms / 1000;
    at.tv_nsec += ms % 1000 * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

/* Encoding is faster than storing on some machines. Who encodes therefore waits for the
 * store's writer instead of losing the record: a worker for long, a reader's thread a
 * little, for a reader must not hang on a cache. False: not to be stored. With
 * the lock held. */
static bool wait_for_store(qf_engine *engine, size_t size, bool worker)
{
    struct qf_chunk_table *table = &engine->chunks;
    struct timespec deadline =
        deadline_after_ms(worker ? STORE_WAIT_WORKER_MS : STORE_WAIT_MS);
    while (table->storing_size != 0 && table->storing_size + size > STORING_MAX) {
        if (pthread_cond_timedwait(&table->stored, &table->lock, &deadline) != 0)
            return false;
    }
    return true;
}

/* Hands the record to the store's writer, which borrows it. */
static void store_record(qf_shard_file *file, struct qf_chunk *chunk, bool worker)
{
    qf_engine *engine = chunk->engine;
    pthread_mutex_lock(&engine->chunks.lock);
    bool wanted = wait_for_store(engine, chunk->size, worker || engine->storing_first);
    if (wanted) {
        qf_chunk_table_ref(&engine->chunks, chunk);
        engine->chunks.storing_size += chunk->size;
    }
    pthread_mutex_unlock(&engine->chunks.lock);
    if (!wanted)
        return;
    if (chunk->id.number == QF_KEY_SEAL)
        qf_seal_store(file, chunk->id.tensor, chunk->data, put_finished, chunk);
    else
        qf_store_put(engine->store, chunk->key, file->origin, chunk->data, chunk->size,
                     put_finished, chunk);
}

/* From ENCODING to READY or FAILED; whoever waits goes on. */
static void publish(struct qf_chunk *chunk, int rc)
{
    struct qf_chunk_table *table = &chunk->engine->chunks;
    pthread_mutex_lock(&table->lock);
    chunk->rc = rc;
    chunk->state = rc == 0 ? CHUNK_READY : CHUNK_FAILED;
    if (rc != 0)
        qf_chunk_table_remove(table, chunk);
    chunk->file = NULL;
    pthread_cond_broadcast(&chunk->changed);
    pthread_mutex_unlock(&table->lock);
}

/* Only bytes of the version that the key names may be published. */
static int checked(const qf_shard_file *file, const struct qf_chunk *chunk, int rc)
{
    uint32_t tensor = chunk->id.tensor;
    return rc != 0 ? rc : qf_srcfile_check(qf_shard_file_source(file, tensor)->src);
}

static void run_seal(struct qf_chunk *chunk, bool worker)
{
    qf_shard_file *file = chunk->file;
    int rc = -ENOMEM;
    bool loaded = false;
    chunk->data = qf_memory_get(&chunk->engine->memory, chunk->size);
    if (chunk->data != NULL) {
        loaded = qf_seal_load(file, chunk->id.tensor, chunk->data);
        rc = loaded ? 0 : qf_seal_make(file, chunk->id.tensor, chunk->data);
        chunk->loaded = chunk->stored = loaded;
    }
    rc = checked(file, chunk, rc);
    publish(chunk, rc);
    if (rc == 0 && !loaded)
        store_record(file, chunk, worker);
    qf_shard_file_unref(file);
}

static struct qf_job job_of(struct qf_chunk *chunk)
{
    const struct qf_shard_file *file = chunk->file;
    const struct qf_layout_tensor *tensor = &file->layout->tensors[chunk->id.tensor];
    const qf_srcfile *src = qf_shard_file_source(file, chunk->id.tensor)->src;
    /* What has to be computed, or put in another order, cannot be mapped. */
    bool stored = tensor->src->coded == NULL && tensor->heads == 0;
    return (struct qf_job){
        .plan = tensor->plan,
        .chunk = chunk->id.number,
        .source = {.read = read_source,
                   .account = account_source,
                   .ctx = chunk,
                   .fd = stored ? qf_srcfile_fd(src) : -1,
                   .fd_off = tensor->src->off},
        .record = chunk->data,
    };
}

/* A stored value of another size than the plan's is not ours (a key collision or a
 * bug): it is treated as absent rather than served. */
static bool from_store(qf_engine *engine, struct qf_hash128 key, size_t size,
                       struct qf_record *out)
{
    struct qf_store_value value;
    if (!qf_store_get(engine->store, key, &value))
        return false;
    if (value.size != size) {
        qf_store_release(engine->store, &value);
        return false;
    }
    *out = (struct qf_record){.data = value.data, .size = value.size, .value = value};
    return true;
}

/* Between a look into the store and the making of the entry somebody else may have
 * encoded and stored the chunk, and its entry may be gone: only the owner's look is
 * final. */
static bool load_stored(struct qf_chunk *chunk)
{
    struct qf_record record;
    if (!from_store(chunk->engine, chunk->key, chunk->size, &record))
        return false;
    memcpy(chunk->data, record.data, chunk->size);
    qf_store_release(chunk->engine->store, &record.value);
    chunk->loaded = chunk->stored = true;
    return true;
}

/* The owner's work on chunks of any files. All are published before the first is
 * stored: storing may wait. */
static void run_chunks(struct qf_chunk **chunks, size_t count, bool worker)
{
    qf_engine *engine = chunks[0]->engine;
    qf_shard_file *files[BATCH_MAX];
    struct qf_job jobs[BATCH_MAX];
    struct qf_chunk *at_work[BATCH_MAX];
    size_t n = 0;
    for (size_t i = 0; i < count; i++) {
        qf_shard_file *file = chunks[i]->file;
        chunks[i]->data = qf_memory_get_record(&engine->memory, chunks[i]->size);
        if (chunks[i]->data == NULL || load_stored(chunks[i])) {
            publish(chunks[i],
                    chunks[i]->data == NULL ? -ENOMEM : checked(file, chunks[i], 0));
            qf_shard_file_unref(file);
            continue;
        }
        files[n] = chunks[i]->file;
        jobs[n] = job_of(chunks[i]);
        at_work[n++] = chunks[i];
    }
    if (n > 0)
        qf_backend_encode(engine->backend, jobs, n);
    for (size_t i = 0; i < n; i++) {
        if (jobs[i].rc == 0)
            atomic_fetch_add(&engine->count.chunks_encoded, 1);
        jobs[i].rc = checked(files[i], at_work[i], jobs[i].rc);
        publish(at_work[i], jobs[i].rc);
    }
    for (size_t i = 0; i < n; i++) {
        if (jobs[i].rc == 0)
            store_record(files[i], at_work[i], worker);
        qf_shard_file_unref(files[i]);
    }
}

/* With the lock held: makes the caller the owner of an entry that nobody has begun. */
static bool start_queued(struct qf_chunk *chunk)
{
    if (chunk->state != CHUNK_QUEUED)
        return false;
    chunk->state = CHUNK_ENCODING;
    chunk->engine->chunks.encoding_count++;
    qf_chunk_list_remove(&chunk->engine->chunks.queue, chunk);
    return true;
}

static void end_encoding(struct qf_chunk_table *table, size_t count)
{
    pthread_mutex_lock(&table->lock);
    assert(table->encoding_count >= count);
    table->encoding_count -= count;
    pthread_mutex_unlock(&table->lock);
}

/* Encodes the chunk that the caller owns, together with others that are queued if the
 * backend likes that. The caller keeps its reference. */
static void run_encoding(struct qf_chunk *chunk, bool worker)
{
    qf_engine *engine = chunk->engine;
    struct qf_chunk_table *table = &engine->chunks;
    if (chunk->id.number == QF_KEY_SEAL) {
        run_seal(chunk, worker);
        end_encoding(table, 1);
        return;
    }
    struct qf_chunk *batch[BATCH_MAX] = {chunk};
    size_t want = qf_backend_batch(engine->backend);
    size_t count = 1;
    pthread_mutex_lock(&table->lock);
    while (count < want && count < BATCH_MAX && table->queue.head != NULL) {
        struct qf_chunk *next = table->queue.head;
        qf_chunk_table_ref(table, next);
        start_queued(next);
        batch[count++] = next;
    }
    pthread_mutex_unlock(&table->lock);
    run_chunks(batch, count, worker);
    end_encoding(table, count);
    atomic_fetch_add(&engine->count.chunks_prefetched, worker ? count : count - 1);
    for (size_t i = 1; i < count; i++)
        chunk_unref(engine, batch[i]);
}

static void run_prefetched(struct qf_task *task)
{
    struct qf_chunk *chunk = (struct qf_chunk *)task;
    qf_engine *engine = chunk->engine;
    pthread_mutex_lock(&engine->chunks.lock);
    bool mine = start_queued(chunk); /* else somebody was faster */
    pthread_mutex_unlock(&engine->chunks.lock);
    if (mine)
        run_encoding(chunk, true);
    chunk_unref(engine, chunk);
}

/* ---- records ---- */

void qf_chunks_init(struct qf_chunk_table *table)
{
    *table = (struct qf_chunk_table){0};
    pthread_mutex_init(&table->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&table->stored, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void qf_chunks_fini(qf_engine *engine)
{
    struct qf_chunk_table *table = &engine->chunks;
    free_victims(engine, qf_chunk_table_victims(engine, true));
    for (size_t i = 0; i < QF_CHUNK_BUCKETS; i++)
        assert(table->buckets[i] == NULL);
    pthread_cond_destroy(&table->stored);
    pthread_mutex_destroy(&table->lock);
}

struct qf_hash128 qf_record_key(const qf_shard_file *file, struct qf_record_id id,
                                uint64_t piece)
{
    const struct qf_layout_tensor *tensor = &file->layout->tensors[id.tensor];
    const struct qf_plan *plan = tensor->plan;
    bool is_scaled = qf_codec_info(plan->spec.codec)->scaled != QF_SCALED_NONE;
    struct qf_key key = {
        .source = qf_shard_file_source(file, id.tensor)->id,
        .tensor_off = tensor->src->off,
        .tensor_size = tensor->src->size,
        .rows = plan->rows,
        .cols = plan->cols,
        .codec = (uint32_t)qf_codec_of_records(plan->spec.codec),
        .revision = QF_CODEC_REVISION,
        .src_dtype = (uint32_t)plan->src_dtype,
        .dtype = (uint32_t)plan->spec.dtype,
        .blocksize = is_scaled ? plan->spec.group : plan->spec.blocksize,
        .transposed = (uint32_t)plan->transposed | tensor->heads << 1 |
                      (tensor->src->coded != NULL ? QF_KEY_CODED : 0),
        .chunk = id.number + piece,
    };
    return qf_key_hash(&key);
}

size_t qf_record_size(const qf_shard_file *file, struct qf_record_id id)
{
    const struct qf_plan *plan = file->layout->tensors[id.tensor].plan;
    return id.number == QF_KEY_SEAL ? qf_plan_seal_size(plan)
                                    : qf_plan_chunk_size(plan, id.number);
}

/* A READY entry of the table, with a reference; NULL else. */
static struct qf_chunk *ready_entry(qf_engine *engine, struct qf_hash128 key)
{
    pthread_mutex_lock(&engine->chunks.lock);
    struct qf_chunk *chunk = qf_chunk_table_find(&engine->chunks, key);
    if (chunk != NULL && chunk->state == CHUNK_READY)
        qf_chunk_table_ref(&engine->chunks, chunk);
    else
        chunk = NULL;
    pthread_mutex_unlock(&engine->chunks.lock);
    return chunk;
}

static void record_of_chunk(struct qf_chunk *chunk, struct qf_record *out)
{
    *out = (struct qf_record){.data = chunk->data,
                              .size = chunk->size,
                              .chunk = chunk,
                              .loaded = chunk->loaded};
}

bool qf_record_peek(qf_shard_file *file, struct qf_record_id id, struct qf_record *out)
{
    qf_engine *engine = file->engine;
    struct qf_hash128 key = qf_record_key(file, id, 0);
    struct qf_chunk *chunk = ready_entry(engine, key);
    if (chunk != NULL) {
        record_of_chunk(chunk, out);
        return true;
    }
    return id.number != QF_KEY_SEAL &&
           from_store(engine, key, qf_record_size(file, id), out);
}

bool qf_record_try(qf_shard_file *file, struct qf_record_id id, struct qf_record *out)
{
    if (!qf_record_peek(file, id, out))
        return false;
    if (out->chunk == NULL)
        atomic_fetch_add(&file->engine->count.cache_hits, 1);
    return true;
}

/* Finds or makes the entry and decides whether this thread is to encode it. */
static struct qf_chunk *claim(qf_shard_file *file, struct qf_record_id id, bool *mine)
{
    struct qf_chunk_table *table = &file->engine->chunks;
    struct qf_hash128 key = qf_record_key(file, id, 0);
    pthread_mutex_lock(&table->lock);
    struct qf_chunk *chunk = qf_chunk_table_find(table, key);
    *mine = false;
    if (chunk != NULL) {
        qf_chunk_table_ref(table, chunk);
        *mine = start_queued(chunk);
    } else {
        chunk = chunk_new(file, id, key, CHUNK_ENCODING);
        if (chunk != NULL) {
            qf_chunk_table_insert(table, chunk);
            table->encoding_count++;
            *mine = true;
        }
    }
    pthread_mutex_unlock(&table->lock);
    return chunk;
}

static int wait_for(qf_engine *engine, struct qf_chunk *chunk)
{
    pthread_mutex_lock(&engine->chunks.lock);
    engine->chunks.waiting_count++;
    while (chunk->state == CHUNK_ENCODING)
        pthread_cond_wait(&chunk->changed, &engine->chunks.lock);
    engine->chunks.waiting_count--;
    int rc = chunk->rc;
    pthread_mutex_unlock(&engine->chunks.lock);
    return rc;
}

int qf_record_get(qf_shard_file *file, struct qf_record_id id, struct qf_record *out)
{
    if (qf_record_try(file, id, out))
        return 0;
    qf_engine *engine = file->engine;
    bool mine;
    struct qf_chunk *chunk = claim(file, id, &mine);
    if (chunk == NULL)
        return -ENOMEM;
    if (mine)
        run_encoding(chunk, false);
    int rc = wait_for(engine, chunk);
    if (rc != 0) {
        chunk_unref(engine, chunk);
        return rc;
    }
    record_of_chunk(chunk, out);
    return 0;
}

void qf_record_release(qf_engine *engine, struct qf_record *record)
{
    if (record->chunk != NULL)
        chunk_unref(engine, record->chunk);
    else
        qf_store_release(engine->store, &record->value);
}

/* Whether it is in the table in any state, or in the store. */
static bool known(qf_shard_file *file, struct qf_record_id id, struct qf_hash128 key)
{
    qf_engine *engine = file->engine;
    pthread_mutex_lock(&engine->chunks.lock);
    bool found = qf_chunk_table_find(&engine->chunks, key) != NULL;
    pthread_mutex_unlock(&engine->chunks.lock);
    struct qf_record record;
    if (!found && from_store(engine, key, qf_record_size(file, id), &record)) {
        qf_record_release(engine, &record);
        found = true;
    }
    return found;
}

bool qf_record_prefetch(qf_shard_file *file, struct qf_record_id id)
{
    assert(id.number != QF_KEY_SEAL);
    qf_engine *engine = file->engine;
    struct qf_hash128 key = qf_record_key(file, id, 0);
    if (known(file, id, key))
        return true;
    pthread_mutex_lock(&engine->chunks.lock);
    struct qf_chunk *chunk = NULL;
    uint64_t room = qf_memory_room(&engine->memory, PREFETCH_PERCENT);
    uint64_t wanted =
        engine->chunks.queue.cost + qf_memory_cost(qf_record_size(file, id));
    if (wanted <= room && qf_chunk_table_find(&engine->chunks, key) == NULL)
        chunk = chunk_new(file, id, key, CHUNK_QUEUED);
    if (chunk != NULL) {
        qf_chunk_table_insert(&engine->chunks, chunk);
        qf_chunk_list_append(&engine->chunks.queue, chunk);
    }
    pthread_mutex_unlock(&engine->chunks.lock);
    if (chunk != NULL)
        qf_pool_submit(engine->pool, &chunk->task);
    return wanted <= room;
}
