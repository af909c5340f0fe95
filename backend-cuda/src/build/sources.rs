//! The kernels' sources, embedded, and what identifies a build of them.
//!
//! A [`Family`] is one `.cu` file: compiled on its own, loaded as one module. Headers are handed to
//! NVRTC beside it, so a running program reads no file of the source tree.

use std::fmt::Write;

use sha2::{Digest, Sha256};

/// One kernel file.
#[derive(Debug)]
pub(crate) struct Family {
    /// The file's name without extension.
    pub(crate) name: &'static str,
    /// Its text.
    pub(crate) source: &'static str,
    /// What the prebuilt PTX is compiled for.
    pub(crate) portable: Target,
    /// PTX for devices that NVRTC cannot be asked about, made by `examples/prebuild.rs`.
    pub(crate) prebuilt: Option<&'static str>,
}

/// Declares a family whose PTX lies in `prebuilt/`.
macro_rules! family {
    ($name:literal) => {
        family!($name, Portable, "compute_80")
    };
    ($name:literal, $target:ident, $suffix:literal) => {
        Family {
            name: $name,
            source: include_str!(concat!("../../kernels/", $name, ".cu")),
            portable: Target::$target,
            prebuilt: Some(include_str!(concat!("../../prebuilt/", $name, ".", $suffix, ".ptx"))),
        }
    };
}

pub(crate) static QUANTIZE: Family = family!("quantize");
pub(crate) static LAYOUT: Family = family!("layout");
pub(crate) static MATMUL_NAIVE: Family = family!("matmul_naive");
pub(crate) static MATMUL_MMA: Family = family!("matmul_mma");
pub(crate) static MATMUL_MMA_FOLDED: Family = family!("matmul_mma_folded");

pub(crate) static MATMUL_DECODE: Family = family!("matmul_decode");
pub(crate) static FOLD: Family = family!("fold");
pub(crate) static QUANTIZE_FOLD: Family = family!("quantize_fold");
pub(crate) static MATMUL_WGMMA_MXFP4: Family = family!("matmul_wgmma_mxfp4", Hopper, "compute_90a");
pub(crate) static MATMUL_WGMMA_NVFP4: Family = family!("matmul_wgmma_nvfp4", Hopper, "compute_90a");
pub(crate) static MATMUL_WGMMA_MXINT8_MXFP4: Family =
    family!("matmul_wgmma_mxint8_mxfp4", Hopper, "compute_90a");

pub(crate) static MATMUL_WGMMA_RS_MXFP4: Family =
    family!("matmul_wgmma_rs_mxfp4", Hopper, "compute_90a");
pub(crate) static MATMUL_WGMMA_RS_MXINT8_MXFP4: Family =
    family!("matmul_wgmma_rs_mxint8_mxfp4", Hopper, "compute_90a");

/// Every family, for the prebuilt images and their check.
pub(crate) static FAMILIES: [&Family; 13] = [
    &QUANTIZE,
    &LAYOUT,
    &MATMUL_NAIVE,
    &MATMUL_MMA,
    &MATMUL_MMA_FOLDED,
    &MATMUL_DECODE,
    &FOLD,
    &QUANTIZE_FOLD,
    &MATMUL_WGMMA_MXFP4,
    &MATMUL_WGMMA_NVFP4,
    &MATMUL_WGMMA_MXINT8_MXFP4,
    &MATMUL_WGMMA_RS_MXFP4,
    &MATMUL_WGMMA_RS_MXINT8_MXFP4,
];

/// Headers by the name that `#include` uses.
pub(crate) static HEADERS: [(&str, &str); 17] = [
    ("arguments.cuh", include_str!("../../kernels/arguments.cuh")),
    ("device.cuh", include_str!("../../kernels/device.cuh")),
    ("format.cuh", include_str!("../../kernels/format.cuh")),
    ("exact.cuh", include_str!("../../kernels/exact.cuh")),
    ("decode_range.cuh", include_str!("../../kernels/decode_range.cuh")),
    ("row_meta.cuh", include_str!("../../kernels/row_meta.cuh")),
    ("reciprocal.cuh", include_str!("../../kernels/reciprocal.cuh")),
    ("quantize.cuh", include_str!("../../kernels/quantize.cuh")),
    ("fold.cuh", include_str!("../../kernels/fold.cuh")),
    ("fold_rows.cuh", include_str!("../../kernels/fold_rows.cuh")),
    ("matmul_mma_folded.cuh", include_str!("../../kernels/matmul_mma_folded.cuh")),
    ("wgmma_plan.cuh", include_str!("../../kernels/wgmma_plan.cuh")),
    ("wgmma_epilogue.cuh", include_str!("../../kernels/wgmma_epilogue.cuh")),
    ("wgmma_shape.cuh", include_str!("../../kernels/wgmma_shape.cuh")),
    ("wgmma_produce.cuh", include_str!("../../kernels/wgmma_produce.cuh")),
    ("matmul_wgmma.cuh", include_str!("../../kernels/matmul_wgmma.cuh")),
    ("matmul_wgmma_rs.cuh", include_str!("../../kernels/matmul_wgmma_rs.cuh")),
];

