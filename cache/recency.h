/* SPDX-License-Identifier: Apache-2.0 */
/* Which keys were read since the writer last asked: bounded, sharded, in memory, so
 * that a hit never waits for a write transaction. */
#ifndef QF_CACHE_RECENCY_H
#define QF_CACHE_RECENCY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_recency qf_recency;

struct qf_recent {
    struct qf_hash128 key;
    uint64_t tick; /* order of the last use within this process */
    uint64_t uses; /* since the last drain */
};

/* Keys that are remembered between two drains; more are forgotten. */
#define QF_RECENCY_COUNT_MAX 8192u

qf_recency *qf_recency_new(void); /* returns owned, NULL without memory */
void qf_recency_free(qf_recency *recency);
/* Notes a use. True for the first one after a drain: somebody should be told that
 * there is something to drain. */
bool qf_recency_note(qf_recency *recency, struct qf_hash128 key);
/* Whether there is anything to drain. */
bool qf_recency_pending(const qf_recency *recency);
/* Moves what was noted to `out` (room for QF_RECENCY_COUNT_MAX), oldest use first, each
 * key once. */
size_t qf_recency_drain(qf_recency *recency, struct qf_recent *out);

#ifdef __cplusplus
}
#endif
#endif
