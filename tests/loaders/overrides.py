#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Settings with the real loader, from a quantfs.json and in the path: each one reaches
the loaded model.

    QUANTFS_BIN=build/ci/cli/quantfs python tests/loaders/overrides.py

One line a check: "pass NAME" or "fail NAME: why".

Each check is a process, and the libraries take seconds to import: they are imported once,
before the processes part. That is safe as long as nothing has started a thread by then,
which OMP_NUM_THREADS=1 and doing no arithmetic here see to."""
import json
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", TQDM_DISABLE="1",
                  OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
import qfmount  # noqa: E402


def linears(model):
    layers = model.model.layers
    return layers[0].mlp.up_proj, layers[1].mlp.up_proj, layers[1].self_attn.q_proj, \
        model.lm_head


def kinds(model):
    return [type(m).__name__ for m in linears(model)]


def expect(got, want):
    return None if got == want else f"{got}, not {want}"


def quantized(view):
    return "Linear8bitLt" if view == "int8" else "Linear4bit"


def check_skip(model, view):
    q = quantized(view)
    return expect([*kinds(model), str(model.dtype)],
                  ["Linear", q, "Linear", "Linear", "torch.float16"])


def check_blocksize(model, view):
    state = getattr(linears(model)[1].weight, "quant_state", None)
    return expect(state.blocksize if state else None, None if view == "int8" else 128)


def check_storage(model, view):
    want = "torch.int8" if view == "int8" else "torch.bfloat16"
    return expect(str(linears(model)[1].weight.dtype), want)


def check_force(model, view):
    return expect(kinds(model), [quantized(view)] * 4)


def check_compute(model, view):
    module = linears(model)[1]
    return None if view == "int8" else expect(str(module.compute_dtype), "torch.float32")


def check_threshold(model, view):
    got = model.config.quantization_config.llm_int8_threshold
    return expect(got, 4.5)


CASES = {
    "skip and dtype": ({"skip": ["layers.0", "q_proj"], "dtype": "float16"}, check_skip),
    "blocksize": ({"blocksize": 128}, check_blocksize),
    "quant_storage": ({"quant_storage": "bfloat16"}, check_storage),
    "force": ({"force": ["lm_head"]}, check_force),
    "compute_dtype": ({"compute_dtype": "float32"}, check_compute),
    "int8_threshold": ({"int8_threshold": 4.5}, check_threshold),
}


def check_only(model, view):
    q = quantized(view)
    return expect(kinds(model), [q, q, "Linear", "Linear"])


def check_dtypes(model, view):
    up, _, q_proj, head = linears(model)
    state = getattr(up.weight, "quant_state", None)
    return expect([str(t) for t in (model.dtype, head.weight.dtype, state.dtype)],
                  ["torch.float32"] * 3) or expect(type(q_proj).__name__, "Linear4bit")


def check_all(model, view):
    return check_blocksize(model, view) or check_compute(model, view) or \
        check_storage(model, view)


IN_PATH = {
    "nf4+dtype=bfloat16": lambda model, view: expect(
        [str(model.dtype), *kinds(model)], ["torch.bfloat16", *["Linear4bit"] * 3, "Linear"]),
    "nf4+dtype=float32": check_dtypes,
    "nf4+skip=layers.0:q_proj+dtype=float16": check_skip,
    "int8+skip=q_proj:layers.0+dtype=float16": check_skip,
    "dq+only=mlp": check_only,
    "int8+only=mlp": check_only,
    "fp4+blocksize=128+compute=float32+storage=bfloat16": check_all,
    "int8+threshold=4.5": check_threshold,
    "dq+force=lm_head": check_force,
}


def import_libraries():
    """Also what from_pretrained would import only when it is called."""
    global torch, AutoModelForCausalLM
    import bitsandbytes  # noqa: F401
    import torch
    from transformers import AutoModelForCausalLM, LlamaForCausalLM  # noqa: F401
    from transformers.quantizers import auto  # noqa: F401
    torch.set_num_threads(1)
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise SystemExit(f"{threads} threads run before the processes part")


def load_and_check(path, view, check):
    model = AutoModelForCausalLM.from_pretrained(path)
    wrong = check(model, view)
    if wrong is None and not model(torch.arange(12)[None]).logits.isfinite().all():
        wrong = "the outputs are not finite"
    return wrong


def run_load(name, path, view, check):
    """In a process of its own: a loaded model is a mapping of the mount."""
    pid = os.fork()
    if pid == 0:
        wrong = load_and_check(path, view, check)
        print(f"fail {name}: {wrong}" if wrong else f"pass {name}", flush=True)
        os._exit(1 if wrong else 0)
    status = os.waitpid(pid, 0)[1]
    if status not in (0, 256):
        print(f"fail {name}: the loader ended with {status}", flush=True)
    return status != 0


def run_case(store, name, overrides, check):
    with open(f"{store}/demo/quantfs.json", "w", encoding="utf-8") as f:
        json.dump(overrides, f)
    with qfmount.Mount(store) as mount:
        return sum(run_load(f"{name}:{view}", mount.path(f"{view}/demo"), view, check)
                   for view in ("nf4", "dq", "int8"))


def run_in_path(store):
    os.remove(f"{store}/demo/quantfs.json")
    with qfmount.Mount(store, alias="bnb") as mount:
        failed = sum(run_load(f"in the path:{name}", mount.path(f"{name}/demo"),
                              name.split("+")[0], check)
                     for name, check in IN_PATH.items())
        return failed + run_load("alias", mount.path("dq+only=mlp/demo-bnb-4bit"), "dq",
                                 check_only)


def main():
    reason = qfmount.why_not()
    if reason:
        print(f"skip overrides: {reason}")
        return 77
    import_libraries()
    store = tempfile.mkdtemp(prefix="quantfs-overrides-")
    try:
        qfmount.run("demo", f"{store}/demo")
        failed = sum(run_case(store, name, *case) for name, case in CASES.items())
        failed += run_in_path(store)
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
