// The parts of quantization, for the kernels of quantize.cu and quantize_fold.cu (C4, C5); the
// rules and the shape of the transform are told there.
#pragma once

#include "format.cuh"

namespace fp4 {

// Eight consecutive values, widened. `x` is aligned to 16 bytes.
__device__ __forceinline__ void load_eight(DenseF32, const float* x, float (&y)[8]) {
    uint4 low = ((const uint4*)x)[0], high = ((const uint4*)x)[1];
    u32 words[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = __uint_as_float(words[i]);
}

template <class Dense>
__device__ __forceinline__ void load_eight(Dense, const u16* x, float (&y)[8]) {
    uint4 all = *(const uint4*)x;
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
// the one that `given` points to, or computed.
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

// Quantizes the 8 columns from `col` that this lane holds. Every lane of the warp calls it; lanes
// with col >= k_pad or without a row (row < 0) only take part in the shuffles. `set` is the row's.
__device__ __forceinline__ void quantize_eight(const float (&y)[8], i64 row, int col, const QuantizeArgs& p,
                                               const Settings& set, Tally& tally) {
    u32 amax = larger_of_eight(0, y);
    for (int lanes = 1; lanes < set.group / 8; lanes *= 2) {
        u32 other = __shfl_xor_sync(ALL_LANES, amax, lanes);
        amax = other > amax ? other : amax;
    }

    const bool writes = row >= 0 && col < p.k_pad, counts = p.counts != nullptr;
    u32 scale = 0, any = 0; // `any`: what is not +-0
    bool clamped = false;
    if (writes) {
        int groups = p.k / set.group, groups_pad = p.k_pad / set.group, g = col / set.group;
        if (set.element == INT8) {
            uint2 words = make_uint2(0, 0);
            if (col < p.k) words = encode_eight_int8(y, amax, scale, clamped, tally);
            any = words.x | words.y;
            *(uint2*)(p.codes + row * p.k_pad + col) = words;
        } else {
            u32 word = 0;
            const u8* given = p.given != nullptr ? p.given + row * groups + g : nullptr;
            if (col < p.k) word = encode_eight(y, set, amax, given, scale, clamped, tally);
            any = word & 0x77777777u;
            *(u32*)(p.codes + row * (p.k_pad / 2) + col / 2) = word;
        }
        if (col % set.group == 0) p.scales[row * groups_pad + g] = (u8)scale;
    }
    if (counts) {
        for (int lanes = 1; lanes < set.group / 8; lanes *= 2) any |= __shfl_xor_sync(ALL_LANES, any, lanes);
        if (writes && col < p.k && col % set.group == 0) {
            tally.scale_max += clamped;
            tally.flushed += amax != 0 && amax <= INF_F32 && any == 0;
            tally.nan_groups += scale_is_nan(set.scale_type, scale);
        }
    }
}

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
constexpr int ROW_WARPS = 8;

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
        load_eight(Dense(), x + row * p.k + col, y);
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

// Quantizes one row by `lanes` threads, whole warps, of which this one has index `lane`; a row of
// -1 is none. `maxima` as in `row_settings`.
template <class Dense>
__device__ __forceinline__ void quantize_row(const QuantizeArgs& p, i64 row, int lane, int lanes, u32* maxima) {
    const typename Dense::Value* x = (const typename Dense::Value*)p.x;
    const Settings set = row_settings<Dense>(p, row, lane, lanes, maxima);
    Tally tally = {0, 0, 0, 0};
    for (int first = 0; first < p.k_pad; first += 8 * lanes) {
        int col = first + 8 * lane;
        float y[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (row >= 0 && col < p.k) load_eight(Dense(), x + row * p.k + col, y);
        quantize_eight(y, row, col, p, set, tally);
    }
    add_counts(tally, p.counts);
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
        float y[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (row_0 + r < rows && col_0 + lane_col < k) {
            load_eight(Dense(), x + (row_0 + r) * k + col_0 + lane_col, y);
        }
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

// The transform and the quantization of a tile. Rows have no scales of their own here: those are
// not known before all tiles of a row are transformed.
template <class Dense>
__device__ __forceinline__ void transform_quantize(const QuantizeArgs& p, float* xs, float* ts) {
    const TilePlace at = transform_tile<Dense>(p, xs, ts);
    Tally tally = {0, 0, 0, 0};
#pragma unroll 1
    for (int r = at.lane_row; r < STRIP_ROWS; r += 16) {
        float y[8];
#pragma unroll
        for (int c = 0; c < 8; c++) y[c] = xs[r * T_STRIDE + at.lane_col + c];
        i64 row = at.row_0 + r < p.rows ? at.row_0 + r : -1;
        quantize_eight(y, row, at.col_0 + at.lane_col, p, p.set, tally);
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
