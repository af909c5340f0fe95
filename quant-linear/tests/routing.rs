//! Who does what: independent choices, fallback with one warning, explanations, and where data
//! goes.

#![allow(missing_docs)]

mod common;
mod mock;
mod warnings;

use common::values;
use fp4_core::backend::erased::Backend;
use fp4_core::reference::Reference;
use fp4_core::{Float, FloatType, Format, Unsupported};
use half::bf16;
use mock::{MOCK, MockDevice};
use quant_linear::{
    ActivationEncoding, Backends, Choice, DenseOptions, Error, QuantLinear, StoredTransform,
    Verdict,
};

const OUT: usize = 5;
const IN: usize = 64;

/// What is warned of backends while `f` runs.
fn warnings_of(f: impl FnOnce()) -> Vec<String> {
    let all = warnings::warnings_of(f);
    all.into_iter().filter(|w| w.starts_with("backend")).collect()
}

fn layer(mock: &MockDevice, format: Format) -> QuantLinear {
    let options = DenseOptions {
        transform: Some(StoredTransform::hadamard(16).unwrap()),
        ..DenseOptions::new(format)
    };
    let mut layer = QuantLinear::from_dense(&values(1, OUT * IN)[..], OUT, IN, &options).unwrap();
    layer.set_backends(
        Backends::none().with(Backend::new(Reference)).with(Backend::resident(mock.clone())),
    );
    layer
}

