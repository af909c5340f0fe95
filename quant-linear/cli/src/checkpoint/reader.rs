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

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

/// The longest header that the format allows.
pub(crate) const MAX_HEADER: u64 = 100_000_000;

/// What to do about a file that breaks the format.
const DO: &str = "download or export the file again";

/// An open safetensors file whose header has been checked.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    file: File,
    len: u64,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
    metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Opens a file and checks its header: no tensor reaches outside the file, none overlap, and
    /// together they fill it.
    ///
    /// # Errors
    /// A file that is missing, not a plain file, cut short, or not safetensors.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        Self::open_inner(path).with_context(|| format!("reading {}", path.display()))
    }

    fn open_inner(path: &Path) -> Result<Self> {
        // Asked before opening: opening a named pipe would wait for a writer.
        let meta = std::fs::metadata(path)?;
        ensure!(meta.is_file(), "it is not a plain file; expected a safetensors file");
        let mut file = File::open(path)?;
        let len = meta.len();
        let mut word = [0; 8];
        ensure!(
            len >= 8,
            "it has {len} bytes, and a safetensors file has at least 8; it is cut short or \
             another format: {DO}"
        );
        file.read_exact(&mut word)?;
        let header_len = u64::from_le_bytes(word);
        let most = MAX_HEADER.min(len - 8);
        ensure!(
            header_len <= most,
            "its first 8 bytes announce a header of {header_len} bytes, and at most {most} are \
             possible; it is cut short or not a safetensors file: {DO}"
        );
        let mut header = vec![0; usize::try_from(header_len)?];
        file.read_exact(&mut header)?;
        let metadata = parse(&header)?;
        let data_start = 8 + header_len;
        let end = data_start.checked_add(metadata.data_len() as u64);
        if end != Some(len) {
            let expected = end.map_or("more than fit".into(), |end| end.to_string());
            let what = if end.is_some_and(|end| end < len) {
                "bytes follow the last tensor"
            } else {
                "it is cut short"
            };
            bail!("it has {len} bytes, and its header describes {expected}: {what}; {DO}");
        }
        let tensors = metadata.tensors();
        let tensors = tensors.into_iter().map(|(name, info)| (name, info.clone())).collect();
        let metadata = metadata.metadata().iter().flatten();
        let metadata = metadata.map(|(k, v)| (k.clone(), v.clone())).collect();
        Ok(TensorFile { path: path.to_path_buf(), file, len, data_start, tensors, metadata })
    }

    /// Length of the file in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The tensors by name.
    pub(crate) fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The `__metadata__` of the header.
    pub(crate) fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// Fills `buffer` with the bytes of a tensor of this file from byte `offset` of it on.
    ///
    /// # Errors
    /// The system's; a range outside the tensor.
    pub(crate) fn read(&self, info: &TensorInfo, offset: usize, buffer: &mut [u8]) -> Result<()> {
        let (start, end) = info.data_offsets;
        let fits = offset.checked_add(buffer.len()).is_some_and(|stop| stop <= end - start);
        ensure!(fits, "a read outside the tensor; this is a mistake in fp4, please report it");
        let position = self.data_start + (start + offset) as u64;
        let mut file = &self.file;
        file.seek(SeekFrom::Start(position)).and_then(|_| file.read_exact(buffer)).with_context(
            || {
                format!(
                    "reading {} bytes at {position} of {}; the file may have changed since it was \
                     opened: run again when nothing writes to it",
                    buffer.len(),
                    self.path.display()
                )
            },
        )
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

/// Bytes of a tensor.
pub(crate) fn byte_len(info: &TensorInfo) -> usize {
    info.data_offsets.1 - info.data_offsets.0
}

/// Parses and checks the JSON header.
fn parse(header: &[u8]) -> Result<Metadata> {
    let text = std::str::from_utf8(header).with_context(|| {
        format!("its header is not UTF-8 text, so not a safetensors file: {DO}")
    })?;
    serde_json::from_str::<UniqueNames>(text)
        .and_then(|_| serde_json::from_str::<Metadata>(text))
        .with_context(|| format!("its header is not that of a safetensors file: {DO}"))
}

/// Any JSON object that names nothing twice: readers disagree on which of two would count.
struct UniqueNames;

impl<'de> serde::Deserialize<'de> for UniqueNames {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = UniqueNames;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<UniqueNames, A::Error> {
                let mut seen = HashSet::new();
                while let Some((name, IgnoredAny)) = map.next_entry::<String, IgnoredAny>()? {
                    if seen.contains(&name) {
                        return Err(A::Error::custom(format!("`{name}` is there twice")));
                    }
                    seen.insert(name);
                }
                Ok(UniqueNames)
            }
        }
        deserializer.deserialize_map(Names)
    }
}
