# SPDX-License-Identifier: Apache-2.0
"""What torchao, transformers' fp8 and compressed-tensors make of a model, by their own
code, and comparing that with the files of a view."""
import contextlib
import glob
import json
from types import SimpleNamespace

import compressed_tensors.compressors.naive_quantized.base as naive_base
import compressed_tensors.compressors.pack_quantized.base as pack_base
import diffusers
import peft
import torch
import torchao.quantization as ao
import transformers
from compressed_tensors.compressors import ModelCompressor
from compressed_tensors.quantization import QuantizationConfig, apply_quantization_config
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors import safe_open
from torchao.float8.inference import Float8MMConfig
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs
from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize


# ---- files ----

def read(path):
    """All tensors of a directory, and the metadata as its loaders merge it."""
    tensors, metadata = {}, {}
    for name in sorted(glob.glob(f"{path}/*.safetensors")):
        with safe_open(name, "pt") as f:
            metadata.update(f.metadata() or {})
            for key in f.keys():
                tensors[key] = f.get_tensor(key)
    return tensors, metadata


def quantization_config(path):
    with open(f"{path}/config.json", encoding="utf-8") as f:
        return json.load(f)["quantization_config"]


def raw(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def compare(want, path):
    """What differs between tensors (and records, under "metadata") and the files."""
    got, metadata = read(path)
    records = want.pop("metadata", {})
    wrong = [f"{k}: not in the view" for k in want if k not in got]
    wrong += [f"{k}: in the view alone" for k in got if k not in want]
    for key in set(got) & set(want):
        a, b = got[key], want[key]
        if a.dtype != b.dtype or a.shape != b.shape:
            wrong.append(f"{key}: {a.dtype} {list(a.shape)}, not {b.dtype} {list(b.shape)}")
        elif raw(a) != raw(b):
            share = (a.view(torch.uint8) != b.view(torch.uint8)).float().mean()
            wrong.append(f"{key}: {float(share):.4%} of the bytes differ")
    for key, value in records.items():
        mine = json.loads(metadata.get(key, "null"))
        theirs = json.loads(value)
        if key == "tensor_names":
            mine, theirs = sorted(mine), sorted(theirs)
        if mine != theirs:
            wrong.append(f"metadata {key}: {mine}, not {theirs}")
    return wrong[:3]


# ---- torchao ----

def torchao_config(view):
    name, _, group = view.partition("+group=")
    granularity = ao.PerGroup(int(group)) if group else ao.PerRow()
    return {
        "ao-int8wo": lambda: ao.Int8WeightOnlyConfig(version=2, granularity=granularity),
        "ao-int8dq": lambda: ao.Int8DynamicActivationInt8WeightConfig(version=2),
        "ao-float8wo": lambda: ao.Float8WeightOnlyConfig(version=2,
                                                         granularity=granularity),
        "ao-float8wo-e5m2": lambda: ao.Float8WeightOnlyConfig(
            version=2, weight_dtype=torch.float8_e5m2),
        "ao-float8dq-row": lambda: ao.Float8DynamicActivationFloat8WeightConfig(
            version=2, granularity=ao.PerRow()),
    }[name]()


def torchao_refuses(view, dtype):
    """Why torchao does not quantize a Linear here, or None."""
    linear = torch.nn.Linear(64, 64, dtype=dtype)
    try:
        ao.quantize_(linear, torchao_config(view))
    except AssertionError as e:
        return str(e)
    return None


def torchao_on_the_fly(cell, view, path):
    """The load that users do without a view. The modules left are the view's."""
    library = diffusers if cell.diffusers else transformers
    left = quantization_config(path)["modules_to_not_convert"]
    config = library.TorchAoConfig(torchao_config(view), modules_to_not_convert=left)
    more = {} if cell.diffusers else {"dtype": cell.dtype}
    return cell.load(cell.source, quantization_config=config, **more)[0]


def torchao_by_hand(cell, view, path):
    """Float8 with dynamic activations: torchao asks for a GPU before it quantizes, but
    its tensors can be made on any device."""
    assert view == "ao-float8dq-row"
    model, _ = cell.load(cell.source)
    left = set(quantization_config(path)["modules_to_not_convert"] or [])
    kwargs = QuantizeTensorToFloat8Kwargs(
        float8_dtype=torch.float8_e4m3fn, granularity=ao.PerRow())
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in left:
            module.weight = torch.nn.Parameter(ao.Float8Tensor.from_hp(
                module.weight.detach(), float8_dtype=torch.float8_e4m3fn,
                granularity=ao.PerRow(), act_quant_kwargs=kwargs,
                mm_config=Float8MMConfig(use_fast_accum=True)), requires_grad=False)
    return model


def torchao_tensors(model):
    """As save_pretrained would write them."""
    state = {k: v.detach() for k, v in model.state_dict().items()
             if not is_tied(model, k)}
    tensors, metadata = flatten_tensor_state_dict(state)
    return {**tensors, "metadata": metadata}


def is_tied(model, key):
    """lm_head of a model that shares it with the embedding: not in the file."""
    return key == "lm_head.weight" and model.config.tie_word_embeddings


# ---- fp8 ----

def fp8_quantizer():
    return SimpleNamespace(quantization_config=transformers.FineGrainedFP8Config())


def fp8_tensors(source, path):
    left = set(quantization_config(path)["modules_to_not_convert"])
    op, out = Fp8Quantize(fp8_quantizer()), {}
    for key, tensor in read(source)[0].items():
        linear = tensor.ndim == 2 and key.endswith(".weight") and \
            key.removesuffix(".weight") not in left
        out.update(op.convert({key: tensor}) if linear else {key: tensor})
    return out


def fp8_dequantized(model, tensors):
    """Without a GPU transformers computes with the dequantized weights."""
    op = Fp8Dequantize(fp8_quantizer())
    for name, module in model.named_modules():
        scale = tensors.get(f"{name}.weight_scale_inv")
        if scale is not None:
            module.weight.data = op._dequantize_one(
                tensors[f"{name}.weight"], scale, output_dtype=module.weight.dtype)


# ---- compressed-tensors ----

@contextlib.contextmanager
def float32_division(wanted):
    """The library's Triton kernel divides in float32, whatever the weights' dtype; its
    code for a CPU in that dtype."""
    modules = (naive_base, pack_base)
    saved = [m.quantize for m in modules]

    def wider(x, scale, zero_point, **more):
        # Adding a zero point of 0 would do nothing but turn -0.0 into 0.0.
        assert zero_point is None or not zero_point.any()
        return saved[0](x=x.float(), scale=scale.float(), zero_point=None, **more)
    try:
        if wanted:
            for m in modules:
                m.quantize = wider
        yield
    finally:
        for m, quantize in zip(modules, saved):
            m.quantize = quantize


def compress(model, config, eager=False):
    """Scales as the library's min-max observer has them."""
    scheme = QuantizationConfig.model_validate({**config, "quantization_status": "frozen"})
    apply_quantization_config(model, scheme, show_progress=False)
    for module in model.modules():
        args = getattr(getattr(module, "quantization_scheme", None), "weights", None)
        if args is None:
            continue
        weight = module.weight.detach()
        group = args.group_size or weight.shape[1]
        grouped = weight.reshape(weight.shape[0], -1, group)
        scale, zero = calculate_qparams(grouped.amin(-1), grouped.amax(-1), args)
        module.weight_scale.data = scale
        if hasattr(module, "weight_zero_point"):
            module.weight_zero_point.data = zero
    with float32_division(not eager):
        ModelCompressor(quantization_config=scheme).compress_model(model)


def ordered(tensor, bits):
    """Codes as integers whose neighbours are neighbouring values."""
    if tensor.dtype == torch.int32:
        shifts = torch.arange(0, 32, bits)
        return (tensor.reshape(-1, 1) >> shifts) & ((1 << bits) - 1)
    codes = tensor.view(torch.int8).to(torch.int32)
    if tensor.dtype == torch.int8:
        return codes
    return torch.where(codes < 0, -(codes & 0x7f), codes)  # float8: sign, magnitude


def compare_codes(model, path):
    got, _ = read(path)
    bits = quantization_config(path)["config_groups"]["group_0"]["weights"]["num_bits"]
    for key, want in model.state_dict().items():
        if is_tied(model, key) or raw(got[key]) == raw(want):
            continue
        if not key.endswith((".weight", ".weight_packed")):
            return f"{key}: differs"
        apart = (ordered(got[key], bits) - ordered(want, bits)).abs()
        if apart.max() > 1:
            return f"{key}: codes {int(apart.max())} apart"
        if (apart != 0).float().mean() > 0.15:
            return f"{key}: {float((apart != 0).float().mean()):.1%} of the codes differ"
    return None


# ---- training ----

def train(model):
    """A few steps of LoRA: what is wrong with them."""
    torch.manual_seed(5)
    before = {k: v.detach().clone() for k, v in model.state_dict().items()
              if "layernorm" in k or "lm_head" in k}
    adapted = peft.get_peft_model(model, peft.LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "up_proj"], init_lora_weights=False))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad],
                                  lr=0.01)
    ids = torch.arange(24)[None] * 7 % 500
    losses = []
    for _ in range(4):
        loss = adapted(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    grads = [p.grad for n, p in adapted.named_parameters() if "lora_" in n]
    if not grads or any(g is None or not g.isfinite().all() for g in grads):
        return "an adapter has no gradient"
    if not losses[-1] < losses[0]:
        return f"the loss went from {losses[0]} to {losses[-1]}"
    after = adapted.get_base_model().state_dict()
    return None if all(torch.equal(v, after[k]) for k, v in before.items()) else \
        "a weight that is not trained has changed"
