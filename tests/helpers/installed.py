# SPDX-License-Identifier: Apache-2.0
"""A test as on a machine where quantfs is installed: `cmake --install` puts it into a file
system that lies over /usr in a mount namespace of the test's own."""
import os
import shutil
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "mount"))
import qfmount  # noqa: E402

MARK = "QUANTFS_IN_NAMESPACE"
TOP = "/mnt"  # hidden by ours


def sh(*command, code=0, **more):
    """(stdout, stderr) of a command that exits with code."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120,
                          stdin=subprocess.DEVNULL, **more)
    assert done.returncode == code, (command, done.returncode, done.stdout, done.stderr)
    return done.stdout, done.stderr


def _install():
    sh("mount", "-t", "tmpfs", "tmpfs", TOP)
    os.mkdir(f"{TOP}/work")
    sh("cmake", "--install", os.environ["QUANTFS_BUILD"], "--prefix", "/usr",
       env={**os.environ, "DESTDIR": f"{TOP}/root"})
    sh("mount", "-t", "overlay", "overlay", "-o",
       f"lowerdir=/usr,upperdir={TOP}/root/usr,workdir={TOP}/work", "/usr")
    os.environ["QUANTFS_BIN"] = "/usr/bin/quantfs"


def main():
    """Runs the script once more, in a namespace from which no mount leaves; there, its
    tests."""
    if MARK not in os.environ:
        if os.geteuid() != 0 or not shutil.which("unshare"):
            print("SKIP: not root, or no unshare")
            sys.exit(77)
        os.environ[MARK] = "1"
        os.execvp("unshare", ["unshare", "--mount", "--propagation", "private",
                              sys.executable, *sys.argv])
    _install()
    qfmount.main()
