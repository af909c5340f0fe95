//! What a conversion writes: which tensors, in which file, and what the config says of them.

use std::collections::{BTreeMap, BTreeSet};

use fp4_core::{QuantSpec, ScaleType};
use safetensors::Dtype;
use serde_json::Value;

use super::weight::Planned;
use super::{Arranged, Options, gather, rescale};
use crate::checkpoint::HEADER_LAYERS;
use crate::checkpoint::gguf::{self, GgmlType, GgufArrangement};
use crate::checkpoint::{Arrangement, Checkpoint, Refusal, Tensor, TensorSource};
use crate::error::{Error, ModelError};
use crate::layer::ActivationEncoding;
use crate::layer::state;
use crate::layout::write::{Done, DoneLayer, Fill, Held, NewTensor, Refused, Written};
use crate::layout::{Activations, KvCache, Layer, Layers, Layout, kv_cache};
use crate::model::dense::encoded;
use crate::model::orientation::{self, recorded};
use crate::model::roles::stacked_name;
use crate::model::select::Orientation;

/// A tensor that is carried along.
#[derive(Debug, Clone)]
pub struct Copied {
    /// Its name.
    pub name: String,
    /// The output file.
    pub file: usize,
    /// True if it is in blocks of ggml's and becomes f32.
    pub decoded: bool,
}

/// The whole plan.
#[derive(Debug)]
pub struct Plan<'a> {
    /// How.
    pub options: Options,
    /// The output files.
    pub files: Vec<(String, Arranged)>,
    /// The weights.
    pub weights: Vec<Planned<'a>>,
    /// What is carried along.
    pub copied: Vec<Copied>,
    /// Files about the tensors, by name: the config, the index.
    pub companions: Vec<(String, Vec<u8>)>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// True if all layers stay in their layout and format.
    pub(super) same: bool,
}

/// What an output is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One file.
    File,
    /// A folder: the files of the source's folder, or `model.safetensors`.
    Folder,
}

impl<'a> Plan<'a> {
    /// Plans the conversion of `input`, whose layers are `layers`.
    ///
    /// # Errors
    /// No layers, layers that are not whole, [`ModelError::Cannot`] with all that the target cannot
    /// hold, names that collide.
    pub fn new(
        input: &'a Checkpoint,
        layers: &'a Layers,
        options: Options,
        shape: Shape,
    ) -> Result<Self, Error> {
        if let Some((name, error)) = layers.bad.iter().next() {
            let (name, why) = (name.clone(), error.to_string());
            return Err(ModelError::Broken { name, why, more: layers.bad.len() - 1 }.into());
        }
        if layers.good.is_empty() {
            return Err(ModelError::NoLayers { path: input.path().to_path_buf() }.into());
        }
        let one_file = shape == Shape::File || !input.is_folder() || is_gguf(options.target);
        let file_of = |tensor: &str| match one_file {
            true => 0,
            false => input.tensors().get(tensor).map_or(0, |tensor| tensor.file),
        };
        let weights = planned(input, layers, &options, &file_of)?;
        let taken: BTreeSet<&str> = used(layers);
        let mut plan = Plan {
            options,
            files: vec![],
            copied: copied(input, &taken, options.target, &file_of)?,
            weights,
            companions: vec![],
            notes: vec![],
            same: false,
        };
        let target = plan.options.target.name();
        plan.same = layers.good.values().all(|layer| layer.layout.name() == target)
            && plan.weights.iter().all(|planned| planned.rescale.is_none());
        let cache = kv_cache(TensorSource::config(input));
        plan.note(input, layers, cache.as_ref());
        let names: Vec<String> = match (one_file, is_gguf(options.target)) {
            (true, false) => vec!["model.safetensors".into()],
            (true, true) => vec!["model.gguf".into()],
            (false, _) => input.files().iter().map(|(name, _)| name.clone()).collect(),
        };
        plan.arrange(input, names)?;
        plan.companions(input, cache.as_ref())?;
        Ok(plan)
    }

