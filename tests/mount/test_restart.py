#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""A mount outlives its daemon: with a keeper, with a service manager (played by this
test), and what happens without either. restart.py does it under load."""
import array
import contextlib
import ctypes
import errno
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import qfmount
import qfstore as S
from restart_case import RestartCase, SHARD, await_open, detach_unserved, drop, wait_for


class Keeper(RestartCase):
    def test_handles(self):
        """What was open before goes on after: files, mappings, directories, positions."""
        with self.mount() as m:
            ids = [(os.stat(m.path(p)).st_ino, os.stat(m.path(p)).st_dev)
                   for p in ("nf4", "nf4/m", SHARD)]
            with open(m.path(SHARD), "rb", buffering=0) as f, \
                    open(m.path("nf4/m/config.json"), "rb", buffering=0) as config, \
                    open(m.path(".quantfs/status"), "rb", buffering=0) as status, \
                    os.scandir(m.path("nf4/m")) as listing:
                text = S.read_file(m.path("nf4/m/config.json"))
                told = os.pread(status.fileno(), 100000, 0)
                names = [next(listing).name]
                got = f.read(100000)
                view = mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)
                for signo in (signal.SIGKILL, signal.SIGUSR2, signal.SIGTRAP):
                    self.end_daemon(m, signo)
                    drop(f.fileno())
                    got += f.read(100000)
                    at = len(self.want) - 5000
                    self.assertEqual(view[at:], self.want[at:])
                    self.assertEqual(os.pread(config.fileno(), 1 << 20, 0), text)
                    # A text is what it was when it was opened.
                    self.assertEqual(os.pread(status.fileno(), 100000, 50), told[50:])
                    self.assertEqual(os.fstat(f.fileno()).st_size, len(self.want))
                names += [e.name for e in listing]
                got += f.read()
                view.close()
            self.assertEqual(got, self.want)
            self.assertEqual(sorted(names), sorted(os.listdir(m.path("nf4/m"))))
            self.assertEqual(ids, [(os.stat(m.path(p)).st_ino, os.stat(m.path(p)).st_dev)
                                   for p in ("nf4", "nf4/m", SHARD)])

    def test_view_with_settings(self):
        """Which nobody lists: it is there by its name alone, and so it stays."""
        name = SHARD.replace("nf4/", "nf4+blocksize=128/")
        with self.mount(views="nf4") as m:
            with open(m.path(name), "rb", buffering=0) as f:
                got = f.read(100000)
                for _ in range(2):
                    self.end_daemon(m)
                    drop(f.fileno())
                    got += f.read(100000)
                ids = os.stat(m.path(name)).st_ino, os.fstat(f.fileno()).st_ino
                got += f.read()
            self.assertEqual(ids[0], ids[1])
            self.assertEqual(S.read_file(m.path(name)), got)
            with qfmount.Mount(self.store, cache="none", views="nf4") as other:
                self.assertEqual(S.read_file(other.path(name)), got)

    def test_read_ahead(self):
        """Is raised once INIT is answered, and is the mount's: a restart leaves it."""
        with self.mount(read_ahead_kb=1024) as m:
            dev = os.stat(m.path("")).st_dev
            path = f"/sys/class/bdi/{os.major(dev)}:{os.minor(dev)}/read_ahead_kb"
            if not os.access(path, os.W_OK) or os.geteuid() != 0:
                self.skipTest("not for us to raise")
            for _ in range(2):
                self.assertTrue(wait_for(lambda: S.read_file(path).strip() == b"1024"))
                self.end_daemon(m)
            self.assertEqual(S.read_file(path).strip(), b"1024")

    def change_without_a_daemon(self, m):
        pid = m.status()["pid"]
        os.kill(m.process.pid, signal.SIGSTOP)  # no daemon for the moment
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.2)
        self.write("another")
        os.kill(m.process.pid, signal.SIGCONT)

    def test_source_changes_meanwhile(self):
        """The new daemon finds another version: an open file is no mixture of the two."""
        with self.mount() as m:
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            try:
                half = 1 << 20
                got = os.pread(fd, half, 0)
                self.change_without_a_daemon(m)
                drop(fd)
                with contextlib.suppress(OSError):
                    got += os.pread(fd, len(self.want), half)
                self.assertErrno({errno.ESTALE, errno.EIO}, os.pread, fd, 4096,
                                 len(self.want) - 4096)
                self.assertEqual(got, self.want[:len(got)])
            finally:
                with contextlib.suppress(OSError):
                    os.close(fd)
            now = S.read_file(m.path(SHARD))
            self.assertEqual(now, self.read_anew())
            self.assertNotEqual(now, self.want)

    def test_kernel_pages(self):
        """The kernel has pages of the old version and trusts the name: an open after the
        restart does not join them with the new one."""
        with self.mount(attr_ttl=600) as m:
            self.assertEqual(S.read_file(m.path(SHARD)), self.want)
            self.change_without_a_daemon(m)
            now = S.read_file(m.path(SHARD))
            self.assertEqual(now, self.read_anew())
            self.assertNotEqual(now, self.want)

    def test_sealed(self):
        """Files that the kernel reads by itself: open ones go on, and new opens of them
        go the same way."""
        with self.mount() as m:
            if m.status()["passthrough"] != "on":
                self.skipTest(f"passthrough={m.status()['passthrough']}")
            self.assertEqual(S.read_file(m.path(SHARD)), self.want)
            self.assertTrue(wait_for(lambda: m.status()["shards_sealed"] == 1))
            with open(m.path(SHARD), "rb", buffering=0) as f:
                self.assertEqual(m.status()["opens_passthrough"], 1)
                for _ in range(2):
                    self.end_daemon(m)
                    self.assertEqual(m.status()["passthrough"], "on")
                    drop(f.fileno())
                    f.seek(0)
                    self.assertEqual(f.read(), self.want)
                    self.assertEqual(S.read_file(m.path(SHARD)), self.want)
                    self.assertGreater(m.status()["opens_passthrough"], 0)
            # In cached mode, too: as long as somebody has it open, it stays so.
            other = "int8/m/model.safetensors"
            with open(m.path(other), "rb", buffering=0) as f:
                want = S.read_file(m.path(other))
                self.end_daemon(m)
                self.assertEqual(S.read_file(m.path(other)), want)
                drop(f.fileno())
                self.assertEqual(f.read(), want)
            self.end_daemon(m)
            self.assertEqual(S.read_file(m.path(other)), want)

    def test_umount(self):
        """A regular end is one: nothing is started again."""
        with self.mount() as m:
            S.read_file(m.path(SHARD))
            self.end_daemon(m)
            rc, _, err = qfmount.run("umount", m.mnt)
            self.assertEqual((rc, err), (0, ""))
            self.assertEqual(m.process.wait(60), 0)
            self.assertFalse(qfmount.mounted(m.mnt))

    def test_sigterm(self):
        for signo in (signal.SIGTERM, signal.SIGINT):
            with self.mount() as m:
                self.end_daemon(m)
                pid = m.status()["pid"]
                m.process.send_signal(signo)
                self.assertEqual(m.process.wait(60), 0)
                self.assertFalse(os.path.exists(f"/proc/{pid}"))
                self.assertFalse(qfmount.mounted(m.mnt))

    def test_sigterm_to_the_daemon(self):
        with self.mount() as m:
            os.kill(m.status()["pid"], signal.SIGTERM)
            self.assertEqual(m.process.wait(60), 0)
            self.assertFalse(qfmount.mounted(m.mnt))

    def test_keeper_dies(self):
        """The daemon goes on without; its end is then the mount's."""
        with self.mount() as m:
            pid = m.status()["pid"]
            m.process.kill()
            m.process.wait()
            self.assertEqual(S.read_file(m.path(SHARD)), self.want)
            os.kill(pid, signal.SIGTERM)
            self.assertTrue(wait_for(lambda: not os.path.exists(f"/proc/{pid}")))
            self.assertFalse(qfmount.mounted(m.mnt))

    def test_background(self):
        """Without -f: mounted when the command returns, nothing of the caller is held."""
        mnt = f"{self.dir}/mnt"
        os.mkdir(mnt)
        command = [qfmount.binary(), "mount", "-o",
                   "restart=keeper,cache=cache,policy=policy", "store", "mnt"]

        def run():
            return subprocess.run(command, cwd=self.dir, capture_output=True, timeout=60,
                                  check=False)

        def pid():
            text = S.read_file(f"{mnt}/.quantfs/status").decode()
            return int(dict(s.split("=", 1) for s in text.splitlines())["pid"])

        done = run()
        self.assertEqual(done.returncode, 2)
        self.assertIn(b"policy", done.stderr)
        self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
        S.write(f"{self.dir}/policy", "{}")
        done = run()
        try:
            self.assertEqual((done.returncode, done.stderr), (0, b""))
            first = pid()
            os.kill(first, signal.SIGKILL)
            self.assertTrue(wait_for(lambda: pid() != first))
            for n in ("0", "1", "2"):
                self.assertEqual(os.readlink(f"/proc/{pid()}/fd/{n}"), "/dev/null")
            self.assertEqual(os.readlink(f"/proc/{pid()}/cwd"), "/")
            self.assertEqual(S.read_file(f"{mnt}/{SHARD}"), self.want)
        finally:
            rc, _, err = qfmount.run("umount", mnt)
        self.assertEqual((rc, err), (0, ""))

    def test_gives_up(self):
        """A daemon that cannot be started any more: unmounted, with a sentence."""
        policy = f"{self.dir}/policy"
        S.write(policy, "{}")
        with self.mount(policy=policy) as m:
            S.read_file(m.path(SHARD))
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            S.write(policy, "nonsense")
            os.kill(m.status()["pid"], signal.SIGKILL)
            self.assertEqual(m.process.wait(120), 2)
            self.assertIn("5 times in a row", m.log())
            self.assertIn(policy, m.log())
            self.assertFalse(qfmount.mounted(m.mnt))
            drop(fd)
            self.assertErrno({errno.ENOTCONN, errno.ECONNABORTED}, os.pread, fd, 1, 1 << 20)
            with contextlib.suppress(OSError):
                os.close(fd)

    def test_recovers(self):
        """Readers wait until a daemon can be started again."""
        policy = f"{self.dir}/policy"
        S.write(policy, "{}")
        with self.mount(policy=policy, passthrough="off") as m:
            with open(m.path(SHARD), "rb", buffering=0) as f:
                pid = m.status()["pid"]
                S.write(policy, "nonsense")
                os.kill(pid, signal.SIGKILL)
                self.assertLogged(m, "in 100 ms")
                S.write(policy, "{}")
                self.assertEqual(f.read(), self.want)

    def test_first_start_fails(self):
        for extra in (["-f"], []):
            rc, _, err = qfmount.run("mount", *extra, "-o", "restart=keeper,cache=none",
                                     f"{self.dir}/nowhere", self.dir)
            self.assertEqual(rc, 2)
            self.assertIn("nowhere", err)
            self.assertEqual(len(err.splitlines()), 1, err)

    def test_umount_without_a_daemon(self):
        """While the next daemon is awaited, a lazy unmount ends it all."""
        policy = f"{self.dir}/policy"
        S.write(policy, "{}")
        with self.mount(policy=policy) as m:
            pid = m.status()["pid"]
            S.write(policy, "nonsense")
            os.kill(pid, signal.SIGKILL)
            self.assertLogged(m, "in 200 ms")
            detach_unserved(m.mnt)
            self.assertEqual(m.process.wait(60), 0)

    def test_options(self):
        rc, _, err = qfmount.run("mount", "-o", "restart=keeper,auto_unmount", self.store,
                                 self.dir)
        self.assertEqual(rc, 1)
        self.assertIn("auto_unmount", err)

    def test_waiting_readers(self):
        """Requests that the dead daemon was sent are answered by the next one."""
        with self.mount(threads=1) as m:
            results = []

            def read():
                results.append(S.read_file(m.path(SHARD)) == self.want)

            threads = [threading.Thread(target=read) for _ in range(4)]
            pid = m.status()["pid"]
            os.kill(pid, signal.SIGSTOP)
            for t in threads:
                t.start()
            time.sleep(0.2)
            os.kill(pid, signal.SIGKILL)
            for t in threads:
                t.join(60)
            self.assertEqual(results, [True] * 4)


