"""What budget.py knows of the kernels: the roles of their hot loops, found by the instructions that
they hold, and the work that they do for one problem.

A role is a loop. It is the innermost that holds at least `least` instructions that match `wanted`,
one that matches `has`, and none that matches `lacks` (regular expressions of opcodes, searched
for). Of several the first counts, or the one at `which`. `turns` is how often one warp of each
block runs it, summed over the blocks of the problem; `warps` of a block do so. Roles of a kernel
run at the same time, but those of its tail, which follow the others. A role that is `straight` is no
loop: what matches `wanted` in the whole kernel, `least` or more, without what lies between.

A new kernel: one more entry. A kernel without one fails the check, unless it is one of
UNBUDGETED, of which only registers and spills are held.
"""

import re
from dataclasses import dataclass
from typing import Callable, Optional

import machines

N = K = 8192  # outputs (N, N) over K; decode: N rows of weights; quantization: (N, K) values
INT8, MEMORY = "int8", "memory"  # what a bound is a share of


@dataclass
class Role:
    name: str
    wanted: str
    turns: float
    warps: int = 1
    least: int = 1
    enough: Optional[int] = None  # how many a turn runs, if not as many as it can
    longest: bool = False  # whether a turn takes the longest of such ways, not the shortest
    has: str = ""
    lacks: str = ""
    which: int = 0
    around: str = ""       # it is the loop around that of this role, without a turn of that
    tail: bool = False
    straight: bool = False
    copied: int = 0        # bytes from L2 a turn by bulk copies, whose sizes the code does not show
    landed: Optional[int] = None  # bytes that they write to the block's shared memory; else as many


@dataclass
class Kernel:
    names: str             # regular expression of whole names
    threads: int
    work: float            # of the problem: multiply-adds of its outputs, or bytes of memory
    of: str
    roles: list
    dynamic: str = ""      # the constant of arguments.cuh: bytes of dynamic shared memory
    blocks: Optional[Callable] = None  # (machine, blocks of a multiprocessor) -> blocks of the grid
    note: str = ""

    def matches(self, name):
        return re.fullmatch(self.names, name) is not None