    /// Where everything goes.
    fn arrange(&mut self, input: &Checkpoint, names: Vec<String>) -> Result<(), Error> {
        let refused = |refusal| Error::checkpoint(input.path(), refusal);
        for (file, name) in names.into_iter().enumerate() {
            let new = self.weights.iter().filter(|weight| weight.file == file);
            let new = new.flat_map(|weight| weight.written.tensors.iter());
            let copied = self.copied.iter().filter(|copied| copied.file == file);
            let arranged = match is_gguf(self.options.target) {
                true => {
                    let mut tensors = vec![];
                    for copied in copied {
                        let tensor = input.tensor(&copied.name)?;
                        let ty = ggml_type(&copied.name, tensor)?;
                        tensors.push((copied.name.clone(), ty, tensor.shape()));
                    }
                    tensors.extend(new.map(ggml));
                    tensors.sort_by(|(a, ..), (b, ..)| a.cmp(b));
                    let pairs = pairs(input);
                    Arranged::Gguf(GgufArrangement::new(&pairs, &tensors).map_err(refused)?)
                }
                false => {
                    let mut tensors = vec![];
                    for copied in copied {
                        let tensor = input.tensor(&copied.name)?;
                        let dtype = if copied.decoded { Dtype::F32 } else { tensor.info.dtype };
                        tensors.push((copied.name.clone(), dtype, tensor.shape()));
                    }
                    tensors.extend(new.map(|t| (t.name.clone(), t.dtype, t.shape.clone())));
                    let metadata = self.metadata(input, file);
                    let arrangement = Arrangement::new(tensors, &metadata).map_err(refused)?;
                    Arranged::Safetensors(arrangement)
                }
            };
            self.files.push((name, arranged));
        }
        let all = self.weights.iter().flat_map(|planned| &planned.written.tensors);
        let all = all.map(|tensor| &tensor.name).chain(self.copied.iter().map(|c| &c.name));
        unique(all).map_err(refused)
    }

    /// What the header of a file says.
    fn metadata(&self, input: &Checkpoint, file: usize) -> BTreeMap<String, String> {
        let own = input.files().get(file).map(|(_, file)| file.metadata().clone());
        let own = own.unwrap_or_default();
        if self.same && self.options.target.describes() {
            return own;
        }
        let mut metadata = carried(&own);
        let of_file = |planned: &&Planned<'_>| planned.file == file;
        let layers: Vec<_> = self.weights.iter().filter(of_file).map(done).collect();
        let others = self.copied.iter().filter(|copied| copied.file == file);
        let others: Vec<_> = others.map(|copied| copied.name.clone()).collect();
        let done = Done { layers: &layers, dense: &[], others: &others, kv_cache: None };
        metadata.extend(self.options.target.metadata(&done));
        // Layers of other formats that the header lists stay listed.
        let listed = own.iter().filter(|(key, _)| self.same && *key == HEADER_LAYERS);
        metadata.extend(listed.map(|(key, value)| (key.clone(), value.clone())));
        // It has been read once already, or there would be no plan.
        let mut ways = orientation::of(&own).unwrap_or_default();
        let of_file = self.weights.iter().filter(of_file);
        let apart = of_file.filter(|planned| planned.weight.experts.is_none());
        let apart = apart.map(|planned| planned.weight.sources[0].layer);
        let unusual = apart.filter(|layer| {
            layer.experts.is_some() && stacked_name(&layer.module).as_ref() != Some(&layer.tensor)
        });
        ways.extend(unusual.map(|layer| (layer.tensor.clone(), Orientation::OutIn)));
        let ways = ways.iter().map(|(name, way)| (name.as_str(), *way));
        orientation::record(&mut metadata, ways);
        metadata
    }

    /// The config, and the index of shards.
    fn companions(&mut self, input: &Checkpoint, kv_cache: Option<&KvCache>) -> Result<(), Error> {
        let config = TensorSource::config(input);
        if let Some(problem) = config.problem() {
            return Err(ModelError::Config(problem.to_string()).into());
        }
        let mut model = config.model().as_object().cloned().unwrap_or_default();
        let speaks = [config.quantization(), &config.model()["quantization"], config.hf_quant()];
        if self.same && speaks.iter().any(|block| block.is_object()) {
            // The config speaks of the very tensors that are written, and of all others.
            let files = config.files().map(|(name, value)| (name.to_string(), pretty(value)));
            self.companions.extend(files);
            return self.index(input);
        }
        strip(&mut model);
        let done_layers: Vec<_> = self.weights.iter().map(done).collect();
        let dense = self.copied.iter().filter_map(|copied| linear(input, &copied.name));
        let dense: Vec<_> = dense.collect();
        let done = Done { layers: &done_layers, dense: &dense, others: &[], kv_cache };
        let others = match is_gguf(self.options.target) {
            true => vec![],
            false => self.options.target.config(&mut model, &done),
        };
        if !model.is_empty() {
            self.companions.push(("config.json".into(), pretty(&Value::Object(model))));
        }
        self.companions.extend(others.iter().map(|(name, value)| ((*name).into(), pretty(value))));
        self.index(input)
    }

