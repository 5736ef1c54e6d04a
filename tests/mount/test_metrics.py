#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""MNT/.quantfs/metrics: what a strict reader of the format takes, and numbers that move
with what was done."""
import math
import os
import re
import time

import qfmount
import qfstore as S

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\["\\n])*)"(?:,|$)')


def unescape(text):
    return re.sub(r"\\(.)", lambda m: "\n" if m[1] == "n" else m[1], text)


def parse(text):
    """({(name, labels): value}, {family: type}); ValueError for what is not the format."""
    samples, types, family = {}, {}, None
    if not text.endswith("\n"):
        raise ValueError("no line end at the end")
    for line in text.splitlines():
        if match := re.fullmatch(rf"# HELP ({NAME}) (.+)", line):
            family = match[1]
            if family in types:
                raise ValueError(f"{family} twice")
        elif match := re.fullmatch(rf"# TYPE ({NAME}) (counter|gauge|histogram)", line):
            if match[1] != family:
                raise ValueError(f"TYPE without HELP: {line}")
            types[family] = match[2]
        else:
            match = re.fullmatch(rf"({NAME})(?:\{{(.*)\}})? (\S+)", line)
            if not match:
                raise ValueError(line)
            name, rest = match[1], match[2] or ""
            base = name
            if types[family] == "histogram":
                base = re.sub("_(bucket|sum|count)$", "", name)
            if base != family:
                raise ValueError(f"{line}: not of {family}")
            labels, at = {}, 0
            while at < len(rest):
                label = LABEL.match(rest, at)
                if not label:
                    raise ValueError(line)
                labels[label[1]] = unescape(label[2])
                at = label.end()
            key = (name, frozenset(labels.items()))
            if key in samples:
                raise ValueError(f"{line}: twice")
            samples[key] = float(match[3])
    return samples, types


class Metrics(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/model", hidden=128, inter=512)
        S.write(f"{self.store}/notes.txt", "n" * 5000)

    def read(self, m):
        with open(m.path(".quantfs", "metrics"), encoding="utf-8") as f:
            self.text = f.read()
        self.samples, self.types = parse(self.text)

    def get(self, name, **labels):
        return self.samples[("quantfs_" + name, frozenset(labels.items()))]

    def get_bytes(self):
        return {k: self.get("bytes_served_total", **{"from": k}) for k in
                ("memory", "cache", "encoded", "source", "sealed")}

    def wait_for_sum(self, m, kind):
        """Counted when the reply has been written: the reader may be faster."""
        end = time.monotonic() + 30
        while self.get("request_seconds_sum", kind=kind) == 0:
            self.assertLess(time.monotonic(), end, kind)
            self.read(m)

    def test_format(self):
        with qfmount.Mount(self.store) as m:
            S.read_file(m.path("nf4/model/model.safetensors"))
            self.read(m)
            self.assertTrue(all(v >= 0 and math.isfinite(v)
                                for v in self.samples.values()))
            for kind in ("lookup", "open", "read"):
                counts = sorted(
                    (float(dict(labels)["le"]), v) for (name, labels), v in
                    self.samples.items() if name == "quantfs_request_seconds_bucket"
                    and dict(labels)["kind"] == kind)
                self.assertEqual(len(counts), 20)
                self.assertEqual((counts[0][0], counts[-2][0]), (1e-5, 10))
                self.assertEqual([v for _, v in counts], sorted(v for _, v in counts))
                self.assertEqual(counts[-1][1],
                                 self.get("request_seconds_count", kind=kind))
                self.wait_for_sum(m, kind)
            for name, kind in self.types.items():
                self.assertEqual(kind == "counter", name.endswith("_total"), name)

    def test_label(self):
        """A store's name that the format must escape."""
        store = os.path.join(self.dir, 'st"o\\re')
        S.write_llama(f"{store}/model")
        with qfmount.Mount(store) as m:
            self.read(m)
            infos = [dict(labels) for name, labels in self.samples
                     if name == "quantfs_build_info"]
            self.assertEqual([i["store"] for i in infos], [store])

    def test_hidden(self):
        with qfmount.Mount(self.store) as m:
            self.assertNotIn(".quantfs", os.listdir(m.mnt))
            self.assertEqual(sorted(os.listdir(m.path(".quantfs"))),
                             ["metrics", "status"])
            self.assertEqual(os.stat(m.path(".quantfs/metrics")).st_mode, 0o100444)

    def served(self, m, *paths):
        """Bytes by source that reading these files has added."""
        self.read(m)
        before = self.get_bytes()
        before["memory"] += len(self.text.encode())
        sizes = [len(S.read_file(m.path(path))) for path in paths]
        self.read(m)
        after = self.get_bytes()
        return {k: after[k] - before[k] for k in after}, sizes

    def test_bytes(self):
        """Each byte of a reply is counted once, where it came from."""
        path = "dq/model/model.safetensors"  # its nested absmax is never made ahead
        cache = f"{self.dir}/kept"
        with qfmount.Mount(self.store, cache=cache, passthrough="off") as m:
            got, (size,) = self.served(m, path)
            self.assertEqual(sum(got.values()), size)
            self.assertEqual(m.status()["bytes_served"], size)
            self.assertGreater(got["encoded"], 0)
            self.assertGreater(got["source"], 0)  # the embedding
            self.assertGreater(got["memory"], 0)  # the header
            self.assertEqual((got["cache"], got["sealed"]), (0, 0))
            self.assertEqual(self.get("chunks_encoded_total", backend=self.backend()),
                             m.status()["chunks_encoded"])
            got, (size,) = self.served(m, "nf4/notes.txt")
            self.assertEqual((got["source"], sum(got.values())), (size, size))
            got, (size,) = self.served(m, "nf4/model/config.json")
            self.assertEqual((got["memory"], sum(got.values())), (size, size))
        with qfmount.Mount(self.store, cache=cache, passthrough="off") as m:
            got, (size,) = self.served(m, path)
            self.assertEqual(sum(got.values()), size)
            self.assertEqual(got["encoded"], 0)
            self.assertGreater(got["cache"], 0)
            self.assertGreater(self.get("cache_hits_total"), 0)
            self.assertEqual(self.get("cache_hits_total"), m.status()["cache_hits"])
            self.assertEqual(self.get("chunks_encoded_total", backend=self.backend()), 0)

    def backend(self):
        (name,) = [dict(labels)["backend"] for name, labels in self.samples
                   if name == "quantfs_chunks_encoded_total"]
        self.assertIn(name, ("scalar", "avx2", "avx512"))
        return name

    def test_requests(self):
        self.check_requests("auto")

    def test_requests_without_passthrough(self):
        self.check_requests("off")

    def check_requests(self, passthrough):
        with qfmount.Mount(self.store, passthrough=passthrough) as m:
            self.read(m)
            before = {k: self.get("requests_total", kind=k) for k in
                      ("lookup", "open", "read", "release")}
            for name in ("gone", "gone too"):
                self.assertErrno([2], os.stat, m.path("nf4", name))
            S.read_file(m.path("nf4/model/model.safetensors"))
            S.read_file(m.path("nf4/notes.txt"))
            # counted when the reply has been written: the reader may be faster
            end = time.monotonic() + 30
            while True:
                self.read(m)
                if self.get("requests_total", kind="read") == \
                        self.get("request_seconds_count", kind="read"):
                    break
                self.assertLess(time.monotonic(), end)
            self.assertGreaterEqual(
                self.get("requests_total", kind="open") - before["open"], 3)
            self.assertGreater(self.get("requests_total", kind="read"), before["read"])
            # an error of a lookup is told by negative entries, or by its errno
            self.assertGreaterEqual(
                self.get("requests_total", kind="lookup") - before["lookup"], 4)
            self.assertGreaterEqual(
                self.get("request_errors_total", kind="lookup", errno="ENOENT"), 2)

    def test_open_files(self):
        with qfmount.Mount(self.store, passthrough="off") as m:
            self.read(m)
            self.assertEqual(self.get("open_files"), 0)
            with open(m.path("nf4/notes.txt"), "rb"), \
                    open(m.path("nf4/model/model.safetensors"), "rb"):
                end = time.monotonic() + 30
                self.read(m)  # an earlier file's release may still be on its way
                while self.get("open_files") != 2:
                    self.assertLess(time.monotonic(), end)
                    self.read(m)


if __name__ == "__main__":
    qfmount.main()
