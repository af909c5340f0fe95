//! The scalar reference: every rule of the contract once, written to be read.
//!
//! Nothing here allocates and nothing is fast. Other backends are compared with it bit for bit,
//! and call its pieces ([`QuantSpec::encode_scale`](crate::QuantSpec::encode_scale),
//! [`E2m1::from_f32_tie`](crate::E2m1::from_f32_tie), [`group_dot`], ...) instead of writing a
//! rule again. [`Reference`] offers the same functions as a backend. Those that compute in floating
//! point check the thread's environment first ([C9]).
//!
//! [C9]: crate::contract#c9

mod dequantize;
mod matmul;
mod quantize;
mod scale;

pub use dequantize::{dequantize, fake_quantize};
pub use matmul::{group_dot, group_dot_int8, matmul, partial};
pub use quantize::{apply_transform, count_group, quantize};
pub use scale::group_scale;

use core::ops::Range;

use crate::backend::{
    Matmul, MatmulQuery, Named, Paths, PreparedWeight, QuantizeInput, QuantizeQuery, Quantizer,
};
use crate::counts::QuantCounts;
use crate::epilogue::Epilogue;
use crate::error::{Error, Unsupported};
use crate::exact::PartialsMut;
use crate::float::FloatSliceMut;
use crate::packed::{Packed, PackedMut, PackedShape, PackedView};

/// The reference as a backend: it supports everything, with no allocator.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reference;

/// A weight prepared for [`Reference`] or [`Narrow`](crate::narrow::Narrow): whatever holds the packed matrix, as it is.
#[derive(Debug, Clone, Copy)]
pub struct ReferenceWeight<B>(pub(crate) B);

impl<B: Packed> PreparedWeight for ReferenceWeight<B> {
    fn shape(&self) -> PackedShape {
        self.0.view().shape()
    }
}

impl Named for Reference {
    fn name(&self) -> &str {
        "reference"
    }
}

impl Quantizer for Reference {
    fn supports_quantize(&self, _query: &QuantizeQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        quantize(input, out)
    }
}

impl Matmul for Reference {
    type Prepared<B: Packed> = ReferenceWeight<B>;

    fn supports_matmul(&self, _query: &MatmulQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn supports_partial(&self, _query: &MatmulQuery) -> Result<(), Unsupported> {
        Ok(())
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
        b.view().shape().expect_format()?;
        Ok(ReferenceWeight(b))
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        let outputs = out.len() as u64;
        matmul(a, b.0.view(), epilogue, out)?;
        Ok(Paths { wide: outputs, ..Paths::default() })
    }

    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        partial(a, b.0.view(), groups, out)
    }

    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        out.copy_from(b.0.view())
    }
}
