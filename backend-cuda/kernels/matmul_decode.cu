// Matmul by groups, weights streamed once: decoding (few rows of A), and the tiles that the wgmma
// kernels leave (C6, C10). Not yet run on hardware.
//
//     block (x, y, z): 128 rows of B (16 a warp), the y-th range of K, rows 8 NT z .. of A
//     for each sub-range of K that fits shared memory:
//         expand A's codes to int8, B fragments for the mma, once as they are and once negated;
//         int8 elements are copied, and not negated: -128 has no negative
//         each warp, its own ring of asynchronous copies of codes and scales, for each 32 k of its
//         16 rows:
//             plus, minus = the doubled magnitudes of the positive and of the negative codes
//             dot  = mma(plus, a) + mma(minus, -a)               int32, one group of one output
//                    or mma(plus, a) - mma(minus, a) of int8 elements
//             sum += (dot * multiplier of a's group) * multiplier of b's group           int64
//     merge the ranges: integer atomics; the last block to arrive rounds (C6) and leaves zeros
//
// The weights are the A operand of the mma (16 rows) and the activations its B operand (8 columns).
// A lane t of four reads one word of a row's 16 bytes, the codes k = 8t .. 8t + 7. For MXFP4 it
// takes the low four for its mma slots 4t .. and the high four for 16 + 4t ..; since both operands
// do, the order inside a group does not matter. An NVFP4 group is 16 k, the words of two lanes;
// lanes t and t ^ 2 swap their high halves, so that each holds four codes of both groups for two
// mma of k = 16:
//
//     lane        0         1         2         3
//     first   w0 low    w1 low    w0 high   w1 high      of the group of words w0, w1
//     second  w2 high   w3 high   w2 low    w3 low       of the group of words w2, w3
//
// An int8 activation takes the words of the elements that those codes meet, 2t and 2t + 1 of the
// eight of 32 k for MXFP4, and for NVFP4 the halves of the table.
//
// Plus and minus need 7 instructions for 8 codes where signed bytes need 11; the tensor cores idle
// anyway.
//
// Fold (NT = 2, both operands in one format). Where every row of B and of A that a block has spans
// few exponents, scales are shifted into the bytes: a scale byte, less the row's base, is the place
// in a table of the eight magnitudes under it. No group matters then: the mma runs over the range
// of K in int32, and lanes swap nothing. A weight's bytes are plus - minus + 128, unsigned, by one
// instruction more; what the bias adds, 128 times the sum of A's bytes, is taken off at the end.
//
//     MXFP4   spread <= 3: a byte is at most 12 << 3 = 96, so a sum is at most
//             (96 + 128) * 96 * range < 2^31 for a range of up to 99,864
//     NVFP4   scales, all positive and normal, are (8 + m) << (exponent - 1) units of 2^-9; with
//             exponents up to 6 above the row's least an element is at most 12 * 15 << 6 = 11,520:
//             two digits of seven bits, both with its sign. Four products make three sums, of low
//             by low, of low by high and high by low, of high by high; the second is at most
//             2 * 255 * 127 * range < 2^31 for a range of up to 33,155
//
// Worked: code 7 (12) under the scale 0x3A of a row whose least is 0x38 is 12 * 10 = 120, digits 0
// and 120; under 0x4A it is 120 << 2 = 480 = 3 * 128 + 96. Of code 15 both digits are negative.
//
// The sums are in the unit of the int64 ones after a shift by both rows' least exponents, and
// merged as they are. A group that is not live has codes +-0 only, whose byte is 0 times
// anything; or an e4m3 scale of +-0, whose place in the table is 0; or a NaN scale, which makes
// the output NaN. For 8 columns the int64 of groups costs no more than the expansion, and there
// is no fold.
//
// Bound. Let D be the largest dot of a group. Multipliers are integers:
//
//     e8m0   2^(scale - low) of the row, low its least live scale byte, spread = high - low
//     e4m3   the scale in units of 2^-9, at most L = 15 * 2^14; spread = 0
//
//     MXFP4             D = 4608     D * 2^spread_a <= 2^31 - 1        spread_a <= 18
//     NVFP4             D = 2304     D * L < 2^31
//     MXINT8 by MXFP4   D = 49,152   D * 2^spread_a <= 2^31 - 1        spread_a <= 15
//     MXINT8 by NVFP4   D = 24,576   the same                          spread_a <= 16
//
//     spread_b <= 30
//     T * 2^(spread_a + spread_b) * min(live_a, live_b) <= 2^63 - 1, where T is D, times L for each
//     side under e4m3, and live groups are those of B's size. NVFP4: up to 65,536 groups, K = 2^20.
//
// The first makes `dot * multiplier` exact in 32 bits, the second makes the other multiplier an
// int32, and their product is exact in 64. Sums wrap modulo 2^64, so only the last needs the third:
// it is in range, in any order and for any split. A group that is not live has dot 0 whatever its
// multiplier; a NaN scale makes the output NaN. An output that does not pass goes the wide path
// (exact.cuh), alone.
//
// Cost: for 32 k of 16 rows, a warp expands in 14 instructions and for each group takes 4 NT
// multiplications and as many multiply-adds of 64 bits, but where it folds. BUDGET.md has what that
// comes to.
#include "decode_range.cuh"

