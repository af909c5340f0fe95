//! The halves of a forward apart, for layers whose K is split (C6): activations packed on the host,
//! and exact sums that are not rounded yet.

use fp4_core::{
    FloatSlice, MatmulQuery, PackedMatrix, PackedMut, PackedView, PartialsMut, QuantCounts,
    QuantizeInput,
};

use crate::error::Error;
use crate::layer::QuantLinear;
use crate::run::Multiplier;
use crate::transform::{amax, for_each_transformed};

/// Rows of activations, quantized and packed on the host.
#[derive(Debug, Clone)]
pub struct PackedRows {
    /// Codes and scales.
    pub packed: PackedMatrix,
    /// A scale for each row, where the layer's settings ask for them; else none.
    pub row_scales: Vec<f32>,
}

impl QuantLinear {
    /// The largest magnitude of each of `rows` rows, (rows, in), after the layer's transform: what
    /// row scales come from (C4).
    ///
    /// # Errors
    /// [`Error::Empty`]; values that are no such rows.
    pub fn row_amax(&self, x: FloatSlice<'_>, rows: usize) -> Result<Vec<f32>, Error> {
        self.named(|| {
            let (loaded, k) = (self.loaded()?, self.in_features());
            self.rows_for(x.len(), &[rows, k])?;
            let transform = loaded.transform.as_ref().map(|t| t.stored().view()).transpose()?;
            let mut largest = Vec::with_capacity(rows);
            for_each_transformed(x, k, transform.as_ref(), |y| {
                let of_rows = y.len().checked_div(k).unwrap_or(0);
                let each = (0..of_rows).map(|i| amax(part(y, i * k..(i + 1) * k)));
                largest.extend(each);
                true
            })?;
            largest.resize(rows, 0.0);
            Ok(largest)
        })
    }

    /// Quantizes (rows, in) values to packed codes on the host. Where the settings ask for row
    /// scales, `amax` has the largest magnitude of each row after the transform, which may be
    /// that of a longer row of which this is a part; without it, the row's own counts.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn quantize_packed(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        amax: Option<&[f32]>,
    ) -> Result<PackedRows, Error> {
        self.named(|| {
            let (loaded, k) = (self.loaded()?, self.in_features());
            self.rows_for(x.len(), &[rows, k])?;
            let transform = loaded.transform.as_ref().map(|t| t.stored().view()).transpose()?;
            let (q, _) = self.pick(self.query(rows, x.float_type())?, x.float_type())?;
            let spec = loaded.quantized_by;
            let mut packed = PackedMatrix::zeros(spec.shape(rows, k)?);
            let mut row_scales = Vec::new();
            match amax.filter(|_| spec.row_scales()) {
                Some(amax) if amax.len() == rows => {
                    let row = spec.shape(1, k)?;
                    let mut out = packed.view_mut();
                    let mut counts = QuantCounts::default();
                    for (i, &amax) in amax.iter().enumerate() {
                        // A row under a scale is that row under it as global scale (C4).
                        let spec = spec.of_row(amax);
                        row_scales.push(spec.global_scale());
                        let x = part(x, i * k..(i + 1) * k);
                        let input =
                            QuantizeInput::new(x, 1, k, &spec)?.with_transform(transform)?;
                        let (codes, scales) = out.row(i);
                        counts +=
                            q.role.quantize(&input, &mut PackedMut::new(row, codes, scales)?)?;
                    }
                    self.count_quantized(&counts, loaded, Some(x));
                }
                Some(amax) => {
                    let (what, expected) = (fp4_core::Buffer::RowScales, rows);
                    return Err(fp4_core::Error::Len { what, expected, got: amax.len() }.into());
                }
                None => {
                    let input = QuantizeInput::new(x, rows, k, &spec)?.with_transform(transform)?;
                    let mut out = packed.view_mut();
                    if spec.row_scales() {
                        row_scales.resize(rows, 0.0);
                        out = out.with_row_scales(&mut row_scales)?;
                    }
                    let counts = q.role.quantize(&input, &mut out)?;
                    self.count_quantized(&counts, loaded, Some(x));
                }
            }
            Ok(PackedRows { packed, row_scales })
        })
    }

    /// Adds the exact sums of packed rows with the weight to `out`, (rows, out) row-major,
    /// unrounded and without the epilogue, by the backend that would multiply, or the first that
    /// gives such sums.
    ///
    /// # Errors
    /// As [`forward`](Self::forward); [`Error::NoBackend`] if none gives partial sums.
    pub fn partial_into(&self, a: PackedView<'_>, out: PartialsMut<'_>) -> Result<(), Error> {
        self.named(|| {
            let loaded = self.loaded()?;
            let shape = loaded.weight.shape();
            let format = shape.expect_format()?;
            let float = self.dtype();
            let query =
                MatmulQuery::new(format, [a.shape().rows(), shape.rows(), shape.k()], float);
            let query = query.with_a(a.shape().encoding().unwrap_or(format.into()));
            let backends = self.runtime().backends();
            let can = |m: &Multiplier<'_>| m.role.supports_partial(&query).is_ok();
            let picked = self.routing.pick_matmul(backends, &query).0.filter(can);
            let any = || {
                backends.list().iter().find_map(|backend| {
                    Some(Multiplier { backend, role: backend.matmul()? }).filter(can)
                })
            };
            let by = picked.or_else(any).ok_or_else(|| {
                let reasons = self.routing.matmul_route(backends, &query).reasons();
                Error::NoBackend { role: "give partial sums of", reasons }
            })?;
            let weight = loaded.weight.on(backends, &by)?;
            Ok(weight.by_packed().partial(a, 0..shape.row_groups(), out)?)
        })
    }

    /// What outputs are multiplied by: alpha of the epilogue (C6).
    ///
    /// # Errors
    /// [`Error::Empty`]; one that is not finite and above zero.
    pub fn alpha(&self) -> Result<f32, Error> {
        self.loaded()?.alpha()
    }
}

/// Some of the values.
pub(crate) fn part(values: FloatSlice<'_>, range: std::ops::Range<usize>) -> FloatSlice<'_> {
    match values {
        FloatSlice::F32(v) => FloatSlice::F32(&v[range]),
        FloatSlice::F16(v) => FloatSlice::F16(&v[range]),
        FloatSlice::Bf16(v) => FloatSlice::Bf16(&v[range]),
    }
}
