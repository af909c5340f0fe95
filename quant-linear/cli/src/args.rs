//! Arguments that several commands take.

use std::str::FromStr;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use fp4_core::{Format, ParseError, ScaleType};
use quant_linear::LoadOptions;

/// `--scale-type`: what U8 scale bytes are.
pub(crate) fn scale_types() -> impl TypedValueParser<Value = ScaleType> {
    named(ScaleType::ALL.map(ScaleType::name))
}

/// `--format`.
pub(crate) fn formats() -> impl TypedValueParser<Value = Format> {
    named(Format::ALL.map(Format::name))
}

/// One of these names of values of a type; the help lists them.
fn named<T, const N: usize>(names: [&'static str; N]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err = ParseError> + Clone + Send + Sync + 'static,
{
    PossibleValuesParser::new(names).try_map(|name| name.parse::<T>())
}

/// How layers are read under this `--scale-type`.
pub(crate) fn load_options(scale_type: Option<ScaleType>) -> LoadOptions {
    LoadOptions { scale_type, ..LoadOptions::default() }
}
