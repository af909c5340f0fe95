// What host and device agree on: numbers that name types, sizes of tiles, and the arguments of
// every kernel, each one struct.
//
// The host reads this very file: src/build/header.rs takes the constants from it when the crate is
// compiled, and compares the fields of every struct with its own, name by name and type by type. So
// a constant here is one line, `constexpr int NAME = NUMBER;`, a field is one line, and each struct
// is followed by a static_assert of its size.
//
// Pointers are device addresses; null where a comment allows it.
#pragma once

#include "device.cuh"

namespace fp4 {

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned u32;
typedef unsigned long long u64;
typedef long long i64;

// ---- names of types

constexpr int E8M0 = 0;
constexpr int E4M3 = 1;
constexpr int E2M1 = 0;
constexpr int INT8 = 1;
constexpr int F32 = 0;
constexpr int F16 = 1;
constexpr int BF16 = 2;
constexpr int TIE_EVEN = 0;
constexpr int TIE_ZERO = 1;
constexpr int TIE_DOWN = 2;
constexpr int TIE_UP = 3;

// ---- encodings of operands, and products: A in B's format, or MXINT8

constexpr int MXFP4 = 0;
constexpr int NVFP4 = 1;
constexpr int MXINT8 = 2;
constexpr int MXINT8_MXFP4 = 2;
constexpr int MXINT8_NVFP4 = 3;

// ---- tiles, blocks of threads, shared memory

constexpr int STRIP_ROWS = 64;            // a tile of the transform kernels
constexpr int STRIP_COLS = 128;
constexpr int NAIVE_TILE = 16;            // outputs of a block of matmul_naive, each way
constexpr int MMA_TILE = 64;              // the same of matmul_mma
constexpr int MMA_THREADS = 128;
constexpr int DECODE_ROWS = 128;          // rows of B of a block of matmul_decode
constexpr int DECODE_STAGE_K = 256;       // ranges of K are multiples of it
constexpr int DECODE_SHARED = 77840;      // bytes of dynamic shared memory
constexpr int TILE_ROWS = 128;            // rows of a tile of the folded form (fold.cuh)
constexpr int SLICE_K = 128;              // k of a block of it
constexpr int STEP_K = 32;                // of a step, four to a block
constexpr int MXFP4_PLANES = 1;           // digits of an element of it
constexpr int NVFP4_PLANES = 3;
constexpr int MXINT8_PLANES = 2;
constexpr int FOLD_ROWS = 8;              // rows of a block that folds
constexpr int EXTRA_SLICES = 8;           // slices of a block of fold_extras
constexpr int FOLDED_ROWS = 128;          // outputs of a block of matmul_mma_folded, down and across
constexpr int FOLDED_FEW_ROWS = 64;       // down, of the kernels for few rows
constexpr int FOLDED_COLS = 128;
constexpr int FOLDED_MXFP4_SHARED = 49152; // bytes of dynamic shared memory
constexpr int FOLDED_NVFP4_SHARED = 81920;
constexpr int FOLDED_MXINT8_SHARED = 73728;
constexpr int FOLDED_FEW_MXFP4_SHARED = 36864; // of the kernels for few rows, and the grouped ones
constexpr int FOLDED_FEW_NVFP4_SHARED = 61440;
constexpr int FOLDED_FEW_MXINT8_SHARED = 49152;
constexpr int WGMMA_THREADS = 384;
constexpr int WGMMA_CLUSTER = 2;          // blocks of a cluster
constexpr int WGMMA_SHARED = 221184;
constexpr int RS_THREADS = 256;           // of matmul_wgmma_rs
constexpr int RS_ROWS = 128;              // rows of B of a block of it
constexpr int RS_RANGE_SLICES = 32;       // most slices of K of a range
constexpr int RS_SPREAD = 3;              // exponents above its least that a row of B may have
constexpr int RS_MXFP4_32_SHARED = 69632; // bytes of dynamic shared memory, by rows of A of a block
constexpr int RS_MXFP4_64_SHARED = 86016;
constexpr int RS_MXFP4_128_SHARED = 112640;
constexpr int RS_MXINT8_32_SHARED = 86016;
constexpr int RS_MXINT8_64_SHARED = 112640;
constexpr int RS_MXINT8_128_SHARED = 221184;

// ---- bounds

// Groups of an NVFP4 row whose sum always fits an int64 in units of 2^-20:
// |sum| <= groups * 144 * 16 * (15 * 2^14)^2 = 65536 * 1.3916e14 < 2^63.
constexpr int NVFP4_INT64_GROUPS = 65536;
constexpr int EXACT_LIMBS = 10;           // 64-bit limbs of the widest sum (exact.cuh)

// ---- operands: codes (rows, k_pad / 2), or (rows, k_pad) of MXINT8; scales (rows, k_pad / G);
// k_pad a multiple of 128

// What the kernels choose their path by, one for each row of an operand. A group is live if its
// scale is finite and nonzero and its codes are not all +-0; the others add nothing and do not
// count.
struct RowMeta {
    int low;  // least e8m0 byte over the live groups, 0 if there are none; 0 under e4m3
    int high; // largest
    u16 nan;  // 1 if a scale of the row is NaN
    u8 least; // e4m3: the least and the largest scale byte over the live groups, a negative one above
    u8 most;  // 127; 0 under e8m0 and if there are none
    int live; // number of live groups

