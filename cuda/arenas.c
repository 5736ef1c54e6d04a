/* SPDX-License-Identifier: Apache-2.0 */
/* One sorted array under one lock. The lock is held while an arena is registered: that
 * happens once, and whoever else asks wants the same. An arena that is registered says
 * that the context lives, for giving the context up clears the arenas first. */
#include "cuda/arenas.h"

#include <assert.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "cuda/device.h"

enum state { NEW, REGISTERED, REFUSED };

struct qf_cuda_arena {
    char *data;
    size_t size;
    enum state state;
};

void qf_cuda_arenas_init(struct qf_cuda_arenas *arenas, int device,
                         struct qf_cuda_faults *faults, struct qf_cuda_turns *turns)
{
    *arenas =
        (struct qf_cuda_arenas){.faults = faults, .turns = turns, .device = device};
    pthread_mutex_init(&arenas->lock, NULL);
}

void qf_cuda_arenas_fini(struct qf_cuda_arenas *arenas)
{
    free(arenas->list);
    pthread_mutex_destroy(&arenas->lock);
}

/* Index of the first arena that begins after data. */
static size_t upper_bound(const struct qf_cuda_arenas *arenas, const void *data)
{
    size_t low = 0;
    size_t high = arenas->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)arenas->list[middle].data <= (uintptr_t)data)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static bool make_place(struct qf_cuda_arenas *arenas)
{
    if (arenas->count < arenas->capacity)
        return true;
    size_t capacity = arenas->capacity != 0 ? 2 * arenas->capacity : 16;
    struct qf_cuda_arena *list = realloc(arenas->list, capacity * sizeof *arenas->list);
    if (list == NULL)
        return false;
    arenas->list = list;
    arenas->capacity = capacity;
    return true;
}

void qf_cuda_arenas_add(struct qf_cuda_arenas *arenas, void *data, size_t size)
{
    pthread_mutex_lock(&arenas->lock);
    if (size != 0 && make_place(arenas)) {
        size_t at = upper_bound(arenas, data);
        memmove(&arenas->list[at + 1], &arenas->list[at],
                (arenas->count - at) * sizeof *arenas->list);
        arenas->list[at] = (struct qf_cuda_arena){.data = data, .size = size};
        arenas->count++;
    }
    pthread_mutex_unlock(&arenas->lock);
}

void qf_cuda_arenas_remove(struct qf_cuda_arenas *arenas, void *data)
{
    pthread_mutex_lock(&arenas->lock);
    size_t at = upper_bound(arenas, data);
    if (at != 0 && arenas->list[at - 1].data == (char *)data) {
        if (arenas->list[--at].state == REGISTERED &&
            qf_cuda_device_enter(arenas->device) == 0)
            qf_cuda_unregister(data);
        arenas->count--;
        memmove(&arenas->list[at], &arenas->list[at + 1],
                (arenas->count - at) * sizeof *arenas->list);
    }
    pthread_mutex_unlock(&arenas->lock);
}

bool qf_cuda_arenas_reach(struct qf_cuda_arenas *arenas, const void *data, size_t size)
{
    bool reached = false;
    pthread_mutex_lock(&arenas->lock);
    size_t at = upper_bound(arenas, data);
    struct qf_cuda_arena *a = at != 0 ? &arenas->list[at - 1] : NULL;
    size_t skip = a != NULL ? (size_t)((const char *)data - a->data) : 0;
    if (a != NULL && skip < a->size && size <= a->size - skip) {
        if (a->state == NEW) {
            a->state = REFUSED;
            qf_cuda_register_turn(arenas->turns);
            if (!qf_cuda_fault(arenas->faults, QF_CUDA_FAULT_REGISTER) &&
                qf_cuda_register(a->data, a->size, false) == 0)
                a->state = REGISTERED;
            qf_cuda_register_done(arenas->turns);
        }
        reached = a->state == REGISTERED;
    }
    pthread_mutex_unlock(&arenas->lock);
    return reached;
}

void qf_cuda_arenas_clear(struct qf_cuda_arenas *arenas)
{
    pthread_mutex_lock(&arenas->lock);
    for (size_t i = 0; i < arenas->count; i++) {
        if (arenas->list[i].state == REGISTERED)
            qf_cuda_unregister(arenas->list[i].data);
        arenas->list[i].state = NEW;
    }
    pthread_mutex_unlock(&arenas->lock);
}
