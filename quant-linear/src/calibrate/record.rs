//! A calibration on disk: a folder of safetensors files, one for each part of the model, that is
//! written part by part and whole or not at all.
//!
//! | tensor | type | shape | |
//! |---|---|---|---|
//! | `LAYER.moments` | F32 | (k (k + 1) / 2) | lower triangle of the second moments ([`Gram`]) |
//! | `LAYER.rows` | F32 | (rows kept, k) | sample rows, evenly spread over all |
//! | `LAYER.extremes` | F32 | (16 or all rows, k) | the rows with the largest magnitudes |
//! | `LAYER.values`, `LAYER.groups` | U64 | (2051) | counts of a [`Histogram`] |
//! | `LAYER.amax` | F32 | () | the largest magnitude |
//!
//! LAYER is the first of the layers that take the same input; each file's header names them all,
//! and how many rows there were (`exact_fp4.calibration`, JSON). Moments are summed in f64 and
//! stored in f32: what that loses is far below any damping.
//!
//! ```text
//! [`Recorder::begin`]   a folder beside its place; with resume, the one that was begun before
//! [`Observed`]          rows of one input come in
//! [`Recorder::write`]   the inputs of one part, as one file
//! [`Recorder::finish`]  the index, and the folder goes to its place
//! [`Calibration::open`] reads headers alone; each input when it is asked for
//! ```

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::gram::{Gram, Moments};
use super::statistics::{Histogram, Statistics};
use crate::atomic::{Kind, New};
use crate::checkpoint::{Arrangement, Checkpoint, byte_len};
use crate::error::{CalibrateError, Error};

/// What a header says of its inputs.
const KEY: &str = "exact_fp4.calibration";
/// The name of a part while it is written.
const UNFINISHED: &str = "unfinished";
/// The version of what is written.
const VERSION: u32 = 1;
/// Rows of the largest magnitudes that are kept. In language models a few tokens of thousands, the
/// first ones above all, have inputs a hundred times larger than all others: evenly spread rows
/// miss them, and a global scale that saturates on them breaks the model.
const EXTREMES: usize = 16;

/// One input in a header.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Input {
    /// The layers that take it, by their names without `.weight`.
    pub layers: Vec<String>,
    /// Values of a row.
    pub k: usize,
    /// Rows that were seen.
    pub rows: u64,
    /// Rows that are kept, evenly spread.
    pub kept: usize,
    /// Rows that are kept for their magnitudes.
    pub extremes: usize,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    /// SHA-256 of the tensors' bytes.
    digest: String,
    inputs: Vec<Input>,
}

/// One input while its rows come in.
#[derive(Debug)]
pub struct Observed {
    layers: Vec<String>,
    moments: Moments,
    statistics: Statistics,
    kept: Vec<f32>,
    /// Rows of the largest magnitudes, and these, the largest first.
    extremes: Vec<(f32, Vec<f32>)>,
    /// Rows that will come, and how many of them are kept.
    expected: (u64, usize),
}

impl Observed {
    /// The input of some layers, `k` wide, of which `rows` rows will come and at most `keep` are
    /// kept.
    pub fn new(layers: &[&str], k: usize, rows: u64, keep: usize) -> Self {
        Observed {
            layers: layers.iter().map(|&layer| layer.to_string()).collect(),
            moments: Moments::new(k),
            statistics: Statistics::new(k),
            kept: Vec::new(),
            extremes: Vec::new(),
            expected: (rows, keep),
        }
    }

    /// The layers that take it.
    pub fn layers(&self) -> &[String] {
        &self.layers
    }

