//! Families e, i and j: the exact matmul ([C6]), its partial sums, and K padding ([C8]); in i with
//! MXINT8 activations ([C10]), in j with scales for the rows of A and a bias.
//!
//! For each input: packed operands with row-major scales, several values of alpha, the exact sums
//! rounded once to f32 (`S32_bits`, by big integers), and the outputs in three types.
//!
//! | case | compares | clause |
//! |---|---|---|
//! | exact sums | `S32_bits`, by alpha = 1 | [C6] |
//! | matmul to f32, bf16, f16 | `y32_bits`, `y_bf16_bits`, `y_f16_bits` for every alpha | [C6] |
//! | K padded | the same in f32, operands padded to a multiple of 128 | [C8] |
//! | row by row | the same in f32, one row of A a call: results do not depend on the batch | [C6] |
//! | exact partials, P parts | sums and all outputs, from P uneven ranges of K, sent as bytes and merged last to first | [C6] |
//! | 64-bit partials, P parts | the same for NVFP4 | [C6] |
//!
//! In families i and j the manifest lists no cases: they are the tensors' names. In j every product
//! has row scales, a bias, or both. The exact sums are the outputs by alpha = 1 and nothing else.
//!
//! Worked example of a split: 65 groups in 3 parts are 0..10, 10..31, 31..65.
//!
//! [C6]: fp4_core::contract#c6
//! [C8]: fp4_core::contract#c8
//! [C10]: fp4_core::contract#c10

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use fp4_core::backend::erased::{Backend, DynMatmul, DynWeight};
use fp4_core::{
    Encoding, Epilogue, ExactSum, FixedSum, Float, FloatType, Format, MatmulQuery, PackedMatrix,
    PackedShape, PackedView, Partials, PartialsMut, finish,
};
use half::{bf16, f16};
use safetensors::Dtype;
use serde::Deserialize;

use super::file::{Column, setting};
use super::report::FileReport;
use super::{
    Error, Family, VectorFile, canonical_bf16, canonical_f16, canonical_f32, f32_bits, in_case,
};

#[derive(Deserialize)]
struct Settings {
    /// Absent in families i and j.
    #[serde(default)]
    cases: BTreeMap<String, CaseSettings>,
    /// B's group size, of A too but in family i.
    #[serde(rename = "G", alias = "G_b")]
    group: usize,
}

#[derive(Deserialize, Default)]
struct CaseSettings {
    #[serde(rename = "M")]
    m: usize,
    #[serde(rename = "N")]
    n: usize,
    #[serde(rename = "K")]
    k: usize,
}

/// One input with its expected columns.
struct Input {
    name: String,
    /// How A is encoded.
    encoding: Encoding,
    /// B's format.
    format: Format,
    a: PackedMatrix,
    b: Arc<PackedMatrix>,
    alphas: Vec<f32>,
    row_scales: Option<Vec<f32>>,
    bias: Option<Vec<f32>>,
    sums: Column<u32>,
    f32: Column<u32>,
    bf16: Column<u16>,
    f16: Column<u16>,
}

pub(super) fn check(
    file: &VectorFile,
    backend: &Backend,
    report: &mut FileReport,
) -> Result<(), Error> {
    let settings: Settings = file.settings()?;
    let format =
        Format::ALL.into_iter().find(|f| f.group().get() == settings.group).ok_or_else(|| {
            setting(file.name(), "G", &settings.group.to_string(), "32 (mxfp4) or 16 (nvfp4)")
        })?;
    let encoding = match report.family {
        Family::MxInt8 => Encoding::MxInt8,
        _ => format.into(),
    };
    let cases = match report.family {
        Family::Epilogue | Family::MxInt8 => cases_by_name(file)?,
        _ => settings.cases,
    };
    for (name, case) in cases {
        let Some(matmul) = backend.matmul() else {
            report.skip(name, "the backend has no matmul");
            continue;
        };
        let input = Input::read(file, name, (encoding, format), &case)?;
        if input.sums.values().is_empty() {
            continue;
        }
        let core = in_case(file, &input.name);
        input.check_products(report, matmul).map_err(&core)?;
        input.check_partials(report, matmul).map_err(&core)?;
    }
    Ok(())
}

