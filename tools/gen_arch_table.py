#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the architecture table: view/arch_table.json, and view/arch_table.inc (C data).

    tools/gen_arch_table.py                    the C file out of the JSON
    tools/gen_arch_table.py --renew            first the JSON out of the transformers and
                                               diffusers that are installed
    tools/gen_arch_table.py --check            write nothing; exit 1 when the C file is not
                                               what the JSON gives, or the JSON is not as
                                               --renew left it
    tools/gen_arch_table.py --renew --check    write nothing; exit 1 when --renew would
                                               write another JSON, 2 when that cannot be
                                               said, for other versions are installed

The JSON is a function of those versions, which it names, and of tools/arch_extra.json:
what no instance of a class shows, row by row with the reason. Nobody edits the JSON. The
C file is committed too, so that a build needs no Python. Entries are checked here, because
the C side trusts them: it knows exactly these fields, and of regular expressions only '.'
and '.*'.
"""
import argparse
import hashlib
import json
import multiprocessing
import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
JSON = ROOT / "view" / "arch_table.json"
INC = ROOT / "view" / "arch_table.inc"
EXTRA = ROOT / "tools" / "arch_extra.json"

LISTS = {"never": "never", "opt": "optional", "conv1d": "conv1d"}
BY_CLASS = {"fp32": "fp32", "fp32s": "fp32_strict", "heads": "heads", "tied": "tied"}
FAMILIES = ("transformers", "diffusers")

GLOB = re.compile(r"(\*\*\.)?([A-Za-z0-9_]+|\*)(\.([A-Za-z0-9_]+|\*))*")
SKIP = re.compile(r"([A-Za-z0-9_]|\.\*?)*")
NAME = re.compile(r"[A-Za-z0-9_.-]+")


EXTRA_KEYS = {"family", "name", "field", "class", "items", "reason"}


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


def merge_extra(extra):
    """{family: {name: row}} of the rows written by hand."""
    if not isinstance(extra, list):
        raise BadTable("not a list of rows")
    out = {family: {} for family in FAMILIES}
    for number, row in enumerate(extra, 1):
        where = f"row {number}"
        if not isinstance(row, dict):
            raise BadTable(f"{where}: not an object")
        if odd := sorted(set(row) - EXTRA_KEYS):
            raise BadTable(f"{where}: unknown member '{odd[0]}'")
        for key in sorted(EXTRA_KEYS - {"class", "items"}):
            if not isinstance(row.get(key), str) or not row[key].strip():
                raise BadTable(f"{where}: '{key}' is missing or no text")
        if row["family"] not in FAMILIES:
            raise BadTable(f"{where}: unknown family '{row['family']}'")
        merge_row(out[row["family"]], row, f"{where} ({row['family']}/{row['name']})")
    check(out)
    return out


def merge_row(rows, row, where):
    field, items = row["field"], row.get("items")
    if field not in (*LISTS, *BY_CLASS):
        raise BadTable(f"{where}: unknown field '{field}'")
    check_items(where, field, items)
    if (field in BY_CLASS) != isinstance(row.get("class"), str):
        raise BadTable(f"{where}: '{field}' is {'' if field in BY_CLASS else 'not '}"
                       "by class")
    have = rows.setdefault(row["name"], {})
    if field in BY_CLASS:
        have, field = have.setdefault(field, {}), row["class"]
    have = have.setdefault(field, [])
    if twice := sorted(set(have) & set(items)):
        raise BadTable(f"{where}: '{twice[0]}' is there twice")
    have += items


def digest(table, extra):
    """Changes with whatever --renew reads or writes."""
    said = [{k: v for k, v in table.items() if k != "digest"}, extra]
    text = json.dumps(said, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def text_of(table):
    return json.dumps(table, indent=1, sort_keys=True) + "\n"


def in_processes(function, items):
    """map, in processes that know what this one knows now."""
    with multiprocessing.get_context("fork").Pool(len(os.sched_getaffinity(0))) as pool:
        return pool.map(function, items, chunksize=8)


def changes(old, new):
    for family in FAMILIES:
        for name in sorted(set(old[family]) | set(new[family])):
            before, after = old[family].get(name, {}), new[family].get(name, {})
            for field in sorted(set(before) | set(after)):
                a, b = before.get(field), after.get(field)
                if a != b:
                    yield f"{family}/{name}: {field}: {a} -> {b}"


def renewed(extra, facts_file):
    """The table of what is installed."""
    import arch_derive
    import arch_facts

    facts = arch_facts.load(facts_file) if facts_file else None
    if facts is None:
        facts = arch_facts.collect()
        if facts_file:
            arch_facts.store(facts_file, facts)
    rows = arch_derive.derive(facts, merge_extra(extra), in_processes,
                              lambda text: print(text, file=sys.stderr, flush=True))
    table = {**rows, "versions": arch_facts.versions()}
    return {**table, "digest": digest(table, extra)}


def renew(table, extra, args):
    import arch_facts

    if args.check and arch_facts.versions() != table["versions"]:
        print(f"not compared: installed are {arch_facts.versions()}, "
              f"the table is of {table['versions']}")
        sys.exit(2)
    new = renewed(extra, args.facts)
    said = list(changes(table, new))
    print("\n".join(said) or "no row changed")
    if args.check:
        sys.exit(1 if text_of(new) != JSON.read_text() else 0)
    JSON.write_text(text_of(new))
    return new


def read_json(path):
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as why:
        sys.exit(f"{path}: {why}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing")
    parser.add_argument("--renew", action="store_true", help="from what is installed")
    parser.add_argument("--facts", metavar="FILE",
                        help="keep in FILE what was learnt of the classes, and learn it "
                        "only for other versions: for work on the rules themselves")
    args = parser.parse_args()
    table, extra = read_json(JSON), read_json(EXTRA)
    where = EXTRA
    try:
        merge_extra(extra)
        if args.renew:
            table = renew(table, extra, args)
        where = JSON
        text = render(table)
    except BadTable as bad:
        sys.exit(f"{where}: {bad}")
    if not args.check:
        INC.write_text(text)
        return
    if table.get("digest") != digest(table, extra):
        sys.exit(f"{JSON.name} is not as --renew left it, or {EXTRA.name} has changed since: "
                 "run tools/gen_arch_table.py --renew")
    if not INC.exists() or INC.read_text() != text:
        sys.exit(f"{INC} is not what {JSON.name} gives: run tools/gen_arch_table.py")


if __name__ == "__main__":
    main()
