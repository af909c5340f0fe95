//! Memory does not grow with the largest tensor: a 512 MB tensor under a limit of 400 MB on the
//! whole address space.

#![cfg(target_os = "linux")]

mod common;

use std::fs::File;
use std::io::Write;
use std::process::Command;

use common::*;

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
