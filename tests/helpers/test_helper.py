#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What mount.quantfs makes of the arguments that mount(8) gives it: with a quantfs that
only writes down how it was called, and with the real one that mounts nothing."""
import os
import shutil
import subprocess
import tempfile
import unittest

HELPER = os.environ["QUANTFS_HELPER"]
QUANTFS = os.environ["QUANTFS_BIN"]


class Helper(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="quantfs-helper-")
        self.addCleanup(shutil.rmtree, self.dir)
        for name in ("sbin", "bin", "path", "store", "mnt"):
            os.mkdir(f"{self.dir}/{name}")
        self.helper = shutil.copy(HELPER, f"{self.dir}/sbin/mount.quantfs")

    def install(self, where="bin", code=0):
        """A quantfs whose arguments come back from call()."""
        with open(f"{self.dir}/{where}/quantfs", "w", encoding="utf-8") as f:
            f.write(f'#!/bin/sh\nprintf "%s\\n" "$0" "$@" > {self.dir}/called\nexit {code}\n')
        os.chmod(f"{self.dir}/{where}/quantfs", 0o755)

    def call(self, *args, code=0):
        """(how quantfs was called, stdout, stderr)"""
        done = subprocess.run([self.helper, *args], capture_output=True, timeout=60,
                              text=True, env={"PATH": f"{self.dir}/path:/usr/bin:/bin"})
        self.assertEqual(done.returncode, code, (args, done.stderr))
        called = None
        if os.path.exists(f"{self.dir}/called"):
            with open(f"{self.dir}/called", encoding="utf-8") as f:
                called = f.read().splitlines()
            os.remove(f"{self.dir}/called")
        return called, done.stdout, done.stderr

    def test_arguments(self):
        self.install()
        program = f"{self.dir}/bin/quantfs"
        end = ["--", "/s", "/m"]
        for given, wanted in (
                ([], []),
                (["-o", "rw"], ["-o", "rw"]),
                (["-n", "-o", "rw,views=nf4", "-t", "fuse.quantfs"],
                 ["-o", "rw,views=nf4"]),
                (["-nf"], ["--dry-run"]),
                (["-s", "-o", "rw,uid=3"], ["-o", "sloppy", "-o", "rw,uid=3"]),
                (["-o", "a", "-o", "b"], ["-o", "a", "-o", "b"])):
            called, out, err = self.call("/s", "/m", *given)
            self.assertEqual(called, [program, "mount", *wanted, *end])
            self.assertEqual((out, err), ("", ""))
            called, _, _ = self.call(*given, "/s", "/m")
            self.assertEqual(called, [program, "mount", *wanted, *end])
        called, out, _ = self.call("/s", "/m", "-v", "-o", "rw")
        self.assertEqual(out.split(), called)
        called, _, _ = self.call("--", "-s", "-m")
        self.assertEqual(called, [program, "mount", "--", "-s", "-m"])

    def test_where_quantfs_is(self):
        self.install("path")
        self.assertEqual(self.call("/s", "/m")[0][0], f"{self.dir}/path/quantfs")
        self.install("bin")
        self.assertEqual(self.call("/s", "/m")[0][0], f"{self.dir}/bin/quantfs")
        link = f"{self.dir}/path/mount.fuse.quantfs"
        os.symlink(self.helper, link)
        self.helper = link
        self.assertEqual(self.call("/s", "/m")[0][0], f"{self.dir}/bin/quantfs")

    def test_codes(self):
        for code in (0, 1, 2, 32):
            self.install(code=code)
            self.call("/s", "/m", code=code)
        os.remove(f"{self.dir}/bin/quantfs")
        _, _, err = self.call("/s", "/m", code=2)
        self.assertIn("is quantfs installed?", err)

    def test_usage(self):
        self.install()
        for args, word in (([], "mountpoint"), (["/s"], "mountpoint"),
                           (["/s", "/m", "more"], "mountpoint"), (["-x", "/s", "/m"], "-x"),
                           (["/s", "/m", "-o"], "-o"),
                           (["/s", "/m"] + ["-o", "rw"] * 17, "too many")):
            called, out, err = self.call(*args, code=1)
            self.assertEqual((called, out), (None, ""), args)
            self.assertIn(word, err.splitlines()[0])
            self.assertIn("usage: mount.quantfs", err)
        for args in (["-h"], ["--help"], ["-V"], ["--version"]):
            called, out, err = self.call(*args)
            self.assertEqual((called, err), (None, ""))
            self.assertIn("mount.quantfs", out)

    def test_namespace(self):
        self.install()
        called, _, err = self.call("/s", "/m", "-N", "/proc/nothing", code=2)
        self.assertIsNone(called)
        self.assertIn("/proc/nothing", err)

    def real(self, *args, code=0, store="store"):
        os.path.exists(f"{self.dir}/bin/quantfs") or os.symlink(
            QUANTFS, f"{self.dir}/bin/quantfs")
        return self.call(f"{self.dir}/{store}", f"{self.dir}/mnt", *args, code=code)[2]

    def test_fake(self):
        """mount -f: whether it would do, and nothing is mounted."""
        self.assertEqual(self.real("-f", "-o", "rw,views=nf4"), "")
        self.assertIn("nf5", self.real("-f", "-o", "views=nf5", code=1))
        self.assertIn("nowhere", self.real("-f", store="nowhere", code=2))
        self.assertFalse(os.path.ismount(f"{self.dir}/mnt"))

    def test_words_of_fstab(self):
        """What mount(8) of util-linux 2.38 hands on."""
        words = ("rw,ro,noexec,nosuid,nodev,exec,suid,dev,noatime,nofail,_netdev,user,users,"
                 "user=alice,owner,group,uhelper=x,helper=y,x-systemd.automount,X-mount.mkdir,"
                 "x-systemd.requires=a.mount,comment=hello,defaults,noauto")
        self.assertEqual(self.real("-f", "-o", words), "")
        self.assertIn("remount", self.real("-f", "-o", "remount,ro", code=1))

    def test_sloppy(self):
        self.assertIn("'uid'", self.real("-f", "-o", "rw,uid=3", code=1))
        self.assertEqual(self.real("-f", "-s", "-o", "rw,uid=3,mand"), "")
        self.assertIn("nf5", self.real("-f", "-s", "-o", "rw,views=nf5", code=1))


if __name__ == "__main__":
    unittest.main(verbosity=2)
