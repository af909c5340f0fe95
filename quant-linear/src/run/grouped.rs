//! Several layers in one call: the experts of a mixture, or the projections of one input.
//!
//! ```text
//! check all:         settings, shapes, who quantizes and who multiplies
//! batches:           rows of layers that quantize alike, one after the other or the same ones
//! each batch:        quantized once                                            C4, C5
//! each backend:      one grouped product of all its layers' rows               C6
//! ```
//!
//! A row's bits depend on the row alone, and a product's on its own operands, so every output is
//! what [`forward_into`](QuantLinear::forward_into) of its layer gives. A backend that does not
//! schedule products together ([`Matmul::schedules_grouped`](fp4_core::Matmul::schedules_grouped))
//! is given the layers one by one, in its own form, as by `forward_into`.
//!
//! Worked example: experts 0 to 3 of one scale setting with 2, 0, 5 and 1 rows: rows 0..8 are
//! quantized in one batch, and three products read rows 0..2, 2..7 and 7..8 of it.

use std::ops::Range;
use std::sync::Arc;

use fp4_core::backend::erased::DynMatmul;
use fp4_core::{
    Buffer, Epilogue, FloatSlice, FloatSliceMut, GroupedError, GroupedProduct, PackedMatrix,
    PackedMut, QuantCounts, QuantizeInput, with_floats,
};

use crate::error::Error;
use crate::layer::{Loaded, Prepared, QuantLinear};
use crate::run::Multiplier;
use crate::run::activation::{Activation, Settings};
use crate::run::routing::Quantizing;

impl QuantLinear {
    /// The experts of a mixture in one call: expert `e` takes the next `rows[e]` rows of `x`, and
    /// its outputs follow those of the experts before it. Each output has the bits that
    /// [`forward_into`](Self::forward_into) of its expert gives.
    ///
    /// `x` is (sum of rows, in) row-major, sorted by expert: whoever routes tokens gathers their
    /// rows so, and scatters the outputs back. Any `rows[e]` may be 0. All experts have the same
    /// input features; their formats, scales, biases and backends may differ. `out` may be of
    /// another type than `x`.
    ///
    /// Rows of neighbouring experts that quantize alike (the same settings and transform) are
    /// quantized together, and a backend that can schedules all products as one; small experts
    /// then share the threads evenly. Weights are prepared at the first call, or by
    /// [`prepare`](Self::prepare).
    ///
    /// ```
    /// use fp4_core::Format;
    /// use quant_linear::{DenseOptions, QuantLinear};
    ///
    /// let expert = |seed: usize| {
    ///     let w: Vec<f32> = (0..16 * 64).map(|i| (i * seed % 101) as f32 / 50.0 - 1.0).collect();
    ///     QuantLinear::from_dense(&w[..], 16, 64, &DenseOptions::new(Format::NvFp4))
    /// };
    /// let experts = [expert(37)?, expert(41)?, expert(43)?];
    /// let x: Vec<f32> = (0..4 * 64).map(|i| ((i * 29 % 83) as f32 - 41.0) / 20.0).collect();
    /// let mut y = vec![0f32; 4 * 16];
    /// // Three rows for expert 0, none for expert 1, one for expert 2.
    /// let all = [&experts[0], &experts[1], &experts[2]];
    /// QuantLinear::forward_experts_into(&all, (&x[..]).into(), &[3, 0, 1], (&mut y[..]).into())?;
    /// assert_eq!(y[..3 * 16], experts[0].forward(&x[..3 * 64], &[3, 64])?);
    /// assert_eq!(y[3 * 16..], experts[2].forward(&x[3 * 64..], &[1, 64])?);
    /// # Ok::<(), quant_linear::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::GroupedLen`] unless there is a number of rows for each expert; buffers that do not
    /// fit; otherwise as [`forward`](Self::forward), named by the layer if it has a name. With
    /// anything that does not fit, nothing is written.
    pub fn forward_experts_into(
        experts: &[&QuantLinear],
        x: FloatSlice<'_>,
        rows: &[usize],
        out: FloatSliceMut<'_>,
    ) -> Result<(), Error> {
        expect_one_each(experts.len(), rows.len(), "numbers of rows")?;
        let mut places = Vec::with_capacity(experts.len());
        let (mut all_rows, mut outputs) = (0usize, 0usize);
        for (expert, &rows) in experts.iter().zip(rows) {
            let len = expert.named(|| expert.outputs(rows))?;
            let too_many = || fp4_core::Error::ShapeOverflow { rows, cols: all_rows };
            let end = all_rows.checked_add(rows).ok_or_else(too_many)?;
            outputs = outputs.checked_add(len).ok_or_else(too_many)?;
            places.push((all_rows..end, len));
            all_rows = end;
        }
        out.as_ref().expect_len(Buffer::Output, outputs)?;
        let mut rest = out;
        let calls = experts.iter().zip(places).map(|(&layer, (rows, len))| {
            let out;
            (out, rest) = split(std::mem::replace(&mut rest, FloatSliceMut::F32(&mut [])), len);
            LayerCall { layer, rows, out }
        });
        run(x, all_rows, calls.collect())
    }

