//! Arguments that several commands take.

use fp4_core::ScaleType;
use quant_linear::LoadOptions;

/// `--scale-type`: what U8 scale bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum ScaleTypeArg {
    /// Powers of two (MXFP4).
    E8m0,
    /// 8-bit floats (NVFP4).
    E4m3,
}

/// How layers are read under this `--scale-type`.
pub(crate) fn load_options(scale_type: Option<ScaleTypeArg>) -> LoadOptions {
    let scale_type = scale_type.map(|arg| match arg {
        ScaleTypeArg::E8m0 => ScaleType::E8M0,
        ScaleTypeArg::E4m3 => ScaleType::E4M3,
    });
    LoadOptions { scale_type, ..LoadOptions::default() }
}
