//! Packed operands between the host and the device, with the padding of K added and dropped (C8).

use fp4_core::{Error, PackedMut, PackedView};

use crate::build::arguments::PadArgs;
use crate::build::kernels::PAD_BYTES;
use crate::device::buffer::Buffer;
use crate::device::gpu::Gpu;
use crate::device::launch::{Grid, int};
use crate::operand::folded::Folded;
use crate::operand::packed::CudaOperand;

impl CudaOperand {
    /// Copies packed bytes from the host, adding the padding, and folds them if that is wanted.
    pub(crate) fn import(&mut self, from: PackedView<'_>, fold: bool) -> Result<(), Error> {
        self.reshape(from.shape(), fold, false)?;
        let widths = self.row_bytes();
        let CudaOperand { codes, scales, staging, gpu, .. } = self;
        for (bytes, width, to) in
            [(from.codes(), widths[0], codes), (from.scales(), widths[1], scales)]
        {
            let rows = from.shape().rows();
            if bytes.len() == rows * width {
                to.upload(&gpu.stream, bytes)?;
            } else {
                staging.upload(&gpu.stream, bytes)?;
                repad(gpu, staging, to, rows, [bytes.len() / rows.max(1), width])?;
            }
        }
        if fold && self.fold(Folded::fill)? {
            return Ok(());
        }
        self.describe_rows()
    }

    /// Copies packed bytes to the host, without the padding, and row scales if there are any and
    /// there is room. The caller synchronizes.
    pub(crate) fn export(&self, spare: &mut Buffer, out: &mut PackedMut<'_>) -> Result<(), Error> {
        self.shape.expect_same(&out.shape())?;
        let (rows, widths) = (self.shape.rows(), self.row_bytes());
        let (codes, scales, row_scales) = out.parts();
        row_scales.map_or(Ok(()), |out| self.download_row_scales(out))?;
        for (bytes, width, from) in
            [(codes, widths[0], &self.codes), (scales, widths[1], &self.scales)]
        {
            if bytes.len() == rows * width {
                from.download(&self.gpu.stream, bytes)?;
            } else {
                let narrow = bytes.len() / rows.max(1);
                spare.reserve(&self.gpu.stream, bytes.len())?;
                repad(&self.gpu, from, spare, rows, [width, narrow])?;
                spare.download(&self.gpu.stream, bytes)?;
            }
        }
        Ok(())
    }
}

/// Copies rows of one width to rows of another.
fn repad(
    gpu: &Gpu,
    from: &Buffer,
    to: &Buffer,
    rows: usize,
    [from_cols, to_cols]: [usize; 2],
) -> Result<(), Error> {
    let args = PadArgs {
        from: from.pointer(),
        to: to.pointer(),
        rows: rows as i64,
        from_cols: int(from_cols)?,
        to_cols: int(to_cols)?,
    };
    // SAFETY: the callers made room for `rows` rows of either width.
    unsafe { gpu.launch(&PAD_BYTES[0], Grid::for_each(rows * to_cols), &args) }
}
