//! What the bytes of quantized layers hold: codes, scales, zero groups, spreads.
//!
//! The scale byte of a group of zero codes says who wrote the file and nothing of the weight
//! (0x00, 0x38, 0x7E ...), so such groups are left out of the exponents and of the spreads. The
//! spread of a row is how many powers of two lie between its largest and its smallest scale. As for
//! the kernels, which choose their path by it, scales that are zero or NaN do not count either; a
//! row without any other group has no spread.

use std::collections::BTreeMap;

use fp4_core::{PackedMatrix, PackedShape};
use serde::{Serialize, Serializer};

use crate::checkpoint::tiles::Tile;
use crate::model::groups::zero_groups;
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
    /// Scales that are NaN.
    pub nan_scales: u64,
    /// Scales that are zero.
    pub zero_scales: u64,
    /// Scales that are subnormal.
    pub subnormal_scales: u64,
    /// Scales with the sign bit.
    pub negative_scales: u64,
    /// The scales that count, those of zero groups left out, by the power of two below each.
    #[serde(serialize_with = "pairs")]
    pub exponents: BTreeMap<i32, u64>,
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
        self.nan_scales += other.nan_scales;
        self.zero_scales += other.zero_scales;
        self.subnormal_scales += other.subnormal_scales;
        self.negative_scales += other.negative_scales;
        add(&mut self.exponents, &other.exponents);
        add(&mut self.spreads, &other.spreads);
    }
}

/// Counts one layer, tile by tile.
pub(in crate::model) struct Counter {
    shape: PackedShape,
    /// How often each byte of two codes, and each scale byte, occurs.
    codes: [u64; 256],
    scales: [u64; 256],
    zero_groups: u64,
    exponents: BTreeMap<i32, u64>,
    spreads: BTreeMap<u32, u64>,
    /// The row that the last group was in, and its smallest and largest exponent.
    row: usize,
    range: Option<(i32, i32)>,
}

impl Counter {
    pub(in crate::model) fn new(shape: PackedShape) -> Self {
        Counter {
            shape,
            codes: [0; 256],
            scales: [0; 256],
            zero_groups: 0,
            exponents: BTreeMap::new(),
            spreads: BTreeMap::new(),
            row: 0,
            range: None,
        }
    }

    /// Counts a tile; tiles come in row-major order.
    pub(in crate::model) fn add(&mut self, packed: &PackedMatrix, tile: &Tile) {
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
                    *self.exponents.entry(e).or_default() += 1;
                    let (low, high) = self.range.unwrap_or((e, e));
                    self.range = Some((low.min(e), high.max(e)));
                }
            }
        }
    }

    /// How often each scale byte has occurred.
    pub(in crate::model) fn scale_bytes(&self) -> &[u64; 256] {
        &self.scales
    }

    fn end_row(&mut self) {
        if let Some((low, high)) = self.range.take() {
            *self.spreads.entry(high.abs_diff(low)).or_default() += 1;
        }
    }

    pub(in crate::model) fn finish(mut self) -> Counts {
        self.end_row();
        let mut codes = [0; 16];
        for (byte, n) in self.codes.iter().enumerate() {
            codes[byte & 0xF] += n;
            codes[byte >> 4] += n;
        }
        let scales = Histogram::new(self.shape.scale_type(), &self.scales);
        Counts {
            weights: codes.iter().sum(),
            groups: scales.total,
            zero_groups: self.zero_groups,
            saturated: codes[0x7] + codes[0xF],
            codes,
            nan_scales: scales.nan,
            zero_scales: scales.zero,
            subnormal_scales: scales.subnormal,
            negative_scales: scales.negative,
            exponents: self.exponents,
            spreads: self.spreads,
        }
    }
}

/// A map as a list of pairs, shorter than an object and in order.
pub(in crate::model) fn pairs<K: Serialize, S: Serializer>(
    map: &BTreeMap<K, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(map)
}

/// Adds the counts of another map.
pub(in crate::model) fn add<K: Ord + Copy>(map: &mut BTreeMap<K, u64>, other: &BTreeMap<K, u64>) {
    for (key, n) in other {
        *map.entry(*key).or_default() += n;
    }
}
