/* SPDX-License-Identifier: Apache-2.0 */
/* What is kept, where, for how long, and how much work is done ahead. */
#include "test_engine_faults.h"

#include <fcntl.h>

/* A source of one tensor without its bytes on disk, and many small ones before it. */
static void sparse_begin(struct fx *fx, const char *view, size_t small_count,
                         uint64_t rows, uint64_t cols)
{
    struct qf_buf text = {0};
    struct qf_err err = {""};
    size_t count = small_count + 1, header_size;
    struct qf_decision *decisions = calloc(count, sizeof *decisions);
    assert_non_null(decisions);
    uint64_t off = 0, header;
    *fx = (struct fx){.dir = tmpdir_make(), .dtype = QF_BF16};
    qf_buf_append_str(&text, "{");
    for (size_t i = 0; i < count; i++) {
        uint64_t size = i < small_count ? 128 : rows * cols * 2;
        qf_buf_appendf(&text,
                       "%s\"t%zu.weight\":{\"dtype\":\"BF16\",\"shape\":[%llu,%llu],"
                       "\"data_offsets\":[%llu,%llu]}",
                       i != 0 ? "," : "", i,
                       (unsigned long long)(i < small_count ? 1 : rows),
                       (unsigned long long)(i < small_count ? 64 : cols),
                       (unsigned long long)off, (unsigned long long)(off + size));
        off += size;
        decisions[i] = (struct qf_decision)FX_QUANT(false);
    }
    qf_buf_append_str(&text, "}");
    char *json = qf_buf_take(&text, NULL);
    assert_non_null(json);
    fx->source = stfile_raw(json, 0, &header_size);
    free(json);
    snprintf(fx->source_path, sizeof fx->source_path, "%s/%s", fx->dir, SOURCE_NAME);
    tmpdir_write(fx->dir, SOURCE_NAME, fx->source, header_size);
    fx->source_size = header_size + off;
    assert_int_equal(truncate(fx->source_path, (off_t)fx->source_size), 0);
    int fd = open(fx->source_path, O_WRONLY);
    assert_true(fd >= 0);
    for (uint64_t at = header_size; at + 8 < fx->source_size; at += 5003 * 2)
        assert_int_equal(pwrite(fd, "\x12\x3f\x77\xbe", 4, (off_t)at), 4);
    close(fd);
    assert_int_equal(qf_shard_header_size(fx->source, fx->source_size, &header, &err),
                     0);
    assert_int_equal(qf_shard_parse(fx->source, header_size, fx->source_size,
                                    &fx->shard, &err),
                     0);
    assert_int_equal(qf_view_parse(view, strlen(view), &fx->view, NULL), 0);
    assert_int_equal(qf_layout_build(fx->shard, decisions, &fx->view, fx->dtype,
                                     &fx->layout, &err),
                     0);
    assert_int_equal(qf_root_open(fx->dir, &fx->root, &err), 0);
    free(decisions);
}

/* Reads all of it; returns a hash. */
static uint64_t hash_all(struct fx *fx)
{
    unsigned char *all = fx_read_all(fx, 1u << 20);
    uint64_t hash = qf_hash64(all, fx->layout->file_size);
    free(all);
    return hash;
}

/* Small records first, then large ones: what is idle makes room by size, not one for
 * one. */
static void test_memory_is_bounded(void **state)
{
    (void)state;
    struct fx fx;
    sparse_begin(&fx, "int8", 2000, 24 * 1024, 1024);
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, QF_ENGINE_MEMORY_MIN);
    uint64_t hash = hash_all(&fx);
    assert_int_equal(hash_all(&fx), hash);
    struct qf_engine_stats stats = fx_stats(&fx);
    assert_in_range(stats.memory_peak, QF_ENGINE_MEMORY_MIN / 2,
                    QF_ENGINE_MEMORY_MIN + (2u << 20));
    assert_true(stats.chunks_encoded > fx_chunks(&fx));
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* What the store has is not kept in memory for long; what it has not is. */
static void test_stored_records_go_first(void **state)
{
    (void)state;
    for (int keeps = 0; keeps < 2; keeps++) {
        struct fx fx;
        sparse_begin(&fx, "int8", 0, 24 * 1024, 1024);
        qf_backend *backend = fx_backend(NULL);
        qf_store *store = fx_store_mem(keeps ? 1u << 30 : 0);
        fx_open(&fx, backend, store, QF_ENGINE_MEMORY_MIN);
        uint64_t hash = hash_all(&fx);
        struct qf_engine_stats stats = fx_stats(&fx);
        if (keeps)
            assert_in_range(stats.memory_used, 1,
                            QF_ENGINE_MEMORY_MIN / 8 + (2u << 20));
        else
            assert_in_range(stats.memory_used, QF_ENGINE_MEMORY_MIN / 4,
                            QF_ENGINE_MEMORY_MIN);
        assert_int_equal(hash_all(&fx), hash);
        if (keeps)
            assert_int_equal(fx_stats(&fx).chunks_encoded, fx_chunks(&fx));
        fx_close(&fx);
        qf_store_close(store);
        qf_backend_close(backend);
        fx_end(&fx);
    }
}

