#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Views bf16, fp16 and fp32 with the real libraries: of checkpoints that transformers and
bitsandbytes have saved (on this processor), and of our own exports, every tensor is what
model.dequantize() makes of the checkpoint, and views that quantize are those of the
dequantized checkpoint.
  QUANTFS_BIN=… dequant.py
Prints "pass NAME", "fail NAME: why" and "skip NAME: why"; exits 1 when anything failed."""
import json
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [HERE, os.path.join(HERE, "..", "mount")]
os.environ.update(TQDM_DISABLE="1", OMP_NUM_THREADS="1", TORCHDYNAMO_DISABLE="1")
import qfmount  # noqa: E402
import qfstore as S  # noqa: E402
from run import Report  # noqa: E402

CODECS = ("nf4", "dq", "fp4", "int8")
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}


class Dequantized:
    def __init__(self, models, store, report):
        import torch
        import transformers
        self.m, self.store, self.report = models, store, report
        self.torch, self.auto = torch, transformers.AutoModelForCausalLM
        self.config = self.llama(128, 320)
        self.transformers = transformers

    # ---- checkpoints ----

    @staticmethod
    def llama(hidden, inter):
        import transformers
        return transformers.LlamaConfig(
            hidden_size=hidden, intermediate_size=inter, num_hidden_layers=1,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=160,
            max_position_embeddings=64, tie_word_embeddings=False)

    def save_plain(self, view, config=None, name="plain"):
        self.torch.manual_seed(len(name))
        model = self.transformers.LlamaForCausalLM(config or self.config)
        path = os.path.join(self.store, f"{name}-{view}")
        model.to(getattr(self.torch, DTYPES[view])).save_pretrained(path)
        return path

    def save_quantized(self, plain, codec, view, tag="", **arguments):
        from transformers import BitsAndBytesConfig
        dtype = getattr(self.torch, DTYPES[view])
        if codec == "int8":
            bnb = BitsAndBytesConfig(load_in_8bit=True)
        else:
            bnb = BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="fp4" if codec == "fp4" else "nf4",
                bnb_4bit_use_double_quant=codec == "dq", bnb_4bit_compute_dtype=dtype)
        model = self.auto.from_pretrained(plain, quantization_config=bnb, dtype=dtype)
        name = f"{codec}-{view}{tag}"
        model.save_pretrained(os.path.join(self.store, name), **arguments)
        return name

    def export(self, cache, codec, view):
        name = f"ours-{codec}-{view}"
        rc, _, err = qfmount.run(
            "export", "-q", "-o", f"cache={cache}", "--view", codec,
            os.path.join(self.store, f"plain-{view}"), os.path.join(self.store, name))
        assert rc == 0, err
        return name

    def make(self, cache):
        names = []
        for view in DTYPES:
            plain = self.save_plain(view)
            for codec in CODECS:
                names.append(self.save_quantized(plain, codec, view))
                names.append(self.export(cache, codec, view))
        plain = os.path.join(self.store, "plain-bf16")
        names.append(self.save_quantized(plain, "nf4", "bf16", "-sharded",
                                         max_shard_size="100KB"))
        odd = self.save_plain("bf16", self.llama(96, 200), "odd")
        names += [self.save_quantized(odd, codec, "bf16", "-odd") for codec in CODECS]
        return names

    # ---- what the library makes of them ----

    def dequantized(self, name, view):
        """The model that the library dequantizes, in the view's dtype. A 4-bit weight is
        rounded once, to the dtype in its quant_state: that is what is asked for."""
        dtype = getattr(self.torch, DTYPES[view])
        model, _ = self.m.load(os.path.join(self.store, name), self.auto)
        odd = {}
        for label, module in model.named_modules():
            state = getattr(getattr(module, "weight", None), "quant_state", None)
            if state is not None:
                state.dtype = dtype
                if state.shape[-1] % state.blocksize != 0:
                    odd[label] = self.generic(module.weight, state)
        model = model.dequantize(dtype=dtype).to(dtype)
        for label, weight in odd.items():
            model.get_submodule(label).weight = self.torch.nn.Parameter(weight)
        return model

    @staticmethod
    def generic(weight, state):
        """Blocks go through a weight from its first element to its last. bitsandbytes'
        kernel for CPUs takes them row by row, and gets scales wrong where a row is no
        whole number of blocks (docs/FORMATS.md); its generic implementation does not."""
        from bitsandbytes import functional
        from bitsandbytes.backends.default.ops import _dequantize_4bit_compute
        absmax = state.absmax
        if state.nested:
            absmax = functional.dequantize_blockwise(absmax, state.state2) + state.offset
        return _dequantize_4bit_compute(weight.data.reshape(-1), absmax, state.code,
                                        state.blocksize, state.shape, state.dtype)

    def equal(self, mnt, name, view):
        path = os.path.join(mnt, view, name)
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            config = json.load(f)
        if "quantization_config" in config or config["dtype"] != DTYPES[view]:
            return f"config.json: {config.get('dtype')}, or still quantized"
        model, wrong = self.m.load(path, self.auto)
        got = self.m.state_of(model)
        want = self.m.state_of(self.dequantized(name, view))
        if str(model.dtype) != f"torch.{DTYPES[view]}":
            wrong.append(f"loaded in {model.dtype}")
        return wrong + [k for k in got.keys() | want.keys() if got.get(k) != want.get(k)]

    def cast(self, mnt, name, view):
        """A checkpoint that is not quantized."""
        dtype = getattr(self.torch, DTYPES[view])
        model, wrong = self.m.load(os.path.join(mnt, view, name), self.auto)
        source, _ = self.m.load(os.path.join(self.store, name), self.auto)
        got, want = self.m.state_of(model), self.m.state_of(source.to(dtype))
        return wrong + [k for k in want if got.get(k) != want[k]]

    def same_codec(self, mnt, name, view):
        """It is what the store has."""
        wrong = []
        source = os.path.join(self.store, name)
        for file in os.listdir(source):
            if S.read_file(os.path.join(mnt, view, name, file)) != \
                    S.read_file(os.path.join(source, file)):
                wrong.append(f"{file} differs from the source's")
        return wrong

    # ---- views through it ----

    def composed(self, mnt, name, own, view):
        """Against the tests' definition of the view of what the library dequantizes."""
        import oracle
        plain = os.path.join(self.store, f".dequantized-{name}")
        if not os.path.isdir(plain):
            model = self.transformers.LlamaForCausalLM(self.config)
            model.to(getattr(self.torch, DTYPES[own]))
            model.load_state_dict(self.dequantized(name, own).state_dict())
            model.save_pretrained(plain)
        want, plan = oracle.expected_tensors(plain, view)
        data = S.read_file(os.path.join(mnt, view, name, "model.safetensors"))
        header, _, _ = S.read_header(data)
        wrong = [] if plan.quant else ["nothing is quantized"]
        wrong += [f"{k} is not in both" for k in want.keys() ^ header.keys()]
        for key in want.keys() & header.keys():
            _, _, begin, end = header[key]
            if data[begin:end] != want[key][2]:
                wrong.append(f"{key} differs")
        model, complaints = self.m.load(os.path.join(mnt, view, name), self.auto)
        if not getattr(model, "is_quantized", False):
            wrong.append("loads as a plain model")
        return wrong + complaints

    def train(self, mnt, name, view):
        """One step of LoRA."""
        import peft
        model, _ = self.m.load(os.path.join(mnt, view, name), self.auto)
        model = peft.get_peft_model(model, peft.LoraConfig(
            r=4, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM"))
        tokens = self.torch.arange(32).reshape(2, 16) * 5 % 160
        weights = [p for p in model.parameters() if p.requires_grad]
        step = self.torch.optim.SGD(weights, lr=0.5)
        losses = []
        for _ in range(3):
            step.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            step.step()
            losses.append(float(loss))
        return None if losses[-1] < losses[0] else f"losses {losses}"


def run(d, store, work, report):
    cache = os.path.join(work, "cache")
    names = d.make(cache)
    with qfmount.Mount(store, cache=cache, views="bf16:fp16:fp32:nf4:dq:fp4:int8") as m:
        for name in names:
            own = name.removeprefix("ours-").split("-")[1]
            # Of ours in its own dtype alone, to save time.
            for view in [own] if name.startswith("ours-") else DTYPES:
                report.run(f"equal:{view}:{name}", d.equal, m.mnt, name, view)
                d.m.forget()
        report.run("cast:bf16", d.cast, m.mnt, "plain-fp32", "bf16")
        report.run("cast:fp32", d.cast, m.mnt, "plain-fp16", "fp32")
        for codec in CODECS:
            report.run(f"same-codec:{codec}", d.same_codec, m.mnt, f"{codec}-fp16", codec)
        for name, own, views in (("int8-fp16", "fp16", ("nf4", "dq", "fp4")),
                                 ("nf4-bf16", "bf16", ("int8", "dq")),
                                 ("dq-fp32", "fp32", ("int8", "nf4")),
                                 ("fp4-bf16", "bf16", ("nf4",))):
            for view in views:
                report.run(f"through:{view}:{name}", d.composed, m.mnt, name, own, view)
        report.run("train:fp32", d.train, m.mnt, "dq-bf16", "fp32")
        report.run("train:bf16", d.train, m.mnt, "int8-fp16", "bf16")
        d.m.forget()


def main():
    why = qfmount.why_not()
    if why:
        print(f"skip dequant: {why}")
        return 77
    import models
    report = Report()
    work = tempfile.mkdtemp(prefix="quantfs-dequant-")
    store = os.path.join(work, "store")
    os.mkdir(store)
    try:
        run(Dequantized(models, store, report), store, work, report)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print(f"{report.passed} passed, {report.failed} failed")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
