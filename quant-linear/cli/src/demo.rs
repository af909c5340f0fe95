//! `fp4 demo`: the main job on real data, through every pair of backends on this machine.
//!
//! A slice of a real weight and the real activations that enter it (`fixtures/README.md`) are
//! quantized, the weight to both formats and the activations to every encoding that goes with it,
//! and multiplied by every quantizer x matmul pair. Each result is compared bit for bit with the
//! core's reference functions, called directly. A backend that lacks a role, or refuses the sample
//! in a format, has no pairs there and is named with the reason.
//!
//! Two errors are shown, both against f64: that of the *rounding*, from the exact product of the
//! quantized operands, which two f32 roundings bound by 2^-23; and that of the *quantization*,
//! from the product of the dense operands, which is what few bits cost.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use fp4_core::reference;
use fp4_core::{Epilogue, ExactSum, Format, PackedMatrix, Partials, PartialsMut, QuantizeInput};
use quant_linear::{ActivationEncoding, Backends, DenseOptions, QuantLinear, Verdict};
use safetensors::SafeTensors;
use serde::Serialize;

use crate::report;

/// The embedded sample.
const SAMPLE: &[u8] = include_bytes!("../fixtures/minilm-slice.safetensors");

/// Timed forwards of each pair; the median is shown.
const RUNS: usize = 15;

/// Arguments of `fp4 demo`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct Args {
    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// The whole report, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Report {
    sample: Sample,
    formats: Vec<FormatReport>,
    unavailable: Vec<Unavailable>,
}

#[derive(Debug, Serialize)]
struct Sample {
    source: &'static str,
    m: usize,
    n: usize,
    k: usize,
}

#[derive(Debug, Serialize)]
struct FormatReport {
    /// That of the weight.
    format: String,
    /// What the activations are quantized to, as `--activations` names it.
    activations: &'static str,
    weight_bytes_f32: usize,
    weight_bytes_fp4: usize,
    /// Relative to the dense f64 product.
    quantization_error: f64,
    pairs: Vec<BackendPair>,
}

#[derive(Debug, Serialize)]
struct BackendPair {
    quantizer: String,
    matmul: String,
    elements: usize,
    differ: usize,
    /// Index of the first differing output with both bit patterns, in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    first_difference: Option<String>,
    /// Relative to the exact product of the quantized operands, in f64.
    rounding_error: f64,
    microseconds: f64,
}

#[derive(Debug, PartialEq, Serialize)]
struct Unavailable {
    backend: String,
    reason: String,
}

