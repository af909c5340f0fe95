//! The bench `summary` with its peers: candle's Q4 and f32 products and gemm's, at each row's
//! shape.
//!
//! ```text
//! cargo bench --manifest-path backend-cpu-simd/peers/Cargo.toml -- \
//!     [--quick] [--json] [--filter TEXT]
//! ```

#[path = "../../benches/summary.rs"]
mod summary;

use std::collections::BTreeMap;
use std::hint::black_box;

use summary::common::{Data, Rng, values};
use summary::{Machine, Row, fastest, main_with};

fn main() {
    main_with(peers);
}

/// This row's speed over that of other libraries at the same product, weights hot.
fn peers(machine: &Machine, [m, n, k]: [usize; 3], row: &Row) -> BTreeMap<&'static str, f64> {
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
