/* SPDX-License-Identifier: Apache-2.0 */
/* Groups of eight marks, about a cache line each; a full group forgets one. Never
 * emptied: the mark holds the value's serial and place, so an evicted and rewritten
 * value has another mark and is checked again by itself. */
#include "cache/verified.h"

#include <stdatomic.h>
#include <stdlib.h>

#define GROUP_MARKS 8u
#define COUNT_MIN   (UINT64_C(1) << 12)
#define COUNT_MAX   (UINT64_C(1) << 22)

struct group {
    _Atomic uint64_t marks[GROUP_MARKS]; /* 0: none */
};

struct qf_verified {
    uint64_t mask; /* groups, less one */
    struct group groups[];
};

qf_verified *qf_verified_new(uint64_t count)
{
    uint64_t places = COUNT_MIN;
    while (places < 2 * count && places < COUNT_MAX)
        places *= 2;
    uint64_t groups = places / GROUP_MARKS;
    /* calloc: a large table that is hardly used should not be touched. */
    qf_verified *set = calloc(1, sizeof *set + groups * sizeof set->groups[0]);
    if (set != NULL)
        set->mask = groups - 1;
    return set;
}

void qf_verified_free(qf_verified *set)
{
    free(set);
}

bool qf_verified_has(const qf_verified *set, uint64_t mark)
{
    const struct group *group = &set->groups[mark & set->mask];
    for (unsigned i = 0; i < GROUP_MARKS && mark != 0; i++) {
        if (atomic_load_explicit(&group->marks[i], memory_order_relaxed) == mark)
            return true;
    }
    return false;
}

void qf_verified_add(qf_verified *set, uint64_t mark)
{
    struct group *group = &set->groups[mark & set->mask];
    unsigned place = (unsigned)(mark >> 61); /* whose turn it is, if none is free */
    for (unsigned i = 0; i < GROUP_MARKS; i++) {
        if (atomic_load_explicit(&group->marks[i], memory_order_relaxed) == 0) {
            place = i;
            break;
        }
    }
    atomic_store_explicit(&group->marks[place], mark, memory_order_relaxed);
}
