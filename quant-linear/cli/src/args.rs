//! Arguments that several commands take.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Result;
use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use fp4_core::{Format, ScaleRule, ScaleType};
use quant_linear::checkpoint::Checkpoint;
use quant_linear::layout::{self, Layers, Layout};
use quant_linear::model::stream::{Memory, Settings};
use quant_linear::{ActivationEncoding, LoadOptions};

/// How a model is written.
#[derive(Debug, clap::Args)]
pub(crate) struct Stream {
    /// Bytes of tensors in memory at a time, all threads together: `512MiB`, `1GB`. It changes no
    /// byte of the output. Not counted are the program itself, some 20 MB, and a few times the
    /// length of the headers [default: 1GiB].
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Go on where a run with this option was killed or interrupted, or begin so that one can go
    /// on. Until it is finished the output is kept beside its place, in `.NAME.fp4-partial`. An
    /// input or settings that differ from those it was begun with are refused.
    #[arg(long)]
    pub(crate) resume: bool,
}

impl Stream {
    /// The limit on memory.
    pub(crate) fn memory(&self) -> Memory {
        self.memory.map_or_else(Memory::default, |bytes| Memory { bytes })
    }
}

/// `1GB`, `512 MiB`, `4096`.
fn parse_bytes(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        "kb" => Some(1000),
        "mb" => Some(1_000_000),
        "gb" => Some(1_000_000_000),
        "kib" | "k" => Some(1 << 10),
        "mib" | "m" => Some(1 << 20),
        "gib" | "g" => Some(1 << 30),
        _ => None,
    };
    let bytes =
        number.parse::<u64>().ok().zip(factor).and_then(|(n, factor)| n.checked_mul(factor));
    let bytes = bytes.filter(|&bytes| bytes > 0);
    bytes.ok_or_else(|| {
        format!("`{text}` is no number of bytes above 0; give one as 1GB, 512MiB or 4096")
    })
}

/// A checkpoint whose layers are read.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// The layout of its layers, where it cannot be told or should be taken at your word.
    #[arg(long, value_parser = layouts(), value_name = "NAME")]
    pub(crate) layout: Option<&'static dyn Layout>,
    /// The config.json that belongs to it [default: the one beside it].
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// What scale bytes stored as U8 are, in native states.
    #[arg(long, value_parser = scale_types())]
    scale_type: Option<ScaleType>,
}

impl Source {
    /// Opens it.
    pub(crate) fn open(&self, path: &Path) -> Result<Checkpoint> {
        Ok(Checkpoint::open_with(path, self.config.as_deref())?)
    }

    /// How its layers are read.
    pub(crate) fn options(&self) -> LoadOptions {
        let (layout, scale_type) = (self.layout, self.scale_type);
        LoadOptions { layout, scale_type, ..LoadOptions::default() }
    }

    /// What decides how it is read.
    pub(crate) fn settings(&self) -> Settings {
        let layout = self.layout.map_or("detected", |layout| layout.name());
        let config = self.config.as_ref().map(|path| path.to_string_lossy().into_owned());
        let scale_type = self.scale_type.map(|scale_type| scale_type.to_string());
        let all = [
            ("--layout", layout.to_string()),
            ("--config", config.unwrap_or_default()),
            ("--scale-type", scale_type.unwrap_or_default()),
        ];
        all.map(|(name, value)| (name.to_string(), value)).to_vec()
    }

    /// Its layers.
    pub(crate) fn layers(&self, checkpoint: &Checkpoint) -> Result<Layers> {
        find(checkpoint, &self.options())
    }
}

/// The layers of a checkpoint, read so.
pub(crate) fn find(checkpoint: &Checkpoint, options: &LoadOptions) -> Result<Layers> {
    Layers::find(checkpoint, options).map_err(told)
}

/// What an error of layers says, with what to do on this command line.
pub(crate) fn told(error: quant_linear::Error) -> anyhow::Error {
    match error {
        error @ quant_linear::Error::Ambiguous { .. } => {
            anyhow::anyhow!("{error} (--layout NAME or --config FILE)")
        }
        error => error.into(),
    }
}

/// A layout, by one of its names; the help lists the first of each.
pub(crate) fn layouts() -> impl TypedValueParser<Value = &'static dyn Layout> {
    let values = layout::ALL
        .iter()
        .map(|layout| PossibleValue::new(layout.name()).aliases(layout.aliases().iter().copied()));
    PossibleValuesParser::new(values)
        .try_map(|name| layout::named(&name).ok_or_else(|| format!("`{name}` is no layout")))
}

/// `--scale-type`: what U8 scale bytes are.
pub(crate) fn scale_types() -> impl TypedValueParser<Value = ScaleType> {
    named(ScaleType::ALL.map(ScaleType::name))
}

/// `--format`.
pub(crate) fn formats() -> impl TypedValueParser<Value = Format> {
    named(Format::ALL.map(Format::name))
}

/// `--scale-rule`.
pub(crate) fn scale_rules() -> impl TypedValueParser<Value = ScaleRule> {
    named(ScaleRule::ALL.map(ScaleRule::name))
}

/// What `--activation-scale` says of row scales.
pub(crate) const ROW: &str = "row";

/// `--activations`: how activations are quantized, by name. Row scales are a scale, and asked for
/// as one.
pub(crate) fn activations() -> impl TypedValueParser<Value = ActivationEncoding> {
    let values = ActivationEncoding::ALL.map(|activations| {
        let rows = activations == ActivationEncoding::OwnRowScales;
        PossibleValue::new(activations.name()).hide(rows)
    });
    PossibleValuesParser::new(values).try_map(|name| match name.parse() {
        Ok(ActivationEncoding::OwnRowScales) => {
            Err(format!("`{name}` is asked for by --activation-scale {ROW}"))
        }
        Ok(activations) => Ok(activations),
        Err(error) => Err(error.to_string()),
    })
}

/// One of these names of values of a type; the help lists them.
fn named<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_in_thousands_or_in_1024s() {
        for (text, bytes) in [
            ("1GB", 1_000_000_000),
            ("512MiB", 512 << 20),
            ("64 kb", 64_000),
            ("2g", 2 << 30),
            ("7B", 7),
            ("4096", 4096),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1", "1.5GB", "0", "1TBx", "99999999999GiB", "1 2"] {
            let said = parse_bytes(text).unwrap_err();
            assert!(said.contains(&format!("`{text}` is no number of bytes")), "{said}");
        }
    }
}
