#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The man pages: without a warning from the formatter, one for each command, and with all
that the tables say."""
import glob
import json
import os
import re
import shutil
import subprocess
import sys
import unittest

PAGES = os.path.join(os.environ["QUANTFS_BUILD"], "docs", "man", "pages")


def run(*args, stdin=None):
    return subprocess.run(args, capture_output=True, text=True, timeout=60, input=stdin)


def plain(path):
    """The page as one reads it, as one line."""
    out = run("mandoc", "-T", "utf8", path).stdout
    out = re.sub(".\b", "", out)  # bold and underlined
    return re.sub(r"\s+", " ", out.replace("\u2010", "-"))


@unittest.skipUnless(shutil.which("mandoc"), "no mandoc")
class Pages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.dump = json.loads(run(os.environ["QUANTFS_BIN"], "help", "--dump").stdout)

    def test_lint(self):
        pages = glob.glob(f"{PAGES}/*")
        self.assertGreater(len(pages), 8)
        for page in pages:
            done = run("mandoc", "-T", "lint", "-W", "warning", page)
            self.assertEqual((done.stdout, done.stderr), ("", ""))
        broken = run("mandoc", "-T", "lint", "-W", "warning", stdin=".Dd x\n.Sh NAME\n.Bx\n.El\n")
        self.assertIn("WARNING", broken.stdout + broken.stderr)

    def test_which(self):
        wanted = {f"quantfs-{c['name']}.1" for c in self.dump["commands"]}
        self.assertEqual(set(os.listdir(PAGES)), wanted | {
            "quantfs.1", "mount.quantfs.8", "mount.fuse.quantfs.8", "quantfs-formats.5"})

    def test_they_have_the_tables(self):
        overview = plain(f"{PAGES}/quantfs.1")
        for command in self.dump["commands"]:
            page = plain(f"{PAGES}/quantfs-{command['name']}.1")
            self.assertIn(f"quantfs-{command['name']}(1)", overview)
            for one in command["subcommands"] or [command]:
                self.assertIn(one["synopsis"], page)
                for option in one["options"]:
                    head = f"-{option['letter']}, " if option["letter"] else ""
                    head += f"--{option['name']}"
                    head += f" {option['value']}" if option["value"] else ""
                    self.assertIn(f"{head} {option['help'][0].upper()}{option['help'][1:]}",
                                  page)
                for code in one["exits"]:
                    self.assertIn(f"{code['code']} {code['meaning'][0].upper()}", page)

    def test_mount_options(self):
        for name in ("quantfs-mount.1", "mount.quantfs.8"):
            page = plain(f"{PAGES}/{name}")
            for option in self.dump["mount_options"]:
                head = option["name"] + (f"={option['value']}" if option["value"] else "")
                self.assertIn(f" {head} {option['help'][0].upper()}{option['help'][1:]}",
                              page)
        for word in self.dump["kernel_words"] + self.dump["ignored_words"]:
            self.assertRegex(page, rf"\b{word}\b")

    def test_no_mark_is_left(self):
        for page in glob.glob(f"{PAGES}/*"):
            with open(page, encoding="ascii") as f:
                self.assertNotRegex(f.read(), "@[A-Z_]+@")


if __name__ == "__main__":
    program = unittest.main(verbosity=2, exit=False)
    for case, why in program.result.skipped:
        print(f"SKIP: {case.id().split('.', 1)[-1]}: {why}")
    sys.exit(0 if program.result.wasSuccessful() else 1)
