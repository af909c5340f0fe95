//! GGUF, the container of llama.cpp: reading its header, laying one out, and what its blocks are
//! worth.
//!
//! ```text
//! "GGUF", u32 version (2 or 3), u64 tensors, u64 pairs
//! pairs    string key, u32 kind, value       string = u64 length, bytes
//!                                            array  = u32 kind, u64 length, elements
//! tensors  string name, u32 rank, u64 dimensions (K FIRST), u32 type, u64 offset in the data
//! padding to general.alignment (32 unless said)
//! data     each tensor at a multiple of the alignment, what lies between is padding
//! ```
//!
//! All integers are little-endian. Shapes are reversed on the way in and out, so here they are
//! `[.., rows, K]` as everywhere else.
//!
//! | file | what it does |
//! |---|---|
//! | `types` | the types of tensors and their blocks |
//! | `value` | the values of pairs |
//! | `reader` | bytes to a header, nothing in it believed |
//! | `writer` | the header of a file to be written, and where each tensor goes |
//! | `split` | one model in several files |
//! | `dequantize` | blocks to f32 |
//!
//! Why not a crate: candle-core 0.11 refuses types that it does not compute with, MXFP4 (39) and
//! NVFP4 (40) among them; gguf-rs 0.1.8 does not know 40, takes memory by lengths that the file
//! claims, and keeps the pairs as JSON, without their types and order. The format is small, so it
//! is read here, and fuzzed (`conformance/fuzz/targets/gguf.rs`).

mod dequantize;
mod reader;
pub(super) mod split;
#[cfg(test)]
mod tests;
mod types;
mod value;
mod writer;

pub use dequantize::dequantize;
pub(super) use reader::{Tensors, read};
pub use types::GgmlType;
pub use value::{Array, Kind, Value};
pub use writer::{GgufArrangement, Planned};

pub use crate::error::GgufError;

/// What a GGUF file starts with.
pub(super) const MAGIC: &[u8] = b"GGUF";

/// The key of the alignment, and the alignment of a file without it.
const ALIGNMENT: (&str, u32) = ("general.alignment", 32);

/// The most dimensions of a tensor.
const MAX_RANK: usize = 4;

/// What a GGUF file says before its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    version: u32,
    alignment: u32,
    pairs: Vec<(String, Value)>,
}

impl Header {
    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// What the places of tensors are multiples of.
    pub fn alignment(&self) -> u32 {
        self.alignment
    }

    /// Keys and values in the order of the file.
    pub fn pairs(&self) -> &[(String, Value)] {
        &self.pairs
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.iter().find(|(found, _)| found == key).map(|(_, value)| value)
    }
}

/// The alignment that pairs ask for.
///
/// # Errors
/// One that is no U32 or no power of two.
fn alignment(pairs: &[(String, Value)]) -> Result<u32, GgufError> {
    let (key, default) = ALIGNMENT;
    match pairs.iter().find(|(found, _)| found == key) {
        None => Ok(default),
        Some((_, Value::U32(given))) if given.is_power_of_two() => Ok(*given),
        Some((_, other)) => Err(GgufError::Alignment(other.to_string())),
    }
}
