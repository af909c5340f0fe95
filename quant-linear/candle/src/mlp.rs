//! The MLP of a decoder over layers of either kind.
//!
//! ```text
//! y = down(silu(gate(x)) * up(x))      silu(v) = v / (1 + exp(-v))
//! ```
//!
//! The step between the layers is candle's unless another is given. Candle's `exp` is that of the
//! system, or of MKL: not every machine has the same bits. The layers' own are the same everywhere.

use candle_core::{Module, Tensor};
use candle_nn::ops::silu;

use crate::error::Error;
use crate::swap::{AnyLinear, Linears, Visit, join};
use crate::{Fp4Linear, Fp4VarBuilder};

/// What is between the layers: the outputs of gate and of up to the input of down.
pub type Product = fn(&Tensor, &Tensor) -> candle_core::Result<Tensor>;

/// The gated MLP of Llama, Mistral, Qwen and their like: `down(silu(gate(x)) * up(x))`.
#[derive(Debug, Clone)]
pub struct GatedMlp {
    /// (wide, hidden).
    pub gate: AnyLinear,
    /// (wide, hidden).
    pub up: AnyLinear,
    /// (hidden, wide).
    pub down: AnyLinear,
    product: Product,
}

impl GatedMlp {
    /// An MLP of these layers.
    pub fn new(
        gate: impl Into<AnyLinear>,
        up: impl Into<AnyLinear>,
        down: impl Into<AnyLinear>,
    ) -> Self {
        let (gate, up, down) = (gate.into(), up.into(), down.into());
        GatedMlp { gate, up, down, product: |gate, up| silu(gate)? * up }
    }

    /// The layers `gate_proj`, `up_proj` and `down_proj` below the builder's prefix, quantized or
    /// dense as the checkpoint has them, without biases.
    ///
    /// # Errors
    /// As [`Fp4VarBuilder::linear`].
    pub fn load(vb: &Fp4VarBuilder, hidden: usize, wide: usize) -> Result<Self, Error> {
        Ok(GatedMlp::new(
            vb.pp("gate_proj").linear(hidden, wide, false)?,
            vb.pp("up_proj").linear(hidden, wide, false)?,
            vb.pp("down_proj").linear(wide, hidden, false)?,
        ))
    }

    /// The same with another step between the layers: another activation, or one with an `exp` of
    /// its own.
    #[must_use]
    pub fn with_product(self, product: Product) -> Self {
        GatedMlp { product, ..self }
    }

    /// The layers that are in FP4.
    pub fn fp4(&self) -> impl Iterator<Item = &Fp4Linear> {
        [&self.gate, &self.up, &self.down].into_iter().filter_map(AnyLinear::fp4)
    }
}

impl Module for GatedMlp {
    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let wide = (self.product)(&self.gate.forward(x)?, &self.up.forward(x)?)?;
        self.down.forward(&wide)
    }
}

impl Linears for GatedMlp {
    fn visit_linears(&mut self, prefix: &str, visit: &mut Visit<'_>) -> Result<(), Error> {
        visit(&join(prefix, "gate_proj"), &mut self.gate)?;
        visit(&join(prefix, "up_proj"), &mut self.up)?;
        visit(&join(prefix, "down_proj"), &mut self.down)
    }
}
