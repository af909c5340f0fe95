//! Speeds of every instruction set that this machine or build has kernels for, on one thread, in
//! one run. The benches compare with rooflines and other libraries; this runs on every target, WASM
//! included.
//!
//! ```text
//! cargo run --release -p fp4-backend-cpu-simd --example instruction_sets [NAME...]
//! ```
//!
//! With names, such as `avx2 portable`, those only.

#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer, Transform};

/// N and K.
const N: usize = 1024;

/// Seconds of the fastest of some calls, of at least 0.3 s in total.
fn fastest(mut call: impl FnMut()) -> f64 {
    call();
    let (mut best, mut total) = (f64::INFINITY, 0.0);
    while total < 0.3 {
        let start = Instant::now();
        call();
        let took = start.elapsed().as_secs_f64();
        (best, total) = (best.min(took), total + took);
    }
    best
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let names: Result<Vec<Isa>, _> = std::env::args().skip(1).map(|name| name.parse()).collect();
    let mut isas = names?;
    if isas.is_empty() {
        isas.extend(Isa::available());
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build()?;
    let pool = Arc::new(pool);
    // Sums of four uniform numbers, near enough to Gaussian.
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut values = |len: usize| -> Vec<f32> {
        (0..len).map(|_| uniform() + uniform() + uniform() + uniform()).collect()
    };
    let (w, x) = (values(N * N), values(128 * N));
    println!(
        "N = K = {N}, one thread; f32 in GB/s: quantized, transformed by blocks of 32 and quantized, \
         dequantized; matmul in GMAC/s"
    );
    let mut hadamard = [0f32; 32 * 32];
    fp4_core::hadamard(32, &mut hadamard)?;
    let transform = Transform::shared(&hadamard[..], 32)?;
    for format in Format::ALL {
        let spec = QuantSpec::usual(format);
        let mut expected: Option<(PackedMatrix, Vec<f32>)> = None;
        for &isa in &isas {
            let cpu = CpuSimd::with_isa(isa)?.with_pool(pool.clone());
            let quantized = |x: &[f32]| -> Result<PackedMatrix, fp4_core::Error> {
                let input = QuantizeInput::new(x, x.len() / N, N, &spec)?;
                let mut packed = PackedMatrix::zeros(input.shape());
                cpu.quantize(&input, &mut packed.view_mut())?;
                Ok(packed)
            };
            let (a, weight) = (quantized(&x)?, cpu.prepare(quantized(&w)?)?);
            let input = QuantizeInput::new(&x[..], 128, N, &spec)?;
            let mut to = PackedMatrix::zeros(input.shape());
            let seconds = fastest(|| {
                cpu.quantize(&input, &mut to.view_mut()).expect("it did");
            });
            let speed = |seconds: f64| (4 * x.len()) as f64 / seconds / 1e9;
            print!("{format} {isa:12}  quantize {:6.3}", speed(seconds));
            let input = input.with_transform(Some(transform))?;
            let seconds = fastest(|| {
                cpu.quantize(&input, &mut to.view_mut()).expect("it did");
            });
            print!("  transform {:6.3}", speed(seconds));
            let mut dense = vec![0f32; x.len()];
            let gs = spec.global_scale();
            let seconds = fastest(|| {
                cpu.dequantize(a.view(), gs, (&mut dense[..]).into()).expect("it did");
            });
            print!("  dequantize {:6.3}", speed(seconds));
            let mut y = vec![0f32; 128 * N];
            for m in [1, 8, 128] {
                let (a, y) = (a.view().rows_range(0..m)?, &mut y[..m * N]);
                let seconds = fastest(|| {
                    cpu.matmul(a, &weight, 1.0.into(), (&mut *y).into()).expect("it did");
                });
                print!("  M = {m} {:7.2}", (m * N * N) as f64 / seconds / 1e9);
            }
            println!();
            match &expected {
                None => expected = Some((a, y)),
                Some((first, bits)) => {
                    assert!(a == *first, "{isa}: other codes or scales");
                    let same = y.iter().zip(bits).all(|(y, e)| y.to_bits() == e.to_bits());
                    assert!(same, "{isa}: other bits");
                }
            }
        }
    }
    Ok(())
}
