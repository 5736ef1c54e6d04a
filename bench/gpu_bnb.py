# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes' CUDA kernels: their rate, and their bytes against ours.

    gpu_bnb.py rate              GB/s of source and ratio to a device copy in this run
    gpu_bnb.py bytes GPU_ENGINE  nf4 of random bf16 and fp16, theirs against ours
"""
import os
import statistics
import subprocess
import sys
import tempfile

import torch
import bitsandbytes.functional as F


def timed(call, rounds=9):
    times = []
    for i in range(rounds + 2):
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return statistics.median(times)


def rate():
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.randn(16384, 28672, device="cuda", dtype=dtype) * 0.02
        y = torch.empty_like(x)
        size = x.numel() * x.element_size()
        copy = timed(lambda: y.copy_(x))
        del y
        name = str(dtype).split(".")[1]
        print(f"bnb copy {name} {size / copy / 1e6:.0f} GB/s 1.00")
        for kind in ("nf4", "fp4"):
            ms = timed(lambda: F.quantize_4bit(x, blocksize=64, quant_type=kind))
            print(f"bnb {kind} {name} {size / ms / 1e6:.0f} GB/s {copy / ms:.3f}")
        if dtype == torch.float16:
            ms = timed(lambda: F.int8_vectorwise_quant(x))
            print(f"bnb int8 {name} {size / ms / 1e6:.0f} GB/s {copy / ms:.3f}")
        del x
        torch.cuda.empty_cache()


def check(engine):
    rows, cols = 16384, 8192
    failed = False
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).split(".")[1]
        x = torch.randn(rows, cols, device="cuda", dtype=dtype)
        x *= torch.exp2(torch.randint(-6, 3, (rows, 1), device="cuda")).to(dtype)
        packed, state = F.quantize_4bit(x, blocksize=64, quant_type="nf4")
        with tempfile.TemporaryDirectory() as tmp:
            src, codes, floats = (os.path.join(tmp, n) for n in ("src", "codes", "floats"))
            x.cpu().view(torch.int16).numpy().tofile(src)
            subprocess.run([engine, "encode", "cuda", "nf4", name, str(rows), str(cols),
                            src, codes, floats], check=True)
            ours = torch.frombuffer(bytearray(open(codes, "rb").read()), dtype=torch.uint8)
            absmax = torch.frombuffer(bytearray(open(floats, "rb").read()),
                                      dtype=torch.float32)
        wrong = int((ours != packed.flatten().cpu()).sum())
        wrong_absmax = int((absmax != state.absmax.flatten().cpu()).sum())
        zeros = int((absmax == 0).sum())
        print(f"bytes nf4 {name}: {wrong} of {ours.numel()} code bytes differ from "
              f"bitsandbytes, {wrong_absmax} of {absmax.numel()} absmax; "
              f"{zeros} all-zero blocks")
        failed |= wrong != 0 or wrong_absmax != 0
    return 1 if failed else 0


if __name__ == "__main__":
    if len(sys.argv) == 2 and sys.argv[1] == "rate":
        rate()
    elif len(sys.argv) == 3 and sys.argv[1] == "bytes":
        sys.exit(check(sys.argv[2]))
    else:
        sys.exit(__doc__)
