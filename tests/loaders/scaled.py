#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Views of TorchAO, fp8 and compressed-tensors with the real libraries: each one loads
unmodified, is byte for byte what the library makes of the same source, and computes what
the library's own model does.

    QUANTFS_BIN=build/ci/cli/quantfs python tests/loaders/scaled.py [--all] [NAME…]

One line a check: "pass NAME", "fail NAME: why"; "limit NAME: why" is what the library
cannot do here without a view, either (tried each time). --all: every dtype of every
model, and groups; else a sample. NAME: only cells that contain it.

A cell (a model in one dtype) is a process: a loaded model is a mapping of the mount."""
import os
import shutil
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(os.path.dirname(HERE), "mount"))
os.environ.update(HF_HUB_OFFLINE="1", TORCHDYNAMO_DISABLE="1", TQDM_DISABLE="1",
                  OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false",
                  TRANSFORMERS_VERBOSITY="warning", TORCH_CPP_LOG_LEVEL="ERROR")
import qfmount  # noqa: E402

AO_VIEWS = ("ao-int8wo", "ao-int8dq", "ao-float8wo", "ao-float8wo-e5m2", "ao-float8dq-row")
AO_GROUPS = ("ao-int8wo+group=32", "ao-float8wo+group=64")
CT_VIEWS = ("ct-fp8", "ct-w8a8", "ct-w8a16", "ct-w4a16")
CT_GROUPS = ("ct-w8a16+group=64", "ct-w4a16+group=32")
DTYPES = ("fp32", "fp16", "bf16")
SAMPLE = {("llama", "bf16"), ("llama", "fp32"), ("qwen2", "fp16"), ("qwen2", "bf16"),
          ("flux", "bf16"), ("flux", "fp32"), ("minilm", "fp32"), ("minilm", "fp16")}


def import_libraries():
    """Before the processes part: this takes longer than all that they do."""
    global torch, T, D, peft, models, L
    import torch
    torch.set_num_threads(1)
    import diffusers as D
    import peft
    import transformers as T
    import models
    import scaled_libraries as L
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM, BertModel  # noqa: F401
    from transformers.quantizers import auto  # noqa: F401


def dtype_of(name):
    return {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]


# ---- models ----

TEXT = dict(hidden_size=256, intermediate_size=512, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=512,
            max_position_embeddings=64)


def write_llama(path, dtype):
    torch.manual_seed(1)
    config = T.LlamaConfig(**TEXT, tie_word_embeddings=False)
    T.LlamaForCausalLM(config).to(dtype).save_pretrained(path)


def write_qwen2(path, dtype):
    """Its head is tied to the embedding, and not in the shards."""
    torch.manual_seed(2)
    config = T.Qwen2Config(**TEXT, tie_word_embeddings=True)
    T.Qwen2ForCausalLM(config).to(dtype).save_pretrained(path, max_shard_size="1MB")
    assert os.path.exists(f"{path}/model.safetensors.index.json")


def write_minilm(path, dtype):
    models.make_minilm(path + "-source")
    model = T.AutoModel.from_pretrained(path + "-source", dtype=dtype)
    model.save_pretrained(path)
    T.AutoTokenizer.from_pretrained(path + "-source").save_pretrained(path)
    shutil.rmtree(path + "-source")


def flux_model():
    return D.FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=2, num_single_layers=2,
        attention_head_dim=32, num_attention_heads=4, joint_attention_dim=64,
        pooled_projection_dim=32, guidance_embeds=True, axes_dims_rope=(8, 12, 12))


def write_flux(path, dtype):
    torch.manual_seed(3)
    flux_model().to(dtype).save_pretrained(path, max_shard_size="2MB")
    assert os.path.exists(f"{path}/diffusion_pytorch_model.safetensors.index.json")


def tokens(model, path):
    out = model(torch.arange(24)[None] * 7 % 500).logits
    return out[0]


def sentences(model, path):
    batch = T.AutoTokenizer.from_pretrained(path)(models.SENTENCES, padding=True,
                                                  return_tensors="pt")
    return model(**batch).last_hidden_state.flatten(0, 1)


def image(model, path):
    def wave(*shape):
        count = torch.Size(shape).numel()
        return torch.sin(torch.arange(count) * 0.37).reshape(shape).to(model.dtype)
    return model(hidden_states=wave(1, 4, 16), timestep=torch.tensor([0.3]),
                 encoder_hidden_states=wave(1, 3, 64), pooled_projections=wave(1, 32),
                 guidance=torch.tensor([2.5]), img_ids=torch.ones(4, 3),
                 txt_ids=torch.zeros(3, 3)).sample[0]


# how it is written, loaded, called; whether it is one of diffusers
MODELS = {"llama": (write_llama, "AutoModelForCausalLM", tokens),
          "qwen2": (write_qwen2, "AutoModelForCausalLM", tokens),
          "minilm": (write_minilm, "AutoModel", sentences),
          "flux": (write_flux, "FluxTransformer2DModel", image)}


# ---- one cell ----

class Cell:
    def __init__(self, mount, name, dtype):
        self.name, self.dtype_name, self.dtype = name, dtype, dtype_of(dtype)
        self.cls, self.call = MODELS[name][1:]
        self.mount, self.failed = mount, 0
        self.source = os.path.join(mount.store, dtype, name)
        self.diffusers = name == "flux"

    def say(self, view, what, wrong, limit=False):
        tag = f"{what}:{view}:{self.dtype_name}:{self.name}"
        word = "limit" if limit else "fail" if wrong else "pass"
        self.failed += word == "fail"
        print(f"{word} {tag}: {wrong}" if wrong else f"pass {tag}", flush=True)

    def load(self, path, **more):
        """As a user does."""
        if not self.diffusers:
            return models.load(path, getattr(T, self.cls), **more)
        model, info = getattr(D, self.cls).from_pretrained(
            path, output_loading_info=True, torch_dtype=self.dtype, **more)
        return model.eval(), [f"{k}: {v[:3]}" for k, v in info.items() if v]

    def forward(self, model, path):
        with torch.no_grad():
            return self.call(model, path).float()

    def compare_forward(self, view, mine, theirs, path):
        """What the library's model cannot compute, ours need not."""
        outputs = []
        for model, where in ((mine, path), (theirs, self.source)):
            try:
                outputs.append(self.forward(model, where if self.name == "minilm"
                                            else path))
            except Exception as e:
                outputs.append(f"{type(e).__name__}: {e}".split("\n")[0][:200])
        a, b = outputs
        if isinstance(b, str):
            self.say(view, "forward", f"the library's own model: {b}", limit=True)
            if not isinstance(a, str):
                self.say(view, "forward of the view", None)
        elif isinstance(a, str):
            self.say(view, "forward", a)
        else:
            near = models.cosine(a.double().numpy(), b.double().numpy())
            self.say(view, "forward", None if near > 0.99999 else
                     f"cosine {near:.6f} with the library's own model")

    def torchao(self, view):
        path = self.mount.path(view, self.dtype_name, self.name)
        model, complaints = self.load(path)
        self.say(view, "load", complaints)
        refusal = L.torchao_refuses(view, self.dtype)
        if refusal:
            self.say(view, "quantize", f"torchao itself: {refusal}", limit=True)
            theirs = L.torchao_by_hand(self, view, path)
        else:
            theirs = L.torchao_on_the_fly(self, view, path)
        self.say(view, "bytes", L.compare(L.torchao_tensors(theirs), path))
        self.compare_forward(view, model, theirs, path)

    def fp8(self):
        path = self.mount.path("fp8", self.dtype_name, self.name)
        model, complaints = self.load(path)
        self.say("fp8", "load", complaints)
        want = L.fp8_tensors(self.source, path)
        self.say("fp8", "bytes", L.compare(want, path))
        theirs, _ = self.load(self.source)
        L.fp8_dequantized(theirs, want)
        self.compare_forward("fp8", model, theirs, path)

    def compressed(self, view):
        path = self.mount.path(view, self.dtype_name, self.name)
        model, complaints = self.load(path)
        self.say(view, "load", complaints)
        theirs, _ = self.load(self.source)
        L.compress(theirs, L.quantization_config(path))
        want = {k: v for k, v in theirs.state_dict().items() if not L.is_tied(theirs, k)}
        self.say(view, "bytes", L.compare(want, path))
        self.compare_forward(view, model, theirs, path)
        if self.dtype is not torch.float32:
            self.eager(view, path)

    def eager(self, view, path):
        """On a CPU the library divides in the model's dtype, on a GPU in float32; views
        have the latter's bytes. The scales are the same, the codes neighbours."""
        theirs, _ = self.load(self.source)
        L.compress(theirs, L.quantization_config(path), eager=True)
        self.say(view, "as the CPU's division", L.compare_codes(theirs, path))

    def refuse(self, view):
        """A component of diffusers passes through."""
        path = self.mount.path(view, self.dtype_name, self.name)
        same = all(open(f"{path}/{f}", "rb").read() == open(f"{self.source}/{f}", "rb").read()
                   for f in os.listdir(path))
        self.say(view, "passes through", None if same else "the files differ")

    def export(self, view):
        """Published as plain files, in other shards."""
        out = os.path.join(os.path.dirname(self.mount.store), "exported",
                           self.dtype_name, view)
        os.makedirs(os.path.dirname(out), exist_ok=True)
        rc, _, err = qfmount.run("export", "--view", view, "--max-shard-size", "200KB",
                                 self.source, out)
        if rc != 0:
            return self.say(view, "export", err)
        model, complaints = self.load(out)
        want = L.read(self.mount.path(view, self.dtype_name, self.name))[0]
        files = [f for f in os.listdir(out) if f.endswith(".safetensors")]
        if len(files) < 5:
            complaints.append(f"{len(files)} shards")
        self.say(view, "export", complaints or L.compare(want, out))

    def train(self, view):
        path = self.mount.path(view, self.dtype_name, self.name)
        model, _ = self.load(path)
        self.say(view, "LoRA", L.train(model))

    def run(self, everything):
        for view in AO_VIEWS + (AO_GROUPS if everything or self.name == "llama" else ()):
            self.guard(view, self.torchao, view)
        for view in CT_VIEWS + (CT_GROUPS if everything or self.name == "llama" else ()):
            self.guard(view, self.refuse if self.diffusers else self.compressed, view)
        self.guard("fp8", *((self.refuse, "fp8") if self.diffusers else (self.fp8,)))
        if self.name == "llama":
            for view in ("ao-int8wo", "ao-float8wo", "fp8"):
                self.guard(view, self.train, view)
            for view in ("ao-int8wo", "fp8", "ct-w4a16"):
                self.guard(view, self.export, view)

    def guard(self, view, call, *args):
        try:
            call(*args)
        except Exception as e:  # a failed check must not take the others with it
            import traceback
            traceback.print_exc()
            self.say(view, "cell", f"{type(e).__name__}: {e}".replace("\n", " ")[:300])


