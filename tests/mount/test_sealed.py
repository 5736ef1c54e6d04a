#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Sealed shards, which the kernel reads by itself: the same bytes, without us, and still
the same when the file goes or the source changes."""
import errno
import hashlib
import mmap
import os
import random
import threading
import time

import qfmount
import qfstore as S

VIEWS = ["nf4", "int8", "dq", "fp4"]
WAIT_S = 120
NAME = "m/model.safetensors"


class Sealed(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.write("")
        self.cache = os.path.join(self.dir, "cache")
        with self.mount() as m:
            said = m.status()["passthrough"]
        if said != "on":
            self.skipTest(f"passthrough={said}")
        with qfmount.Mount(self.store, cache="none") as m:
            self.want = {v: S.read_file(m.path(v, NAME)) for v in VIEWS}

    def write(self, seed):
        S.write_llama(f"{self.store}/m", hidden=1032, inter=2056, vocab=16, seed=seed)

    def mount(self, **options):
        return qfmount.Mount(self.store, cache=self.cache, **options)

    def wait(self, m, key, value):
        end = time.monotonic() + WAIT_S
        while m.status()[key] != value:
            self.assertLess(time.monotonic(), end, f"{key} is {m.status()[key]}")
            time.sleep(0.02)

    def seal(self, m, views=VIEWS):
        for v in views:
            self.assertEqual(S.read_file(m.path(v, NAME)), self.want[v], v)
        self.wait(m, "shards_sealed", len(views))

    def sealed_files(self, view):
        size = len(self.want[view])
        found = []
        for top, _, names in os.walk(self.cache):
            paths = [os.path.join(top, n) for n in names]
            found += [p for p in paths if os.path.getsize(p) == size]
        return found

    def test_read_without_us(self):
        with self.mount() as m:
            self.seal(m)
            before = m.status()
            self.assertEqual(before["opens_passthrough"], 0)
            self.assertGreater(before["sealed_bytes"], 0)
            rng = random.Random(3)
            for v in VIEWS:
                want = self.want[v]
                self.assertEqual(S.sha256(m.path(v, NAME)),
                                 hashlib.sha256(want).hexdigest())
                with open(m.path(v, NAME), "rb") as f:
                    with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                        self.assertEqual(mapped[:], want)
                    for _ in range(50):
                        off = rng.randrange(len(want))
                        size = rng.choice((1, 4096, 300001))
                        self.assertEqual(os.pread(f.fileno(), size, off),
                                         want[off:off + size])
                    self.assertEqual(os.fstat(f.fileno()).st_size, len(want))
                    self.assertEqual(os.pread(f.fileno(), 10, len(want)), b"")
            after = m.status()
            self.assertEqual(after["opens_passthrough"], 2 * len(VIEWS))
            for key in ("bytes_served", "chunks_encoded", "source_bytes_read",
                        "read_errors"):
                self.assertEqual(after[key], before[key], key)

    def test_many_opens(self):
        with self.mount() as m:
            self.seal(m, ["nf4"])
            want = self.want["nf4"]
            wrong = []

            def reader(seed):
                rng = random.Random(seed)
                for _ in range(30):
                    with open(m.path("nf4", NAME), "rb") as f:
                        off = rng.randrange(len(want))
                        if os.pread(f.fileno(), 100000, off) != want[off:off + 100000]:
                            wrong.append(off)

            threads = [threading.Thread(target=reader, args=(i,)) for i in range(8)]
            served = m.status()["bytes_served"]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(wrong, [])
            self.assertEqual(m.status()["opens_passthrough"], 240)
            self.assertEqual(m.status()["bytes_served"], served)

    def test_remount(self):
        with self.mount() as m:
            self.seal(m)
        with self.mount() as m:
            for v in VIEWS:
                self.assertEqual(S.read_file(m.path(v, NAME)), self.want[v])
            status = m.status()
            self.assertEqual(status["opens_passthrough"], len(VIEWS))
            for key in ("bytes_served", "chunks_encoded", "source_bytes_read"):
                self.assertEqual(status[key], 0, key)

    def test_switched_off(self):
        with self.mount(passthrough="off") as m:
            self.assertEqual(m.status()["passthrough"], "off (by option)")
            for _ in range(2):
                self.assertEqual(S.read_file(m.path("nf4", NAME)), self.want["nf4"])
            self.assertEqual(m.status()["shards_sealed"], 0)
        with self.mount() as m:
            self.seal(m, ["nf4"])
        # what is sealed is read all the same, by us
        with self.mount(passthrough="off") as m:
            self.assertEqual(S.read_file(m.path("nf4", NAME)), self.want["nf4"])
            status = m.status()
            self.assertEqual(status["opens_passthrough"], 0)
            self.assertEqual(status["sealed_bytes_served"], len(self.want["nf4"]))
            self.assertEqual(status["chunks_encoded"], 0)

    def test_cached_reader_holds(self):
        """One mode at a time: who came before the shard was sealed keeps all others in
        the mode that goes through us, until the last of them has closed."""
        want = self.want["dq"]
        with self.mount() as m, self.mount() as other:
            with open(m.path("dq", NAME), "rb") as early:
                os.posix_fadvise(early.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
                self.assertEqual(os.pread(early.fileno(), 10, 100), want[100:110])
                self.seal(other, ["dq"])
                self.assertEqual(S.read_file(m.path("dq", NAME)), want)
                self.assertEqual(early.read(), want)
                self.assertEqual(m.status()["opens_passthrough"], 0)
            self.assertEqual(S.read_file(m.path("dq", NAME)), want)
            self.assertEqual(m.status()["opens_passthrough"], 1)
            self.assertEqual(m.status()["read_errors"], 0)

    def test_evicted_while_open(self):
        want = self.want["nf4"]
        with self.mount() as m:
            self.seal(m, ["nf4"])
            with open(m.path("nf4", NAME), "rb") as f:
                files = self.sealed_files("nf4")
                self.assertEqual(len(files), 1)
                os.unlink(files[0])
                self.assertEqual(f.read(), want)
                # while it passes through, a second reader gets the same file
                self.assertEqual(S.read_file(m.path("nf4", NAME)), want)
                self.assertEqual(m.status()["opens_passthrough"], 2)
            self.assertEqual(S.read_file(m.path("nf4", NAME)), want)
            self.assertEqual(m.status()["opens_passthrough"], 2)

    def test_source_replaced(self):
        """The old version whole, or an error; the new one for who opens it anew."""
        old = self.want["nf4"]
        with self.mount() as m:
            self.seal(m, ["nf4"])
            fd = os.open(m.path("nf4", NAME), os.O_RDONLY)
            mapped = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            self.assertEqual(m.status()["opens_passthrough"], 1)
            self.write("other")
            self.assertEqual(os.pread(fd, 70000, 5000), old[5000:75000])
            with qfmount.Mount(self.store, cache="none") as fresh:
                new = S.read_file(fresh.path("nf4", NAME))
            self.assertNotEqual(new, old)
            self.assertEqual(S.read_file(m.path("nf4", NAME)), new)
            self.assertEqual(mapped[:], old)
            mapped.close()
            # The kernel knows now that the old inode is no more.
            self.assertErrno([errno.EIO], os.pread, fd, 70000, 5000)
            self.assertErrno([errno.EIO], os.close, fd)
            self.wait(m, "shards_sealed_here", 2)
            self.assertEqual(S.read_file(m.path("nf4", NAME)), new)
            self.assertEqual(m.status()["opens_passthrough"], 2)


if __name__ == "__main__":
    qfmount.main()
