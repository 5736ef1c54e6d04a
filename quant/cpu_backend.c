/* SPDX-License-Identifier: Apache-2.0 */
/* Encodes chunks with the CPU kernels. A chunk is worked off in pieces that fit a
 * processor's second-level cache: read a piece of the source, cast it to the model
 * dtype if it is stored in another, run the kernel, whose results go straight into the
 * record.
 *
 * int8 needs a row's absmax before its first code: pieces are whole rows, and a row
 * that is larger than a piece is read twice. So are the groups of scaled codecs, and
 * the bands of fp8 (all rows of blocks that lie side by side). Transposed weights are
 * read in stripes (the part of each stored row that the chunk needs) and turned over
 * into a window of at most a chunk's usual size; pieces are then taken from the window.
 *
 * Buffers belong to the backend and are lent to one encode call at a time, so that no
 * thread-local memory outlives its backend. */
#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/limits.h"
#include "quant/backend.h"
#include "quant/gguf.h"
#include "quant/kernels.h"
#include "quant/scales.h"

#define BUFFER_ALIGN 64
/* Scaled codecs: elements whose absmax and codes are made by turns, so that they are
 * still in the first-level cache; and groups of these at most. */
#define STEP_ELEMS  8192u
#define STEP_GROUPS 256u
/* Stored rows of a transposed weight that are turned over together. */
#define STRIPES 32u
/* Elements between them, so that they do not compete for the same cache sets. */
#define STRIPE_GAP 16u

/* What one encode call works in. */
struct buffers {
    struct buffers *next;
    char *piece;  /* QF_PIECE_SIZE: source bytes; stripes of a transposed weight */
    char *cast;   /* QF_PIECE_SIZE: the piece in the model dtype */
    char *window; /* QF_CHUNK_ELEMS elements; NULL until a transposed weight comes */
};

struct cpu_backend {
    qf_backend base;
    const struct qf_kernels *kernels;
    pthread_mutex_t lock;
    struct buffers *idle;
};

/* One job on its way. */
struct work {
    const struct qf_kernels *kernels;
    const struct qf_plan *plan;
    const struct qf_source *source;
    struct buffers *buffers;
    size_t src_width; /* bytes of an element in the source */
    size_t piece_max; /* elements of a piece */
    uint64_t first;   /* elements of the chunk, in row-major [rows, cols] order */
    uint64_t end;
    uint64_t window_first; /* elements in buffers->window */
    uint64_t window_count;
};

static void buffers_free(struct buffers *b)
{
    if (b == NULL)
        return;
    free(b->piece);
    free(b->cast);
    free(b->window);
    free(b);
}

static struct buffers *buffers_new(void)
{
    struct buffers *b = calloc(1, sizeof *b);
    if (b == NULL)
        return NULL;
    b->piece = aligned_alloc(BUFFER_ALIGN, QF_PIECE_SIZE);
    b->cast = aligned_alloc(BUFFER_ALIGN, QF_PIECE_SIZE);
    if (b->piece == NULL || b->cast == NULL) {
        buffers_free(b);
        return NULL;
    }
    return b;
}

static struct buffers *buffers_take(struct cpu_backend *cpu)
{
    pthread_mutex_lock(&cpu->lock);
    struct buffers *b = cpu->idle;
    if (b != NULL)
        cpu->idle = b->next;
    pthread_mutex_unlock(&cpu->lock);
    return b != NULL ? b : buffers_new();
}

static void buffers_give(struct cpu_backend *cpu, struct buffers *b)
{
    pthread_mutex_lock(&cpu->lock);
    b->next = cpu->idle;
    cpu->idle = b;
    pthread_mutex_unlock(&cpu->lock);
}

/* ---- reading ---- */

static int read_elems(const struct work *w, void *buf, uint64_t first, uint64_t count)
{
    return w->source->read(w->source->ctx, buf, (size_t)(count * w->src_width),
                           first * w->src_width);
}

/* window[(r, c)] = stripes[(c, r)] for those elements of the window that lie in stored
 * rows (= columns) [col, col + cols) and in rows [row, row + rows). stride: elements
 * from one stripe to the next. */
