/* SPDX-License-Identifier: Apache-2.0 */
/* The driver holds a lock of the context while it registers memory (a millisecond for a
 * window), and hands it on to anybody: where several threads register, one that would
 * only queue a copy may not come to it for many windows, and the copy engines stand
 * still (measured: no copy at all beside one thread that registers without a pause).
 * So work that is ready is queued first, all of a batch in one turn, and the next
 * registration runs while the engines work it off. */
#include "cuda/turns.h"

#include <assert.h>

void qf_cuda_turns_init(struct qf_cuda_turns *turns)
{
    *turns = (struct qf_cuda_turns){0};
    pthread_mutex_init(&turns->lock, NULL);
    pthread_cond_init(&turns->changed, NULL);
}

void qf_cuda_turns_fini(struct qf_cuda_turns *turns)
{
    assert(turns->queueing == 0 && !turns->registering);
    pthread_cond_destroy(&turns->changed);
    pthread_mutex_destroy(&turns->lock);
}

void qf_cuda_queue_turn(struct qf_cuda_turns *turns)
{
    pthread_mutex_lock(&turns->lock);
    turns->queueing++;
    while (turns->registering)
        pthread_cond_wait(&turns->changed, &turns->lock);
    pthread_mutex_unlock(&turns->lock);
}

void qf_cuda_queue_done(struct qf_cuda_turns *turns)
{
    pthread_mutex_lock(&turns->lock);
    assert(turns->queueing > 0);
    if (--turns->queueing == 0)
        pthread_cond_broadcast(&turns->changed);
    pthread_mutex_unlock(&turns->lock);
}

void qf_cuda_register_turn(struct qf_cuda_turns *turns)
{
    pthread_mutex_lock(&turns->lock);
    while (turns->registering || turns->queueing > 0)
        pthread_cond_wait(&turns->changed, &turns->lock);
    turns->registering = true;
    pthread_mutex_unlock(&turns->lock);
}

void qf_cuda_register_done(struct qf_cuda_turns *turns)
{
    pthread_mutex_lock(&turns->lock);
    turns->registering = false;
    pthread_cond_broadcast(&turns->changed);
    pthread_mutex_unlock(&turns->lock);
}
