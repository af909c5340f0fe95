//! Construction, forward and dtype semantics of the layer, as the README of the crate promises
//! them.

#![allow(missing_docs)]

mod common;

use common::values;
use fp4_core::{
    Float, FloatType, Format, GroupSize, PackedMatrix, PackedShape, QuantSpec, QuantizeInput,
    ScaleType, reference,
};
use half::{bf16, f16};
use quant_linear::{
    Backends, DenseOptions, Error, FloatVec, Parts, QuantLinear, Runtime, StoredTransform,
};

const OUT: usize = 6;
const IN: usize = 96;

fn options(format: Format, transform: Option<usize>) -> DenseOptions {
    DenseOptions {
        transform: transform.map(|b| StoredTransform::hadamard(b).unwrap()),
        ..DenseOptions::new(format)
    }
}

fn layer(format: Format, transform: Option<usize>) -> QuantLinear {
    let weight = values(1, OUT * IN);
    QuantLinear::from_dense(&weight[..], OUT, IN, &options(format, transform)).unwrap()
}

/// The forward by way of the core's reference functions alone.
fn by_reference<T: Float>(layer: &QuantLinear, x: &[T]) -> Vec<T> {
    let spec = QuantSpec::new(
        layer.scale_type(),
        layer.group_size(),
        layer.activation_global_scale(),
        layer.activation_scale_scale(),
    )
    .unwrap();
    let rows = x.len() / layer.in_features();
    let transform = layer.transform().map(|t| t.view().unwrap());
    let input = QuantizeInput::new(x, rows, layer.in_features(), &spec)
        .unwrap()
        .with_transform(transform)
        .unwrap();
    let mut packed = PackedMatrix::zeros(input.shape());
    reference::quantize(&input, &mut packed.view_mut()).unwrap();
    let mut y = vec![T::default(); rows * layer.out_features()];
    let alpha = layer.weight_global_scale() * layer.activation_global_scale();
    reference::matmul(packed.view(), layer.weight().unwrap().view(), alpha, T::wrap_mut(&mut y))
        .unwrap();
    y
}

#[test]
fn forward_takes_any_leading_dimensions_and_types() {
    let mut compared = 0;
    for format in Format::ALL {
        for transform in [None, Some(16), Some(32)] {
            let layer = layer(format, transform);
            let x = values(2, 2 * 3 * IN);
            let y = layer.forward(&x, &[2, 3, IN]).unwrap();
            assert_eq!(layer.output_shape(&[2, 3, IN]).unwrap(), [2, 3, OUT]);
            assert_eq!(y, by_reference(&layer, &x));
            for shape in [&[6, IN][..], &[1, 6, 1, IN], &[3, 2, IN]] {
                assert_eq!(layer.forward(&x, shape).unwrap(), y, "{shape:?}");
            }
            // One vector, with no leading dimension.
            assert_eq!(layer.forward(&x[..IN], &[IN]).unwrap(), y[..OUT]);
            let half: Vec<f16> = x.iter().map(|&v| f16::from_f32(v)).collect();
            assert_eq!(layer.forward(&half, &[6, IN]).unwrap(), by_reference(&layer, &half));
            let brain: Vec<bf16> = x.iter().map(|&v| bf16::from_f32(v)).collect();
            assert_eq!(layer.forward(&brain, &[6, IN]).unwrap(), by_reference(&layer, &brain));
            compared += 6 * y.len();
        }
    }
    println!("forward: {compared} values compared, 0 differ");
    assert_eq!(compared, 2 * 3 * 6 * 6 * OUT);
}

#[test]
fn empty_leading_dimensions_give_an_empty_result() {
    let layer = layer(Format::MxFp4, None);
    assert!(layer.forward::<f32>(&[], &[0, IN]).unwrap().is_empty());
    assert!(layer.forward::<f32>(&[], &[2, 0, IN]).unwrap().is_empty());
    assert_eq!(layer.output_shape(&[2, 0, IN]).unwrap(), [2, 0, OUT]);
}

