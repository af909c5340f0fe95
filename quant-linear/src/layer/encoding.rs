//! How a layer quantizes its activations: what a state may ask for.
//!
//! | [`ActivationEncoding`] | `activation_encoding` | quantized to | alpha |
//! |---|---|---|---|
//! | [`Own`](ActivationEncoding::Own) | absent, or 0 | the weight's format, by the two activation scalars | weight gs * activation gs |
//! | [`MxInt8`](ActivationEncoding::MxInt8) | 1 | MXINT8 (C10) | weight gs |
//! | [`OwnRowScales`](ActivationEncoding::OwnRowScales) | 2 | NVFP4, a global scale for each row (C4) | weight gs, by the row's scale |
//!
//! Under the last two the activation scalars take no part; they are kept and saved all the same.

use std::fmt;
use std::str::FromStr;

use fp4_core::{PackedShape, QuantSpec};

use crate::error::Error;

/// How a layer quantizes its activations.
#[non_exhaustive]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ActivationEncoding {
    /// To the weight's own format, by the stored global scale and scale-scale.
    #[default]
    Own,
    /// To MXINT8: eight bits, twice the memory of codes, and next to no loss (C10).
    MxInt8,
    /// To the weight's own format, NVFP4, with a global scale for each row (C4).
    OwnRowScales,
}

impl ActivationEncoding {
    /// All of them, by the byte that a state stores.
    pub const ALL: [ActivationEncoding; 3] =
        [ActivationEncoding::Own, ActivationEncoding::MxInt8, ActivationEncoding::OwnRowScales];

    /// The byte that a state stores.
    pub const fn byte(self) -> u8 {
        match self {
            ActivationEncoding::Own => 0,
            ActivationEncoding::MxInt8 => 1,
            ActivationEncoding::OwnRowScales => 2,
        }
    }

    /// The name, as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            ActivationEncoding::Own => "fp4",
            ActivationEncoding::MxInt8 => "mxint8",
            ActivationEncoding::OwnRowScales => "fp4-rows",
        }
    }

    /// What activations are quantized by, where `own` are the stored settings.
    ///
    /// # Errors
    /// [`fp4_core::Error::RowScales`] if there are none of the format.
    pub fn spec(self, own: QuantSpec) -> Result<QuantSpec, Error> {
        Ok(match self {
            ActivationEncoding::Own => own,
            ActivationEncoding::MxInt8 => QuantSpec::mxint8(),
            ActivationEncoding::OwnRowScales => own.with_row_scales()?,
        })
    }

    /// Checks that rows of a weight's width can be quantized so.
    ///
    /// # Errors
    /// [`fp4_core::Error::KNotWholeGroups`], [`fp4_core::Error::RowScales`].
    pub fn check(self, weight: PackedShape, own: QuantSpec) -> Result<(), Error> {
        self.spec(own)?.shape(0, weight.k())?;
        Ok(())
    }
}

impl fmt::Display for ActivationEncoding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for ActivationEncoding {
    type Err = Error;

    /// # Errors
    /// [`Error::ActivationsName`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let found = ActivationEncoding::ALL.into_iter().find(|a| a.name() == name);
        found.ok_or_else(|| Error::ActivationsName { got: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_and_names_are_those_of_the_list() {
        for (at, activations) in ActivationEncoding::ALL.into_iter().enumerate() {
            assert_eq!(usize::from(activations.byte()), at);
            assert_eq!(activations.to_string().parse::<ActivationEncoding>().unwrap(), activations);
        }
        let error = "fp8".parse::<ActivationEncoding>().unwrap_err().to_string();
        assert!(error.contains("fp4, mxint8 or fp4-rows"), "{error}");
    }
}
