//! The numbers of a report against a naive computation, and its bounds.

use std::collections::BTreeMap;
use std::path::Path;

use fp4_core::ScaleType;
use quant_linear::LoadOptions;
use quant_linear::checkpoint::Checkpoint;
use quant_linear::model::report::{
    Group, MAX_NAMES, MAX_ROWS, NAME_CHARS, PROBLEM_CHARS, Report, Row,
};
use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// Name, type, shape, bytes.
type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

fn write(path: &Path, tensors: &[Tensor]) -> Checkpoint {
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    std::fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
    Checkpoint::open(path).unwrap()
}

fn f32s(name: &str, shape: &[usize], values: &[f32]) -> Tensor {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    (name.into(), Dtype::F32, shape.to_vec(), bytes)
}

/// A packed weight as it is stored.
#[derive(Clone)]
struct Packed {
    rows: usize,
    k: usize,
    scale_type: ScaleType,
    codes: Vec<u8>,
    scales: Vec<u8>,
    global_scale: f32,
}

impl Packed {
    /// Pseudo-random codes and scales: zero groups among them, zero scales and NaN.
    fn random(rows: usize, k: usize, scale_type: ScaleType, seed: u64) -> Self {
        let mut state = seed;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as usize
        };
        let group = if scale_type == ScaleType::E4M3 { 16 } else { 32 };
        let (mut codes, mut scales) = (vec![], vec![]);
        for _ in 0..rows * k / group {
            let zero = next() % 9 == 0;
            codes.extend((0..group / 2).map(|_| if zero { 0x80 } else { next() as u8 }));
            scales.push(match (next() % 50, scale_type) {
                (0, _) => 0x00,
                (1, ScaleType::E4M3) => 0x7F,
                (1, ScaleType::E8M0) => 0xFF,
                (_, ScaleType::E4M3) => (next() % 0x7F) as u8,
                (_, ScaleType::E8M0) => (110 + next() % 20) as u8,
            });
        }
        Packed { rows, k, scale_type, codes, scales, global_scale: 0.25 }
    }

    fn group(&self) -> usize {
        self.rows * self.k / self.scales.len()
    }

    fn code(&self, i: usize) -> u8 {
        self.codes[i / 2] >> (4 * (i % 2)) & 0xF
    }

    fn value(&self, i: usize) -> f32 {
        let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(self.code(i) & 7)];
        let signed = if self.code(i) >= 8 { -magnitude } else { magnitude };
        signed * (self.scale_type.decode(self.scales[i / self.group()]) * self.global_scale)
    }

    fn values(&self) -> Vec<f32> {
        (0..self.rows * self.k).map(|i| self.value(i)).collect()
    }

    fn tensors(&self, prefix: &str) -> [Tensor; 3] {
        let (rows, dtype) = match self.scale_type {
            ScaleType::E4M3 => (self.rows, Dtype::F8_E4M3),
            ScaleType::E8M0 => (self.rows, Dtype::F8_E8M0),
        };
        let groups = self.scales.len() / rows;
        let name = |last: &str| format!("{prefix}.{last}");
        [
            (name("e2m1"), Dtype::U8, vec![rows, self.k / 2], self.codes.clone()),
            (name("scale_quant"), dtype, vec![rows, groups], self.scales.clone()),
            f32s(&name("weight_global_scale"), &[], &[self.global_scale]),
        ]
    }
}

/// A reference near the values: each is off by up to an eighth of its group's largest.
fn near(packed: &Packed) -> Vec<f32> {
    let noise = |i: usize| ((i * 7919 % 1000) as f32 / 1000.0 - 0.5) / 4.0;
    let values = packed.values();
    let groups = values.chunks(packed.group());
    let largest: Vec<f32> = groups.map(|g| g.iter().fold(0f32, |m, v| m.max(v.abs()))).collect();
    let finite = |v: f32| if v.is_finite() { v } else { 1.0 };
    let noisy = |(i, v): (usize, &f32)| finite(*v) + noise(i) * largest[i / packed.group()];
    values.iter().enumerate().map(noisy).collect()
}

fn report(a: &Checkpoint, b: Option<&Checkpoint>) -> Report {
    Report::new(a, b, &LoadOptions::default(), &mut |_| {}).unwrap()
}

