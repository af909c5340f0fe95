//! What the report says of one tensor: of all its experts, if it holds several.

use std::collections::BTreeMap;

use fp4_core::Format;
use safetensors::Dtype;
use serde_json::{Value, json};

use quant_linear::ActivationEncoding;
use quant_linear::model::difference::Difference;
use quant_linear::model::groups::{Figures, Groups};
use quant_linear::model::plan::Weight;
use quant_linear::model::quantize::{LayerLoss, Outcome, Warning};

use super::summary::put_figures;
use crate::report;

/// The share of groups at 0 dB or less that is worth a warning, though none is lost.
const BAD: f64 = 0.01;

/// One tensor of the report.
#[derive(Debug)]
pub(super) struct Row {
    /// Its own name.
    pub(super) name: String,
    prefix: String,
    dtype: Dtype,
    shape: Vec<usize>,
    format: Format,
    activations: ActivationEncoding,
    transposed: bool,
    experts: bool,
    /// Weights that are still to come.
    open: usize,
    /// Bytes before and after.
    pub(super) bytes: [u64; 2],
    /// Differences and global scales by expert: sums of floats depend on their order, and threads
    /// must not.
    done: BTreeMap<usize, (Difference, f32)>,
    /// What became of the groups so far; let go when the last weight is here.
    groups: Option<Groups>,
    /// What became of the groups.
    pub(super) figures: Figures,
    not_finite_weights: u64,
    warned: Option<Warning>,
    /// What the layer loses, on the sample rows of a calibration.
    pub(super) losses: BTreeMap<usize, LayerLoss>,
}

impl Row {
    /// The row of a tensor of which this is the first weight, so many bytes when quantized.
    pub(super) fn new(weight: &Weight, after: u64) -> Self {
        Row {
            name: weight.name.clone(),
            prefix: match weight.expert {
                // Without the number of the first expert.
                Some(_) => weight.prefix.rsplit_once('.').map_or("", |(before, _)| before).into(),
                None => weight.prefix.clone(),
            },
            dtype: weight.tensor.info.dtype,
            shape: weight.tensor.info.shape.clone(),
            format: weight.options.format,
            activations: weight.options.activations,
            transposed: weight.is_transposed(),
            experts: weight.expert.is_some(),
            open: 1,
            bytes: [weight.byte_len(), after],
            done: BTreeMap::new(),
            groups: None,
            figures: Figures::default(),
            not_finite_weights: 0,
            warned: None,
            losses: BTreeMap::new(),
        }
    }

    /// Takes in another weight of the tensor.
    pub(super) fn plan(&mut self, weight: &Weight, after: u64) {
        self.open += 1;
        self.bytes[0] += weight.byte_len();
        self.bytes[1] += after;
    }

    /// Adds what became of a weight.
    pub(super) fn add(&mut self, expert: Option<usize>, outcome: Outcome) {
        if let Some(loss) = outcome.loss {
            self.losses.insert(expert.unwrap_or(0), loss);
        }
        self.done.insert(expert.unwrap_or(0), (outcome.difference, outcome.global_scale));
        self.not_finite_weights += outcome.not_finite_weights;
        self.warned = self.warned.or(outcome.warning);
        self.open = self.open.saturating_sub(1);
        match &mut self.groups {
            Some(groups) => groups.merge(&outcome.groups),
            none => *none = Some(outcome.groups),
        }
        if self.open == 0 {
            self.figures = self.groups.take().map(|groups| groups.figures()).unwrap_or_default();
        }
    }

    /// What to know of a tensor whose last weight is here.
    pub(super) fn warning(&self) -> Option<String> {
        if self.open > 0 {
            return None;
        }
        let (counts, share) = (self.figures.counts, self.figures.share_at_0_db);
        let median = self.figures.median_db.map_or("none".into(), report::decibels);
        if counts.lost > 0 {
            return Some(format!(
                "{} of {} held weights other than zero and became all zero; SQNR of the median \
                group {median} dB, of the tensor {}",
                counts.lost,
                report::count(counts.groups as usize, "group"),
                report::decibels(self.difference().sqnr_db())
            ));
        }
        (share > BAD).then(|| {
            let percent = 100.0 * share;
            format!("{percent:.1}% of its groups have errors as large as they are themselves")
        })
    }

    /// The error of all weights.
    pub(super) fn difference(&self) -> Difference {
        let mut all = Difference::default();
        self.done.values().for_each(|(difference, _)| all.merge(difference));
        all
    }

    /// The tensor, as planned.
    pub(super) fn planned(&self) -> [String; 6] {
        let stored = if self.transposed { " (in, out)" } else { "" };
        let [before, after] = self.bytes.map(report::bytes);
        let (shape, format) = (report::shape(&self.shape) + stored, self.format.to_string());
        [self.name.clone(), shape, self.dtype.to_string(), format, before, after]
    }

    /// The tensor, its sizes and its error.
    pub(super) fn sizes(&self) -> [String; 7] {
        let [before, after] = self.bytes.map(report::bytes);
        let difference = self.difference();
        [
            self.name.clone(),
            report::shape(&self.shape),
            self.dtype.to_string(),
            before,
            after,
            report::relative(difference.relative()),
            report::decibels(difference.sqnr_db()),
        ]
    }

    /// The tensor and what its layer loses.
    pub(super) fn losses(&self) -> Option<[String; 5]> {
        mean(self.losses.values()).map(|loss| loss_line(&self.name, loss))
    }

    /// The row of the JSON report.
    pub(super) fn json(&self) -> Value {
        let mut json = json!({
            "name": self.name,
            "prefix": self.prefix,
            "dtype": self.dtype.to_string(),
            "shape": self.shape,
            "format": self.format.name(),
            "activations": self.activations.name(),
            "transposed": self.transposed,
            "experts": self.experts.then(|| self.shape.first()),
            "bytes_before": self.bytes[0],
            "bytes_after": self.bytes[1],
        });
        if self.done.is_empty() {
            return json;
        }
        let scales: Vec<f32> = self.done.values().map(|(_, scale)| *scale).collect();
        json["weight_global_scale"] = match &scales[..] {
            [one] if !self.experts => json!(one),
            all => json!(all),
        };
        json["not_finite_weights"] = json!(self.not_finite_weights);
        json["warning"] = json!(self.warned.map(|warning| warning.to_string()));
        report::put_difference(&mut json, "", &self.difference());
        put_figures(&mut json, &self.figures);
        if let Some(loss) = mean(self.losses.values()) {
            json["loss"] = loss_json(loss);
        }
        json
    }
}

/// The mean of losses.
pub(super) fn mean<'l>(losses: impl Iterator<Item = &'l LayerLoss>) -> Option<LayerLoss> {
    let (mut n, mut sum) = (0u32, LayerLoss { weight: 0.0, layer: 0.0, before: 0.0 });
    for loss in losses {
        sum.weight += loss.weight;
        sum.layer += loss.layer;
        sum.before += loss.before;
        n += 1;
    }
    let n = f64::from(n);
    (n > 0.0).then(|| LayerLoss {
        weight: sum.weight / n,
        layer: sum.layer / n,
        before: sum.before / n,
    })
}

pub(super) fn loss_json(loss: LayerLoss) -> Value {
    json!({ "weight": loss.weight, "layer": loss.layer, "before": loss.before })
}

pub(super) fn loss_line(name: &str, loss: LayerLoss) -> [String; 5] {
    let share = |loss: f64| format!("{loss:.3e}");
    let of = format!("{:.3}", loss.layer / loss.before);
    [name.to_owned(), share(loss.weight), share(loss.layer), share(loss.before), of]
}
