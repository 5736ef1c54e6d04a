/* SPDX-License-Identifier: Apache-2.0 */
/* One segment of one tensor in all views. The source is read once, and each view's
 * codes and scales once, through the engine; then tiles that fit the first-level cache
 * are widened, dequantized and measured. Segments of all views are the same elements,
 * whatever chunks their codecs cut.
 *
 * A weight that is quantized transposed has its codes in another order than it is
 * stored in: such a segment is turned over when it is read. */
#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "compare/compare_internal.h"
#include "engine/decode.h"
#include "quant/dequant.h"
#include "quant/qstate.h"

/* Elements that are measured at a time: whole blocks of every size. */
#define TILE ((size_t)QF_BLOCKSIZE_MAX)
/* Stored elements that are read at a time of a transposed weight. */
#define TURN_READ_MAX ((size_t)4096)

struct scope {
    const struct qf_compare_shard *shard;
    const struct qf_segment *segment;
    struct qf_segment_buffers *buffers;
    const struct qf_kernels *kernels;
    const struct qf_tensor *src;
    bool turned; /* the source lies in buffers->turned, widened */
    float map[QF_VIEWS_MAX][16];
    struct qf_error_lanes lanes[QF_VIEWS_MAX];
};

int qf_segment_buffers_init(struct qf_segment_buffers *b)
{
    *b = (struct qf_segment_buffers){
        .source = malloc(QF_SEGMENT_ELEMS * sizeof(float)),
        .x = malloc(TILE * sizeof(float)),
        .y = malloc(TILE * sizeof(float)),
    };
    return b->source != NULL && b->x != NULL && b->y != NULL ? 0 : -ENOMEM;
}

void qf_segment_buffers_fini(struct qf_segment_buffers *b)
{
    for (size_t v = 0; v < QF_VIEWS_MAX; v++) {
        free(b->codes[v]);
        free(b->scales[v]);
    }
    free(b->source);
    free(b->turned);
    free(b->x);
    free(b->y);
}

/* ---- the source ---- */

static const struct qf_plan *plan_of(const struct scope *s, size_t view)
{
    return s->shard->layouts[view]->tensors[s->segment->tensor].plan;
}

/* The plan that stores the weight turned over, or NULL. */
static const struct qf_plan *transposed_plan(const struct scope *s)
{
    for (size_t v = 0; v < s->shard->view_count; v++) {
        const struct qf_plan *plan = plan_of(s, v);
        if (plan != NULL && plan->transposed)
            return plan;
    }
    return NULL;
}

/* Element (r, c) of the weight is the r-th of stored row c: of each stored row the
 * slice is read that the segment's rows need. */
static int read_turned(struct scope *s, const struct qf_plan *plan)
{
    struct qf_segment_buffers *b = s->buffers;
    size_t width = qf_dtype_size(s->src->dtype);
    uint64_t first = s->segment->first, end = first + s->segment->count;
    uint64_t cols = plan->cols, row_end = (end - 1) / cols + 1;
    if (b->turned == NULL)
        b->turned = malloc(QF_SEGMENT_ELEMS * sizeof(float));
    if (b->turned == NULL)
        return -ENOMEM;
    for (uint64_t row = first / cols; row < row_end; row += TURN_READ_MAX) {
        size_t rows =
            row_end - row < TURN_READ_MAX ? (size_t)(row_end - row) : TURN_READ_MAX;
        for (uint64_t c = 0; c < cols; c++) {
            uint64_t at = (c * plan->rows + row) * width;
            int rc = qf_decode_read(s->shard->src, s->src, b->source, rows * width, at,
                                    NULL);
            if (rc != 0)
                return rc;
            s->kernels->cast[s->src->dtype][QF_F32](b->source, rows, b->x);
            for (size_t r = 0; r < rows; r++) {
                uint64_t index = (row + r) * cols + c;
                if (index >= first && index < end)
                    b->turned[index - first] = b->x[r];
            }
        }
    }
    s->turned = true;
    return 0;
}

static_assert(TURN_READ_MAX <= TILE, "a slice is widened into the buffer of a tile");

static int read_source(struct scope *s)
{
    const struct qf_plan *plan = transposed_plan(s);
    if (plan != NULL)
        return read_turned(s, plan);
    size_t width = qf_dtype_size(s->src->dtype);
    return qf_decode_read(s->shard->src, s->src, s->buffers->source,
                          s->segment->count * width, s->segment->first * width, NULL);
}

