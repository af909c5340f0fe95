//! Conversions of host data on the device: dequantization and scale layouts (C4.4, C7).

use fp4_core::{
    Buffer as What, Element, Error, FloatSliceMut, PackedView, QuantSpec, Swizzle,
    check_environment,
};

use crate::backend::Cuda;
use crate::operand::tensor::host_bytes_mut;
use crate::ops::layout::{self, Direction};
use crate::staging::Staging;

impl Cuda {
    /// Writes the values of a packed matrix under `global_scale`, row-major, as
    /// [`fp4_core::reference::dequantize`] does.
    ///
    /// # Errors
    /// As the reference; a device failure.
    pub fn dequantize(
        &self,
        packed: PackedView<'_>,
        global_scale: f32,
        out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        check_environment()?;
        let shape = packed.shape();
        // The checks that the reference makes are those of settings with scale-scale 1.
        QuantSpec::new(shape.scale_type(), shape.group(), global_scale, 1.0)?;
        let len = shape.rows() * shape.k();
        out.as_ref().expect_len(What::Output, len)?;
        if shape.element() == Element::Int8 && global_scale.to_bits() != 1f32.to_bits() {
            return Err(Error::NoGlobalScale { got: global_scale });
        }
        let _operation = self.gpu.enter()?;
        self.with_staging(|staging| {
            let Staging { operand, output, .. } = staging;
            let (stream, ty) = (&self.gpu.stream, out.float_type());
            operand.import(packed, false)?;
            layout::dequantize(operand, global_scale, (&mut *output, ty))?;
            output.download(stream, host_bytes_mut(out))?;
            self.gpu.synchronize()
        })
    }

    /// Swizzles row-major scale bytes, as [`Swizzle::swizzle`] does.
    ///
    /// # Errors
    /// As [`Swizzle::swizzle`]; a device failure.
    pub fn swizzle(
        &self,
        layout: &Swizzle,
        scales: &[u8],
        swizzled: &mut [u8],
    ) -> Result<(), Error> {
        expect_lens(layout, scales, swizzled)?;
        self.rearrange(layout, Direction::Swizzle, scales, swizzled)
    }

    /// Unswizzles into row-major scale bytes, as [`Swizzle::unswizzle`] does.
    ///
    /// # Errors
    /// As [`Swizzle::unswizzle`]; a device failure.
    pub fn unswizzle(
        &self,
        layout: &Swizzle,
        swizzled: &[u8],
        scales: &mut [u8],
    ) -> Result<(), Error> {
        expect_lens(layout, scales, swizzled)?;
        self.rearrange(layout, Direction::Unswizzle, swizzled, scales)
    }

    fn rearrange(
        &self,
        layout: &Swizzle,
        direction: Direction,
        from: &[u8],
        to: &mut [u8],
    ) -> Result<(), Error> {
        let _operation = self.gpu.enter()?;
        self.with_staging(|staging| {
            let Staging { output, spare, .. } = staging;
            let stream = &self.gpu.stream;
            spare.upload(stream, from)?;
            layout::rearrange(&self.gpu, layout, direction, spare, output)?;
            output.download(stream, to)?;
            self.gpu.synchronize()
        })
    }
}

fn expect_lens(layout: &Swizzle, scales: &[u8], swizzled: &[u8]) -> Result<(), Error> {
    for (what, expected, got) in [
        (What::Scales, layout.rows() * layout.cols(), scales.len()),
        (What::Swizzled, layout.len(), swizzled.len()),
    ] {
        if expected != got {
            return Err(Error::Len { what, expected, got });
        }
    }
    Ok(())
}
