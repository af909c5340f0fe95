//! Errors and capability reasons: `Copy` values that carry what was given and what was expected.
//!
//! No strings are stored, so the types work without an allocator; `Display` writes the sentence.

use core::fmt;

use crate::format::{Element, Encoding, FloatType, GroupSize, ScaleType};
use crate::rule::ScaleRule;

/// What was wrong with a call. Every variant says what was given and what was expected;
/// its `Display` form adds what to do.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Error {
    /// A byte that names a group size, or a number that should be one.
    GroupSize {
        /// The group size given, in elements.
        got: usize,
    },
    /// K does not divide into whole groups.
    KNotWholeGroups {
        /// K, in elements.
        k: usize,
        /// The group size, in elements.
        group: usize,
        /// The encoding asked for, if the settings make one.
        encoding: Option<Encoding>,
    },
    /// A shape whose element count does not fit `usize`.
    ShapeOverflow {
        /// Rows given.
        rows: usize,
        /// Columns given.
        cols: usize,
    },
    /// A buffer of the wrong length.
    Len {
        /// Which buffer.
        what: Buffer,
        /// Length expected, in the buffer's elements.
        expected: usize,
        /// Length given, in the buffer's elements.
        got: usize,
    },
    /// A buffer of the wrong float type.
    Float {
        /// Which buffer.
        what: Buffer,
        /// Type expected.
        expected: FloatType,
        /// Type given.
        got: FloatType,
    },
    /// Two operands disagree about rows or K.
    ShapeMismatch {
        /// Which dimension.
        what: Dim,
        /// Value expected (from the first operand).
        expected: usize,
        /// Value given (by the second).
        got: usize,
    },
    /// Two operands, or an operand and its settings, disagree about the format.
    FormatMismatch {
        /// Scale type and group size expected.
        expected: (ScaleType, GroupSize),
        /// Scale type and group size given.
        got: (ScaleType, GroupSize),
    },
    /// Elements of another kind: a weight has e2m1 codes, MXINT8 is for activations (C10).
    ElementMismatch {
        /// Element expected.
        expected: Element,
        /// Element given.
        got: Element,
    },
    /// A global scale for MXINT8, which has none (C10).
    NoGlobalScale {
        /// Its value.
        got: f32,
    },
    /// A matrix in a scale type and group size that is neither MXFP4 nor NVFP4 (C6).
    NotAMatmulFormat {
        /// The scale type.
        scale: ScaleType,
        /// The group size.
        group: GroupSize,
    },
    /// A global scale, scale-scale or a product of them that is not finite and above zero (C4).
    ScaleSetting {
        /// Which setting or product.
        what: ScaleSetting,
        /// Its value.
        got: f32,
    },
    /// Row scales asked for with a format that has none: they are NVFP4's (C4).
    RowScales {
        /// The scale type.
        scale: ScaleType,
        /// The group size.
        group: GroupSize,
    },
    /// A rule for scale bytes of another type.
    ScaleRule {
        /// The rule asked for.
        rule: ScaleRule,
        /// The type of the scale bytes.
        scale: ScaleType,
    },
    /// A transform block that is not 16, 32, 64 or 128 (C5).
    TransformBlock {
        /// The block size given.
        got: usize,
    },
    /// K is not a multiple of the transform block, or the block count is not K / block (C5).
    TransformShape {
        /// K, in elements.
        k: usize,
        /// The transform's block size.
        block: usize,
        /// Number of blocks the transform carries (`None`: shared).
        blocks: Option<usize>,
    },
    /// A range outside the operand.
    Range {
        /// Which dimension.
        what: Dim,
        /// First index asked for.
        start: usize,
        /// One past the last index asked for.
        end: usize,
        /// How many there are.
        len: usize,
    },
    /// Serialized bytes of an exact sum in a form of another version.
    SumVersion {
        /// The version expected.
        expected: u8,
        /// The version given.
        got: u8,
    },
    /// A term that does not fit the exact accumulator.
    SumRange {
        /// Exponent of the term.
        exponent: i32,
    },
    /// A 64-bit partial sum overflowed; use [`ExactSum`](crate::ExactSum) partials.
    PartialOverflow,
    /// Partial sums of the wrong kind: all but NVFP4 by NVFP4 needs [`ExactSum`](crate::ExactSum).
    PartialKind,
    /// The thread's floating-point environment breaks IEEE-754 (C9).
    Environment(FpEnvironment),
    /// A prepared weight or tensor was handed to a backend that did not make it.
    ForeignOperand,
    /// The backend does not do what was asked.
    Unsupported(Unsupported),
    /// A device or driver failed; the process and the inputs are intact.
    Device(DeviceError),
}

