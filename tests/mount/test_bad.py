#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Damaged and foreign models beside a good one: each passes through byte by byte, with
its config as it is, or stays partly plain where the format says so; the log says it once;
and the mount serves the good model afterwards."""
import json
import os
import struct
import sys

import qfmount
import qfstore as S

VIEWS = ["nf4", "int8", "dq", "fp4"]
UP = "model.layers.0.mlp.up_proj.weight"


def raw(header, data=b"", size=None):
    text = header if isinstance(header, bytes) else header.encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + data


def entry(begin, end, shape="[2,2]", dtype="F32"):
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}'


def one(name, value, data=bytes(16), tail=""):
    return raw(f'{{"{name}":{value}{tail}}}', data)


# What is wrong -> the bytes of model.safetensors.
MALFORMED = {
    "empty file": b"",
    "seven bytes": b"1234567",
    "header past the end": raw("{}", size=1000),
    "header length of 2^64 - 1": raw("{}", size=2**64 - 1),
    "header of no bytes": raw(""),
    "not an object": raw("[1,2,3]"),
    "cut off header": raw('{"a.weight":{"dtype":"F32","shape":[2,'),
    "trailing bytes": one("a.weight", entry(0, 16), bytes(17)),
    "truncated data": one("a.weight", entry(0, 16), bytes(15)),
    "overlap": raw(f'{{"a.weight":{entry(0, 16)},"b.weight":{entry(8, 24)}}}', bytes(24)),
    "gap": raw(f'{{"a.weight":{entry(0, 16)},"b.weight":{entry(24, 40)}}}', bytes(40)),
    "hole at the beginning": one("a.weight", entry(8, 24), bytes(24)),
    "end before begin": one("a.weight", entry(16, 0)),
    "size is not the product": one("a.weight", entry(0, 16, "[2,3]")),
    "product overflows": one("a.weight", entry(0, 16, "[4294967296,4294967296,4]")),
    "offset past 2^64": one("a.weight", entry(0, 18446744073709551632)),
    "negative offset": one("a.weight", entry(-16, 0)),
    "fractional offset": one("a.weight", entry("0.0", "16.0")),
    "unknown dtype": one("a.weight", entry(0, 16, dtype="F31")),
    "no dtype": one("a.weight", '{"shape":[2,2],"data_offsets":[0,16]}'),
    "shape is a number": one("a.weight", entry(0, 16, "4")),
    "duplicate names": raw(f'{{"a.weight":{entry(0, 16)},"a.weight":{entry(16, 32)}}}',
                           bytes(32)),
    "invalid UTF-8": raw(b'{"a\xff.weight":' + entry(0, 16).encode() + b"}", bytes(16)),
    "overlong UTF-8": raw(b'{"a\xc0\xaf.weight":' + entry(0, 16).encode() + b"}",
                          bytes(16)),
    "metadata is a list": one("a.weight", entry(0, 16), tail=',"__metadata__":[]'),
    "metadata of numbers": one("a.weight", entry(0, 16), tail=',"__metadata__":{"a":1}'),
    "deep JSON": raw('{"a":' + "[" * 100000 + "]" * 100000 + "}"),
    "deep metadata": raw('{"__metadata__":' + '{"a":' * 5000 + "1" + "}" * 5000 + "}"),
    "zeros after the JSON": raw('{}\0\0\0\0\0\0'),
    "an LFS pointer": b"version https://git-lfs.github.com/spec/v1\n"
                      b"oid sha256:0123\nsize 1234\n",
    "HTML instead of data": b"<!DOCTYPE html><html>Not found</html>" * 20,
}

# No damage, and so not worth a line in the log.
QUIET = ("an LFS pointer", "incomplete shard")


class Bad(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.good = S.write_llama(f"{self.store}/good")

    def model(self, name, data=None):
        """A model directory like the good one, with other bytes for its weights."""
        path = S.write_llama(f"{self.store}/{name}")
        if data is not None:
            S.write(f"{path}/model.safetensors", data)
        return path

    def assertGood(self, m):
        for view in VIEWS:
            data = S.read_file(m.path(view, "good", "model.safetensors"))
            tensors, _, _ = S.read_header(data)
            self.assertIn(tensors[UP][0], ("U8", "I8"))
            with open(m.path(view, "good", "config.json"), encoding="utf-8") as f:
                self.assertIn("quantization_config", json.load(f))

    def assertPassedThrough(self, m, name, views=VIEWS):
        for view in views:
            want = S.files_below(f"{self.store}/{name}")
            self.assertEqual(S.files_below(m.path(view, name)), want)
            for file in want:
                self.assertTrue(S.read_file(m.path(view, name, file)) ==
                                S.read_file(f"{self.store}/{name}/{file}"),
                                f"{view}/{name}/{file}")

    def test_malformed_shards(self):
        for name, data in MALFORMED.items():
            self.model(f"bad/{name}", data)
        with qfmount.Mount(self.store) as m:
            for name in MALFORMED:
                with self.subTest(name):
                    self.assertPassedThrough(m, f"bad/{name}")
                    lines = [s for s in m.log().splitlines() if f"bad/{name}:" in s]
                    count = 0 if name in QUIET else 1
                    self.assertEqual(len(lines), count, f"log lines: {lines}")
            self.assertGood(m)
            self.assertEqual(m.status()["read_errors"], 0)

    def test_header_limit(self):
        """A header of more than 100 MB, with a file that is large enough for it."""
        path = self.model("huge", raw("{", size=100_000_001))
        os.truncate(f"{path}/model.safetensors", 100_000_100)
        with qfmount.Mount(self.store) as m:
            self.assertEqual(os.stat(m.path("nf4/huge/model.safetensors")).st_size,
                             100_000_100)
            with open(m.path("nf4/huge/config.json"), encoding="utf-8") as f:
                self.assertNotIn("quantization_config", json.load(f))
            self.assertLess(m.status()["header_bytes_read"], 1_000_000)
            self.assertGood(m)

    def test_shard_sets(self):
        """An index whose shards are missing, unfinished or elsewhere: never a mix."""
        def sharded(name):
            return S.write_llama(f"{self.store}/{name}", shards=2)

        def rewrite(path, change):
            file = f"{path}/model.safetensors.index.json"
            with open(file, encoding="utf-8") as f:
                index = json.load(f)
            S.write_json(file, change(index))

        second = "model-00002-of-00002.safetensors"
        os.unlink(f"{sharded('missing shard')}/{second}")
        path = sharded("incomplete shard")
        os.rename(f"{path}/{second}", f"{path}/{second}.incomplete")
        path = sharded("bad second shard")
        S.write(f"{path}/{second}", MALFORMED["overlap"])
        rewrite(sharded("path in the index"), lambda i: {
            **i, "weight_map": {k: "../good/model.safetensors" for k in i["weight_map"]}})
        rewrite(sharded("index of numbers"), lambda i: {
            **i, "weight_map": {k: 7 for k in i["weight_map"]}})
        rewrite(sharded("index without a map"), lambda i: {"metadata": {}})
        S.write(f"{sharded('index is no JSON')}/model.safetensors.index.json", "{")
        names = [n for n in os.listdir(self.store) if n != "good"]
        with qfmount.Mount(self.store) as m:
            for name in names:
                with self.subTest(name):
                    self.assertPassedThrough(m, name)
                    if name not in QUIET:
                        self.assertIn(name, m.log())
            self.assertGood(m)

    def test_configs(self):
        """Configs that cannot be used, and checkpoints that are quantized already."""
        path = self.model("config is no JSON")
        S.write(f"{path}/config.json", '{"model_type": "llama",')
        path = self.model("config is a list")
        S.write(f"{path}/config.json", "[]")
        path = self.model("deep config")
        S.write(f"{path}/config.json", '{"a":' * 100000 + "1" + "}" * 100000)
        path = self.model("no config")
        os.unlink(f"{path}/config.json")
        quantized = {"quant_method": "gptq", "bits": 4}
        S.write_llama(f"{self.store}/gptq", config={"quantization_config": quantized})
        S.write_llama(f"{self.store}/adapter")
        os.rename(f"{self.store}/adapter/config.json",
                  f"{self.store}/adapter/adapter_config.json")
        names = [n for n in os.listdir(self.store) if n != "good"]
        with qfmount.Mount(self.store) as m:
            for name in names:
                with self.subTest(name):
                    self.assertPassedThrough(m, name)
            self.assertGood(m)

    def test_bitsandbytes_checkpoint(self):
        """What a view holds, stored as a model of its own: not quantized again in that
        view, and the source of others."""
        with qfmount.Mount(self.store, cache="none") as m:
            for name in os.listdir(m.path("nf4/good")):
                S.write(f"{self.dir}/saved/{name}", S.read_file(m.path("nf4/good", name)))
        os.rename(f"{self.dir}/saved", f"{self.store}/saved")
        # Its tensors alone show it, too.
        S.write(f"{self.store}/bare/model.safetensors",
                S.read_file(f"{self.store}/saved/model.safetensors"))
        S.write(f"{self.store}/bare/config.json", S.read_file(f"{self.good}/config.json"))
        with qfmount.Mount(self.store) as m:
            self.assertPassedThrough(m, "saved", ["nf4"])
            with open(m.path("int8/saved/config.json"), encoding="utf-8") as f:
                self.assertTrue(json.load(f)["quantization_config"]["load_in_8bit"])
            data = S.read_file(m.path("int8/saved/model.safetensors"))
            self.assertEqual(S.read_header(data)[0][UP][0], "I8")
            with open(m.path("bf16/saved/config.json"), encoding="utf-8") as f:
                self.assertNotIn("quantization_config", json.load(f))
            data = S.read_file(m.path("bf16/saved/model.safetensors"))
            self.assertEqual({t[0] for t in S.read_header(data)[0].values()}, {"BF16"})
            self.assertPassedThrough(m, "bare")
            self.assertGood(m)

    def test_part_name_collision(self):
        """A tensor whose part's name exists already stays plain; the others do not."""
        S.write_llama(f"{self.store}/collision")
        S.write_shard(f"{self.store}/collision/model.safetensors",
                      [*S.llama_tensors(64, 1, "BF16", 96, 32),
                       (UP + ".absmax", "F32", [3])])
        with qfmount.Mount(self.store) as m:
            for view in VIEWS:
                got, _, _ = S.read_header(
                    S.read_file(m.path(view, "collision", "model.safetensors")))
                collides = view != "int8"
                self.assertEqual(got[UP][0], "BF16" if collides else "I8", view)
                self.assertEqual(got[UP + ".absmax"][:2], ("F32", [3]), view)
                other = got["model.layers.0.mlp.gate_proj.weight"]
                self.assertEqual(other[0], "U8" if collides else "I8", view)
            self.assertGood(m)


if __name__ == "__main__":
    sys.exit(qfmount.main())
