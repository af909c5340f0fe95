//! Settings of a quantization: element, scale type, group size, global scale, scale-scale, tie mode
//! ([C4], [C10]).
//!
//! ```text
//! s = amax / (ss * gs)      the scale that maps the group's maximum to `ss`
//! d = decode(encode(s)) * gs    what one unit of the code is worth
//! ```
//!
//! `gs` is one f32 for the whole tensor; `ss` says which code value the maximum of a group should
//! land on: 6 uses the whole range, 4 leaves room for e8m0's coarse steps.
//!
//! Worked example, NVFP4 with gs = 0.1 and ss = 6: a group with amax 3 gives
//! s = 3 / 0.6 = 5 (byte 0x4A), d = 0.5, and 3 becomes code 7 (6 * 0.5).
//!
//! MXINT8 has neither `gs` nor `ss`: both are 1 ([`QuantSpec::mxint8`]).
//!
//! [C4]: crate::contract#c4
//! [C10]: crate::contract#c10

use crate::e2m1::TieMode;
use crate::environment::check_environment;
use crate::error::{Error, ScaleSetting};
use crate::format::{Element, Encoding, Format, GroupSize, ScaleType};
use crate::mxint8;
use crate::packed::PackedShape;
use crate::rule::ScaleRule;

/// The usual MXFP4 global scale, the f32 nearest to 1/3 (C4).
pub const MXFP4_GLOBAL_SCALE: f32 = 1.0 / 3.0;
/// The usual MXFP4 scale-scale (C4).
pub const MXFP4_SCALE_SCALE: f32 = 4.0;
/// The usual NVFP4 global scale of activations (C4).
pub const NVFP4_GLOBAL_SCALE: f32 = 0.1;
/// The usual NVFP4 scale-scale (C4).
pub const NVFP4_SCALE_SCALE: f32 = 6.0;

/// Checked settings of a quantization: whoever holds one has a global scale, a scale-scale and
/// their products finite and above zero.
///
/// As a serde value (feature `serde`) it is a map of its settings, and checked as it is read;
/// `tie`, `rule`, `row_scales` and `element` may be left out, and `element` is where it is e2m1.
#[derive(Debug, Clone, Copy, PartialEq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Settings")
)]
pub struct QuantSpec {
    scale_type: ScaleType,
    group: GroupSize,
    global_scale: f32,
    scale_scale: f32,
    tie: TieMode,
    rule: ScaleRule,
    row_scales: bool,
    #[cfg_attr(feature = "serde", serde(skip_serializing_if = "is_e2m1"))]
    element: Element,
}

/// True for the element that a spec need not name.
#[cfg(feature = "serde")]
fn is_e2m1(element: &Element) -> bool {
    *element == Element::E2m1
}

impl QuantSpec {
    /// Settings with ties to even.
    ///
    /// # Errors
    /// [`Error::ScaleSetting`] unless `global_scale`, `scale_scale`, their f32 product, and
    /// `global_scale` times the largest finite scale are all finite and above zero (C4).
    pub fn new(
        scale_type: ScaleType,
        group: GroupSize,
        global_scale: f32,
        scale_scale: f32,
    ) -> Result<Self, Error> {
        for (what, got) in [
            (ScaleSetting::Global, global_scale),
            (ScaleSetting::ScaleScale, scale_scale),
            (ScaleSetting::Product, scale_scale * global_scale),
            (ScaleSetting::Largest, global_scale * scale_type.max()),
        ] {
            expect_positive(what, got)?;
        }
        let (tie, rule) = (TieMode::Even, ScaleRule::Nearest);
        let (row_scales, element) = (false, Element::E2m1);
        Ok(QuantSpec {
            scale_type,
            group,
            global_scale,
            scale_scale,
            tie,
            rule,
            row_scales,
            element,
        })
    }

    /// MXINT8 activations: groups of 32 with the least e8m0 scale that takes the largest element
    /// to at most 127, ties to even, no global scale and no scale-scale (C10).
    pub const fn mxint8() -> Self {
        QuantSpec {
            scale_type: ScaleType::E8M0,
            group: GroupSize::G32,
            global_scale: 1.0,
            scale_scale: 1.0,
            tie: TieMode::Even,
            rule: ScaleRule::Nearest,
            row_scales: false,
            element: Element::Int8,
        }
    }

