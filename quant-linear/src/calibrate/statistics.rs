//! What is known of a layer's input values without keeping them: the largest, and how large they
//! and their groups are.
//!
//! ```text
//! bin b of 2048 over [-24, 24)   |x| in [2^(-24 + 48 b / 2048), 2^(-24 + 48 (b + 1) / 2048))
//! beside them                    zeros, what is below 2^-24, what is 2^24 or above
//! groups                         the same of the largest magnitude of each 16 inputs of a row
//! ```
//!
//! From them comes the global scale of NVFP4 activations, one constant for all batches (C4):
//!
//! | rule | global scale |
//! |---|---|
//! | `amax` | largest magnitude * headroom / 2688 |
//! | `quantile` | upper edge of the bin that the quantile is in * headroom / 2688 |
//! | `balanced` | in the middle, as a logarithm, of those under which fewest groups saturate or flush |
//!
//! A group saturates if its scale would be above 448, so above 2688 global scales; it flushes if
//! its scale rounds to 0, so at or below 6 * 2^-10 of them.
//!
//! Worked example: 1.0 is in bin 1024, whose upper edge is 2^(3/128) = 1.0164.

use std::str::FromStr;
use std::sync::LazyLock;

use fp4_core::{NVFP4_GLOBAL_SCALE, nvfp4_global_scale};

use super::gram::{expect_finite, expect_rows};
use crate::error::{CalibrateError, Error};

/// Bins of a [`Histogram`].
pub const BINS: usize = 2048;
/// The lowest bin begins at two to the minus this, the highest ends at two to this.
const REACH: i32 = 24;
/// Parts of a power of two that a bin is three of: 2048 bins over 48 powers of two.
const PARTS: usize = 128;
/// Inputs of a group of NVFP4.
const GROUP: usize = 16;
/// The largest scale times the largest code.
const LARGEST: f64 = 2688.0;
/// At or below this many global scales a group's scale rounds to 0.
const FLUSHED: f64 = 6.0 / 1024.0;

/// The mantissas at which the parts of a power of two begin: 2^(j / 128) as 23 bits, rounded up.
static BEGINNINGS: LazyLock<[u32; PARTS]> = LazyLock::new(|| {
    std::array::from_fn(|j| {
        let value = libm::exp2(j as f64 / PARTS as f64) - 1.0;
        libm::ceil(value * f64::from(1u32 << 23)) as u32
    })
});

/// How many magnitudes lie between which powers of two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Histogram {
    bins: Vec<u64>,
    zeros: u64,
    below: u64,
    above: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Histogram { bins: vec![0; BINS], zeros: 0, below: 0, above: 0 }
    }
}

/// The lower edge of a bin.
fn edge(bin: usize) -> f64 {
    libm::exp2(bin as f64 * (2 * REACH) as f64 / BINS as f64 - f64::from(REACH))
}

impl Histogram {
    /// Counts a magnitude, which is finite.
    #[inline]
    fn count(&mut self, x: f32, beginnings: &[u32; PARTS]) {
        let bits = x.to_bits() & 0x7FFF_FFFF;
        let (exponent, mantissa) = ((bits >> 23) as i32 - 127, bits & 0x7F_FFFF);
        match exponent {
            _ if bits == 0 => self.zeros += 1,
            e if e < -REACH => self.below += 1,
            e if e >= REACH => self.above += 1,
            _ => {
                // The mantissa's top 7 bits are at or below its part, by 12 at most.
                let mut part = (mantissa >> 16) as usize;
                while part + 1 < PARTS && mantissa >= beginnings[part + 1] {
                    part += 1;
                }
                self.bins[((exponent + REACH) as usize * PARTS + part) / 3] += 1;
            }
        }
    }

    fn merge(&mut self, other: &Histogram) {
        self.bins.iter_mut().zip(&other.bins).for_each(|(a, b)| *a += b);
        self.zeros += other.zeros;
        self.below += other.below;
        self.above += other.above;
    }

    /// All that was counted.
    pub fn total(&self) -> u64 {
        self.bins.iter().sum::<u64>() + self.zeros + self.below + self.above
    }

    /// Its counts: the bins from the lowest, then zeros, those below and those above all bins.
    pub fn counts(&self) -> Vec<u64> {
        let mut all = self.bins.clone();
        all.extend([self.zeros, self.below, self.above]);
        all
    }

