// The readable matmul, the bottom of the ladder: one thread an output, complete for every input (C6).
//
//     NaN row or column                    -> NaN
//     NVFP4                                -> int64 in units of 2^-20, spilled to 640 bits every 2^20 of K
//     MXFP4, joint exponent spread narrow  -> int64 in units of 2^(low_a + low_b - 2)
//     MXFP4 otherwise                      -> 640 bits
//     out = round(f32(S) * alpha), S rounded once
//
// Bound of the MXFP4 int64 path: a group's doubled dot product is at most 144 * 32 = 4608, so
// |sum| <= 4608 * groups * 2^(spread_a + spread_b), which must stay below 2^63. The host passes the largest
// joint spread for which it does: joint_limit = floor(log2((2^63 - 1) / (4608 * groups))).
//
// Worked example, one group, codes 7 and 7 in one element, scales 2^0 and 2^3: dot = 144, exponent 3 - 2,
// S = 144 * 2 = 288 = 36 * 8.
//
// The same sums without the rounding are the partial sums of a range of groups.
#include "exact.cuh"

using namespace fp4;

KERNEL_BOUNDS(256, 1)
void matmul_naive(const u8* a_codes, const u8* a_scales, const int* a_meta, const u8* b_codes,
                  const u8* b_scales, const int* b_meta, void* out, int out_type, float alpha, int m,
                  int n, int k_pad, int scale_type, int joint_limit, u64* paths) {
    // A block covers 16 x 16 outputs.
    int tiles_across = (n + 15) / 16;
    i64 i = (i64)(blockIdx.x / tiles_across) * 16 + threadIdx.x / 16;
    i64 j = (i64)(blockIdx.x % tiles_across) * 16 + threadIdx.x % 16;
    bool inside = i < m && j < n;
    int path = -1;
    if (inside) {
        int group = scale_type == E8M0 ? 32 : 16, groups = k_pad / group;
        const u8* codes_a = a_codes + i * (k_pad / 2);
        const u8* codes_b = b_codes + j * (k_pad / 2);
        const u8* scales_a = a_scales + i * groups;
        const u8* scales_b = b_scales + j * groups;
        RowMeta meta_a = ((const RowMeta*)a_meta)[i], meta_b = ((const RowMeta*)b_meta)[j];
        float s32;
        if (meta_a.nan || meta_b.nan) {
            s32 = __uint_as_float(NAN_F32);
            path = 1;
        } else if (scale_type == E4M3) {
            s32 = exact_dot_nvfp4(codes_a, scales_a, codes_b, scales_b, groups);
            path = groups <= NVFP4_INT64_GROUPS ? 1 : 2;
        } else if (meta_a.spread() + meta_b.spread() <= joint_limit) {
            i64 sum = 0;
            for (int g = 0; g < groups; g++) {
                int dot = group_dot(codes_a + 16 * g, codes_b + 16 * g, 8);
                // A group that is not live has dot 0, and then its scale byte means nothing.
                if (dot != 0) {
                    sum += (i64)dot << (scales_a[g] - meta_a.low + scales_b[g] - meta_b.low);
                }
            }
            s32 = round_int64(sum, meta_a.low + meta_b.low - 2 * 127 - 2);
            path = 1;
        } else {
            s32 = exact_dot_mxfp4(codes_a, scales_a, codes_b, scales_b, groups);
            path = 2;
        }
        finish(out, i * n + j, out_type, s32, alpha);
    }
    for (int p = 1; p < 3; p++) {
        u32 votes = __ballot_sync(ALL_LANES, path == p);
        if (threadIdx.x % 32 == 0 && votes != 0) atomicAdd(paths + p, (u64)__popc(votes));
    }
}
EXPORT(matmul_naive)

// Partial sums over the groups [first, end), at most NVFP4_INT64_GROUPS of them: units of 2^-20 and a NaN flag.
KERNEL_BOUNDS(256, 1)
void partial_nvfp4(const u8* a_codes, const u8* a_scales, const u8* b_codes, const u8* b_scales, i64* units,
                   u8* nan, int m, int n, int k_pad, int first, int end) {
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (i64)m * n) return;
    i64 i = index / n, j = index % n;
    int groups = k_pad / 16;
    i64 sum = 0;
    bool any_nan = false;
    for (int g = first; g < end; g++) {
        i64 at_a = i * groups + g, at_b = j * groups + g;
        int dot = group_dot(a_codes + 8 * at_a, b_codes + 8 * at_b, 4);
        sum += (i64)(dot * e4m3_units(a_scales[at_a])) * e4m3_units(b_scales[at_b]);
        any_nan |= scale_is_nan(E4M3, a_scales[at_a]) || scale_is_nan(E4M3, b_scales[at_b]);
    }
    units[index] = sum;
    nan[index] = any_nan;
}
EXPORT(partial_nvfp4)

// Partial sums over the groups [first, end): 10 limbs of the 640-bit sum each, and a NaN flag.
KERNEL_BOUNDS(256, 1)
void partial_mxfp4(const u8* a_codes, const u8* a_scales, const u8* b_codes, const u8* b_scales, u64* limbs,
                   u8* nan, int m, int n, int k_pad, int first, int end) {
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (i64)m * n) return;
    i64 i = index / n, j = index % n;
    int groups = k_pad / 32;
    ExactSum sum;
    sum.clear();
    bool any_nan = false;
    for (int g = first; g < end; g++) {
        i64 at_a = i * groups + g, at_b = j * groups + g;
        if (scale_is_nan(E8M0, a_scales[at_a]) || scale_is_nan(E8M0, b_scales[at_b])) {
            any_nan = true;
            continue;
        }
        int dot = group_dot(a_codes + 16 * at_a, b_codes + 16 * at_b, 8);
        if (dot != 0) sum.add(dot, (int)a_scales[at_a] + (int)b_scales[at_b] - 2 * 127 - 2);
    }
    for (int limb = 0; limb < ExactSum::LIMBS; limb++) {
        limbs[index * ExactSum::LIMBS + limb] = sum.limbs[limb];
    }
    nan[index] = any_nan;
}
EXPORT(partial_mxfp4)
