/* SPDX-License-Identifier: Apache-2.0 */
/* Sealing while others read, open, close and end. */
#include "test_engine_sealed_rig.h"

#include <pthread.h>

struct crowd {
    struct rig *r;
    qf_shard_file *file;
    pthread_t threads[3];
    atomic_bool begun;
    atomic_bool done;
    atomic_uint rounds;
};

static void *crowd_main(void *arg)
{
    struct crowd *crowd = arg;
    struct rig *r = crowd->r;
    size_t size = (size_t)r->fx.layout->file_size;
    unsigned char *buf = malloc(300000);
    uint64_t random = (uint64_t)(uintptr_t)&buf;
    assert_non_null(buf);
    do {
        size_t off = (size_t)(fx_random(&random) % size);
        long n = fx_read(crowd->file, off, 300000, buf);
        assert_true(n > 0);
        assert_memory_equal(buf, r->want + off, (size_t)n);
        atomic_fetch_add(&crowd->rounds, 1);
    } while (!atomic_load(&crowd->done));
    free(buf);
    return NULL;
}

/* From the sealing thread: somebody opens the shard and reads while it is written. */
static void let_crowd_in(void *arg)
{
    struct crowd *crowd = arg;
    if (atomic_exchange(&crowd->begun, true))
        return;
    crowd->file = rig_open(crowd->r);
    assert_int_equal(qf_shard_file_sealed_fd(crowd->file), -1);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&crowd->threads[i], NULL, crowd_main, crowd),
                         0);
}

static void test_readers_while_sealing(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "dq");
    struct crowd crowd = {.r = &r};
    r.store.arg = &crowd;
    atomic_store(&r.store.on_append, let_crowd_in);
    visit(&r);
    while (atomic_load(&r.released) != 1 || !atomic_load(&crowd.begun))
        usleep(1000);
    assert_int_equal(r.store.commits, 1);
    /* they were given the file */
    check_file_of(&r, crowd.file);
    unsigned rounds = atomic_load(&crowd.rounds);
    while (atomic_load(&crowd.rounds) < rounds + 20)
        usleep(1000);
    atomic_store(&crowd.done, true);
    for (size_t i = 0; i < 3; i++)
        pthread_join(crowd.threads[i], NULL);
    assert_true(fx_stats(&r.fx).sealed_reads >= 10);
    qf_shard_file_close(crowd.file);
    settle(&r);
    assert_int_equal(r.store.begins, 1);
    rig_end(&r);
}

/* Closes of one shard by many, some before others have read it. */
static void *visitor_main(void *arg)
{
    struct rig *r = arg;
    for (int i = 0; i < 5; i++) {
        qf_shard_file *file;
        struct qf_hash128 id =
            qf_source_id(qf_srcfile_ident(r->fx.src), r->fx.shard->header_hash);
        assert_int_equal(qf_shard_file_open(r->fx.engine, r->fx.layout,
                                            &(struct qf_shard_source){r->fx.src, id}, 1,
                                            0, count_released, r, &file),
                         0);
        unsigned char buf[5000];
        for (uint64_t off = 0; off < r->fx.layout->file_size; off += 200000) {
            long n = fx_read(file, off, sizeof buf, buf);
            assert_true(n > 0);
            assert_memory_equal(buf, r->want + off, (size_t)n);
        }
        qf_shard_file_close(file);
    }
    return NULL;
}

static void test_many_closes(void **state)
{
    (void)state;
    struct rig r;
    pthread_t threads[4];
    rig_begin(&r, "nf4");
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, visitor_main, &r), 0);
    for (size_t i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    r.opened = 20;
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    assert_int_equal(fx_stats(&r.fx).shards_sealed, 1);
    visit(&r);
    rig_end(&r);
}

/* Holds the sealing thread until the engine is about to end. */
static void wait_for_end(void *arg)
{
    struct crowd *crowd = arg;
    atomic_store(&crowd->begun, true);
    while (atomic_load(&crowd->r->fx.engine->sealer.on))
        usleep(1000);
}

static void test_free_while_sealing(void **state)
{
    (void)state;
    struct rig r;
    rig_begin(&r, "nf4");
    struct crowd crowd = {.r = &r};
    r.store.arg = &crowd;
    atomic_store(&r.store.on_append, wait_for_end);
    visit(&r);
    while (!atomic_load(&crowd.begun))
        usleep(1000);
    qf_engine_free(r.fx.engine);
    assert_int_equal(r.released, 1);
    assert_int_equal(r.store.aborts, 1);
    assert_int_equal(r.store.commits, 0);
    atomic_store(&r.store.on_append, NULL);
    engine_begin(&r, true);
    visit(&r);
    settle(&r);
    assert_int_equal(r.store.commits, 1);
    rig_end(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_readers_while_sealing),
        cmocka_unit_test(test_many_closes),
        cmocka_unit_test(test_free_while_sealing),
    };
    return cmocka_run_group_tests_name("engine_sealed_threads", tests, NULL, NULL);
}
