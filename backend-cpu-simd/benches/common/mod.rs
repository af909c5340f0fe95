//! Data and operands of the benches.

#![allow(dead_code, unused_imports, reason = "each bench uses a part")]

mod clock;
mod data;
mod roofline;

pub(crate) use clock::{Clock, fastest, last_level_cache};
pub(crate) use data::{Data, Rng, values};
use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{Encoding, PackedMatrix, QuantSpec, QuantizeInput, Quantizer};
pub(crate) use roofline::{Dot, Read};

/// The matrix quantized with the encoding's usual settings, those of a weight if it is a format.
pub(crate) fn quantized(
    backend: &CpuSimd,
    encoding: Encoding,
    x: &[f32],
    [rows, k]: [usize; 2],
) -> PackedMatrix {
    let amax = x.iter().fold(0f32, |amax, x| amax.max(x.abs()));
    let spec = encoding.format().map_or(QuantSpec::of(encoding), |format| {
        QuantSpec::for_weight(format, amax).expect("finite values")
    });
    let mut packed = PackedMatrix::zeros(spec.shape(rows, k).expect("whole groups"));
    let input = QuantizeInput::new(x, rows, k, &spec).expect("a whole matrix");
    backend.quantize(&input, &mut packed.view_mut()).expect("quantizes");
    packed
}
