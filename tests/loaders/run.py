#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Loads views with the real transformers and bitsandbytes, and compares every file of
them with the tests' own definition (tests/mount/oracle.py).

    QUANTFS_BIN=build/ci/cli/quantfs .venv/bin/python tests/loaders/run.py
    … run.py --reference      no mount: checks the definition itself with the loaders

One line a test, "pass NAME", "fail NAME: why" or "skip NAME: why"; 1 when one failed."""
import json
import os
import shutil
import sys
import tempfile
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false",
                  HF_HUB_DISABLE_PROGRESS_BARS="1", TRANSFORMERS_VERBOSITY="warning")
import qfmount  # noqa: E402
import qfstore as S  # noqa: E402

VIEWS = ("nf4", "fp4", "dq", "int8")


class Report:
    def __init__(self):
        self.failed = self.passed = 0

    def check(self, name, wrong):
        """wrong: what is wrong, nothing when the test passes."""
        if wrong:
            self.failed += 1
            print(f"fail {name}: {wrong if isinstance(wrong, str) else wrong[:4]}")
        else:
            self.passed += 1
            print(f"pass {name}")
        sys.stdout.flush()

    def run(self, name, call, *args, quiet=False):
        """quiet: the call reports by itself; only that it broke off is said here."""
        try:
            wrong = call(*args)
            if wrong or not quiet:
                self.check(name, wrong)
        except Exception as e:  # a failed test must not take the others with it
            traceback.print_exc()
            self.check(name, f"{type(e).__name__}: {e}".replace("\n", " ")[:400])


def make_odd_models(store):
    """Shapes and dtypes that loaders' models do not have: odd counts, casts, tails."""
    odd = os.path.join(store, "odd")
    S.write_llama(f"{odd}/tails", hidden=66, inter=101, vocab=7)
    S.write_llama(f"{odd}/f32-as-bf16", hidden=40, inter=72, stored="F32", shards=3)
    S.write_llama(f"{odd}/f32-as-f16", dtype="F16", hidden=30, stored="F32")
    S.write_llama(f"{odd}/f16", dtype="F16", hidden=130, inter=6)
    S.write_llama(f"{odd}/large", hidden=1100, inter=2100, vocab=8)
    S.write_gpt2(f"{odd}/gpt2-bf16", dtype="BF16", hidden=52, layers=2)
    # A dense "zero" weight: all-zero blocks, rows and a whole zero tensor.
    zero = S.write_llama(f"{odd}/zeros")
    data = bytearray(S.read_file(f"{zero}/model.safetensors"))
    header, _, _ = S.read_header(bytes(data))
    _, _, begin, end = header["model.layers.0.mlp.up_proj.weight"]
    data[begin:end] = bytes(end - begin)
    _, _, begin, end = header["model.layers.0.mlp.gate_proj.weight"]
    data[begin + 128:begin + 1024] = bytes(896)
    S.write(f"{zero}/model.safetensors", bytes(data))
    return [os.path.join("odd", d) for d in sorted(os.listdir(odd))]


def said(quant_state):
    """What a quant_state says; its offset as the binary32 that it stands for."""
    import numpy as np
    out = json.loads(quant_state)
    if "nested_offset" in out:
        out["nested_offset"] = np.float32(out["nested_offset"])
    return out


def compare_states(view, got, want):
    """A loaded state against that of bitsandbytes on this processor. Exact for nf4 and
    int8; fp4 and dq differ between bitsandbytes' own backends by as much as is allowed
    here (docs/FORMATS.md section 2)."""
    import numpy as np
    for key, mine in got.items():
        theirs = want.get(key)
        if theirs is None:
            yield f"{key}: not in bitsandbytes' state"
        elif mine == theirs:
            continue
        elif "quant_state" in key:
            a, b = said(mine), said(theirs)
            offsets = [d.pop("nested_offset", 0.0) for d in (a, b)]
            if a != b or not np.allclose(*offsets, rtol=3e-7, atol=0):
                yield f"{key}: {a}, bitsandbytes {b}, offsets {offsets}"
        elif "nested_absmax" in key:
            a, b = (np.frombuffer(x, np.float32) for x in (mine, theirs))
            if not np.allclose(a, b, rtol=1e-5, atol=0):
                yield f"{key}: differs from bitsandbytes'"
        elif view == "fp4" or (view == "dq" and key.endswith(".absmax")):
            a, b = (np.frombuffer(x, np.uint8) for x in (mine, theirs))
            if a.size != b.size or (a != b).mean() > 0.02:
                yield f"{key}: more than 2 % of the bytes differ from bitsandbytes'"
        else:
            yield f"{key}: differs from bitsandbytes'"


