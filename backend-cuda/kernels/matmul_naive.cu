// The readable matmul: one thread an output, complete for every input (C6).
//
//     NaN row or column                    -> NaN
//     NVFP4                                -> int64 in units of 2^-20, to 640 bits every 2^20 of K
//     others, joint exponent spread narrow -> int64 in units of 2^(low_a + low_b + UNIT)
//     others                               -> 640 bits
//     out = round(f32(S) * alpha_i + bias_j), S rounded once (exact.cuh)
//
// low_b is 0 where B is NVFP4: its scales are integers in units of 2^-9.
//
// Bound of the int64 path. The largest term of a group, T, is its largest dot product, and that
// times the largest e4m3 scale where B is NVFP4:
//
//     MXFP4              144 * 32                 4608
//     MXINT8 by MXFP4    128 * 12 * 32            49,152
//     MXINT8 by NVFP4    128 * 12 * 16 * 15 * 2^14
//
// so |sum| <= T * groups * 2^(spread_a + spread_b), which must stay below 2^63. The host passes the
// largest joint spread for which it does: joint_limit = floor(log2((2^63 - 1) / (T * groups))).
//
// Worked example, one group of MXFP4, codes 7 and 7 in one element, scales 2^0 and 2^3: dot = 144,
// exponent 3 - 2, S = 144 * 2 = 288 = 36 * 8.
//
// The same sums without the rounding are the partial sums of a range of groups.
#include "exact.cuh"

using namespace fp4;

namespace {

// One output before its rounding to the output type, of rows without NaN; whether it was wide.
template <int PRODUCT>
__device__ __forceinline__ float output(const MatmulArgs& p, i64 i, i64 j, const RowMeta& meta_a, const RowMeta& meta_b,
                                        bool& wide) {
    typedef Operands<PRODUCT> Of;
    const int groups = p.k_pad / Of::GROUP;
    const u8* codes_a = p.a.codes + i * Of::A::row_bytes(p.k_pad);
    const u8* codes_b = p.b.codes + j * Of::B::row_bytes(p.k_pad);
    const u8* scales_a = p.a.scales + i * (p.k_pad / Of::A::GROUP);
    const u8* scales_b = p.b.scales + j * groups;
    wide = PRODUCT == NVFP4 ? groups > NVFP4_INT64_GROUPS : meta_a.spread() + meta_b.spread() > p.joint_limit;
    if (PRODUCT == NVFP4 || wide) return exact_dot<PRODUCT>(codes_a, scales_a, codes_b, scales_b, groups);
    i64 sum = 0;
    for (int g = 0; g < groups; g++) {
        int dot = Of::dot(codes_a, codes_b, g);
        // A group that is not live has dot 0, and then its scale byte means nothing.
        if (dot == 0) continue;
        int shift = scales_a[Of::a_group(g)] - meta_a.low;
        if (Of::B::SCALE_TYPE == E4M3) {
            int units = e4m3_units(scales_b[g]); // 0 of a group that is not live, of either row
            if (units != 0) sum += (i64)dot * units * (1ll << shift);
        } else {
            sum += (i64)dot << (shift + scales_b[g] - meta_b.low);
        }
    }
    return round_int64(sum, Of::UNIT + meta_a.low + meta_b.low);
}

} // namespace

