//! The command's exit codes and what it prints, where a pass would be wrong.

#![allow(missing_docs)]

use std::path::Path;
use std::process::{Command, Output};

use safetensors::SafeTensors;
use tempfile::TempDir;

const FILTER: &str = "matmul/nvfp4/*/near/*/f32/whole";

fn fp4_conformance(dir: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_fp4-conformance"))
        .args(arguments)
        .current_dir(dir)
        .output()
        .unwrap()
}

/// Exit code, stdout and stderr.
fn run(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = fp4_conformance(dir, arguments);
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// A folder with an export `s` and answers `a`.
fn answered() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for arguments in [&["export", "s", "--filter", FILTER][..], &["answer", "s", "a"]] {
        let (code, _, errors) = run(dir.path(), &[&["vectors"], arguments].concat());
        assert_eq!(code, 0, "{errors}");
    }
    dir
}

#[test]
fn verify_demands_every_answer_unless_told_that_they_are_part() {
    let dir = answered();
    let (code, out, errors) = run(dir.path(), &["vectors", "verify", "s", "a"]);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(!out.contains("partial"), "{out}");

    let path = dir.path().join("a/matmul_nvfp4_f32_near.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    // With values: a product of no columns is answered by nothing.
    let (name, _) = tensors.iter().find(|(_, y)| !y.data().is_empty()).unwrap();
    let first = [(name, tensors.tensor(name).unwrap())];
    let others = tensors.len() - 1;
    std::fs::write(&path, safetensors::serialize(first, None).unwrap()).unwrap();

    let (code, out, errors) = run(dir.path(), &["vectors", "verify", "s", "a"]);
    assert_eq!(code, 2, "{out}{errors}");
    let expected = format!("{others} of {} cases are not answered", others + 1);
    assert!(errors.contains(&expected) && errors.contains("--partial"), "{errors}");
    let (code, out, errors) = run(dir.path(), &["vectors", "verify", "--partial", "s", "a"]);
    assert_eq!(code, 0, "{out}{errors}");
    assert!(out.contains(&format!("partial: {expected}\nverify: 1 cases, ")), "{out}");
}

#[test]
fn one_folder_is_not_both_export_and_answers() {
    let dir = answered();
    let manifest = dir.path().join("s/matmul_nvfp4_f32_near.safetensors");
    let before = std::fs::read(&manifest).unwrap();
    for command in ["verify", "answer"] {
        let (code, out, errors) = run(dir.path(), &["vectors", command, "s", "s"]);
        assert_eq!(code, 2, "{command}: {out}{errors}");
        assert!(errors.contains("answers must be files of their own"), "{errors}");
    }
    assert_eq!(std::fs::read(&manifest).unwrap(), before);
}

#[test]
fn an_export_of_nothing_fails() {
    let dir = tempfile::tempdir().unwrap();
    let (code, _, errors) = run(dir.path(), &["vectors", "export", "s", "--filter", "core/*"]);
    assert_eq!(code, 2);
    assert!(errors.contains("nothing was exported"), "{errors}");
    assert!(!dir.path().join("s").exists());
}

/// A case's id, a tensor's name and a file's name that would clear a line, forge one, or read
/// backwards.
#[test]
fn names_from_files_reach_the_terminal_escaped() {
    let hostile = "\u{1b}[2K\u{9b}1A\nverify: all well\u{202e}\u{7}";
    let dir = answered();
    let path = dir.path().join("s/matmul_nvfp4_f32_near.json");
    let mut manifest: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    for case in manifest["cases"].as_object_mut().unwrap().values_mut() {
        case["id"] = hostile.into();
    }
    std::fs::write(&path, manifest.to_string()).unwrap();
    let answers = dir.path().join("a/matmul_nvfp4_f32_near.safetensors");
    let mut bytes = std::fs::read(&answers).unwrap();
    let end = bytes.len();
    bytes[end - 1] ^= 1;
    std::fs::write(&answers, &bytes).unwrap();
    let (code, out, errors) = run(dir.path(), &["vectors", "verify", "s", "a"]);
    assert_eq!(code, 1, "{out:?}{errors}");
    expect_plain(&out);
    assert!(out.contains(r"FAILED \u{1b}[2K\u{9b}1A\u{a}verify: all well\u{202e}\u{7} "), "{out}");

    // In an error.
    manifest["cases"]["0"][hostile] = 1.into();
    std::fs::write(&path, manifest.to_string()).unwrap();
    let (code, _, errors) = run(dir.path(), &["vectors", "verify", "s", "a"]);
    assert_eq!(code, 2);
    expect_plain(&errors);
    assert_eq!(errors.lines().count(), 1, "{errors}");

    // The name of a file in a folder of golden vectors.
    #[cfg(unix)]
    {
        let golden = dir.path().join("golden");
        std::fs::create_dir(&golden).unwrap();
        let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors");
        for extension in ["json", "safetensors"] {
            let name = format!("a_decode_tables.{extension}");
            std::fs::copy(vectors.join(&name), golden.join(&name)).unwrap();
        }
        std::fs::write(golden.join(format!("{}.json", hostile.replace('.', ""))), "").unwrap();
        let (code, out, errors) = run(dir.path(), &["vectors", "check", "golden"]);
        assert_eq!(code, 0, "{out:?}{errors}");
        expect_plain(&out);
        assert!(out.contains(r"\u{9b}1A\u{a}verify: all well\u{202e}\u{7}: not checked"), "{out}");
    }
}

fn expect_plain(text: &str) {
    let raw = |c: char| c != '\n' && c.is_control() || c == '\u{202e}';
    assert!(!text.contains(raw) && !text.contains("\nverify: all well"), "{text:?}");
}
