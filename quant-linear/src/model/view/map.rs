//! A tensor from far away: cells of equal size, each with a few numbers on what lies in it.
//!
//! ```text
//! cell (i, j)   rows i * row_step .. and columns j * col_step .., the last ones smaller
//! planes        one number for each cell, row-major: see the table
//! ```
//!
//! | plane | of | a cell's number |
//! |---|---|---|
//! | `zero` | codes, values | share of elements that are zero |
//! | `saturated` | codes | share of codes of the largest magnitude, 6 |
//! | `exponent` | codes | mean power of two of the scales that are neither zero nor NaN |
//! | `nan` | codes | groups with a NaN scale |
//! | `amax` | values | largest finite magnitude |
//! | `not_finite` | values | NaN and infinities |
//! | `sqnr_db` | errors | as [`Difference::sqnr_db`] |
//! | `max_abs_error` | errors | largest absolute difference |
//! | `flushed` | errors | share of elements that are not zero in the reference and zero here |
//!
//! What there is no number for is NaN. Columns of a cell are whole groups. Worked example: 1000
//! rows under 256 cells have 4 rows a cell, and 250 cells.

use std::collections::BTreeMap;

use fp4_core::{Float, FloatVec, PackedMatrix, PackedShape, with_floats};
use serde::Serialize;

use crate::checkpoint::tiles::Tile;
use crate::model::difference::Difference;
use crate::model::scales::exponent;

/// The most cells in either direction.
pub const MAX_CELLS: usize = 256;

/// Cells and their numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Map {
    /// Cells from top to bottom.
    pub rows: usize,
    /// Cells from left to right.
    pub cols: usize,
    /// Rows of the tensor in a cell.
    pub row_step: usize,
    /// Columns of the tensor in a cell.
    pub col_step: usize,
    /// Numbers by what they are, `rows * cols` each. Not part of the JSON, which is text.
    #[serde(skip)]
    pub planes: BTreeMap<&'static str, Vec<f32>>,
}

/// A map in the making.
pub(super) struct Drawing {
    map: Map,
    shape: Option<PackedShape>,
    /// Elements of each cell.
    elements: Vec<u32>,
    zero: Vec<u32>,
    codes: Option<Codes>,
    values: Option<Floats>,
    errors: Option<Errors>,
}

struct Codes {
    saturated: Vec<u32>,
    nan: Vec<u32>,
    exponents: Vec<(i64, u32)>,
}

struct Floats {
    amax: Vec<f32>,
    not_finite: Vec<u32>,
}

struct Errors {
    difference: Vec<Difference>,
    flushed: Vec<u32>,
}

/// The codes of magnitude 6 and of magnitude 0 in each byte of two.
const fn of_magnitude(byte: u8, magnitude: u8) -> u32 {
    (byte & 7 == magnitude) as u32 + (byte >> 4 & 7 == magnitude) as u32
}

impl Map {
    /// Of a quantized matrix, with its error or without.
    pub(super) fn of_codes(shape: PackedShape, errors: bool) -> Drawing {
        let mut drawing = Drawing::new(shape.rows(), shape.k(), shape.group().get());
        let cells = drawing.elements.len();
        drawing.shape = Some(shape);
        drawing.codes = Some(Codes {
            saturated: vec![0; cells],
            nan: vec![0; cells],
            exponents: vec![(0, 0); cells],
        });
        drawing.errors = errors.then(|| Errors {
            difference: vec![Difference::default(); cells],
            flushed: vec![0; cells],
        });
        drawing
    }

    /// Of dense values.
    pub(super) fn of_values(rows: usize, cols: usize) -> Drawing {
        let mut drawing = Drawing::new(rows, cols, 16);
        let cells = drawing.elements.len();
        drawing.values = Some(Floats { amax: vec![f32::NAN; cells], not_finite: vec![0; cells] });
        drawing
    }
}

impl Drawing {
    /// Cells whose columns are multiples of `unit`.
    fn new(rows: usize, k: usize, unit: usize) -> Self {
        let row_step = rows.div_ceil(MAX_CELLS).max(1);
        let col_step = k.div_ceil(unit).div_ceil(MAX_CELLS).max(1) * unit;
        let (down, across) = (rows.div_ceil(row_step), k.div_ceil(col_step));
        let map = Map { rows: down, cols: across, row_step, col_step, planes: BTreeMap::new() };
        let cells = down * across;
        Drawing {
            map,
            shape: None,
            elements: vec![0; cells],
            zero: vec![0; cells],
            codes: None,
            values: None,
            errors: None,
        }
    }

