//! Layers by prefix from every layout: the bits of the library's own, and errors that say what is
//! there.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Module, Tensor};
use common::{KINDS, bits, by_index, layer, values};
use half::bf16;
use quant_linear::checkpoint::Checkpoint;
use quant_linear::{Bias, LoadOptions, QuantLinear, Runtime};
use quant_linear_candle::{AnyLinear, Error, Fp4VarBuilder, join};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

/// A checkpoint of the test data as it lies on a disk: a GGUF file, or a folder.
fn model(root: &Path, name: &str) -> PathBuf {
    let gguf = vectors().join(format!("{name}.gguf"));
    if gguf.exists() {
        return gguf;
    }
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    for file in ["config.json", "hf_quant_config.json", "quantization_config.json"] {
        let from = vectors().join(format!("{name}.{file}"));
        if from.exists() {
            std::fs::copy(from, folder.join(file)).unwrap();
        }
    }
    let from = vectors().join(format!("{name}.safetensors"));
    std::fs::copy(from, folder.join("model.safetensors")).unwrap();
    folder
}

/// Checkpoints of every layout that is read, with the number of their layers, experts one by one.
const MODELS: [(&str, &str, usize); 19] = [
    ("f_ct_mxfp4", "compressed-tensors", 7),
    ("f_ct_nvfp4", "compressed-tensors", 7),
    ("f_modelopt_nvfp4", "modelopt", 7),
    ("f_gptoss", "gpt-oss", 3),
    ("f_torchao", "torchao", 8),
    ("h_autoround_mxfp4", "auto-round", 7),
    ("h_autoround_nvfp4", "auto-round", 7),
    ("h_comfy_nvfp4", "comfyui", 4),
    ("h_comfy_nvfp4_marker", "comfyui", 2),
    ("h_deepseek_v4", "deepseek", 6),
    ("h_fpquant_mxfp4", "fp-quant", 7),
    ("h_fpquant_nvfp4", "fp-quant", 7),
    ("h_mlx_mxfp4", "mlx", 8),
    ("h_mlx_nvfp4", "mlx", 7),
    ("h_quark_mxfp4", "quark", 7),
    ("h_gguf_mxfp4", "gguf", 9),
    ("h_gguf_mxfp4_edge", "gguf", 1),
    ("h_gguf_nvfp4", "gguf", 9),
    ("h_gguf_nvfp4_edge", "gguf", 1),
];

#[test]
fn every_layer_of_every_layout_by_its_prefix_gives_the_librarys_bits() {
    let root = tempfile::tempdir().unwrap();
    let (mut layouts, mut layers, mut compared) = (BTreeSet::new(), 0, 0);
    for (name, layout, count) in MODELS {
        let path = model(root.path(), name);
        let checkpoint = Checkpoint::open(&path).unwrap();
        let all =
            QuantLinear::load_all(&checkpoint, Runtime::shared(), &LoadOptions::default()).unwrap();
        assert_eq!(all.len(), count, "{name}");
        let vb = Fp4VarBuilder::open(&path).unwrap();
        for (module, own) in &all {
            // The prefix in parts, as models ask.
            let vb = module.split('.').fold(vb.clone(), |vb, part| vb.pp(part));
            assert_eq!(vb.prefix(), module);
            assert!(vb.is_quantized(), "{name}: {module}");
            let header = vb.layers().good.get(module).or_else(|| {
                vb.layers().good.get(module.rsplit_once('.').map_or("", |(parent, _)| parent))
            });
            assert_eq!(header.unwrap().layout.name(), layout, "{name}");
            let (inp, out) = (own.in_features(), own.out_features());
            let made = vb.quant_linear(inp, out, own.bias().is_some()).unwrap();
            assert_eq!(made.layer().name(), Some(module.as_str()));
            assert_eq!(made.layer().activations(), own.activations());
            let x = values(11, 3 * inp);
            let tensor = Tensor::from_slice(&x, (inp, 3), &Device::Cpu).unwrap().t().unwrap();
            let x = by_index::<f32>(&tensor);
            let expected = own.forward(&x, &[3, inp]).unwrap();
            let y = by_index::<f32>(&made.forward(&tensor).unwrap());
            assert_eq!(bits(&y), bits(&expected), "{name}: {module}");
            let loaded = vb.load().unwrap().forward(&tensor).unwrap();
            assert_eq!(bits(&by_index::<f32>(&loaded)), bits(&expected), "{name}: {module}");
            compared += y.len();
            layers += 1;
        }
        layouts.insert(layout);
    }
    assert_eq!((layouts.len(), layers), (11, 114));
    println!("{} layouts, {layers} layers, {compared} values compared, 0 differ", layouts.len());
}

