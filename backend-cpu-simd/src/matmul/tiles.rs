//! The activation A in tiles of rows, packed for each call (C3, C6). The layout is `operand`'s.
//!
//! A tile is filled in four phases:
//!
//! ```text
//! survey         metadata of each row, and planes of those that need several
//! pack_codes     group form and MXINT8: the codes, which all planes share
//! list_planes    which chunks each plane has, and how its base relates to the rows'
//! pack_folded    fold form: codes with the plane's scales folded in
//! pack_scales    group form and MXINT8: the plane's scaled scales, or shifts
//! ```

use std::ops::Range;

use fp4_core::{Element, Error, Format, PackedShape, PackedView};

use super::meta::{Extremes, RowMeta};
use super::operand::{CHUNK, Form, INT8_LIMIT_A, MAX_ROWS, NO_SHIFT, STEPS};
use super::planes::{MAX_PLANES, Planes, ScaleCounts};
use super::{FoldKernels, Kernels};
use crate::cost::Cost;
use crate::isa::Isa;
use crate::threads::TaskThreads;

/// A plane of a tile.
#[derive(Debug, Default)]
pub(crate) struct TilePlane {
    /// The slots of the tile's chunks that the plane has, ascending; plane 0 has all and lists
    /// none.
    pub(crate) slots: Vec<u32>,
    /// Fold form: codes of the plane's slots.
    codes: Vec<i32>,
    /// Fold form: sums of 32 values, for each slot and row.
    pub(crate) sums: Vec<i32>,
    /// What sums over all slots are too large by, for each row: zeros but in the fold form.
    pub(crate) corrections: [i32; MAX_ROWS],
    /// Group form and MXINT8: scaled scales or shifts, for each slot and row.
    scales: Vec<[i16; 4]>,
    /// The plane's base over the base of the row's metadata.
    pub(crate) shift: Vec<u32>,
    /// Largest scaled magnitude.
    pub(crate) max: i32,
}

impl TilePlane {
    /// How many of a tile's `slots` plane `p` has.
    fn held(&self, p: usize, slots: usize) -> usize {
        if p == 0 { slots } else { self.slots.len() }
    }

    /// Bytes of memory held beside the struct itself.
    fn allocated_bytes(&self) -> usize {
        bytes_of(&self.codes)
            + bytes_of(&self.sums)
            + bytes_of(&self.scales)
            + bytes_of(&self.shift)
            + bytes_of(&self.slots)
    }

    /// Fold form: adds the sums of a slot to `sums`, one for each row.
    pub(crate) fn add_sums(&self, slot: usize, sums: &mut [i32]) {
        let rows = sums.len();
        for (sum, &add) in sums.iter_mut().zip(&self.sums[slot * rows..]) {
            *sum = sum.wrapping_add(add);
        }
    }
}

/// Some rows of A, over a range of groups.
#[derive(Debug)]
pub(crate) struct RowTile {
    /// Index of the first row.
    pub(crate) first: usize,
    /// Metadata of the rows, over all of K.
    pub(crate) meta: Vec<RowMeta>,
    pub(crate) complete: Vec<bool>,
    /// Bases of the rows; past the last row that of the first.
    pub(crate) bases: [i32; MAX_ROWS],
    pub(crate) extremes: Extremes,
    /// True if the planes share the codes and differ in their scales: group form and MXINT8.
    shared: bool,
    /// Such codes, and -12 times the sums of halves, or -128 times those of chunks.
    codes: Vec<i32>,
    init: Vec<[i32; 2]>,
    planes: Vec<TilePlane>,
    count: usize,
    /// Scratch of [`fill`](Self::fill).
    scratch: TileFill,
}

/// What is known of a tile while it is packed. Its buffers are kept.
#[derive(Debug, Default)]
struct TileFill {
    /// The planes of rows that are not in one: which of the `several`.
    planes: Vec<Option<usize>>,
    several: Vec<Planes>,
    /// Scaled scales of a row.
    scaled: Vec<i16>,
    /// Fold form: shifts of the scales plus one, for each row and slot of a plane; 0 outside of it.
    shifts: Vec<u8>,
}

impl TileFill {
    fn clear(&mut self) {
        self.planes.clear();
        self.several.clear();
    }

    /// Bytes of memory held beside the struct itself.
    fn allocated_bytes(&self) -> usize {
        bytes_of(&self.planes)
            + bytes_of(&self.several)
            + bytes_of(&self.scaled)
            + bytes_of(&self.shifts)
    }

