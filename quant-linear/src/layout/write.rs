//! What a weight becomes in another layout: new tensors, and where their bytes come from.

use fp4_core::{Format, PackedShape, ScaleType};
use safetensors::Dtype;

use crate::layer::ActivationEncoding;
use crate::layer::state::join;
use crate::layout::{
    Activations, Arithmetic, Global, KvCache, Nibbles, Order, ScaleOrder, TransformHeader,
};

/// A weight to be held: a layer, one expert of it, or experts that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Held<'a> {
    /// The module's name.
    pub module: &'a str,
    /// The name that the dense weight has.
    pub tensor: &'a str,
    /// The number of experts, whose rows are below each other in `shape`.
    pub experts: Option<usize>,
    /// Shape and format.
    pub shape: PackedShape,
    /// Global scale of the weight: one for all, or one for each expert.
    pub globals: &'a [Global],
    /// Global scale of the activations, where one is stored.
    pub inputs: Option<&'a [Global]>,
    /// Scale-scale of the activations, where one is stored.
    pub activation_scale_scale: Option<f32>,
    /// How a layer here quantizes activations.
    pub activation_encoding: ActivationEncoding,
    /// What its own software means where it stores no scale of activations and no scale-scale.
    pub unstored: Option<fp4_core::QuantSpec>,
    /// The transform of activations.
    pub transform: Option<&'a TransformHeader>,
    /// Name of a vector that multiplies the activations' features first.
    pub pre_scale: Option<(&'a str, Dtype)>,
    /// What the config says of the layer that its weight alone does not, unless that config is
    /// kept.
    pub untold: Option<&'a str>,
}

/// Where the bytes of a new tensor come from.
#[derive(Debug, Clone, PartialEq)]
pub enum Fill {
    /// The codes.
    Codes(Nibbles),
    /// The scale bytes.
    Scales(ScaleOrder),
    /// Both, in ggml's blocks of this scale type.
    Blocks(ScaleType),
    /// These.
    Bytes(Vec<u8>),
    /// A tensor of the source, as it is.
    Tensor(String),
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub struct NewTensor {
    /// Its name.
    pub name: String,
    /// Its type; that of bytes for ggml's blocks.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where its bytes come from.
    pub fill: Fill,
}

/// A weight in a layout.
#[derive(Debug, Clone)]
pub struct Written {
    /// Its tensors.
    pub tensors: Vec<NewTensor>,
    /// How the layout's software computes its values.
    pub arithmetic: Arithmetic,
    /// The global scale as it takes it: one for all, or one for each expert.
    pub globals: Vec<f32>,
}

/// Why a layout cannot hold a weight.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Another format.
    #[error("it holds no {0} weights")]
    Format(Format),
    /// Experts with scales of their own.
    #[error("it stores one global scale, and the {0} experts of this tensor have several")]
    Scalars(usize),
    /// A global scale that it has no place for.
    #[error("it stores no global scale, and this weight has {0:e}")]
    Global(f32),
    /// A transform that it has no place for.
    #[error("it stores no transform of activations, and this layer has one ({0})")]
    Transform(String),
    /// Activations in a way that does not fit the weight.
    #[error("its layers cannot quantize activations to {encoding}: {why}")]
    Activations {
        /// The way.
        encoding: ActivationEncoding,
        /// Why not.
        why: String,
    },
    /// A layout for 3-D experts only.
    #[error("it holds 3-D expert tensors only, and this is one matrix")]
    Matrix,
    /// A shape that it cannot hold.
    #[error("it holds {0}")]
    Shape(String),
}

/// A layer as it has been written.
#[derive(Debug, Clone)]
pub struct DoneLayer {
    /// The module's name.
    pub module: String,
    /// Its format.
    pub format: Format,
    /// True if a global scale of activations is stored.
    pub input: bool,
    /// How the source quantizes activations.
    pub activations: Activations,
    /// Block of the transform.
    pub transform: Option<usize>,
    /// Names of the new tensors.
    pub tensors: Vec<String>,
}

/// Everything that has been written.
#[derive(Debug, Clone, Default)]
pub struct Done<'a> {
    /// The layers.
    pub layers: &'a [DoneLayer],
    /// Modules with a dense matrix, in order.
    pub dense: &'a [String],
    /// Names of all other tensors.
    pub others: &'a [String],
    /// How the source quantizes the cache of keys and values.
    pub kv_cache: Option<&'a KvCache>,
}

