//! Reading one file, safetensors or GGUF: the header once, then bytes by position.
//!
//! A GGUF file is told by its first four bytes, which as the length of a safetensors header would
//! be above the limit; the module [`gguf`](super::gguf) reads its header. A safetensors file is
//!
//! ```text
//! 8 bytes  header length n, little-endian, at most 100 MB and at most the rest of the file
//! n bytes  JSON: name -> { dtype, shape, data_offsets }, and `__metadata__`
//! rest     the tensors, back to back, to the last byte of the file
//! ```
//!
//! Why not a memory map. This crate forbids `unsafe`, and every map of a file is unsafe at heart:
//! crates that offer one behind a safe function (`mmap-guard`, `mmap-io`, ...) cannot keep another
//! process from cutting the file short, and then the reader dies by SIGBUS. Reads into a bounded
//! buffer serve the purpose of a map here (memory does not grow with the largest tensor), turn a
//! file that shrinks into an error, and keep the resident set small and easy to state.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use safetensors::Dtype;
use serde::Serialize;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::gguf::{self, Tensors};
use super::sniff;
use super::source::{ByteSource, Place, Reader};
use super::unique::{self, Unique};
use crate::error::{Error, Refusal};

/// The longest header that the format allows.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// The most dimensions of a tensor that are taken.
const MAX_RANK: usize = 64;

/// Type, shape and place of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TensorInfo {
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its first byte, counted from the first of all tensors, and the one past its end. A file may
    /// be longer than what a machine of 32 bits addresses; a tensor may not.
    pub data_offsets: (u64, u64),
}

/// A file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    /// Opened at the first read; [`close`](Self::close) lets it go.
    source: Arc<dyn ByteSource>,
    data_start: u64,
    tensors: Tensors,
    count: usize,
    metadata: BTreeMap<String, String>,
    gguf: Option<Box<gguf::Header>>,
}

impl TensorFile {
    /// Opens a file and checks its header: no tensor reaches outside the file, none overlap, and
    /// in safetensors they fill it. The file is closed again until something is read.
    ///
    /// # Errors
    /// A file that is missing, not a plain file, cut short, or neither safetensors nor GGUF.
    pub fn open(path: &Path) -> Result<Self, Error> {
        Self::open_at(&Place::System(None), path)
    }

    /// As [`open`](Self::open), in a place.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(super) fn open_at(place: &Place, path: &Path) -> Result<Self, Error> {
        let file = place.open(path).and_then(|source| {
            let file = Self::of(path, source)?;
            file.close();
            Ok(file)
        });
        file.map_err(|refusal| Error::checkpoint(path, refusal))
    }

    fn of(path: &Path, source: Arc<dyn ByteSource>) -> Result<Self, Refusal> {
        let (path, len) = (path.to_path_buf(), source.len());
        let mut first = [0; sniff::ENOUGH];
        let known = sniff::ENOUGH.min(usize::try_from(len).unwrap_or(usize::MAX));
        let first = &mut first[..known];
        Reader::new(&*source, 0).read_exact(first)?;
        if first.starts_with(gguf::MAGIC) {
            let (header, tensors, data_start) = gguf::read(Reader::new(&*source, 0), len)?;
            let (count, metadata, gguf) = (tensors.len(), BTreeMap::new(), Some(header.into()));
            return Ok(TensorFile { path, source, data_start, tensors, count, metadata, gguf });
        }
        let header = header(&*source, first, len);
        let (Header { tensors, metadata }, header_len) =
            header.map_err(|refusal| match sniff::known(first) {
                Some((what, what_to_do)) => Refusal::OtherKind { what, what_to_do },
                None => refusal,
            })?;
        let data_start = 8 + header_len;
        let end = data_start.checked_add(validate(&tensors)?);
        if end != Some(len) {
            return Err(Refusal::Length { len, described: end.unwrap_or(u64::MAX) });
        }
        let count = tensors.len();
        let tensors = tensors.into_iter().map(|(name, info)| (name, (info, None))).collect();
        Ok(TensorFile { path, source, data_start, tensors, count, metadata, gguf: None })
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.source.len()
    }

    /// Hands over the tensors by name, those of GGUF with their type there; they are not kept.
    pub fn take_tensors(&mut self) -> Tensors {
        std::mem::take(&mut self.tensors)
    }

    /// Number of tensors.
    pub fn count(&self) -> usize {
        self.count
    }

    /// The `__metadata__` of a safetensors header; GGUF has [pairs](Self::gguf).
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// The header of a GGUF file.
    pub fn gguf(&self) -> Option<&gguf::Header> {
        self.gguf.as_deref()
    }

    /// Lets go of the open file until the next read.
    pub fn close(&self) {
        self.source.close();
    }

    /// Fills `buffer` with the bytes of a tensor of this file from byte `offset` of it on.
    ///
    /// # Errors
    /// The system's; a range outside the tensor; a file that has changed since its header was read.
    pub fn read(&self, info: &TensorInfo, offset: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let len = byte_len(info);
        let read = match offset.checked_add(buffer.len()).filter(|&stop| stop <= len) {
            Some(_) => {
                let position = self.data_start + info.data_offsets.0 + offset as u64;
                self.source.read_exact_at(buffer, position)
            }
            None => {
                let end = offset.saturating_add(buffer.len());
                Err(Refusal::OutOfTensor { start: offset, end, len })
            }
        };
        read.map_err(|refusal| Error::checkpoint(&self.path, refusal))
    }

    /// Checks that the file at its path is still the one whose header was read, by its length and
    /// the time of its last change.
    ///
    /// # Errors
    /// One that is gone, or another.
    pub fn unchanged(&self) -> Result<(), Error> {
        self.source.unchanged().map_err(|refusal| Error::checkpoint(&self.path, refusal))
    }

    /// When the file was changed last, as far as the system tells.
    pub fn modified(&self) -> Option<SystemTime> {
        self.source.modified()
    }

    /// Hands all that is before the tensors to `take`, piece by piece.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn for_header(&self, mut take: impl FnMut(&[u8])) -> Result<(), Error> {
        let mut piece = vec![0; self.data_start.min(1 << 20) as usize];
        let mut position = 0;
        while position < self.data_start {
            let len = (self.data_start - position).min(piece.len() as u64);
            let piece = &mut piece[..len as usize];
            let read = self.source.read_exact_at(piece, position);
            read.map_err(|refusal| Error::checkpoint(&self.path, refusal))?;
            take(piece);
            position += len;
        }
        Ok(())
    }

    /// `len` bytes of a tensor of this file from byte `offset` of it on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn bytes(&self, info: &TensorInfo, offset: usize, len: usize) -> Result<Vec<u8>, Error> {
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(len).map_err(|_| Error::Memory { len })?;
        buffer.resize(len, 0);
        self.read(info, offset, &mut buffer)?;
        Ok(buffer)
    }
}