/// Runs the demonstration; exit code 1 if any pair differs from the reference, or there is none.
///
/// # Errors
/// If the embedded sample cannot be read, a backend fails, or the report cannot be written.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let report = measure(&Backends::available())?;
    if args.json {
        report::print_json(&report)?;
    } else {
        let text = text(&report);
        report::print(|page| text.lines().try_for_each(|l| page.line(format_args!("{l}"))))?;
    }
    let (elements, differ) = totals(&report);
    Ok(if elements > 0 && differ == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A dense row-major matrix.
struct Dense {
    rows: usize,
    cols: usize,
    values: Vec<f32>,
}

fn load(tensors: &SafeTensors<'_>, name: &str) -> Result<Dense> {
    let tensor =
        tensors.tensor(name).with_context(|| format!("the embedded sample lacks `{name}`"))?;
    let &[rows, cols] = tensor.shape() else {
        anyhow::bail!("`{name}` in the embedded sample is not a matrix");
    };
    let bytes = tensor.data().chunks_exact(4);
    let values = bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    Ok(Dense { rows, cols, values })
}

fn measure(backends: &Backends) -> Result<Report> {
    let tensors = SafeTensors::deserialize(SAMPLE).context("the embedded sample is damaged")?;
    let (weight, x) = (load(&tensors, "weight")?, load(&tensors, "activations")?);
    ensure!(weight.cols == x.cols, "the embedded sample does not fit together");
    let dense = dense_product(&x, &weight);
    let mut unavailable: Vec<_> = backends
        .unavailable()
        .iter()
        .map(|(name, reason)| Unavailable { backend: name.clone(), reason: reason.to_string() })
        .collect();
    let mut formats = vec![];
    for options in settings() {
        let unavailable = &mut unavailable;
        formats.push(measure_format(&options, &weight, &x, &dense, backends, unavailable)?);
    }
    Ok(Report {
        sample: Sample {
            source: "all-MiniLM-L6-v2, encoder.layer.3.intermediate.dense",
            m: x.rows,
            n: weight.rows,
            k: x.cols,
        },
        formats,
        unavailable,
    })
}

/// Both formats, with every encoding of activations that there is for each.
fn settings() -> impl Iterator<Item = DenseOptions> {
    let each = Format::ALL.into_iter().flat_map(|format| {
        let with = move |activations| DenseOptions { activations, ..DenseOptions::new(format) };
        ActivationEncoding::ALL.into_iter().map(with)
    });
    each.filter(|o| o.activation_spec().is_ok_and(|own| o.activations.spec(own).is_ok()))
}

fn measure_format(
    options: &DenseOptions,
    weight: &Dense,
    x: &Dense,
    dense: &[f64],
    backends: &Backends,
    unavailable: &mut Vec<Unavailable>,
) -> Result<FormatReport> {
    let mut layer = QuantLinear::from_dense(&weight.values[..], weight.rows, weight.cols, options)?;
    layer.set_backends(backends.clone());
    let alpha = layer.weight_global_scale() * options.activation_factor()?;

    // What must come out, by the reference functions, and the exact product behind it.
    let spec = options.activations.spec(options.activation_spec()?)?;
    let input = QuantizeInput::new(&x.values[..], x.rows, x.cols, &spec)?;
    let (mut packed, mut rows) = (PackedMatrix::zeros(input.shape()), vec![1f32; x.rows]);
    let mut out = packed.view_mut();
    if spec.row_scales() {
        out = out.with_row_scales(&mut rows)?;
    }
    reference::quantize(&input, &mut out)?;
    let epilogue = Epilogue::new(alpha).with_row_scales(spec.row_scales().then_some(&rows[..]));
    let prepared = layer.weight()?;
    let (a, b) = (packed.view(), prepared.view());
    let mut expected = vec![0f32; dense.len()];
    reference::matmul(a, b, epilogue, (&mut expected[..]).into())?;
    let mut sums = vec![ExactSum::ZERO; dense.len()];
    reference::partial(a, b, 0..b.shape().row_groups(), PartialsMut::Exact(&mut sums))?;
    let mut from_sums = vec![0f32; dense.len()];
    let shape = [a.shape().rows(), b.shape().rows()];
    fp4_core::finish(Partials::Exact(&sums), shape, epilogue, (&mut from_sums[..]).into())?;
    ensure!(bits(&expected).eq(bits(&from_sums)), "partial sums and matmul disagree");
    // Each row's alpha is an f32 by contract (C6).
    let of_rows = sums.chunks_exact(shape[1]).zip(&rows);
    let exact = |(sums, row): (&[ExactSum], &f32)| {
        let alpha = f64::from(alpha * row);
        sums.iter().map(|sum| sum.to_f64() * alpha).collect::<Vec<_>>()
    };
    let exact: Vec<f64> = of_rows.flat_map(exact).collect();

    let mut pairs = Vec::new();
    let (quantizers, matmuls) = able(&mut layer, backends, (options, x.rows), unavailable)?;
    for quantizer in &quantizers {
        for matmul in &matmuls {
            layer.set_quantizer(quantizer.as_str());
            layer.set_matmul(matmul.as_str());
            pairs.push(measure_pair(&layer, (quantizer, matmul), x, &expected, &exact)?);
        }
    }
    let shape = layer.weight()?.shape();
    Ok(FormatReport {
        format: options.format.to_string(),
        activations: options.activations.name(),
        weight_bytes_f32: 4 * weight.values.len(),
        weight_bytes_fp4: shape.codes_len() + shape.scales_len() + 4,
        quantization_error: relative_error(&expected, dense),
        pairs,
    })
}

/// The names of the backends that can quantize the sample, and of those that can multiply it; the
/// others go to `unavailable`, once for each reason.
fn able(
    layer: &mut QuantLinear,
    backends: &Backends,
    (options, rows): (&DenseOptions, usize),
    unavailable: &mut Vec<Unavailable>,
) -> Result<(Vec<String>, Vec<String>)> {
    let (mut quantizers, mut matmuls) = (vec![], vec![]);
    let mut names: Vec<String> = vec![];
    for backend in backends.list() {
        // Two backends may share a name, each with a role of its own.
        if !names.iter().any(|name| name == backend.name()) {
            names.push(backend.name().to_string());
        }
    }
    for name in &names {
        layer.set_quantizer(name.as_str());
        layer.set_matmul(name.as_str());
        let why = layer.explain(rows, fp4_core::FloatType::F32)?;
        let (quantized, product) = match options.activations {
            ActivationEncoding::Own => (options.format.to_string(), options.format.to_string()),
            other => (other.to_string(), format!("{other} by {}", options.format)),
        };
        let roles = [
            ("quantizer", quantized, why.quantize, &mut quantizers),
            ("matmul", product, why.matmul, &mut matmuls),
        ];
        for (role, what, route, able) in roles {
            // Another backend standing in would be a comparison of something else.
            let reason = match route.refused {
                None => {
                    able.push(name.clone());
                    continue;
                }
                Some((_, Verdict::NotOffered)) => {
                    format!("{role}: {}", Verdict::NotOffered)
                }
                Some((_, verdict)) => format!("{role} of {what}: {verdict}"),
            };
            let entry = Unavailable { backend: name.clone(), reason };
            if !unavailable.contains(&entry) {
                unavailable.push(entry);
            }
        }
    }
    Ok((quantizers, matmuls))
}

fn measure_pair(
    layer: &QuantLinear,
    (quantizer, matmul): (&str, &str),
    x: &Dense,
    expected: &[f32],
    exact: &[f64],
) -> Result<BackendPair> {
    let mut seconds = Vec::with_capacity(RUNS);
    let mut y = layer.forward(&x.values, &[x.rows, x.cols])?; // prepares the weight
    for _ in 0..RUNS {
        let start = Instant::now();
        y = layer.forward(&x.values, &[x.rows, x.cols])?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    seconds.sort_by(f64::total_cmp);
    let differing: Vec<usize> = bits(&y)
        .zip(bits(expected))
        .enumerate()
        .filter_map(|(i, (got, want))| (got != want).then_some(i))
        .collect();
    let first_difference = differing.first().map(|&i| {
        format!("output {i}: {:#010x}, expected {:#010x}", y[i].to_bits(), expected[i].to_bits())
    });
    Ok(BackendPair {
        quantizer: quantizer.to_string(),
        matmul: matmul.to_string(),
        elements: y.len(),
        differ: differing.len(),
        first_difference,
        rounding_error: relative_error(&y, exact),
        microseconds: seconds[RUNS / 2] * 1e6,
    })
}

fn bits(values: &[f32]) -> impl Iterator<Item = u32> + '_ {
    values.iter().map(|v| v.to_bits())
}

/// x * W^T of the dense values, in f64.
fn dense_product(x: &Dense, weight: &Dense) -> Vec<f64> {
    let dot = |a: &[f32], b: &[f32]| {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
    };
    let rows = x.values.chunks_exact(x.cols);
    rows.flat_map(|a| weight.values.chunks_exact(weight.cols).map(move |b| dot(a, b))).collect()
}

/// ||y - expected|| / ||expected||.
fn relative_error(y: &[f32], expected: &[f64]) -> f64 {
    let square = |v: f64| v * v;
    let error: f64 = y.iter().zip(expected).map(|(&y, &e)| square(f64::from(y) - e)).sum();
    (error / expected.iter().map(|&e| square(e)).sum::<f64>()).sqrt()
}

fn totals(report: &Report) -> (usize, usize) {
    let pairs = report.formats.iter().flat_map(|f| &f.pairs);
    pairs.fold((0, 0), |(n, d), p| (n + p.elements, d + p.differ))
}

fn text(report: &Report) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let s = &report.sample;
    let _ = writeln!(
        out,
        "Real activations ({} x {}) times a real weight ({} x {}), {}\n\
         quantized and multiplied by every pair of backends on this machine:\n",
        s.m, s.k, s.n, s.k, s.source
    );
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([
        "format",
        "activations",
        "quantizer",
        "matmul",
        "values",
        "differ",
        "rounding error",
        "quantization error",
        "time",
    ]);
    for f in &report.formats {
        for p in &f.pairs {
            table.add_row([
                f.format.clone(),
                f.activations.to_string(),
                p.quantizer.clone(),
                p.matmul.clone(),
                p.elements.to_string(),
                p.differ.to_string(),
                format!("{:.1e}", p.rounding_error),
                format!("{:.2} %", 100.0 * f.quantization_error),
                format!("{:.0} us", p.microseconds),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(4) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    let _ = writeln!(out, "{table}");
    // The weight is the same for all encodings of activations.
    for f in report.formats.iter().filter(|f| f.activations == ActivationEncoding::Own.name()) {
        let ratio = f.weight_bytes_f32 as f64 / f.weight_bytes_fp4 as f64;
        let _ = writeln!(
            out,
            "{}: the weight takes {} bytes instead of {} in f32, 1/{ratio:.1}",
            f.format, f.weight_bytes_fp4, f.weight_bytes_f32
        );
    }
    for u in &report.unavailable {
        let _ = writeln!(out, "{} is not available: {}", u.backend, u.reason);
    }
    for p in report.formats.iter().flat_map(|f| &f.pairs) {
        if let Some(first) = &p.first_difference {
            let _ = writeln!(out, "{} x {} DIFFERS, {first}", p.quantizer, p.matmul);
        }
    }
    let (elements, differ) = totals(report);
    let pairs: usize = report.formats.iter().map(|f| f.pairs.len()).sum();
    let verdict = match (elements, differ) {
        (0, _) => "nothing was compared",
        (_, 0) => "the same bits everywhere",
        _ => "NOT the same bits",
    };
    let _ = writeln!(out, "{pairs} pairs, {elements} values compared, {differ} differ: {verdict}");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use fp4_core::backend::erased::Backend;
    use fp4_core::{
        Epilogue, Error, FloatSliceMut, Matmul, MatmulQuery, Named, Packed, PackedMut, PackedView,
        Paths, QuantCounts, QuantizeQuery, Quantizer, ScaleType, Unsupported,
    };

    #[test]
    fn every_available_pair_has_the_bits_of_the_reference() {
        let report = measure(&Backends::available()).unwrap();
        let backends = Backends::available().list().len();
        let entries: Vec<_> = report.formats.iter().map(|f| (&*f.format, f.activations)).collect();
        let [mx, nv] = ["mxfp4", "nvfp4"];
        let expected = [(mx, "fp4"), (mx, "mxint8"), (nv, "fp4"), (nv, "mxint8"), (nv, "fp4-rows")];
        assert_eq!(entries, expected);
        let pairs: Vec<_> = report.formats.iter().map(|f| f.pairs.len()).collect();
        let all = backends * backends;
        assert_eq!(pairs, [all; 5], "{:?}", report.unavailable);
        let (elements, differ) = totals(&report);
        assert_eq!((elements, differ), (5 * all * 48 * 192, 0));
        println!("demo: {elements} values compared, {differ} differ");
        for f in &report.formats {
            assert!(f.quantization_error > 0.01 && f.quantization_error < 0.25, "{f:?}");
            assert!(f.pairs.iter().all(|p| p.rounding_error < 2f64.powi(-23)), "{f:?}");
        }
        // What is left with eight bits of activations is the weight's part.
        let errors: Vec<_> = report.formats.iter().map(|f| f.quantization_error).collect();
        assert!(errors[1] < 0.9 * errors[0] && errors[3] < 0.9 * errors[2], "{errors:?}");
        let text = text(&report);
        assert_eq!(text.matches("the weight takes").count(), 2, "{text}");
        let row = |f: &FormatReport| format!("│ {:<6} ┆ {:<11} ┆", f.format, f.activations);
        assert!(report.formats.iter().all(|f| text.contains(&row(f))), "{text}");
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["formats"][3]["format"], "nvfp4");
        assert_eq!(json["formats"][3]["activations"], "mxint8");
    }

    /// Multiplies right but for one bit of one output.
    struct OneBitOff;

    impl Named for OneBitOff {
        fn name(&self) -> &str {
            "one-bit-off"
        }
    }

    impl Matmul for OneBitOff {
        type Prepared<B: Packed> = reference::ReferenceWeight<B>;

        fn supports_matmul(&self, _: &MatmulQuery) -> Result<(), Unsupported> {
            Ok(())
        }

        fn prepare<B: Packed>(&self, b: B) -> Result<Self::Prepared<B>, Error> {
            reference::Reference.prepare(b)
        }

        fn matmul<B: Packed>(
            &self,
            a: PackedView<'_>,
            b: &Self::Prepared<B>,
            epilogue: Epilogue<'_>,
            mut out: FloatSliceMut<'_>,
        ) -> Result<Paths, Error> {
            let paths = reference::Reference.matmul(a, b, epilogue, out.reborrow())?;
            if let FloatSliceMut::F32(y) = out {
                y[777] = f32::from_bits(y[777].to_bits() ^ 1);
            }
            Ok(paths)
        }

        fn export_weight<B: Packed>(
            &self,
            b: &Self::Prepared<B>,
            out: &mut PackedMut<'_>,
        ) -> Result<(), Error> {
            reference::Reference.export_weight(b, out)
        }
    }

    #[test]
    fn a_backend_that_is_one_bit_off_is_caught() {
        let wrong = Backends::none()
            .with(Backend::matmul_only(OneBitOff))
            .with(Backend::quantizer_only(reference::Reference));
        let report = measure(&wrong).unwrap();
        for f in &report.formats {
            let [pair] = &f.pairs[..] else { panic!("{:?}", f.pairs) };
            assert_eq!((&*pair.quantizer, &*pair.matmul), ("reference", "one-bit-off"));
            assert_eq!(pair.differ, 1);
            assert!(pair.first_difference.as_ref().unwrap().starts_with("output 777:"));
        }
        assert!(text(&report).contains("NOT the same bits"));
    }

    /// A quantizer that refuses MXFP4.
    struct NoMxFp4;

    impl Named for NoMxFp4 {
        fn name(&self) -> &str {
            "no-mxfp4"
        }
    }

    impl Quantizer for NoMxFp4 {
        fn supports_quantize(&self, query: &QuantizeQuery) -> Result<(), Unsupported> {
            match query.scale_type {
                ScaleType::E8M0 => {
                    Err(Unsupported::Format { scale: query.scale_type, group: query.group })
                }
                ScaleType::E4M3 => Ok(()),
            }
        }

        fn quantize(
            &self,
            input: &QuantizeInput<'_>,
            out: &mut PackedMut<'_>,
        ) -> Result<QuantCounts, Error> {
            reference::Reference.quantize(input, out)
        }
    }

    #[test]
    fn roles_that_are_lacking_or_refused_are_skipped_and_named() {
        let backends = Backends::reference().with(Backend::quantizer_only(NoMxFp4));
        let report = measure(&backends).unwrap();
        let pairs = |f: &FormatReport| {
            f.pairs.iter().map(|p| format!("{} x {}", p.quantizer, p.matmul)).collect::<Vec<_>>()
        };
        // MXINT8 has scales as MXFP4 has.
        for (f, refused) in report.formats.iter().zip([true, true, false, true, false]) {
            let both = ["no-mxfp4 x reference", "reference x reference"];
            assert_eq!(pairs(f), both[usize::from(refused)..], "{} {}", f.format, f.activations);
        }
        let reasons: Vec<_> =
            report.unavailable.iter().map(|u| (&*u.backend, &*u.reason)).collect();
        let [("no-mxfp4", format), ("no-mxfp4", role), ("no-mxfp4", int8)] = reasons[..] else {
            panic!("{reasons:?}");
        };
        assert!(role.contains("matmul") && role.contains("does not have this role"), "{role}");
        assert!(format.contains("mxfp4") && format.contains("rejected"), "{format}");
        assert!(int8.starts_with("quantizer of mxint8: rejected"), "{int8}");
        assert_eq!(totals(&report), (7 * 48 * 192, 0));
        let text = text(&report);
        assert!(text.contains("no-mxfp4 is not available: quantizer of mxfp4"), "{text}");
    }

    #[test]
    fn nothing_compared_is_not_a_success() {
        for backends in [Backends::none(), Backends::none().with(Backend::quantizer_only(NoMxFp4))]
        {
            let report = measure(&backends).unwrap();
            assert_eq!(totals(&report), (0, 0));
            let text = text(&report);
            assert!(text.contains("nothing was compared") && !text.contains("the same"), "{text}");
        }
    }
}
