// The wgmma matmul on folded operands, common to its products (C6, C10): Hopper, many rows of A.
// Not yet run on hardware.
//
//     grid: a block a multiprocessor, in clusters of two; each cluster takes pairs of tiles of 128
//     rows of A x TILE_N rows of B over ranges of K (wgmma_plan.cuh), a tile a block, by three
//     roles that run ahead of each other:
//
//     warpgroup 0, warp 0     for each tile: its plan (wgmma_plan.cuh), which it publishes; then a
//                             lane, for each product: bulk copies of its blocks into the ring
//     warpgroup 0, warp 1     for each tile: the scales of rows and columns (wgmma_epilogue.cuh)
//     warpgroups 1 and 2      for each tile, 64 rows each, accumulators in registers:
//         for each level of the plan from the highest down:
//             sums <<= WIDTH * (levels since the last one)     Horner's scheme in the window base
//             for each stage: wait full; wgmma; when they are done: arrive `empty`
//         several ranges of K: sums are added to int32 in memory; who comes last goes on
//         units = sums; NVFP4: hh 4096 + (ss - hh - ll) 64 + ll; MXINT8: hi 16 + lo
//         out = round(f32(units * 2^exponent) * alpha_i + bias_j)
//
// So the next tile is planned, and its first stages are copied, under the end of this one. Plans
// and scales are two of each, passed on by mbarriers: `planned` and `scaled` say that they are
// written, `taken` that all who read them have. The ring is written by bulk copies alone and read
// by wgmma, whose end is waited for before `empty`; where ldmatrix reads it (NVFP4), a proxy fence
// lies between. Every tile begins at slot 0.
//
// Clusters. Two plain tiles below each other have the same stages of B: paired. Of each, a block
// copies its half of B into the shared memory of both (multicast) and all of its own A, so L2 gives
// half of B's bytes. `full` counts the bytes of both halves; it may be that the other's come before
// the block says how many it expects. `empty` counts 16 warps:
//
//     paired      the 8 of each block arrive in both blocks: who has waited for `empty` may write to
//                 the slot of either
//     alone       the 8 of the block arrive twice
//
// A block that was alone may still use its slots when the other begins a paired tile, so before
// one that follows another kind both wait until all own slots are empty, say so in the other's
// `joined`, and wait for the other's word. Arrivals never come too early: a warp of the other block
// arrives for a paired stage only after this block has copied its half of it, and that was after
// this block's phase of `empty` before it had ended. Blocks decide alike what is paired, and end
// together (barrier.cluster), so that nobody writes to memory of a block that has gone.
//
// Ranges of K, where there are few tiles. Sums of a range are in the same units as those of all
// (wgmma_plan.cuh), and their sum modulo 2^32 is exact by the bound: the bits do not depend on how
// K is cut. Each warpgroup adds its 64 rows to `sums`; the one that comes last takes them back,
// leaves zeros, and ends the tile. A listed tile is one range's part of the list, or one product
// of zeros.
//
// A tile that its plan leaves goes into the list of `left` ones, which another kernel walks.
//
// NVFP4, three products (Karatsuba): with v = 64 hi + lo on both sides,
//     a b = 4096 hi hi' + 64 ((hi + lo)(hi' + lo') - hi hi' - lo lo') + lo lo'.
// The sums hh (L = 90) and ll (32) fit by the plan's bound. The mixed sum hi lo' + lo hi' has terms
// of at most 2 * 90 * 32 = 5760 < 90^2, so it fits as well, and ss - hh - ll is it modulo 2^32
// although ss, with terms of up to 122^2, may wrap. |units| < 2^31 * (4096 + 64 + 1) < 2^44.
//
// A's third plane is not copied: hi + lo, at most 122, is added in registers, from which wgmma
// takes it. B's must lie in shared memory, and is copied. To make it there would read 32 KiB and
// write 16 a slice, 384 clocks of shared memory beside the 1280 that wgmma and ldmatrix read for
// (counted), where the tensor cores take 1536; and L2, which it would relieve, needs 1478 for the
// 56 KiB of a paired tile.
//
// MXINT8 by MXFP4, two products: both digits of A by the one of B, each a sum that fits by the
// bound. |units| < 2^31 * 17 < 2^36.
//
// Cost. A stage is a slice of K = 128, of NVFP4 one of its three planes: 48 KiB and 1024 clocks of
// the tensor cores for MXFP4 (128 x 256 x 128) and for MXINT8 (128 x 128 x 128, two products), 32
// KiB and 512 clocks for NVFP4 (128 x 128 x 128), every third of 16 KiB. A stage costs the producer
// a wait and two or three copies. From L2, of paired tiles: 32, 40 and 24 KiB (NVFP4's third: 8).
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

