//! The weight B in panels of 16 columns, prepared once: the packed bytes in another order (C3, C6).
//!
//! The layout is `operand`'s. A panel holds each packed byte of codes once, and one scale byte for
//! each packed one. That is the *scaled* byte of the column's first plane ([`Planes`]), and 0 for a
//! group outside of it, so the format's own byte is read back from
//!
//! ```text
//! a scaled byte of the first plane or of a further one     byte of (scaled * 2^base of the plane)
//! else one of the panel's exceptions                       kept as it was
//! else the column's common byte                            the most frequent byte of groups in no
//! plane
//! ```
//!
//! Groups in no plane are those whose scale is NaN or zero, whose codes are all +-0 under a byte
//! that no other group of the column has, and what does not fit the planes of an incomplete column.
//! So padding and pruned columns cost nothing, and a panel keeps exceptions only where a column has
//! several such bytes.
//!
//! Worked example, MXFP4, a column with scale bytes 130, 131, 0 and 255, the codes under the 0 all
//! zeros: the base is 2^3, the scaled bytes 1 and 2, then 0 and 0. The common byte is 0, and 255 an
//! exception.

use std::ops::Range;

use fp4_core::{
    Element, Error, ExactSum, Format, PackedMut, PackedShape, PackedView, ScaleType, reference,
};

use super::PanelView;
use super::meta::{Extremes, Planes, Reach, RowMeta, ScaleCounts};
use super::operand::{
    CHUNK, CHUNK_BYTES, COLUMNS, Form, LINES, Line, TASK_BYTES, Terms, chunk_groups,
};
use super::sum::power_of_two;
use crate::threads::TaskThreads;

/// How a plane of a panel relates to the columns.
#[derive(Debug, Clone, Copy)]
struct PlaneScale {
    /// The plane's base over the base of the column's metadata.
    shift: [u8; COLUMNS],
    /// Largest scaled magnitude.
    max: i32,
}

/// A plane that has some chunks only.
#[derive(Debug, Clone)]
struct SparsePlane {
    scale: PlaneScale,
    /// The chunks that the plane has, ascending.
    chunks: Box<[u32]>,
    /// Their scale bytes.
    scales: Box<[u8]>,
}

/// The format's bytes of groups that are in no plane, other than the common one of their column.
/// Places are `column * groups of a row + group`.
#[derive(Debug, Clone)]
enum Exceptions {
    Few {
        places: Box<[u32]>,
        bytes: Box<[u8]>,
    },
    /// Every byte of the panel, by place.
    All(Box<[u8]>),
}

/// What panels of ordinary weights do not have.
#[derive(Debug, Clone)]
struct Rest {
    planes: Box<[SparsePlane]>,
    exceptions: Option<Exceptions>,
}

/// What is known of one panel.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    /// Columns that exist.
    columns: u16,
    /// Bit c: column c has a NaN.
    nan: u16,
    /// Bit c: every live group of column c is in a plane.
    complete: u16,
    live: [u32; COLUMNS],
    reach: [Reach; COLUMNS],
    base: [i32; COLUMNS],
    extremes: Extremes,
    first: PlaneScale,
    /// The format's byte of a column's groups that are in no plane.
    common: [u8; COLUMNS],
    rest: Option<Box<Rest>>,
}

/// A plane of a panel, as the driver reads it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PanelPlane<'a> {
    /// The chunks that the plane has, ascending; plane 0 has all and lists none.
    pub(crate) chunks: &'a [u32],
    /// The plane's base over the base of the column's metadata.
    pub(crate) shift: [u32; COLUMNS],
    /// Largest scaled magnitude.
    pub(crate) max: i32,
}

impl Panel {
    /// Columns that exist.
    pub(crate) fn columns(&self) -> usize {
        self.columns.into()
    }

    /// Base exponents of the columns.
    pub(crate) fn bases(&self) -> &[i32; COLUMNS] {
        &self.base
    }

    /// Extremes over the columns.
    pub(crate) fn extremes(&self) -> &Extremes {
        &self.extremes
    }

    /// The metadata of column `c`.
    pub(crate) fn meta(&self, c: usize) -> RowMeta {
        RowMeta {
            nan: self.nan >> c & 1 == 1,
            live: self.live[c] as usize,
            base: self.base[c],
            reach: self.reach[c].get(),
        }
    }

    /// True if every live group of column `c` is in a plane.
    pub(crate) fn is_complete(&self, c: usize) -> bool {
        self.complete >> c & 1 == 1
    }