/* Values of a wrong size are as good as none. */
static void test_wrong_sizes(void **state)
{
    (void)state;
    const int wrong[] = {-1, 1, -64};
    static const char *const views[] = {"nf4", "dq"};
    for (size_t v = 0; v < 2; v++) {
        struct fx fx;
        struct fault_store store;
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[v]);
        qf_backend *backend = fx_backend(NULL);
        fault_store_init(&store, fx_store_mem(1u << 30));
        for (size_t i = 0; i < 3; i++) {
            store.resize = wrong[i];
            fx_open(&fx, backend, &store.base, 0);
            unsigned char *all = fx_read_all(&fx, 1u << 20);
            fx_expect(&fx, all);
            free(all);
            assert_int_equal(fx_stats(&fx).chunks_encoded, fx_chunks(&fx));
            assert_int_equal(fx_stats(&fx).cache_hits, 0);
            fx_close(&fx);
        }
        fault_store_fini(&store);
        qf_backend_close(backend);
        fx_end(&fx);
    }
}

/* A chunk that is stored just after somebody did not find it, and before he owns its
 * entry, is not encoded again. */
static void test_stored_meanwhile(void **state)
{
    (void)state;
    struct fx fx;
    struct fault_store store;
    struct fault_backend backend;
    fx_begin(&fx, fx_four, 1, "nf4");
    fault_store_init(&store, fx_store_mem(1u << 30));
    fault_backend_init(&backend);
    fx_open(&fx, &backend.base, &store.base, 0);
    unsigned char *want = fx_read_all(&fx, 1u << 20);
    fx_close(&fx);
    assert_int_equal(backend.calls, FX_FOUR_CHUNKS);
    atomic_store(&store.misses, 1);
    fx_open(&fx, &backend.base, &store.base, 0);
    unsigned char *got = fx_read_all(&fx, 1u << 20);
    fx_close(&fx);
    assert_memory_equal(got, want, fx.layout->file_size);
    assert_int_equal(backend.calls, FX_FOUR_CHUNKS);
    free(got);
    free(want);
    fault_store_fini(&store);
    fault_backend_fini(&backend);
    fx_end(&fx);
}

static qf_store *open_lmdb(const char *dir)
{
    struct qf_store_lmdb_options options = {.dir = dir, .bytes_limit = 64u << 20};
    struct qf_err err = {""};
    qf_store *store;
    if (qf_store_lmdb_open(&options, &store, &err) != 0)
        fail_msg("%s", err.text);
    return store;
}

