//! Device buffers of one call on host operands, kept for the next ones.

use std::sync::Arc;

use fp4_core::Error;

use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::operand::packed::CudaOperand;

/// Device buffers of one call.
#[derive(Debug)]
pub(crate) struct Staging {
    pub(crate) operand: CudaOperand,
    pub(crate) output: Buffer,
    pub(crate) spare: Buffer,
    pub(crate) given: Buffer,
    pub(crate) sums: [Buffer; 2],
    pub(crate) row_scales: Buffer,
    pub(crate) paths: Buffer,
    /// Of the products of a grouped call.
    pub(crate) members: Vec<Member>,
}

impl Staging {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, Error> {
        Ok(Staging {
            operand: CudaOperand::new(gpu)?,
            output: Buffer::default(),
            spare: Buffer::default(),
            given: Buffer::default(),
            sums: Default::default(),
            row_scales: Buffer::default(),
            paths: Buffer::default(),
            members: Vec::new(),
        })
    }

    /// Bytes of device memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        let Staging { output, spare, given, sums: [units, nans], row_scales, paths, .. } = self;
        let own = [output, spare, given, units, nans, row_scales, paths];
        let members = self.members.iter().map(Member::allocated_bytes).sum::<usize>();
        let own: usize = own.iter().map(|buffer| buffer.len()).sum();
        own + self.operand.allocated_bytes() + members
    }
}

/// Device buffers of one product of a call.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) operand: CudaOperand,
    pub(crate) output: Buffer,
    pub(crate) row_scales: Buffer,
}

impl Member {
    pub(crate) fn new(gpu: &Arc<Gpu>) -> Result<Self, Error> {
        let operand = CudaOperand::new(gpu)?;
        Ok(Member { operand, output: Buffer::default(), row_scales: Buffer::default() })
    }

    /// Bytes of device memory held.
    pub(crate) fn allocated_bytes(&self) -> usize {
        self.operand.allocated_bytes() + self.output.len() + self.row_scales.len()
    }
}