// A place in a ring, and the parities of all slots' rounds.
struct RingPlace {
    int slot;
    u32 parities;

    __device__ __forceinline__ u32 parity() const { return parity(slot); }
    __device__ __forceinline__ u32 parity(int of) const { return parities >> of & 1u; }
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

// A block of a tile, or zeros.
__device__ __forceinline__ const u8* block_at(const WgmmaArgs& p, const u8* tile, u32 block, int bytes) {
    return block == NO_BLOCK ? p.zeros : tile + (i64)block * bytes;
}

// Waits until both blocks of the cluster may write to all slots of both.
template <int PRODUCT>
__device__ __forceinline__ void join(WgmmaShared<PRODUCT>& shared, const RingPlace& at) {
#pragma unroll 1
    for (int slot = 0; slot < WgmmaShape<PRODUCT>::STAGES; slot++) mbarrier_wait_cluster(&shared.empty[slot], at.parity(slot));
    mbarrier_arrive_in(&shared.joined, cluster_rank() ^ 1);
    mbarrier_wait_cluster(&shared.joined, (u32)shared.joins & 1u);
    shared.joins++;
}

// The stages of a plain tile, whose blocks follow each other from `a` and `b` on: all of A's, and of
// B's one piece at `piece` if it is paired, or its tiles, `stride` bytes apart. `bytes` are all of
// B's in a stage.
template <int PRODUCT, bool PAIRED>
__device__ __forceinline__ void produce_plain(unsigned char* ring, WgmmaShared<PRODUCT>& shared, RingPlace& at, int stages,
                                              const u8* a, const u8* b, i64 stride, u32 bytes) {
    typedef WgmmaShape<PRODUCT> Shape;
    constexpr int PARTS = Shape::PARTS;
    // A paired block's piece: one of two tiles, or half of the only one.
    const u32 piece = bytes / CLUSTER, from = PAIRED ? cluster_rank() * piece : 0;
    if (PAIRED) b += Shape::B_TILES == 1 || bytes == Shape::B_BYTES ? (i64)from : (i64)cluster_rank() * stride;
#pragma unroll 1
    for (int stage = 0, part = 0; stage < stages; stage++) {
        const bool with_a = !Shape::ADDS || part < PARTS - 1;
        part = part < PARTS - 1 ? part + 1 : 0;
        unsigned char* to = ring + at.slot * Shape::STAGE_BYTES;
        u64* full = &shared.full[at.slot];
        mbarrier_wait_cluster(&shared.empty[at.slot], at.parity());
        mbarrier_arrive_expect_tx(full, bytes + (with_a ? Shape::A_BYTES : 0));
        if (with_a) bulk_copy_g2s(to, a, Shape::A_BYTES, full);
        if (PAIRED) {
            bulk_copy_multicast(to + Shape::A_BYTES + from, b, piece, full, (1 << CLUSTER) - 1);
        } else {
            bulk_copy_g2s(to + Shape::A_BYTES, b, Shape::B_BYTES, full);
            if (Shape::B_TILES == 2 && bytes > Shape::B_BYTES) bulk_copy_g2s(to + Shape::A_BYTES + Shape::B_BYTES, b + stride, Shape::B_BYTES, full);
        }
        a += Shape::A_BYTES;
        b += Shape::B_BYTES;
        at.next(Shape::STAGES);
    }
}

// The stages of a list of products.
template <int PRODUCT>
__device__ __forceinline__ void produce_listed(const WgmmaArgs& p, unsigned char* ring, WgmmaShared<PRODUCT>& shared, RingPlace& at,
                                               int products, const u8* a, const u8* b, i64 stride, u32 bytes) {
    typedef WgmmaShape<PRODUCT> Shape;
    constexpr int B_TILES = Shape::B_TILES, PARTS = Shape::PARTS;
#pragma unroll 1
    for (int i = 0; i < products; i++) {
        const uint4 blocks = shared.planner.list[i];
        const u8* from[1 + B_TILES] = {block_at(p, a, blocks.x, PARTS * Shape::A_BYTES),
                                       block_at(p, b, blocks.y, PARTS * Shape::B_BYTES)};
        if (B_TILES == 2) from[B_TILES] = block_at(p, b + stride, blocks.z, PARTS * Shape::B_BYTES);
#pragma unroll 1
        for (int part = 0; part < PARTS; part++) {
            unsigned char* to = ring + at.slot * Shape::STAGE_BYTES;
            u64* full = &shared.full[at.slot];
            mbarrier_wait_cluster(&shared.empty[at.slot], at.parity());
            const bool with_a = !Shape::ADDS || part < PARTS - 1;
            mbarrier_arrive_expect_tx(full, bytes + (with_a ? Shape::A_BYTES : 0));
            if (with_a) bulk_copy_g2s(to, from[0] + part * Shape::A_BYTES, Shape::A_BYTES, full);
            bulk_copy_g2s(to + Shape::A_BYTES, from[1] + part * Shape::B_BYTES, Shape::B_BYTES, full);
            if (B_TILES == 2 && bytes > Shape::B_BYTES) {
                bulk_copy_g2s(to + Shape::A_BYTES + Shape::B_BYTES, from[B_TILES], Shape::B_BYTES, full);
            }
            at.next(Shape::STAGES);
        }
    }
}

template <int PRODUCT>
__device__ __forceinline__ void wgmma_produce(const WgmmaArgs& p, unsigned char* ring, WgmmaShared<PRODUCT>& shared) {
    typedef WgmmaShape<PRODUCT> Shape;
    constexpr int B_TILES = Shape::B_TILES, PARTS = Shape::PARTS;
    const int slices = p.k_pad / SLICE_K;
    RingPlace at = {0, ~0u}; // the first round of `empty` is free, and of `taken`
    Turn turn;
    for (int unit = (int)blockIdx.x / CLUSTER; unit < shared.units; unit += (int)gridDim.x / CLUSTER) {
        TilePlan& plan = shared.plans[turn.side()];
        mbarrier_wait(&shared.taken[turn.side()], turn.parity() ^ 1);
        if (elect_lane()) {
            const int rank = (int)cluster_rank();
            const WgmmaWork work = WgmmaWork::at(unit, rank, shared.down, shared.across);
            plan.place = work.here ? work.place : TilePlace{NO_TILE, 0};
            plan.mate = work.stack ? work.place.m + 1 - 2 * rank : work.place.m;
            plan.range = work.range;
            plan.first = work.range * p.range_slices;
            plan.end = slices - plan.first < p.range_slices ? slices : plan.first + p.range_slices;
        }
        __syncwarp(ALL_LANES);
        if (plan.place.m == NO_TILE) { // nobody is told
            if (elect_lane()) shared.alone = 1;
            __syncwarp(ALL_LANES);
            continue;
        }
        shared.planner.template plan<B_TILES, Shape::WIDTH>(p.a, p.b, slices, Shape::MOST_STEPS, plan);
        at.slot = 0;
        if (elect_lane()) {
            mbarrier_arrive(&shared.planned[turn.side()]);
            const bool left = plan.left != 0, listed = plan.listed != 0, paired = plan.paired != 0;
            int products = 0;
            for (int level = plan.lowest; level <= plan.highest; level++) products += plan.products[level];
            const int a_tile = plan.place.m, b_tile = plan.place.n * B_TILES;
            const int b_row_tiles = (p.b.rows + TILE_ROWS - 1) / TILE_ROWS;
            const u32 b_bytes = (u32)((b_row_tiles - b_tile < B_TILES ? b_row_tiles - b_tile : B_TILES) * Shape::B_BYTES);
            const i64 b_stride = (i64)(slices + p.b.extra) * (PARTS * Shape::B_BYTES);
            const u8* a_from = p.a.blocks + (i64)a_tile * (slices + p.a.extra) * (PARTS * Shape::A_BYTES);
            const u8* b_from = p.b.blocks + b_tile * b_stride;
            if (left) {
                if (plan.range == 0) p.left[1 + atomicAdd(p.left, 1u)] = (u32)(a_tile * shared.across + plan.place.n);
            } else if (listed) {
                produce_listed<PRODUCT>(p, ring, shared, at, products, a_from, b_from, b_stride, b_bytes);
            } else {
                a_from += (i64)plan.first * (PARTS * Shape::A_BYTES);
                b_from += (i64)plan.first * (PARTS * Shape::B_BYTES);
                if (paired) {
                    if (shared.alone != 0) join<PRODUCT>(shared, at);
                    produce_plain<PRODUCT, true>(ring, shared, at, products * PARTS, a_from, b_from, b_stride, b_bytes);
                } else {
                    produce_plain<PRODUCT, false>(ring, shared, at, products * PARTS, a_from, b_from, b_stride, b_bytes);
                }
            }
            shared.alone = !paired;
        }
        __syncwarp(ALL_LANES);
        turn.next();
    }
    mbarrier_wait(&shared.taken[turn.side()], turn.parity() ^ 1);
    if (elect_lane()) {
        shared.plans[turn.side()].place.m = NO_TILE;
        mbarrier_arrive(&shared.planned[turn.side()]);
    }
}

template <int PRODUCT>
__device__ __forceinline__ void wgmma_scale(const WgmmaArgs& p, WgmmaShared<PRODUCT>& shared) {
    typedef WgmmaShape<PRODUCT> Shape;
    for (Turn turn;; turn.next()) {
        // The plan is made after `taken`: the scales of two tiles before have been read, too. This
        // warp is counted there: nobody waits for `scaled` of a tile that is left.
        mbarrier_wait(&shared.planned[turn.side()], turn.parity());
        const TilePlan& plan = shared.plans[turn.side()];
        const TilePlace place = plan.place;
        if (place.m == NO_TILE) return;
        if (!plan.left) {
            const int add_a = Shape::A_EXPONENT + Shape::WIDTH * (plan.lowest - 2 * WINDOW_BIAS);
            scale_tile<Shape::TILE_N>(p.outputs, p.a, p.b, place.m * TILE_M, place.n * Shape::TILE_N, add_a, Shape::B_EXPONENT,
                                      shared.scales[turn.side()]);
        }
        __syncwarp(ALL_LANES);
        if (threadIdx.x % 32 == 0) {
            mbarrier_arrive(&shared.scaled[turn.side()]);
            mbarrier_arrive(&shared.taken[turn.side()]);
        }
    }
}

constexpr int NO_SLOT = -1;
constexpr int STEP_OFFSET = 2 * PLANE_LEAD >> 4, PLANE_OFFSET = PLANE_BYTES >> 4; // in a descriptor's units

// The operands in a slot, of this warpgroup's 64 rows of A.
template <int PRODUCT>
struct Stage {
    unsigned char* at;

