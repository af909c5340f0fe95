//! The live groups of a row in windows of exponents (C6), for rows that are not in one.
//!
//! They are counted by scale byte ([`ScaleCounts`]) and sorted into a few windows ([`Planes`]).
//! Within a window with base b every scale is a small integer times 2^b: `scaled = scale / 2^b`,
//! at most `limit`. The first plane is the window that holds most groups, the next the best of
//! the rest, and so on. If that takes more than two, windows are also laid from the lowest exponent
//! up, which takes the fewest, and the fewer planes count: each costs a pass. (A few channels of
//! large values pull the fullest window up, past the smallest of the others.) If [`MAX_PLANES`] do
//! not hold every group, the row is *incomplete* and its outputs take the wide path.
//!
//! Worked example, e8m0 with limit 8 (four exponents to a window): live scales 2^0, 2^1, 2^1, 2^9
//! make plane 0 with base 0 and scaled 1, 2, 2, and plane 1 with base 9 and scaled 1.

use fp4_core::{Element, PackedView, ScaleType};

use super::meta::{Scale, for_each_group, table};

/// Most planes of a row. Enough for every e4m3 row: its odd significands, at most 15, have 18
/// exponents, and a window of limit 127 holds at least four (15 * 8 <= 127) from the lowest up.
pub(crate) const MAX_PLANES: usize = 5;

/// The live groups of a row, counted by scale byte.
#[derive(Debug, Clone)]
pub(crate) struct ScaleCounts {
    scale_type: ScaleType,
    counts: [u32; 256],
    /// Number of live groups.
    pub(super) live: usize,
}

impl ScaleCounts {
    /// Counts row `i`.
    pub(crate) fn of_row(matrix: &PackedView<'_>, i: usize) -> Self {
        let shape = matrix.shape();
        let (ty, bytes) = (shape.scale_type(), shape.group_bytes());
        Self::new(ty, shape.element(), bytes, matrix.row_codes(i), matrix.row_scales(i))
    }

    fn new(
        scale_type: ScaleType,
        element: Element,
        group_bytes: usize,
        codes: &[u8],
        scales: &[u8],
    ) -> Self {
        let mut counts = [0; 256];
        for_each_group(element, group_bytes, codes, scales, |scale, any| {
            counts[usize::from(scale)] += u32::from(any);
        });
        let mut row = ScaleCounts { scale_type, counts, live: 0 };
        row.live = row.live().map(|(_, _, count)| count).sum();
        row
    }

    /// Scale bytes of live groups, with their scales and numbers of groups.
    pub(super) fn live(&self) -> impl Iterator<Item = (usize, Scale, usize)> {
        let table = table(self.scale_type);
        self.counts.iter().enumerate().filter_map(|(byte, &count)| {
            let scale = table[byte];
            (count > 0 && scale.significand != 0).then_some((byte, scale, count as usize))
        })
    }
}

/// The live groups of a row in windows of exponents.
#[derive(Debug, Clone)]
pub(crate) struct Planes {
    /// Number of planes, at least 1.
    pub(crate) count: usize,
    /// True if every live group is in a plane.
    pub(crate) complete: bool,
    /// Base exponent of each plane.
    pub(crate) base: [i32; MAX_PLANES],
    /// The plane of groups with a scale byte; [`Planes::NONE`] for bytes without live groups.
    pub(crate) of_byte: [u8; 256],
    /// The scale of a byte over 2^base of its plane; 0 where there is no plane.
    pub(crate) scaled: [i16; 256],
}

impl Planes {
    /// No plane.
    pub(crate) const NONE: u8 = u8::MAX;

    /// Sorts the live groups of a row into planes whose scaled magnitudes are at most `limit`.
    pub(crate) fn new(row: &ScaleCounts, limit: i32) -> Self {
        let planes = Self::laid(row, limit, true);
        if planes.complete && planes.count <= 2 {
            return planes;
        }
        let fewest = Self::laid(row, limit, false);
        let is_better = !planes.complete || fewest.complete && fewest.count < planes.count;
        if is_better { fewest } else { planes }
    }

    /// The largest scaled magnitude in plane `plane`.
    pub(crate) fn largest(&self, plane: usize) -> i32 {
        let of_plane = self.of_byte.iter().zip(&self.scaled);
        let of_plane = of_plane.filter(|(of, _)| usize::from(**of) == plane);
        of_plane.map(|(_, scaled)| i32::from(scaled.abs())).max().unwrap_or(0)
    }

    /// The shift plus one of an e8m0 scale over the base of plane `plane`, 0 if it is not in it.
    #[inline(always)]
    pub(crate) fn shift(&self, plane: usize, byte: u8) -> u8 {
        let byte = usize::from(byte);
        let inside = usize::from(self.of_byte[byte]) == plane && self.scaled[byte] != 0;
        if inside { self.scaled[byte].trailing_zeros() as u8 + 1 } else { 0 }
    }

