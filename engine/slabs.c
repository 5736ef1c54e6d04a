/* SPDX-License-Identifier: Apache-2.0 */
/* Fresh pages cost as much as encoding into them, in faults for the most part; with
 * huge pages there are few. A device reaches host memory only where it is registered,
 * and registering costs a call of the driver. So both are done for 16 MiB at a time. A
 * slab is cut into units of 16 KiB, with a bit for each; a record takes the first run
 * of units that is long enough, in the slab of the lowest address that has one. Records
 * of all sizes share slabs that way, and the slabs at the end of the list run empty and
 * can be given back.
 *
 * Whether the pages are pinned at a given time is the backend's business: it unpins
 * them when it gives its device back, and pins them again when a record is encoded. A
 * backend that cannot pin a slab treats it as any memory.
 *
 * A slab is mapped, pinned, unpinned and unmapped with the lock let go. */
#include "engine/slabs.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define UNIT       ((size_t)16 << 10)
#define UNITS      (QF_SLAB_SIZE / UNIT)
#define HUGE_PAGE  ((size_t)2 << 20)
#define FIRST_ROOM 16

struct qf_slab {
    char *data;
    size_t free; /* units */
    bool taken[UNITS];
};

static size_t units_of(size_t size)
{
    return size == 0 ? 1 : (size + UNIT - 1) / UNIT;
}

/* ---- one slab ---- */

static struct qf_slab *slab_new(qf_backend *backend)
{
    struct qf_slab *slab = calloc(1, sizeof *slab);
    if (slab == NULL)
        return NULL;
    /* On a boundary of huge pages: fewer faults, and less to pin. */
    size_t size = QF_SLAB_SIZE + HUGE_PAGE;
    char *map =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        free(slab);
        return NULL;
    }
    size_t head = (HUGE_PAGE - (uintptr_t)map % HUGE_PAGE) % HUGE_PAGE;
    slab->data = map + head;
    slab->free = UNITS;
    if (head != 0)
        munmap(map, head);
    if (head != HUGE_PAGE)
        munmap(slab->data + QF_SLAB_SIZE, HUGE_PAGE - head);
    (void)madvise(slab->data, QF_SLAB_SIZE, MADV_HUGEPAGE);
    qf_backend_pin(backend, slab->data, QF_SLAB_SIZE);
    return slab;
}

static void slab_free(qf_backend *backend, struct qf_slab *slab)
{
    assert(slab->free == UNITS);
    qf_backend_unpin(backend, slab->data);
    munmap(slab->data, QF_SLAB_SIZE);
    free(slab);
}

/* The first of `count` free units in a row, which are taken; UNITS: there are none. */
static size_t take_units(struct qf_slab *slab, size_t count)
{
    if (slab->free < count)
        return UNITS;
    size_t run = 0;
    for (size_t i = 0; i < UNITS; i++) {
        run = slab->taken[i] ? 0 : run + 1;
        if (run < count)
            continue;
        size_t first = i + 1 - count;
        memset(&slab->taken[first], 1, count);
        slab->free -= count;
        return first;
    }
    return UNITS;
}

/* ---- the list; all of this with the lock held ---- */

