//! Backends behind pointers: what a layer holds when the backend is chosen at run time.
//!
//! [`Quantizer`] is object-safe as it is. [`Matmul`] and [`Resident`] have associated types, so
//! each has an erased twin here, implemented for every one of them: a backend's author writes
//! nothing. [`Backend`] bundles what one backend offers; routing holds an explicit list of them.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;
use core::ops::Range;

use super::{
    GroupedError, GroupedProduct, Matmul, MatmulQuery, Named, Paths, PreparedWeight, Quantizer,
    Resident, Sink, Source,
};
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

    /// As [`Matmul::grouped`], for weights that this very backend prepared.
    ///
    /// # Errors
    /// As [`Matmul::grouped`]; [`Error::ForeignOperand`] for another's weight, a clone's included.
    fn grouped_dyn(
        &self,
        products: &mut [GroupedProduct<'_, dyn DynWeight>],
    ) -> Result<Paths, GroupedError>;

    /// As [`Matmul::schedules_grouped`].
    fn schedules_grouped(&self) -> bool;
}

/// A prepared weight together with the backend that multiplies by it.
pub trait DynWeight: Any + Send + Sync {
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

    /// As [`Resident::quantize_resident`], into scratch made by this backend.
    ///
    /// # Errors
    /// As [`Resident::quantize_resident`].
    fn quantize_dyn(
        &self,
        x: Source<'_, Opaque>,
        shape: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&Opaque>,
        out: &mut Opaque,
        counts: Option<&mut QuantCounts>,
    ) -> Result<(), Error>;

    /// As [`Resident::export`]: hands a quantized activation to the host.
    ///
    /// # Errors
    /// As [`Resident::export`].
    fn export_dyn(&self, from: &Opaque, out: &mut PackedMut<'_>) -> Result<(), Error>;

    /// As [`Resident::import`]: takes a quantized activation from the host.
    ///
    /// # Errors
    /// As [`Resident::import`].
    fn import_dyn(&self, from: PackedView<'_>, to: &mut Opaque) -> Result<(), Error>;

    /// As [`Resident::scratch_bytes`].
    fn own_scratch_bytes(&self) -> usize;

    /// As [`Resident::release_scratch`].
    ///
    /// # Errors
    /// As [`Resident::release_scratch`].
    fn release_own_scratch(&self) -> Result<(), Error>;

    /// As [`Resident::operand_bytes`]; 0 for a value that this backend did not make.
    fn scratch_bytes_dyn(&self, scratch: &Opaque) -> usize;
}

/// A prepared weight of a [`Resident`] backend: multiplies activations that the backend keeps in
/// its own form.
pub trait DynLinear: DynWeight {
    /// As [`Resident::matmul_resident`], for an operand that
    /// [`quantize_dyn`](DynResident::quantize_dyn) or [`import_dyn`](DynResident::import_dyn) of
    /// the same backend filled.
    ///
    /// # Errors
    /// As [`Resident::matmul_resident`].
    fn matmul_dyn(
        &self,
        a: &Opaque,
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

    fn grouped_dyn(
        &self,
        products: &mut [GroupedProduct<'_, dyn DynWeight>],
    ) -> Result<Paths, GroupedError> {
        let (mut own, mut each) = (Vec::new(), Vec::new());
        for (i, product) in products.iter_mut().enumerate() {
            let GroupedProduct { a, b, epilogue, out, paths } = product;
            let bound: Option<&Bound<T>> = (*b as &dyn Any).downcast_ref();
            let bound = bound.filter(|bound| core::ptr::eq(Arc::as_ptr(&bound.backend), self));
            let bound = bound.ok_or(GroupedError::of(i, Error::ForeignOperand))?;
            own.push(GroupedProduct::new(*a, &bound.weight, *epilogue, out.reborrow()));
            each.push(paths);
        }
        let all = self.grouped(&mut own)?;
        each.into_iter().zip(&own).for_each(|(paths, own)| *paths = own.paths);
        Ok(all)
    }

    fn schedules_grouped(&self) -> bool {
        Matmul::schedules_grouped(self)
    }
}

impl<T> DynWeight for Bound<T>
where
    T: Matmul + Send + Sync + 'static,
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

    fn quantize_dyn(
        &self,
        x: Source<'_, Opaque>,
        shape: [usize; 2],
        spec: &QuantSpec,
        transform: Option<&Opaque>,
        out: &mut Opaque,
        counts: Option<&mut QuantCounts>,
    ) -> Result<(), Error> {
        let transform = transform.map(own).transpose()?;
        self.quantize_resident(own_source(x)?, shape, spec, transform, own_mut(out)?, counts)
    }

    fn export_dyn(&self, from: &Opaque, out: &mut PackedMut<'_>) -> Result<(), Error> {
        self.export(own(from)?, out)
    }

    fn import_dyn(&self, from: PackedView<'_>, to: &mut Opaque) -> Result<(), Error> {
        self.import(from, own_mut(to)?)
    }

    fn own_scratch_bytes(&self) -> usize {
        self.scratch_bytes()
    }

    fn release_own_scratch(&self) -> Result<(), Error> {
        self.release_scratch()
    }

    fn scratch_bytes_dyn(&self, scratch: &Opaque) -> usize {
        own(scratch).map_or(0, |operand| self.operand_bytes(operand))
    }
}

impl<T> DynLinear for Bound<T>
where
    T: Resident + Send + Sync + 'static,
    T::Prepared<Arc<PackedMatrix>>: Send + Sync,
{
    fn matmul_dyn(
        &self,
        a: &Opaque,
        epilogue: Epilogue<'_>,
        out: Sink<'_, Opaque>,
    ) -> Result<Paths, Error> {
        self.backend.matmul_resident(own(a)?, &self.weight, epilogue, own_sink(out)?)
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

    /// True if `other` is this very backend, or a clone of it: what one made, the other can use.
    pub fn is_same(&self, other: &Backend) -> bool {
        // An `Arc` has an address of its own even where the backend has no size.
        fn at<T: ?Sized>(role: Option<&Arc<T>>) -> Option<*const ()> {
            role.map(|role| Arc::as_ptr(role).cast())
        }
        at(self.quantizer.as_ref()) == at(other.quantizer.as_ref())
            && at(self.matmul.as_ref()) == at(other.matmul.as_ref())
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
