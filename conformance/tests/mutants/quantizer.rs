//! Quantization with one thing wrong.

use fp4_core::{
    E2m1, Element, Error, Float, FloatSlice, FloatType, PackedMut, QuantCounts, QuantSpec,
    QuantizeInput, QuantizeQuery, Quantizer, ScaleType, TieMode, Unsupported, fma, mxint8,
    reference, with_floats,
};

use super::Fault;
use super::backend::Mutant;

impl Mutant {
    /// One fused step, or what stands in for it.
    fn step(&self, x: f32, t: f32, acc: f32) -> f32 {
        match self.fault {
            Some(Fault::MultiplyThenAdd) => x * t + acc,
            Some(Fault::FmaThroughF64) => (f64::from(x) * f64::from(t) + f64::from(acc)) as f32,
            _ => fma(x, t, acc),
        }
    }

    fn transformed(&self, input: &QuantizeInput<'_>) -> Vec<f32> {
        let ty = input.x().float_type();
        let x: Vec<f32> = widened(input.x());
        let Some(t) = input.transform() else { return x };
        let round = |y: f32| match ty {
            FloatType::F32 => <f32 as Float>::from_f32(y),
            FloatType::F16 => Float::to_f32(<half::f16 as Float>::from_f32(y)),
            FloatType::Bf16 => Float::to_f32(<half::bf16 as Float>::from_f32(y)),
        };
        let stored = widened(t.values());
        let (block, k) = (t.block(), input.shape().k());
        let mut y = Vec::new();
        for (at, x) in x.chunks_exact(block).enumerate() {
            let b = if self.has(Fault::FirstBlockForAll) { 0 } else { at % (k / block) };
            let start = t.offset(b);
            for j in 0..block {
                let weight = |i: usize| {
                    let index = if self.has(Fault::TransformTransposed) {
                        i * block + j
                    } else {
                        j * block + i
                    };
                    let t = stored[start + index];
                    if self.has(Fault::TransformNotRounded) { t } else { round(t) }
                };
                let acc = match self.fault {
                    Some(Fault::DescendingChain) => {
                        (0..block).rev().fold(0.0, |acc, i| self.step(x[i], weight(i), acc))
                    }
                    Some(Fault::ChainInF64) => (0..block)
                        .fold(0f64, |acc, i| acc + f64::from(x[i]) * f64::from(weight(i)))
                        as f32,
                    Some(Fault::ChainWithoutZero) => {
                        let first = x[0] * weight(0);
                        (1..block).fold(first, |acc, i| self.step(x[i], weight(i), acc))
                    }
                    _ => (0..block).fold(0.0, |acc, i| self.step(x[i], weight(i), acc)),
                };
                y.push(if self.has(Fault::NoRoundingAfterTransform) { acc } else { round(acc) });
            }
        }
        y
    }

    /// The settings of each row.
    fn row_specs(&self, input: &QuantizeInput<'_>, y: &[f32]) -> Vec<QuantSpec> {
        let (spec, rows, k) = (*input.spec(), input.shape().rows(), input.shape().k());
        if !spec.row_scales() {
            return vec![spec; rows];
        }
        let x = widened(input.x());
        let from = if self.has(Fault::RowScaleBeforeTransform) { &x[..] } else { y };
        let of = |i: usize| {
            let row = match self.has(Fault::RowScaleOfTensor) {
                true => from,
                false => &from[i * k..(i + 1) * k],
            };
            let amax = match row.iter().any(|y| y.is_nan()) {
                true => f32::NAN,
                false => row.iter().fold(0f32, |amax, y| amax.max(y.abs())),
            };
            match self.fault {
                Some(Fault::RowScaleSkipsInfinity) if amax.is_infinite() => spec.of_row(f32::MAX),
                Some(Fault::RowScaleUnderflowIsOne) if amax < 3e-42 => spec.of_row(0.0),
                _ => spec.of_row(amax),
            }
        };
        (0..rows).map(of).collect()
    }

