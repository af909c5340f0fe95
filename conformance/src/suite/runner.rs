//! Runs cases: the oracle once for each, every backend and pair against it.

use std::ops::Range;

use fp4_core::backend::erased::{Backend, DynMatmul};
use fp4_core::backend::{Sink, Source};
use fp4_core::{
    Element, Encoding, Epilogue, ExactSum, FixedSum, MatmulQuery, PackedMatrix, PackedShape,
    PackedView, Partials, PartialsMut, QuantizeInput, Quantizer, finish, pad_k, padded_k,
};
use rayon::prelude::*;

use super::case::{Case, Clause, Kind, MatmulCase, PairCase, QuantizeCase, QuantizeData, Way};
use super::core_checks;
use super::environment;
use super::grouped;
use super::outcome::{Comparison, Meaning, Outcome};
use super::run_report::{RunReport, Subject};
use super::sharded;
use super::{Registered, Suite};
use crate::data::values::OwnedTransform;
use crate::oracle::{Oracle, Quantized, Wide};
use crate::tensor::{bits_of, garbage};

/// Cases computed in one go, in parallel.
const STRETCH: usize = 64;
/// What byte buffers hold before a backend writes them.
const GARBAGE: u8 = 0xA5;

pub(super) fn run(suite: &Suite, cases: &[Case], progress: impl Fn(usize, usize)) -> RunReport {
    let mut report = RunReport::new(&suite.profile.name, &suite.backends, suite.bounded);
    let mut alive = vec![true; suite.backends.len()];
    let mut done = 0;
    for stretch in cases.chunks(STRETCH) {
        let outcomes: Vec<_> =
            stretch.par_iter().map(|case| run_case(suite, case, &alive)).collect();
        for (case, outcomes) in stretch.iter().zip(outcomes) {
            for (subject, outcome) in outcomes {
                let expected =
                    subject.backends().find_map(|b| suite.backends[b].expected_failure(&case.id));
                let failed = report.add(case, subject, outcome, expected);
                if suite.stop_early && failed {
                    subject.backends().for_each(|b| alive[b] = false);
                }
            }
        }
        done += stretch.len();
        progress(done, cases.len());
    }
    report
}

pub(super) type Outcomes = Vec<(Subject, Outcome)>;

fn run_case(suite: &Suite, case: &Case, alive: &[bool]) -> Outcomes {
    let result = match &case.kind {
        Kind::Core(core) => {
            Ok(vec![(Subject::Core, core_checks::check(&suite.oracle, core, &case.id))])
        }
        Kind::Quantize(quantize) => quantize_case(suite, case, quantize, alive),
        Kind::Matmul(matmul) => matmul_case(suite, case, matmul, alive),
        Kind::Grouped(request) => grouped::check(suite, case, request, alive),
        Kind::Sharded(request) => sharded::check(suite, case, request, alive),
        Kind::Pair(pair) => pair_case(suite, case, pair, alive),
        Kind::Environment(request) => {
            let changer = suite.changer.as_deref();
            environment::check(changer, request, &subjects(suite, alive).collect::<Vec<_>>())
        }
    };
    // The inputs themselves could not be made.
    result.unwrap_or_else(|error| vec![(Subject::Core, error.into())])
}

/// The backends to check, by index.
pub(super) fn subjects<'a>(
    suite: &'a Suite,
    alive: &'a [bool],
) -> impl Iterator<Item = (usize, &'a Registered)> {
    suite.backends.iter().enumerate().filter(|(i, _)| alive[*i])
}

/// The backend with the thread count of a case.
pub(super) fn threaded(registered: &Registered, threads: usize) -> Result<Backend, Outcome> {
    match (threads, &registered.threaded) {
        (0, _) => Ok(registered.backend.clone()),
        (threads, Some(make)) => Ok(make(threads)),
        (_, None) => Err(Outcome::Unsupported { reason: "it takes no thread count".into() }),
    }
}

/// The clause that fixes the codes of an input.
fn codes_clause(case: &QuantizeCase) -> Clause {
    match (case.transform, case.spec.element()) {
        (Some(_), _) => "C5",
        (None, Element::E2m1) => "C4.3",
        (None, Element::Int8) => "C10",
    }
}

/// The clause that fixes the scales of an encoding, and what its codes mean.
fn of_element(element: Element) -> (Clause, Meaning) {
    match element {
        Element::E2m1 => ("C4.2", Meaning::Codes),
        Element::Int8 => ("C10", Meaning::Int8),
    }
}