    /// Adds rows, row-major.
    ///
    /// # Errors
    /// [`CalibrateError::Ragged`] or [`CalibrateError::NotFinite`], of the first of the layers.
    pub fn add(&mut self, rows: &[f32]) -> Result<(), Error> {
        let k = self.moments.k();
        let first = self.moments.samples();
        let added = self.moments.add(rows).and_then(|()| self.statistics.add(rows));
        added.map_err(|error| Error::Layer {
            name: self.layers.first().cloned().unwrap_or_default(),
            error: Box::new(error),
        })?;
        let (all, keep) = self.expected;
        // Row r is kept where r * keep / all passes a whole number.
        let passed = |r: u64| u128::from(r) * keep as u128 / u128::from(all.max(1));
        for (r, row) in (first..).zip(rows.chunks_exact(k.max(1))) {
            if keep as u64 >= all || passed(r + 1) > passed(r) {
                self.kept.extend_from_slice(row);
            }
            let largest = row.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            // Of equal ones the first stays before.
            let at = self.extremes.partition_point(|(other, _)| *other >= largest);
            if at < EXTREMES {
                self.extremes.insert(at, (largest, row.to_vec()));
                self.extremes.truncate(EXTREMES);
            }
        }
        Ok(())
    }
}

/// Writes a calibration.
#[derive(Debug)]
pub struct Recorder {
    new: New,
    parts: usize,
    replace: bool,
}

fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Error + '_ {
    move |source| Error::Io { action: "writing", path: path.to_path_buf(), source }
}

impl Recorder {
    /// Begins a calibration of so many parts at `path`. What decides its bytes is in `settings`:
    /// `resume` goes on with one that was begun with the same.
    ///
    /// # Errors
    /// Those of [`New::begin`]; [`CalibrateError::OtherRun`].
    pub fn begin(
        path: &Path,
        parts: usize,
        settings: &[(String, String)],
        resume: bool,
        replace: bool,
    ) -> Result<Self, Error> {
        if !resume {
            return Ok(Recorder { new: New::begin(Kind::Folder, path)?, parts, replace });
        }
        let new = New::resume(Kind::Folder, path)?;
        let journal = new.journal();
        let text = serde_json::to_string_pretty(settings).unwrap_or_default();
        match fs::read_to_string(&journal) {
            Ok(begun) if begun == text => {}
            Ok(begun) if serde_json::from_str::<Vec<(String, String)>>(&begun).is_ok() => {
                let begun: Vec<(String, String)> = serde_json::from_str(&begun).unwrap_or_default();
                let differs = settings.iter().find(|setting| !begun.contains(setting));
                let setting = differs.map_or("parts of it", |(name, _)| name).to_string();
                return Err(CalibrateError::OtherRun { setting }.into());
            }
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(io(&journal)(e)),
            // None, or one that was killed while it was written.
            _ => {
                new.clear()?;
                fs::write(&journal, text.as_bytes()).map_err(io(&journal))?;
            }
        }
        Ok(Recorder { new, parts, replace })
    }

    fn name(&self, part: usize) -> String {
        format!("model-{:05}-of-{:05}.safetensors", part + 1, self.parts)
    }

    fn place(&self, part: usize) -> PathBuf {
        self.new.building().join(self.name(part))
    }

    /// True if a run that this one goes on with has written the part.
    pub fn has(&self, part: usize) -> bool {
        self.place(part).exists()
    }

