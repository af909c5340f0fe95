// The end of a tile of the wgmma matmul: exact sums to outputs, straight from the registers (C6).
// Not yet run on hardware.
//
//     s32 = round(units * 2^(ea + eb))      ea, eb: exponents of a row of A and of a row of B
//     out = narrow(round(s32 * alpha_i) [+ bias_j, rounded])         alpha_i = round(alpha * r_i)
//
// Fast path, of tiles where the conditions below hold for every row and column:
//
//     y = (float(units) * 2^eb) * (2^ea * alpha_i)          two multiplications an output
//
// Proof. F = float(units) is units rounded once, an integer or 0, and |F| <= 2^45 (matmul_wgmma.cuh
// bounds the units).
//   1. min ea + min eb >= -126 and max ea + max eb <= 82: F * 2^(ea + eb) is 0 or lies in 2^-126 ..
//      2^127, so s32 is it, exactly: rounding commutes with a power of two where nothing leaves the
//      normal range.
//   2. -126 <= eb <= 82: 2^eb is a normal number, and F * 2^eb is exact as in 1.
//   3. -126 <= ea <= 127, and 2^-126 < |2^ea * alpha_i| < 2^128 after rounding: then it was exact.
//      Below 2^-126 rounding may reach 2^-126 itself, but not pass it; hence "<".
//   So y is one rounding of the real number F * 2^eb * 2^ea * alpha_i = s32 * alpha_i. QED.
//   4. No row or column is NaN and every bias is finite. s32 and 2^ea * alpha_i are finite, so y may
//      be infinite but is not NaN, nor is y + bias: packed conversions, whose NaN is not ours, see
//      none.
// A row without live groups has F = 0 whatever its exponent: it does not count in 1 to 3, and ea = 0
// stands for it; so for columns. ea = eb = 80 with alpha = 2^-100 shows what 1 is for: s32 is +inf
// and so is y, although 2^80 * (2^80 * 2^-100) is finite.
//
// The other tiles (those, the ragged last ones along n, rows that are not aligned) go output by
// output; the registers are shifted past the code, which would not fit 128 times.
//
// Stores. A lane has two neighbouring columns of a row for each 8; four lanes have the 32 bytes of a
// sector in f32. In 16 bits they have half of one, so two lanes swap words of two blocks of 8
// columns, and four lanes have the 16 columns of a sector.
#pragma once

#include "exact.cuh"
#include "fold.cuh"

