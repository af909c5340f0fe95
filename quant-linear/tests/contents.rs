//! What the headers say of a checkpoint is what reading all of it says: files, tensors, layers.

use std::path::Path;

use quant_linear::LoadOptions;
use quant_linear::checkpoint::Checkpoint;
use quant_linear::model::inspect::{Contents, Inspection};
use serde_json::{Value, to_value};

/// The part of each entry of a list that the other document has too.
fn parts(document: &Value, list: &str, keys: &[&str]) -> Vec<Vec<Value>> {
    let entries = document[list].as_array().unwrap().iter();
    entries.map(|entry| keys.iter().map(|key| entry[*key].clone()).collect()).collect()
}

#[test]
fn contents_are_those_of_an_inspection() {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors");
    let options = LoadOptions::default();
    let (mut layers, mut dense) = (0, 0);
    for name in ["f_ct_nvfp4.safetensors", "f_torchao.safetensors", "h_gguf_mxfp4.gguf"] {
        let checkpoint = Checkpoint::open(&vectors.join(name)).unwrap();
        let contents = to_value(Contents::new(&checkpoint, &options).unwrap().document()).unwrap();
        let inspection = Inspection::new(&checkpoint, &options, &mut |_| {}).unwrap();
        let inspected = to_value(inspection.document()).unwrap();
        for (list, keys) in [
            ("files", &["name", "bytes"][..]),
            ("tensors", &["name", "dtype", "shape", "bytes"]),
            ("layers", &["name", "layout", "format"]),
        ] {
            assert_eq!(
                parts(&contents, list, keys),
                parts(&inspected, list, keys),
                "{name} {list}"
            );
        }
        layers += parts(&contents, "layers", &["name"]).len();
        for tensor in contents["tensors"].as_array().unwrap() {
            let is = tensor["dense"] == true;
            dense += usize::from(is);
            assert!(!is || tensor["shape"].as_array().unwrap().len() > 1, "{tensor}");
        }
    }
    assert!(layers == 23 && dense > 2, "{layers} layers, {dense} dense tensors");
}
