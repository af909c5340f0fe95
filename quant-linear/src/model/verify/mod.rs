//! What is wrong with a quantized checkpoint, or looks wrong: `fp4 verify`.
//!
//! ```text
//! PATH cannot be read, or is no checkpoint                    an error of this call
//! a checkpoint whose parts are broken or disagree             one finding, `broken-file`: nothing
//!                                                             more can be said
//! else   headers    layers that are not whole, parts of none, empty tensors      structure
//!        config     what it says of layers against what they are                 config
//!        bytes      every code and scale, tile by tile                           bytes
//!        meaning    what bytes mean that are legal and improbable                suspect
//! ```
//!
//! | kind | severity | |
//! |---|---|---|
//! | `broken-file` | error | cut short, a shard or a tensor missing, an index that disagrees |
//! | `broken-layer` | error | a tensor missing, a wrong type or shape, an illegal scalar |
//! | `ambiguous-layout` | error | two layouts could explain the tensors |
//! | `no-layers` | warning | nothing here is quantized to FP4 |
//! | `stray-tensor` | warning | named like a part of a layer, and part of none |
//! | `empty-tensor` | warning | a dimension is zero |
//! | `fused-scales` | warning | projections that engines fuse have different global scales |
//! | `config-unreadable` | error | a config beside the tensors cannot be read |
//! | `config-layout` | error | header or config say another layout |
//! | `config-format` | error | the config says another group size, other bits or another format |
//! | `config-ignored` | error | the config lists a quantized module as not quantized |
//! | `config-absent` | error | config or header list a layer that is not there, or not quantized |
//! | `not-finite` | error | scale bytes under which values are NaN or infinite |
//! | `nan-scale` | warning | NaN scale bytes that this layout's reader takes for a number |
//! | `negative-scale` | error | scale bytes with a sign (a warning where the reader drops it) |
//! | `minus-zero` | warning | code 8 where a format has none |
//! | `zero-tensor`, `zero-rows`, `zero-groups` | warning | nothing but zeros |
//! | `padding-rows` | note | rows of zeros at the end, of a layout that pads |
//! | `absurd-values` | warning | a largest value above 1e4 or below 1e-6, typical ones as far off |
//! | `absurd-scalar` | warning | a global scale of activations outside 1e-9 to 1e3 |
//! | `unused-codes`, `saturated-codes` | warning | scales too large or too small for their codes |
//! | `suspect-*` | warning | legal, and improbable: see `suspect` |
//!
//! A suspicion says how strong its evidence is. It never makes an error: bytes cannot prove it.

mod bytes;
mod config;
mod order;
mod pairs;
mod structure;
mod suspect;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use serde_json::{Value, json};

use crate::checkpoint::Checkpoint;
use crate::checkpoint::tiles::{DEFAULT_BLOCK_BYTES, tiles};
use crate::error::{Error, GgufError, Refusal};
use crate::layout::LoadOptions;
use crate::layout::{Layer, Layers};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The checkpoint is broken.
    Error,
    /// It may be.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    /// As reports have it.
    pub fn name(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// Something found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What it is; the list is above.
    pub kind: &'static str,
    /// The module or tensor.
    pub module: Option<String>,
    /// What was found, with numbers, and what would mend it.
    pub message: String,
}

impl Finding {
    fn new(severity: Severity, kind: &'static str, module: &str, message: String) -> Self {
        Finding { severity, kind, module: Some(module.to_string()), message }
    }

    fn error(kind: &'static str, module: &str, message: String) -> Self {
        Self::new(Severity::Error, kind, module, message)
    }

    fn warning(kind: &'static str, module: &str, message: String) -> Self {
        Self::new(Severity::Warning, kind, module, message)
    }

    fn of_all(severity: Severity, kind: &'static str, message: String) -> Self {
        Finding { severity, kind, module: None, message }
    }
}

/// All that was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Layers by layout.
    pub layouts: BTreeMap<&'static str, usize>,
    /// Layers that were read.
    pub layers: usize,
    /// What was found, the worst first.
    pub findings: Vec<Finding>,
}

impl Report {
    /// How many findings are as bad as this.
    pub fn count(&self, severity: Severity) -> usize {
        self.findings.iter().filter(|finding| finding.severity == severity).count()
    }

    /// Everything on the checkpoint at a path, as `fp4 verify --json` prints it.
    pub fn document(&self, path: &Path) -> Value {
        json!({
            "command": "verify",
            "path": path.to_string_lossy(),
            "layouts": self.layouts,
            "layers": self.layers,
            "findings": self.findings,
            "errors": self.count(Severity::Error),
            "warnings": self.count(Severity::Warning),
        })
    }
}

