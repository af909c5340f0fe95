//! How weights were stored that other software stores either way: recorded in the header of what
//! was made of them, as experts and GPT-2's layers that are square look the same both ways.
//!
//! ```text
//! "exact_fp4.orientation": {"model.layers.0.mlp.experts.down_proj": "in-out", ...}
//! ```
//!
//! In a quantized file it says how the dense weight of that name lay in the file that was
//! quantized; in a dequantized one, how it lies there, whatever config.json says of such models.
//! Names of tensors whose experts a conversion took apart are there too, where they are not the
//! usual ones. Every file of a model lists its own weights.

use std::collections::BTreeMap;

use crate::checkpoint::{Checkpoint, Refusal};
use crate::error::Error;
use crate::model::select::Orientation;

/// The key in a header.
const KEY: &str = "exact_fp4.orientation";

/// Puts these weights' orientations into the metadata of a header, and no others.
pub(super) fn record<'w>(
    metadata: &mut BTreeMap<String, String>,
    weights: impl Iterator<Item = (&'w str, Orientation)>,
) {
    metadata.remove(KEY);
    let weights: BTreeMap<_, _> = weights.collect();
    if !weights.is_empty() {
        // Names and two words are JSON.
        metadata.insert(KEY.into(), serde_json::to_string(&weights).unwrap_or_default());
    }
}

/// What the headers of a checkpoint record.
///
/// # Errors
/// A record that cannot be read.
pub(super) fn recorded(checkpoint: &Checkpoint) -> Result<BTreeMap<String, Orientation>, Error> {
    let mut all = BTreeMap::new();
    for (_, file) in checkpoint.files() {
        let record = of(file.metadata()).map_err(|e| {
            Error::checkpoint(checkpoint.path(), Refusal::Orientation(e.to_string()))
        })?;
        all.extend(record);
    }
    Ok(all)
}

/// What one header records.
///
/// # Errors
/// A record that cannot be read.
pub(super) fn of(
    metadata: &BTreeMap<String, String>,
) -> Result<BTreeMap<String, Orientation>, serde_json::Error> {
    metadata.get(KEY).map_or(Ok(BTreeMap::new()), |record| serde_json::from_str(record))
}
