// The wgmma matmul on folded operands, common to its products (C6, C10): Hopper, many rows of A.
// Not yet run on hardware.
//
//     block: 128 rows of A x TILE_N rows of B, accumulators in registers
//     everyone counts the products (block of A, block of B) of each level, the sum of their windows
//     if the bound below fails, or a tile has no folded form: todo[tile] = 1, and out
//     warpgroup 0, one thread: for each level from the highest down, for each product:
//         bulk copies of the two blocks into the ring, mbarrier `full`
//     warpgroups 1 and 2, 64 rows each:
//         for each level from the highest down:
//             sums <<= WIDTH * (levels since the last one)     Horner's scheme in the window base
//             for each stage: wait full; wgmma; when they are done: arrive `empty`
//         units = sums; NVFP4: hh 4096 + (ss - hh - ll) 64 + ll; MXINT8: hi 16 + lo
//         out = round(f32(units * 2^exponent) * alpha_i + bias_j)
//
// A product of blocks of windows p and q is an exact integer in units of 2^(base_a + base_b + WIDTH
// (p + q) + const), so the sums of a level share one unit for each output, and the whole of K is
// one integer in units of the lowest level, lowest. Data without outliers has one level and no
// shift.
//
// Bound. Let n_l be the number of products of level l and L_a, L_b the largest digits (fold.cuh):
//
//     32 * L_a * L_b * sum over l of n_l * 2^(WIDTH (l - lowest)) <= 2^31 - 1
//
// One step adds at most 32 L_a L_b in units of its level, so this bounds the final sum, which then
// is its own residue modulo 2^32, and wrapping on the way is harmless. With one level it is K <=
// 233,016 for MXFP4 (whole steps: 7281, K = 232,992), 8285 steps, K = 265,120, for NVFP4 and 10,922
// steps, K = 349,504, for MXINT8 by MXFP4.
//
// NVFP4, three products (Karatsuba): with v = 64 hi + lo on both sides,
//     a b = 4096 hi hi' + 64 ((hi + lo)(hi' + lo') - hi hi' - lo lo') + lo lo'.
// The sums hh (L = 90) and ll (32) fit by the bound. The mixed sum hi lo' + lo hi' has terms of at
// most 2 * 90 * 32 = 5760 < 90^2, so it fits as well, and ss - hh - ll is it modulo 2^32 although
// ss, with terms of up to 122^2, may wrap. |units| < 2^31 * (4096 + 64 + 1) < 2^63.
//
// MXINT8 by MXFP4, two products: both digits of A by the one of B, each a sum that fits by the
// bound. |units| < 2^31 * 17 < 2^36.
//
// Cost: SUMS wgmma products a step; 48 KiB a stage for 4 (MXFP4: 128 x 256 x 32; MXINT8: 128 x 128
// x 32, two products) or 2 (NVFP4: 128 x 128 x 32, three products) steps; the count reads two or
// three words for each step.
#pragma once

#include "exact.cuh"
#include "fold.cuh"

