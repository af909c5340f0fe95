// The mma.sync matmul on folded operands, common to its products (C6, C10): every device since
// sm_80, many rows of A. Not yet run on hardware.
//
//     block: TILE_M (128 or 64) rows of A x 128 rows of B, a warp 64 x 32 of them
//     everyone counts the products (step of a block of A, of a block of B) of each level
//     if the bound below fails, or a tile has no folded form: it joins the list `left`, and out
//     a ring of stages by cp.async, 16 bytes a thread; ldmatrix; mma.sync m16n8k32
//         plain tiles, which have window 0 alone: every step, one after the other
//         listed tiles: for each level from the highest down, for each product of it;
//             sums <<= WIDTH between levels                     Horner's scheme in the window base
//     several ranges of K: sums are added to int32 in memory; the block that comes last goes on
//     units = sums; NVFP4: hh 4096 + (ss - hh - ll) 64 + ll; MXINT8: hi 16 + lo
//     out = round(f32(units * 2^exponent) * alpha_i + bias_j)
//
// A product is of one step of 32 k, so that what a slice of 128 k has of zeros is not multiplied.
// Its windows p and q make its sums integers in units of 2^(base_a + base_b + WIDTH (p + q) +
// const), and p + q is its level (fold.cuh). Bound, with n_l products of level l and L_a, L_b the
// largest digits:
//
//     STEP_K * L_a * L_b * sum over l of n_l * 2^(WIDTH (l - lowest)) <= 2^31 - 1
//
// A product adds at most STEP_K L_a L_b in units of its level, so this bounds the whole
// sum in units of the lowest level, which then is its own residue modulo 2^32: shifts, and
// additions of ranges in any order, may wrap on the way. It bounds the shift as well: a provable
// tile has STEP_K L_a L_b 2^(WIDTH (highest - lowest)) < 2^31, so the shift is below 32. One level
// of steps of 32 allows K <= 232,992 for MXFP4, 265,120 for NVFP4 and 349,504 for MXINT8 by MXFP4.
//
// NVFP4 (Karatsuba): with v = 64 hi + lo on both sides,
//     a b = 4096 hi hi' + 64 ((hi + lo)(hi' + lo') - hi hi' - lo lo') + lo lo'.
// The sums hh (L = 90) and ll (32) fit by the bound; the mixed sum has terms of at most 2 * 90 * 32
// < 90^2, so it fits too, and ss - hh - ll is it modulo 2^32 although ss may wrap. The third digit,
// |hi + lo| <= 122, is added in registers: it costs four instructions where reading it would cost a
// third of the traffic. |units| < 2^31 * (4096 + 64 + 1) < 2^63. MXINT8: |units| < 2^31 * 17.
//
// Epilogue of a warp. Where every exponent e of its outputs is in -126..82, f32(units) * 2^e is one
// rounding: the conversion rounds, units of magnitude 1..2^44 give 1 <= |f32| <= 2^44, and the
// product with a normal power of two is normal (2^-126 <= . < 2^127) and exact. NVFP4's
// units reach 2^43.1. 2^e is then built by adding the exponent fields of row and column. A row or
// column without live groups has units 0 under any exponent: it does not count, and one that fits
// stands for its own. Elsewhere, or with NaN, each output goes by round_int64.
//
// Worked example, MXFP4: an output of sum 288 in a row of base 120 and a column of base 121 has
// e = -1 - 1 - 127 - 127 + 120 + 121 = -15: s = 288 * 2^-15.
#pragma once

#include "exact.cuh"
#include "fold.cuh"

