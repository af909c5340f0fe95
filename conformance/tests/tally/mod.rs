//! What tests of the core against the oracle's rules share: counts, and two numbers.

#![allow(dead_code, reason = "every test binary uses another part")]

use fp4_conformance::oracle::rules::NAN;

/// 2^e as an f64, for every e that the tests need.
pub(crate) fn power(e: i32) -> f64 {
    2f64.powi(e)
}

/// The same value, NaN canonical.
pub(crate) fn canonical(x: f32) -> f32 {
    if x.is_nan() { f32::from_bits(NAN) } else { x }
}

/// Counts what a test compared; the test prints and asserts it.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) compared: u64,
    pub(crate) differ: u64,
}

impl Tally {
    /// Counts one comparison; the first that differ are printed.
    pub(crate) fn check<T: PartialEq + core::fmt::Debug>(
        &mut self,
        got: T,
        expected: T,
        what: impl FnOnce() -> String,
    ) {
        self.compared += 1;
        if got != expected {
            self.differ += 1;
            if self.differ <= 5 {
                println!("{}: got {got:X?}, expected {expected:X?}", what());
            }
        }
    }

    /// Prints the counts and fails if anything differs, or if nothing was compared.
    pub(crate) fn finish(&self, name: &str) {
        println!("{name}: {} values compared, {} differ", self.compared, self.differ);
        assert!(self.compared > 0, "{name}: nothing was compared");
        assert_eq!(self.differ, 0, "{name}: {} of {} differ", self.differ, self.compared);
    }
}
