// The wgmma matmul for few rows of A on packed weights (C6, C10): Hopper, 17 to 128 rows. Not yet
// run on hardware.
//
//     block (x, y, z): 128 rows of B, the y-th range of K, rows N z .. of A; out^T = B * A^T
//     warp 0: the plan, that is for each window of A from the highest its slices in this range
//     two warpgroups, 64 rows of B each, a warp 16, accumulators in registers:
//         for each window of A from the highest down:
//             sums <<= WIDTH                                   Horner's scheme, as matmul_wgmma.cuh
//             for each of its slices of 128 of K:
//                 codes of the warp's 16 rows, from its own ring of asynchronous copies
//                 bytes = doubled magnitudes << shift of their group, with the codes' signs
//                 sums += bytes (A operand, registers) * block of A (B operand, shared memory),
//                 which a lane of warp 0 has copied into a ring, two products ahead
//     several ranges: sums are added to int32 in memory; the block that comes last goes on
//     out = round(f32(units * 2^exponent) * alpha_i + bias_j)
//
// So weights travel as 4 bits, and need no folded form: the scale of a group less the row's least
// live one is a shift, of 0 to 3 where the row spans no more. Activations come folded (fold.cuh),
// whose windows other than 0 are further products with the slices that have them.
//
// Codes as bytes. A nibble is a selector of PRMT whose top bit asks for the sign of the byte that
// it names, 0 of a magnitude below 128: of the codes as they are the positive ones remain, with
// their sign bits flipped the negative ones. In each byte one of the two is 0, and 128 - minus +
// plus lies in 32 .. 224: no byte borrows or carries. A lane's fragment is, for both halves of 32
// k, the 16 bits of its four codes, which lie in memory as wgmma wants them.
//
// Bound. A row of B is taken if it spans at most 3 exponents: then its bytes are at most 12 << 3 =
// 96 in magnitude. With n_w the steps of 32 of K where a row of A has window w, and L the largest
// digit of A (fold.cuh: 96, of MXINT8 64),
//
//     32 * L * 96 * sum over w of n_w * 2^(WIDTH (w - lowest)) <= 2^31 - 1
//
// bounds the final sum in units of the lowest window, for all ranges together, and wrapping on the
// way is harmless: K <= 232,992 with one window (7281 steps), of MXINT8 349,504. A group of B that
// is not live has codes +-0, which are 0 under any shift, or a NaN scale, which makes the output
// NaN. Steps are counted times 2^28 at most, and there are fewer than 2^26: 64 bits do.
//
// A tile with a row of B that spans more, with an activation that has no folded form, or that fails
// the bound, joins a list that another kernel walks. Every range finds the same; the first writes.
//
// Worked example: live scale bytes 120, 122 of a row: the second group's shift is 2, its code 13
// (-3, doubled 6) the byte -24 in units of 2^(120 - 128).
//
// Cost. A slice is 8 KiB of codes, 512 bytes of scales and N * 128 bytes of A from L2; a warp
// expands 16 x 128 codes in 16 * 5 instructions beside 16 loads. BUDGET.md has the rest.
#pragma once

#include "wgmma_epilogue.cuh"

