#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A fresh Debian 12 (debootstrap), as its administrator would use it: the .deb installs,
`mount -a` mounts from fstab, umount, upgrade, purge leaves nothing; and README's two
commands work in a fresh clone. Needs root, debootstrap, git and Debian's mirror; minutes.

QUANTFS_MIRROR: another mirror. QUANTFS_ROOT: a folder with a Debian 12 to copy instead.
QUANTFS_TIER: what ./test.sh is asked for (short; "default": no argument, an hour or two)."""
import os
import re
import shutil
import subprocess
import sys
import unittest

from package import make, sh

MARK = "QUANTFS_IN_NAMESPACE"
SOURCE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
TIER = os.environ.get("QUANTFS_TIER", "short")
TIER_S = 3 * 3600
FSTAB = "/srv/models /srv/quantized quantfs defaults,nofail,_netdev,allow_other,views=nf4:int8 0 0\n"


class FreshDebian(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dir = "/mnt"  # goes with the namespace
        sh("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", cls.dir)
        cls.root = f"{cls.dir}/root"
        given = os.environ.get("QUANTFS_ROOT")
        if given:
            sh("cp", "-a", given, cls.root)
        else:
            mirror = os.environ.get("QUANTFS_MIRROR")
            sh("debootstrap", "--variant=minbase", "bookworm", cls.root,
               *([mirror] if mirror else []))
        sh("mount", "--bind", cls.root, cls.root)  # tests mount: "/" is to be a mount
        shutil.copy("/etc/resolv.conf", f"{cls.root}/etc/resolv.conf")
        sh("mount", "-t", "proc", "proc", f"{cls.root}/proc")
        sh("mount", "-t", "sysfs", "-o", "ro", "sysfs", f"{cls.root}/sys")
        sh("mknod", "-m", "666", f"{cls.root}/dev/fuse", "c", "10", "229")
        for kind, name in (("devpts", "pts"), ("tmpfs", "shm")):
            os.makedirs(f"{cls.root}/dev/{name}", exist_ok=True)
            sh("mount", "-t", kind, kind, f"{cls.root}/dev/{name}")
        os.makedirs(f"{cls.root}/srv/admin")
        cls.pip = {k: cls.shown(k, v) for k, v in os.environ.items()
                   if k.startswith("PIP_")}
        cls.inside("apt-get", "update")

    @classmethod
    def shown(cls, name, value):
        """A setting of pip's; a path of ours is then one in there with the same contents."""
        path = f"/srv/pip/{name}"
        if not os.path.exists(value):
            return value
        os.makedirs(os.path.dirname(cls.root + path), exist_ok=True)
        if os.path.isdir(value):
            os.mkdir(cls.root + path)
            sh("mount", "--bind", value, cls.root + path)
        else:
            shutil.copy(value, cls.root + path)
        return path

    @classmethod
    def inside(cls, *command, **more):
        env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/srv/admin",
               "DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8"}
        return sh("chroot", cls.root, *command, env=env | more.pop("env", {}), **more)

    def files(self):
        out = self.inside("find", "/usr", "/etc", "/lib", "/var/cache", "/srv", "-xdev",
                          "-not", "-path", "/var/cache/apt/*", "-not", "-path",
                          "/var/cache/man/*")
        return set(out.splitlines())

    def test_package(self):
        deb = make("DEB", self.dir)
        os.makedirs(f"{self.root}/tmp/deb")
        name = os.path.basename(shutil.copy(deb, f"{self.root}/tmp/deb"))
        # what it needs comes first, so that the comparison at the end is of it alone
        needs = self.inside("dpkg-deb", "-f", f"/tmp/deb/{name}", "Depends")
        self.inside("apt-get", "install", "-y", "--no-install-recommends",
                    *[n.split()[0] for n in needs.split(",")])
        before = self.files()
        self.inside("apt-get", "install", "-y", "--no-install-recommends",
                    f"/tmp/deb/{name}")
        os.mkdir(f"{self.root}/srv/models")
        self.inside("quantfs", "demo", "/srv/models/llama-demo")
        os.mkdir(f"{self.root}/srv/quantized")
        with open(f"{self.root}/etc/fstab", "w", encoding="utf-8") as f:
            f.write(FSTAB)
        self.inside("mount", "-a")
        self.inside("mount", "-a")  # once more mounts nothing
        mounts = self.inside("cat", "/proc/self/mounts")
        self.assertEqual(mounts.count("/srv/models /srv/quantized fuse.quantfs ro,"), 1)
        self.assertEqual(self.inside("ls", "/srv/quantized").split(), ["int8", "nf4"])
        sums = self.inside("sh", "-c", "sha256sum /srv/quantized/nf4/llama-demo/*")
        self.inside("apt-get", "install", "-y", "--reinstall", f"/tmp/deb/{name}")
        self.assertEqual(self.inside("sh", "-c",
                                     "sha256sum /srv/quantized/nf4/llama-demo/*"), sums)
        self.inside("umount", "/srv/quantized")
        self.assertTrue(os.path.isdir(f"{self.root}/var/cache/quantfs"))
        self.inside("apt-get", "purge", "-y", "quantfs")
        self.inside("rm", "-r", "/srv/models", "/srv/quantized")
        self.assertEqual(self.files() - before, set())
        self.assertEqual(subprocess.run(["chroot", self.root, "dpkg", "-s", "quantfs"],
                                        capture_output=True).returncode, 1)

    def test_readme(self):
        """README's two commands, in a fresh clone where a stranger would have it."""
        sh("git", "clone", "-q", "--no-hardlinks", SOURCE, f"{self.root}/srv/admin/quantfs")
        out = self.inside("sh", "-c", "cd ~/quantfs && ./quickstart.sh")
        self.assertRegex(out, r"(?m)^  nf4 +[0-9.]+MB")
        views = "/srv/admin/quantfs-views"  # not over the clone
        self.assertIn(f'from_pretrained("{views}/nf4/llama-demo")', out)
        self.inside("sha256sum", f"{views}/nf4/llama-demo/config.json")
        again = self.inside("sh", "-c", "cd ~/quantfs && ./quickstart.sh")
        self.assertIn(f"{views} is mounted already", again)
        command, = re.findall(r"(?m)^To unmount:  (.*)$", out)
        self.inside("sh", "-c", command)
        tier = "" if TIER == "default" else TIER
        out = self.inside("sh", "-c", f"cd ~/quantfs && ./test.sh {tier}", env=self.pip,
                          timeout=TIER_S)
        print("\n".join(out.splitlines()[-20:]))
        self.assertRegex(out.splitlines()[-1], r"^\d+ passed, 0 failed, \d+ skipped$")


def enter():
    if os.geteuid() != 0 or not shutil.which("debootstrap") or not os.path.exists("/dev/fuse"):
        print("SKIP: not root, no debootstrap, or no /dev/fuse")
        sys.exit(77)
    os.environ[MARK] = "1"
    # The daemons that are started end with the namespace.
    os.execvp("unshare", ["unshare", "--mount", "--pid", "--fork", "--kill-child",
                          "--propagation", "private", sys.executable, *sys.argv])


if __name__ == "__main__":
    if MARK not in os.environ:
        enter()
    unittest.main(verbosity=2)
