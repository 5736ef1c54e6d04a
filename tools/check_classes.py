#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The policy against every model class that the installed transformers and diffusers can
build from its default config, without weights.

    tools/check_classes.py [--family F] [--only REGEX] [--limit N] POLICY_DUMP

For each class: the tensors that save_pretrained would write (tied ones dropped, renamed
and split as the library does) and its config go to POLICY_DUMP. Then the library's own
function replaces modules of that model by 4-bit ones as it does before it loads the nf4
view, told the plan's skip list. What must hold:

    a  a quantized tensor is the weight of a replaced module, which was a Linear, or a
       Conv1D and then the tensor is transposed, and it is loaded under its own name
    b  a replaced module whose weight is in the checkpoint has it quantized
    c  a replaced module has its weight in the checkpoint, or shares one that is quantized

One line a violation, totals at the end; exit 1 on a violation, 2 when nothing was built.
"""
import argparse
import collections
import contextlib
import copy
import gc
import importlib
import json
import logging
import pathlib
import re
import signal
import sys
import time
import warnings

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "policy"))
warnings.filterwarnings("ignore")

import arch_installed  # noqa: E402
import driver  # noqa: E402
import torch  # noqa: E402
from bitsandbytes.nn import Linear4bit  # noqa: E402

FAMILIES = ("diffusers", "transformers")
SAVED_DTYPE = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
               torch.float64: "F64", torch.int64: "I64", torch.int32: "I32",
               torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL"}
INNER_DEPTH_MAX = 4

# What a default config leaves out and some constructors need.
FILL = {"head_dim": 64, "num_key_value_heads": 4, "prediction_length": 24}
ARGUMENTS = {
    "ControlNetUnionModel": {"addition_time_embed_dim": 256,
                             "addition_embed_type": "text_time",
                             "projection_class_embeddings_input_dim": 2816},
    "DreamLiteTransformer2DModel": {"in_channels": 32},
    "EasyAnimateTransformer3DModel": {"in_channels": 16, "out_channels": 16,
                                      "patch_size": 2},
    "HiDreamImageTransformer2DModel": {"patch_size": 2, "in_channels": 16,
                                       "out_channels": 16, "num_layers": 2,
                                       "caption_channels": [4096, 4096],
                                       "llama_layers": [0, 1, 2, 3]},
    "HunyuanDiT2DControlNetModel": {"in_channels": 4, "patch_size": 2},
    "HunyuanDiT2DModel": {"in_channels": 4, "patch_size": 2},
    "LatteTransformer3DModel": {"in_channels": 4, "out_channels": 8, "patch_size": 2,
                                "caption_channels": 4096, "cross_attention_dim": 1152},
    "LuminaNextDiT2DModel": {"num_kv_heads": 8},
    "OmniGenTransformer2DModel": {"rope_scaling": {
        "original_max_position_embeddings": 4096, "type": "su",
        "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}},
    "Transformer2DModel": {"in_channels": 32},
    "TransformerTemporalModel": {"in_channels": 32},
}
# Settings of diffusers classes that build modules which the defaults do not.
VARIANTS = {
    "ControlNetModel": [{"num_class_embeds": 10}],
    "Cosmos3OmniTransformer": [{"action_gen": True, "action_dim": 16}],
    "FluxControlNetModel": [{"num_mode": 10}],
    "QwenImageTransformer2DModel": [{"use_additional_t_cond": True, "num_layers": 2}],
    "SkyReelsV2Transformer3DModel": [{"inject_sample_info": True, "num_layers": 2}],
    "Transformer2DModel": [
        {"in_channels": 4, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000,
         "norm_type": "ada_norm_zero"},
        {"num_vector_embeds": 100, "sample_size": 16, "num_embeds_ada_norm": 100,
         "norm_type": "ada_norm", "cross_attention_dim": 64},
    ],
    "UNet2DConditionModel": [{"num_class_embeds": 10}],
    "UNet2DModel": [{"num_class_embeds": 10},
                    {"time_embedding_type": "learned", "num_train_timesteps": 100}],
}


class NotSaved(Exception):
    """The names in a checkpoint of this class are not known."""


class Model:
    """A built model and what the check needs of it as it was before the replacement."""

    def __init__(self, model, config):
        self.model, self.config = model, config
        named = list(model.named_modules(remove_duplicate=False))
        self.kinds = {name: kind_of(module) for name, module in named}
        self.weights = {name: module.weight for name, module in named
                        if self.kinds[name] in ("Linear", "Conv1D")}
        self.tensors, self.origin = {}, {}
        self.tied = dict(getattr(model, "all_tied_weights_keys", None) or {})


def kind_of(module):
    from transformers.pytorch_utils import Conv1D

    if isinstance(module, Conv1D):
        return "Conv1D"
    return "Linear" if type(module) is torch.nn.Linear else type(module).__name__


def fill(config):
    for name, value in FILL.items():
        if getattr(config, name, value) is None:
            setattr(config, name, value)


def every(config, change, depth=0):
    """Changes a config and those inside it."""
    change(config)
    for value in list(vars(config).values()):
        if depth < INNER_DEPTH_MAX and hasattr(value, "to_json_string"):
            every(value, change, depth + 1)


@contextlib.contextmanager
def time_limit(seconds):
    signal.signal(signal.SIGALRM, arch_installed.give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def build_transformers(cls, settings, time_max_s):
    from transformers.initialization import no_init_weights

    # With fewer layers, for modules repeat; as it is; with what may be missing in it.
    changes = (arch_installed.shrink, lambda config: None, fill)
    for change in changes:
        try:
            with time_limit(time_max_s), no_init_weights(), torch.device("meta"):
                config = cls.config_class(**settings)
                every(config, change)
                model = cls(config)
            break
        except Exception:
            if change is changes[-1]:
                raise
    said = json.loads(model.config.to_json_string(use_diff=True))
    said.update(model_type=model.config.model_type, architectures=[cls.__name__],
                dtype="float32")
    return Model(model, said)


def build_diffusers(cls, settings, time_max_s):
    with time_limit(time_max_s), torch.device("meta"):
        model = cls(**settings)
    return Model(model, json.loads(model.to_json_string()))


def save(built, family):
    """Fills tensors {saved name: (dtype, shape)} and origin {saved name: model name, or
    None for what is cut from or put together of other tensors}."""
    model = built.model
    state = model.state_dict()
    if family == "transformers":
        from transformers.core_model_loading import revert_weight_conversion

        for name in getattr(model, "_keys_to_ignore_on_save", None) or ():
            state.pop(name, None)
        state = {name: value for name, value in state.items() if name not in built.tied}
        own = {id(value): name for name, value in state.items()}
        try:
            saved = revert_weight_conversion(model, state)
        except Exception as why:
            raise NotSaved(f"{type(why).__name__}: {why}") from why
    else:
        own = {id(value): name for name, value in state.items()}
        saved = state
    seen = set()
    for name, value in saved.items():
        origin = own.get(id(value))
        shared = id(model.get_parameter(origin)) if origin_is_parameter(model, origin) else 0
        if shared and shared in seen:
            continue  # one parameter under two names is written once
        seen.add(shared)
        dtype = SAVED_DTYPE.get(value.dtype, "F32")
        built.tensors[name] = (dtype, tuple(value.shape))
        built.origin[name] = origin


def origin_is_parameter(model, name):
    if name is None:
        return False
    try:
        model.get_parameter(name)
    except AttributeError:
        return False
    return True


def replace_transformers(model, skip):
    from transformers import BitsAndBytesConfig
    from transformers.integrations.bitsandbytes import replace_with_bnb_linear
    from transformers.quantizers.base import HfQuantizer

    skip = HfQuantizer.get_modules_to_not_convert(model, skip, model._keep_in_fp32_modules)
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    return replace_with_bnb_linear(model, skip, config, pre_quantized=True)


def replace_diffusers(model, skip):
    from accelerate import init_empty_weights
    from diffusers import BitsAndBytesConfig
    from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

    skip = list(skip) + list(model._keep_in_fp32_modules or [])
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    with init_empty_weights():
        return replace_with_bnb_linear(model, skip, quantization_config=config)


REPLACE = {"transformers": replace_transformers, "diffusers": replace_diffusers}
BUILD = {"transformers": build_transformers, "diffusers": build_diffusers}


def shares(built, module, quantized):
    """Whether the module's weight, which is not in the file, is one of those."""
    name = module + ".weight"
    for _ in range(len(built.tied)):
        name = built.tied.get(name, name)
    weights = {module, name.removesuffix(".weight")}
    return any(id(built.weights.get(other)) in quantized for other in weights)