/// How far it is.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The layer that is being read.
    pub module: &'a str,
    /// Bytes of layers that have been read.
    pub done: u64,
    /// Bytes of all layers.
    pub total: u64,
}

/// Verifies the checkpoint at a path, with the config there or another one.
///
/// # Errors
/// A path that cannot be read or is no checkpoint, a config given that cannot be read, and a file
/// that cannot be read to its end.
pub fn path(
    path: &Path,
    config: Option<&Path>,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let mut open = Checkpoint::open(path);
    // Again with the other config, whose own errors are the caller's.
    if config.is_some() && open.is_ok() {
        open = Ok(Checkpoint::open_with(path, config)?);
    }
    opened(open, path.is_dir(), options, progress)
}

/// Verifies what opening came to: a checkpoint whose parts are broken is a finding.
///
/// # Errors
/// As [`path`].
pub fn opened(
    open: Result<Checkpoint, Error>,
    folder: bool,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    match open {
        Ok(opened) => checkpoint(&opened, options, progress),
        Err(error) if is_broken(&error, folder) => {
            let finding = Finding::of_all(Severity::Error, "broken-file", error.to_string());
            Ok(Report { findings: vec![finding], ..Report::default() })
        }
        Err(error) => Err(error),
    }
}

/// Is this a checkpoint whose parts are broken? Else it is none, or cannot be read at all.
fn is_broken(error: &Error, folder: bool) -> bool {
    match error {
        // What the index names should be there, and whole.
        Error::Shard { .. } => true,
        Error::Checkpoint { path, refusal } => match &**refusal {
            // The header of any other file than one that calls itself safetensors says nothing.
            Refusal::TooShort { .. }
            | Refusal::HeaderLen { .. }
            | Refusal::HeaderText(_)
            | Refusal::Header(_) => {
                folder || path.extension().is_some_and(|ext| ext == "safetensors")
            }
            Refusal::Gguf(error) => !matches!(error, GgufError::Version(_)),
            Refusal::System(_)
            | Refusal::NoName
            | Refusal::NotPlain(_)
            | Refusal::TooLong { .. }
            | Refusal::TooLarge { .. }
            | Refusal::OtherKind { .. }
            | Refusal::NoModel
            | Refusal::NothingGiven
            | Refusal::GivenDeeper(_)
            | Refusal::GivenTwice
            | Refusal::ManyFiles(_)
            | Refusal::ManyIndexes(_)
            | Refusal::Outside { .. } => false,
            _ => true,
        },
        _ => false,
    }
}

/// Verifies an open checkpoint.
///
/// # Errors
/// A file that cannot be read to its end.
pub fn checkpoint(
    checkpoint: &Checkpoint,
    options: &LoadOptions,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<Report, Error> {
    let layers = match Layers::find(checkpoint, options) {
        Ok(layers) => layers,
        Err(error) => {
            let finding = Finding::of_all(Severity::Error, "ambiguous-layout", error.to_string());
            return Ok(Report { findings: vec![finding], ..Report::default() });
        }
    };
    let mut report = Report { layers: layers.good.len(), ..Report::default() };
    for layer in layers.good.values() {
        *report.layouts.entry(layer.layout.name()).or_default() += 1;
    }
    let findings = &mut report.findings;
    structure::check(checkpoint, &layers, findings);
    config::check(checkpoint, &layers, findings);
    let total = layers.good.values().map(Layer::byte_len).sum();
    let (mut done, mut all) = (0, suspect::All::default());
    for (module, layer) in &layers.good {
        progress(Progress { module, done, total });
        let seen = seen(checkpoint, layer)?;
        seen.check(checkpoint, layer, findings);
        suspect::of_layer(layer, &seen, findings);
        if let Some(finding) = order::check(checkpoint, layer)? {
            findings.push(finding);
        }
        all.add(layer, &seen, findings);
        done += layer.byte_len();
    }
    all.finish(findings);
    // Stable: those of one severity stay in the order of the checks and modules.
    findings.sort_by_key(|finding| finding.severity);
    Ok(report)
}

/// Reads a layer.
fn seen(checkpoint: &Checkpoint, layer: &Layer) -> Result<bytes::Seen, Error> {
    let (shape, decoder) = (layer.shape, layer.decoder());
    let mut seen = bytes::Seen::new(shape);
    // Codes are half a byte; one byte an element keeps the tiles below the limit.
    for tile in tiles(shape.rows(), shape.k(), 1, DEFAULT_BLOCK_BYTES) {
        seen.add(&layer.packed(checkpoint, &tile)?, &tile, &decoder);
    }
    Ok(seen)
}