fn quantize_case(
    suite: &Suite,
    case: &Case,
    request: &QuantizeCase,
    alive: &[bool],
) -> Result<Outcomes, fp4_core::Error> {
    let data = request.data(&case.id, suite.oracle.rules())?;
    let input = input(request, &data)?;
    let expected = suite.oracle.quantize(&input);
    let mut outcomes = Vec::new();
    for (index, registered) in subjects(suite, alive) {
        let run = || {
            let backend = threaded(registered, request.threads)?;
            let Some(quantizer) = backend.quantizer() else { return Ok(None) };
            let (got, row_scales) = quantize(&**quantizer, &input)?;
            let mut comparison = Comparison::default();
            compare_row_scales(&mut comparison, "row scales", &row_scales, &expected);
            let (ty, shape) = (input.shape().scale_type(), input.shape());
            let (meaning, columns) = (Meaning::Scale(ty), shape.row_groups());
            let (clause, codes) = of_element(shape.element());
            comparison.bytes(clause, "scales", meaning, columns, got.scales(), &expected.scales);
            let clause = codes_clause(request);
            let (got, expected) = (got.codes(), &expected.codes);
            comparison.bytes(clause, "codes", codes, shape.row_bytes(), got, expected);
            Ok::<_, Outcome>(Some(comparison.outcome()))
        };
        if let Some(outcome) = run().unwrap_or_else(Some) {
            outcomes.push((Subject::Quantizer(index), outcome));
        }
    }
    Ok(outcomes)
}

/// The request of a case on its data.
///
/// # Errors
/// What the core says to shapes that do not fit.
pub(crate) fn input<'a>(
    case: &QuantizeCase,
    data: &'a QuantizeData,
) -> Result<QuantizeInput<'a>, fp4_core::Error> {
    let transform = data.transform.as_ref().map(OwnedTransform::view).transpose()?;
    let input = QuantizeInput::new(data.x.as_slice(), case.shape[0], case.shape[1], &case.spec)?
        .with_transform(transform)?;
    match &data.given {
        None => Ok(input),
        Some(given) => input.with_scales(given),
    }
}

/// A quantized matrix, and its row scales if it has any.
pub(crate) type WithRowScales = (PackedMatrix, Option<Vec<f32>>);

/// Quantizes into garbage.
pub(crate) fn quantize(
    quantizer: &dyn Quantizer,
    input: &QuantizeInput<'_>,
) -> Result<WithRowScales, fp4_core::Error> {
    quantizer.supports_quantize(&input.query())?;
    let mut out = garbage_matrix(input.shape())?;
    let garbage = f32::from_bits(u32::from_ne_bytes([GARBAGE; 4]));
    let mut row_scales = input.spec().row_scales().then(|| vec![garbage; input.shape().rows()]);
    let mut to = out.view_mut();
    if let Some(row_scales) = &mut row_scales {
        to = to.with_row_scales(row_scales)?;
    }
    quantizer.quantize(input, &mut to)?;
    Ok((out, row_scales))
}

/// Compares row scales, where there are any, with the oracle's (C4).
fn compare_row_scales(
    comparison: &mut Comparison,
    tensor: &str,
    got: &Option<Vec<f32>>,
    expected: &Quantized,
) {
    let [got, expected] = [got, &expected.row_scales]
        .map(|scales| scales.iter().flatten().map(|scale| scale.to_bits()).collect::<Vec<u32>>());
    let float = Meaning::Float(fp4_core::FloatType::F32);
    comparison.compare("C4", tensor, float, 1, &got, &expected);
}

fn garbage_matrix(shape: PackedShape) -> Result<PackedMatrix, fp4_core::Error> {
    let (codes, scales) = (vec![GARBAGE; shape.codes_len()], vec![GARBAGE; shape.scales_len()]);
    PackedMatrix::new(shape, codes, scales)
}

