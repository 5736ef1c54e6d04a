#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""GGUF views with the real packages: every byte of a file is what the gguf package's
quantizer and reader say it is, diffusers loads it by from_single_file, transformers by
gguf_file= with outputs like the source's, and random reads are those of the whole.

    QUANTFS_BIN=build/ci/cli/quantfs .venv/bin/python tests/loaders/gguf_views.py"""
import json
import os
import random
import shutil
import sys
import tempfile

import run

sys.path.insert(0, os.path.join(os.path.dirname(run.HERE), "mount"))
import qfmount  # noqa: E402

TYPES = ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "F16", "BF16")


# ---- the store ----

def save_tokenizer(path, vocab):
    """A byte-level BPE tokenizer that is split as Qwen's is."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast
    pattern = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
               r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(pattern), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(
        ["The quick brown fox jumps over the lazy dog 0123456789.",
         "A filesystem that shows quantized weights, \u00fcber alles \u2014 \u4e2d\u6587."] * 20,
        trainers.BpeTrainer(vocab_size=vocab - 15, special_tokens=["<s>", "</s>"],
                            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    t.add_tokens(["<tool>"])
    PreTrainedTokenizerFast(
        tokenizer_object=t, bos_token="<s>", eos_token="</s>", add_bos_token=False,
        chat_template="{% for m in messages %}{{ m['content'] }}{% endfor %}"
    ).save_pretrained(path)


def make_llm(name, dtype, **more):
    def make(path):
        import torch
        import transformers
        torch.manual_seed(5)
        config = getattr(transformers, f"{name}Config")(
            hidden_size=64, intermediate_size=96, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=384,
            max_position_embeddings=128, bos_token_id=0, eos_token_id=1, **more)
        model = getattr(transformers, f"{name}ForCausalLM")(config)
        for key, p in model.named_parameters():
            if key.endswith(".bias"):
                torch.nn.init.normal_(p, std=0.1)
            elif "norm" not in key:
                torch.nn.init.normal_(p, std=0.1)
        model.to(getattr(torch, dtype)).save_pretrained(path, max_shard_size="90KB")
        save_tokenizer(path, 384)
    return make


def make_flux(shard_size):
    def make(path):
        import torch
        from diffusers import FluxTransformer2DModel
        torch.manual_seed(6)
        FluxTransformer2DModel(
            patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=32,
            pooled_projection_dim=32, axes_dims_rope=(4, 4, 8)
        ).to(torch.bfloat16).save_pretrained(path, max_shard_size=shard_size)
    return make


LLMS = {
    "tiny-llama": make_llm("Llama", "bfloat16", tie_word_embeddings=False),
    "tiny-llama-bias": make_llm("Llama", "float32", attention_bias=True,
                                tie_word_embeddings=False),
    "tiny-mistral": make_llm("Mistral", "float16", tie_word_embeddings=False),
    "tiny-qwen2": make_llm("Qwen2", "bfloat16", tie_word_embeddings=True),
    "tiny-qwen3": make_llm("Qwen3", "float32", head_dim=128, tie_word_embeddings=False),
}
FLUXES = {"flux-1": make_flux("10GB"), "flux-5": make_flux("36KB")}


def shards(path):
    return sorted(f for f in os.listdir(path) if f.endswith(".safetensors"))


def source_tensors(path):
    """Name -> float32 array, or what it is if it is no float."""
    from safetensors.torch import load_file
    out = {}
    for name in shards(path):
        for key, value in load_file(os.path.join(path, name)).items():
            out[key] = (value.float() if value.is_floating_point() else value).numpy()
    return out


# ---- bytes ----

def permuted(x, heads):
    """The converter's order of the rows of q and k."""
    return x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(
        1, 2).reshape(x.shape)


def gguf_names(path, tensors):
    """Name in the file -> array, by the gguf package's own map of names."""
    import gguf
    with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    if "_class_name" in c:
        return tensors
    kind = {"mistral": "llama"}.get(c["model_type"], c["model_type"])
    arch = next(k for k, v in gguf.MODEL_ARCH_NAMES.items() if v == kind)
    names = gguf.get_tensor_name_map(arch, c["num_hidden_layers"])
    out = {}
    for key, x in tensors.items():
        if key == "lm_head.weight" and c.get("tie_word_embeddings"):
            continue
        if kind == "llama" and ".q_proj." in key:
            x = permuted(x, c["num_attention_heads"])
        if kind == "llama" and ".k_proj." in key:
            x = permuted(x, c["num_key_value_heads"])
        out[names.get_name(key, try_suffixes=(".weight", ".bias"))] = x
    return out


def wanted_type(name, x, file_type):
    import gguf
    if x.ndim != 2 or not name.endswith(".weight"):
        return gguf.GGMLQuantizationType.F32
    type_ = gguf.GGMLQuantizationType[file_type]
    return gguf.GGMLQuantizationType.F16 if x.shape[1] % gguf.GGML_QUANT_SIZES[type_][0] \
        else type_


def check_file(path, source, file_type):
    """Every tensor against the package's quantizer, in the order of the file."""
    import gguf
    reader = gguf.GGUFReader(path)
    want = gguf_names(source, source_tensors(source))
    wrong = [] if {t.name for t in reader.tensors} == set(want) else ["other names"]
    for t in reader.tensors:
        x = want[t.name]
        type_ = wanted_type(t.name, x, file_type)
        if t.tensor_type != type_ or list(t.shape) != list(reversed(x.shape)):
            wrong.append(f"{t.name}: {t.tensor_type!r} {list(t.shape)}")
        elif t.data.tobytes() != gguf.quants.quantize(x, type_).tobytes():
            wrong.append(f"{t.name}: other bytes than gguf.quants")
        if t.data_offset % 32:
            wrong.append(f"{t.name}: begins at {t.data_offset}")
    return wrong


def field(reader, key):
    return reader.fields[key].contents() if key in reader.fields else None


def check_pairs(path, source):
    """What the converter says of a model, as the package's reader has it."""
    import gguf
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer
    reader = gguf.GGUFReader(path)
    with open(os.path.join(source, "config.json"), encoding="utf-8") as f:
        c = json.load(f)
    arch = "llama" if c["model_type"] == "mistral" else c["model_type"]
    tokenizer = AutoTokenizer.from_pretrained(source)
    vocab = Tokenizer.from_file(os.path.join(source, "tokenizer.json")).get_vocab()
    tokens = field(reader, "tokenizer.ggml.tokens") or []
    want = {
        "general.architecture": arch, f"{arch}.block_count": c["num_hidden_layers"],
        f"{arch}.embedding_length": c["hidden_size"],
        f"{arch}.feed_forward_length": c["intermediate_size"],
        f"{arch}.attention.head_count": c["num_attention_heads"],
        f"{arch}.attention.head_count_kv": c["num_key_value_heads"],
        f"{arch}.context_length": c["max_position_embeddings"],
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.chat_template": tokenizer.chat_template,
    }
    wrong = [f"{k}: {field(reader, k)}, not {v}" for k, v in want.items()
             if field(reader, k) != v]
    known = {i: t for t, i in vocab.items()}
    if tokens != [known.get(i, f"[PAD{i}]") for i in range(c["vocab_size"])]:
        wrong.append("other tokens")
    types = field(reader, "tokenizer.ggml.token_type")
    if types[tokenizer.bos_token_id] != 3 or types[tokens.index("<tool>")] != 4 or \
            types[-1] != 5:
        wrong.append("other types of tokens")
    return wrong


def check_written(path):
    """A file that the package's writer makes of what its reader has read is the same."""
    import gguf
    reader = gguf.GGUFReader(path)
    with tempfile.TemporaryDirectory() as work:
        copy = os.path.join(work, "copy.gguf")
        writer = gguf.GGUFWriter(copy, field(reader, "general.architecture"))
        for key, f in reader.fields.items():
            if key.startswith("GGUF.") or key == "general.architecture":
                continue
            sub = f.types[1] if len(f.types) > 1 else None
            writer.add_key_value(key, f.contents(), f.types[0], sub_type=sub)
        for t in reader.tensors:
            writer.add_tensor(t.name, t.data, raw_dtype=t.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open(copy, "rb") as a, open(path, "rb") as b:
            return None if a.read() == b.read() else "other bytes than GGUFWriter's"


def check_random(path):
    """Reads at random places, by several descriptors, are those of the whole."""
    with open(path, "rb") as f:
        whole = f.read()
    rng = random.Random(7)
    for _ in range(300):
        off, size = rng.randrange(len(whole)), rng.randrange(1, 9000)
        with open(path, "rb", buffering=0) as f:
            if os.pread(f.fileno(), size, off) != whole[off:off + size]:
                return f"{size} bytes at {off}"
    return None if len(whole) == os.stat(path).st_size else "another size"


# ---- loaders ----

def load_flux(path, directory, source):
    import torch
    from diffusers import FluxTransformer2DModel, GGUFQuantizationConfig
    model = FluxTransformer2DModel.from_single_file(
        path, config=directory, torch_dtype=torch.bfloat16,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.bfloat16))
    plain = FluxTransformer2DModel.from_pretrained(source, torch_dtype=torch.bfloat16)
    torch.manual_seed(8)
    given = {"hidden_states": torch.randn(1, 16, 4),
             "encoder_hidden_states": torch.randn(1, 8, 32),
             "pooled_projections": torch.randn(1, 32)}
    given = {k: v.to(torch.bfloat16) for k, v in given.items()}
    given |= {"timestep": torch.tensor([0.5], dtype=torch.bfloat16),
              "img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(8, 3)}
    with torch.no_grad():
        a, b = (m(**given, return_dict=False)[0].double().flatten()
                for m in (model, plain))
    quantized = sum(type(p).__name__ == "GGUFParameter" for p in model.parameters())
    if quantized == 0:
        return "no GGUFParameter in it"
    cosine = float(a @ b / a.norm() / b.norm())
    return None if cosine > 0.95 else f"cosine {cosine:.5f} with the source"


def quantize_like(model, file_type):
    """Gives a loaded source the weights that the package makes of its own."""
    import gguf
    import torch
    for key, p in model.named_parameters():
        x = p.detach().numpy()
        type_ = wanted_type(key, x, file_type)
        data = gguf.quants.dequantize(gguf.quants.quantize(x, type_), type_)
        p.data = torch.from_numpy(data.reshape(x.shape).copy())
    return model


def load_llm(directory, name, source, file_type):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokens = AutoTokenizer.from_pretrained(directory, gguf_file=name)
    plain_tokens = AutoTokenizer.from_pretrained(source)
    text = "The lazy dog shows weights, \u00fcber 42 \u4e2d."
    ids = plain_tokens(text, return_tensors="pt").input_ids
    if tokens(text).input_ids != ids[0].tolist():
        return f"{tokens(text).input_ids} tokens, not {ids[0].tolist()}"
    model = AutoModelForCausalLM.from_pretrained(directory, gguf_file=name,
                                                 dtype=torch.float32)
    plain = quantize_like(
        AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32), file_type)
    with torch.no_grad():
        a, b = (m(ids).logits[0].double() for m in (model, plain))
    cosine = float((a * b).sum(1).div(a.norm(dim=1) * b.norm(dim=1)).min())
    return None if cosine > 0.99999 else f"cosine {cosine:.7f}"


# ---- all of it ----

def check_model(m, report, store, name, file_type):
    source, directory = os.path.join(store, name), m.path(f"gguf-{file_type.lower()}", name)
    file = f"{name}-{file_type}.gguf"
    path, tag = os.path.join(directory, file), f"{file_type}:{name}"
    listed = sorted(f for f in os.listdir(directory) if "safetensors" in f or "gguf" in f)
    report.check(f"listed:{tag}", None if listed == [file] else listed)
    report.run(f"bytes:{tag}", check_file, path, source, file_type)
    if name in FLUXES:
        if file_type in ("Q8_0", "Q4_0", "Q5_1"):
            report.run(f"diffusers:{tag}", load_flux, path, directory, source)
        return
    report.run(f"pairs:{tag}", check_pairs, path, source)
    # transformers 5.23 makes a llama without biases of any GGUF file.
    if name != "tiny-llama-bias":
        report.run(f"transformers:{tag}", load_llm, directory, file, source, file_type)


def check_all(store, work, report):
    views = ":".join(f"gguf-{t.lower()}" for t in TYPES)
    with qfmount.Mount(store, views=views, cache=os.path.join(work, "cache")) as m:
        for name in [*LLMS, *FLUXES]:
            for file_type in TYPES if name in ("tiny-llama", "flux-5") else TYPES[:2]:
                check_model(m, report, store, name, file_type)
        for name in ("tiny-llama", "tiny-qwen2", "flux-5"):
            path = m.path("gguf-q4_0", name, f"{name}-Q4_0.gguf")
            report.run(f"random:{name}", check_random, path)
            report.run(f"written:{name}", check_written, path)


def main():
    reason = qfmount.why_not()
    try:
        import gguf
        import models  # noqa: F401
        assert gguf.GGUFReader
    except ImportError as e:
        reason = reason or str(e)
    if reason:
        print(f"skip all: {reason}")
        return 77
    report, work = run.Report(), tempfile.mkdtemp(prefix="quantfs-gguf-")
    try:
        store = os.path.join(work, "store")
        for name, make in {**LLMS, **FLUXES}.items():
            make(os.path.join(store, name))
        report.check("five shards", None if len(shards(os.path.join(store, "flux-5"))) >= 5
                     else shards(os.path.join(store, "flux-5")))
        check_all(store, work, report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
