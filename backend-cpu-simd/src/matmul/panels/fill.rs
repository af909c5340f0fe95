//! Making panels: the rows of the weight become columns, their scale bytes those of planes.

use std::ops::Range;

use fp4_core::PackedView;

use super::{Exceptions, Panel, PlaneScale, Rest, SparsePlane, place};
use crate::matmul::meta::{Extremes, Reach, RowMeta};
use crate::matmul::operand::{CHUNK, COLUMNS, Form, LINES, Line, chunk_groups};
use crate::matmul::planes::{Planes, ScaleCounts};

/// The scaled byte of a scale over the base of its plane, which is not 0.
pub(super) fn scaled_byte(form: Form, scaled: i16) -> u8 {
    match form {
        Form::Fold => (scaled.trailing_zeros() as u8) << 4 | 0xF,
        Form::Group => scaled as i8 as u8,
    }
}

/// The rows of B that become the columns of one panel, as far as there are any.
pub(super) struct PanelRows<'a> {
    b: PackedView<'a>,
    form: Form,
    /// The first of them.
    first: usize,
    meta: Vec<RowMeta>,
    planes: Vec<Planes>,
}

impl<'a> PanelRows<'a> {
    /// Reads the scales of the rows `first..`.
    pub(super) fn new(b: PackedView<'a>, form: Form, first: usize) -> Self {
        let rows = first..b.shape().rows().min(first + COLUMNS);
        let planes = |j| Planes::new(&ScaleCounts::of_row(&b, j), form.limit_b());
        PanelRows {
            b,
            form,
            first,
            meta: rows.clone().map(|j| RowMeta::of_row(&b, j)).collect(),
            planes: rows.map(planes).collect(),
        }
    }

    /// Writes codes and the scale bytes of the first plane, which are zeros; returns what is known.
    pub(super) fn fill(&self, codes: &mut [Line], scales: &mut [u8]) -> Panel {
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
