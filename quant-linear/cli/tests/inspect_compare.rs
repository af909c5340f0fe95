//! `fp4 inspect` and `fp4 compare` on small files whose answers are known.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use quant_linear::checkpoint::gguf::{self, GgmlType, GgufArrangement};
use safetensors::Dtype;
use serde_json::{Value, json};

/// A layer `a` of 2 x 32 in NVFP4.
fn layer_tensors(codes: Vec<u8>, scales: [u8; 4]) -> Vec<Tensor> {
    vec![
        ("a.e2m1".into(), Dtype::U8, vec![2, 16], codes),
        ("a.scale_quant".into(), Dtype::F8_E4M3, vec![2, 2], scales.to_vec()),
        f32s("a.weight_global_scale", &[], &[0.5]),
        f32s("a.activation_global_scale", &[1], &[0.25]),
        f32s("other", &[3], &[1.0, 2.0, 3.0]),
    ]
}

#[test]
fn inspect_counts_scales_and_groups() {
    let folder = Folder::new();
    // Groups: zeros of both signs; ones; NaN scale; a lone code in the last place.
    let mut codes = vec![0x80; 8];
    codes.extend([0x22; 16]);
    codes.extend([0; 7]);
    codes.push(0x10);
    write(&folder.at("q"), &layer_tensors(codes, [0x38, 0xC0, 0x7F, 0x03]));
    let json = json(&["inspect", &folder.arg("q")]);
    assert_eq!(json["tensors"].as_array().unwrap().len(), 5);
    assert_eq!(
        json["tensors"][1],
        json!({ "name": "a.e2m1", "dtype": "U8", "shape": [2, 16], "bytes": 32, "file": "q" })
    );
    let expected = json!({
        "name": "a", "prefix": "a", "layout": "native", "tensor": "a.weight", "shape": [2, 32],
        "experts": null, "weight_global_scales": [0.5], "format": "nvfp4",
        "out_features": 2, "in_features": 32, "group_size": 16,
        "scale_type": "e4m3", "weight_global_scale": 0.5, "activation_global_scale": 0.25,
        "activation_scale_scale": null, "activations": "fp4",
        "activations_note": null, "transform": null,
        "zero_groups": 1, "nan_scales": 1,
        "scales": {
            "total": 4, "nan": 1, "zero": 0, "subnormal": 1, "negative": 1,
            "exponents": [
                { "exponent": -8, "count": 1 }, { "exponent": 0, "count": 1 },
                { "exponent": 1, "count": 1 },
            ],
        },
    });
    assert_eq!(json["layers"], json!([expected]));
    let text = ok(&["inspect", &folder.arg("q")]);
    for needle in
        ["a.scale_quant", "F8_E4M3", "[2, 16]", "nvfp4", "1 NaN", "1 negative", "2^-8", "absent"]
    {
        assert!(text.contains(needle), "no `{needle}` in {text}");
    }
}

#[test]
fn inspect_shows_a_dense_file_and_the_transform_of_a_quantized_one() {
    let folder = Folder::new();
    write(&folder.at("in"), &[random("a.weight", Dtype::BF16, &[4, 64], 1)]);
    assert!(ok(&["inspect", &folder.arg("in")]).contains("0 quantized layers"));
    quantize(
        &folder,
        "q",
        &["--format", "mxfp4", "--transform", "hadamard", "--transform-block", "64"],
    );
    let layer = &json(&["inspect", &folder.arg("q")])["layers"][0];
    assert_eq!(layer["transform"], json!({ "shape": [64, 64], "dtype": "f32" }));
    assert_eq!(layer["format"], "mxfp4");
    assert!(ok(&["inspect", &folder.arg("q")]).contains("exact_fp4.transform = hadamard64"));
}

/// Quantizes `in` of the folder.
fn quantize(folder: &Folder, out: &str, more: &[&str]) -> Value {
    let (input, output) = (folder.arg("in"), folder.arg(out));
    json(&[&["quantize", &input, "-o", &output, "--force"], more].concat())
}