/// Everything that counts, one element after the other.
fn check_counts(row: &Row, packed: &Packed) {
    let counts = row.counts.as_ref().unwrap();
    let (group, n) = (packed.group(), packed.rows * packed.k);
    let mut codes = [0u64; 16];
    (0..n).for_each(|i| codes[usize::from(packed.code(i))] += 1);
    assert_eq!((counts.weights, counts.groups), (n as u64, packed.scales.len() as u64));
    assert_eq!(counts.codes, codes);
    assert_eq!(counts.saturated, codes[7] + codes[15]);
    let is_zero = |g: usize| (g * group..(g + 1) * group).all(|i| packed.code(i) & 7 == 0);
    assert_eq!(counts.zero_groups, (0..packed.scales.len()).filter(|g| is_zero(*g)).count() as u64);
    let (mut exponents, mut spreads) = (BTreeMap::new(), BTreeMap::new());
    let (mut nan, mut zero) = (0, 0);
    for (row, scales) in packed.scales.chunks(packed.k / group).enumerate() {
        let mut range: Option<(i32, i32)> = None;
        for (at, byte) in scales.iter().enumerate() {
            let scale = packed.scale_type.decode(*byte);
            nan += u64::from(scale.is_nan());
            zero += u64::from(scale == 0.0);
            if scale.is_nan() || scale == 0.0 || is_zero(row * (packed.k / group) + at) {
                continue;
            }
            let exponent = scale.abs().log2().floor() as i32;
            *exponents.entry(exponent).or_insert(0) += 1;
            let (low, high) = range.unwrap_or((exponent, exponent));
            range = Some((low.min(exponent), high.max(exponent)));
        }
        if let Some((low, high)) = range {
            *spreads.entry((high - low) as u32).or_insert(0) += 1;
        }
    }
    assert_eq!((counts.nan_scales, counts.zero_scales), (nan, zero));
    assert_eq!(counts.exponents, exponents);
    assert_eq!(counts.spreads, spreads);
}

/// The SQNR of finite pairs, and whether there is one.
fn sqnr(reference: &[f32], other: &[f32]) -> (f64, f64, f64) {
    let pairs = reference.iter().zip(other).filter(|(a, b)| a.is_finite() && b.is_finite());
    let (mut signal, mut error) = (0f64, 0f64);
    for (a, b) in pairs {
        signal += f64::from(*a).powi(2);
        error += (f64::from(*a) - f64::from(*b)).powi(2);
    }
    (10.0 * (signal / error).log10(), signal, error)
}

fn close(a: f64, b: f64) -> bool {
    a == b || (a - b).abs() <= 1e-9 * a.abs().max(b.abs())
}

/// The errors of a layer and of its groups, sorted and looked up.
fn check_errors(row: &Row, packed: &Packed, reference: &[f32]) {
    let (values, group) = (packed.values(), packed.group());
    let (db, signal, error) = sqnr(reference, &values);
    let figures = row.error.unwrap();
    assert!(close(figures.sqnr_db, db), "{} {db}", figures.sqnr_db);
    assert!(close(figures.relative_error, (error / signal).sqrt()));
    let not_finite = values.iter().filter(|v| !v.is_finite()).count() as u64;
    assert_eq!(figures.not_finite, not_finite);

    let groups: Vec<_> = reference
        .chunks(group)
        .zip(values.chunks(group))
        .map(|(a, b)| (sqnr(a, b), b.iter().any(|v| !v.is_finite())))
        .collect();
    let counted = row.groups.as_ref().unwrap();
    let nan = groups.iter().filter(|(_, nan)| *nan).count() as u64;
    let mut finite: Vec<f64> =
        groups.iter().filter(|((.., e), _)| *e > 0.0).map(|((db, ..), _)| *db).collect();
    finite.sort_by(f64::total_cmp);
    assert_eq!((counted.not_finite, counted.finite), (nan, finite.len() as u64));
    assert_eq!(counted.exact, groups.len() as u64 - nan - counted.finite);
    assert_eq!(counted.histogram.values().sum::<u64>(), counted.finite);
    let quantiles = counted.quantiles.unwrap();
    assert!(close(quantiles.min, finite[0]));
    for (quantile, per_cent) in
        [(quantiles.p1, 1), (quantiles.p10, 10), (quantiles.p50, 50), (quantiles.p90, 90)]
    {
        let exact = finite[(per_cent * finite.len()).div_ceil(100).max(1) - 1];
        assert!((quantile - exact).abs() <= 0.126, "{per_cent}%: {quantile} {exact}");
    }

    // The worst: what is not finite, then the lowest; and the largest error.
    let worst = row.worst_groups.as_ref().unwrap();
    let place = |g: &Group| g.row * (packed.k / group) + g.group;
    let rank = |i: &usize| if groups[*i].1 { f64::NEG_INFINITY } else { groups[*i].0.0 };
    let mut order: Vec<usize> =
        (0..groups.len()).filter(|i| groups[*i].1 || groups[*i].0.2 > 0.0).collect();
    order.sort_by(|i, j| {
        rank(i).total_cmp(&rank(j)).then(groups[*j].0.2.total_cmp(&groups[*i].0.2))
    });
    let found: Vec<_> = worst.by_sqnr.iter().map(place).collect();
    assert_eq!(found, order[..found.len()]);
    order.retain(|i| groups[*i].0.2 > 0.0);
    order.sort_by(|i, j| groups[*j].0.2.total_cmp(&groups[*i].0.2));
    let found: Vec<_> = worst.by_error.iter().map(place).collect();
    assert_eq!(found, order[..found.len()]);
    for group in &worst.by_error {
        let (_, signal, error) = groups[place(group)].0;
        assert!(close(group.error, error.sqrt()) && close(group.reference, signal.sqrt()));
    }
    assert_eq!((worst.by_sqnr.len(), worst.by_error.len()), (5, 5));
}

