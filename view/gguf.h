/* SPDX-License-Identifier: Apache-2.0 */
/* A model as one GGUF file: the tensors of all shards of its first weight set, under
 * the names that its loaders know (docs/FORMATS.md section 9). */
#ifndef QF_VIEW_GGUF_H
#define QF_VIEW_GGUF_H

#include <stdbool.h>

#include "base/err.h"
#include "ckpt/model.h"
#include "view/layout.h"
#include "view/names.h"
#include "view/policy.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The longest name of a directory's entry, with its NUL. */
#define QF_GGUF_FILE_NAME_SIZE 256

/* Whether views of this name show GGUF files. */
bool qf_gguf_is_view(const char *view);
/* "MODEL-Q8_0.gguf"; false: that is too long for a name. */
bool qf_gguf_file_name(const char *model, enum qf_codec codec,
                       char out[QF_GGUF_FILE_NAME_SIZE]);

/* Plans the file. layout->tensors[].source counts the shards of model->sets[0];
 * out->decisions are in the order of layout->tensors (reason QF_REASON_QUANTIZED: of
 * the view's type). -ENOTSUP, with the sentence, for a model that has no such file. The
 * model was loaded whole. */
int qf_gguf_build(const struct qf_model *model, const struct qf_view *view,
                  struct qf_layout **layout, struct qf_policy *out,
                  struct qf_err *err) QF_MUST_CHECK;

/* Classes of diffusers whose from_single_file takes such a file (gguf_classes.c). */
bool qf_gguf_is_diffusers_class(const char *name);

#ifdef __cplusplus
}
#endif
#endif