    /// How many planes a row has.
    fn count(&self, row: usize) -> usize {
        self.planes[row].map_or(1, |at| self.several[at].count)
    }

    /// Base and largest scaled magnitude of plane `p` of a row, if it has it.
    fn window(&self, row: usize, meta: &RowMeta, p: usize) -> Option<(i32, i32)> {
        match self.planes[row] {
            None => (p == 0).then_some((meta.base, meta.reach as i32)),
            Some(at) => {
                let planes = &self.several[at];
                (p < planes.count).then(|| (planes.base[p], planes.largest(p)))
            }
        }
    }

    /// True if a group with one of the scales is in plane `p`, not 0, of a row.
    fn has_any(&self, row: usize, p: usize, scales: &[u8]) -> bool {
        self.planes[row].is_some_and(|at| {
            let of_byte = &self.several[at].of_byte;
            scales.iter().any(|&s| usize::from(of_byte[usize::from(s)]) == p)
        })
    }

    /// Makes `scaled` the scaled scales, in plane `p` of a row, of each group of A in the slots of
    /// the tile, 0 for groups that are outside of the tile's range.
    #[inline(always)]
    fn scale(&mut self, from: &TileSource<'_>, row: usize, meta: &RowMeta, p: usize) {
        let all = from.scales_of_slots();
        let scales = &from.a.row_scales(from.rows.start + row)[all.clone()];
        self.scaled.clear();
        self.scaled.resize(from.chunks.len() * (from.per / from.per_scale), 0);
        match self.planes[row] {
            None if p > 0 => {}
            None => meta.scaled(from.a.shape().scale_type(), scales, &mut self.scaled),
            Some(at) => {
                let planes = &self.several[at];
                for (to, &scale) in self.scaled.iter_mut().zip(scales) {
                    let byte = usize::from(scale);
                    if usize::from(planes.of_byte[byte]) == p {
                        *to = planes.scaled[byte];
                    }
                }
            }
        }
    }
}

/// What a kernel reads of A.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileView<'a> {
    pub(crate) rows: usize,
    pub(crate) codes: &'a [i32],
    pub(crate) init: &'a [[i32; 2]],
    pub(crate) scales: &'a [[i16; 4]],
}

/// Bytes of memory that a vector holds, used or not.
fn bytes_of<T>(values: &Vec<T>) -> usize {
    values.capacity() * size_of::<T>()
}

impl RowTile {
    fn empty() -> Self {
        RowTile {
            first: 0,
            meta: Vec::new(),
            complete: Vec::new(),
            bases: [0; MAX_ROWS],
            extremes: Extremes::of(std::iter::empty()),
            shared: false,
            codes: Vec::new(),
            init: Vec::new(),
            planes: Vec::new(),
            count: 0,
            scratch: TileFill::default(),
        }
    }

    /// Bytes of memory held beside the struct itself.
    fn allocated_bytes(&self) -> usize {
        bytes_of(&self.meta)
            + bytes_of(&self.complete)
            + bytes_of(&self.codes)
            + bytes_of(&self.init)
            + self.scratch.allocated_bytes()
            + bytes_of(&self.planes)
            + self.planes.iter().map(TilePlane::allocated_bytes).sum::<usize>()
    }

    /// The tile's planes.
    pub(crate) fn planes(&self) -> &[TilePlane] {
        &self.planes[..self.count]
    }

