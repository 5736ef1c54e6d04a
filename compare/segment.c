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
    bool turned;                  /* the source lies in buffers->turned, widened */
    float map[QF_VIEWS_MAX][256]; /* values of codes */
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

static enum qf_scaled scaled_of(const struct qf_plan *plan)
{
    return qf_codec_info(plan->spec.codec)->scaled;
}

/* Elements whose codes are one byte. */
static size_t codes_per_byte(const struct qf_plan *plan)
{
    bool nibbles = qf_codec_info(plan->spec.codec)->family == QF_FAMILY_BNB_4BIT ||
                   scaled_of(plan) == QF_SCALED_I4_PACKED;
    return nibbles ? 2 : 1;
}

/* Elements that share a scale, side by side. */
static uint64_t unit_of(const struct qf_plan *plan)
{
    if (qf_codec_info(plan->spec.codec)->family == QF_FAMILY_BNB_4BIT)
        return plan->spec.blocksize;
    bool rows = scaled_of(plan) == QF_SCALED_NONE || plan->spec.group == 0;
    return rows ? plan->cols : plan->spec.group;
}

/* A view's codec is the same for all tensors, and rows may have one element. */
static int make_buffers(struct qf_segment_buffers *b, size_t view,
                        const struct qf_plan *plan)
{
    size_t scales = QF_SEGMENT_ELEMS;
    if (qf_codec_info(plan->spec.codec)->family == QF_FAMILY_BNB_4BIT)
        scales /= QF_BLOCKSIZE_DEFAULT;
    else if (plan->spec.group != 0)
        scales /= plan->spec.group;
    if (b->codes[view] == NULL)
        b->codes[view] = malloc(QF_SEGMENT_ELEMS / codes_per_byte(plan));
    if (b->scales[view] == NULL) /* and as many in 16 bits, before they are widened */
        b->scales[view] = malloc((scales + 2) * (sizeof(float) + sizeof(uint16_t)));
    return b->codes[view] != NULL && b->scales[view] != NULL ? 0 : -ENOMEM;
}

static int read_codes(const struct scope *s, size_t view, const struct qf_plan *plan)
{
    size_t share = codes_per_byte(plan);
    return read_part(s, view, QF_PART_CODES, s->segment->first / share,
                     (s->segment->count + share - 1) / share, s->buffers->codes[view]);
}

/* fp8: of each row's elements in the segment the scales of their blocks. A row of the
 * band of the row above it has that one's. */
static int read_block_scales(const struct scope *s, size_t view,
                             const struct qf_plan *plan)
{
    uint64_t group = plan->spec.group, cols = plan->cols;
    uint64_t first = s->segment->first, end = first + s->segment->count;
    float *scales = s->buffers->scales[view];
    int rc = 0;
    for (uint64_t at = first; at < end && rc == 0;) {
        uint64_t row = at / cols, col = at % cols;
        uint64_t n = cols - col < end - at ? cols - col : end - at;
        float *to = scales + (at - first) / group;
        size_t count = (size_t)(n / group);
        if (at - first >= cols && row % group != 0)
            memcpy(to, to - cols / group, count * sizeof *to);
        else
            rc = read_part(s, view, QF_PART_SCALE,
                           (row / group * (cols / group) + col / group) * sizeof *to,
                           count * sizeof *to, to);
        at += n;
    }
    return rc;
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

static enum qf_part_role scale_role(const struct qf_plan *plan)
{
    if (scaled_of(plan) != QF_SCALED_NONE)
        return QF_PART_SCALE;
    return plan->spec.codec == QF_CODEC_INT8 ? QF_PART_SCB : QF_PART_ABSMAX;
}

static int read_scales(const struct scope *s, size_t view, const struct qf_plan *plan)
{
    uint64_t first = s->segment->first, end = first + s->segment->count;
    uint64_t unit = unit_of(plan);
    uint64_t at = first / unit;
    size_t count = (size_t)((end - 1) / unit + 1 - at);
    if (plan->spec.codec == QF_CODEC_DQ)
        return read_nested(s, view, at, count);
    if (scaled_of(plan) == QF_SCALED_F8_E4M3_BLOCK)
        return read_block_scales(s, view, plan);
    float *scales = s->buffers->scales[view];
    enum qf_dtype dtype = qf_plan_part(plan, scale_role(plan))->dtype;
    size_t width = qf_dtype_size(dtype);
    void *stored = dtype == QF_F32 ? scales : scales + count;
    int rc = read_part(s, view, scale_role(plan), at * width, count * width, stored);
    if (rc == 0 && dtype != QF_F32)
        s->kernels->cast[dtype][QF_F32](stored, count, scales);
    return rc;
}

/* Rows and groups may begin and end anywhere in a tile. */
static void tile_of_units(const struct scope *s, size_t view,
                          const struct qf_plan *plan, size_t at, size_t n)
{
    const uint8_t *codes = s->buffers->codes[view];
    uint64_t unit = unit_of(plan);
    uint64_t elem = s->segment->first + at;
    uint64_t first_unit = s->segment->first / unit;
    float *y = s->buffers->y;
    for (size_t done = 0; done < n;) {
        uint64_t left = unit - (elem + done) % unit;
        size_t run = left < n - done ? (size_t)left : n - done;
        float scale = s->buffers->scales[view][(elem + done) / unit - first_unit];
        if (scaled_of(plan) == QF_SCALED_NONE)
            s->kernels->dequant_int8((const int8_t *)codes + at + done, run, scale,
                                     y + done);
        else
            qf_dequant_scaled(scaled_of(plan), s->map[view], codes, at + done, run,
                              scale, y + done);
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
    } else if (qf_codec_info(tensor->plan->spec.codec)->family != QF_FAMILY_BNB_4BIT) {
        tile_of_units(s, view, tensor->plan, at, n);
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
    if (scaled_of(plan) != QF_SCALED_NONE)
        qf_dequant_values(scaled_of(plan), s->map[view]);
    else if (plan->spec.codec != QF_CODEC_INT8)
        qf_dequant_map(plan->spec.codec, s->map[view]);
    int rc = make_buffers(s->buffers, view, plan);
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

/* 0 where the codes are not of one kind. */
static uint64_t differing_codes(const struct scope *s, size_t a, size_t b)
{
    const struct qf_plan *plan = plan_of(s, a);
    enum qf_code_kind kind = qf_code_kind_of_plan(plan);
    if (kind == QF_CODES_NONE || kind != qf_code_kind_of_plan(plan_of(s, b)))
        return 0;
    const uint8_t *of_a = s->buffers->codes[a];
    const uint8_t *of_b = s->buffers->codes[b];
    if (codes_per_byte(plan) == 2)
        return qf_codes_differing(of_a, of_b, s->segment->count);
    return qf_bytes_differing(of_a, of_b, s->segment->count);
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
    for (size_t p = 0; rc == 0 && p < shard->pair_count; p++)
        differing[p] = differing_codes(&s, shard->pairs[p].a, shard->pairs[p].b);
    /* What was read is used only if it was one version. */
    return rc == 0 ? qf_srcfile_check(shard->src) : rc;
}