namespace fp4 {

#if FP4_SM == 90

constexpr int RS_WARPS = 8;          // that multiply
constexpr int RS_WARP_ROWS = 16;
constexpr int RS_CODE_BYTES = RS_WARP_ROWS * SLICE_K / 2;
// Bytes of dynamic shared memory, by digits of A and by its rows of a block: 32, 64, 128.
constexpr int RS_SHARED[2][3] = {{RS_MXFP4_32_SHARED, RS_MXFP4_64_SHARED, RS_MXFP4_128_SHARED},
                                 {RS_MXINT8_32_SHARED, RS_MXINT8_64_SHARED, RS_MXINT8_128_SHARED}};
constexpr int RS_POWER_PITCH = RS_RANGE_SLICES + 1; // rows fall on different banks
static_assert(RS_ROWS == RS_WARPS * RS_WARP_ROWS && RS_THREADS == 32 * RS_WARPS, "");
static_assert(RS_RANGE_SLICES == 32, "a lane for each slice of a range");

template <int PRODUCT, int N_>
struct RsShape {
    typedef Operands<PRODUCT> Of;
    typedef Fold<Of::A_ENCODING> A;
    static_assert(Of::B_ENCODING == MXFP4, "tables of doubled magnitudes");
    static constexpr int N = N_; // rows of A of a block
    static constexpr int SUMS = A::PLANES;
    static constexpr int WIDTH = A::WIDTH;
    static constexpr int PLANE = N * SLICE_K; // the first N rows of a block's plane
    static constexpr int STAGE_BYTES = SUMS * PLANE;
    static constexpr int STAGES = 4;       // of A's ring
    // Of a warp's ring of codes: two blocks fit, or as much is under way of one.
    static constexpr int CODE_STAGES = SUMS * N > 128 ? 8 : SUMS * N == 128 ? 3 : 4;
    static constexpr u32 MOST_STEPS = 0x7FFFFFFFu / (STEP_K * A::LARGEST * (12 << RS_SPREAD));
    static constexpr int A_EXPONENT = Of::A::UNIT + A::SCALE_UNIT, B_EXPONENT = Of::B::UNIT + Of::B::SCALE_UNIT;