/* Elements [at, at + n) of the segment, widened. */
static const float *tile_of_source(const struct scope *s, size_t at, size_t n)
{
    if (s->turned)
        return s->buffers->turned + at;
    size_t width = qf_dtype_size(s->src->dtype);
    s->kernels->cast[s->src->dtype][QF_F32](s->buffers->source + at * width, n,
                                            s->buffers->x);
    return s->buffers->x;
}

/* ---- a view ---- */

/* [off, off + size) of a part. */
static int read_part(const struct scope *s, size_t view, enum qf_part_role role,
                     uint64_t off, size_t size, void *out)
{
    const struct qf_plan *plan = plan_of(s, view);
    const struct qf_part *part = qf_plan_part(plan, role);
    assert(part != NULL && off + size <= part->size);
    off += s->shard->part_off[view][s->segment->tensor][part - plan->parts];
    char *to = out;
    while (size > 0) {
        struct qf_read *read;
        int rc = qf_engine_read(s->shard->files[view], off, size, &read);
        if (rc != 0)
            return rc;
        size_t count, n = qf_read_size(read);
        const struct iovec *pieces = qf_read_pieces(read, &count);
        for (size_t i = 0; i < count; to += pieces[i++].iov_len)
            memcpy(to, pieces[i].iov_base, pieces[i].iov_len);
        qf_read_release(read);
        off += n;
        size -= n;
    }
    return 0;
}

/* A view's codec is the same for all tensors. */
static int make_buffers(struct qf_segment_buffers *b, size_t view, enum qf_codec codec)
{
    bool whole = codec == QF_CODEC_INT8; /* rows may have one element */
    size_t scales = QF_SEGMENT_ELEMS / (whole ? 1 : QF_BLOCKSIZE_DEFAULT);
    if (b->codes[view] == NULL)
        b->codes[view] = malloc(whole ? QF_SEGMENT_ELEMS : QF_SEGMENT_ELEMS / 2);
    if (b->scales[view] == NULL)
        b->scales[view] = malloc((scales + 1) * sizeof(float));
    return b->codes[view] != NULL && b->scales[view] != NULL ? 0 : -ENOMEM;
}

static int read_codes(const struct scope *s, size_t view, const struct qf_plan *plan)
{
    uint8_t *codes = s->buffers->codes[view];
    bool whole = plan->spec.codec == QF_CODEC_INT8;
    uint64_t first = s->segment->first;
    size_t count = s->segment->count;
    return read_part(s, view, QF_PART_CODES, whole ? first : first / 2,
                     whole ? count : (count + 1) / 2, codes);
}

static int read_nested(const struct scope *s, size_t view, uint64_t block, size_t count)
{
    uint8_t codes[QF_SEGMENT_ELEMS / QF_BLOCKSIZE_DEFAULT];
    float nested_absmax[sizeof codes / QF_NESTED_BLOCKSIZE];
    char state[512];
    const struct qf_part *part = qf_plan_part(plan_of(s, view), QF_PART_QUANT_STATE);
    size_t state_size = part->size < sizeof state ? part->size : sizeof state;
    size_t nested_count = qf_div_up(count, QF_NESTED_BLOCKSIZE);
    int rc = read_part(s, view, QF_PART_NESTED_CODES, block, count, codes);
    if (rc == 0)
        rc = read_part(s, view, QF_PART_NESTED_ABSMAX,
                       block / QF_NESTED_BLOCKSIZE * sizeof(float),
                       nested_count * sizeof(float), nested_absmax);
    if (rc == 0)
        rc = read_part(s, view, QF_PART_QUANT_STATE, 0, state_size, state);
    if (rc == 0)
        qf_dequant_nested(codes, count, nested_absmax,
                          qf_qstate_nested_offset(state, state_size),
                          s->buffers->scales[view]);
    return rc;
}

static int read_scales(const struct scope *s, size_t view, const struct qf_plan *plan)
{
    uint64_t first = s->segment->first, end = first + s->segment->count;
    uint64_t unit =
        plan->spec.codec == QF_CODEC_INT8 ? plan->cols : plan->spec.blocksize;
    uint64_t at = first / unit;
    size_t count = (size_t)((end - 1) / unit + 1 - at);
    if (plan->spec.codec == QF_CODEC_DQ)
        return read_nested(s, view, at, count);
    return read_part(s, view,
                     plan->spec.codec == QF_CODEC_INT8 ? QF_PART_SCB : QF_PART_ABSMAX,
                     at * sizeof(float), count * sizeof(float),
                     s->buffers->scales[view]);
}

