#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The generated C table is what its JSON gives, and the generator refuses entries that
the C side would misread. (The program given as argument is not needed.)"""
import copy
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))

import arch_installed  # noqa: E402
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


# merge_field(old, new, classes that cannot be built) -> value
MERGES = [
    ((None, None, []), None),
    ((["a"], ["b"], []), ["a", "b"]),
    (({"A": ["x"]}, {"B": ["y"]}, []), {"B": ["y"]}),
    (({"A": ["x"]}, {"B": ["y"]}, ["A"]), {"A": ["x"], "B": ["y"]}),
    (({"A": ["x"]}, None, []), None),
    ((None, {"B": ["y"]}, ["A"]), {"B": ["y"]}),
]


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
    for arguments, want in MERGES:
        got = arch_installed.merge_field(*arguments)
        if got != want:
            print(f"merge_field{arguments}: {got}, not {want}")
            bad += 1
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
