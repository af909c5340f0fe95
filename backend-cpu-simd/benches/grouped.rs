//! Several products in one call against the loop over them: experts of a mixture, projections.
//!
//! ```text
//! cargo bench -p fp4-backend-cpu-simd --bench grouped -- [--quick]
//! ```
//!
//! Packed activations in, f32 out. Every answer is compared with the loop's. Loop and grouped call
//! take turns; a time is the fastest of the samples, one thread by its processor time, several by
//! the wall.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Data, Rng, quantized, values};
use fp4_backend_cpu_simd::{CpuSimd, ThreadPoolBuilder};
use fp4_core::{Encoding, Format, GroupedProduct, Matmul, PackedMatrix};

/// The rows of each product, and what to call them.
struct Mix {
    name: &'static str,
    rows: Vec<usize>,
    /// N and K of all.
    weight: [usize; 2],
    /// All products read one A.
    one_input: bool,
}

fn mixes() -> Vec<Mix> {
    let upto_50: Vec<usize> = (0..64).map(|i| i * 29 % 51).collect();
    let skewed = (0..64).map(|i| if i == 9 { 1600 } else { i * 29 % 51 }).collect();
    let mix = |name, rows, weight, one_input| Mix { name, rows, weight, one_input };
    vec![
        mix("64 experts, 0 to 50 rows", upto_50.clone(), [1024, 384], false),
        mix("64 experts, 0 to 50 rows", upto_50, [384, 1024], false),
        mix("64 experts, one with 1600 rows", skewed, [1024, 384], false),
        mix("8 experts, 1 row", vec![1; 8], [1024, 384], false),
        mix("64 experts, 1 row", vec![1; 64], [1024, 384], false),
        mix("3 weights of one input, 1 row", vec![1; 3], [384, 384], true),
        mix("3 weights of one input, 128 rows", vec![128; 3], [384, 384], true),
    ]
}

/// Seconds of the calling thread, or of the wall.
fn now(threads: usize, start: Instant) -> f64 {
    #[cfg(unix)]
    if threads == 1 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is writable.
        let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
        assert_eq!(failed, 0, "the thread's clock");
        return time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9;
    }
    start.elapsed().as_secs_f64()
}

/// Times of the loop and of the grouped call, in seconds.
fn measure(
    backend: &CpuSimd,
    threads: usize,
    format: Format,
    mix: &Mix,
    budget: Duration,
) -> [f64; 2] {
    let (mut rng, [n, k]) = (Rng(7), mix.weight);
    let mut packed = |encoding: Encoding, rows: usize| {
        quantized(backend, encoding, &values(&mut rng, Data::Gaussian, rows, k), [rows, k])
    };
    let a: Vec<PackedMatrix> = match mix.one_input {
        true => vec![packed(format.into(), mix.rows[0])],
        false => mix.rows.iter().map(|&rows| packed(format.into(), rows)).collect(),
    };
    let a_of = |i: usize| &a[if mix.one_input { 0 } else { i }];
    let weights: Vec<_> = (0..mix.rows.len())
        .map(|_| backend.prepare(packed(format.into(), n)).expect("a weight"))
        .collect();
    let outputs: Vec<Vec<f32>> = mix.rows.iter().map(|rows| vec![0.0; rows * n]).collect();
    let (mut alone, mut together) = (outputs.clone(), outputs);
    let looped = |out: &mut [Vec<f32>]| {
        for (i, (weight, out)) in weights.iter().zip(out).enumerate() {
            let out = (&mut out[..]).into();
            backend.matmul(a_of(i).view(), weight, 0.1.into(), out).expect("a product");
        }
    };
    let grouped = |out: &mut [Vec<f32>]| {
        let product = |(i, (weight, out))| {
            let out: &mut Vec<f32> = out;
            GroupedProduct::new(PackedMatrix::view(a_of(i)), weight, 0.1, &mut out[..])
        };
        let mut products: Vec<_> = weights.iter().zip(out).enumerate().map(product).collect();
        backend.grouped(&mut products).expect("products");
    };
    looped(&mut alone);
    grouped(&mut together);
    assert!(alone == together, "{}: the grouped call differs", mix.name);
    let (start, mut best, mut samples) = (Instant::now(), [f64::INFINITY; 2], 0);
    while samples < 5 || start.elapsed() < budget {
        let began = now(threads, start);
        looped(&mut alone);
        let between = now(threads, start);
        grouped(&mut together);
        let ended = now(threads, start);
        best = [best[0].min(between - began), best[1].min(ended - between)];
        samples += 1;
    }
    best
}

fn main() {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let budget = Duration::from_millis(if quick { 200 } else { 2000 });
    println!("{}, microseconds, GMAC/s of the grouped call", CpuSimd::new().isa());
    println!("| products | N x K | format | threads | loop | grouped | loop / grouped | GMAC/s |");
    println!("|---|---|---|---|---|---|---|---|");
    for threads in [1, 2] {
        let pool = ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        let backend = CpuSimd::new().with_pool(Arc::new(pool));
        for mix in mixes() {
            for format in Format::ALL {
                let [alone, together] = measure(&backend, threads, format, &mix, budget);
                let [n, k] = mix.weight;
                let macs = mix.rows.iter().sum::<usize>() * n * k;
                println!(
                    "| {} | {n} x {k} | {format} | {threads} | {:.1} | {:.1} | {:.2} | {:.0} |",
                    mix.name,
                    alone * 1e6,
                    together * 1e6,
                    alone / together,
                    macs as f64 / together * 1e-9
                );
            }
        }
    }
}
