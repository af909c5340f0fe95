//! Checkpoints, of any layout, read by slices.

use std::cell::OnceCell;
use std::sync::Arc;

use fp4_core::{Format, ScaleRule, ScaleType};
use js_sys::{Float32Array, Object};
use quant_linear::checkpoint::{self, ByteSource};
use quant_linear::layout::{self, Layers};
use quant_linear::model::inspect::Contents;
use quant_linear::model::report::{Event, Report};
use quant_linear::model::verify;
use quant_linear::model::view::{self, Choice, Map, View};
use quant_linear::{LoadOptions, Runtime};
use serde::Serialize;
use wasm_bindgen::prelude::*;

use crate::arguments::{Options, area, count, json, list, set, text, transform};
use crate::call::{Answer, Failure, Progress, run};
use crate::source::Source;

/// How layers are read.
fn load_options(value: &JsValue) -> Result<LoadOptions, Failure> {
    let options = Options::new(value, "options", &["layout", "scaleType"])?;
    let layout = match options.get("layout") {
        None => None,
        Some((value, name)) => {
            let given = text(&value, &name)?;
            let known = || {
                let names: Vec<_> = layout::ALL.iter().map(|layout| layout.name()).collect();
                let (given, names) = (given.escape_debug(), names.join(", "));
                Failure::new(format!("{name} is `{given}`, no layout; give one of {names}"))
            };
            Some(layout::named(&given).ok_or_else(known)?)
        }
    };
    let scale_type = options.named::<ScaleType>("scaleType")?;
    Ok(LoadOptions { layout, scale_type, ..LoadOptions::default() })
}

fn sources(files: &JsValue) -> Result<Vec<Arc<dyn ByteSource>>, Failure> {
    let files = list(files, "files")?;
    files.iter().map(|file| Ok(Arc::new(Source::new(file)?) as Arc<dyn ByteSource>)).collect()
}

/// An open checkpoint: headers only; tensors are read when they are asked for.
#[wasm_bindgen]
pub struct Checkpoint {
    pub(crate) checkpoint: checkpoint::Checkpoint,
    pub(crate) options: LoadOptions,
    /// Found when the first view asks: a model of many experts has a hundred thousand.
    layers: OnceCell<Layers>,
}

impl Checkpoint {
    fn with_layers(&self) -> Result<(&checkpoint::Checkpoint, &Layers), Failure> {
        let layers = match self.layers.get() {
            Some(found) => found,
            None => {
                let found = Layers::find(&self.checkpoint, &self.options)?;
                self.layers.get_or_init(|| found)
            }
        };
        Ok((&self.checkpoint, layers))
    }
}

/// Verifies files that may be no checkpoint: one whose parts are broken is a finding.
#[cfg(feature = "kernels")]
#[wasm_bindgen(js_name = verifyFiles)]
pub fn verify_files(files: &JsValue, options: &JsValue, progress: &JsValue) -> Answer<JsValue> {
    run(|| {
        let (files, options) = (sources(files)?, load_options(options)?);
        let progress = Progress::of(progress)?;
        let (path, folder) = checkpoint::Checkpoint::meant(&files)?;
        let open = checkpoint::Checkpoint::open_sources(files);
        let mut on = |p: verify::Progress<'_>| progress.tell(p.done, p.total, p.module);
        let report = verify::opened(open, folder, &options, &mut on)?;
        json(&report.document(&path))
    })
}

fn report_of(a: &Checkpoint, b: Option<&Checkpoint>, progress: &JsValue) -> Answer<JsValue> {
    #[derive(Serialize)]
    struct Numbers<'a> {
        command: &'static str,
        fp4_version: &'static str,
        #[serde(flatten)]
        report: &'a Report,
    }
    run(|| {
        let progress = Progress::of(progress)?;
        let (mut done, mut total, mut name) = (0, 0, String::new());
        let mut on = |event: Event<'_>| {
            match event {
                Event::Work(bytes) => total = bytes,
                Event::Working(working) => name = working.into(),
                Event::Bytes(bytes) => done += bytes,
            }
            progress.tell(done, total, &name);
        };
        let b = b.map(|b| &b.checkpoint);
        let report = Report::new(&a.checkpoint, b, &a.options, &mut on)?;
        let fp4_version = env!("CARGO_PKG_VERSION");
        json(&Numbers { command: "report", fp4_version, report: &report })
    })
}

#[wasm_bindgen]
impl Checkpoint {
    /// Opens one file, or the files of a folder.
    #[wasm_bindgen(constructor)]
    pub fn new(files: &JsValue, options: &JsValue) -> Answer<Checkpoint> {
        run(|| {
            let (files, options) = (sources(files)?, load_options(options)?);
            let checkpoint = checkpoint::Checkpoint::open_sources(files)?;
            Ok(Checkpoint { checkpoint, options, layers: OnceCell::new() })
        })
    }

    /// What the headers say: files, layers, tensors.
    pub fn contents(&self) -> Answer<JsValue> {
        run(|| json(&Contents::new(&self.checkpoint, &self.options)?.document()))
    }

