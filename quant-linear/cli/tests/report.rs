//! `fp4 report`: the page, its place, and what a file can do to it.

mod common;

use std::fs;

use common::*;
use safetensors::Dtype;
use serde_json::Value;

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
    let numbers = numbers(&html);
    assert_eq!(numbers["rows"].as_array().unwrap().len(), 2000);
    assert_eq!(numbers["totals"]["counts"]["groups"], 12_000);
}
