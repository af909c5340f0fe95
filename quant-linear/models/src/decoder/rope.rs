//! Rotary embedding: pairs of columns of a head are turned by an angle of the row's position.
//!
//! Pair i of a head of `width` columns turns by position * base^(-2 i / width). The angle, its sine
//! and its cosine are computed in f64 by `libm`, whose bits are the same on every system, and
//! rounded to f32 once.

use super::{Config, Rope};

/// The sines and cosines of some rows.
pub(super) struct Angles {
    /// (cosine, sine) of each pair, row after row.
    turns: Vec<(f32, f32)>,
    pairs: usize,
    rope: Rope,
}

impl Angles {
    pub(super) fn new(config: &Config, positions: &[usize]) -> Self {
        let pairs = config.head_width / 2;
        let frequency =
            |i: usize| libm::pow(config.rope_base, -2.0 * i as f64 / config.head_width as f64);
        let frequencies: Vec<f64> = (0..pairs).map(frequency).collect();
        let turns = positions.iter().flat_map(|&position| {
            frequencies.iter().map(move |frequency| {
                let (sine, cosine) = libm::sincos(position as f64 * frequency);
                (cosine as f32, sine as f32)
            })
        });
        Self { turns: turns.collect(), pairs, rope: config.rope }
    }

    /// Turns all heads of every row of `columns` columns.
    pub(super) fn turn(&self, x: &mut [f32], columns: usize) {
        let width = 2 * self.pairs;
        for (row, turns) in x.chunks_exact_mut(columns).zip(self.turns.chunks_exact(self.pairs)) {
            for head in row.chunks_exact_mut(width) {
                for (i, (cosine, sine)) in turns.iter().enumerate() {
                    let (a, b) = match self.rope {
                        Rope::Neighbours => (2 * i, 2 * i + 1),
                        Rope::Halves => (i, i + self.pairs),
                    };
                    let (u, v) = (head[a], head[b]);
                    head[a] = u * cosine - v * sine;
                    head[b] = u * sine + v * cosine;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::config::tests::small;
    use super::*;

    #[test]
    fn pairs_turn_by_their_angle_in_both_orders() {
        let mut config = Config::of_json(&small()).unwrap();
        let x: Vec<f32> = (0..32).map(|i| i as f32 - 10.0).collect();
        let mut both = Vec::new();
        for rope in [Rope::Halves, Rope::Neighbours] {
            config.rope = rope;
            let mut turned = x.repeat(2);
            Angles::new(&config, &[0, 3]).turn(&mut turned, 32);
            assert_eq!(turned[..32], x, "position 0 turns nothing");
            for head in 0..2 {
                for i in 0..8 {
                    let (a, b) = match rope {
                        Rope::Neighbours => (2 * i, 2 * i + 1),
                        Rope::Halves => (i, i + 8),
                    };
                    let (a, b) = (head * 16 + a, head * 16 + b);
                    let angle = 3.0 * 10_000f64.powf(-(i as f64) / 8.0);
                    let (u, v) = (f64::from(x[a]), f64::from(x[b]));
                    let wanted = u * angle.cos() - v * angle.sin();
                    assert!((f64::from(turned[32 + a]) - wanted).abs() < 1e-5);
                    let wanted = u * angle.sin() + v * angle.cos();
                    assert!((f64::from(turned[32 + b]) - wanted).abs() < 1e-5);
                }
            }
            both.push(turned);
        }
        assert_ne!(both[0], both[1]);
    }
}
