/* SPDX-License-Identifier: Apache-2.0 */
/* A table of claims, each with the circumstances in which it is made. Sources are the
 * documents and tests of this repository, or the release whose code was read or run;
 * the versions that were run are those of docs/MATRIX.md. */
#include "view/loaders.h"

#include <assert.h>
#include <string.h>

#include "view/loaders_gguf.h"

/* What claims depend on. */
struct facts {
    bool diffusers;
    bool int8;
    bool fp4;
    bool tied;
    bool experts;
    bool other_blocks;   /* another block size than the default */
    bool other_settings; /* that, or another storage dtype */
    enum qf_codec codec;
    enum qf_family family;
    bool composite;   /* models inside the model */
    bool parallel;    /* more than one rank of tensor parallel */
    const char *type; /* model_type, or "" */
};

typedef bool applies_fn(const struct facts *f);

static bool always(const struct facts *f)
{
    (void)f;
    return true;
}

static bool is_transformers(const struct facts *f)
{
    return !f->diffusers;
}

static bool is_diffusers(const struct facts *f)
{
    return f->diffusers;
}

static bool is_tied(const struct facts *f)
{
    return !f->diffusers && f->tied;
}

static bool has_experts(const struct facts *f)
{
    return !f->diffusers && f->experts;
}

static bool has_other_blocks(const struct facts *f)
{
    return !f->diffusers && f->other_blocks;
}

static bool diffusers_with_settings(const struct facts *f)
{
    return f->diffusers && f->other_settings;
}

static bool is_mamba(const struct facts *f)
{
    return strcmp(f->type, "mamba") == 0;
}

static bool is_deepseek_int8(const struct facts *f)
{
    return f->int8 && strcmp(f->type, "deepseek_v3") == 0;
}

static bool is_4bit(const struct facts *f)
{
    return !f->diffusers && !f->int8;
}

static bool is_fp4(const struct facts *f)
{
    return !f->diffusers && f->fp4;
}

static bool is_parallel(const struct facts *f)
{
    return !f->diffusers && f->parallel;
}

static bool is_alone(const struct facts *f)
{
    return !f->diffusers && !f->parallel;
}

static bool is_torchao(const struct facts *f)
{
    return f->family == QF_FAMILY_TORCHAO;
}

static bool torchao_transformers(const struct facts *f)
{
    return is_torchao(f) && !f->diffusers;
}

static bool is_mamba_torchao_int8(const struct facts *f)
{
    return is_mamba(f) && is_torchao(f) &&
           qf_codec_info(f->codec)->scaled == QF_SCALED_I8_MUL;
}

static bool is_fp8(const struct facts *f)
{
    return f->family == QF_FAMILY_FP8;
}

static bool is_compressed(const struct facts *f)
{
    return f->family == QF_FAMILY_COMPRESSED_TENSORS;
}

static bool is_composite(const struct facts *f)
{
    return !f->diffusers && f->composite && f->family != QF_FAMILY_FP8;
}

static bool trains(const struct facts *f)
{
    return !f->diffusers && (f->codec == QF_CODEC_AO_INT8WO ||
                             f->codec == QF_CODEC_AO_FLOAT8WO || is_fp8(f));
}

static bool trains_untested(const struct facts *f)
{
    return !f->diffusers && !trains(f);
}

static bool in_vllm(const struct facts *f)
{
    return is_fp8(f) || is_compressed(f);
}

#define MATRIX   "docs/MATRIX.md"
#define SETTINGS "tests/loaders/overrides.py"
#define DEQUANT  "tests/loaders/dequant.py"

struct rule {
    applies_fn *applies;
    struct qf_loader_claim claim;
};