namespace fp4 {

#if FP4_SM == 90

constexpr int TILE_M = TILE_ROWS;
constexpr int RING_STAGES = 4;
constexpr int LEVELS = 2 * WINDOWS - 1;
constexpr int NO_SLOT = -1;

// What a product's units fit: int32 for one digit's sum, else int64.
template <int SUMS>
struct UnitsOf {
    typedef i64 Type;
};
template <>
struct UnitsOf<1> {
    typedef int Type;
};

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
    static constexpr int STAGE_STEPS = PRODUCT == NVFP4 ? 2 : 4;
    static constexpr int A_BYTES = A::PLANES * PLANE_BYTES, B_BYTES = B::PLANES * PLANE_BYTES; // of a block
    static constexpr int STEP_BYTES = A_BYTES + B_TILES * B_BYTES;
    static constexpr int STAGE_BYTES = STAGE_STEPS * STEP_BYTES;
    // log2 of the unit of a product with both bases 0 and both windows 0.
    static constexpr int EXPONENT = Of::A::UNIT + Of::B::UNIT + A::SCALE_UNIT + B::SCALE_UNIT;
    // A finished tile in the ring: what its sums are, and the distance of rows, off by 32 bytes so
    // that rows fall on different banks.
    typedef typename UnitsOf<SUMS>::Type Units;
    static constexpr int PITCH = TILE_N + 32 / (int)sizeof(Units);
    static_assert(TILE_M * PITCH * (int)sizeof(Units) <= RING_STAGES * STAGE_BYTES, "");
    // Offsets in shared memory.
    static constexpr int BARRIERS = RING_STAGES * STAGE_BYTES; // full, then empty
    static constexpr int COUNTS = BARRIERS + 2 * RING_STAGES * 8;
    static constexpr int COLUMNS = COUNTS + LEVELS * 4 + 4;    // the columns' base, NAN_COLUMN if NaN
    static constexpr int BYTES = COLUMNS + TILE_N * 4;
    static_assert(BYTES <= WGMMA_SHARED, "");

    // The digits' sums as they lie in the ring, and what they are worth in units of the product.
    // Those of MXINT8 lie side by side: combined here already, they would not fit the registers.
    __device__ static __forceinline__ Units pack(const int (&sums)[SUMS]) {
        if (PRODUCT == MXFP4) return sums[0];
        if (PRODUCT == MXINT8_MXFP4) return (Units)((u64)(u32)sums[0] << 32 | (u32)sums[SUMS - 1]);
        int hh = sums[0], ll = sums[1 % SUMS], ss = sums[2 % SUMS];
        int mixed = (int)((u32)ss - (u32)hh - (u32)ll);
        return (Units)((i64)hh * 4096 + (i64)mixed * 64 + ll);
    }
    __device__ static __forceinline__ Units unpack(Units packed) {
        if (PRODUCT != MXINT8_MXFP4) return packed;
        return (Units)((i64)(int)((u64)packed >> 32) * 16 + (int)(u32)packed);
    }
};

constexpr int NAN_COLUMN = -0x7FFFFFFF;

// A sum below 2^45 times 2^exponent, rounded once.
template <class Units>
__device__ __forceinline__ float round_units(Units units, int exponent) {
    // The conversion rounds; times a normal power of two the result is 0 or normal, and exact.
    if (exponent >= -126 && exponent <= 82) {
        return __fmul_rn((float)units, __uint_as_float((u32)(exponent + 127) << 23));
    }
    return round_int64(units, exponent);
}

// Two neighbouring outputs of row i from column j on, as one store where they are aligned.
__device__ __forceinline__ void finish_pair(const Outputs& to, i64 i, i64 j, int n, float alpha, float x, float y) {
    const bool both = j + 1 < n;
    const i64 index = i * n + j;
    float first = finish_value(to, x, alpha, j), second = both ? finish_value(to, y, alpha, j + 1) : 0.0f;
    if (both && index % 2 == 0) {
        if (to.out_type == F32) {
            *(float2*)((float*)to.out + index) = make_float2(DenseF32::narrow(first), DenseF32::narrow(second));
        } else {
            u32 low = to.out_type == F16 ? DenseF16::narrow(first) : DenseBf16::narrow(first);
            u32 high = to.out_type == F16 ? DenseF16::narrow(second) : DenseBf16::narrow(second);
            *(u32*)((u16*)to.out + index) = low | (high << 16);
        }
        return;
    }
    store_dense(to.out, index, to.out_type, first);
    if (both) store_dense(to.out, index + 1, to.out_type, second);
}

// The entries of one step in the tiles of a block; sets are empty past the operand.
template <int PRODUCT>
struct StepEntries {
    u32 a, b[WgmmaShape<PRODUCT>::B_TILES], all_b;