#[test]
fn wrong_inputs_are_errors() {
    let layer = layer(Format::MxFp4, None);
    let x = values(3, 2 * IN);
    for shape in [&[2, IN - 1][..], &[], &[IN, 2]] {
        let error = layer.forward(&x, shape).unwrap_err();
        assert!(matches!(error, Error::InputShape { in_features: IN, .. }), "{shape:?}: {error}");
    }
    let error = layer.forward(&x, &[usize::MAX, 2, IN]).unwrap_err();
    assert!(matches!(error, Error::Core(fp4_core::Error::ShapeOverflow { .. })), "{error}");
    assert!(layer.forward::<f32>(&[], &[usize::MAX, 2, 0, IN]).unwrap().is_empty());
    let error = layer.forward(&x, &[3, IN]).unwrap_err();
    assert!(matches!(error, Error::InputLen { expected: 288, got: 192, .. }), "{error}");
    let mut out = vec![0f32; 2 * OUT - 1];
    let error = layer.forward_into(f32::wrap(&x), 2, f32::wrap_mut(&mut out)).unwrap_err();
    assert!(matches!(error, Error::Core(fp4_core::Error::Len { .. })), "{error}");
}

#[test]
fn the_output_may_have_another_type_than_the_input() {
    for format in Format::ALL {
        let mut layer = layer(format, Some(16));
        let x = values(3, 2 * IN);
        for backends in [Backends::available(), Backends::reference()] {
            layer.set_backends(backends);
            let y = layer.forward(&x, &[2, IN]).unwrap();
            let mut narrow = vec![bf16::ZERO; 2 * OUT];
            layer.forward_into(f32::wrap(&x), 2, bf16::wrap_mut(&mut narrow)).unwrap();
            // s32 * alpha in f32, then one rounding (C6): the f32 output rounded once.
            let rounded: Vec<_> = y.iter().map(|&v| bf16::from_f32(v)).collect();
            assert_eq!(narrow, rounded, "{format}");
        }
    }
}

#[test]
fn an_activation_is_quantized_once_for_layers_of_the_same_settings() {
    for format in Format::ALL {
        let q = layer(format, Some(16));
        let weight = values(11, 3 * IN);
        let k = QuantLinear::from_dense(&weight[..], 3, IN, &options(format, Some(16))).unwrap();
        let x = values(3, 4 * IN);
        for backends in [Backends::available(), Backends::reference()] {
            let runtime = Runtime::new(backends);
            let (mut q, mut k) = (q.clone(), k.clone());
            q.set_runtime(&runtime);
            k.set_runtime(&runtime);
            let activation = q.quantize(f32::wrap(&x), 4).unwrap();
            assert!(activation.fits(&q) && activation.fits(&k));
            for layer in [&q, &k] {
                let mut y = vec![0f32; 4 * layer.out_features()];
                layer.forward_quantized_into(&activation, f32::wrap_mut(&mut y)).unwrap();
                assert_eq!(y, layer.forward(&x, &[4, IN]).unwrap(), "{format}");
            }
            // Another backend reads what the first one quantized.
            k.set_backends(Backends::reference());
            let mut y = vec![0f32; 4 * 3];
            k.forward_quantized_into(&activation, f32::wrap_mut(&mut y)).unwrap();
            assert_eq!(y, k.forward(&x, &[4, IN]).unwrap(), "{format}");
            // Other settings are refused.
            let mut y = vec![0f32; 4 * OUT];
            let plain = layer(format, None);
            assert!(!activation.fits(&plain));
            let error = plain.forward_quantized_into(&activation, f32::wrap_mut(&mut y));
            assert!(matches!(error.unwrap_err(), Error::ActivationSettings));
        }
    }
}

#[test]
fn debug_shows_shapes_and_settings_only() {
    let weight = values(1, 192 * 576);
    for transform in [None, Some(64)] {
        let options = options(Format::NvFp4, transform);
        let mut layer = QuantLinear::from_dense(&weight[..], 192, 576, &options).unwrap();
        layer.set_name("decoder.0");
        layer.forward(&values(2, 576), &[576]).unwrap();
        let parts = Parts {
            weight: layer.weight().unwrap(),
            transform: layer.transform().cloned(),
            weight_global_scale: 1.0,
            activation_global_scale: None,
            activation_scale_scale: None,
            activations: quant_linear::ActivationEncoding::Own,
        };
        for shown in [
            format!("{layer:?}"),
            format!("{:?}", layer.weight().unwrap()),
            format!("{:?}", layer.weight().unwrap().view()),
            format!("{:?}", layer.transform()),
            format!("{:?}", layer.state_dict("x").unwrap()),
            format!("{parts:?}"),
            format!("{options:?}"),
            format!("{:?}", layer.quantize(f32::wrap(&weight), 192).unwrap()),
        ] {
            assert!(shown.len() < 1000, "{} characters: {}", shown.len(), &shown[..200]);
        }
        let shown = format!("{layer:?}");
        assert!(shown.contains("decoder.0") && shown.contains("192"), "{shown}");
    }
}

