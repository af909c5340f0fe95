"""No comment is wider than 100 columns: rustfmt holds code to that and leaves comments alone. Addresses, targets
of links and tables, which cannot be broken, may be wider, and so may drawings between fences, and what follows code
in a kernel: its text is hashed into the prebuilt images."""

import pathlib
import re
import subprocess
import sys

LIMIT = 100
COMMENT = {".rs": "//", ".py": "#", ".sh": "#", ".toml": "#", ".cu": "//", ".cuh": "//", ".cpp": "//",
           ".hpp": "//", ".mjs": "//", ".ts": "//"}
root = pathlib.Path(__file__).resolve().parents[2]
listed = subprocess.run(["git", "-C", root, "ls-files"], capture_output=True, text=True, check=True)
faults, lines = [], 0
for name in listed.stdout.splitlines():
    path = root / name
    text = path.read_text(errors="replace") if path.is_file() else ""
    start = COMMENT.get(path.suffix) or ("#" if text.startswith("#!/usr/bin/env bash") else None)
    drawing = False
    for number, line in enumerate(text.splitlines() if start else [], 1):
        at = line.find(start)
        drawing ^= bool(re.match(r"\s*//[/!]? *```", line))
        if drawing or (path.suffix in (".cu", ".cuh") and line[:at].strip()):
            continue
        # A comment that is the whole line, or that follows code.
        if at < 0 or (line[:at].strip() and not re.search(r"[;{},)] *$", line[:at])):
            continue
        lines += 1
        shown = re.sub(r"\]\([^)]*\)", "]", line)
        if len(shown) > LIMIT and not re.search(r"\]: |https?://|^\s*//[/!] *\|", line):
            faults.append(f"{name}:{number}: {len(line)} columns")
print(*faults, sep="\n", end="\n" if faults else "")
print(f"columns: {lines} comment lines, {len(faults)} wider than {LIMIT}")
sys.exit(bool(faults) or not lines)
