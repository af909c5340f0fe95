//! Answers requests with a backend, and compares answers with the expected outputs.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use fp4_core::backend::erased::Backend;
use fp4_core::{
    Encoding, FloatType, Format, GroupSize, MatmulQuery, PackedMatrix, PackedShape, QuantSpec,
    QuantizeInput, Transform, Unsupported,
};
use safetensors::Dtype;

use super::{
    CaseEntry, Error, Manifest, Request, SCHEMA, Tensors, expect_apart, expect_vacant, io,
    read_manifest, read_tensors, stems, write_tensors,
};
use crate::files;
use crate::report::Counts;
use crate::suite::outcome::{Comparison, Meaning, Outcome};
use crate::suite::quantize_into_garbage;
use crate::tensor::{Values, bits_of, dtype, from_bytes, garbage, to_bytes};
use crate::text::Shown;

/// True for a folder that holds a manifest of this schema.
pub fn is_exchange(dir: &Path) -> bool {
    stems(dir, "json").is_ok_and(|names| {
        names.iter().any(|name| {
            files::read(&dir.join(format!("{name}.json")))
                .is_ok_and(|json| String::from_utf8_lossy(&json).contains(SCHEMA))
        })
    })
}

/// The names of an export's files, each with a manifest.
fn names(dir: &Path) -> Result<BTreeSet<String>, Error> {
    let names = stems(dir, "json")?;
    match stems(dir, "safetensors")?.difference(&names).next() {
        Some(orphan) => Err(Error::NoManifest { path: dir.join(format!("{orphan}.json")) }),
        None => Ok(names),
    }
}

/// The manifest, the tensors and the path of one file of an export.
fn read_export(dir: &Path, name: &str) -> Result<(Manifest, Tensors, PathBuf), Error> {
    let path = dir.join(format!("{name}.json"));
    let manifest = read_manifest(&path)?;
    Ok((manifest, read_tensors(&path.with_extension("safetensors"))?, path))
}

/// The file of answers to `name`, which must be none of the export's own.
fn answers_to(
    dir: &Path,
    names: &BTreeSet<String>,
    answers: &Path,
    name: &str,
) -> Result<PathBuf, Error> {
    let path = answers.join(format!("{name}.safetensors"));
    if path.exists() {
        for name in names {
            expect_apart(&path, &dir.join(format!("{name}.safetensors")))?;
        }
    }
    Ok(path)
}

/// Writes a backend's answers to every file of `dir` into `to`; what it does not support is left
/// out. Returns how many cases were answered, and how many were not.
///
/// # Errors
/// Files that cannot be read or written; a backend that fails; [`Error::Same`] or
/// [`Error::Occupied`] if the answers would overwrite vectors.
pub fn answer(dir: &Path, to: &Path, backend: &Backend) -> Result<[usize; 2], Error> {
    expect_apart(to, dir)?;
    expect_vacant(to, &["json"])?;
    let names = names(dir)?;
    std::fs::create_dir_all(to).map_err(io(to))?;
    let mut answered = [0; 2];
    for name in &names {
        let (manifest, tensors, path) = read_export(dir, name)?;
        let mut answers = Tensors::new();
        for (number, case) in &manifest.cases {
            match respond(&path, number, case, &tensors, backend) {
                Ok(outputs) => {
                    answered[0] += 1;
                    for (name, output) in outputs {
                        answers.insert(format!("{number}.{name}"), output);
                    }
                }
                Err(Error::Core { source: fp4_core::Error::Unsupported(_), .. }) => {
                    answered[1] += 1;
                }
                Err(error) => return Err(error),
            }
        }
        write_tensors(&answers_to(dir, &names, to, name)?, &answers)?;
    }
    Ok(answered)
}

/// What answers were compared with an export, and what was found.
#[derive(Debug, Clone, Default)]
pub struct Verification {
    /// One line for each file, and one for each case that differs.
    pub report: String,
    /// Cases answered, values compared, values that differ.
    pub counts: Counts,
    /// Cases that the export asks.
    pub asked: u64,
}

impl Verification {
    /// Cases without an answer: not a pass, unless part of the answers is all that was meant.
    pub fn unanswered(&self) -> u64 {
        self.asked - self.counts.cases
    }
}

