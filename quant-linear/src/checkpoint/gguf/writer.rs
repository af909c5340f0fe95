//! The header of a GGUF file to be written, and where each tensor goes.
//!
//! Everything follows from the pairs and from names, types and shapes, so the tensors can be
//! written in any order and piece by piece. Pairs and tensors keep the order in which they are
//! given (ggml asks that tensors lie in the order in which the header lists them); the header and
//! each tensor, the last one too, are followed by zeros up to the alignment. Those zeros are
//! nobody's to write: a file that is given its length first has them.

use std::collections::{BTreeMap, BTreeSet};

use super::reader::stored;
use super::value::{Value, put_string};
use super::{GgmlType, MAGIC, MAX_RANK, alignment};
use crate::error::{GgufError, Refusal};

/// The version that is written.
const VERSION: u32 = 3;

/// The longest tensor name that ggml loads.
const MAX_NAME: usize = 63;

/// A tensor to be written: name, type, shape `[.., rows, K]`.
pub type Planned = (String, GgmlType, Vec<usize>);

/// Where everything in a GGUF file goes.
#[derive(Debug)]
pub struct GgufArrangement {
    header: Vec<u8>,
    /// Start and length of each tensor, from the start of the data on.
    places: BTreeMap<String, (u64, u64)>,
    data_start: u64,
    /// Up to the padding behind the last tensor.
    data_len: u64,
}

impl GgufArrangement {
    /// Lays out `tensors` behind `pairs`, one of which may be `general.alignment`.
    ///
    /// # Errors
    /// What a reader would refuse: keys and names that are there twice, an alignment that is none,
    /// tensors of too many dimensions or of no whole blocks, sizes that overflow, long names.
    pub fn new(pairs: &[(String, Value)], tensors: &[Planned]) -> Result<Self, Refusal> {
        let alignment = u64::from(alignment(pairs)?);
        let mut header = MAGIC.to_vec();
        header.extend(VERSION.to_le_bytes());
        header.extend((tensors.len() as u64).to_le_bytes());
        header.extend((pairs.len() as u64).to_le_bytes());
        let mut keys = BTreeSet::new();
        for (key, value) in pairs {
            if !keys.insert(key) {
                return Err(GgufError::DuplicateKey(key.clone()).into());
            }
            put_string(&mut header, key.as_bytes());
            value.put(&mut header);
        }
        let (mut places, mut data_len) = (BTreeMap::new(), 0u64);
        for (name, ty, shape) in tensors {
            let shape: Vec<u64> = shape.iter().map(|&dim| dim as u64).collect();
            let len = check(name, *ty, &shape)?;
            put_string(&mut header, name.as_bytes());
            header.extend((shape.len() as u32).to_le_bytes());
            shape.iter().rev().for_each(|dim| header.extend(dim.to_le_bytes()));
            header.extend(ty.id().to_le_bytes());
            header.extend(data_len.to_le_bytes());
            if places.insert(name.clone(), (data_len, len)).is_some() {
                return Err(GgufError::DuplicateTensor(name.clone()).into());
            }
            let end = data_len.checked_add(len).and_then(|n| n.checked_next_multiple_of(alignment));
            // What is left of a u64 is more than enough for the header, which is in memory.
            let Some(end) = end.filter(|end| *end <= i64::MAX as u64) else {
                return Err(GgufError::Overflow { name: name.clone(), ty: *ty, shape }.into());
            };
            data_len = end;
        }
        let data_start = (header.len() as u64).next_multiple_of(alignment);
        Ok(GgufArrangement { header, places, data_start, data_len })
    }

    /// The first bytes of the file; zeros follow up to the data.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Length of the whole file.
    pub fn file_len(&self) -> u64 {
        self.data_start + self.data_len
    }

    /// Position in the file of a tensor's first byte; `None` for a name that has no place.
    pub fn position(&self, name: &str) -> Option<u64> {
        self.places.get(name).map(|(start, _)| self.data_start + start)
    }

    /// Bytes of all tensors.
    pub fn data_len(&self) -> u64 {
        self.places.values().map(|(_, len)| len).sum()
    }
}

/// Bytes of a tensor that a reader would take.
fn check(name: &str, ty: GgmlType, shape: &[u64]) -> Result<u64, GgufError> {
    if name.len() > MAX_NAME {
        return Err(GgufError::LongName { name: name.into(), most: MAX_NAME });
    }
    if shape.len() > MAX_RANK {
        return Err(GgufError::Rank { name: name.into(), got: shape.len() });
    }
    stored(name, ty, shape).map(|(_, bytes)| bytes)
}
