//! Requests: the checked input of a quantization, and the questions that capability queries ask.

use core::fmt;

use crate::e2m1::TieMode;
use crate::epilogue::Epilogue;
use crate::error::{Buffer, Error, Unsupported};
use crate::float::FloatSlice;
use crate::format::{Element, Encoding, FloatType, GroupSize, ScaleType};
use crate::packed::{PackedMut, PackedShape};
use crate::rule::ScaleRule;
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
    /// [`Error::Len`] unless there is one byte for each group; [`Unsupported::GivenScales`] for
    /// MXINT8, whose scales are computed (C10).
    pub fn with_scales(self, scales: &'a [u8]) -> Result<Self, Error> {
        if self.spec.element() == Element::Int8 {
            return Err(Unsupported::GivenScales.into());
        }
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
        QuantizeQuery::new(self.shape, &self.spec, self.x.float_type())
            .with_transform(self.transform.map(|t| t.shape()))
            .with_given_scales(self.scales.is_some())
    }

    /// Checks that `out` has room for row scales if they are asked for.
    ///
    /// # Errors
    /// [`Error::Len`].
    pub fn expect_row_scales(&self, out: &PackedMut<'_>) -> Result<(), Error> {
        let (expected, got) = (self.shape.rows(), out.row_scales().map_or(0, <[f32]>::len));
        if self.spec.row_scales() && got != expected {
            return Err(Error::Len { what: Buffer::RowScales, expected, got });
        }
        Ok(())
    }

    /// Checks that `out` has the shape and format that this input quantizes to.
    ///
    /// # Errors
    /// [`Error::FormatMismatch`] or [`Error::ShapeMismatch`].
    pub fn expect_output(&self, out: PackedShape) -> Result<(), Error> {
        self.shape.expect_same(&out)
    }
}

/// What a quantization asks of a backend.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct QuantizeQuery {
    /// Rows.
    pub rows: usize,
    /// Elements of a row.
    pub k: usize,
    /// How one element is stored.
    pub element: Element,
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
    /// How the scale bytes are computed.
    pub rule: ScaleRule,
    /// True if each row has a global scale of its own.
    pub row_scales: bool,
}

impl QuantizeQuery {
    /// A quantization to a matrix of this shape, under `spec`, of values of type `input`, with no
    /// transform and computed scales.
    pub const fn new(shape: PackedShape, spec: &QuantSpec, input: FloatType) -> Self {
        QuantizeQuery {
            rows: shape.rows(),
            k: shape.k(),
            element: shape.element(),
            scale_type: shape.scale_type(),
            group: shape.group(),
            tie: spec.tie(),
            input,
            transform: None,
            given_scales: false,
            rule: spec.rule(),
            row_scales: spec.row_scales(),
        }
    }

    /// Checks that the elements are e2m1, for backends that write no others.
    ///
    /// # Errors
    /// [`Unsupported::Element`].
    pub const fn expect_e2m1(&self) -> Result<(), Unsupported> {
        match self.element {
            Element::E2m1 => Ok(()),
            Element::Int8 => Err(Unsupported::Element(Element::Int8)),
        }
    }

    /// Checks that the settings are those that every backend has had from the first: e2m1 elements,
    /// the rule `Nearest` and no row scales. For backends that do no more.
    ///
    /// # Errors
    /// [`Unsupported::Element`], [`Unsupported::ScaleRule`] or [`Unsupported::RowScales`].
    pub const fn expect_plain(&self) -> Result<(), Unsupported> {
        if let Err(no) = self.expect_e2m1() {
            return Err(no);
        }
        match (self.rule, self.row_scales) {
            (ScaleRule::Nearest, false) => Ok(()),
            (ScaleRule::Nearest, true) => Err(Unsupported::RowScales),
            (rule, _) => Err(Unsupported::ScaleRule(rule)),
        }
    }

