// Writes the folded operand of fold.cuh from packed codes and scales (C6). Not yet run on hardware.
//
//     fold_eight, a block for 8 rows, of which nothing else must be known:
//         a warp for each row: its metadata, and its live groups counted by exponent; the base is
//         the lowest of them if windows 0 to 3 hold all, else the highest from which a window holds
//         most (fold.cuh)
//         all warps, along k: the 16-byte pieces of window 0, zeros where a group lies in another
//         window or is not live; the set of windows joins the slice's entry
//     fold_extras, a launch after it, a block for 128 rows x 8 slices:
//         slices whose entry names windows other than 0 get extra blocks, and the codes are read
//         once more for them
//
// A slice's entry must be 0 before fold_eight, and `used` and `incomplete` too. Window 0 has a
// fixed place, so rows fold without waiting for each other; only what ordinary data has none of
// needs the second launch, which otherwise reads the entries (two words for 128 x 128 elements) and
// ends.
//
// The eight rows of fold_eight are those of a wgmma core matrix: 8 x 16 bytes in a row, which a
// warp writes as whole 128-byte lines. Cost: codes and scales are read twice, the second time from
// the cache; written are PLANES bytes an element, and as much again for each extra block.
#pragma once

#include "fold.cuh"
#include "row_meta.cuh"

namespace fp4 {

constexpr int FOLD_THREADS = 32 * FOLD_ROWS; // of fold_eight: a warp a row

// Shared memory of fold_eight.
struct FoldScratch {
    u32 counts[FOLD_ROWS][256]; // live groups by exponent
    int bases[FOLD_ROWS];
};

// Where a group lies: the bit of its window, its shift inside, and its signed significand.
struct Place {
    int bit; // NOT_LIVE, NO_WINDOW or 0..7
    int shift, significand;
};
constexpr int NOT_LIVE = -1, NO_WINDOW = -2;

template <int ENCODING>
__device__ __forceinline__ Place place_group(u32 byte, bool any, int base) {
    Place place = {NOT_LIVE, 0, 0};
    if (!any || !Fold<ENCODING>::live(byte)) return place;
    int offset = Fold<ENCODING>::field(byte) - base + WINDOW_BIAS * Fold<ENCODING>::WIDTH;
    if (offset < 0 || offset >= WINDOWS * Fold<ENCODING>::WIDTH) {
        place.bit = NO_WINDOW;
        return place;
    }
    place.bit = offset / Fold<ENCODING>::WIDTH;
    place.shift = offset % Fold<ENCODING>::WIDTH;
    if (ENCODING == NVFP4) {
        int m = (int)(byte & 7u) + (byte & 0x78u ? 8 : 0);
        place.significand = byte & 0x80u ? -m : m;
    }
    return place;
}

// Where element k of a row lies among packed codes or elements.
template <int ENCODING>
__device__ __forceinline__ i64 byte_of(int row, int k_pad, int k) {
    i64 element = (i64)row * k_pad + k;
    return ENCODING == MXINT8 ? element : element / 2;
}

// Sixteen codes or elements as they are packed; of codes the second pair of words is 0.
template <int ENCODING>
__device__ __forceinline__ uint4 load_sixteen(const u8* codes) {
    if (ENCODING == MXINT8) return *(const uint4*)codes;
    uint2 words = *(const uint2*)codes;
    return make_uint4(words.x, words.y, 0, 0);
}

// Whether any of them is not +-0: not 0.
template <int ENCODING>
__device__ __forceinline__ u32 any_of_sixteen(const uint4& words) {
    return ENCODING == MXINT8 ? words.x | words.y | words.z | words.w : (words.x | words.y) & 0x77777777u;
}

// Sixteen codes or elements as the bytes of their row's piece, in every plane; zeros unless `here`.
template <int ENCODING>
__device__ __forceinline__ void write_piece(u8* to, const uint4& codes, const Place& place, bool here) {
    constexpr int PLANES = Fold<ENCODING>::PLANES;
    const u32 quads[4] = {codes.x & 0xFFFFu, codes.x >> 16, codes.y & 0xFFFFu, codes.y >> 16};
    u32 bytes[PLANES][4];
    if (ENCODING == MXINT8) {
        const u32 elements[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
            nibble_digits(here ? elements[i] : 0, place.shift, bytes[0][i], bytes[PLANES - 1][i]);
        }
    } else if (ENCODING == MXFP4) {
#pragma unroll
        for (int i = 0; i < 4; i++) bytes[0][i] = here ? expand_doubled(quads[i], place.shift) : 0;
    } else {
        DigitTable tables[3];
        digit_tables(here ? place.significand : 0, here ? place.shift : 0, tables);
#pragma unroll
        for (int p = 0; p < PLANES; p++) {
#pragma unroll
            for (int i = 0; i < 4; i++) bytes[p][i] = tables[p].expand(quads[i]);
        }
    }
#pragma unroll
    for (int p = 0; p < PLANES; p++) {
        *(uint4*)(to + p * PLANE_BYTES) = make_uint4(bytes[p][0], bytes[p][1], bytes[p][2], bytes[p][3]);
    }
}

// The base of a row (fold.cuh), of its live groups by exponent; 0 if it has none. By a whole warp.
template <int ENCODING>
__device__ __forceinline__ int choose_base(const u32* counts, int lane) {
    constexpr int WIDTH = Fold<ENCODING>::WIDTH;
    int low = 256, high = -1;
    for (int i = lane; i < 256; i += 32) {
        if (counts[i] == 0) continue;
        low = i < low ? i : low;
        high = i;
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        int other_low = __shfl_xor_sync(ALL_LANES, low, lanes), other_high = __shfl_xor_sync(ALL_LANES, high, lanes);
        low = other_low < low ? other_low : low;
        high = other_high > high ? other_high : high;
    }
    if (high < 0) return 0;
    if (high - low < (WINDOWS - WINDOW_BIAS) * WIDTH) return low;
    // The most groups, and of equals the highest base: 2^32 * count + base.
    u64 best = 0;
    for (int base = lane; base < 256; base += 32) {
        u32 held = 0;
        for (int i = base; i < base + WIDTH && i < 256; i++) held += counts[i];
        u64 candidate = ((u64)held << 32) | (u32)base;
        best = candidate > best ? candidate : best;
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, best, lanes);
        best = other > best ? other : best;
    }
    return (int)(u32)best;
}

