// The inner part of matmul_decode.cu, which tells the method: what lies in shared memory, how a
// block stages it, and the sums of a lane's outputs over a range of K, by one of two ways of
// summing (`FOLD`): int64 by groups, or int32 over the range with the scales shifted into the
// bytes.
#pragma once

#include "exact.cuh"

namespace fp4 {

constexpr int WARPS = 8, THREADS = 32 * WARPS;
constexpr int ROWS = DECODE_ROWS, STAGE_K = DECODE_STAGE_K; // 128 bytes of a row a stage
static_assert(ROWS == 16 * WARPS, "16 rows a warp");
constexpr int STAGES = 3;
constexpr int SUB_K = 1024;      // k of a sub-range, over NT
constexpr int DIGIT_BITS = 7;    // of an element of NVFP4, folded
constexpr int BIAS = 128;        // added to a weight's folded bytes, which are then unsigned

// The doubled magnitudes of codes 0..3 and 4..7, a byte each.
struct Magnitudes {
    u32 low, high;
};

// Folding of a format: entry i of its table has the magnitudes under a scale byte i - ZERO above
// the row's base, in bytes. Of a scale that no live group has, they are anything, but those of
// scales of 0, and of code 0.
template <int FORMAT>
struct DecodeFold;

template <>
struct DecodeFold<MXFP4> {
    typedef Magnitudes Entry;
    static constexpr int SPREAD = 3, SUMS = 1;
    static constexpr int RANGE = 99864 / STAGE_K * STAGE_K;
    static_assert((96ll + BIAS) * 96 * RANGE < 1ll << 31, "");
    static constexpr int ZERO = 254, ENTRIES = ZERO + 256; // bases of 0 to 254, bytes of 0 to 255

    __device__ static __forceinline__ bool takes(const RowMeta& meta) { return meta.spread() <= SPREAD; }
    __device__ static __forceinline__ int unit(const RowMeta&) { return 0; }
    __device__ static __forceinline__ int base(const RowMeta& meta) { return meta.low; }
    __device__ static __forceinline__ int scale(const u8* byte) { return *byte; }
    __device__ static __forceinline__ Entry entry(const Magnitudes& m, int i) {
        const u32 power = i >= ZERO && i <= ZERO + SPREAD ? 1u << (i - ZERO) : 0u;
        Entry to = {m.low * power, m.high * power};
        return to;
    }
};

template <>
struct DecodeFold<NVFP4> {
    typedef uint4 Entry; // low digits, then high ones
    static constexpr int SPREAD = 6, SUMS = 3;
    static constexpr int RANGE = 33155 / STAGE_K * STAGE_K;
    static_assert(2ll * 255 * 127 * RANGE < 1ll << 31, "");
    static_assert(12 * 15 << SPREAD < 1 << 2 * DIGIT_BITS, "two digits");
    // Bases of 8 to 120, bytes of -128 to 127: those with a sign are -0 or in no row that folds.
    static constexpr int ZERO = 248, ENTRIES = ZERO + 120;

