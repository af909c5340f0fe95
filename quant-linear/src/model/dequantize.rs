//! A quantized checkpoint with dense weights: `MODULE.weight` for every layer, all else as it was.
//!
//! A value is what the layer's own software makes of it (see [`value`](crate::layout::value)),
//! rounded once to the type asked for. 3-D experts keep their name and their shape (experts, out,
//! in), layers that were quantized expert by expert become 3-D again, a GGUF keeps its own names;
//! its blocks of other types become dense too, and so does FP8 with scales beside it. A transform
//! of activations, or a scale of their features, stays where it is: the weights are those of the
//! layer that applies it.
//!
//! A model whose loader takes a weight as (in, out), as gpt-oss's and Llama 4's experts or GPT-2's
//! layers, gets it as (out, in) all the same: [`Plan::warnings`] says so.
//!
//! What is stored padded (ComfyUI) is written as stored; [`Options::crop`] gives it its true shape.

use std::collections::{BTreeMap, BTreeSet};

use fp4_core::{FloatType, FloatVec};
use serde::{Deserialize, Serialize};

use super::convert::plan::{carried, is_other, strip, unique};
use super::convert::{Source, Weight, weights};
use crate::checkpoint::tiles::Tile;
use crate::checkpoint::{Arrangement, Checkpoint, TensorSource, byte_len};
use crate::error::{Error, ModelError};
use crate::layer::state::{self, BIAS, join};
use crate::layout::{Layers, Place, kv_cache};
use crate::model::dense::{DenseSource, encoded};
use crate::model::orientation;
use crate::model::roles::{Facts, Roles, fp8_block, is_conv1d};
use crate::model::select::Orientation;
use crate::model::stream::{self, Job, Memory, Progress, Sink};

/// How a checkpoint is dequantized.
#[derive(Debug, Clone)]
pub struct Options {
    /// The type of the dense weights.
    pub float_type: FloatType,
    /// True shapes (out, in) of modules that are stored padded.
    pub crop: BTreeMap<String, [usize; 2]>,
}

/// A weight to be written.
#[derive(Debug)]
pub struct Dense<'a> {
    weight: Weight<'a>,
    file: usize,
    /// Rows and columns that are written.
    rows: usize,
    cols: usize,
}

/// The whole plan.
#[derive(Debug)]
pub struct Plan<'a> {
    options: Options,
    /// The output files.
    pub files: Vec<(String, Arrangement)>,
    weights: Vec<Dense<'a>>,
    /// Tensors that are carried along: name, file, and where their values are if they are decoded.
    copied: Vec<(String, usize, Option<DenseSource>)>,
    /// Files about the tensors, by name.
    pub companions: Vec<(String, Vec<u8>)>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// What keeps the output from being loaded as it is.
    pub warnings: Vec<String>,
}

/// What became of a tensor; nothing that is worth a number.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Outcome;

impl<'a> Plan<'a> {
    /// Plans it; into one file if `one_file`.
    ///
    /// # Errors
    /// Nothing that is not dense already, layers that are not whole, crops of modules that there
    /// are not or that are larger.
    pub fn new(
        input: &'a Checkpoint,
        layers: &'a Layers,
        options: Options,
        one_file: bool,
    ) -> Result<Self, Error> {
        if let Some((name, error)) = layers.bad.iter().next() {
            let (name, why) = (name.clone(), error.to_string());
            return Err(ModelError::Broken { name, why, more: layers.bad.len() - 1 }.into());
        }
        let one_file = one_file || !input.is_folder();
        let file_of = |name: &str| match one_file {
            true => 0,
            false => input.tensors().get(name).map_or(0, |tensor| tensor.file),
        };
        let mut plan = Plan {
            options,
            files: vec![],
            weights: vec![],
            copied: vec![],
            companions: vec![],
            notes: vec![],
            warnings: vec![],
        };
        let recorded = orientation::recorded(input)?;
        for weight in weights(layers, true, &recorded, &|_| false) {
            let file = weight.sources[0].layer.own.first().map_or(0, |name| file_of(name));
            plan.add(input, weight, file)?;
        }
        if let Some(module) = plan.options.crop.keys().find(|m| !layers.good.contains_key(*m)) {
            return Err(ModelError::NoModule { module: module.clone() }.into());
        }
        plan.weights.sort_by(|a, b| (a.file, &a.weight.tensor).cmp(&(b.file, &b.weight.tensor)));
        let gone: BTreeSet<&str> = gone(layers);
        let block = fp8_block(TensorSource::config(input).model());
        let mut scales = BTreeSet::new();
        for name in input.tensors().keys().filter(|name| !gone.contains(name.as_str())) {
            // Of what has no values the bytes are carried along.
            let source = match encoded(input, name) {
                Some(Err(reason)) => {
                    return Err(ModelError::NoValues { name: name.clone(), reason }.into());
                }
                Some(Ok(source)) => Some(source),
                None => DenseSource::find(input.tensors(), name, block).ok(),
            };
            let source = source.filter(DenseSource::is_encoded);
            scales.extend(source.iter().flat_map(DenseSource::companions).cloned());
            plan.copied.push((name.clone(), file_of(name), source));
        }
        plan.copied.retain(|(name, ..)| !scales.contains(name));
        let encoded = plan.copied.iter().any(|(.., source)| source.is_some());
        if plan.weights.is_empty() && !encoded && input.gguf().is_none() {
            return Err(ModelError::NoLayers { path: input.path().to_path_buf() }.into());
        }
        plan.arrange(input, one_file)?;
        plan.warn_of_orientation(input)?;
        Ok(plan)
    }

