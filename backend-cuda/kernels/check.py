#!/usr/bin/env python3
"""Compiles every kernel with NVRTC for every architecture and reads what came out. Needs no GPU.

    pip install nvidia-cuda-nvrtc==13.0.88
    python3 check.py [--only NAME] [--keep FOLDER] [FOLDER]

For each .cu file and architecture it makes PTX and a cubin, prints a line for each kernel
(registers, shared memory, stack, spills) and fails on

  * an error or a warning of the compiler;
  * a register spill, or wgmma that was serialized (ptxas C7510, C7511, C7517 and the like);
  * arithmetic that is not the IEEE operation that the source names. The rule has three parts:
      - the PTX holds no .ftz, .approx or .full (flushed or approximate) and no mad on floats;
      - the PTX has as many of each float product, sum and fused multiply-add whether contraction is
        allowed (--fmad=true) or not. So every fused one is one that the source asked for by
        __fmaf_rn, and no product and sum lies about that a careless flag could fuse. (Not the same
        text: NVRTC 13.0 numbers the registers of a large kernel in one way or another from run to
        run, by the same options);
      - a file whose source never says __fmaf_rn or __fma_rn has no fma in its PTX at all.

With --keep it leaves each cubin and its resources there, for budget.py.

`--self-test` shows that each of these rules catches a kernel made to break it.

The last line is "kernels: F files, A architectures, K kernels compiled, N failed"; zero kernels is a
failure.
"""

import argparse
import collections
import ctypes
import importlib.util
import json
import multiprocessing
import pathlib
import re
import sys
import tempfile

ARCHITECTURES = ["80", "86", "89", "90a", "100a", "120a"]
# Also given by the Rust side; see its NVRTC options.
OPTIONS = ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"]
FORBIDDEN = re.compile(r"\.ftz\b|\.approx\b|\.full\b|\bmad(\.r[nzmp])?\.f(32|64)\b|\bf16\b.*\bmad\b")
NOISE = re.compile(r"warning|error|C7510|C7511|C7517|Potential Performance Loss")
FMA = re.compile(r"\bfma\.r[nzmp]\.")
# Products, sums and fused ones, with their rounding and type.
ARITHMETIC = re.compile(r"^\s*(?:@!?%p\d+ )?((?:fma|mad|mul|add|sub|neg)(?:\.\w+)*\.(?:b?f16|b?f16x2|f32|f64))\b", re.M)


def load_nvrtc(path):
    """The library, from PATH, from the pip wheel, or from the system."""
    candidates = [path] if path else []
    spec = importlib.util.find_spec("nvidia")
    for root in (spec.submodule_search_locations if spec else []) or []:
        candidates += sorted(str(p) for p in pathlib.Path(root).glob("*/lib/libnvrtc.so.1?"))
    candidates += ["libnvrtc.so.13", "libnvrtc.so.12"]
    for candidate in candidates:
        # The library opens its builtins by name alone, so they must be loaded already.
        for builtins in sorted(pathlib.Path(candidate).parent.glob("libnvrtc-builtins.so.*")):
            ctypes.CDLL(str(builtins))
        try:
            return ctypes.CDLL(candidate)
        except OSError:
            continue
    sys.exit("check.py: no NVRTC found: pip install nvidia-cuda-nvrtc==13.0.88")


