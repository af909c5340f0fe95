//! What becomes of every tensor, decided from the headers before anything is written.

use std::collections::BTreeMap;
use std::ops::Range;

use fp4_core::{FloatType, PackedShape};
use safetensors::Dtype;

use crate::checkpoint::{Arrangement, Checkpoint, Tensor, byte_len};
use crate::error::{Error, ModelError, Reason};
use crate::layer::{DenseOptions, StoredTransform, state};
use crate::layout::STATE_NAMES;
use crate::model::select::{EXAMPLES, Fate, Rule};

/// A weight to be quantized.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Its name in the input.
    pub name: String,
    /// Its layer's prefix in the output.
    pub prefix: String,
    /// Where it is in the input.
    pub tensor: Tensor,
    /// The type of its values.
    pub float_type: FloatType,
    /// Its shape when packed.
    pub shape: PackedShape,
}

/// The whole plan.
#[derive(Debug)]
pub struct Plan {
    /// Weights to be quantized, by file and name.
    pub weights: Vec<Weight>,
    /// What looks like a linear weight and is copied, with the reason.
    pub skipped: Vec<(String, Reason)>,
    /// Number of tensors that are copied, the skipped ones included.
    pub copied: usize,
    /// One layout for each file of the input.
    pub layouts: Vec<Arrangement>,
    /// Passes over each weight: two if the global scale needs its largest magnitude first.
    pub passes: u64,
}

impl Plan {
    /// Plans the quantization of `input`.
    ///
    /// # Errors
    /// Globs that do not parse or find nothing to quantize, tensors that are included by their full
    /// names and that cannot be quantized, nothing to quantize, or names that are taken.
    pub fn new(
        input: &Checkpoint,
        options: &DenseOptions,
        include: &[String],
        exclude: &[String],
    ) -> Result<Self, Error> {
        if input.gguf().is_some() {
            return Err(ModelError::FromGguf(input.path().to_path_buf()).into());
        }
        let transform = options.transform.as_ref().map(StoredTransform::view).transpose()?;
        let block = transform.map(|t| t.block());
        let rule = Rule::new(include, exclude, options.format, block)?;
        let tensors = input.tensors().iter();
        rule.check_includes(tensors.map(|(name, tensor)| (name.as_str(), &tensor.info)))?;
        let mut plan = Plan {
            weights: vec![],
            skipped: vec![],
            copied: 0,
            layouts: vec![],
            passes: if options.needs_amax() { 2 } else { 1 },
        };
        let mut planned: Vec<Vec<_>> = input.files().iter().map(|_| vec![]).collect();
        let mut header_lens = vec![0; planned.len()];
        for (name, tensor) in input.tensors() {
            match rule.decide(name, &tensor.info)? {
                Fate::Quantize { prefix, rows, k, float_type } => {
                    let shape = PackedShape::of(options.format, rows, k)?;
                    refuse_taken(input, &prefix)?;
                    let new = new_tensors(&prefix, shape, options);
                    // Six names for one: refused before they fill the memory.
                    header_lens[tensor.file] += Arrangement::header_len(&new);
                    Arrangement::check_header(header_lens[tensor.file])
                        .map_err(|refusal| Error::checkpoint(input.path(), refusal))?;
                    planned[tensor.file].extend(new);
                    let (name, tensor) = (name.clone(), tensor.clone());
                    plan.weights.push(Weight { name, prefix, tensor, float_type, shape });
                    continue;
                }
                Fate::Skip(reason) => plan.skipped.push((name.clone(), reason)),
                Fate::Copy => {}
            }
            plan.copied += 1;
            let info = &tensor.info;
            planned[tensor.file].push((name.clone(), info.dtype, info.shape.clone()));
        }
        if plan.weights.is_empty() {
            return Err(nothing(input, plan.skipped).into());
        }
        plan.weights.sort_by_key(|w| w.tensor.file); // stable: by name within a file
        for ((_, file), tensors) in input.files().iter().zip(planned) {
            let mut metadata = file.metadata().clone();
            metadata.extend(metadata_of(options, block));
            let layout = Arrangement::new(tensors, &metadata);
            plan.layouts.push(layout.map_err(|refusal| Error::checkpoint(input.path(), refusal))?);
        }
        Ok(plan)
    }

    /// The weights of a file, among all.
    pub fn weights_of(&self, file: usize) -> Range<usize> {
        let start = self.weights.partition_point(|w| w.tensor.file < file);
        start..self.weights.partition_point(|w| w.tensor.file <= file)
    }

    /// Bytes to be read, over all passes.
    pub fn work(&self, input: &Checkpoint) -> u64 {
        let all: u64 = input.tensors().values().map(|t| byte_len(&t.info) as u64).sum();
        let weights: u64 = self.weights.iter().map(|w| byte_len(&w.tensor.info) as u64).sum();
        all + (self.passes - 1) * weights
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
    if let Some(t) = &options.transform {
        let dtype = state::float_dtype(t.values().float_type());
        tensors.push((name(state::TRANSFORM), dtype, t.shape().to_vec()));
    }
    tensors
}

fn metadata_of(options: &DenseOptions, block: Option<usize>) -> [(String, String); 3] {
    let transform = block.map_or("none".into(), |block| format!("hadamard{block}"));
    [
        ("exact_fp4.format", options.format.to_string()),
        ("exact_fp4.transform", transform),
        ("exact_fp4.version", env!("CARGO_PKG_VERSION").to_string()),
    ]
    .map(|(key, value)| (key.to_string(), value))
}

/// Why there is nothing to quantize.
fn nothing(input: &Checkpoint, mut skipped: Vec<(String, Reason)>) -> ModelError {
    let path = input.path().to_path_buf();
    let codes = |name: &&String| name.rsplit('.').next() == Some(state::E2M1);
    if let Some(name) = input.tensors().keys().find(codes) {
        return ModelError::QuantizedAlready { path, name: name.clone() };
    }
    let more = skipped.len() > EXAMPLES;
    skipped.truncate(EXAMPLES);
    match skipped.is_empty() {
        true => ModelError::NoWeight { path },
        false => ModelError::Nothing { path, examples: skipped, more },
    }
}
