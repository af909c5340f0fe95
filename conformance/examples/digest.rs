//! Profile quick of the suite on the CPU backend of this machine, as one line with a digest of
//! every compared value: what the same cases must give elsewhere, in a browser say.
//!
//! `cargo run --release -p fp4-conformance --example digest -- 4` takes one in 4 of the drawn
//! cases.

use std::process::ExitCode;

use fp4_backend_cpu_simd::CpuSimd;
use fp4_conformance::suite::Suite;
use fp4_core::backend::erased::Backend;

fn main() -> ExitCode {
    let share = std::env::args().nth(1).map_or(Ok(1), |share| share.parse());
    let Ok(share) = share else {
        eprintln!("usage: digest [SHARE], a number from 1 up");
        return ExitCode::FAILURE;
    };
    let cpu = CpuSimd::new();
    let isa = cpu.isa();
    let report = Suite::alike(Backend::resident(cpu), share).run();
    let (counts, digest) = (report.counts(), report.digest());
    let (cases, values, differ) = (counts.cases, counts.values, counts.differ);
    println!(
        "{isa}: {cases} cases, {values} values compared, {differ} differ, digest {digest:016x}"
    );
    if report.passed() {
        return ExitCode::SUCCESS;
    }
    eprintln!("{report}");
    ExitCode::FAILURE
}
