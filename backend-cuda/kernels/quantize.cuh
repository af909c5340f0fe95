// The parts of quantization, for the kernels of quantize.cu and quantize_fold.cu (C4, C5); the
// rules and the shape of the transform are told there.
#pragma once

#include "reciprocal.cuh"

namespace fp4 {

// Eight consecutive values, widened, or zeros unless they are `here`. `x` is aligned to 16 bytes.
__device__ __forceinline__ void load_eight(DenseF32, const float* x, bool here, float (&y)[8]) {
    uint4 low = make_uint4(0, 0, 0, 0), high = make_uint4(0, 0, 0, 0);
    if (here) {
        low = ((const uint4*)x)[0];
        high = ((const uint4*)x)[1];
    }
    u32 words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = __uint_as_float(words[i]);
}

template <class Dense>
__device__ __forceinline__ void load_eight(Dense, const u16* x, bool here, float (&y)[8]) {
    uint4 all = make_uint4(0, 0, 0, 0);
    if (here) all = *(const uint4*)x;
    u32 words[4] = {all.x, all.y, all.z, all.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        y[2 * i] = Dense::widen((u16)words[i]);
        y[2 * i + 1] = Dense::widen((u16)(words[i] >> 16));
    }
}

// The same to memory. What is widened narrows exactly.
__device__ __forceinline__ void store_eight(DenseF32, float* x, const float (&y)[8]) {
    u32 words[8];
#pragma unroll
    for (int i = 0; i < 8; i++) words[i] = __float_as_uint(y[i]);
    ((uint4*)x)[0] = make_uint4(words[0], words[1], words[2], words[3]);
    ((uint4*)x)[1] = make_uint4(words[4], words[5], words[6], words[7]);
}

template <class Dense>
__device__ __forceinline__ void store_eight(Dense, u16* x, const float (&y)[8]) {
    u32 words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        words[i] = (u32)Dense::narrow(y[2 * i]) | (u32)Dense::narrow(y[2 * i + 1]) << 16;
    }
    *(uint4*)x = make_uint4(words[0], words[1], words[2], words[3]);
}

// The larger of a maximum and the magnitudes of eight values, as bits.
__device__ __forceinline__ u32 larger_of_eight(u32 amax, const float (&y)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 magnitude = __float_as_uint(y[i]) & 0x7FFFFFFFu;
        amax = magnitude > amax ? magnitude : amax;
    }
    return amax;
}

// What one thread counts (`QuantCounts` of the core):
//
//     clipped      elements with |x / d| > 7, or of MXINT8 with a quotient beyond 127.5, infinities
//                  included
//     scale_max    groups whose computed scale was clamped to the largest finite one
//     flushed      groups with a nonzero element and none that is NaN, all of whose codes are +-0
//     nan_groups   groups whose scale is NaN
struct Tally {
    u32 clipped, scale_max, flushed, nan_groups;
};
constexpr u32 CLIPPED_F32 = 0x40E00000u;    // 7
constexpr u32 CLIPPED_INT8 = 0x42FF0000u;   // 127.5
constexpr u32 UNCLAMPED_INT8 = 0x7F7E0000u; // 127 / 64 * 2^127

// Adds what a warp has counted to the counts of the launch. Every lane calls it.
__device__ __forceinline__ void add_counts(const Tally& tally, Counts* to) {
    if (to == nullptr) return;
    u32 counts[4] = {tally.clipped, tally.scale_max, tally.flushed, tally.nan_groups};
    // Most warps have nothing to add.
    if (!__any_sync(ALL_LANES, (counts[0] | counts[1] | counts[2] | counts[3]) != 0)) return;
    u64* totals[4] = {&to->clipped, &to->scale_max, &to->flushed, &to->nan_groups};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        u32 count = counts[i];
        for (int lanes = 1; lanes < 32; lanes *= 2) count += __shfl_xor_sync(ALL_LANES, count, lanes);
        if (threadIdx.x % 32 == 0 && count != 0) atomicAdd(totals[i], (u64)count);
    }
}