    /// Of such counts.
    ///
    /// # Errors
    /// [`CalibrateError::Counts`] if there are not so many.
    pub fn from_counts(counts: &[u64]) -> Result<Self, Error> {
        match counts.split_first_chunk::<BINS>() {
            Some((bins, &[zeros, below, above])) => {
                Ok(Histogram { bins: bins.to_vec(), zeros, below, above })
            }
            _ => Err(CalibrateError::Counts { expected: BINS + 3, got: counts.len() }.into()),
        }
    }

    /// Those that are above a magnitude, whole bins: of the bin that it is in none.
    fn over(&self, magnitude: f64) -> u64 {
        let first = (0..BINS).find(|&bin| edge(bin) >= magnitude);
        self.above + first.map_or(0, |first| self.bins[first..].iter().sum())
    }

    /// Those above zero that are below a magnitude, whole bins: of the bin that it is in none.
    fn under(&self, magnitude: f64) -> u64 {
        let bins = (0..BINS).take_while(|&bin| edge(bin + 1) <= magnitude);
        let below = if magnitude > edge(0) { self.below } else { 0 };
        below + bins.map(|bin| self.bins[bin]).sum::<u64>()
    }

    /// The upper edge of the bin that the share `q` of all values lies at or below; `None` if that
    /// is above all bins.
    fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = libm::ceil(q * self.total() as f64) as u64;
        let mut sum = self.zeros + self.below;
        if sum >= wanted {
            return Some(if self.zeros >= wanted { 0.0 } else { edge(0) });
        }
        let found = self.bins.iter().position(|count| {
            sum += count;
            sum >= wanted
        });
        found.map(|bin| edge(bin + 1))
    }
}

/// What is known of the values of a layer's input.
#[derive(Debug, Clone, PartialEq)]
pub struct Statistics {
    k: usize,
    rows: u64,
    amax: f32,
    values: Histogram,
    groups: Histogram,
}

impl Statistics {
    /// Of no rows, of `k` values each.
    pub fn new(k: usize) -> Self {
        let (values, groups) = (Histogram::default(), Histogram::default());
        Statistics { k, rows: 0, amax: 0.0, values, groups }
    }

    /// As they were stored.
    pub fn from_parts(
        k: usize,
        rows: u64,
        amax: f32,
        values: Histogram,
        groups: Histogram,
    ) -> Self {
        Statistics { k, rows, amax, values, groups }
    }

    /// Adds rows, row-major.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`]; [`CalibrateError::NotFinite`] with the row, counted from the
    /// first of this call. Nothing is added then.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), Error> {
        let count = expect_rows("activations", rows, self.k)?;
        expect_finite("activations", rows, self.k)?;
        let beginnings = &*BEGINNINGS;
        for row in rows.chunks_exact(self.k.max(1)) {
            for group in row.chunks(GROUP) {
                let mut largest = 0f32;
                for &x in group {
                    largest = largest.max(x.abs());
                    self.values.count(x, beginnings);
                }
                self.groups.count(largest, beginnings);
                self.amax = self.amax.max(largest);
            }
        }
        self.rows += count as u64;
        Ok(())
    }

    /// Adds what is known of other rows of the same input.
    pub fn merge(&mut self, other: &Statistics) {
        self.rows += other.rows;
        self.amax = self.amax.max(other.amax);
        self.values.merge(&other.values);
        self.groups.merge(&other.groups);
    }

    /// Rows.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// The largest magnitude.
    pub fn amax(&self) -> f32 {
        self.amax
    }

    /// Of all values.
    pub fn values(&self) -> &Histogram {
        &self.values
    }

    /// Of the largest magnitudes of groups.
    pub fn groups(&self) -> &Histogram {
        &self.groups
    }

    /// The shares of groups that saturate and that flush under a global scale, by whole bins.
    pub fn lost(&self, global_scale: f32) -> [f64; 2] {
        let (gs, total) = (f64::from(global_scale), self.groups.total().max(1) as f64);
        let [over, under] = [self.groups.over(LARGEST * gs), self.groups.under(FLUSHED * gs)];
        [over as f64 / total, under as f64 / total]
    }

    /// The global scale of NVFP4 activations by a rule: what C4 takes where nothing but zeros was
    /// seen is 0.1.
    ///
    /// # Errors
    /// [`CalibrateError::NoSamples`]; [`fp4_core::Error::ScaleSetting`] if the largest magnitude
    /// times the headroom is not finite.
    pub fn global_scale(&self, rule: &ActivationScale) -> Result<f32, Error> {
        if self.rows == 0 {
            return Err(CalibrateError::NoSamples.into());
        }
        if self.amax == 0.0 {
            return Ok(NVFP4_GLOBAL_SCALE);
        }
        let largest = match rule.rule {
            ActivationRule::Amax => f64::from(self.amax),
            // The edge of the last bin can be above all that was seen.
            ActivationRule::Quantile(q) => {
                let edge = self.values.quantile(q).filter(|edge| *edge > 0.0);
                edge.unwrap_or(f64::INFINITY).min(f64::from(self.amax))
            }
            ActivationRule::Balanced => self.balanced(),
        };
        Ok(nvfp4_global_scale((largest * f64::from(rule.headroom)) as f32)?)
    }

    /// 2688 times the global scale in the middle of those under which fewest groups are lost.
    fn balanced(&self) -> f64 {
        // Candidates: each edge as the largest that does not saturate.
        let losses: Vec<u64> = (0..=BINS)
            .map(|bin| {
                let largest = edge(bin);
                self.groups.over(largest) + self.groups.under(largest * FLUSHED / LARGEST)
            })
            .collect();
        let least = losses.iter().min().copied().unwrap_or(0);
        let first = losses.iter().position(|loss| *loss == least).unwrap_or(0);
        let last = losses.iter().rposition(|loss| *loss == least).unwrap_or(first);
        libm::sqrt(edge(first) * edge(last))
    }
}

