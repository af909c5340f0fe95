//! Operands of the tiled kernels: panels of 16 columns of B, tiles of rows of A (C3, C6).
//!
//! Both are cut along K into *chunks* of 32 elements: one MXFP4 group or two NVFP4 groups.
//!
//! # B, prepared once: the packed bytes in another order
//!
//! A chunk of a panel is 16 columns of 16 packed bytes: four lines of 64 bytes, each 16 lanes of
//! four packed bytes, taken verbatim. The low nibbles of a lane are one step of four elements
//! (even k), the high nibbles another (odd k): A is packed in the same order of steps, and the
//! order of the terms of a sum is free.
//!
//! ```text
//! Form::Fold    line j, lane c        = bytes 4j..4j+4 of the chunk in column c
//! Form::Group   line 2h + j, lane 2i + g = bytes 4j..4j+4 of half g of the chunk (8 bytes, an NVFP4
//!               group) in column 4 * (i / 2) + 2h + i % 2
//! ```
//!
//! With each chunk go scale bytes, as many as packed. They are not the format's but *scaled* ones,
//! relative to the base of the column's plane ([`Planes`]), so that a group outside the plane counts as zero:
//!
//! ```text
//! Form::Fold    16 bytes: shift << 4 | 0xF for column c, the scale being 2^(base + shift); 0 outside
//! Form::Group   32 bytes: byte 2c + g = scale / 2^base of half g of column c, as i8; 0 outside
//! ```
//!
//! Further planes of a panel are lists of chunks with scale bytes of their own, over the same codes.
//! The format's scale bytes are kept too, row-major, for the wide path and for NaN: a seventeenth
//! (MXFP4) or a ninth (NVFP4) of the packed size.
//!
//! # A, packed for each call
//!
//! A tile is up to [`MAX_ROWS`] rows of doubled codes, eight 4-byte steps a chunk:
//!
//! ```text
//! Form::Fold    [slot][step][row]  doubled code << shift, |.| <= 96; a plane has slots for its
//!               chunks only, and per slot and row the sum of its 32 values
//! Form::Group   [chunk][row][step of half 0, step of half 1] x 4   doubled codes, |.| <= 12; with -12 times each
//!               half's sum; planes differ in their scales alone: [slot][row] i16 of the
//!               halves, 0 1 0 1 or 0 0 1 1 as the kernels read them
//! ```
//!
//! Step 2j is the low nibbles of bytes 4j..4j+4, step 2j + 1 the high ones.

use std::ops::Range;

use fp4_core::{Error, ExactSum, PackedMut, PackedShape, PackedView, reference};

use super::meta::{Histogram, MAX_PLANES, Planes, RowMeta};
use super::{FoldKernels, Kernels};
use crate::isa::Isa;
use crate::threads::Threads;

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 16;
/// Most rows of a tile.
pub(crate) const MAX_ROWS: usize = 24;
/// Elements of K in a chunk.
pub(crate) const CHUNK: usize = 32;
/// Packed bytes of a chunk.
const CHUNK_BYTES: usize = CHUNK / 2;
/// Lines of codes in a chunk of a panel.
pub(crate) const LINES: usize = 4;
/// 4-byte steps in a chunk of a row of A.
pub(crate) const STEPS: usize = 8;
/// Largest scaled magnitude of B in the group form: it is kept as i8.
pub(crate) const GROUP_LIMIT_B: i32 = 127;
/// Largest scaled magnitude of A in the group form: 258 * 127 = 32766 fits an i16.
pub(crate) const GROUP_LIMIT_A: i32 = 258;
/// Largest scaled magnitude in the fold form: 12 * 8 = 96 fits an i8.
pub(crate) const FOLD_LIMIT: i32 = 8;
/// Packed bytes worth a task of their own.
const TASK_BYTES: usize = 1 << 16;

/// How operands are laid out and multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Scales folded into 8-bit operands; one integer sum over all of K. MXFP4 only.
    Fold,
    /// An integer dot for each half chunk, times the product of the scaled scales.
    Group,
}

impl Form {
    /// Scale bytes of a chunk of a panel.
    pub(crate) const fn scale_bytes(self) -> usize {
        match self {
            Form::Fold => COLUMNS,
            Form::Group => 2 * COLUMNS,
        }
    }

    const fn limit_a(self) -> i32 {
        match self {
            Form::Fold => FOLD_LIMIT,
            Form::Group => GROUP_LIMIT_A,
        }
    }

