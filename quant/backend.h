/* SPDX-License-Identifier: Apache-2.0 */
/* Who computes: a backend fills chunk records. Every backend gives the same bytes; the
 * scalar kernel table is the definition. */
#ifndef QF_QUANT_BACKEND_H
#define QF_QUANT_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include "base/err.h"
#include "quant/codec.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Where a tensor's stored bytes come from. */
struct qf_source {
    /* Reads exactly `size` bytes at `off` (0: the tensor's first byte) or fails with a
     * negative errno. Called from any thread. */
    int (*read)(void *ctx, void *buf, size_t size, uint64_t off);
    void *ctx;
    /* For backends that map the file instead: descriptor (-1: none) and the offset of
     * the tensor's first byte in it. Borrowed. */
    int fd;
    uint64_t fd_off;
    /* Told of bytes that were taken through fd instead of read; NULL: nobody counts.
     * Called from any thread, with the same ctx. */
    void (*account)(void *ctx, size_t size);
};

/* One chunk to encode. */
struct qf_job {
    const struct qf_plan *plan; /* borrowed */
    uint64_t chunk;
    struct qf_source source;
    void *record; /* out: qf_plan_chunk_size bytes, 64-byte aligned */
    int rc;       /* out: 0 or the negative errno of this job */
};

typedef struct qf_backend qf_backend;

/* Of a backend that gives to another what it cannot do. */
struct qf_backend_stats {
    uint64_t device_chunks;    /* encoded on the device */
    uint64_t fallback_chunks;  /* given to the CPU instead, for any reason */
    uint64_t device_failures;  /* of those: tried on the device first */
    const char *fallback_name; /* who gets those; NULL without a device */
};

/* What a backend implements (its struct begins with a pointer to this). */
struct qf_backend_ops {
    const char *name; /* "scalar", "avx2", "avx512", "cuda" */
    void (*encode)(qf_backend *backend, struct qf_job *jobs, size_t count);
    void (*close)(qf_backend *backend);
    size_t batch; /* jobs that it likes to get at a time; 0: one */
    /* See qf_backend_pin; both NULL where it changes nothing. */
    void (*pin)(qf_backend *backend, void *data, size_t size);
    void (*unpin)(qf_backend *backend, void *data);
    /* NULL: there is no device. */
    void (*stats)(qf_backend *backend, struct qf_backend_stats *out);
};

struct qf_backend {
    const struct qf_backend_ops *ops;
};

/* Encodes the jobs, each to its own rc. Thread-safe; runs in the calling thread. */
static inline void qf_backend_encode(qf_backend *backend, struct qf_job *jobs,
                                     size_t count)
{
    backend->ops->encode(backend, jobs, count);
}

/* Says that records will lie in [data, data + size) again and again, so that a device
 * may write into them directly. Costs memory locks: for buffers that are kept, best of
 * many megabytes. Never fails; before the memory is freed it must be unpinned, with no
 * job into it under way. */
static inline void qf_backend_pin(qf_backend *backend, void *data, size_t size)
{
    if (backend->ops->pin != NULL)
        backend->ops->pin(backend, data, size);
}

static inline void qf_backend_unpin(qf_backend *backend, void *data)
{
    if (backend->ops->unpin != NULL)
        backend->ops->unpin(backend, data);
}

/* All zero for a backend without a device. */
static inline void qf_backend_stats(qf_backend *backend, struct qf_backend_stats *out)
{
    struct qf_backend_stats none = {0, 0, 0, 0};
    *out = none;
    if (backend->ops->stats != NULL)
        backend->ops->stats(backend, out);
}

/* At least 1. */
static inline size_t qf_backend_batch(const qf_backend *backend)
{
    return backend->ops->batch != 0 ? backend->ops->batch : 1;
}

static inline const char *qf_backend_name(const qf_backend *backend)
{
    return backend->ops->name;
}

/* The CPU backend with the best kernels this processor has, or those that `isa`
 * ("scalar", "avx2", "avx512"; NULL: the best) names. -ENOTSUP for an ISA that the
 * processor lacks, -EINVAL for an unknown name, with err written. */
int qf_cpu_backend_open(const char *isa, qf_backend **out,
                        struct qf_err *err) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_backend_close(qf_backend *backend);

#ifdef __cplusplus
}
#endif
#endif
