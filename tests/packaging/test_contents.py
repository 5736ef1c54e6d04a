#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What is in the .deb and the .tar.gz (and the .rpm where rpmbuild is there), what the .deb
needs, and what lintian says where it is there."""
import os
import re
import shutil
import tempfile
import unittest

from package import make, sh

FILES = ("bin/quantfs", "sbin/mount.quantfs", "sbin/mount.fuse.quantfs",
         "lib/systemd/system/quantfs@.service", "share/man/man1/quantfs.1",
         "share/man/man1/quantfs-mount.1", "share/man/man5/quantfs-formats.5",
         "share/man/man8/mount.quantfs.8", "share/bash-completion/completions/quantfs",
         "share/zsh/vendor-completions/_quantfs",
         "share/fish/vendor_completions.d/quantfs.fish", "share/doc/quantfs/README.md",
         "share/doc/quantfs/docs/FORMATS.md", "share/doc/quantfs/examples/fstab.example",
         "share/doc/quantfs/examples/kubernetes/daemonset.yaml")


class Contents(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="quantfs-package-")
        self.addCleanup(shutil.rmtree, self.dir)

    @unittest.skipUnless(shutil.which("dpkg-deb"), "no dpkg-deb")
    def test_deb(self):
        path = make("DEB", self.dir)
        rows = sh("dpkg-deb", "-c", path).splitlines()
        names = {row.split()[5].removeprefix("./") for row in rows}
        for name in FILES:
            packed = f"usr/{name}" + (".gz" if "/man/" in name else "")
            self.assertIn(packed, names)
        self.assertLessEqual({"usr/share/doc/quantfs/copyright",
                              "usr/share/doc/quantfs/changelog.gz"}, names)
        self.assertEqual([n for n in names if not n.startswith("usr/") and n], [])
        for row in rows:
            self.assertRegex(row, r"^(drwxr-xr-x|-rwxr-xr-x|-rw-r--r--|lrwxrwxrwx) root/root ")
        needs = sh("dpkg-deb", "-f", path, "Depends")
        for library in ("fuse3", "mount", "libc6", "libfuse3-3", "liblmdb0", "libcjson1",
                        "libxxhash0"):
            self.assertRegex(needs, rf"\b{library}\b")
        self.assertNotIn("asan", needs)
        sh("dpkg-deb", "-x", path, f"{self.dir}/tree")
        version = sh(f"{self.dir}/tree/usr/bin/quantfs", "--version").split()[1]
        self.assertEqual(sh("dpkg-deb", "-f", path, "Version").strip(), version)
        if shutil.which("lintian"):
            said = sh("lintian", "--allow-root", "--fail-on", "error", path)
            self.assertEqual(re.findall("^E: .*", said, re.M), [])
            print(said)

    def test_tar(self):
        path = make("TGZ", self.dir)
        names = {n.split("/", 1)[1] for n in sh("tar", "tzf", path).split()}
        for name in FILES:
            self.assertIn(name, names)

    def test_rpm(self):
        if not shutil.which("rpmbuild"):
            return  # of the three the one that Debian's own tools do not make
        path = make("RPM", self.dir)
        names = set(sh("rpm", "-qlp", path).split())
        for name in FILES:
            self.assertIn(f"/usr/{name}", names)
        self.assertNotIn("/usr/sbin", names)
        needs = sh("rpm", "-qRp", path)
        for need in ("fuse3", "util-linux", "libfuse3.so.3", "liblmdb.so"):
            self.assertIn(need, needs)

    def test_prefix(self):
        """Without a package: all below the prefix, and nothing is linked into /sbin."""
        before = os.path.lexists("/sbin/mount.quantfs")
        out = sh("cmake", "--install", os.environ["QUANTFS_BUILD"], "--prefix",
                 f"{self.dir}/here")
        for name in FILES:
            self.assertTrue(os.path.exists(f"{self.dir}/here/{name}"), name)
        self.assertIn(f"ln -s {self.dir}/here/sbin/mount.quantfs /sbin/mount.quantfs", out)
        self.assertEqual(os.path.lexists("/sbin/mount.quantfs"), before)


if __name__ == "__main__":
    unittest.main(verbosity=2)
