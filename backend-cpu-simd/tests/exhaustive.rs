//! The quantizer beside every boundary, against a division in f32 and core's conversion, on every
//! instruction set of this CPU: units of every significand, and every f16 and bf16 under many
//! units.
//!
//! The tests over all 2^23 significands take a while and are ignored by default;
//! `.ci/steps/exhaustive` runs them in release. The others take every 1,021st significand, those
//! about multiples of 2^22, which are the hardest, and exponents from end to end.

#![cfg(not(target_family = "wasm"))]
#![allow(missing_docs)]

mod common;

use std::thread;

use common::Rng;
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{
    E2m1, Float, GroupSize, PackedMatrix, QuantSpec, QuantizeInput, Quantizer, ScaleType, TieMode,
};
use half::{bf16, f16};

const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// How many codes were compared, how many were wrong, and the first that was.
#[derive(Debug, Default)]
struct Compared {
    codes: u64,
    differ: u64,
    first: Option<String>,
}

impl Compared {
    fn add(&mut self, other: Compared) {
        self.codes += other.codes;
        self.differ += other.differ;
        self.first = self.first.take().or(other.first);
    }

    fn expect_none(&self, name: &str) {
        println!("exhaustive {name}: {} values compared, {} differ", self.codes, self.differ);
        assert_eq!(self.differ, 0, "{name}: {}", self.first.as_deref().unwrap_or_default());
        assert!(self.codes > 0);
    }
}

/// Every instruction set with a quantizer of its own, on the calling thread: AVX-VNNI has AVX2's.
fn backends() -> Vec<CpuSimd> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let pool = std::sync::Arc::new(pool);
    let on = |isa| CpuSimd::with_isa(isa).unwrap().with_pool(pool.clone());
    Isa::available().filter(|&isa| isa != Isa::AvxVnni).map(on).collect()
}

/// What C4.3 makes of one value, packed two to a byte.
fn expected(x: &[f32], d: f32, tie: TieMode) -> Vec<u8> {
    let code = |x: f32| {
        let q = if d == 0.0 { 0f32.copysign(x) } else { x / d };
        E2m1::from_f32_tie(q, tie).to_bits()
    };
    x.chunks_exact(2).map(|pair| code(pair[0]) | code(pair[1]) << 4).collect()
}

/// Compares the codes of `x` under `spec`, every scale byte given as `byte`.
fn compare<T: Float>(
    on: &[CpuSimd],
    x: &[T],
    spec: &QuantSpec,
    byte: u8,
    expected: &[u8],
) -> Compared {
    let scales = vec![byte; x.len() / spec.group().get()];
    let input = QuantizeInput::new(T::wrap(x), 1, x.len(), spec).unwrap();
    let input = input.with_scales(&scales).unwrap();
    let mut out = PackedMatrix::zeros(input.shape());
    let mut compared = Compared::default();
    for backend in on {
        backend.quantize(&input, &mut out.view_mut()).unwrap();
        compared.codes += x.len() as u64;
        if out.codes() == expected {
            continue;
        }
        for (i, (got, expected)) in out.codes().iter().zip(expected).enumerate() {
            let wrong = [15, 0xF0].into_iter().position(|half| (got ^ expected) & half != 0);
            let Some(high) = wrong else { continue };
            let (x, d) = (x[2 * i + high].to_f32(), spec.unit(byte));
            compared.differ += 1;
            compared.first.get_or_insert_with(|| {
                let isa = backend.isa();
                format!("{isa}: {x:e} / {d:e} is {got:#04x}, expected {expected:#04x} {spec:?}")
            });
        }
    }
    compared
}

fn ulps(x: f32, ulps: i32) -> f32 {
    // Beyond the ends it stays there.
    let bits = (x.to_bits() as i32).saturating_add(ulps).clamp(0, f32::INFINITY.to_bits() as i32);
    f32::from_bits(bits as u32)
}

/// Values about every midpoint of codes under the unit `d`, of both signs, and a few others: 32.
fn beside(d: f32, signs: u32) -> [f32; 32] {
    let d = d.abs();
    std::array::from_fn(|i| {
        let x = match i {
            0..28 => ulps(MIDPOINTS[i / 4] * d, i as i32 % 4 - 2),
            28 => 0.0,
            29 => ulps(6.5 * d, 0),
            30 => ulps(5.0 * d, 2),
            _ => d * 1e-20,
        };
        if signs >> i & 1 == 0 { x } else { -x }
    })
}

/// Settings with this unit, and the scale byte that has it: 1, or above 2 a power of two that
/// leaves a global scale in [1, 2), because the largest scale times it is to be finite.
fn of_unit(d: f32, tie: TieMode) -> (QuantSpec, u8) {
    let exponent = (d.to_bits() >> 23).saturating_sub(127);
    let gs = f32::from_bits(d.to_bits() - (exponent << 23));
    let spec = QuantSpec::new(ScaleType::E8M0, GroupSize::G32, gs, 1.0).unwrap();
    (spec.with_tie(tie), 127 + exponent as u8)
}

