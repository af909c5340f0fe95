//! The error group by group: one large weight can hide that all other groups of a layer are lost.
//!
//! ```text
//! SQNR of a group     as of a layer (`difference`), over the group's elements alone
//! exact               no value differs
//! infinite            the reference is all zeros and the group is not
//! not finite          only values differ that are NaN or infinite on one side
//! finite              a number of dB: these are in the histogram and the quantiles
//! ```
//!
//! Worked example: 64 groups of which one holds 3e38 and the others are flushed to zero: the layer
//! has 143 dB, the quantiles say 0 dB.
//!
//! Groups are counted into bins of a quarter of a dB, so memory does not grow with their number; a
//! quantile is the middle of its bin, 0.125 dB from the truth at most.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use fp4_core::{Float, FloatVec, PackedShape, with_floats};
use serde::{Serialize, Serializer};

use crate::checkpoint::tiles::Tile;
use crate::model::difference::{Difference, Kind};
use crate::model::report::counts::{add, pairs};

/// Bins of one dB.
const BINS: f64 = 4.0;

/// The histogram as written: whole dB, with all that is beyond in the first and the last.
const SHOWN_DB: (i32, i32) = (-50, 150);

/// One group and its error.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// The layer's prefix, in a list over many layers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layer: Option<String>,
    /// Its row; those of all experts are one after the other.
    pub row: usize,
    /// Its position in the row.
    pub group: usize,
    /// Its signal to noise ratio: infinite, and `null` as JSON, where it has none.
    pub sqnr_db: f64,
    /// The norm of its error.
    pub error: f64,
    /// The norm of its reference.
    pub reference: f64,
    /// The largest absolute difference.
    pub max_abs_error: f64,
    /// Values that differ and are not finite on one side.
    pub not_finite: u64,
}

/// The worst groups, in two orders: at most so many.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Worst {
    #[serde(skip)]
    limit: usize,
    /// Lowest SQNR first; what is not finite comes before.
    pub by_sqnr: Vec<Group>,
    /// Largest error first.
    pub by_error: Vec<Group>,
}

impl Worst {
    pub(super) fn new(limit: usize) -> Self {
        Worst { limit, by_sqnr: vec![], by_error: vec![] }
    }

    /// Ranks a group; of equals the one that comes first stays first.
    pub(super) fn add(&mut self, group: &Group) {
        insert(&mut self.by_sqnr, self.limit, group, by_sqnr);
        if group.error > 0.0 {
            insert(&mut self.by_error, self.limit, group, by_error);
        }
    }

    /// Ranks the worst groups of a layer of this name.
    pub(super) fn merge(&mut self, of: &Worst, layer: &str) {
        let named = |group: &Group| Group { layer: Some(layer.into()), ..group.clone() };
        for group in &of.by_sqnr {
            insert(&mut self.by_sqnr, self.limit, &named(group), by_sqnr);
        }
        for group in &of.by_error {
            insert(&mut self.by_error, self.limit, &named(group), by_error);
        }
    }
}

fn insert(
    list: &mut Vec<Group>,
    limit: usize,
    group: &Group,
    order: fn(&Group, &Group) -> Ordering,
) {
    let not_after = |other: &Group| order(other, group) != Ordering::Greater;
    // Nearly every group of a large layer ends here.
    if list.len() >= limit && list.last().is_none_or(not_after) {
        return;
    }
    list.insert(list.partition_point(not_after), group.clone());
    list.truncate(limit);
}

fn by_sqnr(a: &Group, b: &Group) -> Ordering {
    let sqnr = |g: &Group| if g.not_finite > 0 { f64::NEG_INFINITY } else { g.sqnr_db };
    sqnr(a).total_cmp(&sqnr(b)).then_with(|| by_error(a, b))
}

fn by_error(a: &Group, b: &Group) -> Ordering {
    b.error.total_cmp(&a.error)
}

/// The errors of all groups of a layer, or of many.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Groups {
    /// Groups without any difference.
    pub exact: u64,
    /// Groups that should be all zeros and are not.
    pub infinite: u64,
    /// Groups that differ only where a side is not finite.
    pub not_finite: u64,
    /// Groups with a number of dB.
    pub finite: u64,
    /// Of those, how many have this SQNR: in bins of a quarter of a dB, in whole dB as JSON.
    #[serde(serialize_with = "whole_db")]
    pub histogram: BTreeMap<i32, u64>,
    /// The lowest SQNR of those, and quantiles over them.
    pub quantiles: Option<Quantiles>,
}

