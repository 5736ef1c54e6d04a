/* SPDX-License-Identifier: Apache-2.0 */
/* quantization_config of each family, in the spelling that json.dump(sort_keys=True)
 * gives to the library's own, on one line. */
#include <string.h>

#include "view/synth.h"

static const char *bool_text(bool value)
{
    return value ? "true" : "false";
}

static void append_modules(const struct qf_policy *policy, struct qf_buf *out)
{
    qf_buf_append_str(out, "[");
    for (size_t i = 0; i < policy->skip_count; i++) {
        qf_buf_append_str(out, i != 0 ? ", " : "");
        qf_buf_append_json(out, policy->skip[i], strlen(policy->skip[i]));
    }
    qf_buf_append_str(out, "]");
}

/* ---- bitsandbytes ---- */

static const char *storage_name(const struct qf_view *view)
{
    const char *name = qf_dtype_torch_name(view->storage);
    return view->codec == QF_CODEC_INT8 || name == NULL ? "uint8" : name;
}

static const char *compute_name(const struct qf_view *view,
                                const struct qf_policy *policy)
{
    if (view->codec == QF_CODEC_INT8)
        return "float32";
    return qf_dtype_torch_name(view->compute != QF_DTYPE_NONE ? view->compute
                                                              : policy->dtype);
}

static void append_bitsandbytes(const struct qf_view *view,
                                const struct qf_policy *policy, struct qf_buf *out)
{
    bool int8 = view->codec == QF_CODEC_INT8;
    bool nf4 = view->codec == QF_CODEC_NF4 || view->codec == QF_CODEC_DQ;
    qf_buf_appendf(out, "{\"_load_in_4bit\": %s, \"_load_in_8bit\": %s",
                   bool_text(!int8), bool_text(int8));
    qf_buf_appendf(out, ", \"bnb_4bit_compute_dtype\": \"%s\"",
                   compute_name(view, policy));
    qf_buf_appendf(out, ", \"bnb_4bit_quant_storage\": \"%s\"", storage_name(view));
    qf_buf_appendf(out, ", \"bnb_4bit_quant_type\": \"%s\"", nf4 ? "nf4" : "fp4");
    qf_buf_appendf(out, ", \"bnb_4bit_use_double_quant\": %s",
                   bool_text(view->codec == QF_CODEC_DQ));
    qf_buf_append_str(out, ", \"llm_int8_enable_fp32_cpu_offload\": false"
                           ", \"llm_int8_has_fp16_weight\": false"
                           ", \"llm_int8_skip_modules\": ");
    append_modules(policy, out);
    qf_buf_append_str(out, ", \"llm_int8_threshold\": ");
    qf_buf_append_double(out, view->int8_threshold);
    qf_buf_appendf(out, ", \"load_in_4bit\": %s, \"load_in_8bit\": %s",
                   bool_text(!int8), bool_text(int8));
    qf_buf_append_str(out, ", \"quant_method\": \"bitsandbytes\"}");
}

/* ---- torchao ---- */

#define PER_ROW     "{\"_data\": {\"dim\": -1}, \"_type\": \"PerRow\", \"_version\": 1}"
#define DTYPE(name) "{\"_data\": \"" name "\", \"_type\": \"torch.dtype\"}"
#define E4M3        DTYPE("float8_e4m3fn")

static void append_granularity(const struct qf_view *view, struct qf_buf *out)
{
    if (view->group == 0)
        qf_buf_append_str(out, PER_ROW);
    else
        qf_buf_appendf(out,
                       "{\"_data\": {\"group_size\": %u}, \"_type\": \"PerGroup\", "
                       "\"_version\": 1}",
                       view->group);
}

/* The name of the config's class, and its members. */
static const char *append_torchao_data(const struct qf_view *view, struct qf_buf *out)
{
    switch (view->codec) {
    case QF_CODEC_AO_INT8WO:
        qf_buf_append_str(out, "{\"granularity\": ");
        append_granularity(view, out);
        qf_buf_append_str(out,
                          ", \"group_size\": null, \"set_inductor_config\": true}");
        return "Int8WeightOnlyConfig";
    case QF_CODEC_AO_INT8DQ:
        qf_buf_append_str(out, "{\"act_mapping_type\": {\"_data\": \"SYMMETRIC\", "
                               "\"_type\": \"MappingType\"}, \"granularity\": " PER_ROW
                               ", \"reduce_range\": false, \"set_inductor_config\": "
                               "true, \"weight_only_decode\": false}");
        return "Int8DynamicActivationInt8WeightConfig";
    case QF_CODEC_AO_FLOAT8DQ_ROW:
        qf_buf_append_str(
            out, "{\"activation_dtype\": " E4M3 ", \"activation_value_lb\": null, "
                 "\"activation_value_ub\": null, \"alg_id\": 0, \"granularity\": "
                 "[" PER_ROW ", " PER_ROW "], \"kernel_preference\": {\"_data\": "
                 "\"AUTO\", \"_type\": \"KernelPreference\"}, \"mm_config\": "
                 "{\"_data\": {\"emulate\": false, \"pad_inner_dim\": false, "
                 "\"use_fast_accum\": true}, \"_type\": \"Float8MMConfig\", "
                 "\"_version\": 1}, \"packing_format\": {\"_data\": \"PLAIN\", "
                 "\"_type\": \"Float8PackingFormat\"}, \"set_inductor_config\": true, "
                 "\"weight_dtype\": " E4M3 "}");
        return "Float8DynamicActivationFloat8WeightConfig";
    default:
        qf_buf_append_str(out, "{\"granularity\": ");
        append_granularity(view, out);
        qf_buf_append_str(out, ", \"set_inductor_config\": true, \"weight_dtype\": ");
        qf_buf_append_str(out, view->codec == QF_CODEC_AO_FLOAT8WO_E5M2
                                   ? DTYPE("float8_e5m2")
                                   : E4M3);
        qf_buf_append_str(out, "}");
        return "Float8WeightOnlyConfig";
    }
}

