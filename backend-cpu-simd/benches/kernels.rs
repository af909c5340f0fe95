//! Criterion benches of each path, for watching one change at a time; the `summary` bench has the
//! comparison with rooflines. Answers are compared with the portable kernels'.

#![allow(missing_docs)]

mod common;

use common::{Data, Rng, quantized, values};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{Encoding, Matmul, PackedMatrix, Product, QuantSpec, QuantizeInput, Quantizer};

fn matmul(c: &mut Criterion) {
    let (n, k) = (4096, 4096);
    let mut group = c.benchmark_group("matmul");
    for product in Product::ALL {
        let portable = CpuSimd::with_isa(Isa::Portable).expect("every CPU");
        let w = values(&mut Rng(1), Data::Gaussian, n, k);
        let w = quantized(&portable, product.b.into(), &w, [n, k]);
        for isa in Isa::available() {
            let backend = CpuSimd::with_isa(isa).expect("available");
            let weight = backend.prepare(w.view()).expect("prepares");
            for (m, data) in [(1, Data::Gaussian), (128, Data::Gaussian), (128, Data::Outliers)] {
                let a = values(&mut Rng(2), data, m, k);
                let a = quantized(&portable, product.a, &a, [m, k]);
                let mut y = vec![0f32; m * n];
                let run = |y: &mut [f32]| {
                    backend.matmul(a.view(), &weight, 1.0.into(), y.into()).expect("multiplies")
                };
                run(&mut y);
                let mut expected = vec![0f32; m * n];
                let reference = portable.prepare(w.view()).expect("prepares");
                portable
                    .matmul(a.view(), &reference, 1.0.into(), (&mut expected[..]).into())
                    .expect("multiplies");
                let same = y.iter().zip(&expected).all(|(y, e)| y.to_bits() == e.to_bits());
                assert!(same, "{isa} {product:?} {m}: a wrong answer");
                group.throughput(Throughput::Elements((m * n * k) as u64));
                let id = format!("{} {} {isa} {}", product.a, product.b, data.name());
                group.bench_function(BenchmarkId::new(id, m), |b| b.iter(|| run(&mut y)));
            }
        }
    }
    group.finish();
}

fn quantize(c: &mut Criterion) {
    let (m, k) = (256, 4096);
    let x = values(&mut Rng(3), Data::Gaussian, m, k);
    let mut group = c.benchmark_group("quantize");
    group.throughput(Throughput::Bytes(4 * (m * k) as u64));
    for encoding in Encoding::ALL {
        let spec = QuantSpec::of(encoding);
        let input = QuantizeInput::new(&x[..], m, k, &spec).expect("a whole matrix");
        let mut expected = PackedMatrix::zeros(input.shape());
        fp4_core::reference::quantize(&input, &mut expected.view_mut()).expect("quantizes");
        for isa in Isa::available() {
            let backend = CpuSimd::with_isa(isa).expect("available");
            let mut packed = PackedMatrix::zeros(input.shape());
            backend.quantize(&input, &mut packed.view_mut()).expect("quantizes");
            assert_eq!(packed, expected, "{isa} {encoding}: a wrong answer");
            group.bench_function(format!("{encoding} {isa}"), |b| {
                b.iter(|| backend.quantize(&input, &mut packed.view_mut()).expect("quantizes"));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, matmul, quantize);
criterion_main!(benches);
