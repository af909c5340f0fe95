//! Quantizing with a calibration: layers that take one input share what is made of it.

#![cfg(feature = "calibrate")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use fp4_core::Format;
use quant_linear::atomic::Kind;
use quant_linear::calibrate::{ActivationScale, Calibration, Observed, Recorder, TransformKind};
use quant_linear::checkpoint::{Checkpoint, Listing};
use quant_linear::model::pipeline::Pipeline;
use quant_linear::model::plan::Plan;
use quant_linear::model::quantize::{Engine, Event};
use quant_linear::model::select::Request;
use quant_linear::model::stream::{Memory, Output};
use quant_linear::safetensors::{self, Dtype, SafeTensors, tensor::TensorView};
use quant_linear::{Backends, DenseOptions};

const K: usize = 64;

fn values(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    };
    (0..count).map(|i| next() * if i % K == 7 { 20.0 } else { 1.0 }).collect()
}

fn write(path: &Path, weights: &BTreeMap<String, Vec<f32>>) {
    let bytes: BTreeMap<_, Vec<u8>> = weights
        .iter()
        .map(|(name, w)| (name, w.iter().flat_map(|v| v.to_le_bytes()).collect()))
        .collect();
    let views = bytes.iter().map(|(name, bytes)| {
        (*name, TensorView::new(Dtype::F32, vec![bytes.len() / 4 / K, K], bytes).unwrap())
    });
    fs::write(path, safetensors::tensor::serialize(views, None).unwrap()).unwrap();
}

/// The tensors of a model whose layers take these inputs, quantized with WUSH.
fn quantized(inputs: &[&[&str]]) -> BTreeMap<String, Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let layers = ["l.q_proj", "l.k_proj", "l.o_proj"];
    let weights = (0..).zip(layers).map(|(i, name)| (format!("{name}.weight"), values(i, 32 * K)));
    let model = folder.path().join("model.safetensors");
    write(&model, &weights.collect());
    let calib = folder.path().join("calib");
    let recorder = Recorder::begin(&calib, 1, &[], false, false).unwrap();
    let observed = (0..).zip(inputs).map(|(i, layers)| {
        let mut input = Observed::new(layers, K, 200, 50);
        input.add(&values(90 + i, 200 * K)).unwrap();
        input
    });
    recorder.write(0, observed.collect()).unwrap();
    recorder.finish().unwrap();
    let pipeline = Pipeline {
        calibration: Some(Arc::new(Calibration::open(&calib).unwrap())),
        transform: TransformKind::Wush,
        activation_scale: Some(ActivationScale::default()),
        ..Pipeline::default()
    };
    let options = DenseOptions::new(Format::NvFp4);
    let request = Request { pipeline: Some(Arc::new(pipeline)), ..Request::new(options) };
    let input = Checkpoint::open(&model).unwrap();
    let plan = Plan::new(&input, &request).unwrap();
    let engine =
        Engine { input: &input, backends: Backends::available(), memory: Memory::default() };
    let out = folder.path().join("out.safetensors");
    let output =
        Output { path: &out, kind: Kind::File, replace: false, resume: false, settings: vec![] };
    let mut losses = 0;
    let mut on = |event: Event<'_>| {
        if let Event::Done(_, _, outcome) = event {
            losses += u32::from(outcome.loss.is_some_and(|loss| loss.layer < loss.before));
        }
    };
    engine.write(&plan, &Listing::default(), &output, &mut on).unwrap();
    assert_eq!(losses, 3, "layers that lose less than before");
    let bytes = fs::read(&out).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter().map(|(name, view)| (name.to_string(), view.data().to_vec())).collect()
}

#[test]
fn layers_that_take_one_input_share_a_transform_and_a_scale_of_activations() {
    let shared = quantized(&[&["l.q_proj", "l.k_proj"], &["l.o_proj"]]);
    let of = |tensors: &BTreeMap<String, Vec<u8>>, layer: &str, what: &str| {
        tensors[&format!("l.{layer}.{what}")].clone()
    };
    for what in ["transform", "activation_global_scale"] {
        assert!(of(&shared, "q_proj", what) == of(&shared, "k_proj", what), "{what}");
        assert!(of(&shared, "q_proj", what) != of(&shared, "o_proj", what), "{what}");
    }
    // Both weights count: alone, each gets another.
    let alone = quantized(&[&["l.q_proj"], &["l.k_proj"], &["l.o_proj"]]);
    for layer in ["q_proj", "k_proj"] {
        assert!(of(&alone, layer, "transform") != of(&shared, layer, "transform"), "{layer}");
    }
}
