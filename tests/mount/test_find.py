#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Promise 1: sizes and headers cost no compute. `find -ls` over 200 models."""
import os
import subprocess
import sys
import time

import qfmount
import qfstore as S

MODELS = 200
LIMIT_S = 20.0 if qfmount.SLOW else 2.0


class Find(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.dir}/first", hidden=64, inter=128, vocab=64)
        files = {f: S.read_file(f"{self.dir}/first/{f}")
                 for f in os.listdir(f"{self.dir}/first")}
        for i in range(MODELS):
            for name, data in files.items():
                S.write(f"{self.store}/org{i % 10}/model{i}/{name}", data)
        self.headers = len(files["model.safetensors"]) - 1
        (n, ) = S.struct.unpack("<Q", files["model.safetensors"][:8])
        self.header_bytes = (8 + n) * MODELS
        self.weight_bytes = (len(files["model.safetensors"]) - 8 - n) * MODELS

    def test_find_ls(self):
        with qfmount.Mount(self.store) as m:
            begin = time.monotonic()
            done = subprocess.run(["find", m.mnt, "-ls"], capture_output=True, check=True)
            took = time.monotonic() - begin
            listed = done.stdout.decode().splitlines()
            status = m.status()
            print(f"find -ls: {len(listed)} entries in {took:.2f} s")
            self.assertEqual(len(listed), 1 + 4 * (1 + 10 + MODELS * 3))
            self.assertEqual(done.stderr, b"")
            self.assertEqual(status["chunks_encoded"], 0)
            # Nothing of the weights: at most headers (some pages more), in four views.
            self.assertLess(status["source_bytes_read"], self.weight_bytes // 4)
            self.assertLess(took, LIMIT_S)

    def test_headers_read_no_weight(self):
        """Parsing every header of a view: nothing is encoded either."""
        with qfmount.Mount(self.store, views="nf4") as m:
            for i in range(MODELS):
                path = m.path("nf4", f"org{i % 10}", f"model{i}", "model.safetensors")
                fd = os.open(path, os.O_RDONLY)
                try:
                    # One page, as a kernel without read-ahead would ask for.
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
                    (n, ) = S.struct.unpack("<Q", os.pread(fd, 8, 0))
                    self.assertGreater(n, 100)
                    self.assertGreater(os.fstat(fd).st_size, n)
                finally:
                    os.close(fd)
            self.assertEqual(m.status()["chunks_encoded"], 0)


if __name__ == "__main__":
    sys.exit(qfmount.main())
