//! Family a, decoding: the value of every e2m1, e8m0 and e4m3 code, by library ([C1], [C2]).
//!
//! `{type}.f32bits.{library}` holds the f32 bits of every code in code order. NaN payloads differ
//! between libraries, so an expected NaN means the canonical one. The core's tables are checked,
//! and the decoding inside the backend's matmul: row i of A holds one element, code i under scale
//! 1 or code 2 (1.0) under scale byte i, and B is one row that multiplies it by 1. There a negative
//! zero becomes +0, because an exact sum of zero is +0 ([C6]).
//!
//! [C1]: fp4_core::contract#c1
//! [C2]: fp4_core::contract#c2
//! [C6]: fp4_core::contract#c6

use std::sync::Arc;

use fp4_core::backend::erased::{Backend, DynMatmul};
use fp4_core::{E2m1, FloatType, Format, MatmulQuery, PackedMatrix, PackedShape, ScaleType};
use safetensors::Dtype;

use super::file::Column;
use super::report::FileReport;
use super::{Error, VectorFile, canonical_f32, in_case};

/// The e2m1 code of 1.0.
const ONE_CODE: u8 = 0x2;

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let codes: Column<u8> = file.column("e2m1.code", Dtype::U8, &[16])?;
    let listed: Vec<u8> = (0..16).collect();
    report.case("e2m1 codes in order").compare("C1", &codes, &listed);

    let e2m1: Vec<u32> = (0..16).map(|c| E2m1::from_bits(c).to_f32().to_bits()).collect();
    for column in libraries(file, "e2m1", 16)? {
        report.case(format!("decode {}", column.tensor())).compare("C1", &column, &e2m1);
        for format in Format::ALL {
            let a = |i| (i, one(format.scale_type()));
            through_matmul(file, backend, report, format, &column, a)?;
        }
    }
    for format in Format::ALL {
        let scale_type = format.scale_type();
        let bits: Vec<u32> = (0..=255).map(|b| scale_type.decode(b).to_bits()).collect();
        for column in libraries(file, &scale_type.to_string(), 256)? {
            report.case(format!("decode {}", column.tensor())).compare("C2", &column, &bits);
            through_matmul(file, backend, report, format, &column, |i| (ONE_CODE, i))?;
        }
    }
    Ok(())
}

/// The tables of a type, one for each library; at least one.
fn libraries(file: &VectorFile, ty: &str, codes: usize) -> Result<Vec<Column<u32>>, Error> {
    let prefix = format!("{ty}.f32bits.");
    let names: Vec<_> = file.tensor_names().filter(|name| name.starts_with(&prefix)).collect();
    if names.is_empty() {
        return Err(Error::NoTensor {
            file: file.name().to_owned(),
            tensor: format!("{prefix}*"),
            place: "file",
        });
    }
    (names.into_iter())
        .map(|name| Ok(file.column(name, Dtype::U32, &[codes])?.map(canonical_f32)))
        .collect()
}

/// The scale byte of 1.
fn one(scale_type: ScaleType) -> u8 {
    scale_type.encode(1.0)
}

/// Multiplies a column of single elements, given as (code, scale byte) by row, by 1.
fn through_matmul(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
    format: Format,
    expected: &Column<u32>,
    element: impl Fn(u8) -> (u8, u8),
) -> Result<(), Error> {
    let case = format!("decode {} through the {format} matmul", expected.tensor());
    let Some(matmul) = backend.matmul() else {
        report.skip(case, "the backend has no matmul");
        return Ok(());
    };
    let (m, k) = (expected.values().len(), format.group().get());
    let query = MatmulQuery::new(format, [m, 1, k], FloatType::F32);
    if let Err(reason) = matmul.supports_matmul(&query) {
        report.skip(case, reason);
        return Ok(());
    }
    let got = multiply(matmul, format, m, element).map_err(in_case(file, &case))?;
    let unsigned_zero = expected.clone().map(|bits| if bits == 0x8000_0000 { 0 } else { bits });
    report.case(case).compare("C6", &unsigned_zero, &super::f32_bits(&got));
    Ok(())
}

fn multiply(
    matmul: &Arc<dyn DynMatmul>,
    format: Format,
    m: usize,
    element: impl Fn(u8) -> (u8, u8),
) -> Result<Vec<f32>, fp4_core::Error> {
    let k = format.group().get();
    let mut codes = vec![0; m * k / 2];
    let mut scales = vec![0; m];
    let rows = codes.chunks_exact_mut(k / 2).zip(&mut scales);
    for (i, (codes, scale)) in (0..=u8::MAX).zip(rows) {
        (codes[0], *scale) = element(i);
    }
    let a = PackedMatrix::new(PackedShape::of(format, m, k)?, codes, scales)?;
    let mut codes = vec![0; k / 2];
    codes[0] = ONE_CODE;
    let shape = PackedShape::of(format, 1, k)?;
    let b = PackedMatrix::new(shape, codes, vec![one(format.scale_type())])?;
    let mut out = vec![f32::from_bits(0xA5A5_A5A5); m];
    let weight = matmul.clone().prepare_dyn(Arc::new(b))?;
    weight.matmul(a.view(), 1.0.into(), out.as_mut_slice().into())?;
    Ok(out)
}