#[test]
fn a_fused_pair_crosses_the_bus_once_each_way() {
    let mock = MockDevice::default();
    let layer = layer(&mock, Format::MxFp4);
    let x = values(2, 3 * IN);
    let y = layer.forward(&x, &[3, IN]).unwrap();
    assert_eq!(mock.transfers.take(), (1, 1));
    layer.forward(&x, &[3, IN]).unwrap();
    assert_eq!(mock.transfers.take(), (1, 1));
    assert_eq!(mock.transfers.prepared.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert_eq!(mock.transfers.transforms.load(std::sync::atomic::Ordering::SeqCst), 1);
    // The transform is loaded once for each type of activations.
    let brain: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
    layer.forward(&brain, &[3, IN]).unwrap();
    assert_eq!(mock.transfers.transforms.load(std::sync::atomic::Ordering::SeqCst), 2);
    let mut on_host = layer.clone();
    on_host.set_backends(Backends::reference());
    assert_eq!(on_host.forward(&x, &[3, IN]).unwrap(), y);
}

#[test]
fn tensors_on_the_device_stay_there() {
    let mock = MockDevice::default();
    let mut layer = layer(&mock, Format::NvFp4);
    layer.set_device(Some(MOCK)).unwrap();
    let x = values(2, 3 * IN);
    let expected = layer.forward(&x, &[3, IN]).unwrap();
    let device_x = layer.upload(f32::wrap(&x), &[3, IN]).unwrap();
    mock.transfers.take();
    let y = layer.forward_device(&device_x).unwrap();
    assert_eq!(mock.transfers.take(), (0, 0), "no host round trip");
    assert_eq!((y.shape(), y.float_type(), y.device()), (&[3, OUT][..], FloatType::F32, MOCK));
    assert_eq!(y.to_host().unwrap(), quant_linear::FloatVec::F32(expected.clone()));
    mock.transfers.take();

    // Mixed pairs: packed activations cross once; the other crossing is the dense values.
    for (quantizer, matmul, crossings) in [
        (MOCK, "reference", (1, 1)),        // packed down, result up
        ("reference", MOCK, (1, 1)),        // values down, packed up
        ("reference", "reference", (1, 1)), // values down, result up
    ] {
        layer.set_quantizer(quantizer);
        layer.set_matmul(matmul);
        // The first forward takes the weight over from the form that it had.
        layer.forward_device(&device_x).unwrap();
        mock.transfers.take();
        let y = layer.forward_device(&device_x).unwrap();
        assert_eq!(mock.transfers.take(), crossings, "{quantizer} x {matmul}");
        assert_eq!(y.to_host().unwrap(), quant_linear::FloatVec::F32(expected.clone()));
        mock.transfers.take();
    }
    // Another device of the same name has another memory.
    let mut elsewhere = layer.clone();
    elsewhere.set_backends(Backends::none().with(Backend::resident(MockDevice::default())));
    assert_eq!(elsewhere.device(), Some(MOCK));
    assert!(matches!(elsewhere.forward_device(&device_x), Err(Error::DeviceMismatch { .. })));
    // A clone of the list shares it.
    let mut shared = layer.clone();
    shared.set_matmul(Choice::Auto);
    assert_eq!(
        shared.forward_device(&device_x).unwrap().to_host().unwrap(),
        quant_linear::FloatVec::F32(expected)
    );
    layer.set_device(None).unwrap();
    assert!(matches!(layer.forward_device(&device_x), Err(Error::OnHost)));
}

#[test]
fn roles_are_chosen_independently() {
    let mock = MockDevice::default();
    let mut layer = layer(&mock, Format::MxFp4);
    let x = values(2, 2 * IN);
    let expected = layer.forward(&x, &[2, IN]).unwrap();
    for (q, m, fused) in [
        (MOCK, MOCK, true),
        (MOCK, "reference", false),
        ("reference", MOCK, false),
        ("reference", "reference", false),
    ] {
        layer.set_quantizer(q);
        layer.set_matmul(m);
        let why = layer.explain(2, FloatType::F32).unwrap();
        assert_eq!((why.quantize.chosen(), why.matmul.chosen()), (Some(q), Some(m)));
        assert_eq!(why.fused, fused, "{q} x {m}");
        assert_eq!(layer.forward(&x, &[2, IN]).unwrap(), expected, "{q} x {m}");
    }
    // Unset: the first of the list.
    layer.set_quantizer(Choice::Auto);
    layer.set_matmul(Choice::Auto);
    let why = layer.explain(2, FloatType::F32).unwrap();
    assert_eq!((why.quantize.chosen(), why.matmul.chosen()), (Some(MOCK), Some(MOCK)));
}

#[test]
fn a_choice_that_cannot_be_honoured_warns_once_and_falls_back() {
    let mock = MockDevice { refuse: Some(Format::NvFp4), ..MockDevice::default() };
    let mut layer = layer(&mock, Format::NvFp4);
    layer.set_matmul(MOCK);
    let x = values(2, 2 * IN);
    let warnings = warnings_of(|| {
        for _ in 0..3 {
            layer.forward(&x, &[2, IN]).unwrap();
        }
    });
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains(MOCK)
            && warnings[0].contains("e4m3 with groups of 16")
            && warnings[0].contains("using `reference`"),
        "{warnings:?}"
    );
    let why = layer.explain(2, FloatType::F32).unwrap();
    let refused = why.matmul.refused.clone().unwrap();
    assert_eq!(refused.0, MOCK);
    assert!(matches!(refused.1, Verdict::Rejected(Unsupported::Format { .. })));
    let text = why.to_string();
    assert!(text.contains("rejected: e4m3 with groups of 16"), "{text}");

    // Left to itself, the same routing is no reason to warn.
    layer.set_matmul(Choice::Auto);
    assert_eq!(warnings_of(|| drop(layer.forward(&x, &[2, IN]).unwrap())), Vec::<String>::new());
}

#[test]
fn an_unknown_name_warns_and_is_explained() {
    let mock = MockDevice::default();
    let mut layer = layer(&mock, Format::MxFp4);
    layer.set_quantizer("no-such-backend");
    let x = values(2, IN);
    let warnings = warnings_of(|| drop(layer.forward(&x, &[IN]).unwrap()));
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(warnings[0].contains("no-such-backend"), "{warnings:?}");
    let why = layer.explain(1, FloatType::F32).unwrap();
    assert!(why.quantize.verdicts.contains(&("no-such-backend".into(), Verdict::Unknown)));
}

