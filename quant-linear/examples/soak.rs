//! A soak: threads call 20 layers in every way at once, for a while; no bit may change, and memory
//! must stay flat.
//!
//! ```sh
//! cargo run --release -p quant-linear --example soak -- 600     # seconds; 8 threads
//! ```
//!
//! Each step of a thread takes one of the shared layers and, by chance, runs it, clones and drops
//! it, prepares it, replaces it by a fresh one, or moves it to other backends. Every output is
//! compared with the reference's. Exits with 1 if a bit differs, or if the resident memory of the
//! last tenth is above that of the second by more than a twentieth and 4 MiB, which the allocator
//! needs (Linux; elsewhere memory is not measured).

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use fp4_core::Format;
use quant_linear::{Backends, DenseOptions, Parts, QuantLinear, Runtime};

const THREADS: usize = 8;
const LAYERS: usize = 20;
const ROWS: [usize; 4] = [1, 3, 17, 64];

/// A layer that threads share, its shape, and the reference's outputs for each number of rows.
struct Slot {
    layer: Mutex<QuantLinear>,
    in_features: usize,
    expected: Vec<Vec<f32>>,
}

fn values(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..len).map(|_| (next() + next() + next() - 1.5) * 2.0).collect()
}

fn slot(i: usize) -> Result<Slot, quant_linear::Error> {
    let (n, k) = (96 + 32 * (i % 5), 128 + 128 * (i % 3));
    let options = DenseOptions::new(Format::ALL[i % 2]);
    let mut layer = QuantLinear::from_dense(&values(i as u64, n * k)[..], n, k, &options)?;
    let mut reference = layer.clone();
    reference.set_backends(Backends::reference());
    let expected = ROWS.map(|rows| reference.forward(&x(rows, k), &[rows, k]));
    layer.set_name(&format!("layer.{i}"));
    let expected = expected.into_iter().collect::<Result<_, _>>()?;
    Ok(Slot { layer: Mutex::new(layer), in_features: k, expected })
}

fn x(rows: usize, k: usize) -> Vec<f32> {
    values(rows as u64 + 1000, rows * k)
}

/// A layer with the same weight and nothing prepared.
fn fresh(layer: &QuantLinear) -> Result<QuantLinear, quant_linear::Error> {
    QuantLinear::from_parts(Parts {
        weight: layer.weight()?,
        transform: layer.transform().cloned(),
        weight_global_scale: layer.weight_global_scale(),
        activation_global_scale: Some(layer.activation_global_scale()),
        activation_scale_scale: Some(layer.activation_scale_scale()),
        activations: quant_linear::ActivationEncoding::Own,
    })
}

/// Resident memory in KiB.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

/// One thread's work until `stop`: calls and values compared.
fn work(
    seed: u64,
    slots: &[Slot],
    runtimes: &[Runtime],
    stop: &AtomicBool,
    compared: &AtomicU64,
    differ: &AtomicU64,
) -> Result<(), quant_linear::Error> {
    let mut state = seed;
    let mut chance = |n: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 33) as usize % n
    };
    while !stop.load(Relaxed) {
        let slot = &slots[chance(slots.len())];
        let shared = || slot.layer.lock().unwrap_or_else(PoisonError::into_inner);
        let mut layer = shared().clone();
        match chance(8) {
            0 => layer.prepare()?,
            1 => layer.set_backends(Backends::available()),
            2 => {
                layer = fresh(&layer)?;
                layer.set_runtime(&runtimes[chance(runtimes.len())]);
                *shared() = layer.clone();
            }
            3 => {
                let mut other = layer.clone();
                other.set_runtime(&runtimes[chance(runtimes.len())]);
                *shared() = other;
            }
            _ => {}
        }
        let at = chance(ROWS.len());
        let y = layer.forward(&x(ROWS[at], slot.in_features), &[ROWS[at], slot.in_features])?;
        let wrong = y.iter().zip(&slot.expected[at]).filter(|(a, b)| a.to_bits() != b.to_bits());
        differ.fetch_add(wrong.count() as u64, Relaxed);
        compared.fetch_add(y.len() as u64, Relaxed);
    }
    Ok(())
}

fn main() -> ExitCode {
    let seconds = match std::env::args().nth(1).map(|s| s.parse::<u64>()) {
        None => 10,
        Some(Ok(seconds)) if seconds >= 10 => seconds,
        Some(_) => {
            eprintln!("soak: expected a number of seconds, 10 or more");
            return ExitCode::from(2);
        }
    };
    match soak(seconds) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: {error}");
            ExitCode::from(2)
        }
    }
}

fn soak(seconds: u64) -> Result<bool, quant_linear::Error> {
    let slots = (0..LAYERS).map(slot).collect::<Result<Vec<_>, _>>()?;
    let runtimes = [
        Runtime::shared().clone(),
        Runtime::new(Backends::available()),
        Runtime::new(Backends::reference()).with_scratch_limit(1 << 16),
    ];
    let (stop, compared, differ) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let failed = AtomicBool::new(false);
    let started = Instant::now();
    let mut memory = Vec::new();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (slots, runtimes, failed) = (&slots, &runtimes, &failed);
            let (stop, compared, differ) = (&stop, &compared, &differ);
            scope.spawn(move || {
                if let Err(error) = work(thread as u64, slots, runtimes, stop, compared, differ) {
                    eprintln!("soak: thread {thread}: {error}");
                    failed.store(true, Relaxed);
                }
            });
        }
        for tenth in 1..=10 {
            let until = Duration::from_millis(seconds * 100 * tenth);
            while started.elapsed() < until {
                std::thread::sleep(Duration::from_millis(200));
            }
            let kib = resident();
            memory.push(kib);
            let mib = kib.map_or("not measured".into(), |kib| format!("{} MiB", kib / 1024));
            println!(
                "{:>5} s: {} values compared, {} differ, resident {mib}",
                started.elapsed().as_secs(),
                compared.load(Relaxed),
                differ.load(Relaxed)
            );
        }
        stop.store(true, Relaxed);
    });
    let flat = match (memory[1], memory[9]) {
        (Some(early), Some(late)) => late <= early + early / 20 + 4096,
        _ => true,
    };
    let (compared, differ) = (compared.load(Relaxed), differ.load(Relaxed));
    println!(
        "soak: {THREADS} threads, {LAYERS} layers, {compared} values compared, {differ} differ, memory {}",
        if flat { "flat" } else { "NOT flat" }
    );
    Ok(differ == 0 && compared > 0 && flat && !failed.load(Relaxed))
}
