//! `fp4 report`: the page, its place, and what a file can do to it.

mod common;

use std::fs;
use std::path::Path;

use common::*;
use safetensors::Dtype;
use serde_json::{Value, json};

/// The numbers that a page holds.
fn numbers(page: &str) -> Value {
    let (_, rest) = page.split_once(r#"<script type="application/json" id="fp4-report">"#).unwrap();
    let (json, _) = rest.split_once("</script>").unwrap();
    serde_json::from_str(json).unwrap()
}

/// A model and its quantized version in a folder.
fn quantized(tensors: &[Tensor]) -> Folder {
    let folder = Folder::new();
    write(&folder.at("a.safetensors"), tensors);
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.arg(name));
    ok(&["quantize", &a, "-o", &b, "--format", "nvfp4"]);
    folder
}

#[test]
fn the_page_holds_the_numbers_that_json_prints_and_those_of_compare() {
    let folder = quantized(&model());
    let [a, b, page] = ["a.safetensors", "b.safetensors", "page.html"].map(|name| folder.arg(name));
    let said = ok(&["report", &a, &b, "-o", &page]);
    assert!(said.contains("3 quantized layers, 2") && said.ends_with(" dB\n"), "{said}");
    let html = fs::read_to_string(&page).unwrap();
    let printed = json(&["report", &a, &b]);
    assert_eq!(numbers(&html), printed);
    let compared = json(&["compare", &a, &b]);
    assert_eq!(printed["totals"]["error"]["sqnr_db"], compared["totals"]["quantized_sqnr_db"]);
    for tensor in compared["tensors"].as_array().unwrap() {
        let name = tensor["name"].as_str().unwrap();
        let rows = printed["rows"].as_array().unwrap();
        let row =
            rows.iter().find(|row| name == format!("{}.weight", row["name"].as_str().unwrap()));
        assert_eq!(row.is_some(), tensor["kind"] == "dense-quantized", "{name}");
        for figure in ["relative_error", "sqnr_db", "max_abs_error", "values_differ"] {
            assert!(
                row.is_none_or(|row| row["error"][figure] == tensor[figure]),
                "{name} {figure}"
            );
        }
    }
    // The same input gives the same bytes.
    ok(&["report", &a, &b, "-o", &page, "--force"]);
    assert_eq!(fs::read_to_string(&page).unwrap(), html);
    // One alone has no errors.
    let alone = json(&["report", &b]);
    assert!(alone["totals"]["error"].is_null() && alone["b"].is_null());
    assert_eq!(alone["totals"]["counts"], printed["totals"]["counts"]);
}

#[test]
fn a_hostile_name_stays_inside_the_data_of_the_page() {
    let hostile = "</script><script>alert(1)</script><!--<script>-->\u{2028}\u{202e}\u{0}&lt;]]>";
    let weight = random(&format!("{hostile}.weight"), Dtype::F32, &[4, 64], 1);
    let folder = quantized(&[weight, random(hostile, Dtype::F32, &[4], 2)]);
    let [a, b, page] = ["a.safetensors", "b.safetensors", "page.html"].map(|name| folder.arg(name));
    ok(&["report", &a, &b, "-o", &page]);
    let html = fs::read_to_string(&page).unwrap();
    assert_eq!(html.matches("<script").count(), 2);
    assert_eq!(html.matches("</script").count(), 2);
    assert!(!html.contains("<!--") && !html.contains(['\u{2028}', '\u{202e}', '\0']));
    let name = numbers(&html)["rows"][0]["name"].as_str().unwrap().to_string();
    assert_eq!(name, quant_linear::text::printable(hostile));
    let (_, stderr) = code(&["report", &a, &b, "-o", &page], 2);
    assert!(stderr.contains("--force"), "{stderr}");
}

