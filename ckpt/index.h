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

struct qf_index {
    qf_json *doc; /* owned; "metadata" is read from it */
    size_t shard_count;
    char **shards; /* distinct file names, in byte order; owned */
};

/* -EBADMSG with err: not JSON, no weight_map object, a shard name that is no string,
 * has a '/' or is "", "." or "..". */
int qf_index_parse(const char *text, size_t size, struct qf_index *out,
                   struct qf_err *err) QF_MUST_CHECK;
void qf_index_fini(struct qf_index *index);

#ifdef __cplusplus
}
#endif
#endif
