//! The models of the library with their linear layers in candle give the same bits.

#![allow(missing_docs)]

mod common;
#[path = "../examples/in_candle/linear.rs"]
mod linear;
#[path = "../examples/in_candle/swiglu.rs"]
mod step;

use std::collections::BTreeMap;
use std::path::Path;

use candle_core::{Device, Module, Tensor};
use common::{KINDS, bits, by_index, seeded, values};
use linear::in_candle;
use quant_linear::DenseOptions;
use quant_linear_candle::{Fp4Linear, Fp4VarBuilder, GatedMlp};
use quant_linear_models::encoder::{Config, Encoder, ModelFolder};
use quant_linear_models::linear::Encoding;
use quant_linear_models::swiglu;
use safetensors::tensor::{Dtype, TensorView};
use step::product;

/// The folder of a small encoder.
fn encoder(root: &Path) -> ModelFolder {
    let config = r#"{"model_type": "bert", "hidden_act": "gelu", "hidden_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
        "vocab_size": 20, "max_position_embeddings": 8, "type_vocab_size": 2,
        "layer_norm_eps": 1e-12}"#;
    std::fs::write(root.join("config.json"), config).unwrap();
    let config = Config::parse(config).unwrap();
    let (hidden, wide) = (config.hidden, config.intermediate);
    let mut shapes = BTreeMap::from([
        ("embeddings.word_embeddings.weight".to_string(), vec![config.vocabulary, hidden]),
        ("embeddings.position_embeddings.weight".to_string(), vec![config.positions, hidden]),
        ("embeddings.token_type_embeddings.weight".to_string(), vec![config.segments, hidden]),
    ]);
    let mut part = |name: String, weight: &[usize]| {
        shapes.insert(format!("{name}.bias"), vec![weight[0]]);
        shapes.insert(format!("{name}.weight"), weight.to_vec());
    };
    part("embeddings.LayerNorm".into(), &[hidden]);
    for index in 0..config.layers {
        for (name, shape) in [
            ("attention.self.query", &[hidden, hidden][..]),
            ("attention.self.key", &[hidden, hidden]),
            ("attention.self.value", &[hidden, hidden]),
            ("attention.output.dense", &[hidden, hidden]),
            ("attention.output.LayerNorm", &[hidden]),
            ("intermediate.dense", &[wide, hidden]),
            ("output.dense", &[hidden, wide]),
            ("output.LayerNorm", &[hidden]),
        ] {
            part(format!("encoder.layer.{index}.{name}"), shape);
        }
    }
    let stored: Vec<_> = shapes
        .into_iter()
        .enumerate()
        .map(|(seed, (name, shape))| {
            let values = values(seed as u64, shape.iter().product());
            (name, shape, values.into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>())
        })
        .collect();
    let views = stored.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &root.join("model.safetensors")).unwrap();
    ModelFolder::open(root).unwrap()
}

#[test]
fn an_encoder_with_its_layers_in_candle_gives_the_librarys_embeddings() {
    let root = tempfile::tempdir().unwrap();
    let folder = encoder(root.path());
    let (config, weights) = (&folder.config, folder.weights().unwrap());
    let sentences = [vec![1, 2, 3], vec![4], vec![7, 7, 19, 0, 5, 6, 8, 9], vec![3, 2, 1]];
    let embed = |encoder: &Encoder| {
        let rows = encoder.embed(&sentences, &mut |_, _, _| Ok(())).unwrap();
        rows.into_iter().flatten().map(f32::to_bits).collect::<Vec<_>>()
    };
    let mut all = Vec::new();
    for (format, activations) in KINDS {
        let encoding = Encoding::Quantized { format, activations, hadamard: None };
        let own = Encoder::load(config, &weights, &|parts| encoding.build(parts)).unwrap();
        let options = DenseOptions { activations, ..DenseOptions::new(format) };
        let candle = Encoder::load(config, &weights, &|parts| in_candle(parts, &options));
        let embeddings = embed(&candle.unwrap());
        assert_eq!(embeddings.len(), sentences.len() * config.hidden);
        assert_eq!(embeddings, embed(&own), "{encoding}");
        all.push(embeddings);
    }
    println!("encoder: {} values compared, 0 differ", all.iter().map(Vec::len).sum::<usize>());
    // Each encoding has embeddings of its own: equal ones are not equal for nothing.
    all.sort();
    all.dedup();
    assert_eq!(all.len(), KINDS.len());
}

