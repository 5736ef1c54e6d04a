#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Extended attributes: where a file comes from, how it is quantized, and why not."""
import ctypes
import errno
import json
import os
import time

import qfmount
import qfstore as S

PREFIX = "user.quantfs."
ALL = ["codec", "key", "settings", "size_source", "source"]


def get(path, name):
    return os.getxattr(path, PREFIX + name).decode()


def names(path):
    return sorted(n.removeprefix(PREFIX) for n in os.listxattr(path))


def xxh3(data):
    """As in .digest; the library is one of the program's own."""
    hash64 = ctypes.CDLL("libxxhash.so.0").XXH3_64bits
    hash64.restype, hash64.argtypes = ctypes.c_uint64, (ctypes.c_char_p, ctypes.c_size_t)
    return f"xxh3:{hash64(data, len(data)):016x}"


class Xattr(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/org/model")
        S.write(f"{self.store}/org/model/tokenizer.json", "{}")
        S.write_llama(f"{self.store}/done", config={"quantization_config": {
            "quant_method": "gptq", "bits": 4}})

    def test_shard(self):
        with qfmount.Mount(self.store) as m:
            for view in ("nf4", "fp4", "dq", "int8"):
                path = m.path(view, "org/model/model.safetensors")
                self.assertEqual(names(path), ALL)
                self.assertEqual(get(path, "codec"), view)
                self.assertEqual(get(path, "source"), "org/model/model.safetensors")
                self.assertEqual(int(get(path, "size_source")), os.path.getsize(
                    f"{self.store}/org/model/model.safetensors"))
                settings = dict(s.split("=") for s in get(path, "settings").split(","))
                self.assertEqual(settings["dtype"], "bfloat16")
                self.assertEqual("blocksize" in settings, view != "int8")
            keys = {get(m.path(v, "org/model/model.safetensors"), "key")
                    for v in ("nf4", "fp4", "dq", "int8")}
            self.assertEqual(len(keys), 4)

    def test_key(self):
        """The same after a restart; another one with other settings."""
        path = "nf4/org/model/model.safetensors"
        with qfmount.Mount(self.store) as m:
            key = get(m.path(path), "key")
        with qfmount.Mount(self.store, isa="scalar") as m:
            self.assertEqual(get(m.path(path), "key"), key)
        S.write(f"{self.store}/org/model/quantfs.json",
                json.dumps({"blocksize": 128}))
        with qfmount.Mount(self.store) as m:
            self.assertNotEqual(get(m.path(path), "key"), key)
            self.assertIn("blocksize=128", get(m.path(path), "settings"))

    def test_digest(self):
        """Of texts, and of shards once they are sealed; nothing is encoded for it."""
        name = "nf4/big/model.safetensors"
        S.write_llama(f"{self.store}/big", hidden=1032, inter=2056, vocab=16)
        with qfmount.Mount(self.store, cache=f"{self.dir}/cache") as m:
            for text in ("nf4/big/config.json", "nf4/org/model/config.json"):
                self.assertEqual(get(m.path(text), "digest"),
                                 xxh3(S.read_file(m.path(text))))
                self.assertIn("digest", names(m.path(text)))
            self.assertErrno([errno.ENODATA], get, m.path(name), "digest")
            self.assertNotIn("digest", names(m.path(name)))
            self.assertErrno([errno.ENODATA], get, m.path("nf4/done/model.safetensors"),
                             "digest")
            self.assertEqual(m.status()["chunks_encoded"], 0)
            data = S.read_file(m.path(name))
            if m.status()["passthrough"] != "on":
                return
            end = time.monotonic() + 120
            while m.status()["shards_sealed"] == 0:
                self.assertLess(time.monotonic(), end)
                time.sleep(0.05)
            self.assertEqual(get(m.path(name), "digest"), xxh3(data))
            self.assertIn("digest", names(m.path(name)))

    def test_passes_through(self):
        with qfmount.Mount(self.store) as m:
            for path in ("org/model/tokenizer.json", "done/model.safetensors"):
                self.assertEqual(names(m.path("nf4", path)), ["source"])
                self.assertEqual(get(m.path("nf4", path), "source"), path)
            self.assertEqual(get(m.path("nf4/org/model"), "codec"), "nf4")
            self.assertIn("quantized", get(m.path("nf4/done"), "reason"))
            for path, name in (("nf4/done", "codec"), ("nf4/org/model", "reason"),
                               ("nf4/org", "codec"), ("nf4", "reason"),
                               ("nf4/done/model.safetensors", "key")):
                self.assertErrno([errno.ENODATA], get, m.path(path), name)
            self.assertEqual(os.listxattr(m.path("nf4/org/model")), [])

    def test_other_names(self):
        with qfmount.Mount(self.store) as m:
            path = m.path("nf4/org/model/model.safetensors")
            self.assertErrno([errno.ENODATA], os.getxattr, path, "user.other")
            for name in ("security.capability", "system.posix_acl_access"):
                self.assertErrno([errno.EOPNOTSUPP, errno.ENODATA], os.getxattr, path,
                                 name)
            self.assertErrno([errno.EROFS, errno.EOPNOTSUPP], os.setxattr, path,
                             PREFIX + "codec", b"x")
            self.assertErrno([errno.EROFS, errno.EOPNOTSUPP], os.removexattr, path,
                             PREFIX + "codec")

    def test_warm_skips(self):
        """quantfs warm knows by them what is not encoded."""
        with qfmount.Mount(self.store, views="nf4") as m:
            rc, out, err = qfmount.run("warm", "--json", "-q", m.mnt)
            self.assertEqual((rc, err), (0, ""))
            self.assertEqual([x["path"] for x in json.loads(out)["models"]],
                             [m.path("nf4/org/model")])


if __name__ == "__main__":
    qfmount.main()
