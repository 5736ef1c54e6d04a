/* SPDX-License-Identifier: Apache-2.0 */
/* One encoding for all who want a chunk; what happens to them when it fails. */
#include "test_engine_faults.h"

#define THREADS 8

struct reader {
    struct fx *fx;
    const unsigned char *all; /* NULL: results only */
    unsigned count;
    uint64_t seed;
    uint64_t off; /* of the reads, when all is NULL */
    long result;
};

static void *read_at_random(void *arg)
{
    struct reader *r = arg;
    unsigned char *got = malloc(1u << 20);
    for (unsigned i = 0; i < r->count && r->result == 0; i++) {
        uint64_t off = fx_random(&r->seed) % r->fx->layout->file_size;
        size_t size = fx_random(&r->seed) % (1u << (1 + i % 20)) + 1;
        uint64_t left = r->fx->layout->file_size - off;
        size_t want = size < left ? size : (size_t)left;
        long n = fx_read(r->fx->file, off, size, got);
        if (n < 0)
            r->result = n;
        else if ((size_t)n != want || memcmp(got, r->all + off, want) != 0)
            r->result = -9999;
    }
    free(got);
    return NULL;
}

static void *read_once(void *arg)
{
    struct reader *r = arg;
    unsigned char got[4096];
    r->result = fx_read(r->fx->file, r->off, sizeof got, got);
    return NULL;
}

static void run(struct reader readers[THREADS], void *(*main)(void *))
{
    pthread_t threads[THREADS];
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, main, &readers[i]), 0);
    for (size_t i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
}

/* A place in the codes of the first chunk (parts stand widest first). */
static uint64_t codes_off(const struct fx *fx)
{
    const struct qf_layout *layout = fx->layout;
    for (size_t i = 0; i < layout->span_count; i++) {
        const struct qf_span *span = &layout->spans[i];
        if (span->kind == QF_SPAN_PART &&
            layout->tensors[span->tensor].plan->parts[span->part].role == QF_PART_CODES)
            return span->off;
    }
    fail();
    return 0;
}

static void test_once_each(void **state)
{
    (void)state;
    static const char *const views[] = {"nf4", "dq", "int8"};
    for (size_t v = 0; v < 3; v++) {
        struct fx fx;
        struct fault_store store;
        struct reader readers[THREADS];
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[v]);
        qf_backend *backend = fx_backend(NULL);
        qf_store *plain = fx_store_mem(0);
        fx_open(&fx, backend, plain, 0);
        unsigned char *all = fx_read_all(&fx, 1u << 20);
        fx_expect(&fx, all);
        fx_close(&fx);
        fault_store_init(&store, fx_store_mem(1u << 30));
        store.late = true;
        fx_open(&fx, backend, &store.base, 0);
        for (size_t i = 0; i < THREADS; i++)
            readers[i] = (struct reader){.fx = &fx,
                                         .all = all,
                                         .count = 60,
                                         .seed = i * 1000 + v};
        run(readers, read_at_random);
        for (size_t i = 0; i < THREADS; i++)
            assert_int_equal(readers[i].result, 0);
        free(fx_read_all(&fx, 1u << 20));
        assert_int_equal(fx_stats(&fx).chunks_encoded, fx_chunks(&fx));
        assert_int_equal(fx_stats(&fx).read_errors, 0);
        fx_close(&fx);
        fault_store_fini(&store);
        qf_store_close(plain);
        qf_backend_close(backend);
        free(all);
        fx_end(&fx);
    }
}

/* A backend that likes batches gets them, and every chunk is still encoded once. */
static void test_batches(void **state)
{
    (void)state;
    static const char *const views[] = {"nf4", "dq"};
    for (size_t v = 0; v < 2; v++) {
        struct fx fx;
        struct fault_backend backend;
        struct reader readers[THREADS];
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[v]);
        fault_backend_init(&backend);
        qf_store *plain = fx_store_mem(0);
        fx_open(&fx, &backend.base, plain, 0);
        unsigned char *all = fx_read_all(&fx, 1u << 20);
        fx_expect(&fx, all);
        fx_close(&fx);
        backend.ops.batch = 8;
        backend.calls = 0;
        qf_store *store = fx_store_mem(1u << 30);
        fx_open(&fx, &backend.base, store, 0);
        free(fx_read_all(&fx, 1u << 20));
        for (size_t i = 0; i < THREADS; i++)
            readers[i] =
                (struct reader){.fx = &fx, .all = all, .count = 20, .seed = i * 7 + v};
        run(readers, read_at_random);
        for (size_t i = 0; i < THREADS; i++)
            assert_int_equal(readers[i].result, 0);
        assert_int_equal(fx_stats(&fx).chunks_encoded, fx_chunks(&fx));
        assert_true((uint64_t)backend.calls < fx_chunks(&fx));
        fx_close(&fx);
        qf_store_close(store);
        qf_store_close(plain);
        fault_backend_fini(&backend);
        free(all);
        fx_end(&fx);
    }
}

