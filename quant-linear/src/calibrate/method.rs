//! Quantizing a weight: round to nearest, GPTQ and Babai.
//!
//! ```text
//! weight W (rows, k), after the transform; second moments G of the transformed input
//! order   natural, or by descending diag G (act-order)
//! for each block of inputs, in order:                        rows in parallel, 64 at a time
//!     x = W of the block, plus what errors of earlier blocks are carried to it     (outer)
//!     scale bytes of its groups, by the rule, from x; frozen from here on
//!     for each input of the block: round, and carry the error on within the block  (inner)
//! ```
//!
//! | method | order | error of an input goes to | factor |
//! |---|---|---|---|
//! | `rtn` | any | nowhere | none |
//! | `gptq` | first to last | later inputs | M, M M^T = H^-1 |
//! | `babai` | last to first | earlier inputs | L, L L^T = H |
//!
//! GPTQ minimizes tr((W - Q) H (W - Q)^T) greedily: after an input is rounded, all that are not
//! yet take their best real values. Babai's nearest plane does the same from the other end, so it
//! is GPTQ on the reversed order. `inner` and `outer` are chosen independently: with `rtn` for one
//! of them, errors stay across, or within, blocks; with one `gptq` and the other `babai`, blocks
//! are taken in one direction and their inputs in the other. A block's own inputs are decided by
//! what is left of H once earlier blocks are fixed.
//!
//! Codes are those of the contract (C4.3), so `rtn` gives the bits of the reference's quantizer.
//!
//! Sources: Frantar et al., "GPTQ", ICLR 2023, arXiv 2210.17323; Chen et al., "The geometry of LLM
//! quantization: GPTQ as Babai's nearest plane algorithm", arXiv 2507.18553.

use std::fmt;
use std::str::FromStr;

use fp4_core::{Element, GroupSize, PackedMatrix, QuantSpec};
use rayon::prelude::*;

use super::factor::Factors;
use super::gram::{Gram, expect_finite, expect_rows, expect_width};
use super::panel::{Panel, Work};
use crate::error::{CalibrateError, Error};

/// Rows of a weight that are one task.
pub(super) const PANEL: usize = 64;
/// Inputs that are taken at a time where the block is not what matters.
const LAZY: usize = 128;

/// How a weight is rounded: where the error of an input goes.
///
/// With H the damped second moments, `gptq` and `babai` make tr((W - Q) H (W - Q)^T) small: once an
/// input is rounded, all that are left take their best real values. Babai is GPTQ on the reversed
/// order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Method {
    /// To nearest.
    #[default]
    Rtn,
    /// GPTQ: from the first input to the last.
    Gptq,
    /// Babai's nearest plane: from the last input to the first.
    Babai,
}

impl Method {
    /// All methods.
    pub const ALL: [Method; 3] = [Method::Rtn, Method::Gptq, Method::Babai];

    /// The name, as users write it.
    pub const fn name(self) -> &'static str {
        match self {
            Method::Rtn => "rtn",
            Method::Gptq => "gptq",
            Method::Babai => "babai",
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Method {
    type Err = Error;

    /// # Errors
    /// [`CalibrateError::Name`].
    fn from_str(name: &str) -> Result<Self, Error> {
        let found = Method::ALL.into_iter().find(|method| method.name() == name);
        found.ok_or_else(|| {
            let (what, expected) = ("method", "rtn, gptq or babai");
            CalibrateError::Name { what, expected, got: name.into() }.into()
        })
    }
}

/// What a group's scale byte is found from; it is frozen then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum GroupScales {
    /// The group's values as its block is reached, with the errors carried there so far.
    #[default]
    Reached,
    /// The weight as it was given. Under act-order always.
    Original,
}

/// How [`quantize_weight`] works.
///
/// `inner` and `outer` are independent: with `rtn` for one of them errors stay across, or within,
/// blocks; with one `gptq` and the other `babai`, blocks are taken in one direction and the inputs
/// of each in the other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QuantizeOptions {
    /// Format, global scale, scale rule and ties.
    pub spec: QuantSpec,
    /// How errors go within a block.
    pub inner: Method,
    /// How errors go across blocks.
    pub outer: Method,
    /// Inputs of a block, that of the transform; a group where that is longer. Where `inner` and
    /// `outer` agree it is of no account, but for [`GroupScales::Reached`]: blocks are of 128.
    pub block: GroupSize,
    /// Added to the diagonal of the second moments, as a share of its mean.
    pub damping: f64,
    /// Takes inputs by descending second moment, stable; groups keep their own scales.
    pub act_order: bool,
    /// What scale bytes are found from.
    pub scales: GroupScales,
}

