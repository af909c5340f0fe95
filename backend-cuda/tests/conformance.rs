//! The conformance suite on this backend and the reference, alone and in pairs: profile quick as
//! routed and on the tensor cores of every device, and shares of its drawn cases with the other
//! kernels forced on every product.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.
//! FP4_SUITE_SHARE=S takes one drawn case in S, of all of these: on the stand-in a product takes
//! seconds.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

use fp4_backend_cuda::{Cuda, MatmulKernel};
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::{backend::erased::Backend, reference::Reference};

/// Profile quick, one in `share` of its drawn cases.
fn quick(share: usize) -> Profile {
    let whole: usize = std::env::var("FP4_SUITE_SHARE")
        .map_or(1, |text| text.parse().expect("FP4_SUITE_SHARE is a number from 1 up"));
    Profile::quick().one_in(share * whole)
}

fn passes(kernel: MatmulKernel, tile: usize, share: usize) {
    let start = std::time::Instant::now();
    let cuda = Cuda::open(0).unwrap().with_matmul_kernel(kernel);
    let report = Suite::new(quick(share))
        .with(Registered::new(Backend::new(Reference)))
        .with(Registered::new(Backend::resident(cuda)).tiles(&[tile], &[tile]).spreads(&[3, 43]))
        .run();
    println!("{report}");
    println!("{kernel:?}: {:.1} s", start.elapsed().as_secs_f64());
    assert!(report.passed(), "{report}");
    // MXINT8 activations and their products are among what it computes.
    let text = report.to_string().to_lowercase();
    let refused = text.lines().find(|l| l.contains("unsupported on cuda") && l.contains("int8"));
    assert_eq!(refused, None, "{kernel:?}");
}

#[test]
fn quick_passes_on_tensor_cores() {
    passes(MatmulKernel::Mma, 64, 1);
}

#[test]
fn quick_passes_as_routed() {
    passes(MatmulKernel::Auto, 16, 1);
}

#[test]
fn a_share_passes_on_the_readable_kernel() {
    passes(MatmulKernel::Naive, 16, 16);
}

#[test]
fn a_share_passes_on_the_decode_kernel() {
    passes(MatmulKernel::Decode { ranges: 0 }, 16, 8);
}

#[test]
fn a_share_passes_on_tensor_cores_with_folded_operands() {
    passes(MatmulKernel::MmaFolded { ranges: 0 }, 128, 16);
}

#[test]
fn a_share_passes_on_hoppers_kernels() {
    passes(MatmulKernel::Wgmma, 128, 8);
}

#[test]
fn a_share_passes_on_hoppers_kernels_for_packed_weights() {
    passes(MatmulKernel::WgmmaRs { ranges: 0 }, 32, 16);
}
