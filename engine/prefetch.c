/* SPDX-License-Identifier: Apache-2.0 */
/* A read that begins near where another one ended continues its stream, and the
 * stream's window doubles; any other read begins a stream with no window, so random
 * access encodes only what it touches. Streams belong to the file, not to a descriptor:
 * one mapping is read by several threads. A stream whose window is used up to within
 * half is extended, so that a request in the middle costs no search. */
#include "engine/prefetch.h"

#include "engine/chunk.h"

#define WINDOW_FIRST (UINT64_C(1) << 20)
#define WINDOW_MAX   (UINT64_C(8) << 20)
/* For a backend that likes many jobs at a time: two such batches. */
#define WINDOW_MAX_BATCH (UINT64_C(32) << 20)
/* A stream's window is at most this part of the memory: records that were encoded ahead
 * must not push each other out before they are read. */
#define WINDOW_SHARE 16
/* The kernel's asynchronous requests of one stream overtake each other by this much. */
#define SLACK (UINT64_C(2) << 20)

void qf_prefetch_init(struct qf_prefetch *prefetch)
{
    *prefetch = (struct qf_prefetch){0};
    pthread_mutex_init(&prefetch->lock, NULL);
}

void qf_prefetch_fini(struct qf_prefetch *prefetch)
{
    pthread_mutex_destroy(&prefetch->lock);
}

static struct qf_stream *find_stream(struct qf_prefetch *prefetch, uint64_t off)
{
    for (size_t i = 0; i < QF_STREAMS; i++) {
        struct qf_stream *s = &prefetch->streams[i];
        if (s->used != 0 && off + SLACK >= s->next && off <= s->next + SLACK)
            return s;
    }
    return NULL;
}

static struct qf_stream *oldest_stream(struct qf_prefetch *prefetch)
{
    struct qf_stream *oldest = &prefetch->streams[0];
    for (size_t i = 1; i < QF_STREAMS; i++)
        if (prefetch->streams[i].used < oldest->used)
            oldest = &prefetch->streams[i];
    return oldest;
}

/* Updates the streams; [*from, *to) is what to queue. */
static void plan_ahead(struct qf_prefetch *prefetch, uint64_t off, uint64_t size,
                       uint64_t window_most, uint64_t *from, uint64_t *to)
{
    uint64_t end = off + size;
    pthread_mutex_lock(&prefetch->lock);
    struct qf_stream *s = find_stream(prefetch, off);
    if (s == NULL) {
        s = oldest_stream(prefetch);
        *s = (struct qf_stream){.next = end, .ahead = off};
    } else if (end > s->next) {
        s->next = end;
        s->window = s->window == 0 ? WINDOW_FIRST : s->window * 2;
        if (s->window > window_most)
            s->window = window_most;
    }
    s->used = ++prefetch->clock;
    *from = s->ahead > off ? s->ahead : off;
    *to = end;
    if (s->ahead < s->next + s->window / 2 && s->next + s->window > *to)
        *to = s->next + s->window;
    if (*to > s->ahead)
        s->ahead = *to;
    pthread_mutex_unlock(&prefetch->lock);
}

/* Queues the records under [from, to) of one part; false when memory ends it. */
static bool queue_part(qf_shard_file *file, const struct qf_span *span, uint64_t from,
                       uint64_t to)
{
    const struct qf_plan *plan = file->layout->tensors[span->tensor].plan;
    const struct qf_part *part = &plan->parts[span->part];
    if (part->stage != QF_STAGE_CHUNK)
        return true;
    uint64_t first = (from - span->off) / part->chunk_stride;
    uint64_t last = (to - 1 - span->off) / part->chunk_stride;
    for (uint64_t n = first; n <= last && n < plan->chunk_count; n++)
        if (!qf_record_prefetch(file, (struct qf_record_id){span->tensor, n}))
            return false;
    return true;
}

static uint64_t window_max(const qf_engine *engine)
{
    uint64_t share = engine->memory.limit / WINDOW_SHARE;
    uint64_t most =
        qf_backend_batch(engine->backend) > 1 ? WINDOW_MAX_BATCH : WINDOW_MAX;
    return most < share ? most : share;
}

void qf_prefetch_note(qf_shard_file *file, uint64_t off, uint64_t size)
{
    const struct qf_layout *layout = file->layout;
    uint64_t from, to;
    plan_ahead(&file->prefetch, off, size, window_max(file->engine), &from, &to);
    if (to > layout->file_size)
        to = layout->file_size;
    if (from >= to)
        return;
    for (size_t i = qf_layout_find(layout, from); i < layout->span_count; i++) {
        const struct qf_span *span = &layout->spans[i];
        if (span->off >= to)
            break;
        if (span->kind != QF_SPAN_PART)
            continue;
        uint64_t begin = from > span->off ? from : span->off;
        uint64_t end = to < span->off + span->size ? to : span->off + span->size;
        if (!queue_part(file, span, begin, end))
            break;
    }
}
