//! One vector file: `NAME.safetensors` with its manifest `NAME.json`, read and cross-checked.
//!
//! The file is read once and every tensor is kept as bytes. Nothing in it is trusted: file and
//! manifest must list the same tensors with the same types and shapes, and a check names the type
//! and the exact shape of every tensor it reads, so that no later step can index outside.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::Error;
use crate::files;
use crate::tensor::Values;

/// The manifest, as far as all families share it.
#[derive(Debug, Clone, Deserialize)]
pub struct Manifest {
    /// The file's name, without extension.
    pub name: String,
    /// Size of the safetensors file.
    pub bytes: u64,
    /// Type, shape and meaning of every tensor.
    #[serde(deserialize_with = "files::unique")]
    pub tensors: BTreeMap<String, TensorInfo>,
    /// Everything else: the family's settings, versions, notes.
    #[serde(flatten)]
    pub settings: serde_json::Map<String, serde_json::Value>,
}

/// One tensor, as the manifest describes it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct TensorInfo {
    /// The type, in numpy's spelling.
    pub dtype: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// What it holds.
    #[serde(default)]
    pub meaning: String,
}

/// A vector file in memory.
#[derive(Debug, Clone)]
pub struct VectorFile {
    manifest: Manifest,
    tensors: BTreeMap<String, Tensor>,
}

#[derive(Debug, Clone)]
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    /// True once a check has read the values.
    read: Cell<bool>,
}

/// The expected bits of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Column<T> {
    tensor: String,
    shape: Vec<usize>,
    values: Vec<T>,
}

/// A bit pattern that a tensor holds.
pub trait Pattern: Copy + Into<u64> {
    /// The little-endian patterns in `bytes`.
    fn read(bytes: &[u8]) -> Vec<Self>;
}

impl Pattern for u8 {
    fn read(bytes: &[u8]) -> Vec<Self> {
        bytes.to_vec()
    }
}

impl Pattern for u16 {
    fn read(bytes: &[u8]) -> Vec<Self> {
        bytes.as_chunks().0.iter().map(|&b| u16::from_le_bytes(b)).collect()
    }
}

impl Pattern for u32 {
    fn read(bytes: &[u8]) -> Vec<Self> {
        bytes.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b)).collect()
    }
}

/// The manifest's name of a safetensors type; only the types that vectors use.
fn dtype_name(dtype: Dtype) -> Option<&'static str> {
    Some(match dtype {
        Dtype::U8 => "uint8",
        Dtype::U16 => "uint16",
        Dtype::U32 => "uint32",
        Dtype::F16 => "float16",
        Dtype::BF16 => "bfloat16",
        Dtype::F32 => "float32",
        Dtype::F64 => "float64",
        _ => return None,
    })
}

impl VectorFile {
    /// Reads `dir/NAME.json` and `dir/NAME.safetensors`.
    ///
    /// # Errors
    /// A missing, truncated or malformed file; a manifest that does not describe the file.
    pub fn open(dir: &Path, name: &str) -> Result<Self, Error> {
        let manifest_path = dir.join(format!("{name}.json"));
        if !manifest_path.exists() {
            return Err(Error::NoManifest { path: manifest_path });
        }
        let json = read(manifest_path)?;
        let bytes = read(dir.join(format!("{name}.safetensors")))?;
        Self::parse(name, &json, &bytes)
    }

