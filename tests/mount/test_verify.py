#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs verify: one changed byte in any part of a checkpoint is found and named; what is
known to differ between bitsandbytes' own kernels is counted by name; other shards and other
settings are no difference."""
import json
import os
import shutil
import signal
import struct
import subprocess
import unittest

import qfmount
import qfstore as S

Q = "model.layers.0.self_attn.q_proj.weight"
STATE = ".quant_state.bitsandbytes__nf4"


class Verify(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir, "cache")
        self.out = os.path.join(self.dir, "out")
        self.model = os.path.join(self.store, "m")

    def export(self, view, *args, path=None):
        shutil.rmtree(self.out, ignore_errors=True)
        rc, _, err = qfmount.run("export", "-q", "-o", f"cache={self.cache}", "--view", view,
                                 *args, path or self.model, self.out)
        self.assertEqual(rc, 0, err)

    def verify(self, *args, code=0, against=None, path=None):
        rc, out, err = qfmount.run("verify", "-q", "--json", "-o", f"cache={self.cache}",
                                   path or self.out, "--against", against or self.model,
                                   *args)
        self.assertEqual(rc, code, err + out)
        return json.loads(out) if out else err

    def ties(self, got):
        return {k: n for k, n in got["known_ties"].items() if n}

    def problems(self, got):
        return {k: n for k, n in got["problems"].items() if n}

    def expect_equal(self, *args, ties=None, **kwargs):
        got = self.verify(*args, **kwargs)
        self.assertTrue(got["equal"])
        self.assertEqual((self.problems(got), got["differences"]), ({}, []))
        self.assertEqual(self.ties(got), ties or {})
        return got

    def shard(self, name="model.safetensors"):
        data = S.read_file(f"{self.out}/{name}")
        return bytearray(data), S.read_header(data)[0]

    def change(self, tensor, at, value=None, flip=1):
        """Writes bytes into a tensor of the export, or flips bits of one."""
        data, header = self.shard()
        begin = header[tensor][2] + at
        if value is None:
            data[begin] ^= flip
        else:
            data[begin:begin + len(value)] = value
        S.write(f"{self.out}/model.safetensors", bytes(data))

    def rewrite(self, edit, path=None):
        """Lets `edit` change {name: (dtype, shape, bytes)} and writes the file anew."""
        path = path or f"{self.out}/model.safetensors"
        raw = S.read_file(path)
        data, header = bytearray(raw), S.read_header(raw)[0]
        tensors = {n: (d, s, bytes(data[b:e])) for n, (d, s, b, e) in header.items()}
        edit(tensors)
        S.write_shard(path, [(n, d, s, b) for n, (d, s, b) in sorted(
                          tensors.items(), key=lambda t: -S.SIZE[t[1][0]])])

    def bytes_of(self, tensor):
        data, header = self.shard()
        return bytes(data[header[tensor][2]:header[tensor][3]])


class Equal(Verify):
    def test_all_views_and_shards(self):
        S.write_llama(self.model, hidden=66, layers=2, inter=101, vocab=7)
        for view in ("nf4", "fp4", "dq", "int8"):
            self.export(view)
            got = self.expect_equal()
            self.assertEqual(got["views"], view)
            self.assertEqual(got["tensors"]["equal"], 21)
            self.export(view, "--max-shard-size", "12KB")
            self.assertGreater(len(os.listdir(self.out)), 4)
            self.expect_equal()
        rc, out, err = qfmount.run("verify", "-o", f"cache={self.cache}", self.out,
                                   "--against", self.model)
        self.assertEqual(rc, 0)
        self.assertIn("equal (int8): 21 tensors equal", out)
        self.assertIn("verifying: ", err)

    def test_conv1d_and_casts(self):
        S.write_gpt2(self.model, dtype="BF16", hidden=52)
        for view in ("nf4", "dq", "int8"):
            self.export(view)
            self.expect_equal()
        shutil.rmtree(self.model)
        S.write_llama(self.model, hidden=40, inter=72, stored="F32")
        self.export("nf4")
        self.expect_equal()

    def test_store_of_models(self):
        """Everything below, each with its own settings; what passes through, too."""
        S.write_llama(self.model)
        S.write_gpt2(f"{self.store}/deep/er/g")
        S.write_shard(f"{self.store}/m/2_Dense/model.safetensors", [("w", "F32", [9, 9])])
        self.export("dq", path=self.store)
        got = self.expect_equal(against=self.store)
        self.assertEqual((got["models"], got["views"]), (3, "dq:unchanged"))
        self.export("int8", path=f"{self.store}/deep/er/g")
        shutil.rmtree(f"{self.dir}/all", ignore_errors=True)
        shutil.copytree(self.out, f"{self.dir}/all/deep/er/g")
        self.expect_equal(against=self.store, path=f"{self.dir}/all")
        self.export("dq", path=self.store)
        data = bytearray(S.read_file(f"{self.out}/m/2_Dense/model.safetensors"))
        data[-1] ^= 1
        S.write(f"{self.out}/m/2_Dense/model.safetensors", bytes(data))
        got = self.verify(against=self.store, code=3)
        self.assertEqual([(d["tensor"], d["index"]) for d in got["differences"]],
                         [("w", 80)])

    def test_mounted(self):
        """The mount itself is such a checkpoint; its source may be named by any view."""
        S.write_llama(self.model)
        self.export("dq")
        with qfmount.Mount(self.store, cache=self.cache) as m:
            self.expect_equal(path=m.path("fp4/m"))
            self.expect_equal(against=m.path("int8/m"))

    def test_settings(self):
        """Settings and skipped modules are read from the checkpoint."""
        S.write_llama(self.model, hidden=256, layers=2, inter=512)
        for text in ({"blocksize": 128, "quant_storage": "bfloat16"},
                     {"dtype": "float16", "compute_dtype": "float32"},
                     {"skip": ["layers.1", "o_proj"], "force": ["lm_head"]}):
            S.write_json(f"{self.model}/quantfs.json", text)
            for view in ("nf4", "dq", "int8"):
                self.export(view)
                os.rename(f"{self.model}/quantfs.json", f"{self.dir}/away")
                if view != "int8" or "blocksize" not in text:
                    self.expect_equal()
                os.rename(f"{self.dir}/away", f"{self.model}/quantfs.json")

    def test_missing_among_equals(self):
        """Another norm of the same ones is no reason for one to be left out."""
        S.write_llama(self.model, layers=2)
        norms = [f"model.layers.{i}.input_layernorm.weight" for i in range(2)]

        def ones(tensors):
            for name in norms:
                dtype, shape, data = tensors[name]
                tensors[name] = dtype, shape, b"\x80\x3f" * (len(data) // 2)
        self.rewrite(ones, f"{self.model}/model.safetensors")
        self.export("nf4")
        self.expect_equal()
        self.rewrite(lambda tensors: tensors.pop(norms[0]))
        got = self.verify(code=3)
        self.assertEqual(self.problems(got), {"missing": 1})
        self.assertEqual([d["tensor"] for d in got["differences"]], [norms[0]])

    def test_component_of_a_pipeline(self):
        """A pipeline without one of its components is not whole."""
        for part, cls in (("unet", "UNet2DConditionModel"), ("vae", "AutoencoderKL")):
            S.write_json(f"{self.model}/{part}/config.json", {"_class_name": cls})
            S.write_shard(f"{self.model}/{part}/diffusion_pytorch_model.safetensors",
                          [(f"mid_block.attentions.0.to_{x}.weight", "F16", [64, 64])
                           for x in "qkv"])
        S.write_json(f"{self.model}/model_index.json", {"_class_name": "StableDiffusion"})
        for part in ("vae", "unet"):
            self.export("nf4")
            self.expect_equal()
            shutil.rmtree(f"{self.out}/{part}")
            got = self.verify(code=3)
            self.assertEqual(self.problems(got), {"missing": 1})
            self.assertEqual([d["tensor"] for d in got["differences"]], [part])
            rc, out, _ = qfmount.run("verify", "-o", f"cache={self.cache}", self.out,
                                     "--against", self.model)
            self.assertEqual((rc, out.splitlines()[0]), (3, f"{part} is missing"))

    def test_only_in_the_source(self):
        """Another directory of weights may be another model: that it was not looked at is
        said, with a name that a terminal stands."""
        S.write_llama(self.model)
        S.write_shard(f"{self.model}/2_Dense\x1b[31m/model.safetensors",
                      [("w", "F32", [9, 9])])
        self.export("nf4")
        self.expect_equal()
        shutil.rmtree(f"{self.out}/2_Dense\x1b[31m")
        rc, out, err = qfmount.run("verify", "-q", "--json", "-o", f"cache={self.cache}",
                                   self.out, "--against", self.model)
        self.assertEqual((rc, json.loads(out)["equal"]), (0, True))
        self.assertEqual(err, "quantfs verify: not compared, it is in the source only: "
                         "2_Dense?[31m\n")

    def test_file_of_a_plain_directory(self):
        """Without a model files are compared by name; one that is not there is missing."""
        for name in ("a", "b"):
            S.write_shard(f"{self.model}/{name}.safetensors", [(name, "F32", [9, 9])])
        shutil.copytree(self.model, self.out)
        self.expect_equal()
        os.unlink(f"{self.out}/b.safetensors")
        got = self.verify(code=3)
        self.assertEqual([(d["problem"], d["tensor"]) for d in got["differences"]],
                         [("missing", "b.safetensors")])

    def test_names_in_text(self):
        """A tensor's name may hold what a terminal takes for a command; JSON has it as it
        is."""
        S.write_llama(self.model)
        self.export("nf4")
        name = "w\x1b[2J\u009b\n"
        self.rewrite(lambda tensors: tensors.update({name: ("F32", [2], bytes(8))}))
        got = self.verify(code=3)
        self.assertEqual([d["tensor"] for d in got["differences"]], [name])
        rc, out, _ = qfmount.run("verify", "-o", f"cache={self.cache}", self.out,
                                 "--against", self.model)
        self.assertEqual((rc, out.splitlines()[0]), (3, "w?[2J?? is in the checkpoint only"))

    def test_long_words(self):
        """What a checkpoint says of itself may be anything."""
        S.write_llama(self.model)
        self.export("int8")
        config = json.loads(S.read_file(f"{self.out}/config.json"))
        config["dtype"] = config["torch_dtype"] = "x" * 300
        S.write_json(f"{self.out}/config.json", config)
        self.expect_equal()

    def test_prefix(self):
        """Saved by a class that holds the model, or by the one inside."""
        S.write_llama(self.model)
        for view in ("dq", "int8"):
            for rename in (lambda n: "outer.base." + n, lambda n: n.removeprefix("model.")):
                self.export(view)

                def edit(tensors):
                    renamed = {rename(n): t for n, t in tensors.items()}
                    tensors.clear()
                    tensors.update(renamed)
                self.rewrite(edit)
                self.expect_equal()
                name = rename(Q)
                self.change(name, 5, flip=0x10)
                got = self.verify(code=3)
                self.assertEqual([d["tensor"] for d in got["differences"]], [Q])

    def test_odd_blocksize(self):
        """One that no view has is a difference like any other."""
        S.write_llama(self.model)
        self.export("nf4")
        text = self.bytes_of(Q + STATE)
        name = Q.replace("self_attn.q", "mlp.down")  # the first one that is found
        for size in (b"99", b"-1", b"32"):
            self.change(name + STATE, 0, self.bytes_of(name + STATE).replace(
                b'"blocksize": 64', b'"blocksize": ' + size, 1)[:len(text)])
            got = self.verify(code=3)
            self.assertEqual([d["tensor"] for d in got["differences"]], [name + STATE])
            self.change(name + STATE, 0, self.bytes_of(name + STATE).replace(
                b'"blocksize": ' + size, b'"blocksize": 64', 1))
        self.expect_equal()

    def test_other_formats(self):
        """Of TorchAO and others: told, not compared."""
        S.write_llama(self.model)
        for view, said in (("ao-int8wo", "quantized by torchao, not by bitsandbytes"),
                           ("ct-fp8", "quantized by compressed-tensors, not by")):
            self.export(view)
            self.assertIn(said, self.verify(code=2))
            self.assertIn("formats of bitsandbytes alone",
                          self.verify("--view", view, code=2))

    def test_view_given(self):
        """--view says what it should be."""
        S.write_llama(self.model)
        self.export("nf4")
        self.expect_equal("--view", "nf4")
        got = self.verify("--view", "fp4", code=3)
        self.assertEqual(self.problems(got)["missing"], 7)  # quant_state has another name
        self.assertEqual(self.problems(got)["extra"], 7)
        self.assertEqual(self.problems(self.verify("--view", "int8", code=3))["shape"], 7)


class Found(Verify):
    """One byte, anywhere."""

    def one(self, tensor, index, *values):
        got = self.verify(code=3)
        self.assertFalse(got["equal"])
        found = [(d["problem"], d["tensor"], d.get("index")) for d in got["differences"]]
        self.assertEqual(found, [("different", tensor, index)])
        self.assertEqual((got["values_different"], got["tensors"]["different"]), (1, 1))
        self.assertEqual(self.ties(got), {})
        if values:
            d = got["differences"][0]
            self.assertEqual((d["view"], d["checkpoint"]), values)

    def test_every_part(self):
        S.write_llama(self.model, hidden=192, vocab=7)
        for view, parts in (("nf4", {"": 6000, ".absmax": 41, ".quant_map": 9}),
                            ("fp4", {"": 6000, ".absmax": 41, ".quant_map": 9}),
                            ("dq", {"": 6000, ".absmax": 41, ".quant_map": 9,
                                    ".nested_absmax": 1, ".nested_quant_map": 200}),
                            ("int8", {"": 6000, "SCB": 100, "_format": 0})):
            self.export(view)
            keep = S.read_file(f"{self.out}/model.safetensors")
            for part, index in parts.items():
                name = Q[:-6] + part if part == "SCB" else Q + part
                wide = part not in ("", "_format") and (view, part) != ("dq", ".absmax")
                at = 4 * index + 2 if wide else index
                self.change(name, at, flip=0x10)
                self.one(name, 2 * index if part == "" and view != "int8" else index)
                S.write(f"{self.out}/model.safetensors", keep)
            self.change("model.norm.weight", 6)
            self.one("model.norm.weight", 3)
            S.write(f"{self.out}/model.safetensors", keep)

    def test_every_nibble(self):
        """Each bit of some codes, both halves, first and last."""
        S.write_llama(self.model)
        self.export("nf4")
        keep = S.read_file(f"{self.out}/model.safetensors")
        size = len(self.bytes_of(Q))
        for at in (0, 777, size - 1):
            for bit in range(8):
                self.change(Q, at, flip=1 << bit)
                code = self.bytes_of(Q)[at]
                old = code ^ 1 << bit
                self.one(Q, 2 * at + (bit < 4), *(
                    str(c >> 4 if bit >= 4 else c & 15) for c in (old, code)))
                S.write(f"{self.out}/model.safetensors", keep)

    def test_quant_state(self):
        S.write_llama(self.model, hidden=256)
        self.export("dq")
        keep = S.read_file(f"{self.out}/model.safetensors")
        text = self.bytes_of(Q + STATE)
        for old, new in ((b'"blocksize": 64', b'"blocksize": 32'), (b"bfloat16", b"bfloat61"),
                         (b"[256, 256]", b"[256, 265]"), (b'"nf4"', b'"fp4"'),
                         (b"float32", b"float23"), (b'"nested_blocksize": 256',
                                                    b'"nested_blocksize": 255')):
            self.assertIn(old, text)
            self.change(Q + STATE, 0, text.replace(old, new, 1))
            self.one(Q + STATE, None)
            S.write(f"{self.out}/model.safetensors", keep)
        self.change(Q + STATE, 0, b"[" + text[1:])
        self.one(Q + STATE, None, "a quant_state", "no JSON object")
        # the same in other words
        self.change(Q + STATE, 0, json.dumps(dict(reversed(json.loads(text).items())))
                    .encode().ljust(len(text)))
        self.expect_equal()

    def test_missing_extra_kept(self):
        S.write_llama(self.model)
        self.export("nf4")
        keep = S.read_file(f"{self.out}/model.safetensors")

        def expect(edit, problem, tensors):
            S.write(f"{self.out}/model.safetensors", keep)
            self.rewrite(edit)
            got = self.verify(code=3)
            self.assertEqual({(d["problem"], d["tensor"]) for d in got["differences"]},
                             {(problem, t) for t in tensors})

        def drop(*names):
            return lambda tensors: [tensors.pop(n) for n in names]

        def replace(name, *value):
            return lambda tensors: tensors.update({name: value})

        expect(drop("model.norm.weight"), "missing", ["model.norm.weight"])
        expect(drop(Q + ".absmax"), "missing", [Q + ".absmax"])
        parts = [Q + x for x in ("", ".absmax", ".quant_map", STATE)]
        expect(drop(*parts), "missing", [Q])
        expect(replace("new", "F32", [2], bytes(8)), "extra", ["new"])
        expect(replace(Q + ".absmax", "F32", [32, 2], bytes(256)), "shape", [Q + ".absmax"])
        expect(replace(Q + ".absmax", "I8", [64], bytes(64)), "shape", [Q + ".absmax"])

        def plain(tensors):
            drop(*parts)(tensors)
            tensors[Q] = ("BF16", [64, 64], bytes(64 * 64 * 2))
        expect(plain, "kept", [Q])

        def quantized(tensors):
            name = "model.embed_tokens.weight"
            for part in ("", ".absmax", ".quant_map", STATE):
                tensors[name + part] = tensors[Q + part]
        expect(quantized, "quantized", ["model.embed_tokens.weight"])

    def test_many(self):
        """Only the first of a part is told, and a hundred in all."""
        S.write_llama(self.model, layers=16)
        self.export("int8")
        data, header = self.shard()
        for name, (dtype, _, begin, end) in header.items():
            if dtype == "I8" or name.endswith("SCB"):
                data[begin:end] = bytes(b ^ 0x55 for b in data[begin:end])
        S.write(f"{self.out}/model.safetensors", bytes(data))
        got = self.verify(code=3)
        self.assertEqual(len(got["differences"]), 100)
        self.assertEqual(self.problems(got), {"different": 2 * 7 * 16})
        rc, out, _ = qfmount.run("verify", "-o", f"cache={self.cache}", self.out,
                                 "--against", self.model)
        self.assertEqual(rc, 3)
        self.assertIn("… and 124 more", out)
        self.assertIn("SCB differs, first at 0: view ", out)


class Known(Verify):
    """Ties that bitsandbytes makes, and next to each something that is none."""

    def write(self, values, dtype="F32"):
        """A model whose q_proj has these numbers, then zeros."""
        S.write_llama(self.model, dtype=dtype)
        data = bytearray(S.read_file(f"{self.model}/model.safetensors"))
        _, _, begin, end = S.read_header(bytes(data))[0][Q]
        data[begin:end] = bytes(end - begin)
        data[begin:begin + 4 * len(values)] = struct.pack(f"<{len(values)}f", *values)
        S.write(f"{self.model}/model.safetensors", bytes(data))

    def test_zero_blocks(self):
        self.write([1.0])
        self.export("nf4")
        self.assertEqual(self.bytes_of(Q)[32:64], b"\x77" * 32)
        self.change(Q, 32, bytes(32))
        self.expect_equal(ties={"zero_block": 64})
        self.change(Q, 40, b"\x07")
        got = self.verify(code=3)
        self.assertEqual(got["values_different"], 63)  # not the whole block

    def test_threshold(self):
        """A value on a threshold may fall to either side of it, and no farther."""
        at = struct.unpack("<f", struct.pack("<I", 0x3f006d03))[0]
        self.write([1.0, at, 0.3])
        self.export("nf4")
        codes = self.bytes_of(Q)
        self.change(Q, 0, bytes([(codes[0] & 0xf0) | ((codes[0] & 15) + 1)]))
        self.expect_equal(ties={"threshold": 1})
        self.change(Q, 0, bytes([(codes[0] & 0xf0) | ((codes[0] & 15) + 2)]))
        self.verify(code=3)
        self.change(Q, 0, codes[:1])
        self.change(Q, 1, bytes([codes[1] + 0x10]))
        self.verify(code=3)

    def test_fp4_zeros(self):
        """The CPU's rule gives code 8 to small positive values, 0 to negative ones."""
        self.write([1.0, 0.001, -0.001])
        self.export("fp4")
        self.assertEqual(self.bytes_of(Q)[:2], b"\x30\x80")
        self.change(Q, 0, b"\x38\x00")
        self.expect_equal(ties={"cpu_code": 2})
        self.change(Q, 0, b"\x38\x08")  # an exact zero
        self.verify(code=3)

    def test_half(self):
        self.write([127.0, 0.5, 1.5, 2.25])
        self.export("int8")
        self.assertEqual(self.bytes_of(Q)[:4], b"\x7f\x00\x02\x02")
        self.change(Q, 0, b"\x7f\x01\x01\x02")
        self.expect_equal(ties={"half": 2})
        self.change(Q, 0, b"\x7f\x00\x02\x03")
        self.verify(code=3)

    def test_nan(self):
        self.write([1.0, float("nan"), 0.5])
        self.export("nf4")
        self.change(Q, 0, b"\xff" * 32)
        self.change(Q + ".absmax", 0, struct.pack("<f", float("nan")))
        got = self.verify()
        self.assertEqual(set(self.ties(got)), {"nan"})
        self.change(Q, 5, b"\xf3")
        self.verify(code=3)

    def test_offset(self):
        S.write_llama(self.model, hidden=256)
        self.export("dq")
        keep = S.read_file(f"{self.out}/model.safetensors")
        text = self.bytes_of(Q + STATE)
        state = json.loads(text)
        bits = struct.unpack("<I", struct.pack("<f", state["nested_offset"]))[0]
        old = b"%.8e" % state["nested_offset"]
        for ulps, code in ((1, 0), (-2, 0), (5, 3)):
            new = struct.unpack("<f", struct.pack("<I", bits + ulps))[0]
            self.assertIn(old, text)
            self.change(Q + STATE, 0, text.replace(old, b"%.8e" % new))
            got = self.verify(code=code)
            if code == 0:
                self.assertEqual(self.ties(got)["offset"], 1)
            S.write(f"{self.out}/model.safetensors", keep)

    def test_dtype_buffer_shared(self):
        """Another dtype of a kept tensor, a buffer, a tied head: as save_pretrained
        leaves them."""
        S.write_llama(self.model)
        data = S.read_file(f"{self.model}/model.safetensors")
        header, _, _ = S.read_header(data)
        tensors = {n: (d, s, data[b:e]) for n, (d, s, b, e) in header.items()}
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        tensors["model.position_ids"] = ("I64", [1, 4], bytes(32))
        S.write_shard(f"{self.model}/model.safetensors",
                      [(n, *t) for n, t in tensors.items()])
        self.export("nf4")
        self.expect_equal()

        def edit(tensors):
            tensors.pop("lm_head.weight")
            tensors.pop("model.position_ids")
            _, shape, data = tensors["model.norm.weight"]
            wide = b"".join(b"\0\0" + data[i:i + 2] for i in range(0, len(data), 2))
            tensors["model.norm.weight"] = ("F32", shape, wide)
        self.rewrite(edit)
        self.expect_equal(ties={"dtype": 64, "buffer": 1, "shared": 1})
        self.change("model.norm.weight", 7, flip=1)
        got = self.verify(code=3)
        self.assertEqual([(d["tensor"], d["index"]) for d in got["differences"]],
                         [("model.norm.weight", 1)])


