# SPDX-License-Identifier: Apache-2.0
"""Runs policy_dump over requests, and the reference over the same models."""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "reference"))

import bnbrule  # noqa: E402

# The reference's words for why a weight is kept.
REASONS = ("table", "head", "fp32", "name", "experts", "router", "embedding", "mha",
           "closure")


def ask(program, requests):
    """The answers to a list of requests, in order."""
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in requests)
    done = subprocess.run([program], input=text.encode(), stdout=subprocess.PIPE,
                          check=True)
    lines = done.stdout.decode().split("\n")[:-1]
    if len(lines) != len(requests):
        raise SystemExit(f"policy_dump gave {len(lines)} answers to {len(requests)}")
    return [json.loads(line) for line in lines]


def request(tensors, config, view="nf4", **more):
    """tensors: {name: (dtype, shape)}"""
    rows = [[name, dt, list(shape)] for name, (dt, shape) in tensors.items()]
    return {"view": view, "config": config, "tensors": rows, **more}


def tensors_of(req):
    return {name: (dt, shape) for name, dt, shape in req["tensors"]}


def compare_plan(req, answer):
    """What differs between the C plan and the reference's, as a list of sentences."""
    tensors = tensors_of(req)
    config = dict(req["config"])
    if "dtype" in req:
        config["dtype"] = bnbrule.TORCH[req["dtype"]]
    try:
        want = bnbrule.plan(tensors, config)
    except bnbrule.re.error:
        want = None  # an entry that is no regular expression: must not be served
    if want is not None and any(odd_entry(s, config) for s in want.skip):
        want = None
    if answer["rc"] != 0:
        return [f"C failed: {answer['error']}"]
    if want is None or answer["reason"]:
        both = want is None and answer["reason"]
        return [] if both else [f"reason {answer['reason']!r}, reference {want}"]
    got = {row[0]: row[1:] for row in answer["tensors"]}
    quant = {n for n, (reason, _, _) in got.items() if reason == "quantized"}
    cast = {n: served for n, (_, served, _) in got.items()
            if n not in quant and served != tensors[n][0]}
    conv1d = {n for n, (_, _, transposed) in got.items() if transposed}
    why = {n: reason for n, (reason, _, _) in got.items()
           if reason not in ("quantized", "not weight")}
    pairs = [("quant", quant, want.quant), ("skip", answer["skip"], want.skip),
             ("dtype", answer["dtype"], want.dtype), ("cast", cast, want.cast),
             ("conv1d", conv1d, want.conv1d), ("why", why, want.why),
             ("order", list(got), list(tensors)),
             ("quantized_count", answer["quantized_count"], len(quant))]
    return [f"{what}: C {a!r}, reference {b!r}" for what, a, b in pairs if a != b]


def odd_entry(entry, config):
    """Made from a module whose name has characters of regular expressions."""
    if entry == r".*\.experts" or not any(c in entry for c in "\\*+?[](){}|^$"):
        return False
    row = bnbrule.table()["transformers"].get(config.get("model_type"), {})
    return not any(entry in items for items in row.get("tied", {}).values())


def report(what, requests, answers, compare, shown=3):
    """Prints the first differences; returns the number of requests that differ."""
    bad = 0
    for req, answer in zip(requests, answers):
        differences = compare(req, answer)
        if not differences:
            continue
        bad += 1
        if bad <= shown:
            print(f"--- {what}: differs")
            for line in differences:
                print("  " + line)
            print("  request: " + json.dumps(req, ensure_ascii=False)[:2000])
    print(f"{what}: {len(requests)} compared, {bad} differ")
    return bad
