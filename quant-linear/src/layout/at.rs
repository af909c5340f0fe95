//! The tensors of one module, as a layout looks at them.

use fp4_core::{Format, PackedShape, ScaleType, Swizzle};
use safetensors::Dtype;

use crate::checkpoint::TensorSource;
use crate::error::Error;
use crate::layer::state::{self, join};
use crate::layout::ScaleOrder;

/// A module of a source.
#[derive(Clone, Copy)]
pub struct At<'a> {
    /// Where the tensors are.
    pub source: &'a dyn TensorSource,
    /// The module's name, the prefix of its tensors.
    pub module: &'a str,
}

/// Names and types of the codes and scale bytes of a matrix.
pub(super) struct Matrix<'a> {
    /// The layout, for errors.
    pub(super) layout: &'static str,
    /// Name of the codes.
    pub(super) codes: String,
    /// Codes in each of their elements: 2 in a byte, 8 in a word.
    pub(super) per_element: usize,
    /// The type of the codes.
    pub(super) code_type: Dtype,
    /// Name of the scale bytes.
    pub(super) scales: String,
    /// Types that they may have.
    pub(super) scale_types: &'a [Dtype],
    /// What they are.
    pub(super) scale_type: ScaleType,
    /// Their order.
    pub(super) order: ScaleOrder,
}

impl<'a> At<'a> {
    /// The full name of one of the module's tensors.
    pub fn name(&self, suffix: &str) -> String {
        join(self.module, suffix)
    }

    /// Type and shape of one of the module's tensors. A tensor in blocks of ggml's has none here.
    pub fn head(&self, suffix: &str) -> Option<(Dtype, Vec<usize>)> {
        let name = self.name(suffix);
        self.source
            .header(&name)
            .filter(|_| self.source.ggml_type(&name).is_none_or(|ty| ty.dtype().is_some()))
    }

    /// The type of one of the module's tensors.
    pub fn dtype(&self, suffix: &str) -> Option<Dtype> {
        self.head(suffix).map(|(dtype, _)| dtype)
    }

    /// Is there a tensor of this name?
    pub fn has(&self, suffix: &str) -> bool {
        self.head(suffix).is_some()
    }

    /// The tool that the config names, lower case.
    pub fn method(&self) -> Option<String> {
        self.source.config().quant_method()
    }

    /// A scalar of shape () or (1).
    pub(super) fn scalar(&self, suffix: &str) -> Result<Option<f32>, Error> {
        state::scalar(self.source, &self.name(suffix))
    }

    /// Scales in a vector: one, or one for each expert.
    pub(super) fn one_or_each(
        &self,
        suffix: &str,
        experts: usize,
    ) -> Result<Option<Vec<f32>>, Error> {
        let name = self.name(suffix);
        let Some((dtype, shape)) = self.source.header(&name) else { return Ok(None) };
        if dtype != Dtype::F32 {
            return Err(Error::Dtype { name, expected: "F32", got: dtype });
        }
        let count: usize = shape.iter().product();
        if shape.len() > 1 || count != 1 && count != experts {
            let expected = format!("(1), or one for each of {experts} experts");
            return Err(Error::Shape { name, expected, got: shape });
        }
        let bytes = self.source.bytes(&name)?;
        let values = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        Ok(Some(values.collect()))
    }

    /// A scalar that must be there.
    pub(super) fn needed(&self, layout: &'static str, suffix: &str) -> Result<f32, Error> {
        self.scalar(suffix)?.ok_or_else(|| incomplete(layout, self.name(suffix)))
    }

    /// Names of those of these tensors that are there.
    pub(super) fn present(&self, suffixes: &[&str]) -> Vec<String> {
        let names = suffixes.iter().map(|suffix| self.name(suffix));
        names.filter(|name| self.source.header(name).is_some()).collect()
    }

    /// The shape of a packed matrix, from the types and shapes of its two tensors.
    pub(super) fn shape(&self, matrix: &Matrix<'_>) -> Result<PackedShape, Error> {
        match self.stacked(matrix)? {
            (None, shape) => Ok(shape),
            (Some(_), _) => {
                let (name, got) = (&matrix.codes, self.source.header(&matrix.codes));
                let expected = format!("(out, in / {})", matrix.per_element);
                let got = got.map(|(_, shape)| shape).unwrap_or_default();
                Err(Error::Shape { name: name.clone(), expected, got })
            }
        }
    }

