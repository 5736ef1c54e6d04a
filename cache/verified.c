/* SPDX-License-Identifier: Apache-2.0 */
/* Direct-mapped and never emptied: the mark holds the value's serial and place, so an
 * evicted and rewritten value has another mark and is checked again by itself. */
#include "cache/verified.h"

#include <stdatomic.h>
#include <stdlib.h>

#define COUNT_MIN (UINT64_C(1) << 12)
#define COUNT_MAX (UINT64_C(1) << 22)

struct qf_verified {
    uint64_t mask;
    _Atomic uint64_t marks[];
};

qf_verified *qf_verified_new(uint64_t count)
{
    uint64_t places = COUNT_MIN;
    while (places < count && places < COUNT_MAX)
        places *= 2;
    qf_verified *set = calloc(1, sizeof *set + places * sizeof set->marks[0]);
    if (set != NULL)
        set->mask = places - 1;
    return set;
}

void qf_verified_free(qf_verified *set)
{
    free(set);
}

bool qf_verified_has(const qf_verified *set, uint64_t mark)
{
    return mark != 0 && atomic_load_explicit(&set->marks[mark & set->mask],
                                             memory_order_relaxed) == mark;
}

void qf_verified_add(qf_verified *set, uint64_t mark)
{
    atomic_store_explicit(&set->marks[mark & set->mask], mark, memory_order_relaxed);
}
