//! Cases as files: the way in for hardware and languages that speak no Rust.
//!
//! ```text
//! export   DIR/NAME.safetensors (inputs and expected outputs) + DIR/NAME.json (manifest)
//! answer   a program reads the inputs and writes ANSWERS/NAME.safetensors, outputs only
//! verify   the suite compares the answers with DIR's expected outputs, bit for bit: all of them,
//!          or, where told so, those that there are
//! check    a backend of ours answers and is verified in one go
//! compact  cases and expected outputs as one file of bytes, for a program that judges itself
//! ```
//!
//! The schema is documented in `conformance/README.md`. Expected outputs are the oracle's. Two
//! kinds of files: `quantize` (outputs `codes`, `scales`) and `matmul` (output `y`), both of whole
//! calls.

mod compact;
mod export;
mod verify;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::{Deserialize, Serialize};

use crate::files;

pub use compact::{COMPACT_VERSION, compact};
pub use export::export;
pub use verify::{Verification, answer, is_exchange, verify};

/// The schema's name and version, in every manifest.
pub const SCHEMA: &str = "fp4-conformance-vectors/1";

/// What can go wrong with the files.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error("{path}: {source}; check the path")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A manifest that is not of the schema.
    #[error("{path} is no manifest of {SCHEMA}: {source}; export it again")]
    Manifest {
        /// The path.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A safetensors file that cannot be parsed or written.
    #[error("{path}: {source}; write it as safetensors")]
    SafeTensors {
        /// The path.
        path: PathBuf,
        /// Why.
        source: safetensors::SafeTensorError,
    },
    /// A tensor that is missing, or of another type or shape.
    #[error("{path}: tensor {tensor} is {got}, expected {expected}")]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// What there is.
        got: String,
        /// What there should be.
        expected: String,
    },
    /// Settings that the core refuses.
    #[error("case {case}: {source}")]
    Core {
        /// The case.
        case: String,
        /// Why.
        source: fp4_core::Error,
    },
    /// Nothing to compare.
    #[error("{path}: nothing was compared; expected files of {SCHEMA}")]
    Nothing {
        /// The folder.
        path: PathBuf,
    },
    /// No whole call among the cases, so that there is nothing to write.
    #[error(
        "none of the {cases} cases given is a whole call of one backend: nothing was exported; choose \
         quantize/* or matmul/*/whole"
    )]
    NothingToExport {
        /// How many cases were given.
        cases: usize,
    },
    /// A tensor file without its manifest: cases that would go unjudged.
    #[error("{path} is missing; every NAME.safetensors of an export needs it: export again")]
    NoManifest {
        /// The manifest that was looked for.
        path: PathBuf,
    },
    /// One path given for two things, by name or by a link.
    #[error("{path} and {other} are one: answers must be files of their own; give another folder")]
    Same {
        /// The answers.
        path: PathBuf,
        /// What they are at the same time.
        other: PathBuf,
    },
    /// A folder to write to that holds vectors already.
    #[error("{path} holds {file}: writing there could mix or lose files; give another folder")]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What is there.
        file: String,
    },
    /// An answer to nothing that was asked.
    #[error("{path} answers {what}, which {dir} does not ask; remove it, or give its own export")]
    Extra {
        /// The answers.
        path: PathBuf,
        /// The file or tensor.
        what: String,
        /// The export.
        dir: PathBuf,
    },
}

/// A manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`SCHEMA`].
    pub schema: String,
    /// The file's name, without extension.
    pub name: String,
    /// Version of the suite that wrote it.
    pub suite: String,
    /// Cases by the number that starts their tensors' names (`0.x`, `0.codes`, ...).
    #[serde(deserialize_with = "files::unique")]
    pub cases: BTreeMap<String, CaseEntry>,
}

/// One case of a manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CaseEntry {
    /// The suite's id.
    pub id: String,
    /// Clauses of the contract.
    pub clauses: Vec<String>,
    /// What is asked.
    pub request: Request,
    /// Tensors to read.
    #[serde(deserialize_with = "files::unique")]
    pub inputs: BTreeMap<String, TensorInfo>,
    /// Tensors to write.
    #[serde(deserialize_with = "files::unique")]
    pub outputs: BTreeMap<String, TensorInfo>,
}

