//! What depends on the process's surroundings: failures, devices, warp orders, the cache, a machine
//! without NVRTC. Each case runs a test marked `ignore` in a process of its own, because the driver
//! library reads its environment once; that the process ends well shows that it stayed alive.
//!
//! Needs the stand-in of `emulator/` and NVRTC in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use common::{Rng, operand, passes_apart, same_bits};
use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::{
    DeviceError, Error, Format, Matmul, PackedMatrix, QuantSpec, QuantizeInput, Quantizer,
    Unsupported, Version, bf16, reference,
};
use sha2::{Digest, Sha256};

/// Quantizes and multiplies by every kernel file, and compares with the reference.
fn work(cuda: &Cuda) -> Result<(), Error> {
    let mut rng = Rng(31);
    for format in Format::ALL {
        let (m, n, k) = (70, 67, 320);
        let spec = QuantSpec::usual(format);
        let x: Vec<f32> = (0..m * k).map(|_| rng.value()).collect();
        let b = operand(&mut rng, format, n, k, |rng| 0x30 + rng.byte() % 24);
        let input = QuantizeInput::new(&x[..], m, k, &spec)?;
        let (mut got, mut expected) =
            (PackedMatrix::zeros(input.shape()), PackedMatrix::zeros(input.shape()));
        reference::quantize(&input, &mut expected.view_mut())?;
        let mut y = vec![0f32; m * n];
        reference::matmul(expected.view(), b.view(), 0.3, (&mut y[..]).into())?;

        cuda.quantize(&input, &mut got.view_mut())?;
        assert_eq!(got.view(), expected.view());
        let weight = cuda.prepare(b.view())?;
        let mut z = vec![0f32; m * n];
        cuda.matmul(got.view(), &weight, 0.3.into(), (&mut z[..]).into())?;
        same_bits(&z, &y, "matmul");
        for kernel in [MatmulKernel::Naive, MatmulKernel::Mma, MatmulKernel::Decode { ranges: 2 }] {
            z.fill(7.0);
            let cuda = cuda.clone().with_matmul_kernel(kernel);
            cuda.matmul(got.view(), &weight, 0.3.into(), (&mut z[..]).into())?;
            same_bits(&z, &y, &format!("{kernel:?}"));
        }
    }
    Ok(())
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_works() {
    work(&Cuda::open(0).unwrap()).unwrap();
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_reports_what_failed() {
    let outcome = Cuda::open(0).and_then(|cuda| work(&cuda));
    match outcome {
        Ok(()) => println!("outcome: nothing failed"),
        Err(Error::Device(DeviceError::OutOfMemory { bytes })) => {
            assert!(bytes > 0);
            println!("outcome: out of memory");
        }
        Err(Error::Device(DeviceError::Lost)) => println!("outcome: lost"),
        Err(other) => println!("outcome: {other}"),
    }
    // The process goes on: with the reference, and asking for the device again does not panic.
    let b = operand(&mut Rng(1), Format::NvFp4, 2, 16, |_| 0x38);
    reference::matmul(b.view(), b.view(), 1.0, (&mut [0f32; 4][..]).into()).unwrap();
    let _ = fp4_backend_cuda::open(0);
}

#[test]
fn failures_are_values_and_the_process_lives() {
    let mut seen = Vec::new();
    for (fault, numbers, expected) in [
        ("alloc", [1, 2, 3, 5, 8], "outcome: out of memory"),
        ("launch", [1, 2, 3, 5, 7], "outcome: lost"),
        ("sync", [1, 2, 3, 4, 5], "outcome: lost"),
    ] {
        for n in numbers {
            let fail = format!("{fault}:{n}");
            let text = passes_apart("child_reports_what_failed", &[("FP4_EMULATOR_FAIL", &fail)]);
            assert!(text.contains(expected), "{fail}: {text}");
            seen.push(fail);
        }
    }
    println!("{} failures, each reported", seen.len());
    let text = passes_apart("child_reports_what_failed", &[("FP4_EMULATOR_FAIL", "alloc:100000")]);
    assert!(text.contains("outcome: nothing failed"), "{text}");
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_multiplies_after_memory_was_not_set() {
    let kernel = MatmulKernel::MmaFolded { ranges: 2 };
    // Opening sets memory too: it fails, and the next time does not.
    let cuda = Cuda::open(0).or_else(|_| Cuda::open(0)).unwrap().with_matmul_kernel(kernel);
    let (m, n, k, mut rng) = (40, 70, 512, Rng(35));
    let [a, b] =
        [m, n].map(|rows| operand(&mut rng, Format::MxFp4, rows, k, |rng| 118 + rng.byte() % 2));
    let (mut y, mut expected) = (vec![0f32; m * n], vec![0f32; m * n]);
    reference::matmul(a.view(), b.view(), 0.3, (&mut expected[..]).into()).unwrap();
    let mut right = 0;
    // One call fails or does without; the memory that the next ones find is of no less use.
    for _ in 0..3 {
        let made = cuda
            .prepare(b.view())
            .and_then(|weight| cuda.matmul(a.view(), &weight, 0.3.into(), (&mut y[..]).into()));
        match made {
            Ok(_) => _ = same_bits(&y, &expected, "after memory was not set"),
            Err(Error::Device(DeviceError::OutOfMemory { .. })) => continue,
            Err(other) => panic!("{other}"),
        }
        right += 1;
    }
    assert!(right >= 2);
}

#[test]
fn zeros_that_could_not_be_set_are_not_believed_to_be_there() {
    for n in 1..=8 {
        let fail = format!("set:{n}");
        let environment = [("FP4_EMULATOR_FAIL", &fail[..])];
        passes_apart("child_multiplies_after_memory_was_not_set", &environment);
    }
}

/// Multiplies under `Auto` a tensor quantized here: whether the wgmma kernels did it, and its bits
/// are right.
fn forward(cuda: &Cuda, format: Format, m: usize) -> Result<bool, Error> {
    let (n, k, mut rng) = (130, 352, Rng(33));
    let spec = QuantSpec::usual(format);
    let b = operand(&mut rng, format, n, k, |rng| 0x30 + rng.byte() % 16);
    let x: Vec<bf16> = (0..m * k).map(|_| bf16::from_f32(rng.value())).collect();
    let input = QuantizeInput::new(&x[..], m, k, &spec)?;
    let mut packed = PackedMatrix::zeros(input.shape());
    reference::quantize(&input, &mut packed.view_mut())?;
    let (mut y, mut expected) = (vec![0f32; m * n], vec![0f32; m * n]);
    reference::matmul(packed.view(), b.view(), 0.3, (&mut expected[..]).into())?;
    let weight = cuda.prepare(b.view())?;
    let mut a = cuda.empty_operand()?;
    cuda.quantize_resident(Source::Host((&x[..]).into()), [m, k], &spec, None, &mut a, None)?;
    cuda.matmul_resident(&a, &weight, 0.3.into(), Sink::Host((&mut y[..]).into()))?;
    same_bits(&y, &expected, "resident");
    y.fill(7.0);
    cuda.matmul(packed.view(), &weight, 0.3.into(), (&mut y[..]).into())?;
    same_bits(&y, &expected, "from the host");
    Ok(cuda.tiles_left()?.1 > 0)
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_multiplies_with_or_without_folded_operands() {
    let enough = env::var("FP4_EMULATOR_FAIL").is_err();
    let cuda = Cuda::open(0).unwrap();
    for format in Format::ALL {
        assert_eq!(forward(&cuda, format, 130), Ok(enough), "{format}");
    }
    // A kernel that was asked for by name is not replaced.
    let by_name = forward(&cuda.with_matmul_kernel(MatmulKernel::Wgmma), Format::MxFp4, 130);
    match by_name {
        Ok(ran) => assert!(enough && ran),
        Err(error) => {
            let full = matches!(error, Error::Device(DeviceError::OutOfMemory { .. }));
            assert!(full && !enough, "{error}");
        }
    }
}

#[test]
fn without_memory_for_folded_operands_other_kernels_multiply() {
    passes_apart("child_multiplies_with_or_without_folded_operands", &[]);
    // The activation's folded form is larger than this, the weight's of MXFP4 is not; then both
    // are.
    for large in ["large:100000", "large:96000"] {
        let fail = [("FP4_EMULATOR_FAIL", large)];
        passes_apart("child_multiplies_with_or_without_folded_operands", &fail);
    }
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_splits_k_if_it_can() {
    let mut rng = Rng(34);
    let b = operand(&mut rng, Format::NvFp4, 200, 2048, |rng| 0x30 + rng.byte() % 16);
    let a = operand(&mut rng, Format::NvFp4, 3, 2048, |rng| 0x30 + rng.byte() % 16);
    let (mut y, mut expected) = (vec![0f32; 600], vec![0f32; 600]);
    reference::matmul(a.view(), b.view(), 0.3, (&mut expected[..]).into()).unwrap();
    let multiply = |y: &mut Vec<f32>| -> Result<(), Error> {
        let cuda = Cuda::open(0)?.with_matmul_kernel(MatmulKernel::Decode { ranges: 4 });
        let weight = cuda.prepare(b.view())?;
        cuda.matmul(a.view(), &weight, 0.3.into(), (&mut y[..]).into())?;
        Ok(())
    };
    match multiply(&mut y) {
        Ok(()) => {
            same_bits(&y, &expected, "decode");
            println!("outcome: right");
        }
        Err(error) => println!("outcome: {error}"),
    }
}

#[test]
fn without_memory_for_sums_of_ranges_decode_takes_one_range() {
    // In order: the counters of paths; codes, scales and metadata of B and of A; outputs; paths;
    // then the sums and the arrivals, which decode can do without.
    for n in 1..=12 {
        let fail = format!("alloc:{n}");
        let text = passes_apart("child_splits_k_if_it_can", &[("FP4_EMULATOR_FAIL", &fail)]);
        assert_eq!(text.contains("outcome: right"), n >= 10, "{fail}: {text}");
    }
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_loads_kernels_that_could_not_be_loaded_before() {
    let cuda = Cuda::open(0).unwrap();
    let b = operand(&mut Rng(35), Format::MxFp4, 3, 64, |_| 127);
    // Metadata of rows is the first kernel: the failure is that of a device without memory.
    let refused = cuda.prepare(b.view()).err();
    let full = matches!(refused, Some(Error::Device(DeviceError::OutOfMemory { .. })));
    assert!(full, "{refused:?}");
    let weight = cuda.prepare(b.view()).unwrap();
    let (mut y, mut expected) = (vec![0f32; 9], vec![1f32; 9]);
    cuda.matmul(b.view(), &weight, 1.0.into(), (&mut y[..]).into()).unwrap();
    reference::matmul(b.view(), b.view(), 1.0, (&mut expected[..]).into()).unwrap();
    same_bits(&y, &expected, "after the failure");
}

#[test]
fn a_kernel_that_did_not_load_for_want_of_memory_is_tried_again() {
    let environment = [("FP4_EMULATOR_FAIL", "module:1"), ("FP4_EMULATOR_SM", "89")];
    passes_apart("child_loads_kernels_that_could_not_be_loaded_before", &environment);
}

#[test]
#[ignore = "run by others in a process of its own"]
fn child_sees_the_devices_it_was_given() {
    let count: usize = env::var("FP4_EMULATOR_DEVICES").unwrap().parse().unwrap();
    let old = env::var("FP4_EMULATOR_SM").is_ok_and(|sm| sm == "75");
    for index in 0..=count {
        match (fp4_backend_cuda::open(index), index < count, old) {
            (Ok(_), true, false) => work(&Cuda::open(index).unwrap()).unwrap(),
            (Err(reason), true, true) => {
                let [found, needed] =
                    [(7, 5), (8, 0)].map(|(major, minor)| Version { major, minor });
                assert_eq!(reason, Unsupported::DeviceTooOld { found, needed });
            }
            (Err(reason), false, _) => assert_eq!(reason, Unsupported::NoDevice),
            (opened, ..) => panic!("device {index} of {count}: {opened:?}"),
        }
    }
}

#[test]
fn devices_are_opened_by_index_and_old_ones_refused() {
    for (count, sm) in [("0", "90"), ("1", "75"), ("1", "80"), ("1", "89"), ("3", "90")] {
        let environment = [("FP4_EMULATOR_DEVICES", count), ("FP4_EMULATOR_SM", sm)];
        passes_apart("child_sees_the_devices_it_was_given", &environment);
    }
}

#[test]
fn every_order_of_warps_and_copies_gives_the_same_bits() {
    for order in ["forward", "reverse", "shuffle:1", "shuffle:2"] {
        for copies in ["late", "early"] {
            let environment = [("FP4_EMULATOR_ORDER", order), ("FP4_EMULATOR_ASYNC", copies)];
            passes_apart("child_works", &environment);
        }
    }
}

/// The library path with or without the folders that hold NVRTC.
fn library_path(with_nvrtc: bool) -> String {
    let holds_nvrtc = |folder: &PathBuf| {
        fs::read_dir(folder).is_ok_and(|mut files| {
            files.any(|f| {
                f.is_ok_and(|f| f.file_name().to_string_lossy().starts_with("libnvrtc.so"))
            })
        })
    };
    let path = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let all: Vec<_> = env::split_paths(&path).collect();
    assert!(all.iter().any(holds_nvrtc), "NVRTC is not in LD_LIBRARY_PATH");
    let kept = all.into_iter().filter(|folder| with_nvrtc || !holds_nvrtc(folder));
    env::join_paths(kept).unwrap().into_string().unwrap()
}

fn files(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect();
    files.sort();
    files
}

#[test]
fn without_nvrtc_the_prebuilt_kernels_run_and_nothing_is_cached() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let path = library_path(false);
    let environment = [
        ("LD_LIBRARY_PATH", &*path),
        ("FP4_CUDA_CACHE", cache.to_str().unwrap()),
        ("FP4_EMULATOR_SM", "86"),
    ];
    passes_apart("child_works", &environment);
    assert_eq!(files(&cache), []);
}

#[test]
fn an_architecture_that_nvrtc_does_not_know_takes_the_prebuilt_kernels() {
    let folder = tempfile::tempdir().unwrap();
    let environment =
        [("FP4_EMULATOR_SM", "99"), ("FP4_CUDA_CACHE", folder.path().to_str().unwrap())];
    passes_apart("child_works", &environment);
    assert_eq!(files(folder.path()), []);
}

#[test]
fn compiled_kernels_are_kept_and_damaged_ones_made_anew() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("made when needed");
    // Ada: Hopper's kernels take long to compile, and would be kept in the same way.
    let environment = [("FP4_CUDA_CACHE", cache.to_str().unwrap()), ("FP4_EMULATOR_SM", "89")];
    passes_apart("child_works", &environment);
    let first = files(&cache);
    assert!(first.len() >= 3, "{} files", first.len());

    // Kept: the files are read, not written again.
    let times = || -> Vec<_> {
        first.iter().map(|(path, _)| fs::metadata(path).unwrap().modified().unwrap()).collect()
    };
    let before = times();
    passes_apart("child_works", &environment);
    assert_eq!(times(), before);

    // Damaged in three ways: cut, changed, and whole but no image at all.
    let no_image = b"no image at all".repeat(10);
    for ((path, bytes), way) in first.iter().zip([0, 1, 2].iter().cycle()) {
        let damaged = match way {
            0 => bytes[..bytes.len() / 2].to_vec(),
            1 => [&bytes[..bytes.len() - 1], &[bytes[bytes.len() - 1] ^ 1]].concat(),
            _ => [&Sha256::digest(&no_image)[..], &no_image].concat(),
        };
        fs::write(path, damaged).unwrap();
    }
    passes_apart("child_works", &environment);
    let lengths = |files: &[(PathBuf, Vec<u8>)]| -> Vec<_> {
        files.iter().map(|(path, bytes)| (path.clone(), bytes.len())).collect()
    };
    assert_eq!(lengths(&files(&cache)), lengths(&first));

    // An empty name turns the cache off.
    passes_apart("child_works", &[("FP4_CUDA_CACHE", ""), ("FP4_EMULATOR_SM", "89")]);
}
