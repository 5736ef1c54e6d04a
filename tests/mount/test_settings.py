#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Settings in the path: MNT/nf4+blocksize=128/… is what a quantfs.json would make, under
one name however it is spelled; what cannot be is not there."""
import errno
import json
import os
import threading
import time

import qfmount
import qfstore as S

CASES = {  # view with settings: the same as quantfs.json
    "nf4+dtype=float16": {"dtype": "float16"},
    "fp4+dtype=float32+compute=bfloat16": {"dtype": "float32",
                                          "compute_dtype": "bfloat16"},
    "nf4+storage=bfloat16": {"quant_storage": "bfloat16"},
    "nf4+blocksize=128": {"blocksize": 128},
    "dq+blocksize=4096": {"blocksize": 4096},
    "int8+threshold=5.5": {"int8_threshold": 5.5},
    "nf4+skip=layers.0:q_proj": {"skip": ["layers.0", "q_proj"]},
    "dq+only=mlp": {"only": ["mlp"]},
    "int8+only=layers.1+skip=up_proj": {"only": ["layers.1"], "skip": ["up_proj"]},
    "nf4+force=lm_head": {"force": ["lm_head"]},
}

IMPOSSIBLE = ("nf4+", "nf4+blocksize", "nf4+blocksize=100", "nf4+blocksize=32",
              "nf4+blocksize=8192", "int8+blocksize=64", "nf4+threshold=6.0",
              "nf4+colour=red", "nf4+skip=", "nf4+skip=a::b", "nf4+skip=a,b",
              "nf4+blocksize=64+blocksize=64", "nf4+dtype=float64", "q4+blocksize=64",
              "NF4+blocksize=64", "nf4 +blocksize=64")


def digests(path):
    return {k: v for k, v in S.digest_tree(path).items() if k != "quantfs.json"}


def view_of(path):
    return os.getxattr(path, "user.quantfs.view").decode()


class Settings(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.model = f"{self.store}/org/model"
        S.write_llama(self.model, hidden=192, inter=256, layers=2, shards=2,
                      config={"tie_word_embeddings": False})

    def test_as_quantfs_json(self):
        other = os.path.join(self.dir, "other")
        for i, override in enumerate(CASES.values()):
            S.write_llama(f"{other}/{i}", hidden=192, inter=256, layers=2, shards=2,
                          config={"tie_word_embeddings": False})
            S.write_json(f"{other}/{i}/quantfs.json", override)
        with qfmount.Mount(self.store) as m, qfmount.Mount(other) as n:
            plain = {c: digests(m.path(c, "org/model")) for c in ("nf4", "dq", "int8")}
            for i, view in enumerate(CASES):
                with self.subTest(view):
                    codec = view.split("+")[0]
                    got = digests(m.path(view, "org/model"))
                    self.assertEqual(got, digests(n.path(codec, str(i))))
                    self.assertNotEqual(got, plain.get(codec))

    def test_the_path_wins(self):
        """… over quantfs.json, which wins over the policy file; patterns add up."""
        S.write_json(f"{self.model}/quantfs.json",
                     {"blocksize": 128, "skip": ["q_proj"], "only": ["self_attn"]})
        policy = os.path.join(self.dir, "policy.json")
        S.write_json(policy, {"blocksize": 256, "dtype": "float16"})
        with qfmount.Mount(self.store, policy=policy) as m:
            said = os.getxattr(m.path("nf4/org/model"), "user.quantfs.settings").decode()
            self.assertEqual(said, "dtype=float16,compute_dtype=float16,blocksize=128,"
                             "quant_storage=uint8,only=self_attn,skip=q_proj")
            said = os.getxattr(m.path("nf4+blocksize=64+dtype=bfloat16+skip=k_proj+"
                                      "only=self_attn:mlp/org/model"),
                               "user.quantfs.settings").decode()
            self.assertEqual(said, "dtype=bfloat16,compute_dtype=bfloat16,blocksize=64,"
                             "quant_storage=uint8,only=mlp:self_attn,skip=k_proj:q_proj")

    def test_impossible(self):
        with qfmount.Mount(self.store) as m:
            for name in IMPOSSIBLE:
                with self.subTest(name):
                    self.assertErrno([errno.ENOENT], os.stat, m.path(name))
            self.assertErrno([errno.ENOENT], os.stat, m.path("nf4/nf4+blocksize=128"))
            self.assertErrno([errno.EROFS, errno.EPERM, errno.ENOENT], os.mkdir,
                             m.path("nf4+blocksize=256x"))
            self.assertEqual(sorted(os.listdir(m.mnt)), ["dq", "fp4", "int8", "nf4"])

    def test_lengths(self):
        """A component of a path is at most 255 bytes long."""
        name = "nf4+skip=" + "x" * 246
        with qfmount.Mount(self.store) as m:
            self.assertEqual(view_of(m.path(name)), name)
            self.assertErrno([errno.ENAMETOOLONG, errno.ENOENT], os.stat, m.path(name + "x"))
            # Fits as it is, but not as it would have to be called: 6 is 6.0.
            self.assertErrno([errno.ENOENT], os.stat,
                             m.path("int8+threshold=6+skip=" + "x" * 233))

    def test_views_of_the_mount(self):
        views = "nf4:dq+skip=q_proj+skip=a.b+blocksize=128"
        with qfmount.Mount(self.store, views=views) as m:
            self.assertEqual(sorted(os.listdir(m.mnt)),
                             ["dq+blocksize=128+skip=a.b:q_proj", "nf4"])
            self.assertEqual(m.status()["views"],
                             "nf4:dq+blocksize=128+skip=a.b+skip=q_proj")
            # Only codecs that the mount shows, but any settings of those.
            for name in ("int8", "int8+threshold=6.0", "fp4+blocksize=128"):
                self.assertErrno([errno.ENOENT], os.stat, m.path(name))
            self.assertTrue(os.path.isdir(m.path("dq+blocksize=256")))
        for views, says in (("nf4+blocksize=1", "'blocksize' must be"),
                            ("nf4+skip=a:b", "skip=A+skip=B")):
            with self.assertRaises(qfmount.MountError) as caught:
                qfmount.Mount(self.store, views=views).__enter__()
            self.assertIn(says, str(caught.exception))

    def test_one_directory(self):
        spellings = ("nf4+compute=float16+blocksize=128+skip=a:b",
                     "nf4+skip=b:a:b+blocksize=128+compute=float16",
                     "nf4+skip=b+compute=torch.float16+skip=a+blocksize=128")
        with qfmount.Mount(self.store) as m:
            for rest in ("", "org/model", "org/model/config.json"):
                inodes = {os.stat(m.path(s, rest)).st_ino for s in spellings}
                self.assertEqual(len(inodes), 1)
            self.assertEqual({view_of(m.path(s, "org")) for s in spellings},
                             {spellings[0]})
            self.assertEqual(os.stat(m.path("nf4")).st_ino, os.stat(
                m.path("nf4/org/../..", "nf4")).st_ino)

    def test_two_spellings_at_once(self):
        """The kernel knows a directory by one name at a time; nobody may notice."""
        names = ("nf4+blocksize=128+skip=a:b", "nf4+skip=b:a+blocksize=128")
        wrong = []
        with qfmount.Mount(self.store) as m:
            want = digests(m.path(names[0], "org/model"))
            self.addCleanup(os.chdir, os.getcwd())
            os.chdir(m.path(names[0], "org/model"))
            open_file = open("config.json", "rb")

            def look(name):
                try:
                    for _ in range(60):
                        os.stat(m.path(name))
                        if digests(m.path(name, "org/model")) != want:
                            wrong.append(f"{name}: other bytes")
                except OSError as e:
                    wrong.append(f"{name}: {e}")

            threads = [threading.Thread(target=look, args=(n, )) for n in names * 2]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(wrong, [])
            self.assertEqual(digests("."), want)  # where we still are
            with open_file:
                self.assertIn(b"bitsandbytes", open_file.read())
            os.chdir(self.dir)

    def test_cache_is_shared(self):
        """Records are named by what they hold: no view encodes what another one has."""
        cache = os.path.join(self.dir, "cache")
        with qfmount.Mount(self.store, cache=cache, passthrough="off") as m:
            plain = digests(m.path("nf4/org/model"))
            encoded = m.status()["chunks_encoded"]
            self.assertGreater(encoded, 0)
            for name in ("nf4+blocksize=64", "nf4+dtype=bfloat16+compute=bfloat16"):
                self.assertEqual(digests(m.path(name, "org/model")), plain)
            skipping = digests(m.path("nf4+skip=q_proj/org/model"))
            self.assertNotEqual(skipping, plain)
            digests(m.path("nf4+storage=bfloat16/org/model"))
            self.assertEqual(m.status()["chunks_encoded"], encoded)
            other = digests(m.path("nf4+blocksize=128/org/model"))
            self.assertGreater(m.status()["chunks_encoded"], encoded)
        with qfmount.Mount(self.store, cache=cache) as m:
            self.assertEqual(digests(m.path("nf4+blocksize=128/org/model")), other)
            self.assertEqual(digests(m.path("nf4+skip=q_proj/org/model")), skipping)
            self.assertEqual(m.status()["chunks_encoded"], 0)

    def test_sealed(self):
        """Shards of views with settings are sealed, too; the same bytes share a file."""
        big = f"{self.store}/big"
        S.write_llama(big, hidden=1024, inter=2048, vocab=256)
        with qfmount.Mount(self.store) as m:
            if m.status()["passthrough"] != "on":
                self.skipTest(f"no passthrough: {m.status()['passthrough']}")
            names = ("nf4+blocksize=128+skip=q_proj", "nf4+skip=q_proj+blocksize=128",
                     "nf4+blocksize=128+skip=nothing:q_proj")
            want = S.sha256(m.path(names[0], "big/model.safetensors"))
            end = time.monotonic() + 60
            while m.status()["shards_sealed"] == 0 and time.monotonic() < end:
                time.sleep(0.02)
            encoded = m.status()["chunks_encoded"]
            for name in names:
                self.assertEqual(S.sha256(m.path(name, "big/model.safetensors")), want)
            status = m.status()
            self.assertEqual((status["shards_sealed"], status["chunks_encoded"]),
                             (1, encoded))
            self.assertGreaterEqual(status["opens_passthrough"], 2)

    def test_many_names(self):
        """Somebody who tries ever new names costs no memory that stays."""
        def resident_kb(m):
            with open(f"/proc/{m.status()['pid']}/status", encoding="utf-8") as f:
                return int(next(x for x in f if x.startswith("VmRSS")).split()[1])

        def visit(m, numbers):
            for i in numbers:
                with open(m.path(f"int8+threshold={i}.5/org/model/config.json"),
                          encoding="utf-8") as f:
                    config = json.load(f)
                self.assertEqual(config["quantization_config"]["llm_int8_threshold"],
                                 i + 0.5)

        with qfmount.Mount(self.store) as m:
            visit(m, range(100))
            before = resident_kb(m)
            visit(m, range(100, 900))
            self.assertEqual(m.status()["models_loaded"], 1)
            if not qfmount.SLOW:  # a sanitizer keeps what is freed
                self.assertLess(resident_kb(m), before + 16384)

    def test_commands(self):
        cache = os.path.join(self.dir, "cache")
        view, spelled = "nf4+blocksize=128+skip=a:b", "nf4+skip=b+blocksize=128+skip=a"
        with qfmount.Mount(self.store, cache=cache) as m:
            # Not listed, but wanted; and a path in another spelling.
            for args in (("--view", spelled, m.mnt),
                         (m.path("nf4+skip=b:a+blocksize=128"), )):
                rc, out, err = qfmount.run("warm", "--json", "-q", *args)
                self.assertEqual((rc, err), (0, ""))
                self.assertEqual([x["view"] for x in json.loads(out)["models"]], [view])
            encoded = m.status()["chunks_encoded"]
        rc, out, err = qfmount.run("warm", "--json", "-q", "-o", f"cache={cache}",
                                   "--view", spelled, self.model)
        self.assertEqual((rc, err), (0, ""))
        (done, ) = json.loads(out)["models"]
        self.assertEqual((done["view"], done["chunks_encoded"]), (view, 0))
        self.assertGreater(encoded, 0)
        rc, out, _ = qfmount.run("info", "--json", "--views", spelled, self.model)
        self.assertEqual((rc, json.loads(out)[0]["views"][0]["view"]), (0, view))
        rc, out, err = qfmount.run("cache", "prune", "--cache", cache, "--dry-run",
                                   "--view", "nf4+skip=b:a+blocksize=128")
        self.assertEqual((rc, err), (0, ""))
        self.assertIn("would remove", out)
        self.assertNotIn(" 0 values", out)


class Alias(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/unsloth/llama")
        S.write_llama(f"{self.store}/unsloth/own")
        S.write_llama(f"{self.store}/unsloth/own-bnb-4bit", hidden=128)
        hub = f"{self.store}/hub/models--unsloth--tiny"
        S.write_llama(f"{self.dir}/tiny")
        for name in os.listdir(f"{self.dir}/tiny"):
            data = S.read_file(f"{self.dir}/tiny/{name}")
            blob = S.hashlib.sha256(data).hexdigest()
            S.write(f"{hub}/blobs/{blob}", data)
            os.makedirs(f"{hub}/snapshots/abc", exist_ok=True)
            os.symlink(f"../../blobs/{blob}", f"{hub}/snapshots/abc/{name}")
        S.write(f"{hub}/refs/main", "abc")

    def test_bnb(self):
        with qfmount.Mount(self.store, alias="bnb") as m:
            for view in ("nf4", "dq+blocksize=128"):
                for name, rest in (("unsloth/llama", "model.safetensors"),
                                   ("hub/models--unsloth--tiny",
                                    "snapshots/abc/model.safetensors")):
                    plain = m.path(view, name)
                    alias = plain + "-bnb-4bit"
                    self.assertEqual(os.stat(alias).st_ino, os.stat(plain).st_ino)
                    self.assertEqual(S.sha256(f"{alias}/{rest}"),
                                     S.sha256(f"{plain}/{rest}"))
                    self.assertIn("quantization_config", json.loads(S.read_file(
                        os.path.dirname(f"{alias}/{rest}") + "/config.json")))
            self.assertEqual(S.read_file(m.path(
                "nf4/hub/models--unsloth--tiny-bnb-4bit/refs/main")), b"abc")
            # A real directory of this name is itself, and nothing is listed twice.
            self.assertNotEqual(os.stat(m.path("nf4/unsloth/own-bnb-4bit")).st_ino,
                                os.stat(m.path("nf4/unsloth/own")).st_ino)
            self.assertEqual(sorted(os.listdir(m.path("nf4/unsloth"))),
                             ["llama", "own", "own-bnb-4bit"])
            for path in ("int8/unsloth/llama-bnb-4bit", "nf4/unsloth/none-bnb-4bit",
                         "nf4/unsloth/llama/config.json-bnb-4bit",
                         "nf4/unsloth/llama-unsloth-bnb-4bit"):
                self.assertErrno([errno.ENOENT], os.stat, m.path(path))

    def test_a_real_one_comes(self):
        with qfmount.Mount(self.store, alias="bnb", attr_ttl=0) as m:
            path = m.path("nf4/unsloth/llama-bnb-4bit")
            self.assertEqual(os.stat(path).st_ino,
                             os.stat(m.path("nf4/unsloth/llama")).st_ino)
            S.write(f"{self.store}/unsloth/llama-bnb-4bit/note", "real")
            self.assertEqual(os.listdir(path), ["note"])

    def test_only_on_request(self):
        with qfmount.Mount(self.store) as m:
            self.assertErrno([errno.ENOENT], os.stat, m.path("nf4/unsloth/llama-bnb-4bit"))


if __name__ == "__main__":
    qfmount.main()
