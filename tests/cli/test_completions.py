#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Completions: bash's for real (called as bash calls them, and once by a Tab key), fish's
by fish, zsh's as far as its parser; and all options of the tables in each."""
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

DIR = os.path.join(os.environ["QUANTFS_BUILD"], "docs", "man", "completions")
QUANTFS = os.environ["QUANTFS_BIN"]

# Takes the line apart as readline does (COMP_WORDBREAKS), calls, prints.
CALL = r'''
source "$1"
[[ $(complete -p quantfs) == *"-F _quantfs"* ]] || exit 3
compopt() { :; }
COMP_LINE=$2 COMP_POINT=${#2}
_quantfs
((${#COMPREPLY[@]})) && printf '%s\n' "${COMPREPLY[@]}"
exit 0
'''


def dump():
    return json.loads(subprocess.run([QUANTFS, "help", "--dump"], capture_output=True,
                                     check=True).stdout)


def commands(tables):
    return [c for top in tables["commands"] for c in top["subcommands"] or [top]]


class Case(unittest.TestCase):
    def setUp(self):
        self.dir = tempfile.mkdtemp(prefix="quantfs-complete-")
        self.addCleanup(shutil.rmtree, self.dir)
        for name in ("store", "state"):
            os.mkdir(f"{self.dir}/{name}")
        with open(f"{self.dir}/story", "w", encoding="utf-8") as f:
            f.write("x")
        self.dump = dump()


class Bash(Case):
    def complete(self, line):
        done = subprocess.run(["bash", "--norc", "-c", CALL, "bash", f"{DIR}/quantfs.bash",
                               line], capture_output=True, text=True, cwd=self.dir,
                              timeout=60)
        self.assertEqual((done.returncode, done.stderr), (0, ""), line)
        return sorted(done.stdout.split())

    def test_commands(self):
        names = [c["name"] for c in self.dump["commands"]]
        self.assertEqual(self.complete("quantfs "),
                         sorted(names + ["help", "--help", "--version"]))
        self.assertEqual(self.complete("quantfs mo"), ["mount"])
        self.assertEqual(self.complete("quantfs help wa"), ["warm"])
        self.assertEqual(self.complete("quantfs nonsense x"), [])
        subs = next(c["subcommands"] for c in self.dump["commands"] if c["name"] == "cache")
        self.assertEqual(self.complete("quantfs cache "),
                         sorted(s["name"].split()[1] for s in subs))

    def test_options(self):
        for command in commands(self.dump):
            wanted = {"--" + o["name"] for o in command["options"]}
            wanted |= {"-" + o["letter"] for o in command["options"] if o["letter"]}
            self.assertEqual(set(self.complete(f"quantfs {command['name']} -")), wanted)
        self.assertEqual(self.complete("quantfs cache prune --old"), ["--older-than"])

    def test_operands(self):
        self.assertEqual(self.complete("quantfs mount st"), ["state/", "store/"])
        self.assertEqual(self.complete("quantfs mount store st"), ["state/", "store/"])
        self.assertEqual(self.complete("quantfs mount store state st"), [])
        self.assertEqual(self.complete("quantfs mount -f -o ro store sta"), ["state/"])
        self.assertEqual(self.complete("quantfs info st"), ["state", "store", "story"])
        self.assertEqual(self.complete("quantfs warm store story sto"), ["store", "story"])
        self.assertEqual(self.complete("quantfs cache pin st"), [])

    def test_views(self):
        views = sorted(self.dump["views"].split(":"))
        self.assertEqual(self.complete("quantfs info --views "), views)
        self.assertEqual(self.complete("quantfs cache list --view d"), ["dq"])
        # bash has what stands before the ':' already
        self.assertEqual(self.complete("quantfs warm --views nf4:"),
                         [v for v in views if v != "nf4"])
        self.assertEqual(self.complete("quantfs warm --views nf4:dq:f"), ["fp16", "fp32", "fp4", "fp8"])
        self.assertEqual(self.complete("quantfs warm --views=nf4:i"), ["int8"])

    def test_mount_options(self):
        wanted = {o["name"] + ("=" if o["value"] else "")
                  for o in self.dump["mount_options"]} | set(self.dump["kernel_words"])
        self.assertEqual(set(self.complete("quantfs mount -o ")), wanted)
        self.assertEqual(self.complete("quantfs mount --options allow"), ["allow_other"])
        self.assertEqual(self.complete("quantfs mount -o debug,passt"),
                         ["debug,passthrough="])
        self.assertEqual(self.complete("quantfs mount -o debug,passthrough="),
                         ["auto", "off"])
        self.assertEqual(self.complete("quantfs mount -o debug,isa=avx5"), ["avx512"])
        self.assertEqual(self.complete("quantfs warm -o views=nf4:d"), ["dq"])
        self.assertEqual(self.complete("quantfs mount -o cache=st"), ["state/", "store/"])
        self.assertEqual(self.complete("quantfs mount -o threads=4,pol"),
                         ["4,policy="])
        self.assertEqual(self.complete("quantfs mount -o policy=sto"), ["store", "story"])

    def test_tab_key(self):
        """In an interactive bash, as a user sees it."""
        pid, fd = pty.fork()
        if pid == 0:
            os.chdir(self.dir)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "-i"],
                       {"PATH": os.environ["PATH"], "TERM": "dumb", "PS1": "$ ",
                        "HISTFILE": "/dev/null", "LC_ALL": "C.UTF-8"})
        try:
            os.write(fd, f"source {DIR}/quantfs.bash\n".encode())
            os.write(fd, b"echo R''EADY\n")
            self.until(fd, b"READY\r\n$ ")
            os.write(fd, b"quantfs mo\t-o debug,passth\tof\tsto\t\x15")
            seen = self.until(fd, b"store/")
            self.assertIn(b"quantfs mount -o debug,passthrough=off store/",
                          re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]|\x07|\r", b"", seen))
        finally:
            os.close(fd)
            os.kill(pid, 9)
            os.waitpid(pid, 0)

    def until(self, fd, word):
        seen, end = b"", time.monotonic() + 30
        while word not in seen and time.monotonic() < end:
            if select.select([fd], [], [], 1)[0]:
                seen += os.read(fd, 65536)
        self.assertIn(word, seen)
        return seen


