//! Partial sums of several machines, as integers that any reduction adds exactly ([C6]).
//!
//! K is split over ranks; each has the sums over its groups, and a reduction (`MPI_Allreduce`, a
//! ring, a tree: any order) adds 64-bit integers and nothing else. What is sent for an output:
//!
//! | form | words | when |
//! |---|---|---|
//! | [`Form::Narrow`] | 1: the sum in units of a power of two | the scales of all ranks prove that an i64 holds it |
//! | [`Form::Wide`] | [`ExactSum::WORDS`]: 48 bits each, room for carries | always |
//!
//! ```text
//! Reach     of each row of A (a call) and of B (once): 3 bytes, merged over ranks by a maximum
//! Bound     of a product and all groups of K: two reaches -> the exponent of a unit, or none
//! BlockPlan rows of A by a block of columns: for each row its form, the same on all ranks
//! partial   the sums of this rank as words      -> reduced by integer addition ->
//! rounded   the words as sums, each rounded once
//! ```
//!
//! # The bound
//!
//! With `D` the largest dot of a group of B (144 G of doubled codes, 1536 G with MXINT8, [C10]),
//! `n` all groups of a row of B on all ranks, and the reaches of the two rows, each the largest
//! scale in units of the least one:
//!
//! ```text
//! n * D * reach_a * reach_b <= 2^63 - 1
//! ```
//!
//! Every sum over some of the groups is within it, so no rank and no step of a reduction overflows.
//! e8m0 scales reach `2^(most - least)`, of groups with a code that is not +-0; e4m3 scales are
//! multiples of 2^-9 and reach `448 * 2^9`, whatever they are. So NVFP4 by NVFP4 is narrow up to
//! K = 2^20. The choice is made of merged reaches alone: it is the same on every rank.
//!
//! Worked example, MXFP4, K = 64 on two ranks: rank 0 has scales 2^0 of A and 2^-1 of B, rank 1 2^3
//! and 2^-1. A reaches 2^3 units of 2^0, B one of 2^-1; a unit is 2^(0 - 1 - 2). 2 * 4608 * 8 fits.
//! Dots 4 and 144 are 4 and 144 * 8 units; their sum 1156 is 144.5.
//!
//! # NaN
//!
//! A NaN scale makes a whole row or column NaN ([C6]), so the reaches carry it and the words need
//! no flag.
//!
//! [C6]: crate::contract#c6
//! [C10]: crate::contract#c10

#[cfg(feature = "alloc")]
mod plan;

#[cfg(feature = "alloc")]
pub use plan::BlockPlan;

use crate::exact::ExactSum;
use crate::format::{Element, Product, ScaleType};
use crate::packed::PackedView;

/// The least exponent of an e4m3 scale's unit.
const E4M3_LOW: i32 = -9;
/// The largest e4m3 scale in those units.
const E4M3_REACH: u64 = 448 << 9;

/// What the scales of a row reach from and to, over the groups of one rank or, merged, of all.
///
/// Three bytes whose larger one counts, so that a maximum over ranks, byte by byte, merges them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// 255 less the least e8m0 byte.
    from: u8,
    /// The largest e8m0 byte.
    to: u8,
    /// 1 if a scale is NaN.
    nan: u8,
}

impl Default for Reach {
    fn default() -> Self {
        Self::EMPTY
    }
}

impl Reach {
    /// Of no groups.
    pub const EMPTY: Reach = Reach { from: 0, to: 0, nan: 0 };

    /// Bytes of the form that is sent.
    pub const BYTES: usize = 3;

    /// Of the scales in row `i`. Groups of zero codes do not count, NaN scales do.
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn of_row(matrix: PackedView<'_>, i: usize) -> Self {
        let (shape, scales) = (matrix.shape(), matrix.row_scales(i));
        let mut reach = Reach::EMPTY;
        if shape.scale_type() == ScaleType::E4M3 {
            // A NaN without its sign is 0x7F.
            let nan = scales.iter().fold(0, |seen, scale| seen | ((scale & 0x7F) + 1));
            return Reach { nan: nan >> 7, ..reach };
        }
        let magnitude = if shape.element() == Element::Int8 { 0xFF } else { 0x77 };
        let groups = matrix.row_codes(i).chunks_exact(shape.group_bytes());
        for (codes, &scale) in groups.zip(scales) {
            if scale == 0xFF {
                reach.nan = 1;
            } else if codes.iter().fold(0, |seen, code| seen | code) & magnitude != 0 {
                reach.from = reach.from.max(255 - scale);
                reach.to = reach.to.max(scale);
            }
        }
        reach
    }

    /// The reach of the groups of both.
    pub fn merge(&mut self, other: Reach) {
        self.from = self.from.max(other.from);
        self.to = self.to.max(other.to);
        self.nan = self.nan.max(other.nan);
    }

    /// True if a scale is NaN: every output of the row or column is then (C6).
    pub const fn is_nan(self) -> bool {
        self.nan != 0
    }

    /// What is sent: a maximum of each byte over ranks merges.
    pub const fn to_bytes(self) -> [u8; Self::BYTES] {
        [self.from, self.to, self.nan]
    }

    /// Reads [`to_bytes`](Self::to_bytes) back.
    pub const fn from_bytes([from, to, nan]: [u8; Self::BYTES]) -> Self {
        Reach { from, to, nan }
    }

