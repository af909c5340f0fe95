//! What follows the exact sum: row scales, alpha, bias, and the rounding to the output type (C6).
//!
//! ```text
//! alpha_i = alpha * r_i               f32, where row scales are given; else alpha
//! y       = s32 * alpha_i             f32
//! y       = y + bias[j]               f32, where a bias is given
//! out     = round(y)                  to f32, f16 or bf16; a NaN is canonical
//! ```
//!
//! No bias is not a bias of 0: -0 + 0 is +0.
//!
//! Worked example: s32 = 3 in row i of scale 0.5 and column j of bias 1, alpha = 2:
//! alpha_i = 1, y = 3, then 4.

use crate::error::{Buffer, Error, Unsupported};
use crate::float::Float;

/// The multiplier of a product, and what else is done to each output before its one rounding (C6).
///
/// Row scales and bias are any f32. Their lengths are checked against the product by
/// [`expect`](Self::expect), which every matmul calls.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Epilogue<'a> {
    /// What every sum is multiplied by.
    pub alpha: f32,
    /// What alpha is multiplied by first, for each of the M rows of A.
    pub row_scales: Option<&'a [f32]>,
    /// What is added, for each of the N columns: the rows of B.
    pub bias: Option<&'a [f32]>,
}

impl<'a> Epilogue<'a> {
    /// Multiplication by `alpha` and nothing else.
    pub const fn new(alpha: f32) -> Self {
        Epilogue { alpha, row_scales: None, bias: None }
    }

    /// The same with these row scales, one for each row of A, or none.
    #[must_use]
    pub const fn with_row_scales(self, row_scales: Option<&'a [f32]>) -> Self {
        Epilogue { row_scales, ..self }
    }

    /// The same with this bias, one value for each row of B, or none.
    #[must_use]
    pub const fn with_bias(self, bias: Option<&'a [f32]>) -> Self {
        Epilogue { bias, ..self }
    }

    /// Checks the lengths against an (m, n) product.
    ///
    /// # Errors
    /// [`Error::Len`] unless there are `m` row scales, if any, and `n` values of bias, if any.
    pub fn expect(&self, m: usize, n: usize) -> Result<(), Error> {
        let given = [(Buffer::RowScales, self.row_scales, m), (Buffer::Bias, self.bias, n)];
        for (what, values, expected) in given {
            if let Some(got) = values.map(<[f32]>::len)
                && got != expected
            {
                return Err(Error::Len { what, expected, got });
            }
        }
        Ok(())
    }

    /// Alpha, where it is all of the epilogue, for backends that do no more.
    ///
    /// # Errors
    /// [`Unsupported::RowScales`] or [`Unsupported::Bias`].
    pub const fn alpha_only(&self) -> Result<f32, Unsupported> {
        match (self.row_scales, self.bias) {
            (Some(_), _) => Err(Unsupported::RowScales),
            (None, Some(_)) => Err(Unsupported::Bias),
            (None, None) => Ok(self.alpha),
        }
    }

    /// The multiplier of row `i`.
    ///
    /// # Panics
    /// If there are row scales and not one for `i`: [`expect`](Self::expect) says.
    #[inline]
    pub fn row_alpha(&self, i: usize) -> f32 {
        match self.row_scales {
            Some(scales) => self.alpha * scales[i],
            None => self.alpha,
        }
    }

    /// What is added in column `j`, if anything.
    ///
    /// # Panics
    /// If there is a bias and no value for `j`: [`expect`](Self::expect) says.
    #[inline]
    pub fn column_bias(&self, j: usize) -> Option<f32> {
        self.bias.map(|bias| bias[j])
    }

    /// The output in row `i` and column `j` for the exact sum rounded to f32.
    ///
    /// # Panics
    /// As [`row_alpha`](Self::row_alpha) and [`column_bias`](Self::column_bias).
    #[inline]
    pub fn apply<T: Float>(&self, s32: f32, i: usize, j: usize) -> T {
        finish_one(s32, self.row_alpha(i), self.column_bias(j))
    }

    /// The outputs in row `i` and the columns from `first` on, for as many sums: each as
    /// [`apply`](Self::apply) makes it, with nothing asked for each.
    ///
    /// # Panics
    /// As [`row_alpha`](Self::row_alpha) and [`column_bias`](Self::column_bias), and unless there are
    /// as many outputs as sums.
    pub fn apply_row<T: Float>(&self, sums: &[f32], i: usize, first: usize, out: &mut [T]) {
        assert_eq!(sums.len(), out.len(), "as many outputs as sums");
        let alpha = self.row_alpha(i);
        match self.bias.map(|bias| &bias[first..first + sums.len()]) {
            Some(bias) => {
                for ((y, &sum), &bias) in out.iter_mut().zip(sums).zip(bias) {
                    *y = finish_one(sum, alpha, Some(bias));
                }
            }
            None => out.iter_mut().zip(sums).for_each(|(y, &s)| *y = finish_one(s, alpha, None)),
        }
    }
}

impl From<f32> for Epilogue<'_> {
    fn from(alpha: f32) -> Self {
        Epilogue::new(alpha)
    }
}

/// The last steps of C6 for one output: `round(s32 * alpha + bias)`, where the multiplication and
/// the addition are one f32 operation each, and `alpha` that of the output's row.
#[inline]
pub fn finish_one<T: Float>(s32: f32, alpha: f32, bias: Option<f32>) -> T {
    let y = s32 * alpha;
    T::from_f32(match bias {
        Some(bias) => y + bias,
        None => y,
    })
}

