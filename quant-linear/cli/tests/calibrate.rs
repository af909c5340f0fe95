//! `fp4 calibrate`, and what `fp4 quantize` makes of it: bytes that depend on neither threads nor
//! backends nor being killed, layers that lose less, and errors that say what is wrong.

#![cfg(feature = "calibrate")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::*;
use safetensors::Dtype;

const K: usize = 128;
const ROWS: usize = 400;

/// Inputs of which a few are large, and depend on each other.
fn inputs(seed: u64) -> Vec<f32> {
    let mut x = numbers(seed, ROWS * K);
    for row in x.chunks_exact_mut(K) {
        row[5] += 30.0 * row[6];
        row[77] *= 12.0;
        for i in 64..K {
            row[i] = 0.7 * row[i - 1] + 0.5 * row[i];
        }
    }
    x
}

/// A model of four layers, `model.safetensors`, and activations of each, `acts.safetensors`.
fn model() -> Folder {
    let folder = Folder::new();
    let layers = ["q_proj", "k_proj", "up_proj", "down_proj"];
    let weights: Vec<_> = (0..)
        .zip(layers)
        .map(|(i, name)| random(&format!("l.{name}.weight"), Dtype::F32, &[96, K], 7 + i))
        .chain([random("l.norm.weight", Dtype::F32, &[K], 3)])
        .collect();
    write(&folder.at("model.safetensors"), &weights);
    let inputs: Vec<_> = (0..)
        .zip(layers)
        .map(|(i, name)| f32s(&format!("l.{name}.input"), &[ROWS, K], &inputs(50 + i)))
        .collect();
    write(&folder.at("acts.safetensors"), &inputs);
    folder
}

fn calibrate(folder: &Folder, output: &str, more: &[&str]) {
    let (model, acts) = (folder.arg("model.safetensors"), folder.arg("acts.safetensors"));
    let output = folder.arg(output);
    let own = ["calibrate", &model, "--data", &acts, "-o", &output];
    ok(&[&own[..], more].concat());
}

fn quantize(folder: &Folder, output: &str, more: &[&str]) -> serde_json::Value {
    let (model, calib) = (folder.arg("model.safetensors"), folder.arg("calib"));
    let output = folder.arg(output);
    let own = ["quantize", &model, "-o", &output, "--calib", &calib, "--force"];
    json(&[&own[..], more].concat())
}

/// The bytes of all files of a folder, or of a file.
fn bytes(path: &Path) -> Vec<(String, Vec<u8>)> {
    if path.is_file() {
        return vec![(String::new(), fs::read(path).unwrap())];
    }
    let mut all: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.file_name().unwrap().to_string_lossy().into(), fs::read(&path).unwrap())
        })
        .collect();
    all.sort();
    all
}

#[test]
fn the_bytes_are_the_same_for_threads_backends_and_cuts() {
    let folder = model();
    calibrate(&folder, "calib", &["--threads", "1"]);
    calibrate(&folder, "calib2", &["--threads", "2"]);
    assert_eq!(bytes(&folder.at("calib")), bytes(&folder.at("calib2")));
    let mut compared = 0;
    for format in ["mxfp4", "nvfp4"] {
        for transform in ["i", "r", "h", "wush"] {
            for method in ["rtn", "gptq", "babai"] {
                let own = ["--format", format, "--transform", transform, "--method", method];
                let run = |output, threads, backend| {
                    let more = ["--threads", threads, "--backend", backend];
                    quantize(&folder, output, &[&own[..], &more].concat());
                    bytes(&folder.at(output))
                };
                let one = run("one", "1", "reference");
                assert_eq!(one, run("two", "2", "cpu-simd"), "{own:?}");
                assert_eq!(one, run("two", "2", "reference"), "{own:?}");
                compared += one[0].1.len();
            }
        }
    }
    assert!(compared > 24 * 4 * 96 * K / 2, "{compared}");
}

#[test]
fn what_looks_at_the_inputs_loses_less_and_says_so() {
    let folder = model();
    calibrate(&folder, "calib", &[]);
    let loss = |format, transform, method, more: &[&str]| {
        let own = ["--format", format, "--transform", transform, "--method", method];
        let report = quantize(&folder, "out", &[&own[..], more].concat());
        let loss = &report["totals"]["mean_loss"];
        let number = |name: &str| loss[name].as_f64().unwrap();
        (number("weight"), number("layer"), number("before"))
    };
    for format in ["mxfp4", "nvfp4"] {
        let plain = loss(format, "i", "rtn", &["--scale-rule", "nearest"]);
        // With nothing chosen it is what it was before, but for the scale of activations.
        assert!((plain.1 / plain.2 - 1.0).abs() < 1e-9, "{format}: {plain:?}");
        let gptq = loss(format, "i", "gptq", &[]);
        let babai = loss(format, "i", "babai", &[]);
        let wush = loss(format, "wush", "gptq", &[]);
        let joint = loss(format, "wush", "gptq", &["--objective", "weight-and-activations"]);
        assert!(gptq.0 < 0.8 * plain.0 && babai.0 < 0.8 * plain.0, "{format}: {gptq:?} {babai:?}");
        assert!(wush.1 < 0.7 * plain.1, "{format}: {wush:?} {plain:?}");
        assert!(joint.1 < wush.1, "{format}: {joint:?} {wush:?}");
    }
    // The losses are shown to people too.
    let (model, calib, out) =
        (folder.arg("model.safetensors"), folder.arg("calib"), folder.arg("out"));
    let text = ok(&["quantize", &model, "-o", &out, "--force", "-f", "nvfp4", "--calib", &calib]);
    assert!(text.contains("loss, weight") && text.contains("mean"), "{text}");
}

