#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Which modules the loaders of fp8 and compressed-tensors replace, against which weights
a view has quantized, for many architectures and for their base classes. On a CPU fp8 is
loaded dequantized, which would hide a module that is replaced and should not be; so the
library's own replacement is called on a model without weights.

    QUANTFS_BIN=build/ci/cli/quantfs python tests/loaders/scaled_modules.py [NAME…]

One line a check: "pass NAME", "fail NAME: why"."""
import glob
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", TQDM_DISABLE="1",
                  OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TRANSFORMERS_VERBOSITY="error")
import qfmount  # noqa: E402

VIEWS = {"fp8": "weight_scale_inv", "ct-fp8": "weight_scale", "ct-w4a16": "weight_scale"}
TEXT = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2,
            num_attention_heads=4, vocab_size=512, max_position_embeddings=64)
DECODER = dict(**TEXT, num_key_value_heads=2)
ODD = {**DECODER, "intermediate_size": 320}  # blocks and groups do not divide it
VISION = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2,
              num_attention_heads=4, image_size=32, patch_size=16)
SEQ2SEQ = dict(d_model=256, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=512,
               decoder_ffn_dim=512, encoder_attention_heads=4, decoder_attention_heads=4,
               vocab_size=512)


def architectures(T):
    """The class that is saved, and its config."""
    def llava():
        return T.LlavaConfig(vision_config=T.CLIPVisionConfig(**VISION).to_dict(),
                             text_config=T.LlamaConfig(**DECODER).to_dict(),
                             image_token_index=511, image_seq_length=4)

    def deepseek():
        return T.DeepseekV3Config(
            **{**DECODER, "num_key_value_heads": 4}, moe_intermediate_size=128,
            n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1,
            q_lora_rank=128, kv_lora_rank=128, qk_rope_head_dim=64, qk_nope_head_dim=64,
            v_head_dim=64, first_k_dense_replace=1)
    return {
        "llama": (T.LlamaForCausalLM, lambda: T.LlamaConfig(**ODD)),
        "qwen2-tied": (T.Qwen2ForCausalLM,
                       lambda: T.Qwen2Config(**ODD, tie_word_embeddings=True)),
        "phi3": (T.Phi3ForCausalLM, lambda: T.Phi3Config(**DECODER, pad_token_id=0)),
        "mixtral": (T.MixtralForCausalLM, lambda: T.MixtralConfig(
            **DECODER, num_local_experts=4, num_experts_per_tok=2)),
        "qwen3-moe": (T.Qwen3MoeForCausalLM, lambda: T.Qwen3MoeConfig(
            **DECODER, head_dim=64, moe_intermediate_size=128, num_experts=4,
            num_experts_per_tok=2)),
        "deepseek-v3": (T.DeepseekV3ForCausalLM, deepseek),
        "bert-mlm": (T.BertForMaskedLM, lambda: T.BertConfig(**TEXT)),
        "bert-classes": (T.BertForSequenceClassification, lambda: T.BertConfig(**TEXT)),
        "t5": (T.T5ForConditionalGeneration, lambda: T.T5Config(
            d_model=256, d_ff=320, num_layers=2, num_heads=4, d_kv=64, vocab_size=512)),
        "bart": (T.BartForConditionalGeneration,
                 lambda: T.BartConfig(**SEQ2SEQ, max_position_embeddings=64)),
        "opt": (T.OPTForCausalLM, lambda: T.OPTConfig(
            hidden_size=256, ffn_dim=320, num_hidden_layers=2, num_attention_heads=4,
            vocab_size=512, max_position_embeddings=64, word_embed_proj_dim=128)),
        "vit": (T.ViTForImageClassification, lambda: T.ViTConfig(**VISION)),
        "clip": (T.CLIPModel, lambda: T.CLIPConfig(
            text_config=dict(**TEXT, projection_dim=128),
            vision_config=dict(**VISION, projection_dim=128), projection_dim=128)),
        "llava": (T.LlavaForConditionalGeneration, llava),
    }


def quantized_modules(path, suffix):
    from safetensors import safe_open
    out = set()
    for name in glob.glob(f"{path}/*.safetensors"):
        with safe_open(name, "pt") as f:
            out |= {k.removesuffix("." + suffix) for k in f.keys() if k.endswith(suffix)}
    return out


def as_loaded(model, modules):
    """The names that the loader gives to modules of the file."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (WeightConverter, WeightRenaming,
                                                 rename_source_key)
    mapping, state = get_model_conversion_mapping(model), model.state_dict()
    renamings = [e for e in mapping if isinstance(e, WeightRenaming)]
    converters = [e for e in mapping if isinstance(e, WeightConverter)]
    names = {rename_source_key(f"{m}.weight", renamings, converters,
                               model.base_model_prefix, state)[0] for m in modules}
    return {n.removesuffix(".weight") for n in names if n in state}


