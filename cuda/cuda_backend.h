/* SPDX-License-Identifier: Apache-2.0 */
/* The CUDA backend: quantizes on the GPU, the same bytes as the CPU's. */
#ifndef QF_CUDA_CUDA_BACKEND_H
#define QF_CUDA_CUDA_BACKEND_H

#include <stdbool.h>
#include <stdint.h>

#include "base/err.h"
#include "quant/backend.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Zero means the default everywhere. */
struct qf_cuda_options {
    int device;              /* as CUDA numbers them */
    uint64_t memory_limit;   /* bytes of device memory for buffers (the driver's own
                                context comes on top) */
    uint64_t pinned_limit;   /* bytes of page cache that may be pinned while files are
                                read */
    uint32_t pinned_idle_ms; /* unused for so long, it gives those pages back */
    uint32_t idle_ms;        /* unused for so long, it gives everything back: context,
                                device memory, pinned pages */
    bool no_waiting;         /* jobs that come while the device is being taken up, most
                                of a second, go to the fallback */
    bool shared_only;        /* not a device that is set to one process at a time: for
                                who was not told to use it */
};

#define QF_CUDA_MEMORY_DEFAULT (UINT64_C(256) << 20)
/* One slot: 16 MiB of source and 8 MiB of results. Smaller limits count as this. */
#define QF_CUDA_MEMORY_MIN             (UINT64_C(24) << 20)
#define QF_CUDA_IDLE_MS_DEFAULT        10000u
#define QF_CUDA_PINNED_IDLE_MS_DEFAULT 1000u
/* The default of pinned_limit: this part of the memory that the process may use. */
#define QF_CUDA_PINNED_PART 8u

struct qf_cuda_stats {
    uint64_t chunks;          /* encoded on the device */
    uint64_t chunks_fallback; /* given to the fallback instead, for any reason */
    uint64_t failures;        /* of those: tried on the device first */
    uint64_t source_mapped;   /* bytes copied from the page cache where they lay */
    uint64_t source_read;     /* bytes read into pinned buffers first */
    uint64_t records_direct;  /* bytes of results copied into records directly */
    uint64_t records_staged;  /* bytes of results copied through pinned buffers */
    uint64_t memory_used;     /* device bytes of buffers held now */
    uint64_t contexts;        /* times that the device was taken up */
    bool active;              /* holds a context now */
    bool down;                /* the device failed; everything goes to the fallback */
};

/* Opens a device. `fallback` (borrowed) does what the device cannot: it must outlive
 * the backend. -ENODEV with err when this program was built without CUDA or the machine
 * has no such device, or one that shared_only excludes. Must be called after the
 * daemon's fork. Nothing is held on the device before the first job. Starts one thread,
 * which gives the device back.
 *
 * The environment variable QUANTFS_FAULT injects faults, for tests: a list of
 * cuda:KIND[@N], separated by commas; from the N-th time on (default: the first)
 * driver     opening fails as without a driver
 * oom        device memory cannot be had
 * pinned     pinned host memory cannot be had
 * register   memory cannot be registered
 * launch     a kernel cannot be launched; the device is down
 * lost       waiting for the device fails; the device is down */
int qf_cuda_backend_open(const struct qf_cuda_options *options, qf_backend *fallback,
                         qf_backend **out, struct qf_err *err) QF_MUST_CHECK;

/* Only for a backend that qf_cuda_backend_open returned. */
void qf_cuda_backend_stats(qf_backend *backend, struct qf_cuda_stats *out);

#ifdef __cplusplus
}
#endif
#endif
