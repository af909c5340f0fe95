// The int8 tensor-core matmul for every device since sm_80: complete and exact for every input
// (C6, C10).
//
// A block of 4 warps computes a tile of 64 x 64 outputs, a warp 32 x 32 of them, as 2 x 4 fragments
// of mma.sync: m16n8k32 for a group of MXFP4 weights, m16n8k16 for a group of NVFP4. Packed codes
// come through a ring of three stages of 128 columns by cp.async and are expanded in registers;
// int8 elements go to the tensor cores as they are. Exact sums commute, so k may be permuted inside
// a group as long as A and B agree: with MXFP4 on both sides a lane takes one packed word of a row,
// whatever k the fragment layout gives it.
//
// Three sums, chosen by the tile's row metadata, on the device:
//
//   fold   (MXFP4) every row of the tile spans at most 3 exponents: scales are shifted into the
//          bytes, one int32 accumulator runs over all of K. A byte is at most 12 << 3 = 96, so
//          |sum| <= 96^2 * K < 2^31 for K <= 233,016; the host says whether K is.
//          S = sum * 2^(low_a + low_b - 2)
//   int64  one int32 dot product a group, at most D; times A's factor it must fit an int32, times
//          B's an int64. A factor is 2^(e - low) under e8m0, and under e4m3 the scale in units of
//          2^-9, at most 15 * 2^14:
//                                 D                     A's spread   B's spread
//            MXFP4                144 * 32 = 4608       18           30
//            NVFP4                144 * 16 = 2304       2304 * 15 * 2^14 < 2^30
//            MXINT8 by MXFP4      1536 * 32 = 49,152    15           30
//            MXINT8 by NVFP4      1536 * 16 = 24,576    16
//          The host's joint_limit bounds the sum of the two spreads so that D, times the largest
//          e4m3 factor of each side, times the groups, times 2^(spread_a + spread_b) is below 2^63.
//          NVFP4 of 65536 groups fits; the host takes another kernel for more.
//   wide   outputs past those bounds are computed one by one in 640 bits.
//
// Tiles are those of one product or, in one launch, of several; or only those that the kernels on
// folded operands could not prove, a list in memory that the blocks walk.
//
// Worked example of the fold: rows with scales 2^5 and 2^7 (low 5), code 7: bytes 12
// and 12 << 2 = 48.
#include "exact.cuh"

using namespace fp4;

namespace {

constexpr int TILE = MMA_TILE, THREADS = MMA_THREADS, STAGES = 3;
constexpr int STAGE_K = 128; // elements of a stage, the unit of K padding
constexpr int FOLD_SPREAD = 3;

struct Rows {
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

template <int PRODUCT, bool FOLD>
struct Tile {
    typedef Operands<PRODUCT> Of;
    typedef ByGroups<PRODUCT> Bounds;
    static constexpr int GROUP = Of::GROUP;
    static constexpr int A_GROUPS = STAGE_K / Of::A::GROUP, B_GROUPS = STAGE_K / GROUP; // of a stage
    // Bytes of a row, and between rows: words of 8 rows by 4 lanes hit 32 different banks.
    static constexpr int A_ROW = Of::A::IS_INT8 ? STAGE_K : STAGE_K / 2, B_ROW = STAGE_K / 2;
    static constexpr int A_STRIDE = A_ROW + 16, B_STRIDE = B_ROW + 16;
    static constexpr int A_BYTES = TILE * A_STRIDE, SLOT_BYTES = A_BYTES + TILE * B_STRIDE;
    static constexpr int FACTORS = TILE * (A_GROUPS + B_GROUPS); // of a stage
    // The shared memory of a block: the ring and the factors of two stages; at the end, the tile's
    // sums.
    static constexpr int RING_BYTES = STAGES * SLOT_BYTES, SHARED_BYTES = RING_BYTES + 2 * FACTORS * 4;
    static_assert(SHARED_BYTES >= TILE * TILE * 8, "the sums take the place of the operands");
    static_assert(SHARED_BYTES <= 48 * 1024, "static shared memory");

    // Starts the copy of stage `s` of an operand's rows, ROW bytes each.
    template <int ROW>
    __device__ static __forceinline__ void load_rows(const Rows& in, int operand, u8* to, int s) {
        constexpr int CHUNKS = ROW / 16;
        const i64 pitch = (i64)in.k_pad / STAGE_K * ROW;
#pragma unroll
        for (int step = 0; step < TILE * CHUNKS / THREADS; step++) {
            int at = step * THREADS + (int)threadIdx.x, row = at / CHUNKS, chunk = at % CHUNKS;
            bool valid = in.first[operand] + row < in.rows[operand];
            i64 from = valid ? (in.first[operand] + row) * pitch + s * ROW + 16 * chunk : 0;
            cp_async_16(to + row * (ROW + 16) + 16 * chunk, in.codes[operand] + from, valid);
        }
    }

