/* SPDX-License-Identifier: Apache-2.0 */
/* A view file that is made of two source files. */
#include "test_engine_fixture.h"

#include "base/limits.h"
#include "engine/chunk.h"
#include "test_file_store.h"

#define SOURCES 2

static const struct fx_tensor other_tensors[] = {
    {{"m.weight", QF_F16, 2, {1100, 1000, 0, 0}, NULL}, FX_QUANT(false)},
    {{"n.norm", QF_F32, 1, {777, 0, 0, 0}, NULL}, FX_KEEP(QF_BF16)},
    {{"o.norm", QF_F32, 1, {70, 0, 0, 0}, NULL}, FX_KEEP(QF_F32)},
};
#define OTHER_COUNT (sizeof other_tensors / sizeof other_tensors[0])

/* Views of two files, and one file that has the header and the tensors of the first,
 * then the tensors of the second. */
struct merged {
    struct fx fx[SOURCES];
    struct qf_layout layout;
    struct qf_shard_source sources[SOURCES];
    unsigned char *want;
    qf_backend *backend;
    struct file_store store;
    char *files; /* directory of the store's */
    qf_engine *engine;
    qf_shard_file *file;
    atomic_int released;
};

static void count_released(void *owner)
{
    atomic_fetch_add(&((struct merged *)owner)->released, 1);
}

static uint64_t data_size(const struct fx *fx)
{
    return fx->layout->file_size - fx->layout->header_size;
}

static void merge_layouts(struct merged *m)
{
    const struct qf_layout *a = m->fx[0].layout, *b = m->fx[1].layout;
    struct qf_layout *to = &m->layout;
    *to = *a;
    to->file_size = a->file_size + data_size(&m->fx[1]);
    to->tensor_count = a->tensor_count + b->tensor_count;
    to->tensors = calloc(to->tensor_count, sizeof *to->tensors);
    to->spans = calloc(a->span_count + b->span_count, sizeof *to->spans);
    assert_true(to->tensors != NULL && to->spans != NULL);
    memcpy(to->tensors, a->tensors, a->tensor_count * sizeof *a->tensors);
    memcpy(to->spans, a->spans, a->span_count * sizeof *a->spans);
    for (size_t i = 0; i < b->tensor_count; i++) {
        to->tensors[a->tensor_count + i] = b->tensors[i];
        to->tensors[a->tensor_count + i].source = 1;
    }
    for (size_t i = 0; i < b->span_count; i++) {
        struct qf_span span = b->spans[i];
        if (span.kind == QF_SPAN_HEADER)
            continue;
        span.off += a->file_size - b->header_size;
        span.tensor += (uint32_t)a->tensor_count;
        to->spans[to->span_count++] = span;
    }
}

static unsigned char *read_file(struct merged *m, qf_shard_file *file,
                                const struct qf_layout *layout)
{
    struct fx whole = {.layout = (struct qf_layout *)layout, .file = file};
    (void)m;
    return fx_read_all(&whole, 1u << 20);
}

static qf_shard_file *open_one(struct merged *m, size_t i)
{
    qf_shard_file *file;
    assert_int_equal(qf_shard_file_open(m->engine, m->fx[i].layout, &m->sources[i], 1,
                                        0, count_released, m, &file),
                     0);
    return file;
}

/* What the merged file must be: of each part read by itself, without a store. */
static void make_wanted(struct merged *m)
{
    m->want = malloc((size_t)m->layout.file_size);
    assert_non_null(m->want);
    unsigned char *to = m->want;
    for (size_t i = 0; i < SOURCES; i++) {
        struct fx *fx = &m->fx[i];
        qf_store *nothing = fx_store_mem(0);
        fx_open(fx, m->backend, nothing, 0);
        unsigned char *all = fx_read_all(fx, 1u << 20);
        fx_expect(fx, all);
        size_t skip = i == 0 ? 0 : fx->layout->header_size;
        memcpy(to, all + skip, (size_t)fx->layout->file_size - skip);
        to += fx->layout->file_size - skip;
        free(all);
        fx_close(fx);
        qf_store_close(nothing);
    }
}

static void open_sources(struct merged *m)
{
    for (size_t i = 0; i < SOURCES; i++) {
        struct fx *fx = &m->fx[i];
        assert_int_equal(qf_srcfile_open(fx->root, SOURCE_NAME, &fx->src, NULL), 0);
        m->sources[i] =
            (struct qf_shard_source){fx->src, qf_source_id(qf_srcfile_ident(fx->src),
                                                           fx->shard->header_hash)};
    }
}

static qf_shard_file *open_merged(struct merged *m)
{
    qf_shard_file *file;
    assert_int_equal(qf_shard_file_open(m->engine, &m->layout, m->sources, SOURCES, 0,
                                        count_released, m, &file),
                     0);
    return file;
}

