# SPDX-License-Identifier: Apache-2.0
"""What a loaded view must equal. Three sources, none of them the program under test:

- the bytes by definition: the weight of the same class loaded plain, quantized by the
  tests' own reference (tests/reference); every quantized tensor must equal them exactly;
- the library: the same loader quantizing on the fly with the same skip list. On a
  processor bitsandbytes defines int8 exactly, nf4 up to elements that lie on a threshold,
  and of fp4 and dq all but a small part (docs/FORMATS.md section 2);
- the outputs of one forward pass."""
import collections.abc
import json
import logging
import os
import sys

import bitsandbytes as bnb
import numpy as np
import torch

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
import oracle  # noqa: E402

STORED = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
QUANTIZED = (bnb.nn.Linear4bit, bnb.nn.Linear8bitLt)
FP4_BYTES, DQ_CODES = 0.02, 0.01  # how much of them bitsandbytes' CPU path may differ


class Log(logging.Handler):
    """`with Log() as log:` collects what the libraries warn about."""
    NAMES = ("transformers", "diffusers", "accelerate", "peft", "py.warnings")

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())

    def __enter__(self):
        logging.captureWarnings(True)
        for name in self.NAMES:
            logging.getLogger(name).addHandler(self)
        return self

    def __exit__(self, *_):
        for name in self.NAMES:
            logging.getLogger(name).removeHandler(self)
        logging.captureWarnings(False)


def raw(tensor):
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def state_of(model):
    """{name: (dtype, shape, bytes)} of everything that the model would save."""
    return {k: (v.dtype, tuple(v.shape), raw(v)) for k, v in model.state_dict().items()
            if torch.is_tensor(v)}


def quantized(model):
    return {name for name, m in model.named_modules() if isinstance(m, QUANTIZED)}