    /// Writes a part.
    ///
    /// # Errors
    /// The system's; [`CalibrateError::NoSamples`] of an input that no rows came for.
    pub fn write(&self, part: usize, inputs: Vec<Observed>) -> Result<(), Error> {
        let (mut header, mut planned, mut data) = (Vec::new(), Vec::new(), BTreeMap::new());
        let finished: Vec<_> = inputs.into_par_iter().map(finish).collect::<Result<_, Error>>()?;
        for (input, tensors) in finished {
            for (name, dtype, shape, bytes) in tensors {
                planned.push((name.clone(), dtype, shape));
                data.insert(name, bytes);
            }
            header.push(input);
        }
        let mut hasher = Sha256::new();
        data.values().for_each(|bytes: &Vec<u8>| hasher.update(bytes));
        let digest = hex(&hasher.finalize());
        let header = Header { version: VERSION, digest, inputs: header };
        let text = serde_json::to_string(&header).unwrap_or_default();
        let metadata = [(KEY.to_string(), text)].into();
        let path = self.place(part);
        let arrangement = Arrangement::new(planned, &metadata)
            .map_err(|refusal| Error::checkpoint(&path, refusal))?;
        let mut order: Vec<_> = arrangement.tensors().iter().collect();
        order.sort_by_key(|(_, info)| info.data_offsets.0);
        // Under its name it is whole: a run that goes on takes it as it is.
        let new = self.new.building().join(UNFINISHED);
        let write = || {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&new)?);
            file.write_all(arrangement.header())?;
            order.iter().try_for_each(|(name, _)| file.write_all(&data[*name]))?;
            file.into_inner()?.sync_all()?;
            fs::rename(&new, &path)
        };
        write().map_err(io(&path))
    }

    /// Writes the index, and puts the folder in its place.
    ///
    /// # Errors
    /// The system's; [`Error::Occupied`] where something is and is not to be replaced.
    pub fn finish(self) -> Result<(), Error> {
        let (mut map, mut total) = (BTreeMap::new(), 0u64);
        for part in 0..self.parts {
            let (name, path) = (self.name(part), self.place(part));
            let file = Checkpoint::open(&path)?;
            for (tensor, info) in file.tensors() {
                total += byte_len(&info.info) as u64;
                map.insert(tensor.clone(), name.clone());
            }
        }
        fs::remove_file(self.new.building().join(UNFINISHED)).or_else(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(io(self.new.building())(e)),
        })?;
        let index = serde_json::json!({ "metadata": { "total_size": total }, "weight_map": map });
        let path = self.new.building().join("model.safetensors.index.json");
        let text = serde_json::to_string_pretty(&index).unwrap_or_default() + "\n";
        fs::write(&path, text).map_err(io(&path))?;
        self.new.commit(self.replace)
    }
}

type Bytes = (String, Dtype, Vec<usize>, Vec<u8>);

/// The tensors of an input.
fn finish(observed: Observed) -> Result<(Input, Vec<Bytes>), Error> {
    let Observed { layers, moments, statistics, kept, extremes, .. } = observed;
    let first = layers.first().cloned().unwrap_or_default();
    let k = moments.k();
    if moments.samples() == 0 {
        let error = Box::new(CalibrateError::NoSamples.into());
        return Err(Error::Layer { name: first, error });
    }
    let gram = moments.finish();
    let name = |what: &str| format!("{first}.{what}");
    let f32s = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let u64s = |counts: Vec<u64>| counts.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let lower: Vec<f32> = gram.lower().into_iter().map(|v| v as f32).collect();
    let rows = kept.len().checked_div(k).unwrap_or(0);
    let largest: Vec<f32> = extremes.iter().flat_map(|(_, row)| row).copied().collect();
    let (values, groups) = (statistics.values().counts(), statistics.groups().counts());
    let tensors = vec![
        (name("moments"), Dtype::F32, vec![lower.len()], f32s(&lower)),
        (name("rows"), Dtype::F32, vec![rows, k], f32s(&kept)),
        (name("extremes"), Dtype::F32, vec![extremes.len(), k], f32s(&largest)),
        (name("values"), Dtype::U64, vec![values.len()], u64s(values)),
        (name("groups"), Dtype::U64, vec![groups.len()], u64s(groups)),
        (name("amax"), Dtype::F32, vec![], statistics.amax().to_le_bytes().to_vec()),
    ];
    let (kept, extremes) = (rows, extremes.len());
    Ok((Input { layers, k, rows: gram.samples(), kept, extremes }, tensors))
}

