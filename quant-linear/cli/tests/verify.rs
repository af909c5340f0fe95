//! `fp4 verify`: sound files are clean, and each way of breaking one is found.
//!
//! The sound files are those of other software, a piece of a real model, and synthetic weights
//! whose rows and columns differ in size as those of real models do; the broken ones are made of
//! them here, one break each.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use fp4_core::Swizzle;
use safetensors::Dtype;
use serde_json::{Value, json};

type Tensors = BTreeMap<String, Tensor>;

/// A way of breaking them.
type Break<'a> = &'a dyn Fn(&mut Tensors);

/// What is found: severity, kind, module.
type Found = BTreeSet<(String, String, String)>;

/// Runs `fp4 verify --json`, expects the exit code, and gives what is found.
fn verify(args: &[&str], expected: i32) -> (Found, Value) {
    let args: Vec<_> = ["verify"].iter().chain(args).chain(&["--json"]).copied().collect();
    let (stdout, _) = code(&args, expected);
    let report: Value = serde_json::from_str(&stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_string();
    let found: Found = findings
        .iter()
        .map(|f| (text(f, "severity"), text(f, "kind"), text(f, "module")))
        .collect();
    let count = |s: &str| findings.iter().filter(|f| f["severity"] == s).count();
    assert_eq!(report["errors"], count("error"), "{report}");
    assert_eq!(report["warnings"], count("warning"), "{report}");
    assert_eq!(expected, i32::from(count("error") > 0), "{report}");
    (found, report)
}

/// One thing is found, and nothing else but `also`.
fn finds(args: &[&str], severity: &str, kind: &str, modules: &[&str], also: &[&str]) {
    let (found, report) = verify(args, i32::from(severity == "error"));
    let of_kind: Vec<_> = found.iter().filter(|(_, k, _)| k == kind).collect();
    let named: Vec<_> = of_kind.iter().map(|(.., module)| module.as_str()).collect();
    assert_eq!(named, modules, "{kind}: {report:#}");
    assert!(of_kind.iter().all(|(s, ..)| s == severity), "{kind}: {report:#}");
    let others = found.iter().filter(|(_, k, _)| k != kind && !also.contains(&k.as_str()));
    let others: Vec<_> = others.collect();
    assert!(others.is_empty(), "{kind}: {others:?}");
}

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

/// Numbers of a bell curve; the same for the same seed.
fn normal(seed: u64, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut uniform = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u32 << 24) as f32
    };
    let mut next = move || (-2.0 * uniform().ln()).sqrt() * (6.283_185_5 * uniform()).cos();
    (0..count).map(|_| next()).collect()
}

/// Factors around 1 by which the rows or columns of real weights differ.
fn sizes(seed: u64, count: usize) -> Vec<f32> {
    normal(seed, count).iter().map(|x| (0.5 * x).exp()).collect()
}

fn weight(name: &str, rows: &[f32], cols: &[f32], seed: u64) -> Tensor {
    let noise = normal(seed, rows.len() * cols.len());
    let (k, mut values) = (cols.len(), noise);
    for (i, value) in values.iter_mut().enumerate() {
        *value *= 0.02 * rows[i / k] * cols[i % k];
    }
    f32s(&format!("{name}.weight"), &[rows.len(), k], &values)
}

const ATTN: &str = "model.layers.0.self_attn";
const MLP: &str = "model.layers.0.mlp";

/// A block of a model: the features of an input are one for all that read it.
fn block() -> Vec<Tensor> {
    let (features, inner, heads) = (sizes(1, 256), sizes(2, 512), sizes(3, 256));
    vec![
        weight(&format!("{ATTN}.q_proj"), &sizes(4, 256), &features, 11),
        weight(&format!("{ATTN}.k_proj"), &sizes(5, 256), &features, 12),
        weight(&format!("{ATTN}.v_proj"), &heads, &features, 13),
        weight(&format!("{ATTN}.o_proj"), &sizes(6, 256), &heads, 14),
        weight(&format!("{MLP}.gate_proj"), &sizes(7, 512), &features, 15),
        weight(&format!("{MLP}.up_proj"), &inner, &features, 16),
        weight(&format!("{MLP}.down_proj"), &sizes(8, 256), &inner, 17),
    ]
}