#[test]
fn explain_lists_each_rejection() {
    let mock = MockDevice { refuse_quantize: true, ..MockDevice::default() };
    let mut layer = layer(&mock, Format::MxFp4);
    let why = layer.explain(4, FloatType::Bf16).unwrap();
    assert_eq!(
        why.quantize.verdicts,
        [
            (MOCK.to_string(), Verdict::Rejected(Unsupported::Other("the mock was told to"))),
            ("reference".to_string(), Verdict::Chosen),
        ]
    );
    assert_eq!(
        why.matmul.verdicts,
        [(MOCK.to_string(), Verdict::Chosen), ("reference".to_string(), Verdict::Able)]
    );
    layer.set_backends(
        Backends::none()
            .with(Backend::quantizer_only(Reference))
            .with(Backend::matmul_only(mock.clone())),
    );
    let why = layer.explain(4, FloatType::F32).unwrap();
    assert_eq!(why.quantize.verdicts[0], (MOCK.to_string(), Verdict::NotOffered));
    assert_eq!(why.matmul.chosen(), Some(MOCK));
}

/// Row scales stay with the operand where its backend multiplies, go with the packed codes where
/// another does, and are applied here where the backend does not know them.
#[test]
fn row_scales_go_where_the_activation_goes() {
    let mut compared = 0;
    for alpha_alone in [false, true] {
        let mock = MockDevice { alpha_alone, ..MockDevice::default() };
        for bias in [None, Some(&values(5, OUT)[..])] {
            let mut layer = layer(&mock, Format::NvFp4)
                .with_activations(ActivationEncoding::OwnRowScales)
                .unwrap();
            layer.set_bias(bias).unwrap();
            let mut x = values(2, 3 * IN);
            x[IN..2 * IN].iter_mut().for_each(|x| *x *= 1e4);
            let by = |layer: &QuantLinear, [quantizer, matmul]: [&str; 2]| {
                let mut layer = layer.clone();
                layer.set_quantizer(quantizer);
                layer.set_matmul(matmul);
                layer
            };
            let pairs = [[MOCK, MOCK], [MOCK, "reference"], ["reference", MOCK]];
            let expected = by(&layer, ["reference"; 2]).forward(&x, &[3, IN]).unwrap();
            assert!(expected.iter().all(|y| y.is_finite()));
            for pair in pairs {
                let one = by(&layer, pair);
                let case = format!("{pair:?} bias {} alpha alone {alpha_alone}", bias.is_some());
                assert_eq!(one.forward(&x, &[3, IN]).unwrap(), expected, "{case}");
                // Quantized by one, multiplied by another.
                let quantized = one.quantize((&x[..]).into(), 3).unwrap();
                for other in pairs {
                    let mut y = vec![0f32; 3 * OUT];
                    let other = by(&layer, other);
                    other.forward_quantized_into(&quantized, (&mut y[..]).into()).unwrap();
                    assert_eq!(y, expected, "{case}, multiplied by another");
                    compared += y.len();
                }
                // From and to the device's memory.
                let mut there = one.clone();
                there.set_device(Some(MOCK)).unwrap();
                let tensor = there.upload((&x[..]).into(), &[3, IN]).unwrap();
                let y = there.forward_device(&tensor).unwrap();
                let y = y.to_host().unwrap();
                assert_eq!(
                    y,
                    quant_linear::FloatVec::F32(expected.clone()),
                    "{case} on the device"
                );
            }
        }
    }
    assert_eq!(compared, 2 * 2 * 3 * 3 * 3 * OUT);
    // Fused, nothing crosses but the values and the result.
    let mock = MockDevice::default();
    let layer =
        layer(&mock, Format::NvFp4).with_activations(ActivationEncoding::OwnRowScales).unwrap();
    let x = values(2, 3 * IN);
    layer.forward(&x, &[3, IN]).unwrap();
    mock.transfers.take();
    layer.forward(&x, &[3, IN]).unwrap();
    assert_eq!(mock.transfers.take(), (1, 1));
}