class Manager(RestartCase):
    """systemd's side: a descriptor store, and starting with what is in it."""

    def setUp(self):
        super().setUp()
        self.path = f"{self.dir}/notify"
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(self.socket.close)
        self.socket.bind(self.path)
        self.socket.settimeout(60)
        self.mnt = f"{self.dir}/mnt"
        os.mkdir(self.mnt)
        self.addCleanup(qfmount.detach, self.mnt)
        self.fds = {}  # closed first: who looks at the mount then gets an error
        self.addCleanup(self.close_fds)

    def close_fds(self):
        while self.fds:
            os.close(self.fds.popitem()[1])

    def take(self):
        """Takes messages until one is not about the store; returns that."""
        while True:
            text, ancillary, _, _ = self.socket.recvmsg(4096, socket.CMSG_SPACE(16))
            lines = dict(s.split("=", 1) for s in text.decode().splitlines())
            for level, kind, data in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    self.fds[lines["FDNAME"]] = array.array("i", data[:4])[0]
            if lines.get("FDSTOREREMOVE") == "1":
                os.close(self.fds.pop(lines["FDNAME"]))
            elif "FDSTORE" not in lines:
                return lines

    def start(self, **options):
        """The daemon, with what is in the store as 3, 4, … and in the environment."""
        names = list(self.fds)
        env = {**os.environ, "NOTIFY_SOCKET": self.path, "LISTEN_FDS": str(len(names)),
               "LISTEN_FDNAMES": ":".join(names)}
        high = [os.dup(self.fds[n]) for n in names]
        script = ["import os, sys"]
        script += [f"os.dup2({fd}, {200 + i})" for i, fd in enumerate(high)]
        script += [f"os.dup2({200 + i}, {3 + i})" for i in range(len(high))]
        script += ["os.environ['LISTEN_PID'] = str(os.getpid())",
                   "os.closerange(5, 300)",
                   "os.execv(sys.argv[1], sys.argv[1:])"]
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(script), qfmount.binary(), "mount", "-f", "-o",
             ",".join([f"restart=systemd,cache={self.cache}",
                       *(f"{k}={v}" for k, v in options.items())]),
             self.store, self.mnt],
            env=env, pass_fds=high, stderr=subprocess.PIPE)
        for fd in high:
            os.close(fd)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.kill)
        return process

    def started(self):
        daemon = self.start()
        self.assertEqual(self.take(), {"READY": "1"})
        return daemon

    def test_manager_is_gone(self):
        """Nobody would start the next daemon: this one stays, and reads its files."""
        daemon = self.started()
        self.socket.close()
        for signo in (signal.SIGUSR2, signal.SIGHUP):
            daemon.send_signal(signo)
            time.sleep(0.3)
            self.assertIsNone(daemon.poll())
            self.assertEqual(S.read_file(f"{self.mnt}/{SHARD}"), self.want)
        daemon.terminate()
        self.assertEqual(daemon.wait(60), 0)
        said = daemon.stderr.read().decode()
        self.assertIn("SIGUSR2: nobody would start the next daemon", said)
        self.assertIn("SIGHUP: policy and limits are read again", said)

    def test_life(self):
        daemon = self.started()
        self.assertEqual(set(self.fds), {"quantfs-fuse", "quantfs-journal"})
        # The first close of a file asks the daemon (FLUSH), which a child of ours that
        # is to become the daemon must not.
        S.read_file(f"{self.mnt}/{SHARD}")
        with open(f"{self.mnt}/{SHARD}", "rb", buffering=0) as f:
            got = f.read(100000)
            for signo, code in ((signal.SIGKILL, -9), (signal.SIGUSR2, 75)):
                daemon.send_signal(signo)
                self.assertEqual(daemon.wait(60), code)
                if signo == signal.SIGUSR2:
                    self.assertIn("STATUS", self.take())
                daemon = self.started()
                drop(f.fileno())
                got += f.read(100000)
            got += f.read()
        self.assertEqual(got, self.want)
        daemon.terminate()
        self.assertEqual(self.take(), {"STOPPING": "1"})
        self.assertEqual(daemon.wait(60), 0)
        self.assertEqual(self.fds, {})
        self.assertFalse(qfmount.mounted(self.mnt))

    def test_told_to_end(self):
        """After SIGUSR2, and at the start of a daemon that is to go on: the mount and what
        the manager has of it go."""
        daemon = self.started()
        daemon.send_signal(signal.SIGSTOP)
        daemon.send_signal(signal.SIGUSR2)
        daemon.terminate()
        daemon.send_signal(signal.SIGCONT)
        self.assertIn("STATUS", self.take())
        self.assertEqual(self.take(), {"STOPPING": "1"})
        self.assertEqual(daemon.wait(60), 0)
        self.assertEqual(self.fds, {})
        self.assertFalse(qfmount.mounted(self.mnt))
        daemon = self.started()
        daemon.kill()
        daemon.wait()
        policy = f"{self.dir}/policy"
        os.mkfifo(policy)
        daemon = self.start(policy=policy)
        await_open(daemon.pid)
        daemon.terminate()
        self.assertEqual(self.take(), {"STOPPING": "1"})
        self.assertEqual(daemon.wait(60), -signal.SIGTERM)
        self.socket.settimeout(0.5)
        self.assertRaises(TimeoutError, self.take)
        self.assertEqual(self.fds, {})
        self.assertFalse(qfmount.mounted(self.mnt))

    def test_damaged_journal(self):
        """What cannot be gone on from is given up: an error, no mount, no descriptor."""
        daemon = self.started()
        daemon.kill()
        daemon.wait()
        os.ftruncate(self.fds["quantfs-journal"], 0)
        daemon = self.start()
        self.assertEqual(daemon.wait(60), 32)
        self.assertIn(b"cannot be gone on from", daemon.stderr.read())
        self.socket.settimeout(0.5)
        self.assertRaises(TimeoutError, self.take)
        self.socket.settimeout(60)
        self.assertEqual(self.fds, {})
        self.assertFalse(qfmount.mounted(self.mnt))
        daemon = self.started()
        self.assertEqual(S.read_file(f"{self.mnt}/{SHARD}"), self.want)
        daemon.terminate()
        self.assertEqual(daemon.wait(60), 0)

    def test_unmounted_meanwhile(self):
        """A descriptor of a mount that has gone is not gone on with."""
        daemon = self.started()
        daemon.kill()
        daemon.wait()
        detach_unserved(self.mnt)
        daemon = self.started()
        self.assertEqual(S.read_file(f"{self.mnt}/{SHARD}"), self.want)
        daemon.terminate()
        self.assertEqual(daemon.wait(60), 0)

    def test_nobody_takes_it(self):
        env = {k: v for k, v in os.environ.items() if k != "NOTIFY_SOCKET"}
        rc, _, err = qfmount.run("mount", "-f", "-o", "restart=systemd,cache=none",
                                 self.store, self.mnt, env=env)
        self.assertEqual(rc, 32)
        self.assertIn("Type=notify", err)
        self.assertFalse(qfmount.mounted(self.mnt))


