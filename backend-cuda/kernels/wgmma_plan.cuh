// What a tile of the wgmma matmul takes, found by one warp: the products of blocks, level by level,
// and whether their sums are exact (C6). Not yet run on hardware.
//
// A product of blocks of windows p and q is an exact integer in units of 2^(base_a + base_b + WIDTH
// (p + q) + const), so the sums of a level p + q share one unit for each output, and the whole of K
// is one integer in units of the lowest level.
//
//     plain tile    all of A's and of B's rows lie in window 0 (nothing took an extra block): one
//                   level, a product for each slice of 128 of K, at addresses that follow each
//                   other. Two of a pair (WgmmaWork), if both are, share B's blocks: `paired`,
//                   which both blocks of the cluster find by the same numbers in memory
//     listed tile   for each slice, every pair of windows that share a step: a list in shared
//                   memory, the highest level first. Two passes over the entries: count, write.
//                   Without any, one product of zeros
//
// Bound. Let n_l be the number of steps of 32 in products of level l and L_a, L_b the largest
// digits (fold.cuh). A step of a block without the window is zeros and does not count:
//
//     32 * L_a * L_b * sum over l of n_l * 2^(WIDTH (l - lowest)) <= 2^31 - 1
//
// One step adds at most 32 L_a L_b in units of its level, so this bounds the final sum, which then
// is its own residue modulo 2^32, and wrapping on the way is harmless. With one level it is K <=
// 233,016 for MXFP4 (whole steps: 7281, K = 232,992), 8285 steps, K = 265,120, for NVFP4 and 10,922
// steps, K = 349,504, for MXINT8 by MXFP4. A plain tile counts all steps of its slices: K <=
// 232,960, 265,088 and 349,440. If those are too many it is listed, where steps without live groups
// do not count.
//
// Of several ranges of K each has a plan of its own for the same tile. Levels, the bound and
// whether the tile is left are those of all of K, so all of them decide alike, and a range's sums
// are in units of the lowest level of all. The sum of those is the whole sum, modulo 2^32.
//
// A tile that fails the bound, has no folded form, or has more products than the list holds (1024:
// with a second window in every slice of A K = 65,536) is left to another kernel.
#pragma once

#include "fold.cuh"

namespace fp4 {

constexpr int LEVELS = 2 * WINDOWS - 1;
constexpr int LIST_MOST = 1024;
constexpr u32 NO_BLOCK = 0xFFFFFFFFu;

constexpr int BAND_PAIRS = 4; // rows of pairs that are taken together
constexpr int NO_TILE = -1;

struct TilePlace {
    int m, n;
};

// What a block of a cluster of two takes: a tile of the pair at a place in the order of pairs, over
// a range of K. Two tiles below each other are a pair: they have the same tiles of B. Four pairs
// down, then one across, so that what is at work at one time shares operands in the cache. Tiles of
// the last row, if it is an odd one, come after those, two next to each other, which share nothing.
struct WgmmaWork {
    TilePlace place;
    bool here;  // whether there is such a tile: the last pair may have one
    bool stack; // whether the pair has the same tiles of B
    int range;

    __device__ static __forceinline__ int pairs(int down, int across) { return down / 2 * across + down % 2 * ((across + 1) / 2); }

    __device__ static __forceinline__ WgmmaWork at(int unit, int rank, int down, int across) {
        const int pairs_all = pairs(down, across), range = unit / pairs_all, index = unit % pairs_all;
        const int down_pairs = down / 2, beside = index - down_pairs * across;
        if (beside >= 0) {
            const int n = 2 * beside + rank;
            return WgmmaWork{{down - 1, n}, n < across, false, range};
        }
        const int band = index / (BAND_PAIRS * across), in_band = index % (BAND_PAIRS * across);
        const int left = down_pairs - BAND_PAIRS * band, rows = left < BAND_PAIRS ? left : BAND_PAIRS;
        return WgmmaWork{{2 * (BAND_PAIRS * band + in_band % rows) + rank, in_band / rows}, true, true, range};
    }
};

// The entries of a slice in the tiles of a product of tiles.
template <int B_TILES>
struct SliceEntries {
    uint2 a, b[B_TILES];
    u32 b_sets; // of all of B's tiles

    // `b_tiles` of B's are there; what is past the operand has no windows.
    __device__ __forceinline__ SliceEntries(const uint2* a_entries, const uint2* b_entries, int b_tiles, int slice, int slices) {
        a = a_entries[slice];
        b_sets = 0;
#pragma unroll
        for (int i = 0; i < B_TILES; i++) {
            b[i] = i < b_tiles ? b_entries[(i64)i * slices + slice] : make_uint2(0, 0);
            b_sets |= b[i].x;
        }
    }
};

struct TilePlan {
    TilePlace place;      // m is NO_TILE after the last tile
    int mate;             // m of the other block's tile, if it shares B; else its own
    int range;            // of K
    int first, end;       // slices of it
    int left;             // whether it is left to another kernel
    int listed;
    int paired;           // whether the other block of the cluster has the same stages of B
    int planes;           // whether there is more than one level
    int lowest, highest;  // levels: the lowest with products, the highest with some in this range
    int products[LEVELS]; // in this range, of which there is one at least
};

// The plan, and what only its maker uses.
struct TilePlanner {
    u32 steps[LEVELS];     // that count, of each level
    u32 products[LEVELS];  // in the range
    u32 all;               // and in all of K
    u32 cursor[LEVELS];    // where the next product of a level goes
    uint4 list[LIST_MOST]; // block of A, of each of B's tiles or NO_BLOCK

