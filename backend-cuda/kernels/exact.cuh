// Exact sums on the device and their one rounding (C6).
//
// A product of two values with their scales is an integer times a power of two, a multiple of
// 2^-264 below 2^264. Three widths of sum, each exact inside its bound:
//
//     int32   doubled codes with the scales folded in; matmul_mma.cu states its bound
//     int64   units of 2^unit; for NVFP4 unit = -20 and K <= 2^20 always fits
//     640 bit ExactSum in units of 2^-264, as the core's: everything fits
//
// All end in round_to_f32: the magnitude's top 64 bits, with everything below OR-ed into the last,
// are rounded once. Rounding twice would be wrong: 2^24 + 1 + 2^-30 lies above a tie and must go
// up, but its f64 neighbour 2^24 + 1 is the tie itself and goes down to even.
#pragma once

#include "format.cuh"

namespace fp4 {

constexpr int NVFP4_UNIT = Operands<NVFP4>::UNIT;

// Rounds (-1)^negative * significand * 2^exponent once to f32, to nearest even, overflow to
// infinity, subnormals kept. Bit 0 of a normalized significand may stand for any nonzero rest below
// it.
__device__ __forceinline__ float round_to_f32(bool negative, u64 significand, int exponent) {
    if (significand == 0) return 0.0f; // an exact zero is +0
    int zeros = __clzll((i64)significand);
    significand <<= zeros;
    exponent -= zeros;
    int top = exponent + 63;
    int last = top - 23 > -149 ? top - 23 : -149; // exponent of the last kept bit
    int dropped = last - exponent;                // at least 40
    u64 kept = 0;
    if (dropped < 64) {
        u64 rest = significand << (64 - dropped), half = 1ull << 63;
        kept = significand >> dropped;
        kept += rest > half || (rest == half && (kept & 1));
    } else if (dropped == 64) {
        kept = significand > (1ull << 63); // above half of the last bit; half itself is a tie with 0
    }
    // The implicit bit and a carry of the rounding move the exponent field by plain addition.
    u64 bits = ((u64)(last + 149) << 23) + kept;
    u32 magnitude = bits > INF_F32 ? INF_F32 : (u32)bits;
    return __uint_as_float(magnitude | (negative ? 0x80000000u : 0u));
}

// units * 2^exponent, rounded once. |units| < 2^63.
__device__ __forceinline__ float round_int64(i64 units, int exponent) {
    return round_to_f32(units < 0, units < 0 ? 0ull - (u64)units : (u64)units, exponent);
}

// A 640-bit two's complement integer in units of 2^-264.
struct ExactSum {
    static constexpr int LIMBS = EXACT_LIMBS;
    static constexpr int LOW = -264;
    u64 limbs[LIMBS];

    __device__ __forceinline__ void clear() {
        for (int i = 0; i < LIMBS; i++) limbs[i] = 0;
    }

    // Adds significand * 2^exponent, for exponents from -264 to 254.
    __device__ void add(i64 significand, int exponent) {
        int position = exponent - LOW, limb = position >> 6, shift = position & 63;
        u64 sign = significand < 0 ? ~0ull : 0ull;
        u64 low = (u64)significand << shift;
        // The bits shifted out, with the sign above them.
        u64 high = shift == 0 ? sign : (u64)(significand >> (64 - shift));
        u64 carry = 0;
        for (int i = limb; i < LIMBS; i++) {
            u64 term = i == limb ? low : i == limb + 1 ? high : sign;
            u64 sum = limbs[i] + term;
            u64 carry_1 = sum < term;
            limbs[i] = sum + carry;
            carry = carry_1 | (limbs[i] < sum);
        }
    }