static void test_lmdb(void **state)
{
    (void)state;
    static const char *const views[] = {"nf4", "dq", "int8", "fp4"};
    for (size_t v = 0; v < 4; v++) {
        struct fx fx;
        char cache[4200];
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[v]);
        snprintf(cache, sizeof cache, "%s/cache", fx.dir);
        qf_backend *backend = fx_backend(NULL);
        qf_store *store = open_lmdb(cache);
        fx_open(&fx, backend, store, 0);
        unsigned char *all = fx_read_all(&fx, 1u << 20);
        fx_expect(&fx, all);
        uint64_t seals = fx_stats(&fx).seals;
        assert_int_equal(fx_stats(&fx).chunks_encoded, fx_chunks(&fx));
        fx_close(&fx);
        qf_store_close(store);
        store = open_lmdb(cache);
        fx_open(&fx, backend, store, 0);
        unsigned char *again = fx_read_all(&fx, 131072);
        assert_memory_equal(all, again, fx.layout->file_size);
        struct qf_engine_stats stats = fx_stats(&fx);
        assert_int_equal(stats.chunks_encoded, 0);
        assert_int_equal(stats.seals, 0);
        assert_true(stats.cache_hits >= fx_chunks(&fx) + seals);
        assert_true(seals > 0 || fx.view.codec != QF_CODEC_DQ);
        /* what is kept plain still comes from the source: 7 + 400012 + 66 + 10 + 24 */
        assert_in_range(stats.source_bytes_read, 400000, 500000);
        free(all);
        free(again);
        fx_close(&fx);
        qf_store_close(store);
        qf_backend_close(backend);
        fx_end(&fx);
    }
}

/* A seal record larger than a stored value lies there in pieces; without one of them it
 * is made again. */
static void test_seal_in_pieces(void **state)
{
    (void)state;
    struct fx fx;
    struct fault_store store;
    sparse_begin(&fx, "dq", 0, 61440, 1024);
    size_t seal_size = qf_plan_seal_size(fx.layout->tensors[0].plan);
    assert_true(seal_size > 960000 && seal_size < 2 * 960000);
    qf_backend *backend = fx_backend(NULL);
    fault_store_init(&store, fx_store_mem(1u << 30));
    fx_open(&fx, backend, &store.base, 0);
    uint64_t hash = hash_all(&fx);
    assert_int_equal(fx_stats(&fx).seals, 1);
    fx_close(&fx);
    fx_open(&fx, backend, &store.base, 0);
    assert_int_equal(hash_all(&fx), hash);
    assert_int_equal(fx_stats(&fx).seals, 0);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 0);
    fx_close(&fx);
    store.loses = seal_size - 960000;
    fx_open(&fx, backend, &store.base, 0);
    assert_int_equal(hash_all(&fx), hash);
    assert_int_equal(fx_stats(&fx).seals, 1);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 0);
    fx_close(&fx);
    fault_store_fini(&store);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* ---- how much is done ---- */

/* Where the last part, the codes, begins: they are the narrowest. */
static uint64_t codes_off(const struct fx *fx)
{
    const struct qf_span *span = &fx->layout->spans[fx->layout->span_count - 1];
    while (span->part != 0)
        span--;
    return span->off;
}

static void test_no_more_than_asked(void **state)
{
    (void)state;
    struct fx fx;
    unsigned char got[8192];
    fx_begin(&fx, fx_four, 1, "nf4");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    assert_int_equal(fx_read(fx.file, 0, fx.layout->header_size, got),
                     fx.layout->header_size);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 0);
    assert_int_equal(fx_stats(&fx).source_bytes_read, 0);
    fx_close(&fx);
    const uint64_t stride = 1u << 19;
    fx_open(&fx, backend, store, 0);
    assert_int_equal(fx_read(fx.file, codes_off(&fx) + 2 * stride + 70000, 4096, got),
                     4096);
    fx_close(&fx); /* waits for what was queued */
    fx_open(&fx, backend, store, 0);
    assert_int_equal(fx_read(fx.file, codes_off(&fx) + 3 * stride - 100, 4096, got),
                     4096);
    while (fx_stats(&fx).chunks_encoded < 2)
        usleep(1000);
    usleep(50000);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 2);
    /* 1 Mi elements of two bytes each */
    assert_int_equal(fx_stats(&fx).source_bytes_read, 2 * 2u << 20);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

