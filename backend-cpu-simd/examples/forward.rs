//! Repeats the forward of one layer, f32 in and out, for a profiler, and prints its parts' times.
//!
//! ```text
//! cargo build --release -p fp4-backend-cpu-simd --example forward
//! perf record -F 20000 target/release/examples/forward mxfp4 avx512-vnni 128 384 384
//! perf report
//! ```
//!
//! Arguments: the format, the instruction set, M, N, K, and the output type, `f32` if there is
//! none. One thread; a time is the fastest of many calls.

#![allow(missing_docs)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use fp4_backend_cpu_simd::{CpuSimd, CpuTensor, Isa};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    FloatSlice, FloatType, Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer,
};

/// How long the calls are repeated.
const BUDGET: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if !matches!(args.len(), 5 | 6) {
        return Err("give FORMAT ISA M N K, and f16 or bf16 for such outputs".into());
    }
    let (format, isa): (Format, Isa) = (args[0].parse()?, args[1].parse()?);
    let (m, n, k): (usize, usize, usize) = (args[2].parse()?, args[3].parse()?, args[4].parse()?);
    let out: FloatType = args.get(5).map_or(Ok(FloatType::F32), |arg| arg.parse())?;

    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build()?;
    let backend = CpuSimd::with_isa(isa)?.with_pool(Arc::new(pool));
    let spec = QuantSpec::usual(format);
    let values = |rows: usize, seed: u64| -> Vec<f32> {
        let mut state = seed;
        let mut unit = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as f32 / (1u64 << 24) as f32
        };
        // Sums of uniform numbers are near to normal ones.
        (0..rows * k).map(|_| (0..6).map(|_| unit()).sum::<f32>() - 3.0).collect()
    };
    let (x, w) = (values(m, 1), values(n, 2));
    let mut packed = PackedMatrix::zeros(spec.shape(n, k)?);
    backend.quantize(&QuantizeInput::new(&w[..], n, k, &spec)?, &mut packed.view_mut())?;
    let weight = backend.prepare(packed.view())?;
    let (mut operand, mut y) = (backend.empty_operand()?, backend.empty_tensor()?);

    let (mut quantize, mut multiply) = (f64::INFINITY, f64::INFINITY);
    let start = Instant::now();
    while start.elapsed() < BUDGET {
        let begun = Instant::now();
        let source: Source<'_, CpuTensor> = Source::Host(FloatSlice::from(&x[..]));
        backend.quantize_resident(source, [m, k], &spec, None, &mut operand, None)?;
        let between = Instant::now();
        let sink = Sink::Resident(&mut y, out);
        backend.matmul_resident(&operand, &weight, 1.0.into(), sink)?;
        quantize = quantize.min((between - begun).as_secs_f64());
        multiply = multiply.min(between.elapsed().as_secs_f64());
    }
    let rate = (m * n * k) as f64 / (quantize + multiply) / 1e9;
    println!(
        "{format} {isa} {m} x {n} x {k} to {out}: quantize and pack {:.2} us, multiply {:.2} us, \
         {rate:.1} GMAC/s",
        quantize * 1e6,
        multiply * 1e6,
    );
    Ok(())
}
