# SPDX-License-Identifier: Apache-2.0
"""(h) quantfs diff of all views against encoding them: quantfs warm, both with an empty
cache; and once more with what that has left."""
import os
import resource
import shutil
import statistics
import subprocess

import qfmount
from common import Table, interleaved, mib

VIEWS = ("nf4", "fp4", "dq", "int8")


def _timed(command, cpu):
    """Wall clock; the processors' time (user and system) is appended to `cpu`."""
    def spent():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    before, begin = spent(), os.times().elapsed
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                   stdin=subprocess.DEVNULL)
    cpu.append(spent() - before)
    return os.times().elapsed - begin


def run(ctx):
    store = ctx.llama()
    model = os.path.join(store, "llama")
    cache, program = ctx.path("diff-cache"), qfmount.binary()
    warm = [program, "warm", "-q", "-o", f"cache={cache}", "--view", ":".join(VIEWS), model]
    diff = [program, "diff", "-q", "-o", f"cache={cache}", "--json", "--model", model, *VIEWS]
    cpu = {"warm": [], "diff": [], "again": []}

    def empty(name, command):
        shutil.rmtree(cache, ignore_errors=True)
        os.sync()  # what the case before has written is not this one's work
        return _timed(command, cpu[name])

    took = interleaved({"warm": lambda: empty("warm", warm),
                        "diff": lambda: empty("diff", diff)}, ctx.reps)
    took["again"] = statistics.median(_timed(diff, cpu["again"]) for _ in range(ctx.reps))
    shutil.rmtree(cache, ignore_errors=True)
    size = os.path.getsize(os.path.join(model, "model.safetensors"))
    table = Table("h", f"Comparing {len(VIEWS)} views of a model of {mib(size)}",
                  ["what", "seconds", "ratio", "processor seconds", "ratio"],
                  "the disk, while records go to the cache; then the sums in binary64, "
                  "eight lanes of each, for every element in every view.")
    for name, label in (("warm", "quantfs warm, empty cache"),
                        ("diff", "quantfs diff, empty cache"),
                        ("again", "quantfs diff, warm cache")):
        used = statistics.median(cpu[name])
        table.add(label, took[name], took[name] / took["warm"], used,
                  used / statistics.median(cpu["warm"]))
    return table
