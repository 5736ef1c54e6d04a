# SPDX-License-Identifier: Apache-2.0
"""(a) Every kernel on one thread, source in memory, against memcpy and bitsandbytes."""
import json
import subprocess

from common import Skip, Table

KERNELS = ("nf4", "fp4", "dq", "int8", "ao-int8wo", "ct-w8a8", "ct-w8a16", "ct-w4a16",
           "ao-float8wo", "ao-float8wo-e5m2", "fp8", "q8_0", "q4_0", "q5_1")


def measure(ctx):
    """{(dtype, isa, kernel): (GB/s, ratio to memcpy)}"""
    size, passes = (16, 1) if ctx.quick else (512, max(ctx.reps, 5))
    done = subprocess.run([ctx.program("qf_bench_kernels"), str(size), str(passes)],
                          capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        fields = line.split()
        if len(fields) == 5 and fields[0] in ("F32", "F16", "BF16"):
            fields.insert(1, "")
        if "to" not in fields:
            dtype, isa, kernel, rate, _, ratio = fields
            found[dtype, isa, kernel] = float(rate), float(ratio)
    return found


def run(ctx):
    table = Table("a", "Kernels, one thread, source in memory",
                  ["dtype", "kernel", "instructions", "GB/s of source", "ratio to memcpy",
                   "ratio to bitsandbytes (one thread)"],
                  "memory bandwidth for int8 and AVX-512; the comparisons for the 4-bit "
                  "codes with AVX2 (16 lanes; fp32: 8); scalar code is the definition, not meant "
                  "to be fast.")
    try:
        theirs = json.loads(ctx.child("bnb_cpu.py", 1 if ctx.quick else ctx.reps))
    except Skip as e:
        theirs = {}
        table.notes.append(f"SKIP bitsandbytes: {e}")
    found = measure(ctx)
    for dtype in ("F32", "F16", "BF16"):
        table.add(dtype, "memcpy", "", found[dtype, "", "memcpy"][0], "1.00", "")
        for kernel in KERNELS:
            for isa in ("scalar", "avx2", "avx512"):
                if (dtype, isa, kernel) in found:
                    rate, ratio = found[dtype, isa, kernel]
                    other = theirs.get(f"{dtype} {kernel}")
                    table.add(dtype, kernel, isa, rate, ratio,
                              f"{rate / other:.0f}" if other else "")
    return table
