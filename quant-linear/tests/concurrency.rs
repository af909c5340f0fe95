//! Layers called from many threads: nothing hangs, nothing is made twice for clones, no bit
//! changes.

#![allow(missing_docs)]

mod common;
mod mock;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use common::values;
use fp4_core::backend::erased::Backend;
use fp4_core::{Float, Format};
use mock::MockDevice;
use quant_linear::{Backends, DenseOptions, Parts, QuantLinear, Runtime};
use rayon::prelude::*;

/// Large enough for preparing and multiplying to be parallel work.
const OUT: usize = 256;
const IN: usize = 1024;

/// Runs `f` on a thread of its own and fails, rather than hang, if it does not end.
fn watched<R: Send + 'static>(what: &str, f: impl FnOnce() -> R + Send + 'static) -> R {
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || send.send(f()));
    match receive.recv_timeout(Duration::from_secs(120)) {
        Ok(result) => result,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("{what}: hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => panic!("{what}: panicked"),
    }
}

fn dense(format: Format, seed: u64) -> QuantLinear {
    let weight = values(seed, OUT * IN);
    QuantLinear::from_dense(&weight[..], OUT, IN, &DenseOptions::new(format)).unwrap()
}

/// The same layer with nothing prepared.
fn fresh(layer: &QuantLinear) -> QuantLinear {
    QuantLinear::from_parts(Parts {
        weight: layer.weight().unwrap(),
        transform: layer.transform().cloned(),
        weight_global_scale: layer.weight_global_scale(),
        activation_global_scale: Some(layer.activation_global_scale()),
        activation_scale_scale: Some(layer.activation_scale_scale()),
        activations: quant_linear::ActivationEncoding::Own,
    })
    .unwrap()
}

fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

#[test]
fn a_fresh_layer_called_from_tasks_of_a_pool_does_not_hang() {
    watched("fresh layers in a pool", || {
        let x = values(2, 8 * IN);
        for format in Format::ALL {
            let first = dense(format, 1);
            let expected = first.forward(&x, &[8, IN]).unwrap();
            for threads in [2, 4, 16] {
                let pool = pool(threads);
                for round in 0..24 {
                    let layer = fresh(&first);
                    pool.install(|| {
                        (0..2 * threads).into_par_iter().for_each(|_| {
                            let y = layer.forward(&x, &[8, IN]).unwrap();
                            assert_eq!(y, expected, "{format}, {threads} threads, round {round}");
                        });
                    });
                }
            }
        }
    });
}

#[test]
fn a_fresh_layer_called_from_spawned_tasks_does_not_hang() {
    watched("fresh layers spawned", || {
        let x: Arc<Vec<f32>> = Arc::new(values(2, 8 * IN));
        let first = dense(Format::MxFp4, 1);
        let expected = first.forward(&x[..], &[8, IN]).unwrap();
        for _ in 0..24 {
            let (layer, (send, receive)) = (Arc::new(fresh(&first)), mpsc::channel());
            for _ in 0..16 {
                let (layer, x, send) = (layer.clone(), x.clone(), send.clone());
                rayon::spawn(move || send.send(layer.forward(&x[..], &[8, IN]).unwrap()).unwrap());
            }
            drop(send);
            let results: Vec<_> = receive.iter().collect();
            assert_eq!(results.len(), 16);
            assert!(results.iter().all(|y| *y == expected));
        }
    });
}

#[test]
fn two_fresh_layers_in_opposite_order_do_not_hang() {
    watched("two layers in opposite order", || {
        let x = values(2, 8 * IN);
        let (a, b) = (dense(Format::MxFp4, 1), dense(Format::NvFp4, 2));
        let expected = [&a, &b].map(|layer| layer.forward(&x, &[8, IN]).unwrap());
        for threads in [2, 4, 16] {
            let pool = pool(threads);
            for _ in 0..24 {
                let layers = [fresh(&a), fresh(&b)];
                pool.install(|| {
                    (0..2 * threads).into_par_iter().for_each(|task| {
                        for i in 0..2 {
                            let at = (task + i) % 2;
                            let y = layers[at].forward(&x, &[8, IN]).unwrap();
                            assert_eq!(y, expected[at]);
                        }
                    });
                });
            }
        }
    });
}

#[test]
fn prepare_from_many_threads_beside_forwards_changes_no_bit() {
    watched("prepare and forward", || {
        let x = values(2, 8 * IN);
        let first = dense(Format::NvFp4, 1);
        let expected = first.forward(&x, &[8, IN]).unwrap();
        for _ in 0..24 {
            let layer = fresh(&first);
            std::thread::scope(|scope| {
                for i in 0..8 {
                    let (layer, x, expected) = (&layer, &x, &expected);
                    scope.spawn(move || {
                        if i % 2 == 0 {
                            layer.prepare().unwrap();
                        }
                        assert_eq!(layer.forward(x, &[8, IN]).unwrap(), *expected);
                    });
                }
            });
        }
    });
}

