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
//     paired      the 8 of each block arrive in both blocks: who has waited for `empty` may write
//                 to the slot of either
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
// takes it. B's must lie in shared memory, and is copied. Shared memory is the limit (counted): in
// a slice wgmma and ldmatrix read 160 KiB and the copies write 80, 1920 clocks at 128 B a clock,
// where the tensor cores take 1536, and L2 1478 for the 56 KiB of a paired tile. To copy A's third
// plane too would cost it the same, 16 KiB written and read for the 32 that ldmatrix reads, and L2
// 1901; to make B's in place 256 clocks more, 32 KiB read and 16 written for 16 by the copy.
//
// MXINT8 by MXFP4, two products: both digits of A by the one of B, each a sum that fits by the
// bound. |units| < 2^31 * 17 < 2^36.
//
// Cost. A stage is a slice of K = 128, of NVFP4 one of its three planes: 48 KiB and 1024 clocks of
// the tensor cores for MXFP4 (128 x 256 x 128) and for MXINT8 (128 x 128 x 128, two products), 32
// KiB and 512 clocks for NVFP4 (128 x 128 x 128), every third of 16 KiB. A stage costs the producer
// a wait and two or three copies. From L2, of paired tiles: 32, 40 and 24 KiB (NVFP4's third: 8);
// to shared memory the whole stage is written all the same. With what wgmma reads those are 1024
// clocks of shared memory for MXFP4, no slack beside the tensor cores, and 1152 for MXINT8.
#pragma once

#include "wgmma_produce.cuh"

namespace fp4 {

#if FP4_SM == 90

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

// sums += a product of blocks, or = unless it ADDs; it is under way afterwards. The slot of the
// last one, if that is under way, is given back. All planes in one slot.
template <int PRODUCT, bool ADD, int SUMS, int REGISTERS>
__device__ __forceinline__ void multiply_at_once(int (&sums)[SUMS][REGISTERS], unsigned char* ring, WgmmaShared<PRODUCT>& shared,
                                                 const TilePlan& plan, RingPlace& at, bool& under_way) {
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
    if (under_way) {
        wgmma_wait<1>(); // those of the slot before
        give_back<PRODUCT>(shared, plan, at.before(Shape::STAGES));
    }
    under_way = true;
    at.next(Shape::STAGES);
}

// The same of three planes, hi, lo and their sum, a slot each, of which A's third is made here. Its
// registers, four for a step (with more the assembler serializes), may be written again when the
// wgmma that read them are done; while the warp fills them, a product of lo is under way.
template <int PRODUCT, bool ADD, int SUMS, int REGISTERS>
__device__ __forceinline__ void multiply_planes(int (&sums)[SUMS][REGISTERS], unsigned char* ring, WgmmaShared<PRODUCT>& shared,
                                                const TilePlan& plan, RingPlace& at, bool& under_way) {
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
    if (under_way) {
        wgmma_wait<1>(); // those of the slice before
        give_back<PRODUCT>(shared, plan, at.before(Shape::STAGES));
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
    fence_proxy_async(); // what ldmatrix has read may be copied over
    __syncwarp(ALL_LANES);
    if (elect_lane()) slot_read<PRODUCT>(shared, plan, first);
    under_way = true;
    at.parities ^= 3u << first;
    at.slot = first + 2;
    at.next(Shape::STAGES);
}

template <int PRODUCT, bool ADD, int SUMS, int REGISTERS>
__device__ __forceinline__ void multiply(int (&sums)[SUMS][REGISTERS], unsigned char* ring, WgmmaShared<PRODUCT>& shared,
                                         const TilePlan& plan, RingPlace& at, bool& under_way) {
    if constexpr (WgmmaShape<PRODUCT>::ADDS) {
        multiply_planes<PRODUCT, ADD>(sums, ring, shared, plan, at, under_way);
    } else {
        multiply_at_once<PRODUCT, ADD>(sums, ring, shared, plan, at, under_way);
    }
}

// Adds the sums of this range to those in memory. True for the warpgroup that comes last, which has
// all of them then, and leaves zeros. By reading alone: the emulator runs one cluster after the
// other, so two ranges of a tile never meet here. Each thread's additions are out by its fence,
// those of all by the barrier, before the one arrival; who sees the last arrival says so by a
// barrier, then a fence, and reads past L1.
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
    for (;; at.next_turn()) {
        mbarrier_wait(&shared.planned[at.side()], at.turn_parity());
        const TilePlan& plan = shared.plans[at.side()];
        if (plan.place.m == NO_TILE) return;
        if (!plan.left) {
            int sums[SUMS][TILE_N / 2];
            bool under_way = false; // wgmma that read the slot before
            // The first product replaces what is in the registers, which are free until then.
            at.slot = 0;
            multiply<PRODUCT, false>(sums, ring, shared, plan, at, under_way);
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
                    if (under_way) give_back<PRODUCT>(shared, plan, at.before(Shape::STAGES));
                    under_way = false;
                    above = level;
                }
                // Counted down: one register less, of which NVFP4 has none to spare.
                for (int left = products - done; left > 0; left--) multiply<PRODUCT, true>(sums, ring, shared, plan, at, under_way);
                done = 0;
            }
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < SUMS; i++) wgmma_pin(sums[i]);
            if (under_way) give_back<PRODUCT>(shared, plan, at.before(Shape::STAGES));

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
                mbarrier_wait(&shared.scaled[at.side()], at.turn_parity());
                store_tile<Shape>(sums, to, p.outputs, p.a, p.b, exponent, shared.scales[at.side()]);
            }
        }
        __syncwarp(ALL_LANES);
        if (elect_lane()) mbarrier_arrive(&shared.taken[at.side()]);
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
