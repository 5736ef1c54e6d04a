#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes random checkpoints in the shape of Llama 3, bf16, quickly.

    gpu_model.py DIR [--small]     DIR/big: 8B parameters, 16 GB (--small: 60 MB)
                                   DIR/tiny: two small layers, to warm up with
"""
import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

BLOCK_BYTES = 61_000_002  # no multiple of anything: tensors differ
BIG = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
       "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256}
SMALL = {"hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 2,
         "num_attention_heads": 8, "num_key_value_heads": 2, "vocab_size": 2048}
TINY = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256}


def config(shape):
    return {"architectures": ["LlamaForCausalLM"], "model_type": "llama",
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 0,
            "eos_token_id": 1, "hidden_act": "silu", "initializer_range": 0.02,
            "max_position_embeddings": 8192, "mlp_bias": False, "rms_norm_eps": 1e-05,
            "rope_theta": 500000.0, "tie_word_embeddings": False,
            "dtype": "bfloat16", "use_cache": True, **shape}


def tensors(shape):
    h, i, v = (shape[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))
    kv = h // shape["num_attention_heads"] * shape["num_key_value_heads"]
    yield "model.embed_tokens.weight", (v, h)
    for n in range(shape["num_hidden_layers"]):
        p = f"model.layers.{n}."
        yield p + "input_layernorm.weight", (h,)
        yield p + "mlp.down_proj.weight", (h, i)
        yield p + "mlp.gate_proj.weight", (i, h)
        yield p + "mlp.up_proj.weight", (i, h)
        yield p + "post_attention_layernorm.weight", (h,)
        yield p + "self_attn.k_proj.weight", (kv, h)
        yield p + "self_attn.o_proj.weight", (h, h)
        yield p + "self_attn.q_proj.weight", (h, h)
        yield p + "self_attn.v_proj.weight", (kv, h)
    yield "model.norm.weight", (h,)
    yield "lm_head.weight", (v, h)


def size_of(shape):
    return 2 * int(np.prod(shape, dtype=np.int64))


def split(all_tensors, shard_bytes):
    shards, room = [], 0
    for name, shape in all_tensors:
        if not shards or size_of(shape) > room:
            shards.append([])
            room = shard_bytes
        shards[-1].append((name, shape))
        room -= size_of(shape)
    return shards


def write_shard(path, shard, block):
    header, off = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shard:
        header[name] = {"dtype": "BF16", "shape": list(shape),
                        "data_offsets": [off, off + size_of(shape)]}
        off += size_of(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb", buffering=0) as f:
        f.write(len(text).to_bytes(8, "little") + text)
        while off > 0:
            off -= f.write(block[:off])


def write_model(path, shape, shard_bytes, block):
    os.makedirs(path, exist_ok=True)
    with open(f"{path}/config.json", "w", encoding="utf-8") as f:
        json.dump(config(shape), f, indent=2)
    shards = split(list(tensors(shape)), shard_bytes)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
             for i in range(len(shards))]
    index = {"metadata": {"total_size": sum(size_of(s) for _, s in tensors(shape))},
             "weight_map": {t: n for n, shard in zip(names, shards) for t, _ in shard}}
    with open(f"{path}/model.safetensors.index.json", "w", encoding="utf-8") as f:
        json.dump(index, f, indent=2)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n, s: write_shard(f"{path}/{n}", s, block), names, shards))


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    small = "--small" in sys.argv
    rng = np.random.default_rng(1)
    values = rng.standard_normal(BLOCK_BYTES // 2, dtype=np.float32) * np.float32(0.02)
    block = memoryview((values.view(np.uint32) >> 16).astype(np.uint16)).cast("B")
    write_model(f"{sys.argv[1]}/tiny", TINY, 5_000_000_000, block)
    write_model(f"{sys.argv[1]}/big", SMALL if small else BIG,
                20_000_000 if small else 5_000_000_000, block)


if __name__ == "__main__":
    main()
