/* SPDX-License-Identifier: Apache-2.0 */
#include <inttypes.h>
#include <stdio.h>

#include "cli/progress.h"
#include "cli/report.h"

static void print_tensor(void *arg, const struct qf_layout_tensor *tensor,
                         const struct qf_decision *decision, uint64_t bytes_out)
{
    struct qf_buf *out = arg;
    qf_buf_appendf(out, "    %-12s %-5s [", qf_reason_text(decision->reason),
                   qf_dtype_name(tensor->src->dtype));
    for (uint32_t d = 0; d < tensor->src->rank; d++)
        qf_buf_appendf(out, "%s%" PRIu64, d != 0 ? ", " : "", tensor->src->shape[d]);
    qf_buf_appendf(out, "] %s", tensor->src->name);
    if (tensor->plan == NULL && tensor->out_dtype != tensor->src->dtype)
        qf_buf_appendf(out, " -> %s", qf_dtype_name(tensor->out_dtype));
    qf_buf_appendf(out, ", %s -> %s\n",
                   qf_bytes_text(qf_report_stored(tensor->src)).text,
                   qf_bytes_text(bytes_out).text);
}

static void print_view(const struct qf_variant *variant, bool tensors,
                       struct qf_buf *out)
{
    qf_buf_appendf(out, "  %s: ", variant->view.name);
    if (variant->reason[0] != '\0') {
        qf_buf_appendf(out, "passes through as it is: %s\n", variant->reason);
        return;
    }
    struct qf_report_view report;
    qf_report_view_init(&report, variant);
    qf_buf_appendf(out, "%s -> %s (%.1f %%), computes in %s\n",
                   qf_bytes_text(report.bytes_in).text,
                   qf_bytes_text(report.bytes_out).text,
                   100.0 * (double)report.bytes_out /
                       (double)(report.bytes_in != 0 ? report.bytes_in : 1),
                   qf_dtype_torch_name(variant->policies[0].dtype));
    for (int i = 0; i < QF_REASON_COUNT; i++) {
        const struct qf_report_reason *reason = &report.reasons[i];
        if (reason->count != 0)
            qf_buf_appendf(out, "    %5zu %s: %s -> %s\n", reason->count,
                           i == QF_REASON_QUANTIZED ? "quantized"
                                                    : qf_reason_text((enum qf_reason)i),
                           qf_bytes_text(reason->bytes_in).text,
                           qf_bytes_text(reason->bytes_out).text);
    }
    if (tensors)
        qf_report_tensors(variant, print_tensor, out);
}

void qf_report_text(const char *path, const struct qf_model *model,
                    const struct qf_variant *const *variants,
                    const struct qf_report_options *options, struct qf_buf *out)
{
    qf_buf_appendf(out, "%s: ", path);
    if (model->reason[0] != '\0') {
        qf_buf_appendf(out, "passes through as it is: %s\n", model->reason);
        return;
    }
    if (model->kind == QF_MODEL_NONE) {
        qf_buf_append_str(out, "no model\n");
        return;
    }
    qf_buf_appendf(out, "%s\n",
                   model->kind == QF_MODEL_DIFFUSERS ? "diffusers component"
                                                     : "transformers model");
    for (size_t i = 0; i < options->view_count; i++)
        print_view(variants[i], options->tensors, out);
}
