/* SPDX-License-Identifier: Apache-2.0 */
/* A seal needs four bytes of every block of the tensor, so its chunks are walked in
 * order with the workers a few chunks ahead, and each is let go as soon as its absmax
 * slice has been taken. The record of a big tensor is larger than a store likes its
 * values: it is kept there in pieces, and one missing piece means that all of it is
 * made again. */
#include "engine/seal.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A store's frame must fit beside it. */
#define PIECE_SIZE ((size_t)960000)

static_assert(PIECE_SIZE + 4096 <= QF_STORED_SIZE_MAX, "a piece is a stored value");

/* Chunks that workers are ahead; a backend that likes batches gets one more of them. */
#define LOOK_AHEAD 8u

static size_t piece_size(size_t size, size_t off)
{
    return size - off < PIECE_SIZE ? size - off : PIECE_SIZE;
}

uint64_t qf_seal_pieces(const qf_shard_file *file, uint32_t tensor)
{
    size_t size = qf_record_size(file, (struct qf_record_id){tensor, QF_KEY_SEAL});
    return (size + PIECE_SIZE - 1) / PIECE_SIZE;
}

bool qf_seal_peek(qf_shard_file *file, uint32_t tensor, void *out)
{
    qf_engine *engine = file->engine;
    struct qf_record_id id = {tensor, QF_KEY_SEAL};
    size_t size = qf_record_size(file, id);
    bool found = true;
    for (size_t off = 0; off < size && found; off += PIECE_SIZE) {
        struct qf_store_value value;
        found = qf_store_get(engine->store, qf_record_key(file, id, off / PIECE_SIZE),
                             &value);
        if (!found)
            break;
        found = value.size == piece_size(size, off);
        if (found && out != NULL)
            memcpy((char *)out + off, value.data, value.size);
        qf_store_release(engine->store, &value);
    }
    return found;
}

bool qf_seal_load(qf_shard_file *file, uint32_t tensor, void *out)
{
    struct qf_engine_counters *count = &file->engine->count;
    bool found = qf_seal_peek(file, tensor, out);
    atomic_fetch_add(found ? &count->cache_hits : &count->cache_misses, 1);
    return found;
}

/* Copies the absmax slices of all chunks, one behind the other. */
static int gather_absmax(qf_shard_file *file, uint32_t tensor, float *absmax)
{
    const struct qf_plan *plan = file->layout->tensors[tensor].plan;
    const struct qf_part *part = qf_plan_part(plan, QF_PART_BLOCK_ABSMAX);
    assert(part != NULL);
    uint32_t index = (uint32_t)(part - plan->parts);
    uint64_t ahead = LOOK_AHEAD;
    if (qf_backend_batch(file->engine->backend) > 1)
        ahead += qf_backend_batch(file->engine->backend);
    for (uint64_t n = 0; n < plan->chunk_count; n++) {
        for (uint64_t k = n + 1; k < plan->chunk_count && k <= n + ahead; k++)
            if (!qf_record_prefetch(file, (struct qf_record_id){tensor, k}))
                break;
        struct qf_record record;
        int rc = qf_record_get(file, (struct qf_record_id){tensor, n}, &record);
        if (rc != 0)
            return rc;
        size_t off, size;
        qf_plan_chunk_slice(plan, n, index, &off, &size);
        memcpy((char *)absmax + n * part->chunk_stride, record.data + off, size);
        qf_record_release(file->engine, &record);
    }
    return 0;
}

int qf_seal_make(qf_shard_file *file, uint32_t tensor, void *out)
{
    qf_engine *engine = file->engine;
    const struct qf_plan *plan = file->layout->tensors[tensor].plan;
    size_t size = plan->block_count * sizeof(float);
    float *absmax = qf_memory_get(&engine->memory, size);
    if (absmax == NULL)
        return -ENOMEM;
    int rc = gather_absmax(file, tensor, absmax);
    if (rc == 0) {
        memset(out, 0, qf_plan_seal_size(plan));
        qf_codec_seal(plan, absmax, out);
        atomic_fetch_add(&engine->count.seals, 1);
    }
    qf_memory_put(&engine->memory, absmax, size);
    return rc;
}

struct pieces {
    _Atomic size_t left;
    atomic_bool lasting; /* every one so far */
    qf_store_done *done;
    void *arg;
};

static void piece_done(void *arg, bool lasting)
{
    struct pieces *pieces = arg;
    if (!lasting)
        atomic_store(&pieces->lasting, false);
    if (atomic_fetch_sub(&pieces->left, 1) != 1)
        return;
    pieces->done(pieces->arg, atomic_load(&pieces->lasting));
    free(pieces);
}

void qf_seal_store(qf_shard_file *file, uint32_t tensor, const void *data,
                   qf_store_done *done, void *arg)
{
    struct qf_record_id id = {tensor, QF_KEY_SEAL};
    size_t size = qf_record_size(file, id);
    struct pieces *pieces = malloc(sizeof *pieces);
    if (pieces == NULL) {
        done(arg, false);
        return;
    }
    *pieces = (struct pieces){.left = qf_seal_pieces(file, tensor),
                              .lasting = true,
                              .done = done,
                              .arg = arg};
    for (size_t off = 0; off < size; off += PIECE_SIZE)
        qf_store_put(file->engine->store, qf_record_key(file, id, off / PIECE_SIZE),
                     file->origin, (const char *)data + off, piece_size(size, off),
                     piece_done, pieces);
}
