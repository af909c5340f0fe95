//! Second moments of a layer's inputs: the sum of x x^T over sample rows x.
//!
//! ```text
//! [`Moments`]  rows come in, f32, in any cut; every 512 of them are multiplied in f64
//!     G[i][j] += sum over those rows of x[i] * x[j]       each product is exact in f64
//! [`Gram`]     the finished sum, symmetric, with the number of rows
//! ```
//!
//! Rows are multiplied in pieces of 512, counted from the first row, and pieces of the matrix are
//! spread over threads: the bits depend on the rows and their order alone, not on how they were
//! cut into calls nor on the number of threads. (They do depend on the vector width of the CPU, in
//! the last places.)
//!
//! Worked example: the rows (1, 2) and (3, 4) give G = [[10, 14], [14, 20]] of 2 samples.
//!
//! f64 throughout: on a core with AVX-512 that runs at over 20 G multiply-adds a second, so f32
//! products of short pieces would buy a factor of two for 7 digits.

use fp4_core::GroupSize;
use rayon::prelude::*;

use super::linalg::{Mat, MatRef, add_product, product};
use super::transform::BlockTransform;
use crate::error::{CalibrateError, Error};

/// Rows that are multiplied at a time.
const PIECE: usize = 512;
/// Rows and columns of the matrix that are one task.
const TILE: usize = 192;

/// Second moments that are still being summed.
#[derive(Debug, Clone)]
pub struct Moments {
    k: usize,
    /// Rows summed in `tiles`.
    samples: u64,
    /// The tiles of the lower triangle: (0, 0), (1, 0), (1, 1), ...
    tiles: Vec<Mat<f64>>,
    /// Rows that wait for a whole piece.
    pending: Vec<f64>,
}

impl Moments {
    /// No rows yet, of `k` values each.
    pub fn new(k: usize) -> Self {
        let size = |t: usize| TILE.min(k - t * TILE);
        let tiles = (0..k.div_ceil(TILE)).flat_map(|i| (0..=i).map(move |j| (i, j)));
        let tiles = tiles.map(|(i, j)| Mat::zeros(size(i), size(j))).collect();
        Moments { k, samples: 0, tiles, pending: Vec::new() }
    }

    /// Values of a row.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Rows so far.
    pub fn samples(&self) -> u64 {
        self.samples + (self.pending.len() / self.k.max(1)) as u64
    }

    /// Adds rows, row-major.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`]; [`CalibrateError::NotFinite`] with the row, counted from the
    /// first that was ever added, and the column. Nothing is added then.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), Error> {
        let k = self.k;
        expect_rows("activations", rows, k)?;
        if let Some(at) = rows.iter().position(|x| !x.is_finite()) {
            let row = self.samples() + (at / k) as u64;
            let (column, value) = (at % k, f64::from(rows[at]));
            let what = "activations";
            return Err(CalibrateError::NotFinite { what, row, column, value }.into());
        }
        let mut rest = rows;
        while !rest.is_empty() {
            let room = PIECE * k - self.pending.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.pending.extend(now.iter().map(|&x| f64::from(x)));
            rest = later;
            if self.pending.len() == PIECE * k {
                self.sum_pending();
            }
        }
        Ok(())
    }

    fn sum_pending(&mut self) {
        let k = self.k;
        let rows = self.pending.len().checked_div(k).unwrap_or(0);
        let x = MatRef::from_row_major_slice(&self.pending, rows, k);
        let tiles = k.div_ceil(TILE);
        let places: Vec<_> = (0..tiles).flat_map(|i| (0..=i).map(move |j| (i, j))).collect();
        self.tiles.par_iter_mut().zip(places).for_each(|(tile, (i, j))| {
            let columns = |t: usize, n: usize| x.subcols(t * TILE, n);
            let (a, b) = (columns(i, tile.nrows()), columns(j, tile.ncols()));
            add_product(tile.as_mut(), 1.0, a.transpose(), b);
        });
        self.samples += rows as u64;
        self.pending.clear();
    }

    /// The sums.
    pub fn finish(mut self) -> Gram {
        self.sum_pending();
        let k = self.k;
        let tile = |i: usize, j: usize| (i / TILE) * (i / TILE + 1) / 2 + j / TILE;
        let sums = Mat::from_fn(k, k, |i, j| {
            let (i, j) = (i.max(j), i.min(j));
            self.tiles[tile(i, j)][(i % TILE, j % TILE)]
        });
        Gram { samples: self.samples, sums }
    }
}

/// Finished second moments: a symmetric (k, k) matrix, the sum of x x^T over `samples` rows x.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    samples: u64,
    pub(super) sums: Mat<f64>,
}

impl Gram {
    /// The second moments of these rows of `k` values.
    ///
    /// # Errors
    /// As [`Moments::add`].
    pub fn of_rows(rows: &[f32], k: usize) -> Result<Self, Error> {
        let mut moments = Moments::new(k);
        moments.add(rows)?;
        Ok(moments.finish())
    }

    /// Second moments as they were stored: the number of rows and the lower triangle, row by row,
    /// k * (k + 1) / 2 values.
    ///
    /// # Errors
    /// [`CalibrateError::TriangleLen`]; [`CalibrateError::NotFinite`];
    /// [`CalibrateError::NegativeMoment`] on the diagonal.
    pub fn from_parts(k: usize, samples: u64, lower: &[f64]) -> Result<Self, Error> {
        let (expected, got) = (k * (k + 1) / 2, lower.len());
        if got != expected {
            return Err(CalibrateError::TriangleLen { k, expected, got }.into());
        }
        let at = |i: usize, j: usize| lower[i.max(j) * (i.max(j) + 1) / 2 + i.min(j)];
        for i in 0..k {
            if let Some(column) = (0..=i).find(|&j| !at(i, j).is_finite()) {
                let (what, row, value) = ("second moments", i as u64, at(i, column));
                return Err(CalibrateError::NotFinite { what, row, column, value }.into());
            }
            if at(i, i) < 0.0 {
                return Err(CalibrateError::NegativeMoment { index: i, value: at(i, i) }.into());
            }
        }
        Ok(Gram { samples, sums: Mat::from_fn(k, k, at) })
    }