    /// The index of shards.
    fn index(&mut self, input: &Checkpoint) -> Result<(), Error> {
        if let (Some(index), false) = (input.index(), self.files.len() == 1) {
            let mut map = BTreeMap::new();
            let mut size = 0;
            for (name, arranged) in &self.files {
                let Arranged::Safetensors(arrangement) = arranged else { continue };
                let names = arrangement.tensors().keys();
                map.extend(names.map(|tensor| (tensor.clone(), name.clone())));
                size += arrangement.data_len();
            }
            let name = index.name().into();
            self.companions.push((name, index.rewritten(&map, size).into_bytes()));
        }
        Ok(())
    }

    /// The companions, the index last.
    pub(super) fn generated(&self) -> Vec<(&str, Vec<u8>)> {
        let companions = self.companions.iter();
        companions.map(|(name, bytes)| (name.as_str(), bytes.clone())).collect()
    }

    /// Bytes to be read.
    pub fn work(&self, input: &Checkpoint) -> u64 {
        use crate::model::stream::{Job, Memory};
        self.tasks(input, Memory::default()).iter().map(Job::work).sum()
    }

    /// Bytes of all files.
    pub fn file_len(&self) -> u64 {
        use crate::model::stream::Layout as _;
        self.files.iter().map(|(_, arranged)| arranged.file_len()).sum()
    }
}

/// Refuses a name that is there twice, in whichever files.
pub(in crate::model) fn unique<'n>(names: impl Iterator<Item = &'n String>) -> Result<(), Refusal> {
    let mut seen = BTreeSet::new();
    for name in names {
        if !seen.insert(name) {
            return Err(Refusal::TwoOfOneName { name: name.clone() });
        }
    }
    Ok(())
}

pub(super) fn is_gguf(target: &dyn Layout) -> bool {
    target.name() == "gguf"
}

/// What every weight becomes.
fn planned<'a>(
    input: &'a Checkpoint,
    layers: &'a Layers,
    options: &Options,
    file_of: &dyn Fn(&str) -> usize,
) -> Result<Vec<Planned<'a>>, Error> {
    let (mut all, mut cannot) = (vec![], vec![]);
    let target = options.target.name();
    let recorded = recorded(input)?;
    let all_of = layers.good.values().all(|layer| layer.layout.name() == target);
    let same = all_of && options.format.is_none() && !is_gguf(options.target);
    // Experts that are one tensor stay one where nothing else is asked for.
    let kept = |layer: &Layer| {
        layer.experts.is_some()
            && layer.layout.name() == target
            && (same || !options.target.describes())
            && options.format.is_none_or(|format| layer.format() == Some(format))
    };
    for mut weight in gather::weights(layers, options.target.stacks(), &recorded, &kept) {
        let first = weight.sources[0].layer;
        let said = match first.scalars.activations {
            // What the state asks for, and no config says.
            other if !first.is_foreign() && other != ActivationEncoding::Own => {
                Activations::Other { what: other.to_string(), scheme: None }
            }
            _ => first.said.clone(),
        };
        if matches!(said, Activations::Other { .. }) && first.layout.name() != target {
            // A scale of eight bits is none of four.
            weight.inputs = None;
        }
        let activations = said.clone().or_by_scale(weight.inputs.is_some());
        let mut shape = weight.shape;
        let mut rescaled = None;
        if let Some(format) = options.format
            && let Some((rescale, globals)) = rescale::rescale(input, &weight, format)?
        {
            shape = fp4_core::PackedShape::of(format, shape.rows(), shape.k())?;
            weight.globals = globals;
            rescaled = Some(rescale);
        }
        let held = Held {
            module: &weight.module,
            tensor: &weight.tensor,
            experts: weight.experts,
            shape,
            globals: &weight.globals,
            inputs: weight.inputs.as_deref(),
            activation_scale_scale: first.scalars.activation_scale_scale,
            activation_encoding: first.scalars.activations,
            unstored: shape.format().map(QuantSpec::usual).filter(|_| first.is_foreign()),
            transform: first.transform.as_ref(),
            pre_scale: first.pre_scale.as_ref().map(|(name, dtype)| (name.as_str(), *dtype)),
            untold: first
                .untold
                .as_deref()
                .filter(|_| first.layout.name() != options.target.name() || rescaled.is_some()),
        };
        let written = match held.untold {
            Some(untold) => Err(Refused::Transform(untold.into())),
            None if kept(first) && !options.target.stacks() => Ok(as_it_is(input, first)),
            None if same && options.target.describes() => Ok(as_it_is(input, first)),
            None => match options.target.write(&held) {
                // What the config that stays says of it is all that its loader has.
                Err(_) if same && weight.sources.len() == 1 => Ok(as_it_is(input, first)),
                written => written,
            },
        };
        match written {
            Ok(written) => {
                let file = first.own.first().map_or(0, |name| file_of(name));
                let activations = (said, activations);
                all.push(Planned { weight, file, rescale: rescaled, written, activations });
            }
            Err(refused) => cannot.push((weight.tensor.clone(), refused.to_string())),
        }
    }
    if !cannot.is_empty() {
        let (target, count) = (options.target.name(), cannot.len());
        cannot.truncate(5);
        return Err(ModelError::Cannot { target, count, examples: cannot }.into());
    }
    let formats: Vec<_> = all.iter().map(|planned| done(planned).format).collect();
    if !options.target.mixes() && formats.iter().any(|format| *format != formats[0]) {
        return Err(ModelError::Mixed { target: options.target.name() }.into());
    }
    all.sort_by(|a, b| (a.file, &a.weight.tensor).cmp(&(b.file, &b.weight.tensor)));
    Ok(all)
}

