//! The state of a layer as named tensors, in and out of safetensors.
//!
//! | name | type | shape |
//! |---|---|---|
//! | `e2m1` | U8 | (out, in / 2) |
//! | `scale_quant` | F8_E8M0 or F8_E4M3 (U8 with the type given) | (out, in / G) |
//! | `transform` | F32, F16 or BF16; may be absent | (Bt, Bt) or (in / Bt, Bt, Bt) |
//! | `weight_global_scale` | F32 (F16, BF16, F64 read too) | () or (1) |
//! | `activation_global_scale` | as above; may be absent | () or (1) |
//! | `activation_scale_scale` | as above; may be absent | () or (1) |
//! | `activation_encoding` | U8, 0 to 2 ([`ActivationEncoding`]); may be absent: 0 | () or (1) |
//! | `bias` | F32, F16 or BF16; may be absent | (out) |
//!
//! Names are joined to a prefix with a dot, as in `encoder.layer.0.output.dense.e2m1`. Bytes are
//! moved verbatim ([C9]): saving a loaded state gives the same bytes.
//!
//! [C9]: fp4_core::contract#c9

use std::borrow::Cow;
use std::fmt;
use std::path::Path;

use fp4_core::{FloatType, GroupSize, PackedShape, QuantSpec, ScaleType, TransformShape};
use safetensors::{Dtype, View};

use crate::atomic;
use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::{ActivationEncoding, Contents, QuantLinear};
use fp4_core::FloatVec;

/// Name of the packed codes.
pub const E2M1: &str = "e2m1";
/// Name of the scale bytes.
pub const SCALE_QUANT: &str = "scale_quant";
/// Name of the transform.
pub const TRANSFORM: &str = "transform";
/// Name of the weight's global scale.
pub const WEIGHT_GLOBAL_SCALE: &str = "weight_global_scale";
/// Name of the activations' global scale.
pub const ACTIVATION_GLOBAL_SCALE: &str = "activation_global_scale";
/// Name of the activations' scale-scale.
pub const ACTIVATION_SCALE_SCALE: &str = "activation_scale_scale";
/// Name of how activations are quantized.
pub const ACTIVATION_ENCODING: &str = "activation_encoding";
/// Name of a bias.
pub const BIAS: &str = "bias";

/// One tensor of a state.
#[derive(Clone, PartialEq)]
pub struct StateTensor<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    data: Cow<'a, [u8]>,
}

/// Type and shape.
impl fmt::Debug for StateTensor<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?}", self.dtype, self.shape)
    }
}

impl StateTensor<'_> {
    /// The tensor's type.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The tensor's shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The tensor's bytes, little-endian.
    pub fn data(&self) -> &[u8] {
        &self.data
    }
}

impl View for StateTensor<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// What to do with a bias of a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Bias {
    /// A bias that is not zero is an error: dropping it silently would make a wrong model.
    #[default]
    Refuse,
    /// It is dropped; the caller adds it after the layer.
    Ignore,
    /// The layer adds it to every output, before the last rounding (C6).
    Apply,
}

/// The safetensors type of scale bytes.
pub fn scale_dtype(scale_type: ScaleType) -> Dtype {
    match scale_type {
        ScaleType::E8M0 => Dtype::F8_E8M0,
        ScaleType::E4M3 => Dtype::F8_E4M3,
    }
}

/// The safetensors type of dense values.
pub fn float_dtype(ty: FloatType) -> Dtype {
    match ty {
        FloatType::F32 => Dtype::F32,
        FloatType::F16 => Dtype::F16,
        FloatType::Bf16 => Dtype::BF16,
    }
}

/// The dense type of a safetensors type, if it is one of the three.
pub fn float_type(dtype: Dtype) -> Option<FloatType> {
    match dtype {
        Dtype::F32 => Some(FloatType::F32),
        Dtype::F16 => Some(FloatType::F16),
        Dtype::BF16 => Some(FloatType::Bf16),
        _ => None,
    }
}

/// `prefix.name`, or `name` alone.
pub fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_string() } else { format!("{prefix}.{name}") }
}