    fn scale(&self, ty: ScaleType, s: f32) -> u8 {
        let right = ty.encode(s);
        match (self.fault, ty) {
            (Some(Fault::E8m0TiesToEven), ScaleType::E8M0) => {
                let is_tie = s.to_bits() & 0x7F_FFFF == 0x40_0000 && s >= f32::MIN_POSITIVE;
                if is_tie && right % 2 == 1 && right != 0xFF { right - 1 } else { right }
            }
            (Some(Fault::E8m0Floor), ScaleType::E8M0) if s.is_finite() => {
                if ty.decode(right) > s && right > 0 { right - 1 } else { right }
            }
            (Some(Fault::E4m3TiesUp), ScaleType::E4M3) if right < 0x7E && s > 0.0 => {
                let middle = (ty.decode(right) + ty.decode(right + 1)) / 2.0;
                if s == middle { right + 1 } else { right }
            }
            (Some(Fault::E4m3SubnormalsFlushed), ScaleType::E4M3) if right & 0x78 == 0 => 0,
            (Some(Fault::E4m3OverflowIsNan), ScaleType::E4M3) if s > 464.0 => 0x7F,
            (Some(Fault::NanScaleNegative), ScaleType::E4M3) if s.is_nan() => 0xFF,
            _ => right,
        }
    }

    /// The quotient where a fault has it by a reciprocal in two parts, which is right but for the
    /// fault.
    fn by_reciprocal(fault: Fault, y: f32, d: f32) -> Option<f32> {
        let nearest = 1.0 / d;
        let is_last = d.to_bits() & 0x7F_FFFF == 0x7F_FFFF;
        let in_range = (1e-18..1e18).contains(&d) && y.abs() < 1e18;
        let above = fma(-d, nearest, 1.0) < 0.0;
        let high = match fault {
            Fault::ReciprocalBesideTies => {
                let q = y * nearest;
                let midpoints = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
                return (in_range && !midpoints.contains(&q.abs())).then_some(q);
            }
            Fault::ReciprocalSubnormal => {
                return (0.0 < d && d < 1e-18).then_some(y * nearest);
            }
            Fault::ReciprocalNegative if in_range && !is_last => nearest,
            Fault::ReciprocalOfLast if in_range => {
                f32::from_bits(nearest.to_bits() - u32::from(above))
            }
            _ => return None,
        };
        let low = fma(-d, high, 1.0) * high;
        Some(fma(y, high, y * low))
    }

    fn code(&self, y: f32, d: f32, tie: TieMode) -> u8 {
        let q = match self.fault {
            _ if d == 0.0 => 0f32.copysign(y),
            Some(Fault::Reciprocal) => y * (1.0 / d),
            Some(fault) => Self::by_reciprocal(fault, y, d).unwrap_or(y / d),
            None => y / d,
        };
        let tie = match self.fault {
            Some(Fault::TiesDown) => TieMode::Down,
            Some(Fault::TiesAway) if q < 0.0 => TieMode::Down,
            Some(Fault::TiesAway) => TieMode::Up,
            Some(Fault::TieModeIgnored) => TieMode::Even,
            _ => tie,
        };
        let code = E2m1::from_f32_tie(q, tie).to_bits();
        match self.fault {
            Some(Fault::LostSignedZero) if code == 8 => 0,
            Some(Fault::NanIsZero) if q.is_nan() => 0,
            Some(Fault::InfinityWraps) if q.is_infinite() => 0,
            _ => code,
        }
    }

    /// The scale byte of an MXINT8 group, or what stands in for it.
    fn scale_int8(&self, amax: f32) -> u8 {
        match self.fault {
            Some(Fault::Int8ScaleTooSmall) if amax.is_finite() => (amax.to_bits() >> 23) as u8,
            _ => mxint8::scale(amax),
        }
    }

