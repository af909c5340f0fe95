//! Quantizers against the oracles.

use fp4_core::reference::quantize;
use fp4_core::{
    Format, GroupSize, PackedMatrix, PackedView, QuantSpec, QuantizeInput, ScaleType, TieMode,
};
use quant_linear::calibrate::{
    BlockTransform, Gram, GroupScales, Method, QuantizeOptions, loss, quantize_weight,
};
use quant_linear::{CalibrateError, Error};

use crate::data::{Numbers, correlated, on_threads, spec, weight, wide, with_outliers};
use crate::oracle::{self, Row, Task};

fn error(result: Result<impl Sized, Error>) -> CalibrateError {
    match result.err() {
        Some(Error::Calibrate(error)) => error,
        other => panic!("{other:?}"),
    }
}

fn rows_of(packed: PackedView<'_>) -> Vec<Row> {
    let code = |i, k| packed.code(i, k).unwrap().to_bits();
    let k = packed.shape().k();
    (0..packed.shape().rows())
        .map(|i| Row {
            codes: (0..k).map(|k| code(i, k)).collect(),
            scales: packed.row_scales(i).to_vec(),
        })
        .collect()
}

fn expect_rows(got: &PackedMatrix, expected: impl Iterator<Item = Row>, what: &str) {
    for (i, (got, expected)) in rows_of(got.view()).iter().zip(expected).enumerate() {
        assert_eq!(got.scales, expected.scales, "{what}: scales of row {i}");
        let off: Vec<_> = (0..got.codes.len())
            .filter(|&k| got.codes[k] != expected.codes[k])
            .map(|k| (k, got.codes[k], expected.codes[k]))
            .collect();
        assert!(off.is_empty(), "{what}: row {i} differs at {off:?}");
    }
}

#[test]
fn rtn_gives_the_bits_of_the_reference_and_looks_at_no_moments() {
    let (rows, k) = (150, 256);
    let mut w = weight(rows, k, 1);
    w[3 * k..3 * k + 40].fill(0.0);
    w[5 * k..6 * k].iter_mut().for_each(|w| *w *= 1e-38);
    w[7] = -0.0;
    // Quotients on midpoints: multiples of a quarter under a scale of 1 or 2.
    w[8 * k..10 * k].iter_mut().enumerate().for_each(|(i, w)| *w = ((i * 7) % 33) as f32 - 16.0);
    w[8 * k..10 * k].iter_mut().for_each(|w| *w /= 512.0);
    for scale_type in [ScaleType::E8M0, ScaleType::E4M3] {
        for group in GroupSize::ALL {
            let tie = TieMode::ALL[group.get().trailing_zeros() as usize % 4];
            let spec = QuantSpec::new(scale_type, group, 1.0 / 128.0, 4.0).unwrap().with_tie(tie);
            let input = QuantizeInput::new(&w[..], rows, k, &spec).unwrap();
            let mut expected = PackedMatrix::zeros(input.shape());
            quantize(&input, &mut expected.view_mut()).unwrap();
            let options = QuantizeOptions::new(spec, Method::Rtn);
            assert_eq!(quantize_weight(&w, k, None, &options).unwrap(), expected);
            let gram = Gram::of_rows(&correlated(50, k, 2), k).unwrap();
            for options in [options, QuantizeOptions { act_order: true, ..options }] {
                assert_eq!(quantize_weight(&w, k, Some(&gram), &options).unwrap(), expected);
            }
        }
    }
}

#[test]
fn gptq_equals_the_textbook_with_an_explicit_inverse() {
    let (rows, k) = (12, 256);
    let (w, x) = (weight(rows, k, 3), with_outliers(300, k, 4));
    let gram = Gram::of_rows(&x, k).unwrap();
    let h = oracle::damped(&gram, 1e-2);
    for format in Format::ALL {
        let spec = spec(format, &w);
        let options = QuantizeOptions::new(spec, Method::Gptq);
        let got = quantize_weight(&w, k, Some(&gram), &options).unwrap();
        let (inner, outer) = (Method::Gptq, Method::Gptq);
        let scales = GroupScales::Reached;
        let task = Task { spec: &spec, h: &h, inner, outer, block: 128, scales };
        let expected = w.chunks_exact(k).map(|w| oracle::textbook_gptq(&wide(w), &task));
        expect_rows(&got, expected, &format.to_string());
        let lost = |method| {
            let options = QuantizeOptions::new(spec, method);
            let packed = quantize_weight(&w, k, Some(&gram), &options).unwrap();
            loss::of_moments(&gram, &w, packed.view(), spec.global_scale()).unwrap().ratio()
        };
        let (rtn, gptq) = (lost(Method::Rtn), lost(Method::Gptq));
        assert!(gptq < 0.7 * rtn, "{format}: {gptq} {rtn}");
    }
}

