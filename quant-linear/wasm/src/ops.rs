//! The functions on arrays: quantize, dequantize, matmul, swizzle.

use fp4_core::{
    Element, Encoding, OwnedTransform, PackedMatrix, PackedView, QuantSpec, QuantizeInput,
    Quantizer, ScaleRule, Swizzle, TieMode,
};
#[cfg(feature = "kernels")]
use js_sys::Float32Array;
use js_sys::{Object, Uint8Array};
use wasm_bindgen::prelude::*;

use crate::arguments::{self, Options, TRANSFORMS, area, bytes, count, floats, json, set, zeros};
use crate::call::{Answer, Failure, run};

/// What [`quantize`] may be told.
const SETTINGS: [&str; 6] = ["format", "rule", "globalScale", "scaleScale", "transform", "tie"];

/// What computes.
#[cfg(feature = "kernels")]
fn backend() -> fp4_backend_cpu_simd::CpuSimd {
    fp4_backend_cpu_simd::CpuSimd::new()
}

/// What quantizes without kernels: the same bits.
#[cfg(not(feature = "kernels"))]
fn backend() -> fp4_core::reference::Reference {
    fp4_core::reference::Reference
}

/// A packed matrix that JavaScript holds.
pub(crate) struct Packed {
    matrix: PackedMatrix,
    pub(crate) global_scale: f32,
}

/// The settings of a quantization: those of a scale rule, or the usual ones.
fn spec(
    options: &Options,
    amax: impl FnOnce() -> Result<f32, Failure>,
) -> Result<QuantSpec, Failure> {
    options.needed("format")?;
    let encoding = options.named::<Encoding>("format")?.unwrap_or(Encoding::MxFp4);
    let rule = options.named::<ScaleRule>("rule")?;
    let tie = options.named::<TieMode>("tie")?;
    let (gs, ss) = (options.float("globalScale")?, options.float("scaleScale")?);
    let usual = QuantSpec::of(encoding);
    if usual.element() == Element::Int8 {
        if rule.is_some() || tie.is_some() || gs.is_some() || ss.is_some() {
            return Err(Failure::new(
                "mxint8 has no rule, tie, globalScale or scaleScale to choose; leave them out",
            ));
        }
        return Ok(usual);
    }
    let ruled = match (rule, encoding.format()) {
        (Some(rule), Some(format)) if gs.is_none() => {
            let amax = if rule.needs_amax(format) { amax()? } else { 0.0 };
            QuantSpec::by_rule(format, rule, amax)?
        }
        (Some(rule), _) => {
            rule.expect_for(usual.scale_type())?;
            usual.with_tie(rule.tie(usual.scale_type())).with_rule(rule)?
        }
        (None, _) => usual,
    };
    let gs = gs.unwrap_or(ruled.global_scale());
    let ss = ss.unwrap_or(ruled.scale_scale());
    let own = QuantSpec::new(ruled.scale_type(), ruled.group(), gs, ss)?;
    Ok(own.with_tie(tie.unwrap_or(ruled.tie())).with_rule(ruled.rule())?)
}

/// Quantizes rows * cols values: codes, scale bytes and what they were made by.
#[wasm_bindgen]
pub fn quantize(x: &JsValue, rows: &JsValue, cols: &JsValue, options: &JsValue) -> Answer<JsValue> {
    run(|| {
        let options = Options::new(options, "options", &SETTINGS)?;
        let (rows, cols) = (count(rows, "rows")?, count(cols, "cols")?);
        let x = floats(x, "x")?;
        let expected = area(rows, cols)?;
        if x.len() != expected {
            let got = x.len();
            return Err(Failure::new(format!(
                "x has {got} values, expected {rows} x {cols} = {expected}; give rows and cols of x"
            )));
        }
        let block = arguments::transform(&options, "transform")?;
        let transform = block.map(OwnedTransform::hadamard).transpose()?;
        let transform = transform.as_ref().map(OwnedTransform::view).transpose()?;
        let spec = spec(&options, || {
            Ok(quant_linear::transformed_amax((&x[..]).into(), cols, transform.as_ref())?)
        })?;
        let input = QuantizeInput::new(&x[..], rows, cols, &spec)?.with_transform(transform)?;
        let mut matrix = packed(input.shape())?;
        let counts = backend().quantize(&input, &mut matrix.view_mut())?;
        let out: JsValue = Object::new().into();
        set(&out, "format", spec.encoding().map_or("none", Encoding::name));
        set(&out, "rows", rows as f64);
        set(&out, "cols", cols as f64);
        set(&out, "globalScale", f64::from(spec.global_scale()));
        set(&out, "scaleScale", f64::from(spec.scale_scale()));
        set(&out, "rule", spec.rule().name());
        set(&out, "tie", spec.tie().name());
        let name = TRANSFORMS.iter().find(|(_, known, _)| *known == block);
        set(&out, "transform", name.map_or("none", |(name, ..)| name));
        set(&out, "codes", Uint8Array::from(matrix.codes()));
        set(&out, "scales", Uint8Array::from(matrix.scales()));
        let told = serde_json::json!({
            "elements": counts.elements, "groups": counts.groups, "clipped": counts.clipped,
            "scaleMax": counts.scale_max, "flushed": counts.flushed,
            "nanGroups": counts.nan_groups,
        });
        set(&out, "counts", json(&told)?);
        Ok(out)
    })
}

