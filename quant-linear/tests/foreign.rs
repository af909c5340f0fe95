//! Checkpoints of other software: every layer is found, has the layout that it has, and is worth to
//! the bit what its own library says.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use quant_linear::checkpoint::tiles::tiles;
use quant_linear::checkpoint::{Checkpoint, TensorSource};
use quant_linear::layout::{Layer, Layers};
use quant_linear::{LoadOptions, QuantLinear, Runtime};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

fn open(name: &str) -> Checkpoint {
    Checkpoint::open(&folder().join(name)).unwrap()
}

fn find(checkpoint: &Checkpoint) -> BTreeMap<String, Layer> {
    let layers = Layers::find(checkpoint, &LoadOptions::default()).unwrap();
    assert!(layers.bad.is_empty(), "{:?}", layers.bad);
    layers.good
}

fn f32s(source: &Checkpoint, name: &str) -> Vec<f32> {
    let bytes = source.bytes(name).unwrap();
    bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
}

/// The values of a layer, read in tiles of a few rows.
fn values(source: &Checkpoint, layer: &Layer) -> Vec<f32> {
    let (rows, k, decoder) = (layer.shape.rows(), layer.shape.k(), layer.decoder());
    let tiles = tiles(rows, k, 4, 4 * k * 7);
    tiles.flat_map(|tile| decoder.values(&layer.packed(source, &tile).unwrap(), &tile)).collect()
}

/// Values that differ in a bit; NaN is a class.
fn differ(got: &[f32], expected: &[f32]) -> usize {
    assert_eq!(got.len(), expected.len());
    let same = |(a, b): &(&f32, &f32)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
    got.iter().zip(expected).filter(|pair| !same(pair)).count()
}

/// File, reference, layout, layers, and what a reference of a layer is called.
const SETS: [(&str, &str, &str, usize, &str); 13] = [
    ("f_ct_mxfp4", "f_ct_mxfp4", "compressed-tensors", 7, "dequant_f32"),
    ("f_ct_nvfp4", "f_ct_nvfp4", "compressed-tensors", 7, "dequant_f32"),
    ("f_modelopt_nvfp4", "f_modelopt_nvfp4", "modelopt", 7, "dequant_f32"),
    ("f_torchao", "f_torchao", "torchao", 8, "dequant_f32"),
    ("h_autoround_mxfp4", "h_autoround_mxfp4", "auto-round", 7, "dequant_f32"),
    ("h_autoround_nvfp4", "h_autoround_nvfp4", "auto-round", 7, "dequant_f32"),
    ("h_comfy_nvfp4", "h_comfy_nvfp4", "comfyui", 4, "dequant_f32"),
    ("h_comfy_nvfp4_marker", "h_comfy_nvfp4", "comfyui", 2, "dequant_f32"),
    ("h_deepseek_v4", "h_deepseek_v4", "deepseek", 6, "dequant_f32"),
    ("h_fpquant_mxfp4", "h_fpquant_mxfp4", "fp-quant", 7, "dequant_rotated_f32"),
    ("h_fpquant_nvfp4", "h_fpquant_nvfp4", "fp-quant", 7, "dequant_rotated_f32"),
    ("h_mlx_mxfp4", "h_mlx_mxfp4", "mlx", 8, "dequant_f32"),
    ("h_quark_mxfp4", "h_quark_mxfp4", "quark", 7, "dequant_f32"),
];

#[test]
fn every_layer_is_worth_what_its_own_library_says() {
    let mut sets = SETS.to_vec();
    sets.push(("h_mlx_nvfp4", "h_mlx_nvfp4", "mlx", 7, "dequant_f32"));
    let mut compared = 0;
    for (file, reference, layout, count, suffix) in sets {
        let checkpoint = open(&format!("{file}.safetensors"));
        let reference = open(&format!("{reference}_ref.safetensors"));
        let layers = find(&checkpoint);
        assert_eq!(layers.len(), count, "{file}: {:?}", layers.keys());
        for (module, layer) in &layers {
            assert_eq!(layer.layout.name(), layout, "{file}: {module}");
            let expected = f32s(&reference, &format!("{module}.{suffix}"));
            let differ = differ(&values(&checkpoint, layer), &expected);
            assert_eq!(differ, 0, "{file}: {module}: {differ} of {} differ", expected.len());
            compared += expected.len();
        }
    }
    assert!(compared > 300_000, "{compared}");
}

#[test]
fn gguf_blocks_are_worth_what_ggml_says() {
    let mut compared = 0;
    for (file, count) in [("mxfp4", 8), ("mxfp4_edge", 1), ("nvfp4", 8), ("nvfp4_edge", 1)] {
        let checkpoint = open(&format!("h_gguf_{file}.gguf"));
        let reference = open(&format!("h_gguf_{file}_ref.safetensors"));
        let layers = find(&checkpoint);
        assert_eq!(layers.len(), count, "{file}: {:?}", layers.keys());
        for (module, mut layer) in layers {
            assert_eq!(layer.layout.name(), "gguf", "{file}: {module}");
            let name = |what: &str| format!("{module}.weight.{what}");
            // The references leave the scale of the tensor out, but for one that has it.
            if reference.tensors().contains_key(&name("times_scale_f32")) {
                let expected = f32s(&reference, &name("times_scale_f32"));
                assert_eq!(differ(&values(&checkpoint, &layer), &expected), 0, "{file}: {module}");
                compared += expected.len();
            }
            layer.globals = vec![quant_linear::layout::Global::ONE];
            let expected = f32s(&reference, &name("dequant_f32"));
            assert_eq!(differ(&values(&checkpoint, &layer), &expected), 0, "{file}: {module}");
            compared += expected.len();
            let (rows, k) = (layer.shape.rows(), layer.shape.k());
            let tile = tiles(rows, k, 1, usize::MAX).next().unwrap();
            let packed = layer.packed(&checkpoint, &tile).unwrap();
            assert_eq!(*packed.codes(), *reference.bytes(&name("codes")).unwrap(), "{module}");
            assert_eq!(*packed.scales(), *reference.bytes(&name("scales")).unwrap(), "{module}");
        }
    }
    assert!(compared > 60_000, "{compared}");
}

