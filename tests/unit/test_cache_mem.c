/* SPDX-License-Identifier: Apache-2.0 */
#include "test_cache_values.h"

#include <pthread.h>

#include "base/limits.h"

static qf_store *mem_open(uint64_t limit)
{
    qf_store *store = NULL;
    assert_int_equal(qf_store_mem_open(limit, &store), 0);
    return store;
}

static void test_put_get(void **state)
{
    (void)state;
    qf_store *store = mem_open(TEST_LIMIT);
    assert_false(value_found(store, 1, 100));
    value_put(store, 1, 100);
    value_put(store, 2, 0);
    assert_true(value_found(store, 1, 100));
    assert_true(value_found(store, 2, 0));
    struct qf_store_stats s = stats_of(store);
    assert_int_equal(s.hits, 2);
    assert_int_equal(s.misses, 1);
    assert_int_equal(s.puts, 2);
    assert_int_equal(s.entries, 2);
    assert_int_equal(s.bytes_limit, TEST_LIMIT);
    qf_store_flush(store);
    qf_store_close(store);
    qf_store_close(NULL);
}

static void count_call(void *arg, bool lasting)
{
    (void)lasting;
    ++*(int *)arg;
}

static void test_overwrite(void **state)
{
    (void)state;
    qf_store *store = mem_open(TEST_LIMIT);
    int done = 0;
    qf_store_put(store, value_key(7), 0, "first", 5, count_call, &done);
    struct qf_store_value old, new;
    assert_true(qf_store_get(store, value_key(7), &old));
    qf_store_put(store, value_key(7), 0, "second", 6, count_call, &done);
    assert_int_equal(done, 2);
    assert_true(qf_store_get(store, value_key(7), &new));
    assert_memory_equal(old.data, "first", 5);
    assert_int_equal(new.size, 6);
    assert_memory_equal(new.data, "second", 6);
    assert_int_equal(stats_of(store).entries, 1);
    qf_store_release(store, &old);
    qf_store_release(store, &new);
    qf_store_close(store);
}

static void test_bounded_and_lru(void **state)
{
    (void)state;
    qf_store *store = mem_open(1 << 20);
    for (uint64_t i = 0; i < 1000; i++) {
        value_put(store, i, 10000);
        assert_true(stats_of(store).bytes <= 1 << 20);
        assert_true(value_found(store, 0, 10000)); /* in use, so it stays */
    }
    struct qf_store_stats s = stats_of(store);
    assert_int_equal(s.entries + s.evictions, 1000);
    assert_in_range(s.entries, 90, 105);
    for (uint64_t i = 1; i < 1000; i++)
        assert_int_equal(value_found(store, i, 10000), i > 1000 - s.entries);
    qf_store_close(store);
}

static void test_held_value_survives(void **state)
{
    (void)state;
    qf_store *store = mem_open(1 << 20);
    value_put(store, 1, 300000);
    struct qf_store_value held;
    assert_true(qf_store_get(store, value_key(1), &held));
    for (uint64_t i = 2; i < 50; i++)
        value_put(store, i, 300000);
    assert_false(value_found(store, 1, 300000));
    unsigned char *want = malloc(300000);
    assert_non_null(want);
    value_fill(want, 300000, 1);
    assert_memory_equal(held.data, want, 300000);
    free(want);
    qf_store_release(store, &held);
    assert_null(held.hold);
    qf_store_close(store);
}

/* A limit that is lowered while the store is in use. */
static void test_other_limit(void **state)
{
    (void)state;
    qf_store *store = mem_open(TEST_LIMIT);
    const unsigned count = TEST_LIMIT / 100000 / 2;
    for (unsigned i = 0; i < count; i++)
        value_put(store, i, 100000);
    assert_int_equal(stats_of(store).entries, count);
    qf_store_set_limits(store, 250000, 0);
    assert_int_equal(stats_of(store).bytes_limit, 250000);
    assert_int_equal(stats_of(store).entries, 2);
    assert_true(value_found(store, count - 1, 100000));
    assert_false(value_found(store, 0, 100000));
    qf_store_set_limits(store, 0, 0); /* the one that it was opened with */
    assert_int_equal(stats_of(store).bytes_limit, TEST_LIMIT);
    qf_store_close(store);
}

static void test_limits(void **state)
{
    (void)state;
    qf_store *store = mem_open(0);
    value_put(store, 1, 10);
    value_put(store, 2, 0);
    assert_false(value_found(store, 1, 10));
    assert_int_equal(stats_of(store).puts_dropped, 2);
    qf_store_close(store);

    store = mem_open(TEST_LIMIT);
    value_put(store, 1, QF_STORED_SIZE_MAX);
    value_put(store, 2, QF_STORED_SIZE_MAX + 1);
    assert_true(value_found(store, 1, QF_STORED_SIZE_MAX));
    assert_false(value_found(store, 2, QF_STORED_SIZE_MAX + 1));
    assert_int_equal(stats_of(store).puts_dropped, 1);
    qf_store_close(store);

    store = mem_open(1000);
    value_put(store, 1, 1000); /* does not fit with its own costs */
    assert_int_equal(stats_of(store).puts_dropped, 1);
    qf_store_close(store);
}

static void *hammer(void *arg)
{
    qf_store *store = arg;
    for (uint64_t i = 0; i < 20000; i++) {
        uint64_t number = (i * 7919 + (uintptr_t)&i / 64) % 300;
        size_t size = 100 + number * 10;
        if (!value_found(store, number, size))
            value_put(store, number, size);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    qf_store *store = mem_open(256 << 10);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, hammer, store), 0);
    for (int i = 0; i < 4; i++)
        pthread_join(threads[i], NULL);
    struct qf_store_stats s = stats_of(store);
    assert_int_equal(s.hits + s.misses, 80000);
    assert_int_equal(s.puts, s.misses);
    assert_true(s.bytes <= 256 << 10);
    assert_true(s.evictions > 0);
    qf_store_close(store);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_put_get),
        cmocka_unit_test(test_overwrite),
        cmocka_unit_test(test_bounded_and_lru),
        cmocka_unit_test(test_held_value_survives),
        cmocka_unit_test(test_limits),
        cmocka_unit_test(test_other_limit),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
