//! Activations quantized once, for every layer with the same settings: q, k and v; gate and up.

use std::fmt;
use std::sync::Arc;

use fp4_core::{FloatType, PackedMatrix, QuantSpec};

use crate::error::Error;
use crate::layer::{Loaded, QuantLinear, SharedTransform};
use crate::run::runtime::Runtime;
use crate::run::scratch::Operand;

/// Quantized rows, to be multiplied by the weight of any layer with the same settings and K.
///
/// [`QuantLinear::quantize`](crate::QuantLinear::quantize) makes one,
/// [`QuantLinear::forward_quantized_into`](crate::QuantLinear::forward_quantized_into) multiplies it.
/// Its memory goes back to the runtime when it is dropped.
pub struct Activation {
    /// `None` only while it is dropped.
    held: Option<Held>,
    /// A scale for each row, where the settings ask for them.
    row_scales: Vec<f32>,
    runtime: Runtime,
    settings: Settings,
    rows: usize,
    k: usize,
    float_type: FloatType,
}

/// What decides the bits of a quantized row.
#[derive(Clone)]
pub(super) struct Settings {
    pub(super) spec: QuantSpec,
    pub(super) transform: Option<Arc<SharedTransform>>,
}

/// Quantized rows in one of two forms.
pub(super) enum Held {
    /// Packed codes and scales on the host.
    Packed(PackedMatrix),
    /// The form of a backend, in its memory.
    Operand(Operand),
}

impl Settings {
    pub(super) fn of(loaded: &Loaded) -> Self {
        Settings { spec: loaded.quantized_by, transform: loaded.transform.clone() }
    }

    pub(super) fn same(&self, other: &Settings) -> bool {
        // The spec first: to compare transforms may take long.
        self.spec == other.spec
            && match (&self.transform, &other.transform) {
                (None, None) => true,
                (Some(a), Some(b)) => Arc::ptr_eq(a, b) || a.stored() == b.stored(),
                _ => false,
            }
    }
}

impl Activation {
    pub(super) fn new(
        held: Held,
        runtime: Runtime,
        settings: Settings,
        [rows, k]: [usize; 2],
        float_type: FloatType,
    ) -> Self {
        Activation {
            held: Some(held),
            row_scales: Vec::new(),
            runtime,
            settings,
            rows,
            k,
            float_type,
        }
    }

    pub(super) fn with_row_scales(self, row_scales: Vec<f32>) -> Self {
        let mut activation = self;
        activation.row_scales = row_scales;
        activation
    }

    /// The scales of the rows, where the settings ask for them.
    pub(super) fn row_scales(&self) -> &[f32] {
        &self.row_scales
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Elements of a row: the input features of the layers that it is for.
    pub fn k(&self) -> usize {
        self.k
    }

    /// The type that the values had.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// Name of the backend in whose own form the values are; `None` is packed codes on the host.
    pub fn device(&self) -> Option<&str> {
        match &self.held {
            Some(Held::Operand(operand)) => Some(operand.backend.name()),
            _ => None,
        }
    }

    /// True if [`QuantLinear::forward_quantized_into`](crate::QuantLinear::forward_quantized_into)
    /// of this layer takes it: same K, settings and transform.
    pub fn fits(&self, layer: &QuantLinear) -> bool {
        layer.loaded().is_ok_and(|loaded| self.expect(loaded).is_ok())
    }

    pub(super) fn held(&self) -> Result<&Held, Error> {
        self.held.as_ref().ok_or(Error::ActivationSettings)
    }

    /// Checks that a layer quantizes as this was quantized.
    pub(super) fn expect(&self, loaded: &Loaded) -> Result<(), Error> {
        let k = loaded.weight.shape().k();
        if self.k != k {
            return Err(Error::InputShape { in_features: k, got: vec![self.rows, self.k] });
        }
        if !self.settings.same(&Settings::of(loaded)) {
            return Err(Error::ActivationSettings);
        }
        Ok(())
    }
}

impl Drop for Activation {
    fn drop(&mut self) {
        match self.held.take() {
            Some(Held::Packed(packed)) => self.runtime.scratch().give_packed(packed),
            Some(Held::Operand(operand)) => self.runtime.scratch().give_operand(operand),
            None => {}
        }
    }
}

impl fmt::Debug for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Activation")
            .field("rows", &self.rows)
            .field("k", &self.k)
            .field("float_type", &self.float_type)
            .field("device", &self.device())
            .finish_non_exhaustive()
    }
}