#[test]
fn activations_get_a_scale_that_fits_them() {
    let folder = model();
    calibrate(&folder, "calib", &[]);
    let scale = |more: &[&str]| {
        quantize(&folder, "out", &[&["--format", "nvfp4"], more].concat());
        let state = read(&folder.at("out"));
        let bytes = &state["l.up_proj.activation_global_scale"].3;
        f32::from_le_bytes(bytes[..].try_into().unwrap())
    };
    let largest = inputs(52).iter().fold(0f32, |a, x| a.max(x.abs()));
    assert_eq!(scale(&[]), largest / 2688.0);
    assert_eq!(scale(&["--activation-scale", "amax*2"]), (largest * 2.0) / 2688.0);
    assert!(scale(&["--activation-scale", "quantile:0.9"]) < largest / 2688.0);
    assert!(scale(&["--activation-scale", "balanced"]) > 0.0);
    assert_eq!(scale(&["--activation-scale", "0.25"]), 0.25);
    // Of what the transform makes of them.
    assert_ne!(scale(&["--transform", "h"]), largest / 2688.0);
}

#[test]
fn the_error_of_a_transformed_weight_is_found_again() {
    let folder = model();
    calibrate(&folder, "calib", &[]);
    for transform in ["r", "h", "wush"] {
        let report = quantize(&folder, "out", &["--format", "nvfp4", "--transform", transform]);
        let expected = report["totals"]["relative_error"].as_f64().unwrap();
        let (a, b) = (folder.arg("model.safetensors"), folder.arg("out"));
        let compared = json(&["compare", &a, &b]);
        let found = compared["totals"]["quantized_relative_error"].as_f64().unwrap();
        // As it was computed where it is not orthonormal; else by C5's chain in f32.
        assert!((found / expected - 1.0).abs() < 1e-5, "{transform}: {found} {expected}");
        let page = json(&["report", &a, &b]);
        let found = page["totals"]["error"]["relative_error"].as_f64().unwrap();
        assert!((found / expected - 1.0).abs() < 1e-5, "{transform}: {found} {expected}");
    }
}

/// Runs until something is there, then kills it; false if it ended before.
fn killed(mut command: Command, until: impl Fn() -> bool, after: Duration) -> bool {
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let begun = Instant::now();
    while !until() && begun.elapsed() < Duration::from_secs(60) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    std::thread::sleep(after);
    let ended = child.try_wait().unwrap().is_some();
    child.kill().ok();
    child.wait().unwrap();
    !ended
}

#[test]
fn a_run_that_was_killed_goes_on_to_the_same_bytes() {
    let folder = model();
    calibrate(&folder, "calib", &[]);
    let expected = bytes(&folder.at("calib"));
    let (model, acts) = (folder.arg("model.safetensors"), folder.arg("acts.safetensors"));
    let mut kills = 0;
    for wait in [0, 1, 3, 6] {
        let output = folder.arg(&format!("again{wait}"));
        let args = ["calibrate", &model, "--data", &acts, "-o", &output, "--resume"];
        let mut command = Command::new(env!("CARGO_BIN_EXE_fp4"));
        command.args(args).args(["--threads", "1"]);
        let partial = folder.at(&format!(".again{wait}.fp4-partial"));
        let there = || partial.exists();
        kills += u32::from(killed(command, there, Duration::from_millis(wait)));
        if folder.at(&format!("again{wait}")).exists() {
            continue;
        }
        // Other settings are no way to go on.
        if partial.exists() {
            let more = [&args[..], &["--rows", "7"]].concat();
            let (_, said) = output_of(&more);
            assert!(
                said.is_empty() || said.contains("--rows") || said.contains("replace"),
                "{said}"
            );
        }
        if !folder.at(&format!("again{wait}")).exists() {
            ok(&args);
            assert_eq!(bytes(&folder.at(&format!("again{wait}"))), expected);
        }
    }
    let own = ["--format", "nvfp4", "--transform", "wush", "--method", "gptq"];
    quantize(&folder, "out", &own);
    let expected = bytes(&folder.at("out"));
    for wait in [0, 5, 20, 40] {
        let (calib, output) = (folder.arg("calib"), folder.arg(&format!("o{wait}")));
        let args = [
            &["quantize", &model, "-o", &output, "--calib", &calib, "--resume", "--threads", "1"],
            &own[..],
        ]
        .concat();
        let mut command = Command::new(env!("CARGO_BIN_EXE_fp4"));
        command.args(&args);
        let partial = folder.at(&format!(".o{wait}.fp4-partial"));
        kills += u32::from(killed(command, || partial.exists(), Duration::from_millis(wait)));
        if !folder.at(&format!("o{wait}")).exists() {
            ok(&args);
        }
        assert_eq!(bytes(&folder.at(&format!("o{wait}"))), expected);
    }
    assert!(kills > 0, "no run was killed while it was at work");
}

