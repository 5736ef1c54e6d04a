/* SPDX-License-Identifier: Apache-2.0 */
/* The claims about views of GGUF files. Private to view/loaders.c. */
#ifndef QF_VIEW_LOADERS_GGUF_H
#define QF_VIEW_LOADERS_GGUF_H

#include "view/loaders.h"

#ifdef __cplusplus
extern "C" {
#endif

void qf_loaders_judge_gguf(const struct qf_variant *variant,
                           struct qf_loader_judgement *out);

#ifdef __cplusplus
}
#endif
#endif
