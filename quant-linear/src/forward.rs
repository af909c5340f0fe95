//! The forward pass: quantize activations, multiply, round once (C4 to C6).
//!
//! ```text
//! x (.., in)  --quantize(spec, transform)-->  codes, scales  --matmul(alpha)-->  y (.., out)
//! alpha = f32(weight_global_scale * activation_global_scale)
//! ```
//!
//! Where both roles land on one backend that keeps operands itself, the quantized activation never
//! leaves it. Otherwise packed bytes pass through host memory, exactly once each way. Prepared
//! weights, loaded transforms and scratch are kept, so that a steady state prepares and allocates
//! nothing here.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fp4_core::backend::erased::{Backend, DynLinear, DynResident, DynWeight, LinearCall, Opaque};
use fp4_core::backend::{Sink, Source};
use fp4_core::{
    Buffer, Epilogue, Float, FloatSlice, FloatSliceMut, FloatType, MatmulQuery, PackedMatrix,
    PackedView, Paths, QuantCounts, QuantizeInput, QuantizeQuery, ScaleSetting,
};

use crate::error::Error;
use crate::layer::{Loaded, QuantLinear, StoredTransform};
use crate::routing::{Explanation, Route};
use crate::values::FloatVec;

/// What forwards have made and keep: by position of the backend in the list.
#[derive(Default)]
pub(crate) struct Prepared {
    weights: RwLock<HashMap<usize, Arc<Weight>>>,
    transforms: RwLock<HashMap<(usize, FloatType), Arc<Opaque>>>,
    packed: Mutex<Vec<PackedMatrix>>,
    scratch: Mutex<HashMap<usize, Vec<Box<Opaque>>>>,
    warned: [AtomicBool; 2],
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Prepared").finish_non_exhaustive()
    }
}

impl Prepared {
    pub(crate) fn forget_transforms(&mut self) {
        self.transforms = RwLock::default();
    }

    pub(crate) fn forget_warnings(&mut self) {
        self.warned = Default::default();
    }
}

/// A prepared weight, with or without a memory of its own.
enum Weight {
    Host(Box<dyn DynWeight>),
    Resident(Box<dyn DynLinear>),
}

impl Weight {
    fn matmul(
        &self,
        a: PackedView<'_>,
        epilogue: Epilogue<'_>,
        out: FloatSliceMut<'_>,
    ) -> Result<Paths, fp4_core::Error> {
        match self {
            Weight::Host(w) => w.matmul(a, epilogue, out),
            Weight::Resident(w) => w.matmul(a, epilogue, out),
        }
    }

    /// The form that takes and gives tensors; asked only of backends that have it.
    fn linear(&self) -> Result<&dyn DynLinear, Error> {
        match self {
            Weight::Resident(w) => Ok(&**w),
            Weight::Host(_) => Err(fp4_core::Error::ForeignOperand.into()),
        }
    }
}

/// A poisoned lock only means that another thread panicked between two whole updates.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Dense values in a backend's own memory, with their shape.
pub struct DeviceTensor {
    value: Box<Opaque>,
    /// The very backend that made it: another of the same name has another memory.
    owner: Arc<dyn DynResident>,
    shape: Vec<usize>,
    float_type: FloatType,
}

impl DeviceTensor {
    /// Name of the backend whose memory holds the values.
    pub fn device(&self) -> &str {
        self.owner.name()
    }

    /// The shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The type of the values.
    pub fn float_type(&self) -> FloatType {
        self.float_type
    }

    /// Copies the values to the host.
    ///
    /// # Errors
    /// A device failure.
    pub fn to_host(&self) -> Result<FloatVec, Error> {
        let mut host = FloatVec::zeros(self.float_type, self.shape.iter().product());
        self.owner.download_dyn(&*self.value, host.as_mut_slice())?;
        Ok(host)
    }
}

impl std::fmt::Debug for DeviceTensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceTensor")
            .field("device", &self.device())
            .field("shape", &self.shape)
            .field("float_type", &self.float_type)
            .finish_non_exhaustive()
    }
}