fn units(on: &[CpuSimd], units: impl Iterator<Item = f32>, tie: TieMode) -> Compared {
    let mut all = Compared::default();
    for (i, d) in units.enumerate() {
        let (spec, byte) = of_unit(d, tie);
        assert_eq!(spec.unit(byte).to_bits(), d.to_bits());
        let x = beside(d, 0x9E37_79B9u32.rotate_left(i as u32));
        all.add(compare(on, &x, &spec, byte, &expected(&x, d, tie)));
    }
    all
}

/// The significands of the steps from 1 to 2, shared by two threads.
fn significands(step: usize) -> Compared {
    let of = |first: usize| {
        let on = backends();
        let all = (first * step..1 << 23).step_by(2 * step);
        units(&on, all.map(|s| f32::from_bits(127 << 23 | s as u32)), TieMode::Even)
    };
    let mut all = Compared::default();
    thread::scope(|scope| {
        let parts = [0, 1].map(|first| scope.spawn(move || of(first)));
        parts.into_iter().for_each(|part| all.add(part.join().unwrap()));
    });
    all
}

#[test]
#[ignore = "takes a while; .ci/steps/exhaustive runs it"]
fn codes_beside_every_boundary_under_every_significand() {
    significands(1).expect_none("codes beside boundaries");
}

#[test]
fn codes_beside_every_boundary_under_many_significands() {
    significands(1021).expect_none("codes beside boundaries");
}

#[test]
fn codes_under_the_hardest_significands_and_exponents_from_end_to_end() {
    let (on, mut rng) = (backends(), Rng(31));
    let mut significands = Vec::new();
    for multiple in [0i32, 1 << 22, 1 << 23] {
        let near = (multiple - 12..=multiple + 12).filter(|s| (0..1 << 23).contains(s));
        significands.extend(near.map(|s| s as u32));
    }
    significands.extend((0..20).map(|_| rng.next() as u32 & 0x7F_FFFF));
    let mut all = Compared::default();
    for exponent in 0..=254u32 {
        // All about the ends of what has a reciprocal, and of f32.
        let ends = [0, 127 - 60, 127, 127 + 60, 254];
        let near_end = ends.iter().any(|&end| exponent.abs_diff(end) <= 2);
        let some = significands.iter().filter(|_| near_end || rng.below(8) == 0);
        let of = some.map(|s| f32::from_bits((exponent << 23 | s).max(1)));
        all.add(units(&on, of.collect::<Vec<_>>().into_iter(), TieMode::Even));
    }
    for tie in TieMode::ALL {
        let of = (0..500).map(|_| f32::from_bits(1 + rng.next() as u32 % (255 << 23)));
        all.add(units(&on, of.collect::<Vec<_>>().into_iter(), tie));
    }
    all.expect_none("codes under hard units");
}

/// Negative units, and magnitudes at the end of what is multiplied.
#[test]
fn codes_under_negative_units_and_of_large_magnitudes() {
    let (on, mut rng) = (backends(), Rng(32));
    let mut all = Compared::default();
    for tie in TieMode::ALL {
        for _ in 0..400 {
            let gs = f32::from_bits((100 + rng.next() as u32 % 50) << 23 | rng.next() as u32 >> 9);
            let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G32, gs, 1.0).unwrap();
            let spec = spec.with_tie(tie);
            let byte = loop {
                let byte = rng.byte();
                if byte & 0x7F != 0x7F {
                    break byte;
                }
            };
            let d = spec.unit(byte);
            let mut x = beside(d, rng.next() as u32);
            all.add(compare(&on, &x, &spec, byte, &expected(&x, d, tie)));
            for large in [2f32.powi(60), ulps(2f32.powi(60), 1), f32::MAX, f32::INFINITY] {
                x[rng.below(32)] = [large, -large][rng.below(2)];
                all.add(compare(&on, &x, &spec, byte, &expected(&x, d, tie)));
            }
        }
    }
    all.expect_none("negative units");
}

/// All 2^16 values of a type under units of every kind.
fn every_value<T: Float>(name: &str, from_bits: fn(u16) -> T, units: usize) {
    let (on, mut rng) = (backends(), Rng(33));
    let values: Vec<T> = (0..=u16::MAX).map(from_bits).collect();
    let wide: Vec<f32> = values.iter().map(|x| x.to_f32()).collect();
    // In groups of their own: one value that has no product would have all of them divided.
    let mut all = Compared::default();
    for i in 0..units {
        let gs = match i % 4 {
            0 => 1.0,
            1 => 1.0 / 3.0,
            2 => 0.1,
            _ => f32::from_bits(127 << 23 | rng.next() as u32 >> 9),
        };
        let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, gs, 6.0).unwrap();
        let byte = if i < 4 { 0x38 } else { rng.byte() % 0x7F };
        let d = spec.unit(byte);
        all.add(compare(&on, &values, &spec, byte, &expected(&wide, d, TieMode::Even)));
    }
    all.expect_none(name);
}

#[test]
fn every_f16_and_bf16_under_some_units() {
    every_value("f16 codes", f16::from_bits, 12);
    every_value("bf16 codes", bf16::from_bits, 12);
}

#[test]
#[ignore = "takes a while; .ci/steps/exhaustive runs it"]
fn every_f16_and_bf16_under_many_units() {
    every_value("f16 codes", f16::from_bits, 300);
    every_value("bf16 codes", bf16::from_bits, 300);
}
