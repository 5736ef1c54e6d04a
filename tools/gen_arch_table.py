#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes view/arch_table.inc (C data) from view/arch_table.json.

    tools/gen_arch_table.py            write view/arch_table.inc
    tools/gen_arch_table.py --check    exit 1 when it is not what the JSON gives
    tools/gen_arch_table.py --renew    first renew the JSON from the transformers and
                                       diffusers that are installed, and say what changed
                                       (with --check: only say; exit 1 if anything did)

The JSON is what is edited and reviewed; the C file is committed too, so that a build
needs no Python. Entries are checked here, because the C side trusts them: it knows
exactly these fields, and of regular expressions only '.' and '.*'.
"""
import argparse
import json
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
JSON = ROOT / "view" / "arch_table.json"
INC = ROOT / "view" / "arch_table.inc"

LISTS = {"never": "never", "opt": "optional", "conv1d": "conv1d"}
BY_CLASS = {"fp32": "fp32", "fp32s": "fp32_strict", "heads": "heads", "tied": "tied"}
FAMILIES = ("transformers", "diffusers")

GLOB = re.compile(r"(\*\*\.)?([A-Za-z0-9_]+|\*)(\.([A-Za-z0-9_]+|\*))*")
SKIP = re.compile(r"([A-Za-z0-9_]|\.\*?)*")
NAME = re.compile(r"[A-Za-z0-9_.-]+")


class BadTable(Exception):
    pass


def check_items(where, field, items):
    if not isinstance(items, list) or not items:
        raise BadTable(f"{where}: {field}: not a list, or empty")
    form = GLOB if field in ("never", "heads") else SKIP
    for item in items:
        if not isinstance(item, str) or not form.fullmatch(item):
            raise BadTable(f"{where}: {field}: {item!r} is not of a form that C knows")


def check(table):
    for family in FAMILIES:
        for name, entry in table[family].items():
            where = f"{family}/{name}"
            if not NAME.fullmatch(name):
                raise BadTable(f"{where}: odd name")
            for field, value in entry.items():
                if field in LISTS:
                    check_items(where, field, value)
                elif field in BY_CLASS:
                    for cls, items in value.items():
                        if cls == "*" and field in ("heads", "tied"):
                            raise BadTable(f"{where}: {field}: '*' has no meaning")
                        if cls != "*" and not NAME.fullmatch(cls):
                            raise BadTable(f"{where}: odd class {cls!r}")
                        check_items(where, field, items)
                else:
                    raise BadTable(f"{where}: the C side does not know '{field}'")
                if family == "diffusers" and field not in ("never", "fp32"):
                    raise BadTable(f"{where}: '{field}' is not used for diffusers")


def wrap(items, indent="    "):
    lines, line = [], indent
    for item in items:
        if len(line) + len(item) + 2 > 88 and line.strip():
            lines.append(line.rstrip())
            line = indent
        line += item + ", "
    lines.append(line.rstrip(", "))
    return "\n".join(lines)


class Pool:
    """Equal lists are written once."""

    def __init__(self, prefix, declare):
        self.prefix, self.declare, self.names, self.text = prefix, declare, {}, []

    def name(self, key, items):
        if key not in self.names:
            self.names[key] = f"{self.prefix}{len(self.names)}"
            head = f"static const {self.declare}{self.names[key]}[] = {{"
            self.text.append(f"{head}\n{wrap(items)}}};")
        return self.names[key]


def render(table):
    check(table)
    strings = Pool("list_", "char *const ")
    classes = Pool("by_class_", "struct qf_arch_list ")

    def string_list(items):
        return strings.name(tuple(items), [f'"{s}"' for s in items] + ["NULL"])

    tables = []
    for family in FAMILIES:
        rows = []
        for name in sorted(table[family], key=str.encode):
            entry = table[family][name]
            row = [f'.name = "{name}"']
            for field, member in LISTS.items():
                if field in entry:
                    row.append(f".{member} = {string_list(entry[field])}")
            for field, member in BY_CLASS.items():
                if field in entry:
                    pairs = sorted(entry[field].items())
                    rendered = [f'{{"{c}", {string_list(i)}}}' for c, i in pairs]
                    key = tuple((c, tuple(i)) for c, i in pairs)
                    ref = classes.name(key, rendered + ["{NULL, NULL}"])
                    row.append(f".{member} = {ref}")
            rows.append("    {" + wrap(row, " " * 5).strip() + "},")
        tables.append(
            f"static const struct qf_arch {family}_table[] = {{\n" + "\n".join(rows) + "\n};"
        )
    versions = ", ".join(f"{k} {v}" for k, v in sorted(table["versions"].items()))
    head = [
        "/* SPDX-License-Identifier: Apache-2.0 */",
        "/* Made by tools/gen_arch_table.py from arch_table.json; do not edit.",
        f" * Holds for {versions}. */",
        "/* clang-format off */",
    ]
    return "\n".join(head + strings.text + classes.text + tables + ["/* clang-format on */"]) + "\n"


def renew(table, check_only):
    import arch_installed

    new, changes = arch_installed.renewed(table)
    print("\n".join(changes) or "nothing changed")
    if check_only:
        sys.exit(1 if changes else 0)
    JSON.write_text(json.dumps(new, indent=1, sort_keys=True) + "\n")
    return new


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--renew", action="store_true", help="from what is installed")
    args = parser.parse_args()
    table = json.loads(JSON.read_text())
    if args.renew:
        table = renew(table, args.check)
    try:
        text = render(table)
    except BadTable as bad:
        sys.exit(f"{JSON}: {bad}")
    if args.check:
        if not INC.exists() or INC.read_text() != text:
            sys.exit(f"{INC} is not what {JSON.name} gives: run tools/gen_arch_table.py")
    else:
        INC.write_text(text)


if __name__ == "__main__":
    main()