def run_pipeline(mount):
    """A whole pipeline whose transformer and text encoder are those of the view."""
    failed = 0
    for view in ("ao-int8wo", "ao-float8wo"):
        path = mount.path(view, "pipeline")
        pipe = D.DiffusionPipeline.from_pretrained(path, torch_dtype=torch.float32,
                                                   safety_checker=None)
        kinds = {type(m.weight).__name__ for part in (pipe.unet, pipe.text_encoder)
                 for m in part.modules() if isinstance(m, torch.nn.Linear)}
        pipe.set_progress_bar_config(disable=True)
        picture = pipe("a filesystem", num_inference_steps=2, output_type="np",
                       generator=torch.Generator().manual_seed(1), height=16,
                       width=16).images[0]
        want = {"Int8Tensor"} if view == "ao-int8wo" else {"Float8Tensor"}
        wrong = None if want <= kinds and (picture == picture).all() else f"{kinds}"
        print(f"fail pipeline:{view}: {wrong}" if wrong else f"pass pipeline:{view}")
        failed += wrong is not None
    return failed


def write_pipeline(path):
    """A whole Stable Diffusion pipeline, by the matrix, whose models have a module of the
    same name as ours."""
    del sys.modules["models"]
    sys.path.insert(0, os.path.join(os.path.dirname(HERE), "matrix"))
    import stores
    stores.write_pipeline(path, "fp32")


