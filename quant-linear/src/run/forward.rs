//! The forward pass: quantize activations, multiply, round once (C4 to C6).
//!
//! ```text
//! x (.., in)  --quantize(spec, transform)-->  Activation  --matmul(alpha, bias)-->  y (.., out)
//! alpha = f32(weight_global_scale * activation_global_scale)
//!         weight_global_scale alone for MXINT8, and for row scales, which the epilogue takes
//! ```
//!
//! There is one path, `run`; the public methods are its doors. Where both roles land on one backend
//! that keeps operands itself, the quantized activation never leaves it. Otherwise packed bytes
//! pass through host memory, exactly once each way. Prepared weights and loaded transforms are kept
//! with the weight, scratch with the runtime, so that a steady state prepares and allocates nothing
//! here. No lock is held while a backend works.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use fp4_core::backend::erased::{DynResident, Opaque};
use fp4_core::backend::{Sink, Source};
use fp4_core::{
    Buffer, Epilogue, Float, FloatSlice, FloatSliceMut, FloatType, MatmulQuery, PackedMatrix,
    PackedShape, Paths, QuantCounts, QuantizeInput, QuantizeQuery, ScaleSetting,
};

use crate::error::Error;
use crate::layer::{ActivationEncoding, Loaded, Prepared, QuantLinear};
use crate::run::activation::{Activation, Held, Settings};
use crate::run::device::DeviceTensor;
use crate::run::routing::{Explanation, Multiplier, Quantizing, Route};
use crate::run::saturation::Saturation;
use crate::run::scratch::Operand;
use fp4_core::FloatVec;

/// Where the activations are.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    Host(FloatSlice<'a>),
    Device(&'a DeviceTensor),
}

/// Where the outputs go.
pub(super) enum Output<'a> {
    Host(FloatSliceMut<'a>),
    Device(&'a Arc<dyn DynResident>, &'a mut Box<Opaque>, FloatType),
}

impl Input<'_> {
    fn float_type(&self) -> FloatType {
        match self {
            Input::Host(x) => x.float_type(),
            Input::Device(x) => x.float_type(),
        }
    }
}

impl Output<'_> {
    fn float_type(&self) -> FloatType {
        match self {
            Output::Host(y) => y.float_type(),
            Output::Device(_, _, float_type) => *float_type,
        }
    }
}

impl QuantLinear {
    /// y = x * W^T, plus the bias if the layer has one, for `x` of any leading dimensions, in the
    /// type of `x`.
    ///
    /// `shape` is the shape of `x`, whose last dimension is [`in_features`](Self::in_features); the
    /// result has [`output_shape`](Self::output_shape).
    ///
    /// # Errors
    /// [`Error::Empty`], a shape that does not fit, an alpha that is not finite and above zero, or
    /// an error of the backend.
    pub fn forward<T: Float>(&self, x: &[T], shape: &[usize]) -> Result<Vec<T>, Error> {
        self.named(|| {
            let rows = self.rows_for(x.len(), shape)?;
            let outputs = self.outputs(rows)?;
            let mut y = Vec::new();
            y.try_reserve_exact(outputs).map_err(|_| Error::Memory { len: outputs })?;
            y.resize(outputs, T::default());
            self.run(Input::Host(T::wrap(x)), rows, Output::Host(T::wrap_mut(&mut y)))?;
            Ok(y)
        })
    }

