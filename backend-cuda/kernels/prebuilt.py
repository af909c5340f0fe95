#!/usr/bin/env python3
"""Assembles the prebuilt PTX with the oldest and the newest assemblers promised. Needs no GPU.

    python3 prebuilt.py ptxas-12.0=PATH ptxas-12.9=PATH ptxas-13.0=PATH

A driver assembles the prebuilt PTX with the ptxas that it carries, so that of every toolkit from
12.0 on may meet it. Every file is assembled by the first ptxas and the last, and for each
architecture by at least one of them (ARCHITECTURES). It fails on

  * an error or a warning, and an extern function that is not resolved;
  * wgmma that was serialized (C7510, C7511, C7515, C7517): ptxas 12.0 to 12.3 do that with the PTX of
    a later NVRTC than 12.0, so the files are made by that (src/build/prebuilt.rs);
  * a register spill, but for at most OLD_SPILL bytes a kernel by ptxas 12.0, whose allocation is
    weaker, and for those that are KNOWN, which are printed.

`--self-test` shows that each is caught. The last line is "prebuilt: F files, A assemblies, N failed".
"""

import argparse
import multiprocessing
import pathlib
import re
import subprocess
import sys
import tempfile

import check

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "prebuilt"
# What compute_80 is assembled for by which ptxas; compute_90a runs on sm_90a alone, by each.
ARCHITECTURES = {"12.0": ["80", "90"], "12.9": ["86", "89"], "13.0": ["100a", "120a"]}
OLD_SPILL = 256  # stores and loads together
# (kernel, architecture): bytes. Two bounds of the range, outside of the inner loop, and a place of
# codes. That device takes one block of any, but portable PTX holds it to two blocks' registers.
KNOWN = {("matmul_decode_nvfp4_16", "120a"): 36}
NOISE = re.compile(check.NOISE.pattern + r"|C7515|fatal|Unresolved")


def judge(log, version, arch=None):
    """What is wrong by a log of ptxas -v."""
    problems = [line.strip() for line in log.splitlines() if NOISE.search(line)]
    allowed = OLD_SPILL if version == "12.0" else 0
    for kernel, (_, _, _, spill) in check.kernels_in_log(log).items():
        if spill > max(allowed, KNOWN.get((kernel, arch), 0)):
            problems.append(f"{kernel}: {spill} bytes of register spills")
    return problems


def assemble(job):
    """(file, ptxas, architecture, bytes of spills, problems)"""
    path, version, ptxas, arch = job
    with tempfile.NamedTemporaryFile() as out:
        command = [ptxas, "-v", f"-arch=sm_{arch}", str(path), "-o", out.name]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
    log = run.stdout + run.stderr
    problems = judge(log, version, arch)
    kernels = check.kernels_in_log(log)
    if run.returncode != 0 and not problems:
        problems.append(f"ptxas ended with {run.returncode}: {log.strip()}")
    if not kernels and not problems:
        problems.append("no kernel was assembled")
    return path.name, version, arch, sum(row[3] for row in kernels.values()), problems


SPILLED = """ptxas info    : Compiling entry function 'k' for 'sm_90a'
    40 bytes stack frame, {} bytes spill stores, 80 bytes spill loads
ptxas info    : Used 168 registers, 384 bytes cmem[0]"""
SERIALIZED = (
    "ptxas info    : (C7515) Potential Performance Loss: wgmma.mma_async instructions are serialized due to non wgmma "
    "instructions defining accumulator registers of a wgmma between start and end of the pipeline stage in the function"
)
PTX = ".version 8.0\n.target sm_80\n.address_size 64\n{}.visible .entry k()\n{{\n{}ret;\n}}\n"
EXTERN = ".extern .func (.param .b32 r) f ();\n"
CALL = "{ .param .b32 r; call.uni (r), f, (); }\n"
# (what, log or PTX, text in a problem or None)
LOGS = [
    ("serialized wgmma", SERIALIZED, "C7515"),
    ("a spill", SPILLED.format(8), "spills"),
    ("more than a known spill", SPILLED.replace("'k' for 'sm_90a'", "'matmul_decode_nvfp4_16' for 'sm_120a'").format(8), "spills"),
    ("no spill", SPILLED.format(0).replace("80 bytes", "0 bytes"), None),
]
TEXTS = [
    ("a right file", PTX.format("", ""), None),
    ("an unresolved function", PTX.format(EXTERN, CALL), "Unresolved"),
    ("an instruction that does not exist", PTX.format("", "nothing.s32;\n"), "fatal"),
    ("a file without kernels", ".version 8.0\n.target sm_80\n.address_size 64\n", "no kernel"),
]


def self_test(version, ptxas):
    """Number of rules that did not catch what they are for."""
    results = [(what, expected, judge(log, "13.0", "120a")) for what, log, expected in LOGS]
    with tempfile.TemporaryDirectory() as folder:
        for what, text, expected in TEXTS:
            path = pathlib.Path(folder) / "case.ptx"
            path.write_text(text)
            results.append((what, expected, assemble((path, version, ptxas, "80"))[4]))
    missed = 0
    for what, expected, problems in results:
        text = "\n".join(problems)
        ok = not text if expected is None else expected in text
        missed += not ok
        print(f"{'ok' if ok else 'MISSED'}: {what}" + ("" if ok else f": {text or 'no problem found'}"))
    print(f"prebuilt rules: {len(results)} cases, {missed} failed")
    return missed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ptxas", nargs="+", help="ptxas-VERSION=PATH, one of each of " + ", ".join(ARCHITECTURES))
    parser.add_argument("--self-test", action="store_true", help="check the rules themselves")
    arguments = parser.parse_args()
    found = dict(each.removeprefix("ptxas-").split("=", 1) for each in arguments.ptxas if "=" in each)
    if set(found) != set(ARCHITECTURES) and not arguments.self_test:
        parser.error(f"given {sorted(found)}, expected {sorted(ARCHITECTURES)}: name each as ptxas-VERSION=PATH")
    if arguments.self_test:
        return 1 if self_test(*next(iter(found.items()))) else 0

    files = sorted(FOLDER.glob("*.ptx"))
    jobs = []
    for version, ptxas in sorted(found.items()):
        for path in files:
            archs = ["90a"] if ".compute_90a." in path.name else ARCHITECTURES[version]
            jobs += [(path, version, ptxas, arch) for arch in archs]
    # The long ones first.
    jobs.sort(key=lambda job: -job[0].stat().st_size)
    with multiprocessing.Pool() as pool:
        results = pool.map(assemble, jobs, chunksize=1)
    failed = 0
    for name, version, arch, spill, problems in sorted(results):
        if spill:
            print(f"{name} by ptxas {version} for sm_{arch}: {spill} bytes of spills")
        for problem in problems:
            print(f"FAILED {name} by ptxas {version} for sm_{arch}: {problem}")
            failed += 1
    print(f"prebuilt: {len(files)} files, {len(results)} assemblies, {failed} failed")
    return 0 if files and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
