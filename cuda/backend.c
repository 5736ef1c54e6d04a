/* SPDX-License-Identifier: Apache-2.0 */
/* Decides what goes to the device, keeps up to RING batches of a call on the way, and
 * gives to the fallback what the device does not or cannot do: the bytes are the same,
 * so a failure costs time and a line in the log.
 *
 * Taking the device up takes longer than the first half of many a load; where a caller
 * says so, the keeper does it while the fallback encodes.
 *
 * The card is for the model. Nothing is held on it before the first job; the keeper, a
 * thread that sleeps otherwise, gives everything back when no job has come for a while,
 * and at once when the device has failed. Calls and the keeper exclude each other by
 * `active` and `switching`. */
#include <assert.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/log.h"
#include "cuda/slots.h"

/* Batches of one call on the way: one registers, one copies in, one computes, one
 * copies out. */
#define RING 4
/* Page cache that nobody has read for so long is pinned no longer. */

/* One encode call. */
struct call {
    struct qf_cuda_backend *cuda;
    struct qf_cuda_slot *slots[RING]; /* in the order in which they were started */
    size_t count;
};

static struct qf_cuda_backend *cuda_of(qf_backend *backend)
{
    return (struct qf_cuda_backend *)(void *)backend;
}

static void fall_back(struct qf_cuda_backend *cuda, struct qf_job *jobs, size_t count)
{
    qf_cuda_count(cuda, &cuda->stats.chunks_fallback, count);
    qf_backend_encode(cuda->fallback, jobs, count);
}

/* Says once what has happened; -EIO is for ever. */
static void note_failure(struct qf_cuda_backend *cuda, int rc, const char *what)
{
    if (what[0] == '\0')
        what = "failed";
    pthread_mutex_lock(&cuda->stats_lock);
    bool first = !cuda->warned;
    cuda->warned = true;
    pthread_mutex_unlock(&cuda->stats_lock);
    if (first)
        qf_log(QF_LOG_WARN,
               "device cuda:%d: %s; encoding with %s%s (said once; the bytes are the "
               "same)",
               cuda->device, what, qf_backend_name(cuda->fallback),
               rc == -EIO ? " from now on" : " meanwhile");
    if (rc != -EIO)
        return;
    pthread_mutex_lock(&cuda->lock);
    cuda->down = true;
    pthread_cond_broadcast(&cuda->changed);
    pthread_mutex_unlock(&cuda->lock);
}

/* ---- a call ---- */

static void end_call(struct qf_cuda_backend *cuda)
{
    pthread_mutex_lock(&cuda->lock);
    assert(cuda->active > 0);
    cuda->active--;
    cuda->used_ns = qf_cuda_now_ns();
    if (cuda->active == 0)
        pthread_cond_broadcast(&cuda->changed);
    pthread_mutex_unlock(&cuda->lock);
}

/* True: the device is this thread's to use until end_call. */
static bool begin_call(struct qf_cuda_backend *cuda)
{
    pthread_mutex_lock(&cuda->lock);
    while (cuda->switching && !cuda->no_waiting)
        pthread_cond_wait(&cuda->changed, &cuda->lock);
    bool ok = !cuda->switching && !cuda->down &&
              (cuda->slot_count != 0 || qf_cuda_now_ns() >= cuda->retry_ns);
    if (ok && cuda->no_waiting && !cuda->context) {
        cuda->wanted = true;
        pthread_cond_broadcast(&cuda->changed);
        ok = false;
    }
    if (ok) {
        cuda->active++;
        if (!cuda->context) {
            cuda->context = true;
            qf_cuda_count(cuda, &cuda->stats.contexts, 1);
            pthread_cond_broadcast(&cuda->changed);
        }
    }
    pthread_mutex_unlock(&cuda->lock);
    if (!ok)
        return false;
    int rc = qf_cuda_device_enter(cuda->device);
    if (rc == 0)
        return true;
    note_failure(cuda, rc, qf_cuda_device_problem());
    qf_cuda_retry_later(cuda);
    end_call(cuda);
    return false;
}