    __device__ __forceinline__ Stage(unsigned char* ring, int slot) : at(ring + slot * WgmmaShape<PRODUCT>::STAGE_BYTES) {}
    __device__ __forceinline__ u64 a() const {
        const int group = (int)threadIdx.x / 128 - 1;
        return smem_descriptor(at + group * (PLANE_BYTES / 2), PLANE_LEAD, PLANE_STRIDE, SWIZZLE_NONE);
    }
    __device__ __forceinline__ u64 b() const {
        return smem_descriptor(at + WgmmaShape<PRODUCT>::A_BYTES, PLANE_LEAD, PLANE_STRIDE, SWIZZLE_NONE);
    }
};

// Says that this warp has read a slot. By one lane.
template <int PRODUCT>
__device__ __forceinline__ void slot_read(WgmmaShared<PRODUCT>& shared, const TilePlan& plan, int slot) {
    if (plan.paired != 0) {
        mbarrier_arrive(&shared.empty[slot]);
        mbarrier_arrive_in(&shared.empty[slot], cluster_rank() ^ 1);
    } else {
        mbarrier_arrive(&shared.empty[slot], CLUSTER);
    }
}

// Says that this warp's wgmma of the last product have read their slots.
template <int PRODUCT>
__device__ __forceinline__ void give_back(WgmmaShared<PRODUCT>& shared, const TilePlan& plan, int last) {
    if (elect_lane()) {
        slot_read<PRODUCT>(shared, plan, last);
        if (WgmmaShape<PRODUCT>::ADDS) slot_read<PRODUCT>(shared, plan, last - 1);
    }
}

// sums += a product of blocks, or = unless it ADDs; it is under way afterwards. `last`, the last
// one's slot, is given back. All planes in one slot.
template <int PRODUCT, bool ADD, int SUMS, int REGISTERS>
__device__ __forceinline__ void multiply_at_once(int (&sums)[SUMS][REGISTERS], unsigned char* ring, WgmmaShared<PRODUCT>& shared,
                                                 const TilePlan& plan, RingPlace& at, int& last) {
    typedef WgmmaShape<PRODUCT> Shape;
    mbarrier_wait(&shared.full[at.slot], at.parity());
    const Stage<PRODUCT> stage(ring, at.slot);
    const u64 a = stage.a(), b = stage.b();
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < SLICE_STEPS; step++) {
#pragma unroll
        for (int i = 0; i < SUMS; i++) {
            wgmma_s8<Shape::TILE_N>(sums[i], a + (u64)(step * STEP_OFFSET + i * PLANE_OFFSET), b + (u64)(step * STEP_OFFSET),
                                    ADD || step > 0);
        }
    }
    wgmma_commit();
    if (last != NO_SLOT) {
        wgmma_wait<1>(); // those of the slot before
        give_back<PRODUCT>(shared, plan, last);
    }
    last = at.slot;
    at.next(Shape::STAGES);
}