#[test]
fn the_page_takes_the_place_of_nothing_that_it_is_about() {
    let folder = Folder::new();
    sharded(&folder.at("model"));
    let before = folder.snapshot();
    let model = folder.arg("model");
    let shard = folder.at("model").join("model-00002-of-00002.safetensors");
    let shard = shard.to_str().unwrap();
    for args in [&["report", &model, "-o", shard][..], &["report", &model, "-o", shard, "--force"]]
    {
        fails(args, &["is the input"]);
    }
    fails(&["report", shard, &model, "-o", shard, "--force"], &["is the input"]);
    let at = |name: &str| folder.arg(&format!("model/{name}"));
    let index = at("model.safetensors.index.json");
    for own in [&at("config.json"), &index] {
        for input in [&model, shard] {
            fails(&["report", input, "-o", own, "--force"], &["the input"]);
        }
        fails(&["report", shard, &model, "-o", own, "--force"], &["the input"]);
    }
    fails(&["report", &model, "-o", &model, "--force"], &["a folder"]);
    fails(&["report", &model], &["--output"]);
    fails(&["report", &model, "-o", &folder.arg("no/page.html")], &["create it first"]);
    assert_eq!(folder.snapshot(), before);
    // One that cannot be read is the model's all the same, and so is one given from elsewhere.
    fs::write(folder.at("model/config.json"), "{").unwrap();
    fs::write(folder.at("other.cfg"), "{}").unwrap();
    let before = folder.snapshot();
    fails(&["report", &model, "-o", &at("config.json"), "--force"], &["is a file of the input"]);
    let other = folder.arg("other.cfg");
    fails(&["report", shard, "--config", &other, "-o", &other, "--force"], &["is the input"]);
    assert_eq!(folder.snapshot(), before);
    let page = at("page.html");
    ok(&["report", shard, "-o", &page]);
    ok(&["report", shard, "-o", &page, "--force"]);
}

#[test]
fn what_cannot_be_reported_is_in_the_page_and_the_exit_code() {
    let folder = quantized(&model());
    let mut broken = read(&folder.at("b.safetensors"));
    broken.remove("a.scale_quant");
    write(&folder.at("b.safetensors"), &broken.into_values().collect::<Vec<_>>());
    let [a, b, page] = ["a.safetensors", "b.safetensors", "page.html"].map(|name| folder.arg(name));
    let (_, stderr) = code(&["report", &a, &b, "-o", &page], 2);
    assert!(stderr.contains("1 problem") && stderr.contains("layer `a`"), "{stderr}");
    let numbers = numbers(&fs::read_to_string(&page).unwrap());
    assert_eq!(numbers["problems"]["first"].as_array().unwrap().len(), 1);
    assert_eq!(numbers["totals"]["layers"], 2);
}

#[test]
fn a_page_of_thousands_of_layers_with_long_names_is_bounded() {
    let folder = Folder::new();
    let mut tensors = vec![];
    let long = "\u{1b}<&".repeat(700);
    for i in 0..3000 {
        // Scales of every exponent, and an E8M0 byte takes the most digits.
        let scales: Vec<u8> = (0..4u32).map(|g| ((i * 4 + g) * 37 % 255) as u8).collect();
        tensors.push((format!("{long}{i}.e2m1"), Dtype::U8, vec![1, 64], vec![0x2A; 64]));
        tensors.push((format!("{long}{i}.scale_quant"), Dtype::F8_E8M0, vec![1, 4], scales));
        tensors.push(f32s(&format!("{long}{i}.weight_global_scale"), &[], &[1.0]));
    }
    write(&folder.at("a.safetensors"), &tensors);
    let [a, page] = ["a.safetensors", "page.html"].map(|name| folder.arg(name));
    let said = ok(&["report", &a, "-o", &page]);
    assert!(said.contains("3000 quantized layers; 1000 rows not shown one by one"), "{said}");
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.len() < 4 << 20, "{} bytes", html.len());
    // Losses of what is left out are no other tensors'.
    let tensors: Vec<_> = (0..3000).map(|i| entry(&format!("{long}{i}"), 0.5)).collect();
    let losses = losses_file(&folder, "losses.json", &json!(tensors));
    ok(&["report", &a, "-o", &page, "--force", "--losses", &losses]);
    let html = fs::read_to_string(&page).unwrap();
    assert!(html.len() < 4 << 20, "{} bytes", html.len());
    assert_eq!(self::numbers(&html)["losses"]["tensors"], 3000);
    let numbers = numbers(&html);
    assert_eq!(numbers["rows"].as_array().unwrap().len(), 2000);
    assert_eq!(numbers["totals"]["counts"]["groups"], 12_000);
}

/// A tensor of a run's report.
fn entry(prefix: &str, layer: f64) -> Value {
    json!({ "prefix": prefix, "loss": { "weight": 0.25, "layer": layer, "before": 1.0 } })
}

/// What `fp4 quantize --json` prints of such tensors, as far as it matters; its path.
fn losses_file(folder: &Folder, name: &str, tensors: &Value) -> String {
    let mean = json!({ "weight": 0.25, "layer": 0.5, "before": 1.0 });
    let report =
        json!({ "command": "quantize", "tensors": tensors, "totals": { "mean_loss": mean } });
    fs::write(folder.at(name), report.to_string()).unwrap();
    folder.arg(name)
}