impl QuantizeOptions {
    /// One method inside blocks and across, with damping 0.01, in the natural order.
    pub fn new(spec: QuantSpec, method: Method) -> Self {
        QuantizeOptions {
            spec,
            inner: method,
            outer: method,
            block: GroupSize::G128,
            damping: 1e-2,
            act_order: false,
            scales: GroupScales::Reached,
        }
    }

    /// True if the second moments of the input are looked at.
    pub fn needs_moments(&self) -> bool {
        self.inner != Method::Rtn || self.outer != Method::Rtn
    }

    /// Checks what does not depend on a weight.
    ///
    /// # Errors
    /// [`CalibrateError::NotForWeights`], [`CalibrateError::Damping`], [`CalibrateError::Order`].
    pub fn check(&self) -> Result<(), Error> {
        let got = match (self.spec.element(), self.spec.row_scales()) {
            (Element::E2m1, false) => None,
            (Element::E2m1, true) => Some("row scales"),
            (Element::Int8, _) => Some("MXINT8"),
        };
        if let Some(got) = got {
            return Err(CalibrateError::NotForWeights { got }.into());
        }
        if !(self.damping.is_finite() && self.damping >= 0.0) {
            return Err(CalibrateError::Damping { got: self.damping }.into());
        }
        if self.act_order && self.inner != self.outer {
            let (inner, outer) = (self.inner.name(), self.outer.name());
            return Err(CalibrateError::Order { inner, outer }.into());
        }
        Ok(())
    }

    fn block_len(&self) -> usize {
        let least = self.spec.group().get();
        least.max(if self.inner == self.outer { LAZY } else { self.block.get() })
    }

    fn scales(&self) -> GroupScales {
        if self.act_order { GroupScales::Original } else { self.scales }
    }
}

/// Quantizes a row-major weight of `k` inputs, after the transform. `gram` are the second moments
/// of the transformed input; `rtn` needs none.
///
/// # Errors
/// [`CalibrateError::Ragged`], [`CalibrateError::NotFinite`] of the weight;
/// [`fp4_core::Error::KNotWholeGroups`]; what [`QuantizeOptions::check`] refuses;
/// [`CalibrateError::NoMoments`], [`CalibrateError::Width`], [`CalibrateError::NoSamples`],
/// [`CalibrateError::NotPositiveDefinite`] of the moments; [`CalibrateError::Diverged`];
/// [`fp4_core::Error::Environment`].
pub fn quantize_weight(
    weight: &[f32],
    k: usize,
    gram: Option<&Gram>,
    options: &QuantizeOptions,
) -> Result<PackedMatrix, Error> {
    fp4_core::check_environment()?;
    options.check()?;
    let rows = expect_rows("weight", weight, k)?;
    expect_finite("weight", weight, k)?;
    let shape = options.spec.shape(rows, k)?;
    let block = options.block_len();
    let mut order: Vec<usize> = (0..k).collect();
    let factors = match gram.filter(|_| options.needs_moments()) {
        Some(gram) => {
            expect_width("second moments", k, gram.k())?;
            gram.expect_samples()?;
            if options.act_order {
                let diagonal = gram.diagonal();
                order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
                if options.outer == Method::Babai {
                    order.reverse();
                }
            }
            Factors::new(gram, options, &order, block)?
        }
        None if options.needs_moments() => {
            let method = if options.outer == Method::Rtn { options.inner } else { options.outer };
            return Err(CalibrateError::NoMoments { method: method.name() }.into());
        }
        None => Factors { outer: None, inner: Vec::new() },
    };
    let mut packed = PackedMatrix::zeros(shape);
    if rows == 0 || k == 0 {
        return Ok(packed);
    }
    let scales = options.scales();
    let work = Work { options, factors: &factors, order: &order, block, scales };
    let mut out = packed.view_mut();
    let (codes, bytes) = out.buffers();
    let panels = weight.par_chunks(PANEL * k).enumerate();
    let code_panels = codes.par_chunks_mut(PANEL * (k / 2));
    let scale_panels = bytes.par_chunks_mut(PANEL * shape.row_groups());
    // Every panel runs to its end, so that the error is the first row's on any number of threads.
    let results: Vec<Result<(), Error>> = panels
        .zip(code_panels)
        .zip(scale_panels)
        .map(|(((p, weight), codes), scales)| {
            fp4_core::check_environment()?;
            Panel::new(&work, p * PANEL, weight, codes, scales).run()
        })
        .collect();
    results.into_iter().collect::<Result<(), Error>>()?;
    Ok(packed)
}
