# SPDX-License-Identifier: Apache-2.0
"""Instances without weights (on the meta device) of every model class that the installed
transformers and diffusers define, and what save_pretrained would write of each: the
common ground of the table's generator and of the check over every class."""
import contextlib
import importlib
import inspect
import json
import pkgutil
import re
import signal
import warnings

warnings.filterwarnings("ignore")

import torch  # noqa: E402

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
# Settings that build modules which the defaults do not.
VARIANTS = {
    "DecisionTransformerGPT2Model": [{"add_cross_attention": True}],
    "GPT2LMHeadModel": [{"add_cross_attention": True}],
    "ImageGPTModel": [{"add_cross_attention": True}],
    "ControlNetModel": [{"num_class_embeds": 10}],
    "ControlNetUnionModel": [{**ARGUMENTS["ControlNetUnionModel"], "num_class_embeds": 10}],
    "Cosmos3OmniTransformer": [{"action_gen": True, "action_dim": 16}],
    "DreamLiteTransformer2DModel": [
        {"in_channels": 32, "norm_type": "ada_norm_zero", "num_embeds_ada_norm": 1000},
        {"in_channels": 32, "norm_type": "ada_norm", "num_embeds_ada_norm": 1000,
         "cross_attention_dim": 64},
    ],
    "FluxControlNetModel": [{"num_mode": 10}],
    "Kandinsky6Transformer3DModel": [{"visual_token_type_num_embeddings": 3}],
    "QwenImageTransformer2DModel": [{"use_additional_t_cond": True, "num_layers": 2}],
    "RFD4ProteinaTransformer": [{"feats_seq": ["cath_code"]}],
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


LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
                "decoder_layers", "num_experts", "num_local_experts", "n_routed_experts")


def modules_below(package, part):
    """All modules of a package whose last name contains `part`, imported."""
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + ".",
                                      onerror=lambda name: None):
        if part in info.name.rsplit(".", 1)[-1]:
            with contextlib.suppress(Exception):  # needs a package that is not here
                yield importlib.import_module(info.name)


def classes_in(modules, base):
    """{name: class} of the classes that these modules define."""
    out = {}
    for module in modules:
        for name, cls in inspect.getmembers(module, inspect.isclass):
            if issubclass(cls, base) and cls.__module__ == module.__name__:
                out[name] = cls
    return out


def model_type(cls):
    config = getattr(cls, "config_class", None)
    return getattr(config, "model_type", None) or None


def give_up(signum, frame):
    raise TimeoutError


def shrink(config):
    """Fewer layers: modules repeat."""
    for name in LAYER_COUNTS:
        value = getattr(config, name, None)
        if type(value) is int and value > 4:
            with contextlib.suppress(Exception):
                setattr(config, name, 4)


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
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def build_transformers(cls, settings, time_max_s):
    from transformers.initialization import no_init_weights

    # With fewer layers, for modules repeat; as it is; with what may be missing in it.
    changes = (shrink, lambda config: None, fill)
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


def renaming(model, names):
    """Those of the names in a checkpoint that the loader renames, if at all, in the same
    way when more follows: for the parts of a quantized X are named X.absmax and so on."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming
    from transformers.core_model_loading import rename_source_key

    mapping = get_model_conversion_mapping(model)
    how = ([m for m in mapping if isinstance(m, WeightRenaming)],
           [m for m in mapping if isinstance(m, WeightConverter)])
    names = sorted(names)
    want = {name: rename_source_key(name, *how)[0] for name in names}
    return {name for name in names
            if rename_source_key(name + ".absmax", *how)[0] == want[name] + ".absmax"}


def save(built, family):
    """Fills tensors {saved name: (dtype, shape)} and origin {saved name: model name, or
    None for what is cut from or put together of other tensors, or could not be if it came
    in parts}."""
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
        renamed = renaming(model, saved)
    else:
        own = {id(value): name for name, value in state.items()}
        saved, renamed = state, set(state)
    seen = set()
    for name, value in saved.items():
        origin = own.get(id(value))
        shared = id(model.get_parameter(origin)) if origin_is_parameter(model, origin) else 0
        if shared and shared in seen:
            continue  # one parameter under two names is written once
        seen.add(shared)
        dtype = SAVED_DTYPE.get(value.dtype, "F32")
        built.tensors[name] = (dtype, tuple(value.shape))
        built.origin[name] = origin if name in renamed else None


def origin_is_parameter(model, name):
    if name is None:
        return False
    try:
        model.get_parameter(name)
    except AttributeError:
        return False
    return True


BUILD = {"transformers": build_transformers, "diffusers": build_diffusers}


def classes(family, only=re.compile("")):
    """[(name, class, settings)], in order."""
    package = importlib.import_module(family)
    models = importlib.import_module(family + ".models")
    if family == "transformers":
        found = classes_in(
            modules_below(models, "modeling_"), package.PreTrainedModel)
        found = {name: cls for name, cls in found.items()
                 if model_type(cls) and not name.endswith("PreTrainedModel")}
    else:
        found = classes_in(
            modules_below(models, ""), package.ModelMixin)
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
