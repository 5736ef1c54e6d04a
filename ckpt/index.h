/* SPDX-License-Identifier: Apache-2.0 */
/* *.safetensors.index.json: which tensor is in which shard. */
#ifndef QF_CKPT_INDEX_H
#define QF_CKPT_INDEX_H

#include <stddef.h>

#include "base/err.h"
#include "base/json.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_index_entry {
    const char *tensor; /* borrowed from doc */
    size_t shard;       /* index in shards */
};

struct qf_index {
    qf_json *doc; /* owned; "metadata" is read from it */
    size_t shard_count;
    char **shards; /* distinct file names, in byte order; owned */
    size_t entry_count;
    struct qf_index_entry *entries; /* weight_map in the order of tensor names; owned */
};

/* Of several equal tensor names the last one counts. -EBADMSG with err: not JSON, no
 * weight_map object, a shard name that is no string, has a '/' or is "", "." or "..".
 */
int qf_index_parse(const char *text, size_t size, struct qf_index *out,
                   struct qf_err *err) QF_MUST_CHECK;
void qf_index_fini(struct qf_index *index);

#ifdef __cplusplus
}
#endif
#endif