    const fn limit_b(self) -> i32 {
        match self {
            Form::Fold => FOLD_LIMIT,
            Form::Group => GROUP_LIMIT_B,
        }
    }
}

/// 64 bytes of codes of a panel.
#[repr(C, align(64))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line(pub(crate) [u8; 64]);

/// Groups in a chunk.
pub(crate) const fn chunk_groups(shape: &PackedShape) -> usize {
    CHUNK / shape.group().get()
}

/// A plane of a panel.
#[derive(Debug, Clone)]
pub(crate) struct PanelPlane {
    /// The chunks that the plane has, ascending; plane 0 has all and lists none.
    pub(crate) chunks: Vec<u32>,
    /// Scale bytes of the listed chunks; those of plane 0 stand together in [`Panels`].
    scales: Vec<u8>,
    /// The plane's base over the base of the column's metadata.
    pub(crate) shift: [u32; COLUMNS],
    /// Largest scaled magnitude.
    pub(crate) max: i32,
}

/// What is known of one panel.
#[derive(Debug, Clone)]
pub(crate) struct Panel {
    /// Columns that exist.
    pub(crate) columns: usize,
    pub(crate) meta: [RowMeta; COLUMNS],
    /// Base exponents of the columns.
    pub(crate) base: [i32; COLUMNS],
    pub(crate) complete: [bool; COLUMNS],
    pub(crate) planes: Vec<PanelPlane>,
    pub(crate) summary: Summary,
}

/// Extremes over the rows of a tile or the columns of a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// False if a row is incomplete.
    pub(crate) complete: bool,
    pub(crate) nan: bool,
    pub(crate) live: usize,
    pub(crate) reach: u64,
    pub(crate) base: [i32; 2],
}

impl Summary {
    fn new(rows: impl Iterator<Item = (RowMeta, bool)>) -> Self {
        let none =
            Summary { complete: true, nan: false, live: 0, reach: 0, base: [i32::MAX, i32::MIN] };
        rows.fold(none, |s, (meta, complete)| Summary {
            complete: s.complete & complete,
            nan: s.nan | meta.nan,
            live: s.live.max(meta.live),
            reach: s.reach.max(meta.reach),
            base: [s.base[0].min(meta.base), s.base[1].max(meta.base)],
        })
    }
}

/// The prepared weight B (N, K).
#[derive(Debug, Clone)]
pub(crate) struct Panels {
    shape: PackedShape,
    form: Form,
    chunks: usize,
    codes: Vec<Line>,
    scales: Vec<u8>,
    packed_scales: Vec<u8>,
    panels: Vec<Panel>,
}

impl Panels {
    /// Reorders the weight.
    pub(crate) fn new(threads: &Threads, b: PackedView<'_>, form: Form) -> Result<Self, Error> {
        let shape = b.shape();
        shape.expect_format()?;
        let chunks = shape.k().div_ceil(CHUNK);
        let count = shape.rows().div_ceil(COLUMNS);
        let mut codes = vec![Line([0; 64]); count * chunks * LINES];
        let mut scales = vec![0; count * chunks * form.scale_bytes()];
        let split = count.div_ceil(threads.tasks(shape.codes_len(), TASK_BYTES)).max(1);
        let mut panels = Vec::with_capacity(count);
        if chunks > 0 {
            let lines = codes.chunks_mut(split * chunks * LINES);
            let tasks = lines.zip(scales.chunks_mut(split * chunks * form.scale_bytes()));
            let tasks: Vec<_> = tasks.enumerate().collect();
            let made = threads.run(tasks, |(t, (codes, scales))| {
                let lines = codes.chunks_exact_mut(chunks * LINES);
                let panels = lines.zip(scales.chunks_exact_mut(chunks * form.scale_bytes()));
                let fill = panels.enumerate().map(|(p, (codes, scales))| {
                    fill_panel(&b, form, (t * split + p) * COLUMNS, codes, scales)
                });
                Ok(fill.collect::<Vec<_>>())
            })?;
            panels.extend(made.into_iter().flatten());
        } else {
            let fill = |p| fill_panel(&b, form, p * COLUMNS, &mut [], &mut []);
            panels.extend((0..count).map(fill));
        }
        Ok(Panels {
            shape,
            form,
            chunks,
            codes,
            scales,
            packed_scales: b.scales().to_vec(),
            panels,
        })
    }