// Eight values of a group as e2m1 codes, the first in the lowest nibble (C4), and their scale byte:
// the one that `given` points to, or computed. The way for every setting, by divisions.
__device__ __forceinline__ u32 encode_eight(const float (&y)[8], const Settings& set, u32 amax, const u8* given,
                                            u32& scale, bool& clamped, Tally& tally) {
    if (given != nullptr) {
        scale = *given;
    } else {
        float s = __fdiv_rn(__uint_as_float(amax), set.divisor);
        scale = encode_scale(set.scale_type, s);
        clamped = s > set.max_scale;
    }
    float unit = __fmul_rn(decode_scale(set.scale_type, scale), set.global_scale);
    u32 word = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 sign = __float_as_uint(y[i]) & 0x80000000u;
        float q = unit == 0.0f ? __uint_as_float(sign) : __fdiv_rn(y[i], unit);
        word |= encode_e2m1(q, set.tie) << (4 * i);
        u32 magnitude = __float_as_uint(q) & 0x7FFFFFFFu;
        tally.clipped += magnitude > CLIPPED_F32 && magnitude <= INF_F32;
    }
    return word;
}

// The same as int8 elements (C10).
__device__ __forceinline__ uint2 encode_eight_int8(const float (&y)[8], u32 amax, u32& scale, bool& clamped,
                                                   Tally& tally) {
    scale = scale_of_int8(amax);
    clamped = amax > UNCLAMPED_INT8 && amax <= INF_F32;
    u32 words[2] = {0, 0};
    if (scale == 0xFFu) return make_uint2(0, 0);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        float q = int8_quotient(y[i], scale);
        words[i / 4] |= encode_int8(q) << (8 * (i % 4));
        tally.clipped += (__float_as_uint(q) & 0x7FFFFFFFu) > CLIPPED_INT8;
    }
    return make_uint2(words[0], words[1]);
}

// What a lane learns of the groups of a row of which it has the first column: RowMeta, in parts.
struct RowParts {
    int low, high, nan, live;

    // A group with this scale, `any` of whose codes are not +-0.
    __device__ __forceinline__ void add(int scale_type, u32 scale, bool any) {
        const bool is_nan = scale_is_nan(scale_type, scale);
        nan |= is_nan;
        if (is_nan || !any || (scale_type == E4M3 && (scale & 0x7Fu) == 0)) return;
        live += 1;
        low = (int)scale < low ? (int)scale : low;
        high = (int)scale > high ? (int)scale : high;
    }
};

// The largest of `lanes` lanes beside each other.
__device__ __forceinline__ u32 largest_of_lanes(u32 value, int lanes) {
    for (int step = 1; step < lanes; step *= 2) {
        u32 other = __shfl_xor_sync(ALL_LANES, value, step);
        value = other > value ? other : value;
    }
    return value;
}

// Quantizes the 8 columns from `col` that this lane holds. Every lane of the warp calls it; lanes
// with col >= k_pad or without a row (row < 0) only take part in the shuffles. `set` is the row's,
// and `shift` is log2 of its groups' lanes.
__device__ __forceinline__ void quantize_eight(const float (&y)[8], i64 row, int col, const QuantizeArgs& p,
                                               const Settings& set, int shift, Tally& tally, RowParts& parts) {
    const u32 amax = largest_of_lanes(larger_of_eight(0, y), 1 << shift);
    const bool writes = row >= 0 && col < p.k_pad, counts = p.counts != nullptr;
    const int g = col >> (shift + 3);
    const bool first = (col >> 3 & ((1 << shift) - 1)) == 0; // of its group
    u32 scale = 0, any = 0; // `any`: what is not +-0
    bool clamped = false;
    if (writes) {
        if (set.element == INT8) {
            uint2 words = make_uint2(0, 0);
            if (col < p.k) words = encode_eight_int8(y, amax, scale, clamped, tally);
            any = words.x | words.y;
            *(uint2*)(p.codes + row * p.k_pad + col) = words;
        } else {
            u32 word = 0;
            const u8* given = p.given != nullptr ? p.given + row * (p.k >> (shift + 3)) + g : nullptr;
            if (col < p.k) word = encode_eight(y, set, amax, given, scale, clamped, tally);
            any = word & 0x77777777u;
            *(u32*)(p.codes + row * (p.k_pad / 2) + col / 2) = word;
        }
        if (first) p.scales[row * (p.k_pad >> (shift + 3)) + g] = (u8)scale;
    }
    if (counts || p.meta != nullptr) {
        for (int lanes = 1; lanes < 1 << shift; lanes *= 2) any |= __shfl_xor_sync(ALL_LANES, any, lanes);
        if (writes && col < p.k && first) {
            tally.scale_max += clamped;
            tally.flushed += amax != 0 && amax <= INF_F32 && any == 0;
            tally.nan_groups += scale_is_nan(set.scale_type, scale);
            parts.add(set.scale_type, scale, any != 0);
        }
    }
}

