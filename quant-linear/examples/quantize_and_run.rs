//! A dense weight to FP4, and activations through the layer: what it costs and what it does not.
//!
//! ```sh
//! cargo run --release -p quant-linear --example quantize_and_run
//! ```

use fp4_core::{FloatType, Format};
use quant_linear::{Backends, DenseOptions, Error, QuantLinear};

const IN: usize = 256;
const OUT: usize = 64;
const ROWS: usize = 8;

fn main() -> Result<(), Error> {
    let (weight, x) = (numbers(1, OUT * IN), numbers(2, ROWS * IN));
    let dense = dense_product(&x, &weight);

    for format in Format::ALL {
        let mut layer = QuantLinear::from_dense(&weight[..], OUT, IN, &DenseOptions::new(format))?;
        let y = layer.forward(&x, &[ROWS, IN])?;
        println!("{format}: {:.1} % off the dense product", 100.0 * relative_error(&y, &dense));
        println!("{}\n", layer.explain(ROWS, FloatType::F32)?);

        // A row does not know its batch, and no backend has bits of its own.
        let alone = layer.forward(&x[(ROWS - 1) * IN..], &[1, IN])?;
        assert_eq!(bits(&alone), bits(&y[(ROWS - 1) * OUT..]));
        layer.set_backends(Backends::reference());
        assert_eq!(bits(&layer.forward(&x, &[ROWS, IN])?), bits(&y));
    }
    Ok(())
}

/// Numbers between -1 and 1 that look random: SplitMix64, whose seed is `seed`.
fn numbers(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// x * W^T in f64.
fn dense_product(x: &[f32], weight: &[f32]) -> Vec<f64> {
    let dot =
        |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
    x.chunks(IN).flat_map(|x| weight.chunks(IN).map(move |w| dot(x, w))).collect()
}

/// The root of the squared error's part of the squared norm.
fn relative_error(y: &[f32], dense: &[f64]) -> f64 {
    let error: f64 = y.iter().zip(dense).map(|(&y, d)| (f64::from(y) - d).powi(2)).sum();
    (error / dense.iter().map(|d| d * d).sum::<f64>()).sqrt()
}