static void test_one_chunk(void **state)
{
    (void)state;
    struct fx fx;
    unsigned char got[4096];
    fx_begin(&fx, fx_four, 1, "nf4");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    for (int i = 0; i < 5; i++) {
        assert_int_equal(fx_read(fx.file, codes_off(&fx) + 700000, 4096, got), 4096);
        usleep(20000);
        assert_int_equal(fx_stats(&fx).chunks_encoded, 1);
    }
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* The second read of a stream has the rest made before anybody asks. */
static void test_prefetch(void **state)
{
    (void)state;
    struct fx fx;
    unsigned char *got = malloc(65536);
    assert_non_null(got);
    fx_begin(&fx, fx_four, 1, "nf4");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    uint64_t off = codes_off(&fx);
    assert_int_equal(fx_read(fx.file, off, 65536, got), 65536);
    assert_int_equal(fx_read(fx.file, off + 65536, 65536, got), 65536);
    /* one megabyte ahead: two chunks more, and part of a third */
    for (int i = 0; i < 10000 && fx_stats(&fx).chunks_encoded < 3; i++)
        usleep(1000);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 3);
    assert_true(fx_stats(&fx).chunks_prefetched >= 2);
    unsigned char *all = fx_read_all(&fx, 65536);
    fx_expect(&fx, all);
    assert_int_equal(fx_stats(&fx).chunks_encoded, FX_FOUR_CHUNKS);
    free(all);
    free(got);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* Two files with the same contents of the same version share what is encoded. */
static void test_shared_between_opens(void **state)
{
    (void)state;
    struct fx fx;
    unsigned char got[4096];
    fx_begin(&fx, fx_four, 1, "int8");
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(0);
    fx_open(&fx, backend, store, 0);
    struct fx other = fx;
    qf_shard_file *second;
    struct qf_hash128 id =
        qf_source_id(qf_srcfile_ident(fx.src), fx.shard->header_hash);
    other.released = 0;
    assert_int_equal(qf_shard_file_open(fx.engine, fx.layout,
                                        &(struct qf_shard_source){fx.src, id}, 1, 0,
                                        fx_released, &other, &second),
                     0);
    assert_int_equal(fx_read(fx.file, codes_off(&fx), 4096, got), 4096);
    assert_int_equal(fx_read(second, codes_off(&fx), 4096, got), 4096);
    assert_int_equal(fx_stats(&fx).chunks_encoded, 1);
    qf_shard_file_close(second);
    fx_close(&fx);
    assert_int_equal(other.released, 1);
    /* the same place in another version is another chunk */
    struct qf_ident ident = {1, 2, 3, 4, 5}, changed = ident;
    changed.ctime_ns++;
    assert_false(qf_hash128_eq(qf_source_id(&ident, fx.shard->header_hash),
                               qf_source_id(&changed, fx.shard->header_hash)));
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* A blob is what its name says, wherever it lies. */
static void test_blob_ids(void **state)
{
    (void)state;
#define SHA "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
    static const char *const no_blobs[] = {
        "",
        "blobs/",
        SHA,
        "snapshots/" SHA,
        "xblobs/" SHA,
        "models/xblobs/" SHA,
        "blobs/" SHA "0",
        "blobs/x" SHA,
        "blobs/0123456789abcdef0123456789abcdef01234567",
        "blobs/0123456789ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef",
        "blobs/" SHA "/x",
    };
    struct qf_hash128 header = {1, 2}, other_header = {1, 3}, id, again;
    for (size_t i = 0; i < sizeof no_blobs / sizeof *no_blobs; i++)
        assert_false(qf_source_id_of_blob(no_blobs[i], 5, header, &id));
    assert_true(qf_source_id_of_blob("blobs/" SHA, 5, header, &id));
    assert_true(qf_source_id_of_blob("hub/models--a--b/blobs/" SHA, 5, header, &again));
    assert_true(qf_hash128_eq(id, again));
    assert_true(qf_source_id_of_blob("blobs/" SHA, 6, header, &again));
    assert_false(qf_hash128_eq(id, again));
    assert_true(qf_source_id_of_blob("blobs/" SHA, 5, other_header, &again));
    assert_false(qf_hash128_eq(id, again));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_memory_is_bounded),
        cmocka_unit_test(test_stored_records_go_first),
        cmocka_unit_test(test_wrong_sizes),
        cmocka_unit_test(test_blob_ids),
        cmocka_unit_test(test_stored_meanwhile),
        cmocka_unit_test(test_lmdb),
        cmocka_unit_test(test_seal_in_pieces),
        cmocka_unit_test(test_no_more_than_asked),
        cmocka_unit_test(test_one_chunk),
        cmocka_unit_test(test_prefetch),
        cmocka_unit_test(test_shared_between_opens),
    };
    return cmocka_run_group_tests_name("engine_store", tests, NULL, NULL);
}
