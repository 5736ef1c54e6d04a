# SPDX-License-Identifier: Apache-2.0
"""bitsandbytes' own CPU kernels: prints {"F32 nf4": GB/s of source, ...}. Small tensors,
for it is slow. Run by part_kernels.py with an interpreter that has it."""
import json
import statistics
import sys
import time

try:
    import torch
    from bitsandbytes import functional as F
except ImportError as e:
    print(e)
    sys.exit(77)


def rate(call, tensor, reps):
    call(tensor)
    times = []
    for _ in range(reps):
        begin = time.perf_counter()
        call(tensor)
        times.append(time.perf_counter() - begin)
    return tensor.numel() * tensor.element_size() / statistics.median(times) * 1e-9


def main():
    reps = int(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(1)
    kinds = {
        "nf4": lambda t: F.quantize_4bit(t, quant_type="nf4"),
        "fp4": lambda t: F.quantize_4bit(t, quant_type="fp4"),
        "dq": lambda t: F.quantize_4bit(t, quant_type="nf4", compress_statistics=True),
        "int8": F.int8_vectorwise_quant,
    }
    found = {}
    for name, dtype in (("F32", torch.float32), ("F16", torch.float16),
                        ("BF16", torch.bfloat16)):
        tensor = (torch.randn(1024, 1024) * 0.02).to(dtype)
        for kind, call in kinds.items():
            found[f"{name} {kind}"] = rate(call, tensor, reps)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
