#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Views in the tools around the loaders: accelerate, PEFT, safetensors, the hub cache,
classes other than the one that was saved, whole pipelines. The libraries are unmodified;
where one cannot do something on this machine without a view either, the test shows that
and says "(limit: …)".

    QUANTFS_BIN=build/ci/cli/quantfs python tests/matrix/ecosystem.py
        [--results build/matrix.json] [NAME…]"""
import argparse
import gc
import json
import os
import shutil
import subprocess
import sys
import tempfile
import traceback

import run
from run import attempt, qfmount, same_failure, summary, torch_equal

VIEWS = run.VIEWS
HEADS = {  # a checkpoint, and classes that were not saved
    "bert-mlm": ("BertModel", "BertForSequenceClassification", "BertForQuestionAnswering",
                 "BertForTokenClassification", "BertForPreTraining"),
    "bert": ("BertForMaskedLM", "BertForSequenceClassification", "BertForMultipleChoice"),
    "llama": ("LlamaModel", "LlamaForSequenceClassification", "LlamaForTokenClassification"),
    "gpt2": ("GPT2Model", "GPT2ForSequenceClassification"),
    "clip": ("CLIPTextModel", "CLIPVisionModel", "CLIPTextModelWithProjection",
             "CLIPVisionModelWithProjection"),
    "t5": ("T5EncoderModel", "T5Model"), "vit": ("ViTModel",),
    "bart": ("BartModel", "BartForSequenceClassification", "BartForCausalLM"),
}


class Tests:
    """Every method test_… is a test; a subtest is a yield of (name, None or why not)."""

    def __init__(self, mount, work):
        import torch
        import transformers
        self.matrix = run.Matrix(work)
        self.c, self.T, self.torch = self.matrix.c, transformers, torch
        self.mount, self.work = mount, work

    def config(self, path):
        with open(os.path.join(path, "config.json"), encoding="utf-8") as f:
            return json.load(f)

    def view(self, view, name="llama", cls=None, **more):
        path = self.mount.path(view, name)
        cls = cls or self.matrix.models[name].cls
        return cls.from_pretrained(path, **more).eval()

    def fly(self, view, name="llama", cls=None, dtype="bf16", **more):
        """What the same loader makes of the source, with the skip list of the view."""
        model = self.matrix.models[name]
        bits = self.matrix.bits(model, view, dtype,
                                self.config(self.mount.path(view, name)))
        return (cls or model.cls).from_pretrained(
            os.path.join(self.mount.store, name), quantization_config=bits,
            dtype=self.matrix.dtypes[dtype], **more).eval()

    def tokens(self):
        return self.matrix.models["llama"].inputs(None, "bf16")

    def out(self, model):
        return self.c.outputs(self.c.settle(model), self.tokens())

    # accelerate -----------------------------------------------------------------

    def test_device_map(self):
        for view in VIEWS:
            want = self.out(self.view(view))
            for what in ("cpu", {"": "cpu"}, "auto"):
                same = torch_equal(self.out(self.view(view, device_map=what)), want)
                yield f"{view}:{what}", None if same else "other outputs"

    def test_offload(self):
        """Half of the layers on disk. transformers refuses this for quantized models on
        the CPU: the view must be refused like a genuine saved model, in the same words.
        Where a view passes through it works, and the weights are read through the mount
        at each forward pass."""
        parts = {"model.embed_tokens": "cpu", "model.layers.0": "cpu",
                 "model.layers.1": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu",
                 "lm_head": "cpu"}
        for view in VIEWS:
            genuine = os.path.join(self.work, f"genuine-{view}")
            self.fly(view).save_pretrained(genuine)
            more = {"device_map": parts, "offload_folder": os.path.join(self.work, "off")}
            cls = self.matrix.models["llama"].cls
            mine, error = attempt(self.view, view, **more)
            theirs, other = attempt(cls.from_pretrained, genuine, **more)
            if error is None and other is None:
                same = torch_equal(self.out(mine), self.out(theirs))
                yield f"{view}:disk", None if same else "other outputs"
            elif same_failure(error, other) and str(error) == str(other):
                yield f"{view}:disk", f"limit: {summary(error)}"
            else:
                yield f"{view}:disk", f"{error!r}; a genuine model: {other!r}"
        yield from self.offloaded_plain()

    def offloaded_plain(self):
        parts = {"transformer.word_embeddings": "cpu", "transformer.h.0": "cpu",
                 "transformer.h.1": "disk", "transformer.ln_f": "cpu", "lm_head": "cpu",
                 "transformer.rotary_emb": "cpu"}
        cls = self.matrix.models["falcon"].cls
        want = self.c.outputs(self.view("nf4", "falcon"), self.tokens())
        folder = os.path.join(self.work, "offload")
        model = cls.from_pretrained(self.mount.path("nf4", "falcon"), device_map=parts,
                                    offload_folder=folder)
        got = self.c.outputs(model, self.tokens())
        where = {v for v in model.hf_device_map.values()}
        yield "plain:disk", None if torch_equal(got, want) and where == {"cpu", "disk"} \
            else f"other outputs, or nothing on disk: {where}"

    def test_dispatch(self):
        """accelerate's own offload hooks on a model that came from a view."""
        import accelerate
        for view in VIEWS:
            want = self.out(self.view(view))
            for what in ("cpu_offload", "disk_offload"):
                more = {"offload_dir": os.path.join(self.work, f"{what}-{view}")} \
                    if what == "disk_offload" else {}
                outs = []
                for load in (self.view, self.fly):
                    outs.append(attempt(lambda: self.out_hooked(  # noqa: B023
                        getattr(accelerate, what)(  # noqa: B023
                            self.c.settle(load(view)),  # noqa: B023
                            execution_device=self.torch.device("cpu"), **more))))
                (got, error), (_, other) = outs
                if error is None:
                    yield f"{view}:{what}", None if torch_equal(got, want) else \
                        "other outputs"
                else:
                    yield f"{view}:{what}", (f"limit: {summary(error)}"
                                             if same_failure(error, other) else
                                             f"{error!r}; on the fly: {other!r}")

    def out_hooked(self, model):
        return self.c.outputs(model, self.tokens())

    def test_load_and_quantize(self):
        """accelerate quantizes the plain tree itself, and gets the bytes of the view. The
        tree is a directory that passes through, read in the mount."""
        import accelerate
        from accelerate.utils import BnbQuantizationConfig, load_and_quantize_model
        cls = self.matrix.models["llama"].cls
        for view in ("nf4", "int8"):
            config = self.config(self.mount.path(view, "llama"))
            tree = self.mount.path(view, "llama-bin")
            bits = BnbQuantizationConfig(
                load_in_4bit=view == "nf4", load_in_8bit=view == "int8",
                bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=False,
                skip_modules=config["quantization_config"]["llm_int8_skip_modules"],
                torch_dtype=self.torch.bfloat16)
            with accelerate.init_empty_weights():
                model = cls(self.T.AutoConfig.from_pretrained(tree))
            # A device: the word "cpu" would mean "offloaded, and not quantized".
            model = load_and_quantize_model(
                model, bits, weights_location=os.path.join(tree, "pytorch_model.bin"),
                device_map={"": self.torch.device("cpu")})
            mine, theirs = (self.c.state_of(m) for m in (self.view(view), model))
            names = [n for n in mine if mine[n][0] in (self.torch.uint8, self.torch.int8)
                     and n.endswith(".weight")]
            wrong = [n for n in names if theirs.get(n, (0, 0, 0))[2] != mine[n][2]]
            yield view, f"{len(wrong)} of {len(names)}: {wrong[:3]}" \
                if wrong or not names else None

    # PEFT -----------------------------------------------------------------------

    def test_peft_train(self):
        import peft
        for view in ("nf4", "dq", "fp4", "int8"):
            model = peft.prepare_model_for_kbit_training(
                self.c.settle(self.view(view)), use_gradient_checkpointing=False)
            model = peft.get_peft_model(model, peft.LoraConfig(
                r=4, target_modules=["q_proj", "v_proj", "down_proj"],
                init_lora_weights=False, task_type="CAUSAL_LM"))
            yield from self.train(view, model)

    def train(self, view, model):
        before = self.c.state_of(model)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = self.torch.optim.SGD(trained, lr=0.1)
        model.train()
        ids = self.tokens()["input_ids"]
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        after = self.c.state_of(model)
        changed = {n for n in before if n in after and before[n] != after[n]}
        lora = {n for n in before if "lora_" in n}
        wrong = []
        if not loss.isfinite():
            wrong.append(f"loss {loss.item()}")
        if changed - lora:
            wrong.append(f"changed: {sorted(changed - lora)[:3]}")
        if lora - changed or not lora:
            wrong.append(f"not trained: {sorted(lora - changed)[:3]}")
        yield f"{view}:one step", "; ".join(wrong) or None

    def test_peft_merge(self):
        """The merged adapter gives the outputs of the model with the adapter beside,
        but for the rounding of the merged weights; and those of an on-the-fly model."""
        import peft
        for view in ("nf4", "dq", "int8"):
            outs = []
            for load in (self.view, self.fly):
                self.torch.manual_seed(9)
                model = peft.get_peft_model(self.c.settle(load(view)), peft.LoraConfig(
                    r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
                beside = self.out(model)
                outs.append((beside, self.out(model.merge_and_unload())))
            near = self.c.cosine(*outs[0])
            same = self.c.cosine(outs[0][1], outs[1][1])
            yield view, None if near > 0.97 and same > 0.99 else \
                f"cosine {near:.4f} beside/merged, {same:.4f} with the on-the-fly load"

    def test_dequantize(self):
        from oracle import Q
        for view in VIEWS:
            model = self.view(view)
            quantized = self.c.quantized(model)
            state = self.c.state_of(model)
            plain, error = attempt(model.dequantize)
            if error is not None:
                _, other = attempt(self.fly(view).dequantize)
                yield view, f"limit: {summary(error)}" if same_failure(error, other) \
                    else repr(error)
                continue
            plain = dict(plain.named_parameters())
            wrong = [n for n in quantized
                     if not self.dequantized(Q, view, state, n, plain[n + ".weight"])]
            yield view, f"{len(wrong)} of {len(quantized)}: {wrong[:3]}" if wrong else None

    def dequantized(self, Q, view, state, name, got):
        """Is `got` what the parts stand for? (docs/FORMATS.md, Dequantization)"""
        import numpy as np
        part = lambda s, t: np.frombuffer(state[name + s][2], t)  # noqa: E731
        if view == "int8":
            codes = part(".weight", np.int8).reshape(state[name + ".weight"][1])
            want = codes * part(".SCB", np.float32)[:, None] * np.float32(1 / 127)
        else:
            codes = self.c.unpack(state[name + ".weight"][2], got.numel())
            absmax = part(".weight.absmax", np.uint8 if view == "dq" else np.float32)
            if view == "dq":
                key = next(k for k in state if k.startswith(name + ".weight.quant_state"))
                offset = np.float32(self.c.said(state[key][2])["nested_offset"])
                nested = part(".weight.nested_absmax", np.float32)
                absmax = (Q.DYN[absmax] * np.repeat(nested, 256)[:absmax.size]) + offset
            kind = "fp4" if view == "fp4" else "nf4"
            want = Q.QUANT_MAP[kind][codes] * np.repeat(absmax, 64)[:codes.size]
        want = self.torch.from_numpy(want.astype(np.float32)).reshape(got.shape)
        want = want.to(got.dtype).float()
        # The libraries round once more or less than the definition on the way to bf16.
        return self.torch.allclose(got.detach().float(), want, rtol=2 ** -7, atol=1e-6)

    # safetensors ----------------------------------------------------------------

    def test_safe_open(self):
        import safetensors
        import safetensors.numpy
        import safetensors.torch
        for view in VIEWS:
            folder, wrong, count = self.mount.path(view, "llama"), [], 0
            with open(os.path.join(folder, "model.safetensors.index.json"),
                      encoding="utf-8") as f:
                left = json.load(f)["weight_map"]
            for shard in sorted(set(left.values())):
                path = os.path.join(folder, shard)
                whole = safetensors.torch.load_file(path)
                with safetensors.safe_open(path, framework="pt") as f:
                    names = set(f.keys())
                    for name in names:
                        wrong += self.slices(f, name, whole[name])
                        wrong += [] if left.pop(name, None) == shard else [f"{name}: index"]
                        count += 1
                with open(path, "rb") as f:
                    if set(safetensors.torch.load(f.read())) != names:
                        wrong.append(f"{shard}: read() and mmap differ")
            yield view, "; ".join(wrong[:3]) or (f"not in a shard: {left}" if left else
                                                 None if count > 20 else "few tensors")

    def slices(self, file, name, whole):
        part, shape = file.get_slice(name), list(whole.shape)
        if part.get_shape() != shape:
            yield f"{name}: shape {part.get_shape()}"
        if self.c.raw(file.get_tensor(name)) != self.c.raw(whole):
            yield f"{name}: get_tensor"
        if not shape:
            return
        n = shape[0]
        for cut in (slice(0, 1), slice(n // 3, n - n // 4), slice(n - 1, n), slice(0, n)):
            if self.c.raw(part[cut]) != self.c.raw(whole[cut]):
                yield f"{name}: {cut}"
        if len(shape) == 2:
            m = shape[1]
            for cut in (slice(0, m // 2 + 1), slice(m // 2, m)):
                if self.c.raw(part[:, cut]) != self.c.raw(whole[:, cut]):
                    yield f"{name}: [:, {cut}]"

    # the hub's cache ------------------------------------------------------------

    def test_hub(self):
        import stores
        for view in ("nf4", "int8"):
            env = {**os.environ, "HF_HUB_CACHE": self.mount.path(view, "hub"),
                   "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
            code = ("import sys, torch, transformers as T\n"
                    "m = T.AutoModelForCausalLM.from_pretrained(sys.argv[1])\n"
                    "print(m.config.quantization_config.quant_method.value,\n"
                    "      type(m.model.layers[0].mlp.up_proj).__name__)\n")
            done = subprocess.run([sys.executable, "-c", code, stores.REPO], env=env,
                                  capture_output=True, text=True, timeout=300)
            said = done.stdout.split()
            want = ["bitsandbytes", "Linear8bitLt" if view == "int8" else "Linear4bit"]
            yield f"{view}:from_pretrained({stores.REPO})", None if said == want else \
                f"{said} {done.stderr[-400:]}"
            yield from self.cache_ls(view, env, stores)

    def cache_ls(self, view, env, stores):
        done = subprocess.run([os.path.join(os.path.dirname(sys.executable), "hf"), "cache",
                               "ls", "--json"], env=env, capture_output=True, text=True,
                              timeout=300)
        rows, error = attempt(json.loads, done.stdout)
        if error is not None:
            yield f"{view}:hf cache ls", (done.stdout + done.stderr)[-300:]
            return
        snapshot = os.path.join(env["HF_HUB_CACHE"], "models--org--tiny-llama", "snapshots",
                                stores.COMMIT)
        total = sum(os.stat(os.path.join(snapshot, f)).st_size
                    for f in os.listdir(snapshot))
        links = [f for f in os.listdir(snapshot)
                 if os.path.islink(os.path.join(snapshot, f))]
        got = [(r.get("repo_id"), r.get("size"), r.get("refs")) for r in rows]
        want = [(stores.REPO, f"{total / 1000:.1f}K", ["main"])]
        yield f"{view}:hf cache ls", None if got == want and not links else \
            f"{got}, not {want}; links: {links}"

    # other classes --------------------------------------------------------------

    def test_classes(self):
        for name, classes in HEADS.items():
            for cls in classes:
                for view in ("nf4", "int8"):
                    wrong, error = attempt(lambda: list(self.as_class(  # noqa: B023
                        view, name, getattr(self.T, cls))))  # noqa: B023
                    if error is not None:
                        print(error.text, file=sys.stderr)
                    yield f"{view}:{name} as {cls}", summary(error) if error else \
                        "; ".join(wrong[:3]) or None

    def as_class(self, view, name, cls):
        source = os.path.join(self.mount.store, name)
        plain, was = cls.from_pretrained(source, output_loading_info=True)
        path = self.mount.path(view, name)
        mine, info = cls.from_pretrained(path, output_loading_info=True)
        fly = self.fly(view, name, cls)
        for key in ("missing_keys", "unexpected_keys", "mismatched_keys"):
            a, b = ({base_name(str(k)) for k in i[key]} for i in (info, was))
            if a != b:
                yield f"{key}: {sorted(a ^ b)[:4]}"
        absent = {str(k) for k in was["missing_keys"]}
        states = [{k: v for k, v in self.c.state_of(m).items()
                   if base_name(k) not in absent} for m in (mine, fly)]
        yield from self.c.Library(view, plain).differences(*states)
        names = {n for n in self.c.quantized(mine)}
        if not names:
            yield "nothing is quantized"
        yield from self.c.against_definition(states[0], self.c.definition(
            plain, names, view, self.torch.bfloat16))

    # a whole pipeline -----------------------------------------------------------

    def test_pipeline(self):
        import diffusers
        for view in VIEWS:
            path = self.mount.path(view, "pipeline")
            with self.c.Log() as log:
                pipe = diffusers.DiffusionPipeline.from_pretrained(
                    path, torch_dtype=self.torch.float32)
            counts = {n: len(self.c.quantized(getattr(pipe, n)))
                      for n in ("unet", "text_encoder", "vae")}
            wrong = [s for s in log.lines if any(w in s.lower() for w in (
                "missing", "unexpected", "mismatch", "newly init", "not used"))]
            if not counts["unet"] or not counts["text_encoder"] or counts["vae"]:
                wrong.append(f"quantized modules: {counts}")
            got = self.picture(pipe)
            want = self.picture(self.fly_pipeline(view, path))
            near = self.c.cosine(got, want)
            if not got.isfinite().all() or near < 0.99 or \
                    view in ("nf4", "int8") and not torch_equal(got, want):
                wrong.append(f"cosine {near:.5f} with the on-the-fly pipeline")
            yield f"{view}:two steps", "; ".join(wrong) or None

    def fly_pipeline(self, view, path):
        import diffusers
        source = os.path.join(self.mount.store, "pipeline")
        float32 = self.torch.float32
        parts = {}
        for name, cls, library, kind in (
                ("unet", diffusers.UNet2DConditionModel, "diffusers", "torch_dtype"),
                ("text_encoder", self.T.CLIPTextModel, "transformers", "dtype")):
            model = next(m for m in self.matrix.models.values() if m.library == library)
            bits = self.matrix.bits(model, view, "fp32",
                                    self.config(os.path.join(path, name)))
            parts[name] = cls.from_pretrained(os.path.join(source, name), **{kind: float32},
                                              quantization_config=bits)
        return diffusers.DiffusionPipeline.from_pretrained(source, torch_dtype=float32,
                                                           **parts)

    def picture(self, pipe):
        for part in (pipe.unet, pipe.text_encoder, pipe.vae):
            self.c.settle(part)
        pipe.set_progress_bar_config(disable=True)
        seed = self.torch.Generator().manual_seed(1)
        image = pipe("a bc", num_inference_steps=2, height=16, width=16, generator=seed,
                     output_type="pt").images
        return image.double().reshape(-1)


def base_name(key):
    """The weight that a part belongs to."""
    for end in (".SCB", ".weight_format"):
        if key.endswith(end):
            return key[:-len(end)] + ".weight"
    head, dot, _ = key.partition(".weight.")
    return head + ".weight" if dot else key


def run_test(tests, name, counts, results):
    def say(sub, why):
        results[name + sub] = why
        failed = why is not None and not why.startswith("limit: ")
        counts[1 if failed else 0] += 1
        tail = "" if why is None else f": {why}" if failed else f" ({why})"
        line = f"{'fail' if failed else 'pass'} ecosystem:{name}{sub}{tail}"
        print(line.replace("\n", " ")[:600], flush=True)

    try:
        for sub, why in getattr(tests, "test_" + name)():
            say(f":{sub}", why)
    except Exception as e:  # a failed test must not take the others with it
        traceback.print_exc()
        say("", summary(e))
    gc.collect()


def main():
    known = [n.removeprefix("test_") for n in dir(Tests) if n.startswith("test_")]
    run.end_on_sigterm()
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", metavar="FILE", default="")
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    chosen = args.names or known
    if set(chosen) - set(known):
        sys.exit(f"no such test; there are: {' '.join(known)}")
    reason = qfmount.why_not()
    if reason is None:
        try:
            import peft  # noqa: F401
            import stores
        except ImportError as e:
            reason = str(e)
    if reason:
        print(f"skip ecosystem: {reason}")
        return 77
    work, counts = tempfile.mkdtemp(prefix="quantfs-ecosystem-"), [0, 0]
    results = {}
    try:
        store = os.path.join(work, "store")
        stores.write(store)
        with qfmount.Mount(store) as mount:
            tests = Tests(mount, work)
            for name in chosen:
                run_test(tests, name, counts, results)
            del tests
            gc.collect()
    finally:
        shutil.rmtree(work, ignore_errors=True)
    if args.results:
        run.add_results(args.results, "ecosystem", results)
    print(f"{counts[0]} passed, {counts[1]} failed")
    return 1 if counts[1] else 0


if __name__ == "__main__":
    sys.exit(main())
