/* SPDX-License-Identifier: Apache-2.0 */
/* Serving one read: the spans it touches, one after the other, become pieces of memory
 * for the front-end to write out. Large slices of records are referenced where they lie
 * (in the chunk table or in the store's map); everything small is copied into one
 * buffer, so the number of pieces stays bounded.
 *
 * A slice in the store's map holds a read transaction. Before this thread may wait or
 * encode, such slices are copied into the buffer and let go ("settled"): a transaction
 * held for a tensor's whole encoding would keep the store from reusing its pages. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "engine/chunk.h"
#include "engine/decode.h"
#include "engine/seal.h"
#include "engine/tensor.h"
#include "quant/kernels.h"

/* Smaller slices are copied: few values are held in the store at a time. */
#define REFERENCE_SIZE_MIN ((size_t)256 << 10)
/* Elements converted at a time when a kept tensor is cast. */
#define CAST_ELEMS 16384u
/* The largest read we cut a request to; the kernel's are QF_FUSE_READ_SIZE_MAX. */
#define READ_SIZE_MAX QF_FUSE_READ_SIZE_MAX
#define HOLDS_MAX     (READ_SIZE_MAX / REFERENCE_SIZE_MIN)
#define PIECES_MAX    (2 * HOLDS_MAX + 1)

struct hold {
    struct qf_record record;
    size_t piece; /* index of the iovec that lies in it */
};

struct qf_read {
    qf_engine *engine;
    qf_shard_file *file;
    uint8_t *
        buffer; /* `capacity` bytes; every byte has its place: its offset in the read */
    size_t capacity;
    bool stored_only; /* what would have to be encoded is -ENOENT */
    /* Bytes by where they were; the rest comes from memory. */
    size_t from_cache, from_encoded, from_source;
    size_t size; /* bytes so far */
    size_t piece_count;
    size_t hold_count;
    struct iovec pieces[PIECES_MAX];
    struct hold holds[HOLDS_MAX];
};

/* Room for the next `size` bytes in the buffer, as a piece of the reply. */
static uint8_t *append_space(struct qf_read *read, size_t size)
{
    uint8_t *to = read->buffer + read->size;
    struct iovec *last =
        read->piece_count != 0 ? &read->pieces[read->piece_count - 1] : NULL;
    if (last != NULL && (uint8_t *)last->iov_base + last->iov_len == to) {
        last->iov_len += size;
    } else {
        assert(read->piece_count < PIECES_MAX);
        read->pieces[read->piece_count++] = (struct iovec){to, size};
    }
    read->size += size;
    return to;
}

static void append_copy(struct qf_read *read, const void *data, size_t size)
{
    memcpy(append_space(read, size), data, size);
}

/* Takes the record over: references or copies and releases it. */
static void append_record(struct qf_read *read, struct qf_record *record, size_t off,
                          size_t size)
{
    if (size < REFERENCE_SIZE_MIN || read->hold_count == HOLDS_MAX ||
        read->piece_count == PIECES_MAX) {
        append_copy(read, record->data + off, size);
        qf_record_release(read->engine, record);
        return;
    }
    read->holds[read->hold_count++] = (struct hold){*record, read->piece_count};
    read->pieces[read->piece_count++] =
        (struct iovec){(void *)(record->data + off), size};
    read->size += size;
}

/* Lets go of what lies in the store's map. */
static void settle(struct qf_read *read)
{
    size_t kept = 0;
    for (size_t i = 0; i < read->hold_count; i++) {
        struct hold *hold = &read->holds[i];
        if (hold->record.chunk != NULL) {
            read->holds[kept++] = *hold;
            continue;
        }
        size_t off = 0;
        for (size_t k = 0; k < hold->piece; k++)
            off += read->pieces[k].iov_len;
        struct iovec *piece = &read->pieces[hold->piece];
        memcpy(read->buffer + off, piece->iov_base, piece->iov_len);
        piece->iov_base = read->buffer + off;
        qf_record_release(read->engine, &hold->record);
    }
    read->hold_count = kept;
}