/* Rows may begin and end anywhere in a tile. */
static void tile_of_int8(const struct scope *s, size_t view, uint64_t cols, size_t at,
                         size_t n)
{
    const int8_t *codes = (const int8_t *)s->buffers->codes[view] + at;
    uint64_t elem = s->segment->first + at;
    uint64_t first_row = s->segment->first / cols;
    for (size_t done = 0; done < n;) {
        uint64_t left = cols - (elem + done) % cols;
        size_t run = left < n - done ? (size_t)left : n - done;
        float scb = s->buffers->scales[view][(elem + done) / cols - first_row];
        s->kernels->dequant_int8(codes + done, run, scb, s->buffers->y + done);
        done += run;
    }
}

static bool is_kept(const struct scope *s, size_t view)
{
    return plan_of(s, view) == NULL &&
           s->shard->layouts[view]->tensors[s->segment->tensor].out_dtype ==
               s->src->dtype;
}

/* Elements [at, at + n) of the segment as the view has them; at is a multiple of TILE.
 */
static const float *tile_of_view(const struct scope *s, size_t view, const float *x,
                                 size_t at, size_t n)
{
    struct qf_segment_buffers *b = s->buffers;
    const struct qf_layout_tensor *tensor =
        &s->shard->layouts[view]->tensors[s->segment->tensor];
    if (is_kept(s, view))
        return x;
    if (tensor->plan == NULL) {
        uint8_t narrow[TILE * sizeof(float)];
        s->kernels->cast[QF_F32][tensor->out_dtype](x, n, narrow);
        s->kernels->cast[tensor->out_dtype][QF_F32](narrow, n, b->y);
    } else if (tensor->plan->spec.codec == QF_CODEC_INT8) {
        tile_of_int8(s, view, tensor->plan->cols, at, n);
    } else {
        uint32_t blocksize = tensor->plan->spec.blocksize;
        s->kernels->dequant_4bit(b->codes[view] + at / 2, n, blocksize, s->map[view],
                                 b->scales[view] + at / blocksize, b->y);
    }
    return b->y;
}

static int load_view(struct scope *s, size_t view)
{
    const struct qf_plan *plan = plan_of(s, view);
    if (plan == NULL)
        return 0;
    if (plan->spec.codec != QF_CODEC_INT8)
        qf_dequant_map(plan->spec.codec, s->map[view]);
    int rc = make_buffers(s->buffers, view, plan->spec.codec);
    if (rc == 0)
        rc = read_codes(s, view, plan);
    return rc == 0 ? read_scales(s, view, plan) : rc;
}

/* ---- all views ---- */

static void measure_tiles(struct scope *s, struct qf_errors *errors)
{
    size_t count = s->segment->count, views = s->shard->view_count;
    size_t kept = views; /* the first that keeps the tensor stands for all that do */
    for (size_t v = views; v-- > 0;)
        kept = is_kept(s, v) ? v : kept;
    for (size_t at = 0; at < count; at += TILE) {
        size_t n = count - at < TILE ? count - at : TILE;
        const float *x = tile_of_source(s, at, n);
        for (size_t v = 0; v < views; v++)
            if (v == kept || !is_kept(s, v))
                s->kernels->errors(x, tile_of_view(s, v, x, at, n), n, &s->lanes[v]);
    }
    for (size_t v = 0; v < views; v++)
        errors[v] = qf_errors_of_lanes(&s->lanes[is_kept(s, v) ? kept : v], count);
}

static bool has_codes(const struct scope *s, size_t view)
{
    const struct qf_plan *plan = plan_of(s, view);
    return plan != NULL && plan->spec.codec != QF_CODEC_INT8;
}

int qf_segment_measure(const struct qf_compare_shard *shard,
                       const struct qf_segment *segment,
                       struct qf_segment_buffers *buffers, struct qf_errors *errors,
                       uint64_t *differing)
{
    struct scope s = {.shard = shard,
                      .segment = segment,
                      .buffers = buffers,
                      .kernels = qf_kernels_best(),
                      .src = shard->layouts[0]->tensors[segment->tensor].src};
    int rc = read_source(&s);
    for (size_t v = 0; rc == 0 && v < shard->view_count; v++)
        rc = load_view(&s, v);
    if (rc == 0)
        measure_tiles(&s, errors);
    for (size_t p = 0; rc == 0 && p < shard->pair_count; p++) {
        const struct qf_compare_pair *pair = &shard->pairs[p];
        if (has_codes(&s, pair->a) && has_codes(&s, pair->b))
            differing[p] = qf_codes_differing(buffers->codes[pair->a],
                                              buffers->codes[pair->b], segment->count);
    }
    /* What was read is used only if it was one version. */
    return rc == 0 ? qf_srcfile_check(shard->src) : rc;
}
