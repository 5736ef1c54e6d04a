# SPDX-License-Identifier: Apache-2.0
"""What the tests of mounts that outlive their daemon share."""
import contextlib
import ctypes
import os
import signal
import subprocess
import time

import qfmount
import qfstore as S

SHARD = "nf4/m/model.safetensors"


def wait_for(what, seconds=60):
    """The first true value of what(), or its last one."""
    end = time.monotonic() + seconds
    while not (value := what()) and time.monotonic() < end:
        time.sleep(0.01)
    return value


def detach_unserved(path):
    """Unmounts without a look at what is mounted, which nobody would answer."""
    if ctypes.CDLL(None, use_errno=True).umount2(path.encode(), 2) != 0:
        raise OSError(ctypes.get_errno(), "umount2")


def drop(fd):
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def daemon_of(m):
    """The process that the keeper has started; None: there is none just now."""
    path = f"/proc/{m.process.pid}/task/{m.process.pid}/children"
    return next((int(p) for p in S.read_file(path).split()), None)


@contextlib.contextmanager
def unmounted_but_open(m):
    """Lazily unmounted, but a file of it is open."""
    fd = os.open(m.path(SHARD), os.O_RDONLY)
    try:
        os.pread(fd, 10, 0)
        detach_unserved(m.mnt)
        yield
    finally:
        with contextlib.suppress(OSError):
            os.close(fd)


@contextlib.contextmanager
def other_mount(store, mnt):
    with subprocess.Popen([qfmount.binary(), "mount", "-f", "-o", "cache=none", store,
                           mnt], stderr=subprocess.DEVNULL) as other:
        try:
            wait_for(lambda: qfmount.mounted(mnt))
            yield
        finally:
            other.terminate()


def await_open(pid):
    """Until that process waits for a writer of a fifo; two seconds where that is not to be
    seen."""
    wait_for(lambda: b"wait_for_partner" in S.read_file(f"/proc/{pid}/wchan"), 2)


class RestartCase(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.write("")
        self.cache = f"{self.dir}/cache"
        with qfmount.Mount(self.store, cache="none") as m:
            self.want = S.read_file(m.path(SHARD))

    def write(self, seed):
        S.write_llama(f"{self.store}/m", hidden=1032, inter=2056, vocab=16, seed=seed)

    def mount(self, **options):
        return qfmount.Mount(self.store, cache=self.cache,
                             **{"restart": "keeper", **options})

    def end_daemon(self, m, signo=signal.SIGKILL):
        """Ends the daemon; returns when the next one answers."""
        pid = m.status()["pid"]
        os.kill(pid, signo)
        self.assertTrue(wait_for(lambda: m.status()["pid"] != pid))

    def assertLogged(self, m, text):
        if not wait_for(lambda: text in m.log()):
            self.fail(f"'{text}' is not in the log:\n{m.log()}")

    def read_anew(self):
        with qfmount.Mount(self.store, cache="none") as other:
            return S.read_file(other.path(SHARD))