    /// Shape and format of the weight.
    pub(crate) fn shape(&self) -> PackedShape {
        self.shape
    }

    pub(crate) fn form(&self) -> Form {
        self.form
    }

    /// All panels.
    pub(crate) fn panels(&self) -> &[Panel] {
        &self.panels
    }

    /// The codes of panel `p`, [`LINES`] lines a chunk.
    pub(crate) fn codes(&self, p: usize) -> &[Line] {
        let len = self.chunks * LINES;
        &self.codes[p * len..(p + 1) * len]
    }

    /// The codes of the panels `panels`, one after the other; none if the range is empty.
    pub(crate) fn run_of_codes(&self, panels: Range<usize>) -> &[Line] {
        let len = self.chunks * LINES;
        if panels.is_empty() { &[] } else { &self.codes[panels.start * len..panels.end * len] }
    }

    /// The scale bytes of plane `plane` of panel `p`, for each chunk that it has.
    pub(crate) fn scales(&self, p: usize, plane: usize) -> &[u8] {
        if plane > 0 {
            return &self.panels[p].planes[plane].scales;
        }
        let len = self.chunks * self.form.scale_bytes();
        &self.scales[p * len..(p + 1) * len]
    }

    /// The format's scale bytes of column `j`.
    pub(crate) fn packed_scales(&self, j: usize) -> &[u8] {
        let groups = self.shape.row_groups();
        &self.packed_scales[j * groups..(j + 1) * groups]
    }

    /// The packed bytes of a chunk of column `j`.
    pub(crate) fn packed_codes(&self, j: usize, chunk: usize) -> [u8; CHUNK_BYTES] {
        let (lines, c) = (&self.codes(j / COLUMNS)[chunk * LINES..][..LINES], j % COLUMNS);
        let mut bytes = [0; CHUNK_BYTES];
        for (q, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let (line, lane) = place(self.form, c, q);
            *bytes = lines[line].0.as_chunks::<4>().0[lane];
        }
        bytes
    }

    /// Writes the packed matrix that the panels were made from.
    pub(crate) fn export(&self, threads: &Threads, out: &mut PackedMut<'_>) -> Result<(), Error> {
        let (codes, scales) = out.buffers();
        scales.copy_from_slice(&self.packed_scales);
        let row = self.shape.row_bytes();
        if codes.is_empty() {
            return Ok(());
        }
        let worth = threads.tasks(codes.len(), TASK_BYTES) > 1;
        let mut rows: Vec<&mut [u8]> = codes.chunks_exact_mut(row).collect();
        threads.run_mut(&mut rows, worth, |(j, row)| {
            for (chunk, bytes) in row.chunks_mut(CHUNK_BYTES).enumerate() {
                bytes.copy_from_slice(&self.packed_codes(j, chunk)[..bytes.len()]);
            }
            Ok(())
        })
    }

