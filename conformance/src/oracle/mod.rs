//! The oracle: the contract computed a second time, sharing no code with the core's reference.
//!
//! It takes from the standard library what IEEE-754 fixes and every platform has (f32
//! multiplication and division, the f64 product of two f32, which is exact) and has everything else
//! itself: decoding and encoding in [`rules`], [`fma`], exact sums in [`Wide`], the order of steps
//! here. From the core it takes the types that carry a request, never a rule.
//!
//! ```text
//! quantize: y = x, or an fma chain over T rounded to x's type, rounded to x's type      C5
//!           gs = the settings', or with row scales the row's own, by [`row_scale`]          C4
//!           scale = given, or encode(amax / (ss * gs));  d = decode(scale) * gs            C4
//!           code = encode(y / d), a zero with the sign of y where d = 0
//!           or MXINT8's scale and elements, by [`mxint8`]                                 C10
//! matmul:   S by Wide, rounded once; times alpha in f64, rounded once; to the output type  C6
//! ```

mod fma;
pub mod mxint8;
pub mod rules;
mod wide;

use std::ops::Range;

pub use fma::fma;
use fp4_core::{Element, FloatType, PackedView, QuantizeInput, Transform};
use rules::{NAN, Rules, e2m1_doubled, e2m1_value, scale_parts, scale_value, widen};
pub use wide::Wide;

use crate::tensor::bits_of;

/// The oracle, with its tables.
#[derive(Debug, Clone, Default)]
pub struct Oracle {
    rules: Rules,
}

/// Codes, two a byte, and scale bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct Quantized {
    /// Packed codes (C3).
    pub codes: Vec<u8>,
    /// Row-major scale bytes.
    pub scales: Vec<u8>,
    /// Each row's global scale, if rows have their own.
    pub row_scales: Option<Vec<f32>>,
}

/// The largest magnitude of some values, NaN if one of them is.
fn largest(y: &[f32]) -> f32 {
    match y.iter().any(|y| y.is_nan()) {
        true => f32::NAN,
        false => y.iter().map(|y| y.abs()).fold(0.0, f32::max),
    }
}

/// The global scale of a row of its own, from its largest magnitude (C4, row scales).
pub fn row_scale(amax: f32) -> f32 {
    if amax == 0.0 || !amax.is_finite() {
        return 1.0;
    }
    let quotient = amax / 2688.0;
    if quotient == 0.0 { f32::from_bits(1) } else { quotient }
}

impl Oracle {
    /// The rules of single values.
    pub fn rules(&self) -> &Rules {
        &self.rules
    }

    /// Codes and scales of an input (C4, C5, C10).
    pub fn quantize(&self, input: &QuantizeInput<'_>) -> Quantized {
        let (spec, ty) = (input.spec(), input.shape().scale_type());
        let y = self.transformed(input);
        if spec.element() == Element::Int8 {
            let groups = y.chunks_exact(spec.group().get());
            let scales: Vec<u8> = groups.clone().map(mxint8::scale).collect();
            let elements = |(y, &scale): (&[f32], &u8)| {
                y.iter().map(|&y| mxint8::element(y, scale)).collect::<Vec<u8>>()
            };
            let codes = groups.zip(&scales).flat_map(elements).collect();
            return Quantized { codes, scales, row_scales: None };
        }
        let (rows, k) = (input.shape().rows(), input.shape().k());
        let row_scales: Option<Vec<f32>> = spec
            .row_scales()
            .then(|| (0..rows).map(|i| row_scale(largest(&y[i * k..(i + 1) * k]))).collect());
        let (mut codes, mut scales) = (Vec::new(), Vec::new());
        for (g, y) in y.chunks_exact(spec.group().get()).enumerate() {
            let row = g / input.shape().row_groups();
            let gs = row_scales.as_ref().map_or(spec.global_scale(), |scales| scales[row]);
            let scale = input.scales().map_or_else(
                || self.rules.scale(ty, largest(y) / (spec.scale_scale() * gs)),
                |given| given[g],
            );
            let d = scale_value(ty, scale) as f32 * gs;
            let code = |y: f32| {
                let q = if d == 0.0 { 0f32.copysign(y) } else { y / d };
                self.rules.e2m1(q, spec.tie())
            };
            codes.extend(y.chunks_exact(2).map(|y| code(y[0]) | code(y[1]) << 4));
            scales.push(scale);
        }
        Quantized { codes, scales, row_scales }
    }

