//! Views against what else says the same: reports, layers quantized by the library, brute force.

use std::sync::Arc;

use fp4_core::{Format, ScaleRule, ScaleType};

use super::{Choice, MAX_CELLS, View, trials, values};
use crate::checkpoint::{ByteSource, Checkpoint, InMemory};
use crate::layout::{Layers, LoadOptions};
use crate::model::dense::tests::vector;
use crate::model::report::Report;
use crate::{Backends, DenseOptions, QuantLinear, StoredTransform};

/// A checkpoint of one f32 tensor.
fn dense(name: &str, shape: &[usize], values: &[f32]) -> Checkpoint {
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let entry = serde_json::json!({
        name: { "dtype": "F32", "shape": shape, "data_offsets": [0, bytes.len()] }
    });
    let header = entry.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    let source: Arc<dyn ByteSource> = Arc::new(InMemory::new("a.safetensors", file));
    Checkpoint::open_sources(vec![source]).unwrap()
}

fn drawn(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 37 % 1013) as f32 - 500.0) * 0.01 * ((i % 7) as f32)).collect()
}

fn view(from: &Checkpoint, name: &str) -> View {
    let options = LoadOptions::default();
    let layers = Layers::find(from, &options).unwrap();
    View::new((from, &layers), name, None, &options, &mut |_, _| {}).unwrap()
}

#[test]
fn a_layer_holds_what_its_report_says_and_its_map_sums_to_it() {
    let mut layers = 0;
    for file in ["f_modelopt_nvfp4.safetensors", "h_fpquant_mxfp4.safetensors"] {
        let from = vector(file);
        let options = LoadOptions::default();
        let found = Layers::find(&from, &options).unwrap();
        let report = Report::new(&from, None, &options, &mut |_| {}).unwrap();
        for row in &report.rows {
            let (mut seen, mut last) = (0, 0);
            let view = View::new((&from, &found), &row.name, None, &options, &mut |done, total| {
                assert!(seen <= done && done <= total);
                (seen, last) = (done, total);
            });
            let view = view.unwrap();
            let counts = view.counts.as_ref().unwrap();
            assert_eq!((Some(counts), seen, last), (row.counts.as_ref(), row.bytes, row.bytes));
            let map = &view.map;
            assert!(map.rows <= MAX_CELLS && map.cols <= MAX_CELLS);
            // Elements of a cell times its share, over all cells.
            let sum = |plane: &str| -> f64 {
                let cells = map.planes[plane].iter().enumerate();
                cells
                    .map(|(at, share)| {
                        let (i, j) = (at / map.cols, at % map.cols);
                        let rows = map.row_step.min(view.rows - i * map.row_step);
                        let cols = map.col_step.min(view.cols - j * map.col_step);
                        f64::from(*share) * (rows * cols) as f64
                    })
                    .sum()
            };
            let close = |got: f64, expected: u64| (got - expected as f64).abs() < 0.01;
            assert!(close(sum("saturated"), counts.saturated), "{}", row.name);
            assert!(close(sum("zero"), counts.codes[0] + counts.codes[8]), "{}", row.name);
            let groups: u64 = view.scales.iter().map(|scale| scale.count).sum();
            assert_eq!(groups, counts.groups);
            layers += 1;
        }
    }
    assert!(layers > 10);
}

#[test]
fn a_trial_is_the_layer_that_the_library_makes() {
    let (rows, k) = (300, 128);
    let weight = drawn(rows * k);
    let from = dense("some.thing", &[rows, k], &weight);
    let mut compared = 0;
    for format in Format::ALL {
        for rule in ScaleRule::ALL.into_iter().filter(|rule| rule.is_for(format.scale_type())) {
            let transform = (rule == ScaleRule::Search).then_some(64);
            let choice = Choice { format, rule, transform };
            let (mut seen, mut all) = (0, 0);
            let trials = trials(
                (&from, "some.thing", 0),
                &[choice],
                &Backends::available(),
                &mut |done, total| (seen, all) = (done, total),
            );
            let trial = &trials.unwrap()[0];
            assert!(seen == all && all > 0, "{seen} {all}");
            let stored = transform.map(|block| StoredTransform::hadamard(block).unwrap());
            let options =
                DenseOptions { scale_rule: rule, transform: stored, ..DenseOptions::new(format) };
            let layer = QuantLinear::from_dense(&weight[..], rows, k, &options).unwrap();
            assert_eq!(trial.global_scale, layer.weight_global_scale(), "{rule}");
            let mut codes = [0u64; 16];
            layer.weight().unwrap().codes().iter().for_each(|byte| {
                codes[usize::from(byte & 15)] += 1;
                codes[usize::from(byte >> 4)] += 1;
            });
            assert_eq!(trial.counts.codes, codes, "{format} {rule}");
            let error = trial.error.unwrap();
            let largest = trial.map.planes["max_abs_error"].iter().copied().fold(0f32, f32::max);
            assert_eq!(largest, error.max_abs_error as f32);
            compared += 1;
        }
    }
    assert!(compared >= 15);
}