static void merged_begin(struct merged *m)
{
    *m = (struct merged){.backend = fx_backend(NULL)};
    fx_begin(&m->fx[0], fx_all, FX_ALL_COUNT, "dq");
    fx_begin(&m->fx[1], other_tensors, OTHER_COUNT, "dq");
    merge_layouts(m);
    make_wanted(m);
    m->files = tmpdir_make();
    file_store_init(&m->store, fx_store_mem(64u << 20), m->files);
    open_sources(m);
    struct qf_engine_options options = {.backend = m->backend,
                                        .store = &m->store.base,
                                        .thread_count = 2};
    assert_int_equal(qf_engine_new(&options, &m->engine), 0);
    m->file = open_merged(m);
}

static void merged_end(struct merged *m, int opened)
{
    qf_shard_file_close(m->file);
    qf_engine_free(m->engine);
    assert_int_equal(m->released, opened);
    qf_store_close(&m->store.base);
    qf_backend_close(m->backend);
    tmpdir_remove(m->files);
    for (size_t i = 0; i < SOURCES; i++) {
        qf_srcfile_close(m->fx[i].src);
        fx_end(&m->fx[i]);
    }
    free(m->layout.tensors);
    free(m->layout.spans);
    free(m->want);
}

static void test_bytes(void **state)
{
    (void)state;
    struct merged m;
    merged_begin(&m);
    unsigned char *all = read_file(&m, m.file, &m.layout);
    assert_memory_equal(all, m.want, (size_t)m.layout.file_size);
    uint64_t seed = 1;
    for (int i = 0; i < 200; i++) {
        uint64_t off = fx_random(&seed) % m.layout.file_size;
        size_t size = fx_random(&seed) % 70000;
        long n = fx_read(m.file, off, size, all);
        assert_true(n >= 0 && (uint64_t)n <= m.layout.file_size - off);
        assert_memory_equal(all, m.want + off, (size_t)n);
    }
    free(all);
    merged_end(&m, 1);
}

/* A record is its tensor's, whichever file shows it. */
static void test_records_are_shared(void **state)
{
    (void)state;
    struct merged m;
    struct qf_engine_stats stats;
    merged_begin(&m);
    free(read_file(&m, m.file, &m.layout));
    qf_engine_stats(m.engine, &stats);
    uint64_t encoded = stats.chunks_encoded;
    assert_int_equal(encoded, fx_chunks(&m.fx[0]) + fx_chunks(&m.fx[1]));
    for (size_t i = 0; i < SOURCES; i++) {
        qf_shard_file *file = open_one(&m, i);
        free(read_file(&m, file, m.fx[i].layout));
        qf_shard_file_close(file);
    }
    qf_engine_stats(m.engine, &stats);
    assert_int_equal(stats.chunks_encoded, encoded);
    merged_end(&m, 1 + SOURCES);
}

/* The second source changes: what comes of the first is good, the header is not. */
static void test_one_changes(void **state)
{
    (void)state;
    struct merged m;
    unsigned char got[64];
    merged_begin(&m);
    const struct qf_layout *first = m.fx[0].layout;
    tmpdir_write(m.fx[1].dir, SOURCE_NAME, m.fx[1].source, m.fx[1].source_size - 1);
    assert_int_equal(fx_read(m.file, 0, 64, got), -ESTALE);
    assert_int_equal(fx_read(m.file, first->header_size, 64, got), 64);
    assert_memory_equal(got, m.want + first->header_size, 64);
    assert_int_equal(fx_read(m.file, first->file_size - 32, 32, got), 32);
    assert_int_equal(fx_read(m.file, first->file_size - 32, 33, got), -ESTALE);
    for (size_t i = first->span_count; i < m.layout.span_count; i++)
        assert_int_equal(fx_read(m.file, m.layout.spans[i].off, 8, got), -ESTALE);
    assert_int_equal(qf_shard_file_check(m.file), -ESTALE);
    merged_end(&m, 1);
}

/* A sealed file has a name that all sources decide, and is not read past a change. */
static void test_sealed(void **state)
{
    (void)state;
    struct merged m;
    unsigned char got[64];
    merged_begin(&m);
    free(read_file(&m, m.file, &m.layout));
    struct qf_hash128 key = m.file->sealed.key;
    m.sources[1].id.low++;
    qf_shard_file *other = open_merged(&m);
    assert_false(qf_hash128_eq(key, other->sealed.key));
    qf_shard_file_close(other);
    m.sources[1].id.low--;

    qf_engine_set_sealing(m.engine, true);
    qf_shard_file_close(m.file);
    while (atomic_load(&m.released) != 2)
        usleep(1000);
    m.file = open_merged(&m);
    assert_true(qf_shard_file_sealed_fd(m.file) >= 0);
    unsigned char *all = read_file(&m, m.file, &m.layout);
    assert_memory_equal(all, m.want, (size_t)m.layout.file_size);
    free(all);
    tmpdir_write(m.fx[0].dir, SOURCE_NAME, m.fx[0].source, m.fx[0].source_size - 1);
    assert_int_equal(fx_read(m.file, m.fx[0].layout->header_size, 64, got), -ESTALE);
    assert_int_equal(fx_read(m.file, m.layout.file_size - 64, 64, got), 64);
    assert_memory_equal(got, m.want + m.layout.file_size - 64, 64);
    merged_end(&m, 3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_records_are_shared),
        cmocka_unit_test(test_one_changes),
        cmocka_unit_test(test_sealed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
