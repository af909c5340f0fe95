//! The conformance suite on this backend and the reference, alone and in pairs: profile quick, for
//! each instruction set that this CPU has kernels for.

#![allow(missing_docs)]

use fp4_backend_cpu_simd::{CpuSimd, Isa};
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::{backend::erased::Backend, reference::Reference};

/// Profile quick, or a share of its drawn cases: one in FP4_SUITE_SHARE, where emulation makes them
/// slow.
fn profile() -> Profile {
    let share = std::env::var("FP4_SUITE_SHARE");
    let share =
        share.map_or(1, |text| text.parse().expect("FP4_SUITE_SHARE is a number from 1 up"));
    Profile::quick().one_in(share)
}

#[test]
fn quick_passes_on_every_instruction_set() {
    let mut sets = 0;
    for isa in Isa::available() {
        let (cpu, limits) = (CpuSimd::with_isa(isa).unwrap(), isa.limits());
        let report = Suite::new(profile())
            .with(Registered::new(Backend::new(Reference)))
            .with(
                Registered::new(Backend::resident(cpu))
                    .tiles(limits.rows, limits.columns)
                    .spreads(limits.spreads),
            )
            .run();
        println!("{isa}: {report}");
        assert!(report.passed(), "{isa}: {report}");
        sets += 1;
    }
    println!("conformance: {sets} instruction sets passed");
    assert!(sets > 0);
}