    // Calls `found(bit of A, bit of B, steps they share)` for the pairs of windows of a slice.
    template <class Found>
    __device__ static __forceinline__ void pairs(u32 a, u32 b, const Found& found) {
        for (u32 as = windows_of(a); as != 0; as &= as - 1) {
            const int a_bit = __ffs((int)as) - 1;
            for (u32 bs = windows_of(b); bs != 0; bs &= bs - 1) {
                const int b_bit = __ffs((int)bs) - 1;
                const u32 shared = (a >> a_bit) & (b >> b_bit) & 0x01010101u;
                if (shared != 0) found(a_bit, b_bit, (u32)__popc(shared));
            }
        }
    }

    // Fills the rest of a plan whose place, mate and range are there. By a whole warp; afterwards
    // every lane may read it. `most_steps` is the bound's largest number of steps in units of the
    // lowest level.
    template <int B_TILES, int WIDTH>
    __device__ __forceinline__ void plan(const FoldedOperand& a, const FoldedOperand& b, int slices, u32 most_steps, TilePlan& to) {
        const int a_tile = to.place.m, b_tile = to.place.n * B_TILES;
        const int lane = thread_here() % 32, b_tiles = (b.rows + TILE_ROWS - 1) / TILE_ROWS - b_tile;
        bool left = a.incomplete[a_tile] != 0;
        u32 used = a.used[a_tile];
        for (int i = 0; i < B_TILES && i < b_tiles; i++) {
            left = left || b.incomplete[b_tile + i] != 0;
            used |= b.used[b_tile + i];
        }
        if (left || (used == 0 && slices > 0 && (u32)slices * SLICE_STEPS <= most_steps)) {
            if (lane < LEVELS) to.products[lane] = lane == 2 * WINDOW_BIAS ? to.end - to.first : 0;
            if (lane == 0) {
                to.left = left;
                to.listed = 0;
                const int mate = to.mate;
                to.paired = !left && mate != a_tile && a.incomplete[mate] == 0 && a.used[mate] == 0;
                to.planes = 0;
                to.lowest = to.highest = 2 * WINDOW_BIAS;
            }
            __syncwarp(ALL_LANES);
            return;
        }

        if (lane < LEVELS) steps[lane] = products[lane] = 0;
        if (lane == 0) all = 0;
        __syncwarp(ALL_LANES);
        const uint2* a_entries = (const uint2*)a.entries + (i64)a_tile * slices;
        const uint2* b_entries = (const uint2*)b.entries + (i64)b_tile * slices;
        for (int slice = lane; slice < slices; slice += 32) {
            const SliceEntries<B_TILES> entries(a_entries, b_entries, b_tiles, slice, slices);
            pairs(entries.a.x, entries.b_sets, [&](int a_bit, int b_bit, u32 common) {
                atomicAdd(&steps[a_bit + b_bit], common);
                atomicAdd(&all, 1u);
                if (slice >= to.first && slice < to.end) atomicAdd(&products[a_bit + b_bit], 1u);
            });
        }
        __syncwarp(ALL_LANES);

        // The bound, and the levels; every lane for itself.
        int lowest = 0, highest = -1, highest_here = -1;
        u64 reach = 0; // steps in units of the lowest level, saturating
        u32 total = 0;
        for (int level = LEVELS - 1; level >= 0; level--) {
            if (lane == level) cursor[level] = total;
            const u32 count = steps[level];
            if (count == 0) continue;
            reach = highest < 0 ? 0 : (lowest - level) * WIDTH > 30 ? 1ull << 32 : reach << ((lowest - level) * WIDTH);
            reach += count;
            reach = reach < 1ull << 32 ? reach : 1ull << 32;
            lowest = level;
            if (highest < 0) highest = level;
            if (highest_here < 0 && products[level] != 0) highest_here = level;
            total += products[level];
        }
        left = reach > most_steps || all > (u32)LIST_MOST;
        const bool none = total == 0;
        if (highest < 0) lowest = highest = 2 * WINDOW_BIAS;
        if (lane < LEVELS) to.products[lane] = none ? lane == lowest : (int)products[lane];
        if (lane == 0) {
            to.left = left;
            to.listed = 1;
            to.paired = 0;
            to.planes = lowest < highest;
            to.lowest = lowest;
            to.highest = none ? lowest : highest_here;
            if (none) list[0] = make_uint4(NO_BLOCK, NO_BLOCK, NO_BLOCK, 0);
        }
        __syncwarp(ALL_LANES);
        if (left) return;
        for (int slice = to.first + lane; slice < to.end; slice += 32) {
            const SliceEntries<B_TILES> entries(a_entries, b_entries, b_tiles, slice, slices);
            pairs(entries.a.x, entries.b_sets, [&](int a_bit, int b_bit, u32) {
                u32 blocks[2] = {NO_BLOCK, NO_BLOCK};
#pragma unroll
                for (int i = 0; i < B_TILES; i++) {
                    if (windows_of(entries.b[i].x) >> b_bit & 1u) blocks[i] = (u32)block_index(entries.b[i], b_bit, slice, slices);
                }
                list[atomicAdd(&cursor[a_bit + b_bit], 1u)] =
                    make_uint4((u32)block_index(entries.a, a_bit, slice, slices), blocks[0], blocks[1], 0);
            });
        }
        __syncwarp(ALL_LANES);
    }
};

} // namespace fp4
