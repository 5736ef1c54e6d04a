#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs diff against numpy: for every tensor of every model the numbers of its JSON are
those that numpy finds in binary64 over the source and what the parts of the tests' own
definition (tests/mount/oracle.py) stand for; and those values are what bitsandbytes'
dequantize gives.

    QUANTFS_BIN=build/ci/cli/quantfs .venv/bin/python tests/loaders/diff.py

One line a test, "pass NAME" or "fail NAME: why"; 1 when one failed."""
import json
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(os.path.dirname(HERE), "mount")]
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error")
import qfmount  # noqa: E402
import qfstore as S  # noqa: E402
import run  # noqa: E402

VIEWS = ("nf4", "fp4", "dq", "int8")
GOLDEN = os.path.join(os.path.dirname(HERE), "golden", "bnb_cuda.safetensors")
CLOSE = 1e-6
INV127 = 7.874015718698502e-3


def make_golden(store, dtype):
    """The sources of the golden file as the weights of a model; the names of them."""
    data = S.read_file(GOLDEN)
    tensors, _, _ = S.read_header(data)
    out, names = [("model.norm.weight", dtype, [4])], {}
    for name, (kind, shape, begin, end) in tensors.items():
        if name.endswith(f".{dtype}.src") and len(shape) == 2:
            names[name] = f"model.layers.{len(names)}.mlp.up_proj.weight"
            out.append((names[name], dtype, shape, data[begin:end]))
    path = os.path.join(store, f"golden-{dtype}")
    S.write_shard(f"{path}/model.safetensors", out)
    S.write_json(f"{path}/config.json", S.llama_config(64, len(names), dtype, 96, 8))
    return {weight: data[slice(*tensors[name[:-3] + "nf4.dequantized"][2:])]
            for name, weight in names.items()}


def values_of(parts, name, view):
    """What the parts of a quantized weight stand for, in binary32, and its shape."""
    import numpy as np

    def get(part, dtype):
        return np.frombuffer(parts[part][2], dtype)

    with np.errstate(all="ignore"):
        if view == "int8":
            shape = parts[name][1]
            codes = get(name, np.int8).reshape(shape).astype(np.float32)
            scaled = codes * get(name[:-6] + "SCB", np.float32)[:, None]
            return scaled * np.float32(INV127), shape
        kind = "fp4" if view == "fp4" else "nf4"
        state = json.loads(parts[f"{name}.quant_state.bitsandbytes__{kind}"][2])
        absmax = get(name + ".absmax", np.uint8 if view == "dq" else np.float32)
        if view == "dq":
            nested = np.repeat(get(name + ".nested_absmax", np.float32), 256)[:absmax.size]
            absmax = (get(name + ".nested_quant_map", np.float32)[absmax] * nested +
                      np.float32(state["nested_offset"]))
        packed = get(name, np.uint8)
        count = int(np.prod(state["shape"]))
        codes = np.stack([packed >> 4, packed & 15], 1).reshape(-1)[:count]
        scale = np.repeat(absmax, state["blocksize"])[:count]
        return (get(name + ".quant_map", np.float32)[codes] * scale), state["shape"]


def theirs(parts, name, view):
    """The same by bitsandbytes."""
    import bitsandbytes.functional as F
    import torch

    def tensor(part):
        dtype, shape, data = parts[part]
        kind = {"U8": torch.uint8, "F32": torch.float32, "I8": torch.int8}[dtype]
        return torch.frombuffer(bytearray(data), dtype=kind).reshape(shape)

    if view == "int8":
        return F.int8_vectorwise_dequant(tensor(name), tensor(name[:-6] + "SCB"))
    state = {part[len(name) + 1:]: tensor(part) for part in parts
             if part.startswith(name + ".")}
    state = F.QuantState.from_dict(state, device="cpu")
    state.dtype = torch.float32
    # As one row: bitsandbytes 0.50.2's CPU kernel gives wrong values with AVX-512 where
    # a row's length is a multiple of 16 and not of the block size. Its other kernels see
    # no rows.
    state.shape = torch.Size([state.shape.numel()])
    return F.dequantize_4bit(tensor(name), state)


def measure(x, y):
    """The numbers of quantfs diff, by their definitions."""
    import numpy as np
    good = np.isfinite(x)
    lost = good & ~np.isfinite(y)
    both = good & ~lost
    a, b = x[both].astype(np.float64), y[both].astype(np.float64)
    d = a - b
    error, xx, yy = (d * d).sum(), (a * a).sum(), (b * b).sum()
    out = {"nonfinite_source": int((~good).sum()), "nonfinite_view": int(lost.sum()),
           "mse": error / d.size if d.size else None,
           "max_abs_error": np.abs(d).max() if d.size else None,
           "sqnr_db": 10 * np.log10(xx / error) if error > 0 and xx > 0 else None,
           "cosine": (a * b).sum() / np.sqrt(xx * yy) if xx > 0 and yy > 0 else None}
    return out, (error, xx, yy, (a * b).sum(), d.size)


def close(got, want):
    if got is None or want is None:
        return got is want
    return abs(got - want) <= CLOSE * abs(want)


class Models:
    def __init__(self, store, report):
        self.store, self.report = store, report

    def diff(self, name, cache):
        rc, out, err = qfmount.run("diff", "-q", "--json", "-o", f"cache={cache}",
                                   "--model", os.path.join(self.store, name), *VIEWS,
                                   timeout=600)
        if rc != 0:
            raise RuntimeError(err)
        return json.loads(out)["models"][0]

    def sources(self, name, transposed):
        import numpy as np
        import oracle
        out = {}
        directory = os.path.join(self.store, name)
        for file in sorted(os.listdir(directory)):
            if not file.endswith(".safetensors"):
                continue
            data = S.read_file(os.path.join(directory, file))
            for tensor, (dtype, shape, begin, end) in S.read_header(data)[0].items():
                if dtype in S.TORCH:
                    x = oracle.widen(data[begin:end], dtype).reshape(shape)
                    out[tensor] = np.ascontiguousarray(x.T) if tensor in transposed else x
        return out

    def check(self, name, cache):
        import oracle
        got = self.diff(name, cache)
        for i, view in enumerate(VIEWS):
            parts, plan = oracle.expected_tensors(os.path.join(self.store, name), view)
            sources = self.sources(name, plan.conv1d)
            yield f"{view}:{name}", self.wrong(got, i, view, parts, plan, sources)

    def wrong(self, got, index, view, parts, plan, sources):
        import numpy as np
        import oracle
        totals, out = {"quantized": np.zeros(5), "all": np.zeros(5)}, []
        for tensor in got["tensors"]:
            name, cell = tensor["name"], tensor["views"][index]
            if name not in sources:
                continue
            x = sources[name]
            kind = "quantized" if name in plan.quant else \
                "cast" if parts[name][0] != tensor["dtype"] else "kept"
            if kind == "quantized":
                y, shape = values_of(parts, name, view)
                y = y.reshape(shape)
                other = theirs(parts, name, view).numpy().reshape(shape)
                if not np.array_equal(y, other, equal_nan=True):
                    out.append(f"{name}: not what bitsandbytes gives")
            else:
                y = oracle.widen(parts[name][2], parts[name][0]).reshape(x.shape)
            want, sums = measure(x, y)
            out += [f"{name}: {key} is {cell[key]}, numpy {value}"
                    for key, value in want.items() if not close(cell[key], value)]
            if cell["kind"] != kind:
                out.append(f"{name}: {cell['kind']}, not {kind}")
            totals["all"] += sums
            totals["quantized"] += np.array(sums) * (kind == "quantized")
        for over, (error, xx, yy, xy, count) in totals.items():
            total = got["views"][index][over]
            for key, value in (("mse", error / count), ("sqnr_db", 10 * np.log10(xx / error)),
                               ("cosine", xy / np.sqrt(xx * yy)), ("compared", count)):
                if not close(total[key], value):
                    out.append(f"{over}: {key} is {total[key]}, numpy {value}")
        return out


def check_golden(store, name, values):
    """The values of the definition are those that bitsandbytes' CUDA kernels gave."""
    import numpy as np
    import oracle
    parts, plan = oracle.expected_tensors(os.path.join(store, name), "nf4")
    wrong = [] if set(values) == set(plan.quant) else ["other tensors are quantized"]
    for weight, data in values.items():
        y, _ = values_of(parts, weight, "nf4")
        want = np.frombuffer(data, np.float32)
        # All-zero blocks: NaN on the device (docs/FORMATS.md section 2), zero here.
        same = (y.reshape(-1) == want) | (np.isnan(want) & ~(np.abs(y.reshape(-1)) > 0))
        if not (same | (np.isnan(y.reshape(-1)) & np.isnan(want))).all():
            wrong.append(f"{weight}: other values than on the device")
    return wrong


def main():
    try:
        import models
    except ImportError as e:
        print(f"skip all: {e}")
        return 77
    report, work = run.Report(), tempfile.mkdtemp(prefix="quantfs-diff-")
    try:
        store, cache = os.path.join(work, "store"), os.path.join(work, "cache")
        for name, (make, _) in models.MODELS.items():
            make(os.path.join(store, name))
        names = [*models.MODELS, *run.make_odd_models(store)]
        golden = {f"golden-{d}": make_golden(store, d) for d in ("F32", "F16", "BF16")}
        report.check("values:golden-F32",
                     check_golden(store, "golden-F32", golden["golden-F32"]))
        check = Models(store, report)
        for name in [*names, *golden]:
            for test, wrong in check.check(name, cache):
                report.check(test, wrong)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
