/* SPDX-License-Identifier: Apache-2.0 */
/* One line a tensor and view, two lines of totals a view; for two views with 4-bit
 * codes one line a tensor, and one in total. What is not defined is empty; the SQNR of
 * what has no error is "inf". */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "cli/diff.h"

/* RFC 4180: in quotes, with quotes doubled, where a comma, quote or line end demands
 * it. */
static void append_field(struct qf_buf *out, const char *text)
{
    if (strpbrk(text, ",\"\r\n") == NULL) {
        qf_buf_append_str(out, text);
        return;
    }
    qf_buf_append_str(out, "\"");
    for (const char *c = text; *c != '\0'; c++) {
        if (*c == '"')
            qf_buf_append_str(out, "\"");
        qf_buf_append(out, c, 1);
    }
    qf_buf_append_str(out, "\"");
}

static void append_number(struct qf_buf *out, double value)
{
    qf_buf_append_str(out, ",");
    if (isinf(value))
        qf_buf_append_str(out, value > 0 ? "inf" : "-inf");
    else if (!isnan(value))
        qf_buf_appendf(out, "%.17g", value);
}

static void append_errors(struct qf_buf *out, uint64_t size, uint64_t elem_count,
                          const struct qf_errors *errors)
{
    qf_buf_appendf(out, ",%" PRIu64 ",%" PRIu64, elem_count, size);
    append_number(out, qf_diff_bits_per_weight(size, elem_count));
    append_number(out, qf_errors_mse(errors));
    append_number(out, errors->count != 0 ? errors->max_abs : NAN);
    append_number(out, qf_errors_sqnr_db(errors));
    append_number(out, qf_errors_cosine(errors));
    qf_buf_appendf(out, ",%" PRIu64 ",%" PRIu64, errors->source_not_finite,
                   errors->view_not_finite);
}

static void append_shape(struct qf_buf *out, const struct qf_tensor *tensor)
{
    qf_buf_appendf(out, ",%s,", qf_dtype_name(tensor->dtype));
    for (uint32_t d = 0; d < tensor->rank; d++)
        qf_buf_appendf(out, "%s%" PRIu64, d != 0 ? "x" : "", tensor->shape[d]);
}

/* The first fields; against: the other view of a pair. */
static void append_line(struct qf_buf *out, const struct qf_diff_model *model,
                        size_t view, const char *against, const char *tensor,
                        const char *kind)
{
    append_field(out, model->path);
    qf_buf_append_str(out, ",");
    append_field(out, model->compare->views[view].variant->view.name);
    qf_buf_append_str(out, ",");
    append_field(out, against);
    qf_buf_append_str(out, ",");
    append_field(out, tensor);
    qf_buf_appendf(out, ",%s", kind);
}

static void append_total(struct qf_buf *out, const struct qf_diff_model *model,
                         size_t view, const char *kind,
                         const struct qf_compare_sum *sum)
{
    append_line(out, model, view, "", "", kind);
    qf_buf_append_str(out, ",,");
    append_errors(out, sum->size, sum->elem_count, &sum->errors);
    qf_buf_append_str(out, ",\r\n");
}

static void append_view(struct qf_buf *out, const struct qf_diff_model *model,
                        size_t view)
{
    const struct qf_compare *compare = model->compare;
    for (size_t i = 0; i < compare->tensor_count; i++) {
        const struct qf_compare_tensor *tensor = &compare->tensors[i];
        const struct qf_compare_cell *cell = &tensor->cells[view];
        append_line(out, model, view, "", tensor->src->name,
                    qf_diff_kind_name(cell->kind));
        append_shape(out, tensor->src);
        append_errors(out, cell->size, tensor->elem_count, &cell->errors);
        qf_buf_append_str(out, ",\r\n");
    }
    append_total(out, model, view, "total of quantized",
                 &compare->views[view].quantized);
    append_total(out, model, view, "total of all", &compare->views[view].all);
}

static void append_differing(struct qf_buf *out, uint64_t codes, uint64_t differing)
{
    qf_buf_appendf(out, ",%" PRIu64 ",,,,,,,,,%" PRIu64 "\r\n", codes, differing);
}

static void append_pair(struct qf_buf *out, const struct qf_diff_model *model, size_t p)
{
    const struct qf_compare *compare = model->compare;
    const struct qf_compare_pair *pair = &compare->pairs[p];
    const char *against = compare->views[pair->b].variant->view.name;
    for (size_t i = 0; i < compare->tensor_count; i++) {
        const struct qf_compare_tensor *tensor = &compare->tensors[i];
        if (tensor->differing[p] == QF_COMPARE_NO_CODES)
            continue;
        append_line(out, model, pair->a, against, tensor->src->name, "codes");
        append_shape(out, tensor->src);
        append_differing(out, tensor->elem_count, tensor->differing[p]);
    }
    append_line(out, model, pair->a, against, "", "total of codes");
    qf_buf_append_str(out, ",,");
    append_differing(out, pair->code_count, pair->differing);
}

void qf_diff_csv(const struct qf_diff *diff, struct qf_buf *out)
{
    qf_buf_append_str(out, "model,view,against,tensor,kind,dtype,shape,elements,bytes,"
                           "bits_per_weight,mse,max_abs_error,sqnr_db,cosine,"
                           "nonfinite_source,nonfinite_view,codes_differing\r\n");
    for (size_t i = 0; i < diff->model_count; i++) {
        if (diff->models[i].compare == NULL)
            continue;
        for (size_t v = 0; v < diff->models[i].compare->view_count; v++)
            append_view(out, &diff->models[i], v);
        for (size_t p = 0; p < diff->models[i].compare->pair_count; p++)
            append_pair(out, &diff->models[i], p);
    }
}
