/* SPDX-License-Identifier: Apache-2.0 */
/* Tensors that bitsandbytes has quantized, as sources: any range of what they stand
 * for, in any dtype, and views that quantize them anew. What must come out is computed
 * here, element by element. */
#include "test_engine_fixture.h"

#include "ckpt/bnb.h"
#include "engine/decode.h"
#include "quant/half.h"

#define STATE(type) ".quant_state.bitsandbytes__" type
#define WEIGHTS     5
#define STORED      17

/* ---- the checkpoint ---- */

struct weight {
    const char *name;
    uint64_t rows, cols;
    uint32_t blocksize; /* 0: int8 */
    uint32_t nested;    /* nested block size, or 0 */
    enum qf_dtype dtype;
    const char *state;
};

/* Odd counts, blocks of the smallest and the largest size, several pieces, rows of one
 * element and rows that begin anywhere in a piece. */
static const struct weight weights[WEIGHTS] = {
    {"a.weight", 301, 77, 64, 0, QF_BF16,
     "{\"quant_type\":\"nf4\",\"blocksize\":64,\"dtype\":\"bfloat16\",\"shape\":"
     "[301,77]}"},
    {"b.weight", 129, 1031, 32, 7, QF_F16,
     "{\"quant_type\":\"nf4\",\"blocksize\":32,\"dtype\":\"float16\",\"shape\":"
     "[129,1031],\"nested_blocksize\":7,\"nested_dtype\":\"float32\","
     "\"nested_offset\":0.03125}"},
    {"c.weight", 200, 300, 4096, 0, QF_F32,
     "{\"quant_type\":\"fp4\",\"blocksize\":4096,\"dtype\":\"float32\",\"shape\":"
     "[200,300]}"},
    {"d.weight", 50, 1000, 0, 0, QF_F32, NULL},
    {"e.weight", 40000, 1, 0, 0, QF_F32, NULL},
};

static const float map[16] = {-1,    -0.7f, -0.5f, -0.4f, -0.3f, -0.2f, -0.1f, 0,
                              0.08f, 0.16f, 0.25f, 0.34f, 0.44f, 0.56f, 0.72f, 1};

struct fixture {
    struct fx_tensor stored[STORED];
    size_t count;
    float nested_map[256];
    struct fx fx;
    float *want[WEIGHTS]; /* before they are rounded */
};

static void add(struct fixture *f, const char *name, enum qf_dtype dtype,
                uint64_t count, const void *data)
{
    assert_true(f->count < STORED);
    f->stored[f->count++] =
        (struct fx_tensor){{name, dtype, 1, {count, 0, 0, 0}, data}, FX_KEEP(dtype)};
}

static void add_rows(struct fixture *f, const char *name, uint64_t rows, uint64_t cols)
{
    add(f, name, QF_I8, rows, NULL);
    f->stored[f->count - 1].st.rank = 2;
    f->stored[f->count - 1].st.shape[1] = cols;
}

static const void *stored_bytes(const struct fixture *f, const char *name)
{
    const struct qf_shard *header =
        f->fx.shard->stored != NULL ? f->fx.shard->stored : f->fx.shard;
    const struct qf_tensor *t = qf_shard_find(header, name);
    assert_non_null(t);
    return f->fx.source + t->off;
}

/* ---- what must come out ---- */

static const void *part(const struct fixture *f, const struct weight *w,
                        const char *suffix)
{
    char name[64];
    snprintf(name, sizeof name, "%s%s", w->name, suffix);
    return stored_bytes(f, name);
}

static float float_at(const void *bytes, uint64_t index)
{
    float x;
    memcpy(&x, (const char *)bytes + index * sizeof x, sizeof x);
    return x;
}

static float absmax_of(const struct fixture *f, const struct weight *w, uint64_t block)
{
    const uint8_t *bytes = part(f, w, ".absmax");
    if (w->nested == 0)
        return float_at(bytes, block);
    float product = f->nested_map[bytes[block]] *
                    float_at(part(f, w, ".nested_absmax"), block / w->nested);
    return product + 0.03125f;
}

static float *compute(const struct fixture *f, const struct weight *w)
{
    uint64_t n = w->rows * w->cols;
    float *out = malloc(n * sizeof *out);
    const uint8_t *codes = part(f, w, "");
    assert_non_null(out);
    for (uint64_t i = 0; i < n; i++) {
        if (w->blocksize != 0) {
            unsigned code = i % 2 == 0 ? codes[i / 2] >> 4 : codes[i / 2] & 15u;
            out[i] = map[code] * absmax_of(f, w, i / w->blocksize);
        } else {
            char scb[8];
            snprintf(scb, sizeof scb, "%.2sSCB", w->name);
            float product =
                (float)(int8_t)codes[i] * float_at(stored_bytes(f, scb), i / w->cols);
            out[i] = product * 7.874015718698502e-3f;
        }
    }
    return out;
}