/// Compares the answers in `answers` with the expected outputs in `dir`. Files and cases that are
/// not answered are named and counted as [`unanswered`](Verification::unanswered).
///
/// # Errors
/// Files that cannot be read; an answer that is part of the export, by name or link
/// ([`Error::Same`]), that the export does not ask ([`Error::Extra`]), or that is there twice;
/// a case without all of its outputs; [`Error::Nothing`].
pub fn verify(dir: &Path, answers: &Path) -> Result<Verification, Error> {
    expect_apart(answers, dir)?;
    let names = names(dir)?;
    let extra = |what: &str| Error::Extra {
        path: answers.to_owned(),
        what: what.to_owned(),
        dir: dir.to_owned(),
    };
    if let Some(name) = stems(answers, "safetensors")?.difference(&names).next() {
        return Err(extra(&format!("a file {name}")));
    }
    let mut found = Verification::default();
    for name in &names {
        let (manifest, expected, _) = read_export(dir, name)?;
        found.asked += manifest.cases.len() as u64;
        let given = answers_to(dir, &names, answers, name)?;
        let name = Shown(name);
        if !given.exists() {
            let _ =
                writeln!(found.report, "{name}: none of {} cases answered", manifest.cases.len());
            continue;
        }
        let answered = read_tensors(&given)?;
        let is_asked = |tensor: &str| {
            tensor.split_once('.').is_some_and(|(number, output)| {
                manifest.cases.get(number).is_some_and(|case| case.outputs.contains_key(output))
            })
        };
        if let Some(tensor) = answered.keys().find(|tensor| !is_asked(tensor)) {
            return Err(extra(&format!("tensor {tensor} of {name}")));
        }
        let counts = compare(&manifest, &given, &expected, &answered, &mut found.report)?;
        let _ = writeln!(found.report, "{name}: {counts}");
        found.counts.merge(&counts);
    }
    if found.counts.values == 0 {
        return Err(Error::Nothing { path: dir.to_owned() });
    }
    Ok(found)
}

fn compare(
    manifest: &Manifest,
    path: &Path,
    expected: &Tensors,
    answers: &Tensors,
    report: &mut String,
) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    for (number, case) in &manifest.cases {
        let name = |output: &str| format!("{number}.{output}");
        if !case.outputs.keys().any(|output| answers.contains_key(&name(output))) {
            continue;
        }
        let mut comparison = Comparison::default();
        for output in case.outputs.keys() {
            let tensor = name(output);
            let right = find(path, expected, &tensor)?;
            expect_type(path, &tensor, right.0)?;
            let (ty, shape, bytes) = find(path, answers, &tensor)?;
            if (ty, shape) != (&right.0, &right.1) {
                return Err(Error::Tensor {
                    path: path.to_owned(),
                    tensor,
                    got: format!("{ty} {shape:?}"),
                    expected: format!("{} {:?}", right.0, right.1),
                });
            }
            let (clause, meaning) = meaning(case, output, *ty);
            let columns = shape.last().copied().unwrap_or(1);
            let width = ty.bitsize() / 8;
            let (got, wanted) = (words(width, bytes), words(width, &right.2));
            comparison.compare(clause, output, meaning, columns, &got, &wanted);
        }
        match comparison.outcome() {
            Outcome::Passed { values, .. } => counts.values += values,
            Outcome::Differs(mismatch) => {
                counts.values += mismatch.compared;
                counts.differ += mismatch.differ;
                let (id, number) = (Shown(&case.id), Shown(number));
                let _ = writeln!(report, "FAILED {id} (tensors {number}.*)\n  {mismatch}");
            }
            _ => {}
        }
        counts.cases += 1;
    }
    let missing = manifest.cases.len() as u64 - counts.cases;
    if missing > 0 {
        let _ = writeln!(report, "{}: {missing} cases not answered", Shown(&manifest.name));
    }
    Ok(counts)
}

fn words(width: usize, bytes: &[u8]) -> Vec<u32> {
    let word = |b: &[u8]| b.iter().rev().fold(0, |word, &b| word << 8 | u32::from(b));
    bytes.chunks_exact(width).map(word).collect()
}