namespace fp4 {

constexpr int FOLDED_TILE_N = TILE_ROWS;
constexpr int STEP_CORES = 8 * STEP_K;         // bytes of eight rows of a plane of a step
constexpr int FOLDED_LEVELS = 2 * WINDOWS - 1;
constexpr int LIST = 192;                     // products that are listed at a time
constexpr int NO_EXPONENT = -0x20000000;      // of a row or column with NaN
constexpr int NOTHING_LIVE = 0x10000000;      // of one without live groups: any exponent serves

// What a product's units fit: int32 for one digit's sum, else int64.
template <int SUMS>
struct FoldedUnits {
    typedef i64 Type;
};
template <>
struct FoldedUnits<1> {
    typedef int Type;
};

template <int PRODUCT, int M>
struct FoldedShape {
    typedef Operands<PRODUCT> Of;
    typedef Fold<Of::A_ENCODING> A;
    typedef Fold<Of::B_ENCODING> B;
    static_assert(A::WIDTH == B::WIDTH, "levels");
    static constexpr int WIDTH = A::WIDTH, TILE_M = M, THREADS = 2 * M;
    static constexpr int SUMS = A::PLANES;
    // Planes that are read: of NVFP4's three the third is the sum of the others.
    static constexpr int A_READ = PRODUCT == NVFP4 ? 2 : A::PLANES, B_READ = PRODUCT == NVFP4 ? 2 : B::PLANES;
    static constexpr int B_DIGITS = PRODUCT == NVFP4 ? 3 : 1; // that are multiplied
    static constexpr int A_BYTES = A::PLANES * PLANE_BYTES, B_BYTES = B::PLANES * PLANE_BYTES; // of a block
    static constexpr int A_STEP = TILE_M * STEP_K, B_STEP = FOLDED_TILE_N * STEP_K; // of a plane of a stage's part
    static constexpr int STEP_BYTES = A_READ * A_STEP + B_READ * B_STEP;
    static constexpr int STAGE_STEPS = PRODUCT == NVFP4 ? 1 : 2;
    static constexpr int STAGE_BYTES = STAGE_STEPS * STEP_BYTES;
    static constexpr int STAGES = PRODUCT == NVFP4 ? 5 : 3;
    static constexpr int RING = STAGES * STAGE_BYTES;
    // log2 of the unit of a product with both bases 0 and both windows 0.
    static constexpr int EXPONENT = Of::A::UNIT + Of::B::UNIT + A::SCALE_UNIT + B::SCALE_UNIT;
    typedef typename FoldedUnits<SUMS>::Type Units;
    // The epilogue in the ring: 16 rows of 32 outputs a warp, a pitch that keeps pairs of eight
    // rows on different banks; then the rows' factors.
    static constexpr int PITCH = 40, WARP_BYTES = 16 * PITCH * (int)sizeof(Units);
    static constexpr int ROWS_AT = THREADS / 32 * WARP_BYTES;
    static_assert(ROWS_AT + 8 * TILE_M <= RING, "");
    // What a launch asks for.
    static constexpr int SHARED_BYTES =
        TILE_M == FOLDED_ROWS ? (PRODUCT == MXFP4 ? FOLDED_MXFP4_SHARED : PRODUCT == NVFP4 ? FOLDED_NVFP4_SHARED : FOLDED_MXINT8_SHARED)
                              : (PRODUCT == MXFP4 ? FOLDED_FEW_MXFP4_SHARED : PRODUCT == NVFP4 ? FOLDED_FEW_NVFP4_SHARED : FOLDED_FEW_MXINT8_SHARED);
    static_assert(RING == SHARED_BYTES, "");
    // Partial sums of a tile in memory.
    static constexpr int TILE_SUMS = SUMS * TILE_M * FOLDED_TILE_N;

