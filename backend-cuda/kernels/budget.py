#!/usr/bin/env python3
"""A static budget of the kernels: what their hot loops cost by their machine code. Needs no GPU.

    pip install nvidia-cuda-nvrtc==13.0.88 nvidia-cuda-nvdisasm==13.2.51
    python3 budget.py [--kept FOLDER]            print the table; fail on a regression
    python3 budget.py --write [--before]         commit the numbers of today: budget.json, BUDGET.md

Every kernel is compiled for the architecture of each GPU of machines.py (or taken from FOLDER, where
check.py --keep left it) and disassembled. For the loop of each role (roles.py) one turn is counted:

    instructions   issued by a warp
    clocks         sum of the stall counts that the compiler set: what one warp alone needs at least
    shared         bytes read and written in shared memory by a warp, and by the bulk copies that
                   it starts or that come from the other block of a cluster
    L2             bytes from and to L2 or memory by a warp, as if every lane took part

Bound, not measured: a turn takes at least as long as each of these lets it, for the warps that a
multiprocessor holds. It leaves out latencies of memory, bank conflicts, barriers, launches, and how
many bytes a clock one multiprocessor takes in, which multicast does not lessen: a kernel may be
slower than its bound, and can be no faster. Work over the bound's time, as a share of
the int8 or the memory peak, is for the problem that roles.py names, waves included.

budget.json holds the floor of each role: a tenth more instructions or clocks than that, spills, fewer
blocks a multiprocessor, a bound lower by a tenth, a loop that is not found, or a kernel that nobody
has entered are failures, and so is a slow fence in a loop of products or copies (fences.py).
`--self-test` shows that each is found. A change that trades one for another, and every gain, is
committed by --write.
"""

import argparse
import copy
import importlib.util
import json
import math
import multiprocessing
import pathlib
import re
import sys
import tempfile

import check
import fences
import machines
import roles
import sass

HERE = pathlib.Path(__file__).resolve().parent
INT8, MEMORY = roles.INT8, roles.MEMORY
FLOOR, TABLE = HERE / "budget.json", HERE.parent / "BUDGET.md"
ALU = re.compile(r"^(IADD|LOP|SHF|ISETP|PRMT|SEL|LEA|VIADD|VIMNMX|IMNMX|FMNMX|FSETP|FSEL|PLOP|IABS|BMSK|SGXT|LOP32)")
FMA = re.compile(r"^(FFMA|FADD|FMUL|FSWZ)")
IMAD = re.compile(r"^(IMAD|IDP)")
SLOW = re.compile(r"^(MUFU|I2F\b|I2F\.|F2I|F2F|FLO|POPC|BREV|FCHK)")
WIDTHS = {".U8": 1, ".S8": 1, ".U16": 2, ".S16": 2, ".64": 8, ".128": 16}


def lane_bytes(opcode):
    """Bytes that a lane moves by a load, store, copy or atomic."""
    return next((size for suffix, size in WIDTHS.items() if suffix in opcode), 4)


def wgmma_shape(opcode):
    """(m, n, k) of an IGMMA, which four warps share; None of another."""
    found = re.match(r"IGMMA\.(\d+)x(\d+)x(\d+)", opcode)
    return tuple(map(int, found.groups())) if found else None


def multiply_adds(opcode):
    """Of the tensor cores, for one warp."""
    if shape := wgmma_shape(opcode):
        return math.prod(shape) / 4
    if m := re.match(r"IMMA\.(16)(8)(16|32)\b", opcode):
        return math.prod(map(int, m.groups()))
    return 0


def count(path, role):
    """What one turn costs a warp, from its instructions."""
    cost = {"instructions": len(path), "clocks": sum(max(x.stall, 1) for x in path)}
    for name in ("alu", "fma", "imad", "slow", "shared", "l2", "wgmma", "mma"):
        cost[name] = 0
    cost["l2"] = role.copied
    cost["shared"] = role.copied if role.landed is None else role.landed
    for x in path:
        op = x.opcode
        kinds = [("slow", SLOW), ("alu", ALU), ("fma", FMA), ("imad", IMAD)]
        kind = next((name for name, pattern in kinds if pattern.match(op)), None)
        if kind:
            cost[kind] += 32
        cost["wgmma" if op.startswith("IGMMA") else "mma"] += multiply_adds(op)
        if shape := wgmma_shape(op):
            m, n, k = shape
            a_in_registers = re.match(r"R\d+,R\d", x.operands.replace(" ", ""))
            cost["shared"] += ((0 if a_in_registers else m) + n) * k // 4
        elif op.startswith("LDSM"):
            cost["shared"] += 128 * int(op[-1]) if op[-1].isdigit() else 128
        elif re.match(r"(LDS|STS|ATOMS)\b", op):
            cost["shared"] += 32 * lane_bytes(op)
        elif op.startswith("LDGSTS"):
            cost["shared"] += 32 * lane_bytes(op)
            cost["l2"] += 32 * lane_bytes(op)
        elif re.match(r"(LDG|STG|REDG?|ATOMG)\b", op):
            cost["l2"] += 32 * lane_bytes(op)
    return cost


