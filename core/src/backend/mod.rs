//! The traits that backends implement, and the reasoning behind their shape.
//!
//! # Three traits
//!
//! | trait | who implements it | operands | needs |
//! |---|---|---|---|
//! | [`Quantizer`] | every backend that quantizes | host slices | nothing |
//! | [`Matmul`] | every backend that multiplies | host slices, a prepared weight | nothing |
//! | [`Resident`] | backends with their own memory or operand form | host slices or their own tensors | their own |
//!
//! The two roles are separate because they are chosen separately: any quantizer works with any
//! matmul, since packed codes and row-major scales ([C3]) are the common language and the bits are
//! the contract's. A mixed pair crosses host memory exactly once each way.
//!
//! # Why preparing takes anything that is [`Packed`]
//!
//! A weight is prepared once, and what that means differs: the reference uses the packed bytes as
//! they are, a SIMD backend repacks them into panels and has no further use for them, a GPU backend
//! copies them to the device. So [`Matmul::prepare`] takes the weight by value, as a view, an owned
//! matrix or a shared pointer, and the backend's [`Prepared`](Matmul::Prepared) type says whether it
//! keeps it. Firmware hands in a view of flash memory and no allocator is involved; a server hands
//! in a shared pointer and nothing is copied. No backend repacks weights per call, and one trait
//! serves both worlds: with the feature `alloc` every `Matmul` is also a
//! [`DynMatmul`](erased::DynMatmul), by a blanket implementation, with nothing to write.
//!
//! The prepared type belongs to the backend that made it, so handing it to another backend is a
//! type error; only the erased form has to check.
//!
//! # Where data lives
//!
//! [`Resident`] covers two cases with one idea, *an operand in the backend's own form*: a GPU,
//! whose tensors are device buffers; and a CPU backend whose quantizer can write the folded
//! integers that its matmul reads, without packing them first. Its two operations take a [`Source`]
//! and write to a [`Sink`], each either host values or a resident tensor, so a forward from host to
//! host crosses the bus once each way, a forward from tensor to tensor not at all, and outputs and
//! intermediate operands are passed in to be reused: nothing need be allocated in steady state.
//!
//! # Capability queries
//!
//! `supports_*` answer for a concrete request with `Ok` or a reason. They are cheap and are asked
//! before the call; the call itself checks again and returns the same reason as an error.
//!
//! # Partial sums
//!
//! [`Matmul::partial`] adds the exact, unrounded sums over a range of K groups to the caller's
//! accumulators. Sums of parts merge to the sum of the whole, over threads, devices or machines,
//! and [`finish`](crate::finish) rounds once. It is optional: [`Matmul::supports_partial`] says.
//!
//! # Many products in one call
//!
//! [`Matmul::grouped`] takes a list of products, the experts of a mixture or several weights of one
//! input, each with the bits that it has alone. By default it is the loop that a caller would
//! write; a backend with threads schedules all of it at once, and says so
//! ([`Matmul::schedules_grouped`]).
//!
//! # Writing a backend
//!
//! Implement [`Named`] and [`Quantizer`] or [`Matmul`] or both. Call
//! [`check_environment`](crate::check_environment) on every thread that computes. Never write a rule
//! again that [`reference`](mod@crate::reference) already has.
//!
//! [C3]: crate::contract#c3

#[cfg(feature = "alloc")]
pub mod erased;
mod grouped;
mod query;
mod resident;

use core::ops::Range;

pub use grouped::{GroupedError, GroupedProduct, expect_grouped, one_by_one};
pub use query::{MatmulQuery, Paths, QuantizeInput, QuantizeQuery};
pub use resident::{Resident, Sink, Source};

use crate::counts::QuantCounts;
use crate::epilogue::Epilogue;
use crate::error::{Error, Unsupported};
use crate::exact::PartialsMut;
use crate::float::FloatSliceMut;
use crate::packed::{Packed, PackedMut, PackedShape, PackedView};