    /// Warns of weights that the model's own loader takes the other way around.
    fn warn_of_orientation(&mut self, input: &Checkpoint) -> Result<(), Error> {
        let config = TensorSource::config(input);
        let roles = Roles::new(Facts::new(Some(config.model()), input.tensors()))?;
        for experts in [true, false] {
            let turned = self.weights.iter().map(|dense| &dense.weight).filter(|weight| {
                let layer = weight.sources[0].layer;
                // What is stored as columns, and gpt-oss, is of a model that has them so.
                let columns = matches!(layer.place, Place::Columns { .. });
                let says = roles.loaded(&weight.tensor, experts) == Some(Orientation::InOut);
                let of_model = columns || layer.layout.name() == "gpt-oss" && !config.has_model();
                weight.experts.is_some() == experts && (says || of_model && experts)
            });
            let turned: Vec<_> = turned.map(|weight| &weight.tensor).collect();
            let Some(first) = turned.first() else { continue };
            let (is, wants) = match experts {
                true => ("(experts, out, in)", "(experts, in, out)"),
                false => ("(out, in)", "(in, out)"),
            };
            let whose = config.model_type().map_or("its model".into(), |ty| format!("`{ty}`"));
            self.warnings.push(format!(
                "{} weights, `{first}` the first, are written as {is}, and the loader of {whose} \
                 takes them as {wants}: turn their last two dimensions around before it loads them",
                turned.len()
            ));
        }
        Ok(())
    }

    fn add(&mut self, input: &Checkpoint, weight: Weight<'a>, file: usize) -> Result<(), Error> {
        let (rows, k) = (weight.shape.rows(), weight.shape.k());
        let layer = weight.sources[0].layer;
        let crop = self.options.crop.get(&weight.module).copied();
        if let Some([out, cols]) = crop
            && (out > rows || cols > k || weight.experts.is_some())
        {
            let (module, stored) = (weight.module.clone(), layer.dense_shape());
            return Err(ModelError::Crop { module, stored, wanted: [out, cols] }.into());
        }
        if layer.layout.pads() && crop.is_none() {
            let bias = input.tensors().get(&join(&weight.module, BIAS));
            let shown = bias.and_then(|bias| bias.info.shape.first().copied());
            let shown = match shown {
                Some(real) if real < rows => format!("its bias shows {real} real rows"),
                Some(_) => "its bias has as many rows".into(),
                None => "no bias shows how many rows are real".into(),
            };
            self.notes.push(format!(
                "`{}` is written as stored, {rows} x {k}, padding included: {shown}",
                weight.module
            ));
        }
        if layer.transform.is_some() || layer.pre_scale.is_some() {
            self.notes.push(format!(
                "`{}` is the weight of transformed activations; the transform stays in the output",
                weight.module
            ));
        }
        if let Some(untold) = &layer.untold {
            self.notes.push(format!(
                "`{}` goes with {untold}, which is not undone: the dense weight alone is another \
                one",
                weight.module
            ));
        }
        let [rows, cols] = crop.unwrap_or([rows, k]);
        self.weights.push(Dense { weight, file, rows, cols });
        Ok(())
    }

