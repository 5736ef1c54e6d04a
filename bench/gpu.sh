#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests and measures the CUDA backend on a machine with a GPU.
#
#   bench/gpu.sh pack DIR        on the machine that builds: puts programs and the
#                                libraries they need into DIR, to be taken along
#                                (QF_BUILD: the build folder; QF_BNB: an installed
#                                bitsandbytes that is to go along)
#   bench/gpu.sh PART...         on the GPU machine, beside DIR (.gpu) or with QF_GPU=DIR
#
# Parts:
#   check     bytes: 1 GiB a codec and type, golden files      faults    injected faults
#   sanitize  compute-sanitizer, memcheck and racecheck        memory    touches memory once
#   make      writes the 8B checkpoint                         kernels   rate against a copy
#   bnb       bitsandbytes' rate and bytes                     backend   batches, no engine
#   read      page cache to encoded chunks through the engine  loads     from_pretrained
#   cold      loads from a cold disk                           all       memory make sanitize
#                                                              kernels bnb read loads cold
# Every part has its time limit, and all together QF_GPU_SECONDS (560). OUT (bench-out)
# gets gpu.log as it goes, and at the end gpu.json, gpu.txt, loads.json, loads.txt.
# QF_GPU_DATA: where the checkpoint and the caches are (default /tmp/qf-gpu; 64 GB).
# QF_GPU_SMALL=1: a dry run with a small checkpoint, and with QF_GPU_LOADS=--cpu without a
# GPU. PYTHON: with torch, transformers, accelerate (python3).
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3}
limit_s=${QF_GPU_SECONDS:-560}
sanitize_s=240
failed=0

pack() {
    local dir=$1 build=${QF_BUILD:-$here/build/release}
    local programs="tests/cuda/cuda_check cuda/qf_bench_gpu_engine
        cuda/qf_bench_gpu_kernels bench/qf_bench_gpu_read bench/qf_bench_bare
        cli/quantfs"
    mkdir -p "$dir/lib" "$dir/py" || exit 1
    ninja -C "$build" cuda_check qf_bench_gpu_engine qf_bench_gpu_kernels \
        qf_bench_gpu_read qf_bench_bare quantfs >&2 || exit 1
    for program in $programs; do
        cp "$build/$program" "$dir/" && strip "$dir/${program##*/}" || exit 1
    done
    ldd "$dir"/cuda_check "$dir"/quantfs "$dir"/qf_bench_* |
        awk '/(fuse3|lmdb|cjson|xxhash|cmocka)/ { print $3 }' | sort -u |
        xargs -r cp -Lt "$dir/lib" || exit 1
    if [ -n "${QF_BNB:-}" ]; then
        cp -r "$QF_BNB" "$QF_BNB"-*.dist-info "$dir/py/" || exit 1
        find "$dir/py" \( -name '*.so' ! -name '*_cuda130.so' ! -name '*_cpu.so' \
            -o -name __pycache__ \) -prune -exec rm -rf {} +
    fi
    du -sm "$dir"
}

left() { echo $((limit_s - SECONDS)); }

# step NAME SECONDS COMMAND...: at most so long, and no longer than is left of all.
step() {
    local name=$1 limit=$2 begin=$SECONDS rc
    shift 2
    [ "$limit" -le "$(left)" ] || limit=$(left)
    if [ "$limit" -lt 3 ]; then
        echo "== $name: not run: no time left"
        failed=1
        return
    fi
    timeout -k 10 "$limit" "$@" 2>&1
    rc=$?
    echo "== $name: exit $rc after $((SECONDS - begin)) s"
    [ $rc -eq 0 ] || failed=1
}

do_check() { step check 240 "$gpu/cuda_check" --big "$golden"; }

do_faults() {
    local fault
    for fault in oom oom@2 pinned register register@3 launch launch@40 lost lost@40; do
        QUANTFS_FAULT=cuda:$fault step "fault $fault" 120 \
            "$gpu/cuda_check" --quick "$golden" | grep -E '==|warning|FAIL|^ok'
    done
}

sanitize_one() {
    step "$1" "$sanitize_s" compute-sanitizer --tool "$1" --error-exitcode 9 \
        "$gpu/cuda_check" --quick "$golden" | tail -n 8
}

# Both at a time, and beside what is not measured.
sanitize_start() {
    rm -f "$out/memcheck.log" "$out/racecheck.log"
    if ! command -v compute-sanitizer >/dev/null; then
        echo "== sanitize: not run: no compute-sanitizer"
        return
    fi
    sanitize_one memcheck >"$out/memcheck.log" &
    sanitize_one racecheck >"$out/racecheck.log" &
}

sanitize_wait() {
    wait
    cat "$out/memcheck.log" "$out/racecheck.log" 2>/dev/null
}

