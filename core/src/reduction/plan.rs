//! A block of outputs as words: what each rank sends, and what comes of their sums.

use alloc::vec;
use alloc::vec::Vec;
use core::ops::Range;

use super::{Bound, Form, Reach};
use crate::error::{Buffer, Error};
use crate::exact::{ExactSum, PartialsMut, ScaledSums, round_row};
use crate::float::NAN_F32;
use crate::packed::PackedView;

/// Rows of A by some columns (rows of B), in the words of a reduction: row after row, each in the
/// form that its plan says, the sums of a row one after the other.
///
/// Every rank makes the same plan of the same merged reaches.
#[derive(Debug, Clone)]
pub struct BlockPlan {
    rows: Vec<Row>,
    columns: Vec<Reach>,
    /// The exponent of each column, to be added to a row's.
    bases: Vec<i32>,
    /// Whether one of the columns is NaN.
    any_nan: bool,
    bound: Bound,
}

#[derive(Debug, Clone, Copy)]
struct Row {
    /// What is added to a column's exponent; wide where there is none.
    narrow: Option<i32>,
    nan: bool,
}

impl Row {
    fn form(&self) -> Form {
        if self.narrow.is_some() { Form::Narrow } else { Form::Wide }
    }
}

impl BlockPlan {
    /// For rows of A and columns of these reaches, merged over all ranks. A row is narrow if an i64
    /// holds its sums with every one of the columns.
    pub fn new(bound: Bound, rows: &[Reach], columns: &[Reach]) -> Self {
        let zero = Reach::EMPTY;
        let [_, ty] = bound.scale_types;
        // The column with the widest reach decides.
        let widest = columns.iter().copied().max_by_key(|c| c.units(ty).1).unwrap_or(zero);
        let rows = rows.iter().map(|&row| {
            let exponent = bound.exponent(row, widest);
            let narrow = exponent.map(|exponent| exponent - widest.units(ty).0);
            Row { narrow, nan: row.is_nan() }
        });
        BlockPlan {
            rows: rows.collect(),
            bases: columns.iter().map(|c| c.units(ty).0).collect(),
            columns: columns.to_vec(),
            any_nan: columns.iter().any(|column| column.is_nan()),
            bound,
        }
    }

    /// Rows of A.
    pub fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Columns of the block.
    pub fn columns(&self) -> usize {
        self.columns.len()
    }

    /// The bound that it was made by.
    pub fn bound(&self) -> Bound {
        self.bound
    }

    /// The form of row `i`.
    ///
    /// # Panics
    /// If `i` is not below the number of rows.
    pub fn form(&self, i: usize) -> Form {
        self.rows[i].form()
    }

    /// How many rows are in this form.
    pub fn rows_of(&self, form: Form) -> usize {
        self.rows.iter().filter(|row| row.form() == form).count()
    }

    /// Words of some rows.
    ///
    /// # Panics
    /// If the range is outside the rows.
    pub fn words(&self, rows: Range<usize>) -> usize {
        let words: usize = self.rows[rows].iter().map(|row| row.form().words()).sum();
        words * self.columns.len()
    }

    /// Appends the words of one rank's sums to `words`: `partial` adds the exact sums of some rows
    /// of A to the partial sums that it is given, (rows, columns) row-major.
    ///
    /// # Errors
    /// Those of `partial`, and of [`PackedView::rows_range`] if A has fewer rows than the plan.
    pub fn partial<E: From<Error>>(
        &self,
        a: PackedView<'_>,
        words: &mut Vec<i64>,
        mut partial: impl FnMut(PackedView<'_>, PartialsMut<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        words.reserve(self.words(0..self.rows.len()));
        let (mut bases, mut wide) = (Vec::new(), Vec::new());
        let mut first = 0;
        for run in self.rows.chunk_by(|a, b| a.form() == b.form()) {
            let rows = a.rows_range(first..first + run.len())?;
            first += run.len();
            if run.iter().all(|row| row.narrow.is_some()) {
                bases.clear();
                bases.extend(run.iter().filter_map(|row| row.narrow));
                // A narrow sum is a word: they are added where they are sent from.
                let start = words.len();
                words.resize(start + run.len() * self.columns.len(), 0);
                let sums = ScaledSums::new(&mut words[start..], &bases, &self.bases)?;
                partial(rows, PartialsMut::Scaled(sums))?;
            } else {
                wide.clear();
                wide.resize(run.len() * self.columns.len(), ExactSum::ZERO);
                partial(rows, PartialsMut::Exact(&mut wide))?;
                words.extend(wide.iter().flat_map(ExactSum::to_words));
            }
        }
        Ok(())
    }

    /// Hands the sums of each of `rows`, rounded once to f32, to `emit` with the row. `words` are
    /// the added words of these rows.
    ///
    /// # Errors
    /// [`Error::Len`] unless there are [`words`](Self::words) of them.
    ///
    /// # Panics
    /// If the range is outside the rows.
    pub fn rounded(
        &self,
        rows: Range<usize>,
        words: &[i64],
        mut emit: impl FnMut(usize, &[f32]),
    ) -> Result<(), Error> {
        let (expected, got) = (self.words(rows.clone()), words.len());
        if got != expected {
            return Err(Error::Len { what: Buffer::Partials, expected, got });
        }
        let mut words = words;
        let nan = f32::from_bits(NAN_F32);
        let mut sums = vec![0f32; self.columns.len()];
        for (i, row) in rows.clone().zip(&self.rows[rows]) {
            let (own, rest) = words.split_at(row.form().words() * self.columns.len());
            words = rest;
            match row.narrow {
                _ if row.nan => sums.fill(nan),
                Some(exponent) => round_row(own, exponent, &self.bases, &mut sums),
                None => {
                    for (sum, words) in sums.iter_mut().zip(own.as_chunks().0) {
                        *sum = ExactSum::from_words(words).to_f32();
                    }
                }
            }
            if self.any_nan {
                let columns = sums.iter_mut().zip(&self.columns);
                columns.filter(|(_, column)| column.is_nan()).for_each(|(sum, _)| *sum = nan);
            }
            emit(i, &sums);
        }
        Ok(())
    }
}
