/* SPDX-License-Identifier: Apache-2.0 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <pthread.h>
#include <string.h>

#include "engine/memory.h"

#define KIB ((size_t)1024)

static void test_sizes(void **state)
{
    (void)state;
    const size_t sizes[] = {0,      1,          16 * KIB,       16 * KIB + 1,
                            100000, 1024 * KIB, 1024 * KIB + 1, 9000000};
    struct qf_memory memory;
    qf_memory_init(&memory, 64u << 20, NULL);
    uint64_t used = 0;
    void *data[8];
    for (size_t i = 0; i < 8; i++) {
        data[i] = qf_memory_get(&memory, sizes[i]);
        assert_non_null(data[i]);
        assert_int_equal((uintptr_t)data[i] % 64, 0);
        memset(data[i], (int)i, sizes[i]);
        uint64_t cost = qf_memory_cost(sizes[i]);
        assert_true(cost >= sizes[i] && cost < sizes[i] + 16 * KIB + (sizes[i] == 0));
        used += cost;
        assert_int_equal(memory.used, used);
    }
    assert_int_equal(memory.peak, used);
    for (size_t i = 0; i < 8; i++)
        qf_memory_put(&memory, data[i], sizes[i]);
    assert_int_equal(memory.used, 0);
    assert_int_equal(memory.peak, used);
    qf_memory_put(&memory, NULL, 5);
    qf_memory_fini(&memory);
}

static void test_reuse(void **state)
{
    (void)state;
    struct qf_memory memory;
    qf_memory_init(&memory, 64u << 20, NULL);
    void *first = qf_memory_get(&memory, 500000);
    qf_memory_put(&memory, first, 500000);
    assert_true(memory.idle > 0);
    /* any size of the same class */
    void *second = qf_memory_get(&memory, 500001);
    assert_ptr_equal(first, second);
    assert_int_equal(memory.idle, 0);
    qf_memory_put(&memory, second, 500001);
    /* what is larger than a megabyte goes back to the system */
    uint64_t idle = memory.idle;
    void *big = qf_memory_get(&memory, 5000000);
    qf_memory_put(&memory, big, 5000000);
    assert_int_equal(memory.idle, idle);
    qf_memory_fini(&memory);
}

static void test_idle_is_bounded(void **state)
{
    (void)state;
    struct qf_memory memory;
    void *data[64];
    qf_memory_init(&memory, 64u << 20, NULL);
    for (size_t i = 0; i < 64; i++)
        data[i] = qf_memory_get(&memory, 1024 * KIB);
    for (size_t i = 0; i < 64; i++)
        qf_memory_put(&memory, data[i], 1024 * KIB);
    assert_int_equal(memory.idle, 32u << 20);
    assert_int_equal(memory.used, 0);
    qf_memory_fini(&memory);
}

static void test_room_and_excess(void **state)
{
    (void)state;
    struct qf_memory memory;
    const uint64_t limit = 100u << 20;
    qf_memory_init(&memory, limit, NULL);
    assert_int_equal(qf_memory_room(&memory, 75), limit / 100 * 75);
    assert_int_equal(qf_memory_excess(&memory, 75), 0);
    void *data = qf_memory_get(&memory, 60u << 20);
    assert_int_equal(qf_memory_room(&memory, 75), limit / 100 * 75 - (60u << 20));
    assert_int_equal(qf_memory_room(&memory, 50), 0);
    assert_int_equal(qf_memory_excess(&memory, 50), (60u << 20) - limit / 100 * 50);
    /* the limit is no wall for who asks without looking */
    void *more = qf_memory_get(&memory, 60u << 20);
    assert_non_null(more);
    assert_int_equal(qf_memory_room(&memory, 100), 0);
    qf_memory_put(&memory, data, 60u << 20);
    qf_memory_put(&memory, more, 60u << 20);
    qf_memory_fini(&memory);
}

static void *get_and_put(void *arg)
{
    for (size_t i = 0; i < 2000; i++) {
        size_t size = i * 977 % (1200 * KIB);
        char *data = qf_memory_get(arg, size);
        if (data == NULL)
            return arg;
        if (size > 0)
            data[0] = data[size - 1] = 'x';
        qf_memory_put(arg, data, size);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    struct qf_memory memory;
    pthread_t threads[4];
    qf_memory_init(&memory, 64u << 20, NULL);
    for (size_t i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, get_and_put, &memory), 0);
    for (size_t i = 0; i < 4; i++) {
        void *failed;
        pthread_join(threads[i], &failed);
        assert_null(failed);
    }
    assert_int_equal(memory.used, 0);
    qf_memory_fini(&memory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),           cmocka_unit_test(test_reuse),
        cmocka_unit_test(test_idle_is_bounded), cmocka_unit_test(test_room_and_excess),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests_name("engine_memory", tests, NULL, NULL);
}
