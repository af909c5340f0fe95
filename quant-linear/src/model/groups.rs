//! What quantizing did to each group, so that one huge weight cannot hide what became of the rest.
//!
//! ```text
//! zero        groups whose codes are all zero, of either sign
//! lost        of these, groups that held a weight other than zero: C4's flushed groups
//! nan         groups with a NaN scale
//! flushed     weights other than zero that became zero
//! saturated   weights beyond 7 steps, of which 6 can be written: C4's clipped elements
//! SQNR        10 log10(sum of squares / sum of squared errors) of a group, in dB: 0 for a lost
//!             group, infinite for one without an error; groups of zeros have none
//! ```
//!
//! Of the SQNR a histogram is kept, in steps of a quarter of a decibel: its figures are the lower
//! edges of bins, but the smallest, which is exact. All sums are of whole numbers, so neither the
//! order of tiles nor threads change a figure.
//!
//! Worked example: NVFP4 takes its global scale from the largest weight. With one weight of 3e38
//! among ordinary ones every other group is lost: the tensor's SQNR is 143 dB, that of its median
//! group 0.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use fp4_core::{Float, FloatVec, PackedMatrix, QuantSpec, with_floats};
use serde::{Deserialize, Serialize};

/// Decibels of a bin, and what lies at the lower edge of the first.
const STEP: f64 = 0.25;
const LOWEST: f64 = -100.0;

/// The last bin, for all above and for groups without an error.
const LAST: u16 = 1199;

/// What quantizing did to the groups of a weight, with all that it takes to add more.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Groups {
    counts: Counts,
    /// Groups by SQNR: those bins that are not empty, which are few.
    bins: BTreeMap<u16, u64>,
    /// The smallest SQNR, as bits: it may be infinite, which JSON cannot say.
    min: Option<u64>,
    /// Groups at 0 dB or less.
    worst: u64,
}

/// Groups and weights that something became of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Groups in all.
    pub groups: u64,
    /// Groups whose codes are all zero.
    pub zero: u64,
    /// Groups whose codes are all zero and that held a finite weight other than zero.
    pub lost: u64,
    /// Groups with a NaN scale.
    pub nan: u64,
    /// Weights in all.
    pub weights: u64,
    /// Weights other than zero that became zero.
    pub flushed: u64,
    /// Weights that were beyond what their group's scale can say.
    pub saturated: u64,
}

/// The figures of [`Groups`], without what it takes to add more.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Figures {
    /// What became of how many.
    pub counts: Counts,
    /// The smallest SQNR of a group in dB; none if all are zeros.
    pub min_db: Option<f64>,
    /// The SQNR that 5% of the groups do not reach.
    pub p5_db: Option<f64>,
    /// The SQNR that half of the groups do not reach.
    pub median_db: Option<f64>,
    /// The share of groups at 0 dB or less: those whose error is as large as they are.
    pub share_at_0_db: f64,
}

impl Groups {
    /// Adds a tile: its values, what they became, and what those are worth.
    pub fn add(
        &mut self,
        values: &FloatVec,
        packed: &PackedMatrix,
        back: &[f32],
        spec: &QuantSpec,
    ) {
        let size = spec.group().get();
        self.counts.zero += zero_groups(packed.codes(), size);
        with_floats!(FloatSlice, values.as_slice(), values => {
            let groups = values.chunks_exact(size).zip(back.chunks_exact(size));
            for ((values, back), scale) in groups.zip(packed.scales()) {
                self.group(values, back, spec.scale_type().is_nan(*scale), spec.unit(*scale));
            }
        });
    }

    fn group<T: Float>(&mut self, values: &[T], back: &[f32], nan: bool, unit: f32) {
        let (mut signal, mut noise, mut some, mut kept) = (0f64, 0f64, false, false);
        for (value, back) in values.iter().zip(back) {
            let value = value.to_f32();
            if value.is_finite() && back.is_finite() {
                let (wide, error) = (f64::from(value), f64::from(value) - f64::from(*back));
                signal += wide * wide;
                noise += error * error;
                some |= value != 0.0;
            }
            kept |= *back != 0.0;
            self.counts.flushed += u64::from(value != 0.0 && *back == 0.0);
            self.counts.saturated += u64::from(unit > 0.0 && value.abs() > 7.0 * unit);
        }
        self.counts.groups += 1;
        self.counts.weights += values.len() as u64;
        self.counts.nan += u64::from(nan);
        self.counts.lost += u64::from(some && !kept);
        if some {
            let db = if noise == 0.0 { f64::INFINITY } else { 10.0 * (signal / noise).log10() };
            self.lower(db);
            self.worst += u64::from(db <= 0.0);
            *self.bins.entry(bin(db)).or_default() += 1;
        }
    }

    fn lower(&mut self, db: f64) {
        let min = self.min.map_or(db, |min| f64::from_bits(min).min(db));
        self.min = Some(min.to_bits());
    }

    /// Adds the groups of another weight.
    pub fn merge(&mut self, other: &Groups) {
        self.counts += other.counts;
        other.min.into_iter().for_each(|min| self.lower(f64::from_bits(min)));
        self.worst += other.worst;
        other.bins.iter().for_each(|(bin, more)| *self.bins.entry(*bin).or_default() += more);
    }

