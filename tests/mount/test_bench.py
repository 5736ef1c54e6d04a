#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""quantfs bench: every row is there, and nothing stays behind. How fast anything is, is
nobody's business here."""
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import qfmount

CODECS = {"nf4", "fp4", "dq", "int8"}
DTYPES = {"F32", "F16", "BF16"}
MIB = 1 << 20


class Bench(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.cache = os.path.join(self.dir, "cache")
        os.mkdir(self.cache)

    def bench(self, *args, code=0, **kwargs):
        rc, out, err = qfmount.run("bench", *args, timeout=600, **kwargs)
        self.assertEqual(rc, code, err)
        self.assertFalse(self.left(), "left behind")
        return out, err

    def left(self):
        return os.listdir(self.cache)

    def start(self, *args):
        return subprocess.Popen([qfmount.binary(), "bench", "--cache", self.cache, *args],
                                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE)

    def expect_pass(self, got, cached):
        self.assertGreater(got["gb_per_s"], 0)
        self.assertEqual(got["chunks_encoded"] == 0, cached, got)
        self.assertEqual(got["cache_hits"] > 0, cached, got)

    def expect_row(self, row):
        self.expect_pass(row["first"], False)
        self.expect_pass(row["second"], True)

    def test_json(self):
        out, err = self.bench("--json", "--size", "32M", "--cache", self.cache)
        self.assertEqual(err, "")
        got = json.loads(out)
        machine = got["machine"]
        self.assertEqual(machine["kernel"], os.uname().release)
        self.assertEqual(machine["cores"], len(os.sched_getaffinity(0)))
        self.assertTrue(machine["processor"])
        self.assertEqual(machine["isas"][0], "scalar")
        self.assertEqual({m["dtype"] for m in got["memcpy"]}, DTYPES)
        self.assertEqual(
            sorted((k["dtype"], k["codec"], k["isa"]) for k in got["kernels"]),
            sorted((d, c, i) for d in DTYPES for c in CODECS for i in machine["isas"]))
        for row in got["kernels"]:
            self.assertGreater(row["gb_per_s"], 0)
            self.assertGreater(row["memcpy_ratio"], 0)
        for row in got["memcpy"] + [got["source"]]:
            self.assertGreater(row["gb_per_s"], 0)
        self.assertGreater(got["source"]["bytes"], 24 * MIB)
        self.assertLess(got["source"]["bytes"], 48 * MIB)
        self.assertEqual({row["view"] for row in got["engine"]}, CODECS)
        for row in got["engine"] + [got["mount"]]:
            self.expect_row(row)
        self.assertEqual(got["mount"]["device"], got["engine"][0]["device"])
        self.assertGreater(got["seconds"], 0)

    def test_text(self):
        """The options are those of a mount: one view, and slow kernels."""
        out, err = self.bench("-q", "--size", "32M", "-o",
                              f"cache={self.cache},views=dq", "-o", "isa=scalar,threads=1")
        self.assertEqual(err, "")
        lines = [line.split() for line in out.splitlines()]
        for what in ("engine", "mount"):
            rows = [line for line in lines if line[:1] == [what]]
            self.assertEqual([row[:3] for row in rows], [[what, "dq", "scalar"]])
            self.assertEqual(len(rows[0]), 5)
        self.assertEqual(len([line for line in lines if line[:1] == ["read()"]]), 1)
        self.assertEqual(len([line for line in lines if line[1:2] == ["memcpy"]]), 3)
        self.assertNotIn("odd:", out)

    def test_terminal(self):
        """On a terminal the stage is told on one line, which is gone at the end."""
        for args, wants in (((), True), (("-q",), False)):
            master, slave = os.openpty()
            done = subprocess.run([qfmount.binary(), "bench", *args, "--size", "32M",
                                   "--cache", self.cache, "-o", "views=nf4"],
                                  stdin=subprocess.DEVNULL, stderr=slave,
                                  stdout=subprocess.DEVNULL, timeout=600)
            os.set_blocking(master, False)
            try:
                text = os.read(master, 65536)
            except BlockingIOError:
                text = b""
            os.close(slave)
            os.close(master)
            self.assertEqual(done.returncode, 0)
            self.assertEqual(text.endswith(b"\r\033[K"), wants, text)
            self.assertEqual(b"encoding nf4" in text, wants, text)
            self.assertNotIn(b"\n", text)

    def test_cache_untouched(self):
        """A directory that is not there is not made: its filesystem is what counts."""
        gone = os.path.join(self.cache, "to", "be", "made")
        self.bench("--json", "--size", "32M", "--cache", gone, "-o", "views=nf4")
        self.assertFalse(os.path.exists(os.path.dirname(gone)))

    def test_no_mount(self):
        """What cannot be mounted is told in its row, and the rest is measured."""
        comma = os.path.join(self.cache, "a,b")
        os.mkdir(comma)
        rc, out, err = qfmount.run("bench", "--json", "--size", "32M", "--cache", comma,
                                   "-o", "views=nf4", timeout=600)
        self.assertEqual(rc, 0, err)
        got = json.loads(out)
        self.assertIn("comma", got["mount"]["not_measured"])
        self.expect_row(got["engine"][0])
        self.assertEqual(os.listdir(comma), [])
        rc, out, _ = qfmount.run("bench", "--size", "32M", "--cache", comma, "-o",
                                 "views=nf4", timeout=600)
        self.assertEqual(rc, 0)
        self.assertIn("mount    not measured: ", out)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to hide /dev/fuse")
    def test_mount_refused(self):
        """The reason is the daemon's own."""
        hide = 'mount --bind /dev/null /dev/fuse || exit 77; exec "$@"'
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", hide, "sh", qfmount.binary(), "bench",
             "--json", "--size", "32M", "--cache", self.cache, "-o", "views=nf4"],
            capture_output=True, timeout=600, text=True, stdin=subprocess.DEVNULL)
        if done.returncode == 77 or "unshare failed" in done.stderr:
            self.skipTest(f"no mount namespace: {done.stderr.strip()}")
        self.assertEqual(done.returncode, 0, done.stderr)
        got = json.loads(done.stdout)
        self.assertIn("mount failed", got["mount"]["not_measured"])
        self.expect_row(got["engine"][0])
        self.assertEqual(self.left(), [])

    def test_bad_arguments(self):
        for args in (("x",), ("--size", "31M"), ("--size", "65G"), ("--size", "much"),
                     ("--size",), ("-o", "views=nf5"), ("-o", "nonsense"),
                     ("-o", "cache=none"), ("--nonsense",), ["-o", "debug"] * 17):
            out, err = self.bench(*args, code=1)
            self.assertEqual(out, "", args)
            self.assertIn("quantfs bench", err)

    def test_limits(self):
        """Taken, and then the help is printed."""
        for args in (("--size", "32M"), ("--size", "64G"), ("--size", "1.5GB"),
                     ["-o", "debug"] * 16):
            out, _ = self.bench(*args, "--help")
            self.assertIn("usage: quantfs bench", out)

    def test_errors(self):
        with open(f"{self.dir}/file", "w", encoding="utf-8") as f:
            f.write("x")
        for place in (f"{self.dir}/file", f"{self.dir}/file/x", "/proc/nothing",
                      "/" + "x" * 5000):
            out, err = self.bench("--cache", place, code=2)
            self.assertEqual(out, "")
            self.assertIn(f"quantfs bench: {place[:80]}", err)
            self.assertIn("--cache DIR", err)
        out, err = self.bench("--size", "32M", "--cache", self.cache, "-o",
                              "views=nf4,device=cuda:63", code=2)
        self.assertEqual(out, "")
        self.assertIn("quantfs bench: ", err)
        with open(f"{self.dir}/policy", "w", encoding="utf-8") as f:
            json.dump({"skip": ["*"]}, f)
        _, err = self.bench("--size", "32M", "--cache", self.cache, "-o",
                            f"views=nf4,policy={self.dir}/policy", code=2)
        self.assertIn("quantizes nothing", err)

    @unittest.skipUnless(os.geteuid() == 0, "needs root to become another user")
    def test_another_user(self):
        """An unwritable directory that was asked for is an error; the default one is
        replaced by $TMPDIR."""
        home = tempfile.mkdtemp(prefix="quantfs-bench-")
        self.addCleanup(shutil.rmtree, home, ignore_errors=True)
        os.chmod(home, 0o755)
        os.mkdir(f"{home}/tmp", 0o700)
        os.chown(f"{home}/tmp", 65534, 65534)
        fd = os.open(qfmount.binary(), os.O_RDONLY)
        self.addCleanup(os.close, fd)

        def run(*args):
            done = subprocess.run(
                [f"/proc/self/fd/{fd}", "bench", "--json", "--size", "32M", "-o",
                 "views=nf4", *args], capture_output=True, pass_fds=[fd], user=65534,
                group=65534, extra_groups=[], timeout=600,
                env={"TMPDIR": f"{home}/tmp", "HOME": home, "PATH": os.environ["PATH"]})
            return done.returncode, done.stdout.decode(), done.stderr.decode()

        rc, out, err = run("--cache", home)
        self.assertEqual((rc, out), (2, ""))
        self.assertIn(f"{home}: cannot make a directory there: Permission denied", err)
        rc, out, err = run()
        self.assertEqual(rc, 0, err)
        self.expect_row(json.loads(out)["engine"][0])
        self.assertEqual(os.listdir(f"{home}/tmp"), [])

    def expect_interrupted(self, process, number):
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
        self.assertEqual((process.returncode, out), (128 + number, b""), err)
        self.assertIn(b"ended early", err)
        self.assertEqual(self.left(), [])
        with open("/proc/self/mounts", encoding="utf-8") as f:
            self.assertNotIn(self.cache, f.read())

    def interrupt_when(self, name, number=signal.SIGINT, **kwargs):
        """Once a file of that name is there, below the directory that it has made."""
        args = ("--size", "128M", "-o", "views=nf4,isa=scalar,threads=1")
        with self.start(*args, **kwargs) as process:
            while process.poll() is None and not any(
                    os.path.exists(os.path.join(self.cache, d, name))
                    for d in self.left()):
                time.sleep(0.005)
            self.expect_interrupted(process, number)

    def test_interrupt_kernels(self):
        self.interrupt_when(".")

    def test_interrupt_writing(self):
        self.interrupt_when("store/model", signal.SIGTERM)

    def test_interrupt_encoding(self):
        self.interrupt_when("cache/data.mdb")

    def test_interrupt_mount(self):
        self.interrupt_when("mnt/.quantfs/status")


if __name__ == "__main__":
    qfmount.main()