/// The cases of a file whose manifest lists none: what the names of the operands start with.
fn cases_by_name(file: &VectorFile) -> Result<BTreeMap<String, CaseSettings>, Error> {
    let names = file.tensor_names().filter_map(|tensor| tensor.strip_suffix(".alpha"));
    let case = |name: &str| {
        let [m, _] = file.matrix_shape(&format!("{name}.a_scales"))?;
        let [n, bytes] = file.matrix_shape(&format!("{name}.b"))?;
        Ok((name.to_owned(), CaseSettings { m, n, k: 2 * bytes }))
    };
    names.map(case).collect()
}

impl Input {
    fn read(
        file: &VectorFile,
        name: String,
        (encoding, format): (Encoding, Format),
        case: &CaseSettings,
    ) -> Result<Self, Error> {
        let &CaseSettings { m, n, k } = case;
        let tensor = |suffix: &str| format!("{name}.{suffix}");
        let operand = |encoding: Encoding, rows: usize, codes: &str, scales: &str| {
            let shape = PackedShape::encoded(encoding, rows, k).map_err(in_case(file, &name))?;
            let bytes = |suffix: &str, cols: usize| {
                let column: Column<u8> = file.column(&tensor(suffix), Dtype::U8, &[rows, cols])?;
                Ok::<_, Error>(column.values().to_vec())
            };
            let (codes, scales) =
                (bytes(codes, shape.row_bytes())?, bytes(scales, shape.row_groups())?);
            PackedMatrix::new(shape, codes, scales).map_err(in_case(file, &name))
        };
        let codes = if encoding == Encoding::MxInt8 { "a_codes" } else { "a" };
        let a = operand(encoding, m, codes, "a_scales")?;
        let b = Arc::new(operand(format.into(), n, "b", "b_scales")?);
        let &[count] = file.raw(&tensor("alpha"))?.1 else {
            return Err(setting(file.name(), &tensor("alpha"), "not 1-D", "1-D"));
        };
        let alphas = file.f32s(&tensor("alpha"), &[count])?;
        let f32s = |suffix: &str, len: usize| {
            let tensor = tensor(suffix);
            let there = file.tensor_names().any(|name| name == tensor);
            there.then(|| file.f32s(&tensor, &[len])).transpose()
        };
        let (row_scales, bias) = (f32s("row_scales", m)?, f32s("bias", n)?);
        let (sums, outputs) = ([m, n], [count, m, n]);
        Ok(Input {
            sums: file.column(&tensor("S32_bits"), Dtype::U32, &sums)?.map(canonical_f32),
            f32: file.column(&tensor("y32_bits"), Dtype::U32, &outputs)?.map(canonical_f32),
            bf16: file.column(&tensor("y_bf16_bits"), Dtype::U16, &outputs)?.map(canonical_bf16),
            f16: file.column(&tensor("y_f16_bits"), Dtype::U16, &outputs)?.map(canonical_f16),
            name,
            encoding,
            format,
            a,
            b,
            alphas,
            row_scales,
            bias,
        })
    }

    fn outputs(&self) -> usize {
        self.sums.values().len()
    }

    fn query(&self, output: FloatType) -> MatmulQuery {
        let (a, b) = (self.a.shape(), self.b.shape());
        MatmulQuery::new(self.format, [a.rows(), b.rows(), a.k()], output)
            .with_a(self.encoding)
            .with_row_scales(self.row_scales.is_some())
            .with_bias(self.bias.is_some())
    }

