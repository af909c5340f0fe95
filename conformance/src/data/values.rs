//! Families of dense values, the inputs of quantization.
//!
//! | family | what it is | which bug it finds |
//! |---|---|---|
//! | `gauss` | Gaussian | anything gross |
//! | `heavy` | Gaussian over uniform squared | saturation, wide ranges |
//! | `outlier` | one channel in 32 is 300 times larger | scales of a group |
//! | `subnormal` | f32 subnormals and the smallest normals | flush to zero |
//! | `huge` | near the largest of the type | overflow |
//! | `zeros` | +0 and whole zero groups among values | division by a zero scale |
//! | `signed-zeros` | zeros of both signs, and values that round to zero | lost sign of zero |
//! | `infnan` | infinities and NaNs of several payloads | C1, C4.1, C9 |
//! | `unlike-rows` | Gaussian, each row of a magnitude of its own, the smallest subnormals among them | scales of a row |
//! | `any-bits` | any bit pattern | anything |
//! | `tie-code` | a midpoint of the elements times the group's unit, and one ulp beside it | tie modes, reciprocals |
//! | `tie-scale` | a largest magnitude on a midpoint of the scale, and one ulp beside it | scale rounding |
//! | `chain` | with a transform: chains whose steps round near ties | emulated fma, other orders |

use fp4_core::{Element, FloatType, QuantSpec, ScaleType, Transform};

use super::chains;
use crate::oracle::rules::{Rules, scale_parts, scale_value};
use crate::random::Random;
use crate::tensor::{Values, from_bits};

/// The names of the families.
pub const FAMILIES: [&str; 13] = [
    "gauss",
    "heavy",
    "outlier",
    "subnormal",
    "huge",
    "zeros",
    "signed-zeros",
    "infnan",
    "unlike-rows",
    "any-bits",
    "tie-code",
    "tie-scale",
    "chain",
];

/// What a family needs to know.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// Decoding and encoding.
    pub rules: &'a Rules,
    /// Rows and K.
    pub shape: [usize; 2],
    /// The type of the values.
    pub ty: FloatType,
    /// The quantization that follows.
    pub spec: &'a QuantSpec,
    /// Scale bytes that are given.
    pub given: Option<&'a [u8]>,
}

/// A transform, owned.
#[derive(Debug, Clone)]
pub struct OwnedTransform {
    values: Values,
    block: usize,
    blocks: Option<usize>,
}

impl OwnedTransform {
    /// The transform, borrowed.
    ///
    /// # Errors
    /// A shape that the core refuses.
    pub fn view(&self) -> Result<Transform<'_>, fp4_core::Error> {
        match self.blocks {
            None => Transform::shared(self.values.as_slice(), self.block),
            Some(blocks) => Transform::per_block(self.values.as_slice(), self.block, blocks),
        }
    }

    /// The values.
    pub fn values(&self) -> &Values {
        &self.values
    }

    /// The shape: (block, block), or (blocks, block, block).
    pub fn shape(&self) -> Vec<usize> {
        self.blocks.into_iter().chain([self.block, self.block]).collect()
    }
}

/// Values of a family.
pub fn values(family: &str, random: &mut Random, s: &Setting<'_>) -> Values {
    let k = s.shape[1];
    let mut x: Vec<f32> =
        (0..s.shape[0] * k).map(|i| one(family, random, s.ty, i % k.max(1))).collect();
    match family {
        "tie-code" | "tie-scale" if s.spec.element() == Element::Int8 => {
            tie_int8(random, s, &mut x, family == "tie-scale");
        }
        "tie-code" => tie_codes(random, s, &mut x),
        "tie-scale" => tie_scales(random, s, &mut x),
        "unlike-rows" => {
            for row in x.chunks_exact_mut(k.max(1)) {
                let exponent = random.pick(&[0, 3, -12, 60, -100, -147]);
                row.iter_mut().for_each(|x| *x = (f64::from(*x) * 2f64.powi(exponent)) as f32);
            }
        }
        "zeros" => {
            for group in x.chunks_exact_mut(s.spec.group().get()) {
                if random.one_in(3) {
                    group.fill(0.0);
                }
            }
        }
        _ => {}
    }
    rounded(s.rules, s.ty, &x)
}

/// A transform for values of this family: random, Hadamard-like, or the chain of `chain`, in which
/// case the values are replaced too.
pub fn transform(
    family: &str,
    random: &mut Random,
    s: &Setting<'_>,
    block: usize,
    blocks: Option<usize>,
    x: &mut Values,
) -> OwnedTransform {
    let len = blocks.unwrap_or(1) * block * block;
    let (values, ty) = if family == "chain" {
        let mut dense = vec![0f32; s.shape[0] * s.shape[1]];
        let mut t = vec![0f32; len];
        chains::fill(random, s.ty, block, &mut dense, &mut t);
        *x = rounded(s.rules, s.ty, &dense);
        (t, FloatType::F32)
    } else {
        let signs = random.one_in(3);
        let unit = 1.0 / (block as f32).sqrt();
        let value = |random: &mut Random| {
            let g = random.gauss();
            if signs { unit.copysign(g) } else { unit * g }
        };
        let ty = random.pick(&FloatType::ALL);
        ((0..len).map(|_| value(random)).collect(), ty)
    };
    OwnedTransform { values: rounded(s.rules, ty, &values), block, blocks }
}

