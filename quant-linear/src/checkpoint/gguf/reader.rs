//! The header of a GGUF file. Nothing in it is believed: each length is held against what is left
//! of the file before memory is taken for it, so a header takes about as much memory as it has
//! bytes, and each tensor must be whole blocks inside the file that no other tensor shares.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};

use safetensors::Dtype;

use super::super::reader::{TensorInfo, too_large};
use super::value::{Array, Kind, Value, put_string};
use super::{GgmlType, Header, MAGIC, MAX_RANK, alignment};
use crate::error::{GgufError, Refusal};

/// How deep arrays of arrays are taken; ggml takes no arrays of arrays.
const MAX_DEPTH: usize = 8;

/// Bytes that are read at a time: a source may be slow to answer.
const PIECE: usize = 1 << 16;

/// Tensors by name. A type of blocks is [`Dtype::U8`] of the shape `[.., rows, bytes of a row]`.
pub(in crate::checkpoint) type Tensors = BTreeMap<String, (TensorInfo, Option<GgmlType>)>;

/// Reads the header of a file of `len` bytes from its first on: the pairs, the tensors, and where
/// the data starts.
///
/// # Errors
/// What cannot be read, and what is not GGUF.
pub(in crate::checkpoint) fn read(
    source: impl Read,
    len: u64,
) -> Result<(Header, Tensors, u64), Refusal> {
    let mut source = Source { source: BufReader::with_capacity(PIECE, source), at: 0, len };
    source.array::<{ MAGIC.len() }>("magic")?;
    let version = source.u32("version")?;
    match version {
        2 | 3 => {}
        // Versions are small, so the other byte order shows.
        _ if version & 0xFFFF == 0 && version != 0 => {
            return Err(GgufError::BigEndian(version.swap_bytes()).into());
        }
        _ => return Err(GgufError::Version(version).into()),
    }
    let (tensors, pairs) = (source.u64("number of tensors")?, source.u64("number of pairs")?);
    let pairs = source.pairs(pairs)?;
    let header = Header { version, alignment: alignment(&pairs)?, pairs };
    let tensors = source.tensors(tensors)?;
    let data_start = source.at.checked_next_multiple_of(header.alignment.into());
    let data_start = data_start.unwrap_or(u64::MAX);
    check_places(&tensors, header.alignment.into(), len.saturating_sub(data_start))?;
    Ok((header, tensors, data_start))
}

/// A file, how far it is read, and how long it is.
struct Source<R> {
    source: BufReader<R>,
    at: u64,
    len: u64,
}

