//! The library's answers in the words of this command line: which option to change.

use anyhow::anyhow;
use quant_linear::model::{ModelError, listed};
use quant_linear::text;
use quant_linear::{Error, Reason};

/// Why a tensor is not quantized.
pub(super) fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Excluded => "matches --exclude".into(),
        Reason::Kept(kept) => format!("{kept}; --include quantizes it"),
        Reason::NotIncluded => "matches no --include".into(),
        other => other.to_string(),
    }
}

/// Why a tensor is not quantized, for a list of many that gives each role's sources once.
pub(super) fn short_reason(reason: &Reason) -> String {
    match reason {
        Reason::Kept(kept) => kept.why.clone(),
        other => self::reason(other),
    }
}

/// What went wrong, and which option to change.
pub(super) fn error(error: Error) -> anyhow::Error {
    match error {
        Error::Model(error) => model(error),
        Error::Weight { name, error } => {
            self::error(*error).context(format!("quantizing `{name}`"))
        }
        error => error.into(),
    }
}

fn model(error: ModelError) -> anyhow::Error {
    match error {
        ModelError::NoMatch { glob } => {
            anyhow!(
                "'{glob}' of --include, --exclude or --recipe matches no tensor; `fp4 inspect` lists \
                their names"
            )
        }
        ModelError::NoneQuantizable { glob, examples, more } => anyhow!(
            "'{glob}' of --include or --recipe matches no tensor that can be quantized ({}); `fp4 \
            inspect` lists types and shapes",
            listed(&examples, more)
        ),
        ModelError::Named { name, reason } => anyhow!(
            "tensor `{name}` is named by --include or --recipe and cannot be quantized: {reason}; \
             leave it out there"
        ),
        ModelError::Taken { taken, weight } => anyhow!(
            "the input holds `{taken}` beside `{weight}`: it looks quantized already; start from the \
             dense checkpoint, or leave the layer out with --exclude"
        ),
        ModelError::NoWeight { path } => anyhow!(
            "{} holds no linear weight: no tensor is named `*.weight` and has two dimensions, and \
            none holds experts; name what to quantize with --include",
            text::path(&path)
        ),
        ModelError::Nothing { path, examples, more } => {
            let examples = examples.iter().map(|(name, why)| format!("`{name}`: {}", reason(why)));
            anyhow!(
                "{} holds nothing to quantize ({}{}); see `fp4 quantize --help` for what is \
                 selected, and --include",
                text::path(&path),
                examples.collect::<Vec<_>>().join("; "),
                if more { "; ..." } else { "" }
            )
        }
        ModelError::ScaleProduct { weight, activation } => anyhow!(
            "the weight's global scale {weight:e} times the activations' {activation:e} is {} in \
             f32, and no layer can run with that; change --global-scale or --activation-scale, or \
             leave the weight out with --exclude",
            weight * activation
        ),
        ModelError::Experts { name, shape } => anyhow!(
            "the experts of `{name}`, {shape:?}, may be stored (out, in) or (in, out): neither the \
             model_type nor the sizes in config.json tell; give --experts out-in (as linear layers \
             are) or --experts in-out (as gpt-oss and Llama 4 have them)"
        ),
        ModelError::Strict { count, examples } => {
            let more = count > examples.len();
            let examples = examples.iter().map(|(name, why)| format!("`{name}`: {}", reason(why)));
            anyhow!(
                "--strict: {count} of the weights that would be quantized cannot be ({}{}); leave \
                them out with --exclude, or leave --strict out",
                examples.collect::<Vec<_>>().join("; "),
                if more { "; ..." } else { "" }
            )
        }
        ModelError::SamePrefix { prefix, first, second } => anyhow!(
            "`{first}` and `{second}` would both be written under `{prefix}`; leave one of them \
            out with --exclude"
        ),
        ModelError::NoQuantizer(refusals) => anyhow!(
            "no backend can quantize this ({refusals}); leave --backend out, if it is given"
        ),
        error => error.into(),
    }
}