    /// The epilogue with one of the alphas.
    fn epilogue(&self, alpha: f32) -> Epilogue<'_> {
        Epilogue::new(alpha)
            .with_row_scales(self.row_scales.as_deref())
            .with_bias(self.bias.as_deref())
    }

    /// The case of one operation on this input.
    fn case(&self, operation: &str) -> String {
        format!("{} {operation}", self.name)
    }

    /// Whole products: sums, outputs, padded operands, single rows.
    fn check_products(
        &self,
        report: &mut FileReport,
        matmul: &Arc<dyn DynMatmul>,
    ) -> Result<(), fp4_core::Error> {
        let supports = |report: &mut FileReport, output: FloatType, operation: &str| {
            let answer = matmul.supports_matmul(&self.query(output));
            answer.map_err(|reason| report.skip(self.case(operation), reason)).is_ok()
        };
        let weight = matmul.clone().prepare_dyn(self.b.clone())?;
        let (weight, a) = (&*weight, self.a.view());
        if supports(report, FloatType::Bf16, "matmul to bf16") {
            let got: Vec<bf16> =
                self.for_alphas(|epilogue, out| multiply(weight, a, epilogue, out))?;
            let bits: Vec<u16> = got.iter().map(|y| y.to_bits()).collect();
            report.case(self.case("matmul to bf16")).compare("C6", &self.bf16, &bits);
        }
        if supports(report, FloatType::F16, "matmul to f16") {
            let got: Vec<f16> =
                self.for_alphas(|epilogue, out| multiply(weight, a, epilogue, out))?;
            let bits: Vec<u16> = got.iter().map(|y| y.to_bits()).collect();
            report.case(self.case("matmul to f16")).compare("C6", &self.f16, &bits);
        }
        if !supports(report, FloatType::F32, "matmul to f32") {
            return Ok(());
        }
        let mut sums = self.garbage();
        multiply(weight, a, Epilogue::new(1.0), &mut sums)?;
        report.case(self.case("exact sums")).compare("C6", &self.sums, &f32_bits(&sums));
        let got = self.for_alphas(|epilogue, out| multiply(weight, a, epilogue, out))?;
        report.case(self.case("matmul to f32")).compare("C6", &self.f32, &f32_bits(&got));

        let (padded_a, padded_b) = (self.a.padded_k()?, Arc::new(self.b.padded_k()?));
        let padded = matmul.clone().prepare_dyn(padded_b)?;
        let got =
            self.for_alphas(|epilogue, out| multiply(&*padded, padded_a.view(), epilogue, out))?;
        report.case(self.case("K padded")).compare("C8", &self.f32, &f32_bits(&got));

        let got = self.for_alphas(|all, out: &mut [f32]| {
            let n = self.b.shape().rows();
            for (i, row) in out.chunks_exact_mut(n).enumerate() {
                let one = all.with_row_scales(all.row_scales.map(|scales| &scales[i..i + 1]));
                multiply(weight, a.rows_range(i..i + 1)?, one, row)?;
            }
            Ok(())
        })?;
        report.case(self.case("row by row")).compare("C6", &self.f32, &f32_bits(&got));
        Ok(())
    }

    /// Partial sums over 1, 2 and 3 ranges of K, merged in another order and rounded once.
    fn check_partials(
        &self,
        report: &mut FileReport,
        matmul: &Arc<dyn DynMatmul>,
    ) -> Result<(), fp4_core::Error> {
        if let Err(reason) = matmul.supports_partial(&self.query(FloatType::F32)) {
            report.skip(self.case("partials"), reason);
            return Ok(());
        }
        let weight = matmul.clone().prepare_dyn(self.b.clone())?;
        for parts in 1..=3 {
            let ranges = uneven_split(self.b.shape().row_groups(), parts);
            let case = self.case(&format!("exact partials, {parts} parts"));
            let mut sums = vec![ExactSum::ZERO; self.outputs()];
            for range in ranges.iter().rev().cloned() {
                let mut part = vec![ExactSum::ZERO; self.outputs()];
                weight.partial(self.a.view(), range, PartialsMut::Exact(&mut part))?;
                for (sum, part) in sums.iter_mut().zip(&part) {
                    sum.merge(&ExactSum::from_bytes(&part.to_bytes())?);
                }
            }
            let rounded: Vec<u32> = sums.iter().map(|sum| sum.to_f32().to_bits()).collect();
            self.check_finished(report, &case, &rounded, Partials::Exact(&sums))?;

            if self.encoding != Encoding::NvFp4 {
                continue;
            }
            let case = self.case(&format!("64-bit partials, {parts} parts"));
            let mut sums = vec![FixedSum::ZERO; self.outputs()];
            for range in ranges.into_iter().rev() {
                let mut part = vec![FixedSum::ZERO; self.outputs()];
                weight.partial(self.a.view(), range, PartialsMut::Fixed(&mut part))?;
                for (sum, part) in sums.iter_mut().zip(&part) {
                    sum.merge(part)?;
                }
            }
            let rounded: Vec<u32> = sums.iter().map(|sum| sum.to_f32().to_bits()).collect();
            self.check_finished(report, &case, &rounded, Partials::Fixed(&sums))?;
        }
        Ok(())
    }

    /// Compares merged sums, and what `finish` makes of them.
    fn check_finished(
        &self,
        report: &mut FileReport,
        case: &str,
        rounded: &[u32],
        sums: Partials<'_>,
    ) -> Result<(), fp4_core::Error> {
        let shape = [self.a.shape().rows(), self.b.shape().rows()];
        let f32s: Vec<f32> =
            self.for_alphas(|epilogue, out| finish(sums, shape, epilogue, out.into()))?;
        let bf16s: Vec<bf16> =
            self.for_alphas(|epilogue, out| finish(sums, shape, epilogue, out.into()))?;
        let f16s: Vec<f16> =
            self.for_alphas(|epilogue, out| finish(sums, shape, epilogue, out.into()))?;
        let bf16s: Vec<u16> = bf16s.iter().map(|y| y.to_bits()).collect();
        let f16s: Vec<u16> = f16s.iter().map(|y| y.to_bits()).collect();
        let mut case = report.case(case);
        case.compare("C6", &self.sums, rounded);
        case.compare("C6", &self.f32, &f32_bits(&f32s));
        case.compare("C6", &self.bf16, &bf16s);
        case.compare("C6", &self.f16, &f16s);
        Ok(())
    }

    /// Outputs full of garbage.
    fn garbage<T: Float>(&self) -> Vec<T> {
        vec![T::from_f32(f32::from_bits(0xA5A5_A5A5)); self.outputs()]
    }

    /// The outputs of `run` for every alpha, one after the other: the shape of the columns.
    fn for_alphas<T: Float>(
        &self,
        run: impl Fn(Epilogue<'_>, &mut [T]) -> Result<(), fp4_core::Error>,
    ) -> Result<Vec<T>, fp4_core::Error> {
        let mut all = Vec::new();
        for &alpha in &self.alphas {
            let mut out = self.garbage();
            run(self.epilogue(alpha), &mut out)?;
            all.append(&mut out);
        }
        Ok(all)
    }
}

fn multiply<T: Float>(
    weight: &dyn DynWeight,
    a: PackedView<'_>,
    epilogue: Epilogue<'_>,
    out: &mut [T],
) -> Result<(), fp4_core::Error> {
    weight.matmul(a, epilogue, out.into()).map(|_| ())
}

/// Splits `0..groups` into `parts` ranges whose lengths grow like 1, 2, 3, ...; some may be empty.
fn uneven_split(groups: usize, parts: usize) -> Vec<Range<usize>> {
    let total = parts * (parts + 1) / 2;
    let cut = |part: usize| groups * (part * (part + 1) / 2) / total;
    (0..parts).map(|part| cut(part)..cut(part + 1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_split_covers_everything_once() {
        assert_eq!(uneven_split(65, 3), [0..10, 10..32, 32..65]);
        for groups in 0..20 {
            for parts in 1..=3 {
                let ranges = uneven_split(groups, parts);
                assert_eq!(ranges.len(), parts);
                assert_eq!(ranges.into_iter().flatten().count(), groups);
            }
        }
    }
}
