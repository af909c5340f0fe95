//! A layer whose K is split: each rank has some columns of W and of x, and sums are reduced.

use std::ops::Range;
use std::sync::Arc;

use fp4_core::reduction::{BlockPlan, Bound, Form, Reach};
use fp4_core::{
    Buffer, Encoding, Epilogue, Error as CoreError, ExactSum, FloatSlice, FloatSliceMut, FloatType,
    FloatVec, PackedMatrix, PackedShape, Product,
};

use crate::error::Error;
use crate::layer::{ActivationEncoding, Parts, QuantLinear};
use crate::run::partial::{PackedRows, part};
use crate::run::runtime::Runtime;
use crate::sharded::card::{self, Call, Card, FIRST_ROWS, Operation};
use crate::sharded::finish::{Finish, Planned};
use crate::sharded::shard::{RowShard, even, settings, unit};
use crate::sharded::{Communicator, Kept, ShardError};
use crate::transform::larger_amax;

/// Columns of outputs that are computed at a time, while those before are reduced.
const BLOCK: usize = 2048;
/// Words of an all-reduce, at least, if there are so many: blocks of few rows go together.
const LEAST_WORDS: usize = 1 << 14;

/// A row-parallel layer on one rank: y = x W^T + b, where rank r has some columns of x and W.
///
/// All ranks build it and call it together, with the same number of rows. The outputs are the
/// bits of the whole layer on one process.
pub struct RowParallel<C> {
    comm: C,
    blocks: Vec<Block>,
    product: Product,
    /// Of all of K.
    groups: usize,
    bound: Bound,
    wide: bool,
    columns: Range<usize>,
    lens: Vec<usize>,
    in_features: usize,
    out_features: usize,
    activations: ActivationEncoding,
    alpha: f32,
    bias: Option<Arc<[f32]>>,
}

/// Some outputs.
struct Block {
    /// `None` where this rank has no columns.
    layer: Option<QuantLinear>,
    outputs: Range<usize>,
    /// Of all ranks.
    reaches: Vec<Reach>,
}

/// What a rank has done before all agree.
enum Early {
    /// Its rows, quantized.
    Rows(Rows),
    /// The largest magnitudes of its rows, from which, and those of the others, scales come.
    Amax(Vec<f32>),
}

/// What a call has come to.
#[derive(Debug, Default)]
struct Ran {
    reduced: Reduced,
    /// The first error on this rank, or that there is one on another.
    failed: Option<ShardError>,
}

impl Ran {
    /// What is there, or nothing and its error is kept.
    fn kept<T>(&mut self, result: Result<T, ShardError>) -> Option<T> {
        let kept = |error| _ = self.failed.get_or_insert(error);
        result.map_err(kept).ok()
    }

    fn ended(self) -> Result<Reduced, ShardError> {
        self.failed.map_or(Ok(self.reduced), Err)
    }
}

/// What a call sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Reduced {
    /// Rows times blocks in the narrow form.
    pub narrow: usize,
    /// Rows times blocks in the wide form.
    pub wide: usize,
    /// Words of sums, 8 bytes each.
    pub words: usize,
    /// Bytes that agreed on the forms.
    pub agreed: usize,
}

impl<C: Communicator> RowParallel<C> {
    /// The layer of the ranks' shards, on a runtime, or the shared one. Every rank of the
    /// communicator calls it, also one whose shard could not be had: it hands over why.
    ///
    /// # Errors
    /// The same on every rank: [`ShardError::Peer`] if one has no shard, [`ShardError::Disagree`],
    /// [`ShardError::Ranges`]; on the rank itself what is wrong with its shard.
    pub fn new(
        comm: C,
        shard: Result<RowShard, ShardError>,
        runtime: Option<&Runtime>,
    ) -> Result<Self, ShardError> {
        Self::with_block(comm, shard, runtime, BLOCK)
    }

