# SPDX-License-Identifier: Apache-2.0
"""What the parts of the benchmark share: tables, timing, mounts, files."""
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, os.path.join(ROOT, "tests", "mount"))
import qfmount  # noqa: E402
import qfstore  # noqa: E402

GIB = 1 << 30
MIB = 1 << 20


class Skip(Exception):
    """Why a part, or a row of it, cannot be measured here."""


class Table:
    """Rows of text under columns, a sentence about what bounds them, and notes."""

    def __init__(self, part, title, columns, bound):
        self.part, self.title, self.columns, self.bound = part, title, columns, bound
        self.rows, self.notes = [], []

    def add(self, *cells):
        assert len(cells) == len(self.columns)
        self.rows.append([c if isinstance(c, str) else f"{c:.2f}" for c in cells])

    def skip(self, what, why):
        self.rows.append([what, f"SKIP: {why}"] + [""] * (len(self.columns) - 2))

    def markdown(self):
        lines = [f"### {self.title}", "", "| " + " | ".join(self.columns) + " |",
                 "|" + "---|" * len(self.columns)]
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        lines += ["", f"Bound by: {self.bound}"]
        return "\n".join(lines + [f"\n{note}" for note in self.notes]) + "\n"

    def text(self):
        rows = [self.columns] + self.rows
        widths = [max(len(r[i]) for r in rows) for i in range(len(self.columns))]
        lines = [f"== {self.part}: {self.title}"]
        lines += ["  " + "  ".join(c.ljust(w) for c, w in zip(r, widths)).rstrip()
                  for r in rows]
        return "\n".join(lines + [f"  bound by: {self.bound}"] +
                         [f"  {note}" for note in self.notes])


class Context:
    """One run: sizes, repetitions, programs, and a directory that goes with it."""

    def __init__(self, args):
        self.quick, self.reps, self.python = args.quick, args.reps, args.python
        self.build = args.build
        self.work = tempfile.mkdtemp(prefix="quantfs-bench-", dir=args.work)
        self.stores = {}

    def close(self):
        shutil.rmtree(self.work, ignore_errors=True)

    def program(self, name):
        path = os.path.join(self.build, "bench", name)
        if not os.access(path, os.X_OK):
            raise Skip(f"{name} was not built")
        return path

    def need_mount(self):
        why = qfmount.why_not()
        if why:
            raise Skip(why)

    def path(self, *names):
        return os.path.join(self.work, *names)

    def need_disk(self, size):
        free = shutil.disk_usage(self.work).free
        if free < size + 2 * GIB:
            raise Skip(f"{size / GIB:.1f} GiB and some reserve are needed in "
                       f"{os.path.dirname(self.work)}, {free / GIB:.1f} are free")

    def llama(self):
        """A random Llama in one shard; more than 1 GB when it is to say something."""
        if "llama" not in self.stores:
            store = self.path("llama-store")
            layers = 1 if self.quick else 10
            self.need_disk(5 * layers * 110 * MIB)
            qfstore.write_llama(
                f"{store}/llama", hidden=2048, inter=5632, layers=layers, vocab=4096,
                config={"num_attention_heads": 16, "num_key_value_heads": 16,
                        "max_position_embeddings": 512, "tie_word_embeddings": False})
            self.stores["llama"] = store
        return self.stores["llama"]

    def child(self, script, *args):
        """Runs a script of ours with the interpreter that has the libraries; what it
        printed last."""
        if not self.python or not os.access(self.python, os.X_OK):
            raise Skip(f"no interpreter with torch and transformers ({self.python}); "
                       "see --python")
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [self.python, os.path.join(ROOT, "bench", script), *map(str, args)],
            capture_output=True, text=True, env=env, stdin=subprocess.DEVNULL)
        if done.returncode == 77:
            raise Skip(done.stdout.strip().splitlines()[-1])
        if done.returncode != 0:
            raise RuntimeError(f"{script}: {done.stderr.strip()[-800:]}")
        return done.stdout.strip().splitlines()[-1]


def interleaved(cases, reps):
    """cases: {name: function that returns what it measured}. All take turns, each time
    in the other direction; {name: median}."""
    seen = {name: [] for name in cases}
    for rep in range(reps):
        for name in list(cases)[::1 if rep % 2 == 0 else -1]:
            seen[name].append(cases[name]())
    return {name: statistics.median(values) for name, values in seen.items()}


def seconds(command):
    """Wall clock of a program that must succeed, its output thrown away."""
    begin = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL,
                   stdin=subprocess.DEVNULL)
    return time.perf_counter() - begin


def cat(path):
    return seconds(["cat", path])


def high_water(pid):
    """(VmHWM, RssAnon) of a process in bytes."""
    found = {}
    with open(f"/proc/{pid}/status", encoding="utf-8") as f:
        for line in f:
            key, _, value = line.partition(":")
            if key in ("VmHWM", "RssAnon"):
                found[key] = int(value.split()[0]) * 1024
    return found["VmHWM"], found["RssAnon"]


def copy_file(source, target):
    """A plain copy, made by reading and writing (no reflink, no sparse file)."""
    os.makedirs(os.path.dirname(target), exist_ok=True)
    with open(source, "rb") as f, open(target, "wb") as g:
        while data := f.read(8 * MIB):
            g.write(data)


def mib(size):
    return f"{size / MIB:,.0f} MiB"