    /// Several layers of one input in one call: q, k and v, or gate and up. Layer `i` takes all of
    /// `x`, (rows, in) row-major, and writes (rows, out) to `outs[i]`, with the bits that
    /// [`forward_into`](Self::forward_into) of that layer gives.
    ///
    /// Layers that quantize alike share one quantization, which the first of them counts, and a
    /// backend that can schedules all products as one.
    ///
    /// # Errors
    /// As [`forward_experts_into`](Self::forward_experts_into).
    pub fn forward_each_into(
        layers: &[&QuantLinear],
        x: FloatSlice<'_>,
        rows: usize,
        outs: &mut [FloatSliceMut<'_>],
    ) -> Result<(), Error> {
        expect_one_each(layers.len(), outs.len(), "outputs")?;
        let calls = layers.iter().zip(outs).map(|(&layer, out)| LayerCall {
            layer,
            rows: 0..rows,
            out: out.reborrow(),
        });
        run(x, rows, calls.collect())
    }
}

fn expect_one_each(layers: usize, got: usize, what: &'static str) -> Result<(), Error> {
    if layers == got { Ok(()) } else { Err(Error::GroupedLen { what, layers, got }) }
}

/// The first `at` values, and the others.
fn split(values: FloatSliceMut<'_>, at: usize) -> (FloatSliceMut<'_>, FloatSliceMut<'_>) {
    with_floats!(FloatSliceMut, values, values => {
        let (first, others) = values.split_at_mut(at);
        (first.into(), others.into())
    })
}

/// Rows `rows` of `k` values.
fn rows_of<'a>(x: FloatSlice<'a>, rows: &Range<usize>, k: usize) -> FloatSlice<'a> {
    with_floats!(FloatSlice, x, x => FloatSlice::from(&x[rows.start * k..rows.end * k]))
}

/// A layer of a call, the rows of the input that it takes, and where its outputs go.
struct LayerCall<'a> {
    layer: &'a QuantLinear,
    rows: Range<usize>,
    out: FloatSliceMut<'a>,
}

/// A call that can be made: its operands fit and there are backends for it.
struct Planned<'a> {
    call: LayerCall<'a>,
    loaded: &'a Arc<Loaded>,
    q: Quantizing<'a>,
    m: Multiplier<'a>,
}

impl<'a> Planned<'a> {
    /// Checks a call; the flag says whether its product can be one of a group.
    fn new(call: LayerCall<'a>, x: FloatSlice<'_>) -> Result<(Self, bool), Error> {
        let layer = call.layer;
        let rows = call.rows.len();
        let loaded = layer.loaded()?;
        let epilogue = Epilogue::new(loaded.alpha()?).with_bias(loaded.bias.as_deref());
        call.out.as_ref().expect_len(Buffer::Output, layer.outputs(rows)?)?;
        let query = layer.query(rows, x.float_type())?;
        let product = layer.matmul_query(&query, call.out.float_type())?;
        let (q, m) = layer.pick(query, call.out.float_type())?;
        let product = product.with_epilogue(&epilogue);
        let product = product.with_row_scales(loaded.quantized_by.row_scales());
        let groups = m.role.schedules_grouped() && m.role.supports_matmul(&product).is_ok();
        Ok((Planned { call, loaded, q, m }, groups))
    }
}

/// All of a call, on `rows` rows of x.
fn run(x: FloatSlice<'_>, rows: usize, calls: Vec<LayerCall<'_>>) -> Result<(), Error> {
    let Some(first) = calls.first() else {
        // Of no layers: no rows, and no features that they could have.
        return Ok(x.expect_len(Buffer::Input, 0)?);
    };
    let k = first.layer.in_features();
    let (mut grouped, mut others) = (Vec::new(), Vec::new());
    for call in calls {
        let layer = call.layer;
        layer.named(|| {
            layer.rows_for(x.len(), &[rows, k])?;
            let (planned, groups) = Planned::new(call, x)?;
            match planned.call.rows.is_empty() {
                true => {}
                false if groups => grouped.push(planned),
                false => others.push(planned),
            }
            Ok(())
        })?;
    }
    // One product is no group: its rows stay in the backend's own form.
    if grouped.len() == 1 {
        others.append(&mut grouped);
    }
    run_grouped(x, k, grouped)?;
    one_by_one(x, k, others)
}