#[test]
fn explain_names_both_encodings() {
    let layer = layer(&MockDevice::default(), Format::NvFp4);
    for (activations, line) in [
        (ActivationEncoding::Own, "activations in nvfp4, weight in nvfp4\n"),
        (ActivationEncoding::MxInt8, "activations in mxint8, weight in nvfp4\n"),
        (ActivationEncoding::OwnRowScales, "activations in nvfp4 with row scales, weight in nvfp4"),
    ] {
        let layer = layer.clone().with_activations(activations).unwrap();
        let why = layer.explain(2, FloatType::F32).unwrap();
        assert_eq!((why.activations, why.weight), (activations, Format::NvFp4));
        assert!(why.to_string().starts_with(line), "{why}");
    }
}

#[test]
fn two_entries_of_one_name_are_found_by_role() {
    let mock = MockDevice::default();
    let mut layer = layer(&mock, Format::MxFp4);
    layer.set_backends(
        Backends::reference()
            .with(Backend::quantizer_only(mock.clone()))
            .with(Backend::matmul_only(mock.clone())),
    );
    layer.set_quantizer(MOCK);
    layer.set_matmul(MOCK);
    let why = layer.explain(1, FloatType::F32).unwrap();
    assert_eq!((why.quantize.chosen(), why.matmul.chosen()), (Some(MOCK), Some(MOCK)));
    assert!(why.quantize.refused.is_none() && why.matmul.refused.is_none());
    // Two types bundled under one name do the same.
    layer.set_backends(Backends::none().with(Backend::from_roles(mock.clone(), mock)));
    layer.forward(&values(2, IN), &[IN]).unwrap();
    assert_eq!(warnings_of(|| drop(layer.forward(&values(2, IN), &[IN]).unwrap())), [""; 0]);
}

#[test]
fn no_backend_at_all_is_an_error_with_every_reason() {
    let mock = MockDevice { refuse_quantize: true, ..MockDevice::default() };
    let mut layer = layer(&mock, Format::MxFp4);
    layer.set_backends(Backends::none().with(Backend::resident(mock)));
    let error = layer.forward(&values(2, IN), &[IN]).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, Error::NoBackend { .. }));
    assert!(text.contains("quantize") && text.contains("the mock was told to"), "{text}");
    layer.set_backends(Backends::none());
    let text = layer.forward(&values(2, IN), &[IN]).unwrap_err().to_string();
    assert!(text.contains("the list of backends is empty"), "{text}");
}

#[test]
fn a_device_that_is_none_is_an_error() {
    let mut layer = layer(&MockDevice::default(), Format::MxFp4);
    let error = layer.set_device(Some("reference")).unwrap_err();
    assert!(error.to_string().contains(MOCK), "{error}");
    let error = layer.upload(f32::wrap(&values(1, IN)), &[IN]).unwrap_err();
    assert!(matches!(error, Error::OnHost), "{error}");
    // A list without the device leaves the layer on the host.
    layer.set_device(Some(MOCK)).unwrap();
    layer.set_backends(Backends::reference());
    assert_eq!(layer.device(), None);
}

#[cfg(feature = "cuda")]
#[test]
fn cuda_is_listed_with_a_reason_or_available() {
    let backends = Backends::available();
    let listed = backends.list().iter().any(|b| b.name() == "cuda");
    let reason = backends.unavailable().iter().find(|(n, _)| n == "cuda");
    assert!(listed ^ reason.is_some());
}

#[test]
fn the_reference_is_always_last() {
    let backends = Backends::available();
    assert_eq!(backends.list().last().unwrap().name(), "reference");
    assert_eq!(backends.list().iter().any(|b| b.name() == "cpu-simd"), cfg!(feature = "cpu-simd"));
}

#[test]
fn one_layer_serves_many_threads() {
    let mock = MockDevice::default();
    let layer = layer(&mock, Format::NvFp4);
    let x = values(2, 4 * IN);
    let expected = layer.forward(&x, &[4, IN]).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..20 {
                    assert_eq!(layer.forward(&x, &[4, IN]).unwrap(), expected);
                }
            });
        }
    });
    assert_eq!(mock.transfers.prepared.load(std::sync::atomic::Ordering::SeqCst), 1);
}
