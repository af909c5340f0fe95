//! Weights that are not stored as a linear layer's: experts, GPT-2's layers, block FP8.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear};
use safetensors::Dtype;
use serde_json::{Value, json};

fn vectors() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/vectors")
}

/// Quantizes a vector file, with its config beside it or without.
fn quantize(folder: &Folder, name: &str, config: bool, args: &[&str]) -> PathBuf {
    let input = folder.arg(&format!("{name}.safetensors"));
    fs::copy(vectors().join(format!("{name}.safetensors")), &input).unwrap();
    let own = folder.at(&format!("{name}.config.json"));
    match config {
        true => drop(fs::copy(vectors().join(format!("{name}.config.json")), own).unwrap()),
        false => drop(fs::remove_file(own)),
    }
    let output = folder.arg("out");
    ok(&[&["quantize", &input, "-o", &output, "--force"], args].concat());
    folder.at("out")
}

#[test]
fn experts_are_quantized_slice_by_slice_to_the_bytes_of_the_reference() {
    let folder = Folder::new();
    for name in ["h_moe3d_bf16", "h_moe3d_bf16_gptoss"] {
        let reference = read(&vectors().join(format!("{name}_ref.safetensors")));
        for (format, key) in [("mxfp4", "mx"), ("nvfp4", "nv")] {
            // Tiles of everything, and of a few elements.
            for memory in ["1GB", "1"] {
                // The vectors are of the contract's own rule.
                let rule = ["--scale-rule", "nearest"];
                let args = [&["--format", format, "--memory", memory][..], &rule].concat();
                let written = read(&quantize(&folder, name, true, &args));
                let mut compared = 0;
                for (full, (_, _, shape, expected)) in &reference {
                    let Some((tensor, part)) = full.rsplit_once(&format!(".{key}.")) else {
                        continue;
                    };
                    let part = match part {
                        "codes" => "e2m1",
                        "scales" => "scale_quant",
                        _ => "weight_global_scale",
                    };
                    for (expert, expected) in
                        expected.chunks_exact(expected.len() / shape[0]).enumerate()
                    {
                        let (_, _, _, got) = &written[&format!("{tensor}.{expert}.{part}")];
                        assert_eq!(got, expected, "{full} of expert {expert}, {format} {memory}");
                        compared += 1;
                    }
                    assert!(!written.contains_key(tensor));
                }
                let parts = if key == "nv" { 3 } else { 2 };
                let tensors = if name == "h_moe3d_bf16" { 4 } else { 2 };
                assert_eq!(compared, 2 * parts * tensors, "{name} {format}");
            }
        }
    }
}

#[test]
fn a_layer_of_each_expert_can_be_loaded_and_biases_stay() {
    let folder = Folder::new();
    let out = quantize(&folder, "h_moe3d_bf16_gptoss", true, &["--format", "nvfp4"]);
    let (written, dense) = (read(&out), read(&folder.at("h_moe3d_bf16_gptoss.safetensors")));
    let experts = "model.layers.0.mlp.experts";
    for expert in 0..2 {
        let layer = layer(&out, &format!("{experts}.down_proj.{expert}"));
        assert_eq!((layer.out_features(), layer.in_features()), (64, 32));
    }
    for bias in ["gate_up_proj_bias", "down_proj_bias"] {
        let name = format!("{experts}.{bias}");
        assert_eq!(written[&name], dense[&name]);
    }
}

#[test]
fn square_experts_need_a_config_or_the_flag_that_the_error_names() {
    let folder = Folder::new();
    let name = "h_moe3d_bf16_gptoss";
    let with = fs::read(quantize(&folder, name, true, &["--format", "mxfp4"])).unwrap();
    // The name alone would have attention quantized too.
    let alone = ["--format", "mxfp4", "--include", "*experts*"];
    let input = folder.arg(&format!("{name}.safetensors"));
    fs::remove_file(folder.at(&format!("{name}.config.json"))).unwrap();
    let before = folder.snapshot();
    let none = folder.arg("none");
    let args = [&["quantize", &input, "-o", &none][..], &alone].concat();
    fails(&args, &["experts.down_proj", "--experts out-in", "--experts in-out"]);
    fails(&[&args[..], &["--dry-run"]].concat(), &["--experts in-out"]);
    assert_eq!(folder.snapshot(), before);
    let told = |experts| {
        let args = [&alone[..], &["--experts", experts]].concat();
        fs::read(quantize(&folder, name, false, &args)).unwrap()
    };
    assert_eq!(told("in-out"), with);
    assert_ne!(told("out-in"), with);
}