    /// The planes past the first.
    fn sparse(&self) -> &[SparsePlane] {
        self.rest.as_ref().map_or(&[], |rest| &rest.planes)
    }

    /// How many planes there are, at least 1.
    pub(crate) fn planes(&self) -> usize {
        1 + self.sparse().len()
    }

    fn plane_scale(&self, plane: usize) -> &PlaneScale {
        if plane == 0 { &self.first } else { &self.sparse()[plane - 1].scale }
    }

    /// Plane `plane`.
    pub(crate) fn plane(&self, plane: usize) -> PanelPlane<'_> {
        let chunks = if plane == 0 { &[][..] } else { &self.sparse()[plane - 1].chunks };
        let PlaneScale { shift, max } = *self.plane_scale(plane);
        PanelPlane { chunks, shift: shift.map(u32::from), max }
    }

    /// Largest scaled magnitude of plane 0.
    pub(crate) fn first_max(&self) -> i32 {
        self.first.max
    }
}

/// The prepared weight B (N, K).
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    shape: PackedShape,
    format: Format,
    form: Form,
    chunks: usize,
    codes: Vec<Line>,
    scales: Vec<u8>,
    panels: Vec<Panel>,
}

impl Panels {
    /// Reorders the weight.
    pub(crate) fn new(threads: &TaskThreads, b: PackedView<'_>, form: Form) -> Result<Self, Error> {
        let shape = b.shape();
        let format = shape.expect_format()?;
        let chunks = shape.k().div_ceil(CHUNK);
        let count = shape.rows().div_ceil(COLUMNS);
        let scale_bytes = COLUMNS * chunk_groups(&shape);
        let mut codes = vec![Line([0; 64]); count * chunks * LINES];
        let mut scales = vec![0; count * chunks * scale_bytes];
        let split = count.div_ceil(threads.tasks(shape.codes_len(), TASK_BYTES)).max(1);
        let mut panels = Vec::with_capacity(count);
        if chunks > 0 {
            let lines = codes.chunks_mut(split * chunks * LINES);
            let tasks = lines.zip(scales.chunks_mut(split * chunks * scale_bytes));
            let tasks: Vec<_> = tasks.enumerate().collect();
            let made = threads.run(tasks, |(t, (codes, scales))| {
                let lines = codes.chunks_exact_mut(chunks * LINES);
                let panels = lines.zip(scales.chunks_exact_mut(chunks * scale_bytes));
                let fill = panels.enumerate().map(|(p, (codes, scales))| {
                    PanelRows::new(b, form, (t * split + p) * COLUMNS).fill(codes, scales)
                });
                Ok(fill.collect::<Vec<_>>())
            })?;
            panels.extend(made.into_iter().flatten());
        } else {
            let fill = |p| PanelRows::new(b, form, p * COLUMNS).fill(&mut [], &mut []);
            panels.extend((0..count).map(fill));
        }
        Ok(Panels { shape, format, form, chunks, codes, scales, panels })
    }

