//! Losses.

use fp4_core::{Format, GroupSize, QuantSpec};
use quant_linear::calibrate::{
    BlockTransform, Gram, Method, QuantizeOptions, WushOptions, loss, quantize_weight,
};
use quant_linear::{ActivationEncoding, CalibrateError, Error, Parts, QuantLinear};

use crate::data::{amax, off, on_threads, product, spec, weight, wide, with_outliers};

#[test]
fn the_worked_example() {
    // One input among 16 dead ones: W = 2, Wq = 1.5 under a scale of 1 (0x38), X = (1, 3).
    let (mut w, mut x) = (vec![0f32; 16], vec![0f32; 32]);
    (w[0], x[0], x[16]) = (2.0, 1.0, 3.0);
    let shape = spec(Format::NvFp4, &w).shape(1, 16).unwrap();
    let mut codes = vec![0; 8];
    codes[0] = 3;
    let packed = fp4_core::PackedMatrix::new(shape, codes, vec![0x38]).unwrap();
    let t = BlockTransform::identity(16, GroupSize::G16).unwrap();
    let lost = loss::of_weight(&x, &w, &t, packed.view(), 1.0).unwrap();
    assert_eq!((lost.error, lost.signal, lost.ratio()), (2.5, 40.0, 1.0 / 16.0));
    let lost = loss::of_moments(&Gram::of_rows(&x, 16).unwrap(), &w, packed.view(), 1.0).unwrap();
    assert_eq!((lost.error, lost.signal), (2.5, 40.0));
}

struct Case {
    x: Vec<f32>,
    w: Vec<f32>,
    t: BlockTransform,
    through: Vec<f32>,
    spec: QuantSpec,
    packed: fp4_core::PackedMatrix,
}

fn case(format: Format, k: usize) -> Case {
    let (x, w) = (with_outliers(100, k, 1), weight(90, k, 2));
    let gram = Gram::of_rows(&x, k).unwrap();
    let t = BlockTransform::wush(&gram, &[&w], GroupSize::G32, &WushOptions::default()).unwrap();
    let through = t.weight_through(&w).unwrap();
    let spec = spec(format, &through);
    let gram = gram.transformed(&t).unwrap();
    let options = QuantizeOptions::new(spec, Method::Gptq);
    let packed = quantize_weight(&through, k, Some(&gram), &options).unwrap();
    Case { x, w, t, through, spec, packed }
}

#[test]
fn the_loss_of_the_weight_is_that_of_its_moments() {
    for format in Format::ALL {
        let Case { x, w, t, through, spec, packed } = case(format, 128);
        let by_rows = loss::of_weight(&x, &w, &t, packed.view(), spec.global_scale()).unwrap();
        let gram = Gram::of_rows(&x, 128).unwrap().transformed(&t).unwrap();
        let by_moments =
            loss::of_moments(&gram, &through, packed.view(), spec.global_scale()).unwrap();
        for (a, b) in [(by_rows.error, by_moments.error), (by_rows.signal, by_moments.signal)] {
            assert!((a / b - 1.0).abs() < 1e-4, "{format}: {a} {b}");
        }
        assert!(by_rows.ratio() > 1e-5);
    }
}

/// The loss that is computed is the loss that a layer has: its forward against the dense product.
#[test]
fn the_loss_of_a_layer_is_that_of_its_forward() {
    let k = 128;
    for format in Format::ALL {
        let Case { x, w, t, spec, packed, .. } = case(format, k);
        let y = t.activations_through(&x).unwrap();
        let rows = QuantSpec::for_weight(format, amax(&y)).unwrap();
        let mut encodings = vec![(ActivationEncoding::Own, rows)];
        encodings.push((ActivationEncoding::MxInt8, QuantSpec::mxint8()));
        if format == Format::NvFp4 {
            encodings.push((ActivationEncoding::OwnRowScales, rows.with_row_scales().unwrap()));
        }
        for (activations, by) in encodings {
            let lost = loss::of_layer(&x, &w, &t, packed.view(), spec.global_scale(), &by).unwrap();
            let layer = QuantLinear::from_parts(Parts {
                weight: packed.clone(),
                transform: t.stored().cloned(),
                weight_global_scale: spec.global_scale(),
                activation_global_scale: Some(rows.global_scale()),
                activation_scale_scale: Some(rows.scale_scale()),
                activations,
            });
            let got = layer.unwrap().forward(&x, &[100, k]).unwrap();
            let dense = product(&wide(&x), &wide(&w), k);
            let expected = off(&wide(&got), &dense);
            assert!(
                (lost.ratio() / expected - 1.0).abs() < 1e-3,
                "{format} {activations}: {} {expected}",
                lost.ratio()
            );
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads() {
    let Case { x, w, t, through, spec, packed } = case(Format::NvFp4, 128);
    let gram = Gram::of_rows(&x, 128).unwrap();
    let run = || {
        let (view, gs) = (packed.view(), spec.global_scale());
        [
            loss::of_weight(&x, &w, &t, view, gs).unwrap(),
            loss::of_layer(&x, &w, &t, view, gs, &spec).unwrap(),
            loss::of_moments(&gram, &through, view, gs).unwrap(),
        ]
    };
    assert_eq!(on_threads(1, run), on_threads(2, run));
}

#[test]
fn bad_input_is_refused_by_name() {
    let Case { x, w, t, spec, packed, .. } = case(Format::NvFp4, 128);
    let error = |result: Result<loss::Loss, Error>| match result.unwrap_err() {
        Error::Calibrate(error) => error,
        other => panic!("{other}"),
    };
    let gs = spec.global_scale();
    let found = error(loss::of_weight(&x, &w[128..], &t, packed.view(), gs));
    assert_eq!(found, CalibrateError::Rows { what: "the packed weight", expected: 89, got: 90 });
    let t64 = BlockTransform::identity(64, GroupSize::G16).unwrap();
    let found = error(loss::of_weight(&x, &w, &t64, packed.view(), gs));
    assert_eq!(found, CalibrateError::Width { what: "the packed weight", expected: 64, got: 128 });
    let found = error(loss::of_layer(&x[1..], &w, &t, packed.view(), gs, &spec));
    assert!(matches!(found, CalibrateError::Ragged { k: 128, .. }), "{found}");
    let mut x = x;
    x[130] = f32::NAN;
    for found in [
        error(loss::of_weight(&x, &w, &t, packed.view(), gs)),
        error(loss::of_layer(&x, &w, &t, packed.view(), gs, &spec)),
    ] {
        assert!(matches!(found, CalibrateError::NotFinite { row: 1, column: 2, .. }), "{found}");
    }
}
