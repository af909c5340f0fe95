// MXFP4 matmul on Hopper's wgmma: one int8 product for each pair of blocks. See matmul_wgmma.cuh.
// Not yet run on hardware.
#include "matmul_wgmma.cuh"

#if FP4_SM == 90
WGMMA_KERNEL(matmul_wgmma_mxfp4, fp4::MXFP4)
#endif