fn dense(folder: &Folder) {
    write(
        &folder.at("in"),
        &[
            random("a.weight", Dtype::F32, &[24, 128], 1),
            random("b.weight", Dtype::BF16, &[8, 256], 2),
            random("b.bias", Dtype::BF16, &[8], 3),
            ("ids".into(), Dtype::I64, vec![2], (0..16).collect()),
        ],
    );
}

#[test]
fn compare_finds_the_error_that_quantize_reported() {
    let folder = Folder::new();
    dense(&folder);
    for format in ["mxfp4", "nvfp4"] {
        for transform in ["none", "hadamard"] {
            let summary = quantize(&folder, "q", &["--format", format, "--transform", transform]);
            let forth = json(&["compare", &folder.arg("in"), &folder.arg("q")]);
            let back = json(&["compare", &folder.arg("q"), &folder.arg("in")]);
            assert_eq!(forth["tensors"], back["tensors"], "the dense side is the reference");
            let quantized: Vec<_> = forth["tensors"]
                .as_array()
                .unwrap()
                .iter()
                .filter(|t| t["kind"] == "dense-quantized")
                .collect();
            let reported = summary["tensors"].as_array().unwrap();
            assert_eq!(quantized.len(), reported.len());
            for (found, reported) in quantized.iter().zip(reported) {
                for key in ["name", "relative_error", "sqnr_db", "max_abs_error"] {
                    assert_eq!(found[key], reported[key], "{key}");
                }
                assert_eq!(found["domain"], summary["error_domain"]);
                assert_eq!(found["identical"], false);
            }
            assert_eq!(forth["totals"]["compared"], 4);
            assert_eq!(forth["totals"]["identical"], 2);
            let total = &summary["totals"]["relative_error"];
            assert_eq!(&forth["totals"]["quantized_relative_error"], total);
            let text = ok(&["compare", &folder.arg("in"), &folder.arg("q")]);
            assert!(text.contains("2 identical, 2 differ"), "{text}");
            assert_eq!(text.contains("transformed the same way"), transform == "hadamard");
        }
    }
}

#[test]
fn compare_counts_codes_and_scales_that_differ() {
    let folder = Folder::new();
    let codes: Vec<u8> = (0..32).collect();
    write(&folder.at("a"), &layer_tensors(codes.clone(), [0x38, 0x40, 0x30, 0x03]));
    let mut other = codes;
    other[3] ^= 0x10; // one code
    other[31] ^= 0x21; // two codes
    let mut tensors = layer_tensors(other, [0x38, 0x41, 0x30, 0x03]);
    tensors[3] = f32s("a.activation_global_scale", &[], &[0.125]);
    write(&folder.at("b"), &tensors);
    let found = json(&["compare", &folder.arg("a"), &folder.arg("b")]);
    let layer = &found["tensors"][0];
    assert_eq!(layer["name"], "a.weight");
    assert_eq!(layer["kind"], "quantized-quantized");
    assert_eq!(layer["codes_differ"], 3);
    assert_eq!(layer["scales_differ"], 1);
    assert_eq!(layer["settings_differ"], json!(["activation_global_scale"]));
    let text = ok(&["compare", &folder.arg("a"), &folder.arg("b")]);
    assert!(
        text.contains("3 codes, 1 scales") && text.contains("activation_global_scale"),
        "{text}"
    );
    // Two formats have no codes in common, but values.
    dense(&folder);
    quantize(&folder, "m", &["--format", "mxfp4"]);
    quantize(&folder, "n", &["--format", "nvfp4"]);
    let found = json(&["compare", &folder.arg("m"), &folder.arg("n")]);
    let layer = &found["tensors"][0];
    assert_eq!(layer["codes_differ"], Value::Null);
    assert!(layer["relative_error"].as_f64().unwrap() > 0.01);
}

