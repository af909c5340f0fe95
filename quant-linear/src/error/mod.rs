//! What can go wrong with a layer or a state, and what to do about it.

#[cfg(feature = "calibrate")]
mod calibrate;
mod checkpoint;
mod gguf;
mod model;

use std::path::{Path, PathBuf};

use fp4_core::{FloatType, Unsupported};
use safetensors::Dtype;

#[cfg(feature = "calibrate")]
pub use calibrate::CalibrateError;
pub use checkpoint::Refusal;
pub use gguf::GgufError;
pub use model::{Kept, ModelError, Reason, listed};

use crate::text::{self, printable};

/// An error of this crate: what was given, what was expected, what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Shapes, formats or settings that the core refuses.
    #[error(transparent)]
    Core(#[from] fp4_core::Error),
    /// The bytes are not a safetensors file.
    #[error(
        "not a valid safetensors file: {}; the file may be cut short or another format, \
         download or export it again",
        printable(&.0.to_string())
    )]
    SafeTensors(#[from] safetensors::SafeTensorError),
    /// A file could not be read or written.
    #[error("{action} {}: {source}", text::path(.path))]
    Io {
        /// What was being done.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A file or a folder that cannot be read as a checkpoint.
    #[error("reading {}: {refusal}", text::path(.path))]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// Why not.
        refusal: Box<Refusal>,
    },
    /// A shard that cannot be read.
    #[error("model.safetensors.index.json names the shard `{}`: {error}", printable(.shard))]
    Shard {
        /// Its name.
        shard: String,
        /// What went wrong.
        error: Box<Error>,
    },
    /// What a calibration was given cannot be used.
    #[cfg(feature = "calibrate")]
    #[error(transparent)]
    Calibrate(#[from] CalibrateError),
    /// What is asked of a model cannot be.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Between ranks that write one output.
    #[error(transparent)]
    Comm(#[from] crate::sharded::CommError),
    /// Ranks that do not write one output.
    #[error(
        "rank {rank} does not do what rank 0 does: {}; start all of them with the same input and \
        settings, on one file system",
        printable(.what)
    )]
    OtherRank {
        /// Which.
        rank: usize,
        /// What it has otherwise, in words.
        what: String,
    },
    /// A weight that could not be quantized.
    #[error("quantizing `{}`: {error}", printable(.name))]
    Weight {
        /// The weight.
        name: String,
        /// What went wrong.
        error: Box<Error>,
    },
    /// Something at the place of an output that an output never replaces.
    #[error(
        "{} is {found}, and {wanted} is to be written there; give another path, or remove it",
        text::path(.path)
    )]
    Place {
        /// Where the output was to be.
        path: PathBuf,
        /// What is there, in words.
        found: &'static str,
        /// What was to be there, in words.
        wanted: &'static str,
    },
    /// Something at the place of an output that was to replace nothing.
    #[error(
        "{} has come into being meanwhile; give another path, or remove it",
        text::path(.path)
    )]
    Occupied {
        /// Where the output was to be.
        path: PathBuf,
    },
    /// Two runs with one output.
    #[error(
        "another run is writing {}; wait until it has ended, or give another path",
        text::path(.path)
    )]
    Busy {
        /// Where the output was to be.
        path: PathBuf,
    },
    /// What was begun cannot be continued by this run.
    #[error(
        "{} was begun with other input or settings: {}; run again with those, or remove that \
        folder to begin anew",
        text::path(.path),
        printable(.what)
    )]
    OtherRun {
        /// The folder of what was begun.
        path: PathBuf,
        /// What differs, in words.
        what: String,
    },
    /// A tensor of the state is missing.
    #[error(
        "tensor `{}` is missing; the state of a quantized layer has at least `e2m1`, \
         `scale_quant` and `weight_global_scale` under its prefix, check the prefix or quantize \
         the model again",
        printable(.name)
    )]
    MissingTensor {
        /// Full name of the tensor.
        name: String,
    },
    /// A tensor whose dense values are asked for, and that has none.
    #[error("tensor `{}` has no dense values: {reason}", printable(.name))]
    NoValues {
        /// Full name of the tensor.
        name: String,
        /// Why not.
        reason: Box<Reason>,
    },
    /// A layer of other software's that lacks a tensor.
    #[error(
        "tensor `{}` is missing, which a {layout} layer has; download or export the checkpoint \
        again",
        printable(.name)
    )]
    Incomplete {
        /// The layout.
        layout: &'static str,
        /// Full name of the tensor.
        name: String,
    },
    /// Tensors that several layouts could explain.
    #[error(
        "`{}` could be {}, and its bytes mean something else in each: {}; name the layout, or give \
         the config.json that belongs to the file",
        printable(.module),
        .layouts.join(" or "),
        printable(.config.as_deref().unwrap_or("neither the header nor a config says which"))
    )]
    Ambiguous {
        /// A module in question.
        module: String,
        /// The layouts that it could have.
        layouts: Vec<&'static str>,
        /// Why the config could not be read, if there is one.
        config: Option<String>,
    },
    /// Two weights of a checkpoint that give layers of the same name.
    #[error(
        "two layers are called `{}`, of the weights `{}` and `{}`: rename the tensors of one",
        printable(.module),
        printable(&.tensors[0]),
        printable(&.tensors[1])
    )]
    SameModule {
        /// The name.
        module: String,
        /// The weights.
        tensors: [String; 2],
    },
    /// A layer whose config says what its weight alone does not, and what is not applied here.
    #[error(
        "layer `{}` goes with {}, which is not applied here: without it the outputs would be \
        wrong; export the model without it",
        printable(.module),
        printable(.what)
    )]
    Untold {
        /// The module.
        module: String,
        /// What it goes with.
        what: String,
    },
    /// An expert that a 3-D weight does not have, or none named.
    #[error(
        "`{}` {}; an expert of a 3-D weight is named `NAME.0`, `NAME.1` and so on",
        printable(.module),
        match (.experts, .expert) {
            (None, _) => "has no experts".into(),
            (Some(experts), &usize::MAX) => format!("holds {experts} experts, and none is named"),
            (Some(experts), expert) => format!("holds {experts} experts, and none is {expert}"),
        }
    )]
    Expert {
        /// The module of the weight.
        module: String,
        /// Experts that it has.
        experts: Option<usize>,
        /// The expert asked for; [`usize::MAX`] for none.
        expert: usize,
    },
    /// A tensor has the wrong type.
    #[error(
        "tensor `{}` is {got}, expected {expected}; export it with that type",
        printable(.name)
    )]
    Dtype {
        /// Full name of the tensor.
        name: String,
        /// Types that would do.
        expected: &'static str,
        /// The type found.
        got: Dtype,
    },
    /// Scale bytes stored as U8, and no scale type given.
    #[error(
        "tensor `{}` is U8, which does not say whether its bytes are e8m0 or e4m3; pass the \
         scale type in the load options",
        printable(.name)
    )]
    ScaleTypeUnknown {
        /// Full name of the tensor.
        name: String,
    },
    /// A tensor has the wrong shape.
    #[error(
        "tensor `{}` has shape {got:?}, expected {}; re-export the state",
        printable(.name),
        printable(.expected)
    )]
    Shape {
        /// Full name of the tensor.
        name: String,
        /// The shape expected, in words.
        expected: String,
        /// The shape found.
        got: Vec<usize>,
    },
    /// A state with a bias that is not zero.
    #[error(
        "tensor `{}` holds a bias that is not zero, and this layer was not asked to apply one: \
         dropping it would change the model; load with `Bias::Apply` to have the layer add it, or \
         with `Bias::Ignore` to add it after the layer yourself",
        printable(.name)
    )]
    Bias {
        /// Full name of the tensor.
        name: String,
    },
    /// The layer was built by shape and has no weight yet.
    #[error(
        "this layer was built empty ({out_features} x {in_features}) and has no weight; load a \
         state first"
    )]
    Empty {
        /// Input features it was built for.
        in_features: usize,
        /// Output features it was built for.
        out_features: usize,
    },
    /// The input's last dimension is not the layer's input features.
    #[error(
        "input of shape {got:?}: the last dimension must be {in_features}, the layer's input \
         features"
    )]
    InputShape {
        /// The layer's input features.
        in_features: usize,
        /// The shape given.
        got: Vec<usize>,
    },
    /// The input buffer does not fill the shape given for it.
    #[error("input buffer holds {got} values, its shape {shape:?} needs {expected}")]
    InputLen {
        /// The shape given.
        shape: Vec<usize>,
        /// Values it needs.
        expected: usize,
        /// Values there are.
        got: usize,
    },
    /// A call of several layers that was not given one of something for each.
    #[error("{layers} layers in one call were given {got} {what}; give one for each layer")]
    GroupedLen {
        /// Of what there is one for each layer.
        what: &'static str,
        /// The number of layers.
        layers: usize,
        /// How many were given.
        got: usize,
    },
    /// A dense weight that does not fill the shape given for it.
    #[error(
        "the weight holds {got} values, and {out_features} x {in_features} (out x in features) \
         are {}; pass the whole weight, row-major, with its own shape",
        out_features.checked_mul(*in_features).map_or("too many".into(), |n| n.to_string())
    )]
    WeightLen {
        /// Rows given.
        out_features: usize,
        /// Columns given.
        in_features: usize,
        /// Values there are.
        got: usize,
    },
    /// No backend can do what is asked.
    #[error(
        "no backend can {role} this: {}; add a backend that can, or change the input",
        printable(.reasons)
    )]
    NoBackend {
        /// `quantize` or `multiply`.
        role: &'static str,
        /// Every backend with its reason.
        reasons: String,
    },
    /// A device named that no backend offers.
    #[error(
        "no backend named `{}` keeps tensors in its own memory; available: {}",
        printable(.name),
        printable(.available)
    )]
    NoDevice {
        /// The name given.
        name: String,
        /// Names that would do.
        available: String,
    },
    /// A name that is none of [`ActivationEncoding`](crate::ActivationEncoding).
    #[error("activations `{}` are unknown; expected fp4, mxint8 or fp4-rows", printable(.got))]
    ActivationsName {
        /// The name.
        got: String,
    },
    /// An `activation_encoding` that is none of those that there are.
    #[error(
        "tensor `{}` is {got}; expected 0 (the weight's own format), 1 (MXINT8) or 2 (NVFP4 with row \
         scales): it is of a newer version, or broken",
        printable(name)
    )]
    ActivationEncoding {
        /// The tensor.
        name: String,
        /// Its value.
        got: u8,
    },
    /// Quantized activations of other settings than the layer's.
    #[error(
        "these activations were quantized with another scale setting or transform than this layer's; \
         quantize them with this layer, or with one that has the same settings"
    )]
    ActivationSettings,
    /// An error of a layer that has a name.
    #[error("layer `{}`: {error}", printable(.name))]
    Layer {
        /// The layer's name.
        name: String,
        /// What went wrong.
        error: Box<Error>,
    },
    /// A transform that is not orthonormal, where it is to be undone.
    #[error(
        "the layer's transform is not orthonormal, and this program was built without the feature \
         `calibrate`, which undoes such; build it with that"
    )]
    NotOrthonormal,
    /// A bias that has not one value for each output.
    #[error("a bias of {got} values, expected {out_features}: one for each output feature")]
    BiasLen {
        /// Output features of the layer.
        out_features: usize,
        /// Values given.
        got: usize,
    },
    /// Tensors were asked of a layer that lives on the host.
    #[error(
        "this layer lives on the host, which has no tensors of its own; move it with `set_device`, \
         or use `forward` on slices"
    )]
    OnHost,
    /// A weight with no columns and more rows than are worth representing.
    #[error("a weight of {rows} rows and no columns; with no columns at most {max} rows are taken")]
    NoColumns {
        /// Rows given.
        rows: usize,
        /// The most rows that are taken.
        max: usize,
    },
    /// An output does not fit the memory.
    #[error("no memory for an output of {len} values; split the leading dimensions")]
    Memory {
        /// Values asked for.
        len: usize,
    },
    /// A tensor of one device was handed to a layer on another.
    #[error(
        "the tensor lives on `{}`, the layer on `{}`; move one of them, and give layers \
         that share tensors clones of one `Backends`",
        printable(.tensor),
        printable(.layer)
    )]
    DeviceMismatch {
        /// Where the tensor is.
        tensor: String,
        /// Where the layer is.
        layer: String,
    },
    /// The type of a device tensor does not fit.
    #[error("the tensor is {got}, expected {expected}")]
    TensorType {
        /// The type expected.
        expected: FloatType,
        /// The tensor's type.
        got: FloatType,
    },
}

impl Error {
    pub(crate) fn checkpoint(path: &Path, refusal: Refusal) -> Self {
        let path = path.to_path_buf();
        match refusal {
            Refusal::System(source) => Error::Io { action: "reading", path, source },
            refusal => Error::Checkpoint { path, refusal: Box::new(refusal) },
        }
    }
}

impl From<Unsupported> for Error {
    fn from(reason: Unsupported) -> Self {
        Error::Core(reason.into())
    }
}
