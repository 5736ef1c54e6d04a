# SPDX-License-Identifier: Apache-2.0
# Sourced by quickstart.sh and test.sh: installs what is missing, and only that.
#
#   qf_need build | tests | browser | loaders     remembers the packages whose use fails here
#   qf_install                          installs them; 1 with a sentence when it cannot

qf_missing=()

# qf_want PACKAGE COMMAND…: the package is missing when the command fails.
qf_want() {
    local package=$1
    shift
    "$@" >/dev/null 2>&1 || qf_missing+=("$package")
}

qf_have() { command -v "$1"; }

# The compiler that CMake will take can make a program.
qf_have_compiler() {
    local dir rc
    dir=$(mktemp -d) || return 1
    echo 'int main(void) { return 0; }' > "$dir/a.c"
    "${CC:-cc}" "$dir/a.c" -o "$dir/a"
    rc=$?
    rm -rf "$dir"
    return $rc
}

qf_have_browser() {
    qf_have chromium || qf_have chromium-browser || qf_have google-chrome
}

qf_need() {
    case $1 in
    build)
        qf_want build-essential qf_have_compiler
        qf_want cmake qf_have cmake
        qf_want ninja-build qf_have ninja
        qf_want pkg-config qf_have pkg-config
        qf_want libfuse3-dev pkg-config --exists fuse3
        qf_want fuse3 qf_have fusermount3
        qf_want liblmdb-dev pkg-config --exists lmdb
        qf_want libcjson-dev pkg-config --exists libcjson
        qf_want libxxhash-dev pkg-config --exists libxxhash
        ;;
    tests)
        qf_want g++ qf_have c++
        qf_want binutils qf_have objdump
        qf_want libcmocka-dev pkg-config --exists cmocka
        qf_want clang-format-14 qf_have clang-format-14
        qf_want python3 qf_have python3
        qf_want file qf_have file # CPack asks it which files are programs
        qf_want mandoc qf_have mandoc
        qf_want zsh qf_have zsh
        qf_want fish qf_have fish
        qf_want systemd qf_have systemd-analyze
        ;;
    browser) # the page of quantfs diff is looked at as its readers will
        qf_want chromium qf_have_browser
        qf_want fonts-dejavu-core test -d /usr/share/fonts/truetype/dejavu
        ;;
    loaders)
        qf_want python3-venv python3 -c 'import ensurepip, venv'
        qf_want ca-certificates test -s /etc/ssl/certs/ca-certificates.crt
        ;;
    esac
}

qf_as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo ${QF_SUDO_FLAGS-} "$@"
    else
        echo "not root and no sudo: cannot run $*" >&2
        return 1
    fi
}

qf_install() {
    [ ${#qf_missing[@]} -gt 0 ] || return 0
    echo "installing: ${qf_missing[*]}"
    if ! command -v apt-get >/dev/null; then
        echo "no apt-get here: please install what Debian calls ${qf_missing[*]}" >&2
        return 1
    fi
    local log rc=0
    log=$(mktemp)
    {
        qf_as_root apt-get update &&
            qf_as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y \
                --no-install-recommends "${qf_missing[@]}"
    } > "$log" 2>&1 < /dev/null || rc=1
    if [ $rc -ne 0 ]; then
        tail -n 15 "$log" >&2
        echo "could not install: ${qf_missing[*]}" >&2
    fi
    rm -f "$log"
    qf_missing=()
    return $rc
}