// The same of three planes, hi, lo and their sum, a slot each, of which A's third is made here. Its
// registers, four for a step (with more the assembler serializes), may be written again when the
// wgmma that read them are done; while the warp fills them, a product of lo is under way.
template <int PRODUCT, bool ADD, int SUMS, int REGISTERS>
__device__ __forceinline__ void multiply_planes(int (&sums)[SUMS][REGISTERS], unsigned char* ring, WgmmaShared<PRODUCT>& shared,
                                                const TilePlan& plan, RingPlace& at, int& last) {
    typedef WgmmaShape<PRODUCT> Shape;
    constexpr int TILE_N = Shape::TILE_N;
    static_assert(Shape::STAGES % 3 == 0, "the three slots of a slice follow each other");
    const int first = at.slot;
    // The three have had as many rounds, as every tile begins at slot 0 and has whole slices.
    const u32 parity = at.parity();
    const Stage<PRODUCT> hi(ring, first), lo(ring, first + 1), sum(ring, first + 2);
    mbarrier_wait(&shared.full[first], parity);
    wgmma_fence();
#pragma unroll
    for (int step = 0; step < SLICE_STEPS; step++) {
        wgmma_s8<TILE_N>(sums[0], hi.a() + (u64)(step * STEP_OFFSET), hi.b() + (u64)(step * STEP_OFFSET), ADD || step > 0);
    }
    wgmma_commit();
    if (last != NO_SLOT) {
        wgmma_wait<1>(); // those of the slice before
        give_back<PRODUCT>(shared, plan, last);
    }
    mbarrier_wait(&shared.full[first + 1], parity);
    mbarrier_wait(&shared.full[first + 2], parity);
    // ldmatrix: this lane's row of a fragment, piece_at(16 warp + lane % 16, lane / 16 * 16).
    const u32 thread = (u32)thread_here() - 128, at_row = thread / 32 * 2 + thread / 8 % 2;
    const u32 piece = at_row * PLANE_STRIDE + thread / 16 % 2 * PLANE_LEAD + thread % 8 * 16;
#pragma unroll
    for (int step = 0; step < SLICE_STEPS; step++) {
        if (step > 0) wgmma_wait<1>(); // all but the last of lo: `added` has been read
        u32 added[4], low[4];
        ldmatrix_x4(added, hi.at + piece + step * 2 * PLANE_LEAD);
        ldmatrix_x4(low, lo.at + piece + step * 2 * PLANE_LEAD);
#pragma unroll
        for (int i = 0; i < 4; i++) added[i] = add_bytes(added[i], low[i]);
        wgmma_pin(added); // made before the fence, not below it
        wgmma_fence();
        wgmma_s8<TILE_N>(sums[2], added, sum.b() + (u64)(step * STEP_OFFSET), ADD || step > 0);
        wgmma_commit();
        wgmma_fence();
        wgmma_s8<TILE_N>(sums[1], lo.a() + (u64)(step * STEP_OFFSET), lo.b() + (u64)(step * STEP_OFFSET), ADD || step > 0);
        wgmma_commit();
    }
    fence_proxy_async_cluster(); // what ldmatrix has read may be copied over
    __syncwarp(ALL_LANES);
    if (elect_lane()) slot_read<PRODUCT>(shared, plan, first);
    last = first + 2;
    at.parities ^= 3u << first;
    at.slot = last;
    at.next(Shape::STAGES);
}

