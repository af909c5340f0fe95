//! Names of the formats: elements, scale types, group sizes, the two formats of a weight, the
//! encodings of operands, and dense float types.
//!
//! | format | element | group G | scale | global scale |
//! |---|---|---|---|---|
//! | [`Format::MxFp4`] | e2m1 | 32 | e8m0, a power of two | any f32, usually 1/3 |
//! | [`Format::NvFp4`] | e2m1 | 16 | e4m3 | any f32, usually amax / 2688 |
//! | [`Encoding::MxInt8`], activations only | int8 times 2^-6 | 32 | e8m0 | none |
//!
//! Source: OCP Microscaling Formats (MX) v1.0 for MXFP4 and MXINT8; contract clauses [C4] and
//! [C10].
//!
//! [C4]: crate::contract#c4
//! [C10]: crate::contract#c10

use crate::error::{Error, Unsupported};

/// Type of the scale bytes (C2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ScaleType {
    /// Powers of two, 2^-127 to 2^127; 0xFF is NaN.
    E8M0,
    /// The "fn" variant: bias 7, largest 448, no infinities; 0x7F and 0xFF are NaN.
    E4M3,
}

/// How one element is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Element {
    /// A 4-bit e2m1 code, two a byte (C1, C3).
    #[default]
    E2m1,
    /// A byte in two's complement that counts units of 2^-6 (C10).
    Int8,
}

impl Element {
    /// All elements.
    pub const ALL: [Element; 2] = [Element::E2m1, Element::Int8];

    /// Elements that one byte holds.
    pub const fn per_byte(self) -> usize {
        match self {
            Element::E2m1 => 2,
            Element::Int8 => 1,
        }
    }
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

/// The two formats that a weight may have (C6).
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
/// A weight is in one of the two [`Format`]s. Activations are in the weight's format, or MXINT8.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Encoding {
    /// e2m1 in groups of 32 with e8m0 scales.
    MxFp4,
    /// e2m1 in groups of 16 with e4m3 scales.
    NvFp4,
    /// int8 in groups of 32 with e8m0 scales: activations only (C10).
    MxInt8,
}

impl Encoding {
    /// All encodings.
    pub const ALL: [Encoding; 3] = [Encoding::MxFp4, Encoding::NvFp4, Encoding::MxInt8];

    /// The encoding of these parts, if a matmul takes it as an operand.
    pub const fn from_parts(
        element: Element,
        scale: ScaleType,
        group: GroupSize,
    ) -> Option<Encoding> {
        match (element, scale, group) {
            (Element::E2m1, ScaleType::E8M0, GroupSize::G32) => Some(Encoding::MxFp4),
            (Element::E2m1, ScaleType::E4M3, GroupSize::G16) => Some(Encoding::NvFp4),
            (Element::Int8, ScaleType::E8M0, GroupSize::G32) => Some(Encoding::MxInt8),
            _ => None,
        }
    }

    /// How one element is stored.
    pub const fn element(self) -> Element {
        match self {
            Encoding::MxFp4 | Encoding::NvFp4 => Element::E2m1,
            Encoding::MxInt8 => Element::Int8,
        }
    }

    /// The group size.
    pub const fn group(self) -> GroupSize {
        match self {
            Encoding::MxFp4 | Encoding::MxInt8 => GroupSize::G32,
            Encoding::NvFp4 => GroupSize::G16,
        }
    }

    /// The scale type.
    pub const fn scale_type(self) -> ScaleType {
        match self {
            Encoding::MxFp4 | Encoding::MxInt8 => ScaleType::E8M0,
            Encoding::NvFp4 => ScaleType::E4M3,
        }
    }

    /// The format, if the encoding is one of the two.
    pub const fn format(self) -> Option<Format> {
        match self {
            Encoding::MxFp4 => Some(Format::MxFp4),
            Encoding::NvFp4 => Some(Format::NvFp4),
            Encoding::MxInt8 => None,
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

/// The encodings of a product's operands, as [`PackedShape::expect_product`] found them: A in B's
/// format, or A in MXINT8 (C6, C10).
///
/// [`PackedShape::expect_product`]: crate::PackedShape::expect_product
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Product {
    /// The encoding of A.
    pub a: Encoding,
    /// The format of B.
    pub b: Format,
}

impl Product {
    /// All products, B's own format first.
    pub const ALL: [Product; 4] = [
        Product::of(Format::MxFp4),
        Product::of(Format::NvFp4),
        Product { a: Encoding::MxInt8, b: Format::MxFp4 },
        Product { a: Encoding::MxInt8, b: Format::NvFp4 },
    ];

    /// Both operands in one format.
    pub const fn of(format: Format) -> Self {
        let a = match format {
            Format::MxFp4 => Encoding::MxFp4,
            Format::NvFp4 => Encoding::NvFp4,
        };
        Product { a, b: format }
    }

    /// B's format if A is in it too, for backends that multiply no others.
    ///
    /// # Errors
    /// [`Unsupported::Encodings`].
    pub fn expect_one_format(self) -> Result<Format, Unsupported> {
        let (a, b) = (self.a, self.b.into());
        if a == b { Ok(self.b) } else { Err(Unsupported::Encodings { a, b }) }
    }

    /// True if every term is a multiple of 2^-20, which [`FixedSum`](crate::FixedSum) counts in:
    /// both operands in NVFP4.
    pub const fn is_fixed(self) -> bool {
        matches!(self, Product { a: Encoding::NvFp4, b: Format::NvFp4 })
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