/* Completes the oldest batch of the call. */
static void retire(struct call *call)
{
    struct qf_cuda_backend *cuda = call->cuda;
    struct qf_cuda_slot *slot = call->slots[0];
    call->count--;
    memmove(&call->slots[0], &call->slots[1], call->count * sizeof slot);
    struct qf_job *jobs = slot->jobs;
    size_t count = slot->count;
    int rc = qf_cuda_batch_end(cuda, slot);
    qf_cuda_slot_give(cuda, slot);
    if (rc == 0)
        return;
    note_failure(cuda, rc, qf_cuda_device_problem());
    qf_cuda_count(cuda, &cuda->stats.failures, count);
    for (size_t i = 0; i < count; i++)
        if (jobs[i].rc == 0)
            fall_back(cuda, &jobs[i], 1);
}

static struct qf_cuda_slot *take_slot(struct call *call)
{
    if (call->count == RING)
        retire(call);
    for (;;) {
        struct qf_cuda_slot *slot = qf_cuda_slot_take(call->cuda, call->count == 0);
        if (slot != NULL || call->count == 0)
            return slot;
        retire(call);
    }
}

static void cuda_encode(qf_backend *backend, struct qf_job *jobs, size_t count)
{
    struct qf_cuda_backend *cuda = cuda_of(backend);
    if (count == 0)
        return;
    if (!begin_call(cuda)) {
        fall_back(cuda, jobs, count);
        return;
    }
    struct call call = {.cuda = cuda};
    for (size_t i = 0; i < count;) {
        if (!qf_cuda_job_fits(&jobs[i])) {
            fall_back(cuda, &jobs[i++], 1);
            continue;
        }
        size_t n = qf_cuda_batch_size(&jobs[i], count - i);
        struct qf_cuda_slot *slot = take_slot(&call);
        if (slot != NULL) {
            qf_cuda_batch_start(cuda, slot, &jobs[i], n, count - i);
            call.slots[call.count++] = slot;
        } else {
            note_failure(cuda, -ENOMEM, "no memory left on the device");
            fall_back(cuda, &jobs[i], n);
        }
        i += n;
    }
    while (call.count != 0)
        retire(&call);
    end_call(cuda);
}

static void cuda_pin(qf_backend *backend, void *data, size_t size)
{
    qf_cuda_arenas_add(&cuda_of(backend)->arenas, data, size);
}

static void cuda_unpin(qf_backend *backend, void *data)
{
    qf_cuda_arenas_remove(&cuda_of(backend)->arenas, data);
}

static void cuda_stats(qf_backend *backend, struct qf_backend_stats *out)
{
    struct qf_cuda_backend *cuda = cuda_of(backend);
    pthread_mutex_lock(&cuda->stats_lock);
    out->device_chunks = cuda->stats.chunks;
    out->fallback_chunks = cuda->stats.chunks_fallback;
    out->device_failures = cuda->stats.failures;
    out->fallback_name = qf_backend_name(cuda->fallback);
    pthread_mutex_unlock(&cuda->stats_lock);
}

/* ---- the keeper: taking the device up and giving it back ---- */

/* With the lock held, which is let go meanwhile; nobody is active. all: the context,
 * too; else the windows only. */
static void drop(struct qf_cuda_backend *cuda, bool all)
{
    cuda->switching = true;
    pthread_mutex_unlock(&cuda->lock);
    /* A device that cannot be entered has nothing left to be given back one by one. */
    (void)(qf_cuda_device_enter(cuda->device) == 0);
    qf_cuda_windows_clear(&cuda->windows);
    if (all) {
        qf_cuda_slots_clear(cuda);
        qf_cuda_arenas_clear(&cuda->arenas);
        qf_cuda_device_reset();
    }
    pthread_mutex_lock(&cuda->lock);
    cuda->context = cuda->context && !all;
    cuda->switching = false;
    pthread_cond_broadcast(&cuda->changed);
}