    /// Parses a manifest and a safetensors file.
    ///
    /// # Errors
    /// A malformed file; a manifest that does not describe the file.
    pub fn parse(name: &str, json: &[u8], bytes: &[u8]) -> Result<Self, Error> {
        let file = name.to_owned();
        let manifest: Manifest = serde_json::from_slice(json)
            .map_err(|source| Error::Manifest { file: file.clone(), source })?;
        if manifest.name != name {
            return Err(setting(name, "name", &manifest.name, &format!("{name}, as the file")));
        }
        let got = bytes.len() as u64;
        if got != manifest.bytes {
            return Err(Error::Length { file, expected: manifest.bytes, got });
        }
        let parsed = files::tensors(bytes)
            .map_err(|source| Error::SafeTensors { file: file.clone(), source })?;
        let tensors: BTreeMap<_, _> = parsed
            .iter()
            .map(|(name, view)| {
                let (shape, bytes) = (view.shape().to_vec(), view.data().to_vec());
                let read = Cell::new(false);
                (name.to_owned(), Tensor { dtype: view.dtype(), shape, bytes, read })
            })
            .collect();
        let read = VectorFile { manifest, tensors };
        read.cross_check()?;
        Ok(read)
    }

    /// Checks that file and manifest list the same tensors, types and shapes.
    fn cross_check(&self) -> Result<(), Error> {
        for (tensor, info) in &self.manifest.tensors {
            let Tensor { dtype, shape, .. } = self.tensor(tensor)?;
            if dtype_name(*dtype) != Some(&info.dtype) {
                return Err(self.wrong_dtype(tensor, &info.dtype, *dtype));
            }
            self.expect_shape(tensor, shape, &info.shape)?;
        }
        match self.tensors.keys().find(|&tensor| !self.manifest.tensors.contains_key(tensor)) {
            Some(tensor) => Err(self.no_tensor(tensor, "manifest")),
            None => Ok(()),
        }
    }

    /// The file's name, without extension.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The settings that a family keeps in its manifests.
    ///
    /// # Errors
    /// [`Error::Manifest`] if a setting is missing or of another type.
    pub fn settings<T: DeserializeOwned>(&self) -> Result<T, Error> {
        serde_json::from_value(serde_json::Value::Object(self.manifest.settings.clone()))
            .map_err(|source| Error::Manifest { file: self.name().to_owned(), source })
    }

