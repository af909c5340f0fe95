//! What the proofs of exactness need to know of one row, computed when it is packed (C6).
//!
//! A scale is `significand * 2^exponent` with an odd significand. A group is *live* if its scale is
//! finite and nonzero and its codes, or elements, are not all +-0. Other groups contribute nothing,
//! so they do not count; padding (C8) is never live. One pass over a row without a table to be
//! cleared or scanned finds its extremes:
//!
//! - [`RowMeta`]: how wide the row's exact sums can be.
//!
//! ```text
//! e8m0    base = the least exponent of the live bytes, reach = 2^(largest - least)
//! e4m3    u = |s| / 2^-9, an integer of 18 bits; over the live groups
//!         base = trailing zeros of (u | u | ...) - 9, reach = the largest u >> trailing zeros
//! ```
//!
//! If reach is at most the form's limit, as for rows of ordinary data, all live groups are in one
//! plane with that base, and [`RowMeta::scaled`] says their scales over it. Other rows have
//! [`Planes`](super::planes::Planes). A row all of whose groups have scales in one window, live or
//! not, is told by a few vectors ([`RowMeta::of_plain_row`]).

use fp4_core::{Element, PackedView, ScaleType};

use super::bytes::{ByChunks, LeastAndMost, map_bytes};

/// A finite scale as an odd significand, or 0, times a power of two; NaN counts as 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scale {
    pub(crate) significand: i16,
    pub(crate) exponent: i16,
}

/// The scales of all bytes, by [`table`].
static TABLES: [[Scale; 256]; 2] = {
    let mut tables = [[Scale { significand: 0, exponent: 0 }; 256]; 2];
    let mut byte = 0;
    while byte < 256 {
        let mut t = 0;
        while t < 2 {
            if let Some(parts) = ScaleType::ALL[t].parts(byte as u8)
                && parts.significand != 0
            {
                let even = parts.significand.trailing_zeros();
                tables[t][byte] = Scale {
                    significand: (parts.significand >> even) as i16,
                    exponent: (parts.exponent + even as i32) as i16,
                };
            }
            t += 1;
        }
        byte += 1;
    }
    tables
};

/// The scale of each byte.
pub(crate) fn table(scale_type: ScaleType) -> &'static [Scale; 256] {
    match scale_type {
        ScaleType::E8M0 => &TABLES[0],
        ScaleType::E4M3 => &TABLES[1],
    }
}

/// Magnitudes of e4m3 scales in units of 2^-9; 0 for NaN.
static UNITS: [u32; 256] = {
    let mut units = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        if let Some(parts) = ScaleType::E4M3.parts(byte as u8) {
            units[byte] = parts.significand.unsigned_abs() << (parts.exponent + 9);
        }
        byte += 1;
    }
    units
};

/// Calls `f` with the scale byte of each group and whether its codes, or elements, are not all
/// +-0.
#[inline(always)]
pub(super) fn for_each_group(
    element: Element,
    group_bytes: usize,
    codes: &[u8],
    scales: &[u8],
    mut f: impl FnMut(u8, bool),
) {
    // The bits of a magnitude: of codes without the signs.
    let magnitude = match element {
        Element::E2m1 => 0x7777_7777_7777_7777,
        Element::Int8 => u64::MAX,
    };
    // Groups are 8 bytes or a multiple; those of the formats are 8 and 16.
    match group_bytes {
        8 => {
            for (&codes, &scale) in codes.as_chunks().0.iter().zip(scales) {
                f(scale, u64::from_ne_bytes(codes) & magnitude != 0);
            }
        }
        16 => {
            for (codes, &scale) in codes.as_chunks::<16>().0.iter().zip(scales) {
                let [c, d] =
                    [0, 8].map(|at| u64::from_ne_bytes(*codes[at..].first_chunk().unwrap()));
                f(scale, (c | d) & magnitude != 0);
            }
        }
        _ => {
            for (codes, &scale) in codes.chunks_exact(group_bytes).zip(scales) {
                let any = codes.as_chunks().0.iter().fold(0, |any, &b| any | u64::from_ne_bytes(b));
                f(scale, any & magnitude != 0);
            }
        }
    }
}

