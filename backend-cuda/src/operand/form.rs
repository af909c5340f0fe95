//! Which forms of a weight are kept in device memory.

use fp4_core::Error;

use crate::device::error::DeviceResult;
use crate::device::gpu::Gpu;

/// Whether the folded form of a weight is kept beside its packed form.
///
/// The packed form is always there: decoding reads it (4 bits an element where the other has 8),
/// and so do outputs that the folded form cannot prove exact. The folded form is what the fastest
/// kernels for more than 16 rows multiply; without it each such product folds the weight first,
/// which reads the packed form twice and writes the other, or multiplies the packed form by slower
/// kernels. Neither changes a bit of a result.
///
/// | bytes a weight | packed | and folded |
/// |---|---|---|
/// | MXFP4 | 0.53 | 1.53 |
/// | NVFP4 | 0.56 | 3.56 |
///
/// To these come 20 bytes a row, and padding of K to a multiple of 128 and of rows to one of 128; a
/// folded form is larger where the scales of a row lie far apart, by at most as much again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum FoldedWeights {
    /// Never: the least memory.
    Never,
    /// As long as half of the device's memory stays free: a model that would fill the device leaves
    /// its later weights packed, and one that is small beside it is multiplied at full speed.
    #[default]
    IfAmple,
    /// Whenever there is memory for it.
    Always,
}

/// `true` is [`Always`](FoldedWeights::Always).
impl From<bool> for FoldedWeights {
    fn from(keep: bool) -> Self {
        if keep { FoldedWeights::Always } else { FoldedWeights::Never }
    }
}

impl FoldedWeights {
    /// Whether a folded form of so many bytes is to be kept.
    pub(crate) fn keeps(self, gpu: &Gpu, bytes: usize) -> Result<bool, Error> {
        match self {
            FoldedWeights::Never => Ok(false),
            FoldedWeights::Always => Ok(true),
            FoldedWeights::IfAmple => {
                let (free, total) = gpu.context.mem_get_info().device()?;
                Ok(is_ample(free, total, bytes))
            }
        }
    }
}

/// Whether half of the memory is free after `bytes` of it are taken.
fn is_ample(free: usize, total: usize, bytes: usize) -> bool {
    free.saturating_sub(bytes) >= total.div_ceil(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_ample_up_to_a_half_and_not_one_byte_more() {
        assert!(is_ample(80, 100, 30) && !is_ample(80, 100, 31));
        assert!(is_ample(51, 101, 0) && !is_ample(50, 101, 0));
        assert!(!is_ample(10, 100, 20) && !is_ample(0, 100, usize::MAX));
    }
}