// MXFP4 and NVFP4 as most are quantized: ties to the even code, scales computed, nothing counted;
// and the divisor and the global scale are such that reciprocals do (reciprocal.cuh).
template <int FORMAT>
struct Plain {
    static constexpr int SCALE_TYPE = Encoded<FORMAT>::SCALE_TYPE, GROUP = Encoded<FORMAT>::GROUP, LANES = GROUP / 8;

    __device__ static __forceinline__ bool fits(const QuantizeArgs& p, const Settings& set) {
        return set.element == E2M1 && set.tie == TIE_EVEN && set.scale_type == SCALE_TYPE && set.group == GROUP &&
               p.given == nullptr && p.counts == nullptr && is_moderate(__float_as_uint(set.divisor)) &&
               is_moderate(__float_as_uint(set.global_scale));
    }

    // The scale byte of a quotient that is 0 or in [2^-120, 2^120], and what it stands for. What
    // that is of 0 does not matter.
    __device__ static __forceinline__ u32 encode(float s) {
        if (FORMAT == MXFP4) {
            const u32 byte = (__float_as_uint(s) + 0x00400000u) >> 23; // as encode_e8m0
            return byte < 254u ? byte : 254u;
        }
        const u32 bits = __float_as_uint(s), magnitude = bits < 0x43E00000u ? bits : 0x43E00000u; // 448
        const u32 small = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 16384.0f)) - 0x46800000u;
        const u32 normal = (magnitude - (120u << 23) + 0x7FFFFu + ((magnitude >> 20) & 1u)) >> 20; // as encode_e4m3
        return magnitude < 0x3C800000u ? small : normal;
    }
    __device__ static __forceinline__ float decode(u32 byte) {
        return FORMAT == MXFP4 ? __uint_as_float(byte << 23) : __fmul_rn(__uint_as_float(byte << 20), E4M3_SHORT);
    }

    // As `quantize_eight`: the codes, and the scale byte. Columns past K hold zeros, and so get
    // codes and a scale of 0.
    __device__ static __forceinline__ u32 eight(const float (&y)[8], const Settings& set, const Divisor& divisor, u32& scale) {
        const u32 amax = largest_of_lanes(larger_of_eight(0, y), LANES);
        scale = encode(divisor.divide(__uint_as_float(amax)));
        const float unit = __fmul_rn(decode(scale), set.global_scale);
        Reciprocal by;
        by.of(unit);
        // The unit of a group of zeros is not negative: the global scale is not.
        const bool zeros = amax == 0;
        by.high = zeros ? 0.0f : by.high;
        by.low = zeros ? 0.0f : by.low;
        if (zeros || (amax >= RECIPROCAL_LEAST && has_reciprocal(unit, amax))) return codes_by_reciprocal(y, by);
        bool clamped;
        Tally tally = {0, 0, 0, 0};
        return encode_eight(y, set, amax, nullptr, scale, clamped, tally);
    }
};

// The scale of a row whose largest magnitude has these bits: amax / 2688, 1 where that is 0 because
// amax is, or not finite, and the least positive float where it underflows (C4, row scales).
__device__ __forceinline__ float row_scale(u32 amax) {
    if (amax == 0) return 1.0f;
    float scale = __fdiv_rn(__uint_as_float(amax), 2688.0f);
    u32 bits = __float_as_uint(scale) & 0x7FFFFFFFu;
    if (bits >= INF_F32) return 1.0f;
    return bits == 0 ? __uint_as_float(1u) : scale;
}

// Most warps that share a row, each of which has a place in the shared memory of `row_settings`.
constexpr int ROW_WARPS = 32;

