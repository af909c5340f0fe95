//! What layers cost in resident memory: a model over batches of growing size, clones, one large layer.
//!
//! ```sh
//! cargo run --release -p quant-linear --example memory            # all; or: model, clones, layer
//! ```
//!
//! Linux only: it reads the resident size of its own process. Numbers are MiB of resident memory.

use std::process::ExitCode;

use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear};

/// Resident memory in MiB.
fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 % 1009) as f32 - 504.0) / 250.0).collect()
}

fn layer(n: usize, k: usize, format: Format) -> Result<QuantLinear, quant_linear::Error> {
    QuantLinear::from_dense(&values(n * k)[..], n, k, &DenseOptions::new(format))
}

/// The 210 linear layers of a small decoder: 30 blocks, hidden 576, intermediate 1536.
fn model() -> Result<(), quant_linear::Error> {
    let (h, i, kv) = (576, 1536, 192);
    let shapes = [(h, h), (kv, h), (kv, h), (h, h), (i, h), (i, h), (h, i)];
    let mut layers = Vec::new();
    let mut bytes = 0;
    for block in 0..30 * shapes.len() {
        let (n, k) = shapes[block % shapes.len()];
        bytes += n * k / 2 + n * k / 16;
        layers.push(layer(n, k, Format::NvFp4)?);
    }
    println!("model: {} layers, {:.0} MiB of codes and scales, NVFP4", layers.len(), mib(bytes));
    println!("  built: {:.0} MiB resident", resident());
    for rows in [1, 16, 64, 256, 1024] {
        let x = values(rows * i);
        for layer in &layers {
            let k = layer.in_features();
            layer.forward(&x[..rows * k], &[rows, k])?;
        }
        println!("  after a pass of {rows:>4} rows: {:.0} MiB resident", resident());
    }
    Ok(())
}

fn clones() -> Result<(), quant_linear::Error> {
    let (n, k) = (4096, 4096);
    let layer = layer(n, k, Format::MxFp4)?;
    println!("clones: a weight of {:.1} MiB, MXFP4", mib(n * k / 2 + n * k / 32));
    let x = values(k);
    layer.forward(&x, &[1, k])?;
    println!("  one layer, used: {:.0} MiB resident", resident());
    let clones: Vec<_> = (0..16).map(|_| layer.clone()).collect();
    for clone in &clones {
        clone.forward(&x, &[1, k])?;
    }
    println!("  and 16 clones, used: {:.0} MiB resident", resident());
    Ok(())
}

fn large() -> Result<(), quant_linear::Error> {
    let (n, k) = (14336, 4096);
    for format in Format::ALL {
        let before = resident();
        let layer = layer(n, k, format)?;
        let bytes = n * k / 2 + n * k / format.group().get();
        println!("layer: {n} x {k}, {format}, {:.1} MiB of codes and scales", mib(bytes));
        println!("  built: {:.1} MiB more", resident() - before);
        layer.forward(&values(k), &[1, k])?;
        println!("  used: {:.1} MiB more", resident() - before);
    }
    Ok(())
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() -> ExitCode {
    let what = std::env::args().nth(1);
    let result = match what.as_deref() {
        None => model().and_then(|()| clones()).and_then(|()| large()),
        Some("model") => model(),
        Some("clones") => clones(),
        Some("layer") => large(),
        Some(other) => {
            eprintln!("memory: expected model, clones or layer, got `{other}`");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("memory: {error}");
            ExitCode::from(2)
        }
    }
}
