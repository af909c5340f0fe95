//! Products with one thing wrong.

use std::ops::Range;

use fp4_core::{
    Buffer, E2m1, Element, Epilogue, Error, ExactSum, FixedSum, Float, FloatSliceMut, FloatType,
    GroupedError, GroupedProduct, Matmul, MatmulQuery, Packed, PackedMatrix, PackedMut, PackedView,
    PartialsMut, Paths, PreparedWeight, ScaleType, ScaledSums, Unsupported,
    backend::expect_grouped, finish_one, fma, reference, with_floats,
};

use super::Fault;
use super::backend::{Mutant, Weight};

impl Mutant {
    /// The exact sum of an output, or what stands in for it.
    fn sum(
        &self,
        a: PackedView<'_>,
        i: usize,
        b: PackedView<'_>,
        j: usize,
        groups: Range<usize>,
    ) -> Result<ExactSum, Error> {
        let (ty_a, ty) = (a.shape().scale_type(), b.shape().scale_type());
        let int8 = a.shape().element() == Element::Int8;
        // Groups of B, which have two of A's bytes for each of theirs where A is MXINT8.
        let bytes = b.shape().group_bytes();
        let bytes_a = if int8 { 2 * bytes } else { bytes };
        let of_a = a.shape().group().get() / b.shape().group().get();
        let mut sum = ExactSum::ZERO;
        let all = b.shape().row_groups();
        let spread = self.joint_spread(a, i, b, j);
        let window = self.window(a, i);
        for g in groups {
            if self.has(Fault::TailDropped) && all > 4 && g == all - 1 && all % 2 == 1 {
                continue;
            }
            let codes = g * bytes..(g + 1) * bytes;
            let (ca, cb) = (&a.row_codes(i)[g * bytes_a..][..bytes_a], &b.row_codes(j)[codes]);
            let of_row = match self.has(Fault::Int8ScaleOfHalf) {
                true => g % a.shape().row_groups(),
                false => g / of_a,
            };
            let (sa, sb) = (a.row_scales(i)[of_row], b.row_scales(j)[g]);
            let odd_last = all > 1 && g == all - 1 && (all / of_a) % 2 == 1;
            let mut dot = match int8 {
                true => self.dot_int8(ca, cb, odd_last),
                false => reference::group_dot(ca, cb),
            };
            let zero = if int8 { 0xFF } else { 0x77 };
            if self.has(Fault::ZeroGroupsSkipped)
                && (ca.iter().all(|c| c & zero == 0) || cb.iter().all(|c| c & 0x77 == 0))
            {
                continue;
            }
            if self.has(Fault::DotSaturates) {
                dot = dot.clamp(-2047, 2047);
            }
            match (ty_a.parts(sa), ty.parts(sb)) {
                (Some(pa), Some(pb)) => {
                    let mut significand = dot * i64::from(pa.significand * pb.significand);
                    if self.has(Fault::NegativeScaleIgnored) {
                        significand = dot * i64::from((pa.significand * pb.significand).abs());
                    }
                    if self.has(Fault::ScaleSubnormalsFlushed)
                        && ty == ScaleType::E4M3
                        && (!int8 && sa & 0x78 == 0 || sb & 0x78 == 0)
                    {
                        significand = 0;
                    }
                    let exponent = pa.exponent + pb.exponent - if int8 { 7 } else { 2 };
                    // A kernel that takes its narrow path one past its bound drops the lowest
                    // terms.
                    let dropped = self.has(Fault::WrongFallbackBound)
                        && spread == 41
                        && pa.exponent + pb.exponent == self.lowest(a, i, b, j);
                    let outside = window.as_ref().is_some_and(|w| !w.contains(&pa.exponent));
                    if !dropped && !outside {
                        sum.add_scaled(significand, exponent)?;
                    }
                }
                _ if self.has(Fault::NanScaleIgnored) => {}
                _ => sum.set_nan(),
            }
        }
        Ok(sum)
    }

