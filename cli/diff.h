/* SPDX-License-Identifier: Apache-2.0 */
/* Views compared with their sources, for people and for programs. Private to cli/. */
#ifndef QF_CLI_DIFF_H
#define QF_CLI_DIFF_H

#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "compare/compare.h"
#include "view/names.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A model below the path, in the views that quantize it. */
struct qf_diff_model {
    char *path;             /* owned */
    struct qf_model *model; /* owned */
    size_t variant_count;
    struct qf_variant *variants[QF_VIEWS_MAX]; /* owned */
    struct qf_compare *compare;     /* owned; NULL: not compared, or it failed */
    char failure[QF_ERR_TEXT_SIZE]; /* "" or why */
};

/* A view that does not change a model. */
struct qf_diff_skip {
    char *path; /* owned */
    char view[QF_VIEW_NAME_SIZE];
    char reason[QF_ERR_TEXT_SIZE];
};

struct qf_diff {
    size_t model_count;
    struct qf_diff_model *models;
    size_t skip_count;
    struct qf_diff_skip *skips;
    double seconds;
};

enum qf_diff_sort {
    QF_DIFF_BY_SQNR, /* the worst first, also below */
    QF_DIFF_BY_MSE,
    QF_DIFF_BY_MAX,
    QF_DIFF_BY_COSINE,
    QF_DIFF_BY_NAME
};

/* "quantized", "cast", "kept" */
const char *qf_diff_kind_name(enum qf_compare_kind kind);
/* NaN where there are no elements. */
double qf_diff_bits_per_weight(uint64_t size, uint64_t elem_count);

/* top: lines of tensors (0: all). */
void qf_diff_text(const struct qf_diff *diff, enum qf_diff_sort sort, size_t top,
                  struct qf_buf *out);
void qf_diff_json(const struct qf_diff *diff, struct qf_buf *out);
void qf_diff_csv(const struct qf_diff *diff, struct qf_buf *out);
/* One page that needs nothing else. */
void qf_diff_html(const struct qf_diff *diff, struct qf_buf *out);

#ifdef __cplusplus
}
#endif
#endif
