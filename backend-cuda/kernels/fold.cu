// The folded operand of packed codes and scales that come from elsewhere: a weight, once, or
// imported activations. What this backend quantizes it folds in the same pass: quantize_fold.cu.
// The algorithm is told in fold_rows.cuh. Not yet run on hardware.
#include "fold_rows.cuh"

#define FOLD(name, ENCODING)                                                                  \
    KERNEL_BOUNDS(fp4::FOLD_THREADS, 2)                                                       \
    void name(fp4::FoldArgs p) {                                                              \
        SHARED(fp4::FoldScratch, scratch, [1]);                                               \
        fp4::fold_eight<ENCODING>(p.codes, p.scales, (int)blockIdx.x * fp4::FOLD_ROWS,        \
                                  p.to.rows, p.k_pad, p.to, scratch[0]);                      \
    }                                                                                         \
    EXPORT(name)

FOLD(fold_mxfp4, fp4::MXFP4)
FOLD(fold_nvfp4, fp4::NVFP4)
FOLD(fold_mxint8, fp4::MXINT8)

#define FOLD_EXTRAS(name, ENCODING)                                                           \
    KERNEL_BOUNDS(fp4::FOLD_THREADS, 2)                                                       \
    void name(fp4::FoldArgs p) {                                                              \
        SHARED(uint2, entries_here, [fp4::EXTRA_SLICES]);                                      \
        SHARED(fp4::u32, any, [1]);                                                           \
        fp4::fold_extras<ENCODING>(p.codes, p.scales, p.to.rows, p.k_pad, p.to, entries_here, \
                                   any);                                                     \
    }                                                                                         \
    EXPORT(name)

FOLD_EXTRAS(fold_extras_mxfp4, fp4::MXFP4)
FOLD_EXTRAS(fold_extras_nvfp4, fp4::NVFP4)
FOLD_EXTRAS(fold_extras_mxint8, fp4::MXINT8)
