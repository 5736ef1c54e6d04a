#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""make_scaled.py OUT: writes scaled.safetensors, what the libraries make of some weights.

SOURCE.DTYPE.src is a weight, SOURCE.DTYPE.CODEC.(codes|scale|zero_point|shape) what the
library that CODEC is of makes of it. scaled_test.c runs the backends on the sources.
Needs torch, torchao, compressed-tensors and transformers; the output is committed.
"""
import sys

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file
from torchao.quantization import (Float8WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig,
                                  Int8WeightOnlyConfig, PerRow, quantize_)
from torchao.quantization import Float8Tensor
from transformers import FineGrainedFP8Config
from transformers.integrations.finegrained_fp8 import Fp8Quantize

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
torch.manual_seed(2026)


# ---- sources, in float32 ----

def normal(rows, cols):
    """Weights; some rows much smaller or larger, some elements far out."""
    x = torch.randn(rows, cols) * 0.05
    x[1] *= 1e-3
    x[2] *= 200
    x[3, ::7] = 0
    x[4, 5] = 30
    x[5] = x[5].clamp(-0.01, 0.01)
    return x


def int_ties():
    """Quotients at and around the halves, under scales that are powers of two."""
    steps = torch.arange(-128, 128, dtype=torch.float32)
    x = torch.stack([steps + 0.5, steps + 0.49, steps * 0.0625 + 0.5, -steps - 0.5])
    x = x.repeat(1, 2)
    x[:, ::128] = torch.tensor([[127.5], [127.5], [7.5], [-127.5]])
    return x * torch.tensor([[1.0], [2.0**-9], [1.0], [2.0**-3]])


def float_ties(numbers):
    """Every 8-bit float, the middle of each pair, and what lies beside it."""
    f = numbers[numbers >= 0].sort().values
    m = (f[1:] + f[:-1]) / 2
    most = f[-1]
    x = torch.cat([f, m, m * (1 + 2.0**-7), m * (1 - 2.0**-7)]).clamp(max=most)
    x = torch.cat([x, torch.zeros(-len(x) % 128)])
    x = torch.stack([x, -x])
    x[:, ::128] = most
    return x


def zeros():
    x = torch.randn(6, 128) * 0.1
    x[1] = 0
    x[3] = -0.0
    x[4, 1:] = 0
    return x


def tiny():
    """Down to the smallest numbers of every dtype."""
    sizes = torch.tensor([2.0**-e for e in (8, 12, 14, 18, 20, 24, 30, 100, 126, 133)])
    return torch.randn(10, 128) * sizes[:, None]


def block():
    x = torch.randn(128, 384) * 0.05
    x[:, 128:256] = 0
    x[3, 200] = -0.0
    x[5, 300] = 500
    return x


def all_f8(dtype):
    x = torch.arange(256, dtype=torch.uint8).view(dtype).float()
    return x[torch.isfinite(x)]


SOURCES = {
    "normal": normal(16, 256),
    "odd": normal(7, 53),
    "int_ties": int_ties(),
    "e4m3_ties": float_ties(all_f8(torch.float8_e4m3fn)),
    "e5m2_ties": float_ties(all_f8(torch.float8_e5m2)),
    "zeros": zeros(),
    "tiny": tiny(),
    "block": block(),
}


# ---- the libraries ----

def torchao(config):
    def run(w):
        layer = torch.nn.Linear(w.shape[1], w.shape[0], bias=False, dtype=w.dtype)
        layer.weight = torch.nn.Parameter(w.clone(), requires_grad=False)
        quantize_(layer, config)
        q = layer.weight
        out = {"codes": q.qdata, "scale": q.scale}
        if getattr(q, "zero_point", None) is not None:
            out["zero_point"] = q.zero_point
        return out
    return run


def float8dq(w):
    """What Float8DynamicActivationFloat8WeightConfig calls; it wants a GPU itself."""
    q = Float8Tensor.from_hp(w, float8_dtype=torch.float8_e4m3fn, granularity=PerRow())
    return {"codes": q.qdata, "scale": q.scale}


def fp8(w):
    class Quantizer:
        quantization_config = FineGrainedFP8Config(weight_block_size=(128, 128))
    out = Fp8Quantize(Quantizer()).convert({"l.weight": w})
    return {"codes": out["l.weight"], "scale": out["l.weight_scale_inv"]}


def compressed_tensors(bits, kind, group, packed=False):
    """With quotients in float32, as the library's own GPU kernel has them; its code for
    CPUs rounds each quotient to the weight's dtype before it rounds it to a code, which
    gives up to a twelfth of bfloat16 weights another code. Without a zero point: adding
    one turns -0.0 into 0.0."""
    args = QuantizationArgs(num_bits=bits, type=kind, symmetric=True,
                            strategy="group" if group else "channel", group_size=group)

    def run(w):
        groups = w.reshape(w.shape[0], -1, group or w.shape[1])
        scale, _ = calculate_qparams(groups.amin(2), groups.amax(2), args)
        codes = quantize(w.float(), scale.float(), None, args, dtype=args.pytorch_dtype())
        if not packed:
            return {"codes": codes, "scale": scale}
        return {"codes": pack_to_int32(codes, bits), "scale": scale,
                "shape": torch.tensor(w.shape, dtype=torch.int64)}
    return run


CODECS = {
    "ao-int8wo": (torchao(Int8WeightOnlyConfig(version=2, granularity=PerRow())), 1),
    "ao-int8dq": (torchao(Int8DynamicActivationInt8WeightConfig(version=2)), 1),
    "ao-float8wo": (torchao(Float8WeightOnlyConfig()), 1),
    "ao-float8wo-e5m2": (torchao(Float8WeightOnlyConfig(weight_dtype=torch.float8_e5m2)), 1),
    "ao-float8dq-row": (float8dq, 1),
    "fp8": (fp8, 128),
    "ct-fp8": (compressed_tensors(8, "float", None), 1),
    "ct-w8a8": (compressed_tensors(8, "int", None), 1),
    "ct-w8a16": (compressed_tensors(8, "int", 128, True), 128),
    "ct-w4a16": (compressed_tensors(4, "int", 128, True), 128),
}


def main():
    out = {}
    for name, x in SOURCES.items():
        for dtype, torch_dtype in DTYPES.items():
            w = x.to(torch_dtype).contiguous()
            out[f"{name}.{dtype}.src"] = w
            for codec, (run, group) in CODECS.items():
                if w.shape[1] % group or codec == "fp8" and w.shape[0] % 128:
                    continue
                if name == "block" and codec != "fp8":
                    continue
                for part, value in run(w.clone()).items():
                    key = f"{name}.{dtype}.{codec}.{part}"
                    out[key] = value.detach().clone().contiguous()
    save_file(out, sys.argv[1])


if __name__ == "__main__":
    main()