template <int PRODUCT, bool ADD, int SUMS, int REGISTERS>
__device__ __forceinline__ void multiply(int (&sums)[SUMS][REGISTERS], unsigned char* ring, WgmmaShared<PRODUCT>& shared,
                                         const TilePlan& plan, RingPlace& at, int& last) {
    if constexpr (WgmmaShape<PRODUCT>::ADDS) {
        multiply_planes<PRODUCT, ADD>(sums, ring, shared, plan, at, last);
    } else {
        multiply_at_once<PRODUCT, ADD>(sums, ring, shared, plan, at, last);
    }
}

// Adds the sums of this range to those in memory. True for the warpgroup that comes last, which has
// all of them then, and leaves zeros.
template <int PRODUCT, int SUMS, int REGISTERS>
__device__ __forceinline__ bool merge(const WgmmaArgs& p, WgmmaShared<PRODUCT>& shared, const TilePlace& place,
                                      int (&sums)[SUMS][REGISTERS]) {
    constexpr int THREADS = 32 * CONSUMERS;
    const int here = thread_here() - 128, group = here / 128, tile = place.m * shared.across + place.n;
    int* own = p.sums + (i64)tile * (SUMS * REGISTERS * THREADS) + here;
#pragma unroll
    for (int i = 0; i < SUMS * REGISTERS; i++) {
        const int sum = sums[i / REGISTERS][i % REGISTERS];
        atomicAdd(&own[i * THREADS], sum);
    }
    __threadfence(); // what this thread added is out before the arrival
    named_barrier_sync(1 + group, 128);
    if (here % 128 == 0) shared.last[group] = atomicAdd(&p.arrivals[2 * tile + group], 1u) == (u32)p.ranges - 1;
    named_barrier_sync(1 + group, 128);
    if (shared.last[group] == 0) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < SUMS * REGISTERS; i++) {
        sums[i / REGISTERS][i % REGISTERS] = *(volatile int*)&own[i * THREADS];
        own[i * THREADS] = 0;
    }
    if (here % 128 == 0) p.arrivals[2 * tile + group] = 0;
    return true;
}