#[test]
fn exact_and_tolerance_decide_the_exit_code() {
    let folder = Folder::new();
    dense(&folder);
    let error = quantize(&folder, "q", &["--format", "nvfp4"])["tensors"][0]["relative_error"]
        .as_f64()
        .unwrap();
    fs::copy(folder.at("q"), folder.at("same")).unwrap();
    let run = |a: &str, b: &str, more: &[&str], expected: i32| {
        let (a, b) = (folder.arg(a), folder.arg(b));
        code(&[&["compare", &a, &b], more].concat(), expected);
    };
    run("q", "same", &["--exact"], 0);
    run("in", "in", &["--exact", "--tolerance", "0"], 0);
    run("in", "q", &[], 0);
    run("in", "q", &["--exact"], 1);
    run("in", "q", &["--exact", "--json"], 1);
    run("in", "q", &["--tolerance", &(error * 1.0001).to_string()], 0);
    run("in", "q", &["--tolerance", &(error * 0.9999).to_string()], 1);
    // One bit anywhere: in a code, a scale, a scalar, a bias, an integer.
    for name in ["a.e2m1", "b.scale_quant", "a.activation_scale_scale", "b.bias", "ids"] {
        let mut tensors: Vec<_> = read(&folder.at("q")).into_values().collect();
        tensors.iter_mut().filter(|t| t.0 == name).for_each(|t| t.3[1] ^= 1);
        write(&folder.at("other"), &tensors);
        run("q", "other", &["--exact"], 1);
    }
    // A tensor that is missing.
    let mut tensors: Vec<_> = read(&folder.at("q")).into_values().collect();
    tensors.retain(|t| t.0 != "b.bias");
    write(&folder.at("other"), &tensors);
    run("q", "other", &[], 0);
    run("q", "other", &["--exact"], 1);
    run("other", "q", &["--tolerance", "9"], 1);
}

#[test]
fn what_is_on_one_side_only_is_listed() {
    let folder = Folder::new();
    dense(&folder);
    quantize(&folder, "q", &["--format", "nvfp4"]);
    let mut tensors: Vec<_> = read(&folder.at("q")).into_values().collect();
    tensors.retain(|t| !t.0.starts_with("b."));
    tensors.push(f32s("new", &[1], &[1.0]));
    write(&folder.at("other"), &tensors);
    let found = json(&["compare", &folder.arg("q"), &folder.arg("other")]);
    assert_eq!(found["only_in_a"], json!(["b.bias", "b.weight (quantized)"]));
    assert_eq!(found["only_in_b"], json!(["new"]));
    let text = ok(&["compare", &folder.arg("q"), &folder.arg("other")]);
    assert!(text.contains("only in A: b.bias") && text.contains("only in B: new"), "{text}");
    write(&folder.at("stranger"), &[f32s("new", &[1], &[1.0])]);
    fails(&["compare", &folder.arg("q"), &folder.arg("stranger")], &["no tensor in common"]);
}

#[test]
fn dense_files_of_different_types_compare_by_value() {
    let folder = Folder::new();
    let values = [1.0f32, -2.0, 0.5, 3.0];
    write(&folder.at("a"), &[f32s("w", &[4], &values), f32s("i", &[1], &[0.0])]);
    let bf16 = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    write(&folder.at("b"), &[("w".into(), Dtype::BF16, vec![4], bf16), f32s("i", &[1], &[-0.0])]);
    let found = json(&["compare", &folder.arg("a"), &folder.arg("b"), "--tolerance", "0"]);
    for tensor in found["tensors"].as_array().unwrap() {
        assert_eq!((&tensor["relative_error"], &tensor["identical"]), (&json!(0.0), &json!(false)));
    }
    code(&["compare", &folder.arg("a"), &folder.arg("b"), "--exact"], 1);
}