#[test]
fn what_cannot_be_tried_says_why() {
    let from = dense("a", &[4, 48], &drawn(4 * 48));
    let says = |name: &str, matrix, format, rule| {
        let choice = Choice { format, rule, transform: None };
        let tried =
            trials((&from, name, matrix), &[choice], &Backends::reference(), &mut |_, _| {});
        tried.unwrap_err().to_string()
    };
    let search = ScaleRule::Search;
    assert!(says("a", 0, Format::MxFp4, search).contains("48"));
    assert!(says("b", 0, Format::NvFp4, search).contains("`b`"));
    assert!(says("a", 1, Format::NvFp4, search).contains("matrix 1"));
    assert!(says("a", 0, Format::MxFp4, ScaleRule::FourSixMse).contains("four-six-mse"));
}

#[test]
fn dense_values_are_counted_by_their_powers_of_two() {
    let mut all = drawn(40 * 16);
    all[..6].copy_from_slice(&[f32::NAN, f32::INFINITY, -0.0, 1e-42, -1.0, f32::MAX]);
    let from = dense("a", &[40, 16], &all);
    let view = view(&from, "a");
    let own = view.values.unwrap();
    assert_eq!((own.count, own.not_finite, own.max), (640, 2, f32::MAX));
    assert_eq!(own.zero, all.iter().filter(|value| **value == 0.0).count() as u64);
    let mut expected = std::collections::BTreeMap::<i32, u64>::new();
    for value in all.iter().filter(|value| value.is_finite() && **value != 0.0) {
        // As f64 a subnormal of f32 is a normal number.
        let exponent = (f64::from(*value).abs().to_bits() >> 52) as i32 - 1023;
        *expected.entry(exponent).or_default() += 1;
    }
    assert_eq!(own.exponents, expected);
    assert_eq!(view.map.planes["not_finite"].iter().sum::<f32>(), 2.0);
    assert_eq!(view.map.planes["amax"][0], f32::MAX);
    assert_eq!((view.map.rows, view.map.row_step, view.map.col_step), (40, 1, 16));
    let layers = Layers::find(&from, &LoadOptions::default()).unwrap();
    let from = (&from, &layers);
    let part = values(from, "a", [0, 3], [2, 2]).unwrap();
    assert_eq!(part, [all[3], all[4], all[19], all[20]]);
    assert!(values(from, "a", [39, 0], [2, 1]).is_err());
    assert!(values(from, "a", [0, usize::MAX], [1, 2]).is_err());
}

#[test]
fn a_layer_against_itself_is_exact_and_against_none_of_its_name_incomparable() {
    let (packed, reference) =
        (vector("f_modelopt_nvfp4.safetensors"), vector("f_modelopt_nvfp4_ref.safetensors"));
    let options = LoadOptions::default();
    let layers = Layers::find(&packed, &options).unwrap();
    let (module, layer) = layers.good.iter().next().unwrap();
    assert_eq!(layer.shape.scale_type(), ScaleType::E4M3);
    // The other file has no tensor of that name: said, and no error.
    let theirs = Layers::find(&reference, &options).unwrap();
    let of = (&packed, &layers);
    let against = Some((&reference, &theirs));
    let view = View::new(of, module, against, &options, &mut |_, _| {}).unwrap();
    assert!(view.error.is_none() && view.incomparable.unwrap().contains(&layer.tensor));
    // Against itself nothing differs.
    let view = View::new(of, module, Some(of), &options, &mut |_, _| {}).unwrap();
    assert_eq!(view.error.unwrap().error_kind, "exact");
    assert!(view.map.planes["sqnr_db"].iter().all(|db| *db == f32::INFINITY));
}

#[test]
fn a_layer_that_is_not_whole_says_so_in_each_view() {
    let bytes = [0; 512];
    let entry = serde_json::json!({
        "m.weight_packed": { "dtype": "U8", "shape": [16, 32], "data_offsets": [0, 512] }
    });
    let header = entry.to_string();
    let file = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes(), &bytes].concat();
    let source: Arc<dyn ByteSource> = Arc::new(InMemory::new("a.safetensors", file));
    let from = Checkpoint::open_sources(vec![source]).unwrap();
    let layout = crate::layout::named("compressed-tensors");
    let options = LoadOptions { layout, ..LoadOptions::default() };
    let layers = Layers::find(&from, &options).unwrap();
    assert!(layers.bad.contains_key("m"));
    for _ in 0..2 {
        let view = View::new((&from, &layers), "m", None, &options, &mut |_, _| {});
        assert!(view.unwrap_err().to_string().contains("m.weight_"));
    }
}
