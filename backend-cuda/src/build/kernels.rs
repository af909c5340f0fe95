//! Every kernel, with the type of its arguments.

use std::marker::PhantomData;

use super::arguments::{
    DECODE_SHARED, DecodeArgs, DequantizeArgs, FOLDED_FEW_MXFP4_SHARED, FOLDED_FEW_MXINT8_SHARED,
    FOLDED_FEW_NVFP4_SHARED, FOLDED_MXFP4_SHARED, FOLDED_MXINT8_SHARED, FOLDED_NVFP4_SHARED,
    FoldArgs, FoldedArgs, GroupedArgs, MatmulArgs, PadArgs, PartialArgs, QuantizeArgs,
    QuantizeFoldArgs, RS_MXFP4_32_SHARED, RS_MXFP4_64_SHARED, RS_MXFP4_128_SHARED,
    RS_MXINT8_32_SHARED, RS_MXINT8_64_SHARED, RS_MXINT8_128_SHARED, RowMetaArgs, SwizzleArgs,
    TransformArgs, WGMMA_SHARED, WgmmaArgs, WgmmaRsArgs,
};
use super::sources::{self, Family};

/// A kernel that takes one `A`. Only this file makes one.
#[derive(Debug)]
pub(crate) struct Kernel<A> {
    pub(crate) family: &'static Family,
    pub(crate) name: &'static str,
    /// Bytes of dynamic shared memory of a block.
    pub(crate) shared: u32,
    args: PhantomData<fn(&A)>,
}

impl<A> Kernel<A> {
    /// A kernel of a test.
    #[cfg(all(test, feature = "emulated"))]
    pub(crate) const fn test(family: &'static Family, name: &'static str) -> Self {
        Kernel { family, name, shared: 0, args: PhantomData }
    }
}

/// Declares kernels: their arguments, file, dynamic shared memory and names.
macro_rules! kernels {
    ($($name:ident: $args:ident, $family:ident, $shared:expr, [$($kernel:literal),+];)+) => {
        $(
            pub(crate) static $name: [Kernel<$args>; [$($kernel),+].len()] = [$(Kernel {
                family: &sources::$family,
                name: $kernel,
                shared: $shared as u32,
                args: PhantomData,
            }),+];
        )+

        /// Family, name and bytes of arguments of each.
        #[cfg(test)]
        fn all() -> Vec<(&'static Family, &'static str, usize)> {
            vec![$($((&sources::$family, $kernel, size_of::<$args>()),)+)+]
        }
    };
}