static inline void turn_over(size_t width, const struct work *w, size_t stride,
                             uint64_t row, uint64_t rows, uint64_t col, uint64_t cols)
{
    uint64_t window_end = w->window_first + w->window_count;
    for (uint64_t r = 0; r < rows; r++) {
        uint64_t index = (row + r) * w->plan->cols + col;
        uint64_t from = index < w->window_first ? w->window_first - index : 0;
        uint64_t to = index < window_end ? window_end - index : 0;
        if (to > cols)
            to = cols;
        if (from >= to)
            continue;
        char *out = w->buffers->window + (index + from - w->window_first) * width;
        const char *in = w->buffers->piece + (from * stride + r) * width;
        for (uint64_t c = from; c < to; c++, out += width, in += stride * width)
            memcpy(out, in, width);
    }
}

/* Reads the elements [row, row + rows) of stored rows [col, col + cols) into the piece
 * buffer, *stride elements from one to the next. */
static int read_stripes(const struct work *w, uint64_t row, uint64_t rows, uint64_t col,
                        uint64_t cols, size_t *stride)
{
    uint64_t stored = w->plan->rows;
    char *buf = w->buffers->piece;
    if (rows == stored) {
        *stride = (size_t)stored;
        return read_elems(w, buf, col * stored, cols * stored);
    }
    int rc = 0;
    *stride = (size_t)rows + STRIPE_GAP;
    for (uint64_t c = 0; c < cols && rc == 0; c++, buf += *stride * w->src_width)
        rc = read_elems(w, buf, (col + c) * stored + row, rows);
    return rc;
}

/* Fills the window with `count` elements from `first` on. A stored row has plan->rows
 * elements, of which the window needs those of its own rows. */
static int load_window(struct work *w, uint64_t first, uint64_t count)
{
    uint64_t stored = w->plan->rows;
    uint64_t cols = w->plan->cols;
    uint64_t row = first / cols;
    uint64_t end = (first + count - 1) / cols + 1;
    /* Whole stored rows, many in one read, where most of them is needed. */
    if (end - row > stored / 2 && stored <= w->piece_max) {
        row = 0;
        end = stored;
    }
    uint64_t part = w->piece_max - STRIPE_GAP;
    if (end - row < part)
        part = end - row;
    uint64_t group =
        part == stored ? w->piece_max / part : w->piece_max / (part + STRIPE_GAP);
    if (group > STRIPES)
        group = STRIPES;
    w->window_first = first;
    w->window_count = count;
    for (; row < end; row += part) {
        uint64_t rows = end - row < part ? end - row : part;
        for (uint64_t col = 0; col < cols; col += group) {
            uint64_t n = cols - col < group ? cols - col : group;
            size_t stride = 0;
            int rc = read_stripes(w, row, rows, col, n, &stride);
            if (rc != 0)
                return rc;
            if (w->src_width == 4)
                turn_over(4, w, stride, row, rows, col, n);
            else
                turn_over(2, w, stride, row, rows, col, n);
        }
    }
    return 0;
}

/* Makes *out point to `count` elements (at most piece_max) of the weight in the model
 * dtype. */
static int fetch(struct work *w, uint64_t first, uint64_t count, const void **out)
{
    const char *src = w->buffers->piece;
    int rc = 0;
    if (w->plan->transposed) {
        if (first < w->window_first ||
            first + count > w->window_first + w->window_count) {
            uint64_t left = w->end - first;
            rc = load_window(w, first, left < QF_CHUNK_ELEMS ? left : QF_CHUNK_ELEMS);
        }
        src = w->buffers->window + (first - w->window_first) * w->src_width;
    } else {
        rc = read_elems(w, w->buffers->piece, first, count);
    }
    if (rc != 0)
        return rc;
    enum qf_dtype dtype = w->plan->spec.dtype;
    if (dtype != w->plan->src_dtype) {
        w->kernels->cast[w->plan->src_dtype][dtype](src, (size_t)count,
                                                    w->buffers->cast);
        src = w->buffers->cast;
    }
    *out = src;
    return 0;
}

/* ---- codecs of bitsandbytes ---- */

