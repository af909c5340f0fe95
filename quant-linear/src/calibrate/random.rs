//! Random numbers whose bits are the same on every machine: for transforms, not for secrets.
//!
//! ```text
//! u64       SplitMix64: state += 0x9E3779B97F4A7C15, then two xor-shift-multiply rounds
//! uniform   the top 53 bits, times 2^-52, minus 1: in [-1, 1)
//! Gaussian  the polar method: u, v until s = u^2 + v^2 is in (0, 1); u * sqrt(-2 ln s / s)
//! ```
//!
//! Only additions, products, quotients and square roots are used, which IEEE-754 fixes; the
//! logarithm is a series of our own, as a library's may differ from machine to machine.
//!
//! Sources: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014; Marsaglia,
//! Bray, "A convenient method for generating normal variables", 1964.

/// A generator of Gaussian numbers.
pub(super) struct Gaussian {
    state: u64,
}

impl Gaussian {
    pub(super) fn new(seed: u64) -> Self {
        Gaussian { state: seed }
    }

    fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn uniform(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }

    /// The next number, of mean 0 and variance 1. (The polar method's second one is dropped.)
    pub(super) fn next(&mut self) -> f64 {
        loop {
            let (u, v) = (self.uniform(), self.uniform());
            let s = u * u + v * v;
            if s > 0.0 && s < 1.0 {
                return u * (-2.0 * ln(s) / s).sqrt();
            }
        }
    }
}

/// The natural logarithm of a normal number above zero: with x = m * 2^e, m in [0.7, 1.5), it is
/// e ln 2 + 2 artanh((m - 1) / (m + 1)), by its series.
fn ln(x: f64) -> f64 {
    let (mut e, mut m) = (
        (x.to_bits() >> 52) as i64 - 1023,
        f64::from_bits((x.to_bits() & ((1 << 52) - 1)) | 1023 << 52),
    );
    if m > std::f64::consts::SQRT_2 {
        (e, m) = (e + 1, m / 2.0);
    }
    let t = (m - 1.0) / (m + 1.0);
    let square = t * t;
    // |t| < 0.1716, so the terms fall by 34 each: 13 are enough for 53 bits.
    let series = (0..13).rev().fold(0.0, |sum, n| sum * square + 1.0 / (2 * n + 1) as f64);
    e as f64 * std::f64::consts::LN_2 + 2.0 * t * series
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_right_to_the_last_places() {
        for x in [1e-300, 1e-9, 0.3, 0.7, 0.99, 1.0, 1.3, 1.5, 2.0, 1e10] {
            let (got, expected) = (ln(x), f64::ln(x));
            assert!((got - expected).abs() <= 4e-16 * expected.abs(), "{x}: {got} {expected}");
        }
    }

    #[test]
    fn the_numbers_are_gaussian_and_those_of_the_seed() {
        // The first outputs of SplitMix64 for seed 0, as published with the generator.
        let mut g = Gaussian::new(0);
        assert_eq!((g.bits(), g.bits()), (0xE220_A839_7B1D_CDAF, 0x6E78_9E6A_A1B9_65F4));
        let n = 100_000;
        let mut g = Gaussian::new(7);
        let x: Vec<f64> = (0..n).map(|_| g.next()).collect();
        let moment = |p: i32| x.iter().map(|x| x.powi(p)).sum::<f64>() / n as f64;
        assert!(moment(1).abs() < 0.02 && (moment(2) - 1.0).abs() < 0.02, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.12, "{}", moment(4));
        let again = Gaussian::new(7).next();
        assert_eq!(again.to_bits(), x[0].to_bits());
    }
}
