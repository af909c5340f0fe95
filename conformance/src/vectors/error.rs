//! Why vectors could not be checked. A difference is not an error: it is in the report.

use std::io;
use std::path::PathBuf;

use safetensors::{Dtype, SafeTensorError};

/// Vectors that cannot be read, or that make no sense, or that nothing could be compared with.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder that cannot be read or written.
    #[error("{path}: {source}; check that the path exists and is readable")]
    Io {
        /// The path.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A vector file without its manifest.
    #[error("{path} is missing; every NAME.safetensors needs its manifest NAME.json beside it")]
    NoManifest {
        /// The manifest that was looked for.
        path: PathBuf,
    },
    /// A manifest that is not what the schema says.
    #[error("manifest of {file}: {source}; compare it with the schema in conformance/README.md")]
    Manifest {
        /// The vector file.
        file: String,
        /// The parser's reason.
        source: serde_json::Error,
    },
    /// A manifest that contradicts itself or the file, or asks for what does not exist.
    #[error("manifest of {file}: {what} is {got}, expected {expected}; regenerate the file")]
    Setting {
        /// The vector file.
        file: String,
        /// The setting.
        what: String,
        /// Its value.
        got: String,
        /// What it should be.
        expected: String,
    },
    /// A file of another size than the manifest says: truncated, or from another version.
    #[error(
        "{file}.safetensors has {got} bytes, its manifest says {expected}; copy both files again"
    )]
    Length {
        /// The vector file.
        file: String,
        /// Bytes by the manifest.
        expected: u64,
        /// Bytes in the file.
        got: u64,
    },
    /// A file that is no safetensors file.
    #[error("{file}.safetensors cannot be parsed: {source}; copy the file again")]
    SafeTensors {
        /// The vector file.
        file: String,
        /// The parser's reason.
        source: SafeTensorError,
    },
    /// A tensor that the check needs, or that one of file and manifest lists, is missing.
    #[error("{file} has no tensor {tensor} in its {place}; file and manifest must list the same")]
    NoTensor {
        /// The vector file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Where it is missing: `file` or `manifest`.
        place: &'static str,
    },
    /// A tensor that no case of the manifest covers, so that it would pass unchecked.
    #[error("{file}: tensor {tensor} belongs to no case of the manifest; list the case there")]
    Unread {
        /// The vector file.
        file: String,
        /// The tensor.
        tensor: String,
    },
    /// A tensor of the wrong type.
    #[error("{file}: tensor {tensor} is {got}, expected {expected}; regenerate the file")]
    Dtype {
        /// The vector file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Type or types expected.
        expected: String,
        /// Type in the file.
        got: Dtype,
    },
    /// A tensor of the wrong shape.
    #[error(
        "{file}: tensor {tensor} has shape {got:?}, expected {expected:?}; regenerate the file"
    )]
    Shape {
        /// The vector file.
        file: String,
        /// The tensor.
        tensor: String,
        /// Shape expected.
        expected: Vec<usize>,
        /// Shape in the file.
        got: Vec<usize>,
    },
    /// The core or a backend refused an input of the file.
    #[error("{file}, {case}: {source}")]
    Core {
        /// The vector file.
        file: String,
        /// The case: input and operation.
        case: String,
        /// The reason.
        source: fp4_core::Error,
    },
    /// A folder or file in which there was nothing to compare.
    #[error(
        "{what}: nothing was compared{hint}; give a folder with vector files of the families a to e, j and k"
    )]
    Nothing {
        /// The folder or file.
        what: String,
        /// What was there instead.
        hint: String,
    },
    /// A subset that would be written over a file.
    #[error("{path} is there already; write the subset to a new file")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// A subset that cannot be taken.
    #[error("{file} has no {what} {got}; it has {known}")]
    Subset {
        /// The vector file.
        file: String,
        /// Case or column.
        what: &'static str,
        /// What was asked for.
        got: String,
        /// What there is.
        known: String,
    },
}
