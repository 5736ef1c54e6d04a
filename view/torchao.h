/* SPDX-License-Identifier: Apache-2.0 */
/* What TorchAO's loaders read from __metadata__: a record for each tensor of the model,
 * and the list of their names (docs/FORMATS.md section 8). Private to view/. */
#ifndef QF_VIEW_TORCHAO_H
#define QF_VIEW_TORCHAO_H

#include <stddef.h>

#include "base/err.h"
#include "ckpt/model.h"
#include "view/names.h"
#include "view/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The entries that every shard of a set carries. */
struct qf_torchao {
    size_t count;
    struct qf_metadata_entry *entries; /* keys are borrowed from the set */
};

/* Of the tensors of all shards of the set. -ENOMEM. */
int qf_torchao_init(struct qf_torchao *out, const struct qf_weight_set *set,
                    const struct qf_view *view,
                    const struct qf_policy *policy) QF_MUST_CHECK;
void qf_torchao_fini(struct qf_torchao *torchao);

#ifdef __cplusplus
}
#endif
#endif
