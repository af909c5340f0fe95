// MXINT8 by MXFP4 matmul on Hopper's wgmma: both nibbles of the elements by the one digit of the
// weights. See matmul_wgmma.cuh. Not yet run on hardware.
#include "matmul_wgmma.cuh"

#if FP4_SM == 90
WGMMA_KERNEL(matmul_wgmma_mxint8_mxfp4, fp4::MXINT8_MXFP4)
#endif