    /// What a kernel reads for plane `p`.
    pub(crate) fn view(&self, p: usize) -> TileView<'_> {
        let plane = &self.planes[p];
        let codes = if self.shared { &self.codes } else { &plane.codes };
        TileView { rows: self.meta.len(), codes, init: &self.init, scales: &plane.scales }
    }

    /// Packs the rows `rows` of `from`.
    fn fill<K: Kernels>(&mut self, kernels: K, form: Form, from: &TileSource<'_>) {
        self.shared = from.int8 || form == Form::Group;
        let limit = if from.int8 { INT8_LIMIT_A } else { form.limit_a() };
        kernels.enter(|| self.survey(from, limit));
        if self.shared {
            self.pack_codes(kernels, form, from);
        }
        self.list_planes(from);
        match kernels.for_fold(form) {
            Some(fold) if !from.int8 => self.pack_folded(kernels, fold, from),
            Some(_) => self.pack_scales(kernels, from, |[s, _]| {
                // The scale is a power of two, 0 outside of the plane.
                let shift = if s == 0 { NO_SHIFT } else { s.trailing_zeros() as i16 };
                [shift, 0, shift, 0]
            }),
            None if K::BY_HALVES => self.pack_scales(kernels, from, |[g, h]| [g, g, h, h]),
            None => self.pack_scales(kernels, from, |[g, h]| [g, h, g, h]),
        }
    }

    /// What is known of each row, and how many planes there are.
    #[inline(always)]
    fn survey(&mut self, from: &TileSource<'_>, limit: i32) {
        self.first = from.rows.start;
        self.meta.clear();
        self.complete.clear();
        self.scratch.clear();
        for i in from.rows.clone() {
            let plain = RowMeta::of_plain_row(from.a, i, limit);
            let meta = plain.unwrap_or_else(|| RowMeta::of_row(from.a, i));
            let (mut complete, mut planes) = (true, None);
            if meta.reach > limit as u64 {
                let several = Planes::new(&ScaleCounts::of_row(from.a, i), limit);
                complete = several.complete;
                planes = Some(self.scratch.several.len());
                self.scratch.several.push(several);
            }
            self.meta.push(meta);
            self.complete.push(complete);
            self.scratch.planes.push(planes);
        }
        self.bases = [self.meta.first().map_or(0, |meta| meta.base); MAX_ROWS];
        self.bases.iter_mut().zip(&self.meta).for_each(|(base, meta)| *base = meta.base);
        self.extremes = Extremes::of(self.meta.iter().zip(self.complete.iter().copied()));
        self.count = (0..self.meta.len()).map(|row| self.scratch.count(row)).max().unwrap_or(1);
        while self.planes.len() < self.count {
            self.planes.push(TilePlane::default());
        }
    }

    /// Group form and MXINT8: the codes, which all planes share.
    fn pack_codes<K: Kernels>(&mut self, kernels: K, form: Form, from: &TileSource<'_>) {
        let (rows, slots) = (from.rows.len(), from.chunks.len());
        self.codes.resize(slots * STEPS * rows, 0);
        self.init.resize(slots * rows, [0; 2]);
        for (row, i) in from.rows.clone().enumerate() {
            let at = RowOfTile { row, rows };
            let (codes, init) = (&mut self.codes, &mut self.init);
            match (from.int8, kernels.for_fold(form)) {
                (false, _) => kernels.pack_group(from.codes(i), at, codes, init),
                (true, None) => kernels.pack_int8(from.codes(i), at, codes, init),
                (true, Some(fold)) => fold.pack_int8(from.codes(i), at, codes, init),
            }
        }
    }

    /// Which slots each plane has, and how it relates to the rows.
    fn list_planes(&mut self, from: &TileSource<'_>) {
        for (p, plane) in self.planes[..self.count].iter_mut().enumerate() {
            plane.slots.clear();
            if p > 0 {
                // Groups outside the range may be listed; they are packed as zeros.
                plane.slots.extend((0..from.chunks.len() as u32).filter(|&slot| {
                    let scales_of_slot = from.scales_of_slot(slot as usize);
                    from.rows.clone().enumerate().any(|(row, i)| {
                        let scales = &from.a.row_scales(i)[scales_of_slot.clone()];
                        self.scratch.has_any(row, p, scales)
                    })
                }));
            }
            plane.corrections = [0; MAX_ROWS];
            plane.shift.clear();
            plane.max = 0;
            for (row, meta) in self.meta.iter().enumerate() {
                let (base, largest) = self.scratch.window(row, meta, p).unwrap_or((meta.base, 0));
                plane.shift.push((base - meta.base) as u32);
                plane.max = plane.max.max(largest);
            }
        }
    }

    /// Fold form: the codes of each plane, with its scales folded in.
    fn pack_folded<F: FoldKernels>(
        &mut self,
        kernels: impl Kernels<Fold = F>,
        fold: F,
        from: &TileSource<'_>,
    ) {
        let rows = from.rows.len();
        let mut codes = [&[][..]; MAX_ROWS];
        for (codes, i) in codes.iter_mut().zip(from.rows.clone()) {
            *codes = from.codes(i);
        }
        for (p, plane) in self.planes[..self.count].iter_mut().enumerate() {
            let held = plane.held(p, from.chunks.len());
            plane.codes.resize(held * STEPS * rows, 0);
            plane.sums.resize(held * rows, 0);
            let (meta, scratch, slots) = (&self.meta, &mut self.scratch, &plane.slots);
            kernels.enter(
                #[inline(always)]
                || {
                    scratch.shifts.clear();
                    for (row, meta) in meta.iter().enumerate() {
                        let scales = &from.a.row_scales(from.rows.start + row)[from.groups.clone()];
                        match scratch.planes[row] {
                            None if p > 0 => scratch.shifts.extend(slots.iter().map(|_| 0)),
                            None => meta.shifts(scales, &mut scratch.shifts),
                            Some(at) => {
                                let planes = &scratch.several[at];
                                let shift = |&byte: &u8| planes.shift(p, byte);
                                match p {
                                    0 => scratch.shifts.extend(scales.iter().map(shift)),
                                    _ => scratch.shifts.extend(
                                        slots.iter().map(|&slot| shift(&scales[slot as usize])),
                                    ),
                                }
                            }
                        }
                    }
                },
            );
            let folded = FoldTile {
                codes: &codes[..rows],
                shifts: &self.scratch.shifts,
                slots: (p > 0).then_some(&plane.slots),
            };
            fold.pack_fold(folded, &mut plane.codes, &mut plane.sums, &mut plane.corrections);
            let corrections = &mut plane.corrections[..rows];
            corrections.iter_mut().for_each(|sum| *sum = sum.wrapping_mul(F::OFFSET));
        }
    }

    /// Group form and MXINT8: the scaled scales of each plane; `lanes` makes the kernels' lanes of
    /// those of both halves.
    fn pack_scales(
        &mut self,
        kernels: impl Kernels,
        from: &TileSource<'_>,
        lanes: impl Fn([i16; 2]) -> [i16; 4],
    ) {
        let rows = from.rows.len();
        // Groups of B at the ends of the slots that are outside of the range.
        let cut = [
            from.groups.start - from.chunks.start * from.per,
            from.chunks.end * from.per - from.groups.end,
        ];
        // Scales of A for the two halves of a slot.
        let two = from.per == 2 * from.per_scale;
        for (p, plane) in self.planes[..self.count].iter_mut().enumerate() {
            let held = plane.held(p, from.chunks.len());
            plane.scales.resize(held * rows, [0; 4]);
            let (meta, scratch) = (&self.meta, &mut self.scratch);
            kernels.enter(
                #[inline(always)]
                || {
                    for (row, meta) in meta.iter().enumerate() {
                        scratch.scale(from, row, meta, p);
                        let scaled = &scratch.scaled;
                        let to = plane.scales[row.min(held * rows)..].iter_mut().step_by(rows);
                        if p == 0 && cut == [0; 2] {
                            if two {
                                to.zip(scaled.as_chunks().0).for_each(|(to, s)| *to = lanes(*s));
                            } else {
                                to.zip(scaled).for_each(|(to, s)| *to = lanes([*s; 2]));
                            }
                            continue;
                        }
                        let halves = |slot: usize| match two {
                            true => [scaled[2 * slot], scaled[2 * slot + 1]],
                            false => [scaled[slot]; 2],
                        };
                        for (at, to) in to.enumerate() {
                            let slot = if p == 0 { at } else { plane.slots[at] as usize };
                            let mut halves = halves(slot);
                            if slot == 0 && cut[0] > 0 {
                                halves[0] = 0;
                            }
                            if slot + 1 == from.chunks.len() && cut[1] > 0 {
                                halves[1] = 0;
                            }
                            *to = lanes(halves);
                        }
                    }
                },
            );
        }
    }
}

