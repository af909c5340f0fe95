//! Which tensors `fp4 quantize` takes, and what becomes of the others.

mod common;

use std::collections::BTreeMap;

use common::*;
use safetensors::Dtype;

#[test]
fn include_and_exclude_choose() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let chosen = |extra: &[&str]| {
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        let mut args = vec!["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"];
        args.extend(extra);
        let json = json(&args);
        let tensors = json["tensors"].as_array().unwrap();
        let mut names: Vec<_> =
            tensors.iter().map(|t| t["name"].as_str().unwrap().to_string()).collect();
        names.sort();
        let written = read(&folder.at("out"));
        for name in &names {
            let prefix = name.strip_suffix(".weight").unwrap();
            assert!(written.contains_key(&format!("{prefix}.e2m1")));
        }
        (names.join(" "), json["skipped"].clone())
    };
    let (names, skipped) = chosen(&[]);
    assert_eq!(names, "a.weight b.c.weight d.weight");
    assert_eq!(skipped.as_array().unwrap().len(), 2);
    assert_eq!(skipped[0]["name"], "conv.weight");
    assert_eq!(skipped[1]["name"], "embed_tokens.weight");
    assert_eq!(chosen(&["--include", "embed*.weight"]).0, "embed_tokens.weight");
    assert_eq!(chosen(&["--include", "?.weight", "--exclude", "a*"]).0, "d.weight");
    let (names, skipped) = chosen(&["--exclude", "*.c.*", "--exclude", "d.*"]);
    assert_eq!(names, "a.weight");
    assert_eq!(skipped.as_array().unwrap().len(), 4);
}

/// Biases, norms of rank 1, an embedding, and weights that do not fit, beside two good layers.
fn encoder() -> Vec<Tensor> {
    vec![
        random("encoder.layer.0.attention.dense.weight", Dtype::F32, &[8, 64], 1),
        random("encoder.layer.0.attention.dense.bias", Dtype::F32, &[64], 2),
        random("encoder.layer.0.attention.LayerNorm.weight", Dtype::F32, &[64], 3),
        random("encoder.layer.0.attention.LayerNorm.bias", Dtype::F32, &[64], 4),
        random("encoder.layer.0.relative", Dtype::F32, &[8, 64], 5),
        random("encoder.layer.0.conv.weight", Dtype::F32, &[2, 2, 64], 6),
        random("encoder.layer.0.odd.weight", Dtype::F32, &[8, 40], 7),
        ("encoder.layer.0.double.weight".into(), Dtype::F64, vec![1, 64], vec![0; 512]),
        random("encoder.layer.1.dense.weight", Dtype::BF16, &[8, 64], 8),
        random("embed_tokens.weight", Dtype::F32, &[10, 64], 9),
        random("l.weight", Dtype::F32, &[8, 64], 10),
        random("l.bias", Dtype::F32, &[8], 11),
    ]
}

#[test]
fn include_with_wildcards_filters_the_candidates() {
    const DENSE_0: &str = "encoder.layer.0.attention.dense.weight";
    const DENSE_1: &str = "encoder.layer.1.dense.weight";
    let folder = Folder::new();
    write(&folder.at("in"), &encoder());
    let dense = by_name(&encoder());
    let run = |includes: &[&str], more: &[&str]| {
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        let mut args = vec!["quantize", &input, "-o", &output, "--format", "mxfp4", "--force"];
        args.extend(includes.iter().flat_map(|glob| ["--include", *glob]));
        args.extend(more);
        let json = json(&args);
        let names = |key: &str| {
            let list = json[key].as_array().unwrap().iter();
            let mut names: Vec<_> = list.map(|t| t["name"].as_str().unwrap().to_string()).collect();
            names.sort();
            names
        };
        let (quantized, skipped) = (names("tensors"), names("skipped"));
        // Whatever is not quantized is there as it was.
        let written = read(&folder.at("out"));
        for (name, tensor) in &dense {
            assert_eq!(written.get(name), (!quantized.contains(name)).then_some(tensor), "{name}");
        }
        let reasons = json["skipped"].to_string();
        // Every matrix is in one of the two lists.
        let mut all = [&quantized[..], &skipped].concat();
        all.sort();
        let matrices = dense.values().filter(|tensor| tensor.2.len() > 1);
        assert_eq!(all, matrices.map(|tensor| tensor.0.clone()).collect::<Vec<_>>());
        (quantized, reasons)
    };
    let (quantized, reasons) = run(&["l.*"], &[]);
    assert_eq!(quantized, ["l.weight"]);
    assert!(reasons.contains("matches no --include"), "{reasons}");
    for glob in ["encoder.layer.0.*", "encoder.layer.[0].*", "encoder.layer.{0,7}.*"] {
        let (quantized, reasons) = run(&[glob], &[]);
        assert_eq!(quantized, [DENSE_0]);
        assert!(reasons.contains("K = 40") && reasons.contains("F64"), "{reasons}");
    }
    // Everything: embeddings too, since they were asked for.
    let all = [DENSE_0, DENSE_1, "l.weight"].map(String::from);
    let (quantized, _) = run(&["*"], &[]);
    assert_eq!(quantized, [&["embed_tokens.weight".to_string()][..], &all].concat());
    let (quantized, reasons) = run(&["*"], &["--exclude", "embed*"]);
    assert_eq!(quantized, all);
    assert!(reasons.contains("matches --exclude"), "{reasons}");
    // A full name and a pattern add up.
    assert_eq!(run(&["encoder.layer.?.dense.*", "l.weight"], &[]).0, [DENSE_1, "l.weight"]);
}