fn meaning(case: &CaseEntry, output: &str, ty: Dtype) -> (&'static str, Meaning) {
    match (&case.request, output) {
        (Request::Quantize { element: Some(_), .. }, "codes") => ("C10", Meaning::Int8),
        (Request::Quantize { element: Some(_), .. }, _) => {
            ("C10", Meaning::Scale(fp4_core::ScaleType::E8M0))
        }
        (Request::Quantize { .. }, "codes") => ("C4.3", Meaning::Codes),
        (Request::Quantize { scale_type, .. }, _) => {
            ("C4.2", scale_type.parse().map_or(Meaning::Integer, Meaning::Scale))
        }
        (Request::Matmul { .. }, _) => {
            let ty = FloatType::ALL.into_iter().find(|float| dtype(*float) == ty);
            ("C6", ty.map_or(Meaning::Integer, Meaning::Float))
        }
    }
}

fn find<'a>(
    path: &Path,
    tensors: &'a Tensors,
    name: &str,
) -> Result<&'a (Dtype, Vec<usize>, Vec<u8>), Error> {
    tensors.get(name).ok_or_else(|| Error::Tensor {
        path: path.to_owned(),
        tensor: name.to_owned(),
        got: "missing".into(),
        expected: "a tensor".into(),
    })
}

/// Only the types of the schema have words of the width that is compared.
fn expect_type(path: &Path, tensor: &str, ty: Dtype) -> Result<(), Error> {
    if ty == Dtype::U8 || FloatType::ALL.into_iter().any(|float| dtype(float) == ty) {
        return Ok(());
    }
    Err(Error::Tensor {
        path: path.to_owned(),
        tensor: tensor.to_owned(),
        got: ty.to_string(),
        expected: "U8, F32, F16 or BF16".into(),
    })
}

/// A backend's outputs for a case, by name.
fn respond(
    path: &Path,
    number: &str,
    case: &CaseEntry,
    tensors: &Tensors,
    backend: &Backend,
) -> Result<Tensors, Error> {
    let asked = Asked { path, number, case, tensors };
    match &case.request {
        Request::Quantize { element: Some(element), .. } => match element.as_str() {
            "int8" => asked.quantize(&QuantSpec::mxint8(), backend),
            other => Err(asked.unknown("element", other)),
        },
        Request::Quantize {
            scale_type, group, global_scale_bits, scale_scale_bits, tie, ..
        } => {
            let settings = [*global_scale_bits, *scale_scale_bits].map(f32::from_bits);
            let spec = asked.spec(scale_type, *group, settings, tie)?;
            asked.quantize(&spec, backend)
        }
        Request::Matmul { format, activations, shape, alpha_bits, output } => {
            let format: Format = format.parse().map_err(|_| asked.unknown("format", format))?;
            let a = match activations.as_deref() {
                None => format.into(),
                Some("mxint8") => Encoding::MxInt8,
                Some(other) => return Err(asked.unknown("activations", other)),
            };
            let format = (a, format);
            let output = output.parse().map_err(|_| asked.unknown("output", output))?;
            asked.matmul(format, *shape, f32::from_bits(*alpha_bits), output, backend)
        }
    }
}

/// A case of an export with its file's tensors.
struct Asked<'a> {
    path: &'a Path,
    number: &'a str,
    case: &'a CaseEntry,
    tensors: &'a Tensors,
}