    /// Shape and format of the weight.
    pub(crate) fn shape(&self) -> PackedShape {
        self.shape
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    pub(crate) fn format(&self) -> Format {
        self.format
    }

    /// All panels.
    pub(crate) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// Bytes allocated.
    pub(crate) fn allocated_bytes(&self) -> usize {
        let rest = |rest: &Rest| {
            let planes = rest.planes.iter();
            let planes = planes.map(|p| size_of_val(p) + size_of_val(&*p.chunks) + p.scales.len());
            let exceptions = match &rest.exceptions {
                None => 0,
                Some(Exceptions::Few { places, bytes }) => size_of_val(&**places) + bytes.len(),
                Some(Exceptions::All(bytes)) => bytes.len(),
            };
            size_of_val(rest) + planes.sum::<usize>() + exceptions
        };
        self.codes.capacity() * size_of::<Line>()
            + self.scales.capacity()
            + self.panels.capacity() * size_of::<Panel>()
            + self.panels.iter().filter_map(|p| p.rest.as_deref()).map(rest).sum::<usize>()
    }

    /// The codes of panel `p`, [`LINES`] lines a chunk.
    fn codes(&self, p: usize) -> &[Line] {
        let len = self.chunks * LINES;
        &self.codes[p * len..(p + 1) * len]
    }

    /// The codes of the panels `panels`, one after the other; none if the range is empty.
    pub(crate) fn run_of_codes(&self, panels: Range<usize>) -> &[Line] {
        let len = self.chunks * LINES;
        if panels.is_empty() { &[] } else { &self.codes[panels.start * len..panels.end * len] }
    }

    /// The scale bytes of plane `plane` of panel `p`, for each chunk that it has.
    fn scales(&self, p: usize, plane: usize) -> &[u8] {
        if plane > 0 {
            return &self.panels[p].sparse()[plane - 1].scales;
        }
        let len = self.chunks * COLUMNS * chunk_groups(&self.shape);
        &self.scales[p * len..(p + 1) * len]
    }

    /// What a kernel reads of plane `plane` of panel `p`.
    pub(crate) fn view(&self, p: usize, plane: usize) -> PanelView<'_> {
        let groups = chunk_groups(&self.shape);
        PanelView { codes: self.codes(p), scales: self.scales(p, plane), groups }
    }

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
        let mut next: [usize; super::meta::MAX_PLANES] = std::array::from_fn(|plane| {
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
        let worth = threads.tasks(codes.len(), TASK_BYTES) > 1;
        let rows = codes.chunks_exact_mut(row).zip(scales.chunks_exact_mut(groups));
        threads.run_mut(&mut rows.collect::<Vec<_>>(), worth, |(j, (codes, scales))| {
            for (chunk, bytes) in codes.chunks_mut(CHUNK_BYTES).enumerate() {
                bytes.copy_from_slice(&self.packed_codes(j, chunk)[..bytes.len()]);
            }
            let packed = self.packed_scales(j, 0..groups);
            scales.iter_mut().zip(packed).for_each(|(to, byte)| *to = byte);
            Ok(())
        })
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

/// The scaled byte of a scale over the base of its plane, which is not 0.
fn scaled_byte(form: Form, scaled: i16) -> u8 {
    match form {
        Form::Fold => (scaled.trailing_zeros() as u8) << 4 | 0xF,
        Form::Group => scaled as i8 as u8,
    }
}

/// The format's byte of a scaled byte in a plane with this base: the inverse of [`scaled_byte`].
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

/// Line and lane of bytes 4q..4q+4 of a chunk in column `c`.
fn place(form: Form, c: usize, q: usize) -> (usize, usize) {
    match form {
        Form::Fold => (q, c),
        Form::Group => {
            let (g, j) = (q / 2, q % 2);
            (c % 4 / 2 * 2 + j, 2 * (c / 4 * 2 + c % 2) + g)
        }
    }
}

/// The rows of B that become the columns of one panel, as far as there are any.
struct PanelRows<'a> {
    b: PackedView<'a>,
    form: Form,
    /// The first of them.
    first: usize,
    meta: Vec<RowMeta>,
    planes: Vec<Planes>,
}

impl<'a> PanelRows<'a> {
    /// Reads the scales of the rows `first..`.
    fn new(b: PackedView<'a>, form: Form, first: usize) -> Self {
        let rows = first..b.shape().rows().min(first + COLUMNS);
        let histograms: Vec<_> = rows.map(|j| ScaleCounts::of_row(&b, j)).collect();
        PanelRows {
            b,
            form,
            first,
            meta: histograms.iter().map(RowMeta::new).collect(),
            planes: histograms.iter().map(|h| Planes::new(h, form.limit_b())).collect(),
        }
    }

    /// Writes codes and the scale bytes of the first plane, which are zeros; returns what is known.
    fn fill(&self, codes: &mut [Line], scales: &mut [u8]) -> Panel {
        self.place_codes(codes);
        let chunks = 0..self.b.shape().k().div_ceil(CHUNK);
        let bytes = COLUMNS * chunk_groups(&self.b.shape());
        for (chunk, to) in chunks.clone().zip(scales.chunks_exact_mut(bytes.max(1))) {
            self.place_scales(0, chunk, to);
        }
        let count = self.planes.iter().map(|planes| planes.count).max().unwrap_or(1);
        let planes: Box<[_]> = (1..count).map(|plane| self.sparse(plane, chunks.clone())).collect();
        let mut common = [0; COLUMNS];
        let exceptions = self.exceptions(&mut common);
        let rest = !planes.is_empty() || exceptions.is_some();
        let bits = |set: &dyn Fn(usize) -> bool| {
            (0..self.meta.len()).fold(0u16, |bits, c| bits | u16::from(set(c)) << c)
        };
        let column = |c: usize| self.meta.get(c).copied().unwrap_or_default();
        let complete = |c: usize| self.planes[c].complete;
        Panel {
            columns: self.meta.len() as u16,
            nan: bits(&|c| self.meta[c].nan),
            // Columns that do not exist hold nothing back.
            complete: bits(&complete) | !bits(&|_| true),
            live: std::array::from_fn(|c| column(c).live as u32),
            reach: std::array::from_fn(|c| Reach::new(column(c).reach)),
            base: std::array::from_fn(|c| column(c).base),
            extremes: Extremes::of(self.meta.iter().zip(self.planes.iter().map(|p| p.complete))),
            first: self.plane_scale(0),
            common,
            rest: rest.then(|| Box::new(Rest { planes, exceptions })),
        }
    }

    fn place_codes(&self, codes: &mut [Line]) {
        for c in 0..self.meta.len() {
            let bytes = self.b.row_codes(self.first + c).as_chunks::<4>().0;
            for (at, bytes) in bytes.iter().enumerate() {
                let (line, lane) = place(self.form, c, at % 4);
                codes[at / 4 * LINES + line].0.as_chunks_mut::<4>().0[lane] = *bytes;
            }
        }
    }

    /// Writes the scale bytes of a chunk in a plane; false if they are all zero.
    fn place_scales(&self, plane: usize, chunk: usize, to: &mut [u8]) -> bool {
        let (per, mut any) = (chunk_groups(&self.b.shape()), false);
        for (c, planes) in self.planes.iter().enumerate() {
            let scales = self.b.row_scales(self.first + c);
            for (g, &byte) in scales[chunk * per..].iter().take(per).enumerate() {
                if usize::from(planes.of_byte[usize::from(byte)]) == plane {
                    to[c * per + g] = scaled_byte(self.form, planes.scaled[usize::from(byte)]);
                    any = true;
                }
            }
        }
        any
    }

    fn plane_scale(&self, plane: usize) -> PlaneScale {
        let mut scale = PlaneScale { shift: [0; COLUMNS], max: 0 };
        for (c, planes) in self.planes.iter().enumerate() {
            if plane < planes.count {
                // Exponents of scales span at most 254.
                scale.shift[c] = (planes.base[plane] - self.meta[c].base) as u8;
            }
            scale.max = scale.max.max(planes.largest(plane));
        }
        scale
    }

    /// Plane `plane`, which is not the first.
    fn sparse(&self, plane: usize, chunks: Range<usize>) -> SparsePlane {
        let (mut listed, mut scales) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let mut to = [0; 2 * COLUMNS];
            let to = &mut to[..COLUMNS * chunk_groups(&self.b.shape())];
            if self.place_scales(plane, chunk, to) {
                listed.push(chunk as u32);
                scales.extend(&*to);
            }
        }
        let scale = self.plane_scale(plane);
        SparsePlane { scale, chunks: listed.into(), scales: scales.into() }
    }

    /// The bytes that are in no plane: the most frequent one of each column, and the others.
    fn exceptions(&self, common: &mut [u8; COLUMNS]) -> Option<Exceptions> {
        let groups = self.b.shape().row_groups();
        let (mut places, mut bytes) = (Vec::new(), Vec::new());
        for (c, planes) in self.planes.iter().enumerate() {
            let scales = self.b.row_scales(self.first + c);
            let outside = |byte: u8| planes.of_byte[usize::from(byte)] == Planes::NONE;
            let mut counts = [0u32; 256];
            scales.iter().filter(|&&byte| outside(byte)).for_each(|&b| counts[usize::from(b)] += 1);
            // The first of the most frequent.
            let most = (0..=255u8).rev().max_by_key(|&byte| counts[usize::from(byte)]);
            common[c] = most.unwrap_or(0);
            for (group, &byte) in scales.iter().enumerate() {
                if byte != common[c] && outside(byte) {
                    places.push(c * groups + group);
                    bytes.push(byte);
                }
            }
        }
        if places.is_empty() {
            return None;
        }
        let all = self.meta.len() * groups;
        let few = places.iter().map(|&place| u32::try_from(place)).collect::<Result<Box<_>, _>>();
        match few {
            Ok(places) if places.len() * (1 + size_of::<u32>()) < all => {
                Some(Exceptions::Few { places, bytes: bytes.into() })
            }
            _ => {
                let rows = self.first..self.first + self.meta.len();
                Some(Exceptions::All(rows.flat_map(|j| self.b.row_scales(j)).copied().collect()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use fp4_core::PackedMatrix;

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
            let table = super::super::meta::table(scale_type);
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
