/* SPDX-License-Identifier: Apache-2.0 */
/* How a value lies in LMDB: a head of 64 bytes (magic, version, key, size, checksum,
 * serial), the data, and zeros up to the least size that LMDB puts on pages of its own
 * (only there is a value aligned). */
#ifndef QF_CACHE_RECORD_H
#define QF_CACHE_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_RECORD_HEAD_SIZE 64u

struct qf_record {
    const void *data; /* borrowed from the stored bytes */
    size_t size;
    uint64_t checksum; /* XXH3-64 that the head promises */
    uint64_t serial;   /* differs between any two writes to one cache */
};

/* Bytes that a value of `size` takes; never under size_min. */
size_t qf_record_stored_size(size_t size, size_t size_min);

/* Fills `stored`, which has qf_record_stored_size(size, …) = stored_size bytes. */
void qf_record_write(void *stored, size_t stored_size, struct qf_hash128 key,
                     const void *data, size_t size, uint64_t serial);

/* Reads the head. False when it is not one, is not of this key or does not fit
 * stored_size. Does not look at the data. */
bool qf_record_parse(const void *stored, size_t stored_size, size_t size_min,
                     struct qf_hash128 key, struct qf_record *out);

/* Whether the data has the checksum that the head promises. */
bool qf_record_verify(const struct qf_record *record);

#ifdef __cplusplus
}
#endif
#endif
