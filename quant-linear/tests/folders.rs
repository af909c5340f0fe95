//! Folders as diffusers and variants have them.

use std::collections::HashMap;
use std::path::Path;

use quant_linear::checkpoint::Checkpoint;
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A file with one tensor of this name.
fn shard(folder: &Path, file: &str, tensor: &str) {
    let view = TensorView::new(Dtype::U8, vec![1], &[7]).unwrap();
    let bytes = safetensors::serialize([(tensor, view)], None::<HashMap<_, _>>).unwrap();
    std::fs::write(folder.join(file), bytes).unwrap();
}

/// An index with one shard and its tensor, all named after it.
fn index(folder: &Path, file: &str) {
    let name = format!("of-{file}.safetensors");
    shard(folder, &name, file);
    let text = serde_json::json!({ "weight_map": { file: name } }).to_string();
    std::fs::write(folder.join(file), text).unwrap();
}

/// The one tensor of a folder with these files.
fn opened(files: &[&str]) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        match file.ends_with(".json") {
            true => index(folder.path(), file),
            false => shard(folder.path(), file, file),
        }
    }
    let checkpoint = Checkpoint::open(folder.path()).map_err(|error| error.to_string())?;
    assert_eq!(checkpoint.tensors().len(), 1);
    let tensor = checkpoint.tensors().keys().next().unwrap().clone();
    // A folder of one shard would open without its index too.
    let index = checkpoint.index().map(|index| index.name().to_string());
    assert_eq!(index, Some(tensor.clone()).filter(|name| name.ends_with(".json")));
    assert!(checkpoint.own_names().contains(index.as_ref().unwrap_or(&tensor).as_str()));
    Ok(tensor)
}

const USUAL: &str = "model.safetensors.index.json";
const DIFFUSERS: &str = "diffusion_pytorch_model.safetensors.index.json";
const VARIANTS: [&str; 3] = [
    "model.fp16.safetensors.index.json",
    "diffusion_pytorch_model.safetensors.fp16.index.json",
    "model.safetensors.index.fp16.json",
];

#[test]
fn an_index_of_any_name_opens_if_it_is_alone() {
    for name in [USUAL, DIFFUSERS].into_iter().chain(VARIANTS) {
        assert_eq!(opened(&[name]).as_deref(), Ok(name));
    }
}

#[test]
fn the_model_of_the_usual_name_comes_before_its_variants() {
    assert_eq!(opened(&[USUAL, VARIANTS[0]]).as_deref(), Ok(USUAL));
    assert_eq!(opened(&[DIFFUSERS, VARIANTS[1]]).as_deref(), Ok(DIFFUSERS));
    for single in ["model.safetensors", "diffusion_pytorch_model.safetensors"] {
        assert_eq!(opened(&[single, "other.safetensors"]).as_deref(), Ok(single));
        assert_eq!(opened(&[single, VARIANTS[0]]).as_deref(), Ok(single));
    }
}

#[test]
fn two_indexes_of_which_neither_is_meant_are_an_error_that_names_both() {
    for pair in [[USUAL, DIFFUSERS], [VARIANTS[0], VARIANTS[2]]] {
        let error = opened(&pair).unwrap_err();
        assert!(pair.iter().all(|name| error.contains(name)), "{error}");
    }
}
