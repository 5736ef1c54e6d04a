#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The files that come with the helper: fstab, autofs, systemd, Kubernetes, Dockerfile. What
they say to mount(8) and quantfs is what those take."""
import glob
import os
import re
import shlex
import shutil
import unittest

import installed
from installed import qfmount, sh
import qfstore as S

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
FILES = f"{ROOT}/mount-helpers"
EXAMPLES = "/usr/share/doc/quantfs/examples"


def read(path):
    with open(path, encoding="utf-8") as f:
        return f.read()


def rows(path):
    return [line.split() for line in read(path).splitlines()
            if line and not line.startswith("#")]


class Files(unittest.TestCase):
    def setUp(self):
        """A /srv with what the examples name."""
        sh("mount", "-t", "tmpfs", "tmpfs", "/srv")
        self.addCleanup(sh, "umount", "-lR", "/srv")  # a daemon may still be ending
        S.write_llama("/srv/models/model")
        S.write_llama("/srv/nfs/models/model")

    def takes(self, options, kind="quantfs"):
        """mount(8) and quantfs would take these options."""
        sh("mount", "-f", "-t", kind, "/srv/models", "/srv", "-o", options)

    def test_fstab(self):
        table = f"{EXAMPLES}/fstab.example"
        at_boot = []
        for store, mnt, kind, options, _, _ in rows(table):
            os.mkdir(mnt)
            self.takes(options, kind)
            if "noauto" not in options.split(","):
                at_boot.append((store, mnt))
        os.environ["XDG_CACHE_HOME"] = "/srv/cache"
        sh("mount", "-a", "-T", table)
        self.assertGreater(len(at_boot), 1)
        for store, mnt in at_boot:
            self.assertTrue(qfmount.mounted(mnt))
            self.assertTrue(os.path.exists(f"{mnt}/nf4/model/config.json"))
            sh("umount", mnt)
        sh("mount", "-T", table, "/srv/by-hand")
        sh("umount", "/srv/by-hand")

    def test_autofs(self):
        (mnt, path, timeout), = rows(f"{FILES}/autofs/auto.master.example")
        self.assertEqual(os.path.basename(path), "auto.quantfs")
        self.assertTrue(mnt.startswith("/") and timeout.startswith("--timeout="))
        for _, options, store in rows(f"{FILES}/autofs/auto.quantfs"):
            self.assertTrue(store.startswith(":/"))
            kind, rest = re.fullmatch(r"-fstype=([a-z.]+),(.*)", options).groups()
            self.takes(rest, kind)

    def test_units(self):
        """systemd's own check; and what the units hand to mount(8) and quantfs."""
        if not shutil.which("systemd-analyze"):
            self.skipTest("no systemd-analyze")
        units = glob.glob(f"{EXAMPLES}/systemd/*")
        self.assertEqual(len(units), 2)
        out, err = sh("systemd-analyze", "verify", "--man=no", "quantfs@models.service",
                      *units)
        self.assertEqual([s for s in err.splitlines() if "quantfs" in s or "srv-" in s], [])
        unit = read(f"{EXAMPLES}/systemd/srv-quantized.mount")
        self.takes(re.search("^Options=(.*)$", unit, re.M)[1])
        unit = read("/usr/lib/systemd/system/quantfs@.service")
        for name in re.findall(r"^#   ([A-Z]+)=", unit, re.M):
            self.assertIn("${%s}" % name, unit)
        options = re.search("^#   OPTIONS=(.*)$", unit, re.M)[1]
        command = shlex.split(re.search("^ExecStart=(.*)$", unit, re.M)[1])
        self.runs(command, options)

    def runs(self, command, options):
        """`quantfs mount`, with directories that are there, would mount."""
        self.assertEqual(command[:2], ["quantfs", "mount"])
        sh(command[0], "mount", "--dry-run",
           *[options if s == "${OPTIONS}" else s for s in command[2:-2]], "/srv/models",
           "/srv")

    def test_unit_has_no_namespace(self):
        """Nothing that would keep the mount from the rest of the machine."""
        unit = read(f"{FILES}/systemd/quantfs@.service")
        used = set(re.findall(r"^([A-Za-z]+)=", unit, re.M))
        private = {"ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices",
                   "ProtectProc", "ProcSubset", "ProtectKernelTunables",
                   "ProtectKernelModules", "ProtectKernelLogs", "ProtectControlGroups",
                   "ReadOnlyPaths", "ReadWritePaths", "InaccessiblePaths", "BindPaths",
                   "TemporaryFileSystem", "RootDirectory", "PrivateMounts", "MountFlags",
                   "DynamicUser", "PrivateUsers", "NoExecPaths", "ExecPaths"}
        self.assertEqual(used & private, set())
        self.assertLessEqual({"Type", "WatchdogSec", "FileDescriptorStoreMax"}, used)

    def test_kubernetes(self):
        try:
            import yaml
        except ImportError:
            self.skipTest("no Python module yaml")
        daemons = yaml.safe_load(read(f"{FILES}/kubernetes/daemonset.yaml"))
        pod = yaml.safe_load(read(f"{FILES}/kubernetes/pod.yaml"))
        spec = daemons["spec"]["template"]["spec"]
        container, = spec["containers"]
        labels = daemons["spec"]["template"]["metadata"]["labels"]
        self.assertEqual(daemons["spec"]["selector"]["matchLabels"], labels)
        self.assertTrue(container["securityContext"]["privileged"])
        self.runs(["quantfs", *container["args"]], None)

        def mounts(one):
            return {m["name"]: m for m in one["volumeMounts"]}
        volumes = {v["name"]: v["hostPath"]["path"] for v in spec["volumes"]}
        for one in (*spec["initContainers"], container):
            self.assertLessEqual(set(mounts(one)), set(volumes))
        shared = mounts(container)["mounts"]
        self.assertEqual(shared["mountPropagation"], "Bidirectional")
        mnt = container["args"][-1]
        self.assertEqual(os.path.dirname(mnt), shared["mountPath"])
        for probe in ("readinessProbe", "livenessProbe"):
            self.assertIn(mnt, container[probe]["exec"]["command"][1])
        used, = pod["spec"]["containers"][0]["volumeMounts"]
        self.assertEqual(used["mountPropagation"], "HostToContainer")
        self.assertEqual(pod["spec"]["volumes"][0]["hostPath"]["path"], volumes["mounts"])

    def test_dockerfile(self):
        """Builds with what quickstart.sh would install; names this version."""
        text = read(f"{ROOT}/packaging/Dockerfile").replace("\\\n", " ")
        build, run = re.findall(r"--no-install-recommends\s+([^&\n]+)", text)
        wanted = re.search(r"^    build\)\n(.*?);;", read(f"{ROOT}/scripts/deps.sh"),
                           re.M | re.S)[1]
        self.assertEqual(set(build.split()) - {"python3"},
                         set(re.findall(r"qf_want (\S+)", wanted)))
        for library in ("fuse3", "liblmdb0", "libcjson1", "libxxhash0"):
            self.assertIn(library, run.split())
        version = re.search(r"project\(quantfs VERSION (\S+)",
                            read(f"{ROOT}/CMakeLists.txt"))[1]
        for path in (f"{ROOT}/packaging/Dockerfile", *glob.glob(f"{FILES}/kubernetes/*")):
            for tag in re.findall(r"quantfs:(\d[\w.]*)", read(path)):
                self.assertEqual(tag, version, path)
        self.assertIn('ENTRYPOINT ["quantfs"]', text)


if __name__ == "__main__":
    installed.main()