class Refused(Verify):
    def test_bad_arguments(self):
        for args in ((), (self.out,), (self.out, "x", "--against", "y"),
                     (self.out, "--against"), (self.out, "--against", "y", "--view", "nf5"),
                     (self.out, "--against", "y", "--view", "nf4:dq"),
                     (self.out, "--against", "y", "--jobs", "0"),
                     (self.out, "--against", "y", "-o", "policy=x"),
                     (self.out, "--against", "y", "-o", "nonsense"),
                     (self.out, "--against", "y", "--nonsense")):
            rc, out, err = qfmount.run("verify", *args)
            self.assertEqual((rc, out), (1, ""), args)
            self.assertIn("quantfs verify", err)

    def test_troubles(self):
        S.write_llama(self.model)
        self.export("nf4")
        gone = f"{self.dir}/gone"
        self.assertIn("gone: No such file", self.verify(path=gone, code=2))
        self.assertIn("gone: No such file", self.verify(against=gone, code=2))
        os.mkdir(f"{self.dir}/empty")
        self.assertIn("no .safetensors file", self.verify(path=f"{self.dir}/empty", code=2))
        os.mkdir(f"{self.store}/none")
        self.assertIn("none has no view", self.verify(against=f"{self.store}/none", code=2))
        config = json.loads(S.read_file(f"{self.out}/config.json"))
        for change, word in (({"quant_method": "gptq"}, "quantized by gptq"),
                             ({"bnb_4bit_quant_type": "fp4",
                               "bnb_4bit_use_double_quant": True}, "fp4 with double")):
            S.write_json(f"{self.out}/config.json", {**config, "quantization_config": {
                **config["quantization_config"], **change}})
            self.assertIn(word, self.verify(code=2))
        S.write(f"{self.out}/config.json", "{")
        self.assertIn("config.json: ", self.verify(code=2))
        S.write_json(f"{self.out}/config.json", config)
        shutil.copy(f"{self.out}/model.safetensors", f"{self.out}/second.safetensors")
        self.assertIn("which one counts", self.verify(code=2))
        S.write(f"{self.out}/second.safetensors", b"\xff" * 64)
        self.assertIn("second.safetensors: ", self.verify(code=2))
        S.write(f"{self.out}/second.safetensors", b"1")
        self.assertIn("too short", self.verify(code=2))

    def test_interrupt(self):
        S.write_llama(self.model, hidden=512, layers=8, inter=2048, vocab=256)
        self.export("nf4", "-o", "cache=none")
        process = subprocess.Popen(
            [qfmount.binary(), "verify", "-o", "cache=none,isa=scalar,threads=1", "--jobs",
             "1", self.out, "--against", self.model], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        caught = 0
        while process.poll() is None and not caught & 1 << signal.SIGINT - 1:
            with open(f"/proc/{process.pid}/status", encoding="ascii") as f:
                caught = [int(line.split()[1], 16) for line in f
                          if line.startswith("SigCgt")][0]
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        self.assertEqual((process.returncode, out), (128 + signal.SIGINT, b""))
        self.assertIn(b"ended early", err)


if __name__ == "__main__":
    qfmount.main()