#[test]
fn tensors_that_cannot_be_compared_are_an_error_after_the_report() {
    let folder = Folder::new();
    let problem = |a: &str, b: &str, needles: &[&str]| {
        let args = ["compare", &folder.arg(a), &folder.arg(b), "--json"];
        let (stdout, stderr) = code(&args, 2);
        let found: Value = serde_json::from_str(&stdout).unwrap();
        assert_eq!(
            (&found["passed"], found["problems"].as_array().unwrap().len()),
            (&json!(true), 1)
        );
        for needle in needles {
            assert!(stderr.contains(needle), "no `{needle}` in {stderr}");
        }
    };
    dense(&folder);
    quantize(&folder, "q", &["--format", "nvfp4"]);
    quantize(&folder, "h", &["--format", "nvfp4", "--transform", "hadamard", "--exclude", "b*"]);
    problem("q", "h", &["a.weight", "transforms"]);
    let change = |name: &str, new: Tensor| {
        let mut tensors: Vec<_> = read(&folder.at("in")).into_values().collect();
        tensors.retain(|t| t.0 != name);
        tensors.push(new);
        write(&folder.at("x"), &tensors);
    };
    change("a.weight", random("a.weight", Dtype::F32, &[128, 24], 1));
    problem("in", "x", &["`a.weight`", "[24, 128]", "[128, 24]"]);
    problem("x", "q", &["`a.weight`", "[24, 128]", "[128, 24]"]);
    change("ids", ("ids".into(), Dtype::I32, vec![2], vec![0; 8]));
    problem("in", "x", &["`ids`", "I64", "I32"]);
    let mut both: Vec<_> = read(&folder.at("q")).into_values().collect();
    both.push(random("a.weight", Dtype::F32, &[24, 128], 1));
    write(&folder.at("x"), &both);
    problem("in", "x", &["a.weight", "both dense and quantized"]);
}

#[test]
fn nan_scales_and_values_are_reported() {
    let folder = Folder::new();
    write(&folder.at("q"), &layer_tensors(vec![0x22; 32], [0x38, 0x38, 0xFF, 0x38]));
    // Scale 1 times global scale 0.5; code 2 is 1.
    let other = f32s("other", &[3], &[1.0, 2.0, 3.0]);
    write(&folder.at("in"), &[f32s("a.weight", &[2, 32], &[0.5; 64]), other]);
    let found = json(&["compare", &folder.arg("in"), &folder.arg("q")]);
    let layer = &found["tensors"][0];
    assert_eq!(layer["nan_scales"], 1);
    assert_eq!(layer["not_finite"], 16);
    assert_eq!(layer["values_differ"], 16);
    assert_eq!(layer["relative_error"], 0.0);
    code(&["compare", &folder.arg("in"), &folder.arg("q"), "--tolerance", "1"], 1);
    let text = ok(&["compare", &folder.arg("in"), &folder.arg("q")]);
    assert!(text.contains("1 NaN scales") && text.contains("16 not finite"), "{text}");
}

#[test]
fn exact_is_said_only_where_nothing_differs() {
    let folder = Folder::new();
    let ones = f32s("w.weight", &[2, 32], &[1.0; 64]);
    let mut half = vec![1f32; 64];
    half[..32].fill(f32::NAN);
    let cases = [
        // Against ones: exact, error_kind, what the row says, relative error in JSON.
        (vec![1f32; 64], true, "exact", "exact", json!(0.0)),
        (vec![f32::NAN; 64], false, "not_finite", "undefined", Value::Null),
        (half, false, "not_finite", "undefined", json!(0.0)),
        (vec![f32::INFINITY; 64], false, "not_finite", "undefined", Value::Null),
        (vec![0.9; 64], false, "finite", "20.00", Value::Bool(true)),
    ];
    for (other, exact, kind, said, relative) in cases {
        write(&folder.at("a"), std::slice::from_ref(&ones));
        write(&folder.at("b"), &[f32s("w.weight", &[2, 32], &other)]);
        let found = json(&["compare", &folder.arg("a"), &folder.arg("b")]);
        let pair = &found["tensors"][0];
        assert_eq!((&pair["exact"], &pair["error_kind"]), (&json!(exact), &json!(kind)));
        assert_eq!(pair["sqnr_db"].is_number(), kind == "finite");
        if relative != true {
            assert_eq!(pair["relative_error"], relative);
        }
        let text = ok(&["compare", &folder.arg("a"), &folder.arg("b")]);
        let rows = text.lines().filter(|line| line.contains("w.weight")).collect::<String>();
        assert!(exact || rows.contains(said), "no `{said}` in {text}");
        assert!(!text.contains("exact"), "{text}"); // no row where nothing differs
    }
}