/// An empty matrix, or an error where there is no memory for it.
fn packed(shape: fp4_core::PackedShape) -> Result<PackedMatrix, Failure> {
    let (codes, scales) = (zeros(shape.codes_len())?, zeros(shape.scales_len())?);
    Ok(PackedMatrix::new(shape, codes, scales)?)
}

/// The most rows of a matrix that has no columns.
const MOST_EMPTY_ROWS: usize = 1 << 20;

impl Packed {
    /// What [`quantize`] gave, or what has the same properties.
    ///
    /// # Errors
    /// Properties that are missing or of another type, lengths that do not fit.
    pub(crate) fn of(value: &JsValue, what: &'static str) -> Result<Self, Failure> {
        let object = Options::any(value, what)?;
        object.needed("format")?;
        let encoding = object.named::<Encoding>("format")?.unwrap_or(Encoding::MxFp4);
        let needed = |name: &str| object.needed(name);
        let ((rows, of), (cols, of_cols)) = (needed("rows")?, needed("cols")?);
        let (rows, cols) = (count(&rows, &of)?, count(&cols, &of_cols)?);
        let ((codes, of), (scales, of_scales)) = (needed("codes")?, needed("scales")?);
        let shape = fp4_core::PackedShape::encoded(encoding, rows, cols)?;
        // Rows without a column have no bytes whose length would bound them.
        if cols == 0 && rows > MOST_EMPTY_ROWS {
            let text = format!(
                "{what} has {rows} rows of no columns; at most {MOST_EMPTY_ROWS} such are taken"
            );
            return Err(Failure::new(text));
        }
        let (codes, scales) = (bytes(&codes, &of)?, bytes(&scales, &of_scales)?);
        let told = |error| Failure::new(format!("{what}: {error}"));
        let matrix = PackedMatrix::new(shape, codes, scales).map_err(told)?;
        let global_scale = object.float("globalScale")?.unwrap_or(1.0);
        Ok(Packed { matrix, global_scale })
    }

    /// The matrix, borrowed.
    pub(crate) fn view(&self) -> PackedView<'_> {
        self.matrix.view()
    }
}

/// Values of a packed matrix, under its global scale.
#[cfg(feature = "kernels")]
#[wasm_bindgen]
pub fn dequantize(q: &JsValue) -> Answer<Float32Array> {
    run(|| {
        let q = Packed::of(q, "q")?;
        let shape = q.matrix.shape();
        let mut y = zeros::<f32>(area(shape.rows(), shape.k())?)?;
        backend().dequantize(q.view(), q.global_scale, (&mut y[..]).into())?;
        Ok(Float32Array::from(&y[..]))
    })
}

/// The product of packed operands: A (M, K) by the transpose of B (N, K).
#[cfg(feature = "kernels")]
#[wasm_bindgen]
pub fn matmul(a: &JsValue, b: &JsValue, options: &JsValue) -> Answer<Float32Array> {
    use fp4_core::{Epilogue, Matmul};
    run(|| {
        let options = Options::new(options, "options", &["alpha", "bias"])?;
        let (a, b) = (Packed::of(a, "a")?, Packed::of(b, "b")?);
        let alpha = options.float("alpha")?.unwrap_or(a.global_scale * b.global_scale);
        let bias = options.get("bias").map(|(value, name)| floats(&value, &name)).transpose()?;
        a.matrix.shape().expect_product(&b.matrix.shape())?;
        let (m, n) = (a.matrix.shape().rows(), b.matrix.shape().rows());
        let epilogue = Epilogue::new(alpha).with_bias(bias.as_deref());
        epilogue.expect(m, n)?;
        let mut y = zeros::<f32>(area(m, n)?)?;
        let cpu = backend();
        let weight = cpu.prepare(b.view())?;
        cpu.matmul(a.view(), &weight, epilogue, (&mut y[..]).into())?;
        Ok(Float32Array::from(&y[..]))
    })
}

