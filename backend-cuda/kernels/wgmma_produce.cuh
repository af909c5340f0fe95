// The producer of a block of the wgmma matmul (matmul_wgmma.cuh): a warp that plans a tile, then a
// lane of it that fills the ring, in one of three ways. Not yet run on hardware.
//
//     plain, paired   all of A's blocks, and half of B's into both blocks of the cluster
//     plain, alone    all of both
//     listed          the blocks that the plan's list names, or zeros; alone
#pragma once

#include "wgmma_shape.cuh"

namespace fp4 {

#if FP4_SM == 90

// A block of a tile, or zeros.
__device__ __forceinline__ const u8* block_at(const WgmmaArgs& p, const u8* tile, u32 block, int bytes) {
    return block == NO_BLOCK ? p.zeros : tile + (i64)block * bytes;
}

// Waits until both blocks of the cluster may write to all slots of both.
template <int PRODUCT>
__device__ __forceinline__ void join(WgmmaShared<PRODUCT>& shared, const RingPlace& at) {
#pragma unroll 1
    for (int slot = 0; slot < WgmmaShape<PRODUCT>::STAGES; slot++) mbarrier_wait(&shared.empty[slot], at.parity(slot));
    mbarrier_arrive_in(&shared.joined, cluster_rank() ^ 1);
    mbarrier_wait(&shared.joined, (u32)shared.joins & 1u);
    shared.joins++;
}

// The stages of a plain tile, whose blocks follow each other from `a` and `b` on: all of A's, and
// of B's one piece at `piece` if it is paired, or its tiles, `stride` bytes apart. `bytes` are all
// of B's in a stage.
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
        mbarrier_wait(&shared.empty[at.slot], at.parity());
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
            mbarrier_wait(&shared.empty[at.slot], at.parity());
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
        if (plan.place.m == NO_TILE) { // this block does nothing while the other one does its tile
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

#endif // FP4_SM == 90

} // namespace fp4