#[test]
fn gpt_oss_is_transposed_by_its_library_and_not_by_us() {
    let (checkpoint, reference) = (open("f_gptoss.safetensors"), open("f_gptoss_ref.safetensors"));
    let layers = find(&checkpoint);
    assert_eq!(layers.len(), 2);
    for (module, layer) in &layers {
        let name = module.rsplit('.').next().unwrap();
        let expected = f32s(&reference, &format!("{name}.float32"));
        let [experts, out, k] = layer.dense_shape()[..] else { panic!("{module} has no experts") };
        let values = values(&checkpoint, layer);
        let transposed: Vec<f32> = (0..experts * k * out)
            .map(|i| (i / (k * out), i / out % k, i % out))
            .map(|(e, k_at, row)| values[(e * out + row) * k + k_at])
            .collect();
        assert_eq!(differ(&transposed, &expected), 0, "{module}");
    }
}

#[test]
fn every_scale_byte_is_worth_what_the_library_says() {
    for (file, group, global) in [
        ("h_autoround_mxfp4", 32, None),
        ("h_autoround_nvfp4", 16, Some("edge.weight_global_scale")),
        ("h_mlx_mxfp4", 32, None),
        ("h_mlx_nvfp4", 16, None),
        ("h_quark_mxfp4", 32, None),
    ] {
        let checkpoint = open(&format!("{file}.safetensors"));
        let reference = open(&format!("{file}_ref.safetensors"));
        let layers = find(&checkpoint);
        let layer = layers.values().find(|l| l.shape.group().get() == group).unwrap();
        let global = global.map_or(1.0, |name| f32s(&reference, name)[0]);
        let table = layer.arithmetic.table(global);
        let codes = reference.bytes("edge.codes").unwrap();
        let scales = reference.bytes("edge.scales").unwrap();
        let code = |i: usize| codes[i / 2] >> (4 * (i % 2)) & 15;
        let got: Vec<f32> = (0..codes.len() * 2)
            .map(|i| table[16 * usize::from(scales[i / group]) + usize::from(code(i))])
            .collect();
        let bytes: std::collections::BTreeSet<_> = scales.iter().collect();
        assert_eq!(bytes.len(), 256, "{file}");
        assert_eq!(differ(&got, &f32s(&reference, "edge.dequant_f32")), 0, "{file}");
    }
}

#[test]
fn the_order_of_codes_and_scales_is_undone() {
    let checkpoint = open("h_comfy_nvfp4.safetensors");
    let reference = open("h_comfy_nvfp4_ref.safetensors");
    for (module, layer) in find(&checkpoint) {
        let (rows, k) = (layer.shape.rows(), layer.shape.k());
        let tile = tiles(rows, k, 1, usize::MAX).next().unwrap();
        let packed = layer.packed(&checkpoint, &tile).unwrap();
        assert_eq!(*packed.codes(), *reference.bytes(&format!("{module}.codes")).unwrap());
        assert_eq!(*packed.scales(), *reference.bytes(&format!("{module}.scales")).unwrap());
    }
}

#[test]
fn without_a_config_two_layouts_are_an_error_that_names_both() {
    let folder = tempfile::tempdir().unwrap();
    for (file, both) in [
        ("f_ct_nvfp4", ["compressed-tensors", "auto-round"]),
        ("h_autoround_mxfp4", ["compressed-tensors", "auto-round"]),
    ] {
        let path = folder.path().join("model.safetensors");
        std::fs::copy(self::folder().join(format!("{file}.safetensors")), &path).unwrap();
        let checkpoint = Checkpoint::open(&path).unwrap();
        let error = Layers::find(&checkpoint, &LoadOptions::default()).unwrap_err().to_string();
        assert!(both.iter().all(|name| error.contains(name)), "{error}");
        let layout = quant_linear::layout::named(both[0]);
        let forced = LoadOptions { layout, ..LoadOptions::default() };
        assert_eq!(Layers::find(&checkpoint, &forced).unwrap().good.len(), 7, "{file}");
    }
}

#[test]
fn layers_of_every_layout_run() {
    let runtime = Runtime::shared();
    let (mut layers, mut files) = (0, 0);
    for (file, ..) in SETS {
        let checkpoint = open(&format!("{file}.safetensors"));
        for (name, layer) in
            QuantLinear::load_all(&checkpoint, runtime, &LoadOptions::default()).unwrap()
        {
            let x: Vec<f32> = (0..layer.in_features()).map(|i| (i as f32 * 0.7).sin()).collect();
            let y = layer.forward(&x, &[1, x.len()]).unwrap();
            assert_eq!(y.len(), layer.out_features(), "{file}: {name}");
            layers += 1;
        }
        files += 1;
    }
    assert!((files, layers) == (SETS.len(), 84), "{files} {layers}");
}
