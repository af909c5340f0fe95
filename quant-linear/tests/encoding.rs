//! How a layer quantizes its activations (C10, row scales of C4): bits, state, errors.

#![allow(missing_docs)]

mod common;

use std::collections::BTreeMap;

use common::values;
use fp4_core::{
    Epilogue, Float, Format, PackedMatrix, QuantSpec, QuantizeInput, bf16, f16, reference,
};
use quant_linear::{
    ActivationEncoding, Backends, Bias, DenseOptions, Dtype, Error, LoadOptions, QuantLinear,
    StoredTransform, state,
};
use safetensors::SafeTensors;

const OUT: usize = 7;
const IN: usize = 160;

fn layer(format: Format, activations: ActivationEncoding, block: Option<usize>) -> QuantLinear {
    let options = DenseOptions {
        transform: block.map(|block| StoredTransform::hadamard(block).unwrap()),
        activations,
        ..DenseOptions::new(format)
    };
    QuantLinear::from_dense(&values(1, OUT * IN)[..], OUT, IN, &options).unwrap()
}

/// The forward by way of the core's reference functions alone.
fn by_reference<T: Float>(layer: &QuantLinear, x: &[T], spec: &QuantSpec) -> Vec<T> {
    let rows = x.len() / IN;
    let transform = layer.transform().map(|t| t.view().unwrap());
    let input = QuantizeInput::new(x, rows, IN, spec).unwrap();
    let input = input.with_transform(transform).unwrap();
    let (mut packed, mut scales) = (PackedMatrix::zeros(input.shape()), vec![0f32; rows]);
    let mut out = packed.view_mut();
    if spec.row_scales() {
        out = out.with_row_scales(&mut scales).unwrap();
    }
    reference::quantize(&input, &mut out).unwrap();
    let epilogue = Epilogue::new(layer.weight_global_scale())
        .with_row_scales(spec.row_scales().then_some(&scales[..]))
        .with_bias(layer.bias());
    let mut y = vec![T::default(); rows * OUT];
    let weight = layer.weight().unwrap();
    reference::matmul(packed.view(), weight.view(), epilogue, T::wrap_mut(&mut y)).unwrap();
    y
}

fn compare<T: Float + PartialEq + std::fmt::Debug>(layer: &QuantLinear, spec: &QuantSpec) -> usize {
    let x: Vec<T> = values(3, 5 * IN).into_iter().map(|x| T::from_f32(x * 40.0)).collect();
    let mut compared = 0;
    for x in [&x[..], &x[..IN], &[]] {
        let got = layer.forward(x, &[x.len() / IN, IN]).unwrap();
        assert_eq!(got, by_reference(layer, x, spec));
        compared += got.len();
    }
    compared
}

#[test]
fn a_forward_gives_the_references_bits_by_every_encoding() {
    let mut compared = 0;
    let row_scales = QuantSpec::usual(Format::NvFp4).with_row_scales().unwrap();
    for (activations, format, spec) in [
        (ActivationEncoding::MxInt8, Format::MxFp4, QuantSpec::mxint8()),
        (ActivationEncoding::MxInt8, Format::NvFp4, QuantSpec::mxint8()),
        (ActivationEncoding::OwnRowScales, Format::NvFp4, row_scales),
    ] {
        for block in [None, Some(32)] {
            for bias in [false, true] {
                let mut layer = layer(format, activations, block);
                layer.set_bias(bias.then_some(&values(9, OUT)[..])).unwrap();
                for backends in [Backends::available(), Backends::reference()] {
                    let fastest = backends.list()[0].name().to_owned();
                    layer.set_backends(backends);
                    let why = layer.explain(5, fp4_core::FloatType::F32).unwrap();
                    let chosen = (why.quantize.chosen(), why.matmul.chosen());
                    assert_eq!(chosen, (Some(&*fastest), Some(&*fastest)), "{why}");
                    compared += compare::<f32>(&layer, &spec);
                    compared += compare::<f16>(&layer, &spec);
                    compared += compare::<bf16>(&layer, &spec);
                }
            }
        }
    }
    assert_eq!(compared, 3 * 2 * 2 * 2 * 3 * 6 * OUT);
}

#[test]
fn eight_bits_lose_less_than_four() {
    let x = values(3, 16 * IN);
    let dense = values(1, OUT * IN);
    let error = |activations| {
        let y = layer(Format::NvFp4, activations, None).forward(&x, &[16, IN]).unwrap();
        let exact = x.chunks(IN).flat_map(|x| {
            dense
                .chunks(IN)
                .map(move |w| w.iter().zip(x).map(|(w, x)| f64::from(w * x)).sum::<f64>())
        });
        y.iter().zip(exact).map(|(y, exact)| (f64::from(*y) - exact).powi(2)).sum::<f64>()
    };
    assert!(error(ActivationEncoding::MxInt8) < 0.7 * error(ActivationEncoding::Own));
}

fn saved(layer: &QuantLinear) -> Vec<u8> {
    safetensors::serialize(layer.state_dict("m").unwrap(), None).unwrap()
}