    /// Lays windows one by one: where they hold most groups, or else from the lowest exponent up.
    fn laid(row: &ScaleCounts, limit: i32, by_count: bool) -> Self {
        let mut planes = Planes {
            count: 0,
            complete: true,
            base: [0; MAX_PLANES],
            of_byte: [Self::NONE; 256],
            scaled: [0; 256],
        };
        let mut left = [(0, Scale { significand: 0, exponent: 0 }, 0); 256];
        let mut len = 0;
        for entry in row.live() {
            left[len] = entry;
            len += 1;
        }
        let fits = |scale: Scale, base: i16| {
            let shift = i32::from(scale.exponent) - i32::from(base);
            let magnitude = i32::from(scale.significand.abs());
            (0..16).contains(&shift) && magnitude << shift <= limit
        };
        while len > 0 && planes.count < MAX_PLANES {
            let left_now = &left[..len];
            let held = |base: i16| -> usize {
                left_now.iter().filter(|e| fits(e.1, base)).map(|e| e.2).sum()
            };
            let lowest = left_now.iter().map(|e| e.1.exponent).min().unwrap_or(0);
            let (mut base, mut best) = (lowest, held(lowest));
            if by_count && best < row.live {
                for (i, entry) in left_now.iter().enumerate() {
                    let candidate = entry.1.exponent;
                    let new = left_now[..i].iter().all(|e| e.1.exponent != candidate);
                    if new && held(candidate) > best {
                        (base, best) = (candidate, held(candidate));
                    }
                }
            }
            planes.base[planes.count] = base.into();
            let mut kept = 0;
            for i in 0..len {
                let (byte, scale, _) = left[i];
                if fits(scale, base) {
                    planes.of_byte[byte] = planes.count as u8;
                    planes.scaled[byte] = scale.significand << (scale.exponent - base);
                } else {
                    left[kept] = left[i];
                    kept += 1;
                }
            }
            len = kept;
            planes.count += 1;
        }
        planes.count = planes.count.max(1);
        planes.complete = len == 0;
        planes
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use fp4_core::Format;

    pub(in crate::matmul) fn histogram(format: Format, groups: &[(u8, u8)]) -> ScaleCounts {
        let bytes = format.group().get() / 2;
        let codes: Vec<u8> = groups.iter().flat_map(|g| vec![g.0; bytes]).collect();
        let scales: Vec<u8> = groups.iter().map(|g| g.1).collect();
        ScaleCounts::new(format.scale_type(), Element::E2m1, bytes, &codes, &scales)
    }

    #[test]
    fn a_window_of_limit_8_holds_four_exponents_and_no_fifth() {
        let planes = |groups: &[(u8, u8)]| Planes::new(&histogram(Format::MxFp4, groups), 8);
        let one = planes(&[(1, 100), (1, 101), (1, 103), (0, 200), (1, 255)]);
        assert_eq!((one.count, one.complete, one.base[0]), (1, true, -27));
        assert_eq!((one.scaled[100], one.scaled[103], one.scaled[200]), (1, 8, 0));
        assert_eq!(one.of_byte[255], Planes::NONE);
        let two = planes(&[(1, 100), (1, 101), (1, 104)]);
        assert_eq!((two.count, two.complete, two.base[0]), (2, true, -27));
        assert_eq!((two.of_byte[101], two.of_byte[104], two.scaled[104]), (0, 1, 1));
        let spread: Vec<_> = (0..6).map(|i| (1, 40 * i)).collect();
        let many = planes(&spread);
        assert_eq!((many.count, many.complete), (MAX_PLANES, false));
        assert!(planes(&spread[..5]).complete);
        // Where most groups are, the best window would waste the others.
        let dense: Vec<_> =
            (0..20).flat_map(|e| vec![(1, e); if e % 4 == 2 { 9 } else { 1 }]).collect();
        assert!(planes(&dense).complete);
        assert_eq!(planes(&[]).count, 1);
    }

    #[test]
    fn the_fewest_planes_count_where_the_fullest_would_take_three() {
        // Eight octaves: the fullest window of four starts at the second and leaves both ends.
        let counts = [1, 9, 9, 9, 9, 1, 1, 1];
        let groups: Vec<_> = (0..8).flat_map(|e| vec![(1, 100 + e as u8); counts[e]]).collect();
        let planes = Planes::new(&histogram(Format::MxFp4, &groups), 8);
        assert_eq!((planes.count, planes.complete), (2, true));
        assert_eq!(planes.base[..2], [-27, -23]);
        // Of as many, the fullest.
        let planes = Planes::new(&histogram(Format::MxFp4, &groups[1..]), 8);
        assert_eq!((planes.count, planes.base[0]), (2, -26));
    }

    #[test]
    fn e4m3_planes_hold_every_scale_as_base_times_scaled() {
        let format = Format::NvFp4;
        // Every byte, and every set of exponents with some of their bytes often.
        let all: Vec<_> = (0..=255).map(|byte| (0x11, byte)).collect();
        let often = |set: usize| {
            let bytes = all.iter().flat_map(move |&(code, byte)| {
                let often =
                    set >> (byte >> 3 & 0xF) & 1 == 1 && (byte as usize ^ set).is_multiple_of(3);
                vec![(code, byte); if often { 5 } else { 1 }]
            });
            bytes.collect::<Vec<_>>()
        };
        let cases = (0..1 << 15).step_by(7).map(often);
        for (groups, limit) in cases.flat_map(|groups| [(groups.clone(), 127), (groups, 258)]) {
            let planes = Planes::new(&histogram(format, &groups), limit);
            assert!(planes.complete, "{limit}: {} planes", planes.count);
            for byte in 0..=255u8 {
                let scale = format.scale_type().decode(byte);
                let scaled = planes.scaled[usize::from(byte)];
                assert!(i32::from(scaled.abs()) <= limit);
                if scale.is_nan() || scale == 0.0 {
                    assert_eq!(planes.of_byte[usize::from(byte)], Planes::NONE);
                } else {
                    let base = planes.base[usize::from(planes.of_byte[usize::from(byte)])];
                    assert_eq!(f32::from(scaled) * 2f32.powi(base), scale, "{byte:#x}");
                }
            }
        }
    }
}