    /// The dot product of a group of MXINT8 elements and codes, or what stands in for it.
    fn dot_int8(&self, a: &[u8], b: &[u8], odd_last: bool) -> i64 {
        let element = |byte: u8| match (self.fault, byte) {
            (Some(Fault::Int8MinusLost), 0x80) => -127,
            (Some(Fault::Int8MinusIsPlus), 0x80) => 128,
            // hi is right, as of a low nibble without a sign.
            (Some(Fault::Int8NibbleSigned), _) if byte & 8 != 0 => i64::from(byte as i8) - 16,
            _ => i64::from(byte as i8),
        };
        let code = |nibble: u8| i64::from(E2m1::from_bits(nibble).doubled());
        let pairs = a.chunks_exact(2).zip(b);
        let dot = pairs.map(|(a, &b)| element(a[0]) * code(b & 15) + element(a[1]) * code(b >> 4));
        let dot: i64 = dot.sum();
        match self.has(Fault::Int8CorrectionLost) && odd_last {
            true => dot + 12 * a.iter().map(|&byte| element(byte)).sum::<i64>(),
            false => dot,
        }
    }

    fn exponents(a: PackedView<'_>, i: usize) -> impl Iterator<Item = i32> {
        let ty = a.shape().scale_type();
        a.row_scales(i).iter().filter_map(move |&s| ty.parts(s)).map(|p| p.exponent)
    }

    fn lowest(&self, a: PackedView<'_>, i: usize, b: PackedView<'_>, j: usize) -> i32 {
        (Self::exponents(a, i).zip(Self::exponents(b, j))).map(|(a, b)| a + b).min().unwrap_or(0)
    }

    /// The exponents of an MXFP4 row whose groups are multiplied, if the row is taken for one whose
    /// scales are all in one window of four octaves.
    fn window(&self, a: PackedView<'_>, i: usize) -> Option<Range<i32>> {
        let (shape, ty) = (a.shape(), a.shape().scale_type());
        if ty != ScaleType::E8M0 || shape.element() != Element::E2m1 {
            return None;
        }
        let codes = a.row_codes(i).chunks_exact(shape.group_bytes());
        let groups = codes.zip(a.row_scales(i)).filter_map(|(codes, &scale)| {
            let live = codes.iter().any(|code| code & 0x77 != 0);
            ty.parts(scale).map(|parts| (live, parts.exponent))
        });
        let live = || groups.clone().filter(|group| group.0).map(|group| group.1);
        let (least, most) = (live().min()?, live().max()?);
        match self.fault {
            Some(Fault::WindowOfDeadGroup) if most - least < 4 => {
                let first = groups.clone().map(|group| group.1).min()?;
                Some(first..first + 4)
            }
            Some(Fault::WindowDropsOctave) if most - least == 4 => Some(least..least + 4),
            _ => None,
        }
    }

    fn joint_spread(&self, a: PackedView<'_>, i: usize, b: PackedView<'_>, j: usize) -> i32 {
        let spread = |e: &[i32]| e.iter().max().unwrap_or(&0) - e.iter().min().unwrap_or(&0);
        let (ea, eb): (Vec<_>, Vec<_>) =
            (Self::exponents(a, i).collect(), Self::exponents(b, j).collect());
        spread(&ea) + spread(&eb)
    }