/// What a tile is packed from.
struct TileSource<'a> {
    a: &'a PackedView<'a>,
    rows: Range<usize>,
    /// B's groups.
    groups: Range<usize>,
    /// The chunks that hold the groups.
    chunks: Range<usize>,
    /// Groups of B in a chunk.
    per: usize,
    /// Groups of B under one scale of A.
    per_scale: usize,
    int8: bool,
}

impl<'a> TileSource<'a> {
    fn new(a: &'a PackedView<'a>, b: Format, rows: Range<usize>, groups: Range<usize>) -> Self {
        let per = CHUNK / b.group().get();
        let chunks = groups.start / per..groups.end.div_ceil(per);
        let per_scale = a.shape().group().get() / b.group().get();
        let int8 = a.shape().element() == Element::Int8;
        TileSource { a, rows, groups, chunks, per, per_scale, int8 }
    }

    /// The packed codes, or the elements, of row `i` in the chunks.
    fn codes(&self, i: usize) -> &'a [u8] {
        let bytes = CHUNK / self.a.shape().element().per_byte();
        let end = (self.chunks.end * bytes).min(self.a.shape().row_bytes());
        &self.a.row_codes(i)[self.chunks.start * bytes..end]
    }

    /// The scales of A in the slots of the tile.
    fn scales_of_slots(&self) -> Range<usize> {
        let per = self.per / self.per_scale;
        self.chunks.start * per..(self.chunks.end * per).min(self.a.shape().row_groups())
    }

    /// The scales of A in slot `slot` of the tile.
    fn scales_of_slot(&self, slot: usize) -> Range<usize> {
        let (chunk, per) = (self.chunks.start + slot, self.per / self.per_scale);
        chunk * per..((chunk + 1) * per).min(self.a.shape().row_groups())
    }
}

