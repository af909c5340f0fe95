//! The bench `summary` with its peers, at each row's shape: candle's Q4 and f32 products and gemm's
//! beside products of packed operands; ggml's, which quantize their activations, beside whole
//! layers.
//!
//! ```text
//! [FP4_GGML=FOLDER] cargo bench --manifest-path backend-cpu-simd/peers/Cargo.toml -- \
//!     [--quick] [--json] [--filter TEXT]
//! ```
//!
//! `FOLDER` has ggml's libraries: `bins/linux-x64` of npm's package `@node-llama-cpp/linux-x64`.

mod ggml;
#[path = "../../benches/summary.rs"]
mod summary;

use std::collections::BTreeMap;
use std::hint::black_box;

use ggml::Ggml;
use summary::common::{Data, Rng, values};
use summary::{Machine, Row, fastest, main_with};

fn main() {
    let ggml = Ggml::load().inspect_err(|why| eprintln!("no rows of ggml: {why}")).ok();
    main_with(&|machine, shape, row| match row.op {
        "forward" => {
            ggml.as_ref().map(|ggml| layers(ggml, machine, shape, row)).unwrap_or_default()
        }
        _ => products(machine, shape, row),
    });
}

/// The whole layer's speed over that of ggml's, with weights in the same format and in its own
/// most used one.
fn layers(
    ggml: &Ggml,
    machine: &Machine,
    [m, n, k]: [usize; 3],
    row: &Row,
) -> BTreeMap<&'static str, f64> {
    let mut peers = BTreeMap::new();
    let ours = (m * n * k) as f64 / row.value / 1e9;
    let a = values(&mut Rng(8), Data::Gaussian, m, k);
    let w = values(&mut Rng(9), Data::Gaussian, n, k);
    let types = if row.format.ends_with("mxfp4") {
        [("mxfp4", ["ggml mxfp4, repacked", "ggml mxfp4"])]
    } else {
        [("nvfp4", ["ggml nvfp4, repacked", "ggml nvfp4"])]
    };
    let types = types.into_iter().chain([("q4_0", ["ggml q4_0, repacked", "ggml q4_0"])]);
    for (ty, [repacked, plain]) in types {
        let Some(product) = ggml.product(ty, [m, n, k], [&a, &w], machine.threads) else {
            eprintln!("ggml has no {ty} product of {m} x {n} x {k}");
            continue;
        };
        let seconds = fastest(machine.clock, machine.budget, || product.run());
        check(&product.output(), [m, n, k], [&a, &w]);
        peers.insert(if product.repacked { repacked } else { plain }, seconds / ours);
    }
    peers
}

/// Compares the last row with the product of what was not quantized: 4 bits leave 10% of noise.
fn check(y: &[f32], [m, n, k]: [usize; 3], [a, w]: [&[f32]; 2]) {
    let (y, a) = (&y[(m - 1) * n..], &a[(m - 1) * k..]);
    let (mut noise, mut power) = (0.0, 0.0);
    for (y, w) in y.iter().zip(w.chunks_exact(k)) {
        let dense: f32 = a.iter().zip(w).map(|(a, w)| a * w).sum();
        noise += f64::from(y - dense).powi(2);
        power += f64::from(dense).powi(2);
    }
    assert!(noise < 0.04 * power, "another product: noise {noise} of {power}");
}

/// This row's speed over that of other libraries at the same product, weights hot.
fn products(machine: &Machine, [m, n, k]: [usize; 3], row: &Row) -> BTreeMap<&'static str, f64> {
    use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
    use candle_core::{Device, Module, Tensor};
    let bytes = (n * k / 2 + n * k / if row.format.ends_with("mxfp4") { 32 } else { 16 }) as f64;
    let ours = if row.unit == "GB/s" { bytes } else { (m * n * k) as f64 } / row.value / 1e9;
    let a = values(&mut Rng(8), Data::Gaussian, m, k);
    let w = values(&mut Rng(9), Data::Gaussian, n, k);
    let mut peers = BTreeMap::new();
    let time = |f: &mut (dyn FnMut() + Send)| {
        machine.pool.install(|| fastest(machine.clock, machine.budget, f)) / ours
    };
    let (ta, tw) = (
        Tensor::from_slice(&a, (m, k), &Device::Cpu).expect("a tensor"),
        Tensor::from_slice(&w, (n, k), &Device::Cpu).expect("a tensor"),
    );
    for (name, dtype) in [("candle q4_k", GgmlDType::Q4K), ("candle q4_0", GgmlDType::Q4_0)] {
        let q = QTensor::quantize(&tw, dtype).expect("quantizes");
        let q = QMatMul::from_qtensor(q).expect("a matmul");
        peers.insert(name, time(&mut || drop(black_box(q.forward(&ta).expect("multiplies")))));
    }
    let transposed = tw.t().expect("a matrix");
    peers.insert(
        "candle f32",
        time(&mut || {
            drop(black_box(ta.matmul(&transposed).expect("multiplies")));
        }),
    );
    let mut y = vec![0f32; m * n];
    let (y, a, w) = (y.as_mut_ptr() as usize, a.as_ptr() as usize, w.as_ptr() as usize);
    peers.insert(
        "gemm f32",
        time(&mut || {
            // SAFETY: y is (m, n), a is (m, k) and w is (n, k), row-major, for as long as this
            // runs.
            unsafe {
                gemm::gemm(
                    m,
                    n,
                    k,
                    y as *mut f32,
                    1,
                    n as isize,
                    false,
                    a as *const f32,
                    1,
                    k as isize,
                    w as *const f32,
                    k as isize,
                    1,
                    0.0,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        }),
    );
    peers
}
