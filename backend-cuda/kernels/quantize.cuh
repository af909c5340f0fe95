// The parts of quantization, for the kernels of quantize.cu and quantize_fold.cu (C4, C5); the rules and the
// shape of the transform are told there.
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

// The settings of a quantization, as the host checked them.
struct Settings {
    int group;      // 16, 32, 64 or 128
    int scale_type;
    int tie;
    float divisor;  // ss * gs, rounded by the host
    float global_scale;
};

// Quantizes the 8 columns from `col` that this lane holds. Every lane of the warp calls it; lanes with
// col >= k_pad or without a row (row < 0) only take part in the shuffles.
__device__ __forceinline__ void quantize_eight(const float (&y)[8], i64 row, int col, int k, int k_pad,
                                               const Settings& set, const u8* given, u8* codes,
                                               u8* scales) {
    u32 amax = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        u32 magnitude = __float_as_uint(y[i]) & 0x7FFFFFFFu;
        amax = magnitude > amax ? magnitude : amax;
    }
    for (int lanes = 1; lanes < set.group / 8; lanes *= 2) {
        u32 other = __shfl_xor_sync(ALL_LANES, amax, lanes);
        amax = other > amax ? other : amax;
    }
    if (row < 0 || col >= k_pad) return;

    int groups = k / set.group, groups_pad = k_pad / set.group, g = col / set.group;
    u32 scale = 0, word = 0;
    if (col < k) {
        scale = given ? given[row * groups + g]
                      : encode_scale(set.scale_type, __fdiv_rn(__uint_as_float(amax), set.divisor));
        float unit = __fmul_rn(decode_scale(set.scale_type, scale), set.global_scale);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            u32 sign = __float_as_uint(y[i]) & 0x80000000u;
            float q = unit == 0.0f ? __uint_as_float(sign) : __fdiv_rn(y[i], unit);
            word |= encode_e2m1(q, set.tie) << (4 * i);
        }
    }
    *(u32*)(codes + row * (k_pad / 2) + col / 2) = word;
    if (col % set.group == 0) scales[row * groups_pad + g] = (u8)scale;
}

// Quantizes one row by `lanes` threads, whole warps, of which this one has index `lane`; a row of -1 is none.
template <class Dense>
__device__ __forceinline__ void quantize_row(const typename Dense::Value* x, i64 row, int lane, int lanes,
                                             const u8* given, u8* codes, u8* scales, int k, int k_pad,
                                             const Settings& set) {
    for (int first = 0; first < k_pad; first += 8 * lanes) {
        int col = first + 8 * lane;
        float y[8] = {0, 0, 0, 0, 0, 0, 0, 0};
        if (row >= 0 && col < k) load_eight(Dense(), x + row * k + col, y);
        quantize_eight(y, row, col, k, k_pad, set, given, codes, scales);
    }
}

constexpr int STRIP_ROWS = 64, STRIP_COLS = 128, SLAB = 16;
constexpr int X_STRIDE = STRIP_ROWS + 4; // floats of a column of x; keeps 16-byte alignment
constexpr int T_STRIDE = STRIP_COLS + 4; // floats of a row of T, and of a row of y
static_assert(STRIP_ROWS * T_STRIDE <= STRIP_COLS * X_STRIDE, "y takes the place of x");

// 256 threads: 16 across the columns, 16 down the rows. Shared memory: x as [column][row], and of T the 16
// values of i at hand, as [i][column].
template <class Dense>
__device__ __forceinline__ void transform_quantize(const typename Dense::Value* x,
                                                   const typename Dense::Value* transform, int block,
                                                   int shared_block, const u8* given, u8* codes,
                                                   u8* scales, i64 rows, int k, int k_pad,
                                                   const Settings& set, float* xs, float* ts) {
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
#pragma unroll 1
    for (int r = lane_row; r < STRIP_ROWS; r += 16) {
        float y[8];
#pragma unroll
        for (int c = 0; c < 8; c++) y[c] = xs[r * T_STRIDE + lane_col + c];
        i64 row = row_0 + r < rows ? row_0 + r : -1;
        quantize_eight(y, row, col_0 + lane_col, k, k_pad, set, given, codes, scales);
    }
}

} // namespace fp4
