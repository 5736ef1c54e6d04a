#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# No path of somebody's machine and no host name of a package registry in the tree: the
# first mean nothing elsewhere, the second are the business of each machine's settings.
# (The patterns are spelled so that they do not match themselves.) paths.sh [ROOT]
set -u
. "$(dirname "$0")/common.sh"

machine='(^|[^A-Za-z0-9_.}/$-])/(wor[k]|hom[e]|roo[t]|User[s])/[A-Za-z0-9_.]|/op[t]/[a-z]*venv'
machine="$machine"'|(^|[^A-Za-z0-9_.])/tm[p]/(bash_|q[f]/)'
registry='py[p]i\.(org|python)|python[h]osted\.org|conda\.anacond[a]|registry\.npm[j]s'
registry="$registry"'|crate[s]\.io|deb\.debia[n]\.org|archive\.ubunt[u]\.com|cran\.r-proj[e]ct'

list=$(mktemp)
trap 'rm -f "$list"' EXIT
tree_files > "$list"
while IFS= read -r file; do
    report < <(grep -InE "$machine" -- "$file" |
        sed -E "s|^([0-9]+):.*|$file:\1: names a path of a machine|")
    report < <(grep -InEi "$registry" -- "$file" |
        sed -E "s|^([0-9]+):.*|$file:\1: names the host of a package registry|")
done < "$list"
finish
