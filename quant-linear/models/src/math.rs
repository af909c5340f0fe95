//! The element-wise arithmetic of both models in f32: norms, softmax, activations, dot products.
//!
//! Every sum has a fixed order and every function is made of IEEE operations, none of the system's
//! `exp`: a row's bits depend on that row alone, and are the same on every CPU. The compiler may
//! use what SIMD there is (`pulp` chooses at run time), but may not reorder or contract.

use pulp::{Arch, NullaryFnOnce};

/// Partial sums of a long sum, so that it is no one chain of additions.
pub(crate) const LANES: usize = 16;

/// `e^x`, to 2 units in the last place for -87 <= x <= 88; 0 below, `e^88` above.
///
/// ```text
/// n = nearest(x / ln 2);  r = x - n ln 2, |r| <= 0.347, ln 2 in two parts
/// e^x = 2^n (1 + r + r^2/2! + .. + r^7/7!)         the next term is below 6e-9
/// ```
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // 1.5 * 2^23: adding it rounds to a whole number, which is then in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const HIGH: f32 = 0.693_145_75;
    const LOW: f32 = 1.428_606_8e-6;
    let y = if x > 88.0 { 88.0 } else { x };
    let shifted = y * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = y - n * HIGH - n * LOW;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127);
    let scaled = p * f32::from_bits(exponent << 23);
    if x < -87.0 { 0.0 } else { scaled }
}

/// The sum of the lanes, in one order.
#[inline(always)]
fn sum_lanes(lanes: &[f32; LANES]) -> f32 {
    lanes.iter().sum()
}

/// `sum f(x)` in [`LANES`] partial sums.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    for (lane, v) in lanes.iter_mut().zip(rest) {
        *lane += f(*v);
    }
    sum_lanes(&lanes)
}

/// Runs `job` compiled for the SIMD that the CPU has, as far as it is inlined. A type with its own
/// `call`, no closure: the call of a closure is not always inlined, and is then compiled for none.
pub(crate) fn with_simd<J: NullaryFnOnce>(job: J) -> J::Output {
    Arch::new().dispatch(job)
}

/// `y = x / sqrt(mean(x^2) + epsilon) * weight` for each row.
pub(crate) fn rms_norm(x: &[f32], weight: &[f32], epsilon: f32) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    with_simd(RmsNorm { x, y: &mut y, weight, epsilon });
    y
}

struct RmsNorm<'a> {
    x: &'a [f32],
    y: &'a mut [f32],
    weight: &'a [f32],
    epsilon: f32,
}

impl NullaryFnOnce for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let width = self.weight.len().max(1);
        for (x, y) in self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width)) {
            let inverse = 1.0 / (sum_of(x, |v| v * v) / width as f32 + self.epsilon).sqrt();
            for ((y, x), w) in y.iter_mut().zip(x).zip(self.weight) {
                *y = *x * inverse * w;
            }
        }
    }
}

/// `gate * sigmoid(gate) * up` in place of `gate`: what a gated feed-forward multiplies by.
pub fn swiglu(gate: &mut [f32], up: &[f32]) {
    with_simd(SwiGlu { gate, up });
}

struct SwiGlu<'a> {
    gate: &'a mut [f32],
    up: &'a [f32],
}

impl NullaryFnOnce for SwiGlu<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (g, u) in self.gate.iter_mut().zip(self.up) {
            *g = *g / (1.0 + exp(-*g)) * u;
        }
    }
}

/// Adds `update` to `x`.
pub(crate) fn add(x: &mut [f32], update: &[f32]) {
    for (v, u) in x.iter_mut().zip(update) {
        *v += u;
    }
}

/// Normalises each row of `x` to mean 0 and variance 1, then scales and shifts by element.
///
/// The variance is the population variance (divided by the row's length), as BERT has it:
/// `[1, 3]` has mean 2 and variance 1, so it becomes `[-1, 1]` up to `epsilon`.
pub(crate) fn layer_norm(x: &mut [f32], weight: &[f32], bias: &[f32], epsilon: f32) {
    let width = weight.len();
    let scale = 1.0 / width as f32;
    for row in x.chunks_exact_mut(width) {
        let mean = row.iter().sum::<f32>() * scale;
        // Two passes: E[x^2] - mean^2 would cancel where the mean is large.
        let variance = row.iter().map(|&v| (v - mean) * (v - mean)).sum::<f32>() * scale;
        let inverse = 1.0 / (variance + epsilon).sqrt();
        for ((v, w), b) in row.iter_mut().zip(weight).zip(bias) {
            *v = (*v - mean) * inverse * w + b;
        }
    }
}

/// Replaces `x` by `exp(x) / sum(exp(x))`.
///
/// The largest element is subtracted first, which changes nothing but keeps `exp` finite.
pub(crate) fn softmax(x: &mut [f32]) {
    let inverse = 1.0 / exp_minus_largest(x);
    for v in x.iter_mut() {
        *v *= inverse;
    }
}

/// Replaces `x` by `exp(x - largest)`; the sum of that.
#[inline(always)]
pub(crate) fn exp_minus_largest(x: &mut [f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks.iter().map(<[f32; LANES]>::as_slice).chain([rest]) {
        for (l, v) in largest.iter_mut().zip(chunk) {
            *l = if *v > *l { *v } else { *l };
        }
    }
    let largest = largest.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    for v in x.iter_mut() {
        *v = exp(*v - largest);
    }
    sum_of(x, |v| v)
}

/// `x * P(X <= x)` for a standard normal X: the GELU that BERT was trained with.
///
/// The popular tanh formula differs from it by up to 5e-4, which an embedding would show.
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Dot product of two slices of one length, in [`LANES`] partial sums.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += a * b;
    }
    sum_lanes(&lanes)
}

