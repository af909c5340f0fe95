//! The work on one output tensor or weight: reading it band by band, writing it, judging its
//! values.

use fp4_core::{FloatVec, PackedMatrix, PackedShape, Swizzle};

use crate::checkpoint::gguf;
use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Checkpoint, byte_len};
use crate::error::{Error, ModelError};
use crate::layout::place::{swap_nibbles, to_blocks};
use crate::layout::value::{Usage, View};
use crate::layout::write::{Fill, NewTensor, Written};
use crate::layout::{Activations, Nibbles, ScaleOrder};
use crate::model::convert::gather::Weight;
use crate::model::convert::plan::Plan;
use crate::model::convert::rescale::Rescale;
use crate::model::convert::{Options, Outcome};
use crate::model::stream::{self, Job, Memory, Progress, Sink};

/// A weight and what it becomes.
#[derive(Debug)]
pub struct Planned<'a> {
    /// The weight.
    pub weight: Weight<'a>,
    /// The output file.
    pub file: usize,
    /// Its new scale bytes, where its format changes.
    pub rescale: Option<Rescale>,
    /// Its tensors.
    pub written: Written,
    /// What the source's config says of its activations, and what is meant by that.
    pub activations: (Activations, Activations),
}

/// What there is to do.
#[derive(Debug, Clone, Copy)]
pub enum What<'p> {
    /// A weight.
    Weight(&'p Planned<'p>),
    /// A tensor, byte for byte.
    Copy(&'p str, usize),
    /// A tensor in blocks of ggml's that are no FP4, in f32.
    Decode(&'p str, usize),
}

/// A piece of the work.
#[derive(Debug, Clone, Copy)]
pub struct Task<'p> {
    pub(super) input: &'p Checkpoint,
    pub(super) options: Options,
    pub(super) memory: Memory,
    /// What it is.
    pub what: What<'p>,
}

impl<'a> Plan<'a> {
    /// The work, file by file.
    pub(super) fn tasks<'p>(&'p self, input: &'p Checkpoint, memory: Memory) -> Vec<Task<'p>>
    where
        'a: 'p,
    {
        let (options, mut tasks) = (self.options, vec![]);
        let task = |what| Task { input, options, memory, what };
        for file in 0..self.files.len() {
            let weights = self.weights.iter().filter(|weight| weight.file == file);
            tasks.extend(weights.map(|weight| task(What::Weight(weight))));
            let copied = self.copied.iter().filter(|copied| copied.file == file);
            tasks.extend(copied.map(|copied| match copied.decoded {
                true => task(What::Decode(&copied.name, file)),
                false => task(What::Copy(&copied.name, file)),
            }));
        }
        tasks
    }
}

impl Task<'_> {
    /// The shape of the dense tensor.
    pub fn shape(&self) -> Vec<usize> {
        match self.what {
            What::Weight(Planned { weight, .. }) => {
                let out = weight.shape.rows() / weight.experts.unwrap_or(1).max(1);
                weight.experts.into_iter().chain([out, weight.shape.k()]).collect()
            }
            What::Copy(name, _) | What::Decode(name, _) => self
                .input
                .tensors()
                .get(name)
                .map(crate::checkpoint::Tensor::shape)
                .unwrap_or_default(),
        }
    }
}

impl Job for Task<'_> {
    type Outcome = Option<Outcome>;

    fn name(&self) -> &str {
        match self.what {
            What::Weight(planned) => &planned.weight.tensor,
            What::Copy(name, _) | What::Decode(name, _) => name,
        }
    }

    fn file(&self) -> usize {
        match self.what {
            What::Weight(planned) => planned.file,
            What::Copy(_, file) | What::Decode(_, file) => file,
        }
    }

    fn work(&self) -> u64 {
        match self.what {
            What::Weight(planned) => {
                let shape = planned.weight.shape;
                (shape.codes_len() + shape.scales_len()) as u64
            }
            What::Copy(name, _) | What::Decode(name, _) => {
                let tensor = self.input.tensors().get(name);
                tensor.map_or(0, |tensor| byte_len(&tensor.info) as u64)
            }
        }
    }

    fn memory(&self) -> u64 {
        match self.what {
            // A band as it is read, in the contract's order, and as it is written.
            What::Weight(planned) => {
                let shape = planned.weight.shape;
                let row = (shape.row_bytes() + shape.row_groups()) as u64;
                row.saturating_mul(3 * band_rows(shape, self.memory) as u64)
            }
            What::Copy(..) => self.memory.of_tiles(self.work()),
            What::Decode(..) => 4 * self.memory.of_tiles(self.work()),
        }
    }

    fn run(&self, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<Option<Outcome>, Error> {
        match self.what {
            What::Weight(planned) => self.weight(planned, sink, progress).map(Some),
            What::Copy(name, _) => {
                stream::copy(self.input, name, self.memory, sink, progress)?;
                Ok(None)
            }
            What::Decode(name, _) => self.decode(name, sink, progress).map(|()| None),
        }
    }
}

