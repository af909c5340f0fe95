//! Any bytes as a checkpoint with a config: layers of whatever layout are found or refused, read,
//! converted, dequantized and verified, and nothing panics, hangs or takes more memory than the
//! file is worth.
//!
//! ```text
//! 1 byte   the layout that is forced, or none
//! 1 byte   the layout that is written
//! 2 bytes  length of the config, little-endian
//! config   config.json
//! rest     the file
//! ```

#![no_main]

use libfuzzer_sys::fuzz_target;
use quant_linear::LoadOptions;
use quant_linear::atomic::Kind;
use quant_linear::checkpoint::tiles::tiles;
use quant_linear::checkpoint::{Checkpoint, Listing};
use quant_linear::layout::{ALL, Layers};
use quant_linear::model::stream::{Memory, Output};
use quant_linear::model::{convert, verify};

/// Bytes of an output up to which it is written.
const WRITTEN: u64 = 1 << 20;

fuzz_target!(|data: &[u8]| {
    let [forced, target, low, high, rest @ ..] = data else { return };
    let len = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
    let (config, file) = rest.split_at(len);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("model.safetensors");
    std::fs::write(&path, file).expect("a temporary file");
    std::fs::write(folder.path().join("config.json"), config).expect("a temporary file");
    let Ok(checkpoint) = Checkpoint::open(&path) else { return };
    let layout = ALL.get(usize::from(*forced)).copied();
    let options = LoadOptions { layout, ..LoadOptions::default() };
    let layers = match Layers::find(&checkpoint, &options) {
        Ok(layers) => layers,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    for layer in layers.good.values() {
        let decoder = layer.decoder();
        for tile in tiles(layer.shape.rows(), layer.shape.k(), 4, 1 << 12) {
            let packed = layer.packed(&checkpoint, &tile).expect("inside the file");
            assert_eq!(decoder.values(&packed, &tile).len(), tile.len());
        }
        layer.parts(&checkpoint, 0, &options).map(drop).unwrap_or_default();
    }
    verify::checkpoint(&checkpoint, &options, &mut |_| {}).map(drop).unwrap_or_default();
    let target = ALL[usize::from(*target) % ALL.len()];
    let how = convert::Options { target, format: None, exact: false, changed: true };
    let plan = match convert::Plan::new(&checkpoint, &layers, how, convert::Shape::Folder) {
        Ok(plan) if plan.file_len() <= WRITTEN => plan,
        Ok(_) => return,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let out = folder.path().join("out");
    let to =
        Output { path: &out, kind: Kind::Folder, replace: false, resume: false, settings: vec![] };
    let written = convert::write(
        &checkpoint,
        &plan,
        &Listing::default(),
        &to,
        Memory::default(),
        &mut |_| {},
    );
    if written.is_ok() {
        let gguf = out.join("model.gguf");
        let there = if gguf.exists() { &gguf } else { &out };
        Checkpoint::open(there).expect("what was written is read");
    }
});
