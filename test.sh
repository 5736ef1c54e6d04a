#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what the tests need, builds, and runs them.
#
#   ./test.sh          short, medium, and the named sample of long
#   ./test.sh short    lint, unit, kernels, golden, fs            (a minute)
#   ./test.sh medium   short, mounts, sanitizer builds, loaders
#   ./test.sh long     only the long tests
#   ./test.sh gpu      what needs an NVIDIA GPU
#   ./test.sh all      everything
#
# A test that cannot run here says SKIP and why. With CI=true or QUANTFS_NO_SKIP=1 a skip
# is a failure. The last line is "N passed, N failed, N skipped"; the exit status is 0
# when nothing failed. docs/TESTING.md says more.
set -u
cd "$(dirname "$0")" || exit 2
exec < /dev/null
QF_SUDO_FLAGS=-n
. scripts/deps.sh

usage() {
    sed -n '3,14s/^# \{0,1\}//p' "$0"
}

tier=${1-default}
matrix=0
case $tier in
default) labels='^(short|medium|sample)$' sanitize=1 loaders=1 ;;
short) labels='^short$' sanitize=0 loaders=0 ;;
medium) labels='^(short|medium)$' sanitize=1 loaders=1 ;;
long) labels='^(long|sample)$' sanitize=0 loaders=1 matrix=1 ;;
gpu) labels='^gpu$' sanitize=0 loaders=0 ;;
all) labels='^(short|medium|sample|long|gpu)$' sanitize=1 loaders=1 matrix=1 ;;
-h | --help) usage; exit 0 ;;
*) usage >&2; exit 2 ;;
esac

jobs=$(nproc)
logs=build/test-logs
results=$logs/results
mkdir -p "$logs" || exit 2
: > "$results"
SECONDS=0

