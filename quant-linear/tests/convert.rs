//! Every foreign checkpoint to every layout and back: no byte of a code or scale changes, and the
//! table of what can hold what is the committed one.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use quant_linear::atomic::Kind;
use quant_linear::checkpoint::tiles::Tile;
use quant_linear::checkpoint::{Checkpoint, Listing};
use quant_linear::layout::{ALL, Layers, Layout};
use quant_linear::model::convert::{self, Options, Outcome, Plan, Shape};
use quant_linear::model::stream::{Event, Memory, Output};
use quant_linear::sharded::{ColumnShard, RowShard};
use quant_linear::{Bias, LoadOptions, QuantLinear};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

const FILES: [&str; 19] = [
    "f_ct_mxfp4.safetensors",
    "f_ct_nvfp4.safetensors",
    "f_gptoss.safetensors",
    "f_modelopt_nvfp4.safetensors",
    "f_torchao.safetensors",
    "h_autoround_mxfp4.safetensors",
    "h_autoround_nvfp4.safetensors",
    "h_comfy_nvfp4.safetensors",
    "h_comfy_nvfp4_marker.safetensors",
    "h_deepseek_v4.safetensors",
    "h_fpquant_mxfp4.safetensors",
    "h_fpquant_nvfp4.safetensors",
    "h_gguf_mxfp4.gguf",
    "h_gguf_mxfp4_edge.gguf",
    "h_gguf_nvfp4.gguf",
    "h_gguf_nvfp4_edge.gguf",
    "h_mlx_mxfp4.safetensors",
    "h_mlx_nvfp4.safetensors",
    "h_quark_mxfp4.safetensors",
];

/// Codes and scale bytes of each matrix, experts apart, with its number of rows.
type Bytes = BTreeMap<String, (Vec<u8>, Vec<u8>)>;

fn find(checkpoint: &Checkpoint) -> Layers {
    let layers = Layers::find(checkpoint, &LoadOptions::default()).unwrap();
    assert!(layers.bad.is_empty(), "{:?}", layers.bad);
    layers
}

fn bytes(checkpoint: &Checkpoint) -> Bytes {
    let mut all = Bytes::new();
    for (module, layer) in find(checkpoint).good {
        let (rows, k) = (layer.out_features(), layer.shape.k());
        for expert in 0..layer.experts.unwrap_or(1) {
            let row = expert * rows;
            let tile = Tile { row, rows, col: 0, cols: k, start: row * k };
            let packed = layer.packed(checkpoint, &tile).unwrap();
            let name = layer.experts.map_or(module.clone(), |_| format!("{module}.{expert}"));
            all.insert(name, packed.into_parts());
        }
    }
    all
}

/// Converts into a folder of its own; the totals, or why not.
fn convert(
    input: &Checkpoint,
    target: &'static dyn Layout,
    changed: bool,
    output: &Path,
) -> Result<Outcome, quant_linear::Error> {
    let layers = find(input);
    let options = Options { target, format: None, exact: false, changed };
    let plan = Plan::new(input, &layers, options, Shape::Folder)?;
    let to = Output {
        path: output,
        kind: Kind::Folder,
        replace: false,
        resume: false,
        settings: vec![],
    };
    let mut total = Outcome::default();
    let on = &mut |event: convert::Event<'_, '_>| {
        if let Event::Done(_, Some(outcome)) = event {
            total.add(outcome);
        }
    };
    convert::write(input, &plan, &Listing::default(), &to, Memory::default(), on)?;
    Ok(total)
}

/// Opens what [`convert`] wrote.
fn open(output: &Path) -> Checkpoint {
    let gguf = output.join("model.gguf");
    Checkpoint::open(if gguf.exists() { &gguf } else { output }).unwrap()
}