/// Bytes of values, and what a header says of them.
type Stored = (String, Dtype, Vec<usize>, Vec<u8>);

fn dense(name: &str, shape: &[usize], dtype: Dtype) -> Stored {
    let values = values(name.len() as u64, shape.iter().product());
    let bytes = match dtype {
        Dtype::BF16 => values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect(),
        Dtype::F32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        Dtype::F8_E5M2 => vec![0; values.len()],
        other => panic!("{other:?}"),
    };
    (name.into(), dtype, shape.to_vec(), bytes)
}

/// A small model of native layers, with dense ones beside them.
fn native(root: &Path) -> PathBuf {
    let mut tensors = vec![
        dense("lm_head.weight", &[10, 64], Dtype::BF16),
        dense("lm_head.bias", &[10], Dtype::BF16),
        dense("norm.weight", &[64], Dtype::F32),
        dense("odd.weight", &[4, 4], Dtype::F8_E5M2),
    ];
    for (prefix, kind, bias) in [("mlp.up", 2, false), ("mlp.down", 0, true)] {
        let layer = layer(KINDS[kind], 24, 64, bias);
        for (name, tensor) in layer.state_dict(prefix).unwrap() {
            let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
            tensors.push((name, dtype, shape, tensor.data().to_vec()));
        }
    }
    let path = root.join("native.safetensors");
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

#[test]
fn native_layers_and_dense_ones_come_from_one_builder() {
    let root = tempfile::tempdir().unwrap();
    let vb = Fp4VarBuilder::open(native(root.path())).unwrap();
    let x = Tensor::from_vec(values(3, 2 * 64), (2, 64), &Device::Cpu).unwrap();
    for (prefix, kind, bias) in [("up", KINDS[2], false), ("down", KINDS[0], true)] {
        let made = vb.pp("mlp").pp(prefix).linear(64, 24, bias).unwrap();
        assert!(made.fp4().is_some());
        let own = layer(kind, 24, 64, bias);
        let expected = own.forward(&by_index::<f32>(&x), &[2, 64]).unwrap();
        let y = by_index::<f32>(&made.forward(&x).unwrap());
        assert_eq!(bits(&y), bits(&expected));
    }
    let head = vb.pp("lm_head").linear(64, 10, true).unwrap();
    let AnyLinear::Dense(head) = head else { panic!("lm_head is dense") };
    assert_eq!(head.weight().dtype(), DType::BF16);
    let stored: Vec<bf16> = values(14, 640).iter().map(|&v| bf16::from_f32(v)).collect();
    assert_eq!(by_index::<bf16>(head.weight()), stored);
    assert_eq!(head.bias().unwrap().dims(), [10]);

    let norm = vb.dense(DType::F32).get(64, "norm.weight").unwrap();
    assert_eq!(by_index::<f32>(&norm), values(11, 64));
    let norm = vb.pp("norm").dense(DType::BF16).get(64, "weight").unwrap();
    assert_eq!(norm.dtype(), DType::BF16);
    assert!(vb.dense(DType::F32).contains_tensor("norm.weight"));
    assert!(!vb.dense(DType::F32).contains_tensor("norm"));
}

#[test]
fn layers_of_one_builder_run_on_one_runtime() {
    let root = tempfile::tempdir().unwrap();
    let runtime = Runtime::new(quant_linear::Backends::reference());
    let checkpoint = Checkpoint::open(&native(root.path())).unwrap();
    let vb = Fp4VarBuilder::new(checkpoint, &runtime, LoadOptions::default()).unwrap();
    let layer = vb.pp("mlp.up").quant_linear(64, 24, false).unwrap();
    assert_eq!(layer.layer().runtime().backends().list().len(), 1);
    assert_eq!(layer.layer().runtime().backends().list()[0].name(), "reference");
}

#[test]
fn what_is_not_as_the_model_asks_is_an_error_that_says_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let vb = Fp4VarBuilder::open(native(root.path())).unwrap();
    let text = |prefix: &str, [inp, out]: [usize; 2], bias| {
        let made = vb.pp(prefix).quant_linear(inp, out, bias);
        made.err().map(|error| error.to_string()).unwrap_or_default()
    };
    assert_eq!(text("mlp.up", [64, 24], false), "");
    for (prefix, features, bias, said) in [
        ("mlp.gate", [64, 24], false, "2 of them, `mlp.down`, `mlp.up`"),
        ("mlp", [64, 24], false, "2 of them are below it"),
        ("lm_head", [64, 10], true, "dense there, BF16 [10, 64]: ask with linear"),
        ("mlp.up", [24, 64], false, "layout native is (24, 64), and the model asks for (64, 24)"),
        ("mlp.up", [64, 25], false, "asks for (25, 64)"),
        ("mlp.up", [64, 24], true, "no bias"),
        ("mlp.down", [64, 24], false, "has a bias in the checkpoint that is not zero"),
        ("mlp.up.3", [64, 24], false, "no quantized layer `mlp.up.3`"),
        ("a\u{1b}[2J", [64, 24], false, r"`a\u{1b}[2J`"),
    ] {
        let text = text(prefix, features, bias);
        assert!(text.contains(said), "{prefix}: {said}: {text}");
    }
    assert!(matches!(vb.pp("x").linear(64, 24, false), Err(Error::Missing { .. })));
    assert!(vb.pp("lm_head").linear(64, 11, true).is_err());
    // Asked to, a layer leaves its bias out.
    let options = LoadOptions { bias: Bias::Ignore, ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(&native(root.path())).unwrap();
    let ignoring = Fp4VarBuilder::new(checkpoint, Runtime::shared(), options).unwrap();
    let down = ignoring.pp("mlp.down").quant_linear(64, 24, false).unwrap();
    assert!(down.layer().bias().is_none());

    let tensors = vb.dense(DType::F32);
    for (name, shape, said) in
        [("norm.weight", 63, "shape mismatch for norm.weight"), ("norm.bias", 64, "norm.bias")]
    {
        let text = tensors.get(shape, name).unwrap_err().to_string();
        assert!(text.contains(said), "{text}");
    }
    let text = tensors.get((4, 4), "odd.weight").unwrap_err().to_string();
    assert!(text.contains("F8_E5M2") && text.contains("fp4 dequantize"), "{text}");
}

#[test]
fn dense_tensors_of_a_gguf_file_are_read_and_blocks_are_errors() {
    let vb = Fp4VarBuilder::open(model(Path::new("unused"), "h_gguf_mxfp4")).unwrap();
    let (mut read, mut refused) = (0, 0);
    for (name, tensor) in vb.checkpoint().tensors() {
        let got = vb.dense(DType::F32).get(tensor.shape(), name);
        if tensor.ggml.unwrap().dtype().is_some() {
            assert_eq!(got.unwrap().dims(), tensor.shape(), "{name}");
            read += 1;
        } else {
            let text = got.unwrap_err().to_string();
            assert!(text.contains(name) && text.contains("fp4 dequantize"), "{text}");
            refused += 1;
        }
    }
    assert!(read > 0 && refused > 0, "{read} read, {refused} refused");
}

#[test]
fn experts_are_asked_for_by_number() {
    let root = tempfile::tempdir().unwrap();
    let vb = Fp4VarBuilder::open(model(root.path(), "f_gptoss")).unwrap();
    let (module, header) = vb.layers().good.iter().next().unwrap();
    let (inp, out) = (header.shape.k(), header.out_features());
    let experts = header.experts.unwrap();
    let layer = |prefix: &str| vb.root(prefix).quant_linear(inp, out, false);
    layer(&join(module, &(experts - 1).to_string())).unwrap();
    let past = layer(&join(module, &experts.to_string())).unwrap_err().to_string();
    assert!(past.contains(&format!("{experts}")), "{past}");
    let whole = layer(module).unwrap_err().to_string();
    assert!(whole.contains("expert"), "{whole}");
}

#[test]
fn a_file_that_is_no_checkpoint_is_an_error() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("model.safetensors");
    assert!(Fp4VarBuilder::open(&path).is_err());
    std::fs::write(&path, [7; 40]).unwrap();
    assert!(Fp4VarBuilder::open(&path).is_err());
    let views = [("w", TensorView::new(Dtype::U8, vec![4], &[0; 4]).unwrap())];
    safetensors::serialize_to_file(views, None, &path).unwrap();
    let vb = Fp4VarBuilder::open(&path).unwrap();
    let text = vb.pp("mlp").quant_linear(64, 64, false).unwrap_err().to_string();
    assert!(text.contains("no quantized layer at all"), "{text}");
}