#[test]
fn an_error_names_the_layer() {
    let mut layer = layer(Format::MxFp4, None);
    let plain = layer.forward(&[0f32; 3], &[1, IN]).unwrap_err().to_string();
    layer.set_name("model.layers.3.mlp.up_proj");
    let named = layer.forward(&[0f32; 3], &[1, IN]).unwrap_err().to_string();
    assert_eq!(named, format!("layer `model.layers.3.mlp.up_proj`: {plain}"));
    assert_eq!(layer.clone().name(), Some("model.layers.3.mlp.up_proj"));
}

#[test]
fn a_weight_of_the_wrong_length_is_called_a_weight() {
    let weight = values(1, OUT * IN);
    for (rows, cols, len) in [(OUT, IN, OUT * IN - 1), (OUT + 1, IN, OUT * IN), (1 << 60, 32, 64)] {
        for (format, block) in [(Format::MxFp4, None), (Format::NvFp4, Some(32))] {
            let options = options(format, block);
            let error = QuantLinear::from_dense(&weight[..len], rows, cols, &options).unwrap_err();
            assert!(matches!(error, Error::WeightLen { got, .. } if got == len), "{error}");
            let text = error.to_string();
            assert!(text.contains("the weight holds") && !text.contains("input"), "{text}");
            assert!(text.contains(&format!("{rows} x {cols}")), "{text}");
        }
    }
}

#[test]
fn only_an_automatic_nvfp4_scale_looks_at_the_largest_magnitude() {
    let given = DenseOptions { weight_global_scale: Some(0.5), ..DenseOptions::new(Format::NvFp4) };
    for (options, needs) in [
        (DenseOptions::new(Format::MxFp4), false),
        (DenseOptions::new(Format::NvFp4), true),
        (given, false),
    ] {
        assert_eq!(options.needs_amax(), needs);
        // A weight that no automatic scale exists for shows whether it was looked for.
        let weight = vec![f32::INFINITY; 64];
        assert_eq!(QuantLinear::from_dense(&weight[..], 2, 32, &options).is_err(), needs);
    }
}

#[test]
fn the_fp4_product_is_near_the_dense_one() {
    // A sanity bound, not a tolerance of the contract: FP4 keeps the direction of the result.
    for (format, transform) in [(Format::MxFp4, None), (Format::NvFp4, Some(32))] {
        let (weight, x) = (values(1, OUT * IN), values(2, 8 * IN));
        let layer =
            QuantLinear::from_dense(&weight[..], OUT, IN, &options(format, transform)).unwrap();
        let y = layer.forward(&x, &[8, IN]).unwrap();
        let (mut dot, mut yy, mut dd) = (0f64, 0f64, 0f64);
        for (i, &y) in y.iter().enumerate() {
            let (r, c) = (i / OUT, i % OUT);
            let dense: f64 =
                (0..IN).map(|k| f64::from(x[r * IN + k]) * f64::from(weight[c * IN + k])).sum();
            dot += dense * f64::from(y);
            yy += f64::from(y).powi(2);
            dd += dense * dense;
        }
        let cosine = dot / (yy * dd).sqrt();
        assert!(cosine > 0.97, "{format}: cosine {cosine}");
    }
}

#[test]
fn an_empty_layer_answers_with_what_it_was_built_for() {
    let layer = QuantLinear::empty(64, 10, true).unwrap();
    assert_eq!((layer.in_features(), layer.out_features()), (64, 10));
    assert_eq!((layer.group_size(), layer.scale_type()), (GroupSize::G32, ScaleType::E8M0));
    assert_eq!((layer.weight_global_scale(), layer.format()), (1.0, Some(Format::MxFp4)));
    assert!(layer.is_empty());
    let error = layer.forward(&[0f32; 64], &[64]).unwrap_err();
    assert!(matches!(error, Error::Empty { in_features: 64, out_features: 10 }), "{error}");
    assert!(matches!(layer.state_dict("").unwrap_err(), Error::Empty { .. }));
    assert!(QuantLinear::empty(48, 10, false).is_err());
    let other = QuantLinear::empty_with(48, 10, GroupSize::G16, ScaleType::E4M3, 0.5).unwrap();
    assert_eq!(other.format(), Some(Format::NvFp4));
}

