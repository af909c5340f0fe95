//! Golden vectors: folders of `NAME.safetensors` + `NAME.json`, and the checks that run them.
//!
//! | family | files | what is checked | clause |
//! |---|---|---|---|
//! | [`Family::Scalar`] (a) | `a_decode_tables*`, `a_f32_to_{e2m1,e4m3,e8m0}*` | decode tables of every library; encoding | [C1], [C2] |
//! | [`Family::Quantize`] (b) | `b_rtn_*` | scales, codes in four tie modes, units, given scales, dequantization | [C4] |
//! | [`Family::Transform`] (c) | `c_transform*` | the transformed values; scales, codes and dequantization behind it | [C5] |
//! | [`Family::Swizzle`] (d) | `d_swizzle*` | both directions, offset and coordinate | [C7] |
//! | [`Family::Matmul`] (e) | `e_matmul_*` | exact sums, three output types, partial sums, padding, single rows | [C6], [C8] |
//! | [`Family::MxInt8`] (i) | `i_mxint8_quantize*`, `i_mxint8_matmul_*` | elements, scales, dequantization; as e, by MXFP4 and NVFP4 | [C10], [C6], [C8] |
//! | [`Family::Epilogue`] (j) | `j_epilogue_*` | as e, with row scales and bias | [C6], [C8] |
//! | [`Family::Rows`] (k) | `k_rows_*` | row scales; scales and codes under them | [C4] |
//!
//! Whatever a [`Backend`] can do is asked of the backend: scalar encodings run through its
//! quantizer (one element a group), scale decoding through its matmul. What has one home in the
//! core (tables, swizzling, dequantization, `finish`) is called there. Output buffers are filled
//! with garbage first, so that a byte left unwritten differs.
//!
//! [C1]: fp4_core::contract#c1
//! [C2]: fp4_core::contract#c2
//! [C4]: fp4_core::contract#c4
//! [C5]: fp4_core::contract#c5
//! [C7]: fp4_core::contract#c7
//! [C6]: fp4_core::contract#c6
//! [C8]: fp4_core::contract#c8
//! [C10]: fp4_core::contract#c10

mod decode;
mod encode;
mod error;
mod file;
mod matmul;
mod mxint8;
mod quantize;
mod report;
mod rows;
mod subset;
mod swizzle;
mod transform;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use fp4_core::backend::erased::Backend;
use fp4_core::{NAN_BF16, NAN_F16, NAN_F32, PackedMatrix, PackedShape, QuantizeInput, Quantizer};

pub use error::Error;
pub use file::{Column, Manifest, Pattern, TensorInfo, VectorFile};
pub use report::{Case, Difference, FileReport, Report, Skipped};
pub use subset::write_subset;

/// A family of vector files, told by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// a: decoding and encoding of single values.
    Scalar,
    /// b: group quantization.
    Quantize,
    /// c: block transform, then quantization.
    Transform,
    /// d: the 128x4 scale layout.
    Swizzle,
    /// e: the exact matmul.
    Matmul,
    /// i: MXINT8 activations.
    MxInt8,
    /// j: the exact matmul with row scales and bias.
    Epilogue,
    /// k: quantization with row scales.
    Rows,
}

impl Family {
    /// All families.
    pub const ALL: [Family; 8] = [
        Family::Scalar,
        Family::Quantize,
        Family::Transform,
        Family::Swizzle,
        Family::Matmul,
        Family::MxInt8,
        Family::Epilogue,
        Family::Rows,
    ];

    /// The family of the file `name`, if a check covers it.
    pub fn of_name(name: &str) -> Option<Family> {
        let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
        if starts(&["a_decode_tables", "a_f32_to_e2m1", "a_f32_to_e4m3", "a_f32_to_e8m0"]) {
            Some(Family::Scalar)
        } else if starts(&["b_rtn_"]) {
            Some(Family::Quantize)
        } else if starts(&["c_transform"]) {
            Some(Family::Transform)
        } else if starts(&["d_swizzle"]) {
            Some(Family::Swizzle)
        } else if starts(&["e_matmul_"]) {
            Some(Family::Matmul)
        } else if starts(&["i_mxint8_quantize", "i_mxint8_matmul_"]) {
            Some(Family::MxInt8)
        } else if starts(&["j_epilogue_"]) {
            Some(Family::Epilogue)
        } else if starts(&["k_rows_"]) {
            Some(Family::Rows)
        } else {
            None
        }
    }

