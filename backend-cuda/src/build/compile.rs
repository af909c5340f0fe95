//! Kernels to machine code with NVRTC, NVIDIA's run-time compiler.
//!
//! NVRTC is a library of its own that need not be installed. Its answers are values: a version, an
//! image, or the log of a compilation that failed.

use std::ffi::{CStr, CString, c_char};
use std::ptr;
use std::sync::OnceLock;

use cudarc::nvrtc::{result, sys};

use crate::build::sources::{Family, HEADERS, Target};

/// NVRTC's version as (major, minor), if the library is there.
pub(crate) fn version() -> Option<(i32, i32)> {
    static VERSION: OnceLock<Option<(i32, i32)>> = OnceLock::new();
    // Not by a closure of `get_or_init`, which would hold others up while libraries load.
    if let Some(&known) = VERSION.get() {
        return known;
    }
    let found = find_version();
    *VERSION.get_or_init(|| found)
}

fn find_version() -> Option<(i32, i32)> {
    // SAFETY: only loads and unloads the system's NVRTC by its well-known names.
    if !unsafe { sys::is_culib_present() } {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is present, and the arguments point to ints, as the call wants.
    unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) }.result().ok()?;
    Some((major, minor))
}

/// Compiles a family: a cubin for [`Target::Device`], PTX text for the others.
///
/// # Errors
/// The compiler's log, or why there is none. Must not be called unless [`version`] is `Some`.
pub(crate) fn compile(family: &Family, target: Target) -> Result<Vec<u8>, String> {
    let text = |s: &str| CString::new(s).map_err(|e| format!("a source with a zero byte: {e}"));
    let source = text(family.source)?;
    let name = text(&format!("{}.cu", family.name))?;
    let headers = HEADERS.map(|(name, text)| (CString::new(name), CString::new(text)));
    let mut names = Vec::new();
    let mut texts = Vec::new();
    for (name, text) in &headers {
        let (Ok(name), Ok(text)) = (name, text) else {
            return Err("a header with a zero byte".into());
        };
        names.push(name.as_ptr());
        texts.push(text.as_ptr());
    }
    let mut program: sys::nvrtcProgram = ptr::null_mut();
    // SAFETY: every pointer is to a string or an array of strings that outlives the program, and
    // both arrays have `texts.len()` elements.
    unsafe {
        sys::nvrtcCreateProgram(
            &raw mut program,
            source.as_ptr(),
            name.as_ptr(),
            texts.len() as i32,
            texts.as_ptr(),
            names.as_ptr(),
        )
    }
    .result()
    .map_err(|e| format!("NVRTC refused the source: {e}"))?;
    let compiled = run(program, target);
    // SAFETY: the program was created above and is not used again.
    let _ = unsafe { result::destroy_program(program) };
    compiled
}

fn run(program: sys::nvrtcProgram, target: Target) -> Result<Vec<u8>, String> {
    // SAFETY: the program was created by NVRTC and is destroyed only by the caller.
    let outcome = unsafe { result::compile_program(program, &target.options()) };
    if let Err(error) = outcome {
        // SAFETY: as above.
        let log = unsafe { result::get_program_log(program) }.unwrap_or_default();
        return Err(format!("{error}: {}", first_lines(&bytes(&log))));
    }
    let failed = |e: result::NvrtcError| format!("NVRTC kept the image to itself: {e}");
    if target.is_ptx() {
        // SAFETY: as above, and the program has been compiled.
        let ptx = unsafe { result::get_ptx(program) }.map_err(failed)?;
        return Ok(bytes(&ptx));
    }
    let mut size = 0;
    // SAFETY: as above; the argument points to a size.
    unsafe { sys::nvrtcGetCUBINSize(program, &raw mut size) }.result().map_err(failed)?;
    let mut cubin = vec![0u8; size];
    // SAFETY: as above; the buffer has the size that NVRTC asked for.
    unsafe { sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast::<c_char>()) }
        .result()
        .map_err(failed)?;
    if cubin.is_empty() { Err("NVRTC made an empty image".into()) } else { Ok(cubin) }
}

/// The characters of a C string, without the final zero.
fn bytes(text: &[c_char]) -> Vec<u8> {
    let bytes: &[u8] = bytemuck::cast_slice(text);
    CStr::from_bytes_until_nul(bytes).map_or(bytes, CStr::to_bytes).to_vec()
}

/// What of a compiler's log is worth a log line: its first twelve lines.
fn first_lines(log: &[u8]) -> String {
    let log = String::from_utf8_lossy(log);
    log.lines().take(12).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_log_is_cut() {
        let log: String = (0..40).map(|i| format!("line {i}\n")).collect();
        let cut = first_lines(log.as_bytes());
        assert!(cut.starts_with("line 0\n") && cut.ends_with("line 11"));
    }

    #[test]
    #[cfg(feature = "emulated")]
    fn a_broken_kernel_gives_the_log_and_no_panic() {
        assert!(version().is_some(), "NVRTC is not in LD_LIBRARY_PATH");
        let source = "not C++ at all;";
        let portable = Target::Portable;
        let broken = Family { name: "broken", source, portable, prebuilt: None };
        let log = compile(&broken, Target::Device(80)).unwrap_err();
        assert!(log.contains("broken.cu"), "{log}");
    }
}
