//! Settings of a quantization, checked once.

use fp4_core::{Element, Encoding, Format, GroupSize, PackedShape, QuantSpec, ScaleType, TieMode};
use pyo3::prelude::*;

use crate::error::{Failure, parse};

/// Checked settings of a quantization: format, global scale, scale-scale, tie mode, row scales.
#[pyclass(frozen, eq, module = "exact_fp4")]
#[derive(Clone, PartialEq)]
pub(crate) struct Spec(pub(crate) QuantSpec);

impl Spec {
    /// Shape and format of a (rows, k) matrix.
    pub(crate) fn shape(&self, rows: usize, k: usize) -> Result<PackedShape, Failure> {
        Ok(self.0.shape(rows, k)?)
    }
}

#[pymethods]
impl Spec {
    #[new]
    #[pyo3(signature = (
        format = None, *, scale_type = None, group_size = None, global_scale = None,
        scale_scale = None, tie = "even", row_scales = false
    ))]
    fn new(
        format: Option<&str>,
        scale_type: Option<&str>,
        group_size: Option<usize>,
        global_scale: Option<f32>,
        scale_scale: Option<f32>,
        tie: &str,
        row_scales: bool,
    ) -> Result<Self, Failure> {
        let tie: TieMode = parse(tie)?;
        let spec = match (format, scale_type, group_size) {
            (Some(format), None, None) => {
                let usual = QuantSpec::of(parse::<Encoding>(format)?);
                if usual.element() == Element::Int8 {
                    if global_scale.is_some() || scale_scale.is_some() || tie != TieMode::Even {
                        return Err(Failure::new(
                            "mxint8 has no global scale, no scale-scale and ties to even only; \
                             leave them out",
                        ));
                    }
                    usual
                } else {
                    QuantSpec::new(
                        usual.scale_type(),
                        usual.group(),
                        global_scale.unwrap_or(usual.global_scale()),
                        scale_scale.unwrap_or(usual.scale_scale()),
                    )?
                }
            }
            (None, Some(scale_type), Some(group)) => QuantSpec::new(
                parse::<ScaleType>(scale_type)?,
                GroupSize::new(group)?,
                global_scale.unwrap_or(1.0),
                scale_scale.unwrap_or(1.0),
            )?,
            _ => {
                return Err(Failure::new(
                    "give a format (mxfp4, nvfp4 or mxint8), or scale_type and group_size",
                ));
            }
        };
        let spec = spec.with_tie(tie);
        Ok(Spec(if row_scales { spec.with_row_scales()? } else { spec }))
    }

    /// The usual settings of a weight whose largest magnitude, after the transform, is `amax`.
    #[staticmethod]
    fn for_weight(format: &str, amax: f32) -> Result<Self, Failure> {
        Ok(Spec(QuantSpec::for_weight(parse::<Format>(format)?, amax)?))
    }

    /// The name of what a matmul would call it, or `None`: mxfp4, nvfp4 or mxint8.
    #[getter]
    fn format(&self) -> Option<&'static str> {
        self.0.encoding().map(Encoding::name)
    }

    /// How an element is stored: e2m1 or int8.
    #[getter]
    fn element(&self) -> &'static str {
        self.0.element().name()
    }

    /// Type of the scale bytes: e8m0 or e4m3.
    #[getter]
    fn scale_type(&self) -> &'static str {
        self.0.scale_type().name()
    }

    /// Elements that share a scale.
    #[getter]
    fn group_size(&self) -> usize {
        self.0.group().get()
    }

    /// The global scale.
    #[getter]
    fn global_scale(&self) -> f32 {
        self.0.global_scale()
    }

    /// The scale-scale.
    #[getter]
    fn scale_scale(&self) -> f32 {
        self.0.scale_scale()
    }

    /// How a value between two codes is rounded: even, zero, down or up.
    #[getter]
    fn tie(&self) -> &'static str {
        self.0.tie().name()
    }

    /// Whether each row has a global scale of its own.
    #[getter]
    fn row_scales(&self) -> bool {
        self.0.row_scales()
    }

    /// Elements that one byte holds: 2, or 1 of MXINT8.
    #[getter]
    fn per_byte(&self) -> usize {
        self.0.element().per_byte()
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let made = py.import("exact_fp4._core")?.getattr("_spec")?;
        let s = &self.0;
        let arguments = (
            s.format_name(),
            s.scale_type().name(),
            s.group().get(),
            s.global_scale(),
            s.scale_scale(),
            s.tie().name(),
            s.row_scales(),
        );
        Ok((made, arguments.into_pyobject(py)?.into_any()))
    }

    fn __hash__(&self) -> u64 {
        let s = &self.0;
        u64::from(s.global_scale().to_bits()) << 32 | u64::from(s.scale_scale().to_bits())
    }

    fn __repr__(&self) -> String {
        let s = &self.0;
        let head = match s.encoding() {
            Some(encoding) => format!("'{encoding}'"),
            None => format!("scale_type='{}', group_size={}", s.scale_type(), s.group()),
        };
        if s.element() == Element::Int8 {
            return format!("Spec({head})");
        }
        let rows = if s.row_scales() { "True" } else { "False" };
        format!(
            "Spec({head}, global_scale={:?}, scale_scale={:?}, tie='{}', row_scales={rows})",
            s.global_scale(),
            s.scale_scale(),
            s.tie(),
        )
    }
}

/// The name of MXINT8, whose settings are its own; other settings are given by their parts.
trait Named {
    fn format_name(&self) -> Option<&'static str>;
}

impl Named for QuantSpec {
    fn format_name(&self) -> Option<&'static str> {
        (self.element() == Element::Int8).then(|| Encoding::MxInt8.name())
    }
}

/// A [`Spec`] from its parts, for `pickle`.
#[pyfunction]
pub(crate) fn _spec(
    format: Option<&str>,
    scale_type: &str,
    group_size: usize,
    global_scale: f32,
    scale_scale: f32,
    tie: &str,
    row_scales: bool,
) -> Result<Spec, Failure> {
    match format {
        Some(format) => Spec::new(Some(format), None, None, None, None, tie, row_scales),
        None => {
            let (scale_type, group) = (Some(scale_type), Some(group_size));
            let (global, own) = (Some(global_scale), Some(scale_scale));
            Spec::new(None, scale_type, group, global, own, tie, row_scales)
        }
    }
}
