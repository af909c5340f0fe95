//! What layers lost in a run of `fp4 quantize` with a calibration, as its `--json` says it.
//!
//! ```text
//! {"command": "quantize", "dry_run": false,
//!  "tensors": [{"prefix": "l.0.up_proj", ..,
//!               "loss": {"weight": 0.002, "layer": 0.01, "before": 0.04}}, ..],
//!  "totals": {"mean_loss": {"weight": 0.002, "layer": 0.01, "before": 0.04}, ..}}
//! ```
//!
//! All else in the file is passed over. A loss is no number (`null`) or one that is at least 0.
//! A tensor that holds experts has the mean over them, which each of its layers `PREFIX.0`,
//! `PREFIX.1`, .. gets. Only tensors with a loss are kept, each under another prefix, so memory is
//! bounded by the file, and the file by [`MAX_LOSSES`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use crate::checkpoint::read_text;
use crate::error::{Error, ModelError};
use crate::layout::Layers;
use crate::model::quantize::LayerLoss;
use crate::model::report::{NAME_CHARS, PROBLEM_CHARS, Row, cut, shown};

/// The longest file of losses that is read, in bytes: it may name every tensor of the longest
/// header.
pub const MAX_LOSSES: u64 = 100_000_000;

/// The losses of a run's tensors.
#[derive(Debug, Clone)]
pub struct Losses {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
    mean: LayerLoss,
}

/// The losses that a report shows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Run {
    /// The file that they were read from.
    pub path: String,
    /// Tensors with a loss.
    pub tensors: usize,
    /// Quantized layers that have none, because the run did not make them or saw no inputs.
    pub layers_without: usize,
    /// The mean over all weights of the run, each expert one.
    pub mean: LayerLoss,
}

/// Why a file gives a report no losses.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum LossesError {
    /// It is something else.
    #[error(
        "it is no report of a quantization ({0}); give what `fp4 quantize --json` printed, whole"
    )]
    Shape(String),
    /// It is the report of another command.
    #[error("it is what `fp4 {0}` printed; give what `fp4 quantize --json` printed")]
    Command(String),
    /// It is the report of a run that did nothing.
    #[error("it is of a dry run, which quantizes nothing; give that of the run itself")]
    DryRun,
    /// It has no loss.
    #[error(
        "none of its tensors ({tensors}) has a loss: the run had no calibration, or one without \
         sample rows; give that of a run of `fp4 quantize` with --calib"
    )]
    Uncalibrated {
        /// How many tensors it has.
        tensors: usize,
    },
    /// It is of another checkpoint.
    #[error(
        "it has losses of {of} tensors, and {absent} of them are no quantized layers of what is \
         reported on, such as `{first}`; give that of the run that wrote this checkpoint"
    )]
    Absent {
        /// Tensors that are no layers.
        absent: usize,
        /// Tensors with a loss.
        of: usize,
        /// The prefix of one.
        first: String,
    },
}

/// The command that printed a report.
#[derive(Deserialize)]
struct Head {
    command: String,
}

/// The report of a quantization, as far as it is read.
#[derive(Deserialize)]
struct Printed {
    #[serde(default)]
    dry_run: bool,
    tensors: Tensors,
    totals: Totals,
}

#[derive(Deserialize)]
struct Totals {
    mean_loss: Option<Loss>,
}

/// Its tensors: how many, and those with a loss.
#[derive(Default)]
struct Tensors {
    count: usize,
    with: BTreeMap<String, Tensor>,
}

#[derive(Deserialize)]
struct Entry {
    prefix: String,
    experts: Option<u64>,
    loss: Option<Loss>,
}

#[derive(Debug, Clone, Copy)]
struct Tensor {
    experts: Option<u64>,
    loss: LayerLoss,
}

#[derive(Deserialize)]
struct Loss {
    #[serde(deserialize_with = "share")]
    weight: f64,
    #[serde(deserialize_with = "share")]
    layer: f64,
    #[serde(deserialize_with = "share")]
    before: f64,
}

/// A loss; NaN where JSON has none.
fn share<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    match Option::<f64>::deserialize(from)? {
        Some(loss) if loss < 0.0 => {
            Err(de::Error::custom(format_args!("a loss of {loss:e}, which is below 0")))
        }
        loss => Ok(loss.unwrap_or(f64::NAN)),
    }
}

