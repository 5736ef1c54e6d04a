#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The matrix: every architecture × dtype × view through the unmodified loaders.

    QUANTFS_BIN=build/ci/cli/quantfs python tests/matrix/run.py [--sample]
        [--models a,b] [--dtypes fp32,fp16,bf16] [--views nf4,fp4,dq,int8]
        [--results build/matrix.json]

One line a cell: "pass NAME", "fail NAME: why", or "pass NAME (limit: …)" where the
libraries fail in the same way without any view. --results adds to a file from which
table.py makes docs/MATRIX.md."""
import argparse
import gc
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
# bitsandbytes compiles some of its CPU functions for each shape: minutes of compiling.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1",
                  TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_PROGRESS_BARS="1",
                  TQDM_DISABLE="1")
import qfmount  # noqa: E402

VIEWS = ("nf4", "fp4", "dq", "int8")
DTYPES = ("fp32", "fp16", "bf16")
# What every push runs: each rule of the policy and each codec at least once.
SAMPLE = {
    "llama": ("bf16", VIEWS), "llama-tied": ("fp16", ("nf4",)), "gpt2": ("bf16", VIEWS),
    "opt": ("fp16", ("nf4", "int8")), "bert-mlm": ("fp32", ("dq",)),
    "t5": ("fp16", ("nf4", "int8")), "whisper": ("fp32", ("fp4",)),
    "clip": ("fp32", ("int8",)), "siglip": ("bf16", ("nf4",)),
    "llava": ("bf16", ("nf4",)), "qwen2-vl": ("bf16", ("int8",)),
    "mixtral": ("bf16", ("nf4",)), "deepseek-v3": ("bf16", ("dq",)),
    "flux": ("bf16", ("nf4",)), "wan": ("fp16", ("int8",)), "unet-sd": ("fp32", ("fp4",)),
}


class Cell:
    """One model × dtype × view. `wrong`: sentences; `limit`: what the libraries cannot do
    without a view either; `count`: modules quantized and all."""

    def __init__(self, name, dtype, view):
        self.name, self.dtype, self.view = name, dtype, view
        self.wrong, self.limit, self.count, self.differing = [], "", None, (0, 0)

    def tag(self):
        return f"{self.view}:{self.name}:{self.dtype}"

    def result(self):
        return {"wrong": self.wrong, "limit": self.limit, "count": self.count,
                "differing": self.differing}

    def say(self):
        tag = self.tag()
        if self.wrong:
            some = "; ".join(self.wrong[:3]).replace("\n", " ")
            return f"fail {tag}: {some[:700]} ({len(self.wrong)} in all)"
        return f"pass {tag}" + (f" (limit: {self.limit})" if self.limit else "")


def end_on_sigterm():
    """A run that is told to end takes its mounts away first."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


def add_results(path, section, results):
    """Adds to the results of other runs in a JSON file."""
    data = {}
    if os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            data = json.load(f)
    data.setdefault(section, {}).update(results)
    with open(path, "w", encoding="utf-8") as f:
        json.dump(data, f, indent=1)


def attempt(call, *args, **more):
    """(result, None) or (None, the exception)."""
    try:
        return call(*args, **more), None
    except Exception as e:
        e.text = traceback.format_exc(limit=-6)
        return None, e


def same_failure(a, b):
    return b is not None and type(a) is type(b)


def summary(e):
    lines = str(e).strip().splitlines() or [""]
    return f"{type(e).__name__}: {lines[0][:90]}"