// The settings of a row, with its own global scale if rows have one, by the threads that then
// quantize it. If they are more than a warp they are the whole block, and `maxima` is shared.
template <class Dense>
__device__ __forceinline__ Settings row_settings(const QuantizeArgs& p, i64 row, int lane, int lanes, u32* maxima) {
    Settings set = p.set;
    if (p.row_scales == nullptr) return set;
    const typename Dense::Value* x = (const typename Dense::Value*)p.x;
    u32 amax = 0;
    for (int col = 8 * lane; row >= 0 && col < p.k; col += 8 * lanes) {
        float y[8];
        load_eight(Dense(), x + row * p.k + col, true, y);
        amax = larger_of_eight(amax, y);
    }
    for (int step = 1; step < 32; step *= 2) {
        u32 other = __shfl_xor_sync(ALL_LANES, amax, step);
        amax = other > amax ? other : amax;
    }
    if (lanes > 32) {
        if (lane % 32 == 0) maxima[lane / 32] = amax;
        __syncthreads();
        for (int warp = 0; warp < lanes / 32; warp++) amax = maxima[warp] > amax ? maxima[warp] : amax;
    }
    set.global_scale = row_scale(amax);
    set.divisor = __fmul_rn(set.scale_scale, set.global_scale);
    if (row >= 0 && lane == 0) p.row_scales[row] = set.global_scale;
    return set;
}

// Writes a row's metadata from its parts, by the threads that quantized it, a whole block of them;
// `maxima` as in `row_settings`.
__device__ __forceinline__ void write_meta(RowMeta* to, int scale_type, RowParts parts, int lane, int lanes, u32* maxima) {
    // The lowest by its distance from 255: all but the number of live groups are maxima then.
    u32 most[3] = {(u32)(255 - parts.low), (u32)(parts.high + 1), (u32)parts.nan};
    u32 live = (u32)parts.live;
    for (int step = 1; step < 32; step *= 2) {
#pragma unroll
        for (int i = 0; i < 3; i++) {
            u32 other = __shfl_xor_sync(ALL_LANES, most[i], step);
            most[i] = other > most[i] ? other : most[i];
        }
        live += __shfl_xor_sync(ALL_LANES, live, step);
    }
    // Three fields of at most 256 in a word, and the numbers beside them.
    u32 packed = most[0] | most[1] << 9 | most[2] << 18;
    if (lanes > 32) {
        __syncthreads(); // `maxima` has been read
        if (lane % 32 == 0) maxima[lane / 32] = packed;
        if (lane % 32 == 0) maxima[ROW_WARPS + lane / 32] = live;
        __syncthreads();
        live = 0;
        for (int warp = 0; warp < lanes / 32; warp++) {
            const u32 other = maxima[warp];
            most[0] = (other & 511u) > most[0] ? other & 511u : most[0];
            most[1] = (other >> 9 & 511u) > most[1] ? other >> 9 & 511u : most[1];
            most[2] |= other >> 18;
            live += maxima[ROW_WARPS + warp];
        }
    }
    if (lane != 0) return;
    *to = row_meta_of(scale_type, 255 - (int)most[0], (int)most[1] - 1, (int)most[2], (int)live);
}

// A row's columns, eight a lane at a time, as it is `Plain`.
template <class Dense, int FORMAT>
__device__ __forceinline__ void quantize_row_plain(const QuantizeArgs& p, const Settings& set, i64 row, int lane, int lanes,
                                                   RowParts& parts) {
    typedef Plain<FORMAT> Of;
    const Divisor divisor(set.divisor);
    const i64 at_row = row >= 0 ? row : 0;
    const int k = row >= 0 ? p.k : 0, k_pad = row >= 0 ? p.k_pad : 0;
    const typename Dense::Value* x = (const typename Dense::Value*)p.x + at_row * p.k + 8 * lane;
    u8* codes = p.codes + at_row * (p.k_pad / 2) + 4 * lane;
    u8* scales = p.scales + at_row * (p.k_pad / Of::GROUP) + lane / Of::LANES;
    const bool first = lane % Of::LANES == 0, describes = p.meta != nullptr;
    int col = 8 * lane;
#pragma unroll 1
    for (int done = 0; done < p.k_pad; done += 8 * lanes) {
        float y[8];
        load_eight(Dense(), x, col < k, y);
        u32 scale;
        const u32 word = Of::eight(y, set, divisor, scale);
        if (col < k_pad) {
            *(u32*)codes = word;
            if (first) *scales = (u8)scale;
        }
        if (describes) {
            u32 any = word & 0x77777777u;
#pragma unroll
            for (int step = 1; step < Of::LANES; step *= 2) any |= __shfl_xor_sync(ALL_LANES, any, step);
            if (first && col < k) parts.add(Of::SCALE_TYPE, scale, any != 0);
        }
        x += 8 * lanes;
        codes += 4 * lanes;
        scales += lanes / Of::LANES;
        col += 8 * lanes;
    }
}

