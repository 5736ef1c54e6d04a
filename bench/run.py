# SPDX-License-Identifier: Apache-2.0
"""The parts of the benchmark one after the other; see run.sh for the options."""
import argparse
import json
import os
import signal
import sys
import traceback

import common
import document
import facts
import part_diff
import part_kernels
import part_loads
import part_reads
import part_tree

PARTS = {"a": part_kernels.run, "b": part_reads.first, "c": part_reads.second,
         "d": part_reads.again, "e": part_loads.run, "f": part_tree.names,
         "g": part_tree.memory, "h": part_diff.run}


def parse():
    parser = argparse.ArgumentParser(prog="bench/run.sh", usage="see bench/run.sh --help")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--drop-caches", action="store_true")
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--reps", type=int)
    parser.add_argument("--json")
    parser.add_argument("--doc")
    parser.add_argument("--python", default=os.path.join(common.ROOT, ".venv/bin/python"))
    parser.add_argument("--work")
    parser.add_argument("--build", required=True)
    args = parser.parse_args()
    args.only = args.only.split(",")
    for name in args.only:
        if name not in PARTS:
            parser.error(f"--only: no part {name!r} (there are {', '.join(PARTS)})")
    args.reps = args.reps or (1 if args.quick else 5)
    if args.doc is None and not args.quick:
        args.doc = os.path.join(common.ROOT, "docs", "PERFORMANCE.md")
    return args


def drop_caches():
    """Clean pages go, so that parts begin alike."""
    os.sync()
    try:
        with open("/proc/sys/vm/drop_caches", "w", encoding="ascii") as f:
            f.write("3")
    except OSError as e:
        print(f"SKIP dropping caches: {e}")


def run_part(ctx, name):
    """(table or None, what went wrong or None)"""
    try:
        return PARTS[name](ctx), None
    except common.Skip as e:
        table = common.Table(name, f"Part {name}", ["what", "value"], "")
        table.skip(f"part {name}", str(e))
        return table, None
    except Exception as e:  # the other parts are worth having
        traceback.print_exc()
        return None, f"{type(e).__name__}: {e}"


def main():
    args = parse()
    # A run that is ended takes its mounts and files with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    os.environ["QUANTFS_BIN"] = os.path.join(args.build, "cli", "quantfs")
    ctx = common.Context(args)
    found = facts.gather(ctx.work, args.reps)
    print("\n".join(f"{k}: {v}" for k, v in found), flush=True)
    tables, failed = [], False
    try:
        for name in args.only:
            if args.drop_caches:
                drop_caches()
            table, wrong = run_part(ctx, name)
            if wrong:
                failed = True
                print(f"== {name}: FAIL {wrong}")
            else:
                tables.append(table)
                print(table.text())
                if args.doc:
                    document.write(args.doc, found, [table])
            sys.stdout.flush()
    finally:
        ctx.close()
    if args.json:
        with open(args.json, "w", encoding="utf-8") as f:
            json.dump({"facts": dict(found), "tables": [vars(t) for t in tables]}, f,
                      indent=1)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
