// The int8 tensor-core matmul for every device since sm_80: complete and exact for every input
// (C6).
//
// A block of 4 warps computes a tile of 64 x 64 outputs, a warp 32 x 32 of them, as 2 x 4 fragments
// of mma.sync: m16n8k32 for a group of MXFP4, m16n8k16 for a group of NVFP4. Packed codes come
// through a ring of three stages of 128 columns by cp.async and are expanded in registers. Exact
// sums commute, so k may be permuted inside a group as long as A and B agree: a lane takes one
// packed word (or half word) of a row, whatever k the fragment layout gives it.
//
// Three sums, chosen by the tile's row metadata, on the device:
//
//   fold   (MXFP4) every row of the tile spans at most 3 exponents: scales are shifted into the
//          bytes, one int32 accumulator runs over all of K. A byte is at most 12 << 3 = 96, so
//          |sum| <= 96^2 * K < 2^31 for K <= 233,016; the host says whether K is.
//          S = sum * 2^(low_a + low_b - 2)
//   int64  one int32 dot product a group, at most 144 * G; times A's factor it must fit an int32,
//          times B's an int64:
//            MXFP4  factor = 2^(e - low): 4608 * 2^18 < 2^31 bounds A's spread by 18, 2^30 < 2^31
//                   B's by 30, and 4608 * groups * 2^(spread_a + spread_b) < 2^63 gives the host's
//                   joint_limit
//            NVFP4  factor = scale in units of 2^-9, at most 15 * 2^14: 2304 * 15 * 2^14 < 2^30,
//                   and 65536 groups fit 2^63; the host takes another kernel for more.
//                   S = sum * 2^-20
//   wide   (MXFP4) outputs past those bounds are computed one by one in 640 bits.
//
// Worked example of the fold: rows with scales 2^5 and 2^7 (low 5), code 7: bytes 12
// and 12 << 2 = 48.
#include "exact.cuh"

using namespace fp4;

namespace {

constexpr int TILE = MMA_TILE, THREADS = MMA_THREADS, STAGES = 3;
constexpr int STAGE_K = 128;            // elements of a stage, the unit of K padding
constexpr int STAGE_BYTES = STAGE_K / 2;
constexpr int ROW_STRIDE = 80;          // bytes: words of 8 rows by 4 lanes hit 32 different banks
constexpr int OPERAND_BYTES = TILE * ROW_STRIDE;
constexpr int FOLD_SPREAD = 3, INT64_SPREAD_A = 18, INT64_SPREAD_B = 30;

struct Operands {
    const u8* codes[2];  // A, B
    const u8* scales[2];
    const RowMeta* meta[2];
    i64 first[2];        // first row of the tile
    int rows[2];         // rows of the operand
    int k_pad;
};

// What a group is worth in a sum: a shift for `fold`, a factor for int64. Groups that are not live
// have dot product 0 and take 0, so that stray scale bytes cannot overflow.
template <int SCALE_TYPE, bool FOLD>
__device__ __forceinline__ int group_factor(u32 scale, int low, int high) {
    if (SCALE_TYPE == E4M3) return e4m3_units(scale);
    int shift = (int)scale - low;
    bool live = shift >= 0 && (int)scale <= high;
    if (FOLD) return live ? shift : 0;
    return live ? 1 << shift : 0;
}

template <int SCALE_TYPE, bool FOLD>
struct Tile {
    static constexpr int GROUP = SCALE_TYPE == E8M0 ? 32 : 16;
    static constexpr int STAGE_GROUPS = STAGE_K / GROUP;

    // Starts the copy of stage `s` of the tile's rows into ring slot `slot`.
    __device__ static __forceinline__ void load(const Operands& in, u8* ring, int s, int slot) {
        u8* to = ring + slot * 2 * OPERAND_BYTES;
        // 2 operands x 64 rows x 4 chunks of 16 bytes.
#pragma unroll
        for (int step = 0; step < 4; step++) {
            int at = step * THREADS + (int)threadIdx.x;
            int operand = at / 256, row = at / 4 % TILE, chunk = at % 4;
            bool valid = in.first[operand] + row < in.rows[operand];
            i64 from = valid ? (in.first[operand] + row) * (in.k_pad / 2) + s * STAGE_BYTES + 16 * chunk : 0;
            cp_async_16(to + operand * OPERAND_BYTES + row * ROW_STRIDE + 16 * chunk,
                        in.codes[operand] + from, valid);
        }
    }

