/* SPDX-License-Identifier: Apache-2.0 */
/* Loaders put the metadata of all shards into one table, where the last shard's
 * "tensor_names" wins: so every shard has the records of all. The spelling is what
 * json.dumps makes of torchao's own tensors.
 *
 * transformers cannot parse a name without a dot and needs none of those; diffusers
 * takes the list for that of all tensors, and can. */
#include "view/torchao.h"

#include <stdlib.h>
#include <string.h>

#include "base/buf.h"

static const char plain[] = "{\"_type\": \"Tensor\"}";

static const char int8_kwargs[] =
    "{\"_type\": \"QuantizeTensorToInt8Kwargs\", \"_data\": {\"granularity\": "
    "{\"_type\": \"PerRow\", \"_data\": {\"dim\": -1}}, \"mapping_type\": {\"_type\": "
    "\"MappingType\", \"_data\": \"SYMMETRIC\"}, \"reduce_range\": false}}";

static const char float8_kwargs[] =
    "{\"_type\": \"QuantizeTensorToFloat8Kwargs\", \"_data\": {\"float8_dtype\": "
    "{\"_type\": \"torch.dtype\", \"_data\": \"float8_e4m3fn\"}, \"granularity\": "
    "{\"_type\": \"PerRow\", \"_data\": {\"dim\": -1}}, \"mm_config\": null, "
    "\"hp_value_lb\": null, \"hp_value_ub\": null, \"kernel_preference\": {\"_type\": "
    "\"KernelPreference\", \"_data\": \"AUTO\"}}}";

static const char float8_mm[] =
    "{\"_type\": \"Float8MMConfig\", \"_data\": {\"emulate\": false, "
    "\"use_fast_accum\": true, \"pad_inner_dim\": false}}";

static void append_int8(enum qf_codec codec, unsigned long long block,
                        const char *dtype, struct qf_buf *out)
{
    qf_buf_appendf(out,
                   "{\"_type\": \"Int8Tensor\", \"_data\": {\"act_quant_kwargs\": %s, "
                   "\"reduce_range\": false, \"block_size\": [1, %llu], \"dtype\": "
                   "{\"_type\": \"torch.dtype\", \"_data\": \"%s\"}}, "
                   "\"_tensor_data_names\": [\"zero_point\", \"qdata\", \"scale\"]}",
                   codec == QF_CODEC_AO_INT8DQ ? int8_kwargs : "null", block, dtype);
}

static void append_float8(enum qf_codec codec, unsigned long long block,
                          const char *dtype, struct qf_buf *out)
{
    bool dynamic = codec == QF_CODEC_AO_FLOAT8DQ_ROW;
    qf_buf_appendf(
        out,
        "{\"_type\": \"Float8Tensor\", \"_data\": {\"block_size\": [1, "
        "%llu], \"mm_config\": %s, \"act_quant_kwargs\": %s, "
        "\"kernel_preference\": {\"_type\": \"KernelPreference\", \"_data\": "
        "\"AUTO\"}, \"dtype\": {\"_type\": \"torch.dtype\", \"_data\": "
        "\"%s\"}}, \"_tensor_data_names\": [\"qdata\", \"scale\"]}",
        block, dynamic ? float8_mm : "null", dynamic ? float8_kwargs : "null", dtype);
}

static void append_record(const struct qf_tensor *tensor, const struct qf_view *view,
                          enum qf_dtype dtype, struct qf_buf *out)
{
    unsigned long long block = view->group != 0 ? view->group : tensor->shape[1];
    const char *name = qf_dtype_torch_name(dtype);
    if (qf_codec_info(view->codec)->scaled == QF_SCALED_I8_MUL)
        append_int8(view->codec, block, name, out);
    else
        append_float8(view->codec, block, name, out);
}

/* Takes what is in the buffer as an entry's value. */
static int add_entry(struct qf_torchao *t, const char *key, struct qf_buf *value)
{
    qf_buf_append(value, "", 1);
    char *text = qf_buf_take(value, NULL);
    if (text == NULL)
        return -ENOMEM;
    t->entries[t->count++] = (struct qf_metadata_entry){.key = key, .value = text};
    return 0;
}

static int add_tensor(struct qf_torchao *t, const struct qf_tensor *tensor,
                      const struct qf_view *view, enum qf_dtype dtype, bool quantized,
                      struct qf_buf *names)
{
    struct qf_buf record = {0};
    if (quantized)
        append_record(tensor, view, dtype, &record);
    else
        qf_buf_append_str(&record, plain);
    qf_buf_append_str(names, names->size != 1 ? ", " : "");
    qf_buf_append_json(names, tensor->name, strlen(tensor->name));
    int rc = add_entry(t, tensor->name, &record);
    qf_buf_fini(&record);
    return rc;
}

int qf_torchao_init(struct qf_torchao *out, const struct qf_weight_set *set,
                    const struct qf_view *view, const struct qf_policy *policy)
{
    struct qf_buf names = {0};
    const struct qf_decision *decision = policy->decisions;
    int rc = 0;
    *out = (struct qf_torchao){0};
    out->entries = calloc(policy->count + 1, sizeof *out->entries);
    if (out->entries == NULL)
        return -ENOMEM;
    qf_buf_append_str(&names, "[");
    for (size_t i = 0; i < set->shard_count; i++)
        for (size_t k = 0; rc == 0 && k < set->shards[i].header->tensor_count; k++) {
            const struct qf_tensor *tensor = &set->shards[i].header->tensors[k];
            bool quantized = decision++->reason == QF_REASON_QUANTIZED;
            if (policy->diffusers || strchr(tensor->name, '.') != NULL)
                rc = add_tensor(out, tensor, view, policy->dtype, quantized, &names);
        }
    qf_buf_append_str(&names, "]");
    if (rc == 0)
        rc = add_entry(out, "tensor_names", &names);
    qf_buf_fini(&names);
    if (rc != 0)
        qf_torchao_fini(out);
    return rc;
}

void qf_torchao_fini(struct qf_torchao *torchao)
{
    for (size_t i = 0; i < torchao->count; i++)
        free((char *)torchao->entries[i].value);
    free(torchao->entries);
    *torchao = (struct qf_torchao){0};
}
