//! A fault on purpose: a backend that rounds its partial sums to f32, as a reduction of floats
//! would.
//!
//! `fp4-mpi check --plant-fault` gives it to the last rank, and the check has to find it. It is
//! what tensor parallelism does elsewhere.

use std::ops::Range;

use fp4_core::reference::{Reference, ReferenceWeight};
use fp4_core::{
    Epilogue, Error, ExactSum, FixedSum, FloatSliceMut, Matmul, MatmulQuery, Named, Packed,
    PackedMut, PackedView, PartialsMut, Paths, Unsupported,
};

/// The reference, but for partial sums that are rounded to f32.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoundsPartials;

impl Named for RoundsPartials {
    fn name(&self) -> &str {
        "rounds-partials"
    }
}

impl Matmul for RoundsPartials {
    type Prepared<B: Packed> = ReferenceWeight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        Matmul::supports_matmul(&Reference, query)
    }

    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        Matmul::supports_partial(&Reference, query)
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        Reference.prepare(b)
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        Reference.matmul(a, b, epilogue, out)
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        let mut exact = vec![ExactSum::ZERO; out.len()];
        Reference.partial(a, b, groups, PartialsMut::Exact(&mut exact))?;
        match out {
            PartialsMut::Fixed(out) => out.iter_mut().zip(&exact).try_for_each(|(to, sum)| {
                let (significand, exponent) = parts(sum.to_f32());
                let shift = exponent - FixedSum::EXPONENT;
                to.add(if shift < 0 { significand >> -shift } else { significand << shift })
            }),
            PartialsMut::Scaled(mut out) => {
                let n = out.shape()[1];
                out.for_each(|[i, j], to| {
                    let (significand, exponent) = parts(exact[i * n + j].to_f32());
                    let shift = (to.exponent - exponent).clamp(0, 63);
                    to.add_scaled(significand >> shift, exponent + shift)
                })
            }
            PartialsMut::Exact(out) => out.iter_mut().zip(&exact).try_for_each(|(to, sum)| {
                let (significand, exponent) = parts(sum.to_f32());
                to.add_scaled(significand, exponent)
            }),
        }
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        Reference.export_weight(b, out)
    }
}

/// A finite f32 as a significand and an exponent; nothing else is zero.
fn parts(value: f32) -> (i64, i32) {
    if !value.is_finite() {
        return (0, 0);
    }
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xFF) as i32;
    let significand = i64::from(bits & 0x7F_FFFF) | i64::from(exponent > 0) << 23;
    (if bits >> 31 == 1 { -significand } else { significand }, exponent.max(1) - 150)
}
