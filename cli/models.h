/* SPDX-License-Identifier: Apache-2.0 */
/* The models that a path on the command line means: one, or all below it. */
#ifndef QF_CLI_MODELS_H
#define QF_CLI_MODELS_H

#include <limits.h>

#include "base/err.h"
#include "ckpt/model.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The absolute directory in a store that `name` stands for: of a file its directory, of
 * a path in a mount its source. A negative errno when there is nothing of that name. */
int qf_models_path(const char *name, char out[PATH_MAX]) QF_MUST_CHECK;

struct qf_models_visitor {
    /* A directory with a checkpoint, quantizable or not. Takes the model. */
    void (*model)(void *arg, const char *path, struct qf_model *model);
    /* A directory that could not be looked at. */
    void (*failed)(void *arg, const char *path, int rc, const struct qf_err *err);
    void *arg;
};

/* Visits `path` (absolute) and all directories below it. root: of the whole filesystem.
 */
void qf_models_walk(const qf_root *root, const char *path,
                    const struct qf_models_visitor *visitor);

#ifdef __cplusplus
}
#endif
#endif