#[test]
fn counts_and_errors_are_those_of_a_naive_computation() {
    let folder = tempfile::tempdir().unwrap();
    // The last is wider than a tile, so that a row comes in pieces.
    let cases = [
        ("l.2.a", Packed::random(24, 128, ScaleType::E4M3, 1)),
        ("l.10.a", Packed::random(9, 320, ScaleType::E8M0, 2)),
        ("l.10.b", Packed::random(3, (1 << 21) + 128, ScaleType::E4M3, 3)),
    ];
    let mut dense = vec![f32s("norm", &[4], &[1.0; 4])];
    let mut quantized = dense.clone();
    for (name, packed) in &cases {
        let shape = [packed.rows, packed.k];
        dense.push(f32s(&format!("{name}.weight"), &shape, &near(packed)));
        quantized.extend(packed.tensors(name));
    }
    let a = write(&folder.path().join("a.safetensors"), &dense);
    let b = write(&folder.path().join("b.safetensors"), &quantized);
    let both = report(&a, Some(&b));
    let alone = report(&b, None);
    assert_eq!(both.problems.count(), 0, "{:?}", both.problems);
    let names: Vec<_> = both.rows.iter().map(|row| &*row.name).collect();
    assert_eq!(names, cases.each_ref().map(|(name, _)| *name), "in the order of the model");
    for ((row, of_alone), (_, packed)) in both.rows.iter().zip(&alone.rows).zip(&cases) {
        check_counts(row, packed);
        check_errors(row, packed, &near(packed));
        assert_eq!(row.counts, of_alone.counts);
        assert!(of_alone.error.is_none() && of_alone.groups.is_none());
        assert_eq!(row.shape, [packed.rows, packed.k]);
        assert_eq!(row.bytes, (packed.codes.len() + packed.scales.len()) as u64);
        assert_eq!(row.reference_bytes, Some((packed.rows * packed.k * 4) as u64));
    }
    // Totals are sums, and those of the two formats are the whole.
    let weights: u64 = cases.iter().map(|(_, p)| (p.rows * p.k) as u64).sum();
    assert_eq!((both.totals.layers, both.totals.counts.weights), (3, weights));
    let by_format: u64 = both.formats.values().map(|t| t.counts.weights).sum();
    assert_eq!((by_format, both.formats.len()), (weights, 2));
    assert_eq!(both.totals.compared_bytes, Some([both.totals.bytes, 4 * weights]));
    let all: Vec<f32> = cases.iter().flat_map(|(_, p)| near(p)).collect();
    let other: Vec<f32> = cases.iter().flat_map(|(_, p)| p.values()).collect();
    assert!(close(both.totals.error.unwrap().sqnr_db, sqnr(&all, &other).0));
    let worst = &both.worst_groups.by_error[0];
    let of_rows = both.rows.iter().filter_map(|r| r.worst_groups.as_ref()?.by_error.first());
    let largest = of_rows.map(|g| g.error).fold(0.0, f64::max);
    assert!(worst.error == largest && worst.layer.is_some());
    assert_eq!((both.identical, alone.identical), (1, 0));
    // The other way round the dense side is still the reference.
    let turned = report(&b, Some(&a));
    assert_eq!(turned.rows[0].error, both.rows[0].error);
}