/* Of views that quantize nothing. */
static const struct rule plain[] = {
    {always,
     {QF_LOADER_SAFETENSORS, QF_LOADS_YES, "every shard is a safetensors file",
      DEQUANT}},
    {is_transformers,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_YES,
      "from_pretrained(PATH), as any checkpoint that is not quantized", DEQUANT}},
    {is_diffusers,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_NO, "it is a component of a diffusers pipeline",
      "config.json: _class_name"}},
    {is_diffusers,
     {QF_LOADER_DIFFUSERS, QF_LOADS_UNTESTED,
      "views that quantize nothing have not been tried with diffusers", DEQUANT}},
    {is_transformers,
     {QF_LOADER_DIFFUSERS, QF_LOADS_NO, "it is a model of transformers",
      "config.json: model_type"}},
    {always,
     {QF_LOADER_ACCELERATE, QF_LOADS_UNTESTED,
      "device maps have not been tried with views that quantize nothing", DEQUANT}},
    {is_transformers, {QF_LOADER_PEFT, QF_LOADS_YES, "LoRA trains on it", DEQUANT}},
    {is_diffusers,
     {QF_LOADER_PEFT, QF_LOADS_UNTESTED,
      "adapters have not been tried with components of diffusers", DEQUANT}},
    {always,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "has not been run on a view; nothing in this one is quantized", DEQUANT}},
};

static const struct rule bitsandbytes[] = {
    {always,
     {QF_LOADER_SAFETENSORS, QF_LOADS_YES, "every shard is a safetensors file",
      MATRIX ": safe_open"}},

    {is_transformers,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_YES,
      "from_pretrained(PATH), without a dtype and without a quantization_config",
      MATRIX ": the architectures loaded; docs/TESTING.md: the plans of all classes"}},
    {is_tied,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_YES,
      "the output head shares its weight with an embedding and is kept as it is",
      MATRIX ": llama-tied, gpt2"}},
    {has_experts,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_YES,
      "experts are kept as they are: the loader holds them as 3-D tensors, not as "
      "Linear modules",
      MATRIX ": mixtral, qwen3-moe"}},
    {has_other_blocks,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_YES,
      "the block size is in each tensor's quant_state; config.json has no word for it",
      SETTINGS ": blocksize"}},
    {is_mamba,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_NO,
      "loads, but its forward pass fails (on the CPU), without a view too",
      MATRIX ": mamba"}},
    {is_deepseek_int8,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_NO,
      "loads, but its forward pass fails in int8 (on the CPU), without a view too",
      MATRIX ": deepseek-v3"}},
    {is_diffusers,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_NO, "it is a component of a diffusers pipeline",
      "config.json: _class_name"}},

    {is_diffusers,
     {QF_LOADER_DIFFUSERS, QF_LOADS_IF,
      "there is a GPU: diffusers refuses bitsandbytes without one",
      MATRIX ": flux, sd3, unet-sdxl, pipeline; tests/matrix/diffusion.py"}},
    {diffusers_with_settings,
     {QF_LOADER_DIFFUSERS, QF_LOADS_UNTESTED,
      "another block size or storage dtype has not been tried with diffusers", MATRIX}},
    {is_transformers,
     {QF_LOADER_DIFFUSERS, QF_LOADS_NO, "it is a model of transformers",
      "config.json: model_type"}},

    {is_transformers,
     {QF_LOADER_ACCELERATE, QF_LOADS_IF,
      "all of it fits on the devices, by from_pretrained(device_map=…): offload to CPU "
      "or disk fails, without a view too",
      MATRIX ": device_map, dispatch, offload"}},
    {is_4bit,
     {QF_LOADER_ACCELERATE, QF_LOADS_IF,
      "it is not load_and_quantize_model, which takes the source and no pre-quantized "
      "4-bit weights",
      MATRIX ": load_and_quantize"}},
    {is_diffusers,
     {QF_LOADER_ACCELERATE, QF_LOADS_UNTESTED,
      "device maps have not been tried with components of diffusers", MATRIX}},

    {is_transformers,
     {QF_LOADER_PEFT, QF_LOADS_YES, "LoRA trains on it", MATRIX ": peft_train"}},
    {is_fp4,
     {QF_LOADER_PEFT, QF_LOADS_IF,
      "adapters are not merged: merging has not been tried in fp4",
      MATRIX ": peft_merge"}},
    {is_diffusers,
     {QF_LOADER_PEFT, QF_LOADS_UNTESTED,
      "adapters have not been tried with components of diffusers", MATRIX}},

    {is_parallel,
     {QF_LOADER_VLLM, QF_LOADS_NO,
      "it refuses pre-quantized bitsandbytes with tensor parallel > 1", "vLLM 0.28"}},
    {is_alone,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "has not been run on a view; it would have to be one rank, for it refuses "
      "pre-quantized bitsandbytes with tensor parallel > 1",
      "vLLM 0.28"}},
    {is_transformers,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "needs its bitsandbytes plugin from version 0.28 on", "vLLM 0.28"}},
    {is_diffusers,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "has not been tried with components of diffusers", "vLLM 0.28"}},
};