impl From<Loss> for LayerLoss {
    fn from(Loss { weight, layer, before }: Loss) -> Self {
        LayerLoss { weight, layer, before }
    }
}

impl<'de> Deserialize<'de> for Tensors {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct List;
        impl<'de> Visitor<'de> for List {
            type Value = Tensors;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of tensors")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tensors, A::Error> {
                let mut tensors = Tensors::default();
                while let Some(Entry { prefix, experts, loss }) = list.next_element()? {
                    tensors.count += 1;
                    let Some(loss) = loss else { continue };
                    if tensors.with.contains_key(&prefix) {
                        let prefix = shown(&prefix);
                        return Err(de::Error::custom(format_args!("`{prefix}` twice")));
                    }
                    tensors.with.insert(prefix, Tensor { experts, loss: loss.into() });
                }
                Ok(tensors)
            }
        }
        from.deserialize_seq(List)
    }
}

impl Losses {
    /// Reads what `fp4 quantize --json` printed.
    ///
    /// # Errors
    /// A file that cannot be read, or has more than [`MAX_LOSSES`] bytes; [`LossesError`].
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text =
            read_text(path, MAX_LOSSES).map_err(|refusal| Error::checkpoint(path, refusal))?;
        Self::parse(path, &text).map_err(|error| told(path, error))
    }

    fn parse(path: &Path, text: &str) -> Result<Self, LossesError> {
        // An error quotes what it did not expect, which may be long.
        let shape = |e: serde_json::Error| LossesError::Shape(cut(&e.to_string(), PROBLEM_CHARS));
        // First, for other reports have other members.
        let head = serde_json::from_str::<Head>(text).map_err(shape)?;
        if head.command != "quantize" {
            return Err(LossesError::Command(shown(&head.command)));
        }
        let report: Printed = serde_json::from_str(text).map_err(shape)?;
        let Tensors { count, with } = report.tensors;
        match report.totals.mean_loss {
            _ if report.dry_run => Err(LossesError::DryRun),
            _ if with.is_empty() => Err(LossesError::Uncalibrated { tensors: count }),
            None => Err(LossesError::Shape("its `totals` have no `mean_loss`".into())),
            Some(mean) => Ok(Losses { path: path.to_path_buf(), tensors: with, mean: mean.into() }),
        }
    }

    /// The tensor that a layer is, or is an expert of.
    fn tensor(&self, module: &str) -> Option<(&str, &LayerLoss)> {
        if let Some((prefix, tensor)) = self.tensors.get_key_value(module) {
            return Some((prefix, &tensor.loss));
        }
        let (prefix, number) = module.rsplit_once('.').unwrap_or(("", module));
        let (prefix, tensor) = self.tensors.get_key_value(prefix)?;
        // As it is written: not `+1`, not `01`.
        let number = number.parse::<u64>().ok().filter(|n| n.to_string() == number)?;
        (number < tensor.experts?).then_some((prefix, &tensor.loss))
    }

    /// What a layer loses.
    pub fn of(&self, module: &str) -> Option<LayerLoss> {
        self.tensor(module).map(|(_, loss)| *loss)
    }

    /// Checks that every tensor is a layer of either side, if only one that cannot be read.
    ///
    /// # Errors
    /// [`LossesError::Absent`].
    pub(super) fn check(&self, layers: &[Layers]) -> Result<(), Error> {
        let modules = layers.iter().flat_map(|side| side.good.keys().chain(side.bad.keys()));
        let mut left: BTreeSet<_> = self.tensors.keys().map(String::as_str).collect();
        let of = left.len();
        for (prefix, _) in modules.filter_map(|module| self.tensor(module)) {
            left.remove(prefix);
        }
        let Some(first) = left.first() else { return Ok(()) };
        let first = if first.is_empty() { "(no prefix)".into() } else { shown(first) };
        Err(told(&self.path, LossesError::Absent { absent: left.len(), of, first }))
    }

    /// What a report says of all of them; `rows` are all of its rows.
    pub(super) fn run(&self, rows: &[Row]) -> Run {
        let without = |row: &&Row| row.counts.is_some() && row.loss.is_none();
        Run {
            path: cut(&self.path.to_string_lossy(), NAME_CHARS),
            tensors: self.tensors.len(),
            layers_without: rows.iter().filter(without).count(),
            mean: self.mean,
        }
    }
}