/// The tensors of a dense model as `fp4 quantize` makes them.
fn quantized(dense: &[Tensor], format: &str) -> Tensors {
    quantized_by(dense, format, "search")
}

fn quantized_by(dense: &[Tensor], format: &str, rule: &str) -> Tensors {
    let folder = Folder::new();
    write(&folder.at("in.safetensors"), dense);
    let (input, output) = (folder.arg("in.safetensors"), folder.arg("out.safetensors"));
    ok(&["quantize", &input, "-o", &output, "--format", format, "--scale-rule", rule]);
    read(&folder.at("out.safetensors"))
}

fn modules(native: &Tensors) -> Vec<String> {
    native.keys().filter_map(|name| name.strip_suffix(".e2m1")).map(str::to_string).collect()
}

/// Native tensors under the names of ModelOpt.
fn modelopt(native: &Tensors) -> Tensors {
    let mut all = Tensors::new();
    for module in modules(native) {
        for (from, to) in [
            ("e2m1", "weight"),
            ("scale_quant", "weight_scale"),
            ("weight_global_scale", "weight_scale_2"),
        ] {
            let (name, tensor) = (format!("{module}.{to}"), &native[&format!("{module}.{from}")]);
            all.insert(name.clone(), (name, tensor.1, tensor.2.clone(), tensor.3.clone()));
        }
    }
    all
}

/// As ModelOpt writes it.
fn config() -> Value {
    json!({ "quantization_config": {
        "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"],
    } })
}

/// A folder with these tensors and config.
fn folder(tensors: &Tensors, config: &Value) -> Folder {
    let folder = Folder::new();
    let tensors: Vec<_> = tensors.values().cloned().collect();
    write(&folder.at("model.safetensors"), &tensors);
    fs::write(folder.at("config.json"), config.to_string()).unwrap();
    folder
}

fn bytes<'t>(tensors: &'t mut Tensors, name: &str) -> &'t mut Vec<u8> {
    &mut tensors.get_mut(name).unwrap_or_else(|| panic!("no {name}")).3
}

fn set(tensors: &mut Tensors, name: &str, value: f32) {
    *bytes(tensors, name) = value.to_le_bytes().to_vec();
}

