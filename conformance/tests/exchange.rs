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