class Nvrtc:
    """The few calls that are needed, each checked."""

    def __init__(self, path):
        self.library = load_nvrtc(path)
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def version(self):
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        return f"{major.value}.{minor.value}"

    def _text(self, program, what):
        size = ctypes.c_size_t()
        if getattr(self.library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) != 0:
            return b""
        buffer = ctypes.create_string_buffer(max(size.value, 1))
        getattr(self.library, f"nvrtcGet{what}")(program, buffer)
        return buffer.raw[: size.value]

    def compile(self, source, name, options):
        """(status text or None, log, PTX, cubin)"""
        program = ctypes.c_void_p()
        self.library.nvrtcCreateProgram(
            ctypes.byref(program), source.encode(), name.encode(), 0, None, None
        )
        given = (ctypes.c_char_p * len(options))(*[o.encode() for o in options])
        status = self.library.nvrtcCompileProgram(program, len(options), given)
        log = self._text(program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        ptx = cubin = b""
        if status == 0:
            ptx = self._text(program, "PTX").rstrip(b"\0")
            cubin = self._text(program, "CUBIN")
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        error = None if status == 0 else self.library.nvrtcGetErrorString(status).decode()
        return error, log, ptx.decode(), cubin


def kernels_in_log(log):
    """{kernel: (registers, shared bytes, stack bytes, spill bytes)} from ptxas -v."""
    found, name, stack, spill = {}, None, 0, 0
    for line in log.splitlines():
        if m := re.search(r"Compiling entry function '(\w+)'", line):
            name = m[1]
        elif m := re.search(
            r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line
        ):
            stack, spill = int(m[1]), int(m[2]) + int(m[3])
        elif (m := re.search(r"Used (\d+) registers", line)) and name:
            shared = re.search(r"(\d+) bytes smem", line)
            found[name] = (int(m[1]), int(shared[1]) if shared else 0, stack, spill)
            name, stack, spill = None, 0, 0
    return found


def judge_ptx(ptx, contracted, source):
    """What is wrong with the arithmetic of a PTX text."""
    wrong = []
    code = [line for line in ptx.splitlines() if not line.lstrip().startswith("//")]
    for line in code:
        if FORBIDDEN.search(line):
            wrong.append(f"flushed, approximate or fused arithmetic: {line.strip()}")
    counts, fused = collections.Counter(ARITHMETIC.findall(ptx)), collections.Counter(ARITHMETIC.findall(contracted))
    changed = [f"{op} {counts[op]} / {fused[op]}" for op in sorted(counts | fused) if counts[op] != fused[op]]
    if changed:
        wrong.append(f"contraction would change the PTX; write __fmul_rn and __fadd_rn: {', '.join(changed)}")
    if not re.search(r"__fmaf?_rn", source) and any(FMA.search(line) for line in code):
        wrong.append("an fma that the source did not ask for")
    return wrong


def with_includes(path, seen=None):
    """The text of a file and of what it includes from its own folder, but for device.cuh."""
    seen = set() if seen is None else seen
    if path in seen or path.name == "device.cuh" or not path.exists():
        return ""
    seen.add(path)
    text = path.read_text()
    for name in re.findall(r'#include "([^"]+)"', text):
        text += with_includes(path.parent / name, seen)
    return text


def options_for(path, arch):
    """Those for one file and architecture, but for the architecture itself."""
    return OPTIONS + [f"--include-path={path.parent}", f"-DFP4_SM={arch.rstrip('a')}"]


def leave(folder, path, arch, rows, cubin):
    """Leaves a cubin and its resources in a folder."""
    (folder / f"{path.stem}.{arch}.cubin").write_bytes(cubin)
    (folder / f"{path.stem}.{arch}.json").write_text(json.dumps(rows))


def keep(job):
    """Only compiles a file for an architecture, and leaves it in a folder: the problems."""
    path, arch, nvrtc_path, folder = job
    options = options_for(path, arch) + [f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v"]
    error, log, _, cubin = Nvrtc(nvrtc_path).compile(path.read_text(), str(path), options)
    if error:
        return [f"{path.name} sm_{arch}: {error}\n{log}"]
    leave(folder, path, arch, kernels_in_log(log), cubin)
    return []


def check_one(job):
    """One file for one architecture: (file, architecture, table rows, problems)."""
    path, arch, nvrtc_path, kept = job
    nvrtc = Nvrtc(nvrtc_path)
    source = path.read_text()
    base = options_for(path, arch)
    error, log, ptx, cubin = nvrtc.compile(
        source, str(path), base + [f"--gpu-architecture=sm_{arch}", "--ptxas-options=-v"]
    )
    if error:
        return path.name, arch, {}, [f"{error}\n{log}"]
    problems = []
    problems += [line for line in log.splitlines() if NOISE.search(line)]
    again = [o if o != "--fmad=false" else "--fmad=true" for o in base]
    # No machine code is needed of it: the PTX is the same.
    error, _, contracted, _ = nvrtc.compile(source, str(path), again + [f"--gpu-architecture=compute_{arch}"])
    problems += [error] if error else judge_ptx(ptx, contracted, with_includes(path))
    entries = set(re.findall(r"\.entry\s+(\w+)", ptx))
    rows = kernels_in_log(log)
    if entries != set(rows):
        problems.append(f"the PTX has {sorted(entries)}, the assembler reports {sorted(rows)}")
    if kept:
        leave(kept, path, arch, rows, cubin)
    if entries and not cubin:
        problems.append("no cubin")
    problems += [f"{k}: {row[3]} bytes of register spills" for k, row in rows.items() if row[3]]
    return path.name, arch, rows, problems


# One broken kernel for each rule, and a right one: (what it is, source, text in a problem or None).
BODY = "extern \"C\" __global__ void k(float* x, int* y, unsigned n) {{ {} }}"
BROKEN = [
    ("a right kernel", "x[0] = __fmaf_rn(x[1], x[2], __fadd_rn(__fmul_rn(x[3], x[4]), x[5] / x[6]));", None),
    ("contraction", "x[0] = x[1] * x[2] + x[3];", "contraction would change"),
    ("approximate division", "x[0] = __fdividef(x[1], x[2]);", "flushed, approximate"),
    ("approximate exponential", "x[0] = __expf(x[1]);", "flushed, approximate"),
    ("flush to zero", 'float r; asm("add.ftz.f32 %0, %1, %1;" : "=f"(r) : "f"(x[1])); x[0] = r;', "flushed, approximate"),
    ("a fused multiply-add in PTX", 'asm("fma.rn.f32 %0, %0, %0, %0;" : "+f"(x[0]));', "did not ask for"),
    ("a warning", "int unused;", "warning"),
    ("an error", "x[0] = missing;", "missing"),
]
SPILL = """extern "C" __global__ __launch_bounds__(1024, 2) void k(float* x, int* y, unsigned n) {
    float v[96];
    for (int i = 0; i < 96; i++) v[i] = x[i * n];
    for (int j = 0; j < n; j++)
        for (int i = 0; i < 96; i++) v[i] = __fadd_rn(v[(i + 7) % 96], x[j]);
    for (int i = 0; i < 96; i++) x[i * n] = v[i];
}"""


def self_test(nvrtc_path):
    """Number of rules that did not catch what they are for."""
    cases = [(what, BODY.format(body), text) for what, body, text in BROKEN] + [("a spill", SPILL, "spills")]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        for i, (what, source, expected) in enumerate(cases):
            path = pathlib.Path(folder) / f"case{i}.cu"
            path.write_text(source)
            problems = "\n".join(check_one((path, "90a", nvrtc_path, None))[3])
            ok = not problems if expected is None else expected in problems
            missed += not ok
            print(f"{'ok' if ok else 'MISSED'}: {what}" + ("" if ok else f": {problems or 'no problem found'}"))
    print(f"rules: {len(cases)} cases, {missed} failed")
    return missed


def main():
    here = pathlib.Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=here, help="folder of .cu files")
    parser.add_argument("--only", help="only files whose name contains this")
    parser.add_argument("--keep", type=pathlib.Path, help="folder for the cubins, for budget.py")
    parser.add_argument("--nvrtc", help="path of libnvrtc.so")
    parser.add_argument("--errors-only", action="store_true", help="for kernels that only the emulator runs")
    parser.add_argument("--self-test", action="store_true", help="check the rules themselves")
    arguments = parser.parse_args()
    if arguments.self_test:
        return 1 if self_test(arguments.nvrtc) else 0

    files = sorted(p for p in arguments.folder.resolve().glob("*.cu") if (arguments.only or "") in p.name)
    jobs = [(path, arch, arguments.nvrtc, arguments.keep) for path in files for arch in ARCHITECTURES]
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    print(f"NVRTC {Nvrtc(arguments.nvrtc).version()}, {' '.join(OPTIONS)}")
    with multiprocessing.Pool() as pool:
        results = pool.map(check_one, jobs, chunksize=1)

    compiled = failed = 0
    print(f"{'kernel':<44}{'sm':>5}{'registers':>11}{'shared':>8}{'stack':>7}{'spills':>8}")
    for path in files:
        of_file = [r for r in results if r[0] == path.name]
        for name in sorted({k for r in of_file for k in r[2]}):
            for _, arch, rows, _ in of_file:
                if name in rows:
                    registers, shared, stack, spill = rows[name]
                    print(f"{name:<44}{arch:>5}{registers:>11}{shared:>8}{stack:>7}{spill:>8}")
                    compiled += 1
        if not any(r[2] or r[3] for r in of_file):
            print(f"FAILED {path.name}: no kernel for any architecture")
            failed += 1
    for name, arch, rows, problems in results:
        if arguments.errors_only and rows:
            continue
        for problem in problems:
            print(f"FAILED {name} sm_{arch}: {problem}")
            failed += 1
    print(f"kernels: {len(files)} files, {len(ARCHITECTURES)} architectures, {compiled} kernels compiled, {failed} failed")
    return 0 if failed == 0 and compiled > 0 else 1


if __name__ == "__main__":
    sys.exit(main())
