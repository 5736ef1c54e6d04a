/* SPDX-License-Identifier: Apache-2.0 */
/* Sealed shards: when a shard is sealed, what is left behind when that fails, and that
 * nobody can tell by the bytes. */
#include "test_engine_sealed_rig.h"

static unsigned record_count(const struct rig *r)
{
    unsigned count = 0;
    for (uint32_t i = 0; i < r->fx.layout->tensor_count; i++) {
        const struct qf_plan *plan = r->fx.layout->tensors[i].plan;
        if (plan == NULL)
            continue;
        size_t seal = qf_plan_seal_size(plan);
        count += (unsigned)plan->chunk_count;
        count += (unsigned)((seal + 959999) / 960000);
    }
    return count;
}

/* ---- names ---- */

static struct qf_hash128 key_of(struct fx *fx, qf_engine *engine,
                                struct qf_hash128 source)
{
    qf_shard_file *file;
    fx->released = 0;
    assert_int_equal(qf_shard_file_open(engine, fx->layout,
                                        &(struct qf_shard_source){fx->src, source}, 1,
                                        0, fx_released, fx, &file),
                     0);
    assert_true(file->sealed.listed);
    struct qf_hash128 key = file->sealed.key;
    qf_shard_file_close(file);
    assert_int_equal(fx->released, 1);
    return key;
}

static void lay_out(struct fx *fx, const char *view, uint32_t blocksize,
                    enum qf_dtype storage, enum qf_dtype dtype)
{
    struct qf_err err;
    qf_layout_free(fx->layout);
    assert_int_equal(qf_view_parse(view, strlen(view), &fx->view, NULL), 0);
    if (blocksize != 0)
        fx->view.blocksize = blocksize;
    fx->view.storage = storage;
    assert_int_equal(qf_layout_build(fx->shard, fx->decisions, &fx->view, dtype,
                                     &fx->layout, &err),
                     0);
}

static void test_key(void **state)
{
    (void)state;
    struct fx fx;
    struct qf_hash128 keys[12];
    size_t n = 0;
    qf_backend *backend = fx_backend(NULL);
    struct file_store store;
    file_store_init(&store, fx_store_mem(0), "");
    fx_begin(&fx, fx_four, 1, "nf4");
    fx_open(&fx, backend, &store.base, 0);
    struct qf_hash128 id = {1, 2}, other = id;
    other.high ^= 1;
    const char *views[] = {"nf4", "fp4", "dq", "int8"};
    for (size_t i = 0; i < 4; i++) {
        lay_out(&fx, views[i], 0, QF_U8, QF_BF16);
        keys[n++] = key_of(&fx, fx.engine, id);
        assert_true(qf_hash128_eq(keys[n - 1], key_of(&fx, fx.engine, id)));
    }
    keys[n++] = key_of(&fx, fx.engine, other);
    lay_out(&fx, "nf4", 128, QF_U8, QF_BF16);
    keys[n++] = key_of(&fx, fx.engine, id);
    lay_out(&fx, "nf4", 0, QF_BF16, QF_BF16); /* the same records, another header */
    keys[n++] = key_of(&fx, fx.engine, id);
    lay_out(&fx, "nf4", 0, QF_U8, QF_F16);
    keys[n++] = key_of(&fx, fx.engine, id);
    fx.decisions[0].reason = QF_REASON_NAME; /* one tensor is kept */
    lay_out(&fx, "nf4", 0, QF_U8, QF_BF16);
    keys[n++] = key_of(&fx, fx.engine, id);
    fx.layout->header[9] ^= 1; /* nothing but a byte of the header */
    keys[n++] = key_of(&fx, fx.engine, id);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < i; k++)
            assert_false(qf_hash128_eq(keys[i], keys[k]));
    fx.released = 0;
    fx_close(&fx);
    qf_store_close(&store.base);
    qf_backend_close(backend);
    fx_end(&fx);
}

/* ---- sealing ---- */

