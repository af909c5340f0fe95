//! Reading one safetensors file: the header once, then bytes by position.
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
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result, bail, ensure};
use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::plain;
use super::sniff;
use super::unique::{self, Unique};

/// The longest header that the format allows.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// The most dimensions of a tensor that are taken.
const MAX_RANK: usize = 64;

/// What to do about a file that breaks the format.
const DO: &str = "download or export the file again";

/// A safetensors file whose header has been checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    /// Opened at the first read; [`close`](Self::close) lets it go.
    open: Mutex<Option<File>>,
    len: u64,
    modified: Option<SystemTime>,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
    count: usize,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens a file and checks its header: no tensor reaches outside the file, none overlap, and
    /// together they fill it. The file is closed again until something is read.
    ///
    /// # Errors
    /// A file that is missing, not a plain file, cut short, or not safetensors.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_inner(path).with_context(|| format!("reading {}", path.display()))
    }

    fn open_inner(path: &Path) -> Result<Self> {
        let (mut file, len) = plain::open(path)?;
        let modified = modified(&file);
        let mut first = [0; sniff::ENOUGH];
        let first = &mut first[..sniff::ENOUGH.min(usize::try_from(len)?)];
        file.read_exact(first)?;
        let header = header(&mut file, first, len);
        let (Header { tensors, metadata }, header_len) =
            header.map_err(|error| match sniff::known(first) {
                Some((what, what_to_do)) => {
                    anyhow::anyhow!("it is no safetensors file but {what}; {what_to_do}")
                }
                None => error,
            })?;
        let data_start = 8 + header_len;
        let end = data_start.checked_add(validate(&tensors)? as u64);
        if end != Some(len) {
            let expected = end.map_or("more than fit".into(), |end| end.to_string());
            let what = if end.is_some_and(|end| end < len) {
                "bytes follow the last tensor"
            } else {
                "it is cut short"
            };
            bail!("it has {len} bytes, and its header describes {expected}: {what}; {DO}");
        }
        let (path, open, count) = (path.to_path_buf(), Mutex::default(), tensors.len());
        Ok(TensorFile { path, open, len, modified, data_start, tensors, count, metadata })
    }

    /// Length of the file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Hands over the tensors by name; they are not kept.
    pub(crate) fn take_tensors(&mut self) -> BTreeMap<String, TensorInfo> {
        std::mem::take(&mut self.tensors)
    }

    /// Number of tensors.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// The `__metadata__` of the header.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Lets go of the open file until the next read.
    pub(crate) fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Fills `buffer` with the bytes of a tensor of this file from byte `offset` of it on.
    ///
    /// # Errors
    /// The system's; a range outside the tensor; a file that has changed since its header was read.
    pub(crate) fn read(&self, info: &TensorInfo, offset: usize, buffer: &mut [u8]) -> Result<()> {
        let (start, end) = info.data_offsets;
        let fits = offset.checked_add(buffer.len()).is_some_and(|stop| stop <= end - start);
        ensure!(fits, "a read outside the tensor; this is a mistake in fp4, please report it");
        let position = self.data_start + (start + offset) as u64;
        self.read_at(position, buffer).with_context(|| {
            format!(
                "reading {} bytes at {position} of {}; the file may have changed since it was \
                 opened: run again when nothing writes to it",
                buffer.len(),
                self.path.display()
            )
        })
    }

    fn read_at(&self, position: u64, buffer: &mut [u8]) -> Result<()> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let file = match &mut *open {
            Some(file) => file,
            none => {
                let (file, len) = plain::open(&self.path)?;
                let same = len == self.len && modified(&file) == self.modified;
                ensure!(same, "it is not the file whose header was read");
                none.insert(file)
            }
        };
        file.seek(SeekFrom::Start(position))?;
        Ok(file.read_exact(buffer)?)
    }

    /// `len` bytes of a tensor of this file from byte `offset` of it on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub(crate) fn bytes(&self, info: &TensorInfo, offset: usize, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0; len];
        self.read(info, offset, &mut buffer)?;
        Ok(buffer)
    }
}

fn modified(file: &File) -> Option<SystemTime> {
    file.metadata().and_then(|meta| meta.modified()).ok()
}

/// Bytes of a tensor.
pub(crate) fn byte_len(info: &TensorInfo) -> usize {
    info.data_offsets.1 - info.data_offsets.0
}

/// Reads the header of a file of `len` bytes, the `first` of which are known; the header's length.
fn header(file: &mut File, first: &[u8], len: u64) -> Result<(Header, u64)> {
    let Some(word) = first.first_chunk() else {
        bail!(
            "it has {len} bytes, and a safetensors file has at least 8; it is cut short or \
             another format: {DO}"
        );
    };
    let header_len = u64::from_le_bytes(*word);
    let most = MAX_HEADER.min(len - 8);
    ensure!(
        header_len <= most,
        "its first 8 bytes announce a header of {header_len} bytes, and at most {most} are \
         possible; it is cut short or not a safetensors file: {DO}"
    );
    let mut header = vec![0; usize::try_from(header_len)?];
    file.seek(SeekFrom::Start(8))?;
    file.read_exact(&mut header)?;
    let text = std::str::from_utf8(&header).with_context(|| {
        format!("its header is not UTF-8 text, so not a safetensors file: {DO}")
    })?;
    let header = serde_json::from_str(text)
        .with_context(|| format!("its header is not that of a safetensors file: {DO}"))?;
    Ok((header, header_len))
}

/// Checks that tensors follow each other without gaps from 0 on, and are as long as their types and
/// shapes say; the end of the last.
fn validate(tensors: &BTreeMap<String, TensorInfo>) -> Result<usize> {
    let mut in_order: Vec<_> = tensors.iter().collect();
    in_order.sort_by_key(|(_, info)| info.data_offsets);
    let mut end_of_last = 0;
    for (name, TensorInfo { dtype, shape, data_offsets: (start, end) }) in in_order {
        ensure!(
            *start == end_of_last && start <= end,
            "tensor `{name}` has the offsets {start} to {end}, expected to start at \
             {end_of_last}, where the one before it ends; {DO}"
        );
        let elements = shape.iter().try_fold(1usize, |n, &dim| n.checked_mul(dim));
        let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
        let bits = bits.with_context(|| {
            format!("the size of tensor `{name}`, {dtype} of shape {shape:?}, overflows; {DO}")
        })?;
        ensure!(
            Some(end - start) == bits.is_multiple_of(8).then_some(bits / 8),
            "tensor `{name}` is {dtype} of shape {shape:?}, {bits} bits, and its offsets hold {} \
             bytes; {DO}",
            end - start
        );
        end_of_last = *end;
    }
    Ok(end_of_last)
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
