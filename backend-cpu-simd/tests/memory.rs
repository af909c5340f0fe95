//! What a prepared weight and a backend's scratch hold.

#![allow(missing_docs)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use common::{Rng, each_isa};
use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_core::{Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer};

/// Counts the bytes that each thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: it hands every call on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        HELD.with(|held| held.set(held.get().wrapping_add(layout.size())));
        // SAFETY: as the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.with(|held| held.set(held.get().wrapping_sub(layout.size())));
        // SAFETY: as the caller's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The backend on one thread, that which counts.
fn on_this_thread(on: &CpuSimd) -> CpuSimd {
    thread_local! {
        static POOL: Arc<rayon::ThreadPool> = {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread();
            Arc::new(pool.build().unwrap())
        };
    }
    POOL.with(|pool| on.clone().with_pool(pool.clone()))
}

/// Weights as a model has them: normal, with heavy tails, and normal with pruned rows and columns.
fn weights(rng: &mut Rng, n: usize, k: usize) -> [(&'static str, Vec<f32>); 3] {
    let normal: Vec<f32> = (0..n * k).map(|_| rng.gauss()).collect();
    let heavy = (0..n * k).map(|_| {
        // Student's t with 4 degrees of freedom.
        let squares: f32 = (0..4).map(|_| rng.gauss().powi(2)).sum();
        rng.gauss() / (squares / 4.0).sqrt()
    });
    let heavy = heavy.collect();
    let mut pruned = normal.clone();
    for (i, w) in pruned.iter_mut().enumerate() {
        if i / k % 16 == 3 || i % k / 32 % 4 == 1 {
            *w = 0.0;
        }
    }
    [("normal", normal), ("heavy tails", heavy), ("pruned", pruned)]
}

#[test]
fn a_prepared_weight_holds_at_most_1_05_times_its_packed_bytes() {
    each_isa(|on| {
        let (on, mut rng) = (on_this_thread(on), Rng(51));
        // Portable kernels read codes as bytes, and a bit beside each.
        let most = if on.isa() == Isa::Portable { 2.25 } else { 1.05 };
        for format in Format::ALL {
            for [n, k] in [[256, 1024], [512, 1088], [272, 4096]] {
                for (name, w) in weights(&mut rng, n, k) {
                    let amax = w.iter().fold(0f32, |amax, w| amax.max(w.abs()));
                    let spec = QuantSpec::for_weight(format, amax).unwrap();
                    let input = QuantizeInput::new(&w[..], n, k, &spec).unwrap();
                    let mut packed = PackedMatrix::zeros(input.shape());
                    on.quantize(&input, &mut packed.view_mut()).unwrap();
                    let before = HELD.with(Cell::get);
                    let weight = on.prepare(packed.view()).unwrap();
                    let held = HELD.with(Cell::get).wrapping_sub(before) + size_of_val(&weight);
                    assert_eq!(weight.resident_bytes(), held, "{format} {n} x {k} {name}");
                    let bytes = packed.codes().len() + packed.scales().len();
                    let ratio = held as f64 / bytes as f64;
                    println!("{format} {n} x {k} {name}: {ratio:.4}");
                    assert!(ratio <= most, "{format} {n} x {k} {name}: {ratio}");
                }
            }
        }
    });
}

#[test]
fn scratch_is_kept_for_the_next_call_and_freed_on_request() {
    each_isa(|on| {
        if on.isa() == Isa::Portable {
            return; // its operands are made for each call
        }
        let on = on_this_thread(&CpuSimd::with_isa(on.isa()).unwrap());
        let spec = QuantSpec::usual(Format::NvFp4);
        let a = PackedMatrix::zeros(spec.shape(512, 1024).unwrap());
        let b = PackedMatrix::zeros(spec.shape(16, 1024).unwrap());
        let weight = on.prepare(b.view()).unwrap();
        let mut y = vec![0f32; 512 * 16];
        let before = HELD.with(Cell::get);
        on.matmul(a.view(), &weight, 1.0.into(), (&mut y[..]).into()).unwrap();
        let kept = on.scratch_bytes();
        assert!(kept > 512 * 1024, "{kept} bytes kept");
        assert!(HELD.with(Cell::get).wrapping_sub(before) >= kept);
        on.matmul(a.view(), &weight, 1.0.into(), (&mut y[..]).into()).unwrap();
        assert_eq!(on.scratch_bytes(), kept);
        // Clones share it.
        on.clone().release_scratch();
        assert_eq!(on.scratch_bytes(), 0);
        assert_eq!(HELD.with(Cell::get), before);
    });
}
