//! The conformance suite on this backend and the reference: profile quick, alone and in pairs.

#![allow(missing_docs)]

use fp4_backend_cpu_simd::CpuSimd;
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::{backend::erased::Backend, reference::Reference};

#[test]
fn quick_passes() {
    let report = Suite::new(Profile::quick())
        .with(Registered::new(Backend::new(Reference)))
        .with(
            Registered::new(Backend::resident(CpuSimd::new())).tiles(&[4, 64], &[8]).spreads(&[40]),
        )
        .run();
    println!("{report}");
    assert!(report.passed(), "{report}");
}