impl DoneLayer {
    /// Are its activations to be quantized to its own format? Those of NVFP4 need a stored scale.
    pub fn quantizes(&self) -> bool {
        self.activations == Activations::Same && (self.format == Format::MxFp4 || self.input)
    }

    /// [`Activations::Same`] or [`Activations::Dense`], by [`quantizes`](Self::quantizes).
    pub(super) fn same_or_dense(&self) -> Activations {
        if self.quantizes() { Activations::Same } else { Activations::Dense }
    }
}

impl Done<'_> {
    /// The formats that there are.
    pub fn formats(&self) -> Vec<Format> {
        let has = |format: &Format| self.layers.iter().any(|layer| layer.format == *format);
        Format::ALL.into_iter().filter(has).collect()
    }
}

impl Held<'_> {
    /// Refuses other formats than these.
    pub(super) fn expect_format(&self, formats: &[Format]) -> Result<Format, Refused> {
        match self.shape.format() {
            Some(format) if formats.contains(&format) => Ok(format),
            Some(format) => Err(Refused::Format(format)),
            None => Err(Refused::Shape("groups of 32 with e8m0 or of 16 with e4m3 scales".into())),
        }
    }

    /// Refuses transforms.
    pub(super) fn expect_no_transform(&self) -> Result<(), Refused> {
        match (self.transform, self.pre_scale) {
            (Some(t), _) => Err(Refused::Transform(t.name.clone())),
            (None, Some((name, _))) => Err(Refused::Transform(name.into())),
            (None, None) => Ok(()),
        }
    }

    /// The one global scale.
    pub(super) fn one(&self) -> Result<Global, Refused> {
        let first = self.globals.first().copied().unwrap_or(Global::ONE);
        let differs = |global: &Global| global.multiplier() != first.multiplier();
        match self.globals.iter().any(differs) {
            true => Err(Refused::Scalars(self.globals.len())),
            false => Ok(first),
        }
    }

    /// Refuses global scales other than 1.
    pub(super) fn expect_no_global(&self) -> Result<(), Refused> {
        let other = self.globals.iter().map(|global| global.multiplier()).find(|&g| g != 1.0);
        other.map_or(Ok(()), |global| Err(Refused::Global(global)))
    }

    /// The one global scale of the activations.
    pub(super) fn input(&self) -> Result<Option<Global>, Refused> {
        let Some(inputs) = self.inputs else { return Ok(None) };
        let one = Held { globals: inputs, ..*self };
        one.one().map(Some)
    }

    /// Full name of one of the module's tensors.
    pub(super) fn name(&self, suffix: &str) -> String {
        join(self.module, suffix)
    }

    /// The codes, two a byte.
    pub(super) fn codes(&self, name: String, nibbles: Nibbles, dtype: Dtype) -> NewTensor {
        let shape = vec![self.shape.rows(), self.shape.row_bytes()];
        NewTensor { name, dtype, shape, fill: Fill::Codes(nibbles) }
    }

    /// The scale bytes, row-major.
    pub(super) fn scales(&self, name: String, dtype: Dtype) -> NewTensor {
        let shape = vec![self.shape.rows(), self.shape.row_groups()];
        NewTensor { name, dtype, shape, fill: Fill::Scales(ScaleOrder::Rows) }
    }

    /// The bytes as they are under one global scale of 1.
    pub(super) fn written(&self, tensors: Vec<NewTensor>, arithmetic: Arithmetic) -> Written {
        Written { tensors, arithmetic, globals: vec![1.0] }
    }
}

/// An f32 scalar.
pub(super) fn scalar(name: String, shape: Vec<usize>, value: f32) -> NewTensor {
    NewTensor { name, dtype: Dtype::F32, shape, fill: Fill::Bytes(value.to_le_bytes().into()) }
}

/// The safetensors type that says what scale bytes are.
pub(super) fn scale_dtype(scale_type: ScaleType) -> Dtype {
    crate::layer::state::scale_dtype(scale_type)
}

/// An arithmetic that knows no global scale.
pub(super) const fn no_global(scale: super::ScaleBytes) -> Arithmetic {
    Arithmetic::new(Order::ScaleTimes, scale)
}
