/* SPDX-License-Identifier: Apache-2.0 */
/* Injected faults (QUANTFS_FAULT; see cuda_backend.h). Private to cuda/. */
#ifndef QF_CUDA_FAULT_H
#define QF_CUDA_FAULT_H

#include <pthread.h>
#include <stdbool.h>

enum qf_cuda_fault {
    QF_CUDA_FAULT_DRIVER,
    QF_CUDA_FAULT_OOM,
    QF_CUDA_FAULT_PINNED,
    QF_CUDA_FAULT_REGISTER,
    QF_CUDA_FAULT_LAUNCH,
    QF_CUDA_FAULT_LOST,
    QF_CUDA_FAULT_COUNT
};

struct qf_cuda_faults {
    unsigned long from[QF_CUDA_FAULT_COUNT]; /* 0: never */
    pthread_mutex_t lock;                    /* of seen */
    unsigned long seen[QF_CUDA_FAULT_COUNT];
};

/* text: of the environment variable, or NULL. What is not for CUDA is passed over. */
void qf_cuda_faults_init(struct qf_cuda_faults *faults, const char *text);
void qf_cuda_faults_fini(struct qf_cuda_faults *faults);
/* Counts one time of this kind; true when it must fail. */
bool qf_cuda_fault(struct qf_cuda_faults *faults, enum qf_cuda_fault kind);

#endif
