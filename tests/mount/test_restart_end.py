#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""How a mount that outlives its daemon ends, whatever else goes on: told to while the
daemon changes, with another mount in its place, with strangers at the keeper's socket."""
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import qfmount
import qfstore as S
from restart_case import (RestartCase, SHARD, await_open, daemon_of, detach_unserved,
                          other_mount, unmounted_but_open, wait_for)


class Told(RestartCase):
    def next_one(self, m):
        """Kills the daemon; gives the process id of the next one, which is starting."""
        pid = m.status()["pid"]
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + 60
        while (following := daemon_of(m)) in (None, pid):
            self.assertLess(time.monotonic(), end)
        return following

    def next_one_that_waits(self, m, policy):
        """The same, at its start for ever: nobody writes to its policy file."""
        os.unlink(policy)
        os.mkfifo(policy)
        pid = self.next_one(m)
        await_open(pid)
        return pid

    def test_told_to_end_while_handing_over(self):
        """SIGTERM always wins, also when it comes after SIGUSR2."""
        for signo, to_keeper in ((signal.SIGTERM, False), (signal.SIGTERM, True),
                                 (signal.SIGINT, True)):
            with self.subTest(signo=signo, keeper=to_keeper), self.mount() as m:
                pid = m.status()["pid"]
                os.kill(pid, signal.SIGSTOP)  # takes both when it goes on, in this order
                os.kill(pid, signal.SIGUSR2)
                os.kill(m.process.pid if to_keeper else pid, signo)
                if to_keeper:
                    time.sleep(0.3)  # it hands it on
                os.kill(pid, signal.SIGCONT)
                self.assertEqual(m.process.wait(60), 0)
                self.assertFalse(qfmount.mounted(m.mnt))
                self.assertIn("not left to the next daemon", m.log())
                self.assertNotIn("going on", m.log())

    def test_told_to_end_while_starting(self):
        """The next daemon is not up yet: the mount ends all the same, and that is no
        failure."""
        policy = f"{self.dir}/policy"
        for to_keeper in (False, True):
            S.write(policy, "{}")
            with self.subTest(keeper=to_keeper), self.mount(policy=policy) as m:
                pid = self.next_one_that_waits(m, policy)
                os.kill(m.process.pid if to_keeper else pid, signal.SIGTERM)
                self.assertEqual(m.process.wait(60), 0)
                self.assertFalse(qfmount.mounted(m.mnt))
                self.assertFalse(os.path.exists(f"/proc/{pid}"))
            os.unlink(policy)

    def test_reload_while_starting(self):
        """SIGHUP waits until there is what to reload; nothing is started anew for it."""
        policy = f"{self.dir}/policy"
        S.write(policy, "{}")
        for to_keeper in (False, True):
            with self.subTest(keeper=to_keeper), self.mount(policy=policy) as m:
                pid = self.next_one(m)
                os.kill(pid, signal.SIGSTOP)
                os.kill(pid, signal.SIGUSR1)  # there may be nothing to tell yet
                os.kill(m.process.pid if to_keeper else pid, signal.SIGHUP)
                time.sleep(0.3)
                os.kill(pid, signal.SIGCONT)
                self.assertLogged(m, "are read again")
                self.assertEqual(m.status()["pid"], pid)
                self.assertEqual(m.log().count("starting another one"), 1)

    def test_upgrade_while_starting(self):
        """SIGUSR2: yet another one is started, and that is no failure."""
        policy = f"{self.dir}/policy"
        S.write(policy, "{}")
        with self.mount(policy=policy) as m:
            pid = self.next_one_that_waits(m, policy)
            os.rename(policy, f"{self.dir}/fifo")
            S.write(policy, "{}")
            os.kill(pid, signal.SIGUSR2)
            self.assertLogged(m, "ended with status 75; starting another one in 0 ms")
            self.assertNotEqual(m.status()["pid"], pid)
            self.assertEqual(S.read_file(m.path(SHARD)), self.want)


class Others(RestartCase):
    def test_strangers_messages(self):
        """The keeper's socket has a name that anybody can find and write to; that holds no
        restart up."""
        with self.mount() as m:
            env = S.read_file(f"/proc/{daemon_of(m)}/environ").split(b"\0")
            name, = (v[14:] for v in env if v.startswith(b"NOTIFY_SOCKET="))
            stop = threading.Event()

            def flood():
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
                    s.setblocking(False)
                    while not stop.is_set():
                        with contextlib.suppress(OSError):
                            s.sendto(b"READY=1", b"\0" + name[1:])

            threads = [threading.Thread(target=flood) for _ in range(2)]
            for t in threads:
                t.start()
            try:
                for _ in range(3):
                    self.end_daemon(m)
            finally:
                stop.set()
                for t in threads:
                    t.join()

    def test_another_mount_in_its_place(self):
        """Somebody unmounts lazily and mounts another store there: ours ends by itself and
        leaves that alone, whoever of us comes to the end."""
        def terminate_daemon(m):
            os.kill(daemon_of(m), signal.SIGTERM)

        def terminate_keeper(m):
            m.process.terminate()

        def fail(m):
            S.write(policy, "nonsense")
            os.kill(daemon_of(m), signal.SIGKILL)

        policy = f"{self.dir}/policy"
        for end, killed in ((terminate_daemon, False), (terminate_daemon, True),
                            (terminate_keeper, True), (fail, False)):
            S.write(policy, "{}")
            with self.subTest(end=end.__name__, killed=killed), \
                    self.mount(policy=policy) as m, unmounted_but_open(m):
                if killed:
                    pid = daemon_of(m)
                    os.kill(pid, signal.SIGKILL)
                    self.assertTrue(wait_for(lambda: daemon_of(m) not in (None, pid)))
                    self.assertLogged(m, "going on, ")
                with other_mount(self.store, m.mnt):
                    end(m)
                    self.assertEqual(m.process.wait(60), 2 if end is fail else 0)
                    self.assertTrue(qfmount.mounted(m.mnt))
                    self.assertEqual(S.read_file(m.path(SHARD)), self.want)

    def test_something_mounted_over_it(self):
        """Then what is beneath cannot be unmounted, and that is said."""
        if os.geteuid() != 0:
            self.skipTest("mounts by itself")
        with self.mount() as m:
            subprocess.run(["mount", "-t", "tmpfs", "over", m.mnt], check=True)
            m.process.terminate()
            self.assertEqual(m.process.wait(60), 0)
            self.assertIn("busy", m.log())
            self.assertEqual(os.listdir(m.mnt), [])
            detach_unserved(m.mnt)
            detach_unserved(m.mnt)

    def test_another_mount_without_a_keeper(self):
        with self.mount(restart="off") as m, unmounted_but_open(m), \
                other_mount(self.store, m.mnt):
            m.process.terminate()
            self.assertEqual(m.process.wait(60), 0)
            self.assertEqual(S.read_file(m.path(SHARD)), self.want)


if __name__ == "__main__":
    sys.exit(qfmount.main())
