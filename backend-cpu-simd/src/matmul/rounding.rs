//! The one rounding of the sums of a tile with a panel, and what follows it: row scales, alpha,
//! bias, the type of the output (C6).
//!
//! ```text
//! y = f32(sum - correction) * 2^e * alpha + bias      e = row's base + column's base + unit
//! ```
//!
//! The conversion rounds; the product with the power is exact; each operation after it rounds. The
//! power is split in two, so that vectors of columns and single rows need one product each:
//!
//! ```text
//! columns[c] = 2^(base_c - least)                     least: of the bases of B, or of the panel
//! rows[r]    = 2^(base_r + least + unit) * alpha_r
//! y          = f32(sum) * columns[c] * rows[r]
//! ```
//!
//! # Why the bits are the same
//!
//! Here all e are plain ([`PLAIN_EXPONENTS`](super::sum::PLAIN_EXPONENTS), -126..=63), those with
//! `least` for the column's base too, and the columns' bases are at most 63 over it, or there is no
//! [`Rounding`]. f32(sum) is 0 or 1 to 2^63 in magnitude, so `f32(sum) * columns[c]` is exact: at
//! least 1, below 2^127. `rows[r]` is exact if alpha is zero or not finite, or if it and the
//! product are normal; then the last product rounds f32(sum) * 2^e * alpha_r once, as the
//! contract's does. If it is not exact for some row, alpha stays a factor of its own:
//! `f32(sum) * columns[c] * 2^(base_r + least + unit)` is the exact product, by the bounds of e.
//!
//! A sum is finite, so without a bias and with finite alphas no output is NaN.
//!
//! Worked example: sum 3, e = -2 + 1, alpha 0.1: columns 2, rows 0.025, and 3 * 2 * 0.025 rounds
//! 0.15, as 1.5 * 0.1 does.

use fp4_core::Epilogue;

use super::operand::{COLUMNS, MAX_ROWS};
use super::output::OutputTile;
use super::sum::power_of_two;
use super::{OutputRow, Sums, Units};
use crate::quantize::FloatValue;

/// Largest difference of the columns' bases.
pub(super) const MOST_APART: i32 = 63;

/// What the rows of a tile are multiplied with, for all panels whose columns are measured from one
/// exponent. What is past the last row is anything.
#[derive(Debug, Clone)]
pub(crate) struct RowFactors {
    /// The tile's first row, and the exponent.
    of: (usize, i32),
    /// 2^(base_r + least + unit) * alpha_r, or without alpha_r.
    pub(crate) rows: [f32; MAX_ROWS],
    /// The rows' alphas, if they are not in [`rows`](Self::rows).
    pub(crate) alphas: Option<[f32; MAX_ROWS]>,
    /// True if all alphas are.
    finite: bool,
}

impl RowFactors {
    /// Of the tile whose first row is `row`, with `least` the exponent of the columns.
    fn new(bases: Bases<'_>, epilogue: &Epilogue<'_>, row: usize) -> Self {
        let mut alphas = [epilogue.alpha; MAX_ROWS];
        if let Some(scales) = epilogue.row_scales {
            for (alpha, scale) in alphas.iter_mut().zip(&scales[row..]) {
                *alpha = epilogue.alpha * scale;
            }
        }
        let (mut exact, mut finite, mut powers) = (true, true, [0f32; MAX_ROWS]);
        for ((power, alpha), base) in powers.iter_mut().zip(&alphas).zip(bases.rows) {
            let exponent = base + bases.least + bases.unit;
            let magnitude = alpha.to_bits() & 0x7FFF_FFFF;
            let biased = (magnitude >> 23) as i32;
            let normal = (biased > 0) & (biased + exponent > 0) & (biased + exponent < 255);
            finite &= biased < 255;
            exact &= (magnitude == 0) | (biased == 255) | normal;
            *power = power_of_two(exponent);
        }
        let rows = match exact {
            true => std::array::from_fn(|r| powers[r] * alphas[r]),
            false => powers,
        };
        let alphas = (!exact).then_some(alphas);
        RowFactors { of: (row, bases.least), rows, alphas, finite }
    }
}

