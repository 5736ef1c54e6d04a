/* SPDX-License-Identifier: Apache-2.0 */
/* device.h in host memory, for machines without a GPU. What is queued runs only when it
 * is waited for, so that a buffer given back too early shows; every host address must
 * lie in one pinned or registered range, as the real device demands; and giving the
 * context back demands that everything made in it is gone. */
#include "sim_device.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda/device.h"
#include "quant/kernels.h"

#define RANGES_MAX 4096
#define OPS_MAX    256

enum op_kind { COPY, RUN };

struct op {
    enum op_kind kind;
    void *to;
    const void *from;
    size_t size;
    struct qf_cuda_launch launch;
};

struct qf_cuda_queue {
    size_t count;
    struct op ops[OPS_MAX];
};

struct range {
    char *data;
    size_t size;
    bool writable;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct sim_state state;
static struct range ranges[RANGES_MAX];
static size_t range_count;
static int enter_rc;
static int alloc_rc;

struct sim_state sim_state(void)
{
    pthread_mutex_lock(&lock);
    struct sim_state copy = state;
    pthread_mutex_unlock(&lock);
    return copy;
}

void sim_fail_enter(int rc)
{
    pthread_mutex_lock(&lock);
    enter_rc = rc;
    pthread_mutex_unlock(&lock);
}

void sim_fail_alloc(int rc)
{
    pthread_mutex_lock(&lock);
    alloc_rc = rc;
    pthread_mutex_unlock(&lock);
}

static bool exclusive;
static long enter_ms;

void sim_set_exclusive(bool value)
{
    exclusive = value;
}

int qf_cuda_device_probe(int device, bool shared_only, struct qf_err *err)
{
    if (device != 0)
        return qf_err_set(err, -ENODEV,
                          "device cuda:%d: this machine has 1 CUDA device", device);
    if (exclusive && shared_only)
        return qf_err_set(err, -ENODEV, "device cuda:0: for one process");
    return 0;
}

const char *qf_cuda_device_problem(void)
{
    return "simulated";
}

void sim_slow_enter(long ms)
{
    pthread_mutex_lock(&lock);
    enter_ms = ms;
    pthread_mutex_unlock(&lock);
}

int qf_cuda_device_enter(int device)
{
    assert(device == 0);
    pthread_mutex_lock(&lock);
    long ms = state.context ? 0 : enter_ms;
    pthread_mutex_unlock(&lock);
    nanosleep(&(struct timespec){.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000},
              NULL);
    pthread_mutex_lock(&lock);
    int rc = enter_rc;
    if (rc == 0)
        state.context = true;
    pthread_mutex_unlock(&lock);
    return rc;
}

void qf_cuda_device_reset(void)
{
    pthread_mutex_lock(&lock);
    assert(state.memory == 0 && state.pinned == 0 && state.queues == 0);
    assert(state.registered == 0 && range_count == 0);
    state.context = false;
    pthread_mutex_unlock(&lock);
}

/* ---- memory: the size lies in front ---- */

#define HEAD 256u

static void *alloc(size_t size)
{
    char *p = aligned_alloc(HEAD, HEAD + (size + HEAD - 1) / HEAD * HEAD);
    assert(p != NULL);
    memcpy(p, &size, sizeof size);
    memset(p + HEAD, 0xa5, size);
    return p + HEAD;
}

static size_t release(void *data)
{
    size_t size;
    memcpy(&size, (char *)data - HEAD, sizeof size);
    free((char *)data - HEAD);
    return size;
}

static void add_range(void *data, size_t size, bool writable)
{
    assert(range_count < RANGES_MAX);
    ranges[range_count++] = (struct range){data, size, writable};
}

static void remove_range(const void *data)
{
    size_t i = 0;
    while (i < range_count && ranges[i].data != (const char *)data)
        i++;
    assert(i < range_count);
    ranges[i] = ranges[--range_count];
}

static bool reachable(const void *data, size_t size, bool write)
{
    bool found = false;
    pthread_mutex_lock(&lock);
    for (size_t i = 0; i < range_count && !found; i++) {
        const struct range *r = &ranges[i];
        size_t off = (size_t)((const char *)data - r->data);
        found = (const char *)data >= r->data && off < r->size &&
                size <= r->size - off && (r->writable || !write);
    }
    pthread_mutex_unlock(&lock);
    return found;
}

int qf_cuda_device_alloc(size_t size, void **out)
{
    pthread_mutex_lock(&lock);
    assert(state.context);
    int rc = alloc_rc;
    if (rc == 0)
        state.memory += size;
    pthread_mutex_unlock(&lock);
    if (rc == 0)
        *out = alloc(size);
    return rc;
}

void qf_cuda_device_free(void *data)
{
    size_t size = release(data);
    pthread_mutex_lock(&lock);
    state.memory -= size;
    pthread_mutex_unlock(&lock);
}

int qf_cuda_pinned_alloc(size_t size, void **out)
{
    *out = alloc(size);
    pthread_mutex_lock(&lock);
    assert(state.context);
    state.pinned += size;
    add_range(*out, size, true);
    pthread_mutex_unlock(&lock);
    return 0;
}

void qf_cuda_pinned_free(void *data)
{
    pthread_mutex_lock(&lock);
    remove_range(data);
    pthread_mutex_unlock(&lock);
    size_t size = release(data);
    pthread_mutex_lock(&lock);
    state.pinned -= size;
    pthread_mutex_unlock(&lock);
}

int qf_cuda_register(void *data, size_t size, bool read_only)
{
    pthread_mutex_lock(&lock);
    assert(state.context && size != 0);
    add_range(data, size, !read_only);
    state.registered++;
    state.registrations++;
    pthread_mutex_unlock(&lock);
    return 0;
}

void qf_cuda_unregister(void *data)
{
    pthread_mutex_lock(&lock);
    remove_range(data);
    state.registered--;
    pthread_mutex_unlock(&lock);
}

/* ---- queues ---- */

int qf_cuda_queue_new(qf_cuda_queue **out)
{
    *out = calloc(1, sizeof **out);
    assert(*out != NULL);
    pthread_mutex_lock(&lock);
    state.queues++;
    pthread_mutex_unlock(&lock);
    return 0;
}

void qf_cuda_queue_free(qf_cuda_queue *queue)
{
    if (queue == NULL)
        return;
    assert(queue->count == 0);
    free(queue);
    pthread_mutex_lock(&lock);
    state.queues--;
    pthread_mutex_unlock(&lock);
}

static struct op *add_op(qf_cuda_queue *queue, enum op_kind kind)
{
    assert(queue->count < OPS_MAX);
    struct op *op = &queue->ops[queue->count++];
    op->kind = kind;
    return op;
}

int qf_cuda_copy_in(qf_cuda_queue *queue, void *to_device, const void *from_host,
                    size_t size)
{
    if (!reachable(from_host, size, false))
        return -EIO;
    struct op *op = add_op(queue, COPY);
    op->to = to_device;
    op->from = from_host;
    op->size = size;
    return 0;
}

int qf_cuda_copy_out(qf_cuda_queue *queue, void *to_host, const void *from_device,
                     size_t size)
{
    if (!reachable(to_host, size, true))
        return -EIO;
    struct op *op = add_op(queue, COPY);
    op->to = to_host;
    op->from = from_device;
    op->size = size;
    return 0;
}

int qf_cuda_run(qf_cuda_queue *queue, const struct qf_cuda_launch *launch)
{
    assert(launch->count != 0 && launch->count <= QF_CUDA_LAUNCH_MAX);
    add_op(queue, RUN)->launch = *launch;
    pthread_mutex_lock(&lock);
    state.launches++;
    pthread_mutex_unlock(&lock);
    return 0;
}

static void run_item(const struct qf_cuda_launch *launch,
                     const struct qf_cuda_item *item)
{
    const struct qf_kernels *k = qf_kernels_for(qf_isa_detect());
    enum qf_dtype d = launch->dtype;
    size_t n = (size_t)item->elem_count;
    assert((uintptr_t)item->src % QF_CUDA_ALIGN == 0);
    char *x = malloc(n * qf_dtype_size(d));
    assert(x != NULL);
    k->cast[launch->src_dtype][d](item->src, n, x);
    size_t cols = (size_t)launch->cols;
    if (launch->codec == QF_CODEC_INT8) {
        for (size_t row = 0; row < n / cols; row++) {
            const char *from = x + row * cols * qf_dtype_size(d);
            item->floats[row] = 0;
            k->row_absmax[d](from, cols, &item->floats[row]);
            k->int8[d](from, cols, item->floats[row],
                       (int8_t *)item->codes + row * cols);
        }
    } else {
        (launch->codec == QF_CODEC_FP4 ? k->fp4 : k->nf4)[d](x, n, launch->blocksize,
                                                             item->codes, item->floats);
    }
    free(x);
}

int qf_cuda_wait(qf_cuda_queue *queue)
{
    for (size_t i = 0; i < queue->count; i++) {
        const struct op *op = &queue->ops[i];
        if (op->kind == COPY)
            memcpy(op->to, op->from, op->size);
        else
            for (uint32_t k = 0; k < op->launch.count; k++)
                run_item(&op->launch, &op->launch.items[k]);
    }
    queue->count = 0;
    return 0;
}
