//! The sums of a tile with a panel, and what becomes of them: outputs (C6), or exact sums.

use std::ops::Range;

use fp4_core::{Epilogue, Error, ExactSum, PackedView, finish_one};

use super::operand::{COLUMNS, MAX_ROWS, Terms};
use super::output::OutputTile;
use super::panels::{Panel, Panels};
use super::rounding::{Bases, MOST_APART, Rounding, RowFactors};
use super::sum::{PLAIN_EXPONENTS, Sum, fits_63_bits};
use super::tiles::RowTile;
use super::{Kernels, Sums, Units};
use crate::quantize::FloatValue;

/// What becomes of the sums of a tile with a panel.
pub(super) trait TileWriter<T>: Sync {
    /// Writes the sums of the rows and columns that exist. `rows` is kept from one panel of the
    /// tile to the next.
    fn write<K: Kernels>(
        &self,
        sums: &TileSums<'_, K>,
        out: OutputTile<'_, T>,
        rows: &mut Option<RowFactors>,
    ) -> Result<(), Error>;
}

/// Rounds the sums and finishes them: row scales, alpha, bias, the rounding to the output type.
pub(super) struct Finish<'a> {
    pub(super) epilogue: Epilogue<'a>,
}

impl<T: FloatValue> TileWriter<T> for Finish<'_> {
    #[inline(always)]
    fn write<K: Kernels>(
        &self,
        sums: &TileSums<'_, K>,
        mut out: OutputTile<'_, T>,
        rows: &mut Option<RowFactors>,
    ) -> Result<(), Error> {
        let (row, column) = (sums.tile.first, sums.p * COLUMNS);
        if let Some(by) = sums.plain_bases().and_then(|bases| {
            Rounding::new(bases, &self.epilogue, [row, column], sums.corrections(), rows)
        }) {
            match sums.in_32_bits {
                true => sums.kernels.round_sums(sums.sums, &by, out),
                false => sums.kernels.round_units(sums.units, &by, out),
            }
            return Ok(());
        }
        for r in 0..out.rows() {
            let alpha = self.epilogue.row_alpha(row + r);
            for (c, y) in out.row(r).iter_mut().enumerate() {
                let nan = sums.is_nan(r, c);
                let sum = if nan { f32::NAN } else { sums.with_sum(r, c, |s| Ok(s.to_f32()))? };
                *y = finish_one(sum, alpha, self.epilogue.column_bias(column + c));
            }
        }
        Ok(())
    }
}

/// Hands each sum to a function.
pub(super) struct Emit<F>(pub(super) F);

impl<T, F: Fn(&mut T, bool, Sum<'_>) -> Result<(), Error> + Sync> TileWriter<T> for Emit<F> {
    fn write<K: Kernels>(
        &self,
        sums: &TileSums<'_, K>,
        mut out: OutputTile<'_, T>,
        _: &mut Option<RowFactors>,
    ) -> Result<(), Error> {
        if sums.plain {
            // Every output has its sum here, and none is NaN: nothing is to be asked of each.
            let (bases, unit) = (sums.panel().bases(), sums.terms.unit);
            for r in 0..out.rows() {
                let (row, correction) = (sums.tile.meta[r].base + unit, sums.corrections()[r]);
                for (c, y) in out.row(r).iter_mut().enumerate() {
                    let units = match sums.in_32_bits {
                        true => sums.sums[r][c].wrapping_sub(correction).into(),
                        false => sums.units[r][c],
                    };
                    self.0(y, false, Sum::Narrow { units, exponent: row + bases[c] })?;
                }
            }
            return Ok(());
        }
        for r in 0..out.rows() {
            for (c, y) in out.row(r).iter_mut().enumerate() {
                sums.with_sum(r, c, |sum| self.0(y, sums.is_nan(r, c), sum))?;
            }
        }
        Ok(())
    }
}

/// Adds each sum to one in units of `2^(rows[i] + columns[j])`.
pub(super) struct AddScaled<'a> {
    pub(super) rows: &'a [i32],
    pub(super) columns: &'a [i32],
}

impl TileWriter<i64> for AddScaled<'_> {
    #[inline(always)]
    fn write<K: Kernels>(
        &self,
        sums: &TileSums<'_, K>,
        mut out: OutputTile<'_, i64>,
        _: &mut Option<RowFactors>,
    ) -> Result<(), Error> {
        let (first, width) = (sums.p * COLUMNS, out.columns());
        let columns = &self.columns[first..first + width];
        let (bases, unit) = (sums.panel().bases(), sums.terms.unit);
        // How far each column is shifted left, but for what the row adds.
        let mut apart = [0; COLUMNS];
        for ((apart, base), column) in apart.iter_mut().zip(bases).zip(columns) {
            *apart = base - column;
        }
        let of_columns = apart[..width].iter().copied();
        let least = of_columns.clone().min().unwrap_or(0);
        let most = of_columns.max().unwrap_or(0);
        for r in 0..out.rows() {
            let (i, totals) = (sums.tile.first + r, out.row(r));
            let row = sums.tile.meta[r].base + unit - self.rows[i];
            if sums.plain && row + least >= 0 && row + most < 64 {
                let shifts = apart.map(|apart| (apart + row) as u32);
                let correction = sums.corrections()[r];
                let of_sum = |sum: i32| i64::from(sum.wrapping_sub(correction));
                match sums.in_32_bits {
                    // No sum of 32 bits loses any.
                    true if row + most <= 32 => {
                        add_row::<false>(&sums.sums[r].map(of_sum), &shifts, totals)
                    }
                    true => add_row::<true>(&sums.sums[r].map(of_sum), &shifts, totals),
                    false => add_row::<true>(&sums.units[r], &shifts, totals),
                }?;
                continue;
            }
            for (c, (total, column)) in totals.iter_mut().zip(columns).enumerate() {
                let exponent = self.rows[i] + column;
                sums.with_sum(r, c, |sum| sum.add_to_units(total, exponent))?;
            }
        }
        Ok(())
    }
}