impl QuantLinear {
    /// y = x * W^T for `x` of any leading dimensions, in the type of `x`.
    ///
    /// `shape` is the shape of `x`, whose last dimension is [`in_features`](Self::in_features); the
    /// result has [`output_shape`](Self::output_shape).
    ///
    /// # Errors
    /// [`Error::Empty`], a shape that does not fit, an alpha that is not finite and above zero, or
    /// an error of the backend.
    pub fn forward<T: Float>(&self, x: &[T], shape: &[usize]) -> Result<Vec<T>, Error> {
        let rows = self.rows_of(shape)?;
        let expected = rows * self.in_features();
        if x.len() != expected {
            return Err(Error::InputLen { shape: shape.to_vec(), expected, got: x.len() });
        }
        let outputs = rows.checked_mul(self.out_features());
        let outputs =
            outputs.ok_or(fp4_core::Error::ShapeOverflow { rows, cols: self.out_features() })?;
        let mut y = Vec::new();
        y.try_reserve_exact(outputs).map_err(|_| Error::Memory { len: outputs })?;
        y.resize(outputs, T::default());
        self.forward_into(T::wrap(x), rows, T::wrap_mut(&mut y))?;
        Ok(y)
    }

    /// The shape of the result for an input of `shape`.
    ///
    /// # Errors
    /// [`Error::InputShape`] unless the last dimension is [`in_features`](Self::in_features).
    pub fn output_shape(&self, shape: &[usize]) -> Result<Vec<usize>, Error> {
        self.rows_of(shape)?;
        let mut out = shape.to_vec();
        if let Some(last) = out.last_mut() {
            *last = self.out_features();
        }
        Ok(out)
    }

    /// The product of the leading dimensions.
    fn rows_of(&self, shape: &[usize]) -> Result<usize, Error> {
        let wrong = || Error::InputShape { in_features: self.in_features(), got: shape.to_vec() };
        let (&last, leading) = shape.split_last().ok_or_else(wrong)?;
        if last != self.in_features() {
            return Err(wrong());
        }
        if leading.contains(&0) {
            return Ok(0);
        }
        let rows = leading.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
        // Room for the input itself, too.
        rows.filter(|n| n.checked_mul(last).is_some()).ok_or_else(|| {
            let rows = rows.unwrap_or(usize::MAX);
            fp4_core::Error::ShapeOverflow { rows, cols: last }.into()
        })
    }

    /// As [`forward`](Self::forward), for a (rows, in) input and a caller-owned (rows, out) output
    /// of the same type. Allocates nothing once the scratch has grown to the number of rows.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        mut out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        let loaded = self.loaded()?;
        let epilogue = Epilogue::new(loaded.alpha()?);
        let transform = loaded.transform.as_ref().map(StoredTransform::view).transpose()?;
        let input = QuantizeInput::new(x, rows, self.in_features(), &loaded.spec)?
            .with_transform(transform)?;
        let (expected, got) = (x.float_type(), out.float_type());
        if expected != got {
            return Err(fp4_core::Error::Float { what: Buffer::Output, expected, got }.into());
        }
        let outputs = rows.checked_mul(self.out_features());
        let outputs =
            outputs.ok_or(fp4_core::Error::ShapeOverflow { rows, cols: self.out_features() })?;
        out.as_ref().expect_len(Buffer::Output, outputs)?;
        let (quantizer, matmul) = self.pick(&input)?;
        let mut counts = QuantCounts::default();