fn scalar(tensors: &Tensors, name: &str) -> f32 {
    let bytes = &tensors[name].3;
    f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

fn swap(tensors: &mut Tensors, name: &str) {
    bytes(tensors, name).iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
}

fn swizzle(tensors: &mut Tensors, name: &str) {
    let shape = tensors[name].2.clone();
    let swizzle = Swizzle::new(shape[0], shape[1]).unwrap();
    let mut swizzled = vec![0; swizzle.len()];
    swizzle.swizzle(bytes(tensors, name), &mut swizzled).unwrap();
    *bytes(tensors, name) = swizzled;
}

/// What the layers of the block show in any case: each has a global scale of its own.
const FUSED: &str = "fused-scales";

#[test]
fn files_of_other_software_have_no_error_and_raise_no_suspicion() {
    let mut files: Vec<_> = fs::read_dir(vectors()).unwrap().map(|e| e.unwrap().path()).collect();
    files.sort();
    let mut checked = 0;
    for path in files {
        let name = path.file_name().unwrap().to_str().unwrap();
        let model = name.ends_with(".safetensors") || name.ends_with(".gguf");
        if !model || name.contains("_ref") || name.contains("moe3d") {
            continue;
        }
        // Three files hold 0xFF on purpose, which their own readers take for NaN or infinity.
        let edges = ["f_gptoss.safetensors", "h_deepseek_v4.safetensors", "h_gguf_mxfp4_edge.gguf"];
        let holds_ff = edges.contains(&name);
        let (found, report) = verify(&[path.to_str().unwrap()], i32::from(holds_ff));
        let errors: Vec<_> = found.iter().filter(|(severity, ..)| severity == "error").collect();
        assert_eq!(errors.len(), usize::from(holds_ff), "{name}: {report:#}");
        assert!(errors.iter().all(|(_, kind, _)| kind == "not-finite"), "{name}: {errors:?}");
        let suspicions = ["suspect", "stray", "absurd", "unused", "saturated"];
        let is_suspicion = |kind: &str| suspicions.iter().any(|s| kind.starts_with(s));
        // Scales from the least to the largest, on purpose as well.
        let edge = holds_ff || name.contains("_edge");
        let suspected = found.iter().filter(|(_, kind, _)| is_suspicion(kind));
        let suspected = suspected.filter(|(_, kind, _)| !(edge && kind == "absurd-values"));
        let suspected: Vec<_> = suspected.map(|(_, kind, module)| (&**kind, &**module)).collect();
        // Two weights of this file are 1000 times as large as the others, and have no scale: a lost
        // scale looks just like that, and only a person knows that it is none.
        let large = ["blk.0.attn_output", "blk.0.ffn_down"];
        let large = large.map(|module| ("suspect-missing-global-scale", module));
        let expected = if name == "h_gguf_nvfp4.gguf" { &large[..] } else { &[] };
        assert_eq!(suspected, expected, "{name}: {report:#}");
        assert!(report["layers"].as_u64().unwrap() > 0, "{name}: {report:#}");
        checked += 1;
    }
    assert!(checked >= 18, "{checked}");
}

#[test]
fn sound_models_are_clean() {
    let slice =
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/minilm-slice.safetensors"));
    let slice =
        vec![("real.weight".to_string(), Dtype::F32, vec![192, 384], slice["weight"].3.clone())];
    // Weights without any structure: a bell curve, an even spread with outliers, two values.
    let two: Vec<f32> = (0..256 * 256).map(|i| if i * 7 % 11 < 5 { 0.02 } else { -0.02 }).collect();
    let noise = vec![
        f32s("bell.up_proj.weight", &[256, 256], &normal(1, 256 * 256)),
        f32s("bell.down_proj.weight", &[256, 256], &normal(2, 256 * 256)),
        random("even.gate_proj.weight", Dtype::F32, &[256, 256], 3),
        random("even.up_proj.weight", Dtype::F32, &[256, 256], 4),
        f32s("two.weight", &[256, 256], &two),
    ];
    for format in ["nvfp4", "mxfp4"] {
        for (dense, layers) in [(&slice, 1), (&block(), 7), (&noise, 5)] {
            let native = quantized(dense, format);
            let folder = folder(&native, &json!({}));
            let (found, report) = verify(&[&folder.arg("")], 0);
            // Where all values have one magnitude, all codes are the largest.
            let others = found.iter().filter(|(_, kind, module)| {
                kind != FUSED && !(kind == "saturated-codes" && module == "two")
            });
            assert_eq!(others.count(), 0, "{format}: {report:#}");
            assert_eq!(
                (&report["layers"], &report["layouts"]["native"]),
                (&json!(layers), &json!(layers))
            );
        }
    }
    // In ModelOpt's layout, and in ComfyUI's, which is that with swapped nibbles and swizzled
    // scales.
    let mut tensors = modelopt(&quantized(&block(), "nvfp4"));
    let sound = folder(&tensors, &config());
    let (found, report) = verify(&[&sound.arg("")], 0);
    assert!(found.iter().all(|(_, kind, _)| kind == FUSED), "{report:#}");
    assert_eq!(report["layouts"], json!({ "modelopt": 7 }));
    let names: Vec<_> =
        tensors.keys().filter_map(|n| n.strip_suffix(".weight")).map(String::from).collect();
    for name in names {
        swap(&mut tensors, &format!("{name}.weight"));
        swizzle(&mut tensors, &format!("{name}.weight_scale"));
    }
    let comfy = folder(&tensors, &json!({}));
    let (found, report) = verify(&[&comfy.arg(""), "--layout", "comfyui"], 0);
    assert!(found.iter().all(|(_, kind, _)| kind == FUSED), "{report:#}");
    assert_eq!(report["layouts"], json!({ "comfyui": 7 }));
}

#[test]
fn swapped_nibbles_of_one_layer_or_of_all_are_suspected() {
    let good = modelopt(&quantized(&block(), "nvfp4"));
    let kind = "suspect-swapped-nibbles";
    // One of three that read the same input contradicts the two others.
    let mut one = good.clone();
    swap(&mut one, &format!("{ATTN}.q_proj.weight"));
    finds(
        &[&folder(&one, &config()).arg("")],
        "warning",
        kind,
        &[&format!("{ATTN}.q_proj")],
        &[FUSED],
    );
    // A reader of a writer's rows.
    let mut down = good.clone();
    swap(&mut down, &format!("{MLP}.down_proj.weight"));
    finds(
        &[&folder(&down, &config()).arg("")],
        "warning",
        kind,
        &[&format!("{MLP}.down_proj")],
        &[FUSED],
    );
    // All of them: only where another layer's rows show it.
    let mut all = good.clone();
    let names: Vec<_> = all.keys().filter(|name| name.ends_with(".weight")).cloned().collect();
    names.iter().for_each(|name| swap(&mut all, name));
    let both = [format!("{MLP}.down_proj"), format!("{ATTN}.o_proj")];
    finds(&[&folder(&all, &config()).arg("")], "warning", kind, &[&both[0], &both[1]], &[FUSED]);
}

#[test]
fn factors_that_smoothing_moved_between_layers_are_no_swapped_nibbles() {
    let mut dense = block();
    let by = sizes(9, 512).iter().map(|x| x.powi(3)).collect::<Vec<_>>();
    let (inner, features) = (sizes(2, 512), sizes(1, 256));
    let times = |a: &[f32], f: &dyn Fn(f32) -> f32| -> Vec<f32> {
        a.iter().zip(&by).map(|(a, b)| a * f(*b)).collect()
    };
    dense[5] = weight(&format!("{MLP}.up_proj"), &times(&inner, &|b| 1.0 / b), &features, 16);
    dense[6] = weight(&format!("{MLP}.down_proj"), &sizes(8, 256), &times(&inner, &|b| b), 17);
    let smoothed = modelopt(&quantized(&dense, "nvfp4"));
    let (found, report) = verify(&[&folder(&smoothed, &config()).arg("")], 0);
    assert!(found.iter().all(|(_, kind, _)| kind == FUSED), "{report:#}");
    let mut swapped = smoothed.clone();
    swap(&mut swapped, &format!("{MLP}.down_proj.weight"));
    let broken = folder(&swapped, &config());
    let module = [&*format!("{MLP}.down_proj")];
    finds(&[&broken.arg("")], "warning", "suspect-swapped-nibbles", &module, &[FUSED]);
}

#[test]
fn scales_in_a_false_order_are_suspected() {
    let mut tensors = modelopt(&quantized(&block(), "nvfp4"));
    let module = format!("{MLP}.up_proj");
    swizzle(&mut tensors, &format!("{module}.weight_scale"));
    let broken = folder(&tensors, &config());
    finds(&[&broken.arg("")], "warning", "suspect-swizzled-scales", &[&module], &[FUSED]);
    // Half a real weight, whose rows are a whole tile.
    let slice =
        read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/minilm-slice.safetensors"));
    let real = &slice["weight"].3[..128 * 384 * 4];
    let real = vec![("real.weight".to_string(), Dtype::F32, vec![128, 384], real.to_vec())];
    for format in ["nvfp4", "mxfp4"] {
        let mut native = quantized(&real, format);
        let sound = folder(&native, &json!({}));
        assert!(verify(&[&sound.arg("")], 0).0.is_empty());
        swizzle(&mut native, "real.scale_quant");
        let broken = folder(&native, &json!({}));
        finds(&[&broken.arg("")], "warning", "suspect-swizzled-scales", &["real"], &[]);
    }
}

#[test]
fn a_layout_forced_against_the_config_is_an_error_and_its_bytes_are_suspected() {
    // Under scales in a false order little is left of what tells the nibbles: of this block, by the
    // default rule, too little.
    let tensors = modelopt(&quantized_by(&block(), "nvfp4", "nearest"));
    let sound = folder(&tensors, &config());
    let (found, report) = verify(&[&sound.arg(""), "--layout", "comfyui"], 1);
    let kinds: BTreeSet<_> = found.iter().map(|(s, kind, _)| (&**s, &**kind)).collect();
    for kind in [
        ("error", "config-layout"),
        ("warning", "suspect-row-major-scales"),
        ("warning", "suspect-swapped-nibbles"),
    ] {
        assert!(kinds.contains(&kind), "{kind:?}: {report:#}");
    }
}

#[test]
fn a_reciprocal_or_missing_global_scale_is_suspected() {
    let good = modelopt(&quantized(&block(), "nvfp4"));
    let module = format!("{MLP}.up_proj");
    let name = format!("{module}.weight_scale_2");
    for (value, kind) in [
        (1.0 / scalar(&good, &name), "suspect-reciprocal-global-scale"),
        (1.0, "suspect-missing-global-scale"),
        (1e-20, "absurd-values"),
    ] {
        let mut broken = good.clone();
        set(&mut broken, &name, value);
        let broken = folder(&broken, &config());
        finds(&[&broken.arg("")], "warning", kind, &[&module], &[FUSED]);
    }
}

#[test]
fn scale_bytes_of_another_type_are_suspected() {
    let dense = vec![block().remove(5)];
    let module = format!("{MLP}.up_proj");
    let scales = format!("{module}.scale_quant");
    // e4m3 in e8m0's place: eighths of an octave below a top of 448.
    let mut mx = quantized(&dense, "mxfp4");
    let top = *mx[&scales].3.iter().max().unwrap();
    for (i, byte) in bytes(&mut mx, &scales).iter_mut().enumerate() {
        *byte = 0x7Eu8.saturating_sub(8 * (top - *byte) + (i * 37 % 8) as u8).max(1);
    }
    let broken = folder(&mx, &json!({}));
    finds(&[&broken.arg("")], "warning", "suspect-e4m3-as-e8m0", &[&module], &[]);
    // e8m0 in e4m3's place, which needs no global scale.
    let mut nv = quantized(&dense, "nvfp4");
    let global = format!("{module}.weight_global_scale");
    let exponent = scalar(&nv, &global).log2().floor() as i32;
    for byte in bytes(&mut nv, &scales) {
        *byte = (127 + i32::from(*byte >> 3) - 7 + exponent) as u8;
    }
    set(&mut nv, &global, 1.0);
    let broken = folder(&nv, &json!({}));
    finds(&[&broken.arg("")], "warning", "suspect-e8m0-as-e4m3", &[&module], &[]);
}

#[test]
fn an_exponent_applied_twice_is_suspected() {
    let layers: Vec<_> = (0..6)
        .map(|i| {
            let name = format!("layers.{i}.up_proj");
            weight(&name, &sizes(20 + i, 64), &sizes(30 + i, 128), 40 + i)
        })
        .collect();
    let good = quantized(&layers, "mxfp4");
    let sound = folder(&good, &json!({}));
    assert!(verify(&[&sound.arg("")], 0).0.is_empty());
    // The scales alone: a layer 4 times as large, or as small, as the others of its name.
    for shift in [2i8, -2] {
        let mut broken = good.clone();
        let scales = bytes(&mut broken, "layers.3.up_proj.scale_quant");
        scales.iter_mut().for_each(|byte| *byte = byte.wrapping_add_signed(shift));
        let broken = folder(&broken, &json!({}));
        let module = ["layers.3.up_proj"];
        finds(&[&broken.arg("")], "warning", "suspect-factor-four", &module, &[]);
    }
    // Scales that the codes followed: all of them small, or cut off.
    let quarter = [0, 0, 0, 1, 1, 2, 2, 3];
    let times_four = [0, 4, 6, 7, 7, 7, 7, 7];
    for (codes, kind) in [(quarter, "unused-codes"), (times_four, "saturated-codes")] {
        let mut broken = good.clone();
        for byte in bytes(&mut broken, "layers.3.up_proj.e2m1") {
            let of = |code: u8| code & 8 | codes[usize::from(code & 7)];
            *byte = of(*byte & 15) | of(*byte >> 4) << 4;
        }
        let broken = folder(&broken, &json!({}));
        let also = ["suspect-factor-four"];
        finds(&[&broken.arg("")], "warning", kind, &["layers.3.up_proj"], &also);
    }
}

#[test]
fn bytes_that_are_wrong_by_themselves_are_found_with_their_place() {
    let good = modelopt(&quantized(&block(), "nvfp4"));
    let module = format!("{ATTN}.k_proj");
    let (codes, scales) = (format!("{module}.weight"), format!("{module}.weight_scale"));
    let breaks: [(&str, &str, Break<'_>); 7] = [
        ("error", "not-finite", &|t| bytes(t, &scales)[5 * 16 + 3] = 0x7F),
        ("error", "negative-scale", &|t| bytes(t, &scales)[5 * 16 + 3] |= 0x80),
        ("warning", "zero-rows", &|t| bytes(t, &codes)[5 * 128..6 * 128].fill(0)),
        ("warning", "zero-tensor", &|t| bytes(t, &codes).fill(0x80)),
        ("warning", "zero-groups", &|t| {
            bytes(t, &codes).chunks_exact_mut(16).for_each(|two| two[..8].fill(0));
            bytes(t, &codes).chunks_exact_mut(128).for_each(|row| row[8..16].fill(0));
        }),
        ("warning", "absurd-values", &|t| set(t, &format!("{module}.weight_scale_2"), 1e30)),
        ("warning", "absurd-scalar", &|t| {
            let (name, scale) = (format!("{module}.input_scale"), 5000f32.to_le_bytes().to_vec());
            t.insert(name.clone(), (name, Dtype::F32, vec![], scale));
        }),
    ];
    for (severity, kind, break_it) in breaks {
        let mut broken = good.clone();
        break_it(&mut broken);
        let broken = folder(&broken, &config());
        finds(&[&broken.arg("")], severity, kind, &[&module], &[FUSED]);
    }
    let mut broken = good.clone();
    bytes(&mut broken, &scales)[5 * 16 + 3] = 0xFF;
    let broken = folder(&broken, &config());
    let (stdout, _) = code(&["verify", &broken.arg("")], 1);
    assert!(stdout.contains("0xFF, the first in row 5, group 3"), "{stdout}");
    assert!(stdout.contains("1 error, 2 warnings"), "{stdout}");
}

#[test]
fn tensors_that_are_missing_extra_or_of_a_wrong_shape_are_found() {
    let good = modelopt(&quantized(&block(), "nvfp4"));
    let module = format!("{ATTN}.k_proj");
    let [codes, scales, global] =
        ["weight", "weight_scale", "weight_scale_2"].map(|name| format!("{module}.{name}"));
    let breaks: [(&str, &str, Break<'_>); 8] = [
        ("error", "broken-layer", &|t| drop(t.remove(&scales))),
        ("error", "broken-layer", &|t| drop(t.remove(&global))),
        ("error", "broken-layer", &|t| set(t, &global, f32::NAN)),
        ("error", "broken-layer", &|t| set(t, &global, 0.0)),
        ("error", "broken-layer", &|t| set(t, &global, -1.0)),
        ("error", "broken-layer", &|t| t.get_mut(&scales).unwrap().2 = vec![128, 32]),
        ("warning", "stray-tensor", &|t| drop(t.remove(&codes))),
        ("warning", "stray-tensor", &|t| {
            let dense = random(&codes, Dtype::BF16, &[256, 256], 1);
            t.insert(codes.clone(), dense);
        }),
    ];
    for (i, (severity, kind, break_it)) in breaks.into_iter().enumerate() {
        let mut broken = good.clone();
        break_it(&mut broken);
        let broken = folder(&broken, &config());
        let (found, report) = verify(&[&broken.arg("")], i32::from(severity == "error"));
        let finding = (severity.to_string(), kind.to_string(), module.clone());
        assert!(found.contains(&finding), "break {i}: {report:#}");
        assert!(found.iter().all(|(_, k, _)| k == kind || k == FUSED), "break {i}: {report:#}");
    }
    let mut empty = good.clone();
    empty.insert("x".into(), ("x".into(), Dtype::F32, vec![0, 4], vec![]));
    finds(&[&folder(&empty, &config()).arg("")], "warning", "empty-tensor", &["x"], &[FUSED]);
}

#[test]
fn a_config_that_disagrees_with_the_tensors_is_found() {
    let good = modelopt(&quantized(&block(), "nvfp4"));
    let first = format!("{MLP}.down_proj");
    let breaks: [(&str, Value, &str); 6] = [
        ("config-layout", json!({ "quant_method": "quark" }), &first),
        ("config-format", json!({ "quant_method": "modelopt", "group_size": 32 }), &first),
        ("config-format", json!({ "quant_method": "modelopt", "quant_algo": "FP8" }), &first),
        (
            "config-ignored",
            json!({ "quant_method": "modelopt", "ignore": ["model.layers.*.mlp.down*"] }),
            &first,
        ),
        (
            "config-absent",
            json!({ "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
                    "quantized_layers": { "gone.q_proj": { "quant_algo": "NVFP4" } } }),
            "gone.q_proj",
        ),
        ("config-unreadable", Value::Null, ""),
    ];
    for (kind, block, module) in breaks {
        let config = if block.is_null() { block } else { json!({ "quantization_config": block }) };
        let broken = folder(&good, &config);
        let path = broken.arg("");
        // Without a config that can be read the layout must be named.
        let forced = ["--layout", "modelopt"];
        let args = if kind == "config-unreadable" {
            [&[&*path][..], &forced].concat()
        } else {
            vec![&*path]
        };
        // Without ModelOpt they are taken for ComfyUI's, and look as if they were not.
        let comfy = ["suspect-row-major-scales", "suspect-swapped-nibbles"];
        let also =
            if kind == "config-layout" { [&[FUSED][..], &comfy].concat() } else { vec![FUSED] };
        finds(&args, "error", kind, &[module], &also);
        // The right one given by hand mends it.
        fs::write(broken.at("right.json"), self::config().to_string()).unwrap();
        let (found, report) = verify(&[&path, "--config", &broken.arg("right.json")], 0);
        assert!(found.iter().all(|(_, kind, _)| kind == FUSED), "{kind}: {report:#}");
    }
}

#[test]
fn expressions_of_a_config_that_are_not_read_are_told() {
    let good = modelopt(&quantized(&block(), "nvfp4"));
    let mut config = config();
    config["quantization_config"]["ignore"] = json!(["re:(?=lm)lm_head", "re:a(", "re:.*gone$"]);
    let folder = folder(&good, &config);
    let args = [&*folder.arg("")];
    finds(&args, "warning", "config-expression", &[""], &[FUSED]);
    let (_, report) = verify(&args, 0);
    let said = report.to_string();
    assert!(said.contains("`ignore` has 2 regular expressions"), "{report:#}");
    assert!(said.contains("`re:(?=lm)lm_head` first"), "{report:#}");
}

#[test]
fn layers_that_the_config_denies_are_an_error_and_not_silently_none() {
    let folder = Folder::new();
    fs::copy(vectors().join("f_ct_nvfp4.safetensors"), folder.at("model.safetensors")).unwrap();
    let config = json!({ "quantization_config": { "quant_method": "quark" } });
    fs::write(folder.at("config.json"), config.to_string()).unwrap();
    let first = format!("{MLP}.down_proj");
    finds(&[&folder.arg("")], "error", "config-layout", &[&first], &["no-layers"]);
}

#[test]
fn two_layouts_that_fit_are_an_error_and_naming_one_mends_it() {
    let folder = Folder::new();
    fs::copy(vectors().join("f_ct_nvfp4.safetensors"), folder.at("model.safetensors")).unwrap();
    finds(&[&folder.arg("")], "error", "ambiguous-layout", &[""], &[]);
    let (found, _) = verify(&[&folder.arg(""), "--layout", "compressed-tensors"], 0);
    assert!(found.iter().all(|(severity, ..)| severity == "warning"), "{found:?}");
}

#[test]
fn broken_files_are_a_finding_and_what_is_no_checkpoint_is_unreadable() {
    let folder = Folder::new();
    let broken = |path: &str, needle: &str| {
        let (found, report) = verify(&[path], 1);
        let only = ("error".to_string(), "broken-file".to_string(), String::new());
        assert_eq!(found, BTreeSet::from([only]), "{report:#}");
        let message = report["findings"][0]["message"].as_str().unwrap();
        assert!(message.contains(needle), "{message}");
    };
    write(&folder.at("whole.safetensors"), &model());
    let whole = fs::read(folder.at("whole.safetensors")).unwrap();
    for len in [0, 100, whole.len() - 1] {
        fs::write(folder.at("cut.safetensors"), &whole[..len]).unwrap();
        broken(&folder.arg("cut.safetensors"), "cut short");
    }
    let long = [whole.as_slice(), &[0]].concat();
    fs::write(folder.at("long.safetensors"), long).unwrap();
    broken(&folder.arg("long.safetensors"), "bytes follow the last tensor");
    let entry = |at: usize| {
        let end = at + 1;
        format!(r#""a":{{"dtype":"U8","shape":[1],"data_offsets":[{at},{end}]}}"#)
    };
    let two = raw(&format!("{{{},{}}}", entry(0), entry(1)), &[0, 0]);
    fs::write(folder.at("two.safetensors"), two).unwrap();
    broken(&folder.arg("two.safetensors"), "`a`");

    let gguf = fs::read(vectors().join("h_gguf_mxfp4.gguf")).unwrap();
    for len in [8, 1000, gguf.len() - 1000] {
        fs::write(folder.at("cut.gguf"), &gguf[..len]).unwrap();
        broken(&folder.arg("cut.gguf"), "cut short");
    }

    let (first, index) = ("model-00001-of-00002.safetensors", "model.safetensors.index.json");
    let shards = || {
        let shards = Folder::new();
        sharded(shards.path());
        shards
    };
    let missing = shards();
    fs::remove_file(missing.at(first)).unwrap();
    broken(&missing.arg(""), first);
    let cut = shards();
    let bytes = fs::read(cut.at(first)).unwrap();
    fs::write(cut.at(first), &bytes[..bytes.len() - 1]).unwrap();
    broken(&cut.arg(""), "cut short");
    let renamed = shards();
    let text = fs::read_to_string(renamed.at(index)).unwrap();
    fs::write(renamed.at(index), text.replace("norm.weight", "gone.weight")).unwrap();
    broken(&renamed.arg(""), "norm.weight");
    let outside = shards();
    fs::write(outside.at(index), text.replace(first, "../other.safetensors")).unwrap();
    broken(&outside.arg(""), "../other.safetensors");

    fs::write(folder.at("page.safetensors"), "<!DOCTYPE html><html></html>").unwrap();
    fs::write(folder.at("notes.txt"), "these are notes, and no tensors at all").unwrap();
    fs::create_dir(folder.at("empty")).unwrap();
    for name in ["gone.safetensors", "page.safetensors", "notes.txt", "empty"] {
        fails(&["verify", &folder.arg(name)], &[name]);
        fails(&["verify", &folder.arg(name), "--json"], &[name]);
    }
    fails(
        &["verify", &folder.arg("whole.safetensors"), "--config", &folder.arg("none.json")],
        &["none.json"],
    );
    // A dense checkpoint is whole, and not what was asked about.
    finds(&[&folder.arg("whole.safetensors")], "warning", "no-layers", &[""], &[]);
}

#[test]
fn eight_bits_of_mlx_beside_fp4_are_no_strays() {
    let folder = Folder::new();
    let word =
        |name: &str, n: usize| (name.to_string(), Dtype::U32, vec![4, n], vec![0x21; 16 * n]);
    let scale = |name: &str| (name.to_string(), Dtype::U8, vec![4, 2], vec![120; 8]);
    let tensors = [word("a.weight", 8), scale("a.scales"), word("b.weight", 16), scale("b.scales")];
    write(&folder.at("model.safetensors"), &tensors);
    let found = |b: Value| {
        let own = json!({ "group_size": 32, "bits": 4, "mode": "mxfp4", "b": b });
        fs::write(folder.at("config.json"), json!({ "quantization": own }).to_string()).unwrap();
        verify(&[&folder.arg("")], 0).0.into_iter().map(|(_, kind, _)| kind).collect::<Vec<_>>()
    };
    let eight = found(json!({ "group_size": 32, "bits": 8, "mode": "mxfp8" }));
    assert!(!eight.iter().any(|kind| kind == "stray-tensor"), "{eight:?}");
}

#[test]
fn a_gguf_file_is_not_judged_by_the_config_beside_it() {
    let folder = Folder::new();
    fs::copy(vectors().join("h_gguf_nvfp4.gguf"), folder.at("m.gguf")).unwrap();
    let before = verify(&[&folder.arg("m.gguf")], 0).0;
    let config = json!({ "quantization_config": { "quant_method": "compressed-tensors" } });
    fs::write(folder.at("config.json"), config.to_string()).unwrap();
    assert_eq!(verify(&[&folder.arg("m.gguf")], 0).0, before);
}

#[test]
fn names_from_files_cannot_steer_the_terminal() {
    let folder = Folder::new();
    let name = "a\u{1b}[2J\n.weight_scale";
    write(&folder.at("m.safetensors"), &[random(name, Dtype::F32, &[4], 1)]);
    let stdout = ok(&["verify", &folder.arg("m.safetensors")]);
    assert!(stdout.contains("stray-tensor") && !stdout.contains('\u{1b}'), "{stdout:?}");
    assert!(stdout.contains(r"a\u{1b}[2J\n"), "{stdout:?}");
}
