# SPDX-License-Identifier: Apache-2.0
"""Makes a package of what was built."""
import glob
import os
import subprocess

BUILD = os.environ["QUANTFS_BUILD"]


def sh(*command, timeout=1800, **more):
    """stdout of a command that must succeed."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout,
                          stdin=subprocess.DEVNULL, **more)
    assert done.returncode == 0, (command, done.returncode, done.stdout[-4000:],
                                  done.stderr[-4000:])
    return done.stdout


def make(generator, out):
    """The path of the package, in the folder out."""
    sh("cpack", "-G", generator, "-B", out, cwd=BUILD)
    path, = glob.glob(f"{out}/quantfs*.{dict(DEB='deb', RPM='rpm', TGZ='tar.gz')[generator]}")
    return path
