// What the roles of a block of the wgmma matmul share (matmul_wgmma.cuh): the sizes of a product's
// stages, the memory behind the ring, and places in it. Not yet run on hardware.
#pragma once

#include "wgmma_epilogue.cuh"
#include "wgmma_plan.cuh"

namespace fp4 {

#if FP4_SM == 90

constexpr int TILE_M = TILE_ROWS;

template <int PRODUCT>
struct WgmmaShape {
    typedef Operands<PRODUCT> Of;
    typedef Fold<Of::A_ENCODING> A;
    typedef Fold<Of::B_ENCODING> B;
    static_assert(A::WIDTH == B::WIDTH, "levels");
    static constexpr int WIDTH = A::WIDTH;
    static constexpr int SUMS = A::PLANES; // plane i of A by plane i of B, or by its only one
    static_assert(B::PLANES == SUMS || B::PLANES == 1, "");
    static constexpr int TILE_N = PRODUCT == MXFP4 ? 256 : 128;
    static constexpr int B_TILES = TILE_N / TILE_ROWS;
    // The stages of a slice: all planes in one, or of NVFP4 one each.
    static constexpr int PARTS = B::PLANES;
    static constexpr int PART_SUMS = SUMS / PARTS;
    // Whether the last part's plane of A is the sum of the two before, added in registers.
    static constexpr bool ADDS = PARTS == 3;
    static constexpr int A_BYTES = PART_SUMS * PLANE_BYTES, B_BYTES = PLANE_BYTES; // of a part of a block
    static constexpr int STAGE_BYTES = A_BYTES + B_TILES * B_BYTES;
    static constexpr int STAGES = 196608 / STAGE_BYTES;
    // Of a thread that copies and of one that multiplies: 504 for three, of which two multiply.
    static constexpr int MANY_REGISTERS = PRODUCT == NVFP4 ? 232 : 208, FEW_REGISTERS = 504 - 2 * MANY_REGISTERS;
    // The largest sum of steps in units of the lowest level.
    static constexpr u32 MOST_STEPS = 0x7FFFFFFFu / (STEP_K * A::LARGEST * B::LARGEST);
    // log2 of the unit of a row of either side with base 0 and window 0.
    static constexpr int A_EXPONENT = Of::A::UNIT + A::SCALE_UNIT, B_EXPONENT = Of::B::UNIT + B::SCALE_UNIT;

    // The digits' sums in units of the product.
    __device__ static __forceinline__ auto units(const Digits<SUMS>& digits) {
        const int(&sums)[SUMS] = digits.sums;
        if constexpr (PRODUCT == MXFP4) {
            return sums[0];
        } else if constexpr (PRODUCT == NVFP4) {
            const int hh = sums[0], ll = sums[1], mixed = (int)((u32)sums[2] - (u32)hh - (u32)ll);
            return (i64)hh * 4096 + (i64)mixed * 64 + ll;
        } else {
            return (i64)sums[0] * 16 + sums[1];
        }
    }
};

// Shared memory behind the ring.
template <int PRODUCT>
struct WgmmaShared {
    typedef WgmmaShape<PRODUCT> Shape;
    TilePlanner planner;
    TileScales<Shape::TILE_N> scales[2];
    u64 full[Shape::STAGES], empty[Shape::STAGES];
    u64 planned[2], scaled[2], taken[2];
    u64 joined;
    TilePlan plans[2];
    int last[2];             // of the warpgroups: whether it came last of all ranges
    int down, across, units; // here, because registers are short
    int alone, joins;        // the producer's: whether the unit before was not paired; joins so far
};
static_assert(4 * 49152 + sizeof(WgmmaShared<MXFP4>) <= WGMMA_SHARED, "");
static_assert(6 * 32768 + sizeof(WgmmaShared<NVFP4>) <= WGMMA_SHARED, "");

constexpr int CLUSTER = WGMMA_CLUSTER, CONSUMERS = 8; // blocks; warps that multiply

// A place in a ring, the parities of all slots' rounds, and in the two highest bits, because
// registers are short, whose turn it is of two plans and scales, as Turn has it.
struct RingPlace {
    int slot;
    u32 parities;

    __device__ __forceinline__ void next_turn() { parities += 1u << 30; }
    __device__ __forceinline__ int side() const { return (int)(parities >> 30 & 1u); }
    __device__ __forceinline__ u32 turn_parity() const { return parities >> 31; }

    __device__ __forceinline__ u32 parity() const { return parity(slot); }
    __device__ __forceinline__ u32 parity(int of) const { return parities >> of & 1u; }
    __device__ __forceinline__ int before(int stages) const { return slot == 0 ? stages - 1 : slot - 1; }
    __device__ __forceinline__ void next(int stages) {
        parities ^= 1u << slot;
        slot = slot + 1 == stages ? 0 : slot + 1;
    }
};

// Whose turn it is of two plans and scales.
struct Turn {
    int turn = 0;

    __device__ __forceinline__ void next() { turn++; }
    __device__ __forceinline__ int side() const { return turn & 1; }
    __device__ __forceinline__ u32 parity() const { return (u32)(turn >> 1) & 1u; }
};

#endif // FP4_SM == 90

} // namespace fp4
