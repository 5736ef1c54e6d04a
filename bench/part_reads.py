# SPDX-License-Identifier: Apache-2.0
"""(b) The first read of a view, (c) the second after a remount, (d) reading again."""
import contextlib
import json
import os
import shutil
import subprocess
import tempfile

import qfmount
import servers
from common import MIB, Skip, Table, cat, copy_file, interleaved

SHARD = "llama/model.safetensors"
# Of what is read again: a kernel that reclaims by itself (DAMON) takes pages here and
# there even when memory is free. The table's note has the bytes; more than this is a
# page cache that does not work.
RECLAIMED_MAX = 0.02


def first(ctx):
    """Part b."""
    ctx.need_mount()
    store = ctx.llama()
    source = f"{store}/{SHARD}"
    size = os.path.getsize(source)
    cat(source)

    def first_read(view):
        cache = ctx.path("cache-first")
        shutil.rmtree(cache, ignore_errors=True)
        with qfmount.Mount(store, cache=cache, views=view) as m:
            took = cat(m.path(view, SHARD))
            if m.status()["chunks_encoded"] == 0:
                raise RuntimeError("the first read has encoded nothing")
        return took

    views = ("nf4",) if ctx.quick else ("nf4", "dq", "int8")
    took = interleaved({"cat": lambda: cat(source),
                        **{v: lambda v=v: first_read(v) for v in views}}, ctx.reps)
    table = Table("b", "First read of a view: `cat`, source in the page cache",
                  ["what", "GB/s of source", "ratio to cat of the source"],
                  "both cores: about half of the daemon's time is the kernel's, copying the "
                  "source out of its page cache, the records into the cache's file and "
                  "the reader's pages (c); encoding is an eighth.")
    table.add("cat of the bf16 source", size / took["cat"] * 1e-9, "1.00")
    for view in views:
        table.add(f"cat of {view}", size / took[view] * 1e-9, took["cat"] / took[view])
    return table


def _prepare(ctx):
    """The store, a cache that has all of its nf4 view, and a plain copy of that."""
    store, cache = ctx.llama(), ctx.path("cache-warm")
    copy = ctx.path("copy", SHARD)
    if not os.path.exists(copy):
        with qfmount.Mount(store, cache=cache, views="nf4") as m:
            copy_file(m.path("nf4", SHARD), copy)
            shutil.copyfile(m.path("nf4", "llama/config.json"),
                            ctx.path("copy", "llama/config.json"))
        with qfmount.Mount(store, cache=cache, views="nf4") as m:
            cat(m.path("nf4", SHARD))  # what the first pass could not store
    cat(copy)
    return store, cache, copy


def _servers(ctx, store, cache, copy, table):
    found = {"copy": servers.Plain(copy)}
    for name, make in (
            ("bare libfuse server", lambda: servers.Bare(ctx, copy)),
            ("view, passthrough=off",
             lambda: servers.Ours(ctx, store, cache, SHARD, "nf4", False)),
            ("view, sealed",
             lambda: servers.Ours(ctx, store, cache, SHARD, "nf4", True))):
        try:
            found[name] = make()
        except Skip as e:
            table.skip(name, str(e))
    return found


