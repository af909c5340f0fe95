//! How layers of other software's checkpoints quantize their activations: FP4 where header or
//! config mean that, else MXINT8, the nearest that there is; and that it is said.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use common::values;
use fp4_core::{Format, QuantSpec};
use quant_linear::atomic::Kind;
use quant_linear::checkpoint::{Checkpoint, Listing};
use quant_linear::layout::{Layers, named};
use quant_linear::model::convert::{self, Options, Plan, Shape};
use quant_linear::model::stream::{Memory, Output};
use quant_linear::{ActivationEncoding, LoadOptions, QuantLinear, Runtime};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

const OWN: ActivationEncoding = ActivationEncoding::Own;
const INT8: ActivationEncoding = ActivationEncoding::MxInt8;
const QUERY: &str = "model.layers.0.self_attn.q_proj";

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors")
}

/// A model of the test data, its `quantization_config` changed if there is one.
fn model(root: &Path, name: &str, change: &dyn Fn(&mut Value)) -> PathBuf {
    let gguf = vectors().join(format!("{name}.gguf"));
    if gguf.exists() {
        return gguf;
    }
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let from = vectors().join(format!("{name}.safetensors"));
    std::fs::copy(from, folder.join("model.safetensors")).unwrap();
    if let Ok(text) = std::fs::read_to_string(vectors().join(format!("{name}.config.json"))) {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        change(&mut config["quantization_config"]);
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    }
    folder
}

fn find(checkpoint: &Checkpoint, options: &LoadOptions) -> Layers {
    let layers = Layers::find(checkpoint, options).unwrap();
    assert!(layers.bad.is_empty(), "{:?}", layers.bad);
    layers
}

/// A change of a `quantization_config`.
type Change<'c> = &'c dyn Fn(&mut Value);

/// Reads all layers of a checkpoint in every way, and compares what was chosen and said.
fn check(checkpoint: &Checkpoint, name: &str, [layers, int8]: [usize; 2], said: &str) {
    let found = find(checkpoint, &LoadOptions::default());
    assert_eq!(found.good.len(), layers, "{name}");
    let runtime = Runtime::shared();
    let all = QuantLinear::load_all(checkpoint, runtime, &LoadOptions::default()).unwrap();
    let mut counted = 0;
    for (module, layer) in &found.good {
        let encoding = layer.scalars.activations;
        // Of mlx's NVFP4 one has 48 features.
        let narrow = !layer.shape.k().is_multiple_of(32);
        assert_eq!(layer.note.is_some(), encoding == INT8 || narrow, "{name}: {module}");
        counted += usize::from(encoding == INT8);
        let loaded = if layer.experts.is_some() { format!("{module}.0") } else { module.clone() };
        assert_eq!(all[&loaded].activations(), encoding, "{name}: {module}");
        let alone = QuantLinear::from_state(checkpoint, &loaded, &LoadOptions::default());
        assert_eq!(alone.unwrap().activations(), encoding, "{name}: {module}");
    }
    assert_eq!(counted, int8, "{name}: {said}");
    let notes: Vec<_> = found.notes().into_iter().filter(|n| n.contains("to mxint8")).collect();
    let expected = (int8 > 0).then(|| format!("the activations of {int8} layers, `"));
    assert_eq!(notes.len(), usize::from(expected.is_some()), "{name}: {notes:?}");
    for note in notes {
        assert!(note.starts_with(&expected.clone().unwrap()), "{name}: {note}");
        assert!(note.contains(said), "{name}: {note}");
        assert!(note.ends_with("to mxint8, the nearest that there is"), "{name}: {note}");
    }
    // What is asked for comes before what is meant, and needs no word.
    for asked in [OWN, INT8] {
        let options = LoadOptions { activations: Some(asked), ..LoadOptions::default() };
        let found = find(checkpoint, &options);
        assert!(found.good.values().all(|layer| layer.scalars.activations == asked), "{name}");
        assert_eq!(found.notes(), Vec::<String>::new());
    }
}

