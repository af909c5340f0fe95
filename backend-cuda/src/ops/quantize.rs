//! Quantization on the device: which kernel, and what it is given (C4, C5, C10).

use fp4_core::{Error, FloatType, PackedShape, QuantSpec};

use crate::build::arguments::{
    Counts, FOLD_ROWS, Pointer, QuantizeArgs, QuantizeFoldArgs, RowMetaArgs, STRIP_COLS,
    STRIP_ROWS, Settings, TransformArgs, element, encoding, float_type, scale_type, tie,
};
use crate::build::kernels::{
    QUANTIZE, QUANTIZE_FOLD, ROW_META, TRANSFORM, TRANSFORM_QUANTIZE, TRANSFORM_QUANTIZE_FOLD,
};
use crate::device::launch::{Grid, int};
use crate::operand::folded::Folded;
use crate::operand::packed::CudaOperand;
use crate::operand::tensor::CudaTransform;

/// Threads of a block of a transform kernel: 16 across the columns, 16 down the rows.
const TRANSFORM_THREADS: usize = 256;

/// Fewer rows than this do not fill a large device with blocks of 256 threads.
const FEW_ROWS: usize = 512;

/// What is quantized, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Quantization<'a> {
    /// The (rows, k) values on the device, and their type.
    pub(crate) x: (Pointer, FloatType),
    pub(crate) shape: PackedShape,
    pub(crate) spec: &'a QuantSpec,
    pub(crate) transform: Option<&'a CudaTransform>,
    /// The scale bytes, null if they are to be computed.
    pub(crate) given: Pointer,
    /// Whether to count what it does to the values.
    pub(crate) counts: bool,
}

impl Quantization<'_> {
    /// The kernel's arguments, with the counters at zero if there are any.
    fn arguments(&self, out: &mut CudaOperand) -> Result<QuantizeArgs, Error> {
        let mut counts = Pointer::NULL;
        if self.counts {
            out.counts.zero(&out.gpu.stream, size_of::<Counts>())?;
            counts = out.counts.pointer();
        }
        let (spec, scale) = (self.spec, self.shape.scale_type());
        Ok(QuantizeArgs {
            x: self.x.0,
            transform: self.transform.map_or(Pointer::NULL, |t| t.values.pointer()),
            given: self.given,
            codes: out.codes.pointer(),
            scales: out.scales.pointer(),
            counts,
            row_scales: out.row_scales(),
            meta: Pointer::NULL,
            rows: self.shape.rows() as i64,
            k: int(self.shape.k())?,
            k_pad: int(out.k_pad)?,
            block: int(self.transform.map_or(0, |t| t.shape.block.get()))?,
            shared_block: i32::from(self.transform.is_some_and(|t| t.shape.blocks.is_none())),
            set: Settings {
                element: element(self.shape.element()),
                group: int(self.shape.group().get())?,
                scale_type: scale_type(scale),
                tie: tie(spec.tie()),
                divisor: spec.scale_scale() * spec.global_scale(),
                global_scale: spec.global_scale(),
                max_scale: scale.max(),
                scale_scale: spec.scale_scale(),
            },
        })
    }
}

impl<'a> Quantization<'a> {
    /// What is left to do. Of rows with scales of their own the transform is a launch before, and
    /// what it writes is quantized: a tile does not see a whole row.
    fn after_transform(&self, out: &mut CudaOperand) -> Result<Quantization<'a>, Error> {
        let Some(t) = self.transform.filter(|_| self.spec.row_scales()) else { return Ok(*self) };
        let ([rows, k], float_type) = ([self.shape.rows(), self.shape.k()], self.x.1);
        let overflow = Error::ShapeOverflow { rows, cols: k };
        let bytes = rows.checked_mul(k).and_then(|n| n.checked_mul(float_type.bytes()));
        out.transformed.reserve(&out.gpu.stream, bytes.ok_or(overflow)?)?;
        let args = TransformArgs {
            x: self.x.0,
            transform: t.values.pointer(),
            out: out.transformed.pointer(),
            rows: rows as i64,
            k: int(k)?,
            k_pad: int(out.k_pad)?,
            block: int(t.shape.block.get())?,
            shared_block: i32::from(t.shape.blocks.is_none()),
        };
        let kernel = &TRANSFORM[self::float_type(float_type) as usize];
        let grid = Grid::row(tiles(rows, out.k_pad), TRANSFORM_THREADS);
        // SAFETY: `x` has rows * k values, the transform the blocks of its shape, and `transformed`
        // room for as many values as `x`.
        unsafe { out.gpu.launch(kernel, grid, &args)? };
        Ok(Quantization { x: (args.out, float_type), transform: None, ..*self })
    }
}