def second(ctx):
    """Part c."""
    ctx.need_mount()
    reader = ctx.program("qf_bench_reader")
    table = Table("c", "Second read of a view after a remount, its cache warm",
                  ["server", "how", "GB/s", "ratio to a plain copy",
                   "ratio to the bare server"],
                  "the kernel's insertion of 4 KiB pages into its cache (the bare server "
                  "shows it); sealed shards are read by the kernel itself and are bound "
                  "as the copy is.")
    store, cache, copy = _prepare(ctx)
    size = os.path.getsize(copy)

    def run_reader(*args):
        return lambda path: float(subprocess.run(
            [reader, args[0], path, *args[1:]], check=True, capture_output=True,
            text=True).stdout)

    ways = {"cat": cat, "read(), 1 stream": run_reader("read", "1"),
            "read(), 2 streams": run_reader("read", "2"),
            "read(), 4 streams": run_reader("read", "4"),
            "memcpy from a mapping": run_reader("map", "1")}
    get = "safetensors get_tensor + clone"
    try:
        ctx.child("get_tensors.py", copy)
        ways[get] = lambda path: json.loads(ctx.child("get_tensors.py", path))["seconds"]
    except Skip as e:
        table.notes.append(f"SKIP {get}: {e}")
    all_servers = _servers(ctx, store, cache, copy, table)

    def timed(server, way):
        with server.open() as path:
            return way(path)

    took = interleaved({(w, s): lambda w=w, s=s: timed(all_servers[s], ways[w])
                        for w in ways for s in all_servers}, ctx.reps)
    for w in ways:
        for s in all_servers:
            bare = took.get((w, "bare libfuse server"))
            table.add(s, w, size / took[w, s] * 1e-9, took[w, "copy"] / took[w, s],
                      f"{bare / took[w, s]:.2f}" if bare else "")
    hit = "view, passthrough=off"
    one, four = (took.get((f"read(), {n}", hit)) for n in ("1 stream", "4 streams"))
    if one and four:
        table.notes.append(f"Four readers of cached records reach {one / four:.2f} of one "
                           "reader's rate in sum.")
    return table


@contextlib.contextmanager
def _small_pages(ctx, copy):
    """The same file on a tmpfs without huge pages; as root only."""
    mnt = tempfile.mkdtemp(prefix="quantfs-tmpfs-")
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "huge=never", "none", mnt],
                              capture_output=True, text=True)
        if done.returncode != 0:
            raise Skip(f"no tmpfs can be mounted: {done.stderr.strip()}")
        copy_file(copy, f"{mnt}/file")
        yield f"{mnt}/file"
    finally:
        subprocess.run(["umount", mnt], capture_output=True)
        os.rmdir(mnt)


def again(ctx):
    """Part d."""
    ctx.need_mount()
    reader = ctx.program("qf_bench_reader")
    table = Table("d", "Reading again, from the kernel's page cache",
                  ["file", "how", "GB/s", "ratio to a plain copy",
                   "ratio to 4 KiB pages elsewhere"],
                  "copying out of 4 KiB pages of the page cache (a copy on a filesystem "
                  "with large folios has fewer steps); the daemon is not asked.")
    store, cache, copy = _prepare(ctx)
    size = os.path.getsize(copy)
    ours = servers.Ours(ctx, store, cache, SHARD, "nf4", False)
    with contextlib.ExitStack() as stack:
        files = {"copy": copy, "view": stack.enter_context(ours.open())}
        base = "tmpfs, 4 KiB pages"
        try:
            files[base] = stack.enter_context(_small_pages(ctx, copy))
        except Skip as e:
            base = "bare libfuse server"
            table.notes.append(f"SKIP tmpfs: {e}")
            files[base] = stack.enter_context(servers.Bare(ctx, copy).open())
        ways = {"read(), 1 stream": "read", "memcpy from a mapping": "map"}

        def timed(way, path):
            return float(subprocess.run([reader, ways[way], path], check=True, text=True,
                                        capture_output=True).stdout)

        for path in files.values():
            timed("read(), 1 stream", path)
        before = ours.mount.status()["bytes_served"]
        took = interleaved({(w, f): lambda w=w, f=f: timed(w, files[f])
                            for w in ways for f in files}, ctx.reps)
        served = ours.mount.status()["bytes_served"] - before
    for w in ways:
        for f in files:
            table.add(f, w, size / took[w, f] * 1e-9, took[w, "copy"] / took[w, f],
                      took[w, base] / took[w, f])
    table.notes.append(f"Bytes that the daemon served meanwhile: {served} "
                       f"({2 * ctx.reps} readings of {size / MIB:.0f} MiB).")
    if served > 2 * ctx.reps * size * RECLAIMED_MAX:
        raise RuntimeError(f"the daemon was asked for {served} bytes that were cached")
    return table
