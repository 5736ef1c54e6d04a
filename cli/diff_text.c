/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ckpt/printable.h"
#include "cli/diff.h"
#include "cli/progress.h"

/* A tensor in a view that has changed it. */
struct row {
    const struct qf_compare_tensor *tensor;
    size_t view;
    double key; /* the worst is the smallest */
};

struct number {
    char text[24];
};

static struct number number(double value, int digits)
{
    struct number out;
    if (isnan(value))
        snprintf(out.text, sizeof out.text, "-");
    else if (isinf(value))
        snprintf(out.text, sizeof out.text, "exact");
    else
        snprintf(out.text, sizeof out.text, "%.*f", digits, value);
    return out;
}

static struct number small(double value)
{
    struct number out;
    snprintf(out.text, sizeof out.text, isnan(value) ? "-" : "%.3e", value);
    return out;
}

static void append_errors(struct qf_buf *out, uint64_t size, uint64_t elem_count,
                          const struct qf_errors *errors)
{
    qf_buf_appendf(out, "%10s  %8s  %10s  %10s  %8s  %9s", qf_bytes_text(size).text,
                   number(qf_diff_bits_per_weight(size, elem_count), 3).text,
                   small(qf_errors_mse(errors)).text,
                   small(errors->count != 0 ? errors->max_abs : NAN).text,
                   number(qf_errors_sqnr_db(errors), 2).text,
                   number(qf_errors_cosine(errors), 6).text);
}

static int name_width(const struct qf_compare *compare)
{
    size_t width = strlen("view");
    for (size_t v = 0; v < compare->view_count; v++) {
        size_t n = strlen(compare->views[v].variant->view.name);
        width = n > width ? n : width;
    }
    return (int)width;
}

/* ---- totals ---- */

static void append_total(struct qf_buf *out, const char *name, int width,
                         const char *over, const struct qf_compare_sum *sum)
{
    qf_buf_appendf(out, "  %-*s  %-9s  %7" PRIu64 "  ", width, name, over,
                   sum->tensor_count);
    append_errors(out, sum->size, sum->elem_count, &sum->errors);
    qf_buf_append_str(out, "\n");
}

static void append_not_finite(struct qf_buf *out, const struct qf_compare_view *view)
{
    const struct qf_errors *e = &view->all.errors;
    if (e->source_not_finite != 0 || e->view_not_finite != 0)
        qf_buf_appendf(out,
                       "  %s: %" PRIu64 " elements are NaN or infinite in the source, "
                       "%" PRIu64 " more in the view; they are in no number above\n",
                       view->variant->view.name, e->source_not_finite,
                       e->view_not_finite);
}

static void append_totals(struct qf_buf *out, const struct qf_compare *compare)
{
    int width = name_width(compare);
    qf_buf_appendf(out, "\n  %-*s  %-9s  %7s  %10s  %8s  %10s  %10s  %8s  %9s\n", width,
                   "view", "over", "tensors", "size", "bits/w", "MSE", "max error",
                   "SQNR dB", "cosine");
    for (size_t v = 0; v < compare->view_count; v++) {
        const struct qf_compare_view *view = &compare->views[v];
        const char *name = view->variant->view.name;
        append_total(out, name, width, "quantized", &view->quantized);
        append_total(out, name, width, "all", &view->all);
    }
    for (size_t v = 0; v < compare->view_count; v++)
        append_not_finite(out, &compare->views[v]);
}

static void append_pairs(struct qf_buf *out, const struct qf_compare *compare)
{
    for (size_t p = 0; p < compare->pair_count; p++) {
        const struct qf_compare_pair *pair = &compare->pairs[p];
        if (pair->code_count == 0)
            continue;
        qf_buf_appendf(out, "%s  codes that differ between %s and %s: %.4f %%%s\n",
                       p == 0 ? "\n" : "", compare->views[pair->a].variant->view.name,
                       compare->views[pair->b].variant->view.name,
                       100 * (double)pair->differing / (double)pair->code_count,
                       pair->same_map ? "" : " (they stand for other values)");
    }
}