#[test]
fn one_huge_weight_cannot_hide_what_became_of_the_other_groups() {
    let folder = tempfile::tempdir().unwrap();
    let mut packed = Packed::random(1, 1024, ScaleType::E4M3, 4);
    packed.codes.fill(0);
    packed.scales.fill(0);
    packed.global_scale = 3e38 / 2688.0;
    (packed.codes[0], packed.scales[0]) = (0x07, 0x7E);
    let mut reference = vec![0.5f32; 1024];
    reference[..16].fill(0.0);
    reference[0] = packed.value(0);
    reference[1] = 1e31;
    let a =
        write(&folder.path().join("a.safetensors"), &[f32s("x.weight", &[1, 1024], &reference)]);
    let b = write(&folder.path().join("b.safetensors"), &packed.tensors("x"));
    let row = &report(&a, Some(&b)).rows[0];
    assert!(row.error.unwrap().sqnr_db > 140.0);
    let groups = row.groups.as_ref().unwrap();
    let quantiles = groups.quantiles.unwrap();
    assert_eq!((groups.finite, quantiles.min), (64, 0.0));
    assert!(quantiles.p90 < 0.2, "{quantiles:?}");
    assert_eq!(row.counts.as_ref().unwrap().zero_groups, 63);
}

#[test]
fn what_cannot_be_measured_is_a_problem_and_the_rest_is_reported() {
    let folder = tempfile::tempdir().unwrap();
    let [x, y] = [5, 6].map(|seed| Packed::random(4, 64, ScaleType::E4M3, seed));
    let mut quantized = x.tensors("x").to_vec();
    quantized.extend(y.tensors("y"));
    quantized.push(("z.e2m1".into(), Dtype::U8, vec![1, 8], vec![0; 8]));
    quantized.push(f32s("moved", &[2], &[1.0, 2.0]));
    let mut dense =
        vec![f32s("x.weight", &[4, 64], &near(&x)), f32s("y.weight", &[8, 32], &near(&y))];
    dense.push(f32s("moved", &[2], &[1.0, 2.5]));
    dense.push(f32s("z.weight", &[1, 16], &[0.0; 16]));
    let a = write(&folder.path().join("a.safetensors"), &dense);
    let b = write(&folder.path().join("b.safetensors"), &quantized);
    let report = report(&a, Some(&b));
    let names: Vec<_> = report.rows.iter().map(|row| (&*row.name, row.error.is_some())).collect();
    assert_eq!(names, [("moved", true), ("x", true), ("y", false)]);
    let problems = report.problems.first.join("\n");
    assert_eq!(report.problems.count(), 2, "{problems}");
    assert!(problems.contains("[8, 32]") && problems.contains("layer `z`"), "{problems}");
    assert_eq!(report.only_in_a.first, ["z.weight"]);
}

#[test]
fn a_layer_against_another_is_measured_against_the_first() {
    let folder = tempfile::tempdir().unwrap();
    let x = Packed::random(4, 64, ScaleType::E8M0, 7);
    let mut y = x.clone();
    y.global_scale = 0.3;
    y.codes.iter_mut().step_by(3).for_each(|byte| *byte ^= 1);
    let a = write(&folder.path().join("a.safetensors"), &x.tensors("x"));
    let b = write(&folder.path().join("b.safetensors"), &y.tensors("x"));
    let report = report(&a, Some(&b));
    check_counts(&report.rows[0], &y);
    let db = sqnr(&x.values(), &y.values()).0;
    assert!(close(report.rows[0].error.unwrap().sqnr_db, db));
}