impl QuantLinear {
    /// The layer's state: names under `prefix`, with real types. All three scalars are written,
    /// and `activation_encoding` where it is not 0.
    ///
    /// # Errors
    /// [`Error::Empty`] if the layer has no weight.
    pub fn state_dict(&self, prefix: &str) -> Result<Vec<(String, StateTensor<'_>)>, Error> {
        let loaded = self.loaded()?;
        let shape = loaded.weight.shape();
        let scalar = |value: f32| StateTensor {
            dtype: Dtype::F32,
            shape: vec![],
            data: value.to_le_bytes().to_vec().into(),
        };
        let bytes = |dtype, cols, data: Vec<u8>| StateTensor {
            dtype,
            shape: vec![shape.rows(), cols],
            data: data.into(),
        };
        let (codes, scales) = self.weight()?.into_parts();
        let scale_dtype = scale_dtype(shape.scale_type());
        let mut state = vec![
            (join(prefix, E2M1), bytes(Dtype::U8, shape.row_bytes(), codes)),
            (join(prefix, SCALE_QUANT), bytes(scale_dtype, shape.row_groups(), scales)),
            (join(prefix, WEIGHT_GLOBAL_SCALE), scalar(self.weight_global_scale())),
            (join(prefix, ACTIVATION_GLOBAL_SCALE), scalar(self.activation_global_scale())),
            (join(prefix, ACTIVATION_SCALE_SCALE), scalar(self.activation_scale_scale())),
        ];
        // A state that asks for nothing else is as it was before there was anything else.
        if self.activations() != ActivationEncoding::Own {
            let data = vec![self.activations().byte()].into();
            let tensor = StateTensor { dtype: Dtype::U8, shape: vec![], data };
            state.push((join(prefix, ACTIVATION_ENCODING), tensor));
        }
        if let Some(t) = self.transform() {
            let tensor = StateTensor {
                dtype: float_dtype(t.values().float_type()),
                shape: t.shape().to_vec(),
                data: t.values().to_le_bytes().into(),
            };
            state.push((join(prefix, TRANSFORM), tensor));
        }
        if let Some(bias) = self.bias() {
            let data: Vec<u8> = bias.iter().flat_map(|b| b.to_le_bytes()).collect();
            let (dtype, shape) = (Dtype::F32, vec![bias.len()]);
            state.push((join(prefix, BIAS), StateTensor { dtype, shape, data: data.into() }));
        }
        Ok(state)
    }

    /// Writes the state to a safetensors file: beside it first, then renamed.
    ///
    /// # Errors
    /// [`Error::Empty`], an I/O error, or something at `path` that is no file ([`atomic`]); an
    /// existing file is then as it was.
    pub fn save(&self, path: &Path, prefix: &str) -> Result<(), Error> {
        let bytes = safetensors::serialize(self.state_dict(prefix)?, None)?;
        atomic::write_bytes(path, &bytes)
    }

    /// True while no state has been loaded.
    pub fn is_empty(&self) -> bool {
        matches!(self.contents, Contents::Empty { .. })
    }
}

/// A tensor of a source, its bytes not yet read.
struct Found<'a> {
    source: &'a dyn TensorSource,
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
}

impl<'a> Found<'a> {
    fn bytes(&self) -> Result<Cow<'a, [u8]>, Error> {
        self.source.bytes(&self.name)
    }

    fn wrong_dtype(&self, expected: &'static str) -> Error {
        Error::Dtype { name: self.name.clone(), expected, got: self.dtype }
    }
}

fn optional(source: &dyn TensorSource, name: String) -> Option<Found<'_>> {
    let (dtype, shape) = source.header(&name)?;
    Some(Found { source, name, dtype, shape })
}

