//! The arguments of the kernels, as `kernels/arguments.cuh` declares them, and its constants.
//!
//! Every struct here is compared with the header when this crate is compiled
//! ([`header`](super::header)); what a field is for is said there.

use cudarc::driver::DeviceRepr;
use fp4_core::{Element, Encoding, FloatType, Format, Product, ScaleType, TieMode, Unsupported};

use super::header::{CType, Field, constant, expect_struct};

/// A device address, 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub(crate) struct Pointer(pub(crate) u64);

// SAFETY: it is a u64.
unsafe impl bytemuck::NoUninit for Pointer {}

impl Pointer {
    pub(crate) const NULL: Pointer = Pointer(0);

    /// The address so many bytes further.
    pub(crate) const fn plus(self, bytes: usize) -> Self {
        Pointer(self.0 + bytes as u64)
    }
}

impl CType for Pointer {
    const NAME: &'static str = "*";
}

impl CType for u64 {
    const NAME: &'static str = "u64";
}

/// Declares structs of the header.
macro_rules! structs {
    ($($name:ident { $($field:ident: $type:ty,)+ })+) => {
        $(
            #[derive(Debug, Clone, Copy)]
            #[repr(C)]
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)+
            }

            // SAFETY: plain numbers, and laid out as the kernels have it: compared below.
            unsafe impl DeviceRepr for $name {}

            // SAFETY: `repr(C)`, every field is such a type itself, and their sizes add up.
            unsafe impl bytemuck::NoUninit for $name {}

            const _: () = assert!(0 $(+ size_of::<$type>())+ == size_of::<$name>(), "padding");

            impl CType for $name {
                const NAME: &'static str = stringify!($name);
            }

            const _: () = expect_struct(
                stringify!($name),
                &[$(Field {
                    name: stringify!($field),
                    c_type: <$type as CType>::NAME,
                    offset: core::mem::offset_of!($name, $field),
                },)+],
                size_of::<$name>(),
            );
        )+
    };
}

structs! {
    RowMeta { low: i32, high: i32, nan: u16, least: u8, most: u8, live: i32, }
    PackedOperand { codes: Pointer, scales: Pointer, meta: Pointer, }
    FoldedOperand {
        blocks: Pointer,
        entries: Pointer,
        used: Pointer,
        incomplete: Pointer,
        bases: Pointer,
        meta: Pointer,
        rows: i32,
        extra: i32,
    }
    Outputs {
        out: Pointer,
        row_scales: Pointer,
        bias: Pointer,
        alpha: f32,
        out_type: i32,
    }
    MatmulArgs {
        a: PackedOperand,
        b: PackedOperand,
        outputs: Outputs,
        paths: Pointer,
        m: i32,
        n: i32,
        k_pad: i32,
        product: i32,
        joint_limit: i32,
        k_folds: i32,
        left: Pointer,
        left_rows: i32,
        unused: i32,
    }
    FoldedArgs {
        a: FoldedOperand,
        b: FoldedOperand,
        outputs: Outputs,
        sums: Pointer,
        arrivals: Pointer,
        left: Pointer,
        paths: Pointer,
        k_pad: i32,
        ranges: i32,
        range_slices: i32,
        first_tile: i32,
    }
    GroupedArgs {
        products: Pointer,
        ends: Pointer,
        left: Pointer,
        count: i32,
        left_rows: i32,
    }
    PartialArgs {
        a: PackedOperand,
        b: PackedOperand,
        sums: Pointer,
        nan: Pointer,
        m: i32,
        n: i32,
        k_pad: i32,
        first: i32,
        end: i32,
        unused: i32,
    }
    DecodeArgs {
        a: PackedOperand,
        b: PackedOperand,
        outputs: Outputs,
        sums: Pointer,
        arrivals: Pointer,
        left: Pointer,
        paths: Pointer,
        m: i32,
        n: i32,
        k_pad: i32,
        range: i32,
        left_m: i32,
        left_n: i32,
    }
    WgmmaArgs {
        a: FoldedOperand,
        b: FoldedOperand,
        outputs: Outputs,
        zeros: Pointer,
        left: Pointer,
        paths: Pointer,
        sums: Pointer,
        arrivals: Pointer,
        k_pad: i32,
        ranges: i32,
        range_slices: i32,
        unused: i32,
    }
    WgmmaRsArgs {
        a: FoldedOperand,
        b: PackedOperand,
        outputs: Outputs,
        sums: Pointer,
        arrivals: Pointer,
        left: Pointer,
        paths: Pointer,
        n: i32,
        k_pad: i32,
        range_slices: i32,
        unused: i32,
    }
    Settings {
        element: i32,
        group: i32,
        scale_type: i32,
        tie: i32,
        divisor: f32,
        global_scale: f32,
        max_scale: f32,
        scale_scale: f32,
    }
    Counts { clipped: u64, scale_max: u64, flushed: u64, nan_groups: u64, }
    QuantizeArgs {
        x: Pointer,
        transform: Pointer,
        given: Pointer,
        codes: Pointer,
        scales: Pointer,
        counts: Pointer,
        row_scales: Pointer,
        meta: Pointer,
        rows: i64,
        k: i32,
        k_pad: i32,
        block: i32,
        shared_block: i32,
        set: Settings,
    }
    TransformArgs {
        x: Pointer,
        transform: Pointer,
        out: Pointer,
        rows: i64,
        k: i32,
        k_pad: i32,
        block: i32,
        shared_block: i32,
    }
    QuantizeFoldArgs { quantize: QuantizeArgs, to: FoldedOperand, arrivals: Pointer, }
    RowMetaArgs { operand: PackedOperand, rows: i64, k_pad: i32, encoding: i32, }
    FoldArgs {
        codes: Pointer,
        scales: Pointer,
        to: FoldedOperand,
        k_pad: i32,
        unused: i32,
    }
    DequantizeArgs {
        codes: Pointer,
        scales: Pointer,
        out: Pointer,
        rows: i64,
        k: i32,
        k_pad: i32,
        element: i32,
        group: i32,
        scale_type: i32,
        global_scale: f32,
        out_type: i32,
        unused: i32,
    }
    PadArgs { from: Pointer, to: Pointer, rows: i64, from_cols: i32, to_cols: i32, }
    SwizzleArgs { from: Pointer, to: Pointer, rows: i64, cols: i64, }
}