static void *slice_of(const struct qf_job *job, enum qf_part_role role)
{
    size_t off;
    size_t size;
    const struct qf_part *part = qf_plan_part(job->plan, role);
    qf_plan_chunk_slice(job->plan, job->chunk, (uint32_t)(part - job->plan->parts),
                        &off, &size);
    return (char *)job->record + off;
}

static int encode_4bit(struct work *w, const struct qf_job *job)
{
    const struct qf_codec_spec *spec = &w->plan->spec;
    qf_kernel_4bit *kernel = spec->codec == QF_CODEC_FP4 ? w->kernels->fp4[spec->dtype]
                                                         : w->kernels->nf4[spec->dtype];
    uint8_t *packed = slice_of(job, QF_PART_CODES);
    float *absmax = slice_of(job, spec->codec == QF_CODEC_DQ ? QF_PART_BLOCK_ABSMAX
                                                             : QF_PART_ABSMAX);
    size_t piece = w->piece_max / spec->blocksize * spec->blocksize;
    for (uint64_t at = w->first; at < w->end; at += piece) {
        size_t count = w->end - at < piece ? (size_t)(w->end - at) : piece;
        const void *src;
        int rc = fetch(w, at, count, &src);
        if (rc != 0)
            return rc;
        kernel(src, count, spec->blocksize, packed, absmax);
        packed += piece / 2;
        absmax += piece / spec->blocksize;
    }
    return 0;
}

/* A row that is larger than a piece: once for the absmax, once for the codes. */
static int encode_int8_row(struct work *w, uint64_t first, int8_t *codes, float *scb)
{
    enum qf_dtype dtype = w->plan->spec.dtype;
    uint64_t cols = w->plan->cols;
    *scb = 0;
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t at = 0; at < cols; at += w->piece_max) {
            size_t count =
                cols - at < w->piece_max ? (size_t)(cols - at) : w->piece_max;
            const void *src;
            int rc = fetch(w, first + at, count, &src);
            if (rc != 0)
                return rc;
            if (pass == 0)
                w->kernels->row_absmax[dtype](src, count, scb);
            else
                w->kernels->int8[dtype](src, count, *scb, codes + at);
        }
    }
    return 0;
}

static int encode_int8(struct work *w, const struct qf_job *job)
{
    enum qf_dtype dtype = w->plan->spec.dtype;
    size_t cols = (size_t)w->plan->cols;
    int8_t *codes = slice_of(job, QF_PART_CODES);
    float *scb = slice_of(job, QF_PART_SCB);
    uint64_t rows = (w->end - w->first) / cols;
    uint64_t piece_rows = w->piece_max / cols;
    for (uint64_t row = 0; row < rows;) {
        uint64_t first = w->first + row * cols;
        int rc;
        if (piece_rows == 0) {
            rc = encode_int8_row(w, first, codes + row * cols, &scb[row]);
            if (rc != 0)
                return rc;
            row++;
            continue;
        }
        uint64_t n = rows - row < piece_rows ? rows - row : piece_rows;
        const void *piece;
        rc = fetch(w, first, n * cols, &piece);
        if (rc != 0)
            return rc;
        const char *src = piece;
        for (; n != 0; n--, row++, src += cols * qf_dtype_size(dtype)) {
            scb[row] = 0;
            w->kernels->row_absmax[dtype](src, cols, &scb[row]);
            w->kernels->int8[dtype](src, cols, scb[row], codes + row * cols);
        }
    }
    return 0;
}

/* ---- scaled codecs ---- */

/* Where the results of a chunk go. */
struct scaled_out {
    const struct qf_codec_spec *spec;
    qf_kernel_group_absmax *absmax;
    qf_kernel_scaled *quantize;
    size_t group;
    uint8_t *codes;
    unsigned codes_per_byte;
    char *scales;
    size_t scale_size;
    uint64_t first; /* element of codes[0] and scales[0] */
};