/// A layer by the very tensors that it has.
fn as_it_is(input: &Checkpoint, layer: &Layer) -> Written {
    let tensors = layer.own.iter().filter_map(|name| {
        let (dtype, shape) = input.header(name)?;
        Some(NewTensor { name: name.clone(), dtype, shape, fill: Fill::Tensor(name.clone()) })
    });
    let order = layer.arithmetic.order;
    Written {
        tensors: tensors.collect(),
        arithmetic: layer.arithmetic,
        globals: layer.globals.iter().map(|global| global.stored_for(order)).collect(),
    }
}

/// Names of the source's tensors that weights are made of.
fn used(layers: &Layers) -> BTreeSet<&str> {
    layers.good.values().flat_map(|layer| &layer.own).map(String::as_str).collect()
}

/// The tensors that are carried along.
fn copied(
    input: &Checkpoint,
    taken: &BTreeSet<&str>,
    target: &'static dyn Layout,
    file_of: &dyn Fn(&str) -> usize,
) -> Result<Vec<Copied>, Error> {
    let mut all = vec![];
    for (name, tensor) in input.tensors() {
        if taken.contains(name.as_str()) {
            continue;
        }
        let blocks = tensor.ggml.is_some_and(|ty| ty.dtype().is_none());
        let decoded = blocks && !is_gguf(target);
        if let (true, Some(Err(reason))) = (decoded, encoded(input, name)) {
            return Err(ModelError::NoValues { name: name.clone(), reason }.into());
        }
        if is_gguf(target) {
            ggml_type(name, tensor)?;
        }
        all.push(Copied { name: name.clone(), file: file_of(name), decoded });
    }
    Ok(all)
}

fn ggml(tensor: &NewTensor) -> (String, GgmlType, Vec<usize>) {
    let mut shape = tensor.shape.clone();
    let Fill::Blocks(scale_type) = tensor.fill else {
        return (tensor.name.clone(), GgmlType::F32, shape);
    };
    let ty = match scale_type {
        ScaleType::E8M0 => GgmlType::MXFP4,
        ScaleType::E4M3 => GgmlType::NVFP4,
    };
    if let Some(last) = shape.last_mut() {
        *last = *last / ty.block_bytes() * ty.block_len();
    }
    (tensor.name.clone(), ty, shape)
}

/// The GGUF type of a tensor that is carried along.
fn ggml_type(name: &str, tensor: &Tensor) -> Result<GgmlType, ModelError> {
    let ty = tensor
        .ggml
        .or_else(|| GgmlType::ALL.into_iter().find(|ty| ty.dtype() == Some(tensor.info.dtype)));
    ty.ok_or_else(|| ModelError::NoType { name: name.into(), dtype: tensor.info.dtype })
}