    /// The f32 of an output before alpha.
    fn rounded(
        &self,
        a: PackedView<'_>,
        i: usize,
        b: PackedView<'_>,
        j: usize,
    ) -> Result<f32, Error> {
        let groups = b.shape().row_groups();
        let part = |range| Ok::<f32, Error>(self.sum(a, i, b, j, range)?.to_f32());
        Ok(match self.fault {
            Some(Fault::F32Accumulation) => {
                let mut sum = 0f32;
                for g in 0..groups {
                    sum += part(g..g + 1)?;
                }
                sum
            }
            Some(Fault::F64Accumulation) => {
                let mut sum = 0f64;
                for g in 0..groups {
                    sum += self.sum(a, i, b, j, g..g + 1)?.to_f64();
                }
                sum as f32
            }
            Some(Fault::RoundedHalves) if groups > 1 => {
                part(0..groups / 2)? + part(groups / 2..groups)?
            }
            Some(Fault::ThreadDependentSplit) if self.threads > 1 => {
                let cut = groups / self.threads;
                part(0..cut)? + part(cut..groups)?
            }
            Some(Fault::DoubleRounding) => self.sum(a, i, b, j, 0..groups)?.to_f64() as f32,
            Some(Fault::NegativeZeroSum) => {
                let y = part(0..groups)?;
                if y == 0.0 { -0.0 } else { y }
            }
            Some(Fault::UnderflowLosesSign) => {
                let y = part(0..groups)?;
                if y == 0.0 { 0.0 } else { y }
            }
            Some(Fault::SubnormalSumsFlushed) => {
                let y = part(0..groups)?;
                if y.is_subnormal() { 0.0 } else { y }
            }
            Some(Fault::OverflowSaturates) => {
                let y = part(0..groups)?;
                if y.is_infinite() { f32::MAX.copysign(y) } else { y }
            }
            _ => part(0..groups)?,
        })
    }
}

impl Mutant {
    /// The steps after the sum, or what stands in for them.
    fn finish<T: Float>(&self, s32: f32, epilogue: &Epilogue<'_>, [i, j]: [usize; 2]) -> T {
        let (alpha, bias) = (epilogue.row_alpha(i), epilogue.column_bias(j));
        let row_scale = epilogue.row_scales.map(|scales| scales[i]);
        match (self.fault, row_scale, bias) {
            (Some(Fault::RowScaleAfterAlpha), Some(scale), _) => {
                finish_one(s32 * epilogue.alpha, scale, bias)
            }
            (Some(Fault::RowScaleInOneProduct), Some(scale), _) => {
                let y = f64::from(s32) * f64::from(epilogue.alpha) * f64::from(scale);
                finish_one(y as f32, 1.0, bias)
            }
            (Some(Fault::RowScaleOfTile), Some(_), _) => {
                finish_one(s32, epilogue.row_alpha(i % 16), bias)
            }
            (Some(Fault::BiasBeforeAlpha), _, Some(bias)) => finish_one(s32 + bias, alpha, None),
            (Some(Fault::BiasInOneFma), _, Some(bias)) => {
                finish_one(fma(s32, alpha, bias), 1.0, None)
            }
            (Some(Fault::BiasAfterRounding), _, Some(bias)) => {
                T::from_f32(finish_one::<T>(s32, alpha, None).to_f32() + bias)
            }
            (Some(Fault::BiasOfTile), _, Some(_)) => {
                let bias = epilogue.bias.unwrap_or_default();
                let whole = bias.len() / 8 * 8;
                let column = if j >= whole { j - whole } else { j };
                finish_one(s32, alpha, Some(bias[column]))
            }
            _ => finish_one(s32, alpha, bias),
        }
    }
}

