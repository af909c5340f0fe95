"""The README's Rust is compiled: each block stands, line for line, in an example or in a crate's README,
which are. And each crate has the licences that its archive needs, the same as the repository's."""

import pathlib
import re
import subprocess
import sys

root = pathlib.Path(__file__).resolve().parents[2]
# Of git, because what other steps build at the same time comes and goes.
listed = subprocess.run(["git", "ls-files", "*Cargo.toml"], cwd=root, check=True, capture_output=True, text=True)
crates = [p.parent for p in map(root.joinpath, listed.stdout.splitlines())
          if not {"target", "peers"} & {*p.relative_to(root).parts} and "[workspace]" not in p.read_text()]
compiled = [p.read_text() for crate in crates
            for p in [crate / "README.md", *crate.glob("examples/*.rs")] if p.exists()]
faults = []
blocks = re.findall(r"^```rust\n(.*?)^```$", (root / "README.md").read_text(), re.M | re.S)
for block in blocks:
    if not any(block in text for text in compiled):
        faults.append(f"README.md: no example or crate README has the block that starts\n{block[:200]}")
for crate in crates:
    for name in ["LICENSE-MIT", "LICENSE-APACHE"]:
        copy = crate / name
        if not copy.exists() or copy.read_bytes() != (root / name).read_bytes():
            faults.append(f"{copy.relative_to(root)} is not the repository's {name}")
print(*faults, sep="\n", end="\n" if faults else "")
print(f"readme: {len(blocks)} blocks, {len(crates)} crates, {len(faults)} faults")
sys.exit(bool(faults) or not blocks or not crates)
