//! Exported cases: answered, verified, and noticed when an answer is wrong, absent or misshapen.

#![allow(missing_docs)]

use std::path::Path;

use fp4_conformance::exchange::{Error, answer, export, is_exchange, verify};
use fp4_conformance::suite::{Profile, Suite};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
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

fn judge(dir: &Path) -> Result<(String, fp4_conformance::report::Counts), Error> {
    verify(&dir.join("vectors"), &dir.join("answers"))
}

#[test]
fn the_reference_answers_every_exported_case() {
    for filter in ["quantize/*", "matmul/*"] {
        let (dir, exported) = answered(filter);
        assert!(is_exchange(&dir.path().join("vectors")));
        assert!(!is_exchange(&dir.path().join("answers")));
        let (report, counts) = judge(dir.path()).unwrap();
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
    let (report, counts) = judge(dir.path()).unwrap();
    assert_eq!(counts.differ, 1, "{report}");
    assert!(report.contains("[C6] y at (16, 7): got 0x"), "{report}");
}

#[test]
fn no_answer_is_no_pass() {
    let (dir, _) = answered("matmul/nvfp4/17x8x160/near/*/f32/whole");
    std::fs::remove_dir_all(dir.path().join("answers")).unwrap();
    assert!(matches!(judge(dir.path()), Err(Error::Nothing { .. })));
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
        let tensors = names.map(|name| {
            (
                name,
                safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![0], &[]).unwrap(),
            )
        });
        let dir = hostile(edit, Some(safetensors::serialize(tensors, None).unwrap()));
        let error = answer_again(&dir);
        assert!(matches!(error, Error::Tensor { .. } | Error::Core { .. }), "{error}");
    }
}

/// Types outside the schema have no words of 32 bits: half of a longer value would go unseen.
#[test]
fn outputs_of_other_types_are_an_error() {
    use safetensors::{Dtype, tensor::TensorView};
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