// Lists by float type, encoding or product are in the order of its numbers.
kernels! {
    QUANTIZE: QuantizeArgs, QUANTIZE, 0, ["quantize_f32", "quantize_f16", "quantize_bf16"];
    TRANSFORM_QUANTIZE: QuantizeArgs, QUANTIZE, 0,
        ["transform_quantize_f32", "transform_quantize_f16", "transform_quantize_bf16"];
    TRANSFORM: TransformArgs, QUANTIZE, 0, ["transform_f32", "transform_f16", "transform_bf16"];
    ROW_META: RowMetaArgs, QUANTIZE, 0, ["row_meta"];
    QUANTIZE_FOLD: QuantizeFoldArgs, QUANTIZE_FOLD, 0,
        ["quantize_fold_f32", "quantize_fold_f16", "quantize_fold_bf16"];
    TRANSFORM_QUANTIZE_FOLD: QuantizeFoldArgs, QUANTIZE_FOLD, 0,
        ["transform_quantize_fold_f32", "transform_quantize_fold_f16",
         "transform_quantize_fold_bf16"];
    FOLD: FoldArgs, FOLD, 0, ["fold_mxfp4", "fold_nvfp4", "fold_mxint8"];
    FOLD_EXTRAS: FoldArgs, FOLD, 0,
        ["fold_extras_mxfp4", "fold_extras_nvfp4", "fold_extras_mxint8"];
    DEQUANTIZE: DequantizeArgs, LAYOUT, 0, ["dequantize"];
    PAD_BYTES: PadArgs, LAYOUT, 0, ["pad_bytes"];
    SWIZZLE: SwizzleArgs, LAYOUT, 0, ["swizzle", "unswizzle"];
    MATMUL_NAIVE: MatmulArgs, MATMUL_NAIVE, 0, ["matmul_naive"];
    PARTIAL: PartialArgs, MATMUL_NAIVE, 0,
        ["partial_mxfp4", "partial_nvfp4", "partial_mxint8_mxfp4", "partial_mxint8_nvfp4"];
    MATMUL_MMA: MatmulArgs, MATMUL_MMA, 0,
        ["matmul_mma", "matmul_mma_mxint8_mxfp4", "matmul_mma_mxint8_nvfp4"];
    MATMUL_MMA_GROUPED: GroupedArgs, MATMUL_MMA, 0,
        ["matmul_mma_grouped", "matmul_mma_grouped_mxint8_mxfp4",
         "matmul_mma_grouped_mxint8_nvfp4"];
    FOLDED_MXFP4: FoldedArgs, MATMUL_MMA_FOLDED, FOLDED_MXFP4_SHARED, ["folded_mxfp4"];
    FOLDED_NVFP4: FoldedArgs, MATMUL_MMA_FOLDED, FOLDED_NVFP4_SHARED, ["folded_nvfp4"];
    FOLDED_MXINT8_MXFP4: FoldedArgs, MATMUL_MMA_FOLDED, FOLDED_MXINT8_SHARED,
        ["folded_mxint8_mxfp4"];
    FOLDED_FEW_MXFP4: FoldedArgs, MATMUL_MMA_FOLDED, FOLDED_FEW_MXFP4_SHARED,
        ["folded_few_mxfp4"];
    FOLDED_FEW_NVFP4: FoldedArgs, MATMUL_MMA_FOLDED, FOLDED_FEW_NVFP4_SHARED,
        ["folded_few_nvfp4"];
    FOLDED_FEW_MXINT8_MXFP4: FoldedArgs, MATMUL_MMA_FOLDED, FOLDED_FEW_MXINT8_SHARED,
        ["folded_few_mxint8_mxfp4"];
    FOLDED_GROUPED_MXFP4: GroupedArgs, MATMUL_MMA_FOLDED, FOLDED_FEW_MXFP4_SHARED,
        ["folded_grouped_mxfp4"];
    FOLDED_GROUPED_NVFP4: GroupedArgs, MATMUL_MMA_FOLDED, FOLDED_FEW_NVFP4_SHARED,
        ["folded_grouped_nvfp4"];
    FOLDED_GROUPED_MXINT8_MXFP4: GroupedArgs, MATMUL_MMA_FOLDED, FOLDED_FEW_MXINT8_SHARED,
        ["folded_grouped_mxint8_mxfp4"];
    DECODE_8: DecodeArgs, MATMUL_DECODE, DECODE_SHARED,
        ["matmul_decode_mxfp4_8", "matmul_decode_nvfp4_8", "matmul_decode_mxint8_mxfp4_8",
         "matmul_decode_mxint8_nvfp4_8"];
    DECODE_16: DecodeArgs, MATMUL_DECODE, DECODE_SHARED,
        ["matmul_decode_mxfp4_16", "matmul_decode_nvfp4_16", "matmul_decode_mxint8_mxfp4_16",
         "matmul_decode_mxint8_nvfp4_16"];
    DECODE_GROUPED: GroupedArgs, MATMUL_DECODE, DECODE_SHARED,
        ["matmul_decode_grouped_mxfp4", "matmul_decode_grouped_nvfp4",
         "matmul_decode_grouped_mxint8_mxfp4", "matmul_decode_grouped_mxint8_nvfp4"];
    DECODE_LEFT: DecodeArgs, MATMUL_DECODE, DECODE_SHARED,
        ["matmul_decode_left_mxfp4", "matmul_decode_left_nvfp4",
         "matmul_decode_left_mxint8_mxfp4"];
    WGMMA_MXFP4: WgmmaArgs, MATMUL_WGMMA_MXFP4, WGMMA_SHARED, ["matmul_wgmma_mxfp4"];
    WGMMA_NVFP4: WgmmaArgs, MATMUL_WGMMA_NVFP4, WGMMA_SHARED, ["matmul_wgmma_nvfp4"];
    WGMMA_MXINT8_MXFP4: WgmmaArgs, MATMUL_WGMMA_MXINT8_MXFP4, WGMMA_SHARED,
        ["matmul_wgmma_mxint8_mxfp4"];
    RS_MXFP4_32: WgmmaRsArgs, MATMUL_WGMMA_RS_MXFP4, RS_MXFP4_32_SHARED,
        ["matmul_wgmma_rs_mxfp4_32"];
    RS_MXFP4_64: WgmmaRsArgs, MATMUL_WGMMA_RS_MXFP4, RS_MXFP4_64_SHARED,
        ["matmul_wgmma_rs_mxfp4_64"];
    RS_MXFP4_128: WgmmaRsArgs, MATMUL_WGMMA_RS_MXFP4, RS_MXFP4_128_SHARED,
        ["matmul_wgmma_rs_mxfp4_128"];
    RS_MXINT8_MXFP4_32: WgmmaRsArgs, MATMUL_WGMMA_RS_MXINT8_MXFP4, RS_MXINT8_32_SHARED,
        ["matmul_wgmma_rs_mxint8_mxfp4_32"];
    RS_MXINT8_MXFP4_64: WgmmaRsArgs, MATMUL_WGMMA_RS_MXINT8_MXFP4, RS_MXINT8_64_SHARED,
        ["matmul_wgmma_rs_mxint8_mxfp4_64"];
    RS_MXINT8_MXFP4_128: WgmmaRsArgs, MATMUL_WGMMA_RS_MXINT8_MXFP4, RS_MXINT8_128_SHARED,
        ["matmul_wgmma_rs_mxint8_mxfp4_128"];
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::prebuilt;

    #[test]
    fn every_kernel_s_ptx_takes_as_many_bytes_as_its_arguments_have() {
        let mut declared = 0;
        for (family, name, size) in all() {
            let ptx = prebuilt::image(family).expect("a prebuilt image of these sources");
            let entry = ptx.split_once(&format!(".entry {name}(")).expect(name).1;
            let parameters = entry.split_once(')').unwrap().0.trim();
            let expected = format!(".param .align 8 .b8 {name}_param_0[{size}]");
            assert_eq!(parameters, expected, "{name}");
            declared += 1;
        }
        let entries: usize =
            sources::FAMILIES.iter().map(|f| f.prebuilt.unwrap().matches(".entry ").count()).sum();
        assert_eq!(declared, entries, "a kernel without a declaration");
    }
}
