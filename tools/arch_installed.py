# SPDX-License-Identifier: Apache-2.0
"""What the installed transformers and diffusers say about their architectures.

So far the fields that class attributes and module types decide: fp32, fp32s and conv1d
of transformers, fp32 of diffusers. (never, heads, tied and opt follow from how a class
loads its files: from the names that save_pretrained writes against the modules that the
class builds. Those are still taken from the table as it is.)
"""
import contextlib
import importlib
import inspect
import pkgutil
import signal

ATTRIBUTES = {"fp32": "_keep_in_fp32_modules", "fp32s": "_keep_in_fp32_modules_strict"}

LAYER_COUNTS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers",
                "decoder_layers", "num_experts", "num_local_experts", "n_routed_experts")
BUILD_TIME_MAX_S = 60


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


def build(cls):
    """An instance without weights, or None for what no default config can build."""
    import torch

    signal.signal(signal.SIGALRM, give_up)
    for smaller in (True, False):
        signal.alarm(BUILD_TIME_MAX_S)
        try:
            config = cls.config_class()
            if smaller:
                shrink(config)
            with torch.device("meta"):
                return cls(config)
        except Exception:  # whatever a constructor does not like
            continue
        finally:
            signal.alarm(0)
    return None


def conv1d_names(model):
    from transformers.pytorch_utils import Conv1D

    return {name.rsplit(".", 1)[-1] for name, module in model.named_modules()
            if type(module) is Conv1D}


def transformers_fields():
    """(table, names of the classes that could not be built). The lists of an instance
    are those of its class and of every model inside it."""
    import transformers
    import transformers.models

    table, unbuilt = {}, []
    modules = modules_below(transformers.models, "modeling_")
    found = classes_in(modules, transformers.PreTrainedModel)
    for name, cls in sorted(found.items()):
        kind = model_type(cls)
        if kind is None or name.endswith("PreTrainedModel"):
            continue
        model = build(cls)
        if model is None:
            unbuilt.append(name)
        entry = table.setdefault(kind, {})
        for field, attribute in ATTRIBUTES.items():
            items = getattr(model if model is not None else cls, attribute, None)
            if items:
                entry.setdefault(field, {})[name] = sorted(items)
        if model is not None:
            entry.setdefault("conv1d", set()).update(conv1d_names(model))
    for entry in table.values():
        names = entry.pop("conv1d", None)
        if names:
            entry["conv1d"] = sorted(names)
    return {kind: entry for kind, entry in table.items() if entry}, unbuilt


def diffusers_fields():
    import diffusers
    import diffusers.models

    modules = modules_below(diffusers.models, "")
    table = {}
    for name, cls in sorted(classes_in(modules, diffusers.ModelMixin).items()):
        items = getattr(cls, ATTRIBUTES["fp32"], None)
        if items:
            table[name] = {"fp32": {"*": list(items)}}
    return table


def versions():
    import diffusers
    import transformers

    return {"transformers": transformers.__version__, "diffusers": diffusers.__version__}


def canonical(value):
    """A field's value without regard to the order of its items."""
    if isinstance(value, dict):
        return {cls: sorted(items) for cls, items in value.items()}
    return sorted(value) if value is not None else None


def merge_field(old, new, unbuilt):
    """The new value; what is known of classes that cannot be built is kept, and so are
    module names, for a default config does not build all modules (cross-attention)."""
    if not isinstance(old or new, dict):
        return sorted({*(old or []), *(new or [])}) or None
    kept = {cls: items for cls, items in (old or {}).items()
            if cls in unbuilt}
    return {**(new or {}), **kept} or None


def renewed(table):
    """(table with the fields above as installed, list of what changed)."""
    out = {"versions": versions()}
    changes = []
    rows_of, unbuilt = transformers_fields()
    for family, fields, collected in (("transformers", ("fp32", "fp32s", "conv1d"), rows_of),
                                      ("diffusers", ("fp32",), diffusers_fields())):
        rows = {name: dict(entry) for name, entry in table[family].items()}
        for name in sorted(set(rows) | set(collected)):
            row = rows.setdefault(name, {})
            for field in fields:
                old = row.get(field)
                new = merge_field(old, collected.get(name, {}).get(field), unbuilt)
                if canonical(old) == canonical(new):
                    continue  # an order that means nothing is left as it is
                changes.append(f"{family}/{name}: {field}: {old} -> {new}")
                if new is None:
                    row.pop(field)
                else:
                    row[field] = new
        out[family] = {name: row for name, row in rows.items() if row}
    return out, changes
