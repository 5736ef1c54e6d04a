#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# The dependency law: what each folder may include, and which files alone may know a
# library. layers.sh [ROOT]
set -u
. "$(dirname "$0")/common.sh"

mapfile -t files < <(sources '*.c' '*.h' '*.cu' '*.cuh')
[ ${#files[@]} -gt 0 ] || { echo "$root: no source files"; exit 2; }

private=
for file in "${files[@]}"; do
    case $file in *.h) is_private "$file" && private="$private $file" ;; esac
done

report < <(awk -v private="$private " '
BEGIN {
    law["base"] = "base"
    law["quant"] = "base quant"
    law["cuda"] = "base quant cuda"
    law["ckpt"] = "base ckpt"
    law["view"] = "base quant ckpt view"
    law["cache"] = "base cache"
    law["engine"] = "base quant ckpt view cache engine"
    law["compare"] = "base quant ckpt view engine compare"
    law["fs"] = law["engine"] " fs"
    law["cli"] = law["fs"] " compare cli"
    law["mount-helpers"] = "base mount-helpers"

    owner_of["fuse"] = "^fs/(fuse_ll|daemon)\\.c$"
    owner_of["lmdb"] = "^cache/(store_lmdb|lmdb_)[a-z0-9_]*\\.[ch]$"
    owner_of["cJSON"] = "^base/json_doc\\.c$"
    owner_of["xxhash"] = "^base/hash\\.c$"
    owner_of["CUDA"] = "^cuda/"
    owner_of["vector intrinsics"] = "^quant/x86/"
    owner_of["cmocka"] = "^tests/"
}
function library(name) {
    if (name ~ /^fuse/) return "fuse"
    if (name ~ /^lmdb\.h$/) return "lmdb"
    if (name ~ /^(cjson\/)?cJSON/) return "cJSON"
    if (name ~ /^xx(hash|h3|h_)/) return "xxhash"
    if (name ~ /^cu(da[a-z_]*\.h|blas|rand|pti|b\/)/) return "CUDA"
    if (name ~ /mmintrin\.h$|^x86intrin|^immintrin/) return "vector intrinsics"
    if (name ~ /^cmocka/) return "cmocka"
    return ""
}
function say(what) { printf "%s:%d: %s\n", FILENAME, FNR, what }
/^[ \t]*#[ \t]*include[ \t]*[<"]/ {
    name = $0
    sub(/^[ \t]*#[ \t]*include[ \t]*[<"]/, "", name)
    sub(/[>"].*$/, "", name)
    folder = FILENAME
    if (!sub(/\/.*$/, "", folder)) folder = "."

    lib = library(name)
    if (lib != "" && FILENAME !~ owner_of[lib] && FILENAME !~ /^(tests|bench)\//) {
        say("includes " name ": only " owner_of[lib] " may know " lib)
        next
    }
    if ($0 ~ /include[ \t]*</) next
    if (name ~ /\.\.\//) { say("includes " name ": name it from the root"); next }
    if (!(folder in law)) next
    target = name
    if (!sub(/\/.*$/, "", target)) { say("includes " name ": name it from the root"); next }
    if (target != folder && index(private, " " name " ") != 0) {
        say("includes " name ": it says that it is private to " target "/")
        next
    }
    if (target == "cuda" && FILENAME ~ /^cli\/(cmd_[a-z0-9_]+|stack)\.c$/) next
    if (index(" " law[folder] " ", " " target " ") == 0)
        say("includes " name ": " folder "/ may only include: " law[folder])
}' "${files[@]}")
finish