/// Scales `x` to length 1; a zero vector stays zero.
pub(crate) fn normalise(x: &mut [f32]) {
    // The floor is the one of PyTorch's `normalize`, which the published model runs.
    let inverse = 1.0 / dot(x, x).sqrt().max(1e-12);
    for v in x.iter_mut() {
        *v *= inverse;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn assert_close(given: &[f32], wanted: &[f32], tolerance: f32) {
        assert_eq!(given.len(), wanted.len());
        for (i, (g, w)) in given.iter().zip(wanted).enumerate() {
            assert!((g - w).abs() <= tolerance, "element {i}: {g} instead of {w}");
        }
    }

    #[test]
    fn layer_norm_matches_a_hand_computed_row() {
        // Mean 5, deviations -3 -1 1 3, variance 20 / 4 = 5; with epsilon 11 the divisor is 4.
        let mut x = [2.0, 4.0, 6.0, 8.0];
        layer_norm(&mut x, &[1.0, 2.0, 4.0, 8.0], &[0.0, 0.0, 1.0, -6.0], 11.0);
        assert_eq!(x, [-0.75, -0.5, 2.0, 0.0]);
    }

    #[test]
    fn layer_norm_treats_each_row_by_itself() {
        let mut x = [1.0, 3.0, 1000.0, 1000.5];
        layer_norm(&mut x, &[1.0; 2], &[0.0; 2], 0.0);
        assert_eq!(x, [-1.0, 1.0, -1.0, 1.0]);
    }

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        let mut worst = 0.0f64;
        while x <= 88.0 {
            let exact = f64::from(x).exp();
            let ulp = f64::from((exact as f32).next_up() - exact as f32);
            worst = worst.max((f64::from(exp(x)) - exact).abs() / ulp);
            x += 0.000_37;
        }
        assert!(worst < 2.0, "{worst}");
        assert_eq!([exp(0.0), exp(-0.0), exp(-87.1), exp(f32::NEG_INFINITY)], [1.0, 1.0, 0.0, 0.0]);
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(f32::INFINITY), exp(88.0));
    }

    #[test]
    fn rms_norm_matches_a_hand_computed_row_and_treats_each_by_itself() {
        // Mean square of 1 and 7 is 25; of 3 and 4, 12.5.
        let y = rms_norm(&[1.0, 7.0, 3.0, 4.0], &[5.0, 10.0], 0.0);
        assert_close(&y[..2], &[1.0, 14.0], 1e-6);
        let scale = 1.0 / 12.5f32.sqrt();
        assert_close(&y[2..], &[15.0 * scale, 40.0 * scale], 1e-6);
        assert_close(&rms_norm(&[3.0, 3.0], &[1.0; 2], 16.0), &[0.6; 2], 1e-6);
        assert_eq!(rms_norm(&[3.0, 4.0], &[5.0, 10.0], 0.0), y[2..]);
    }

    #[test]
    fn swiglu_is_gate_times_its_sigmoid_times_up() {
        let gates = [-200.0f32, -20.0, -1.0, 0.0, 0.5, 3.0, 90.0];
        let mut given = gates;
        swiglu(&mut given, &[2.0; 7]);
        for (gate, given) in gates.iter().zip(given) {
            let gate = f64::from(*gate);
            let wanted = 2.0 * gate / (1.0 + (-gate).exp());
            assert!((f64::from(given) - wanted).abs() <= 1e-6 * wanted.abs().max(1e-20), "{gate}");
        }
    }

    #[test]
    fn softmax_is_the_ratio_of_exponentials() {
        let mut x = [0.0, 2.0f32.ln(), 5.0f32.ln()];
        softmax(&mut x);
        assert_close(&x, &[0.125, 0.25, 0.625], 1e-7);
    }

    #[test]
    fn softmax_of_large_scores_stays_finite() {
        let mut x = [1000.0, 1000.0, f32::NEG_INFINITY];
        softmax(&mut x);
        assert_eq!(x, [0.5, 0.5, 0.0]);
    }

    #[test]
    fn gelu_matches_the_normal_distribution() {
        // x * Phi(x), with Phi from printed tables to ten digits.
        for (x, phi) in [
            (0.0f64, 0.5f64),
            (0.5, 0.691_462_461_3),
            (1.0, 0.841_344_746_1),
            (1.96, 0.975_002_104_9),
            (3.0, 0.998_650_102_0),
            (6.0, 0.999_999_999_0),
        ] {
            let tolerance = 4.0 * f64::from(f32::EPSILON) * x;
            assert_close(&[gelu(x as f32)], &[(x * phi) as f32], tolerance as f32);
            // Absolute: near -6 the cancellation in 1 + erf leaves no relative accuracy.
            assert_close(&[gelu(-x as f32)], &[(-x * (1.0 - phi)) as f32], 1e-6);
        }
    }

    #[test]
    fn dot_counts_every_element_once() {
        for len in [0, 1, 7, 8, 9, 31, 384] {
            let a: Vec<f32> = (0..len).map(|i| i as f32).collect();
            let sum_of_squares: usize = (0..len).map(|i| i * i).sum();
            assert_eq!(dot(&a, &a), sum_of_squares as f32, "length {len}");
        }
    }

    #[test]
    fn normalise_makes_length_one_and_keeps_zero() {
        let mut x = [3.0, 4.0];
        normalise(&mut x);
        assert_close(&x, &[0.6, 0.8], 1e-7);
        let mut zero = [0.0; 3];
        normalise(&mut zero);
        assert_eq!(zero, [0.0; 3]);
    }
}
