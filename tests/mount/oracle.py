#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a view must be, computed a second time from docs/FORMATS.md in numpy, sharing no
code with the program (but the table of architectures): check_model compares every file
of the view of a model directory with it, byte by byte; write_view writes one.

    oracle.py SOURCE_DIR VIEW_DIR VIEW        compares by hand
"""
import json
import os
import struct
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
REFERENCE = os.path.join(os.path.dirname(HERE), "reference")
sys.path[:0] = [HERE, REFERENCE]
import bnbquant as Q  # noqa: E402
import bnbrule as R  # noqa: E402
import qfstore as S  # noqa: E402

TABLES = (os.path.join(os.path.dirname(os.path.dirname(HERE)), "view", "arch_table.json"),
          os.path.join(REFERENCE, "rule_table.json"))


def load_table():
    for path in TABLES:
        if os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                R._T = json.load(f)
            return
    raise FileNotFoundError(TABLES[0])


def widen(raw, dtype):
    if dtype == "F32":
        return np.frombuffer(raw, "<f4")
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)


def cast(raw, source, target):
    """Bytes of one float dtype as another, rounded to nearest even, NaN quiet."""
    if source == target:
        return raw
    x = widen(raw, source)
    if target == "F32":
        return x.tobytes()
    with np.errstate(all="ignore"):
        if target == "F16":
            return x.astype(np.float16).tobytes()
    bits = x.view(np.uint32)
    bits = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(x), np.uint16(0x7FC0), bits).astype("<u2").tobytes()


def mean_f64(x):
    """Eight accumulators in binary64, element i into i mod 8; rounded once at the end."""
    n = x.size
    padded = np.zeros(-(-n // 8) * 8)
    padded[:n] = x
    # cumsum adds one by one, in order; sum() would add in pairs.
    acc = np.cumsum(padded.reshape(-1, 8), axis=0)[-1]
    total = ((acc[0] + acc[1]) + (acc[2] + acc[3])) + ((acc[4] + acc[5]) + (acc[6] + acc[7]))
    return np.float32(total / n)


def quant_state(qt, D, shape, offset):
    text = Q.quant_state_json(qt, R.TORCH[D], shape)
    if offset is None:
        return text
    if np.isfinite(offset):
        number = "%.8e" % float(offset)
    else:
        number = "NaN" if np.isnan(offset) else "-Infinity" if offset < 0 else "Infinity"
    return (text[:-1] + b', "nested_blocksize": 256, "nested_dtype": "float32", '
            b'"nested_offset": ' + f"{number:<14}".encode() + b"}")


def parts_of(name, raw, dtype, shape, view, D, transposed):
    """The parts of a quantized weight in the order of FORMATS section 3."""
    w = widen(cast(raw, dtype, D), D).reshape(shape)
    if transposed:
        w = np.ascontiguousarray(w.T)
    if view == "int8":
        codes, scb = Q.quantize_int8(w)
        return [(name, "I8", list(w.shape), codes.tobytes()),
                (name[:-6] + "SCB", "F32", [w.shape[0]], scb.tobytes()),
                (name + "_format", "U8", [], b"\0")]
    qt = "fp4" if view == "fp4" else "nf4"
    packed, absmax = Q.quantize_4bit(w, qt, "cuda")
    out = [(name, "U8", [packed.size, 1], packed.tobytes())]
    offset = None
    if view == "dq":
        with np.errstate(all="ignore"):
            offset = mean_f64(absmax)
            codes, nested = Q.quantize_blockwise8((absmax - offset).astype(np.float32),
                                                  "cuda")
        out += [(name + ".absmax", "U8", [codes.size], codes.tobytes()),
                (name + ".nested_absmax", "F32", [nested.size], nested.tobytes()),
                (name + ".nested_quant_map", "F32", [256], Q.DYN.tobytes())]
    else:
        out.append((name + ".absmax", "F32", [absmax.size], absmax.tobytes()))
    out.append((name + ".quant_map", "F32", [16], Q.QUANT_MAP[qt].tobytes()))
    state = quant_state(qt, D, w.shape, offset)
    out.append((f"{name}.quant_state.bitsandbytes__{qt}", "U8", [len(state)], state))
    return out


def size_of(parts):
    return sum(len(p[3]) for p in parts)


def groups_of(name, raw, dtype, shape, view, plan):
    if name in plan.quant:
        parts = parts_of(name, raw, dtype, shape, view, plan.dtype, name in plan.conv1d)
        if view == "int8":
            return [sorted(parts[:2], key=lambda p: -S.SIZE[p[1]]), parts[2:]]
        state = parts.pop()
        pad = -(size_of(parts) + len(state[3])) % 8
        data = state[3] + b" " * pad
        parts.append((state[0], "U8", [len(data)], data))
        return [sorted(parts, key=lambda p: -S.SIZE[p[1]])]
    target = plan.cast.get(name, dtype)
    return [[(name, target, shape, cast(raw, dtype, target))]]


def shard_of(source, view, plan):
    """(header text without padding, metadata, data) of a view shard."""
    tensors, metadata, _ = S.read_header(source)
    first, rest = [], []
    for name, (dtype, shape, begin, end) in tensors.items():
        for group in groups_of(name, source[begin:end], dtype, shape, view, plan):
            (first if size_of(group) % 8 == 0 else rest).extend(group)
    rest.sort(key=lambda p: -S.SIZE[p[1]])
    return first + rest, {**(metadata or {}), "format": "pt"}


def plan_of(directory):
    """(plan or None, [shard names], index name or None) of a model directory."""
    with open(os.path.join(directory, "config.json"), encoding="utf-8") as f:
        config = json.load(f)
    names, index = [], None
    for stem in ("model", "diffusion_pytorch_model"):
        path = os.path.join(directory, stem + ".safetensors")
        if os.path.exists(path):
            names = [stem + ".safetensors"]
        elif os.path.exists(path + ".index.json"):
            index = stem + ".safetensors.index.json"
            with open(path + ".index.json", encoding="utf-8") as f:
                names = sorted(set(json.load(f)["weight_map"].values()))
        if names:
            break
    tensors = {}
    for name in names:
        header, _, _ = S.read_header(S.read_file(os.path.join(directory, name)))
        tensors.update((k, (v[0], v[1])) for k, v in header.items())
    load_table()
    return R.plan(tensors, config), config, names, index


def quantization_config(view, plan):
    four = view != "int8"
    return {"_load_in_4bit": four, "_load_in_8bit": not four,
            "bnb_4bit_compute_dtype": R.TORCH[plan.dtype] if four else "float32",
            "bnb_4bit_quant_storage": "uint8",
            "bnb_4bit_quant_type": "nf4" if view in ("nf4", "dq") else "fp4",
            "bnb_4bit_use_double_quant": view == "dq",
            "llm_int8_enable_fp32_cpu_offload": False, "llm_int8_has_fp16_weight": False,
            "llm_int8_skip_modules": plan.skip, "llm_int8_threshold": 6.0,
            "load_in_4bit": four, "load_in_8bit": not four,
            "quant_method": "bitsandbytes"}


def expected_config(config, view, plan):
    out = json.loads(json.dumps(config))
    out["quantization_config"] = quantization_config(view, plan)
    if "_class_name" not in config:
        subs = [v for k, v in out.items() if isinstance(v, dict) and "model_type" in v
                and k != "quantization_config"]
        for part in [out, *subs]:
            part["quantization_config"] = out["quantization_config"]
            part["dtype"] = R.TORCH[plan.dtype]
            part.pop("torch_dtype", None)
    return out


def expected_tensors(directory, view):
    """{name: (dtype, shape, bytes)} of all shards of the view, and the plan."""
    plan, _, names, _ = plan_of(directory)
    out = {}
    for name in names:
        parts, _ = shard_of(S.read_file(os.path.join(directory, name)), view, plan)
        out.update((p[0], (p[1], p[2], p[3])) for p in parts)
    return out, plan


def shard_bytes(parts, metadata):
    return S.header_of(parts, metadata) + b"".join(p[3] for p in parts)


def write_view(source, out, view):
    """Writes the view of a model directory: a stand-in for a mount of it."""
    plan, config, names, index = plan_of(source)
    weight_map, total = {}, 0
    for name in names:
        parts, metadata = shard_of(S.read_file(os.path.join(source, name)), view, plan)
        S.write(os.path.join(out, name), shard_bytes(parts, metadata))
        weight_map.update((p[0], name) for p in parts)
        total += size_of(parts)
    S.write_json(os.path.join(out, "config.json"), expected_config(config, view, plan))
    if index:
        S.write_json(os.path.join(out, index),
                     {"metadata": {"total_size": total}, "weight_map": weight_map})
    for name in S.files_below(source):
        if not os.path.exists(os.path.join(out, name)):
            S.write(os.path.join(out, name), S.read_file(os.path.join(source, name)))


def differences(got, parts, metadata, where):
    """What is wrong with the bytes of a view shard, as sentences."""
    (n,) = struct.unpack("<Q", got[:8])
    have = json.loads(got[8:8 + n]).get("__metadata__")
    if have != metadata:
        yield f"{where}: metadata {have}, not {metadata}"
    text = S.header_of(parts, have)[8:]  # with the metadata in the order found
    if got[8:8 + n] != text:
        at = next((i for i, (a, b) in enumerate(zip(got[8:8 + n], text)) if a != b),
                  min(n, len(text)))
        yield (f"{where}: header differs at {at}: …{got[8 + at - 40:8 + at + 40]!r}, "
               f"not …{text[max(0, at - 40):at + 40]!r}")
        return
    off = 8 + n
    if len(got) != off + size_of(parts):
        yield f"{where}: {len(got)} bytes, not {off + size_of(parts)}"
    for name, dtype, _, data in parts:
        have = got[off:off + len(data)]
        if have != data:
            bad = [i for i, (a, b) in enumerate(zip(have, data)) if a != b] or [len(have)]
            yield (f"{where}: {name} ({dtype}): {len(bad)} of {len(data)} bytes differ, "
                   f"the first at {bad[0]}")
        off += len(data)


def check_model(source, view_dir, view):
    """Compares the view of one model directory; returns sentences, none when equal."""
    plan, config, names, index = plan_of(source)
    wrong = []
    if plan is None:
        for name in os.listdir(source):
            a, b = os.path.join(source, name), os.path.join(view_dir, name)
            if os.path.isfile(a) and S.read_file(a) != S.read_file(b):
                wrong.append(f"{b}: is not passed through")
        return wrong
    weight_map, total = {}, 0
    for name in names:
        parts, metadata = shard_of(S.read_file(os.path.join(source, name)), view, plan)
        path = os.path.join(view_dir, name)
        wrong += differences(S.read_file(path), parts, metadata, path)
        weight_map.update((p[0], name) for p in parts)
        total += size_of(parts)
    with open(os.path.join(view_dir, "config.json"), encoding="utf-8") as f:
        if json.load(f) != expected_config(config, view, plan):
            wrong.append(f"{f.name}: not what FORMATS section 6 says")
    if index:
        with open(os.path.join(source, index), encoding="utf-8") as f:
            metadata = json.load(f).get("metadata", {})
        with open(os.path.join(view_dir, index), encoding="utf-8") as f:
            got = json.load(f)
        if got.get("weight_map") != weight_map:
            wrong.append(f"{index}: weight_map")
        if got.get("metadata") != {**metadata, "total_size": total}:
            wrong.append(f"{index}: metadata {got.get('metadata')}")
    return wrong


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    problems = check_model(*sys.argv[1:])
    print("\n".join(problems) or "equal")
    sys.exit(1 if problems else 0)