/// A buffer named by [`Error::Len`] and [`Error::Float`].
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buffer {
    /// Dense input values.
    Input,
    /// Dense output values.
    Output,
    /// Packed element codes, two a byte.
    Codes,
    /// Scale bytes, row-major.
    Scales,
    /// Scale bytes in the swizzled layout.
    Swizzled,
    /// Transform values.
    Transform,
    /// Partial sums.
    Partials,
    /// Serialized bytes of an exact sum.
    SumBytes,
    /// Scales of the rows of A that alpha is multiplied by.
    RowScales,
    /// The bias of a matmul.
    Bias,
}

/// A dimension named by [`Error::ShapeMismatch`] and [`Error::Range`].
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dim {
    /// Rows.
    Rows,
    /// The contracted dimension.
    K,
    /// Groups along the contracted dimension.
    Groups,
}

/// A setting named by [`Error::ScaleSetting`].
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScaleSetting {
    /// The global scale `gs`.
    Global,
    /// The scale-scale `ss`.
    ScaleScale,
    /// The f32 product `ss * gs`.
    Product,
    /// The f32 product of `gs` and the largest finite scale.
    Largest,
    /// The f32 product of two global scales, the output multiplier alpha.
    Alpha,
    /// The tensor-wide maximum of absolute values.
    Amax,
}

/// How a thread's floating-point environment departs from IEEE-754 defaults (C9).
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FpEnvironment {
    /// Subnormal inputs or results are flushed to zero (FTZ / DAZ / FZ).
    FlushToZero,
    /// The rounding mode is not to nearest, ties to even.
    RoundingMode,
}

/// Why a backend cannot do something: the answer of the capability queries.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsupported {
    /// This scale type and group size.
    Format {
        /// The scale type asked for.
        scale: ScaleType,
        /// The group size asked for.
        group: GroupSize,
    },
    /// Elements of this kind.
    Element(Element),
    /// Activations of this type.
    InputType(FloatType),
    /// Outputs of this type.
    OutputType(FloatType),
    /// A block transform.
    Transform,
    /// Scales given by the caller.
    GivenScales,
    /// This rule for the scale bytes.
    ScaleRule(ScaleRule),
    /// K above what the backend can prove exact or hold.
    K {
        /// K asked for.
        got: usize,
        /// Largest K supported.
        max: usize,
    },
    /// Partial sums over a range of K.
    Partials,
    /// Operands of these encodings together.
    Encodings {
        /// The encoding of A asked for.
        a: Encoding,
        /// The encoding of B asked for.
        b: Encoding,
    },
    /// Scales for the rows of A: in the epilogue, or to be found by the quantizer.
    RowScales,
    /// A bias in the epilogue.
    Bias,
    /// The CPU lacks a feature.
    CpuFeature(&'static str),
    /// The driver library of the device is not installed.
    NoDriver,
    /// The driver is there and reports no usable device.
    NoDevice,
    /// The driver is older than the backend needs.
    DriverTooOld {
        /// Version found.
        found: Version,
        /// Version needed.
        needed: Version,
    },
    /// The device is older than the backend needs.
    DeviceTooOld {
        /// What it can do, as a version.
        found: Version,
        /// What is needed.
        needed: Version,
    },
    /// The device exists, and this backend has no kernel for the operation yet.
    NotImplemented,
    /// A reason of a backend's own.
    Other(&'static str),
}

/// A version of a driver or of what a device can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The major version.
    pub major: i32,
    /// The minor version.
    pub minor: i32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// A failure of a device at run time.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceError {
    /// An allocation failed.
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
    },
    /// The device was lost or reset.
    Lost,
    /// A kernel did not compile or load.
    KernelBuild,
    /// Any other driver error, by its number.
    Driver {
        /// The driver's error number.
        code: i32,
    },
}

