/* SPDX-License-Identifier: Apache-2.0 */
#include "view/loaders_gguf.h"

#include <string.h>

#define TEST "tests/loaders/gguf_views.py"

static const struct qf_loader_claim of_components[] = {
    {QF_LOADER_SAFETENSORS, QF_LOADS_NO, "the view has one GGUF file in place of them",
     "docs/FORMATS.md section 9"},
    {QF_LOADER_TRANSFORMERS, QF_LOADS_NO, "it is a component of a diffusers pipeline",
     "config.json: _class_name"},
    {QF_LOADER_DIFFUSERS, QF_LOADS_IF,
     "by CLASS.from_single_file(FILE, config=DIRECTORY, "
     "quantization_config=GGUFQuantizationConfig(…))",
     TEST},
    {QF_LOADER_ACCELERATE, QF_LOADS_UNTESTED, "nobody has tried", TEST},
    {QF_LOADER_PEFT, QF_LOADS_UNTESTED, "nobody has tried", TEST},
    {QF_LOADER_VLLM, QF_LOADS_NO, "it does not load components of diffusers",
     "vLLM 0.28"},
};

static const struct qf_loader_claim of_models[] = {
    {QF_LOADER_SAFETENSORS, QF_LOADS_NO, "the view has one GGUF file in place of them",
     "docs/FORMATS.md section 9"},
    {QF_LOADER_TRANSFORMERS, QF_LOADS_IF,
     "by from_pretrained(DIRECTORY, gguf_file=NAME), which makes plain weights of it",
     TEST},
    {QF_LOADER_DIFFUSERS, QF_LOADS_NO, "it is a model of transformers",
     "config.json: model_type"},
    {QF_LOADER_ACCELERATE, QF_LOADS_UNTESTED, "nobody has tried", TEST},
    {QF_LOADER_PEFT, QF_LOADS_UNTESTED, "nobody has tried", TEST},
    {QF_LOADER_VLLM, QF_LOADS_UNTESTED, "has no GGUF by itself from version 0.24 on",
     "vLLM 0.28"},
};

void qf_loaders_judge_gguf(const struct qf_variant *variant,
                           struct qf_loader_judgement *out)
{
    const struct qf_loader_claim *claims =
        variant->model->kind == QF_MODEL_DIFFUSERS ? of_components : of_models;
    _Static_assert(sizeof of_components == sizeof of_models, "one claim a loader");
    *out = (struct qf_loader_judgement){0};
    for (size_t i = 0; i < sizeof of_models / sizeof *of_models; i++) {
        out->claims[out->claim_count++] = &claims[i];
        out->loads[claims[i].loader] = claims[i].loads;
    }
}