    // All scales are positive and normal, or of groups that are not live.
    __device__ static __forceinline__ bool takes(const RowMeta& meta) {
        return meta.live == 0 || (meta.least >= 8 && meta.most < 128 && (meta.most >> 3) - (meta.least >> 3) <= SPREAD);
    }
    // log2 of what 1 of an element is worth in units of the format's integers (exact.cuh).
    __device__ static __forceinline__ int unit(const RowMeta& meta) { return meta.live == 0 ? 0 : (meta.least >> 3) - 1; }
    __device__ static __forceinline__ int base(const RowMeta& meta) { return 8 * (unit(meta) + 1); }
    __device__ static __forceinline__ int scale(const u8* byte) { return (signed char)*byte; }
    __device__ static __forceinline__ Entry entry(const Magnitudes& m, int i) {
        const u32 above = (u32)(i - ZERO);
        const u32 factor = above < 8 * (SPREAD + 1) ? (8 + above % 8) << (above / 8) : 0;
        u32 words[4] = {0, 0, 0, 0};
#pragma unroll
        for (int code = 0; code < 8; code++) {
            const u32 value = ((code < 4 ? m.low : m.high) >> (8 * (code % 4)) & 0xFFu) * factor;
            words[code / 4] |= (value & 127u) << (8 * (code % 4));
            words[2 + code / 4] |= (value >> DIGIT_BITS) << (8 * (code % 4));
        }
        return make_uint4(words[0], words[1], words[2], words[3]);
    }
};

// Byte offsets in shared memory.
template <int PRODUCT, int NT>
struct DecodeLayout {
    static constexpr bool INT8_A = Operands<PRODUCT>::A::IS_INT8;
    static constexpr bool FOLDS = !INT8_A && NT == 2; // for 8 columns the groups cost less
    typedef DecodeFold<Operands<PRODUCT>::B_ENCODING> Fold;
    static constexpr int SUB = SUB_K / NT;
    static constexpr int SUB_GROUPS = SUB / Operands<PRODUCT>::GROUP;
    static constexpr int ROW_SCALES = STAGE_K / Operands<PRODUCT>::GROUP; // bytes of a row in a stage
    // Turns of the block's threads that fill what a sub-range needs.
    static constexpr int FRAGMENT_TURNS = SUB * NT / THREADS, MULTIPLIER_TURNS = SUB_GROUPS * 8 * NT / THREADS;
    static_assert(SUB * NT % THREADS == 0 && SUB_GROUPS * 8 * NT % THREADS == 0 && THREADS % (32 * NT) == 0, "");
    static constexpr int RING = 0;
    static constexpr int SCALE_RING = RING + WARPS * STAGES * 16 * STAGE_K / 2;
    static constexpr int FRAGMENTS = SCALE_RING + WARPS * STAGES * 16 * ROW_SCALES;
    // The table of the fold; or multipliers of A's groups, and the integers of e4m3 bytes.
    static constexpr int TABLE = FRAGMENTS + SUB / 32 * NT * 32 * (INT8_A ? 8 : 16);
    static constexpr int MULTIPLIERS = TABLE;
    static constexpr int UNITS = MULTIPLIERS + SUB_GROUPS * 8 * NT * 4;
    static constexpr int UNITS_END = UNITS + 256 * 4;
    static constexpr int TABLE_END = FOLDS ? TABLE + Fold::ENTRIES * (int)sizeof(typename Fold::Entry) : 0;
    static constexpr int TOTALS = (TABLE_END > UNITS_END ? TABLE_END : UNITS_END); // of A's folded bytes
    static constexpr int LAST = TOTALS + 2 * 16 * 4; // whether this block arrived last
    static constexpr int MAGNITUDES = LAST + 8;
    static constexpr int BYTES = LAST + 16;
    static_assert(TABLE % 16 == 0 && TOTALS % 8 == 0 && BYTES <= DECODE_SHARED, "");
};

// The first half of this lane's codes (low 16 bits) and the second, as matmul_decode.cu has them.
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

// a - b of the bytes of a word, each at most 127, and one of the two 0.
__device__ __forceinline__ u32 minus_bytes(u32 a, u32 b) { return (a - b + 0x80808080u) ^ 0x80808080u; }

// What a block of threads and its lanes have, and where.
struct DecodePlace {
    int first_row, first_token, begin, end;
    Magnitudes magnitudes;
};

// A warp's ring of asynchronous copies: codes and scales of its 16 rows, STAGES deep.
//
// Of codes each lane copies four of the 128 16-byte chunks of a stage, rows four apart; chunk c of
// row r lies at c ^ (r % 8). Of scales each lane copies those of 128 k of a row.
template <int PRODUCT, int NT>
struct DecodeRing {
    typedef DecodeLayout<PRODUCT, NT> Layout;
    static constexpr int CODE_BYTES = 16 * STAGE_K / 2, SCALE_BYTES = 16 * Layout::ROW_SCALES;
    static constexpr int LANE_SCALES = Layout::ROW_SCALES / 2;
    unsigned char *codes, *scales;
    const u8 *from, *scales_from; // of the next stage
    int at, left; // the slot of the next stage; k from this lane's first chunk of it to the end
    int rows, scale_row_here;

