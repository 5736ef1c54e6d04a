#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What signals do to a daemon, what it tells the service manager, and its log."""
import contextlib
import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import qfmount
import qfstore as S

SHARD = "nf4/model/model.safetensors"


def wait_for(what, seconds=30):
    """The first true value of what(), or its last one."""
    end = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < end:
        time.sleep(0.02)
    return value


def is_stopped(pid):
    return S.read_file(f"/proc/{pid}/stat").rpartition(b")")[2].split()[0] == b"T"


@contextlib.contextmanager
def opened(path):
    """A descriptor that may outlive the mount: closing it is then an error."""
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


class Signals(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        S.write_llama(f"{self.store}/model")

    def assertLogged(self, mount, text):
        if not wait_for(lambda: text in mount.log()):
            self.fail(f"'{text}' is not in the log:\n{mount.log()}")

    def write_policy(self, text):
        S.write(f"{self.dir}/policy.json", text)
        return f"{self.dir}/policy.json"


class End(Signals):
    def test_readers_are_waited_for(self):
        """SIGTERM: the name goes at once, who reads reads to the end."""
        with qfmount.Mount(self.store, drain_timeout=60) as m:
            want = S.read_file(m.path(SHARD))
            with open(m.path(SHARD), "rb", buffering=0) as f:
                got = f.read(100)
                m.process.terminate()
                self.assertTrue(wait_for(lambda: not qfmount.mounted(m.mnt)))
                for _ in range(15):  # longer than a daemon without readers waits
                    got += os.pread(f.fileno(), 100, len(got))
                    os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    time.sleep(0.1)
                    self.assertIsNone(m.process.poll())
                while len(got) < len(want):
                    got += os.pread(f.fileno(), 1 << 16, len(got))
            self.assertEqual(got, want)
            self.assertEqual(m.process.wait(60), 0)

    def test_idle_handle(self):
        """An open file that nobody reads does not hold it up."""
        with qfmount.Mount(self.store, drain_timeout=60) as m:
            with opened(m.path(SHARD)):
                began = time.monotonic()
                m.process.send_signal(signal.SIGINT)
                self.assertEqual(m.process.wait(60), 0)
                if not qfmount.SLOW:
                    self.assertLess(time.monotonic() - began, 20)
            self.assertFalse(qfmount.mounted(m.mnt))

    def test_bound(self):
        """Who reads on and on is cut off when the time is over."""
        with qfmount.Mount(self.store, drain_timeout=2) as m:
            with opened(m.path(".quantfs/status")) as fd:
                m.process.terminate()
                with self.assertRaises(OSError):
                    end = time.monotonic() + 60
                    while time.monotonic() < end:  # every read is a request
                        os.pread(fd, 100, 0)
                        time.sleep(0.01)
            self.assertEqual(m.process.wait(60), 0)
            self.assertIn("cut off", m.log())

    def test_stuck(self):
        """A request that cannot be answered is left behind, and that is said."""
        # ASan's search for leaks would wait for the thread that hangs, and to TSan
        # that thread is one.
        for name, option in (("ASAN_OPTIONS", ":detect_leaks=0"),
                             ("TSAN_OPTIONS", ":report_thread_leaks=0")):
            before = os.environ.get(name, "")
            os.environ[name] = before + option
            self.addCleanup(os.environ.__setitem__, name, before)
        def read(path):
            with contextlib.suppress(OSError):
                S.read_file(path)

        with qfmount.Mount(self.store, views="int8") as source:
            with qfmount.Mount(source.path("int8"), drain_timeout=2, views="nf4") as m:
                os.stat(m.path("nf4/model/model.safetensors"))
                source.process.send_signal(signal.SIGSTOP)
                wait_for(lambda: is_stopped(source.process.pid))
                reader = threading.Thread(target=read, args=(m.path(SHARD),))
                reader.start()
                try:
                    time.sleep(3 if qfmount.SLOW else 0.5)
                    m.process.terminate()
                    self.assertEqual(m.process.wait(60), 2)
                    self.assertIn("requests unanswered", m.log())
                finally:
                    source.process.send_signal(signal.SIGCONT)
                reader.join()
            self.assertFalse(qfmount.mounted(m.mnt))

    def test_twice(self):
        """A second signal does not wait for readers."""
        with qfmount.Mount(self.store, drain_timeout=600) as m:
            stop = threading.Event()

            def read(fd):
                with contextlib.suppress(OSError):
                    while not stop.is_set():
                        os.pread(fd, 100, 0)

            with opened(m.path(".quantfs/status")) as fd:
                thread = threading.Thread(target=read, args=(fd,))
                thread.start()
                try:
                    m.process.terminate()
                    self.assertLogged(m, "told to end")
                    time.sleep(1.5)
                    self.assertIsNone(m.process.poll())
                    m.process.terminate()
                    self.assertEqual(m.process.wait(60), 0)
                finally:
                    stop.set()
                    thread.join()

    def test_during_the_start(self):
        """Before the mount is up a signal ends the process as it ends any other."""
        fifo = f"{self.dir}/policy"
        os.mkfifo(fifo)  # the start waits for somebody who writes
        mnt = f"{self.dir}/mnt"
        os.mkdir(mnt)
        for signo in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with subprocess.Popen([qfmount.binary(), "mount", "-f", "-o",
                                   f"cache=none,policy={fifo}", self.store, mnt]) as p:
                time.sleep(0.5)
                p.send_signal(signo)
                self.assertEqual(p.wait(60), -signo)


class Reload(Signals):
    def test_policy(self):
        """New opens see the new views; an open file never becomes a mixture."""
        policy = self.write_policy("{}")
        with qfmount.Mount(self.store, policy=policy) as m:
            before = S.read_file(m.path(SHARD))
            with opened(m.path(SHARD)) as old:
                self.write_policy('{"skip": ["q_proj"]}')
                m.process.send_signal(signal.SIGHUP)
                self.assertLogged(m, "are read again")
                half = len(before) // 2
                got = os.pread(old, half, 0)
                after = S.read_file(m.path(SHARD))
                tensors = S.read_header(after)[0]
                self.assertNotIn("model.layers.0.self_attn.q_proj.weight.absmax", tensors)
                self.assertIn("model.layers.0.self_attn.k_proj.weight.absmax", tensors)
                self.assertEqual(os.stat(m.path(SHARD)).st_size, len(after))
                # The kernel has another inode now; this one is what it was, or nothing.
                with contextlib.suppress(OSError):
                    got += os.pread(old, len(before), half)
                self.assertIn(len(got), (half, len(before)))
                self.assertEqual(got, before[:len(got)])
            with qfmount.Mount(self.store, policy=policy) as other:
                self.assertEqual(S.read_file(other.path(SHARD)), after)
            self.write_policy("{}")
            m.process.send_signal(signal.SIGHUP)
            wait_for(lambda: m.log().count("are read again") == 2)
            self.assertEqual(S.read_file(m.path(SHARD)), before)

    def test_policy_of_views_with_settings(self):
        """Views that nobody lists are made with the policy of now, also while it is
        another one every moment."""
        name = SHARD.replace("nf4/", "nf4+blocksize=128/")
        texts = ("{}", '{"skip": ["q_proj"]}', '{"skip": ["k_proj"]}')
        wanted = []
        for text in texts:
            with qfmount.Mount(self.store, policy=self.write_policy(text)) as m:
                wanted.append(S.read_file(m.path(name)))
        self.assertEqual(len(set(wanted)), 3)
        with qfmount.Mount(self.store, policy=self.write_policy("{}")) as m:
            stop, wrong = threading.Event(), []

            def read_on():
                while not stop.is_set():
                    try:
                        got = S.read_file(m.path(name))
                    except OSError as e:
                        if e.errno not in (errno.ESTALE, errno.EIO):
                            wrong.append(e)
                        continue
                    if got not in wanted:
                        wrong.append(len(got))

            readers = [threading.Thread(target=read_on) for _ in range(3)]
            for reader in readers:
                reader.start()
            for i in range(30):
                self.write_policy(texts[i % 3])
                m.process.send_signal(signal.SIGHUP)
                wait_for(lambda: m.log().count("are read again") == i + 1)
            stop.set()
            for reader in readers:
                reader.join()
            self.assertEqual(wrong, [])
            self.assertEqual(S.read_file(m.path(name)), wanted[29 % 3])

    def test_bad_policy(self):
        """What was in force stays in force."""
        policy = self.write_policy('{"skip": ["q_proj"]}')
        with qfmount.Mount(self.store, policy=policy) as m:
            before = S.read_file(m.path(SHARD))
            for text, word in (("{", policy), ('{"nonsense": 1}', "nonsense")):
                self.write_policy(text)
                m.process.send_signal(signal.SIGHUP)
                self.assertLogged(m, word)
            os.unlink(policy)
            m.process.send_signal(signal.SIGHUP)
            self.assertLogged(m, "No such file")
            self.assertEqual(S.read_file(m.path(SHARD)), before)

    def test_limits(self):
        limits = f"{self.dir}/limits"
        S.write(limits, "# of the cache\ncache_size=64M\n")
        with qfmount.Mount(self.store, limits=limits) as m:
            self.assertEqual(m.status()["cache_bytes_limit"], 64 << 20)
            for text, limit in (("cache_size=32M\n\ncache_min_free=1M\n", 32 << 20),
                                ("cache_size=48M", 48 << 20)):
                S.write(limits, text)
                m.process.send_signal(signal.SIGHUP)
                self.assertEqual(
                    wait_for(lambda: m.status()["cache_bytes_limit"] == limit), True)
            S.write(limits, "cache_size=1G")
            m.process.send_signal(signal.SIGHUP)
            self.assertLogged(m, "next mount")
            self.assertEqual(m.status()["cache_bytes_limit"], 64 << 20)
            S.write(limits, "cache_size=32M\nmemory=1G\n")
            m.process.send_signal(signal.SIGHUP)
            self.assertLogged(m, "line 2")
            self.assertEqual(m.status()["cache_bytes_limit"], 64 << 20)
        rc, _, err = qfmount.run("mount", "-o", f"limits={limits}", self.store, self.dir)
        self.assertEqual(rc, 2)
        self.assertIn("line 2", err)


class Log(Signals):
    def test_status(self):
        with qfmount.Mount(self.store) as m:
            S.read_file(m.path(SHARD))
            m.process.send_signal(signal.SIGUSR1)
            self.assertLogged(m, "status: version=")
            line = next(s for s in m.log().splitlines() if "status: " in s)
            self.assertIn(f" store={self.store} ", line)
            self.assertIn(" passthrough=", line)

    def test_json(self):
        with qfmount.Mount(self.store, log_format="json") as m:
            os.stat(m.path("nf4"))  # it serves
            m.process.send_signal(signal.SIGUSR1)
            wait_for(lambda: "status: " in m.log())
            lines = [json.loads(s) for s in m.log().splitlines()]
            self.assertEqual({tuple(s) for s in lines},
                             {("time", "level", "pid", "message")})
            self.assertEqual({s["pid"] for s in lines}, {m.process.pid})
            self.assertTrue(lines[-1]["message"].startswith("status: version="))

    def test_journal(self):
        """With stderr that JOURNAL_STREAM names, lines begin with their priority."""
        log = f"{self.dir}/journal"
        mnt = f"{self.dir}/mnt"
        os.mkdir(mnt)
        with open(log, "wb") as f:
            st = os.fstat(f.fileno())
            env = {**os.environ, "JOURNAL_STREAM": f"{st.st_dev}:{st.st_ino}"}
            with subprocess.Popen([qfmount.binary(), "mount", "-f", "-o", "cache=none",
                                   self.store, mnt], stderr=f, env=env) as p:
                wait_for(lambda: qfmount.mounted(mnt))
                wait_for(lambda: os.path.getsize(log) > 0)
                p.terminate()
                self.assertEqual(p.wait(60), 0)
        lines = S.read_file(log).decode().splitlines()
        self.assertTrue(lines)
        for line in lines:
            self.assertRegex(line, r"^<[3-7]>[^<]")

    def test_repeated(self):
        """The same trouble with the same file is one line, and a count at the end."""
        path = f"{self.store}/model/model.safetensors"
        with qfmount.Mount(self.store, attr_ttl=0) as m:
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            with open(path, "r+b") as f:
                f.write(f.read(8))
            os.utime(path)
            try:
                for off in range(0, 20):
                    self.assertErrno({116, 5}, os.pread, fd, 10, off * 4096)
            finally:
                os.close(fd)
        lines = [s for s in m.said.splitlines() if "cannot be read" in s]
        self.assertEqual(len(lines), 2, lines)
        self.assertIn(SHARD, lines[0])
        self.assertRegex(lines[1], r" \(\d+ more\)$")


class Notify(Signals):
    """The service manager's end of sd_notify."""

    def setUp(self):
        super().setUp()
        self.path = f"{self.dir}/notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.bind(self.path)
        self.socket.settimeout(30)
        self.env = {"NOTIFY_SOCKET": self.path}

    def test_life(self):
        with qfmount.Mount(self.store, env=self.env,
                           policy=self.write_policy("{}")) as m:
            self.assertEqual(self.socket.recv(4096), b"READY=1")
            self.assertTrue(qfmount.mounted(m.mnt))
            m.process.send_signal(signal.SIGHUP)
            self.assertRegex(self.socket.recv(4096), rb"^RELOADING=1\nMONOTONIC_USEC=\d+$")
            self.assertEqual(self.socket.recv(4096), b"READY=1")
            m.process.terminate()
            self.assertEqual(self.socket.recv(4096), b"STOPPING=1")
            self.assertEqual(m.process.wait(60), 0)

    def test_watchdog(self):
        env = {**self.env, "WATCHDOG_USEC": "400000"}
        with qfmount.Mount(self.store, env=env) as m:
            self.assertEqual(self.socket.recv(4096), b"READY=1")
            began = time.monotonic()
            for _ in range(5):
                self.assertEqual(self.socket.recv(4096), b"WATCHDOG=1")
            if not qfmount.SLOW:
                self.assertLess(time.monotonic() - began, 5 * 0.4)
            m.process.send_signal(signal.SIGSTOP)
            self.socket.settimeout(1)
            with self.assertRaises(TimeoutError):
                while True:
                    self.socket.recv(4096)
            m.process.send_signal(signal.SIGCONT)

    def test_nobody_listens(self):
        with qfmount.Mount(self.store, env={"NOTIFY_SOCKET": f"{self.dir}/nobody"}) as m:
            S.read_file(m.path(SHARD))


if __name__ == "__main__":
    sys.exit(qfmount.main())
