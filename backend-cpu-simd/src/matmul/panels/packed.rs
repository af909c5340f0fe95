//! Reading panels back: the packed bytes that they were made from, as a whole or a group at a time,
//! and the exact sums that need them.

use std::ops::Range;

use fp4_core::{Element, Error, ExactSum, PackedMut, PackedView, ScaleType, reference};

use super::{Exceptions, Panel, Panels, place};
use crate::cost::Cost;
use crate::matmul::operand::{CHUNK, CHUNK_BYTES, COLUMNS, Form, LINES, Terms, chunk_groups};
use crate::matmul::planes::MAX_PLANES;
use crate::matmul::sum::power_of_two;
use crate::threads::TaskThreads;

impl Panels {
    /// The format's scale bytes of column `j` over the groups `groups`.
    pub(crate) fn packed_scales(
        &self,
        j: usize,
        groups: Range<usize>,
    ) -> impl Iterator<Item = u8> + '_ {
        let (p, c) = (j / COLUMNS, j % COLUMNS);
        let (panel, per) = (&self.panels[p], chunk_groups(&self.shape));
        let first = self.scales(p, 0);
        let base = move |plane: usize| panel.base[c] + i32::from(panel.plane_scale(plane).shift[c]);
        let byte = move |scaled: u8, plane: usize| -> u8 {
            packed_byte(self.shape.scale_type(), self.form, scaled, base(plane))
        };
        let mut outside = Outside::new(panel, c, self.shape.row_groups(), groups.start);
        // The next chunk of each sparse plane that is not before the group.
        let mut next: [usize; MAX_PLANES] = std::array::from_fn(|plane| {
            let chunks = panel.sparse().get(plane).map_or(&[][..], |plane| &plane.chunks);
            chunks.partition_point(|&chunk| (chunk as usize) < groups.start / per)
        });
        groups.map(move |group| {
            let (chunk, at) = (group / per, c * per + group % per);
            let scaled = first[chunk * COLUMNS * per + at];
            if scaled != 0 {
                return byte(scaled, 0);
            }
            for (i, (plane, next)) in panel.sparse().iter().zip(&mut next).enumerate() {
                while plane.chunks.get(*next).is_some_and(|&at| (at as usize) < chunk) {
                    *next += 1;
                }
                if plane.chunks.get(*next).is_some_and(|&at| at as usize == chunk) {
                    let scaled = plane.scales[*next * COLUMNS * per + at];
                    if scaled != 0 {
                        return byte(scaled, i + 1);
                    }
                }
            }
            outside.byte(group)
        })
    }

    /// The packed bytes of a chunk of column `j`.
    fn packed_codes(&self, j: usize, chunk: usize) -> [u8; CHUNK_BYTES] {
        let (lines, c) = (&self.codes(j / COLUMNS)[chunk * LINES..][..LINES], j % COLUMNS);
        let mut bytes = [0; CHUNK_BYTES];
        for (q, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let (line, lane) = place(self.form, c, q);
            *bytes = lines[line].0.as_chunks::<4>().0[lane];
        }
        bytes
    }

    /// Writes the packed matrix that the panels were made from.
    pub(crate) fn export(
        &self,
        threads: &TaskThreads,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        let (codes, scales) = out.buffers();
        if codes.is_empty() {
            return Ok(());
        }
        let (row, groups) = (self.shape.row_bytes(), self.shape.row_groups());
        let plan = threads.plan(Cost::reorder(codes.len()));
        let rows = codes.chunks_exact_mut(row).zip(scales.chunks_exact_mut(groups));
        threads.run(plan, rows.enumerate(), |(j, (codes, scales))| {
            for (chunk, bytes) in codes.chunks_mut(CHUNK_BYTES).enumerate() {
                bytes.copy_from_slice(&self.packed_codes(j, chunk)[..bytes.len()]);
            }
            let packed = self.packed_scales(j, 0..groups);
            scales.iter_mut().zip(packed).for_each(|(to, byte)| *to = byte);
            Ok(())
        })?;
        Ok(())
    }

    /// True if a scale of column `j` over the groups `groups` is NaN.
    pub(crate) fn is_nan(&self, j: usize, groups: &Range<usize>) -> bool {
        let scale_type = self.shape.scale_type();
        self.panels[j / COLUMNS].meta(j % COLUMNS).nan
            && (groups.len() == self.shape.row_groups()
                || self.packed_scales(j, groups.clone()).any(|byte| scale_type.is_nan(byte)))
    }

    /// The exact sum over the groups `groups`, B's, of row `i` of A and column `j`, NaN scales
    /// counted as zero: the wide path.
    pub(crate) fn exact_sum(
        &self,
        a: &PackedView<'_>,
        i: usize,
        j: usize,
        groups: Range<usize>,
    ) -> Result<ExactSum, Error> {
        let (scale_type, per) = (self.shape.scale_type(), chunk_groups(&self.shape));
        let (terms, type_a) = (Terms::new(a.shape(), self.shape), a.shape().scale_type());
        let (dot, bytes) = match a.shape().element() {
            Element::E2m1 => (reference::group_dot as fn(&[u8], &[u8]) -> i64, CHUNK / 2 / per),
            Element::Int8 => (reference::group_dot_int8 as _, CHUNK / per),
        };
        let bytes_b = CHUNK_BYTES / per;
        let (codes_a, scales_a) = (a.row_codes(i), a.row_scales(i));
        let mut sum = ExactSum::ZERO;
        for (g, scale_b) in groups.clone().zip(self.packed_scales(j, groups)) {
            let (a, b) = (type_a.parts(scales_a[g / terms.per_scale]), scale_type.parts(scale_b));
            let (Some(a), Some(b)) = (a, b) else { continue };
            let chunk = self.packed_codes(j, g / per);
            let codes_b = &chunk[g % per * bytes_b..][..bytes_b];
            let dot = dot(&codes_a[g * bytes..][..bytes], codes_b);
            let significand = dot * i64::from(a.significand * b.significand);
            if significand != 0 {
                sum.add_scaled(significand, a.exponent + b.exponent + terms.unit)?;
            }
        }
        Ok(sum)
    }
}