// Folds rows first_row .. first_row + 7, of which those from `rows` on are zeros. By a block of
// FOLD_THREADS.
template <int ENCODING>
__device__ __forceinline__ void fold_eight(const u8* codes, const u8* scales, int first_row, int rows, int k_pad,
                                           const FoldedOperand& to, FoldScratch& scratch) {
    constexpr int PLANES = Fold<ENCODING>::PLANES;
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    constexpr int GROUP = Encoded<ENCODING>::GROUP;
    const int tile = first_row / TILE_ROWS, steps = k_pad / STEP_K, slices = k_pad / SLICE_K, groups = k_pad / GROUP;
    u32* counts = scratch.counts[warp];
    for (int i = lane; i < 256; i += 32) counts[i] = 0;
    __syncwarp(ALL_LANES);
    int own = first_row + warp;
    if (own < rows) {
        auto count = [=](u32 byte) { atomicAdd(&counts[Fold<ENCODING>::field(byte)], 1u); };
        RowMeta meta = describe_row<ENCODING>(codes, scales, own, k_pad, lane, count);
        __syncwarp(ALL_LANES);
        int base = choose_base<ENCODING>(counts, lane);
        if (lane == 0) {
            scratch.bases[warp] = to.bases[own] = base;
            to.meta[own] = meta;
        }
    }
    __syncthreads();

    // Two steps a warp at a time: lane = 8 * (step, half of its 32 k) + row.
    const int row = first_row + lane % 8, half = lane / 8 % 2, base = scratch.bases[lane % 8];
    for (int pair = warp; pair < steps / 2; pair += FOLD_ROWS) {
        const int step = 2 * pair + lane / 16;
        uint4 words = make_uint4(0, 0, 0, 0);
        u32 byte = 0;
        if (row < rows) {
            words = load_sixteen<ENCODING>(codes + byte_of<ENCODING>(row, k_pad, step * STEP_K + half * 16));
            byte = scales[(i64)row * groups + (GROUP == 32 ? step : 2 * step + half)];
        }
        u32 any = any_of_sixteen<ENCODING>(words);
        if (GROUP == 32) any |= __shfl_xor_sync(ALL_LANES, any, 8); // the other half of the group
        Place place = place_group<ENCODING>(byte, any != 0, base);
        if (place.bit == NO_WINDOW) atomicOr(&to.incomplete[tile], 1u);
        i64 block = (i64)tile * (slices + to.extra) + step / SLICE_STEPS;
        const int in_slice = step % SLICE_STEPS;
        u8* piece = to.blocks + block * (PLANES * PLANE_BYTES) + piece_at(row % TILE_ROWS, in_slice * STEP_K + half * 16);
        write_piece<ENCODING>(piece, words, place, place.bit == WINDOW_BIAS);
        u32 set = place.bit >= 0 ? 1u << place.bit : 0;
        for (int lanes = 1; lanes < 16; lanes *= 2) set |= __shfl_xor_sync(ALL_LANES, set, lanes);
        if (lane % 16 == 0 && set != 0) {
            atomicOr(&to.entries[2 * ((i64)tile * slices + step / SLICE_STEPS)], set << (8 * in_slice));
        }
    }
    __syncthreads(); // `scratch` may serve the next eight rows
}

