//! Data and operands of the benches.

#![allow(dead_code, reason = "each bench uses a part")]

use fp4_backend_cpu_simd::CpuSimd;
use fp4_core::{Encoding, PackedMatrix, QuantSpec, QuantizeInput, Quantizer};

/// How values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Data {
    /// Standard normal.
    Gaussian,
    /// Student's t with 4 degrees of freedom.
    T4,
    /// Normal, with one channel in 512 times 30 to 100.
    Outliers,
}

impl Data {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Data::Gaussian => "gaussian",
            Data::T4 => "t4",
            Data::Outliers => "outliers",
        }
    }
}

/// splitmix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) + 1) as f32 / (1u32 << 24) as f32
    }

    fn gauss(&mut self) -> f32 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.unit()).cos()
    }
}

/// A (rows, k) matrix.
pub(crate) fn values(rng: &mut Rng, data: Data, rows: usize, k: usize) -> Vec<f32> {
    let mut factors = vec![1.0; k];
    if data == Data::Outliers {
        for _ in 0..k / 512 {
            factors[(rng.next() % k as u64) as usize] = 30.0 + 70.0 * rng.unit();
        }
    }
    let value = |rng: &mut Rng, i: usize| match data {
        Data::T4 => {
            let squares: f32 = (0..4).map(|_| rng.gauss().powi(2)).sum();
            rng.gauss() / (squares / 4.0).sqrt()
        }
        _ => rng.gauss() * factors[i % k],
    };
    (0..rows * k).map(|i| value(rng, i)).collect()
}

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