    // The digits' sums of an output in units of the product.
    __device__ static __forceinline__ auto units(const int (&sums)[SUMS][N / 2], int at) {
        if constexpr (SUMS == 1) {
            return sums[0][at];
        } else {
            return (i64)sums[0][at] * 16 + sums[1][at];
        }
    }
};

// Shared memory: the rings of codes, the ring of A's blocks, and this.
template <class Shape>
struct __align__(16) RsShared {
    u64 full[Shape::STAGES], empty[Shape::STAGES];
    float rows[RS_ROWS], bias[RS_ROWS]; // of the outputs' fast way, as TileScales
    float tokens[Shape::N];
    int low_a, high_a, low_b, high_b; // exponents of what is live
    u32 slow;            // whether the outputs may not go the fast way
    u32 left;            // whether the tile is left to another kernel
    u32 last;            // whether this block is the last of its ranges
    int lowest, highest; // windows of A, over all of K
    int ends[WINDOWS];   // of the products of each window in the list
    u32 magnitudes[2];
    u32 list[RS_RANGE_SLICES * WINDOWS];      // slice of the range + 32 * block of A
    u32 powers[RS_ROWS * RS_POWER_PITCH];     // 1 << shift, a byte for each group of a slice
};

template <class Shape>
struct RsLayout {
    static constexpr int BLOCKS = RS_WARPS * Shape::CODE_STAGES * RS_CODE_BYTES;
    static constexpr int SHARED = BLOCKS + Shape::STAGES * Shape::STAGE_BYTES;
    static constexpr int BYTES = SHARED + (int)sizeof(RsShared<Shape>);
};

// Where a block is.
struct RsPlace {
    int tile_m, tile_n, range;
    int slices, first, end; // of K, of the range
};

// By a whole warp: the windows of A, whether the sums fit, and the list of the range's products.
template <class Shape>
__device__ __forceinline__ void rs_plan(const WgmmaRsArgs& p, const RsPlace& at, RsShared<Shape>& shared) {
    const int lane = (int)threadIdx.x % 32, a_tile = at.tile_m * Shape::N / TILE_ROWS;
    const uint2* entries = (const uint2*)p.a.entries + (i64)a_tile * at.slices;
    u64 reach = 0; // steps in units of window -4's
    u32 windows = 0;
    for (int slice = lane; slice < at.slices; slice += 32) {
        const u32 sets = entries[slice].x;
        windows |= windows_of(sets);
        for (u32 set = windows_of(sets); set != 0; set &= set - 1) {
            const int bit = __ffs((int)set) - 1;
            reach += (u64)__popc(sets >> bit & 0x01010101u) << (Shape::WIDTH * bit);
        }
    }
    for (int step = 16; step > 0; step /= 2) {
        reach += __shfl_xor_sync(ALL_LANES, reach, step);
        windows |= __shfl_xor_sync(ALL_LANES, windows, step);
    }
    if (windows == 0) windows = 1u << WINDOW_BIAS; // no products
    const int lowest = __ffs((int)windows) - 1, highest = 31 - __clz((int)windows);
    if (lane == 0) {
        shared.lowest = lowest;
        shared.highest = highest;
        const bool fits = (reach >> (Shape::WIDTH * lowest)) <= Shape::MOST_STEPS;
        if (!fits || p.a.incomplete[a_tile] != 0) atomicOr(&shared.left, 1u);
    }
    const int slice = at.first + lane;
    const uint2 entry = slice < at.end ? entries[slice] : make_uint2(0, 0);
    const u32 own = windows_of(entry.x);
    int count = 0;
    for (int window = WINDOWS - 1; window >= 0; window--) {
        const bool has = (own >> window & 1u) != 0;
        const u32 votes = __ballot_sync(ALL_LANES, has);
        if (has) {
            const u32 block = (u32)block_index(entry, window, slice, at.slices);
            shared.list[count + __popc(votes & ((1u << lane) - 1u))] = (u32)lane | block << 5;
        }
        count += __popc(votes);
        if (lane == 0) shared.ends[window] = count;
    }
}

// What an output is scaled by, and whether all may go the fast way: the conditions and their proof
// are those of wgmma_epilogue.cuh. By whole warps, of which each has rows of one side.
template <class Shape>
__device__ __forceinline__ void rs_scale_row(const WgmmaRsArgs& p, int row, int in_tile, RsShared<Shape>& shared) {
    constexpr int FAR = 100000; // passes where nothing is live
    int low = FAR, high = -FAR;
    bool fast = true;
    if (row < p.n) {
        const RowMeta meta = p.b.meta[row];
        if (meta.spread() > RS_SPREAD) atomicOr(&shared.left, 1u);
        const int exponent = meta.live > 0 ? meta.low + Shape::B_EXPONENT : 0;
        if (meta.live > 0) low = high = exponent;
        fast = meta.nan == 0 && exponent >= -126 && exponent <= 82;
        shared.rows[in_tile] = fast ? power_of_two(exponent) : 0.0f;
        // What -0 is added to does not change.
        const float bias = p.outputs.bias != nullptr ? p.outputs.bias[row] : -0.0f;
        fast = fast && (__float_as_uint(bias) & 0x7FFFFFFFu) < INF_F32;
        shared.bias[in_tile] = bias;
    }
    if (!fast) atomicOr(&shared.slow, 1u);
    low = __reduce_min_sync(ALL_LANES, low);
    high = __reduce_max_sync(ALL_LANES, high);
    if (in_tile % 32 == 0) {
        atomicMin(&shared.low_b, low);
        atomicMax(&shared.high_b, high);
    }
}

template <class Shape>
__device__ __forceinline__ void rs_scale_token(const WgmmaRsArgs& p, int token, int in_tile, RsShared<Shape>& shared) {
    constexpr int FAR = 100000;
    int low = FAR, high = -FAR;
    bool fast = true;
    if (token < p.a.rows) {
        const RowMeta meta = p.a.meta[token];
        const int add = Shape::A_EXPONENT + Shape::WIDTH * (shared.lowest - WINDOW_BIAS);
        const int exponent = meta.live > 0 ? p.a.bases[token] + add : 0;
        if (meta.live > 0) low = high = exponent;
        fast = meta.nan == 0 && exponent >= -126 && exponent <= 127;
        const float factor = fast ? __fmul_rn(power_of_two(exponent), row_alpha(p.outputs, token)) : 0.0f;
        const u32 magnitude = __float_as_uint(factor) & 0x7FFFFFFFu;
        fast = fast && magnitude > 0x00800000u && magnitude < INF_F32;
        shared.tokens[in_tile] = factor;
    }
    if (!fast) atomicOr(&shared.slow, 1u);
    low = __reduce_min_sync(ALL_LANES, low);
    high = __reduce_max_sync(ALL_LANES, high);
    if (in_tile % 32 == 0) {
        atomicMin(&shared.low_a, low);
        atomicMax(&shared.high_a, high);
    }
}

// Four codes (the low 16 bits) as bytes of the magnitudes, with their signs.
__device__ __forceinline__ u32 signed_bytes(u32 low, u32 high, u32 codes) {
    const u32 plus = permute_bytes(low, high, codes), minus = permute_bytes(low, high, codes ^ 0x8888u);
    return (0x80808080u - minus + plus) ^ 0x80808080u;
}

// The low two bits of each byte, as 1 << of them.
__device__ __forceinline__ u32 powers_of_two(u32 shifts) {
    const u32 by_one = (shifts & 0x01010101u) + 0x01010101u, by_two = (shifts >> 1 & 0x01010101u) * 0xFFu;
    return (by_one & ~by_two) | (by_one << 2 & by_two);
}

// What a warp that multiplies has, and where.
template <class Shape>
struct RsWarp {
    const WgmmaRsArgs& p;
    const RsPlace& place;
    RsShared<Shape>& shared;
    unsigned char* codes;      // its ring
    unsigned char* blocks;     // A's ring
    int copied = 0, stage = 0; // slots of the ring of codes: the next to fill, the next to read
    int slot = 0;              // of A's, and the parity of its round
    u32 parity = 0;
    int filled = 0;            // of warp 0: the slot to fill next, and the parity of `empty` there
    u32 fill_parity = 1;       // the first round is free
    u32 low = 0, high = 0;     // doubled magnitudes

