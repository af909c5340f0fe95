//! The element-wise arithmetic of BERT in f32: LayerNorm, softmax, exact GELU, dot product.

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
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for v in x.iter_mut() {
        *v = (*v - largest).exp();
        sum += *v;
    }
    let inverse = 1.0 / sum;
    for v in x.iter_mut() {
        *v *= inverse;
    }
}

/// `x * P(X <= x)` for a standard normal X: the GELU that BERT was trained with.
///
/// The popular tanh formula differs from it by up to 5e-4, which an embedding would show.
pub(crate) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Dot product of two slices of one length.
///
/// Eight partial sums, because one running sum would forbid SIMD: the compiler may not reorder
/// float additions by itself.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a_chunks, a_rest) = a.as_chunks::<8>();
    let (b_chunks, b_rest) = b.as_chunks::<8>();
    let mut lanes = [0.0f32; 8];
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += a * b;
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f32>() + rest
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
