#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs export and verify with the real libraries: an exported directory loads as the
mounted view does, bit for bit, however it is cut into shards; and what bitsandbytes itself
has saved (on this processor) is what the view says, but for known ties.
  QUANTFS_BIN=… export.py
Prints "pass NAME", "fail NAME: why" and "skip NAME: why"; exits 1 when anything failed."""
import gc
import json
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "mount")]
import qfmount  # noqa: E402
import qfstore as S  # noqa: E402
from run import Report  # noqa: E402

VIEWS = ("nf4", "fp4", "dq", "int8")
# What may differ when bitsandbytes quantizes on a CPU (docs/EXPORT.md).
ALLOWED = {"nf4": {"buffer"}, "fp4": {"threshold", "cpu_code", "buffer"},
           "dq": {"offset", "cpu_nested", "buffer"}, "int8": {"buffer"}}


class Exports:
    def __init__(self, models, store, work, report):
        self.m, self.store, self.work, self.report = models, store, work, report
        self.cache = os.path.join(work, "cache")

    def export(self, view, name, *args):
        out = os.path.join(self.work, "out")
        shutil.rmtree(out, ignore_errors=True)
        rc, _, err = qfmount.run("export", "-q", "-o", f"cache={self.cache}", "--view", view,
                                 *args, os.path.join(self.store, name), out)
        assert rc == 0, err
        return out

    def verify(self, path, name, *args):
        rc, out, err = qfmount.run("verify", "-q", "--json", "-o", f"cache={self.cache}",
                                   path, "--against", os.path.join(self.store, name), *args)
        return rc, json.loads(out) if out else {"error": err}

    def loaded(self, path, name, auto):
        """(state, outputs, complaints)"""
        model, complaints = self.m.load(path, auto)
        state = self.m.state_of(model)
        self.m.prepare(model)
        return state, self.m.outputs(name, model, path), complaints

    def equals_mount(self, mounted, view, name, auto):
        want, outputs, _ = self.loaded(mounted, name, auto)
        for label, args in (("", ()), ("-resharded", ("--max-shard-size", "300KB"))):
            out = self.export(view, name, *args)
            shards = [f for f in os.listdir(out) if f.endswith(".safetensors")]
            got, mine, complaints = self.loaded(out, name, auto)
            wrong = list(complaints)
            wrong += [k for k in want.keys() | got.keys() if want.get(k) != got.get(k)]
            if not (mine == outputs).all():
                wrong.append("other outputs")
            if label and len(shards) < 3:
                wrong.append(f"{len(shards)} shards")
            if not label and S.digest_tree(out) != S.digest_tree(mounted):
                wrong.append("other files than in the mount")
            self.report.check(f"export{label}:{view}:{name}", wrong)
            rc, said = self.verify(out, name)
            ties = sum(said.get("known_ties", {1: 1}).values())
            self.report.check(f"verify{label}:{view}:{name}", None if rc == 0 and ties == 0
                              else f"exit {rc}: {said}")

    def saved(self, view, name, auto):
        """A checkpoint that bitsandbytes has made."""
        import torch
        from transformers import AutoConfig, BitsAndBytesConfig
        source, out = os.path.join(self.store, name), os.path.join(self.work, "saved")
        shutil.rmtree(out, ignore_errors=True)
        dtype = AutoConfig.from_pretrained(source).dtype or torch.float32
        if view == "int8":
            bnb = BitsAndBytesConfig(load_in_8bit=True)
        else:
            bnb = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="fp4" if view == "fp4" else "nf4",
                bnb_4bit_use_double_quant=view == "dq", bnb_4bit_compute_dtype=dtype)
        model = self.m.load(source, auto, quantization_config=bnb, dtype=dtype)[0]
        model.save_pretrained(out)
        return out

    def library(self, view, name, auto):
        out = self.saved(view, name, auto)
        rc, said = self.verify(out, name)
        named = {k for k, n in said.get("known_ties", {}).items() if n}
        wrong = [f"{d['tensor']}: {d}" for d in said.get("differences", [])]
        if rc != 0 or not named <= ALLOWED[view]:
            wrong = [f"exit {rc}, ties {named}", *wrong, said.get("error", "")]
        print(f"  {view}:{name}: {said.get('tensors')} {said.get('known_ties')}")
        self.report.check(f"library:{view}:{name}", wrong)
        self.flipped(out, view, name)

    def flipped(self, out, view, name):
        """One code of it, changed."""
        shard = [f for f in sorted(os.listdir(out)) if f.endswith(".safetensors")][0]
        data = bytearray(S.read_file(f"{out}/{shard}"))
        header, _, _ = S.read_header(bytes(data))
        code = "I8" if view == "int8" else "U8"
        weight = [n for n, (dtype, _, _, _) in header.items()
                  if n.endswith(".weight") and dtype == code][0]
        _, _, begin, end = header[weight]
        at = begin + (end - begin) * 2 // 3
        data[at] ^= 0x40
        S.write(f"{out}/{shard}", bytes(data))
        rc, said = self.verify(out, name)
        wrong = [(d["tensor"], d.get("index")) for d in said.get("differences", [])]
        index = at - begin if view == "int8" else 2 * (at - begin)
        self.report.check(f"flipped:{view}:{name}", None if rc == 3 and
                          wrong == [(weight, index)] else f"exit {rc}: {wrong}")


def main():
    reason = qfmount.why_not()
    if reason is None:
        try:
            import models
        except ImportError as e:
            reason = str(e)
    if reason:
        print(f"skip all: {reason}")
        return 77
    report, work = Report(), tempfile.mkdtemp(prefix="quantfs-export-")
    try:
        store = os.path.join(work, "store")
        for name, (make, _) in models.MODELS.items():
            make(os.path.join(store, name))
        exports = Exports(models, store, work, report)
        with qfmount.Mount(store, cache=os.path.join(work, "cache")) as m:
            for view in VIEWS:
                for name, (_, auto) in models.MODELS.items():
                    if name == "minilm" and view != "nf4":
                        continue  # the largest, and of the same kind
                    report.run(f"export:{view}:{name}", exports.equals_mount,
                               m.path(view, name), view, name, auto, quiet=True)
                    models.forget()
        for view in VIEWS:
            for name, (_, auto) in models.MODELS.items():
                report.run(f"library:{view}:{name}", exports.library, view, name, auto,
                           quiet=True)
                gc.collect()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