impl<R: Read> Source<R> {
    /// Checks that `count` things of at least `each` bytes are left; their bytes.
    fn room(&self, what: &'static str, count: u64, each: usize) -> Result<usize, GgufError> {
        let (left, need) = (self.len.saturating_sub(self.at), count.checked_mul(each as u64));
        match need.filter(|need| *need <= left).and_then(|need| usize::try_from(need).ok()) {
            Some(need) => Ok(need),
            None => {
                let need = need.unwrap_or(u64::MAX);
                Err(GgufError::Cut { what, at: self.at, need, left })
            }
        }
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Refusal> {
        self.room(what, 1, N)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        self.at += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Refusal> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Refusal> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Appends `count` things of `each` bytes.
    fn append(
        &mut self,
        out: &mut Vec<u8>,
        what: &'static str,
        count: u64,
        each: usize,
    ) -> Result<(), Refusal> {
        let (need, start) = (self.room(what, count, each)?, out.len());
        // As long as the file at most, which may be more than there is memory for.
        out.try_reserve_exact(need).map_err(|_| Refusal::NoMemory { what, bytes: need })?;
        out.resize(start + need, 0);
        self.source.read_exact(&mut out[start..])?;
        self.at += need as u64;
        Ok(())
    }

    /// A length and as many bytes.
    fn string(&mut self, what: &'static str) -> Result<Vec<u8>, Refusal> {
        let (len, mut text) = (self.u64(what)?, vec![]);
        self.append(&mut text, what, len, 1)?;
        Ok(text)
    }

    fn text(&mut self, what: &'static str) -> Result<String, Refusal> {
        let at = self.at;
        String::from_utf8(self.string(what)?).map_err(|_| GgufError::Text { what, at }.into())
    }

    fn pairs(&mut self, count: u64) -> Result<Vec<(String, Value)>, Refusal> {
        // An empty key, a kind and a byte.
        self.room("list of pairs", count, 8 + 4 + 1)?;
        let mut pairs = vec![];
        for _ in 0..count {
            let key = self.text("key")?;
            let kind = self.kind(&key)?;
            let value = self.value(&key, kind)?;
            pairs.push((key, value));
        }
        let mut keys = BTreeSet::new();
        match pairs.iter().find(|(key, _)| !keys.insert(key)) {
            Some((key, _)) => Err(GgufError::DuplicateKey(key.clone()).into()),
            None => Ok(pairs),
        }
    }

    fn kind(&mut self, key: &str) -> Result<Kind, Refusal> {
        let id = self.u32("kind of a value")?;
        Kind::from_id(id).ok_or_else(|| GgufError::ValueType { key: key.into(), id }.into())
    }

    fn value(&mut self, key: &str, kind: Kind) -> Result<Value, Refusal> {
        const WHAT: &str = "value";
        Ok(match kind {
            Kind::U8 => Value::U8(u8::from_le_bytes(self.array(WHAT)?)),
            Kind::I8 => Value::I8(i8::from_le_bytes(self.array(WHAT)?)),
            Kind::U16 => Value::U16(u16::from_le_bytes(self.array(WHAT)?)),
            Kind::I16 => Value::I16(i16::from_le_bytes(self.array(WHAT)?)),
            Kind::U32 => Value::U32(self.u32(WHAT)?),
            Kind::I32 => Value::I32(i32::from_le_bytes(self.array(WHAT)?)),
            Kind::F32 => Value::F32(f32::from_le_bytes(self.array(WHAT)?)),
            Kind::Bool => {
                let [byte] = self.array(WHAT)?;
                check_bools(key, &[byte])?;
                Value::Bool(byte == 1)
            }
            Kind::String => Value::String(self.string("string")?),
            Kind::Array => Value::Array(self.elements(key, 1)?),
            Kind::U64 => Value::U64(self.u64(WHAT)?),
            Kind::I64 => Value::I64(i64::from_le_bytes(self.array(WHAT)?)),
            Kind::F64 => Value::F64(f64::from_le_bytes(self.array(WHAT)?)),
        })
    }

    /// An array, `depth` deep in arrays.
    fn elements(&mut self, key: &str, depth: usize) -> Result<Array, Refusal> {
        if depth > MAX_DEPTH {
            return Err(GgufError::Depth { key: key.into(), most: MAX_DEPTH }.into());
        }
        let kind = self.kind(key)?;
        let len = self.u64("length of an array")?;
        let mut bytes = vec![];
        match kind.size() {
            Some(size) => self.append(&mut bytes, "array", len, size)?,
            None if kind == Kind::String => {
                self.room("array of strings", len, 8)?;
                for _ in 0..len {
                    put_string(&mut bytes, &self.string("string")?);
                }
            }
            None => {
                self.room("array of arrays", len, 4 + 8)?;
                for _ in 0..len {
                    self.elements(key, depth + 1)?.put(&mut bytes);
                }
            }
        }
        if kind == Kind::Bool {
            check_bools(key, &bytes)?;
        }
        Ok(Array { kind, len, bytes })
    }

    fn tensors(&mut self, count: u64) -> Result<Tensors, Refusal> {
        // An empty name, rank 0, a type and an offset.
        self.room("list of tensors", count, 8 + 4 + 4 + 8)?;
        let mut tensors = Tensors::new();
        for _ in 0..count {
            let name = self.text("name of a tensor")?;
            let rank = self.u32("rank of a tensor")? as usize;
            if rank > MAX_RANK {
                return Err(GgufError::Rank { name, got: rank }.into());
            }
            let mut shape = [0; MAX_RANK];
            for dim in shape[..rank].iter_mut().rev() {
                *dim = self.u64("dimension of a tensor")?;
            }
            let id = self.u32("type of a tensor")?;
            let Some(ty) = GgmlType::from_id(id) else {
                return Err(GgufError::Type { name, id }.into());
            };
            let (shape, bytes) = stored(&name, ty, &shape[..rank])?;
            too_large(|| name.clone(), bytes)?;
            let start = self.u64("offset of a tensor")?;
            let data_offsets = (start, start.saturating_add(bytes));
            let info = TensorInfo { dtype: ty.dtype().unwrap_or(Dtype::U8), shape, data_offsets };
            match tensors.entry(name) {
                Entry::Vacant(place) => drop(place.insert((info, Some(ty)))),
                Entry::Occupied(taken) => {
                    return Err(GgufError::DuplicateTensor(taken.key().clone()).into());
                }
            }
        }
        Ok(tensors)
    }
}

fn check_bools(key: &str, bytes: &[u8]) -> Result<(), GgufError> {
    match bytes.iter().find(|byte| **byte > 1) {
        Some(&byte) => Err(GgufError::Bool { key: key.into(), byte }),
        None => Ok(()),
    }
}

/// Checks that each tensor is inside `data_len` bytes, aligned, and alone there.
fn check_places(tensors: &Tensors, alignment: u64, data_len: u64) -> Result<(), GgufError> {
    let padded = data_len.checked_next_multiple_of(alignment).unwrap_or(data_len);
    let mut in_order = vec![];
    for (name, (info, _)) in tensors {
        let (start, end) = info.data_offsets;
        // A tensor without bytes may be behind the padding, which may be missing.
        let last = if start == end { padded } else { data_len };
        if end > last {
            return Err(GgufError::Outside { name: name.clone(), end, len: data_len });
        }
        let offset = start;
        if !offset.is_multiple_of(alignment) {
            return Err(GgufError::Misaligned { name: name.clone(), offset, alignment });
        }
        if start < end {
            in_order.push((info.data_offsets, name));
        }
    }
    in_order.sort_unstable();
    match in_order.windows(2).find(|two| two[1].0.0 < two[0].0.1) {
        Some(two) => Err(GgufError::Overlap(two[0].1.clone(), two[1].1.clone())),
        None => Ok(()),
    }
}

/// The shape of a tensor as it is stored, the last dimension in bytes for types of blocks, and its
/// bytes.
///
/// # Errors
/// Rows that are no whole blocks; sizes that overflow.
pub(super) fn stored(
    name: &str,
    ty: GgmlType,
    shape: &[u64],
) -> Result<(Vec<usize>, u64), GgufError> {
    // ggml's elements are counted in i64, here in what this machine addresses; a scalar is a row of
    // one element.
    let overflow = || GgufError::Overflow { name: name.into(), ty, shape: shape.to_vec() };
    let elements = shape.iter().try_fold(1i64, |n, &dim| n.checked_mul(dim.try_into().ok()?));
    let addressed = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim.try_into().ok()?));
    elements.zip(addressed).ok_or_else(overflow)?;
    let (block, k) = (ty.block_len() as u64, shape.last().copied().unwrap_or(1));
    if !k.is_multiple_of(block) {
        return Err(GgufError::Blocks { name: name.into(), ty, k });
    }
    let mut stored: Vec<usize> = (shape.iter().map(|&dim| dim.try_into().ok()))
        .collect::<Option<_>>()
        .ok_or_else(overflow)?;
    let row = (k / block).checked_mul(ty.block_bytes() as u64).ok_or_else(overflow)?;
    let rows = stored.split_last().map_or(&[][..], |(_, rows)| rows);
    let bytes = rows.iter().try_fold(row, |n, &dim| n.checked_mul(dim as u64));
    let bytes = bytes.ok_or_else(overflow)?;
    let row = usize::try_from(row).map_err(|_| overflow())?;
    if block > 1 {
        stored.last_mut().into_iter().for_each(|last| *last = row);
    }
    Ok((stored, bytes))
}
