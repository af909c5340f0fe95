//! Checkpoints of any layout, and quantizing one.

use std::collections::BTreeMap;
use std::path::PathBuf;

use fp4_core::{Format, ScaleRule, ScaleType};
use pyo3::prelude::*;
use pyo3::types::PyDict;
use quant_linear::atomic::Kind;
use quant_linear::checkpoint::{self, Listing, TensorSource, list};
use quant_linear::layout::Layers;
use quant_linear::model::plan::Plan;
use quant_linear::model::quantize::{Engine, Event};
use quant_linear::model::recipe::{Recipe, RecipeRule};
use quant_linear::model::select::Request;
use quant_linear::model::stream::{Memory, Output};
use quant_linear::{DenseOptions, QuantLinear, Runtime, StoredTransform};

use crate::call;
use crate::error::{Failure, parse};
use crate::layer::Layer;
use crate::state::{Given, Options, State, Taken, taken, write};

/// An open checkpoint: headers only; tensors are read when they are asked for.
#[pyclass(frozen, module = "exact_fp4._core")]
pub(crate) struct Checkpoint(checkpoint::Checkpoint);

#[pymethods]
impl Checkpoint {
    /// Opens a file or a folder; `config` where its config.json is elsewhere.
    #[new]
    #[pyo3(signature = (path, config = None))]
    fn new(py: Python<'_>, path: PathBuf, config: Option<PathBuf>) -> PyResult<Self> {
        call::run(py, || {
            let opened = checkpoint::Checkpoint::open_with(&path, config.as_deref())?;
            Ok(Checkpoint(opened))
        })
    }

    /// Where it is.
    #[getter]
    fn path(&self) -> PathBuf {
        self.0.path().to_path_buf()
    }

    /// Name of the type, and shape in elements, of every tensor by name.
    fn tensors(&self) -> BTreeMap<String, (String, Vec<usize>)> {
        let tensors = self.0.tensors().iter();
        tensors.map(|(name, t)| (name.clone(), (t.type_name(), t.shape()))).collect()
    }

    /// True if there is a tensor of this name.
    fn has(&self, name: &str) -> bool {
        self.0.tensors().contains_key(name)
    }

    /// Type, shape and bytes of a tensor; blocks of GGUF's are U8.
    fn tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Taken<'py>> {
        let (dtype, shape, data) = call::run(py, || {
            let info = &self.0.tensor(name)?.info;
            Ok((info.dtype, info.shape.clone(), self.0.bytes(name)?.into_owned()))
        })?;
        Ok(taken(py, dtype, shape, data))
    }

    /// The quantized layers by module: layout, format, out, in, experts; what is wrong with others.
    fn layers(
        &self,
        py: Python<'_>,
        options: Options,
    ) -> PyResult<(
        BTreeMap<String, (&'static str, Option<&'static str>, usize, usize, Option<usize>)>,
        BTreeMap<String, String>,
    )> {
        let options = options.read()?;
        call::run(py, || {
            let found = Layers::find(&self.0, &options)?;
            let good = found.good.iter().map(|(module, l)| {
                let format = l.format().map(Format::name);
                let about = (l.layout.name(), format, l.out_features(), l.shape.k(), l.experts);
                (module.clone(), about)
            });
            let bad = found.bad.iter().map(|(module, error)| (module.clone(), error.to_string()));
            Ok((good.collect(), bad.collect()))
        })
    }

    /// The layer of a module; an expert of a 3-D weight `NAME` is `NAME.0`, `NAME.1`, ...
    fn layer(&self, py: Python<'_>, module: &str, options: Options) -> PyResult<Layer> {
        let options = options.read()?;
        call::run(py, || Ok(Layer(QuantLinear::from_state(&self.0, module, &options)?)))
    }

    /// All layers by module, experts one by one.
    fn load_all<'py>(&self, py: Python<'py>, options: Options) -> PyResult<Bound<'py, PyDict>> {
        let options = options.read()?;
        let layers =
            call::run(py, || Ok(QuantLinear::load_all(&self.0, Runtime::shared(), &options)?))?;
        let dict = PyDict::new(py);
        for (module, layer) in layers {
            dict.set_item(module, Layer(layer).into_pyobject(py)?)?;
        }
        Ok(dict)
    }
}

