// What a warp learns of a row of an operand: RowMeta, the metadata by which the matmul chooses its
// path.
#pragma once

#include "format.cuh"

namespace fp4 {

// Whether a group has a code other than +-0, or an element other than 0.
template <int ENCODING>
__device__ __forceinline__ bool any_code(const u8* codes) {
    typedef Encoded<ENCODING> Of;
    u32 any = 0;
#pragma unroll
    for (int i = 0; i < Of::GROUP_BYTES / 8; i++) {
        uint2 words = ((const uint2*)codes)[i];
        any |= words.x | words.y;
    }
    return (Of::IS_INT8 ? any : any & 0x77777777u) != 0;
}

// By a whole warp; every lane gets the result. `live` is called with the scale byte of each live
// group, by one lane.
template <int ENCODING, class Live>
__device__ __forceinline__ RowMeta describe_row(const u8* codes, const u8* scales, i64 row, int k_pad, int lane,
                                                const Live& live) {
    typedef Encoded<ENCODING> Of;
    constexpr int SCALE_TYPE = Of::SCALE_TYPE;
    const int groups = k_pad / Of::GROUP;
    int low = 255, high = -1, nan = 0, count = 0;
    for (int g = lane; g < groups; g += 32) {
        u32 scale = scales[row * groups + g];
        bool any = any_code<ENCODING>(codes + (row * groups + g) * Of::GROUP_BYTES);
        if (scale_is_nan(SCALE_TYPE, scale)) {
            nan = 1;
        } else if (any && (SCALE_TYPE == E8M0 || (scale & 0x7Fu) != 0)) {
            count += 1;
            low = (int)scale < low ? (int)scale : low;
            high = (int)scale > high ? (int)scale : high;
            live(scale);
        }
    }
    for (int lanes = 1; lanes < 32; lanes *= 2) {
        int other_low = __shfl_xor_sync(ALL_LANES, low, lanes);
        int other_high = __shfl_xor_sync(ALL_LANES, high, lanes);
        low = other_low < low ? other_low : low;
        high = other_high > high ? other_high : high;
        count += __shfl_xor_sync(ALL_LANES, count, lanes);
        nan |= __shfl_xor_sync(ALL_LANES, nan, lanes);
    }
    return row_meta_of(SCALE_TYPE, low, high, nan, count);
}

} // namespace fp4
