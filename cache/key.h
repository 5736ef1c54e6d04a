/* SPDX-License-Identifier: Apache-2.0 */
/* Cache keys: XXH3-128 of everything that decides a record's bytes, and nothing that
 * does not (no path, no view name). */
#ifndef QF_CACHE_KEY_H
#define QF_CACHE_KEY_H

#include <stdint.h>

#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Filled by the engine, hashed as it lies: fixed widths, no padding. */
struct qf_key {
    struct qf_hash128 source; /* identity of the source file's contents */
    uint64_t tensor_off;      /* byte range of the tensor in the source file */
    uint64_t tensor_size;
    uint64_t rows; /* of the weight as it is quantized */
    uint64_t cols;
    uint32_t codec; /* the first that makes records of this data */
    uint32_t revision;
    uint32_t src_dtype;
    uint32_t dtype;      /* D */
    uint32_t blocksize;  /* scaled codecs: elements of a group */
    uint32_t transposed; /* bit 0; and QF_KEY_CODED */
    uint64_t chunk;      /* number of the record: chunk, or QF_KEY_SEAL + piece */
};

/* The source's bytes are not those of the file but computed of them. */
#define QF_KEY_CODED (UINT32_C(1) << 31)

/* Record numbers from here on are pieces of the seal record. */
#define QF_KEY_SEAL (UINT64_C(1) << 63)

struct qf_hash128 qf_key_hash(const struct qf_key *key);

#ifdef __cplusplus
}
#endif
#endif
