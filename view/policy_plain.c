/* SPDX-License-Identifier: Apache-2.0 */
/* The policy of views that quantize nothing: every float tensor in one dtype, whether
 * it is stored so, in another or in codes. No loader has to be told of exceptions, so
 * there is no skip list, and nothing depends on the architecture but the orientation of
 * codes.
 */
#include <stdio.h>
#include <stdlib.h>

#include "view/policy_internal.h"

int qf_policy_check_turned(const struct qf_planner *p, const struct qf_tensor *t)
{
    struct qf_path path;
    if (t->coded == NULL || !qf_path_of_weight(t->name, &path) ||
        !qf_rules_may_turn(&p->rules, path))
        return 0;
    snprintf(p->out->reason, sizeof p->out->reason,
             "'%.200s' is the weight of a Conv1D module: bitsandbytes stores it turned "
             "over, and it would have to be turned back",
             t->name);
    return -ENOTSUP;
}

int qf_policy_plain(struct qf_planner *p, enum qf_dtype dtype)
{
    struct qf_policy *out = p->out;
    out->dtype = dtype;
    out->decisions = calloc(p->count + 1, sizeof *out->decisions);
    if (out->decisions == NULL)
        return -ENOMEM;
    out->count = p->count;
    for (size_t i = 0; i < p->count; i++) {
        const struct qf_tensor *t = p->tensors[i];
        int rc = qf_policy_check_turned(p, t);
        if (rc != 0)
            return rc;
        out->decisions[i] =
            (struct qf_decision){t->coded != NULL ? QF_REASON_DEQUANTIZED
                                                  : QF_REASON_PLAIN,
                                 qf_dtype_is_float(t->dtype) ? dtype : t->dtype, false};
    }
    return 0;
}