    __device__ static __forceinline__ Units units(const int (&sums)[SUMS]) {
        if (SUMS == 1) return (Units)sums[0];
        if (SUMS == 2) return (Units)((i64)sums[0] * 16 + sums[SUMS - 1]);
        int hh = sums[0], ll = sums[1 % SUMS], ss = sums[2 % SUMS];
        int mixed = (int)((u32)ss - (u32)hh - (u32)ll);
        return (Units)((i64)hh * 4096 + (i64)mixed * 64 + ll);
    }
};

// What is known of a tile before its first multiplication.
struct FoldedLevels {
    int lowest, highest; // lowest > highest if there is no product
    bool provable, plain;
};

// The shared memory of a block beside its ring. What is read after the multiplications is kept
// here, not in registers, which they need.
struct FoldedScratch {
    u32 counts[FOLDED_LEVELS]; // products of each level
    u32 list[LIST];            // products of one level, 8 * step + window of A
    int listed, next_step;
    int tile, tile_m, tile_n, lowest, highest;
    int plain, level, first, end; // whether tiles have window 0 alone; the level now; steps of this range
    u32 last;
    const u8 *a, *b;              // the tiles' blocks, from this block's first row on
};

template <int PRODUCT, int M>
struct FoldedTile {
    typedef FoldedShape<PRODUCT, M> Shape;
    static constexpr int SUMS = Shape::SUMS, THREADS = Shape::THREADS;
    typedef int Sums[SUMS][4][4][4]; // digits, 16 rows, 8 columns, the fragment's own

    // Starts the copies of 32 k of a pair of blocks, or of zeros.
    __device__ static __forceinline__ void load(u8* to, const u8* a, const u8* b, bool there) {
        const int thread = (int)threadIdx.x;
#pragma unroll
        for (int plane = 0; plane < Shape::A_READ; plane++) {
            const int from = plane * PLANE_BYTES + thread / 16 * PLANE_STRIDE + thread % 16 * 16;
            cp_async_16(to + plane * Shape::A_STEP + thread * 16, a + from, there);
        }
        to += Shape::A_READ * Shape::A_STEP;
#pragma unroll
        for (int plane = 0; plane < Shape::B_READ; plane++) {
#pragma unroll
            for (int at = 0; at < 2 * FOLDED_TILE_N; at += THREADS) {
                const int chunk = at + thread, from = plane * PLANE_BYTES + chunk / 16 * PLANE_STRIDE + chunk % 16 * 16;
                cp_async_16(to + plane * Shape::B_STEP + chunk * 16, b + from, there);
            }
        }
    }

    // sums += A * B^T of a stage. ldmatrix reads cores of 8 rows x 16 bytes, each 128 bytes in a
    // row: for A (rows 0-7, k 0-15), (8-15, 0-15), (0-7, 16-31), (8-15, 16-31), for B two n of both
    // k.
    __device__ static __forceinline__ void multiply(const u8* stage, Sums& sums) {
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
        const u8* a = stage + warp / 4 * (8 * STEP_CORES) + lane / 8 % 2 * STEP_CORES + lane / 16 * 128 + lane % 8 * 16;
        const u8* b = stage + Shape::A_READ * Shape::A_STEP + warp % 4 * (4 * STEP_CORES) + lane * 16;
#pragma unroll
        for (int step = 0; step < Shape::STAGE_STEPS; step++) {
            u32 of_b[Shape::B_DIGITS][4][2];
#pragma unroll
            for (int plane = 0; plane < Shape::B_READ; plane++) {
#pragma unroll
                for (int pair = 0; pair < 2; pair++) {
                    u32 four[4];
                    ldmatrix_x4(four, b + step * Shape::STEP_BYTES + plane * Shape::B_STEP + pair * (2 * STEP_CORES));
#pragma unroll
                    for (int i = 0; i < 4; i++) of_b[plane][2 * pair + i / 2][i % 2] = four[i];
                }
            }
            if (PRODUCT == NVFP4) {
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    of_b[Shape::B_DIGITS - 1][i / 2][i % 2] = __vadd4(of_b[0][i / 2][i % 2], of_b[Shape::B_READ - 1][i / 2][i % 2]);
                }
            }
#pragma unroll
            for (int mi = 0; mi < 4; mi++) {
                u32 of_a[SUMS][4];
#pragma unroll
                for (int plane = 0; plane < Shape::A_READ; plane++) {
                    ldmatrix_x4(of_a[plane], a + step * Shape::STEP_BYTES + plane * Shape::A_STEP + mi * (2 * STEP_CORES));
                }
                if (PRODUCT == NVFP4) {
#pragma unroll
                    for (int i = 0; i < 4; i++) of_a[SUMS - 1][i] = __vadd4(of_a[0][i], of_a[1 % SUMS][i]);
                }
#pragma unroll
                for (int digit = 0; digit < SUMS; digit++) {
#pragma unroll
                    for (int ni = 0; ni < 4; ni++) {
                        mma_m16n8k32_s8s8(sums[digit][mi][ni], of_a[digit], of_b[digit % Shape::B_DIGITS][ni]);
                    }
                }
            }
        }
    }