    // Copies the codes of a product: a lane takes a 16-byte chunk of two rows. Chunk c of row r
    // lies at c ^ (r / 2 % 4), so that eight rows fall on different banks.
    __device__ __forceinline__ void copy(int product) {
        if (product < shared.ends[0]) {
            const int lane = (int)threadIdx.x % 32, r = lane / 4, chunk = lane % 4;
            const int row = place.tile_n * RS_ROWS + (int)threadIdx.x / 32 * RS_WARP_ROWS + r;
            const int slice = place.first + (int)(shared.list[product] & 31u);
            const i64 pitch = p.k_pad / 2;
            const u8* from = p.b.codes + row * pitch + slice * (SLICE_K / 2) + 16 * chunk;
            unsigned char* to = codes + copied * RS_CODE_BYTES + r * (SLICE_K / 2) + ((chunk ^ (r / 2 % 4)) * 16);
            // Of a row that is not there nothing is read: zeros are written.
            cp_async_16(to, row < p.n ? from : p.b.codes, row < p.n);
            cp_async_16(to + 8 * (SLICE_K / 2), row + 8 < p.n ? from + 8 * pitch : p.b.codes, row + 8 < p.n);
        }
        copied = copied + 1 == Shape::CODE_STAGES ? 0 : copied + 1;
        cp_async_commit();
    }

    // By warp 0: A's block of a product into the ring.
    __device__ __forceinline__ void fill(int product) {
        if (product >= shared.ends[0]) return;
        // Of fewer than 128 rows there is one tile: a block's rows are the first of a tile of A's.
        const i64 tile = place.tile_m * Shape::N / TILE_ROWS, block_index = shared.list[product] >> 5;
        const u8* block = p.a.blocks + (tile * (place.slices + p.a.extra) + block_index) * (Shape::SUMS * PLANE_BYTES);
        u64* full = &shared.full[filled];
        mbarrier_wait(&shared.empty[filled], fill_parity);
        if (elect_lane()) {
            mbarrier_arrive_expect_tx(full, Shape::STAGE_BYTES);
#pragma unroll
            for (int plane = 0; plane < Shape::SUMS; plane++) {
                unsigned char* to = blocks + filled * Shape::STAGE_BYTES + plane * Shape::PLANE;
                bulk_copy_g2s(to, block + plane * PLANE_BYTES, Shape::PLANE, full);
            }
        }
        __syncwarp(ALL_LANES);
        if (++filled == Shape::STAGES) {
            filled = 0;
            fill_parity ^= 1;
        }
    }

