#!/usr/bin/env python3
"""Is every crate in the program under a licence we may ship? Offline, where cargo-deny is missing.

The accepted licences are those of deny.toml, so that there is one list.
"""

import json
import re
import subprocess
import sys


def accepted():
    # no TOML parser before Python 3.11; the list is plain
    text = open("deny.toml", encoding="utf-8").read()
    block = re.search(r"^allow = \[(.*?)\]", text, re.S | re.M).group(1)
    return set(re.findall(r'"([^"]+)"', block))


def fits(expression, licences):
    """SPDX: AND needs all, OR one; A/B is an old way to write A OR B."""
    words = re.findall(r"\(|\)|[^\s()/]+|/", expression)
    python = []
    n = 0
    while n < len(words):
        word = words[n]
        if word in ("(", ")"):
            python.append(word)
        elif word in ("OR", "/"):
            python.append("or")
        elif word == "AND":
            python.append("and")
        else:
            if n + 2 < len(words) and words[n + 1] == "WITH":
                word = f"{word} WITH {words[n + 2]}"
                n += 2
            python.append(str(word in licences))
        n += 1
    return eval(" ".join(python), {"__builtins__": {}})  # True, False, and, or, ( and ) alone


def main():
    metadata = json.loads(
        subprocess.run(
            ["cargo", "metadata", "--format-version=1", "--locked", "--offline",
             "--filter-platform=x86_64-unknown-linux-gnu"],
            check=True,
            stdout=subprocess.PIPE,
        ).stdout
    )
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    pending, ours = [metadata["resolve"]["root"]], set()
    while pending:
        crate = pending.pop()
        if crate not in ours:
            ours.add(crate)
            pending += [
                dep["pkg"]
                for dep in nodes[crate]["deps"]
                # what tests alone need is not shipped
                if any(kind["kind"] in (None, "build") for kind in dep["dep_kinds"])
            ]
    licences = accepted()
    wrong = [
        f"{package['name']} {package['version']}: {package['license']}"
        for package in metadata["packages"]
        if package["id"] in ours and not fits(package["license"] or "NONE", licences)
    ]
    for line in wrong:
        print(f"licences: not accepted: {line}", file=sys.stderr)
    print(f"licences: {len(ours)} crates, {len(wrong)} not accepted")
    sys.exit(1 if wrong else 0)


main()
