//! Exported cases: answered, verified, and noticed when an answer is wrong, absent or misshapen.

#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use fp4_conformance::exchange::{Error, Verification, answer, export, is_exchange, verify};
use fp4_conformance::suite::{Profile, Suite};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use tempfile::TempDir;

/// Exported cases and the reference's answers.
fn answered(filter: &str) -> (TempDir, usize) {
    let dir = tempfile::tempdir().unwrap();
    let cases = Suite::new(Profile::quick()).matching(filter).unwrap().cases();
    let exported = export(&dir.path().join("vectors"), &cases).unwrap();
    let reference = Backend::new(Reference);
    let (vectors, answers) = (dir.path().join("vectors"), dir.path().join("answers"));
    assert_eq!(answer(&vectors, &answers, &reference).unwrap(), [exported, 0]);
    (dir, exported)
}

fn judge(dir: &Path) -> Result<Verification, Error> {
    verify(&dir.join("vectors"), &dir.join("answers"))
}

#[test]
fn the_reference_answers_every_exported_case() {
    for filter in ["quantize/*", "matmul/*"] {
        let (dir, exported) = answered(filter);
        assert!(is_exchange(&dir.path().join("vectors")));
        assert!(!is_exchange(&dir.path().join("answers")));
        let found = judge(dir.path()).unwrap();
        assert_eq!((found.asked, found.unanswered()), (exported as u64, 0));
        let Verification { report, counts, .. } = found;
        assert_eq!((counts.cases, counts.differ), (exported as u64, 0), "{report}");
        assert!(counts.values > 10_000, "{report}");
    }
}

#[test]
fn one_flipped_bit_is_found_where_it_is() {
    let (dir, _) = answered("matmul/nvfp4/17x8x160/near/*/f32/whole");
    let path = std::fs::read_dir(dir.path().join("answers")).unwrap().next().unwrap().unwrap();
    let mut bytes = std::fs::read(path.path()).unwrap();
    // The last value of a tensor.
    let at = bytes.len() - 2;
    bytes[at] ^= 1;
    std::fs::write(path.path(), bytes).unwrap();
    let Verification { report, counts, .. } = judge(dir.path()).unwrap();
    assert_eq!(counts.differ, 1, "{report}");
    assert!(report.contains("[C6] y at (16, 7): got 0x"), "{report}");
}

#[test]
fn no_answer_is_no_pass() {
    let (dir, _) = answered("matmul/nvfp4/17x8x160/near/*/f32/whole");
    let answers = dir.path().join("answers");
    std::fs::remove_dir_all(&answers).unwrap();
    assert!(matches!(judge(dir.path()), Err(Error::Io { .. })));
    std::fs::create_dir(&answers).unwrap();
    assert!(matches!(judge(dir.path()), Err(Error::Nothing { .. })));
}

