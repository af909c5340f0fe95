// The mma.sync matmuls on folded operands, for many rows of A and for up to 64, alone and several
// in one launch. See matmul_mma_folded.cuh. Not yet run on hardware.
#include "matmul_mma_folded.cuh"

#define FOLDED_KERNEL(name, PRODUCT, M, blocks)                                                    \
    KERNEL_BOUNDS(2 * (M), blocks)                                                                 \
    void name(fp4::FoldedArgs p) { fp4::FoldedTile<PRODUCT, M>::run_block(p, (int)blockIdx.x); }         \
    EXPORT(name)

#define FOLDED_GROUPED(name, PRODUCT, M, blocks)                                                   \
    KERNEL_BOUNDS(2 * (M), blocks)                                                                 \
    void name(fp4::GroupedArgs p) { fp4::FoldedTile<PRODUCT, M>::run_one_of(p, (int)blockIdx.x); } \
    EXPORT(name)

FOLDED_KERNEL(folded_mxfp4, fp4::MXFP4, fp4::FOLDED_ROWS, 2)
FOLDED_KERNEL(folded_nvfp4, fp4::NVFP4, fp4::FOLDED_ROWS, 1)
FOLDED_KERNEL(folded_mxint8_mxfp4, fp4::MXINT8_MXFP4, fp4::FOLDED_ROWS, 1)
FOLDED_KERNEL(folded_few_mxfp4, fp4::MXFP4, fp4::FOLDED_FEW_ROWS, 3)
FOLDED_KERNEL(folded_few_nvfp4, fp4::NVFP4, fp4::FOLDED_FEW_ROWS, 2)
FOLDED_KERNEL(folded_few_mxint8_mxfp4, fp4::MXINT8_MXFP4, fp4::FOLDED_FEW_ROWS, 2)
FOLDED_GROUPED(folded_grouped_mxfp4, fp4::MXFP4, fp4::FOLDED_FEW_ROWS, 3)
FOLDED_GROUPED(folded_grouped_nvfp4, fp4::NVFP4, fp4::FOLDED_FEW_ROWS, 2)
FOLDED_GROUPED(folded_grouped_mxint8_mxfp4, fp4::MXINT8_MXFP4, fp4::FOLDED_FEW_ROWS, 2)
