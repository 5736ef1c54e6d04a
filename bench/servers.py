# SPDX-License-Identifier: Apache-2.0
"""The same view file behind different servers, each mounted afresh for a reading so that
the kernel's cache is cold: `with server.open() as path: …`."""
import contextlib
import os
import subprocess
import tempfile
import time

import qfmount
from common import Skip

SEAL_S = 60


class Ours:
    """quantfs with a warm cache. sealed: let the kernel read (passthrough)."""

    def __init__(self, ctx, store, cache, name, view, sealed):
        self.store, self.cache, self.name, self.view = store, cache, name, view
        self.options = {"views": view, **({} if sealed else {"passthrough": "off"})}
        self.mount = None
        if sealed:
            self._seal()
        else:
            self._try()

    def _try(self):
        """A program that seals nothing does not know the option."""
        try:
            with self.open():
                pass
        except qfmount.MountError as e:
            if "passthrough" not in str(e):
                raise
            del self.options["passthrough"]

    def _seal(self):
        """Reads the view once, so that its shard gets sealed."""
        with self.open() as path:
            why = self._read_until_sealed(path)
        if why:
            raise Skip(why)

    def _read_until_sealed(self, path):
        """Why it is not to be had, or None."""
        said = str(self.mount.status().get("passthrough", "not built in"))
        if not said.startswith("on"):
            return f"no passthrough here: {said}"
        with open(path, "rb") as f:
            while f.read(1 << 20):
                pass
        end = time.monotonic() + SEAL_S
        while not self.mount.status().get("shards_sealed"):
            if time.monotonic() > end:
                return f"nothing was sealed within {SEAL_S} s"
            time.sleep(0.1)
        return None

    @contextlib.contextmanager
    def open(self):
        with qfmount.Mount(self.store, cache=self.cache, **self.options) as m:
            self.mount = m
            yield m.path(self.view, self.name)


class Bare:
    """A libfuse server that has the bytes in memory."""

    def __init__(self, ctx, path):
        self.program, self.path = ctx.program("qf_bench_bare"), path

    @contextlib.contextmanager
    def open(self):
        mnt = tempfile.mkdtemp(prefix="quantfs-bare-")
        process = subprocess.Popen([self.program, self.path, mnt],
                                   stdin=subprocess.DEVNULL)
        try:
            end = time.monotonic() + 60
            while not qfmount.mounted(mnt):
                if process.poll() is not None or time.monotonic() > end:
                    raise Skip("the bare server did not mount")
                time.sleep(0.01)
            yield os.path.join(mnt, os.path.basename(self.path))
        finally:
            qfmount.detach(mnt)
            if process.wait(60) is not None:
                os.rmdir(mnt)


class Plain:
    """A file in a directory, in the page cache."""

    def __init__(self, path):
        self.path = path

    @contextlib.contextmanager
    def open(self):
        yield self.path
