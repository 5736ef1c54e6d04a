/* SPDX-License-Identifier: Apache-2.0 */
/* The header of a safetensors file. Accepts exactly what the safetensors library
 * accepts (docs/FORMATS.md section 1); everything else is refused with a sentence that
 * says what and where. */
#ifndef QF_CKPT_SHARD_H
#define QF_CKPT_SHARD_H

#include <stddef.h>
#include <stdint.h>

#include "base/dtype.h"
#include "base/err.h"
#include "base/hash.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_tensor {
    const char *name; /* UTF-8, ended by NUL; owned by the shard */
    enum qf_dtype dtype;
    uint32_t rank;
    const uint64_t *shape; /* rank values; owned by the shard */
    uint64_t off;          /* from the beginning of the file, in bytes */
    uint64_t size;         /* bytes */
    /* NULL: the file has these very bytes. Else they are computed of what it has, of
     * which the first lies at `off` (ckpt/bnb.h). */
    const struct qf_coded *coded;
};

struct qf_metadata_entry {
    const char *key; /* owned by the shard */
    const char *value;
};

/* Immutable after parsing; read from any thread. */
struct qf_shard {
    uint64_t file_size;
    uint64_t data_off;             /* 8 + N */
    struct qf_hash128 header_hash; /* of the 8 + N bytes */
    size_t tensor_count;
    const struct qf_tensor *tensors; /* in the order of their data */
    size_t metadata_count;
    const struct qf_metadata_entry *metadata; /* in the order of the text */
    /* What the file has, where `tensors` are made of it; else NULL. Owned. */
    struct qf_shard *stored;
    void *arena; /* private: owns all of the above */
};

/* N from the first 8 bytes, checked against the file's size and the limit. */
int qf_shard_header_size(const void *first8, uint64_t file_size, uint64_t *header_size,
                         struct qf_err *err) QF_MUST_CHECK;
/* Parses the first 8 + N bytes of a file of `file_size` bytes. -EBADMSG with the
 * sentence for anything malformed, -ENOMEM. Returns owned. */
int qf_shard_parse(const void *header, size_t size, uint64_t file_size,
                   struct qf_shard **out, struct qf_err *err) QF_MUST_CHECK;
/* A shard that shows `tensors` in place of those that are stored. Takes, when it
 * succeeds, `stored`, which their names and shapes may point into, `tensors` and
 * `owned` (free(); may be NULL). -ENOMEM. */
int qf_shard_derive(struct qf_shard *stored, struct qf_tensor *tensors, size_t count,
                    void *owned, struct qf_shard **out) QF_MUST_CHECK;
/* NULL is allowed. */
void qf_shard_free(struct qf_shard *shard);
/* The tensor of this name, or NULL. */
const struct qf_tensor *qf_shard_find(const struct qf_shard *shard, const char *name);

#ifdef __cplusplus
}
#endif
#endif
