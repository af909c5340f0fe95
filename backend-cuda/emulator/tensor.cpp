// Tensor core operations: gather the fragments of a warp into plain matrices, multiply them by
// plain loops, scatter the result. The layouts are those at the top of kernels/device.cuh.

#include "operations.hpp"

#include "block.hpp"
#include "errors.hpp"

#include <cstring>
#include <vector>

namespace emulator {
namespace {

int element(unsigned char byte, bool is_unsigned) {
    return is_unsigned ? static_cast<int>(byte) : static_cast<int>(static_cast<signed char>(byte));
}

// A[16][k] from the fragment registers of 32 lanes, k = 16 or 32.
template <int K>
void gather_a(int (&a)[16][K], const unsigned* const registers[32], bool is_unsigned) {
    for (int lane = 0; lane < 32; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < K / 8; r++) {
            unsigned char bytes[4];
            std::memcpy(bytes, &registers[lane][r], 4);
            for (int i = 0; i < 4; i++) a[g + r % 2 * 8][t * 4 + r / 2 * 16 + i] = element(bytes[i], is_unsigned);
        }
    }
}

// acc[16][N] += a[16][K] * b[K][N]
template <int K>
void multiply(int* acc, const int (&a)[16][K], const int* b, int n) {
    for (int row = 0; row < 16; row++)
        for (int k = 0; k < K; k++) {
            int left = a[row][k];
            if (left == 0) continue;
            const int* right = b + k * n;
            int* out = acc + row * n;
            // Unsigned: an overflowing int32 accumulator wraps, as without .satfinite.
            for (int j = 0; j < n; j++)
                out[j] = static_cast<int>(static_cast<unsigned>(out[j]) + static_cast<unsigned>(left * right[j]));
        }
}

struct MmaOperand {
    int* d;
    const unsigned *a, *b;
    bool a_unsigned;
};

template <int K>
void compute_mma(void* const operands[32], unsigned) {
    const unsigned* registers[32];
    for (int lane = 0; lane < 32; lane++) registers[lane] = static_cast<MmaOperand*>(operands[lane])->a;
    int a[16][K], b[K][8], d[16][8];
    gather_a(a, registers, static_cast<MmaOperand*>(operands[0])->a_unsigned);
    for (int lane = 0; lane < 32; lane++) {
        auto* own = static_cast<MmaOperand*>(operands[lane]);
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < K / 16; r++)
            for (int i = 0; i < 4; i++)
                b[t * 4 + r * 16 + i][g] = element(static_cast<unsigned char>(own->b[r] >> 8 * i), false);
        for (int r = 0; r < 4; r++) d[g + r / 2 * 8][t * 2 + r % 2] = own->d[r];
    }
    multiply(&d[0][0], a, &b[0][0], 8);
    for (int lane = 0; lane < 32; lane++) {
        int g = lane / 4, t = lane % 4;
        for (int r = 0; r < 4; r++) static_cast<MmaOperand*>(operands[lane])->d[r] = d[g + r / 2 * 8][t * 2 + r % 2];
    }
}

struct LdmatrixOperand {
    unsigned* r;
    const void* row;
};

template <int Matrices, bool Transposed>
void compute_ldmatrix(void* const operands[32], unsigned) {
    for (int i = 0; i < Matrices; i++) {
        std::uint16_t matrix[8][8];
        for (int r = 0; r < 8; r++) {
            const void* row = static_cast<LdmatrixOperand*>(operands[8 * i + r])->row;
            block->check_shared("ldmatrix", row, 16, 16);
            std::memcpy(matrix[r], row, 16);
        }
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = lane % 4;
            unsigned low = Transposed ? matrix[2 * t][g] : matrix[g][2 * t];
            unsigned high = Transposed ? matrix[2 * t + 1][g] : matrix[g][2 * t + 1];
            static_cast<LdmatrixOperand*>(operands[lane])->r[i] = low | high << 16;
        }
    }
}

constexpr unsigned full = ~0u;

} // namespace

void mma(int (&d)[4], const unsigned* a, const unsigned* b, int k, bool a_unsigned) {
    MmaOperand operand{d, a, b, a_unsigned};
    const char* name = k == 32 ? (a_unsigned ? "mma.m16n8k32.u8" : "mma.m16n8k32.s8")
                               : (a_unsigned ? "mma.m16n8k16.u8" : "mma.m16n8k16.s8");
    warp_operation(name, full, &operand, k == 32 ? compute_mma<32> : compute_mma<16>);
}

