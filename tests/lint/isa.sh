#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Only the objects of quant/x86/ may hold AVX code: one wide instruction elsewhere is an
# illegal instruction on an older processor. isa.sh ROOT LIBRARY…
set -u
. "$(dirname "$0")/common.sh"
[ $# -gt 0 ] || { echo "usage: isa.sh ROOT LIBRARY..."; exit 2; }
command -v objdump >/dev/null || skip "objdump is not installed"
[ "$(uname -m)" = x86_64 ] || skip "not an x86-64 machine"

allowed=$(cd quant/x86 2>/dev/null && ls -- *.c 2>/dev/null | tr '\n' ' ')
for lib in "$@"; do
    [ -f "$lib" ] || { echo "$lib: no such library"; exit 2; }
    report < <(objdump -d --no-show-raw-insn "$lib" 2>/dev/null |
        awk -v lib="$(basename "$lib")" -v allowed=" $allowed" '
            / file format / {
                object = $1
                sub(/:$/, "", object)
                source = object
                sub(/\.o(bj)?$/, "", source)
                if (source !~ /\.c$/) source = source ".c"
                free = index(allowed, " " source " ") != 0
            }
            /^[0-9a-f]+ <.*>:$/ { fn = $2; next }
            !free && /%[yz]mm[0-9]|%k[0-7]|^ *[0-9a-f]+:[ \t]+v[a-z0-9]+[ \t].*%xmm/ {
                if (seen[object, fn]++) next
                sub(/^[ \t]+/, "")
                print lib ":" object ": in " fn " " $0 ": AVX outside quant/x86/"
            }')
done
finish