    fn arrange(&mut self, input: &Checkpoint, one_file: bool) -> Result<(), Error> {
        let names: Vec<String> = match one_file {
            true => vec!["model.safetensors".into()],
            false => input.files().iter().map(|(name, _)| name.clone()).collect(),
        };
        let dtype = state::float_dtype(self.options.float_type);
        for (file, name) in names.into_iter().enumerate() {
            let mut tensors = vec![];
            for dense in self.weights.iter().filter(|dense| dense.file == file) {
                let experts = dense.weight.experts;
                let rows = dense.rows / experts.unwrap_or(1).max(1);
                let shape = experts.into_iter().chain([rows, dense.cols]).collect();
                tensors.push((dense.weight.tensor.clone(), dtype, shape));
            }
            for (name, _, decoded) in self.copied.iter().filter(|(_, of, _)| *of == file) {
                let tensor = input.tensor(name)?;
                let dtype = if decoded.is_some() { dtype } else { tensor.info.dtype };
                tensors.push((name.clone(), dtype, tensor.shape()));
            }
            let own = input.files().get(file).map(|(_, file)| file.metadata());
            let mut metadata = carried(&own.cloned().unwrap_or_default());
            let own = self.weights.iter().filter(|dense| dense.file == file);
            let either = own.filter(|dense| dense.either()).map(|d| d.weight.tensor.as_str());
            orientation::record(&mut metadata, either.map(|name| (name, Orientation::OutIn)));
            let arrangement = Arrangement::new(tensors, &metadata);
            let refused = |refusal| Error::checkpoint(input.path(), refusal);
            self.files.push((name, arrangement.map_err(refused)?));
        }
        let all = self.weights.iter().map(|dense| &dense.weight.tensor);
        let all = all.chain(self.copied.iter().map(|(name, ..)| name));
        unique(all).map_err(|refusal| Error::checkpoint(input.path(), refusal))?;
        let others = self.copied.iter().filter(|(_, _, source)| source.is_none());
        let others: Vec<_> = others.filter(|(name, ..)| is_other(input, name)).collect();
        if let Some((first, ..)) = others.first() {
            self.notes.push(format!(
                "{} tensors belong to layers that are quantized in another way, `{first}` the \
                first: they stay as they are, and the config that is written does not speak of \
                them",
                others.len()
            ));
        }
        let config = TensorSource::config(input);
        if let Some(cache) = kv_cache(config) {
            self.notes.push(format!(
                "the source's config has a quantized cache of keys and values ({}), and the config \
                that is written says nothing of it",
                cache.what
            ));
        }
        if let Some(mut model) = config.model().as_object().cloned() {
            strip(&mut model);
            let mut text = serde_json::to_vec_pretty(&model).unwrap_or_default();
            text.push(b'\n');
            self.companions.push(("config.json".into(), text));
        }
        if let (Some(index), false) = (input.index(), one_file) {
            let (mut map, mut size) = (BTreeMap::new(), 0);
            for (name, arrangement) in &self.files {
                let names = arrangement.tensors().keys();
                map.extend(names.map(|tensor| (tensor.clone(), name.clone())));
                size += arrangement.data_len();
            }
            let name = index.name().into();
            self.companions.push((name, index.rewritten(&map, size).into_bytes()));
        }
        Ok(())
    }

    /// Bytes of all files.
    pub fn file_len(&self) -> u64 {
        self.files.iter().map(|(_, arrangement)| arrangement.file_len()).sum()
    }

    /// The work, file by file.
    pub fn tasks(&'a self, input: &'a Checkpoint, memory: Memory) -> Vec<Task<'a>> {
        let mut tasks = vec![];
        let task = |file, what| Task { input, plan: self, memory, file, what };
        for file in 0..self.files.len() {
            let weights = self.weights.iter().filter(|dense| dense.file == file);
            tasks.extend(weights.map(|dense| task(file, What::Weight(dense))));
            let copied = self.copied.iter().filter(|(_, of, _)| *of == file);
            tasks.extend(copied.map(|(name, _, decoded)| match decoded {
                Some(source) => task(file, What::Decode(name, source)),
                None => task(file, What::Copy(name)),
            }));
        }
        tasks
    }
}

impl Dense<'_> {
    /// May other files hold it either way? Here it is (out, in).
    fn either(&self) -> bool {
        self.weight.experts.is_some() || is_conv1d(&self.weight.tensor)
    }
}