def linears(model):
    return {name for name, m in model.named_modules()
            if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"}


def definition(plain, names, view, dtype):
    """{name of part: bytes} for the quantized modules, from the plain model's weights."""
    out = {}
    for name in names:
        module = plain.get_submodule(name)
        weight = module.weight
        parts = oracle.parts_of(name + ".weight", raw(weight), STORED[weight.dtype],
                                list(weight.shape), view, STORED[dtype],
                                type(module).__name__ == "Conv1D")
        out.update((p[0], p[3]) for p in parts)
    return out


def said(quant_state):
    """What a quant_state says; its offset as the binary32 that it stands for."""
    out = json.loads(quant_state)
    out["nested_offset"] = np.float32(out.get("nested_offset", 0)).item()
    return out


def against_definition(state, expected):
    for name, data in expected.items():
        if name not in state:
            yield f"{name}: is not in the loaded model"
        elif "quant_state" in name:
            if said(state[name][2]) != said(data):
                yield f"{name}: {state[name][2]}, by definition {data}"
        elif state[name][2] != data:
            yield f"{name}: is not what the definition gives"


def unpack(data, count):
    codes = np.frombuffer(data, np.uint8)
    return np.stack([codes >> 4, codes & 15], 1).reshape(-1)[:count].astype(int)


def off_threshold(plain, name, mine, theirs):
    """Elements whose nf4 codes differ although they do not lie on a threshold."""
    module = plain.get_submodule(name.removesuffix(".weight"))
    w = module.weight.detach().double()
    w = (w.T if type(module).__name__ == "Conv1D" else w).reshape(-1).numpy()
    a, b = unpack(mine, w.size), unpack(theirs, w.size)
    at = np.flatnonzero(a != b)
    peak = np.array([np.abs(w[i:i + 64]).max() for i in range(0, w.size, 64)])
    y = w[at] / peak[at // 64]
    threshold = oracle.Q.NF4_CUDA_T.astype(float)[np.minimum(a, b)[at]]
    return int(np.sum((np.abs(a - b)[at] != 1) |
                      (np.abs(y - threshold) > 3e-7 * np.abs(threshold))))


class Library:
    """Compares with the on-the-fly load; counts what may differ."""

    def __init__(self, view, plain):
        self.view, self.plain = view, plain
        self.codes = "weight.absmax" if view == "dq" else ".weight"
        self.differing = self.total = 0

    def loose(self, name, mine, theirs):
        """How many codes differ, or None where the difference is not allowed."""
        if name.endswith(".weight") and self.view in ("nf4", "dq"):
            return None if off_threshold(self.plain, name, mine, theirs) else 0
        if name.endswith(self.codes) and self.view in ("fp4", "dq"):
            a, b = (np.frombuffer(x, np.uint8) for x in (mine, theirs))
            return int((a != b).sum())
        if name.endswith("nested_absmax"):
            a, b = (np.frombuffer(x, np.float32) for x in (mine, theirs))
            return 0 if np.allclose(a, b, rtol=1e-5, atol=0) else None
        if "quant_state" in name:
            a, b = said(mine), said(theirs)
            offsets = a.pop("nested_offset"), b.pop("nested_offset")
            return 0 if a == b and np.allclose(*offsets, rtol=3e-7, atol=0) else None
        return None

    def differences(self, mine, theirs):
        for name in sorted(set(mine) ^ set(theirs)):
            yield f"{name}: only in the {'view' if name in mine else 'on-the-fly load'}"
        for name in sorted(mine.keys() & theirs.keys()):
            a, b = mine[name], theirs[name]
            if name.endswith(self.codes) and a[0] == torch.uint8:
                self.total += len(a[2])
            if a == b:
                continue
            alike = a[0] == b[0] and (a[1] == b[1] or "quant_state" in name)
            count = self.loose(name, a[2], b[2]) if alike else None
            if count is None:
                yield f"{name}: {a[:2]} differs from the on-the-fly load's {b[:2]}"
            else:
                self.differing += count
        bound = {"fp4": FP4_BYTES, "dq": DQ_CODES}.get(self.view, 0)
        # Three codes more: for models so small that one code is a larger part.
        if self.differing > bound * self.total + 3:
            yield (f"{self.differing} of {self.total} codes differ from the on-the-fly "
                   "load's")


def transplant(model, expected):
    """Puts the quantized weights of the definition into an on-the-fly loaded model."""
    for name, module in list(model.named_modules()):
        if not isinstance(module, bnb.nn.Linear4bit):
            continue
        prefix, parts = name + ".weight", {}
        nested = f"{prefix}.nested_absmax" in expected
        for part, data in expected.items():
            if part.startswith(prefix + "."):
                codes = "quant_state" in part or nested and part == prefix + ".absmax"
                kind = torch.uint8 if codes else torch.float32
                parts[part] = torch.frombuffer(bytearray(data), dtype=kind)
        data = torch.frombuffer(bytearray(expected[prefix]), dtype=torch.uint8)
        module.weight = bnb.nn.Params4bit.from_prequantized(
            data=data.reshape(-1, 1), quantized_stats=parts, requires_grad=False,
            device="cpu", module=module)


def settle(model):
    """Takes two properties of a machine out of the numbers. On a processor with
    AVX512-BF16 bitsandbytes computes with repacked weights; and a tensor in a mapping
    lies at an address that makes a matrix product round otherwise."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()
    return model


def tensors_in(value):
    if torch.is_tensor(value):
        if value.is_floating_point():
            yield value
    elif isinstance(value, collections.abc.Mapping):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


@torch.no_grad()
def outputs(model, inputs):
    """All float tensors of one forward pass, flat, as float64."""
    torch.manual_seed(5)
    found = [t.double().reshape(-1) for t in tensors_in(model(**inputs))]
    if not found:
        raise ValueError("the forward pass gave no tensor")
    return torch.cat(found)


def cosine(a, b):
    return torch.nn.functional.cosine_similarity(a, b, dim=0).item()
