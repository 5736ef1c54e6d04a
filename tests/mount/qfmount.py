#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Mounts for tests: `with Mount(store) as m: …` gives a real mount in a directory of its
own with a cache of its own, and takes it away whatever happens. The program is the one
that QUANTFS_BIN names.

A sanitizer's complaint would be lost with the daemon's stderr; it is written to files,
and Mount.close() fails when there is one."""
import errno
import glob
import os
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

SLOW = os.environ.get("QUANTFS_SLOW") == "1"  # a sanitizer build: clocks mean less
START_S = 60
STOP_S = 60


class MountError(Exception):
    """The program did not mount; the text is what it said."""


def binary():
    path = os.environ.get("QUANTFS_BIN")
    if path:
        return path
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    found = [p for p in (f"{root}/build/{d}/cli/quantfs" for d in
                         ("ci", "dev", "release", "nocuda")) if os.path.exists(p)]
    return found[0] if found else "quantfs"


def why_not():
    """Why nothing can be mounted here, or None."""
    if not os.path.exists("/dev/fuse"):
        return "no /dev/fuse"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR))
    except OSError as e:
        return f"/dev/fuse: {e.strerror}"
    if os.geteuid() != 0 and not shutil.which("fusermount3"):
        return "not root and no fusermount3"
    if not shutil.which(binary()):
        return f"{binary()}: no such program (set QUANTFS_BIN)"
    return None


def mounted(path):
    """Whether a file system of ours is mounted on path, alive or not."""
    path = os.path.realpath(path)
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as f:
        return any(line.split()[1].replace("\\040", " ") == path for line in f)


def detach(path):
    for command in (["fusermount3", "-uz", path], ["umount", "-l", path]):
        if mounted(path) and shutil.which(command[0]):
            subprocess.run(command, check=False, capture_output=True)


# For whatever is started from here.
os.environ["LSAN_OPTIONS"] = ":".join(filter(None, [
    os.environ.get("LSAN_OPTIONS"), "print_suppressions=0",
    "suppressions=" + os.path.join(os.path.dirname(os.path.abspath(__file__)),
                                   "lsan.supp")]))


def sanitizer_env(log):
    env = dict(os.environ)
    for name in ("ASAN_OPTIONS", "UBSAN_OPTIONS", "TSAN_OPTIONS", "LSAN_OPTIONS"):
        env[name] = ":".join(filter(None, [env.get(name), f"log_path={log}"]))
    return env


def run(*args, timeout=60, env=None):
    """Runs the program to its end: (exit status, stdout, stderr)."""
    done = subprocess.run([binary(), *args], capture_output=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, env=env)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


class Mount:
    """A mounted store. `cache`: a directory to use (kept), None for one of its own, or
    "none". Further keywords become -o options; daemon=True mounts without -f."""

    def __init__(self, store, cache=None, daemon=False, env=None, **options):
        self.store = str(store)
        self.own = tempfile.mkdtemp(prefix="quantfs-mount-")
        self.mnt = os.path.join(self.own, "mnt")
        os.mkdir(self.mnt)
        self.cache = str(cache) if cache else os.path.join(self.own, "cache")
        self.options = {"cache": self.cache, **options}
        self.daemon = daemon
        self.env = {**sanitizer_env(os.path.join(self.own, "sanitizer")), **(env or {})}
        self.log_path = os.path.join(self.own, "log")
        self.process = None
        self.said = None  # the log, when all is over

    def __enter__(self):
        try:
            self._start()
        except BaseException:
            self.kill()
            shutil.rmtree(self.own, ignore_errors=True)
            raise
        return self

    def __exit__(self, kind, value, trace):
        if kind is not None:
            said = self.log() + "\n" + self.complaints()
            sys.stderr.write("".join(f"  log: {s}\n" for s in said.splitlines()))
        try:
            self.close()
        except Exception:
            if kind is None:
                raise

    def path(self, *parts):
        return os.path.join(self.mnt, *parts)

    def log(self):
        try:
            with open(self.log_path, encoding="utf-8", errors="replace") as f:
                return f.read()
        except OSError:
            return ""

    def status(self):
        with open(self.path(".quantfs", "status"), encoding="utf-8") as f:
            pairs = dict(line.rstrip("\n").split("=", 1) for line in f)
        return {k: int(v) if v.isdigit() else v for k, v in pairs.items()}

    def _start(self):
        opts = ",".join(k if v is True else f"{k}={v}" for k, v in self.options.items())
        command = [binary(), "mount", *([] if self.daemon else ["-f"]), "-o", opts,
                   self.store, self.mnt]
        with open(self.log_path, "wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL,
                                            stdout=log, stderr=log, env=self.env)
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            rc = self.process.poll()
            if mounted(self.mnt) and (rc == 0) == self.daemon:
                return
            if rc is not None and (rc != 0 or not self.daemon):
                raise MountError(self.log().strip() or f"exit {rc}")
            time.sleep(0.01)
        raise MountError(f"not mounted after {START_S} s: {self.log()}")

    def unmount(self):
        rc, _, err = run("umount", self.mnt, env=self.env)
        if rc != 0:
            raise MountError(f"umount: exit {rc}: {err.strip()}")
        if not self.daemon and self.process.wait(STOP_S) != 0:
            raise MountError(f"the daemon ended with {self.process.returncode}: "
                             f"{self.log()}{self.complaints()}")
        end = time.monotonic() + STOP_S
        while self.daemon and self._daemon_lives() and time.monotonic() < end:
            time.sleep(0.02)

    def _daemon_lives(self):
        """A daemon's process is not our child: find it by its command line."""
        for path in glob.glob("/proc/[0-9]*/cmdline"):
            try:
                with open(path, "rb") as f:
                    if os.fsencode(self.mnt) in f.read().split(b"\0"):
                        return True
            except OSError:
                continue
        return False

    def kill(self):
        """Ends the server without a word (SIGKILL) and detaches what is left."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        detach(self.mnt)

    def complaints(self):
        texts = []
        for path in glob.glob(os.path.join(self.own, "sanitizer*")):
            with open(path, encoding="utf-8", errors="replace") as f:
                texts.append(f.read())
        return "\n".join(texts)

    def close(self):
        try:
            if mounted(self.mnt):
                self.unmount()
            complaints = self.complaints()
            if complaints:
                raise MountError("sanitizer:\n" + complaints[:8000])
        finally:
            self.kill()
            self.said = self.log()
            if not mounted(self.mnt):
                shutil.rmtree(self.own, ignore_errors=True)


class StoreCase(unittest.TestCase):
    """A test case with a directory, self.dir, of its own."""

    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="quantfs-store-")
        self.addCleanup(shutil.rmtree, self.dir, ignore_errors=True)
        self.store = os.path.join(self.dir, "store")
        os.mkdir(self.store)

    def assertErrno(self, codes, call, *args, **kwargs):
        with self.assertRaises(OSError) as caught:
            call(*args, **kwargs)
        names = [errno.errorcode.get(c, c) for c in codes]
        got = errno.errorcode.get(caught.exception.errno, caught.exception.errno)
        self.assertIn(got, names)


def main():
    """unittest.main with ctest's conventions: 77 when nothing ran, skips by line."""
    reason = why_not()
    if reason:
        print(f"SKIP: {reason}")
        sys.exit(77)
    program = unittest.main(module="__main__", exit=False, verbosity=2)
    result = program.result
    sys.stderr.flush()
    for case, why in result.skipped:
        print(f"SKIP: {case.id().split('.', 1)[-1]}: {why}")
    if not result.wasSuccessful():
        sys.exit(1)
    if result.testsRun == 0 or len(result.skipped) == result.testsRun:
        sys.exit(77)