    /// The usual settings of activations in this encoding: those of [`usual`](Self::usual), or
    /// [`mxint8`](Self::mxint8), which has no others.
    pub const fn of(encoding: Encoding) -> Self {
        match encoding {
            Encoding::MxFp4 => Self::usual(Format::MxFp4),
            Encoding::NvFp4 => Self::usual(Format::NvFp4),
            Encoding::MxInt8 => Self::mxint8(),
        }
    }

    /// The format's usual settings for activations: MXFP4 gs = 1/3, ss = 4; NVFP4 gs = 0.1, ss = 6.
    pub const fn usual(format: Format) -> Self {
        let (global_scale, scale_scale) = match format {
            Format::MxFp4 => (MXFP4_GLOBAL_SCALE, MXFP4_SCALE_SCALE),
            Format::NvFp4 => (NVFP4_GLOBAL_SCALE, NVFP4_SCALE_SCALE),
        };
        QuantSpec {
            scale_type: format.scale_type(),
            group: format.group(),
            global_scale,
            scale_scale,
            tie: TieMode::Even,
            rule: ScaleRule::Nearest,
            row_scales: false,
            element: Element::E2m1,
        }
    }

    /// The format's usual settings for a weight whose largest magnitude is `amax`: NVFP4 takes its
    /// global scale from [`nvfp4_global_scale`], MXFP4 does not use `amax`.
    ///
    /// # Errors
    /// [`Error::ScaleSetting`] if the format is NVFP4 and `amax` is NaN or infinite.
    pub fn for_weight(format: Format, amax: f32) -> Result<Self, Error> {
        let global_scale = match format {
            Format::MxFp4 => MXFP4_GLOBAL_SCALE,
            Format::NvFp4 => nvfp4_global_scale(amax)?,
        };
        let usual = Self::usual(format);
        Self::new(usual.scale_type, usual.group, global_scale, usual.scale_scale)
    }

    /// The same settings with another tie mode. MXINT8 keeps ties to even: it has no other (C10).
    #[must_use]
    pub const fn with_tie(self, tie: TieMode) -> Self {
        match self.element {
            Element::E2m1 => QuantSpec { tie, ..self },
            Element::Int8 => self,
        }
    }

    /// The settings of a weight by a rule, with the global scale and the tie mode that go with it:
    /// `amax` is the largest magnitude of the tensor, which counts only where
    /// [`ScaleRule::needs_amax`] says so. [`ScaleRule::Nearest`] gives those of
    /// [`for_weight`](Self::for_weight).
    ///
    /// # Errors
    /// [`Error::ScaleRule`] if the rule is not for the format; [`Error::ScaleSetting`] if `amax`
    /// counts and is not finite.
    pub fn by_rule(format: Format, rule: ScaleRule, amax: f32) -> Result<Self, Error> {
        rule.expect_for(format.scale_type())?;
        let (usual, global_scale) = (Self::usual(format), rule.global_scale(format, amax)?);
        let spec = Self::new(usual.scale_type, usual.group, global_scale, usual.scale_scale)?;
        spec.with_tie(rule.tie(format.scale_type())).with_rule(rule)
    }

    /// The same settings with another rule for the scale bytes; the tie mode stays
    /// ([`ScaleRule::tie`] is what goes with the rule). MXINT8 keeps its own rule (C10).
    ///
    /// # Errors
    /// [`Error::ScaleRule`] if the rule is not for scale bytes of this type.
    pub const fn with_rule(self, rule: ScaleRule) -> Result<Self, Error> {
        match self.element {
            Element::E2m1 => match rule.expect_for(self.scale_type) {
                Ok(()) => Ok(QuantSpec { rule, ..self }),
                Err(error) => Err(error),
            },
            Element::Int8 => Ok(self),
        }
    }

    /// The same settings with a global scale of its own for each row, [`nvfp4_row_scale`] of the
    /// row's largest magnitude after the transform (C4): the quantizer writes them beside the
    /// codes, and they go to the [`Epilogue`](crate::Epilogue). [`global_scale`](Self::global_scale)
    /// then takes no part.
    ///
    /// # Errors
    /// [`Error::RowScales`] unless the format is NVFP4; [`Error::ScaleSetting`] if `ss` times a row
    /// scale can be 0 or infinite.
    pub fn with_row_scales(self) -> Result<Self, Error> {
        let (scale, group) = (self.scale_type, self.group);
        if self.encoding() != Some(Encoding::NvFp4) {
            return Err(Error::RowScales { scale, group });
        }
        for extreme in [f32::from_bits(1), f32::MAX / NVFP4_LARGEST] {
            expect_positive(ScaleSetting::Product, self.scale_scale * extreme)?;
        }
        Ok(QuantSpec { row_scales: true, ..self })
    }

