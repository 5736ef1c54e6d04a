/* SPDX-License-Identifier: Apache-2.0 */
/* The JSON files of a view: config.json with its quantization_config spliced in, and
 * *.safetensors.index.json with every part (docs/FORMATS.md section 6). */
#ifndef QF_VIEW_SYNTH_H
#define QF_VIEW_SYNTH_H

#include <stddef.h>

#include "base/buf.h"
#include "base/err.h"
#include "ckpt/index.h"
#include "ckpt/model.h"
#include "view/layout.h"
#include "view/names.h"
#include "view/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The quantization_config object alone, one line. */
void qf_synth_quantization_config(const struct qf_view *view,
                                  const struct qf_policy *policy, struct qf_buf *out);
/* The model's config.json in this view. */
int qf_synth_config(const struct qf_model *model, const struct qf_view *view,
                    const struct qf_policy *policy, struct qf_buf *out,
                    struct qf_err *err) QF_MUST_CHECK;
/* The index of a weight set: layouts[i] belongs to set->shards[i]. */
int qf_synth_index(const struct qf_weight_set *set,
                   const struct qf_layout *const *layouts, struct qf_buf *out,
                   struct qf_err *err) QF_MUST_CHECK;

/* A tensor and the shard that holds it; both borrowed. */
struct qf_index_name {
    const char *tensor;
    const char *shard;
};

/* An index of these (which are put in the order of their names). Members of "metadata"
 * other than total_size are those of `text` (NULL: there is none). -EBADMSG: text is no
 * JSON object; -ENOMEM. */
int qf_synth_index_text(const char *text, size_t size, uint64_t bytes,
                        struct qf_index_name *names, size_t count,
                        struct qf_buf *out) QF_MUST_CHECK;

#ifdef __cplusplus
}
#endif
#endif
