//! What the bytes of quantized layers hold: codes, scales, zero groups, spreads.
//!
//! The spread of a row is how many powers of two lie between its largest and its smallest scale. As
//! for the kernels, which choose their path by it, groups whose codes are all zero and scales that
//! are zero or NaN do not count; a row without any other group has no spread.

use std::collections::BTreeMap;

use fp4_core::{PackedMatrix, PackedShape};
use serde::{Serialize, Serializer};

use crate::checkpoint::tiles::Tile;
use crate::model::quantize::zero_groups;
use crate::model::scales::{Histogram, exponent};

/// Counts over one layer, or over many.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Elements.
    pub weights: u64,
    /// Groups.
    pub groups: u64,
    /// Groups whose codes are all zero, of either sign.
    pub zero_groups: u64,
    /// Elements whose code has the largest magnitude, 6.
    pub saturated: u64,
    /// How often each code occurs.
    pub codes: [u64; 16],
    /// The scales by the power of two below each.
    #[serde(flatten, serialize_with = "scales")]
    pub scales: Histogram,
    /// How many rows have this spread.
    #[serde(serialize_with = "pairs")]
    pub spreads: BTreeMap<u32, u64>,
}

impl Counts {
    /// Adds the counts of other layers.
    pub fn merge(&mut self, other: &Counts) {
        self.weights += other.weights;
        self.groups += other.groups;
        self.zero_groups += other.zero_groups;
        self.saturated += other.saturated;
        self.codes.iter_mut().zip(other.codes).for_each(|(n, more)| *n += more);
        self.scales.merge(&other.scales);
        for (spread, rows) in &other.spreads {
            *self.spreads.entry(*spread).or_default() += rows;
        }
    }
}

/// Counts one layer, tile by tile.
pub(super) struct Counter {
    shape: PackedShape,
    /// How often each byte of two codes, and each scale byte, occurs.
    codes: [u64; 256],
    scales: [u64; 256],
    zero_groups: u64,
    spreads: BTreeMap<u32, u64>,
    /// The row that the last group was in, and its smallest and largest exponent.
    row: usize,
    range: Option<(i32, i32)>,
}

impl Counter {
    pub(super) fn new(shape: PackedShape) -> Self {
        let (codes, scales) = ([0; 256], [0; 256]);
        Counter { shape, codes, scales, zero_groups: 0, spreads: [].into(), row: 0, range: None }
    }

    /// Counts a tile; tiles come in row-major order.
    pub(super) fn add(&mut self, packed: &PackedMatrix, tile: &Tile) {
        let (view, ty) = (packed.view(), self.shape.scale_type());
        let group = self.shape.group().get();
        packed.codes().iter().for_each(|&byte| self.codes[usize::from(byte)] += 1);
        for row in 0..tile.rows {
            if tile.row + row != self.row {
                self.end_row();
                self.row = tile.row + row;
            }
            let groups = view.row_codes(row).chunks_exact(group / 2);
            for (codes, &scale) in groups.zip(view.row_scales(row)) {
                self.scales[usize::from(scale)] += 1;
                if zero_groups(codes, group) == 1 {
                    self.zero_groups += 1;
                } else if let Some(e) = exponent(ty, scale) {
                    let (low, high) = self.range.unwrap_or((e, e));
                    self.range = Some((low.min(e), high.max(e)));
                }
            }
        }
    }

    fn end_row(&mut self) {
        if let Some((low, high)) = self.range.take() {
            *self.spreads.entry(high.abs_diff(low)).or_default() += 1;
        }
    }

    pub(super) fn finish(mut self) -> Counts {
        self.end_row();
        let mut codes = [0; 16];
        for (byte, n) in self.codes.iter().enumerate() {
            codes[byte & 0xF] += n;
            codes[byte >> 4] += n;
        }
        Counts {
            weights: codes.iter().sum(),
            groups: self.scales.iter().sum(),
            zero_groups: self.zero_groups,
            saturated: codes[0x7] + codes[0xF],
            codes,
            scales: Histogram::new(self.shape.scale_type(), &self.scales),
            spreads: self.spreads,
        }
    }
}

/// A map as a list of pairs, shorter than an object and in order.
pub(super) fn pairs<K: Serialize, S: Serializer>(
    map: &BTreeMap<K, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}

/// The scales beside the other counts.
fn scales<S: Serializer>(histogram: &Histogram, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Scales<'a> {
        nan_scales: u64,
        zero_scales: u64,
        subnormal_scales: u64,
        negative_scales: u64,
        #[serde(serialize_with = "pairs")]
        exponents: &'a BTreeMap<i32, u64>,
    }
    let Histogram { exponents, total: _, nan, zero, subnormal, negative } = histogram;
    Scales {
        nan_scales: *nan,
        zero_scales: *zero,
        subnormal_scales: *subnormal,
        negative_scales: *negative,
        exponents,
    }
    .serialize(serializer)
}
