// The folded operand: packed codes and scales as int8 blocks for the tensor cores (C6).
//
// A scale is m * 2^(f + const): for e8m0 m = 1 and f is the byte, for e4m3 m is the significand (at
// most 15, signed) and f the exponent field, 1 for subnormals. A row lays windows of W exponents
// side by side, beginning at a base of its own:
//
//     f - base = W * w + shift,     0 <= shift < W            W = 4 for MXFP4, 6 for NVFP4
//
// so each live group (RowMeta) lies in exactly one window w, and its elements are the integers
// v = doubled code * m << shift, in units of 2^(base + W w + const). The base is the row's lowest
// live exponent if windows 0 to 3 hold the row, and of ordinary data window 0 does. Else it is the
// one whose window 0 holds most live groups. So rows agree on their lowest window, whose unit the
// 32-bit sums of a tile count in: were it the row's choice how many lie below window 0, a tile of
// outliers would have both rows with a window -1 and rows with a window 1, and a step of those
// count W exponents more, which no sum has room for.
//
//     MXFP4   |v| <= 12 << 3 = 96                      one plane of int8: v
//     NVFP4   |v| <= 12 * 15 << 5 = 5760 = 90 * 64     three planes: hi, lo and hi + lo, where
//             hi = (v + 32) >> 6, |hi| <= 90           v = 64 hi + lo
//             lo = v - 64 hi, -32 <= lo <= 31          |hi + lo| <= 122
//     MXINT8  an element e of -128..127                two planes: hi << shift, lo << shift, where
//             hi = (e + 8) >> 4, |hi| <= 8             e = 16 hi + lo
//             lo = e - 16 hi, -8 <= lo <= 7            at most 8 << 3 = 64
//
// Rows go in tiles of 128, k in slices of 128, four steps of 32. A slice of a tile is stored as one
// block for each window that occurs in it, in which the elements of other windows are 0. So blocks
// times blocks are exact partial sums, each with one exponent for a pair of rows: "planes" cost
// time only where they occur. Which windows occur is known for each step: bounds count steps.
//
//     block          PLANES x 16 KiB: byte (r, k) of a plane at r / 8 * 1024 + k / 16 * 128
//                    + r % 8 * 16 + k % 16, the wgmma layout without swizzle (lead 128, stride
//                    1024; the next step is 256 bytes further), and free of bank conflicts for
//                    ldmatrix, whose 8 x 16 bytes are 128 in a row
//     tile           slices + extra blocks: window 0 of slice s is block s, whether its entry has
//                    it or not; the others are among the extra blocks, next to each other
//     entry[t][s]    two words. sets: byte i is the set of windows of step i, bit w + 4 for w.
//                    first: the index of the first extra block
//     used[t]        extra blocks taken. If 0 the tile is plain: all of it is in window 0
//     incomplete[t]  not 0 if a window lies outside -4..3 or the extra blocks did not suffice:
//                    the tile has no folded form, and its outputs go another way
//
// Worked example, MXFP4: a row with live scale bytes 120, 121, 121, 126 has base 120, from which
// 126 lies less than 16 away; 126 - 120 = 6 is window 1, shift 2: code 7 (6.0, doubled 12) becomes
// 48 in units of 2^(124 - 127).
//
// Which extra blocks a slice gets depends on the order of the blocks of the launch; how many a tile
// needs does not, so neither the results nor the path taken do. fold_rows.cuh writes it. Not yet
// run on hardware.
#pragma once

#include "format.cuh"