    __device__ static __forceinline__ void load(const Rows& in, u8* ring, int s, int slot) {
        load_rows<A_ROW>(in, 0, ring + slot * SLOT_BYTES, s);
        load_rows<B_ROW>(in, 1, ring + slot * SLOT_BYTES + A_BYTES, s);
    }

    // Runs the tile over K. `sums` are int32 for FOLD, else int64.
    template <class Sum>
    __device__ static __forceinline__ void run(const Rows& in, u8* ring, int* factors, Sum (&sums)[2][4][4]) {
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        int g = lane / 4, t = lane % 4;
        int row_a = warp / 2 * 32, row_b = warp % 2 * 32;
        int stages = in.k_pad / STAGE_K;

        // This thread's row of scales: threads 0..63 have A's, 64..127 B's.
        const int operand = threadIdx.x / TILE, scale_row = threadIdx.x % TILE;
        const int scales_of_stage = operand == 0 ? A_GROUPS : B_GROUPS;
        bool has_row = in.first[operand] + scale_row < in.rows[operand];
        RowMeta meta = {};
        const u8* scales = in.scales[operand];
        if (has_row) {
            meta = in.meta[operand][in.first[operand] + scale_row];
            scales += (in.first[operand] + scale_row) * stages * scales_of_stage;
        }
        // A row too wide for its factors is computed by the wide path: here it counts as 0.
        bool usable = has_row && meta.spread() <= (operand == 0 ? Bounds::SPREAD_A : Bounds::SPREAD_B);

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
            int* factor = factors + s % 2 * FACTORS;
            int* own = factor + operand * A_GROUPS * TILE + scale_row;
#pragma unroll
            for (int i = 0; i < (A_GROUPS > B_GROUPS ? A_GROUPS : B_GROUPS); i++) {
                if (i >= scales_of_stage) break;
                int f = 0;
                if (usable) {
                    u32 scale = scales[s * scales_of_stage + i];
                    f = operand == 0 ? group_factor<Of::A::SCALE_TYPE, FOLD>(scale, meta.low, meta.high)
                                     : group_factor<Of::B::SCALE_TYPE, FOLD>(scale, meta.low, meta.high);
                }
                own[i * TILE] = f;
            }
            __syncthreads();

            const u8* stage = ring + s % STAGES * SLOT_BYTES;
#pragma unroll 1
            for (int i = 0; i < B_GROUPS; i++) {
                const u8* a = stage + (row_a + g) * A_STRIDE + i * (Of::A::IS_INT8 ? GROUP : GROUP / 2);
                const u8* b = stage + A_BYTES + (row_b + g) * B_STRIDE + i * (GROUP / 2);
                const int* fa = factor + Of::a_group(i) * TILE + row_a;
                const int* fb = factor + (A_GROUPS + i) * TILE + row_b;
                if (GROUP == 32) {
                    group_k32(a, b, fa, fb, g, t, sums);
                } else {
                    group_k16(a, b, fa, fb, g, t, sums);
                }
            }
        }
        cp_async_wait<0>();
    }

