//! The conformance suite, for tests: profile quick on this build's kernels.

use fp4_backend_cpu_simd::CpuSimd;
use fp4_conformance::suite::Suite;
use fp4_core::backend::erased::Backend;
use wasm_bindgen::prelude::*;

use crate::arguments::{count, json};
use crate::call::{Answer, run};

/// Runs one in `share` of the drawn cases: counts, a digest of every value, and the report.
#[wasm_bindgen]
pub fn suite(share: &JsValue) -> Answer<JsValue> {
    run(|| {
        let share = count(share, "share")?;
        let report = Suite::alike(Backend::resident(CpuSimd::new()), share).run();
        let counts = report.counts();
        json(&serde_json::json!({
            "passed": report.passed(),
            "cases": counts.cases,
            "values": counts.values,
            "differ": counts.differ,
            "digest": format!("{:016x}", report.digest()),
            "text": report.to_string(),
        }))
    })
}