/// Rows that are read at a time: whole bands of swizzled scales.
fn band_rows(shape: PackedShape, memory: Memory) -> usize {
    let row = shape.row_bytes() + shape.row_groups();
    let rows = memory.tile_bytes() / row.max(1);
    (rows / 128).max(1) * 128
}

impl Task<'_> {
    fn weight(
        &self,
        planned: &Planned<'_>,
        sink: &Sink<'_>,
        progress: &Progress<'_>,
    ) -> Result<Outcome, Error> {
        let Planned { weight, rescale, written, .. } = planned;
        let k = weight.shape.k();
        let (mut outcome, mut target_row) = (Outcome::default(), 0);
        for (part, source) in weight.sources.iter().enumerate() {
            let mut usages: Vec<(usize, Usage)> = vec![];
            for start in source.rows.clone().step_by(band_rows(weight.shape, self.memory)) {
                let rows = band_rows(weight.shape, self.memory).min(source.rows.end - start);
                if k == 0 {
                    continue;
                }
                let tile = Tile { row: start, rows, col: 0, cols: k, start: start * k };
                let packed = source.layer.packed(self.input, &tile)?;
                let (shape, scales) = match rescale {
                    Some(rescale) => rescale.scales(&packed)?,
                    None => (packed.shape(), packed.scales().to_vec()),
                };
                for tensor in &written.tensors {
                    self.put(tensor, &packed, (shape, &scales), target_row, sink)?;
                }
                count(&mut usages, planned, part, &packed, target_row);
                target_row += rows;
                progress.bytes((packed.codes().len() + packed.scales().len()) as u64);
            }
            for (expert, usage) in &usages {
                outcome.add(self.judge(planned, part, *expert, usage)?);
            }
        }
        for tensor in &written.tensors {
            self.put_rest(tensor, sink)?;
        }
        Ok(outcome)
    }

    /// Writes the part of a tensor that some rows decide.
    fn put(
        &self,
        tensor: &NewTensor,
        packed: &PackedMatrix,
        (shape, scales): (PackedShape, &[u8]),
        row: usize,
        sink: &Sink<'_>,
    ) -> Result<(), Error> {
        let at = sink.position(&tensor.name)?;
        match tensor.fill {
            Fill::Codes(nibbles) => {
                let at = at + (row * shape.row_bytes()) as u64;
                if nibbles == Nibbles::LowEven {
                    return sink.write(at, packed.codes());
                }
                let mut codes = packed.codes().to_vec();
                swap_nibbles(&mut codes);
                sink.write(at, &codes)
            }
            Fill::Scales(ScaleOrder::Rows) => {
                sink.write(at + (row * shape.row_groups()) as u64, scales)
            }
            Fill::Scales(ScaleOrder::Swizzled) => {
                let swizzle = Swizzle::new(shape.rows(), shape.row_groups())?;
                let mut swizzled = vec![0; swizzle.len()];
                swizzle.swizzle(scales, &mut swizzled)?;
                sink.write(at + (row * swizzle.padded_cols()) as u64, &swizzled)
            }
            Fill::Blocks(_) => {
                let blocks = to_blocks(shape.scale_type(), packed.codes(), scales);
                let per_row = blocks.len() / shape.rows().max(1);
                sink.write(at + (row * per_row) as u64, &blocks)
            }
            Fill::Bytes(_) | Fill::Tensor(_) => Ok(()),
        }
    }

    /// Writes a tensor that no row decides.
    fn put_rest(&self, tensor: &NewTensor, sink: &Sink<'_>) -> Result<(), Error> {
        let at = sink.position(&tensor.name)?;
        match &tensor.fill {
            Fill::Bytes(bytes) => sink.write(at, bytes),
            Fill::Tensor(name) => {
                let from = self.input.tensor(name)?;
                let (len, step) = (byte_len(&from.info), self.memory.tile_bytes().max(1 << 16));
                for offset in (0..len).step_by(step) {
                    let bytes = self.input.read(from, offset..len.min(offset + step))?;
                    sink.write(at + offset as u64, &bytes)?;
                }
                Ok(())
            }
            Fill::Codes(_) | Fill::Scales(_) | Fill::Blocks(_) => Ok(()),
        }
    }

    /// Compares what the elements of an expert are worth on both sides.
    fn judge(
        &self,
        planned: &Planned<'_>,
        part: usize,
        expert: usize,
        usage: &Usage,
    ) -> Result<Outcome, Error> {
        let Planned { weight, rescale, written, .. } = planned;
        let source = &weight.sources[part];
        let decoder = source.layer.decoder();
        let global = written.globals.get(expert).or(written.globals.first());
        let mut table = written.arithmetic.table(global.copied().unwrap_or(1.0));
        if let Some(rescale) = rescale {
            let of = |byte: usize| usize::from(rescale.map[byte]) * 16;
            table = (0..4096).map(|i| table[of(i / 16) + i % 16]).collect();
        }
        let out = weight.shape.rows() / weight.experts.unwrap_or(1).max(1);
        let row = source.rows.start + (expert * out).saturating_sub(offset(weight, part));
        let theirs = View { table: decoder.table(row), zero: source.layer.arithmetic.zero };
        let ours = View { table: &table, zero: written.arithmetic.zero };
        let (deviation, changed) = usage.compare(theirs, ours);
        if let (Some(first), false) = (changed.first(), self.options.changed) {
            let (k, element) = (weight.shape.k() as u64, first.element);
            return Err(ModelError::Changed {
                tensor: weight.tensor.clone(),
                row: element / k,
                col: element % k,
                code: first.code,
                byte: first.byte,
                values: first.values,
                elements: changed.iter().map(|changed| changed.count).sum(),
                target: self.options.target.name(),
            }
            .into());
        }
        let total: u64 = changed.iter().map(|changed| changed.count).sum();
        if self.options.exact && deviation.values_differ > 0 {
            return Err(ModelError::Inexact {
                tensor: weight.tensor.clone(),
                differ: deviation.values_differ,
                values: deviation.values,
                ulps: deviation.ulps,
                target: self.options.target.name(),
            }
            .into());
        }
        Ok(Outcome {
            values: deviation.values,
            values_differ: deviation.values_differ - total,
            ulps: deviation.ulps,
            zero_signs: deviation.zero_signs,
            changed: total,
        })
    }

    /// Writes a tensor in blocks of ggml's in f32.
    fn decode(&self, name: &str, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<(), Error> {
        let tensor = self.input.tensor(name)?;
        let Some(ty) = tensor.ggml else {
            return Err(Error::MissingTensor { name: name.into() });
        };
        let (len, block) = (byte_len(&tensor.info), ty.block_bytes());
        let step = (self.memory.tile_bytes() / block).max(1) * block;
        let at = sink.position(name)?;
        for offset in (0..len).step_by(step) {
            let bytes = self.input.read(tensor, offset..len.min(offset + step))?;
            let mut values = vec![0f32; bytes.len() / block * ty.block_len()];
            gguf::dequantize(ty, &bytes, &mut values)
                .map_err(|e| Error::checkpoint(self.input.path(), e.into()))?;
            let start = offset / block * ty.block_len() * 4;
            sink.write(at + start as u64, &FloatVec::F32(values).to_le_bytes())?;
            progress.bytes(bytes.len() as u64);
        }
        Ok(())
    }
}

