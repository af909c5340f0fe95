// Formats on the device: e2m1, int8, e8m0, e4m3 and the three dense types (C1, C2, C4, C9, C10).
//
// The rules are those of `fp4-core`, bit for bit; the tests of this crate compare them. Integer
// arithmetic decides wherever it can, and every floating-point step is one named IEEE operation, so
// the same source gives the same bits under NVRTC and under a host compiler.
//
//     e2m1 code      0  1    2  3    4  5  6  7     8..15: negative
//     value          0  0.5  1  1.5  2  3  4  6
//     doubled        0  1    2  3    4  6  8  12    what the integer kernels multiply
//
// Worked example: 5 lies between 4 (code 6) and 6 (code 7). As f32 it is 0x40A00000, of which one
// mantissa bit is kept; 0x40A00000 + 0x1FFFFF carries nothing into it, so ties-to-even gives code
// 6.
#pragma once

#include "arguments.cuh"

namespace fp4 {

constexpr u32 NAN_F32 = 0x7FC00000u;
constexpr u32 INF_F32 = 0x7F800000u;
constexpr u32 ALL_LANES = 0xFFFFFFFFu;

__device__ __forceinline__ bool is_nan(float x) {
    return (__float_as_uint(x) & 0x7FFFFFFFu) > INF_F32;
}

// ---- dense types: widening is exact, narrowing is one rounding, every NaN becomes canonical

struct DenseF32 {
    typedef float Value;
    __device__ static __forceinline__ float widen(float x) { return x; }
    __device__ static __forceinline__ float narrow(float x) {
        return is_nan(x) ? __uint_as_float(NAN_F32) : x;
    }
};

struct DenseF16 {
    typedef u16 Value;
    __device__ static __forceinline__ float widen(u16 h) {
        u32 magnitude = h & 0x7FFFu, sign = (u32)(h & 0x8000u) << 16;
        // The exponent fields differ by 112; multiplying adds that exactly, subnormals included.
        u32 bits = magnitude >= 0x7C00u
                       ? (magnitude << 13) | INF_F32
                       : __float_as_uint(__fmul_rn(__uint_as_float(magnitude << 13),
                                                   5192296858534827628530496329220096.0f));
        return __uint_as_float(bits | sign);
    }
    __device__ static __forceinline__ u16 narrow(float x) {
        u32 bits = __float_as_uint(x), magnitude = bits & 0x7FFFFFFFu, half;
        if (magnitude > INF_F32) return 0x7E00;
        if (magnitude >= 0x47800000u) {
            half = 0x7C00u; // 2^16 and above
        } else if (magnitude < 0x38800000u) {
            // Below 2^-14: adding 0.5, whose last bit is 2^-24, rounds to the f16's last bit.
            half = __float_as_uint(__fadd_rn(__uint_as_float(magnitude), 0.5f)) - 0x3F000000u;
        } else {
            // Rounds off 13 bits, ties to even; a carry moves the exponent, up to infinity.
            half = (magnitude - 0x38000000u + 0xFFFu + ((magnitude >> 13) & 1u)) >> 13;
        }
        return (u16)(half | ((bits >> 16) & 0x8000u));
    }
};

struct DenseBf16 {
    typedef u16 Value;
    __device__ static __forceinline__ float widen(u16 b) { return __uint_as_float((u32)b << 16); }
    __device__ static __forceinline__ u16 narrow(float x) {
        u32 bits = __float_as_uint(x);
        if (is_nan(x)) return 0x7FC0;
        return (u16)((bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16);
    }
};

// Writes `x` rounded once to the type numbered `type`.
__device__ __forceinline__ void store_dense(void* out, i64 index, int type, float x) {
    if (type == F32) {
        ((float*)out)[index] = DenseF32::narrow(x);
    } else {
        ((u16*)out)[index] = type == F16 ? DenseF16::narrow(x) : DenseBf16::narrow(x);
    }
}

// ---- scales (C2)

__device__ __forceinline__ bool scale_is_nan(int type, u32 byte) {
    return type == E8M0 ? byte == 0xFFu : (byte & 0x7Fu) == 0x7Fu;
}

// An e4m3 byte as an integer in units of 2^-9: up to 15 * 2^14, 18 bits with the sign; NaN counts
// 0.
__device__ __forceinline__ int e4m3_units(u32 byte) {
    if ((byte & 0x7Fu) == 0x7Fu) return 0;
    int exponent = (int)(byte >> 3) & 15, mantissa = (int)byte & 7;
    int magnitude = exponent == 0 ? mantissa : (8 + mantissa) << (exponent - 1);
    return byte & 0x80u ? -magnitude : magnitude;
}

constexpr float E4M3_SHORT = 1329227995784915872903807060280344576.0f; // 2^120

__device__ __forceinline__ float decode_scale(int type, u32 byte) {
    if (scale_is_nan(type, byte)) return __uint_as_float(NAN_F32);
    if (type == E8M0) return __uint_as_float(byte == 0 ? 0x00400000u : byte << 23);
    // As a float's bits the exponent is 120 short, subnormals included. Exact; a zero keeps the
    // sign of the byte.
    float value = __fmul_rn(__uint_as_float((byte & 0x7Fu) << 20), E4M3_SHORT);
    return __uint_as_float(__float_as_uint(value) | ((byte & 0x80u) << 24));
}

__device__ __forceinline__ u32 encode_e8m0(float s) {
    u32 bits = __float_as_uint(s);
    if (is_nan(s)) return 0xFFu;
    if (bits >> 31) return 0; // clamped up to 2^-127
    if (bits < 0x00800000u) return bits >= 0x00600000u; // the tie is 1.5 * 2^-127
    // Half an octave is 0x400000: it carries exactly at and above 1.5 * 2^e.
    u32 rounded = (bits + 0x00400000u) >> 23;
    return rounded > 254u ? 254u : rounded;
}

__device__ __forceinline__ u32 encode_e4m3(float s) {
    if (is_nan(s)) return 0x7Fu;
    u32 bits = __float_as_uint(s), sign = (bits >> 24) & 0x80u, magnitude = bits & 0x7FFFFFFFu;
    if (magnitude >= 0x43E00000u) return sign | 0x7Eu; // 448
    if (magnitude < 0x3C800000u) {
        // Below 2^-6: adding 2^14, whose last bit is 2^-9, rounds to units of 2^-9.
        float sum = __fadd_rn(__uint_as_float(magnitude), 16384.0f);
        return sign | (__float_as_uint(sum) - 0x46800000u);
    }
    // Rounds off 20 bits, ties to even; a carry moves the exponent. Exponent fields differ by 120.
    return sign | ((magnitude - (120u << 23) + 0x7FFFFu + ((magnitude >> 20) & 1u)) >> 20);
}

__device__ __forceinline__ u32 encode_scale(int type, float s) {
    return type == E8M0 ? encode_e8m0(s) : encode_e4m3(s);
}

// ---- e2m1 (C1)

// Encodes q. A tie goes up where the code below it is even if `up[0]`, where it is odd if `up[1]`;
// for ties to the even code that is {0, 1}. All comparisons are of bit patterns, which order like
// magnitudes.
__device__ __forceinline__ u32 encode_e2m1(float q, int tie) {
    u32 bits = __float_as_uint(q), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 31;
    if (magnitude > INF_F32) return 7; // NaN of either sign
    if (magnitude > 0x40C00000u) magnitude = 0x40C00000u; // 6
    u32 away = tie == TIE_UP ? 1u - sign : tie == TIE_DOWN ? sign : 0u;
    u32 up[2] = {away, tie == TIE_EVEN ? 1u : away}, code;
    if (magnitude < 0x3F800000u) {
        // Midpoints 0.25, above code 0, and 0.75, above code 1.
        code = (u32)(magnitude + up[0] > 0x3E800000u) + (u32)(magnitude + up[1] > 0x3F400000u);
    } else {
        // From 1 up, which is code 2 and 254 << 22, one mantissa bit is kept.
        u32 odd = (magnitude >> 22) & 1u;
        code = ((magnitude + 0x1FFFFFu + (odd ? up[1] : up[0])) >> 22) - 252u;
    }
    return code | (sign << 3);
}

// Code 0..15 to its value.
__device__ __forceinline__ float decode_e2m1(u32 code) {
    u32 magnitude = code & 7u;
    // 0, 0.5, then one mantissa bit above exponent 0.
    u32 bits = magnitude < 2u ? magnitude * 0x3F000000u : (magnitude + 252u) << 22;
    return __uint_as_float(bits | ((code & 8u) << 28));
}

// Four codes (16 bits, the first in the lowest nibble) as four signed bytes, doubled and shifted
// left.
//
// A nibble selects its byte of the magnitude table; the sign nibbles select 0x00 or 0xFF. In each
// byte the magnitude goes either to `minus` or to the rest; subtracting from 0x80 | plus never
// borrows, because a byte is at most 12 << 3 = 96.
__device__ __forceinline__ u32 expand_doubled(u32 codes, int shift) {
    u32 magnitude = __byte_perm(0x03020100u << shift, 0x0C080604u << shift, codes & 0x7777u);
    u32 minus = magnitude & __byte_perm(0x0000FF00u, 0u, (codes >> 3) & 0x1111u);
    return (((magnitude ^ minus) | 0x80808080u) - minus) ^ 0x80808080u;
}

// ---- int8 elements (C10)

// The scale byte of a group whose largest magnitude has these bits: 127 / 64 has the fraction
// 0x7E0000, and what is above it carries into the exponent.
__device__ __forceinline__ u32 scale_of_int8(u32 amax) {
    if (amax > INF_F32) return 0xFFu;
    if (amax < 0x00800000u) return amax > 0x007F0000u;
    u32 byte = (amax + 0x0001FFFFu) >> 23;
    return byte > 254u ? 254u : byte;
}

// x * 64 / 2^(scale - 127). Exact where the result is normal, and below half an element elsewhere:
// 2^(133 - scale) is not finite for the smallest scales, so there x, which is small, grows first.
__device__ __forceinline__ float int8_quotient(float x, u32 scale) {
    if (scale < 64u) {
        x = __fmul_rn(x, 18446744073709551616.0f); // 2^64
        scale += 64u;
    }
    return __fmul_rn(x, __uint_as_float((260u - scale) << 23));
}

// A quotient as an element: nearest, ties to even, within +-127. It is not NaN.
__device__ __forceinline__ u32 encode_int8(float q) {
    q = q > 127.0f ? 127.0f : q < -127.0f ? -127.0f : q;
    // 1.5 * 2^23 leaves no fraction bits; the element is then the lowest byte.
    return __float_as_uint(__fadd_rn(q, 12582912.0f)) & 0xFFu;
}

// ---- operands and products (arguments.cuh)

// The metadata of a row with so many live groups, `low` and `high` the least and the largest of
// their scale bytes.
__device__ __forceinline__ RowMeta row_meta_of(int scale_type, int low, int high, int nan, int live) {
    RowMeta meta = {0, 0, (u16)nan, 0, 0, live};
    if (live == 0) return meta;
    if (scale_type == E8M0) {
        meta.low = low;
        meta.high = high;
    } else {
        meta.least = (u8)low;
        meta.most = (u8)high;
    }
    return meta;
}

// Which product of a grouped launch item `at` belongs to: the first whose end is above it.
__device__ __forceinline__ int product_of(const u32* ends, int count, u32 at) {
    int low = 0, high = count - 1;
    while (low < high) {
        const int middle = (low + high) / 2;
        if (ends[middle] > at) high = middle;
        else low = middle + 1;
    }
    return low;
}

// An operand's encoding.
template <int ENCODING>
struct Encoded {
    static constexpr bool IS_INT8 = ENCODING == MXINT8;
    static constexpr int SCALE_TYPE = ENCODING == NVFP4 ? E4M3 : E8M0;
    static constexpr int GROUP = ENCODING == NVFP4 ? 16 : 32;
    static constexpr int GROUP_BYTES = IS_INT8 ? GROUP : GROUP / 2;
    static constexpr int LARGEST = IS_INT8 ? 128 : 12;         // an element as an integer
    static constexpr int UNIT = IS_INT8 ? -6 : -1;             // log2 of what 1 of it is worth
    static constexpr int SCALE_UNIT = ENCODING == NVFP4 ? -9 : -127; // of e8m0: under byte 0