// The windows other than 0 of a tile's slices. By a block of FOLD_THREADS; `entries` and `any` are
// shared.
template <int ENCODING>
__device__ __forceinline__ void fold_extras(const u8* codes, const u8* scales, int rows, int k_pad, const FoldedOperand& to,
                                            uint2* entries, u32* any) {
    constexpr int PLANES = Fold<ENCODING>::PLANES;
    constexpr u32 OTHERS = 0xFFu & ~(1u << WINDOW_BIAS);
    const int thread = (int)threadIdx.x, tile = (int)blockIdx.x, first_slice = (int)blockIdx.y * EXTRA_SLICES;
    constexpr int GROUP = Encoded<ENCODING>::GROUP;
    const int slices = k_pad / SLICE_K, groups = k_pad / GROUP;
    if (thread == 0) *any = 0;
    __syncthreads();
    if (thread < EXTRA_SLICES) {
        const bool here = first_slice + thread < slices;
        uint2* at = (uint2*)to.entries + (i64)tile * slices + first_slice + thread;
        uint2 entry = here ? *at : make_uint2(0, 0);
        u32 more = (u32)__popc(windows_of(entry.x) & OTHERS);
        if (more > 0) {
            entry.y = atomicAdd(&to.used[tile], more);
            if (entry.y + more > (u32)to.extra) {
                atomicOr(&to.incomplete[tile], 1u);
                entry = make_uint2(0, 0); // nowhere to write it
            } else {
                atomicOr(any, 1u);
            }
            *at = entry;
        }
        entries[thread] = more > 0 ? entry : make_uint2(0, 0);
    }
    __syncthreads();
    if (*any == 0) return;

    const int r = thread % TILE_ROWS, half = thread / TILE_ROWS, row = tile * TILE_ROWS + r;
    const int base = row < rows ? to.bases[row] : 0;
    for (int s = 0; s < EXTRA_SLICES * SLICE_STEPS; s++) {
        const uint2 entry = entries[s / SLICE_STEPS];
        if (entry.x == 0) continue;
        const int slice = first_slice + s / SLICE_STEPS, step = first_slice * SLICE_STEPS + s;
        uint4 mine = make_uint4(0, 0, 0, 0);
        u32 codes_any = 0, byte = 0;
        if (row < rows) {
            const u8* from = codes + byte_of<ENCODING>(row, k_pad, step * STEP_K);
            mine = load_sixteen<ENCODING>(from + byte_of<ENCODING>(0, 0, 16 * half));
            codes_any = any_of_sixteen<ENCODING>(mine);
            if (GROUP == 32) { // and the other half of the group
                codes_any |= any_of_sixteen<ENCODING>(load_sixteen<ENCODING>(from + byte_of<ENCODING>(0, 0, 16 - 16 * half)));
            }
            byte = scales[(i64)row * groups + (GROUP == 32 ? step : 2 * step + half)];
        }
        const Place place = place_group<ENCODING>(byte, codes_any != 0, base);
        for (u32 left = windows_of(entry.x) & OTHERS; left != 0; left &= left - 1) {
            const int bit = __ffs((int)left) - 1;
            i64 block = (i64)tile * (slices + to.extra) + block_index(entry, bit, slice, slices);
            u8* piece = to.blocks + block * (PLANES * PLANE_BYTES) + piece_at(r, s % SLICE_STEPS * STEP_K + half * 16);
            write_piece<ENCODING>(piece, mine, place, place.bit == bit);
        }
    }
}

} // namespace fp4
