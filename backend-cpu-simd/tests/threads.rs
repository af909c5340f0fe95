//! The bits on any number of threads, of any pool, from inside of its tasks and from many callers.
#![cfg(not(target_family = "wasm"))]
#![allow(missing_docs)]

mod common;

use std::sync::Arc;

use common::{Rng, each_isa};
use fp4_backend_cpu_simd::{CpuSimd, Isa, ThreadPool, ThreadPoolBuilder};
use fp4_core::{Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer};

fn pool(threads: usize) -> Arc<ThreadPool> {
    Arc::new(ThreadPoolBuilder::new().num_threads(threads).build().unwrap())
}

/// A layer's whole way: rows quantized, the weight prepared and exported, the product, the values.
#[derive(PartialEq)]
struct Results {
    packed: PackedMatrix,
    exported: PackedMatrix,
    outputs: Vec<u32>,
    values: Vec<u32>,
}

struct Layer {
    format: Format,
    x: Vec<f32>,
    w: Vec<f32>,
    mnk: [usize; 3],
}

impl Layer {
    fn new(rng: &mut Rng, format: Format, mnk: [usize; 3]) -> Self {
        let [m, n, k] = mnk;
        let mut values = |len: usize| (0..len).map(|_| rng.gauss()).collect();
        Layer { format, x: values(m * k), w: values(n * k), mnk }
    }

    fn run(&self, on: &CpuSimd) -> Results {
        let ([m, n, k], spec) = (self.mnk, QuantSpec::usual(self.format));
        let quantized = |x: &[f32], rows: usize| {
            let mut packed = PackedMatrix::zeros(spec.shape(rows, k).unwrap());
            let input = QuantizeInput::new(x, rows, k, &spec).unwrap();
            on.quantize(&input, &mut packed.view_mut()).unwrap();
            packed
        };
        let (packed, w) = (quantized(&self.x, m), quantized(&self.w, n));
        let weight = on.prepare(w.view()).unwrap();
        let mut exported = PackedMatrix::zeros(w.shape());
        on.export_weight(&weight, &mut exported.view_mut()).unwrap();
        assert!(exported == w);
        let (mut y, mut values) = (vec![0f32; m * n], vec![0f32; m * k]);
        let paths = on.matmul(packed.view(), &weight, 0.5.into(), (&mut y[..]).into()).unwrap();
        assert_eq!(paths.narrow + paths.planes + paths.wide, (m * n) as u64);
        on.dequantize(packed.view(), 0.5, (&mut values[..]).into()).unwrap();
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect();
        Results { packed, exported, outputs: bits(y), values: bits(values) }
    }
}

/// Layers of one task and of many, few columns and many, of blocks of rows.
fn layers() -> Vec<Layer> {
    let mut rng = Rng(77);
    let shapes = [[1, 40, 64], [1, 2064, 1024], [150, 272, 256], [700, 48, 512], [37, 16, 4096]];
    let each = |mnk| Format::ALL.map(|format| Layer::new(&mut rng, format, mnk));
    shapes.into_iter().flat_map(each).collect()
}

#[test]
fn the_bits_are_the_same_on_1_2_3_and_8_threads() {
    let layers = layers();
    each_isa(|on| {
        let one = on.clone().with_pool(pool(1));
        let expected: Vec<_> = layers.iter().map(|layer| layer.run(&one)).collect();
        for threads in [2, 3, 8] {
            let pool = pool(threads);
            let many = on.clone().with_pool(pool.clone());
            for (layer, expected) in layers.iter().zip(&expected) {
                let name = format!("{} {:?} {threads} threads", layer.format, layer.mnk);
                assert!(layer.run(&many) == *expected, "{name}");
                // In the pool, and in the pool that is current.
                let inside = pool.install(|| [layer.run(&many), layer.run(on)]);
                assert!(inside.iter().all(|results| results == expected), "{name}, inside");
            }
        }
    });
}

#[test]
fn nested_calls_and_many_callers_give_the_same_bits() {
    let layers = layers();
    let on = CpuSimd::with_isa(Isa::best()).unwrap().with_pool(pool(3));
    let one = on.clone().with_pool(pool(1));
    let expected: Vec<_> = layers.iter().map(|layer| layer.run(&one)).collect();
    let check = |i: usize| assert!(layers[i].run(&on) == expected[i], "layer {i}");
    // Each task of a pool calls: this one's own pool, and another.
    for pool in [pool(2), pool(8)] {
        let own = on.clone().with_pool(pool.clone());
        pool.scope(|tasks| {
            for (layer, expected) in layers.iter().zip(&expected) {
                let (on, own) = (&on, &own);
                tasks.spawn(move |_| {
                    assert!(layer.run(own) == *expected && layer.run(on) == *expected);
                });
            }
        });
    }
    // Callers that are of no pool share one.
    std::thread::scope(|callers| {
        for first in 0..4 {
            let (check, count) = (&check, layers.len());
            callers.spawn(move || (0..count).for_each(|i| check((first + i) % count)));
        }
    });
}