/// The layers one after the other, those of one input that quantize alike by one quantization.
fn one_by_one(x: FloatSlice<'_>, k: usize, calls: Vec<Planned<'_>>) -> Result<(), Error> {
    let mut last: Option<(Range<usize>, Activation)> = None;
    for Planned { call: LayerCall { layer, rows, out }, .. } in calls {
        let again = last.as_ref().filter(|(of, last)| *of == rows && last.fits(layer));
        let activation = match again {
            Some((_, last)) => last,
            None => {
                let made = layer.quantize(rows_of(x, &rows, k), rows.len())?;
                &last.insert((rows, made)).1
            }
        };
        layer.forward_quantized_into(activation, out)?;
    }
    Ok(())
}

/// Rows that are quantized together.
struct Batch {
    rows: Range<usize>,
    settings: Settings,
    /// The calls that the rows are for; the first one's layer and backend quantize.
    calls: Vec<usize>,
}

/// Quantized rows.
struct Quantized {
    /// Where they are in the input.
    rows: Range<usize>,
    packed: PackedMatrix,
    /// A scale for each row, where the settings ask for them.
    row_scales: Vec<f32>,
}

/// The layers whose products are scheduled together.
fn run_grouped(x: FloatSlice<'_>, k: usize, mut calls: Vec<Planned<'_>>) -> Result<(), Error> {
    let weight = |planned: &Planned<'_>| {
        let layer = planned.call.layer;
        layer.named(|| planned.loaded.weight.on(layer.runtime().backends(), &planned.m))
    };
    let weights: Vec<Arc<Prepared>> = calls.iter().map(weight).collect::<Result<_, _>>()?;
    let batches = batches(&calls);
    let mut batch_of = vec![0; calls.len()];
    for (b, batch) in batches.iter().enumerate() {
        batch.calls.iter().for_each(|&i| batch_of[i] = b);
    }
    let quantized: Vec<Quantized> =
        batches.iter().map(|batch| quantize(x, k, batch, &calls)).collect::<Result<_, _>>()?;
    let mut left: Vec<usize> = (0..calls.len()).collect();
    while let Some(&first) = left.first() {
        let m = &calls[first].m;
        let (backend, role) = (m.backend, m.role);
        let these: Vec<usize>;
        (these, left) = left.into_iter().partition(|&i| calls[i].m.backend.is_same(backend));
        multiply(role, &mut calls, &these, &weights, |i| &quantized[batch_of[i]])?;
    }
    for (batch, quantized) in batches.iter().zip(quantized) {
        let layer = calls[batch.calls[0]].call.layer;
        layer.runtime().scratch().give_packed(quantized.packed);
    }
    Ok(())
}

/// Which rows are quantized together: those of consecutive calls, or the same ones, that the same
/// backend quantizes by the same settings.
fn batches(calls: &[Planned<'_>]) -> Vec<Batch> {
    let mut batches: Vec<Batch> = Vec::new();
    for (i, Planned { call, loaded, q, .. }) in calls.iter().enumerate() {
        let settings = Settings::of(loaded);
        let joins = |batch: &&mut Batch| {
            (batch.rows == call.rows || batch.rows.end == call.rows.start)
                && calls[batch.calls[0]].q.backend.is_same(q.backend)
                && batch.settings.same(&settings)
        };
        match batches.iter_mut().rev().find(joins) {
            Some(batch) => {
                batch.rows.end = call.rows.end;
                batch.calls.push(i);
            }
            None => batches.push(Batch { rows: call.rows.clone(), settings, calls: vec![i] }),
        }
    }
    batches
}

/// Quantizes a batch and counts for each layer what that did to its rows; rows that several layers
/// share are counted by the first.
///
/// One call for all rows says what it did to all. Where that is not enough, because a layer counts
/// or may have to warn, each layer's rows are quantized alone, to the same bits.
fn quantize(
    x: FloatSlice<'_>,
    k: usize,
    batch: &Batch,
    calls: &[Planned<'_>],
) -> Result<Quantized, Error> {
    let first = &calls[batch.calls[0]];
    let spec = &first.loaded.quantized_by;
    let row_scales = if spec.row_scales() { vec![0.0; batch.rows.len()] } else { Vec::new() };
    let shape = spec.shape(batch.rows.len(), k)?;
    let packed = first.call.layer.packed(shape);
    let mut quantized = Quantized { rows: batch.rows.clone(), packed, row_scales };
    let mut of_rows = |planned: &Planned<'_>, rows: &Range<usize>| {
        planned.call.layer.named(|| quantized.fill(rows_of(x, rows, k), rows, planned))
    };
    let count = |planned: &Planned<'_>, counts: &QuantCounts| {
        let x = rows_of(x, &planned.call.rows, k);
        planned.call.layer.count_quantized(counts, planned.loaded, Some(x));
    };
    let each = || batch.calls.iter().map(|&i| &calls[i]);
    let shared = each().all(|planned| planned.call.rows == batch.rows);
    if shared || each().all(|planned| planned.call.layer.counters.is_none()) {
        let counts = of_rows(first, &batch.rows)?;
        if shared {
            count(first, &counts);
            return Ok(quantized);
        }
        if !each().any(|planned| planned.may_warn(&counts, k)) {
            return Ok(quantized);
        }
    }
    for planned in each() {
        let counts = of_rows(planned, &planned.call.rows)?;
        count(planned, &counts);
    }
    Ok(quantized)
}

