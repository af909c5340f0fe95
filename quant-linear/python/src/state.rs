//! The state of a layer as Python hands it over: tensors by name, borrowed for the call.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use numpy::PyArray1;
use pyo3::prelude::*;
use quant_linear::checkpoint::TensorSource;
use quant_linear::layout::{self, LoadOptions};
use quant_linear::safetensors::View;
use quant_linear::{Bias, Dtype, Error};

use crate::arrays::{Bytes, bytes, out_bytes};
use crate::error::{Failure, parse};

/// Tensors by name: the type's name in safetensors, the shape, the bytes.
pub(crate) type Given<'py> = HashMap<String, (String, Vec<usize>, Bytes<'py>)>;

/// A tensor as Python gets it.
pub(crate) type Taken<'py> = (String, Vec<usize>, Bound<'py, PyArray1<u8>>);

/// A tensor, borrowed.
pub(crate) struct Borrowed<'a> {
    dtype: Dtype,
    shape: &'a [usize],
    data: &'a [u8],
}

impl View for &Borrowed<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.data)
    }

    fn data_len(&self) -> usize {
        self.data.len()
    }
}

/// Tensors by name, borrowed.
pub(crate) struct State<'a>(pub(crate) BTreeMap<&'a str, Borrowed<'a>>);

impl<'a> State<'a> {
    /// Borrows the tensors that Python hands over.
    ///
    /// # Errors
    /// A type that safetensors does not have, bytes that do not fill the shape.
    pub(crate) fn of(given: &'a Given<'_>) -> Result<Self, Failure> {
        let tensor = |(name, (dtype, shape, array)): (&'a String, &'a (String, Vec<usize>, _))| {
            let known = serde_json::from_value(serde_json::Value::String(dtype.clone()));
            let dtype: Dtype = known.map_err(|_| {
                let dtype = dtype.escape_debug();
                Failure::new(format!("tensor `{}` is of no type: {dtype}", name.escape_debug()))
            })?;
            let data = bytes(array)?;
            let elements = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
            let bits = elements.and_then(|n| n.checked_mul(dtype.bitsize()));
            if bits != data.len().checked_mul(8) {
                let (name, len) = (name.escape_debug(), data.len());
                return Err(Failure::new(format!(
                    "tensor `{name}` has {len} bytes, which do not fill {dtype}{shape:?}"
                )));
            }
            Ok((name.as_str(), Borrowed { dtype, shape, data }))
        };
        Ok(State(given.iter().map(tensor).collect::<Result<_, _>>()?))
    }
}

impl TensorSource for State<'_> {
    fn header(&self, name: &str) -> Option<(Dtype, Vec<usize>)> {
        self.0.get(name).map(|tensor| (tensor.dtype, tensor.shape.to_vec()))
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, Error> {
        let tensor = self.0.get(name);
        let tensor = tensor.ok_or_else(|| Error::MissingTensor { name: name.to_string() })?;
        Ok(Cow::Borrowed(tensor.data))
    }
}

/// A tensor for Python.
pub(crate) fn taken(py: Python<'_>, dtype: Dtype, shape: Vec<usize>, data: Vec<u8>) -> Taken<'_> {
    (dtype.to_string(), shape, out_bytes(py, data))
}

/// What a state does not say for itself, by name: layout, scale type, activations, bias, foreign.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct Options {
    layout: Option<String>,
    scale_type: Option<String>,
    activations: Option<String>,
    bias: String,
    foreign: bool,
}

impl Options {
    /// The options that the names mean.
    ///
    /// # Errors
    /// A name that is none.
    pub(crate) fn read(&self) -> Result<LoadOptions, Failure> {
        let named = |name: &String| {
            layout::named(name).ok_or_else(|| {
                let names: Vec<_> = layout::ALL.iter().map(|layout| layout.name()).collect();
                let (name, names) = (name.escape_debug(), names.join(", "));
                Failure::new(format!("no layout is named `{name}`; there are {names}"))
            })
        };
        Ok(LoadOptions {
            layout: self.layout.as_ref().map(named).transpose()?,
            scale_type: self.scale_type.as_deref().map(parse).transpose()?,
            activations: match &self.activations {
                Some(name) => Some(name.parse()?),
                None => None,
            },
            bias: match &*self.bias {
                "refuse" => Bias::Refuse,
                "ignore" => Bias::Ignore,
                "apply" => Bias::Apply,
                other => {
                    let other = other.escape_debug();
                    let text = format!("bias `{other}`; expected refuse, ignore or apply");
                    return Err(Failure::new(text));
                }
            },
            foreign: self.foreign,
        })
    }
}

/// Writes tensors to a safetensors file: beside it first, then renamed.
///
/// # Errors
/// An I/O error, a name or type that the format does not have.
pub(crate) fn write(path: PathBuf, state: &State<'_>) -> Result<(), Failure> {
    let data = quant_linear::safetensors::serialize(state.0.iter().map(|(n, t)| (*n, t)), None)?;
    Ok(quant_linear::atomic::write_bytes(&path, &data)?)
}