fn one(family: &str, random: &mut Random, ty: FloatType, channel: usize) -> f32 {
    let largest = if ty == FloatType::F16 { 65_504.0 } else { f32::MAX };
    match family {
        "heavy" => (f64::from(random.gauss()) / random.unit().powi(2)) as f32,
        "outlier" => random.gauss() * if channel % 32 == 5 { 300.0 } else { 1.0 },
        "subnormal" => {
            // In units of the type's smallest subnormal.
            let unit = match ty {
                FloatType::F32 => f32::from_bits(1),
                FloatType::F16 => 1.0 / (1 << 24) as f32,
                FloatType::Bf16 => f32::from_bits(1 << 16),
            };
            let bits = random.below(24);
            unit * (random.below(1 << bits) as f32).copysign(random.gauss())
        }
        "huge" => largest * random.pick(&[1.0, -1.0, 0.5, 0.75, -0.999, 1e-2]),
        "zeros" | "signed-zeros" if random.one_in(4) => random.gauss(),
        "zeros" => random.pick(&[0.0, 0.0, -0.0]),
        "signed-zeros" => random.pick(&[0.0, -0.0, 1e-12, -1e-12]),
        "infnan" => match random.below(60) {
            0 => f32::INFINITY,
            1 => f32::NEG_INFINITY,
            2 => f32::from_bits(random.pick(&[0x7FC0_0000, 0xFFC0_0001, 0x7F80_0001, 0x7FFF_FFFF])),
            _ => random.gauss(),
        },
        "any-bits" => f32::from_bits((random.next_u64() >> 11) as u32),
        _ => random.gauss(),
    }
}

/// A value and its neighbours: `offset` ulps from the f32 nearest to `exact`.
fn nudged(exact: f64, offset: i32) -> f32 {
    let near = exact as f32;
    if !near.is_finite() || near == 0.0 {
        return near;
    }
    f32::from_bits(near.to_bits().wrapping_add_signed(offset))
}

/// A scale byte that is finite, positive and not far from one.
fn usual_scale(random: &mut Random, ty: ScaleType) -> u8 {
    match ty {
        ScaleType::E8M0 => 117 + random.below(20) as u8,
        ScaleType::E4M3 => 0x08 + random.below(0x70) as u8,
    }
}

/// As [`tie_codes`] and [`tie_scales`], for MXINT8: midpoints of elements under any scale byte, or
/// a largest magnitude of 127 and what is beside it.
fn tie_int8(random: &mut Random, s: &Setting<'_>, x: &mut [f32], of_scales: bool) {
    for group in x.chunks_exact_mut(s.spec.group().get()) {
        // f32 has no midpoints under the smallest scales, which are the more worth trying.
        let byte = if random.one_in(4) { random.below(24) } else { random.below(255) } as i32;
        let byte = if s.ty == FloatType::F16 { 110 + byte % 30 } else { byte };
        let unit = 2f64.powi(byte - 133);
        for x in group.iter_mut() {
            let midpoint = random.below(126) as f64 + 0.5;
            let magnitude = if of_scales { midpoint.floor() } else { midpoint };
            *x = nudged(magnitude * unit, random.pick(&[0, 0, 0, 1, -1])).copysign(random.gauss());
        }
        let beside = if of_scales { random.pick(&[0, 0, 1, -1]) } else { 0 };
        let at = random.below(group.len());
        group[at] = nudged(127.0 * unit, beside).copysign(random.gauss());
    }
}

fn tie_codes(random: &mut Random, s: &Setting<'_>, x: &mut [f32]) {
    let (ty, spec) = (s.spec.scale_type(), s.spec);
    for (g, group) in x.chunks_exact_mut(spec.group().get()).enumerate() {
        let byte = s.given.map_or_else(|| usual_scale(random, ty), |given| given[g]);
        let scale = scale_value(ty, byte) as f32;
        let d = f64::from(scale * spec.global_scale());
        for x in group.iter_mut() {
            let midpoint = random.pick(s.rules.e2m1_ladder().midpoints());
            let offset = random.pick(&[0, 0, 0, 1, -1]);
            *x = nudged(midpoint * d, offset).copysign(random.gauss());
        }
        if s.given.is_none() {
            // The element that decides the scale.
            group[0] = scale * (spec.scale_scale() * spec.global_scale());
        }
    }
}

fn tie_scales(random: &mut Random, s: &Setting<'_>, x: &mut [f32]) {
    let (ty, spec) = (s.spec.scale_type(), s.spec);
    let product = f64::from(spec.scale_scale() * spec.global_scale());
    for group in x.chunks_exact_mut(spec.group().get()) {
        let midpoint = random.pick(s.rules.scale_ladder(ty).midpoints());
        let amax = nudged(midpoint * product, random.pick(&[0, 0, 1, -1]));
        for x in group.iter_mut() {
            *x = amax * random.pick(&[0.0, 0.125, -0.5, 0.875, -0.99]);
        }
        let at = random.below(group.len());
        group[at] = amax.copysign(random.gauss());
    }
}

/// Scale bytes to give: any byte, NaN and negative ones included.
pub fn given_scales(random: &mut Random, ty: ScaleType, len: usize) -> Vec<u8> {
    (0..len)
        .map(|_| match random.below(4) {
            0 => {
                let byte = random.byte();
                // NaN codes say little: every element is 7.
                if scale_parts(ty, byte).is_none() && !random.one_in(8) {
                    byte & 0x3F
                } else {
                    byte
                }
            }
            _ => usual_scale(random, ty),
        })
        .collect()
}

/// f32 values rounded to a type by the oracle's rule; f32 values keep their NaN payloads.
fn rounded(rules: &Rules, ty: FloatType, values: &[f32]) -> Values {
    let bits = |&x: &f32| if ty == FloatType::F32 { x.to_bits() } else { rules.narrow(ty, x) };
    from_bits(ty, values.iter().map(bits))
}
