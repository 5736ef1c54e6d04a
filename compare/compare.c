/* SPDX-License-Identifier: Apache-2.0 */
/* Results: made empty from the layouts, filled by run.c, summed up here. */
#include <stdlib.h>

#include "compare/compare_internal.h"

static bool is_4bit(const struct qf_plan *plan)
{
    return plan != NULL && plan->spec.codec != QF_CODEC_INT8;
}

static bool same_map(enum qf_codec a, enum qf_codec b)
{
    return (a == QF_CODEC_FP4) == (b == QF_CODEC_FP4);
}

static size_t tensor_count_of(const struct qf_model *model)
{
    size_t count = 0;
    for (size_t i = 0; i < model->sets[0].shard_count; i++)
        count += model->sets[0].shards[i].header->tensor_count;
    return count;
}

uint64_t qf_compare_work(const struct qf_model *model)
{
    uint64_t size = 0;
    for (size_t i = 0; i < model->sets[0].shard_count; i++) {
        const struct qf_shard *shard = model->sets[0].shards[i].header;
        for (size_t t = 0; t < shard->tensor_count; t++)
            if (qf_dtype_is_float(shard->tensors[t].dtype))
                size += shard->tensors[t].size;
    }
    return size;
}

static void add_pairs(struct qf_compare *compare)
{
    for (size_t a = 0; a < compare->view_count; a++) {
        for (size_t b = a + 1; b < compare->view_count; b++) {
            enum qf_codec of_a = compare->views[a].variant->view.codec;
            enum qf_codec of_b = compare->views[b].variant->view.codec;
            if (qf_codec_info(of_a)->family == QF_FAMILY_BNB_4BIT &&
                qf_codec_info(of_b)->family == QF_FAMILY_BNB_4BIT)
                compare->pairs[compare->pair_count++] =
                    (struct qf_compare_pair){.a = a,
                                             .b = b,
                                             .same_map = same_map(of_a, of_b)};
        }
    }
}

/* Tensors get their cells and shares when their shard is begun. */
int qf_compare_new(const struct qf_compare_input *input, struct qf_compare **out)
{
    struct qf_compare *compare = calloc(1, sizeof *compare);
    if (compare == NULL)
        return -ENOMEM;
    size_t count = input->variant_count, pairs = count * (count - 1) / 2;
    compare->views = calloc(count, sizeof *compare->views);
    compare->pairs = calloc(pairs + 1, sizeof *compare->pairs);
    compare->tensors =
        calloc(tensor_count_of(input->model) + 1, sizeof *compare->tensors);
    if (compare->views == NULL || compare->pairs == NULL || compare->tensors == NULL) {
        qf_compare_free(compare);
        return -ENOMEM;
    }
    compare->view_count = count;
    for (size_t i = 0; i < count; i++)
        compare->views[i].variant = input->variants[i];
    add_pairs(compare);
    *out = compare;
    return 0;
}

static void describe_cell(struct qf_compare_cell *cell,
                          const struct qf_layout_tensor *tensor)
{
    const struct qf_plan *plan = tensor->plan;
    if (plan == NULL) {
        bool cast = tensor->out_dtype != tensor->src->dtype;
        cell->kind = cast ? QF_COMPARE_CAST : QF_COMPARE_KEPT;
        cell->size = tensor->src->size;
        if (cast)
            cell->size = cell->size / qf_dtype_size(tensor->src->dtype) *
                         qf_dtype_size(tensor->out_dtype);
        return;
    }
    cell->kind = QF_COMPARE_QUANTIZED;
    for (uint32_t i = 0; i < plan->part_count; i++)
        if (!plan->parts[i].hidden)
            cell->size += plan->parts[i].size;
}

int qf_compare_add_tensor(struct qf_compare *compare,
                          const struct qf_layout *const *layouts, size_t index)
{
    const struct qf_tensor *src = layouts[0]->tensors[index].src;
    struct qf_compare_tensor *tensor = &compare->tensors[compare->tensor_count];
    *tensor = (struct qf_compare_tensor){.src = src, .elem_count = 1};
    for (uint32_t d = 0; d < src->rank; d++)
        tensor->elem_count *= src->shape[d]; /* checked when the header was read */
    tensor->compared = qf_dtype_is_float(src->dtype);
    tensor->cells = calloc(compare->view_count, sizeof *tensor->cells);
    tensor->differing = calloc(compare->pair_count + 1, sizeof *tensor->differing);
    compare->tensor_count++;
    if (tensor->cells == NULL || tensor->differing == NULL)
        return -ENOMEM;
    for (size_t v = 0; v < compare->view_count; v++)
        describe_cell(&tensor->cells[v], &layouts[v]->tensors[index]);
    for (size_t p = 0; p < compare->pair_count; p++) {
        const struct qf_compare_pair *pair = &compare->pairs[p];
        if (!is_4bit(layouts[pair->a]->tensors[index].plan) ||
            !is_4bit(layouts[pair->b]->tensors[index].plan))
            tensor->differing[p] = QF_COMPARE_NO_CODES;
    }
    return 0;
}

static void add_to(struct qf_compare_sum *sum, const struct qf_compare_tensor *tensor,
                   const struct qf_compare_cell *cell)
{
    sum->tensor_count++;
    sum->elem_count += tensor->elem_count;
    sum->size += cell->size;
    qf_errors_add(&sum->errors, &cell->errors);
}

void qf_compare_sum_up(struct qf_compare *compare)
{
    for (size_t i = 0; i < compare->tensor_count; i++) {
        const struct qf_compare_tensor *tensor = &compare->tensors[i];
        compare->elem_count += tensor->elem_count;
        compare->size += tensor->src->size;
        for (size_t v = 0; v < compare->view_count; v++) {
            const struct qf_compare_cell *cell = &tensor->cells[v];
            add_to(&compare->views[v].all, tensor, cell);
            if (cell->kind == QF_COMPARE_QUANTIZED)
                add_to(&compare->views[v].quantized, tensor, cell);
        }
        for (size_t p = 0; p < compare->pair_count; p++) {
            if (tensor->differing[p] == QF_COMPARE_NO_CODES)
                continue;
            compare->pairs[p].code_count += tensor->elem_count;
            compare->pairs[p].differing += tensor->differing[p];
        }
    }
}

void qf_compare_free(struct qf_compare *compare)
{
    if (compare == NULL)
        return;
    for (size_t i = 0; i < compare->tensor_count; i++) {
        free(compare->tensors[i].cells);
        free(compare->tensors[i].differing);
    }
    free(compare->tensors);
    free(compare->pairs);
    free(compare->views);
    free(compare);
}