    /// As [`new`](Self::new), with so many outputs reduced at a time; the same on every rank.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn with_block(
        comm: C,
        shard: Result<RowShard, ShardError>,
        runtime: Option<&Runtime>,
        block: usize,
    ) -> Result<Self, ShardError> {
        let built = shard.and_then(|shard| Built::new(shard, runtime, block.max(1)));
        let card = match &built {
            Ok(built) => built.card(block),
            Err(error) => Card::failed(error),
        };
        let exchanged = card::exchange(&comm, &card);
        let Built { shard, mut blocks, shape, alpha } = built?;
        let ranges = exchanged?;
        if comm.size() > ExactSum::MOST_ADDED {
            return Err(ShardError::Ranks { ranks: comm.size(), most: ExactSum::MOST_ADDED });
        }
        card::expect_whole(&ranges, "columns", shard.in_features)?;
        let weight = shard.parts.weight.shape();
        for block in &mut blocks {
            merge(&comm, &mut block.reaches)?;
        }
        let whole = weight.resized(0, shard.in_features)?;
        let product = shape.resized(0, shard.in_features)?.expect_product(&whole)?;
        Ok(RowParallel {
            comm,
            blocks,
            product,
            groups: whole.row_groups(),
            bound: Bound::new(product, whole.row_groups()),
            wide: false,
            columns: shard.columns,
            lens: ranges.into_iter().map(|range| range.len()).collect(),
            in_features: shard.in_features,
            out_features: weight.rows(),
            activations: shard.parts.activations,
            alpha,
            bias: shard.bias.map(Arc::from),
        })
    }

    /// Makes every sum go in the wide form, but those of MXFP4 rows or blocks of nothing but zeros,
    /// which are 0 in any: to measure what it costs, and to test it. The same on every rank.
    pub fn set_wide(&mut self, wide: bool) {
        self.wide = wide;
        // No i64 is enough for so many groups.
        let groups = if wide { usize::MAX } else { self.groups };
        self.bound = Bound::new(self.product, groups);
    }

    /// This rank's columns of x.
    pub fn columns(&self) -> Range<usize> {
        self.columns.clone()
    }

    /// All input features.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Output features.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// The rows that a rank keeps of a reduce-scatter of `rows`.
    pub fn own_rows(&self, rows: usize) -> Range<usize> {
        even(rows, 1, self.comm.rank(), self.comm.size())
    }

    /// All outputs, (rows, out), on every rank, for this rank's columns of the rows, (rows, own
    /// columns).
    ///
    /// # Errors
    /// [`ShardError::PeerInput`] or [`ShardError::Calls`] on every rank if one rank's input does
    /// not fit, or ranks are in different calls; [`ShardError::PeerFailed`] if another rank's
    /// backend failed, which has the backend's error: `out` is then anything, and the next call
    /// works; an error of the communicator, which all later calls are then: end all ranks.
    pub fn forward_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: FloatSliceMut<'_>,
    ) -> Result<Reduced, ShardError> {
        self.run(x, rows, out, Operation::All)?.ended()
    }

    /// This rank's rows of the outputs, ([`own_rows`](Self::own_rows), out): a reduce-scatter.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_own_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: FloatSliceMut<'_>,
    ) -> Result<Reduced, ShardError> {
        self.run(x, rows, out, Operation::Own)?.ended()
    }

    /// As [`forward_into`](Self::forward_into), by a reduce-scatter and a gather of the finished
    /// outputs: in a ring 8 bytes of sums and those of an output travel, where an all-reduce
    /// takes 16, and each output is rounded on one rank. For many rows; with fewer rows than
    /// ranks some have nothing to finish.
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_gathered_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        mut out: FloatSliceMut<'_>,
    ) -> Result<Reduced, ShardError> {
        let (ty, n) = (out.as_ref().float_type(), self.out_features);
        let fits = rows.checked_mul(n) == Some(out.len());
        // What is too short is refused where all ranks hear of it.
        let own = if fits { self.own_rows(rows).len() * n } else { 0 };
        let mut own = FloatVec::zeros(ty, own);
        if !fits {
            self.refuse(rows, Operation::Gathered, ty)?;
            let expected = rows.saturating_mul(n);
            return Err(out
                .as_ref()
                .expect_len(Buffer::Output, expected)
                .err()
                .map_or(ShardError::PeerInput, ShardError::from));
        }
        let Ran { reduced, mut failed } =
            self.run(x, rows, own.as_mut_slice(), Operation::Gathered)?;
        let ranks = self.comm.size();
        // Behind each rank's outputs, whether it failed after the sums.
        let outputs = |rank: usize| even(rows, 1, rank, ranks).len() * n * ty.bytes();
        let lens: Vec<usize> = (0..ranks).map(|rank| outputs(rank) + 1).collect();
        let mut own = own.to_le_bytes();
        own.push(failed.is_some().into());
        let all = self.comm.gather(&own, &lens)?;
        let (mut values, mut rest) = (Vec::with_capacity(all.len()), &all[..]);
        for rank in 0..ranks {
            let (part, others) = rest.split_at(outputs(rank).min(rest.len()));
            values.extend_from_slice(part);
            let (flag, others) = others.split_first().unwrap_or((&1, others));
            rest = others;
            if *flag != 0 {
                failed = failed.or(Some(ShardError::PeerFailed));
            }
        }
        failed.map_or(Ok(()), Err)?;
        let all = FloatVec::from_le_bytes(ty, &values).unwrap_or_default();
        out.copy_from(all.as_slice(), Buffer::Output)?;
        Ok(reduced)
    }

    /// As [`forward_into`](Self::forward_into), for rows that every rank has whole, (rows, in).
    ///
    /// # Errors
    /// As [`forward_into`](Self::forward_into).
    pub fn forward_whole_into(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: FloatSliceMut<'_>,
    ) -> Result<Reduced, ShardError> {
        let mut own = FloatVec::zeros(x.float_type(), 0);
        // What does not fit is refused where all ranks hear of it.
        if Some(x.len()) == rows.checked_mul(self.in_features) {
            own.reserve(rows * self.columns.len());
            for i in 0..rows {
                let at = i * self.in_features;
                append(&mut own, part(x, at + self.columns.start..at + self.columns.end));
            }
            return self.run(own.as_slice(), rows, out, Operation::All)?.ended();
        }
        self.refuse(rows, Operation::All, out.as_ref().float_type())?;
        let shape = vec![rows, self.in_features];
        let expected = rows.saturating_mul(self.in_features);
        Err(Error::InputLen { shape, expected, got: x.len() }.into())
    }

    /// Tells the others that this rank cannot take part in a call.
    fn refuse(&self, rows: usize, operation: Operation, ty: FloatType) -> Result<(), ShardError> {
        let mut opening = self.call(rows, operation, ty).opening(true);
        Ok(self.comm.max(&mut opening)?)
    }

    fn call(&self, rows: usize, operation: Operation, ty: FloatType) -> Call {
        Call { rows, operation, ty, wide: self.wide }
    }

    /// A call, to its end: an error of this rank's own is among what it came to.
    fn run(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        out: FloatSliceMut<'_>,
        operation: Operation,
    ) -> Result<Ran, ShardError> {
        let kept = match operation {
            Operation::All => 0..rows,
            _ => self.own_rows(rows),
        };
        let nothing = self.out_features == 0;
        let checked = self.check(x, rows, kept.len(), &out);
        let early = checked.and_then(|()| self.early(x, rows, nothing));
        let call = self.call(rows, operation, out.as_ref().float_type());
        let mut opening = call.opening(early.is_err());
        if let Ok(Early::Rows(a)) = &early {
            let reaches = a.reaches(0..rows.min(FIRST_ROWS));
            write(&reaches, &mut opening[Call::BYTES..]);
        }
        self.comm.max(&mut opening)?;
        let early = early?;
        call.check(&opening)?;
        let mut ran = Ran::default();
        ran.reduced.agreed = opening.len();
        // However many rows of them.
        if nothing {
            return Ok(ran);
        }
        let (a, row_scales, reaches) =
            self.agreed(x, rows, early, &opening[Call::BYTES..], &mut ran)?;
        let row_scales = self.scaled().then_some(&row_scales[..]);
        let epilogue =
            Epilogue::new(self.alpha).with_row_scales(row_scales).with_bias(self.bias.as_deref());
        let finish = Finish { epilogue, n: self.out_features, out };
        self.reduce(&a, &reaches, kept, operation, finish, &mut ran)?;
        Ok(ran)
    }

    /// What can be done before the ranks agree, so that an error of it is known to all at once.
    fn early(&self, x: FloatSlice<'_>, rows: usize, nothing: bool) -> Result<Early, ShardError> {
        Ok(match (nothing, self.scaled()) {
            (true, _) => Early::Amax(Vec::new()),
            (false, true) => Early::Amax(match self.layer() {
                Some(layer) => layer.row_amax(x, rows)?,
                None => vec![0.0; rows],
            }),
            // Rows without scales of their own are quantized at once, and their reaches go along.
            (false, false) => Early::Rows(self.quantized(x, rows, None)?.0),
        })
    }

    /// Whether rows have scales of their own, which come from all of their columns.
    fn scaled(&self) -> bool {
        self.activations == ActivationEncoding::OwnRowScales
    }

    /// This rank's rows, quantized, their scales, and their reaches over all ranks, of which
    /// `first` has those of the first.
    fn agreed(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        early: Early,
        first: &[u8],
        ran: &mut Ran,
    ) -> Result<(Rows, Vec<f32>, Vec<Reach>), ShardError> {
        let (a, row_scales, head) = match early {
            Early::Rows(a) => (a, Vec::new(), rows.min(FIRST_ROWS)),
            Early::Amax(own) => {
                let amax = self.whole_amax(&own, rows)?;
                ran.reduced.agreed += 4 * rows * self.comm.size();
                let quantized = self.quantized(x, rows, Some(&amax));
                // With nothing to add this rank goes on.
                let (a, row_scales) =
                    ran.kept(quantized).unwrap_or_else(|| (Rows::None, vec![0.0; rows]));
                (a, row_scales, 0)
            }
        };
        let mut reaches = a.reaches(0..rows);
        read(first, &mut reaches[..head]);
        if rows > head {
            merge(&self.comm, &mut reaches[head..])?;
            ran.reduced.agreed += (rows - head) * Reach::BYTES;
        }
        Ok((a, row_scales, reaches))
    }

    /// The blocks, each reduced while the next is computed. A rank that fails goes on with zeros,
    /// and all hear of it in the end.
    fn reduce(
        &self,
        a: &Rows,
        reaches: &[Reach],
        rows: Range<usize>,
        operation: Operation,
        mut finish: Finish<'_>,
        ran: &mut Ran,
    ) -> Result<(), ShardError> {
        let (ranks, all) = (self.comm.size(), operation == Operation::All);
        let mut sent: Option<(Vec<Planned>, C::Sum)> = None;
        let (mut plans, mut words) = (Vec::new(), Vec::new());
        for (at, block) in self.blocks.iter().enumerate() {
            let plan = BlockPlan::new(self.bound, reaches, &block.reaches);
            self.add(&plan, block, a, &mut words, ran);
            if let Some((_, sum)) = &mut sent {
                self.comm.advance(sum)?;
            }
            ran.reduced.narrow += plan.rows_of(Form::Narrow);
            ran.reduced.wide += plan.rows_of(Form::Wide);
            let of_rank = |rank: usize| even(plan.rows(), 1, rank, ranks);
            let each: Vec<usize> = (0..ranks).map(|rank| plan.words(of_rank(rank))).collect();
            plans.push(Planned { plan, first: block.outputs.start });
            let last = at + 1 == self.blocks.len();
            // What is scattered goes by blocks: a rank's rows of one are together.
            if all && words.len() < LEAST_WORDS && !last {
                continue;
            }
            ran.reduced.words += words.len();
            if all && last {
                words.push(ran.failed.is_some().into());
                ran.reduced.agreed += 8;
            }
            let kept = if all { Kept::All } else { Kept::Own(&each) };
            let mut sum = self.comm.start_sum(std::mem::take(&mut words), kept)?;
            if let Some((plans, before)) = sent.take() {
                let words = self.comm.finish_sum(before)?;
                let advance = || self.comm.advance(&mut sum);
                ran.kept(finish.blocks(&plans, rows.clone(), &words, advance));
            }
            sent = Some((std::mem::take(&mut plans), sum));
        }
        let mut others = 0;
        if let Some((plans, sum)) = sent {
            let mut words = self.comm.finish_sum(sum)?;
            if all {
                others = words.pop().unwrap_or(1);
            }
            ran.kept(finish.blocks(&plans, rows, &words, || Ok(())));
        }
        if operation == Operation::Own {
            let mut flag = [ran.failed.is_some().into()];
            self.comm.max(&mut flag)?;
            others = flag[0].into();
            ran.reduced.agreed += 1;
        }
        if others != 0 && ran.failed.is_none() {
            ran.failed = Some(ShardError::PeerFailed);
        }
        Ok(())
    }

    /// Appends this rank's words of a block: zeros if it has nothing to add, or fails.
    fn add(&self, plan: &BlockPlan, block: &Block, a: &Rows, words: &mut Vec<i64>, ran: &mut Ran) {
        let start = words.len();
        if let (Some(layer), Rows::Some(a)) = (&block.layer, a) {
            let added = plan.partial(a.view(), words, |a, out| layer.partial_into(a, out));
            if ran.kept(added.map_err(ShardError::from)).is_some() {
                return;
            }
        }
        words.truncate(start);
        words.resize(start + plan.words(0..plan.rows()), 0);
    }

    fn layer(&self) -> Option<&QuantLinear> {
        self.blocks.iter().find_map(|block| block.layer.as_ref())
    }

    fn check(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        kept: usize,
        out: &FloatSliceMut<'_>,
    ) -> Result<(), ShardError> {
        fp4_core::check_environment()?;
        let own = self.columns.len();
        let overflow = |cols| CoreError::ShapeOverflow { rows, cols };
        let expected = rows.checked_mul(own).ok_or_else(|| overflow(own))?;
        if x.len() != expected {
            let shape = vec![rows, own];
            return Err(Error::InputLen { shape, expected, got: x.len() }.into());
        }
        let outputs = kept.checked_mul(self.out_features);
        let outputs = outputs.ok_or_else(|| overflow(self.out_features))?;
        Ok(out.as_ref().expect_len(Buffer::Output, outputs)?)
    }

    /// This rank's rows, quantized.
    fn quantized(
        &self,
        x: FloatSlice<'_>,
        rows: usize,
        amax: Option<&[f32]>,
    ) -> Result<(Rows, Vec<f32>), ShardError> {
        match self.layer() {
            Some(layer) => {
                let PackedRows { packed, row_scales } = layer.quantize_packed(x, rows, amax)?;
                Ok((Rows::Some(packed), row_scales))
            }
            None => {
                let scales = amax.into_iter().flatten().map(|&a| fp4_core::nvfp4_row_scale(a));
                Ok((Rows::None, scales.collect()))
            }
        }
    }

    /// The largest magnitude of each row over all ranks.
    fn whole_amax(&self, own: &[f32], rows: usize) -> Result<Vec<f32>, ShardError> {
        let bytes: Vec<u8> = own.iter().flat_map(|a| a.to_le_bytes()).collect();
        let all = self.comm.gather(&bytes, &vec![bytes.len(); self.comm.size()])?;
        let mut largest = vec![0.0; rows];
        for rank in all.chunks_exact((4 * rows).max(1)) {
            for (to, &bytes) in largest.iter_mut().zip(rank.as_chunks().0) {
                *to = larger_amax(*to, f32::from_le_bytes(bytes));
            }
        }
        Ok(largest)
    }

    /// Columns of each rank.
    pub fn lens(&self) -> &[usize] {
        &self.lens
    }
}