fn matmul_case(
    suite: &Suite,
    case: &Case,
    request: &MatmulCase,
    alive: &[bool],
) -> Result<Outcomes, fp4_core::Error> {
    let [a, b] = request.data(&case.id)?;
    let sums = suite.oracle.sums(a.view(), b.view(), 0..b.shape().row_groups());
    let exact: Vec<f64> = match request.row_scales || request.bias {
        true => sums.iter().map(Wide::to_f64).collect(),
        false => Vec::new(),
    };
    let epilogue = request.epilogue(&case.id, &exact);
    let product = Product { oracle: &suite.oracle, request, a: &a, b: &b, sums: &sums, epilogue };
    let mut outcomes = Vec::new();
    for (index, registered) in subjects(suite, alive) {
        let run = || {
            let backend = threaded(registered, request.threads)?;
            let Some(matmul) = backend.matmul() else { return Ok(None) };
            let got = product.compute(matmul)?;
            let bounded = suite.bounded && request.output == fp4_core::FloatType::F32;
            Ok::<_, Outcome>(Some(if bounded { product.grade(&got) } else { product.judge(&got) }))
        };
        if let Some(outcome) = run().unwrap_or_else(Some) {
            outcomes.push((Subject::Matmul(index), outcome));
        }
    }
    Ok(outcomes)
}

/// A product to compute in the way of its case.
pub(super) struct Product<'a> {
    pub(super) oracle: &'a Oracle,
    pub(super) request: &'a MatmulCase,
    pub(super) a: &'a PackedMatrix,
    pub(super) b: &'a PackedMatrix,
    pub(super) sums: &'a [Wide],
    /// Row scales and bias.
    pub(super) epilogue: [Option<Vec<f32>>; 2],
}

/// What a backend computed.
#[derive(Default)]
struct Computed {
    output: Vec<u32>,
    exact: Option<Vec<ExactSum>>,
    fixed: Option<Vec<FixedSum>>,
}

