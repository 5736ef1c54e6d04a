# SPDX-License-Identifier: Apache-2.0
# Sourced by every lint. A lint takes the tree to look at as its first argument (default:
# the repository), prints one "file:line: what is wrong" a violation, and exits 1.

export LC_ALL=C
root=${1:-$(cd "$(dirname "$0")/../.." && pwd)}
[ $# -gt 0 ] && shift
cd "$root" || exit 2
violations=0

# All files of the tree: what git tracks or would; without git all but build trees.
tree_files() {
    if [ -e .git ] && git ls-files -co --exclude-standard -z >/dev/null 2>&1; then
        git ls-files -co --exclude-standard
    else
        find . \( -path './.*' ! -path './.ci*' ! -path './.cl*' -o -path ./build \
            -o -name __pycache__ \) -prune -o -type f -print | sed 's|^\./||'
    fi | sort -u | while IFS= read -r file; do
        [ -f "$file" ] && printf '%s\n' "$file"
    done
}

# Those whose names match the globs given.
sources() {
    local file glob
    while IFS= read -r file; do
        for glob in "$@"; do
            # shellcheck disable=SC2053
            [[ ${file##*/} == $glob ]] && printf '%s\n' "$file" && break
        done
    done < <(tree_files)
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