/// Rows of activations, of which a rank without columns has nothing.
enum Rows {
    Some(PackedMatrix),
    None,
}

impl Rows {
    fn reaches(&self, rows: Range<usize>) -> Vec<Reach> {
        match self {
            Rows::Some(a) => rows.map(|i| Reach::of_row(a.view(), i)).collect(),
            Rows::None => vec![Reach::EMPTY; rows.len()],
        }
    }
}

fn append(to: &mut FloatVec, from: FloatSlice<'_>) {
    match (to, from) {
        (FloatVec::F32(to), FloatSlice::F32(from)) => to.extend_from_slice(from),
        (FloatVec::F16(to), FloatSlice::F16(from)) => to.extend_from_slice(from),
        (FloatVec::Bf16(to), FloatSlice::Bf16(from)) => to.extend_from_slice(from),
        // Both are of one type.
        _ => {}
    }
}

fn write(reaches: &[Reach], to: &mut [u8]) {
    for (to, reach) in to.as_chunks_mut().0.iter_mut().zip(reaches) {
        *to = reach.to_bytes();
    }
}

fn read(from: &[u8], reaches: &mut [Reach]) {
    for (&from, reach) in from.as_chunks().0.iter().zip(reaches) {
        *reach = Reach::from_bytes(from);
    }
}