#[test]
fn a_layer_does_what_is_nearest_to_what_its_checkpoint_means() {
    let root = tempfile::tempdir().unwrap();
    let as_it_is = |_: &mut Value| {};
    let ct = |inputs: Value| {
        move |block: &mut Value| {
            block["config_groups"]["group_0"]["input_activations"] = inputs.clone();
        }
    };
    let dense = ct(Value::Null);
    let int4 = ct(json!({ "num_bits": 4, "type": "int", "dynamic": true }));
    let int8 = ct(json!({ "num_bits": 8, "type": "int", "dynamic": true }));
    let queries = |block: &mut Value| {
        let all = block["config_groups"]["group_0"].clone();
        let mut queries = all.clone();
        queries["targets"] = json!(["re:.*q_proj$"]);
        queries["input_activations"] = Value::Null;
        block["config_groups"] = json!({ "group_0": all, "group_1": queries });
    };
    let a16 = |block: &mut Value| block["quant_algo"] = json!("W4A16_NVFP4");
    let a8 = |block: &mut Value| block["quant_algo"] = json!("W4A8_NVFP4_FP8");
    let quark = |block: &mut Value| block["global_quant_config"]["input_tensors"] = Value::Null;
    let act16 = |block: &mut Value| block["act_bits"] = json!(16);
    let act8 = |block: &mut Value| block["act_bits"] = json!(8);
    let by_hand = |block: &mut Value| _ = block.as_object_mut().unwrap().remove("config_groups");
    let silent = "are not spoken of, and no scale of them is stored";
    let not = "are not quantized by their own software";
    // File, change, layers, how many of them do MXINT8, what is said of those.
    let cases: &[(&str, Change<'_>, usize, usize, &str)] = &[
        ("f_ct_mxfp4", &as_it_is, 7, 0, ""),
        ("f_ct_mxfp4", &dense, 7, 7, not),
        ("f_ct_nvfp4", &as_it_is, 7, 0, ""),
        ("f_ct_nvfp4", &dense, 7, 7, not),
        ("f_ct_nvfp4", &int4, 7, 7, "are quantized to 4-bit int by their software"),
        ("f_ct_nvfp4", &int8, 7, 7, "are quantized to 8-bit int by their software"),
        ("f_ct_nvfp4", &queries, 7, 1, not),
        // A stored scale says it where the config is silent, and nothing says it in MXFP4.
        ("f_ct_nvfp4", &by_hand, 7, 0, ""),
        ("f_ct_mxfp4", &by_hand, 7, 7, silent),
        ("f_modelopt_nvfp4", &as_it_is, 7, 0, ""),
        ("f_modelopt_nvfp4", &a16, 7, 7, not),
        ("f_modelopt_nvfp4", &a8, 7, 7, "are quantized to 8 bits (W4A8_NVFP4_FP8) by"),
        ("f_gptoss", &as_it_is, 2, 2, silent),
        ("f_torchao", &as_it_is, 8, 8, not),
        ("h_autoround_mxfp4", &as_it_is, 7, 0, ""),
        ("h_autoround_nvfp4", &act16, 7, 7, not),
        ("h_autoround_nvfp4", &act8, 7, 7, "are quantized to 8 bits nv_fp4_with_static_gs by"),
        ("h_deepseek_v4", &as_it_is, 6, 6, "are quantized to 8-bit float, dynamic by"),
        ("h_fpquant_mxfp4", &as_it_is, 7, 0, ""),
        ("h_fpquant_nvfp4", &as_it_is, 7, 0, ""),
        ("h_mlx_mxfp4", &as_it_is, 8, 8, silent),
        ("h_mlx_nvfp4", &as_it_is, 7, 6, silent),
        ("h_quark_mxfp4", &as_it_is, 7, 0, ""),
        ("h_quark_mxfp4", &quark, 7, 7, not),
        ("h_gguf_mxfp4", &as_it_is, 8, 8, silent),
    ];
    for &(name, change, layers, int8, said) in cases {
        let checkpoint = Checkpoint::open(&model(root.path(), name, change)).unwrap();
        check(&checkpoint, name, [layers, int8], said);
    }
}

/// The bits of a layer are those of the encoding that it is said to have.
#[test]
fn a_layer_that_is_read_runs_by_what_was_chosen() {
    let root = tempfile::tempdir().unwrap();
    let dense = |block: &mut Value| {
        block["config_groups"]["group_0"]["input_activations"] = Value::Null;
    };
    let checkpoint = Checkpoint::open(&model(root.path(), "f_ct_nvfp4", &dense)).unwrap();
    let read = |activations| {
        let options = LoadOptions { activations, ..LoadOptions::default() };
        QuantLinear::from_state(&checkpoint, QUERY, &options).unwrap()
    };
    let x = values(3, 5 * read(None).in_features());
    let y = |layer: &QuantLinear| layer.forward(&x, &[5, layer.in_features()]).unwrap();
    let (chosen, int8, own) = (read(None), read(Some(INT8)), read(Some(OWN)));
    assert_eq!(y(&chosen), y(&int8));
    assert_ne!(y(&chosen), y(&own));
    assert_eq!(y(&chosen), y(&own.with_activations(INT8).unwrap()));
    assert_eq!(read(Some(ActivationEncoding::OwnRowScales)).activations().byte(), 2);
    // A layer that was built keeps none of what it was.
    let mut empty = QuantLinear::empty(64, 64, false).unwrap();
    empty.load_state(&checkpoint, QUERY, &LoadOptions::default()).unwrap();
    assert_eq!(empty.activations(), INT8);
}

#[test]
fn a_scale_of_eight_bits_is_none_of_four() {
    let root = tempfile::tempdir().unwrap();
    let usual = QuantSpec::usual(Format::NvFp4).global_scale();
    for (inputs, kept) in [
        (json!({ "num_bits": 4, "type": "float", "dynamic": "local" }), true),
        (Value::Null, true),
        (json!({ "num_bits": 8, "type": "float", "dynamic": false }), false),
    ] {
        let change = |block: &mut Value| {
            block["config_groups"]["group_0"]["input_activations"] = inputs.clone();
        };
        let checkpoint = Checkpoint::open(&model(root.path(), "f_ct_nvfp4", &change)).unwrap();
        let stored = find(&checkpoint, &LoadOptions::default()).good[QUERY].inputs.clone();
        let stored = stored.unwrap()[0].multiplier();
        assert_ne!(stored, usual);
        let options = LoadOptions { activations: Some(OWN), ..LoadOptions::default() };
        let layer = QuantLinear::from_state(&checkpoint, QUERY, &options).unwrap();
        let expected = if kept { stored } else { usual };
        assert_eq!(layer.activation_global_scale(), expected, "{inputs}");
    }
}

/// A file of one NVFP4 layer of compressed-tensors, 2 x 48, whose activations are not quantized.
fn narrow(folder: &Path, module: &str) -> PathBuf {
    let one = 1f32.to_le_bytes();
    let (codes, scales) = ([0x21; 48], [0x38; 6]);
    let name = |suffix: &str| format!("{module}.{suffix}");
    let tensors: BTreeMap<String, TensorView<'_>> = [
        (name("weight_packed"), TensorView::new(Dtype::U8, vec![2, 24], &codes).unwrap()),
        (name("weight_scale"), TensorView::new(Dtype::F8_E4M3, vec![2, 3], &scales).unwrap()),
        (name("weight_global_scale"), TensorView::new(Dtype::F32, vec![1], &one).unwrap()),
    ]
    .into();
    std::fs::create_dir(folder.join("narrow")).unwrap();
    let bytes = safetensors::serialize(tensors, None).unwrap();
    std::fs::write(folder.join("narrow/model.safetensors"), bytes).unwrap();
    let group = json!({ "targets": ["Linear"], "input_activations": null });
    let config = json!({ "quantization_config": {
        "quant_method": "compressed-tensors", "config_groups": { "group_0": group },
    } });
    std::fs::write(folder.join("narrow/config.json"), config.to_string()).unwrap();
    folder.join("narrow")
}

