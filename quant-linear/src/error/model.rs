//! What can be wrong with what is asked of a model.

use std::fmt;
use std::path::PathBuf;

use safetensors::Dtype;

use crate::checkpoint::gguf::GgmlType;
use crate::model::report::LossesError;
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
    /// A pattern that matches nothing.
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
    /// A tensor that cannot be quantized on trial.
    #[error("tensor `{}` cannot be quantized so: {reason}", printable(.name))]
    Trial {
        /// The tensor.
        name: String,
        /// Why not.
        reason: Reason,
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
        "{} holds no linear weight: no tensor is named `*.weight` and has two dimensions, and \
         none holds experts; name what to include",
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
    /// A tensor in blocks that have no values here, which no safetensors type holds either.
    #[error(
        "tensor `{}` cannot be carried along: {reason}",
        printable(.name)
    )]
    NoValues {
        /// The tensor.
        name: String,
        /// Why not.
        reason: Reason,
    },
    /// A checkpoint without quantized layers.
    #[error("{} holds no FP4 layer of any layout; `inspect` lists its tensors", text::path(.path))]
    NoLayers {
        /// The checkpoint.
        path: PathBuf,
    },
    /// Layers that cannot be read.
    #[error("layer `{}` is not whole: {why}{}", printable(.name), and_more(*.more))]
    Broken {
        /// The first of them.
        name: String,
        /// What is wrong with it.
        why: String,
        /// How many more there are.
        more: usize,
    },
    /// A config that cannot be read, where it must be changed.
    #[error("the config cannot be read: {}", printable(.0))]
    Config(String),
    /// Weights that a layout cannot hold.
    #[error("{target} cannot hold {count} of the weights: {}{}",
        .examples.iter().map(|(name, why)| format!("`{}`: {why}", printable(name)))
            .collect::<Vec<_>>().join("; "),
        if .examples.len() < *.count { "; ..." } else { "" }
    )]
    Cannot {
        /// The layout.
        target: &'static str,
        /// How many weights.
        count: usize,
        /// Some of them, and why.
        examples: Vec<(String, String)>,
    },
    /// Both formats in a layout that has one for all layers.
    #[error("{target} has one format for all layers, and these have both; choose with --format")]
    Mixed {
        /// The layout.
        target: &'static str,
    },
    /// A module that is no quantized layer.
    #[error(
        "`{}` is no quantized layer of this checkpoint; `inspect` lists them",
        printable(.module)
    )]
    NoModule {
        /// The name given.
        module: String,
    },
    /// A true shape that cannot be.
    #[error(
        "`{}` is stored as {stored:?}, and cannot be cropped to {wanted:?}; give at most as many \
        rows and columns, of a matrix",
        printable(.module)
    )]
    Crop {
        /// The module.
        module: String,
        /// Its stored shape.
        stored: Vec<usize>,
        /// The shape given.
        wanted: [usize; 2],
    },
    /// A tensor of a type that GGUF has not.
    #[error("tensor `{}` is {dtype}, which GGUF has no type for", printable(.name))]
    NoType {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
    },
    /// Bytes that mean something else in another layout.
    #[error(
        "tensor `{}` has code {code:#x} under scale byte {byte:#04x} at [{row}, {col}], which is \
        {:e} to its own software and {:e} to {target}'s; {elements} elements are like that",
        printable(.tensor), .values[0], .values[1]
    )]
    Changed {
        /// The tensor.
        tensor: String,
        /// Row of the first such element.
        row: u64,
        /// Its column.
        col: u64,
        /// Its code.
        code: u8,
        /// Its scale byte.
        byte: u8,
        /// What it is worth on both sides.
        values: [f32; 2],
        /// How many there are.
        elements: u64,
        /// The layout.
        target: &'static str,
    },
    /// Values that another order of operations would round otherwise.
    #[error(
        "tensor `{}`: {differ} of {values} values would differ by up to {ulps} ulp, for {target}'s \
         software multiplies in another order",
        printable(.tensor)
    )]
    Inexact {
        /// The tensor.
        tensor: String,
        /// Values that differ.
        differ: u64,
        /// Values in all.
        values: u64,
        /// By how much at most.
        ulps: u32,
        /// The layout.
        target: &'static str,
    },
    /// A weight that has no exact form in another format.
    #[error(
        "tensor `{}` has no exact form in {format}: {why} ({groups} groups do not fit); quantize \
        the dense weight instead",
        printable(.tensor)
    )]
    Rescale {
        /// The tensor.
        tensor: String,
        /// The format.
        format: fp4_core::Format,
        /// How many groups do not fit.
        groups: u64,
        /// Why not.
        why: String,
    },
    /// Expert matrices of which nothing tells which dimension is K.
    #[error(
        "the experts of `{}`, {shape:?}, may be stored as (out, in) or as (in, out): neither the \
         model_type nor the sizes in config.json tell; say which",
        printable(.name)
    )]
    Experts {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<usize>,
    },
    /// Weights that were to be quantized and cannot be.
    #[error(
        "{count} of the weights that would be quantized cannot be ({}); leave them out, or do not \
        be strict",
        listed(.examples, *.count > .examples.len())
    )]
    Strict {
        /// How many.
        count: usize,
        /// Some of them, and why not.
        examples: Vec<(String, Reason)>,
    },
    /// Two weights whose states would have the same names.
    #[error(
        "`{}` and `{}` would both be written under `{}`; leave one of them out",
        printable(.first),
        printable(.second),
        printable(.prefix)
    )]
    SamePrefix {
        /// The prefix.
        prefix: String,
        /// A weight.
        first: String,
        /// Another.
        second: String,
    },
    /// A file that gives a report no losses.
    #[error("{}: {error}", text::path(.path))]
    Losses {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: LossesError,
    },
    /// A recipe that cannot be read.
    #[error("the recipe is not valid: {}", printable(.0))]
    Recipe(String),
    /// The rules that the crate carries are damaged.
    #[error("the rules of what is quantized are damaged: {0}; this is a mistake in this crate")]
    Roles(String),
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
    /// It is kept for what it does, as nothing is included.
    #[error("{0}; including it quantizes it")]
    Kept(Kept),
    /// Something else is included.
    #[error("it is not included")]
    NotIncluded,
    /// The recipe keeps it.
    #[error("the recipe keeps it dense")]
    Recipe,
    /// It is named otherwise than a linear weight.
    #[error("its name does not end in `.weight`")]
    Name,
    /// A type that is not quantized.
    #[error("it is {0}, expected F32, F16, BF16 or F8_E4M3 with scales")]
    Type(Dtype),
    /// Blocks of a GGUF file that have no values here.
    #[error(
        "it is {0}, whose blocks are not decoded here; start from another file, or convert the \
         model to safetensors with the software that made it"
    )]
    Blocks(GgmlType),
    /// Blocks of a GGUF file that are FP4 already.
    #[error(
        "it is {0}, which is FP4 already; `fp4 convert --to native` keeps its codes, and \
         `fp4 dequantize` makes it dense"
    )]
    Quantized(GgmlType),
    /// FP8 without the scales that give it its values.
    #[error("it is F8_E4M3, and no scales are beside it, named as `weight_scale_inv` or `scale`")]
    NoScales,
    /// FP8 with scales of a type that is none.
    #[error("its scales `{}` are {got}, expected F32, F16, BF16 or F8_E8M0", printable(.name))]
    ScalesType {
        /// The scales.
        name: String,
        /// Their type.
        got: Dtype,
    },
    /// FP8 with scales that do not fit it.
    #[error("its scales `{}` have shape {got:?}, expected {expected}", printable(.name))]
    ScalesShape {
        /// The scales.
        name: String,
        /// Their shape.
        got: Vec<usize>,
        /// Shapes that would do.
        expected: String,
    },
    /// The scales of a weight that is quantized.
    #[error("a scale of the FP8 bytes of `{}`: used up", printable(.0))]
    ScalesOf(String),
    /// Expert matrices of which nothing tells which dimension is K.
    #[error("nothing tells whether its matrices are (out, in) or (in, out)")]
    Experts(Vec<usize>),
    /// A matrix named as GPT-2's, of which nothing tells whether it is transposed.
    #[error(
        "it is named as a layer of GPT-2, stored (in, out) there and (out, in) elsewhere, and \
        neither config.json nor shapes tell; put the config.json beside it"
    )]
    Transposed,
    /// A tensor of matrices of no size.
    #[error("it has shape {0:?}: nothing is in it")]
    Empty(Vec<usize>),
    /// A shape that is no matrix.
    #[error("it has shape {0:?}, expected two dimensions, or the three of experts")]
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

impl Reason {
    /// Was the tensor to be quantized, had it been possible?
    pub fn is_misfit(&self) -> bool {
        use Reason::*;
        match self {
            Excluded | Kept(_) | NotIncluded | Recipe | Name | Rank(_) | ScalesOf(_) => false,
            Type(_)
            | Blocks(_)
            | Quantized(_)
            | NoScales
            | ScalesType { .. }
            | ScalesShape { .. }
            | Experts(_) => true,
            Transposed | Empty(_) | NotMultiple { .. } | Unloadable(_) => true,
        }
    }
}

/// What a tensor is kept for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The role in a word or two.
    pub role: String,
    /// What it is, in words.
    pub why: String,
    /// Who says that such tensors are kept.
    pub source: String,
}

impl fmt::Display for Kept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.why, self.source)
    }
}

/// `` `name`: reason; ...``
pub fn listed(examples: &[(String, Reason)], more: bool) -> String {
    let listed: Vec<_> =
        examples.iter().map(|(name, why)| format!("`{}`: {why}", printable(name))).collect();
    listed.join("; ") + if more { "; ..." } else { "" }
}

fn and_more(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more)") }
}
