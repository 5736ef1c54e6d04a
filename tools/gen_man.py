#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the man pages, in mdoc(7): gen_man.py DUMP OUT_DIR DATE

DUMP is what `quantfs help --dump` printed. A page for each subcommand comes from it, with
the sections that docs/man/quantfs-COMMAND.1.in adds; docs/man/quantfs.1.in and the pages
of other sections are whole and have @NAMES@ where something of the dump goes."""
import datetime
import json
import os
import re
import sys

SOURCES = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "docs",
                       "man")
WHOLE = ("quantfs.1", "mount.quantfs.8", "quantfs-formats.5")
# mdoc's order of sections; OPTIONS follow what they belong to.
ORDER = ("NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "MOUNT OPTIONS", "ENVIRONMENT",
         "FILES", "EXIT STATUS", "EXAMPLES", "SEE ALSO", "CAVEATS")


def text(words):
    """Running text for roff."""
    out = re.sub(r"([.!?]) (?=[A-Z(])", r"\1\n", words.replace("\\", "\\e"))
    out = re.sub(r"[^\x00-\x7f]", lambda m: f"\\[u{ord(m[0]):04X}]", out)
    return "\n".join("\\&" + s if s[:1] in (".", "'") else s for s in out.splitlines())


def sentence(words):
    """A phrase of the table as a sentence."""
    return text(words[0].upper() + words[1:] + ("" if words.endswith(".") else "."))


def argument(words):
    """A macro's argument: in quotes where it would be more than one word."""
    out = text(words)
    return f'"{out}"' if " " in out else out


def flag(option):
    parts = [f"Fl {option['letter']}"] if option["letter"] else []
    parts.append(f"Fl \\-{option['name']}")
    line = " , ".join(parts)
    return line + (f" Ar {argument(option['value'])}" if option["value"] else "")


def synopsis(command):
    lines = [".Nm " + argument(command["name"])]
    for option in command["options"][:-1]:
        name = f"Fl {option['letter']}" if option["letter"] else f"Fl \\-{option['name']}"
        value = f" Ar {argument(option['value'])}" if option["value"] else ""
        lines.append(f".Op {name}{value}")
        if option["repeats"]:
            lines[-1] = f".Oo {name}{value} Oc Ns \\[u2026]"
    for operand in command["operands"]:
        lines.append(f".Ar {operand['word']}" + (" Ns \\[u2026]" if operand["repeats"] else ""))
    return "\n".join(lines)


def about(command):
    return "\n.Pp\n".join(text(p) for p in command["about"].split("\n"))


def options(command):
    rows = [f".It {flag(o)}\n{sentence(o['help'])}" for o in command["options"]]
    return ".Bl -tag -width Ds\n" + "\n".join(rows) + "\n.El"


def mount_options(dump):
    rows = []
    for o in dump["mount_options"]:
        value = f" Ns = Ns Ar {argument(o['value'])}" if o["value"] else ""
        rows.append(f".It Cm {o['name']}{value}\n{sentence(o['help'])}")
    return ".Bl -tag -width Ds\n" + "\n".join(rows) + "\n.El"


def words(names):
    return " ,\n".join(f".Cm {n}" for n in names)


def exits(command):
    rows = [f".It {e['code']}\n{sentence(e['meaning'])}" for e in command["exits"]]
    return ".Bl -tag -width Ds\n" + "\n".join(rows) + "\n.El"


def sections(path):
    """The .Sh blocks of a file of additions, by name."""
    if not os.path.exists(path):
        return {}
    with open(path, encoding="utf-8") as f:
        blocks = re.split(r"^\.Sh ", f.read(), flags=re.M)[1:]
    return {b.split("\n", 1)[0]: b.split("\n", 1)[1].rstrip() for b in blocks}


def see_also(command, others):
    pages = [("mount.quantfs", 8), ("quantfs-formats", 5)]
    pages += [("quantfs", 1)] if command is not None else []
    pages += [(f"quantfs-{c['name']}", 1) for c in others if c is not command]
    pages.sort(key=lambda p: (p[1], p[0]))
    return " ,\n".join(f".Xr {name} {section}" for name, section in pages)


def command_page(command, dump, date):
    name = f"quantfs-{command['name']}"
    subs = command["subcommands"]
    parts = {"NAME": f".Nm {name}\n.Nd {text(command['summary'])}",
             "SYNOPSIS": "\n".join(synopsis(c).replace(".Nm ", ".Nm quantfs\n.Cm ", 1)
                                   for c in subs or [command]),
             "DESCRIPTION": about(command),
             "SEE ALSO": see_also(command, dump["commands"])}
    if subs:
        for sub in subs:
            parts["DESCRIPTION"] += (f"\n.Ss quantfs {sub['name']}\n{about(sub)}\n"
                                     f"{options(sub)}\n.Pp\nExit status:\n{exits(sub)}")
    else:
        parts["OPTIONS"] = options(command)
        parts["EXIT STATUS"] = exits(command)
    if command["tells_mount_options"]:
        parts["MOUNT OPTIONS"] = mount_options(dump)
    for section, block in sections(f"{SOURCES}/{name}.1.in").items():
        parts[section] = "\n.Pp\n".join(filter(None, [parts.get(section), block]))
    lines = [f".Dd {date}", f".Dt {name.upper()} 1", ".Os quantfs"]
    for section in sorted(parts, key=ORDER.index):
        lines += [f".Sh {section}", parts[section]]
    return "\n".join(lines) + "\n"


def whole_page(name, dump, date):
    rows = [f".It Xr quantfs-{c['name']} 1\n{sentence(c['summary'])}"
            for c in dump["commands"]]
    with open(f"{SOURCES}/{name}.in", encoding="utf-8") as f:
        page = re.sub(r'^\.\\".*\n', "", f.read(), flags=re.M)
    for mark, value in (("DATE", date), ("VERSION", dump["version"]),
                        ("MOUNT_OPTIONS", mount_options(dump)),
                        ("KERNEL_WORDS", words(dump["kernel_words"])),
                        ("IGNORED_WORDS", words(dump["ignored_words"])),
                        ("COMMANDS", ".Bl -tag -width Ds\n" + "\n".join(rows) + "\n.El"),
                        ("SEE_ALSO", see_also(None, dump["commands"]))):
        page = page.replace(f"@{mark}@", value)
    return page


def pages(dump, date):
    found = {f"quantfs-{c['name']}.1": command_page(c, dump, date)
             for c in dump["commands"]}
    found.update({name: whole_page(name, dump, date) for name in WHOLE})
    found["mount.fuse.quantfs.8"] = found["mount.quantfs.8"]
    return found


def main(dump_path, out_dir, date):
    with open(dump_path, encoding="utf-8") as f:
        dump = json.load(f)
    day = datetime.date.fromisoformat(date)
    os.makedirs(out_dir, exist_ok=True)
    for old in os.listdir(out_dir):
        os.remove(f"{out_dir}/{old}")
    for name, page in pages(dump, f"{day:%B} {day.day}, {day.year}").items():
        with open(f"{out_dir}/{name}", "w", encoding="ascii") as f:
            f.write(page)


if __name__ == "__main__":
    main(*sys.argv[1:])
