/* SPDX-License-Identifier: Apache-2.0 */
/* The backend over a simulated device: what is mapped, pinned, held and given back; and
 * that every fault leaves the bytes as they are. */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "compare.h"
#include "cuda/cuda_backend.h"
#include "sim_device.h"

#define MIB ((uint64_t)1 << 20)
/* 80 MiB of bf16: 40 chunks, three windows. */
#define ROWS 10240
#define COLS 4096

static qf_backend *cpu;
static unsigned char *data; /* ROWS * COLS of bf16 */
static FILE *file;          /* the same, at offset 1000 */
static struct weight in_memory;
static struct weight in_file;
static struct qf_codec_spec nf4;

static qf_backend *open_cuda(const char *fault, struct qf_cuda_options options)
{
    qf_backend *cuda = NULL;
    /* A slow machine's pauses are not idleness. */
    if (options.idle_ms == 0)
        options.idle_ms = 600000;
    if (options.pinned_idle_ms == 0)
        options.pinned_idle_ms = options.idle_ms;
    if (fault != NULL)
        assert_int_equal(setenv("QUANTFS_FAULT", fault, 1), 0);
    assert_int_equal(qf_cuda_backend_open(&options, cpu, &cuda, NULL), 0);
    assert_int_equal(unsetenv("QUANTFS_FAULT"), 0);
    return cuda;
}

static struct qf_cuda_stats stats_of(qf_backend *cuda)
{
    struct qf_cuda_stats stats;
    qf_cuda_backend_stats(cuda, &stats);
    return stats;
}

static void close_cuda(qf_backend *cuda)
{
    qf_backend_close(cuda);
    struct sim_state sim = sim_state();
    assert_false(sim.context);
    assert_int_equal(sim.memory, 0);
    assert_int_equal(sim.registered, 0);
}

/* Until the device has been given back, at most some seconds. */
static void await_idle(qf_backend *cuda)
{
    for (int i = 0; i < 500 && stats_of(cuda).active; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    assert_false(stats_of(cuda).active);
    assert_false(sim_state().context);
}

static void test_mapped(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    size_t before = sim_state().registrations;
    compare(cuda, cpu, &nf4, &in_file, 32);
    struct qf_cuda_stats s = stats_of(cuda);
    assert_int_equal(s.chunks, 40);
    assert_int_equal(s.chunks_fallback, 0);
    assert_int_equal(s.source_mapped + s.source_read, in_file.size);
    assert_true(s.source_read < MIB); /* the file's last, short piece at the most */
    assert_int_equal(sim_state().registrations - before, 3);
    /* Again: everything is there. */
    compare(cuda, cpu, &nf4, &in_file, 7);
    assert_int_equal(sim_state().registrations - before, 3);
    /* From memory: everything is read. */
    compare(cuda, cpu, &nf4, &in_memory, 32);
    assert_int_equal(stats_of(cuda).source_read, s.source_read * 2 + in_memory.size);
    assert_true(stats_of(cuda).memory_used <= QF_CUDA_MEMORY_DEFAULT);
    close_cuda(cuda);
}

/* A reader that jumps about does not drag in windows; one that stays does. */
static void test_random_access(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    struct qf_plan plan;
    uint64_t shape[2] = {ROWS, COLS};
    assert_int_equal(qf_codec_plan(&nf4, QF_BF16, shape, false, &plan, NULL), 0);
    size_t before = sim_state().registrations;
    for (uint64_t c = 2; c < 40; c += 17)
        compare_chunks(cuda, cpu, &plan, &in_file, c, c + 1, 1);
    assert_int_equal(sim_state().registrations, before);
    assert_int_equal(stats_of(cuda).source_mapped, 0);
    for (uint64_t c = 3; c < 8; c++)
        compare_chunks(cuda, cpu, &plan, &in_file, c, c + 1, 1);
    assert_int_equal(sim_state().registrations, before + 1);
    assert_true(stats_of(cuda).source_mapped >= 4 * 2 * MIB);
    close_cuda(cuda);
}

/* Pages pinned for one version of a file must not serve the next. */
static void test_changed_file(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    compare(cuda, cpu, &nf4, &in_file, 32);
    size_t before = sim_state().registrations;
    data[5000] ^= 1;
    assert_int_equal(pwrite(in_file.fd, data + 5000, 1, (off_t)in_file.fd_off + 5000),
                     1);
    compare(cuda, cpu, &nf4, &in_file, 32);
    assert_int_equal(sim_state().registrations, before + 3);
    close_cuda(cuda);
}

/* The file ends before the weight does: what is past its end is not mapped. */
static void test_short_file(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    FILE *half = tmpfile();
    assert_non_null(half);
    struct weight w = in_file;
    w.fd = fileno(half);
    w.fd_off = 0;
    size_t size = (size_t)(41 * MIB + 5);
    assert_int_equal(pwrite(w.fd, data, size, 0), (ssize_t)size);
    compare(cuda, cpu, &nf4, &w, 32);
    assert_true(stats_of(cuda).source_mapped <= size);
    assert_true(stats_of(cuda).source_read >= w.size - size);
    fclose(half);
    close_cuda(cuda);
}

static void test_read_error(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    struct qf_plan plan;
    uint64_t shape[2] = {ROWS, COLS};
    assert_int_equal(qf_codec_plan(&nf4, QF_BF16, shape, false, &plan, NULL), 0);
    struct weight w = in_memory;
    w.fails_at = 5 * 2 * MIB + 77;
    w.read_rc = -ESTALE;
    size_t stride = (size_t)MIB;
    char *records = aligned_alloc(64, 16 * stride);
    struct qf_job jobs[16];
    assert_non_null(records);
    weight_jobs(&w, &plan, 0, 16, records, stride, jobs);
    qf_backend_encode(cuda, jobs, 16);
    for (size_t i = 0; i < 16; i++)
        assert_int_equal(jobs[i].rc, i == 5 ? -ESTALE : 0);
    struct qf_cuda_stats s = stats_of(cuda);
    assert_int_equal(s.chunks, 15);
    assert_int_equal(s.chunks_fallback, 0);
    assert_false(s.down);
    free(records);
    close_cuda(cuda);
}

static void test_idle(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){.idle_ms = 30});
    assert_false(stats_of(cuda).active);
    for (uint64_t round = 1; round <= 3; round++) {
        compare(cuda, cpu, &nf4, &in_file, 40); /* one call */
        assert_int_equal(stats_of(cuda).contexts, round);
        await_idle(cuda);
        assert_int_equal(stats_of(cuda).memory_used, 0);
    }
    close_cuda(cuda);
}