/// Merges reaches over all ranks.
fn merge(comm: &impl Communicator, reaches: &mut [Reach]) -> Result<(), ShardError> {
    let mut bytes = vec![0; reaches.len() * Reach::BYTES];
    write(reaches, &mut bytes);
    comm.max(&mut bytes)?;
    read(&bytes, reaches);
    Ok(())
}

/// A rank's part before the others have agreed.
struct Built {
    shard: RowShard,
    blocks: Vec<Block>,
    shape: PackedShape,
    alpha: f32,
}

impl Built {
    fn new(shard: RowShard, runtime: Option<&Runtime>, block: usize) -> Result<Self, ShardError> {
        let (weight, n) = (&shard.parts.weight, shard.parts.weight.shape().rows());
        let format = weight.shape().expect_format()?;
        if weight.shape().k() != shard.columns.len() {
            let (what, got) = (fp4_core::Dim::K, weight.shape().k());
            let expected = shard.columns.len();
            return Err(CoreError::ShapeMismatch { what, expected, got }.into());
        }
        let unit = unit(&shard.parts);
        if !shard.columns.start.is_multiple_of(unit) || !shard.columns.end.is_multiple_of(unit) {
            return Err(ShardError::Cut { got: shard.columns, unit });
        }
        if let Some(got) = shard.bias.as_ref().map(Vec::len).filter(|&len| len != n) {
            return Err(Error::BiasLen { out_features: n, got }.into());
        }
        let mut blocks = Vec::new();
        for first in (0..n).step_by(block) {
            let outputs = first..n.min(first + block);
            let rows = weight.view().rows_range(outputs.clone())?;
            let reaches = (0..outputs.len()).map(|j| Reach::of_row(rows, j)).collect();
            let layer = match shard.columns.is_empty() {
                true => None,
                false => {
                    let (codes, scales) = (rows.codes().to_vec(), rows.scales().to_vec());
                    let weight = PackedMatrix::new(rows.shape(), codes, scales)?;
                    let transform = shard.parts.transform.clone();
                    let parts = Parts { weight, transform, ..settings(&shard.parts) };
                    let mut layer = QuantLinear::from_parts(parts)?;
                    if let Some(runtime) = runtime {
                        layer.set_runtime(runtime);
                    }
                    layer.prepare()?;
                    Some(layer)
                }
            };
            blocks.push(Block { layer, outputs, reaches });
        }
        // Of a layer of no columns at all, which has the settings of the others.
        let alpha = QuantLinear::from_parts(settings(&shard.parts))?.alpha()?;
        let encoding = match shard.parts.activations {
            ActivationEncoding::MxInt8 => Encoding::MxInt8,
            _ => format.into(),
        };
        let shape = PackedShape::encoded(encoding, 0, 0)?;
        Ok(Built { shard, blocks, shape, alpha })
    }