#[test]
fn an_infinite_error_is_shown_as_one() {
    let folder = Folder::new();
    write(&folder.at("q"), &layer_tensors(vec![0x22; 32], [0x38; 4]));
    let other = f32s("other", &[3], &[1.0, 2.0, 3.0]);
    write(&folder.at("in"), &[f32s("a.weight", &[2, 32], &[0.0; 64]), other]);
    let found = json(&["compare", &folder.arg("in"), &folder.arg("q")]);
    for (value, prefix) in [(&found["tensors"][0], ""), (&found["totals"], "quantized_")] {
        assert_eq!(value[format!("{prefix}exact")], false);
        assert_eq!(value[format!("{prefix}error_kind")], "infinite");
        assert_eq!(value[format!("{prefix}sqnr_db")], Value::Null);
    }
    assert_eq!(found["tensors"][1]["exact"], true);
    let text = ok(&["compare", &folder.arg("in"), &folder.arg("q")]);
    let row = text.lines().find(|line| line.contains("a.weight")).unwrap();
    assert!(row.contains(" inf |") && row.contains(" -inf |"), "{text}");
    assert!(text.contains("relative error inf, SQNR -inf dB"), "{text}");
    assert!(!text.contains("exact"), "{text}");
    // Zeros that stay zeros are exact, and quantize says so in both forms.
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("z"), "--format", "mxfp4"];
    let args = [&args[..], &["--include", "a.weight", "--force"]].concat();
    let row = &json(&args)["tensors"][0];
    assert_eq!((&row["exact"], &row["error_kind"]), (&json!(true), &json!("exact")));
    assert!(ok(&args).contains("exact"));
}

#[test]
fn no_command_is_the_demo() {
    // Times differ from run to run; the first lines do not.
    let [bare, named] = [&[][..], &["demo"]].map(|args| ok(args).lines().next().map(String::from));
    assert!(bare.is_some_and(|line| !line.is_empty() && Some(line) == named));
    let help = ok(&["--help"]);
    for command in ["quantize", "inspect", "compare", "demo"] {
        assert!(help.contains(command), "{help}");
    }
    let help = ok(&["quantize", "--help"]);
    for pattern in ["*embed*", "*lm_head*", "*wte*", "output.weight", "cls.*"] {
        assert!(help.contains(pattern), "{help}");
    }
}

/// Writes a GGUF file of one tensor of zeros.
fn write_gguf(path: &Path, ty: GgmlType, shape: &[usize]) {
    let pairs = [
        ("general.name", gguf::Value::String(b"a\x1b[2Jb".into())),
        ("llama.block_count", gguf::Value::U32(2)),
        ("tokens", gguf::Value::Array(gguf::Array::of_strings(["a", "b", "c"]))),
    ];
    let pairs = pairs.map(|(key, value)| (key.to_string(), value));
    let tensors = [("blk.0.ffn_up_exps.weight".to_string(), ty, shape.to_vec())];
    let arrangement = GgufArrangement::new(&pairs, &tensors).unwrap();
    let mut file = arrangement.header().to_vec();
    file.resize(arrangement.file_len() as usize, 0);
    fs::write(path, file).unwrap();
}

#[test]
fn inspect_shows_the_types_and_logical_shapes_of_gguf() {
    let folder = Folder::new();
    write_gguf(&folder.at("model"), GgmlType::MXFP4, &[2, 3, 64]);
    let json = json(&["inspect", &folder.arg("model")]);
    let tensor = json!({
        "name": "blk.0.ffn_up_exps.weight", "dtype": "MXFP4", "shape": [2, 3, 64], "bytes": 204,
        "file": "model",
    });
    assert_eq!(json["tensors"], json!([tensor]));
    let metadata = json!({
        "general.name": "a\x1b[2Jb", "llama.block_count": "2", "tokens": "string[3]",
    });
    assert_eq!(json["files"][0]["metadata"], metadata);
    let text = ok(&["inspect", &folder.arg("model")]);
    for needle in [r"general.name = a\u{1b}[2Jb", "tokens = string[3]", "MXFP4", "[2, 3, 64]"] {
        assert!(text.contains(needle), "no `{needle}` in {text}");
    }
}

