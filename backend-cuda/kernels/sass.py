"""Machine code of a cubin: its instructions with their stall counts, its loops, and what a path
through a loop costs. Used by budget.py; needs nvdisasm, no GPU.

    instructions   nvdisasm --emit-json names them; the ELF holds their 128 bits
    stall clocks   bits 105..108 of an instruction: how many clocks its warp issues nothing after it
    loop           a natural loop: a branch back to a block that dominates it, and what reaches it
    path           the blocks of one turn: of the ways through a loop that which holds most of the
                   instructions asked for, then that of fewest stall clocks, so that cold ways out
                   of line (subnormal divisions, wide sums) cost nothing
    inner loops    are taken once

Worked example: bits 105..108 of 0x000fe20000000a00 << 64 are (0x000fe20000000a00 >> 41) & 15 = 1.
"""

import json
import re
import struct
import subprocess
from dataclasses import dataclass, field

BRANCHES = re.compile(r"^(BRA|BRX|JMP|JMX|EXIT|RET|BREAK|BRXU|JMXU|CALL\.REL\.NOINC)\b")
TARGET = re.compile(r"(0x[0-9a-f]+)$")


@dataclass
class Instruction:
    at: int
    opcode: str
    operands: str
    predicate: str
    stall: int

    def ends_block(self):
        return bool(BRANCHES.match(self.opcode))

    def target(self):
        found = TARGET.search(self.operands) if self.opcode.startswith(("BRA", "JMP", "CALL.REL")) else None
        return int(found[1], 16) if found else None

    def falls_through(self):
        """Whether the next instruction may follow: a predicate, or a condition among operands."""
        # On sm_80 a call is also a way out of a loop, with a predicate; else it comes back.
        conditional = self.predicate or self.opcode.startswith(("BRA.DIV", "CALL"))
        conditional = conditional or re.match(r"(BRA|JMP)", self.opcode) and "," in self.operands
        return not self.ends_block() or bool(conditional)


@dataclass
class Loop:
    head: int
    blocks: set
    path: list = field(default_factory=list)