#[test]
fn a_dtype_change_converts_the_transform_once_and_nothing_else() {
    // Not a Hadamard, whose entries all round alike and so change no code.
    let transform = StoredTransform::new(FloatVec::F32(values(4, 32 * 32)), vec![32, 32]);
    let options =
        DenseOptions { transform: Some(transform.unwrap()), ..DenseOptions::new(Format::NvFp4) };
    let weight = values(1, OUT * IN);
    let mut layer = QuantLinear::from_dense(&weight[..], OUT, IN, &options).unwrap();
    let before = layer.clone();
    layer.set_dtype(FloatType::Bf16);
    assert_eq!(layer.dtype(), FloatType::Bf16);
    assert_eq!(layer.weight().unwrap(), before.weight().unwrap());
    assert_eq!(layer.weight_global_scale().to_bits(), before.weight_global_scale().to_bits());
    assert_eq!(
        layer.activation_global_scale().to_bits(),
        before.activation_global_scale().to_bits()
    );
    let (FloatVec::Bf16(now), FloatVec::F32(was)) =
        (layer.transform().unwrap().values(), before.transform().unwrap().values())
    else {
        panic!("types");
    };
    assert!(now.iter().zip(was).all(|(n, w)| *n == bf16::from_f32(*w)));
    // ActivationEncoding in bf16 round T to bf16 anyway: the same bits before and after.
    let x: Vec<bf16> = values(5, 2 * IN).into_iter().map(bf16::from_f32).collect();
    assert_eq!(layer.forward(&x, &[2, IN]).unwrap(), before.forward(&x, &[2, IN]).unwrap());
    // And in f32 the narrower transform shows: it is not restored by widening.
    layer.set_dtype(FloatType::F32);
    let x = values(5, 64 * IN);
    assert_ne!(layer.forward(&x, &[64, IN]).unwrap(), before.forward(&x, &[64, IN]).unwrap());
}

#[test]
fn absent_activation_scalars_are_resolved_once() {
    let parts = |gs, ss| {
        let dense = layer(Format::MxFp4, None);
        Parts {
            weight: dense.weight().unwrap(),
            transform: None,
            weight_global_scale: 0.25,
            activation_global_scale: gs,
            activation_scale_scale: ss,
            activations: quant_linear::ActivationEncoding::Own,
        }
    };
    let resolved = QuantLinear::from_parts(parts(None, None)).unwrap();
    assert_eq!(resolved.activation_global_scale(), 0.25);
    assert_eq!(resolved.activation_scale_scale(), 1.0);
    let given = QuantLinear::from_parts(parts(Some(0.5), Some(4.0))).unwrap();
    assert_eq!((given.activation_global_scale(), given.activation_scale_scale()), (0.5, 4.0));
    for bad in [0.0, -1.0, f32::NAN, f32::INFINITY, 2.0] {
        assert!(QuantLinear::from_parts(parts(Some(bad), Some(4.0))).is_err(), "{bad}");
    }
}

#[test]
fn an_alpha_that_underflows_is_an_error() {
    let dense = layer(Format::NvFp4, None);
    let tiny = f32::from_bits(1);
    let layer = QuantLinear::from_parts(Parts {
        weight: dense.weight().unwrap(),
        transform: None,
        weight_global_scale: tiny,
        activation_global_scale: Some(0.25),
        activation_scale_scale: Some(6.0),
        activations: quant_linear::ActivationEncoding::Own,
    })
    .unwrap();
    let error = layer.forward(&values(1, IN), &[IN]).unwrap_err();
    assert!(error.to_string().contains("weight global scale times activation"), "{error}");
}

#[test]
fn parts_that_do_not_fit_are_errors() {
    let weight =
        |group, scale| PackedMatrix::zeros(PackedShape::new(4, 128, scale, group).unwrap());
    let parts = |weight, transform| Parts {
        weight,
        transform,
        weight_global_scale: 1.0,
        activation_global_scale: None,
        activation_scale_scale: Some(4.0),
        activations: quant_linear::ActivationEncoding::Own,
    };
    let g64 = QuantLinear::from_parts(parts(weight(GroupSize::G64, ScaleType::E8M0), None));
    assert!(matches!(g64.unwrap_err(), Error::Core(fp4_core::Error::NotAMatmulFormat { .. })));
    let three = StoredTransform::new(FloatVec::zeros(FloatType::F32, 3 * 256), vec![3, 16, 16]);
    let wrong = parts(weight(GroupSize::G32, ScaleType::E8M0), Some(three.unwrap()));
    let error = QuantLinear::from_parts(wrong).unwrap_err();
    assert!(matches!(error, Error::Core(fp4_core::Error::TransformShape { .. })), "{error}");
    for shape in [vec![16, 32], vec![256], vec![8, 8]] {
        let len = shape.iter().product();
        assert!(StoredTransform::new(FloatVec::zeros(FloatType::F32, len), shape).is_err());
    }
    assert!(StoredTransform::hadamard(24).is_err());
}

