//! What becomes of every tensor, decided from the headers before anything is written.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use fp4_core::PackedShape;
use safetensors::Dtype;

use crate::checkpoint::{Arrangement, Checkpoint, Planned, Tensor, TensorSource, byte_len};
use crate::error::{Error, ModelError, Reason};
use crate::layer::{ActivationEncoding, DenseOptions, StoredTransform, state};
use crate::layout::STATE_NAMES;
use crate::model::dense::{DenseSource, encoded};
use crate::model::orientation;
use crate::model::pipeline::Pipeline;
use crate::model::roles::is_conv1d;
use crate::model::select::{Chosen, EXAMPLES, Fate, Orientation, Request, Rule};
use crate::model::ties::{Key, Tied, can_tie};

/// A weight to be quantized: a tensor, or one of the matrices of an expert tensor.
#[derive(Debug, Clone)]
pub struct Weight {
    /// The tensor's name in the input.
    pub name: String,
    /// The matrix of an expert tensor.
    pub expert: Option<usize>,
    /// Its layer's prefix in the output.
    pub prefix: String,
    /// The tensor, in its place in the output's files.
    pub tensor: Tensor,
    /// Where its values are.
    pub(crate) source: DenseSource,
    /// Its shape when packed.
    pub shape: PackedShape,
    /// How it is quantized.
    pub options: Arc<DenseOptions>,
    /// The weights that it shares its global scale with, itself included.
    pub(crate) tied: Option<Arc<Tied>>,
    /// How a calibration is used.
    pub pipeline: Option<Arc<Pipeline>>,
    /// Where the values of the weights are that take the same input, its own included.
    pub(crate) siblings: Option<Arc<[DenseSource]>>,
}

impl Weight {
    /// Bytes of its values in the input.
    pub fn byte_len(&self) -> u64 {
        self.source.byte_len() as u64
    }

    /// Bytes of its values when read.
    pub fn value_len(&self) -> u64 {
        self.source.value_len() as u64
    }

    /// True if the input holds it as (in, out).
    pub fn is_transposed(&self) -> bool {
        self.source.is_transposed()
    }

    /// How the input holds it, where that is not the same for all weights.
    fn orientation(&self) -> Option<(&str, Orientation)> {
        let either = self.expert.is_some() || is_conv1d(&self.name);
        let way = if self.is_transposed() { Orientation::InOut } else { Orientation::OutIn };
        either.then_some((self.name.as_str(), way))
    }

    /// Passes over it: two if its global scale needs the largest magnitude first.
    pub fn passes(&self) -> u64 {
        if self.options.needs_amax() && self.pipeline.is_none() { 2 } else { 1 }
    }
}

/// A tensor of two or more dimensions that is copied as it is.
#[derive(Debug, Clone)]
pub struct Skipped {
    /// Its name.
    pub name: String,
    /// Why it is not quantized.
    pub reason: Reason,
    /// Its bytes.
    pub bytes: u64,
}

/// A scale of an FP8 weight, or of the FP8 activations that it multiplied, which means nothing once
/// the weight is quantized.
#[derive(Debug, Clone)]
pub struct UsedUp {
    /// Its name.
    pub name: String,
    /// The weight.
    pub weight: String,
    /// Its bytes.
    pub bytes: u64,
}

/// The whole plan.
#[derive(Debug)]
pub struct Plan {
    /// Weights to be quantized, by file and name.
    pub weights: Vec<Weight>,
    /// Every tensor of two or more dimensions that is not quantized.
    pub skipped: Vec<Skipped>,
    /// Number of tensors that are copied, the skipped ones included.
    pub copied: usize,
    /// Tensors that are not written, by name: what they say, the weights that they belong to no
    /// longer need.
    pub used_up: Vec<UsedUp>,
    /// One layout for each file of the input.
    pub layouts: Vec<Arrangement>,
    /// Patterns that keep tensors dense and match none.
    pub unmatched: Vec<String>,
}

impl Plan {
    /// Plans the quantization of `input`.
    ///
    /// # Errors
    /// Globs that do not parse or find nothing to quantize, tensors that are included by their full
    /// names and that cannot be quantized, experts of which nothing tells how they are stored,
    /// nothing to quantize, or names that are taken.
    pub fn new(input: &Checkpoint, request: &Request) -> Result<Self, Error> {
        let rule = Rule::new(request, input.tensors(), Some(input.config().model()))?;
        let rule = rule.recorded(orientation::recorded(input)?);
        rule.check_includes()?;
        let unmatched: Vec<_> = rule.unmatched().into_iter().map(String::from).collect();
        if let (Some(glob), true) = (unmatched.first(), request.strict) {
            return Err(ModelError::NoMatch { glob: glob.clone() }.into());
        }
        let mut draft = Draft::new(input);
        for (name, tensor) in input.tensors() {
            match rule.decide(name, &tensor.info)? {
                Fate::Quantize(chosen) => draft.quantize(name, tensor, &chosen)?,
                Fate::Skip(reason) => draft.skip(name, tensor, reason)?,
                Fate::Copy => draft.copy(name, tensor)?,
            }
        }
        draft.use_up();
        Ok(Plan { unmatched, ..draft.finish(request)? })
    }

