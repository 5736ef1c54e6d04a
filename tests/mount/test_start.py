#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Starting and ending: an error is a sentence at the prompt and an exit status, the
daemon is ready when the command returns, and a busy mount is not torn down."""
import os
import subprocess
import sys

import qfmount
import qfstore as S


def trouble(stderr):
    """What stderr holds besides information."""
    return [s for s in stderr.splitlines() if ": info: " not in s]


class Start(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/model")
        self.mnt = os.path.join(self.dir, "mnt")
        os.mkdir(self.mnt)

    def refused(self, word, *args):
        """The command fails with a sentence that names `word`; nothing is mounted."""
        for extra in ((), ("-f",)):
            rc, out, err = qfmount.run("mount", *extra, *args)
            self.assertNotEqual(rc, 0, args)
            self.assertLess(rc, 128, args)
            self.assertIn(word, err, args)
            self.assertLessEqual(len(err.splitlines()), 3, err)
            self.assertEqual(out, "")
            self.assertFalse(qfmount.mounted(self.mnt))

    def test_missing_store(self):
        self.refused("nowhere", f"{self.dir}/nowhere", self.mnt)

    def test_store_is_a_file(self):
        S.write(f"{self.dir}/file", "x")
        self.refused(f"{self.dir}/file", f"{self.dir}/file", self.mnt)

    def test_missing_mountpoint(self):
        self.refused("no-mnt", self.store, f"{self.dir}/no-mnt")

    def test_mountpoint_is_a_file(self):
        S.write(f"{self.dir}/file", "x")
        self.refused(f"{self.dir}/file", self.store, f"{self.dir}/file")

    def test_mountpoint_in_the_store(self):
        os.mkdir(f"{self.store}/mnt")
        self.refused(f"{self.store}/mnt", self.store, f"{self.store}/mnt")

    def test_bad_options(self):
        for option, word in (("views=nf5", "nf5"), ("views=", "views"),
                             ("views=nf4:nf5", "nf5"), ("nonsense", "nonsense"),
                             ("nonsense=1", "nonsense"), ("cache_size=many", "cache_size"),
                             ("cache_size=-1", "cache_size"), ("cache_size=1X",
                                                              "cache_size"),
                             ("threads=0x", "threads"), ("threads=-3", "threads"),
                             ("isa=mmx", "mmx")):
            with self.subTest(option):
                self.refused(word, "-o", option, self.store, self.mnt)

    def test_bad_arguments(self):
        for args in ((), (self.store,), (self.store, self.mnt, "more"),
                     ("--nonsense", self.store, self.mnt)):
            rc, out, err = qfmount.run("mount", *args)
            self.assertNotEqual(rc, 0)
            self.assertTrue(err)
            self.assertEqual(out, "")
        for args in ((), ("nonsense",)):
            rc, _, err = qfmount.run(*args)
            self.assertNotEqual(rc, 0)
            self.assertTrue(err)

    def test_help_and_version(self):
        for args in (("--help",), ("mount", "--help"), ("--version",)):
            rc, out, err = qfmount.run(*args)
            self.assertEqual((rc, err), (0, ""), args)
            self.assertIn("quantfs", out)

    def test_daemon(self):
        """Without -f: mounted and served when the command returns."""
        with qfmount.Mount(self.store, daemon=True) as m:
            self.assertEqual(m.process.poll(), 0)
            self.assertEqual(trouble(m.log()), [])
            path = m.path("nf4/model/model.safetensors")
            S.read_header(S.read_file(path))
            self.assertNotEqual(m.status().get("pid"), m.process.pid)
            with open("/proc/self/mounts", encoding="utf-8") as f:
                line = next(s for s in f if s.split()[1] == m.mnt)
            self.assertIn("quantfs", line.split()[2])
            self.assertIn("ro", line.split()[3].split(","))

    def test_daemon_lets_go(self):
        """The daemon keeps neither the caller's pipe nor its directory."""
        opts = f"cache={self.dir}/cache"
        done = subprocess.run([qfmount.binary(), "mount", "-o", opts, self.store, self.mnt],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                              cwd=self.dir)
        try:
            # run() would have waited for ever, had the daemon kept the pipe open.
            self.assertEqual((done.returncode, trouble(done.stderr.decode())), (0, []))
        finally:
            rc, _, err = qfmount.run("umount", self.mnt)
        self.assertEqual((rc, err), (0, ""))

    def test_relative_paths(self):
        opts = f"cache={self.dir}/cache"
        done = subprocess.run([qfmount.binary(), "mount", "-o", opts, "store", "mnt"],
                              stdin=subprocess.DEVNULL, capture_output=True, timeout=60,
                              cwd=self.dir)
        self.assertEqual((done.returncode, trouble(done.stderr.decode())), (0, []))
        try:
            S.read_header(S.read_file(f"{self.mnt}/nf4/model/model.safetensors"))
        finally:
            done = subprocess.run([qfmount.binary(), "umount", "mnt"], cwd=self.dir,
                                  capture_output=True, timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_mounted_twice(self):
        """The same store in two places, and with one cache directory for both."""
        with qfmount.Mount(self.store) as a:
            with qfmount.Mount(self.store, cache=a.cache) as b:
                for view in ("nf4", "dq"):
                    self.assertEqual(S.digest_tree(a.path(view)),
                                     S.digest_tree(b.path(view)))

    def test_mountpoint_in_use(self):
        with qfmount.Mount(self.store) as m:
            rc, _, err = qfmount.run("mount", "-o", "cache=none", self.store, m.mnt)
            self.assertNotEqual(rc, 0)
            self.assertIn("already", err)
            self.assertIn(self.store, err)

    def test_unusable_cache(self):
        """Cache trouble is never an error of a read."""
        S.write(f"{self.dir}/file", "x")
        with qfmount.Mount(self.store, cache=f"{self.dir}/file/cache") as m:
            S.read_header(S.read_file(m.path("nf4/model/model.safetensors")))
            self.assertTrue(trouble(m.log()))

    def test_damaged_cache(self):
        cache = f"{self.dir}/cache"
        with qfmount.Mount(self.store, cache=cache) as m:
            want = S.digest_tree(m.mnt)
        for name in S.files_below(cache):
            path = os.path.join(cache, name)
            size = os.path.getsize(path)
            with open(path, "r+b") as f:
                for off in range(0, size, 4096):
                    f.seek(off)
                    f.write(b"damage!!")
        with qfmount.Mount(self.store, cache=cache) as m:
            self.assertEqual(S.digest_tree(m.mnt), want)

    def test_umount_busy(self):
        with qfmount.Mount(self.store) as m:
            with open(m.path("nf4/model/model.safetensors"), "rb"):
                rc, _, err = qfmount.run("umount", m.mnt)
                self.assertNotEqual(rc, 0)
                self.assertIn(m.mnt, err)
                self.assertIn("busy", err.lower())
                self.assertTrue(qfmount.mounted(m.mnt))
                self.assertGreater(len(os.listdir(m.mnt)), 0)
            m.unmount()

    def test_umount_of_what_is_not_mounted(self):
        for path in (self.mnt, f"{self.dir}/nowhere"):
            rc, _, err = qfmount.run("umount", path)
            self.assertNotEqual(rc, 0)
            self.assertIn(path, err)

    def test_sigterm(self):
        with qfmount.Mount(self.store) as m:
            S.read_file(m.path("nf4/model/model.safetensors"))
            m.process.terminate()
            self.assertEqual(m.process.wait(60), 0)
            self.assertFalse(qfmount.mounted(m.mnt))


class Info(qfmount.StoreCase):
    def test_info(self):
        S.write_llama(f"{self.store}/model")
        rc, out, err = qfmount.run("info", f"{self.store}/model")
        self.assertEqual((rc, err), (0, ""))
        for word in ("nf4", "int8", "dq", "fp4"):
            self.assertIn(word, out)
        rc, out, err = qfmount.run("info", f"{self.store}/nowhere")
        self.assertNotEqual(rc, 0)
        self.assertIn("nowhere", err)

    def test_demo(self):
        """The demo model is written, is whole, and becomes views."""
        rc, _, err = qfmount.run("demo", f"{self.store}/demo")
        self.assertEqual((rc, err), (0, ""))
        rc, _, err = qfmount.run("demo", f"{self.store}/demo")
        self.assertNotEqual(rc, 0)
        self.assertIn("not empty", err)
        total = 0
        for i in (1, 2):
            data = S.read_file(f"{self.store}/demo/model-0000{i}-of-00002.safetensors")
            tensors, _, end = S.read_header(data)
            self.assertEqual(end, len(data))
            total += sum(S.count_of(t[1]) for t in tensors.values())
        self.assertGreater(total, 20_000_000)
        with qfmount.Mount(self.store, views="nf4") as m:
            path = m.path("nf4/demo/model-00001-of-00002.safetensors")
            self.assertLess(os.stat(path).st_size, 15_000_000)
            S.read_header(S.read_file(path))


if __name__ == "__main__":
    sys.exit(qfmount.main())