def violations(built, answer, replaced):
    """(rule, sentence) of all that does not hold."""
    out, quantized, loaded = [], set(), {}
    for name, reason, _, transposed in answer["tensors"]:
        origin = built.origin[name]
        if origin is not None:
            loaded[origin] = (name, reason)
        if reason != "quantized":
            continue
        module = origin.removesuffix(".weight") if origin else None
        kind = built.kinds.get(module)
        if origin is None:
            out.append(("a", f"{name}: quantized, but the loader converts it"))
        elif kind not in ("Linear", "Conv1D"):
            out.append(("a", f"{name}: quantized, but of {kind or 'a parameter'}"))
        elif bool(transposed) != (kind == "Conv1D"):
            out.append(("a", f"{name}: transposed is {transposed}, but of {kind}"))
        elif module not in replaced:
            out.append(("a", f"{name}: quantized, but its {kind} is not replaced"))
        else:
            quantized.add(id(built.weights[module]))
    for module in sorted(replaced):
        name, reason = loaded.get(module + ".weight", (None, None))
        if name is not None and reason != "quantized":
            out.append(("b", f"{name}: replaced ({module}), but kept plain: {reason}"))
        elif name is None and not shares(built, module, quantized):
            out.append(("c", f"{module}: replaced, but its weight is not in the file"))
    return out