def sections(elf):
    """{name: bytes} of the sections of a 64-bit little-endian ELF."""
    if elf[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF: is it a cubin?")
    (start,) = struct.unpack_from("<Q", elf, 0x28)
    size, count, names = struct.unpack_from("<HHH", elf, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", elf, start + i * size) for i in range(count)]
    text = headers[names][4]
    found = {}
    for name, kind, _, _, offset, length in headers:
        label = elf[text + name : elf.index(b"\0", text + name)].decode()
        found[label] = b"" if kind == 8 else elf[offset : offset + length]
    return found


def functions(path, nvdisasm):
    """{kernel: [Instruction]} of a cubin's file."""
    command = [nvdisasm, "--emit-json", "--no-dataflow", str(path)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode != 0:
        raise ValueError(f"nvdisasm cannot read {path}: {run.stderr.strip()}")
    code = sections(path.read_bytes())
    found = {}
    for function in json.loads(run.stdout)[1]:
        name = function["function-name"]
        text = code.get(f".text.{name}")
        if text is None:
            continue  # a subroutine of the compiler's, of rare cases: subnormal divisions
        listing = []
        for i, each in enumerate(function["sass-instructions"]):
            (high,) = struct.unpack_from("<Q", text, 16 * i + 8)
            given = (each["opcode"], each.get("operands", ""), each.get("predicate", ""))
            listing.append(Instruction(16 * i, *given, high >> 41 & 15))
        found[name] = listing
    return found


class Flow:
    """The blocks of a kernel: `blocks[i]` are its instructions, `after[i]` the blocks that follow."""

    def __init__(self, code):
        leaders = {0}
        for i, each in enumerate(code):
            if each.ends_block():
                leaders.add(16 * (i + 1))
            if each.target() is not None:
                leaders.add(each.target())
        starts = sorted(at for at in leaders if at < 16 * len(code))
        ends = starts[1:] + [16 * len(code)]
        self.blocks = [code[a // 16 : b // 16] for a, b in zip(starts, ends)]
        number = {at: i for i, at in enumerate(starts)}
        self.after = []
        for i, block in enumerate(self.blocks):
            last, follow = block[-1], set()
            if last.target() in number:
                follow.add(number[last.target()])
            if last.falls_through() and i + 1 < len(starts):
                follow.add(i + 1)
            self.after.append(follow)
        self.before = [set() for _ in self.blocks]
        for i, follow in enumerate(self.after):
            for j in follow:
                self.before[j].add(i)
        self.dominators = self._dominators()
        self._loops = None

    def _dominators(self):
        """Of each block that is reached the bits of those that dominate it."""
        order = self._order(0, range(len(self.blocks)))
        every = (1 << len(self.blocks)) - 1
        found = {i: every for i in order}
        found[0], changed = 1, True
        while changed:
            changed = False
            for i in order[1:]:
                new = every
                for j in self.before[i]:
                    new &= found.get(j, every)
                new |= 1 << i
                if new != found[i]:
                    found[i], changed = new, True
        return found

    def loops(self):
        """The natural loops, those of one head as one, in the order of their heads."""
        if self._loops is not None:
            return self._loops
        found = {}
        for tail, follow in enumerate(self.after):
            for head in follow:
                if not self.dominators.get(tail, 0) >> head & 1:
                    continue
                body, queue = found.setdefault(head, {head}), [tail]
                while queue:
                    i = queue.pop()
                    if i not in body and i in self.dominators:
                        body.add(i)
                        queue.extend(self.before[i])
        self._loops = [Loop(head, body) for head, body in sorted(found.items())]
        return self._loops

    def path(self, loop, wanted, enough=None, longest=False):
        """One turn of a loop: the instructions of the path that holds `enough` that match `wanted`,
        or as many as one can, and then takes fewest clocks, or most."""
        sign = -1 if longest else 1
        best = {}  # of each block {matches: (clocks, blocks so far)}
        for i in self._order(loop.head, loop.blocks):
            block, coming = self.blocks[i], {}
            if i == loop.head:
                coming = {0: (0, [])}
            else:
                for j in self.before[i] & loop.blocks & best.keys():
                    for matches, way in best[j].items():
                        coming[matches] = min(way, coming.get(matches, way))
            own = sum(bool(wanted.search(x.opcode)) for x in block)
            clocks = sign * sum(max(x.stall, 1) for x in block)
            best[i] = {matches + own: (before + clocks, way + [i]) for matches, (before, way) in coming.items()}
        tails = [best[i] for i in loop.blocks if loop.head in self.after[i] and best.get(i)]
        most = max(max(tail) for tail in tails)
        aim = enough if any(enough in tail for tail in tails) else most
        _, blocks = min(tail[aim] for tail in tails if aim in tail)
        return [x for i in blocks for x in self.blocks[i]]

    def _order(self, head, blocks):
        """Those of some blocks that are reached from `head`, each after those before it but for
        branches back."""
        order, seen = [], {head}
        stack = [(head, iter(sorted(self.after[head])))]
        while stack:
            i, follow = stack[-1]
            for j in follow:
                if j in blocks and j not in seen:
                    seen.add(j)
                    stack.append((j, iter(sorted(self.after[j]))))
                    break
            else:
                order.append(i)
                stack.pop()
        return order[::-1]


def hot_loops(flow, wanted, least=1, enough=None, longest=False):
    """The innermost loops with at least `least` instructions that match `wanted`, each with the path
    of one turn, in the order of their addresses."""

    def matches(loop):
        return sum(bool(wanted.search(x.opcode)) for i in loop.blocks for x in flow.blocks[i])

    loops = [loop for loop in flow.loops() if matches(loop) >= least]
    inner = [a for a in loops if not any(b.blocks < a.blocks for b in loops)]
    return [(loop, flow.path(loop, wanted, enough, longest)) for loop in inner]


def loop_around(flow, inner, wanted):
    """The innermost loop around a loop, with the path of one turn, or None."""
    around = [loop for loop in flow.loops() if inner.blocks < loop.blocks]
    if not around:
        return None
    loop = min(around, key=lambda loop: len(loop.blocks))
    return loop, flow.path(loop, wanted)
