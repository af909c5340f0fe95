// MXFP4 weights as they are packed by few rows of MXINT8, on Hopper's wgmma with its A operand in
// registers. See matmul_wgmma_rs.cuh. Not yet run on hardware.
#include "matmul_wgmma_rs.cuh"

#if FP4_SM == 90
RS_KERNEL(matmul_wgmma_rs_mxint8_mxfp4_32, fp4::MXINT8_MXFP4, 32, 2)
RS_KERNEL(matmul_wgmma_rs_mxint8_mxfp4_64, fp4::MXINT8_MXFP4, 64, 2)
RS_KERNEL(matmul_wgmma_rs_mxint8_mxfp4_128, fp4::MXINT8_MXFP4, 128, 1)
#endif
