//! A layer on a thread pool of its own: the example of the repository's README, line by line.
//!
//! ```sh
//! cargo run --release -p quant-linear --example threads
//! ```

use std::sync::Arc;

use fp4_backend_cpu_simd::{CpuSimd, ThreadPoolBuilder};
use fp4_core::{Format, backend::erased::Backend};
use quant_linear::{Backends, DenseOptions, QuantLinear};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let weight: Vec<f32> = (0..16 * 64).map(|i| ((i * 37 % 101) as f32 - 50.0) / 100.0).collect();
    let options = DenseOptions::new(Format::MxFp4);
    let mut layer = QuantLinear::from_dense(&weight[..], 16, 64, &options)?;

    // The layer's products on two threads, which belong to nobody else.
    let pool = Arc::new(ThreadPoolBuilder::new().num_threads(2).build()?);
    let cpu = Backend::resident(CpuSimd::new().with_pool(pool));
    layer.set_backends(Backends::reference().with(cpu));

    let y = layer.forward(&vec![0.5f32; 4 * 64], &[4, 64])?;
    assert_eq!(y.len(), 4 * 16);
    Ok(())
}
