/* SPDX-License-Identifier: Apache-2.0 */
/* One lock, one condition, an intrusive list: tasks here are chunks of about a
 * megabyte, so the queue is never hot. */
#include "base/pool.h"

#include <assert.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>

struct qf_pool {
    pthread_mutex_t lock;
    pthread_cond_t ready;
    struct qf_task *head;
    struct qf_task **tail;
    bool stopping;
    unsigned thread_count;
    pthread_t threads[];
};

static void *worker(void *arg)
{
    qf_pool *pool = arg;
    pthread_mutex_lock(&pool->lock);
    for (;;) {
        while (pool->head == NULL && !pool->stopping)
            pthread_cond_wait(&pool->ready, &pool->lock);
        struct qf_task *task = pool->head;
        if (task == NULL)
            break;
        pool->head = task->next;
        if (pool->head == NULL)
            pool->tail = &pool->head;
        pthread_mutex_unlock(&pool->lock);
        task->run(task);
        pthread_mutex_lock(&pool->lock);
    }
    pthread_mutex_unlock(&pool->lock);
    return NULL;
}

static void join_all(qf_pool *pool)
{
    pthread_mutex_lock(&pool->lock);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->ready);
    pthread_mutex_unlock(&pool->lock);
    for (unsigned i = 0; i < pool->thread_count; i++)
        pthread_join(pool->threads[i], NULL);
}

/* Signals are for the main thread: workers block them all. */
static int start_threads(qf_pool *pool, unsigned count)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = 0;
    while (pool->thread_count < count && rc == 0) {
        rc = pthread_create(&pool->threads[pool->thread_count], NULL, worker, pool);
        if (rc == 0)
            pool->thread_count++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -rc;
}

int qf_pool_new(unsigned thread_count, qf_pool **out)
{
    assert(thread_count > 0);
    qf_pool *pool = calloc(1, sizeof *pool + thread_count * sizeof pool->threads[0]);
    if (pool == NULL)
        return -ENOMEM;
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->ready, NULL);
    pool->tail = &pool->head;
    int rc = start_threads(pool, thread_count);
    if (rc != 0) {
        qf_pool_free(pool);
        return rc;
    }
    *out = pool;
    return 0;
}

void qf_pool_free(qf_pool *pool)
{
    if (pool == NULL)
        return;
    join_all(pool);
    pthread_cond_destroy(&pool->ready);
    pthread_mutex_destroy(&pool->lock);
    free(pool);
}

void qf_pool_submit(qf_pool *pool, struct qf_task *task)
{
    task->next = NULL;
    pthread_mutex_lock(&pool->lock);
    assert(!pool->stopping);
    *pool->tail = task;
    pool->tail = &task->next;
    pthread_cond_signal(&pool->ready);
    pthread_mutex_unlock(&pool->lock);
}

unsigned qf_pool_thread_count(const qf_pool *pool)
{
    return pool->thread_count;
}

unsigned qf_cpu_count(void)
{
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0)
        return 1;
    int count = CPU_COUNT(&set);
    return count > 0 ? (unsigned)count : 1;
}