#[cfg(test)]
mod tests {
    use half::{bf16, f16};

    use super::*;
    use crate::float::NAN_F32;

    #[test]
    fn the_worked_example() {
        let epilogue =
            Epilogue::new(2.0).with_row_scales(Some(&[9.0, 0.5])).with_bias(Some(&[7.0, 1.0]));
        assert_eq!(epilogue.apply::<f32>(3.0, 1, 1), 4.0);
        assert_eq!(Epilogue::from(2.0).apply::<f32>(3.0, 1, 1), 6.0);
    }

    #[test]
    fn a_row_of_outputs_is_that_of_each() {
        let (sums, scales) = ([3.0, -0.0, f32::MAX, f32::NAN, -1e-40], [9.0, 0.1]);
        let bias = [7.0, 1.0, -0.0, 0.5, 3e38, 2.0];
        let plain = Epilogue::new(0.7);
        let scaled = plain.with_row_scales(Some(&scales));
        for epilogue in [plain, scaled, plain.with_bias(Some(&bias)), scaled.with_bias(Some(&bias))]
        {
            let (mut got, mut half) = ([0f32; 5], [f16::ZERO; 5]);
            epilogue.apply_row(&sums, 1, 1, &mut got);
            epilogue.apply_row(&sums, 1, 1, &mut half);
            for (j, &sum) in sums.iter().enumerate() {
                let (one, of_half): (f32, f16) =
                    (epilogue.apply(sum, 1, 1 + j), epilogue.apply(sum, 1, 1 + j));
                assert_eq!(got[j].to_bits(), one.to_bits(), "{epilogue:?} {j}");
                assert_eq!(half[j].to_bits(), of_half.to_bits(), "{epilogue:?} {j}");
            }
        }
    }

    #[test]
    fn alpha_times_the_row_scale_is_rounded_before_the_sum_is_multiplied() {
        let (alpha, scale, sum) = (1.0 + f32::EPSILON, 1.0 + f32::EPSILON, 3.0f32);
        let scales = [scale];
        let epilogue = Epilogue::new(alpha).with_row_scales(Some(&scales));
        let got: f32 = epilogue.apply(sum, 0, 0);
        assert_eq!(got.to_bits(), (sum * (alpha * scale)).to_bits());
        assert_ne!(got.to_bits(), (sum * alpha * scale).to_bits());
        // It may overflow or underflow where the product of all three would not.
        let scales = [1e30];
        let epilogue = Epilogue::new(1e30).with_row_scales(Some(&scales));
        assert_eq!(epilogue.apply::<f32>(1e-30, 0, 0), f32::INFINITY);
        let scales = [1e-30];
        let epilogue = Epilogue::new(1e-30).with_row_scales(Some(&scales));
        assert_eq!(epilogue.apply::<f32>(1e30, 0, 0).to_bits(), 0);
    }

    #[test]
    fn the_bias_comes_before_the_one_rounding_to_the_output_type() {
        // 2048 + 1 is a tie in f16; the bias of 2^-10 decides it. Rounded first it would be lost.
        let epilogue = Epilogue::new(1.0).with_bias(Some(&[0.0009765625]));
        assert_eq!(epilogue.apply::<f16>(2049.0, 0, 0), f16::from_f32(2050.0));
        assert_eq!(epilogue.apply::<bf16>(257.0, 0, 0), bf16::from_f32(258.0));
    }

    #[test]
    fn no_bias_keeps_a_negative_zero_and_a_bias_of_zero_does_not() {
        let none = Epilogue::new(1.0);
        assert_eq!(none.apply::<f32>(-0.0, 0, 0).to_bits(), 0x8000_0000);
        assert_eq!(none.with_bias(Some(&[0.0])).apply::<f32>(-0.0, 0, 0).to_bits(), 0);
        assert_eq!(none.with_bias(Some(&[-0.0])).apply::<f32>(-0.0, 0, 0).to_bits(), 0x8000_0000);
    }

    #[test]
    fn every_nan_of_the_epilogue_is_canonical() {
        let odd = f32::from_bits(0xFFC0_1234);
        for (alpha, scale, bias, sum) in [
            (odd, 1.0, 0.0, 1.0),
            (1.0, odd, 0.0, 1.0),
            (1.0, 1.0, odd, 1.0),
            (f32::INFINITY, 0.0, 0.0, 1.0),
            (f32::INFINITY, 1.0, f32::NEG_INFINITY, 1.0),
            (f32::INFINITY, 1.0, 0.0, 0.0),
        ] {
            let (scales, bias) = ([scale], [bias]);
            let epilogue =
                Epilogue::new(alpha).with_row_scales(Some(&scales)).with_bias(Some(&bias));
            assert_eq!(epilogue.apply::<f32>(sum, 0, 0).to_bits(), NAN_F32);
        }
    }

    #[test]
    fn a_wrong_length_is_an_error_that_names_the_buffer() {
        let values = [1.0; 3];
        let both = Epilogue::new(1.0).with_row_scales(Some(&values)).with_bias(Some(&values));
        assert_eq!(both.expect(3, 3), Ok(()));
        let error = both.expect(2, 3).unwrap_err();
        assert_eq!(error, Error::Len { what: Buffer::RowScales, expected: 2, got: 3 });
        let error = both.expect(3, 4).unwrap_err();
        assert_eq!(error, Error::Len { what: Buffer::Bias, expected: 4, got: 3 });
        assert_eq!(Epilogue::new(1.0).expect(usize::MAX, usize::MAX), Ok(()));
    }
}