class Matrix:
    def __init__(self, work):
        import logging

        import compare
        import diffusion
        import models
        import torch
        torch.set_num_threads(1)  # tiny products: threads cost more than they give
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line a layer
        diffusion.allow_cpu()
        self.c = compare
        self.dtypes = models.DTYPES
        self.models = {**models.MODELS, **diffusion.MODELS}
        self.work = work

    def loud(self, call, *args, **more):
        """(result, exception, what the libraries warned about)."""
        with self.c.Log() as log:
            result, error = attempt(call, *args, **more)
        return result, error, log.lines

    def bits(self, model, view, dtype, config):
        """The quantization that a user without a view asks for."""
        import diffusers
        import transformers
        cls = (diffusers if model.library == "diffusers" else transformers)
        skip = config["quantization_config"]["llm_int8_skip_modules"]
        if view == "int8":
            return cls.BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skip)
        return cls.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="fp4" if view == "fp4" else "nf4",
            bnb_4bit_use_double_quant=view == "dq",
            bnb_4bit_compute_dtype=self.dtypes[dtype], llm_int8_skip_modules=skip)

    def run_model(self, mount, name, dtype, views):
        model, path = self.models[name], os.path.join(mount.store, name)
        (plain, _), _, quiet = self.loud(model.load, path, dtype, plain=True)
        for view in views:
            cell = Cell(name, dtype, view)
            _, error = attempt(self.run_cell, cell, model, path, mount.path(view, name),
                               plain, quiet)
            if error is not None:
                print(error.text, file=sys.stderr)
                cell.wrong.append(summary(error))
            gc.collect()
            yield cell

    def run_cell(self, cell, model, source, path, plain, quiet):
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        if "quantization_config" not in config:
            self.passed_through(cell, model, source, path, plain)
            return
        mine, error, lines = self.loud(model.load, path, cell.dtype)
        bits = self.bits(model, cell.view, cell.dtype, config)
        fly, fly_error, fly_lines = self.loud(model.load, source, cell.dtype,
                                              quantization_config=bits)
        if error is not None or fly_error is not None:
            self.failed_load(cell, model, error, fly, fly_error)
            return
        (mine, info), (fly, _) = mine, fly
        cell.wrong += [f"{k}: {sorted(map(str, v))[:4]}" for k, v in info.items() if v]
        cell.wrong += [f"warns: {s[:200]}" for s in lines
                       if s not in quiet and s not in fly_lines]
        names = self.c.quantized(mine)
        cell.count = (len(names), len(self.c.linears(plain)))
        if not names:
            cell.wrong.append("nothing is quantized")
        expected = self.c.definition(plain, names, cell.view, self.dtypes[cell.dtype])
        self.weights(cell, mine, fly, plain, expected)
        self.forward(cell, model, mine, fly, expected)

    def passed_through(self, cell, model, source, path, plain):
        """A view that quantizes nothing is right where the loader by itself does not:
        then it must hand out the source."""
        import diffusers
        import transformers
        cls = diffusers if model.library == "diffusers" else transformers
        fly, _ = model.load(source, cell.dtype, quantization_config=cls.BitsAndBytesConfig(
            load_in_8bit=cell.view == "int8", load_in_4bit=cell.view != "int8"))
        count = len(self.c.quantized(fly))
        mine, _ = model.load(path, cell.dtype, plain=True)
        if count:
            cell.wrong.append(f"passes through, but on the fly {count} are quantized")
        if self.c.state_of(mine) != self.c.state_of(plain):
            cell.wrong.append("passes through, but not the source's tensors")
        cell.count = (0, len(self.c.linears(plain)))
        cell.limit = "the loader replaces none of its Linear subclasses: passed through"

    def failed_load(self, cell, model, error, fly, fly_error):
        """A load that fails must fail without a view as well: on the fly, or as a
        genuine saved quantized model."""
        if error is None:
            cell.wrong.append(f"only the on-the-fly load fails: {summary(fly_error)}")
            return
        if fly is not None:
            saved = os.path.join(self.work, "genuine")
            _, fly_error = attempt(fly[0].save_pretrained, saved)
            if fly_error is None:
                _, fly_error = attempt(model.load, saved, cell.dtype)
            shutil.rmtree(saved, ignore_errors=True)
        if same_failure(error, fly_error):
            cell.limit = f"load: {summary(error)}"
        else:
            print(error.text, file=sys.stderr)
            cell.wrong.append(f"load: {summary(error)}; without a view: "
                              f"{summary(fly_error) if fly_error else 'loads'}")

    def weights(self, cell, mine, fly, plain, expected):
        state = self.c.state_of(mine)
        cell.wrong += self.c.against_definition(state, expected)
        library = self.c.Library(cell.view, plain)
        cell.wrong += library.differences(state, self.c.state_of(fly))
        cell.differing = (library.differing, library.total)

    def forward(self, cell, model, mine, fly, expected):
        for m in (mine, fly):
            self.c.settle(m)
        inputs = model.inputs(mine, cell.dtype)
        got, error = attempt(self.c.outputs, mine, inputs)
        want, fly_error = attempt(self.c.outputs, fly, inputs)
        if error is not None:
            if same_failure(error, fly_error):
                cell.limit = f"forward: {summary(error)}"
            else:
                print(error.text, file=sys.stderr)
                cell.wrong.append(f"forward: {summary(error)}; on the fly: {fly_error}")
            return
        if not got.isfinite().all():
            cell.wrong.append("forward: not finite")
        if got.shape != want.shape or self.c.cosine(got, want) < 0.99:
            cell.wrong.append(f"forward: cosine {self.c.cosine(got, want):.4f} with the "
                              "on-the-fly load")
        if cell.view != "int8" and not torch_equal(got, want):
            self.c.transplant(fly, expected)
            want = self.c.outputs(self.c.settle(fly), inputs)
        if not torch_equal(got, want):
            cell.wrong.append("forward: outputs differ by "
                              f"{(got - want).abs().max().item():.3g} at most")


