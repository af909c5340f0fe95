//! The streaming writer: copies dense tensors, and quantizes weights tile by tile.
//!
//! ```text
//! pass 1 (NVFP4 with an automatic global scale)
//!     for each tile: read, transform, amax = max(amax, |y|)
//!     gs by C4; 1, with a warning, where amax is not finite
//! pass 2
//!     for each tile: read, transform, quantize; write codes and scales at their offsets;
//!                    dequantize and compare with the (transformed) tile
//! ```
//!
//! The transform is applied once per tile and pass, and the quantizer gets its result: by
//! C5 that is what a fused transform and quantize gives, and the error needs the values anyway.
//!
//! Memory: a few tiles of `block_bytes` and one transform block, whatever the size of the tensors.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;

use fp4_core::{FloatVec, PackedMatrix, QuantSpec, QuantizeInput, Transform, with_floats};

use crate::atomic::{NewFile, NewFolder};
use crate::checkpoint::tiles::{Tile, tiles};
use crate::checkpoint::{Arrangement, Checkpoint, INDEX, Listing, byte_len};
use crate::error::{Error, ModelError};
use crate::layer::{DenseOptions, StoredTransform, state};
use crate::model::dense;
use crate::model::difference::Difference;
use crate::model::plan::{Plan, Weight};
use crate::run::routing::Backends;
use crate::transform::{amax, larger_amax, transformed};

/// What quantizes a checkpoint.
pub struct Engine<'a> {
    /// The dense checkpoint.
    pub input: &'a Checkpoint,
    /// How its weights are quantized.
    pub options: DenseOptions,
    /// Who may quantize, the first that can.
    pub backends: Backends,
    /// Bytes of dense values in memory at a time.
    pub block_bytes: usize,
}

/// What a run has come to.
pub enum Event<'e> {
    /// It works on this tensor or file now.
    Working(&'e str),
    /// So many bytes more are read.
    Bytes(u64),
    /// A weight is quantized, to the tensors of its file's arrangement.
    Done(&'e Weight, &'e Arrangement, Outcome),
}

/// Who is told of events.
pub type Observer<'o> = dyn FnMut(Event<'_>) + 'o;

/// What the user should know of a weight.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Warning {
    /// All its values are zero, so its global scale is 1 (C4).
    Zero,
    /// Its largest magnitude, this one, gives no global scale, so it is 1.
    NotFinite(f32),
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::Zero => f.write_str("all weights are zero; global scale 1"),
            Warning::NotFinite(amax) if amax.is_nan() => {
                f.write_str("largest magnitude is NaN; global scale 1")
            }
            Warning::NotFinite(_) => f.write_str("largest magnitude is infinite; global scale 1"),
        }
    }
}

/// A file to be written by position.
struct OutputFile<'a> {
    file: &'a File,
    path: &'a Path,
}

impl<'a> OutputFile<'a> {
    /// Writes to `file`, which errors call `path`, after setting its length.
    fn new(file: &'a File, path: &'a Path, len: u64) -> Result<Self, Error> {
        file.set_len(len).map_err(|source| writing(path, source))?;
        Ok(OutputFile { file, path })
    }

    fn write(&self, position: u64, bytes: &[u8]) -> Result<(), Error> {
        let mut file = self.file;
        let written = file.seek(SeekFrom::Start(position)).and_then(|_| file.write_all(bytes));
        written.map_err(|source| writing(self.path, source))
    }
}

fn writing(path: &Path, source: io::Error) -> Error {
    Error::Io { action: "writing", path: path.to_path_buf(), source }
}

/// What became of one weight.
#[derive(Debug, Clone, Default)]
pub struct Outcome {
    /// The weight's global scale.
    pub global_scale: f32,
    /// The error of the quantized weight.
    pub difference: Difference,
    /// Weights that are NaN or infinite.
    pub not_finite_weights: u64,
    /// Groups with a NaN scale.
    pub nan_groups: u64,
    /// Groups whose codes are all zero.
    pub zero_groups: u64,
    /// Groups in all.
    pub groups: u64,
    /// What the user should know.
    pub warning: Option<Warning>,
    /// The backend that quantized it; empty if there was nothing to do.
    pub quantizer: String,
}