/* The weight's bytes in a dtype; owned. */
static unsigned char *rounded(const struct fixture *f, size_t index,
                              enum qf_dtype dtype)
{
    uint64_t n = weights[index].rows * weights[index].cols;
    unsigned char *out = malloc(n * sizeof(float));
    assert_non_null(out);
    qf_kernels_for(QF_ISA_SCALAR)->cast[QF_F32][dtype](f->want[index], n, out);
    return out;
}

/* ---- */

static void use_plain_header(struct fixture *f)
{
    struct fx *fx = &f->fx;
    char *texts[STORED + 1] = {0};
    struct qf_err err = {""};
    for (size_t i = 0; i < fx->shard->tensor_count; i++) {
        const struct qf_tensor *t = &fx->shard->tensors[i];
        if (qf_bnb_is_small(t))
            texts[i] = (char *)fx->source + t->off;
    }
    qf_layout_free(fx->layout);
    fx->layout = NULL;
    if (qf_bnb_plain(fx->shard, texts, QF_F32, &fx->shard, &err) != 0)
        fail_msg("%s", err.text);
    assert_int_equal(fx->shard->tensor_count, WEIGHTS + 1);
}

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof *f);
    assert_non_null(f);
    for (int i = 0; i < 256; i++)
        f->nested_map[i] = (float)(i - 128) / 200.0f;
    add(f, "norm.weight", QF_F32, 100, NULL);
    add(f, "a.weight", QF_U8, (301 * 77 + 1) / 2, NULL);
    add(f, "a.weight.absmax", QF_F32, (301 * 77 + 63) / 64, NULL);
    add(f, "a.weight.quant_map", QF_F32, 16, map);
    add(f, "a.weight" STATE("nf4"), QF_U8, strlen(weights[0].state), weights[0].state);
    add(f, "b.weight", QF_U8, (129 * 1031 + 1) / 2, NULL);
    add(f, "b.weight.absmax", QF_U8, 4157, NULL);
    add(f, "b.weight.nested_absmax", QF_F32, 594, NULL);
    add(f, "b.weight.nested_quant_map", QF_F32, 256, f->nested_map);
    add(f, "b.weight.quant_map", QF_F32, 16, map);
    add(f, "b.weight" STATE("nf4"), QF_U8, strlen(weights[1].state), weights[1].state);
    add(f, "c.weight", QF_U8, 30000, NULL);
    add(f, "c.weight.absmax", QF_F32, 15, NULL);
    add(f, "c.weight.quant_map", QF_F32, 16, map);
    add(f, "c.weight" STATE("fp4"), QF_U8, strlen(weights[2].state), weights[2].state);
    add_rows(f, "d.weight", 50, 1000);
    add_rows(f, "e.weight", 40000, 1);
    struct fx_tensor all[STORED + 2];
    memcpy(all, f->stored, sizeof f->stored);
    assert_int_equal(f->count, STORED);
    all[STORED] =
        (struct fx_tensor){{"d.SCB", QF_F32, 1, {50, 0, 0, 0}, NULL}, FX_KEEP(QF_F32)};
    all[STORED + 1] = (struct fx_tensor){{"e.SCB", QF_F32, 1, {40000, 0, 0, 0}, NULL},
                                         FX_KEEP(QF_F32)};
    *state = f;
    fx_begin(&f->fx, all, STORED + 2, "nf4");
    use_plain_header(f);
    for (size_t i = 0; i < WEIGHTS; i++)
        f->want[i] = compute(f, &weights[i]);
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    fx_end(&f->fx);
    for (size_t i = 0; i < WEIGHTS; i++)
        free(f->want[i]);
    free(f);
    return 0;
}

/* ---- ranges ---- */

static void check_range(const struct fixture *f, const qf_srcfile *src, size_t index,
                        enum qf_dtype dtype, const unsigned char *want, uint64_t off,
                        size_t size)
{
    const struct qf_tensor *t = qf_shard_find(f->fx.shard, weights[index].name);
    unsigned char *got =
        malloc(size + 1); /* so that a sanitizer sees a byte too many */
    uint64_t bytes = 0;
    assert_non_null(got);
    got[size] = 0xa5;
    assert_int_equal(qf_decode_as(src, t, dtype, got, size, off, &bytes), 0);
    if (memcmp(got, want + off, size) != 0 || got[size] != 0xa5)
        fail_msg("%s in %s: bytes [%llu, +%zu)", weights[index].name,
                 qf_dtype_name(dtype), (unsigned long long)off, size);
    assert_true(size == 0 ? bytes == 0 : bytes > 0);
    free(got);
}

