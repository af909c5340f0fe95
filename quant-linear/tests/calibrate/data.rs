//! Made data, and small helpers.

use fp4_core::{Format, QuantSpec};

/// Numbers in the open unit interval, from a counter.
pub(crate) struct Numbers(pub(crate) u64);

impl Numbers {
    pub(crate) fn uniform(&mut self) -> f64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        ((mixed >> 12) as f64 + 0.5) / (1u64 << 52) as f64
    }

    pub(crate) fn gaussian(&mut self) -> f64 {
        let (u, v) = (self.uniform(), self.uniform());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }

    pub(crate) fn gaussians(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.gaussian() as f32).collect()
    }
}

/// Rows whose inputs lean on their neighbours, so that second moments have much off the diagonal.
pub(crate) fn correlated(rows: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut numbers = Numbers(seed);
    let mut x = Vec::with_capacity(rows * k);
    for _ in 0..rows {
        let common = numbers.gaussian();
        let mut last = 0.0;
        for i in 0..k {
            last = 0.7 * last + 0.3 * common + numbers.gaussian();
            x.push((last * (1.0 + (i % 7) as f64 * 0.3)) as f32);
        }
    }
    x
}

/// Rows of which a few inputs are large, as in real language models.
pub(crate) fn with_outliers(rows: usize, k: usize, seed: u64) -> Vec<f32> {
    let mut x = correlated(rows, k, seed);
    for row in x.chunks_exact_mut(k) {
        for (i, x) in row.iter_mut().enumerate() {
            *x *= match i % 61 {
                7 => 20.0,
                30 => 8.0,
                _ => 1.0,
            };
        }
    }
    x
}

pub(crate) fn weight(rows: usize, k: usize, seed: u64) -> Vec<f32> {
    Numbers(seed ^ 0xABCD).gaussians(rows * k).into_iter().map(|w| w * 0.05).collect()
}

pub(crate) fn amax(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |a, x| a.max(x.abs()))
}

/// The usual settings for this weight.
pub(crate) fn spec(format: Format, weight: &[f32]) -> QuantSpec {
    QuantSpec::for_weight(format, amax(weight)).unwrap()
}

/// The same on a pool of so many threads.
pub(crate) fn on_threads<R: Send>(threads: usize, f: impl FnOnce() -> R + Send) -> R {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap().install(f)
}

/// x W^T in f64, naively.
pub(crate) fn product(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
}

pub(crate) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// ||a - b||^2 / ||b||^2
pub(crate) fn off(a: &[f64], b: &[f64]) -> f64 {
    let square = |x: f64| x * x;
    a.iter().zip(b).map(|(a, b)| square(a - b)).sum::<f64>()
        / b.iter().map(|&b| square(b)).sum::<f64>()
}
