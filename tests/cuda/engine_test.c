/* SPDX-License-Identifier: Apache-2.0 */
/* The engine over the backend, over a simulated device: the device writes records where
 * they are kept, and nothing is pinned once the device has been given back. */
#include <time.h>

#include "cuda/cuda_backend.h"
#include "sim_device.h"
#include "unit/test_engine_fixture.h"

#define MIB ((size_t)1 << 20)

static struct qf_cuda_stats stats_of(qf_backend *cuda)
{
    struct qf_cuda_stats stats;
    qf_cuda_backend_stats(cuda, &stats);
    return stats;
}

static void await_idle(qf_backend *cuda)
{
    for (int i = 0; i < 500 && stats_of(cuda).active; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    assert_false(stats_of(cuda).active);
}

static qf_backend *open_cuda(qf_backend *cpu, const char *fault)
{
    struct qf_cuda_options options = {.idle_ms = 30};
    qf_backend *cuda = NULL;
    if (fault != NULL)
        assert_int_equal(setenv("QUANTFS_FAULT", fault, 1), 0);
    assert_int_equal(qf_cuda_backend_open(&options, cpu, &cuda, NULL), 0);
    assert_int_equal(unsetenv("QUANTFS_FAULT"), 0);
    return cuda;
}

static void read_views(const char *fault, bool direct)
{
    static const char *const views[] = {"nf4", "dq", "int8"};
    qf_backend *cpu = fx_backend(NULL);
    qf_backend *cuda = open_cuda(cpu, fault);
    qf_store *store = fx_store_mem(0);
    for (size_t i = 0; i < 3; i++) {
        struct fx fx;
        fx_begin(&fx, fx_all, FX_ALL_COUNT, views[i]);
        fx_open(&fx, cpu, store, 0);
        unsigned char *want = fx_read_all(&fx, MIB);
        fx_close(&fx);
        uint64_t chunks = stats_of(cuda).chunks;
        fx_open(&fx, cuda, store, 0);
        unsigned char *got = fx_read_all(&fx, MIB);
        assert_memory_equal(got, want, fx.layout->file_size);
        assert_true(stats_of(cuda).chunks > chunks);
        await_idle(cuda); /* the engine still holds its records */
        assert_int_equal(sim_state().registered, 0);
        assert_int_equal(sim_state().pinned, 0);
        assert_true(fx_stats(&fx).memory_used > 0);
        assert_int_equal(fx_stats(&fx).backend.device_chunks, stats_of(cuda).chunks);
        assert_memory_equal(got, want, fx.layout->file_size);
        fx_close(&fx);
        free(got);
        free(want);
        fx_end(&fx);
    }
    struct qf_cuda_stats s = stats_of(cuda);
    struct qf_backend_stats told;
    qf_backend_stats(cuda, &told);
    assert_int_equal(told.device_chunks, s.chunks);
    assert_int_equal(told.fallback_chunks, s.chunks_fallback);
    assert_int_equal(told.device_failures, s.failures);
    qf_backend_stats(cpu, &told);
    assert_int_equal(told.device_chunks, 0);
    assert_int_equal(direct ? s.records_staged : s.records_direct, 0);
    assert_true(s.records_staged + s.records_direct > 0);
    qf_backend_close(cuda);
    assert_int_equal(sim_state().memory, 0);
    qf_store_close(store);
    qf_backend_close(cpu);
}

static void test_direct(void **state)
{
    (void)state;
    read_views(NULL, true);
}

static void test_not_registered(void **state)
{
    (void)state;
    read_views("cuda:register", false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_direct),
        cmocka_unit_test(test_not_registered),
    };
    return cmocka_run_group_tests_name("cuda_sim_engine", tests, NULL, NULL);
}
