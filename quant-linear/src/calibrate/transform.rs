//! Block transforms T: activations become T x, weights W T^-1, and the product stays.
//!
//! ```text
//! identity   none
//! random     orthogonal: a Gaussian matrix, orthonormalized (one block for all)
//! hadamard   (-1)^popcount(i & j) / sqrt(d)                 (one block for all)
//! wush       of the block's second moments of weight and activations ([`wush`](self::wush))
//! ```
//!
//! T is rounded to bf16, which is what a layer stores, and everything after uses the rounded T:
//! W T^-1 is solved with it by LU (never an inverse), in f64, and rounded once to f32. So rounding
//! T costs nothing of the product, whatever its kind: W T^-1 T x = W x.
//!
//! Worked example, d = 16, Hadamard: entries are +-1/4, exact in bf16. For d = 32 they are
//! +-0.1767, rounded to +-0.1768: T T^T is 1.0002 I, and W T^-1 makes up for it.
//!
//! Source of WUSH: Chen et al., "WUSH: near-optimal adaptive transforms for LLM quantization",
//! arXiv 2512.00956.

use std::fmt;
use std::str::FromStr;

use fp4_core::{Float, FloatVec, GroupSize, OwnedTransform as StoredTransform, with_floats};
use rayon::prelude::*;

use super::gram::{Gram, expect_finite, expect_rows, whole_blocks};
use super::linalg::{Lu, Mat, MatRef};
use super::random::Gaussian;
use super::wush;
use crate::error::{CalibrateError, Error};

/// The largest condition number of a block, in the 1-norm, that is taken: what f32 rounding of
/// W T^-1 costs of the product grows with it, to some 1e-7 times it at the worst.
pub const LARGEST_CONDITION: f64 = 1e5;

/// Rows of a weight that are one task.
const PANEL: usize = 128;

/// The kinds of transforms, by the names that users write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TransformKind {
    /// No transform (`i`).
    #[default]
    Identity,
    /// Random orthogonal (`r`).
    Random,
    /// Normalized Hadamard (`h`).
    Hadamard,
    /// WUSH (`wush`).
    Wush,
}

impl TransformKind {
    /// All kinds.
    pub const ALL: [TransformKind; 4] = [
        TransformKind::Identity,
        TransformKind::Random,
        TransformKind::Hadamard,
        TransformKind::Wush,
    ];

    /// The name.
    pub const fn name(self) -> &'static str {
        match self {
            TransformKind::Identity => "i",
            TransformKind::Random => "r",
            TransformKind::Hadamard => "h",
            TransformKind::Wush => "wush",
        }
    }
}

impl fmt::Display for TransformKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for TransformKind {
    type Err = Error;

    /// # Errors
    /// [`CalibrateError::Name`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let found = TransformKind::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| {
            let (what, expected) = ("transform", "i, r, h or wush");
            CalibrateError::Name { what, expected, got: name.into() }.into()
        })
    }
}

/// What WUSH's scale c keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum KeptNorm {
    /// c = 1: weight and activations get the same second moments.
    #[default]
    Balanced,
    /// The mean square of the weight in the block.
    Weight,
    /// The mean square of the activations in the block.
    Activation,
}

/// How WUSH is made.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WushOptions {
    /// Added to both diagonals, as a share of their mean.
    pub damping: f64,
    /// What the scale keeps.
    pub norm: KeptNorm,
}

impl Default for WushOptions {
    fn default() -> Self {
        WushOptions { damping: 1e-2, norm: KeptNorm::Balanced }
    }
}

/// A block transform of `k` inputs, its values rounded to bf16, with what undoes it.
#[derive(Debug, Clone)]
pub struct BlockTransform {
    k: usize,
    block: GroupSize,
    /// None, one for all blocks, or one for each.
    matrices: Vec<Mat<f64>>,
    undo: Vec<Lu>,
    stored: Option<StoredTransform>,
    raised: Vec<usize>,
}

impl BlockTransform {
    /// No transform.
    ///
    /// # Errors
    /// [`CalibrateError::Blocks`] unless `k` is whole blocks.
    pub fn identity(k: usize, block: GroupSize) -> Result<Self, Error> {
        whole_blocks(k, block.get())?;
        let (matrices, undo, raised) = (Vec::new(), Vec::new(), Vec::new());
        Ok(BlockTransform { k, block, matrices, undo, stored: None, raised })
    }

    /// The normalized Hadamard matrix in Sylvester's order, one for all blocks.
    ///
    /// # Errors
    /// [`CalibrateError::Blocks`].
    pub fn hadamard(k: usize, block: GroupSize) -> Result<Self, Error> {
        Self::shared(k, block, &hadamard(block.get()))
    }