fn told(path: &Path, error: LossesError) -> Error {
    ModelError::Losses { path: path.to_path_buf(), error }.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Losses, LossesError> {
        Losses::parse(Path::new("losses.json"), text)
    }

    fn report(tensors: &str) -> String {
        let mean = r#"{"mean_loss": {"weight": 1, "layer": 2, "before": 4}}"#;
        format!(r#"{{"command": "quantize", "tensors": [{tensors}], "totals": {mean}}}"#)
    }

    #[test]
    fn experts_get_the_loss_of_their_tensor_and_no_other_layer_does() {
        let text = report(
            r#"{"prefix": "e", "experts": 3, "loss": {"weight": 1, "layer": 2, "before": null}},
               {"prefix": "a", "experts": null, "loss": {"weight": 0, "layer": 0.5, "before": 1}},
               {"prefix": "none"}, {"prefix": "none"}"#,
        );
        let losses = parse(&text).unwrap();
        for (module, layer) in [
            ("a", Some(0.5)),
            ("e", Some(2.0)),
            ("e.0", Some(2.0)),
            ("e.2", Some(2.0)),
            ("e.3", None),
            ("e.02", None),
            ("e.+1", None),
            ("e.18446744073709551616", None),
            ("e.x", None),
            ("a.0", None),
            ("0", None),
            ("none", None),
        ] {
            assert_eq!(losses.of(module).map(|loss| loss.layer), layer, "{module}");
        }
        assert!(losses.of("e.1").unwrap().before.is_nan());
        assert_eq!(losses.mean, LayerLoss { weight: 1.0, layer: 2.0, before: 4.0 });
    }

    #[test]
    fn what_is_no_report_of_a_calibrated_run_says_what_it_is() {
        let loss = r#""loss": {"weight": 1, "layer": 2, "before": 4}"#;
        let long = "\u{1b}x".repeat(100_000);
        let deep = "[".repeat(1 << 20);
        let cases = [
            (String::new(), "EOF while parsing"),
            ("[]".into(), "invalid length 0"),
            ("{}".into(), "missing field `command`"),
            (r#"{"command": "compare", "tensors": 7}"#.into(), "`fp4 compare` printed"),
            (format!(r#"{{"command": "{deep}"#), "EOF while parsing"),
            (format!(r#"{{"x": {deep}"#), "EOF while parsing a list"),
            (r#"{"command": "quantize"}"#.into(), "missing field `tensors`"),
            (
                r#"{"command": "quantize", "dry_run": true, "tensors": [], "totals": {}}"#.into(),
                "dry run",
            ),
            (report(r#"{"prefix": "a"}, {"prefix": "b"}"#), "none of its tensors (2)"),
            (
                report(&format!(r#"{{"prefix": "a", {loss}}}, {{"prefix": "a", {loss}}}"#)),
                "`a` twice",
            ),
            (report(r#"{"prefix": "a", "loss": {"weight": 1, "layer": 2}}"#), "field `before`"),
            (
                report(r#"{"prefix": "a", "loss": {"weight": 1, "layer": -2, "before": 4}}"#),
                "a loss of -2e0, which is below 0",
            ),
            (report(r#"{"prefix": "a", "loss": "much"}"#), "invalid type: string \"much\""),
            (
                report(&format!(r#"{{"prefix": "a", {loss}}}"#)).replace("mean_loss", "mean"),
                "no `mean_loss`",
            ),
            (
                report(&serde_json::json!({ "prefix": "a", "loss": long }).to_string()),
                "invalid type",
            ),
        ];
        for (text, needle) in cases {
            let beginning: String = text.chars().take(100).collect();
            let error = parse(&text).expect_err(&beginning).to_string();
            assert!(error.contains(needle), "{beginning}: {error}");
            assert!(error.len() < 1200 && !error.contains('\u{1b}'), "{beginning}: {error}");
        }
    }
}