def find_loop(flow, role, known):
    """A role's loop and one turn of it, or None. `known` has those of the roles before."""
    wanted = re.compile(role.wanted)
    if role.around:
        inner = known.get(role.around)
        return inner and sass.loop_around(flow, inner[0], wanted)
    if role.straight:
        path = [x for block in flow.blocks for x in block if wanted.search(x.opcode)]
        return (None, path) if len(path) >= role.least else None

    def holds(path, pattern):
        return any(re.search(pattern, x.opcode) for x in path)

    fit = [
        (loop, path)
        for loop, path in sass.hot_loops(flow, wanted, role.least, role.enough, role.longest)
        if (not role.has or holds(path, role.has)) and not (role.lacks and holds(path, role.lacks))
    ]
    return fit[role.which] if role.which < len(fit) else None


def costs_of(kernel, code):
    """({role: what a turn costs}, roles whose loops are not there)"""
    flow, loops, whole, costs = sass.Flow(code), {}, {}, {}
    for role in kernel.roles:
        loops[role.name] = find_loop(flow, role, loops)
        if loops[role.name]:
            whole[role.name] = count(loops[role.name][1], role)
            inner = whole.get(role.around, {})
            costs[role.name] = {what: max(number - inner.get(what, 0), 0) for what, number in whole[role.name].items()}
    return costs, [name for name, found in loops.items() if not found]


def clocks_of(machine, cost, role, turns, resident):
    """Clocks that `turns` of a role's warps take a multiprocessor, by what limits them."""
    warps = role.warps * resident
    each = {
        "issue": cost["instructions"] / 4,
        "alu": cost["alu"] / machine.alu,
        "fma": (cost["fma"] + cost["imad"]) / machine.fma,
        "imad": cost["imad"] / machine.imad,
        "slow": cost["slow"] / machines.MUFU,
        "shared memory": cost["shared"] / machines.SHARED_BYTES,
        "tensor cores": cost["wgmma"] / machine.int8 + cost["mma"] / machine.mma,
        "L2": cost["l2"] * machine.processors / machine.l2,
    }
    found = {name: turns * warps * clocks for name, clocks in each.items()}
    return found, turns * cost["clocks"]


def bound(machine, kernel, costs, resident):
    """(share of the peak, what limits it) of a kernel whose roles cost `costs`."""
    blocks = kernel.blocks(machine, resident) if kernel.blocks else None
    grid = blocks or kernel.roles[0].turns  # many: no wave is nearly empty
    used, alone, tail, tail_used = {}, {}, {}, {}  # clocks by what limits them
    for role in kernel.roles:
        resources, latency = clocks_of(machine, costs[role.name], role, role.turns / grid, resident)
        (tail if role.tail else alone)[f"{role.name}'s stalls"] = latency
        for name, clocks in resources.items():
            where = tail_used if role.tail else used
            where[name] = where.get(name, 0) + clocks
    if kernel.of == MEMORY:
        used["memory"] = kernel.work / grid * resident / machine.memory_clock()
    if resident == 1:  # the tail covers nothing and is not covered
        limits = {**used, **alone}
        time = max(limits.values()) + max({**tail_used, **tail, "": 0}.values())
    else:
        limits = {name: clocks + tail_used.get(name, 0) for name, clocks in used.items()}
        limits |= {name: clocks + max(tail.values(), default=0) for name, clocks in alone.items()}
        time = max(limits.values())
    slots = machine.processors * resident
    waves = math.ceil(blocks / slots) if blocks else grid / slots
    filled = grid / (waves * slots)
    peak = machine.int8 if kernel.of == INT8 else machine.memory_clock()
    share = kernel.work / (waves * time * machine.processors * peak)
    limit = max(limits, key=limits.get)
    if filled < 0.95:
        limit += f", waves {100 * filled:.0f}% full"
    if tail and resident == 1:
        limit += f", then {100 * max({**tail_used, **tail}.values()) / time:.0f}% tail"
    return share, limit