/// The tensors that dense weights stand for: all that layers are made of but their transforms.
fn gone(layers: &Layers) -> BTreeSet<&str> {
    let mut gone = BTreeSet::new();
    for layer in layers.good.values() {
        let transform = layer.transform.as_ref().map(|t| t.name.as_str());
        let scale = layer.pre_scale.as_ref().map(|(name, _)| name.as_str());
        let stays = |name: &&str| {
            Some(*name) == transform || Some(*name) == scale || name.ends_with("hadamard_matrix")
        };
        gone.extend(layer.own.iter().map(String::as_str).filter(|name| !stays(name)));
    }
    gone
}

#[derive(Debug, Clone, Copy)]
enum What<'p> {
    Weight(&'p Dense<'p>),
    Copy(&'p str),
    Decode(&'p str, &'p DenseSource),
}

/// A piece of the work.
#[derive(Debug, Clone, Copy)]
pub struct Task<'p> {
    input: &'p Checkpoint,
    plan: &'p Plan<'p>,
    memory: Memory,
    file: usize,
    what: What<'p>,
}

impl Job for Task<'_> {
    type Outcome = Outcome;

    fn name(&self) -> &str {
        match self.what {
            What::Weight(dense) => &dense.weight.tensor,
            What::Copy(name) | What::Decode(name, _) => name,
        }
    }

    fn file(&self) -> usize {
        self.file
    }

    fn work(&self) -> u64 {
        match self.what {
            What::Weight(dense) => {
                let shape = dense.weight.shape;
                (shape.codes_len() + shape.scales_len()) as u64
            }
            What::Copy(name) | What::Decode(name, _) => {
                let tensor = self.input.tensors().get(name);
                tensor.map_or(0, |tensor| byte_len(&tensor.info) as u64)
            }
        }
    }

    fn memory(&self) -> u64 {
        match self.what {
            What::Weight(dense) => {
                let row = dense.weight.shape.k() as u64;
                row.saturating_mul(10 * self.rows(dense) as u64)
            }
            What::Copy(_) => self.memory.of_tiles(self.work()),
            What::Decode(..) => 8 * self.memory.of_tiles(self.work()),
        }
    }

    fn run(&self, sink: &Sink<'_>, progress: &Progress<'_>) -> Result<Outcome, Error> {
        match self.what {
            What::Weight(dense) => {
                let mut at = sink.position(&dense.weight.tensor)?;
                for source in &dense.weight.sources {
                    at = self.part(dense, source, at, sink, progress)?;
                }
            }
            What::Copy(name) => stream::copy(self.input, name, self.memory, sink, progress)?,
            What::Decode(name, source) => {
                let to = (sink, sink.position(name)?);
                let float_type = self.plan.options.float_type;
                source.write(self.input, float_type, self.memory, to, progress)?;
            }
        }
        Ok(Outcome)
    }
}

impl Task<'_> {
    /// Rows that are dequantized at a time: whole bands of swizzled scales.
    fn rows(&self, dense: &Dense<'_>) -> usize {
        let rows = self.memory.tile_bytes() / (4 * dense.weight.shape.k()).max(1);
        (rows / 128).max(1) * 128
    }

    /// Writes the rows of one source from `at` on; where the next begin.
    fn part(
        &self,
        dense: &Dense<'_>,
        source: &Source<'_>,
        mut at: u64,
        sink: &Sink<'_>,
        progress: &Progress<'_>,
    ) -> Result<u64, Error> {
        let (k, decoder) = (dense.weight.shape.k(), source.layer.decoder());
        for row in source.rows.clone().step_by(self.rows(dense)) {
            let rows = self.rows(dense).min(source.rows.end - row);
            if k == 0 {
                break;
            }
            let tile = Tile { row, rows, col: 0, cols: k, start: row * k };
            let packed = source.layer.packed(self.input, &tile)?;
            let mut values = decoder.values(&packed, &tile);
            // Cropped: only a weight of one source is.
            if dense.weight.experts.is_none() {
                values.truncate(dense.rows.saturating_sub(row - source.rows.start) * k);
                if dense.cols < k {
                    let cropped = values.chunks_exact(k).flat_map(|row| &row[..dense.cols]);
                    values = cropped.copied().collect();
                }
            }
            let bytes = FloatVec::F32(values).converted(self.plan.options.float_type).to_le_bytes();
            sink.write(at, &bytes)?;
            at += bytes.len() as u64;
            progress.bytes((packed.codes().len() + packed.scales().len()) as u64);
        }
        Ok(at)
    }
}