#[test]
fn candidates_that_cannot_be_quantized_are_copied_and_listed() {
    let folder = Folder::new();
    let odd = [
        random("good.weight", Dtype::F32, &[4, 64], 1),
        random("k.weight", Dtype::F32, &[4, 40], 2),
        ("double.weight".into(), Dtype::F64, vec![1, 32], vec![0; 256]),
        ("int.weight".into(), Dtype::I8, vec![2, 32], vec![1; 64]),
    ];
    write(&folder.at("in"), &odd);
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "mxfp4"];
    let json = json(&args);
    let reasons: BTreeMap<_, _> = json["skipped"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| (s["name"].as_str().unwrap(), s["reason"].as_str().unwrap()))
        .collect();
    assert_eq!(
        reasons.keys().copied().collect::<Vec<_>>(),
        ["double.weight", "int.weight", "k.weight"]
    );
    assert!(reasons["k.weight"].contains("40") && reasons["k.weight"].contains("32"));
    assert!(reasons["double.weight"].contains("F64"));
    assert!(reasons["int.weight"].contains("I8"));
    let (written, dense) = (read(&folder.at("out")), by_name(&odd));
    for name in reasons.keys() {
        assert_eq!(written[*name], dense[*name], "{name}");
    }
    // The same, for people.
    let text = ok(&[&args[..], &["--force"]].concat());
    assert!(text.contains("not quantized: k.weight: K = 40"), "{text}");
    // K = 64 is no multiple of 128.
    fails(
        &[&args[..], &["--force", "--transform", "hadamard", "--transform-block", "128"]].concat(),
        &["nothing to quantize", "128"],
    );
}

#[test]
fn roles_are_kept_and_named_with_their_reasons() {
    let folder = Folder::new();
    let router = random("model.layers.0.mlp.gate.weight", Dtype::F32, &[8, 64], 1);
    let gated = random("model.layers.0.mlp.gate_proj.weight", Dtype::F32, &[8, 64], 2);
    let attention = random("model.layers.0.linear_attn.out_proj.weight", Dtype::F32, &[8, 64], 3);
    write(&folder.at("in"), &[router, gated, attention]);
    let args = ["quantize", &folder.arg("in"), "-o", &folder.arg("out"), "--format", "nvfp4"];
    let json = json(&args);
    assert_eq!(json["tensors"][0]["name"], "model.layers.0.mlp.gate_proj.weight");
    assert_eq!(json["tensors"].as_array().unwrap().len(), 1);
    for (at, what) in [(0, "linear attention"), (1, "a router")] {
        let reason = json["skipped"][at]["reason"].as_str().unwrap();
        assert!(reason.contains(what) && reason.contains("--include"), "{reason}");
    }
    let text = ok(&[&args[..], &["--force"]].concat());
    for needle in ["mlp.gate.weight: a router", "kept by role", "modelopt `*router*`"] {
        assert!(text.contains(needle), "no `{needle}` in {text}");
    }
    let args = [&args[..], &["--force", "--include", "*linear_attn*"]].concat();
    let json = common::json(&args);
    assert_eq!(json["tensors"][0]["name"], "model.layers.0.linear_attn.out_proj.weight");
}

#[test]
fn a_pattern_that_keeps_nothing_dense_is_named_and_with_strict_an_error() {
    let folder = Folder::new();
    write(&folder.at("in"), &model());
    let recipe = "[[rules]]\nmatch = [\"*.lm_haed\", \"b.*\"]\nformat = \"dense\"\n";
    std::fs::write(folder.at("recipe.toml"), recipe).unwrap();
    let (input, recipe) = (folder.arg("in"), folder.arg("recipe.toml"));
    let args = ["quantize", &input, "--format", "nvfp4", "--dry-run", "--recipe", &recipe];
    let args = [&args[..], &["--exclude", "a.*", "--exclude", "*.hed.*"]].concat();
    let report = json(&args);
    let warnings: Vec<_> =
        report["warnings"].as_array().unwrap().iter().map(|w| w.as_str().unwrap()).collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    for (warning, glob) in warnings.iter().zip(["'*.hed.*'", "'*.lm_haed'"]) {
        assert!(warning.starts_with(glob) && warning.contains("matches no tensor"), "{warning}");
    }
    let strict = [&args[..], &["--strict"]].concat();
    fails(&strict, &["'*.hed.*' of --include, --exclude or --recipe matches no tensor"]);
}