    /// The tensors' names, ascending.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensors whose values no check has read so far, ascending.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        let unread = self.tensors.iter().filter(|(_, tensor)| !tensor.read.get());
        unread.map(|(name, _)| name.as_str())
    }

    /// Type, shape and bytes of a tensor; does not count as reading it.
    ///
    /// # Errors
    /// [`Error::NoTensor`].
    pub fn raw(&self, tensor: &str) -> Result<(Dtype, &[usize], &[u8]), Error> {
        let Tensor { dtype, shape, bytes, .. } = self.tensor(tensor)?;
        Ok((*dtype, shape, bytes))
    }

    /// The shape of a tensor that must be a matrix.
    ///
    /// # Errors
    /// [`Error::NoTensor`]; [`Error::Setting`] for another rank.
    pub fn matrix_shape(&self, tensor: &str) -> Result<[usize; 2], Error> {
        let shape = &self.tensor(tensor)?.shape;
        shape.as_slice().try_into().map_err(|_| {
            setting(self.name(), &format!("the shape of {tensor}"), &format!("{shape:?}"), "2-D")
        })
    }

    /// The bits of a tensor of this type and shape.
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::Dtype`] or [`Error::Shape`].
    ///
    /// # Panics
    /// If `T` has another size than `dtype`.
    pub fn column<T: Pattern>(
        &self,
        tensor: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Column<T>, Error> {
        assert_eq!(8 * size_of::<T>(), dtype.bitsize(), "pattern of {dtype}");
        let found = self.tensor(tensor)?;
        if found.dtype != dtype {
            return Err(self.wrong_dtype(tensor, &dtype.to_string(), found.dtype));
        }
        self.expect_shape(tensor, &found.shape, shape)?;
        found.read.set(true);
        let values = T::read(&found.bytes);
        Ok(Column { tensor: tensor.to_owned(), shape: shape.to_vec(), values })
    }

    /// The f32 values of a tensor of this shape.
    ///
    /// # Errors
    /// As [`column`](Self::column).
    pub fn f32s(&self, tensor: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let column: Column<u32> = self.column(tensor, Dtype::F32, shape)?;
        Ok(column.values.into_iter().map(f32::from_bits).collect())
    }

    /// The one value of an f32 tensor of shape (1).
    ///
    /// # Errors
    /// As [`column`](Self::column).
    pub fn scalar(&self, tensor: &str) -> Result<f32, Error> {
        Ok(self.f32s(tensor, &[1])?[0])
    }

    /// The values of a tensor in f32, f16 or bf16, of this shape.
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::Dtype`] or [`Error::Shape`].
    pub fn values(&self, tensor: &str, shape: &[usize]) -> Result<Values, Error> {
        let found = self.tensor(tensor)?;
        self.expect_shape(tensor, &found.shape, shape)?;
        found.read.set(true);
        let halves = || u16::read(&found.bytes).into_iter();
        Ok(match found.dtype {
            Dtype::F32 => {
                Values::F32(u32::read(&found.bytes).into_iter().map(f32::from_bits).collect())
            }
            Dtype::F16 => Values::F16(halves().map(f16::from_bits).collect()),
            Dtype::BF16 => Values::Bf16(halves().map(bf16::from_bits).collect()),
            got => return Err(self.wrong_dtype(tensor, "F32, F16 or BF16", got)),
        })
    }

    fn tensor(&self, tensor: &str) -> Result<&Tensor, Error> {
        self.tensors.get(tensor).ok_or_else(|| self.no_tensor(tensor, "file"))
    }

    fn no_tensor(&self, tensor: &str, place: &'static str) -> Error {
        Error::NoTensor { file: self.name().to_owned(), tensor: tensor.to_owned(), place }
    }

    fn wrong_dtype(&self, tensor: &str, expected: &str, got: Dtype) -> Error {
        Error::Dtype {
            file: self.name().to_owned(),
            tensor: tensor.to_owned(),
            expected: expected.to_owned(),
            got,
        }
    }

    fn expect_shape(&self, tensor: &str, got: &[usize], expected: &[usize]) -> Result<(), Error> {
        if got == expected {
            return Ok(());
        }
        Err(Error::Shape {
            file: self.name().to_owned(),
            tensor: tensor.to_owned(),
            expected: expected.to_vec(),
            got: got.to_vec(),
        })
    }
}

impl<T: Copy> Column<T> {
    /// The tensor's name.
    pub fn tensor(&self) -> &str {
        &self.tensor
    }

    /// The bits, row-major.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The same tensor with every value replaced by what the contract makes of it: NaN of any
    /// payload by the canonical one, for example.
    #[must_use]
    pub fn map(mut self, f: impl FnMut(T) -> T) -> Self {
        self.values = self.values.into_iter().map(f).collect();
        self
    }

    /// The position of value `index` in the tensor's shape.
    pub fn coordinate(&self, index: usize) -> Vec<usize> {
        let mut rest = index;
        let mut coordinate: Vec<usize> = (self.shape.iter().rev())
            .map(|&dim| {
                let at = rest % dim.max(1);
                rest /= dim.max(1);
                at
            })
            .collect();
        coordinate.reverse();
        coordinate
    }
}

/// An [`Error::Setting`].
pub(super) fn setting(file: &str, what: &str, got: &str, expected: &str) -> Error {
    Error::Setting {
        file: file.to_owned(),
        what: what.to_owned(),
        got: got.to_owned(),
        expected: expected.to_owned(),
    }
}

fn read(path: PathBuf) -> Result<Vec<u8>, Error> {
    files::read(&path).map_err(|source| Error::Io { path, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_coordinate_counts_the_last_dimension_first() {
        let column = Column { tensor: "t".into(), shape: vec![2, 3, 4], values: vec![0u8; 24] };
        assert_eq!(column.coordinate(0), [0, 0, 0]);
        assert_eq!(column.coordinate(23), [1, 2, 3]);
        assert_eq!(column.coordinate(13), [1, 0, 1]);
    }
}
