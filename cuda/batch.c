/* SPDX-License-Identifier: Apache-2.0 */
/* One batch: the sources of some chunks of one kind are copied to the device side by
 * side, one launch encodes them, the records are copied back. All of it is queued and
 * completed later, so that batches in other slots overlap: while one registers or
 * reads, another copies, a third computes.
 *
 * A source byte comes from a registered window of the file or is read into the pinned
 * buffer; which, is decided piece by piece. Short pieces are always read: what is small
 * a driver may copy with the processor, and a mapped byte must never be touched by it
 * (a file that shrinks would be a SIGBUS). Whether the file is still what it was is for
 * the owner of the jobs to check, as for reads. */
#include <assert.h>
#include <string.h>

#include "cuda/slots.h"

/* Shorter pieces are read. */
#define MAPPED_MIN ((size_t)256 << 10)

static size_t aligned(size_t size)
{
    return (size + QF_CUDA_ALIGN - 1) / QF_CUDA_ALIGN * QF_CUDA_ALIGN;
}

/* Where the chunk's source lies in the tensor, in bytes; false: larger than a slot. */
static bool source_range(const struct qf_job *job, uint64_t *off, size_t *size)
{
    uint64_t first;
    uint64_t count;
    size_t width = qf_dtype_size(job->plan->src_dtype);
    qf_plan_chunk_elems(job->plan, job->chunk, &first, &count);
    if (count > QF_CUDA_SLOT_IN / width)
        return false;
    *off = first * width;
    *size = (size_t)count * width;
    return true;
}

bool qf_cuda_job_fits(const struct qf_job *job)
{
    uint64_t off;
    size_t size;
    const struct qf_codec_info *info = qf_codec_info(job->plan->spec.codec);
    if (info->scaled != QF_SCALED_NONE || info->family == QF_FAMILY_GGUF)
        return false; /* no kernel */
    return !job->plan->transposed && source_range(job, &off, &size) && size != 0 &&
           qf_plan_chunk_size(job->plan, job->chunk) <= QF_CUDA_SLOT_OUT;
}

static bool same_kind(const struct qf_plan *a, const struct qf_plan *b)
{
    if (a == b)
        return true;
    if (a->spec.codec != b->spec.codec || a->src_dtype != b->src_dtype ||
        a->spec.dtype != b->spec.dtype)
        return false;
    return a->spec.codec == QF_CODEC_INT8 ? a->cols == b->cols
                                          : a->spec.blocksize == b->spec.blocksize;
}

size_t qf_cuda_batch_size(const struct qf_job *jobs, size_t count)
{
    size_t in = 0;
    size_t out = 0;
    size_t n = 0;
    for (; n < count && n < QF_CUDA_LAUNCH_MAX; n++) {
        uint64_t off;
        size_t size;
        if (!qf_cuda_job_fits(&jobs[n]) || !same_kind(jobs[0].plan, jobs[n].plan) ||
            !source_range(&jobs[n], &off, &size))
            break;
        in += aligned(size);
        out += aligned(qf_plan_chunk_size(jobs[n].plan, jobs[n].chunk));
        if (in > QF_CUDA_SLOT_IN || out > QF_CUDA_SLOT_OUT)
            break;
    }
    return n != 0 ? n : 1;
}

/* ---- the source ---- */

/* One copy to the device. */
struct piece {
    const void *from;
    size_t in_off; /* in the slot */
    size_t size;
};

/* What the copies of a batch share. */
struct feed {
    struct qf_cuda_backend *cuda;
    struct qf_cuda_slot *slot;
    const struct qf_job *jobs; /* from the present one on … */
    size_t count;              /* … to the end of the call */
    int fd;                    /* whose file this is; -1: none */
    bool regular;
    struct qf_cuda_file file;
    size_t piece_count;
    struct piece
        pieces[2 * QF_CUDA_LAUNCH_MAX]; /* a chunk lies in two windows at most */
};

/* Bytes of [from, to) of the file that this call is yet to want. */
static uint64_t wanted_of(const struct feed *f, uint64_t from, uint64_t to)
{
    uint64_t wanted = 0;
    for (size_t i = 0; i < f->count; i++) {
        uint64_t off;
        size_t size;
        if (f->jobs[i].source.fd != f->fd || f->jobs[i].plan->transposed ||
            !source_range(&f->jobs[i], &off, &size))
            continue;
        uint64_t begin = f->jobs[i].source.fd_off + off;
        uint64_t end = begin + size;
        begin = begin > from ? begin : from;
        end = end < to ? end : to;
        wanted += end > begin ? end - begin : 0;
    }
    return wanted;
}