/// Shape, group size and scale type of the layer under `prefix`, from the types and shapes of its
/// codes and scale bytes alone. `given` is the type of scale bytes stored as U8.
///
/// # Errors
/// [`Error::Dtype`], [`Error::ScaleTypeUnknown`] or [`Error::Shape`] naming the tensor;
/// [`Error::Core`] for a group size that is none.
pub fn packed_shape(
    prefix: &str,
    (codes_dtype, codes_shape): (Dtype, Vec<usize>),
    (scales_dtype, scales_shape): (Dtype, Vec<usize>),
    given: Option<ScaleType>,
) -> Result<PackedShape, Error> {
    let (codes, scales) = (join(prefix, E2M1), join(prefix, SCALE_QUANT));
    if codes_dtype != Dtype::U8 {
        let expected = "U8 (two codes a byte)";
        return Err(Error::Dtype { name: codes, expected, got: codes_dtype });
    }
    let scale_type = match (scales_dtype, given) {
        (Dtype::F8_E8M0, _) => ScaleType::E8M0,
        (Dtype::F8_E4M3, _) => ScaleType::E4M3,
        (Dtype::U8, Some(given)) => given,
        (Dtype::U8, None) => return Err(Error::ScaleTypeUnknown { name: scales }),
        (got, _) => {
            let expected = "F8_E8M0, F8_E4M3, or U8 with the scale type given";
            return Err(Error::Dtype { name: scales, expected, got });
        }
    };
    let wrong = |name: &String, expected: String, got: &Vec<usize>| Error::Shape {
        name: name.clone(),
        expected,
        got: got.clone(),
    };
    let &[rows, bytes] = &codes_shape[..] else {
        return Err(wrong(&codes, "(out, in / 2)".into(), &codes_shape));
    };
    let wrong_scales = || {
        let groups = "one scale for each group of 16, 32, 64 or 128";
        let expected =
            format!("(out, in / group), {groups} of `{codes}`, which has {codes_shape:?}");
        wrong(&scales, expected, &scales_shape)
    };
    let [scale_rows, groups] = match scales_shape[..] {
        [scale_rows, groups] => [scale_rows, groups],
        _ => return Err(wrong_scales()),
    };
    let overflow = fp4_core::Error::ShapeOverflow { rows, cols: bytes };
    let k = bytes.checked_mul(2).ok_or(overflow)?;
    if scale_rows != rows {
        return Err(wrong_scales());
    }
    let group = match (k, groups) {
        // No columns: the group size cannot be told, so it is the format's own.
        (0, 0) => match scale_type {
            ScaleType::E8M0 => GroupSize::G32,
            ScaleType::E4M3 => GroupSize::G16,
        },
        _ if groups != 0 && k.is_multiple_of(groups) => {
            GroupSize::new(k / groups).map_err(|_| wrong_scales())?
        }
        _ => return Err(wrong_scales()),
    };
    Ok(PackedShape::new(rows, k, scale_type, group)?)
}

/// Types that a transform may have.
const TRANSFORM_TYPES: &str = "F32, F16 or BF16";

/// What the transform `name` is like, from its type and shape alone.
///
/// # Errors
/// [`Error::Dtype`] or [`Error::Shape`] naming the tensor.
pub fn transform_shape(name: &str, dtype: Dtype, shape: &[usize]) -> Result<TransformShape, Error> {
    let Some(float_type) = float_type(dtype) else {
        return Err(Error::Dtype { name: name.into(), expected: TRANSFORM_TYPES, got: dtype });
    };
    let (block, blocks) = match *shape {
        [rows, cols] if rows == cols => (GroupSize::new(cols), None),
        [blocks, rows, cols] if rows == cols => (GroupSize::new(cols), Some(blocks)),
        _ => (Err(fp4_core::Error::TransformBlock { got: 0 }), None),
    };
    let block = block.map_err(|_| Error::Shape {
        name: name.into(),
        expected: "(Bt, Bt) or (blocks, Bt, Bt) with Bt 16, 32, 64 or 128".into(),
        got: shape.to_vec(),
    })?;
    Ok(TransformShape { block, blocks, float_type })
}

