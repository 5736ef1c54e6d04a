# SPDX-License-Identifier: Apache-2.0
"""What machine a table was measured on."""
import os
import platform
import subprocess


def _first(path, key):
    try:
        with open(path, encoding="utf-8") as f:
            for line in f:
                if line.startswith(key):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return "unknown"


def _filesystem(path):
    """Type of the filesystem that `path` is on."""
    path, best = os.path.realpath(path), ("", "unknown")
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as f:
        for line in f:
            _, point, kind = line.split()[:3]
            inside = path == point or path.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best[0]):
                best = (point, kind)
    return best[1]


def _said(*command):
    try:
        return subprocess.run(command, capture_output=True, text=True,
                              check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def gather(work, reps):
    """[(name, value)]"""
    memory = int(_first("/proc/meminfo", "MemTotal").split()[0]) / (1 << 20)
    return [
        ("processor", _first("/proc/cpuinfo", "model name")),
        ("cores", str(os.cpu_count())),
        ("memory", f"{memory:.0f} GiB"),
        ("kernel", platform.release().split("-")[0]),
        ("libfuse", _said("pkg-config", "--modversion", "fuse3")),
        ("filesystem", _filesystem(work)),
        ("load when it began", f"{os.getloadavg()[0]:.1f}"),
        ("repetitions", f"{reps}, interleaved; medians"),
    ]