def replaced_fp8(model, config):
    from transformers import FineGrainedFP8Config
    from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
    from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer
    settings = {k: v for k, v in config.items() if k != "quant_method"}
    quantizer = FineGrainedFP8HfQuantizer(FineGrainedFP8Config(**settings),
                                          pre_quantized=True)
    quantizer._process_model_before_weight_loading(model)
    return {n for n, m in model.named_modules() if isinstance(m, (FP8Linear, FP8Experts))}


def replaced_compressed(model, config):
    from compressed_tensors.quantization import (QuantizationConfig,
                                                 apply_quantization_config)
    apply_quantization_config(model, QuantizationConfig.model_validate(config),
                              show_progress=False)
    return {n for n, m in model.named_modules() if hasattr(m, "quantization_scheme")}


def check(path, view, cls):
    import torch
    import transformers as T
    config = T.AutoConfig.from_pretrained(path)
    settings = config.quantization_config
    with torch.device("meta"):
        model = cls.from_config(config) if cls is T.AutoModel else cls(config)
    want = as_loaded(model, quantized_modules(path, VIEWS[view]))
    replace = replaced_fp8 if view == "fp8" else replaced_compressed
    got = replace(model, settings)
    if not want:
        return "nothing is quantized"
    return None if got == want else \
        f"replaced and plain: {sorted(got - want)[:3]}, quantized and not replaced: " \
        f"{sorted(want - got)[:3]}"


def is_left(view, name):
    """Models with experts pass through in compressed-tensors."""
    return view != "fp8" and name in ("mixtral", "qwen3-moe", "deepseek-v3")


def expect_reason(view, name, reason):
    return None if is_left(view, name) and "experts" in reason else \
        f"passes through: {reason or 'it does not'}"


def run_one(mount, name, cls, make):
    """In a process of its own: an architecture in all views."""
    import transformers as T
    make_source(cls, make, os.path.join(mount.store, name))
    failed = 0
    for view in VIEWS:
        path = mount.path(view, name)
        try:
            reason = os.getxattr(path, "user.quantfs.reason").decode()
        except OSError:
            reason = ""
        for loaded in (cls, T.AutoModel):
            wrong = expect_reason(view, name, reason) if reason or \
                is_left(view, name) else check(path, view, loaded)
            tag = f"modules:{view}:{name}:{loaded.__name__}"
            failed += wrong is not None
            print(f"fail {tag}: {wrong}" if wrong else f"pass {tag}")
    return failed


def make_source(cls, make, path):
    import torch
    cls(make()).to(torch.bfloat16).save_pretrained(path)


def main():
    reason, wanted = qfmount.why_not(), sys.argv[1:]
    if reason is None:
        try:
            import compressed_tensors  # noqa: F401
            import transformers
        except ImportError as e:
            reason = str(e)
    if reason:
        print(f"skip modules: {reason}")
        return 77
    store, failed = tempfile.mkdtemp(prefix="quantfs-modules-"), 0
    try:
        with qfmount.Mount(store) as mount:
            for name, (cls, make) in architectures(transformers).items():
                if wanted and name not in wanted:
                    continue
                sys.stdout.flush()
                pid = os.fork()
                if pid == 0:
                    code = 99
                    try:
                        code = min(run_one(mount, name, cls, make), 98)
                    except BaseException:
                        import traceback
                        traceback.print_exc()
                    sys.stdout.flush()
                    os._exit(code)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                if code < 0 or code == 99:
                    print(f"fail modules:{name}: it ended with {code}")
                failed += code != 0
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