    /// True for a tensor that no check needs to read: other libraries' answers, unrounded values,
    /// intermediate results.
    fn is_information(self, tensor: &str) -> bool {
        let (input, column) = tensor.rsplit_once('.').unwrap_or(("", tensor));
        match self {
            Family::Scalar => input == "out",
            Family::Quantize => column == "xs",
            Family::Transform => {
                ["y_f64", "abs_sum_f64", "stable", "scale_stable"].contains(&column)
            }
            Family::Swizzle | Family::MxInt8 | Family::Epilogue | Family::Rows => false,
            Family::Matmul => ["S_f64", "deq_f64"].contains(&column),
        }
    }

    /// The letter that the family's file names start with.
    pub const fn letter(self) -> char {
        match self {
            Family::Scalar => 'a',
            Family::Quantize => 'b',
            Family::Transform => 'c',
            Family::Swizzle => 'd',
            Family::Matmul => 'e',
            Family::MxInt8 => 'i',
            Family::Epilogue => 'j',
            Family::Rows => 'k',
        }
    }
}

/// A folder of vector files, listed.
#[derive(Debug, Clone)]
pub struct Folder {
    dir: PathBuf,
    files: Vec<(String, Family)>,
    not_checked: Vec<String>,
}

impl Folder {
    /// Lists the vector files in `dir`. Sub-folders are not entered.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder cannot be read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: dir.to_owned(), source };
        let mut names = BTreeSet::new();
        for entry in std::fs::read_dir(dir).map_err(io)? {
            let name = entry.map_err(io)?.file_name();
            let name = name.to_string_lossy();
            // A manifest alone counts too: its vector file is missing, which must not pass. Other
            // JSON files (configurations of checkpoints) have a dot in their names.
            let stem = name.strip_suffix(".safetensors").or(name.strip_suffix(".json"));
            names.extend(stem.filter(|stem| !stem.contains('.')).map(str::to_owned));
        }
        let (mut files, mut not_checked) = (Vec::new(), Vec::new());
        for name in names {
            match Family::of_name(&name) {
                Some(family) => files.push((name, family)),
                None => not_checked.push(name),
            }
        }
        Ok(Folder { dir: dir.to_owned(), files, not_checked })
    }

    /// The files that a check covers, by name.
    pub fn files(&self) -> &[(String, Family)] {
        &self.files
    }

    /// The files that no check covers.
    pub fn not_checked(&self) -> &[String] {
        &self.not_checked
    }

    /// Checks one file of the folder.
    ///
    /// # Errors
    /// As [`check_file`].
    pub fn check(&self, name: &str, backend: &Backend) -> Result<FileReport, Error> {
        check_file(&VectorFile::open(&self.dir, name)?, backend)
    }

    /// The error that this folder makes if nothing in it was compared.
    pub fn nothing(&self) -> Error {
        let hint = match self.not_checked.as_slice() {
            [] => String::new(),
            names => format!(" (not checked: {})", names.join(", ")),
        };
        Error::Nothing { what: self.dir.display().to_string(), hint }
    }
}

/// Checks every vector file in a folder.
///
/// # Errors
/// The first file that cannot be read or checked; [`Error::Nothing`] if nothing was compared.
pub fn check_dir(dir: &Path, backend: &Backend) -> Result<Report, Error> {
    let folder = Folder::open(dir)?;
    let mut report = Report { not_checked: folder.not_checked.clone(), ..Report::default() };
    for (name, _) in folder.files() {
        report.files.push(folder.check(name, backend)?);
    }
    if report.counts().values == 0 { Err(folder.nothing()) } else { Ok(report) }
}

