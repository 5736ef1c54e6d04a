#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Views of GGUF files: one file in a model's directory in place of its weights."""
import json
import os
import random
import struct
import sys
import time

import qfmount
import qfstore as S

TYPE_SIZES = {0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24),
              8: (32, 34), 27: (1, 8), 30: (1, 2)}
F32, F16, Q4_0, Q8_0 = 0, 1, 2, 8
BYTES = [chr(c) for c in [*range(33, 127), *range(161, 173), *range(174, 256)]]


class Reader:
    """A strict reader of GGUF version 3: pairs, and tensors as (type, shape, begin, end)."""

    def __init__(self, data):
        self.data, self.at = data, 0
        assert data[:4] == b"GGUF"
        self.at = 4
        version, tensors, pairs = self.take("<IQQ")
        assert version == 3
        self.pairs = dict((self.text(), self.value(self.take("<I")[0]))
                          for _ in range(pairs))
        infos = [self.info() for _ in range(tensors)]
        start = self.at + -self.at % 32
        self.tensors, end = {}, start
        for name, shape, kind, off in infos:
            per, size = TYPE_SIZES[kind]
            count = S.count_of(shape)
            assert count % per == 0 and start + off == end and end % 32 == 0, name
            self.tensors[name] = (kind, shape, end, end + count // per * size)
            end = self.tensors[name][3]
            assert not any(data[end:end + -end % 32]), "padding"
            end += -end % 32
        assert end == len(data) and not any(data[self.at:start])

    def take(self, layout):
        out = struct.unpack_from(layout, self.data, self.at)
        self.at += struct.calcsize(layout)
        return out

    def text(self):
        (n,) = self.take("<Q")
        self.at += n
        return self.data[self.at - n:self.at].decode()

    def value(self, kind):
        if kind == 8:
            return self.text()
        if kind == 9:
            inner, count = self.take("<IQ")
            return [self.value(inner) for _ in range(count)]
        return self.take({4: "<I", 5: "<i", 6: "<f", 7: "<?"}[kind])[0]

    def info(self):
        name, (rank,) = self.text(), self.take("<I")
        shape = self.take(f"<{rank}Q")[::-1]
        return (name, shape, *self.take("<IQ"))


def tokenizer(tokens):
    return {"added_tokens": [{"id": 0, "content": "<s>", "special": True}],
            "pre_tokenizer": {"type": "ByteLevel"},
            "post_processor": None,
            "model": {"type": "BPE", "vocab": {t: i + 1 for i, t in enumerate(tokens)},
                      "merges": [["a", "b"], "c d"]}}


def write_model(path, tokens=BYTES[:20], config=None, **more):
    S.write_llama(path, config={"max_position_embeddings": 64,
                                "tie_word_embeddings": False, **(config or {})}, **more)
    if tokens is not None:
        S.write_json(f"{path}/tokenizer.json", tokenizer(tokens))
        S.write_json(f"{path}/tokenizer_config.json",
                     {"bos_token": "<s>", "add_bos_token": True})
    return path


def to_f32(data):
    """BF16 as F32."""
    out = bytearray(2 * len(data))
    out[2::4], out[3::4] = data[::2], data[1::2]
    return bytes(out)


def permuted(data, heads):
    """Rows of q or k in the order of the file; `data` is a list of rows."""
    size = len(data) // heads
    return [data[h * size + k * (size // 2) + j] for h in range(heads)
            for j in range(size // 2) for k in range(2)]


class Gguf(qfmount.StoreCase):
    def read(self, m, view, name, file=None):
        kind = view.split("+")[0].split("-")[1].upper()
        return Reader(S.read_file(m.path(view, name, file or f"{name.split('/')[-1]}-{kind}.gguf")))

    def test_directory(self):
        write_model(f"{self.store}/org/tiny", shards=3)
        with qfmount.Mount(self.store, views="gguf-q8_0:nf4") as m:
            top = m.path("gguf-q8_0", "org", "tiny")
            self.assertEqual(sorted(os.listdir(top)),
                             ["config.json", "tiny-Q8_0.gguf", "tokenizer.json",
                              "tokenizer_config.json"])
            for name in ("config.json", "tokenizer.json"):
                self.assertEqual(S.read_file(f"{top}/{name}"),
                                 S.read_file(f"{self.store}/org/tiny/{name}"))
            for name in ("model-00001-of-00003.safetensors", "tiny-Q4_0.gguf", "x.gguf",
                         "model.safetensors.index.json"):
                self.assertErrno(["ENOENT"], os.stat, f"{top}/{name}")
            self.assertErrno(["ENOENT"], os.stat,
                             m.path("nf4", "org", "tiny", "tiny-Q8_0.gguf"))
            self.assertEqual(m.status()["chunks_encoded"], 0)
            f = self.read(m, "gguf-q8_0", "org/tiny")
            self.assertEqual(f.pairs["general.architecture"], "llama")
            self.assertEqual(f.pairs["general.name"], "Tiny")
            self.assertEqual(f.pairs["llama.attention.head_count"], 2)
            self.assertEqual(f.pairs["tokenizer.ggml.tokens"][:2], ["<s>", BYTES[0]])
            self.assertEqual(f.pairs["tokenizer.ggml.tokens"][-1], "[PAD31]")
            self.assertEqual(f.pairs["tokenizer.ggml.merges"], ["a b", "c d"])
            self.assertEqual(f.pairs["tokenizer.ggml.bos_token_id"], 0)
            self.assertIs(f.pairs["tokenizer.ggml.add_bos_token"], True)
            self.assertEqual(f.tensors["blk.0.ffn_up.weight"][:2], (Q8_0, (96, 64)))
            self.assertEqual(f.tensors["output_norm.weight"][:2], (F32, (64,)))

    def test_views_by_name(self):
        """They need not be listed, and are not."""
        write_model(f"{self.store}/tiny")
        with qfmount.Mount(self.store) as m:
            self.assertEqual(sorted(os.listdir(m.mnt)), ["dq", "fp4", "int8", "nf4"])
            self.read(m, "gguf-q4_0", "tiny")
            self.assertErrno(["ENOENT"], os.stat, m.path("gguf-q9_0"))
            self.assertErrno(["ENOENT"], os.stat, m.path("gguf-q4_0+blocksize=64"))
            self.assertErrno(["ENOENT"], os.stat, m.path("gguf-q4_0+dtype=float16"))

    def test_rows_of_heads(self):
        """q and k of a llama, copied, cast and quantized, also where a read begins in the
        middle of a row; heads that are read whole, and larger ones."""
        self.check_rows(96, 4)
        self.check_rows(512, 2)

    def check_rows(self, hidden, heads):
        path = write_model(f"{self.store}/tiny", hidden=hidden,
                           config={"num_attention_heads": heads})
        source = S.read_file(f"{path}/model.safetensors")
        header, _, _ = S.read_header(source)
        with qfmount.Mount(self.store, views="gguf-bf16:gguf-f16:gguf-q8_0") as m:
            f = self.read(m, "gguf-bf16", "tiny")
            for letter in "qk":
                _, shape, begin, end = header[f"model.layers.0.self_attn.{letter}_proj.weight"]
                rows = [source[at:at + 2 * shape[1]]
                        for at in range(begin, end, 2 * shape[1])]
                want = b"".join(permuted(rows, heads))
                _, _, begin, end = f.tensors[f"blk.0.attn_{letter}.weight"]
                self.assertEqual(f.data[begin:end], want)
                self.assertNotEqual(b"".join(rows), want)
            _, _, begin, end = header["model.layers.0.self_attn.v_proj.weight"]
            _, _, at, stop = f.tensors["blk.0.attn_v.weight"]
            self.assertEqual(f.data[at:stop], source[begin:end])
            _, _, begin, end = header["model.norm.weight"]
            _, _, at, stop = f.tensors["output_norm.weight"]
            self.assertEqual(f.data[at:stop], to_f32(source[begin:end]))
            for view in ("gguf-bf16", "gguf-f16", "gguf-q8_0"):
                self.check_random(m.path(view, "tiny", f"tiny-{view[5:].upper()}.gguf"))

    def check_random(self, path):
        whole, rng = S.read_file(path), random.Random(3)
        self.assertEqual(os.stat(path).st_size, len(whole))
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            for _ in range(150):
                off, size = rng.randrange(len(whole)), rng.randrange(1, 5000)
                self.assertEqual(os.pread(fd, size, off), whole[off:off + size])
        finally:
            os.close(fd)

    def test_large(self):
        """Several records in a tensor, several shards, read at random before the whole."""
        write_model(f"{self.store}/big", hidden=1024, inter=2048, shards=4)
        for view in ("gguf-q8_0", "gguf-q5_1"):
            with qfmount.Mount(self.store, views=view) as m:
                path = m.path(view, "big", f"big-{view[5:].upper()}.gguf")
                rng, pieces = random.Random(4), {}
                with open(path, "rb", buffering=0) as f:
                    size = os.fstat(f.fileno()).st_size
                    for _ in range(40):
                        off = rng.randrange(size)
                        pieces[off] = os.pread(f.fileno(), 70000, off)
                whole = S.read_file(path)
                Reader(whole)
                for off, piece in pieces.items():
                    self.assertEqual(piece, whole[off:off + 70000])

    def test_tokenizer_changes(self):
        """Another tokenizer, another file: what the old one has open is not mixed."""
        path = write_model(f"{self.store}/tiny")
        with qfmount.Mount(self.store, views="gguf-q8_0", attr_ttl=0) as m:
            name = m.path("gguf-q8_0", "tiny", "tiny-Q8_0.gguf")
            old = Reader(S.read_file(name))
            S.write_json(f"{path}/tokenizer.json", tokenizer(BYTES[:21]))
            new = Reader(S.read_file(name))
            self.assertEqual(old.pairs["tokenizer.ggml.tokens"][21], "[PAD21]")
            self.assertEqual(new.pairs["tokenizer.ggml.tokens"][21], BYTES[20])
            self.assertEqual(os.stat(name).st_size, len(new.data))
            S.write(f"{path}/chat_template.jinja", "{{ messages }}")
            self.assertEqual(Reader(S.read_file(name)).pairs["tokenizer.chat_template"],
                             "{{ messages }}")

    def test_one_shard_changes(self):
        path = write_model(f"{self.store}/tiny", shards=3)
        with qfmount.Mount(self.store, views="gguf-q8_0", attr_ttl=0) as m:
            name = m.path("gguf-q8_0", "tiny", "tiny-Q8_0.gguf")
            old = S.read_file(name)
            time.sleep(0.02)
            changed = f"{path}/model-00002-of-00003.safetensors"
            data = bytearray(S.read_file(changed))
            data[-1] ^= 0x40
            with open(name, "rb", buffering=0) as f:
                S.write(changed, bytes(data))
                os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                self.assertErrno(["ESTALE", "EIO"], os.pread, f.fileno(), len(old), 0)
            new = S.read_file(name)
            self.assertEqual(len(new), len(old))
            self.assertNotEqual(new, old)

    def test_kept(self):
        """What cannot be made passes through whole, and info says why."""
        S.write_gpt2(f"{self.store}/gpt2")
        write_model(f"{self.store}/piece", tokens=None)
        S.write(f"{self.store}/piece/tokenizer.model", "x")
        write_model(f"{self.store}/wordpiece")
        S.write_json(f"{self.store}/wordpiece/tokenizer.json",
                     {"model": {"type": "WordPiece"}})
        write_model(f"{self.store}/scaled", config={"rope_scaling": {"rope_type": "yarn"}})
        write_model(f"{self.store}/broken")
        S.write(f"{self.store}/broken/tokenizer.json", "{")
        write_model(f"{self.store}/many", tokens=BYTES[:40])
        S.write_shard(f"{self.store}/vae/diffusion_pytorch_model.safetensors",
                      [("a.weight", "F32", [32, 32])])
        S.write_json(f"{self.store}/vae/config.json", {"_class_name": "AutoencoderKL"})
        words = {"gpt2": "of a gpt2", "piece": "tokenizer.model", "wordpiece": "byte-level",
                 "scaled": "rope_scaling", "broken": "tokenizer.json", "many": "vocab_size",
                 "vae": "AutoencoderKL"}
        with qfmount.Mount(self.store, views="gguf-q8_0:nf4") as m:
            for name, word in words.items():
                self.assertEqual(sorted(os.listdir(m.path("gguf-q8_0", name))),
                                 sorted(os.listdir(f"{self.store}/{name}")))
                reason = os.getxattr(m.path("gguf-q8_0", name), "user.quantfs.reason")
                self.assertIn(word, reason.decode())
            if os.getxattr(m.path("nf4", "broken"), "user.quantfs.codec") != b"nf4":
                self.fail("a broken tokenizer is no matter of the other views")
        rc, out, _ = qfmount.run("info", "--json", "--views", "gguf-q8_0", self.store)
        self.assertEqual(rc, 0)
        told = {os.path.basename(x["path"]): x["views"][0]["reason"] for x in json.loads(out)}
        for name, word in words.items():
            self.assertIn(word, told[name])

    def test_no_tokenizer(self):
        write_model(f"{self.store}/bare", tokens=None)
        with qfmount.Mount(self.store, views="gguf-f16") as m:
            self.assertEqual(self.read(m, "gguf-f16", "bare").pairs["tokenizer.ggml.model"],
                             "none")

    def test_skip(self):
        write_model(f"{self.store}/tiny", layers=2, hidden=48, inter=64)
        with qfmount.Mount(self.store) as m:
            f = self.read(m, "gguf-q4_0+skip=layers.1:lm_head", "tiny")
            self.assertEqual(f.tensors["blk.0.ffn_down.weight"][0], Q4_0)
            self.assertEqual(f.tensors["blk.1.ffn_down.weight"][0], F32)
            self.assertEqual(f.tensors["output.weight"][0], F32)
            # Rows of 48 elements are no whole number of blocks.
            self.assertEqual(f.tensors["blk.0.ffn_up.weight"][0], F16)
            f = self.read(m, "gguf-q4_0+only=mlp", "tiny")
            self.assertEqual(f.tensors["blk.0.ffn_down.weight"][0], Q4_0)
            self.assertEqual(f.tensors["blk.0.attn_v.weight"][0], F32)

    def test_own_file(self):
        """A file of the user's is never hidden."""
        write_model(f"{self.store}/tiny")
        S.write(f"{self.store}/tiny/tiny-Q8_0.gguf", "mine")
        S.write(f"{self.store}/tiny/lora.safetensors", "not of the model")
        with qfmount.Mount(self.store, views="gguf-q8_0") as m:
            self.assertEqual(S.read_file(m.path("gguf-q8_0", "tiny", "tiny-Q8_0.gguf")),
                             b"mine")
            self.assertEqual(os.listdir(m.path("gguf-q8_0", "tiny")).count("tiny-Q8_0.gguf"),
                             1)
            self.assertIn("lora.safetensors", os.listdir(m.path("gguf-q8_0", "tiny")))

    def test_names(self):
        """A component is called after its directory, a snapshot of the hub's cache after
        its repository."""
        component = f"{self.store}/pipe/transformer"
        S.write_shard(f"{component}/diffusion_pytorch_model.safetensors",
                      [("a.weight", "BF16", [64, 64]), ("a.bias", "BF16", [64]),
                       ("ids", "I64", [3]), ("e.weight", "BF16", [2, 3, 4, 5, 1])])
        S.write_json(f"{component}/config.json", {"_class_name": "FluxTransformer2DModel"})
        write_model(f"{self.store}/models--org--Tiny-1B/snapshots/0123")
        with qfmount.Mount(self.store, views="gguf-q8_0") as m:
            f = self.read(m, "gguf-q8_0", "pipe/transformer")
            self.assertEqual(f.pairs["general.architecture"], "diffusers")
            self.assertEqual({k: v[:2] for k, v in f.tensors.items()},
                             {"a.weight": (Q8_0, (64, 64)), "a.bias": (F32, (64,)),
                              "ids": (27, (3,)), "e.weight": (F32, (2, 3, 4, 5, 1))})
            f = self.read(m, "gguf-q8_0", "models--org--Tiny-1B/snapshots/0123",
                          "Tiny-1B-Q8_0.gguf")
            self.assertEqual(f.pairs["general.name"], "Tiny-1B")

    def test_attributes(self):
        path = write_model(f"{self.store}/tiny", shards=2)
        with qfmount.Mount(self.store, views="gguf-q8_0:gguf-q4_0") as m:
            def get(view, name):
                file = m.path(view, "tiny", f"tiny-{view[5:].upper()}.gguf")
                return os.getxattr(file, f"user.quantfs.{name}").decode()
            self.assertEqual(get("gguf-q8_0", "codec"), "gguf-q8_0")
            self.assertEqual(get("gguf-q8_0", "source"), "tiny")
            self.assertEqual(get("gguf-q8_0", "settings"), "dtype=bfloat16,type=Q8_0")
            sizes = [os.stat(f"{path}/{f}").st_size for f in os.listdir(path)
                     if f.endswith(".safetensors")]
            self.assertEqual(int(get("gguf-q8_0", "size_source")), sum(sizes))
            self.assertNotEqual(get("gguf-q8_0", "key"), get("gguf-q4_0", "key"))

    def test_commands(self):
        """Commands that know shards only say so."""
        write_model(f"{self.store}/tiny")
        out = os.path.join(self.dir, "out")
        rc, _, err = qfmount.run("export", "-q", "--view", "gguf-q8_0",
                                 f"{self.store}/tiny", out)
        self.assertEqual((rc, err), (0, ""))
        Reader(S.read_file(f"{out}/tiny-Q8_0.gguf"))
        rc, _, err = qfmount.run("verify", "--view", "gguf-q8_0", "--against",
                                 f"{self.store}/tiny", out)
        self.assertEqual(rc, 1)
        self.assertIn("GGUF", err)
        rc, _, err = qfmount.run("diff", "-q", "--model", f"{self.store}/tiny",
                                 "gguf-q8_0", "nf4")
        self.assertIn("GGUF files are not compared", err)
        rc, told, _ = qfmount.run("check", "--json", "--view", "gguf-q8_0", self.store)
        self.assertEqual(rc, 0)
        self.assertIn("gguf_file=", told)

    def test_sealed(self):
        """Read whole and closed, it is kept as a file that the kernel reads by itself."""
        write_model(f"{self.store}/big", hidden=1024, inter=2048, shards=2)
        with qfmount.Mount(self.store, views="gguf-q8_0") as m:
            if m.status()["passthrough"] != "on":
                self.skipTest("no passthrough here")
            path = m.path("gguf-q8_0", "big", "big-Q8_0.gguf")
            whole = S.read_file(path)
            end = time.monotonic() + 30
            while m.status()["shards_sealed"] == 0 and time.monotonic() < end:
                time.sleep(0.02)
            before = m.status()
            self.assertEqual(before["shards_sealed"], 1)
            self.assertEqual(S.read_file(path), whole)
            self.assertEqual(m.status()["bytes_served"], before["bytes_served"])
            digest = os.getxattr(path, "user.quantfs.digest")
            self.assertTrue(digest.startswith(b"xxh3:"))

    def test_cache(self):
        """What was warmed is not quantized again; records and sealed files are kept."""
        write_model(f"{self.store}/big", hidden=1024, inter=2048, shards=2)
        cache = os.path.join(self.dir, "cache")
        rc, out, err = qfmount.run("warm", "--json", "-q", "-o", f"cache={cache}", "--view",
                                   "gguf-q8_0", self.store)
        self.assertEqual(rc, 0, err)
        self.assertEqual([m["shards"] for m in json.loads(out)["models"]], [1])
        with qfmount.Mount(self.store, views="gguf-q8_0", cache=cache) as m:
            first = S.read_file(m.path("gguf-q8_0", "big", "big-Q8_0.gguf"))
            self.assertEqual(m.status()["chunks_encoded"], 0)
        with qfmount.Mount(self.store, views="gguf-q8_0") as m:
            self.assertEqual(S.read_file(m.path("gguf-q8_0", "big", "big-Q8_0.gguf")), first)
            self.assertGreater(m.status()["chunks_encoded"], 0)


if __name__ == "__main__":
    sys.exit(qfmount.main())
