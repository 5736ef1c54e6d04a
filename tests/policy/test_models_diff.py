#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""view/policy against its reference, on the tensors of real models, built from default
configs without weights, and of a few composite models that need other configs. Also
against the models themselves: what is quantized is a Linear, or a Conv1D and then
transposed, and none that the loader keeps in float32.

    test_models_diff.py POLICY_DUMP

Skips (77) where transformers or diffusers are not installed.
"""
import contextlib
import json
import sys

import driver

try:
    import diffusers
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D
except ImportError as missing:
    print(f"skipped: {missing}")
    sys.exit(77)

TRANSFORMERS = """
AlbertForMaskedLM BartForConditionalGeneration BertForMaskedLM BertForPreTraining
BertForSequenceClassification BigBirdForMaskedLM BlipModel BloomForCausalLM CLIPModel
CLIPTextModel CLIPVisionModelWithProjection CohereForCausalLM ConvBertForMaskedLM
DeepseekV3ForCausalLM DeiTForImageClassification DistilBertForMaskedLM DPRReader
ElectraForMaskedLM FalconForCausalLM FlaubertWithLMHeadModel FunnelForMaskedLM
GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoForCausalLM
GPTNeoXForCausalLM GemmaForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM
Glm4MoeForCausalLM GraniteForCausalLM HubertModel LlamaForCausalLM
LlamaForSequenceClassification LlavaForConditionalGeneration LongformerForMaskedLM
MBartForConditionalGeneration MPNetForMaskedLM MambaForCausalLM MarianMTModel
MistralForCausalLM MixtralForCausalLM MobileBertForMaskedLM MptForCausalLM
OPTForCausalLM Olmo2ForCausalLM OpenAIGPTLMHeadModel Owlv2Model PegasusForConditionalGeneration
PhiForCausalLM Phi3ForCausalLM Qwen2ForCausalLM Qwen2MoeForCausalLM Qwen3ForCausalLM
Qwen3MoeForCausalLM RobertaForMaskedLM RwkvForCausalLM SiglipModel StableLmForCausalLM
Starcoder2ForCausalLM T5ForConditionalGeneration UMT5EncoderModel ViTForImageClassification
Wav2Vec2ForCTC WhisperForConditionalGeneration XLMRobertaForMaskedLM XLMWithLMHeadModel
XLNetLMHeadModel ZambaForCausalLM RTDetrV2ForObjectDetection SwitchTransformersForConditionalGeneration
""".split()
DIFFUSERS = """
FluxTransformer2DModel UNet2DConditionModel SD3Transformer2DModel PixArtTransformer2DModel
AutoencoderKL WanTransformer3DModel CogVideoXTransformer3DModel HunyuanDiT2DModel
SanaTransformer2DModel LTXVideoTransformer3DModel DiTTransformer2DModel UVit2DModel
""".split()
DTYPES = ["bfloat16", "float16", "float32", "auto"]


def shrink(config):
    """Fewer layers: names repeat."""
    for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
                 "decoder_layers", "num_local_experts", "n_routed_experts", "num_experts"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 4:
            with contextlib.suppress(Exception):
                setattr(config, name, 4 if "expert" not in name else 8)


def build_transformers(name):
    cls = getattr(transformers, name)
    config = cls.config_class()
    if name != "ZambaForCausalLM":
        shrink(config)
    return finish(cls, config)


def finish(cls, config):
    with torch.device("meta"):
        model = cls(config)
    said = json.loads(config.to_json_string(use_diff=False))
    said.pop("torch_dtype", None)
    return model, {**said, "model_type": config.model_type, "architectures": [cls.__name__]}


def composites():
    """Models inside models that are not those of the default config."""
    t5 = transformers.T5Config(num_layers=2, d_model=64, d_ff=64)
    vit = transformers.ViTConfig(num_hidden_layers=2)
    gpt2 = transformers.GPT2Config(n_layer=2, add_cross_attention=True)
    bert = transformers.BertConfig(num_hidden_layers=2)
    audio = transformers.MusicgenConfig()
    yield (transformers.InstructBlipForConditionalGeneration,
           transformers.InstructBlipConfig(text_config=t5.to_dict()))
    yield (transformers.VisionEncoderDecoderModel,
           transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(vit, gpt2))
    yield (transformers.EncoderDecoderModel,
           transformers.EncoderDecoderConfig.from_encoder_decoder_configs(bert, gpt2))
    yield transformers.MusicgenForConditionalGeneration, audio


def build_diffusers(name):
    cls = getattr(diffusers, name)
    with torch.device("meta"):
        model = cls()
    return model, {"_class_name": name, "_diffusers_version": diffusers.__version__}


def tensor_list(model, dtype):
    short = driver.bnbrule.ST
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    out = {}
    for name, value in model.state_dict().items():
        if name in tied:
            continue
        kind = dtype if value.is_floating_point() else "I64"
        out[name] = (short.get(kind, kind), list(value.shape))
    return out


def wrong_for_loader(model, answer):
    """Quantized tensors that the loader would not take as such."""
    modules = dict(model.named_modules())
    keep = getattr(model, "_keep_in_fp32_modules", None) or []
    diffusers_rule = isinstance(model, diffusers.ModelMixin)
    out = []
    for name, reason, _, transposed in answer["tensors"]:
        path = name.removesuffix(".weight")
        module = modules.get(path)
        if reason != "quantized":
            continue
        if not isinstance(module, (torch.nn.Linear, Conv1D)):
            out.append(f"{name} is quantized, but is of {type(module).__name__}")
        if transposed != isinstance(module, Conv1D):
            out.append(f"{name}: transposed {transposed}, of {type(module).__name__}")
        match = driver.bnbrule.skip_v4 if diffusers_rule else driver.bnbrule.skip_v5
        if any(match(path, entry) for entry in keep):
            out.append(f"{name} is quantized, but the loader keeps it in float32")
    return out


def main():
    requests, built = [], []
    unbuilt = []
    work = [(n, build_transformers) for n in TRANSFORMERS]
    work += [(n, build_diffusers) for n in DIFFUSERS]
    work += [(c, lambda pair: finish(*pair)) for c in composites()]
    for i, (name, build) in enumerate(work):
        try:
            model, config = build(name)
        except Exception as why:  # a class that this version has no longer, or cannot build
            unbuilt.append(f"{name}: {str(why)[:100]}")
            continue
        config["dtype"] = DTYPES[i % len(DTYPES)]
        tensors = tensor_list(model, "float32" if i % 3 else "bfloat16")
        requests.append(driver.request(tensors, config))
        built.append(model)
    answers = driver.ask(sys.argv[1], requests)
    bad = driver.report("real models", requests, answers, driver.compare_plan)
    for model, answer in zip(built, answers):
        for line in wrong_for_loader(model, answer) if not answer["reason"] else []:
            print(f"--- {type(model).__name__}: {line}")
            bad += 1
    quantized = sum(a.get("quantized_count", 0) for a in answers)
    print(f"{len(built)} models built, {quantized} tensors quantized; not built: {unbuilt}")
    if len(built) < 60:
        print("too few models could be built for this test to mean something")
        bad += 1
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