def wgmma(name, columns, stages, of_a, of_b, ranges):
    """Tiles of 128 x `columns` outputs, which the blocks of a grid as large as the device take in turn;
    an H200's 132 are not all busy in the last one. A slice of 128 of K is `stages` stages, of
    together `of_a` and `of_b` bytes; blocks of a cluster, whose tiles lie below each other, each copy
    half of B's from L2 and have both halves written. The epilogue's turn is that of the loop over
    tiles, by its way to 16-bit outputs. Then 128 and 256 rows of A, with K in as many ranges as an
    H200 is given by src/ops/matmul/model.rs: all blocks of the grid have one, whose sums they add to
    memory, and a tile's last block ends it."""
    kernels = []
    for m, cut in ((N, 1), *zip((128, 256), ranges)):
        tiles, suffix = m // 128 * (N // columns), "" if m == N else f" {m} rows"
        blocks = tiles * cut if m < N else None
        turns = tiles if blocks else -(-tiles // 132) * 132
        loads = "UBLKCP.*MULTICAST" if m > 128 else "UBLKCP"
        copied = (of_a + (of_b // 2 if m > 128 else of_b)) // stages
        roles = [
            Role(f"tensor{suffix}", "IGMMA", turns * K / 128, 8, lacks="STG"),
            Role(f"producer{suffix}", loads, turns * K / 128 * stages, copied=copied, landed=(of_a + of_b) // stages,
                 lacks="LDS" if m > 128 else "LDS|MULTICAST"),
            Role(f"epilogue{suffix}", "^STG", turns if cut == 1 else blocks, 8, least=100, enough=columns // 8, tail=True),
        ]
        if cut > 1:
            roles.append(Role(f"merge{suffix}", "^(RED|ATOM)", blocks, 8, least=100, longest=True, tail=True))
        grid = (lambda *_, blocks=blocks: blocks) if blocks else (lambda machine, _: machine.processors)
        kernels.append(Kernel(name, 384, m * N * K, INT8, roles, "WGMMA_SHARED", grid))
    return kernels


def mma(name, *roles):
    """64 x 64 outputs a block, of four warps. One entry for each way of summing."""
    tiles = (N // 64) ** 2
    return [Kernel(name, 128, N * N * K, INT8, [role], blocks=lambda *_: tiles) for role in roles]


def of_groups(name, group, wanted="IMMA", **how):
    """A turn of matmul_mma's loop is a group."""
    return Role(name, wanted, (N // 64) ** 2 * K / group, 4, **how)


def folded(name, rows, steps, dynamic):
    """`rows` x 128 outputs a block, a warp 64 x 32 of them; `steps` of 32 of K a stage."""
    tiles = N // rows * (N // 128)
    roles = [Role("tensor", "IMMA|LDGSTS", tiles * K / 32 / steps, rows // 16, least=16, has="IMMA")]
    return Kernel(name, 2 * rows, N * N * K, INT8, roles, dynamic, lambda *_: tiles)


def decode_blocks(machine, resident):
    """The grid of src/ops/matmul/decode.rs for N rows of weights and up to 16 rows of A."""
    across, stages = N // 128, K // 256

    def cost(count):
        each = -(-stages // count)
        count = -(-stages // each)
        return -(-across * count // (machine.processors * resident)) * (each + 1), count

    return across * min(cost(count) for count in range(1, stages // 2 + 1))[1]


def decode(name, group, rows, *ways):
    """128 rows of weights and a range of K a block of eight warps, by each way of summing. A turn
    of the inner loop is a stage of 256 of K, and of the staging, of which each loop is counted
    once, 1024, or 512 for 16 rows of A."""
    across, found = N // 128, []
    for way, how in ways:
        roles = [
            Role(way, "IMMA|LDGSTS", across * K / 256, 8, least=8, **how),
            Role(f"{way} staging", "LDGSTS|IMMA|STS|LDG", across * K / (8192 / rows), 8, around=way),
        ]
        work = N * K * (0.5 + 1 / group)
        found.append(Kernel(name, 256, work, MEMORY, roles, "DECODE_SHARED", decode_blocks))
    return found


def rs_blocks(merge):
    """The grid of src/ops/matmul/wgmma_rs.rs for N rows of weights and few of A, where the merge of
    ranges costs a block as much as so many slices."""
    across, slices = N // 128, K // 128

    def cost(count, slots):
        each = -(-slices // count)
        count = -(-slices // each)
        return -(-across * count // slots) * (each + 2 + (merge if count > 1 else 0)), count

    def blocks(machine, resident):
        counts = range(-(-slices // 32), slices // 4 + 1)
        return across * min(cost(count, machine.processors * resident) for count in counts)[1]

    return blocks


def rs(name, rows, planes):
    """128 rows of weights, a range of K and `rows` rows of A a block of eight warps; a turn is a slice
    of 128 of K, for which each copies its codes and one of them has A's block copied: its few
    instructions for that are left out, and so are the outputs, which are no loop. All blocks add their
    sums to memory, in as many ranges as an H200 is given; a tile's last takes them back and leaves
    zeros."""
    blocks, h200 = rs_blocks(min(-(-rows * planes // 32), 4)), machines.MACHINES[0]
    resident = 1 if rows * planes > 128 else 3 if rows * planes == 32 else 2
    sums = rows * planes // 2  # of a thread
    roles = [
        Role("tensor", "IGMMA|LDGSTS", N // 128 * K / 128, 8, has="IGMMA", copied=rows * 128 * planes // 8),
        Role("merge", r"^(REDG|ATOMG)\b", blocks(h200, resident), 8, least=sums, straight=True, tail=True),
        Role("take back", r"^LDG.*STRONG", N // 128, 8, least=sums, straight=True, tail=True, copied=128 * sums),
    ]
    work = N * K * (0.5 + 1 / 32)
    return Kernel(name, 256, work, MEMORY, roles, f"RS_{'MXFP4' if planes == 1 else 'MXINT8'}_{rows}_SHARED", blocks)


INT64, FOLD = ("int64", {"lacks": r"U8\.S8"}), ("fold", {"has": r"U8\.S8"})
VALUE = {"f32": 4, "f16": 2, "bf16": 2}


# The loops by reciprocals come in this order, with what they write of a value.
PLAIN = {"nvfp4": (0, 0.5625), "mxfp4": (1, 0.53125)}


def quantize(value, plain):
    """A row a block of eight warps; a turn is 8 values a lane. Bytes read and written."""
    which, packed = PLAIN[plain]
    roles = [Role(plain, r"FMUL\.RP|^STG", N * K / 256 / 8, 8, least=8, has="^STG", which=which)]
    return Kernel(f"quantize_{value}", 256, N * K * (VALUE[value] + packed), MEMORY, roles)


def transform(value):
    """Blocks of 32, tiles of 64 x 128, NVFP4. Two turns of `chains` are one i, unrolled twice."""
    tiles = N // 64 * (K // 128)
    roles = [
        Role("chains", "FFMA", tiles * 32 / 2, 8, least=64, lacks="MUFU"),
        Role("encode", r"FMUL\.RP|^STG", tiles * 4, 8, least=8, has="^STG", tail=True),
    ]
    return Kernel(f"transform_quantize_{value}", 256, N * K * (VALUE[value] + 0.5625), MEMORY, roles)


def fold(name, packed, planes):
    """8 rows a block of eight warps; a turn is two steps of 32 of K of the 8 rows."""
    roles = [Role("pieces", "^STG", N / 8 * K / 64 / 8, 8, has="SHFL")]
    return Kernel(name, 256, N * K * (packed + planes), MEMORY, roles)


KERNELS = [
    *wgmma("matmul_wgmma_mxfp4", 256, 1, 16384, 32768, (4, 2)),
    *wgmma("matmul_wgmma_nvfp4", 128, 3, 32768, 49152, (2, 1)),
    *wgmma("matmul_wgmma_mxint8_mxfp4", 128, 1, 32768, 16384, (2, 1)),
    *[rs(f"matmul_wgmma_rs_mxfp4_{rows}", rows, 1) for rows in (32, 64, 128)],
    *[rs(f"matmul_wgmma_rs_mxint8_mxfp4_{rows}", rows, 2) for rows in (32, 64, 128)],
    *mma(
        "matmul_mma",
        of_groups("mxfp4 int32", 32, "IMMA.16832", lacks="IMAD.WIDE"),
        of_groups("mxfp4 int64", 32, "IMMA.16832", has="IMAD.WIDE"),
        of_groups("nvfp4 int64", 16, "IMMA.16816"),
    ),
    *mma("matmul_mma_mxint8_mxfp4", of_groups("int64", 32)),
    *mma("matmul_mma_mxint8_nvfp4", of_groups("int64", 16)),
    folded("folded_mxfp4", 128, 2, "FOLDED_MXFP4_SHARED"),
    folded("folded_few_mxfp4", 64, 2, "FOLDED_FEW_MXFP4_SHARED"),
    folded("folded_nvfp4", 128, 1, "FOLDED_NVFP4_SHARED"),
    folded("folded_few_nvfp4", 64, 1, "FOLDED_FEW_NVFP4_SHARED"),
    folded("folded_mxint8_mxfp4", 128, 2, "FOLDED_MXINT8_SHARED"),
    folded("folded_few_mxint8_mxfp4", 64, 2, "FOLDED_FEW_MXINT8_SHARED"),
    *decode("matmul_decode_mxfp4_8", 32, 8, INT64),
    *decode("matmul_decode_mxfp4_16", 32, 16, INT64, FOLD),
    *decode("matmul_decode_mxint8_mxfp4_8", 32, 8, INT64),
    *decode("matmul_decode_mxint8_mxfp4_16", 32, 16, INT64),
    *decode("matmul_decode_(mxint8_)?nvfp4_8", 16, 8, INT64),
    *decode("matmul_decode_nvfp4_16", 16, 16, INT64, FOLD),
    *decode("matmul_decode_mxint8_nvfp4_16", 16, 16, INT64),
    *[quantize(value, plain) for value in VALUE for plain in PLAIN],
    *[transform(value) for value in VALUE],
    fold("fold_mxfp4", 0.53125, 1),
    fold("fold_nvfp4", 0.5625, 3),
    fold("fold_mxint8", 1.03125, 2),
]

# Products of few rows with the quantization of their activations (bf16): (rows, format, kernel,
# role, bytes of a weight that it reads, whether blocks take ranges of K of 128 columns in turn).
FEW_ROWS = [
    (1, "mxfp4", "matmul_decode_mxfp4_8", "int64", 0.53125, False),
    (1, "nvfp4", "matmul_decode_nvfp4_8", "int64", 0.5625, False),
    (16, "mxfp4", "matmul_decode_mxfp4_16", "fold", 0.53125, False),
    (16, "nvfp4", "matmul_decode_nvfp4_16", "fold", 0.5625, False),
    (64, "mxfp4", "folded_few_mxfp4", "tensor", 1, True),
    (64, "nvfp4", "folded_few_nvfp4", "tensor", 2, True),
    (128, "mxfp4", "folded_mxfp4", "tensor", 1, True),
    (128, "nvfp4", "folded_nvfp4", "tensor", 2, True),
]

# The kernels that take their place on compute capability 9.0, and what they read of a weight.
FEW_ROWS_HOPPER = {(64, "mxfp4"): ("matmul_wgmma_rs_mxfp4_64", 0.53125), (128, "mxfp4"): ("matmul_wgmma_rs_mxfp4_128", 0.53125)}

# Not hot: the readable product and its partial sums, layouts, and parts whose loops are those of
# another kernel.
UNBUDGETED = re.compile(
    r"matmul_naive|partial_\w+|dequantize|pad_bytes|(un)?swizzle|row_meta|fold_extras_\w+|transform_(f32|f16|bf16)"
    r"|(transform_)?quantize_fold_\w+|folded_grouped_\w+|matmul_mma_grouped\w*|matmul_decode_(grouped|left)_\w+"
)
