//! A layer from a dense weight: the example of the repository's README, line by line.
//!
//! ```sh
//! cargo run --release -p quant-linear --example first_layer
//! ```

use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear};

fn main() -> Result<(), quant_linear::Error> {
    // Quantize a dense weight of 16 output and 64 input features to NVFP4.
    let weight: Vec<f32> = (0..16 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
    let layer = QuantLinear::from_dense(&weight[..], 16, 64, &DenseOptions::new(Format::NvFp4))?;

    // Activations of any leading dimensions, in f32, f16 or bf16; the output has the same type.
    let x: Vec<f32> = (0..4 * 64).map(|i| ((i * 29 % 83) as f32 - 41.0) / 20.0).collect();
    let all = layer.forward(&x, &[4, 64])?;

    // A row does not know which batch it came in: not one bit of it changes.
    let last = layer.forward(&x[3 * 64..], &[1, 64])?;
    assert_eq!(all[3 * 16..], last);

    // Who does what, and why not the others.
    println!("{}", layer.explain(4, fp4_core::FloatType::F32)?);
    Ok(())
}