class Others(Case):
    def test_zsh(self):
        if not shutil.which("zsh"):
            self.skipTest("no zsh")
        done = subprocess.run(["zsh", "-fn", f"{DIR}/_quantfs"], capture_output=True)
        self.assertEqual((done.returncode, done.stderr), (0, b""))

    def test_fish(self):
        if not shutil.which("fish"):
            self.skipTest("no fish")

        def complete(line):
            done = subprocess.run(["fish", "-N", "-c",
                                   f"source {DIR}/quantfs.fish; complete -C '{line}'"],
                                  capture_output=True, text=True, cwd=self.dir, timeout=60,
                                  env={**os.environ, "HOME": self.dir})
            self.assertEqual((done.returncode, done.stderr), (0, ""), line)
            return [row.split("\t")[0] for row in done.stdout.splitlines()]
        self.assertEqual(complete("quantfs mo"), ["mount"])
        self.assertEqual(complete("quantfs cache pru"), ["prune"])
        self.assertEqual(complete("quantfs cache prune --old"), ["--older-than"])
        self.assertEqual(complete("quantfs mount --old"), [])
        self.assertEqual(complete("quantfs warm --views nf4:in"), ["nf4:int8"])
        self.assertEqual(complete("quantfs mount -o debug,passthrough=o"),
                         ["debug,passthrough=off"])
        self.assertIn("store/", complete("quantfs mount sto"))
        for command in commands(self.dump):
            names = {"--" + o["name"] for o in command["options"]}
            self.assertLessEqual(names, set(complete(f"quantfs {command['name']} --")))

    def test_all_have_all(self):
        for name in ("_quantfs", "quantfs.bash", "quantfs.fish"):
            with open(f"{DIR}/{name}", encoding="utf-8") as f:
                text = f.read()
            for option in self.dump["mount_options"]:
                self.assertIn(option["name"], text)
            for command in commands(self.dump):
                self.assertIn(command["name"].split()[-1], text)
                for option in command["options"]:
                    self.assertRegex(text, rf"(--|-l ){option['name']}\b")
            self.assertNotRegex(text, "@[A-Z_]+@")


if __name__ == "__main__":
    program = unittest.main(verbosity=2, exit=False)
    for case, why in program.result.skipped:
        print(f"SKIP: {case.id().split('.', 1)[-1]}: {why}")
    sys.exit(0 if program.result.wasSuccessful() else 1)
