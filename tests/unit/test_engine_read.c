/* SPDX-License-Identifier: Apache-2.0 */
/* Bytes: every codec, every way to read, every way to keep. */
#include "test_engine_fixture.h"

#include "base/limits.h"

static const char *const views[] = {"nf4", "fp4", "dq", "int8"};
static const char *const isas[] = {"scalar", NULL};

/* From front to back in steps of many sizes, each time with nothing kept. */
static void test_whole(void **state)
{
    (void)state;
    const size_t steps[] = {1u << 20, 99991};
    for (size_t v = 0; v < 4; v++) {
        struct fx fx;
        unsigned char *first = NULL;
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[v]);
        for (size_t i = 0; i < 2; i++) {
            for (size_t s = 0; s < (i == 0 ? 1 : 2); s++) {
                qf_backend *backend = fx_backend(isas[i]);
                qf_store *store = fx_store_mem(0);
                fx_open(&fx, backend, store, 0);
                unsigned char *all = fx_read_all(&fx, steps[s]);
                if (first == NULL)
                    fx_expect(&fx, all);
                else
                    assert_memory_equal(all, first, fx.layout->file_size);
                assert_int_equal(fx_stats(&fx).chunks_encoded, fx_chunks(&fx));
                assert_int_equal(fx_stats(&fx).bytes_served, fx.layout->file_size);
                free(first);
                first = all;
                fx_close(&fx);
                qf_store_close(store);
                qf_backend_close(backend);
            }
        }
        free(first);
        fx_end(&fx);
    }
}

/* Ranges of all sizes anywhere, at the ends of spans and one beside them. */
static void check_ranges(struct fx *fx, const unsigned char *all, unsigned count)
{
    uint64_t seed = fx->view.codec + 1u, size_of = fx->layout->file_size;
    unsigned char *got = malloc(QF_FUSE_READ_SIZE_MAX);
    assert_non_null(got);
    for (unsigned i = 0; i < count; i++) {
        uint64_t off = fx_random(&seed) % (size_of + 5);
        if (i % 2 == 0) {
            size_t span = fx_random(&seed) % fx->layout->span_count;
            off = fx->layout->spans[span].off + fx_random(&seed) % 5;
            off = off >= 2 ? off - 2 : 0;
        }
        size_t size = fx_random(&seed) % (i % 8 == 0 ? QF_FUSE_READ_SIZE_MAX : 5000u);
        uint64_t left = off < size_of ? size_of - off : 0;
        long n = fx_read(fx->file, off, size, got);
        assert_int_equal(n, size < left ? size : left);
        if (n > 0)
            assert_memory_equal(got, all + off, (size_t)n);
    }
    free(got);
}

/* store_limit 0 keeps nothing; a megabyte keeps some; plenty keeps all. */
static void test_ranges(void **state)
{
    (void)state;
    const uint64_t limits[] = {0, 3u << 20, 1u << 30};
    for (size_t v = 0; v < 4; v++) {
        struct fx fx;
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[v]);
        for (size_t l = 0; l < 3; l++) {
            qf_backend *backend = fx_backend(NULL);
            qf_store *store = fx_store_mem(limits[l]);
            fx_open(&fx, backend, store, QF_ENGINE_MEMORY_MIN);
            unsigned char *all = fx_read_all(&fx, 1u << 20);
            if (l == 0)
                fx_expect(&fx, all);
            check_ranges(&fx, all, 120);
            free(all);
            fx_close(&fx);
            qf_store_close(store);
            qf_backend_close(backend);
        }
        fx_end(&fx);
    }
}

/* At the end, past it, and more than one reply holds. */
static void test_ends(void **state)
{
    (void)state;
    struct fx fx;
    unsigned char *got = malloc(4u << 20);
    assert_non_null(got);
    fx_begin(&fx, fx_all, FX_ALL_COUNT, "nf4");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    uint64_t size = fx.layout->file_size;
    assert_int_equal(fx_read(fx.file, size - 1, 100, got), 1);
    assert_int_equal(fx_read(fx.file, size, 100, got), 0);
    assert_int_equal(fx_read(fx.file, size + 1, 100, got), 0);
    assert_int_equal(fx_read(fx.file, UINT64_MAX, SIZE_MAX, got), 0);
    assert_int_equal(fx_read(fx.file, 0, 0, got), 0);
    assert_int_equal(fx_read(fx.file, 0, 4u << 20, got), QF_FUSE_READ_SIZE_MAX);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
    free(got);
}