    /// The weights of a file, among all.
    pub fn weights_of(&self, file: usize) -> Range<usize> {
        let start = self.weights.partition_point(|w| w.tensor.file < file);
        start..self.weights.partition_point(|w| w.tensor.file <= file)
    }

    /// Bytes to be read, over all passes.
    pub fn work(&self, input: &Checkpoint) -> u64 {
        let all: u64 = input.tensors().values().map(|t| byte_len(&t.info) as u64).sum();
        let again = self.weights.iter().map(|w| (w.passes() - 1) * w.byte_len());
        all + again.sum::<u64>()
    }

    /// Bytes of all tensors of the output.
    pub fn data_len(&self) -> u64 {
        self.layouts.iter().map(Arrangement::data_len).sum()
    }

    /// Bytes of all files of the output.
    pub fn file_len(&self) -> u64 {
        self.layouts.iter().map(Arrangement::file_len).sum()
    }

    /// The file of every tensor of the output.
    pub fn weight_map(&self, input: &Checkpoint) -> BTreeMap<String, String> {
        let files = input.files().iter().zip(&self.layouts);
        files
            .flat_map(|((file, _), layout)| {
                layout.tensors().keys().map(|name| (name.clone(), file.clone()))
            })
            .collect()
    }
}

/// A plan in the making.
struct Draft<'a> {
    input: &'a Checkpoint,
    weights: Vec<Weight>,
    skipped: Vec<Skipped>,
    copied: usize,
    /// The tensors of every file of the output.
    files: Vec<BTreeMap<String, (Dtype, Vec<usize>)>>,
    /// Bytes that the new names take in their headers at least.
    header_lens: Vec<u64>,
    /// The weights by their prefixes.
    prefixes: BTreeMap<String, String>,
    /// The weights that FP8 scales belong to.
    companions: BTreeMap<String, String>,
    used_up: Vec<UsedUp>,
}

impl<'a> Draft<'a> {
    fn new(input: &'a Checkpoint) -> Self {
        // The parts of a GGUF model become one file.
        let files = if input.gguf().is_some() { 1 } else { input.files().len() };
        Draft {
            input,
            weights: vec![],
            skipped: vec![],
            copied: 0,
            files: vec![BTreeMap::new(); files],
            header_lens: vec![0; files],
            prefixes: BTreeMap::new(),
            companions: BTreeMap::new(),
            used_up: vec![],
        }
    }

    /// The output file of a tensor.
    fn file(&self, tensor: &Tensor) -> usize {
        if self.input.gguf().is_some() { 0 } else { tensor.file }
    }

    /// Carries a tensor along: as it is, or in F32 where it is in blocks of ggml's, which
    /// safetensors has no type for.
    fn copy(&mut self, name: &str, tensor: &Tensor) -> Result<(), Error> {
        self.copied += 1;
        let dtype = match encoded(self.input, name) {
            Some(Ok(_)) => Dtype::F32,
            Some(Err(reason)) => {
                return Err(ModelError::NoValues { name: name.into(), reason }.into());
            }
            None => tensor.info.dtype,
        };
        let file = self.file(tensor);
        self.files[file].insert(name.into(), (dtype, tensor.shape()));
        Ok(())
    }

    fn skip(&mut self, name: &str, tensor: &Tensor, reason: Reason) -> Result<(), Error> {
        let bytes = byte_len(&tensor.info) as u64;
        self.skipped.push(Skipped { name: name.into(), reason, bytes });
        self.copy(name, tensor)
    }

    /// Plans the weights of a tensor: one, or one for each expert.
    fn quantize(&mut self, name: &str, tensor: &Tensor, chosen: &Chosen) -> Result<(), Error> {
        let [matrices, rows, k] = chosen.shape();
        let shape = PackedShape::of(chosen.options.format, rows, k)?;
        for companion in chosen.source.companions() {
            self.companions.insert(companion.clone(), name.into());
        }
        for matrix in 0..matrices {
            let expert = chosen.experts.then_some(matrix);
            let prefix = match expert {
                Some(expert) => state::join(&chosen.prefix, &expert.to_string()),
                None => chosen.prefix.clone(),
            };
            refuse_taken(self.input, &prefix)?;
            if let Some(first) = self.prefixes.insert(prefix.clone(), name.into()) {
                let second = name.into();
                return Err(ModelError::SamePrefix { prefix, first, second }.into());
            }
            let new = new_tensors(&prefix, shape, &chosen.options, chosen.pipeline.as_deref());
            // Six names for one: refused before they fill the memory.
            let file = self.file(tensor);
            self.header_lens[file] += Arrangement::header_len(&new);
            Arrangement::check_header(self.header_lens[file])
                .map_err(|refusal| Error::checkpoint(self.input.path(), refusal))?;
            let new = new.into_iter().map(|(name, dtype, shape)| (name, (dtype, shape)));
            self.files[file].extend(new);
            self.weights.push(Weight {
                name: name.into(),
                expert,
                prefix,
                tensor: Tensor { file, ..tensor.clone() },
                source: chosen.source.clone().matrix(matrix),
                shape,
                options: chosen.options.clone(),
                tied: None,
                pipeline: chosen.pipeline.clone(),
                siblings: None,
            });
        }
        Ok(())
    }

