#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The parser, --help and `quantfs help --dump` say the same."""
import glob
import json
import os
import re
import subprocess
import unittest

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
QUANTFS = os.environ["QUANTFS_BIN"]
# A value that each kind of word takes; by the word where that is not enough.
VALUES = {"dir": "/", "file": "/", "view": "nf4", "views": "nf4:dq", "mount-options": "debug",
          "N": "3", "AGE": "3d", "SIZE": "5GB", "LOADER": "vllm", "PATTERN": "*", "MODEL": "*"}


def run(*args):
    done = subprocess.run([QUANTFS, *args], capture_output=True, timeout=60, text=True,
                          stdin=subprocess.DEVNULL)
    return done.returncode, done.stdout, done.stderr


def load():
    """The dump, and its commands without those that only have subcommands."""
    rc, out, err = run("help", "--dump")
    assert (rc, err) == (0, ""), err
    dump = json.loads(out)
    plain = []
    for command in dump["commands"]:
        plain += command["subcommands"] or [command]
    return dump, plain


DUMP, COMMANDS = load()


def spellings(option):
    """What stands for an option on a command line, and in its help."""
    yield "--" + option["name"]
    if option["letter"]:
        yield "-" + option["letter"]


def value_of(option):
    word = option["value"]
    if option["kind"] == "choice":
        return word.split("|")[0]
    return VALUES.get(word) or VALUES[option["kind"]]


class Tables(unittest.TestCase):
    def test_help_tells_the_table(self):
        for command in COMMANDS:
            rc, out, err = run(*command["name"].split(), "--help")
            self.assertEqual((rc, err), (0, ""), command["name"])
            self.assertEqual(re.sub(r"\s+", " ", out.split("\n\n")[0]),
                             "usage: " + command["synopsis"])
            flat = re.sub(r"\s+", " ", out)
            for option in command["options"][:-1]:
                head = ", ".join(reversed(list(spellings(option))))
                head += " " + option["value"] if option["value"] else ""
                self.assertIn(f"{head} {option['help']}", flat)
            for option in DUMP["mount_options"] if command["tells_mount_options"] else ():
                head = option["name"] + ("=" + option["value"] if option["value"] else "")
                self.assertIn(f"{head} {option['help']}", flat)
            for code in command["exits"]:
                self.assertIn(f"{code['code']} {code['meaning']}", flat)
            for line in out.splitlines():
                self.assertLessEqual(len(line), 80, line)

    def test_parser_takes_the_table(self):
        """Each option is taken with its value, and only so: the help that is asked for
        behind it is printed."""
        for command in COMMANDS:
            name = command["name"].split()
            for option in command["options"]:
                for word in spellings(option):
                    args = [*name, word] + ([value_of(option)] if option["value"] else [])
                    rc, out, err = run(*args, "--help")
                    self.assertEqual((rc, err), (0, ""), args)
                    self.assertTrue(out.startswith("usage: "), args)
                    if option["value"]:
                        self.refused(f"option '{word}' needs a value", *name, word)
                    elif word.startswith("--"):
                        self.refused("takes no value", *name, word + "=1")

    def test_parser_takes_nothing_else(self):
        known = {o["letter"] for c in COMMANDS for o in c["options"] if o["letter"]}
        for command in COMMANDS:
            name = command["name"].split()
            letters = {o["letter"] for o in command["options"]}
            for letter in known - letters | {"j", "V", "?"}:
                self.refused(f"unknown option '-{letter}'", *name, "-" + letter)
            self.refused("unknown option '--nonsense'", *name, "--nonsense")
            operands = command["operands"]
            for count in range(len(operands)):
                self.refused(f"{operands[count]['word']} is missing", *name,
                             *["x"] * count)
            if not operands or not operands[-1]["repeats"]:
                self.refused("unexpected argument 'y'", *name, *["x"] * len(operands),
                             "y")

    def refused(self, what, *args):
        rc, out, err = run(*args)
        self.assertEqual((rc, out), (1, ""), args)
        self.assertIn(what, err)
        self.assertIn("--help", err)

    def test_groups(self):
        for command in DUMP["commands"]:
            subs = command["subcommands"]
            if not subs:
                continue
            rc, out, _ = run(command["name"], "--help")
            self.assertEqual(rc, 0)
            for sub in subs:
                self.assertIn(sub["synopsis"], re.sub(r"\s+", " ", out))
            self.refused("which of", command["name"])
            self.refused("unknown command 'nonsense'", command["name"], "nonsense")

    def test_list_of_commands(self):
        for args in (["--help"], ["-h"], ["help"]):
            rc, out, err = run(*args)
            self.assertEqual((rc, err), (0, ""))
            for command in DUMP["commands"]:
                self.assertIn(f"{command['name']:<8} {command['summary']}", out)
        for command in DUMP["commands"]:
            self.assertEqual(run("help", command["name"]),
                             run(command["name"], "--help"))
        rc, out, err = run("help", "nonsense")
        self.assertEqual((rc, out), (1, ""))
        self.assertIn("nonsense", err)
        self.assertEqual(run("--version"), (0, f"quantfs {DUMP['version']}\n", ""))

    def test_every_word_has_a_kind(self):
        options = DUMP["mount_options"] + [o for c in COMMANDS for o in c["options"]]
        for option in options:
            self.assertEqual(option["kind"] is None, option["value"] is None, option)
        for command in COMMANDS:
            for operand in command["operands"]:
                self.assertIsNotNone(operand["kind"], operand)

    def test_choices_are_taken(self):
        """Each word of passthrough=auto|off and the like is one that the parser knows."""
        seen = 0
        for option in DUMP["mount_options"]:
            for word in option["value"].split("|") if option["kind"] == "choice" else ():
                pair = f"{option['name']}={word.replace('N', '0')}"
                rc, _, err = run("mount", "-o", pair, "--help")
                self.assertEqual((rc, err), (0, ""), pair)
                seen += 1
        self.assertGreater(seen, 4)

    def test_nobody_else_parses(self):
        parsers = []
        for path in glob.glob(f"{ROOT}/cli/*.c"):
            with open(path, encoding="utf-8") as f:
                if "getopt" in f.read():
                    parsers.append(os.path.basename(path))
        self.assertEqual(parsers, ["options.c"])


if __name__ == "__main__":
    unittest.main(verbosity=2)
