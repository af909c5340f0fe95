"""Empty stand-ins for the CUDA libraries that a build of torch wants to start.

usage: python stand_ins.py TORCH_LIB FOLDER

The index has torch for Linux on x86-64 with CUDA only, and its libraries, gigabytes, must be there
even where no GPU is. For each that `TORCH_LIB` names and does not hold, FOLDER gets a library of
that name whose functions, all that torch refers to, do nothing but return 100, "no device".
With LD_LIBRARY_PATH=FOLDER torch starts, finds no GPU, and computes on the CPU.
"""

import collections
import pathlib
import re
import subprocess
import sys

PREFIXES = ("libcu", "libnv", "libnccl")


def run(*command):
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def look(lib):
    """The libraries needed; the versions of each; undefined and defined symbols."""
    needed, versions = set(), collections.defaultdict(set)
    undefined, defined = set(), set()
    for path in lib.glob("*.so*"):
        needed.update(re.findall(r"NEEDED.*\[(.*)\]", run("readelf", "-dW", path)))
        file = None
        for line in run("readelf", "-VW", path).splitlines():
            if found := re.search(r"File: (\S+)", line):
                file = found[1]
            elif file and (found := re.match(r"\s+0x\S+\s+Name: (\S+)\s+Flags: \S+\s+Ver", line)):
                versions[file].add(found[1])
        for line in run("nm", "-D", path).splitlines():
            *_, kind, symbol = line.split()
            name, _, version = symbol.partition("@")
            if kind in "Uw":
                undefined.add((name, version.lstrip("@")))
            else:
                defined.add(name)
    return needed, versions, undefined, defined


def main():
    lib, folder = map(pathlib.Path, sys.argv[1:])
    needed, versions, undefined, defined = look(lib)
    missing = sorted(n for n in needed if n.startswith(PREFIXES) and not (lib / n).exists())
    folder.mkdir(parents=True)
    # What is referred to without a version is found in any library.
    plain = {n for n, v in undefined if not v and n not in defined}
    plain = {n for n in plain if n.startswith(("cu", "nv", "nccl"))}
    functions = 0
    for library in missing:
        names, script = (plain if library == missing[0] else set()), ""
        for version in sorted(versions[library]):
            own = sorted(n for n, v in undefined if v == version)
            names = names | set(own)
            script += f"{version} {{ {' '.join(f'{n};' for n in own)} }};\n"
        functions += len(names)
        source, exports = folder / "stand_in.c", folder / "stand_in.map"
        source.write_text("".join(f"int {n}(void) {{ return 100; }}\n" for n in sorted(names)))
        exports.write_text(script)
        versioned = [f"-Wl,--version-script={exports}"] if script else []
        flags = ["-w", "-fno-builtin", "-shared", "-fPIC", "-nostdlib", f"-Wl,-soname,{library}"]
        run("cc", *flags, *versioned, "-o", folder / library, source)
    print(f"stand-ins: {len(missing)} libraries, {functions} functions")


if __name__ == "__main__":
    main()
