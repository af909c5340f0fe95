//! The conformance suite on this backend and the reference: profile quick, alone and in pairs.
//!
//! Needs a device, or the stand-in of `emulator/` in `LD_LIBRARY_PATH`: feature `emulated`.

#![cfg(feature = "emulated")]
#![allow(missing_docs)]

use fp4_backend_cuda::{Cuda, Ladder};
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::{backend::erased::Backend, reference::Reference};

fn passes(ladder: Ladder, tile: usize) {
    let cuda = Cuda::open(0).unwrap().with_ladder(ladder);
    let report = Suite::new(Profile::quick())
        .with(Registered::new(Backend::new(Reference)))
        .with(Registered::new(Backend::resident(cuda)).tiles(&[tile], &[tile]).spreads(&[3, 43]))
        .run();
    println!("{report}");
    assert!(report.passed(), "{report}");
}

#[test]
fn quick_passes_on_tensor_cores() {
    passes(Ladder::Mma, 64);
}

#[test]
fn quick_passes_as_routed() {
    passes(Ladder::Auto, 16);
}
