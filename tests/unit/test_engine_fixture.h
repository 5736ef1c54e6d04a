/* SPDX-License-Identifier: Apache-2.0 */
/* One source shard, one view of it, one engine, and what the view must contain, made
 * without the engine, the layout's spans or the chunks of a plan: with the scalar
 * kernels over whole tensors. */
#ifndef QF_TESTS_UNIT_TEST_ENGINE_FIXTURE_H
#define QF_TESTS_UNIT_TEST_ENGINE_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
/* cmocka.h wants those before it. */
#include <cmocka.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/bytes.h"
#include "engine/engine.h"
#include "quant/kernels.h"
#include "quant/qstate.h"
#include "quant/tables.h"
#include "support/stfile.h"
#include "support/tmpdir.h"

#define SOURCE_NAME "model.safetensors"

struct fx_tensor {
    struct stfile_tensor st;
    struct qf_decision decision;
};

#define FX_MAX 32

struct fx {
    char *dir;
    char source_path[4096];
    unsigned char *source; /* the file as it was written */
    size_t source_size;
    const struct fx_tensor *tensors;
    size_t tensor_count;
    struct qf_decision decisions[FX_MAX];
    struct qf_view view;
    enum qf_dtype dtype;
    struct qf_shard *shard;
    struct qf_layout *layout;
    qf_root *root;
    qf_srcfile *src;
    qf_store *store;
    qf_engine *engine;
    qf_shard_file *file;
    _Atomic int released;
};

#define FX_QUANT(transposed_)                                                          \
    {                                                                                  \
        QF_REASON_QUANTIZED, QF_BF16, transposed_                                      \
    }
#define FX_KEEP(dtype_)                                                                \
    {                                                                                  \
        QF_REASON_NAME, dtype_, false                                                  \
    }

/* All that can happen to a tensor: whole and short chunks, casts, odd sizes and places,
 * tensors turned over, tensors without elements. */
static const struct fx_tensor fx_all[] = {
    {{"a.weight", QF_BF16, 2, {1536, 1024, 0, 0}, NULL}, FX_QUANT(false)},
    {{"b.weight", QF_F32, 2, {81, 13001, 0, 0}, NULL}, FX_QUANT(false)},
    {{"bytes", QF_U8, 1, {7, 0, 0, 0}, NULL}, FX_KEEP(QF_U8)},
    {{"c.weight", QF_F16, 2, {64, 300, 0, 0}, NULL}, FX_QUANT(true)},
    {{"d.bias", QF_F32, 1, {100003, 0, 0, 0}, NULL}, FX_KEEP(QF_BF16)},
    {{"e.norm", QF_BF16, 1, {33, 0, 0, 0}, NULL}, FX_KEEP(QF_BF16)},
    {{"f.norm", QF_F16, 1, {5, 0, 0, 0}, NULL}, FX_KEEP(QF_F32)},
    {{"ids", QF_I64, 1, {3, 0, 0, 0}, NULL}, FX_KEEP(QF_I64)},
    {{"t.weight", QF_BF16, 2, {1030, 1100, 0, 0}, NULL}, FX_QUANT(true)},
    {{"y.weight", QF_BF16, 2, {5, 0, 0, 0}, NULL}, FX_QUANT(false)},
    {{"z.weight", QF_BF16, 2, {0, 64, 0, 0}, NULL}, FX_QUANT(false)},
};
#define FX_ALL_COUNT (sizeof fx_all / sizeof fx_all[0])

/* One tensor of four nf4 chunks, for tests that count. */
#define FX_FOUR_CHUNKS 4
static const struct fx_tensor fx_four[] = {
    {{"a.weight", QF_BF16, 2, {4096, 1024, 0, 0}, NULL}, FX_QUANT(false)},
};

static inline void fx_released(void *owner)
{
    struct fx *fx = owner;
    atomic_fetch_add(&fx->released, 1);
}