def torch_equal(a, b):
    return a.shape == b.shape and bool((a == b).all())


def selection(args, known):
    """[(model, dtype, views)]"""
    pick = lambda text, all_: text.split(",") if text else list(all_)  # noqa: E731
    names, dtypes = pick(args.models, known), pick(args.dtypes, DTYPES)
    views = pick(args.views, VIEWS)
    for what, some, all_ in (("model", names, known), ("dtype", dtypes, DTYPES),
                             ("view", views, VIEWS)):
        unknown = set(some) - set(all_)
        if unknown:
            sys.exit(f"no such {what}: {', '.join(sorted(unknown))}")
    if args.sample:
        return [(n, d, v) for n, (d, v) in SAMPLE.items() if n in names]
    return [(n, d, views) for n in names for d in dtypes]


def run(matrix, chosen, work, results):
    counts = {"passed": 0, "failed": 0}
    for name, dtype, views in chosen:
        cells = []
        store = os.path.join(work, f"store-{name}-{dtype}")
        try:
            matrix.models[name].write(os.path.join(store, name), dtype)
            with qfmount.Mount(store) as mount:
                for cell in matrix.run_model(mount, name, dtype, views):
                    cells.append(cell)
                    counts["failed" if cell.wrong else "passed"] += 1
                    print(cell.say(), flush=True)
                gc.collect()
        except Exception as e:  # a failed model must not take the others with it
            traceback.print_exc()
            counts["failed"] += 1
            cell = Cell(name, dtype, ",".join(views))
            cell.wrong.append(summary(e))
            cells.append(cell)
            print(cell.say(), flush=True)
        shutil.rmtree(store, ignore_errors=True)
        if results:
            add_results(results, "cells", {c.tag(): c.result() for c in cells})
    return counts


def main():
    end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "dtypes", "views"):
        parser.add_argument(f"--{name}", default="")
    parser.add_argument("--sample", action="store_true")
    parser.add_argument("--results", metavar="FILE", default="")
    args = parser.parse_args()
    work = tempfile.mkdtemp(prefix="quantfs-matrix-")
    reason = qfmount.why_not()
    if reason is None:
        try:
            matrix = Matrix(work)
        except ImportError as e:
            reason = str(e)
    if reason:
        print(f"skip all: {reason}")
        return 77
    began = time.monotonic()
    try:
        chosen = selection(args, matrix.models)
        counts = run(matrix, chosen, work, args.results)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{counts['passed']} passed, {counts['failed']} failed "
          f"({time.monotonic() - began:.0f} s)")
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
