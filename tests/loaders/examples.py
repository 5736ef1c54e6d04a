#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""examples/: run with the real libraries over a mount; those whose library is not there
(vLLM, SGLang) compiled, and their arguments looked at.

    QUANTFS_BIN=build/ci/cli/quantfs python tests/loaders/examples.py

One line a check: "pass NAME" or "fail NAME: why"."""
import glob
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
EXAMPLES = os.path.join(ROOT, "examples")
sys.path[:0] = [os.path.join(os.path.dirname(HERE), d) for d in ("mount", "matrix")]
ENV = {**os.environ, "HF_HUB_OFFLINE": "1", "TORCHDYNAMO_DISABLE": "1", "TQDM_DISABLE": "1",
       "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
# diffusers' two functions that refuse a machine without a GPU, as tests/matrix has it; and
# no kernel of bitsandbytes that wants widths that are multiples of 32.
ON_CPU = ("import runpy, sys; sys.path.insert(0, sys.argv.pop(1)); import diffusion; "
          "diffusion.allow_cpu(); sys.argv.pop(0); import bitsandbytes.nn.modules as m; "
          "m.has_avx512bf16 = lambda: False; "
          "runpy.run_path(sys.argv[0], run_name='__main__')")
failed = 0


def say(name, why):
    global failed
    failed += why is not None
    print(f"fail {name}: {why}" if why else f"pass {name}", flush=True)


def run(name, *args, before=(), code=0):
    """What the example said; or, second, why it failed."""
    done = subprocess.run([sys.executable, *before, f"{EXAMPLES}/{name}", *args], env=ENV,
                          capture_output=True, text=True, timeout=600)
    why = None if done.returncode == code else \
        f"exit {done.returncode}: {' | '.join(done.stderr.splitlines()[-3:])}"
    return done.stdout + (done.stderr if code else ""), why


def check(name, *args, wants=(), what=None, **more):
    said, why = run(name, *args, **more)
    for want in wants:
        if not why and not re.search(want, said):
            why = f"{want!r} is not in {said!r}"
    say(f"{name}{':' + what if what else ''}", why)


def lint():
    with open(f"{EXAMPLES}/README.md", encoding="utf-8") as f:
        table = f.read()
    for path in sorted(glob.glob(f"{EXAMPLES}/*.py")):
        name = os.path.basename(path)
        with open(path, encoding="utf-8") as f:
            compile(f.read(), path, "exec")
        check(name, "--help", what="help", wants=["usage: " + name])
        check(name, what="without arguments", code=2, wants=["required: "])
        check(name, "a", "b", "c", what="too many", code=2, wants=["unrecognized"])
        say(f"{name}:in README", None if f"`{name} " in table else "no row")


def main():
    import qfmount
    reason = qfmount.why_not()
    if reason:
        print(f"skip examples: {reason}")
        sys.exit(77)
    lint()
    import models
    import stores
    with tempfile.TemporaryDirectory() as work:
        store = os.path.join(work, "store")
        os.mkdir(store)
        assert qfmount.run("demo", os.path.join(store, "llama"))[0] == 0
        models.MODELS["qwen3"].write(os.path.join(store, "new"), "bf16")
        stores.write_hub(os.path.join(store, "hub"), os.path.join(store, "new"))
        stores.write_pipeline(os.path.join(store, "pipeline"), "fp32")
        with qfmount.Mount(store, views="nf4") as m:
            model = m.path("nf4/llama")
            check("transformers_load.py", model, wants=["'Linear4bit': \\d+", "finite: True"])
            check("accelerate_device_map.py", model, wants=["device map:", "finite: True"])
            check("peft_lora.py", model, "--output", f"{work}/adapter",
                  wants=["trainable params: [1-9]", "step 2: loss [0-9.]+", "adapter:"])
            say("peft_lora.py:saved", None if os.path.exists(
                f"{work}/adapter/adapter_model.safetensors") else "no adapter")
            check("hub_cache.py", m.path("nf4/hub"), stores.REPO,
                  wants=["quantized by: bitsandbytes"])
            check("diffusers_pipeline.py", m.path("nf4/pipeline"), "--device", "cpu",
                  "--steps", "2", "--size", "16", "--prompt", "a bc", "--dtype", "float32", "-o",
                  f"{work}/out.png", wants=["quantized: unet", "saved:"],
                  before=("-c", ON_CPU, os.path.join(os.path.dirname(HERE), "matrix")))
            say("diffusers_pipeline.py:saved", None if os.path.exists(
                f"{work}/out.png") else "no picture")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