    /// As [`shape`](Self::shape), of a matrix or of the matrices of experts below each other; the
    /// number of experts.
    pub(super) fn stacked(
        &self,
        matrix: &Matrix<'_>,
    ) -> Result<(Option<usize>, PackedShape), Error> {
        let Matrix { layout, codes, scales, scale_type, .. } = matrix;
        let head = |name: &String| {
            self.source.header(name).ok_or_else(|| incomplete(layout, name.clone()))
        };
        let (code_dtype, code_shape) = head(codes)?;
        let (scale_dtype, scale_shape) = head(scales)?;
        if code_dtype != matrix.code_type {
            let expected = expected(&[matrix.code_type]);
            return Err(Error::Dtype { name: codes.clone(), expected, got: code_dtype });
        }
        if !matrix.scale_types.contains(&scale_dtype) {
            let expected = expected(matrix.scale_types);
            return Err(Error::Dtype { name: scales.clone(), expected, got: scale_dtype });
        }
        let (experts, out, elements) = match code_shape[..] {
            [out, elements] => (None, out, elements),
            [experts, out, elements] => (Some(experts), out, elements),
            _ => {
                let expected = format!("([experts,] out, in / {})", matrix.per_element);
                return Err(Error::Shape { name: codes.clone(), expected, got: code_shape });
            }
        };
        let rows = stacked_rows(codes, experts.unwrap_or(1), out)?;
        let overflow = fp4_core::Error::ShapeOverflow { rows, cols: elements };
        let k = elements.checked_mul(matrix.per_element).ok_or(overflow)?;
        let format = format_of(*scale_type);
        let shape = PackedShape::of(format, rows, k)?;
        let [want_rows, want_cols] = match matrix.order {
            ScaleOrder::Rows => [rows, shape.row_groups()],
            ScaleOrder::Swizzled => {
                let swizzle = Swizzle::new(rows, shape.row_groups())?;
                [swizzle.padded_rows(), swizzle.padded_cols()]
            }
        };
        let want: Vec<usize> = match experts {
            Some(experts) => vec![experts, out, want_cols],
            None => vec![want_rows, want_cols],
        };
        if scale_shape != want {
            let group = format.group();
            let expected = format!(
                "{want:?}: one scale for each group of {group} of `{codes}`, \
                 which has {code_shape:?}"
            );
            return Err(Error::Shape { name: scales.clone(), expected, got: scale_shape });
        }
        Ok((experts, shape))
    }
}

/// The most experts of no rows that are taken: they cost no byte of a file, and each is a layer.
const MAX_EMPTY_EXPERTS: usize = 1 << 16;

/// The rows of all experts of a 3-D tensor.
pub(super) fn stacked_rows(name: &str, experts: usize, out: usize) -> Result<usize, Error> {
    let rows = experts.checked_mul(out).filter(|&rows| rows > 0 || experts <= MAX_EMPTY_EXPERTS);
    rows.ok_or_else(|| Error::Shape {
        name: name.into(),
        expected: format!("fewer experts: at most {MAX_EMPTY_EXPERTS} without rows"),
        got: vec![experts, out],
    })
}

/// A tensor that a layer of this layout needs and lacks.
pub(super) fn incomplete(layout: &'static str, name: String) -> Error {
    Error::Incomplete { layout, name }
}

fn expected(types: &[Dtype]) -> &'static str {
    match types {
        [Dtype::U8] => "U8",
        [Dtype::I8] => "I8",
        [Dtype::U32] => "U32",
        [Dtype::F8_E8M0] => "F8_E8M0",
        [Dtype::F8_E4M3] => "F8_E4M3",
        _ => "U8 or F8_E8M0",
    }
}

/// The module of a tensor of this name: `MODULE.suffix`, or the suffix alone at the root.
pub(super) fn module_of<'n>(tensor: &'n str, suffix: &str) -> Option<&'n str> {
    let module = tensor.strip_suffix(suffix)?;
    if module.is_empty() { Some("") } else { module.strip_suffix('.') }
}

/// The format with these scale bytes.
pub(super) fn format_of(scale_type: ScaleType) -> Format {
    match scale_type {
        ScaleType::E8M0 => Format::MxFp4,
        ScaleType::E4M3 => Format::NvFp4,
    }
}
