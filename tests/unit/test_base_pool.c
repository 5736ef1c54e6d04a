/* SPDX-License-Identifier: Apache-2.0 */
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

#include "base/pool.h"

struct job {
    struct qf_task task; /* first: the pool hands back its address */
    atomic_int *done;
    int number;
    int position; /* in the order of completion */
};

static void run_job(struct qf_task *task)
{
    struct job *job = (struct job *)(void *)task;
    job->position = atomic_fetch_add(job->done, 1);
}

static void test_runs_all(void **state)
{
    (void)state;
    enum { COUNT = 2000 };
    struct job *jobs = calloc(COUNT, sizeof *jobs);
    atomic_int done = 0;
    qf_pool *pool = NULL;
    assert_non_null(jobs);
    assert_int_equal(qf_pool_new(4, &pool), 0);
    assert_int_equal(qf_pool_thread_count(pool), 4);
    for (int i = 0; i < COUNT; i++) {
        jobs[i] = (struct job){.task.run = run_job, .done = &done, .number = i};
        qf_pool_submit(pool, &jobs[i].task);
    }
    qf_pool_free(pool); /* runs what is queued */
    assert_int_equal(atomic_load(&done), COUNT);
    free(jobs);
}

static void test_order(void **state)
{
    (void)state;
    struct job jobs[50];
    atomic_int done = 0;
    qf_pool *pool = NULL;
    assert_int_equal(qf_pool_new(1, &pool), 0);
    for (int i = 0; i < 50; i++) {
        jobs[i] = (struct job){.task.run = run_job, .done = &done, .number = i};
        qf_pool_submit(pool, &jobs[i].task);
    }
    qf_pool_free(pool);
    for (int i = 0; i < 50; i++)
        assert_int_equal(jobs[i].position, i);
}

static void test_small(void **state)
{
    (void)state;
    qf_pool *pool = NULL;
    assert_int_equal(qf_pool_new(1, &pool), 0);
    qf_pool_free(pool);
    qf_pool_free(NULL);
    assert_true(qf_cpu_count() >= 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_runs_all),
                                       cmocka_unit_test(test_order),
                                       cmocka_unit_test(test_small)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
