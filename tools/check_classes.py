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
import copy
import gc
import logging
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "policy"))

from arch_build import (BUILD, FAMILIES, NotSaved, classes, first_line, save,  # noqa: E402
                        time_limit)
import driver  # noqa: E402
from bitsandbytes.nn import Linear4bit  # noqa: E402


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
