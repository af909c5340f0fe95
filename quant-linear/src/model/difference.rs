//! How far a tensor is from its reference: sums that grow tile by tile.
//!
//! ```text
//! relative error = ||reference - other||_F / ||reference||_F      SQNR = -20 log10 of it, in dB
//! ```
//!
//! Sums are taken in f64 over 16 elements at a time, in order, so the figures do not depend on the
//! size of the tiles, as long as every tile but the last holds whole sixteens. A pair with a NaN or
//! an infinity on one side is counted and left out of the sums: one such weight must not hide the
//! error of all others.
//!
//! What the figures can be ([`Kind`]):
//!
//! ```text
//! exact        nothing differs                            0           no dB: "exact"
//! finite       some finite value differs                  a number    a number
//! infinite     the same, and the reference is all zeros   inf         -inf
//! not_finite   only pairs with a NaN or an infinity       0, or undefined without any
//!              differ                                     finite pair; dB undefined
//! ```

use fp4_core::Float;

/// Elements summed at a time.
const UNIT: usize = 16;

/// What the figures of a difference are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing differs.
    Exact,
    /// Numbers.
    Finite,
    /// The reference is all zeros and the other is not.
    Infinite,
    /// All that differs is NaN or infinite on one side, so nothing is in the sums.
    NotFinite,
}

impl Kind {
    /// The kind as reports name it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Exact => "exact",
            Kind::Finite => "finite",
            Kind::Infinite => "infinite",
            Kind::NotFinite => "not_finite",
        }
    }
}

/// Running sums over the pairs of two tensors.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Difference {
    /// Sum of squares of the reference.
    reference_sq: f64,
    /// Sum of squares of the differences.
    error_sq: f64,
    /// Largest absolute difference.
    max_abs: f64,
    /// Pairs of different values (NaN equals NaN; the sign of zero does not count).
    differ: u64,
    /// Pairs of different values of which one is NaN or infinite; not in the sums.
    not_finite: u64,
    /// Pairs of finite values: those in the sums.
    finite: u64,
}

impl Difference {
    /// Adds the pairs of two equally long slices.
    pub fn add<A: Float, B: Float>(&mut self, reference: &[A], other: &[B]) {
        for (a, b) in reference.chunks(UNIT).zip(other.chunks(UNIT)) {
            let (mut reference_sq, mut error_sq) = (0f64, 0f64);
            for (a, b) in a.iter().zip(b) {
                let (a, b) = (a.to_f32(), b.to_f32());
                let error = f64::from(a) - f64::from(b);
                if a.is_finite() && b.is_finite() {
                    reference_sq += f64::from(a) * f64::from(a);
                    error_sq += error * error;
                    self.max_abs = self.max_abs.max(error.abs());
                    self.differ += u64::from(error != 0.0);
                    self.finite += 1;
                } else if a != b && !(a.is_nan() && b.is_nan()) {
                    self.not_finite += 1;
                    self.differ += 1;
                }
            }
            self.reference_sq += reference_sq;
            self.error_sq += error_sq;
        }
    }

    /// Adds the sums of another tensor.
    pub fn merge(&mut self, other: &Difference) {
        self.reference_sq += other.reference_sq;
        self.error_sq += other.error_sq;
        self.max_abs = self.max_abs.max(other.max_abs);
        self.differ += other.differ;
        self.not_finite += other.not_finite;
        self.finite += other.finite;
    }

    /// What the figures are.
    pub fn kind(&self) -> Kind {
        if self.differ == 0 {
            Kind::Exact
        } else if self.error_sq == 0.0 {
            Kind::NotFinite
        } else if self.reference_sq == 0.0 {
            Kind::Infinite
        } else {
            Kind::Finite
        }
    }

    /// Frobenius norm of the difference over that of the reference, over the finite pairs: 0 where
    /// none differs, infinite where the reference is all zeros, NaN if only other pairs are there.
    pub fn relative(&self) -> f64 {
        match self.kind() {
            Kind::NotFinite if self.finite == 0 => f64::NAN,
            Kind::Exact | Kind::NotFinite => 0.0,
            Kind::Finite | Kind::Infinite => (self.error_sq / self.reference_sq).sqrt(),
        }
    }

    /// Signal to quantization noise in dB: infinite where nothing differs, -infinite where the
    /// reference is all zeros, NaN where only pairs differ that are not finite.
    pub fn sqnr_db(&self) -> f64 {
        match self.kind() {
            Kind::Exact => f64::INFINITY,
            Kind::NotFinite => f64::NAN,
            Kind::Finite | Kind::Infinite => 10.0 * (self.reference_sq / self.error_sq).log10(),
        }
    }

    /// Frobenius norm of the difference, over the finite pairs.
    pub fn error_norm(&self) -> f64 {
        self.error_sq.sqrt()
    }

    /// Frobenius norm of the reference, over the finite pairs.
    pub fn reference_norm(&self) -> f64 {
        self.reference_sq.sqrt()
    }

    /// Largest absolute difference.
    pub fn max_abs(&self) -> f64 {
        self.max_abs
    }

    /// Number of pairs whose values differ.
    pub fn differ(&self) -> u64 {
        self.differ
    }

    /// Number of differing pairs left out of the sums, because one side is not finite.
    pub fn not_finite(&self) -> u64 {
        self.not_finite
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_of_a_small_case() {
        let mut d = Difference::default();
        d.add(&[3f32, -4.0], &[3f32, -3.5]);
        assert_eq!((d.relative(), d.max_abs(), d.differ()), (0.1, 0.5, 1));
        assert!((d.sqnr_db() - 20.0).abs() < 1e-12);
    }

    #[test]
    fn no_difference_is_exact_even_for_zeros() {
        let mut d = Difference::default();
        d.add(&[0f32, -0.0, f32::NAN], &[-0f32, 0.0, f32::NAN]);
        assert_eq!((d.relative(), d.sqnr_db(), d.differ()), (0.0, f64::INFINITY, 0));
    }

    #[test]
    fn values_that_are_not_finite_are_counted_and_left_out() {
        let mut d = Difference::default();
        d.add(&[f32::NAN, f32::INFINITY, 1.0, 2.0], &[1f32, 6.0, f32::NAN, 2.0]);
        assert_eq!((d.not_finite(), d.differ(), d.relative()), (3, 3, 0.0));
        assert!(d.kind() == Kind::NotFinite && d.sqnr_db().is_nan());
        let mut d = Difference::default();
        d.add(&[1f32; 3], &[f32::NAN; 3]);
        assert!(d.kind() == Kind::NotFinite && d.relative().is_nan() && d.sqnr_db().is_nan());
    }

    #[test]
    fn an_error_against_zeros_is_infinite() {
        let mut d = Difference::default();
        d.add(&[0f32, -0.0], &[0f32, 1e-45]);
        let infinite = (Kind::Infinite, f64::INFINITY, f64::NEG_INFINITY);
        assert_eq!((d.kind(), d.relative(), d.sqnr_db()), infinite);
    }

    #[test]
    fn tiles_of_whole_sixteens_do_not_change_the_sums() {
        let a: Vec<f32> = (0..200).map(|i| (i as f32 * 0.7).sin()).collect();
        let b: Vec<f32> = a.iter().map(|x| (x * 8.0).round() / 8.0).collect();
        let mut whole = Difference::default();
        whole.add(&a, &b);
        for cut in [16, 48, 192] {
            let mut parts = Difference::default();
            parts.add(&a[..cut], &b[..cut]);
            parts.add(&a[cut..], &b[cut..]);
            assert_eq!(parts, whole, "{cut}");
        }
    }
}
