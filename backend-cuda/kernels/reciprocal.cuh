// Quotients without divisions in the loops of quantization: the same bits (C4.2, C4.3).
//
// **Codes.** By the reciprocal of the unit d in two parts, y + l, as the CPU kernels have it:
//
//     once a group:  y = the largest float that is not above 1 / d;  r = fma(-d, y, 1), exact
//                    l = fma(r * y, r, r * y)
//     for each x:    q = fma(x, y, x * l)           on the side of x / d of every code's boundary
//
// 0 <= r < 2^-23 and y + l is within 2^-46 of 1 / d, relatively; what the last operation rounds is
// within 1.5 * 2^-46 of z = x / d. A boundary c (half a unit in the last place below a midpoint
// whose tie goes up, or above one whose tie goes down) is a power of two times an odd M of 25 bits,
// M = 2^22 m' -+ 1 with m' of 4 to 7. M does not divide the 24 bits of x, so z is never c. z and c
// are as far apart, relatively, as A 2^k and B M, A and B the significands of x and d as integers
// and k >= 22: integers below 7/4 * 2^48, which to be mistaken would have to differ by 10 or less.
// Modulo 2^22 they differ by B or -B, so B is within 10 of a multiple of 2^22: 42 significands of
// d, which fp4-backend-cpu-simd and a test of this crate try at every boundary. One goes wrong, the
// largest, 2^24 - 1: it has no reciprocal. Powers of two pass through all of this where nothing is
// subnormal or infinite: d in [2^-60, 2^60] and |x| at most 2^60. (r is 0 or at least 2^-47, so l
// is normal, and x * l is where x is near a boundary. q is at most 2^120.) A group of zeros, or
// with d = 0, takes y = l = 0: codes 0. All others are divided: negative units, NaNs, infinities.
//
// A code from q, ties to even: ties go up from significands of 1.5 on (0.75, 1.75, 3.5), and down
// else. q plus a third of its last place, rounded (THIRD_ULP is 2^-23 / 3, rounded up), is one unit
// more from 1.5 on, and q else: then every tie goes down. Times 2^-126, rounded up, 1 is the least
// normal float, and codes are the exponent and one bit of mantissa, subnormal 0.5 included:
//
//     code = (bits + 2^21 - 1) / 2^22, at most 7
//
// Rounding up keeps what is above a midpoint above it, and at or below it at or below. Worked
// example: q = 0.75 has the significand 1.5, so it becomes 0x3F400001; times 2^-126 that is
// 0x00600000 and a quarter, rounded up 0x00600001; with 0x1FFFFF it is 0x00800000: code 2, the even
// one.
//
// **Scales.** amax / divisor, rounded to f32, by the divisor's reciprocal y rounded to nearest: two
// steps q += (amax - divisor q) y from q = amax y. The first leaves q within a unit in the last
// place of the quotient (error before rounding: 2^-46). Then the residual is a float, and by
// Markstein's theorem (IBM J. Res. Dev. 34, 1990, 111: y is 1 / b rounded to nearest, q within a
// unit of a / b) the second is a / b rounded to nearest. Both in [2^-60, 2^60], or amax 0: nothing
// is subnormal. All others are divided.
#pragma once

#include "format.cuh"

namespace fp4 {

constexpr u32 RECIPROCAL_LEAST = 0x21800000u; // 2^-60
constexpr u32 RECIPROCAL_MOST = 0x5D800000u;  // 2^60
constexpr u32 LAST_SIGNIFICAND = 0x7FFFFFu;
constexpr u32 THIRD_ULP = 0x332AAAABu;        // 2^-23 / 3, rounded up
constexpr u32 SCALE_TO_CODES = 0x00800000u;   // 2^-126

// Whether these bits are of a float in [2^-60, 2^60].
__device__ __forceinline__ bool is_moderate(u32 bits) {
    return bits - RECIPROCAL_LEAST <= RECIPROCAL_MOST - RECIPROCAL_LEAST;
}

// Whether the codes of a group with this unit and largest magnitude, as bits, are had by the
// `Reciprocal` of the unit: the group is not one of zeros.
__device__ __forceinline__ bool has_reciprocal(float d, u32 amax) {
    const u32 bits = __float_as_uint(d);
    return amax <= RECIPROCAL_MOST && is_moderate(bits) && (bits & LAST_SIGNIFICAND) != LAST_SIGNIFICAND;
}

// 1 / d in two parts; both 0 for a group of zeros.
struct Reciprocal {
    float high, low;

    __device__ __forceinline__ void of(float d) {
        const float nearest = __frcp_rn(d);
        high = __uint_as_float(__float_as_uint(nearest) - (__fmaf_rn(-d, nearest, 1.0f) < 0.0f ? 1u : 0u));
        const float rest = __fmaf_rn(-d, high, 1.0f), first = __fmul_rn(rest, high);
        low = __fmaf_rn(first, rest, first);
    }

    __device__ __forceinline__ float times(float x) const { return __fmaf_rn(x, high, __fmul_rn(x, low)); }
};

// The code of a quotient, not negative, ties to even, from bit 24 of the result on; what is below
// is not 0.
__device__ __forceinline__ u32 code_at_24(float q) {
    const float up = __fmaf_rn(q, __uint_as_float(THIRD_ULP), q);
    const u32 bits = __float_as_uint(__fmul_ru(up, __uint_as_float(SCALE_TO_CODES)));
    return (bits < 0x01E00000u ? bits : 0x01E00000u) * 4u + 4u * 0x1FFFFFu;
}

// The highest bytes of four words, the first in the lowest byte. `SIGNS`: instead of each 0xFF or
// 0, by its highest bit.
template <bool SIGNS>
__device__ __forceinline__ u32 highest_bytes(u32 a, u32 b, u32 c, u32 d) {
    constexpr u32 PAIR = SIGNS ? 0xFBu : 0x73u; // byte 3 and byte 7, and of signs their highest bit
    return permute_bytes(permute_bytes(a, b, PAIR), permute_bytes(c, d, PAIR), 0x5410u);
}

// The codes of eight values of a group, the first in the lowest nibble.
__device__ __forceinline__ u32 codes_by_reciprocal(const float (&y)[8], const Reciprocal& by) {
    u32 codes[8], bits[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        bits[i] = __float_as_uint(y[i]);
        codes[i] = code_at_24(by.times(__uint_as_float(bits[i] & 0x7FFFFFFFu)));
    }
    const u32 even = highest_bytes<false>(codes[0], codes[2], codes[4], codes[6]);
    const u32 odd = highest_bytes<false>(codes[1], codes[3], codes[5], codes[7]);
    const u32 even_signs = highest_bytes<true>(bits[0], bits[2], bits[4], bits[6]);
    const u32 odd_signs = highest_bytes<true>(bits[1], bits[3], bits[5], bits[7]);
    return even | odd << 4 | (even_signs & 0x08080808u) | (odd_signs & 0x80808080u);
}

// A divisor that many magnitudes are divided by, in [2^-60, 2^60].
struct Divisor {
    float value, inverse;

    __device__ __forceinline__ explicit Divisor(float divisor) : value(divisor), inverse(__frcp_rn(divisor)) {}

    // The quotient, rounded, of 0 or of a magnitude in the same range.
    __device__ __forceinline__ float divide(float a) const {
        float q = __fmul_rn(a, inverse);
        q = __fmaf_rn(__fmaf_rn(-value, q, a), inverse, q);
        return __fmaf_rn(__fmaf_rn(-value, q, a), inverse, q);
    }
};

} // namespace fp4