/// Rows of the weight before a part of it.
fn offset(weight: &Weight<'_>, part: usize) -> usize {
    weight.sources[..part].iter().map(|source| source.rows.len()).sum()
}

/// Counts the elements of some rows, expert by expert.
fn count(
    usages: &mut Vec<(usize, Usage)>,
    planned: &Planned<'_>,
    part: usize,
    packed: &PackedMatrix,
    target_row: usize,
) {
    let weight = &planned.weight;
    let shape = packed.shape();
    let out = (weight.shape.rows() / weight.experts.unwrap_or(1).max(1)).max(1);
    let (bytes, groups) = (shape.row_bytes(), shape.row_groups());
    let several = planned.written.globals.len() > 1 || weight.sources[part].layer.globals.len() > 1;
    let mut row = 0;
    while row < shape.rows() {
        let at = target_row + row;
        let expert = if several { at / out } else { 0 };
        let rows = if several { (out - at % out).min(shape.rows() - row) } else { shape.rows() };
        let place = usages.iter().position(|(of, _)| *of == expert).unwrap_or_else(|| {
            usages.push((expert, Usage::default()));
            usages.len() - 1
        });
        usages[place].1.add(
            &packed.codes()[row * bytes..(row + rows) * bytes],
            &packed.scales()[row * groups..(row + rows) * groups],
            shape.group().get(),
            (at * shape.k()) as u64,
        );
        row += rows;
    }
}

impl Outcome {
    /// Adds what became of another part.
    pub fn add(&mut self, other: Outcome) {
        self.values += other.values;
        self.values_differ += other.values_differ;
        self.ulps = self.ulps.max(other.ulps);
        self.zero_signs += other.zero_signs;
        self.changed += other.changed;
    }
}