    __device__ static __forceinline__ void shift(Sums& sums, int bits) {
#pragma unroll
        for (int at = 0; at < SUMS * 64; at++) {
            int& sum = sums[at / 64][at / 16 % 4][at / 4 % 4][at % 4];
            sum = (int)((u32)sum << bits);
        }
    }

    // Counts the products of each level, which all ranges do alike. `counts` is shared and zeroed,
    // and a barrier has passed.
    __device__ static __forceinline__ FoldedLevels levels(const FoldedArgs& p, int a_tile, int b_tile, u32* counts) {
        constexpr u32 MAIN = 1u << WINDOW_BIAS;
        const int slices = p.k_pad / SLICE_K;
        u32 plain = 0;
        for (int slice = (int)threadIdx.x; slice < slices; slice += THREADS) {
            const u32 of_a = p.a.entries[2 * ((i64)a_tile * slices + slice)], of_b = p.b.entries[2 * ((i64)b_tile * slices + slice)];
            for (int step = 0; step < SLICE_STEPS; step++) {
                const u32 as = of_a >> (8 * step) & 0xFFu, all = of_b >> (8 * step) & 0xFFu;
                if (as == MAIN && all == MAIN) {
                    plain++;
                    continue;
                }
                for (u32 left = as; left != 0; left &= left - 1) {
                    for (u32 bs = all; bs != 0; bs &= bs - 1) atomicAdd(&counts[__ffs((int)left) + __ffs((int)bs) - 2], 1u);
                }
            }
        }
        plain = __reduce_add_sync(ALL_LANES, plain);
        if (threadIdx.x % 32 == 0 && plain != 0) atomicAdd(&counts[2 * WINDOW_BIAS], plain);
        __syncthreads();
        FoldedLevels found = {FOLDED_LEVELS, -1, p.a.incomplete[a_tile] == 0 && p.b.incomplete[b_tile] == 0,
                              p.a.used[a_tile] == 0 && p.b.used[b_tile] == 0};
        u64 reach = 0; // products in units of the lowest level, saturating
        for (int level = FOLDED_LEVELS - 1; level >= 0; level--) {
            if (counts[level] == 0) continue;
            const int bits = (found.lowest - level) * Shape::WIDTH;
            reach = found.highest < 0 ? 0 : bits > 30 ? 1ull << 32 : reach << bits;
            reach += counts[level];
            reach = reach < 1ull << 32 ? reach : 1ull << 32;
            found.lowest = level;
            if (found.highest < 0) found.highest = level;
        }
        found.provable = found.provable && reach * (STEP_K * Shape::A::LARGEST * Shape::B::LARGEST) <= 0x7FFFFFFFull;
        return found;
    }

