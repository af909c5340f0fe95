// What a warp learns of a row of an operand: RowMeta, the metadata by which the matmul chooses its
// path.
#pragma once

#include "format.cuh"

namespace fp4 {

// Whether a group has a code other than +-0.
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

// By a whole warp, MXFP4 (G = 32, e8m0) or NVFP4 (16, e4m3); every lane gets the result. `live` is
// called with the scale byte of each live group, by one lane.
template <int G, class Live>
__device__ __forceinline__ RowMeta describe_row(const u8* codes, const u8* scales, i64 row, int k_pad, int lane,
                                                const Live& live) {
    constexpr int SCALE_TYPE = G == 32 ? E8M0 : E4M3;
    const int groups = k_pad / G;
    RowMeta meta = {255, -1, 0, 0};
    for (int g = lane; g < groups; g += 32) {
        u32 scale = scales[row * groups + g];
        bool any = any_code<G>(codes + (row * groups + g) * (G / 2));
        if (scale_is_nan(SCALE_TYPE, scale)) {
            meta.nan = 1;
        } else if (any && (SCALE_TYPE == E8M0 || (scale & 0x7Fu) != 0)) {
            meta.live += 1;
            meta.low = (int)scale < meta.low ? (int)scale : meta.low;
            meta.high = (int)scale > meta.high ? (int)scale : meta.high;
            live(scale);
        }
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        int other_low = __shfl_xor_sync(ALL_LANES, meta.low, lanes);
        int other_high = __shfl_xor_sync(ALL_LANES, meta.high, lanes);
        meta.low = other_low < meta.low ? other_low : meta.low;
        meta.high = other_high > meta.high ? other_high : meta.high;
        meta.live += __shfl_xor_sync(ALL_LANES, meta.live, lanes);
        meta.nan |= __shfl_xor_sync(ALL_LANES, meta.nan, lanes);
    }
    if (SCALE_TYPE != E8M0 || meta.live == 0) meta.low = meta.high = 0;
    return meta;
}

} // namespace fp4