/// Compares all bytes; rows of padding may follow. Bytes compared.
fn same(before: &Bytes, after: &Bytes, what: &str) -> usize {
    assert!(before.keys().eq(after.keys()), "{what}: {:?} {:?}", before.keys(), after.keys());
    let mut compared = 0;
    for (name, (codes, scales)) in before {
        let (new_codes, new_scales) = &after[name];
        assert_eq!(*codes, new_codes[..codes.len()], "{what}: codes of {name}");
        assert_eq!(*scales, new_scales[..scales.len()], "{what}: scales of {name}");
        let padding = new_codes[codes.len()..].iter().chain(&new_scales[scales.len()..]);
        assert!(padding.clone().all(|&byte| byte == 0), "{what}: padding of {name}");
        compared += codes.len() + scales.len();
    }
    compared
}

#[test]
fn every_file_to_every_layout_and_back_keeps_every_code_and_scale() {
    let (mut table, mut held, mut compared) = (String::new(), 0, 0);
    for file in FILES {
        let input = Checkpoint::open(&folder().join(file)).unwrap();
        let before = bytes(&input);
        let from = find(&input).good.values().next().unwrap().layout;
        writeln!(table, "{file}: {}, {} matrices", from.name(), before.len()).unwrap();
        for target in ALL {
            let root = tempfile::tempdir().unwrap();
            let there = root.path().join("there");
            let strict = convert(&input, target, false, &there);
            let refused = strict.as_ref().err().map(ToString::to_string);
            let outcome = match strict {
                Ok(outcome) => outcome,
                Err(_) => match convert(&input, target, true, &there) {
                    Ok(outcome) => outcome,
                    Err(error) => {
                        assert!(!there.exists());
                        writeln!(table, "  {:<20} no: {error}", target.name()).unwrap();
                        continue;
                    }
                },
            };
            let converted = open(&there);
            let what = format!("{file} as {}", target.name());
            compared += same(&before, &bytes(&converted), &what);
            for layer in find(&converted).good.values() {
                assert_eq!(layer.layout.name(), target.name(), "{what}");
            }
            let back = root.path().join("back");
            let back_error = convert(&converted, from, true, &back).err();
            let returned = match back_error {
                None => {
                    compared += same(&before, &bytes(&open(&back)), &format!("{what} and back"));
                    "and back".to_string()
                }
                Some(error) => format!("not back: {error}"),
            };
            let Outcome { values, values_differ, ulps, zero_signs, changed } = outcome;
            let asked = refused.map_or(String::new(), |_| " (--allow-changed)".into());
            writeln!(
                table,
                "  {:<20} yes{asked}: {values} values, {values_differ} within {ulps} ulp, \
                 {zero_signs} zeros of another sign, {changed} changed; {returned}",
                target.name(),
            )
            .unwrap();
            held += 1;
        }
    }
    writeln!(table, "{held} conversions, {compared} bytes of codes and scales compared, 0 differ")
        .unwrap();
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/matrix.txt");
    if std::env::var_os("UPDATE_MATRIX").is_some() {
        std::fs::write(&committed, &table).unwrap();
    }
    let expected = std::fs::read_to_string(&committed).unwrap();
    let differs = table.lines().zip(expected.lines()).find(|(a, b)| a != b);
    assert_eq!(differs, None, "run with UPDATE_MATRIX=1 to write what is so now");
    assert_eq!(table.lines().count(), expected.lines().count());
}

/// Shards that are read of a checkpoint, of all its layers, against those cut of whole layers.
fn shards(checkpoint: &Checkpoint, what: &str) -> usize {
    let options = LoadOptions { bias: Bias::Ignore, ..LoadOptions::default() };
    let mut compared = 0;
    for name in bytes(checkpoint).into_keys() {
        // Rows of padding have no bias in layouts that pad.
        let whole = QuantLinear::from_state(checkpoint, &name, &options).expect(what);
        // Ends of three and of five shards lie inside of blocks of 64 elements.
        for (ranks, rank) in [(3, 0), (3, 1), (3, 2), (5, 1), (5, 3)] {
            let what = format!("{what}: {name}, rank {rank} of {ranks}");
            let read = RowShard::read(checkpoint, &name, rank, ranks, &options).expect(&what);
            let cut = RowShard::even(&whole, rank, ranks).unwrap();
            assert_eq!(read.columns, cut.columns, "{what}");
            assert_eq!(read.parts.weight, cut.parts.weight, "{what}");
            let read = ColumnShard::read(checkpoint, &name, rank, ranks, &options).expect(&what);
            let cut = ColumnShard::even(&whole, rank, ranks).unwrap();
            assert_eq!((read.rows, &read.bias), (cut.rows, &cut.bias), "{what}");
            assert_eq!(read.parts.weight, cut.parts.weight, "{what}");
            compared += 2;
        }
    }
    compared
}