impl Matmul for Mutant {
    type Prepared<B: Packed> = Weight<B>;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        match self.limited && query.output == FloatType::F16 {
            true => Err(Unsupported::OutputType(query.output)),
            false => Ok(()),
        }
    }

    fn supports_partial(&self, _query: &MatmulQuery) -> Result<(), Unsupported> {
        if self.limited { Err(Unsupported::Partials) } else { Ok(()) }
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        b.view().shape().expect_format()?;
        Ok(Weight(b))
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        mut out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        self.check_environment()?;
        let b = b.0.view();
        a.shape().expect_product(&b.shape())?;
        let (m, n) = (a.shape().rows(), b.shape().rows());
        epilogue.expect(m, n)?;
        out.as_ref().expect_len(Buffer::Output, m * n)?;
        with_floats!(FloatSliceMut, out.reborrow(), out => {
            for i in 0..m {
                for j in 0..n {
                    let last = self.has(Fault::LastColumnUnwritten) && n > 8 && j == n - 1;
                    if last {
                        continue;
                    }
                    let s32 = match self.fault {
                        Some(Fault::RowOffByOne) if m > 16 && i == 16 => self.rounded(a, 15, b, j)?,
                        _ => self.rounded(a, i, b, j)?,
                    };
                    let alpha = epilogue.row_alpha(i);
                    out[i * n + j] = match self.fault {
                        Some(Fault::AlphaInF64) => from_f64(f64::from(s32) * f64::from(alpha)),
                        Some(Fault::AlphaAfterRounding) => {
                            let y = f64::from(half::bf16::from_f32(s32).to_f32());
                            from_f64(y * f64::from(alpha))
                        }
                        _ => self.finish(s32, &epilogue, [i, j]),
                    };
                }
            }
        });
        if let (true, FloatSliceMut::F32(out)) = (self.has(Fault::NanPayload), out) {
            for y in out.iter_mut().filter(|y| y.is_nan()) {
                *y = f32::from_bits(0x7FC0_0001);
            }
        }
        Ok(Paths::default())
    }

    fn grouped<B: Packed>(
        &self,
        products: &mut [GroupedProduct<'_, Self::Prepared<B>>],
    ) -> Result<Paths, GroupedError> {
        if !self.has(Fault::GroupedWritesFirst) {
            expect_grouped::<Self, B>(self, products)?;
        }
        // Those that have rows, by place.
        let full: Vec<usize> =
            (0..products.len()).filter(|&i| products[i].a.shape().rows() > 0).collect();
        let wrong: Vec<_> = (0..products.len())
            .map(|i| {
                let own = &products[i];
                let (mut a, mut b, mut epilogue) = (owned(own.a), own.b, own.epilogue);
                let same = |other: &&GroupedProduct<'_, Self::Prepared<B>>| {
                    own.a.shape().expect_same_format(&other.a.shape()).is_ok()
                        && own.a.shape().k() == other.a.shape().k()
                        && other.b.shape() == own.b.shape()
                };
                let next = products.get(i + 1).filter(same);
                match self.fault {
                    Some(Fault::GroupedRowsOfNext) if next.is_some() => {
                        a = with_last_row(a, next.map(|next| next.a));
                    }
                    Some(Fault::GroupedEmptyShifts) => {
                        let rank = full.iter().position(|&at| at == i).unwrap_or(0);
                        if let Some(shifted) = products.get(rank).filter(same) {
                            (b, epilogue.alpha) = (shifted.b, shifted.epilogue.alpha);
                        }
                    }
                    Some(Fault::GroupedAlphaOfFirst) => {
                        epilogue.alpha = products[0].epilogue.alpha;
                    }
                    Some(Fault::GroupedBiasOfLast) if epilogue.bias.is_some() => {
                        let n = own.b.shape().rows();
                        let biases = products.iter().rev().filter_map(|p| p.epilogue.bias);
                        epilogue.bias = biases.into_iter().find(|bias| bias.len() == n);
                    }
                    _ => {}
                }
                (a, b, epilogue)
            })
            .collect();
        let mut all = Paths::default();
        for (i, (product, (a, b, epilogue))) in products.iter_mut().zip(&wrong).enumerate() {
            let ran = self.matmul::<B>(a.view(), b, *epilogue, product.out.reborrow());
            product.paths = ran.map_err(|error| GroupedError::of(i, error))?;
            all.merge(&product.paths);
        }
        Ok(all)
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        out.copy_from(b.0.view())
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        let groups = match self.fault {
            Some(Fault::PartialRangeIgnored) => 0..b.0.view().shape().row_groups(),
            _ => groups,
        };
        match out {
            PartialsMut::Exact(sums) if self.has(Fault::PartialOverwrites) => {
                sums.fill(ExactSum::ZERO);
                reference::partial(a, b.0.view(), groups, PartialsMut::Exact(sums))
            }
            // Which ranks is decided by what they have.
            out if self.has(Fault::OneRankRounds)
                && a.codes().first().is_some_and(|c| c & 1 == 0) =>
            {
                rounded_partial(a, b.0.view(), groups, out)
            }
            PartialsMut::Scaled(sums) if self.has(Fault::ScaledUnitsShift) => {
                let (units, rows, columns) = sums.into_parts();
                let out = PartialsMut::Scaled(ScaledSums::new(units, rows, columns)?);
                reference::partial(a, b.0.view(), groups, out)?;
                // The base of this shard's own scales is one higher than that of all.
                units.iter_mut().filter(|units| **units % 2 == 0).for_each(|units| *units /= 2);
                Ok(())
            }
            out => reference::partial(a, b.0.view(), groups, out),
        }
    }
}

