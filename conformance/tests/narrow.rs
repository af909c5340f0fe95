//! The core's narrow matmul against the suite's oracle, and the cases that firmware runs.

#![allow(missing_docs)]

use std::path::Path;

use fp4_conformance::exchange::{Error, compact};
use fp4_conformance::suite::{Profile, Registered, Suite};
use fp4_core::backend::erased::Backend;
use fp4_core::narrow::Narrow;

#[test]
fn narrow_sums_pass_every_product_of_the_suite() {
    // Bounds of its spans, joint: narrow for K = 128 and more, double for the two formats.
    let narrow = Registered::new(Backend::new(Narrow)).spreads(&[9, 13, 16, 30, 45, 48]);
    let suite = Suite::new(Profile::quick()).with(narrow).matching("matmul/*").unwrap();
    let report = suite.run();
    assert!(report.passed(), "{report}");
    assert!(report.counts().cases > 2000, "{report}");
}

#[test]
fn the_firmwares_cases_are_those_that_the_suite_writes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../core/examples/firmware");
    let profile = std::fs::read(folder.join("profile.json")).unwrap();
    let cases = Suite::new(serde_json::from_slice::<Profile>(&profile).unwrap()).cases();
    let (bytes, written) = compact(&cases).unwrap();
    assert_eq!(written, cases.len());
    let committed = std::fs::read(folder.join("vectors.bin")).unwrap();
    assert!(
        bytes == committed,
        "write them again: fp4-conformance vectors compact core/examples/firmware/vectors.bin \
         --profile core/examples/firmware/profile.json"
    );
}

#[test]
fn a_run_of_bytes_without_a_case_is_refused() {
    let none = Suite::new(Profile::quick()).matching("core/fma/*").unwrap().cases();
    assert!(matches!(compact(&none), Err(Error::NothingToExport { cases: 1 })));
}