static void test_sealed_after_read(void **state)
{
    (void)state;
    const char *views[] = {"nf4", "fp4", "dq", "int8"};
    for (size_t i = 0; i < 4; i++) {
        struct rig r;
        rig_begin(&r, views[i]);
        visit(&r);
        settle(&r);
        struct qf_engine_stats stats = fx_stats(&r.fx);
        assert_int_equal(stats.shards_sealed, 1);
        assert_int_equal(stats.chunks_encoded, 0);
        assert_int_equal(stats.sealed_reads, 0);
        assert_int_equal(stats.bytes_served, r.fx.layout->file_size);
        assert_int_equal(r.store.commits, 1);
        assert_int_equal(r.store.dropped_last, record_count(&r));
        qf_shard_file *file = rig_open(&r);
        check_file_of(&r, file);
        const size_t steps[] = {1u << 20, 70001, 4096};
        for (size_t k = 0; k < 3; k++)
            check_all(&r, file, steps[k]);
        qf_shard_file_close(file);
        settle(&r);
        struct qf_engine_stats after = fx_stats(&r.fx);
        assert_int_equal(after.chunks_encoded, 0);
        assert_int_equal(after.cache_hits, stats.cache_hits);
        assert_int_equal(after.source_bytes_read, stats.source_bytes_read);
        assert_int_equal(after.sealed_bytes, 3 * r.fx.layout->file_size);
        assert_true(after.sealed_reads > 3);
        assert_int_equal(after.shards_sealed, 1);
        assert_int_equal(r.store.begins, 1);
        /* an engine without sealing, as of a mount without passthrough */
        engine_end(&r);
        engine_begin(&r, false);
        visit(&r);
        settle(&r);
        assert_int_equal(fx_stats(&r.fx).sealed_bytes, r.fx.layout->file_size);
        rig_end(&r);
    }
}

/* The store's writer may still have what the last read made. */
static void test_sealed_after_encoding(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "dq");
    for (uint32_t i = 0; i < r.fx.layout->tensor_count; i++)
        if (r.fx.layout->tensors[i].plan != NULL)
            for (uint64_t n = 0; n < r.fx.layout->tensors[i].plan->chunk_count; n++) {
                qf_shard_file *file = rig_open(&r);
                file_store_drop(&r.store,
                                qf_record_key(file, (struct qf_record_id){i, n}, 0));
                qf_shard_file_close(file);
            }
    visit(&r);
    settle(&r);
    assert_int_equal(fx_stats(&r.fx).chunks_encoded, fx_chunks(&r.fx));
    assert_int_equal(fx_stats(&r.fx).shards_sealed, 1);
    visit(&r);
    assert_int_equal(fx_stats(&r.fx).sealed_bytes, r.fx.layout->file_size);
    rig_end(&r);
}

static void test_not_sealed(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    /* not read */
    qf_shard_file_close(rig_open(&r));
    settle(&r);
    assert_int_equal(r.store.begins, 0);
    /* switched off */
    qf_engine_set_sealing(r.fx.engine, false);
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.begins, 0);
    /* a record is missing: only a part of the shard has been read */
    qf_engine_set_sealing(r.fx.engine, true);
    qf_shard_file *file = rig_open(&r);
    unsigned char byte[16];
    struct qf_hash128 key = qf_record_key(file, (struct qf_record_id){0, 1}, 0);
    file_store_drop(&r.store, key);
    assert_int_equal(fx_read(file, 0, sizeof byte, byte), sizeof byte);
    qf_shard_file_close(file);
    settle(&r);
    assert_int_equal(r.store.begins, 0);
    assert_int_equal(fx_stats(&r.fx).chunks_encoded, 0);
    /* and then all of it */
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    rig_end(&r);
}

static void test_room(void **state)
{
    (void)state;
    struct rig r;
    struct qf_store_stats stats;
    rig_begin(&r, "nf4");
    qf_store_stats(&r.store.base, &stats);
    uint64_t size = r.fx.layout->file_size;
    r.store.bytes_limit = stats.bytes + size - 1;
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.begins, 0);
    r.store.bytes_limit = stats.bytes + size;
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    rig_end(&r);
    /* full, but the shard is a small part of it */
    rig_begin(&r, "nf4");
    r.store.file_bytes = 8 * size;
    r.store.bytes_limit = 8 * size - 1;
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.begins, 0);
    r.store.bytes_limit = 8 * size;
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    rig_end(&r);
}

static void expect_no_file(const struct fx_tensor *tensor, const char *view)
{
    struct fx fx;
    struct file_store store;
    char *files = tmpdir_make();
    qf_backend *backend = fx_backend(NULL);
    fx_begin(&fx, tensor, 1, view);
    file_store_init(&store, fx_store_mem(64u << 20), files);
    fx_open(&fx, backend, &store.base, 0);
    qf_engine_set_sealing(fx.engine, true);
    free(fx_read_all(&fx, 4096));
    qf_shard_file_close(fx.file);
    while (atomic_load(&fx.released) == 0) /* else the engine's end would give it up */
        usleep(1000);
    qf_engine_free(fx.engine);
    qf_srcfile_close(fx.src);
    assert_int_equal(store.begins, 0);
    qf_store_close(&store.base);
    qf_backend_close(backend);
    tmpdir_remove(files);
    fx_end(&fx);
}