/* ---- tensors ---- */

static double key_of(const struct qf_errors *errors, enum qf_diff_sort sort)
{
    double key = 0;
    if (sort == QF_DIFF_BY_SQNR)
        key = qf_errors_sqnr_db(errors);
    else if (sort == QF_DIFF_BY_MSE)
        key = -qf_errors_mse(errors);
    else if (sort == QF_DIFF_BY_MAX)
        key = -errors->max_abs;
    else if (sort == QF_DIFF_BY_COSINE)
        key = qf_errors_cosine(errors);
    return isnan(key) ? INFINITY : key;
}

static int by_key(const void *a, const void *b)
{
    const struct row *x = a, *y = b;
    if (x->key != y->key)
        return x->key < y->key ? -1 : 1;
    int order = strcmp(x->tensor->src->name, y->tensor->src->name);
    return order != 0 ? order : (x->view > y->view) - (x->view < y->view);
}

static size_t collect(const struct qf_compare *compare, enum qf_diff_sort sort,
                      struct row *rows)
{
    size_t count = 0;
    for (size_t i = 0; i < compare->tensor_count; i++) {
        const struct qf_compare_tensor *tensor = &compare->tensors[i];
        for (size_t v = 0; v < compare->view_count; v++)
            if (tensor->cells[v].kind != QF_COMPARE_KEPT)
                rows[count++] =
                    (struct row){tensor, v, key_of(&tensor->cells[v].errors, sort)};
    }
    qsort(rows, count, sizeof *rows, by_key);
    return count;
}

static void append_rows(struct qf_buf *out, const struct qf_compare *compare,
                        const struct row *rows, size_t count, size_t all)
{
    int width = name_width(compare);
    qf_buf_appendf(out, "\n  %-*s  %10s  %8s  %10s  %10s  %8s  %9s  tensor", width,
                   "view", "size", "bits/w", "MSE", "max error", "SQNR dB", "cosine");
    if (count < all)
        qf_buf_appendf(out, " (%zu of %zu)", count, all);
    qf_buf_append_str(out, "\n");
    for (size_t i = 0; i < count; i++) {
        const struct qf_compare_tensor *tensor = rows[i].tensor;
        const struct qf_compare_cell *cell = &tensor->cells[rows[i].view];
        qf_buf_appendf(out, "  %-*s  ", width,
                       compare->views[rows[i].view].variant->view.name);
        append_errors(out, cell->size, tensor->elem_count, &cell->errors);
        qf_buf_appendf(out, "  %s%s\n", qf_printable(tensor->src->name).text,
                       cell->kind == QF_COMPARE_CAST ? " (cast)" : "");
    }
}

static void append_tensors(struct qf_buf *out, const struct qf_compare *compare,
                           enum qf_diff_sort sort, size_t top)
{
    struct row *rows =
        malloc((compare->tensor_count * compare->view_count + 1) * sizeof *rows);
    if (rows == NULL) {
        out->failed = true;
        return;
    }
    size_t count = collect(compare, sort, rows);
    append_rows(out, compare, rows, top != 0 && top < count ? top : count, count);
    free(rows);
}

void qf_diff_text(const struct qf_diff *diff, enum qf_diff_sort sort, size_t top,
                  struct qf_buf *out)
{
    for (size_t i = 0; i < diff->model_count; i++) {
        const struct qf_compare *compare = diff->models[i].compare;
        if (compare == NULL)
            continue;
        qf_buf_appendf(
            out, "%s%s: %zu tensors, %s, %s bits per weight\n",
            out->size != 0 ? "\n" : "", qf_printable(diff->models[i].path).text,
            compare->tensor_count, qf_bytes_text(compare->size).text,
            number(qf_diff_bits_per_weight(compare->size, compare->elem_count), 3)
                .text);
        append_totals(out, compare);
        append_pairs(out, compare);
        append_tensors(out, compare, sort, top);
    }
}