#[test]
fn gguf_is_compared_by_type_and_quantized_where_it_has_values() {
    let folder = Folder::new();
    // Blocks of as many bytes.
    write_gguf(&folder.at("a"), GgmlType::Q4_0, &[4, 64]);
    write_gguf(&folder.at("b"), GgmlType::IQ4_NL, &[4, 64]);
    let args = ["compare", &folder.arg("a"), &folder.arg("b")];
    let (stdout, _) = code(&args, 2);
    assert!(stdout.contains("types Q4_0 and IQ4_NL cannot be compared"), "{stdout}");
    ok(&["compare", &folder.arg("a"), &folder.arg("a")]);
    let args = ["quantize", &folder.arg("b"), "-o", &folder.arg("q"), "-f", "nvfp4"];
    fails(&args, &["IQ4_NL"]);
    assert!(!folder.at("q").exists());
}

#[test]
fn gguf_is_quantized_as_its_dense_values_are() {
    let folder = Folder::new();
    write_gguf(&folder.at("g"), GgmlType::Q8_0, &[32, 64]);
    let mut file = fs::read(folder.at("g")).unwrap();
    let blocks = 32 * 64 / 32 * 34;
    let start = (file.len() - blocks) / 32 * 32;
    for (i, block) in file[start..start + blocks].chunks_exact_mut(34).enumerate() {
        block[..2].copy_from_slice(&half::f16::from_f32(0.01 * (i + 1) as f32).to_le_bytes());
        block[2..].iter_mut().enumerate().for_each(|(j, q)| *q = (i * 31 + j * 37) as u8);
    }
    fs::write(folder.at("g"), file).unwrap();
    ok(&["dequantize", &folder.arg("g"), "-o", &folder.arg("d.safetensors")]);
    for (input, output) in [("g", "a"), ("d.safetensors", "b")] {
        let include = ["--include", "*"];
        let args = ["quantize", &folder.arg(input), "-o", &folder.arg(output), "-f", "nvfp4"];
        ok(&[&args[..], &include].concat());
    }
    // Its error is found again, against the blocks as against what they are worth.
    let figures = |a: &str, b: &str| {
        let found = json(&["compare", &folder.arg(a), &folder.arg(b)]);
        let report = json(&["report", &folder.arg(a), &folder.arg(b)]);
        assert_eq!((&found["only_in_a"], &found["only_in_b"]), (&json!([]), &json!([])));
        let found = found["totals"]["quantized_relative_error"].clone();
        assert_eq!(report["totals"]["error"]["relative_error"], found);
        found.as_f64().unwrap()
    };
    let error = figures("d.safetensors", "b");
    assert!(error > 0.01 && error < 0.2, "{error}");
    for [a, b] in [["g", "a"], ["a", "g"], ["g", "b"]] {
        assert_eq!(figures(a, b), error, "{a} {b}");
    }
    let dense = json(&["compare", &folder.arg("g"), &folder.arg("d.safetensors")]);
    assert_eq!(
        (&dense["tensors"][0]["kind"], &dense["tensors"][0]["relative_error"]),
        (&json!("dense-dense"), &json!(0.0))
    );
    let (a, b) = (read(&folder.at("a")), read(&folder.at("b")));
    let codes = &a["blk.0.ffn_up_exps.e2m1"].3;
    assert!(a == b && codes.iter().any(|&byte| byte != codes[0]));
}

#[test]
fn blocks_without_values_are_refused_by_name() {
    let folder = Folder::new();
    write_gguf(&folder.at("k"), GgmlType::Q4_K, &[4, 256]);
    let said = ["`blk.0.ffn_up_exps.weight` cannot be carried along", "Q4_K"];
    fails(&["dequantize", &folder.arg("k"), "-o", &folder.arg("d.safetensors")], &said);
    assert!(!folder.at("d.safetensors").exists());
    // FP4 has values, and is no source to be quantized again.
    write_gguf(&folder.at("f"), GgmlType::MXFP4, &[4, 256]);
    let said = ["cannot be carried along: it is MXFP4, which is FP4 already", "`fp4 dequantize`"];
    let out = folder.arg("q.safetensors");
    fails(&["quantize", &folder.arg("f"), "-o", &out, "-f", "nvfp4"], &said);
}