/// A calibration that is read.
#[derive(Debug)]
pub struct Calibration {
    checkpoint: Checkpoint,
    inputs: Vec<Input>,
    /// Layers, and the number of their input.
    layers: BTreeMap<String, usize>,
    digests: Vec<String>,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Calibration {
    /// Opens a folder that a [`Recorder`] wrote, or one of its files.
    ///
    /// # Errors
    /// Those of [`Checkpoint::open`]; [`CalibrateError::NotCalibration`].
    pub fn open(path: &Path) -> Result<Self, Error> {
        let checkpoint = Checkpoint::open(path)?;
        let not = |why: String| {
            let path = path.to_path_buf();
            Error::from(CalibrateError::NotCalibration { path, why })
        };
        let (mut inputs, mut layers, mut digests) = (Vec::new(), BTreeMap::new(), Vec::new());
        for (name, file) in checkpoint.files() {
            let text = file.metadata().get(KEY);
            let text = text.ok_or_else(|| not(format!("the header of {name} has no {KEY}")))?;
            let header: Header = serde_json::from_str(text)
                .map_err(|e| not(format!("{KEY} in the header of {name}: {e}")))?;
            if header.version != VERSION {
                let got = header.version;
                return Err(not(format!(
                    "it is of version {got}, and this program reads {VERSION}"
                )));
            }
            digests.push(header.digest);
            for input in header.inputs {
                for layer in &input.layers {
                    if layers.insert(layer.clone(), inputs.len()).is_some() {
                        return Err(not(format!("two inputs of layer {layer}")));
                    }
                }
                inputs.push(input);
            }
        }
        Ok(Calibration { checkpoint, inputs, layers, digests })
    }

    /// What tells two calibrations apart: a digest of all that is in them.
    pub fn fingerprint(&self) -> String {
        self.digests.join(" ")
    }

    /// All inputs.
    pub fn inputs(&self) -> &[Input] {
        &self.inputs
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The input of a layer.
    ///
    /// # Errors
    /// [`CalibrateError::NoInput`].
    pub fn input(&self, layer: &str) -> Result<&Input, Error> {
        let found = self.layers.get(layer).map(|&at| &self.inputs[at]);
        found.ok_or_else(|| {
            let examples = self.layers.keys().take(3).cloned().collect::<Vec<_>>().join(", ");
            CalibrateError::NoInput { layers: self.layers.len(), examples }.into()
        })
    }

    fn bytes(
        &self,
        input: &Input,
        what: &str,
        dtype: Dtype,
        shape: &[usize],
    ) -> Result<Vec<u8>, Error> {
        let name = format!("{}.{what}", input.layers.first().map_or("", String::as_str));
        let tensor = self.checkpoint.tensor(&name)?;
        if tensor.info.dtype != dtype || tensor.info.shape != shape {
            let (path, got) = (self.path().to_path_buf(), tensor.type_name());
            let why = format!("{name} is {got} {:?}, expected {dtype} {shape:?}", tensor.shape());
            return Err(CalibrateError::NotCalibration { path, why }.into());
        }
        self.checkpoint.read(tensor, 0..byte_len(&tensor.info))
    }

    fn f32s(&self, input: &Input, what: &str, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let bytes = self.bytes(input, what, Dtype::F32, shape)?;
        Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
    }

    /// The second moments of an input.
    ///
    /// # Errors
    /// Those of reading; tensors of other types or shapes; what [`Gram::from_parts`] refuses.
    pub fn gram(&self, input: &Input) -> Result<Gram, Error> {
        let k = input.k;
        let values = k.checked_add(1).and_then(|next| k.checked_mul(next)).map(|n| n / 2);
        let lower = self.f32s(input, "moments", &[values.unwrap_or(usize::MAX)])?;
        let lower: Vec<f64> = lower.into_iter().map(f64::from).collect();
        Gram::from_parts(k, input.rows, &lower)
    }

    /// The sample rows of an input, row-major.
    ///
    /// # Errors
    /// Those of reading; a tensor of another type or shape.
    pub fn rows(&self, input: &Input) -> Result<Vec<f32>, Error> {
        self.f32s(input, "rows", &[input.kept, input.k])
    }

    /// The rows of an input with the largest magnitudes, row-major.
    ///
    /// # Errors
    /// Those of reading; a tensor of another type or shape.
    pub fn extremes(&self, input: &Input) -> Result<Vec<f32>, Error> {
        self.f32s(input, "extremes", &[input.extremes, input.k])
    }

    /// What is known of an input's values.
    ///
    /// # Errors
    /// Those of reading; tensors of other types or shapes.
    pub fn statistics(&self, input: &Input) -> Result<Statistics, Error> {
        let histogram = |what| {
            let bytes = self.bytes(input, what, Dtype::U64, &[super::statistics::BINS + 3])?;
            let counts: Vec<u64> =
                bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
            Histogram::from_counts(&counts)
        };
        let amax = self.f32s(input, "amax", &[])?.first().copied().unwrap_or_default();
        let (values, groups) = (histogram("values")?, histogram("groups")?);
        Ok(Statistics::from_parts(input.k, input.rows, amax, values, groups))
    }
}
