/* SPDX-License-Identifier: Apache-2.0 */
/* Windows of source files that are mapped and registered, so that the device copies
 * from the page cache itself. Private to cuda/. Nothing here or in the callers ever
 * touches a mapped byte with the processor: a file that shrinks would be a SIGBUS. */
#ifndef QF_CUDA_WINDOWS_H
#define QF_CUDA_WINDOWS_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cuda/fault.h"
#include "cuda/turns.h"

/* Bytes of a window: registering is fastest in pieces of 16 MiB and more. */
#define QF_CUDA_WINDOW_SIZE (UINT64_C(32) << 20)
/* Windows that are remembered beside those that are registered. */
#define QF_CUDA_WINDOWS_SEEN 64
/* Bytes of a window that must have been wanted before it is registered: a reader that
 * jumps about must not drag in 32 MiB a jump. */
#define QF_CUDA_WINDOW_WANTED ((uint64_t)4 << 20)

/* A version of a file. */
struct qf_cuda_file {
    int fd; /* borrowed */
    uint64_t dev, ino, size;
    int64_t mtime_ns, ctime_ns;
};

struct qf_cuda_window;

struct qf_cuda_windows {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct qf_cuda_faults *faults; /* borrowed */
    struct qf_cuda_turns *turns;   /* borrowed */
    struct qf_cuda_window *entries;
    size_t capacity;   /* entries */
    size_t limit;      /* of registered */
    size_t registered; /* READY or on the way */
    uint64_t clock;
};

/* False: fd is no regular file. */
bool qf_cuda_file_of(int fd, struct qf_cuda_file *out);

/* pinned_limit: bytes of page cache that may be registered at a time. */
int qf_cuda_windows_init(struct qf_cuda_windows *windows, uint64_t pinned_limit,
                         struct qf_cuda_faults *faults, struct qf_cuda_turns *turns);
/* Everything must have been cleared. */
void qf_cuda_windows_fini(struct qf_cuda_windows *windows);
/* Where file bytes [off, …) lie in registered memory, or NULL: they must be read.
 * wanted: bytes of this window that the caller is about to want. A pointer is good to
 * the end of the window until *held is put back. */
const void *qf_cuda_windows_get(struct qf_cuda_windows *windows,
                                const struct qf_cuda_file *file, uint64_t off,
                                uint64_t wanted, struct qf_cuda_window **held);
void qf_cuda_windows_put(struct qf_cuda_windows *windows, struct qf_cuda_window *held);
/* Whether any is registered. */
bool qf_cuda_windows_any(struct qf_cuda_windows *windows);
/* Gives all windows back. None may be held. */
void qf_cuda_windows_clear(struct qf_cuda_windows *windows);

#endif
