//! Several layers in one call: the bits, the counts and the warnings of each alone.

#![allow(missing_docs)]

mod common;
mod mock;
mod warnings;

use common::values;
use fp4_core::backend::erased::Backend;
use fp4_core::{Error as Core, FloatSliceMut, FloatType, Format, QuantCounts, bf16};
use mock::MockDevice;
use quant_linear::{
    ActivationEncoding, Backends, DenseOptions, Error, QuantLinear, StoredTransform,
};
use warnings::warnings_of;

const IN: usize = 128;

/// How a layer differs from the usual ones.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Usual,
    OtherScale,
    RowScales,
    Int8,
    Bias,
    Transform,
    MxFp4,
}

fn layer(seed: u64, out: usize, kind: Kind) -> QuantLinear {
    let format = if kind == Kind::MxFp4 { Format::MxFp4 } else { Format::NvFp4 };
    let mut options = DenseOptions::new(format);
    match kind {
        Kind::OtherScale => options.activation_global_scale = Some(0.05),
        Kind::RowScales => options.activations = ActivationEncoding::OwnRowScales,
        Kind::Int8 => options.activations = ActivationEncoding::MxInt8,
        Kind::Transform => options.transform = Some(StoredTransform::hadamard(32).unwrap()),
        _ => {}
    }
    let weight = values(seed, out * IN);
    let mut layer = QuantLinear::from_dense(&weight[..], out, IN, &options).unwrap();
    layer.set_name(&format!("experts.{seed}"));
    if kind == Kind::Bias {
        layer.set_bias(Some(&values(seed + 50, out))).unwrap();
    }
    layer
}

/// Experts of every kind; neighbours that quantize alike, and such that do not.
fn experts() -> Vec<QuantLinear> {
    let kinds = [
        Kind::Usual,
        Kind::Bias,
        Kind::OtherScale,
        Kind::Usual,
        Kind::RowScales,
        Kind::RowScales,
        Kind::Int8,
        Kind::Transform,
        Kind::Transform,
        Kind::MxFp4,
        Kind::Usual,
    ];
    kinds.iter().enumerate().map(|(i, &kind)| layer(i as u64, 24 + i, kind)).collect()
}

const ROWS: [usize; 11] = [3, 1, 2, 0, 5, 1, 17, 2, 0, 4, 9];

/// What each layer gives alone, one after the other.
fn alone(layers: &[QuantLinear], x: &[f32], rows: &[usize]) -> Vec<f32> {
    let mut first = 0;
    let each = layers.iter().zip(rows).flat_map(|(layer, &rows)| {
        let x = &x[first * IN..(first + rows) * IN];
        first += rows;
        layer.forward(x, &[rows, IN]).unwrap()
    });
    each.collect()
}

fn grouped(layers: &[QuantLinear], x: &[f32], rows: &[usize]) -> Result<Vec<f32>, Error> {
    let outputs = layers.iter().zip(rows).map(|(layer, rows)| layer.out_features() * rows).sum();
    let mut y = vec![-7.5f32; outputs];
    let layers: Vec<&QuantLinear> = layers.iter().collect();
    QuantLinear::forward_experts_into(&layers, x.into(), rows, (&mut y[..]).into())?;
    Ok(y)
}

#[test]
fn experts_of_every_kind_give_the_bits_that_they_give_alone() {
    let x = values(99, ROWS.iter().sum::<usize>() * IN);
    let backends = [
        Backends::available(),
        Backends::reference(),
        Backends::reference().with(Backend::resident(MockDevice::default())),
    ];
    let mut last = None;
    for backends in backends {
        let mut layers = experts();
        layers.iter_mut().for_each(|layer| layer.set_backends(backends.clone()));
        let expected = alone(&layers, &x, &ROWS);
        let got = grouped(&layers, &x, &ROWS).unwrap();
        assert_eq!(got, expected);
        assert_eq!(*last.get_or_insert(got), expected);
    }
    // Several backends in one call.
    let mut layers = experts();
    layers.iter_mut().step_by(2).for_each(|layer| layer.set_backends(Backends::reference()));
    layers.iter_mut().skip(4).for_each(|layer| layer.set_matmul("reference"));
    assert_eq!(Some(grouped(&layers, &x, &ROWS).unwrap()), last);
    // A clone shares the weight, and takes other rows of the call.
    layers[10] = layers[0].clone();
    let expected = alone(&layers, &x, &ROWS);
    assert_eq!(grouped(&layers, &x, &ROWS).unwrap(), expected);
}