/* A megabyte that covers thousands of tensors is still one reply of few pieces. */
static void test_tiny_tensors(void **state)
{
    (void)state;
    enum { COUNT = 6000 };
    struct stfile_tensor *st = calloc(COUNT, sizeof *st);
    struct qf_decision *decisions = calloc(COUNT, sizeof *decisions);
    char(*names)[24] = calloc(COUNT, sizeof *names);
    struct fx fx = {.dir = tmpdir_make(), .dtype = QF_BF16};
    struct qf_err err;
    uint64_t header_size;
    assert_true(st && decisions && names);
    for (size_t i = 0; i < COUNT; i++) {
        snprintf(names[i], sizeof names[i], "t%05zu.weight", i);
        st[i] = (struct stfile_tensor){
            names[i], QF_BF16, 2, {1 + i % 3, i % 70, 0, 0}, NULL};
        decisions[i] = (struct qf_decision)FX_KEEP(QF_BF16);
        if (i % 2 == 0)
            decisions[i] = (struct qf_decision)FX_QUANT(i % 4 == 0);
    }
    fx.source = stfile_make(st, COUNT, &fx.source_size);
    tmpdir_write(fx.dir, SOURCE_NAME, fx.source, fx.source_size);
    assert_int_equal(qf_shard_header_size(fx.source, fx.source_size, &header_size,
                                          &err),
                     0);
    assert_int_equal(qf_shard_parse(fx.source, (size_t)header_size + 8, fx.source_size,
                                    &fx.shard, &err),
                     0);
    assert_int_equal(qf_view_parse("dq", 2, &fx.view, NULL), 0);
    assert_int_equal(qf_layout_build(fx.shard, decisions, &fx.view, fx.dtype,
                                     &fx.layout, &err),
                     0);
    assert_int_equal(qf_root_open(fx.dir, &fx.root, &err), 0);
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(1u << 30);
    fx_open(&fx, backend, store, 0);
    unsigned char *all = fx_read_all(&fx, 1000);
    for (uint64_t off = 0; off < fx.layout->file_size; off += 1u << 19) {
        struct qf_read *read;
        assert_int_equal(qf_engine_read(fx.file, off, 1u << 20, &read), 0);
        size_t count, at = 0;
        const struct iovec *pieces = qf_read_pieces(read, &count);
        assert_true(count <= 9);
        for (size_t i = 0; i < count; i++) {
            assert_memory_equal(pieces[i].iov_base, all + off + at, pieces[i].iov_len);
            at += pieces[i].iov_len;
        }
        assert_int_equal(at, qf_read_size(read));
        qf_read_release(read);
    }
    fx.tensor_count = COUNT;
    free(all);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
    free(st);
    free(decisions);
    free(names);
}

/* A read outlives the file it came from. */
static void test_release_after_close(void **state)
{
    (void)state;
    struct fx fx;
    struct qf_read *read;
    size_t count;
    fx_begin(&fx, fx_four, 1, "nf4");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    unsigned char *all = fx_read_all(&fx, 1u << 20);
    assert_int_equal(qf_engine_read(fx.file, 4096, 1u << 20, &read), 0);
    qf_shard_file_close(fx.file);
    const struct iovec *pieces = qf_read_pieces(read, &count);
    assert_true(count > 0);
    assert_memory_equal(pieces[0].iov_base, all + 4096, pieces[0].iov_len);
    qf_read_release(read);
    qf_engine_free(fx.engine);
    assert_int_equal(fx.released, 1);
    qf_srcfile_close(fx.src);
    free(all);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* The SCB of rows without elements may be any size and costs no memory. */
static void test_no_columns(void **state)
{
    (void)state;
    static const struct fx_tensor tensors[] = {
        {{"w.weight", QF_BF16, 2, {UINT64_C(1) << 40, 0, 0, 0}, NULL}, FX_QUANT(false)},
    };
    struct fx fx;
    unsigned char *got = malloc(1u << 20);
    assert_non_null(got);
    fx_begin(&fx, tensors, 1, "int8");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    assert_true(fx.layout->file_size > UINT64_C(1) << 42);
    memset(got, 1, 1u << 20);
    assert_int_equal(fx_read(fx.file, UINT64_C(1) << 41, 1u << 20, got), 1u << 20);
    assert_true(got[0] == 0 && memcmp(got, got + 1, (1u << 20) - 1) == 0);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
    free(got);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_whole),      cmocka_unit_test(test_ranges),
        cmocka_unit_test(test_ends),       cmocka_unit_test(test_tiny_tensors),
        cmocka_unit_test(test_no_columns), cmocka_unit_test(test_release_after_close),
    };
    return cmocka_run_group_tests_name("engine_read", tests, NULL, NULL);
}