/* With the lock held, which is let go meanwhile. */
static void take_up(struct qf_cuda_backend *cuda)
{
    cuda->wanted = false;
    cuda->switching = true;
    pthread_mutex_unlock(&cuda->lock);
    int rc = qf_cuda_device_enter(cuda->device);
    if (rc == 0) {
        qf_cuda_count(cuda, &cuda->stats.contexts, 1);
    } else {
        note_failure(cuda, rc, qf_cuda_device_problem());
        qf_cuda_retry_later(cuda);
    }
    pthread_mutex_lock(&cuda->lock);
    cuda->context = rc == 0;
    cuda->used_ns = qf_cuda_now_ns();
    cuda->switching = false;
    pthread_cond_broadcast(&cuda->changed);
}

static void wait_until(struct qf_cuda_backend *cuda, uint64_t ns)
{
    struct timespec ts = {.tv_sec = (time_t)(ns / 1000000000u),
                          .tv_nsec = (long)(ns % 1000000000u)};
    (void)pthread_cond_timedwait(&cuda->changed, &cuda->lock, &ts);
}

static void *keep(void *arg)
{
    struct qf_cuda_backend *cuda = arg;
    pthread_mutex_lock(&cuda->lock);
    while (!cuda->closing || cuda->context) {
        uint64_t now = qf_cuda_now_ns();
        uint64_t end = cuda->used_ns + cuda->idle_ns;
        uint64_t windows_end = cuda->used_ns + cuda->windows_idle_ns;
        bool windows = qf_cuda_windows_any(&cuda->windows);
        if (cuda->wanted && !cuda->context && !cuda->down && !cuda->closing)
            take_up(cuda);
        else if (!cuda->context || cuda->active != 0)
            pthread_cond_wait(&cuda->changed, &cuda->lock);
        else if (cuda->closing || cuda->down || now >= end)
            drop(cuda, true);
        else if (windows && now >= windows_end)
            drop(cuda, false);
        else
            wait_until(cuda, windows && windows_end < end ? windows_end : end);
    }
    pthread_mutex_unlock(&cuda->lock);
    return NULL;
}

/* ---- opening and closing ---- */

static void free_backend(struct qf_cuda_backend *cuda)
{
    qf_cuda_arenas_fini(&cuda->arenas);
    qf_cuda_windows_fini(&cuda->windows);
    pthread_cond_destroy(&cuda->changed);
    pthread_mutex_destroy(&cuda->lock);
    pthread_mutex_destroy(&cuda->stats_lock);
    qf_cuda_faults_fini(&cuda->faults);
    qf_cuda_turns_fini(&cuda->turns);
    free(cuda);
}

/* All jobs have ended. */
static void cuda_close(qf_backend *backend)
{
    struct qf_cuda_backend *cuda = cuda_of(backend);
    pthread_mutex_lock(&cuda->lock);
    cuda->closing = true;
    pthread_cond_broadcast(&cuda->changed);
    pthread_mutex_unlock(&cuda->lock);
    pthread_join(cuda->keeper, NULL);
    free_backend(cuda);
}

static const struct qf_backend_ops cuda_ops = {
    .name = "cuda",
    .encode = cuda_encode,
    .close = cuda_close,
    .batch = 32,
    .pin = cuda_pin,
    .unpin = cuda_unpin,
    .stats = cuda_stats,
};

/* Signals are for the main thread. */
static int start_keeper(struct qf_cuda_backend *cuda)
{
    sigset_t all;
    sigset_t old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int rc = pthread_create(&cuda->keeper, NULL, keep, cuda);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return -rc;
}

/* What this process may use: the machine's memory, or less in a control group. What is
 * pinned cannot be reclaimed, and page cache counts, too. */
static uint64_t memory_size(void)
{
    long pages = sysconf(_SC_PHYS_PAGES);
    long page = sysconf(_SC_PAGESIZE);
    uint64_t size = pages > 0 && page > 0 ? (uint64_t)pages * (uint64_t)page : 0;
    FILE *file = fopen("/sys/fs/cgroup/memory.max", "re");
    unsigned long long limit;
    if (file != NULL) {
        if (fscanf(file, "%llu", &limit) == 1 && limit < size)
            size = limit;
        fclose(file);
    }
    return size;
}

