//! Shared by the tests: random numbers, operands, bit comparison, and tests that run in a process
//! of their own because the driver reads its environment once.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod data;

use std::process::{Command, Output};

use fp4_core::{Encoding, Float, PackedMatrix, PackedShape};

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

    /// A value of any sign with an exponent of a few octaves, now and then an odd one.
    pub(crate) fn value(&mut self) -> f32 {
        let odd = [0.0, -0.0, f32::MAX, -f32::INFINITY, f32::NAN, 1e-40, -1e-45, 0.75, -2.5, 3.5];
        if self.below(40) == 0 {
            return odd[self.below(odd.len())];
        }
        let unit = (self.next() >> 40) as f32 / (1u32 << 24) as f32;
        (unit - 0.5) * [1.0, 4.0, 30.0][self.below(3)]
    }
}

/// A packed matrix of random codes or elements with scale bytes drawn by `scale`.
pub(crate) fn operand(
    rng: &mut Rng,
    encoding: impl Into<Encoding>,
    rows: usize,
    k: usize,
    mut scale: impl FnMut(&mut Rng) -> u8,
) -> PackedMatrix {
    let shape = PackedShape::encoded(encoding.into(), rows, k).unwrap();
    let codes = (0..shape.codes_len()).map(|_| rng.byte()).collect();
    let scales = (0..shape.scales_len()).map(|_| scale(rng)).collect();
    PackedMatrix::new(shape, codes, scales).unwrap()
}

/// Asserts that two slices of a float type have the same bits; returns how many were compared.
pub(crate) fn same_bits<T: Float>(got: &[T], expected: &[T], case: &str) -> usize {
    assert_eq!(got.len(), expected.len(), "{case}");
    for (i, (g, e)) in got.iter().zip(expected).enumerate() {
        let (g, e): (&[u8], &[u8]) = (bytemuck::bytes_of(g), bytemuck::bytes_of(e));
        assert_eq!(g, e, "{case}: element {i} is {:?}, expected {:?}", got[i], expected[i]);
    }
    got.len()
}

/// Runs the test `name` of this binary, one that is left out of ordinary runs, in a process of its
/// own.
pub(crate) fn run_apart(name: &str, environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--ignored", "--nocapture", "--test-threads", "1"]);
    command.envs(environment.iter().copied());
    command.output().unwrap()
}

/// As [`run_apart`]; the test must have run and passed.
pub(crate) fn passes_apart(name: &str, environment: &[(&str, &str)]) -> String {
    let output = run_apart(name, environment);
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{name} {environment:?}: {}\n{text}\n{errors}",
        output.status
    );
    text
}
