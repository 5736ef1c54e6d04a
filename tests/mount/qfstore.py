# SPDX-License-Identifier: Apache-2.0
"""Stores for tests, written with nothing but the standard library."""
import hashlib
import json
import os
import random
import struct

SIZE = {"F32": 4, "F16": 2, "BF16": 2, "U8": 1, "I8": 1, "I64": 8, "F64": 8, "BOOL": 1}
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# The byte with the exponent, made so that values are finite and about as large as weights.
_TOP = {"F32": bytes((b & 0x83) | 0x3c for b in range(256)),
        "BF16": bytes((b & 0x83) | 0x3c for b in range(256)),
        "F16": bytes((b & 0x83) | 0x28 for b in range(256))}


def values(seed, count, dtype):
    """`count` finite values of this dtype, the same for a seed."""
    data = bytearray(random.Random(seed).randbytes(count * SIZE[dtype]))
    if dtype in _TOP:
        width = SIZE[dtype]
        data[width - 1::width] = data[width - 1::width].translate(_TOP[dtype])
    return bytes(data)


def count_of(shape):
    n = 1
    for d in shape:
        n *= d
    return n


def header_of(tensors, metadata={"format": "pt"}):
    """The 8 + N bytes for [(name, dtype, shape, data)]."""
    head, off = {}, 0
    if metadata is not None:
        head["__metadata__"] = metadata
    for name, dtype, shape, data in tensors:
        head[name] = {"dtype": dtype, "shape": list(shape),
                      "data_offsets": [off, off + len(data)]}
        off += len(data)
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def write(path, data):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as f:
        f.write(data if isinstance(data, bytes) else data.encode())


def write_json(path, value):
    write(path, json.dumps(value, indent=2) + "\n")


def write_shard(path, tensors, metadata={"format": "pt"}):
    """tensors: [(name, dtype, shape)] or with the bytes as a fourth member."""
    full = [(t[0], t[1], t[2],
             t[3] if len(t) > 3 else values(t[0], count_of(t[2]), t[1]))
            for t in tensors]
    write(path, header_of(full, metadata) + b"".join(t[3] for t in full))


def llama_tensors(hidden, layers, dtype, inter, vocab):
    out = [("model.embed_tokens.weight", dtype, [vocab, hidden])]
    for i in range(layers):
        p = f"model.layers.{i}."
        out += [(p + "input_layernorm.weight", dtype, [hidden]),
                (p + "mlp.down_proj.weight", dtype, [hidden, inter]),
                (p + "mlp.gate_proj.weight", dtype, [inter, hidden]),
                (p + "mlp.up_proj.weight", dtype, [inter, hidden]),
                (p + "post_attention_layernorm.weight", dtype, [hidden])]
        out += [(p + f"self_attn.{x}_proj.weight", dtype, [hidden, hidden])
                for x in "kqvo"]
    return out + [("model.norm.weight", dtype, [hidden]),
                  ("lm_head.weight", dtype, [vocab, hidden])]


def llama_config(hidden, layers, dtype, inter, vocab, **more):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "dtype": TORCH[dtype], "hidden_size": hidden, "intermediate_size": inter,
            "num_attention_heads": 2, "num_hidden_layers": layers, "vocab_size": vocab,
            "rms_norm_eps": 1e-6, **more}


def write_llama(path, hidden=64, layers=1, dtype="BF16", inter=96, vocab=32, shards=1,
                stored=None, seed="", config=None):
    """A model directory. stored: the dtype in the file, when it is not `dtype`."""
    tensors = [(n, d, s, values(seed + n, count_of(s), d)) for n, d, s in
               llama_tensors(hidden, layers, stored or dtype, inter, vocab)]
    if shards == 1:
        write_shard(f"{path}/model.safetensors", tensors)
    else:
        weight_map = {}
        for i in range(shards):
            name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
            part = tensors[i * len(tensors) // shards:(i + 1) * len(tensors) // shards]
            write_shard(f"{path}/{name}", part)
            weight_map.update((t[0], name) for t in part)
        total = sum(len(t[3]) for t in tensors)
        write_json(f"{path}/model.safetensors.index.json",
                   {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(f"{path}/config.json",
               llama_config(hidden, layers, dtype, inter, vocab, **(config or {})))
    return path


def write_gpt2(path, dtype="F32", hidden=48, layers=1, vocab=40):
    """Conv1D modules: weights stored [in, out]."""
    tensors = [("wte.weight", dtype, [vocab, hidden]), ("wpe.weight", dtype, [16, hidden])]
    for i in range(layers):
        p = f"h.{i}."
        for name, rows, cols in (("attn.c_attn", hidden, 3 * hidden),
                                 ("attn.c_proj", hidden, hidden),
                                 ("mlp.c_fc", hidden, 4 * hidden),
                                 ("mlp.c_proj", 4 * hidden, hidden)):
            tensors += [(p + name + ".bias", dtype, [cols]),
                        (p + name + ".weight", dtype, [rows, cols])]
        for name in ("ln_1", "ln_2"):
            tensors += [(p + name + ".bias", dtype, [hidden]),
                        (p + name + ".weight", dtype, [hidden])]
    tensors += [("ln_f.bias", dtype, [hidden]), ("ln_f.weight", dtype, [hidden])]
    write_shard(f"{path}/model.safetensors", tensors)
    write_json(f"{path}/config.json",
               {"architectures": ["GPT2Model"], "model_type": "gpt2",
                "dtype": TORCH[dtype], "n_embd": hidden, "n_layer": layers, "n_head": 2,
                "n_positions": 16, "vocab_size": vocab})
    return path


def read_header(data):
    """Parses the beginning of a safetensors file strictly, as its library does:
    ({name: (dtype, shape, begin, end)} with absolute offsets, metadata, file size)."""
    (n,) = struct.unpack("<Q", data[:8])
    pairs = json.loads(data[8:8 + n], object_pairs_hook=list)
    metadata, tensors, end = None, {}, 8 + n
    for name, value in pairs:
        if name == "__metadata__":
            metadata = dict(value)
            continue
        entry = dict(value)
        begin, stop = entry["data_offsets"]
        if name in tensors or begin != end - 8 - n:
            raise ValueError(f"{name}: twice, or a hole before it")
        if stop - begin != count_of(entry["shape"]) * SIZE[entry["dtype"]]:
            raise ValueError(f"{name}: its size is not what dtype and shape say")
        if begin % SIZE[entry["dtype"]] != 0 or n % 8 != 0:
            raise ValueError(f"{name}: not aligned")
        end = 8 + n + stop
        tensors[name] = (entry["dtype"], entry["shape"], 8 + n + begin, end)
    return tensors, metadata, end


def read_file(path):
    with open(path, "rb") as f:
        return f.read()


def sha256(path):
    return hashlib.sha256(read_file(path)).hexdigest()


def files_below(path):
    """Paths of all files, relative, sorted."""
    return sorted(os.path.relpath(os.path.join(d, f), path)
                  for d, _, names in os.walk(path) for f in names)


def digest_tree(path):
    return {f: sha256(os.path.join(path, f)) for f in files_below(path)}