    __device__ __forceinline__ void load(const WgmmaArgs& p, int a_tile, int b_tile, int b_tiles, int step, int steps) {
        a = p.a.entries[(i64)a_tile * steps + step];
        all_b = 0;
#pragma unroll
        for (int i = 0; i < WgmmaShape<PRODUCT>::B_TILES; i++) {
            b[i] = b_tile + i < b_tiles ? p.b.entries[(i64)(b_tile + i) * steps + step] : 0;
            all_b |= b[i] & 0xFFu;
        }
    }
};

template <int PRODUCT>
__device__ __forceinline__ void wgmma_matmul(const WgmmaArgs& p) {
    typedef WgmmaShape<PRODUCT> Shape;
    constexpr int SUMS = Shape::SUMS, TILE_N = Shape::TILE_N, B_TILES = Shape::B_TILES, WIDTH = Shape::WIDTH;
    unsigned char* shared = dynamic_shared();
    u64* full = (u64*)(shared + Shape::BARRIERS);
    u64* empty = full + RING_STAGES;
    u32* counts = (u32*)(shared + Shape::COUNTS);
    int* columns = (int*)(shared + Shape::COLUMNS);
    const int thread = (int)threadIdx.x, group = thread / 128, lane = thread % 32;
    const int steps = p.k_pad / STEP_K, b_row_tiles = (p.b.rows + TILE_ROWS - 1) / TILE_ROWS;

    // Eight tiles down, then one across, so that blocks which run together share operands in the
    // cache.
    const int down = (p.a.rows + TILE_M - 1) / TILE_M, across = (p.b.rows + TILE_N - 1) / TILE_N;
    const int band = (int)blockIdx.x / (8 * across), in_band = (int)blockIdx.x % (8 * across);
    const int band_rows = down - 8 * band < 8 ? down - 8 * band : 8;
    const int tile_m = 8 * band + in_band % band_rows, tile_n = in_band / band_rows;
    const int a_tile = tile_m, b_tile = tile_n * B_TILES;
    u8* todo = p.todo + (i64)tile_m * across + tile_n;

    if (thread < LEVELS) counts[thread] = 0;
    if (thread == 0) {
        for (int i = 0; i < RING_STAGES; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], 8); // a consumer warp each
        }
        fence_proxy_async();
    }
    for (int i = thread; i < TILE_N; i += WGMMA_THREADS) {
        int column = tile_n * TILE_N + i;
        columns[i] = column >= p.b.rows ? 0 : p.b.meta[column].nan ? NAN_COLUMN : p.b.bases[column];
    }
    __syncthreads();
    for (int step = thread; step < steps; step += WGMMA_THREADS) {
        StepEntries<PRODUCT> entries;
        entries.load(p, a_tile, b_tile, b_row_tiles, step, steps);
        for (u32 as = entries.a & 0xFFu; as != 0; as &= as - 1) {
            for (u32 bs = entries.all_b; bs != 0; bs &= bs - 1) atomicAdd(&counts[__ffs((int)as) + __ffs((int)bs) - 2], 1u);
        }
    }
    __syncthreads();

    // The bound, and the levels.
    bool provable = p.a.incomplete[a_tile] == 0;
    for (int i = 0; i < B_TILES; i++) provable = provable && (b_tile + i >= b_row_tiles || p.b.incomplete[b_tile + i] == 0);
    int lowest = LEVELS, highest = -1;
    u64 reach = 0; // steps in units of the lowest level, saturating
    for (int level = LEVELS - 1; level >= 0; level--) {
        if (counts[level] == 0) continue;
        reach = highest < 0 ? 0 : (lowest - level) * WIDTH > 30 ? 1ull << 32 : reach << ((lowest - level) * WIDTH);
        reach += counts[level];
        reach = reach < 1ull << 32 ? reach : 1ull << 32;
        lowest = level;
        if (highest < 0) highest = level;
    }
    provable = provable && reach * (STEP_K * Shape::A::LARGEST * Shape::B::LARGEST) <= 0x7FFFFFFFull;
    if (thread == 0) *todo = !provable;
    if (!provable) return;

    if (group == 0) {
        setmaxnreg_dec<40>();
        if (thread == 0) {
            int slot = 0;
            u32 parity = 1; // the first round of `empty` is free
            for (int level = highest; level >= lowest; level--) {
                int left = (int)counts[level], filled = 0;
                for (int step = 0; left > 0 && step < steps; step++) {
                    StepEntries<PRODUCT> entries;
                    entries.load(p, a_tile, b_tile, b_row_tiles, step, steps);
                    for (u32 as = entries.a & 0xFFu; as != 0; as &= as - 1) {
                        int a_bit = __ffs((int)as) - 1, b_bit = level - a_bit;
                        if (b_bit < 0 || b_bit >= WINDOWS || (entries.all_b >> b_bit & 1u) == 0) continue;
                        unsigned char* stage = shared + slot * Shape::STAGE_BYTES;
                        if (filled == 0) {
                            mbarrier_wait(&empty[slot], parity);
                            // A stage that is not full has zeros for A; whatever is in B does not
                            // matter.
                            int copied = left < Shape::STAGE_STEPS ? left : Shape::STAGE_STEPS;
                            int missing = Shape::STAGE_STEPS - copied;
                            mbarrier_arrive_expect_tx(&full[slot], (u32)(copied * Shape::STEP_BYTES + missing * Shape::A_BYTES));
                            for (int i = copied; i < Shape::STAGE_STEPS; i++) {
                                bulk_copy_g2s(stage + i * Shape::STEP_BYTES, p.zeros, Shape::A_BYTES, &full[slot]);
                            }
                        }
                        unsigned char* to = stage + filled * Shape::STEP_BYTES;
                        i64 block = (i64)a_tile * (steps + p.a.extra) + block_index(entries.a, a_bit, step, steps);
                        bulk_copy_g2s(to, p.a.blocks + block * Shape::A_BYTES, Shape::A_BYTES, &full[slot]);
#pragma unroll
                        for (int i = 0; i < B_TILES; i++) {
                            const u8* from = p.zeros;
                            if (entries.b[i] >> b_bit & 1u) {
                                block = (i64)(b_tile + i) * (steps + p.b.extra) + block_index(entries.b[i], b_bit, step, steps);
                                from = p.b.blocks + block * Shape::B_BYTES;
                            }
                            bulk_copy_g2s(to + Shape::A_BYTES + i * Shape::B_BYTES, from, Shape::B_BYTES, &full[slot]);
                        }
                        left--;
                        if (++filled == Shape::STAGE_STEPS || left == 0) {
                            filled = 0;
                            if (++slot == RING_STAGES) {
                                slot = 0;
                                parity ^= 1;
                            }
                        }
                    }
                }
            }
        }
        return;
    }

    setmaxnreg_inc<232>();
    int sums[SUMS][TILE_N / 2];