/* A slice of what is there, or -ENOENT. Seal records are in the store in pieces. */
static int append_stored(struct qf_read *read, struct qf_record_id id, size_t off,
                         size_t size)
{
    struct qf_record record;
    if (qf_record_peek(read->file, id, &record)) {
        append_record(read, &record, off, size);
        return 0;
    }
    if (id.number != QF_KEY_SEAL)
        return -ENOENT;
    size_t seal_size = qf_record_size(read->file, id);
    uint8_t *seal = qf_memory_get(&read->engine->memory, seal_size);
    if (seal == NULL)
        return -ENOMEM;
    int rc = qf_seal_peek(read->file, id.tensor, seal) ? 0 : -ENOENT;
    if (rc == 0)
        append_copy(read, seal + off, size);
    qf_memory_put(&read->engine->memory, seal, seal_size);
    return rc;
}

static int append_from_record(struct qf_read *read, struct qf_record_id id, size_t off,
                              size_t size)
{
    struct qf_record record;
    if (read->stored_only)
        return append_stored(read, id, off, size);
    bool there = qf_record_try(read->file, id, &record);
    if (!there) {
        settle(read);
        int rc = qf_record_get(read->file, id, &record);
        if (rc != 0)
            return rc;
    }
    assert(off + size <= record.size);
    if (record.chunk == NULL || (!there && record.loaded))
        read->from_cache += size;
    else if (!there)
        read->from_encoded += size;
    append_record(read, &record, off, size);
    return 0;
}

/* [off, off + size) of a part that chunks make. */
static int append_chunks(struct qf_read *read, const struct qf_span *span, uint64_t off,
                         size_t size)
{
    const struct qf_plan *plan = read->file->layout->tensors[span->tensor].plan;
    uint64_t stride = plan->parts[span->part].chunk_stride;
    while (size > 0) {
        uint64_t number = off / stride;
        size_t slice_off, slice_size;
        qf_plan_chunk_slice(plan, number, span->part, &slice_off, &slice_size);
        size_t skip = (size_t)(off % stride);
        size_t n = slice_size - skip < size ? slice_size - skip : size;
        int rc = append_from_record(read, (struct qf_record_id){span->tensor, number},
                                    slice_off + skip, n);
        if (rc != 0)
            return rc;
        off += n;
        size -= n;
    }
    return 0;
}

/* Parts that the plan alone makes are small: quant_map, format tag, quant_state. Only
 * the SCB of rows without elements and zero points have any size, and are zeros. */
static int append_plan_part(struct qf_read *read, const struct qf_span *span,
                            uint64_t off, size_t size)
{
    const struct qf_plan *plan = read->file->layout->tensors[span->tensor].plan;
    enum qf_part_role role = plan->parts[span->part].role;
    if (role == QF_PART_SCB || role == QF_PART_ZERO_POINT) {
        memset(append_space(read, size), 0, size);
        return 0;
    }
    uint8_t *whole = malloc(plan->parts[span->part].size);
    if (whole == NULL)
        return -ENOMEM;
    qf_codec_fill(plan, span->part, whole);
    append_copy(read, whole + off, size);
    free(whole);
    return 0;
}

static int append_part(struct qf_read *read, const struct qf_span *span, uint64_t off,
                       size_t size)
{
    const struct qf_plan *plan = read->file->layout->tensors[span->tensor].plan;
    switch (plan->parts[span->part].stage) {
    case QF_STAGE_PLAN:
        return append_plan_part(read, span, off, size);
    case QF_STAGE_CHUNK:
        return append_chunks(read, span, off, size);
    case QF_STAGE_SEAL:
        return append_from_record(read,
                                  (struct qf_record_id){span->tensor, QF_KEY_SEAL},
                                  qf_plan_seal_offset(plan, span->part) + (size_t)off,
                                  size);
    }
    return -EIO;
}

/* `off` counts from the tensor's first byte. */
static int read_source(struct qf_read *read, uint32_t tensor, void *to, size_t size,
                       uint64_t off)
{
    uint64_t bytes = 0;
    int rc = qf_tensor_read(read->file, tensor, to, size, off, &bytes);
    atomic_fetch_add(&read->engine->count.source_bytes_read, bytes);
    return rc;
}