/* There is a bound to pinned page cache while files are read. */
static void test_window_bounds(void **state)
{
    (void)state;
    struct qf_cuda_options options = {.pinned_limit = 1};
    qf_backend *cuda = open_cuda(NULL, options);
    struct weight w = in_file;
    FILE *files[5];
    size_t before = sim_state().registrations;
    for (size_t i = 0; i < 5; i++) { /* 15 windows, where 8 may be */
        files[i] = tmpfile();
        assert_non_null(files[i]);
        w.fd = fileno(files[i]);
        w.fd_off = 0;
        assert_int_equal(pwrite(w.fd, data, w.size, 0), (ssize_t)w.size);
        compare(cuda, cpu, &nf4, &w, 32);
        assert_true(sim_state().registered <= 8);
    }
    assert_int_equal(sim_state().registrations - before, 15);
    compare(cuda, cpu, &nf4, &w, 40);
    assert_int_equal(sim_state().registrations - before, 15);
    for (size_t i = 0; i < 5; i++)
        fclose(files[i]);
    close_cuda(cuda);
}

/* Pinned page cache goes first, the context stays for longer. */
static void test_windows_idle(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){.pinned_idle_ms = 30});
    compare(cuda, cpu, &nf4, &in_file, 32);
    for (int i = 0; i < 500 && sim_state().registered != 0; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    assert_int_equal(sim_state().registered, 0);
    assert_true(stats_of(cuda).active);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_int_equal(stats_of(cuda).contexts, 1);
    close_cuda(cuda);
}