/// Tiles of a transform kernel.
fn tiles(rows: usize, k_pad: usize) -> usize {
    rows.div_ceil(STRIP_ROWS) * (k_pad / STRIP_COLS)
}

/// Quantizes into `out`, and describes the rows for the matmul. All shapes have been checked to
/// fit.
pub(crate) fn quantize(what: &Quantization<'_>, out: &mut CudaOperand) -> Result<(), Error> {
    out.reshape(what.shape, false, what.spec.row_scales())?;
    let what = &what.after_transform(out)?;
    let mut args = what.arguments(out)?;
    let (rows, k_pad, float) = (what.shape.rows(), out.k_pad, float_type(what.x.1) as usize);
    let (kernel, grid) = if what.transform.is_some() {
        (&TRANSFORM_QUANTIZE[float], Grid::row(tiles(rows, k_pad), TRANSFORM_THREADS))
    } else {
        // Rows without columns have scales all the same.
        let any = k_pad > 0 || what.spec.row_scales();
        (&QUANTIZE[float], Grid::row(if any { rows } else { 0 }, row_threads(rows, k_pad)))
    };
    // A block that sees whole rows describes them, too.
    let describes = what.transform.is_none() && k_pad > 0 && out.shape.encoding().is_some();
    if describes {
        args.meta = out.packed().meta;
    }
    // SAFETY: `x` has rows * k values, a transform the blocks of its shape, and given scales one
    // for each group, as the callers have checked; `out` has been given this shape.
    unsafe { out.gpu.launch(kernel, grid, &args)? };
    if describes { Ok(()) } else { out.describe_rows() }
}

/// Threads for a row: eight columns each at a time, whole warps. Few rows leave most of a device
/// idle, so they get as many as they have work for; of many, 256 walk along each.
fn row_threads(rows: usize, k_pad: usize) -> usize {
    let most = if rows < FEW_ROWS { 1024 } else { 256 };
    (k_pad / 8).next_multiple_of(32).clamp(32, most)
}

/// As [`quantize`], and folds what it quantizes, in the same pass over the values; false, and
/// nothing is queued, where there is no memory for the folded form. It takes no given scales.
pub(crate) fn quantize_and_fold(
    what: &Quantization<'_>,
    out: &mut CudaOperand,
) -> Result<bool, Error> {
    out.reshape(what.shape, true, what.spec.row_scales())?;
    if !out.fold(Folded::begin)? {
        return Ok(false);
    }
    let what = &what.after_transform(out)?;
    let quantize = what.arguments(out)?;
    let (k_pad, float) = (out.k_pad, float_type(what.x.1) as usize);
    let of = out.shape_to_fold()?;
    let folded = &mut out.folded;
    let to = folded.operand(of.rows, of.packed.meta)?;
    let args = QuantizeFoldArgs { quantize, to, arrivals: folded.arrivals() };
    // Without columns there is nothing to transform.
    let (kernel, grid) = if what.transform.is_some() && k_pad > 0 {
        let tiles = folded.strips() * (k_pad / STRIP_COLS);
        (&TRANSFORM_QUANTIZE_FOLD[float], Grid::row(tiles, TRANSFORM_THREADS))
    } else {
        (&QUANTIZE_FOLD[float], Grid::row(folded.row_blocks(), 32 * FOLD_ROWS))
    };
    // SAFETY: as in `quantize`; the folded form has been begun for this shape.
    unsafe { of.gpu.launch(kernel, grid, &args)? };
    folded.finish(&of)?;
    Ok(true)
}