// Quantizes one row by `lanes` threads, whole warps, of which this one has index `lane`; a row of
// -1 is none. `maxima` as in `row_settings`.
template <class Dense>
__device__ __forceinline__ void quantize_row(const QuantizeArgs& p, i64 row, int lane, int lanes, u32* maxima) {
    const Settings set = row_settings<Dense>(p, row, lane, lanes, maxima);
    RowParts parts = {255, -1, 0, 0};
    if (Plain<NVFP4>::fits(p, set)) {
        quantize_row_plain<Dense, NVFP4>(p, set, row, lane, lanes, parts);
    } else if (Plain<MXFP4>::fits(p, set)) {
        quantize_row_plain<Dense, MXFP4>(p, set, row, lane, lanes, parts);
    } else {
        const typename Dense::Value* x = (const typename Dense::Value*)p.x;
        const int shift = __ffs(set.group) - 4;
        Tally tally = {0, 0, 0, 0};
        for (int first = 0; first < p.k_pad; first += 8 * lanes) {
            int col = first + 8 * lane;
            float y[8];
            load_eight(Dense(), x + row * p.k + col, row >= 0 && col < p.k, y);
            quantize_eight(y, row, col, p, set, shift, tally, parts);
        }
        add_counts(tally, p.counts);
    }
    if (p.meta != nullptr) write_meta(p.meta + row, set.scale_type, parts, lane, lanes, maxima);
}

constexpr int SLAB = 16;
constexpr int X_STRIDE = STRIP_ROWS + 4; // floats of a column of x; keeps 16-byte alignment
constexpr int T_STRIDE = STRIP_COLS + 4; // floats of a row of T, and of a row of y
static_assert(STRIP_ROWS * T_STRIDE <= STRIP_COLS * X_STRIDE, "y takes the place of x");

// What a thread of a tile of the transform holds: eight columns from `col` of a row, 16 rows apart.
struct TilePlace {
    i64 row_0;
    int col_0, lane_col, lane_row;
};

// The transform of the tile of this block, to be read from xs as [row][column]. 256 threads: 16
// across the columns, 16 down the rows. Shared memory: x as [column][row], and of T the 16 values
// of i at hand, as [i][column].
template <class Dense, class Args>
__device__ __forceinline__ TilePlace transform_tile(const Args& p, float* xs, float* ts) {
    const typename Dense::Value* x = (const typename Dense::Value*)p.x;
    const typename Dense::Value* transform = (const typename Dense::Value*)p.transform;
    const int block = p.block, shared_block = p.shared_block, k = p.k, k_pad = p.k_pad;
    const i64 rows = p.rows;
    int tiles_across = k_pad / STRIP_COLS;
    i64 row_0 = (i64)(blockIdx.x / tiles_across) * STRIP_ROWS;
    int col_0 = (int)(blockIdx.x % tiles_across) * STRIP_COLS;
    int thread = threadIdx.x;

    // Eight columns of one row a step: 16 threads cover a row, 16 rows at a time.
    int lane_col = thread % 16 * 8, lane_row = thread / 16;
#pragma unroll 1
    for (int r = lane_row; r < STRIP_ROWS; r += 16) {
        float y[8];
        load_eight(Dense(), x + (row_0 + r) * k + col_0 + lane_col, row_0 + r < rows && col_0 + lane_col < k, y);
#pragma unroll
        for (int i = 0; i < 8; i++) xs[(lane_col + i) * X_STRIDE + r] = y[i];
    }

    float acc[4][8];
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int c = 0; c < 8; c++) acc[r][c] = 0.0f;
    }
    int block_col = lane_col / block * block; // first column of this thread's block, in the tile
    for (int slab = 0; slab < block; slab += SLAB) {
        __syncthreads();
#pragma unroll 1
        for (int at = thread; at < SLAB * STRIP_COLS; at += 256) {
            int i = at % SLAB, c = at / SLAB, col = col_0 + c;
            float t = 0.0f;
            if (col < k) {
                i64 matrix = shared_block ? 0 : (i64)(col / block) * block * block;
                t = Dense::widen(transform[matrix + (i64)(col % block) * block + slab + i]);
            }
            ts[i * T_STRIDE + c] = t;
        }
        __syncthreads();
#pragma unroll 2
        for (int i = 0; i < SLAB; i++) {
            const float* x_i = xs + (block_col + slab + i) * X_STRIDE + 4 * lane_row;
            const float* t_i = ts + i * T_STRIDE + lane_col;
#pragma unroll
            for (int r = 0; r < 4; r++) {
#pragma unroll
                for (int c = 0; c < 8; c++) acc[r][c] = __fmaf_rn(x_i[r], t_i[c], acc[r][c]);
            }
        }
    }
    // Through shared memory, now as [row][column], so that the code that encodes is there once.
    __syncthreads();
