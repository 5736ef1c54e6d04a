/* SPDX-License-Identifier: Apache-2.0 */
/* JSON has no infinity and no NaN: what is not defined, and the SQNR of what has no
 * error at all, is null. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/diff.h"

const char *qf_diff_kind_name(enum qf_compare_kind kind)
{
    static const char *const names[] = {[QF_COMPARE_QUANTIZED] = "quantized",
                                        [QF_COMPARE_CAST] = "cast",
                                        [QF_COMPARE_KEPT] = "kept"};
    return names[kind];
}

double qf_diff_bits_per_weight(uint64_t size, uint64_t elem_count)
{
    return elem_count != 0 ? 8 * (double)size / (double)elem_count : NAN;
}

static void append_string(struct qf_buf *out, const char *name, const char *text)
{
    qf_buf_appendf(out, "\"%s\": ", name);
    qf_buf_append_json(out, text, strlen(text));
}

static void append_number(struct qf_buf *out, const char *name, double value)
{
    if (isfinite(value))
        qf_buf_appendf(out, ", \"%s\": %.17g", name, value);
    else
        qf_buf_appendf(out, ", \"%s\": null", name);
}

static void append_errors(struct qf_buf *out, const struct qf_errors *errors)
{
    append_number(out, "mse", qf_errors_mse(errors));
    append_number(out, "max_abs_error", errors->count != 0 ? errors->max_abs : NAN);
    append_number(out, "sqnr_db", qf_errors_sqnr_db(errors));
    append_number(out, "cosine", qf_errors_cosine(errors));
    append_number(out, "sum_squared_error", errors->error);
    append_number(out, "sum_squares", errors->xx);
    qf_buf_appendf(out,
                   ", \"compared\": %" PRIu64 ", \"nonfinite_source\": %" PRIu64
                   ", \"nonfinite_view\": %" PRIu64,
                   errors->count, errors->source_not_finite, errors->view_not_finite);
}

static void append_sum(struct qf_buf *out, const char *name,
                       const struct qf_compare_sum *sum)
{
    qf_buf_appendf(out,
                   ", \"%s\": {\"tensors\": %" PRIu64 ", \"elements\": %" PRIu64
                   ", \"bytes\": %" PRIu64,
                   name, sum->tensor_count, sum->elem_count, sum->size);
    append_number(out, "bits_per_weight",
                  qf_diff_bits_per_weight(sum->size, sum->elem_count));
    append_errors(out, &sum->errors);
    qf_buf_append_str(out, "}");
}

static void append_views(struct qf_buf *out, const struct qf_compare *compare)
{
    qf_buf_append_str(out, "\"views\": [");
    for (size_t v = 0; v < compare->view_count; v++) {
        qf_buf_append_str(out, v != 0 ? ",\n    {" : "\n    {");
        append_string(out, "name", compare->views[v].variant->view.name);
        append_sum(out, "quantized", &compare->views[v].quantized);
        append_sum(out, "all", &compare->views[v].all);
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "]");
}

static double share(uint64_t part, uint64_t whole)
{
    return whole != 0 ? (double)part / (double)whole : NAN;
}

static void append_pairs(struct qf_buf *out, const struct qf_compare *compare)
{
    qf_buf_append_str(out, "\"pairs\": [");
    for (size_t p = 0; p < compare->pair_count; p++) {
        const struct qf_compare_pair *pair = &compare->pairs[p];
        qf_buf_append_str(out, p != 0 ? ",\n    {" : "\n    {");
        append_string(out, "a", compare->views[pair->a].variant->view.name);
        qf_buf_append_str(out, ", ");
        append_string(out, "b", compare->views[pair->b].variant->view.name);
        qf_buf_appendf(out,
                       ", \"same_quant_map\": %s, \"codes\": %" PRIu64
                       ", \"codes_differing\": %" PRIu64,
                       pair->same_map ? "true" : "false", pair->code_count,
                       pair->differing);
        append_number(out, "share_differing", share(pair->differing, pair->code_count));
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "]");
}

static void append_tensor(struct qf_buf *out, const struct qf_compare *compare,
                          const struct qf_compare_tensor *tensor)
{
    append_string(out, "name", tensor->src->name);
    qf_buf_appendf(out, ", \"dtype\": \"%s\", \"shape\": [",
                   qf_dtype_name(tensor->src->dtype));
    for (uint32_t d = 0; d < tensor->src->rank; d++)
        qf_buf_appendf(out, "%s%" PRIu64, d != 0 ? ", " : "", tensor->src->shape[d]);
    qf_buf_appendf(out, "], \"elements\": %" PRIu64 ", \"bytes\": %" PRIu64,
                   tensor->elem_count, tensor->src->size);
    qf_buf_append_str(out, ", \"views\": [");
    for (size_t v = 0; v < compare->view_count; v++) {
        const struct qf_compare_cell *cell = &tensor->cells[v];
        qf_buf_appendf(out, "%s{\"kind\": \"%s\", \"bytes\": %" PRIu64,
                       v != 0 ? ",\n      " : "\n      ", qf_diff_kind_name(cell->kind),
                       cell->size);
        append_number(out, "bits_per_weight",
                      qf_diff_bits_per_weight(cell->size, tensor->elem_count));
        append_errors(out, &cell->errors);
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "], \"share_differing\": [");
    for (size_t p = 0; p < compare->pair_count; p++) {
        bool none = tensor->differing[p] == QF_COMPARE_NO_CODES;
        double value = none ? NAN : share(tensor->differing[p], tensor->elem_count);
        if (isfinite(value))
            qf_buf_appendf(out, "%s%.17g", p != 0 ? ", " : "", value);
        else
            qf_buf_append_str(out, p != 0 ? ", null" : "null");
    }
    qf_buf_append_str(out, "]");
}

static void append_model(struct qf_buf *out, const struct qf_diff_model *model)
{
    const struct qf_compare *compare = model->compare;
    append_string(out, "path", model->path);
    qf_buf_appendf(out, ", \"bytes\": %" PRIu64 ", \"elements\": %" PRIu64,
                   compare->size, compare->elem_count);
    append_number(out, "bits_per_weight",
                  qf_diff_bits_per_weight(compare->size, compare->elem_count));
    qf_buf_append_str(out, ",\n   ");
    append_views(out, compare);
    qf_buf_append_str(out, ",\n   ");
    append_pairs(out, compare);
    qf_buf_append_str(out, ",\n   \"tensors\": [");
    for (size_t i = 0; i < compare->tensor_count; i++) {
        qf_buf_append_str(out, i != 0 ? ",\n    {" : "\n    {");
        append_tensor(out, compare, &compare->tensors[i]);
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "]");
}

static void append_failures(struct qf_buf *out, const struct qf_diff *diff)
{
    const char *comma = "";
    qf_buf_append_str(out, "],\n \"skipped\": [");
    for (size_t i = 0; i < diff->skip_count; i++) {
        qf_buf_append_str(out, i != 0 ? ",\n  {" : "\n  {");
        append_string(out, "path", diff->skips[i].path);
        qf_buf_append_str(out, ", ");
        append_string(out, "view", diff->skips[i].view);
        qf_buf_append_str(out, ", ");
        append_string(out, "reason", diff->skips[i].reason);
        qf_buf_append_str(out, "}");
    }
    qf_buf_append_str(out, "],\n \"errors\": [");
    for (size_t i = 0; i < diff->model_count; i++) {
        if (diff->models[i].failure[0] == '\0')
            continue;
        qf_buf_appendf(out, "%s\n  {", comma);
        append_string(out, "path", diff->models[i].path);
        qf_buf_append_str(out, ", ");
        append_string(out, "error", diff->models[i].failure);
        qf_buf_append_str(out, "}");
        comma = ",";
    }
    qf_buf_append_str(out, "]}\n");
}

void qf_diff_json(const struct qf_diff *diff, struct qf_buf *out)
{
    const char *comma = "";
    qf_buf_appendf(out, "{\"seconds\": %.3f,\n \"models\": [", diff->seconds);
    for (size_t i = 0; i < diff->model_count; i++) {
        if (diff->models[i].compare == NULL)
            continue;
        qf_buf_appendf(out, "%s\n  {", comma);
        append_model(out, &diff->models[i]);
        qf_buf_append_str(out, "}");
        comma = ",";
    }
    append_failures(out, diff);
}