    __device__ float round() const {
        bool negative = limbs[LIMBS - 1] >> 63;
        u64 carry = negative, top = 0, below = 0;
        int top_limb = 0;
        bool sticky = false;
        // From the lowest limb up, so that the last nonzero limb seen is the top one.
        for (int i = 0; i < LIMBS; i++) {
            u64 limb = negative ? ~limbs[i] + carry : limbs[i];
            carry = negative && carry && limb == 0;
            if (limb != 0) {
                // The limb just below the top one fills the window; what lies deeper is sticky.
                bool adjacent = top_limb == i - 1;
                sticky = sticky || below != 0 || (!adjacent && top != 0);
                below = adjacent ? top : 0;
                top = limb;
                top_limb = i;
            }
        }
        if (top == 0) return 0.0f;
        int zeros = __clzll((i64)top);
        u64 window = top;
        if (zeros > 0) {
            window = (top << zeros) | (below >> (64 - zeros));
            below <<= zeros;
        }
        window |= sticky || below != 0;
        return round_to_f32(negative, window, LOW + 64 * top_limb - zeros);
    }
};

// A product by groups: each dot product times its factor of A fits an int32, times that of B an
// int64. An e8m0 factor is 2^(byte - low of the row), an e4m3 factor an integer in units of 2^-9;
// the sum is in units of 2^(UNIT + low_a + low_b).
template <int PRODUCT>
struct ByGroups {
    typedef Operands<PRODUCT> Of;
    // The largest spreads: DOT * 2^SPREAD_A < 2^31, and 2^SPREAD_B < 2^31.
    static constexpr int SPREAD_A = PRODUCT == MXFP4 ? 18 : PRODUCT == MXINT8_MXFP4 ? 15 : 16, SPREAD_B = 30;
    static_assert(Of::DOT <= 0x7FFFFFFF >> SPREAD_A, "");
    static_assert(PRODUCT == NVFP4 || Of::DOT > 0x7FFFFFFF >> (SPREAD_A + 1), "");
    // The largest e4m3 factor, and the largest term of a group under spreads of 0.
    static constexpr i64 E4M3_LARGEST = 15 << 14;
    static constexpr i64 TERM = Of::DOT * (Of::A::SCALE_TYPE == E4M3 ? E4M3_LARGEST : 1) *
                                (Of::B::SCALE_TYPE == E4M3 ? E4M3_LARGEST : 1);
    static_assert(Of::A::SCALE_TYPE == E8M0 || Of::DOT * E4M3_LARGEST < 0x7FFFFFFF, "");

    __device__ static __forceinline__ bool factors_fit(const RowMeta& a, const RowMeta& b) {
        return a.spread() <= SPREAD_A && b.spread() <= SPREAD_B; // under e4m3 spreads are 0
    }
};

// Adds a group's dot product under its two scale bytes, of which the one of A is e8m0.
template <int PRODUCT>
__device__ __forceinline__ void add_term(ExactSum& sum, int dot, u32 scale_a, u32 scale_b) {
    typedef Operands<PRODUCT> Of;
    if (Of::B::SCALE_TYPE == E4M3) {
        sum.add((i64)dot * e4m3_units(scale_b), Of::UNIT + (int)scale_a);
    } else {
        sum.add(dot, Of::UNIT + (int)scale_a + (int)scale_b);
    }
}

// The exact dot product of two rows, rounded once: the wide path, right for every input without
// NaN.
template <int PRODUCT>
__device__ inline float exact_dot(const u8* codes_a, const u8* scales_a, const u8* codes_b, const u8* scales_b,
                                  int groups) {
    typedef Operands<PRODUCT> Of;
    ExactSum sum;
    sum.clear();
    for (int g = 0; g < groups; g++) {
        // Padding has dot 0, and so has a group whose scale byte means nothing.
        int dot = Of::dot(codes_a, codes_b, g);
        if (dot != 0) add_term<PRODUCT>(sum, dot, scales_a[Of::a_group(g)], scales_b[g]);
    }
    return sum.round();
}

// NVFP4 rows of any length; NaN scales count as 0.
template <>
__device__ inline float exact_dot<NVFP4>(const u8* codes_a, const u8* scales_a, const u8* codes_b, const u8* scales_b,
                                         int groups) {
    ExactSum sum;
    i64 units = 0;
    bool spilled = false;
    for (int g = 0; g < groups; g++) {
        int dot = Operands<NVFP4>::dot(codes_a, codes_b, g);
        units += (i64)(dot * e4m3_units(scales_a[g])) * e4m3_units(scales_b[g]);
        if ((g + 1) % NVFP4_INT64_GROUPS == 0 && g + 1 < groups) {
            if (!spilled) sum.clear();
            sum.add(units, NVFP4_UNIT);
            units = 0;
            spilled = true;
        }
    }
    if (!spilled) return round_int64(units, NVFP4_UNIT);
    sum.add(units, NVFP4_UNIT);
    return sum.round();
}

// alpha of row i of A.
__device__ __forceinline__ float row_alpha(const Outputs& to, i64 i) {
    return to.row_scales == nullptr ? to.alpha : __fmul_rn(to.alpha, to.row_scales[i]);
}

// An output of column j in f32, before its one rounding. No bias is not a bias of 0: -0 + 0 is +0.
__device__ __forceinline__ float finish_value(const Outputs& to, float s32, float alpha, i64 j) {
    float y = __fmul_rn(s32, alpha);
    return to.bias == nullptr ? y : __fadd_rn(y, to.bias[j]);
}

// The last steps of C6 for output (i, j) of rows of n: alpha of the row, bias of the column, then
// one rounding to the output type, in which a NaN becomes canonical.
__device__ __forceinline__ void finish(const Outputs& to, i64 i, i64 j, int n, float s32) {
    store_dense(to.out, i * n + j, to.out_type, finish_value(to, s32, row_alpha(to, i), j));
}

} // namespace fp4