    // Lists products of the level now from `next_step` on, as many as there is room for (a step has
    // 8 at most, so there is progress), and notes the step to go on with. By one warp.
    __device__ static __forceinline__ void list_products(const FoldedArgs& p, FoldedScratch& scratch) {
        const int lane = (int)threadIdx.x % 32, slices = p.k_pad / SLICE_K, level = scratch.level, end = scratch.end;
        const u32* a = p.a.entries + 2 * (i64)(scratch.tile_m * M / TILE_ROWS) * slices;
        const u32* b = p.b.entries + 2 * (i64)scratch.tile_n * slices;
        int listed = 0, step = scratch.next_step;
        __syncwarp(ALL_LANES);
        for (; step < end; step += 32) {
            const int own = step + lane;
            const int word = 2 * (own / SLICE_STEPS), byte = 8 * (own % SLICE_STEPS);
            const u32 as = own < end ? a[word] >> byte & 0xFFu : 0, bs = own < end ? b[word] >> byte & 0xFFu : 0;
            u32 windows = 0; // of A, whose partner is there
            for (u32 left = as; left != 0; left &= left - 1) {
                const int bit = __ffs((int)left) - 1, other = level - bit;
                if (other >= 0 && other < WINDOWS && (bs >> other & 1u) != 0) windows |= 1u << bit;
            }
            int upto = __popc(windows); // products of this lane's step and of those before it
            for (int lanes = 1; lanes < 32; lanes *= 2) {
                const int before = __shfl_up_sync(ALL_LANES, upto, lanes);
                upto += lane >= lanes ? before : 0;
            }
            const bool fits = listed + upto <= LIST;
            int at = listed + upto - __popc(windows);
            for (u32 left = fits ? windows : 0; left != 0; left &= left - 1) scratch.list[at++] = 8u * (u32)own + (u32)__ffs((int)left) - 1;
            const u32 taken = __ballot_sync(ALL_LANES, fits);
            const int last = 31 - __clz((int)taken); // lanes fit up to one of them; -1 if none does
            const int all = __shfl_sync(ALL_LANES, listed + upto, last < 0 ? 0 : last);
            listed = last < 0 ? listed : all;
            if (taken != ALL_LANES) {
                step += __popc(taken);
                break;
            }
        }
        if (lane == 0) {
            scratch.listed = listed;
            scratch.next_step = step;
        }
    }

    // Adds the products of a list, or of steps [first, first + count) of a plain tile, whose blocks
    // are zeros where no entry names them.
    __device__ static __forceinline__ void run(const FoldedArgs& p, int count, u8* ring, const FoldedScratch& scratch, Sums& sums) {
        const volatile FoldedScratch& known = scratch;
        const int stages = (count + Shape::STAGE_STEPS - 1) / Shape::STAGE_STEPS;
        auto fill = [&](int stage, int slot) {
            const u8 *from_a = known.a, *from_b = known.b;
            const int first = known.first;
            const bool plain = known.plain != 0;
#pragma unroll
            for (int i = 0; i < Shape::STAGE_STEPS; i++) {
                const int at = stage * Shape::STAGE_STEPS + i;
                const bool there = at < count; // else zeros
                int step = there ? first + at : 0, of_a = step / SLICE_STEPS, of_b = of_a;
                if (!plain && there) {
                    const int slices = p.k_pad / SLICE_K;
                    const u32 item = known.list[at];
                    const int bit = (int)(item % 8), slice = (int)(item / 8) / SLICE_STEPS;
                    step = (int)(item / 8);
                    const uint2* a = (const uint2*)p.a.entries + (i64)(known.tile_m * M / TILE_ROWS) * slices;
                    const uint2* b = (const uint2*)p.b.entries + (i64)known.tile_n * slices;
                    of_a = block_index(a[slice], bit, slice, slices);
                    of_b = block_index(b[slice], known.level - bit, slice, slices);
                }
                const int k = step % SLICE_STEPS * STEP_CORES;
                load(ring + slot * Shape::STAGE_BYTES + i * Shape::STEP_BYTES, from_a + (i64)of_a * Shape::A_BYTES + k,
                     from_b + (i64)of_b * Shape::B_BYTES + k, there);
            }
        };
        for (int s = 0; s < Shape::STAGES - 1; s++) {
            if (s < stages) fill(s, s);
            cp_async_commit();
        }
        int slot = 0, free = Shape::STAGES - 1;
#pragma unroll 1
        for (int s = 0; s < stages; s++) {
            cp_async_wait<Shape::STAGES - 2>();
            // Everybody's copies of this stage are in, and everybody is done with the one before
            // it.
            __syncthreads();
            if (s + Shape::STAGES - 1 < stages) fill(s + Shape::STAGES - 1, free);
            cp_async_commit();
            multiply(ring + slot * Shape::STAGE_BYTES, sums);
            free = slot;
            slot = slot + 1 == Shape::STAGES ? 0 : slot + 1;
        }
        cp_async_wait<0>();
        __syncthreads(); // the ring and the list are free
    }