    __device__ __forceinline__ int spread() const { return high - low; }
};
static_assert(sizeof(RowMeta) == 16, "");

// A packed operand.
struct PackedOperand {
    u8* codes;
    u8* scales;
    RowMeta* meta;
};
static_assert(sizeof(PackedOperand) == 24, "");

// The folded form of an operand (fold.cuh).
struct FoldedOperand {
    u8* blocks;
    u32* entries;    // (tiles, slices, 2)
    u32* used;       // (tiles): extra blocks taken
    u32* incomplete; // (tiles)
    int* bases;      // (rows)
    RowMeta* meta;   // (rows)
    int rows;
    int extra;       // extra blocks of a tile
};
static_assert(sizeof(FoldedOperand) == 56, "");

// ---- products

// Where the outputs of a product go, and what follows the exact sums (C6).
struct Outputs {
    void* out;
    const float* row_scales; // one for each row of A, or null
    const float* bias;       // one for each row of B, or null
    float alpha;
    int out_type;
};
static_assert(sizeof(Outputs) == 32, "");

// matmul_naive and matmul_mma.
struct MatmulArgs {
    PackedOperand a;
    PackedOperand b;
    Outputs outputs;
    u64* paths;      // counters of outputs: narrow, planes, wide
    int m;
    int n;
    int k_pad;
    int product;
    int joint_limit; // the largest joint spread of exponents whose int64 sums fit
    int k_folds;     // whether K is short enough for the int32 fold
    const u32* left; // null, or for matmul_mma the tiles to compute: their number, then their indices,
    int left_rows;   // of so many rows by FOLDED_COLS
    int unused;
};
static_assert(sizeof(MatmulArgs) == 128, "");

// matmul_mma_folded.
struct FoldedArgs {
    FoldedOperand a;
    FoldedOperand b;
    Outputs outputs;
    int* sums;       // zeros for each tile, left zero; null if there is one range
    u32* arrivals;   // a zero for each tile, left zero; null if there is one range
    u32* left;       // a zero, and room for the tiles that are left to matmul_mma
    u64* paths;      // as in MatmulArgs
    int k_pad;
    int ranges;      // of K
    int range_slices; // slices of K of a range
    int first_tile;  // the number under which tile 0 is left
};
static_assert(sizeof(FoldedArgs) == 192, "");

// Several products of one kernel in one launch.
struct GroupedArgs {
    const void* products; // `count` of the kernel's own arguments
    const u32* ends;      // for each, how many blocks (tiles, if there is `left`) it and those before have
    const u32* left;      // null, or as in MatmulArgs
    int count;
    int left_rows;
};
static_assert(sizeof(GroupedArgs) == 32, "");

// Partial sums over the groups [first, end) of B.
struct PartialArgs {
    PackedOperand a;
    PackedOperand b;
    u64* sums; // NVFP4: one int64 for each output; the other products: EXACT_LIMBS words
    u8* nan;   // one for each output
    int m;
    int n;
    int k_pad;
    int first;
    int end;
    int unused;
};
static_assert(sizeof(PartialArgs) == 88, "");

struct DecodeArgs {
    PackedOperand a;
    PackedOperand b;
    Outputs outputs;
    u64* sums;      // (m, n) zeros, left zero; null if there is one range
    u32* arrivals;  // a zero for each (z, x), left zero
    const u32* left; // null, or how many tiles of left_m x left_n outputs, then which: only those
    u64* paths;     // as in MatmulArgs
    int m;
    int n;
    int k_pad;
    int range;      // k of a block, a multiple of DECODE_STAGE_K
    int left_m;
    int left_n;
};
static_assert(sizeof(DecodeArgs) == 136, "");

struct WgmmaArgs {
    FoldedOperand a;
    FoldedOperand b;
    Outputs outputs;
    const u8* zeros; // a block of zeros
    u32* left;       // how many tiles are left to another kernel, to be added to, then which
    u64* paths;      // as in MatmulArgs
    int* sums;       // zeros for each tile, left zero; null if there is one range
    u32* arrivals;   // two zeros for each tile, left zero; null if there is one range
    int k_pad;
    int ranges;      // of K
    int range_slices; // slices of K of a range
    int unused;
};
static_assert(sizeof(WgmmaArgs) == 200, "");

// matmul_wgmma_rs: a block for each (128 rows of B, range of K, tile of rows of A).
struct WgmmaRsArgs {
    FoldedOperand a;
    PackedOperand b;
    Outputs outputs;
    int* sums;       // zeros for each tile, left zero; null if there is one range
    u32* arrivals;   // a zero for each tile, left zero; null if there is one range
    u32* left;       // a zero, and room for the tiles that are left to another kernel
    u64* paths;      // as in MatmulArgs
    int n;
    int k_pad;
    int range_slices; // slices of K of a range
    int unused;
};
static_assert(sizeof(WgmmaRsArgs) == 160, "");

// ---- quantization

// The settings of a quantization, as the host checked them.
struct Settings {
    int element;        // INT8 is MXINT8, of which nothing below counts but the group
    int group;          // 16, 32, 64 or 128
    int scale_type;
    int tie;
    float divisor;      // ss * gs, rounded by the host
    float global_scale;
    float max_scale;    // the largest finite scale
    float scale_scale;  // ss, for the divisors of rows with scales of their own
};
static_assert(sizeof(Settings) == 32, "");

// What a quantization did, to be added to: kernels/quantize.cuh defines the counts.
struct Counts {
    u64 clipped;
    u64 scale_max;
    u64 flushed;
    u64 nan_groups;
};
static_assert(sizeof(Counts) == 32, "");

struct QuantizeArgs {
    const void* x;
    const void* transform; // null, or blocks of the type of x
    const u8* given;       // null, or scale bytes
    u8* codes;
    u8* scales;
    Counts* counts;        // null if nobody asks
    float* row_scales;     // null, or to be written: each row's global scale, instead of that in set
    RowMeta* meta;         // null, or to be written, of the kernels that see whole rows
    i64 rows;
    int k;
    int k_pad;
    int block;             // of the transform
    int shared_block;      // whether all column blocks share one
    Settings set;
};
static_assert(sizeof(QuantizeArgs) == 120, "");

// The transform alone.
struct TransformArgs {
    const void* x;
    const void* transform; // blocks of the type of x
    void* out;             // (rows, k) of the type of x
    i64 rows;
    int k;
    int k_pad;
    int block;
    int shared_block;      // as in QuantizeArgs
};
static_assert(sizeof(TransformArgs) == 48, "");

struct QuantizeFoldArgs {
    QuantizeArgs quantize;
    FoldedOperand to;
    u32* arrivals; // a zero for each strip
};
static_assert(sizeof(QuantizeFoldArgs) == 184, "");

struct RowMetaArgs {
    PackedOperand operand;
    i64 rows;
    int k_pad;
    int encoding;
};
static_assert(sizeof(RowMetaArgs) == 40, "");

struct FoldArgs {
    const u8* codes;
    const u8* scales;
    FoldedOperand to;
    int k_pad;
    int unused;
};
static_assert(sizeof(FoldArgs) == 80, "");

// ---- layouts

struct DequantizeArgs {
    const u8* codes;
    const u8* scales;
    void* out;
    i64 rows;
    int k;
    int k_pad;
    int element;
    int group;
    int scale_type;
    float global_scale;
    int out_type;
    int unused;
};
static_assert(sizeof(DequantizeArgs) == 64, "");

// Copies (rows, from_cols) bytes to (rows, to_cols).
struct PadArgs {
    const u8* from;
    u8* to;
    i64 rows;
    int from_cols;
    int to_cols;
};
static_assert(sizeof(PadArgs) == 32, "");

// Scale bytes of a (rows, cols) matrix from one layout to the other.
struct SwizzleArgs {
    const u8* from;
    u8* to;
    i64 rows;
    i64 cols;
};
static_assert(sizeof(SwizzleArgs) == 32, "");

} // namespace fp4