def check(program, family, cls, settings, time_max_s):
    """(outcome, number of tensors quantized, violations)"""
    built = BUILD[family](cls, settings, time_max_s)
    save(built, family)
    answer = driver.ask(program, [driver.request(built.tensors, built.config)])[0]
    if answer["rc"] != 0:
        return "failed", 0, [("a", f"the plan failed: {answer['error']}")]
    if answer["reason"]:
        return "served as it is: " + answer["reason"], 0, []
    with time_limit(time_max_s):
        model = REPLACE[family](built.model, copy.copy(answer["skip"]))
    replaced = {name for name, module in model.named_modules()
                if isinstance(module, Linear4bit)}
    return "planned", answer["quantized_count"], violations(built, answer, replaced)


def classes(family, only):
    """[(name, class, settings)], in order."""
    package = importlib.import_module(family)
    models = importlib.import_module(family + ".models")
    if family == "transformers":
        found = arch_installed.classes_in(
            arch_installed.modules_below(models, "modeling_"), package.PreTrainedModel)
        found = {name: cls for name, cls in found.items()
                 if arch_installed.model_type(cls) and not name.endswith("PreTrainedModel")}
    else:
        found = arch_installed.classes_in(
            arch_installed.modules_below(models, ""), package.ModelMixin)
        found = {name: cls for name, cls in found.items() if not name.endswith("ModelMixin")}
    out = []
    for name, cls in sorted(found.items()):
        if only.search(name):
            out.append((name, cls, ARGUMENTS.get(name, {})))
            out += [(f"{name}, {', '.join(s)}", cls, s) for s in VARIANTS.get(name, [])]
    return out


def first_line(why):
    text = str(why).strip().split("\n")[0]
    return f"{type(why).__name__}: {text}"[:90]


class Totals:
    def __init__(self):
        self.outcomes, self.rules = collections.Counter(), collections.Counter()
        self.unbuilt, self.unsaved = collections.Counter(), collections.Counter()
        self.quantized, self.bad_classes = 0, 0

    def add(self, name, outcome, quantized, found):
        self.outcomes[outcome] += 1
        self.quantized += quantized
        self.bad_classes += bool(found)
        self.rules.update(rule for rule, _ in found)
        for rule, sentence in found:
            print(f"{rule} {name}: {sentence}", flush=True)

    def show(self, family, count):
        built = sum(self.outcomes.values())
        print(f"--- {family}: {count} classes, {built} built and compared, "
              f"{sum(self.unbuilt.values())} cannot be built, "
              f"{sum(self.unsaved.values())} whose saved names are not known; "
              f"{self.quantized} tensors quantized")
        for what, counter in (("compared", self.outcomes), ("cannot be built", self.unbuilt),
                              ("names not known", self.unsaved)):
            for text, n in counter.most_common():
                print(f"    {n:5} {what}: {text}")
        print(f"    violations: a {self.rules['a']}, b {self.rules['b']}, "
              f"c {self.rules['c']}, in {self.bad_classes} classes", flush=True)


def run(args, family):
    work = classes(family, args.only)[:args.limit]
    totals, start, done = Totals(), time.monotonic(), 0
    for name, cls, settings in work:
        if args.stop_s and time.monotonic() - start > args.stop_s:
            print(f"stopped at {name}: {len(work) - done} classes are left")
            break
        done += 1
        try:
            totals.add(name, *check(args.program, family, cls, settings,
                                  args.time_max_s))
        except NotSaved as why:
            totals.unsaved[first_line(why)] += 1
            print(f"? {name}: {first_line(why)}")
        except Exception as why:  # whatever a constructor does not like
            totals.unbuilt[first_line(why)] += 1
            print(f"? {name}: {first_line(why)}")
        if done % 50 == 0:
            gc.collect()
            print(f"{family}: {done} of {len(work)}, {time.monotonic() - start:.0f} s",
                  file=sys.stderr, flush=True)
    totals.show(family, done)
    return totals


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--family", choices=FAMILIES, action="append")
    parser.add_argument("--only", type=re.compile, default=re.compile(""))
    parser.add_argument("--limit", type=int, help="so many classes of each family")
    parser.add_argument("--time-max-s", type=int, default=60, help="for building one")
    parser.add_argument("--stop-s", type=int, help="start no class after this time")
    parser.add_argument("program", metavar="POLICY_DUMP")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    totals = [run(args, family) for family in args.family or FAMILIES]
    if not any(t.outcomes for t in totals):
        sys.exit(2)
    sys.exit(1 if any(t.rules for t in totals) else 0)


if __name__ == "__main__":
    main()
