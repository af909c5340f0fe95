//! A manifest, a zero byte and a safetensors file, as golden vectors or as exported ones: an error,
//! or a report whose counts make sense.
//!
//! File name and length, which the manifest of golden vectors repeats, are set right, or no
//! mutation would ever get past them.

#![no_main]

use fp4_conformance::exchange::{answer, is_exchange, verify};
use fp4_conformance::vectors::{VectorFile, check_file};
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|data: &[u8]| {
    let cut = data.iter().position(|&byte| byte == 0).unwrap_or(data.len());
    let (json, bytes) = (&data[..cut], data.get(cut + 1..).unwrap_or(&[]));
    let backend = Backend::new(Reference);
    match serde_json::from_slice::<Value>(json) {
        Ok(Value::Object(mut manifest)) if !manifest.contains_key("schema") => {
            let name = manifest.get("name").and_then(Value::as_str).unwrap_or("d").to_owned();
            manifest.insert("name".into(), name.clone().into());
            manifest.insert("bytes".into(), bytes.len().into());
            let json = Value::Object(manifest).to_string();
            golden(&name, json.as_bytes(), bytes, &backend);
        }
        Ok(Value::Object(mut manifest)) => {
            manifest.insert("name".into(), "case".into());
            exported(manifest, bytes, &backend);
        }
        _ => golden("d_swizzle", json, bytes, &backend),
    }
});

fn golden(name: &str, json: &[u8], bytes: &[u8], backend: &Backend) {
    let result = VectorFile::parse(name, json, bytes).and_then(|file| check_file(&file, backend));
    match result {
        Ok(report) => {
            let counts = report.counts;
            assert!(counts.differ <= counts.values && counts.cases <= counts.values);
            assert!(counts.values > 0 || !report.skipped.is_empty());
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn exported(manifest: serde_json::Map<String, Value>, bytes: &[u8], backend: &Backend) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (vectors, answers) = (folder.path().join("vectors"), folder.path().join("answers"));
    std::fs::create_dir(&vectors).expect("a temporary folder can be written");
    let given = manifest.get("cases").and_then(Value::as_object).map_or(0, |cases| cases.len());
    let json = Value::Object(manifest).to_string();
    for (name, data) in [("case.json", json.as_bytes()), ("case.safetensors", bytes)] {
        std::fs::write(vectors.join(name), data).expect("a temporary folder can be written");
    }
    if !is_exchange(&vectors) {
        return;
    }
    let answered = answer(&vectors, &answers, backend);
    // Nothing is written but in the folder of answers.
    let entries = |at| std::fs::read_dir(at).map_or(0, Iterator::count);
    assert_eq!(entries(folder.path()), 1 + usize::from(answers.exists()));
    assert_eq!(entries(&vectors), 2);
    let Ok([cases, _]) = answered else { return };
    assert!(cases <= given);
    if let Ok(found) = verify(&vectors, &answers) {
        let counts = found.counts;
        assert!(counts.differ <= counts.values && counts.cases <= cases as u64);
        assert_eq!(counts.cases + found.unanswered(), given as u64);
    }
}
