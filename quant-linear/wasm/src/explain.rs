//! Numbers of the formats one at a time, and dot products step by step.

use quant_linear::explain::{self, Kind};
use wasm_bindgen::prelude::*;

use crate::arguments::{Options, json, number, text};
use crate::call::{Answer, Failure, run};
use crate::ops::Packed;

fn kind(value: &JsValue) -> Result<Kind, Failure> {
    let given = text(value, "type")?;
    let told = |error| Failure::new(format!("type is {given:?}: {error}"));
    given.parse().map_err(told)
}

/// What a value becomes in a type, and what lies beside that.
#[wasm_bindgen]
pub fn explain(x: &JsValue, of: &JsValue) -> Answer<JsValue> {
    run(|| json(&explain::number(number(x, "x")?, kind(of)?)))
}

/// Every code of a type with its bits and its value.
#[wasm_bindgen]
pub fn codes(of: &JsValue) -> Answer<JsValue> {
    run(|| json(&kind(of)?.codes()))
}

/// The most terms that are told one by one.
const MOST_TERMS: usize = 4096;

/// The dot product of the first rows of two packed matrices, term by term.
#[wasm_bindgen(js_name = dotSteps)]
pub fn dot_steps(a: &JsValue, b: &JsValue, options: &JsValue) -> Answer<JsValue> {
    run(|| {
        let options = Options::new(options, "options", &["alpha", "row", "col"])?;
        let (a, b) = (Packed::of(a, "a")?, Packed::of(b, "b")?);
        let k = b.view().shape().k();
        if k > MOST_TERMS {
            let text = format!("b has {k} columns; at most {MOST_TERMS} are told term by term");
            return Err(Failure::new(text));
        }
        let alpha = options.float("alpha")?.unwrap_or(a.global_scale * b.global_scale);
        let row = options.count("row")?.unwrap_or(0);
        let col = options.count("col")?.unwrap_or(0);
        json(&explain::dot((a.view(), row), (b.view(), col), alpha)?)
    })
}
