#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The source changes under the mount, while its view is open, mapped, being encoded: what
an old handle gives is of the old version or an error, a new open shows the new file, and
no byte of two versions is ever in one reading."""
import errno
import os
import subprocess
import sys
import threading
import time

import qfmount
import qfstore as S

NAME = "nf4/model/model.safetensors"
STEP = 65536
REFUSED = (errno.ESTALE, errno.EIO)

# Prints the pages of a mapping as fast as they are looked at, until the kernel kills it
# with SIGBUS: the EIO of a mapping.
MAPPED = """
import mmap, os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
view = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
view.madvise(mmap.MADV_RANDOM)
out = sys.stdout.buffer
out.write(view[:4096])
out.flush()
sys.stdin.readline()
for off in range(4096, len(view), 4096):
    out.write(view[off:off + 4096])
    out.flush()
"""


class Change(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.model = S.write_llama(f"{self.store}/model", hidden=1032, inter=2056,
                                   vocab=16)
        self.file = f"{self.model}/model.safetensors"
        self.source = S.read_file(self.file)
        other = S.write_llama(f"{self.dir}/other/model", hidden=1032, inter=2056,
                              vocab=16, seed="other")
        self.other = S.read_file(f"{other}/model.safetensors")
        self.assertEqual(len(self.source), len(self.other))
        self.old = self.fresh()

    def fresh(self):
        with qfmount.Mount(self.store, cache="none", views="nf4") as m:
            return S.read_file(m.path(NAME))

    # ---- what happens to the file ----

    def replaced(self):
        S.write(f"{self.dir}/new", self.other)
        os.rename(f"{self.dir}/new", self.file)

    def written(self):
        """As programs write: piece by piece. (Times are those of the beginning of a
        write(2), see docs/SEMANTICS.md.)"""
        with open(self.file, "r+b", buffering=0) as f:
            for off in range(0, len(self.other), STEP):
                f.write(self.other[off:off + STEP])

    def recreated(self):
        """Another inode of the same size, with the same times but ctime."""
        st = os.stat(self.file)
        S.write(f"{self.dir}/new", self.other)
        os.utime(f"{self.dir}/new", ns=(st.st_atime_ns, st.st_mtime_ns))
        os.unlink(self.file)
        time.sleep(0.01)  # it is gone for a while
        os.rename(f"{self.dir}/new", self.file)

    def appended(self):
        with open(self.file, "ab") as f:
            f.write(b"x" * 1000)

    def truncated(self):
        os.truncate(self.file, len(self.source) // 2)

    def touched(self):
        os.utime(self.file)

    # ---- and who looks at its view meanwhile ----

    def opened(self, path, change):
        """(bytes or None if refused, by offset); what a handle gives that is open."""
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        got = {0: os.pread(fd, STEP, 0)}
        change()
        for off in range(STEP, len(self.old), STEP):
            try:
                got[off] = os.pread(fd, STEP, off)
            except OSError as e:
                self.assertIn(e.errno, REFUSED)
                got[off] = None
        os.close(fd)
        return got

    def mapped(self, path, change):
        child = subprocess.Popen([sys.executable, "-c", MAPPED, path],
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        data = child.stdout.read(4096)
        change()
        child.stdin.write(b"\n")
        child.stdin.flush()
        data += child.stdout.read()
        child.stdin.close()
        child.stdout.close()
        self.assertIn(child.wait(), (0, -7))
        return {0: data} if len(data) == len(self.old) else {0: data, len(data): None}

    def encoding(self, path, change):
        """Readers that open it again and again, from before to after the change. While
        there is no such file they are told so."""
        readings, stop = [], threading.Event()

        def reader():
            while not stop.is_set():
                begin = time.monotonic()
                try:
                    got = S.read_file(path)
                except OSError as e:
                    got = e.errno
                readings.append((begin, time.monotonic(), got))

        threads = [threading.Thread(target=reader) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(0.02)
        changing = time.monotonic()
        change()
        changed = time.monotonic()
        time.sleep(0.3)
        stop.set()
        for thread in threads:
            thread.join()
        # In place there is a file of neither version for a while, which a view shows.
        return [got for begin, end, got in readings
                if change != self.written or end < changing or begin > changed]

    # ---- together ----

    def new_open_shows(self, path, want):
        end = time.monotonic() + 20
        while time.monotonic() < end:
            try:
                if S.read_file(path) == want:
                    return True
            except OSError as e:
                self.assertIn(e.errno, REFUSED)
            time.sleep(0.1)
        return False

    def check(self, change, look):
        with qfmount.Mount(self.store, cache=f"{self.dir}/cache", views="nf4",
                           attr_ttl=1) as m:
            got = look(m.path(NAME), change)
            new = self.fresh()
            if look == self.encoding:
                gone = (errno.ENOENT,) if change == self.recreated else ()
                for reading in got:
                    self.assertTrue(
                        reading in (self.old, new) or reading in REFUSED + gone,
                        f"neither version: {reading if isinstance(reading, int) else ''}")
                refused = sum(isinstance(reading, int) for reading in got)
            else:
                for off, data in got.items():
                    self.assertTrue(data is None or
                                    data == self.old[off:off + len(data)],
                                    f"other bytes at {off}")
                refused = sum(data is None for data in got.values())
            print(f"{change.__name__}, {look.__name__}: {refused} of {len(got)} refused")
            self.assertTrue(self.new_open_shows(m.path(NAME), new),
                            "a new open shows no new file")
        # What is in the cache belongs to one version or the other.
        with qfmount.Mount(self.store, cache=f"{self.dir}/cache", views="nf4") as m:
            self.assertTrue(S.read_file(m.path(NAME)) == new)
        return refused

    def again(self):
        """The first version, in another file."""
        S.write(f"{self.dir}/new", self.source)
        os.rename(f"{self.dir}/new", self.file)

    def in_all_states(self, change):
        refused = []
        for look in (self.opened, self.mapped, self.encoding):
            self.again()
            refused.append(self.check(change, look))
        return refused

    def test_replaced(self):
        self.in_all_states(self.replaced)

    def test_written_in_place(self):
        opened, mapped, _ = self.in_all_states(self.written)
        self.assertGreater(opened, 0)
        self.assertGreater(mapped, 0)

    def test_recreated(self):
        self.in_all_states(self.recreated)

    def test_appended(self):
        self.in_all_states(self.appended)

    def test_truncated(self):
        opened, mapped, _ = self.in_all_states(self.truncated)
        self.assertGreater(opened, 0)
        self.assertGreater(mapped, 0)

    def test_touched(self):
        self.in_all_states(self.touched)

    def test_new_model_appears(self):
        with qfmount.Mount(self.store, views="nf4", attr_ttl=1) as m:
            os.listdir(m.path("nf4"))
            self.assertFalse(os.path.exists(m.path("nf4/later")))
            S.write_llama(f"{self.dir}/later")
            os.rename(f"{self.dir}/later", f"{self.store}/later")
            end = time.monotonic() + 20
            while not os.path.exists(m.path("nf4/later")) and time.monotonic() < end:
                time.sleep(0.1)
            self.assertIn("later", os.listdir(m.path("nf4")))
            S.read_header(S.read_file(m.path("nf4/later/model.safetensors")))


if __name__ == "__main__":
    sys.exit(qfmount.main())
