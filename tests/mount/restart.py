#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills the daemon of one mount (SIGKILL) at random moments, again and again, under a
keeper, while four readers read whole files, one walks a mapping, and one lists and
looks around. Nobody may see an error or another byte than the reference has. The page
cache is dropped all the time, so that reads are requests.

  restart.py [--kills N] [--seed N] [--handover]

--handover ends every other daemon by SIGUSR2 instead, as an upgrade does. Prints its
report; exit status 0 when nobody noticed."""
import argparse
import hashlib
import mmap
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time

import qfmount
import qfstore as S

READERS = 4
PIECE = 1 << 18


class Restart:
    def __init__(self, directory, seed, handover):
        self.rng = random.Random(seed)
        self.dir = directory
        self.handover = handover
        self.store = os.path.join(directory, "store")
        S.write_llama(f"{self.store}/big", hidden=1032, inter=2056, vocab=16, shards=2,
                      layers=2)
        S.write_llama(f"{self.store}/f32", hidden=520, inter=1030, vocab=16,
                      stored="F32", layers=2)
        self.want = {}
        with qfmount.Mount(self.store, cache="none", passthrough="off") as m:
            for name in S.files_below(m.mnt):
                if not name.startswith(".quantfs/"):
                    self.want[name] = S.read_file(m.path(name))
            self.dirs = {d: sorted(os.listdir(m.path(d))) for d in
                         {os.path.dirname(n) for n in self.want}}
        self.shards = [n for n in self.want if n.endswith(".safetensors")]
        self.lock = threading.Lock()
        self.stop = threading.Event()
        self.report = dict(kills=0, handovers=0, files_read=0, bytes_read=0,
                           pages_walked=0, looks=0, wrong=0, errors=0)
        self.messages = []

    def count(self, **more):
        with self.lock:
            for key, value in more.items():
                self.report[key] += value

    def complain(self, kind, text):
        self.count(**{kind: 1})
        with self.lock:
            self.messages.append(text)

    def guarded(self, work, *args):
        while not self.stop.is_set():
            try:
                work(*args)
            except Exception as e:  # pylint: disable=broad-except
                self.complain("errors", f"{work.__name__}: {e!r}")

    def read_file(self, mount, rng):
        name = rng.choice(self.shards)
        digest, size = hashlib.sha256(), 0
        fd = os.open(mount.path(name), os.O_RDONLY)
        try:
            while part := os.read(fd, PIECE):
                digest.update(part)
                size += len(part)
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            if size != os.fstat(fd).st_size:
                self.complain("wrong", f"{name}: {size} bytes of {os.fstat(fd).st_size}")
        finally:
            os.close(fd)
        if digest.digest() != hashlib.sha256(self.want[name]).digest():
            self.complain("wrong", f"{name}: other bytes")
        self.count(files_read=1, bytes_read=size)

    def walk_mapping(self, mount, rng):
        name = rng.choice(self.shards)
        data = self.want[name]
        with open(mount.path(name), "rb") as f:
            with mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ) as view:
                for _ in range(200):
                    at = rng.randrange(0, len(data), 4096)
                    size = min(rng.choice((1, 4096, 300000)), len(data) - at)
                    if view[at:at + size] != data[at:at + size]:
                        self.complain("wrong", f"{name}: mapping at {at}")
                    view.madvise(mmap.MADV_DONTNEED)
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    if self.stop.is_set():
                        break
        self.count(pages_walked=200)

    def look_around(self, mount, rng):
        name = rng.choice(list(self.dirs))
        if sorted(os.listdir(mount.path(name))) != self.dirs[name]:
            self.complain("wrong", f"{name}: another listing")
        name = rng.choice(list(self.want))
        if os.stat(mount.path(name)).st_size != len(self.want[name]):
            self.complain("wrong", f"{name}: another size")
        small = rng.choice([n for n in self.want if n.endswith(".json")])
        if S.read_file(mount.path(small)) != self.want[small]:
            self.complain("wrong", f"{small}: other bytes")
        self.count(looks=1)

    def end_a_daemon(self, mount):
        pid = mount.status()["pid"]
        time.sleep(self.rng.random() ** 2 * 0.5)
        if self.handover and self.rng.random() < .5:
            os.kill(pid, signal.SIGUSR2)
            self.count(handovers=1)
        else:
            os.kill(pid, signal.SIGKILL)
            self.count(kills=1)
        end = time.monotonic() + 60
        while mount.status()["pid"] == pid:
            if time.monotonic() > end:
                raise RuntimeError("no other daemon came")
            time.sleep(0.01)

    def run(self, kills):
        began = said = time.monotonic()
        # Names and attributes are forgotten at once: everything is asked anew.
        with qfmount.Mount(self.store, restart="keeper", attr_ttl=0,
                           cache_size="32M") as mount:
            work = [(self.read_file, i) for i in range(READERS)]
            work += [(self.walk_mapping, 10), (self.look_around, 20)]
            threads = [threading.Thread(target=self.guarded,
                                        args=(what, mount, random.Random(seed)))
                       for what, seed in work]
            for t in threads:
                t.start()
            try:
                while self.report["kills"] + self.report["handovers"] < kills:
                    self.end_a_daemon(mount)
                    if time.monotonic() - said > 10:
                        said = time.monotonic()
                        print(f"{self.report['kills']}/{kills} kills, "
                              f"{said - began:.0f} s", file=sys.stderr)
            finally:
                self.stop.set()
                for t in threads:
                    t.join(60)
            if any(t.is_alive() for t in threads):
                self.complain("errors", "a reader hangs")
        return self.report["wrong"] == self.report["errors"] == 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--handover", action="store_true")
    args = parser.parse_args()
    reason = qfmount.why_not()
    if reason:
        print(f"SKIP: {reason}")
        return 77
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    directory = tempfile.mkdtemp(prefix="quantfs-restart-")
    try:
        restart = Restart(directory, seed, args.handover)
        good = restart.run(args.kills)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    for text in restart.messages[:20]:
        print(text, file=sys.stderr)
    for key, value in {"seed": seed, **restart.report}.items():
        print(f"{key:16} {value}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
