# SPDX-License-Identifier: Apache-2.0
"""The layout of a view shard, written down a second time from docs/FORMATS.md (sections
3 and 4), without looking at the C code: the expected header and spans."""
import json
import struct

import scaled_oracle

BYTES = {"BOOL": 1, "U8": 1, "I8": 1, "F8_E5M2": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I16": 2,
         "U16": 2, "F16": 2, "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "F64": 8, "I64": 8,
         "U64": 8, "C64": 8}
BITS = {**{k: 8 * v for k, v in BYTES.items()}, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def width(dtype):
    return max(1, BITS[dtype] // 8)


def size_of(dtype, shape):
    count = 1
    for d in shape:
        count *= d
    return count * BITS[dtype] // 8


def div_up(a, b):
    return -(-a // b)


def quant_state(codec, blocksize, dtype, shape):
    kind = "fp4" if codec == "fp4" else "nf4"
    text = (f'{{"quant_type": "{kind}", "blocksize": {blocksize}, '
            f'"dtype": "{TORCH[dtype]}", "shape": [{shape[0]}, {shape[1]}]')
    if codec == "dq":
        text += (', "nested_blocksize": 256, "nested_dtype": "float32", '
                 '"nested_offset": 5.19735366e-02')
    return text + "}"


def parts(codec, name, shape, dtype, blocksize, storage):
    """(main group, groups of their own) of (name, dtype, shape), as in section 3."""
    if scaled_oracle.is_scaled(codec):
        return scaled_oracle.parts(codec, name, shape, dtype), []
    rows, cols = shape
    n = rows * cols
    if codec == "int8":
        main = [(name, "I8", [rows, cols]), (name[:-6] + "SCB", "F32", [rows])]
        return main, [(name + "_format", "U8", [])]
    nb = div_up(n, blocksize)
    codes = div_up(n, 2)
    out = [(name, storage, [codes // width(storage), 1])]
    if codec == "dq":
        out += [(name + ".absmax", "U8", [nb]),
                (name + ".nested_absmax", "F32", [div_up(nb, 256)]),
                (name + ".nested_quant_map", "F32", [256])]
    else:
        out += [(name + ".absmax", "F32", [nb])]
    out += [(name + ".quant_map", "F32", [16])]
    state = len(quant_state(codec, blocksize, dtype, shape))
    total = sum(size_of(d, s) for _, d, s in out) + state
    state += -total % 8
    kind = "fp4" if codec == "fp4" else "nf4"
    out += [(f"{name}.quant_state.bitsandbytes__{kind}", "U8", [state])]
    return out, []


def groups_of(codec, row, decision, dtype, blocksize, storage):
    name, stored, shape = row
    quantized, served, transposed = decision
    if not quantized:
        return [[(name, served, shape)]]
    if transposed:
        shape = shape[::-1]
    main, own = parts(codec, name, shape, dtype, blocksize, storage)
    main.sort(key=lambda p: -width(p[1]))  # stable
    return [main] + [[p] for p in own]


def expected(codec, rows, decisions, dtype, metadata, blocksize=64, storage="U8"):
    """rows: [(name, dtype, shape)] in file order; decisions: [(quantized, dtype served,
    transposed)]. Returns (header JSON padded, list of (name, off, size), file size)."""
    front, rest = [], []
    for row, decision in zip(rows, decisions):
        for group in groups_of(codec, row, decision, dtype, blocksize, storage):
            total = sum(size_of(d, s) for _, d, s in group)
            (front if total % 8 == 0 else rest).extend(group)
    rest.sort(key=lambda p: -width(p[1]))  # stable: then source order
    meta = dict(metadata)
    meta["format"] = "pt"
    header, off, spans = {"__metadata__": meta}, 0, []
    for name, dt, shape in front + rest:
        size = size_of(dt, shape)
        assert off % width(dt) == 0, (name, off, dt)
        header[name] = {"dtype": dt, "shape": shape, "data_offsets": [off, off + size]}
        spans.append((name, off, size))
        off += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    spans = [(n, start + o, s) for n, o, s in spans if s]
    return struct.pack("<Q", len(text)) + text, spans, start + off
