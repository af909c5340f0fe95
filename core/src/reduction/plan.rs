//! A block of outputs as words: what each rank sends, and what comes of their sums.

use alloc::vec::Vec;
use core::ops::Range;

use super::{Bound, Form, Reach};
use crate::error::{Buffer, Error};
use crate::exact::{ExactSum, PartialsMut, ScaledSum, round_units};
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
        let (mut narrow, mut wide) = (Vec::new(), Vec::new());
        let mut first = 0;
        for run in self.rows.chunk_by(|a, b| a.form() == b.form()) {
            let rows = a.rows_range(first..first + run.len())?;
            first += run.len();
            if run.iter().all(|row| row.narrow.is_some()) {
                narrow.clear();
                let bases = run.iter().filter_map(|row| row.narrow);
                narrow.extend(bases.flat_map(|row| {
                    self.bases.iter().map(move |column| ScaledSum::zero(row + column))
                }));
                partial(rows, PartialsMut::Scaled(&mut narrow))?;
                words.extend(narrow.iter().map(|sum| sum.units));
            } else {
                wide.clear();
                wide.resize(run.len() * self.columns.len(), ExactSum::ZERO);
                partial(rows, PartialsMut::Exact(&mut wide))?;
                words.extend(wide.iter().flat_map(ExactSum::to_words));
            }
        }
        Ok(())
    }

    /// Hands each sum of `rows`, rounded once to f32, to `emit` with its row and its column in the
    /// block. `words` are the added words of these rows.
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
        mut emit: impl FnMut(usize, usize, f32),
    ) -> Result<(), Error> {
        let (expected, got) = (self.words(rows.clone()), words.len());
        if got != expected {
            return Err(Error::Len { what: Buffer::Partials, expected, got });
        }
        let mut words = words;
        let nan = f32::from_bits(NAN_F32);
        for (i, row) in rows.clone().zip(&self.rows[rows]) {
            let (own, rest) = words.split_at(row.form().words() * self.columns.len());
            words = rest;
            let any_nan = |column: &Reach| row.nan || column.is_nan();
            match row.narrow {
                Some(exponent) => {
                    let columns = self.columns.iter().zip(&self.bases).zip(own);
                    for (j, ((column, base), &units)) in columns.enumerate() {
                        let sum =
                            if any_nan(column) { nan } else { round_units(units, exponent + base) };
                        emit(i, j, sum);
                    }
                }
                None => {
                    let sums = own.as_chunks().0;
                    for (j, (column, words)) in self.columns.iter().zip(sums).enumerate() {
                        let sum = ExactSum::from_words(words).to_f32();
                        emit(i, j, if any_nan(column) { nan } else { sum });
                    }
                }
            }
        }
        Ok(())
    }
}