/// The format's byte of a scaled byte in a plane with this base: the inverse of
/// [`scaled_byte`](super::fill::scaled_byte).
#[inline]
fn packed_byte(scale_type: ScaleType, form: Form, scaled: u8, base: i32) -> u8 {
    match (scale_type, form) {
        // Byte b is 2^(b - 127).
        (ScaleType::E8M0, Form::Fold) => (base + i32::from(scaled >> 4) + 127) as u8,
        (ScaleType::E8M0, Form::Group) => (base + scaled.trailing_zeros() as i32 + 127) as u8,
        // Exact, so nothing is rounded.
        (ScaleType::E4M3, _) => scale_type.encode(f32::from(scaled as i8) * power_of_two(base)),
    }
}

/// The format's bytes of one column's groups that are in no plane, in ascending order of groups.
struct Outside<'a> {
    common: u8,
    /// Place of the column's first group.
    start: usize,
    /// What is left of [`Exceptions::Few`].
    few: (&'a [u32], &'a [u8]),
    all: Option<&'a [u8]>,
}

impl<'a> Outside<'a> {
    fn new(panel: &'a Panel, c: usize, row_groups: usize, group: usize) -> Self {
        let start = c * row_groups;
        let (mut few, mut all): ((&[u32], &[u8]), _) = ((&[], &[]), None);
        match panel.rest.as_ref().and_then(|rest| rest.exceptions.as_ref()) {
            None => {}
            Some(Exceptions::Few { places, bytes }) => {
                let at = places.partition_point(|&place| (place as usize) < start + group);
                few = (&places[at..], &bytes[at..]);
            }
            Some(Exceptions::All(bytes)) => all = Some(&bytes[start..start + row_groups]),
        }
        Outside { common: panel.common[c], start, few, all }
    }

    fn byte(&mut self, group: usize) -> u8 {
        if let Some(all) = self.all {
            return all[group];
        }
        while let ([place, places @ ..], [byte, bytes @ ..]) = self.few {
            match (*place as usize).cmp(&(self.start + group)) {
                std::cmp::Ordering::Less => self.few = (places, bytes),
                std::cmp::Ordering::Equal => return *byte,
                std::cmp::Ordering::Greater => break,
            }
        }
        self.common
    }
}

