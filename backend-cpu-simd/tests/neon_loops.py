#!/usr/bin/env python3
"""The instruction budgets of the NEON kernels' hot loops, from a disassembly: what one chunk (32
deep, 16 columns) of some rows takes, for one row and for the most rows at a time.

    cargo rustc --release --target aarch64-unknown-linux-gnu -p fp4-backend-cpu-simd --lib \\
        -- -C symbol-mangling-version=v0
    aarch64-linux-gnu-objdump -dC --no-show-raw-insn \\
        target/aarch64-unknown-linux-gnu/release/libfp4_backend_cpu_simd.rlib |
        python3 backend-cpu-simd/tests/neon_loops.py

The names of that mangling have the number of rows. Nothing is run or timed: these are counts of
instructions, not of cycles. What expands a chunk of B, once for all rows of a tile, has a column of
its own, and the last one has it included, for a tile of one row and for one of the most rows.

A loop is what a branch back encloses. The innermost ones with multiplies are the hot ones; one that
makes less than a chunk (a half, or a pair of steps) is repeated as often as a chunk needs, and the
rest of the loop around it, over the chunks, counts once. Worked example: `fold` of 6 rows by
`smmla` has 24 of 35 instructions in a loop that runs 4 times and 11 around it, so a chunk takes 151
instructions for 6 * 512 multiply-accumulates: 20.3 each, where `smmla` alone makes 32.

Last line: "neon loops: N counted". Fails if a kernel's loop is not found, if what it multiplies is
not a chunk, or if a fold loop keeps something on the stack."""

import pathlib
import re
import sys
from collections import Counter

# Multiply-accumulates of an instruction.
MACS = {"smmla": 32, "sdot": 16, "smlal": 8, "smlal2": 8, "smull": 8, "smull2": 8}
COLUMNS, DEPTH = 16, 32
# The forms of a level, by the names of its functions, and the products that they are for.
FORMS = {
    "smmla": {"fold": "MXFP4", "group": "NVFP4", "int8": "MXINT8 by MXFP4"},
    "sdot": {"fold": "MXFP4", "group": "NVFP4", "int8": "MXINT8 by MXFP4"},
    "smlal": {"group": "MXFP4, NVFP4"},
}
SOURCES = pathlib.Path(__file__).resolve().parents[1] / "src"
KERNELS, TILES = SOURCES / "kernels/neon", SOURCES / "matmul/operand.rs"


def functions(listing):
    """The functions of the kernels: by name, lists of (address, instruction, operands)."""
    code = None
    for line in listing:
        if head := re.match(r"[0-9a-f]+ <(.*)>:$", line):
            code = []
            if "kernels::neon::" in head[1]:
                yield head[1], code
        elif code is not None and (at := re.match(r"\s*([0-9a-f]+):\t(\S+)\s*(.*)", line)):
            code.append((int(at[1], 16), at[2], at[3]))


def loops(code):
    """The first and the last address of each loop, inner ones first."""
    ends = {}
    for address, name, operands in code:
        to = re.search(r"\b([0-9a-f]+) <", operands)
        if to and re.match(r"b$|b\.|cbn?z$|tbn?z$", name):
            start = int(to[1], 16)
            if code[0][0] <= start <= address:
                ends[start] = max(address, ends.get(start, 0))
    return sorted(ends.items(), key=lambda loop: loop[1] - loop[0])


def kind(name, operands):
    """What an instruction is counted as: one kind, and also `stack` if it goes there."""
    if name in MACS and operands.startswith("v"):
        yield "multiplies"
    elif re.match(r"ld", name):
        yield "loads"
    elif re.match(r"st", name):
        yield "stores"
    elif re.match(r"movi?$|dup$", name) and operands.startswith("v"):
        yield "moves"
    else:
        yield "others"
    if "[sp" in operands or re.search(r"\[x29", operands):
        yield "stack"


def count(code):
    kinds = Counter(each for _, name, operands in code for each in kind(name, operands))
    kinds["all"] = len(code)
    multiplies = [name for _, name, operands in code if "multiplies" in kind(name, operands)]
    kinds["macs"] = sum(MACS[name] for name in multiplies)
    return kinds


