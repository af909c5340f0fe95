//! The weight B in panels of 16 columns, prepared once: the packed bytes in another order (C3, C6).
//!
//! The layout is `operand`'s. A panel holds each packed byte of codes once, and one scale byte
//! for each packed one. That is the *scaled* byte of the column's first plane
//! ([`Planes`](super::planes::Planes)), and 0 for a group outside of it, so the format's own byte
//! is read back from
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

mod fill;
mod packed;

use std::ops::Range;

use fp4_core::{Error, Format, PackedShape, PackedView};

use self::fill::PanelRows;
use super::PanelView;
use super::meta::{Extremes, Reach, RowMeta};
use super::operand::{CHUNK, COLUMNS, Form, LINES, Line, chunk_groups};
use crate::cost::Cost;
use crate::memory::{copied, filled};
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
#[derive(Debug)]
pub(crate) struct Panels {
    shape: PackedShape,
    format: Format,
    form: Form,
    chunks: usize,
    codes: Vec<Line>,
    scales: Vec<u8>,
    panels: Vec<Panel>,
    /// Over all panels.
    extremes: Extremes,
}

impl Clone for Panels {
    fn clone(&self) -> Self {
        Panels {
            codes: copied(&self.codes),
            scales: copied(&self.scales),
            panels: self.panels.clone(),
            ..*self
        }
    }
}

impl Panels {
    /// Reorders the weight.
    pub(crate) fn new(threads: &TaskThreads, b: PackedView<'_>, form: Form) -> Result<Self, Error> {
        let shape = b.shape();
        let format = shape.expect_format()?;
        let chunks = shape.k().div_ceil(CHUNK);
        let count = shape.rows().div_ceil(COLUMNS);
        let scale_bytes = COLUMNS * chunk_groups(&shape);
        let mut codes = filled(count * chunks * LINES, Line([0; 64]));
        let mut scales = filled(count * chunks * scale_bytes, 0);
        let plan = threads.plan(Cost::reorder(shape.codes_len()));
        let split = count.div_ceil(plan.tasks).max(1);
        let mut panels = Vec::with_capacity(count);
        if chunks > 0 {
            let lines = codes.chunks_mut(split * chunks * LINES);
            let tasks = lines.zip(scales.chunks_mut(split * chunks * scale_bytes));
            let made = threads.run(plan, tasks.enumerate(), |(t, (codes, scales))| {
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
        let none = Extremes::of(std::iter::empty());
        let extremes = panels.iter().fold(none, |all, panel| all.and(&panel.extremes));
        Ok(Panels { shape, format, form, chunks, codes, scales, panels, extremes })
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

    /// Extremes over all columns.
    pub(crate) fn extremes(&self) -> &Extremes {
        &self.extremes
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
