#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Each claim of docs/SEMANTICS.md names tests, and they are there: in the last column a file
# and, behind it, functions of that file. claims.sh [ROOT]
set -u
. "$(dirname "$0")/common.sh"

document=docs/SEMANTICS.md
[ -f "$document" ] || finish

# A file's path: as written below tests/, or in one of its folders.
find_test() {
    local path
    for path in "tests/$1" tests/*/"$1"; do
        [ -f "$path" ] && { echo "$path"; return; }
    done
}

has_test() { # FILE NAME
    case $1 in
    *.py) grep -Eq "^    def $2\(self" "$1" ;;
    *) grep -Eq "^static void $2\(" "$1" ;;
    esac
}

check_row() { # LINE LAST_CELL
    local word file='' count=0
    while IFS= read -r word; do
        if [[ $word == *.py || $word == *.c ]]; then
            file=$(find_test "$word")
            [ -n "$file" ] || echo "$document:$1: no test $word"
            count=$((count + 1))
        elif [ -z "$file" ] || ! has_test "$file" "$word"; then
            echo "$document:$1: no ${word} in ${file:-any file}"
        fi
    done < <(grep -o '`[^`]*`' <<< "$2" | tr -d '`')
    [ $count -gt 0 ] || echo "$document:$1: a claim without a test"
}

report < <(number=0
    while IFS= read -r line; do
        number=$((number + 1))
        case $line in
        '| claim '* | '|---'*) ;;
        '| '*)
            cell=${line% |}
            check_row $number "${cell##* | }"
            ;;
        esac
    done < "$document")
finish