    __device__ __forceinline__ DecodeRing(const DecodeArgs& p, const DecodePlace& place, unsigned char* shared) {
        const int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32, chunk = lane % 8;
        const int first_row = place.first_row + warp * 16, row = first_row + lane / 8, scale_row = first_row + lane / 2;
        const i64 code_pitch = p.k_pad / 2, scale_pitch = p.k_pad / Operands<PRODUCT>::GROUP;
        codes = shared + Layout::RING + warp * STAGES * CODE_BYTES + lane / 8 * 128;
        scales = shared + Layout::SCALE_RING + warp * STAGES * SCALE_BYTES + lane * LANE_SCALES;
        from = p.b.codes + row * code_pitch + place.begin / 2 + 16 * chunk;
        scales_from = p.b.scales + scale_row * scale_pitch + place.begin / Operands<PRODUCT>::GROUP + lane % 2 * LANE_SCALES;
        at = 0;
        left = place.end - place.begin;
        rows = p.n - row;
        scale_row_here = scale_row < p.n ? lane % 2 * 128 : left; // the latter is in no stage
    }

    // Of what is not there nothing is read: zeros are written.
    __device__ __forceinline__ void copy(const DecodeArgs& p) {
        const int lane = (int)threadIdx.x % 32, swizzled = (lane % 8 ^ lane / 8) * 16;
        if (left > 0) {
            unsigned char* slot = codes + at * CODE_BYTES;
            const bool here = lane % 8 * 32 < left;
            const u8* of_row = from;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                cp_async_16(slot + (i % 2 == 0 ? swizzled : swizzled ^ 64) + i * 512, of_row, here && 4 * i < rows);
                of_row += (i64)p.k_pad * 2; // four rows
            }
            cp_async_small<LANE_SCALES>(scales + at * SCALE_BYTES, scales_from, scale_row_here < left);
        }
        cp_async_commit();
        from += STAGE_K / 2;
        scales_from += Layout::ROW_SCALES;
        left -= STAGE_K;
        at = at == STAGES - 1 ? 0 : at + 1;
    }
};