    /// The least exponent, and what the largest scale is in units of it, saturated.
    fn units(self, ty: ScaleType) -> (i32, u64) {
        match (ty, self.from) {
            (ScaleType::E4M3, _) => (E4M3_LOW, E4M3_REACH),
            // No group counts.
            (ScaleType::E8M0, 0) => (0, 0),
            (ScaleType::E8M0, from) => {
                let least = 255 - i32::from(from);
                let apart = u32::from(self.to).saturating_sub(least as u32);
                (least - 127, 1u64.checked_shl(apart).unwrap_or(u64::MAX))
            }
        }
    }
}

/// The form of a sum on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// One word: units of a power of two.
    Narrow,
    /// [`ExactSum::WORDS`] words.
    Wide,
}

impl Form {
    /// Words of a sum.
    pub const fn words(self) -> usize {
        match self {
            Form::Narrow => 1,
            Form::Wide => ExactSum::WORDS,
        }
    }
}

/// Whether an i64 holds the sums of a product: see the [module](self)'s text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bound {
    /// All groups times the largest dot of one, saturated.
    dots: u64,
    /// Exponent of a dot's unit.
    unit: i32,
    scale_types: [ScaleType; 2],
}

impl Bound {
    /// For rows of `groups` groups of B on all ranks together.
    pub fn new(product: Product, groups: usize) -> Self {
        let (of_element, unit) = match product.a.element() {
            Element::E2m1 => (144, -2),
            Element::Int8 => (1536, -7),
        };
        let dots = (of_element * product.b.group().get() as u64).saturating_mul(groups as u64);
        Bound { dots, unit, scale_types: [product.a.scale_type(), product.b.scale_type()] }
    }

    /// The exponent of the unit in which an i64 holds every sum of these rows; `None` if none does
    /// for sure.
    pub fn exponent(&self, a: Reach, b: Reach) -> Option<i32> {
        let [(base_a, reach_a), (base_b, reach_b)] =
            [a.units(self.scale_types[0]), b.units(self.scale_types[1])];
        let largest = u128::from(self.dots).checked_mul(u128::from(reach_a));
        let largest = largest.and_then(|l| l.checked_mul(u128::from(reach_b)));
        largest.filter(|&l| l <= i64::MAX as u128).map(|_| base_a + base_b + self.unit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::{Encoding, Format};

    fn e8m0(least: u8, most: u8) -> Reach {
        Reach { from: 255 - least, to: most, nan: 0 }
    }

    #[test]
    fn the_bound_is_where_the_docs_say() {
        // 4608 * 8 groups is 36864, times 2^47 below 2^63 and times 2^48 above.
        let bound = Bound::new(Product::of(Format::MxFp4), 8);
        assert_eq!(bound.exponent(e8m0(100, 120), e8m0(90, 117)), Some(100 + 90 - 254 - 2));
        assert_eq!(bound.exponent(e8m0(100, 120), e8m0(90, 118)), None);
        assert_eq!(bound.exponent(e8m0(0, 254), e8m0(0, 254)), None);
        // NVFP4 up to K = 2^20, whatever the scales; twice that never.
        let nvfp4 = |k: usize| Bound::new(Product::of(Format::NvFp4), k / 16);
        assert_eq!(nvfp4(1 << 20).exponent(Reach::EMPTY, Reach::EMPTY), Some(-20));
        assert_eq!(nvfp4(1 << 21).exponent(Reach::EMPTY, Reach::EMPTY), None);
        assert_eq!(nvfp4(usize::MAX).exponent(Reach::EMPTY, Reach::EMPTY), None);
        let int8 = Product { a: Encoding::MxInt8, b: Format::NvFp4 };
        assert_eq!(Bound::new(int8, 8).exponent(e8m0(127, 127), Reach::EMPTY), Some(-9 - 7));
        // Nothing but groups of zeros: an empty sum, in any unit.
        assert!(bound.exponent(Reach::EMPTY, e8m0(0, 254)).is_some());
    }

    #[test]
    fn groups_of_zeros_do_not_count_and_their_nan_does() {
        let shape = crate::PackedShape::of(Format::MxFp4, 1, 128).unwrap();
        let mut codes = [0x88; 64];
        (codes[16], codes[40]) = (0x10, 0x02);
        let of =
            |scales: [u8; 4]| Reach::of_row(PackedView::new(shape, &codes, &scales).unwrap(), 0);
        assert_eq!(of([0, 100, 120, 254]), e8m0(100, 120));
        assert_eq!(of([0xFF, 100, 120, 254]), Reach { nan: 1, ..e8m0(100, 120) });
        let mut merged = e8m0(90, 95);
        merged.merge(of([0, 100, 120, 254]));
        merged.merge(Reach::EMPTY);
        assert_eq!(merged, e8m0(90, 120));
        assert_eq!(Reach::from_bytes(merged.to_bytes()), merged);

        let shape = crate::PackedShape::of(Format::NvFp4, 1, 32).unwrap();
        for (scales, nan) in [([0x7E, 0xFE], false), ([0x01, 0xFF], true), ([0x7F, 0], true)] {
            let view = PackedView::new(shape, &[0; 16], &scales).unwrap();
            assert_eq!(Reach::of_row(view, 0).is_nan(), nan, "{scales:?}");
        }
    }
}
