/* SPDX-License-Identifier: Apache-2.0 */
#ifndef QF_BASE_CLOCK_H
#define QF_BASE_CLOCK_H

#include <stdint.h>
#include <time.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Milliseconds on the clock of pthread_cond_timedwait's CLOCK_MONOTONIC. */
static inline int64_t qf_clock_ms(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

#ifdef __cplusplus
}
#endif
#endif
