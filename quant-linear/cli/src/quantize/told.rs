//! The library's answers in the words of this command line: which option to change.

use anyhow::anyhow;
use quant_linear::model::{ModelError, listed};
use quant_linear::text;
use quant_linear::{Error, Reason};

/// Why a tensor is not quantized.
pub(super) fn reason(reason: &Reason) -> String {
    match reason {
        Reason::Excluded => "matches --exclude".into(),
        Reason::Kept => "an embedding or output head by its name; --include quantizes it".into(),
        other => other.to_string(),
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
            anyhow!("--include '{glob}' matches no tensor; `fp4 inspect` lists their names")
        }
        ModelError::NoneQuantizable { glob, examples, more } => anyhow!(
            "--include '{glob}' matches no tensor that can be quantized ({}); `fp4 inspect` lists \
             types and shapes",
            listed(&examples, more)
        ),
        ModelError::Named { name, reason } => anyhow!(
            "tensor `{name}` is named by --include and cannot be quantized: {reason}; leave that \
             --include out"
        ),
        ModelError::Taken { taken, weight } => anyhow!(
            "the input holds `{taken}` beside `{weight}`: it looks quantized already; start from the \
             dense checkpoint, or leave the layer out with --exclude"
        ),
        ModelError::NoWeight { path } => anyhow!(
            "{} holds no linear weight: no tensor is named `*.weight` and has two dimensions; name \
             what to quantize with --include",
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
        ModelError::NoQuantizer(refusals) => anyhow!(
            "no backend can quantize this ({refusals}); leave --backend out, if it is given"
        ),
        error => error.into(),
    }
}