    /// The element of a value, or what stands in for it.
    fn element_int8(&self, y: f32, scale: u8) -> u8 {
        let q = mxint8::quotient(y, scale);
        let element = match self.fault {
            Some(Fault::Int8NanElements) if scale == 0xFF => mxint8::encode(y, 254),
            _ if scale == 0xFF => 0,
            Some(Fault::Int8TiesAway) => q.round().clamp(-127.0, 127.0) as i8,
            Some(Fault::Int8MultiplierOverflows) => {
                let multiplier = 2f64.powi(133 - i32::from(scale)) as f32;
                (y * multiplier).round_ties_even().clamp(-127.0, 127.0) as i8
            }
            _ => mxint8::encode(y, scale),
        };
        element as u8
    }
}

fn widened(values: FloatSlice<'_>) -> Vec<f32> {
    with_floats!(FloatSlice, values, v => v.iter().map(|&x| Float::to_f32(x)).collect())
}

impl Quantizer for Mutant {
    fn supports_quantize(&self, query: &QuantizeQuery) -> Result<(), Unsupported> {
        match self.limited && query.tie != TieMode::Even {
            true => Err(Unsupported::Other("ties to even only")),
            false => Ok(()),
        }
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        self.check_environment()?;
        input.expect_output(out.shape())?;
        input.expect_row_scales(out)?;
        let y = self.transformed(input);
        let (spec, group) = (input.spec(), input.spec().group().get());
        let mut counts = QuantCounts::default();
        let (codes, scales, row_scales) = out.parts();
        let specs = self.row_specs(input, &y);
        if let (Some(to), true) = (row_scales, spec.row_scales()) {
            to.iter_mut().zip(&specs).for_each(|(to, spec)| *to = spec.global_scale());
        }
        let y_groups = y.len() / group;
        let (int8, bytes) = (spec.element() == Element::Int8, input.shape().group_bytes());
        let groups = y.chunks_exact(group).zip(codes.chunks_exact_mut(bytes)).zip(scales);
        for (g, ((y, codes), scale)) in groups.enumerate() {
            let row = g / input.shape().row_groups();
            let spec = match self.fault {
                Some(Fault::ScaleOfRowAbove) => &specs[row.saturating_sub(1)],
                _ => &specs[row],
            };
            let is_nan = |y: &f32| y.is_nan() && !self.has(Fault::AmaxSkipsNan);
            let amax = if y.iter().any(is_nan) {
                f32::NAN
            } else {
                y.iter().fold(0f32, |amax, y| amax.max(y.abs()))
            };
            let product = spec.scale_scale() * spec.global_scale();
            let s = match self.fault {
                Some(Fault::ScaleByTwoDivisions) => amax / spec.scale_scale() / spec.global_scale(),
                _ => amax / product,
            };
            *scale = match input.scales() {
                Some(given) if !self.has(Fault::GivenScalesIgnored) => given[g],
                _ if int8 => self.scale_int8(amax),
                _ => self.scale(spec.scale_type(), s),
            };
            let d = match self.fault {
                Some(Fault::GlobalScaleIgnored) => spec.scale_type().decode(*scale),
                _ => spec.unit(*scale),
            };
            // Of the last group the last byte.
            let written = match self.has(Fault::LastByteUnwritten) && g + 1 == y_groups {
                true => bytes - 1,
                false => bytes,
            };
            if int8 {
                for (byte, &y) in codes[..written].iter_mut().zip(y) {
                    *byte = self.element_int8(y, *scale);
                }
                counts += reference::count_group(y, spec, *scale, false, codes);
                continue;
            }
            for (byte, y) in codes[..written].iter_mut().zip(y.chunks_exact(2)) {
                let (low, high) = (self.code(y[0], d, spec.tie()), self.code(y[1], d, spec.tie()));
                *byte =
                    if self.has(Fault::NibblesSwapped) { high | low << 4 } else { low | high << 4 };
            }
            counts += reference::count_group(y, spec, *scale, input.scales().is_some(), codes);
        }
        Ok(counts)
    }
}