/// The paths in a folder, in order.
fn paths(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<_> = dir.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Every file of a folder with its bytes.
fn contents(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    paths(dir).into_iter().map(|path| (path.clone(), std::fs::read(path).unwrap())).collect()
}

/// Rewrites a file of answers.
fn edit(path: &Path, edit: impl FnOnce(&mut BTreeMap<String, TensorView<'_>>)) {
    let bytes = std::fs::read(path).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors().into_iter().collect();
    edit(&mut tensors);
    std::fs::write(path, safetensors::serialize(&tensors, None).unwrap()).unwrap();
}

/// Some cases of one file, and of several.
const ONE_FILE: &str = "matmul/nvfp4/*/near/*/f32/whole";
const FILES: &str = "quantize/*/2x96/*";

#[test]
fn unanswered_cases_are_counted_and_named() {
    let (dir, exported) = answered(ONE_FILE);
    assert!(exported > 2, "{exported}");
    let answers = paths(&dir.path().join("answers"));
    edit(&answers[0], |tensors| {
        tensors.remove("1.y").unwrap();
    });
    let found = judge(dir.path()).unwrap();
    assert_eq!((found.asked, found.unanswered()), (exported as u64, 1));
    assert!(
        found.report.contains("matmul_nvfp4_f32_near: 1 cases not answered"),
        "{}",
        found.report
    );

    // A file of its own that is not answered at all.
    let (dir, exported) = answered(FILES);
    let answers = paths(&dir.path().join("answers"));
    assert!(answers.len() > 1);
    std::fs::remove_file(&answers[0]).unwrap();
    let found = judge(dir.path()).unwrap();
    let unanswered = found.unanswered();
    assert!(0 < unanswered && unanswered < exported as u64, "{unanswered} of {exported}");
    let line = format!("none of {unanswered} cases answered");
    assert!(found.report.contains(&line), "{}", found.report);
}

#[test]
fn a_case_with_some_of_its_outputs_is_an_error() {
    let (dir, _) = answered(FILES);
    edit(&paths(&dir.path().join("answers"))[0], |tensors| {
        tensors.remove("0.scales").unwrap();
    });
    let error = judge(dir.path()).unwrap_err().to_string();
    assert!(error.contains("tensor 0.scales is missing, expected a tensor"), "{error}");
}

#[test]
fn answers_that_nobody_asked_are_an_error() {
    for name in ["77.y", "0.z", "0.a_codes", "y", "00.y"] {
        let (dir, _) = answered(ONE_FILE);
        edit(&paths(&dir.path().join("answers"))[0], |tensors| {
            let view = TensorView::new(Dtype::U8, vec![0], &[]).unwrap();
            tensors.insert(name.into(), view);
        });
        let error = judge(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Extra { .. }), "{name}: {error}");
        assert!(error.to_string().contains(&format!("tensor {name} of ")), "{error}");
    }
    let (dir, _) = answered(ONE_FILE);
    let answers = dir.path().join("answers");
    std::fs::copy(&paths(&answers)[0], answers.join("more.safetensors")).unwrap();
    let error = judge(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Extra { .. }), "{error}");
}

/// A header with one name twice: parsers keep one of the two.
#[test]
fn a_case_answered_twice_is_an_error() {
    let (dir, _) = answered(ONE_FILE);
    let path = &paths(&dir.path().join("answers"))[0];
    let bytes = std::fs::read(path).unwrap();
    let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header = std::str::from_utf8(&bytes[8..8 + len]).unwrap();
    let entry = serde_json::from_str::<serde_json::Value>(header).unwrap()["0.y"].to_string();
    let header = header.replacen('{', &format!("{{\"0.y\":{entry},"), 1);
    let mut twice = (header.len() as u64).to_le_bytes().to_vec();
    twice.extend(header.bytes().chain(bytes[8 + len..].iter().copied()));
    assert!(SafeTensors::deserialize(&twice).is_ok(), "the parser sees nothing wrong");
    std::fs::write(path, twice).unwrap();
    let error = judge(dir.path()).unwrap_err();
    assert!(matches!(error, Error::SafeTensors { .. }), "{error}");
    assert!(error.to_string().contains("0.y is there twice"), "{error}");
}

/// Two cases of one number: the first would go unasked.
#[test]
fn a_manifest_with_a_case_twice_is_an_error() {
    let (dir, _) = answered(ONE_FILE);
    let path = paths(&dir.path().join("vectors")).remove(0);
    let json = std::fs::read_to_string(&path).unwrap();
    let case = serde_json::from_str::<serde_json::Value>(&json).unwrap()["cases"]["0"].to_string();
    let twice = json.replacen("\"cases\": {", &format!("\"cases\": {{\"0\": {case},"), 1);
    std::fs::write(&path, twice).unwrap();
    let error = judge(dir.path()).unwrap_err();
    assert!(matches!(error, Error::Manifest { .. }), "{error}");
    assert!(error.to_string().contains("0 is there twice"), "{error}");
}

#[test]
fn an_export_is_no_answer_to_itself() {
    let (dir, _) = answered(ONE_FILE);
    let (vectors, copy) = (dir.path().join("vectors"), dir.path().join("copy"));
    let error = verify(&vectors, &vectors).unwrap_err();
    assert!(matches!(error, Error::Same { .. }), "{error}");
    let error = verify(&vectors, &vectors.join("../vectors/.")).unwrap_err();
    assert!(matches!(error, Error::Same { .. }), "{error}");
    // A copy of it answers inputs.
    std::fs::create_dir(&copy).unwrap();
    for path in paths(&vectors) {
        std::fs::copy(&path, copy.join(path.file_name().unwrap())).unwrap();
    }
    let error = verify(&vectors, &copy).unwrap_err();
    assert!(matches!(error, Error::Extra { .. }), "{error}");
}