/// What the contract asks of the compiler (C9): IEEE operations, nothing fused that is not written
/// so, nothing flushed.
const FLAGS: [&str; 5] =
    ["--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true"];

/// An architecture to compile for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// Machine code for devices of this compute capability (10 * major + minor).
    Device(i32),
    /// PTX for every device from compute capability 8.0 up.
    Portable,
    /// PTX for compute capability 9.0 alone, with its own instructions.
    Hopper,
}

impl Target {
    /// Whether this is PTX text, not machine code.
    pub(crate) fn is_ptx(self) -> bool {
        !matches!(self, Target::Device(_))
    }

    /// The compiler's options.
    pub(crate) fn options(self) -> Vec<String> {
        let (sm, architecture) = match self {
            // From Hopper on, the architecture-specific features need the suffix.
            Target::Device(sm) if sm >= 90 => (sm, format!("sm_{sm}a")),
            Target::Device(sm) => (sm, format!("sm_{sm}")),
            Target::Portable => (80, "compute_80".into()),
            Target::Hopper => (90, "compute_90a".into()),
        };
        let own = [format!("--gpu-architecture={architecture}"), format!("-DFP4_SM={sm}")];
        FLAGS.iter().map(|&f| f.to_owned()).chain(own).collect()
    }
}

impl Family {
    /// The file of its prebuilt PTX.
    pub(crate) fn prebuilt_file(&self) -> String {
        let target = if self.portable == Target::Hopper { "compute_90a" } else { "compute_80" };
        format!("{}.{target}.ptx", self.name)
    }

    /// Hash of everything that a build depends on, but the compiler's version.
    pub(crate) fn hash(&self, target: Target) -> String {
        let mut hasher = Sha256::new();
        let mut add = |text: &str| {
            // Lengths keep two splits of the same text apart.
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text);
        };
        add(self.name);
        add(self.source);
        for (name, text) in HEADERS.iter().filter(|(name, _)| includes(self.source, name)) {
            add(name);
            add(text);
        }
        for option in target.options() {
            add(&option);
        }
        hex(&hasher.finalize())
    }
}

/// Whether a source includes a header, directly or by way of another.
fn includes(source: &str, header: &str) -> bool {
    let names = source.lines().filter_map(|l| l.strip_prefix("#include \"")?.strip_suffix('"'));
    names.into_iter().any(|name| {
        let inner = HEADERS.iter().find(|(known, _)| *known == name);
        name == header || inner.is_some_and(|(_, text)| includes(text, header))
    })
}

/// Bytes in hexadecimal.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, b| {
        let _ = write!(text, "{b:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_depends_on_source_and_architecture() {
        let [a, b] = [90, 89].map(|sm| QUANTIZE.hash(Target::Device(sm)));
        let other = LAYOUT.hash(Target::Device(90));
        assert!(a != b && a != other && a.len() == 64);
        assert_eq!(a, QUANTIZE.hash(Target::Device(90)));
    }

    #[test]
    fn includes_are_followed() {
        assert!(includes(MATMUL_WGMMA_NVFP4.source, "device.cuh"));
        assert!(includes(MATMUL_WGMMA_NVFP4.source, "fold.cuh"));
        assert!(!includes(MATMUL_DECODE.source, "fold.cuh"));
    }

    #[test]
    fn every_include_is_a_header_that_is_handed_over() {
        let texts = FAMILIES.iter().map(|f| f.source).chain(HEADERS.map(|(_, text)| text));
        let mut included = 0;
        for line in texts.flat_map(str::lines) {
            let Some(name) = line.strip_prefix("#include \"").and_then(|l| l.strip_suffix('"'))
            else {
                continue;
            };
            // The emulator's header is behind FP4_EMULATOR, which no build for a device defines.
            if !name.starts_with("../emulator/") {
                assert!(HEADERS.iter().any(|(header, _)| *header == name), "{name}");
                included += 1;
            }
        }
        assert!(included >= FAMILIES.len());
    }
}
