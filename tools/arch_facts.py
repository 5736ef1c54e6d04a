# SPDX-License-Identifier: Apache-2.0
"""What the installed transformers and diffusers say of each of their model classes, as
plain data: nothing is decided here. tools/arch_derive.py makes rows of it.

A fact of a class that could be built:

    kind      the model_type of its config (diffusers: the name of the class)
    config    what the policy reads of its config.json
    weights   {name in a checkpoint: [dtype, shape, name in the model, or null for what
              the loader cuts or puts together]} of all tensors named …weight
    linears   [[name, "Linear" or "Conv1D", number, whether the loader comes by it]];
              equal numbers are one parameter
    tied      {name: the name under which its weight is saved}
    keep      modules that the library leaves alone when it is not told which
    fp32, fp32s, conv1d, prefix
"""
import gc
import json
import logging
import multiprocessing
import os
import sys
import time

import arch_build

ATTRIBUTES = {"fp32": "_keep_in_fp32_modules", "fp32s": "_keep_in_fp32_modules_strict"}
CLASSES_PER_PROCESS = 100  # what a class leaves behind in memory goes with its process
BUILD_TIME_MAX_S = 120


def versions():
    import diffusers
    import transformers

    return {"transformers": transformers.__version__, "diffusers": diffusers.__version__}


def lists_of(thing):
    """Order means something to diffusers, whose attribute is a list."""
    out = {}
    for field, attribute in ATTRIBUTES.items():
        items = getattr(thing, attribute, None)
        if items:
            out[field] = list(items) if isinstance(items, list) else sorted(items)
    return out


def models_in(config):
    """Those members that are a model's config, without the rest."""
    out = {k: config[k] for k in ("model_type", "architectures", "_class_name", "dtype")
           if k in config}
    for name, value in config.items():
        if isinstance(value, dict):
            inner = models_in({k: v for k, v in value.items()
                               if k == "model_type" or isinstance(v, dict)})
            if inner:
                out[name] = inner
    return out


def linears_of(built):
    visited = {name for name, _ in built.model.named_modules()}
    numbers, out = {}, []
    for name, weight in built.weights.items():
        number = numbers.setdefault(id(weight), len(numbers))
        out.append([name, built.kinds[name], number, name in visited])
    return out


def keep_of(model):
    from transformers.quantizers.base import get_keys_to_not_convert

    return sorted(get_keys_to_not_convert(model))


def of_instance(family, built):
    arch_build.save(built, family)
    linears = linears_of(built)
    fact = {
        "config": models_in(built.config),
        "weights": {name: [dtype, list(shape), built.origin[name]]
                    for name, (dtype, shape) in built.tensors.items()
                    if name.endswith("weight")},
        "linears": linears,
        "conv1d": sorted({n.rsplit(".", 1)[-1] for n, kind, *_ in linears
                          if kind == "Conv1D"}),
        **lists_of(built.model),
    }
    if family == "transformers":
        fact.update(kind=built.config["model_type"], tied=built.tied,
                    keep=keep_of(built.model),
                    prefix=getattr(built.model, "base_model_prefix", ""))
    return fact


def fact_of(family, label, cls, settings):
    fact = {"family": family, "class": cls.__name__, "label": label, "kind": cls.__name__}
    if family == "transformers":
        fact["kind"] = arch_build.model_type(cls)
    try:
        built = arch_build.BUILD[family](cls, settings, BUILD_TIME_MAX_S)
        fact.update(of_instance(family, built))
    except Exception as why:  # whatever a constructor does not like
        fact.update(lists_of(cls), error=arch_build.first_line(why))
    return fact


WORK = []  # filled before the workers are made, which inherit it


def one(index):
    if index % 20 == 0:
        gc.collect()
    return fact_of(*WORK[index])


def note(done, start, end="\r" if sys.stderr.isatty() else "\n"):
    if done == len(WORK) or done % 50 == 0:
        print(f"{done} of {len(WORK)} classes, {time.monotonic() - start:.0f} s",
              file=sys.stderr, end="\n" if done == len(WORK) else end, flush=True)


def collect(jobs=None):
    """The facts of all classes, in order of family and name."""
    arch_build.torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    WORK[:] = [(family, *row) for family in arch_build.FAMILIES
               for row in arch_build.classes(family)]
    facts, start = [], time.monotonic()
    with multiprocessing.get_context("fork").Pool(
            jobs or len(os.sched_getaffinity(0)),
            maxtasksperchild=CLASSES_PER_PROCESS) as pool:
        for fact in pool.imap(one, range(len(WORK))):
            facts.append(fact)
            note(len(facts), start)
    return facts


def load(path):
    """Facts that were written before, or None when they are of other versions."""
    try:
        with open(path, encoding="utf-8") as f:
            head = json.loads(f.readline())
            return [json.loads(line) for line in f] if head == versions() else None
    except FileNotFoundError:
        return None


def store(path, facts):
    with open(path + ".new", "w", encoding="utf-8") as f:
        for line in (versions(), *facts):
            f.write(json.dumps(line) + "\n")
    os.replace(path + ".new", path)