/// Reads a scalar of shape () or (1): f16 and bf16 widen exactly, f64 rounds once.
pub(crate) fn scalar(state: &dyn TensorSource, name: &str) -> Result<Option<f32>, Error> {
    let Some(tensor) = optional(state, name.to_string()) else { return Ok(None) };
    if !matches!(tensor.shape[..], [] | [1]) {
        let expected = "() or (1)".into();
        return Err(Error::Shape { name: name.into(), expected, got: tensor.shape });
    }
    let expected = "F32, F64, F16 or BF16";
    let value = match (tensor.dtype, &*tensor.bytes()?) {
        (Dtype::F64, &[a, b, c, d, e, f, g, h]) => {
            f64::from_le_bytes([a, b, c, d, e, f, g, h]) as f32
        }
        (dtype, bytes) => float_type(dtype)
            .and_then(|ty| FloatVec::from_le_bytes(ty, bytes))
            .and_then(|v| v.as_slice().get_f32(0))
            .ok_or_else(|| tensor.wrong_dtype(expected))?,
    };
    Ok(Some(value))
}

/// Reads how activations are quantized; the weight's own format if the state does not say.
fn activations(state: &dyn TensorSource, name: &str) -> Result<ActivationEncoding, Error> {
    let Some(tensor) = optional(state, name.to_string()) else {
        return Ok(ActivationEncoding::Own);
    };
    if !matches!(tensor.shape[..], [] | [1]) {
        let expected = "() or (1)".into();
        return Err(Error::Shape { name: name.into(), expected, got: tensor.shape });
    }
    if tensor.dtype != Dtype::U8 {
        return Err(tensor.wrong_dtype("U8"));
    }
    let got = tensor.bytes()?.first().copied().unwrap_or_default();
    let known = ActivationEncoding::ALL.into_iter().find(|activations| activations.byte() == got);
    known.ok_or(Error::ActivationEncoding { name: name.into(), got })
}

/// Checks that a weight of this shape, a transform and the scalars make a layer, and resolves the
/// settings of the activations.
///
/// # Errors
/// As [`QuantLinear::from_parts`].
pub fn check(
    shape: PackedShape,
    transform: Option<TransformShape>,
    scalars: &Scalars,
) -> Result<QuantSpec, Error> {
    shape.expect_format()?;
    if shape.k() == 0 && shape.rows() > MAX_ROWS_OF_NOTHING {
        return Err(Error::NoColumns { rows: shape.rows(), max: MAX_ROWS_OF_NOTHING });
    }
    if let Some(TransformShape { block, blocks, .. }) = transform {
        let (k, block) = (shape.k(), block.get());
        let fits = match blocks {
            None => k.is_multiple_of(block),
            Some(n) => n.checked_mul(block) == Some(k),
        };
        if !fits {
            return Err(fp4_core::Error::TransformShape { k, block, blocks }.into());
        }
    }
    let new = |gs, ss| QuantSpec::new(shape.scale_type(), shape.group(), gs, ss);
    // The weight's own scale must be legal too; 1 stands in for its unknown scale-scale.
    new(scalars.weight_global_scale, 1.0)?;
    let own = new(
        scalars.activation_global_scale.unwrap_or(scalars.weight_global_scale),
        scalars.activation_scale_scale.unwrap_or(1.0),
    )?;
    scalars.activations.check(shape, own)?;
    Ok(own)
}

/// The scalars of a state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scalars {
    /// Global scale of the weight.
    pub weight_global_scale: f32,
    /// Global scale of activations; `None` takes the weight's.
    pub activation_global_scale: Option<f32>,
    /// Scale-scale of activations; `None` takes 1.
    pub activation_scale_scale: Option<f32>,
    /// How activations are quantized.
    pub activations: ActivationEncoding,
}

impl Scalars {
    /// Reads the scalars of the layer under a prefix.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Dtype`] or [`Error::Shape`] naming the tensor.
    pub fn read(source: &dyn TensorSource, prefix: &str) -> Result<Self, Error> {
        let name = join(prefix, WEIGHT_GLOBAL_SCALE);
        Ok(Scalars {
            weight_global_scale: scalar(source, &name)?.ok_or(Error::MissingTensor { name })?,
            activation_global_scale: scalar(source, &join(prefix, ACTIVATION_GLOBAL_SCALE))?,
            activation_scale_scale: scalar(source, &join(prefix, ACTIVATION_SCALE_SCALE))?,
            activations: activations(source, &join(prefix, ACTIVATION_ENCODING))?,
        })
    }
}

