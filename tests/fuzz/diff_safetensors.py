#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mutates safetensors headers and compares what shard_probe says with the safetensors
library itself: accepted or refused, and if accepted, the same tensors and metadata.

    diff_safetensors.py SHARD_PROBE [--cases N] [--seed S]

Needs a Python that has safetensors. Differences that are meant (docs/FORMATS.md
section 1) are told by our sentence and counted apart: duplicate tensor names, U+0000 in
names and metadata, more than 32 dimensions. Any other difference is an error.
"""
import argparse
import json
import random
import struct
import subprocess
import sys
import tempfile

try:
    from safetensors import SafetensorError, safe_open
except ImportError:
    sys.exit(77)  # skipped

MEANT = ("the name is given twice", "U+0000", "more than 32 dimensions")
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "U8": 8, "I8": 8, "F8_E5M2": 8,
        "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "I16": 16,
        "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "C64": 64,
        "F64": 64, "I64": 64, "U64": 64}
TOKENS = [b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"\\u0000", b"\\ud800",
          b"\\ud83d\\ude00", b"\\u005f", b"null", b"true", b"0", b"-0", b"1", b"-1",
          b"1.0", b"1e2", b"1e400", b"0e400", b"00", b"18446744073709551615",
          b"18446744073709551616", b"9223372036854775808", b"1e-400", b"NaN",
          b"179769313486231580000e288", b"1.7976931348623158e308",
          b"1.7976931348623159e308", b"18446744073709551615" * 16, b'"dtype"',
          b'"shape"', b'"data_offsets"', b'"__metadata__"', b'"x"', b"{}", b"[]",
          b'{"F32":null}', b"\xff", b"\xc3\xa9", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
          b"\xef\xbb\xbf", b"\0", b"\t", b"\n", b" ", b"\x7f", b"\x1f", b"[" * 130,
          b"'", b"/", b"\\/", b"\\x", b"tru", b'"a":1,', b',"a":2']


def well_formed(rng):
    """A valid file, in one of the spellings that the library takes."""
    off, members = 0, []
    for i in range(rng.randrange(0, 5)):
        dtype = rng.choice(list(BITS))
        shape = [rng.choice([0, 1, 2, 3, 4, 8]) for _ in range(rng.randrange(0, 4))]
        if rng.random() < 0.02:
            shape = [1] * rng.choice([31, 32, 33, 40]) + [8]
        count = 1
        for d in shape:
            count *= d
        if count * BITS[dtype] % 8:
            shape, count = [8], 8
        size = count * BITS[dtype] // 8
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [off, off + size]}
        off += size
        if rng.random() < 0.1:
            entry = list(entry.values())
        else:
            if rng.random() < 0.1:
                entry["dtype"] = {dtype: None}
            if rng.random() < 0.2:
                entry["extra"] = rng.choice([1, -2.5, "x", None, [1, {"y": []}], 1e300])
            keys = list(entry)
            rng.shuffle(keys)
            entry = {k: entry[k] for k in keys}
        name = rng.choice(["w", "a.weight", "é", "", "n\u0001", "t" * 300])
        members.append((f"{name}{i if rng.random() < 0.97 else 0}", entry))
    if rng.random() < 0.5:
        value = rng.choice([{}, {"format": "pt"}, {"a": "b", "c": "ü\n"}, None])
        members.append(("__metadata__", value))
    rng.shuffle(members)
    style = rng.choice([(",", ":"), (", ", ": "), (" ,\n", "\t: ")])
    ascii_only = rng.random() < 0.5
    text = style[0].join(
        json.dumps(k, ensure_ascii=ascii_only) + style[1]
        + json.dumps(v, ensure_ascii=ascii_only, separators=style) for k, v in members)
    blanks = rng.choice(["", "", " ", "\n", "      "])
    return ("{" + text + "}" + blanks).encode(), off


def mutate(rng, header):
    """One small change."""
    data = bytearray(header)
    at = rng.randrange(len(data) + 1)
    kind = rng.randrange(8)
    if kind == 0:
        data[at:at] = rng.choice(TOKENS)
    elif kind == 1:
        del data[at:at + rng.randrange(1, 8)]
    elif kind == 2 and at < len(data):
        data[at] = rng.randrange(256)
    elif kind == 3:
        data[at:at + rng.randrange(1, 6)] = rng.choice(TOKENS)
    elif kind == 4:
        data.insert(at, rng.choice(b" \t\r\n"))
    elif kind == 5:
        start = rng.randrange(len(data) + 1)
        data[at:at] = data[start:start + rng.randrange(1, 60)]
    elif kind == 6:
        places = [i for i, c in enumerate(data) if 48 <= c < 58]
        if places:
            data[rng.choice(places)] = rng.randrange(48, 58)
    else:
        for value in (b"1e400", b"1.5", b'"s"', b"null", b"[1]", b'{"k":[]}'):
            if rng.random() < 0.3:
                data = bytearray(bytes(data).replace(
                    b'"extra":', b'"extra":' + value + b',"e2":', 1))
                break
    return bytes(data)


def make_case(rng):
    header, size = well_formed(rng)
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3])):
        header = mutate(rng, header)
    length = len(header)
    if rng.random() < 0.03:
        length = rng.choice([0, 1, length - 1, length + 1, length + size, 2**63,
                             2**64 - 1, 100_000_000, 100_000_001])
    size += rng.choice([0] * 12 + [1, -1, 8])
    file = struct.pack("<Q", max(length, 0)) + header + bytes(max(size, 0))
    if rng.random() < 0.02:
        file = file[:rng.randrange(len(file) + 1)]
    return file


def library_says(path, file):
    with open(path, "wb") as f:
        f.write(file)
    try:
        with safe_open(path, "numpy") as f:
            tensors = {}
            for name in f.keys():
                piece = f.get_slice(name)
                tensors[name] = [piece.get_dtype(), piece.get_shape()]
            return tensors, f.metadata() or {}
    except SafetensorError:
        return None


def probe_says(probe, file):
    probe.stdin.write(struct.pack("<I", len(file)) + file)
    probe.stdin.flush()
    line = probe.stdout.readline()
    if not line.endswith(b"\n"):
        sys.exit(f"shard_probe died on {file!r}")
    verdict, _, rest = line[:-1].partition(b" ")
    if verdict == b"no":
        return None, rest.decode()
    listed, metadata = json.loads(rest)
    return ({t[0]: [t[1], t[2]] for t in listed}, metadata), ""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("probe")
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    probe = subprocess.Popen([args.probe], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    accepted = refused = meant = wrong = 0
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as tmp:
        for _ in range(args.cases):
            file = make_case(rng)
            theirs = library_says(tmp.name, file)
            ours, sentence = probe_says(probe, file)
            if theirs == ours:
                accepted += ours is not None
                refused += ours is None
            elif ours is None and any(m in sentence for m in MEANT):
                meant += 1
            else:
                wrong += 1
                if wrong <= 10:
                    print(f"{file!r}\n  library: {theirs}\n  quantfs: {ours} {sentence}")
    probe.stdin.close()
    print(f"{args.cases} cases: both accept {accepted}, both refuse {refused}, "
          f"refused on purpose {meant}, disagreements {wrong}")
    if probe.wait() != 0 or wrong:
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