namespace fp4 {

// Whether the bound above holds for an output.
template <int PRODUCT>
__device__ __forceinline__ bool decode_is_narrow(const RowMeta& a, const RowMeta& b, int groups) {
    typedef Operands<PRODUCT> Of;
    typedef ByGroups<PRODUCT> Bounds;
    if (PRODUCT == NVFP4) return groups <= NVFP4_INT64_GROUPS;
    int live_a = a.live * (Of::A::GROUP / Of::GROUP), live = live_a < b.live ? live_a : b.live;
    if (live == 0) return true;
    return Bounds::factors_fit(a, b) && live <= (i64)(0x7FFFFFFFFFFFFFFFull >> (a.spread() + b.spread())) / Bounds::TERM;
}

template <int PRODUCT, int NT, int UNROLL = STAGE_K / 64>
__device__ __forceinline__ void decode_block(const DecodeArgs& p, int x, int z) {
    typedef DecodeLayout<PRODUCT, NT> Layout;
    typedef Operands<PRODUCT> Of;
    typedef typename Layout::Fold Fold;
    constexpr int G = Of::GROUP, FOLD_RANGE = Fold::RANGE;
    constexpr bool FOLDS = Layout::FOLDS;
    const int first_row = x * ROWS, first_token = z * 8 * NT;
    if (first_row >= p.n || first_token >= p.m) return; // past a ragged tile
    unsigned char* shared = dynamic_shared();
    const int thread = (int)threadIdx.x;
    const int begin = (int)blockIdx.y * p.range;
    const int end = begin + p.range < p.k_pad ? begin + p.range : p.k_pad;
    const int code_pitch = p.k_pad / 2, scale_pitch = p.k_pad / G; // of B
    const int a_code_pitch = Of::A::row_bytes(p.k_pad), a_scale_pitch = p.k_pad / Of::A::GROUP;

    // The doubled magnitudes, by way of memory: as literals they cost moves at every use.
    u32* magnitudes = (u32*)(shared + Layout::MAGNITUDES);
    u32* wide_rows = (u32*)(shared + Layout::LAST); // whether a row spans too much to fold
    if (thread == 0) {
        magnitudes[0] = 0x03020100u;
        magnitudes[1] = 0x0C080604u;
        *wide_rows = 0;
    }
    __syncthreads();
    if constexpr (FOLDS) {
        const int token = first_token + thread - ROWS;
        bool wide = false;
        if (thread < ROWS && first_row + thread < p.n) wide = !Fold::takes(p.b.meta[first_row + thread]);
        if (thread >= ROWS && thread < ROWS + 8 * NT && token < p.m) wide = !Fold::takes(p.a.meta[token]);
        if (wide) atomicOr(wide_rows, 1u);
        __syncthreads();
    }
    const DecodePlace place = {first_row, first_token, begin, end, {magnitudes[0], magnitudes[1]}};
    u64 sums[NT][4];
    if (FOLDS && p.range <= FOLD_RANGE && *wide_rows == 0) {
        decode_range<PRODUCT, NT, FOLDS, UNROLL>(p, place, shared, sums);
    } else {
        decode_range<PRODUCT, NT, false, UNROLL>(p, place, shared, sums);
    }
    __syncthreads(); // `wide_rows` has been read: its place is taken below
    // Read anew: over the range, registers are short.
    const int here = thread_here(), warp = here / 32, lane = here % 32, g = lane / 4, t = lane % 4;
    const int row_0 = first_row + warp * 16 + g, row_1 = row_0 + 8;

    // Merge the ranges.
    if (gridDim.y > 1) {
        u32* last = (u32*)(shared + Layout::LAST);
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = i < 2 ? row_0 : row_1, token = first_token + 8 * j + 2 * t + i % 2;
                if (row < p.n && token < p.m) atomicAdd(&p.sums[(i64)token * p.n + row], sums[j][i]);
            }
        }
        __threadfence(); // the sums are out before the arrival
        __syncthreads();
        u32* arrivals = p.arrivals + (i64)z * gridDim.x + x;
        if (here == 0) *last = atomicAdd(arrivals, 1u) == gridDim.y - 1;
        __syncthreads();
        if (*last == 0) return;
        __threadfence();
        if (here == 0) *arrivals = 0;
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                int row = i < 2 ? row_0 : row_1, token = first_token + 8 * j + 2 * t + i % 2;
                if (row < p.n && token < p.m) {
                    u64* sum = &p.sums[(i64)token * p.n + row];
                    sums[j][i] = atomicAdd(sum, 0ull); // past the first-level cache
                    *sum = 0;
                }
            }
        }
    }

    int narrow = 0, wide = 0;
    const int groups = p.k_pad / G;
    for (int i = 0; i < 4 * NT; i++) {
        int row = i % 4 < 2 ? row_0 : row_1, token = first_token + 8 * (i / 4) + 2 * t + i % 2;
        if (row >= p.n || token >= p.m) continue;
        u64 sum = 0;
#pragma unroll
        for (int j = 0; j < 4 * NT; j++) sum = i == j ? sums[j / 4][j % 4] : sum;
        RowMeta a = p.a.meta[token], b = p.b.meta[row];
        float s32;
        bool is_narrow = decode_is_narrow<PRODUCT>(a, b, groups);
        if (a.nan | b.nan) {
            s32 = __uint_as_float(NAN_F32);
        } else if (is_narrow) {
            s32 = round_int64((i64)sum, Of::UNIT + a.low + b.low);
        } else {
            s32 = exact_dot<PRODUCT>(p.a.codes + (i64)token * a_code_pitch, p.a.scales + (i64)token * a_scale_pitch,
                                     p.b.codes + (i64)row * code_pitch, p.b.scales + (i64)row * scale_pitch, groups);
        }
        finish(p.outputs, token, row, p.n, s32);
        narrow += is_narrow;
        wide += !is_narrow;
    }
    if (p.paths != nullptr) {
        if (narrow > 0) atomicAdd(&p.paths[0], (u64)narrow);
        if (wide > 0) atomicAdd(&p.paths[2], (u64)wide);
    }
}