    /// As `fp4 verify --json`.
    pub fn verify(&self, progress: &JsValue) -> Answer<JsValue> {
        run(|| {
            let progress = Progress::of(progress)?;
            let mut on = |p: verify::Progress<'_>| progress.tell(p.done, p.total, p.module);
            let report = verify::checkpoint(&self.checkpoint, &self.options, &mut on)?;
            json(&report.document(self.checkpoint.path()))
        })
    }

    /// As `fp4 report --json`, on this one alone.
    pub fn report(&self, progress: &JsValue) -> Answer<JsValue> {
        report_of(self, None, progress)
    }

    /// As `fp4 report THIS OTHER --json`.
    #[wasm_bindgen(js_name = reportAgainst)]
    pub fn report_against(&self, other: &Checkpoint, progress: &JsValue) -> Answer<JsValue> {
        report_of(self, Some(other), progress)
    }

    /// One tensor or layer in depth.
    pub fn layer(&self, name: &JsValue, progress: &JsValue) -> Answer<JsValue> {
        self.view(name, None, progress)
    }

    /// A layer in depth, with its error against another checkpoint.
    #[wasm_bindgen(js_name = layerAgainst)]
    pub fn layer_against(
        &self,
        name: &JsValue,
        other: &Checkpoint,
        progress: &JsValue,
    ) -> Answer<JsValue> {
        self.view(name, Some(other), progress)
    }

    /// A dense tensor, quantized on trial.
    pub fn trial(
        &self,
        name: &JsValue,
        choices: &JsValue,
        matrix: &JsValue,
        progress: &JsValue,
    ) -> Answer<JsValue> {
        run(|| {
            let (name, matrix) = (text(name, "name")?, count(matrix, "matrix")?);
            let progress = Progress::of(progress)?;
            let choices = list(choices, "choices")?;
            let choices: Vec<_> = choices.iter().map(choice).collect::<Result<_, _>>()?;
            let backends = Runtime::shared().backends();
            let mut on = |done, total| progress.tell(done, total, &name);
            let from = (&self.checkpoint, &*name, matrix);
            let trials = view::trials(from, &choices, backends, &mut on)?;
            let out = js_sys::Array::new();
            for trial in &trials {
                out.push(&with_map(trial, &trial.map)?);
            }
            Ok(out.into())
        })
    }

    /// Some values, dequantized.
    pub fn values(
        &self,
        name: &JsValue,
        row: &JsValue,
        col: &JsValue,
        rows: &JsValue,
        cols: &JsValue,
    ) -> Answer<Float32Array> {
        run(|| {
            let name = text(name, "name")?;
            let first = [count(row, "row")?, count(col, "col")?];
            let size = [count(rows, "rows")?, count(cols, "cols")?];
            area(size[0], size[1])?;
            let values = view::values(self.with_layers()?, &name, first, size)?;
            Ok(Float32Array::from(&values[..]))
        })
    }

    fn view(
        &self,
        name: &JsValue,
        against: Option<&Checkpoint>,
        progress: &JsValue,
    ) -> Answer<JsValue> {
        run(|| {
            let (name, progress) = (text(name, "name")?, Progress::of(progress)?);
            let mut on = |done, total| progress.tell(done, total, &name);
            let against = against.map(Checkpoint::with_layers).transpose()?;
            let view = View::new(self.with_layers()?, &name, against, &self.options, &mut on)?;
            with_map(&view, &view.map)
        })
    }
}

// What only the package has.
#[cfg(feature = "kernels")]
#[wasm_bindgen]
impl Checkpoint {
    /// As `fp4 inspect --json`.
    pub fn inspect(&self, progress: &JsValue) -> Answer<JsValue> {
        run(|| {
            let progress = Progress::of(progress)?;
            let inspection = quant_linear::model::inspect::Inspection::new(
                &self.checkpoint,
                &self.options,
                &mut |p| {
                    progress.tell(p.done, p.total, p.module);
                },
            )?;
            json(&inspection.document())
        })
    }
}

/// A choice of a trial: `format`, and what else is not as usual.
fn choice(value: &JsValue) -> Result<Choice, Failure> {
    let options = Options::new(value, "a choice", &["format", "rule", "transform"])?;
    options.needed("format")?;
    Ok(Choice {
        format: options.named::<Format>("format")?.unwrap_or(Format::NvFp4),
        rule: options.named::<ScaleRule>("rule")?.unwrap_or(quant_linear::DenseOptions::SCALE_RULE),
        transform: transform(&options, "transform")?,
    })
}

/// Numbers as JSON, and the planes of their map as arrays.
fn with_map(numbers: &impl Serialize, map: &Map) -> Result<JsValue, Failure> {
    let object = json(numbers)?;
    let planes: JsValue = Object::new().into();
    for (name, plane) in &map.planes {
        set(&planes, name, Float32Array::from(&plane[..]));
    }
    let drawn = js_sys::Reflect::get(&object, &"map".into());
    let drawn = drawn.map_err(|_| Failure::new("a view has no map; please report it"))?;
    set(&drawn, "planes", planes);
    Ok(object)
}
