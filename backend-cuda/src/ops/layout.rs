//! Dequantization and scale layouts on the device (C4.4, C7): which kernel, and what it is given.

use fp4_core::{Error, FloatType, Swizzle};

use crate::build::sources::LAYOUT;
use crate::device::gpu::Gpu;
use crate::device::launch::{Arg, blocks_for, float_type, int, scale_type};
use crate::operand::packed::CudaOperand;

/// Queues the values of an operand under `global_scale` into device memory, row-major.
pub(crate) fn dequantize(
    operand: &CudaOperand,
    global_scale: f32,
    (to, float): (u64, FloatType),
) -> Result<(), Error> {
    let shape = operand.shape;
    let args = [
        Arg::Pointer(operand.codes.address()),
        Arg::Pointer(operand.scales.address()),
        Arg::Pointer(to),
        Arg::I64(shape.rows() as i64),
        Arg::I32(int(shape.k())?),
        Arg::I32(int(operand.k_pad)?),
        Arg::I32(int(shape.group().get())?),
        scale_type(shape.scale_type()),
        Arg::F32(global_scale),
        float_type(float),
    ];
    let pairs = shape.rows() * shape.k() / 2;
    operand.gpu.launch((&LAYOUT, "dequantize"), blocks_for(pairs, 256), 256, &args)
}

/// Which way scale bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    Swizzle,
    Unswizzle,
}

/// Queues scale bytes from one layout to the other, `len` bytes of it.
pub(crate) fn rearrange(
    gpu: &Gpu,
    layout: &Swizzle,
    direction: Direction,
    from: u64,
    to: u64,
) -> Result<(), Error> {
    let (kernel, len) = match direction {
        Direction::Swizzle => ("swizzle", layout.len()),
        Direction::Unswizzle => ("unswizzle", layout.rows() * layout.cols()),
    };
    let args = [
        Arg::Pointer(from),
        Arg::Pointer(to),
        Arg::I64(layout.rows() as i64),
        Arg::I32(int(layout.cols())?),
    ];
    gpu.launch((&LAYOUT, kernel), blocks_for(len, 256), 256, &args)
}