impl Product<'_> {
    fn compute(
        &self,
        backend: &std::sync::Arc<dyn DynMatmul>,
    ) -> Result<Computed, fp4_core::Error> {
        let MatmulCase { a, format, shape: [m, n, k], output, .. } = *self.request;
        let query = MatmulQuery::new(format, [m, n, k], output).with_a(a);
        let multiply = |a: PackedView<'_>, b: &PackedMatrix, rows: Range<usize>| {
            let epilogue = self.epilogue();
            backend.supports_matmul(&query.with_epilogue(&epilogue))?;
            let weight = backend.clone().prepare_dyn(b.clone().into())?;
            let mut y = garbage(output, a.shape().rows() * b.shape().rows());
            let scales = epilogue.row_scales.map(|scales| &scales[rows]);
            weight.matmul(a, epilogue.with_row_scales(scales), y.as_mut_slice())?;
            Ok::<_, fp4_core::Error>(bits_of(y.as_slice()))
        };
        let output = match self.request.way {
            Way::Whole => multiply(self.a.view(), self.b, 0..m)?,
            Way::Padded => multiply(padded(self.a)?.view(), &padded(self.b)?, 0..m)?,
            Way::Rows => {
                let cuts = [0, m / 3, m / 3 + usize::from(m > 0), m];
                let mut parts = Vec::new();
                for cut in cuts.windows(2) {
                    let rows = cut[0]..cut[1];
                    let part = self.a.view().rows_range(rows.clone())?;
                    parts.extend(multiply(part, self.b, rows)?);
                }
                parts
            }
            Way::Split(parts) | Way::Into(parts) => {
                // Without an epilogue, which is `finish`'s.
                backend.supports_matmul(&query)?;
                backend.supports_partial(&query)?;
                return self.partials(backend, parts);
            }
        };
        Ok(Computed { output, ..Computed::default() })
    }

    pub(super) fn epilogue(&self) -> Epilogue<'_> {
        let [row_scales, bias] = self.epilogue.each_ref().map(Option::as_deref);
        Epilogue::new(self.request.alpha).with_row_scales(row_scales).with_bias(bias)
    }

    /// The bits of the output at an index.
    pub(super) fn expected(&self, index: usize) -> u32 {
        let MatmulCase { shape: [_, n, _], alpha, output, .. } = *self.request;
        let [row_scales, bias] = &self.epilogue;
        let scale = row_scales.as_ref().map(|scales| scales[index / n]);
        let bias = bias.as_ref().map(|bias| bias[index % n]);
        self.oracle.finished(&self.sums[index], alpha, scale, bias, output)
    }

    fn partials(
        &self,
        backend: &std::sync::Arc<dyn DynMatmul>,
        parts: usize,
    ) -> Result<Computed, fp4_core::Error> {
        let weight = backend.clone().prepare_dyn(self.b.clone().into())?;
        let (groups, outputs) = (self.b.shape().row_groups(), self.sums.len());
        let cut = |part: usize| groups * part * part / (parts * parts);
        let into = matches!(self.request.way, Way::Into(_));
        let mut exact = vec![ExactSum::ZERO; outputs];
        let mut fixed = vec![FixedSum::ZERO; outputs];
        let nvfp4 = self.request.a == Encoding::NvFp4;
        for part in (0..parts).rev() {
            let range = cut(part)..cut(part + 1);
            if into {
                weight.partial(self.a.view(), range.clone(), PartialsMut::Exact(&mut exact))?;
                if nvfp4 {
                    weight.partial(self.a.view(), range, PartialsMut::Fixed(&mut fixed))?;
                }
                continue;
            }
            let mut part = vec![ExactSum::ZERO; outputs];
            weight.partial(self.a.view(), range.clone(), PartialsMut::Exact(&mut part))?;
            exact.iter_mut().zip(&part).for_each(|(sum, part)| sum.merge(part));
            if nvfp4 {
                let mut part = vec![FixedSum::ZERO; outputs];
                weight.partial(self.a.view(), range, PartialsMut::Fixed(&mut part))?;
                for (sum, part) in fixed.iter_mut().zip(&part) {
                    sum.merge(part)?;
                }
            }
        }
        let mut y = garbage(self.request.output, outputs);
        let shape = [self.a.shape().rows(), self.b.shape().rows()];
        finish(Partials::Exact(&exact), shape, self.epilogue(), y.as_mut_slice())?;
        let output = bits_of(y.as_slice());
        Ok(Computed { output, exact: Some(exact), fixed: nvfp4.then_some(fixed) })
    }

    fn judge(&self, got: &Computed) -> Outcome {
        let MatmulCase { shape: [_, n, _], output, .. } = *self.request;
        let clause = if self.request.way == Way::Padded { "C8" } else { "C6" };
        let mut comparison = Comparison::default();
        let expected: Vec<u32> = (0..self.sums.len()).map(|index| self.expected(index)).collect();
        let float = Meaning::Float(output);
        comparison.compare(clause, "output", float, n, &got.output, &expected);
        if got.exact.is_none() {
            return comparison.outcome();
        }
        let expected: Vec<u32> = self.sums.iter().flat_map(expected_words).collect();
        let mut words = |what: &str, got: Vec<u32>| {
            let tensor = format!("{what} partials (21 words each)");
            comparison.compare("C6", &tensor, Meaning::Integer, 21 * n, &got, &expected);
        };
        if let Some(exact) = &got.exact {
            words("exact", exact.iter().flat_map(|sum| exact_words(&sum.to_bytes())).collect());
        }
        if let Some(fixed) = &got.fixed {
            words("64-bit", fixed.iter().flat_map(|sum| expected_words(&wide(sum))).collect());
        }
        comparison.outcome()
    }

    /// The error against [`super::outcome::BOUND`].
    fn grade(&self, got: &Computed) -> Outcome {
        let MatmulCase { shape: [_, n, k], alpha, .. } = *self.request;
        let magnitudes = self.oracle.magnitudes(self.a.view(), self.b.view());
        let (count, u) = ((k + 4) as f64, 2f64.powi(-24));
        let gamma = count * u / (1.0 - count * u);
        let alpha = f64::from(alpha);
        let (mut worst, mut values, largest) = (0f64, 0, f64::from(f32::MAX));
        for (i, (sum, magnitude)) in self.sums.iter().zip(magnitudes).enumerate() {
            let y = f64::from(f32::from_bits(got.output[i]));
            let exact = alpha * sum.to_f64();
            // Where f32 may overflow on the way there is no bound: not judged, not counted.
            let reach = magnitude.max(alpha.abs() * magnitude) * (1.0 + gamma);
            let bound =
                gamma * alpha.abs() * magnitude + count * 2f64.powi(-149) * alpha.abs().max(1.0);
            let excess = match sum.is_nan() || alpha.is_nan() {
                true if y.is_nan() => 0.0,
                true => f64::INFINITY,
                false if reach < largest && alpha.is_finite() => (y - exact).abs() / bound,
                false => continue,
            };
            if excess.is_nan() || excess > 1.0 {
                let mut expected = got.output.clone();
                expected[i] = self.expected(i);
                let mut comparison = Comparison::default();
                let what = format!("output, {excess:.3} times its bound,");
                let float = Meaning::Float(self.request.output);
                comparison.compare("C6", &what, float, n, &got.output, &expected);
                return comparison.outcome();
            }
            values += 1;
            worst = worst.max(excess);
        }
        Outcome::Bounded { values, worst }
    }
}