#define SCALED "tests/loaders/scaled.py"

static const struct rule scaled[] = {
    {always,
     {QF_LOADER_SAFETENSORS, QF_LOADS_YES, "every shard is a safetensors file",
      SCALED ": bytes"}},

    {torchao_transformers,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_IF,
      "torchao 0.16 or later is installed, and the class is the one that config.json "
      "names: torchao finds a weight by its name in the file",
      SCALED ": load, bytes, forward"}},
    {is_mamba_torchao_int8,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_NO,
      "loads, but its forward pass fails, without a view too", "torchao 0.18"}},
    {is_fp8,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_YES,
      "from_pretrained(PATH); without a GPU it computes with dequantized weights",
      SCALED ": fp8"}},
    {is_compressed,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_IF, "compressed-tensors is installed",
      SCALED ": load, bytes, forward"}},
    {is_composite,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_UNTESTED,
      "it is a model of several models, whose modules may be called otherwise than in "
      "the file; that has not been tried",
      SCALED}},
    {is_diffusers,
     {QF_LOADER_TRANSFORMERS, QF_LOADS_NO, "it is a component of a diffusers pipeline",
      "config.json: _class_name"}},

    {is_diffusers,
     {QF_LOADER_DIFFUSERS, QF_LOADS_IF,
      "torchao 0.16 or later is installed, and torch_dtype is the view's dtype",
      SCALED ": flux, pipeline"}},
    {is_transformers,
     {QF_LOADER_DIFFUSERS, QF_LOADS_NO, "it is a model of transformers",
      "config.json: model_type"}},

    {always,
     {QF_LOADER_ACCELERATE, QF_LOADS_UNTESTED,
      "device maps have not been tried with this format", SCALED}},

    {trains, {QF_LOADER_PEFT, QF_LOADS_YES, "LoRA trains on it", SCALED ": LoRA"}},
    {trains_untested,
     {QF_LOADER_PEFT, QF_LOADS_UNTESTED,
      "adapters have not been tried with this format", SCALED}},
    {is_diffusers,
     {QF_LOADER_PEFT, QF_LOADS_UNTESTED,
      "adapters have not been tried with components of diffusers", SCALED}},

    {in_vllm,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "by its code it takes the format, tensor parallel included; it has not been run "
      "on a view",
      "vLLM 0.28"}},
    {torchao_transformers,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "by its code it takes torchao's checkpoints; it has not been run on a view",
      "vLLM 0.28"}},
    {is_diffusers,
     {QF_LOADER_VLLM, QF_LOADS_UNTESTED,
      "has not been tried with components of diffusers", "vLLM 0.28"}},
};

_Static_assert(sizeof bitsandbytes / sizeof *bitsandbytes <= QF_LOADER_CLAIMS_MAX &&
                   sizeof scaled / sizeof *scaled <= QF_LOADER_CLAIMS_MAX,
               "claims fit");