    /// The settings of a row whose largest magnitude after the transform is `amax`: those with the
    /// row's scale, [`nvfp4_row_scale`], as global scale. For backends, where the settings ask for
    /// row scales: every row is quantized as under settings of its own (C4).
    #[must_use]
    pub fn of_row(&self, amax: f32) -> Self {
        QuantSpec { global_scale: nvfp4_row_scale(amax), row_scales: false, ..*self }
    }

    /// How a group's scale byte is found.
    pub const fn rule(&self) -> ScaleRule {
        self.rule
    }

    /// True if each row has a global scale of its own.
    pub const fn row_scales(&self) -> bool {
        self.row_scales
    }

    /// How one element is stored.
    pub const fn element(&self) -> Element {
        self.element
    }

    /// The encoding that these settings quantize to, if a matmul takes it as an operand.
    pub const fn encoding(&self) -> Option<Encoding> {
        Encoding::from_parts(self.element, self.scale_type, self.group)
    }

    /// Type of the scale bytes.
    pub const fn scale_type(&self) -> ScaleType {
        self.scale_type
    }

    /// Elements that share a scale.
    pub const fn group(&self) -> GroupSize {
        self.group
    }

    /// The global scale `gs`.
    pub const fn global_scale(&self) -> f32 {
        self.global_scale
    }

    /// The scale-scale `ss`.
    pub const fn scale_scale(&self) -> f32 {
        self.scale_scale
    }

    /// How a value between two codes is rounded.
    pub const fn tie(&self) -> TieMode {
        self.tie
    }

    /// The shape of a (rows, k) matrix quantized with these settings.
    ///
    /// # Errors
    /// As [`PackedShape::new`].
    pub const fn shape(&self, rows: usize, k: usize) -> Result<PackedShape, Error> {
        match self.encoding() {
            Some(encoding) => PackedShape::encoded(encoding, rows, k),
            None => PackedShape::new(rows, k, self.scale_type, self.group),
        }
    }

    /// The scale of a group whose largest magnitude is `amax`, before it is encoded (C4.2): of
    /// e2m1 elements.
    #[inline]
    pub fn scale(&self, amax: f32) -> f32 {
        amax / (self.scale_scale * self.global_scale)
    }

    /// The scale byte of a group whose largest magnitude is `amax`, by [`ScaleRule::Nearest`]
    /// (C4.2, C10).
    #[inline]
    pub fn encode_scale(&self, amax: f32) -> u8 {
        match self.element {
            Element::E2m1 => self.scale_type.encode(self.scale(amax)),
            Element::Int8 => mxint8::scale(amax),
        }
    }

    /// What one unit of a code is worth under the scale byte: `decode(scale) * gs` (C4.3).
    #[inline]
    pub fn unit(&self, scale: u8) -> f32 {
        self.scale_type.decode(scale) * self.global_scale
    }
}

/// A [`QuantSpec`] before its check.
#[cfg(feature = "serde")]
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct Settings {
    scale_type: ScaleType,
    group: GroupSize,
    global_scale: f32,
    scale_scale: f32,
    #[serde(default)]
    tie: TieMode,
    #[serde(default)]
    rule: ScaleRule,
    #[serde(default)]
    row_scales: bool,
    #[serde(default)]
    element: Element,
}

#[cfg(feature = "serde")]
impl TryFrom<Settings> for QuantSpec {
    type Error = Error;

    fn try_from(read: Settings) -> Result<Self, Error> {
        let Settings { scale_type, group, global_scale, scale_scale, .. } = read;
        let Settings { tie, rule, row_scales, element, .. } = read;
        if element == Element::Int8 {
            return mxint8_of(&read);
        }
        let spec = QuantSpec::new(scale_type, group, global_scale, scale_scale)?;
        let spec = spec.with_tie(tie).with_rule(rule)?;
        if row_scales { spec.with_row_scales() } else { Ok(spec) }
    }
}

