/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/crew.h"

#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/clock.h"
#include "base/pool.h"

#define TICK_MS 50

struct crew {
    void (*work)(void *arg, unsigned index);
    void *arg;
    pthread_mutex_t lock;
    pthread_cond_t ended;
    unsigned running;
};

struct hand {
    struct qf_task task; /* first */
    struct crew *crew;
    unsigned index;
};

static void run_hand(struct qf_task *task)
{
    struct hand *hand = (struct hand *)task;
    struct crew *crew = hand->crew;
    crew->work(crew->arg, hand->index);
    pthread_mutex_lock(&crew->lock);
    crew->running--;
    pthread_cond_signal(&crew->ended);
    pthread_mutex_unlock(&crew->lock);
}

static void look_on(struct crew *crew, void (*tick)(void *arg))
{
    pthread_mutex_lock(&crew->lock);
    while (crew->running > 0) {
        int64_t until_ms = qf_clock_ms() + TICK_MS;
        struct timespec until = {.tv_sec = until_ms / 1000,
                                 .tv_nsec = until_ms % 1000 * 1000000};
        pthread_cond_timedwait(&crew->ended, &crew->lock, &until);
        pthread_mutex_unlock(&crew->lock);
        tick(crew->arg);
        pthread_mutex_lock(&crew->lock);
    }
    pthread_mutex_unlock(&crew->lock);
}

int qf_crew_run(unsigned count, void (*work)(void *arg, unsigned index),
                void (*tick)(void *arg), void *arg)
{
    struct crew crew = {.work = work, .arg = arg, .running = count};
    qf_pool *pool = NULL;
    struct hand *hands = calloc(count, sizeof *hands);
    int rc = hands != NULL ? qf_pool_new(count, &pool) : -ENOMEM;
    if (rc != 0) {
        free(hands);
        return rc;
    }
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_mutex_init(&crew.lock, NULL);
    pthread_cond_init(&crew.ended, &monotonic);
    pthread_condattr_destroy(&monotonic);
    for (unsigned i = 0; i < count; i++) {
        hands[i] = (struct hand){{.run = run_hand}, &crew, i};
        qf_pool_submit(pool, &hands[i].task);
    }
    look_on(&crew, tick);
    qf_pool_free(pool);
    pthread_cond_destroy(&crew.ended);
    pthread_mutex_destroy(&crew.lock);
    free(hands);
    return 0;
}