/// Adds sums, each shifted left, to totals. `CHECKED` where a shift may lose bits.
#[inline(always)]
fn add_row<const CHECKED: bool>(
    sums: &[i64; COLUMNS],
    shifts: &[u32; COLUMNS],
    totals: &mut [i64],
) -> Result<(), Error> {
    let terms: [i64; COLUMNS] = std::array::from_fn(|c| sums[c].wrapping_shl(shifts[c]));
    let mut wrong = 0;
    if CHECKED {
        for c in 0..totals.len().min(COLUMNS) {
            wrong |= i64::from(terms[c].wrapping_shr(shifts[c]) != sums[c]);
        }
    }
    let mut over = 0;
    for (total, term) in totals.iter_mut().zip(terms) {
        let sum = total.wrapping_add(term);
        // Its sign is neither of theirs.
        over |= (*total ^ sum) & (term ^ sum);
        *total = sum;
    }
    if over < 0 || wrong != 0 { Err(Error::PartialOverflow) } else { Ok(()) }
}

/// The sums of a tile with a panel.
pub(super) struct TileSums<'a, K> {
    pub(super) kernels: K,
    pub(super) a: &'a PackedView<'a>,
    pub(super) b: &'a Panels,
    /// B's groups of the call.
    pub(super) groups: &'a Range<usize>,
    pub(super) terms: Terms,
    pub(super) tile: &'a RowTile,
    /// Index of the panel.
    pub(super) p: usize,
    /// True if the sums are in `sums` less the corrections of plane 0 of the tile, else they are in
    /// `units`.
    pub(super) in_32_bits: bool,
    pub(super) sums: &'a Sums,
    pub(super) units: &'a Units,
    /// True if every output has a sum, none is NaN, and all exponents are plain.
    pub(super) plain: bool,
}

impl<K: Kernels> TileSums<'_, K> {
    #[inline(always)]
    fn panel(&self) -> &Panel {
        &self.b.panels()[self.p]
    }

    /// True if a scale in the range of the call is NaN in row `r` or column `c`.
    fn is_nan(&self, r: usize, c: usize) -> bool {
        let (a, b, groups) = (self.a, self.b, self.groups);
        let (scale_type, of_a) = (a.shape().scale_type(), self.terms.scales_of_a(groups));
        let any = |scales: &[u8]| scales[of_a.clone()].iter().any(|&s| scale_type.is_nan(s));
        self.tile.meta[r].nan && any(a.row_scales(self.tile.first + r))
            || b.is_nan(self.p * COLUMNS + c, groups)
    }

    /// True if the sum of row `r` and column `c` is in `sums` or `units`.
    fn is_narrow(&self, r: usize, c: usize) -> bool {
        let (a, b, terms) = (&self.tile.meta[r], self.panel().meta(c), self.terms);
        let live = terms.live(a.live, b.live, self.groups.len());
        self.tile.complete[r]
            && self.panel().is_complete(c)
            && fits_63_bits(terms.dot, a.reach, b.reach, live)
    }

    /// What 32-bit sums are too large by.
    #[inline(always)]
    fn corrections(&self) -> &[i32; MAX_ROWS] {
        &self.tile.planes()[0].corrections
    }

    fn with_sum<R>(
        &self,
        r: usize,
        c: usize,
        f: impl FnOnce(Sum<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        if self.is_narrow(r, c) {
            let units = if self.in_32_bits {
                i64::from(self.sums[r][c].wrapping_sub(self.corrections()[r]))
            } else {
                self.units[r][c]
            };
            let unit = self.terms.unit;
            let exponent = self.tile.meta[r].base + self.panel().bases()[c] + unit;
            return f(Sum::Narrow { units, exponent });
        }
        let (i, j) = (self.tile.first + r, self.p * COLUMNS + c);
        let sum: ExactSum = self.b.exact_sum(self.a, i, j, self.groups.clone())?;
        f(Sum::Wide(&sum))
    }

    /// The exponents of the tile and the panel, if all outputs are plain. The columns' are measured
    /// from the least of all of B, if that is in reach: what follows is then the tile's for all
    /// panels.
    #[inline(always)]
    fn plain_bases(&self) -> Option<Bases<'_>> {
        let (panel, all, unit) = (self.panel().extremes(), self.b.extremes(), self.terms.unit);
        let least_row = self.tile.extremes.least_base;
        let in_reach = all.most_base - all.least_base <= MOST_APART
            && PLAIN_EXPONENTS.contains(&(least_row + all.least_base + unit));
        self.plain.then_some(Bases {
            rows: &self.tile.bases,
            columns: self.panel().bases(),
            least: if in_reach { all.least_base } else { panel.least_base },
            most: panel.most_base,
            unit,
        })
    }

    /// How many outputs took the wide path.
    pub(super) fn wide(&self) -> u64 {
        if self.plain {
            return 0;
        }
        let (rows, columns) = (self.tile.meta.len(), self.panel().columns());
        let outputs = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
        outputs.filter(|&(r, c)| !self.is_narrow(r, c)).count() as u64
    }
}