    fn card(&self, block: usize) -> Card {
        let RowShard { parts, bias, columns, in_features, source } = &self.shard;
        let floats =
            |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|v| v.to_le_bytes()).collect() };
        let transform = (!columns.is_empty()).then(|| transform_card(parts));
        Card::new("row-parallel")
            .with("format", self.shape_name())
            .with("activations", parts.activations)
            .with("output features", parts.weight.shape().rows())
            .with("input features", in_features)
            .with("weight_global_scale", parts.weight_global_scale)
            .with_some("activation_global_scale", parts.activation_global_scale)
            .with_some("activation_scale_scale", parts.activation_scale_scale)
            .with_some("transform", transform)
            .with_some("the whole weight", source.as_ref())
            .with("bias", bias.as_ref().map_or("none".into(), |b| card::digest(&floats(b))))
            .with("block of outputs", block)
            .with_range(columns)
    }

    fn shape_name(&self) -> String {
        self.shard.parts.weight.shape().format().map_or("none".into(), |f| f.to_string())
    }
}

/// What ranks must have in common of their transforms.
pub(super) fn transform_card(parts: &Parts) -> String {
    match &parts.transform {
        None => "none".into(),
        Some(t) => match t.shape() {
            [_, size, _] => format!("{size} for each block, {:?}", t.values().float_type()),
            _ => card::digest(&t.values().to_le_bytes()),
        },
    }
}