static void append_torchao(const struct qf_view *view, const struct qf_policy *policy,
                           struct qf_buf *out)
{
    bool llm = !policy->diffusers;
    qf_buf_append_str(out, llm ? "{\"include_input_output_embeddings\": false, " : "{");
    qf_buf_append_str(out, "\"modules_to_not_convert\": ");
    if (policy->skip_count != 0)
        append_modules(policy, out);
    else
        qf_buf_append_str(out, "null");
    qf_buf_append_str(out, ", \"quant_method\": \"torchao\", \"quant_type\": "
                           "{\"default\": {\"_data\": ");
    const char *type = append_torchao_data(view, out);
    qf_buf_appendf(out, ", \"_type\": \"%s\", \"_version\": 2}}", type);
    qf_buf_append_str(out, llm ? ", \"untie_embedding_weights\": false}" : "}");
}

/* ---- fp8 ---- */

static void append_fp8(const struct qf_view *view, const struct qf_policy *policy,
                       struct qf_buf *out)
{
    qf_buf_append_str(out, "{\"activation_scheme\": \"dynamic\", "
                           "\"modules_to_not_convert\": ");
    append_modules(policy, out);
    qf_buf_appendf(out, ", \"quant_method\": \"fp8\", \"weight_block_size\": [%u, %u]}",
                   view->group, view->group);
}

/* ---- compressed-tensors ---- */

/* How one kind of numbers is quantized. */
struct ct_args {
    unsigned bits;
    const char *type;
    const char *strategy;
    bool dynamic;
    unsigned group; /* 0: none */
};

static void append_args(const struct ct_args *args, struct qf_buf *out)
{
    if (args->bits == 0) {
        qf_buf_append_str(out, "null");
        return;
    }
    qf_buf_appendf(out,
                   "{\"actorder\": null, \"block_structure\": null, \"dynamic\": %s, "
                   "\"group_size\": ",
                   bool_text(args->dynamic));
    if (args->group != 0)
        qf_buf_appendf(out, "%u", args->group);
    else
        qf_buf_append_str(out, "null");
    qf_buf_appendf(out,
                   ", \"num_bits\": %u, \"observer\": %s, \"observer_kwargs\": {}, "
                   "\"strategy\": \"%s\", \"symmetric\": true, \"type\": \"%s\"}",
                   args->bits, args->dynamic ? "null" : "\"minmax\"", args->strategy,
                   args->type);
}

static void append_compressed_tensors(const struct qf_view *view,
                                      const struct qf_policy *policy,
                                      struct qf_buf *out)
{
    struct ct_args weights = {8, "int", "channel", false, view->group}, acts = {0};
    const char *format = "pack-quantized";
    switch (view->codec) {
    case QF_CODEC_CT_FP8:
        format = "float-quantized";
        weights.type = "float";
        acts = (struct ct_args){8, "float", "token", true, 0};
        break;
    case QF_CODEC_CT_W8A8:
        format = "int-quantized";
        acts = (struct ct_args){8, "int", "token", true, 0};
        break;
    default:
        weights.strategy = "group";
        weights.bits = view->codec == QF_CODEC_CT_W4A16 ? 4 : 8;
    }
    qf_buf_append_str(out,
                      "{\"config_groups\": {\"group_0\": {\"input_activations\": ");
    append_args(&acts, out);
    qf_buf_append_str(out, ", \"output_activations\": null, \"targets\": [\"Linear\"], "
                           "\"weights\": ");
    append_args(&weights, out);
    qf_buf_appendf(out,
                   "}}, \"format\": \"%s\", \"global_compression_ratio\": null, "
                   "\"ignore\": ",
                   format);
    append_modules(policy, out);
    qf_buf_append_str(out, ", \"kv_cache_scheme\": null, \"quant_method\": "
                           "\"compressed-tensors\", \"quantization_status\": "
                           "\"compressed\"}");
}

/* ---- */

void qf_synth_quantization_config(const struct qf_view *view,
                                  const struct qf_policy *policy, struct qf_buf *out)
{
    switch (qf_codec_info(view->codec)->family) {
    case QF_FAMILY_TORCHAO:
        append_torchao(view, policy, out);
        return;
    case QF_FAMILY_FP8:
        append_fp8(view, policy, out);
        return;
    case QF_FAMILY_COMPRESSED_TENSORS:
        append_compressed_tensors(view, policy, out);
        return;
    default:
        append_bitsandbytes(view, policy, out);
    }
}