/* Registered memory for file bytes [off, off + size), all in one window; or NULL. */
static const void *mapped(struct feed *f, uint64_t off, size_t size)
{
    const struct qf_source *source = &f->jobs[0].source;
    if (f->fd != source->fd) {
        f->fd = source->fd;
        f->regular = qf_cuda_file_of(source->fd, &f->file);
    }
    if (!f->regular || off > f->file.size || size > f->file.size - off ||
        f->slot->hold_count == QF_CUDA_SLOT_HOLDS)
        return NULL;
    uint64_t start = off / QF_CUDA_WINDOW_SIZE * QF_CUDA_WINDOW_SIZE;
    struct qf_cuda_window *held;
    const void *data =
        qf_cuda_windows_get(&f->cuda->windows, &f->file, off,
                            wanted_of(f, start, start + QF_CUDA_WINDOW_SIZE), &held);
    if (data != NULL)
        f->slot->holds[f->slot->hold_count++] = held;
    return data;
}

/* Makes `size` source bytes at `off` of the tensor come to `in_off` of the slot. An
 * error of the source is the job's, an error of the device is in slot->rc. */
static int feed_piece(struct feed *f, uint64_t off, size_t size, size_t in_off)
{
    const struct qf_source *source = &f->jobs[0].source;
    struct qf_cuda_slot *slot = f->slot;
    const void *from = NULL;
    if (source->fd >= 0 && size >= MAPPED_MIN)
        from = mapped(f, source->fd_off + off, size);
    if (from != NULL) {
        if (source->account != NULL)
            source->account(source->ctx, size);
        qf_cuda_count(f->cuda, &f->cuda->stats.source_mapped, size);
    } else {
        slot->rc = qf_cuda_slot_staging(f->cuda, &slot->staging_in, QF_CUDA_SLOT_IN);
        if (slot->rc != 0)
            return 0;
        int rc = source->read(source->ctx, slot->staging_in + in_off, size, off);
        if (rc != 0)
            return rc;
        qf_cuda_count(f->cuda, &f->cuda->stats.source_read, size);
        from = slot->staging_in + in_off;
    }
    assert(f->piece_count < sizeof f->pieces / sizeof f->pieces[0]);
    f->pieces[f->piece_count++] = (struct piece){from, in_off, size};
    return 0;
}

/* The whole source of the present job, cut at the windows' ends. */
static int feed_job(struct feed *f, size_t in_off)
{
    const struct qf_source *source = &f->jobs[0].source;
    uint64_t off;
    size_t size;
    bool fits = source_range(&f->jobs[0], &off, &size);
    assert(fits);
    int rc = 0;
    while (size > 0 && rc == 0 && f->slot->rc == 0) {
        uint64_t left =
            QF_CUDA_WINDOW_SIZE - (source->fd_off + off) % QF_CUDA_WINDOW_SIZE;
        size_t n = source->fd >= 0 && left < size ? (size_t)left : size;
        rc = feed_piece(f, off, n, in_off);
        off += n;
        in_off += n;
        size -= n;
    }
    return rc;
}

/* ---- the records ---- */

static const struct qf_part *floats_part(const struct qf_plan *plan)
{
    return qf_plan_part(plan, plan->spec.codec == QF_CODEC_INT8 ? QF_PART_SCB
                              : plan->spec.codec == QF_CODEC_DQ ? QF_PART_BLOCK_ABSMAX
                                                                : QF_PART_ABSMAX);
}

static size_t slice_offset(const struct qf_job *job, const struct qf_part *part)
{
    size_t off;
    size_t size;
    qf_plan_chunk_slice(job->plan, job->chunk, (uint32_t)(part - job->plan->parts),
                        &off, &size);
    return off;
}

static void add_item(struct qf_cuda_launch *launch, const struct qf_job *job,
                     const char *in, char *record)
{
    const struct qf_plan *plan = job->plan;
    uint64_t first;
    uint64_t count;
    qf_plan_chunk_elems(plan, job->chunk, &first, &count);
    size_t codes = slice_offset(job, qf_plan_part(plan, QF_PART_CODES));
    size_t floats = slice_offset(job, floats_part(plan));
    assert(codes % 8 == 0 && floats % sizeof(float) == 0);
    launch->items[launch->count++] = (struct qf_cuda_item){
        .src = in,
        .codes = (uint8_t *)record + codes,
        .floats = (float *)(void *)(record + floats),
        .elem_count = count,
    };
}

/* The device writes slices only; the bytes between them are zero. */
static void clear_gaps(const struct qf_job *job)
{
    size_t end = 0;
    for (uint32_t i = 0; i < job->plan->part_count; i++) {
        if (job->plan->parts[i].stage != QF_STAGE_CHUNK)
            continue;
        size_t off;
        size_t size;
        qf_plan_chunk_slice(job->plan, job->chunk, i, &off, &size);
        memset((char *)job->record + end, 0, off - end);
        end = off + size;
    }
}