static int append_source(struct qf_read *read, const struct qf_span *span, uint64_t off,
                         size_t size)
{
    return read_source(read, span->tensor, append_space(read, size), size, off);
}

/* A coded tensor, straight in the dtype served. */
static int append_decoded(struct qf_read *read, const struct qf_span *span,
                          uint64_t off, size_t size)
{
    const struct qf_layout_tensor *tensor = &read->file->layout->tensors[span->tensor];
    uint64_t bytes = 0;
    int rc =
        qf_decode_as(qf_shard_file_source(read->file, span->tensor)->src, tensor->src,
                     tensor->out_dtype, append_space(read, size), size, off, &bytes);
    atomic_fetch_add(&read->engine->count.source_bytes_read, bytes);
    return rc;
}

/* A kept tensor in another dtype: whole elements are converted, and the bytes asked for
 * copied out of them. */
static int append_cast(struct qf_read *read, const struct qf_span *span, uint64_t off,
                       size_t size)
{
    const struct qf_layout_tensor *tensor = &read->file->layout->tensors[span->tensor];
    size_t from_size = qf_dtype_size(tensor->src->dtype);
    size_t to_size = qf_dtype_size(tensor->out_dtype);
    qf_kernel_cast *cast =
        qf_kernels_best()->cast[tensor->src->dtype][tensor->out_dtype];
    uint8_t *from = malloc(CAST_ELEMS * (from_size + to_size));
    if (from == NULL)
        return -ENOMEM;
    uint8_t *to = from + CAST_ELEMS * from_size;
    int rc = 0;
    while (size > 0 && rc == 0) {
        uint64_t elem = off / to_size;
        uint64_t left = (off + size + to_size - 1) / to_size - elem;
        size_t count = left < CAST_ELEMS ? (size_t)left : CAST_ELEMS;
        rc = read_source(read, span->tensor, from, count * from_size, elem * from_size);
        if (rc != 0)
            break;
        cast(from, count, to);
        size_t skip = (size_t)(off % to_size);
        size_t n = count * to_size - skip < size ? count * to_size - skip : size;
        append_copy(read, to + skip, n);
        off += n;
        size -= n;
    }
    free(from);
    return rc;
}

static int append_span(struct qf_read *read, const struct qf_span *span, uint64_t off,
                       size_t size)
{
    switch (span->kind) {
    case QF_SPAN_HEADER:
        append_copy(read, read->file->layout->header + off, size);
        return 0;
    case QF_SPAN_COPY:
        read->from_source += size;
        return append_source(read, span, off, size);
    case QF_SPAN_CAST:
        read->from_source += size;
        return append_cast(read, span, off, size);
    case QF_SPAN_DECODED:
        read->from_source += size;
        return append_decoded(read, span, off, size);
    case QF_SPAN_PART:
        return append_part(read, span, off, size);
    case QF_SPAN_ZERO:
        memset(append_space(read, size), 0, size);
        return 0;
    }
    return -EIO;
}

/* Whether what [off, off + size) is made of is still what it was. The header is made of
 * all sources; one that has changed spoils nobody who reads of another one. */
static int check_sources(const qf_shard_file *file, uint64_t off, uint64_t size)
{
    const struct qf_layout *layout = file->layout;
    const struct qf_shard_source *last = NULL;
    int rc = 0;
    if (file->source_count == 1)
        return qf_shard_file_check(file);
    for (size_t i = qf_layout_find(layout, off);
         rc == 0 && i < layout->span_count && layout->spans[i].off < off + size; i++) {
        const struct qf_span *span = &layout->spans[i];
        if (span->kind == QF_SPAN_HEADER)
            return qf_shard_file_check(file);
        if (span->kind == QF_SPAN_ZERO)
            continue;
        const struct qf_shard_source *source = qf_shard_file_source(file, span->tensor);
        if (source != last)
            rc = qf_srcfile_check(source->src);
        last = source;
    }
    return rc;
}