def hot_loops(name, code):
    """The level, the form, the rows and the counts for a chunk, of each hot loop of a function."""
    inside = lambda loop: [at for at in code if loop[0] <= at[0] <= loop[1]]
    around, taken = loops(code), []
    for loop in around:
        inner = count(inside(loop))
        if not inner["macs"] or any(loop[0] <= t[0] and t[1] <= loop[1] for t in taken):
            continue
        taken.append(loop)
        level = next(level for level in FORMS if f"::{level}::" in name)
        if named := re.search(r">::(\w+)::<(\d+)>$", name):
            form, rows = named[1], int(named[2])
        else:
            # Compiled into its caller: each row has four sums.
            sums = {operands.split(",")[0] for _, name, operands in inside(loop) if name == "mla"}
            form, rows = "group", len(sums) // 4
        if rows not in (1, most_rows(level, form)):
            continue  # What is left of a tile.
        chunk = COLUMNS * DEPTH * (rows + rows % 2 if level == "smmla" else rows)
        times, rest = divmod(chunk, inner["macs"])
        if rest:
            sys.exit(f"neon loops: {name}: {inner['macs']} in a loop do not divide {chunk}")
        counts = Counter({kind: n * times for kind, n in inner.items()})
        if times > 1:
            outer = [o for o in around if o[0] <= loop[0] and loop[1] <= o[1] and o != loop]
            if not outer:
                sys.exit(f"neon loops: {name}: no loop over chunks around one of {inner['macs']}")
            counts += count(inside(outer[0]))
            counts -= inner
        if counts["macs"] != chunk:
            sys.exit(f"neon loops: {name}: {counts['macs']} multiply-accumulates, not {chunk}")
        yield (level, form, rows), counts


def expansion(name, code):
    """The level and the form of a function that expands chunks, and its instructions for one."""
    terms = re.search(r"(Fold|Group|Int8)Terms<.*neon::(\w+)::\w+>>>?$", name)
    if not terms or "::multiply::" not in name:
        return None
    for start, end in loops(code):
        body = [each for at, each, _ in code if start <= at <= end]
        # Two look-ups for each of 16 vectors of codes; the smallest loop that has them.
        if body.count("tbl") >= 32:
            return (terms[2], terms[1].lower()), len(body)
    sys.exit(f"neon loops: {name}: no loop expands chunks")


def most_rows(level, form):
    source = (KERNELS / f"{level}.rs").read_text()
    of = "FOLD" if form == "fold" else "GROUP"
    return int(re.search(rf"const {of}_ROWS: usize = (\d+);", source)[1])


def main():
    found, expansions = {}, {}
    for name, code in list(functions(sys.stdin)):
        if expands := expansion(name, code):
            expansions[expands[0]] = expands[1]
        for key, counts in hot_loops(name, code):
            if counts["all"] >= found.get(key, counts)["all"]:
                found[key] = counts
    print("| level | product, form | rows | instructions | multiplies | loads | stores, of all on "
          "the stack | moves | others | MACs an instruction | of the ideal | expansion | with it |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|---|")
    tile = int(re.search(r"MAX_ROWS: usize = (\d+);", TILES.read_text())[1])
    faults, rows_counted = [], 0
    for level, forms in FORMS.items():
        for form, product in forms.items():
            for rows in (most_rows(level, form), 1):
                counts = found.get((level, form, rows))
                if counts is None:
                    faults.append(f"no loop of {level}, {form}, {rows} rows")
                    continue
                if form == "fold" and counts["stack"]:
                    faults.append(f"{level}, {form}, {rows} rows: {counts['stack']} on the stack")
                rows_counted += 1
                each = COLUMNS * DEPTH * rows / counts["all"]
                expands = expansions.get((level, form))
                if expands is None:
                    faults.append(f"no expansion of {level}, {form}")
                    continue
                # The level of smmla has no tile of one row: sdot takes it.
                whole = "-"
                if (level, rows) != ("smmla", 1):
                    passes = tile // rows if rows > 1 else 1
                    macs = COLUMNS * DEPTH * rows * passes
                    whole = f"{macs / (counts['all'] * passes + expands):.1f}"
                cells = [f"`{level}`", f"{product}, {form}", rows, counts["all"],
                         counts["multiplies"], counts["loads"],
                         f"{counts['stores']}, {counts['stack']}", counts["moves"],
                         counts["others"], f"{each:.1f} of {MACS[level]}",
                         f"{each / MACS[level]:.0%}", expands, whole]
                print("|", " | ".join(map(str, cells)), "|")
    for fault in faults:
        print(f"neon loops: {fault}", file=sys.stderr)
    print(f"neon loops: {rows_counted} counted")
    sys.exit(bool(faults) or not rows_counted)


if __name__ == "__main__":
    main()
