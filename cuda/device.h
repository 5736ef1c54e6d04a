/* SPDX-License-Identifier: Apache-2.0 */
/* What the backend wants from a device, as plain C: so that all that decides, waits and
 * fails over lives in C files and is tested on any machine with a simulated device.
 * Private to cuda/. device.cu implements it with CUDA, device_none.c for builds
 * without, tests/cuda/sim_device.c in host memory.
 *
 * Functions return 0; -ENOMEM (no memory now; nothing else is wrong); -EINVAL (this
 * range cannot be registered); -EIO (the device is no longer usable by this process).
 * After a failure qf_cuda_device_problem says why, in this thread. */
#ifndef QF_CUDA_DEVICE_H
#define QF_CUDA_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"
#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_CUDA_LAUNCH_MAX 16
/* Device addresses of items are multiples of this. */
#define QF_CUDA_ALIGN 256u

/* One chunk, all addresses on the device. */
struct qf_cuda_item {
    const void *src;
    uint8_t *codes;
    float *floats;       /* absmax or SCB */
    uint64_t elem_count; /* not 0 */
};

/* Chunks of one kind, encoded in one launch. */
struct qf_cuda_launch {
    enum qf_codec codec; /* DQ is done as NF4 */
    enum qf_dtype src_dtype;
    enum qf_dtype dtype; /* D */
    uint32_t blocksize;
    uint64_t cols; /* INT8 */
    uint32_t count;
    struct qf_cuda_item items[QF_CUDA_LAUNCH_MAX];
};

/* A queue of work in order; different queues overlap. */
typedef struct qf_cuda_queue qf_cuda_queue;

/* -ENODEV with the sentence when there is no such device, or no driver. shared_only:
 * nor one that only one process at a time may use. */
int qf_cuda_device_probe(int device, bool shared_only,
                         struct qf_err *err) QF_MUST_CHECK;
/* To be called by a thread before it uses the device, each time anew. */
int qf_cuda_device_enter(int device) QF_MUST_CHECK;
/* Gives the context back. Nothing of it may be in use. */
void qf_cuda_device_reset(void);
const char *qf_cuda_device_problem(void);

int qf_cuda_device_alloc(size_t size, void **out) QF_MUST_CHECK;
void qf_cuda_device_free(void *data);
/* Host memory that the device reaches. */
int qf_cuda_pinned_alloc(size_t size, void **out) QF_MUST_CHECK;
void qf_cuda_pinned_free(void *data);
/* Makes host memory reachable. read_only: the device will not write to it. */
int qf_cuda_register(void *data, size_t size, bool read_only) QF_MUST_CHECK;
void qf_cuda_unregister(void *data);

int qf_cuda_queue_new(qf_cuda_queue **out) QF_MUST_CHECK;
void qf_cuda_queue_free(qf_cuda_queue *queue);
/* Both queue a copy. The host side is pinned or registered, in one piece. */
int qf_cuda_copy_in(qf_cuda_queue *queue, void *to_device, const void *from_host,
                    size_t size) QF_MUST_CHECK;
int qf_cuda_copy_out(qf_cuda_queue *queue, void *to_host, const void *from_device,
                     size_t size) QF_MUST_CHECK;
int qf_cuda_run(qf_cuda_queue *queue,
                const struct qf_cuda_launch *launch) QF_MUST_CHECK;
/* Sleeps until all that was queued is done. */
int qf_cuda_wait(qf_cuda_queue *queue) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
