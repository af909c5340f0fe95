// Makes the folded operand of fold.cuh from packed codes and scales, in two kernels. Not yet run on hardware.
//
//     fold_rows:    a warp for each row counts its live groups by exponent and takes as base the highest
//                   exponent from which a window holds most of them; clears the tile's counters
//     fold_blocks:  a block for 128 rows x 128 k, a thread for each row: finds each group's window, the
//                   set of windows of each of the four steps, room for the extra blocks, and writes them
//
// Cost: reads half a byte, writes PLANES bytes an element and window; bound by memory for MXFP4.
#include "fold.cuh"

namespace fp4 {

constexpr int ROW_WARPS = 4;
constexpr int SLAB_STEPS = 4;

template <int G>
__device__ __forceinline__ bool any_code(const u8* codes) {
    uint2 first = *(const uint2*)codes;
    u32 any = first.x | first.y;
    if (G == 32) {
        uint2 second = *(const uint2*)(codes + 8);
        any |= second.x | second.y;
    }
    return (any & 0x77777777u) != 0;
}

template <int G>
__device__ __forceinline__ void fold_rows(const u8* codes, const u8* scales, int rows, int k_pad, int* bases,
                                          u32* used, u32* incomplete) {
    SHARED(u32, counts, [ROW_WARPS][256]);
    const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    const int row = (int)blockIdx.x * ROW_WARPS + warp, groups = k_pad / G;
    for (int i = lane; i < 256; i += 32) counts[warp][i] = 0;
    __syncwarp(ALL_LANES);
    if (row >= rows) return; // a whole warp
    if (row % TILE_ROWS == 0 && lane == 0) used[row / TILE_ROWS] = incomplete[row / TILE_ROWS] = 0;
    const u8* row_codes = codes + (i64)row * (k_pad / 2);
    for (int g = lane; g < groups; g += 32) {
        u32 byte = scales[(i64)row * groups + g];
        if (Fold<G>::live(byte) && any_code<G>(row_codes + (i64)g * (G / 2))) {
            atomicAdd(&counts[warp][Fold<G>::field(byte)], 1u);
        }
    }
    __syncwarp(ALL_LANES);
    // The most groups, and of equals the highest base: 2^32 * count + base.
    u64 best = 0;
    for (int base = lane; base < 256; base += 32) {
        u32 held = 0;
        for (int i = base; i < base + Fold<G>::WIDTH && i < 256; i++) held += counts[warp][i];
        u64 candidate = ((u64)held << 32) | (u32)base;
        best = candidate > best ? candidate : best;
    }
    for (int step = 16; step > 0; step /= 2) {
        u64 other = __shfl_xor_sync(ALL_LANES, best, step);
        best = other > best ? other : best;
    }
    if (lane == 0) bases[row] = best >> 32 ? (int)(u32)best : 0;
}

template <int G>
__device__ __forceinline__ void fold_blocks(const u8* codes, const u8* scales, const int* bases, int rows, int k_pad,
                                            int extra, u8* blocks, u32* entries, u32* used, u32* incomplete) {
    constexpr int PLANES = Fold<G>::PLANES, WIDTH = Fold<G>::WIDTH, GROUPS = STEP_K / G;
    SHARED(u32, sets, [SLAB_STEPS]);
    SHARED(u32, firsts, [SLAB_STEPS]);
    const int r = (int)threadIdx.x, tile = (int)blockIdx.x, row = tile * TILE_ROWS + r;
    const int steps = k_pad / STEP_K, first_step = (int)blockIdx.y * SLAB_STEPS;
    if (r < SLAB_STEPS) sets[r] = 0;
    __syncthreads();

    uint4 words[SLAB_STEPS];
    int windows[SLAB_STEPS][GROUPS]; // bit of the window, -1 if the group is not live
    int shifts[SLAB_STEPS][GROUPS], significands[SLAB_STEPS][GROUPS];
    const int base = row < rows ? bases[row] : 0;
#pragma unroll
    for (int s = 0; s < SLAB_STEPS; s++) {
        words[s] = make_uint4(0, 0, 0, 0);
        if (row < rows) words[s] = *(const uint4*)(codes + (i64)row * (k_pad / 2) + (first_step + s) * (STEP_K / 2));
#pragma unroll
        for (int q = 0; q < GROUPS; q++) {
            windows[s][q] = -1;
            shifts[s][q] = significands[s][q] = 0;
            u32 any = q == 0 ? words[s].x | words[s].y : 0;
            if (q == 1 || G == 32) any |= words[s].z | words[s].w;
            u32 byte = row < rows ? scales[(i64)row * (k_pad / G) + (first_step + s) * GROUPS + q] : 0;
            if ((any & 0x77777777u) == 0 || !Fold<G>::live(byte)) continue;
            int offset = Fold<G>::field(byte) - base + WINDOW_BIAS * WIDTH;
            if (offset < 0 || offset >= WINDOWS * WIDTH) {
                atomicOr(&incomplete[tile], 1u);
                continue;
            }
            windows[s][q] = offset / WIDTH;
            shifts[s][q] = offset % WIDTH;
            if (G == 16) {
                int m = (int)(byte & 7u) + (byte & 0x78u ? 8 : 0);
                significands[s][q] = byte & 0x80u ? -m : m;
            }
            atomicOr(&sets[s], 1u << windows[s][q]);
        }
    }
    __syncthreads();
    if (r < SLAB_STEPS) {
        int more = __popc(sets[r]) - 1;
        u32 first = 0;
        if (more > 0) {
            first = atomicAdd(&used[tile], (u32)more);
            if (first + (u32)more > (u32)extra) {
                atomicOr(&incomplete[tile], 1u);
                sets[r] = 0; // nowhere to write it
                first = 0;
            }
        }
        firsts[r] = first;
        entries[(i64)tile * steps + first_step + r] = sets[r] | (first << 8);
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < SLAB_STEPS; s++) {
        const u32 entry = sets[s] | (firsts[s] << 8);
        if (sets[s] == 0) continue;
        const u32 codes_of[4] = {words[s].x, words[s].y, words[s].z, words[s].w};
        u32 bytes[PLANES][8]; // 32 k of this row, all windows
#pragma unroll
        for (int q = 0; q < GROUPS; q++) {
            if (G == 32) {
#pragma unroll
                for (int w = 0; w < 4; w++) {
                    bytes[0][2 * w] = expand_doubled(codes_of[w] & 0xFFFFu, shifts[s][q]);
                    bytes[0][2 * w + 1] = expand_doubled(codes_of[w] >> 16, shifts[s][q]);
                }
            } else {
                DigitTable tables[3];
                digit_tables(significands[s][q], shifts[s][q], tables);
#pragma unroll
                for (int p = 0; p < PLANES; p++) {
#pragma unroll
                    for (int w = 2 * q; w < 2 * q + 2; w++) {
                        bytes[p][2 * w] = tables[p].expand(codes_of[w] & 0xFFFFu);
                        bytes[p][2 * w + 1] = tables[p].expand(codes_of[w] >> 16);
                    }
                }
            }
        }
        for (int bit = 0; bit < WINDOWS; bit++) {
            if ((sets[s] >> bit & 1u) == 0) continue;
            i64 block = (i64)tile * (steps + extra) + block_index(entry, bit, first_step + s, steps);
            u8* to = blocks + block * (PLANES * PLANE_BYTES) + r / 8 * 256 + r % 8 * 16;
#pragma unroll
            for (int half = 0; half < 2; half++) {
                // MXFP4: the half is part of the one group; NVFP4: it is a group.
                const u32 mine = windows[s][half * GROUPS / 2] == bit ? ~0u : 0u;
#pragma unroll
                for (int p = 0; p < PLANES; p++) {
                    *(uint4*)(to + p * PLANE_BYTES + half * 128) =
                        make_uint4(bytes[p][4 * half] & mine, bytes[p][4 * half + 1] & mine,
                                   bytes[p][4 * half + 2] & mine, bytes[p][4 * half + 3] & mine);
                }
            }
        }
    }
}

} // namespace fp4

#define FOLD_KERNELS(format, G)                                                                                   \
    KERNEL_BOUNDS(128, 1)                                                                                         \
    void fold_rows_##format(const fp4::u8* codes, const fp4::u8* scales, int rows, int k_pad, int* bases,          \
                            fp4::u32* used, fp4::u32* incomplete) {                                                \
        fp4::fold_rows<G>(codes, scales, rows, k_pad, bases, used, incomplete);                                    \
    }                                                                                                              \
    EXPORT(fold_rows_##format)                                                                                     \
    KERNEL_BOUNDS(128, 1)                                                                                         \
    void fold_blocks_##format(const fp4::u8* codes, const fp4::u8* scales, const int* bases, int rows, int k_pad,  \
                              int extra, fp4::u8* blocks, fp4::u32* entries, fp4::u32* used,                       \
                              fp4::u32* incomplete) {                                                              \
        fp4::fold_blocks<G>(codes, scales, bases, rows, k_pad, extra, blocks, entries, used, incomplete);           \
    }                                                                                                              \
    EXPORT(fold_blocks_##format)
FOLD_KERNELS(mxfp4, 32)
FOLD_KERNELS(nvfp4, 16)
