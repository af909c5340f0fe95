// Matmul by groups, weights streamed once: decoding (few rows of A), and the tiles that the wgmma
// kernels leave (C6, C10). Not yet run on hardware.
//
//     block (x, y, z): 128 rows of B (16 a warp), the y-th range of K, rows 8 NT z .. of A
//     for each sub-range of K that fits shared memory:
//         expand A's codes to int8, B fragments for the mma, once as they are and once negated;
//         int8 elements are copied, and not negated: -128 has no negative
//         each warp, its own ring of asynchronous copies, for each 32 k of its 16 rows:
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
// Fold (MXFP4). Where every row of B and of A that a block has spans at most 3 exponents, scales
// are shifted into the bytes: the tables of magnitudes by that of B's group, A's bytes when they
// are expanded. Then one int32 accumulator of the mma runs over the block's range of K. A byte is
// at most 12 << 3 = 96, so |sum| <= 96^2 * range < 2^31 for a range of up to 233,016; it is in the
// same unit as the int64 sums, and merged as they are. A group that is not live has codes +-0 only,
// whose byte is 0 times anything, or a NaN scale, which makes the output NaN.
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
#include "exact.cuh"

namespace fp4 {

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int ROWS = DECODE_ROWS, STAGE_K = DECODE_STAGE_K; // 128 bytes of a row a stage
static_assert(ROWS == 16 * WARPS, "16 rows a warp");
constexpr int STAGES = 3;
constexpr int SUB_K = 1024;      // k of a sub-range, over NT
constexpr int FOLD_SPREAD = 3, FOLD_RANGE = 233016 / STAGE_K * STAGE_K;
static_assert(96ll * 96 * FOLD_RANGE < 1ll << 31, "");

// Byte offsets in shared memory.
template <int PRODUCT, int NT>
struct DecodeLayout {
    static constexpr bool INT8_A = Operands<PRODUCT>::A::IS_INT8;
    static constexpr int SUB = SUB_K / NT;
    static constexpr int SUB_GROUPS = SUB / Operands<PRODUCT>::GROUP;
    static constexpr int SCALE_PITCH = SUB_GROUPS + 4; // rows fall on different banks
    // Turns of the block's threads that fill what a sub-range needs.
    static constexpr int FRAGMENT_TURNS = SUB * NT / THREADS, MULTIPLIER_TURNS = SUB_GROUPS * 8 * NT / THREADS;
    static constexpr int SCALE_TURNS = ROWS * SUB_GROUPS / 4 / THREADS;
    static_assert(SUB * NT % THREADS == 0 && SUB_GROUPS * 8 * NT % THREADS == 0 && ROWS * SUB_GROUPS / 4 % THREADS == 0, "");
    static constexpr int RING = 0;
    static constexpr int FRAGMENTS = RING + WARPS * STAGES * 16 * STAGE_K / 2;
    static constexpr int MULTIPLIERS = FRAGMENTS + SUB / 32 * NT * 32 * (INT8_A ? 8 : 16);
    static constexpr int SCALES = MULTIPLIERS + SUB_GROUPS * 8 * NT * 4;
    static constexpr int TABLE = SCALES + ROWS * SCALE_PITCH;
    static constexpr int LAST = TABLE + 256 * 4; // whether this block arrived last
    static constexpr int MAGNITUDES = LAST + 4;
    static constexpr int BYTES = LAST + 16;
};
static_assert(DecodeLayout<MXFP4, 1>::BYTES <= DECODE_SHARED && DecodeLayout<NVFP4, 1>::BYTES <= DECODE_SHARED, "");
static_assert(DecodeLayout<MXFP4, 2>::BYTES <= DECODE_SHARED && DecodeLayout<NVFP4, 2>::BYTES <= DECODE_SHARED, "");
static_assert(DecodeLayout<MXINT8_MXFP4, 2>::BYTES <= DECODE_SHARED && DecodeLayout<MXINT8_NVFP4, 2>::BYTES <= DECODE_SHARED, "");

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

// The first half of this lane's codes (low 16 bits) and the second, as the table above has them.
template <int G>
__device__ __forceinline__ u32 halves(u32 word, int t) {
    if (G == 32) return word;
    u32 other = __shfl_xor_sync(ALL_LANES, word, 2);
    return permute_bytes(word, other, t < 2 ? 0x7610u : 0x1076u);
}

// dot += the products of one group.
template <int G>
__device__ __forceinline__ void multiply(int (&dot)[4], const unsigned (&a)[4], u32 b_first, u32 b_second, int q) {
    if (G == 32) {
        const unsigned b[2] = {b_first, b_second};
        mma_m16n8k32_s8s8(dot, a, b);
    } else {
        const unsigned half[2] = {a[2 * q], a[2 * q + 1]}, b[1] = {q == 0 ? b_first : b_second};
        mma_m16n8k16_s8s8(dot, half, b);
    }
}

// Four shifts of 0 to 3, a byte each, as 1 << shift; of other bytes anything.
__device__ __forceinline__ u32 powers_of_bytes(u32 shifts) {
    const u32 pairs = shifts & 0x03030303u, nibbles = pairs | pairs >> 4;
    return permute_bytes(0x08040201u, 0u, (nibbles & 0xFFu) | (nibbles >> 8 & 0xFF00u));
}

// What a block of threads and its lanes have, and where.
struct DecodePlace {
    int first_row, first_token, begin, end;
    u32 low_magnitudes, high_magnitudes; // the doubled magnitudes of the codes
};

// The sums of this lane's outputs over the block's range.
template <int PRODUCT, int NT, bool FOLD>
__device__ __forceinline__ void decode_range(const DecodeArgs& p, const DecodePlace& at_block, unsigned char* shared,
                                             u64 (&sums)[NT][4]) {
    typedef DecodeLayout<PRODUCT, NT> Layout;
    typedef Operands<PRODUCT> Of;
    constexpr bool INT8_A = Of::A::IS_INT8;
    constexpr int G = Of::GROUP;
    constexpr int GROUPS_32 = 32 / G; // groups in 32 k
    static_assert(!FOLD || PRODUCT == MXFP4, "");
    const int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int first_row = at_block.first_row, first_token = at_block.first_token;
    const int begin = at_block.begin, end = at_block.end;
    const u32 low_magnitudes = at_block.low_magnitudes, high_magnitudes = at_block.high_magnitudes;
    const int code_pitch = p.k_pad / 2, scale_pitch = p.k_pad / G; // of B
    const int a_code_pitch = Of::A::row_bytes(p.k_pad), a_scale_pitch = p.k_pad / Of::A::GROUP;
    unsigned char* ring = shared + Layout::RING + warp * STAGES * 16 * (STAGE_K / 2);
    u8* fragments = shared + Layout::FRAGMENTS; // of lanes: uint4, or uint2 of int8 elements
    int* multipliers = (int*)(shared + Layout::MULTIPLIERS);
    unsigned char* scales = shared + Layout::SCALES;
    const int* table = (const int*)(shared + Layout::TABLE);

    // Each lane copies four of the 128 16-byte chunks of a stage, rows four apart; chunk c of row r
    // lies at c ^ (r % 8).
    const int chunk = lane % 8, copied_row = first_row + warp * 16 + lane / 8;
    const u8* from = p.b.codes + (i64)copied_row * code_pitch + begin / 2 + 16 * chunk;
    const int swizzled = lane / 8 * 128 + ((chunk ^ (lane / 8)) * 16);
    auto copy_stage = [&](int stage) {
        int k = begin + stage * STAGE_K;
        if (k < end) {
            unsigned char* slot = ring + stage % STAGES * 16 * (STAGE_K / 2) + swizzled;
            const bool here = k + 32 * chunk < end;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                // Of a chunk that is not there nothing is read: zeros are written.
                const bool valid = here && copied_row + 4 * i < p.n;
                cp_async_16(i % 2 == 0 ? slot + i * 512 : ring + ((slot - ring) ^ 64) + i * 512,
                            from + (i64)(4 * i) * code_pitch + stage * (STAGE_K / 2), valid);
            }
        }
        cp_async_commit();
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) copy_stage(s);