#[test]
fn zero_rows_and_zero_columns_are_legal() {
    for format in Format::ALL {
        let none = QuantLinear::from_dense(&[0f32; 0][..], 0, 32, &DenseOptions::new(format));
        let y = none.unwrap().forward(&[1f32; 64], &[2, 32]).unwrap();
        assert!(y.is_empty());
        let flat = QuantLinear::from_dense(&[0f32; 0][..], 3, 0, &DenseOptions::new(format));
        let y = flat.unwrap().forward::<f32>(&[], &[2, 0]).unwrap();
        assert_eq!(y.iter().map(|v| v.to_bits()).collect::<Vec<_>>(), [0; 6]);
    }
}

#[test]
fn shapes_of_nothing_are_bounded() {
    let options = DenseOptions::new(Format::MxFp4);
    for rows in [usize::MAX, 1 << 60, 1 << 24, (1 << 16) + 1] {
        let error = QuantLinear::from_dense(&[0f32; 0][..], rows, 0, &options).unwrap_err();
        assert!(matches!(error, Error::NoColumns { .. }), "{rows}: {error}");
    }
    let flat = QuantLinear::from_dense(&[0f32; 0][..], 1, 0, &options).unwrap();
    for rows in [usize::MAX, 1 << 60] {
        let error = flat.forward::<f32>(&[], &[rows, 0]).unwrap_err();
        assert!(matches!(error, Error::Memory { .. }), "{rows}: {error}");
    }
}

#[test]
fn a_layer_that_could_never_run_is_not_made() {
    let options = DenseOptions {
        weight_global_scale: Some(1e-40),
        activation_global_scale: Some(1e-40),
        ..DenseOptions::new(Format::NvFp4)
    };
    let weight = values(1, OUT * IN);
    let error = QuantLinear::from_dense(&weight[..], OUT, IN, &options).unwrap_err();
    assert!(error.to_string().contains("weight global scale times activation"), "{error}");
}

#[test]
fn nan_and_infinite_weights() {
    let mut weight = values(1, OUT * IN);
    weight[5] = f32::NAN;
    let nv = QuantLinear::from_dense(&weight[..], OUT, IN, &DenseOptions::new(Format::NvFp4));
    assert!(matches!(nv.unwrap_err(), Error::Core(fp4_core::Error::ScaleSetting { .. })));
    let mx = QuantLinear::from_dense(&weight[..], OUT, IN, &DenseOptions::new(Format::MxFp4));
    let y = mx.unwrap().forward(&values(2, IN), &[IN]).unwrap();
    assert_eq!(y[0].to_bits(), 0x7FC0_0000);
    assert!(y[1..].iter().all(|v| v.is_finite()));
}

#[test]
fn counters_count_what_they_say() {
    let mut layer = layer(Format::MxFp4, None);
    assert!(layer.counters().is_none());
    layer.set_counting(true);
    let mut x = vec![1f32; 2 * IN];
    x[0] = f32::INFINITY; // clipped, alone in a group whose scale is then the largest
    x[IN] = f32::NAN; // one NaN group
    x[IN + 32..IN + 64].fill(0.0); // one zero group
    layer.forward(&x, &[2, IN]).unwrap();
    let counts = layer.counters().unwrap().quantized();
    assert_eq!((counts.elements, counts.groups), (192, 6));
    assert_eq!((counts.clipped, counts.scale_max, counts.nan_groups), (1, 1, 1));
    // Beside the infinity everything else rounds to zero; the group still has one code. A group
    // of zeros loses nothing.
    assert_eq!(counts.flushed, 0);
    let paths = layer.counters().unwrap().paths();
    assert_eq!(paths.narrow + paths.planes + paths.wide, 2 * OUT as u64);
    layer.forward(&x, &[2, IN]).unwrap();
    assert_eq!(layer.counters().unwrap().quantized().elements, 384);
}

