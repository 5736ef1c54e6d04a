#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The generated C table is what its JSON gives, the JSON is as the generator left it, and
the generator refuses entries that the C side would misread and hand-written rows that are
wrong. What follows from facts of classes, on facts that are made up. (The program given
as argument is not needed.)"""
import copy
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import arch_derive  # noqa: E402
import gen_arch_table  # noqa: E402

GOOD = {"versions": {"x": "1"}, "transformers": {"bert": {"never": ["**.a.*.b"]}},
        "diffusers": {}}
BAD = [
    ("bert", {"none": True}),
    ("bert", {"never": ["a+b"]}),
    ("bert", {"never": []}),
    ("bert", {"never": "**.a"}),
    ("bert", {"never": ["**"]}),
    ("bert", {"heads": {"*": ["**.a"]}}),
    ("bert", {"heads": {"A b": ["**.a"]}}),
    ("bert", {"tied": {"Bert": ["a*"]}}),
    ("bert", {"fp32": {"Bert": ["a|b"]}}),
    ("bert", {"opt": ['a"']}),
    ('be"rt', {"opt": ["a"]}),
]


ROW = {"family": "transformers", "name": "bert", "field": "never", "items": ["**.a"],
       "reason": "why"}
# (changes to ROW, words of the complaint); None takes a member away
BAD_EXTRA = [
    ({"family": "keras"}, "unknown family 'keras'"),
    ({"family": None}, "'family' is missing"),
    ({"name": 3}, "'name' is missing or no text"),
    ({"name": 'be"rt'}, "odd name"),
    ({"reason": None}, "'reason' is missing"),
    ({"reason": " "}, "'reason' is missing"),
    ({"field": "nether"}, "unknown field 'nether'"),
    ({"items": None}, "not a list, or empty"),
    ({"items": []}, "not a list, or empty"),
    ({"items": ["a+b"]}, "not of a form that C knows"),
    ({"items": ["**.a", "**.a"]}, "'**.a' is there twice"),
    ({"class": "Bert"}, "'never' is not by class"),
    ({"field": "tied", "items": ["a"]}, "'tied' is by class"),
    ({"field": "heads", "class": "*"}, "'*' has no meaning"),
    ({"family": "diffusers", "field": "opt", "items": ["a"]}, "is not used for diffusers"),
    ({"itmes": ["a"]}, "unknown member 'itmes'"),
]


def complaint(extra):
    try:
        gen_arch_table.merge_extra(extra)
    except gen_arch_table.BadTable as bad:
        return str(bad)
    return "accepted"


def changed(changes):
    row = {**ROW, **changes}
    return {k: v for k, v in row.items() if v is not None}


def check_extra():
    """Sentences about what is wrong."""
    for changes, want in BAD_EXTRA:
        got = complaint([ROW, changed({"name": "other"}), changed(changes)])
        if want not in got or not got.startswith(("row 3", "transformers/", "diffusers/")):
            yield f"extra {changes}: {got!r}, not {want!r}"
    for extra, want in (({}, "not a list"), ([3], "row 1: not an object"),
                        ([ROW, ROW], "row 2 (transformers/bert): '**.a' is there twice")):
        if want not in complaint(extra):
            yield f"extra {extra}: {complaint(extra)!r}, not {want!r}"
    tied = changed({"field": "tied", "class": "B", "items": ["x"]})
    got = gen_arch_table.merge_extra([ROW, changed({"items": ["**.b"]}), tied])
    want = {"never": ["**.a", "**.b"], "tied": {"B": ["x"]}}
    if got != {"transformers": {"bert": want}, "diffusers": {}}:
        yield f"merged to {got}"
    whole = {gen_arch_table.digest(t, e) for t in (GOOD, {**GOOD, "versions": {}})
             for e in ([], [ROW])}
    if len(whole) != 4:
        yield "the digest does not tell tables or hand-written rows apart"


def fact(cls, linears, others=(), absent=(), **more):
    """A class whose Linears are saved under their names but for `absent` ones.
    others: {saved name: what it is in the model, or None}"""
    shape = ["F32", [8, 8]]
    weights = {f"{m}.weight": [*shape, f"{m}.weight"] for m in linears if m not in absent}
    weights.update({f"{n}.weight": [*shape, o] for n, o in dict(others).items()})
    return {"family": "transformers", "class": cls, "label": cls, "kind": "toy",
            "config": {"model_type": "toy", "architectures": [cls]}, "weights": weights,
            "linears": [[m, "Linear", i, True] for i, m in enumerate(linears)],
            "tied": {}, "keep": [], "conv1d": [], "prefix": "toy", **more}


FACTS = [
    fact("ToyModel", ["toy.layers.0.up", "toy.layers.1.up"],
         {"toy.codes": "toy.codes.weight"}),
    fact("ToyForX", ["toy.layers.0.up", "toy.layers.1.up", "x_head", "out", "boxes.0.a.0",
                     "boxes.1.a.0", "deep.0.q", "deep.0.k"],
         {"toy.codes": "toy.codes.weight", "deep.0.qk": None},
         absent=("boxes.1.a.0", "deep.0.q", "deep.0.k"), keep=["out"],
         fp32=["norm"], fp32s=["norm"]),
    {"family": "transformers", "class": "ToyForY", "label": "ToyForY", "kind": "toy",
     "error": "no", "fp32": ["other"]},
]
WANT = {"fp32": {"ToyForX": ["norm"], "ToyForY": ["other"]}, "fp32s": {"ToyForX": ["norm"]},
        "heads": {"ToyForX": ["**.out"]}, "opt": ["out", "x_head"],
        "never": ["**.deep.*.qk", "**.hand", "**.toy.codes"],
        "tied": {"ToyForX": ["boxes", "k", "q"]}}


def check_derived():
    base = {"transformers": {"toy": {"never": ["**.hand"]}}, "diffusers": {}}
    for facts in (FACTS, FACTS[::-1]):
        got = arch_derive.derive(facts, base)["transformers"]
        if got != {"toy": WANT}:
            yield f"derived {got}, not {WANT}"


def main():
    tool = ROOT / "tools" / "gen_arch_table.py"
    bad = subprocess.run([sys.executable, tool, "--check"]).returncode
    if '{.name = "bert", .never = list_0}' not in gen_arch_table.render(GOOD):
        print("a good table is not rendered as expected")
        bad += 1
    for name, entry in BAD:
        table = copy.deepcopy(GOOD)
        table["transformers"] = {name: entry}
        try:
            gen_arch_table.render(table)
        except gen_arch_table.BadTable:
            continue
        print(f"accepted: {name}: {entry}")
        bad += 1
    for wrong in (*check_extra(), *check_derived()):
        print(wrong)
        bad += 1
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
