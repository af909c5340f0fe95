//! What a layer says of activations that its scale does not fit: once, by its name, with what mends
//! it; and nothing of those that it fits.

#![allow(missing_docs)]

mod common;
mod warnings;

use common::values;
use fp4_core::{Format, bf16};
use quant_linear::{
    ActivationEncoding, Backends, DenseOptions, FLUSHED_SHARE, QuantLinear, SATURATED_SHARE,
    StoredTransform,
};
use warnings::warnings_of;

const OUT: usize = 5;
const IN: usize = 160;

fn layer(format: Format, activations: ActivationEncoding) -> QuantLinear {
    let options = DenseOptions { activations, ..DenseOptions::new(format) };
    let weight = values(1, OUT * IN);
    let mut layer = QuantLinear::from_dense(&weight[..], OUT, IN, &options).unwrap();
    layer.set_name("model.layers.3.mlp.down_proj");
    layer
}

/// Warnings of two forwards, by every list of backends: the same.
fn said(layer: &QuantLinear, x: &[f32]) -> Vec<String> {
    let by = |backends: Backends| {
        let mut layer = layer.clone();
        layer.set_backends(backends);
        let rows = x.len() / IN;
        warnings_of(|| {
            layer.forward(x, &[rows, IN]).unwrap();
            layer.forward(x, &[rows, IN]).unwrap();
        })
    };
    let (fast, reference) = (by(Backends::available()), by(Backends::reference()));
    assert_eq!(fast, reference);
    fast
}

fn expect(said: &[String], parts: &[&str]) {
    assert_eq!(said.len(), 1, "{said:?}");
    for part in parts {
        assert!(said[0].contains(part), "{part:?} is not in {:?}", said[0]);
    }
}

#[test]
fn activations_above_the_scale_are_said_once_with_share_largest_and_remedy() {
    let nvfp4 = layer(Format::NvFp4, ActivationEncoding::Own);
    let mut x = values(2, 4 * IN);
    x[7] = -2940.0;
    let parts = [
        "layer `model.layers.3.mlp.down_proj`: activations saturate: 1 of 640 were clipped",
        "(0.156 %), and 1 of 40 groups have the largest scale (2.500 %), the largest 2.940e3; ",
        "the global scale 1e-1 reaches to 2.688e2. ",
        "`fp4 calibrate`",
        "`--activation-scale row`",
        "set_activations(OwnRowScales)",
    ];
    expect(&said(&nvfp4, &x), &parts);
    // Twice the range is not clipped by C4's count, but the scale is clamped.
    x[7] = 300.0;
    expect(&said(&nvfp4, &x), &["0 of 640 were clipped", "1 of 40 groups"]);
    x[7] = f32::INFINITY;
    expect(&said(&nvfp4, &x), &["beside infinities"]);
    x[7] = 268.0;
    assert_eq!(said(&nvfp4, &x), [""; 0]);
    // MXFP4 reaches to the end of f32; what is beyond has no scale to mend it.
    let mxfp4 = layer(Format::MxFp4, ActivationEncoding::Own);
    x[7] = 1e30;
    assert_eq!(said(&mxfp4, &x), [""; 0]);
    x[7] = f32::NEG_INFINITY;
    expect(&said(&mxfp4, &x), &["activations saturate", "Look for what makes them"]);
}

#[test]
fn activations_below_the_scale_are_said_once_with_their_remedy() {
    let nvfp4 = layer(Format::NvFp4, ActivationEncoding::Own);
    let x: Vec<f32> = values(2, 4 * IN).iter().map(|x| x * 1e-5).collect();
    let parts = [
        "layer `model.layers.3.mlp.down_proj`: activations vanish: 40 of 40 groups became zeros",
        "(100.000 %); the global scale 1e-1 is too large for them. ",
        "`fp4 calibrate`",
        "`--activation-scale row`",
    ];
    expect(&said(&nvfp4, &x), &parts);
    // Zeros are not lost, and a calibrated scale loses nothing.
    assert_eq!(said(&nvfp4, &vec![0.0; 4 * IN]), [""; 0]);
    let weight = values(1, OUT * IN);
    let options = DenseOptions::new(Format::NvFp4);
    let options = DenseOptions { activation_global_scale: Some(1e-5), ..options };
    let calibrated = QuantLinear::from_dense(&weight[..], OUT, IN, &options).unwrap();
    assert_eq!(said(&calibrated, &x), [""; 0]);
}