static void test_pinned_records(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){.idle_ms = 30});
    struct qf_plan plan;
    uint64_t shape[2] = {ROWS, COLS};
    assert_int_equal(qf_codec_plan(&nf4, QF_BF16, shape, false, &plan, NULL), 0);
    size_t stride = (size_t)MIB;
    char *records = aligned_alloc(64, 8 * stride);
    char *want = aligned_alloc(64, 8 * stride);
    struct qf_job jobs[8];
    assert_true(records != NULL && want != NULL);
    weight_jobs(&in_file, &plan, 0, 8, want, stride, jobs);
    qf_backend_encode(cpu, jobs, 8);
    qf_backend_pin(cuda, records + 4 * stride, 4 * stride);
    qf_backend_pin(cuda, records, 2 * stride);
    for (int round = 0; round < 3; round++) {
        memset(records, 0x77, 8 * stride);
        weight_jobs(&in_file, &plan, 0, 8, records, stride, jobs);
        uint64_t direct = stats_of(cuda).records_direct;
        uint64_t staged = stats_of(cuda).records_staged;
        qf_backend_encode(cuda, jobs, 8);
        size_t size = qf_plan_chunk_size(&plan, 0);
        for (size_t i = 0; i < 8; i++) {
            assert_int_equal(jobs[i].rc, 0);
            assert_memory_equal(records + i * stride, want + i * stride, size);
        }
        assert_int_equal(stats_of(cuda).records_direct - direct, 6 * size);
        assert_int_equal(stats_of(cuda).records_staged - staged, 2 * size);
        await_idle(cuda); /* arenas are registered anew */
    }
    weight_jobs(&in_file, &plan, 0, 8, records, stride, jobs);
    qf_backend_encode(cuda, jobs, 8);
    qf_backend_unpin(cuda, records + 4 * stride);
    qf_backend_unpin(cuda, records);
    qf_backend_unpin(cuda, want); /* was never pinned */
    free(records);
    free(want);
    close_cuda(cuda);
}

/* The device has no kernels for scaled codecs. */
static void test_scaled(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    struct weight w = weight_of(data, QF_BF16, 1024, COLS);
    for (int codec = QF_CODEC_INT8 + 1; codec < QF_CODEC_COUNT; codec++) {
        struct qf_codec_spec spec = qf_codec_default((enum qf_codec)codec, QF_BF16);
        assert_true(compare(cuda, cpu, &spec, &w, 3) > 0);
    }
    assert_int_equal(stats_of(cuda).chunks, 0);
    assert_true(stats_of(cuda).chunks_fallback >= 10);
    assert_int_equal(stats_of(cuda).failures, 0);
    close_cuda(cuda);
}

/* A row larger than a slot, transposed weights, and kinds mixed in one call. */
static void test_what_does_not_fit(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    struct weight w = weight_of(data, QF_BF16, 3, 9 * MIB);
    struct qf_codec_spec int8 = qf_codec_default(QF_CODEC_INT8, QF_BF16);
    compare(cuda, cpu, &int8, &w, 3);
    assert_int_equal(stats_of(cuda).chunks_fallback, 3);
    assert_int_equal(stats_of(cuda).failures, 0);
    w = weight_of(data, QF_BF16, COLS, 1000);
    w.transposed = true;
    compare(cuda, cpu, &nf4, &w, 4);
    assert_int_equal(stats_of(cuda).chunks, 0);

    struct qf_plan plans[4];
    struct qf_job jobs[2][16];
    size_t stride = (size_t)MIB;
    char *records = aligned_alloc(64, 32 * stride);
    assert_non_null(records);
    uint64_t shape[2] = {1024, COLS};
    for (int i = 0; i < 4; i++) {
        struct qf_codec_spec spec =
            qf_codec_default(i == 2 ? QF_CODEC_INT8 : QF_CODEC_NF4,
                             i == 1 ? QF_F16 : QF_BF16);
        spec.blocksize = i == 3 ? 4096 : 64;
        assert_int_equal(qf_codec_plan(&spec, QF_BF16, shape, false, &plans[i], NULL),
                         0);
    }
    for (size_t i = 0; i < 16; i++)
        for (size_t k = 0; k < 2; k++)
            weight_jobs(&in_file, &plans[i % 4], i % 3, 1,
                        records + (2 * i + k) * stride, stride, &jobs[k][i]);
    qf_backend_encode(cuda, jobs[0], 16);
    qf_backend_encode(cpu, jobs[1], 16);
    for (size_t i = 0; i < 16; i++) {
        assert_int_equal(jobs[0][i].rc, 0);
        assert_memory_equal(jobs[0][i].record, jobs[1][i].record,
                            qf_plan_chunk_size(&plans[i % 4], i % 3));
    }
    assert_int_equal(stats_of(cuda).chunks, 16);
    free(records);
    close_cuda(cuda);
}

/* ---- faults ---- */

struct fault_case {
    const char *fault;
    bool down;         /* the device is given up */
    bool all_fallback; /* nothing is done on the device */
    bool none_fallback;
};