/// Which row of a tile is packed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RowOfTile {
    pub(crate) row: usize,
    /// Rows of the tile.
    pub(crate) rows: usize,
}

/// A plane of a tile to be packed in the fold form.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "read by fold forms, which no instruction set here has")
)]
pub(crate) struct FoldTile<'a> {
    /// The codes of each row in the tile's range, whole chunks.
    pub(crate) codes: &'a [&'a [u8]],
    /// For each row and slot of the plane the shift of the scale over the base, 0 to 3, plus one; 0
    /// for a group that is not in the plane.
    pub(crate) shifts: &'a [u8],
    /// Which chunks the slots of the plane are; all if there is no list.
    pub(crate) slots: Option<&'a Vec<u32>>,
}

#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "read by fold forms, which no instruction set here has")
)]
impl FoldTile<'_> {
    /// How many slots the plane has.
    pub(crate) fn held(&self) -> usize {
        self.shifts.len() / self.codes.len()
    }

    /// The chunk of slot `at` of the plane.
    #[inline(always)]
    pub(crate) fn chunk(&self, at: usize) -> usize {
        self.slots.map_or(at, |slots| slots[at] as usize)
    }
}

/// The activation A (M, K) in tiles. Its buffers are kept from one use to the next.
#[derive(Debug, Default)]
pub(crate) struct RowTiles {
    tiles: Vec<RowTile>,
    count: usize,
    /// For which kernels, of which matrix, and for a weight in which format.
    of: Option<(Isa, PackedShape, Format)>,
}

impl RowTiles {
    /// Packs what the groups `groups` of a weight in format `b` are multiplied with.
    pub(crate) fn fill<K: Kernels>(
        &mut self,
        kernels: K,
        threads: &TaskThreads,
        a: &PackedView<'_>,
        b: Format,
        groups: Range<usize>,
    ) -> Result<(), Error> {
        let (m, form) = (a.shape().rows(), kernels.form(b));
        self.clear();
        let most = match kernels.for_fold(form) {
            Some(fold) if a.shape().element() == Element::E2m1 => fold.rows(m),
            _ => K::GROUP_ROWS,
        };
        self.resize(m, most);
        let count = self.count;
        let fill = |(t, tile): (usize, &mut RowTile)| {
            let rows = tile_rows(m, count, t);
            tile.fill(kernels, form, &TileSource::new(a, b, rows, groups.clone()));
            Ok(())
        };
        let plan = threads.plan(Cost::pack(m, a.shape().row_bytes()));
        threads.run(plan, self.tiles[..count].iter_mut().enumerate(), fill)?;
        self.of = Some((K::ISA, a.shape(), b));
        Ok(())
    }

    /// From here on the tiles are of no matrix; the buffers stay.
    pub(crate) fn clear(&mut self) {
        self.of = None;
    }

    /// Bytes of memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.tiles.iter().map(|tile| size_of::<RowTile>() + tile.allocated_bytes()).sum()
    }

    /// True if the tiles are of a matrix of this shape, for kernels of this instruction set and a
    /// weight in this format.
    pub(crate) fn hold(&self, isa: Isa, shape: PackedShape, b: Format) -> bool {
        self.of == Some((isa, shape, b))
    }

    fn resize(&mut self, m: usize, most: usize) {
        self.count = m.div_ceil(most);
        while self.tiles.len() < self.count {
            self.tiles.push(RowTile::empty());
        }
    }

    /// So many empty tiles.
    #[cfg(test)]
    pub(super) fn of_tiles(count: usize) -> Self {
        let mut tiles = RowTiles::default();
        tiles.resize(count, 1);
        tiles
    }

    /// The tiles.
    pub(crate) fn tiles(&self) -> &[RowTile] {
        &self.tiles[..self.count]
    }
}

/// The rows of tile `t` of `count`: as even as can be.
fn tile_rows(m: usize, count: usize, t: usize) -> Range<usize> {
    let (least, more) = (m / count, m % count);
    let start = |t: usize| t * least + t.min(more);
    start(t)..start(t + 1)
}

// Plane indices fit their type.
const _: () = assert!(MAX_PLANES < Planes::NONE as usize);