template <int PRODUCT>
__device__ __forceinline__ void wgmma_consume(const WgmmaArgs& p, unsigned char* ring, WgmmaShared<PRODUCT>& shared) {
    typedef WgmmaShape<PRODUCT> Shape;
    constexpr int SUMS = Shape::SUMS, TILE_N = Shape::TILE_N, WIDTH = Shape::WIDTH;
    RingPlace at = {0, 0};
    for (Turn turn;; turn.next()) {
        mbarrier_wait(&shared.planned[turn.side()], turn.parity());
        const TilePlan& plan = shared.plans[turn.side()];
        if (plan.place.m == NO_TILE) return;
        if (!plan.left) {
            int sums[SUMS][TILE_N / 2];
            int last = NO_SLOT; // the slot whose wgmma may be under way
            // The first product replaces what is in the registers, which are free until then.
            at.slot = 0;
            multiply<PRODUCT, false>(sums, ring, shared, plan, at, last);
            int done = 1;
            for (int level = plan.highest, above = level; level >= plan.lowest; level--) {
                const int products = plan.products[level];
                if (products == 0 && level > plan.lowest) continue; // the last shift is to the lowest
                if (level != above) {
                    wgmma_wait<0>();
#pragma unroll
                    for (int i = 0; i < SUMS; i++) wgmma_pin(sums[i]);
#pragma unroll
                    for (int i = 0; i < SUMS; i++) {
#pragma unroll
                        for (int j = 0; j < TILE_N / 2; j++) sums[i][j] = (int)((u32)sums[i][j] << (WIDTH * (above - level)));
                    }
#pragma unroll
                    for (int i = 0; i < SUMS; i++) wgmma_pin(sums[i]); // shifted before the next fence
                    if (last != NO_SLOT) give_back<PRODUCT>(shared, plan, last);
                    last = NO_SLOT;
                    above = level;
                }
                for (int product = done; product < products; product++) multiply<PRODUCT, true>(sums, ring, shared, plan, at, last);
                done = 0;
            }
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < SUMS; i++) wgmma_pin(sums[i]);
            if (last != NO_SLOT) give_back<PRODUCT>(shared, plan, last);

            const bool ends = p.ranges == 1 || merge<PRODUCT>(p, shared, plan.place, sums);
            const TilePlace place = plan.place;
            const int here = thread_here() - 128, row = here / 32 * 16 + here % 32 / 4, column = 2 * (here % 4);
            const WarpPlace to = {place.m * TILE_M + row, place.n * TILE_N + column, row, column, p.a.rows, p.b.rows};
            if (ends && p.paths != nullptr && here == 0) {
                int rows = p.a.rows - place.m * TILE_M, columns = p.b.rows - place.n * TILE_N;
                u64 outputs = (u64)(rows < TILE_M ? rows : TILE_M) * (u64)(columns < TILE_N ? columns : TILE_N);
                atomicAdd(&p.paths[plan.planes != 0 ? 1 : 0], outputs);
            }
            const int exponent = Shape::A_EXPONENT + Shape::B_EXPONENT + WIDTH * (plan.lowest - 2 * WINDOW_BIAS);
            if (ends) {
                mbarrier_wait(&shared.scaled[turn.side()], turn.parity());
                store_tile<Shape>(sums, to, p.outputs, p.a, p.b, exponent, shared.scales[turn.side()]);
            }
        }
        __syncwarp(ALL_LANES);
        if (elect_lane()) mbarrier_arrive(&shared.taken[turn.side()]);
    }
}

