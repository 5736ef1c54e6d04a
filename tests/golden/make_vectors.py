#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_vectors.py OUT: writes vectors.safetensors from the numpy reference.

Each case is a source tensor and what every part of its quantized form must be. The name
holds the case: cNN.CODEC.SRC.D.BLOCKSIZE.(n|t).PART, t for a weight stored transposed.
vectors_test.c runs the backends on the sources. Needs numpy; the output is committed.
"""
import json
import os
import struct
import sys

import numpy as np

sys.path.insert(0, os.path.join(os.path.dirname(__file__), "..", "reference"))
import bnbquant as Q

TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
rng = np.random.default_rng(2026)


def to_dtype(x, dtype):
    """fp32 -> raw array of dtype, as torch casts."""
    if dtype == "F32":
        return x.astype(np.float32)
    if dtype == "F16":
        with np.errstate(over="ignore"):
            return x.astype(np.float16)
    u = x.astype(np.float32).view(np.uint32)
    r = ((u.astype(np.uint64) + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), r).astype(np.uint16)


def to_f32(raw, dtype):
    if dtype == "BF16":
        return (raw.astype(np.uint32) << 16).view(np.float32)
    return raw.astype(np.float32)


def source(shape, dtype, special):
    x = (rng.standard_normal(shape) * 0.05).astype(np.float32)
    flat = x.reshape(-1)
    if special:
        flat[:64] = 0
        flat[70:90] *= np.float32(1e-6)
        flat[len(flat) // 2] = 1e4
    return to_dtype(x, dtype)


def state(codec, dtype, shape, offset):
    name = "fp4" if codec == "fp4" else "nf4"
    text = Q.quant_state_json(name, TORCH[dtype], shape, offset)
    if offset is not None:
        text = text[: text.rindex(b" ") + 1] + b"%.8e}" % float(offset)
    return np.frombuffer(text, np.uint8)


def parts(codec, dtype, w):
    if codec == "int8":
        q, scb = Q.quantize_int8(w)
        return {"codes": q, "scb": scb}
    kind = "fp4" if codec == "fp4" else "nf4"
    packed, absmax = Q.quantize_4bit(w, kind, "cuda")
    out = {"codes": packed, "absmax": absmax}
    offset = None
    if codec == "dq":
        codes, nested, offset = Q.double_quant(absmax, "cuda", "f64")
        out = {"codes": packed, "nested_codes": codes, "nested_absmax": nested,
               "nested_quant_map": Q.DYN}
    out["quant_map"] = Q.QUANT_MAP[kind]
    out["state"] = state(codec, dtype, w.shape, offset)
    return out


def cases():
    plain = [(1, 1), (3, 7), (37, 53), (5, 64), (65, 129)]
    pairs = [(s, d) for s in TORCH for d in TORCH]
    for codec in ("nf4", "fp4", "dq", "int8"):
        for i, (src, dtype) in enumerate(pairs):
            yield codec, src, dtype, 64, plain[i % len(plain)], False, i % 2 == 0
        for src, dtype in (("F32", "F32"), ("F16", "BF16"), ("BF16", "BF16")):
            yield codec, src, dtype, 64, (48, 67), True, False
            yield codec, src, dtype, 64, (90, 33), True, True
        yield codec, "BF16", "BF16", 64, (150, 150), False, True
        if codec != "int8":
            for size in (128, 256, 4096):
                yield codec, "F32", "BF16", size, (101, 89), False, True
    yield "dq", "BF16", "BF16", 64, (400, 130), False, False  # nested blocks: 4


def main():
    names = {np.dtype(np.float32): "F32", np.dtype(np.uint8): "U8",
             np.dtype(np.int8): "I8"}
    header, blob = {}, b""
    for i, (codec, src, dtype, size, shape, transposed, special) in enumerate(cases()):
        raw = source(shape, src, special)
        stored = raw.T if transposed else raw
        w = to_f32(to_dtype(to_f32(raw, src), dtype), dtype)
        Q.BS = size
        case = f"c{i:02}.{codec}.{src}.{dtype}.{size}.{'t' if transposed else 'n'}"
        tensors = {"src": (src, np.ascontiguousarray(stored))}
        for name, value in parts(codec, dtype, w).items():
            tensors[name] = (names[value.dtype], np.ascontiguousarray(value))
        for name, (kind, value) in tensors.items():
            data = value.tobytes()
            header[f"{case}.{name}"] = {
                "dtype": kind, "shape": list(value.shape),
                "data_offsets": [len(blob), len(blob) + len(data)]}
            blob += data
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(sys.argv[1], "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + blob)


if __name__ == "__main__":
    main()
