//! Requests: the checked input of a quantization, and the questions that capability queries ask.

use core::fmt;

use crate::e2m1::TieMode;
use crate::error::{Buffer, Dim, Error};
use crate::float::FloatSlice;
use crate::format::{FloatType, Format, GroupSize, ScaleType};
use crate::packed::PackedShape;
use crate::spec::QuantSpec;
use crate::transform::{Transform, TransformShape};

/// A dense (rows, k) matrix with the settings to quantize it by, checked to fit together.
#[derive(Clone, Copy)]
pub struct QuantizeInput<'a> {
    x: FloatSlice<'a>,
    shape: PackedShape,
    spec: QuantSpec,
    transform: Option<Transform<'a>>,
    scales: Option<&'a [u8]>,
}

/// Shapes and settings.
impl fmt::Debug for QuantizeInput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantizeInput")
            .field("x", &self.x)
            .field("shape", &self.shape)
            .field("spec", &self.spec)
            .field("transform", &self.transform)
            .field("given_scales", &self.scales.is_some())
            .finish()
    }
}

impl<'a> QuantizeInput<'a> {
    /// The row-major values `x` of a (rows, k) matrix under `spec`.
    ///
    /// # Errors
    /// [`Error::Len`] unless there are rows * k values; [`Error::KNotWholeGroups`];
    /// [`Error::ShapeOverflow`].
    pub fn new(
        x: impl Into<FloatSlice<'a>>,
        rows: usize,
        k: usize,
        spec: &QuantSpec,
    ) -> Result<Self, Error> {
        let x = x.into();
        let shape = spec.shape(rows, k)?;
        x.expect_len(Buffer::Input, rows * k)?;
        Ok(QuantizeInput { x, shape, spec: *spec, transform: None, scales: None })
    }

    /// The same input, transformed per block before it is quantized (C5).
    ///
    /// # Errors
    /// [`Error::TransformShape`] if the transform does not fit k.
    pub fn with_transform(self, transform: Option<Transform<'a>>) -> Result<Self, Error> {
        if let Some(t) = &transform {
            t.expect_k(self.shape.k())?;
        }
        Ok(QuantizeInput { transform, ..self })
    }

    /// The same input with scale bytes given, (rows, k / G) row-major, instead of computed (C4.2).
    ///
    /// # Errors
    /// [`Error::Len`] unless there is one byte for each group.
    pub fn with_scales(self, scales: &'a [u8]) -> Result<Self, Error> {
        let (expected, got) = (self.shape.scales_len(), scales.len());
        if got != expected {
            return Err(Error::Len { what: Buffer::Scales, expected, got });
        }
        Ok(QuantizeInput { scales: Some(scales), ..self })
    }

    /// The values.
    pub fn x(&self) -> FloatSlice<'a> {
        self.x
    }

    /// Shape and format of the quantized matrix.
    pub fn shape(&self) -> PackedShape {
        self.shape
    }

    /// The settings.
    pub fn spec(&self) -> &QuantSpec {
        &self.spec
    }

    /// The transform, if any.
    pub fn transform(&self) -> Option<&Transform<'a>> {
        self.transform.as_ref()
    }

    /// The given scale bytes, if any.
    pub fn scales(&self) -> Option<&'a [u8]> {
        self.scales
    }

    /// The input as a capability query.
    pub fn query(&self) -> QuantizeQuery {
        QuantizeQuery {
            rows: self.shape.rows(),
            k: self.shape.k(),
            scale_type: self.shape.scale_type(),
            group: self.shape.group(),
            tie: self.spec.tie(),
            input: self.x.float_type(),
            transform: self.transform.map(|t| t.shape()),
            given_scales: self.scales.is_some(),
        }
    }

    /// Checks that `out` has the shape and format that this input quantizes to.
    ///
    /// # Errors
    /// [`Error::FormatMismatch`] or [`Error::ShapeMismatch`].
    pub fn expect_output(&self, out: PackedShape) -> Result<(), Error> {
        self.shape.expect_same_format(&out)?;
        for (what, expected, got) in
            [(Dim::Rows, self.shape.rows(), out.rows()), (Dim::K, self.shape.k(), out.k())]
        {
            if expected != got {
                return Err(Error::ShapeMismatch { what, expected, got });
            }
        }
        Ok(())
    }
}

/// What a quantization asks of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantizeQuery {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub k: usize,
    /// Type of the scale bytes.
    pub scale_type: ScaleType,
    /// Elements that share a scale.
    pub group: GroupSize,
    /// How a value between two codes is rounded.
    pub tie: TieMode,
    /// Type of the values.
    pub input: FloatType,
    /// The transform, if any.
    pub transform: Option<TransformShape>,
    /// True if the scale bytes are given, not computed.
    pub given_scales: bool,
}

/// What a matmul asks of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatmulQuery {
    /// Format of both operands.
    pub format: Format,
    /// Rows of A.
    pub m: usize,
    /// Rows of B.
    pub n: usize,
    /// Elements of a row of either.
    pub k: usize,
    /// Type of the output.
    pub output: FloatType,
}

/// How many outputs each kind of path computed. All are exact; they differ in time.
///
/// A backend may account per tile or row: the counts are of outputs in the tiles that a path
/// touched last, so they add up to M * N.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Paths {
    /// Outputs of the backend's fastest integer path.
    pub narrow: u64,
    /// Outputs that needed several integer planes.
    pub planes: u64,
    /// Outputs of the widest path: 64-bit, f64 where proved, or the full accumulator.
    pub wide: u64,
}

impl Paths {
    /// Adds the counts of another part.
    pub fn merge(&mut self, other: &Paths) {
        self.narrow += other.narrow;
        self.planes += other.planes;
        self.wide += other.wide;
    }
}