#[cfg(test)]
mod tests {
    use fp4_core::{Format, PackedMatrix, PackedShape};

    use super::super::fill::scaled_byte;
    use super::*;

    #[test]
    fn a_scaled_byte_gives_its_packed_byte_back() {
        let mut compared = 0;
        for (format, form) in [
            (Format::MxFp4, Form::Fold),
            (Format::MxFp4, Form::Group),
            (Format::NvFp4, Form::Group),
        ] {
            let scale_type = format.scale_type();
            let table = crate::matmul::meta::table(scale_type);
            let bases = || (-127..=127).filter(|_| scale_type == ScaleType::E8M0).chain(-9..=9);
            for (byte, base) in (0..=255u8).flat_map(|byte| bases().map(move |base| (byte, base))) {
                let scale = table[usize::from(byte)];
                let shift = i32::from(scale.exponent) - base;
                let limit = form.limit_b();
                if scale.significand == 0
                    || !(0..16).contains(&shift)
                    || i32::from(scale.significand.abs()) << shift > limit
                {
                    continue;
                }
                let scaled = scaled_byte(form, scale.significand << shift);
                assert_ne!(scaled, 0);
                let got = packed_byte(scale_type, form, scaled, base);
                assert_eq!(got, byte, "{format} {form:?} base {base}");
                compared += 1;
            }
        }
        println!("compared {compared} bytes");
        assert!(compared > 2500);
    }

    /// Rows whose groups are mostly alike, with `odd` in a thousand groups of any byte and any
    /// codes.
    fn matrix(format: Format, rows: usize, k: usize, odd: u64) -> PackedMatrix {
        let shape = PackedShape::of(format, rows, k).unwrap();
        let mut state = odd + 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        let mut codes: Vec<u8> = (0..shape.codes_len()).map(|_| next() as u8).collect();
        let scales = (0..shape.scales_len()).map(|_| match next() % 1000 {
            draw if draw < odd => next() as u8,
            _ => 120 + (next() % 3) as u8,
        });
        let scales = scales.collect();
        for group in codes.chunks_mut(shape.group().get() / 2) {
            if next() % 1000 < odd {
                group.fill([0x00, 0x88, 0x08][next() as usize % 3]);
            }
        }
        PackedMatrix::new(shape, codes, scales).unwrap()
    }

    #[test]
    fn the_packed_scales_are_read_back_over_every_range() {
        let (mut compared, mut few, mut all, mut sparse) = (0, 0, 0, 0);
        for (format, form) in [
            (Format::MxFp4, Form::Fold),
            (Format::MxFp4, Form::Group),
            (Format::NvFp4, Form::Group),
        ] {
            for (rows, groups, odd) in [
                (1, 3, 900),
                (16, 64, 0),
                (33, 65, 5),
                (40, 200, 60),
                (17, 90, 1000),
                (20, 31, 300),
            ] {
                let b = matrix(format, rows, groups * format.group().get(), odd);
                let panels = Panels::new(&TaskThreads::default(), b.view(), form).unwrap();
                for j in 0..rows {
                    let scales = b.view().row_scales(j).to_vec();
                    for range in [0..groups, 0..1, groups / 3..groups, 1..groups - 1] {
                        let got: Vec<u8> = panels.packed_scales(j, range.clone()).collect();
                        assert_eq!(got, scales[range.clone()], "{format} {form:?} {odd}: {j}");
                        let nan = got.iter().any(|&byte| format.scale_type().is_nan(byte));
                        assert_eq!(panels.is_nan(j, &range), nan);
                        compared += got.len();
                    }
                }
                for rest in panels.panels.iter().filter_map(|p| p.rest.as_ref()) {
                    few += usize::from(matches!(rest.exceptions, Some(Exceptions::Few { .. })));
                    all += usize::from(matches!(rest.exceptions, Some(Exceptions::All(_))));
                    sparse += rest.planes.len();
                }
            }
        }
        println!(
            "compared {compared} bytes; {few} panels with few, {all} with all, {sparse} planes"
        );
        assert!(compared > 40_000 && few > 5 && all > 5 && sparse > 20);
    }
}
