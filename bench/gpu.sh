#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Tests and measures the CUDA backend on a machine with a GPU.
#
#   bench/gpu.sh pack DIR        on the machine that builds: puts programs and the
#                                libraries they need into DIR, to be taken along
#   bench/gpu.sh STEP...         on the GPU machine, in DIR's parent or with QF_GPU=DIR
#
# Steps: check (bytes, 1 GiB a codec and type), faults, sanitize (compute-sanitizer),
# kernels (rate against a device copy), bnb (bitsandbytes' rate and bytes; needs torch
# and bitsandbytes), engine (page cache to encoded chunks, by backend), all.
# QF_GPU_DATA: where the engine step writes its file (default /tmp), QF_GPU_GB its size.
set -u
here=$(cd "$(dirname "$0")/.." && pwd)
failed=0

pack() {
    local dir=$1 build=${QF_BUILD:-$here/build/release}
    mkdir -p "$dir/lib" || exit 1
    ninja -C "$build" cuda_check qf_bench_gpu_engine qf_bench_gpu_kernels >&2 || exit 1
    cp "$build/tests/cuda/cuda_check" "$build/cuda/qf_bench_gpu_engine" \
        "$build/cuda/qf_bench_gpu_kernels" "$dir/" || exit 1
    if [ -x "$build/cli/quantfs" ]; then
        cp "$build/cli/quantfs" "$dir/"
    fi
    strip "$dir"/cuda_check "$dir"/qf_bench_gpu_* 2>/dev/null
    ldd "$dir"/cuda_check "$dir"/quantfs 2>/dev/null |
        awk '/(fuse3|lmdb|cjson|xxhash|cmocka)/ { print $3 }' | sort -u |
        xargs -r cp -t "$dir/lib"
}

# step NAME SECONDS COMMAND...
step() {
    local name=$1 limit=$2 begin rc
    shift 2
    begin=$SECONDS
    timeout "$limit" "$@" 2>&1
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

do_sanitize() {
    local tool
    for tool in memcheck racecheck; do
        step "$tool" 150 compute-sanitizer --tool $tool --error-exitcode 9 \
            "$gpu/cuda_check" --quick "$golden" | tail -n 8
    done
}

do_kernels() { step kernels 60 "$gpu/qf_bench_gpu_kernels"; }

do_bnb() {
    step bnb-bytes 90 python3 "$here/bench/gpu_bnb.py" bytes "$gpu/qf_bench_gpu_engine"
    step bnb-rate 60 python3 "$here/bench/gpu_bnb.py" rate
}

do_engine() {
    local file=${QF_GPU_DATA:-/tmp}/qf_gpu_weights engine=$gpu/qf_bench_gpu_engine args
    step make 120 "$engine" make "$file" "${QF_GPU_GB:-16}"
    while read -r args; do
        # shellcheck disable=SC2086
        step "engine $args" 60 "$engine" run "$file" $args | grep -v '^=='
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

[ $# -gt 0 ] || { sed -n '3,14s/^# \{0,1\}//p' "$0"; exit 2; }
if [ "$1" = pack ]; then
    [ $# -eq 2 ] || { echo "usage: bench/gpu.sh pack DIR" >&2; exit 2; }
    pack "$2"
    exit
fi
gpu=${QF_GPU:-$here/.gpu}
golden=$here/tests/golden/bnb_cuda.safetensors
export LD_LIBRARY_PATH=$gpu/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
[ -x "$gpu/cuda_check" ] || { echo "$gpu: no programs (see: bench/gpu.sh pack)" >&2; exit 2; }
nvidia-smi --query-gpu=name,driver_version --format=csv,noheader 2>/dev/null
for name in "$@"; do
    case $name in
    all) do_check; do_kernels; do_bnb; do_engine; do_faults; do_sanitize ;;
    check | faults | sanitize | kernels | bnb | engine) "do_$name" ;;
    *) echo "unknown step $name" >&2; exit 2 ;;
    esac
done
exit $failed