/// Standard output and standard error, whatever the exit code.
fn output_of(args: &[&str]) -> (String, String) {
    let output = fp4(args).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

#[test]
fn what_is_wrong_is_named() {
    let folder = model();
    calibrate(&folder, "calib", &[]);
    let (model, acts) = (folder.arg("model.safetensors"), folder.arg("acts.safetensors"));
    let (calib, out) = (folder.arg("calib"), folder.arg("bad"));
    let quantize = |more: &[&str], needles: &[&str]| {
        let own = ["quantize", &model, "-o", &out, "--format", "nvfp4"];
        fails(&[&own[..], more].concat(), needles);
        assert!(!folder.at("bad").exists());
    };
    quantize(&["--transform", "wush"], &["wush", "needs a calibration", "fp4 calibrate"]);
    quantize(&["--method", "gptq"], &["rtn", "--calib"]);
    quantize(&["--activation-scale", "amax"], &["activations' scale", "--calib"]);
    quantize(&["--calib", &model], &["is no calibration"]);
    quantize(&["--calib", &folder.arg("nothing")], &["nothing"]);
    quantize(&["--calib", &calib, "--method", "gptq", "--damping", "-1"], &["damping of -1"]);
    quantize(&["--calib", &calib, "--method", "best"], &["best", "rtn, gptq or babai"]);
    quantize(
        &["--calib", &calib, "--method", "gptq", "--inner-method", "rtn", "--act-order"],
        &["act-order"],
    );
    quantize(&["--calib", &calib, "--write-recipe", &folder.arg("r")], &["--write-recipe"]);

    // A layer that the calibration does not know, and one whose width is another.
    let more = [random("other.up_proj.weight", Dtype::F32, &[32, K], 1)];
    write(&folder.at("other.safetensors"), &more);
    let other = folder.arg("other.safetensors");
    let own = ["quantize", &other, "-o", &out, "--format", "nvfp4", "--calib", &calib];
    fails(&own, &["other.up_proj.weight", "no input of it", "l.down_proj"]);
    write(&folder.at("wide.safetensors"), &[random("l.up_proj.weight", Dtype::F32, &[32, 64], 1)]);
    let wide = folder.arg("wide.safetensors");
    let own = ["quantize", &wide, "-o", &out, "--format", "nvfp4", "--calib", &calib];
    fails(&own, &["l.up_proj.weight", "128", "64"]);

    let calibrate = |data: &str, more: &[&str], needles: &[&str]| {
        let own = ["calibrate", &model, "--data", data, "-o", &out];
        fails(&[&own[..], more].concat(), needles);
        assert!(!folder.at("bad").exists());
    };
    calibrate(&folder.arg("no.txt"), &[], &["no.txt"]);
    calibrate(&acts, &["--rows", "0"], &["--rows 0"]);
    let tensors = [
        ("nan", vec![(0, f32::NAN)], "l.up_proj.input", [ROWS, K], "row 0, column 0 is NaN"),
        ("inf", vec![(K + 3, f32::INFINITY)], "l.up_proj", [ROWS, K], "row 1, column 3 is inf"),
        ("name", vec![], "l.gate_proj", [ROWS, K], "the model has no l.gate_proj.weight"),
        ("width", vec![], "l.up_proj", [2 * ROWS, K / 2], "rows of 64 values"),
    ];
    for (file, changes, name, shape, said) in tensors {
        let mut x = inputs(1);
        changes.into_iter().for_each(|(at, value)| x[at] = value);
        let path = folder.at(&format!("{file}.safetensors"));
        write(&path, &[f32s(name, &shape, &x)]);
        calibrate(&folder.arg(&format!("{file}.safetensors")), &[], &[said]);
    }
    fs::write(folder.at("text.txt"), "Some text.").unwrap();
    let both = ["calibrate", &model, "--data", &acts, &folder.arg("text.txt"), "-o", &out];
    fails(&both, &["both text and .safetensors"]);
    // A file of layers is no model that can be run.
    calibrate(&folder.arg("text.txt"), &[], &["config.json"]);
}
