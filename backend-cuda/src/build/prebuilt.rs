//! PTX kept in the source tree, for machines without NVRTC.
//!
//! `cargo run -p fp4-backend-cuda --example prebuild` writes `prebuilt/*.ptx` anew; it needs NVRTC
//! 13.0 and no GPU. The first line of a file names the hash of the sources that it was made from,
//! and a test compares it with the sources of this build. The wgmma kernels
//! are PTX for compute_90a, which runs on compute capability 9.0 and nowhere else; all others
//! are for compute_80 and what came after.
//!
//! NVRTC 13.0 declares PTX ISA 9.0, which drivers before release 580 refuse. The kernels use
//! nothing that came after [`PTX_VERSION`] (`mma.sync.m16n8k32` and `cp.async` are of 7.0; `wgmma`,
//! `setmaxnreg` and bulk copies of 8.0), so the declared version is lowered to it, for drivers from
//! CUDA 12.0 on. ptxas, which refuses an instruction newer than the declared version, assembles the
//! texts for sm_80, sm_90 and sm_90a; no driver has loaded them yet.

use crate::build::compile;
use crate::build::sources::{FAMILIES, Family};

/// The PTX ISA that the prebuilt texts declare: that of CUDA 12.0.
const PTX_VERSION: &str = "8.0";
const MARK: &str = "// sources ";

/// The prebuilt PTX of a family, if it was made from these very sources.
pub(crate) fn image(family: &Family) -> Option<&'static str> {
    let text = family.prebuilt?;
    let made_from = text.lines().next()?.strip_prefix(MARK)?;
    (made_from == family.hash(family.portable)).then_some(text)
}

/// File names and texts of all prebuilt images, made anew: for `examples/prebuild.rs`.
///
/// # Errors
/// NVRTC is absent, or its log.
#[doc(hidden)]
pub fn prebuild() -> Result<Vec<(String, String)>, String> {
    compile::version().ok_or("NVRTC is not installed")?;
    FAMILIES
        .iter()
        .map(|family| {
            let ptx = compile::compile(family, family.portable)?;
            let ptx = String::from_utf8(ptx).map_err(|e| e.to_string())?;
            Ok((family.prebuilt_file(), declare(&ptx, &family.hash(family.portable))?))
        })
        .collect()
}

/// The text with its hash in front and the declared version lowered, comments dropped.
fn declare(ptx: &str, hash: &str) -> Result<String, String> {
    let mut out = format!("{MARK}{hash}\n");
    let mut versions = 0;
    for line in ptx.lines().filter(|line| !line.starts_with("//")) {
        if line.starts_with(".version ") {
            versions += 1;
            out.push_str(&format!(".version {PTX_VERSION}\n"));
        } else {
            out.push_str(line);
            out.push('\n');
        }
    }
    if versions == 1 { Ok(out) } else { Err(format!("{versions} .version lines, expected 1")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prebuilt_images_are_of_these_sources() {
        for family in FAMILIES {
            assert!(
                image(family).is_some(),
                "prebuilt/{} is of other sources; with NVRTC 13.0 installed, run \
                 `cargo run --release -p fp4-backend-cuda --example prebuild`",
                family.prebuilt_file()
            );
        }
    }

    #[test]
    fn a_prebuilt_image_holds_every_kernel_of_its_source() {
        for family in FAMILIES {
            let text = image(family).unwrap_or_default();
            // EXPORT(kernel), or a macro that declares and exports: at the start of a line.
            let names: Vec<_> = (family.source.lines())
                .filter_map(|line| {
                    let (declares, rest) = line.split_once('(')?;
                    let name = rest.split([',', ')']).next()?;
                    let macro_use = declares.chars().all(|c| c.is_ascii_uppercase() || c == '_');
                    (macro_use && name.starts_with(|c: char| c.is_ascii_lowercase()))
                        .then_some(name)
                })
                .collect();
            assert_eq!(text.matches(".visible .entry ").count(), names.len(), "{names:?}");
            for name in names {
                assert!(text.contains(&format!(".visible .entry {name}(")), "{name}");
            }
            for unwanted in [".ftz", ".approx", ".version 9"] {
                assert!(!text.contains(unwanted), "{} has {unwanted}", family.name);
            }
        }
    }

    #[test]
    fn the_version_is_lowered_and_nothing_else() {
        let text = declare("//\n.version 9.0\n.target sm_80\nadd.s32 a, b, c;\n", "abc").unwrap();
        assert_eq!(text, "// sources abc\n.version 8.0\n.target sm_80\nadd.s32 a, b, c;\n");
        assert!(declare("no version", "abc").is_err());
    }
}
