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
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::gguf::{self, Tensors};
use super::plain;
use super::sniff;
use super::unique::{self, Unique};
use crate::error::{Error, Refusal};
use crate::positioned;

/// The longest header that the format allows.
pub(super) const MAX_HEADER: u64 = 100_000_000;

/// The most dimensions of a tensor that are taken.
const MAX_RANK: usize = 64;

/// A file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    path: PathBuf,
    /// Opened at the first read; [`close`](Self::close) lets it go. Read by position, outside the
    /// lock: threads read at the same time.
    open: Mutex<Option<Arc<File>>>,
    len: u64,
    modified: Option<SystemTime>,
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
        Self::open_inner(path).map_err(|refusal| Error::checkpoint(path, refusal))
    }

    fn open_inner(path: &Path) -> Result<Self, Refusal> {
        let (mut file, len) = plain::open(path)?;
        let modified = modified(&file);
        let mut first = [0; sniff::ENOUGH];
        let known = sniff::ENOUGH.min(usize::try_from(len).unwrap_or(usize::MAX));
        let first = &mut first[..known];
        file.read_exact(first)?;
        let (path, open) = (path.to_path_buf(), Mutex::default());
        if first.starts_with(gguf::MAGIC) {
            file.rewind()?;
            let (header, tensors, data_start) = gguf::read(file, len)?;
            let (count, metadata, gguf) = (tensors.len(), BTreeMap::new(), Some(header.into()));
            return Ok(TensorFile {
                path,
                open,
                len,
                modified,
                data_start,
                tensors,
                count,
                metadata,
                gguf,
            });
        }
        let header = header(&mut file, first, len);
        let (Header { tensors, metadata }, header_len) =
            header.map_err(|refusal| match sniff::known(first) {
                Some((what, what_to_do)) => Refusal::OtherKind { what, what_to_do },
                None => refusal,
            })?;
        let data_start = 8 + header_len;
        let end = data_start.checked_add(validate(&tensors)? as u64);
        if end != Some(len) {
            return Err(Refusal::Length { len, described: end.unwrap_or(u64::MAX) });
        }
        let count = tensors.len();
        let tensors = tensors.into_iter().map(|(name, info)| (name, (info, None))).collect();
        let gguf = None;
        Ok(TensorFile { path, open, len, modified, data_start, tensors, count, metadata, gguf })
    }

    /// Length of the file in bytes.
    pub fn file_len(&self) -> u64 {
        self.len
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
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Fills `buffer` with the bytes of a tensor of this file from byte `offset` of it on.
    ///
    /// # Errors
    /// The system's; a range outside the tensor; a file that has changed since its header was read.
    pub fn read(&self, info: &TensorInfo, offset: usize, buffer: &mut [u8]) -> Result<(), Error> {
        let (start, end) = info.data_offsets;
        let len = end - start;
        let read = match offset.checked_add(buffer.len()).filter(|&stop| stop <= len) {
            Some(_) => self.read_at(self.data_start + (start + offset) as u64, buffer),
            None => {
                let end = offset.saturating_add(buffer.len());
                Err(Refusal::OutOfTensor { start: offset, end, len })
            }
        };
        read.map_err(|refusal| Error::checkpoint(&self.path, refusal))
    }

    fn read_at(&self, position: u64, buffer: &mut [u8]) -> Result<(), Refusal> {
        let read = positioned::read_exact_at(&*self.opened()?, buffer, position);
        read.map_err(|error| Refusal::Bytes { len: buffer.len(), position, error })
    }

    /// The open file, which is still the one whose header was read.
    fn opened(&self) -> Result<Arc<File>, Refusal> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = &*open {
            return Ok(Arc::clone(file));
        }
        let (file, len) = plain::open(&self.path)?;
        if len != self.len || modified(&file) != self.modified {
            return Err(Refusal::Changed);
        }
        Ok(Arc::clone(open.insert(Arc::new(file))))
    }

    /// Checks that the file at its path is still the one whose header was read, by its length and
    /// the time of its last change.
    ///
    /// # Errors
    /// One that is gone, or another.
    pub fn unchanged(&self) -> Result<(), Error> {
        let refused = |refusal| Error::checkpoint(&self.path, refusal);
        let meta = std::fs::metadata(&self.path).map_err(|error| refused(error.into()))?;
        match meta.len() == self.len && meta.modified().ok() == self.modified {
            true => Ok(()),
            false => Err(refused(Refusal::Changed)),
        }
    }

    /// When the file was changed last, as far as the system tells.
    pub fn modified(&self) -> Option<SystemTime> {
        self.modified
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
            let read = self.read_at(position, piece);
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
        let mut buffer = vec![0; len];
        self.read(info, offset, &mut buffer)?;
        Ok(buffer)
    }
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|meta| meta.modified()).ok()
}

/// Bytes of a tensor.
pub fn byte_len(info: &TensorInfo) -> usize {
    info.data_offsets.1 - info.data_offsets.0
}

/// Reads the header of a file of `len` bytes, the `first` of which are known; the header's length.
fn header(file: &mut File, first: &[u8], len: u64) -> Result<(Header, u64), Refusal> {
    let Some(word) = first.first_chunk() else { return Err(Refusal::TooShort { len }) };
    let announced = u64::from_le_bytes(*word);
    let most = MAX_HEADER.min(len - 8);
    if announced > most {
        return Err(Refusal::HeaderLen { announced, most });
    }
    let mut header = vec![0; announced as usize]; // at most 100 MB
    file.seek(SeekFrom::Start(8))?;
    file.read_exact(&mut header)?;
    let text = std::str::from_utf8(&header).map_err(Refusal::HeaderText)?;
    let header = serde_json::from_str(text).map_err(|e| Refusal::Header(e.to_string()))?;
    Ok((header, announced))
}

/// Checks that tensors follow each other without gaps from 0 on, and are as long as their types and
/// shapes say; the end of the last.
fn validate(tensors: &BTreeMap<String, TensorInfo>) -> Result<usize, Refusal> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut expected = 0;
    for (name, info) in in_order {
        let (name, (start, end)) = (|| name.clone(), info.data_offsets);
        if start != expected || end < start {
            return Err(Refusal::Offsets { name: name(), got: (start, end), expected });
        }
        let (dtype, shape) = (info.dtype, || info.shape.clone());
        let elements = info.shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let Some(bits) = elements.and_then(|n| n.checked_mul(dtype.bitsize())) else {
            return Err(Refusal::Overflow { name: name(), dtype, shape: shape() });
        };
        let got = end - start;
        if bits.is_multiple_of(8).then_some(bits / 8) != Some(got) {
            return Err(Refusal::Size { name: name(), dtype, shape: shape(), bits, got });
        }
        expected = end;
    }
    Ok(expected)
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
    data_offsets: (usize, usize),
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