static void test_small_shard(void **state)
{
    (void)state;
    static const struct fx_tensor small = {
        {"a.weight", QF_BF16, 2, {64, 1024, 0, 0}, NULL}, FX_QUANT(false)};
    expect_no_file(&small, "nf4");
}

/* A flat file of it would be a copy of the source, or larger. */
static void test_nothing_encoded(void **state)
{
    (void)state;
    static const struct fx_tensor large = {
        {"a.weight", QF_BF16, 2, {1024, 1024, 0, 0}, NULL}, FX_KEEP(QF_F32)};
    expect_no_file(&large, "fp32");
}

/* A store that keeps no files at all: everything as ever. */
static void test_store_without_files(void **state)
{
    (void)state;
    struct fx fx;
    qf_backend *backend = fx_backend(NULL);
    qf_store *store = fx_store_mem(64u << 20);
    fx_begin(&fx, fx_all, FX_ALL_COUNT, "nf4");
    fx_open(&fx, backend, store, 0);
    qf_engine_set_sealing(fx.engine, true);
    unsigned char *all = fx_read_all(&fx, 1u << 20);
    fx_expect(&fx, all);
    free(all);
    assert_int_equal(qf_shard_file_sealed_fd(fx.file), -1);
    fx_close(&fx);
    qf_store_close(store);
    qf_backend_close(backend);
    fx_end(&fx);
}

static void test_last_close(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    qf_shard_file *first = rig_open(&r), *second = rig_open(&r);
    check_all(&r, first, 1u << 20);
    qf_shard_file_close(first);
    while (atomic_load(&r.released) != 1)
        usleep(1000);
    assert_int_equal(r.store.begins, 0);
    qf_shard_file_close(second); /* which nobody has read, but the first was */
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    rig_end(&r);
}

/* ---- trouble ---- */

static void drop_last_record(void *arg)
{
    struct rig *r = arg;
    for (uint32_t i = (uint32_t)r->fx.layout->tensor_count; i-- > 0;) {
        const struct qf_plan *plan = r->fx.layout->tensors[i].plan;
        if (plan == NULL || plan->chunk_count == 0)
            continue;
        struct qf_record_id id = {i, plan->chunk_count - 1};
        if (qf_plan_seal_size(plan) != 0)
            id.number = QF_KEY_SEAL;
        file_store_drop(&r->store, qf_record_key(r->fx.file, id, 0));
        return;
    }
}

/* A chunk's record, or a piece of a seal's, goes while the shard is written. */
static void test_record_vanishes(void **state)
{
    (void)state;
    const char *views[] = {"int8", "dq"};
    for (size_t i = 0; i < 2; i++) {
        struct rig r;
        rig_begin(&r, views[i]);
        r.store.arg = &r;
        atomic_store(&r.store.on_append, drop_last_record);
        qf_shard_file *file = rig_open(&r);
        if (i == 0) { /* through records alone: dq's seal would stay in memory */
            check_all(&r, file, 1u << 20);
        } else {
            unsigned char byte;
            r.fx.file = file;
            assert_int_equal(fx_read(file, 0, 1, &byte), 1);
        }
        qf_shard_file_close(file);
        settle(&r);
        assert_int_equal(r.store.begins, 1);
        assert_int_equal(r.store.aborts, 1);
        assert_int_equal(r.store.commits, 0);
        assert_int_equal(fx_stats(&r.fx).chunks_encoded, 0);
        assert_int_equal(fx_stats(&r.fx).seals, 0);
        atomic_store(&r.store.on_append, NULL);
        visit(&r); /* which makes it anew */
        settle(&r);
        assert_int_equal(r.store.commits, 1);
        visit(&r);
        rig_end(&r);
    }
}

static void touch_source(void *arg)
{
    const struct rig *r = arg;
    const struct timespec times[2] = {{9, 9}, {9, 9}};
    assert_int_equal(utimensat(AT_FDCWD, r->fx.source_path, times, 0), 0);
}

static void test_source_changes(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    r.store.arg = &r;
    atomic_store(&r.store.on_append, touch_source);
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.aborts, 1);
    assert_int_equal(r.store.commits, 0);
    rig_end(&r);
    /* after it was sealed: what comes to us is refused */
    rig_begin(&r, "nf4");
    visit(&r);
    settle(&r);
    qf_shard_file *file = rig_open(&r);
    unsigned char byte;
    assert_int_equal(fx_read(file, 5, 1, &byte), 1);
    touch_source(&r);
    assert_int_equal(fx_read(file, 5, 1, &byte), -ESTALE);
    qf_shard_file_close(file);
    rig_end(&r);
}