#pragma unroll
    for (int r = 0; r < 4; r++) {
#pragma unroll
        for (int c = 0; c < 8; c++) {
            xs[(4 * lane_row + r) * T_STRIDE + lane_col + c] = Dense::widen(Dense::narrow(acc[r][c]));
        }
    }
    __syncthreads();
    TilePlace place = {row_0, col_0, lane_col, lane_row};
    return place;
}

// The quantization of a transformed tile, as it is `Plain`.
template <int FORMAT>
__device__ __forceinline__ void quantize_tile_plain(const QuantizeArgs& p, const float* xs, const TilePlace& at) {
    typedef Plain<FORMAT> Of;
    const Divisor divisor(p.set.divisor);
    const int col = at.col_0 + at.lane_col;
#pragma unroll 1
    for (int r = at.lane_row; r < STRIP_ROWS; r += 16) {
        float y[8];
#pragma unroll
        for (int c = 0; c < 8; c++) y[c] = xs[r * T_STRIDE + at.lane_col + c];
        u32 scale;
        const u32 word = Of::eight(y, p.set, divisor, scale);
        const i64 row = at.row_0 + r;
        if (row >= p.rows) continue; // its shuffles are over
        *(u32*)(p.codes + row * (p.k_pad / 2) + col / 2) = word;
        if (col % Of::GROUP == 0) p.scales[row * (p.k_pad / Of::GROUP) + col / Of::GROUP] = (u8)scale;
    }
}

// The transform and the quantization of a tile. Rows have no scales of their own here: those are
// not known before all tiles of a row are transformed.
template <class Dense>
__device__ __forceinline__ void transform_quantize(const QuantizeArgs& p, float* xs, float* ts) {
    const TilePlace at = transform_tile<Dense>(p, xs, ts);
    if (Plain<NVFP4>::fits(p, p.set)) return quantize_tile_plain<NVFP4>(p, xs, at);
    if (Plain<MXFP4>::fits(p, p.set)) return quantize_tile_plain<MXFP4>(p, xs, at);
    const int shift = __ffs(p.set.group) - 4;
    Tally tally = {0, 0, 0, 0};
    RowParts parts = {255, -1, 0, 0}; // of several rows: not used
#pragma unroll 1
    for (int r = at.lane_row; r < STRIP_ROWS; r += 16) {
        float y[8];
#pragma unroll
        for (int c = 0; c < 8; c++) y[c] = xs[r * T_STRIDE + at.lane_col + c];
        i64 row = at.row_0 + r < p.rows ? at.row_0 + r : -1;
        quantize_eight(y, row, at.col_0 + at.lane_col, p, p.set, shift, tally, parts);
    }
    add_counts(tally, p.counts);
}

// The transform of a tile, to memory.
template <class Dense>
__device__ __forceinline__ void transform_to(const TransformArgs& p, float* xs, float* ts) {
    typename Dense::Value* out = (typename Dense::Value*)p.out;
    const TilePlace at = transform_tile<Dense>(p, xs, ts);
    const int col = at.col_0 + at.lane_col;
#pragma unroll 1
    for (int r = at.lane_row; r < STRIP_ROWS; r += 16) {
        float y[8];
#pragma unroll
        for (int c = 0; c < 8; c++) y[c] = xs[r * T_STRIDE + at.lane_col + c];
        i64 row = at.row_0 + r;
        if (row < p.rows && col < p.k) store_eight(Dense(), out + row * p.k + col, y);
    }
}

} // namespace fp4