// A block's share of the tiles that are left: few blocks walk the list, which is empty for ordinary
// data.
template <int PRODUCT, int NT>
__device__ __forceinline__ void decode_left(const DecodeArgs& p) {
    const u32 cut_n = (u32)p.left_n / ROWS, cut_m = (u32)p.left_m / (8 * NT), across = (u32)((p.n - 1) / p.left_n + 1);
    const u32 end = p.left[0] * (cut_m * cut_n);
    for (u32 work = blockIdx.x; work < end; work += gridDim.x) {
        const u32 tile = p.left[1 + work / (cut_m * cut_n)], cell = work % (cut_m * cut_n);
        const int x = (int)(tile % across * cut_n + cell % cut_n), z = (int)(tile / across * cut_m + cell / cut_n);
        __syncthreads(); // all are done with the last one's shared memory
        decode_block<PRODUCT, NT, 1>(p, x, z);
    }
}

// The block of this index among those of all products of a launch, each in one range of K.
template <int PRODUCT>
__device__ __forceinline__ void decode_one_of(const GroupedArgs& all) {
    const int product = product_of(all.ends, all.count, blockIdx.x);
    const DecodeArgs p = ((const DecodeArgs*)all.products)[product];
    const int block = (int)(blockIdx.x - (product == 0 ? 0 : all.ends[product - 1])), across = (p.n + ROWS - 1) / ROWS;
    decode_block<PRODUCT, 1>(p, block % across, block / across);
}

} // namespace fp4