#[test]
fn rows_that_are_no_whole_groups_stay_in_four_bits_and_that_is_said() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&narrow(root.path(), "a")).unwrap();
    let layers = find(&checkpoint, &LoadOptions::default());
    assert_eq!(layers.good["a"].scalars.activations, OWN);
    let note = &layers.notes()[0];
    for part in ["`a` the first", "are not quantized by", "to fp4", "48 features", "groups of 32"] {
        assert!(note.contains(part), "no {part} in {note}");
    }
    QuantLinear::load_all(&checkpoint, Runtime::shared(), &LoadOptions::default()).unwrap();
    // What is asked for and does not fit is an error with the layer's name, not another encoding.
    let options = LoadOptions { activations: Some(INT8), ..LoadOptions::default() };
    let error = QuantLinear::load_all(&checkpoint, Runtime::shared(), &options).unwrap_err();
    let error = error.to_string();
    assert!(["`a`", "48", "mxint8"].iter().all(|part| error.contains(part)), "{error}");
    let layers = find(&checkpoint, &options);
    let target = named("native").unwrap();
    let how = Options { target, format: None, exact: false, changed: false };
    let error = Plan::new(&checkpoint, &layers, how, Shape::Folder).unwrap_err().to_string();
    for part in ["`a.weight`", "cannot quantize activations to mxint8", "48"] {
        assert!(error.contains(part), "no {part} in {error}");
    }
}