    // A group of 32: `a` and `b` point to it in row g of the warp's rows. Packed words on both
    // sides where A is packed; else k as the fragments have it.
    template <class Sum>
    __device__ static __forceinline__ void group_k32(const u8* a, const u8* b, const int* fa, const int* fb, int g,
                                                     int t, Sum (&sums)[2][4][4]) {
        u32 frag_a[2][4], frag_b[4][2];
#pragma unroll
        for (int mi = 0; mi < 2; mi++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int row = mi * 16 + half * 8;
                if (Of::A::IS_INT8) {
                    frag_a[mi][half] = *(const u32*)(a + row * A_STRIDE + 4 * t);
                    frag_a[mi][half + 2] = *(const u32*)(a + row * A_STRIDE + 16 + 4 * t);
                } else {
                    u32 word = *(const u32*)(a + row * A_STRIDE + 4 * t);
                    int shift = FOLD ? fa[row + g] : 0;
                    frag_a[mi][half] = expand_doubled(word & 0xFFFFu, shift);
                    frag_a[mi][half + 2] = expand_doubled(word >> 16, shift);
                }
            }
        }
#pragma unroll
        for (int ni = 0; ni < 4; ni++) {
            const u8* from = b + ni * 8 * B_STRIDE;
            u32 word = Of::A::IS_INT8 ? *(const u16*)(from + 2 * t) | (u32)(*(const u16*)(from + 8 + 2 * t)) << 16
                                      : *(const u32*)(from + 4 * t);
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

    // A group of 16.
    __device__ static __forceinline__ void group_k16(const u8* a, const u8* b, const int* fa, const int* fb, int g,
                                                     int t, i64 (&sums)[2][4][4]) {
        u32 frag_a[2][2], frag_b[4][1];
#pragma unroll
        for (int mi = 0; mi < 2; mi++) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
                const u8* at = a + (mi * 16 + half * 8) * A_STRIDE;
                frag_a[mi][half] = Of::A::IS_INT8 ? *(const u32*)(at + 4 * t) : expand_doubled(*(const u16*)(at + 2 * t), 0);
            }
        }
#pragma unroll
        for (int ni = 0; ni < 4; ni++) {
            frag_b[ni][0] = expand_doubled(*(const u16*)(b + ni * 8 * B_STRIDE + 2 * t), 0);
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
template <int PRODUCT, bool FOLD, class Sum>
__device__ __forceinline__ void multiply(const Rows& in, u8* shared) {
    Sum sums[2][4][4];
#pragma unroll
    for (int at = 0; at < 32; at++) sums[at / 16][at / 4 % 4][at % 4] = 0;
    Tile<PRODUCT, FOLD>::run(in, shared, (int*)(shared + Tile<PRODUCT, FOLD>::RING_BYTES), sums);
    put(sums, (i64*)shared);
}

// The rows of the tile whose first ones are these.
__device__ __forceinline__ Rows rows_of(const MatmulArgs& p, const i64 (&first)[2]) {
    return {{p.a.codes, p.b.codes}, {p.a.scales, p.b.scales}, {p.a.meta, p.b.meta}, {first[0], first[1]}, {p.m, p.n}, p.k_pad};
}

// The outputs of a tile whose sums are there.
template <int PRODUCT>
__device__ __forceinline__ void finish_tile(const MatmulArgs& p, const Rows& in, const i64* sums, bool fold) {
    typedef Operands<PRODUCT> Of;
    const int m = p.m, n = p.n, k_pad = p.k_pad;
    int counts[3] = {0, 0, 0};
#pragma unroll 1
    for (int at = threadIdx.x; at < TILE * TILE; at += THREADS) {
        i64 i = in.first[0] + at / TILE, j = in.first[1] + at % TILE;
        if (i >= m || j >= n) continue;
        RowMeta meta_a = in.meta[0][i], meta_b = in.meta[1][j];
        bool proven = fold || PRODUCT == NVFP4 ||
                      (ByGroups<PRODUCT>::factors_fit(meta_a, meta_b) &&
                       meta_a.spread() + meta_b.spread() <= p.joint_limit);
        bool nan = meta_a.nan || meta_b.nan;
        float s32 = __uint_as_float(NAN_F32);
        if (!nan && proven) {
            s32 = round_int64(sums[at], Of::UNIT + meta_a.low + meta_b.low);
        } else if (!nan) {
            int groups = k_pad / Of::GROUP;
            s32 = exact_dot<PRODUCT>(p.a.codes + i * Of::A::row_bytes(k_pad), p.a.scales + i * (k_pad / Of::A::GROUP),
                                     p.b.codes + j * Of::B::row_bytes(k_pad), p.b.scales + j * groups, groups);
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

// Shared memory of a kernel: that of MXFP4 takes NVFP4 too.
template <int PRODUCT>
struct SharedBytes {
    static constexpr int TILE = Tile<PRODUCT == MXFP4 ? NVFP4 : PRODUCT, false>::SHARED_BYTES;
    static_assert(Tile<PRODUCT, false>::SHARED_BYTES <= TILE, "");
    // And a word for whether a tile folds, where that is a question.
    static constexpr int VALUE = TILE + (PRODUCT == MXFP4 ? 16 : 0);
};

// One tile of a product: its sums and then its outputs.
template <int PRODUCT>
__device__ __forceinline__ void tile_of(const MatmulArgs& p, const i64 (&first)[2], u8* shared) {
    Rows in = rows_of(p, first);
    multiply<PRODUCT, false, i64>(in, shared);
    finish_tile<PRODUCT>(p, in, (const i64*)shared, false);
}

// MXFP4 by MXFP4 and NVFP4 by NVFP4 are one kernel, whose products say which they are.
template <>
__device__ __forceinline__ void tile_of<MXFP4>(const MatmulArgs& p, const i64 (&first)[2], u8* shared) {
    if (p.product == NVFP4) {
        tile_of<NVFP4>(p, first, shared);
        return;
    }
    // Does every row of the tile fold?
    Rows in = rows_of(p, first);
    int* unfoldable = (int*)(shared + SharedBytes<MXFP4>::TILE);
    if (threadIdx.x == 0) unfoldable[0] = 0;
    __syncthreads();
    int operand = threadIdx.x / TILE;
    i64 meta_row = in.first[operand] + threadIdx.x % TILE;
    if (meta_row < in.rows[operand] && in.meta[operand][meta_row].spread() > FOLD_SPREAD) {
        atomicOr(unfoldable, 1);
    }
    __syncthreads();
    bool fold = p.k_folds && !unfoldable[0];
    if (fold) {
        multiply<MXFP4, true, int>(in, shared);
    } else {
        multiply<MXFP4, false, i64>(in, shared);
    }
    finish_tile<MXFP4>(p, in, (const i64*)shared, fold);
}

// The first rows of part `part` of tile `number` of a product: of its own tiles, which have one
// part, or of those that the kernels on folded operands number, `left_rows` x FOLDED_COLS. Whether
// the part has outputs.
__device__ __forceinline__ bool place(const MatmulArgs& p, int left_rows, u32 number, u32 part, i64 (&first)[2]) {
    const int rows = left_rows > 0 ? left_rows : TILE, cols = left_rows > 0 ? FOLDED_COLS : TILE;
    const u32 across = (u32)((p.n + cols - 1) / cols), parts = (u32)(cols / TILE);
    first[0] = (i64)(number / across) * rows + (i64)(part / parts) * TILE;
    first[1] = (i64)(number % across) * cols + (i64)(part % parts) * TILE;
    return first[0] < p.m && first[1] < p.n;
}

// Parts of a tile that was left.
__device__ __forceinline__ u32 parts_of(int left_rows) {
    return (u32)(left_rows / TILE * (FOLDED_COLS / TILE));
}

// The tiles of a product, one a block, or those that were left, as many blocks as there are.
template <int PRODUCT>
__device__ __forceinline__ void run(const MatmulArgs& p, u8* shared) {
    const u32 parts = p.left == nullptr ? 1 : parts_of(p.left_rows);
    const u32 items = p.left == nullptr ? gridDim.x : p.left[0] * parts;
#pragma unroll 1
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        i64 first[2];
        u32 number = p.left == nullptr ? item : p.left[1 + item / parts];
        if (place(p, p.left == nullptr ? 0 : p.left_rows, number, item % parts, first)) {
            tile_of<PRODUCT>(p, first, shared);
            __syncthreads(); // the shared memory is free
        }
    }
}

// The same of several products.
template <int PRODUCT>
__device__ __forceinline__ void run_grouped(const GroupedArgs& all, u8* shared) {
    const u32 parts = all.left == nullptr ? 1 : parts_of(all.left_rows);
    const u32 items = all.left == nullptr ? gridDim.x : all.left[0] * parts;
#pragma unroll 1
    for (u32 item = blockIdx.x; item < items; item += gridDim.x) {
        u32 number = all.left == nullptr ? item : all.left[1 + item / parts];
        const int product = product_of(all.ends, all.count, number);
        const MatmulArgs& p = ((const MatmulArgs*)all.products)[product];
        i64 first[2];
        number -= product == 0 ? 0 : all.ends[product - 1];
        if (place(p, all.left == nullptr ? 0 : all.left_rows, number, item % parts, first)) {
            tile_of<PRODUCT>(p, first, shared);
            __syncthreads(); // the shared memory is free
        }
    }
}

} // namespace

#define MMA_KERNEL(name, PRODUCT)                    \
    KERNEL_BOUNDS(THREADS, 2)                        \
    void name(MatmulArgs p) {                        \
        SHARED(u8, shared, [SharedBytes<PRODUCT>::VALUE]); \
        run<PRODUCT>(p, shared);                       \
    }                                                \
    EXPORT(name)

MMA_KERNEL(matmul_mma, MXFP4)
MMA_KERNEL(matmul_mma_mxint8_mxfp4, MXINT8_MXFP4)
MMA_KERNEL(matmul_mma_mxint8_nvfp4, MXINT8_NVFP4)

#define MMA_GROUPED(name, PRODUCT)                           \
    KERNEL_BOUNDS(THREADS, 2)                                \
    void name(GroupedArgs p) {                               \
        SHARED(u8, shared, [SharedBytes<PRODUCT>::VALUE]);       \
        run_grouped<PRODUCT>(p, shared);               \
    }                                                        \
    EXPORT(name)

MMA_GROUPED(matmul_mma_grouped, MXFP4)
MMA_GROUPED(matmul_mma_grouped_mxint8_mxfp4, MXINT8_MXFP4)
MMA_GROUPED(matmul_mma_grouped_mxint8_nvfp4, MXINT8_NVFP4)