impl Engine<'_> {
    /// One file to one file.
    ///
    /// # Errors
    /// I/O errors, a weight that cannot be quantized; the output is then as it was before.
    pub fn to_file(
        &self,
        plan: &Plan,
        output: &Path,
        force: bool,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        let new = NewFile::create(output)?;
        let sink = OutputFile::new(new.file(), output, plan.layouts[0].file_len())?;
        self.write(0, plan, &sink, on)?;
        new.commit(force)
    }

    /// A folder to a folder: shards under their names, the index rewritten, all else, as `listing`
    /// has it, copied.
    ///
    /// # Errors
    /// As [`to_file`](Self::to_file).
    pub fn to_folder(
        &self,
        plan: &Plan,
        listing: &Listing,
        output: &Path,
        force: bool,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        let new = NewFolder::create(output)?;
        let building = new.building();
        let failed = |name: &Path| {
            let path = output.join(name);
            move |source| writing(&path, source)
        };
        for (position, (name, _)) in self.input.files().iter().enumerate() {
            let shown = output.join(name);
            let file = File::create_new(building.join(name)).map_err(failed(name.as_ref()))?;
            let sink = OutputFile::new(&file, &shown, plan.layouts[position].file_len())?;
            self.write(position, plan, &sink, on)?;
        }
        if let Some(index) = self.input.index() {
            let text = index.rewritten(&plan.weight_map(self.input), plan.data_len());
            fs::write(building.join(INDEX), text).map_err(failed(INDEX.as_ref()))?;
        }
        for folder in &listing.folders {
            fs::create_dir(building.join(folder)).map_err(failed(folder))?;
        }
        for (file, len) in &listing.files {
            on(Event::Working(&file.to_string_lossy()));
            let from = self.input.path().join(file);
            fs::copy(&from, building.join(file)).map_err(|source| Error::Io {
                action: "copying",
                path: from,
                source,
            })?;
            on(Event::Bytes(*len));
        }
        new.commit(force)
    }

    /// Writes one file of the output.
    fn write(
        &self,
        file: usize,
        plan: &Plan,
        sink: &OutputFile<'_>,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        let layout = &plan.layouts[file];
        sink.write(0, layout.header())?;
        for weight in &plan.weights[plan.weights_of(file)] {
            on(Event::Working(&weight.name));
            let outcome = self.quantize(weight, layout, sink, on).map_err(|error| {
                Error::Weight { name: weight.name.clone(), error: Box::new(error) }
            })?;
            on(Event::Done(weight, layout, outcome));
        }
        for name in layout.tensors().keys() {
            if self.input.tensors().contains_key(name) {
                on(Event::Working(name));
                self.copy(name, layout, sink, on)?;
            }
        }
        Ok(())
    }

    /// Copies a tensor byte for byte.
    fn copy(
        &self,
        name: &str,
        layout: &Arrangement,
        sink: &OutputFile<'_>,
        on: &mut Observer<'_>,
    ) -> Result<(), Error> {
        let tensor = self.input.tensor(name)?;
        let (len, position) = (byte_len(&tensor.info), position(layout, name)?);
        let step = self.block_bytes.max(1);
        for offset in (0..len).step_by(step) {
            let bytes = self.input.read(tensor, offset..len.min(offset + step))?;
            sink.write(position + offset as u64, &bytes)?;
            on(Event::Bytes(bytes.len() as u64));
        }
        Ok(())
    }

    /// Quantizes a weight and writes its layer's state.
    fn quantize(
        &self,
        weight: &Weight,
        layout: &Arrangement,
        sink: &OutputFile<'_>,
        on: &mut Observer<'_>,
    ) -> Result<Outcome, Error> {
        let transform = self.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let mut outcome = Outcome::default();
        let spec = self.weight_spec(weight, transform.as_ref(), &mut outcome, on)?;
        outcome.global_scale = spec.global_scale();
        let position = |name| position(layout, &state::join(&weight.prefix, name));
        let (codes_at, scales_at) = (position(state::E2M1)?, position(state::SCALE_QUANT)?);
        let group = spec.group().get();
        for tile in self.tiles(weight) {
            let dense = dense::read(self.input, &weight.tensor, weight.float_type, &tile)?;
            outcome.not_finite_weights += not_finite(&dense);
            let y = self.transformed(dense, &tile, transform.as_ref())?;
            let packed = self.quantize_tile(&y, &tile, &spec, &mut outcome)?;
            sink.write(codes_at + (tile.start / 2) as u64, packed.codes())?;
            sink.write(scales_at + (tile.start / group) as u64, packed.scales())?;
            let back = dense::dequantized(packed.view(), spec.global_scale())?;
            with_floats!(FloatSlice, y.as_slice(), y => outcome.difference.add(y, &back));
            outcome.count_groups(&packed);
            on(Event::Bytes((tile.len() * weight.float_type.bytes()) as u64));
        }
        let activation = self.options.activation_spec()?;
        for (name, value) in [
            (state::WEIGHT_GLOBAL_SCALE, spec.global_scale()),
            (state::ACTIVATION_GLOBAL_SCALE, activation.global_scale()),
            (state::ACTIVATION_SCALE_SCALE, activation.scale_scale()),
        ] {
            sink.write(position(name)?, &value.to_le_bytes())?;
        }
        if let Some(t) = &self.options.transform {
            sink.write(position(state::TRANSFORM)?, &t.values().to_le_bytes())?;
        }
        Ok(outcome)
    }

    /// The settings of a weight's quantization; reads it once if its largest magnitude counts.
    fn weight_spec(
        &self,
        weight: &Weight,
        transform: Option<&Transform<'_>>,
        outcome: &mut Outcome,
        on: &mut Observer<'_>,
    ) -> Result<QuantSpec, Error> {
        if !self.options.needs_amax() {
            return self.options.weight_spec(0.0);
        }
        let mut largest = 0f32;
        for tile in self.tiles(weight) {
            let dense = dense::read(self.input, &weight.tensor, weight.float_type, &tile)?;
            let y = self.transformed(dense, &tile, transform)?;
            largest = larger_amax(largest, amax(y.as_slice()));
            on(Event::Bytes((tile.len() * weight.float_type.bytes()) as u64));
        }
        let options = match largest.is_finite() {
            true => self.options.clone(),
            false => DenseOptions { weight_global_scale: Some(1.0), ..self.options.clone() },
        };
        let spec = options.weight_spec(largest)?;
        check_product(spec.global_scale(), self.options.activation_spec()?.global_scale())?;
        let empty = weight.shape.rows() * weight.shape.k() == 0;
        outcome.warning = match largest {
            0.0 if !empty => Some(Warning::Zero),
            largest if !largest.is_finite() => Some(Warning::NotFinite(largest)),
            _ => None,
        };
        Ok(spec)
    }

    fn tiles(&self, weight: &Weight) -> impl Iterator<Item = Tile> + use<> {
        let (shape, size) = (weight.shape, weight.float_type.bytes());
        tiles(shape.rows(), shape.k(), size, self.block_bytes)
    }

    fn transformed(
        &self,
        dense: FloatVec,
        tile: &Tile,
        transform: Option<&Transform<'_>>,
    ) -> Result<FloatVec, Error> {
        match transform {
            None => Ok(dense),
            Some(t) => transformed(dense.as_slice(), tile.cols, &dense::columns(t, tile)?),
        }
    }

    /// Quantizes a tile by the first backend that can: the fastest, unless one was chosen.
    fn quantize_tile(
        &self,
        values: &FloatVec,
        tile: &Tile,
        spec: &QuantSpec,
        outcome: &mut Outcome,
    ) -> Result<PackedMatrix, Error> {
        let input = QuantizeInput::new(values.as_slice(), tile.rows, tile.cols, spec)?;
        let mut packed = PackedMatrix::zeros(input.shape());
        let query = input.query();
        let quantizers = || self.backends.list().iter().filter_map(|b| b.quantizer());
        let able = quantizers().find(|q| q.supports_quantize(&query).is_ok());
        let quantizer = able.ok_or_else(|| {
            let refusals = quantizers().filter_map(|q| {
                Some(format!("{}: {}", q.name(), q.supports_quantize(&query).err()?))
            });
            let refusals = refusals.collect::<Vec<_>>().join("; ");
            ModelError::NoQuantizer(refusals)
        })?;
        quantizer.quantize(&input, &mut packed.view_mut())?;
        if outcome.quantizer != quantizer.name() {
            outcome.quantizer = quantizer.name().to_string();
        }
        Ok(packed)
    }
}

