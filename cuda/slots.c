/* SPDX-License-Identifier: Apache-2.0 */
/* Slots are made when they are needed and kept until the device is given back, so the
 * memory held follows what is read at the same time. When the device has no memory for
 * another slot, those there are shared; when it has none for the first, it is left
 * alone for a while. */
#include "cuda/slots.h"

#include <stdlib.h>
#include <time.h>

/* How long a device without memory is not asked again. */
#define RETRY_NS UINT64_C(1000000000)

void qf_cuda_count(struct qf_cuda_backend *cuda, uint64_t *counter, uint64_t n)
{
    pthread_mutex_lock(&cuda->stats_lock);
    *counter += n;
    pthread_mutex_unlock(&cuda->stats_lock);
}

uint64_t qf_cuda_now_ns(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

void qf_cuda_retry_later(struct qf_cuda_backend *cuda)
{
    pthread_mutex_lock(&cuda->lock);
    cuda->retry_ns = qf_cuda_now_ns() + RETRY_NS;
    pthread_mutex_unlock(&cuda->lock);
}

static void slot_free(struct qf_cuda_slot *slot)
{
    qf_cuda_queue_free(slot->queue);
    if (slot->in != NULL)
        qf_cuda_device_free(slot->in);
    if (slot->staging_in != NULL)
        qf_cuda_pinned_free(slot->staging_in);
    if (slot->staging_out != NULL)
        qf_cuda_pinned_free(slot->staging_out);
    free(slot);
}

static struct qf_cuda_slot *slot_new(struct qf_cuda_backend *cuda)
{
    struct qf_cuda_slot *slot = calloc(1, sizeof *slot);
    if (slot == NULL)
        return NULL;
    void *memory = NULL;
    int rc = qf_cuda_fault(&cuda->faults, QF_CUDA_FAULT_OOM) ? -ENOMEM : 0;
    if (rc == 0)
        rc = qf_cuda_device_alloc(QF_CUDA_SLOT_IN + QF_CUDA_SLOT_OUT, &memory);
    if (rc == 0) {
        slot->in = memory;
        slot->out = slot->in + QF_CUDA_SLOT_IN;
        rc = qf_cuda_queue_new(&slot->queue);
    }
    if (rc != 0) {
        slot_free(slot);
        return NULL;
    }
    return slot;
}

/* With the lock held, which is let go meanwhile. */
static struct qf_cuda_slot *make_slot(struct qf_cuda_backend *cuda)
{
    cuda->slot_count++;
    pthread_mutex_unlock(&cuda->lock);
    struct qf_cuda_slot *slot = slot_new(cuda);
    pthread_mutex_lock(&cuda->lock);
    if (slot == NULL) {
        cuda->slot_count--;
        cuda->retry_ns = qf_cuda_now_ns() + RETRY_NS;
        pthread_cond_broadcast(&cuda->changed);
    }
    return slot;
}

struct qf_cuda_slot *qf_cuda_slot_take(struct qf_cuda_backend *cuda, bool may_wait)
{
    struct qf_cuda_slot *slot = NULL;
    pthread_mutex_lock(&cuda->lock);
    while (!cuda->down) {
        slot = cuda->idle;
        if (slot != NULL) {
            cuda->idle = slot->next;
            break;
        }
        if (cuda->slot_count < cuda->slot_max && qf_cuda_now_ns() >= cuda->retry_ns) {
            slot = make_slot(cuda);
            if (slot != NULL)
                break;
            continue;
        }
        if (!may_wait || cuda->slot_count == 0)
            break;
        pthread_cond_wait(&cuda->changed, &cuda->lock);
    }
    pthread_mutex_unlock(&cuda->lock);
    return slot;
}

void qf_cuda_slot_give(struct qf_cuda_backend *cuda, struct qf_cuda_slot *slot)
{
    pthread_mutex_lock(&cuda->lock);
    slot->next = cuda->idle;
    cuda->idle = slot;
    pthread_cond_broadcast(&cuda->changed);
    pthread_mutex_unlock(&cuda->lock);
}

void qf_cuda_slots_clear(struct qf_cuda_backend *cuda)
{
    pthread_mutex_lock(&cuda->lock);
    struct qf_cuda_slot *slots = cuda->idle;
    cuda->idle = NULL;
    for (struct qf_cuda_slot *slot = slots; slot != NULL; slot = slot->next)
        cuda->slot_count--;
    pthread_mutex_unlock(&cuda->lock);
    while (slots != NULL) {
        struct qf_cuda_slot *next = slots->next;
        slot_free(slots);
        slots = next;
    }
}

int qf_cuda_slot_staging(struct qf_cuda_backend *cuda, char **buffer, size_t size)
{
    if (*buffer != NULL)
        return 0;
    if (qf_cuda_fault(&cuda->faults, QF_CUDA_FAULT_PINNED))
        return -ENOMEM;
    void *memory;
    int rc = qf_cuda_pinned_alloc(size, &memory);
    if (rc == 0)
        *buffer = memory;
    return rc;
}
