//! What layers cost in resident memory: a model over batches of growing size, clones, one large
//! layer; and what loading the layers of a model one by one takes.
//!
//! ```sh
//! cargo run --release -p quant-linear --example memory       # all; or: model, clones, layer, load
//! ```
//!
//! Linux only: it reads the resident size of its own process. Numbers are MiB of resident memory.
//! With glibc set `MALLOC_MMAP_THRESHOLD_=131072`: else it keeps freed blocks of this size, and
//! what is freed does not show.

use std::process::ExitCode;

use fp4_core::Format;
use quant_linear::checkpoint::Checkpoint;
use quant_linear::{DenseOptions, LoadOptions, QuantLinear, safetensors};

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

/// Hidden and intermediate features, and those of keys and values, of a small decoder.
const H: usize = 576;
const I: usize = 1536;
const KV: usize = 192;
/// Its 210 linear layers: 7 in each of 30 blocks.
const LAYERS: usize = 210;
const SHAPES: [(usize, usize); 7] = [(H, H), (KV, H), (KV, H), (H, H), (I, H), (I, H), (H, I)];

fn model() -> Result<(), quant_linear::Error> {
    let mut layers = Vec::new();
    let mut bytes = 0;
    for block in 0..LAYERS {
        let (n, k) = SHAPES[block % SHAPES.len()];
        bytes += n * k / 2 + n * k / 16;
        layers.push(layer(n, k, Format::NvFp4)?);
    }
    println!("model: {} layers, {:.0} MiB of codes and scales, NVFP4", layers.len(), mib(bytes));
    println!("  built: {:.0} MiB resident", resident());
    for rows in [1, 16, 64, 256, 1024] {
        let x = values(rows * I);
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

/// Loads each layer of a model by its path and prefix, and all from one open checkpoint.
fn load() -> Result<(), quant_linear::Error> {
    let folder = std::env::temp_dir().join(format!("fp4-load-{}", std::process::id()));
    let io = |source| quant_linear::Error::Io { action: "making", path: folder.clone(), source };
    std::fs::create_dir_all(&folder).map_err(io)?;
    let path = folder.join("model.safetensors");
    let made: Vec<_> =
        SHAPES.iter().map(|&(n, k)| layer(n, k, Format::NvFp4)).collect::<Result<_, _>>()?;
    let mut state = Vec::new();
    for block in 0..LAYERS {
        state.extend(made[block % made.len()].state_dict(&format!("layers.{block}"))?);
    }
    let bytes = safetensors::serialize(state, None)?;
    println!("load: {LAYERS} layers, a file of {:.0} MiB", mib(bytes.len()));
    std::fs::write(&path, bytes).map_err(io)?;

    let options = LoadOptions::default();
    let start = std::time::Instant::now();
    for block in 0..LAYERS {
        QuantLinear::load(&path, &format!("layers.{block}"), &options)?;
    }
    println!("  each by path and prefix: {:.3} s", start.elapsed().as_secs_f64());
    let start = std::time::Instant::now();
    let checkpoint = Checkpoint::open(&path)?;
    for block in 0..LAYERS {
        QuantLinear::from_state(&checkpoint, &format!("layers.{block}"), &options)?;
    }
    println!("  all from one open checkpoint: {:.3} s", start.elapsed().as_secs_f64());
    std::fs::remove_dir_all(&folder).map_err(io)
}

fn mib(bytes: usize) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn main() -> ExitCode {
    let what = std::env::args().nth(1);
    let result = match what.as_deref() {
        None => model().and_then(|()| clones()).and_then(|()| large()).and_then(|()| load()),
        Some("model") => model(),
        Some("clones") => clones(),
        Some("layer") => large(),
        Some("load") => load(),
        Some(other) => {
            eprintln!("memory: expected model, clones, layer or load, got `{other}`");
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