namespace fp4 {

constexpr int SLICE_STEPS = SLICE_K / STEP_K;
constexpr int PLANE_BYTES = TILE_ROWS * SLICE_K;
constexpr int PLANE_LEAD = 128, PLANE_STRIDE = 8 * SLICE_K; // bytes to the next 16 k, the next 8 rows
constexpr int WINDOW_BIAS = 4;  // bit of window 0 in a set
constexpr int WINDOWS = 8;

// What differs between the encodings.
template <int ENCODING>
struct Fold;

template <>
struct Fold<MXFP4> {
    static constexpr int PLANES = MXFP4_PLANES;
    static constexpr int WIDTH = 4;          // exponents in a window
    static constexpr int LARGEST = 96;       // of the digit that bounds the 32-bit sums
    static constexpr int SCALE_UNIT = -127;  // log2 of a scale with field 0 and significand 1
    __device__ static __forceinline__ bool live(u32 byte) { return byte != 0xFFu; }
    __device__ static __forceinline__ int field(u32 byte) { return (int)byte; }
};

template <>
struct Fold<MXINT8> : Fold<MXFP4> {
    static constexpr int PLANES = MXINT8_PLANES;
    static constexpr int LARGEST = 64;
};

template <>
struct Fold<NVFP4> {
    static constexpr int PLANES = NVFP4_PLANES;
    static constexpr int WIDTH = 6;
    static constexpr int LARGEST = 90;
    static constexpr int SCALE_UNIT = -10;
    __device__ static __forceinline__ bool live(u32 byte) { return (byte & 0x7Fu) != 0 && (byte & 0x7Fu) != 0x7Fu; }
    __device__ static __forceinline__ int field(u32 byte) {
        int field = (int)(byte >> 3) & 15;
        return field > 1 ? field : 1;
    }
};

// Four int8 at once, none of whose sums leaves an int8.
__device__ __forceinline__ u32 add_bytes(u32 x, u32 y) {
    return ((x & 0x7F7F7F7Fu) + (y & 0x7F7F7F7Fu)) ^ ((x ^ y) & 0x80808080u);
}

// Where 16 bytes of row r of a tile lie in a plane, from element k of the slice on.
__device__ __forceinline__ int piece_at(int r, int k) {
    return r / 8 * PLANE_STRIDE + k / 16 * PLANE_LEAD + r % 8 * 16;
}

// The windows of a slice.
__device__ __forceinline__ u32 windows_of(u32 sets) {
    u32 pairs = sets | sets >> 16;
    return (pairs | pairs >> 8) & 0xFFu;
}

// Index of the block of window `bit` in a slice whose entry has that bit.
__device__ __forceinline__ int block_index(uint2 entry, int bit, int slice, int slices) {
    if (bit == WINDOW_BIAS) return slice;
    u32 before = windows_of(entry.x) & ((1u << bit) - 1u) & ~(1u << WINDOW_BIAS);
    return slices + (int)entry.y + __popc(before);
}

// Four codes as bytes of a table of eight signed magnitudes (`low`: codes 0..3) or of their
// negatives.
struct DigitTable {
    u32 low, high, minus_low, minus_high;

    __device__ __forceinline__ u32 expand(u32 codes) const {
        u32 select = codes & 0x7777u;
        u32 signs = __byte_perm(0x0000FF00u, 0u, (codes >> 3) & 0x1111u);
        u32 plus = __byte_perm(low, high, select), minus = __byte_perm(minus_low, minus_high, select);
        return (plus & ~signs) | (minus & signs);
    }
};

// The digits of the eight magnitudes times m << shift: hi, lo and their sum.
__device__ __forceinline__ void digit_tables(int m, int shift, DigitTable (&tables)[3]) {
#pragma unroll
    for (int p = 0; p < 3; p++) tables[p] = DigitTable{0, 0, 0, 0};
#pragma unroll
    for (int code = 0; code < 8; code++) {
        const int doubled = code < 5 ? code : code == 5 ? 6 : code == 6 ? 8 : 12;
        int v = doubled * m << shift, hi = (v + 32) >> 6, lo = v - 64 * hi;
        const int digits[3] = {hi, lo, hi + lo};
        const int at = 8 * (code & 3);
#pragma unroll
        for (int p = 0; p < 3; p++) {
            u32 plus = ((u32)digits[p] & 0xFFu) << at, minus = ((u32)-digits[p] & 0xFFu) << at;
            if (code < 4) {
                tables[p].low |= plus;
                tables[p].minus_low |= minus;
            } else {
                tables[p].high |= plus;
                tables[p].minus_high |= minus;
            }
        }
    }
}

// Four int8 elements as their digits, hi and lo, each shifted left by at most 3. Bytes do not
// borrow from each other: what is subtracted from has its top bit set.
__device__ __forceinline__ void nibble_digits(u32 elements, int shift, u32& hi, u32& lo) {
    const u32 keep = 0x01010101u * ((0xFFu << shift) & 0xFFu); // no bit leaves its byte
    u32 biased = elements ^ 0x80808080u;                       // e + 128
    hi = ((biased >> 4) & 0x0F0F0F0Fu) + ((biased >> 3) & 0x01010101u); // (e + 8 >> 4) + 8
    hi = ((hi | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
    lo = (elements & 0x0F0F0F0Fu) ^ 0x08080808u;
    lo = ((lo | 0x80808080u) - 0x08080808u) ^ 0x80808080u;
    hi = (hi << shift) & keep;
    lo = (lo << shift) & keep;
}

} // namespace fp4