/* A weight of an expert that is kept: one by one, or all of them in one tensor. */
static bool is_expert(const struct qf_tensor *tensor, enum qf_reason reason)
{
    return reason == QF_REASON_EXPERTS ||
           (tensor->rank == 3 && reason != QF_REASON_QUANTIZED &&
            strstr(tensor->name, ".experts.") != NULL);
}

static bool find_experts(const struct qf_variant *variant)
{
    for (size_t s = 0; s < variant->policy_count; s++) {
        const struct qf_weight_set *set = &variant->model->sets[s];
        const struct qf_decision *decision = variant->policies[s].decisions;
        for (size_t i = 0; i < set->shard_count; i++)
            for (size_t t = 0; t < set->shards[i].header->tensor_count; t++)
                if (is_expert(&set->shards[i].header->tensors[t], decision++->reason))
                    return true;
    }
    return false;
}

static bool find_composite(const qf_json *config)
{
    for (const qf_json *m = qf_json_first(config); m != NULL; m = qf_json_after(m))
        if (qf_json_is_object(m) && qf_json_get(m, "model_type") != NULL)
            return true;
    return false;
}

static struct facts gather(const struct qf_variant *variant,
                           const struct qf_loader_use *use)
{
    const struct qf_view *view = &variant->view;
    const qf_json *config = variant->model->config;
    const char *type = qf_json_string(qf_json_get(config, "model_type"));
    struct facts f = {
        .diffusers = variant->model->kind == QF_MODEL_DIFFUSERS,
        .codec = view->codec,
        .family = qf_codec_info(view->codec)->family,
        .composite = find_composite(config),
        .int8 = view->codec == QF_CODEC_INT8,
        .fp4 = view->codec == QF_CODEC_FP4,
        .tied = qf_json_is_true(qf_json_get(config, "tie_word_embeddings")),
        .experts = find_experts(variant),
        .parallel = use->tensor_parallel > 1,
        .type = type != NULL ? type : "",
    };
    f.other_blocks = !f.int8 && view->blocksize != QF_BLOCKSIZE_DEFAULT;
    f.other_settings = f.other_blocks || (!f.int8 && view->storage != QF_U8);
    return f;
}

void qf_loaders_judge(const struct qf_variant *variant, const struct qf_loader_use *use,
                      struct qf_loader_judgement *out)
{
    assert(variant->reason[0] == '\0');
    if (qf_codec_info(variant->view.codec)->family == QF_FAMILY_GGUF) {
        qf_loaders_judge_gguf(variant, out);
        return;
    }
    struct facts facts = gather(variant, use);
    enum qf_codec codec = variant->view.codec;
    const struct rule *rules = scaled;
    size_t count = sizeof scaled / sizeof *scaled;
    if (qf_view_is_default(codec)) {
        rules = bitsandbytes;
        count = sizeof bitsandbytes / sizeof *bitsandbytes;
    } else if (qf_codec_plain_dtype(codec) != QF_DTYPE_NONE) {
        rules = plain;
        count = sizeof plain / sizeof *plain;
    }
    *out = (struct qf_loader_judgement){0};
    for (size_t i = 0; i < count; i++) {
        const struct qf_loader_claim *claim = &rules[i].claim;
        if (!rules[i].applies(&facts))
            continue;
        out->claims[out->claim_count++] = claim;
        if (claim->loads > out->loads[claim->loader])
            out->loads[claim->loader] = claim->loads;
    }
}

const char *qf_loader_name(enum qf_loader loader)
{
    static const char *const names[QF_LOADER_COUNT] = {"safetensors", "transformers",
                                                       "diffusers",   "accelerate",
                                                       "peft",        "vllm"};
    return names[loader];
}

enum qf_loader qf_loader_find(const char *name)
{
    int i = 0;
    while (i < QF_LOADER_COUNT && strcmp(qf_loader_name((enum qf_loader)i), name) != 0)
        i++;
    return (enum qf_loader)i;
}

const char *qf_loads_name(enum qf_loads loads)
{
    static const char *const names[] = {"yes", "if", "untested", "no"};
    return names[loads];
}
