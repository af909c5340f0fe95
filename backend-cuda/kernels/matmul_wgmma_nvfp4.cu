// NVFP4 matmul on Hopper's wgmma: three int8 products of base-64 digits for each pair of blocks.
// See matmul_wgmma.cuh. Not yet run on hardware.
#include "matmul_wgmma.cuh"

#if FP4_SM == 90
WGMMA_KERNEL(matmul_wgmma_nvfp4, fp4::NVFP4)
#endif
