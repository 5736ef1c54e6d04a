#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""view/layout against a second writing-down of docs/FORMATS.md section 4, byte by byte.

    test_layout_diff.py POLICY_DUMP [COUNT [SEED]]
"""
import random
import sys

import driver
import layout_oracle
import models
import scaled_oracle

OTHERS = ["I64", "BOOL", "U8", "F8_E4M3", "I32", "F64", "I16", "C64", "F4", "F6_E2M3"]
COPY, CAST, PART = 1, 2, 3


def odd_tensors(rng):
    """What random models lack: other dtypes, scalars, empty tensors."""
    out = {}
    for i in range(rng.randrange(6)):
        dtype = rng.choice(OTHERS + models.DTYPES)
        shape = rng.choice([[], [1], [3], [8], [5, 7, 1], [0], [0, 4], [2, 3], [4] * 5])
        if layout_oracle.BITS[dtype] % 8:
            shape = [rng.choice([0, 4, 8, 12])]
        out[f"{rng.choice(models.ROOTS)}.extra.{i}.\"q\"\t{i}"] = (dtype, shape)
    if rng.random() < 0.2:
        out["empty.layer.fc1.weight"] = ("BF16", [0, 64])
    return out


def scaled_view(rng):
    view = rng.choice(scaled_oracle.VIEWS)
    if view in scaled_oracle.GROUPED and rng.random() < 0.5:
        view += f"+group={rng.choice([16, 32, 64, 256])}"
    return view


def wide(rng, shape):
    """Shapes that blocks and groups divide, often."""
    if len(shape) != 2 or rng.random() < 0.3:
        return shape
    return [rng.choice([1, 7, 128, 256]), rng.choice([16, 32, 128, 256])]


def requests(rng, count):
    for _ in range(count):
        tensors, config = models.random_model(rng)
        config.pop("quantization_config", None)
        rows = list({**tensors, **odd_tensors(rng)}.items())
        rng.shuffle(rows)
        more = {"layout": True}
        if rng.random() < 0.3:
            more["storage"] = rng.choice(["BF16", "F16", "F32"])
        if rng.random() < 0.3:
            more["blocksize"] = rng.choice([128, 256, 4096])
        if rng.random() < 0.5:
            keys = rng.sample(["format", "author", "é", "a\"b"], rng.randrange(5))
            more["metadata"] = {k: rng.choice(["pt", "tf", "x\ny"]) for k in keys}
        view = rng.choice(["nf4", "fp4", "dq", "int8"])
        if rng.random() < 0.5:
            view = scaled_view(rng)
            rows = [(n, (dt, wide(rng, shape))) for n, (dt, shape) in rows]
            more.pop("storage", None)
            more.pop("blocksize", None)
        yield driver.request(dict(rows), config, view, **more)


def compare_layout(req, answer):
    if answer["reason"]:
        return []
    if answer["rc"] != 0:
        return [f"C failed: {answer['error']}"]
    out = check_settings(req, answer)
    decisions = [(row[1] == "quantized", row[2], row[3]) for row in answer["tensors"]]
    header, spans, file_size = layout_oracle.expected(
        req["view"], req["tensors"], decisions, answer["dtype"], req.get("metadata", {}),
        req.get("blocksize", 64), req.get("storage", "U8"))
    if answer["header"].encode() != header[8:]:
        out.append(f"header: C {answer['header']!r}, expected {header[8:].decode()!r}")
    if answer["header_length"] != len(header) - 8:
        out.append(f"header length {answer['header_length']}, not {len(header) - 8}")
    if answer["file_size"] != file_size:
        out.append(f"file size {answer['file_size']}, not {file_size}")
    if answer["tensor_bytes"] != file_size - len(header):
        out.append(f"tensor bytes {answer['tensor_bytes']}")
    got = answer["spans"]
    if got[0] != [0, len(header), 0, 0, 0]:
        out.append(f"first span {got[0]}")
    if [(s[0], s[1]) for s in got[1:]] != [(o, n) for _, o, n in spans]:
        out.append(f"spans: C {got}, expected {spans}")
    else:
        out += check_spans(req, answer, spans)
    return out


def check_spans(req, answer, spans):
    """Each span names the tensor (and so the part) that the header has there."""
    out = []
    for (_, _, kind, tensor, _), (name, _, _) in zip(answer["spans"][1:], spans):
        source, reason, served, _ = answer["tensors"][tensor]
        stored = req["tensors"][tensor][1]
        want = PART if reason == "quantized" else COPY if served == stored else CAST
        other = name.endswith("SCB") or scaled_oracle.is_scaled(req["view"])
        stem = source[:-len("weight")] if other and want == PART else source
        if kind != want or not name.startswith(stem) or (kind != PART and name != source):
            out.append(f"span of {name}: kind {kind}, tensor {source}")
    return out


def check_settings(req, answer):
    """A storage dtype that does not divide the codes, an empty weight: kept."""
    out = []
    if scaled_oracle.is_scaled(req["view"]):
        return check_groups(req, answer)
    storage = layout_oracle.width(req.get("storage", "U8"))
    for (name, dt, shape), (_, reason, *_) in zip(req["tensors"], answer["tensors"]):
        if reason not in ("quantized", "shape"):
            continue
        count = shape[0] * shape[1]
        divides = req["view"] == "int8" or layout_oracle.div_up(count, 2) % storage == 0
        if divides != (reason == "quantized") or count == 0:
            out.append(f"{name} {dt} {shape}: reason {reason}")
    return out


def check_groups(req, answer):
    """A group or a block that does not divide the shape: kept."""
    out = []
    for (name, dt, shape), (_, reason, *_) in zip(req["tensors"], answer["tensors"]):
        if reason in ("quantized", "shape") and \
                scaled_oracle.fits(req["view"], shape) != (reason == "quantized"):
            out.append(f"{name} {dt} {shape}: reason {reason}")
    return out


def main():
    program = sys.argv[1]
    count = int(sys.argv[2]) if len(sys.argv) > 2 else 600
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 2)
    asked = list(requests(rng, count))
    answers = driver.ask(program, asked)
    bad = driver.report("layouts", asked, answers, compare_layout)
    kept = sum(row[1] == "shape" for a in answers if not a["reason"]
               for row in a["tensors"])
    if kept == 0:
        print("no tensor was kept for its shape: the sample is too small")
        bad += 1
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
