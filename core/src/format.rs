//! Names of the formats: scale types, group sizes, the two matmul formats, and dense float types.
//!
//! | format | element | group G | scale | global scale |
//! |---|---|---|---|---|
//! | [`Format::MxFp4`] | e2m1 | 32 | e8m0, a power of two | any f32, usually 1/3 |
//! | [`Format::NvFp4`] | e2m1 | 16 | e4m3 | any f32, usually amax / 2688 |
//!
//! Source: OCP Microscaling Formats (MX) v1.0 for MXFP4; contract clause [C4] for both.
//!
//! [C4]: crate::contract#c4

use crate::error::Error;

/// Type of the scale bytes (C2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// Powers of two, 2^-127 to 2^127; 0xFF is NaN.
    E8M0,
    /// The "fn" variant: bias 7, largest 448, no infinities; 0x7F and 0xFF are NaN.
    E4M3,
}

/// Number of consecutive elements along K that share one scale byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupSize {
    /// 16 elements (NVFP4).
    G16,
    /// 32 elements (MXFP4).
    G32,
    /// 64 elements (quantizer only).
    G64,
    /// 128 elements (quantizer only).
    G128,
}

impl GroupSize {
    /// All group sizes, ascending.
    pub const ALL: [GroupSize; 4] =
        [GroupSize::G16, GroupSize::G32, GroupSize::G64, GroupSize::G128];

    /// The group of `elements` elements.
    ///
    /// # Errors
    /// [`Error::GroupSize`] unless `elements` is 16, 32, 64 or 128.
    pub const fn new(elements: usize) -> Result<Self, Error> {
        match elements {
            16 => Ok(GroupSize::G16),
            32 => Ok(GroupSize::G32),
            64 => Ok(GroupSize::G64),
            128 => Ok(GroupSize::G128),
            got => Err(Error::GroupSize { got }),
        }
    }

    /// The group size in elements.
    pub const fn get(self) -> usize {
        match self {
            GroupSize::G16 => 16,
            GroupSize::G32 => 32,
            GroupSize::G64 => 64,
            GroupSize::G128 => 128,
        }
    }
}

/// The two formats that the matmul takes (C6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// Groups of 32 with e8m0 scales.
    MxFp4,
    /// Groups of 16 with e4m3 scales.
    NvFp4,
}

impl Format {
    /// Both formats.
    pub const ALL: [Format; 2] = [Format::MxFp4, Format::NvFp4];

    /// The format's group size.
    pub const fn group(self) -> GroupSize {
        match self {
            Format::MxFp4 => GroupSize::G32,
            Format::NvFp4 => GroupSize::G16,
        }
    }

    /// The format's scale type.
    pub const fn scale_type(self) -> ScaleType {
        match self {
            Format::MxFp4 => ScaleType::E8M0,
            Format::NvFp4 => ScaleType::E4M3,
        }
    }

    /// The format with this scale type and group size, if it is one of the two.
    pub const fn from_parts(scale: ScaleType, group: GroupSize) -> Option<Format> {
        match (scale, group) {
            (ScaleType::E8M0, GroupSize::G32) => Some(Format::MxFp4),
            (ScaleType::E4M3, GroupSize::G16) => Some(Format::NvFp4),
            _ => None,
        }
    }
}

/// How an operand of a matmul is encoded.
///
/// A weight is in one of the two [`Format`]s; the activations' encoding is asked for on its own,
/// so that it may become another one.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// e2m1 in groups of 32 with e8m0 scales.
    MxFp4,
    /// e2m1 in groups of 16 with e4m3 scales.
    NvFp4,
}

impl Encoding {
    /// All encodings.
    pub const ALL: [Encoding; 2] = [Encoding::MxFp4, Encoding::NvFp4];

    /// The format, if the encoding is one of the two.
    pub const fn format(self) -> Option<Format> {
        match self {
            Encoding::MxFp4 => Some(Format::MxFp4),
            Encoding::NvFp4 => Some(Format::NvFp4),
        }
    }
}

impl From<Format> for Encoding {
    fn from(format: Format) -> Self {
        match format {
            Format::MxFp4 => Encoding::MxFp4,
            Format::NvFp4 => Encoding::NvFp4,
        }
    }
}

/// Type of dense activations and outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FloatType {
    /// IEEE binary32.
    F32,
    /// IEEE binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl FloatType {
    /// All three types.
    pub const ALL: [FloatType; 3] = [FloatType::F32, FloatType::F16, FloatType::Bf16];

    /// Bytes of one value.
    pub const fn bytes(self) -> usize {
        match self {
            FloatType::F32 => 4,
            FloatType::F16 | FloatType::Bf16 => 2,
        }
    }
}