        let paths = if let Some(backend) = self.routing.fused(Some(quantizer), Some(matmul)) {
            let weight = self.weight_on(backend, loaded)?;
            let transform = self.transform_on(backend, &input)?;
            self.with_scratch(backend, |scratch| {
                let call = LinearCall::new(rows, &loaded.spec, scratch, epilogue)
                    .with_transform(transform.as_deref())
                    .with_counts(self.counters.is_some().then_some(&mut counts));
                Ok(weight.linear()?.forward(Source::Host(x), call, Sink::Host(out.reborrow()))?)
            })?
        } else {
            let weight = self.weight_on(matmul, loaded)?;
            self.with_packed(&input, |packed| {
                let quantizer =
                    self.backend(quantizer).quantizer().ok_or(fp4_core::Error::ForeignOperand)?;
                counts = quantizer.quantize(&input, &mut packed.view_mut())?;
                Ok(weight.matmul(packed.view(), epilogue, out.reborrow())?)
            })?
        };
        self.count(&counts, &paths);
        Ok(())
    }

    /// Copies host values of `shape` to the memory of the layer's device.
    ///
    /// # Errors
    /// [`Error::OnHost`] if the layer lives on the host; a device failure.
    pub fn upload(&self, x: FloatSlice<'_>, shape: &[usize]) -> Result<DeviceTensor, Error> {
        let rows = self.rows_of(shape)?;
        let expected = rows * self.in_features();
        if x.len() != expected {
            return Err(Error::InputLen { shape: shape.to_vec(), expected, got: x.len() });
        }
        let owner = self.resident()?.1;
        Ok(DeviceTensor {
            value: owner.upload_dyn(x)?,
            owner: owner.clone(),
            shape: shape.to_vec(),
            float_type: x.float_type(),
        })
    }

    /// y = x * W^T for a tensor in the memory of the layer's device; the result stays there.
    ///
    /// If both roles land on that device, nothing crosses to the host; a mixed pair copies its
    /// packed activations once each way.
    ///
    /// # Errors
    /// As [`forward`](Self::forward), and [`Error::DeviceMismatch`].
    pub fn forward_device(&self, x: &DeviceTensor) -> Result<DeviceTensor, Error> {
        let loaded = self.loaded()?;
        let epilogue = Epilogue::new(loaded.alpha()?);
        let rows = self.rows_of(&x.shape)?;
        let (here, resident) = self.resident()?;
        if !std::ptr::addr_eq(Arc::as_ptr(&x.owner), Arc::as_ptr(resident)) {
            let (tensor, layer) = (x.device().to_string(), resident.name().to_string());
            return Err(Error::DeviceMismatch { tensor, layer });
        }
        let transform = loaded.transform.as_ref().map(StoredTransform::view).transpose()?;

        let shape = loaded.spec.shape(rows, self.in_features())?;
        let query = self.query(rows, x.float_type)?;
        let (quantizer, matmul) = self.pick_for(&query)?;
        let mut y = resident.empty_tensor_dyn()?;
        let mut counts = QuantCounts::default();

        let paths = if (quantizer, matmul) == (here, here) {
            let weight = self.weight_on(here, loaded)?;
            let loaded_transform = self.transform_for(here, x.float_type, loaded)?;
            self.with_scratch(here, |scratch| {
                let call = LinearCall::new(rows, &loaded.spec, scratch, epilogue)
                    .with_transform(loaded_transform.as_deref())
                    .with_counts(self.counters.is_some().then_some(&mut counts));
                let sink = Sink::Resident(&mut *y, x.float_type);
                Ok(weight.linear()?.forward(Source::Resident(&*x.value), call, sink)?)
            })?
        } else {
            let mut packed = PackedMatrix::zeros(shape);
            if quantizer == here {
                let transform = self.transform_for(here, x.float_type, loaded)?;
                self.with_scratch(here, |scratch| {
                    Ok(resident.quantize_packed(
                        Source::Resident(&*x.value),
                        [rows, shape.k()],
                        &loaded.spec,
                        transform.as_deref(),
                        scratch,
                        self.counters.is_some().then_some(&mut counts),
                        &mut packed.view_mut(),
                    )?)
                })?;
            } else {
                let host = x.to_host()?;
                let input = QuantizeInput::new(host.as_slice(), rows, shape.k(), &loaded.spec)?
                    .with_transform(transform)?;
                let role = self.backend(quantizer).quantizer();
                let role = role.ok_or(fp4_core::Error::ForeignOperand)?;
                counts = role.quantize(&input, &mut packed.view_mut())?;
            }
            let weight = self.weight_on(matmul, loaded)?;
            if matmul == here {
                self.with_scratch(here, |scratch| {
                    let sink = Sink::Resident(&mut *y, x.float_type);
                    Ok(weight.linear()?.matmul_packed(packed.view(), scratch, epilogue, sink)?)
                })?
            } else {
                let mut host = FloatVec::zeros(x.float_type, rows * self.out_features());
                let paths = weight.matmul(packed.view(), epilogue, host.as_mut_slice())?;
                y = resident.upload_dyn(host.as_slice())?;
                paths
            }
        };
        self.count(&counts, &paths);
        Ok(DeviceTensor {
            value: y,
            owner: x.owner.clone(),
            shape: self.output_shape(&x.shape)?,
            float_type: x.float_type,
        })
    }

    /// Who would do what for `rows` rows of activations of a type, and why not the others.
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn explain(&self, rows: usize, input: FloatType) -> Result<Explanation, Error> {
        let query = self.query(rows, input)?;
        Ok(self.routing.explain(&query, &self.matmul_query(&query)?))
    }

    /// What quantizing `rows` rows of activations of a type asks of a backend.
    fn query(&self, rows: usize, input: FloatType) -> Result<QuantizeQuery, Error> {
        let loaded = self.loaded()?;
        let shape = loaded.spec.shape(rows, self.in_features())?;
        let transform = loaded.transform.as_ref().map(StoredTransform::view).transpose()?;
        let query = QuantizeQuery::new(shape, &loaded.spec, input);
        Ok(query.with_transform(transform.map(|t| t.shape())))
    }

    fn matmul_query(&self, q: &QuantizeQuery) -> Result<MatmulQuery, Error> {
        let format = self.loaded()?.weight.shape().expect_format()?;
        Ok(MatmulQuery::new(format, [q.rows, self.out_features(), q.k], q.input))
    }

    fn pick(&self, input: &QuantizeInput<'_>) -> Result<(usize, usize), Error> {
        self.pick_for(&input.query())
    }

    /// Positions of the backends that quantize and multiply, with the logging that routing owes.
    fn pick_for(&self, query: &QuantizeQuery) -> Result<(usize, usize), Error> {
        let m_query = self.matmul_query(query)?;
        let (quantizer, q_honoured) = self.routing.pick_quantizer(query);
        let (matmul, m_honoured) = self.routing.pick_matmul(&m_query);
        let routes: [(bool, usize, &str, &dyn Fn() -> Route); 2] = [
            (q_honoured, 0, "quantize", &|| self.routing.quantize_route(query)),
            (m_honoured, 1, "multiply", &|| self.routing.matmul_route(&m_query)),
        ];
        for (honoured, i, role, route) in routes {
            if !honoured && !self.prepared.warned[i].swap(true, Relaxed) {
                let route = route();
                if let Some((name, why)) = &route.refused {
                    let instead = route.chosen().unwrap_or("none");
                    log::warn!("backend `{name}` cannot {role} here ({why}); using `{instead}`");
                }
            }
        }
        if let (Some(q), Some(m)) = (quantizer, matmul) {
            log::debug!(
                "routing: `{}` quantizes, `{}` multiplies",
                self.backend(q).name(),
                self.backend(m).name()
            );
            return Ok((q, m));
        }
        let (role, route) = match quantizer {
            None => ("quantize", self.routing.quantize_route(query)),
            Some(_) => ("multiply", self.routing.matmul_route(&m_query)),
        };
        Err(Error::NoBackend { role, reasons: route.reasons() })
    }

    fn backend(&self, index: usize) -> &Backend {
        &self.routing.backends().list()[index]
    }

    /// The backend whose memory the layer lives in, and its position.
    fn resident(&self) -> Result<(usize, &Arc<dyn DynResident>), Error> {
        let name = self.device().ok_or(Error::OnHost)?;
        let index = self.routing.backends().device(name).ok_or(Error::OnHost)?;
        Ok((index, self.backend(index).as_resident().ok_or(Error::OnHost)?))
    }

    /// The weight prepared for a backend: once, then kept.
    fn weight_on(&self, index: usize, loaded: &Loaded) -> Result<Arc<Weight>, Error> {
        let weights = &self.prepared.weights;
        if let Some(w) = weights.read().unwrap_or_else(PoisonError::into_inner).get(&index) {
            return Ok(w.clone());
        }
        let mut weights = weights.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(w) = weights.get(&index) {
            return Ok(w.clone()); // another thread was first
        }
        let (backend, packed) = (self.backend(index), loaded.weight.clone());
        let weight = match (backend.as_resident(), backend.matmul()) {
            (Some(r), _) => Weight::Resident(r.clone().prepare_linear(packed)?),
            (None, Some(m)) => Weight::Host(m.clone().prepare_dyn(packed)?),
            (None, None) => return Err(fp4_core::Error::ForeignOperand.into()),
        };
        let weight = Arc::new(weight);
        weights.insert(index, weight.clone());
        Ok(weight)
    }

    fn transform_on(
        &self,
        index: usize,
        input: &QuantizeInput<'_>,
    ) -> Result<Option<Arc<Opaque>>, Error> {
        self.transform_for(index, input.x().float_type(), self.loaded()?)
    }

    /// The transform loaded by a backend for activations of a type: once, then kept.
    fn transform_for(
        &self,
        index: usize,
        ty: FloatType,
        loaded: &Loaded,
    ) -> Result<Option<Arc<Opaque>>, Error> {
        let Some(stored) = &loaded.transform else { return Ok(None) };
        let transforms = &self.prepared.transforms;
        let key = (index, ty);
        if let Some(t) = transforms.read().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Some(t.clone()));
        }
        let resident = self.backend(index).as_resident().ok_or(fp4_core::Error::ForeignOperand)?;
        let made: Arc<Opaque> = Arc::from(resident.load_transform_dyn(&stored.view()?, ty)?);
        let mut transforms = transforms.write().unwrap_or_else(PoisonError::into_inner);
        Ok(Some(transforms.entry(key).or_insert(made).clone()))
    }

    /// Runs `f` with scratch of a backend, which goes back to the pool afterwards.
    fn with_scratch<R>(
        &self,
        index: usize,
        f: impl FnOnce(&mut Opaque) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let spare = lock(&self.prepared.scratch).get_mut(&index).and_then(Vec::pop);
        let mut scratch = match spare {
            Some(scratch) => scratch,
            None => {
                let backend = self.backend(index).as_resident();
                backend.ok_or(fp4_core::Error::ForeignOperand)?.scratch_dyn()?
            }
        };
        let result = f(&mut *scratch);
        lock(&self.prepared.scratch).entry(index).or_default().push(scratch);
        result
    }

    /// Runs `f` with a packed matrix of the input's shape, which goes back to the pool afterwards.
    fn with_packed<R>(
        &self,
        input: &QuantizeInput<'_>,
        f: impl FnOnce(&mut PackedMatrix) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let spare = lock(&self.prepared.packed).pop();
        let mut packed = match spare {
            Some(mut packed) => {
                packed.reshape(input.shape());
                packed
            }
            None => PackedMatrix::zeros(input.shape()),
        };
        let result = f(&mut packed);
        lock(&self.prepared.packed).push(packed);
        result
    }

    /// Adds to the counters, if they are on.
    fn count(&self, quantized: &QuantCounts, paths: &Paths) {
        if let Some(counters) = &self.counters {
            counters.add(quantized, paths);
        }
    }
}

impl Loaded {
    /// The output multiplier, f32(weight gs * activation gs).
    pub(crate) fn alpha(&self) -> Result<f32, Error> {
        let got = self.weight_global_scale * self.spec.global_scale();
        if got.is_finite() && got > 0.0 {
            Ok(got)
        } else {
            Err(fp4_core::Error::ScaleSetting { what: ScaleSetting::Alpha, got }.into())
        }
    }
}