say() { printf '[%3d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
result() { printf '%s\n' "$*" >> "$results"; }

# Shows what the last step added, skips and failures one by one.
show_since() {
    tail -n "+$(($1 + 1))" "$results" | awk '
        { n[$1]++ }
        $1 == "skip" { sub(/^skip /, ""); print "         SKIP " $0 }
        $1 == "fail" { sub(/^fail /, ""); print "         FAIL " $0 }
        END { printf "         %d passed, %d failed, %d skipped\n",
              n["pass"], n["fail"], n["skip"] }'
}

# build NAME PRESET [CMAKE ARGUMENTS]
build() {
    local name=$1 preset=$2
    shift 2
    say "build $name"
    if cmake --preset "$preset" -DPython3_EXECUTABLE="$python" "$@" \
        > "$logs/build-$name.log" 2>&1 &&
        cmake --build --preset "$preset" -j "$jobs" >> "$logs/build-$name.log" 2>&1; then
        result "pass build:$name"
        return 0
    fi
    result "fail build:$name"
    grep -E -A3 'error|Error' "$logs/build-$name.log" | head -n 30
    echo "         FAIL build of $name: see $logs/build-$name.log"
    return 1
}

# run_ctest NAME PRESET [CTEST ARGUMENTS]
run_ctest() {
    local name=$1 preset=$2 xml=$PWD/$logs/$1.xml before
    shift 2
    before=$(wc -l < "$results")
    say "test $name"
    rm -f "$xml"
    ${run_under-} ctest --test-dir "build/$preset" -L "$labels" -j "$jobs" \
        --output-junit "$xml" --test-output-size-passed 1000000 \
        --test-output-size-failed 1000000 --output-on-failure --no-tests=error \
        "$@" > "$logs/$name.log" 2>&1
    python3 tests/report.py "$name:" "$xml" >> "$results"
    show_since "$before"
    grep -Eq '^fail ' <(tail -n "+$((before + 1))" "$results") &&
        { grep -E '\*\*\*|[Ee]rror|Assert|SUMMARY|FAIL|failed' "$logs/$name.log" |
            head -n 40; echo "         see $logs/$name.log"; }
}

test_ci() {
    build ci ci && run_ctest ci ci
}

test_sanitized() {
    local labels='^(short|medium)$'
    # What looks at sources or at Python has run, and so, before TSan, has what has no
    # threads; what replaces malloc (or, before TSan, more of libc) cannot run under a
    # sanitizer, which does so too.
    local python_only='models_diff|arch_table|test_ckpt_nomem' no_threads='kernel_|golden|.*_diff$|test_fs_faults|test_fs_gguf'
    build asan asan && run_ctest asan asan -LE '^lint$' -E "^($python_only)"
    # gcc's ThreadSanitizer cannot map its shadow where address randomization is wide.
    local run_under=
    setarch "$(uname -m)" -R true 2>/dev/null && run_under="setarch $(uname -m) -R"
    build tsan tsan && run_ctest tsan tsan -LE '^lint$' \
        -E "^($python_only|$no_threads)"
}

# Makes .venv/ from the requirements; keeps it while they and Python stay the same.
make_venv() {
    local stamp log=$logs/venv.log
    stamp=$({ cat tests/loaders/requirements.txt; python3 -VV; } | sha256sum | cut -c1-32)
    [ "$(cat .venv/stamp 2>/dev/null)" = "$stamp" ] && return 0
    say "make .venv (torch, transformers, bitsandbytes: some GB, some minutes)"
    rm -rf .venv
    python3 -m venv .venv > "$log" 2>&1 &&
        timeout 1500 .venv/bin/python -m pip install --disable-pip-version-check \
            --no-input --progress-bar off -r tests/loaders/requirements.txt \
            >> "$log" 2>&1 || return 1
    echo "$stamp" > .venv/stamp
}

# with_libraries NAME SCRIPT [ARGUMENTS]: a Python test that says pass, fail and skip.
with_libraries() {
    local name=$1 binary=$PWD/build/ci/cli/quantfs before rc
    shift
    before=$(wc -l < "$results")
    if [ ! -x "$binary" ]; then
        result "fail $name: no program was built"
    elif [ $venv = 0 ]; then
        result "skip $name: the Python packages could not be installed:" \
            "$(grep -iE '^error' "$logs/venv.log" | tail -n 1)"
    else
        say "test $name"
        QUANTFS_BIN=$binary timeout 2400 .venv/bin/python "$@" > "$logs/$name.log" 2>&1
        rc=$?
        grep -E '^(pass|fail|skip) ' "$logs/$name.log" | sed "s/ / $name:/" >> "$results"
        if [ $rc -ne 0 ] && [ $rc -ne 77 ] && ! grep -q '^fail ' "$logs/$name.log"; then
            result "fail $name: exit $rc"
        fi
        grep -Eq '^(fail|Traceback)' "$logs/$name.log" && tail -n 40 "$logs/$name.log"
    fi
    show_since "$before"
}

# docs/MATRIX.md stays as it is unless all of it could be made.
make_matrix() {
    [ -f "$logs/matrix.json" ] || return 0 # not run, and that has been said
    if .venv/bin/python tests/matrix/table.py "$logs/matrix.json" \
        "$logs/ecosystem.json" > "$logs/MATRIX.md" 2> "$logs/matrix-table.log"; then
        cp "$logs/MATRIX.md" docs/MATRIX.md.new && mv docs/MATRIX.md.new docs/MATRIX.md
    else
        result "fail matrix:table: $(tail -n 1 "$logs/matrix-table.log")"
        echo "         FAIL docs/MATRIX.md is not renewed: see $logs/matrix-table.log"
    fi
}

test_loaders() {
    with_libraries loaders tests/loaders/run.py
    with_libraries overrides tests/loaders/overrides.py
    with_libraries export tests/loaders/export.py
    with_libraries dequant tests/loaders/dequant.py
    with_libraries diff tests/loaders/diff.py
    with_libraries gguf tests/loaders/gguf_views.py
    with_libraries examples tests/loaders/examples.py
    with_libraries modules tests/loaders/scaled_modules.py
    # In the long tier every dtype of every model.
    if [ $matrix = 0 ]; then
        with_libraries scaled tests/loaders/scaled.py
    else
        with_libraries scaled tests/loaders/scaled.py --all
    fi
    with_libraries ecosystem tests/matrix/ecosystem.py --results "$logs/ecosystem.json"
    if [ $matrix = 0 ]; then
        with_libraries matrix tests/matrix/run.py --sample
    else
        rm -f "$logs/matrix.json"
        with_libraries matrix tests/matrix/run.py --results "$logs/matrix.json"
        make_matrix
        with_libraries llama_cpp tests/loaders/llama_cpp_views.py
    fi
}

qf_need build
qf_need tests
[ $loaders = 1 ] && qf_need loaders
[ ${#qf_missing[@]} -eq 0 ] || say "install what is missing"
# Without some of it much can still run, and what cannot will say so.
qf_install || true
# By itself: where there is none, the rest must be installed all the same.
[ $sanitize = 1 ] && qf_need browser && qf_install || true

# Some tests of the medium tier are richer with it, so it comes first.
venv=0
python=$(command -v python3)
if [ $loaders = 1 ]; then
    if make_venv; then
        venv=1
        python=$PWD/.venv/bin/python
    else
        tail -n 3 "$logs/venv.log"
    fi
fi

test_ci
[ $sanitize = 1 ] && test_sanitized
[ $loaders = 1 ] && test_loaders

count() { awk -v what="$1" '$1 == what { n++ } END { print n + 0 }' "$results"; }
passed=$(count pass) failed=$(count fail) skipped=$(count skip)
say "done"
status=0
[ "$failed" -eq 0 ] || status=1
[ "$passed" -gt 0 ] || status=1
if [ "$skipped" -gt 0 ] && { [ "${CI-}" = true ] || [ "${QUANTFS_NO_SKIP-}" = 1 ]; }; then
    echo "a skip counts as a failure here (CI=true or QUANTFS_NO_SKIP=1)"
    status=1
fi
echo "$passed passed, $failed failed, $skipped skipped"
exit $status
