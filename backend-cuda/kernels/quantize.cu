// Quantization, with the optional block transform in front (C4, C5, C10), and row metadata.
//
//     y      = x, or per block: y[j] = round(fma chain over ascending i of x[i] * T[j][i])
//     scale  = given, or encode(amax / (ss * gs))          amax NaN if any element is NaN
//     code   = encode(y / (decode(scale) * gs)), or +-0 with the sign of y where it divides by 0
//
// and of MXINT8 the least scale that takes amax to at most 127, and the element nearest to y * 64 /
// scale, ties to even.
//
// A thread holds 8 consecutive columns of a row, so a group of G columns is G / 8 adjacent lanes,
// at most 16, and its amax is a few shuffles. amax is taken over the bit patterns of |y|: as
// unsigned numbers they order like the values, and every NaN lies above infinity. Columns from K to
// k_pad get codes 0 and scale bytes 0 (C8), so that a matmul needs no tail. MXFP4 and NVFP4 as most
// are quantized have a loop of their own, without divisions (reciprocal.cuh); all else is divided
// as above.
//
// A block walks along a row, of which it writes the metadata too where a product will read it: it
// sees all of the row. Where there are few rows it has up to 1024 threads.
//
// The transform kernel works on tiles of 64 rows by 128 columns. A thread computes 4 rows by 8
// columns: for each i it reads 4 values of x and 8 of T from shared memory for 32 FMAs. The chain
// of one output is never split, so its rounding is the contract's. 128 columns hold whole blocks
// and whole groups, because both are powers of two up to 128.
//
// With row scales a row's global scale comes from its own amax (C4): the threads of a row read it
// once for that, before they quantize it. A transform then is a launch of its own, because a tile
// sees a part of a row: it writes the row in its own type, which y is rounded to anyway, and rows
// are transformed once. Not yet run on hardware.
//
// Worked example, NVFP4 with gs = 0.1 and ss = 6: a group with amax 3 has s = 3 / 0.6 = 5, byte
// 0x4A, divisor 0.5, and 3 becomes code 7 (6 * 0.5).
#include "quantize.cuh"
#include "row_meta.cuh"

using namespace fp4;

#define QUANTIZE(name, Dense)                                                       \
    KERNEL_BOUNDS(32 * ROW_WARPS, 1)                                                \
    void name(QuantizeArgs p) {                                                     \
        SHARED(u32, maxima, [2 * ROW_WARPS]);                                       \
        quantize_row<Dense>(p, blockIdx.x, (int)threadIdx.x, (int)blockDim.x, maxima); \
    }                                                                               \
    EXPORT(name)

QUANTIZE(quantize_f32, DenseF32)
QUANTIZE(quantize_f16, DenseF16)
QUANTIZE(quantize_bf16, DenseBf16)

#define TRANSFORM_QUANTIZE(name, Dense)                                             \
    KERNEL_BOUNDS(256, 2)                                                           \
    void name(QuantizeArgs p) {                                                     \
        SHARED(float, xs, [STRIP_COLS * X_STRIDE]);                                 \
        SHARED(float, ts, [SLAB * T_STRIDE]);                                       \
        transform_quantize<Dense>(p, xs, ts);                                       \
    }                                                                               \
    EXPORT(name)

TRANSFORM_QUANTIZE(transform_quantize_f32, DenseF32)
TRANSFORM_QUANTIZE(transform_quantize_f16, DenseF16)
TRANSFORM_QUANTIZE(transform_quantize_bf16, DenseBf16)

#define TRANSFORM(name, Dense)                                                      \
    KERNEL_BOUNDS(256, 2)                                                           \
    void name(TransformArgs p) {                                                    \
        SHARED(float, xs, [STRIP_COLS * X_STRIDE]);                                 \
        SHARED(float, ts, [SLAB * T_STRIDE]);                                       \
        transform_to<Dense>(p, xs, ts);                                             \
    }                                                                               \
    EXPORT(name)

TRANSFORM(transform_f32, DenseF32)
TRANSFORM(transform_f16, DenseF16)
TRANSFORM(transform_bf16, DenseBf16)

// Metadata of the rows of an operand: a warp a row.
KERNEL void row_meta(RowMetaArgs p) {
    i64 row = (i64)blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (row >= p.rows) return; // whole warps
    int lane = threadIdx.x % 32;
    auto uncounted = [](u32) {};
    const u8 *codes = p.operand.codes, *scales = p.operand.scales;
    RowMeta described;
    switch (p.encoding) {
    case MXFP4: described = describe_row<MXFP4>(codes, scales, row, p.k_pad, lane, uncounted); break;
    case NVFP4: described = describe_row<NVFP4>(codes, scales, row, p.k_pad, lane, uncounted); break;
    default: described = describe_row<MXINT8>(codes, scales, row, p.k_pad, lane, uncounted);
    }
    if (lane == 0) p.operand.meta[row] = described;
}
EXPORT(row_meta)