/// How a checkpoint is quantized, by name.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub(crate) struct How {
    format: Option<String>,
    recipe: Option<String>,
    include: Vec<String>,
    exclude: Vec<String>,
    transform_block: Option<usize>,
    scale_rule: String,
    weight_global_scale: Option<f32>,
    activation_global_scale: Option<f32>,
    activation_encoding: String,
    strict: bool,
}

impl How {
    /// What is asked of the library: without a format, what no rule matches stays dense.
    fn request(&self) -> Result<Request, Failure> {
        let format = self.format.as_deref().map(parse::<Format>).transpose()?;
        let mut recipe = self.recipe.as_deref().map(Recipe::parse).transpose()?;
        if format.is_none() {
            let Some(recipe) = &mut recipe else {
                return Err(Failure::new("give a format, mxfp4 or nvfp4, or a recipe"));
            };
            if let Some(open) = recipe.rules.iter().position(|rule| rule.format.is_none()) {
                let rule = open + 1;
                let text = format!("rule {rule} of the recipe has no format; give it one");
                return Err(Failure::new(text));
            }
            if !self.include.is_empty() {
                return Err(Failure::new("include is given without a format; give one"));
            }
            recipe.rules.push(RecipeRule::all_dense());
        }
        let scale_rule = parse::<ScaleRule>(&self.scale_rule)?;
        // Without a format any that the rule is for will do: no weight is quantized by it.
        let any = match scale_rule.is_for(ScaleType::E4M3) {
            true => Format::NvFp4,
            false => Format::MxFp4,
        };
        let options = DenseOptions {
            transform: self.transform_block.map(StoredTransform::hadamard).transpose()?,
            scale_rule,
            weight_global_scale: self.weight_global_scale,
            activation_global_scale: self.activation_global_scale,
            activations: self.activation_encoding.parse()?,
            ..DenseOptions::new(format.unwrap_or(any))
        };
        // Judged before anything is read.
        options.weight_spec(1.0)?;
        options.activations.spec(options.activation_spec()?)?;
        Ok(Request {
            include: self.include.clone(),
            exclude: self.exclude.clone(),
            recipe,
            strict: self.strict,
            ..Request::new(options)
        })
    }
}

/// What became of a weight: name, module, format, global scale, what the user should know.
type Done = (String, String, &'static str, f32, Option<String>);

/// Quantizes the linear weights of a checkpoint to a new file or folder, as `fp4 quantize` does;
/// what became of each, and the tensors that stayed dense with the reasons.
#[pyfunction]
pub(crate) fn quantize_checkpoint(
    py: Python<'_>,
    input: PathBuf,
    output: PathBuf,
    how: How,
) -> PyResult<(Vec<Done>, Vec<(String, String)>)> {
    let request = how.request()?;
    call::run(py, || {
        let input = checkpoint::Checkpoint::open(&input)?;
        let listing = match input.is_folder() {
            true => list(input.path(), &input.own_names())?,
            false => Listing::default(),
        };
        let plan = Plan::new(&input, &request)?;
        let backends = Runtime::shared().backends().clone();
        let engine = Engine { input: &input, backends, memory: Memory::default() };
        let kind = if input.is_folder() { Kind::Folder } else { Kind::File };
        let output =
            Output { path: &output, kind, replace: false, resume: false, settings: vec![] };
        let mut done = Vec::new();
        engine.write(&plan, &listing, &output, &mut |event| {
            if let Event::Done(weight, _, outcome) = event {
                let format = weight.options.format.name();
                let warning = outcome.warning.map(|warning| warning.to_string());
                let (name, prefix) = (weight.name.clone(), weight.prefix.clone());
                done.push((name, prefix, format, outcome.global_scale, warning));
            }
        })?;
        let skipped = plan.skipped.iter();
        let skipped = skipped.map(|s| (s.name.clone(), s.reason.to_string())).collect();
        Ok((done, skipped))
    })
}

/// Writes tensors (type, shape and bytes by name) to a safetensors file, whole or not at all.
#[pyfunction]
pub(crate) fn write_safetensors(py: Python<'_>, path: PathBuf, tensors: Given<'_>) -> PyResult<()> {
    let state = State::of(&tensors)?;
    call::run(py, || write(path, &state))
}