    // What the magnitudes of all groups of the range are multiplied by, of the warp's rows.
    __device__ __forceinline__ void load_powers() {
        const int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
        const int first_row = place.tile_n * RS_ROWS + warp * RS_WARP_ROWS, slice = place.first + lane;
        u32 bytes[RS_WARP_ROWS];
        int lows[RS_WARP_ROWS];
#pragma unroll
        for (int r = 0; r < RS_WARP_ROWS; r++) { // all loads under way at once
            const int row = first_row + r;
            const bool here = row < p.n && slice < place.end;
            bytes[r] = here ? *(const u32*)(p.b.scales + (i64)row * (p.k_pad / 32) + slice * SLICE_STEPS) : 0;
            lows[r] = here ? p.b.meta[row].low : 0;
        }
#pragma unroll
        for (int r = 0; r < RS_WARP_ROWS; r++) {
            // Of a group that is not live anything up to 3.
            shared.powers[(warp * RS_WARP_ROWS + r) * RS_POWER_PITCH + lane] =
                powers_of_two(__vsub4(bytes[r], (u32)lows[r] * 0x01010101u));
        }
        __syncwarp(ALL_LANES);
    }

    // sums += a product. It is waited for: a warp expands while the tensor cores work for others.
    // With the next one's registers written meanwhile the assembler serializes, or needs so many
    // that half as many blocks fit.
    __device__ __forceinline__ void multiply(int (&sums)[Shape::SUMS][Shape::N / 2], int product) {
        u32 a[SLICE_STEPS][4];
        const int lane = (int)threadIdx.x % 32, g = lane / 4, t = lane % 4;
        cp_async_wait<Shape::CODE_STAGES - 2>();
        __syncwarp(ALL_LANES); // the stage is there for all lanes, and all have read the last one
        copy(product + Shape::CODE_STAGES - 1);
        // Into the slot of two products ago: of the last one's some warp may not be done.
        if (threadIdx.x < 32) fill(product + Shape::STAGES - 2);
        __syncwarp(ALL_LANES);
        const int slice = (int)(shared.list[product] & 31u);
        const u32* powers = shared.powers + ((int)threadIdx.x / 32 * RS_WARP_ROWS + g) * RS_POWER_PITCH + slice;
        const u32 by[2] = {powers[0], powers[8 * RS_POWER_PITCH]};
        const unsigned char* own = codes + stage * RS_CODE_BYTES + g * (SLICE_K / 2) + 2 * t;
        stage = stage + 1 == Shape::CODE_STAGES ? 0 : stage + 1;
#pragma unroll
        for (int step = 0; step < SLICE_STEPS; step++) {
            const unsigned char* chunk = own + ((step ^ (g / 2)) * 16);
#pragma unroll
            for (int r = 0; r < 2; r++) {
                const u32 power = by[r] >> (8 * step) & 0xFFu, lows = low * power, highs = high * power;
                const unsigned char* at = chunk + r * 8 * (SLICE_K / 2);
                a[step][r] = signed_bytes(lows, highs, *(const u16*)at);
                a[step][2 + r] = signed_bytes(lows, highs, *(const u16*)(at + 8));
            }
        }
#pragma unroll
        for (int step = 0; step < SLICE_STEPS; step++) wgmma_pin(a[step]); // made before the fence
#pragma unroll
        for (int i = 0; i < Shape::SUMS; i++) wgmma_pin(sums[i]);
        mbarrier_wait(&shared.full[slot], parity);
        const u64 block = smem_descriptor(blocks + slot * Shape::STAGE_BYTES, PLANE_LEAD, PLANE_STRIDE, SWIZZLE_NONE);
        wgmma_fence();
#pragma unroll
        for (int step = 0; step < SLICE_STEPS; step++) {
#pragma unroll
            for (int i = 0; i < Shape::SUMS; i++) {
                wgmma_s8<Shape::N>(sums[i], a[step], block + (u64)((step * 2 * PLANE_LEAD + i * Shape::PLANE) >> 4));
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < Shape::SUMS; i++) wgmma_pin(sums[i]);
#pragma unroll
        for (int step = 0; step < SLICE_STEPS; step++) wgmma_pin(a[step]); // read until here
        if (elect_lane()) mbarrier_arrive(&shared.empty[slot]); // read by this warp's wgmma
        if (++slot == Shape::STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }

    // The sums of the range, in units of the lowest window.
    __device__ __forceinline__ void run(int (&sums)[Shape::SUMS][Shape::N / 2]) {
#pragma unroll
        for (int i = 0; i < Shape::SUMS; i++) {
#pragma unroll
            for (int d = 0; d < Shape::N / 2; d++) sums[i][d] = 0;
        }
        for (int i = 0; i < Shape::CODE_STAGES - 1; i++) copy(i);
        if (threadIdx.x < 32) {
            for (int i = 0; i < Shape::STAGES - 2; i++) fill(i);
        }
        __syncwarp(ALL_LANES);
        load_powers();
        const int thread = (int)threadIdx.x;
        if (thread < Shape::N) rs_scale_token<Shape>(p, place.tile_m * Shape::N + thread, thread, shared);
        low = shared.magnitudes[0];
        high = shared.magnitudes[1];
        int product = 0;
        for (int window = shared.highest; window >= shared.lowest; window--) {
            if (window < shared.highest) {
#pragma unroll
                for (int i = 0; i < Shape::SUMS; i++) {
#pragma unroll
                    for (int d = 0; d < Shape::N / 2; d++) sums[i][d] = (int)((u32)sums[i][d] << Shape::WIDTH);
                }
            }
            const int end = shared.ends[window];
#pragma unroll 1
            for (; product < end; product++) multiply(sums, product);
        }
        cp_async_wait<0>();
    }
};

// Adds the sums of this range to those in memory. True for the block that comes last, which has
// them all afterwards and leaves zeros. Integers modulo 2^32: the order does not matter.
template <class Shape>
__device__ __forceinline__ bool rs_merge(const WgmmaRsArgs& p, const RsPlace& at, RsShared<Shape>& shared,
                                         int (&sums)[Shape::SUMS][Shape::N / 2]) {
    constexpr int THREADS = 32 * RS_WARPS;
    const int thread = thread_here(), tokens = p.a.rows - at.tile_m * Shape::N;
    const i64 tile = (i64)at.tile_m * gridDim.x + at.tile_n;
    int* own = p.sums + tile * (Shape::SUMS * Shape::N / 2 * THREADS) + thread;
#pragma unroll
    for (int i = 0; i < Shape::SUMS; i++) {
#pragma unroll
        for (int d = 0; d < Shape::N / 2; d++) {
            if (d / 4 * 8 < tokens) reduce_add(&own[(i * (Shape::N / 2) + d) * THREADS], sums[i][d]);
        }
    }
    __threadfence(); // what this thread added is out before the arrival
    __syncthreads();
    if (thread == 0) shared.last = atomicAdd(&p.arrivals[tile], 1u) == gridDim.y - 1;
    __syncthreads();
    if (shared.last == 0) return false;
    __threadfence();
#pragma unroll
    for (int i = 0; i < Shape::SUMS; i++) {
#pragma unroll
        for (int d = 0; d < Shape::N / 2; d++) {
            if (d / 4 * 8 >= tokens) continue;
            int* sum = &own[(i * (Shape::N / 2) + d) * THREADS];
            sums[i][d] = *(volatile int*)sum;
            *sum = 0;
        }
    }
    if (thread == 0) p.arrivals[tile] = 0;
    return true;
}

// Where the outputs of a lane go: rows of B `row` and row + 8, and rows of A `token`, + 1, and 8,
// 16 .. further.
struct RsOutputs {
    int row, row_in_tile;
    int token, token_in_tile;
};

template <class Shape, int OUT>
__device__ __forceinline__ void rs_store_fast(const WgmmaRsArgs& p, const RsOutputs& at, const RsShared<Shape>& shared,
                                              const int (&sums)[Shape::SUMS][Shape::N / 2]) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = at.row + 8 * r;
        if (row >= p.n) continue;
        const float by = shared.rows[at.row_in_tile + 8 * r], bias = shared.bias[at.row_in_tile + 8 * r];
        i64 index = (i64)at.token * p.n + row;
#pragma unroll
        for (int j = 0; j < Shape::N / 8; j++) {
            const float2 factors = *(const float2*)&shared.tokens[at.token_in_tile + 8 * j];
            float y[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const float units = (float)Shape::units(sums, 4 * j + 2 * r + c);
                y[c] = __fadd_rn(__fmul_rn(__fmul_rn(units, by), c == 0 ? factors.x : factors.y), bias);
            }
            const int token = at.token + 8 * j;
            if (OUT == F32) {
                if (token < p.a.rows) ((float*)p.outputs.out)[index] = y[0];
                if (token + 1 < p.a.rows) ((float*)p.outputs.out)[index + p.n] = y[1];
            } else {
                const u32 both = OUT == F16 ? pack_f16x2(y[0], y[1]) : pack_bf16x2(y[0], y[1]);
                if (token < p.a.rows) ((u16*)p.outputs.out)[index] = (u16)both;
                if (token + 1 < p.a.rows) ((u16*)p.outputs.out)[index + p.n] = (u16)(both >> 16);
            }
            index += 8 * (i64)p.n;
        }
    }
}

// Output by output. The sums are gone afterwards: registers are shifted past the code, which would
// not fit so many times.
template <class Shape>
__device__ __forceinline__ void rs_store_slowly(const WgmmaRsArgs& p, const RsOutputs& at, const RsShared<Shape>& shared,
                                                int (&sums)[Shape::SUMS][Shape::N / 2]) {
    const int add = Shape::A_EXPONENT + Shape::B_EXPONENT + Shape::WIDTH * (shared.lowest - WINDOW_BIAS);
    const RowMeta none = {};
    const RowMeta rows[2] = {at.row < p.n ? p.b.meta[at.row] : none, at.row + 8 < p.n ? p.b.meta[at.row + 8] : none};
#pragma unroll 1
    for (int j = 0; j < Shape::N / 8; j++) {
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int token = at.token + 8 * j + c;
            if (token >= p.a.rows) continue;
            const int exponent = p.a.bases[token] + add;
            const bool nan = p.a.meta[token].nan != 0;
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (at.row + 8 * r >= p.n) continue;
                const auto units = Shape::units(sums, 2 * r + c);
                const float s32 =
                    nan || rows[r].nan != 0 ? __uint_as_float(NAN_F32) : round_units(units, exponent + rows[r].low);
                finish(p.outputs, token, at.row + 8 * r, p.n, s32);
            }
        }
#pragma unroll
        for (int i = 0; i < Shape::SUMS; i++) {
#pragma unroll
            for (int d = 0; d + 4 < Shape::N / 2; d++) sums[i][d] = sums[i][d + 4];
        }
    }
}

