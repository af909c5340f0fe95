//! Layers of a checkpoint that run.

use fp4_core::Format;
use js_sys::{Float32Array, Object};
use quant_linear::{ActivationEncoding, Bias, QuantLinear};
use wasm_bindgen::prelude::*;

use crate::arguments::{Options, area, boolean, floats, set, text};
use crate::call::{Answer, Failure, run};
use crate::checkpoint::Checkpoint;

/// A linear layer: its weight in FP4, its activations quantized on the way in.
#[wasm_bindgen]
pub struct Linear(QuantLinear);

#[wasm_bindgen]
impl Linear {
    /// The layer of a module of a checkpoint.
    #[wasm_bindgen(constructor)]
    pub fn new(checkpoint: &Checkpoint, name: &JsValue, options: &JsValue) -> Answer<Linear> {
        run(|| {
            let options = Options::new(options, "options", &["bias", "activations"])?;
            let name = text(name, "name")?;
            let mut load = checkpoint.options;
            if let Some((value, name)) = options.get("bias") {
                load.bias = if boolean(&value, &name)? { Bias::Apply } else { Bias::Ignore };
            }
            if let Some(activations) = options.named::<ActivationEncoding>("activations")? {
                load.activations = Some(activations);
            }
            let layer = QuantLinear::from_state(&checkpoint.checkpoint, &name, &load)?;
            Ok(Linear(layer))
        })
    }

    /// What it is like.
    pub fn about(&self) -> JsValue {
        let out: JsValue = Object::new().into();
        set(&out, "inFeatures", self.0.in_features() as f64);
        set(&out, "outFeatures", self.0.out_features() as f64);
        set(&out, "format", self.0.format().map_or("none", Format::name));
        set(&out, "activations", self.0.activations().name());
        set(&out, "weightGlobalScale", f64::from(self.0.weight_global_scale()));
        set(&out, "hasBias", self.0.bias().is_some());
        out
    }

    /// The outputs of rows of inputs, row-major.
    pub fn forward(&self, x: &JsValue) -> Answer<Float32Array> {
        run(|| {
            let (x, k) = (floats(x, "x")?, self.0.in_features());
            if k == 0 || !x.len().is_multiple_of(k) {
                let got = x.len();
                let text = format!("x has {got} values; give whole rows of {k}");
                return Err(Failure::new(text));
            }
            let rows = x.len() / k;
            area(rows, self.0.out_features())?;
            Ok(Float32Array::from(&self.0.forward(&x, &[rows, k])?[..]))
        })
    }
}
