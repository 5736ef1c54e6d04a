#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The tree as a user sees it: names, sizes, inodes, links, and that it is read-only."""
import errno
import os
import shutil
import stat
import sys

import qfmount
import qfstore as S

VIEWS = ["dq", "fp4", "int8", "nf4"]
RO = (errno.EROFS, errno.EACCES, errno.EPERM)


def inodes(path):
    out = {}
    for d, names, files in os.walk(path):
        for name in names + files:
            full = os.path.join(d, name)
            out[os.path.relpath(full, path)] = os.lstat(full).st_ino
    return out


class Tree(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/llama", shards=2)
        S.write_llama(f"{self.store}/deep/er/single model ü")
        S.write_gpt2(f"{self.store}/gpt2")
        S.write(f"{self.store}/llama/tokenizer.json", '{"version": "1.0"}')
        S.write(f"{self.store}/llama/README.md", "# read me\n" * 1000)
        S.write(f"{self.store}/llama/pytorch_model.bin", os.urandom(300000))
        S.write(f"{self.store}/llama/empty", b"")
        S.write(f"{self.store}/notes.txt", "not a model")
        os.mkdir(f"{self.store}/empty dir")

    def test_listing(self):
        with qfmount.Mount(self.store) as m:
            self.assertEqual(sorted(os.listdir(m.mnt)), VIEWS)
            want = S.files_below(self.store)
            for view in VIEWS:
                self.assertEqual(S.files_below(m.path(view)), want)
                self.assertEqual(sorted(os.listdir(m.path(view))),
                                 sorted(os.listdir(self.store)))
                self.assertEqual(os.listdir(m.path(view, "empty dir")), [])
            for entry in os.scandir(m.path("nf4", "llama")):
                self.assertTrue(entry.is_file())

    def test_chosen_views(self):
        with qfmount.Mount(self.store, views="nf4:dq") as m:
            self.assertEqual(sorted(os.listdir(m.mnt)), ["dq", "nf4"])
            self.assertErrno([errno.ENOENT], os.stat, m.path("int8"))

    def test_sizes_are_what_can_be_read(self):
        with qfmount.Mount(self.store) as m:
            for view in VIEWS:
                for name in S.files_below(m.path(view)):
                    path = m.path(view, name)
                    size = os.stat(path).st_size
                    data = S.read_file(path)
                    self.assertEqual(len(data), size, path)
                    if name.endswith(".safetensors"):
                        tensors, metadata, end = S.read_header(data)
                        self.assertEqual(end, size, path)
                        self.assertEqual(metadata.get("format"), "pt")
                        self.assertTrue(tensors)

    def test_views_are_quantized(self):
        """A view is smaller, and what was quantized has the parts it should have."""
        part = {"nf4": ".absmax", "fp4": ".absmax", "dq": ".nested_absmax",
                "int8": "_format"}
        with qfmount.Mount(self.store) as m:
            for view in VIEWS:
                path = m.path(view, "deep/er/single model ü/model.safetensors")
                tensors, _, _ = S.read_header(S.read_file(path))
                name = "model.layers.0.mlp.up_proj.weight"
                self.assertIn(name + part[view], tensors)
                self.assertEqual(tensors[name][0], "I8" if view == "int8" else "U8")
                self.assertEqual(tensors["model.norm.weight"][0], "BF16")

    def test_passthrough(self):
        with qfmount.Mount(self.store) as m:
            for view in VIEWS:
                for name in ("llama/tokenizer.json", "llama/README.md", "llama/empty",
                             "llama/pytorch_model.bin", "notes.txt"):
                    self.assertEqual(S.read_file(m.path(view, name)),
                                     S.read_file(f"{self.store}/{name}"), name)

    def test_hidden_status(self):
        with qfmount.Mount(self.store) as m:
            self.assertNotIn(".quantfs", os.listdir(m.mnt))
            self.assertIn("status", os.listdir(m.path(".quantfs")))
            for _ in range(2):
                status = m.status()
                for key in ("version", "chunks_encoded", "source_bytes_read",
                            "cache_hits", "cache_misses", "bytes_served"):
                    self.assertIn(key, status)
            S.read_file(m.path("nf4", "gpt2", "model.safetensors"))
            after = m.status()
            self.assertGreater(after["chunks_encoded"], status["chunks_encoded"])
            self.assertGreater(after["bytes_served"], status["bytes_served"])
            self.assertGreater(after["source_bytes_read"], status["source_bytes_read"])

    def test_read_only(self):
        with qfmount.Mount(self.store) as m:
            where = m.path("nf4/llama")
            file = f"{where}/model-00001-of-00002.safetensors"
            self.assertErrno(RO, open, file, "r+b")
            self.assertErrno(RO, open, file, "ab")
            self.assertErrno(RO, open, f"{where}/new", "wb")
            self.assertErrno(RO, os.mkdir, f"{where}/dir")
            self.assertErrno(RO, os.mkdir, m.path("dir"))
            self.assertErrno(RO, os.unlink, file)
            self.assertErrno(RO, os.rmdir, where)
            self.assertErrno(RO, os.rename, file, f"{where}/other")
            self.assertErrno(RO, os.symlink, "x", f"{where}/link")
            self.assertErrno(RO, os.link, file, f"{where}/hard")
            self.assertErrno(RO, os.truncate, file, 0)
            self.assertErrno(RO, os.chmod, file, 0o777)
            self.assertErrno(RO, os.chown, file, 1, 1)
            self.assertErrno(RO, os.utime, file, (0, 0))
            self.assertErrno(RO, os.mkfifo, f"{where}/fifo")
            self.assertErrno((*RO, errno.ENOTSUP, errno.ENOSYS), os.setxattr, file,
                             "user.x", b"y")
            self.assertEqual(stat.S_IMODE(os.stat(file).st_mode) & 0o222, 0)
            self.assertTrue(os.statvfs(m.mnt).f_flag & os.ST_RDONLY)

    def test_statfs(self):
        with qfmount.Mount(self.store) as m:
            st = os.statvfs(m.path("nf4", "llama"))
            self.assertGreater(st.f_bsize, 0)
            self.assertGreaterEqual(st.f_namemax, 255)
            self.assertLessEqual(st.f_bavail * st.f_frsize,
                                 shutil.disk_usage(self.store).total)

    def test_not_there(self):
        with qfmount.Mount(self.store) as m:
            for path in ("nf9", "nf4/nope", "nf4/llama/nope", "nf4/notes.txt/x",
                         "nf4/" + "x" * 255):
                self.assertErrno([errno.ENOENT, errno.ENOTDIR], os.stat, m.path(path))
            self.assertErrno([errno.ENAMETOOLONG], os.stat, m.path("nf4", "x" * 256))
            self.assertErrno([errno.EISDIR], open, m.path("nf4", "llama"), "rb")
            self.assertErrno([errno.ENOTDIR], os.listdir, m.path("nf4", "notes.txt"))

    def test_inodes(self):
        """64-bit numbers, all different, and the same after a remount."""
        with qfmount.Mount(self.store) as m:
            first = inodes(m.mnt)
        with qfmount.Mount(self.store, cache="none") as m:
            second = inodes(m.mnt)
        self.assertEqual(first, second)
        self.assertEqual(len(set(first.values())), len(first))
        self.assertNotIn(0, first.values())

    def test_find_ls_of_a_directory_by_inode(self):
        """"." and ".." of a listing are the directory and its parent."""
        with qfmount.Mount(self.store) as m:
            where = m.path("nf4", "deep", "er")
            self.assertEqual(os.stat(f"{where}/.").st_ino, os.stat(where).st_ino)
            self.assertEqual(os.stat(f"{where}/..").st_ino,
                             os.stat(m.path("nf4", "deep")).st_ino)


class Links(qfmount.StoreCase):
    def test_links_inside(self):
        """Links that stay in the store are shown as what they point at; a hub cache's
        shard keeps its name and is quantized."""
        model = S.write_llama(f"{self.dir}/model")
        hub = f"{self.store}/hub/models--org--name"
        snapshot = f"{hub}/snapshots/0123abcd"
        os.makedirs(snapshot)
        os.makedirs(f"{hub}/blobs")
        for name in os.listdir(model):
            blob = S.sha256(f"{model}/{name}")
            shutil.copyfile(f"{model}/{name}", f"{hub}/blobs/{blob}")
            os.symlink(f"../../blobs/{blob}", f"{snapshot}/{name}")
        S.write_llama(f"{self.store}/real")
        os.symlink("real", f"{self.store}/alias")
        os.symlink(f"{self.store}/real", f"{self.store}/absolute")
        with qfmount.Mount(self.store) as m:
            for view in VIEWS:
                there = m.path(view, "hub/models--org--name/snapshots/0123abcd")
                self.assertEqual(sorted(os.listdir(there)),
                                 ["config.json", "model.safetensors"])
                path = f"{there}/model.safetensors"
                self.assertTrue(stat.S_ISREG(os.lstat(path).st_mode))
                want = S.read_file(m.path(view, "real", "model.safetensors"))
                self.assertEqual(S.read_file(path), want)
                self.assertNotEqual(want, S.read_file(f"{model}/model.safetensors"))
                for alias in ("alias", "absolute"):
                    self.assertTrue(stat.S_ISDIR(os.lstat(m.path(view, alias)).st_mode))
                    self.assertEqual(S.read_file(m.path(view, alias,
                                                        "model.safetensors")), want)

    def test_links_outside_are_refused(self):
        S.write(f"{self.dir}/secret", "secret")
        os.mkdir(f"{self.dir}/outside")
        S.write(f"{self.dir}/outside/x", "secret")
        S.write_llama(f"{self.store}/model")
        os.symlink("../secret", f"{self.store}/relative")
        os.symlink(f"{self.dir}/secret", f"{self.store}/absolute")
        os.symlink("../outside", f"{self.store}/dir")
        os.symlink("/etc/passwd", f"{self.store}/model/vocab.txt")
        os.symlink("loop", f"{self.store}/loop")
        os.symlink("nowhere", f"{self.store}/dangling")
        with qfmount.Mount(self.store) as m:
            for name in ("relative", "absolute", "dir/x", "loop", "dangling",
                         "model/vocab.txt"):
                with self.assertRaises(OSError, msg=name):
                    S.read_file(m.path("nf4", name))
            os.listdir(m.path("nf4"))
            tensors, _, _ = S.read_header(
                S.read_file(m.path("nf4", "model", "model.safetensors")))
            self.assertIn("model.layers.0.mlp.up_proj.weight.absmax", tensors)


if __name__ == "__main__":
    sys.exit(qfmount.main())
