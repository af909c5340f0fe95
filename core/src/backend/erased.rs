//! Backends behind pointers: what a layer holds when the backend is chosen at run time.
//!
//! [`Quantizer`] is object-safe as it is. [`Matmul`] and [`Resident`] have associated types, so each
//! has an erased twin here, implemented for every one of them: a backend's author writes nothing.
//! [`Backend`] bundles what one backend offers; routing holds an explicit list of them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::any::Any;
use core::fmt;
use core::ops::Range;

use super::{Matmul, MatmulQuery, Named, Paths, PreparedWeight, Quantizer, Resident, Sink, Source};
use crate::counts::QuantCounts;
use crate::epilogue::Epilogue;
use crate::error::{Error, Unsupported};
use crate::exact::PartialsMut;
use crate::float::{FloatSlice, FloatSliceMut};
use crate::format::FloatType;
use crate::packed::{PackedMatrix, PackedMut, PackedShape, PackedView};
use crate::spec::QuantSpec;
use crate::transform::Transform;

/// A value of a backend's own type (a tensor, an operand, a transform), erased.
pub type Opaque = dyn Any + Send + Sync;

/// [`Matmul`] without its associated type.
pub trait DynMatmul: Named + Send + Sync {
    /// As [`Matmul::supports_matmul`].
    ///
    /// # Errors
    /// The reason why not.
    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported>;

    /// As [`Matmul::supports_partial`].
    ///
    /// # Errors
    /// The reason why not.
    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported>;

    /// As [`Matmul::prepare`]; the result holds the backend too.
    ///
    /// # Errors
    /// As [`Matmul::prepare`].
    fn prepare_dyn(self: Arc<Self>, b: Arc<PackedMatrix>) -> Result<Box<dyn DynWeight>, Error>;
}

/// A prepared weight together with the backend that multiplies by it.
pub trait DynWeight: Send + Sync {
    /// Shape and format of the weight.
    fn shape(&self) -> PackedShape;