/// How the sums of a tile with a panel become outputs. What is past the last row or column is
/// anything.
#[derive(Debug, Clone)]
pub(crate) struct Rounding<'a> {
    /// What the 32-bit sums of each row are too large by.
    pub(crate) corrections: &'a [i32; MAX_ROWS],
    pub(crate) rows: &'a RowFactors,
    /// Factors of columns.
    pub(crate) columns: OutputRow,
    /// What is added to each column.
    pub(crate) bias: Option<OutputRow>,
    /// True if an output may be NaN: it has to become the canonical one.
    #[cfg_attr(
        not(target_arch = "x86_64"),
        allow(dead_code, reason = "what narrows there makes every NaN canonical")
    )]
    pub(crate) nan: bool,
}

/// Exponents of the rows and columns of a tile and a panel.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bases<'a> {
    /// Of the rows, all 24 those of rows that exist.
    pub(crate) rows: &'a [i32; MAX_ROWS],
    pub(crate) columns: &'a [i32; COLUMNS],
    /// From which the columns are measured: at most the least of them.
    pub(crate) least: i32,
    /// The most of the columns that exist.
    pub(crate) most: i32,
    /// What a unit of a sum is worth.
    pub(crate) unit: i32,
}

impl<'a> Rounding<'a> {
    /// For a tile whose first row and column are `row` and `column`, all of whose exponents are
    /// plain; none if the columns' are too far apart. `rows` may hold the tile's factors of another
    /// panel.
    #[inline(always)]
    pub(crate) fn new(
        bases: Bases<'_>,
        epilogue: &Epilogue<'_>,
        [row, column]: [usize; 2],
        corrections: &'a [i32; MAX_ROWS],
        rows: &'a mut Option<RowFactors>,
    ) -> Option<Self> {
        if bases.most - bases.least > MOST_APART {
            return None;
        }
        let of = (row, bases.least);
        if rows.as_ref().is_none_or(|rows| rows.of != of) {
            *rows = Some(RowFactors::new(bases, epilogue, row));
        }
        let rows = rows.as_ref()?;
        let bias = epilogue.bias.map(|bias| {
            let mut of_panel = [0.0; COLUMNS];
            of_panel.iter_mut().zip(&bias[column..]).for_each(|(to, &bias)| *to = bias);
            of_panel
        });
        Some(Rounding {
            corrections,
            columns: bases.columns.map(|base| power_of_two(base - bases.least)),
            nan: !rows.finite || bias.is_some(),
            bias,
            rows,
        })
    }

    /// [`Kernels::round_sums`](super::Kernels::round_sums) for sets that have no better.
    #[inline(always)]
    pub(super) fn sums<T: FloatValue>(&self, sums: &Sums, mut out: OutputTile<'_, T>) {
        for (r, sums) in sums.iter().enumerate().take(out.rows()) {
            self.row(sums.map(|sum| sum.wrapping_sub(self.corrections[r]) as f32), r, &mut out);
        }
    }

    /// [`Kernels::round_units`](super::Kernels::round_units) for sets that have no better.
    #[inline(always)]
    pub(super) fn units<T: FloatValue>(&self, units: &Units, mut out: OutputTile<'_, T>) {
        for (r, units) in units.iter().enumerate().take(out.rows()) {
            self.row(units.map(|units| units as f32), r, &mut out);
        }
    }

    /// Writes row `r`, of these sums.
    #[inline(always)]
    fn row<T: FloatValue>(&self, mut y: OutputRow, r: usize, out: &mut OutputTile<'_, T>) {
        for (y, column) in y.iter_mut().zip(&self.columns) {
            *y = *y * column * self.rows.rows[r];
        }
        if let Some(alphas) = &self.rows.alphas {
            y.iter_mut().for_each(|y| *y *= alphas[r]);
        }
        if let Some(bias) = &self.bias {
            // The sum of a NaN and a bias is a NaN: it becomes canonical in the end.
            y.iter_mut().zip(bias).for_each(|(y, bias)| *y += bias);
        }
        let out = out.row(r);
        if let Ok(out) = <&mut [T; COLUMNS]>::try_from(&mut *out) {
            T::narrow(&y, out);
        } else {
            let mut narrowed = [T::default(); COLUMNS];
            T::narrow(&y, &mut narrowed);
            out.copy_from_slice(&narrowed[..out.len()]);
        }
    }
}