class Alone(RestartCase):
    """Without anybody who keeps the mount."""

    def mount(self, **options):
        return super().mount(restart="off", **options)

    @staticmethod
    def served_by(m, pid):
        with contextlib.suppress(OSError):
            return m.status()["pid"] == pid
        return False

    def test_killed(self):
        """Readers get an error and no wrong byte; mounting again on the dead mountpoint
        works, and what was open then stays dead."""
        with self.mount() as m:
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            os.pread(fd, 10, 0)
            m.process.kill()
            m.process.wait()
            self.assertErrno({errno.ENOTCONN}, os.listdir, m.mnt)
            drop(fd)
            self.assertErrno({errno.ENOTCONN}, os.pread, fd, 10, 1 << 20)
            for extra in ("", "/"):
                with subprocess.Popen([qfmount.binary(), "mount", "-f", "-o",
                                       f"cache={self.cache}", self.store, m.mnt + extra],
                                      stderr=subprocess.DEVNULL) as again:
                    self.assertTrue(wait_for(lambda: self.served_by(m, again.pid)))
                    self.assertEqual(S.read_file(m.path(SHARD)), self.want)
                    self.assertErrno({errno.ENOTCONN}, os.pread, fd, 10, 1 << 20)
                    with open("/proc/self/mounts", encoding="utf-8") as f:
                        self.assertEqual([s.split()[1] for s in f].count(m.mnt), 1)
                    again.kill()
            qfmount.detach(m.mnt)
            with contextlib.suppress(OSError):
                os.close(fd)

    def test_lazy_unmount(self):
        """Of a dead mount: nothing is left behind."""
        with self.mount() as m:
            m.process.kill()
            m.process.wait()
            rc, _, err = qfmount.run("umount", "-l", m.mnt)
            self.assertEqual((rc, err), (0, ""))
            self.assertFalse(qfmount.mounted(m.mnt))
            self.assertEqual(os.listdir(m.mnt), [])

    def test_sigusr2(self):
        with self.mount() as m:
            m.status()  # is answered once it serves; a start is ended by the signal
            m.process.send_signal(signal.SIGUSR2)
            self.assertLogged(m, "nobody would start")
            self.assertEqual(S.read_file(m.path(SHARD)), self.want)

    def test_descriptor_as_mountpoint(self):
        """Somebody else has mounted, and passes the descriptor."""
        if os.geteuid() != 0:
            self.skipTest("mounts by itself")
        mnt = f"{self.dir}/mnt"
        os.mkdir(mnt)
        self.addCleanup(qfmount.detach, mnt)
        fuse = os.open("/dev/fuse", os.O_RDWR)
        options = f"fd={fuse},rootmode=40000,user_id=0,group_id=0".encode()
        libc = ctypes.CDLL(None, use_errno=True)
        self.assertEqual(libc.mount(b"quantfs", mnt.encode(), b"fuse", 1, options), 0)
        with subprocess.Popen([qfmount.binary(), "mount", "-f", "-o", "cache=none",
                               self.store, f"/dev/fd/{fuse}"], pass_fds=[fuse],
                              stderr=subprocess.DEVNULL) as daemon:
            os.close(fuse)
            self.assertEqual(S.read_file(f"{mnt}/{SHARD}"), self.want)
            daemon.terminate()
            self.assertEqual(daemon.wait(60), 0)
        self.assertErrno({errno.ENOTCONN}, os.listdir, mnt)


if __name__ == "__main__":
    sys.exit(qfmount.main())