#[test]
fn every_inner_and_outer_method_is_what_its_definition_says() {
    let (rows, k) = (3, 96);
    let (w, x) = (weight(rows, k, 5), with_outliers(120, k, 6));
    let gram = Gram::of_rows(&x, k).unwrap();
    let h = oracle::damped(&gram, 1e-2);
    let spec = spec(Format::NvFp4, &w);
    for inner in Method::ALL {
        for outer in Method::ALL {
            for scales in [GroupScales::Reached, GroupScales::Original] {
                let options = QuantizeOptions {
                    inner,
                    outer,
                    scales,
                    block: GroupSize::G32,
                    ..QuantizeOptions::new(spec, Method::Rtn)
                };
                let got = quantize_weight(&w, k, Some(&gram), &options).unwrap();
                // Where both agree, blocks are of 128: here all of k.
                let block = if inner == outer { 128 } else { 32 };
                let task = Task { spec: &spec, h: &h, inner, outer, block, scales };
                let expected = w.chunks_exact(k).map(|w| oracle::by_definition(&wide(w), &task));
                expect_rows(&got, expected, &format!("{inner} in {outer}, {scales:?}"));
            }
        }
    }
}

#[test]
fn blocks_of_128_are_carried_to_as_the_definition_says() {
    let (rows, k) = (2, 288);
    let (w, x) = (weight(rows, k, 7), correlated(200, k, 8));
    let gram = Gram::of_rows(&x, k).unwrap();
    let h = oracle::damped(&gram, 1e-2);
    let spec = spec(Format::MxFp4, &w);
    // The first decided blocks of the textbook; Babai by reversal, below.
    let options = QuantizeOptions::new(spec, Method::Gptq);
    let got = quantize_weight(&w, k, Some(&gram), &options).unwrap();
    let (inner, outer, scales) = (Method::Gptq, Method::Gptq, GroupScales::Reached);
    let task = Task { spec: &spec, h: &h, inner, outer, block: 128, scales };
    let expected = w.chunks_exact(k).map(|w| oracle::textbook_gptq(&wide(w), &task));
    expect_rows(&got, expected, "three blocks");
}

fn reversed_columns(x: &[f32], k: usize) -> Vec<f32> {
    x.chunks_exact(k).flat_map(|row| row.iter().rev().copied()).collect()
}

fn reversed(gram: &Gram) -> Gram {
    let k = gram.k();
    let lower: Vec<f64> = (0..k)
        .flat_map(|i| (0..=i).map(move |j| (i, j)))
        .map(|(i, j)| gram.get(k - 1 - i, k - 1 - j))
        .collect();
    Gram::from_parts(k, gram.samples(), &lower).unwrap()
}

/// GPTQ on the reversed order takes the Cholesky factor of the matrix that Babai takes, so both
/// have one factor.
#[test]
fn babai_is_gptq_on_the_reversed_order_code_for_code() {
    let (rows, k) = (200, 384);
    let (w, x) = (weight(rows, k, 9), with_outliers(500, k, 10));
    let gram = Gram::of_rows(&x, k).unwrap();
    for format in Format::ALL {
        let spec = spec(format, &w);
        let run = |w: &[f32], gram: &Gram, method| {
            let options = QuantizeOptions::new(spec, method);
            rows_of(quantize_weight(w, k, Some(gram), &options).unwrap().view())
        };
        let babai = run(&w, &gram, Method::Babai);
        let mut gptq = run(&reversed_columns(&w, k), &reversed(&gram), Method::Gptq);
        for row in &mut gptq {
            row.codes.reverse();
            row.scales.reverse();
        }
        let off = babai.iter().zip(&gptq).filter(|(a, b)| a != b).count();
        assert_eq!(off, 0, "{format}: {off} of {rows} rows differ");
        let forward = run(&w, &gram, Method::Gptq);
        assert_ne!(babai, forward, "{format}: the order makes no difference");
    }
}