    // Runs the tile over K. `sums` are int32 for FOLD, else int64.
    template <class Sum>
    __device__ static __forceinline__ void run(const Operands& in, u8* ring, int* factors, Sum (&sums)[2][4][4]) {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int g = lane / 4, t = lane % 4;
        int row_a = warp / 2 * 32, row_b = warp % 2 * 32;
        int stages = in.k_pad / STAGE_K;

        // This thread's row of scales: threads 0..63 have A's, 64..127 B's.
        int operand = threadIdx.x / TILE, scale_row = threadIdx.x % TILE;
        bool has_row = in.first[operand] + scale_row < in.rows[operand];
        RowMeta meta = {0, 0, 0, 0};
        const u8* scales = in.scales[operand];
        if (has_row) {
            meta = in.meta[operand][in.first[operand] + scale_row];
            scales += (in.first[operand] + scale_row) * (in.k_pad / GROUP);
        }
        // A row too wide for its factors is computed by the wide path: here it counts as 0.
        bool usable = has_row && (SCALE_TYPE == E4M3 || meta.spread() <= (operand == 0 ? INT64_SPREAD_A : INT64_SPREAD_B));

        for (int s = 0; s < STAGES - 1; s++) {
            if (s < stages) load(in, ring, s, s);
            cp_async_commit();
        }
        for (int s = 0; s < stages; s++) {
            cp_async_wait<STAGES - 2>();
            // Everybody's copies of this stage are in, and everybody is done with the stage before
            // it.
            __syncthreads();
            if (s + STAGES - 1 < stages) load(in, ring, s + STAGES - 1, (s + STAGES - 1) % STAGES);
            cp_async_commit();
            int* factor = factors + s % 2 * 2 * TILE * STAGE_GROUPS;
#pragma unroll
            for (int i = 0; i < STAGE_GROUPS; i++) {
                int f = usable ? group_factor<SCALE_TYPE, FOLD>(scales[s * STAGE_GROUPS + i], meta.low, meta.high) : 0;
                factor[i * 2 * TILE + threadIdx.x] = f;
            }
            __syncthreads();

            const u8* stage = ring + s % STAGES * 2 * OPERAND_BYTES;
#pragma unroll 1
            for (int i = 0; i < STAGE_GROUPS; i++) {
                const u8* a = stage + (row_a + g) * ROW_STRIDE + i * (GROUP / 2);
                const u8* b = stage + OPERAND_BYTES + (row_b + g) * ROW_STRIDE + i * (GROUP / 2);
                const int* fa = factor + i * 2 * TILE + row_a;
                const int* fb = factor + i * 2 * TILE + TILE + row_b;
                if (SCALE_TYPE == E8M0) {
                    group_k32(a, b, fa, fb, g, t, sums);
                } else {
                    group_k16(a, b, fa, fb, g, t, sums);
                }
            }
        }
        cp_async_wait<0>();
    }

    // One MXFP4 group: `a` and `b` point to it in row g of the warp's rows.
    template <class Sum>
    __device__ static __forceinline__ void group_k32(const u8* a, const u8* b, const int* fa, const int* fb, int g,
                                                     int t, Sum (&sums)[2][4][4]) {
        u32 frag_a[2][4], frag_b[4][2];
#pragma unroll
        for (int mi = 0; mi < 2; mi++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = mi * 16 + half * 8;
                u32 word = *(const u32*)(a + row * ROW_STRIDE + 4 * t);
                int shift = FOLD ? fa[row + g] : 0;
                frag_a[mi][half] = expand_doubled(word & 0xFFFFu, shift);
                frag_a[mi][half + 2] = expand_doubled(word >> 16, shift);
            }
        }
#pragma unroll
        for (int ni = 0; ni < 4; ni++) {
            u32 word = *(const u32*)(b + ni * 8 * ROW_STRIDE + 4 * t);
            int shift = FOLD ? fb[ni * 8 + g] : 0;
            frag_b[ni][0] = expand_doubled(word & 0xFFFFu, shift);
            frag_b[ni][1] = expand_doubled(word >> 16, shift);
        }
#pragma unroll
        for (int mi = 0; mi < 2; mi++) {
#pragma unroll
            for (int ni = 0; ni < 4; ni++) {
                multiply_k32(frag_a[mi], frag_b[ni], fa + mi * 16 + g, fb + ni * 8 + 2 * t, sums[mi][ni]);
            }
        }
    }