impl From<Unsupported> for Error {
    fn from(u: Unsupported) -> Self {
        Error::Unsupported(u)
    }
}

impl fmt::Display for Error {
    #[expect(clippy::too_many_lines, reason = "a text for each variant")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Error::GroupSize { got } => {
                write!(f, "group size {got}: expected 16, 32, 64 or 128; pass one of those")
            }
            Error::KNotWholeGroups { k, group, encoding: None } => write!(
                f,
                "K = {k} is not a multiple of the group size {group}; pad K with zeros to a \
                 multiple of {group} or choose a smaller group"
            ),
            Error::KNotWholeGroups { k, group, encoding: Some(encoding) } => write!(
                f,
                "K = {k} is not a multiple of {group}, the group size of {encoding}; pad K with \
                 zeros to a multiple of {group} or choose another encoding"
            ),
            Error::ShapeOverflow { rows, cols } => write!(
                f,
                "a shape of {rows} x {cols} has more elements than this machine can address; \
                 check the dimensions"
            ),
            Error::Len { what, expected, got } => write!(
                f,
                "{what} buffer holds {got} elements, expected {expected}; allocate it to the shape"
            ),
            Error::Float { what, expected, got } => write!(
                f,
                "{what} buffer is {got}, expected {expected}; convert it or choose another type"
            ),
            Error::ShapeMismatch { what, expected, got } => write!(
                f,
                "{what} differ: the first operand has {expected}, the second {got}; \
                 both must agree"
            ),
            Error::FormatMismatch { expected, got } => write!(
                f,
                "formats differ: expected {} with groups of {}, got {} with groups of {}; \
                 quantize both operands with the same settings",
                expected.0, expected.1, got.0, got.1
            ),
            Error::ElementMismatch { expected, got } => write!(
                f,
                "elements are {got}, expected {expected}; weights are MXFP4 or NVFP4 (e2m1), \
                 MXINT8 (int8) is for activations"
            ),
            Error::NoGlobalScale { got } => {
                write!(f, "a global scale of {got} for mxint8, which has none; pass 1")
            }
            Error::NotAMatmulFormat { scale, group } => write!(
                f,
                "{scale} with groups of {group} is no matmul format; use MXFP4 (e8m0, 32) or \
                 NVFP4 (e4m3, 16)"
            ),
            Error::ScaleSetting { what, got } => {
                write!(f, "{what} is {got}, expected finite and above 0; choose another setting")
            }
            Error::RowScales { scale, group } => write!(
                f,
                "{scale} with groups of {group} has no row scales; ask for them with NVFP4 (e4m3, 16)"
            ),
            Error::ScaleRule { rule, scale } => {
                write!(f, "the scale rule {rule} is not for {scale} scales; choose ")?;
                let mut those = ScaleRule::ALL.into_iter().filter(|r| r.is_for(scale)).peekable();
                while let Some(rule) = those.next() {
                    let before = if those.peek().is_some() { "" } else { "or " };
                    write!(f, "{before}{rule}{}", if those.peek().is_some() { ", " } else { "" })?;
                }
                Ok(())
            }
            Error::TransformBlock { got } => write!(
                f,
                "transform block {got}: expected 16, 32, 64 or 128; use a transform of that size"
            ),
            Error::TransformShape { k, block, blocks: None } => write!(
                f,
                "K = {k} is not a multiple of the transform block {block}; use a block that \
                 divides K"
            ),
            Error::TransformShape { k, block, blocks: Some(n) } => write!(
                f,
                "a transform of {n} blocks of {block} covers K = {}, expected K = {k}; pass one \
                 block for each {block} columns, or a shared one",
                n.saturating_mul(block)
            ),
            Error::Range { what, start, end, len } => write!(
                f,
                "range {start}..{end} of {what} is outside 0..{len}; clamp it to the operand"
            ),
            Error::SumVersion { expected, got } => write!(
                f,
                "an exact sum in the serialized form of version {got}, expected {expected}; \
                 make the partial sums anew with one version of the software"
            ),
            Error::SumRange { exponent } => write!(
                f,
                "a term with exponent {exponent} does not fit the exact sum (-264 to 254); \
                 only products of this library's operands do"
            ),
            Error::PartialOverflow => {
                f.write_str("a 64-bit partial sum overflowed; ask for ExactSum partials instead")
            }
            Error::PartialKind => f.write_str(
                "64-bit partial sums hold NVFP4 by NVFP4 only; ask for ExactSum partials \
                 otherwise",
            ),
            Error::Environment(e) => write!(
                f,
                "{e} on this thread, which breaks IEEE-754 results; restore the default \
                 floating-point environment before calling"
            ),
            Error::ForeignOperand => f.write_str(
                "the operand was prepared by another backend; prepare it with the backend that \
                 uses it",
            ),
            Error::Unsupported(u) => write!(f, "not supported by this backend: {u}"),
            Error::Device(d) => write!(f, "device failure: {d}"),
        }
    }
}