/* Writes the source and lays the view out. */
static inline void fx_begin(struct fx *fx, const struct fx_tensor *tensors,
                            size_t count, const char *view)
{
    struct stfile_tensor st[FX_MAX];
    struct qf_err err = {""};
    uint64_t header_size;
    assert_true(count <= FX_MAX);
    *fx = (struct fx){.tensors = tensors, .tensor_count = count, .dtype = QF_BF16};
    fx->dir = tmpdir_make();
    snprintf(fx->source_path, sizeof fx->source_path, "%s/%s", fx->dir, SOURCE_NAME);
    for (size_t i = 0; i < count; i++) {
        st[i] = tensors[i].st;
        fx->decisions[i] = tensors[i].decision;
    }
    fx->source = stfile_make(st, count, &fx->source_size);
    tmpdir_write(fx->dir, SOURCE_NAME, fx->source, fx->source_size);
    assert_int_equal(qf_shard_header_size(fx->source, fx->source_size, &header_size,
                                          &err),
                     0);
    assert_int_equal(qf_shard_parse(fx->source, (size_t)header_size + 8,
                                    fx->source_size, &fx->shard, &err),
                     0);
    assert_int_equal(qf_view_parse(view, strlen(view), &fx->view, NULL), 0);
    if (qf_layout_build(fx->shard, fx->decisions, &fx->view, fx->dtype, &fx->layout,
                        &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(qf_root_open(fx->dir, &fx->root, &err), 0);
}

/* Opens engine and file over a store (borrowed) and a backend (borrowed). */
static inline void fx_open(struct fx *fx, qf_backend *backend, qf_store *store,
                           uint64_t memory)
{
    struct qf_engine_options options = {.backend = backend,
                                        .store = store,
                                        .thread_count = 3,
                                        .memory_limit = memory};
    fx->store = store;
    fx->released = 0;
    assert_int_equal(qf_engine_new(&options, &fx->engine), 0);
    assert_int_equal(qf_srcfile_open(fx->root, SOURCE_NAME, &fx->src, NULL), 0);
    struct qf_hash128 id =
        qf_source_id(qf_srcfile_ident(fx->src), fx->shard->header_hash);
    assert_int_equal(qf_shard_file_open(fx->engine, fx->layout,
                                        &(struct qf_shard_source){fx->src, id}, 1, 0,
                                        fx_released, fx, &fx->file),
                     0);
}

static inline struct qf_engine_stats fx_stats(const struct fx *fx)
{
    struct qf_engine_stats stats;
    qf_engine_stats(fx->engine, &stats);
    return stats;
}

/* Waits until nothing works for the file any more. */
static inline void fx_close(struct fx *fx)
{
    qf_shard_file_close(fx->file);
    qf_engine_free(fx->engine);
    assert_int_equal(fx->released, 1);
    qf_srcfile_close(fx->src);
}

static inline void fx_end(struct fx *fx)
{
    qf_root_close(fx->root);
    qf_layout_free(fx->layout);
    qf_shard_free(fx->shard);
    free(fx->source);
    tmpdir_remove(fx->dir);
}

static inline qf_backend *fx_backend(const char *isa)
{
    qf_backend *backend;
    struct qf_err err = {""};
    if (qf_cpu_backend_open(isa, &backend, &err) != 0)
        fail_msg("%s", err.text);
    return backend;
}

static inline qf_store *fx_store_mem(uint64_t limit)
{
    qf_store *store;
    assert_int_equal(qf_store_mem_open(limit, &store), 0);
    return store;
}

/* One read, copied out; the errno or the number of bytes. */
static inline long fx_read(qf_shard_file *file, uint64_t off, size_t size,
                           unsigned char *out)
{
    struct qf_read *read;
    int rc = qf_engine_read(file, off, size, &read);
    if (rc != 0)
        return rc;
    size_t count, at = 0;
    const struct iovec *pieces = qf_read_pieces(read, &count);
    for (size_t i = 0; i < count; i++) {
        memcpy(out + at, pieces[i].iov_base, pieces[i].iov_len);
        at += pieces[i].iov_len;
    }
    size_t told = qf_read_size(read);
    qf_read_release(read);
    return at == told && at <= size ? (long)at : -9999;
}

/* The whole file, `step` bytes a read, or what went wrong. */
static inline int fx_try_all(struct fx *fx, size_t step, unsigned char **out)
{
    unsigned char *all = malloc(fx->layout->file_size);
    assert_non_null(all);
    uint64_t off = 0;
    while (off < fx->layout->file_size) {
        long n = fx_read(fx->file, off, step, all + off);
        if (n <= 0) {
            free(all);
            return n < 0 ? (int)n : -9998;
        }
        off += (uint64_t)n;
    }
    *out = all;
    return 0;
}

static inline unsigned char *fx_read_all(struct fx *fx, size_t step)
{
    unsigned char *all = NULL;
    assert_int_equal(fx_try_all(fx, step, &all), 0);
    return all;
}

/* ---- what must come out ---- */

/* The tensor as it is quantized: [out, in] in D. Returns owned. */
static inline unsigned char *fx_in_dtype(const struct qf_tensor *t,
                                         const unsigned char *data, bool transposed,
                                         enum qf_dtype dtype)
{
    size_t width = qf_dtype_size(t->dtype), n = t->size / width;
    unsigned char *turned = malloc(t->size + 1);
    unsigned char *out = malloc(n * qf_dtype_size(dtype) + 1);
    assert_non_null(turned);
    assert_non_null(out);
    for (size_t i = 0; i < n; i++) {
        size_t from = i;
        if (transposed)
            from = i % t->shape[0] * t->shape[1] + i / t->shape[0];
        memcpy(turned + i * width, data + from * width, width);
    }
    const struct qf_kernels *k = qf_kernels_for(QF_ISA_SCALAR);
    if (t->dtype == dtype)
        memcpy(out, turned, t->size);
    else
        k->cast[t->dtype][dtype](turned, n, out);
    free(turned);
    return out;
}

/* Compares one output tensor of the view, found by its name in the view's own header.
 */
static inline void fx_part(const struct qf_shard *view, const unsigned char *all,
                           const char *stem, size_t stem_size, const char *suffix,
                           const void *want, size_t size)
{
    char name[256];
    snprintf(name, sizeof name, "%.*s%s", (int)stem_size, stem, suffix);
    const struct qf_tensor *t = qf_shard_find(view, name);
    if (t == NULL)
        fail_msg("the view has no %s", name);
    if (t->size != size || (size > 0 && memcmp(all + t->off, want, size) != 0))
        fail_msg("%s is wrong", name);
}

static inline void fx_expect_4bit(const struct fx *fx, const struct qf_shard *view,
                                  const unsigned char *all, const struct qf_tensor *t,
                                  const unsigned char *x, const uint64_t shape[2])
{
    const struct qf_kernels *k = qf_kernels_for(QF_ISA_SCALAR);
    bool dq = fx->view.codec == QF_CODEC_DQ, fp4 = fx->view.codec == QF_CODEC_FP4;
    size_t n = (size_t)(shape[0] * shape[1]), blocks = (n + 63) / 64;
    size_t nested = (blocks + 255) / 256, stem = strlen(t->name);
    uint8_t *packed = calloc(1, n / 2 + 1), *codes = calloc(1, blocks + 1);
    float *absmax = calloc(blocks + 1, 4), *nested_absmax = calloc(nested + 1, 4);
    float offset = 0;
    assert_true(packed && codes && absmax && nested_absmax);
    (fp4 ? k->fp4 : k->nf4)[fx->dtype](x, n, 64, packed, absmax);
    fx_part(view, all, t->name, stem, "", packed, (n + 1) / 2);
    fx_part(view, all, t->name, stem, ".quant_map", fp4 ? qf_fp4_values : qf_nf4_values,
            64);
    if (dq) {
        offset = k->mean(absmax, blocks);
        k->nested(absmax, blocks, offset, codes, nested_absmax);
        fx_part(view, all, t->name, stem, ".absmax", codes, blocks);
        fx_part(view, all, t->name, stem, ".nested_absmax", nested_absmax, nested * 4);
        fx_part(view, all, t->name, stem, ".nested_quant_map", qf_dynamic_values, 1024);
    } else {
        fx_part(view, all, t->name, stem, ".absmax", absmax, blocks * 4);
    }
    const char *suffix =
        fp4 ? ".quant_state.bitsandbytes__fp4" : ".quant_state.bitsandbytes__nf4";
    char name[256], text[512];
    snprintf(name, sizeof name, "%s%s", t->name, suffix);
    const struct qf_tensor *state = qf_shard_find(view, name);
    assert_non_null(state);
    assert_true(state->size < sizeof text);
    struct qf_codec_spec spec = qf_view_spec(&fx->view, fx->dtype);
    qf_qstate_write(&spec, shape[0], shape[1], offset, text, state->size);
    fx_part(view, all, t->name, stem, suffix, text, state->size);
    free(packed);
    free(codes);
    free(absmax);
    free(nested_absmax);
}

static inline void fx_expect_int8(const struct fx *fx, const struct qf_shard *view,
                                  const unsigned char *all, const struct qf_tensor *t,
                                  const unsigned char *x, const uint64_t shape[2])
{
    const struct qf_kernels *k = qf_kernels_for(QF_ISA_SCALAR);
    size_t rows = (size_t)shape[0], cols = (size_t)shape[1], stem = strlen(t->name);
    size_t width = qf_dtype_size(fx->dtype);
    int8_t *codes = calloc(1, rows * cols + 1);
    float *scb = calloc(rows + 1, 4);
    assert_true(codes && scb);
    for (size_t r = 0; r < rows; r++) {
        const unsigned char *row = x + r * cols * width;
        k->row_absmax[fx->dtype](row, cols, &scb[r]);
        k->int8[fx->dtype](row, cols, scb[r], codes + r * cols);
    }
    fx_part(view, all, t->name, stem, "", codes, rows * cols);
    fx_part(view, all, t->name, stem - strlen("weight"), "SCB", scb, rows * 4);
    fx_part(view, all, t->name, stem, "_format", "", 1);
    free(codes);
    free(scb);
}

/* Checks a whole view file, tensor by tensor. */
static inline void fx_expect(const struct fx *fx, const unsigned char *all)
{
    struct qf_shard *view;
    struct qf_err err = {""};
    uint64_t header_size = qf_load_u64(all);
    size_t outputs = 0;
    if (qf_shard_parse(all, (size_t)header_size + 8, fx->layout->file_size, &view,
                       &err) != 0)
        fail_msg("the view's header: %s", err.text);
    for (size_t i = 0; i < fx->tensor_count; i++) {
        const struct qf_tensor *t = &fx->shard->tensors[i];
        const struct qf_decision *d = &fx->decisions[i];
        const unsigned char *data = fx->source + t->off;
        if (t->size == 0)
            data = fx->source;
        bool quantized = d->reason == QF_REASON_QUANTIZED;
        enum qf_dtype dtype = quantized ? fx->dtype : d->dtype;
        if (!qf_dtype_is_float(t->dtype) || (!quantized && dtype == t->dtype)) {
            fx_part(view, all, t->name, strlen(t->name), "", data, t->size);
            outputs++;
            continue;
        }
        unsigned char *x = fx_in_dtype(t, data, d->transposed, dtype);
        uint64_t shape[2] = {t->shape[d->transposed], t->shape[!d->transposed]};
        if (!quantized) {
            fx_part(view, all, t->name, strlen(t->name), "", x,
                    t->size / qf_dtype_size(t->dtype) * qf_dtype_size(dtype));
            outputs++;
        } else if (fx->view.codec == QF_CODEC_INT8) {
            fx_expect_int8(fx, view, all, t, x, shape);
            outputs += 3;
        } else {
            fx_expect_4bit(fx, view, all, t, x, shape);
            outputs += fx->view.codec == QF_CODEC_DQ ? 6 : 4;
        }
        free(x);
    }
    assert_int_equal(view->tensor_count, outputs);
    qf_shard_free(view);
}

/* Chunks of all tensors of the view. */
static inline uint64_t fx_chunks(const struct fx *fx)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < fx->layout->tensor_count; i++)
        if (fx->layout->tensors[i].plan != NULL)
            sum += fx->layout->tensors[i].plan->chunk_count;
    return sum;
}

/* A small generator, the same everywhere. */
static inline uint64_t fx_random(uint64_t *state)
{
    uint64_t x = *state += UINT64_C(0x9e3779b97f4a7c15);
    x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
    return x ^ (x >> 31);
}

#endif
