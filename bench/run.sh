#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Measures quantfs on the CPU: builds it, prints tables of ratios taken in one run, and
# writes them into docs/PERFORMANCE.md, which says what they mean.
#
#   bench/run.sh [--quick] [--only a,b,…] [--reps N] [--json FILE] [--doc FILE]
#                [--python PATH] [--work DIR] [--drop-caches]
#
#   --quick    small sizes, one repetition, no document: to see that it works
#   --only     some parts: a kernels, b first read, c second read, d reading again,
#              e from_pretrained, f names and headers, g memory of the daemon,
#              h quantfs diff
#   --reps     repetitions (5)
#   --json     the tables for programs, too
#   --doc      another document to write into
#   --python   an interpreter with torch, transformers, bitsandbytes (.venv/bin/python,
#              which ./test.sh makes); without it what needs it says SKIP
#   --work     where big files go (the system's directory for temporary files)
#   --drop-caches  before each part; as root, and not on a machine that others use
#
# QF_BUILD names a build directory to use as it is, instead of building build/bench.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
case " $* " in
*" -h "* | *" --help "*) sed -n '3,23s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac

build=${QF_BUILD:-$here/build/bench}
if [ -z "${QF_BUILD-}" ]; then
    mkdir -p "$here/build"
    log=$here/build/bench.log
    if ! { cmake -S "$here" -B "$build" -G Ninja -DCMAKE_BUILD_TYPE=Release \
        -DQUANTFS_TESTS=OFF -DQUANTFS_CUDA=OFF &&
        ninja -C "$build" quantfs qf_bench_kernels qf_bench_reader qf_bench_bare; } \
        > "$log" 2>&1; then
        tail -n 20 "$log" >&2
        echo "the build failed; all of it is in $log" >&2
        exit 1
    fi
fi
exec python3 -B "$here/bench/run.py" --build "$build" "$@"