void ldmatrix(unsigned* r, const void* row, int matrices, bool transposed) {
    LdmatrixOperand operand{r, row};
    if (transposed)
        warp_operation("ldmatrix.x4.trans", full, &operand, compute_ldmatrix<4, true>);
    else if (matrices == 4)
        warp_operation("ldmatrix.x4", full, &operand, compute_ldmatrix<4, false>);
    else
        warp_operation("ldmatrix.x2", full, &operand, compute_ldmatrix<2, false>);
}

// ---- wgmma ----
//
// Each warp does its own 16 rows, when it waits for them (or, early, when its last lane issues): a
// warp that runs ahead and frees a buffer too soon thus breaks the result of a slower one. The
// accumulators stay where the kernel has them, so a use before the wait reads old values; A in
// registers is taken when it is issued.

namespace {

// Where row `row`, 16-byte piece `piece` (0 or 1) of an operand lies.
const unsigned char* operand_piece(std::uint64_t descriptor, unsigned row, unsigned piece) {
    unsigned start = static_cast<unsigned>(descriptor & 0x3FFF) << 4;
    unsigned lead = static_cast<unsigned>(descriptor >> 16 & 0x3FFF) << 4;
    unsigned stride = static_cast<unsigned>(descriptor >> 32 & 0x3FFF) << 4;
    unsigned address = 0;
    switch (descriptor >> 62) {
    case 0: address = start + row % 8 * 16 + row / 8 * stride + piece * lead; break;
    case 1:
        address = start + row % 8 * 128 + row / 8 * stride + piece * 16;
        address ^= (address >> 7 & 7) << 4;
        break;
    case 2:
        address = start + row % 8 * 64 + row / 8 * stride + piece * 16;
        address ^= (address >> 7 & 3) << 4;
        break;
    case 3:
        address = start + row % 8 * 32 + row / 8 * stride + piece * 16;
        address ^= (address >> 7 & 1) << 4;
        break;
    }
    return block->shared + address;
}

// A swizzled tile starts at a multiple of its atom, but for steps along k inside of a row.
void check_descriptor(std::uint64_t descriptor) {
    unsigned start = static_cast<unsigned>(descriptor & 0x3FFF) << 4;
    auto mode = static_cast<unsigned>(descriptor >> 62);
    unsigned pitch = mode == 1 ? 128 : mode == 2 ? 64 : mode == 3 ? 32 : 0;
    if (pitch && start % (8 * pitch) >= pitch)
        block->fault(error::launch_failed,
                     "wgmma: the descriptor's start, shared memory + %u, is not in the first row of a %u-byte swizzle atom",
                     start, pitch);
    unsigned stride = static_cast<unsigned>(descriptor >> 32 & 0x3FFF) << 4;
    if (pitch && stride % (8 * pitch) != 0)
        block->fault(error::launch_failed, "wgmma: a stride of %u bytes between atoms of %u", stride, 8 * pitch);
    if (descriptor >> 49 & 7) block->fault(error::launch_failed, "wgmma: a base offset is not supported");
}

void read_rows(unsigned char (*rows)[32], std::uint64_t descriptor, unsigned first, unsigned count) {
    for (unsigned row = 0; row < count; row++)
        for (unsigned piece = 0; piece < 2; piece++) {
            const unsigned char* from = operand_piece(descriptor, first + row, piece);
            block->check_shared("wgmma", from, 16, 16);
            std::memcpy(rows[row] + 16 * piece, from, 16);
        }
}

void execute(Wgmma& w, unsigned warp_in_group) {
    unsigned char bytes[256][32];
    int *b = block->scratch.data(), *d = b + 32 * 256;
    int a[16][32];
    auto n = static_cast<int>(w.n);
    if (w.a_in_registers) {
        const unsigned* registers[32];
        for (int lane = 0; lane < 32; lane++) registers[lane] = w.a[lane];
        gather_a(a, registers, w.a_unsigned);
    } else {
        read_rows(bytes, w.a_descriptor, 16 * warp_in_group, 16);
        for (int row = 0; row < 16; row++)
            for (int k = 0; k < 32; k++) a[row][k] = element(bytes[row][k], w.a_unsigned);
    }
    read_rows(bytes, w.b_descriptor, 0, w.n);
    for (int k = 0; k < 32; k++)
        for (int j = 0; j < n; j++) b[k * n + j] = element(bytes[j][k], false);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < n / 2; i++) {
            int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            d[row * n + column] = w.add ? w.d[lane][i] : 0;
        }
    multiply(d, a, b, n);
    for (int lane = 0; lane < 32; lane++)
        for (int i = 0; i < n / 2; i++) {
            int row = lane / 4 + i % 4 / 2 * 8, column = i / 4 * 8 + lane % 4 * 2 + i % 2;
            w.d[lane][i] = d[row * n + column];
        }
    w.done = true;
}