/// The quotients that a row's values take under the factor L, from the last input to the first,
/// each after the codes that were decided behind it.
fn quotients(w: &[f64], row: &Row, l: &[f64], spec: &QuantSpec) -> Vec<f32> {
    let (k, group) = (w.len(), spec.group().get());
    let unit = |i: usize| spec.unit(row.scales[i / group]);
    let mut quotients = vec![0f32; k];
    for i in (0..k).rev() {
        let off = |j: usize| w[j] - oracle::value(row.codes[j], unit(j));
        let pull: f64 = (i + 1..k).map(|j| off(j) * l[j * k + i]).sum();
        quotients[i] = (w[i] + pull / l[i * k + i]) as f32 / unit(i);
    }
    quotients
}

/// Babai by factors that were computed apart: a plain recurrence, of the same moments and of
/// moments that were rounded to f32. Every code that comes out another is one whose quotient lies
/// at a midpoint of two codes, within `bound`.
#[test]
fn independent_factors_differ_in_rounding_ties_alone() {
    const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
    let (rows, k) = (4096, 256);
    let (w, x) = (weight(rows, k, 11), with_outliers(600, k, 12));
    let gram = Gram::of_rows(&x, k).unwrap();
    let narrow: Vec<f64> = gram.lower().iter().map(|&g| f64::from(g as f32)).collect();
    let narrow = Gram::from_parts(k, gram.samples(), &narrow).unwrap();
    let spec = spec(Format::NvFp4, &w);
    let options = QuantizeOptions::new(spec, Method::Babai);
    let packed = quantize_weight(&w, k, Some(&gram), &options).unwrap();
    let rows_got = rows_of(packed.view());
    // In ulps of f32 at the quotient: two for the value's and the quotient's rounding, and what
    // rounding the moments to f32 adds, some 1e-7 times the condition of what is solved.
    for (what, gram, ulps, expected) in
        [("f64", &gram, 2.0, 0..=1), ("f32", &narrow, 4096.0, 1..=64)]
    {
        let l = oracle::cholesky(&oracle::damped(gram, 1e-2), k);
        let mut differences = 0;
        for (w, row) in w.chunks_exact(k).zip(&rows_got) {
            for (i, q) in quotients(&wide(w), row, &l, &spec).into_iter().enumerate() {
                if oracle::code(f64::from(q), 1.0) != row.codes[i] {
                    let nearest = MIDPOINTS.iter().map(|m| (q.abs() - m).abs());
                    let nearest = nearest.fold(f32::INFINITY, f32::min);
                    let bound = ulps * q.abs() * f32::EPSILON;
                    assert!(nearest <= bound, "{what}: {q} is {nearest} from a midpoint");
                    differences += 1;
                }
            }
        }
        println!("{what}: {differences} of {} codes differ, all within {ulps} ulp", rows * k);
        assert!(expected.contains(&differences), "{what}: {differences}");
    }
}

#[test]
fn act_order_is_the_same_on_permuted_inputs_with_the_groups_own_scales() {
    let (rows, k) = (6, 128);
    let (w, x) = (weight(rows, k, 13), with_outliers(200, k, 14));
    let gram = Gram::of_rows(&x, k).unwrap();
    let diagonal = gram.diagonal();
    let mut order: Vec<usize> = (0..k).collect();
    order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
    let spec = spec(Format::NvFp4, &w);
    let h = oracle::damped(&gram, 1e-2);
    for method in [Method::Gptq, Method::Babai] {
        let options = QuantizeOptions { act_order: true, ..QuantizeOptions::new(spec, method) };
        let got = quantize_weight(&w, k, Some(&gram), &options).unwrap();
        for (w, got) in w.chunks_exact(k).zip(rows_of(got.view())) {
            let w = wide(w);
            let scales: Vec<u8> = w.chunks_exact(16).map(|y| oracle::scale(y, &spec)).collect();
            assert_eq!(got.scales, scales);
            // Input by input in that order, each at its best value given those before.
            let mut codes = vec![0; k];
            let mut inverse_of: Vec<usize> = order.clone();
            let mut off = vec![0.0; k];
            while let Some(&i) = inverse_of.first() {
                let n = inverse_of.len();
                let sub: Vec<f64> =
                    (0..n * n).map(|p| h[inverse_of[p / n] * k + inverse_of[p % n]]).collect();
                // The first row of the inverse is all that the next input's best value needs.
                let solved = crate::oracle::inverse(&sub, n);
                let pull =
                    |j: usize| -> f64 { (0..k).map(|d| off[d] * h[d * k + inverse_of[j]]).sum() };
                let x = w[i] + (0..n).map(|j| pull(j) * solved[j * n]).sum::<f64>();
                let unit = spec.unit(scales[i / 16]);
                codes[i] = oracle::code(x, unit);
                off[i] = w[i] - oracle::value(codes[i], unit);
                inverse_of.remove(0);
            }
            assert_eq!(got.codes, codes, "{method}");
        }
    }
}