    // Adds the sums of this range to those in memory. True for the block that comes last, which has
    // them all afterwards and leaves zeros. Integers modulo 2^32: the order does not matter.
    __device__ static __forceinline__ bool merge(const FoldedArgs& p, FoldedScratch& scratch, Sums& sums) {
        const int tile = *(volatile int*)&scratch.tile;
        int* own = p.sums + (i64)tile * Shape::TILE_SUMS + threadIdx.x;
#pragma unroll
        for (int at = 0; at < SUMS * 64; at++) {
            const int sum = sums[at / 64][at / 16 % 4][at / 4 % 4][at % 4];
            if (sum != 0) atomicAdd(&own[at * THREADS], sum);
        }
        __threadfence(); // what this thread added is out before the arrival
        __syncthreads();
        if (threadIdx.x == 0) scratch.last = atomicAdd(&p.arrivals[tile], 1u) == (u32)p.ranges - 1;
        __syncthreads();
        if (scratch.last == 0) return false;
        __threadfence();
#pragma unroll
        for (int at = 0; at < SUMS * 64; at++) {
            sums[at / 64][at / 16 % 4][at / 4 % 4][at % 4] = *(volatile int*)&own[at * THREADS];
            own[at * THREADS] = 0;
        }
        if (threadIdx.x == 0) p.arrivals[tile] = 0;
        return true;
    }

    // The base of a row of an operand, if it has a live group and no NaN.
    __device__ static __forceinline__ int exponent_of(const FoldedOperand& operand, int row) {
        const RowMeta meta = operand.meta[row];
        return meta.nan != 0 ? NO_EXPONENT : meta.live == 0 ? NOTHING_LIVE : operand.bases[row];
    }

    // Rows [0, count) of 16 x 32 outputs, a column a lane. `most` is the highest exponent of a row
    // with live groups, which stands for those of the rows without.
    template <bool FAST>
    __device__ static __forceinline__ void finish_rows(const Outputs& to, const typename Shape::Units* units, const float2* rows,
                                                       int count, i64 index, int n, int column_exponent, int most,
                                                       bool inside, bool has_bias, float bias) {
#pragma unroll 1
        for (int r = 0; r < count; r++) {
            const float2 row = rows[r];
            const int exponent = min(__float_as_int(row.y), most) + column_exponent;
            const typename Shape::Units sum = units[r * Shape::PITCH];
            float s32;
            if (FAST) {
                s32 = __fmul_rn((float)sum, __uint_as_float((u32)(exponent + 127) << 23));
            } else {
                s32 = exponent < NO_EXPONENT / 2 ? __uint_as_float(NAN_F32) : round_int64((i64)sum, exponent);
            }
            float y = __fmul_rn(s32, row.x);
            if (has_bias) y = __fadd_rn(y, bias);
            if (inside) store_dense(to.out, index + (i64)r * n, to.out_type, y);
        }
    }

