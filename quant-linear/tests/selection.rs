//! What is quantized by default: exactly what the manifests of the MoE vectors say, and, as tables,
//! for the names and shapes of real architectures.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use fp4_core::Format;
use quant_linear::checkpoint::{Checkpoint, Tensor, TensorInfo};
use quant_linear::model::plan::Plan;
use quant_linear::model::select::{Fate, Request, Rule};
use quant_linear::{DenseOptions, Dtype, Reason};
use serde_json::Value;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(path)
}

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn request(format: Format) -> Request {
    Request::new(DenseOptions::new(format))
}

#[test]
fn the_moe_vectors_are_selected_exactly_as_their_manifests_say() {
    for name in ["h_moe3d_bf16", "h_moe3d_bf16_gptoss"] {
        let manifest = json(&here(&format!("vectors/{name}.json")));
        let input = Checkpoint::open(&here(&format!("vectors/{name}.safetensors"))).unwrap();
        let plan = Plan::new(&input, &request(Format::NvFp4)).unwrap();
        let listed = |keys: &[&str]| {
            let lists = keys.iter().map(|key| manifest["selection"][key].as_array().unwrap());
            let mut names: Vec<_> =
                lists.flatten().map(|name| name.as_str().unwrap().to_string()).collect();
            names.sort();
            names
        };
        let mut quantized: Vec<_> = plan.weights.iter().map(|w| w.name.clone()).collect();
        quantized.sort();
        quantized.dedup();
        assert_eq!(quantized, listed(&["quantize"]), "{name}");
        let matrix = |name: &String| input.tensors()[name].info.shape.len() >= 2;
        let kept: Vec<_> = listed(&["keep", "differs"]).into_iter().filter(matrix).collect();
        let skipped: Vec<_> = plan.skipped.iter().map(|s| s.name.clone()).collect();
        assert_eq!(skipped, kept, "{name}");
        for skipped in &plan.skipped {
            let shape = &input.tensors()[&skipped.name].info.shape;
            assert_eq!(skipped.bytes, 2 * shape.iter().product::<usize>() as u64);
        }
    }
}

#[test]
fn square_experts_without_a_known_model_type_are_an_error() {
    let input = Checkpoint::open(&here("vectors/h_moe3d_bf16.safetensors")).unwrap();
    for config in [Value::Null, serde_json::json!({ "model_type": "unheard_of" })] {
        let rule = Rule::new(&request(Format::NvFp4), input.tensors(), Some(&config)).unwrap();
        let name = "model.layers.0.mlp.experts.gate_up_proj";
        let error = rule.decide(name, &input.tensors()[name].info).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("model_type"), "{error}");
    }
}

#[test]
fn sizes_in_the_config_tell_experts_that_are_not_square() {
    let tensors =
        |shape: &[usize]| tensors(&[("a.experts.gate_up_proj".to_string(), shape.to_vec())]);
    let config = serde_json::json!({ "hidden_size": 64, "moe_intermediate_size": 96 });
    let decide = |shape: &[usize], config: &Value| {
        let tensors = tensors(shape);
        let rule = Rule::new(&request(Format::NvFp4), &tensors, Some(config)).unwrap();
        match rule.decide("a.experts.gate_up_proj", &tensors.values().next().unwrap().info) {
            Ok(Fate::Quantize(chosen)) => Some((chosen.shape(), chosen.is_transposed())),
            Ok(other) => panic!("{other:?}"),
            Err(_) => None,
        }
    };
    assert_eq!(decide(&[3, 192, 64], &config), Some(([3, 192, 64], false)));
    assert_eq!(decide(&[3, 64, 192], &config), Some(([3, 192, 64], true)));
    assert_eq!(decide(&[3, 64, 192], &Value::Null), None);
    // A projection out of the inner dimension is no projection into it read the other way.
    let down = BTreeMap::from([(
        "a.experts.down_proj".to_string(),
        tensors(&[3, 64, 96]).into_values().next().unwrap(),
    )]);
    let rule = Rule::new(&request(Format::NvFp4), &down, Some(&config)).unwrap();
    match rule.decide("a.experts.down_proj", &down.values().next().unwrap().info).unwrap() {
        Fate::Quantize(chosen) => assert_eq!(chosen.shape(), [3, 64, 96]),
        other => panic!("{other:?}"),
    }
    // Sizes that fit come before what is known of the type; without any, the type decides.
    let typed = serde_json::json!({ "model_type": "llama4_text", "text_config": config });
    assert_eq!(decide(&[3, 192, 64], &typed), Some(([3, 192, 64], false)));
    let bare = serde_json::json!({ "model_type": "llama4_text" });
    assert_eq!(decide(&[3, 192, 64], &bare), Some(([3, 64, 192], true)));
}

