//! Transform chains whose f32 rounding differs between one rounding a step and its emulations.
//!
//! Random data never hit these: two ways to compute `fma` differ only where the exact sum lies
//! within 2^-29 of a tie. Each chain here ends by cancelling its large terms, so that a last bit
//! becomes the whole result, which the quantizer that follows cannot round away.
//!
//! ```text
//! row of T:  t0   t1   t2        x:  x0  x1  x2
//! acc = x0 t0;  acc = fma(x1, t1, acc), near a tie;  acc = fma(x2, t2, acc), large part gone
//! ```
//!
//! | chain | what is done wrong | one rounding a step | wrong |
//! |---|---|---|---|
//! | `tie` (f32) | fma as f64 multiply and add, then f32; separate multiply and add | 2 or 0 | 4 or 2 |
//! | `order` | other orders of summation, f64 accumulation | 0 or 2 | 1, ... |
//! | `stored` (f16, bf16) | T not rounded to x's type first | 0 | 2^-13 |
//! | `zero` | a chain that starts with a product instead of +0 | +0 | -0 |
//! | `subnormal` (bf16) | a product rounded on its own underflows | 2^-132 | 2^-133 |
//!
//! Worked example, `tie`: 2^24 + 2 plus (1 + 2^-23)(1 - 2^-23) is a hair under the tie 2^24 + 3, so
//! it rounds down, to 2^24 + 2; minus 2^24 leaves 2. In f64 it is the tie itself, which goes up to
//! even, and leaves 4.

use fp4_core::FloatType;

use crate::random::Random;

/// Fills x (whole blocks) and T (whole matrices) with chains: the first elements of a block take
/// part, the others are zero.
pub(super) fn fill(random: &mut Random, ty: FloatType, block: usize, x: &mut [f32], t: &mut [f32]) {
    let bf16_tiny = ty == FloatType::Bf16 && random.one_in(2);
    for x in x.chunks_exact_mut(block) {
        if random.one_in(4) {
            x.fill(-0.0);
            continue;
        }
        let chain = if bf16_tiny { subnormal_x() } else { near_tie_x(random, ty) };
        x[..chain.len()].copy_from_slice(&chain);
    }
    for row in t.chunks_exact_mut(block) {
        if random.one_in(8) {
            row.fill(0.5);
            continue;
        }
        let weights = if bf16_tiny { subnormal_t(random) } else { near_tie_t(random, ty) };
        row[..weights.len()].copy_from_slice(&weights);
    }
}

const BIG: f32 = 16_777_216.0; // 2^24

fn near_tie_x(random: &mut Random, ty: FloatType) -> [f32; 8] {
    let ulp = f32::EPSILON;
    match ty {
        // x0: the large term with an odd or even last bit; x1: one plus a little; x2 cancels.
        FloatType::F32 => {
            let u = random.pick(&[1.0, 3.0, 7.0]);
            let even = random.one_in(2);
            let c = BIG + 2.0 * if even { 0.0 } else { 1.0 };
            [c, 1.0 + u * ulp, BIG, 1.0, 0.0, 0.0, 0.0, 0.0]
        }
        // Elements of x are short; the large term is made of two exact steps.
        FloatType::F16 | FloatType::Bf16 => [4096.0, 1.0, 4096.0, 1.0, 1.0, 1.0, 1.0, 1.0],
    }
}

fn near_tie_t(random: &mut Random, ty: FloatType) -> [f32; 8] {
    let ulp = f32::EPSILON;
    let sign = random.pick(&[1.0, -1.0]);
    let v = random.pick(&[1.0, 3.0, 7.0]);
    let weights = match ty {
        FloatType::F32 => [1.0, 1.0 - v * ulp, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
        // 2^24, then ones that are lost one by one, then the cancellation: 0; any other order, or a
        // wider accumulator, keeps some. Or the rounding of T alone.
        FloatType::F16 | FloatType::Bf16 => match random.below(3) {
            0 => [0.0, 1.0 + 1.0 / 8192.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0],
            1 => [4096.0, 1.0, -4096.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            _ => [4096.0, 1.0, -4096.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        },
    };
    weights.map(|w| w * sign)
}

/// 2^e.
fn two(e: i32) -> f32 {
    2f64.powi(e) as f32
}

/// Elements of about 2^-75: their products are f32 subnormals.
fn subnormal_x() -> [f32; 8] {
    [1.5 * two(-60), two(-75), two(-75), two(-75), 0.0, 0.0, 0.0, 0.0]
}

/// 1.5 * 2^-133, a tie of bf16, then +2^-149, then +2^-150 (itself a tie, up), then -2^-148: back
/// on the tie. A product rounded on its own loses the 2^-150 and ends below the tie.
fn subnormal_t(random: &mut Random) -> [f32; 8] {
    let sign = random.pick(&[1.0, -1.0]);
    [two(-73), two(-74), two(-75), -two(-73), 0.0, 0.0, 0.0, 0.0].map(|w| w * sign)
}