impl fmt::Display for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Buffer::Input => "input",
            Buffer::Output => "output",
            Buffer::Codes => "codes",
            Buffer::Scales => "scales",
            Buffer::Swizzled => "swizzled scales",
            Buffer::Transform => "transform",
            Buffer::Partials => "partial sums",
            Buffer::SumBytes => "serialized sum",
            Buffer::RowScales => "row scales",
            Buffer::Bias => "bias",
        })
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Dim::Rows => "rows",
            Dim::K => "K",
            Dim::Groups => "groups",
        })
    }
}

impl fmt::Display for ScaleSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ScaleSetting::Global => "the global scale",
            ScaleSetting::ScaleScale => "the scale-scale",
            ScaleSetting::Product => "scale-scale times global scale",
            ScaleSetting::Largest => "the global scale times the largest finite scale",
            ScaleSetting::Alpha => "weight global scale times activation global scale",
            ScaleSetting::Amax => "the largest absolute value of the tensor",
        })
    }
}

impl fmt::Display for FpEnvironment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FpEnvironment::FlushToZero => "subnormals are flushed to zero",
            FpEnvironment::RoundingMode => "the rounding mode is not to-nearest-even",
        })
    }
}

impl fmt::Display for Unsupported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Unsupported::Format { scale, group } => write!(f, "{scale} with groups of {group}"),
            Unsupported::Element(element) => write!(f, "{element} elements"),
            Unsupported::InputType(t) => write!(f, "{t} activations"),
            Unsupported::OutputType(t) => write!(f, "{t} outputs"),
            Unsupported::Transform => f.write_str("a block transform"),
            Unsupported::GivenScales => f.write_str("scales given by the caller"),
            Unsupported::ScaleRule(rule) => write!(f, "the scale rule {rule}"),
            Unsupported::K { got, max } => write!(f, "K = {got} (at most {max})"),
            Unsupported::Partials => f.write_str("partial sums"),
            Unsupported::Encodings { a, b } => write!(f, "{a} activations by {b} weights"),
            Unsupported::RowScales => f.write_str("row scales"),
            Unsupported::Bias => f.write_str("a bias after the product"),
            Unsupported::CpuFeature(name) => write!(f, "this CPU lacks {name}"),
            Unsupported::NoDriver => f.write_str("the driver library is not installed"),
            Unsupported::NoDevice => f.write_str("the driver reports no usable device"),
            Unsupported::DriverTooOld { found, needed } => {
                write!(f, "driver version {found} found, {needed} needed")
            }
            Unsupported::DeviceTooOld { found, needed } => {
                write!(f, "compute capability {found} found, {needed} needed")
            }
            Unsupported::NotImplemented => {
                f.write_str("this backend has no kernel for the operation yet")
            }
            Unsupported::Other(reason) => f.write_str(reason),
        }
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            DeviceError::OutOfMemory { bytes } => {
                write!(f, "out of memory while allocating {bytes} bytes; free memory or split M")
            }
            DeviceError::Lost => f.write_str("the device was lost; reopen the backend"),
            DeviceError::KernelBuild => {
                f.write_str("a kernel did not build or load; see the log for the compiler's words")
            }
            DeviceError::Driver { code } => write!(f, "driver error {code}; see the log"),
        }
    }
}

impl core::error::Error for Error {}
impl core::error::Error for Unsupported {}
impl core::error::Error for DeviceError {}
