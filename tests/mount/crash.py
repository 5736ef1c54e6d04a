#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Kills daemons (SIGKILL) at random moments under load from four readers, mounts the same
cache again and compares every file with the reference. Between kills two daemons may
share the cache, and only one of them dies. The cache is smaller than the views, so it
evicts all the time.

  crash.py [--kills N] [--seed N] [--report FILE]

Prints its report; exit status 0 when no byte was wrong and no start refused."""
import argparse
import errno
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time

import qfmount
import qfstore as S

READERS = 4
# A dead daemon's mount, a read under way when it died, a lookup after it.
FATAL = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ENOENT, errno.EINTR)


class Crash:
    def __init__(self, directory, seed):
        self.rng = random.Random(seed)
        self.dir = directory
        self.store = os.path.join(directory, "store")
        self.cache = os.path.join(directory, "cache")
        S.write_llama(f"{self.store}/big", hidden=1032, inter=2056, vocab=16, shards=2,
                      layers=2)
        S.write_llama(f"{self.store}/f32", hidden=520, inter=1030, vocab=16,
                      stored="F32", layers=2)
        S.write_gpt2(f"{self.store}/gpt2", hidden=192, layers=2)
        self.report = dict(kills=0, kills_before_ready=0, kills_of_one_of_two=0, mounts=0,
                           refused_starts=0, files_compared=0, bytes_compared=0,
                           bytes_read_under_load=0, wrong_files=0, wrong_reads=0,
                           unexpected_errors=0, chunks_encoded=0, cache_hits=0,
                           cache_damaged=0, caches_set_aside=0)
        self.lock = threading.Lock()
        self.want = {}
        with qfmount.Mount(self.store, cache="none") as m:
            for name in S.files_below(m.mnt):
                self.want[name] = S.read_file(m.path(name))
        self.shards = [n for n in self.want if n.endswith(".safetensors")]
        # Less than all views take: values are evicted throughout.
        total = sum(len(self.want[n]) for n in self.shards)
        self.cache_size = max(16 << 20, total // 2)

    def count(self, **more):
        with self.lock:
            for key, value in more.items():
                self.report[key] += value

    def mount(self):
        return qfmount.Mount(self.store, cache=self.cache, cache_size=self.cache_size)

    def reader(self, mount, seed, stop):
        rng = random.Random(seed)
        while not stop.is_set():
            name = rng.choice(self.shards)
            data = self.want[name]
            try:
                fd = os.open(mount.path(name), os.O_RDONLY)
                try:
                    start = rng.randrange(len(data)) if rng.random() < .5 else 0
                    for off in range(start, len(data), 1 << 18):
                        got = os.pread(fd, 1 << 18, off)
                        self.count(bytes_read_under_load=len(got))
                        if got != data[off:off + len(got)]:
                            self.count(wrong_reads=1)
                        # A daemon that dies in the middle leaves a short read.
                        if stop.is_set() or len(got) < min(1 << 18, len(data) - off):
                            break
                finally:
                    os.close(fd)
            except OSError as e:
                if e.errno not in FATAL or not stop.is_set() and mount.process.poll() is None:
                    # The kill may be on its way: only a daemon that lives on is at fault.
                    time.sleep(0.2)
                    if mount.process.poll() is None:
                        self.count(unexpected_errors=1)
                return

    def start(self, mount):
        self.count(mounts=1)
        try:
            mount._start()
            return True
        except qfmount.MountError as e:
            self.count(refused_starts=1)
            print("refused:", e, file=sys.stderr)
            return False

    def kill_before_ready(self):
        mount = self.mount()
        thread = threading.Thread(target=lambda: self._swallow(mount._start))
        thread.start()
        while mount.process is None:
            time.sleep(0.0005)
        time.sleep(self.rng.random() * 0.03)
        mount.kill()
        thread.join()
        self.finish(mount)
        self.count(kills=1, kills_before_ready=1)

    @staticmethod
    def _swallow(call):
        try:
            call()
        except (qfmount.MountError, OSError):
            pass

    def kill_under_load(self, others=0):
        mounts = [self.mount() for _ in range(1 + others)]
        if not all([self.start(m) for m in mounts]):
            for m in mounts:
                m.kill()
            return
        stops = [threading.Event() for _ in mounts]
        threads = [threading.Thread(target=self.reader,
                                    args=(m, self.rng.random(), stop))
                   for m, stop in zip(mounts, stops) for _ in range(READERS)]
        for t in threads:
            t.start()
        time.sleep(self.rng.random() ** 2 * 0.4)
        stops[0].set()
        mounts[0].kill()
        self.count(kills=1, kills_of_one_of_two=others)
        if others:
            time.sleep(self.rng.random() * 0.1)
        for stop in stops:
            stop.set()
        for t in threads:
            t.join()
        for m in mounts[1:]:
            self.compare(m)
            m.close()
        self.finish(mounts[0])

    def finish(self, mount):
        log = mount.log()
        self.count(caches_set_aside=log.count("set aside"))
        shutil.rmtree(mount.own, ignore_errors=True)

    def compare(self, mount):
        """Every file of the mount with the reference."""
        for name, data in self.want.items():
            got = S.read_file(mount.path(name))
            self.count(files_compared=1, bytes_compared=len(got))
            if got != data:
                self.count(wrong_files=1)
                print("wrong bytes:", name, file=sys.stderr)
        status = mount.status()
        self.count(chunks_encoded=status["chunks_encoded"],
                   cache_hits=status["cache_hits"],
                   cache_damaged=status["cache_damaged"])

    def remount_and_compare(self):
        mount = self.mount()
        if not self.start(mount):
            mount.kill()
            return
        self.compare(mount)
        # Half of the time the next daemon finds a cache that nobody closed.
        if self.rng.random() < .5:
            mount.kill()
            self.count(kills=1)
        else:
            mount.unmount()
        self.finish(mount)

    def run(self, kills):
        began = said = time.monotonic()
        while self.report["kills"] < kills and self.report["refused_starts"] < 10:
            what = self.rng.random()
            if what < .15:
                self.kill_before_ready()
            else:
                self.kill_under_load(others=1 if what < .35 else 0)
            self.remount_and_compare()
            if time.monotonic() - said > 10:
                said = time.monotonic()
                print(f"{self.report['kills']}/{kills} kills, "
                      f"{said - began:.0f} s", file=sys.stderr)
        return (self.report["wrong_files"] == self.report["wrong_reads"] ==
                self.report["refused_starts"] == self.report["unexpected_errors"] == 0)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--report")
    args = parser.parse_args()
    reason = qfmount.why_not()
    if reason:
        print(f"SKIP: {reason}")
        return 77
    seed = args.seed if args.seed is not None else random.SystemRandom().randrange(1 << 32)
    directory = tempfile.mkdtemp(prefix="quantfs-crash-")
    try:
        crash = Crash(directory, seed)
        good = crash.run(args.kills)
        good &= crash.report["kills"] >= args.kills
        report = {"seed": seed, **crash.report}
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    print("\n".join(f"{key:24} {value}" for key, value in report.items()))
    if args.report:
        with open(args.report, "w", encoding="utf-8") as f:
            json.dump(report, f, indent=1)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
