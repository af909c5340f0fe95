//! The types of GGUF tensors, by ggml's numbers and names.
//!
//! A row of a tensor is cut into blocks of `block_len` elements that take `block_bytes` bytes each.
//! Types that ggml uses only while it computes (Q8_1, Q8_K) or has removed are in no file and are
//! not here.

use std::fmt;

use safetensors::Dtype;

/// The type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(non_camel_case_types, reason = "ggml's names")]
#[expect(missing_docs, reason = "the names are all that there is to say")]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

use GgmlType as T;

impl GgmlType {
    /// All types, by number.
    pub const ALL: [GgmlType; 32] = [
        T::F32,
        T::F16,
        T::Q4_0,
        T::Q4_1,
        T::Q5_0,
        T::Q5_1,
        T::Q8_0,
        T::Q2_K,
        T::Q3_K,
        T::Q4_K,
        T::Q5_K,
        T::Q6_K,
        T::IQ2_XXS,
        T::IQ2_XS,
        T::IQ3_XXS,
        T::IQ1_S,
        T::IQ4_NL,
        T::IQ3_S,
        T::IQ2_S,
        T::IQ4_XS,
        T::I8,
        T::I16,
        T::I32,
        T::I64,
        T::F64,
        T::IQ1_M,
        T::BF16,
        T::TQ1_0,
        T::TQ2_0,
        T::MXFP4,
        T::NVFP4,
        T::Q1_0,
    ];

    /// Number in the file, name, elements and bytes of a block.
    const fn row(self) -> (u32, &'static str, usize, usize) {
        match self {
            T::F32 => (0, "F32", 1, 4),
            T::F16 => (1, "F16", 1, 2),
            T::Q4_0 => (2, "Q4_0", 32, 18),
            T::Q4_1 => (3, "Q4_1", 32, 20),
            T::Q5_0 => (6, "Q5_0", 32, 22),
            T::Q5_1 => (7, "Q5_1", 32, 24),
            T::Q8_0 => (8, "Q8_0", 32, 34),
            T::Q2_K => (10, "Q2_K", 256, 84),
            T::Q3_K => (11, "Q3_K", 256, 110),
            T::Q4_K => (12, "Q4_K", 256, 144),
            T::Q5_K => (13, "Q5_K", 256, 176),
            T::Q6_K => (14, "Q6_K", 256, 210),
            T::IQ2_XXS => (16, "IQ2_XXS", 256, 66),
            T::IQ2_XS => (17, "IQ2_XS", 256, 74),
            T::IQ3_XXS => (18, "IQ3_XXS", 256, 98),
            T::IQ1_S => (19, "IQ1_S", 256, 50),
            T::IQ4_NL => (20, "IQ4_NL", 32, 18),
            T::IQ3_S => (21, "IQ3_S", 256, 110),
            T::IQ2_S => (22, "IQ2_S", 256, 82),
            T::IQ4_XS => (23, "IQ4_XS", 256, 136),
            T::I8 => (24, "I8", 1, 1),
            T::I16 => (25, "I16", 1, 2),
            T::I32 => (26, "I32", 1, 4),
            T::I64 => (27, "I64", 1, 8),
            T::F64 => (28, "F64", 1, 8),
            T::IQ1_M => (29, "IQ1_M", 256, 56),
            T::BF16 => (30, "BF16", 1, 2),
            T::TQ1_0 => (34, "TQ1_0", 256, 54),
            T::TQ2_0 => (35, "TQ2_0", 256, 66),
            T::MXFP4 => (39, "MXFP4", 32, 17),
            T::NVFP4 => (40, "NVFP4", 64, 36),
            T::Q1_0 => (41, "Q1_0", 128, 18),
        }
    }

    /// The type of this number; `None` if it is not known.
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == id)
    }

    /// The type's number in a file.
    pub const fn id(self) -> u32 {
        self.row().0
    }

    /// The type's name in ggml.
    pub const fn name(self) -> &'static str {
        self.row().1
    }

    /// Elements of a block.
    pub const fn block_len(self) -> usize {
        self.row().2
    }

    /// Bytes of a block.
    pub const fn block_bytes(self) -> usize {
        self.row().3
    }

    /// The same type in a safetensors file; `None` for types of blocks.
    pub const fn dtype(self) -> Option<Dtype> {
        match self {
            T::F32 => Some(Dtype::F32),
            T::F16 => Some(Dtype::F16),
            T::BF16 => Some(Dtype::BF16),
            T::F64 => Some(Dtype::F64),
            T::I8 => Some(Dtype::I8),
            T::I16 => Some(Dtype::I16),
            T::I32 => Some(Dtype::I32),
            T::I64 => Some(Dtype::I64),
            _ => None,
        }
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_names_lead_back_to_their_types() {
        for ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert_eq!(format!("{ty:?}"), ty.name());
            let plain = ty.dtype().map(|dtype| (dtype.bitsize() / 8, dtype.to_string()));
            assert_eq!(ty.block_len() == 1, plain.is_some(), "{ty}");
            if let Some((bytes, name)) = plain {
                assert_eq!((bytes, name.as_str()), (ty.block_bytes(), ty.name()));
            }
        }
        assert!(GgmlType::ALL.windows(2).all(|two| two[0].id() < two[1].id()));
        // Removed, of intermediate values, and not yet there.
        for id in [4, 5, 9, 15, 31, 32, 33, 36, 37, 38, 42, u32::MAX] {
            assert_eq!(GgmlType::from_id(id), None, "{id}");
        }
    }
}