#pragma unroll
    for (int i = 0; i < SUMS; i++) {
#pragma unroll
        for (int j = 0; j < TILE_N / 2; j++) sums[i][j] = 0;
    }
    int slot = 0, last = NO_SLOT; // `last`: the slot whose wgmma may be under way
    u32 parity = 0;
    for (int level = highest, above = highest; level >= lowest; level--) {
        if (counts[level] == 0) continue;
        if (level != above) {
            wgmma_wait<0>();
#pragma unroll
            for (int i = 0; i < SUMS; i++) wgmma_pin(sums[i]);
#pragma unroll
            for (int i = 0; i < SUMS; i++) {
#pragma unroll
                for (int j = 0; j < TILE_N / 2; j++) sums[i][j] = (int)((u32)sums[i][j] << (WIDTH * (above - level)));
            }
            if (lane == 0 && last != NO_SLOT) mbarrier_arrive(&empty[last]);
            last = NO_SLOT;
            above = level;
        }
        const int stages = ((int)counts[level] + Shape::STAGE_STEPS - 1) / Shape::STAGE_STEPS;
        for (int s = 0; s < stages; s++) {
            mbarrier_wait(&full[slot], parity);
            const unsigned char* stage = shared + slot * Shape::STAGE_BYTES;
            wgmma_fence();
#pragma unroll
            for (int step = 0; step < Shape::STAGE_STEPS; step++) {
#pragma unroll
                for (int i = 0; i < SUMS; i++) {
                    const unsigned char* a = stage + step * Shape::STEP_BYTES + i * PLANE_BYTES + (group - 1) * (PLANE_BYTES / 2);
                    const unsigned char* b = stage + step * Shape::STEP_BYTES + Shape::A_BYTES + i % Shape::B::PLANES * PLANE_BYTES;
                    wgmma_s8<TILE_N>(sums[i], smem_descriptor(a, 128, 256, SWIZZLE_NONE), smem_descriptor(b, 128, 256, SWIZZLE_NONE));
                }
            }
            wgmma_commit();
            if (last != NO_SLOT) {
                wgmma_wait<1>(); // those of the slot before
                if (lane == 0) mbarrier_arrive(&empty[last]);
            }
            last = slot;
            if (++slot == RING_STAGES) {
                slot = 0;
                parity ^= 1;
            }
        }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int i = 0; i < SUMS; i++) wgmma_pin(sums[i]);

    // Through shared memory to whole rows: each warp has 16 of them to itself. The ring is free
    // once both warpgroups are here.
    typedef typename Shape::Units Units;
    named_barrier_sync(1, 256);
    const int warp = thread / 32 - 4;
    Units* rows = (Units*)shared + warp * 16 * Shape::PITCH;
