// Quantization and folding in one pass: packed codes and scales, row metadata, and the int8 blocks
// that the kernels for many rows read (C4, C5, C6). Not yet run on hardware.
//
// The int8 blocks of a row depend on its base, and that on the exponents of the whole row. So
//
//     without a transform   a block takes 8 rows, a warp each along k, and then folds them
//     with one              blocks take the tiles of 64 rows x 128 columns of quantize.cu; the last
//                           block to finish a strip of 64 rows folds it, eight rows at a time
//
// Rows with scales of their own (C4) are always without a transform here, which is a launch before
// (quantize.cu).
//
// Codes and scales are read again for folding, by the block that wrote them or from the L2 cache:
// they are half a byte an element, where the values are two or four. The values are read once. What
// it costs: without a transform M / 8 blocks, fewer than quantize.cu's M; with one, the strips that
// end last are folded by as many multiprocessors as there are such strips. Windows other than 0,
// which outliers make, are the second launch, fold_extras. Strips past the last row are folded too,
// so that every byte of a tile is written.
#include "fold_rows.cuh"
#include "quantize.cuh"

namespace fp4 {

__device__ __forceinline__ void fold_format(int scale_type, const u8* codes, const u8* scales, int first_row, int rows,
                                            int k_pad, const FoldedOperand& to, FoldScratch& scratch) {
    if (scale_type == E8M0) {
        fold_eight<MXFP4>(codes, scales, first_row, rows, k_pad, to, scratch);
    } else {
        fold_eight<NVFP4>(codes, scales, first_row, rows, k_pad, to, scratch);
    }
}

// Whether this block is the last of `blocks` to arrive; if so, it sees what the others have
// written.
__device__ __forceinline__ bool last_to_arrive(u32* arrivals, int blocks, u32* last) {
    __threadfence(); // what this thread wrote is out before the arrival
    __syncthreads();
    if (threadIdx.x == 0) *last = atomicAdd(arrivals, 1u) == (u32)blocks - 1;
    __syncthreads();
    __threadfence();
    return *last != 0;
}

} // namespace fp4

using namespace fp4;

#define QUANTIZE_FOLD(name, Dense)                                                              \
    KERNEL_BOUNDS(FOLD_THREADS, 2)                                                              \
    void name(QuantizeFoldArgs p) {                                                             \
        SHARED(FoldScratch, scratch, [1]);                                                      \
        const QuantizeArgs& q = p.quantize;                                                     \
        int first_row = (int)blockIdx.x * FOLD_ROWS, row = first_row + (int)threadIdx.x / 32;   \
        quantize_row<Dense>(q, row < q.rows ? row : -1, (int)threadIdx.x % 32, 32, nullptr);    \
        __syncthreads();                                                                        \
        fold_format(q.set.scale_type, q.codes, q.scales, first_row, (int)q.rows, q.k_pad, p.to, \
                    scratch[0]);                                                                \
    }                                                                                           \
    EXPORT(name)

QUANTIZE_FOLD(quantize_fold_f32, DenseF32)
QUANTIZE_FOLD(quantize_fold_f16, DenseF16)
QUANTIZE_FOLD(quantize_fold_bf16, DenseBf16)

#define TRANSFORM_QUANTIZE_FOLD(name, Dense)                                                    \
    KERNEL_BOUNDS(256, 2)                                                                       \
    void name(QuantizeFoldArgs p) {                                                             \
        SHARED(float, xs, [STRIP_COLS * X_STRIDE]);                                             \
        SHARED(float, ts, [SLAB * T_STRIDE]);                                                   \
        SHARED(u32, last, [1]);                                                                 \
        const QuantizeArgs& q = p.quantize;                                                     \
        transform_quantize<Dense>(q, xs, ts);                                                   \
        int across = q.k_pad / STRIP_COLS, strip = (int)blockIdx.x / across;                    \
        if (!last_to_arrive(p.arrivals + strip, across, last)) return;                          \
        static_assert(sizeof(FoldScratch) <= sizeof(float) * STRIP_COLS * X_STRIDE,             \
                      "takes the place of x");                                                  \
        for (int row = strip * STRIP_ROWS; row < (strip + 1) * STRIP_ROWS; row += FOLD_ROWS) {  \
            fold_format(q.set.scale_type, q.codes, q.scales, row, (int)q.rows, q.k_pad, p.to,   \
                        *(FoldScratch*)xs);                                                     \
        }                                                                                       \
    }                                                                                           \
    EXPORT(name)

TRANSFORM_QUANTIZE_FOLD(transform_quantize_fold_f32, DenseF32)
TRANSFORM_QUANTIZE_FOLD(transform_quantize_fold_f16, DenseF16)
TRANSFORM_QUANTIZE_FOLD(transform_quantize_fold_bf16, DenseBf16)