/* Every waiter is told; the next one who asks gets a new try. */
static void test_failure(void **state)
{
    (void)state;
    struct fx fx;
    struct fault_backend backend;
    struct reader readers[THREADS];
    qf_store *store = fx_store_mem(1u << 30);
    fx_begin(&fx, fx_four, 1, "nf4");
    fault_backend_init(&backend);
    backend.rc = -EREMOTEIO;
    backend.delay_us = 20000;
    backend.fail_from = 1;
    backend.fail_count = 1000000;
    fx_open(&fx, &backend.base, store, 0);
    for (size_t i = 0; i < THREADS; i++)
        readers[i] = (struct reader){.fx = &fx, .off = codes_off(&fx)};
    run(readers, read_once);
    for (size_t i = 0; i < THREADS; i++)
        assert_int_equal(readers[i].result, -EREMOTEIO);
    assert_int_equal(fx_stats(&fx).read_errors, THREADS);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 0);
    struct qf_store_stats stats;
    qf_store_stats(store, &stats);
    assert_int_equal(stats.puts + stats.puts_dropped, 0);
    backend.fail_from = 0;
    unsigned char *all = fx_read_all(&fx, 1u << 20);
    fx_expect(&fx, all);
    free(all);
    fx_close(&fx);
    fault_backend_fini(&backend);
    qf_store_close(store);
    fx_end(&fx);
}

/* A device that fails one job of many: the seal that needed it fails, its next one
 * does not encode again what was good. */
static void test_seal_failure(void **state)
{
    (void)state;
    struct fx fx;
    struct fault_backend backend;
    unsigned char got[64];
    qf_store *store = fx_store_mem(1u << 30);
    fx_begin(&fx, fx_four, 1, "dq");
    fault_backend_init(&backend);
    backend.rc = -EIO;
    backend.fail_from = 3;
    backend.fail_count = 1;
    fx_open(&fx, &backend.base, store, 0);
    /* the first part behind the header is nested_absmax */
    uint64_t off = fx.layout->header_size;
    long n = fx_read(fx.file, off, sizeof got, got);
    /* A worker may have met the failure before the seal asked; then it was tried again.
     */
    if (n < 0) {
        assert_int_equal(n, -EIO);
        assert_int_equal(fx_stats(&fx).seals, 0);
        n = fx_read(fx.file, off, sizeof got, got);
    }
    assert_int_equal(n, sizeof got);
    assert_int_equal(fx_stats(&fx).seals, 1);
    assert_int_equal(fx_stats(&fx).chunks_encoded, FX_FOUR_CHUNKS);
    assert_int_equal(backend.calls, FX_FOUR_CHUNKS + 1);
    unsigned char *all = fx_read_all(&fx, 1u << 20);
    fx_expect(&fx, all);
    free(all);
    fx_close(&fx);
    fault_backend_fini(&backend);
    qf_store_close(store);
    fx_end(&fx);
}

/* ---- a source that changes ---- */

static void truncate_source(void *arg)
{
    struct fx *fx = arg;
    assert_int_equal(truncate(fx->source_path, (off_t)fx->shard->data_off + 100), 0);
}

static void touch_source(void *arg)
{
    struct fx *fx = arg;
    const struct timespec times[2] = {{1000, 5}, {1000, 5}};
    assert_int_equal(utimensat(AT_FDCWD, fx->source_path, times, 0), 0);
}

/* Other bytes of the same size, and the time set back to what it was. */
static void rewrite_source(void *arg)
{
    struct fx *fx = arg;
    struct stat st;
    usleep(30000); /* another tick of the clock that ctime is taken from */
    assert_int_equal(stat(fx->source_path, &st), 0);
    fx->source[fx->source_size - 1] ^= 1;
    FILE *file = fopen(fx->source_path, "r+");
    assert_non_null(file);
    assert_int_equal(fwrite(fx->source, 1, fx->source_size, file), fx->source_size);
    assert_int_equal(fclose(file), 0);
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, fx->source_path, times, 0), 0);
}

