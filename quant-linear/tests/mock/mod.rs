//! A backend with its own memory that counts what crosses to and from the host.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use fp4_core::backend::{Resident, Sink, Source};
use fp4_core::reference;
use fp4_core::{
    Buffer, Epilogue, Error, FloatSlice, FloatSliceMut, FloatType, Format, Matmul, MatmulQuery,
    Named, Packed, PackedMatrix, PackedMut, PackedView, Paths, PreparedWeight, QuantCounts,
    QuantSpec, QuantizeInput, QuantizeQuery, Quantizer, Transform, Unsupported,
};
use quant_linear::{FloatVec, StoredTransform};

/// Transfers seen by a [`MockDevice`].
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    pub(crate) to_device: AtomicUsize,
    pub(crate) to_host: AtomicUsize,
    pub(crate) prepared: AtomicUsize,
    pub(crate) transforms: AtomicUsize,
    /// Prepared weights that have not been dropped.
    pub(crate) alive: AtomicUsize,
}

impl Transfers {
    /// Copies to the device and to the host since the last call.
    pub(crate) fn take(&self) -> (usize, usize) {
        (self.to_device.swap(0, SeqCst), self.to_host.swap(0, SeqCst))
    }
}

/// The reference behind a pretended bus.
#[derive(Debug, Clone, Default)]
pub(crate) struct MockDevice {
    pub(crate) transfers: Arc<Transfers>,
    /// Formats that the matmul refuses.
    pub(crate) refuse: Option<Format>,
    /// True if the quantizer refuses everything.
    pub(crate) refuse_quantize: bool,
    /// True if the matmul multiplies by alpha and does no more.
    pub(crate) alpha_alone: bool,
}

pub(crate) const MOCK: &str = "mock-device";

/// A weight on the device.
pub(crate) struct MockWeight(PackedMatrix, Arc<Transfers>);

impl Drop for MockWeight {
    fn drop(&mut self) {
        self.1.alive.fetch_sub(1, SeqCst);
    }
}

impl PreparedWeight for MockWeight {
    fn shape(&self) -> fp4_core::PackedShape {
        self.0.shape()
    }
}

impl Named for MockDevice {
    fn name(&self) -> &str {
        MOCK
    }
}

impl Quantizer for MockDevice {
    fn supports_quantize(&self, _: &QuantizeQuery) -> Result<(), Unsupported> {
        if self.refuse_quantize { Err(Unsupported::Other("the mock was told to")) } else { Ok(()) }
    }

    fn quantize(
        &self,
        input: &QuantizeInput<'_>,
        out: &mut PackedMut<'_>,
    ) -> Result<QuantCounts, Error> {
        self.transfers.to_device.fetch_add(1, SeqCst);
        self.transfers.to_host.fetch_add(1, SeqCst);
        reference::quantize(input, out)
    }
}

impl Matmul for MockDevice {
    type Prepared<B: Packed> = MockWeight;

    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        if self.alpha_alone && (query.row_scales || query.bias) {
            return Err(Unsupported::RowScales);
        }
        match self.refuse {
            Some(format) if query.b == format.into() => {
                Err(Unsupported::Format { scale: format.scale_type(), group: format.group() })
            }
            _ => Ok(()),
        }
    }

    fn prepare<B: Packed>(&self, b: B) -> Result<MockWeight, Error> {
        self.transfers.prepared.fetch_add(1, SeqCst);
        let view = b.view();
        let (codes, scales) = (view.codes().to_vec(), view.scales().to_vec());
        let weight = PackedMatrix::new(view.shape(), codes, scales)?;
        self.transfers.alive.fetch_add(1, SeqCst);
        Ok(MockWeight(weight, self.transfers.clone()))
    }

    fn matmul<B: Packed>(
        &self,
        a: PackedView<'_>,
        b: &MockWeight,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        self.transfers.to_device.fetch_add(1, SeqCst);
        self.transfers.to_host.fetch_add(1, SeqCst);
        let narrow = out.len() as u64;
        reference::matmul(a, b.0.view(), epilogue, out)?;
        Ok(Paths::new(narrow, 0, 0))
    }

    fn export_weight<B: Packed>(
        &self,
        b: &MockWeight,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        self.transfers.to_host.fetch_add(1, SeqCst);
        out.copy_from(b.0.view())
    }
}

