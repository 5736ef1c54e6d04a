#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests the lints: each passes on a small clean tree and fails, with file and line, on the
# same tree with one violation planted.
set -u
export LC_ALL=C
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0 checks=0

banner='/* SPDX-License-Identifier: Apache-2.0 */'

clean_tree() {
    rm -rf "$work/tree"
    mkdir -p "$work/tree"/{base,quant/x86,cuda,ckpt,view,cache,engine,fs,cli,tests}
    cp "$here/../../.clang-format" "$work/tree/"
    cd "$work/tree" || exit 2
    printf '%s\n#ifndef QF_A_H\n#define QF_A_H\n\nint qf_a(int x);\n\n#endif\n' "$banner" \
        > base/a.h
    printf '%s\n#include "base/a.h"\n\nint qf_a(int x)\n{\n    return x;\n}\n' "$banner" \
        > base/a.c
    printf '%s\n#include "base/a.h"\n#include <fuse_lowlevel.h>\n' "$banner" > fs/daemon.c
}

# expect NAME PATTERN COMMAND…: the lint must exit 1 and say what PATTERN matches. An empty
# pattern: it must exit 0.
expect() {
    local name=$1 pattern=$2 rc
    shift 2
    checks=$((checks + 1))
    "$@" > "$work/out" 2>&1
    rc=$?
    if [ -z "$pattern" ]; then
        [ $rc -eq 0 ] && return
    else
        [ $rc -eq 1 ] && grep -Eq -- "$pattern" "$work/out" && return
    fi
    if [ $rc -eq 77 ]; then
        # Two lines for one reason would count twice.
        grep -h '^SKIP' "$work/out" | sed "s|\$| (selftest: $name)|"
        return
    fi
    failed=$((failed + 1))
    echo "selftest: $name: exit $rc, wanted '${pattern:-success}'; it said:"
    sed 's/^/    /' "$work/out"
}

# plant FILE TEXT…: appends lines to a file of a fresh tree.
plant() {
    clean_tree
    local file=$1
    shift
    mkdir -p "$(dirname "$file")"
    [ -e "$file" ] || printf '%s\n' "$banner" > "$file"
    printf '%s\n' "$@" >> "$file"
}

clean_tree
for lint in layers headers format sizes paths; do
    expect "$lint, clean" "" "$here/$lint.sh" "$work/tree"
done