namespace fp4 {

// What the fast path multiplies by; written by one warp while the tensor cores work.
template <int TILE_N>
struct __align__(16) TileScales {
    float rows[TILE_ROWS];  // 2^ea * alpha_i
    float columns[TILE_N];  // 2^eb
    float bias[TILE_N];     // if there is any
    int fast;
};
static_assert(sizeof(TileScales<128>) % 16 == 0 && sizeof(TileScales<256>) % 16 == 0, "");

// A power of two with a normal exponent.
__device__ __forceinline__ float power_of_two(int exponent) { return __uint_as_float((u32)(exponent + 127) << 23); }

// A sum below 2^45 times 2^exponent, rounded once.
template <class Units>
__device__ __forceinline__ float round_units(Units units, int exponent) {
    // The conversion rounds; times a normal power of two the result is 0 or normal, and exact.
    if (exponent >= -126 && exponent <= 82) return __fmul_rn((float)units, power_of_two(exponent));
    return round_int64(units, exponent);
}

// By a whole warp: the scales of rows first_row .. of A and first_column .. of B, of which base +
// `add_a` and base + `add_b` are the exponents. Whether the tile may go the fast way is known after.
template <int TILE_N>
__device__ __forceinline__ void scale_tile(const Outputs& to, const FoldedOperand& a, const FoldedOperand& b, int first_row,
                                           int first_column, int add_a, int add_b, TileScales<TILE_N>& scales) {
    const int lane = (int)threadIdx.x % 32;
    constexpr int FAR = 100000; // passes where nothing is live
    int low_a = FAR, high_a = -FAR, low_b = FAR, high_b = -FAR;
    bool fast = first_column + TILE_N <= b.rows && b.rows % 4 == 0 && ((u64)to.out & 7) == 0;
    for (int i = lane; i < TILE_ROWS; i += 32) {
        const int row = first_row + i;
        if (row >= a.rows) continue;
        const RowMeta meta = a.meta[row];
        const bool live = meta.live > 0;
        const int exponent = live ? a.bases[row] + add_a : 0;
        if (live) {
            low_a = exponent < low_a ? exponent : low_a;
            high_a = exponent > high_a ? exponent : high_a;
        }
        fast = fast && meta.nan == 0 && exponent >= -126 && exponent <= 127;
        const float factor = fast ? __fmul_rn(power_of_two(exponent), row_alpha(to, row)) : 0.0f;
        const u32 magnitude = __float_as_uint(factor) & 0x7FFFFFFFu;
        fast = fast && magnitude > 0x00800000u && magnitude < INF_F32;
        scales.rows[i] = factor;
    }
    for (int i = lane; i < TILE_N; i += 32) {
        const int column = first_column + i;
        if (column >= b.rows) continue;
        const RowMeta meta = b.meta[column];
        const bool live = meta.live > 0;
        const int exponent = live ? b.bases[column] + add_b : 0;
        if (live) {
            low_b = exponent < low_b ? exponent : low_b;
            high_b = exponent > high_b ? exponent : high_b;
        }
        fast = fast && meta.nan == 0 && exponent >= -126 && exponent <= 82;
        scales.columns[i] = fast ? power_of_two(exponent) : 0.0f;
        if (to.bias != nullptr) {
            const float bias = to.bias[column];
            fast = fast && (__float_as_uint(bias) & 0x7FFFFFFFu) < INF_F32;
            scales.bias[i] = bias;
        }
    }
    fast = __all_sync(ALL_LANES, fast);
    low_a = __reduce_min_sync(ALL_LANES, low_a);
    low_b = __reduce_min_sync(ALL_LANES, low_b);
    high_a = __reduce_max_sync(ALL_LANES, high_a);
    high_b = __reduce_max_sync(ALL_LANES, high_b);
    if (lane == 0) scales.fast = fast && low_a + low_b >= -126 && high_a + high_b <= 82;
}

// Where a warp's 16 rows of a tile go, the rows and columns of this lane first.
struct WarpPlace {
    int row;    // and row + 8
    int column; // and column + 1, and 8, 16.. further
    int row_in_tile, column_in_tile;
    int rows, columns; // of the product
};


// The digits' sums of an output.
template <int SUMS>
struct Digits {
    int sums[SUMS];
};
template <class Shape>
__device__ __forceinline__ Digits<Shape::SUMS> digits_at(const int (&sums)[Shape::SUMS][Shape::TILE_N / 2], int d) {
    Digits<Shape::SUMS> digits;
#pragma unroll
    for (int s = 0; s < Shape::SUMS; s++) digits.sums[s] = sums[s][d];
    return digits;
}

// The units of an output, rounded to f32; of three sums they are in the place of the first by now.
template <class Shape>
__device__ __forceinline__ float units_at(const int (&sums)[Shape::SUMS][Shape::TILE_N / 2], int d) {
    if constexpr (Shape::SUMS == 3) {
        return __int_as_float(sums[0][d]);
    } else {
        return (float)Shape::units(digits_at<Shape>(sums, d));
    }
}

// The fast path. `Shape` gives SUMS, TILE_N and `units` of the sums of an output.
template <class Shape, int OUT, bool BIAS>
__device__ __forceinline__ void store_fast(const int (&sums)[Shape::SUMS][Shape::TILE_N / 2], const WarpPlace& at, void* out,
                                           const TileScales<Shape::TILE_N>& scales) {
    constexpr int BLOCKS = Shape::TILE_N / 8;
    const int t = at.column_in_tile / 2; // which of four lanes
    const float factor[2] = {scales.rows[at.row_in_tile], scales.rows[at.row_in_tile + 8]};
    const bool here[2] = {at.row < at.rows, at.row + 8 < at.rows};
    const int first = at.column - at.column_in_tile;
    // Of 16-bit outputs a lane stores four columns of 16: even lanes of the first 8, odd ones of the
    // second.
    const i64 index = (i64)at.row * at.columns + first + (OUT == F32 ? 2 * t : t % 2 * 8 + t / 2 * 4);
#pragma unroll
    for (int pair = 0; pair < BLOCKS / 2; pair++) {
        u32 packed[2][2]; // 16 bits: block of columns, row
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const int j = 2 * pair + i, column = 8 * j + 2 * t;
            const float2 by = *(const float2*)&scales.columns[column];
            float2 bias = make_float2(0.0f, 0.0f);
            if (BIAS) bias = *(const float2*)&scales.bias[column];
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float y[2];
#pragma unroll
                for (int c = 0; c < 2; c++) {
                    const float units = units_at<Shape>(sums, 4 * j + 2 * r + c);
                    y[c] = __fmul_rn(__fmul_rn(units, c == 0 ? by.x : by.y), factor[r]);
                    if (BIAS) y[c] = __fadd_rn(y[c], c == 0 ? bias.x : bias.y);
                }
                if (OUT == F32) {
                    float* to = (float*)out + index + (i64)(8 * r) * at.columns + 8 * j;
                    if (here[r]) *(float2*)to = make_float2(y[0], y[1]);
                } else {
                    packed[i][r] = OUT == F16 ? pack_f16x2(y[0], y[1]) : pack_bf16x2(y[0], y[1]);
                }
            }
        }
#pragma unroll
        for (int r = 0; OUT != F32 && r < 2; r++) {
            const u32 other = __shfl_xor_sync(ALL_LANES, t % 2 == 0 ? packed[1][r] : packed[0][r], 1);
            const uint2 both = t % 2 == 0 ? make_uint2(packed[0][r], other) : make_uint2(other, packed[1][r]);
            u16* to = (u16*)out + index + (i64)(8 * r) * at.columns + 16 * pair;
            if (here[r]) *(uint2*)to = both;
        }
    }
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

