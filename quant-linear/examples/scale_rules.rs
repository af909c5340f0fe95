//! What each scale rule leaves of a weight, in dB, and how fast it is: the tables of
//! `SCALE_RULES.md`.
//!
//! ```sh
//! cargo run --release -p quant-linear --example scale_rules
//! ```
//!
//! Weights: Gaussian; Student's t with 4 degrees of freedom; 192 rows of a layer of
//! all-MiniLM-L6-v2 (`cli/fixtures`); and weights that are exactly in the format: random codes and
//! scales, whose global scale no rule is told. Signal to noise is 10 log10(sum w^2 / sum (w - q)^2)
//! in f64 over the weight as the layer stores it; `exact` is no error at all. The speed is that of
//! `fp4_core::reference::group_scale` on one thread, over the Gaussian weight: the rule alone.

use std::error::Error;
use std::time::Instant;

use fp4_core::{E2m1, Format, QuantSpec, ScaleRule, ScaleType, reference};
use quant_linear::{DenseOptions, QuantLinear, safetensors};

const ROWS: usize = 1024;
const K: usize = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let minilm = minilm()?;
    let weights = |format| {
        [
            ("Gaussian", gaussian(1), [ROWS, K]),
            ("heavy-tailed, t4", t4(2), [ROWS, K]),
            ("MiniLM", minilm.clone(), [192, 384]),
            ("in the format", in_format(format, 3), [ROWS, K]),
        ]
    };
    for format in Format::ALL {
        let weights = weights(format);
        let names = weights.each_ref().map(|(name, ..)| *name).join(" | ");
        println!("## {format}, dB\n\n| rule | {names} | M weights/s |\n|---|---|---|---|---|---|");
        for rule in ScaleRule::ALL.into_iter().filter(|rule| rule.is_for(format.scale_type())) {
            let mut row = format!("| `{rule}` |");
            for (_, weight, shape) in &weights {
                row += &match snr(weight, *shape, format, rule)? {
                    db if db.is_infinite() => " exact |".to_string(),
                    db => format!(" {db:.2} |"),
                };
            }
            println!("{row} {:.0} |", speed(&weights[0].1, format, rule)?);
        }
        println!();
    }
    Ok(())
}

/// Signal to noise in dB of a weight quantized by a rule, with the global scale that goes with it.
fn snr(
    weight: &[f32],
    [rows, k]: [usize; 2],
    format: Format,
    rule: ScaleRule,
) -> Result<f64, Box<dyn Error>> {
    let options = DenseOptions { scale_rule: rule, ..DenseOptions::new(format) };
    let layer = QuantLinear::from_dense(weight, rows, k, &options)?;
    let packed = layer.weight()?;
    let mut back = vec![0f32; weight.len()];
    reference::dequantize(packed.view(), layer.weight_global_scale(), (&mut back[..]).into())?;
    let (mut signal, mut noise) = (0f64, 0f64);
    for (w, q) in weight.iter().zip(&back) {
        signal += f64::from(*w).powi(2);
        noise += (f64::from(*w) - f64::from(*q)).powi(2);
    }
    Ok(10.0 * (signal / noise).log10())
}

/// Millions of weights a second whose scale bytes are found: the best of five.
fn speed(weight: &[f32], format: Format, rule: ScaleRule) -> Result<f64, Box<dyn Error>> {
    let amax = weight.iter().fold(0f32, |amax, w| amax.max(w.abs()));
    let spec = QuantSpec::by_rule(format, rule, amax)?;
    let mut best = f64::INFINITY;
    let mut sum = 0u64;
    for _ in 0..5 {
        let start = Instant::now();
        for group in weight.chunks_exact(format.group().get()) {
            sum += u64::from(reference::group_scale(group, &spec));
        }
        best = best.min(start.elapsed().as_secs_f64());
    }
    std::hint::black_box(sum);
    Ok(weight.len() as f64 / best / 1e6)
}

/// A weight of a real model.
fn minilm() -> Result<Vec<f32>, Box<dyn Error>> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cli/fixtures/minilm-slice.safetensors");
    let bytes = std::fs::read(path)?;
    let file = safetensors::SafeTensors::deserialize(&bytes)?;
    let values = file.tensor("weight")?;
    let values =
        values.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
    Ok(values.collect())
}

/// Uniform numbers in (0, 1).
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn gauss(&mut self) -> f64 {
        (-2.0 * self.unit().ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn gaussian(seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    (0..ROWS * K).map(|_| (0.02 * random.gauss()) as f32).collect()
}

/// Student's t with 4 degrees of freedom: a Gaussian over the root of the mean of four squares.
fn t4(seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let mut value = || {
        let squares: f64 = (0..4).map(|_| random.gauss().powi(2)).sum();
        (0.02 * random.gauss() / (squares / 4.0).sqrt()) as f32
    };
    (0..ROWS * K).map(|_| value()).collect()
}

/// Codes of a rounded Gaussian and random scales: MXFP4 under global scale 1, as all files but ours
/// have it, NVFP4 under one that is no round number.
fn in_format(format: Format, seed: u64) -> Vec<f32> {
    let mut random = Random(seed);
    let (scale, gs) = match format {
        Format::MxFp4 => (ScaleType::E8M0, 1.0),
        Format::NvFp4 => (ScaleType::E4M3, 3.7e-5),
    };
    let mut weight = Vec::with_capacity(ROWS * K);
    for _ in 0..ROWS * K / format.group().get() {
        let byte = match format {
            Format::MxFp4 => 118 + (random.bits() % 4) as u8,
            Format::NvFp4 => 0x40 + (random.bits() % 0x3F) as u8,
        };
        let d = scale.decode(byte) * gs;
        let code = |random: &mut Random| E2m1::from_f32((2.5 * random.gauss()) as f32).to_f32() * d;
        weight.extend((0..format.group().get()).map(|_| code(&mut random)));
    }
    weight
}
