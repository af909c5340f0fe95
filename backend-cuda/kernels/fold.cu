// The folded operand of packed codes and scales that come from elsewhere: a weight, once, or imported
// activations. What this backend quantizes it folds in the same pass: quantize_fold.cu. The algorithm is told
// in fold_rows.cuh. Not yet run on hardware.
#include "fold_rows.cuh"

#if FP4_SM == 90 // what reads the folded form runs there alone

#define FOLD(name, G)                                                                                            \
    KERNEL_BOUNDS(256, 2)                                                                                        \
    void name(const fp4::u8* codes, const fp4::u8* scales, int rows, int k_pad, fp4::u8* blocks,                  \
              fp4::u32* entries, fp4::u32* incomplete, int* bases, fp4::RowMeta* meta, int extra) {               \
        SHARED(fp4::FoldScratch, scratch, [1]);                                                                  \
        fp4::FoldTo to = {blocks, entries, incomplete, bases, meta, extra};                                       \
        fp4::fold_eight<G>(codes, scales, (int)blockIdx.x * fp4::FOLD_ROWS, rows, k_pad, to, scratch[0]);         \
    }                                                                                                            \
    EXPORT(name)

FOLD(fold_mxfp4, 32)
FOLD(fold_nvfp4, 16)

#define FOLD_EXTRAS(name, G)                                                                                     \
    KERNEL_BOUNDS(256, 2)                                                                                        \
    void name(const fp4::u8* codes, const fp4::u8* scales, int rows, int k_pad, fp4::u8* blocks,                  \
              fp4::u32* entries, fp4::u32* incomplete, int* bases, int extra, fp4::u32* used) {                   \
        SHARED(fp4::u32, entries_here, [fp4::EXTRA_STEPS]);                                                      \
        SHARED(fp4::u32, any, [1]);                                                                              \
        fp4::FoldTo to = {blocks, entries, incomplete, bases, nullptr, extra};                                    \
        fp4::fold_extras<G>(codes, scales, rows, k_pad, to, used, entries_here, any);                             \
    }                                                                                                            \
    EXPORT(name)

FOLD_EXTRAS(fold_extras_mxfp4, 32)
FOLD_EXTRAS(fold_extras_nvfp4, 16)

#endif