// Every lane of the warp has issued the same wgmmas.
void check_issued(const Warp& warp, const char* operation) {
    for (unsigned lane = 0; lane < 32; lane++)
        if (warp.threads[lane].wgmma_issued != warp.threads[0].wgmma_issued)
            block->fault(error::launch_failed, "%s: lane 0 has issued %u wgmmas, lane %u has issued %u", operation,
                         warp.threads[0].wgmma_issued, lane, warp.threads[lane].wgmma_issued);
}

} // namespace

void wgmma_fence() { current->wgmma_fenced = true; }

void wgmma_issue(int* d, int n, bool a_unsigned, const unsigned* a, std::uint64_t a_descriptor,
                 std::uint64_t b_descriptor, bool add) {
    Thread& self = *current;
    Warp& warp = *self.warp;
    if (block->threads() < (warp.rank / 4 + 1) * 128)
        block->fault(error::launch_failed, "wgmma: warp %u is not in a full warpgroup of four warps", warp.rank);
    if (!self.wgmma_fenced)
        block->fault(error::launch_failed, "wgmma: no wgmma_fence() since the kernel began or since the last wgmma_wait()");
    unsigned at = self.wgmma_issued++ - warp.wgmma_first;
    if (at == warp.wgmmas.size()) {
        Wgmma fresh{};
        fresh.n = static_cast<unsigned>(n);
        fresh.a_unsigned = a_unsigned;
        fresh.a_in_registers = a != nullptr;
        fresh.a_descriptor = a_descriptor;
        fresh.b_descriptor = b_descriptor;
        fresh.add = add;
        warp.wgmmas.push_back(fresh);
        if (!a) check_descriptor(a_descriptor);
        check_descriptor(b_descriptor);
    }
    Wgmma& w = warp.wgmmas[at];
    if (w.n != static_cast<unsigned>(n) || w.a_unsigned != a_unsigned || w.a_in_registers != (a != nullptr) ||
        w.a_descriptor != a_descriptor || w.b_descriptor != b_descriptor || w.add != add)
        block->fault(error::launch_failed, "wgmma: the lanes of warp %u differ in shape, descriptor or scale", warp.rank);
    w.d[self.lane] = d;
    if (a) std::memcpy(w.a[self.lane], a, sizeof w.a[0]);
    w.lanes++;
    if (w.lanes == 32 && !options().late) execute(w, warp.rank % 4);
}

void wgmma_commit() {
    warp_operation("wgmma.commit_group", full, current, [](void* const operands[32], unsigned) {
        Warp& warp = *static_cast<Thread*>(operands[0])->warp;
        check_issued(warp, "wgmma.commit_group");
        warp.wgmma_groups.push_back(warp.wgmma_first + static_cast<unsigned>(warp.wgmmas.size()));
    });
}

void wgmma_wait(int left) {
    struct Operand {
        Thread* thread;
        int left;
    } operand{current, left};
    warp_operation("wgmma.wait_group", full, &operand, [](void* const operands[32], unsigned) {
        auto* first = static_cast<Operand*>(operands[0]);
        Warp& warp = *first->thread->warp;
        auto& groups = warp.wgmma_groups;
        auto keep = static_cast<std::size_t>(first->left);
        if (groups.size() > keep) {
            unsigned end = groups[groups.size() - keep - 1];
            groups.erase(groups.begin(), groups.end() - static_cast<std::ptrdiff_t>(keep));
            unsigned count = end - warp.wgmma_first;
            for (unsigned i = 0; i < count; i++)
                if (!warp.wgmmas[i].done) execute(warp.wgmmas[i], warp.rank % 4);
            warp.wgmmas.erase(warp.wgmmas.begin(), warp.wgmmas.begin() + count);
            warp.wgmma_first = end;
        }
        for (unsigned lane = 0; lane < 32; lane++) warp.threads[lane].wgmma_fenced = false;
    });
}

std::uint64_t smem_descriptor(const void* tile, unsigned lead_bytes, unsigned stride_bytes, unsigned swizzle) {
    block->check_shared("smem_descriptor", tile, 16, 16);
    auto offset = static_cast<std::uint64_t>(static_cast<const unsigned char*>(tile) - block->shared);
    return (offset & 0x3FFFF) >> 4 | std::uint64_t{(lead_bytes & 0x3FFFF) >> 4} << 16 |
           std::uint64_t{(stride_bytes & 0x3FFFF) >> 4} << 32 | std::uint64_t{swizzle} << 62;
}

} // namespace emulator