/// Converts into a folder, and opens it; what was noted.
fn converted(from: &Checkpoint, to: &str, folder: &Path) -> (Checkpoint, String) {
    let layers = find(from, &LoadOptions::default());
    let target = named(to).unwrap();
    // Some of the samples hold every scale byte, NaN too.
    let how = Options { target, format: None, exact: false, changed: true };
    let plan = Plan::new(from, &layers, how, Shape::Folder).unwrap();
    let to = Output {
        path: folder,
        kind: Kind::Folder,
        replace: false,
        resume: false,
        settings: vec![],
    };
    let listing = Listing::default();
    convert::write(from, &plan, &listing, &to, Memory::default(), &mut |_| {}).unwrap();
    (Checkpoint::open(folder).unwrap(), plan.notes.join("\n"))
}

#[test]
fn a_native_state_keeps_what_was_chosen_and_the_way_back_says_that_it_is_lost() {
    let root = tempfile::tempdir().unwrap();
    let dense = |block: &mut Value| {
        block["config_groups"]["group_0"]["input_activations"] = Value::Null;
    };
    let eight = |block: &mut Value| {
        let eight = json!({ "num_bits": 8, "type": "float", "dynamic": true });
        block["config_groups"]["group_0"]["input_activations"] = eight;
    };
    let as_it_is = |_: &mut Value| {};
    let cases: [(&str, Change<'_>, &str, ActivationEncoding); 5] = [
        ("f_ct_nvfp4", &dense, "ct", INT8),
        ("f_ct_nvfp4", &eight, "modelopt", INT8),
        ("f_ct_mxfp4", &as_it_is, "quark", OWN),
        ("f_gptoss", &as_it_is, "gpt-oss", INT8),
        ("h_mlx_mxfp4", &as_it_is, "gguf", INT8),
    ];
    for (at, (name, change, back, encoding)) in cases.into_iter().enumerate() {
        let before = Checkpoint::open(&model(root.path(), name, change)).unwrap();
        let at = root.path().join(at.to_string());
        let (native, notes) = converted(&before, "native", &at);
        let int8 = encoding == INT8;
        assert_eq!(notes.contains("here they are quantized to mxint8"), int8, "{name}: {notes}");
        assert!(!notes.contains("says nothing of activations"), "{name}: {notes}");
        let layers = find(&native, &LoadOptions::default());
        assert_eq!(layers.notes(), Vec::<String>::new(), "a state says it: {name}");
        let load = |checkpoint| {
            QuantLinear::load_all(checkpoint, Runtime::shared(), &LoadOptions::default()).unwrap()
        };
        let [source, states] = [load(&before), load(&native)];
        assert!(source.keys().eq(states.keys()), "{name}");
        for (module, layer) in &states {
            let stored = native.tensors().contains_key(&format!("{module}.activation_encoding"));
            assert_eq!((stored, layer.activations()), (int8, encoding), "{name}: {module}");
            let other = &source[module];
            assert_eq!(layer.activation_global_scale(), other.activation_global_scale());
            assert_eq!(layer.activation_scale_scale(), other.activation_scale_scale());
            let x = values(7, layer.in_features());
            let y = |layer: &QuantLinear| {
                let y = layer.forward(&x, &[1, x.len()]).unwrap();
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            if other.bias().is_none() {
                assert_eq!(y(layer), y(other), "{name}: {module}");
            }
        }
        // A foreign config has no word for MXINT8.
        let target = named(back).unwrap();
        let how = Options { target, format: None, exact: false, changed: false };
        let plan = Plan::new(&native, &layers, how, Shape::Folder).unwrap();
        let notes = plan.notes.join("\n");
        assert_eq!(notes.contains("are quantized to mxint8, and the config of"), int8, "{notes}");
        // What was asked for goes into the state.
        let asked = LoadOptions { activations: Some(OWN), ..LoadOptions::default() };
        let layers = find(&before, &asked);
        let target = named("native").unwrap();
        let how = Options { target, format: None, exact: false, changed: false };
        let plan = Plan::new(&before, &layers, how, Shape::Folder).unwrap();
        let mut tensors = plan.weights.iter().flat_map(|planned| &planned.written.tensors);
        assert!(!tensors.any(|tensor| tensor.name.ends_with("activation_encoding")), "{name}");
        assert!(!plan.notes.join("\n").contains("mxint8"), "{name}: {:?}", plan.notes);
    }
}

/// Lines of the log, of whichever test.
static LINES: Mutex<Vec<String>> = Mutex::new(Vec::new());

struct Collect;

impl log::Log for Collect {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        LINES.lock().unwrap().push(format!("{} {}", record.level(), record.args()));
    }

    fn flush(&self) {}
}

#[test]
fn a_load_says_in_the_log_what_was_chosen() {
    let root = tempfile::tempdir().unwrap();
    let checkpoint = Checkpoint::open(&narrow(root.path(), "told")).unwrap();
    let _ = log::set_logger(&Collect);
    log::set_max_level(log::LevelFilter::Info);
    let lines = |run: &dyn Fn()| {
        LINES.lock().unwrap().clear();
        run();
        // Other tests of this program read other layers.
        let lines = LINES.lock().unwrap();
        lines.iter().filter(|line| line.contains("`told`")).cloned().collect::<Vec<_>>()
    };
    let options = LoadOptions::default();
    let one = lines(&|| drop(QuantLinear::from_state(&checkpoint, "told", &options).unwrap()));
    let said = "are not quantized by their own software: here they are quantized to fp4, for 48";
    assert_eq!(one.len(), 1, "{one:?}");
    assert!(one[0].starts_with(&format!("INFO layer `told`: its activations {said}")), "{one:?}");
    let all = lines(&|| {
        drop(QuantLinear::load_all(&checkpoint, Runtime::shared(), &options).unwrap());
    });
    assert_eq!(all.len(), 1, "{all:?}");
    let start = format!("INFO the activations of 1 layers, `told` the first, {said}");
    assert!(all[0].starts_with(&start), "{all:?}");
    let asked = LoadOptions { activations: Some(OWN), ..options };
    let none = lines(&|| drop(QuantLinear::from_state(&checkpoint, "told", &asked).unwrap()));
    assert_eq!(none, Vec::<String>::new());
}
