//! Several products in one call: the experts of a mixture, the projections of one input.
//!
//! ```text
//! for each product g:    out_g = round(f32(A_g * B_g^T) * alpha_g)     or what its epilogue says
//! ```
//!
//! Each product has the bits that it has alone ([C6]): what one call gives a backend is the
//! schedule. Experts that see a few rows each are too small to be cut for threads one by one, and
//! together they are not.
//!
//! Worked example: 3 experts of weights (N, K), rows routed 2, 0, 1: three [`GroupedProduct`]s
//! whose A are rows 0..2, 2..2 and 2..3 of the sorted activations, whose outputs are as many rows
//! of N. The second one reads and writes nothing.
//!
//! [C6]: crate::contract#c6

use core::fmt;

use crate::backend::{Matmul, MatmulQuery, Paths, PreparedWeight};
use crate::environment::check_environment;
use crate::epilogue::Epilogue;
use crate::error::{Buffer, Error};
use crate::float::FloatSliceMut;
use crate::packed::{Packed, PackedView};

/// One product of a grouped call ([`Matmul::grouped`]): the arguments of a
/// [`matmul`](Matmul::matmul).
///
/// The products of a call may differ in everything: shape, encodings, epilogue, type of the output.
/// `W` is the weight's type, which they share.
#[non_exhaustive]
#[derive(Debug)]
pub struct GroupedProduct<'a, W: ?Sized> {
    /// A, (M, K). M may be 0.
    pub a: PackedView<'a>,
    /// B, (N, K), prepared. Several products may have the same one.
    pub b: &'a W,
    /// Alpha, row scales and bias of this product.
    pub epilogue: Epilogue<'a>,
    /// (M, N) row-major.
    pub out: FloatSliceMut<'a>,
    /// Which paths ran for this product: written by the call.
    pub paths: Paths,
}

impl<'a, W: ?Sized> GroupedProduct<'a, W> {
    /// A product of `a` by `b`, to be written to `out`.
    pub fn new(
        a: PackedView<'a>,
        b: &'a W,
        epilogue: impl Into<Epilogue<'a>>,
        out: impl Into<FloatSliceMut<'a>>,
    ) -> Self {
        let (epilogue, out) = (epilogue.into(), out.into());
        GroupedProduct { a, b, epilogue, out, paths: Paths::default() }
    }
}

impl<W: PreparedWeight> GroupedProduct<'_, W> {
    /// Checks that operands, epilogue and output fit together, and says what the product asks of a
    /// backend.
    ///
    /// # Errors
    /// Those of [`Matmul::matmul`] for operands, epilogue or output that do not fit.
    pub fn query(&self) -> Result<MatmulQuery, Error> {
        let (a, b) = (self.a.shape(), self.b.shape());
        let product = a.expect_product(&b)?;
        self.epilogue.expect(a.rows(), b.rows())?;
        self.out.as_ref().expect_len(Buffer::Output, a.rows() * b.rows())?;
        let query = MatmulQuery::new(product.b, [a.rows(), b.rows(), a.k()], self.out.float_type());
        Ok(query.with_a(product.a).with_epilogue(&self.epilogue))
    }
}

/// Checks all that a grouped call can be refused for before anything is written: the thread's
/// environment (C9), each product by itself, and that the backend supports it. For backends that
/// have a [`Matmul::grouped`] of their own.
///
/// # Errors
/// The first thing wrong, with the index of its product.
pub fn expect_grouped<M: Matmul, B: Packed>(
    backend: &M,
    products: &[GroupedProduct<'_, M::Prepared<B>>],
) -> Result<(), GroupedError> {
    check_environment()?;
    products.iter().enumerate().try_for_each(|(i, product)| {
        let supported = |query: MatmulQuery| Ok(backend.supports_matmul(&query)?);
        product.query().and_then(supported).map_err(|error| GroupedError::of(i, error))
    })
}

/// What [`Matmul::grouped`] does by default: checks all, then multiplies one product after the
/// other. It allocates nothing.
///
/// # Errors
/// As [`Matmul::grouped`].
pub fn one_by_one<M: Matmul, B: Packed>(
    backend: &M,
    products: &mut [GroupedProduct<'_, M::Prepared<B>>],
) -> Result<Paths, GroupedError> {
    expect_grouped::<M, B>(backend, products)?;
    let mut all = Paths::default();
    for (i, product) in products.iter_mut().enumerate() {
        let GroupedProduct { a, b, epilogue, out, paths } = product;
        let ran = backend.matmul::<B>(*a, b, *epilogue, out.reborrow());
        *paths = ran.map_err(|error| GroupedError::of(i, error))?;
        all.merge(paths);
    }
    Ok(all)
}

/// What was wrong with a grouped call, and in which of its products.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupedError {
    /// Index of the product; `None` if it is the matter of no one product.
    pub product: Option<usize>,
    /// What was wrong.
    pub error: Error,
}

impl GroupedError {
    /// Something wrong with product `index`.
    pub const fn of(index: usize, error: Error) -> Self {
        GroupedError { product: Some(index), error }
    }
}

/// Of the whole call.
impl From<Error> for GroupedError {
    fn from(error: Error) -> Self {
        GroupedError { product: None, error }
    }
}

impl fmt::Display for GroupedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.product {
            Some(i) => write!(f, "product {i} of the grouped call (from 0): {}", self.error),
            None => fmt::Display::fmt(&self.error, f),
        }
    }
}

impl core::error::Error for GroupedError {
    fn source(&self) -> Option<&(dyn core::error::Error + 'static)> {
        Some(&self.error)
    }
}
