#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs cache: what an administrator sees of a cache, and does to it, with and without
a daemon on the directory."""
import hashlib
import json
import os
import shutil
import time

import qfmount
import qfstore as S

KEYS = {"model", "view", "bytes", "values", "file_bytes", "files", "hits", "hit_rate",
        "last_use", "pinned", "gone"}


class Cache(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir, "cache")
        for name in ("a", "deep/b"):
            S.write_llama(f"{self.store}/{name}", seed=name)

    def mount(self, **options):
        return qfmount.Mount(self.store, cache=self.cache,
                             **{"passthrough": "off", **options})

    def read(self, m, *places):
        """Reads NAME of views, "nf4/a" …; returns the digests."""
        return {p: S.sha256(m.path(p, "model.safetensors")) for p in places}

    def fill(self, *places):
        with self.mount() as m:
            return self.read(m, *places)

    def run_cache(self, *args, code=0):
        got, out, err = qfmount.run("cache", args[0], "--cache", self.cache, *args[1:])
        self.assertEqual(got, code, f"{args}: {out}{err}")
        return out if code == 0 else out + err

    def models(self, *args):
        found = json.loads(self.run_cache("list", "--json", *args))
        for one in found:
            self.assertEqual(set(one), KEYS)
        return {(os.path.relpath(o["model"], self.store), o["view"]): o for o in found}

    def stat(self):
        return json.loads(self.run_cache("stat", "--json"))

    # ---- stat, list ----

    def test_stat_and_list(self):
        self.fill("nf4/a", "int8/a", "nf4/deep/b")
        before = time.time()
        self.fill("nf4/a")
        stat = self.stat()
        self.assertEqual(set(stat), {"cache", "bytes", "limit", "data_bytes", "values",
                                     "files", "file_bytes", "models"})
        self.assertEqual(stat["cache"], self.cache)
        self.assertEqual(stat["data_bytes"],
                         os.path.getsize(f"{self.cache}/data.mdb"))
        models = self.models()
        self.assertEqual(set(models), {("a", "nf4"), ("a", "int8"), ("deep/b", "nf4")})
        self.assertEqual(stat["values"], sum(o["values"] for o in models.values()))
        one, other = models["a", "nf4"], models["deep/b", "nf4"]
        self.assertGreater(one["values"], 0)
        self.assertEqual(one["bytes"], other["bytes"])
        self.assertGreaterEqual(one["hits"], one["values"])
        self.assertEqual(other["hits"], 0)
        self.assertGreaterEqual(one["hit_rate"], 0.5)
        self.assertGreaterEqual(one["last_use"], int(before) - 1)
        self.assertEqual(list(self.models("--view", "int8")), [("a", "int8")])
        self.assertEqual(len(self.models("--model", "*/deep/*")), 1)
        self.assertEqual(len(self.models("--model", "deep/b")), 1)
        lines = [s.split("\t") for s in self.run_cache("list").splitlines()]
        self.assertEqual(sorted((s[0], s[7]) for s in lines),
                         sorted((v, f"{self.store}/{m}") for m, v in models))
        for s in lines:
            o = models[os.path.relpath(s[7], self.store), s[0]]
            self.assertEqual(s[1:7], [str(o[k]) for k in
                             ("bytes", "values", "files", "hits", "last_use")] + ["0"])
        text = self.run_cache("stat")
        self.assertIn(f"{self.store}/deep/b", text)
        self.assertIn("never" if other["last_use"] == 0 else "20", text)

    def test_names_without_a_mount(self):
        """What was warmed without a mount has the same name as what a mount put."""
        self.fill("nf4/deep/b")
        rc, _, err = qfmount.run("warm", f"{self.store}/deep/b", "--view", "int8",
                                 "-o", f"cache={self.cache}")
        self.assertEqual(rc, 0, err)
        for pattern in ("b", "deep/b", "?", f"{self.store}/deep/b"):
            self.assertEqual(set(self.models("--model", pattern)),
                             {("deep/b", "nf4"), ("deep/b", "int8")}, pattern)
        for pattern in ("deep", "eep/b", "a"):
            self.assertEqual(self.models("--model", pattern), {}, pattern)
        self.run_cache("pin", "b")
        self.assertTrue(all(o["pinned"] for o in self.models().values()))

    def test_limit_is_left_alone(self):
        with self.mount(cache_size="24M") as m:
            self.read(m, "nf4/a")
        for _ in range(2):
            self.assertEqual(self.stat()["limit"], 24 << 20)

    # ---- prune, clear ----

    def test_prune(self):
        want = self.fill("nf4/a", "int8/a", "nf4/deep/b", "int8/deep/b")
        dry = json.loads(self.run_cache("prune", "--view", "int8", "--dry-run", "--json"))
        self.assertTrue(dry["dry_run"])
        self.assertEqual(len(self.models()), 4)
        done = json.loads(self.run_cache("prune", "--view", "int8", "--json"))
        self.assertEqual({**done, "dry_run": True}, dry)
        self.assertGreater(done["bytes"], 0)
        self.assertEqual(set(self.models()), {("a", "nf4"), ("deep/b", "nf4")})
        self.run_cache("prune", "--older-than", "1h")
        self.assertEqual(len(self.models()), 2)
        self.assertIn("removed", self.run_cache("prune", "--model", f"{self.store}/a"))
        self.assertEqual(set(self.models()), {("deep/b", "nf4")})
        shutil.move(f"{self.store}/deep/b", f"{self.store}/deep/c")
        self.assertTrue(self.models()["deep/b", "nf4"]["gone"])
        self.assertIn("(gone)", self.run_cache("stat"))
        self.run_cache("prune", "--gone")
        self.assertEqual(self.models(), {})
        shutil.move(f"{self.store}/deep/c", f"{self.store}/deep/b")
        with self.mount() as m:
            self.assertEqual(self.read(m, *want), want)

    def test_gone_spares_what_may_be_unmounted(self):
        self.fill("nf4/a")
        shutil.move(self.store, self.store + ".away")
        os.mkdir(self.store)
        self.run_cache("prune", "--gone")
        self.assertEqual(len(self.models()), 1)
        os.rmdir(self.store)
        self.run_cache("prune", "--gone")
        self.assertEqual(len(self.models()), 0)

    def test_prune_old(self):
        self.fill("nf4/a")
        time.sleep(3.2)
        self.fill("nf4/deep/b")
        self.run_cache("prune", "--older-than", "2s")
        self.assertNotIn(("a", "nf4"), self.models())

    def test_clear(self):
        want = self.fill("nf4/a", "dq/a")
        self.run_cache("pin", "a")
        self.run_cache("clear", "--dry-run")
        self.assertEqual(len(self.models()), 2)
        self.run_cache("clear")
        stat = self.stat()
        self.assertEqual((stat["values"], stat["files"], stat["models"]), (0, 0, []))
        with self.mount() as m:
            self.assertEqual(self.read(m, *want), want)

    def test_beside_a_daemon(self):
        places = ["nf4/a", "int8/a", "dq/deep/b"]
        with self.mount(memory="32M") as m:
            want = self.read(m, *places)
            self.run_cache("verify")
            self.assertGreater(len(self.models()), 0)
            self.run_cache("pin", "a", "--view", "nf4")
            self.run_cache("prune", "--model", "deep/b")
            self.run_cache("clear")
            self.assertEqual(self.models(), {})
            self.assertEqual(self.read(m, *places), want)
        self.assertEqual(self.fill(*places), want)
        self.assertEqual(set(self.models()), {("a", "nf4"), ("a", "int8"), ("deep/b", "dq")})

    # ---- data.mdb ----

    def test_room_comes_back(self):
        S.write_llama(f"{self.store}/large", hidden=1032, inter=2056, vocab=16)
        self.fill("nf4/large", "int8/large", "nf4/a")
        large = self.stat()["data_bytes"]
        self.assertGreater(large, 12 << 20)
        with self.mount() as m:
            self.assertIn("in use", self.run_cache("compact", code=2))
            got, _, err = qfmount.run("cache", "prune", "--cache", self.cache, "--model",
                                      "large")
            self.assertEqual(got, 0)
            self.assertIn("quantfs cache compact", err)
            self.assertGreaterEqual(self.stat()["data_bytes"], large)
            self.read(m, "nf4/a")
        done = json.loads(self.run_cache("compact", "--json"))
        self.assertGreaterEqual(done["data_bytes_before"], large)
        self.assertEqual(done["data_bytes"], os.path.getsize(f"{self.cache}/data.mdb"))
        self.assertLess(done["data_bytes"], 2 << 20)
        self.assertEqual(set(self.models()), {("a", "nf4")})
        self.assertIn("0 damaged", self.run_cache("verify"))
        self.fill("nf4/large", "int8/large")
        self.run_cache("clear")
        self.assertLess(self.stat()["data_bytes"], 1 << 20)

    # ---- pin ----

    def test_pin(self):
        self.fill("nf4/a", "int8/a", "nf4/deep/b")
        self.assertIn("pinned", self.run_cache("pin", f"{self.store}/a"))
        self.assertEqual({k for k, o in self.models().items() if o["pinned"]},
                         {("a", "nf4"), ("a", "int8")})
        self.assertIn("(pinned)", self.run_cache("stat"))
        done = json.loads(self.run_cache("prune", "--model", "*", "--json"))
        self.assertEqual(done["pinned_spared"], 2)
        self.assertEqual(set(self.models()), {("a", "nf4"), ("a", "int8")})
        self.run_cache("unpin", "a", "--view", "nf4")
        self.run_cache("prune", "--model", "*")
        self.assertEqual(set(self.models()), {("a", "int8")})
        self.assertIn("nothing of no such", self.run_cache("pin", "no such", code=2))

    # ---- verify ----

    def flip(self):
        """Changes a byte in the data of every value."""
        path = f"{self.cache}/data.mdb"
        with open(path, "rb") as f:
            data = f.read()
        places = [i for i in range(16, len(data), 4096) if data[i:i + 8] == b"qfrecord"]
        with open(path, "r+b") as f:
            for i in places:
                f.seek(i + 64)
                f.write(bytes([data[i + 64] ^ 1]))
        return len(places)

    def test_verify(self):
        want = self.fill("nf4/a", "int8/deep/b")
        good = json.loads(self.run_cache("verify", "--json"))
        count = sum(o["values"] for o in self.models().values())
        self.assertEqual((good["values"], good["damaged_values"]), (count, 0))
        self.assertEqual(self.flip(), count)
        bad = json.loads(self.run_cache("verify", "--json", code=2))
        self.assertEqual(bad["damaged_values"], count)
        self.assertEqual(len(bad["damaged"]), count)
        self.assertEqual({(d["view"], d["model"]) for d in bad["damaged"]},
                         {("nf4", f"{self.store}/a"), ("int8", f"{self.store}/deep/b")})
        self.assertIn("0 values", self.run_cache("verify"))
        self.assertEqual(self.fill(*want), want)
        self.flip()
        text = self.run_cache("verify", code=2)
        self.assertEqual(text.count("damaged: value"), count)
        self.assertIn(f"nf4 {self.store}/a", text)

    def test_deep_good(self):
        self.fill("nf4/a", "int8/a", "dq/a", "fp4/deep/b")
        shutil.move(f"{self.store}/deep/b", f"{self.store}/deep/c")
        said = json.loads(self.run_cache("verify", "--deep", "--json"))["deep"]
        self.assertGreater(said["samples"], 10)
        self.assertEqual((said["different"], said["models_skipped"]), (0, 1))

    def test_deep_bad(self):
        """A blob of a hub cache is believed to be what its name says."""
        hub = f"{self.store}/models--x"
        plain = S.read_file(f"{self.store}/a/model.safetensors")
        blob = f"{hub}/blobs/{hashlib.sha256(plain).hexdigest()}"
        S.write(blob, plain)
        snapshot = f"{hub}/snapshots/r"
        S.write(f"{snapshot}/config.json", S.read_file(f"{self.store}/a/config.json"))
        os.symlink(f"../../blobs/{os.path.basename(blob)}",
                   f"{snapshot}/model.safetensors")
        place = "nf4/models--x/snapshots/r"
        before = self.fill(place, "nf4/a")
        self.assertIn("0 different", self.run_cache("verify", "--deep"))
        header = 8 + int.from_bytes(plain[:8], "little")
        S.write(blob, plain[:header] + plain[header:][::-1])
        self.assertEqual(self.run_cache("verify").count("damaged:"), 0)
        text = self.run_cache("verify", "--deep", code=2)
        self.assertIn(f"different: nf4 {snapshot}", text)
        self.assertEqual(set(self.models()), {("a", "nf4")})
        self.assertNotEqual(self.fill(place)[place], before[place])
        self.assertIn("0 different", self.run_cache("verify", "--deep"))

    # ---- what cannot be done ----

    def test_no_cache(self):
        os.mkdir(self.cache)
        for name in ("stat", "list", "verify", "clear"):
            self.assertIn("no cache in this directory", self.run_cache(name, code=2))
        self.assertEqual(os.listdir(self.cache), [])
        os.rmdir(self.cache)
        self.assertIn("No such file", self.run_cache("stat", code=2))
        self.assertFalse(os.path.exists(self.cache))

    def test_other_version(self):
        self.fill("nf4/a")
        path = f"{self.cache}/data.mdb"
        data = S.read_file(path)
        at = data.index(b"quantfs cache 1\0") + 16
        S.write(path, data[:at] + bytes([data[at] + 1]) + data[at + 1:])
        self.assertRegex(self.run_cache("stat", code=2),
                         r"cache format version \d+; this program knows version \d+")
        S.write(path, b"\0" * 8192)
        self.assertIn("data.mdb", self.run_cache("verify", code=2))
        S.write(path, data)
        self.assertEqual(len(self.models()), 1)

    def test_usage(self):
        for args in ([], ["nothing"], ["stat", "extra"], ["stat", "--deep"], ["pin"],
                     ["prune"], ["prune", "--older-than", "1y"], ["prune", "--older-than"],
                     ["prune", "--older-than", "-3d"], ["verify", "--dry-run"]):
            got, out, err = qfmount.run("cache", *args)
            self.assertEqual((got, out), (1, ""), args)
            self.assertIn("--help", err)
        for args in (["--help"], ["prune", "--help"]):
            got, out, _ = qfmount.run("cache", *args)
            self.assertEqual(got, 0)
            self.assertIn("--older-than", out)


if __name__ == "__main__":
    qfmount.main()
