#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Every C file is as clang-format leaves it. The version is fixed, for versions format
# differently. format.sh [ROOT]
set -u
. "$(dirname "$0")/common.sh"
tool=
for name in clang-format-14 clang-format; do
    command -v $name >/dev/null && $name --version | grep -q 'version 14\.' && tool=$name && break
done
[ -n "$tool" ] || skip "clang-format 14 is not installed"

mapfile -t files < <(sources '*.c' '*.h' '*.cu' '*.cuh')
report < <("$tool" --dry-run -Werror --style=file "${files[@]}" 2>&1 |
    awk '/: (error|warning): / { split($0, at, ":")
         if (!seen[at[1]]++) print at[1] ":" at[2] ": not as clang-format leaves it" }')
finish