impl Planned<'_> {
    /// True if the layer would warn if all that `counts` says had happened to its own rows.
    fn may_warn(&self, counts: &QuantCounts, k: usize) -> bool {
        let (mut all, spec) = (*counts, &self.loaded.quantized_by);
        all.elements = (self.call.rows.len() * k) as u64;
        all.groups = all.elements / spec.group().get() as u64;
        self.call.layer.has_yet_to_warn(&all, self.loaded)
    }
}

impl Quantized {
    /// Quantizes the values `x` of the rows `rows` as a call's layer does.
    fn fill(
        &mut self,
        x: FloatSlice<'_>,
        rows: &Range<usize>,
        Planned { loaded, q, .. }: &Planned<'_>,
    ) -> Result<QuantCounts, Error> {
        let spec = &loaded.quantized_by;
        let k = self.packed.shape().k();
        let transform = loaded.transform.as_ref().map(|t| t.stored().view()).transpose()?;
        let input = QuantizeInput::new(x, rows.len(), k, spec)?.with_transform(transform)?;
        let shape = input.shape();
        let first = rows.start - self.rows.start;
        let mut view = self.packed.view_mut();
        let (codes, scales) = view.buffers();
        let codes = &mut codes[first * shape.row_bytes()..][..shape.codes_len()];
        let scales = &mut scales[first * shape.row_groups()..][..shape.scales_len()];
        let mut out = PackedMut::new(shape, codes, scales)?;
        if spec.row_scales() {
            out = out.with_row_scales(&mut self.row_scales[first..][..rows.len()])?;
        }
        Ok(q.role.quantize(&input, &mut out)?)
    }
}

/// One grouped product of the calls `these`, which ascend, each of rows of its batch.
fn multiply<'b>(
    role: &Arc<dyn DynMatmul>,
    calls: &mut [Planned<'_>],
    these: &[usize],
    weights: &[Arc<Prepared>],
    batch_of: impl Fn(usize) -> &'b Quantized,
) -> Result<(), Error> {
    let (mut products, mut layers) = (Vec::with_capacity(these.len()), Vec::new());
    let picked = calls.iter_mut().enumerate().filter(|(i, _)| these.binary_search(i).is_ok());
    for (i, Planned { call, loaded, .. }) in picked {
        let batch = batch_of(i);
        let rows = call.rows.start - batch.rows.start..call.rows.end - batch.rows.start;
        let scaled = loaded.quantized_by.row_scales();
        let epilogue = Epilogue::new(loaded.alpha()?)
            .with_row_scales(scaled.then(|| &batch.row_scales[rows.clone()]))
            .with_bias(loaded.bias.as_deref());
        let (a, b) = (batch.packed.view().rows_range(rows)?, weights[i].by_packed());
        products.push(GroupedProduct::new(a, b, epilogue, call.out.reborrow()));
        layers.push(call.layer);
    }
    let of_layer = |GroupedError { product, error, .. }: GroupedError| {
        let error = Error::from(error);
        match product.and_then(|i| layers.get(i)) {
            Some(layer) => layer.name_error(error),
            None => error,
        }
    };
    role.grouped_dyn(&mut products).map_err(of_layer)?;
    for (layer, product) in layers.iter().zip(&products) {
        layer.count_paths(&product.paths);
    }
    Ok(())
}
