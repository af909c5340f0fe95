//! ModelOpt's experts that are one tensor: worth what the same matrices are expert by expert, in
//! whichever direction they are stored.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use quant_linear::atomic::Kind;
use quant_linear::checkpoint::tiles::tiles;
use quant_linear::checkpoint::{Checkpoint, Listing, TensorSource};
use quant_linear::layout::{Layer, Layers, named};
use quant_linear::model::convert::{self, Options, Plan, Shape};
use quant_linear::model::dequantize;
use quant_linear::model::stream::{Memory, Output};
use quant_linear::model::verify;
use quant_linear::{LoadOptions, QuantLinear};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

const EXPERTS: usize = 3;
const OUT: usize = 40;
const K: usize = 64;
const NAME: &str = "model.layers.0.feed_forward.experts.gate_up_proj";
const CONFIG: &str = r#"{"model_type": "llama4", "quantization_config":
    {"quant_method": "modelopt", "quant_algo": "NVFP4"}}"#;

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

/// Codes and scales of an expert, row-major.
fn expert(expert: usize) -> (Vec<u8>, Vec<u8>) {
    let byte = |i: usize, of: usize| (i * 37 + expert * 11 + of) % 251;
    let codes = (0..OUT * K / 2).map(|i| byte(i, 5) as u8).collect();
    // Scales from 2^-3 to 2^3, never NaN.
    let scales = (0..OUT * K / 16).map(|i| 0x20 + (byte(i, 3) % 0x30) as u8).collect();
    (codes, scales)
}

