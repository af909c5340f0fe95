//! The header of a safetensors file to be written, and where each tensor goes.
//!
//! Everything follows from names, types and shapes, so the tensors can be written in any order and
//! piece by piece. Tensors are sorted by descending size of their type and then by name, as the
//! safetensors crate does, so every tensor is aligned to its element; the header is padded with
//! spaces to a multiple of 8. The same input gives the same bytes: unlike the crate's own writer,
//! whose `__metadata__` is a hash map, this one sorts the metadata too.

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde::ser::{Serialize, SerializeMap, Serializer};

use super::reader::{MAX_HEADER, TensorInfo, byte_len};
use crate::error::Refusal;

/// A tensor to be written: name, type, shape.
pub type Planned = (String, Dtype, Vec<usize>);

/// Where everything in a file goes.
#[derive(Debug)]
pub struct Arrangement {
    header: Vec<u8>,
    tensors: BTreeMap<String, TensorInfo>,
    data_len: u64,
}

impl Arrangement {
    /// Lays out `tensors`.
    ///
    /// # Errors
    /// Two of one name, shapes whose bytes do not fit the machine's integers, or a header past 100
    /// MB.
    pub fn new(
        mut tensors: Vec<Planned>,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Self, Refusal> {
        tensors.sort_by(|(a_name, a, _), (b_name, b, _)| b.cmp(a).then_with(|| a_name.cmp(b_name)));
        let mut names: Vec<_> = tensors.iter().map(|(name, ..)| name).collect();
        names.sort();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(Refusal::TwoOfOneName { name: pair[0].clone() });
        }
        let (mut data_len, mut placed) = (0u64, Vec::with_capacity(tensors.len()));
        for (name, dtype, shape) in tensors {
            let bytes = tensor_bytes(dtype, &shape);
            let Some(end) = bytes.and_then(|bytes| data_len.checked_add(bytes as u64)) else {
                return Err(Refusal::Overflow { name, dtype, shape });
            };
            placed.push((name, TensorInfo { dtype, shape, data_offsets: (data_len, end) }));
            data_len = end;
        }
        let json = serde_json::to_vec(&Header { metadata, tensors: &placed });
        let json = json.map_err(|e| Refusal::Header(e.to_string()))?;
        let padded = json.len().next_multiple_of(8);
        Self::check_header(padded as u64)?;
        let mut header = (padded as u64).to_le_bytes().to_vec();
        header.extend(json);
        header.resize(8 + padded, b' ');
        Ok(Arrangement { header, tensors: placed.into_iter().collect(), data_len })
    }

    /// Bytes that tensors take in a header at least.
    pub fn header_len(tensors: &[Planned]) -> u64 {
        let least = r#""":{"dtype":"U8","shape":[],"data_offsets":[0,0]},"#.len();
        tensors.iter().map(|(name, ..)| (name.len() + least) as u64).sum()
    }

    /// Checks the length of a header.
    ///
    /// # Errors
    /// One past 100 MB.
    pub fn check_header(len: u64) -> Result<(), Refusal> {
        let most = MAX_HEADER;
        if len <= most { Ok(()) } else { Err(Refusal::HeaderTooLong { len, most }) }
    }

    /// The first bytes of the file: header length and header.
    pub fn header(&self) -> &[u8] {
        &self.header
    }

    /// Length of the whole file.
    pub fn file_len(&self) -> u64 {
        self.header.len() as u64 + self.data_len
    }

    /// The tensors by name; their offsets count from the end of the header.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// Position in the file of a tensor's first byte; `None` for a name that has no place.
    pub fn position(&self, name: &str) -> Option<u64> {
        let info = self.tensors.get(name)?;
        Some(self.header.len() as u64 + info.data_offsets.0)
    }

    /// Bytes of all tensors.
    pub fn data_len(&self) -> u64 {
        self.tensors.values().map(|info| byte_len(info) as u64).sum()
    }
}

/// Bytes of a tensor; `None` if they do not fit, or end inside a byte.
fn tensor_bytes(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    // Elements first, as the safetensors crate counts them: what it reads can be copied.
    let elements = shape.iter().try_fold(1usize, |elements, &dim| elements.checked_mul(dim))?;
    let bits = elements.checked_mul(dtype.bitsize())?;
    bits.is_multiple_of(8).then_some(bits / 8)
}

struct Header<'a> {
    metadata: &'a BTreeMap<String, String>,
    tensors: &'a [(String, TensorInfo)],
}

impl Serialize for Header<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if !self.metadata.is_empty() {
            map.serialize_entry("__metadata__", self.metadata)?;
        }
        for (name, info) in self.tensors {
            map.serialize_entry(name, info)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::SafeTensors;

    #[test]
    fn the_layout_is_what_the_crate_reads_and_every_tensor_is_aligned() {
        let plan = vec![
            ("a.e2m1".to_string(), Dtype::U8, vec![3, 5]),
            ("a.scalar".to_string(), Dtype::F32, vec![]),
            ("b".to_string(), Dtype::I64, vec![3]),
            ("c".to_string(), Dtype::BF16, vec![7]),
            ("a.scale_quant".to_string(), Dtype::F8_E4M3, vec![0, 5]),
            ("d".to_string(), Dtype::F4, vec![6]),
        ];
        let metadata: BTreeMap<_, _> =
            [("z", "1"), ("a", "2")].map(|(k, v)| (k.to_string(), v.to_string())).into();
        let layout = Arrangement::new(plan, &metadata).unwrap();
        let mut file = layout.header().to_vec();
        file.resize(layout.file_len() as usize, 0);
        let read = SafeTensors::deserialize(&file).unwrap();
        assert_eq!(read.len(), 6);
        assert_eq!(layout.header().len() % 8, 0);
        for (name, info) in layout.tensors() {
            assert_eq!(read.tensor(name).unwrap().shape(), info.shape);
            let size = info.dtype.bitsize().div_ceil(8);
            assert_eq!(layout.position(name).unwrap() % size as u64, 0, "{name}");
        }
        let text = String::from_utf8_lossy(layout.header()).into_owned();
        assert!(text.contains(r#""__metadata__":{"a":"2","z":"1"}"#), "{text}");
    }

    #[test]
    fn shapes_that_overflow_are_errors() {
        let plan = vec![("a".to_string(), Dtype::F32, vec![usize::MAX, 2])];
        assert!(Arrangement::new(plan, &BTreeMap::new()).is_err());
    }
}
