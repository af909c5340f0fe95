// MXFP4 weights as they are packed by few rows of MXFP4, on Hopper's wgmma with its A operand in
// registers. See matmul_wgmma_rs.cuh. Not yet run on hardware.
#include "matmul_wgmma_rs.cuh"

#if FP4_SM == 90
RS_KERNEL(matmul_wgmma_rs_mxfp4_32, fp4::MXFP4, 32, 2)
RS_KERNEL(matmul_wgmma_rs_mxfp4_64, fp4::MXFP4, 64, 2)
RS_KERNEL(matmul_wgmma_rs_mxfp4_128, fp4::MXFP4, 128, 2)
#endif
