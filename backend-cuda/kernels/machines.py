"""Hardware constants of the GPUs that budget.py counts for, with their sources.

Rates are for each multiprocessor and clock. Not measured here: peaks are what NVIDIA states, at the
clock that its stated peaks imply.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    name: str
    arch: str          # of its machine code
    processors: int    # multiprocessors
    ghz: float         # boost clock
    memory: float      # bytes a second
    l2: float          # bytes a clock, all multiprocessors together
    int8: int          # multiply-adds of the tensor cores, dense: the peak that shares are of
    mma: int           # the same by mma.sync, which Hopper and B200 run below their peak
    shared: int        # bytes of shared memory
    warps: int         # resident
    blocks: int        # resident
    alu: int           # lanes: integer addition, comparison, logic, shifts, byte permutation
    fma: int           # lanes: float multiply-adds
    imad: int          # lanes: integer multiply-adds

    def memory_clock(self):
        """Bytes of memory for each multiprocessor and clock."""
        return self.memory / (self.processors * self.ghz * 1e9)


REGISTERS = 65536   # of a multiprocessor, all of these; allotted by 256 for a warp
RESERVED = 1024     # bytes of shared memory that the system takes of each block, since sm_80
MUFU = 16           # lanes: reciprocals, conversions, counts of bits
SHARED_BYTES = 128  # bytes of shared memory

# Sources. What is assumed has no public figure that was found.
#   sizes, residency       CUDA Programming Guide, tables of compute capabilities
#   alu                    64 as of compute capability 7.x ("Throughput of Native Arithmetic
#                          Instructions"), assumed for all later ones: a lower bound on 12.0, where
#                          addition and comparison run on all 128 lanes
#   imad                   64: A100's whitepaper; measured on Hopper, Ada and 12.0; assumed for B200
#   A100                   NVIDIA A100 Tensor Core GPU Architecture whitepaper: 624 TOPS int8 at
#                          1.41 GHz, 108 SMs, 5120 B/clk of L2 (microbenchmarks reach 3840); 80 GB
#                          SXM data sheet: 2039 GB/s
#   H200                   H200 data sheet: 1979 TOPS int8 dense (3958 sparse), 4.8 TB/s, 132 SMs;
#                          H100 whitepaper: 4096 multiply-adds a clock, so 1.83 GHz. L2: assumed as
#                          A100's (microbenchmarks: 4900 to 5300). mma.sync: assumed, 62.9% of
#                          wgmma's peak, an average over types (Luo et al., Benchmarking and
#                          Dissecting the Nvidia Hopper GPU Architecture, arXiv 2402.13499)
#   4090                   Ada whitepaper: 660.6 TOPS int8 dense at 2.52 GHz, 128 SMs, 1008 GB/s.
#                          L2: assumed 2048 B/clk (a microbenchmark reaches 1946)
#   B200                   data sheet: 4.5 POPS int8 dense, 7.7 TB/s, 148 SMs; so about 1.86 GHz at
#                          8192 multiply-adds. mma.sync: assumed as Hopper's, in multiply-adds a
#                          clock. L2 assumed 10,240 B/clk
#   5090                   Blackwell RTX whitepaper: 838 TOPS int8 dense at 2.407 GHz, 170 SMs, 1792
#                          GB/s. L2: assumed 2048 B/clk
MACHINES = [
    Machine("H200", "90a", 132, 1.83, 4.8e12, 5120, 4096, 2576, 233472, 64, 32, 64, 128, 64),
    Machine("A100", "80", 108, 1.41, 2.039e12, 5120, 2048, 2048, 167936, 64, 32, 64, 64, 64),
    Machine("4090", "89", 128, 2.52, 1.008e12, 2048, 1024, 1024, 102400, 48, 24, 64, 128, 64),
    Machine("B200", "100a", 148, 1.86, 7.7e12, 10240, 8192, 2576, 233472, 64, 32, 64, 128, 64),
    Machine("5090", "120a", 170, 2.407, 1.792e12, 2048, 1024, 1024, 102400, 48, 24, 64, 128, 64),
]


def occupancy(machine, threads, registers, shared):
    """(blocks of a kernel that a multiprocessor holds at a time, what limits them)."""
    warps = -(-threads // 32)
    by_warp = -(-registers * 32 // 256) * 256
    limits = {
        "warps": machine.warps // warps,
        "registers": REGISTERS // (by_warp * warps),
        "shared memory": machine.shared // (shared + RESERVED),
        "blocks": machine.blocks,
    }
    least = min(limits, key=limits.get)
    return limits[least], least