    const int row_0 = first_row + warp * 16 + g, row_1 = row_0 + 8;
    int low_0 = 0, low_1 = 0;
    if (G == 32 && !FOLD) {
        low_0 = row_0 < p.n ? p.b.meta[row_0].low : 0;
        low_1 = row_1 < p.n ? p.b.meta[row_1].low : 0;
    }
    int folded[NT][4];
#pragma unroll
    for (int j = 0; j < NT; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[j][i] = 0;
            folded[j][i] = 0;
        }
    }

    int stage = 0;
    for (int sub = begin; sub < end; sub += Layout::SUB) {
        __syncthreads(); // the last sub-range has been read, and the table is written
        // Every loop of a known number of turns, so that all its loads are under way at once.
#pragma unroll
        for (int turn = 0; turn < Layout::FRAGMENT_TURNS; turn++) {
            const int i = thread + turn * THREADS;
            int block = i / (32 * NT), column = i / 4 % (8 * NT), word = i % 4;
            int token = first_token + column, k = sub + 32 * block;
            bool here = token < p.m && k < end;
            if (INT8_A) {
                // The elements of this lane's first and second half.
                int first = G == 32 ? 2 * word : 2 * (word & 1) + (word >> 1);
                int second = G == 32 ? first + 1 : 5 + 2 * (word & 1) - (word >> 1);
                const u32* from = (const u32*)(p.a.codes + (here ? (i64)token * a_code_pitch + k : 0));
                ((uint2*)fragments)[i] = here ? make_uint2(from[first], from[second]) : make_uint2(0, 0);
                continue;
            }
            u32 codes = 0;
            int shift = 0;
            if (here) {
                codes = *(const u32*)(p.a.codes + (i64)token * a_code_pitch + k / 2 + 4 * word);
                if (FOLD) shift = ((int)p.a.scales[(i64)token * a_scale_pitch + k / 32] - p.a.meta[token].low) & 31;
            }
            codes = halves<G>(codes, word);
            uint4 fragment;
            fragment.x = expand_doubled(codes & 0xFFFFu, shift);
            fragment.y = expand_doubled(codes >> 16, shift);
            codes ^= 0x88888888u;
            fragment.z = expand_doubled(codes & 0xFFFFu, shift);
            fragment.w = expand_doubled(codes >> 16, shift);
            ((uint4*)fragments)[i] = fragment;
        }
#pragma unroll
        for (int turn = 0; !FOLD && turn < Layout::MULTIPLIER_TURNS; turn++) {
            const int i = thread + turn * THREADS;
            int group = sub / G + i / (8 * NT), token = first_token + i % (8 * NT);
            int multiplier = 0;
            if (token < p.m && group * G < end) {
                u32 byte = p.a.scales[(i64)token * a_scale_pitch + Of::a_group(group)];
                multiplier = Of::A::SCALE_TYPE == E4M3 ? e4m3_units(byte) : 1 << (((int)byte - p.a.meta[token].low) & 31);
            }
            multipliers[i] = multiplier;
        }
#pragma unroll
        for (int turn = 0; turn < Layout::SCALE_TURNS; turn++) {
            const int i = thread + turn * THREADS;
            int r = i / (Layout::SUB_GROUPS / 4), quad = i % (Layout::SUB_GROUPS / 4);
            int group = sub / G + 4 * quad;
            u32 bytes = 0;
            if (first_row + r < p.n && group * G < end) {
                bytes = *(const u32*)(p.b.scales + (i64)(first_row + r) * scale_pitch + group);
                // What the magnitudes are multiplied by; of groups that are not live anything.
                if (FOLD) bytes = powers_of_bytes(__vsub4(bytes, (u32)p.b.meta[first_row + r].low * 0x01010101u));
            }
            *(u32*)(scales + r * Layout::SCALE_PITCH + 4 * quad) = bytes;
        }
        __syncthreads();

        for (int k = sub; k < sub + Layout::SUB && k < end; k += STAGE_K, stage++) {
            cp_async_wait<STAGES - 2>();
            __syncwarp(ALL_LANES); // the stage is there for all lanes, and all have read the last one
            copy_stage(stage + STAGES - 1);
            const unsigned char* slot = ring + stage % STAGES * 16 * (STAGE_K / 2);
            const int first_block = (k - sub) / 32;
#pragma unroll 1 // unrolled it spills registers
            for (int pair = 0; pair < STAGE_K / 64; pair++) {
                unsigned words[4]; // (row_0, row_1) of the first 32 k, then of the second
                int r = lane & 15, c = 2 * pair + lane / 16;
                ldmatrix_x4(words, slot + r * 128 + ((c ^ (r & 7)) * 16));
                u32 bytes_0 = 0, bytes_1 = 0; // scales of row_0 and row_1, from the lowest byte
                const int first_group = (first_block + 2 * pair) * GROUPS_32;
                const unsigned char* at = scales + (warp * 16 + g) * Layout::SCALE_PITCH + first_group;
                if (G == 16) {
                    bytes_0 = *(const u32*)at;
                    bytes_1 = *(const u32*)(at + 8 * Layout::SCALE_PITCH);
                } else if (!FOLD) {
                    bytes_0 = *(const u16*)at;
                    bytes_1 = *(const u16*)(at + 8 * Layout::SCALE_PITCH);
                }
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // A set sign bit selects the sign of a magnitude, 0: of the codes as they are
                    // the positive ones remain, with the sign bits flipped the negative ones.
                    const u32 codes_0 = halves<G>(words[2 * half], t), codes_1 = halves<G>(words[2 * half + 1], t);
                    const u32 parts[4] = {codes_0, codes_1, codes_0 >> 16, codes_1 >> 16};
                    // Of rows row_0 and row_1.
                    u32 low[2] = {low_magnitudes, low_magnitudes}, high[2] = {high_magnitudes, high_magnitudes};
                    if (FOLD) {
#pragma unroll
                        for (int i = 0; i < 2; i++) {
                            const u32 power = at[i * 8 * Layout::SCALE_PITCH + half];
                            low[i] = low_magnitudes * power;
                            high[i] = high_magnitudes * power;
                        }
                    }
                    unsigned plus[4], minus[4];
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        plus[i] = permute_bytes(low[i % 2], high[i % 2], parts[i]);
                        minus[i] = permute_bytes(low[i % 2], high[i % 2], parts[i] ^ 0x8888u);
                    }
                    const int block = first_block + 2 * pair + half;
                    uint4 fragment[NT];
#pragma unroll
                    for (int j = 0; j < NT; j++) {
                        const int at = (block * NT + j) * 32 + lane;
                        if (INT8_A) {
                            uint2 both = ((const uint2*)fragments)[at];
                            fragment[j] = make_uint4(both.x, both.y, both.x, both.y);
                        } else {
                            fragment[j] = ((const uint4*)fragments)[at];
                        }
                    }
                    if (FOLD) {
#pragma unroll
                        for (int j = 0; j < NT; j++) {
                            multiply<G>(folded[j], plus, fragment[j].x, fragment[j].y, 0);
                            multiply<G>(folded[j], minus, fragment[j].z, fragment[j].w, 0);
                        }
                    }
#pragma unroll
                    for (int q = 0; q < (FOLD ? 0 : GROUPS_32); q++) {
                        int shift = 8 * (half * GROUPS_32 + q);
                        u32 byte_0 = (bytes_0 >> shift) & 0xFFu, byte_1 = (bytes_1 >> shift) & 0xFFu;
                        i64 scale_0, scale_1;
                        if (G == 16) {
                            scale_0 = table[byte_0];
                            scale_1 = table[byte_1];
                        } else {
                            scale_0 = (int)(1u << (((int)byte_0 - low_0) & 31));
                            scale_1 = (int)(1u << (((int)byte_1 - low_1) & 31));
                        }
#pragma unroll
                        for (int j = 0; j < NT; j++) {
                            int dot[4] = {0, 0, 0, 0};
                            multiply<G>(dot, plus, fragment[j].x, fragment[j].y, q);
                            if (INT8_A) {
                                int negative[4] = {0, 0, 0, 0};
                                multiply<G>(negative, minus, fragment[j].z, fragment[j].w, q);
#pragma unroll
                                for (int i = 0; i < 4; i++) dot[i] -= negative[i];
                            } else {
                                multiply<G>(dot, minus, fragment[j].z, fragment[j].w, q);
                            }
                            int2 by = *(const int2*)(multipliers + ((block * GROUPS_32 + q) * NT + j) * 8 + 2 * t);
                            sums[j][0] += (u64)((i64)(int)((u32)dot[0] * (u32)by.x) * scale_0);
                            sums[j][1] += (u64)((i64)(int)((u32)dot[1] * (u32)by.y) * scale_0);
                            sums[j][2] += (u64)((i64)(int)((u32)dot[2] * (u32)by.x) * scale_1);
                            sums[j][3] += (u64)((i64)(int)((u32)dot[3] * (u32)by.y) * scale_1);
                        }
                    }
                }
            }
        }
    }
    if (FOLD) {
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[j][i] = (u64)(i64)folded[j][i];
        }
    }
}

