/* SPDX-License-Identifier: Apache-2.0 */
/* XXH3: 128 bits name things (cache keys, identities), 64 bits check them. Not
 * cryptographic: it guards against accidents, not against enemies. */
#ifndef QF_BASE_HASH_H
#define QF_BASE_HASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

struct qf_hash128 {
    uint64_t low;
    uint64_t high;
};

uint64_t qf_hash64(const void *data, size_t size);
struct qf_hash128 qf_hash128(const void *data, size_t size);

static inline bool qf_hash128_eq(struct qf_hash128 a, struct qf_hash128 b)
{
    return a.low == b.low && a.high == b.high;
}

#ifdef __cplusplus
}
#endif
#endif
