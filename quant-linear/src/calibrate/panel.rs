//! Some rows of a weight while they are quantized, block by block.
//!
//! Values are column-major, so that one input of all rows is contiguous: an error is carried to
//! another input by one run over those rows.

use fp4_core::E2m1;
use fp4_core::reference::group_scale;

use super::factor::Factors;
use super::linalg::{Mat, MatMut};
use super::method::{GroupScales, Method, QuantizeOptions};
use super::{babai, gptq};
use crate::error::{CalibrateError, Error};

/// What all panels of a weight share.
pub(super) struct Work<'a> {
    pub options: &'a QuantizeOptions,
    pub factors: &'a Factors,
    /// The input at each position.
    pub order: &'a [usize],
    /// Positions of a block.
    pub block: usize,
    pub scales: GroupScales,
}

/// Rows of a weight, their codes and their scale bytes.
pub(super) struct Panel<'a> {
    work: &'a Work<'a>,
    /// The first row's index in the weight.
    first_row: usize,
    rows: usize,
    /// The weight by position, (rows, k).
    pub weight: Mat<f64>,
    /// What one unit of a code is worth, of row r in group g at `g * rows + r`.
    units: Vec<f32>,
    codes: &'a mut [u8],
    scales: &'a mut [u8],
}

impl<'a> Panel<'a> {
    pub(super) fn new(
        work: &'a Work<'a>,
        first_row: usize,
        weight: &[f32],
        codes: &'a mut [u8],
        scales: &'a mut [u8],
    ) -> Self {
        let (k, group) = (work.order.len(), work.options.spec.group().get());
        let rows = weight.len() / k;
        let weight = Mat::from_fn(rows, k, |r, p| f64::from(weight[r * k + work.order[p]]));
        let units = vec![0.0; rows * (k / group)];
        Panel { work, first_row, rows, weight, units, codes, scales }
    }

    /// Quantizes all blocks.
    pub(super) fn run(mut self) -> Result<(), Error> {
        let Work { options, factors, block, .. } = *self.work;
        let k = self.work.order.len();
        if self.work.scales == GroupScales::Original {
            self.freeze_original();
        }
        // What decided positions hand on: errors as GPTQ or as Babai count them.
        let mut carried = Mat::<f64>::zeros(self.rows, if factors.outer.is_some() { k } else { 0 });
        let count = k.div_ceil(block);
        for b in 0..count {
            let b = if options.outer == Method::Babai { count - 1 - b } else { b };
            let first = b * block;
            let n = block.min(k - first);
            let mut x = self.weight.subcols(first, n).to_owned();
            if let Some(factor) = &factors.outer {
                match options.outer {
                    Method::Gptq => gptq::carry(x.as_mut(), carried.as_ref(), factor, first),
                    _ => babai::carry(x.as_mut(), carried.as_ref(), factor, first),
                }
            }
            if self.work.scales == GroupScales::Reached {
                self.freeze(&x, first);
            }
            // The values that the codes stand for.
            let mut q = Mat::zeros(self.rows, n);
            let reached = x.clone();
            let inner = factors.inner.get(b);
            let errors = match (options.inner, inner) {
                (Method::Gptq, Some(m)) => Some(gptq::round(&mut self, &mut x, &mut q, m, first)?),
                (Method::Babai, Some(l)) => {
                    babai::round(&mut self, &mut x, &mut q, l, first)?;
                    None
                }
                _ => {
                    for j in 0..n {
                        self.encode(first + j, x.col_as_slice(j), q.col_as_slice_mut(j))?;
                    }
                    None
                }
            };
            if let Some(factor) = &factors.outer {
                let to = carried.as_mut().subcols_mut(first, n);
                match (options.outer, errors) {
                    (Method::Gptq, Some(errors)) => copy(to, &errors),
                    (Method::Gptq, None) => {
                        copy(to, &gptq::errors(&(&reached - &q), factor, first));
                    }
                    _ => copy(to, &(self.weight.subcols(first, n) - &q)),
                }
            }
        }
        Ok(())
    }

    /// Scale bytes of all groups, from the weight as it is.
    fn freeze_original(&mut self) {
        let (k, group) = (self.work.order.len(), self.work.options.spec.group().get());
        let mut position = vec![0; k];
        self.work.order.iter().enumerate().for_each(|(p, &input)| position[input] = p);
        for g in 0..k / group {
            for r in 0..self.rows {
                let value = |i: usize| self.weight[(r, position[g * group + i])] as f32;
                let y: [f32; 128] = std::array::from_fn(|i| if i < group { value(i) } else { 0.0 });
                self.freeze_group(g, r, &y[..group]);
            }
        }
    }

    /// Scale bytes of a block's groups, from its values as they are. In the natural order.
    fn freeze(&mut self, x: &Mat<f64>, first: usize) {
        let group = self.work.options.spec.group().get();
        for g in 0..x.ncols() / group {
            for r in 0..self.rows {
                let value = |i: usize| x[(r, g * group + i)] as f32;
                let y: [f32; 128] = std::array::from_fn(|i| if i < group { value(i) } else { 0.0 });
                self.freeze_group(first / group + g, r, &y[..group]);
            }
        }
    }

    fn freeze_group(&mut self, g: usize, r: usize, y: &[f32]) {
        let spec = &self.work.options.spec;
        let groups = self.scales.len() / self.rows;
        let scale = group_scale(y, spec);
        self.scales[r * groups + g] = scale;
        self.units[g * self.rows + r] = spec.unit(scale);
    }

    /// Rounds the values `x` of the position `p` under their frozen scales, stores their codes, and
    /// writes what those stand for to `q` (C4.3, C4.4).
    ///
    /// # Errors
    /// [`CalibrateError::Diverged`] where a value is not finite in f32.
    pub(super) fn encode(&mut self, p: usize, x: &[f64], q: &mut [f64]) -> Result<(), Error> {
        let (input, spec) = (self.work.order[p], &self.work.options.spec);
        let (group, tie, half) = (spec.group().get(), spec.tie(), self.work.order.len() / 2);
        let units = &self.units[input / group * self.rows..][..self.rows];
        for (r, ((&x, q), &unit)) in x.iter().zip(q).zip(units).enumerate() {
            let narrow = x as f32;
            if !narrow.is_finite() {
                let (row, damping) = (self.first_row + r, self.work.options.damping);
                return Err(
                    CalibrateError::Diverged { row, column: input, value: x, damping }.into()
                );
            }
            let quotient = if unit == 0.0 { 0f32.copysign(narrow) } else { narrow / unit };
            let code = E2m1::from_f32_tie(quotient, tie);
            *q = f64::from(code.to_f32() * unit);
            self.codes[r * half + input / 2] |= code.to_bits() << (4 * (input % 2));
        }
        Ok(())
    }
}

fn copy(mut to: MatMut<'_, f64>, from: &Mat<f64>) {
    to.copy_from(from);
}
