//! What a config says of activations and of the cache of keys and values is carried into another
//! layout's config, or the plan says by name that it is not.

use std::path::{Path, PathBuf};

use quant_linear::LoadOptions;
use quant_linear::checkpoint::Checkpoint;
use quant_linear::layout::{Layers, named};
use quant_linear::model::convert::{Options, Plan, Shape};
use quant_linear::model::dequantize;
use serde_json::{Value, json};

/// A change of a `quantization_config`.
type Change<'c> = &'c dyn Fn(&mut Value);

/// A model of the test data whose `quantization_config` is changed.
fn changed(root: &Path, name: &str, change: Change<'_>) -> PathBuf {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let folder = root.join(name);
    std::fs::create_dir_all(&folder).unwrap();
    let from = vectors.join(format!("{name}.safetensors"));
    std::fs::copy(from, folder.join("model.safetensors")).unwrap();
    let text = std::fs::read_to_string(vectors.join(format!("{name}.config.json"))).unwrap();
    let mut config: Value = serde_json::from_str(&text).unwrap();
    change(&mut config["quantization_config"]);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
    folder
}

/// What the files of a target say, and the notes.
fn converted(folder: &Path, to: &str) -> (Value, Value, String) {
    let input = Checkpoint::open(folder).unwrap();
    let layers = Layers::find(&input, &LoadOptions::default()).unwrap();
    let target = named(to).unwrap();
    let options = Options { target, format: None, exact: false, changed: true };
    let plan = Plan::new(&input, &layers, options, Shape::Folder).unwrap();
    let file = |name: &str| {
        let bytes = plan.companions.iter().find(|(other, _)| other == name).map(|(_, b)| b);
        bytes.map_or(Value::Null, |bytes| serde_json::from_slice(bytes).unwrap())
    };
    let block = file("config.json")["quantization_config"].clone();
    (block, file("hf_quant_config.json"), plan.notes.join("\n"))
}

/// Two groups: the projections of queries without activations, all else as it was.
fn two_groups(block: &mut Value) {
    let all = block["config_groups"]["group_0"].clone();
    let mut queries = all.clone();
    queries["targets"] = json!(["re:.*q_proj$"]);
    queries["input_activations"] = Value::Null;
    block["config_groups"] = json!({ "group_0": all, "group_1": queries });
}

const QUERY: &str = "model.layers.0.self_attn.q_proj";
const OTHER: &str = "model.layers.0.self_attn.k_proj";

#[test]
fn only_the_layers_that_quantize_activations_are_said_to() {
    let root = tempfile::tempdir().unwrap();
    let folder = changed(root.path(), "f_ct_nvfp4", &two_groups);
    let (block, hf, notes) = converted(&folder, "modelopt");
    assert_eq!(block["quant_algo"], "MIXED_PRECISION", "{block:#}");
    for layers in [&block["quantized_layers"], &hf["quantization"]["quantized_layers"]] {
        assert_eq!(layers[QUERY]["quant_algo"], "W4A16_NVFP4");
        assert_eq!(layers[OTHER]["quant_algo"], "NVFP4");
    }
    let groups = &block["config_groups"];
    assert_eq!(groups["group_1"]["targets"], json!([QUERY]));
    assert_eq!(groups["group_1"]["input_activations"], Value::Null);
    assert_eq!(groups["group_0"]["input_activations"]["num_bits"], 4);
    assert_eq!(notes, "");

    let (block, ..) = converted(&folder, "auto-round");
    assert_eq!(block["act_bits"], 4);
    assert_eq!(block["extra_config"][QUERY]["act_bits"], 16);
    assert_eq!(block["extra_config"][OTHER], Value::Null);

    let folder = changed(root.path(), "f_ct_mxfp4", &two_groups);
    let (block, _, notes) = converted(&folder, "quark");
    assert!(block["global_quant_config"]["input_tensors"].is_object(), "{block:#}");
    assert!(block["layer_quant_config"][QUERY]["input_tensors"].is_null());
    assert!(block["layer_quant_config"][QUERY]["weight"].is_object(), "{block:#}");
    assert_eq!(block["layer_quant_config"].as_object().unwrap().len(), 1);
    assert_eq!(notes, "");
    // AutoRound has no MXFP4 without quantized activations.
    let (block, _, notes) = converted(&folder, "auto-round");
    assert_eq!(block["act_bits"], 4);
    assert!(notes.contains(QUERY) && notes.contains("are not quantized"), "{notes}");
    assert!(notes.contains("says that they are quantized to 4 bits"), "{notes}");
}