def in_process(call, *args):
    """The number of failed checks."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = min(call(*args), 98)
        except BaseException:
            import traceback
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0 or code == 99:
        print(f"fail {call.__name__} {args}: it ended with {code}", flush=True)
    return abs(code)


def run_cell(mount, name, dtype, everything):
    cell = Cell(mount, name, dtype)
    cell.run(everything)
    return cell.failed


def main():
    arguments = sys.argv[1:]
    everything = "--all" in arguments
    wanted = [a for a in arguments if not a.startswith("-")]
    reason = qfmount.why_not()
    if reason is None:
        try:
            import_libraries()
        except ImportError as e:
            reason = str(e)
    if reason:
        print(f"skip scaled: {reason}")
        return 77
    cells = [(n, d) for n in MODELS for d in DTYPES if everything or (n, d) in SAMPLE]
    cells = [c for c in cells if not wanted or any(w in "-".join(c) for w in wanted)]
    work = tempfile.mkdtemp(prefix="quantfs-scaled-")
    failed = 0
    try:
        store = os.path.join(work, "store")
        for name, dtype in cells:
            failed += in_process(lambda p, d: MODELS[name][0](p, dtype_of(d)) or 0,
                                 os.path.join(store, dtype, name), dtype)
        if not wanted:
            failed += in_process(lambda p: write_pipeline(p) or 0, f"{store}/pipeline")
        with qfmount.Mount(store) as mount:
            for name, dtype in cells:
                failed += in_process(run_cell, mount, name, dtype, everything)
            if not wanted:
                failed += in_process(run_pipeline, mount)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