static void test_faults(void **state)
{
    (void)state;
    static const struct fault_case cases[] = {
        {"cuda:oom", false, true, false},
        {"cuda:oom@2", false, false, true}, /* one slot is enough */
        {"cuda:pinned", false, true, false},
        {"cuda:register", false, false, true},
        {"cuda:register@2", false, false, true},
        {"cuda:launch", true, true, false},
        {"cuda:launch@3", true, false, false},
        {"cuda:lost", true, true, false},
        {"cuda:lost@4", true, false, false},
        {"other:thing,cuda:lost@2,cuda:register", true, false, false},
        {"cuda:nonsense,lost,cuda:", false, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const struct fault_case *c = &cases[i];
        for (int k = 0; k < 2; k++) {
            qf_backend *cuda = open_cuda(c->fault, (struct qf_cuda_options){0});
            compare(cuda, cpu, &nf4, k == 0 ? &in_file : &in_memory, 40);
            struct qf_cuda_stats s = stats_of(cuda);
            assert_int_equal(s.down, c->down);
            assert_int_equal(s.chunks + s.chunks_fallback, 40);
            if (c->all_fallback)
                assert_int_equal(s.chunks, 0);
            else
                assert_true(s.chunks > 0);
            assert_int_equal(s.chunks_fallback == 0, c->none_fallback);
            if (c->down) {
                assert_true(s.failures > 0);
                await_idle(cuda); /* what is broken is given back at once */
                compare(cuda, cpu, &nf4, &in_file, 40);
                assert_int_equal(stats_of(cuda).chunks, s.chunks);
                assert_int_equal(stats_of(cuda).contexts, 1);
            }
            close_cuda(cuda);
        }
    }
}

static void test_no_context(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){.idle_ms = 30});
    sim_fail_enter(-ENOMEM);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_false(stats_of(cuda).down);
    assert_int_equal(stats_of(cuda).chunks, 0);
    sim_fail_enter(0); /* and is left alone for a second */
    nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 100 * 1000 * 1000}, NULL);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_int_equal(stats_of(cuda).chunks, 40);
    await_idle(cuda);
    sim_fail_enter(-EIO);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_true(stats_of(cuda).down);
    sim_fail_enter(0);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_int_equal(stats_of(cuda).chunks, 40);
    close_cuda(cuda);
}

/* Nobody takes a card unasked that only one process may use. */
static void test_exclusive(void **state)
{
    (void)state;
    qf_backend *cuda = NULL;
    struct qf_err err = {""};
    struct qf_cuda_options options = {.shared_only = true};
    sim_set_exclusive(true);
    assert_int_equal(qf_cuda_backend_open(&options, cpu, &cuda, &err), -ENODEV);
    assert_non_null(strstr(err.text, "cuda:0"));
    close_cuda(open_cuda(NULL, (struct qf_cuda_options){0})); /* who was told to */
    sim_set_exclusive(false);
    close_cuda(open_cuda(NULL, options));
}

static void await_active(qf_backend *cuda)
{
    for (int i = 0; i < 500 && !stats_of(cuda).active; i++)
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    assert_true(stats_of(cuda).active);
}

/* Nobody waits for a context. */
static void test_no_waiting(void **state)
{
    (void)state;
    struct qf_cuda_options options = {.no_waiting = true, .idle_ms = 2000};
    qf_backend *cuda = open_cuda(NULL, options);
    struct qf_plan plan;
    uint64_t shape[2] = {ROWS, COLS};
    assert_int_equal(qf_codec_plan(&nf4, QF_BF16, shape, false, &plan, NULL), 0);
    sim_slow_enter(500);
    for (uint64_t round = 1; round <= 2; round++) {
        struct qf_cuda_stats before = stats_of(cuda);
        compare_chunks(cuda, cpu, &plan, &in_memory, 0, 2, 2);
        assert_int_equal(stats_of(cuda).chunks_fallback - before.chunks_fallback, 2);
        await_active(cuda);
        compare_chunks(cuda, cpu, &plan, &in_memory, 0, 2, 2);
        assert_int_equal(stats_of(cuda).chunks - before.chunks, 2);
        assert_int_equal(stats_of(cuda).contexts, round);
        assert_int_equal(stats_of(cuda).failures, 0);
        await_idle(cuda);
    }
    compare_chunks(cuda, cpu, &plan, &in_memory, 0, 2, 2);
    close_cuda(cuda); /* while the context comes up */
    sim_slow_enter(0);
}

