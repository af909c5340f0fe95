//! Quantization on the device: which kernel, and what it is given (C4, C5).

use fp4_core::{Error, FloatType, PackedShape, QuantSpec};

use crate::build::sources::{QUANTIZE, QUANTIZE_FOLD};
use crate::device::launch::{Arg, blocks_for, int, scale_type, tie};
use crate::operand::folded::Folded;
use crate::operand::packed::CudaOperand;
use crate::operand::tensor::CudaTransform;

/// Rows and columns of a tile of the transform kernel.
const TILE: [usize; 2] = [64, 128];

/// Dense values on the device: address and type.
pub(crate) type Dense = (u64, FloatType);

/// Quantizes the (rows, k) values at `x` into `out`, with the scales at `given` if that is not 0,
/// and describes the rows for the matmul. All shapes have been checked to fit.
pub(crate) fn quantize(
    (x, float_type): Dense,
    shape: PackedShape,
    spec: &QuantSpec,
    transform: Option<&CudaTransform>,
    given: u64,
    out: &mut CudaOperand,
) -> Result<(), Error> {
    out.reshape(shape, false)?;
    let (rows, k_pad) = (shape.rows(), out.k_pad);
    let settings = [
        Arg::I32(int(shape.k())?),
        Arg::I32(int(k_pad)?),
        Arg::I32(int(shape.group().get())?),
        scale_type(shape.scale_type()),
        tie(spec.tie()),
        Arg::F32(spec.scale_scale() * spec.global_scale()),
        Arg::F32(spec.global_scale()),
    ];
    let packed = [
        Arg::Pointer(given),
        Arg::Pointer(out.codes.address()),
        Arg::Pointer(out.scales.address()),
    ];
    if let Some(t) = transform {
        let name = match float_type {
            FloatType::F32 => "transform_quantize_f32",
            FloatType::F16 => "transform_quantize_f16",
            FloatType::Bf16 => "transform_quantize_bf16",
        };
        let mut args = vec![
            Arg::Pointer(x),
            Arg::Pointer(t.values.address()),
            Arg::I32(int(t.shape.block.get())?),
            Arg::I32(i32::from(t.shape.blocks.is_none())),
        ];
        args.extend(packed);
        args.push(Arg::I64(rows as i64));
        args.extend(settings);
        let blocks = rows.div_ceil(TILE[0]) as u64 * (k_pad / TILE[1]) as u64;
        out.gpu.launch((&QUANTIZE, name), blocks, 256, &args)?;
    } else if k_pad > 0 {
        let name = match float_type {
            FloatType::F32 => "quantize_f32",
            FloatType::F16 => "quantize_f16",
            FloatType::Bf16 => "quantize_bf16",
        };
        let mut args = vec![Arg::Pointer(x)];
        args.extend(packed);
        args.extend(settings);
        // Eight columns a thread, whole warps, at most 256 threads.
        let threads = (k_pad / 8).next_multiple_of(32).min(256) as u32;
        out.gpu.launch((&QUANTIZE, name), rows as u64, threads, &args)?;
    }
    out.describe_rows()
}

/// As [`quantize`], and folds what it quantizes, in the same pass over the values; false, and
/// nothing is queued, where there is no memory for the folded form.
pub(crate) fn quantize_and_fold(
    (x, float_type): Dense,
    shape: PackedShape,
    spec: &QuantSpec,
    transform: Option<&CudaTransform>,
    out: &mut CudaOperand,
) -> Result<bool, Error> {
    out.reshape(shape, true)?;
    if !out.fold(Folded::begin)? {
        return Ok(false);
    }
    let k_pad = out.k_pad;
    let packed = [Arg::Pointer(out.codes.address()), Arg::Pointer(out.scales.address())];
    let settings = [
        Arg::I32(int(shape.rows())?),
        Arg::I32(int(shape.k())?),
        Arg::I32(int(k_pad)?),
        scale_type(shape.scale_type()),
        tie(spec.tie()),
        Arg::F32(spec.scale_scale() * spec.global_scale()),
        Arg::F32(spec.global_scale()),
    ];
    let of = out.shape_to_fold()?;
    let folded = &mut out.folded;
    let mut args = vec![Arg::Pointer(x)];
    // Without columns there is nothing to transform.
    if let Some(t) = transform.filter(|_| k_pad > 0) {
        let name = match float_type {
            FloatType::F32 => "transform_quantize_fold_f32",
            FloatType::F16 => "transform_quantize_fold_f16",
            FloatType::Bf16 => "transform_quantize_fold_bf16",
        };
        args.extend([
            Arg::Pointer(t.values.address()),
            Arg::I32(int(t.shape.block.get())?),
            Arg::I32(i32::from(t.shape.blocks.is_none())),
        ]);
        args.extend(packed);
        args.extend(settings);
        args.extend(folded.to(of.meta)?);
        args.push(folded.arrivals());
        let blocks = folded.strips() as u64 * (k_pad / TILE[1]) as u64;
        of.gpu.launch((&QUANTIZE_FOLD, name), blocks, 256, &args)?;
    } else {
        let name = match float_type {
            FloatType::F32 => "quantize_fold_f32",
            FloatType::F16 => "quantize_fold_f16",
            FloatType::Bf16 => "quantize_fold_bf16",
        };
        args.extend(packed);
        args.extend(settings);
        args.extend(folded.to(of.meta)?);
        of.gpu.launch((&QUANTIZE_FOLD, name), folded.row_blocks(), 256, &args)?;
    }
    folded.finish(&of)?;
    Ok(true)
}

impl CudaOperand {
    /// Fills the row metadata, once codes and scales are there; only the matmul formats have it.
    pub(crate) fn describe_rows(&self) -> Result<(), Error> {
        if self.shape.format().is_none() {
            return Ok(());
        }
        let args = [
            Arg::Pointer(self.codes.address()),
            Arg::Pointer(self.scales.address()),
            Arg::Pointer(self.meta.address()),
            Arg::I64(self.shape.rows() as i64),
            Arg::I32(int(self.k_pad)?),
            scale_type(self.shape.scale_type()),
        ];
        // A warp a row, four warps a block.
        let blocks = blocks_for(self.shape.rows(), 4);
        self.gpu.launch((&QUANTIZE, "row_meta"), blocks, 128, &args)
    }
}