/// `down(silu(gate) * up)` by the library alone, as its decoder computes it.
fn by_the_library(mlp: &GatedMlp, x: &[f32], rows: usize) -> Vec<f32> {
    let [gate, up, down] = [&mlp.gate, &mlp.up, &mlp.down].map(|l| l.fp4().unwrap().layer());
    let hidden = gate.in_features();
    let mut wide = gate.forward(x, &[rows, hidden]).unwrap();
    swiglu(&mut wide, &up.forward(x, &[rows, hidden]).unwrap());
    down.forward(&wide, &[rows, down.in_features()]).unwrap()
}

#[test]
fn the_decoders_mlp_in_candle_gives_the_librarys_bits() {
    let (hidden, wide) = (64, 160);
    let mut compared = 0;
    for kind in KINDS {
        let linear = |seed, out, inp| Fp4Linear::from(seeded(seed, kind, out, inp));
        let (gate, up) = (linear(1, wide, hidden), linear(2, wide, hidden));
        let mlp = GatedMlp::new(gate, up, linear(3, hidden, wide));
        let mlp = mlp.with_product(product);
        assert_eq!(mlp.fp4().count(), 3);
        for rows in [1, 2, 7] {
            let x = values(21, rows * hidden);
            let tensor = Tensor::from_slice(&x, (1, rows, hidden), &Device::Cpu).unwrap();
            let y = mlp.forward(&tensor).unwrap();
            assert_eq!(y.dims(), [1, rows, hidden]);
            assert_eq!(bits(&by_index::<f32>(&y)), bits(&by_the_library(&mlp, &x, rows)));
            compared += y.elem_count();
        }
    }
    println!("mlp: {compared} values compared, 0 differ");
}

/// From a checkpoint of other software, by prefix; candle's own step between the layers differs
/// from the models' by its `exp` alone.
#[test]
fn the_mlp_of_a_checkpoint_gives_the_librarys_bits_and_candles_own_step_is_close() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors");
    let folder = tempfile::tempdir().unwrap();
    for (from, to) in [("safetensors", "model.safetensors"), ("config.json", "config.json")] {
        let from = vectors.join(format!("f_ct_nvfp4.{from}"));
        std::fs::copy(from, folder.path().join(to)).unwrap();
    }
    let vb = Fp4VarBuilder::open(folder.path()).unwrap().pp("model.layers.0.mlp");
    let gate = vb.pp("gate_proj").load().unwrap();
    let (hidden, wide) = (gate.in_features(), gate.out_features());
    let candles = GatedMlp::load(&vb, hidden, wide).unwrap();
    let mlp = candles.clone().with_product(product);
    let x = values(4, 5 * hidden);
    let tensor = Tensor::from_slice(&x, (5, hidden), &Device::Cpu).unwrap();
    let y = by_index::<f32>(&mlp.forward(&tensor).unwrap());
    assert_eq!(bits(&y), bits(&by_the_library(&mlp, &x, 5)));
    let apart = (candles.forward(&tensor).unwrap() - mlp.forward(&tensor).unwrap()).unwrap();
    let apart = apart.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    let largest = y.iter().fold(0f32, |m, v| m.max(v.abs()));
    // A last bit may move a value to the next code of four bits.
    assert!(apart <= largest * 0.1, "{apart} of {largest}");
    println!("checkpoint's mlp: {} values compared, 0 differ", y.len());
}