#[test]
fn good_data_is_silent_and_row_scales_fit_what_a_stored_scale_does_not() {
    let mut x = values(2, 4 * IN);
    for encoding in ActivationEncoding::ALL {
        assert_eq!(said(&layer(Format::NvFp4, encoding), &x), [""; 0], "{encoding}");
    }
    x[7] = -2940.0;
    x[2 * IN..].iter_mut().for_each(|x| *x *= 1e-5);
    let own = said(&layer(Format::NvFp4, ActivationEncoding::Own), &x);
    assert_eq!(own.len(), 2, "{own:?}"); // both kinds
    for encoding in [ActivationEncoding::MxInt8, ActivationEncoding::OwnRowScales] {
        assert_eq!(said(&layer(Format::NvFp4, encoding), &x), [""; 0], "{encoding}");
    }
    // A row's largest group may be clamped by a rounding, which loses nothing.
    let mut rows = layer(Format::NvFp4, ActivationEncoding::OwnRowScales);
    let many: Vec<f32> = (0..200).flat_map(|seed| values(seed, IN)).collect();
    rows.set_counting(true);
    assert_eq!(said(&rows, &many), [""; 0]);
    rows.forward(&many, &[200, IN]).unwrap();
    let counts = rows.counters().unwrap().quantized();
    assert!(counts.scale_max > 0 && counts.clipped == 0, "{counts:?}");
    // No scale reaches infinity.
    let mut infinite = x.clone();
    infinite[3] = f32::INFINITY;
    let rows = layer(Format::NvFp4, ActivationEncoding::OwnRowScales);
    let parts = ["activations saturate", "fp4-rows reaches to the end of f32", "Look for what"];
    expect(&said(&rows, &infinite[..IN]), &parts);
    // A row of nearly nothing beside one value: not even a row's own scale reaches so far.
    x[2 * IN] = 1e4;
    expect(&said(&rows, &x), &["activations vanish", "fp4-rows", "`--activations mxint8`"]);
}

#[test]
fn the_shares_are_of_a_call_and_small_ones_are_silent() {
    let nvfp4 = layer(Format::NvFp4, ActivationEncoding::Own);
    // One group of 100 more than 1 / SATURATED_SHARE, and one of just as many.
    let whole = (1.0 / SATURATED_SHARE) as usize * 16 / IN;
    for (rows, warned) in [(whole + 10, 0), (whole - 10, 1)] {
        let mut x = vec![bf16::from_f32(1.0); rows * IN];
        x[5] = bf16::from_f32(1000.0);
        let one = nvfp4.clone();
        let said = warnings_of(|| drop(one.forward(&x, &[rows, IN]).unwrap()));
        assert_eq!(said.len(), warned, "{rows} rows: {said:?}");
    }
    let groups = (1.0 / FLUSHED_SHARE) as usize;
    for (rows, warned) in [(groups * 16 / IN, 0), (groups * 16 / IN - 1, 1)] {
        let mut x = vec![1f32; rows * IN];
        x[..16].fill(1e-6);
        assert_eq!(said(&nvfp4, &x).len(), warned, "{rows} rows");
    }
}

#[test]
fn each_layer_speaks_for_itself_and_a_transform_is_told() {
    let options = DenseOptions {
        transform: Some(StoredTransform::hadamard(16).unwrap()),
        ..DenseOptions::new(Format::NvFp4)
    };
    let weight = values(1, OUT * IN);
    let x: Vec<f32> = values(2, IN).iter().map(|x| x * 1e4).collect();
    let turned = QuantLinear::from_dense(&weight[..], OUT, IN, &options).unwrap();
    let warnings = warnings_of(|| {
        for layer in [turned.clone(), turned.clone()] {
            layer.forward(&x, &[IN]).unwrap();
        }
    });
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    // A layer without a name.
    assert!(warnings[0].starts_with("activations saturate"), "{warnings:?}");
    assert!(warnings[0].contains("before the transform"), "{warnings:?}");
}