static struct qf_cuda_backend *new_backend(const struct qf_cuda_options *options,
                                           qf_backend *fallback)
{
    struct qf_cuda_backend *cuda = calloc(1, sizeof *cuda);
    if (cuda == NULL)
        return NULL;
    uint64_t pinned = options->pinned_limit != 0 ? options->pinned_limit
                                                 : memory_size() / QF_CUDA_PINNED_PART;
    if (qf_cuda_windows_init(&cuda->windows, pinned, &cuda->faults, &cuda->turns) !=
        0) {
        free(cuda);
        return NULL;
    }
    uint64_t memory =
        options->memory_limit != 0 ? options->memory_limit : QF_CUDA_MEMORY_DEFAULT;
    uint64_t slots = memory / (QF_CUDA_SLOT_IN + QF_CUDA_SLOT_OUT);
    uint32_t idle_ms =
        options->idle_ms != 0 ? options->idle_ms : QF_CUDA_IDLE_MS_DEFAULT;
    cuda->base.ops = &cuda_ops;
    cuda->fallback = fallback;
    cuda->device = options->device;
    cuda->no_waiting = options->no_waiting;
    cuda->idle_ns = (uint64_t)idle_ms * 1000000u;
    uint32_t windows_idle_ms = options->pinned_idle_ms != 0
                                   ? options->pinned_idle_ms
                                   : QF_CUDA_PINNED_IDLE_MS_DEFAULT;
    cuda->windows_idle_ns = (uint64_t)windows_idle_ms * 1000000u;
    cuda->slot_max = slots == 0 ? 1 : slots > 1024 ? 1024 : (unsigned)slots;
    qf_cuda_faults_init(&cuda->faults, getenv("QUANTFS_FAULT"));
    qf_cuda_arenas_init(&cuda->arenas, options->device, &cuda->faults, &cuda->turns);
    qf_cuda_turns_init(&cuda->turns);
    pthread_condattr_t attr;
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_mutex_init(&cuda->lock, NULL);
    pthread_mutex_init(&cuda->stats_lock, NULL);
    pthread_cond_init(&cuda->changed, &attr);
    pthread_condattr_destroy(&attr);
    return cuda;
}

int qf_cuda_backend_open(const struct qf_cuda_options *options, qf_backend *fallback,
                         qf_backend **out, struct qf_err *err)
{
    assert(fallback != NULL);
    struct qf_cuda_backend *cuda = new_backend(options, fallback);
    if (cuda == NULL)
        return qf_err_set(err, -ENOMEM, "out of memory");
    int rc;
    if (qf_cuda_fault(&cuda->faults, QF_CUDA_FAULT_DRIVER))
        rc = qf_err_set(err, -ENODEV, "device cuda:%d: no driver (injected)",
                        options->device);
    else
        rc = qf_cuda_device_probe(options->device, options->shared_only, err);
    if (rc == 0) {
        rc = start_keeper(cuda);
        if (rc != 0)
            qf_err_set(err, rc, "cannot start a thread: %s", strerror(-rc));
    }
    if (rc != 0) {
        free_backend(cuda);
        return rc;
    }
    *out = &cuda->base;
    return 0;
}

void qf_cuda_backend_stats(qf_backend *backend, struct qf_cuda_stats *out)
{
    assert(backend->ops == &cuda_ops);
    struct qf_cuda_backend *cuda = cuda_of(backend);
    pthread_mutex_lock(&cuda->stats_lock);
    *out = (struct qf_cuda_stats){
        .chunks = cuda->stats.chunks,
        .chunks_fallback = cuda->stats.chunks_fallback,
        .failures = cuda->stats.failures,
        .source_mapped = cuda->stats.source_mapped,
        .source_read = cuda->stats.source_read,
        .records_direct = cuda->stats.records_direct,
        .records_staged = cuda->stats.records_staged,
        .contexts = cuda->stats.contexts,
    };
    pthread_mutex_unlock(&cuda->stats_lock);
    pthread_mutex_lock(&cuda->lock);
    out->memory_used =
        (uint64_t)cuda->slot_count * (QF_CUDA_SLOT_IN + QF_CUDA_SLOT_OUT);
    out->active = cuda->context;
    out->down = cuda->down;
    pthread_mutex_unlock(&cuda->lock);
}