/// A quantized activation on the device, with its row scales if it has any.
pub(crate) struct MockOperand(PackedMatrix, Option<Vec<f32>>);

/// Dense values on the device.
pub(crate) struct MockTensor(FloatVec);

impl Resident for MockDevice {
    type Tensor = MockTensor;
    type Operand = MockOperand;
    type Transform = StoredTransform;

    fn empty_tensor(&self) -> Result<MockTensor, Error> {
        Ok(MockTensor(FloatVec::zeros(FloatType::F32, 0)))
    }

    fn operand_bytes(&self, operand: &MockOperand) -> usize {
        operand.0.allocated_bytes()
    }

    fn empty_operand(&self) -> Result<MockOperand, Error> {
        Ok(MockOperand(PackedMatrix::zeros(QuantSpec::usual(Format::MxFp4).shape(0, 0)?), None))
    }

    fn upload(&self, x: FloatSlice<'_>, to: &mut MockTensor) -> Result<(), Error> {
        self.transfers.to_device.fetch_add(1, SeqCst);
        to.0 = x.into();
        Ok(())
    }

    fn download(&self, from: &MockTensor, mut out: FloatSliceMut<'_>) -> Result<(), Error> {
        self.transfers.to_host.fetch_add(1, SeqCst);
        out.copy_from(from.0.as_slice(), Buffer::Output)
    }

    fn load_transform(&self, t: &Transform<'_>, _: FloatType) -> Result<StoredTransform, Error> {
        self.transfers.transforms.fetch_add(1, SeqCst);
        Ok((*t).into())
    }

    fn quantize_resident(
        &self,
        x: Source<'_, MockTensor>,
        [rows, k]: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&StoredTransform>,
        out: &mut MockOperand,
        counts: Option<&mut QuantCounts>,
    ) -> Result<(), Error> {
        let x = match x {
            Source::Host(x) => {
                self.transfers.to_device.fetch_add(1, SeqCst);
                x
            }
            Source::Resident(t) => t.0.as_slice(),
        };
        let transform = transform.map(|t| t.view().expect("checked when built"));
        let MockOperand(packed, row_scales) = out;
        packed.reshape(spec.shape(rows, k)?);
        *row_scales = spec.row_scales().then(|| vec![0.0; rows]);
        let input = QuantizeInput::new(x, rows, k, spec)?.with_transform(transform)?;
        let mut to = packed.view_mut();
        if let Some(row_scales) = row_scales {
            to = to.with_row_scales(row_scales)?;
        }
        let counted = reference::quantize(&input, &mut to)?;
        if let Some(counts) = counts {
            *counts = counted;
        }
        Ok(())
    }

    fn matmul_resident<B: Packed>(
        &self,
        MockOperand(a, own): &MockOperand,
        b: &MockWeight,
        epilogue: Epilogue<'_>,
        out: Sink<'_, MockTensor>,
    ) -> Result<Paths, Error> {
        let epilogue = epilogue.with_row_scales(epilogue.row_scales.or(own.as_deref()));
        let outputs = a.shape().rows() * b.0.shape().rows();
        match out {
            Sink::Host(out) => {
                self.transfers.to_host.fetch_add(1, SeqCst);
                reference::matmul(a.view(), b.0.view(), epilogue, out)?;
            }
            Sink::Resident(out, ty) => {
                out.0 = FloatVec::zeros(ty, outputs);
                reference::matmul(a.view(), b.0.view(), epilogue, out.0.as_mut_slice())?;
            }
        }
        Ok(Paths::new(outputs as u64, 0, 0))
    }

    fn export(
        &self,
        MockOperand(from, own): &MockOperand,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        self.transfers.to_host.fetch_add(1, SeqCst);
        if let (Some(to), Some(own)) = (out.row_scales_mut(), own) {
            to.copy_from_slice(own);
        }
        out.copy_from(from.view())
    }

    fn import(
        &self,
        from: PackedView<'_>,
        MockOperand(to, own): &mut MockOperand,
    ) -> Result<(), Error> {
        self.transfers.to_device.fetch_add(1, SeqCst);
        *own = None;
        to.reshape(from.shape());
        to.view_mut().copy_from(from)
    }
}
