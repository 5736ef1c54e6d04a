#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs export: the same files as a copy of the mount; what was interrupted goes on and
never shows a wrong file under its name; new shards hold the same tensors."""
import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import time
import unittest

import qfmount
import qfstore as S

JOURNAL = ".quantfs-export"
COMPANIONS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map",
              ".quant_state.bitsandbytes__nf4", ".quant_state.bitsandbytes__fp4")


def unit_of(name):
    """The weight to which a tensor belongs."""
    for end in COMPANIONS:
        if name.endswith(end):
            return name[:-len(end)]
    if name.endswith(".SCB"):
        return name[:-3] + "weight"
    return name[:-7] if name.endswith("_format") else name


def tensors_of(path):
    """{name: (dtype, shape, bytes)} of all shards of a directory."""
    out = {}
    for file in sorted(os.listdir(path)):
        if file.endswith(".safetensors"):
            data = S.read_file(f"{path}/{file}")
            header, metadata, end = S.read_header(data)
            assert end == len(data) and metadata == {"format": "pt"}, file
            for name, (dtype, shape, begin, stop) in header.items():
                assert name not in out, name
                out[name] = (dtype, shape, data[begin:stop])
    return out


class Case(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir, "cache")
        self.out = os.path.join(self.dir, "out")

    def export(self, *args, code=0, view="nf4", path=None, out=None):
        """From the store, without a mount."""
        rc, text, err = qfmount.run("export", "-o", f"cache={self.cache}", "--view", view,
                                    *args, path or self.store, out or self.out)
        self.assertEqual(rc, code, err)
        return text, err

    def export_json(self, *args, **kwargs):
        return json.loads(self.export("--json", "-q", *args, **kwargs)[0])

    def expect_tree(self, want, got):
        """The same names, bytes and directories, and nothing else."""
        self.assertEqual(S.digest_tree(got), S.digest_tree(want))
        self.assertEqual(self.dirs(got), self.dirs(want))

    @staticmethod
    def dirs(path):
        return sorted(os.path.relpath(d, path) for d, _, _ in os.walk(path))


class Copy(Case):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/a", hidden=128, inter=256, vocab=64)
        S.write_llama(f"{self.store}/group/b", hidden=64, layers=2, shards=3)
        S.write_gpt2(f"{self.store}/group/deep/gpt2")
        S.write(f"{self.store}/a/tokenizer.json", "{}")
        S.write(f"{self.store}/a/pytorch_model.bin", os.urandom(3000))
        S.write(f"{self.store}/a/empty.txt", "")
        S.write(f"{self.store}/a/run.sh", "#!/bin/sh\n")
        os.chmod(f"{self.store}/a/run.sh", 0o755)
        os.utime(f"{self.store}/a/tokenizer.json", ns=(10**18, 10**18 + 7))
        os.mkdir(f"{self.store}/a/nothing in it")
        S.write(f"{self.store}/bad/model.safetensors", b"\xff" * 64)
        S.write_json(f"{self.store}/bad/config.json",
                     {"architectures": ["LlamaForCausalLM"]})
        repo, blob = f"{self.store}/models--x", "0123456789abcdef" * 4
        S.write_llama(f"{repo}/snapshots/1", seed="hub")
        os.makedirs(f"{repo}/blobs")
        os.rename(f"{repo}/snapshots/1/model.safetensors", f"{repo}/blobs/{blob}")
        os.symlink(f"../../blobs/{blob}", f"{repo}/snapshots/1/model.safetensors")
        os.symlink("1", f"{repo}/snapshots/main")

    def test_equals_copy(self):
        """cp -r of every view, and of a model, a snapshot through a link and a group."""
        with qfmount.Mount(self.store, cache=self.cache) as m:
            for view in ("nf4", "fp4", "dq", "int8"):
                copy, out = f"{self.dir}/copy-{view}", f"{self.dir}/out-{view}"
                subprocess.run(["cp", "-r", m.path(view), copy], check=True)
                got = self.export_json(view=view, out=out)
                self.assertEqual(got["files"], len(S.files_below(copy)))
                self.assertEqual(got["bytes_written"], sum(
                    os.path.getsize(f"{copy}/{f}") for f in S.files_below(copy)))
                self.assertEqual((got["view"], got["source"], got["error"]),
                                 (view, self.store, None))
                self.expect_tree(copy, out)
            for path in ("a", "group", "models--x/snapshots/1", "models--x/snapshots/main"):
                out = f"{self.dir}/out-{path.replace('/', '_')}"
                rc, text, err = qfmount.run("export", m.path("nf4", path), out)
                self.assertEqual(rc, 0, err)
                self.assertIn("files, ", text)
                self.expect_tree(f"{self.dir}/copy-nf4/{path}", out)
                shutil.rmtree(out)
                self.export(path=f"{self.store}/{path}", out=out)
                self.expect_tree(f"{self.dir}/copy-nf4/{path}", out)

    def test_attributes(self):
        self.export(path=f"{self.store}/a")
        mode = {f: os.stat(f"{self.out}/{f}").st_mode & 0o777 for f in os.listdir(self.out)}
        self.assertEqual(mode["run.sh"], 0o755)
        self.assertEqual(mode["model.safetensors"], 0o644)
        self.assertEqual(os.stat(f"{self.out}/tokenizer.json").st_mtime_ns, 10**18 + 7)
        for name in ("model.safetensors", "config.json"):
            self.assertEqual(os.stat(f"{self.out}/{name}").st_mtime_ns,
                             os.stat(f"{self.store}/a/{name}").st_mtime_ns)

    def test_output(self):
        text, err = self.export(path=f"{self.store}/a")
        self.assertIn("6 files, ", text)
        self.assertIn("exporting: 100 %", err)
        shutil.rmtree(self.out)
        self.assertEqual(self.export("-q", path=f"{self.store}/a"), ("", ""))
        shutil.rmtree(self.out)
        self.export("--jobs", "1", "-o", "cache=none", path=f"{self.store}/a")

    def test_refused(self):
        """A target that is not ours, a source that is none; nothing is touched."""
        S.write(f"{self.out}/mine", "x")
        _, err = self.export(code=2)
        self.assertIn("not empty, and no interrupted export", err)
        self.assertEqual(S.digest_tree(self.out).keys(), {"mine"})
        self.assertIn("lies in what is exported",
                      self.export(out=f"{self.store}/a/new", code=2)[1])
        self.assertFalse(os.path.exists(f"{self.store}/a/new"))
        self.assertIn("No such file", self.export(path=f"{self.store}/gone", code=2)[1])
        self.assertIn("not a directory",
                      self.export(path=f"{self.store}/a/config.json", code=2)[1])
        self.assertIn("No such file",
                      self.export(out=f"{self.dir}/no/such/parent", code=2)[1])
        S.write(f"{self.store}/a/{JOURNAL}", "x")
        self.assertIn("interrupted export itself",
                      self.export(out=f"{self.dir}/other", code=2)[1])
        self.assertFalse(os.path.exists(f"{self.dir}/other"))
        got = self.export_json(out=f"{self.dir}/other", code=2)
        self.assertIn("interrupted export itself", got["error"])

    def test_refused_paths_of_a_mount(self):
        with qfmount.Mount(self.store, views="nf4") as m:
            for path, args, word in ((m.mnt, (), "name a view"),
                                     (m.path(".quantfs"), (), "not in a view"),
                                     (m.path("nf4/a"), ("--view", "dq"), "--view says dq")):
                rc, _, err = qfmount.run("export", *args, path, self.out)
                self.assertEqual(rc, 2)
                self.assertIn(word, err)
            self.assertFalse(os.path.exists(self.out))
        rc, _, err = qfmount.run("export", f"{self.store}/a", self.out)
        self.assertEqual(rc, 2)
        self.assertIn("--view is needed", err)

    def test_bad_arguments(self):
        for args in ((), (self.store,), (self.store, self.out, "more"),
                     ("--view", "nf5", self.store, self.out),
                     ("--view", "nf4:dq", self.store, self.out),
                     ("--jobs", "0", self.store, self.out),
                     ("--jobs", "257", self.store, self.out),
                     ("--max-shard-size", "5XB", self.store, self.out),
                     ("-o", "nonsense", self.store, self.out), ("--view",),
                     ("--nonsense", self.store, self.out)):
            rc, out, err = qfmount.run("export", *args)
            self.assertEqual((rc, out), (1, ""), args)
            self.assertIn("quantfs export", err)
        self.assertFalse(os.path.exists(self.out))


class Reshard(Case):
    def sizes(self, path, index="model.safetensors.index.json"):
        """Checks the shards against their index; returns bytes of tensors by shard."""
        with open(f"{path}/{index}", encoding="utf-8") as f:
            doc = json.load(f)
        sizes, where = {}, {}
        for file in sorted(os.listdir(path)):
            if not file.endswith(".safetensors"):
                continue
            header, _, _ = S.read_header(S.read_file(f"{path}/{file}"))
            sizes[file] = sum(end - begin for _, _, begin, end in header.values())
            where.update((name, file) for name in header)
        self.assertEqual(doc["weight_map"], where)
        self.assertEqual(doc["metadata"]["total_size"], sum(sizes.values()))
        for name, file in where.items():
            self.assertEqual(file, where[unit_of(name)], name)
        return sizes

    def test_split_and_join(self):
        S.write_llama(f"{self.store}/one", hidden=128, layers=3, inter=256, vocab=64)
        S.write_llama(f"{self.store}/three", hidden=64, layers=3, shards=3)
        for view in ("nf4", "dq", "int8"):
            plain, split, joined = (f"{self.dir}/{view}-{x}" for x in "psj")
            self.export(view=view, out=plain)
            self.export("--max-shard-size", "60KB", view=view, out=split)
            self.export("--max-shard-size", "1GiB", view=view, out=joined)
            for model in ("one", "three"):
                want = tensors_of(f"{plain}/{model}")
                self.assertEqual(tensors_of(f"{split}/{model}"), want)
                self.assertEqual(tensors_of(f"{joined}/{model}"), want)
                self.assertEqual([f for f in os.listdir(f"{joined}/{model}")
                                  if "safetensors" in f], ["model.safetensors"])
                sizes = self.sizes(f"{split}/{model}")
                n = len(sizes)
                self.assertGreater(n, 1)
                self.assertEqual(list(sizes), [f"model-{i + 1:05}-of-{n:05}.safetensors"
                                               for i in range(n)])
                self.assertLessEqual(max(sizes.values()), 60000)

    def test_one_too_large(self):
        S.write_llama(f"{self.store}/m", hidden=128, inter=512, vocab=64)
        self.export("--max-shard-size", "20KB", path=f"{self.store}/m")
        sizes = self.sizes(self.out)
        self.assertGreater(max(sizes.values()), 20000)
        for file, size in sizes.items():
            header, _, _ = S.read_header(S.read_file(f"{self.out}/{file}"))
            if size > 20000:
                self.assertEqual(len({unit_of(n) for n in header}), 1, file)

    def test_variants_and_what_stays(self):
        """Names of variants and components; what the view does not change keeps its
        files."""
        S.write_llama(f"{self.store}/m", hidden=128, vocab=64)
        os.rename(f"{self.store}/m/model.safetensors",
                  f"{self.store}/m/model.fp16.safetensors")
        S.write_shard(f"{self.store}/m/2_Dense/model.safetensors",
                      [("linear.weight", "F32", [300, 300])])
        self.export("--max-shard-size", "50KB", path=f"{self.store}/m")
        n = len(self.sizes(self.out, "model.safetensors.index.fp16.json"))
        self.assertTrue(os.path.exists(f"{self.out}/model.fp16-00001-of-{n:05}.safetensors"))
        self.assertEqual(os.listdir(f"{self.out}/2_Dense"), ["model.safetensors"])

    def test_diffusers(self):
        """Components have their own names; a VAE, which passes through, keeps its file."""
        block = "down_blocks.0.attentions.0.transformer_blocks.0.attn1."
        for part, cls in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
            S.write_json(f"{self.store}/p/{part}/config.json", {"_class_name": cls})
            S.write_shard(f"{self.store}/p/{part}/diffusion_pytorch_model.safetensors",
                          [(f"{block}to_{x}.weight", "F16", [128, 128]) for x in "qkv"])
        S.write_json(f"{self.store}/p/model_index.json", {"_class_name": "StableDiffusion"})
        self.export("--max-shard-size", "10KB", path=f"{self.store}/p")
        sizes = self.sizes(f"{self.out}/unet",
                           "diffusion_pytorch_model.safetensors.index.json")
        self.assertEqual(list(sizes), [
            f"diffusion_pytorch_model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)])
        self.assertEqual(sorted(os.listdir(f"{self.out}/vae")),
                         ["config.json", "diffusion_pytorch_model.safetensors"])
        rc, _, err = qfmount.run("verify", "-o", f"cache={self.cache}", self.out,
                                 "--against", f"{self.store}/p")
        self.assertEqual(rc, 0, err)

    def test_named_by_its_config(self):
        """A config.json that names the weights itself would not find new files."""
        index = "model.safetensors.index.json"
        for shards, name in ((1, None), (1, "weights.safetensors"), (2, None), (2, index)):
            with self.subTest(shards=shards, name=name):
                model = f"{self.store}/{shards}{name}"
                S.write_llama(model, hidden=128, vocab=64, shards=shards,
                              config={"transformers_weights": name} if name else {})
                if name == "weights.safetensors":
                    os.rename(f"{model}/model.safetensors", f"{model}/{name}")
                out = f"{self.dir}/out{shards}{name}"
                self.export("--max-shard-size", "20KB", path=model, out=out)
                self.assertNotEqual(os.path.getsize(f"{out}/config.json"),
                                    os.path.getsize(f"{model}/config.json"))
                whole = sorted(os.listdir(out)) == sorted(os.listdir(model))
                self.assertEqual(whole, name is not None, os.listdir(out))

    def test_collision(self):
        """Two weight sets that would have the same new names."""
        S.write_llama(f"{self.store}/m", hidden=128, vocab=64, shards=2)
        S.write_llama(f"{self.store}/n", hidden=128, vocab=64)
        os.rename(f"{self.store}/n/model.safetensors", f"{self.store}/m/model.safetensors")
        self.export(path=f"{self.store}/m")
        _, err = self.export("--max-shard-size", "50KB", path=f"{self.store}/m", code=2,
                             out=f"{self.dir}/c")
        self.assertIn("the name of another file", err)
        self.assertFalse(os.path.exists(f"{self.dir}/c"))


class Interrupted(Case):
    """Of one model with files of more than one segment (16 MiB)."""

    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/m", hidden=512, layers=2, inter=4096, vocab=20000,
                      shards=2)
        S.write(f"{self.store}/m/tokenizer.bin", os.urandom(3 << 20))
        self.want = f"{self.dir}/want"
        self.export(out=self.want)

    def expect_no_wrong_file(self):
        """What has its name has its bytes."""
        for file in S.files_below(self.out) if os.path.isdir(self.out) else []:
            if not file.startswith(JOURNAL):
                self.assertEqual(S.sha256(f"{self.out}/{file}"),
                                 S.sha256(f"{self.want}/{file}"), file)

    def start(self, *args, out=None):
        return subprocess.Popen(
            [qfmount.binary(), "export", "--json", "--view", "nf4", "-o",
             f"cache={self.cache}", *args, self.store, out or self.out],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def end(self, process):
        out, err = process.communicate(timeout=120)
        return process.returncode, json.loads(out) if out else None, err.decode()

    def journal_size(self):
        try:
            return os.path.getsize(f"{self.out}/{JOURNAL}")
        except FileNotFoundError:
            return 0

    def test_kills(self):
        """kill -9 at random moments; now and then the last one is let through."""
        begun = time.monotonic()
        self.export()
        whole = time.monotonic() - begun
        shutil.rmtree(self.out)
        rng, kills, kept, ends = random.Random(7), 0, 0, 0
        while kills < (6 if qfmount.SLOW else 24):
            process = self.start()
            time.sleep(rng.random() * whole * 1.1)
            process.kill()
            code, got, err = self.end(process)
            kills += code == -signal.SIGKILL
            self.expect_no_wrong_file()
            files = S.files_below(self.out) if os.path.isdir(self.out) else []
            if files and not any(f.startswith(JOURNAL) for f in files):
                self.expect_tree(self.want, self.out)  # it had come to its end
                shutil.rmtree(self.out)
                ends += 1
            elif kills % 6 == 5:
                kept += self.export_json()["bytes_kept"]
                self.expect_tree(self.want, self.out)
                shutil.rmtree(self.out)
        print(f"{kills} kills, {ends} after the end, {kept} bytes kept by resumptions")

    def interrupt(self, number, *args):
        """Ends it by a signal when some segments are written."""
        process = self.start(*args)
        while process.poll() is None and self.journal_size() < 200:
            time.sleep(0.001)
        process.send_signal(number)
        return self.end(process)

    def partly(self):
        """An interrupted export, with at least a segment."""
        for _ in range(20):
            code, got, err = self.interrupt(signal.SIGINT, "--jobs", "1")
            if code != 0:
                return code, got, err
            shutil.rmtree(self.out)
        self.fail("it was always faster")

    def test_signals(self):
        code, got, err = self.partly()
        self.assertEqual(code, 128 + signal.SIGINT, err)
        self.assertTrue(got["interrupted"])
        self.assertIn("the same command goes on", err)
        self.expect_no_wrong_file()
        rest = self.export_json()
        self.assertGreater(rest["bytes_kept"], 0)
        self.assertEqual(rest["bytes_kept"] + rest["bytes_written"], sum(
            os.path.getsize(f"{self.want}/{f}") for f in S.files_below(self.want)))
        self.expect_tree(self.want, self.out)

    def test_damaged_meanwhile(self):
        """What was written is read again before it counts: drafts, finished files and
        the journal may have suffered."""
        self.partly()
        for file in S.files_below(self.out):
            if os.path.getsize(f"{self.out}/{file}") > 100:
                with open(f"{self.out}/{file}", "r+b") as f:
                    f.seek(90)
                    byte = f.read(1)
                    f.seek(90)
                    f.write(bytes([byte[0] ^ 1]))
        with open(f"{self.out}/{JOURNAL}", "ab") as f:
            f.write(b"segment 12\nfile x\nsegment " + b"0" * 32 + b" 0 0\nnonsense\n"
                    b"file " + b"0" * 32 + b' "../want/config.json"\nsegm')
        self.export()
        self.expect_tree(self.want, self.out)

    def test_changed_meanwhile(self):
        """The source, and the settings."""
        self.partly()
        S.write_llama(f"{self.store}/m", hidden=512, layers=2, inter=4096, vocab=20000,
                      shards=2, seed="other")
        os.remove(f"{self.store}/m/tokenizer.bin")
        self.export()
        self.export(out=f"{self.dir}/new")
        self.assertNotEqual(S.digest_tree(self.out), S.digest_tree(self.want))
        self.expect_tree(f"{self.dir}/new", self.out)
        shutil.rmtree(self.out)
        shutil.rmtree(f"{self.dir}/new")
        self.partly()
        self.export("--max-shard-size", "10MB")
        self.export("--max-shard-size", "10MB", out=f"{self.dir}/new")
        self.expect_tree(f"{self.dir}/new", self.out)

    def test_finished_files_go_when_they_are_no_more(self):
        self.partly()
        names = [f for f in S.files_below(self.out) if not f.startswith(JOURNAL)]
        self.assertTrue(names, "no file was finished")
        S.write_json(f"{self.store}/m/config.json",
                     S.llama_config(512, 2, "BF16", 4096, 20000, extra=1))
        os.rename(f"{self.store}/m", f"{self.store}/n")
        self.export()
        self.assertEqual([f for f in S.files_below(self.out) if f.startswith("m/")], [])
        self.assertEqual(S.files_below(f"{self.out}/n"), S.files_below(f"{self.want}/m"))

    def test_changed_while_it_is_read(self):
        """An error; and the next run writes the new version."""
        shard = f"{self.store}/m/model-00002-of-00002.safetensors"
        for i in range(20):
            process = self.start("--jobs", "1")
            while process.poll() is None and self.journal_size() < 150:
                time.sleep(0.001)
            with open(shard, "r+b") as f:
                f.seek(-1, os.SEEK_END)
                f.write(bytes([i]))
            code, _, err = self.end(process)
            if code != 0:
                break
            shutil.rmtree(self.out)  # it was faster
        self.assertEqual(code, 2)
        self.assertIn("changed meanwhile", err)
        self.export()
        shutil.rmtree(self.want)
        self.export(out=self.want)
        self.expect_tree(self.want, self.out)

    def test_other_export(self):
        """Another view, another source, another version, a lock."""
        self.partly()
        before = S.digest_tree(self.out)
        _, err = self.export(view="dq", code=2)
        self.assertIn(f"an interrupted export of {self.store} as nf4", err)
        self.export(path=f"{self.store}/m", code=2)
        fd = os.open(self.out, os.O_RDONLY)
        fcntl.flock(fd, fcntl.LOCK_EX)
        self.assertIn("another export writes there", self.export(code=2)[1])
        os.close(fd)
        self.assertEqual(S.digest_tree(self.out), before)
        S.write(f"{self.out}/{JOURNAL}", '{"quantfs_export": 2, "view": "nf4", "source": ""}')
        self.assertIn("another version", self.export(code=2)[1])
        S.write(f"{self.out}/{JOURNAL}", "garbage\n")
        self.assertIn("no journal of an export", self.export(code=2)[1])

    def test_through_mount_and_without(self):
        """Begun without a mount, ended through one."""
        self.partly()
        with qfmount.Mount(self.store, cache=self.cache, views="nf4") as m:
            rc, out, err = qfmount.run("export", "--json", m.path("nf4"), self.out)
        self.assertEqual(rc, 0, err)
        self.assertGreater(json.loads(out)["bytes_kept"], 0)
        self.expect_tree(self.want, self.out)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to mount a tmpfs")
    def test_no_room(self):
        small = f"{self.dir}/small"
        os.mkdir(small)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", small], check=True)
        try:
            self.out = f"{small}/out"
            _, err = self.export(code=2)
            self.assertIn("No space left on device", err)
            self.expect_no_wrong_file()
            self.assertGreater(self.journal_size(), 0)
            subprocess.run(["mount", "-o", "remount,size=96m", small], check=True)
            got = self.export_json()
            self.assertGreater(got["bytes_kept"], 0)
            self.expect_tree(self.want, self.out)
        finally:
            subprocess.run(["umount", "-l", small], check=False)


if __name__ == "__main__":
    qfmount.main()
