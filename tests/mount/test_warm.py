#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs warm: what it has read is in the cache, through a mount and without one; what
cannot be read is named, and the rest is done."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import qfmount
import qfstore as S

SHARD = "model.safetensors"


class Warm(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir, "cache")
        # Larger than a chunk in one tensor, smaller in the others.
        S.write_llama(f"{self.store}/a", hidden=128, inter=12288, vocab=64)
        S.write_llama(f"{self.store}/group/b", hidden=64, layers=2, shards=2)

    def warm(self, *args, code=0, env=None):
        rc, out, err = qfmount.run("warm", "-o", f"cache={self.cache}", *args, env=env)
        self.assertEqual(rc, code, err)
        return out, err

    def warm_json(self, *args, code=0):
        out, _ = self.warm("--json", "-q", *args, code=code)
        return json.loads(out)

    def expect_warm(self, m, *views):
        """Everything in these views is served without one encoding."""
        before = m.status()
        for view in views:
            for path in S.files_below(m.path(view)):
                S.read_file(m.path(view, path))
        after = m.status()
        self.assertEqual(after["chunks_encoded"], before["chunks_encoded"])
        self.assertGreater(after["cache_hits"], before["cache_hits"])

    def test_store(self):
        first = self.warm_json("--view", "nf4:int8", self.store)
        self.assertEqual([(m["path"], m["view"], m["shards"]) for m in first["models"]],
                         [(f"{self.store}/a", "nf4", 1), (f"{self.store}/group/b", "nf4", 2),
                          (f"{self.store}/a", "int8", 1),
                          (f"{self.store}/group/b", "int8", 2)])
        self.assertEqual((first["errors"], first["interrupted"]), ([], False))
        for key in ("bytes", "chunks_encoded", "cache_hits", "shards"):
            self.assertEqual(first[key], sum(m[key] for m in first["models"]), key)
        self.assertTrue(all(m["chunks_encoded"] > 0 for m in first["models"]))
        again = self.warm_json("--view", "nf4:int8", self.store)
        self.assertEqual(again["chunks_encoded"], 0)
        self.assertGreater(again["cache_hits"], 0)
        self.assertEqual(again["bytes"], first["bytes"])
        with qfmount.Mount(self.store, cache=self.cache, views="nf4:int8") as m:
            sizes = sum(os.path.getsize(m.path(view, path)) for view in ("nf4", "int8")
                        for path in S.files_below(m.path(view)) if path.endswith("tensors"))
            self.assertEqual(first["bytes"], sizes)
            self.expect_warm(m, "nf4", "int8")
            self.assertEqual(m.status()["chunks_encoded"], 0)

    def test_model_and_file(self):
        got = self.warm_json("--view", "dq", f"{self.store}/a",
                             f"{self.store}/group/b/model-00002-of-00002.safetensors")
        self.assertEqual([(m["path"], m["shards"]) for m in got["models"]],
                         [(f"{self.store}/a", 1), (f"{self.store}/group/b", 1)])
        with qfmount.Mount(self.store, cache=self.cache, views="dq") as m:
            S.read_file(m.path("dq/a", SHARD))
            S.read_file(m.path("dq/group/b/model-00002-of-00002.safetensors"))
            self.assertEqual(m.status()["chunks_encoded"], 0)
            S.read_file(m.path("dq/group/b/model-00001-of-00002.safetensors"))
            self.assertGreater(m.status()["chunks_encoded"], 0)

    def test_hub_snapshot(self):
        """Links to blobs, by the directory and by the link of a shard."""
        repo = f"{self.store}/models--x"
        blob = "0123456789abcdef" * 4
        os.makedirs(f"{repo}/blobs")
        os.rename(f"{self.store}/a/{SHARD}", f"{repo}/blobs/{blob}")
        shutil.move(f"{self.store}/a", f"{repo}/snapshots/1")
        os.symlink(f"../../blobs/{blob}", f"{repo}/snapshots/1/{SHARD}")
        got = self.warm_json("--view", "nf4", f"{repo}/snapshots/1/{SHARD}")
        self.assertGreater(got["chunks_encoded"], 0)
        self.assertEqual(self.warm_json("--view", "nf4", repo)["chunks_encoded"], 0)

    def test_while_mounted(self):
        """Without the mount's help, into the cache that its daemon uses."""
        with qfmount.Mount(self.store, cache=self.cache, views="nf4") as m:
            got = self.warm_json("--view", "nf4", self.store)
            self.assertGreater(got["chunks_encoded"], 0)
            self.expect_warm(m, "nf4")
            self.assertEqual(m.status()["chunks_encoded"], 0)

    def test_through_mount(self):
        with qfmount.Mount(self.store, views="nf4:int8") as m:
            one = self.warm_json(m.path("nf4/a"))
            self.assertEqual([(x["path"], x["view"]) for x in one["models"]],
                             [(m.path("nf4/a"), "nf4")])
            self.assertEqual(one["chunks_encoded"], m.status()["chunks_encoded"])
            self.assertGreater(one["chunks_encoded"], 0)
            whole = self.warm_json("--view", "nf4", m.mnt)
            self.assertEqual({x["view"] for x in whole["models"]}, {"nf4"})
            self.warm_json(m.path("int8", "a", SHARD))
            before = m.status()
            self.assertEqual(self.warm_json(m.path("nf4"))["chunks_encoded"], 0)
            self.assertEqual(m.status()["chunks_encoded"], before["chunks_encoded"])
            self.assertFalse(os.path.exists(self.cache))
            # stored, not only encoded
            status = m.status()
            self.assertEqual(status["storing_bytes"], 0)
            self.assertEqual(status["chunks_encoding"], 0)
            self.assertGreater(status["cache_entries"] + status["shards_sealed"], 0)

    def test_mounted_paths_refused(self):
        with qfmount.Mount(self.store, views="nf4") as m:
            got = self.warm_json("--view", "dq", m.path("nf4"), code=2)
            self.assertEqual([e["file"] for e in got["errors"]], [m.path("nf4")])
            self.assertEqual(got["models"], [])
            self.warm(m.path(".quantfs"), code=2)

    def test_output(self):
        out, err = self.warm(f"{self.store}/a")
        self.assertIn("4 shards, ", out)
        self.assertIn("warming: 100 %", err)
        self.assertNotIn("\r", err + out)
        self.assertNotIn("\033", err + out)
        self.assertEqual(self.warm("-q", f"{self.store}/a"), ("", ""))
        out, err = self.warm("--json", f"{self.store}/a")
        json.loads(out)
        self.assertIn("warming: 100 %", err)

    def test_terminal(self):
        """On a terminal: one line, rewritten."""
        master, slave = os.openpty()
        done = subprocess.run([qfmount.binary(), "warm", "-o", f"cache={self.cache}",
                               self.store], stdin=subprocess.DEVNULL, stderr=slave,
                              stdout=subprocess.DEVNULL, timeout=60)
        os.close(slave)
        text = os.read(master, 65536)
        os.close(master)
        self.assertEqual(done.returncode, 0)
        self.assertTrue(text.startswith(b"\r\033[Kwarming: "), text)
        self.assertEqual(text.count(b"\n"), 1)

    def test_bad_arguments(self):
        for args in ((), ("--jobs", "0", self.store), ("--jobs", "257", self.store),
                     ("--jobs", "-1", self.store), ("--view", "nf5", self.store),
                     ("-o", "nonsense", self.store), ("--nonsense", self.store)):
            rc, out, err = qfmount.run("warm", *args)
            self.assertEqual((rc, out), (1, ""), args)
            self.assertIn("quantfs warm", err)
        self.assertFalse(os.path.exists(self.cache))

    def test_no_cache(self):
        rc, _, err = qfmount.run("warm", "-o", "cache=none", self.store)
        self.assertEqual(rc, 2)
        self.assertIn("cache=none", err)
        S.write(f"{self.dir}/file", "x")
        rc, _, err = qfmount.run("warm", "-o", f"cache={self.dir}/file", self.store)
        self.assertEqual(rc, 2)
        self.assertIn(f"{self.dir}/file", err)

    def test_nothing_there(self):
        os.mkdir(f"{self.store}/empty")
        _, err = self.warm(f"{self.store}/empty")
        self.assertIn("no shard", err)

    def test_trouble(self):
        """A path that is not there, and a model that passes through: the rest is done."""
        S.write(f"{self.store}/bad/{SHARD}", b"\xff" * 64)
        S.write_json(f"{self.store}/bad/config.json", {"architectures": ["LlamaForCausalLM"]})
        gone = f"{self.store}/gone"
        got = self.warm_json("--view", "nf4", gone, self.store, code=2)
        self.assertEqual([e["file"] for e in got["errors"]], [gone])
        self.assertEqual({m["path"] for m in got["models"]},
                         {f"{self.store}/a", f"{self.store}/group/b"})
        self.assertGreater(got["chunks_encoded"], 0)
        _, err = self.warm("-q", gone, f"{self.store}/a", code=2)
        self.assertIn(f"{gone}: No such file", err)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to become another user")
    def test_unreadable(self):
        """As a user who may read all but one model."""
        home = tempfile.mkdtemp(prefix="quantfs-warm-")
        self.addCleanup(shutil.rmtree, home, ignore_errors=True)
        os.chmod(home, 0o755)
        store, cache = f"{home}/store", f"{home}/cache"
        shutil.copytree(self.store, store)
        os.mkdir(cache)
        os.chown(cache, 65534, 65534)
        os.chmod(f"{store}/a/{SHARD}", 0)
        os.chmod(f"{store}/group", 0)
        fd = os.open(qfmount.binary(), os.O_RDONLY)
        self.addCleanup(os.close, fd)
        S.write_llama(f"{store}/c")
        done = subprocess.run([f"/proc/self/fd/{fd}", "warm", "--json", "-q", "--view",
                               "nf4", "-o", f"cache={cache}", store], capture_output=True,
                              pass_fds=[fd], user=65534, group=65534, extra_groups=[],
                              timeout=60)
        got = json.loads(done.stdout)
        self.assertEqual(done.returncode, 2, done.stderr)
        files = [e["file"] for e in got["errors"]]
        self.assertIn(f"{store}/group", files)
        self.assertEqual([m["path"] for m in got["models"]], [f"{store}/c"])
        for file in files:
            self.assertIn(f"quantfs warm: {file}: Permission denied",
                          done.stderr.decode())

    def test_interrupt(self):
        """Ctrl-C: it ends soon and says so; what was encoded stays."""
        S.write_llama(f"{self.store}/big", hidden=512, layers=24, inter=2048, vocab=256)
        args = [qfmount.binary(), "warm", "--json", "--view", "nf4", "-o",
                f"cache={self.cache},isa=scalar,threads=1", "--jobs", "1", f"{self.store}/big"]
        with subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE) as process:
            data = os.path.join(self.cache, "data.mdb")
            while process.poll() is None and not (
                    os.path.exists(data) and os.stat(data).st_blocks > 4096):
                time.sleep(0.005)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        self.assertEqual(process.returncode, 128 + signal.SIGINT, err)
        got = json.loads(out)
        self.assertTrue(got["interrupted"])
        self.assertIn(b"stays in the cache", err)
        rest = self.warm_json("--view", "nf4", f"{self.store}/big")
        whole = got["chunks_encoded"] + rest["chunks_encoded"]
        shutil.rmtree(self.cache)
        self.assertEqual(self.warm_json("--view", "nf4", f"{self.store}/big")
                         ["chunks_encoded"], whole)


if __name__ == "__main__":
    qfmount.main()
