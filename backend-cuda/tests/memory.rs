//! What a backend keeps in device memory: one copy of a weight, and buffers between calls.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

mod common;

use common::{Rng, operand, passes_apart, same_bits};
use fp4_backend_cuda::{Cuda, FoldedWeights, MatmulKernel};
use fp4_core::backend::{Resident, Sink};
use fp4_core::{Error, FloatType, Format, Matmul, PackedMatrix, PackedShape, reference};

#[test]
fn a_weight_gives_back_the_bytes_that_it_was_prepared_from() {
    let (cuda, mut rng, mut bytes) = (Cuda::open(0).unwrap(), Rng(70), 0);
    for kernel in [MatmulKernel::Auto, MatmulKernel::Wgmma, MatmulKernel::Naive] {
        let cuda = cuda.clone().with_matmul_kernel(kernel);
        for format in Format::ALL {
            let group = format.group().get();
            for (n, k) in [(0, group), (3, 0), (1, group), (131, 5 * group), (2, 1024)] {
                // Every scale byte: NaN, negative and zero ones too.
                let b = operand(&mut rng, format, n, k, Rng::byte);
                let weight = cuda.prepare(b.clone()).unwrap();
                let mut out = PackedMatrix::zeros(b.shape());
                cuda.export_weight(&weight, &mut out.view_mut()).unwrap();
                assert!(out.view() == b.view(), "{kernel:?} {format} {n}x{k}");
                bytes += out.codes().len() + out.scales().len();
            }
        }
    }
    println!("{bytes} bytes equal");
    assert!(bytes > 30_000);
    let weight = cuda.prepare(operand(&mut rng, Format::NvFp4, 2, 32, Rng::byte)).unwrap();
    let other = PackedShape::of(Format::NvFp4, 3, 32).unwrap();
    let refused = cuda.export_weight(&weight, &mut PackedMatrix::zeros(other).view_mut());
    assert!(matches!(refused, Err(Error::ShapeMismatch { .. })), "{refused:?}");
}

#[test]
fn a_prepared_weight_is_kept_once() {
    let cuda = Cuda::open(0).unwrap();
    for format in Format::ALL {
        let b = operand(&mut Rng(71), format, 256, 1024, |_| 0x38);
        let packed = (b.codes().len() + b.scales().len()) as f64;
        let once = cuda.clone().with_folded_weights(false).prepare(b.view()).unwrap();
        let ratio = once.device_bytes() as f64 / packed;
        assert!((1.0..1.05).contains(&ratio), "{format}: {ratio}");
        // The folded form lies beside it, by default: 1 or 3 bytes an element, and room
        // for what lies far apart, of which this weight has nothing.
        let folded = cuda.prepare(b.view()).unwrap().device_bytes() as f64 / packed;
        let digits = if format == Format::MxFp4 { 1.0 } else { 3.0 };
        let expected = ratio + digits * (256 * 1024) as f64 / packed;
        assert!((expected..expected + 0.06).contains(&folded), "{format}: {folded} {expected}");
    }
}

#[test]
fn buffers_between_calls_are_bounded_and_released_on_request() {
    let mut rng = Rng(72);
    let a = operand(&mut rng, Format::NvFp4, 3, 2048, |_| 0x38);
    let b = operand(&mut rng, Format::NvFp4, 300, 2048, |_| 0x38);
    let mut expected = vec![0f32; 900];
    reference::matmul(a.view(), b.view(), 0.5, (&mut expected[..]).into()).unwrap();
    // Ranges of K take buffers of a product; the folded form of a weight that has none is one too.
    let folded = MatmulKernel::MmaFolded { ranges: 3 };
    for kernel in [MatmulKernel::Decode { ranges: 4 }, MatmulKernel::Wgmma, folded] {
        let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel).with_folded_weights(false);
        let weight = cuda.prepare(b.view()).unwrap();
        assert_eq!(cuda.scratch_bytes(), 0);
        let product = |cuda: &Cuda| {
            let mut y = vec![7f32; 900];
            cuda.matmul(a.view(), &weight, 0.5.into(), (&mut y[..]).into()).unwrap();
            same_bits(&y, &expected, &format!("{kernel:?}"));
        };
        product(&cuda);
        let kept = cuda.scratch_bytes();
        assert!(kept > 900 * 8, "{kept}");
        product(&cuda);
        assert_eq!(cuda.scratch_bytes(), kept, "the second call takes nothing new");
        // By a clone: what is left is that of both.
        cuda.clone().release_scratch().unwrap();
        assert_eq!(cuda.scratch_bytes(), 0);
        product(&cuda);

        let frugal = cuda.clone().with_scratch_limit(0);
        product(&frugal);
        product(&frugal);
        cuda.release_scratch().unwrap();
        product(&frugal);
        assert_eq!(frugal.scratch_bytes(), 0);
    }
}

#[test]
fn a_graph_keeps_its_buffers_when_the_others_are_released() {
    let mut rng = Rng(73);
    let cuda = Cuda::open(0).unwrap().with_matmul_kernel(MatmulKernel::Decode { ranges: 4 });
    let a = operand(&mut rng, Format::MxFp4, 3, 2048, |_| 127);
    let b = operand(&mut rng, Format::MxFp4, 70, 2048, |_| 127);
    let weight = cuda.prepare(b.view()).unwrap();
    let (mut on_device, mut out) = (cuda.empty_operand().unwrap(), cuda.empty_tensor().unwrap());
    cuda.import(a.view(), &mut on_device).unwrap();
    let mut product = || {
        let sink = Sink::Resident(&mut out, FloatType::F32);
        cuda.matmul_resident(&on_device, &weight, 0.5.into(), sink).map(drop)
    };
    product().unwrap();
    let graph = cuda.capture(&mut product).unwrap();
    cuda.release_scratch().unwrap();
    // Other products take other memory, and the replay its own.
    product().unwrap();
    graph.replay().unwrap();
    let (mut got, mut expected) = (vec![7f32; 210], vec![0f32; 210]);
    cuda.download(&out, (&mut got[..]).into()).unwrap();
    reference::matmul(a.view(), b.view(), 0.5, (&mut expected[..]).into()).unwrap();
    same_bits(&got, &expected, "replayed");
}

#[test]
#[ignore = "run by another in a process of its own"]
fn child_keeps_the_folded_form_while_memory_is_ample() {
    // Of 16 MiB.
    let cuda = Cuda::open(0).unwrap();
    let b = operand(&mut Rng(75), Format::MxFp4, 1024, 1024, |_| 120);
    let packed = b.codes().len() + b.scales().len();
    let folds = |cuda: &Cuda| cuda.prepare(b.view()).unwrap().device_bytes() > 2 * packed;
    assert!(folds(&cuda));
    let mut tensor = cuda.empty_tensor().unwrap();
    cuda.upload((&vec![0f32; 7 << 18][..]).into(), &mut tensor).unwrap();
    assert!(!folds(&cuda));
    assert!(folds(&cuda.clone().with_folded_weights(FoldedWeights::Always)));
    drop(tensor);
    assert!(folds(&cuda));
    assert!(!folds(&cuda.with_folded_weights(FoldedWeights::Never)));
}

#[test]
fn a_weight_is_folded_while_memory_is_ample_unless_it_is_said_otherwise() {
    let environment = [("FP4_EMULATOR_MEMORY", "16777216")];
    passes_apart("child_keeps_the_folded_form_while_memory_is_ample", &environment);
}