/// How wide the exact sums of a row can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct RowMeta {
    /// True if a scale of the row is NaN.
    pub(crate) nan: bool,
    /// Number of live groups; of a [plain row](Self::of_plain_row) that of all, which is a bound.
    pub(crate) live: usize,
    /// Least exponent over the live groups; 0 if there are none. Of a plain row over all.
    pub(crate) base: i32,
    /// Largest |s| / 2^base over the live groups, an integer; `u64::MAX` if exponents lie
    /// more than 58 apart, 0 if no group is live. Of a plain row over all.
    pub(crate) reach: u64,
}

impl RowMeta {
    /// The metadata of row `i`.
    #[inline(always)]
    pub(crate) fn of_row(matrix: &PackedView<'_>, i: usize) -> Self {
        let shape = matrix.shape();
        let (ty, bytes) = (shape.scale_type(), shape.group_bytes());
        Self::new(ty, shape.element(), bytes, matrix.row_codes(i), matrix.row_scales(i))
    }

    #[inline(always)]
    fn new(
        scale_type: ScaleType,
        element: Element,
        group_bytes: usize,
        codes: &[u8],
        scales: &[u8],
    ) -> Self {
        // No early end, so that the compiler takes many bytes at a time.
        let nan = scales.iter().fold(false, |nan, &s| nan | scale_type.is_nan(s));
        let mut live = 0usize;
        let (base, reach) = match scale_type {
            ScaleType::E8M0 => {
                let (mut least, mut most) = (u8::MAX, 0);
                for_each_group(element, group_bytes, codes, scales, |scale, any| {
                    let counts = any & (scale != u8::MAX);
                    least = least.min(if counts { scale } else { u8::MAX });
                    most = most.max(if counts { scale } else { 0 });
                    live += usize::from(counts);
                });
                match (live, u32::from(most.saturating_sub(least))) {
                    (0, _) => (0, 0),
                    (_, 0..=58) => (i32::from(least) - 127, 1 << (most - least)),
                    _ => (i32::from(least) - 127, u64::MAX),
                }
            }
            ScaleType::E4M3 => {
                let (mut all, mut most) = (0, 0);
                for_each_group(element, group_bytes, codes, scales, |scale, any| {
                    let units = if any { UNITS[usize::from(scale)] } else { 0 };
                    all |= units;
                    most = most.max(units);
                    live += usize::from(units != 0);
                });
                match live {
                    0 => (0, 0),
                    _ => (all.trailing_zeros() as i32 - 9, u64::from(most >> all.trailing_zeros())),
                }
            }
        };
        RowMeta { nan, live, base, reach }
    }

    /// The metadata of row `i` if all of its scales are in one window of this limit: those of
    /// groups that are not live count too, so the base may be lower and the reach larger than
    /// [`of_row`](Self::of_row)'s, and live is the number of groups. None for a row with a NaN, and
    /// with the least e8m0 scale, which groups that are not live have.
    #[inline(always)]
    pub(crate) fn of_plain_row(matrix: &PackedView<'_>, i: usize, limit: i32) -> Option<Self> {
        Self::plain(matrix.shape().scale_type(), matrix.row_scales(i), limit)
    }

    #[inline(always)]
    fn plain(scale_type: ScaleType, scales: &[u8], limit: i32) -> Option<Self> {
        let (base, reach) = match scale_type {
            ScaleType::E8M0 => {
                let mut all = LeastAndMost::NONE;
                all.take_all(scales);
                let LeastAndMost { least, most } = all;
                // None of no scale at all.
                let octaves = most.checked_sub(least).filter(|&octaves| octaves < 32)?;
                let plain = least > 0 && most < u8::MAX;
                plain.then_some((i32::from(least) - 127, 1 << octaves))?
            }
            ScaleType::E4M3 => {
                let mut all = UnitsOfAll::default();
                all.take_all(scales);
                let UnitsOfAll { all, most, nan } = all;
                let zeros = all.trailing_zeros();
                (all != 0 && !nan).then(|| (zeros as i32 - 9, u64::from(most >> zeros)))?
            }
        };
        let meta = RowMeta { nan: false, live: scales.len(), base, reach };
        (reach <= limit as u64).then_some(meta)
    }