#[test]
fn experts_of_a_3d_tensor_are_measured_one_by_one() {
    let folder = tempfile::tempdir().unwrap();
    let name = "mlp.experts.up_proj";
    let experts: Vec<_> = (0..3).map(|e| Packed::random(6, 64, ScaleType::E4M3, 20 + e)).collect();
    let stacked: Vec<f32> = experts.iter().flat_map(near).collect();
    let quantized = experts.iter().enumerate();
    let quantized: Vec<_> =
        quantized.flat_map(|(e, p)| p.tensors(&format!("{name}.{e}"))).collect();
    let a = write(&folder.path().join("a.safetensors"), &[f32s(name, &[3, 6, 64], &stacked)]);
    let b = write(&folder.path().join("b.safetensors"), &quantized);
    let report = report(&a, Some(&b));
    assert_eq!((report.rows.len(), report.only_in_a.count(), report.only_in_b.count()), (3, 0, 0));
    for (row, packed) in report.rows.iter().zip(&experts) {
        check_errors(row, packed, &near(packed));
        assert_eq!(row.reference_bytes, Some(6 * 64 * 4));
    }
    // Stored (experts, in, out): the same figures.
    let turned = |packed: &Packed| {
        let dense = near(packed);
        (0..dense.len()).map(move |i| dense[i % 6 * 64 + i / 6]).collect::<Vec<_>>()
    };
    let turned: Vec<f32> = experts.iter().flat_map(turned).collect();
    let a = write(&folder.path().join("t.safetensors"), &[f32s(name, &[3, 64, 6], &turned)]);
    for report in [self::report(&a, Some(&b)), self::report(&b, Some(&a))] {
        assert_eq!((report.rows.len(), report.problems.count()), (3, 0));
        for (row, packed) in report.rows.iter().zip(&experts) {
            check_errors(row, packed, &near(packed));
        }
    }
    // Of a shape that is neither: not measured, and named.
    let a = write(&folder.path().join("o.safetensors"), &[f32s(name, &[3, 32, 12], &stacked)]);
    let report = self::report(&a, Some(&b));
    assert!(report.rows.iter().all(|row| row.error.is_none() && row.counts.is_some()));
    assert_eq!(report.problems.count(), 3);
    assert!(report.problems.first[0].contains("[32, 12]"), "{:?}", report.problems);
}

#[test]
fn a_report_is_bounded_and_its_totals_are_over_all() {
    let folder = tempfile::tempdir().unwrap();
    let layers = MAX_ROWS + 7;
    let long = "x".repeat(3 * NAME_CHARS);
    let (mut dense, mut quantized) = (vec![], vec![]);
    for i in 0..layers {
        let packed = Packed::random(1, 32, ScaleType::E8M0, i as u64);
        let name = format!("l.{i}.{long}\u{1b}.end");
        // Seven layers are exact: those are left out.
        let exact = (100..107).contains(&i);
        let off = |v: &f32| match exact {
            true => *v,
            false => {
                if v.is_nan() {
                    1.0
                } else {
                    v + 0.01
                }
            }
        };
        let reference: Vec<f32> = packed.values().iter().map(off).collect();
        dense.push(f32s(&format!("{name}.weight"), &[1, 32], &reference));
        quantized.extend(packed.tensors(&name));
    }
    for i in 0..MAX_NAMES + 3 {
        dense.push(f32s(&format!("only.{long}.{i}"), &[1], &[0.0]));
        quantized.push(f32s(&format!("bad.{long}.{i}.scale_quant"), &[1], &[0.0]));
    }
    let a = write(&folder.path().join("a.safetensors"), &dense);
    let b = write(&folder.path().join("b.safetensors"), &quantized);
    let report = report(&a, Some(&b));
    assert_eq!((report.rows.len(), report.rows_left_out), (MAX_ROWS, 7));
    assert_eq!(report.totals.layers, layers as u64);
    let kept = |i: usize| report.rows.iter().any(|row| row.name.starts_with(&format!("l.{i}.")));
    assert!(kept(99) && kept(107) && kept(layers - 1) && !(100..107).any(kept));
    let positions = report.rows.iter().map(|r| r.name.split('.').nth(1).unwrap().parse::<usize>());
    let positions: Vec<_> = positions.map(Result::unwrap).collect();
    assert!(positions.is_sorted(), "in the order of the model");
    assert!(report.rows.iter().all(|row| row.name.chars().count() <= NAME_CHARS));
    assert!(report.rows[0].name.ends_with(r"xx\u{1b}.end"), "{}", report.rows[0].name);
    let all = report.only_in_a.first.iter().chain(&report.problems.first);
    assert!(all.clone().count() > MAX_NAMES);
    assert!(all.clone().all(|text| text.chars().count() <= PROBLEM_CHARS));
    assert_eq!((report.only_in_a.first.len(), report.only_in_a.left_out), (MAX_NAMES, 3));
    assert_eq!(report.worst_groups.by_sqnr.len(), 50);
}