/// A request, with its numbers.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "operation", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// C4, and C5 if there is a transform.
    Quantize {
        /// `e8m0` or `e4m3`.
        scale_type: String,
        /// Elements that share a scale.
        group: usize,
        /// Bits of the f32 global scale.
        global_scale_bits: u32,
        /// Bits of the f32 scale-scale.
        scale_scale_bits: u32,
        /// `even`, `zero`, `down`, `up`.
        tie: String,
        /// `int8` for MXINT8 (C10); absent for e2m1.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        element: Option<String>,
    },
    /// C6.
    Matmul {
        /// `mxfp4` or `nvfp4`: B's, and A's unless there are `activations`.
        format: String,
        /// `mxint8`, if A is (C10).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        activations: Option<String>,
        /// M, N and K.
        shape: [usize; 3],
        /// Bits of the f32 multiplier.
        alpha_bits: u32,
        /// `f32`, `f16` or `bf16`.
        output: String,
    },
}

/// Type and shape of a tensor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorInfo {
    /// The safetensors type: `U8`, `F32`, `F16` or `BF16`.
    pub dtype: String,
    /// The shape.
    pub shape: Vec<usize>,
}

/// Tensors of one file, owned.
type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    |source| Error::Io { path: path.to_owned(), source }
}

fn read_tensors(path: &Path) -> Result<Tensors, Error> {
    let bytes = files::read(path).map_err(io(path))?;
    let parsed = files::tensors(&bytes)
        .map_err(|source| Error::SafeTensors { path: path.to_owned(), source })?;
    let owned = parsed.iter().map(|(name, view)| {
        (name.to_owned(), (view.dtype(), view.shape().to_vec(), view.data().to_vec()))
    });
    Ok(owned.collect())
}

fn write_tensors(path: &Path, tensors: &Tensors) -> Result<(), Error> {
    let failed = |source| Error::SafeTensors { path: path.to_owned(), source };
    let mut views = Vec::new();
    for (name, (dtype, shape, bytes)) in tensors {
        views.push((name, TensorView::new(*dtype, shape.clone(), bytes).map_err(failed)?));
    }
    let bytes = safetensors::serialize(views, None).map_err(failed)?;
    std::fs::write(path, bytes).map_err(io(path))
}

fn read_manifest(path: &Path) -> Result<Manifest, Error> {
    let bytes = files::read(path).map_err(io(path))?;
    let manifest: Manifest = serde_json::from_slice(&bytes)
        .map_err(|source| Error::Manifest { path: path.to_owned(), source })?;
    if manifest.schema != SCHEMA {
        return Err(Error::Tensor {
            path: path.to_owned(),
            tensor: "schema".into(),
            got: manifest.schema,
            expected: SCHEMA.into(),
        });
    }
    // Answers are written under this name: it must not lead elsewhere.
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    if manifest.name != stem {
        return Err(Error::Tensor {
            path: path.to_owned(),
            tensor: "name".into(),
            got: manifest.name,
            expected: format!("{stem}, as the file"),
        });
    }
    Ok(manifest)
}

/// The names of the files in a folder that end in `.extension`, without it, in order.
fn stems(dir: &Path, extension: &str) -> Result<BTreeSet<String>, Error> {
    let mut stems = BTreeSet::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            stems.insert(path.file_stem().unwrap_or_default().to_string_lossy().into_owned());
        }
    }
    Ok(stems)
}

/// A folder that is absent, or that has no file of these extensions.
fn expect_vacant(dir: &Path, extensions: &[&str]) -> Result<(), Error> {
    if !dir.exists() {
        return Ok(());
    }
    for extension in extensions {
        if let Some(stem) = stems(dir, extension)?.first() {
            let file = format!("{stem}.{extension}");
            return Err(Error::Occupied { path: dir.to_owned(), file });
        }
    }
    Ok(())
}

/// Two paths that do not lead to one file or folder, by whatever links; one may be absent.
fn expect_apart(path: &Path, other: &Path) -> Result<(), Error> {
    // Opening a pipe to look at it would wait for its other end.
    if path.exists() && !path.is_dir() {
        files::expect_regular(path).map_err(io(path))?;
    }
    match same_file::is_same_file(path, other) {
        Ok(true) => Err(Error::Same { path: path.to_owned(), other: other.to_owned() }),
        Ok(false) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io(path)(error)),
    }
}
