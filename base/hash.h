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

/* qf_hash64 of bytes that come bit by bit. */
typedef struct qf_hash64_stream qf_hash64_stream;
qf_hash64_stream *qf_hash64_stream_new(void); /* returns owned, NULL without memory */
void qf_hash64_stream_free(qf_hash64_stream *stream);
void qf_hash64_stream_add(qf_hash64_stream *stream, const void *data, size_t size);
/* Of what was added so far. */
uint64_t qf_hash64_stream_value(const qf_hash64_stream *stream);

static inline bool qf_hash128_eq(struct qf_hash128 a, struct qf_hash128 b)
{
    return a.low == b.low && a.high == b.high;
}

#ifdef __cplusplus
}
#endif
#endif
