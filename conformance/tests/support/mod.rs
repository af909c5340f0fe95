//! Copies of the committed vectors that tests may break.

#![allow(dead_code, reason = "every test binary uses another part")]

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use tempfile::TempDir;

/// The committed vectors.
pub(crate) const VECTORS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/vectors");

/// The committed vectors.
pub(crate) fn vectors() -> &'static Path {
    Path::new(VECTORS)
}

/// The default backend.
pub(crate) fn reference() -> Backend {
    Backend::new(Reference)
}

/// One tensor, to be edited.
pub(crate) struct Tensor {
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Vec<u8>,
}

/// A vector file, to be edited.
pub(crate) struct Edit {
    pub(crate) manifest: Value,
    pub(crate) tensors: BTreeMap<String, Tensor>,
}

/// A temporary folder with some vector files in it.
pub(crate) struct Scratch(TempDir);

impl Scratch {
    pub(crate) fn empty() -> Self {
        Scratch(tempfile::tempdir().unwrap())
    }

    /// A copy of one committed file.
    pub(crate) fn copy_of(name: &str) -> Self {
        let scratch = Self::empty();
        for extension in ["json", "safetensors"] {
            let file = format!("{name}.{extension}");
            std::fs::copy(vectors().join(&file), scratch.dir().join(&file)).unwrap();
        }
        scratch
    }

    /// A copy of one committed file, edited; the manifest's size follows.
    pub(crate) fn edited(name: &str, edit: impl FnOnce(&mut Edit)) -> Self {
        let scratch = Self::copy_of(name);
        let json = std::fs::read(scratch.path(name, "json")).unwrap();
        let bytes = std::fs::read(scratch.path(name, "safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes)
            .unwrap()
            .iter()
            .map(|(name, view)| {
                let (dtype, shape) = (view.dtype(), view.shape().to_vec());
                (name.to_owned(), Tensor { dtype, shape, bytes: view.data().to_vec() })
            })
            .collect();
        let mut file = Edit { manifest: serde_json::from_slice(&json).unwrap(), tensors };
        edit(&mut file);
        let views: HashMap<_, _> = (file.tensors.iter())
            .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()))
            .collect();
        let bytes = safetensors::serialize(views, None).unwrap();
        file.manifest["bytes"] = bytes.len().into();
        std::fs::write(scratch.path(name, "safetensors"), bytes).unwrap();
        std::fs::write(scratch.path(name, "json"), file.manifest.to_string()).unwrap();
        scratch
    }

    pub(crate) fn dir(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.dir().join(format!("{name}.{extension}"))
    }
}

impl Edit {
    pub(crate) fn tensor(&mut self, name: &str) -> &mut Tensor {
        self.tensors.get_mut(name).unwrap_or_else(|| panic!("no tensor {name}"))
    }
}