#[test]
fn outputs_may_be_of_another_type() {
    let layers = experts();
    let x = values(7, ROWS.iter().sum::<usize>() * IN);
    let refs: Vec<&QuantLinear> = layers.iter().collect();
    let outputs = layers.iter().zip(ROWS).map(|(layer, rows)| layer.out_features() * rows).sum();
    let mut y = vec![bf16::ONE; outputs];
    QuantLinear::forward_experts_into(&refs, (&x[..]).into(), &ROWS, (&mut y[..]).into()).unwrap();
    let (mut at, mut row) = (0, 0);
    for (layer, rows) in layers.iter().zip(ROWS) {
        let mut expected = vec![bf16::ONE; rows * layer.out_features()];
        let x = &x[row * IN..(row + rows) * IN];
        layer.forward_into(x.into(), rows, (&mut expected[..]).into()).unwrap();
        assert_eq!(y[at..at + expected.len()], expected);
        (at, row) = (at + expected.len(), row + rows);
    }
    assert_eq!(at, y.len());
}

#[test]
fn layers_of_one_input_give_the_bits_that_they_give_alone_and_quantize_it_once() {
    for rows in [0, 1, 30] {
        let x = values(5, rows * IN);
        for kinds in [[Kind::Usual; 3], [Kind::Usual, Kind::Int8, Kind::Bias], [Kind::RowScales; 3]]
        {
            for backends in [Backends::available(), Backends::reference()] {
                let make = |(i, &kind): (usize, &Kind)| {
                    let mut layer = layer(i as u64 + 20, [96, 16, 33][i], kind);
                    layer.set_backends(backends.clone());
                    layer
                };
                let mut layers: Vec<QuantLinear> = kinds.iter().enumerate().map(make).collect();
                let expected: Vec<Vec<f32>> =
                    layers.iter().map(|layer| layer.forward(&x, &[rows, IN]).unwrap()).collect();
                layers.iter_mut().for_each(|layer| layer.set_counting(true));
                let refs: Vec<&QuantLinear> = layers.iter().collect();
                let mut got: Vec<Vec<f32>> = expected.iter().map(|y| vec![-7.5; y.len()]).collect();
                let mut outs: Vec<FloatSliceMut<'_>> =
                    got.iter_mut().map(|y| (&mut y[..]).into()).collect();
                QuantLinear::forward_each_into(&refs, (&x[..]).into(), rows, &mut outs).unwrap();
                assert_eq!(got, expected);
                let counted = |layer: &QuantLinear| layer.counters().unwrap().quantized().elements;
                let elements: Vec<u64> = layers.iter().map(counted).collect();
                let all = (rows * IN) as u64;
                // Int8 between two that quantize alike is on its own.
                let second = if kinds[1] == Kind::Int8 { all } else { 0 };
                assert_eq!(elements[..2], [all, second]);
                let outputs = |layer: &QuantLinear| {
                    let paths = layer.counters().unwrap().paths();
                    paths.narrow + paths.planes + paths.wide
                };
                for (layer, y) in layers.iter().zip(&expected) {
                    assert_eq!(outputs(layer), y.len() as u64);
                }
            }
        }
    }
}

#[test]
fn a_device_that_does_not_schedule_is_given_one_input_once() {
    let device = MockDevice::default();
    let transfers = device.transfers.clone();
    let backends = Backends::reference().with(Backend::resident(device));
    let layers = [layer(1, 16, Kind::Usual), layer(2, 24, Kind::Bias)].map(|mut layer| {
        layer.set_backends(backends.clone());
        layer.prepare().unwrap();
        layer
    });
    let x = values(4, 5 * IN);
    let [mut y0, mut y1] = [vec![0f32; 5 * 16], vec![0f32; 5 * 24]];
    transfers.take();
    let mut outs = [(&mut y0[..]).into(), (&mut y1[..]).into()];
    let refs = [&layers[0], &layers[1]];
    QuantLinear::forward_each_into(&refs, (&x[..]).into(), 5, &mut outs).unwrap();
    assert_eq!(transfers.take(), (1, 2));
    assert_eq!(y0, layers[0].forward(&x, &[5, IN]).unwrap());
    assert_eq!(y1, layers[1].forward(&x, &[5, IN]).unwrap());
}