template <class Shape>
__device__ __forceinline__ void rs_store(const WgmmaRsArgs& p, const RsPlace& place, const RsShared<Shape>& shared,
                                         int (&sums)[Shape::SUMS][Shape::N / 2]) {
    const int thread = thread_here(), lane = thread % 32;
    const int row_in_tile = thread / 32 * RS_WARP_ROWS + lane / 4, token_in_tile = 2 * (lane % 4);
    const RsOutputs at = {place.tile_n * RS_ROWS + row_in_tile, row_in_tile, place.tile_m * Shape::N + token_in_tile,
                          token_in_tile};
    if (p.paths != nullptr && thread == 0) {
        const int tokens = p.a.rows - place.tile_m * Shape::N, rows = p.n - place.tile_n * RS_ROWS;
        const u64 outputs = (u64)(tokens < Shape::N ? tokens : Shape::N) * (u64)(rows < RS_ROWS ? rows : RS_ROWS);
        atomicAdd(&p.paths[shared.lowest < shared.highest ? 1 : 0], outputs);
    }
    const bool fits = shared.low_a + shared.low_b >= -126 && shared.high_a + shared.high_b <= 82;
    if (shared.slow != 0 || !fits) {
        rs_store_slowly<Shape>(p, at, shared, sums);
        return;
    }
    if (p.outputs.out_type == F32) {
        rs_store_fast<Shape, F32>(p, at, shared, sums);
    } else if (p.outputs.out_type == F16) {
        rs_store_fast<Shape, F16>(p, at, shared, sums);
    } else {
        rs_store_fast<Shape, BF16>(p, at, shared, sums);
    }
}