/// 20 words of two's complement and the NaN flag, behind the version; the sum below a NaN means
/// nothing.
fn exact_words(bytes: &[u8]) -> Vec<u32> {
    let nan = u32::from(bytes[81]);
    let words = bytes[1..81].as_chunks().0.iter().map(|&b| u32::from_le_bytes(b));
    words.map(|word| if nan == 0 { word } else { 0 }).chain([nan]).collect()
}

fn expected_words(sum: &Wide) -> Vec<u32> {
    let words = sum.twos_complement();
    words[..20].iter().copied().chain([u32::from(sum.is_nan())]).collect()
}

fn wide(sum: &FixedSum) -> Wide {
    if sum.nan {
        return Wide::NAN;
    }
    let mut wide = Wide::ZERO;
    wide.add(sum.units, FixedSum::EXPONENT);
    wide
}

fn padded(matrix: &PackedMatrix) -> Result<PackedMatrix, fp4_core::Error> {
    let shape = matrix.shape();
    let mut out = garbage_matrix(shape.resized(shape.rows(), padded_k(shape.k())?)?)?;
    pad_k(matrix.view(), &mut out.view_mut())?;
    Ok(out)
}

fn pair_case(
    suite: &Suite,
    case: &Case,
    request: &PairCase,
    alive: &[bool],
) -> Result<Outcomes, fp4_core::Error> {
    let pair = PairRun::new(&suite.oracle, case, request)?;
    let mut outcomes = Vec::new();
    let operands: Vec<_> = subjects(suite, alive)
        .filter_map(|(q, r)| {
            r.backend.quantizer().map(|quantizer| (q, pair.quantize(&**quantizer)))
        })
        .collect();
    for (q, operands) in &operands {
        for (m, registered) in subjects(suite, alive) {
            let Some(matmul) = registered.backend.matmul() else { continue };
            if suite.stop_early && *q != m {
                continue;
            }
            let run = || {
                let [a, b] = operands.as_ref().map_err(|error| Outcome::from(*error))?;
                let mut comparison = Comparison::default();
                pair.compare_operands(&mut comparison, [a, b]);
                let output = pair.multiply(matmul, a, &b.0)?;
                pair.compare_output(&mut comparison, "output", &output);
                if let (true, Some(_)) = (*q == m, registered.backend.as_resident()) {
                    let [host, device] = pair.resident(&registered.backend, &b.0)?;
                    pair.compare_output(&mut comparison, "output of a resident forward", &host);
                    pair.compare_output(&mut comparison, "output from tensor to tensor", &device);
                }
                Ok::<_, Outcome>(comparison.outcome())
            };
            outcomes.push((Subject::Pair(*q, m), run().unwrap_or_else(|outcome| outcome)));
        }
    }
    Ok(outcomes)
}

/// A pair case with its inputs and the oracle's answers.
struct PairRun<'a> {
    request: &'a PairCase,
    sides: [(QuantizeCase, QuantizeData); 2],
    operands: [Quantized; 2],
    output: Vec<u32>,
    alpha: f32,
}

impl<'a> PairRun<'a> {
    fn new(oracle: &Oracle, case: &Case, request: &'a PairCase) -> Result<Self, fp4_core::Error> {
        let mut sides = Vec::new();
        for (side, name) in request.sides().into_iter().zip(["a", "b"]) {
            let mut data = side.data(&format!("{}/{name}", case.id), oracle.rules())?;
            if let [(_, QuantizeData { transform, .. }), ..] = sides.as_slice() {
                // Both operands go through one transform.
                data.transform.clone_from(transform);
            }
            sides.push((side, data));
        }
        let Ok(sides) = <[_; 2]>::try_from(sides) else { unreachable!("two sides") };
        let [a, b] = &sides;
        let (input_a, input_b) = (input(&a.0, &a.1)?, input(&b.0, &b.1)?);
        let operands = [oracle.quantize(&input_a), oracle.quantize(&input_b)];
        // Where the rows of A have scales of their own, its global scale takes no part.
        let alpha = match a.0.spec.row_scales() {
            true => b.0.spec.global_scale(),
            false => a.0.spec.global_scale() * b.0.spec.global_scale(),
        };
        let [qa, qb] = &operands;
        let view_a = PackedView::new(input_a.shape(), &qa.codes, &qa.scales)?;
        let view_b = PackedView::new(input_b.shape(), &qb.codes, &qb.scales)?;
        let sums = oracle.sums(view_a, view_b, 0..view_b.shape().row_groups());
        let finished = |(at, sum)| {
            let scale = qa.row_scales.as_ref().map(|scales| scales[at / request.shape[1]]);
            oracle.finished(sum, alpha, scale, None, request.output)
        };
        let output = sums.iter().enumerate().map(finished).collect();
        Ok(PairRun { request, sides, operands, output, alpha })
    }