/// Partial sums rounded to f32, in whatever they are kept.
fn rounded_partial(
    a: PackedView<'_>,
    b: PackedView<'_>,
    groups: Range<usize>,
    out: PartialsMut<'_>,
) -> Result<(), Error> {
    let mut exact = vec![ExactSum::ZERO; out.len()];
    reference::partial(a, b, groups, PartialsMut::Exact(&mut exact))?;
    // As a significand of 24 bits and an exponent.
    let parts = |sum: &ExactSum| {
        let bits = sum.to_f32().to_bits();
        let exponent = (bits >> 23 & 0xFF) as i32;
        let significand = i64::from(bits & 0x7F_FFFF) | i64::from(exponent > 0) << 23;
        (if bits >> 31 == 1 { -significand } else { significand }, exponent.max(1) - 150)
    };
    let finite = |sum: &ExactSum| sum.to_f32().is_finite();
    match out {
        PartialsMut::Fixed(out) => out.iter_mut().zip(&exact).try_for_each(|(to, sum)| {
            let (significand, exponent) = if finite(sum) { parts(sum) } else { (0, 0) };
            let shift = exponent - FixedSum::EXPONENT;
            to.nan |= sum.is_nan();
            to.add(if shift < 0 { significand >> -shift } else { significand << shift })
        }),
        PartialsMut::Scaled(mut out) => {
            let n = out.shape()[1];
            out.for_each(|[i, j], to| {
                let sum = &exact[i * n + j];
                let (significand, exponent) = if finite(sum) { parts(sum) } else { (0, 0) };
                let shift = (to.exponent - exponent).clamp(0, 63);
                to.add_scaled(significand >> shift, exponent + shift)
            })
        }
        PartialsMut::Exact(out) => out.iter_mut().zip(&exact).try_for_each(|(to, sum)| {
            if sum.is_nan() {
                to.set_nan();
            }
            let (significand, exponent) = if finite(sum) { parts(sum) } else { (0, 0) };
            to.add_scaled(significand, exponent)
        }),
    }
}

/// A copy of a matrix.
fn owned(a: PackedView<'_>) -> PackedMatrix {
    let mut copy = PackedMatrix::zeros(a.shape());
    copy.view_mut().copy_from(a).expect("of the same shape");
    copy
}

/// The matrix with the first row of the next one as its last, if both have rows.
fn with_last_row(mut a: PackedMatrix, next: Option<PackedView<'_>>) -> PackedMatrix {
    let rows = a.shape().rows();
    if let Some(next) = next.filter(|next| rows > 0 && next.shape().rows() > 0) {
        let mut view = a.view_mut();
        let (codes, scales) = view.row(rows - 1);
        codes.copy_from_slice(next.row_codes(0));
        scales.copy_from_slice(next.row_scales(0));
    }
    a
}

/// One rounding from f64 to the type, where the contract has two.
fn from_f64<T: Float>(y: f64) -> T {
    let one = match T::TYPE {
        FloatType::F32 => y as f32,
        FloatType::F16 => half::f16::from_f64(y).to_f32(),
        FloatType::Bf16 => half::bf16::from_f64(y).to_f32(),
    };
    T::from_f32(one)
}
