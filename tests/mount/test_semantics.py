#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What docs/SEMANTICS.md claims and no other test shows."""
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
import time
import unittest

import qfmount
import qfstore as S

NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
SHARD = "nf4/model/model.safetensors"


class Attributes(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.model = S.write_llama(f"{self.store}/model")
        self.file = f"{self.model}/model.safetensors"

    def test_what_stat_says(self):
        """Times and owner are the source's; no bit of writing; links do not count."""
        os.chmod(self.file, 0o640)
        os.utime(self.file, ns=(10**18, 1234567890123456789))
        os.utime(self.model, ns=(10**18, 1134567890123456789))
        os.link(self.file, f"{self.dir}/second name")
        if os.geteuid() == 0:
            os.chown(self.file, 12, 34)
        want, where = os.stat(self.file), os.stat(self.model)
        with qfmount.Mount(self.store) as m:
            got, above = os.stat(m.path(SHARD)), os.stat(m.path("nf4/model"))
            for a, b in ((got, want), (above, where)):
                self.assertEqual((a.st_mtime_ns, a.st_ctime_ns, a.st_uid, a.st_gid),
                                 (b.st_mtime_ns, b.st_ctime_ns, b.st_uid, b.st_gid))
            self.assertEqual(stat.S_IMODE(got.st_mode), 0o440)
            self.assertEqual(stat.S_IMODE(above.st_mode), where.st_mode & 0o555)
            self.assertEqual((got.st_nlink, above.st_nlink), (1, 2))
            self.assertEqual(got.st_blksize, 4096)
            self.assertEqual(got.st_blocks, (got.st_size + 511) // 512)
            self.assertNotEqual(got.st_size, want.st_size)
            control = os.stat(m.path(".quantfs/status"))
            self.assertEqual((control.st_size, stat.S_IMODE(control.st_mode)), (0, 0o444))

    def test_inodes_are_of_the_path(self):
        """The same on another machine: a copy of the store, mounted elsewhere."""
        shutil.copytree(self.store, f"{self.dir}/copy")
        seen = []
        for store in (self.store, f"{self.dir}/copy"):
            with qfmount.Mount(store, cache="none") as m:
                seen.append({p: os.stat(m.path(p)).st_ino
                             for p in ("nf4", "nf4/model", SHARD, "int8/model",
                                       "nf4/model/config.json")})
        self.assertEqual(seen[0], seen[1])

    def test_inode_stays_when_the_source_changes(self):
        with qfmount.Mount(self.store, attr_ttl=0) as m:
            before = os.stat(m.path(SHARD))
            S.write_llama(f"{self.dir}/new", hidden=128)
            os.rename(f"{self.dir}/new/model.safetensors", self.file)
            os.rename(f"{self.dir}/new/config.json", f"{self.model}/config.json")
            after = os.stat(m.path(SHARD))
            self.assertEqual(before.st_ino, after.st_ino)
            self.assertNotEqual(before.st_size, after.st_size)
            self.assertEqual(len(S.read_file(m.path(SHARD))), after.st_size)

    def test_attr_ttl(self):
        """For so long names and sizes may be those of before."""
        with qfmount.Mount(self.store, attr_ttl=3600) as old, \
                qfmount.Mount(self.store, attr_ttl=0) as new:
            for m in (old, new):
                os.stat(m.path("nf4/model/config.json"))
            os.utime(f"{self.model}/config.json", ns=(1, 1))
            self.assertNotEqual(os.stat(old.path("nf4/model/config.json")).st_mtime_ns, 1)
            self.assertEqual(os.stat(new.path("nf4/model/config.json")).st_mtime_ns, 1)


class Calls(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        self.model = S.write_llama(f"{self.store}/model", hidden=256, inter=512)

    def test_writing_is_erofs(self):
        with qfmount.Mount(self.store) as m:
            path, where = m.path(SHARD), m.path("nf4/model")
            for call in ((os.open, path, os.O_RDWR), (os.open, path, os.O_WRONLY),
                         (os.open, f"{where}/new", os.O_CREAT | os.O_WRONLY),
                         (os.mkdir, f"{where}/d"), (os.unlink, path), (os.rmdir, where),
                         (os.rename, path, f"{where}/x"), (os.link, path, f"{where}/x"),
                         (os.symlink, "x", f"{where}/x"), (os.truncate, path, 0),
                         (os.chmod, path, 0o644), (os.utime, path)):
                self.assertErrno([errno.EROFS], *call)
            self.assertFalse(os.access(path, os.W_OK))
            self.assertTrue(os.access(path, os.R_OK))
            self.assertErrno([errno.EROFS], os.setxattr, path, "user.x", b"y")
            self.assertErrno([errno.EROFS], os.removexattr, path, "user.quantfs.codec")

    def test_store_is_left_alone(self):
        """Not a byte, not a time, not a name of the store is another after its use."""
        def snapshot():
            return {p: (s.st_mtime_ns, s.st_ctime_ns, s.st_mode, s.st_size)
                    for d, names, files in os.walk(self.store)
                    for p in (os.path.join(d, n) for n in ["", *names, *files])
                    for s in [os.stat(p)]}
        before = snapshot()
        with qfmount.Mount(self.store) as m:
            S.digest_tree(m.mnt)
        self.assertEqual(qfmount.run("info", self.store)[0], 0)
        self.assertEqual(qfmount.run("warm", "-q", "-o", f"cache={self.dir}/cache",
                                     self.store)[0], 0)
        self.assertEqual(snapshot(), before)

    def test_mappings(self):
        """Private ones can be written to (in memory); shared ones cannot."""
        with qfmount.Mount(self.store) as m:
            want = S.read_file(m.path(SHARD))
            with open(m.path(SHARD), "rb") as f:
                with self.assertRaises(OSError) as caught:
                    mmap.mmap(f.fileno(), 0, mmap.MAP_SHARED,
                              mmap.PROT_READ | mmap.PROT_WRITE)
                self.assertEqual(caught.exception.errno, errno.EACCES)
                with mmap.mmap(f.fileno(), 0, mmap.MAP_PRIVATE,
                               mmap.PROT_READ | mmap.PROT_WRITE) as view:
                    view[0:4] = b"abcd"
                    self.assertEqual(view[0:4], b"abcd")
            self.assertEqual(S.read_file(m.path(SHARD)), want)

    def test_mapping_outlives_the_descriptor(self):
        with qfmount.Mount(self.store) as m:
            want = S.read_file(m.path(SHARD))
        with qfmount.Mount(self.store, cache="none") as m:
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            view = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
            os.close(fd)
            rc, _, err = qfmount.run("umount", m.mnt)
            self.assertEqual(rc, 32)  # busy
            self.assertIn("busy", err)
            self.assertEqual(view[:], want)
            view.close()

    def test_other_ways_to_read(self):
        with qfmount.Mount(self.store) as m:
            want = S.read_file(m.path(SHARD))
            a, b = socket.socketpair()
            with a, b, open(m.path(SHARD), "rb", buffering=0) as f:
                self.assertEqual(os.sendfile(a.fileno(), f.fileno(), 0, 5000), 5000)
                self.assertEqual(b.recv(5000, socket.MSG_WAITALL), want[:5000])
                with open(f"{self.dir}/out", "wb") as out:
                    self.assertErrno([errno.EXDEV], os.copy_file_range, f.fileno(),
                                     out.fileno(), 100)
                one, two = bytearray(100), bytearray(300)
                self.assertEqual(os.preadv(f.fileno(), [one, two], 50), 400)
                self.assertEqual(bytes(one + two), want[50:450])
                os.fsync(f.fileno())
                # no holes, whatever the source has
                self.assertEqual(os.lseek(f.fileno(), 0, os.SEEK_DATA), 0)
                self.assertEqual(os.lseek(f.fileno(), 0, os.SEEK_HOLE), len(want))
                self.assertErrno([errno.EINVAL], os.lseek, f.fileno(), -1, os.SEEK_SET)
                self.assertErrno([errno.ENOTTY], fcntl.ioctl, f.fileno(), 0x1234)

    def test_locks(self):
        """Locks are the kernel's, among the processes of one machine."""
        with qfmount.Mount(self.store) as m:
            with open(m.path(SHARD), "rb") as a, open(m.path(SHARD), "rb") as b:
                fcntl.flock(a, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self.assertErrno([errno.EAGAIN], fcntl.flock, b,
                                 fcntl.LOCK_EX | fcntl.LOCK_NB)
                fcntl.flock(a, fcntl.LOCK_UN)
                fcntl.flock(b, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def test_after_unlink_of_the_source(self):
        """An open file is served or refused, never wrong; its name is gone."""
        with qfmount.Mount(self.store, attr_ttl=0) as m:
            want = S.read_file(m.path(SHARD))
        with qfmount.Mount(self.store, attr_ttl=0, cache="none") as m:
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            os.unlink(f"{self.model}/model.safetensors")
            self.assertErrno([errno.ENOENT], os.stat, m.path(SHARD))
            self.assertErrno([errno.ESTALE, errno.EIO], os.pread, fd, 4096, len(want) // 2)
            os.close(fd)

    def test_directory_while_it_is_read(self):
        """A listing is that of the moment at which it was opened."""
        for i in range(3000):
            S.write(f"{self.store}/many/{i:05}", "")
        with qfmount.Mount(self.store) as m:
            with os.scandir(m.path("nf4/many")) as it:
                seen = [next(it).name]
                for i in range(3000, 3100):
                    S.write(f"{self.store}/many/{i:05}", "")
                seen += [e.name for e in it]
            self.assertEqual(len(seen), len(set(seen)))
            self.assertEqual(sorted(seen), [f"{i:05}" for i in range(3000)])


@unittest.skipUnless(os.geteuid() == 0, "not root")
class Users(qfmount.StoreCase):
    def setUp(self):
        super().setUp()
        os.chmod(self.dir, 0o755)
        self.model = S.write_llama(f"{self.store}/model")
        S.write(f"{self.model}/secret.txt", "x")
        os.chmod(f"{self.model}/secret.txt", 0o600)

    def read_as_nobody(self, path):
        return subprocess.run([*NOBODY, "cat", path], capture_output=True, text=True)

    def test_others_are_kept_out(self):
        with qfmount.Mount(self.store) as m:
            os.chmod(m.own, 0o755)
            done = self.read_as_nobody(m.path("nf4/model/config.json"))
            self.assertEqual(done.returncode, 1)
            self.assertIn("Permission denied", done.stderr)

    def test_allow_other_heeds_modes(self):
        with qfmount.Mount(self.store, allow_other=True) as m:
            os.chmod(m.own, 0o755)
            done = self.read_as_nobody(m.path("nf4/model/config.json"))
            self.assertEqual(done.returncode, 0, done.stderr)
            done = self.read_as_nobody(m.path("nf4/model/secret.txt"))
            self.assertEqual(done.returncode, 1)
            self.assertIn("Permission denied", done.stderr)


class Ends(qfmount.StoreCase):
    def test_lazy_unmount(self):
        """Who has a file open goes on; the name is free at once."""
        S.write_llama(f"{self.store}/model", hidden=512, inter=1024)
        with qfmount.Mount(self.store, cache="none", daemon=True) as m:
            want = S.read_file(m.path(SHARD))
            fd = os.open(m.path(SHARD), os.O_RDONLY)
            rc, _, err = qfmount.run("umount", "-l", m.mnt)
            self.assertEqual((rc, err), (0, ""))
            self.assertFalse(qfmount.mounted(m.mnt))
            self.assertEqual(os.listdir(m.mnt), [])
            self.assertEqual(os.pread(fd, len(want), 0), want)
            os.close(fd)
            end = time.monotonic() + qfmount.STOP_S
            while m._daemon_lives() and time.monotonic() < end:
                time.sleep(0.05)
            self.assertFalse(m._daemon_lives())


if __name__ == "__main__":
    qfmount.main()