static struct scaled_out scaled_out_of(const struct work *w, const struct qf_job *job)
{
    const struct qf_codec_spec *spec = &w->plan->spec;
    enum qf_scaled scaled = qf_codec_info(spec->codec)->scaled;
    return (struct scaled_out){
        .spec = spec,
        .absmax = w->kernels->group_absmax[spec->dtype],
        .quantize = w->kernels->scaled[scaled][spec->dtype],
        .group = spec->group != 0 ? spec->group : (size_t)w->plan->cols,
        .codes = slice_of(job, QF_PART_CODES),
        .codes_per_byte = scaled == QF_SCALED_I4_PACKED ? 2 : 1,
        .scales = slice_of(job, QF_PART_SCALE),
        .scale_size = qf_dtype_size(qf_plan_part(w->plan, QF_PART_SCALE)->dtype),
        .first = w->first,
    };
}

static uint8_t *codes_at(const struct scaled_out *out, uint64_t elem)
{
    return out->codes + (elem - out->first) / out->codes_per_byte;
}

static char *scales_at(const struct scaled_out *out, uint64_t elem)
{
    return out->scales + (elem - out->first) / out->group * out->scale_size;
}

/* Whole groups that lie in memory. */
static void quantize_groups(const struct scaled_out *out, const char *src, uint64_t at,
                            size_t count)
{
    float absmax[STEP_GROUPS];
    float factors[STEP_GROUPS];
    size_t width = qf_dtype_size(out->spec->dtype);
    size_t groups = STEP_ELEMS / out->group;
    groups = groups < 1 ? 1 : groups > STEP_GROUPS ? STEP_GROUPS : groups;
    size_t step = groups * out->group;
    for (size_t i = 0; i < count; i += step) {
        size_t n = count - i < step ? count - i : step;
        groups = n / out->group;
        memset(absmax, 0, groups * sizeof *absmax);
        out->absmax(src + i * width, n, out->group, absmax);
        qf_scale_store(out->spec, absmax, groups, scales_at(out, at + i));
        qf_scale_factors(out->spec, absmax, groups, factors);
        out->quantize(src + i * width, n, out->group, factors, codes_at(out, at + i));
    }
}

/* A group that is larger than a piece: once for the absmax, once for the codes. */
static int quantize_large_group(struct work *w, const struct scaled_out *out,
                                uint64_t first)
{
    float absmax = 0;
    float factor = 0;
    size_t piece = w->piece_max / 2 * 2;
    for (int pass = 0; pass < 2; pass++) {
        for (uint64_t at = first; at < first + out->group; at += piece) {
            uint64_t left = first + out->group - at;
            size_t count = left < piece ? (size_t)left : piece;
            const void *src;
            int rc = fetch(w, at, count, &src);
            if (rc != 0)
                return rc;
            if (pass == 0)
                out->absmax(src, count, count, &absmax);
            else
                out->quantize(src, count, count, &factor, codes_at(out, at));
        }
        qf_scale_factors(out->spec, &absmax, 1, &factor);
    }
    qf_scale_store(out->spec, &absmax, 1, scales_at(out, first));
    return 0;
}

static int encode_groups(struct work *w, const struct qf_job *job)
{
    struct scaled_out out = scaled_out_of(w, job);
    size_t piece = w->piece_max / out.group * out.group;
    int rc = 0;
    for (uint64_t at = w->first; at < w->end && rc == 0;) {
        if (piece == 0) {
            rc = quantize_large_group(w, &out, at);
            at += out.group;
            continue;
        }
        size_t count = w->end - at < piece ? (size_t)(w->end - at) : piece;
        const void *src;
        rc = fetch(w, at, count, &src);
        if (rc == 0)
            quantize_groups(&out, src, at, count);
        at += count;
    }
    return rc;
}

/* A row of blocks: `group` rows side by side. */
struct band {
    const struct scaled_out *out;
    uint64_t first; /* element */
    size_t cols;
    size_t piece_rows; /* a piece is so many rows … */
    size_t piece_cols; /* … and, if that is one, so many elements of it */
    float *absmax;     /* of its blocks */
    const char *src;   /* the piece last fetched */
};

