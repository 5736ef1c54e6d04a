#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every symbol that our static libraries export begins with qf_.
# symbols.sh ROOT LIBRARY…
set -u
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || { echo "usage: symbols.sh ROOT LIBRARY..."; exit 2; }
command -v nm >/dev/null || skip "nm is not installed"

for lib in "$@"; do
    [ -f "$lib" ] || { echo "$lib: no such library"; exit 2; }
    # What compilers and sanitizers add begins with two underscores; what nvcc adds is C++.
    report < <(nm -A --defined-only --extern-only "$lib" 2>/dev/null |
        awk -v lib="$(basename "$lib")" '
            $NF !~ /^qf_/ && $NF !~ /^__(asan|odr_asan|tsan|ubsan|cuda|fatbin|nv_)/ &&
            !(lib ~ /cuda/ && $NF ~ /^_Z/) {
                split($1, at, ":")
                print lib ":" at[2] ": exports " $NF ": the name must begin with qf_"
            }')
done
finish