static void test_ranges(void **state)
{
    struct fixture *f = *state;
    qf_srcfile *src;
    uint64_t seed = 7;
    assert_int_equal(qf_srcfile_open(f->fx.root, SOURCE_NAME, &src, NULL), 0);
    for (size_t i = 0; i < WEIGHTS; i++)
        for (int dtype = 0; dtype < QF_FLOAT_COUNT; dtype++) {
            unsigned char *want = rounded(f, i, (enum qf_dtype)dtype);
            uint64_t size =
                weights[i].rows * weights[i].cols * qf_dtype_size((enum qf_dtype)dtype);
            check_range(f, src, i, (enum qf_dtype)dtype, want, 0, (size_t)size);
            check_range(f, src, i, (enum qf_dtype)dtype, want, size, 0);
            check_range(f, src, i, (enum qf_dtype)dtype, want, size - 1, 1);
            for (int n = 0; n < 200; n++) {
                uint64_t off = fx_random(&seed) % size;
                uint64_t most = n % 2 == 0 ? 100 : size;
                uint64_t want_size = fx_random(&seed) % most;
                if (want_size > size - off)
                    want_size = size - off;
                check_range(f, src, i, (enum qf_dtype)dtype, want, off,
                            (size_t)want_size);
            }
            free(want);
        }
    qf_srcfile_close(src);
}

static void test_tensor_read(void **state)
{
    struct fixture *f = *state;
    qf_srcfile *src;
    unsigned char got[64];
    assert_int_equal(qf_srcfile_open(f->fx.root, SOURCE_NAME, &src, NULL), 0);
    /* Its own dtype, whoever asks without one; and what is stored as it is. */
    unsigned char *want = rounded(f, 1, QF_F16);
    const struct qf_tensor *t = qf_shard_find(f->fx.shard, "b.weight");
    assert_int_equal(qf_decode_read(src, t, got, 64, 333, NULL), 0);
    assert_memory_equal(got, want + 333, 64);
    free(want);
    t = qf_shard_find(f->fx.shard, "norm.weight");
    assert_int_equal(qf_decode_read(src, t, got, 64, 5, NULL), 0);
    assert_memory_equal(got, f->fx.source + t->off + 5, 64);
    /* Every part may be where the file ends, once it is cut. */
    static const char *const cut[] = {"d.weight", "d.SCB", "b.weight.nested_absmax",
                                      "b.weight.absmax", "b.weight"};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        const struct qf_tensor *p = qf_shard_find(f->fx.shard->stored, cut[i]);
        t = qf_shard_find(f->fx.shard, cut[i][0] == 'd' ? "d.weight" : "b.weight");
        assert_int_equal(truncate(f->fx.source_path, (off_t)p->off), 0);
        assert_int_equal(qf_decode_read(src, t, got, 64, 0, NULL), -ESTALE);
        tmpdir_write(f->fx.dir, SOURCE_NAME, f->fx.source, f->fx.source_size);
    }
    qf_srcfile_close(src);
}

/* ---- views ---- */

static void lay_out(struct fx *fx, const char *view,
                    const struct qf_decision *decisions)
{
    struct qf_err err = {""};
    assert_int_equal(qf_view_parse(view, strlen(view), &fx->view, NULL), 0);
    qf_layout_free(fx->layout);
    fx->layout = NULL;
    if (qf_layout_build(fx->shard, decisions, &fx->view, fx->dtype, &fx->layout,
                        &err) != 0)
        fail_msg("%s", err.text);
}

static struct qf_shard *header_of(const struct fx *fx, const unsigned char *all)
{
    struct qf_shard *shard = NULL;
    assert_int_equal(qf_shard_parse(all, fx->layout->header_size, fx->layout->file_size,
                                    &shard, NULL),
                     0);
    return shard;
}

static void test_plain_views(void **state)
{
    struct fixture *f = *state;
    static const char *const views[] = {"fp32", "fp16", "bf16"};
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    for (int dtype = 0; dtype < QF_FLOAT_COUNT; dtype++) {
        struct qf_decision decisions[WEIGHTS + 1];
        for (size_t i = 0; i < WEIGHTS + 1; i++)
            decisions[i] =
                (struct qf_decision){QF_REASON_PLAIN, (enum qf_dtype)dtype, false};
        lay_out(&f->fx, views[dtype], decisions);
        fx_open(&f->fx, backend, store, QF_ENGINE_MEMORY_MIN);
        unsigned char *all = fx_read_all(&f->fx, 100003);
        struct qf_shard *header = header_of(&f->fx, all);
        assert_int_equal(header->tensor_count, WEIGHTS + 1);
        for (size_t i = 0; i < WEIGHTS; i++) {
            unsigned char *want = rounded(f, i, (enum qf_dtype)dtype);
            const struct qf_tensor *t = qf_shard_find(header, weights[i].name);
            assert_int_equal(t->dtype, dtype);
            assert_int_equal(t->shape[0], weights[i].rows);
            assert_memory_equal(all + t->off, want, t->size);
            free(want);
        }
        uint64_t seed = 3;
        unsigned char got[5000];
        for (int n = 0; n < 300; n++) {
            uint64_t off = fx_random(&seed) % f->fx.layout->file_size;
            long size = fx_read(f->fx.file, off, sizeof got, got);
            assert_true(size > 0);
            assert_memory_equal(got, all + off, (size_t)size);
        }
        assert_int_equal(fx_stats(&f->fx).chunks_encoded, 0);
        qf_shard_free(header);
        free(all);
        fx_close(&f->fx);
    }
    qf_store_close(store);
    qf_backend_close(backend);
}