/// Bytes of a tensor.
pub fn byte_len(info: &TensorInfo) -> usize {
    // What was read is no longer than this machine addresses.
    usize::try_from(info.data_offsets.1 - info.data_offsets.0).unwrap_or(usize::MAX)
}

/// Reads the header of a file of `len` bytes, the `first` of which are known; the header's length.
fn header(source: &dyn ByteSource, first: &[u8], len: u64) -> Result<(Header, u64), Refusal> {
    let Some(word) = first.first_chunk() else { return Err(Refusal::TooShort { len }) };
    let announced = u64::from_le_bytes(*word);
    let most = MAX_HEADER.min(len - 8);
    if announced > most {
        return Err(Refusal::HeaderLen { announced, most });
    }
    let mut header = vec![0; announced as usize]; // at most 100 MB
    Reader::new(source, 8).read_exact(&mut header)?;
    let text = std::str::from_utf8(&header).map_err(Refusal::HeaderText)?;
    let header = serde_json::from_str(text).map_err(|e| Refusal::Header(e.to_string()))?;
    Ok((header, announced))
}

/// Checks that tensors follow each other without gaps from 0 on, and are as long as their types and
/// shapes say; the end of the last.
fn validate(tensors: &BTreeMap<String, TensorInfo>) -> Result<u64, Refusal> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, info) in in_order {
        let (name, (start, end)) = (|| name.clone(), info.data_offsets);
        if start != expected || end < start {
            return Err(Refusal::Offsets { name: name(), got: (start, end), expected });
        }
        let (dtype, shape) = (info.dtype, || info.shape.clone());
        // Counted in what this machine addresses, as whatever reads the tensor does.
        let elements = info.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let elements = elements.map(|n| n as u64);
        let Some(bits) = elements.and_then(|n| n.checked_mul(dtype.bitsize() as u64)) else {
            return Err(Refusal::Overflow { name: name(), dtype, shape: shape() });
        };
        let got = end - start;
        if bits.is_multiple_of(8).then_some(bits / 8) != Some(got) {
            return Err(Refusal::Size { name: name(), dtype, shape: shape(), bits, got });
        }
        too_large(name, got)?;
        expected = end;
    }
    Ok(expected)
}

/// Checks that this machine addresses the bytes of a tensor.
///
/// # Errors
/// [`Refusal::TooLarge`].
pub(super) fn too_large(name: impl FnOnce() -> String, bytes: u64) -> Result<(), Refusal> {
    match usize::try_from(bytes) {
        Ok(_) => Ok(()),
        Err(_) => Err(Refusal::TooLarge { name: name(), bytes, most: usize::MAX as u64 }),
    }
}

/// The JSON header.
#[derive(Debug, Default)]
struct Header {
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let (mut header, mut metadata) = (Header::default(), None);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        let given = map.next_value::<Option<Unique<String>>>()?;
                        if metadata.replace(given).is_some() {
                            return Err(A::Error::custom("`__metadata__` is there twice"));
                        }
                    } else {
                        let Entry { dtype, shape: Shape(shape), data_offsets } =
                            map.next_value()?;
                        let info = TensorInfo { dtype, shape, data_offsets };
                        unique::insert(&mut header.tensors, name, info)?;
                    }
                }
                header.metadata = metadata.flatten().map(|map| map.0).unwrap_or_default();
                Ok(header)
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

/// A tensor of the header.
#[derive(serde::Deserialize)]
struct Entry {
    dtype: Dtype,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// A shape of at most [`MAX_RANK`] dimensions.
struct Shape(Vec<usize>);

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dims;
        impl<'de> Visitor<'de> for Dims {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut dims: A) -> Result<Shape, A::Error> {
                let mut shape = vec![];
                while let Some(dim) = dims.next_element()? {
                    if shape.len() == MAX_RANK {
                        let error = format!("a tensor has more than {MAX_RANK} dimensions");
                        return Err(A::Error::custom(error));
                    }
                    shape.push(dim);
                }
                shape.shrink_to_fit();
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dims)
    }
}
