/* SPDX-License-Identifier: Apache-2.0 */
/* What `quantfs check` has found, and how it is printed. */
#ifndef QF_CLI_CHECK_H
#define QF_CLI_CHECK_H

#include <stdbool.h>
#include <stddef.h>

#include "base/buf.h"
#include "view/loaders.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A view that was asked for. */
struct qf_check_asked {
    char spelled[QF_VIEW_NAME_SIZE + 64]; /* longer ones cut off */
    struct qf_view view;
    char why[QF_ERR_TEXT_SIZE]; /* not "": there is no such view */
};

/* A model under one of them. */
struct qf_check_view {
    const struct qf_check_asked *asked;
    struct qf_variant *variant;
    struct qf_loader_judgement judgement; /* unless the model passes through */
    size_t quantized_count;
    bool good; /* quantized, and every loader that counts takes it */
};

struct qf_check_model {
    const char *path;
    const struct qf_model *model;
    size_t view_count;
    struct qf_check_view *views;
};

/* Calls `each` for every pattern of the view's settings that matches no module. */
void qf_check_unmatched(const struct qf_variant *variant,
                        void (*each)(void *arg, const char *setting,
                                     const char *pattern),
                        void *arg);

void qf_check_text(const struct qf_check_model *model, struct qf_buf *out);
void qf_check_json(const struct qf_check_model *model, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