// Stages A for a sub-range: the fragments of its elements, each thread those of one token, and the
// multipliers of its groups but where scales are folded, of which `totals` are the sums of bytes.
template <int PRODUCT, int NT, bool FOLD>
__device__ __forceinline__ void stage_tokens(const DecodeArgs& p, const DecodePlace& at, unsigned char* shared, int sub,
                                             int base, int low, int (&totals)[2]) {
    typedef DecodeLayout<PRODUCT, NT> Layout;
    typedef Operands<PRODUCT> Of;
    constexpr bool INT8_A = Of::A::IS_INT8;
    constexpr int G = Of::GROUP;
    // Read anew each time, and as little as can be depends on the turn: registers are short.
    const int thread = thread_here(), word = thread % 4, first_32 = thread / (32 * NT);
    constexpr int TURN_32 = THREADS / (32 * NT);
    static_assert(THREADS % (32 * NT) == 0, "");
    const int token = at.first_token + thread / 4 % (8 * NT);
    const int a_code_pitch = Of::A::row_bytes(p.k_pad), a_scale_pitch = p.k_pad / Of::A::GROUP;
    const u8 *codes_from = p.a.codes + (i64)token * a_code_pitch, *scales_from = p.a.scales + (i64)token * a_scale_pitch;
    u8* fragments = shared + Layout::FRAGMENTS; // of lanes: uint4, or uint2 of int8 elements
    // Every loop of a known number of turns, so that all its loads are under way at once.
#pragma unroll
    for (int turn = 0; turn < Layout::FRAGMENT_TURNS; turn++) {
        const int i = thread + turn * THREADS, at_32 = first_32 + turn * TURN_32, k = sub + at_32 * 32;
        const bool here = token < p.m && k < at.end;
        if (INT8_A) {
            // The elements of this lane's first and second half.
            int first = G == 32 ? 2 * word : 2 * (word & 1) + (word >> 1);
            int second = G == 32 ? first + 1 : 5 + 2 * (word & 1) - (word >> 1);
            const u32* from = (const u32*)(here ? codes_from + k : p.a.codes);
            ((uint2*)fragments)[i] = here ? make_uint2(from[first], from[second]) : make_uint2(0, 0);
            continue;
        }
        u32 codes = here ? *(const u32*)(codes_from + k / 2 + 4 * word) : 0;
        Magnitudes low_digits = at.magnitudes, high_digits = low_digits;
        if constexpr (FOLD) {
            typedef typename Layout::Fold Fold;
            const typename Fold::Entry* table = (const typename Fold::Entry*)(shared + Layout::TABLE);
            // A lane's word lies in one group.
            const int scale = here ? Fold::scale(scales_from + k / G + (G == 16 ? word / 2 : 0)) : base;
            const typename Fold::Entry entry = table[scale - base + Fold::ZERO];
            if constexpr (G == 16) {
                low_digits = {entry.x, entry.y};
                high_digits = {entry.z, entry.w};
            } else {
                low_digits = entry;
            }
        } else {
            codes = halves<G>(codes, word);
        }
        // A set sign bit selects the sign of a magnitude, 0: of the codes as they are the positive
        // ones remain, with the sign bits flipped the negative ones.
        const u32 parts[2] = {codes, codes >> 16};
        u32 fragment[4];
#pragma unroll
        for (int half = 0; half < 2; half++) {
            const u32 part = parts[half], other = part ^ 0x8888u;
            const u32 plus = permute_bytes(low_digits.low, low_digits.high, part);
            const u32 minus = permute_bytes(low_digits.low, low_digits.high, other);
            fragment[half] = minus_bytes(plus, minus);
            if (FOLD) totals[0] = dot_bytes((int)fragment[half], 0x01010101, totals[0]);
            if (FOLD && G == 16) {
                fragment[2 + half] = minus_bytes(permute_bytes(high_digits.low, high_digits.high, part),
                                                 permute_bytes(high_digits.low, high_digits.high, other));
                totals[1] = dot_bytes((int)fragment[2 + half], 0x01010101, totals[1]);
            } else {
                fragment[2 + half] = minus_bytes(minus, plus);
            }
        }
        if (FOLD && G == 32) {
            // A lane's are beside each other.
            const int column = thread / 4 % (8 * NT), lane = column % 8 * 4 + word;
            ((uint2*)fragments)[(at_32 * 32 + lane) * NT + column / 8] = make_uint2(fragment[0], fragment[1]);
        } else {
            ((uint4*)fragments)[i] = make_uint4(fragment[0], fragment[1], fragment[2], fragment[3]);
        }
    }
    int* multipliers = (int*)(shared + Layout::MULTIPLIERS);
#pragma unroll
    for (int turn = 0; !FOLD && turn < Layout::MULTIPLIER_TURNS; turn++) {
        const int group = sub / G + thread / (8 * NT) + turn * (THREADS / (8 * NT)), own = at.first_token + thread % (8 * NT);
        int multiplier = 0;
        if (own < p.m && group * G < at.end) {
            u32 byte = p.a.scales[(i64)own * a_scale_pitch + Of::a_group(group)];
            multiplier = Of::A::SCALE_TYPE == E4M3 ? e4m3_units(byte) : 1 << (((int)byte - low) & 31);
        }
        multipliers[thread + turn * THREADS] = multiplier;
    }
}

// The positive and the negative codes of two rows' two halves as magnitudes.
__device__ __forceinline__ void expand_weights(unsigned (&plus)[4], unsigned (&minus)[4], const unsigned (&parts)[4],
                                               const Magnitudes (&by)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        plus[i] = permute_bytes(by[i % 2].low, by[i % 2].high, parts[i]);
        minus[i] = permute_bytes(by[i % 2].low, by[i % 2].high, parts[i] ^ 0x8888u);
    }
}

