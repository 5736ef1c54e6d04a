/* SPDX-License-Identifier: Apache-2.0 */
/* What no single file can show: that the shards of a set agree with their index and
 * each other, that no file is in two sets that might decide differently about it, and
 * that the weights are not quantized already without the config saying so. */
#include <stdlib.h>
#include <string.h>

#include "base/path.h"
#include "ckpt/model_load.h"
#include "ckpt/printable.h"

static int compare_tensors(const void *a, const void *b)
{
    const struct qf_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

/* No tensor is in two shards. */
static int check_duplicates(struct qf_model_load *load, const struct qf_weight_set *set)
{
    size_t count = 0, n = 0;
    for (size_t i = 0; i < set->shard_count; i++)
        count += set->shards[i].header->tensor_count;
    const struct qf_tensor **all = calloc(count + 1, sizeof *all);
    if (all == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t k = 0; k < set->shards[i].header->tensor_count; k++)
            all[n++] = &set->shards[i].header->tensors[k];
    qsort(all, n, sizeof *all, compare_tensors);
    int rc = 0;
    for (size_t i = 1; i < n && rc == 0; i++)
        if (strcmp(all[i - 1]->name, all[i]->name) == 0)
            rc = qf_model_refuse(load, true, "%s: tensor '%s' is in two shards",
                                 qf_printable(set->index_name).text,
                                 qf_printable(all[i]->name).text);
    free(all);
    return rc;
}

static int check_index(struct qf_model_load *load, const struct qf_weight_set *set)
{
    for (size_t i = 0; i < set->index.entry_count; i++) {
        const struct qf_index_entry *entry = &set->index.entries[i];
        const struct qf_model_shard *shard = &set->shards[entry->shard];
        if (qf_shard_find(shard->header, entry->tensor) == NULL)
            return qf_model_refuse(load, true, "%s: tensor '%s' is not in %s",
                                   qf_printable(set->index_name).text,
                                   qf_printable(entry->tensor).text,
                                   qf_printable(shard->name).text);
    }
    return 0;
}

/* Names that only quantized checkpoints have, whatever their config says. */
static bool is_quantized_name(const char *name)
{
    static const char *const ends[] = {".qweight",       ".qzeros",
                                       ".SCB",           ".weight_packed",
                                       ".weight_format", ".weight_absmax",
                                       ".nested_absmax", ".W_q",
                                       ".weight._data"};
    for (size_t i = 0; i < sizeof ends / sizeof ends[0]; i++)
        if (qf_path_ends_with(name, ends[i]))
            return true;
    return strstr(name, ".quant_state.bitsandbytes__") != NULL;
}

/* A matrix of weights in 8 bits or less is quantized too (fp8, compressed-tensors). */
static bool is_quantized_weight(const struct qf_tensor *t)
{
    return t->rank >= 2 && t->size > 0 && qf_dtype_bits(t->dtype) <= 8 &&
           t->dtype != QF_BOOL && qf_path_ends_with(t->name, ".weight");
}

static int check_plain(struct qf_model_load *load, const struct qf_weight_set *set)
{
    for (size_t i = 0; i < set->shard_count; i++) {
        const struct qf_shard *header = set->shards[i].header;
        for (size_t k = 0; k < header->tensor_count; k++) {
            const struct qf_tensor *t = &header->tensors[k];
            if (is_quantized_name(t->name) || is_quantized_weight(t))
                return qf_model_refuse(
                    load, false, "already quantized (%s: tensor '%s' of dtype %s)",
                    qf_printable(set->shards[i].name).text, qf_printable(t->name).text,
                    qf_dtype_name(t->dtype));
        }
    }
    return 0;
}

struct use {
    const char *file;
    const struct qf_weight_set *set;
};

static int compare_uses(const void *a, const void *b)
{
    const struct use *x = a, *y = b;
    return strcmp(x->file, y->file);
}

/* A file may be in two sets only if it is all of both: what is decided about a tensor
 * depends on the other tensors of its set. */
static int check_shared(struct qf_model_load *load)
{
    const struct qf_model *model = load->model;
    size_t count = 0, n = 0;
    for (size_t i = 0; i < model->set_count; i++)
        count += model->sets[i].shard_count;
    struct use *uses = calloc(count + 1, sizeof *uses);
    if (uses == NULL)
        return -ENOMEM;
    for (size_t i = 0; i < model->set_count; i++)
        for (size_t k = 0; k < model->sets[i].shard_count; k++)
            uses[n++] = (struct use){model->sets[i].shards[k].name, &model->sets[i]};
    qsort(uses, n, sizeof *uses, compare_uses);
    int rc = 0;
    for (size_t i = 1; i < n && rc == 0; i++)
        if (strcmp(uses[i - 1].file, uses[i].file) == 0 &&
            (uses[i - 1].set->shard_count > 1 || uses[i].set->shard_count > 1))
            rc = qf_model_refuse(load, true, "%s: belongs to two sets of weights",
                                 qf_printable(uses[i].file).text);
    free(uses);
    return rc;
}

int qf_model_check_sets(struct qf_model_load *load)
{
    for (size_t i = 0; i < load->model->set_count; i++) {
        const struct qf_weight_set *set = &load->model->sets[i];
        int rc = set->index_name != NULL ? check_index(load, set) : 0;
        if (rc == 0 && !load->says_bnb)
            rc = check_plain(load, set);
        if (rc == 0 && set->shard_count > 1)
            rc = check_duplicates(load, set);
        if (rc != 0)
            return rc;
    }
    int rc = check_shared(load);
    return rc == 0 && load->says_bnb ? qf_model_dequantize(load) : rc;
}