template <int PRODUCT, int N>
__device__ __forceinline__ void rs_matmul(const WgmmaRsArgs& p) {
    typedef RsShape<PRODUCT, N> Shape;
    typedef RsLayout<Shape> Layout;
    static_assert(Layout::BYTES <= RS_SHARED[Shape::SUMS - 1][N / 64], "");
    unsigned char* memory = dynamic_shared();
    RsShared<Shape>& shared = *(RsShared<Shape>*)(memory + Layout::SHARED);
    const int thread = (int)threadIdx.x;
    RsPlace place = {(int)blockIdx.z, (int)blockIdx.x, (int)blockIdx.y, p.k_pad / SLICE_K, 0, 0};
    place.first = place.range * p.range_slices;
    place.end = place.first + p.range_slices < place.slices ? place.first + p.range_slices : place.slices;
    if (thread == 0) {
        for (int i = 0; i < Shape::STAGES; i++) {
            mbarrier_init(&shared.full[i], 1);
            mbarrier_init(&shared.empty[i], RS_WARPS);
        }
        shared.left = shared.slow = 0;
        shared.low_a = shared.low_b = 100000;
        shared.high_a = shared.high_b = -100000;
        // By way of memory: as literals they cost moves at every use.
        shared.magnitudes[0] = 0x03020100u;
        shared.magnitudes[1] = 0x0C080604u;
        fence_proxy_async();
    }
    __syncthreads();
    if (thread < 32) rs_plan<Shape>(p, place, shared);
    if (thread >= RS_THREADS - RS_ROWS) {
        const int row = thread - (RS_THREADS - RS_ROWS);
        rs_scale_row<Shape>(p, place.tile_n * RS_ROWS + row, row, shared);
    }
    __syncthreads();
    if (shared.left != 0) {
        if (thread == 0 && place.range == 0) {
            p.left[1 + atomicAdd(p.left, 1u)] = (u32)(place.tile_m * (int)gridDim.x + place.tile_n);
        }
        return;
    }
    int sums[Shape::SUMS][N / 2];
    unsigned char* codes = memory + thread / 32 * (Shape::CODE_STAGES * RS_CODE_BYTES);
    RsWarp<Shape> warp = {p, place, shared, codes, memory + Layout::BLOCKS};
    warp.run(sums);
    __syncthreads(); // what the outputs are scaled by is there
    if (gridDim.y > 1 && !rs_merge<Shape>(p, place, shared, sums)) return;
    rs_store<Shape>(p, place, shared, sums);
}

#define RS_KERNEL(name, PRODUCT, N, blocks)                           \
    KERNEL_BOUNDS(fp4::RS_THREADS, blocks)                            \
    void name(fp4::WgmmaRsArgs p) { fp4::rs_matmul<PRODUCT, N>(p); }  \
    EXPORT(name)

#endif // FP4_SM == 90

} // namespace fp4
