//! A thread whose floating-point environment breaks IEEE-754 gets an error, never other bits (C9).
#![cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#![allow(missing_docs)]

use std::sync::Arc;
use std::time::Instant;

use fp4_backend_cpu_simd::CpuSimd;
use fp4_backend_cpu_simd::environment::{FpChange, probe, under};
use fp4_core::{
    Error, ExactSum, Format, FpEnvironment, Matmul, PackedMatrix, Partials, QuantSpec,
    QuantizeInput, Quantizer, Transform, check_environment, nvfp4_global_scale, reference,
};

/// Calls of every entry point that computes in floating point, by name, in a changed environment.
fn calls(change: Option<FpChange>) -> Vec<(&'static str, Result<(), Error>)> {
    let spec = QuantSpec::usual(Format::NvFp4);
    let x = [1f32; 32];
    let input = QuantizeInput::new(&x[..], 1, 32, &spec).unwrap();
    let mut packed = PackedMatrix::zeros(input.shape());
    let (mut y, mut dense, mut block) = ([0f32; 1], [0f32; 32], [0f32; 16]);
    let t = [0.25f32; 256];
    let t = Transform::shared(&t[..], 16).unwrap();
    let cpu = CpuSimd::new();
    let weight = cpu.prepare(packed.clone()).unwrap();
    let mut all = || {
        vec![
            ("check", check_environment()),
            ("reference quantize", reference::quantize(&input, &mut packed.view_mut()).map(drop)),
            (
                "reference dequantize",
                reference::dequantize(packed.view(), 1.0, (&mut dense[..]).into()),
            ),
            (
                "reference matmul",
                reference::matmul(packed.view(), packed.view(), 1.0, (&mut y[..]).into()),
            ),
            (
                "reference transform",
                reference::apply_transform(x[..16].into(), 16, &t, (&mut block[..]).into()),
            ),
            ("global scale", nvfp4_global_scale(3.0).map(drop)),
            (
                "finish",
                fp4_core::finish(
                    Partials::Exact(&[ExactSum::ZERO]),
                    [1, 1],
                    1.0,
                    (&mut y[..]).into(),
                ),
            ),
            ("cpu quantize", cpu.quantize(&input, &mut packed.view_mut()).map(drop)),
            ("cpu dequantize", cpu.dequantize(packed.view(), 1.0, (&mut dense[..]).into())),
            (
                "cpu matmul",
                cpu.matmul(packed.view(), &weight, 1.0.into(), (&mut y[..]).into()).map(drop),
            ),
        ]
    };
    match change {
        // SAFETY: entry points that check the environment first.
        Some(change) => unsafe { under(change, all) },
        None => all(),
    }
}

fn kind(change: FpChange) -> FpEnvironment {
    match change {
        FpChange::FlushResults | FpChange::FlushInputs => FpEnvironment::FlushToZero,
        _ => FpEnvironment::RoundingMode,
    }
}

#[test]
fn every_entry_point_refuses_a_changed_environment() {
    let mut refused = 0;
    for change in [None].into_iter().chain(FpChange::ALL.map(Some)) {
        for (call, result) in calls(change) {
            let expected = change.map_or(Ok(()), |c| Err(Error::Environment(kind(c))));
            assert_eq!(result, expected, "{call} under {change:?}");
            refused += usize::from(result.is_err());
        }
    }
    println!("environment: {refused} calls refused");
    assert_eq!(refused, 5 * 10);
}

/// The caller's thread is as it should be, and the pool's are not: a call fails as soon as one of
/// them comes to help, and is right if none does.
#[test]
fn threads_of_a_pool_refuse_a_changed_environment() {
    let spec = QuantSpec::usual(Format::MxFp4);
    let (rows, k) = (512, 1024);
    let x = vec![1f32; rows * k];
    let input = QuantizeInput::new(&x[..], rows, k, &spec).unwrap();
    let mut packed = PackedMatrix::zeros(input.shape());
    let alone = CpuSimd::new().with_pool(pool_of(1, |run| run()));
    alone.quantize(&input, &mut packed.view_mut()).unwrap();
    let weight = alone.prepare(packed.clone()).unwrap();
    let mut right = vec![0f32; rows * rows];
    alone.matmul(packed.view(), &weight, 1.0.into(), (&mut right[..]).into()).unwrap();
    let mut refused = 0;
    for change in FpChange::ALL {
        // SAFETY: what the pool runs are tasks that check the environment first.
        let cpu = CpuSimd::new().with_pool(pool_of(2, move |run| unsafe { under(change, run) }));
        let (mut out, mut y) = (PackedMatrix::zeros(input.shape()), vec![0f32; rows * rows]);
        let expected = Err(Error::Environment(kind(change)));
        let start = Instant::now();
        // On a busy machine threads may come too late for many a call.
        let until_refused = |call: &mut dyn FnMut() -> Result<(), Error>| loop {
            match call() {
                Ok(()) => assert!(start.elapsed().as_secs() < 60, "{change:?}: nobody came"),
                result => break assert_eq!(result, expected, "{change:?}"),
            }
        };
        until_refused(&mut || {
            cpu.quantize(&input, &mut out.view_mut())?;
            assert_eq!(out, packed, "{change:?}");
            Ok(())
        });
        until_refused(&mut || {
            cpu.matmul(packed.view(), &weight, 1.0.into(), (&mut y[..]).into())?;
            assert_eq!(y, right, "{change:?}");
            Ok(())
        });
        refused += 2;
    }
    println!("environment: {refused} calls refused by pool threads");
    assert_eq!(refused, 5 * 2);
}

/// A pool of so many threads, each of which runs inside of `around`.
fn pool_of(
    threads: usize,
    around: impl Fn(&mut dyn FnMut()) + Copy + Send + 'static,
) -> Arc<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).spawn_handler(move |thread| {
        let mut thread = Some(thread);
        std::thread::spawn(move || {
            around(&mut || thread.take().into_iter().for_each(rayon::ThreadBuilder::run));
        });
        Ok(())
    });
    Arc::new(pool.build().unwrap())
}

#[test]
fn the_environment_is_restored() {
    for change in FpChange::ALL {
        // SAFETY: it checks the environment, and nothing else.
        unsafe { under(change, || assert!(check_environment().is_err())) };
        assert_eq!(check_environment(), Ok(()));
        // Unwinds without the hook, which would print a panic into the log of a run that passes.
        let unwound =
            // SAFETY: it computes nothing.
            std::panic::catch_unwind(|| unsafe {
                under(change, || std::panic::resume_unwind(Box::new(())))
            });
        assert!(unwound.is_err());
        assert_eq!(check_environment(), Ok(()));
    }
}

#[test]
fn a_probe_calls_in_the_named_environment_and_not_at_all_under_another_name() {
    for change in FpChange::ALL {
        let mut seen = Ok(());
        assert!(probe(change.name(), &mut || seen = check_environment()));
        assert_eq!(seen, Err(Error::Environment(kind(change))), "{change:?}");
        assert_eq!(check_environment(), Ok(()));
    }
    assert!(!probe("FTZ", &mut || panic!("called")));
}