/* Where the record is copied to: to its place, or through the pinned buffer. */
static int choose_way_out(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot,
                          size_t i)
{
    const struct qf_job *job = &slot->jobs[i];
    size_t size = qf_plan_chunk_size(job->plan, job->chunk);
    slot->staged[i] = !qf_cuda_arenas_reach(&cuda->arenas, job->record, size);
    if (!slot->staged[i])
        return 0;
    return qf_cuda_slot_staging(cuda, &slot->staging_out, QF_CUDA_SLOT_OUT);
}

/* All that the driver is asked for, in one turn. */
static int queue_all(const struct feed *f, const struct qf_cuda_launch *launch)
{
    struct qf_cuda_slot *slot = f->slot;
    int rc = qf_cuda_fault(&f->cuda->faults, QF_CUDA_FAULT_LAUNCH) ? -EIO : 0;
    qf_cuda_queue_turn(&f->cuda->turns);
    for (size_t i = 0; i < f->piece_count && rc == 0; i++)
        rc = qf_cuda_copy_in(slot->queue, slot->in + f->pieces[i].in_off,
                             f->pieces[i].from, f->pieces[i].size);
    if (rc == 0)
        rc = qf_cuda_run(slot->queue, launch);
    for (size_t i = 0; i < slot->count && rc == 0; i++) {
        const struct qf_job *job = &slot->jobs[i];
        char *to = slot->staged[i] ? slot->staging_out + slot->out_off[i] : job->record;
        if (job->rc == 0)
            rc = qf_cuda_copy_out(slot->queue, to, slot->out + slot->out_off[i],
                                  qf_plan_chunk_size(job->plan, job->chunk));
    }
    qf_cuda_queue_done(&f->cuda->turns);
    return rc;
}

/* ---- contract ---- */

void qf_cuda_batch_start(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot,
                         struct qf_job *jobs, size_t n, size_t count)
{
    const struct qf_plan *plan = jobs[0].plan;
    struct qf_cuda_launch launch = {
        .codec = plan->spec.codec,
        .src_dtype = plan->src_dtype,
        .dtype = plan->spec.dtype,
        .blocksize = plan->spec.blocksize,
        .cols = plan->cols,
    };
    struct feed f = {.cuda = cuda, .slot = slot, .fd = -1};
    size_t in = 0;
    size_t out = 0;
    slot->jobs = jobs;
    slot->count = n;
    slot->rc = 0;
    slot->hold_count = 0;
    for (size_t i = 0; i < n; i++) {
        f.jobs = &jobs[i];
        f.count = count - i;
        jobs[i].rc = slot->rc == 0 ? feed_job(&f, in) : 0;
        slot->out_off[i] = out;
        if (slot->rc == 0 && jobs[i].rc == 0)
            add_item(&launch, &jobs[i], slot->in + in, slot->out + out);
        uint64_t off;
        size_t size = 0;
        bool fits = source_range(&jobs[i], &off, &size);
        assert(fits);
        in += aligned(size);
        out += aligned(qf_plan_chunk_size(jobs[i].plan, jobs[i].chunk));
    }
    for (size_t i = 0; i < n && slot->rc == 0; i++)
        if (jobs[i].rc == 0)
            slot->rc = choose_way_out(cuda, slot, i);
    if (slot->rc == 0 && launch.count != 0)
        slot->rc = queue_all(&f, &launch);
}

int qf_cuda_batch_end(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot)
{
    /* Also after a failure: what was queued before it may be under way. */
    int rc = qf_cuda_wait(slot->queue);
    if (qf_cuda_fault(&cuda->faults, QF_CUDA_FAULT_LOST))
        rc = -EIO;
    if (slot->rc != 0)
        rc = slot->rc;
    for (size_t i = 0; i < slot->hold_count; i++)
        qf_cuda_windows_put(&cuda->windows, slot->holds[i]);
    slot->hold_count = 0;
    for (size_t i = 0; i < slot->count && rc == 0; i++) {
        const struct qf_job *job = &slot->jobs[i];
        if (job->rc != 0)
            continue;
        size_t size = qf_plan_chunk_size(job->plan, job->chunk);
        if (slot->staged[i]) {
            memcpy(job->record, slot->staging_out + slot->out_off[i], size);
            qf_cuda_count(cuda, &cuda->stats.records_staged, size);
        } else {
            qf_cuda_count(cuda, &cuda->stats.records_direct, size);
        }
        clear_gaps(job);
        qf_cuda_count(cuda, &cuda->stats.chunks, 1);
    }
    return rc;
}
