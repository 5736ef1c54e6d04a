/* SPDX-License-Identifier: Apache-2.0 */
/* What a test can ask of the simulated device. */
#ifndef QF_TESTS_CUDA_SIM_DEVICE_H
#define QF_TESTS_CUDA_SIM_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

struct sim_state {
    bool context;
    size_t memory;     /* bytes of device memory held */
    size_t pinned;     /* bytes of pinned memory held */
    size_t registered; /* ranges registered now */
    size_t registrations;
    size_t queues;
    size_t launches;
};

struct sim_state sim_state(void);
/* Calls from now on that fail with this code: enter, alloc (device), run. */
void sim_fail_enter(int rc);
void sim_fail_alloc(int rc);
/* Making the context takes so long. */
void sim_slow_enter(long ms);
/* The device is for one process at a time. */
void sim_set_exclusive(bool exclusive);

#endif
