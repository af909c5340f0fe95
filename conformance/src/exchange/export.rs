//! Writes cases of a profile, with the oracle's answers.

use std::collections::BTreeMap;
use std::path::Path;

use fp4_core::{Element, Encoding, FloatType};
use safetensors::Dtype;

use super::{
    CaseEntry, Error, Manifest, Request, SCHEMA, TensorInfo, Tensors, expect_vacant, io,
    write_tensors,
};
use crate::oracle::Oracle;
use crate::suite::case::{Case, Kind, MatmulCase, QuantizeCase, Way};
use crate::suite::quantize_input;
use crate::tensor::{bits_of, dtype, to_bytes};

/// Writes the whole-call cases among `cases` into a folder, one file for each family of data and
/// format; returns the number of cases.
///
/// # Errors
/// A folder that cannot be written, or that holds vectors already; [`Error::NothingToExport`].
pub fn export(dir: &Path, cases: &[Case]) -> Result<usize, Error> {
    expect_vacant(dir, &["json", "safetensors"])?;
    let oracle = Oracle::default();
    let mut files: BTreeMap<String, (BTreeMap<String, CaseEntry>, Tensors)> = BTreeMap::new();
    let mut exported = 0;
    for case in cases {
        let (name, parts) = match &case.kind {
            // The schema has no row scales, here and below, and no bias.
            Kind::Quantize(q) if q.threads == 0 && !q.spec.row_scales() => {
                let of = match q.spec.element() {
                    Element::E2m1 => q.spec.scale_type().name(),
                    Element::Int8 => Encoding::MxInt8.name(),
                };
                let name = format!("quantize_{of}_{}", q.data);
                (name, quantize(&oracle, case, q))
            }
            Kind::Matmul(m) if is_whole(m) && !m.row_scales && !m.bias => {
                let data = m.data.replace(':', "-");
                let name = match m.a {
                    Encoding::MxInt8 => format!("matmul_mxint8_{}_{}_{data}", m.format, m.output),
                    _ => format!("matmul_{}_{}_{data}", m.format, m.output),
                };
                (name, matmul(&oracle, case, m))
            }
            _ => continue,
        };
        let core = |source| Error::Core { case: case.id.clone(), source };
        let (request, inputs, outputs) = parts.map_err(core)?;
        let (entries, tensors) = files.entry(name).or_default();
        let number = entries.len().to_string();
        let mut infos = [inputs, outputs].map(|part| {
            let mut infos = BTreeMap::new();
            for (name, (dtype, shape, bytes)) in part {
                let info = TensorInfo { dtype: dtype.to_string(), shape: shape.clone() };
                infos.insert(name.clone(), info);
                tensors.insert(format!("{number}.{name}"), (dtype, shape, bytes));
            }
            infos
        });
        let [inputs, outputs] = &mut infos;
        let clauses = case.clauses.iter().map(|&clause| clause.to_owned()).collect();
        let (inputs, outputs) = (std::mem::take(inputs), std::mem::take(outputs));
        let entry = CaseEntry { id: case.id.clone(), clauses, request, inputs, outputs };
        entries.insert(number, entry);
        exported += 1;
    }
    if exported == 0 {
        return Err(Error::NothingToExport { cases: cases.len() });
    }
    std::fs::create_dir_all(dir).map_err(io(dir))?;
    for (name, (cases, tensors)) in files {
        write_tensors(&dir.join(format!("{name}.safetensors")), &tensors)?;
        let suite = env!("CARGO_PKG_VERSION").to_owned();
        let manifest = Manifest { schema: SCHEMA.to_owned(), name: name.clone(), suite, cases };
        let path = dir.join(format!("{name}.json"));
        let json = serde_json::to_string_pretty(&manifest)
            .map_err(|source| Error::Manifest { path: path.clone(), source })?;
        std::fs::write(&path, json).map_err(io(&path))?;
    }
    Ok(exported)
}

pub(super) fn is_whole(case: &MatmulCase) -> bool {
    case.threads == 0 && case.way == Way::Whole
}

type Parts = (Request, Tensors, Tensors);

fn quantize(oracle: &Oracle, case: &Case, q: &QuantizeCase) -> Result<Parts, fp4_core::Error> {
    let data = q.data(&case.id, oracle.rules())?;
    let input = quantize_input(q, &data)?;
    let (shape, expected) = (input.shape(), oracle.quantize(&input));
    let x = to_bytes(q.input, &bits_of(input.x()));
    let mut inputs = Tensors::from([("x".into(), (dtype(q.input), q.shape.to_vec(), x))]);
    if let Some(t) = &data.transform {
        let (ty, values) = (t.values().as_slice().float_type(), bits_of(t.values().as_slice()));
        inputs.insert("transform".into(), (dtype(ty), t.shape(), to_bytes(ty, &values)));
    }
    let scales_shape = vec![shape.rows(), shape.row_groups()];
    if let Some(given) = data.given {
        inputs.insert("given_scales".into(), (Dtype::U8, scales_shape.clone(), given));
    }
    let outputs = Tensors::from([
        ("codes".into(), (Dtype::U8, vec![shape.rows(), shape.row_bytes()], expected.codes)),
        ("scales".into(), (Dtype::U8, scales_shape, expected.scales)),
    ]);
    let request = Request::Quantize {
        scale_type: q.spec.scale_type().to_string(),
        group: q.spec.group().get(),
        global_scale_bits: q.spec.global_scale().to_bits(),
        scale_scale_bits: q.spec.scale_scale().to_bits(),
        tie: q.spec.tie().to_string(),
        element: (q.spec.element() == Element::Int8).then(|| Element::Int8.to_string()),
    };
    Ok((request, inputs, outputs))
}

fn matmul(oracle: &Oracle, case: &Case, request: &MatmulCase) -> Result<Parts, fp4_core::Error> {
    let [a, b] = request.data(&case.id)?;
    let sums = oracle.sums(a.view(), b.view(), 0..b.shape().row_groups());
    let output: FloatType = request.output;
    let y: Vec<u32> = sums.iter().map(|s| oracle.output(s, request.alpha, output)).collect();
    let mut inputs = Tensors::new();
    for (name, matrix) in [("a", a), ("b", b)] {
        let shape = matrix.shape();
        let (codes, scales) = matrix.into_parts();
        let groups = vec![shape.rows(), shape.row_groups()];
        inputs.insert(
            format!("{name}_codes"),
            (Dtype::U8, vec![shape.rows(), shape.row_bytes()], codes),
        );
        inputs.insert(format!("{name}_scales"), (Dtype::U8, groups, scales));
    }
    let [m, n, _] = request.shape;
    let y = (dtype(output), vec![m, n], to_bytes(output, &y));
    let outputs = Tensors::from([("y".into(), y)]);
    let request = Request::Matmul {
        format: request.format.to_string(),
        activations: (request.a == Encoding::MxInt8).then(|| request.a.to_string()),
        shape: request.shape,
        alpha_bits: request.alpha.to_bits(),
        output: output.to_string(),
    };
    Ok((request, inputs, outputs))
}