/// The pairs of a GGUF output.
fn pairs(input: &Checkpoint) -> Vec<(String, gguf::Value)> {
    if let Some(header) = input.gguf() {
        return header.pairs().to_vec();
    }
    let text = |text: &str| gguf::Value::String(text.as_bytes().to_vec());
    let architecture = TensorSource::config(input).model_type().unwrap_or("unknown");
    vec![
        ("general.architecture".into(), text(architecture)),
        ("general.quantization_version".into(), gguf::Value::U32(2)),
    ]
}

pub(super) fn has_input(planned: &Planned<'_>) -> bool {
    let own = |t: &NewTensor| matches!(t.fill, Fill::Tensor(_)) && t.name.ends_with("_input_scale");
    if planned.written.tensors.iter().any(own) {
        return true; // a layer as it is
    }
    let scalars = planned.written.tensors.iter().filter(|t| matches!(t.fill, Fill::Bytes(_)));
    let mut names = scalars.filter_map(|tensor| tensor.name.rsplit('.').next());
    names.any(|name| name.starts_with("input") || name.starts_with("act") || name.contains("_act_"))
}

pub(super) fn done(planned: &Planned<'_>) -> DoneLayer {
    let format = match planned.rescale.as_ref().map(|rescale| rescale.format) {
        Some(format) => format,
        // A layer is of one of the two, or would not have been read.
        None => planned.weight.shape.format().unwrap_or(fp4_core::Format::NvFp4),
    };
    let first = planned.weight.sources[0].layer;
    DoneLayer {
        module: planned.weight.module.clone(),
        format,
        input: has_input(planned),
        activations: planned.activations.1.clone(),
        transform: first.transform.as_ref().map(|t| t.shape.block.get()),
        tensors: planned.written.tensors.iter().map(|tensor| tensor.name.clone()).collect(),
    }
}

/// The module of a dense matrix that a loader would take for a linear layer.
fn linear(input: &Checkpoint, name: &str) -> Option<String> {
    let tensor = input.tensors().get(name)?;
    let float = state::float_type(tensor.info.dtype).is_some()
        || matches!(tensor.info.dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2);
    let module = name.strip_suffix(".weight")?;
    (float && tensor.info.shape.len() == 2).then(|| module.to_string())
}

/// Is it a part of a layer that is quantized in another way than FP4?
pub(in crate::model) fn is_other(input: &Checkpoint, name: &str) -> bool {
    let Some(tensor) = input.tensors().get(name) else { return false };
    let last = name.rsplit('.').next().unwrap_or(name);
    match tensor.info.dtype {
        Dtype::F8_E4M3 | Dtype::F8_E5M2 => last.starts_with("weight"),
        Dtype::I32 | Dtype::U32 | Dtype::U8 | Dtype::I8 => {
            matches!(last, "weight" | "weight_packed" | "qweight" | "qzeros" | "weight_zero_point")
                && tensor.ggml.is_none()
        }
        _ => false,
    }
}

/// Takes out of a `config.json` what it says of quantized tensors.
pub(in crate::model) fn strip(model: &mut serde_json::Map<String, Value>) {
    for key in ["quantization_config", "quantization", "compression_config", "expert_dtype"] {
        model.remove(key);
    }
    if let Some(text) = model.get_mut("text_config").and_then(Value::as_object_mut) {
        text.remove("quantization_config");
    }
}

/// The entries of a header that do not speak of quantized tensors: not those of ComfyUI and
/// torchao, whose keys are names of tensors, nor our own.
pub(in crate::model) fn carried(metadata: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let torchao = metadata.contains_key("tensor_names");
    let ours = |key: &str| {
        let described = metadata.get(key).is_some_and(|value| value.starts_with("{\"_type\""));
        key == HEADER_LAYERS
            || key.starts_with("exact_fp4.")
            || torchao && (key == "tensor_names" || described)
    };
    let rest = metadata.iter().filter(|(key, _)| !ours(key));
    let mut rest: BTreeMap<_, _> = rest.map(|(key, value)| (key.clone(), value.clone())).collect();
    if rest.get("format").is_none_or(|format| format == "mlx") {
        rest.insert("format".into(), "pt".into());
    }
    rest
}

fn pretty(value: &Value) -> Vec<u8> {
    // Any value is JSON.
    let mut text = serde_json::to_vec_pretty(value).unwrap_or_default();
    text.push(b'\n');
    text
}
