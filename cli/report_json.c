/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <string.h>

#include "cli/report.h"

static void string(struct qf_buf *out, const char *text)
{
    qf_buf_append_json(out, text, strlen(text));
}

static const char *kind_name(enum qf_model_kind kind)
{
    switch (kind) {
    case QF_MODEL_TRANSFORMERS:
        return "transformers";
    case QF_MODEL_DIFFUSERS:
        return "diffusers";
    case QF_MODEL_NONE:
        break;
    }
    return "none";
}

static void print_tensor(void *arg, const struct qf_layout_tensor *tensor,
                         const struct qf_decision *decision, uint64_t bytes_out)
{
    struct qf_buf *out = arg;
    if (out->size > 0 && out->data[out->size - 1] == '}')
        qf_buf_append_str(out, ", ");
    qf_buf_append_str(out, "{\"name\": ");
    string(out, tensor->src->name);
    qf_buf_appendf(out, ", \"dtype\": \"%s\", \"shape\": [",
                   qf_dtype_name(tensor->src->dtype));
    for (uint32_t d = 0; d < tensor->src->rank; d++)
        qf_buf_appendf(out, "%s%" PRIu64, d != 0 ? ", " : "", tensor->src->shape[d]);
    qf_buf_appendf(out, "], \"quantized\": %s, \"reason\": ",
                   tensor->plan != NULL ? "true" : "false");
    string(out, qf_reason_text(decision->reason));
    if (tensor->plan == NULL)
        qf_buf_appendf(out, ", \"dtype_out\": \"%s\"",
                       qf_dtype_name(tensor->out_dtype));
    qf_buf_appendf(out, ", \"bytes_in\": %" PRIu64 ", \"bytes_out\": %" PRIu64 "}",
                   qf_report_stored(tensor->src), bytes_out);
}

static void print_reasons(const struct qf_report_view *report, struct qf_buf *out)
{
    const char *comma = "";
    qf_buf_append_str(out, ", \"reasons\": {");
    for (int i = 0; i < QF_REASON_COUNT; i++) {
        const struct qf_report_reason *reason = &report->reasons[i];
        if (reason->count == 0)
            continue;
        qf_buf_append_str(out, comma);
        string(out, qf_reason_text((enum qf_reason)i));
        qf_buf_appendf(out,
                       ": {\"tensors\": %zu, \"bytes_in\": %" PRIu64
                       ", \"bytes_out\": %" PRIu64 "}",
                       reason->count, reason->bytes_in, reason->bytes_out);
        comma = ", ";
    }
    qf_buf_append_str(out, "}");
}

static void print_skip(const struct qf_policy *policy, struct qf_buf *out)
{
    qf_buf_append_str(out, ", \"skip_modules\": [");
    for (size_t i = 0; i < policy->skip_count; i++) {
        qf_buf_append_str(out, i != 0 ? ", " : "");
        string(out, policy->skip[i]);
    }
    qf_buf_append_str(out, "]");
}

static void print_view(const struct qf_variant *variant, bool tensors,
                       struct qf_buf *out)
{
    qf_buf_append_str(out, "{\"view\": ");
    string(out, variant->view.name);
    if (variant->reason[0] != '\0') {
        qf_buf_append_str(out, ", \"passes_through\": true, \"reason\": ");
        string(out, variant->reason);
        qf_buf_append_str(out, "}");
        return;
    }
    struct qf_report_view report;
    qf_report_view_init(&report, variant);
    qf_buf_appendf(
        out,
        ", \"passes_through\": false, \"dtype\": \"%s\", \"bytes_in\": %" PRIu64
        ", \"bytes_out\": %" PRIu64,
        qf_dtype_torch_name(variant->policies[0].dtype), report.bytes_in,
        report.bytes_out);
    print_reasons(&report, out);
    print_skip(&variant->policies[0], out);
    if (tensors) {
        qf_buf_append_str(out, ", \"tensors\": [");
        qf_report_tensors(variant, print_tensor, out);
        qf_buf_append_str(out, "]");
    }
    qf_buf_append_str(out, "}");
}

void qf_report_json(const char *path, const struct qf_model *model,
                    const struct qf_variant *const *variants,
                    const struct qf_report_options *options, struct qf_buf *out)
{
    qf_buf_append_str(out, "{\"path\": ");
    string(out, path);
    qf_buf_appendf(out, ", \"kind\": \"%s\"", kind_name(model->kind));
    if (model->reason[0] != '\0') {
        qf_buf_append_str(out, ", \"passes_through\": true, \"reason\": ");
        string(out, model->reason);
    } else if (model->kind != QF_MODEL_NONE) {
        qf_buf_append_str(out, ", \"views\": [");
        for (size_t i = 0; i < options->view_count; i++) {
            qf_buf_append_str(out, i != 0 ? ", " : "");
            print_view(variants[i], options->tensors, out);
        }
        qf_buf_append_str(out, "]");
    }
    qf_buf_append_str(out, "}");
}