/// The transposed matrix, (rows, cols) of f32.
fn transposed(tensor: &Tensor) -> Tensor {
    let (name, dtype, shape, bytes) = tensor;
    let &[rows, cols] = &shape[..] else { panic!("{shape:?}") };
    let size = bytes.len() / (rows * cols);
    let mut out = vec![];
    for col in 0..cols {
        for row in 0..rows {
            let at = (row * cols + col) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    (name.clone(), *dtype, vec![cols, rows], out)
}

#[test]
fn gpt2s_layers_are_transposed_in_tiles_of_any_size() {
    let folder = Folder::new();
    let stored = |dtype| {
        [
            random("h.0.attn.c_attn.weight", dtype, &[256, 768], 1),
            random("h.0.attn.c_proj.weight", dtype, &[256, 256], 2),
            random("h.0.mlp.c_proj.weight", dtype, &[1024, 256], 3),
            // So wide that what is between its strips is skipped.
            random("h.0.mlp.c_fc.weight", dtype, &[128, 4500], 4),
        ]
    };
    for dtype in [Dtype::F32, Dtype::BF16] {
        write(&folder.at("in"), &stored(dtype));
        write(
            &folder.at("linear"),
            &stored(dtype).map(|t| {
                // Under names that nothing is known of.
                let (name, dtype, shape, bytes) = transposed(&t);
                (name.replace("c_", "l_"), dtype, shape, bytes)
            }),
        );
        let run = |input: &str, args: &[&str]| {
            let (input, output) = (folder.arg(input), folder.arg("out"));
            let common = ["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"];
            ok(&[&common[..], args].concat());
            read(&folder.at("out"))
        };
        let expected = run("linear", &[]);
        for memory in ["1", "300kB", "1GB"] {
            let got = run("in", &["--memory", memory]);
            assert_eq!(got.len(), expected.len());
            for (name, (_, dtype, shape, bytes)) in &got {
                let (_, d, s, b) = &expected[&name.replace("c_", "l_")];
                assert_eq!((dtype, shape), (d, s), "{name}");
                assert!(bytes == b, "{name} {memory}");
            }
        }
    }
}

fn text_of(value: &Value) -> &str {
    value.as_str().unwrap()
}

/// An F8_E4M3 weight of all finite codes, and what it is worth under scales by row and column.
fn fp8(name: &str, rows: usize, k: usize, scale: impl Fn(usize, usize) -> f32) -> (Tensor, Tensor) {
    let codes: Vec<u8> =
        (0..rows * k).map(|i| ((i * 37 + i / k) % 126 + (i % 2) * 128) as u8).collect();
    let values: Vec<f32> = codes
        .iter()
        .enumerate()
        .map(|(i, code)| fp4_core::E4m3::from_bits(*code).to_f32() * scale(i / k, i % k))
        .collect();
    let dense = f32s(name, &[rows, k], &values);
    ((name.into(), Dtype::F8_E4M3, vec![rows, k], codes), dense)
}

#[test]
fn fp8_weights_are_quantized_from_their_values_and_their_scales_left_out() {
    let folder = Folder::new();
    let block = |row: usize, col: usize| 2f32.powi((row / 128) as i32 - 3) * (1 + col / 128) as f32;
    let (a, a_dense) = fp8("a.weight", 200, 256, block);
    let (b, b_dense) = fp8("b.weight", 8, 64, |row, _| 0.1 + row as f32);
    let (c, c_dense) = fp8("c.weight", 8, 64, |_, _| 0.3);
    let (d, d_dense) = fp8("d.weight", 130, 64, |row, _| 2f32.powi((row / 128) as i32 - 4));
    let kept = ("lm_head.weight".to_string(), Dtype::F8_E4M3, vec![8, 64], vec![0x38; 512]);
    let blocks: Vec<f32> =
        [(0, 0), (0, 128), (128, 0), (128, 128)].map(|(r, c)| block(r, c)).into();
    let by_row: Vec<f32> = (0..8).map(|row| 0.1 + row as f32).collect();
    write(
        &folder.at("in"),
        &[
            a,
            f32s("a.weight_scale_inv", &[2, 2], &blocks),
            b,
            f32s("b.weight_scale", &[8, 1], &by_row),
            c,
            f32s("c.weight_scale", &[], &[0.3]),
            d,
            ("d.scale".into(), Dtype::F8_E8M0, vec![2, 1], vec![123, 124]),
            kept.clone(),
            f32s("lm_head.weight_scale_inv", &[1, 1], &[2.0]),
        ],
    );
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let args = ["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"];
    for memory in ["1", "1GB"] {
        let json = json(&[&args[..], &["--memory", memory]].concat());
        let written = read(&folder.at("out"));
        let options = DenseOptions::new(Format::NvFp4);
        for (name, _, shape, bytes) in [&a_dense, &b_dense, &c_dense, &d_dense] {
            let values: Vec<f32> = bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
                .collect();
            let want = QuantLinear::from_dense(&values[..], shape[0], shape[1], &options).unwrap();
            let prefix = name.strip_suffix(".weight").unwrap();
            assert_same_layer(&layer(&folder.at("out"), prefix), &want);
        }
        assert_eq!(written["lm_head.weight"], kept);
        let mut others: Vec<_> = written.keys().filter(|n| n.contains("weight_scale")).collect();
        others.retain(|name| !name.contains("global"));
        assert_eq!(others, ["lm_head.weight_scale_inv"]);
        assert!(!written.contains_key("d.scale"));
        // Every tensor of two or more dimensions is in one of the lists.
        let skipped = json["skipped"].as_array().unwrap().iter();
        let names: Vec<_> = skipped.map(|s| s["name"].as_str().unwrap()).collect();
        assert_eq!(
            names,
            [
                "a.weight_scale_inv",
                "b.weight_scale",
                "d.scale",
                "lm_head.weight",
                "lm_head.weight_scale_inv"
            ]
        );
    }
    // A block of another size, by the config.
    fs::write(
        folder.at("in.config.json"),
        json!({
            "quantization_config": { "weight_block_size": [100, 256] }
        })
        .to_string(),
    )
    .unwrap();
    let text = ok(&args);
    assert!(text.contains("not quantized: a.weight: its scales `a.weight_scale_inv`"), "{text}");
    fails(&[&args[..], &["--strict"]].concat(), &["--strict", "a.weight", "[2, 1]"]);
}

#[test]
fn what_only_fp8_software_reads_is_used_up_with_the_weight_and_named() {
    let folder = Folder::new();
    let (a, _) = fp8("a.weight", 32, 64, |_, _| 1.0);
    let (_, _, shape, codes) = a.clone();
    let kept = ("lm_head.weight".to_string(), Dtype::F8_E4M3, shape, codes);
    let one = |name: &str, shape: &[usize]| f32s(name, shape, &[0.5]);
    write(
        &folder.at("in"),
        &[
            a,
            one("a.weight_scale_inv", &[1, 1]),
            one("a.weight_scale", &[]),
            one("a.scale_weight", &[1, 1]),
            one("a.input_scale", &[]),
            one("a.scale_input", &[1]),
            one("a.activation_scale", &[]),
            // What may have a meaning of its own, and what belongs to a weight that stays.
            one("a.scale", &[1]),
            one("b.input_scale", &[]),
            kept,
            one("lm_head.weight_scale_inv", &[1, 1]),
            one("lm_head.input_scale", &[]),
        ],
    );
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let args = ["quantize", &input, "-o", &output, "--format", "nvfp4"];
    let planned = json(&[&args[..], &["--dry-run"]].concat());
    let done = json(&args);
    let gone = ["activation_scale", "input_scale", "scale_input", "scale_weight", "weight_scale"];
    let gone = gone.iter().chain(&["weight_scale_inv"]).map(|end| format!("a.{end}"));
    let gone: Vec<_> = gone.collect();
    for said in [&planned, &done] {
        let used_up = said["used_up"].as_array().unwrap();
        let names: Vec<_> = used_up.iter().map(|used| text_of(&used["name"])).collect();
        assert_eq!(names, gone);
        assert!(used_up.iter().all(|used| used["weight"] == "a.weight" && used["bytes"] == 4));
    }
    let [before, after] = ["in", "out"].map(|name| read(&folder.at(name)));
    for (name, tensor) in &before {
        let stays = name != "a.weight" && !gone.contains(name);
        assert_eq!(after.get(name), stays.then_some(tensor), "{name}");
    }
    let text = ok(&[&args[..], &["--force"]].concat());
    for (name, count) in [("a.input_scale", 1), ("a.scale_weight", 1), ("lm_head.input", 0)] {
        assert_eq!(text.matches(name).count(), count, "{text}");
    }
    assert!(text.contains("not written: a.input_scale: a scale of the FP8 bytes of a.weight"));
    // `compare` takes them as part of the weight as well.
    assert_eq!(found_again(&folder, &[]), 1);
}

/// The error that `quantize` reports, found again by `compare` and `report` in either order of the
/// two files; how many weights were compared.
fn found_again(folder: &Folder, args: &[&str]) -> usize {
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let common = ["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"];
    let quantized = json(&[&common[..], args].concat());
    let expected = quantized["totals"]["relative_error"].as_f64().unwrap();
    assert!(expected > 0.01 && expected < 0.3, "{expected}");
    let close = |found: &Value| {
        let found = found.as_f64().unwrap();
        assert!((found - expected).abs() <= 1e-9 * expected, "{found} {expected}");
    };
    let mut layers = 0;
    for [a, b] in [[&input, &output], [&output, &input]] {
        let compared = json(&["compare", a, b]);
        close(&compared["totals"]["quantized_relative_error"]);
        assert_eq!((&compared["only_in_a"], &compared["only_in_b"]), (&json!([]), &json!([])));
        let pairs = compared["tensors"].as_array().unwrap().iter();
        let quantized: Vec<_> = pairs.filter(|pair| pair["kind"] == "dense-quantized").collect();
        let report = json(&["report", a, b]);
        close(&report["totals"]["error"]["relative_error"]);
        assert_eq!(report["totals"]["layers"], quantized.len());
        assert_eq!(report["problems"]["first"], json!([]));
        for only in ["only_in_a", "only_in_b"] {
            assert_eq!(report[only]["first"], json!([]));
        }
        let rows = report["rows"].as_array().unwrap().iter();
        for row in rows.filter(|row| row["layout"] == "native") {
            let name = format!("{}.weight", text_of(&row["name"]));
            let pair = quantized.iter().find(|pair| pair["name"] == *name).unwrap();
            assert_eq!(row["error"]["relative_error"], pair["relative_error"], "{name}");
        }
        layers = quantized.len();
    }
    layers
}

#[test]
fn the_error_of_gpt2s_layers_is_found_with_a_config_and_without() {
    let folder = Folder::new();
    let tensors = [
        random("h.0.attn.c_attn.weight", Dtype::BF16, &[256, 768], 1),
        random("h.0.attn.c_proj.weight", Dtype::BF16, &[256, 256], 2),
        random("h.0.attn.c_proj.bias", Dtype::BF16, &[256], 3),
        random("h.0.mlp.c_proj.weight", Dtype::BF16, &[1024, 256], 4),
    ];
    write(&folder.at("in"), &tensors);
    assert_eq!(found_again(&folder, &[]), 3);
    let text = ok(&["compare", &folder.arg("in"), &folder.arg("out")]);
    assert!(text.contains("3 dense weights stored (in, out)"), "{text}");
    let transform = ["--transform", "hadamard", "--transform-block", "64"];
    assert_eq!(found_again(&folder, &transform), 3);
    fs::write(folder.at("in.config.json"), r#"{"model_type": "gpt2"}"#).unwrap();
    assert_eq!(found_again(&folder, &[]), 3);
    // By the header of the quantized side alone: the square one is all there is.
    write(&folder.at("in"), &tensors[1..3]);
    assert_eq!(found_again(&folder, &[]), 1);
    fs::remove_file(folder.at("in.config.json")).unwrap();
    let text = ok(&["compare", &folder.arg("in"), &folder.arg("out")]);
    assert!(text.contains("1 dense weight stored (in, out)"), "{text}");
    // A linear layer of another name is not turned.
    let (name, dtype, shape, bytes) = transposed(&random("x.weight", Dtype::F32, &[64, 128], 5));
    write(&folder.at("in"), &[(name.clone(), dtype, shape, bytes)]);
    ok(&["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "-f", "nvfp4", "--force"]);
    write(&folder.at("in"), &[random("x.weight", Dtype::F32, &[64, 128], 5)]);
    let (_, stderr) = code(&["compare", &folder.arg("in"), &folder.arg("out")], 2);
    assert!(stderr.contains("[64, 128]") && stderr.contains("[128, 64]"), "{stderr}");
}

#[test]
fn the_error_of_experts_in_either_order_is_found_slice_by_slice() {
    let folder = Folder::new();
    for (name, layers) in [("h_moe3d_bf16", 8), ("h_moe3d_bf16_gptoss", 4)] {
        let from = |end: &str| vectors().join(format!("{name}{end}"));
        fs::copy(from(".safetensors"), folder.at("in")).unwrap();
        fs::copy(from(".config.json"), folder.at("in.config.json")).unwrap();
        assert!(found_again(&folder, &[]) >= layers, "{name}");
    }
    let experts = "language_model.model.layers.0.feed_forward.experts";
    let tensors = [
        random(&format!("{experts}.gate_up_proj"), Dtype::BF16, &[3, 64, 256], 1),
        random(&format!("{experts}.down_proj"), Dtype::BF16, &[3, 128, 64], 2),
        random(&format!("{experts}.square"), Dtype::F32, &[3, 64, 64], 3),
    ];
    write(&folder.at("in"), &tensors);
    fs::write(folder.at("in.config.json"), r#"{"model_type": "llama4"}"#).unwrap();
    assert_eq!(found_again(&folder, &[]), 9);
    let found = json(&["compare", &folder.arg("in"), &folder.arg("out")]);
    let turned = found["tensors"].as_array().unwrap().iter();
    assert!(turned.clone().all(|t| t["in_out"] == true) && turned.count() == 9);
}

/// A file with square experts, and what says how they are stored.
fn square(folder: &Folder) -> String {
    let name = "model.layers.0.mlp.experts.down_proj";
    write(&folder.at("in"), &[random(name, Dtype::F32, &[2, 64, 64], 1)]);
    fs::write(folder.at("oss.json"), r#"{"model_type": "gpt_oss"}"#).unwrap();
    folder.arg("oss.json")
}

#[test]
fn square_experts_are_turned_by_the_record_or_the_config_or_not_at_all() {
    let folder = Folder::new();
    let config = square(&folder);
    let [input, output] = ["in", "out"].map(|name| folder.arg(name));
    for way in ["in-out", "out-in"] {
        assert_eq!(found_again(&folder, &["--experts", way]), 2);
        // Against a config that says otherwise nothing is guessed.
        let args = ["compare", &input, &output, "--config", &config];
        match way {
            "in-out" => drop(ok(&args)),
            _ => {
                let (_, stderr) = code(&args, 2);
                assert!(stderr.contains("(in, out), and by the header"), "{stderr}");
                let (_, stderr) = code(&[&["report"], &args[1..], &["--json"]].concat(), 2);
                assert!(stderr.contains("(in, out), and by the header"), "{stderr}");
            }
        }
    }
    // A file that records nothing.
    ok(&["quantize", &input, "-o", &output, "-f", "nvfp4", "--force", "--experts", "in-out"]);
    write(&folder.at("out"), &read(&folder.at("out")).into_values().collect::<Vec<_>>());
    for [a, b] in [[&input, &output], [&output, &input]] {
        let (_, stderr) = code(&["compare", a, b], 2);
        assert!(stderr.contains("nothing tells") && stderr.contains("config.json"), "{stderr}");
        let found = json(&["compare", a, b, "--config", &config]);
        let error = found["totals"]["quantized_relative_error"].as_f64().unwrap();
        assert!(error < 0.2, "{error}");
    }
    // A record that is none.
    let bytes = fs::read(folder.at("out")).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + len]).unwrap().trim_end();
    let record = r#"{"__metadata__":{"exact_fp4.orientation":"{\"a\": 1}"},"#;
    fs::write(folder.at("out"), raw(&header.replacen('{', record, 1), &bytes[8 + len..])).unwrap();
    fails(&["compare", &input, &output], &["exact_fp4.orientation", "write the file again"]);
}

#[test]
fn what_is_dequantized_is_out_in_whatever_the_config_says_of_such_models() {
    let folder = Folder::new();
    let config = square(&folder);
    let linear = random("h.0.attn.c_attn.weight", Dtype::F32, &[64, 192], 2);
    let experts = read(&folder.at("in")).into_values().next().unwrap();
    for (tensor, model_type) in [(experts, "gpt_oss"), (linear, "gpt2")] {
        write(&folder.at("in"), &[tensor]);
        let config_of = format!(r#"{{"model_type": "{model_type}"}}"#);
        fs::write(&config, config_of).unwrap();
        let [input, output, dense, again] =
            ["in", "out", "dense.safetensors", "again"].map(|n| folder.arg(n));
        fs::copy(&config, folder.at("in.config.json")).unwrap();
        ok(&["quantize", &input, "-o", &output, "-f", "mxfp4", "--force"]);
        ok(&["dequantize", &output, "-o", &dense, "--dtype", "f32", "--force"]);
        let found = json(&["compare", &dense, &output, "--config", &config]);
        assert_eq!(found["totals"]["quantized_relative_error"], 0.0, "{found}");
        // And so it is quantized again, to layers of the same shape.
        fs::copy(&config, folder.at("dense.config.json")).unwrap();
        ok(&["quantize", &dense, "-o", &again, "-f", "mxfp4", "--force"]);
        let [first, second] = ["out", "again"].map(|name| read(&folder.at(name)));
        for (name, (_, _, shape, _)) in &first {
            assert_eq!(&second[name].2, shape, "{name}");
        }
        let found = json(&["compare", &dense, &again]);
        assert!(found["totals"]["quantized_relative_error"].as_f64().unwrap() < 0.2, "{found}");
    }
}

#[test]
fn the_error_of_fp8_weights_is_found_by_block_by_row_and_by_expert() {
    let folder = Folder::new();
    let block = |row: usize, col: usize| 2f32.powi((row / 128) as i32 - 3) * (1 + col / 128) as f32;
    let (a, _) = fp8("a.weight", 200, 256, block);
    let (b, _) = fp8("b.weight", 8, 64, |row, _| 0.1 + row as f32);
    let (_, _, _, codes) = fp8("x", 2 * 32, 64, |_, _| 1.0).0;
    let experts = "model.layers.0.mlp.experts.up_proj";
    let blocks: Vec<f32> =
        [(0, 0), (0, 128), (128, 0), (128, 128)].map(|(r, c)| block(r, c)).into();
    let by_row: Vec<f32> = (0..8).map(|row| 0.1 + row as f32).collect();
    let of_experts: Vec<f32> = (0..64).map(|row| 0.25 + row as f32).collect();
    write(
        &folder.at("in"),
        &[
            a,
            f32s("a.weight_scale_inv", &[2, 2], &blocks),
            f32s("a.input_scale", &[], &[0.5]),
            b,
            f32s("b.weight_scale", &[8, 1], &by_row),
            (experts.into(), Dtype::F8_E4M3, vec![2, 32, 64], codes),
            f32s(&format!("{experts}_scale_inv"), &[2, 32, 1], &of_experts),
            random("norm.weight", Dtype::F32, &[64], 1),
        ],
    );
    assert_eq!(found_again(&folder, &["--experts", "out-in"]), 4);
    // Values against values, where the other side is dense too.
    ok(&["dequantize", &folder.arg("in"), "-o", &folder.arg("dense"), "--dtype", "f32"]);
    // Transposed, in tiles of any size, as the same values in F32 are.
    let turned = |input: &str, memory: &str| {
        let (input, output) = (folder.arg(input), folder.arg("out"));
        let args = ["quantize", &input, "-o", &output, "-f", "nvfp4", "--force"];
        ok(&[&args[..], &["--experts", "in-out", "--memory", memory]].concat());
        let written = read(&folder.at("out")).into_iter();
        written.filter(|(name, _)| name.starts_with(experts)).collect::<Vec<_>>()
    };
    let expected = turned("dense/model.safetensors", "1GB");
    assert_eq!(expected.len(), 2 * 5);
    for memory in ["1", "1GB"] {
        assert!(turned("in", memory) == expected, "{memory}");
    }
    assert_eq!(found_again(&folder, &["--experts", "in-out"]), 4);
    for [a, b] in [["in", "dense"], ["dense", "in"]] {
        let found = json(&["compare", &folder.arg(a), &folder.arg(b), "--tolerance", "0"]);
        let named = |name: &str| {
            let pairs = found["tensors"].as_array().unwrap().iter();
            pairs.clone().find(|pair| pair["name"] == name).cloned().unwrap()
        };
        for name in ["a.weight", "b.weight", experts] {
            assert_eq!(named(name)["relative_error"], 0.0, "{found}");
        }
    }
}