#[test]
fn shards_read_of_every_layout_are_those_cut_of_the_layer() {
    let mut layouts = BTreeMap::<&str, usize>::new();
    for file in FILES {
        let input = Checkpoint::open(&folder().join(file)).unwrap();
        let from = find(&input).good.values().next().unwrap().layout.name();
        *layouts.entry(from).or_default() += shards(&input, file);
        for target in ALL {
            let root = tempfile::tempdir().unwrap();
            let there = root.path().join("there");
            if convert(&input, target, true, &there).is_ok() {
                let what = format!("{file} as {}", target.name());
                *layouts.entry(target.name()).or_default() += shards(&open(&there), &what);
            }
        }
    }
    assert_eq!(layouts.len(), ALL.len(), "{layouts:?}");
    println!("shards: {} compared, 0 differ: {layouts:?}", layouts.values().sum::<usize>());
}

/// The config block of a file in a layout, and what was written.
fn config(file: &str, target: &str) -> (serde_json::Value, Checkpoint, tempfile::TempDir) {
    let scratch = tempfile::tempdir().unwrap();
    let output = scratch.path().join("out");
    let input = Checkpoint::open(&folder().join(file)).unwrap();
    let target = ALL.into_iter().find(|layout| layout.name() == target).unwrap();
    convert(&input, target, false, &output).unwrap();
    let text = std::fs::read_to_string(output.join("config.json")).unwrap();
    let block = serde_json::from_str::<serde_json::Value>(&text).unwrap();
    (block["quantization_config"].clone(), open(&output), scratch)
}

#[test]
fn auto_round_is_told_of_dense_layers_and_of_quantized_ones_outside_of_the_blocks() {
    let (block, ..) = config("h_mlx_mxfp4.safetensors", "auto-round");
    assert_eq!(block["act_bits"], 4, "it has no FP4 layer without quantized activations");
    let extra = &block["extra_config"];
    assert_eq!(extra["model.layers.0.mlp.down_proj"]["bits"], 16, "dense");
    assert_eq!(extra["lm_head"]["bits"], 4, "outside of the blocks");
    assert_eq!(extra.as_object().unwrap().len(), 2, "{extra}");
}

#[test]
fn compressed_tensors_targets_a_quantized_embedding_by_name() {
    let (block, ..) = config("h_mlx_mxfp4.safetensors", "compressed-tensors");
    let targets = &block["config_groups"]["group_0"]["targets"];
    assert_eq!(*targets, serde_json::json!(["Linear", "model.embed_tokens"]));
    let (block, ..) = config("f_ct_mxfp4.safetensors", "compressed-tensors");
    assert_eq!(block["config_groups"]["group_0"]["targets"], serde_json::json!(["Linear"]));
}

#[test]
fn the_identity_of_fp_quant_has_the_size_of_a_group_as_its_loader_wants() {
    let files = [("f_ct_mxfp4.safetensors", 32), ("f_ct_nvfp4.safetensors", 16)];
    for (file, size) in files {
        let (block, written, _scratch) = config(file, "fp-quant");
        assert_eq!(block["hadamard_group_size"], size, "{file}");
        let name = "model.layers.0.mlp.up_proj.forward_hadamard_matrix";
        assert_eq!(written.tensors()[name].info.shape, [size, size], "{file}");
        assert!(find(&written).good.values().all(|layer| layer.transform.is_none()), "{file}");
    }
}