impl CudaOperand {
    /// Fills the row metadata, once codes and scales are there; only operands of a matmul have it.
    pub(crate) fn describe_rows(&self) -> Result<(), Error> {
        let Some(known) = self.shape.encoding() else { return Ok(()) };
        let args = RowMetaArgs {
            operand: self.packed(),
            rows: self.shape.rows() as i64,
            k_pad: int(self.k_pad)?,
            encoding: encoding(known)?,
        };
        // A warp a row, four warps a block.
        let grid = Grid::row(self.shape.rows().div_ceil(4), 128);
        // SAFETY: the operand has the bytes of its shape.
        unsafe { self.gpu.launch(&ROW_META[0], grid, &args) }
    }

    /// What the last quantization that was to be counted did. This waits for the device.
    pub(crate) fn counted(&self) -> Result<Counts, Error> {
        let mut counts = [0u64; 4];
        self.counts.download(&self.gpu.stream, bytemuck::cast_slice_mut(&mut counts))?;
        self.gpu.synchronize()?;
        let [clipped, scale_max, flushed, nan_groups] = counts;
        Ok(Counts { clipped, scale_max, flushed, nan_groups })
    }
}

#[cfg(all(test, feature = "emulated"))]
mod tests {
    use fp4_core::Format;
    use fp4_core::backend::{Resident, Source};

    use super::*;
    use crate::{Cuda, MatmulKernel};

    /// The metadata of an operand's rows.
    fn described(of: &CudaOperand) -> Vec<[i32; 4]> {
        let mut meta = vec![[-1i32; 4]; of.shape.rows()];
        of.meta.download(&of.gpu.stream, bytemuck::cast_slice_mut(&mut meta)).unwrap();
        of.gpu.synchronize().unwrap();
        meta
    }

    #[test]
    fn rows_are_described_as_by_the_kernel_that_only_describes() {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::Mma);
        let mut out = cuda.empty_operand().unwrap();
        let (mut spreads, mut nans, mut dead) = (0, 0, 0);
        let int8 = QuantSpec::mxint8();
        let specs = Format::ALL.map(QuantSpec::usual).into_iter().chain([int8]);
        for spec in specs {
            // A warp, several, 1024 threads that take a second step; rows with and without values.
            for (rows, k) in [(1, 32), (7, 416), (2, 8256), (5, 64)] {
                let mut x: Vec<f32> = (0..rows * k)
                    .map(|i| {
                        [1.0, -3.5, 0.0, 1e-3][(i * 7 + i / 32) % 4]
                            * 2f32.powi((i / 32 % 9) as i32)
                    })
                    .collect();
                // A row of zeros, one of them, one with a NaN, and one with an infinity.
                x[..k].fill(-0.0);
                if rows > 4 {
                    x[k + 31] = f32::NAN;
                    x[2 * k + 1] = f32::INFINITY;
                    x[3 * k..3 * k + 32].fill(0.0);
                }
                for counts in [false, true] {
                    let mut asked = Default::default();
                    let counted = counts.then_some(&mut asked);
                    let from = Source::Host((&x[..]).into());
                    cuda.quantize_resident(from, [rows, k], &spec, None, &mut out, counted)
                        .unwrap();
                    let merged = described(&out);
                    out.describe_rows().unwrap();
                    assert_eq!(merged, described(&out), "{spec:?} {rows}x{k} {counts}");
                    spreads += merged.iter().filter(|m| m[1] > m[0]).count();
                    nans += merged.iter().filter(|m| m[2] != 0).count();
                    dead += merged.iter().filter(|m| m[3] == 0).count();
                }
            }
        }
        assert!(spreads > 5 && nans > 5 && dead > 5, "{spreads} {nans} {dead}");
    }

    #[test]
    fn few_rows_are_shared_by_many_threads() {
        assert_eq!([row_threads(1, 8192), row_threads(511, 4096)], [1024, 512]);
        assert_eq!([row_threads(512, 8192), row_threads(1, 128), row_threads(1, 0)], [256, 32, 32]);
    }
}
