/* SPDX-License-Identifier: Apache-2.0 */
/* Who talks to the driver: many threads that queue work, or one that registers memory.
 * Private to cuda/. */
#ifndef QF_CUDA_TURNS_H
#define QF_CUDA_TURNS_H

#include <pthread.h>
#include <stdbool.h>

struct qf_cuda_turns {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned queueing; /* threads that queue work or wait to */
    bool registering;
};

void qf_cuda_turns_init(struct qf_cuda_turns *turns);
void qf_cuda_turns_fini(struct qf_cuda_turns *turns);
void qf_cuda_queue_turn(struct qf_cuda_turns *turns);
void qf_cuda_queue_done(struct qf_cuda_turns *turns);
/* Not within a queue turn. */
void qf_cuda_register_turn(struct qf_cuda_turns *turns);
void qf_cuda_register_done(struct qf_cuda_turns *turns);

#endif
