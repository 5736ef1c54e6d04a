#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs doctor: what it says agrees with what the machine lets us do."""
import json
import os
import subprocess
import sys
import tempfile
import unittest

import qfmount

NAMES = {"kernel", "fuse-device", "libfuse", "allow-other", "passthrough", "restart",
         "read-ahead", "isa", "cuda", "cache", "open-files", "page-size"}


def doctor(*args, **kwargs):
    p = subprocess.run([qfmount.binary(), "doctor", *args], text=True,
                       capture_output=True, **kwargs)
    return p.returncode, p.stdout, p.stderr


def findings(*args, **kwargs):
    rc, out, _ = doctor("--json", *args, **kwargs)
    return rc, {f["name"]: f for f in json.loads(out)["findings"]}


class Doctor(unittest.TestCase):
    def test_findings(self):
        rc, found = findings()
        self.assertEqual(set(found), NAMES)
        for f in found.values():
            self.assertIn(f["level"], ("ok", "note", "warn", "fail"))
            self.assertTrue(f["text"])
            if f["level"] == "fail":
                self.assertTrue(f["mend"])
        self.assertEqual(rc, 2 if any(f["level"] == "fail" for f in found.values()) else 0)
        self.assertIn(os.uname().release, found["kernel"]["text"])
        can_open = os.access("/dev/fuse", os.R_OK | os.W_OK)
        self.assertEqual(found["fuse-device"]["level"], "ok" if can_open else "fail")

    def test_text_and_json_agree(self):
        _, found = findings()
        _, out, _ = doctor()
        for name, f in found.items():
            self.assertTrue(any(line.split()[:2] == [f["level"], name]
                                for line in out.splitlines()), name)

    def test_cache_directory(self):
        with tempfile.TemporaryDirectory() as tmp:
            _, found = findings("--cache", f"{tmp}/to/be/made")
            self.assertIn(found["cache"]["level"], ("ok", "warn"))
            self.assertIn(f"{tmp}/to/be/made", found["cache"]["text"])
            self.assertFalse(os.path.exists(f"{tmp}/to"))
        _, found = findings("--cache", "/proc/nothing")
        self.assertEqual(found["cache"]["level"], "warn")
        self.assertIn("-o cache=DIR", found["cache"]["mend"])

    def test_no_home(self):
        env = {k: v for k, v in os.environ.items()
               if k not in ("HOME", "XDG_CACHE_HOME")}
        _, found = findings(env=env)
        if os.geteuid() == 0:
            self.assertIn("/var/cache/quantfs", found["cache"]["text"])
        else:
            self.assertEqual(found["cache"]["level"], "warn")

    @unittest.skipUnless(os.geteuid() == 0, "needs root to become another user")
    def test_another_user(self):
        # The directory of the program may be closed to that user: run it from memory.
        fd = os.memfd_create("quantfs", 0)
        with open(qfmount.binary(), "rb") as f:
            os.write(fd, f.read())
        os.fchmod(fd, 0o755)
        p = subprocess.run([f"/proc/self/fd/{fd}", "doctor", "--json"], text=True,
                           capture_output=True, pass_fds=[fd], user=65534, group=65534,
                           extra_groups=[])
        found = {f["name"]: f for f in json.loads(p.stdout)["findings"]}
        self.assertEqual(found["passthrough"]["level"], "note")
        self.assertEqual(found["read-ahead"]["level"], "note")
        self.assertTrue(found["read-ahead"]["mend"])

    def test_limit_of_open_files(self):
        def limit():
            import resource
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
        _, found = findings(preexec_fn=limit)
        self.assertEqual(found["open-files"]["level"], "warn")
        self.assertIn("256", found["open-files"]["text"])

    def test_usage(self):
        for args in (("--nonsense",), ("extra",), ("--cache",)):
            rc, out, err = doctor(*args)
            self.assertEqual((rc, out), (1, ""), args)
            self.assertIn("quantfs doctor", err)
        rc, out, _ = doctor("--help")
        self.assertEqual(rc, 0)
        self.assertIn("--json", out)


if __name__ == "__main__":
    sys.exit(unittest.main())
