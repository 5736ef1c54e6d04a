#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Runs bench/run.sh --quick on the parts that need no Python packages: each gives a table
with numbers, written between its markers of a copy of the document and nowhere else.

    tests/bench/smoke.py BUILD_DIRECTORY"""
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "tests", "mount"))
import qfmount  # noqa: E402

PARTS = "abcdfgh"


def run(build, work):
    """(tables of the JSON, the document before, after)"""
    doc, out = os.path.join(work, "doc.md"), os.path.join(work, "out.json")
    shutil.copyfile(os.path.join(ROOT, "docs", "PERFORMANCE.md"), doc)
    with open(doc, encoding="utf-8") as f:
        before = f.read()
    done = subprocess.run(
        [os.path.join(ROOT, "bench", "run.sh"), "--quick", "--only", ",".join(PARTS),
         "--python", "/nonexistent", "--work", work, "--json", out, "--doc", doc],
        env={**os.environ, "QF_BUILD": build}, text=True, capture_output=True)
    print(done.stdout, done.stderr)
    assert done.returncode == 0, f"exit {done.returncode}"
    with open(out, encoding="utf-8") as f:
        tables = json.load(f)["tables"]
    with open(doc, encoding="utf-8") as f:
        return tables, before, f.read()


def outside(text, parts):
    """The text without what is between the markers of these parts."""
    for part in ["facts", *parts]:
        text = re.sub(f"(<!-- bench:{part} -->).*?(<!-- /bench:{part} -->)", r"\1\2",
                      text, flags=re.S)
    return text


def main():
    why = qfmount.why_not()
    if why:
        print(f"SKIP: {why}")
        return 77
    with tempfile.TemporaryDirectory(prefix="quantfs-smoke-") as work:
        tables, before, after = run(sys.argv[1], work)
        left = [f for f in os.listdir(work) if f not in ("doc.md", "out.json")]
    assert [t["part"] for t in tables] == list(PARTS), [t["part"] for t in tables]
    for table in tables:
        numbers = [row for row in table["rows"]
                   if any(re.fullmatch(r"\d+\.\d+", cell) for cell in row)]
        assert numbers, f"part {table['part']} has no row with a number: {table['rows']}"
        assert table["bound"], table["part"]
        assert table["title"] in after, table["title"]
    assert outside(before, PARTS) == outside(after, PARTS), "text around was changed"
    assert not left, f"left behind: {left}"
    kernels = next(t for t in tables if t["part"] == "a")
    assert any("SKIP bitsandbytes" in note for note in kernels["notes"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