#[test]
fn a_state_says_so_and_is_as_it_was_where_it_asks_for_nothing_else() {
    for activations in ActivationEncoding::ALL {
        let layer = layer(Format::NvFp4, activations, Some(32));
        let bytes = saved(&layer);
        let state = SafeTensors::deserialize(&bytes).unwrap();
        let stored = state.tensor("m.activation_encoding").ok();
        let stored = stored.map(|t| (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        let expected = (activations != ActivationEncoding::Own)
            .then(|| (Dtype::U8, vec![], vec![activations.byte()]));
        assert_eq!(stored, expected);
        for scalar in ["weight_global_scale", "activation_global_scale", "activation_scale_scale"] {
            assert!(state.tensor(&format!("m.{scalar}")).is_ok(), "{scalar}");
        }
        let loaded = QuantLinear::from_state(&state, "m", &LoadOptions::default()).unwrap();
        assert_eq!(loaded.activations(), activations);
        assert_eq!(saved(&loaded), bytes);
        let x = values(5, IN);
        let bits = |layer: &QuantLinear| layer.forward(&x, &[1, IN]).unwrap();
        assert_eq!(bits(&loaded), bits(&layer));
        // Another choice changes that tensor alone.
        let own = loaded.with_activations(ActivationEncoding::Own).unwrap();
        let plain = saved(&own);
        let plain = SafeTensors::deserialize(&plain).unwrap();
        for (name, tensor) in plain.tensors() {
            assert_eq!(tensor.data(), state.tensor(&name).unwrap().data(), "{name}");
        }
        assert_eq!(plain.len(), 6);
    }
}

#[test]
fn an_encoding_that_is_none_is_an_error_that_names_it() {
    let layer = layer(Format::NvFp4, ActivationEncoding::MxInt8, None);
    let bytes = saved(&layer);
    let state = SafeTensors::deserialize(&bytes).unwrap();
    let with = |dtype, shape: Vec<usize>, data: &[u8]| {
        let mut tensors: BTreeMap<_, _> = state.tensors().into_iter().collect();
        let view = safetensors::tensor::TensorView::new(dtype, shape, data).unwrap();
        tensors.insert("m.activation_encoding".into(), view);
        let bytes = safetensors::serialize(tensors, None).unwrap();
        let state = SafeTensors::deserialize(&bytes).unwrap();
        QuantLinear::from_state(
            &state,
            "m",
            &LoadOptions { bias: Bias::Refuse, ..Default::default() },
        )
    };
    assert_eq!(with(Dtype::U8, vec![1], &[2]).unwrap().activations().byte(), 2);
    assert_eq!(with(Dtype::U8, vec![], &[0]).unwrap().activations(), ActivationEncoding::Own);
    let error = with(Dtype::U8, vec![], &[3]).unwrap_err();
    assert!(matches!(error, Error::ActivationEncoding { got: 3, .. }), "{error}");
    assert!(error.to_string().contains("m.activation_encoding"), "{error}");
    assert!(matches!(with(Dtype::I8, vec![], &[1]), Err(Error::Dtype { .. })));
    assert!(matches!(with(Dtype::U8, vec![2], &[1, 1]), Err(Error::Shape { .. })));
    assert_eq!(state::ACTIVATION_ENCODING, "activation_encoding");
}

#[test]
fn what_an_encoding_does_not_fit_is_refused_and_changes_nothing() {
    let options = DenseOptions::new(Format::NvFp4);
    let mut narrow = QuantLinear::from_dense(&values(1, 2 * 48)[..], 2, 48, &options).unwrap();
    let error = narrow.set_activations(ActivationEncoding::MxInt8).unwrap_err().to_string();
    assert!(error.contains("48") && error.contains("mxint8"), "{error}");
    narrow.set_activations(ActivationEncoding::OwnRowScales).unwrap();
    let mut mxfp4 = layer(Format::MxFp4, ActivationEncoding::Own, None);
    assert!(mxfp4.set_activations(ActivationEncoding::OwnRowScales).is_err());
    assert_eq!(mxfp4.activations(), ActivationEncoding::Own);
    let mut empty = QuantLinear::empty(IN, OUT, false).unwrap();
    assert!(matches!(empty.set_activations(ActivationEncoding::MxInt8), Err(Error::Empty { .. })));
}

#[test]
fn quantized_activations_are_for_layers_of_the_same_encoding() {
    let x = values(4, 2 * IN);
    let [own, int8, rows] =
        ActivationEncoding::ALL.map(|activations| layer(Format::NvFp4, activations, None));
    for (a, b) in [(&own, &int8), (&int8, &rows), (&rows, &own)] {
        let quantized = a.quantize((&x[..]).into(), 2).unwrap();
        let mut y = vec![0f32; 2 * OUT];
        a.forward_quantized_into(&quantized, (&mut y[..]).into()).unwrap();
        assert_eq!(y, a.forward(&x, &[2, IN]).unwrap());
        let error = b.forward_quantized_into(&quantized, (&mut y[..]).into()).unwrap_err();
        assert!(matches!(error, Error::ActivationSettings), "{error}");
    }
}

#[test]
fn the_activations_global_scale_takes_no_part_where_they_have_none() {
    // Tiny weights: their scale times 2^-100 underflows, and by itself it does not.
    let weight: Vec<f32> = values(1, OUT * IN).iter().map(|w| w * 1e-30).collect();
    let with = |activations| {
        let activation_global_scale = Some(2f32.powi(-100));
        let options = DenseOptions::new(Format::NvFp4);
        let options = DenseOptions { activations, activation_global_scale, ..options };
        QuantLinear::from_dense(&weight[..], OUT, IN, &options)
    };
    assert!(with(ActivationEncoding::Own).is_err());
    let layer = with(ActivationEncoding::MxInt8).unwrap();
    assert_eq!(layer.activation_global_scale(), 2f32.powi(-100));
    compare::<f32>(&layer, &QuantSpec::mxint8());
}