    /// The exact sum over the groups `groups` of row `i` of A and column `j`, NaN scales counted
    /// as zero: the wide path.
    pub(crate) fn exact_sum(
        &self,
        a: &PackedView<'_>,
        i: usize,
        j: usize,
        groups: Range<usize>,
    ) -> Result<ExactSum, Error> {
        let (scale_type, per) = (self.shape.scale_type(), chunk_groups(&self.shape));
        let bytes = self.shape.group().get() / 2;
        let codes_a = a.row_codes(i);
        let (scales_a, scales_b) = (a.row_scales(i), self.packed_scales(j));
        let mut sum = ExactSum::ZERO;
        for g in groups {
            let (a, b) = (scale_type.parts(scales_a[g]), scale_type.parts(scales_b[g]));
            let (Some(a), Some(b)) = (a, b) else { continue };
            let chunk = self.packed_codes(j, g / per);
            let codes_b = &chunk[g % per * bytes..][..bytes];
            let dot = reference::group_dot(&codes_a[g * bytes..][..bytes], codes_b);
            let significand = dot * i64::from(a.significand * b.significand);
            if significand != 0 {
                sum.add_scaled(significand, a.exponent + b.exponent - 2)?;
            }
        }
        Ok(sum)
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

/// Fills one panel from the columns `first..`, as far as there are any.
fn fill_panel(
    b: &PackedView<'_>,
    form: Form,
    first: usize,
    codes: &mut [Line],
    scales: &mut [u8],
) -> Panel {
    let shape = b.shape();
    let (per, chunks) = (chunk_groups(&shape), shape.k().div_ceil(CHUNK));
    let columns = (shape.rows() - first).min(COLUMNS);
    let mut meta = [RowMeta::default(); COLUMNS];
    let mut complete = [true; COLUMNS];
    let rows: Vec<Planes> = (0..columns)
        .map(|c| {
            let histogram = Histogram::of_row(b, first + c);
            meta[c] = RowMeta::new(&histogram);
            let planes = Planes::new(&histogram, form.limit_b());
            complete[c] = planes.complete;
            planes
        })
        .collect();
    for c in 0..columns {
        let bytes = b.row_codes(first + c).as_chunks::<4>().0;
        for (at, bytes) in bytes.iter().enumerate() {
            let (line, lane) = place(form, c, at % 4);
            codes[at / 4 * LINES + line].0.as_chunks_mut::<4>().0[lane] = *bytes;
        }
    }
    // The scale bytes of a chunk in a plane; false if they are all zero.
    let fill = |plane: usize, chunk: usize, to: &mut [u8]| -> bool {
        let mut any = false;
        for (c, row) in rows.iter().enumerate() {
            let scales = b.row_scales(first + c);
            for g in 0..form.scale_bytes() / COLUMNS {
                // In the group form an MXFP4 scale serves both halves.
                let group = if per == 2 { 2 * chunk + g } else { chunk };
                let Some(&byte) = scales.get(group) else { continue };
                if usize::from(row.of_byte[usize::from(byte)]) != plane {
                    continue;
                }
                let scaled = row.scaled[usize::from(byte)];
                to[c * form.scale_bytes() / COLUMNS + g] = match form {
                    Form::Fold => (scaled.trailing_zeros() as u8) << 4 | 0xF,
                    Form::Group => scaled as i8 as u8,
                };
                any = true;
            }
        }
        any
    };
    let count = rows.iter().map(|r| r.count).max().unwrap_or(1);
    let mut planes = Vec::with_capacity(count);
    for plane in 0..count {
        let mut listed =
            PanelPlane { chunks: Vec::new(), scales: Vec::new(), shift: [0; COLUMNS], max: 0 };
        for (c, row) in rows.iter().enumerate() {
            if plane < row.count {
                listed.shift[c] = (row.base[plane] - meta[c].base) as u32;
            }
            let of_plane = (0..256).filter(|&byte| usize::from(row.of_byte[byte]) == plane);
            let scaled = of_plane.map(|byte| i32::from(row.scaled[byte].abs()));
            listed.max = scaled.fold(listed.max, i32::max);
        }
        for chunk in 0..chunks {
            let bytes = form.scale_bytes();
            if plane == 0 {
                fill(0, chunk, &mut scales[chunk * bytes..(chunk + 1) * bytes]);
            } else {
                let mut to = [0; 2 * COLUMNS];
                if fill(plane, chunk, &mut to) {
                    listed.chunks.push(chunk as u32);
                    listed.scales.extend(&to[..bytes]);
                }
            }
        }
        planes.push(listed);
    }
    let summary = Summary::new((0..columns).map(|c| (meta[c], complete[c])));
    Panel { columns, meta, base: meta.map(|m| m.base), complete, planes, summary }
}

/// A plane of a tile.
#[derive(Debug, Default)]
pub(crate) struct TilePlane {
    /// The slots of the tile's chunks that the plane has, ascending; plane 0 has all and lists none.
    pub(crate) slots: Vec<u32>,
    /// Fold form: codes of the plane's slots.
    codes: Vec<i32>,
    /// Fold form: sums of 32 values, for each slot and row.
    pub(crate) sums: Vec<i32>,
    /// Fold form: their totals for each row.
    pub(crate) totals: Vec<i32>,
    /// Group form: scaled scales, for each slot and row.
    scales: Vec<[i16; 4]>,
    /// The plane's base over the base of the row's metadata.
    pub(crate) shift: Vec<u32>,
    /// Largest scaled magnitude.
    pub(crate) max: i32,
}

impl TilePlane {
    /// Bytes of memory held beside the struct itself.
    fn allocated_bytes(&self) -> usize {
        bytes_of(&self.codes)
            + bytes_of(&self.sums)
            + bytes_of(&self.totals)
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
pub(crate) struct Tile {
    /// Index of the first row.
    pub(crate) first: usize,
    /// Metadata of the rows, over all of K.
    pub(crate) meta: Vec<RowMeta>,
    pub(crate) complete: Vec<bool>,
    pub(crate) summary: Summary,
    /// Group form: codes and -12 times their sums.
    codes: Vec<i32>,
    init: Vec<[i32; 2]>,
    planes: Vec<TilePlane>,
    count: usize,
    /// Scratch of [`fill`](Self::fill).
    rows: Vec<Planes>,
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

impl Tile {
    fn empty() -> Self {
        Tile {
            first: 0,
            meta: Vec::new(),
            complete: Vec::new(),
            summary: Summary::new(std::iter::empty()),
            codes: Vec::new(),
            init: Vec::new(),
            planes: Vec::new(),
            count: 0,
            rows: Vec::new(),
        }
    }

    /// Bytes of memory held beside the struct itself.
    fn allocated_bytes(&self) -> usize {
        bytes_of(&self.meta)
            + bytes_of(&self.complete)
            + bytes_of(&self.codes)
            + bytes_of(&self.init)
            + bytes_of(&self.rows)
            + bytes_of(&self.planes)
            + self.planes.iter().map(TilePlane::allocated_bytes).sum::<usize>()
    }

    /// The tile's planes.
    pub(crate) fn planes(&self) -> &[TilePlane] {
        &self.planes[..self.count]
    }

    /// What a kernel reads for plane `p`.
    pub(crate) fn view(&self, form: Form, p: usize) -> TileView<'_> {
        let plane = &self.planes[p];
        let codes = if form == Form::Fold { &plane.codes } else { &self.codes };
        TileView { rows: self.meta.len(), codes, init: &self.init, scales: &plane.scales }
    }

    /// Packs the rows `rows` of `a` over the groups `groups`.
    fn fill<K: Kernels>(
        &mut self,
        kernels: K,
        form: Form,
        a: &PackedView<'_>,
        rows: Range<usize>,
        groups: Range<usize>,
    ) {
        let shape = a.shape();
        let per = chunk_groups(&shape);
        let chunks = groups.start / per..groups.end.div_ceil(per);
        let (count, slots) = (rows.len(), chunks.len());
        self.first = rows.start;
        self.meta.clear();
        self.complete.clear();
        self.rows.clear();
        for i in rows.clone() {
            let histogram = Histogram::of_row(a, i);
            let planes = Planes::new(&histogram, form.limit_a());
            self.meta.push(RowMeta::new(&histogram));
            self.complete.push(planes.complete);
            self.rows.push(planes);
        }
        self.summary = Summary::new(self.meta.iter().copied().zip(self.complete.iter().copied()));
        self.count = self.rows.iter().map(|r| r.count).max().unwrap_or(1);
        while self.planes.len() < self.count {
            self.planes.push(TilePlane::default());
        }
        let bytes = chunks.start * CHUNK_BYTES..(chunks.end * CHUNK_BYTES).min(shape.row_bytes());
        if form == Form::Group {
            self.codes.resize(slots * STEPS * count, 0);
            self.init.resize(slots * count, [0; 2]);
            for (r, i) in rows.clone().enumerate() {
                let codes = &a.row_codes(i)[bytes.clone()];
                kernels.pack_group(codes, [r, count], &mut self.codes, &mut self.init);
            }
        }
        for (p, plane) in self.planes[..self.count].iter_mut().enumerate() {
            plane.slots.clear();
            if p > 0 {
                // Groups outside the range may be listed; they are packed as zeros.
                plane.slots.extend((0..slots as u32).filter(|&slot| {
                    let chunk = chunks.start + slot as usize;
                    let groups = chunk * per..((chunk + 1) * per).min(shape.row_groups());
                    self.rows.iter().zip(rows.clone()).any(|(planes, i)| {
                        let scales = &a.row_scales(i)[groups.clone()];
                        scales.iter().any(|&s| usize::from(planes.of_byte[usize::from(s)]) == p)
                    })
                }));
            }
            let held = if p == 0 { slots } else { plane.slots.len() };
            plane.shift.clear();
            plane.max = 0;
            for (planes, meta) in self.rows.iter().zip(&self.meta) {
                let used = p < planes.count;
                plane.shift.push(if used { (planes.base[p] - meta.base) as u32 } else { 0 });
                if form == Form::Group {
                    let of_plane = planes.of_byte.iter().zip(&planes.scaled);
                    let of_plane = of_plane.filter(|(of, _)| usize::from(**of) == p);
                    let scaled = of_plane.map(|(_, scaled)| i32::from(scaled.abs()));
                    plane.max = scaled.fold(plane.max, i32::max);
                }
            }
            match kernels.for_fold(form) {
                Some(kernels) => {
                    plane.codes.resize(held * STEPS * count, 0);
                    plane.sums.resize(held * count, 0);
                    plane.totals.clear();
                    for ((r, i), planes) in rows.clone().enumerate().zip(&self.rows) {
                        let row = FoldRow {
                            codes: &a.row_codes(i)[bytes.clone()],
                            scales: &a.row_scales(i)[groups.clone()],
                            planes,
                            plane: p as u8,
                            slots: (p > 0).then_some(&plane.slots),
                        };
                        let (codes, sums) = (&mut plane.codes, &mut plane.sums);
                        plane.totals.push(kernels.pack_fold(row, [r, count], codes, sums));
                    }
                }
                None => {
                    plane.scales.resize(held * count, [0; 4]);
                    for ((r, i), planes) in rows.clone().enumerate().zip(&self.rows) {
                        let scales = a.row_scales(i);
                        let scaled = |group: usize| {
                            let byte =
                                if groups.contains(&group) { scales[group] } else { return 0 };
                            let of_plane = usize::from(planes.of_byte[usize::from(byte)]) == p;
                            if of_plane { planes.scaled[usize::from(byte)] } else { 0 }
                        };
                        let to = plane.scales[r.min(held * count)..].iter_mut().step_by(count);
                        for (at, to) in to.enumerate() {
                            let slot = if p == 0 { at } else { plane.slots[at] as usize };
                            let chunk = chunks.start + slot;
                            let [g, h] = match per {
                                2 => [scaled(2 * chunk), scaled(2 * chunk + 1)],
                                _ => [scaled(chunk); 2],
                            };
                            *to = if K::BY_HALVES { [g, g, h, h] } else { [g, h, g, h] };
                        }
                    }
                }
            }
        }
    }
}

/// One row of a plane of a tile to be packed in the fold form: codes and scale bytes of the tile's
/// range, and which slots are wanted.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, reason = "read by fold forms, which no instruction set here has")
)]
pub(crate) struct FoldRow<'a> {
    pub(crate) codes: &'a [u8],
    pub(crate) scales: &'a [u8],
    pub(crate) planes: &'a Planes,
    pub(crate) plane: u8,
    pub(crate) slots: Option<&'a Vec<u32>>,
}

/// The activation A (M, K) in tiles. Its buffers are kept from one use to the next.
#[derive(Debug, Default)]
pub(crate) struct Tiles {
    tiles: Vec<Tile>,
    count: usize,
    /// For which kernels and of which matrix.
    of: Option<(Isa, PackedShape)>,
}

impl Tiles {
    /// Packs the groups `groups` of A.
    pub(crate) fn fill<K: Kernels>(
        &mut self,
        kernels: K,
        threads: &Threads,
        a: &PackedView<'_>,
        form: Form,
        groups: Range<usize>,
    ) -> Result<(), Error> {
        let m = a.shape().rows();
        self.of = Some((K::ISA, a.shape()));
        let most = kernels.for_fold(form).map_or(K::GROUP_ROWS, |fold| fold.rows(m));
        self.resize(m, most);
        let count = self.count;
        let fill = |(t, tile): (usize, &mut Tile)| {
            tile.fill(kernels, form, a, tile_rows(m, count, t), groups.clone());
            Ok(())
        };
        let worth = threads.tasks(a.shape().codes_len(), TASK_BYTES) > 1;
        threads.run_mut(&mut self.tiles[..count], worth, fill)
    }

    /// Bytes of memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.tiles.iter().map(|tile| size_of::<Tile>() + tile.allocated_bytes()).sum()
    }

    /// True if the tiles are of a matrix of this shape, for kernels of this instruction set.
    pub(crate) fn hold(&self, isa: Isa, shape: PackedShape) -> bool {
        self.of == Some((isa, shape))
    }

    fn resize(&mut self, m: usize, most: usize) {
        self.count = m.div_ceil(most);
        while self.tiles.len() < self.count {
            self.tiles.push(Tile::empty());
        }
    }

    /// The tiles.
    pub(crate) fn tiles(&self) -> &[Tile] {
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