static void test_store_fails(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    atomic_int *const faults[] = {&r.store.begin_rc, &r.store.append_rc,
                                  &r.store.commit_rc};
    const int errors[] = {-ENOSPC, -EIO, -EEXIST};
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 3; k++) {
            atomic_store(faults[i], errors[k]);
            visit(&r);
            settle(&r);
            assert_int_equal(r.store.commits, 0);
            qf_shard_file *file = rig_open(&r);
            assert_int_equal(qf_shard_file_sealed_fd(file), -1);
            qf_shard_file_close(file);
            atomic_store(faults[i], 0);
        }
    }
    assert_int_equal(r.store.begins, 9);
    assert_int_equal(r.store.aborts, 3);
    assert_int_equal(fx_stats(&r.fx).chunks_encoded, 0);
    assert_int_equal(fx_stats(&r.fx).shards_sealed, 0);
    /* a store that says late that it keeps no files is not asked again */
    atomic_store(&r.store.begin_rc, -ENOTSUP);
    visit(&r);
    settle(&r);
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.begins, 10);
    atomic_store(&r.store.begin_rc, 0);
    qf_engine_set_sealing(r.fx.engine, true);
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    /* it does not want to open what it has */
    atomic_store(&r.store.open_rc, -ENOENT);
    visit(&r);
    settle(&r);
    assert_int_equal(fx_stats(&r.fx).sealed_reads, 0);
    assert_int_equal(fx_stats(&r.fx).chunks_encoded, fx_chunks(&r.fx));
    rig_end(&r);
}

/* Somebody else, in another process, has sealed the shard that is open here. */
static void test_sealed_by_another(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    qf_shard_file *file = rig_open(&r);
    char path[4200];
    file_store_path(&r.store, file->sealed.key, path);
    check_all(&r, file, 1u << 20);
    tmpdir_write(r.files, strrchr(path, '/') + 1, r.want, r.fx.layout->file_size);
    qf_shard_file_close(file);
    settle(&r);
    assert_int_equal(r.store.begins, 1);
    assert_int_equal(r.store.commits, 0);
    assert_int_equal(fx_stats(&r.fx).shards_sealed, 0);
    visit(&r);
    assert_int_equal(fx_stats(&r.fx).sealed_bytes, r.fx.layout->file_size);
    rig_end(&r);
}

/* The sealed file loses its end under us: records again, encoded anew. */
static void test_broken_file(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "dq");
    visit(&r);
    settle(&r);
    qf_shard_file *file = rig_open(&r);
    char path[4200];
    file_store_path(&r.store, file->sealed.key, path);
    assert_true(qf_shard_file_sealed_fd(file) >= 0);
    assert_int_equal(truncate(path, (off_t)(r.fx.layout->file_size / 2)), 0);
    check_all(&r, file, 1u << 20);
    assert_int_equal(qf_shard_file_sealed_fd(file), -1);
    assert_true(fx_stats(&r.fx).chunks_encoded > 0);
    assert_int_equal(fx_stats(&r.fx).read_errors, 0);
    qf_shard_file_close(file);
    rig_end(&r);
}

/* Eviction of the file takes it from nobody who has it open. */
static void test_evicted_while_open(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    visit(&r);
    settle(&r);
    qf_shard_file *file = rig_open(&r);
    char path[4200];
    file_store_path(&r.store, file->sealed.key, path);
    assert_int_equal(unlink(path), 0);
    check_all(&r, file, 1u << 20);
    assert_int_equal(fx_stats(&r.fx).chunks_encoded, 0);
    qf_shard_file_close(file);
    visit(&r);
    settle(&r);
    assert_int_equal(fx_stats(&r.fx).chunks_encoded, fx_chunks(&r.fx));
    assert_int_equal(r.store.commits, 2);
    rig_end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_key),
        cmocka_unit_test(test_sealed_after_read),
        cmocka_unit_test(test_sealed_after_encoding),
        cmocka_unit_test(test_not_sealed),
        cmocka_unit_test(test_room),
        cmocka_unit_test(test_small_shard),
        cmocka_unit_test(test_nothing_encoded),
        cmocka_unit_test(test_store_without_files),
        cmocka_unit_test(test_last_close),
        cmocka_unit_test(test_record_vanishes),
        cmocka_unit_test(test_source_changes),
        cmocka_unit_test(test_store_fails),
        cmocka_unit_test(test_sealed_by_another),
        cmocka_unit_test(test_broken_file),
        cmocka_unit_test(test_evicted_while_open),
    };
    return cmocka_run_group_tests_name("engine_sealed", tests, NULL, NULL);
}