namespace fp4 {
// Blocks of a multiprocessor: of those with 100 KB of shared memory, one.
constexpr int DECODE_BLOCKS = FP4_SM == 86 || FP4_SM == 87 || FP4_SM == 89 || FP4_SM / 10 == 12 ? 1 : 2;
} // namespace fp4

#define DECODE_KERNEL(name, PRODUCT, NT)                           \
    KERNEL_BOUNDS(fp4::THREADS, fp4::DECODE_BLOCKS)                \
    void name(fp4::DecodeArgs p) {                                 \
        fp4::decode_block<PRODUCT, NT>(p, blockIdx.x, blockIdx.z); \
    }                                                              \
    EXPORT(name)
DECODE_KERNEL(matmul_decode_mxfp4_8, fp4::MXFP4, 1)
DECODE_KERNEL(matmul_decode_mxfp4_16, fp4::MXFP4, 2)
DECODE_KERNEL(matmul_decode_nvfp4_8, fp4::NVFP4, 1)
DECODE_KERNEL(matmul_decode_nvfp4_16, fp4::NVFP4, 2)
DECODE_KERNEL(matmul_decode_mxint8_mxfp4_8, fp4::MXINT8_MXFP4, 1)
DECODE_KERNEL(matmul_decode_mxint8_mxfp4_16, fp4::MXINT8_MXFP4, 2)
DECODE_KERNEL(matmul_decode_mxint8_nvfp4_8, fp4::MXINT8_NVFP4, 1)
DECODE_KERNEL(matmul_decode_mxint8_nvfp4_16, fp4::MXINT8_NVFP4, 2)

// Registers as they need them, here and below: one block a multiprocessor will do.
#define DECODE_GROUPED(name, PRODUCT)                                 \
    KERNEL_BOUNDS(32 * fp4::WARPS, 1)                                 \
    void name(fp4::GroupedArgs p) { fp4::decode_one_of<PRODUCT>(p); } \
    EXPORT(name)
DECODE_GROUPED(matmul_decode_grouped_mxfp4, fp4::MXFP4)
DECODE_GROUPED(matmul_decode_grouped_nvfp4, fp4::NVFP4)
DECODE_GROUPED(matmul_decode_grouped_mxint8_mxfp4, fp4::MXINT8_MXFP4)
DECODE_GROUPED(matmul_decode_grouped_mxint8_nvfp4, fp4::MXINT8_NVFP4)

#define DECODE_LEFT_KERNEL(name, PRODUCT)                             \
    KERNEL_BOUNDS(32 * fp4::WARPS, 1)                                 \
    void name(fp4::DecodeArgs p) { fp4::decode_left<PRODUCT, 2>(p); } \
    EXPORT(name)
DECODE_LEFT_KERNEL(matmul_decode_left_mxfp4, fp4::MXFP4)
DECODE_LEFT_KERNEL(matmul_decode_left_nvfp4, fp4::NVFP4)
DECODE_LEFT_KERNEL(matmul_decode_left_mxint8_mxfp4, fp4::MXINT8_MXFP4)
