#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing (Debian, Ubuntu), builds quantfs, and mounts a store of models.
#
#   ./quickstart.sh [STORE [MNT]]
#
# STORE: a directory with Hugging Face style models in it, nested in any way; without it
# a small demo model is written first. MNT: where to mount, by default ~/quantfs (or
# ~/quantfs-views when this clone is there).
# Run again at any time: what is done is not done twice.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

case ${1-} in
-h | --help) sed -n '3,10s/^# \{0,1\}//p' "$0"; exit 0 ;;
esac
[ $# -le 2 ] || { echo "usage: ./quickstart.sh [STORE [MNT]]" >&2; exit 2; }

data=${XDG_DATA_HOME:-$HOME/.local/share}/quantfs
store=${1:-$data/demo}
mnt=${2:-$HOME/quantfs}
quantfs=$here/build/release/cli/quantfs

if [ $# -ge 1 ] && [ ! -d "$store" ]; then
    echo "$store: no such directory" >&2
    exit 1
fi

# Whether a mount on $1 would hide this clone, and with it the program that unmounts.
hides_clone() {
    local dir=$here
    until [ "$dir" -ef "$1" ]; do
        [ "$dir" != / ] || return 1
        dir=$(dirname "$dir")
    done
}

[ $# -ge 2 ] || ! hides_clone "$mnt" || mnt=$HOME/quantfs-views
if hides_clone "$mnt"; then
    echo "$mnt: a mount there would hide this clone; name another directory" >&2
    exit 1
fi

. "$here/scripts/deps.sh"
qf_need build
qf_install
if [ ! -e /dev/fuse ]; then
    echo "/dev/fuse is missing: load the kernel's fuse module (modprobe fuse), or give" \
        "the container the device (docker run --device /dev/fuse --cap-add SYS_ADMIN)" >&2
    exit 1
fi

echo "building (build/release)"
log=$(mktemp)
if ! (cd "$here" && cmake --preset release -DQUANTFS_TESTS=OFF &&
    cmake --build --preset release) > "$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "the build failed; all of it is in $log" >&2
    exit 1
fi
rm -f "$log"

if [ $# -eq 0 ] && [ ! -e "$store/llama-demo/config.json" ]; then
    echo "writing a demo model to $store/llama-demo"
    mkdir -p "$store"
    rm -rf "$store/llama-demo" "$store/.llama-demo.new"
    "$quantfs" demo "$store/.llama-demo.new"
    mv "$store/.llama-demo.new" "$store/llama-demo"
fi

if mounted_store=$(sed -n 's/^store=//p' "$mnt/.quantfs/status" 2>/dev/null) &&
    [ -n "$mounted_store" ]; then
    if [ $# -ge 1 ] && [ "$(realpath "$store")" != "$mounted_store" ]; then
        echo "$mnt shows $mounted_store already; unmount it first: $quantfs umount $mnt" >&2
        exit 1
    fi
    echo "$mnt is mounted already"
else
    # What a daemon that died has left.
    if grep -q " $mnt fuse.quantfs " /proc/self/mounts; then
        "$quantfs" umount -l "$mnt"
    fi
    mkdir -p "$mnt"
    "$quantfs" mount "$store" "$mnt"
    echo "mounted $store on $mnt"
fi

# The blobs of a hub cache pass through; its snapshots show the same files quantized.
size_of() { du -sL --apparent-size --exclude=blobs -B1 "$1" 2>/dev/null | cut -f1; }
human() { numfmt --to=iec --suffix=B "$1"; }

echo
printf '  %-8s %10s\n' view size
mounted=$(awk -v mnt="$(cd "$mnt" && pwd -P)" '$2 == mnt { print $1 }' /proc/self/mounts)
[ -d "$mounted" ] && store=$mounted
printf '  %-8s %10s   (%s)\n' source "$(human "$(size_of "$store")")" "$store"
for view in "$mnt"/*/; do
    view=${view%/}
    printf '  %-8s %10s\n' "${view##*/}" "$(human "$(size_of "$view")")"
    [ "${view##*/}" = nf4 ] || [ -z "${example-}" ] || continue
    example=$view
done
first=$(find -L "$example" -maxdepth 6 -name config.json \
    -exec grep -l '"quant_method": "bitsandbytes"' {} + 2>/dev/null |
    xargs -r -d '\n' grep -l '"model_type"' | head -n 1) || true
echo
echo "The sizes follow from the headers; nothing is quantized before it is read. To load"
echo "a view (pip install torch transformers accelerate bitsandbytes):"
echo
if [ -n "$first" ]; then
    echo "  from transformers import AutoModel"
    echo "  model = AutoModel.from_pretrained(\"$(dirname "$first")\")"
else
    echo "  (no model in $store can be quantized; 'quantfs info $store' says why)"
fi
echo
echo "To unmount:  $quantfs umount $mnt"
