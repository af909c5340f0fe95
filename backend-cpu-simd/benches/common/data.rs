//! How the benches draw their values.

#![allow(dead_code, unreachable_pub, reason = "each bench uses a part, and one is a library")]

/// How values are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Data {
    /// Standard normal.
    Gaussian,
    /// Student's t with 4 degrees of freedom.
    T4,
    /// Normal, with one channel in 512 times 30 to 100.
    Outliers,
}

impl Data {
    pub fn name(self) -> &'static str {
        match self {
            Data::Gaussian => "gaussian",
            Data::T4 => "t4",
            Data::Outliers => "outliers",
        }
    }
}

/// splitmix64 (Steele, Lea and Flood, 2014).
pub struct Rng(pub u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }

    fn unit(&mut self) -> f32 {
        ((self.next() >> 40) + 1) as f32 / (1u32 << 24) as f32
    }

    fn gauss(&mut self) -> f32 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f32::consts::TAU * self.unit()).cos()
    }
}

/// A (rows, k) matrix.
pub fn values(rng: &mut Rng, data: Data, rows: usize, k: usize) -> Vec<f32> {
    let mut factors = vec![1.0; k];
    if data == Data::Outliers {
        for _ in 0..k / 512 {
            factors[(rng.next() % k as u64) as usize] = 30.0 + 70.0 * rng.unit();
        }
    }
    let value = |rng: &mut Rng, i: usize| match data {
        Data::T4 => {
            let squares: f32 = (0..4).map(|_| rng.gauss().powi(2)).sum();
            rng.gauss() / (squares / 4.0).sqrt()
        }
        _ => rng.gauss() * factors[i % k],
    };
    (0..rows * k).map(|i| value(rng, i)).collect()
}