    /// A random orthogonal matrix, one for all blocks: uniform over all of them (Haar), as the Q
    /// of a Gaussian matrix whose R has a diagonal above zero. The bits depend on the seed alone.
    ///
    /// # Errors
    /// [`CalibrateError::Blocks`].
    pub fn random_orthogonal(k: usize, block: GroupSize, seed: u64) -> Result<Self, Error> {
        Self::shared(k, block, &random_orthogonal(block.get(), seed))
    }

    /// WUSH, one matrix for each block, of the activations' second moments and of the weights that
    /// they are multiplied by: row-major rows of `gram.k()` values each. Several weights (q, k and
    /// v) count as one with all their rows. Of each block:
    ///
    /// ```text
    /// G_w = W^T W / rows, G_x = X^T X / samples    each plus damping * mean(diag G) * I
    /// L L^T = G_w, U S^2 U^T = L^T G_x L           Cholesky, eigenvalues
    /// T = c H diag(S^-1/2) U^T L^T                 H: normalized Hadamard; c by `options.norm`
    /// ```
    ///
    /// A G of a block that is all zero is taken as I. A block that cannot be undone, or whose
    /// condition is above [`LARGEST_CONDITION`], gets ten times the damping and at least 1e-4,
    /// again and again up to 1: [`raised`](Self::raised) says which.
    ///
    /// # Errors
    /// [`CalibrateError::Blocks`], [`CalibrateError::NoSamples`], [`CalibrateError::Damping`];
    /// [`CalibrateError::Ragged`] or [`CalibrateError::NotFinite`] of a weight;
    /// [`CalibrateError::Singular`] or [`CalibrateError::Eigenvalues`] of a block that no damping
    /// up to 1 mends.
    pub fn wush(
        gram: &Gram,
        weights: &[&[f32]],
        block: GroupSize,
        options: &WushOptions,
    ) -> Result<Self, Error> {
        let (k, d) = (gram.k(), block.get());
        let blocks = wush::blocks(gram, weights, block, options)?;
        let mut raised = Vec::new();
        let (mut matrices, mut undo) = (Vec::new(), Vec::new());
        let mut values = Vec::with_capacity(k * d);
        for (b, made) in blocks.into_iter().enumerate() {
            if made.damping > options.damping {
                raised.push(b);
            }
            values.extend(made.values.iter().map(|&x| half::bf16::from_f64(x)));
            matrices.push(Mat::from_fn(d, d, |i, j| made.values[i * d + j]));
            undo.push(made.undo);
        }
        let stored = StoredTransform::new(FloatVec::Bf16(values), vec![k / d, d, d])?;
        Ok(BlockTransform { k, block, matrices, undo, stored: Some(stored), raised })
    }

    /// A transform that a layer of `k` inputs stores, with its values as they are.
    ///
    /// # Errors
    /// [`fp4_core::Error::TransformShape`] if it does not fit; [`CalibrateError::Singular`] if a
    /// block cannot be undone; [`CalibrateError::NotFinite`].
    pub fn from_stored(k: usize, stored: &StoredTransform) -> Result<Self, Error> {
        let view = stored.view()?;
        view.expect_k(k)?;
        let d = view.block();
        let values: Vec<f64> = with_floats!(FloatSlice, view.values(), v => {
            v.iter().map(|x| f64::from(Float::to_f32(*x))).collect()
        });
        if let Some(at) = values.iter().position(|x| !x.is_finite()) {
            let (row, column, value) = ((at / d) as u64, at % d, values[at]);
            let what = "transform";
            return Err(CalibrateError::NotFinite { what, row, column, value }.into());
        }
        let undo = values.chunks_exact(d * d).enumerate();
        let undo = undo.map(|(b, t)| undoing(t, d, b, 0.0)).collect::<Result<_, _>>()?;
        let matrices = values.chunks_exact(d * d);
        let matrices = matrices.map(|t| Mat::from_fn(d, d, |i, j| t[i * d + j])).collect();
        let (block, stored, raised) = (GroupSize::new(d)?, Some(stored.clone()), Vec::new());
        Ok(BlockTransform { k, block, matrices, undo, stored, raised })
    }

    fn shared(k: usize, block: GroupSize, values: &[f64]) -> Result<Self, Error> {
        let d = block.get();
        whole_blocks(k, d)?;
        let values = values.iter().map(|&x| half::bf16::from_f64(x)).collect();
        Self::from_stored(k, &StoredTransform::new(FloatVec::Bf16(values), vec![d, d])?)
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        self.k
    }

    /// Inputs of a block.
    pub fn block(&self) -> GroupSize {
        self.block
    }

    /// True if there is no transform.
    pub fn is_identity(&self) -> bool {
        self.matrices.is_empty()
    }

    /// What a layer stores: (d, d) or (k / d, d, d) in bf16; `None` for the identity.
    pub fn stored(&self) -> Option<&StoredTransform> {
        self.stored.as_ref()
    }

    /// Blocks whose damping had to be raised for them to be undone.
    pub fn raised(&self) -> &[usize] {
        &self.raised
    }