    /// Checks that no scale byte is to be computed by another rule than `Nearest`, for backends
    /// that know no others.
    ///
    /// # Errors
    /// [`Unsupported::ScaleRule`].
    pub const fn expect_nearest(&self) -> Result<(), Unsupported> {
        match (self.rule, self.given_scales) {
            (ScaleRule::Nearest, _) | (_, true) => Ok(()),
            (rule, false) => Err(Unsupported::ScaleRule(rule)),
        }
    }

    /// The same with this transform, if any.
    #[must_use]
    pub const fn with_transform(self, transform: Option<TransformShape>) -> Self {
        QuantizeQuery { transform, ..self }
    }

    /// The same with the scale bytes given, or not.
    #[must_use]
    pub const fn with_given_scales(self, given_scales: bool) -> Self {
        QuantizeQuery { given_scales, ..self }
    }
}

/// What a matmul asks of a backend.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatmulQuery {
    /// Encoding of A.
    pub a: Encoding,
    /// Encoding of B.
    pub b: Encoding,
    /// Rows of A.
    pub m: usize,
    /// Rows of B.
    pub n: usize,
    /// Elements of a row of either.
    pub k: usize,
    /// Type of the output.
    pub output: FloatType,
    /// True if alpha is multiplied by a scale for each row of A.
    pub row_scales: bool,
    /// True if a bias is added.
    pub bias: bool,
}

impl MatmulQuery {
    /// A product of shape `[m, n, k]` of two operands in the same encoding, by alpha alone.
    pub fn new(encoding: impl Into<Encoding>, [m, n, k]: [usize; 3], output: FloatType) -> Self {
        let b = encoding.into();
        MatmulQuery { a: b, b, m, n, k, output, row_scales: false, bias: false }
    }

    /// The same with A in this encoding.
    #[must_use]
    pub fn with_a(self, a: impl Into<Encoding>) -> Self {
        MatmulQuery { a: a.into(), ..self }
    }

    /// The same with row scales, or without.
    #[must_use]
    pub const fn with_row_scales(self, row_scales: bool) -> Self {
        MatmulQuery { row_scales, ..self }
    }

    /// The same with a bias, or without.
    #[must_use]
    pub const fn with_bias(self, bias: bool) -> Self {
        MatmulQuery { bias, ..self }
    }

    /// Checks that both operands are in one encoding, for backends that multiply no others.
    ///
    /// # Errors
    /// [`Unsupported::Encodings`].
    pub fn expect_same_encoding(&self) -> Result<(), Unsupported> {
        if self.a == self.b { Ok(()) } else { Err(Unsupported::Encodings { a: self.a, b: self.b }) }
    }

    /// Checks that alpha is all of the epilogue, for backends that do no more.
    ///
    /// # Errors
    /// [`Unsupported::RowScales`] or [`Unsupported::Bias`].
    pub const fn expect_alpha_only(&self) -> Result<(), Unsupported> {
        match (self.row_scales, self.bias) {
            (true, _) => Err(Unsupported::RowScales),
            (false, true) => Err(Unsupported::Bias),
            (false, false) => Ok(()),
        }
    }

    /// The same with what this epilogue has.
    #[must_use]
    pub const fn with_epilogue(self, epilogue: &Epilogue<'_>) -> Self {
        let (row_scales, bias) = (epilogue.row_scales.is_some(), epilogue.bias.is_some());
        MatmulQuery { row_scales, bias, ..self }
    }
}

/// How many outputs each kind of path computed. All are exact; they differ in time.
///
/// A backend may account per tile or row: the counts are of outputs in the tiles that a path
/// touched last, so they add up to M * N.
#[non_exhaustive]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
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
    /// Counts of the three kinds.
    pub const fn new(narrow: u64, planes: u64, wide: u64) -> Self {
        Paths { narrow, planes, wide }
    }

    /// Adds the counts of another part.
    pub fn merge(&mut self, other: &Paths) {
        self.narrow += other.narrow;
        self.planes += other.planes;
        self.wide += other.wide;
    }
}