    /// The lower triangle, row by row: what [`from_parts`](Self::from_parts) takes.
    pub fn lower(&self) -> Vec<f64> {
        (0..self.k()).flat_map(|i| (0..=i).map(move |j| self.sums[(i, j)])).collect()
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.sums.nrows()
    }

    /// Rows summed.
    pub fn samples(&self) -> u64 {
        self.samples
    }

    /// The sum of the products of inputs `i` and `j`.
    ///
    /// # Panics
    /// If `i` or `j` is no input.
    pub fn get(&self, i: usize, j: usize) -> f64 {
        self.sums[(i, j)]
    }

    /// The sums of squares.
    pub fn diagonal(&self) -> Vec<f64> {
        (0..self.k()).map(|i| self.sums[(i, i)]).collect()
    }

    /// The mean of the diagonal; 0 where there are no inputs.
    pub fn mean_diagonal(&self) -> f64 {
        self.diagonal().iter().sum::<f64>() / self.k().max(1) as f64
    }

    /// Adds the sums of other rows.
    ///
    /// # Errors
    /// [`CalibrateError::Width`], [`CalibrateError::TooManySamples`].
    pub fn merge(&mut self, other: &Gram) -> Result<(), Error> {
        expect_width("the other second moments", self.k(), other.k())?;
        let samples = self.samples.checked_add(other.samples);
        self.samples = samples.ok_or(CalibrateError::TooManySamples)?;
        self.sums += &other.sums;
        Ok(())
    }

    /// The blocks of `block` inputs on the diagonal, each with all samples.
    ///
    /// # Errors
    /// [`CalibrateError::Blocks`].
    pub fn blocks(&self, block: GroupSize) -> Result<Vec<Gram>, Error> {
        let d = block.get();
        Ok((0..whole_blocks(self.k(), d)?)
            .map(|b| Gram { samples: self.samples, sums: self.block(b * d, d).to_owned() })
            .collect())
    }

    /// The `d` inputs from `first` on, as a view.
    pub(super) fn block(&self, first: usize, d: usize) -> MatRef<'_, f64> {
        self.sums.submatrix(first, first, d, d)
    }

    /// The second moments of the transformed rows T x: T G T^T, without rounding those rows.
    ///
    /// # Errors
    /// [`CalibrateError::Width`].
    pub fn transformed(&self, transform: &BlockTransform) -> Result<Gram, Error> {
        expect_width("the transform", self.k(), transform.k())?;
        if transform.is_identity() {
            return Ok(self.clone());
        }
        let (k, d) = (self.k(), transform.block().get());
        let strips: Vec<Mat<f64>> = (0..k / d)
            .into_par_iter()
            .map(|a| {
                // Block row a, up to the diagonal: T_a G_ab T_b^T.
                let mut strip = Mat::zeros(d, (a + 1) * d);
                let mut left = Mat::zeros(d, (a + 1) * d);
                let rows = self.sums.submatrix(a * d, 0, d, (a + 1) * d);
                product(left.as_mut(), transform.matrix(a), rows);
                for b in 0..=a {
                    let to = strip.as_mut().subcols_mut(b * d, d);
                    product(to, left.subcols(b * d, d), transform.matrix(b).transpose());
                }
                strip
            })
            .collect();
        let sums = Mat::from_fn(k, k, |i, j| {
            let (i, j) = (i.max(j), i.min(j));
            strips[i / d][(i % d, j)]
        });
        Ok(Gram { samples: self.samples, sums })
    }

    /// Checks that there are samples.
    pub(super) fn expect_samples(&self) -> Result<(), Error> {
        if self.samples == 0 { Err(CalibrateError::NoSamples.into()) } else { Ok(()) }
    }
}

/// Blocks of `d` in `k` inputs.
pub(super) fn whole_blocks(k: usize, d: usize) -> Result<usize, Error> {
    if k.is_multiple_of(d) { Ok(k / d) } else { Err(CalibrateError::Blocks { k, block: d }.into()) }
}

/// Checks a width.
pub(super) fn expect_width(what: &'static str, expected: usize, got: usize) -> Result<(), Error> {
    if expected == got { Ok(()) } else { Err(CalibrateError::Width { what, expected, got }.into()) }
}

/// Checks that values are whole rows, and gives their number.
pub(super) fn expect_rows(what: &'static str, x: &[f32], k: usize) -> Result<usize, Error> {
    let whole = if k == 0 { x.is_empty() } else { x.len().is_multiple_of(k) };
    if !whole {
        return Err(CalibrateError::Ragged { what, k, got: x.len() }.into());
    }
    Ok(x.len().checked_div(k).unwrap_or(0))
}

/// Checks that rows of `k` values are finite.
pub(super) fn expect_finite(what: &'static str, x: &[f32], k: usize) -> Result<(), Error> {
    match x.iter().position(|x| !x.is_finite()) {
        None => Ok(()),
        Some(at) => {
            let (row, column, value) = ((at / k) as u64, at % k, f64::from(x[at]));
            Err(CalibrateError::NotFinite { what, row, column, value }.into())
        }
    }
}