/// Members of a loss, or of a mean.
fn loss(value: &Value) -> [Option<f64>; 3] {
    ["weight", "layer", "before"].map(|name| value[name].as_f64())
}

/// A model with inputs of its layers, calibrated and quantized; what the command printed is in
/// `losses.json`.
#[cfg(feature = "calibrate")]
fn calibrated() -> Folder {
    let folder = Folder::new();
    let names: Vec<_> = (0..11).map(|i| format!("layers.{i}.mlp.up_proj")).collect();
    let weight = |(name, seed): (&String, u64)| {
        random(&format!("{name}.weight"), Dtype::F32, &[32, 64], seed)
    };
    let weights: Vec<_> = names.iter().zip(1..).map(weight).collect();
    let inputs: Vec<_> = (names.iter().zip(50..))
        .map(|(name, seed)| f32s(&format!("{name}.input"), &[200, 64], &self::inputs(seed)))
        .collect();
    write(&folder.at("a.safetensors"), &weights);
    write(&folder.at("acts.safetensors"), &inputs);
    let [a, acts, calib, b] = ["a.safetensors", "acts.safetensors", "calib", "b.safetensors"]
        .map(|name| folder.arg(name));
    ok(&["calibrate", &a, "--data", &acts, "-o", &calib]);
    let own = ["quantize", &a, "-o", &b, "--format", "nvfp4", "--calib", &calib];
    let printed = ok(&[&own[..], &["--method", "gptq", "--transform", "wush", "--json"]].concat());
    fs::write(folder.at("losses.json"), printed).unwrap();
    folder
}

/// Inputs of 64 features that depend on each other.
#[cfg(feature = "calibrate")]
fn inputs(seed: u64) -> Vec<f32> {
    let mut x = common::numbers(seed, 200 * 64);
    x.chunks_exact_mut(64).for_each(|row| row[5] += 30.0 * row[6]);
    x
}