template <int PRODUCT, int NT>
__device__ __forceinline__ void decode_block(const DecodeArgs& p, int x, int z) {
    typedef DecodeLayout<PRODUCT, NT> Layout;
    typedef Operands<PRODUCT> Of;
    constexpr int G = Of::GROUP;
    const int first_row = x * ROWS, first_token = z * 8 * NT;
    if (first_row >= p.n || first_token >= p.m) return; // past a ragged tile
    unsigned char* shared = dynamic_shared();
    const int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    const int begin = (int)blockIdx.y * p.range;
    const int end = begin + p.range < p.k_pad ? begin + p.range : p.k_pad;
    const int code_pitch = p.k_pad / 2, scale_pitch = p.k_pad / G; // of B
    const int a_code_pitch = Of::A::row_bytes(p.k_pad), a_scale_pitch = p.k_pad / Of::A::GROUP;

    if (G == 16) ((int*)(shared + Layout::TABLE))[thread] = e4m3_units((u32)thread); // 256 threads
    // The doubled magnitudes, by way of memory: as literals they cost moves at every use.
    u32* magnitudes = (u32*)(shared + Layout::MAGNITUDES);
    u32* wide_rows = (u32*)(shared + Layout::LAST); // whether a row spans too much to fold
    if (thread == 0) {
        magnitudes[0] = 0x03020100u;
        magnitudes[1] = 0x0C080604u;
        *wide_rows = 0;
    }
    __syncthreads();
    if (PRODUCT == MXFP4) {
        const int token = first_token + thread - ROWS;
        int spread = 0;
        if (thread < ROWS && first_row + thread < p.n) spread = p.b.meta[first_row + thread].spread();
        if (thread >= ROWS && thread < ROWS + 8 * NT && token < p.m) spread = p.a.meta[token].spread();
        if (spread > FOLD_SPREAD) atomicOr(wide_rows, 1u);
        __syncthreads();
    }
    const DecodePlace place = {first_row, first_token, begin, end, magnitudes[0], magnitudes[1]};
    const int row_0 = first_row + warp * 16 + g, row_1 = row_0 + 8;
    u64 sums[NT][4];
    if (PRODUCT == MXFP4 && p.range <= FOLD_RANGE && *wide_rows == 0) {
        decode_range<PRODUCT, NT, PRODUCT == MXFP4>(p, place, shared, sums);
    } else {
        decode_range<PRODUCT, NT, false>(p, place, shared, sums);
    }
    __syncthreads(); // `wide_rows` has been read: its place is taken below

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
        if (thread == 0) *last = atomicAdd(arrivals, 1u) == gridDim.y - 1;
        __syncthreads();
        if (*last == 0) return;
        __threadfence();
        if (thread == 0) *arrivals = 0;
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
        decode_block<PRODUCT, NT>(p, x, z);
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

#define DECODE_KERNEL(name, PRODUCT, NT)                           \
    KERNEL_BOUNDS(fp4::THREADS, 2)                                 \
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