    /// The cell of an element.
    fn cell(&self, row: usize, col: usize) -> usize {
        row / self.map.row_step * self.map.cols + col / self.map.col_step
    }

    /// Adds the codes and scales of a tile.
    pub(super) fn add_codes(&mut self, packed: &PackedMatrix, tile: &Tile) {
        let Some(shape) = self.shape else { return };
        let (group, ty, view) = (shape.group().get(), shape.scale_type(), packed.view());
        for row in 0..tile.rows {
            let groups = view.row_codes(row).chunks_exact(group / 2).zip(view.row_scales(row));
            for (at, (codes, &scale)) in groups.enumerate() {
                let cell = self.cell(tile.row + row, tile.col + at * group);
                self.elements[cell] += group as u32;
                self.zero[cell] += codes.iter().map(|&byte| of_magnitude(byte, 0)).sum::<u32>();
                let Some(own) = &mut self.codes else { continue };
                own.saturated[cell] += codes.iter().map(|&b| of_magnitude(b, 7)).sum::<u32>();
                own.nan[cell] += u32::from(ty.is_nan(scale));
                if let Some(exponent) = exponent(ty, scale) {
                    let (sum, count) = &mut own.exponents[cell];
                    (*sum, *count) = (*sum + i64::from(exponent), *count + 1);
                }
            }
        }
    }

    /// Adds dense values, whole rows from a row on.
    pub(super) fn add_values(&mut self, values: &[f32], tile: &Tile) {
        let step = self.map.col_step;
        for (row, mut rest) in (tile.row..).zip(values.chunks_exact(tile.cols.max(1))) {
            let mut col = tile.col;
            while !rest.is_empty() {
                // A tile may begin and end inside of a cell.
                let (part, after) = rest.split_at((step - col % step).min(rest.len()));
                let cell = self.cell(row, col);
                (rest, col) = (after, col + part.len());
                self.elements[cell] += part.len() as u32;
                self.zero[cell] += part.iter().filter(|value| **value == 0.0).count() as u32;
                let Some(own) = &mut self.values else { continue };
                for value in part {
                    match value.is_finite() {
                        true => own.amax[cell] = own.amax[cell].max(value.abs()),
                        false => own.not_finite[cell] += 1,
                    }
                }
            }
        }
    }

    /// Adds the errors of a tile, reference first.
    pub(super) fn add_error(&mut self, reference: &FloatVec, other: &[f32], tile: &Tile) {
        with_floats!(FloatSlice, reference.as_slice(), x => self.add_errors(x, other, tile));
    }

    fn add_errors<F: Float>(&mut self, reference: &[F], other: &[f32], tile: &Tile) {
        let group = self.shape.map_or(16, |shape| shape.group().get());
        let in_row = (tile.cols / group).max(1);
        let groups = reference.chunks(group).zip(other.chunks(group));
        for (at, (x, y)) in groups.enumerate() {
            let cell = self.cell(tile.row + at / in_row, tile.col + at % in_row * group);
            let Some(own) = &mut self.errors else { return };
            own.difference[cell].add(x, y);
            let flushed = x.iter().zip(y).filter(|(x, y)| x.to_f32() != 0.0 && **y == 0.0);
            own.flushed[cell] += flushed.count() as u32;
        }
    }

    /// The map.
    pub(super) fn finish(mut self) -> Map {
        let elements = &self.elements;
        let share = |part: &[u32]| -> Vec<f32> {
            let cells = part.iter().zip(elements);
            cells.map(|(part, of)| (f64::from(*part) / f64::from(*of)) as f32).collect()
        };
        let count = |counts: &[u32]| counts.iter().map(|count| *count as f32).collect::<Vec<_>>();
        let planes = &mut self.map.planes;
        planes.insert("zero", share(&self.zero));
        if let Some(own) = &self.codes {
            planes.insert("saturated", share(&own.saturated));
            planes.insert("nan", count(&own.nan));
            let mean =
                own.exponents.iter().map(|&(sum, count)| (sum as f64 / f64::from(count)) as f32);
            planes.insert("exponent", mean.collect());
        }
        if let Some(own) = self.values {
            planes.insert("not_finite", count(&own.not_finite));
            planes.insert("amax", own.amax);
        }
        if let Some(own) = &self.errors {
            let each = own.difference.iter();
            planes.insert("sqnr_db", each.clone().map(|d| d.sqnr_db() as f32).collect());
            planes.insert("max_abs_error", each.map(|d| d.max_abs() as f32).collect());
            planes.insert("flushed", share(&own.flushed));
        }
        self.map
    }
}
