//! Answers requests with a backend, and compares answers with the expected outputs.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use fp4_core::backend::erased::Backend;
use fp4_core::{
    FloatType, Format, GroupSize, MatmulQuery, PackedMatrix, PackedShape, QuantSpec, QuantizeInput,
    TieMode, Transform, Unsupported,
};
use safetensors::Dtype;

use super::export::{SCALE_TYPES, tie_name};
use super::{
    CaseEntry, Error, Manifest, Request, SCHEMA, Tensors, io, read_manifest, read_tensors,
    write_tensors,
};
use crate::report::Counts;
use crate::suite::outcome::{Comparison, Meaning, Outcome};
use crate::suite::quantize_into_garbage;
use crate::tensor::{bits_of, dtype, from_bytes, garbage, to_bytes};

/// True for a folder that holds a manifest of this schema.
pub fn is_exchange(dir: &Path) -> bool {
    manifests(dir).is_ok_and(|paths| {
        paths
            .iter()
            .any(|path| std::fs::read_to_string(path).is_ok_and(|text| text.contains(SCHEMA)))
    })
}

fn manifests(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(io(dir))? {
        let path = entry.map_err(io(dir))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Writes a backend's answers to every file of `dir` into `to`; what it does not support is left
/// out. Returns how many cases were answered, and how many were not.
///
/// # Errors
/// Files that cannot be read or written; a backend that fails.
pub fn answer(dir: &Path, to: &Path, backend: &Backend) -> Result<[usize; 2], Error> {
    std::fs::create_dir_all(to).map_err(io(to))?;
    let mut answered = [0; 2];
    for path in manifests(dir)? {
        let manifest = read_manifest(&path)?;
        let tensors = read_tensors(&path.with_extension("safetensors"))?;
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
        write_tensors(&to.join(format!("{}.safetensors", manifest.name)), &answers)?;
    }
    Ok(answered)
}

/// Compares the answers in `answers` with the expected outputs in `dir`: a report and the counts.
/// Files and cases that are not answered are named and not counted.
///
/// # Errors
/// Files that cannot be read; [`Error::Nothing`].
pub fn verify(dir: &Path, answers: &Path) -> Result<(String, Counts), Error> {
    let (mut report, mut counts) = (String::new(), Counts::default());
    for path in manifests(dir)? {
        let manifest = read_manifest(&path)?;
        let given = answers.join(format!("{}.safetensors", manifest.name));
        if !given.exists() {
            let _ = writeln!(report, "{}: not answered", manifest.name);
            continue;
        }
        let expected = read_tensors(&path.with_extension("safetensors"))?;
        let file = compare(&manifest, &given, &expected, &read_tensors(&given)?, &mut report)?;
        let _ = writeln!(report, "{}: {file}", manifest.name);
        counts.merge(&file);
    }
    if counts.values == 0 {
        return Err(Error::Nothing { path: dir.to_owned() });
    }
    Ok((report, counts))
}

fn compare(
    manifest: &Manifest,
    path: &Path,
    expected: &Tensors,
    answers: &Tensors,
    report: &mut String,
) -> Result<Counts, Error> {
    let mut counts = Counts::default();
    let mut missing = 0;
    for (number, case) in &manifest.cases {
        let name = |output: &str| format!("{number}.{output}");
        if !case.outputs.keys().any(|output| answers.contains_key(&name(output))) {
            missing += 1;
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
            Outcome::Passed { values } => counts.values += values,
            Outcome::Differs(mismatch) => {
                counts.values += mismatch.compared;
                counts.differ += mismatch.differ;
                let _ = writeln!(report, "FAILED {} (tensors {number}.*)\n  {mismatch}", case.id);
            }
            _ => {}
        }
        counts.cases += 1;
    }
    if missing > 0 {
        let _ = writeln!(report, "{}: {missing} cases not answered", manifest.name);
    }
    Ok(counts)
}

fn words(width: usize, bytes: &[u8]) -> Vec<u32> {
    let word = |b: &[u8]| b.iter().rev().fold(0, |word, &b| word << 8 | u32::from(b));
    bytes.chunks_exact(width).map(word).collect()
}

fn meaning(case: &CaseEntry, output: &str, ty: Dtype) -> (&'static str, Meaning) {
    match (&case.request, output) {
        (Request::Quantize { .. }, "codes") => ("C4.3", Meaning::Codes),
        (Request::Quantize { scale_type, .. }, _) => {
            let ty = SCALE_TYPES.into_iter().find(|ty| ty.to_string() == *scale_type);
            ("C4.2", ty.map_or(Meaning::Integer, Meaning::Scale))
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

fn respond(
    path: &Path,
    number: &str,
    case: &CaseEntry,
    tensors: &Tensors,
    backend: &Backend,
) -> Result<Tensors, Error> {
    let core = |source| Error::Core { case: case.id.clone(), source };
    let get = |name: &str| find(path, tensors, &format!("{number}.{name}"));
    let unknown = |what: &str, got: &str| Error::Tensor {
        path: path.to_owned(),
        tensor: format!("{what} of case {number}"),
        got: got.to_owned(),
        expected: "a name of the schema".into(),
    };
    let float = |name: &str| -> Result<_, Error> {
        let (ty, shape, bytes) = get(name)?;
        let found = FloatType::ALL.into_iter().find(|float| dtype(*float) == *ty);
        let float = found.ok_or_else(|| unknown(name, &ty.to_string()))?;
        Ok((from_bytes(float, bytes), shape))
    };
    match &case.request {
        Request::Quantize { scale_type, group, global_scale_bits, scale_scale_bits, tie } => {
            let ty = SCALE_TYPES.into_iter().find(|ty| ty.to_string() == *scale_type);
            let ty = ty.ok_or_else(|| unknown("scale_type", scale_type))?;
            let mode = TieMode::ALL.into_iter().find(|mode| tie_name(*mode) == tie);
            let mode = mode.ok_or_else(|| unknown("tie", tie))?;
            let group = GroupSize::new(*group).map_err(core)?;
            let [gs, ss] = [*global_scale_bits, *scale_scale_bits].map(f32::from_bits);
            let spec = QuantSpec::new(ty, group, gs, ss).map_err(core)?.with_tie(mode);
            let (x, shape) = float("x")?;
            let &[rows, k] = shape.as_slice() else {
                return Err(unknown("shape of x", "no matrix"));
            };
            let transform = match case.inputs.contains_key("transform") {
                true => Some(float("transform")?),
                false => None,
            };
            let transform = (transform.as_ref())
                .map(|(values, shape)| Transform::from_shape(values.as_slice(), shape))
                .transpose()
                .map_err(core)?;
            let mut input = QuantizeInput::new(x.as_slice(), rows, k, &spec)
                .and_then(|input| input.with_transform(transform))
                .map_err(core)?;
            if case.inputs.contains_key("given_scales") {
                input = input.with_scales(&get("given_scales")?.2).map_err(core)?;
            }
            let Some(quantizer) = backend.quantizer() else {
                return Err(core(Unsupported::Other("no quantizer").into()));
            };
            let shape = input.shape();
            let out = quantize_into_garbage(&**quantizer, &input).map_err(core)?;
            let (codes, scales) = out.into_parts();
            Ok(BTreeMap::from([
                ("codes".into(), (Dtype::U8, vec![rows, shape.row_bytes()], codes)),
                ("scales".into(), (Dtype::U8, vec![rows, shape.row_groups()], scales)),
            ]))
        }
        Request::Matmul { format, shape: [m, n, k], alpha_bits, output } => {
            let named = Format::ALL.into_iter().find(|named| named.to_string() == *format);
            let format = named.ok_or_else(|| unknown("format", format))?;
            let named = FloatType::ALL.into_iter().find(|named| named.to_string() == *output);
            let output = named.ok_or_else(|| unknown("output", output))?;
            let side = |name: &str, rows: usize| -> Result<PackedMatrix, Error> {
                let shape = PackedShape::of(format, rows, *k).map_err(core)?;
                let part = |part: &str| Ok::<_, Error>(get(&format!("{name}_{part}"))?.2.clone());
                PackedMatrix::new(shape, part("codes")?, part("scales")?).map_err(core)
            };
            let (a, b) = (side("a", *m)?, side("b", *n)?);
            a.shape().expect_product(&b.shape()).map_err(core)?;
            // With K = 0 nothing in the inputs bounds M * N; the expected output in the file does.
            let expected = &get("y")?.1;
            if *expected != [*m, *n] {
                return Err(Error::Tensor {
                    path: path.to_owned(),
                    tensor: format!("{number}.y"),
                    got: format!("{expected:?}"),
                    expected: format!("[{m}, {n}], as the request"),
                });
            }
            let Some(matmul) = backend.matmul() else {
                return Err(core(Unsupported::Other("no matmul").into()));
            };
            let query = MatmulQuery::new(format, [*m, *n, *k], output);
            matmul.supports_matmul(&query).map_err(|why| core(why.into()))?;
            let weight = matmul.clone().prepare_dyn(b.into()).map_err(core)?;
            let mut y = garbage(output, m * n);
            let alpha = f32::from_bits(*alpha_bits);
            weight.matmul(a.view(), alpha.into(), y.as_mut_slice()).map_err(core)?;
            let bytes = to_bytes(output, &bits_of(y.as_slice()));
            Ok(BTreeMap::from([("y".into(), (dtype(output), vec![*m, *n], bytes))]))
        }
    }
}