    /// Adds the shifts plus one of e8m0 scales of the row, which is in one plane: the shift is that
    /// of the scale over 2^base, and 0 is added for NaN and for what is past the reach. Groups that
    /// are not live may have any shift of the plane.
    #[inline(always)]
    pub(crate) fn shifts(&self, scales: &[u8], to: &mut Vec<u8>) {
        let least = (self.base + 127) as u8;
        // A NaN's byte is past every other, but not always by more than the reach.
        let octaves = (u64::BITS - self.reach.leading_zeros()) as u8;
        let start = to.len();
        to.resize(start + scales.len(), 0);
        map_bytes(scales, &mut to[start..], |scale| {
            let shift = scale.wrapping_sub(least);
            if shift < octaves { shift + 1 } else { 0 }
        });
    }

    /// Writes the scales of groups of the row over 2^base, for a row whose reach is an i16: 0 for
    /// NaN and for what is past the reach. Groups that are not live may have any value: their dots
    /// are 0.
    #[inline(always)]
    pub(crate) fn scaled(&self, scale_type: ScaleType, scales: &[u8], to: &mut [i16]) {
        debug_assert!(self.reach <= i16::MAX as u64);
        match scale_type {
            ScaleType::E8M0 => {
                let least = (self.base + 127) as u8;
                // A NaN's byte is past every other, but not always by more than the reach.
                let octaves = u64::BITS - self.reach.leading_zeros();
                map_bytes(scales, to, |scale| {
                    let shift = scale.wrapping_sub(least);
                    if u32::from(shift) < octaves { 1 << (shift & 15) } else { 0 }
                });
            }
            ScaleType::E4M3 => {
                let (zeros, reach) = ((self.base + 9) as u32, self.reach as u32);
                map_bytes(scales, to, |scale| {
                    let scaled = units(scale) >> zeros;
                    let counts = (scale & 0x7F != 0x7F) & (scaled <= reach);
                    let scaled = if counts { scaled as i32 } else { 0 };
                    (if scale & 0x80 != 0 { -scaled } else { scaled }) as i16
                });
            }
        }
    }
}

/// The magnitude of a finite e4m3 scale in units of 2^-9.
#[inline(always)]
fn units(scale: u8) -> u32 {
    let scale = u32::from(scale);
    // Of a normal scale or a subnormal one.
    let (exponent, mantissa) = (scale >> 3 & 15, scale & 7);
    let normal = u32::from(exponent > 0);
    (normal << 3 | mantissa) << (exponent - normal)
}

/// Of e4m3 scales, all of the bits of their units, and the most; true if one is NaN.
#[derive(Default)]
struct UnitsOfAll {
    all: u32,
    most: u32,
    nan: bool,
}

impl ByChunks for UnitsOfAll {
    #[inline(always)]
    fn take<const N: usize>(&mut self, _: usize, chunk: [u8; N]) {
        let (mut all, mut most, mut nan) = (0, 0, 0);
        for scale in chunk {
            let units = units(scale);
            all |= units;
            most = most.max(units);
            nan |= u8::from(scale & 0x7F == 0x7F);
        }
        self.all |= all;
        self.most = self.most.max(most);
        self.nan |= nan > 0;
    }
}

/// The largest scale of a row over its base, in two bytes: an odd significand of at most four bits
/// and a shift, or [`u64::MAX`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reach(u16);

impl Reach {
    /// The reach of [`RowMeta::reach`].
    pub(crate) fn new(reach: u64) -> Self {
        let shift = reach.trailing_zeros();
        match reach {
            u64::MAX => Reach(u16::MAX),
            0 => Reach(0),
            _ => Reach((shift << 8) as u16 | (reach >> shift) as u16),
        }
    }

    pub(crate) fn get(self) -> u64 {
        if self.0 == u16::MAX { u64::MAX } else { u64::from(self.0 & 0xFF) << (self.0 >> 8) }
    }
}

/// Extremes over the rows of a tile or the columns of a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Extremes {
    /// False if a row is incomplete.
    pub(crate) complete: bool,
    pub(crate) nan: bool,
    /// The most live groups.
    pub(crate) live: usize,
    /// The largest reach.
    pub(crate) reach: u64,
    pub(crate) least_base: i32,
    pub(crate) most_base: i32,
}

