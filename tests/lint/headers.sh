#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every header compiles alone, as C17 and as C++17, and has an include guard. A header that
# says on top that it is "Private to …" (or "for x/ only") need not be C++: it may hold
# atomics. layers.sh sees to it that it stays private.
# headers.sh [ROOT]
set -u
. "$(dirname "$0")/common.sh"
cc=${CC:-cc} cxx=${CXX:-c++}
command -v "$cc" >/dev/null || skip "no C compiler"
command -v "$cxx" >/dev/null || skip "no C++ compiler"

mapfile -t headers < <(sources '*.h' | grep -v '^tests/')
out=$(mktemp)
trap 'rm -f "$out"' EXIT
for h in "${headers[@]}"; do
    # Included twice, so that a missing guard shows; through stdin, so that no
    # "#pragma once in main file" or unused-static warnings appear.
    cplusplus="$cxx -x c++ -std=c++17"
    is_private "$h" && cplusplus=
    for lang in "$cc -x c -Wstrict-prototypes -std=c17" "$cplusplus"; do
        [ -n "$lang" ] || continue
        printf '#include "%s"\n#include "%s"\nextern int qf_lint;\n' "$h" "$h" |
            $lang -fsyntax-only -Wall -Wextra -Wpedantic -Werror -D_GNU_SOURCE -I. - \
                >"$out" 2>&1 && continue
        report < <(awk -v h="$h" '
            /^(In file|  *from)/ { next }
            / (error|warning): / { print; found = 1; exit }
            END { if (!found) print h ":1: does not compile alone" }' "$out" |
            sed "s|\$| [$h alone, ${lang##*-std=}]|")
    done
done
finish
