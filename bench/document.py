# SPDX-License-Identifier: Apache-2.0
"""Tables into docs/PERFORMANCE.md: each between its markers, all else kept."""
import re


def _replace(text, name, body):
    begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.S)
    if len(pattern.findall(text)) != 1:
        raise SystemExit(f"the document needs one {begin} … {end}")
    return pattern.sub(lambda _: f"{begin}\n{body.strip()}\n{end}", text)


def write(path, facts, tables):
    with open(path, encoding="utf-8") as f:
        text = f.read()
    lines = "| | |\n|---|---|\n" + "".join(f"| {k} | {v} |\n" for k, v in facts)
    text = _replace(text, "facts", lines)
    for table in tables:
        text = _replace(text, table.part, table.markdown())
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)