# A virtual machine may get its memory only when it is first touched, and slowly.
do_memory() {
    step memory 45 "$python" - "${QF_GPU_SMALL:-0}" <<'PY'
import multiprocessing, sys, time
import numpy
gib = 1 if sys.argv[1] == "1" else 80
def touch(size):
    numpy.empty(size, dtype=numpy.uint8).fill(1)
def report(when):
    fields = dict(l.split(":") for l in open("/proc/meminfo"))
    print(f"memory {when}:", *(f"{k} {int(fields[k].split()[0]) >> 20} GiB"
                               for k in ("MemTotal", "MemAvailable")))
report("before")
begin = time.monotonic()
with multiprocessing.Pool(8) as pool:
    pool.map(touch, [(gib << 30) // 8] * 8)
report("after")
print(f"memory touched: {gib} GiB in {time.monotonic() - begin:.1f} s")
PY
}

do_make() {
    local small=
    [ "${QF_GPU_SMALL:-0}" = 1 ] && small=--small
    # shellcheck disable=SC2086
    step make 90 "$python" "$here/bench/gpu_model.py" "$data/store" $small
    step sync 60 sync
    cat "$data/store"/big/*.safetensors >/dev/null
}

do_kernels() { step kernels 60 "$gpu/qf_bench_gpu_kernels"; }

do_bnb() {
    step bnb-rate 60 "$python" "$here/bench/gpu_bnb.py" rate
    step bnb-bytes 90 "$python" "$here/bench/gpu_bnb.py" bytes "$gpu/qf_bench_gpu_engine"
}

do_backend() {
    local file=$data/weights engine=$gpu/qf_bench_gpu_engine args
    step make-weights 120 "$engine" make "$file" "${QF_GPU_GB:-16}"
    while read -r args; do
        # shellcheck disable=SC2086
        step "backend $args" 60 "$engine" run "$file" $args | grep -v '^=='
    done <<'LIST'
cuda nf4 1
cuda nf4 2
cuda nf4 3
cuda nf4 4
cuda nf4 4 32 nopin
cuda nf4 16 1
cuda dq 4
cuda int8 4
best nf4 4
best nf4 16
best int8 4
LIST
    rm -f "$file"
}

# At most four threads, readers and workers together; the CPU's also with all.
do_read() {
    local args
    while read -r args; do
        # shellcheck disable=SC2086
        step "read $args" 40 "$gpu/qf_bench_gpu_read" "$data/store/big" $args
    done <<LIST
nf4 cuda 1 3 3
nf4 best 1 3 2
nf4 cuda 2 2 3
nf4 best 2 2 2
dq cuda 1 3 2
dq best 1 3 2
int8 cuda 1 3 2
int8 best 1 3 2
nf4 cuda 4 16 2
nf4 best 4 16 2
LIST
}

loads() {
    local seconds=$(($(left) - 12))
    # shellcheck disable=SC2086
    QUANTFS_BIN=$gpu/quantfs QF_BARE_FUSE=$gpu/qf_bench_bare \
        step loads "$(left)" "$python" "$here/bench/gpu_loads.py" "$data/store" "$out" \
        --seconds $seconds --only "$1" ${QF_GPU_LOADS:-}
}

run_parts() {
    nvidia-smi --query-gpu=name,driver_version,memory.used --format=csv,noheader 2>/dev/null
    echo "machine: $(uname -r), $(nproc) processors, $(df -h "$data" | tail -n 1)"
    local name list=() only=
    for name in "$@"; do
        case $name in
        all)
            sanitize_s=90
            list+=(sanitize_start memory make sanitize_wait kernels bnb read loads cold)
            ;;
        sanitize) list+=(sanitize_start sanitize_wait) ;;
        *) list+=("$name") ;;
        esac
    done
    for name in "${list[@]}"; do
        case $name in
        loads) only=${only:+$only,}warm ;;
        cold) only=${only:+$only,}cold ;;
        esac
    done
    for name in "${list[@]}"; do
        case $name in
        loads | cold)
            [ -z "$only" ] || loads "$only" # both in one program
            only=
            ;;
        sanitize_start | sanitize_wait) "$name" ;;
        check | faults | memory | make | kernels | bnb | backend | read)
            "do_$name"
            ;;
        *) echo "unknown part $name" >&2; failed=1 ;;
        esac
    done
    echo "== all: $SECONDS s, $([ $failed = 0 ] && echo nothing || echo something) failed"
    return $failed
}

[ $# -gt 0 ] || { sed -n '3,30s/^# \{0,1\}//p' "$0"; exit 2; }
if [ "$1" = pack ]; then
    [ $# -eq 2 ] || { echo "usage: bench/gpu.sh pack DIR" >&2; exit 2; }
    pack "$2"
    exit
fi
gpu=${QF_GPU:-$here/.gpu}
out=${OUT:-bench-out}
data=${QF_GPU_DATA:-/tmp/qf-gpu}
golden=$here/tests/golden/bnb_cuda.safetensors
export LD_LIBRARY_PATH=$gpu/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export PYTHONPATH=$gpu/py${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
[ -x "$gpu/quantfs" ] || { echo "$gpu: no programs (see: bench/gpu.sh pack)" >&2; exit 2; }
mkdir -p "$out" "$data" || exit 1
run_parts "$@" 2>&1 | tee "$out/gpu.log"
rc=${PIPESTATUS[0]}
"$python" "$here/bench/gpu_report.py" "$out"
# Some steps ran in pipelines, whose ends the log alone knows.
! grep -qE '^== .*: (exit [1-9]|not run: no time)' "$out/gpu.log" || rc=1
exit "$rc"
