#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""report.py PREFIX JUNIT_XML: one line a test of a ctest run, for test.sh:
"pass NAME", "fail NAME" or "skip NAME: reason". A part of a test that was left out
(a line "SKIP: reason", or a skipped case of cmocka) is a skip of its own: nothing that
did not run goes uncounted."""
import re
import sys
import xml.etree.ElementTree as ET


def skips_in(text):
    reasons = [m.group(1).strip() for m in re.finditer(r"^(?:SKIP|skipped):? +(.*)$", text,
                                                     re.M)]
    reasons += [m.group(1) for m in
                re.finditer(r"^\[  SKIPPED \] (?!\d+ test)(\S+)$", text, re.M)]
    return list(dict.fromkeys(reasons))


def lines_of(case, prefix):
    name = prefix + case.get("name")
    text = case.findtext("system-out") or ""
    status = case.get("status")
    skipped = case.find("skipped")
    if status == "run":
        yield f"pass {name}"
        for reason in skips_in(text):
            yield f"skip {name}: {reason}"
    elif skipped is not None and "SKIP_RETURN_CODE" in skipped.get("message", ""):
        yield f"skip {name}: {'; '.join(skips_in(text)) or 'no reason given'}"
    else:
        yield f"fail {name}"


def main(argv):
    try:
        cases = ET.parse(argv[2]).getroot().findall("testcase")
    except (OSError, ET.ParseError) as e:
        print(f"fail {argv[1]}ctest: no readable report ({e})")
        return
    if not cases:
        print(f"fail {argv[1]}ctest: no test ran")
    for case in cases:
        for line in lines_of(case, argv[1]):
            print(line)


if __name__ == "__main__":
    main(sys.argv)