#[test]
fn errors_that_stay_in_their_block_see_that_block_alone() {
    let (rows, k) = (70, 128);
    let (w, x) = (weight(rows, k, 15), correlated(300, k, 16));
    let gram = Gram::of_rows(&x, k).unwrap();
    let at = |i: usize, j: usize| if i / 32 == j / 32 { gram.get(i, j) } else { 0.0 };
    let lower: Vec<f64> =
        (0..k).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|(i, j)| at(i, j)).collect();
    let alone = Gram::from_parts(k, gram.samples(), &lower).unwrap();
    let spec = spec(Format::NvFp4, &w);
    let options = QuantizeOptions {
        inner: Method::Gptq,
        block: GroupSize::G32,
        ..QuantizeOptions::new(spec, Method::Rtn)
    };
    let inside = quantize_weight(&w, k, Some(&gram), &options).unwrap();
    let whole = QuantizeOptions::new(spec, Method::Gptq);
    // No moments across blocks: nothing is carried across.
    assert_eq!(inside, quantize_weight(&w, k, Some(&alone), &whole).unwrap());
    assert_ne!(inside, quantize_weight(&w, k, Some(&gram), &whole).unwrap());
}

#[test]
fn bits_do_not_depend_on_threads() {
    let (rows, k) = (333, 320);
    let (w, x) = (weight(rows, k, 17), with_outliers(400, k, 18));
    let gram = Gram::of_rows(&x, k).unwrap();
    for format in Format::ALL {
        for method in Method::ALL {
            let options = QuantizeOptions::new(spec(format, &w), method);
            let run = || quantize_weight(&w, k, Some(&gram), &options).unwrap();
            assert_eq!(on_threads(1, run), on_threads(2, run), "{format} {method}");
            assert_eq!(on_threads(1, run), on_threads(5, run), "{format} {method}");
        }
    }
}

#[test]
fn moments_without_signal_are_damped_as_documented() {
    let (rows, k) = (20, 128);
    let w = weight(rows, k, 19);
    let spec = spec(Format::NvFp4, &w);
    let run = |gram: &Gram, method, damping| {
        let options = QuantizeOptions { damping, ..QuantizeOptions::new(spec, method) };
        quantize_weight(&w, k, Some(gram), &options)
    };
    let plain = run(&Gram::of_rows(&[1.0; 128], k).unwrap(), Method::Rtn, 0.01).unwrap();
    // Fewer samples than inputs, dead inputs, and inputs that are all dead.
    let few = Gram::of_rows(&correlated(5, k, 20), k).unwrap();
    let mut x = correlated(300, k, 20);
    x.chunks_exact_mut(k).for_each(|row| row[32..48].fill(0.0));
    let dead = Gram::of_rows(&x, k).unwrap();
    let silent = Gram::of_rows(&vec![0.0; 4 * k], k).unwrap();
    for method in [Method::Gptq, Method::Babai] {
        assert_ne!(run(&few, method, 0.01).unwrap(), plain);
        let codes = |packed: &PackedMatrix| {
            rows_of(packed.view()).iter().map(|r| r.codes[32..48].to_vec()).collect::<Vec<_>>()
        };
        let got = run(&dead, method, 0.01).unwrap();
        assert_eq!(codes(&got), codes(&plain), "dead inputs are rounded to nearest");
        assert_eq!(run(&silent, method, 0.01).unwrap(), plain);
        let found = error(run(&few, method, 0.0));
        assert!(matches!(found, CalibrateError::NotPositiveDefinite { k: 128, .. }), "{found}");
        let found = error(run(&dead, method, 0.0));
        let CalibrateError::NotPositiveDefinite { pivot, .. } = found else { panic!("{found}") };
        assert!((32..48).contains(&pivot), "{pivot}");
    }
}