    __device__ static __forceinline__ void multiply_k32(const u32 (&a)[4], const u32 (&b)[2], const int*, const int*,
                                                        int (&sums)[4]) {
        mma_m16n8k32_s8s8(sums, a, b);
    }

    __device__ static __forceinline__ void multiply_k32(const u32 (&a)[4], const u32 (&b)[2], const int* fa,
                                                        const int* fb, i64 (&sums)[4]) {
        int dot[4] = {0, 0, 0, 0};
        mma_m16n8k32_s8s8(dot, a, b);
        drain(dot, fa, fb, sums);
    }

    // One NVFP4 group.
    __device__ static __forceinline__ void group_k16(const u8* a, const u8* b, const int* fa, const int* fb, int g,
                                                     int t, i64 (&sums)[2][4][4]) {
        u32 frag_a[2][2], frag_b[4][1];
#pragma unroll
        for (int mi = 0; mi < 2; mi++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u8* at = a + (mi * 16 + half * 8) * ROW_STRIDE + 2 * t;
                frag_a[mi][half] = expand_doubled(*(const u16*)at, 0);
            }
        }
#pragma unroll
        for (int ni = 0; ni < 4; ni++) {
            frag_b[ni][0] = expand_doubled(*(const u16*)(b + ni * 8 * ROW_STRIDE + 2 * t), 0);
        }
#pragma unroll
        for (int mi = 0; mi < 2; mi++) {
#pragma unroll
            for (int ni = 0; ni < 4; ni++) {
                int dot[4] = {0, 0, 0, 0};
                mma_m16n8k16_s8s8(dot, frag_a[mi], frag_b[ni]);
                drain(dot, fa + mi * 16 + g, fb + ni * 8 + 2 * t, sums[mi][ni]);
            }
        }
    }
    // MXFP4's int32 sums never meet NVFP4 groups.
    __device__ static __forceinline__ void group_k16(const u8*, const u8*, const int*, const int*, int, int,
                                                     int (&)[2][4][4]) {}

    // sums += dot * factor_a * factor_b: the first product fits an int32, the second an int64. The
    // sum of an output past the joint limit may wrap; it is not used.
    __device__ static __forceinline__ void drain(const int (&dot)[4], const int* fa, const int* fb, i64 (&sums)[4]) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            i64 term = (i64)(dot[i] * fa[i / 2 * 8]) * (i64)fb[i % 2];
            sums[i] = (i64)((u64)sums[i] + (u64)term);
        }
    }
};

// The shared memory of a block: the ring and the factors of two stages; at the end, the tile's
// sums.
constexpr int RING_BYTES = STAGES * 2 * OPERAND_BYTES, FACTOR_BYTES = 2 * 2 * TILE * (STAGE_K / 16) * 4;
static_assert(RING_BYTES + FACTOR_BYTES >= TILE * TILE * 8, "the sums take the place of the operands");

// Puts a warp's sums into the tile of sums, as int64.
template <class Sum>
__device__ __forceinline__ void put(const Sum (&sums)[2][4][4], i64* tile) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int row = warp / 2 * 32 + lane / 4, col = warp % 2 * 32 + lane % 4 * 2;
    __syncthreads();
