# SPDX-License-Identifier: Apache-2.0
# Sourced by every lint. A lint takes the tree to look at as its first argument (default:
# the repository), prints one "file:line: what is wrong" a violation, and exits 1.

export LC_ALL=C
root=${1:-$(cd "$(dirname "$0")/../.." && pwd)}
[ $# -gt 0 ] && shift
cd "$root" || exit 2
violations=0

# Files of the tree whose names match the globs given, without build trees.
sources() {
    local args=() glob
    for glob in "$@"; do args+=(-o -name "$glob"); done
    find . \( -path ./.git -o -path ./build -o -path ./.venv -o -name __pycache__ \) \
        -prune -o -type f \( "${args[@]:1}" \) -print | sed 's|^\./||' | sort
}

# Whether a header says that only its folder may use it.
is_private() {
    head -n 6 "$1" | tr '\n*' '  ' | tr -s ' ' |
        grep -Eq '[Pp]rivate to |for [a-z]+/ only'
}

# Reports lines from stdin ("file:line: message") and remembers that there were any.
report() {
    local line
    while IFS= read -r line; do
        printf '%s\n' "$line"
        violations=$((violations + 1))
    done
}

finish() {
    if [ "$violations" -ne 0 ]; then
        echo "$(basename "$0"): $violations violation(s)"
        exit 1
    fi
    exit 0
}

skip() {
    echo "SKIP: $*"
    exit 77
}
