#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs diff: what it tells, in every form, whatever computes it; through the cache of
a mount and of paths in one. The numbers themselves are compared with numpy's by
tests/loaders/diff.py."""
import csv
import io
import json
import os
import struct

import qfmount
import qfstore as S

SHARD = "model.safetensors"
HOSTILE = "model.layers.0.</script><b>,\"x\"\u2028\n'.weight"
ERRORS = ("mse", "max_abs_error", "sqnr_db", "cosine")


def without_clock(text):
    got = json.loads(text)
    got.pop("seconds")
    return got


class Diff(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir, "cache")
        S.write_llama(f"{self.store}/a", hidden=258, inter=301, vocab=16)

    def diff(self, *args, code=0, env=None):
        rc, out, err = qfmount.run("diff", "-o", f"cache={self.cache}", *args,
                                   env={**os.environ, **(env or {})})
        self.assertEqual(rc, code, err)
        return out, err

    def json(self, *args, **more):
        return without_clock(self.diff("-q", "--json", *args, **more)[0])

    def write_hostile(self):
        tensors = [(HOSTILE, "F32", [64, 64])] + S.llama_tensors(64, 1, "F32", 96, 8)
        S.write_shard(f"{self.store}/h/{SHARD}", tensors)
        S.write_json(f"{self.store}/h/config.json", S.llama_config(64, 1, "F32", 96, 8))

    def test_numbers_fit_together(self):
        got = self.json("--model", self.store, "nf4", "fp4", "dq", "int8")
        (model,) = got["models"]
        self.assertEqual((model["path"], got["skipped"], got["errors"]),
                         (f"{self.store}/a", [], []))
        self.assertEqual([v["name"] for v in model["views"]], ["nf4", "fp4", "dq", "int8"])
        self.assertEqual(model["bytes"], sum(t["bytes"] for t in model["tensors"]))
        quantized = {t["name"] for t in model["tensors"] if t["views"][0]["kind"] == "quantized"}
        self.assertEqual(len(quantized), 7)
        for i, view in enumerate(model["views"]):
            cells = [(t, t["views"][i]) for t in model["tensors"]]
            for over, wanted in (("all", cells), ("quantized", [
                    c for c in cells if c[1]["kind"] == "quantized"])):
                total = view[over]
                self.assertEqual(total["tensors"], len(wanted))
                self.assertEqual(total["bytes"], sum(c["bytes"] for _, c in wanted))
                self.assertEqual(total["elements"], sum(t["elements"] for t, _ in wanted))
                self.assertAlmostEqual(total["bits_per_weight"],
                                       8 * total["bytes"] / total["elements"])
                self.assertEqual(total["max_abs_error"],
                                 max(c["max_abs_error"] for _, c in wanted))
                error = sum(c["sum_squared_error"] for _, c in wanted)
                self.assertAlmostEqual(total["mse"] / (error / total["compared"]), 1, 12)
            for tensor, cell in cells:
                if cell["kind"] == "kept":
                    self.assertEqual((cell["mse"], cell["sqnr_db"]), (0, None))
                    self.assertEqual(cell["bytes"], tensor["bytes"])
                else:
                    self.assertGreater(cell["sqnr_db"], 10)
                    self.assertGreater(cell["cosine"], 0.9)
        sizes = [v["quantized"]["bits_per_weight"] for v in model["views"]]
        self.assertTrue(4 < sizes[2] < sizes[0] == sizes[1] < 5.5 < 8 < sizes[3], sizes)
        errors = [v["quantized"]["mse"] for v in model["views"]]
        self.assertTrue(errors[3] < errors[0] < errors[1], errors)

    def test_pairs(self):
        (model,) = self.json("--model", f"{self.store}/a", "nf4", "int8", "dq", "fp4")["models"]
        pairs = {(p["a"], p["b"]): p for p in model["pairs"]}
        self.assertEqual(set(pairs), {("nf4", "dq"), ("nf4", "fp4"), ("dq", "fp4")})
        same = pairs["nf4", "dq"]
        self.assertEqual((same["share_differing"], same["same_quant_map"]), (0, True))
        self.assertEqual(same["codes"], model["views"][0]["quantized"]["elements"])
        self.assertFalse(pairs["nf4", "fp4"]["same_quant_map"])
        self.assertGreater(pairs["nf4", "fp4"]["share_differing"], 0.5)
        for tensor in model["tensors"]:
            kept = tensor["views"][0]["kind"] == "kept"
            self.assertEqual([x is None for x in tensor["share_differing"]], [kept] * 3)

    def test_same_whatever_computes(self):
        """More than one segment a tensor; threads, instruction sets, cache or none."""
        S.write_llama(f"{self.store}/big", hidden=600, vocab=8,
                      inter=1801 if qfmount.SLOW else 4001)
        S.write_gpt2(f"{self.store}/turned", hidden=130, layers=2)
        args = ("--model", self.store, "nf4", "dq", "int8")
        want = self.json(*args)
        self.assertEqual(len(want["models"]), 3)
        self.assertEqual(self.json(*args), want)
        for more in (("-o", "threads=1"), ("-o", "threads=7"), ("-o", "cache=none"),
                     ("-o", "cache=none,memory=32M")):
            self.assertEqual(self.json(*more, *args), want, more)
        for isa in ("scalar", "avx2"):
            self.assertEqual(self.json("-o", "cache=none", *args,
                                       env={"QUANTFS_ISA": isa}), want, isa)

    def test_csv_is_json(self):
        self.write_hostile()
        args = ("--model", self.store, "nf4", "dq", "int8")
        want = self.json(*args)
        text = self.diff("-q", "--csv", *args)[0]
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
        self.assertTrue(all(None not in r and None not in r.values() for r in rows))
        cells = {(r["model"], r["view"], r["tensor"]): r for r in rows
                 if r["kind"] in ("quantized", "kept", "cast")}
        count = 0
        for model in want["models"]:
            for tensor in model["tensors"]:
                for view, cell in zip(model["views"], tensor["views"]):
                    row = cells[model["path"], view["name"], tensor["name"]]
                    self.assertEqual(int(row["bytes"]), cell["bytes"])
                    self.assertEqual(row["shape"], "x".join(map(str, tensor["shape"])))
                    for key in ERRORS:
                        if cell[key] is not None:
                            self.assertEqual(float(row[key]), cell[key])
                        else:
                            self.assertIn(row[key], ("", "inf"))
                    count += 1
        self.assertEqual(count, len(cells))
        totals = {(r["model"], r["view"], r["kind"]): r for r in rows if not r["tensor"]}
        for model in want["models"]:
            for view in model["views"]:
                for kind in ("quantized", "all"):
                    row = totals[model["path"], view["name"], f"total of {kind}"]
                    self.assertEqual(float(row["mse"]), view[kind]["mse"])
            (pair,) = model["pairs"]
            row = totals[model["path"], "nf4", "total of codes"]
            self.assertEqual((row["against"], int(row["elements"]),
                              int(row["codes_differing"])), ("dq", pair["codes"], 0))

    def test_text(self):
        self.write_hostile()
        out, err = self.diff("--model", self.store, "--top", "3", "nf4", "int8")
        self.assertIn("comparing: 100 %", err)
        self.assertIn("(3 of 14)", out)
        self.assertNotIn(HOSTILE, out)  # its line end would break the table
        for key, column in (("sqnr", 6), ("mse", 4), ("max", 5), ("cosine", 7)):
            out, _ = self.diff("-q", "--model", f"{self.store}/a", "--top", "0",
                               "--sort", key, "nf4", "int8")
            lines = [line.split() for line in out.splitlines()
                     if line.endswith("_proj.weight")]
            values = [float(line[column]) for line in lines]
            self.assertEqual(len(values), 14)
            self.assertEqual(values, sorted(values, reverse=key in ("mse", "max")), key)
        out, _ = self.diff("-q", "--model", f"{self.store}/a", "--sort", "name", "nf4")
        names = [line.split()[-1] for line in out.splitlines() if "_proj.weight" in line]
        self.assertEqual(names, sorted(names))

    def test_not_finite(self):
        tensors = [(n, "F32", s, bytearray(S.values(n, S.count_of(s), "F32")))
                   for n, _, s in S.llama_tensors(64, 1, "F32", 96, 8)]
        for name, _, _, data in tensors:
            if name.endswith("q_proj.weight"):
                data[400:404] = struct.pack("<f", float("nan"))
                data[8000:8004] = struct.pack("<f", float("-inf"))
        S.write_shard(f"{self.store}/n/{SHARD}", [(*t[:3], bytes(t[3])) for t in tensors])
        S.write_json(f"{self.store}/n/config.json", S.llama_config(64, 1, "F32", 96, 8))
        (model,) = self.json("--model", f"{self.store}/n", "nf4", "int8")["models"]
        for view in model["views"]:
            self.assertEqual(view["quantized"]["nonfinite_source"], 2)
            self.assertEqual(view["quantized"]["nonfinite_view"], 63)
            self.assertIsNotNone(view["all"]["mse"])
        out, _ = self.diff("-q", "--model", f"{self.store}/n", "nf4")
        self.assertIn("nf4: 2 elements are NaN or infinite in the source, 63 more", out)

    def test_cache_and_mount(self):
        """What diff has encoded a mount has, and the other way; a path in a mount is its
        source."""
        want = self.json("--model", f"{self.store}/a", "nf4", "dq")
        with qfmount.Mount(self.store, cache=self.cache, views="nf4:dq:int8") as m:
            for view in ("nf4", "dq"):
                S.read_file(m.path(view, "a", SHARD))
            self.assertEqual(m.status()["chunks_encoded"], 0)
            self.assertEqual(self.json("--model", m.path("int8", "a"), "nf4", "dq"), want)
            self.assertEqual(self.json("--model", m.path("nf4", "a", SHARD), "nf4", "dq"),
                             want)
            self.assertEqual(self.json("--model", m.mnt, "nf4", "dq"), want)

    def test_what_cannot_be(self):
        """The rest is told, and why not."""
        S.write(f"{self.store}/bad/{SHARD}", b"\xff" * 100)
        S.write_json(f"{self.store}/bad/config.json", S.llama_config(64, 1, "BF16", 96, 8))
        out, err = self.diff("-q", "--json", "--model", self.store, "nf4")
        got = json.loads(out)
        self.assertEqual([m["path"] for m in got["models"]], [f"{self.store}/a"])
        (skip,) = got["skipped"]
        self.assertEqual((skip["path"], skip["view"]), (f"{self.store}/bad", "nf4"))
        self.assertIn(SHARD, skip["reason"])
        self.assertIn(f"{self.store}/bad: not in nf4: ", err)
        out, err = self.diff("-q", "--model", f"{self.store}/bad", "nf4", code=2)
        self.assertEqual(out, "")
        os.mkdir(f"{self.dir}/empty")
        self.assertIn("no model", self.diff("--model", f"{self.dir}/empty", "nf4", code=2)[1])
        self.assertIn("No such file", self.diff("--model", "/nowhere", "nf4", code=2)[1])
        rc, _, err = qfmount.run("diff", "-q", "-o", f"cache={self.cache}", "--model",
                                 self.store, "--html", "/dev/full", "nf4")
        self.assertEqual(rc, 2)
        self.assertIn("/dev/full: No space left", err)
        page = f"{self.dir}/none/page.html"
        self.assertIn(page, self.diff("--model", self.store, "--html", page, "nf4",
                                      code=2)[1])

    def test_usage(self):
        for args, word in (((), "VIEW is missing"), (("nf5",), "nf5"),
                           (("nf4", "nf4"), "twice"), (("--json", "--csv", "nf4"), "--csv"),
                           (("--sort", "size", "nf4"), "--sort size"),
                           (("--top", "-1", "nf4"), "--top -1"),
                           (("--what", "nf4"), "--what"), (("-o", "no=1", "nf4"), "no")):
            self.assertIn(word, self.diff(*args, code=1)[1])
        out, _ = self.diff("--help")
        self.assertIn("exit codes:", out)


if __name__ == "__main__":
    qfmount.main()