/* … also when there is none to be had, now or for ever. */
static void test_no_waiting_no_context(void **state)
{
    (void)state;
    struct qf_cuda_options options = {.no_waiting = true};
    qf_backend *cuda = open_cuda(NULL, options);
    sim_fail_enter(-ENOMEM);
    compare(cuda, cpu, &nf4, &in_memory, 40);
    assert_int_equal(stats_of(cuda).chunks_fallback, 40);
    assert_false(stats_of(cuda).down);
    sim_fail_enter(-EIO);
    for (int i = 0; i < 50 && !stats_of(cuda).down; i++) {
        compare(cuda, cpu, &nf4, &in_memory, 40);
        nanosleep(&(struct timespec){.tv_nsec = 100 * 1000 * 1000}, NULL);
    }
    assert_true(stats_of(cuda).down);
    sim_fail_enter(0);
    compare(cuda, cpu, &nf4, &in_memory, 40);
    assert_int_equal(stats_of(cuda).chunks, 0);
    assert_int_equal(stats_of(cuda).contexts, 0);
    close_cuda(cuda);
}

/* The device fills up and has room again. */
static void test_memory_comes_back(void **state)
{
    (void)state;
    qf_backend *cuda = open_cuda(NULL, (struct qf_cuda_options){0});
    sim_fail_alloc(-ENOMEM);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_int_equal(stats_of(cuda).chunks, 0);
    assert_int_equal(stats_of(cuda).failures, 0);
    sim_fail_alloc(0);
    nanosleep(&(struct timespec){.tv_sec = 1, .tv_nsec = 100 * 1000 * 1000}, NULL);
    compare(cuda, cpu, &nf4, &in_file, 40);
    assert_int_equal(stats_of(cuda).chunks, 40);
    close_cuda(cuda);
}

/* ---- threads ---- */

static void *thread_main(void *arg)
{
    compare(arg, cpu, &nf4, &in_file, 9);
    compare(arg, cpu, &nf4, &in_memory, 3);
    return NULL;
}

static void run_threads(const char *fault, struct qf_cuda_options options)
{
    pthread_t threads[3];
    qf_backend *cuda = open_cuda(fault, options);
    for (size_t i = 0; i < 3; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, thread_main, cuda), 0);
    for (size_t i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);
    struct qf_cuda_stats s = stats_of(cuda);
    assert_int_equal(s.chunks + s.chunks_fallback, 3 * 80);
    if (fault == NULL)
        assert_int_equal(s.chunks_fallback, 0);
    uint64_t limit = options.memory_limit;
    limit = limit != 0 ? limit : QF_CUDA_MEMORY_DEFAULT;
    limit = limit > QF_CUDA_MEMORY_MIN ? limit : QF_CUDA_MEMORY_MIN;
    assert_true(s.memory_used <= limit);
    close_cuda(cuda);
}

static void test_threads(void **state)
{
    (void)state;
    run_threads(NULL, (struct qf_cuda_options){0});
    /* One slot for all; given back whenever nobody looks. */
    run_threads(NULL, (struct qf_cuda_options){.memory_limit = 1, .idle_ms = 1});
    run_threads("cuda:lost@30", (struct qf_cuda_options){0});
    run_threads("cuda:oom@3", (struct qf_cuda_options){0});
}

static int make_data(void **state)
{
    (void)state;
    size_t n = (size_t)ROWS * COLS;
    data = malloc(2 * n);
    file = tmpfile();
    if (data == NULL || file == NULL || qf_cpu_backend_open(NULL, &cpu, NULL) != 0)
        return -1;
    numbers_fill(data, QF_BF16, n, NORMAL, 1);
    nf4 = qf_codec_default(QF_CODEC_NF4, QF_BF16);
    in_memory = weight_of(data, QF_BF16, ROWS, COLS);
    in_file = in_memory;
    in_file.fd = fileno(file);
    in_file.fd_off = 1000;
    return pwrite(in_file.fd, data, in_file.size, 1000) == (ssize_t)in_file.size ? 0
                                                                                 : -1;
}

static int free_data(void **state)
{
    (void)state;
    qf_backend_close(cpu);
    fclose(file);
    free(data);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mapped),
        cmocka_unit_test(test_random_access),
        cmocka_unit_test(test_changed_file),
        cmocka_unit_test(test_short_file),
        cmocka_unit_test(test_read_error),
        cmocka_unit_test(test_idle),
        cmocka_unit_test(test_window_bounds),
        cmocka_unit_test(test_windows_idle),
        cmocka_unit_test(test_pinned_records),
        cmocka_unit_test(test_scaled),
        cmocka_unit_test(test_what_does_not_fit),
        cmocka_unit_test(test_faults),
        cmocka_unit_test(test_no_context),
        cmocka_unit_test(test_memory_comes_back),
        cmocka_unit_test(test_exclusive),
        cmocka_unit_test(test_no_waiting),
        cmocka_unit_test(test_no_waiting_no_context),
        cmocka_unit_test(test_threads),
    };
    return cmocka_run_group_tests(tests, make_data, free_data);
}
