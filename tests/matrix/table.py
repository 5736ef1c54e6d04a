#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""table.py RESULTS… > docs/MATRIX.md: the matrix as a table, out of the files that
run.py and ecosystem.py wrote with --results. Incomplete results are an error."""
import importlib.metadata
import json
import sys
import time

import run

LIBRARIES = ("transformers", "diffusers", "bitsandbytes", "accelerate", "peft",
             "safetensors", "huggingface_hub", "torch", "numpy")
HEAD = """# The matrix

Made by `tests/matrix/run.py`, `ecosystem.py` and `table.py` on {date}, without a GPU, with
{versions}.

Every model is written by the test from a tiny config with odd sizes and seeded random
weights, in fp32, fp16 and bf16, and read through a mount by the unmodified loader (of
diffusers, the two functions that refuse a machine without a GPU are replaced). A cell is
`ok` when, in all three dtypes,

- the view loads with no missing, unexpected or mismatched key, and with no warning that
  the source itself does not give;
- every quantized tensor is, bit for bit, what [FORMATS](FORMATS.md) makes of the weight;
- every tensor equals what the same loader gets by quantizing on the fly with the same skip
  list: bit for bit in int8; in nf4 up to elements that lie exactly on a threshold; in fp4
  and dq but for the codes in which bitsandbytes' CPU path differs from its own CUDA path
  ({loose});
- the outputs of one forward pass are equal, bit for bit.

*Modules*: how many are quantized, of all Linear and Conv1D modules. The others are output
heads, routers, and what the loader keeps in fp32.

| model | class | modules | {views} |
| --- | --- | --- |{lines}
"""


def versions():
    return ", ".join(f"{n} {importlib.metadata.version(n)}" for n in LIBRARIES)


class Notes:
    def __init__(self):
        self.texts = []

    def number(self, text):
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def cell_text(cells, name, view, notes):
    """`ok` where the three dtypes agree, else each dtype by itself."""
    words = []
    for dtype in run.DTYPES:
        cell = cells[f"{view}:{name}:{dtype}"]
        words.append("**FAIL**" if cell["wrong"] else "ok" if not cell["limit"] else
                     f"limit ({notes.number(cell['limit'])})")
    if len(set(words)) == 1:
        return words[0]
    return ", ".join(f"{d} {w}" for d, w in zip(run.DTYPES, words))


def loose(cells):
    out = []
    for view, what in (("fp4", "codes"), ("dq", "absmax codes")):
        found = [c["differing"] for t, c in cells.items() if t.startswith(view + ":")]
        some, total = sum(f[0] for f in found), sum(f[1] for f in found)
        out.append(f"{view}: {some} of {total} bytes of {what}")
    return ", ".join(out)


def modules(cells, name):
    counts = {tuple(c["count"]) for t, c in cells.items()
              if t.split(":")[1] == name and c["count"]}
    return ", ".join(f"{a}/{b}" for a, b in sorted(counts))


def ecosystem(results):
    yield "\n## Around the loaders\n"
    groups = {}
    for name, why in results.items():
        group, _, rest = name.partition(":")
        groups.setdefault(group, []).append((rest, why))
    for group, tests in sorted(groups.items()):
        failed = [f"{r}: {w}" for r, w in tests if w and not w.startswith("limit: ")]
        limits = sorted({w for _, w in tests if w and w.startswith("limit: ")})
        passed = [r for r, w in tests if not w]
        yield f"- **{group}**: {len(passed)} of {len(tests)} pass" + (
            f"; {len(tests) - len(passed) - len(failed)} meet a limit that the libraries "
            f"have without a view too ({'; '.join(x[7:] for x in limits)})"
            if limits else "") + "".join(f"\n  - **FAIL** {f}" for f in failed)
        yield "  " + ", ".join(f"`{r}`" for r, _ in tests if r)


def main():
    import diffusion
    import models
    data = {"cells": {}, "ecosystem": {}}
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as f:
            for section, results in json.load(f).items():
                data[section].update(results)
    cells, notes = data["cells"], Notes()
    print(HEAD.format(date=time.strftime("%Y-%m-%d"), versions=versions(),
                      loose=loose(cells), views=" | ".join(run.VIEWS),
                      lines=" --- |" * len(run.VIEWS)).rstrip())
    for name, model in {**models.MODELS, **diffusion.MODELS}.items():
        about = f"{model.cls.__name__}{f' ({model.note})' if model.note else ''}"
        row = [cell_text(cells, name, v, notes) for v in run.VIEWS]
        print(f"| {name} | {about} | {modules(cells, name)} | {' | '.join(row)} |")
    if notes.texts:
        print("\nLimits that the libraries have without any view; the on-the-fly load, or a "
              "genuine saved\nmodel, fails in the same way:\n")
    for i, text in enumerate(notes.texts):
        print(f"{i + 1}. {text}")
    if data["ecosystem"]:
        print("\n".join(ecosystem(data["ecosystem"])))


if __name__ == "__main__":
    main()