    __device__ static __forceinline__ int row_bytes(int k) { return IS_INT8 ? k : k / 2; }
};

// A product's operands. Its groups are those of B; a group of A may be two of them.
template <int PRODUCT>
struct Operands {
    static constexpr int A_ENCODING = PRODUCT < MXINT8_MXFP4 ? PRODUCT : MXINT8;
    static constexpr int B_ENCODING = PRODUCT % 2;
    typedef Encoded<A_ENCODING> A;
    typedef Encoded<B_ENCODING> B;
    static constexpr int GROUP = B::GROUP;
    static constexpr int DOT = A::LARGEST * B::LARGEST * GROUP; // the largest dot product of a group
    // log2 of the unit of the sums where the e8m0 bytes are 0 and e4m3 scales are integers.
    static constexpr int UNIT = A::UNIT + B::UNIT + A::SCALE_UNIT + B::SCALE_UNIT;

    // The group of A that group g of the product lies in.
    __device__ static __forceinline__ int a_group(int g) { return g * GROUP / A::GROUP; }

    // The dot product of group g of two rows, of doubled codes and of elements.
    __device__ static __forceinline__ int dot(const u8* a, const u8* b, int g) {
        a += (i64)g * (A::IS_INT8 ? GROUP : GROUP / 2);
        b += (i64)g * (GROUP / 2);
        int dot = 0;
#pragma unroll
        for (int i = 0; i < GROUP / 4; i++) {
            u32 four = A::IS_INT8 ? ((const u32*)a)[i] : expand_doubled(((const u16*)a)[i], 0);
            dot = dot_bytes((int)four, (int)expand_doubled(((const u16*)b)[i], 0), dot);
        }
        return dot;
    }
};

} // namespace fp4