#pragma unroll
    for (int at = 0; at < 32; at++) {
        int mi = at / 16, ni = at / 4 % 4, d = at % 4;
        tile[(row + mi * 16 + d / 2 * 8) * TILE + col + ni * 8 + d % 2] = sums[mi][ni][d];
    }
    __syncthreads();
}

// Runs the tile over K and puts its sums.
template <int SCALE_TYPE, bool FOLD, class Sum>
__device__ __forceinline__ void multiply(const Operands& in, u8* shared) {
    Sum sums[2][4][4];
#pragma unroll
    for (int at = 0; at < 32; at++) sums[at / 16][at / 4 % 4][at % 4] = 0;
    Tile<SCALE_TYPE, FOLD>::run(in, shared, (int*)(shared + RING_BYTES), sums);
    put(sums, (i64*)shared);
}

} // namespace

KERNEL_BOUNDS(THREADS, 2)
void matmul_mma(MatmulArgs p) {
    const int m = p.m, n = p.n, k_pad = p.k_pad, scale_type = p.scale_type;
    SHARED(u8, shared, [RING_BYTES + FACTOR_BYTES]);
    SHARED(int, unfoldable, [1]);
    int tiles_across = (n + TILE - 1) / TILE;
    Operands in = {{p.a.codes, p.b.codes},
                   {p.a.scales, p.b.scales},
                   {p.a.meta, p.b.meta},
                   {(i64)(blockIdx.x / tiles_across) * TILE, (i64)(blockIdx.x % tiles_across) * TILE},
                   {m, n},
                   k_pad};

    // Does every row of the tile fold?
    if (threadIdx.x == 0) unfoldable[0] = 0;
    __syncthreads();
    int operand = threadIdx.x / TILE;
    i64 meta_row = in.first[operand] + threadIdx.x % TILE;
    if (meta_row < in.rows[operand] && in.meta[operand][meta_row].spread() > FOLD_SPREAD) {
        atomicOr(unfoldable, 1);
    }
    __syncthreads();
    bool fold = scale_type == E8M0 && p.k_folds && !unfoldable[0];
    if (fold) {
        multiply<E8M0, true, int>(in, shared);
    } else if (scale_type == E8M0) {
        multiply<E8M0, false, i64>(in, shared);
    } else {
        multiply<E4M3, false, i64>(in, shared);
    }

    const i64* sums = (const i64*)shared;
    int counts[3] = {0, 0, 0};
#pragma unroll 1
    for (int at = threadIdx.x; at < TILE * TILE; at += THREADS) {
        i64 i = in.first[0] + at / TILE, j = in.first[1] + at % TILE;
        if (i >= m || j >= n) continue;
        RowMeta meta_a = in.meta[0][i], meta_b = in.meta[1][j];
        bool proven = fold || scale_type == E4M3 ||
                      (meta_a.spread() <= INT64_SPREAD_A && meta_b.spread() <= INT64_SPREAD_B &&
                       meta_a.spread() + meta_b.spread() <= p.joint_limit);
        bool nan = meta_a.nan || meta_b.nan;
        float s32 = __uint_as_float(NAN_F32);
        if (!nan && proven) {
            int unit = scale_type == E4M3 ? NVFP4_UNIT : meta_a.low + meta_b.low - 2 * 127 - 2;
            s32 = round_int64(sums[at], unit);
        } else if (!nan) {
            int groups = k_pad / 32;
            s32 = exact_dot_mxfp4(p.a.codes + i * (k_pad / 2), p.a.scales + i * groups,
                                  p.b.codes + j * (k_pad / 2), p.b.scales + j * groups, groups);
        }
        counts[0] += fold;
        counts[1] += !fold && (proven || nan);
        counts[2] += !proven && !nan;
        finish(p.outputs, i, j, n, s32);
    }
#pragma unroll
    for (int path = 0; path < 3; path++) {
        int count = counts[path];
        for (int lanes = 1; lanes < 32; lanes *= 2) count += __shfl_xor_sync(ALL_LANES, count, lanes);
        if (threadIdx.x % 32 == 0 && count != 0) atomicAdd(p.paths + path, (u64)count);
    }
}
EXPORT(matmul_mma)
