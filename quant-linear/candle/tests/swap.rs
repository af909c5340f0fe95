//! Swapping the layers of a model by the patterns of their names: what is matched is in FP4 with
//! the library's bits, what is not is untouched, and an error leaves the model as it was.

#![allow(missing_docs)]

mod common;

use candle_core::{DType, Module, Tensor};
use candle_nn::Linear;
use common::{bits, by_index, tensor};
use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear};
use quant_linear_candle::{
    AnyLinear, Error, Fp4Linear, Linears, Visit, join, swap_linears, swap_linears_with,
};

const HIDDEN: usize = 64;
const WIDE: usize = 96;

struct Mlp {
    up: AnyLinear,
    down: AnyLinear,
}

struct Model {
    layers: Vec<Mlp>,
    /// 40 input features: no whole groups.
    odd: AnyLinear,
    head: AnyLinear,
    /// What `head` is called.
    name: &'static str,
}

impl Linears for Mlp {
    fn visit_linears(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), Error> {
        visit(&join(prefix, "up"), &mut self.up)?;
        visit(&join(prefix, "down"), &mut self.down)
    }
}

impl Linears for Model {
    fn visit_linears(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), Error> {
        for (at, layer) in self.layers.iter_mut().enumerate() {
            layer.visit_linears(&join(prefix, &format!("layers.{at}.mlp")), visit)?;
        }
        visit(&join(prefix, "odd"), &mut self.odd)?;
        visit(&join(prefix, self.name), &mut self.head)
    }
}

fn dense(seed: u64, out: usize, inp: usize) -> Linear {
    Linear::new(tensor(seed, &[out, inp], DType::F32), Some(tensor(seed + 1, &[out], DType::F32)))
}

fn model() -> Model {
    let layer = |at: u64| Mlp {
        up: dense(10 * at, WIDE, HIDDEN).into(),
        down: dense(10 * at + 5, HIDDEN, WIDE).into(),
    };
    let layers = (0..3).map(layer).collect();
    Model { layers, odd: dense(70, 8, 40).into(), head: dense(80, 8, HIDDEN).into(), name: "head" }
}

/// Which layers are in FP4, in order.
fn fp4(model: &mut Model) -> Vec<String> {
    let mut found = Vec::new();
    let list = &mut |name: &str, linear: &mut AnyLinear| {
        if linear.fp4().is_some() {
            found.push(name.to_string());
        }
        Ok(())
    };
    model.visit_linears("", list).unwrap();
    found
}

#[test]
fn layers_that_match_are_in_fp4_with_the_librarys_bits_and_others_are_untouched() {
    let options = DenseOptions::new(Format::NvFp4);
    let mut model = model();
    let report = swap_linears(&mut model, &["layers.*.up", "layers.1.*"], &options).unwrap();
    let expected = ["layers.0.mlp.up", "layers.1.mlp.up", "layers.1.mlp.down", "layers.2.mlp.up"];
    assert_eq!(report.swapped, expected);
    assert!(report.kept.is_empty());
    assert_eq!(fp4(&mut model), expected);

    let x = tensor(3, &[4, WIDE], DType::F32);
    let before = dense(15, HIDDEN, WIDE);
    let own =
        QuantLinear::from_dense(&by_index::<f32>(before.weight())[..], HIDDEN, WIDE, &options);
    let own = own.unwrap().with_bias(&by_index::<f32>(before.bias().unwrap())).unwrap();
    let y = by_index::<f32>(&model.layers[1].down.forward(&x).unwrap());
    assert_eq!(bits(&y), bits(&own.forward(&by_index::<f32>(&x), &[4, WIDE]).unwrap()));
    assert_eq!(model.layers[1].down.fp4().unwrap().layer().name(), Some("layers.1.mlp.down"));

    let dense_y = |linear: &dyn Module| bits(&by_index::<f32>(&linear.forward(&x).unwrap()));
    assert_eq!(dense_y(&model.layers[2].down), dense_y(&dense(25, HIDDEN, WIDE)));
}

#[test]
fn what_cannot_be_quantized_stays_and_is_listed() {
    let options = DenseOptions::new(Format::MxFp4);
    let mut model = model();
    let report = swap_linears(&mut model, &["*"], &options).unwrap();
    assert_eq!((report.swapped.len(), report.kept.len()), (7, 1));
    assert!(report.kept[0].0 == "odd" && report.kept[0].1.contains("K = 40"), "{report:?}");
    // A second time there is nothing to do.
    let text = swap_linears(&mut model, &["*.up"], &options).unwrap_err().to_string();
    assert!(text.contains("layers.0.mlp.up") && text.contains("FP4 already"), "{text}");
}

#[test]
fn an_error_leaves_the_model_as_it_was() {
    let options = DenseOptions::new(Format::NvFp4);
    let mut model = model();
    let wrong = Tensor::zeros((8, HIDDEN), DType::F64, &candle_core::Device::Cpu).unwrap();
    let error = |model: &mut Model, patterns: &[&str]| {
        let error = swap_linears(model, patterns, &options).unwrap_err().to_string();
        assert!(fp4(model).is_empty(), "{error}");
        error
    };
    for (patterns, said) in [
        (&["layers.*", "layer.*"][..], "`layer.*`: no layer's name matches; the model has 8"),
        (&["layers.*", "odd"], "`odd` stays as it is"),
        (&["layers.*", "{"], "{"),
        (&["layers.*", "{{{{{{{{{{{{{{{{{{{{a}}}}}}}}}}}}}}}}}}}}"], "brace"),
    ] {
        let text = error(&mut model, patterns);
        assert!(text.contains(said), "{patterns:?}: {text}");
    }
    model.name = "odd";
    model.odd = dense(1, 8, HIDDEN).into();
    assert!(error(&mut model, &["*"]).contains("two linear layers named `odd`"));
    model.name = "head";
    model.head = Linear::new(wrong, None).into();
    assert!(error(&mut model, &["*"]).contains("F64"));
}

#[test]
fn layers_from_elsewhere_take_the_place_of_the_models() {
    let options = DenseOptions::new(Format::MxFp4);
    let mut model = model();
    let mut named =
        QuantLinear::from_dense(&[0.5f32; 8 * HIDDEN][..], 8, HIDDEN, &options).unwrap();
    named.set_name("elsewhere");
    let swapped = swap_linears_with(&mut model, &mut |name, linear| {
        assert!(linear.fp4().is_none());
        Ok((name == "head").then(|| Fp4Linear::from(named.clone())))
    });
    assert_eq!(swapped.unwrap(), ["head"]);
    assert_eq!(fp4(&mut model), ["head"]);
    assert_eq!(model.head.fp4().unwrap().layer().name(), Some("elsewhere"));
    let refused = swap_linears_with(&mut model, &mut |name, _| match name {
        "head" => Err(Error::NoBias { name: name.into() }),
        _ => Ok(Some(named.clone().into())),
    });
    assert!(refused.is_err());
    assert_eq!(fp4(&mut model), ["head"]);
}
