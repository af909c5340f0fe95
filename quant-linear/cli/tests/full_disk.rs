//! A disk that fills up in the middle: a clear error and nothing left behind.
//!
//! `ulimit -f` bounds the size of a file; with SIGXFSZ ignored a write past it fails as on a full
//! disk, only with another error number.

#![cfg(unix)]

mod common;

use std::fs;
use std::process::{Command, Stdio};

use common::*;
use safetensors::Dtype;

/// Runs `fp4` under a limit of `kib` on the size of files.
fn limited(kib: u32, args: &[&str]) -> (Option<i32>, String) {
    let output = Command::new("bash")
        .args(["-c", r#"trap "" XFSZ; ulimit -f "$1"; shift; exec "$@""#, "bash", &kib.to_string()])
        .arg(env!("CARGO_BIN_EXE_fp4"))
        .args(args)
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_file_that_does_not_fit() {
    let folder = Folder::new();
    write(&folder.at("in"), &[random("a.weight", Dtype::F32, &[256, 1024], 1)]);
    fs::write(folder.at("old"), "old").unwrap();
    let before = folder.snapshot();
    for (output, more) in [("out", &[][..]), ("old", &["--force"])] {
        let (input, output) = (folder.arg("in"), folder.arg(output));
        let args = [&["quantize", &input, "-o", &output, "--format", "nvfp4"], more].concat();
        let (code, stderr) = limited(16, &args);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(&output) && stderr.contains("nothing is left behind"), "{stderr}");
        assert!(!stderr.contains("panicked"), "{stderr}");
        assert!(folder.snapshot() == before, "something is left behind");
    }
}

#[test]
fn a_folder_that_does_not_fit() {
    // The shard fits, the other file does not; then the other way round.
    for (rows, other) in [(1, 64 << 10), (256, 10)] {
        let folder = Folder::new();
        fs::create_dir(folder.at("in")).unwrap();
        write(
            &folder.at("in/model.safetensors"),
            &[random("a.weight", Dtype::F32, &[rows, 1024], 1)],
        );
        fs::write(folder.at("in/other.bin"), vec![1; other]).unwrap();
        fs::create_dir(folder.at("old")).unwrap();
        fs::write(folder.at("old/kept"), "old").unwrap();
        let before = folder.snapshot();
        for (output, more) in [("out", &[][..]), ("old", &["--force"])] {
            let (input, output) = (folder.arg("in"), folder.arg(output));
            let args = [&["quantize", &input, "-o", &output, "--format", "mxfp4"], more].concat();
            let (code, stderr) = limited(16, &args);
            assert_eq!(code, Some(2), "{stderr}");
            assert!(stderr.contains("nothing is left behind"), "{stderr}");
            assert!(folder.snapshot() == before, "something is left behind");
        }
    }
}

#[test]
fn a_report_that_cannot_be_written_is_an_error() {
    let folder = Folder::new();
    write(&folder.at("in"), &[random("a.weight", Dtype::F32, &[4, 64], 1)]);
    let input = folder.arg("in");
    let commands: [&[&str]; 6] = [
        &["inspect", &input],
        &["compare", &input, &input],
        &["demo"],
        &["demo", "--json"],
        &[],
        &["quantize", &input, "-o", &folder.arg("out"), "--format", "mxfp4"],
    ];
    for args in commands {
        let Ok(full) = fs::OpenOptions::new().write(true).open("/dev/full") else { return };
        let (code, stderr) = printing_to(full, args);
        assert_eq!(code, Some(2), "{args:?}: {stderr}");
        assert!(stderr.contains("stdout") && !stderr.contains("panicked"), "{args:?}: {stderr}");
    }
}

#[test]
fn a_reader_that_has_gone_away_is_no_error() {
    for args in [&["demo"][..], &["demo", "--json"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        assert_eq!(printing_to(writer, args), (Some(0), String::new()), "{args:?}");
    }
}

/// Runs `fp4` with this stdout; the exit code and stderr.
fn printing_to(stdout: impl Into<Stdio>, args: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_fp4"));
    let output = command.args(args).stdout(stdout).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}