/// The 128x4 layout of (rows, cols) scale bytes; padding is written as zero.
#[wasm_bindgen]
pub fn swizzle(scales: &JsValue, rows: &JsValue, cols: &JsValue) -> Answer<Uint8Array> {
    run(|| {
        let (rows, cols) = (count(rows, "rows")?, count(cols, "cols")?);
        let layout = Swizzle::new(rows, cols)?;
        let scales = bytes(scales, "scales")?;
        // Told before there is room made for it.
        let (expected, got) = (area(rows, cols)?, scales.len());
        if expected != got {
            let what = fp4_core::Buffer::Scales;
            return Err(fp4_core::Error::Len { what, expected, got }.into());
        }
        let mut swizzled = zeros(layout.len())?;
        layout.swizzle(&scales, &mut swizzled)?;
        Ok(Uint8Array::from(&swizzled[..]))
    })
}

/// (rows, cols) scale bytes of their 128x4 layout.
#[wasm_bindgen]
pub fn unswizzle(swizzled: &JsValue, rows: &JsValue, cols: &JsValue) -> Answer<Uint8Array> {
    run(|| {
        let (rows, cols) = (count(rows, "rows")?, count(cols, "cols")?);
        let layout = Swizzle::new(rows, cols)?;
        let swizzled = bytes(swizzled, "swizzled")?;
        // Told before there is room made for it.
        let (expected, got) = (layout.len(), swizzled.len());
        if expected != got {
            let what = fp4_core::Buffer::Swizzled;
            return Err(fp4_core::Error::Len { what, expected, got }.into());
        }
        let mut scales = zeros(area(rows, cols)?)?;
        layout.unswizzle(&swizzled, &mut scales)?;
        Ok(Uint8Array::from(&scales[..]))
    })
}

/// Where the byte of (row, col) sits; defined for the padding too.
#[wasm_bindgen(js_name = swizzleOffset)]
pub fn swizzle_offset(rows: &JsValue, cols: &JsValue, row: &JsValue, col: &JsValue) -> Answer<f64> {
    run(|| {
        let layout = Swizzle::new(count(rows, "rows")?, count(cols, "cols")?)?;
        let (row, col) = (count(row, "row")?, count(col, "col")?);
        layout.offset(row, col).map(|offset| offset as f64).ok_or_else(|| {
            let (rows, cols) = (layout.padded_rows(), layout.padded_cols());
            Failure::new(format!("({row}, {col}) is outside of {rows} x {cols}, padding included"))
        })
    })
}

/// The (row, col) whose byte sits at an offset.
#[wasm_bindgen(js_name = swizzleCoordinate)]
pub fn swizzle_coordinate(rows: &JsValue, cols: &JsValue, offset: &JsValue) -> Answer<Vec<f64>> {
    run(|| {
        let layout = Swizzle::new(count(rows, "rows")?, count(cols, "cols")?)?;
        let offset = count(offset, "offset")?;
        let found = layout.coordinate(offset).map(|(row, col)| vec![row as f64, col as f64]);
        let len = layout.len();
        found.ok_or_else(|| Failure::new(format!("offset {offset} is behind the end, {len}")))
    })
}

/// All scale rules and transforms.
#[wasm_bindgen]
pub fn settings() -> Answer<JsValue> {
    run(|| {
        let rules = ScaleRule::ALL.map(|rule| {
            let formats = fp4_core::Format::ALL.into_iter();
            let formats = formats.filter(|format| rule.is_for(format.scale_type()));
            let formats: Vec<_> = formats.map(fp4_core::Format::name).collect();
            serde_json::json!({ "name": rule.name(), "formats": formats, "about": rule.about() })
        });
        let transforms = TRANSFORMS.map(|(name, block, about)| {
            serde_json::json!({ "name": name, "block": block, "about": about })
        });
        let layouts = quant_linear::layout::ALL.map(|layout| layout.name());
        let all = serde_json::json!({
            "rules": rules, "transforms": transforms, "layouts": layouts,
            "ties": TieMode::ALL.map(TieMode::name),
            "defaultRule": quant_linear::DenseOptions::SCALE_RULE.name(),
        });
        json(&all)
    })
}
