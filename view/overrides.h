/* SPDX-License-Identifier: Apache-2.0 */
/* Overrides: what a user says about a model against the defaults. They come from the
 * mount's policy file, from a quantfs.json beside the model, and from the view's own
 * name (view/names.h). The files have one format:
 *
 *   {
 *     "skip":  ["lm_head", "layers.0"],   modules to keep as they are
 *     "force": ["score"],                 output heads, modules of a VAE to quantize
 *     "only":  ["mlp"],                   modules to quantize, and no others
 *     "dtype": "bfloat16",                D, the model dtype
 *     "compute_dtype": "float16",         bnb_4bit_compute_dtype
 *     "quant_storage": "bfloat16",        bnb_4bit_quant_storage (uint8 or a float)
 *     "blocksize": 128,                   of 4-bit blocks: 64, 128, … 4096
 *     "group": 32,                        elements that share a scale: 16, 32, … 4096
 *     "int8_threshold": 6.0,              llm_int8_threshold
 *     "views": {"nf4": { … }}             the same keys, for the views of a codec, or
 *                                         for one view whose name has settings
 *   }
 *
 * Of single values, "only" included, the last one wins: policy file, quantfs.json,
 * name. Patterns of "skip" and "force" add up, and are added to what the policy decides
 * by itself, never put in its place. A pattern matches a module when its dotted
 * components match a run of the module's
 * ("q_proj", "layers.0", "layers.*.mlp"; '*' is any one component). */
#ifndef QF_VIEW_OVERRIDES_H
#define QF_VIEW_OVERRIDES_H

#include <stddef.h>

#include "base/err.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

#define QF_OVERRIDES_FILE         "quantfs.json"
#define QF_OVERRIDES_PATTERNS_MAX 1024

/* The view that `base` becomes under the overrides in `text`, and then again under the
 * settings of its own name; out's pattern lists contain those of base and are owned by
 * it: qf_view_fini. -EINVAL, with a sentence that names the key, for anything that is
 * not as above. text NULL: the name alone. */
int qf_overrides_apply(const struct qf_view *base, const char *text, size_t size,
                       struct qf_view *out, struct qf_err *err) QF_MUST_CHECK;
/* Whether the text is valid for every view there is. */
int qf_overrides_check(const char *text, size_t size, struct qf_err *err) QF_MUST_CHECK;
/* Frees what qf_overrides_apply made. */
void qf_view_fini(struct qf_view *view);

/* Whether a pattern of the list matches the module's name (`size` bytes). */
bool qf_patterns_match(const struct qf_patterns *patterns, const char *module,
                       size_t size);

#ifdef __cplusplus
}
#endif
#endif