/* The same weights as a checkpoint that was never quantized. */
static void write_plain(const struct fixture *f, struct fx *plain,
                        const struct qf_decision *decisions, const char *view)
{
    struct fx_tensor tensors[WEIGHTS + 1];
    unsigned char *data[WEIGHTS];
    for (size_t i = 0; i < WEIGHTS + 1; i++) {
        const struct qf_tensor *t = &f->fx.shard->tensors[i];
        size_t w = 0;
        while (w < WEIGHTS && strcmp(weights[w].name, t->name) != 0)
            w++;
        const void *bytes = f->fx.source + t->off;
        if (w < WEIGHTS)
            bytes = data[w] = rounded(f, w, t->dtype);
        tensors[i] = (struct fx_tensor){{t->name,
                                         t->dtype,
                                         t->rank,
                                         {t->shape[0], t->rank > 1 ? t->shape[1] : 0},
                                         bytes},
                                        decisions[i]};
    }
    fx_begin(plain, tensors, WEIGHTS + 1, view);
    for (size_t i = 0; i < WEIGHTS; i++)
        free(data[i]);
}

/* a, b, c are quantized anew; d is kept and cast, e is kept as it is. */
static void test_through(void **state)
{
    struct fixture *f = *state;
    static const char *const views[] = {"int8", "dq", "nf4", "fp4"};
    qf_backend *backend = fx_backend(NULL);
    struct qf_decision decisions[WEIGHTS + 1];
    for (size_t i = 0; i < WEIGHTS + 1; i++) {
        const struct qf_tensor *t = &f->fx.shard->tensors[i];
        bool coded = t->name[0] < 'd', cast = t->name[0] == 'd';
        decisions[i] =
            (struct qf_decision){coded ? QF_REASON_QUANTIZED : QF_REASON_NAME,
                                 coded || cast ? QF_BF16 : t->dtype, false};
    }
    for (size_t v = 0; v < sizeof views / sizeof *views; v++) {
        struct fx plain;
        unsigned char *all[2];
        qf_store *store = fx_store_mem(0);
        write_plain(f, &plain, decisions, views[v]);
        lay_out(&f->fx, views[v], decisions);
        assert_int_equal(f->fx.layout->file_size, plain.layout->file_size);
        fx_open(&f->fx, backend, store, QF_ENGINE_MEMORY_MIN);
        all[0] = fx_read_all(&f->fx, 70001);
        fx_close(&f->fx);
        fx_open(&plain, backend, store, QF_ENGINE_MEMORY_MIN);
        all[1] = fx_read_all(&plain, 70001);
        fx_close(&plain);
        assert_memory_equal(all[0], all[1], plain.layout->file_size);
        free(all[0]);
        free(all[1]);
        fx_end(&plain);
        qf_store_close(store);
    }
    qf_backend_close(backend);
}

static void test_changed_source(void **state)
{
    struct fixture *f = *state;
    struct qf_decision decisions[WEIGHTS + 1];
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    for (size_t i = 0; i < WEIGHTS + 1; i++)
        decisions[i] = (struct qf_decision){QF_REASON_PLAIN, QF_BF16, false};
    lay_out(&f->fx, "bf16", decisions);
    fx_open(&f->fx, backend, store, QF_ENGINE_MEMORY_MIN);
    unsigned char got[4096];
    assert_int_equal(fx_read(f->fx.file, 4096, sizeof got, got), sizeof got);
    tmpdir_write(f->fx.dir, SOURCE_NAME, f->fx.source, f->fx.source_size);
    assert_int_equal(fx_read(f->fx.file, 4096, sizeof got, got), -ESTALE);
    fx_close(&f->fx);
    qf_store_close(store);
    qf_backend_close(backend);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_ranges, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tensor_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_plain_views, setup, teardown),
        cmocka_unit_test_setup_teardown(test_through, setup, teardown),
        cmocka_unit_test_setup_teardown(test_changed_source, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