#[test]
fn every_expert_counts_what_it_counts_alone() {
    let mut x = values(3, ROWS.iter().sum::<usize>() * IN);
    // Beyond the scale of one expert's rows, and of NaN in another's.
    (x[4], x[3 * IN + 9]) = (1e5, f32::NAN);
    x[6 * IN..7 * IN].fill(1e-20);
    let counts = |together: bool| {
        let mut layers = experts();
        layers.iter_mut().for_each(|layer| layer.set_counting(true));
        if together {
            grouped(&layers, &x, &ROWS).unwrap();
        } else {
            alone(&layers, &x, &ROWS);
        }
        let of = |layer: &QuantLinear| {
            let counters = layer.counters().unwrap();
            (counters.quantized(), counters.paths())
        };
        layers.iter().map(of).collect::<Vec<_>>()
    };
    let (together, each) = (counts(true), counts(false));
    assert_eq!(together, each);
    let nan: u64 = together.iter().map(|(counts, _)| counts.nan_groups).sum();
    assert!(nan > 0 && together[0].0.clipped > 0, "{:?}", together[0].0);
    assert_eq!(together[3].0, QuantCounts::default());
}

#[test]
fn the_expert_whose_rows_saturate_warns_and_no_other() {
    let mut layers: Vec<QuantLinear> = (0..4).map(|i| layer(i, 16, Kind::Usual)).collect();
    let rows = [4, 2, 0, 6];
    let mut x = values(3, 12 * IN);
    x[5 * IN + 3] = -2940.0;
    let run = |layers: &[QuantLinear]| warnings_of(|| drop(grouped(layers, &x, &rows).unwrap()));
    let said = run(&layers);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("layer `experts.1`: activations saturate: 1 of 256"), "{said:?}");
    assert!(said[0].contains("the largest 2.940e3"), "{said:?}");
    assert_eq!(run(&layers), Vec::<String>::new(), "it is said once");
    layers[1] = layer(1, 16, Kind::Usual);
    layers[0].set_counting(true);
    let said = run(&layers);
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("layer `experts.1`: "), "{said:?}");
}

#[test]
fn what_does_not_fit_is_named_and_nothing_is_written() {
    let layers: Vec<QuantLinear> = (0..3).map(|i| layer(i, 16, Kind::Usual)).collect();
    let x = values(1, 6 * IN);
    let narrow = {
        let weight = values(9, 16 * 64);
        QuantLinear::from_dense(&weight[..], 16, 64, &DenseOptions::new(Format::NvFp4)).unwrap()
    };
    let empty = QuantLinear::empty(IN, 16, false).unwrap();
    let call = |layers: &[&QuantLinear], x: &[f32], rows: &[usize], outputs: usize| {
        let mut y = vec![-7.5f32; outputs];
        let result = QuantLinear::forward_experts_into(layers, x.into(), rows, (&mut y[..]).into());
        let written = y.iter().any(|&y| y != -7.5);
        assert_eq!(written, result.is_ok() && outputs > 0);
        result
    };
    let all: Vec<&QuantLinear> = layers.iter().collect();
    call(&all, &x, &[1, 2, 3], 96).unwrap();
    let error = call(&all, &x, &[3, 3], 96).unwrap_err();
    let told = "3 layers in one call were given 2 numbers of rows; give one for each layer";
    assert_eq!(error.to_string(), told);
    let error = call(&all, &x, &[1, 2, 4], 112).unwrap_err();
    assert!(
        error.to_string().contains("holds 768 values, its shape [7, 128] needs 896"),
        "{error}"
    );
    let error = call(&all, &x, &[1, 2, 3], 95).unwrap_err();
    let Error::Core(Core::Len { expected, got, .. }) = error else { panic!("{error}") };
    assert_eq!((expected, got), (96, 95));
    let error = call(&[&layers[0], &narrow, &layers[2]], &x, &[1, 2, 3], 96).unwrap_err();
    assert!(matches!(error, Error::InputShape { in_features: 64, .. }), "{error}");
    let error = call(&[&layers[0], &empty, &layers[2]], &x, &[3, 0, 3], 96).unwrap_err();
    assert!(matches!(error, Error::Empty { .. }), "{error}");
    let huge = call(&all, &x, &[usize::MAX, 1, 1], 96).unwrap_err();
    assert!(huge.to_string().starts_with("layer `experts.0`: "), "{huge}");
    let (x32, mut y) = (&x[..2 * IN], vec![-7.5f32; 31]);
    let error =
        QuantLinear::forward_each_into(&[&layers[1]], x32.into(), 2, &mut [(&mut y[..]).into()]);
    assert!(error.unwrap_err().to_string().starts_with("layer `experts.1`: "));
    let error = QuantLinear::forward_each_into(&all, x32.into(), 2, &mut []).unwrap_err();
    assert!(error.to_string().contains("3 layers in one call were given 0 outputs"), "{error}");
    call(&[], &[], &[], 0).unwrap();
    assert!(call(&[], &x, &[], 0).is_err());
    assert_eq!(layers[0].dtype(), FloatType::F32);
}