/// BF16 tensors of these names and shapes.
fn tensors(list: &[(String, Vec<usize>)]) -> BTreeMap<String, Tensor> {
    let tensor = |(name, shape): &(String, Vec<usize>)| {
        let data_offsets = (0, 2 * shape.iter().product::<usize>() as u64);
        let info = TensorInfo { dtype: Dtype::BF16, shape: shape.clone(), data_offsets };
        (name.clone(), Tensor { file: 0, info, ggml: None })
    };
    list.iter().map(tensor).collect()
}

/// The table of one list.
fn table(name: &str, list: &Value) -> String {
    let entries = list["tensors"].as_array().unwrap().iter().map(|entry| {
        let shape = entry[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize);
        (entry[0].as_str().unwrap().to_string(), shape.collect())
    });
    let entries: Vec<(String, Vec<usize>)> = entries.collect();
    let tensors = tensors(&entries);
    let rule = Rule::new(&request(Format::NvFp4), &tensors, Some(&list["config"])).unwrap();
    let mut text = format!("\n## {name}\n\n{}\n\n", list["origin"].as_str().unwrap());
    text += "| tensor | shape | n | becomes |\n|---|---|---|---|\n";
    for ((name, shape), entry) in entries.iter().zip(list["tensors"].as_array().unwrap()) {
        let becomes = match rule.decide(name, &tensors[name].info).unwrap() {
            Fate::Quantize(chosen) if chosen.experts => {
                let [experts, rows, k] = chosen.shape();
                let order = if chosen.is_transposed() { ", transposed" } else { "" };
                format!("**{experts} layers of {rows} x {k}**{order}")
            }
            Fate::Quantize(chosen) => {
                let [_, rows, k] = chosen.shape();
                let order = if chosen.is_transposed() { ", transposed" } else { "" };
                format!("**{rows} x {k}**{order}")
            }
            Fate::Skip(Reason::Kept(kept)) => kept.why,
            Fate::Skip(reason) => reason.to_string(),
            Fate::Copy => panic!("{name} is in neither list"),
        };
        writeln!(text, "| {name} | {shape:?} | {} | {becomes} |", entry[2]).unwrap();
    }
    text
}

#[test]
fn the_tables_of_real_architectures_are_as_committed() {
    let mut names: Vec<_> = fs::read_dir(here("selection"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "json"))
        .collect();
    names.sort();
    assert!(names.len() >= 10);
    let mut text =
        String::from("# What is quantized by default\n\nMade by the test `selection`.\n");
    for path in names {
        text += &table(path.file_stem().unwrap().to_str().unwrap(), &json(&path));
    }
    let committed = here("selection/tables.md");
    if std::env::var_os("UPDATE_TABLES").is_some() {
        fs::write(&committed, &text).unwrap();
    }
    let known = fs::read_to_string(&committed).unwrap().replace("\r\n", "\n");
    for (line, (new, old)) in (1..).zip(text.lines().zip(known.lines())) {
        assert_eq!(new, old, "line {line} of tables.md");
    }
    assert_eq!(text.lines().count(), known.lines().count());
}