    /// As [`forward`](Self::forward), for a (rows, in) input and a caller-owned (rows, out) output,
    /// which may be of another type. Allocates nothing once the scratch has grown to the number of
    /// rows.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        self.named(|| self.run(Input::Host(x), rows, Output::Host(out)))
    }

    /// Quantizes (rows, in) values once, for this layer and all others with the same settings.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn quantize(&self, x: FloatSlice<'_>, rows: usize) -> Result<Activation, Error> {
        self.named(|| {
            let loaded = self.loaded()?;
            let input = Input::Host(x);
            let (q, m) = self.pick(self.query(rows, x.float_type())?, x.float_type())?;
            self.quantize_by(loaded, input, rows, &q, &m)
        })
    }

    /// The second half of a forward: (rows, out) outputs of any type for quantized activations.
    ///
    /// # Errors
    /// [`Error::ActivationSettings`] if they were quantized with other settings than this layer's;
    /// otherwise as [`forward`](Self::forward).
    pub fn forward_quantized_into(
        &self,
        x: &Activation,
        out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        self.named(|| {
            let loaded = self.loaded()?;
            x.expect(loaded)?;
            out.as_ref().expect_len(Buffer::Output, self.outputs(x.rows())?)?;
            let query = self.query(x.rows(), x.float_type())?;
            let m = self.pick(query, out.float_type())?.1;
            let paths = self.multiply(loaded, x, &m, Output::Host(out))?;
            self.count_paths(&paths);
            Ok(())
        })
    }

    /// Prepares the weight, and loads the transform, for the backend that would multiply a row of
    /// the layer's type: what the first forward would do otherwise. Any number of threads may call
    /// it, before or while others call [`forward`](Self::forward).
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::NoBackend`], or an error of the backend.
    pub fn prepare(&self) -> Result<(), Error> {
        self.named(|| {
            let loaded = self.loaded()?;
            let (q, m) = self.pick(self.query(1, self.dtype())?, self.dtype())?;
            loaded.weight.on(self.runtime().backends(), &m)?;
            if let (Some(transform), Some(device)) = (&loaded.transform, q.backend.as_resident())
                && q.backend.is_same(m.backend)
            {
                transform.on(self.runtime().backends(), q.backend, device, self.dtype())?;
            }
            Ok(())
        })
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

    /// Who would do what for `rows` rows of activations of a type, and why not the others.
    ///
    /// # Errors
    /// [`Error::Empty`].
    pub fn explain(&self, rows: usize, input: FloatType) -> Result<Explanation, Error> {
        self.named(|| {
            let (loaded, query) = (self.loaded()?, self.query(rows, input)?);
            let encodings = (loaded.activations, loaded.weight.shape().expect_format()?);
            let (backends, product) =
                (self.runtime().backends(), self.matmul_query(&query, input)?);
            Ok(self.routing.explain(backends, encodings, &query, &product))
        })
    }

    /// The product of the leading dimensions.
    pub(super) fn rows_of(&self, shape: &[usize]) -> Result<usize, Error> {
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

    /// As [`rows_of`](Self::rows_of), for `len` values that must fill the shape.
    pub(super) fn rows_for(&self, len: usize, shape: &[usize]) -> Result<usize, Error> {
        let rows = self.rows_of(shape)?;
        let expected = rows * self.in_features();
        if len != expected {
            return Err(Error::InputLen { shape: shape.to_vec(), expected, got: len });
        }
        Ok(rows)
    }

    /// Number of outputs.
    pub(super) fn outputs(&self, rows: usize) -> Result<usize, Error> {
        let cols = self.out_features();
        let outputs = rows.checked_mul(cols);
        outputs.ok_or(fp4_core::Error::ShapeOverflow { rows, cols }.into())
    }

    /// The one path: quantizes `rows` rows and multiplies them.
    pub(super) fn run(&self, x: Input<'_>, rows: usize, out: Output<'_>) -> Result<(), Error> {
        let loaded = self.loaded()?;
        loaded.alpha()?;
        if let Output::Host(out) = &out {
            out.as_ref().expect_len(Buffer::Output, self.outputs(rows)?)?;
        }
        let (q, m) = self.pick(self.query(rows, x.float_type())?, out.float_type())?;
        let activation = self.quantize_by(loaded, x, rows, &q, &m)?;
        let paths = self.multiply(loaded, &activation, &m, out)?;
        self.count_paths(&paths);
        Ok(())
    }

    /// The first half: quantizes by `q`, into its own form if it multiplies too.
    fn quantize_by(
        &self,
        loaded: &Loaded,
        x: Input<'_>,
        rows: usize,
        q: &Quantizing<'_>,
        m: &Multiplier<'_>,
    ) -> Result<Activation, Error> {
        let (runtime, float_type) = (self.runtime(), x.float_type());
        let shape = loaded.quantized_by.shape(rows, self.in_features())?;
        let device = q.backend.as_resident();
        // A tensor of another backend passes through the host.
        let host = match (x, device) {
            (Input::Device(x), device) if !device.is_some_and(|d| x.is_on(d)) => Some(x.to_host()?),
            _ => None,
        };
        let values = host.as_ref().map(FloatVec::as_slice);
        let input = match (x, values) {
            (Input::Host(x), _) => Some(x),
            (Input::Device(_), values) => values,
        };
        let input = match input {
            Some(x) => {
                let transform = loaded.transform.as_ref().map(|t| t.stored().view()).transpose()?;
                let input = QuantizeInput::new(x, rows, shape.k(), &loaded.quantized_by)?;
                Some(input.with_transform(transform)?)
            }
            None => None,
        };
        let stays = match device {
            Some(device) if q.backend.is_same(m.backend) => {
                let query = self.query(rows, float_type)?;
                self.takes_own(loaded, m, &query, float_type).then_some(device)
            }
            _ => None,
        };
        let source = match (x, device) {
            (Input::Device(x), Some(device)) if x.is_on(device) => {
                Some((device, Source::Resident(&*x.value)))
            }
            _ => stays.zip(input.as_ref().map(|input| Source::Host(input.x()))),
        };
        // A device may have to be waited for, for its counts: not where all else stays there.
        let (mut counts, mut row_scales) = (QuantCounts::default(), Vec::new());
        let counted = self.counters.is_some() || matches!(x, Input::Host(_));
        let held = match (source, &input) {
            (Some((device, source)), _) => {
                let transform = match &loaded.transform {
                    Some(transform) => {
                        Some(transform.on(runtime.backends(), q.backend, device, float_type)?)
                    }
                    None => None,
                };
                let transform = transform.as_deref().map(|t| &**t);
                let mut operand = runtime.scratch().operand(q.backend, &**device)?;
                let (spec, to) = (&loaded.quantized_by, &mut *operand.value);
                let counts = counted.then_some(&mut counts);
                device.quantize_dyn(source, [rows, shape.k()], spec, transform, to, counts)?;
                if stays.is_some() {
                    Held::Operand(operand)
                } else {
                    let packed = self.exported(loaded, device, &operand, shape, &mut row_scales)?;
                    runtime.scratch().give_operand(operand);
                    Held::Packed(packed)
                }
            }
            (None, Some(input)) => {
                let mut packed = self.packed(shape);
                let mut out = packed.view_mut();
                if loaded.quantized_by.row_scales() {
                    row_scales.resize(rows, 0.0);
                    out = out.with_row_scales(&mut row_scales)?;
                }
                counts = q.role.quantize(input, &mut out)?;
                Held::Packed(packed)
            }
            (None, None) => return Err(Error::OnHost),
        };
        self.count_quantized(&counts, loaded, input.as_ref().map(QuantizeInput::x));
        let settings = Settings::of(loaded);
        let activation =
            Activation::new(held, runtime.clone(), settings, [rows, shape.k()], float_type);
        Ok(activation.with_row_scales(row_scales))
    }

    /// Whether a backend multiplies its own operands with all of the layer's epilogue: always, but
    /// where the operand has row scales, which are then not to be had outside.
    fn takes_own(
        &self,
        loaded: &Loaded,
        m: &Multiplier<'_>,
        query: &QuantizeQuery,
        output: FloatType,
    ) -> bool {
        if !loaded.quantized_by.row_scales() {
            return true;
        }
        let query = self.matmul_query(query, output);
        let all = |q: MatmulQuery| q.with_row_scales(true).with_bias(loaded.bias.is_some());
        query.is_ok_and(|query| m.role.supports_matmul(&all(query)).is_ok())
    }

    /// An operand as packed codes, and its row scales if the settings ask for them.
    fn exported(
        &self,
        loaded: &Loaded,
        device: &Arc<dyn DynResident>,
        operand: &Operand,
        shape: PackedShape,
        row_scales: &mut Vec<f32>,
    ) -> Result<PackedMatrix, Error> {
        let mut packed = self.packed(shape);
        let mut out = packed.view_mut();
        if loaded.quantized_by.row_scales() {
            row_scales.resize(shape.rows(), 0.0);
            out = out.with_row_scales(row_scales)?;
        }
        device.export_dyn(&*operand.value, &mut out)?;
        Ok(packed)
    }

    /// The second half: multiplies by `m`, and adds the bias here where `m` does not.
    fn multiply(
        &self,
        loaded: &Loaded,
        x: &Activation,
        m: &Multiplier<'_>,
        out: Output<'_>,
    ) -> Result<Paths, Error> {
        let query = self.query(x.rows(), x.float_type())?;
        let scaled = loaded.quantized_by.row_scales();
        // What leaves its backend does so here, with its row scales.
        let (moved, mut moved_scales);
        let (held, row_scales) = match x.held()? {
            Held::Operand(operand)
                if operand.backend.is_same(m.backend)
                    && self.takes_own(loaded, m, &query, out.float_type()) =>
            {
                (x.held()?, None)
            }
            Held::Operand(operand) => {
                let device = operand.backend.as_resident().ok_or(Error::OnHost)?;
                let shape = loaded.quantized_by.shape(x.rows(), x.k())?;
                moved_scales = Vec::new();
                moved = Held::Packed(self.exported(
                    loaded,
                    device,
                    operand,
                    shape,
                    &mut moved_scales,
                )?);
                (&moved, scaled.then_some(&moved_scales[..]))
            }
            held @ Held::Packed(_) => (held, scaled.then(|| x.row_scales())),
        };
        // With an operand's own row scales all of the epilogue is the backend's.
        let own = scaled && row_scales.is_none();
        let epilogue = Epilogue::new(loaded.alpha()?)
            .with_row_scales(row_scales)
            .with_bias(loaded.bias.as_deref());
        let query = self.matmul_query(&query, out.float_type())?.with_epilogue(&epilogue);
        let alpha_alone = row_scales.is_none() && loaded.bias.is_none();
        if own || alpha_alone || m.role.supports_matmul(&query).is_ok() {
            return self.multiply_by(loaded, held, x.rows(), m, epilogue, out);
        }
        // alpha = 1 in f32 is the exact sum rounded once, where C6's last steps begin.
        let mut sums = vec![0f32; self.outputs(x.rows())?];
        let host = Output::Host(f32::wrap_mut(&mut sums));
        let paths = self.multiply_by(loaded, held, x.rows(), m, Epilogue::new(1.0), host)?;
        match out {
            Output::Host(out) => finish_sums(&sums, self.out_features(), epilogue, out),
            Output::Device(owner, value, ty) => {
                let mut host = FloatVec::zeros(ty, sums.len());
                finish_sums(&sums, self.out_features(), epilogue, host.as_mut_slice());
                *value = owner.upload_dyn(host.as_slice())?;
            }
        }
        Ok(paths)
    }

    /// Multiplies rows that are packed, or in the form of `m`'s backend.
    fn multiply_by(
        &self,
        loaded: &Loaded,
        held: &Held,
        rows: usize,
        m: &Multiplier<'_>,
        epilogue: Epilogue<'_>,
        out: Output<'_>,
    ) -> Result<Paths, Error> {
        let weight = loaded.weight.on(self.runtime().backends(), m)?;
        // In the backend's own form: nothing crosses.
        let packed = match (held, &*weight) {
            (Held::Operand(operand), Prepared::Device(device, linear))
                if operand.backend.is_same(m.backend) =>
            {
                return match out {
                    Output::Host(out) => {
                        Ok(linear.matmul_dyn(&*operand.value, epilogue, Sink::Host(out))?)
                    }
                    Output::Device(owner, value, ty) if same(owner, device) => {
                        let sink = Sink::Resident(&mut **value, ty);
                        Ok(linear.matmul_dyn(&*operand.value, epilogue, sink)?)
                    }
                    Output::Device(owner, value, ty) => self.through_host(
                        rows,
                        |host| {
                            Ok(linear.matmul_dyn(&*operand.value, epilogue, Sink::Host(host))?)
                        },
                        (owner, value, ty),
                    ),
                };
            }
            (Held::Packed(packed), _) => packed,
            (Held::Operand(_), _) => return Err(Error::OnHost),
        };
        match (&*weight, out) {
            (Prepared::Device(device, linear), Output::Device(owner, value, ty))
                if same(owner, device) =>
            {
                let scratch = self.runtime().scratch();
                let mut operand = scratch.operand(m.backend, &**device)?;
                device.import_dyn(packed.view(), &mut *operand.value)?;
                let sink = Sink::Resident(&mut **value, ty);
                let paths = linear.matmul_dyn(&*operand.value, epilogue, sink)?;
                scratch.give_operand(operand);
                Ok(paths)
            }
            (weight, Output::Host(out)) => Ok(weight.matmul(packed.view(), epilogue, out)?),
            (weight, Output::Device(owner, value, ty)) => self.through_host(
                rows,
                |host| Ok(weight.matmul(packed.view(), epilogue, host)?),
                (owner, value, ty),
            ),
        }
    }

    /// Outputs that a backend writes to the host, on their way to the memory of another.
    fn through_host(
        &self,
        rows: usize,
        write: impl FnOnce(FloatSliceMut<'_>) -> Result<Paths, Error>,
        (owner, value, ty): (&Arc<dyn DynResident>, &mut Box<Opaque>, FloatType),
    ) -> Result<Paths, Error> {
        let mut host = FloatVec::zeros(ty, self.outputs(rows)?);
        let paths = write(host.as_mut_slice())?;
        *value = owner.upload_dyn(host.as_slice())?;
        Ok(paths)
    }

    /// A packed matrix of a shape; contents unspecified.
    pub(super) fn packed(&self, shape: fp4_core::PackedShape) -> PackedMatrix {
        match self.runtime().scratch().packed() {
            Some(mut packed) => {
                packed.reshape(shape);
                packed
            }
            None => PackedMatrix::zeros(shape),
        }
    }

    /// What quantizing `rows` rows of activations of a type asks of a backend.
    pub(super) fn query(&self, rows: usize, input: FloatType) -> Result<QuantizeQuery, Error> {
        let loaded = self.loaded()?;
        let shape = loaded.quantized_by.shape(rows, self.in_features())?;
        let transform = loaded.transform.as_ref().map(|t| t.stored().view()).transpose()?;
        let query = QuantizeQuery::new(shape, &loaded.quantized_by, input);
        Ok(query.with_transform(transform.map(|t| t.shape())))
    }

    pub(super) fn matmul_query(
        &self,
        q: &QuantizeQuery,
        output: FloatType,
    ) -> Result<MatmulQuery, Error> {
        let loaded = self.loaded()?;
        let format = loaded.weight.shape().expect_format()?;
        let query = MatmulQuery::new(format, [q.rows, self.out_features(), q.k], output);
        Ok(query.with_a(loaded.quantized_by.encoding().unwrap_or(format.into())))
    }

    /// The backends that quantize and multiply, with the logging that routing owes.
    pub(super) fn pick(
        &self,
        query: QuantizeQuery,
        output: FloatType,
    ) -> Result<(Quantizing<'_>, Multiplier<'_>), Error> {
        let (query, m_query) = (&query, &self.matmul_query(&query, output)?);
        let (routing, backends) = (&self.routing, self.runtime().backends());
        let (quantizer, q_honoured) = routing.pick_quantizer(backends, query);
        let (matmul, m_honoured) = routing.pick_matmul(backends, m_query);
        let routes: [(bool, usize, &str, &dyn Fn() -> Route); 2] = [
            (q_honoured, 0, "quantize", &|| routing.quantize_route(backends, query)),
            (m_honoured, 1, "multiply", &|| routing.matmul_route(backends, m_query)),
        ];
        for (honoured, i, role, route) in routes {
            if !honoured && !self.warned.refused[i].swap(true, Relaxed) {
                let route = route();
                if let Some((name, why)) = &route.refused {
                    let instead = route.chosen().unwrap_or("none");
                    let who = self.prefix();
                    log::warn!(
                        "{who}backend `{name}` cannot {role} here ({why}); using `{instead}`"
                    );
                }
            }
        }
        match (quantizer, matmul) {
            (Some(q), Some(m)) => {
                let (q_name, m_name) = (q.backend.name(), m.backend.name());
                let who = self.prefix();
                log::debug!("{who}routing: `{q_name}` quantizes, `{m_name}` multiplies");
                Ok((q, m))
            }
            (None, _) => {
                let reasons = routing.quantize_route(backends, query).reasons();
                Err(Error::NoBackend { role: "quantize", reasons })
            }
            (Some(_), None) => {
                let reasons = routing.matmul_route(backends, m_query).reasons();
                Err(Error::NoBackend { role: "multiply", reasons })
            }
        }
    }

    /// Adds to the counters, if they are on; warns of activations that saturate or vanish, once of
    /// each. `x` are the values, where they are on the host.
    pub(super) fn count_quantized(
        &self,
        counts: &QuantCounts,
        loaded: &Loaded,
        x: Option<FloatSlice<'_>>,
    ) {
        if let Some(counters) = &self.counters {
            counters.add_quantized(counts);
        }
        let Saturation { saturated, flushed } =
            Saturation::of(counts, loaded.quantized_by.row_scales());
        if saturated && !self.warned.saturated.swap(true, Relaxed) {
            log::warn!("{}{}", self.prefix(), Saturation::told(counts, loaded, x));
        }
        if flushed && !self.warned.flushed.swap(true, Relaxed) {
            log::warn!("{}{}", self.prefix(), Saturation::told_flushed(counts, loaded));
        }
    }

    /// True if a quantization that did this would make the layer warn.
    pub(super) fn has_yet_to_warn(&self, counts: &QuantCounts, loaded: &Loaded) -> bool {
        let Saturation { saturated, flushed } =
            Saturation::of(counts, loaded.quantized_by.row_scales());
        saturated && !self.warned.saturated.load(Relaxed)
            || flushed && !self.warned.flushed.load(Relaxed)
    }

    /// Adds to the counters, if they are on.
    pub(super) fn count_paths(&self, paths: &Paths) {
        if let Some(counters) = &self.counters {
            counters.add_paths(paths);
        }
    }
}

/// The last steps of C6 for sums rounded to f32, row-major in rows of `cols`.
fn finish_sums(sums: &[f32], cols: usize, epilogue: Epilogue<'_>, out: FloatSliceMut<'_>) {
    fn typed<T: Float>(sums: &[f32], cols: usize, epilogue: Epilogue<'_>, out: &mut [T]) {
        for (i, (sums, out)) in sums.chunks(cols).zip(out.chunks_mut(cols)).enumerate() {
            for (j, (&sum, out)) in sums.iter().zip(out).enumerate() {
                *out = epilogue.apply(sum, i, j);
            }
        }
    }
    let cols = cols.max(1);
    match out {
        FloatSliceMut::F32(out) => typed(sums, cols, epilogue, out),
        FloatSliceMut::F16(out) => typed(sums, cols, epilogue, out),
        FloatSliceMut::Bf16(out) => typed(sums, cols, epilogue, out),
    }
}

fn same(a: &Arc<dyn DynResident>, b: &Arc<dyn DynResident>) -> bool {
    std::ptr::addr_eq(Arc::as_ptr(a), Arc::as_ptr(b))
}

impl Loaded {
    /// The output multiplier: f32(weight gs * activation gs), or the weight's alone where the
    /// activations have no stored one.
    pub(crate) fn alpha(&self) -> Result<f32, Error> {
        let got = match self.activations {
            ActivationEncoding::Own => self.weight_global_scale * self.spec.global_scale(),
            _ => self.weight_global_scale,
        };
        if got.is_finite() && got > 0.0 {
            Ok(got)
        } else {
            Err(fp4_core::Error::ScaleSetting { what: ScaleSetting::Alpha, got }.into())
        }
    }
}