/// Declares constants of the header.
macro_rules! constants {
    ($($name:ident)+) => {
        $(pub(crate) const $name: usize = constant(stringify!($name));)+
    };
}

constants! {
    STRIP_ROWS STRIP_COLS
    NAIVE_TILE MMA_TILE MMA_THREADS
    DECODE_ROWS DECODE_STAGE_K DECODE_SHARED
    TILE_ROWS SLICE_K MXFP4_PLANES NVFP4_PLANES MXINT8_PLANES FOLD_ROWS EXTRA_SLICES
    FOLDED_ROWS FOLDED_FEW_ROWS FOLDED_COLS
    FOLDED_MXFP4_SHARED FOLDED_NVFP4_SHARED FOLDED_MXINT8_SHARED
    FOLDED_FEW_MXFP4_SHARED FOLDED_FEW_NVFP4_SHARED FOLDED_FEW_MXINT8_SHARED
    WGMMA_THREADS WGMMA_CLUSTER WGMMA_SHARED
    RS_THREADS RS_ROWS RS_RANGE_SLICES RS_SPREAD
    RS_MXFP4_32_SHARED RS_MXFP4_64_SHARED RS_MXFP4_128_SHARED
    RS_MXINT8_32_SHARED RS_MXINT8_64_SHARED RS_MXINT8_128_SHARED
    NVFP4_INT64_GROUPS EXACT_LIMBS
}

/// The number by which the kernels know a type.
pub(crate) const fn scale_type(scale: ScaleType) -> i32 {
    (match scale {
        ScaleType::E8M0 => const { constant("E8M0") },
        ScaleType::E4M3 => const { constant("E4M3") },
    }) as i32
}

/// As [`scale_type`].
pub(crate) const fn float_type(float: FloatType) -> i32 {
    (match float {
        FloatType::F32 => const { constant("F32") },
        FloatType::F16 => const { constant("F16") },
        FloatType::Bf16 => const { constant("BF16") },
    }) as i32
}

/// As [`scale_type`].
pub(crate) const fn tie(mode: TieMode) -> i32 {
    (match mode {
        TieMode::Even => const { constant("TIE_EVEN") },
        TieMode::Zero => const { constant("TIE_ZERO") },
        TieMode::Down => const { constant("TIE_DOWN") },
        TieMode::Up => const { constant("TIE_UP") },
    }) as i32
}

/// As [`scale_type`].
pub(crate) const fn element(element: Element) -> i32 {
    (match element {
        Element::E2m1 => const { constant("E2M1") },
        Element::Int8 => const { constant("INT8") },
    }) as i32
}

/// As [`scale_type`].
///
/// # Errors
/// [`Unsupported::Encodings`] for one that the kernels do not know.
pub(crate) const fn encoding(encoding: Encoding) -> Result<i32, Unsupported> {
    Ok((match encoding {
        Encoding::MxFp4 => const { constant("MXFP4") },
        Encoding::NvFp4 => const { constant("NVFP4") },
        Encoding::MxInt8 => const { constant("MXINT8") },
        a => return Err(Unsupported::Encodings { a, b: a }),
    }) as i32)
}

/// As [`encoding`].
///
/// # Errors
/// [`Unsupported::Encodings`] for operands that the kernels do not multiply.
pub(crate) const fn product(product: Product) -> Result<i32, Unsupported> {
    Ok((match (product.a, product.b) {
        (Encoding::MxFp4, Format::MxFp4) => const { constant("MXFP4") },
        (Encoding::NvFp4, Format::NvFp4) => const { constant("NVFP4") },
        (Encoding::MxInt8, Format::MxFp4) => const { constant("MXINT8_MXFP4") },
        (Encoding::MxInt8, Format::NvFp4) => const { constant("MXINT8_NVFP4") },
        (a, Format::MxFp4) => return Err(Unsupported::Encodings { a, b: Encoding::MxFp4 }),
        (a, Format::NvFp4) => return Err(Unsupported::Encodings { a, b: Encoding::NvFp4 }),
    }) as i32)
}

/// Digits of an element of the folded form.
///
/// # Errors
/// As [`encoding`].
pub(crate) const fn planes(encoding: Encoding) -> Result<usize, Unsupported> {
    match encoding {
        Encoding::MxFp4 => Ok(MXFP4_PLANES),
        Encoding::NvFp4 => Ok(NVFP4_PLANES),
        Encoding::MxInt8 => Ok(MXINT8_PLANES),
        a => Err(Unsupported::Encodings { a, b: a }),
    }
}
