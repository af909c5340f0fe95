//! The step between the layers of the decoder's MLP, by the models' own arithmetic: the same bits
//! on every machine.

use candle_core::{CpuStorage, CustomOp2, Layout, Shape, Tensor, bail};
use quant_linear_models::swiglu;

/// `silu(gate) * up` of contiguous tensors of F32.
pub(crate) fn product(gate: &Tensor, up: &Tensor) -> candle_core::Result<Tensor> {
    gate.apply_op2_no_bwd(up, &Swiglu)
}

struct Swiglu;

impl CustomOp2 for Swiglu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn cpu_fwd(
        &self,
        gate: &CpuStorage,
        gate_layout: &Layout,
        up: &CpuStorage,
        up_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let parts = (gate_layout.contiguous_offsets(), up_layout.contiguous_offsets());
        let (Some((from, to)), Some((up_from, up_to))) = parts else {
            bail!("swiglu takes contiguous tensors, as layers give them")
        };
        if gate_layout.shape() != up_layout.shape() {
            bail!("swiglu of {:?} and {:?}", gate_layout.shape(), up_layout.shape());
        }
        let mut wide = gate.as_slice::<f32>()?[from..to].to_vec();
        swiglu(&mut wide, &up.as_slice::<f32>()?[up_from..up_to]);
        Ok((CpuStorage::F32(wide), gate_layout.shape().clone()))
    }
}
