//! PTX kept in the source tree, for machines without NVRTC.
//!
//! `cargo run -p fp4-backend-cuda --example prebuild` writes `prebuilt/*.ptx` anew; it needs NVRTC
//! 12.0, that of CUDA 12.0, and no GPU. The first line of a file names the hash of the sources that
//! it was made from, and a test compares it with the sources of this build. The wgmma kernels are
//! PTX for compute_90a, which runs on compute capability 9.0 and nowhere else; all others are for
//! compute_80 and what came after.
//!
//! Why so old a compiler: drivers assemble the text with the ptxas of their own toolkit, and those
//! of CUDA 12.0 to 12.3 serialize the wgmma of what a later NVRTC makes (C7515), but not of what
//! 12.0 makes; nor do later ones. It also declares PTX ISA 8.0, which every driver from CUDA 12.0
//! on takes. `kernels/prebuilt.py` assembles the texts by the ptxas of 12.0, 12.9 and 13.0. No
//! driver has loaded them yet.

use crate::build::compile;
use crate::build::sources::{FAMILIES, Family};

/// The NVRTC that makes the prebuilt texts, and the PTX ISA that they declare.
const NVRTC_VERSION: (i32, i32) = (12, 0);
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
/// NVRTC is absent or not of version 12.0, or its log.
#[doc(hidden)]
pub fn prebuild() -> Result<Vec<(String, String)>, String> {
    right_version(compile::version())?;
    FAMILIES
        .iter()
        .map(|family| {
            let ptx = compile::compile(family, family.portable)?;
            let ptx = String::from_utf8(ptx).map_err(|e| e.to_string())?;
            Ok((family.prebuilt_file(), declare(&ptx, &family.hash(family.portable))?))
        })
        .collect()
}

fn right_version(found: Option<(i32, i32)>) -> Result<(), String> {
    let what = match found {
        Some(NVRTC_VERSION) => return Ok(()),
        Some((major, minor)) => format!("NVRTC {major}.{minor} was found"),
        None => "no NVRTC was found".into(),
    };
    let (major, minor) = NVRTC_VERSION;
    Err(format!(
        "{what}, and prebuilt kernels are made by {major}.{minor}: \
         `pip install nvidia-cuda-nvrtc-cu12==12.0.140` and put its folder, nvidia/cuda_nvrtc/lib, \
         alone into LD_LIBRARY_PATH"
    ))
}

/// The text with its hash in front, comments dropped.
fn declare(ptx: &str, hash: &str) -> Result<String, String> {
    let mut out = format!("{MARK}{hash}\n");
    let mut versions = 0;
    for line in ptx.lines().filter(|line| !line.starts_with("//")) {
        versions += usize::from(line == format!(".version {PTX_VERSION}"));
        out.push_str(line);
        out.push('\n');
    }
    if versions == 1 {
        return Ok(out);
    }
    Err(format!("{versions} lines `.version {PTX_VERSION}`, expected 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prebuilt_images_are_of_these_sources() {
        for family in FAMILIES {
            assert!(
                image(family).is_some(),
                "prebuilt/{} is of other sources; with NVRTC 12.0 installed, run \
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
    fn comments_go_and_one_version_is_expected() {
        let text = declare("//\n.version 8.0\n.target sm_80\nadd.s32 a, b, c;\n", "abc").unwrap();
        assert_eq!(text, "// sources abc\n.version 8.0\n.target sm_80\nadd.s32 a, b, c;\n");
        assert!(declare("no version", "abc").is_err());
        assert!(declare(".version 9.0\n", "abc").unwrap_err().contains("expected 1"));
    }

    #[test]
    fn another_compiler_is_refused_by_name() {
        assert_eq!(right_version(Some((12, 0))), Ok(()));
        assert!(right_version(Some((13, 0))).unwrap_err().starts_with("NVRTC 13.0 was found"));
        assert!(right_version(None).unwrap_err().contains("nvidia-cuda-nvrtc-cu12==12.0.140"));
    }
}