/// Rows that a weight with no columns may have: they cost memory for metadata and no file bytes.
///
/// A file of a few bytes can name as many as it likes, so the bound is what costs next to nothing.
const MAX_ROWS_OF_NOTHING: usize = 1 << 16;

/// The bias of the layer under `prefix`, (out), widened to f32, as the options ask: `None` if there
/// is none to apply.
///
/// # Errors
/// [`Error::Bias`] for one that is not zero and refused; [`Error::Dtype`] or [`Error::Shape`] for
/// one to be applied that cannot be.
pub fn read_bias(
    state: &dyn TensorSource,
    prefix: &str,
    rows: Rows,
    asked: Bias,
) -> Result<Option<Vec<f32>>, Error> {
    let Some(bias) = StoredBias::find(state, prefix) else { return Ok(None) };
    let StoredBias { tensor, experts, expert } = &bias;
    let float_type = float_type(tensor.dtype);
    match asked {
        Bias::Ignore => Ok(None),
        Bias::Refuse => {
            let bytes = tensor.bytes()?;
            let zero = match float_type {
                Some(ty) => widened(ty, &bytes).is_some_and(|v| v.iter().all(|&b| b == 0.0)),
                // -0.0 in other types is not worth a decoder: all bits zero is zero in every type.
                None => bytes.iter().all(|&b| b == 0),
            };
            if zero { Ok(None) } else { Err(Error::Bias { name: tensor.name.clone() }) }
        }
        Bias::Apply => {
            let wrong = || tensor.wrong_dtype("F32, F16 or BF16");
            let ty = float_type.ok_or_else(wrong)?;
            let out_features = match (rows, &tensor.shape[..]) {
                (Rows::AtMost(most), &[rows]) if rows <= most => rows,
                (Rows::Exactly(rows) | Rows::AtMost(rows), _) => rows,
            };
            let stored = match experts {
                None => vec![out_features],
                Some(experts) => vec![*experts, out_features],
            };
            if tensor.shape != stored {
                let (name, got) = (tensor.name.clone(), tensor.shape.clone());
                let experts = experts.map_or(String::new(), |experts| format!("{experts}, "));
                let expected =
                    format!("({experts}{out_features}), one value for each output feature");
                return Err(Error::Shape { name, expected, got });
            }
            let len = out_features * ty.bytes();
            let bytes = tensor.source.range(&tensor.name, expert * len..(expert + 1) * len)?;
            let mut bias = widened(ty, &bytes).ok_or_else(wrong)?;
            bias.resize(rows.stored(), 0.0);
            Ok(Some(bias))
        }
    }
}

/// How many values a bias must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One for each output feature.
    Exactly(usize),
    /// At most so many: the weight's rows are padded, and those of the padding have none.
    AtMost(usize),
}

impl Rows {
    fn stored(self) -> usize {
        match self {
            Rows::Exactly(rows) | Rows::AtMost(rows) => rows,
        }
    }
}

/// A bias, perhaps that of one expert among those of all.
struct StoredBias<'a> {
    tensor: Found<'a>,
    experts: Option<usize>,
    expert: usize,
}

impl<'a> StoredBias<'a> {
    /// `PREFIX.bias`, or, of an expert `NAME.3`, a row of `NAME_bias`.
    fn find(source: &'a dyn TensorSource, prefix: &str) -> Option<Self> {
        if let Some(tensor) = optional(source, join(prefix, BIAS)) {
            return Some(StoredBias { tensor, experts: None, expert: 0 });
        }
        let (name, expert) = prefix.rsplit_once('.')?;
        let expert = expert.parse().ok()?;
        let tensor = optional(source, format!("{name}_{BIAS}"))?;
        match tensor.shape[..] {
            [experts, _] if expert < experts => {
                Some(StoredBias { tensor, experts: Some(experts), expert })
            }
            _ => None,
        }
    }
}

/// Values of a type, widened exactly.
fn widened(ty: FloatType, bytes: &[u8]) -> Option<Vec<f32>> {
    match FloatVec::from_le_bytes(ty, bytes)?.converted(FloatType::F32) {
        FloatVec::F32(values) => Some(values),
        _ => None,
    }
}