// The codes of two rows' two halves as their bytes of the tables `low` and `high`, plus BIAS. Of
// the two that a code selects one is 0, and neither is above 127: no byte borrows or carries.
__device__ __forceinline__ void expand_biased(unsigned (&bytes)[4], const unsigned (&parts)[4], const u32 (&low)[2],
                                              const u32 (&high)[2]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        bytes[i] = permute_bytes(low[i % 2], high[i % 2], parts[i]) -
                   permute_bytes(low[i % 2], high[i % 2], parts[i] ^ 0x8888u) + BIAS * 0x01010101u;
    }
}

// Adds the products of 32 k under folded scales. `by` are the table's entries for the two rows.
template <int NT>
__device__ __forceinline__ void add_folded(int (&folded)[NT][1][4], const unsigned (&parts)[4], const Magnitudes (&by)[2],
                                           const unsigned char* fragments) {
    static_assert(NT == 2, "both columns' fragments in one load");
    const uint4 a = *(const uint4*)fragments;
    const unsigned first[2] = {a.x, a.y}, second[2] = {a.z, a.w};
    unsigned bytes[4];
    expand_biased(bytes, parts, {by[0].low, by[1].low}, {by[0].high, by[1].high});
    mma_m16n8k32_u8s8(folded[0][0], bytes, first);
    mma_m16n8k32_u8s8(folded[1][0], bytes, second);
}

// The same in two digits: to the sums of low digits, of a low and a high one, and of high digits.
template <int NT>
__device__ __forceinline__ void add_folded(int (&folded)[NT][3][4], const unsigned (&parts)[4], const uint4 (&by)[2],
                                           const unsigned char* fragments) {
    unsigned low[4], high[4];
    expand_biased(low, parts, {by[0].x, by[1].x}, {by[0].y, by[1].y});
    expand_biased(high, parts, {by[0].z, by[1].z}, {by[0].w, by[1].w});
#pragma unroll
    for (int j = 0; j < NT; j++) {
        const uint4 a = ((const uint4*)fragments)[32 * j];
        const unsigned a_low[2] = {a.x, a.y}, a_high[2] = {a.z, a.w};
        mma_m16n8k32_u8s8(folded[j][0], low, a_low);
        mma_m16n8k32_u8s8(folded[j][1], low, a_high);
        mma_m16n8k32_u8s8(folded[j][2], high, a_high);
        mma_m16n8k32_u8s8(folded[j][1], high, a_low);
    }
}

// Adds the products of a group, the `q`-th of its 32 k, under its scales.
template <int PRODUCT, int NT>
__device__ __forceinline__ void add_group(u64 (&sums)[NT][4], const unsigned (&plus)[4], const unsigned (&minus)[4],
                                          const uint4 (&fragment)[NT], int q, const int* multipliers, const i64 (&scale)[2]) {
    constexpr int G = Operands<PRODUCT>::GROUP;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        int dot[4] = {0, 0, 0, 0};
        multiply<G>(dot, plus, fragment[j].x, fragment[j].y, q);
        if (Operands<PRODUCT>::A::IS_INT8) {
            int negative[4] = {0, 0, 0, 0};
            multiply<G>(negative, minus, fragment[j].z, fragment[j].w, q);
#pragma unroll
            for (int i = 0; i < 4; i++) dot[i] -= negative[i];
        } else {
            multiply<G>(dot, minus, fragment[j].z, fragment[j].w, q);
        }
        const int2 by = *(const int2*)(multipliers + 8 * j);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 multiplier = (u32)(i % 2 == 0 ? by.x : by.y);
            sums[j][i] += (u64)((i64)(int)((u32)dot[i] * multiplier) * scale[i / 2]);
        }
    }
}