/// MXINT8, if the other settings are its own: there is nothing to choose (C10).
#[cfg(feature = "serde")]
fn mxint8_of(read: &Settings) -> Result<QuantSpec, Error> {
    let spec = QuantSpec::mxint8();
    let (expected, got) = ((spec.scale_type, spec.group), (read.scale_type, read.group));
    if expected != got {
        return Err(Error::FormatMismatch { expected, got });
    }
    if read.row_scales {
        return spec.with_row_scales();
    }
    for got in [read.global_scale, read.scale_scale] {
        if got.to_bits() != 1f32.to_bits() {
            return Err(Error::NoGlobalScale { got });
        }
    }
    Ok(spec)
}

/// The NVFP4 global scale of a tensor whose largest magnitude is `amax`: amax / 2688 in one f32
/// division; 1 if `amax` is 0, the smallest positive f32 if the quotient underflows (C4).
///
/// # Errors
/// [`Error::ScaleSetting`] if `amax` is negative, infinite or NaN; [`Error::Environment`].
pub fn nvfp4_global_scale(amax: f32) -> Result<f32, Error> {
    check_environment()?;
    if amax == 0.0 {
        return Ok(1.0);
    }
    expect_positive(ScaleSetting::Amax, amax)?;
    Ok(nvfp4_row_scale(amax))
}

/// 448 * 6: the largest scale times the largest code.
const NVFP4_LARGEST: f32 = 2688.0;

/// The scale of a row whose largest magnitude is `amax`: amax / 2688 in one f32 division; 1 if that
/// is 0 because `amax` is, or not finite, and the smallest positive f32 if it underflows (C4).
pub fn nvfp4_row_scale(amax: f32) -> f32 {
    let scale = amax / NVFP4_LARGEST;
    match scale {
        _ if amax == 0.0 || !scale.is_finite() => 1.0,
        0.0 => f32::from_bits(1),
        _ => scale,
    }
}

/// 256 * 6: the largest scale that half as much again can be added to, times the largest code.
const LARGEST_256: f32 = 1536.0;

impl ScaleRule {
    /// The global scale that goes with the rule, for a tensor whose largest magnitude is `amax`,
    /// which counts only where [`needs_amax`](Self::needs_amax) says so.
    ///
    /// # Errors
    /// [`Error::ScaleSetting`] if `amax` counts and is negative, infinite or NaN, or the quotient
    /// is no scale; [`Error::Environment`].
    pub fn global_scale(self, format: Format, amax: f32) -> Result<f32, Error> {
        if !self.needs_amax(format) {
            let nearest = matches!((self, format), (ScaleRule::Nearest, Format::MxFp4));
            return Ok(if nearest { MXFP4_GLOBAL_SCALE } else { 1.0 });
        }
        let usual = nvfp4_global_scale(amax)?;
        if amax == 0.0 {
            return Ok(usual);
        }
        Ok(match self {
            ScaleRule::FourSixMse | ScaleRule::FourSixMae => {
                let scale = amax / LARGEST_256;
                if scale == 0.0 { usual } else { scale }
            }
            ScaleRule::CompressedTensors => {
                // What it stores, and divides by: a number over a tensor is a product in torch. 1
                // where that overflows.
                let stored = 2688.0 * (1.0 / amax.max(f32::MIN_POSITIVE));
                let scale = if stored.is_finite() { 1.0 / stored } else { 1.0 };
                expect_positive(ScaleSetting::Global, scale)?;
                scale
            }
            _ => usual,
        })
    }
}