#[test]
fn what_reads_a_mixed_config_writes_it_again() {
    let root = tempfile::tempdir().unwrap();
    // AutoRound and Quark say it by name, and compressed-tensors gets two groups of it.
    for (name, change) in [
        ("h_autoround_nvfp4", json!({ "extra_config": { QUERY: { "act_bits": 16 } } })),
        (
            "h_quark_mxfp4",
            json!({ "layer_quant_config": { "*q_proj": { "input_tensors": null } } }),
        ),
    ] {
        let merge = |block: &mut Value| {
            for (key, value) in change.as_object().unwrap() {
                block[key] = value.clone();
            }
        };
        let (block, _, notes) = converted(&changed(root.path(), name, &merge), "ct");
        let groups: Vec<_> = block["config_groups"].as_object().unwrap().values().collect();
        assert_eq!(groups.len(), 2, "{name}: {block:#}");
        for group in groups {
            let targets = group["targets"].as_array().unwrap();
            let without = group["input_activations"].is_null();
            assert_eq!(targets.contains(&json!(QUERY)), without, "{name}: {block:#}");
            assert_eq!(targets.len(), if without { 1 } else { 6 }, "{name}");
        }
        assert_eq!(notes, "", "{name}");
    }
}

#[test]
fn eight_bits_of_activations_never_become_four() {
    let root = tempfile::tempdir().unwrap();
    let eight = json!({ "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true });
    let ct = |block: &mut Value| {
        block["config_groups"]["group_0"]["input_activations"] = eight.clone();
    };
    let quark = |block: &mut Value| {
        block["global_quant_config"]["input_tensors"]["dtype"] = json!("fp8_e4m3");
    };
    let auto = |block: &mut Value| block["act_bits"] = json!(8);
    let modelopt = |block: &mut Value| block["quant_algo"] = json!("W4A8_NVFP4_FP8");
    let sources: [(&str, Change<'_>, &str); 5] = [
        ("f_ct_nvfp4", &ct, "8-bit float"),
        ("f_ct_mxfp4", &ct, "8-bit float"),
        ("h_quark_mxfp4", &quark, "fp8_e4m3"),
        ("h_autoround_nvfp4", &auto, "8 bits nv_fp4_with_static_gs"),
        ("f_modelopt_nvfp4", &modelopt, "8 bits (W4A8_NVFP4_FP8)"),
    ];
    for (name, change, what) in sources {
        let folder = changed(root.path(), name, change);
        let format = if name.contains("mxfp4") { "quark" } else { "modelopt" };
        for to in ["ct", format, "comfyui", "mlx", "gguf", "native"] {
            let from = Checkpoint::open(&folder).unwrap();
            let layers = Layers::find(&from, &LoadOptions::default()).unwrap();
            let target = named(to).unwrap();
            let own = layers.good.values().next().unwrap().layout.name() == target.name();
            let options = Options { target, format: None, exact: false, changed: true };
            let Ok(plan) = Plan::new(&from, &layers, options, Shape::Folder) else { continue };
            if own {
                assert_eq!(plan.notes.len(), 0, "{name} keeps its own config");
                continue;
            }
            let notes = plan.notes.join("\n");
            assert!(notes.contains(&format!("are quantized to {what}")), "{name} {to}: {notes}");
            let said = converted(&folder, to).0.to_string();
            let four = ["\"quant_algo\":\"NVFP4\"", "\"dynamic\":\"local\"", "\"act_bits\":4"];
            assert!(!four.iter().any(|four| said.contains(four)), "{name} {to}: {said}");
            // Scales of eight bits are no scales of four.
            let inputs = plan.weights.iter().filter(|planned| planned.weight.inputs.is_some());
            assert_eq!(inputs.count(), 0, "{name} {to}");
        }
    }
    // Into its own words it is carried, where another format makes the config anew.
    let folder = changed(root.path(), "f_ct_mxfp4", &ct);
    let input = Checkpoint::open(&folder).unwrap();
    let layers = Layers::find(&input, &LoadOptions::default()).unwrap();
    let format = Some(fp4_core::Format::NvFp4);
    let options = Options { target: named("ct").unwrap(), format, exact: false, changed: true };
    let plan = Plan::new(&input, &layers, options, Shape::Folder).unwrap();
    let config = plan.companions.iter().find(|(name, _)| name == "config.json").unwrap();
    let config: Value = serde_json::from_slice(&config.1).unwrap();
    let group = &config["quantization_config"]["config_groups"]["group_0"];
    assert_eq!(group["input_activations"], eight);
    assert_eq!(group["format"], "nvfp4-pack-quantized");
    assert_eq!(plan.notes, Vec::<String>::new());
}

#[test]
fn a_quantized_cache_is_carried_or_named() {
    let root = tempfile::tempdir().unwrap();
    let fp8 = json!({ "num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": false });
    let ct = |block: &mut Value| block["kv_cache_scheme"] = fp8.clone();
    let folder = changed(root.path(), "f_ct_nvfp4", &ct);
    let (block, hf, notes) = converted(&folder, "modelopt");
    assert_eq!(hf["quantization"]["kv_cache_quant_algo"], "FP8");
    assert_eq!(block["kv_cache_scheme"]["num_bits"], 8);
    assert_eq!(notes, "");
    for to in ["auto-round", "comfyui", "torchao"] {
        let (.., notes) = converted(&folder, to);
        assert!(notes.contains("a quantized cache of keys and values"), "{to}: {notes}");
        assert!(notes.contains("`kv_cache_scheme`: 8-bit float"), "{to}: {notes}");
    }
    let (input, crop) = (Checkpoint::open(&folder).unwrap(), std::collections::BTreeMap::new());
    let layers = Layers::find(&input, &LoadOptions::default()).unwrap();
    let options = dequantize::Options { float_type: fp4_core::FloatType::F32, crop };
    let dense = dequantize::Plan::new(&input, &layers, options, true).unwrap();
    assert!(dense.notes[0].contains("`kv_cache_scheme`: 8-bit float"), "{:?}", dense.notes);
    let modelopt = |block: &mut Value| block["kv_cache_quant_algo"] = json!("FP8");
    let (block, ..) = converted(&changed(root.path(), "f_modelopt_nvfp4", &modelopt), "ct");
    assert_eq!(block["kv_cache_scheme"]["num_bits"], 8, "{block:#}");
    let nv = |block: &mut Value| block["kv_cache_quant_algo"] = json!("NVFP4");
    let (block, _, notes) = converted(&changed(root.path(), "f_modelopt_nvfp4", &nv), "ct");
    assert_eq!(block["kv_cache_scheme"], Value::Null);
    assert!(notes.contains("`kv_cache_quant_algo`: NVFP4"), "{notes}");
    // Older files have it as outputs of the layers that make keys and values.
    let old = |block: &mut Value| {
        block["config_groups"]["group_0"]["output_activations"] = json!({ "num_bits": 8 });
    };
    let (.., notes) = converted(&changed(root.path(), "f_ct_nvfp4", &old), "modelopt");
    assert!(notes.contains("quantizes outputs of layers (`output_activations`)"), "{notes}");
    let quark = |block: &mut Value| block["export"]["kv_cache_group"] = json!(["*k_proj"]);
    let (.., notes) = converted(&changed(root.path(), "h_quark_mxfp4", &quark), "ct");
    assert!(notes.contains("a quantized cache of keys and values"), "{notes}");
}