    /// Takes what means nothing without the FP8 bytes of quantized weights out of what is written.
    fn use_up(&mut self) {
        for (name, weight) in std::mem::take(&mut self.companions) {
            let Some(tensor) = self.input.tensors().get(&name) else { continue };
            self.files[tensor.file].remove(&name);
            self.copied -= 1;
            let bytes = byte_len(&tensor.info) as u64;
            self.used_up.push(UsedUp { name: name.clone(), weight: weight.clone(), bytes });
            let reason = Reason::ScalesOf(weight);
            self.skipped.retain(|skipped| skipped.name != name);
            if tensor.info.shape.len() > 1 {
                self.skipped.push(Skipped { name, reason, bytes });
            }
        }
        self.skipped.sort_by(|a, b| a.name.cmp(&b.name));
    }

    /// Ties weights that share a global scale.
    fn tie(&mut self, request: &Request) {
        let recipe = request.recipe.as_ref().map_or(&[][..], |recipe| &recipe.tie);
        let ties = [&request.ties[..], recipe].concat();
        let mut groups: BTreeMap<_, Vec<usize>> = BTreeMap::new();
        for (index, weight) in self.weights.iter().enumerate() {
            let stem = weight.name.strip_suffix(".weight").unwrap_or(&weight.name);
            if let Some(key) = Key::of(stem, &ties).filter(|_| can_tie(&weight.options)) {
                groups.entry((key, weight.expert, weight.shape.k())).or_default().push(index);
            }
        }
        let groups: Vec<_> = groups.into_values().collect();
        for mut group in groups {
            let transform = self.weights[group[0]].options.transform.clone();
            group.retain(|index| self.weights[*index].options.transform == transform);
            if group.len() > 1 {
                let sources = group.iter().map(|index| self.weights[*index].source.clone());
                let tied = Tied::new(sources.collect());
                group.iter().for_each(|index| self.weights[*index].tied = Some(tied.clone()));
            }
        }
    }

    /// Brings weights together that take the same input, by the calibration.
    fn share(&mut self) -> Result<(), Error> {
        let mut groups: Vec<Vec<usize>> = vec![];
        for (index, weight) in self.weights.iter().enumerate() {
            let Some(pipeline) = &weight.pipeline else { continue };
            let known = pipeline.expect_layer(&weight.prefix);
            known.map_err(|error| Error::Weight {
                name: weight.name.clone(),
                error: Box::new(error),
            })?;
            let same = |group: &&mut Vec<usize>| {
                let first = &self.weights[group[0]];
                first.shape.k() == weight.shape.k()
                    && pipeline.shares(&first.prefix, &weight.prefix)
            };
            match groups.iter_mut().find(same) {
                Some(group) => group.push(index),
                None => groups.push(vec![index]),
            }
        }
        for group in groups {
            let sources = group.iter().map(|index| self.weights[*index].source.clone());
            let sources: Arc<[DenseSource]> = sources.collect();
            for index in group {
                self.weights[index].siblings = Some(sources.clone());
            }
        }
        Ok(())
    }

    fn finish(mut self, request: &Request) -> Result<Plan, Error> {
        if self.weights.is_empty() {
            return Err(nothing(self.input, self.skipped).into());
        }
        let misfits = || self.skipped.iter().filter(|skipped| skipped.reason.is_misfit());
        if request.strict && misfits().next().is_some() {
            let (count, examples) = (misfits().count(), misfits().take(EXAMPLES));
            let examples = examples.map(|s| (s.name.clone(), s.reason.clone())).collect();
            return Err(ModelError::Strict { count, examples }.into());
        }
        self.tie(request);
        self.share()?;
        self.weights.sort_by_key(|w| w.tensor.file); // stable: by name within a file
        let metadata = metadata_of(&self.weights)?;
        let mut layouts = vec![];
        for (position, tensors) in self.files.into_iter().enumerate() {
            let mut all = self.input.files()[position].1.metadata().clone();
            all.extend(metadata.clone());
            let own = self.weights.iter().filter(|w| w.tensor.file == position);
            orientation::record(&mut all, own.filter_map(Weight::orientation));
            let tensors: Vec<Planned> =
                tensors.into_iter().map(|(name, (dtype, shape))| (name, dtype, shape)).collect();
            let layout = Arrangement::new(tensors, &all);
            layouts.push(layout.map_err(|refusal| Error::checkpoint(self.input.path(), refusal))?);
        }
        let Draft { weights, skipped, copied, used_up, .. } = self;
        Ok(Plan { weights, skipped, copied, used_up, layouts, unmatched: vec![] })
    }
}