static void quantize_blocks(const struct band *b, size_t rows, size_t col, size_t cols,
                            uint8_t *codes)
{
    float factors[STEP_GROUPS];
    const struct scaled_out *out = b->out;
    size_t width = qf_dtype_size(out->spec->dtype);
    size_t step = STEP_GROUPS * out->group;
    for (size_t i = 0; i < cols; i += step) {
        size_t n = cols - i < step ? cols - i : step;
        qf_scale_factors(out->spec, b->absmax + (col + i) / out->group, n / out->group,
                         factors);
        for (size_t r = 0; r < rows; r++)
            out->quantize(b->src + (r * cols + i) * width, n, out->group, factors,
                          codes + r * b->cols + i);
    }
}

static int do_band_piece(struct work *w, struct band *b, int pass, size_t row,
                         size_t col)
{
    const struct scaled_out *out = b->out;
    size_t rows = out->group - row < b->piece_rows ? out->group - row : b->piece_rows;
    size_t cols = b->cols - col < b->piece_cols ? b->cols - col : b->piece_cols;
    uint64_t at = b->first + (uint64_t)row * b->cols + col;
    if (pass == 0 || b->piece_rows < out->group) {
        const void *src;
        int rc = fetch(w, at, (uint64_t)rows * cols, &src);
        if (rc != 0)
            return rc;
        b->src = src;
    }
    if (pass == 1) {
        quantize_blocks(b, rows, col, cols, codes_at(out, at));
        return 0;
    }
    for (size_t r = 0; r < rows; r++)
        out->absmax(b->src + r * cols * qf_dtype_size(out->spec->dtype), cols,
                    out->group, b->absmax + col / out->group);
    return 0;
}

/* Read once for the absmax, which is kept where the scales will be, and once more for
 * the codes if it is larger than a piece. */
static int encode_band(struct work *w, const struct scaled_out *out, uint64_t first,
                       float *absmax)
{
    size_t cols = (size_t)w->plan->cols;
    size_t wide = w->piece_max / out->group * out->group;
    size_t rows = cols <= wide ? w->piece_max / cols : 1;
    struct band band = {
        .out = out,
        .first = first,
        .cols = cols,
        .piece_rows = rows < out->group ? rows : out->group,
        .piece_cols = cols <= wide ? cols : wide,
        .absmax = absmax,
    };
    memset(absmax, 0, cols / out->group * sizeof *absmax);
    for (int pass = 0; pass < 2; pass++) {
        for (size_t row = 0; row < out->group; row += band.piece_rows) {
            for (size_t col = 0; col < cols; col += band.piece_cols) {
                int rc = do_band_piece(w, &band, pass, row, col);
                if (rc != 0)
                    return rc;
            }
        }
    }
    qf_scale_store(out->spec, absmax, cols / out->group, absmax);
    return 0;
}

static int encode_blocks(struct work *w, const struct qf_job *job)
{
    struct scaled_out out = scaled_out_of(w, job);
    size_t cols = (size_t)w->plan->cols;
    float *absmax = (float *)(void *)out.scales;
    int rc = 0;
    for (uint64_t at = w->first; at < w->end && rc == 0; at += cols * out.group) {
        rc = encode_band(w, &out, at, absmax);
        absmax += cols / out.group;
    }
    return rc;
}

/* ---- GGUF ---- */

static int encode_gguf(struct work *w, const struct qf_job *job)
{
    enum qf_gguf_block block = qf_gguf_block_of(w->plan->spec.codec);
    qf_kernel_gguf *kernel = w->kernels->gguf[block][w->plan->spec.dtype];
    uint8_t *out = slice_of(job, QF_PART_CODES);
    size_t piece = w->piece_max / QF_GGUF_BLOCK * QF_GGUF_BLOCK;
    for (uint64_t at = w->first; at < w->end; at += piece) {
        size_t count = w->end - at < piece ? (size_t)(w->end - at) : piece;
        const void *src;
        int rc = fetch(w, at, count, &src);
        if (rc != 0)
            return rc;
        kernel(src, count / QF_GGUF_BLOCK, out);
        out += count / QF_GGUF_BLOCK * qf_gguf_block_size(block);
    }
    return 0;
}

/* ---- jobs ---- */

/* The bytes between the slices of a record are zero. */
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