    /// The matrix of block `b`. Not of the identity.
    pub(super) fn matrix(&self, b: usize) -> MatRef<'_, f64> {
        self.matrices[b.min(self.matrices.len() - 1)].as_ref()
    }

    /// T x for rows x, by the contract's chain of f32 (C5): what a layer's quantizer sees.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`].
    pub fn activations_through(&self, x: &[f32]) -> Result<Vec<f32>, Error> {
        expect_rows("activations", x, self.k)?;
        let Some(stored) = &self.stored else { return Ok(x.to_vec()) };
        match crate::transform::transformed(x.into(), self.k, &stored.view()?)? {
            FloatVec::F32(y) => Ok(y),
            other => unreachable!("f32 became {}", other.float_type()),
        }
    }

    /// T x in f64.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`].
    pub fn activations_through_f64(&self, x: &[f32]) -> Result<Vec<f64>, Error> {
        let rows = expect_rows("activations", x, self.k)?;
        let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
        if self.is_identity() {
            return Ok(wide);
        }
        let (k, d) = (self.k, self.block.get());
        let mut y = vec![0.0; x.len()];
        let pieces = y.par_chunks_mut(PANEL * k.max(1)).zip(wide.par_chunks(PANEL * k.max(1)));
        pieces.for_each(|(y, x)| {
            let rows = x.len() / k;
            let x = MatRef::from_row_major_slice(x, rows, k);
            let mut y = super::linalg::MatMut::from_row_major_slice_mut(y, rows, k);
            for b in 0..k / d {
                let (to, from) = (y.as_mut().subcols_mut(b * d, d), x.subcols(b * d, d));
                super::linalg::product(to, from, self.matrix(b).transpose());
            }
        });
        debug_assert_eq!(y.len(), rows * k);
        Ok(y)
    }

    /// W T^-1 for a row-major weight, solved in f64 and rounded once to f32.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`]; [`CalibrateError::NotFinite`] with the row and the column, of
    /// the weight or of the result where it overflows f32.
    pub fn weight_through(&self, weight: &[f32]) -> Result<Vec<f32>, Error> {
        let wide = self.weight_through_f64(weight)?;
        let narrow: Vec<f32> = wide.into_iter().map(|x| x as f32).collect();
        expect_finite("transformed weight", &narrow, self.k)?;
        Ok(narrow)
    }

    /// W T^-1 in f64.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`], [`CalibrateError::NotFinite`].
    pub fn weight_through_f64(&self, weight: &[f32]) -> Result<Vec<f64>, Error> {
        expect_rows("weight", weight, self.k)?;
        expect_finite("weight", weight, self.k)?;
        let mut wide: Vec<f64> = weight.iter().map(|&x| f64::from(x)).collect();
        if !self.is_identity() {
            let (k, d) = (self.k, self.block.get());
            wide.par_chunks_mut(PANEL * k.max(1)).for_each(|rows| {
                for b in 0..k / d {
                    self.undo[b.min(self.undo.len() - 1)].solve_rows(rows, k, b * d);
                }
            });
        }
        Ok(wide)
    }
}

/// What undoes a block, if its condition is taken.
pub(super) fn undoing(t: &[f64], d: usize, block: usize, damping: f64) -> Result<Lu, Error> {
    let most = LARGEST_CONDITION;
    let singular = |condition| CalibrateError::Singular { block, condition, most, damping };
    let lu = Lu::new(t, d).ok_or_else(|| singular(f64::INFINITY))?;
    match lu.condition() {
        condition if condition <= most => Ok(lu),
        condition => Err(singular(condition).into()),
    }
}

/// The normalized Hadamard matrix of `d`, a power of two, row-major.
pub(super) fn hadamard(d: usize) -> Vec<f64> {
    let scale = 1.0 / (d as f64).sqrt();
    let odd = |i: usize| ((i / d) & (i % d)).count_ones() % 2 == 1;
    (0..d * d).map(|i| if odd(i) { -scale } else { scale }).collect()
}

/// A random orthogonal matrix of `d`, row-major, by orthonormalizing Gaussian rows one after the
/// other, twice each: the Q of their QR with R's diagonal above zero.
fn random_orthogonal(d: usize, seed: u64) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let mut gaussian = Gaussian::new(seed);
    let mut q: Vec<f64> = Vec::with_capacity(d * d);
    while q.len() < d * d {
        let mut row: Vec<f64> = (0..d).map(|_| gaussian.next()).collect();
        let before = dot(&row, &row);
        for _ in 0..2 {
            for other in q.chunks_exact(d) {
                let along = dot(&row, other);
                row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
            }
        }
        let square = dot(&row, &row);
        // A row in the span of the others, which has no chance to speak of, is drawn again.
        if square > 1e-20 * before {
            q.extend(row.iter().map(|x| x / square.sqrt()));
        }
    }
    q
}
