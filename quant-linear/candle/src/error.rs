//! What can go wrong: what was given, what was expected, what to do.

use candle_core::DType;
use quant_linear::text::printable;

/// An error of this package. As a [`candle_core::Error`] it keeps its text.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An error of the layer, of a checkpoint, or of a pattern.
    #[error(transparent)]
    Layer(#[from] quant_linear::Error),
    /// An error of candle.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor of a type that layers do not take.
    #[error("the {what} is of type {got:?}, and is to be F32, F16 or BF16: call to_dtype on it")]
    DType {
        /// Which tensor.
        what: &'static str,
        /// Its type.
        got: DType,
    },
    /// A tensor that is not in host memory.
    #[error(
        "the {what} is on {got}, and is to be on the CPU: call to_device on it, or wrap the \
         layer in OverHost, which copies inputs and outputs"
    )]
    Device {
        /// Which tensor.
        what: &'static str,
        /// Where it is.
        got: String,
    },
    /// A view that shows more than there is.
    #[error(
        "a view of shape {shape:?} reaches beyond its storage of {len} values: it was not made by \
         candle's own operations"
    )]
    Storage {
        /// Shape of the view.
        shape: Vec<usize>,
        /// Values in the storage.
        len: usize,
    },
    /// Too little memory.
    #[error("no memory for {len} values gathered from a view: give fewer rows at once")]
    Memory {
        /// How many.
        len: usize,
    },
    /// A weight that is no matrix.
    #[error("a dense weight of shape {got:?}, and it is to be (out, in): reshape it")]
    WeightShape {
        /// Its shape.
        got: Vec<usize>,
    },
    /// A bias of another length than the output features.
    #[error("a bias of shape {got:?}, and it is to be ({out_features}): one value for each output")]
    BiasShape {
        /// Output features.
        out_features: usize,
        /// Its shape.
        got: Vec<usize>,
    },
    /// A gradient was asked for.
    #[error(
        "no gradient passes an FP4 layer, which is for inference: call detach on its input, or \
         train the dense layer"
    )]
    Backward,
    /// No quantized layer of this name.
    #[error("there is no quantized layer `{}`: {found}", printable(.name))]
    Missing {
        /// The name.
        name: String,
        /// What there is, in words.
        found: String,
    },
    /// A layer of other features than the model has.
    #[error(
        "the layer `{}` of the layout {layout} is ({}, {}), and the model asks for ({}, {}), \
         (out, in): config and checkpoint do not belong to one model",
        printable(.name), got[0], got[1], expected[0], expected[1]
    )]
    Features {
        /// The layer.
        name: String,
        /// Its layout.
        layout: &'static str,
        /// (out, in) of the model.
        expected: [usize; 2],
        /// (out, in) of the checkpoint.
        got: [usize; 2],
    },
    /// A layer without the bias that the model asks for.
    #[error(
        "the layer `{}` has no bias in the checkpoint, and the model asks for one: ask with \
         bias = false",
        printable(.name)
    )]
    NoBias {
        /// The layer.
        name: String,
    },
    /// A layer with a bias that the model does not ask for.
    #[error(
        "the layer `{}` has a bias in the checkpoint that is not zero, and the model asks for \
         none: ask with bias = true, or load with Bias::Ignore",
        printable(.name)
    )]
    Bias {
        /// The layer.
        name: String,
    },
    /// A dense tensor of a type that candle has no values of.
    #[error(
        "the tensor `{}` is of type {got}, of which there are no dense values here: dequantize the \
         checkpoint with `fp4 dequantize`",
        printable(.name)
    )]
    TensorType {
        /// The tensor.
        name: String,
        /// Its type.
        got: String,
    },
    /// A pattern by which nothing was swapped.
    #[error(
        "nothing was swapped by the pattern `{}`: {found}",
        printable(.pattern)
    )]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What there is, in words.
        found: String,
    },
    /// A model that shows two layers of one name.
    #[error(
        "the model shows two linear layers named `{}`: name each by its path", printable(.name)
    )]
    NameTwice {
        /// The name.
        name: String,
    },
}

impl From<Error> for candle_core::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Candle(error) => error,
            error => candle_core::Error::wrap(error),
        }
    }
}

impl From<quant_linear::model::ModelError> for Error {
    fn from(error: quant_linear::model::ModelError) -> Self {
        Error::Layer(error.into())
    }
}

/// The first few names of a list, and how many there are.
pub(crate) fn names<'a>(all: impl ExactSizeIterator<Item = &'a str>) -> String {
    /// How many are shown.
    const SHOWN: usize = 5;
    let count = all.len();
    let shown: Vec<_> = all.take(SHOWN).map(|name| format!("`{}`", printable(name))).collect();
    let rest = if count > shown.len() { ", ..." } else { "" };
    format!("{}{rest}", shown.join(", "))
}