// Every other tile. The sums are gone afterwards.
template <class Shape>
__device__ __forceinline__ void store_slowly(int (&sums)[Shape::SUMS][Shape::TILE_N / 2], const WarpPlace& at,
                                             const Outputs& to, const FoldedOperand& a, const FoldedOperand& b, int add) {
    int exponents[2] = {0, 0};
    float alphas[2] = {0.0f, 0.0f};
    bool nans[2] = {false, false};
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = at.row + 8 * r;
        if (row >= at.rows) continue;
        exponents[r] = a.bases[row] + add;
        alphas[r] = row_alpha(to, row);
        nans[r] = a.meta[row].nan != 0;
    }
#pragma unroll 1
    for (int column = at.column; column < at.columns && column < at.column + Shape::TILE_N; column += 8) {
        const bool both = column + 1 < at.columns;
        const int bases[2] = {b.bases[column], both ? b.bases[column + 1] : 0};
        const bool column_nans[2] = {b.meta[column].nan != 0, both && b.meta[column + 1].nan != 0};
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float s32[2];
#pragma unroll
            for (int c = 0; c < 2; c++) {
                const auto units = Shape::units(digits_at<Shape>(sums, 2 * r + c));
                s32[c] = nans[r] || column_nans[c] ? __uint_as_float(NAN_F32) : round_units(units, exponents[r] + bases[c]);
            }
            if (at.row + 8 * r < at.rows) {
                finish_pair(to, at.row + 8 * r, column, at.columns, alphas[r], s32[0], s32[1]);
            }
        }
#pragma unroll
        for (int s = 0; s < Shape::SUMS; s++) {
#pragma unroll
            for (int d = 0; d + 4 < Shape::TILE_N / 2; d++) sums[s][d] = sums[s][d + 4];
        }
    }
}

template <class Shape, bool BIAS>
__device__ __forceinline__ void store_fast_as(const int (&sums)[Shape::SUMS][Shape::TILE_N / 2], const WarpPlace& at,
                                              const Outputs& to, const TileScales<Shape::TILE_N>& scales) {
    if (to.out_type == F32) {
        store_fast<Shape, F32, BIAS>(sums, at, to.out, scales);
    } else if (to.out_type == F16) {
        store_fast<Shape, F16, BIAS>(sums, at, to.out, scales);
    } else {
        store_fast<Shape, BF16, BIAS>(sums, at, to.out, scales);
    }
}

template <class Shape>
__device__ __forceinline__ void store_tile(int (&sums)[Shape::SUMS][Shape::TILE_N / 2], const WarpPlace& at, const Outputs& to,
                                           const FoldedOperand& a, const FoldedOperand& b, int add,
                                           const TileScales<Shape::TILE_N>& scales) {
    if (!scales.fast) {
        store_slowly<Shape>(sums, at, to, a, b, add);
        return;
    }
    if constexpr (Shape::SUMS == 3) {
#pragma unroll
        for (int d = 0; d < Shape::TILE_N / 2; d++) {
            if (d % 8 == 0) __syncwarp(ALL_LANES); // more of them interleaved would not fit the registers
            sums[0][d] = __float_as_int((float)Shape::units(digits_at<Shape>(sums, d)));
        }
        __syncwarp(ALL_LANES);
    }
    if (to.bias == nullptr) {
        store_fast_as<Shape, false>(sums, at, to, scales);
    } else {
        store_fast_as<Shape, true>(sums, at, to, scales);
    }
}

} // namespace fp4