# ---- layers: every arrow of the law, upwards; every library, elsewhere
for pair in base:quant quant:ckpt ckpt:quant view:cache cache:ckpt engine:fs \
    engine:cuda fs:cuda fs:cli quant:cuda view:engine cuda:ckpt base:cli; do
    from=${pair%:*} to=${pair#*:}
    plant "$from/x.c" "#include \"$to/y.h\""
    expect "layers, $from includes $to" "^$from/x.c:2: includes $to/y.h" \
        "$here/layers.sh" "$work/tree"
done
for pair in quant:base cuda:quant ckpt:base view:quant view:ckpt engine:cache fs:engine \
    cli:fs engine:view; do
    plant "${pair%:*}/x.c" "#include \"${pair#*:}/y.h\""
    expect "layers, $pair is allowed" "" "$here/layers.sh" "$work/tree"
done
for file in cmd_doctor.c stack.c; do
    plant "cli/$file" '#include "cuda/cuda_backend.h"'
    expect "layers, a composition root, $file" "" "$here/layers.sh" "$work/tree"
done
for file in main.c stack.h stacks.c; do
    plant "cli/$file" '#include "cuda/cuda_backend.h"'
    expect "layers, cuda in $file" "^cli/$file:2: " "$here/layers.sh" "$work/tree"
done
while read -r file header; do
    plant "$file" "#  include <$header>"
    expect "layers, $header in $file" "^$file:2: includes $header" \
        "$here/layers.sh" "$work/tree"
done <<'LIST'
fs/tree.c fuse3/fuse_lowlevel.h
cli/main.c fuse.h
cache/record.c lmdb.h
engine/engine.c lmdb.h
base/json.c cjson/cJSON.h
view/policy.c cJSON.h
cache/key.c xxhash.h
engine/engine.c cuda_runtime.h
quant/nf4.c immintrin.h
base/err.c cmocka.h
LIST
plant cache/lmdb_writer.c '#include <lmdb.h>'
expect "layers, lmdb_writer.c" "" "$here/layers.sh" "$work/tree"
plant fs/x.c '#include "../base/a.h"'
expect "layers, a relative path" "^fs/x.c:2: " "$here/layers.sh" "$work/tree"

plant base/p.h '/* Things.' ' * Private to' ' * base/. */' 'struct p;'
printf '%s\n' '#include "base/p.h"' >> base/a.c
expect "layers, a private header at home" "" "$here/layers.sh" "$work/tree"
printf '%s\n' '#include "base/p.h"' >> fs/daemon.c
expect "layers, a private header elsewhere" "^fs/daemon.c:4: includes base/p.h: it says" \
    "$here/layers.sh" "$work/tree"

# ---- headers
plant base/b.h '#ifndef QF_B_H' '#define QF_B_H' 'size_t qf_b(void);' '#endif'
expect "headers, a missing include" "base/b.h:" "$here/headers.sh" "$work/tree"
plant base/b.h 'struct qf_b {' '    int x;' '};'
expect "headers, no guard" "base/b.h:" "$here/headers.sh" "$work/tree"
plant base/b.h '#ifndef QF_B_H' '#define QF_B_H' 'int qf_b(int template);' '#endif'
expect "headers, not C++" "base/b.h:.*17" "$here/headers.sh" "$work/tree"

plant base/b.h '/* Private to base/. */' '#ifndef QF_B_H' '#define QF_B_H' \
    'int qf_b(int template);' '#endif'
expect "headers, private and not C++" "" "$here/headers.sh" "$work/tree"
plant base/b.h '/* Private to base/. */' '#ifndef QF_B_H' '#define QF_B_H' \
    'size_t qf_b(void);' '#endif'
expect "headers, private and not C" "base/b.h:" "$here/headers.sh" "$work/tree"

# ---- format and sizes
plant base/b.c 'int  qf_b;'
expect "format" "^base/b.c:2: " "$here/format.sh" "$work/tree"
plant base/b.c "$(yes '/* . */' | head -n 700)"
expect "sizes, a long file" "^base/b.c:700: file of 701" "$here/sizes.sh" "$work/tree"
plant base/b.c "$(yes '/* . */' | head -n 699)"
expect "sizes, a file at the ceiling" "" "$here/sizes.sh" "$work/tree"
plant base/b.c 'int qf_b(void)' '{' "$(yes '    ;' | head -n 71)" '}'
expect "sizes, a long function" "^base/b.c:3: function of 71" "$here/sizes.sh" "$work/tree"
plant base/b.c 'int qf_b(void)' '{' "$(yes '    ;' | head -n 70)" '}'
expect "sizes, a function at the ceiling" "" "$here/sizes.sh" "$work/tree"
plant base/b.c "/* $(printf '%085d' 0) */"
expect "sizes, a long line" "^base/b.c:2: line of 91" "$here/sizes.sh" "$work/tree"
clean_tree
echo 'int qf_b;' > base/b.c
expect "sizes, no banner" "^base/b.c:1: no SPDX" "$here/sizes.sh" "$work/tree"

# ---- paths (spelled in halves: this file is looked at, too)
for path in /wor'k/main' /hom'e/me/x' /roo't/x' /op't/myvenv/bin'; do
    plant tests/x.py "x = \"$path\""
    expect "paths, $path" "^tests/x.py:2: names a path" "$here/paths.sh" "$work/tree"
done
for host in py'pi.org' files.python'hosted.org' registry.npm'js.org' deb.debia'n.org'; do
    plant README.md "see https://$host/x"
    expect "paths, $host" "^README.md:2: names the host" "$here/paths.sh" "$work/tree"
done

claim() { # ROW: a clean tree whose document has this row, and one test
    clean_tree
    mkdir -p docs tests/unit
    printf '# %s\nstatic void test_one(void **state)\n' "${banner//[*\/]/}" > tests/unit/test_a.c
    printf '| claim | shown by |\n|---|---|\n%s\n' "$1" > docs/SEMANTICS.md
}
claim '| it `works` | `test_a.c` `test_one` |'
expect "claims, clean" "" "$here/claims.sh" "$work/tree"
claim '| it works | `test_a.c` `test_two` |'
expect "claims, no such function" "^docs/SEMANTICS.md:3: no test_two in tests/unit/test_a.c" \
    "$here/claims.sh" "$work/tree"
claim '| it works | `test_b.c` `test_one` |'
expect "claims, no such file" "^docs/SEMANTICS.md:3: no test test_b.c" \
    "$here/claims.sh" "$work/tree"
claim '| it works | surely |'
expect "claims, no test" "^docs/SEMANTICS.md:3: a claim without a test" \
    "$here/claims.sh" "$work/tree"

# ---- symbols and isa, on libraries made here
cc=${CC:-cc}
library() {
    printf '%s\n' "$2" > "$work/$1.c"
    rm -f "$work/lib.a"
    shift 2
    (cd "$work" && $cc -O1 "${@:2}" -c "$1.c" -o "$1.c.o" && ar rcs lib.a "$1.c.o")
}
if command -v "$cc" >/dev/null && command -v ar >/dev/null; then
    clean_tree
    library a 'static int s(void) { return 1; } int qf_x(void) { return s(); }' a
    expect "symbols, clean" "" "$here/symbols.sh" "$work/tree" "$work/lib.a"
    library a 'int helper(void) { return 1; }' a
    expect "symbols, a function" "lib.a:a.c.o: exports helper" \
        "$here/symbols.sh" "$work/tree" "$work/lib.a"
    library a 'int table[4] = {1};' a
    expect "symbols, a table" "exports table" "$here/symbols.sh" "$work/tree" "$work/lib.a"
    if [ "$(uname -m)" = x86_64 ]; then
        wide='void qf_x(float *a) { for (int i = 0; i < 64; i++) a[i] *= 2.0f; }'
        library a "$wide" a
        expect "isa, clean" "" "$here/isa.sh" "$work/tree" "$work/lib.a"
        for flag in -mavx -mavx2 '-mavx512f -mprefer-vector-width=512'; do
            # shellcheck disable=SC2086
            library a "$wide" a -O3 $flag
            expect "isa, $flag" "lib.a:a.c.o: in <qf_x>.*AVX outside" \
                "$here/isa.sh" "$work/tree" "$work/lib.a"
        done
        touch "$work/tree/quant/x86/a.c"
        expect "isa, an object of quant/x86" "" "$here/isa.sh" "$work/tree" "$work/lib.a"
    fi
fi

echo "selftest: $checks checks, $failed failed"
[ "$failed" -eq 0 ]
