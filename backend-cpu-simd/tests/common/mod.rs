//! Shared by the tests: random numbers, backends with 1 to 4 threads, and bit comparison.

#![allow(dead_code, reason = "each test file uses a part")]

use std::sync::Arc;

use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{
    Encoding, Float, Format, GroupSize, PackedMatrix, PackedShape, QuantSpec, ScaleType, TieMode,
};

/// splitmix64 (Steele, Lea and Flood, 2014).
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.next() as u8
    }

    /// Uniform in (0, 1].
    pub(crate) fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    pub(crate) fn gauss(&mut self) -> f32 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        (radius * (std::f64::consts::TAU * self.unit()).cos()) as f32
    }
}

/// Runs a test on every instruction set that this CPU has kernels for.
pub(crate) fn each_isa(test: impl Fn(&CpuSimd)) {
    for isa in Isa::available() {
        println!("{isa}:");
        let backend = CpuSimd::with_isa(isa).unwrap();
        assert_eq!(backend.isa(), isa);
        test(&backend);
    }
}

/// A backend on pools of 1 to 8 threads, and on the global pool.
pub(crate) fn backends(on: &CpuSimd) -> Vec<(String, CpuSimd)> {
    let mut all = vec![("global pool".into(), on.clone())];
    // WASM has no threads: rayon runs everything on the current one.
    for threads in 1..=if cfg!(target_family = "wasm") { 0 } else { 8 } {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        all.push((format!("{threads} threads"), on.clone().with_pool(Arc::new(pool))));
    }
    all
}

/// How the scale bytes and codes of a random operand are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scales {
    /// Near one: every output is narrow.
    Close,
    /// Every byte except NaN.
    Full,
    /// Every byte, NaN included, but rarely.
    Nan,
    /// Exponents within a window of this many octaves.
    Window(u8),
    /// Zero scales and smallest scales among others; most codes +-0.
    Sparse,
}

pub(crate) const SCALES: [Scales; 7] = [
    Scales::Close,
    Scales::Full,
    Scales::Nan,
    Scales::Window(20),
    Scales::Window(45),
    Scales::Window(120),
    Scales::Sparse,
];

/// A random packed matrix.
pub(crate) fn operand(
    rng: &mut Rng,
    format: Format,
    rows: usize,
    k: usize,
    how: Scales,
) -> PackedMatrix {
    let shape = PackedShape::of(format, rows, k).unwrap();
    let mut codes: Vec<u8> = (0..shape.codes_len()).map(|_| rng.byte()).collect();
    let nan = |byte: u8| match format {
        Format::MxFp4 => byte == 0xFF,
        Format::NvFp4 => byte & 0x7F == 0x7F,
    };
    let scale = |rng: &mut Rng| loop {
        let byte = match how {
            Scales::Close if format == Format::MxFp4 => 125 + rng.byte() % 5,
            Scales::Close => 0x30 + rng.byte() % 16,
            Scales::Full => rng.byte(),
            Scales::Nan if rng.below(40) == 0 => {
                return rng.byte() | 0x7F;
            }
            Scales::Nan => 0x40 + rng.byte() % 8,
            Scales::Window(octaves) if format == Format::MxFp4 => 60 + rng.byte() % octaves,
            Scales::Window(_) => rng.byte(),
            Scales::Sparse => [0x00, 0x80, 0x01, 0xFE, 0x7E][rng.below(5)],
        };
        if !nan(byte) {
            return byte;
        }
    };
    let scales: Vec<u8> = (0..shape.scales_len()).map(|_| scale(rng)).collect();
    if how == Scales::Sparse {
        for group in codes.chunks_mut(format.group().get() / 2) {
            if rng.below(3) > 0 {
                group.fill([0x00, 0x80, 0x08, 0x88][rng.below(4)]);
            }
        }
    }
    PackedMatrix::new(shape, codes, scales).unwrap()
}

/// A random matrix of MXINT8, as [`operand`]: elements of every byte, and groups of zeros and of
/// -128.
pub(crate) fn activations(rng: &mut Rng, m: usize, k: usize, how: Scales) -> PackedMatrix {
    let shape = PackedShape::encoded(Encoding::MxInt8, m, k).unwrap();
    let mut elements: Vec<u8> = (0..shape.codes_len()).map(|_| rng.byte()).collect();
    let scale = |rng: &mut Rng| match how {
        Scales::Close => 125 + rng.byte() % 5,
        Scales::Nan if rng.below(40) == 0 => 0xFF,
        Scales::Nan => 120 + rng.byte() % 9,
        Scales::Window(octaves) => 60 + rng.byte() % octaves,
        Scales::Sparse => [0, 1, 254, 127][rng.below(4)],
        Scales::Full => rng.byte() % 255,
    };
    let scales = (0..shape.scales_len()).map(|_| scale(rng)).collect();
    for group in elements.chunks_mut(32) {
        match rng.below(9) {
            0 => group.fill(0),
            1 => group.fill(0x80),
            _ => {}
        }
    }
    PackedMatrix::new(shape, elements, scales).unwrap()
}

/// Row scales or biases of every kind: usual, subnormal, huge, zeros, infinities, NaNs with
/// payloads.
pub(crate) fn values(rng: &mut Rng, len: usize) -> Vec<f32> {
    let value = |rng: &mut Rng| match rng.below(12) {
        0 => f32::from_bits(rng.next() as u32),
        1 => f32::from_bits(rng.next() as u32 & 0x807F_FFFF),
        2 => [f32::INFINITY, f32::NEG_INFINITY, f32::MAX, -f32::MAX][rng.below(4)],
        3 => f32::from_bits([0x7FC0_0001, 0xFFC1_2345, 0x7F80_0001][rng.below(3)]),
        4 => [0.0, -0.0][rng.below(2)],
        5 => rng.gauss() * 1e-38,
        _ => rng.gauss(),
    };
    (0..len).map(|_| value(rng)).collect()
}

/// Asserts that two slices of a float type have the same bits; returns how many were compared.
pub(crate) fn same_bits<T: Float>(got: &[T], expected: &[T], case: &str) -> usize {
    assert_eq!(got.len(), expected.len(), "{case}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let bits = |x: &T| -> u32 {
            let bytes = wide::bytemuck::bytes_of(x);
            bytes.iter().rev().fold(0, |bits, &b| bits << 8 | u32::from(b))
        };
        assert_eq!(bits(g), bits(e), "{case}: element {i} is {g:?}, expected {e:?}");
    }
    got.len()
}

/// Settings of every scale type, group and tie mode.
pub(crate) fn specs() -> Vec<QuantSpec> {
    let mut specs = Vec::new();
    for scale in ScaleType::ALL {
        for group in GroupSize::ALL {
            let settings: [(f32, f32); 3] = match scale {
                ScaleType::E8M0 => [(1.0 / 3.0, 4.0), (1.0, 6.0), (1e-30, 3.7)],
                ScaleType::E4M3 => [(0.1, 6.0), (1e-3, 6.0), (1e-40, 5.0)],
            };
            for (gs, ss) in settings {
                for tie in TieMode::ALL {
                    specs.push(QuantSpec::new(scale, group, gs, ss).unwrap().with_tie(tie));
                }
            }
        }
    }
    specs
}