/// A rule for the global scale of NVFP4 activations.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum ActivationRule {
    /// From the largest magnitude.
    Amax,
    /// From this quantile of the magnitudes, above 0 and at most 1.
    Quantile(f64),
    /// From both ends of the groups' magnitudes.
    Balanced,
}

/// A rule and the room that it leaves above.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActivationScale {
    /// The rule.
    pub rule: ActivationRule,
    /// What the magnitude that the rule gives is multiplied by.
    pub headroom: f32,
}

impl Default for ActivationScale {
    fn default() -> Self {
        ActivationScale { rule: ActivationRule::Amax, headroom: 1.0 }
    }
}

impl std::fmt::Display for ActivationScale {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.rule {
            ActivationRule::Amax => f.write_str("amax")?,
            ActivationRule::Quantile(q) => write!(f, "quantile:{q}")?,
            ActivationRule::Balanced => f.write_str("balanced")?,
        }
        if self.headroom.to_bits() == 1f32.to_bits() {
            Ok(())
        } else {
            write!(f, "*{}", self.headroom)
        }
    }
}

impl FromStr for ActivationScale {
    type Err = Error;

    /// `amax`, `balanced` or `quantile:0.9999`, each with `*2` behind it for twice the room.
    ///
    /// # Errors
    /// [`CalibrateError::Name`].
    fn from_str(text: &str) -> Result<Self, Error> {
        let parse = || {
            let (name, headroom) = match text.split_once('*') {
                Some((name, headroom)) => (name, headroom.parse::<f32>().ok()?),
                None => (text, 1.0),
            };
            let rule = match name.split_once(':') {
                Some(("quantile", q)) => ActivationRule::Quantile(q.parse().ok()?),
                None if name == "amax" => ActivationRule::Amax,
                None if name == "balanced" => ActivationRule::Balanced,
                _ => return None,
            };
            let fits = |q: f64| q > 0.0 && q <= 1.0;
            let fits = !matches!(rule, ActivationRule::Quantile(q) if !fits(q));
            (fits && headroom.is_finite() && headroom > 0.0)
                .then_some(ActivationScale { rule, headroom })
        };
        parse().ok_or_else(|| {
            let what = "rule of activation scales";
            let expected = "amax, balanced or quantile:0.9999, each with *2 behind it for headroom";
            CalibrateError::Name { what, expected, got: text.into() }.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(rows: &[f32], k: usize) -> Statistics {
        let mut statistics = Statistics::new(k);
        statistics.add(rows).unwrap();
        statistics
    }

    /// The bin by its definition.
    fn bin(x: f32) -> usize {
        let log = libm::log2(f64::from(x.abs()));
        libm::floor((log + 24.0) * 2048.0 / 48.0) as usize
    }

    #[test]
    fn every_magnitude_is_in_the_bin_that_its_logarithm_says() {
        let mut counted = 0;
        for i in 0..200_000u32 {
            let x = f32::from_bits(0x3380_0000 + i.wrapping_mul(2_654_435_761) % 0x1800_0000);
            let (h, b) = (of(&[-x], 1), bin(x));
            // A power of two over three may round to either side; nothing else is so close.
            let exact = libm::log2(f64::from(x)) * 128.0 / 3.0;
            if (exact - libm::round(exact)).abs() > 1e-9 || x.to_bits().trailing_zeros() >= 23 {
                assert_eq!(h.values.bins[b], 1, "{x:e} is not in {b}");
                counted += 1;
            }
        }
        assert!(counted > 190_000);
        let h = of(&[0.0, -0.0, 5e-8, 2f32.powi(24), 2f32.powi(-24), 1.0], 6).values;
        assert_eq!((h.zeros, h.below, h.above, h.bins[0], h.bins[1024]), (2, 1, 1, 1, 1));
        assert_eq!(h.total(), 6);
        assert_eq!(Histogram::from_counts(&h.counts()).unwrap(), h);
        assert!(Histogram::from_counts(&h.counts()[1..]).is_err());
    }

    #[test]
    fn rules_give_the_scale_that_they_say() {
        let mut x = vec![1.0f32; 16 * 1000];
        x[77] = -3000.0;
        let s = of(&x, 16);
        let scale = |text: &str| s.global_scale(&text.parse().unwrap()).unwrap();
        assert_eq!(scale("amax"), 3000.0 / 2688.0);
        assert_eq!(scale("amax*2"), 6000.0 / 2688.0);
        assert_eq!(scale("quantile:1"), 3000.0 / 2688.0);
        let upper = libm::exp2(3.0 / 128.0) as f32;
        assert_eq!(scale("quantile:0.999"), upper / 2688.0);
        assert_eq!(s.lost(scale("quantile:0.999")), [0.001, 0.0]);
        assert_eq!(s.lost(scale("amax")), [0.0, 0.0]);
        // Under it neither end is lost, and both are as far away.
        let balanced = f64::from(scale("balanced"));
        let room = [LARGEST * balanced / 3000.0, 1.0 / (FLUSHED * balanced)];
        assert!((room[0] / room[1]).log2().abs() < 0.1, "{room:?}");
        assert_eq!(of(&[0.0; 16], 16).global_scale(&ActivationScale::default()).unwrap(), 0.1);
        assert!(Statistics::new(16).global_scale(&ActivationScale::default()).is_err());
    }

    #[test]
    fn where_both_ends_cannot_be_kept_the_fewer_are_lost() {
        // Two groups of 1e6 and one of 1e-6: 2^40 apart, and e4m3 reaches 2^18.
        let mut x = vec![1e6f32; 32];
        x.extend([1e-6; 16]);
        let s = of(&x, 16);
        let gs = s.global_scale(&"balanced".parse().unwrap()).unwrap();
        assert_eq!(s.lost(gs), [0.0, 1.0 / 3.0]);
    }

    #[test]
    fn parts_merge_to_the_whole_and_bad_rows_add_nothing() {
        let x: Vec<f32> = (0..64 * 20).map(|i| (i as f32 * 0.7).sin() * 30.0).collect();
        let whole = of(&x, 64);
        let mut parts = of(&x[..64 * 7], 64);
        parts.merge(&of(&x[64 * 7..], 64));
        assert_eq!(parts, whole);
        for bad in [&[f32::NAN; 64][..], &[f32::INFINITY; 64], &[1.0; 63]] {
            assert!(parts.add(bad).is_err());
            assert_eq!(parts, whole);
        }
    }

    #[test]
    fn names_are_read_back() {
        for text in ["amax", "balanced", "quantile:0.9999", "amax*2", "quantile:0.5*1.5"] {
            assert_eq!(text.parse::<ActivationScale>().unwrap().to_string(), text);
        }
        for bad in
            ["", "max", "quantile", "quantile:0", "quantile:1.1", "amax*0", "amax*inf", "amax:1"]
        {
            let said = bad.parse::<ActivationScale>().unwrap_err().to_string();
            assert!(said.contains("amax, balanced or quantile"), "{bad}: {said}");
        }
    }
}
