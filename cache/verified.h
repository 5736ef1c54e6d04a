/* SPDX-License-Identifier: Apache-2.0 */
/* Which values this process has checked already: a fixed table of 64-bit marks. A mark
 * pushed out by another is only checked again. */
#ifndef QF_CACHE_VERIFIED_H
#define QF_CACHE_VERIFIED_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct qf_verified qf_verified;

/* Room for about `count` values; returns owned, NULL without memory. */
qf_verified *qf_verified_new(uint64_t count);
void qf_verified_free(qf_verified *set);
/* A mark names one write of one value at one place. Thread-safe, lock-free. */
bool qf_verified_has(const qf_verified *set, uint64_t mark);
void qf_verified_add(qf_verified *set, uint64_t mark);

#ifdef __cplusplus
}
#endif
#endif
