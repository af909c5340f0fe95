//! What can be wrong with what is asked of a model.

use std::path::PathBuf;

use safetensors::Dtype;

use crate::text::{self, printable};

/// What can be wrong with what is asked of a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ModelError {
    /// A pattern that does not parse.
    #[error(
        "`{}` is not a glob; use `*`, `?`, `[abc]` and `{{a,b}}` on tensor names: {}",
        printable(.glob),
        printable(.reason)
    )]
    Glob {
        /// The pattern.
        glob: String,
        /// Why not.
        reason: String,
    },
    /// A pattern that is too long.
    #[error("a glob has {len} bytes, and at most {most} are taken; give several shorter ones")]
    GlobLen {
        /// Its bytes.
        len: usize,
        /// The most that are taken.
        most: usize,
    },
    /// A pattern that nests too deep.
    #[error(
        "a glob nests its braces {deepest} deep, and at most {most} are taken; give several simpler \
         ones"
    )]
    GlobBraces {
        /// Levels of braces.
        deepest: usize,
        /// The most that are taken.
        most: usize,
    },
    /// Patterns that cannot be compiled.
    #[error("the globs are too large; give simpler ones: {}", printable(.0))]
    GlobSize(String),
    /// A pattern to include that matches nothing.
    #[error("the glob `{}` matches no tensor; look at their names", printable(.glob))]
    NoMatch {
        /// The pattern.
        glob: String,
    },
    /// A pattern to include that matches nothing that can be quantized.
    #[error(
        "the glob `{}` matches no tensor that can be quantized ({}); look at types and shapes",
        printable(.glob),
        listed(.examples, *.more)
    )]
    NoneQuantizable {
        /// The pattern.
        glob: String,
        /// Some that it matches, and why they cannot be.
        examples: Vec<(String, Reason)>,
        /// True if it matches more.
        more: bool,
    },
    /// A tensor that is included by its full name and cannot be quantized.
    #[error(
        "tensor `{}` is included by its name and cannot be quantized: {reason}; do not include it",
        printable(.name)
    )]
    Named {
        /// The tensor.
        name: String,
        /// Why not.
        reason: Reason,
    },
    /// A name that the output needs is there already.
    #[error(
        "the input holds `{}` beside `{}`: it looks quantized already; start from the dense \
         checkpoint, or exclude the layer",
        printable(.taken),
        printable(.weight)
    )]
    Taken {
        /// The name that is taken.
        taken: String,
        /// The weight that would need it.
        weight: String,
    },
    /// A checkpoint that was quantized before.
    #[error(
        "{} is quantized already (it holds `{}`) and has no dense linear weight left; start from the \
         dense checkpoint",
        text::path(.path),
        printable(.name)
    )]
    QuantizedAlready {
        /// The checkpoint.
        path: PathBuf,
        /// A tensor that shows it.
        name: String,
    },
    /// A checkpoint without anything like a linear weight.
    #[error(
        "{} holds no linear weight: no tensor is named `*.weight` and has two dimensions; name what \
         to include",
        text::path(.path)
    )]
    NoWeight {
        /// The checkpoint.
        path: PathBuf,
    },
    /// A checkpoint of which nothing is to be quantized.
    #[error(
        "{} holds nothing to quantize ({}); include what should be",
        text::path(.path),
        listed(.examples, *.more)
    )]
    Nothing {
        /// The checkpoint.
        path: PathBuf,
        /// Some that could be, and why they are not.
        examples: Vec<(String, Reason)>,
        /// True if there are more.
        more: bool,
    },
    /// Global scales whose product no layer can run with.
    #[error(
        "the weight's global scale {weight:e} times the activations' {activation:e} is {} in f32, and \
         no layer can run with that; change one of them",
        weight * activation
    )]
    ScaleProduct {
        /// The weight's.
        weight: f32,
        /// The activations'.
        activation: f32,
    },
    /// A GGUF file to be quantized.
    #[error(
        "{} is a GGUF file, and what is quantized is safetensors; give the model's safetensors",
        text::path(.0)
    )]
    FromGguf(PathBuf),
    /// No backend that can quantize a weight.
    #[error("no backend can quantize this ({0}); give one that can")]
    NoQuantizer(String),
}

/// Why a tensor that could be a linear weight is not quantized.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Reason {
    /// A pattern to exclude matches it.
    #[error("it is excluded")]
    Excluded,
    /// It is kept by its name, as nothing is included.
    #[error("an embedding or output head by its name; including it quantizes it")]
    Kept,
    /// It is named otherwise than a linear weight.
    #[error("its name does not end in `.weight`")]
    Name,
    /// A type that is not quantized.
    #[error("it is {0}, expected F32, F16 or BF16")]
    Type(Dtype),
    /// A shape that is no matrix.
    #[error("it has shape {0:?}, expected two dimensions")]
    Rank(Vec<usize>),
    /// A last dimension that does not divide.
    #[error("K = {k} is not a multiple of the {what} of {size}")]
    NotMultiple {
        /// The last dimension.
        k: usize,
        /// Of what it is no multiple.
        what: &'static str,
        /// The size of that.
        size: usize,
    },
    /// A layer that could not be loaded.
    #[error("{0}")]
    Unloadable(String),
}

/// `` `name`: reason; ...``
pub fn listed(examples: &[(String, Reason)], more: bool) -> String {
    let listed: Vec<_> =
        examples.iter().map(|(name, why)| format!("`{}`: {why}", printable(name))).collect();
    listed.join("; ") + if more { "; ..." } else { "" }
}
