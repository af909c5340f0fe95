//! Weights that are not stored as a linear layer's: experts, GPT-2's layers, block FP8.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::*;
use fp4_core::Format;
use quant_linear::{DenseOptions, QuantLinear};
use safetensors::Dtype;
use serde_json::json;

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
                let args = ["--format", format, "--memory", memory];
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
