# SPDX-License-Identifier: Apache-2.0
"""(e) from_pretrained: on the fly, the view for the first and the second time, a copy."""
import json
import os
import shutil
import statistics

import qfmount
from common import GIB, Skip, Table, cat, copy_file, high_water, mib


def copy_view(view, target):
    for d, _, names in os.walk(view):
        for name in names:
            path = os.path.join(d, name)
            copy_file(path, os.path.join(target, os.path.relpath(path, view)))


class Loads:
    def __init__(self, ctx, store, name):
        self.ctx, self.store, self.name = ctx, store, name
        self.cache = ctx.path(f"cache-load-{name}")
        self.copy = ctx.path(f"copy-load-{name}")
        shutil.rmtree(self.cache, ignore_errors=True)
        with qfmount.Mount(store, cache=self.cache, views="nf4") as m:
            copy_view(m.path("nf4", name), self.copy)
        with qfmount.Mount(store, cache=self.cache, views="nf4") as m:
            for f in os.listdir(self.copy):
                if os.path.isfile(os.path.join(self.copy, f)):
                    cat(m.path("nf4", name, f))

    def load(self, path, *more):
        return json.loads(self.ctx.child("load_model.py", path, *more))

    def on_the_fly(self):
        return self.load(os.path.join(self.store, self.name), "--bnb")

    def plain_copy(self):
        return self.load(self.copy)

    def view(self, cache):
        with qfmount.Mount(self.store, cache=cache, views="nf4") as m:
            found = self.load(m.path("nf4", self.name))
            found["daemon"], _ = high_water(m.status()["pid"])
        return found

    def first(self):
        cache = self.ctx.path("cache-load-first")
        shutil.rmtree(cache, ignore_errors=True)
        return self.view(cache)

    def second(self):
        return self.view(self.cache)


def medians(loads, reps):
    """Like interleaved, for measurements of several numbers."""
    cases = {"on the fly (BitsAndBytesConfig)": loads.on_the_fly,
             "view, first time": loads.first, "view, remounted": loads.second,
             "plain pre-quantized copy": loads.plain_copy}
    seen = {name: [] for name in cases}
    for rep in range(reps):
        for name in list(cases)[::1 if rep % 2 == 0 else -1]:
            seen[name].append(cases[name]())
    return {name: {key: statistics.median(v[key] for v in values) for key in values[0]}
            for name, values in seen.items()}


def run(ctx):
    ctx.need_mount()
    table = Table("e", "from_pretrained on the CPU, nf4",
                  ["model", "what", "load s", "load + every byte s",
                   "ratio of that to on the fly", "ratio to the copy",
                   "peak RSS of the loader", "peak RSS of the daemon"],
                  "bitsandbytes' CPU kernels on the fly; opening, headers and one page a "
                  "tensor for the lazy load of a view (weights stay mapped until they are "
                  "used); encoding, then FUSE (c), for every byte.")
    table.notes.append("Every byte: a clone of every tensor of the state dict after the "
                       "load. RSS counts pages of mapped files.")
    stores = {"minilm": ctx.path("minilm-store")}
    try:
        ctx.child("load_model.py", "--minilm", f"{stores['minilm']}/minilm")
    except Skip as e:
        del stores["minilm"]
        if "package" not in str(e):
            raise
        table.skip("minilm", str(e))
    if not ctx.quick:
        stores["llama"] = ctx.llama()
    for name, store in stores.items():
        found = medians(Loads(ctx, store, name), ctx.reps)
        size = sum(os.path.getsize(os.path.join(d, f)) for d, _, names in
                   os.walk(f"{store}/{name}") for f in names)
        whole = {k: v["load"] + v["touch"] for k, v in found.items()}
        fly, copy = (whole[k] for k in list(whole)[::3])
        for what, values in found.items():
            table.add(f"{name}, {size / GIB:.2f} GiB", what, values["load"], whole[what],
                      whole[what] / fly, whole[what] / copy, mib(values["rss"]),
                      mib(values["daemon"]) if "daemon" in values else "")
    return table