impl Extremes {
    /// Over rows, each with whether it is complete.
    pub(crate) fn of<'a>(rows: impl Iterator<Item = (&'a RowMeta, bool)>) -> Self {
        let none = Extremes {
            complete: true,
            nan: false,
            live: 0,
            reach: 0,
            least_base: i32::MAX,
            most_base: i32::MIN,
        };
        rows.fold(none, |s, (meta, complete)| Extremes {
            complete: s.complete & complete,
            nan: s.nan | meta.nan,
            live: s.live.max(meta.live),
            reach: s.reach.max(meta.reach),
            least_base: s.least_base.min(meta.base),
            most_base: s.most_base.max(meta.base),
        })
    }

    /// Over both.
    pub(crate) fn and(self, other: &Extremes) -> Self {
        Extremes {
            complete: self.complete & other.complete,
            nan: self.nan | other.nan,
            live: self.live.max(other.live),
            reach: self.reach.max(other.reach),
            least_base: self.least_base.min(other.least_base),
            most_base: self.most_base.max(other.most_base),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matmul::planes::tests::histogram;
    use crate::matmul::planes::{Planes, ScaleCounts};
    use fp4_core::Format;

    fn meta(format: Format, groups: &[(u8, u8)]) -> RowMeta {
        let bytes = format.group().get() / 2;
        let codes: Vec<u8> = groups.iter().flat_map(|g| vec![g.0; bytes]).collect();
        let scales: Vec<u8> = groups.iter().map(|g| g.1).collect();
        RowMeta::new(format.scale_type(), Element::E2m1, bytes, &codes, &scales)
    }

    /// The metadata from the counts, by its definition.
    fn counted(row: &ScaleCounts, nan: bool) -> RowMeta {
        let base = row.live().map(|(_, scale, _)| i32::from(scale.exponent)).min().unwrap_or(0);
        let reach = row.live().fold(0, |reach, (_, scale, _)| {
            let shift = (i32::from(scale.exponent) - base) as u32;
            let magnitude = u64::from(scale.significand.unsigned_abs());
            reach.max(if shift > 58 { u64::MAX } else { magnitude << shift })
        });
        RowMeta { nan, live: row.live, base, reach }
    }

    /// Groups (code byte, scale byte) of every kind: live ones within a few octaves from every
    /// byte up, dead ones and NaN anywhere.
    fn rows(format: Format) -> Vec<Vec<(u8, u8)>> {
        let mut state = 1u64;
        let mut next = move |n: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            ((state >> 33) % n) as u8
        };
        let mut rows = vec![vec![]];
        for least in 0..=255u8 {
            for spread in [1u64, 2, 3, 4, 5, 6, 9, 10, 33, 60, 256] {
                for live in [0, 1, 7, 40] {
                    let mut row: Vec<(u8, u8)> = (0..live)
                        .map(|_| (1 + next(7), least.saturating_add(next(spread))))
                        .collect();
                    for _ in 0..next(4) {
                        let code = [0x00, 0x80, 0x08, 0x88][usize::from(next(4))];
                        row.insert(usize::from(next(row.len() as u64 + 1)), (code, next(256)));
                    }
                    if next(6) == 0 {
                        row.push((0x11, format.scale_type().nan_byte()));
                    }
                    rows.push(row);
                }
            }
        }
        rows
    }

    #[test]
    fn one_pass_finds_what_the_counts_say() {
        let (mut one, mut several) = (0, 0);
        for format in Format::ALL {
            for groups in rows(format) {
                let (row, meta) = (histogram(format, &groups), meta(format, &groups));
                let nan = groups.iter().any(|g| format.scale_type().is_nan(g.1));
                assert_eq!(meta, counted(&row, nan), "{format} {groups:x?}");
                for limit in [8, 32, 127, 258] {
                    let planes = Planes::new(&row, limit);
                    let in_one = meta.reach <= limit as u64;
                    assert_eq!(in_one, planes.count == 1 && planes.complete, "{groups:x?}");
                    if !in_one {
                        several += 1;
                        continue;
                    }
                    one += 1;
                    assert_eq!(i64::from(planes.largest(0)), meta.reach as i64, "{groups:x?}");
                    let scales: Vec<u8> = groups.iter().map(|g| g.1).collect();
                    let mut scaled = vec![0; scales.len()];
                    meta.scaled(format.scale_type(), &scales, &mut scaled);
                    if format == Format::MxFp4 && limit == 8 {
                        let mut shifts = vec![];
                        meta.shifts(&scales, &mut shifts);
                        let of = |s: &i16| if *s == 0 { 0 } else { s.trailing_zeros() as u8 + 1 };
                        assert!(shifts.iter().eq(scaled.iter().map(of).collect::<Vec<_>>().iter()));
                        let live = groups.iter().filter(|g| g.0 & 0x77 != 0);
                        assert!(live.clone().all(|g| planes.shift(0, g.1)
                            == shifts[groups.iter().position(|h| h == g).unwrap()]));
                    }
                    for (&(code, scale), scaled) in groups.iter().zip(scaled) {
                        let nan = format.scale_type().is_nan(scale);
                        if code & 0x77 != 0 || nan {
                            let expected = planes.scaled[usize::from(scale)];
                            assert_eq!(scaled, expected, "{scale:#x} of {groups:x?}");
                        }
                        assert!(u64::from(scaled.unsigned_abs()) <= meta.reach);
                    }
                    if meta.live > 0 {
                        assert_eq!(planes.base[0], meta.base, "{groups:x?}");
                    }
                }
            }
        }
        println!("{one} rows in one plane, {several} in several");
        assert!(one > 20_000 && several > 5000);
    }

    #[test]
    fn plain_rows_are_as_if_all_groups_were_live() {
        let (mut plain, mut others) = (0, 0);
        for format in Format::ALL {
            for groups in rows(format) {
                let scales: Vec<u8> = groups.iter().map(|g| g.1).collect();
                let live: Vec<_> = scales.iter().map(|&scale| (0x11, scale)).collect();
                let all = meta(format, &live);
                let least = format == Format::MxFp4 && scales.contains(&0);
                for limit in [8, 32, 127, 258] {
                    let got = RowMeta::plain(format.scale_type(), &scales, limit);
                    let is_plain = !all.nan && all.live > 0 && !least && all.reach <= limit as u64;
                    let expected = is_plain.then_some(RowMeta { live: scales.len(), ..all });
                    assert_eq!(got, expected, "{format} limit {limit} {groups:x?}");
                    let (Some(got), of_live) = (got, meta(format, &groups)) else {
                        others += 1;
                        continue;
                    };
                    plain += 1;
                    // What is proved with it holds for the live groups.
                    assert!(got.live >= of_live.live);
                    if of_live.live > 0 {
                        let shift = (of_live.base - got.base) as u32;
                        assert!(got.base <= of_live.base && of_live.reach << shift <= got.reach);
                    }
                }
            }
        }
        println!("{plain} plain rows, {others} others");
        assert!(plain > 15_000 && others > 20_000);
    }

    #[test]
    fn groups_of_zeros_and_zero_scales_do_not_count() {
        let live = RowMeta { nan: false, live: 2, base: 3, reach: 1 << 7 };
        let groups = [(0x17, 130), (0x80, 0), (0x01, 137), (0x08, 254)];
        assert_eq!(meta(Format::MxFp4, &groups), live);
        // 0x38 is 1 and 0xCA is -5: in units of 1 they reach 5.
        let groups = [(0x70, 0x38), (0x77, 0xCA), (0x77, 0x80), (0x77, 0x00)];
        assert_eq!(
            meta(Format::NvFp4, &groups),
            RowMeta { nan: false, live: 2, base: 0, reach: 5 }
        );
        let dead = RowMeta { nan: true, live: 0, base: 0, reach: 0 };
        assert_eq!(meta(Format::MxFp4, &[(0x88, 7), (0x77, 0xFF)]), dead);
    }

    #[test]
    fn reach_is_exact_up_to_58_and_saturates_past_it() {
        for (spread, reach) in [(0, 1), (58, 1 << 58), (59, u64::MAX), (254, u64::MAX)] {
            let got = meta(Format::MxFp4, &[(1, 0), (1, spread)]);
            assert_eq!((got.base, got.reach), (-127, reach), "{spread}");
            assert_eq!(Reach::new(reach).get(), reach);
        }
    }

    #[test]
    fn e4m3_reach_never_exceeds_18_bits() {
        let got = meta(Format::NvFp4, &[(1, 0x01), (1, 0x7E), (1, 0xFE)]);
        assert_eq!((got.base, got.reach), (-9, 448 * 512));
        for reach in [0].into_iter().chain((1..16).flat_map(|s| (0..59).map(move |e| s << e))) {
            assert_eq!(Reach::new(reach).get(), reach);
        }
    }
}