    fn quantize(&self, quantizer: &dyn Quantizer) -> Result<[WithRowScales; 2], fp4_core::Error> {
        let [a, b] = &self.sides;
        Ok([quantize(quantizer, &input(&a.0, &a.1)?)?, quantize(quantizer, &input(&b.0, &b.1)?)?])
    }

    fn compare_operands(&self, comparison: &mut Comparison, got: [&WithRowScales; 2]) {
        for (((got, row_scales), expected), name) in
            got.into_iter().zip(&self.operands).zip(["A", "B"])
        {
            let tensor = format!("row scales of {name}");
            compare_row_scales(comparison, &tensor, row_scales, expected);
            let shape = got.shape();
            let meaning = Meaning::Scale(shape.scale_type());
            let (clause, codes) = of_element(shape.element());
            let (tensor, columns) = (format!("scales of {name}"), shape.row_groups());
            comparison.bytes(clause, &tensor, meaning, columns, got.scales(), &expected.scales);
            let (tensor, columns) = (format!("codes of {name}"), shape.row_bytes());
            let clause = codes_clause(&self.sides[usize::from(name == "B")].0);
            let (got, expected) = (got.codes(), &expected.codes);
            comparison.bytes(clause, &tensor, codes, columns, got, expected);
        }
    }

    fn compare_output(&self, comparison: &mut Comparison, tensor: &str, got: &[u32]) {
        let (float, n) = (Meaning::Float(self.request.output), self.request.shape[1]);
        comparison.compare("C6", tensor, float, n, got, &self.output);
    }

    fn multiply(
        &self,
        matmul: &std::sync::Arc<dyn DynMatmul>,
        (a, row_scales): &WithRowScales,
        b: &PackedMatrix,
    ) -> Result<Vec<u32>, fp4_core::Error> {
        let PairCase { a: encoding, format, output, shape: [m, n, k], .. } = *self.request;
        let epilogue = Epilogue::new(self.alpha).with_row_scales(row_scales.as_deref());
        let query = MatmulQuery::new(format, [m, n, k], output).with_a(encoding);
        matmul.supports_matmul(&query.with_epilogue(&epilogue))?;
        let weight = matmul.clone().prepare_dyn(b.clone().into())?;
        let mut y = garbage(output, m * n);
        weight.matmul(a.view(), epilogue, y.as_mut_slice())?;
        Ok(bits_of(y.as_slice()))
    }

    /// One backend for both halves, on its own operands: host to host, and tensor to tensor.
    fn resident(
        &self,
        backend: &Backend,
        b: &PackedMatrix,
    ) -> Result<[Vec<u32>; 2], fp4_core::Error> {
        let Some(resident) = backend.as_resident() else {
            return Err(fp4_core::Unsupported::Other("no resident operands").into());
        };
        let PairCase { output, shape: [m, n, k], .. } = *self.request;
        let (side, data) = &self.sides[0];
        let input = input(side, data)?;
        backend.quantizer().map_or(Ok(()), |q| q.supports_quantize(&input.query()))?;
        let linear = resident.clone().prepare_linear(b.clone().into())?;
        let transform = input
            .transform()
            .map(|t| resident.load_transform_dyn(t, input.x().float_type()))
            .transpose()?;
        let mut scratch = resident.scratch_dyn()?;
        let mut host = garbage(output, m * n);
        let mut tensor = resident.empty_tensor_dyn()?;
        let uploaded = resident.upload_dyn(input.x())?;
        let sources = [
            (Source::Host(input.x()), Sink::Host(host.as_mut_slice())),
            (Source::Resident(&*uploaded), Sink::Resident(&mut *tensor, output)),
        ];
        for (source, sink) in sources {
            let (spec, transform) = (input.spec(), transform.as_deref());
            resident.quantize_dyn(source, [m, k], spec, transform, &mut *scratch, None)?;
            linear.matmul_dyn(&*scratch, self.alpha.into(), sink)?;
        }
        let mut device = garbage(output, m * n);
        resident.download_dyn(&*tensor, device.as_mut_slice())?;
        Ok([bits_of(host.as_slice()), bits_of(device.as_slice())])
    }
}