#[cfg(feature = "calibrate")]
#[test]
fn each_layer_has_the_losses_that_the_run_printed_for_it() {
    let folder = calibrated();
    let [a, b, page, losses] =
        ["a.safetensors", "b.safetensors", "page.html", "losses.json"].map(|name| folder.arg(name));
    let run: Value = serde_json::from_slice(&fs::read(&losses).unwrap()).unwrap();
    let said = ok(&["report", &a, &b, "-o", &page, "--losses", &losses]);
    assert!(said.contains("mean loss ") && said.contains(" before, "), "{said}");
    let printed = json(&["report", &a, &b, "--losses", &losses]);
    assert_eq!(numbers(&fs::read_to_string(&page).unwrap()), printed);
    let same = |a: &Value, b: &Value, what: &str| {
        assert!(loss(a).iter().all(|x| x.is_some_and(|x| x > 0.0)), "{what}: {a}");
        assert_eq!(loss(a), loss(b), "{what}");
    };
    same(&printed["losses"]["mean"], &run["totals"]["mean_loss"], "mean");
    assert_eq!(printed["losses"]["path"], *losses);
    assert_eq!(printed["losses"]["tensors"], 11);
    assert_eq!(printed["losses"]["layers_without"], 0);
    let rows = printed["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 11);
    for (i, row) in rows.iter().enumerate() {
        let name = format!("layers.{i}.mlp.up_proj");
        assert_eq!(row["name"], *name, "in the order of the model");
        let tensors = run["tensors"].as_array().unwrap();
        let tensor = tensors.iter().find(|tensor| tensor["prefix"] == *name).unwrap();
        same(&row["loss"], &tensor["loss"], &name);
        let [_, after, before] = loss(&row["loss"]).map(Option::unwrap);
        assert!(after < before, "{name}: {row}");
    }
    // The quantized side alone, and from the other side.
    for args in [&["report", &b][..], &["report", &b, &a]] {
        let other = json(&[args, &["--losses", &losses]].concat());
        assert_eq!(other["losses"], printed["losses"]);
        assert_eq!(other["rows"][10]["loss"], rows[10]["loss"]);
    }
    // Without the file there are none.
    let without = json(&["report", &a, &b]);
    assert!(without["losses"].is_null() && without["rows"][0]["loss"].is_null());
}

#[cfg(feature = "calibrate")]
#[test]
fn losses_of_another_model_or_of_no_calibration_are_refused() {
    let folder = calibrated();
    let [a, b, losses] =
        ["a.safetensors", "b.safetensors", "losses.json"].map(|name| folder.arg(name));
    let refused = |text: &str, needles: &[&str]| {
        let file = folder.arg("bad.json");
        fs::write(&file, text).unwrap();
        fails(&["report", &a, &b, "--json", "--losses", &file], &[&["bad.json"], needles].concat());
    };
    // Runs without a calibration; another command.
    let plain = |more: &[&str]| {
        let output = folder.arg("plain.safetensors");
        let own = ["quantize", &a, "-o", &output, "--format", "nvfp4", "--force", "--json"];
        ok(&[&own[..], more].concat())
    };
    refused(&plain(&[]), &["none of its tensors (11) has a loss", "--calib"]);
    refused(&plain(&["--dry-run"]), &["dry run", "the run itself"]);
    refused(&ok(&["compare", &a, &b, "--json"]), &["`fp4 compare` printed", "quantize --json"]);
    refused(&ok(&["report", &a, &b, "--json"]), &["`fp4 report` printed"]);
    // Cut short.
    let whole = fs::read_to_string(&losses).unwrap();
    refused(&whole[..whole.len() / 2], &["EOF", "whole"]);
    // Of a model that has more layers, and names that are no layers'.
    let part: Vec<_> =
        read(&folder.at("a.safetensors")).into_values().filter(|t| !t.0.contains(".1")).collect();
    write(&folder.at("part.safetensors"), &part);
    let [part, quantized] = ["part.safetensors", "part-fp4.safetensors"].map(|n| folder.arg(n));
    ok(&["quantize", &part, "-o", &quantized, "--format", "nvfp4"]);
    let of_more = ["losses of 11 tensors", "2 of them", "`layers.1.mlp.up_proj`", "that wrote"];
    fails(&["report", &part, &quantized, "--json", "--losses", &losses], &of_more);
    // A dense model has no layers at all.
    fails(&["report", &a, "--json", "--losses", &losses], &["11 of them are no quantized layers"]);
}

#[test]
fn a_layer_that_the_run_did_not_make_has_no_loss_and_is_counted() {
    let folder = quantized(&model());
    let [a, b] = ["a.safetensors", "b.safetensors"].map(|name| folder.arg(name));
    let mut tensors = vec![entry("a", 0.5), entry("b.c", 0.0), json!({ "prefix": "other" })];
    tensors[1]["loss"]["before"] = Value::Null;
    let losses = losses_file(&folder, "losses.json", &json!(tensors));
    let report = json(&["report", &a, &b, "--losses", &losses]);
    let row = |name: &str| {
        report["rows"].as_array().unwrap().iter().find(|row| row["name"] == name).unwrap().clone()
    };
    assert_eq!(loss(&row("a")["loss"]), [Some(0.25), Some(0.5), Some(1.0)]);
    assert_eq!(loss(&row("b.c")["loss"]), [Some(0.25), Some(0.0), None]);
    assert!(row("d")["loss"].is_null());
    assert_eq!(report["losses"]["layers_without"], 1);
    assert_eq!(report["losses"]["tensors"], 2);
}

#[test]
fn files_that_are_no_losses_are_refused_before_anything_is_written() {
    let folder = quantized(&model());
    let [a, b, page] = ["a.safetensors", "b.safetensors", "page.html"].map(|name| folder.arg(name));
    let refused = |file: &str, needles: &[&str]| {
        let args = ["report", &a, &b, "-o", &page, "--force", "--losses", file];
        fails(&args, needles);
        assert!(!Path::new(&page).exists(), "{file}");
    };
    refused(&folder.arg("absent.json"), &["absent.json"]);
    refused(folder.path().to_str().unwrap(), &["not a plain file"]);
    refused(&b, &["UTF-8"]);
    let long = fs::File::create(folder.at("long.json")).unwrap();
    long.set_len(100_000_001).unwrap();
    refused(&folder.arg("long.json"), &["long.json", "100000001", "100000000"]);
    let hostile = "\u{1b}]0;\u{202e}`".repeat(1000);
    let losses = losses_file(&folder, "other.json", &json!([entry(&hostile, 0.5)]));
    let (_, stderr) = code(&["report", &a, &b, "--json", "--losses", &losses], 2);
    assert!(stderr.contains("1 of them are no quantized layers"), "{stderr}");
    assert!(stderr.len() < 1000 && !stderr.contains(['\u{1b}', '\u{202e}']), "{stderr}");
    // And the page takes no place of theirs.
    let losses = losses_file(&folder, "losses.txt", &json!([entry("a", 0.5)]));
    let before = folder.snapshot();
    fails(&["report", &a, &b, "-o", &losses, "--force", "--losses", &losses], &["is the input"]);
    assert_eq!(folder.snapshot(), before);
}