/// Checks that a setting is finite and above zero.
pub(crate) fn expect_positive(what: ScaleSetting, got: f32) -> Result<(), Error> {
    if got.is_finite() && got > 0.0 { Ok(()) } else { Err(Error::ScaleSetting { what, got }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worked_example() {
        let spec = QuantSpec::usual(Format::NvFp4);
        assert_eq!(spec.encode_scale(3.0), 0x4A);
        assert_eq!(spec.unit(0x4A), 0.5);
    }

    #[test]
    fn usual_settings_pass_their_own_check() {
        for format in Format::ALL {
            let s = QuantSpec::usual(format);
            let again = QuantSpec::new(s.scale_type, s.group, s.global_scale, s.scale_scale);
            assert_eq!(again, Ok(s));
        }
    }

    #[test]
    fn row_scales_are_for_nvfp4_and_a_scale_scale_that_fits_every_row() {
        let nvfp4 = QuantSpec::usual(Format::NvFp4);
        assert!(!nvfp4.row_scales() && nvfp4.with_row_scales().unwrap().row_scales());
        let (scale, group) = (ScaleType::E8M0, GroupSize::G32);
        let error = QuantSpec::usual(Format::MxFp4).with_row_scales();
        assert_eq!(error, Err(Error::RowScales { scale, group }));
        for bad in [0.4, 3000.0] {
            let spec = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, 1.0, bad).unwrap();
            let error = spec.with_row_scales().unwrap_err();
            assert!(matches!(error, Error::ScaleSetting { what: ScaleSetting::Product, .. }));
        }
    }

    #[test]
    fn the_scale_of_a_row() {
        assert_eq!(nvfp4_row_scale(2688.0), 1.0);
        assert_eq!(nvfp4_row_scale(f32::from_bits(5)), f32::from_bits(1));
        for none in [0.0, f32::INFINITY, f32::NAN] {
            assert_eq!(nvfp4_row_scale(none), 1.0);
        }
    }

    #[test]
    fn each_product_is_checked() {
        let new = |gs, ss| QuantSpec::new(ScaleType::E8M0, GroupSize::G32, gs, ss).unwrap_err();
        let what = |e| match e {
            Error::ScaleSetting { what, .. } => what,
            other => panic!("{other:?}"),
        };
        for bad in [0.0, -1.0, f32::INFINITY, f32::NAN] {
            assert_eq!(what(new(bad, 4.0)), ScaleSetting::Global);
            assert_eq!(what(new(1.0, bad)), ScaleSetting::ScaleScale);
        }
        assert_eq!(what(new(1e-30, 1e-30)), ScaleSetting::Product);
        assert_eq!(what(new(2.0, 4.0)), ScaleSetting::Largest); // 2 * 2^127
        assert!(QuantSpec::new(ScaleType::E4M3, GroupSize::G16, 2.0, 4.0).is_ok());
    }

    #[test]
    fn the_global_scale_of_an_amax() {
        assert_eq!(nvfp4_global_scale(2688.0), Ok(1.0));
        assert_eq!(nvfp4_global_scale(0.0), Ok(1.0));
        assert_eq!(nvfp4_global_scale(f32::from_bits(5)), Ok(f32::from_bits(1)));
        for bad in [f32::INFINITY, f32::NAN, -1.0] {
            assert!(nvfp4_global_scale(bad).is_err());
        }
    }

    #[test]
    #[cfg(feature = "serde")]
    fn settings_are_checked_as_they_are_read_and_keep_every_bit() {
        let usual = QuantSpec::usual(Format::NvFp4).with_row_scales().unwrap();
        let text = concat!(
            r#"{"scale_type":"e4m3","group":16,"global_scale":0.1,"scale_scale":6.0,"#,
            r#""tie":"even","rule":"nearest","row_scales":true}"#
        );
        assert_eq!(serde_json::to_string(&usual).unwrap(), text);
        assert_eq!(serde_json::from_str::<QuantSpec>(text).unwrap(), usual);
        // Every exponent, with fractions of every kind.
        let mut compared = 0;
        for gs in (1..0x7300_0000u32).step_by(0x3_5791).map(f32::from_bits) {
            let Ok(spec) = QuantSpec::new(ScaleType::E4M3, GroupSize::G16, gs, 6.0) else {
                continue;
            };
            let spec = spec.with_tie(TieMode::Up);
            let read: QuantSpec =
                serde_json::from_str(&serde_json::to_string(&spec).unwrap()).unwrap();
            assert_eq!(read.global_scale().to_bits(), gs.to_bits());
            assert_eq!(read, spec);
            compared += 1;
        }
        assert!(compared > 8000, "{compared}");
        let short = r#"{"scale_type":"e8m0","group":32,"global_scale":1.0,"scale_scale":4.0"#;
        let read = |rest: &str| serde_json::from_str::<QuantSpec>(&format!("{short}{rest}}}"));
        let plain = QuantSpec::new(ScaleType::E8M0, GroupSize::G32, 1.0, 4.0).unwrap();
        assert_eq!(read("").unwrap(), plain);
        for (rest, said) in [
            (r#","row_scales":true"#, "row scales"),
            (r#","gs":1.0"#, "unknown field `gs`"),
            (r#","tie":"odd""#, "expected even, zero, down or up"),
        ] {
            let error = read(rest).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let error = serde_json::from_str::<QuantSpec>(&text.replace("0.1", "-0.1")).unwrap_err();
        assert!(error.to_string().contains("-0.1"), "{error}");
    }
}