impl Asked<'_> {
    fn core(&self, source: fp4_core::Error) -> Error {
        Error::Core { case: self.case.id.clone(), source }
    }

    /// The case's tensor `name`.
    fn get(&self, name: &str) -> Result<&(Dtype, Vec<usize>, Vec<u8>), Error> {
        find(self.path, self.tensors, &format!("{}.{name}", self.number))
    }

    fn unknown(&self, what: &str, got: &str) -> Error {
        Error::Tensor {
            path: self.path.to_owned(),
            tensor: format!("{what} of case {}", self.number),
            got: got.to_owned(),
            expected: "a name of the schema".into(),
        }
    }

    /// The values of the case's tensor `name`, and its shape.
    fn float(&self, name: &str) -> Result<(Values, &Vec<usize>), Error> {
        let (ty, shape, bytes) = self.get(name)?;
        let found = FloatType::ALL.into_iter().find(|float| dtype(*float) == *ty);
        let float = found.ok_or_else(|| self.unknown(name, &ty.to_string()))?;
        Ok((from_bytes(float, bytes), shape))
    }

    fn spec(
        &self,
        scale_type: &str,
        group: usize,
        [global_scale, scale_scale]: [f32; 2],
        tie: &str,
    ) -> Result<QuantSpec, Error> {
        let ty = scale_type.parse().map_err(|_| self.unknown("scale_type", scale_type))?;
        let mode = tie.parse().map_err(|_| self.unknown("tie", tie))?;
        let spec = GroupSize::new(group)
            .and_then(|group| QuantSpec::new(ty, group, global_scale, scale_scale));
        Ok(spec.map_err(|e| self.core(e))?.with_tie(mode))
    }

    fn quantize(&self, spec: &QuantSpec, backend: &Backend) -> Result<Tensors, Error> {
        let (x, shape) = self.float("x")?;
        let &[rows, k] = shape.as_slice() else {
            return Err(self.unknown("shape of x", "no matrix"));
        };
        let transform = match self.case.inputs.contains_key("transform") {
            true => Some(self.float("transform")?),
            false => None,
        };
        let transform = (transform.as_ref())
            .map(|(values, shape)| Transform::from_shape(values.as_slice(), shape))
            .transpose()
            .map_err(|e| self.core(e))?;
        let mut input = QuantizeInput::new(x.as_slice(), rows, k, spec)
            .and_then(|input| input.with_transform(transform))
            .map_err(|e| self.core(e))?;
        if self.case.inputs.contains_key("given_scales") {
            input = input.with_scales(&self.get("given_scales")?.2).map_err(|e| self.core(e))?;
        }
        let Some(quantizer) = backend.quantizer() else {
            return Err(self.core(Unsupported::Other("no quantizer").into()));
        };
        let shape = input.shape();
        let (out, _) = quantize_into_garbage(&**quantizer, &input).map_err(|e| self.core(e))?;
        let (codes, scales) = out.into_parts();
        Ok(BTreeMap::from([
            ("codes".into(), (Dtype::U8, vec![rows, shape.row_bytes()], codes)),
            ("scales".into(), (Dtype::U8, vec![rows, shape.row_groups()], scales)),
        ]))
    }

    fn matmul(
        &self,
        (encoding, format): (Encoding, Format),
        [m, n, k]: [usize; 3],
        alpha: f32,
        output: FloatType,
        backend: &Backend,
    ) -> Result<Tensors, Error> {
        let side = |name: &str, encoding: Encoding, rows: usize| -> Result<PackedMatrix, Error> {
            let shape = PackedShape::encoded(encoding, rows, k).map_err(|e| self.core(e))?;
            let part = |part: &str| Ok::<_, Error>(self.get(&format!("{name}_{part}"))?.2.clone());
            PackedMatrix::new(shape, part("codes")?, part("scales")?).map_err(|e| self.core(e))
        };
        let (a, b) = (side("a", encoding, m)?, side("b", format.into(), n)?);
        a.shape().expect_product(&b.shape()).map_err(|e| self.core(e))?;
        // With K = 0 nothing in the inputs bounds M * N; the expected output in the file does.
        let expected = &self.get("y")?.1;
        if *expected != [m, n] {
            return Err(Error::Tensor {
                path: self.path.to_owned(),
                tensor: format!("{}.y", self.number),
                got: format!("{expected:?}"),
                expected: format!("[{m}, {n}], as the request"),
            });
        }
        let Some(matmul) = backend.matmul() else {
            return Err(self.core(Unsupported::Other("no matmul").into()));
        };
        let query = MatmulQuery::new(format, [m, n, k], output).with_a(encoding);
        matmul.supports_matmul(&query).map_err(|why| self.core(why.into()))?;
        let weight = matmul.clone().prepare_dyn(b.into()).map_err(|e| self.core(e))?;
        let mut y = garbage(output, m * n);
        weight.matmul(a.view(), alpha.into(), y.as_mut_slice()).map_err(|e| self.core(e))?;
        let bytes = to_bytes(output, &bits_of(y.as_slice()));
        Ok(BTreeMap::from([("y".into(), (dtype(output), vec![m, n], bytes))]))
    }
}