/// (rows, cols) as (cols, rows).
fn turned(bytes: &[u8], cols: usize) -> Vec<u8> {
    let rows = bytes.len() / cols;
    (0..bytes.len()).map(|i| bytes[i % rows * cols + i / rows]).collect()
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// All experts in one tensor, their columns or their rows.
fn fused(columns: bool, each: bool) -> Tensors {
    let stored = |bytes: Vec<u8>, cols: usize| match columns {
        true => turned(&bytes, cols),
        false => bytes,
    };
    let all = |pick: &dyn Fn(usize) -> Vec<u8>| (0..EXPERTS).flat_map(pick).collect::<Vec<_>>();
    let shape = |cols: usize| match columns {
        true => vec![EXPERTS, cols, OUT],
        false => vec![EXPERTS, OUT, cols],
    };
    let globals = match each {
        true => (vec![EXPERTS], floats(&[0.5, 0.25, 0.125])),
        false => (vec![], floats(&[0.5])),
    };
    [
        ("", Dtype::U8, shape(K / 2), all(&|e| stored(expert(e).0, K / 2))),
        ("_weight_scale", Dtype::F8_E4M3, shape(K / 16), all(&|e| stored(expert(e).1, K / 16))),
        ("_weight_scale_2", Dtype::F32, globals.0, globals.1),
        ("_input_scale", Dtype::F32, vec![], floats(&[0.01])),
    ]
    .map(|(end, dtype, shape, bytes)| (format!("{NAME}{end}"), (dtype, shape, bytes)))
    .into()
}

/// The same, expert by expert.
fn plain(each: bool) -> Tensors {
    let one = |e: usize| {
        let ((codes, scales), global) = (expert(e), [0.5, 0.25, 0.125][if each { e } else { 0 }]);
        [
            ("weight", Dtype::U8, vec![OUT, K / 2], codes),
            ("weight_scale", Dtype::F8_E4M3, vec![OUT, K / 16], scales),
            ("weight_scale_2", Dtype::F32, vec![], floats(&[global])),
            ("input_scale", Dtype::F32, vec![], floats(&[0.01])),
        ]
        .map(|(end, dtype, shape, bytes)| (format!("{NAME}.{e}.{end}"), (dtype, shape, bytes)))
    };
    (0..EXPERTS).flat_map(one).collect()
}

/// A folder with these tensors.
fn model(root: &Path, name: &str, tensors: &Tensors) -> PathBuf {
    let folder = root.join(name);
    std::fs::create_dir(&folder).unwrap();
    let views = tensors.iter().map(|(name, (dtype, shape, bytes))| {
        (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    let bytes = safetensors::serialize(views, None::<HashMap<_, _>>).unwrap();
    std::fs::write(folder.join("model.safetensors"), bytes).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    folder
}

fn find(checkpoint: &Checkpoint) -> Layers {
    let layers = Layers::find(checkpoint, &LoadOptions::default()).unwrap();
    assert!(layers.bad.is_empty(), "{:?}", layers.bad);
    layers
}

/// The values of a layer, read in tiles of so many rows.
fn values(source: &Checkpoint, layer: &Layer, rows: usize) -> Vec<f32> {
    let (k, decoder) = (layer.shape.k(), layer.decoder());
    let tiles = tiles(layer.shape.rows(), k, 4, 4 * k * rows);
    tiles.flat_map(|tile| decoder.values(&layer.packed(source, &tile).unwrap(), &tile)).collect()
}

fn convert(input: &Checkpoint, layers: &Layers, to: &str, output: &Path) -> Vec<String> {
    let target = named(to).unwrap();
    let options = Options { target, format: None, exact: true, changed: false };
    let plan = Plan::new(input, layers, options, Shape::Folder).unwrap();
    let place = Output {
        path: output,
        kind: Kind::Folder,
        replace: false,
        resume: false,
        settings: vec![],
    };
    let listing = Listing::default();
    convert::write(input, &plan, &listing, &place, Memory::default(), &mut |_| {}).unwrap();
    plan.notes
}

#[test]
fn experts_in_one_tensor_are_worth_what_they_are_one_by_one() {
    let root = tempfile::tempdir().unwrap();
    for (columns, each) in [(true, false), (true, true), (false, false), (false, true)] {
        let what = format!("columns {columns}, a scale for each {each}");
        let one = Checkpoint::open(&model(root.path(), &what, &fused(columns, each))).unwrap();
        let several = model(root.path(), &format!("{what}, plain"), &plain(each));
        let several = Checkpoint::open(&several).unwrap();
        let (layers, reference) = (find(&one).good, find(&several).good);
        assert_eq!((layers.len(), reference.len()), (1, EXPERTS), "{what}");
        let layer = &layers[NAME];
        assert_eq!(layer.layout.name(), "modelopt");
        assert_eq!(layer.dense_shape(), [EXPERTS, OUT, K], "{what}");
        let expected: Vec<f32> =
            reference.values().flat_map(|layer| values(&several, layer, OUT)).collect();
        // A few rows, rows of two experts, whole experts, all.
        for rows in [7, 33, OUT, 2 * OUT + 1, EXPERTS * OUT] {
            assert!(values(&one, layer, rows) == expected, "{what}, {rows} rows at a time");
        }
        // Of a row that does not fit, some columns.
        let narrow = tiles(layer.shape.rows(), K, 4, 4 * 16).next().unwrap();
        assert_eq!(narrow.cols, K, "128 columns at least are taken");
        for expert in 0..EXPERTS {
            let module = format!("{NAME}.{expert}");
            let [a, b] = [&one, &several].map(|checkpoint| {
                QuantLinear::from_state(checkpoint, &module, &LoadOptions::default()).unwrap()
            });
            assert_eq!(a.weight().unwrap(), b.weight().unwrap(), "{what}: {module}");
            assert_eq!(a.weight_global_scale(), b.weight_global_scale(), "{what}: {module}");
            assert_eq!(a.activation_global_scale(), b.activation_global_scale(), "{module}");
        }
        let report =
            verify::checkpoint(&one, &LoadOptions::default(), &mut |_| {}).unwrap().findings;
        let bad = report.iter().filter(|finding| finding.kind != "suspect-factor-four");
        assert_eq!(bad.filter(|f| !f.kind.starts_with("suspect")).count(), 0, "{report:#?}");
    }
}

#[test]
fn columns_of_a_row_are_read_alone() {
    let root = tempfile::tempdir().unwrap();
    let one = Checkpoint::open(&model(root.path(), "a", &fused(true, false))).unwrap();
    let layer = &find(&one).good[NAME];
    let all = values(&one, layer, EXPERTS * OUT);
    let (row, col, cols) = (OUT + 3, 16, 32);
    let tile =
        quant_linear::checkpoint::tiles::Tile { row, rows: 1, col, cols, start: row * K + col };
    let part = layer.decoder().values(&layer.packed(&one, &tile).unwrap(), &tile);
    assert_eq!(part, all[tile.start..][..cols]);
}

#[test]
fn they_stay_one_tensor_in_their_own_layout_and_are_matrices_in_another() {
    let root = tempfile::tempdir().unwrap();
    let one = Checkpoint::open(&model(root.path(), "in", &fused(true, true))).unwrap();
    let layers = find(&one);
    let same = root.path().join("same");
    convert(&one, &layers, "modelopt", &same);
    let same = Checkpoint::open(&same).unwrap();
    for name in one.tensors().keys() {
        assert_eq!(one.bytes(name).unwrap(), same.bytes(name).unwrap(), "{name}");
        assert_eq!(one.header(name), same.header(name), "{name}");
    }
    assert_eq!(same.tensors().len(), one.tensors().len());
    let other = root.path().join("other");
    convert(&one, &layers, "comfyui", &other);
    let other = Checkpoint::open(&other).unwrap();
    assert_eq!(find(&other).good.len(), EXPERTS);
    let mut plan = vec![];
    let options =
        dequantize::Options { float_type: fp4_core::FloatType::F32, crop: BTreeMap::new() };
    plan.extend(dequantize::Plan::new(&one, &layers, options, true).unwrap().warnings);
    assert_eq!(plan.len(), 1, "{plan:?}");
    for part in [NAME, "(experts, out, in)", "`llama4`", "(experts, in, out)"] {
        assert!(plan[0].contains(part), "no {part} in {plan:?}");
    }
}

#[test]
fn two_shapes_that_do_not_fit_each_other_are_an_error_that_gives_both() {
    let root = tempfile::tempdir().unwrap();
    let mut tensors = fused(true, false);
    let scales = tensors.get_mut(&format!("{NAME}_weight_scale")).unwrap();
    scales.1 = vec![EXPERTS, OUT, K / 16];
    let folder = model(root.path(), "bad", &tensors);
    let bad = Layers::find(&Checkpoint::open(&folder).unwrap(), &LoadOptions::default()).unwrap();
    let error = bad.bad[NAME].to_string();
    for part in ["[3, 32, 40]", "[3, 40, 4]", "one before"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
    // Without its scale it is no whole layer, and neither lost nor dense.
    let mut tensors = fused(true, false);
    tensors.remove(&format!("{NAME}_weight_scale"));
    let folder = model(root.path(), "lost", &tensors);
    let lost = Layers::find(&Checkpoint::open(&folder).unwrap(), &LoadOptions::default()).unwrap();
    assert!(lost.bad[NAME].to_string().contains("gate_up_proj_weight_scale"), "{:?}", lost.bad);
}

#[test]
fn fp8_experts_in_one_tensor_are_no_stray_parts() {
    let root = tempfile::tempdir().unwrap();
    let mut tensors = plain(false);
    let name = "model.layers.1.feed_forward.experts.down_proj";
    tensors.insert(name.into(), (Dtype::F8_E4M3, vec![2, 16, 16], vec![0x38; 512]));
    tensors.insert(format!("{name}_weight_scale"), (Dtype::F32, vec![2], floats(&[1.0, 2.0])));
    let folder = model(root.path(), "fp8", &tensors);
    let checkpoint = Checkpoint::open(&folder).unwrap();
    let report = verify::checkpoint(&checkpoint, &LoadOptions::default(), &mut |_| {}).unwrap();
    let stray = report.findings.iter().filter(|finding| finding.kind == "stray-tensor");
    assert_eq!(stray.count(), 0, "{:#?}", report.findings);
}
