#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Promises 2 and 3: the bytes of a view do not depend on who reads them, how, when, or
how often the server was restarted; and they are never wrong."""
import errno
import mmap
import os
import random
import shutil
import subprocess
import sys
import threading
import time

import qfmount
import qfstore as S

VIEWS = ["dq", "fp4", "int8", "nf4"]
# Large enough for several chunks (2^20 elements) a tensor, and for tails of them.
HIDDEN, INTER = 1032, 2056


def make_store(path):
    S.write_llama(f"{path}/big", hidden=HIDDEN, inter=INTER, vocab=16, shards=2)
    S.write_llama(f"{path}/cast", hidden=200, inter=330, stored="F32", layers=2)
    S.write_gpt2(f"{path}/gpt2", hidden=96, layers=2)


def shards(root):
    return [f for f in S.files_below(root) if f.endswith(".safetensors")]


class Read(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        make_store(self.store)
        self.cache = os.path.join(self.dir, "cache")

    def reference(self):
        """Every shard of every view, read from front to back."""
        with qfmount.Mount(self.store, cache="none") as m:
            return {f"{v}/{f}": S.read_file(m.path(v, f))
                    for v in VIEWS for f in shards(m.path(v))}

    def test_random_reads_equal_sequential_ones(self):
        want = self.reference()
        rng = random.Random(7)
        with qfmount.Mount(self.store, cache="none") as m:
            for name, data in want.items():
                fd = os.open(m.path(name), os.O_RDONLY)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                for _ in range(40):
                    off = rng.randrange(len(data) + 10)
                    size = rng.choice((1, 7, 4096, 70001, 300000))
                    self.assertEqual(os.pread(fd, size, off), data[off:off + size],
                                     f"{name} {off}+{size}")
                self.assertEqual(os.pread(fd, 10, len(data)), b"")
                self.assertEqual(os.pread(fd, 10, len(data) + 12345), b"")
                os.close(fd)

    def test_direct(self):
        """O_DIRECT: past the page cache, also where it has other pages of the file."""
        want = self.reference()
        with qfmount.Mount(self.store) as m:
            for name, data in want.items():
                self.assertEqual(S.read_file(m.path(name))[:100], data[:100])
                fd = os.open(m.path(name), os.O_RDONLY | os.O_DIRECT)
                buffer = mmap.mmap(-1, 1 << 20)
                for off in range(0, len(data) + 1, 1 << 20):
                    n = os.preadv(fd, [buffer], off)
                    self.assertEqual(n, min(1 << 20, len(data) - off), name)
                    self.assertTrue(buffer[:n] == data[off:off + n], f"{name} {off}")
                os.close(fd)

    def test_mmap(self):
        want = self.reference()
        with qfmount.Mount(self.store) as m:
            for name, data in want.items():
                with open(m.path(name), "rb") as f:
                    for flags in (mmap.MAP_SHARED, mmap.MAP_PRIVATE):
                        with mmap.mmap(f.fileno(), 0, flags, mmap.PROT_READ) as view:
                            # Backwards, so that faults come in no helpful order.
                            for off in range(len(data) // 4096 * 4096, -1, -4096 * 7):
                                self.assertEqual(view[off:off + 100],
                                                 data[off:off + 100])
                            self.assertTrue(view[:] == data, name)

    def test_parallel_readers(self):
        """Many threads over the same cold chunks: one encoding each, equal bytes."""
        want = self.reference()
        with qfmount.Mount(self.store) as m:
            wrong = []

            def read(seed):
                names = list(want)
                random.Random(seed).shuffle(names)
                for name in names:
                    data = want[name]
                    with open(m.path(name), "rb", buffering=0) as f:
                        f.seek(seed * 4096 % len(data))
                        begin = f.tell()
                        got = f.read(len(data))
                        while got and begin + len(got) < len(data):
                            more = f.read(len(data))
                            if not more:
                                break
                            got += more
                        if got != data[begin:]:
                            wrong.append(f"{name} from {begin}")

            threads = [threading.Thread(target=read, args=(i,)) for i in range(12)]
            for t in threads:
                t.start()
            for t in threads:
                t.join()
            self.assertEqual(wrong, [])
            status = m.status()
            fresh = status["chunks_encoded"]
        with qfmount.Mount(self.store) as m:
            for name in want:
                S.read_file(m.path(name))
            alone = m.status()["chunks_encoded"]
        print(f"chunks encoded: {fresh} by 12 readers, {alone} by one")
        self.assertEqual(fresh, alone)

    def test_read_ahead(self):
        """Raised by root, in all modes; the answer to INIT does not take it back."""
        if os.getuid() != 0:
            self.skipTest("only root may")
        for passthrough in ("auto", "off"):
            for kb in (4096, 512):
                with qfmount.Mount(self.store, cache="none", passthrough=passthrough,
                                   read_ahead_kb=kb) as m:
                    dev = os.stat(m.path("nf4")).st_dev  # answered: INIT is, too
                    path = f"/sys/class/bdi/{os.major(dev)}:{os.minor(dev)}/read_ahead_kb"
                    if not os.access(path, os.W_OK):
                        self.skipTest("/sys is read-only here")
                    # Written by the thread that answers INIT, after the answer.
                    end = time.monotonic() + 10
                    while int(S.read_file(path)) != kb and time.monotonic() < end:
                        time.sleep(0.01)
                    self.assertEqual(int(S.read_file(path)), kb, passthrough)

    def test_options_do_not_change_bytes(self):
        want = self.reference()
        for options in ({"isa": "scalar"}, {"threads": 1}, {"threads": 7},
                        {"cache_size": "16M"}):
            cache = "none" if "cache_size" not in options else None
            with qfmount.Mount(self.store, cache=cache, **options) as m:
                for name, data in want.items():
                    self.assertTrue(S.read_file(m.path(name)) == data,
                                    f"{name} with {options}")

    def test_remount_encodes_nothing(self):
        with qfmount.Mount(self.store, cache=self.cache) as m:
            first = S.digest_tree(m.mnt)
            self.assertGreater(m.status()["chunks_encoded"], 0)
        with qfmount.Mount(self.store, cache=self.cache) as m:
            self.assertEqual(S.digest_tree(m.mnt), first)
            status = m.status()
            self.assertEqual(status["chunks_encoded"], 0)
            self.assertGreater(status["cache_hits"], 0)

    def test_hub_blob_keeps_its_cache(self):
        """A blob is named by its contents: moved or downloaded again (another inode,
        another time) it is the same source; any other file is a new one."""
        repo = f"{self.store}/hub/models--org--net"
        S.write_llama(f"{repo}/snapshots/0a1b", hidden=200, inter=330)
        plain = f"{repo}/snapshots/0a1b/model.safetensors"
        blob = f"{repo}/blobs/{S.sha256(plain)}"
        os.mkdir(f"{repo}/blobs")
        os.rename(plain, blob)
        os.symlink(f"../../blobs/{os.path.basename(blob)}", plain)
        name = "nf4/hub/models--org--net/snapshots/0a1b/model.safetensors"

        def encoded():
            with qfmount.Mount(self.store, cache=self.cache) as m:
                data = S.read_file(m.path(name))
                return data, m.status()["chunks_encoded"]

        data, count = encoded()
        self.assertGreater(count, 0)
        shutil.copy(blob, blob + ".new")
        os.replace(blob + ".new", blob)
        self.assertEqual(encoded(), (data, 0))
        os.rename(repo, f"{self.store}/hub/models--org--other")
        name = name.replace("--net", "--other")
        self.assertEqual(encoded(), (data, 0))
        # The same file under a name that says nothing.
        repo = f"{self.store}/hub/models--org--other"
        os.remove(f"{repo}/snapshots/0a1b/model.safetensors")
        os.rename(f"{repo}/blobs/{os.path.basename(blob)}",
                  f"{repo}/snapshots/0a1b/model.safetensors")
        self.assertEqual(encoded(), (data, count))

    def test_killed_server(self):
        """kill -9 in the middle of a read; then the cache is good, or empty, never wrong."""
        want = self.reference()
        name = max(want, key=lambda n: len(want[n]))
        for delay in (0.0, 0.05, 0.3):
            m = qfmount.Mount(self.store, cache=self.cache).__enter__()
            try:
                reader = subprocess.Popen(["cat", m.path(name)], stdout=subprocess.DEVNULL,
                                          stderr=subprocess.DEVNULL)
                time.sleep(delay)
                m.kill()
                reader.wait(60)
                self.assertFalse(qfmount.mounted(m.mnt))
            finally:
                m.close()
        with qfmount.Mount(self.store, cache=self.cache) as m:
            for name, data in want.items():
                self.assertTrue(S.read_file(m.path(name)) == data, name)

    def test_dead_mountpoint_can_be_unmounted(self):
        m = qfmount.Mount(self.store).__enter__()
        try:
            m.process.kill()
            m.process.wait()
            self.assertErrno([errno.ENOTCONN], os.listdir, m.mnt)
            rc, _, err = qfmount.run("umount", m.mnt)
            self.assertEqual((rc, err), (0, ""))
            self.assertFalse(qfmount.mounted(m.mnt))
        finally:
            m.close()


if __name__ == "__main__":
    sys.exit(qfmount.main())
