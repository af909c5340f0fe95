//! The next token: the likeliest, or a seeded draw.
//!
//! ```text
//! sort by logit, the lower id first among equals; keep the first k
//! w = exp((logit - largest) / temperature);  keep the shortest prefix whose share reaches p
//! u in [0, 1) from ChaCha8, whose numbers are the same everywhere
//! the token where the sum of w passes u times their sum
//! ```

use anyhow::{Result, bail, ensure};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

/// How tokens are drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest.
    pub temperature: f32,
    /// Only so many of the likeliest; 0 is all.
    pub top_k: usize,
    /// Only the likeliest that have this share together, above 0 and at most 1.
    pub top_p: f32,
    /// Of the generator.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, seed: 0 }
    }
}

/// Draws tokens.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    random: ChaCha8Rng,
}

impl Sampler {
    /// # Errors
    /// A temperature that is not finite or below 0, a share outside its range.
    pub fn new(sampling: Sampling) -> Result<Self> {
        let Sampling { temperature, top_p, seed, .. } = sampling;
        ensure!(
            temperature.is_finite() && temperature >= 0.0,
            "a temperature of {temperature}: expected 0 (the likeliest token) or above"
        );
        ensure!(top_p > 0.0 && top_p <= 1.0, "a top-p of {top_p}: expected above 0, at most 1");
        Ok(Self { sampling, random: ChaCha8Rng::seed_from_u64(seed) })
    }

    /// The next token after the one that has these logits.
    ///
    /// # Errors
    /// As [`argmax`].
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let likeliest = argmax(logits)?;
        let Sampling { temperature, top_k, top_p, .. } = self.sampling;
        if temperature == 0.0 {
            return Ok(likeliest);
        }
        let mut order: Vec<u32> = (0..logits.len() as u32).collect();
        let by_logit =
            |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
        order.sort_unstable_by(by_logit);
        order.truncate(if top_k == 0 { order.len() } else { top_k });
        let largest = f64::from(logits[likeliest as usize]);
        let weight = |id: &u32| {
            libm::exp((f64::from(logits[*id as usize]) - largest) / f64::from(temperature))
        };
        let weights: Vec<f64> = order.iter().map(weight).collect();
        let total: f64 = weights.iter().sum();
        let mut kept = 0.0;
        let mut len = 0;
        for weight in &weights {
            (kept, len) = (kept + weight, len + 1);
            if kept >= f64::from(top_p) * total {
                break;
            }
        }
        // 53 random bits: every multiple of 2^-53 in [0, 1).
        let draw = (self.random.next_u64() >> 11) as f64 / (1u64 << 53) as f64 * kept;
        let mut sum = 0.0;
        for (id, weight) in order[..len].iter().zip(&weights) {
            sum += weight;
            if sum > draw {
                return Ok(*id);
            }
        }
        Ok(order[len - 1])
    }
}

/// The id of the largest logit, the lowest of equals.
///
/// # Errors
/// No logits, or one that is NaN.
pub fn argmax(logits: &[f32]) -> Result<u32> {
    let mut best: Option<(usize, f32)> = None;
    for (id, &logit) in logits.iter().enumerate() {
        if logit.is_nan() {
            bail!("the logit of token {id} is NaN: the model's weights are damaged");
        }
        if best.is_none_or(|(_, largest)| logit > largest) {
            best = Some((id, logit));
        }
    }
    match best {
        Some((id, _)) => Ok(u32::try_from(id)?),
        None => bail!("there are no logits to choose from"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draws(sampling: Sampling, logits: &[f32], n: usize) -> Vec<u32> {
        let mut sampler = Sampler::new(sampling).unwrap();
        (0..n).map(|_| sampler.next(logits).unwrap()).collect()
    }

    #[test]
    fn the_likeliest_is_the_lowest_of_equals() {
        assert_eq!(argmax(&[1.0, 3.0, 3.0, -1.0]).unwrap(), 1);
        assert_eq!(draws(Sampling::default(), &[f32::NEG_INFINITY, -2.0], 2), [1, 1]);
        assert!(argmax(&[]).unwrap_err().to_string().contains("no logits"));
        assert!(argmax(&[0.0, f32::NAN]).unwrap_err().to_string().contains("token 1 is NaN"));
    }

    #[test]
    fn draws_follow_the_weights_and_the_seed() {
        let logits = [0.0, 3.0f32.ln(), f32::NEG_INFINITY];
        let sampling = Sampling { temperature: 1.0, seed: 1, ..Sampling::default() };
        let given = draws(sampling, &logits, 4000);
        let ones = given.iter().filter(|id| **id == 1).count();
        assert!(
            (2880..3120).contains(&ones) && !given.contains(&2),
            "{ones} of 4000, expected 3/4"
        );
        assert_eq!(given, draws(sampling, &logits, 4000));
        assert_ne!(given, draws(Sampling { seed: 2, ..sampling }, &logits, 4000));
    }

    #[test]
    fn few_tokens_or_a_small_share_cut_the_tail() {
        let logits = [1.0, 2.0, 3.0, 4.0];
        let hot = Sampling { temperature: 100.0, ..Sampling::default() };
        let mut two = draws(Sampling { top_k: 2, ..hot }, &logits, 200);
        two.sort_unstable();
        two.dedup();
        assert_eq!(two, [2, 3]);
        assert_eq!(draws(Sampling { top_p: 1e-3, ..hot }, &logits, 50), vec![3; 50]);
    }

    #[test]
    fn settings_out_of_range_are_errors() {
        for (temperature, top_p, said) in
            [(f32::NAN, 1.0, "temperature of NaN"), (-1.0, 1.0, "-1"), (1.0, 0.0, "top-p of 0")]
        {
            let sampling = Sampling { temperature, top_p, ..Sampling::default() };
            let text = Sampler::new(sampling).unwrap_err().to_string();
            assert!(text.contains(said), "{text}");
        }
    }
}