#[test]
fn clones_share_what_is_prepared() {
    let mock = MockDevice::default();
    let weight = values(1, 5 * 64);
    let mut layer =
        QuantLinear::from_dense(&weight[..], 5, 64, &DenseOptions::new(Format::MxFp4)).unwrap();
    layer.set_backends(Backends::none().with(Backend::resident(mock.clone())));
    let before = layer.clone();
    layer.prepare().unwrap();
    let x = values(2, 3 * 64);
    let expected = layer.forward(&x, &[3, 64]).unwrap();
    for _ in 0..16 {
        let clone = before.clone();
        assert_eq!(clone.forward(&x, &[3, 64]).unwrap(), expected);
    }
    assert_eq!(mock.transfers.prepared.load(SeqCst), 1);
}

#[test]
fn forms_of_backends_that_are_gone_are_dropped() {
    let first = MockDevice::default();
    let weight = values(1, 5 * 64);
    let layer =
        QuantLinear::from_dense(&weight[..], 5, 64, &DenseOptions::new(Format::MxFp4)).unwrap();
    let kept = layer.clone();
    for _ in 0..8 {
        // A clone of its own backends, gone again: the shared weight must not keep their forms.
        let mut clone = layer.clone();
        clone.set_backends(Backends::none().with(Backend::resident(first.clone())));
        clone.prepare().unwrap();
    }
    assert!(first.transfers.alive.load(SeqCst) <= 2, "{:?}", first.transfers);
    drop((layer, kept));
    assert_eq!(first.transfers.alive.load(SeqCst), 0);
}

#[test]
fn scratch_is_shared_by_layers_bounded_and_released() {
    const LIMIT: usize = 1 << 20;
    let runtime = Runtime::new(Backends::available()).with_scratch_limit(LIMIT);
    let mut layers: Vec<_> = (0..12).map(|i| dense(Format::ALL[i % 2], i as u64)).collect();
    layers.iter_mut().for_each(|layer| layer.set_runtime(&runtime));
    for rows in [1, 16, 64] {
        let x = values(2, rows * IN);
        layers[0].forward(&x, &[rows, IN]).unwrap();
        let one = runtime.scratch_bytes();
        assert!(one > 0 && one <= LIMIT, "{rows} rows: {one} bytes");
        for layer in &layers {
            layer.forward(&x, &[rows, IN]).unwrap();
        }
        let all = runtime.scratch_bytes();
        assert!(all <= 2 * one, "12 layers hold {all} bytes, one of them {one}: not shared");
    }
    // A batch that needs more than the limit leaves nothing of it behind.
    let rows = 2048;
    layers[0].forward(&values(2, rows * IN), &[rows, IN]).unwrap();
    assert!(runtime.scratch_bytes() <= LIMIT, "{}", runtime.scratch_bytes());
    runtime.release_scratch().unwrap();
    assert_eq!(runtime.scratch_bytes(), 0);
    let x = values(2, IN);
    let mut y = vec![0f32; OUT];
    layers[0].forward_into(f32::wrap(&x), 1, f32::wrap_mut(&mut y)).unwrap();
}

#[test]
fn layers_of_one_runtime_share_its_devices() {
    let mock = MockDevice::default();
    let runtime = Runtime::new(Backends::none().with(Backend::resident(mock.clone())));
    let mut layers: Vec<_> = (0..4)
        .map(|i| {
            let weight = values(i, 64 * 64);
            let options = DenseOptions::new(Format::MxFp4);
            QuantLinear::from_dense(&weight[..], 64, 64, &options).unwrap()
        })
        .collect();
    for layer in &mut layers {
        layer.set_runtime(&runtime);
        layer.set_device(Some(mock::MOCK)).unwrap();
    }
    let x = values(2, 3 * 64);
    let mut expected = x.clone();
    for layer in &layers {
        expected = layer.forward(&expected, &[3, 64]).unwrap();
    }
    mock.transfers.take();
    let mut tensor = layers[0].upload(f32::wrap(&x), &[3, 64]).unwrap();
    for layer in &layers {
        tensor = layer.forward_device(&tensor).unwrap();
    }
    assert_eq!(mock.transfers.take(), (1, 0), "nothing crosses between layers");
    assert_eq!(tensor.to_host().unwrap(), quant_linear::FloatVec::F32(expected));
}
