/* SPDX-License-Identifier: Apache-2.0 */
/* What a model becomes: `quantfs info`. Facts are gathered once and printed as text or
 * as JSON. */
#ifndef QF_CLI_REPORT_H
#define QF_CLI_REPORT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/err.h"
#include "ckpt/model.h"
#include "view/variant.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qf_report_options {
    const struct qf_view *views;
    size_t view_count;
    bool tensors; /* one line for each tensor */
};

/* Tensors and bytes of one reason (struct qf_policy's) in one variant. */
struct qf_report_reason {
    size_t count;
    uint64_t bytes_in;  /* stored in the source */
    uint64_t bytes_out; /* in the view */
};

struct qf_report_view {
    const struct qf_variant *variant;
    uint64_t bytes_in; /* sizes of the shards' files */
    uint64_t bytes_out;
    struct qf_report_reason reasons[QF_REASON_COUNT];
};

/* Sums up a variant. */
void qf_report_view_init(struct qf_report_view *report,
                         const struct qf_variant *variant);
/* Bytes that the source's file has of a tensor. */
uint64_t qf_report_stored(const struct qf_tensor *tensor);
/* Calls `each` for every tensor: its output size, decision and source. */
void qf_report_tensors(const struct qf_variant *variant,
                       void (*each)(void *arg, const struct qf_layout_tensor *tensor,
                                    const struct qf_decision *decision,
                                    uint64_t bytes_out),
                       void *arg);

/* One model directory. path: as the user named it. */
void qf_report_text(const char *path, const struct qf_model *model,
                    const struct qf_variant *const *variants,
                    const struct qf_report_options *options, struct qf_buf *out);
void qf_report_json(const char *path, const struct qf_model *model,
                    const struct qf_variant *const *variants,
                    const struct qf_report_options *options, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