/* How many slabs begin at `data` or before. */
static size_t slabs_until(const struct qf_slabs *slabs, const void *data)
{
    size_t low = 0;
    size_t high = slabs->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if ((uintptr_t)slabs->list[middle]->data <= (uintptr_t)data)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

static void *take_from_any(struct qf_slabs *slabs, size_t size)
{
    for (size_t i = 0; i < slabs->count; i++) {
        struct qf_slab *slab = slabs->list[i];
        bool was_empty = slab->free == UNITS;
        size_t first = take_units(slab, units_of(size));
        if (first == UNITS)
            continue;
        slabs->empty -= was_empty;
        return slab->data + first * UNIT;
    }
    return NULL;
}

static bool insert(struct qf_slabs *slabs, struct qf_slab *slab)
{
    if (slabs->count == slabs->capacity) {
        size_t capacity = slabs->capacity != 0 ? 2 * slabs->capacity : FIRST_ROOM;
        struct qf_slab **list = realloc(slabs->list, capacity * sizeof(*list));
        if (list == NULL)
            return false;
        slabs->list = list;
        slabs->capacity = capacity;
    }
    size_t at = slabs_until(slabs, slab->data);
    memmove(&slabs->list[at + 1], &slabs->list[at],
            (slabs->count - at) * sizeof *slabs->list);
    slabs->list[at] = slab;
    slabs->count++;
    slabs->empty++;
    return true;
}

static void remove_at(struct qf_slabs *slabs, size_t at)
{
    slabs->count--;
    slabs->empty--;
    memmove(&slabs->list[at], &slabs->list[at + 1],
            (slabs->count - at) * sizeof *slabs->list);
}

/* The last empty slab, taken out of the list, if there are too many: also by those that
 * several threads have mapped at the same time. Else NULL. */
static struct qf_slab *remove_excess(struct qf_slabs *slabs)
{
    if (slabs->empty <= QF_SLABS_EMPTY_MAX)
        return NULL;
    size_t at = slabs->count - 1;
    while (slabs->list[at]->free != UNITS)
        at--;
    struct qf_slab *slab = slabs->list[at];
    remove_at(slabs, at);
    slabs->mapped -= QF_SLAB_SIZE;
    return slab;
}

/* ---- contract ---- */

void qf_slabs_init(struct qf_slabs *slabs, qf_backend *backend, uint64_t limit)
{
    *slabs = (struct qf_slabs){.backend = backend, .limit = limit};
    pthread_mutex_init(&slabs->lock, NULL);
}

void qf_slabs_fini(struct qf_slabs *slabs)
{
    for (size_t i = 0; i < slabs->count; i++)
        slab_free(slabs->backend, slabs->list[i]);
    free(slabs->list);
    pthread_mutex_destroy(&slabs->lock);
}

void *qf_slabs_get(struct qf_slabs *slabs, size_t size)
{
    if (slabs->backend == NULL || size > QF_SLAB_RECORD_SIZE)
        return NULL;
    pthread_mutex_lock(&slabs->lock);
    void *data = take_from_any(slabs, size);
    bool more = data == NULL && slabs->mapped + QF_SLAB_SIZE <= slabs->limit;
    if (more)
        slabs->mapped += QF_SLAB_SIZE;
    pthread_mutex_unlock(&slabs->lock);
    if (!more)
        return data;
    struct qf_slab *slab = slab_new(slabs->backend);
    pthread_mutex_lock(&slabs->lock);
    bool ok = slab != NULL && insert(slabs, slab);
    if (ok)
        data = take_from_any(slabs, size);
    else
        slabs->mapped -= QF_SLAB_SIZE;
    pthread_mutex_unlock(&slabs->lock);
    if (slab != NULL && !ok)
        slab_free(slabs->backend, slab);
    return data;
}

bool qf_slabs_put(struct qf_slabs *slabs, void *data, size_t size)
{
    if (slabs->backend == NULL)
        return false;
    struct qf_slab *victim = NULL;
    pthread_mutex_lock(&slabs->lock);
    size_t at = slabs_until(slabs, data);
    struct qf_slab *slab = at != 0 ? slabs->list[at - 1] : NULL;
    size_t off = slab != NULL ? (size_t)((char *)data - slab->data) : QF_SLAB_SIZE;
    bool ours = off < QF_SLAB_SIZE;
    if (ours) {
        size_t count = units_of(size);
        assert(off % UNIT == 0 && off / UNIT + count <= UNITS);
        assert(slab->taken[off / UNIT] && slab->taken[off / UNIT + count - 1]);
        memset(&slab->taken[off / UNIT], 0, count);
        slab->free += count;
        slabs->empty += slab->free == UNITS;
        victim = remove_excess(slabs);
    }
    pthread_mutex_unlock(&slabs->lock);
    if (victim != NULL)
        slab_free(slabs->backend, victim);
    return ours;
}