#[test]
fn every_available_pair_gives_the_same_bits() {
    let mut pairs = 0;
    for format in Format::ALL {
        let mut layer = layer(format, Some(16));
        let x = values(9, 7 * IN);
        layer.set_backends(Backends::reference());
        let expected = layer.forward(&x, &[7, IN]).unwrap();
        layer.set_backends(Backends::available());
        let names: Vec<String> =
            Backends::available().list().iter().map(|b| b.name().to_string()).collect();
        for q in &names {
            for m in &names {
                layer.set_quantizer(q.as_str());
                layer.set_matmul(m.as_str());
                assert_eq!(layer.forward(&x, &[7, IN]).unwrap(), expected, "{q} x {m}");
                pairs += 1;
            }
        }
    }
    println!("pairs: {pairs} pairs, {} values compared, 0 differ", pairs * 7 * OUT);
    assert!(pairs >= 2);
}

#[test]
fn a_bias_is_added_before_the_one_rounding_on_every_backend_and_type() {
    let bias: Vec<f32> = (0..OUT).map(|j| [0.0, -0.0, 1e-3, -7.5, 3e38, f32::NAN][j]).collect();
    for format in Format::ALL {
        let plain = layer(format, Some(16));
        let mut layer = plain.clone().with_bias(&bias).unwrap();
        assert_eq!(layer.bias().map(<[f32]>::len), Some(OUT));
        let x = values(3, 5 * IN);
        // C6: y = s32 * alpha in f32, then + bias[j] in f32, then one rounding.
        let expected: Vec<f32> = plain
            .forward(&x, &[5, IN])
            .unwrap()
            .iter()
            .enumerate()
            .map(|(i, y)| y + bias[i % OUT])
            .collect();
        for backends in [Backends::available(), Backends::reference()] {
            layer.set_backends(backends);
            let y = layer.forward(&x, &[5, IN]).unwrap();
            for (i, (got, expected)) in y.iter().zip(&expected).enumerate() {
                let expected = if expected.is_nan() { f32::NAN } else { *expected };
                assert_eq!(got.to_bits(), expected.to_bits(), "{format} {i}");
            }
            let mut narrow = vec![f16::ZERO; 5 * OUT];
            layer.forward_into(f32::wrap(&x), 5, f16::wrap_mut(&mut narrow)).unwrap();
            for (got, expected) in narrow.iter().zip(&expected) {
                assert!(
                    got.to_bits() == f16::from_f32(*expected).to_bits()
                        || (got.to_bits() == 0x7E00 && expected.is_nan()),
                    "{format} {got} {expected}"
                );
            }
        }
        let error = plain.clone().with_bias(&bias[1..]).unwrap_err();
        assert!(matches!(error, Error::BiasLen { out_features: OUT, got: 5 }), "{error}");
        let mut none = layer.clone();
        none.set_bias(None).unwrap();
        assert_eq!(none.forward(&x, &[5, IN]).unwrap(), plain.forward(&x, &[5, IN]).unwrap());
    }
}

#[test]
fn the_packed_weight_comes_back_bit_for_bit_from_every_backend() {
    for format in Format::ALL {
        let layer = layer(format, None);
        let before = layer.weight().unwrap();
        let state = layer.state_dict("a").unwrap();
        let x = values(3, IN);
        let expected = layer.forward(&x, &[IN]).unwrap();
        for backend in Backends::available().list() {
            // Each takes the weight over from the one before, which is gone by then.
            let mut layer = layer.clone();
            layer.set_backends(Backends::none().with(backend.clone()));
            assert_eq!(layer.forward(&x, &[IN]).unwrap(), expected);
            assert_eq!(layer.weight().unwrap(), before, "{format} {}", backend.name());
            assert_eq!(layer.state_dict("a").unwrap(), state);
        }
    }
}

#[test]
fn clipped_activations_are_counted_by_every_backend_and_said_once() {
    for format in Format::ALL {
        let mut layer = layer(format, None);
        layer.set_counting(true);
        let mut x = values(3, 2 * IN);
        x[5] = f32::INFINITY;
        x[IN + 7] = 1e30;
        let mut seen = Vec::new();
        for backends in [Backends::available(), Backends::reference()] {
            layer.set_backends(backends);
            layer.counters().unwrap().reset();
            layer.forward(&x, &[2, IN]).unwrap();
            seen.push(layer.counters().unwrap().quantized());
        }
        assert_eq!(seen[0], seen[1], "{format}");
        let clipped = if format == Format::NvFp4 { 2 } else { 1 };
        assert_eq!((seen[0].clipped, seen[0].elements), (clipped, 2 * IN as u64), "{format}");
        layer.counters().unwrap().reset();
        assert_eq!(layer.counters().unwrap().quantized().elements, 0);
    }
}