/// Checks one vector file.
///
/// # Errors
/// A file that does not hold what its family needs; [`Error::Core`] if the backend fails;
/// [`Error::Nothing`] if nothing was compared, [`Error::Unread`] if a tensor was left out, unless
/// the backend made the check skip cases.
pub fn check_file(file: &VectorFile, backend: &Backend) -> Result<FileReport, Error> {
    let nothing = || Error::Nothing { what: file.name().to_owned(), hint: String::new() };
    let family = Family::of_name(file.name()).ok_or_else(nothing)?;
    let mut report = FileReport::new(file.name(), family);
    match family {
        Family::Scalar if file.name().starts_with("a_decode") => {
            decode::check(file, backend, &mut report)?;
        }
        Family::Scalar => encode::check(file, backend, &mut report)?,
        Family::Quantize => quantize::check(file, backend, &mut report)?,
        Family::Transform => transform::check(file, backend, &mut report)?,
        Family::Swizzle => swizzle::check(file, &mut report)?,
        Family::MxInt8 if file.name().starts_with("i_mxint8_quantize") => {
            mxint8::check(file, backend, &mut report)?;
        }
        Family::Matmul | Family::MxInt8 | Family::Epilogue => {
            matmul::check(file, backend, &mut report)?;
        }
        Family::Rows => rows::check(file, backend, &mut report)?,
    }
    if report.skipped.is_empty() {
        if report.counts.values == 0 {
            return Err(nothing());
        }
        if let Some(tensor) = file.unread().find(|tensor| !family.is_information(tensor)) {
            let (file, tensor) = (file.name().to_owned(), tensor.to_owned());
            return Err(Error::Unread { file, tensor });
        }
    }
    Ok(report)
}

/// What output buffers hold before a backend writes them.
const GARBAGE: u8 = 0xA5;

/// Names file and case in an error of the core.
fn in_case<'a>(file: &'a VectorFile, case: &'a str) -> impl Fn(fp4_core::Error) -> Error + 'a {
    move |source| Error::Core { file: file.name().to_owned(), case: case.to_owned(), source }
}

/// Quantizes into buffers of garbage; `None` (and a note in the report) if the backend does not
/// support the input.
fn quantize(
    file: &VectorFile,
    report: &mut FileReport,
    case: &str,
    quantizer: &dyn Quantizer,
    input: &QuantizeInput<'_>,
) -> Result<Option<PackedMatrix>, Error> {
    if let Err(reason) = quantizer.supports_quantize(&input.query()) {
        report.skip(case, reason);
        return Ok(None);
    }
    let mut out = garbage(input.shape()).map_err(in_case(file, case))?;
    quantizer.quantize(input, &mut out.view_mut()).map_err(in_case(file, case))?;
    Ok(Some(out))
}

/// A packed matrix of garbage.
fn garbage(shape: PackedShape) -> Result<PackedMatrix, fp4_core::Error> {
    let (codes, scales) = (vec![GARBAGE; shape.codes_len()], vec![GARBAGE; shape.scales_len()]);
    PackedMatrix::new(shape, codes, scales)
}

/// The bits of f32 values.
fn f32_bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The same f32 bits, NaN of any payload made canonical (C9).
fn canonical_f32(bits: u32) -> u32 {
    if bits & 0x7FFF_FFFF > 0x7F80_0000 { NAN_F32 } else { bits }
}

/// The same f16 bits, NaN of any payload made canonical (C9).
fn canonical_f16(bits: u16) -> u16 {
    if bits & 0x7FFF > 0x7C00 { NAN_F16 } else { bits }
}

/// The same bf16 bits, NaN of any payload made canonical (C9).
fn canonical_bf16(bits: u16) -> u16 {
    if bits & 0x7FFF > 0x7F80 { NAN_BF16 } else { bits }
}

/// The same scale byte, NaN of either sign made canonical (C9).
fn canonical_scale(scale_type: fp4_core::ScaleType, byte: u8) -> u8 {
    use fp4_core::ScaleType::{E4M3, E8M0};
    match (scale_type, byte) {
        (E4M3, 0x7F | 0xFF) => 0x7F,
        (E8M0 | E4M3, byte) => byte,
    }
}