static int fill(struct qf_read *read, uint64_t off, size_t size)
{
    const struct qf_layout *layout = read->file->layout;
    const uint64_t begin = off, total = size;
    for (size_t i = qf_layout_find(layout, off); size > 0; i++) {
        assert(i < layout->span_count);
        const struct qf_span *span = &layout->spans[i];
        uint64_t left = span->off + span->size - off;
        size_t n = left < size ? (size_t)left : size;
        int rc = append_span(read, span, off - span->off, n);
        if (rc != 0)
            return rc;
        off += n;
        size -= n;
    }
    return check_sources(read->file, begin, total);
}

static int read_new(qf_shard_file *file, uint64_t off, size_t size,
                    struct qf_read **out)
{
    qf_engine *engine = file->engine;
    uint64_t file_size = file->layout->file_size;
    if (off >= file_size)
        size = 0;
    else if (size > file_size - off)
        size = (size_t)(file_size - off);
    if (size > READ_SIZE_MAX)
        size = READ_SIZE_MAX;
    struct qf_read *read = malloc(sizeof *read);
    if (read == NULL)
        return -ENOMEM;
    read->engine = engine;
    read->file = file;
    read->capacity = size;
    read->stored_only = false;
    read->size = read->piece_count = read->hold_count = 0;
    read->from_cache = read->from_encoded = read->from_source = 0;
    read->buffer = qf_memory_get(&engine->memory, size);
    if (read->buffer == NULL) {
        free(read);
        return -ENOMEM;
    }
    *out = read;
    return 0;
}

static void count(_Atomic uint64_t *counter, size_t bytes)
{
    if (bytes != 0)
        atomic_fetch_add_explicit(counter, bytes, memory_order_relaxed);
}

static void count_served(const struct qf_read *read)
{
    struct qf_engine_counters *to = &read->engine->count;
    size_t elsewhere = read->from_cache + read->from_encoded + read->from_source;
    count(&to->bytes_cache, read->from_cache);
    count(&to->bytes_encoded, read->from_encoded);
    count(&to->bytes_source, read->from_source);
    count(&to->bytes_memory, read->size - elsewhere);
}

/* From the sealed file, or else from records. */
static int serve(struct qf_read *read, uint64_t off)
{
    size_t size = read->capacity;
    if (qf_sealed_read(read->file, read->buffer, size, off)) {
        append_space(read, size);
        return check_sources(read->file, off, size);
    }
    atomic_store(&read->file->sealed.was_read, true);
    qf_prefetch_note(read->file, off, size);
    int rc = fill(read, off, size);
    if (rc == 0)
        count_served(read);
    return rc;
}

int qf_engine_read(qf_shard_file *file, uint64_t off, size_t size, struct qf_read **out)
{
    struct qf_read *read;
    int rc = read_new(file, off, size, &read);
    if (rc != 0)
        return rc;
    if (read->capacity > 0)
        rc = serve(read, off);
    if (rc != 0) {
        atomic_fetch_add(&file->engine->count.read_errors, 1);
        qf_read_release(read);
        return rc;
    }
    atomic_fetch_add(&file->engine->count.bytes_served, read->size);
    *out = read;
    return 0;
}

int qf_engine_read_stored(qf_shard_file *file, uint64_t off, size_t size,
                          struct qf_read **out)
{
    struct qf_read *read;
    int rc = read_new(file, off, size, &read);
    if (rc != 0)
        return rc;
    read->stored_only = true;
    if (read->capacity > 0)
        rc = fill(read, off, read->capacity);
    if (rc != 0)
        qf_read_release(read);
    else
        *out = read;
    return rc;
}

const struct iovec *qf_read_pieces(const struct qf_read *read, size_t *count)
{
    *count = read->piece_count;
    return read->pieces;
}

size_t qf_read_size(const struct qf_read *read)
{
    return read->size;
}

void qf_read_release(struct qf_read *read)
{
    for (size_t i = 0; i < read->hold_count; i++)
        qf_record_release(read->engine, &read->holds[i].record);
    qf_memory_put(&read->engine->memory, read->buffer, read->capacity);
    free(read);
}
