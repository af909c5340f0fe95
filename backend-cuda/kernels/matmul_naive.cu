// The readable matmul: one thread an output, complete for every input (C6).
//
//     NaN row or column                    -> NaN
//     NVFP4                                -> int64 in units of 2^-20, to 640 bits every 2^20 of K
//     MXFP4, joint exponent spread narrow  -> int64 in units of 2^(low_a + low_b - 2)
//     MXFP4 otherwise                      -> 640 bits
//     out = round(f32(S) * alpha_i + bias_j), S rounded once (exact.cuh)
//
// Bound of the MXFP4 int64 path: a group's doubled dot product is at most 144 * 32 = 4608, so
// |sum| <= 4608 * groups * 2^(spread_a + spread_b), which must stay below 2^63. The host passes the
// largest joint spread for which it does: joint_limit = floor(log2((2^63 - 1) / (4608 * groups))).
//
// Worked example, one group, codes 7 and 7 in one element, scales 2^0 and 2^3: dot = 144, exponent
// 3 - 2, S = 144 * 2 = 288 = 36 * 8.
//
// The same sums without the rounding are the partial sums of a range of groups.
#include "exact.cuh"

using namespace fp4;

KERNEL_BOUNDS(NAIVE_TILE * NAIVE_TILE, 1)
void matmul_naive(MatmulArgs p) {
    const int n = p.n, k_pad = p.k_pad;
    int tiles_across = (n + NAIVE_TILE - 1) / NAIVE_TILE;
    i64 i = (i64)(blockIdx.x / tiles_across) * NAIVE_TILE + threadIdx.x / NAIVE_TILE;
    i64 j = (i64)(blockIdx.x % tiles_across) * NAIVE_TILE + threadIdx.x % NAIVE_TILE;
    bool inside = i < p.m && j < n;
    int path = -1;
    if (inside) {
        int group = p.scale_type == E8M0 ? 32 : 16, groups = k_pad / group;
        const u8* codes_a = p.a.codes + i * (k_pad / 2);
        const u8* codes_b = p.b.codes + j * (k_pad / 2);
        const u8* scales_a = p.a.scales + i * groups;
        const u8* scales_b = p.b.scales + j * groups;
        RowMeta meta_a = p.a.meta[i], meta_b = p.b.meta[j];
        float s32;
        if (meta_a.nan || meta_b.nan) {
            s32 = __uint_as_float(NAN_F32);
            path = 1;
        } else if (p.scale_type == E4M3) {
            s32 = exact_dot_nvfp4(codes_a, scales_a, codes_b, scales_b, groups);
            path = groups <= NVFP4_INT64_GROUPS ? 1 : 2;
        } else if (meta_a.spread() + meta_b.spread() <= p.joint_limit) {
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
    const u8 *a_codes = p.a.codes, *a_scales = p.a.scales, *b_codes = p.b.codes, *b_scales = p.b.scales;
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (i64)p.m * p.n) return;
    i64 i = index / p.n, j = index % p.n;
    int groups = p.k_pad / 16;
    i64 sum = 0;
    bool any_nan = false;
    for (int g = p.first; g < p.end; g++) {
        i64 at_a = i * groups + g, at_b = j * groups + g;
        int dot = group_dot(a_codes + 8 * at_a, b_codes + 8 * at_b, 4);
        sum += (i64)(dot * e4m3_units(a_scales[at_a])) * e4m3_units(b_scales[at_b]);
        any_nan |= scale_is_nan(E4M3, a_scales[at_a]) || scale_is_nan(E4M3, b_scales[at_b]);
    }
    p.sums[index] = (u64)sum;
    p.nan[index] = any_nan;
}
EXPORT(partial_nvfp4)

// Partial sums over the groups [first, end): 10 limbs of the 640-bit sum each, and a NaN flag.
KERNEL_BOUNDS(256, 1)
void partial_mxfp4(PartialArgs p) {
    const u8 *a_codes = p.a.codes, *a_scales = p.a.scales, *b_codes = p.b.codes, *b_scales = p.b.scales;
    i64 index = (i64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (i64)p.m * p.n) return;
    i64 i = index / p.n, j = index % p.n;
    int groups = p.k_pad / 32;
    ExactSum sum;
    sum.clear();
    bool any_nan = false;
    for (int g = p.first; g < p.end; g++) {
        i64 at_a = i * groups + g, at_b = j * groups + g;
        if (scale_is_nan(E8M0, a_scales[at_a]) || scale_is_nan(E8M0, b_scales[at_b])) {
            any_nan = true;
            continue;
        }
        int dot = group_dot(a_codes + 16 * at_a, b_codes + 16 * at_b, 8);
        if (dot != 0) sum.add(dot, (int)a_scales[at_a] + (int)b_scales[at_b] - 2 * 127 - 2);
    }
    for (int limb = 0; limb < ExactSum::LIMBS; limb++) {
        p.sums[index * ExactSum::LIMBS + limb] = sum.limbs[limb];
    }
    p.nan[index] = any_nan;
}
EXPORT(partial_mxfp4)