class Loads:
    """Every view of every model through its loader."""

    def __init__(self, models, store, report):
        self.m, self.store, self.report = models, store, report
        self.seen = {}  # outputs of the first load, for the second

    def on_the_fly(self, path, auto, view, config):
        """The load that users do today: bitsandbytes quantizes the source."""
        import torch
        from transformers import BitsAndBytesConfig
        dtype = getattr(torch, config["dtype"])
        skip = config["quantization_config"]["llm_int8_skip_modules"]
        if view == "int8":
            bnb = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        else:
            bnb = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="fp4" if view == "fp4" else "nf4",
                bnb_4bit_use_double_quant=view == "dq", bnb_4bit_compute_dtype=dtype,
                llm_int8_skip_modules=skip)
        return self.m.load(path, auto, quantization_config=bnb, dtype=dtype)[0]

    def weights(self, state, name, view):
        """The quantized tensors of the loaded model, bit for bit."""
        import oracle
        expected, plan = oracle.expected_tensors(os.path.join(self.store, name), view)
        wrong = [] if plan.quant else ["nothing is quantized"]
        for part, (_, _, data) in expected.items():
            base = part.split(".weight")[0] if ".weight" in part else part[:-4]
            if base + ".weight" not in plan.quant:
                continue
            got = self.m.find(state, part)
            if "quant_state" in part:
                # A loader writes its JSON anew: compare what it says.
                if got is None or said(got) != said(data):
                    wrong.append(f"{part}: {got}, not {data}")
            elif got != data:
                wrong.append(f"{part}: {'is missing' if got is None else 'differs'}")
        return wrong

    def one(self, root, name, auto, view):
        path, tag = os.path.join(root, view, name), f"{view}:{name}"
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        model, complaints = self.m.load(path, auto)
        self.report.check(f"load:{tag}", complaints)
        state = self.m.state_of(model)
        self.report.run(f"weights:{tag}", self.weights, state, name, view)
        self.m.prepare(model)
        mine = self.m.outputs(name, model, path)
        del model
        self.seen[tag] = mine
        source = os.path.join(self.store, name)
        model = self.on_the_fly(source, auto, view, config)
        self.report.check(f"bitsandbytes:{tag}", list(
            compare_states(view, state, self.m.state_of(model))))
        self.m.prepare(model)
        cosine = self.m.cosine(mine, self.m.outputs(name, model, source))
        self.report.check(f"outputs:{tag}", None if cosine > 0.99 else
                          f"cosine {cosine:.5f} with the on-the-fly load")
        model, _ = self.m.load(source, auto)
        cosine = self.m.cosine(mine, self.m.outputs(name, model, source))
        self.report.check(f"sane:{tag}", None if cosine > 0.9 else
                          f"cosine {cosine:.5f} with the source")

    def again(self, root, name, auto, view):
        path, tag = os.path.join(root, view, name), f"{view}:{name}"
        model, complaints = self.m.load(path, auto)
        self.m.prepare(model)
        if complaints:
            return complaints
        same = (self.m.outputs(name, model, path) == self.seen[tag]).all()
        return None if same else "other outputs than before the remount"

    def all(self, root, call, prefix):
        for view in VIEWS:
            for name, (_, auto) in self.m.MODELS.items():
                self.report.run(f"{prefix}:{view}:{name}", call, root, name, auto, view,
                                quiet=call == self.one)
                self.m.forget()


def run_mounted(loads, odd, store, work, report):
    import oracle
    cache = os.path.join(work, "cache")
    with qfmount.Mount(store, cache=cache) as m:
        loads.all(m.mnt, loads.one, "loader")
        for view in VIEWS:
            for name in [*loads.m.MODELS, *odd]:
                report.run(f"bytes:{view}:{name}", oracle.check_model,
                           os.path.join(store, name), m.path(view, name), view)
        first = {v: S.digest_tree(m.path(v)) for v in VIEWS}
        status = m.status()
        report.check("first read quantizes", None if status["chunks_encoded"] > 0
                     else f"chunks_encoded={status['chunks_encoded']}")
    with qfmount.Mount(store, cache=cache) as m:
        second = {v: S.digest_tree(m.path(v)) for v in VIEWS}
        report.check("remount: same sha256", [f for v in VIEWS for f in first[v]
                                              if first[v][f] != second[v].get(f)])
        loads.all(m.mnt, loads.again, "again")
        status = m.status()
        report.check("remount: nothing is quantized", None
                     if status["chunks_encoded"] == 0 and status["cache_hits"] > 0
                     else f"chunks_encoded={status['chunks_encoded']} "
                          f"cache_hits={status['cache_hits']}")


def run_reference(loads, store, work):
    import oracle
    root = os.path.join(work, "views")
    for view in VIEWS:
        for name in loads.m.MODELS:
            oracle.write_view(os.path.join(store, name),
                              os.path.join(root, view, name), view)
    loads.all(root, loads.one, "loader")


def main():
    reference = "--reference" in sys.argv[1:]
    reason = None if reference else qfmount.why_not()
    if reason is None:
        try:
            import models
        except ImportError as e:
            reason = str(e)
    if reason:
        print(f"skip all: {reason}")
        return 77
    report, work = Report(), tempfile.mkdtemp(prefix="quantfs-loaders-")
    try:
        store = os.path.join(work, "store")
        for name, (make, _) in models.MODELS.items():
            make(os.path.join(store, name))
        loads = Loads(models, store, report)
        if reference:
            run_reference(loads, store, work)
        else:
            run_mounted(loads, make_odd_models(store), store, work, report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