// The sums of this lane's outputs over the block's range. UNROLL is how many of a stage's four 64
// of K are written out: it costs the compiler time that a rare kernel is not worth.
template <int PRODUCT, int NT, bool FOLD, int UNROLL>
__device__ __forceinline__ void decode_range(const DecodeArgs& p, const DecodePlace& at, unsigned char* shared,
                                             u64 (&sums)[NT][4]) {
    typedef DecodeLayout<PRODUCT, NT> Layout;
    typedef DecodeRing<PRODUCT, NT> Ring;
    typedef Operands<PRODUCT> Of;
    typedef typename Layout::Fold Fold;
    constexpr bool INT8_A = Of::A::IS_INT8;
    constexpr int G = Of::GROUP;
    constexpr int GROUPS_32 = 32 / G; // groups in 32 k
    static_assert(!FOLD || Layout::FOLDS, "");
    const int thread = (int)threadIdx.x, warp = thread / 32, lane = thread % 32, g = lane / 4, t = lane % 4;
    Ring ring(p, at, shared);
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) ring.copy(p);
    const unsigned char* codes = shared + Layout::RING + warp * STAGES * Ring::CODE_BYTES;
    const unsigned char* scales = shared + Layout::SCALE_RING + warp * STAGES * Ring::SCALE_BYTES + g * Layout::ROW_SCALES;
    // Where this lane's chunk of the first pair lies in a stage; a pair further is XOR 32.
    const int words_at = (lane & 15) * 128 + (lane / 16 ^ (lane & 7)) * 16;

    const int rows[2] = {at.first_row + warp * 16 + g, at.first_row + warp * 16 + g + 8};
    // The fragments and the multipliers that this thread stages are of one token each.
    const int token = at.first_token + thread / 4 % (8 * NT), other_token = at.first_token + thread % (8 * NT);
    int low[2] = {0, 0}, token_base = 0, token_low = 0;
    const u8* entries[2] = {nullptr, nullptr}; // of scale byte 0 of rows
    if constexpr (FOLD) {
        if (token < p.m) token_base = Fold::base(p.a.meta[token]);
        for (int i = 0; i < 2; i++) {
            const int base = rows[i] < p.n ? Fold::base(p.b.meta[rows[i]]) : 8;
            entries[i] = shared + Layout::TABLE + (Fold::ZERO - base) * (int)sizeof(typename Fold::Entry);
        }
        for (int i = thread; i < Fold::ENTRIES; i += THREADS) {
            ((typename Fold::Entry*)(shared + Layout::TABLE))[i] = Fold::entry(at.magnitudes, i);
        }
    } else {
        if (Of::A::SCALE_TYPE == E8M0 && other_token < p.m) token_low = p.a.meta[other_token].low;
        for (int i = 0; i < 2; i++) low[i] = G == 32 && rows[i] < p.n ? p.b.meta[rows[i]].low : 0;
        if (G == 16) ((int*)(shared + Layout::UNITS))[thread] = e4m3_units((u32)thread); // 256 threads
    }
    const Magnitudes magnitudes = at.magnitudes;
    const int* units = (const int*)(shared + Layout::UNITS);
    constexpr int FRAGMENT = INT8_A || (FOLD && G == 32) ? 8 : 16; // bytes of a lane's
    int folded[NT][FOLD ? Fold::SUMS : 1][4], totals[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < NT; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            sums[j][i] = 0;
#pragma unroll
            for (int s = 0; s < (FOLD ? Fold::SUMS : 1); s++) folded[j][s][i] = 0;
        }
    }

    int slot = 0;
    for (int sub = at.begin; sub < at.end; sub += Layout::SUB) {
        __syncthreads(); // the last sub-range has been read, and the table is written
        stage_tokens<PRODUCT, NT, FOLD>(p, at, shared, sub, token_base, token_low, totals);
        __syncthreads();

        const int sub_end = sub + Layout::SUB < at.end ? sub + Layout::SUB : at.end;
        const int lane_here = thread_here() % 32; // read anew: registers are short
        const unsigned char* fragments = shared + Layout::FRAGMENTS + lane_here * (FOLD && G == 32 ? NT * FRAGMENT : FRAGMENT);
        const int* multipliers = (const int*)(shared + Layout::MULTIPLIERS) + lane_here % 4 * 2;
        for (int k = sub; k < sub_end; k += STAGE_K) {
            cp_async_wait<STAGES - 2>();
            __syncwarp(ALL_LANES); // the stage is there for all lanes, and all have read the last one
            ring.copy(p);
            const unsigned char *slot_codes = codes + slot * Ring::CODE_BYTES, *scale_at = scales + slot * Ring::SCALE_BYTES;
            slot = slot == STAGES - 1 ? 0 : slot + 1;
#pragma unroll UNROLL
            for (int pair = 0; pair < STAGE_K / 64; pair++) {
                unsigned words[4]; // (rows[0], rows[1]) of the first 32 k, then of the second
                ldmatrix_x4(words, slot_codes + (words_at ^ 32 * pair));
                u32 bytes[2] = {0, 0}; // scales of the rows, from the lowest byte
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    const unsigned char* from = scale_at + 8 * i * Layout::ROW_SCALES;
                    if (!FOLD) bytes[i] = G == 16 ? *(const u32*)from : *(const u16*)from;
                }
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    // Of the rows' first and second halves: parts[2 * half + row].
                    unsigned parts[4];
#pragma unroll
                    for (int i = 0; i < 2; i++) {
                        parts[i] = FOLD ? words[2 * half + i] : halves<G>(words[2 * half + i], t);
                        parts[2 + i] = parts[i] >> 16;
                    }
                    // A lane's codes are all of one group.
                    const unsigned char* own = scale_at + half * GROUPS_32 + (G == 16 ? t / 2 : 0);
                    if constexpr (FOLD) {
                        typedef typename Fold::Entry Entry;
                        const Entry by[2] = {((const Entry*)entries[0])[Fold::scale(own)],
                                             ((const Entry*)entries[1])[Fold::scale(own + 8 * Layout::ROW_SCALES)]};
                        add_folded<NT>(folded, parts, by, fragments);
                    } else {
                        uint4 fragment[NT];
#pragma unroll
                        for (int j = 0; j < NT; j++) {
                            if (INT8_A) {
                                uint2 both = ((const uint2*)fragments)[32 * j];
                                fragment[j] = make_uint4(both.x, both.y, both.x, both.y);
                            } else {
                                fragment[j] = ((const uint4*)fragments)[32 * j];
                            }
                        }
                        const Magnitudes by[2] = {magnitudes, magnitudes};
                        unsigned plus[4], minus[4];
                        expand_weights(plus, minus, parts, by);
#pragma unroll
                        for (int q = 0; q < GROUPS_32; q++) {
                            i64 scale[2];
#pragma unroll
                            for (int i = 0; i < 2; i++) {
                                const u32 byte = bytes[i] >> (8 * (half * GROUPS_32 + q)) & 0xFFu;
                                scale[i] = G == 16 ? units[byte] : (int)(1u << (((int)byte - low[i]) & 31));
                            }
                            add_group<PRODUCT, NT>(sums, plus, minus, fragment, q, multipliers, scale);
                            multipliers += NT * 8;
                        }
                    }
                    fragments += 32 * NT * FRAGMENT;
                }
                scale_at += 2 * GROUPS_32;
            }
        }
    }
    if constexpr (FOLD) {
        // What the bias has added: the sums of A's folded bytes over the range, and of their high
        // digits.
        int* all = (int*)(shared + Layout::TOTALS);
        const int here = thread_here(), of_token = 2 * (here / 4 % (8 * NT));
        if (here < 2 * 16) all[here] = 0;
        __syncthreads();
        atomicAdd(&all[of_token], totals[0]);
        if (G == 16) atomicAdd(&all[of_token + 1], totals[1]);
        __syncthreads();
#pragma unroll
        for (int j = 0; j < NT; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int column = 8 * j + 2 * t + i % 2, row = rows[i / 2];
                const i64 low_sum = all[2 * column], high_sum = all[2 * column + 1];
                i64 sum = folded[j][0][i] - BIAS * low_sum;
                if constexpr (Fold::SUMS == 3) {
                    sum += (folded[j][1][i] - BIAS * (low_sum + high_sum)) * (1 << DIGIT_BITS);
                    sum += (folded[j][2][i] - BIAS * high_sum) * (1 << 2 * DIGIT_BITS);
                }
                int shift = 0; // from the unit of the folded elements to that of the sums by groups
                if (row < p.n && at.first_token + column < p.m) {
                    shift = Fold::unit(p.b.meta[row]) + Fold::unit(p.a.meta[at.first_token + column]);
                }
                sums[j][i] = (u64)sum << shift;
            }
        }
    }
}

} // namespace fp4