    /// The values that are quantized: widened, and transformed if there is a transform (C5).
    pub fn transformed(&self, input: &QuantizeInput<'_>) -> Vec<f32> {
        let ty = input.x().float_type();
        let x: Vec<f32> = bits_of(input.x()).into_iter().map(|bits| widen(ty, bits)).collect();
        input.transform().map_or_else(|| x.clone(), |t| self.apply(&x, ty, input.shape().k(), t))
    }

    fn apply(&self, x: &[f32], ty: FloatType, k: usize, transform: &Transform<'_>) -> Vec<f32> {
        let stored = transform.values().float_type();
        let t: Vec<f32> = bits_of(transform.values())
            .into_iter()
            .map(|bits| self.rules.through(ty, widen(stored, bits)))
            .collect();
        let block = transform.block();
        let per_block = transform.shape().blocks.is_some();
        let mut y = Vec::with_capacity(x.len());
        for (at, x) in x.chunks_exact(block).enumerate() {
            let b = if per_block { at % (k / block) } else { 0 };
            for row in t[b * block * block..][..block * block].chunks_exact(block) {
                let acc = x.iter().zip(row).fold(0f32, |acc, (&x, &t)| fma(x, t, acc));
                y.push(self.rules.through(ty, acc));
            }
        }
        y
    }

    /// The bits of the values of a packed matrix, in an output type (C4.4, C10).
    pub fn dequantize(&self, packed: PackedView<'_>, gs: f32, out: FloatType) -> Vec<u32> {
        let (ty, group) = (packed.shape().scale_type(), packed.shape().group().get());
        if packed.shape().element() == Element::Int8 {
            let value = |(i, &byte)| mxint8::value(byte, packed.scales()[i / group]);
            let values = packed.codes().iter().enumerate().map(value);
            return values.map(|value| self.rules.narrow(out, value)).collect();
        }
        let code = |i: usize| packed.codes()[i / 2] >> (4 * (i % 2)) & 15;
        (0..2 * packed.codes().len())
            .map(|i| {
                let d = scale_value(ty, packed.scales()[i / group]) as f32 * gs;
                self.rules.narrow(out, e2m1_value(code(i)) as f32 * d)
            })
            .collect()
    }

    /// The exact sums over a range of B's groups, (M, N) row-major; NaN where a scale in the range
    /// is.
    pub fn sums(&self, a: PackedView<'_>, b: PackedView<'_>, range: Range<usize>) -> Vec<Wide> {
        let group = b.shape().group().get();
        let (a, b) = (Rows::new(a, group, &range), Rows::new(b, group, &range));
        let mut sums = Vec::with_capacity(a.rows * b.rows);
        for i in 0..a.rows {
            for j in 0..b.rows {
                sums.push(Rows::dot(&a, i, &b, j));
            }
        }
        sums
    }

    /// The sums of the magnitudes of the products, nearly: for error bounds, not for bits.
    pub fn magnitudes(&self, a: PackedView<'_>, b: PackedView<'_>) -> Vec<f64> {
        let (groups, group) = (0..b.shape().row_groups(), b.shape().group().get());
        let (mut a, mut b) = (Rows::new(a, group, &groups), Rows::new(b, group, &groups));
        for rows in [&mut a, &mut b] {
            rows.values.iter_mut().for_each(|value| *value = value.abs());
            for scale in rows.scales.iter_mut().flatten().flatten() {
                scale.0 = scale.0.abs();
            }
        }
        (0..a.rows * b.rows).map(|i| Rows::dot(&a, i / b.rows, &b, i % b.rows).to_f64()).collect()
    }

