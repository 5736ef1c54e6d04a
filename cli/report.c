/* SPDX-License-Identifier: Apache-2.0 */
#include "cli/report.h"

#include "ckpt/bnb.h"

static uint64_t output_size(const struct qf_layout_tensor *tensor)
{
    if (tensor->plan == NULL) {
        unsigned from = qf_dtype_bits(tensor->src->dtype);
        return tensor->src->size / from * qf_dtype_bits(tensor->out_dtype) +
               tensor->src->size % from * qf_dtype_bits(tensor->out_dtype) / from;
    }
    uint64_t size = 0;
    for (uint32_t i = 0; i < tensor->plan->part_count; i++)
        if (!tensor->plan->parts[i].hidden)
            size += tensor->plan->parts[i].size;
    return size;
}

uint64_t qf_report_stored(const struct qf_tensor *tensor)
{
    return tensor->coded != NULL ? tensor->coded->stored_size : tensor->size;
}

static const struct qf_layout *layout_of(const struct qf_variant *variant,
                                         const char *shard)
{
    const struct qf_variant_file *file = qf_variant_find(variant, shard);
    return file != NULL ? file->layout : NULL;
}

void qf_report_tensors(const struct qf_variant *variant,
                       void (*each)(void *arg, const struct qf_layout_tensor *tensor,
                                    const struct qf_decision *decision,
                                    uint64_t bytes_out),
                       void *arg)
{
    const struct qf_variant_file *gguf =
        variant->file_count == 1 ? &variant->files[0] : NULL;
    if (gguf != NULL && gguf->kind == QF_VARIANT_GGUF) {
        for (size_t t = 0; t < gguf->layout->tensor_count; t++)
            each(arg, &gguf->layout->tensors[t], &variant->policies[0].decisions[t],
                 output_size(&gguf->layout->tensors[t]));
        return;
    }
    for (size_t s = 0; s < variant->policy_count; s++) {
        const struct qf_weight_set *set = &variant->model->sets[s];
        const struct qf_decision *decision = variant->policies[s].decisions;
        for (size_t i = 0; i < set->shard_count; i++) {
            const struct qf_layout *layout = layout_of(variant, set->shards[i].name);
            for (size_t t = 0; layout != NULL && t < layout->tensor_count; t++)
                each(arg, &layout->tensors[t], &decision[t],
                     output_size(&layout->tensors[t]));
            decision += set->shards[i].header->tensor_count;
        }
    }
}

static void add_tensor(void *arg, const struct qf_layout_tensor *tensor,
                       const struct qf_decision *decision, uint64_t bytes_out)
{
    struct qf_report_view *report = arg;
    struct qf_report_reason *reason = &report->reasons[decision->reason];
    reason->count++;
    reason->bytes_in += qf_report_stored(tensor->src);
    reason->bytes_out += bytes_out;
}

void qf_report_view_init(struct qf_report_view *report,
                         const struct qf_variant *variant)
{
    *report = (struct qf_report_view){.variant = variant};
    for (size_t i = 0; i < variant->file_count; i++) {
        const struct qf_variant_file *file = &variant->files[i];
        if (file->kind == QF_VARIANT_GGUF) {
            for (size_t k = 0; k < variant->model->sets[0].shard_count; k++)
                report->bytes_in += variant->model->sets[0].shards[k].header->file_size;
            report->bytes_out += file->size;
        }
        if (file->kind != QF_VARIANT_SHARD)
            continue;
        report->bytes_in += variant->files[i].source->header->file_size;
        report->bytes_out += variant->files[i].size;
    }
    if (variant->reason[0] == '\0')
        qf_report_tensors(variant, add_tensor, report);
}