static void replace_source(void *arg)
{
    struct fx *fx = arg;
    char other[4200];
    usleep(30000);
    snprintf(other, sizeof other, "%s.new", fx->source_path);
    tmpdir_write(fx->dir, SOURCE_NAME ".new", fx->source, fx->source_size);
    assert_int_equal(rename(other, fx->source_path), 0);
}

static void check_change(void (*change)(void *arg), bool before, const char *view)
{
    struct fx fx;
    struct fault_backend backend;
    struct fault_store store;
    unsigned char got[4096];
    fx_begin(&fx, fx_four, 1, view);
    fault_backend_init(&backend);
    fault_store_init(&store, fx_store_mem(1u << 30));
    *(before ? &backend.before : &backend.after) = change;
    backend.arg = &fx;
    backend.hook_call = 1;
    fx_open(&fx, &backend.base, &store.base, 0);
    /* the first read of a stream: nothing is done ahead of it */
    assert_int_equal(fx_read(fx.file, codes_off(&fx), sizeof got, got), -ESTALE);
    /* and from now on nothing of it, whether it needs the source or not */
    assert_int_equal(fx_read(fx.file, 0, 64, got), -ESTALE);
    assert_int_equal(fx_read(fx.file, fx.layout->file_size - 64, 64, got), -ESTALE);
    fx_close(&fx);
    assert_int_equal(store.puts, 0);
    fault_store_fini(&store);
    fault_backend_fini(&backend);
    fx_end(&fx);
}

static void test_changes(void **state)
{
    (void)state;
    void (*const changes[])(void *) = {truncate_source, touch_source, rewrite_source,
                                       replace_source};
    for (size_t i = 0; i < 4; i++) {
        check_change(changes[i], true, "nf4");
        check_change(changes[i], false, "nf4");
        check_change(changes[i], false, "int8");
    }
}

/* While a seal is being made: none of it is published. */
static void test_change_in_seal(void **state)
{
    (void)state;
    struct fx fx;
    struct fault_backend backend;
    struct fault_store store;
    unsigned char got[64];
    fx_begin(&fx, fx_four, 1, "dq");
    fault_backend_init(&backend);
    fault_store_init(&store, fx_store_mem(1u << 30));
    backend.after = touch_source;
    backend.arg = &fx;
    backend.hook_call = 1;
    fx_open(&fx, &backend.base, &store.base, 0);
    assert_int_equal(fx_read(fx.file, fx.layout->header_size, 64, got), -ESTALE);
    assert_int_equal(fx_stats(&fx).seals, 0);
    fx_close(&fx);
    /* the other chunks may have been read and stored before the touch: they are good */
    assert_true(store.puts < FX_FOUR_CHUNKS);
    fault_store_fini(&store);
    fault_backend_fini(&backend);
    fx_end(&fx);
}

/* A kept tensor comes straight from the source. */
static void test_change_of_kept(void **state)
{
    (void)state;
    static const struct fx_tensor tensors[] = {
        {{"d.bias", QF_F32, 1, {100000, 0, 0, 0}, NULL}, FX_KEEP(QF_BF16)},
        {{"e.bias", QF_F32, 1, {100000, 0, 0, 0}, NULL}, FX_KEEP(QF_F32)},
    };
    struct fx fx;
    unsigned char got[64];
    fx_begin(&fx, tensors, 2, "nf4");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    unsigned char *all = fx_read_all(&fx, 100000);
    fx_expect(&fx, all);
    free(all);
    truncate_source(&fx);
    assert_int_equal(fx_read(fx.file, fx.layout->header_size + 1001, 64, got), -ESTALE);
    assert_int_equal(fx_read(fx.file, fx.layout->file_size - 64, 64, got), -ESTALE);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_once_each),      cmocka_unit_test(test_batches),
        cmocka_unit_test(test_failure),        cmocka_unit_test(test_seal_failure),
        cmocka_unit_test(test_changes),        cmocka_unit_test(test_change_in_seal),
        cmocka_unit_test(test_change_of_kept),
    };
    return cmocka_run_group_tests_name("engine_flight", tests, NULL, NULL);
}