#[test]
fn a_link_to_the_export_is_no_answer() {
    type Link = fn(&Path, &Path) -> std::io::Result<()>;
    let mut links: Vec<Link> = vec![|from, to| std::fs::hard_link(from, to)];
    #[cfg(unix)]
    links.push(|from, to| std::os::unix::fs::symlink(from, to));
    for link in links {
        let (dir, _) = answered(ONE_FILE);
        let (vectors, answers) = (dir.path().join("vectors"), dir.path().join("answers"));
        let answer_path = paths(&answers).remove(0);
        let export = vectors.join(answer_path.file_name().unwrap());
        std::fs::remove_file(&answer_path).unwrap();
        link(&export, &answer_path).unwrap();
        let error = judge(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Same { .. }), "{error}");

        // Nor is it written through.
        let before = contents(&vectors);
        let error = answer(&vectors, &answers, &Backend::new(Reference)).unwrap_err();
        assert!(matches!(error, Error::Same { .. }), "{error}");
        assert_eq!(contents(&vectors), before);
    }
}

#[cfg(unix)]
#[test]
fn a_link_to_the_exports_folder_is_that_folder() {
    let (dir, _) = answered(ONE_FILE);
    let (vectors, link) = (dir.path().join("vectors"), dir.path().join("link"));
    std::os::unix::fs::symlink(&vectors, &link).unwrap();
    let before = contents(&vectors);
    assert!(matches!(verify(&vectors, &link).unwrap_err(), Error::Same { .. }));
    let error = answer(&vectors, &link, &Backend::new(Reference)).unwrap_err();
    assert!(matches!(error, Error::Same { .. }), "{error}");
    assert_eq!(contents(&vectors), before);
}

#[test]
fn vectors_are_never_written_over() {
    let (dir, _) = answered(ONE_FILE);
    let (vectors, reference) = (dir.path().join("vectors"), Backend::new(Reference));
    let before = contents(&vectors);
    let error = answer(&vectors, &vectors, &reference).unwrap_err();
    assert!(matches!(error, Error::Same { .. }), "{error}");
    // Of another export, or golden ones.
    let (other, _) = answered(FILES);
    let error = answer(&other.path().join("vectors"), &vectors, &reference).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    let cases = Suite::new(Profile::quick()).matching(ONE_FILE).unwrap().cases();
    let error = export(&vectors, &cases).unwrap_err();
    assert!(matches!(error, Error::Occupied { .. }), "{error}");
    assert_eq!(contents(&vectors), before);
    // Answers may be written again, over earlier answers.
    answer(&vectors, &dir.path().join("answers"), &reference).unwrap();
}

#[test]
fn an_empty_export_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("vectors");
    let cases = Suite::new(Profile::quick()).matching("core/*").unwrap().cases();
    assert!(!cases.is_empty());
    for cases in [&cases[..], &[]] {
        let error = export(&target, cases).unwrap_err();
        assert!(matches!(error, Error::NothingToExport { .. }), "{error}");
        assert!(!target.exists());
    }
    // Folders with nothing in them, and a manifest without a case.
    let answers = dir.path().join("answers");
    for folder in [&target, &answers] {
        std::fs::create_dir(folder).unwrap();
    }
    assert!(matches!(verify(&target, &answers), Err(Error::Nothing { .. })));
    let dir = hostile(|manifest| manifest["cases"] = serde_json::json!({}), None);
    std::fs::remove_dir_all(dir.path().join("answers")).unwrap();
    std::fs::create_dir(dir.path().join("answers")).unwrap();
    assert!(matches!(judge(dir.path()), Err(Error::Nothing { .. })));
}

#[test]
fn tensors_without_a_manifest_are_an_error() {
    let (dir, _) = answered(ONE_FILE);
    let manifest = paths(&dir.path().join("vectors")).remove(0);
    assert_eq!(manifest.extension().unwrap(), "json");
    std::fs::remove_file(&manifest).unwrap();
    assert!(matches!(judge(dir.path()), Err(Error::NoManifest { path }) if path == manifest));
}