#[test]
fn bad_input_is_refused_by_name() {
    let (rows, k) = (4, 64);
    let w = weight(rows, k, 21);
    let gram = Gram::of_rows(&correlated(100, k, 22), k).unwrap();
    let spec = spec(Format::NvFp4, &w);
    let options = QuantizeOptions::new(spec, Method::Gptq);
    let run = |w: &[f32], k, gram: Option<&Gram>, options: &QuantizeOptions| {
        error(quantize_weight(w, k, gram, options))
    };
    let mut broken = w.clone();
    for bad in [f32::NAN, f32::INFINITY] {
        broken[3 * k + 9] = bad;
        for method in Method::ALL {
            let found = run(&broken, k, Some(&gram), &QuantizeOptions::new(spec, method));
            let CalibrateError::NotFinite { what: "weight", row: 3, column: 9, .. } = found else {
                panic!("{found}");
            };
        }
    }
    let ragged = CalibrateError::Ragged { what: "weight", k, got: 255 };
    assert_eq!(run(&w[1..], k, Some(&gram), &options), ragged);
    let odd = quantize_weight(&w[..200], 50, None, &QuantizeOptions::new(spec, Method::Rtn));
    assert!(matches!(odd, Err(Error::Core(fp4_core::Error::KNotWholeGroups { .. }))), "{odd:?}");
    let wide = Gram::of_rows(&correlated(10, 128, 1), 128).unwrap();
    let width = CalibrateError::Width { what: "second moments", expected: 64, got: 128 };
    assert_eq!(run(&w, k, Some(&wide), &options), width);
    assert_eq!(run(&w, k, None, &options), CalibrateError::NoMoments { method: "gptq" });
    let inner = QuantizeOptions { inner: Method::Babai, ..QuantizeOptions::new(spec, Method::Rtn) };
    assert_eq!(run(&w, k, None, &inner), CalibrateError::NoMoments { method: "babai" });
    let none = Gram::of_rows(&[], k).unwrap();
    assert_eq!(run(&w, k, Some(&none), &options), CalibrateError::NoSamples);
    let damping = QuantizeOptions { damping: -1.0, ..options };
    assert_eq!(run(&w, k, Some(&gram), &damping), CalibrateError::Damping { got: -1.0 });
    let mixed = QuantizeOptions { act_order: true, inner: Method::Rtn, ..options };
    let order = CalibrateError::Order { inner: "rtn", outer: "gptq" };
    assert_eq!(run(&w, k, Some(&gram), &mixed), order);
    for (spec, got) in
        [(QuantSpec::mxint8(), "MXINT8"), (spec.with_row_scales().unwrap(), "row scales")]
    {
        let options = QuantizeOptions::new(spec, Method::Rtn);
        assert_eq!(run(&w, k, None, &options), CalibrateError::NotForWeights { got });
    }
    // Moments that no rows can have: input 1 is a copy of input 0, times a thousand, and less.
    let mut lower = gram.lower();
    lower[1] = 1e9;
    let false_moments = Gram::from_parts(k, 100, &lower).unwrap();
    let found = run(&w, k, Some(&false_moments), &options);
    assert!(matches!(found, CalibrateError::NotPositiveDefinite { .. }), "{found}");
    assert!(found.to_string().contains("damping 0.01"), "{found}");
    // An error that grows past f32 as it propagates: small inputs that follow a very large one.
    let mut numbers = Numbers(1);
    let mut x = vec![0f32; 200 * k];
    for row in x.chunks_exact_mut(k) {
        let common = numbers.gaussian();
        row.iter_mut().for_each(|x| *x = ((common + numbers.gaussian()) * 1e-12) as f32);
        row[0] = (common * 1e30) as f32;
    }
    let leaning = Gram::of_rows(&x, k).unwrap();
    let found = run(&w, k, Some(&leaning), &QuantizeOptions { damping: 1e-100, ..options });
    let CalibrateError::Diverged { row: 0, column, .. } = found else { panic!("{found}") };
    assert!(column > 0);
    assert!(matches!(error("x".parse::<Method>()), CalibrateError::Name { .. }));
    for method in Method::ALL {
        assert_eq!(method.to_string().parse::<Method>().unwrap(), method);
    }
    let nothing = quantize_weight(&[], 64, Some(&gram), &options).unwrap();
    assert_eq!(nothing.shape().rows(), 0);
    let t = BlockTransform::identity(64, GroupSize::G16).unwrap();
    assert!(loss::of_weight(&[], &[], &t, nothing.view(), 1.0).unwrap().ratio() == 0.0);
}