def clocks_of_blocks(machine, kernel, costs, resident, blocks, of_block):
    """Clocks of `blocks` blocks of a kernel without a tail, of which each does `of_block` of the turns
    that the problem has: of waves of as many as run at a time."""
    at_once = min(resident, math.ceil(blocks / machine.processors))
    used, alone = {}, [0]
    for role in kernel.roles:
        resources, latency = clocks_of(machine, costs[role.name], role, role.turns * of_block, at_once)
        alone.append(latency)
        for name, clocks in resources.items():
            used[name] = used.get(name, 0) + clocks
    return math.ceil(blocks / (machine.processors * at_once)) * max(*used.values(), *alone)


def few_rows(found):
    """Lines of what products of few rows take at least, their activations quantized in a launch before:
    microseconds of both, and their share of the copy bandwidth for packed weights and of the time of
    bf16 weights at full bandwidth."""
    yield "rows", "weights", "GPU", "quantize us", "product us", "ranges of K", "of copy bandwidth", "over bf16's bytes"
    dynamic = constants()

    def known(machine, name, role):
        code, (registers, shared, _, _) = found[machine.arch][name]
        kernel = next(k for k in roles.KERNELS if k.matches(name) and k.roles[0].name == role)
        shared += dynamic[kernel.dynamic] if kernel.dynamic else 0
        return kernel, costs_of(kernel, code)[0], machines.occupancy(machine, kernel.threads, registers, shared)[0]

    for rows, weights, name, role, each_of, cut in roles.FEW_ROWS:
        for machine in machines.MACHINES:
            hopper = roles.FEW_ROWS_HOPPER.get((rows, weights)) if machine.arch == "90a" else None
            kernel, costs, resident = known(machine, hopper[0] if hopper else name, role)
            tiles, each = roles.N // 128, hopper[1] if hopper else each_of
            if hopper:
                clocks = kernel.work / (bound(machine, kernel, costs, resident)[0] * machine.processors * machine.memory_clock())
                ranges = kernel.blocks(machine, resident) // tiles
            elif cut:  # of `found` the least; a range of less than 512 of K is none
                tries = [(clocks_of_blocks(machine, kernel, costs, resident, tiles * count, rows / (roles.N * tiles * count)), count)
                         for count in range(1, roles.K // 512 + 1)]
                clocks, ranges = min(tries)
            else:
                blocks = roles.decode_blocks(machine, resident)
                clocks, ranges = clocks_of_blocks(machine, kernel, costs, resident, blocks, 1 / blocks), blocks // tiles
            memory = roles.N * roles.K * each / machine.memory
            product = max(clocks / (machine.ghz * 1e9), memory)
            quantizer, of_quantizer, at_once = known(machine, "quantize_bf16", weights)
            quantize = clocks_of_blocks(machine, quantizer, of_quantizer, at_once, rows, 1 / roles.N) / (machine.ghz * 1e9)
            packed = roles.N * roles.K * (0.53125 if weights == "mxfp4" else 0.5625) / machine.memory
            total = product + quantize
            yield (rows, weights, machine.name, f"{quantize * 1e6:.1f}", f"{product * 1e6:.1f}", ranges,
                   f"{100 * packed / total:.0f}%", f"{roles.N * roles.K * 2 / machine.memory / total:.2f}x")


def constants():
    """{name: number} of arguments.cuh."""
    text = (HERE / "arguments.cuh").read_text()
    return {name: int(value) for name, value in re.findall(r"constexpr int (\w+) = (\d+);", text)}


def find_nvdisasm(given):
    """The program, as given, from the pip package, or from the path."""
    spec = importlib.util.find_spec("nvidia")
    roots = (spec.submodule_search_locations if spec else []) or []
    found = [str(p) for root in roots for p in sorted(pathlib.Path(root).glob("*/bin/nvdisasm"))]
    return given or (found[-1] if found else "nvdisasm")


def read(job):
    """(kernels of a cubin and their code, resources) for a file kept by check.py."""
    path, nvdisasm = job
    rows = json.loads(path.with_suffix(".json").read_text())
    if not rows:
        return path.name, {}, {}
    return path.name, sass.functions(path, nvdisasm), rows


def kept(folder, nvdisasm):
    """{architecture: {kernel: (code, resources)}} of every kept cubin of a machine's architecture."""
    wanted = {m.arch for m in machines.MACHINES}
    paths = [p for p in sorted(folder.glob("*.cubin")) if p.name.split(".")[1] in wanted]
    with multiprocessing.Pool() as pool:
        results = pool.map(read, [(p, nvdisasm) for p in paths], chunksize=1)
    found = {}
    for name, code, rows in results:
        of = found.setdefault(name.split(".")[1], {})
        of.update({kernel: (code[kernel], row) for kernel, row in rows.items()})
    return found


def entries(found):
    """({key: numbers}, problems): a key is "kernel/role/architecture"."""
    numbers, problems = {}, []
    dynamic = constants()
    for machine in machines.MACHINES:
        for name, (code, (registers, shared, _, spills)) in sorted(found.get(machine.arch, {}).items()):
            problems += [f"{name} sm_{machine.arch}: {fence} in a loop of products or copies" for fence in fences.slow_fences(code)]
            kernels = [k for k in roles.KERNELS if k.matches(name)]
            if not kernels and not roles.UNBUDGETED.fullmatch(name):
                problems.append(f"{name}: no role in roles.py; enter it there")
            if not kernels:
                numbers[f"{name}/-/{machine.arch}"] = {"registers": registers, "spills": spills}
            for kernel in kernels:
                total = shared + (dynamic[kernel.dynamic] if kernel.dynamic else 0)
                resident, limit = machines.occupancy(machine, kernel.threads, registers, total)
                costs, lost = costs_of(kernel, code)
                problems += [f"{name} sm_{machine.arch}: no loop of role {role!r}" for role in lost]
                if resident == 0:
                    problems.append(f"{name} sm_{machine.arch}: no block fits a multiprocessor ({limit})")
                if lost or resident == 0:
                    continue
                share, why = bound(machine, kernel, costs, resident)
                for role in kernel.roles:
                    numbers[f"{name}/{role.name}/{machine.arch}"] = {
                        "instructions": costs[role.name]["instructions"],
                        "clocks": costs[role.name]["clocks"],
                        "shared": costs[role.name]["shared"],
                        "l2": costs[role.name]["l2"],
                        "registers": registers,
                        "spills": spills,
                        "blocks": resident,
                        "share": round(share, 4),
                        "limit": why,
                        "of": kernel.of,
                    }
    return numbers, problems


# NVRTC 13.0 makes other code of a large kernel from run to run, by the same options: 178 or 186
# clocks for a turn of decode's fold.
SLACK = {"instructions": 0.1, "clocks": 0.1, "share": 0.1}


def judge(numbers, floor):
    """What is worse than the floor, or not in it."""
    problems = []
    for key, now in numbers.items():
        if key not in floor:
            problems.append(f"{key}: not in budget.json; run budget.py --write")
            continue
        for what, worse in (("instructions", 1), ("clocks", 1), ("spills", 1), ("blocks", -1), ("share", -1)):
            was, new = floor[key].get(what, 0), now.get(what, 0)
            if worse * (new - was) > SLACK.get(what, 0) * was:
                problems.append(f"{key}: {what} {was} -> {new}")
    problems += [f"{key}: in budget.json, but there is no such kernel and role" for key in floor if key not in numbers]
    return problems


def rows(numbers, before):
    """Lines of the table, of the kernels that have roles."""
    yield ("kernel", "role", "GPU", "instr.", "clocks", "shared B", "L2 B", "regs", "blocks", "bound", "of", "before", "limited by")
    arch = {m.arch: m.name for m in machines.MACHINES}
    order = list(arch)
    # By kernel, then by GPU; the roles of one are together as they are.
    for key, now in sorted(numbers.items(), key=lambda x: (x[0].split("/")[0], order.index(x[0].split("/")[2]))):
        if "share" not in now:
            continue
        name, role, sm = key.split("/")
        was = before.get(key, {}).get("share")
        yield (name, role, arch[sm], now["instructions"], now["clocks"], now["shared"], now["l2"], now["registers"],
               now["blocks"], f"{100 * now['share']:.0f}%", now["of"], "-" if was is None else f"{100 * was:.0f}%", now["limit"])


def printed(lines):
    lines = [[str(cell) for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]


FEW_ROWS = """
## Few rows, quantization included: bound, not measured

{n} x {k} weights and bf16 activations that a launch before quantizes. Times follow from the same counts, alone:
without launches, latencies of memory and the merge of ranges, which for so little work are not small. Products
above 16 rows are those by `mma.sync` on folded weights, in as many ranges of K as take the least, and on an H200
those of MXFP4 by `wgmma` on packed weights, of which the merge counts. The share of the
copy bandwidth is the time of reading packed weights once over that of both launches; `over bf16's bytes` is that of
reading bf16 weights once, which a bf16 product of few rows cannot beat.

"""


def markdown(numbers, before, few):
    """BUDGET.md."""
    text = f"""# Static budget of the CUDA kernels: bound, not measured

No line of this was run on a GPU. Every hot loop is found in the machine code and one turn of it counted: instructions
that a warp issues, clocks of the stall counts that the compiler set, bytes of shared memory, and bytes from and to L2
or memory as if every lane took part. A kernel takes at least as long as each of these lets it (and its registers and
shared memory, which say how many blocks a multiprocessor holds). Latencies of memory, bank conflicts, barriers and
launches are left out, so a kernel can be slower than its bound, and no faster. Left out as well is how many bytes a
clock one multiprocessor takes in: multicast halves what L2 reads of B, not what each receives. A stage of MXFP4's
wgmma kernel is 48 KiB in 1024 clocks; that is within 64 bytes a clock, and at 39, say, it would be 1260 clocks and
the bound 81%.

The bound is a share of the peak of int8 or of memory, for products and quantizations of {roles.N} x {roles.N} x
{roles.K} and decoding with {roles.N} x {roles.K} weights, waves included; a product of several int8 products, such as
NVFP4's three, counts once. `before` is the bound before the work on speed began (commit 30eb280); for decoding it is
that of the inner loop alone, and for quantization it leaves out the launch that described the rows. `kernels/machines.py`
has the constants of the GPUs with their sources and says which are assumed, `kernels/roles.py` what a turn does.
Types f16 and f32, whose floors are held as well, are left out.

Made, with the floors that CI holds, by

```sh
python3 backend-cuda/kernels/budget.py --write
```

""".splitlines()
    lines = [line for line in rows(numbers, before) if not re.search(r"_f(16|32)$", line[0])]
    text += ["| " + " | ".join(map(str, lines[0])) + " |", "|" + "---|" * len(lines[0])]
    text += ["| " + " | ".join(map(str, line)) + " |" for line in lines[1:]]
    text += FEW_ROWS.format(n=roles.N, k=roles.K).splitlines()
    text += ["| " + " | ".join(map(str, few[0])) + " |", "|" + "---|" * len(few[0])]
    text += ["| " + " | ".join(map(str, line)) + " |" for line in few[1:]]
    return "\n".join(text) + "\n"


def compiled(folder, nvrtc):
    """Compiles every kernel for every machine's architecture into a folder, as check.py --keep."""
    files = sorted(HERE.glob("*.cu"))
    jobs = [(path, m.arch, nvrtc, folder) for path in files for m in machines.MACHINES]
    with multiprocessing.Pool() as pool:
        return [problem for problems in pool.map(check.keep, jobs, chunksize=1) for problem in problems]


TEST = """extern "C" __global__ void {name}(float* x, int n) {{
    float y = x[threadIdx.x];
    {loop} {{ {body} }}
    x[threadIdx.x] = y;
}}"""
TEST_LOOP, TEST_BODY = "for (int i = 0; i < n; i++)", "y = __fmaf_rn(y, y, y);"
TEST_CASES = [  # what, name, loop, body, options, text in a problem or None
    ("the same kernel", "test", TEST_LOOP, TEST_BODY, "", None),
    ("a longer loop", "test", TEST_LOOP, TEST_BODY * 2, "", "instructions"),
    ("a loop of more clocks", "test", TEST_LOOP, TEST_BODY * 2, "", "clocks"),
    ("a lower bound", "test", TEST_LOOP, TEST_BODY * 2, "", "share"),
    ("no loop", "test", "", TEST_BODY, "", "no loop of role"),
    ("a kernel that nobody entered", "other", TEST_LOOP, TEST_BODY, "", "no role in roles.py"),
    ("fewer blocks", "test", TEST_LOOP, TEST_BODY, "blocks", "blocks"),
    ("spills", "test", TEST_LOOP, TEST_BODY, "spills", "spills"),
]


def self_test(nvrtc, nvdisasm):
    """Number of cases of a regression that were not found as such."""
    roles.KERNELS[:] = [
        roles.Kernel("test", 256, 1e8, MEMORY, [roles.Role("chain", "FFMA", 1e6, 8)])
    ]
    del machines.MACHINES[1:]
    missed, floor = 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        for i, (what, name, loop, body, change, expected) in enumerate(TEST_CASES):
            folder = pathlib.Path(scratch) / str(i)
            folder.mkdir()
            source = folder / "test.cu"
            source.write_text(TEST.format(name=name, loop=loop, body=body))
            problems = [p for m in machines.MACHINES for p in check.keep((source, m.arch, nvrtc, folder))]
            numbers, more = entries(kept(folder, nvdisasm))
            floor = floor or copy.deepcopy(numbers)
            for each in numbers.values():
                each["blocks"] = each.get("blocks", 0) - (change == "blocks")
                each["spills"] += change == "spills"
            problems = "\n".join(problems + more + judge(numbers, floor))
            ok = not problems if expected is None else expected in problems
            missed += not ok
            print(f"{'ok' if ok else 'MISSED'}: {what}" + ("" if ok else f": {problems or 'no problem found'}"))
    copies = [("half of them multicast by another block", 8192, 8192), ("its own alone", None, 4096)]
    for what, landed, expected in copies:
        cost = count([], roles.Role("copies", "", 1, copied=4096, landed=landed))
        ok = (cost["shared"], cost["l2"]) == (expected, 4096)
        missed += not ok
        print(f"{'ok' if ok else 'MISSED'}: bytes of copies in shared memory, {what}" + ("" if ok else f": {cost}"))
    print(f"budget: {len(TEST_CASES) + len(copies)} cases, {missed} failed")
    return missed + fences.self_test(nvrtc, nvdisasm)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kept", type=pathlib.Path, help="folder that check.py --keep has filled")
    parser.add_argument("--write", action="store_true", help="write budget.json and BUDGET.md")
    parser.add_argument("--before", action="store_true", help="with --write: these are the numbers before")
    parser.add_argument("--only", help="print only kernels whose name contains this")
    parser.add_argument("--nvrtc", help="path of libnvrtc.so")
    parser.add_argument("--nvdisasm", help="path of nvdisasm")
    parser.add_argument("--self-test", action="store_true", help="check that a regression is found")
    arguments = parser.parse_args()
    nvdisasm = find_nvdisasm(arguments.nvdisasm)
    if arguments.self_test:
        return 1 if self_test(arguments.nvrtc, nvdisasm) else 0

    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.kept or pathlib.Path(scratch)
        problems = [] if arguments.kept else compiled(folder, arguments.nvrtc)
        found = kept(folder, nvdisasm)
    numbers, more = entries(found)
    problems += more
    version = check.Nvrtc(arguments.nvrtc).version()
    known = json.loads(FLOOR.read_text()) if FLOOR.exists() else {"before": {}, "floor": {}}
    if arguments.write:
        before = numbers if arguments.before else known["before"]
        shares = {key: {"share": each["share"]} for key, each in before.items() if "share" in each}
        parts = {"nvrtc": version, "before": shares, "floor": numbers}
        FLOOR.write_text(dumped(parts))
        TABLE.write_text(markdown(numbers, shares, list(few_rows(found))))
        known = parts
    elif known["nvrtc"] != version:
        problems.append(f"NVRTC is {version}, budget.json was made by {known['nvrtc']}: install that, or --write")
    else:
        problems += judge(numbers, known["floor"])

    shown = {key: each for key, each in numbers.items() if (arguments.only or "") in key}
    print(*printed(list(rows(shown, known["before"]))), sep="\n")
    if not problems and not arguments.only:
        print(*printed(list(few_rows(found))), sep="\n")
    print(*[f"FAILED {problem}" for problem in problems], sep="\n", end="\n" if problems else "")
    hot = sum("share" in each for each in numbers.values())
    print(f"budget: {len(numbers)} entries, {hot} hot loops bound (not measured), {len(problems)} failed")
    return 0 if hot > 0 and not problems else 1


def dumped(parts):
    """JSON with a line for each entry, so that changes are easy to read and to merge."""
    lines = [f'  "nvrtc": {json.dumps(parts["nvrtc"])}']
    for part in ("before", "floor"):
        inner = [f"    {json.dumps(key)}: {json.dumps(each)}" for key, each in sorted(parts[part].items())]
        lines.append(f'  "{part}": {{\n' + ",\n".join(inner) + "\n  }")
    return "{\n" + ",\n".join(lines) + "\n}\n"


if __name__ == "__main__":
    sys.exit(main())