fn refuse_taken(input: &Checkpoint, prefix: &str) -> Result<(), ModelError> {
    let names = STATE_NAMES.map(|name| state::join(prefix, name));
    match names.into_iter().find(|name| input.tensors().contains_key(name)) {
        Some(taken) => Err(ModelError::Taken { taken, weight: state::join(prefix, "weight") }),
        None => Ok(()),
    }
}

/// The tensors of a layer's state.
fn new_tensors(
    prefix: &str,
    shape: PackedShape,
    options: &DenseOptions,
    pipeline: Option<&Pipeline>,
) -> Vec<(String, Dtype, Vec<usize>)> {
    let name = |name| state::join(prefix, name);
    let scale_dtype = state::scale_dtype(shape.scale_type());
    let mut tensors = vec![
        (name(state::E2M1), Dtype::U8, vec![shape.rows(), shape.row_bytes()]),
        (name(state::SCALE_QUANT), scale_dtype, vec![shape.rows(), shape.row_groups()]),
        (name(state::WEIGHT_GLOBAL_SCALE), Dtype::F32, vec![]),
        (name(state::ACTIVATION_GLOBAL_SCALE), Dtype::F32, vec![]),
        (name(state::ACTIVATION_SCALE_SCALE), Dtype::F32, vec![]),
    ];
    if options.activations != ActivationEncoding::Own {
        tensors.push((name(state::ACTIVATION_ENCODING), Dtype::U8, vec![]));
    }
    let fixed = options.transform.as_ref().map(|t| (t.values().float_type(), t.shape().to_vec()));
    let own = pipeline.and_then(|pipeline| pipeline.transform_shape(shape.k()));
    if let Some((ty, shape)) = own.or(fixed) {
        tensors.push((name(state::TRANSFORM), state::float_dtype(ty), shape));
    }
    tensors
}

/// What the header says of the whole file: format, scale rule and transform, or that there are
/// several.
fn metadata_of(weights: &[Weight]) -> Result<Vec<(String, String)>, Error> {
    let (mut format, mut transform, mut rule) = (None, None, None);
    let one = |known: &mut Option<String>, text: String| match known {
        Some(other) if *other != text => *known = Some("mixed".into()),
        _ => *known = Some(text),
    };
    let mut last: Option<&Arc<DenseOptions>> = None;
    for weight in weights {
        if last.is_some_and(|last| Arc::ptr_eq(last, &weight.options)) {
            continue;
        }
        last = Some(&weight.options);
        let view = weight.options.transform.as_ref().map(StoredTransform::view).transpose()?;
        one(&mut format, weight.options.format.to_string());
        one(
            &mut transform,
            match (&weight.pipeline, view) {
                (Some(pipeline), _) => pipeline.transform_name(),
                (None, view) => view.map_or("none".into(), |t| format!("hadamard{}", t.block())),
            },
        );
        one(&mut rule, weight.options.scale_rule.to_string());
    }
    Ok([
        ("exact_fp4.format", format.unwrap_or_default()),
        ("exact_fp4.scale_rule", rule.unwrap_or_default()),
        ("exact_fp4.transform", transform.unwrap_or_default()),
        ("exact_fp4.version", env!("CARGO_PKG_VERSION").to_string()),
    ]
    .map(|(key, value)| (key.to_string(), value))
    .to_vec())
}

/// Why there is nothing to quantize.
fn nothing(input: &Checkpoint, skipped: Vec<Skipped>) -> ModelError {
    let path = input.path().to_path_buf();
    let codes = |name: &&String| name.rsplit('.').next() == Some(state::E2M1);
    if let Some(name) = input.tensors().keys().find(codes) {
        return ModelError::QuantizedAlready { path, name: name.clone() };
    }
    // What might have been quantized, before what no linear weight is like.
    let like = |skipped: &&Skipped| !matches!(skipped.reason, Reason::Name | Reason::Rank(_));
    let close = || skipped.iter().filter(like);
    let examples = close().take(EXAMPLES).map(|s| (s.name.clone(), s.reason.clone()));
    match close().next() {
        None => ModelError::NoWeight { path },
        Some(_) => ModelError::Nothing {
            path,
            examples: examples.collect(),
            more: close().count() > EXAMPLES,
        },
    }
}
