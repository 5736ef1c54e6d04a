# SPDX-License-Identifier: Apache-2.0
"""(f) Names and headers of many models; (g) memory of the daemon under a huge file."""
import json
import os
import struct
import time

import qfmount
import qfstore
from common import GIB, MIB, Table, high_water, interleaved, mib, seconds

SPARSE = "huge/model.safetensors"


def _many(ctx, count):
    """`count` models of the same contents; returns the paths of their shards."""
    first = ctx.path("one-model")
    qfstore.write_llama(first, hidden=64, inter=128, vocab=64)
    files = {f: qfstore.read_file(f"{first}/{f}") for f in os.listdir(first)}
    for i in range(count):
        for name, data in files.items():
            qfstore.write(ctx.path("many", f"org{i % 10}", f"model{i}", name), data)
    return [f"org{i % 10}/model{i}/model.safetensors" for i in range(count)]


def _headers(root, shards):
    begin = time.perf_counter()
    for shard in shards:
        with open(os.path.join(root, shard), "rb", buffering=0) as f:
            (size,) = struct.unpack("<Q", f.read(8))
            json.loads(f.read(size))
    return time.perf_counter() - begin


def names(ctx):
    """Part f."""
    ctx.need_mount()
    count = 50 if ctx.quick else 1000
    shards, store = _many(ctx, count), ctx.path("many")
    encoded = []

    def mounted(call):
        with qfmount.Mount(store, cache="none", views="nf4") as m:
            took = call(m.path("nf4"))
            encoded.append(m.status()["chunks_encoded"])
        return took

    def find(root):
        return seconds(["find", root, "-ls"])

    def both(root):
        """Headers after the names are known, as after a find."""
        find(root)
        return _headers(root, shards)

    took = interleaved({"find": lambda: mounted(find), "find source": lambda: find(store),
                        "headers": lambda: mounted(both),
                        "headers source": lambda: _headers(store, shards)}, ctx.reps)
    table = Table("f", f"Names and headers of {count:,} models",
                  ["what", "seconds", "of the source directory, seconds", "ratio"],
                  "reading each model's config and header once (that decides the sizes), "
                  "then a request to the daemon for each file.")
    for what, label in (("find", "find MNT/nf4 -ls, freshly mounted"),
                        ("headers", "every shard's header, parsed, after that")):
        own, base = took[what], took[f"{what} source"]
        table.add(label, f"{own:.3f}", f"{base:.3f}", own / base)
    weights = encoded[0]
    table.notes.append(f"Chunks encoded by find: {weights}.")
    return table


def _sparse(ctx, size):
    """A shard of `size` bytes of zeros that take no room on the disk."""
    rows, cols = 4096, 8192
    count = size // (rows * cols * 2)
    tensors = [(f"model.layers.{i}.mlp.up_proj.weight", "BF16", [rows, cols])
               for i in range(count)]
    head, off = {"__metadata__": {"format": "pt"}}, 0
    for name, dtype, shape in tensors:
        end = off + rows * cols * 2
        head[name] = {"dtype": dtype, "shape": shape, "data_offsets": [off, end]}
        off = end
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path = ctx.path("sparse-store", SPARSE)
    qfstore.write(path, struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + off)
    config = qfstore.llama_config(cols, count, "BF16", rows, 32)
    qfstore.write_json(ctx.path("sparse-store", "huge/config.json"), config)
    return ctx.path("sparse-store"), os.path.getsize(path)


def memory(ctx):
    """Part g."""
    ctx.need_mount()
    store, size = _sparse(ctx, (1 if ctx.quick else 40) * GIB)
    ctx.need_disk(GIB)
    cache = ctx.path("cache-sparse")
    with qfmount.Mount(store, cache=cache, views="nf4",
                       cache_size="256M" if ctx.quick else "1G") as m:
        took = seconds(["cat", m.path("nf4", SPARSE)])
        status = m.status()
        peak, own = high_water(status["pid"])
    table = Table("g", f"Memory of the daemon that shows a file of {size / GIB:.0f} GiB",
                  ["what", "value", "ratio to the file"],
                  "-o memory= (512 MiB by default) for records, and the pages of the "
                  "cache that are mapped, which the kernel takes back when it needs them.")
    if status["chunks_encoded"] == 0:
        raise RuntimeError("nothing was encoded: the file is not quantized")
    for label, value in (("peak RSS (VmHWM)", peak), ("of its own at the end (RssAnon)",
                                                      own),
                         ("records, at most (memory_peak)", status["memory_peak"])):
        table.add(label, mib(value), f"{value / size:.4f}")
    table.notes.append(f"Read in {took:.1f} s: {size / took * 1e-9:.2f} GB/s of source "
                       f"(zeros); {status['cache_evictions']} records were evicted from a "
                       f"cache of {status['cache_bytes_limit'] // MIB} MiB.")
    return table
