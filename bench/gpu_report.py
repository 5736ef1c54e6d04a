#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes gpu.json and gpu.txt of gpu.log, in the folder given: kernel rates beside
bitsandbytes', engine rates and CPU time by backend, and what every step ended with."""
import json
import re
import sys


def main(out):
    kernels, bnb, reads, steps, lines = {}, {}, [], {}, []
    with open(f"{out}/gpu.log", encoding="utf-8", errors="replace") as f:
        for line in f:
            m = re.match(r"(kernel|bnb) (\S+) (\S+) (\d+) GB/s ([\d.]+)", line)
            if m:
                dtype = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}.get(
                    m[3], m[3])
                (kernels if m[1] == "kernel" else bnb)[m[2], dtype] = (int(m[4]),
                                                                     float(m[5]))
            m = re.match(r"read (\S+) (\S+) (\d+)\+(\d+) threads pass (\d+): ([\d.]+) GB "
                         r"of source, ([\d.]+) GB/s, CPU ([\d.]+) s/GB, peak (\d+)", line)
            if m:
                reads.append({"backend": m[1], "view": m[2], "readers": int(m[3]),
                              "workers": int(m[4]), "pass": int(m[5]),
                              "source_gb": float(m[6]), "gb_per_s": float(m[7]),
                              "cpu_s_per_gb": float(m[8]), "peak_mib": int(m[9])})
            m = re.match(r"== (.+): exit (\d+) after (\d+) s", line)
            if m:
                steps[m[1]] = {"exit": int(m[2]), "seconds": int(m[3])}
    for (kind, dtype), (rate, ratio) in kernels.items():
        other = bnb.get((kind, dtype))
        lines.append(f"kernel {kind:9} {dtype:5} {rate:6} GB/s of source, {ratio:5.2f} x "
                     "device copy" + (f", {rate / other[0]:6.2f} x bitsandbytes"
                                      if other and kind != "copy" else ""))
    best = {}
    for r in reads:
        key = (r["view"], r["readers"], r["workers"])
        old = best.setdefault(key, {}).get(r["backend"])
        if old is None or r["gb_per_s"] > old["gb_per_s"]:
            best[key][r["backend"]] = r
    ratios = []
    for (view, readers, workers), by in best.items():
        for name, r in by.items():
            lines.append(f"engine {name:6} {view:4} {readers}+{workers} threads: "
                         f"{r['gb_per_s']:5.1f} GB/s of source, CPU "
                         f"{r['cpu_s_per_gb']:.4f} s/GB")
        cpu = next((r for n, r in by.items() if n != "cuda"), None)
        if "cuda" in by and cpu is not None:
            ratio = by["cuda"]["cpu_s_per_gb"] / cpu["cpu_s_per_gb"]
            ratios.append({"view": view, "readers": readers, "workers": workers,
                           "cpu_time_ratio": round(ratio, 3)})
            lines.append(f"engine        {view:4} {readers}+{workers} threads: CPU time "
                         f"{ratio:.2f} x {cpu['backend']} (wanted: at most 0.25)")
    lines += [f"step {n}: exit {s['exit']} after {s['seconds']} s"
              for n, s in steps.items() if s["exit"] != 0]
    with open(f"{out}/gpu.json", "w", encoding="utf-8") as f:
        json.dump({"kernels": [{"kernel": k, "dtype": d, "gb_per_s": r, "of_copy": c,
                                "bitsandbytes_gb_per_s": bnb.get((k, d), (None,))[0]}
                               for (k, d), (r, c) in kernels.items()],
                   "reads": reads, "cpu_time": ratios, "steps": steps}, f, indent=1)
    with open(f"{out}/gpu.txt", "w", encoding="utf-8") as f:
        f.write("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