/// The lowest of the SQNRs in dB, exactly, and quantiles to an eighth of a dB.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// The lowest.
    pub min: f64,
    /// One group in a hundred is below.
    pub p1: f64,
    /// One in ten.
    pub p10: f64,
    /// Half.
    pub p50: f64,
    /// Nine in ten.
    pub p90: f64,
}

impl Groups {
    fn add(&mut self, difference: &Difference) {
        match difference.kind() {
            Kind::Exact => self.exact += 1,
            Kind::Infinite => self.infinite += 1,
            Kind::NotFinite => self.not_finite += 1,
            Kind::Finite => {
                let db = difference.sqnr_db();
                self.finite += 1;
                *self.histogram.entry((BINS * db).floor() as i32).or_default() += 1;
                let mut quantiles = self.quantiles.unwrap_or(Quantiles::ABOVE_ALL);
                quantiles.min = quantiles.min.min(db);
                self.quantiles = Some(quantiles);
            }
        }
    }

    /// Adds the groups of other layers.
    pub fn merge(&mut self, other: &Groups) {
        self.exact += other.exact;
        self.infinite += other.infinite;
        self.not_finite += other.not_finite;
        self.finite += other.finite;
        add(&mut self.histogram, &other.histogram);
        if let Some(theirs) = other.quantiles {
            let mut ours = self.quantiles.unwrap_or(Quantiles::ABOVE_ALL);
            ours.min = ours.min.min(theirs.min);
            self.quantiles = Some(ours);
        }
        self.take_quantiles();
    }

    /// Sets the quantiles by the histogram.
    fn take_quantiles(&mut self) {
        let quantile = |per_cent: u64| {
            let mut left = (per_cent * self.finite).div_ceil(100).max(1);
            let bin = self.histogram.iter().find(|(_, n)| {
                left = left.saturating_sub(**n);
                left == 0
            });
            bin.map_or(f64::NAN, |(bin, _)| (f64::from(*bin) + 0.5) / BINS)
        };
        if let Some(Quantiles { min, .. }) = self.quantiles {
            let [p1, p10, p50, p90] = [1, 10, 50, 90].map(quantile);
            self.quantiles = Some(Quantiles { min, p1, p10, p50, p90 });
        }
    }
}

impl Quantiles {
    /// Of nothing yet.
    const ABOVE_ALL: Quantiles = {
        let (min, rest) = (f64::INFINITY, f64::NAN);
        Quantiles { min, p1: rest, p10: rest, p50: rest, p90: rest }
    };
}

/// Measures the groups of one layer, tile by tile.
pub(in crate::model) struct Measure {
    group: usize,
    pub(super) total: Difference,
    groups: Groups,
    pub(super) worst: Worst,
}

impl Measure {
    /// Keeps so many of the worst.
    pub(in crate::model) fn new(shape: PackedShape, worst: usize) -> Self {
        let (total, groups) = (Difference::default(), Groups::default());
        Measure { group: shape.group().get(), total, groups, worst: Worst::new(worst) }
    }

    /// Adds the values of a tile, reference first.
    pub(in crate::model) fn add(&mut self, reference: &FloatVec, other: &[f32], tile: &Tile) {
        with_floats!(FloatSlice, reference.as_slice(), x => self.add_values(x, other, tile));
    }

    fn add_values<F: Float>(&mut self, reference: &[F], other: &[f32], tile: &Tile) {
        self.total.add(reference, other);
        let in_row = tile.cols / self.group;
        let groups = reference.chunks(self.group).zip(other.chunks(self.group));
        for (at, (x, y)) in groups.enumerate() {
            let mut difference = Difference::default();
            difference.add(x, y);
            self.groups.add(&difference);
            if difference.kind() != Kind::Exact {
                self.worst.add(&Group {
                    layer: None,
                    row: tile.row + at / in_row,
                    group: tile.col / self.group + at % in_row,
                    sqnr_db: difference.sqnr_db(),
                    error: difference.error_norm(),
                    reference: difference.reference_norm(),
                    max_abs_error: difference.max_abs(),
                    not_finite: difference.not_finite(),
                });
            }
        }
    }

    pub(in crate::model) fn finish(mut self) -> (Difference, Groups, Worst) {
        self.groups.take_quantiles();
        (self.total, self.groups, self.worst)
    }
}

/// The histogram in whole dB.
fn whole_db<S: Serializer>(
    histogram: &BTreeMap<i32, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let mut whole = BTreeMap::<i32, u64>::new();
    for (bin, n) in histogram {
        let db = bin.div_euclid(BINS as i32).clamp(SHOWN_DB.0, SHOWN_DB.1);
        *whole.entry(db).or_default() += n;
    }
    pairs(&whole, serializer)
}
