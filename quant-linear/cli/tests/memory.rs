//! Memory does not grow with the largest tensor: a 512 MB tensor under a limit of 400 MB on the
//! whole address space. Nor does it grow beyond what the length of a file explains.

#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::process::Command;

use common::*;
use quant_linear::checkpoint::gguf::{GgmlType, GgufArrangement};

/// Runs `fp4` within `kib` of address space, on two threads.
fn limited(kib: u32, args: &[&str]) {
    let output = Command::new("bash")
        .args(["-c", r#"ulimit -v "$1"; shift; exec "$@""#, "bash", &kib.to_string()])
        .arg(env!("CARGO_BIN_EXE_fp4"))
        .args(args)
        // Address space, not memory, is what the C library and rayon take per thread.
        .envs([("MALLOC_ARENA_MAX", "1"), ("RAYON_NUM_THREADS", "2")])
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "fp4 {args:?}: {stderr}");
}

/// A file of one F32 tensor of zeros with holes instead of blocks.
fn sparse(folder: &Folder, shape: &str, elements: u64) {
    let bytes = 4 * elements;
    let header =
        format!(r#"{{"a.weight":{{"dtype":"F32","shape":{shape},"data_offsets":[0,{bytes}]}}}}"#);
    let mut file = File::create(folder.at("in")).unwrap();
    file.write_all(&raw(&header, &[])).unwrap();
    file.set_len(8 + header.len() as u64 + bytes).unwrap();
}

#[test]
fn a_tensor_larger_than_memory_is_quantized_inspected_and_compared() {
    let folder = Folder::new();
    // Many rows, and one row that is larger than memory by itself.
    for shape in ["[32768,4096]", "[1,134217728]"] {
        sparse(&folder, shape, 1 << 27);
        let (input, output) = (folder.arg("in"), folder.arg("out"));
        limited(400_000, &["quantize", &input, "-o", &output, "--format", "nvfp4", "--force"]);
        assert_eq!(std::fs::metadata(folder.at("out")).unwrap().len() >> 20, 72);
        limited(400_000, &["inspect", &output]);
    }
    limited(400_000, &["compare", &folder.arg("in"), &folder.arg("out"), "--exact"]);
    // A tensor that is only copied.
    sparse(&folder, "[134217728]", 1 << 27);
    limited(400_000, &["compare", &folder.arg("in"), &folder.arg("in"), "--exact"]);
}

#[test]
fn a_sparse_transform_is_not_read_to_be_inspected() {
    let folder = Folder::new();
    let k = 1u64 << 20;
    let (blocks, transform) = (k / 128, 512 * k);
    let (scalar, codes) = (transform + 4, transform + 4 + k / 2);
    let end = codes + k / 32;
    let header = format!(
        r#"{{"a.transform":{{"dtype":"F32","shape":[{blocks},128,128],"data_offsets":[0,{transform}]}},
        "a.weight_global_scale":{{"dtype":"F32","shape":[],"data_offsets":[{transform},{scalar}]}},
        "a.e2m1":{{"dtype":"U8","shape":[1,{}],"data_offsets":[{scalar},{codes}]}},
        "a.scale_quant":{{"dtype":"F8_E8M0","shape":[1,{}],"data_offsets":[{codes},{end}]}}}}"#,
        k / 2,
        k / 32
    );
    let start = 8 + header.len() as u64;
    let mut file = File::create(folder.at("in")).unwrap();
    file.write_all(&raw(&header, &[])).unwrap();
    file.set_len(start + end).unwrap();
    file.seek(SeekFrom::Start(start + transform)).unwrap();
    file.write_all(&1f32.to_le_bytes()).unwrap();
    limited(400_000, &["inspect", &folder.arg("in")]);
    limited(400_000, &["inspect", &folder.arg("in"), "--json"]);
    limited(400_000, &["compare", &folder.arg("in"), &folder.arg("in"), "--exact"]);
}

#[test]
fn a_header_of_many_names_takes_a_few_times_its_length() {
    let folder = Folder::new();
    let entry = r#"{"dtype":"U8","shape":[0],"data_offsets":[0,0]}"#;
    let mut names: Vec<_> = (0..300_000).map(|i| format!(r#""name{i:06}":{entry}"#)).collect();
    names.push(r#""a.weight":{"dtype":"F32","shape":[1,32],"data_offsets":[0,128]}"#.into());
    let file = raw(&format!("{{{}}}", names.join(",")), &[0; 128]);
    std::fs::write(folder.at("in"), &file).unwrap();
    // The program itself, its threads and their stacks take some 100 MB of address space.
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    let kib = 100_000 + 8 * u32::try_from(file.len() >> 10).unwrap();
    limited(kib, &["inspect", &input]);
    limited(kib, &["inspect", &input, "--json"]);
    limited(2 * kib, &["compare", &input, &input, "--json"]);
    limited(2 * kib, &["quantize", &input, "-o", &output, "--format", "mxfp4", "--json"]);
}

#[test]
fn a_gguf_header_of_many_names_takes_a_few_times_its_length() {
    let folder = Folder::new();
    let tensors = (0..300_000).map(|i| (format!("name{i:06}"), GgmlType::I8, vec![0]));
    let tensors: Vec<_> = tensors.collect();
    let file = GgufArrangement::new(&[], &tensors).unwrap();
    std::fs::write(folder.at("in"), file.header()).unwrap();
    let kib = 100_000 + 12 * u32::try_from(file.file_len() >> 10).unwrap();
    limited(kib, &["inspect", &folder.arg("in")]);
    limited(kib, &["inspect", &folder.arg("in"), "--json"]);
}

#[test]
fn many_empty_weights_take_no_time_that_grows_with_their_square() {
    let folder = Folder::new();
    let entry = r#"{"dtype":"F32","shape":[0,64],"data_offsets":[0,0]}"#;
    let names: Vec<_> = (0..100_000).map(|i| format!(r#""l{i}.weight":{entry}"#)).collect();
    std::fs::write(folder.at("in"), raw(&format!("{{{}}}", names.join(",")), &[])).unwrap();
    let (input, output) = (folder.arg("in"), folder.arg("out"));
    // The watchdog of the tests is the limit: two minutes.
    let json = json(&["quantize", &input, "-o", &output, "--format", "nvfp4"]);
    assert_eq!(json["totals"]["tensors"], 100_000);
    let json = common::json(&["inspect", &output]);
    assert_eq!(json["layers"].as_array().unwrap().len(), 100_000);
}