/// Opening a pipe would wait for its other end.
#[cfg(unix)]
#[test]
fn a_pipe_is_refused_unopened() {
    for folder in ["answers", "vectors"] {
        let (dir, _) = answered(ONE_FILE);
        for path in paths(&dir.path().join(folder)) {
            let before = std::fs::read(&path).unwrap();
            std::fs::remove_file(&path).unwrap();
            let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
            assert!(made.success());
            let error = judge(dir.path()).unwrap_err().to_string();
            assert!(error.contains("not a regular file"), "{error}");
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, before).unwrap();
        }
    }
}

#[test]
fn a_truncated_answer_is_an_error() {
    let (dir, _) = answered("matmul/nvfp4/17x8x160/near/*/f32/whole");
    let path = std::fs::read_dir(dir.path().join("answers")).unwrap().next().unwrap().unwrap();
    let bytes = std::fs::read(path.path()).unwrap();
    for len in [0, 7, 8, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(path.path(), &bytes[..len]).unwrap();
        assert!(matches!(judge(dir.path()), Err(Error::SafeTensors { .. })), "{len}");
    }
}

/// A folder with one exported file, its manifest and its tensors changed.
fn hostile(edit: impl Fn(&mut serde_json::Value), bytes: Option<Vec<u8>>) -> TempDir {
    let (dir, _) = answered("matmul/nvfp4/17x8x160/near/*/f32/whole");
    let vectors = dir.path().join("vectors");
    for entry in std::fs::read_dir(&vectors).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().unwrap() == "json" {
            let mut manifest = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            edit(&mut manifest);
            std::fs::write(&path, manifest.to_string()).unwrap();
        } else if let Some(bytes) = &bytes {
            std::fs::write(&path, bytes).unwrap();
        }
    }
    dir
}

fn answer_again(dir: &TempDir) -> Error {
    let (vectors, answers) = (dir.path().join("vectors"), dir.path().join("again"));
    answer(&vectors, &answers, &Backend::new(Reference)).unwrap_err()
}

#[test]
fn a_name_that_leads_elsewhere_is_an_error() {
    let dir = hostile(|manifest| manifest["name"] = "../elsewhere".into(), None);
    let error = answer_again(&dir).to_string();
    assert!(error.contains("tensor name is ../elsewhere"), "{error}");
    assert!(!dir.path().join("elsewhere.safetensors").exists());
}

/// Without K the operands have no bytes, so that only the expected output bounds M and N.
#[test]
fn an_output_larger_than_the_file_is_an_error() {
    for [m, n] in [[1usize << 31, 1 << 31], [1 << 40, 1 << 40]] {
        let edit = |manifest: &mut serde_json::Value| {
            for case in manifest["cases"].as_object_mut().unwrap().values_mut() {
                case["request"]["shape"] = serde_json::json!([m, n, 0]);
            }
        };
        let names = ["0.a_codes", "0.a_scales", "0.b_codes", "0.b_scales", "0.y"];
        let tensors = names.map(|name| (name, TensorView::new(Dtype::U8, vec![0], &[]).unwrap()));
        let dir = hostile(edit, Some(safetensors::serialize(tensors, None).unwrap()));
        let error = answer_again(&dir);
        assert!(matches!(error, Error::Tensor { .. } | Error::Core { .. }), "{error}");
    }
}

/// Types outside the schema have no words of 32 bits: half of a longer value would go unseen.
#[test]
fn outputs_of_other_types_are_an_error() {
    for (ty, bytes) in [(Dtype::F64, 8), (Dtype::F4, 1), (Dtype::I64, 8)] {
        let data = vec![0; bytes];
        let shape = vec![8 * bytes / ty.bitsize()];
        let file = || {
            let view = TensorView::new(ty, shape.clone(), &data).unwrap();
            safetensors::serialize([("0.y", view)], None).unwrap()
        };
        let dir = hostile(|_| {}, Some(file()));
        for entry in std::fs::read_dir(dir.path().join("answers")).unwrap() {
            std::fs::write(entry.unwrap().path(), file()).unwrap();
        }
        let error = judge(dir.path()).unwrap_err();
        assert!(matches!(error, Error::Tensor { .. }), "{ty}: {error}");
    }
}