KERNEL_BOUNDS(NAIVE_TILE * NAIVE_TILE, 1)
void matmul_naive(MatmulArgs p) {
    const int n = p.n;
    int tiles_across = (n + NAIVE_TILE - 1) / NAIVE_TILE;
    i64 i = (i64)(blockIdx.x / tiles_across) * NAIVE_TILE + threadIdx.x / NAIVE_TILE;
    i64 j = (i64)(blockIdx.x % tiles_across) * NAIVE_TILE + threadIdx.x % NAIVE_TILE;
    bool inside = i < p.m && j < n;
    int path = -1;
    if (inside) {
        RowMeta meta_a = p.a.meta[i], meta_b = p.b.meta[j];
        float s32 = __uint_as_float(NAN_F32);
        bool wide = false;
        if (!meta_a.nan && !meta_b.nan) {
            switch (p.product) {
            case MXFP4: s32 = output<MXFP4>(p, i, j, meta_a, meta_b, wide); break;
            case NVFP4: s32 = output<NVFP4>(p, i, j, meta_a, meta_b, wide); break;
            case MXINT8_MXFP4: s32 = output<MXINT8_MXFP4>(p, i, j, meta_a, meta_b, wide); break;
            default: s32 = output<MXINT8_NVFP4>(p, i, j, meta_a, meta_b, wide);
            }
        }
        path = wide ? 2 : 1;
        finish(p.outputs, i, j, n, s32);
    }
    for (int at = 1; at < 3; at++) {
        u32 votes = __ballot_sync(ALL_LANES, path == at);
        if (threadIdx.x % 32 == 0 && votes != 0) atomicAdd(p.paths + at, (u64)__popc(votes));
    }
}
EXPORT(matmul_naive)

// Partial sums over the groups [first, end), at most NVFP4_INT64_GROUPS of them: units of 2^-20 and
// a NaN flag.
KERNEL_BOUNDS(256, 1)
void partial_nvfp4(PartialArgs p) {
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (i64)p.m * p.n) return;
    i64 i = index / p.n, j = index % p.n;
    const u8 *codes_a = p.a.codes + i * (p.k_pad / 2), *codes_b = p.b.codes + j * (p.k_pad / 2);
    const u8 *scales_a = p.a.scales + i * (p.k_pad / 16), *scales_b = p.b.scales + j * (p.k_pad / 16);
    i64 sum = 0;
    bool any_nan = false;
    for (int g = p.first; g < p.end; g++) {
        int dot = Operands<NVFP4>::dot(codes_a, codes_b, g);
        sum += (i64)(dot * e4m3_units(scales_a[g])) * e4m3_units(scales_b[g]);
        any_nan |= scale_is_nan(E4M3, scales_a[g]) || scale_is_nan(E4M3, scales_b[g]);
    }
    p.sums[index] = (u64)sum;
    p.nan[index] = any_nan;
}
EXPORT(partial_nvfp4)

// Partial sums over the groups [first, end): 10 limbs of the 640-bit sum each, and a NaN flag.
template <int PRODUCT>
__device__ __forceinline__ void partial_exact(const PartialArgs& p) {
    typedef Operands<PRODUCT> Of;
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (i64)p.m * p.n) return;
    i64 i = index / p.n, j = index % p.n;
    const u8 *codes_a = p.a.codes + i * Of::A::row_bytes(p.k_pad), *codes_b = p.b.codes + j * Of::B::row_bytes(p.k_pad);
    const u8 *scales_a = p.a.scales + i * (p.k_pad / Of::A::GROUP), *scales_b = p.b.scales + j * (p.k_pad / Of::GROUP);
    ExactSum sum;
    sum.clear();
    bool any_nan = false;
    for (int g = p.first; g < p.end; g++) {
        u32 scale_a = scales_a[Of::a_group(g)], scale_b = scales_b[g];
        if (scale_is_nan(Of::A::SCALE_TYPE, scale_a) || scale_is_nan(Of::B::SCALE_TYPE, scale_b)) {
            any_nan = true;
            continue;
        }
        int dot = Of::dot(codes_a, codes_b, g);
        if (dot != 0) add_term<PRODUCT>(sum, dot, scale_a, scale_b);
    }
    for (int limb = 0; limb < ExactSum::LIMBS; limb++) {
        p.sums[index * ExactSum::LIMBS + limb] = sum.limbs[limb];
    }
    p.nan[index] = any_nan;
}

#define PARTIAL_EXACT(name, PRODUCT)                          \
    KERNEL_BOUNDS(256, 1)                                     \
    void name(PartialArgs p) { partial_exact<PRODUCT>(p); }   \
    EXPORT(name)

PARTIAL_EXACT(partial_mxfp4, MXFP4)
PARTIAL_EXACT(partial_mxint8_mxfp4, MXINT8_MXFP4)
PARTIAL_EXACT(partial_mxint8_nvfp4, MXINT8_NVFP4)