/// Where a tensor of the plan goes.
fn position(layout: &Arrangement, name: &str) -> Result<u64, Error> {
    layout.position(name).ok_or_else(|| Error::MissingTensor { name: name.into() })
}

/// Checks that a layer with these global scales can run: it multiplies by their product in f32.
///
/// # Errors
/// A product that is 0 or infinite.
pub fn check_product(weight: f32, activation: f32) -> Result<(), ModelError> {
    let product = weight * activation;
    match product.is_finite() && product > 0.0 {
        true => Ok(()),
        false => Err(ModelError::ScaleProduct { weight, activation }),
    }
}

impl Outcome {
    fn count_groups(&mut self, packed: &PackedMatrix) {
        let shape = packed.shape();
        let nan = packed.scales().iter().filter(|&&s| shape.scale_type().is_nan(s)).count();
        self.nan_groups += nan as u64;
        self.zero_groups += zero_groups(packed.codes(), shape.group().get());
        self.groups += packed.scales().len() as u64;
    }
}

/// Number of groups whose codes are all zero, of either sign.
pub fn zero_groups(codes: &[u8], group: usize) -> u64 {
    let zero = |codes: &&[u8]| codes.iter().all(|byte| byte & 0x77 == 0);
    codes.chunks_exact(group / 2).filter(zero).count() as u64
}

fn not_finite(values: &FloatVec) -> u64 {
    with_floats!(FloatSlice, values.as_slice(), v => {
        v.iter().filter(|x| !fp4_core::Float::to_f32(**x).is_finite()).count() as u64
    })
}
