#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs.json with the real loader: each setting reaches the loaded model.

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


def run_case(store, name, overrides, check):
    failed = 0
    with open(f"{store}/demo/quantfs.json", "w", encoding="utf-8") as f:
        json.dump(overrides, f)
    with qfmount.Mount(store) as mount:
        for view in ("nf4", "dq", "int8"):
            # In a process of its own: a loaded model is a mapping of the mount.
            pid = os.fork()
            if pid == 0:
                wrong = load_and_check(mount.path(f"{view}/demo"), view, check)
                print(f"fail {name}:{view}: {wrong}" if wrong else f"pass {name}:{view}",
                      flush=True)
                os._exit(1 if wrong else 0)
            status = os.waitpid(pid, 0)[1]
            if status not in (0, 256):
                print(f"fail {name}:{view}: the loader ended with {status}", flush=True)
            failed += status != 0
    return failed


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
    finally:
        shutil.rmtree(store, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