#pragma unroll
    for (int d = 0; d < TILE_N / 2; d++) {
        Units* to = rows + (d / 2 % 2 * 8 + lane / 4) * Shape::PITCH + d / 4 * 8 + 2 * (lane % 4) + d % 2;
        int digits[SUMS];
#pragma unroll
        for (int i = 0; i < SUMS; i++) digits[i] = sums[i][d];
        *to = Shape::pack(digits);
    }
    __syncwarp(ALL_LANES);
    const int exponent = Shape::EXPONENT + WIDTH * (lowest - 2 * WINDOW_BIAS);
    const int first_row = tile_m * TILE_M + warp * 16;
    for (int r = 0; r < 16 && first_row + r < p.a.rows; r++) {
        const int row = first_row + r, row_exponent = exponent + p.a.bases[row];
        const bool row_nan = p.a.meta[row].nan != 0;
        const float alpha = row_alpha(p.outputs, row);
        for (int at = 2 * lane; at < TILE_N; at += 64) {
            const int column = tile_n * TILE_N + at;
            if (column >= p.b.rows) break;
            float s32[2];
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int base = columns[at + i];
                const Units units = Shape::unpack(rows[r * Shape::PITCH + at + i]);
                s32[i] = row_nan || base == NAN_COLUMN ? __uint_as_float(NAN_F32) : round_units(units, row_exponent + base);
            }
            finish_pair(p.outputs, row, column, p.b.rows, alpha, s32[0], s32[1]);
        }
    }
    if (p.paths != nullptr && thread == 128) {
        int rows = p.a.rows - tile_m * TILE_M, cols = p.b.rows - tile_n * TILE_N;
        u64 outputs = (u64)(rows < TILE_M ? rows : TILE_M) * (u64)(cols < TILE_N ? cols : TILE_N);
        atomicAdd(&p.paths[lowest < highest ? 1 : 0], outputs);
    }
}

#define WGMMA_KERNEL(name, PRODUCT)                              \
    KERNEL_BOUNDS(fp4::WGMMA_THREADS, 1)                         \
    void name(fp4::WgmmaArgs p) { fp4::wgmma_matmul<PRODUCT>(p); } \
    EXPORT(name)

#endif // FP4_SM == 90

} // namespace fp4