template <int PRODUCT>
__device__ __forceinline__ void wgmma_matmul(const WgmmaArgs& p) {
    typedef WgmmaShape<PRODUCT> Shape;
    unsigned char* ring = dynamic_shared();
    WgmmaShared<PRODUCT>& shared = *(WgmmaShared<PRODUCT>*)(ring + Shape::STAGES * Shape::STAGE_BYTES);
    const int thread = (int)threadIdx.x;
    if (thread == 0) {
        for (int i = 0; i < Shape::STAGES; i++) {
            mbarrier_init(&shared.full[i], 1);
            mbarrier_init(&shared.empty[i], CLUSTER * CONSUMERS);
        }
        for (int i = 0; i < 2; i++) {
            mbarrier_init(&shared.planned[i], 1);
            mbarrier_init(&shared.scaled[i], 1);
            mbarrier_init(&shared.taken[i], CONSUMERS + 1); // and the warp of scales
        }
        mbarrier_init(&shared.joined, 1);
        fence_proxy_async();
        fence_mbarrier_init();
        shared.down = (p.a.rows + TILE_M - 1) / TILE_M;
        shared.across = (p.b.rows + Shape::TILE_N - 1) / Shape::TILE_N;
        shared.alone = shared.joins = 0;
        shared.units = WgmmaWork::pairs(shared.down, shared.across) * p.ranges;
    }
    __syncthreads();
    cluster_arrive();
    cluster_wait();
    if (thread < 128) {
        setmaxnreg_dec<Shape::FEW_REGISTERS>();
        if (thread < 32) {
            wgmma_produce<PRODUCT>(p, ring, shared);
        } else if (thread < 64) {
            wgmma_scale<PRODUCT>(p, shared);
        }
    } else {
        setmaxnreg_inc<Shape::MANY_REGISTERS>();
        wgmma_consume<PRODUCT>(p, ring, shared);
    }
    // The other block may still arrive here until its last product is done.
    cluster_arrive();
    cluster_wait();
}

#define WGMMA_KERNEL(name, PRODUCT)                              \
    CLUSTER_KERNEL(fp4::WGMMA_THREADS, fp4::WGMMA_CLUSTER)       \
    void name(fp4::WgmmaArgs p) { fp4::wgmma_matmul<PRODUCT>(p); } \
    EXPORT_CLUSTER(name, fp4::WGMMA_CLUSTER)

#endif // FP4_SM == 90

} // namespace fp4
