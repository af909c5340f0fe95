//! Dequantization and scale layouts on the device (C4.4, C7, C10): which kernel, and what it is
//! given.

use fp4_core::{Error, FloatType, Swizzle};

use crate::build::arguments::{DequantizeArgs, SwizzleArgs, element, float_type, scale_type};
use crate::build::kernels::{DEQUANTIZE, SWIZZLE};
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};
use crate::operand::packed::CudaOperand;

/// Queues the values of an operand under `global_scale` into `to`, row-major.
pub(crate) fn dequantize(
    operand: &CudaOperand,
    global_scale: f32,
    (to, float): (&mut Buffer, FloatType),
) -> Result<(), Error> {
    let shape = operand.shape;
    let len = shape.rows() * shape.k();
    to.reserve(&operand.gpu.stream, len * float.bytes())?;
    let args = DequantizeArgs {
        codes: operand.codes.pointer(),
        scales: operand.scales.pointer(),
        out: to.pointer(),
        rows: shape.rows() as i64,
        k: int(shape.k())?,
        k_pad: int(operand.k_pad)?,
        element: element(shape.element()),
        group: int(shape.group().get())?,
        scale_type: scale_type(shape.scale_type()),
        global_scale,
        out_type: float_type(float),
        unused: 0,
    };
    // SAFETY: the operand has the bytes of its shape, and `to` room for its values.
    unsafe { operand.gpu.launch(&DEQUANTIZE[0], Grid::for_each(len / 2), &args) }
}

/// Which way scale bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Swizzle,
    Unswizzle,
}

/// Queues scale bytes from one layout to the other. `from` holds all bytes of its layout.
pub(crate) fn rearrange(
    gpu: &Gpu,
    layout: &Swizzle,
    direction: Direction,
    from: &Buffer,
    to: &mut Buffer,
) -> Result<(), Error> {
    let plain = layout.rows() * layout.cols();
    let (kernel, needed, len) = match direction {
        Direction::Swizzle => (&SWIZZLE[0], plain, layout.len()),
        Direction::Unswizzle => (&SWIZZLE[1], layout.len(), plain),
    };
    debug_assert!(from.len() >= needed);
    to.reserve(&gpu.stream, len)?;
    int(layout.cols())?;
    let (rows, cols) = (layout.rows() as i64, layout.cols() as i64);
    let args = SwizzleArgs { from: from.pointer(), to: to.pointer(), rows, cols };
    // SAFETY: both buffers have the bytes of their layouts.
    unsafe { gpu.launch(kernel, Grid::for_each(len), &args) }
}