    /// What became of how many.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The figures as they stand.
    pub fn figures(&self) -> Figures {
        let measured = self.measured();
        Figures {
            counts: self.counts,
            min_db: self.min.map(f64::from_bits),
            p5_db: self.quantile_db(0.05),
            median_db: self.quantile_db(0.5),
            share_at_0_db: self.worst as f64 / measured.max(1) as f64,
        }
    }

    /// The SQNR that this share of the groups does not reach.
    fn quantile_db(&self, share: f64) -> Option<f64> {
        let rank = (share * self.measured() as f64) as u64;
        let mut below = 0;
        let (bin, _) = self.bins.iter().find(|(_, n)| {
            below += *n;
            below > rank
        })?;
        let (edge, min) = (LOWEST + STEP * f64::from(*bin), f64::from_bits(self.min?));
        Some(if *bin == LAST { f64::INFINITY } else { edge.max(min) })
    }

    /// Groups that have an SQNR: those with a finite weight other than zero.
    fn measured(&self) -> u64 {
        self.bins.values().sum()
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.groups += other.groups;
        self.zero += other.zero;
        self.lost += other.lost;
        self.nan += other.nan;
        self.weights += other.weights;
        self.flushed += other.flushed;
        self.saturated += other.saturated;
    }
}

fn bin(db: f64) -> u16 {
    // As a cast does: what is below the first is in it, infinity in the last.
    (((db - LOWEST) / STEP) as u16).min(LAST)
}

/// Number of groups whose codes are all zero, of either sign.
pub fn zero_groups(codes: &[u8], group: usize) -> u64 {
    let zero = |codes: &&[u8]| codes.iter().all(|byte| byte & 0x77 == 0);
    codes.chunks_exact(group / 2).filter(zero).count() as u64
}

#[cfg(test)]
mod tests {
    use fp4_core::{Format, QuantizeInput, reference};

    use super::*;

    fn groups(values: &[f32], spec: &QuantSpec) -> Groups {
        let input = QuantizeInput::new(values, 1, values.len(), spec).unwrap();
        let mut packed = PackedMatrix::zeros(input.shape());
        reference::quantize(&input, &mut packed.view_mut()).unwrap();
        let mut back = vec![0f32; values.len()];
        let gs = spec.global_scale();
        reference::dequantize(packed.view(), gs, (&mut back[..]).into()).unwrap();
        let mut groups = Groups::default();
        groups.add(&FloatVec::F32(values.to_vec()), &packed, &back, spec);
        groups
    }

    #[test]
    fn one_huge_weight_shows_in_the_groups_that_it_zeroes() {
        let mut values: Vec<f32> =
            (0..1024).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
        values[0] = 3e38;
        let spec = QuantSpec::for_weight(Format::NvFp4, 3e38).unwrap();
        let figures = groups(&values, &spec).figures();
        let counts = figures.counts;
        assert_eq!((counts.groups, counts.zero, counts.lost), (64, 63, 63));
        assert_eq!((figures.min_db, figures.median_db), (Some(0.0), Some(0.0)));
        assert_eq!(figures.share_at_0_db, 63.0 / 64.0);
        assert_eq!(counts.flushed, values.iter().filter(|v| **v != 0.0).count() as u64 - 1);
    }

    #[test]
    fn zeros_are_zero_groups_and_not_lost_ones() {
        let spec = QuantSpec::usual(Format::MxFp4);
        let figures = groups(&[0.0; 64], &spec).figures();
        assert_eq!((figures.counts.zero, figures.counts.lost), (2, 0));
        assert_eq!((figures.min_db, figures.p5_db, figures.share_at_0_db), (None, None, 0.0));
    }

    #[test]
    fn saturated_weights_are_those_beyond_seven_steps() {
        // A global scale of 1 leaves block scales of at most 448 to 448 * 6.
        let spec = QuantSpec::new(
            Format::NvFp4.scale_type(),
            Format::NvFp4.group(),
            1.0,
            fp4_core::NVFP4_SCALE_SCALE,
        );
        let mut values = [0f32; 16];
        values[..3].copy_from_slice(&[448.0 * 7.5, 448.0 * 6.5, -448.0 * 100.0]);
        let figures = groups(&values, &spec.unwrap()).figures();
        assert_eq!(figures.counts.saturated, 2);
    }

    #[test]
    fn the_order_of_groups_changes_no_figure_and_parts_add_up() {
        let values: Vec<f32> =
            (0..4096).map(|i| (i as f32 * 0.7).sin() * (i % 97) as f32).collect();
        let spec = QuantSpec::usual(Format::MxFp4);
        let whole = groups(&values, &spec);
        let (a, b) = values.split_at(1024);
        let mut parts = groups(b, &spec);
        parts.merge(&groups(a, &spec));
        assert_eq!(parts, whole);
        let figures = whole.figures();
        let [min, p5, median] =
            [figures.min_db, figures.p5_db, figures.median_db].map(Option::unwrap);
        assert!(min <= p5 && p5 <= median && median > 10.0, "{figures:?}");
    }
}