    /// The bits of one output (C6): the sum rounded to f32, times alpha, rounded to the type.
    pub fn output(&self, sum: &Wide, alpha: f32, out: FloatType) -> u32 {
        self.finished(sum, alpha, None, None, out)
    }

    /// The bits of one output (C6) with its row's scale and its column's bias.
    pub fn finished(
        &self,
        sum: &Wide,
        alpha: f32,
        row_scale: Option<f32>,
        bias: Option<f32>,
        out: FloatType,
    ) -> u32 {
        let s32 = f32::from_bits(sum.to_f32_bits());
        // The product of two f32 is exact in f64: the conversion is the one rounding. Their sum is
        // rounded to 53 bits, which is enough (2 * 24 + 2) that the second rounding gives what one
        // would have given (S. Figueroa, When is double rounding innocuous?, 1995).
        let product = |a: f32, b: f32| (f64::from(a) * f64::from(b)) as f32;
        let alpha = row_scale.map_or(alpha, |scale| product(alpha, scale));
        let y = product(s32, alpha);
        let y = bias.map_or(y, |bias| (f64::from(y) + f64::from(bias)) as f32);
        self.rules.narrow(out, if y.is_nan() { f32::from_bits(NAN) } else { y })
    }
}

/// Some groups of an operand, decoded.
struct Rows {
    rows: usize,
    group: usize,
    /// What one is worth, as a power of two: -1 of doubled codes, -6 of MXINT8 elements.
    unit: i32,
    /// Doubled codes or elements, row by row.
    values: Vec<i32>,
    /// Significand and exponent of each group's scale; `None` for a row with a NaN.
    scales: Vec<Option<Vec<(i64, i32)>>>,
}

impl Rows {
    /// A range of groups of `group` elements, which may be fewer than share a scale.
    fn new(view: PackedView<'_>, group: usize, range: &Range<usize>) -> Self {
        let shape = view.shape();
        let rows = shape.rows();
        let int8 = shape.element() == Element::Int8;
        let (per_byte, unit) = if int8 { (1, -6) } else { (2, -1) };
        let (bytes, groups) = (shape.k() / per_byte, shape.k() / shape.group().get());
        let mut values = Vec::new();
        let mut scales = Vec::new();
        for i in 0..rows {
            let row = &view.codes()[i * bytes..(i + 1) * bytes];
            for &byte in &row[range.start * group / per_byte..range.end * group / per_byte] {
                match int8 {
                    true => values.push(i32::from(byte as i8)),
                    false => {
                        values.extend([byte & 15, byte >> 4].map(|code| e2m1_doubled(code) as i32));
                    }
                }
            }
            let row = &view.scales()[i * groups..(i + 1) * groups];
            let byte = |g: usize| row[g * group / shape.group().get()];
            scales.push(range.clone().map(|g| scale_parts(shape.scale_type(), byte(g))).collect());
        }
        Rows { rows, group, unit, values, scales }
    }

    fn dot(a: &Rows, i: usize, b: &Rows, j: usize) -> Wide {
        let (Some(sa), Some(sb)) = (&a.scales[i], &b.scales[j]) else { return Wide::NAN };
        let k = sa.len() * a.group;
        let (va, vb) = (&a.values[i * k..(i + 1) * k], &b.values[j * k..(j + 1) * k]);
        let mut sum = Wide::ZERO;
        let groups = va.chunks_exact(a.group).zip(vb.chunks_exact(a.group));
        for ((va, vb), (sa, sb)) in groups.zip(sa.iter().zip(sb)) {
            let dot: i32 = va.iter().zip(vb).map(|(a, b)| a * b).sum();
            sum.add(i64::from(dot) * sa.0 * sb.0, sa.1 + sb.1 + a.unit + b.unit);
        }
        sum
    }
}
