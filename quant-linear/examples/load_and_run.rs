//! A layer saved to a safetensors file and loaded again: the same bytes, and the same outputs.
//!
//! ```sh
//! cargo run --release -p quant-linear --example load_and_run
//! ```

use fp4_core::Format;
use quant_linear::{DenseOptions, LoadOptions, QuantLinear, StoredTransform};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let (rows, inputs, outputs) = (3, 128, 16);
    let weight: Vec<f32> = (0..outputs * inputs).map(|i| (i as f32 * 0.37).sin()).collect();
    let options = DenseOptions {
        transform: Some(StoredTransform::hadamard(32)?),
        ..DenseOptions::new(Format::MxFp4)
    };
    let made = QuantLinear::from_dense(&weight[..], outputs, inputs, &options)?;

    let folder = tempfile::tempdir()?;
    let path = folder.path().join("layer.safetensors");
    made.save(&path, "mlp.up")?;
    println!("{} bytes for {} weights", std::fs::metadata(&path)?.len(), weight.len());

    // A layer with no weight yet takes shape, format and transform from what it loads.
    let loaded = QuantLinear::load(&path, "mlp.up", &LoadOptions::default())?;
    for (name, tensor) in loaded.state_dict("mlp.up")? {
        println!("{name:32} {:?} {:?}", tensor.dtype(), tensor.shape());
    }

    let x: Vec<f32> = (0..rows * inputs).map(|i| (i as f32 * 0.61).cos()).collect();
    let bits = |layer: &QuantLinear| -> Result<Vec<u32>, quant_linear::Error> {
        Ok(layer.forward(&x, &[rows, inputs])?.into_iter().map(f32::to_bits).collect())
    };
    assert_eq!(bits(&loaded)?, bits(&made)?);
    println!("{} outputs, the same bits before and after", rows * outputs);
    Ok(())
}