    __device__ static __forceinline__ void finish(const FoldedArgs& p, const FoldedScratch& scratch, u8* ring, const Sums& sums) {
        typedef typename Shape::Units Units;
        const volatile FoldedScratch& known = scratch;
        const int lowest = known.lowest, tile_m = known.tile_m, tile_n = known.tile_n;
        const int thread = (int)threadIdx.x, lane = thread % 32, warp = thread / 32, n = p.b.rows;
        float2* rows = (float2*)(ring + Shape::ROWS_AT); // alpha, exponent
        if (p.paths != nullptr && thread == 0) {
            const int rows_here = p.a.rows - tile_m * M, cols = n - tile_n * FOLDED_TILE_N;
            const u64 outputs = (u64)(rows_here < M ? rows_here : M) * (u64)(cols < FOLDED_TILE_N ? cols : FOLDED_TILE_N);
            atomicAdd(&p.paths[lowest < known.highest ? 1 : 0], outputs);
        }
        if (thread < M) {
            const int row = tile_m * M + thread;
            const bool inside = row < p.a.rows;
            const int exponent = inside ? exponent_of(p.a, row) : 0;
            rows[thread] = make_float2(inside ? row_alpha(p.outputs, row) : 0.0f, __int_as_float(exponent));
        }
        __syncthreads();
        const int first_row = warp / 4 * 64, column = tile_n * FOLDED_TILE_N + warp % 4 * 32 + lane;
        const int left = p.a.rows - tile_m * M - first_row, count = left < 64 ? left : 64;
        if (count <= 0) return;
        const bool inside = column < n;
        // No bias is not a bias of 0: -0 + 0 is +0.
        const bool has_bias = p.outputs.bias != nullptr;
        const float bias = inside && has_bias ? p.outputs.bias[column] : 0.0f;
        // Whether every output of the warp is one conversion and one exact product.
        const int of_row = __float_as_int(rows[first_row + (lane < count ? lane : 0)].y);
        const int of_other = __float_as_int(rows[first_row + (lane + 32 < count ? lane + 32 : 0)].y);
        int least = __reduce_min_sync(ALL_LANES, min(of_row, of_other));
        int most = __reduce_max_sync(ALL_LANES, max(of_row == NOTHING_LIVE ? NO_EXPONENT : of_row, of_other == NOTHING_LIVE ? NO_EXPONENT : of_other));
        if (least == NOTHING_LIVE) least = 0; // none has one
        if (most == NO_EXPONENT) most = 0;
        const int of_column = inside ? exponent_of(p.b, column) : NOTHING_LIVE;
        const int add = Shape::EXPONENT + Shape::WIDTH * (lowest - 2 * WINDOW_BIAS);
        // A column without live groups fits wherever another one does: with the lowest row it is at
        // -126. It is NaN with a row that is, which goes the other way.
        const int nothing = least == NO_EXPONENT ? 0 : -126 - least;
        const int exponent = of_column == NOTHING_LIVE ? nothing : add + of_column;
        const bool fast = __all_sync(ALL_LANES, exponent + least >= -126 && exponent + most <= 82);
        Units* own = (Units*)(ring + warp * Shape::WARP_BYTES);
#pragma unroll
        for (int mi = 0; mi < 4; mi++) {
#pragma unroll
            for (int at = 0; at < 16; at++) {
                const int ni = at / 4, d = at % 4;
                int digits[SUMS];
#pragma unroll
                for (int i = 0; i < SUMS; i++) digits[i] = sums[i][mi][ni][d];
                own[(d / 2 * 8 + lane / 4) * Shape::PITCH + ni * 8 + 2 * (lane % 4) + d % 2] = Shape::units(digits);
            }
            __syncwarp(ALL_LANES);
            const int from = first_row + 16 * mi, here = count - 16 * mi < 16 ? count - 16 * mi : 16;
            const i64 index = ((i64)tile_m * M + from) * n + column;
            if (fast) {
                finish_rows<true>(p.outputs, own + lane, rows + from, here, index, n, exponent, most, inside, has_bias, bias);
            } else {
                finish_rows<false>(p.outputs, own + lane, rows + from, here, index, n, exponent, most, inside, has_bias, bias);
            }
            __syncwarp(ALL_LANES);
        }
    }

