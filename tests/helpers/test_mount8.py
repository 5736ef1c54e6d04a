#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The real mount(8): mount -t, mount -a from an fstab, as a user, in another namespace;
umount."""
import os
import shutil
import stat
import subprocess

import installed
from installed import qfmount, sh
import qfstore as S


def mounts(path):
    """(source, type, options) of what is mounted on path, one over the other."""
    with open("/proc/self/mounts", encoding="utf-8") as f:
        rows = [line.split() for line in f]
    return [(r[0], r[2], r[3].split(",")) for r in rows if r[1] == path]


class Mount8(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o755)
        S.write_llama(f"{self.store}/model")
        self.mnt = f"{self.dir}/mnt"
        os.mkdir(self.mnt)
        self.options = f"cache={self.dir}/cache"
        self.addCleanup(qfmount.detach, self.mnt)

    def unmounted(self, *command):
        sh(*(command or ("umount", self.mnt)))
        self.assertEqual(mounts(self.mnt), [])

    def served(self, path=None):
        data = S.read_file(f"{path or self.mnt}/nf4/model/model.safetensors")
        self.assertIn("lm_head.weight", S.read_header(data)[0])

    def test_types(self):
        for kind in ("quantfs", "fuse.quantfs"):
            sh("mount", "-t", kind, self.store, self.mnt, "-o", self.options)
            source, seen, options = mounts(self.mnt)[0]
            self.assertEqual((source, seen), (self.store, "fuse.quantfs"))
            self.assertIn("ro", options)
            self.served()
            self.unmounted()

    def test_options_reach_the_daemon(self):
        sh("mount", "-t", "quantfs", self.store, self.mnt, "-o",
           f"{self.options},views=nf4,noexec,nosuid,fsname=models,x-systemd.automount")
        source, _, options = mounts(self.mnt)[0]
        self.assertEqual(source, "models")
        self.assertLessEqual({"noexec", "nosuid"}, set(options))
        self.assertEqual(sorted(os.listdir(self.mnt)), ["nf4"])
        self.unmounted()

    def test_errors(self):
        """mount(8) hands on the sentence and the code."""
        _, err = sh("mount", "-t", "quantfs", f"{self.dir}/nowhere", self.mnt, "-o",
                    self.options, code=2)
        self.assertIn("nowhere", err)
        _, err = sh("mount", "-t", "quantfs", self.store, self.mnt, "-o", "views=nf5",
                    code=1)
        self.assertIn("nf5", err)
        _, err = sh("mount", "-t", "quantfs", self.store, f"{self.dir}/no", code=2)
        self.assertIn(f"{self.dir}/no", err)
        self.assertEqual(mounts(self.mnt), [])

    def test_fake_sloppy_verbose(self):
        sh("mount", "-f", "-t", "quantfs", self.store, self.mnt)
        self.assertEqual(mounts(self.mnt), [])
        out, _ = sh("mount", "-s", "-v", "-n", "-t", "quantfs", self.store, self.mnt, "-o",
                    f"{self.options},uid=3")
        self.assertIn("/usr/bin/quantfs mount -o sloppy", out)
        self.served()
        self.unmounted()

    def fstab(self, *rows):
        path = f"{self.dir}/fstab"
        S.write(path, "".join(f"{row} 0 0\n" for row in rows))
        return path

    def test_fstab(self):
        """mount -a: what is there is mounted, once; what may fail does not fail it."""
        second = f"{self.dir}/second"
        third = f"{self.dir}/third"
        os.mkdir(second)
        os.mkdir(third)
        self.addCleanup(qfmount.detach, second)
        table = self.fstab(
            f"{self.store} {self.mnt} quantfs defaults,nofail,_netdev,{self.options},"
            "x-systemd.requires-mounts-for=/x,views=nf4:int8",
            f"{self.store} {second} fuse.quantfs noauto,{self.options}",
            f"{self.dir}/nowhere {third} quantfs nofail,noauto,{self.options}")
        for _ in range(2):
            sh("mount", "-a", "-T", table)
            self.assertEqual(len(mounts(self.mnt)), 1)
            self.assertEqual(mounts(second), [])
        self.served()
        sh("mount", "-T", table, second)
        self.served(second)
        sh("umount", second)
        self.unmounted()
        sh("mount", "-T", table, third, code=2)

    def test_remount(self):
        sh("mount", "-t", "quantfs", self.store, self.mnt, "-o", self.options)
        _, err = sh("mount", "-o", "remount,ro", self.mnt, "-t", "quantfs", self.store,
                    code=1)
        self.assertIn("cannot be remounted", err)
        self.served()
        self.unmounted()

    def test_user(self):
        """A line with `user`: anybody mounts it, as himself, and unmounts it."""
        if not shutil.which("fusermount3"):
            self.skipTest("no fusermount3")
        os.chown(self.mnt, 65534, 65534)
        table = self.fstab(f"{self.store} {self.mnt} quantfs noauto,user,cache=none")
        if not os.path.exists("/etc/fstab"):
            S.write("/etc/fstab", "")
        device = f"{self.dir}/fuse"
        os.mknod(device, 0o666 | stat.S_IFCHR, os.stat("/dev/fuse").st_rdev)
        os.chmod(device, 0o666)
        for source, target in ((table, "/etc/fstab"), (device, "/dev/fuse")):
            sh("mount", "--bind", source, target)
            self.addCleanup(sh, "umount", "-l", target)
        nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
        sh(*nobody, "mount", self.mnt)
        _, kind, options = mounts(self.mnt)[0]
        self.assertEqual(kind, "fuse.quantfs")
        self.assertLessEqual({"user_id=65534", "nosuid", "nodev", "noexec"}, set(options))
        out, _ = sh(*nobody, "cat", f"{self.mnt}/.quantfs/status")
        self.assertIn("pid=", out)
        self.unmounted(*nobody, "umount", self.mnt)

    def test_other_namespace(self):
        """mount -N: the helper is started here and mounts there."""
        if subprocess.run(["nsenter", "--mount=/proc/self/ns/mnt", "test", "-e", self.dir],
                          check=False).returncode != 0:
            self.skipTest("in a chroot: entering a namespace leaves it")
        with subprocess.Popen(["unshare", "-m", "sleep", "60"]) as other:
            try:
                while os.readlink(f"/proc/{other.pid}/ns/mnt") == os.readlink(
                        "/proc/self/ns/mnt"):
                    pass
                sh("mount", "-N", str(other.pid), "-t", "quantfs", self.store, self.mnt,
                   "-o", self.options)
                self.assertEqual(mounts(self.mnt), [])
                out, _ = sh("nsenter", "-t", str(other.pid), "-m", "ls", self.mnt)
                self.assertIn("nf4", out)
                sh("umount", "-N", str(other.pid), self.mnt)
            finally:
                other.kill()


if __name__ == "__main__":
    installed.main()