/// A backend's name, as users write it: `reference`, `cpu-simd`, `cuda`.
pub trait Named {
    /// The name; the same for the backend's two roles.
    fn name(&self) -> &str;
}

/// Quantizes activations and weights (C4, C5).
pub trait Quantizer: Named {
    /// Can this backend quantize such an input?
    ///
    /// # Errors
    /// The reason why not.
    fn supports_quantize(&self, query: &QuantizeQuery) -> Result<(), Unsupported>;

    /// Writes packed codes and row-major scales of `input` to `out`, and counts what that did to
    /// the values: the counts of the reference.
    ///
    /// # Errors
    /// A shape or format that does not fit, [`Error::Unsupported`], [`Error::Environment`], or a
    /// device failure. A shape error leaves `out` untouched.
    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error>;
}

/// Multiplies packed operands: A (M, K) by the transpose of B (N, K), exact until one rounding
/// (C6).
pub trait Matmul: Named {
    /// A weight in the form that this backend reads, made once by [`prepare`](Self::prepare).
    ///
    /// The type must mention `B`, if only in a `PhantomData<fn() -> B>`: without it the compiler
    /// cannot tell which `B` a call of [`matmul`](Self::matmul) means.
    type Prepared<B: Packed>: PreparedWeight;

    /// Can this backend multiply such operands?
    ///
    /// # Errors
    /// The reason why not.
    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported>;

    /// Can this backend give partial sums for such operands?
    ///
    /// # Errors
    /// The reason why not; by default [`Unsupported::Partials`].
    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        let _ = query;
        Err(Unsupported::Partials)
    }

    /// Prepares the weight B (N, K).
    ///
    /// # Errors
    /// [`Error::NotAMatmulFormat`], [`Error::Unsupported`], or a device failure.
    fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error>;

    /// Writes round(f32(A * B^T) * alpha), or what else the epilogue says, to `out`, (M, N)
    /// row-major, and tells which paths ran. The output's type need not be that of the values
    /// which A was quantized from.
    ///
    /// # Errors
    /// Operands, output or epilogue that do not fit, [`Error::Unsupported`],
    /// [`Error::Environment`], or a device failure.
    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error>;

    /// Computes several products in one call, each with the bits that [`matmul`](Self::matmul)
    /// gives it alone, and writes to each which paths ran for it; returns the paths of all. By
    /// default a loop, which allocates nothing.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul), with the index of the product. All operands, epilogues and
    /// outputs are checked first: with one that does not fit, nothing is written. A device that
    /// fails later may leave some of the outputs written.
    fn grouped<B: Packed>(
        &self,
        products: &mut [GroupedProduct<'_, Self::Prepared<B>>],
    ) -> Result<Paths, GroupedError>
    where
        Self: Sized,
    {
        one_by_one::<Self, B>(self, products)
    }

    /// True if [`grouped`](Self::grouped) gains over a loop of products, so that a caller should
    /// rather pass packed operands through host memory than multiply one by one in a backend's own
    /// form.
    fn schedules_grouped(&self) -> bool {
        false
    }

    /// Adds the exact sums over the weight's groups `groups` along K to `out`, (M, N) row-major.
    ///
    /// # Errors
    /// As [`matmul`](Self::matmul); [`Error::Range`], [`Error::PartialKind`],
    /// [`Error::PartialOverflow`]; by default [`Unsupported::Partials`].
    fn partial<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &Self::Prepared<B>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        let _ = (a, b, groups, out);
        Err(Unsupported::Partials.into())
    }

    /// Writes the packed matrix that the weight was prepared from to `out`, bit for bit, so that
    /// whoever prepares a weight need not keep it too.
    ///
    /// # Errors
    /// [`Error::FormatMismatch`] or [`Error::ShapeMismatch`] if `out` has another shape; a device
    /// failure.
    fn export_weight<B: Packed>(
        &self,
        b: &Self::Prepared<B>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error>;
}

/// What every prepared weight can tell.
pub trait PreparedWeight {
    /// Shape and format of the weight: N rows of K elements.
    fn shape(&self) -> PackedShape;
}