    // The block of this index among those of a product.
    __device__ static __forceinline__ void run_block(const FoldedArgs& p, int block) {
        SHARED(FoldedScratch, all, [1]);
        FoldedScratch& scratch = all[0];
        u8* ring = dynamic_shared();
        const int thread = (int)threadIdx.x, slices = p.k_pad / SLICE_K;
        // Tiles of 8 x 128 rows of A down, then one across, so that blocks which run together share
        // operands in the cache.
        constexpr int DOWN = 8 * TILE_ROWS / M;
        const int down = (p.a.rows + M - 1) / M, across = (p.b.rows + FOLDED_TILE_N - 1) / FOLDED_TILE_N;
        const int tile = block % (down * across), range = block / (down * across);
        const int band = tile / (DOWN * across), in_band = tile % (DOWN * across);
        const int band_rows = down - DOWN * band < DOWN ? down - DOWN * band : DOWN;
        const int tile_m = DOWN * band + in_band % band_rows, tile_n = in_band / band_rows;
        const int a_tile = tile_m * M / TILE_ROWS, b_tile = tile_n;

        if (thread < FOLDED_LEVELS) scratch.counts[thread] = 0;
        __syncthreads();
        const FoldedLevels found = levels(p, a_tile, b_tile, scratch.counts);
        if (!found.provable) {
            if (thread == 0 && range == 0) p.left[1 + atomicAdd(&p.left[0], 1u)] = (u32)(p.first_tile + tile_m * across + tile_n);
            return;
        }
        if (thread == 0) {
            const int first = range * p.range_slices * SLICE_STEPS, end = first + p.range_slices * SLICE_STEPS;
            scratch.tile = tile;
            scratch.tile_m = tile_m;
            scratch.tile_n = tile_n;
            scratch.lowest = found.lowest;
            scratch.highest = found.highest;
            scratch.plain = found.plain;
            scratch.level = found.plain ? found.lowest : found.highest;
            scratch.next_step = scratch.first = first;
            scratch.end = end < slices * SLICE_STEPS ? end : slices * SLICE_STEPS;
            scratch.a = p.a.blocks + (i64)a_tile * (slices + p.a.extra) * Shape::A_BYTES + tile_m * M % TILE_ROWS / 8 * PLANE_STRIDE;
            scratch.b = p.b.blocks + (i64)b_tile * (slices + p.b.extra) * Shape::B_BYTES;
        }
        __syncthreads();
        Sums sums;
#pragma unroll
        for (int at = 0; at < SUMS * 64; at++) sums[at / 64][at / 16 % 4][at / 4 % 4][at % 4] = 0;
        // Once for a plain tile, else for each list of each level.
        const volatile FoldedScratch& known = scratch;
#pragma unroll 1
        while (known.level >= known.lowest) {
            int count = known.end - known.first;
            if (known.plain == 0) {
                if (thread < 32) list_products(p, scratch);
                __syncthreads();
                count = known.listed;
            }
            run(p, count, ring, scratch, sums);
            if (known.plain != 0) break;
            const bool more = known.next_step < known.end, lower = known.level > known.lowest;
            __syncthreads(); // everybody has read them
            if (more) continue;
            if (lower) shift(sums, Shape::WIDTH);
            if (thread == 0) {
                scratch.level--;
                scratch.next_step = scratch.first;
            }
            __syncthreads();
        }
        if (p.ranges > 1 && !merge(p, scratch, sums)) return;
        finish(p, scratch, ring, sums);
    }

    // The block of this index among those of all products of a launch.
    __device__ static __forceinline__ void run_one_of(const GroupedArgs& all, int block) {
        const int product = product_of(all.ends, all.count, (u32)block);
        // In shared memory, as they are read again and again.
        SHARED(FoldedArgs, args, [1]);
        if (threadIdx.x < sizeof(FoldedArgs) / 4) ((u32*)args)[threadIdx.x] = ((const u32*)all.products)[product * (int)sizeof(FoldedArgs) / 4 + threadIdx.x];
        __syncthreads();
        run_block(args[0], block - (product == 0 ? 0 : (int)all.ends[product - 1]));
    }
};

} // namespace fp4
