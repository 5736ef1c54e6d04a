/* SPDX-License-Identifier: Apache-2.0 */
/* GGUF files in the tree: each is in its model's directory, where the store has no file
 * of that name, in place of the weights that it is made of. Private to fs/. */
#ifndef QF_FS_GGUF_H
#define QF_FS_GGUF_H

#include "fs/tree_private.h"

#ifdef __cplusplus
extern "C" {
#endif

/* As qf_tree_resolve, for a place at which the store has nothing. -ENOENT: neither has
 * the view. */
int qf_gguf_resolve(qf_tree *tree, const struct qf_place *place, bool fresh,
                    uint64_t id, struct qf_target *out) QF_MUST_CHECK;

/* The shards that the file is made of. */
const struct qf_weight_set *qf_gguf_set(const struct qf_target *target);
/* The path of shard `index`; owned, NULL without memory. */
char *qf_gguf_shard_path(const struct qf_place *place, const struct qf_target *target,
                         size_t index);
/* What cache keys know that shard by. */
int qf_gguf_shard_id(qf_tree *tree, const struct qf_place *place,
                     const struct qf_target *target, size_t index,
                     struct qf_hash128 *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