static int encode_job(const struct cpu_backend *cpu, struct buffers *buffers,
                      const struct qf_job *job)
{
    const struct qf_plan *plan = job->plan;
    size_t src_width = qf_dtype_size(plan->src_dtype);
    size_t width = qf_dtype_size(plan->spec.dtype);
    struct work w = {
        .kernels = cpu->kernels,
        .plan = plan,
        .source = &job->source,
        .buffers = buffers,
        .src_width = src_width,
        .piece_max = QF_PIECE_SIZE / (src_width > width ? src_width : width),
    };
    uint64_t count;
    qf_plan_chunk_elems(plan, job->chunk, &w.first, &count);
    w.end = w.first + count;
    if (plan->transposed && buffers->window == NULL) {
        buffers->window = aligned_alloc(BUFFER_ALIGN, QF_CHUNK_ELEMS * sizeof(float));
        if (buffers->window == NULL)
            return -ENOMEM;
    }
    clear_gaps(job);
    switch (qf_codec_info(plan->spec.codec)->family) {
    case QF_FAMILY_BNB_4BIT:
        return encode_4bit(&w, job);
    case QF_FAMILY_BNB_INT8:
        return encode_int8(&w, job);
    case QF_FAMILY_FP8:
        return encode_blocks(&w, job);
    case QF_FAMILY_GGUF:
        return encode_gguf(&w, job);
    default:
        return encode_groups(&w, job);
    }
}

static void cpu_encode(qf_backend *backend, struct qf_job *jobs, size_t count)
{
    struct cpu_backend *cpu = (struct cpu_backend *)(void *)backend;
    struct buffers *buffers = buffers_take(cpu);
    for (size_t i = 0; i < count; i++)
        jobs[i].rc = buffers != NULL ? encode_job(cpu, buffers, &jobs[i]) : -ENOMEM;
    if (buffers != NULL)
        buffers_give(cpu, buffers);
}

static void cpu_close(qf_backend *backend)
{
    struct cpu_backend *cpu = (struct cpu_backend *)(void *)backend;
    while (cpu->idle != NULL) {
        struct buffers *next = cpu->idle->next;
        buffers_free(cpu->idle);
        cpu->idle = next;
    }
    pthread_mutex_destroy(&cpu->lock);
    free(cpu);
}

static const struct qf_backend_ops cpu_ops[QF_ISA_COUNT] = {
    [QF_ISA_SCALAR] = {.name = "scalar", .encode = cpu_encode, .close = cpu_close},
    [QF_ISA_AVX2] = {.name = "avx2", .encode = cpu_encode, .close = cpu_close},
    [QF_ISA_AVX512] = {.name = "avx512", .encode = cpu_encode, .close = cpu_close},
};

static int find_isa(const char *name, enum qf_isa *out, struct qf_err *err)
{
    for (int i = 0; i < QF_ISA_COUNT; i++) {
        if (strcmp(name, qf_isa_name((enum qf_isa)i)) != 0)
            continue;
        *out = (enum qf_isa)i;
        if (*out > qf_isa_detect())
            return qf_err_set(err, -ENOTSUP,
                              "this processor has no %s kernels (its best are %s)",
                              name, qf_isa_name(qf_isa_detect()));
        return 0;
    }
    return qf_err_set(err, -EINVAL,
                      "unknown instruction set '%s': scalar, avx2 or avx512", name);
}

int qf_cpu_backend_open(const char *isa, qf_backend **out, struct qf_err *err)
{
    const char *name = isa != NULL ? isa : qf_kernels_best()->name;
    enum qf_isa level = QF_ISA_SCALAR;
    int rc = find_isa(name, &level, err);
    if (rc != 0)
        return rc;
    struct cpu_backend *cpu = calloc(1, sizeof *cpu);
    if (cpu == NULL)
        return qf_err_set(err, -ENOMEM, "out of memory");
    rc = pthread_mutex_init(&cpu->lock, NULL);
    if (rc != 0) {
        free(cpu);
        return qf_err_set(err, -rc, "cannot make a lock");
    }
    cpu->base.ops = &cpu_ops[level];
    cpu->kernels = qf_kernels_for(level);
    *out = &cpu->base;
    return 0;
}

void qf_backend_close(qf_backend *backend)
{
    if (backend != NULL)
        backend->ops->close(backend);
}