    /// As [`Matmul::matmul`].
    ///
    /// # Errors
    /// As [`Matmul::matmul`].
    fn matmul(
        &self,
        a: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error>;

    /// As [`Matmul::partial`].
    ///
    /// # Errors
    /// As [`Matmul::partial`].
    fn partial(
        &self,
        a: PackedView<'_>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error>;

    /// As [`Matmul::export_weight`].
    ///
    /// # Errors
    /// As [`Matmul::export_weight`].
    fn export_weight(&self, out: &mut PackedMut<'_>) -> Result<(), Error>;
}

/// [`Resident`] without its associated types.
///
/// Tensors, transforms and scratch are [`Opaque`] values of the backend that made them; handing one
/// to another backend is [`Error::ForeignOperand`].
pub trait DynResident: DynMatmul {
    /// As [`DynMatmul::prepare_dyn`], for a weight that also takes and gives tensors.
    ///
    /// # Errors
    /// As [`Matmul::prepare`].
    fn prepare_linear(self: Arc<Self>, b: Arc<PackedMatrix>) -> Result<Box<dyn DynLinear>, Error>;

    /// Copies host values into a new tensor.
    ///
    /// # Errors
    /// A device failure.
    fn upload_dyn(&self, x: FloatSlice<'_>) -> Result<Box<Opaque>, Error>;

    /// An empty tensor, to be written to.
    ///
    /// # Errors
    /// A device failure.
    fn empty_tensor_dyn(&self) -> Result<Box<Opaque>, Error>;

    /// Copies a tensor to the host.
    ///
    /// # Errors
    /// As [`Resident::download`].
    fn download_dyn(&self, from: &Opaque, out: FloatSliceMut<'_>) -> Result<(), Error>;

    /// Room for a quantized activation, reused between calls; one for each concurrent call.
    ///
    /// # Errors
    /// A device failure.
    fn scratch_dyn(&self) -> Result<Box<Opaque>, Error>;

    /// As [`Resident::load_transform`].
    ///
    /// # Errors
    /// As [`Resident::load_transform`].
    fn load_transform_dyn(
        &self,
        transform: &Transform<'_>,
        x: FloatType,
    ) -> Result<Box<Opaque>, Error>;

    /// Quantizes (rows, k) values, in `shape`, and hands the packed form to the host: the first
    /// half of a mixed pair.
    ///
    /// # Errors
    /// As [`Resident::quantize_resident`] and [`Resident::export`].
    fn quantize_packed(
        &self,
        x: Source<'_, Opaque>,
        shape: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&Opaque>,
        scratch: &mut Opaque,
        counts: Option<&mut QuantCounts>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error>;
}

/// One forward of a [`DynLinear`]: everything but where the values come from and go to.
#[non_exhaustive]
pub struct LinearCall<'a> {
    /// Rows of the activations.
    pub rows: usize,
    /// Settings of the activations' quantization.
    pub spec: &'a QuantSpec,
    /// The transform, loaded by the same backend for the activations' type.
    pub transform: Option<&'a Opaque>,
    /// Scratch made by the same backend.
    pub scratch: &'a mut Opaque,
    /// What follows the exact sums.
    pub epilogue: Epilogue<'a>,
    /// Where to write what quantizing did to the values, if that is asked for: a device may have
    /// to be waited for.
    pub counts: Option<&'a mut QuantCounts>,
}

impl<'a> LinearCall<'a> {
    /// A forward of `rows` rows with no transform and no counts.
    pub fn new(
        rows: usize,
        spec: &'a QuantSpec,
        scratch: &'a mut Opaque,
        epilogue: impl Into<Epilogue<'a>>,
    ) -> Self {
        let epilogue = epilogue.into();
        LinearCall { rows, spec, transform: None, scratch, epilogue, counts: None }
    }

    /// The same with this transform, if any.
    #[must_use]
    pub fn with_transform(self, transform: Option<&'a Opaque>) -> Self {
        LinearCall { transform, ..self }
    }

    /// The same with counts written there, if anywhere.
    #[must_use]
    pub fn with_counts(self, counts: Option<&'a mut QuantCounts>) -> Self {
        LinearCall { counts, ..self }
    }
}

/// A prepared weight of a [`Resident`] backend: quantizes activations and multiplies them without
/// leaving the backend.
pub trait DynLinear: DynWeight {
    /// Quantizes the activations `x` and multiplies them by the weight.
    ///
    /// # Errors
    /// As [`Resident::quantize_resident`] and [`Resident::matmul_resident`].
    fn forward(
        &self,
        x: Source<'_, Opaque>,
        call: LinearCall<'_>,
        out: Sink<'_, Opaque>,
    ) -> Result<Paths, Error>;

    /// Multiplies host-packed activations: the second half of a mixed pair.
    ///
    /// # Errors
    /// As [`Resident::import`] and [`Resident::matmul_resident`].
    fn matmul_packed(
        &self,
        a: PackedView<'_>,
        scratch: &mut Opaque,
        epilogue: Epilogue<'_>,
        out: Sink<'_, Opaque>,
    ) -> Result<Paths, Error>;
}

/// A prepared weight and its backend, as one object.
struct Bound<T: Matmul> {
    backend: Arc<T>,
    weight: T::Prepared<Arc<PackedMatrix>>,
}

impl<T> DynMatmul for T
where
    T: Matmul + Send + Sync + 'static,
    T::Prepared<Arc<PackedMatrix>>: Send + Sync,
{
    fn supports_matmul(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        Matmul::supports_matmul(self, query)
    }

    fn supports_partial(&self, query: &MatmulQuery) -> Result<(), Unsupported> {
        Matmul::supports_partial(self, query)
    }

    fn prepare_dyn(self: Arc<Self>, b: Arc<PackedMatrix>) -> Result<Box<dyn DynWeight>, Error> {
        let weight = self.prepare(b)?;
        Ok(Box::new(Bound { backend: self, weight }))
    }
}

impl<T> DynWeight for Bound<T>
where
    T: Matmul + Send + Sync,
    T::Prepared<Arc<PackedMatrix>>: Send + Sync,
{
    fn shape(&self) -> PackedShape {
        self.weight.shape()
    }

    fn matmul(
        &self,
        a: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, Error> {
        self.backend.matmul(a, &self.weight, epilogue, out)
    }

    fn partial(
        &self,
        a: PackedView<'_>,
        groups: Range<usize>,
        out: PartialsMut<'_>,
    ) -> Result<(), Error> {
        self.backend.partial(a, &self.weight, groups, out)
    }

    fn export_weight(&self, out: &mut PackedMut<'_>) -> Result<(), Error> {
        self.backend.export_weight(&self.weight, out)
    }
}

impl<T> DynResident for T
where
    T: Resident + Send + Sync + 'static,
    T::Prepared<Arc<PackedMatrix>>: Send + Sync,
{
    fn prepare_linear(self: Arc<Self>, b: Arc<PackedMatrix>) -> Result<Box<dyn DynLinear>, Error> {
        let weight = self.prepare(b)?;
        Ok(Box::new(Bound { backend: self, weight }))
    }

    fn upload_dyn(&self, x: FloatSlice<'_>) -> Result<Box<Opaque>, Error> {
        let mut tensor = self.empty_tensor()?;
        self.upload(x, &mut tensor)?;
        Ok(Box::new(tensor))
    }

    fn empty_tensor_dyn(&self) -> Result<Box<Opaque>, Error> {
        Ok(Box::new(self.empty_tensor()?))
    }

    fn download_dyn(&self, from: &Opaque, out: FloatSliceMut<'_>) -> Result<(), Error> {
        self.download(own(from)?, out)
    }

    fn scratch_dyn(&self) -> Result<Box<Opaque>, Error> {
        Ok(Box::new(self.empty_operand()?))
    }

    fn load_transform_dyn(
        &self,
        transform: &Transform<'_>,
        x: FloatType,
    ) -> Result<Box<Opaque>, Error> {
        Ok(Box::new(self.load_transform(transform, x)?))
    }

    fn quantize_packed(
        &self,
        x: Source<'_, Opaque>,
        shape: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&Opaque>,
        scratch: &mut Opaque,
        counts: Option<&mut QuantCounts>,
        out: &mut PackedMut<'_>,
    ) -> Result<(), Error> {
        let operand = own_mut(scratch)?;
        let transform = transform.map(own).transpose()?;
        self.quantize_resident(own_source(x)?, shape, spec, transform, operand, counts)?;
        self.export(operand, out)
    }
}

impl<T> DynLinear for Bound<T>
where
    T: Resident + Send + Sync,
    T::Prepared<Arc<PackedMatrix>>: Send + Sync,
{
    fn forward(
        &self,
        x: Source<'_, Opaque>,
        call: LinearCall<'_>,
        out: Sink<'_, Opaque>,
    ) -> Result<Paths, Error> {
        let transform = call.transform.map(own).transpose()?;
        let operand = own_mut(call.scratch)?;
        let shape = [call.rows, self.weight.shape().k()];
        let LinearCall { spec, counts, epilogue, .. } = call;
        let x = own_source(x)?;
        self.backend.quantize_resident(x, shape, spec, transform, operand, counts)?;
        self.backend.matmul_resident(operand, &self.weight, epilogue, own_sink(out)?)
    }

    fn matmul_packed(
        &self,
        a: PackedView<'_>,
        scratch: &mut Opaque,
        epilogue: Epilogue<'_>,
        out: Sink<'_, Opaque>,
    ) -> Result<Paths, Error> {
        let operand = own_mut(scratch)?;
        self.backend.import(a, operand)?;
        self.backend.matmul_resident(operand, &self.weight, epilogue, own_sink(out)?)
    }
}

fn own_source<T: Any>(x: Source<'_, Opaque>) -> Result<Source<'_, T>, Error> {
    Ok(match x {
        Source::Host(x) => Source::Host(x),
        Source::Resident(x) => Source::Resident(own(x)?),
    })
}

fn own_sink<T: Any>(out: Sink<'_, Opaque>) -> Result<Sink<'_, T>, Error> {
    Ok(match out {
        Sink::Host(out) => Sink::Host(out),
        Sink::Resident(out, ty) => Sink::Resident(own_mut(out)?, ty),
    })
}

fn own<T: Any>(value: &Opaque) -> Result<&T, Error> {
    value.downcast_ref().ok_or(Error::ForeignOperand)
}

fn own_mut<T: Any>(value: &mut Opaque) -> Result<&mut T, Error> {
    value.downcast_mut().ok_or(Error::ForeignOperand)
}

/// What one backend offers, as routing sees it. Cheap to clone.
#[derive(Clone)]
pub struct Backend {
    quantizer: Option<Arc<dyn Quantizer + Send + Sync>>,
    matmul: Option<Arc<dyn DynMatmul>>,
    resident: Option<Arc<dyn DynResident>>,
}

impl Backend {
    /// A backend with both roles, on host operands.
    pub fn new<T>(backend: T) -> Self
    where
        T: Quantizer + Matmul + Send + Sync + 'static,
        T::Prepared<Arc<PackedMatrix>>: Send + Sync,
    {
        let backend = Arc::new(backend);
        Backend { quantizer: Some(backend.clone()), matmul: Some(backend), resident: None }
    }

    /// A backend with both roles that keeps operands in its own memory or form.
    pub fn resident<T>(backend: T) -> Self
    where
        T: Resident + Send + Sync + 'static,
        T::Prepared<Arc<PackedMatrix>>: Send + Sync,
    {
        let backend = Arc::new(backend);
        Backend {
            quantizer: Some(backend.clone()),
            matmul: Some(backend.clone()),
            resident: Some(backend),
        }
    }

    /// A backend whose two roles are two types, with one name.
    pub fn from_roles<M>(quantizer: impl Quantizer + Send + Sync + 'static, matmul: M) -> Self
    where
        M: Matmul + Send + Sync + 'static,
        M::Prepared<Arc<PackedMatrix>>: Send + Sync,
    {
        Backend {
            quantizer: Some(Arc::new(quantizer)),
            matmul: Some(Arc::new(matmul)),
            resident: None,
        }
    }

    /// A backend that only quantizes.
    pub fn quantizer_only(backend: impl Quantizer + Send + Sync + 'static) -> Self {
        Backend { quantizer: Some(Arc::new(backend)), matmul: None, resident: None }
    }

    /// A backend that only multiplies.
    pub fn matmul_only<T>(backend: T) -> Self
    where
        T: Matmul + Send + Sync + 'static,
        T::Prepared<Arc<PackedMatrix>>: Send + Sync,
    {
        Backend { quantizer: None, matmul: Some(Arc::new(backend)), resident: None }
    }

    /// The backend's name.
    pub fn name(&self) -> &str {
        match (&self.quantizer, &self.matmul) {
            (Some(q), _) => q.name(),
            (None, Some(m)) => m.name(),
            (None, None) => "none",
        }
    }

    /// The quantizer role, if offered.
    pub fn quantizer(&self) -> Option<&Arc<dyn Quantizer + Send + Sync>> {
        self.quantizer.as_ref()
    }

    /// The matmul role, if offered.
    pub fn matmul(&self) -> Option<&Arc<dyn DynMatmul>> {
        self.matmul.as_ref()
    }

    /// The backend's own memory, if it has any.
    pub fn as_resident(&self) -> Option<&Arc<dyn DynResident>> {
        self.resident.as_ref()
    }
}

impl fmt::Debug for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Backend")
            .field("name", &self.name())
            .field("quantizer", &self.quantizer.is_some())
            .field("matmul", &self.matmul.is_some())
            .field("resident", &self.resident.is_some())
            .finish()
    }
}
